r"""All days of a history fitted together, with a penalty on what changes from day to day.

The normal equations of the days are blocks on a diagonal, which the penalty ties to their neighbours: a band matrix,
solved in time proportional to the number of days.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from scipy.linalg import LinAlgError, solveh_banded
from torch import Tensor

from qfml.calibration.exact import Fit, exact_vols, floored_vols_and_jacobian
from qfml.calibration.least_squares import COST, MAX_STEPS, NO_DESCENT, NOT_FINITE
from qfml.calibration.model import CalibrationModel, Parameter, Quotes
from qfml.calibration.uncertainty import at_bounds

__all__ = ["FROM_NEIGHBOURS", "NOT_SMOOTHED", "neighbours_information", "smoothed", "unit_scale"]

MOST_DAMPING = 1e12
STEEP_DAMPING = 1.0  # of the diagonal: from here on a step is short because it has failed
NOISE = 1e-6  # relative error of the objective, as nodes of the quadrature change: a smaller gain cannot be seen
NOT_SMOOTHED, FROM_NEIGHBOURS = -1, -2  # codes besides those of the least squares
HELD = 1e12  # information on a parameter at its bound, over the largest there is


def smoothed(
    model: CalibrationModel,
    quotes: Quotes,
    found: Fit,
    smoothness: float,
    *,
    max_steps: int = 100,
    tolerance: float = 1e-10,
) -> Fit:
    r"""Minimises $\sum_t r_t^\top W_t r_t + \lambda \sum_t |y_t - y_{t-1}|^2$ over the parameters of all days.

    y goes from 0 to 1 over the range of starts of a parameter, linearly or logarithmically. Days that have failed, or
    have no quotes, take the parameters that the penalty gives them from their neighbours; without quotes their status
    is `FROM_NEIGHBOURS`.

    Args:
        model: what is fitted.
        quotes: S days, in their order.
        found: fits of the days on their own, where the search starts.
        smoothness: $\lambda$.
        max_steps: Levenberg-Marquardt steps at most.
        tolerance: relative reduction of the objective at which the search ends.
    """
    problem = _Days(model, quotes, smoothness)
    y = problem.filled(found)
    value, normal, gradient = problem.at(y)
    if not np.isfinite(value):
        return replace(found, status=torch.full_like(found.status, NOT_SMOOTHED))
    damping, n_steps, status = 1e-3, 0, MAX_STEPS
    while n_steps < max_steps:
        n_steps += 1
        step = problem.step(normal, gradient, damping)
        trial = y if step is None else problem.bounded(y, step)
        new_value, new_normal, new_gradient = problem.at(trial)
        gained = value - new_value if step is not None and np.isfinite(new_value) else -np.inf
        if gained >= 0.0:
            y, value, normal, gradient = trial, new_value, new_normal, new_gradient
            # a step that is short because longer ones have failed tells no minimum
            if gained <= tolerance * value and damping < STEEP_DAMPING:
                status = COST
                break
            damping = max(damping / 5.0, 1e-12)
        else:
            damping *= 4.0
            if damping > MOST_DAMPING:
                promised = problem.promised(normal, gradient)
                status = COST if promised <= NOISE * value else NO_DESCENT
                break
    return problem.result(y, found, status, n_steps)


def unit_scale(parameters: tuple[Parameter, ...], x: Tensor) -> tuple[Tensor, Tensor]:
    """Parameters (S, P) on the scale of their starts, from 0 to 1, and the derivatives of x by it."""
    y, slope = torch.empty_like(x), torch.empty_like(x)
    for i, parameter in enumerate(parameters):
        low, high = parameter.start_lower, parameter.start_upper
        if parameter.scale == "log":
            width = np.log(high / low)
            y[:, i], slope[:, i] = torch.log(x[:, i] / low) / width, x[:, i] * width
        else:
            y[:, i], slope[:, i] = (x[:, i] - low) / (high - low), high - low
    return y, slope


def neighbours_information(
    x: Tensor, jacobian: Tensor, weight: Tensor, parameters: tuple[Parameter, ...], smoothness: float
) -> Tensor:
    r"""What each day of a smoothed history knows from the others: the matrices $\Pi_t$ (S, P, P), in units of x.

    The inverse of all days' normal matrix with the penalty, $A = \mathrm{diag}(N_t) + \lambda L \otimes I$, has on its
    diagonal the blocks $(N_t + \Pi_t)^{-1}$. A day hands on what it knows through the penalty as conductances in series
    do: $f_{t+1} = \lambda (N_t + f_t) (\lambda I + N_t + f_t)^{-1}$, the same backwards, and $\Pi_t = f_t + b_t$.

    Args:
        x: parameters (S, P).
        jacobian: of the vols (S, N, P).
        weight: of the quotes (S, N), 0: no quote.
        parameters: P parameters; one that lies at its bound on a day is held there.
        smoothness: $\lambda$.
    """
    _, slope = unit_scale(parameters, x)
    used = (weight > 0.0).unsqueeze(-1)
    weighted = torch.where(used, weight.sqrt().unsqueeze(-1) * jacobian * slope.unsqueeze(-2), 0.0).nan_to_num()
    held = at_bounds(x, parameters)
    weighted = torch.where(held.unsqueeze(-2), 0.0, weighted)
    normal = weighted.mT @ weighted
    normal = normal + torch.diag_embed(held * (HELD * (smoothness + normal.abs().max())))
    unit = smoothness * torch.eye(x.shape[1], dtype=x.dtype)

    def handed_on(days: Sequence[Tensor]) -> list[Tensor]:
        known = [torch.zeros_like(unit)]
        for own in days[:-1]:
            total = own + known[-1]
            passed = smoothness * torch.linalg.solve(unit + total, total)
            known.append(0.5 * (passed + passed.mT))
        return known

    days = list(normal.unbind(0))
    forward, backward = torch.stack(handed_on(days)), torch.stack(handed_on(days[::-1])).flip(0)
    return (forward + backward) / (slope.unsqueeze(-1) * slope.unsqueeze(-2))


class _Days:
    """The joint problem in y, flattened day by day."""

    def __init__(self, model: CalibrationModel, quotes: Quotes, smoothness: float) -> None:
        self.model, self.quotes, self.smoothness = model, quotes, smoothness
        self.parameters = model.parameters
        ends = torch.tensor([[p.lower for p in self.parameters], [p.upper for p in self.parameters]])
        # a logarithm of a bound at 0 is minus infinity: no bound
        self.low, self.high = unit_scale(self.parameters, ends.to(torch.float64))[0].unbind(0)

    def natural(self, y: Tensor) -> Tensor:
        return torch.stack([parameter.at(y[:, i]) for i, parameter in enumerate(self.parameters)], dim=-1)

    def filled(self, found: Fit) -> Tensor:
        """The days' own parameters; where a day has none, those of the nearest day before or after."""
        y, _ = unit_scale(self.parameters, found.x)
        good = (found.status != NOT_FINITE) & (self.quotes.used.sum(-1) > 0) & y.isfinite().all(-1)
        if not bool(good.any()):
            return y
        known = good.nonzero().squeeze(-1)
        nearest = (torch.arange(len(y))[:, None] - known).abs().argmin(-1)
        return y[known[nearest]]

    def at(self, y: Tensor) -> tuple[float, Tensor, Tensor]:
        """Objective, the days' normal matrices (S, P, P), and half the gradient (S, P)."""
        x = self.natural(y)
        _, slope = unit_scale(self.parameters, x)
        with torch.no_grad():
            vols, jacobian = floored_vols_and_jacobian(self.model, x, self.quotes)
        used, root = self.quotes.used, self.quotes.root_weight
        residuals = torch.where(used, root * (vols - self.quotes.vol), 0.0)
        weighted = torch.where(used.unsqueeze(-1), root.unsqueeze(-1) * jacobian * slope.unsqueeze(-2), 0.0)
        change = y[1:] - y[:-1]
        gradient = (weighted.mT @ residuals.unsqueeze(-1)).squeeze(-1)
        gradient[1:] += self.smoothness * change
        gradient[:-1] -= self.smoothness * change
        value = residuals.square().sum() + self.smoothness * change.square().sum()
        return value.item(), weighted.mT @ weighted, gradient

    def step(self, normal: Tensor, gradient: Tensor, damping: float) -> Tensor | None:
        """The damped Gauss-Newton step by a banded Cholesky factorisation; None where there is no such factor."""
        n_days, n_parameters = gradient.shape
        n = n_days * n_parameters
        band = np.zeros((n_parameters + 1, n))  # row d: the d-th diagonal above the main one, upper form turned below
        blocks = normal.numpy()
        for i in range(n_parameters):
            for j in range(i + 1):
                band[i - j, j::n_parameters] = blocks[:, i, j]
        neighbours = np.full(n_days, 2.0)
        neighbours[[0, -1]] = 1.0 if n_days > 1 else 0.0
        band[0] += np.repeat(self.smoothness * neighbours, n_parameters)
        diagonal = band[0].copy()
        band[0] += damping * np.where(diagonal > 0.0, diagonal, 1.0)
        band[n_parameters, : n - n_parameters] = -self.smoothness
        try:
            solved = solveh_banded(band, -gradient.flatten().numpy(), lower=True)
        except LinAlgError:
            return None
        return torch.from_numpy(cast("np.ndarray", solved)).reshape(n_days, n_parameters)

    def promised(self, normal: Tensor, gradient: Tensor) -> float:
        """By how much the objective would fall with a full Gauss-Newton step, were the vols linear."""
        step = self.step(normal, gradient, 1e-9)
        return np.inf if step is None else -(gradient * step).sum().item()

    def bounded(self, y: Tensor, step: Tensor) -> Tensor:
        """The step, cut for each parameter where it would cross a bound: to a share of the way there."""
        new = y + step
        low, high = y - 0.9 * (y - self.low), y + 0.9 * (self.high - y)
        return torch.minimum(torch.maximum(new, low), high)

    def result(self, y: Tensor, found: Fit, status: int, n_steps: int) -> Fit:
        x = self.natural(y)
        with torch.no_grad():
            kernel, jacobian = floored_vols_and_jacobian(self.model, x, self.quotes)
            vols = exact_vols(self.model, x, self.quotes, floor=True)
        used = self.quotes.used
        cost = torch.where(used, self.quotes.weight * (vols - self.quotes.vol).square(), 0.0).sum(-1)
        error = torch.where(used, (kernel - vols).abs(), 0.0).amax(-1)
        empty = ~used.any(-1)
        codes = torch.where(empty & ~empty.all(), FROM_NEIGHBOURS, status)
        return Fit(x, vols, jacobian, cost, codes, found.n_steps + n_steps, error)
