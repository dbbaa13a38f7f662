"""Optimizers of a stack: row operations on flat (M, P) buffers, every hyperparameter given per member.

Only operations that round each element on its own are used, never a fused kernel that would treat the last elements of
a buffer otherwise, so that a member's update does not depend on the stack around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from qfml.errors import UserError

Flat = Float[Tensor, "member parameter"]
PerMember = Float[Tensor, "member 1"]


@runtime_checkable
class Optimizer(Protocol):
    """The settings of an optimizer, and its update as a pure row operation on a stack."""

    kind: ClassVar[str]
    state_names: ClassVar[tuple[str, ...]]

    @property
    def lr(self) -> float:
        """Learning rate of the members that do not carry their own."""
        ...

    @property
    def weight_decay(self) -> float:
        """Weight decay of the members that do not carry their own."""
        ...

    def update(
        self,
        parameters: Flat,
        gradient: Flat,
        state: Mapping[str, Flat],
        n_steps: Sequence[int],
        lr: PerMember,
        weight_decay: PerMember,
    ) -> None:
        """Update `parameters` and `state` in place; `n_steps` counts each member's steps, this one included.

        A row whose `lr` is 0 and whose gradient is 0 keeps its parameters to the bit.
        """
        ...


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay.

    Args:
        lr: learning rate; a member may carry its own.
        weight_decay: decay a step, times the learning rate; a member may carry its own.
        beta1: decay of the gradient's mean.
        beta2: decay of the gradient's mean square.
        eps: added to the root of the mean square.

    References:
        Loshchilov, Hutter (2019), "Decoupled Weight Decay Regularization", algorithm 2.
    """

    kind: ClassVar[str] = "adamw"
    state_names: ClassVar[tuple[str, ...]] = ("mean", "mean_square")
    lr: float = 1e-3
    weight_decay: float = 1e-2
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _check_rates(self.lr, self.weight_decay)
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"`{name}` must lie in [0, 1), got {getattr(self, name)}")
        if not self.eps > 0:
            raise UserError(f"`eps` must be positive, got {self.eps}")

    def update(
        self,
        parameters: Flat,
        gradient: Flat,
        state: Mapping[str, Flat],
        n_steps: Sequence[int],
        lr: PerMember,
        weight_decay: PerMember,
    ) -> None:
        """One step of algorithm 2."""
        # Python's own powers: a vectorised one rounds by place in the buffer
        correction1 = _column([1 - self.beta1**n for n in n_steps], parameters)
        correction2 = _column([(1 - self.beta2**n) ** 0.5 for n in n_steps], parameters)
        mean, mean_square = state["mean"], state["mean_square"]
        mean.lerp_(gradient, 1 - self.beta1)
        mean_square.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
        root = mean_square.sqrt().add_(correction2 * self.eps)
        parameters.mul_(1 - lr * weight_decay)
        parameters.addcdiv_(mean * (lr * correction2 / correction1), root, value=-1)


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum; weight decay is added to the gradient, as in `torch.optim.SGD`.

    Args:
        lr: learning rate; a member may carry its own.
        weight_decay: penalty added to the gradient; a member may carry its own.
        momentum: decay of the velocity.
        nesterov: look ahead along the velocity.
    """

    kind: ClassVar[str] = "sgd"
    state_names: ClassVar[tuple[str, ...]] = ("velocity",)
    lr: float = 1e-2
    weight_decay: float = 0.0
    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        _check_rates(self.lr, self.weight_decay)
        if not 0 <= self.momentum < 1:
            raise UserError(f"`momentum` must lie in [0, 1), got {self.momentum}")
        if self.nesterov and not self.momentum:
            raise UserError("`nesterov` needs a positive `momentum`")

    def update(
        self,
        parameters: Flat,
        gradient: Flat,
        state: Mapping[str, Flat],
        n_steps: Sequence[int],
        lr: PerMember,
        weight_decay: PerMember,
    ) -> None:
        """One step; the first velocity is the first gradient."""
        step = gradient.add(parameters * weight_decay)
        if self.momentum:
            velocity = state["velocity"].mul_(self.momentum).add_(step)
            step = step.add(velocity * self.momentum) if self.nesterov else velocity
        parameters.sub_(step * lr)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    """One value a member, as a column (M, 1) of the dtype and device of `like`."""
    return torch.tensor(values, dtype=torch.float64).to(like)[:, None]


def _check_rates(lr: float, weight_decay: float) -> None:
    if not 0 < lr < float("inf"):
        raise UserError(f"`lr` must be positive and finite, got {lr}")
    if not 0 <= weight_decay < float("inf"):
        raise UserError(f"`weight_decay` must be >= 0 and finite, got {weight_decay}")


OPTIMIZERS: dict[str, type] = {cls.kind: cls for cls in (AdamW, SGD)}
