"""Adam and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from qfml.engine.optimizers.base import (
    Flat,
    State,
    Step,
    check_betas,
    check_eps,
    check_rates,
    penalised,
    powers,
    zeros,
)


@dataclass(frozen=True)
class _Means:
    """The settings that the family shares, and the means of gradient and squared gradient that it remembers."""

    lr: float = 1e-3
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_rates(self.lr, self.weight_decay)
        check_betas(self, "beta1", "beta2")
        check_eps(self.eps)

    def start(self, parameters: Flat) -> State:
        """Means of zero."""
        return zeros(parameters, "mean", "mean_square")


@dataclass(frozen=True)
class AdamW(_Means):
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
    weight_decay: float = 1e-2

    def update(self, parameters: Flat, gradient: Flat, state: State, step: Step) -> None:
        """One step of algorithm 2."""
        if step.decays:
            parameters.mul_(step.shrinkage(parameters))
        adam_step(self, parameters, gradient, state, step)


@dataclass(frozen=True)
class Adam(_Means):
    """Adam; weight decay is added to the gradient and so enters its means.

    Args:
        lr: learning rate; a member may carry its own.
        weight_decay: penalty added to the gradient; a member may carry its own.
        beta1: decay of the gradient's mean.
        beta2: decay of the gradient's mean square.
        eps: added to the root of the mean square.

    Example:
        >>> Adam(beta2=0.99).lr
        0.001

    References:
        Kingma, Ba (2015), "Adam: A Method for Stochastic Optimization", algorithm 1.
    """

    kind: ClassVar[str] = "adam"

    def update(self, parameters: Flat, gradient: Flat, state: State, step: Step) -> None:
        """One step of algorithm 1."""
        adam_step(self, parameters, penalised(parameters, gradient, step), state, step)


@dataclass(frozen=True)
class RAdam(_Means):
    """Adam that adapts its steps only once the mean square is known well enough; decay is added to the gradient.

    The mean square after t updates counts as many gradients as a simple average over
    `rho_t = rho_inf - 2 t beta2^t / (1 - beta2^t)`, with `rho_inf = 2 / (1 - beta2) - 1`. While rho_t <= 5 a step goes
    along the mean; later along the mean over the root of the mean square, times a factor for the variance of that root.

    Args:
        lr: learning rate; a member may carry its own.
        weight_decay: penalty added to the gradient; a member may carry its own.
        beta1: decay of the gradient's mean.
        beta2: decay of the gradient's mean square.
        eps: added to the root of the mean square.

    Example:
        >>> RAdam().rectification(np.array([1, 100])).round(3)
        array([0.   , 0.215])

    References:
        Liu et al. (2020), "On the Variance of the Adaptive Learning Rate and Beyond", algorithm 2 (with 5 for the
        paper's 4, as in `torch.optim.RAdam`).
    """

    kind: ClassVar[str] = "radam"

    def rectification(self, count: np.ndarray) -> np.ndarray:
        """The factor of the adaptive step after `count` updates (M,); 0 where the step is not adaptive yet."""
        longest = 2 / (1 - self.beta2) - 1
        decayed = powers(self.beta2, count)
        length = longest - 2 * count * decayed / (1 - decayed)
        known = length > 5
        if not known.any():
            return np.zeros(len(count))
        length = np.where(known, length, 5.0)
        squared = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        return np.where(known, np.sqrt(squared), 0.0)

    def update(self, parameters: Flat, gradient: Flat, state: State, step: Step) -> None:
        """One step of algorithm 2, adaptive for the members that have seen enough gradients."""
        move = penalised(parameters, gradient, step)
        mean = state["mean"].lerp_(move, 1 - self.beta1)
        mean_square = state["mean_square"].mul_(self.beta2).addcmul_(move, move, value=1 - self.beta2)
        factor = self.rectification(step.updates)
        adaptive = factor > 0
        size = np.where(adaptive, factor * np.sqrt(1 - powers(self.beta2, step.updates)), 1.0)
        rate = step.rate(size / (1 - powers(self.beta1, step.updates)), parameters)
        root = mean_square.sqrt().add_(self.eps)
        if not adaptive.all():
            root = torch.where(torch.from_numpy(adaptive[:, None]).to(root.device), root, 1.0)
        parameters.sub_(mean * rate / root)


def adam_step(own: _Means, parameters: Flat, gradient: Flat, state: State, step: Step) -> None:
    """The bias-corrected step that Adam and AdamW share (Kingma, Ba 2015, section 2)."""
    root_correction = np.sqrt(1 - powers(own.beta2, step.updates))
    mean, mean_square = state["mean"], state["mean_square"]
    mean.lerp_(gradient, 1 - own.beta1)
    mean_square.mul_(own.beta2).addcmul_(gradient, gradient, value=1 - own.beta2)
    root = mean_square.sqrt().add_(step.column(root_correction * own.eps, parameters))
    rate = step.rate(root_correction / (1 - powers(own.beta1, step.updates)), parameters)
    parameters.addcdiv_(mean * rate, root, value=-1)
