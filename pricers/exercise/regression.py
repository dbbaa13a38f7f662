"""The regression of Longstaff and Schwartz: when to exercise, learned from paths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import torch
from torch import Tensor

__all__ = ["BASES", "Rule", "backward_induction", "design", "forward_value"]

RIDGE = 1e-10  # of the largest eigenvalue: keeps basis functions that coincide on the paths from spoiling the others


def monomials(x: Tensor, degree: int) -> list[Tensor]:
    """$x, x^2, \\dots$"""
    return [x**power for power in range(1, degree + 1)]


def laguerre(x: Tensor, degree: int) -> list[Tensor]:
    """Laguerre polynomials $L_0, \\dots$ times $e^{-x/2}$: Longstaff and Schwartz (2001), eqs. 1-4."""
    values = [torch.ones_like(x), 1.0 - x]
    for n in range(1, degree):
        values.append(((2 * n + 1 - x) * values[n] - n * values[n - 1]) / (n + 1))
    return [torch.exp(-0.5 * x) * value for value in values[:degree]]


def hermite(x: Tensor, degree: int) -> list[Tensor]:
    """Hermite polynomials $He_1, \\dots$ of the probabilists."""
    values = [torch.ones_like(x), x]
    for n in range(1, degree):
        values.append(x * values[n] - n * values[n - 1])
    return values[1 : degree + 1]


def chebyshev(x: Tensor, degree: int) -> list[Tensor]:
    """Chebyshev polynomials $T_1, \\dots$"""
    values = [torch.ones_like(x), x]
    for n in range(1, degree):
        values.append(2.0 * x * values[n] - values[n - 1])
    return values[1 : degree + 1]


BASES: dict[str, Callable[[Tensor, int], list[Tensor]]] = {
    "polynomial": monomials,
    "laguerre": laguerre,
    "hermite": hermite,
    "chebyshev": chebyshev,
}


def design(features: Sequence[Tensor], basis: str, degree: int) -> Tensor:
    """Basis functions along the last axis: 1, functions of each feature, and products of features up to `degree`.

    Args:
        features: prices over strike, and the state of the model; each of shape `*batch paths`.
        basis: one of `BASES`, for the functions of one feature.
        degree: highest order.
    """
    columns = [torch.ones_like(features[0])]
    for feature in features:
        columns += BASES[basis](feature, degree)
    for order in range(2, degree + 1):
        for chosen in combinations_with_replacement(range(len(features)), order):
            if len(set(chosen)) > 1:
                product = features[chosen[0]]
                for index in chosen[1:]:
                    product = product * features[index]
                columns.append(product)
    return torch.stack(torch.broadcast_tensors(*columns), dim=-1)


@dataclass(frozen=True)
class Rule:
    """Exercise where the value of doing so is above the fitted value of waiting.

    Args:
        coefficients: of the basis functions at each date but the last, float64, shape `*batch n_dates-1 n_basis`.
    """

    coefficients: Tensor

    def exercises(self, date: int, exercise: Tensor, columns: Tensor) -> Tensor:
        """Where the holder stops at `date`, shape `*batch paths`."""
        if date == self.coefficients.shape[-2]:
            return exercise > 0
        waiting = (columns * self.coefficients[..., date, :].unsqueeze(-2)).sum(-1)
        return (exercise > 0) & (exercise >= waiting)


def backward_induction(exercise: Tensor, columns: Callable[[int], Tensor]) -> tuple[Rule, Tensor]:
    """Fit the value of waiting date by date, from the last to the first, on the paths that are in the money.

    Args:
        exercise: discounted value of exercise, shape `*batch paths n_dates`.
        columns: basis functions at a date, shape `*batch paths n_basis` (or broadcasting with it).

    Returns:
        The rule, and the discounted value of following it on the same paths, shape `*batch paths`.

    References:
        Longstaff and Schwartz (2001), Valuing American options by simulation, section 1.
    """
    n_dates = exercise.shape[-1]
    value = exercise[..., -1]
    fitted: list[Tensor] = []
    for date in range(n_dates - 2, -1, -1):
        now, basis = exercise[..., date], columns(date)
        inside = now > 0
        weights = inside.to(now.dtype).unsqueeze(-1)
        fitted.append(least_squares(basis * weights, (value * inside).unsqueeze(-1)).squeeze(-1))
        waiting = (basis * fitted[-1].unsqueeze(-2)).sum(-1)
        value = torch.where(inside & (now >= waiting), now, value)
    if not fitted:
        shape = (*exercise.shape[:-2], 0, 1)
        return Rule(exercise.new_zeros(shape, dtype=torch.float64)), value
    return Rule(torch.stack(fitted[::-1], dim=-2)), value


def least_squares(basis: Tensor, target: Tensor) -> Tensor:
    """Coefficients by the normal equations, columns scaled, with a trace of ridge; batched.

    In float64 whatever the paths are: the normal equations square the condition of basis functions that are much alike.
    """
    basis, target = basis.double(), target.double()
    size = basis.square().mean(-2, keepdim=True).sqrt()
    scale = torch.where(size > 0, size, 1.0)
    scaled = basis / scale
    gram = scaled.mT @ scaled
    n = gram.shape[-1]
    ridge = RIDGE * gram.diagonal(dim1=-2, dim2=-1).amax(-1)[..., None, None] + torch.finfo(gram.dtype).tiny
    eye = torch.eye(n, dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram + ridge * eye, scaled.mT @ target) / scale.mT


def forward_value(rule: Rule, exercise: Tensor, columns: Callable[[int], Tensor]) -> Tensor:
    """Discounted value of following the rule on fresh paths, shape `*batch paths`; unbiased for that rule."""
    value = torch.zeros_like(exercise[..., 0])
    alive = torch.ones_like(value, dtype=torch.bool)
    for date in range(exercise.shape[-1]):
        stop = alive & rule.exercises(date, exercise[..., date], columns(date))
        value = torch.where(stop, exercise[..., date], value)
        alive = alive & ~stop
    return value
