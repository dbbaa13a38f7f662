"""Derivatives by a few numbers: reverse mode over a batch, forward mode, central differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Step", "central_difference", "forward_derivative", "reverse_derivatives"]


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


@dataclass(frozen=True)
class Step:
    """Where a graph begins: by how much a parameter moves.

    Args:
        leaf: zeros that require a gradient, of the event shape; or of the batch before it, a step for each element.
        event_shape: one derivative for each entry.
    """

    leaf: Tensor
    event_shape: torch.Size


def reverse_derivatives(
    value: Tensor, steps: Sequence[Step], wanted: Sequence[tuple[int, ...]], kept: bool = False
) -> list[Tensor]:
    r"""Derivatives of each element $V_b$ of a batch by steps from which a graph leads to it.

    $L = \sum_b w_b V_b$ and all its derivatives by steps are linear in the weights $w = 1$, so that one more backward
    pass, by the weights, tells the elements apart: $\partial_{w_b} \partial_x L = \partial_x V_b$. A step that each
    element has for itself needs none: $\partial_{x_b} L = \partial_{x_b} V_b$.

    Args:
        value: shape `*batch`.
        steps: what to differentiate by.
        wanted: indices of one step (a first derivative) or two (a second one).
        kept: whether the derivatives carry a graph on.

    Returns:
        For each of `wanted` shape `*batch`, then the event shapes of its steps.

    >>> leaf = torch.zeros((), dtype=torch.float64, requires_grad=True)
    >>> value = torch.tensor([1.0, 2.0], dtype=torch.float64) * (1.0 + leaf) ** 3
    >>> reverse_derivatives(value, [Step(leaf, leaf.shape)], [(0,), (0, 0)])
    [tensor([3., 6.], dtype=torch.float64), tensor([ 6., 12.], dtype=torch.float64)]
    """
    with torch.enable_grad():
        graph = _Graph(value, torch.ones_like(value, requires_grad=True), steps, kept)
        first = graph.first([key[0] for key in wanted if len(key) == 1])
        second = graph.second([(key[0], key[1]) for key in wanted if len(key) == 2])
    found: dict[tuple[int, ...], Tensor] = {(key,): part for key, part in first.items()} | second
    return [found[key] if kept else found[key].detach() for key in wanted]


@dataclass(frozen=True)
class _Graph:
    value: Tensor
    weights: Tensor
    steps: Sequence[Step]
    kept: bool

    def own(self, key: int) -> bool:
        """Whether each element of the batch has a step of its own."""
        step = self.steps[key]
        return step.leaf.numel() == self.value.numel() * step.event_shape.numel()

    def first(self, keys: list[int]) -> dict[int, Tensor]:
        total = (self.weights * self.value).sum()
        own, shared = [k for k in keys if self.own(k)], [k for k in keys if not self.own(k)]
        found = {k: self._columns(k, g) for k, g in zip(own, self._gradients(total, own, self.kept), strict=True)}
        entries = sum(self.steps[k].event_shape.numel() for k in shared)
        if not 0 < self.value.numel() <= entries:
            gradients = self._gradients(total, shared, True)
            return found | {k: self._columns(k, g) for k, g in zip(shared, gradients, strict=True)}
        # fewer prices than numbers they share: a backward pass for each price
        rows = [self._gradients(element, shared, self.kept) for element in self.value.reshape(-1)]
        for k, column in zip(shared, zip(*rows, strict=True), strict=True):
            found[k] = torch.stack(column).reshape(*self.value.shape, *self.steps[k].event_shape)
        return found

    def second(self, pairs: list[tuple[int, int]]) -> dict[tuple[int, ...], Tensor]:
        total = (self.weights * self.value).sum()
        firsts = list(dict.fromkeys(first for first, _ in pairs))
        found: dict[tuple[int, ...], Tensor] = {}
        for first, gradient in zip(firsts, self._gradients(total, firsts, True), strict=True):
            seconds = [other for one, other in pairs if one == first]
            event = self.steps[first].event_shape
            # each entry of the first derivative, summed over the batch, is a total again
            entries = gradient.reshape(-1, event.numel()).sum(0)
            slopes = [self._gradients(entry, seconds, True) for entry in entries]
            for key, column in zip(seconds, zip(*slopes, strict=True), strict=True):
                parts = torch.stack([self._columns(key, slope) for slope in column], dim=self.value.ndim)
                found[first, key] = parts.reshape((*self.value.shape, *event, *self.steps[key].event_shape))
        return found

    def _columns(self, key: int, gradient: Tensor) -> Tensor:
        """The derivative of each element of the batch from that of the weighted total."""
        shape = (*self.value.shape, *self.steps[key].event_shape)
        if self.own(key):
            return gradient.reshape(shape)
        columns = [_gradient(entry, [self.weights], self.kept)[0] for entry in gradient.reshape(-1)]
        return torch.stack(columns, dim=-1).reshape(shape)

    def _gradients(self, total: Tensor, keys: list[int], graph: bool) -> tuple[Tensor, ...]:
        return _gradient(total, [self.steps[key].leaf for key in keys], graph)


def _gradient(total: Tensor, leaves: list[Tensor], graph: bool) -> tuple[Tensor, ...]:
    """Gradients of a number; zeros where nothing leads to it."""
    if not leaves or not total.requires_grad:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    return torch.autograd.grad(
        total, leaves, create_graph=graph, retain_graph=True, allow_unused=True, materialize_grads=True
    )


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
