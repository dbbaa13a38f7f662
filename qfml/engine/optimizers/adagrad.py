"""Adagrad: each parameter's rate falls with the squares of its gradients so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from qfml.engine.optimizers.base import Flat, State, Step, check_eps, check_rates, penalised
from qfml.errors import UserError


@dataclass(frozen=True)
class Adagrad:
    """Gradient descent over the root of the sum of squared gradients; weight decay is added to the gradient.

    Args:
        lr: learning rate; a member may carry its own.
        weight_decay: penalty added to the gradient; a member may carry its own.
        lr_decay: the rate of update t is `lr / (1 + (t - 1) lr_decay)`.
        initial_sum: sum of squares before the first update.
        eps: added to the root of the sum.

    Example:
        >>> Adagrad(lr_decay=0.1).kind
        'adagrad'

    References:
        Duchi, Hazan, Singer (2011), "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization",
        JMLR 12, figure 1 with the diagonal matrix.
    """

    kind: ClassVar[str] = "adagrad"
    lr: float = 1e-2
    weight_decay: float = 0.0
    lr_decay: float = 0.0
    initial_sum: float = 0.0
    eps: float = 1e-10

    def __post_init__(self) -> None:
        check_rates(self.lr, self.weight_decay)
        check_eps(self.eps)
        for name in ("lr_decay", "initial_sum"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"`{name}` must be >= 0 and finite, got {getattr(self, name)}")

    def start(self, parameters: Flat) -> State:
        """The initial sum of squares."""
        return {"sum_of_squares": torch.full_like(parameters, self.initial_sum)}

    def update(self, parameters: Flat, gradient: Flat, state: State, step: Step) -> None:
        """One step along the gradient over the root of the sum of its squares."""
        move = penalised(parameters, gradient, step)
        total = state["sum_of_squares"].addcmul_(move, move)
        rate = step.rate(1 / (1 + (step.updates - 1) * self.lr_decay), parameters)
        parameters.sub_(move / total.sqrt().add_(self.eps) * rate)
