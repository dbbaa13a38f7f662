"""Adam and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qfml.engine.optimizers.base import Flat, State, Step, check_betas, check_rates, powers, zeros
from qfml.errors import UserError


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
    lr: float = 1e-3
    weight_decay: float = 1e-2
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_rates(self.lr, self.weight_decay)
        check_betas(self, "beta1", "beta2")
        if not self.eps > 0:
            raise UserError(f"`eps` must be positive, got {self.eps}")

    def start(self, parameters: Flat) -> State:
        """Means of zero."""
        return zeros(parameters, "mean", "mean_square")

    def update(self, parameters: Flat, gradient: Flat, state: State, step: Step) -> None:
        """One step of algorithm 2."""
        if step.decays:
            parameters.mul_(step.shrinkage(parameters))
        adam_step(self, parameters, gradient, state, step)


def adam_step(own: AdamW, parameters: Flat, gradient: Flat, state: State, step: Step) -> None:
    """The bias-corrected step that Adam and AdamW share (Kingma, Ba 2015, section 2)."""
    root_correction = np.sqrt(1 - powers(own.beta2, step.count))
    mean, mean_square = state["mean"], state["mean_square"]
    mean.lerp_(gradient, 1 - own.beta1)
    mean_square.mul_(own.beta2).addcmul_(gradient, gradient, value=1 - own.beta2)
    root = mean_square.sqrt().add_(step.column(root_correction * own.eps, parameters))
    rate = step.rate(root_correction / (1 - powers(own.beta1, step.count)), parameters)
    parameters.addcdiv_(mean * rate, root, value=-1)
