"""What an optimizer of a stack is: row operations on flat (M, P) buffers, every hyperparameter given per member.

Only operations that round each element on its own are used, never a fused kernel that would treat the last elements of
a buffer otherwise, so that a member's update does not depend on the stack around it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from qfml.engine.stack import Layout
from qfml.errors import UserError

Flat = Float[Tensor, "member parameter"]
State = dict[str, Tensor]
_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}
Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]


class Step(NamedTuple):
    """What an update knows beside parameters and gradient.

    Attributes:
        updates: of each member, this one included, shape (M,).
        lr: learning rate of each member, shape (M,) float64, 0 for a member that must not move.
        weight_decay: of each member, shape (M,) float64.
        layout: where each parameter lies in a row.
        scale: factors of the learning rate by parameter group, (1, P) or None.
        decay_scale: factors of the weight decay by parameter group, (1, P) or None.
        moves: (M, 1), 0 for a member that must not move, where that is known on the device only.
        evaluate: the losses (M,) and gradients (M, P) of the same batch at other parameters.
    """

    updates: np.ndarray
    lr: np.ndarray
    weight_decay: np.ndarray
    layout: Layout
    scale: Tensor | None = None
    decay_scale: Tensor | None = None
    moves: Tensor | None = None
    evaluate: Evaluate | None = None

    def column(self, values: np.ndarray, like: Tensor) -> Tensor:
        """One value a member, (M, 1), of the dtype and on the device of `like`."""
        return torch.from_numpy(values[:, None].astype(_NUMPY[like.dtype])).to(like.device)

    def rate(self, factor: np.ndarray | float, like: Tensor) -> Tensor:
        """The learning rate times a factor a member: (M, 1), or (M, P) with parameter groups."""
        rate = self.column(self.lr * factor, like)
        if self.moves is not None:
            rate = rate * self.moves
        return rate if self.scale is None else rate * self.scale

    @property
    def decays(self) -> bool:
        """Whether any member has weight decay."""
        return bool(self.weight_decay.any())

    def decay(self, like: Tensor) -> Tensor:
        """Weight decay, (M, 1), or (M, P) with parameter groups."""
        decay = self.column(self.weight_decay, like)
        return decay if self.decay_scale is None else decay * self.decay_scale

    def shrinkage(self, like: Tensor) -> Tensor:
        """1 less learning rate times weight decay: (M, 1), or (M, P) with parameter groups."""
        if self.moves is None and self.scale is None and self.decay_scale is None:
            return self.column(1 - self.lr * self.weight_decay, like)
        return 1 - self.rate(1.0, like) * self.decay(like)


@runtime_checkable
class Optimizer(Protocol):
    """The settings of an optimizer, and its update as a pure row operation on a stack."""

    kind: ClassVar[str]

    @property
    def lr(self) -> float:
        """Learning rate of the members that do not carry their own."""
        ...

    @property
    def weight_decay(self) -> float:
        """Weight decay of the members that do not carry their own."""
        ...

    def start(self, parameters: Flat) -> State:
        """What is remembered before the first step; every tensor has the members as its first axis."""
        ...

    def update(self, parameters: Flat, gradient: Flat, state: State, step: Step) -> None:
        """Update `parameters` and `state` in place; `gradient` may be overwritten.

        A member whose learning rate is 0 keeps its parameters to the bit.
        """
        ...


def zeros(parameters: Tensor, *names: str) -> State:
    """A buffer of zeros like the parameters for each name."""
    return {name: torch.zeros_like(parameters) for name in names}


def powers(base: float, count: np.ndarray) -> np.ndarray:
    """`base` to the power of each count. Python's own: a vectorised one rounds by place in the buffer."""
    return np.array([base**n for n in count.tolist()])


def check_rates(lr: float, weight_decay: float) -> None:
    """Raise ValueError for a rate that is not positive, or a negative decay."""
    if not 0 < lr < float("inf"):
        raise UserError(f"`lr` must be positive and finite, got {lr}")
    if not 0 <= weight_decay < float("inf"):
        raise UserError(f"`weight_decay` must be >= 0 and finite, got {weight_decay}")


def row_sums(values: Tensor) -> Tensor:
    """Sums over the last axis, kept as an axis of 1.

    A single long row would be cut at another place by each number of threads; pieces of 1024 are not cut.
    """
    if values.shape[-1] > 1024:
        padded = torch.nn.functional.pad(values, (0, -values.shape[-1] % 1024))
        values = padded.unflatten(-1, (-1, 1024)).sum(-1)
    return values.sum(-1, keepdim=True)


def penalised(parameters: Flat, gradient: Flat, step: Step) -> Tensor:
    """The gradient of the loss with the penalty `weight_decay |parameters|^2 / 2` added to it."""
    return gradient.add(parameters * step.decay(parameters)) if step.decays else gradient


def check_eps(eps: float) -> None:
    """Raise ValueError for a term of a denominator that is not positive."""
    if not 0 < eps < float("inf"):
        raise UserError(f"`eps` must be positive and finite, got {eps}")


def check_betas(optimizer: Any, *names: str) -> None:
    """Raise ValueError for a decay rate of a mean outside [0, 1)."""
    for name in names:
        if not 0 <= getattr(optimizer, name) < 1:
            raise UserError(f"`{name}` must lie in [0, 1), got {getattr(optimizer, name)}")
