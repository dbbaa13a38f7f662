"""Muon: momentum, made orthogonal matrix by matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from qfml.engine.optimizers.base import Flat, State, Step, check_betas, check_eps, check_rates, powers, row_sums, zeros
from qfml.errors import UserError

Matrices = Float[Tensor, "member row column"]
_QUINTIC = (3.4445, -4.7750, 2.0315)
_SMALLEST_NORM = 1e-7
_ADJUSTMENTS = ("match_rms_adamw", "original")


def orthogonalise(matrices: Matrices, n_iterations: int = 5) -> Matrices:
    """Matrices with about the same singular vectors, and singular values near 1, by Newton-Schulz.

    X <- a X + b (X X^T) X + c (X X^T)^2 X, from X over its Frobenius norm. The coefficients grow small singular values
    quickly; large ones end between about 0.7 and 1.2.

    Args:
        matrices: one a member, shape (M, I, O).
        n_iterations: number of iterations.

    Returns:
        Matrices of the same shape, in the precision they came in.

    References:
        Jordan et al. (2024), "Muon: An optimizer for hidden layers in neural networks".

    Example:
        >>> torch.linalg.svdvals(orthogonalise(torch.diag(torch.tensor([3.0, 4.0]))[None])).round(decimals=1)
        tensor([[1.1, 0.7]])
    """
    a, b, c = _QUINTIC
    n_rows, n_columns = matrices.shape[1:]
    wide = matrices if n_rows <= n_columns else matrices.transpose(1, 2)
    # both sides a multiple of 4: every matrix and every square of it then begins on a cache line, whatever the stack
    x = torch.nn.functional.pad(wide, (0, -wide.shape[2] % 4, 0, -wide.shape[1] % 4)).contiguous()
    norm = row_sums((x * x).flatten(1)).sqrt().clamp_min(_SMALLEST_NORM)
    x = x / norm[:, :, None]
    for _ in range(n_iterations):
        square = torch.bmm(x, x.transpose(1, 2).contiguous())
        polynomial = torch.bmm(square, square) * c + square * b
        x = torch.bmm(polynomial, x) + x * a
    x = x[:, : wide.shape[1], : wide.shape[2]]
    return x if n_rows <= n_columns else x.transpose(1, 2)


@dataclass(frozen=True)
class Muon:
    """Orthogonal steps for the matrices of a network, AdamW for its other parameters, both with decoupled decay.

    A parameter is a matrix if its name has `weight` in it and it has two axes, both longer than 1: an affine map
    (inputs, outputs). Biases, scales, adapters, positions, roots of non-negative weights and heads go by AdamW. The
    orthogonal step is computed in the precision of the parameters (`torch.optim.Muon` rounds it to bfloat16).

    Args:
        lr: learning rate; a member may carry its own.
        weight_decay: decay a step, times the learning rate; a member may carry its own.
        momentum: decay of the mean gradient whose orthogonal part is the step.
        nesterov: look ahead along the mean.
        n_iterations: Newton-Schulz iterations.
        adjust: the factor of a matrix's learning rate: `match_rms_adamw`, 0.2 sqrt(max(inputs, outputs)), lets
            matrices move as far as AdamW would, so that one rate suits all parameters; `original` is
            sqrt(max(1, outputs / inputs)) of our networks; the matrices of a `Module` have their sides exchanged, to
            which the first is blind.
        adamw_pattern: a shell pattern of names whose matrices go by AdamW too; output layers fare better so.
        adamw_lr_factor: learning rate of the other parameters over `lr`.
        beta1: AdamW's decay of the gradient's mean.
        beta2: AdamW's decay of the gradient's mean square.
        eps: AdamW's addition to the root of the mean square.

    Example:
        >>> Muon().rate_factor(32, 64)
        1.6

    References:
        Jordan et al. (2024), "Muon: An optimizer for hidden layers in neural networks"; Liu et al. (2025), "Muon is
        Scalable for LLM Training", equation 4 (`match_rms_adamw`).
    """

    kind: ClassVar[str] = "muon"
    lr: float = 1e-3
    weight_decay: float = 0.1
    momentum: float = 0.95
    nesterov: bool = True
    n_iterations: int = 5
    adjust: str = "match_rms_adamw"
    adamw_pattern: str = "head*"
    adamw_lr_factor: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_rates(self.lr, self.weight_decay)
        check_betas(self, "momentum", "beta1", "beta2")
        check_eps(self.eps)
        if self.n_iterations < 1:
            raise UserError(f"`n_iterations` must be a whole number from 1 on, got {self.n_iterations!r}")
        if self.adjust not in _ADJUSTMENTS:
            raise UserError(f"`adjust` must be one of {', '.join(_ADJUSTMENTS)}, got {self.adjust!r}")
        if not 0 < self.adamw_lr_factor < float("inf"):
            raise UserError(f"`adamw_lr_factor` must be positive and finite, got {self.adamw_lr_factor}")

    def rate_factor(self, n_inputs: int, n_outputs: int) -> float:
        """Factor of the learning rate of a matrix (inputs, outputs)."""
        if self.adjust == "original":
            return math.sqrt(max(1.0, n_outputs / n_inputs))
        return 0.2 * math.sqrt(max(n_inputs, n_outputs))

    def start(self, parameters: Flat) -> State:
        """Means of zero."""
        return zeros(parameters, "mean", "mean_square")

    def update(self, parameters: Flat, gradient: Flat, state: State, step: Step) -> None:
        """One step: a direction for every parameter, orthogonal in the matrices, times each one's rate."""
        renewal = torch.full_like(parameters[:1], 1 - self.beta1)
        factor = torch.full_like(parameters[:1], self.adamw_lr_factor)
        shares, factors = step.layout.views(renewal), step.layout.views(factor)
        names = [name for name, shape in step.layout.shapes if self.is_matrix(name, shape)]
        for name in names:
            shares[name].fill_(1 - self.momentum)
            factors[name].fill_(1.0)
        mean = state["mean"]
        mean.addcmul_(gradient - mean, renewal)
        state["mean_square"].mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
        direction = self._adamw(state, step)
        ahead = gradient.lerp(mean, self.momentum) if self.nesterov else mean
        momenta, directions = step.layout.views(ahead), step.layout.views(direction)
        for name in names:
            directions[name].copy_(orthogonalise(momenta[name], self.n_iterations))
            directions[name].mul_(self.rate_factor(*directions[name].shape[1:]))
        rate = step.rate(1.0, parameters) * factor
        if step.decays:
            parameters.mul_(1 - rate * step.decay(parameters))
        parameters.sub_(direction * rate)

    def is_matrix(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a parameter of one member moves orthogonally."""
        affine = len(shape) == 2 and min(shape) > 1 and "weight" in name
        return affine and not fnmatchcase(name, self.adamw_pattern)

    def _adamw(self, state: State, step: Step) -> Flat:
        """AdamW's direction, of every parameter."""
        mean, mean_square = state["mean"], state["mean_square"]
        root_correction = step.column(np.sqrt(1 - powers(self.beta2, step.updates)), mean)
        correction = step.column(1 - powers(self.beta1, step.updates), mean)
        return (mean / correction) / (mean_square.sqrt() / root_correction).add_(self.eps)
