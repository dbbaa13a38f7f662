"""Lion: steps of one size, in the direction of the sign of a mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qfml.engine.optimizers.base import Flat, State, Step, check_betas, check_rates, zeros


@dataclass(frozen=True)
class Lion:
    """Sign of an interpolation between momentum and gradient, with decoupled weight decay.

    Every parameter moves by the learning rate, so a good rate is 3 to 10 times smaller than AdamW's and a good weight
    decay as much larger.

    Args:
        lr: learning rate; a member may carry its own.
        weight_decay: decay a step, times the learning rate; a member may carry its own.
        beta1: share of the momentum in what the sign is taken of.
        beta2: decay of the momentum.

    Example:
        >>> Lion(lr=3e-4).beta2
        0.99

    References:
        Chen et al. (2023), "Symbolic Discovery of Optimization Algorithms", algorithm 2.
    """

    kind: ClassVar[str] = "lion"
    lr: float = 1e-4
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.99

    def __post_init__(self) -> None:
        check_rates(self.lr, self.weight_decay)
        check_betas(self, "beta1", "beta2")

    def start(self, parameters: Flat) -> State:
        """A momentum of zero."""
        return zeros(parameters, "momentum")

    def update(self, parameters: Flat, gradient: Flat, state: State, step: Step) -> None:
        """One step of algorithm 2."""
        momentum = state["momentum"]
        sign = momentum.lerp(gradient, 1 - self.beta1).sign_()
        if step.decays:
            parameters.mul_(step.shrinkage(parameters))
        parameters.sub_(sign * step.rate(1.0, parameters))
        momentum.lerp_(gradient, 1 - self.beta2)
