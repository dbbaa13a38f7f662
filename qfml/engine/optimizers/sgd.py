"""Gradient descent, plain and with momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qfml.engine.optimizers.base import Flat, State, Step, check_rates, penalised, zeros
from qfml.errors import UserError


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
    lr: float = 1e-2
    weight_decay: float = 0.0
    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        check_rates(self.lr, self.weight_decay)
        if not 0 <= self.momentum < 1:
            raise UserError(f"`momentum` must lie in [0, 1), got {self.momentum}")
        if self.nesterov and not self.momentum:
            raise UserError("`nesterov` needs a positive `momentum`")

    def start(self, parameters: Flat) -> State:
        """A velocity of zero, where there is momentum."""
        return zeros(parameters, "velocity") if self.momentum else {}

    def update(self, parameters: Flat, gradient: Flat, state: State, step: Step) -> None:
        """One step; the first velocity is the first gradient."""
        move = penalised(parameters, gradient, step)
        if self.momentum:
            velocity = state["velocity"].mul_(self.momentum).add_(move)
            move = move.add(velocity * self.momentum) if self.nesterov else velocity
        parameters.sub_(move * step.rate(1.0, parameters))
