"""RMSprop, plain, centered and with momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qfml.engine.optimizers.base import Flat, State, Step, check_betas, check_eps, check_rates, penalised, zeros


@dataclass(frozen=True)
class RMSprop:
    """Gradient descent over the root of the mean square of past gradients; weight decay is added to the gradient.

    Args:
        lr: learning rate; a member may carry its own.
        weight_decay: penalty added to the gradient; a member may carry its own.
        alpha: decay of the mean square.
        eps: added to the root of the mean square.
        momentum: decay of the velocity.
        centered: divide by the standard deviation of the gradient, not by the root of its mean square.

    Example:
        >>> RMSprop(momentum=0.9, centered=True).alpha
        0.99

    References:
        Tieleman, Hinton (2012), "Neural Networks for Machine Learning", lecture 6.5; Graves (2013), "Generating
        Sequences with Recurrent Neural Networks", equations 38 to 41 (centered, with momentum).
    """

    kind: ClassVar[str] = "rmsprop"
    lr: float = 1e-2
    weight_decay: float = 0.0
    alpha: float = 0.99
    eps: float = 1e-8
    momentum: float = 0.0
    centered: bool = False

    def __post_init__(self) -> None:
        check_rates(self.lr, self.weight_decay)
        check_betas(self, "alpha", "momentum")
        check_eps(self.eps)

    def start(self, parameters: Flat) -> State:
        """Means of zero, and a velocity of zero where there is momentum."""
        names = ("mean", "variance") if self.centered else ("mean_square",)
        return zeros(parameters, *names, *(("velocity",) if self.momentum else ()))

    def update(self, parameters: Flat, gradient: Flat, state: State, step: Step) -> None:
        """One step along the gradient over its root mean square or its standard deviation."""
        move = penalised(parameters, gradient, step)
        spread = self._variance(move, state) if self.centered else self._mean_square(move, state)
        move = move / spread.sqrt().add_(self.eps)
        if self.momentum:
            move = state["velocity"].mul_(self.momentum).add_(move)
        parameters.sub_(move * step.rate(1.0, parameters))

    def _mean_square(self, move: Flat, state: State) -> Flat:
        return state["mean_square"].mul_(self.alpha).addcmul_(move, move, value=1 - self.alpha)

    def _variance(self, move: Flat, state: State) -> Flat:
        """The variance by its own recursion: the mean square less the squared mean can round to below zero."""
        deviation = move - state["mean"]
        state["mean"].add_(deviation, alpha=1 - self.alpha)
        added = self.alpha * (1 - self.alpha)
        return state["variance"].mul_(self.alpha).addcmul_(deviation, deviation, value=added)
