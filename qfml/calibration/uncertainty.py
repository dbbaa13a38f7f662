"""Standard errors and correlations of fitted parameters, and which of them the quotes do not tell."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from qfml.calibration.model import Parameter

__all__ = ["Uncertainty", "at_bounds", "uncertainty"]

SINGULAR = 1e-10  # eigenvalue of the normal matrix of unit columns: the Jacobian is exact to about 1e-6
TAKES_PART = 0.1  # component of a parameter in a direction that nothing determines
NEAR_BOUND = 1e-3  # share of the range, or relative distance on a logarithmic scale

_eigh = cast("Callable[[Tensor], tuple[Tensor, Tensor]]", torch.linalg.eigh)  # torch states no type


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """What the quotes know of the P parameters of S fits.

    Args:
        std_error: (S, P); infinite where a parameter is not identified, NaN at a bound, and where there are no more
            quotes than parameters.
        correlation: of the estimates, (S, P, P); NaN where there is none.
        identified: (S, P).
        at_bound: (S, P).
    """

    std_error: Tensor
    correlation: Tensor
    identified: Tensor
    at_bound: Tensor


def uncertainty(
    x: Tensor,
    residuals: Tensor,
    jacobian: Tensor,
    weight: Tensor,
    parameters: tuple[Parameter, ...],
    penalty: Tensor | None = None,
) -> Uncertainty:
    r"""Covariance $s^2 (J^\top W J)^{-1}$ with the residual variance $s^2 = r^\top W r / (n - p)$, linearised.

    A parameter at its bound is held there, and the others' errors are given with it fixed. A parameter is not
    identified if it takes part in a direction in which the model does not move, or if its standard error exceeds its
    value (on a logarithmic scale) or half of the range in which starts are looked for (on a linear one).

    Of a smoothed history they are those of the penalised problem: the covariance is $s^2 (J^\top W J + \Pi)^{-1}$ with
    what a day knows from its neighbours, $\Pi$, and one $s^2$ for all days, whose n less the trace of
    $(J^\top W J + \Pi)^{-1} J^\top W J$ degrees of freedom are added up. So a penalty that is as strong as changes are
    rare, $\lambda = s^2 / \mathrm{var}(y_t - y_{t-1})$, gives the posterior deviations of a random walk; a stronger one
    gives errors that are too small.

    Args:
        x: parameters (S, P).
        residuals: model less quoted vols (S, N).
        jacobian: of the model's vols (S, N, P).
        weight: (S, N), 0: no quote.
        parameters: P parameters.
        penalty: what is known from elsewhere (S, P, P), in units of the normal matrix; None: nothing.

    References:
        Seber and Wild (1989), Nonlinear Regression, section 2.1.2; Wahba (1983), Bayesian "confidence intervals" for
        the cross-validated smoothing spline, section 2.
    """
    n_parameters = x.shape[-1]
    used = weight > 0.0
    root = weight.sqrt()
    weighted = torch.where(used.unsqueeze(-1), root.unsqueeze(-1) * jacobian, 0.0).nan_to_num()
    at_bound = at_bounds(x, parameters)
    weighted = torch.where(at_bound.unsqueeze(-2), 0.0, weighted)
    n_free = n_parameters - at_bound.sum(-1)
    n_used = used.sum(-1)
    errors = torch.where(used, root * residuals, 0.0).nan_to_num().square().sum(-1)
    told = weighted.mT @ weighted
    normal = told
    if penalty is not None:
        bound = at_bound.unsqueeze(-1) | at_bound.unsqueeze(-2)
        normal = normal + torch.where(bound, 0.0, penalty)
    norm = torch.diagonal(normal, dim1=-2, dim2=-1).sqrt()
    size = torch.where(norm > 0.0, norm, 1.0)
    square = size.unsqueeze(-1) * size.unsqueeze(-2)
    values, vectors = _eigh(normal / square)
    # what stays put at a bound is a direction of its own, which is none of the free ones
    free = (~at_bound).to(x)
    share = (vectors.square() * free.unsqueeze(-1)).sum(-2)
    singular = (values < SINGULAR) & (share > 0.5)
    blind = ((vectors.abs() > TAKES_PART) & singular.unsqueeze(-2)).any(-1) & ~at_bound
    if penalty is None:
        blind |= ((n_used < n_free).unsqueeze(-1)) & ~at_bound
    inverse_values = torch.where((values < SINGULAR), 0.0, 1.0 / values.clamp(min=SINGULAR))
    inverse = (vectors * inverse_values.unsqueeze(-2)) @ vectors.mT
    freedom = (n_used - n_free).to(x)
    if penalty is not None:
        freedom = n_used - (inverse * (told / square)).sum((-2, -1))
        errors, freedom = errors.sum().expand_as(errors), freedom.sum().expand_as(errors)
    variance = torch.where(freedom > 0.0, errors / freedom.clamp(min=1e-300), math.nan)
    spread = torch.diagonal(inverse, dim1=-2, dim2=-1).clamp(min=0.0).sqrt()
    std_error = variance.sqrt().unsqueeze(-1) * spread / size
    identified = ~blind & ~_blurred(std_error, x, parameters)
    std_error = torch.where(blind, math.inf, torch.where(at_bound, math.nan, std_error))
    known = (~blind & ~at_bound).to(x)
    correlation = inverse / (spread.unsqueeze(-1) * spread.unsqueeze(-2))
    correlation = torch.where(known.unsqueeze(-1) * known.unsqueeze(-2) > 0.0, correlation, math.nan)
    return Uncertainty(std_error, correlation, identified, at_bound)


def at_bounds(x: Tensor, parameters: tuple[Parameter, ...]) -> Tensor:
    """Which parameters (S, P) lie as good as at a bound."""
    found = []
    for parameter, value in zip(parameters, x.unbind(-1), strict=True):
        low, high = parameter.lower, parameter.upper
        if parameter.scale == "log" and low > 0.0:
            near = (torch.log(value / low) < NEAR_BOUND) | (torch.log(high / value) < NEAR_BOUND)
        else:
            width = high - low
            near = (value - low < NEAR_BOUND * width) | (high - value < NEAR_BOUND * width)
        found.append(near)
    return torch.stack(found, dim=-1)


def _blurred(std_error: Tensor, x: Tensor, parameters: tuple[Parameter, ...]) -> Tensor:
    found = []
    for i, parameter in enumerate(parameters):
        error, value = std_error[..., i], x[..., i]
        if parameter.scale == "log":
            found.append(error > value)
        else:
            found.append(error > 0.5 * (parameter.start_upper - parameter.start_lower))
    return torch.stack(found, dim=-1)
