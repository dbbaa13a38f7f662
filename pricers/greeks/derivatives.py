"""Derivatives of functions of a few numbers: forward mode, reverse mode, central differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["central_difference", "forward_derivative", "reverse_jacobian"]


def forward_derivative(function: Callable[..., Any], order: int) -> Any:
    """Mixed derivative of `function(*steps)` in all its `order` numbers at 0, by nested forward mode.

    Args:
        function: of `order` numbers, returning a tensor or a tuple of tensors.
        order: 1 or more.

    >>> forward_derivative(lambda x, y: torch.sin(1.0 + x) * y, order=2)
    tensor(0.5403, dtype=torch.float64)
    """
    zero = torch.zeros((), dtype=torch.float64)
    one = torch.ones_like(zero)

    def along(fixed: tuple[Tensor, ...]) -> Any:
        if len(fixed) == order:
            return function(*fixed)
        return torch.func.jvp(lambda step: along((*fixed, step)), (zero,), (one,))[1]

    return along(())


def reverse_jacobian(function: Callable[[Tensor], Tensor], shape: torch.Size) -> Tensor:
    """Derivatives of all elements of `function(steps)` by all of many steps at 0: one backward pass for each element.

    Returns:
        Shape of the value, then `shape`.
    """
    with torch.enable_grad():
        steps = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        value = function(steps)
        rows = [
            torch.autograd.grad(element, steps, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
            for element in value.reshape(-1)
        ]
    return torch.stack(rows).reshape(*value.shape, *shape).to(value.dtype)


def central_difference(function: Callable[..., Any], sizes: Sequence[float]) -> Any:
    """Central difference of `function(*steps)` in each step, one inside the other.

    >>> central_difference(lambda x: (1.0 + x) ** 2, [0.5])
    tensor(2., dtype=torch.float64)
    """

    def along(fixed: tuple[Tensor, ...]) -> Any:
        if len(fixed) == len(sizes):
            return function(*fixed)
        size = sizes[len(fixed)]
        step = torch.tensor(size, dtype=torch.float64)
        up, down = along((*fixed, step)), along((*fixed, -step))
        if isinstance(up, tuple):
            return tuple((one - other) / (2.0 * size) for one, other in zip(up, down, strict=True))
        return (up - down) / (2.0 * size)

    return along(())
