"""The surface without arbitrage that is closest to quotes which contain some."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from pricers.models.smile import density_parts, natural_spline, refined, spline_curvature
from pricers.normal import mills_ratio

__all__ = ["knots_around", "nearest_vols"]

BASIS_POINT = 1e-4
LEAST_DENSITY = 0.02  # of the log price over that of a normal: Dupire's denominator
LEAST_ROOT = 0.02  # of its squared term: above 0 in every smile without arbitrage, Fukasawa (2012), theorem 2.8
LEAST_RISE = 0.01  # of the total variance between expiries, over that of a flat smile
LEAST_LEVEL = 1e-3  # of the total variance, over that of a flat smile
N_PARTS = 4  # of each interval between expiries, on which the density is bounded from below
N_WING_KNOTS = 4  # beyond the quotes, to each side
WING_WEIGHT = 1e-4
LEAST_WING = 0.25  # standard deviations at the last expiry
FIRST_BARRIER, LAST_BARRIER, BARRIER_RATIO = 1e2, 1e-2, 0.2  # weights of the logarithms, squared basis points
MAX_STEPS = 400
TO_BOUND = 0.995  # of the way to the nearest bound that one step may go
SLOPE_SHARE = 1e-4  # of the predicted decrease that a step must reach

_solve = cast(Callable[[Tensor, Tensor], Tensor], torch.linalg.solve)  # torch states no type


def nearest_vols(
    log_moneyness: Tensor,
    expiries: Tensor,
    vols: Tensor,
    weights: Tensor,
    smoothing: float,
    n_points: int,
) -> Tensor:
    r"""Volatilities closest to the quotes, by weighted least squares, whose interpolated surface has no arbitrage.

    Minimises $\sum_{ij} \omega_{ij} (\sigma_{ij} - \hat\sigma_{ij})^2 + \lambda \sum_i \int \sigma_i''(y)^2\,dy$ with
    $y = k / \sqrt{w_i}$ the log-moneyness in standard deviations, over the surfaces that `VolSurface` interpolates.
    Dupire's denominator, the forward variance and the probabilities beyond the outermost quotes are kept above 0. An
    interior-point method from a flat smile: each of its iterates keeps all of that.

    Args:
        log_moneyness: ascending, shape `n_expiries n_quotes`.
        expiries: years, ascending, shape `(n_expiries,)`.
        vols: quotes, anything where there is none, shape `n_expiries n_quotes`.
        weights: 0 where there is no quote; two or more above 0 at each expiry; same shape.
        smoothing: $\lambda$, above 0.
        n_points: places at each expiry, or more, where arbitrage is excluded.

    Returns:
        Annual volatilities of the shape of `vols`, differentiable in `vols` once.

    Raises:
        RuntimeError: the method did not converge.

    References:
        Fengler (2009), Arbitrage-free smoothing of the implied volatility surface (by splines of prices);
        Nocedal and Wright (2006), Numerical Optimization, chapter 19.
    """
    problem = _problem(log_moneyness, expiries, vols.detach(), weights, smoothing, n_points)
    with torch.no_grad():
        x = _minimised(problem, torch.ones_like(vols))
    if vols.requires_grad or unpack_dual(vols).tangent is not None:
        problem = _problem(log_moneyness, expiries, vols, weights, smoothing, n_points)
        x = _implicit(problem, x)
    return problem.vols(x)


def knots_around(
    log_moneyness: Tensor, expiries: Tensor, vols: Tensor, weights: Tensor, knots_per_quote: int, reach: float
) -> tuple[Tensor, Tensor]:
    """Knots at the quotes, between them and beyond them as far as all expiries go.

    Args:
        log_moneyness: ascending, shape `n_expiries n_quotes`.
        expiries: years, ascending, shape `(n_expiries,)`.
        vols: quotes, anything where there is none, shape `*batch n_expiries n_quotes`.
        weights: 0 where there is no quote, same shape.
        knots_per_quote: 1 adds none between the quotes.
        reach: standard deviations at the last expiry to each side.

    Returns:
        Knots, shape `n_expiries n_knots`, and the columns of the quotes among them, shape `(n_quotes,)`.
    """
    std_dev = torch.sqrt(vols[..., -1, :][weights[..., -1, :] > 0.0].median() ** 2 * expiries[-1])
    ends = (
        torch.minimum(log_moneyness[:, :1].min() - LEAST_WING * std_dev, -reach * std_dev),
        torch.maximum(log_moneyness[:, -1:].max() + LEAST_WING * std_dev, reach * std_dev),
    )
    share = torch.arange(1, N_WING_KNOTS + 1, dtype=expiries.dtype, device=expiries.device) / N_WING_KNOTS
    low, high = (
        edge + (end - edge) * share**2
        for edge, end in zip((log_moneyness[:, :1], log_moneyness[:, -1:]), ends, strict=True)
    )
    knots = torch.cat([low.flip(-1), refined(log_moneyness, knots_per_quote), high], dim=-1)
    return knots, N_WING_KNOTS + knots_per_quote * torch.arange(log_moneyness.shape[-1], device=expiries.device)


@dataclass(frozen=True)
class Bounds:
    """Inequalities `function(points, *inputs) > 0` whose inputs are linear in the unknowns of adjacent expiries.

    Args:
        function: from points `rows m` and inputs of that shape to `n_bounds rows m`.
        points: log-moneyness, shape `rows m`.
        maps: from the unknowns of a row to its inputs, shape `rows n_inputs m n_unknowns`.
    """

    function: Callable[..., Tensor]
    points: Tensor
    maps: Tensor

    def gathered(self, x: Tensor) -> Tensor:
        """Unknowns of each row, those of one expiry or of two adjacent ones, shape `rows n_unknowns`."""
        rows, width = self.maps.shape[0], self.maps.shape[-1] // x.shape[-1]
        return torch.cat([x[start : start + rows] for start in range(width)], dim=-1)

    def inputs(self, x: Tensor) -> Tensor:
        """Shape `n_inputs rows m`."""
        return torch.einsum("rimu,ru->irm", self.maps, self.gathered(x))

    def values(self, x: Tensor) -> Tensor:
        """Shape `rows n_bounds*m`."""
        return self.function(self.points, *self.inputs(x)).transpose(0, 1).flatten(1)

    def slopes(self, x: Tensor) -> Tensor:
        """Derivatives of `values` in the unknowns of each row, shape `rows n_bounds*m n_unknowns`."""
        with torch.enable_grad():
            inputs = self.inputs(x).detach().requires_grad_()
            values = self.function(self.points, *inputs)
            partial = torch.stack([torch.autograd.grad(v.sum(), inputs, retain_graph=True)[0] for v in values])
        return torch.einsum("birm,rimu->rbmu", partial, self.maps).flatten(1, 2)


@dataclass(frozen=True)
class Problem:
    """Least squares in the unknowns x: total variances at the quotes over those of a flat smile.

    Args:
        level: total variance of the flat smile of each expiry, shape `n_expiries 1`.
        expiries: years, shape `n_expiries 1`.
        quotes: shape `n_expiries n_quotes`.
        weights: shape `n_expiries n_quotes`.
        roughness: from unknowns to the bends that are kept small, shape `n_expiries n_quotes n_quotes`.
        bounds: what every iterate keeps.
    """

    level: Tensor
    expiries: Tensor
    quotes: Tensor
    weights: Tensor
    roughness: Tensor
    bounds: tuple[Bounds, ...]

    def vols(self, x: Tensor) -> Tensor:
        return torch.sqrt(x * self.level / self.expiries)

    def objective(self, x: Tensor) -> Tensor:
        """Half the sum of squares, squared basis points."""
        errors = torch.sqrt(self.weights) * (self.vols(x) - self.quotes) / BASIS_POINT
        bends = torch.einsum("erq,eq->er", self.roughness, x)
        return 0.5 * (errors.square().sum() + bends.square().sum())

    def expansion(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of the objective, and Gauss and Newton's Hessian."""
        vols = self.vols(x)
        slope = self.level / (2.0 * vols * self.expiries) / BASIS_POINT
        square = self.roughness.mT @ self.roughness
        pull = self.weights * slope * (vols - self.quotes) / BASIS_POINT
        gradient = pull + torch.einsum("eqp,ep->eq", square, x)
        return gradient.flatten(), torch.block_diag(*(square + torch.diag_embed(self.weights * slope**2)))

    def values(self, x: Tensor) -> list[Tensor]:
        """All that is bounded, a tensor `rows n_bounds*m` for each of `bounds`."""
        return [bounds.values(x) for bounds in self.bounds]


def _merit(problem: Problem, x: Tensor, values: list[Tensor], barrier: float) -> Tensor:
    return problem.objective(x) - barrier * sum((torch.log(v).sum() for v in values), torch.zeros_like(x[0, 0]))


def _minimised(problem: Problem, x: Tensor) -> Tensor:
    """Primal and dual steps with a decreasing barrier: Nocedal and Wright (2006), section 19.3."""
    barrier, values = FIRST_BARRIER, problem.values(x)
    duals = [barrier / value for value in values]
    for _ in range(MAX_STEPS):
        slopes = [bounds.slopes(x) for bounds in problem.bounds]
        gradient, hessian = problem.expansion(x)
        for jacobian, value, dual in zip(slopes, values, duals, strict=True):
            _add_barrier(gradient, hessian, jacobian, value, dual, barrier)
        step = -_solve(hessian, gradient.unsqueeze(-1)).squeeze(-1)
        decrease = -(gradient @ step).item()
        if decrease < 0.1 * barrier:
            if barrier <= LAST_BARRIER:
                return x
            barrier *= BARRIER_RATIO
            continue
        step = step.reshape(x.shape)
        changes = [
            torch.einsum("rbu,ru->rb", jacobian, bounds.gathered(step))
            for jacobian, bounds in zip(slopes, problem.bounds, strict=True)
        ]
        duals = _moved_duals(duals, values, changes, barrier)
        length = _length(values, changes)
        merit = _merit(problem, x, values, barrier).item()
        while True:
            trial = x + length * step
            values_there = problem.values(trial)
            inside = all(bool((v > (1.0 - TO_BOUND) * w).all()) for v, w in zip(values_there, values, strict=True))
            target = merit - SLOPE_SHARE * length * decrease
            if inside and _merit(problem, trial, values_there, barrier).item() <= target:
                break
            length *= 0.5
            if length < 1e-12:
                raise RuntimeError(_no_convergence("a step of 1e-12"))
        x, values = trial, values_there
    raise RuntimeError(_no_convergence(f"{MAX_STEPS} steps"))


def _add_barrier(
    gradient: Tensor, hessian: Tensor, slopes: Tensor, values: Tensor, duals: Tensor, barrier: float
) -> None:
    """Add, in place, the logarithms of one set of bounds; the unknowns of adjacent expiries are adjacent."""
    rows, _, n_unknowns = slopes.shape
    pull = torch.einsum("rbu,rb->ru", slopes, barrier / values)
    square = slopes.mT @ ((duals / values).unsqueeze(-1) * slopes)
    n_quotes = (gradient.shape[0] - n_unknowns) // (rows - 1) if rows > 1 else 0
    for row in range(rows):
        own = slice(row * n_quotes, row * n_quotes + n_unknowns)
        gradient[own] -= pull[row]
        hessian[own, own] += square[row]


def _moved_duals(duals: list[Tensor], values: list[Tensor], changes: list[Tensor], barrier: float) -> list[Tensor]:
    """The dual part of the step, no further than to the nearest bound, and not absurdly far from `barrier / value`."""
    steps = [
        barrier / value - dual - dual / value * change
        for dual, value, change in zip(duals, values, changes, strict=True)
    ]
    length = _length(duals, steps)
    moved = [dual + length * step for dual, step in zip(duals, steps, strict=True)]
    return [
        torch.minimum(torch.maximum(dual, 1e-8 * barrier / value), 1e8 * barrier / value)
        for dual, value in zip(moved, values, strict=True)
    ]


def _length(values: list[Tensor], changes: list[Tensor]) -> float:
    """The longest step up to 1 after which no value is below 1 - TO_BOUND of what it was, to first order."""
    fall = max(-(change / value).min().item() for value, change in zip(values, changes, strict=True))
    return min(1.0, TO_BOUND / fall) if fall > 0.0 else 1.0


def _no_convergence(after: str) -> str:
    return (
        f"the fit of the surface did not converge ({after}); look for quotes in the wrong units or in the wrong place, "
        "or raise `smoothing`"
    )


def _implicit(problem: Problem, x: Tensor) -> Tensor:
    """`x`, where the merit is stationary, with its derivative in the quotes: the implicit function theorem."""

    def gradient(point: Tensor) -> Tensor:
        merit = _merit(problem, point, problem.values(point), LAST_BARRIER)
        (found,) = torch.autograd.grad(merit, point, create_graph=True)
        return found.flatten()

    with torch.enable_grad():
        point = x.detach().requires_grad_()
        slope = gradient(point)
        rows = [torch.autograd.grad(part, point, retain_graph=True)[0].flatten() for part in slope.unbind()]
    hessian = torch.stack(rows).detach()
    step = _solve(hessian, (slope - slope.detach()).unsqueeze(-1)).squeeze(-1)
    return x - step.reshape(x.shape)


def _problem(k: Tensor, expiries: Tensor, vols: Tensor, weights: Tensor, smoothing: float, n_points: int) -> Problem:
    expiries = expiries.unsqueeze(-1)
    level = _flat_levels(expiries, vols, weights)
    unit = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
    bend = spline_curvature(k.unsqueeze(-2), unit).mT * level.unsqueeze(-1)  # of the total variance in k
    width = k.diff(dim=-1)
    share = torch.nn.functional.pad(width, (1, 0)) + torch.nn.functional.pad(width, (0, 1))
    # vol'' in y is about w'' sqrt(w / T) / 2; the integral in y by trapezoids
    scale = torch.sqrt(0.5 * smoothing * share / torch.sqrt(level)) * torch.sqrt(level / expiries) / 2.0 / BASIS_POINT
    bounds = [_slice_bounds(k, level, n_points), _edge_bounds(k, level)]
    if k.shape[0] > 1:
        bounds.append(_pair_bounds(k, level, expiries, n_points))
    quotes, weights = _with_flat_wings(torch.where(weights > 0.0, vols, 0.0), weights)
    return Problem(level, expiries, quotes, weights, scale.unsqueeze(-1) * bend, tuple(bounds))


def _with_flat_wings(quotes: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Beyond the outermost quotes of an expiry their volatility, with a weight that settles what nothing else does."""
    quoted = weights > 0.0
    places = torch.arange(quotes.shape[-1], device=quotes.device).expand(quotes.shape)
    first = torch.where(quoted, places, quotes.shape[-1]).amin(-1, keepdim=True)
    last = torch.where(quoted, places, -1).amax(-1, keepdim=True)
    beyond = (places < first) | (places > last)
    return quotes.gather(-1, places.clamp(first, last)), torch.where(beyond, WING_WEIGHT, weights)


def _flat_levels(expiries: Tensor, vols: Tensor, weights: Tensor) -> Tensor:
    """Total variance of the median quote of each expiry, made to rise."""
    levels: list[Tensor] = []
    for row in range(expiries.shape[0]):
        level = vols[row][weights[row] > 0.0].median() ** 2 * expiries[row, 0]
        if levels:
            growth = (expiries[row, 0] - expiries[row - 1, 0]) / expiries[row, 0]
            level = torch.maximum(level, levels[-1] * (1.0 + 0.1 * growth))
        levels.append(level)
    return torch.stack(levels).unsqueeze(-1)


def _maps(knots: Tensor, points: Tensor, level: Tensor) -> Tensor:
    """From unknowns to total variance, slope and curvature at `rows m` points: shape `rows 3 m n_quotes`."""
    unit = torch.eye(knots.shape[-1], dtype=knots.dtype, device=knots.device)
    parts = natural_spline(knots.unsqueeze(-2), unit, points.unsqueeze(-2))
    return torch.stack([part.mT for part in parts], dim=-3) * level[:, :, None, None]


def _slice_bounds(knots: Tensor, level: Tensor, n_points: int) -> Bounds:
    """Each expiry over all its quotes: no butterflies; for the first expiry that holds back to time 0."""
    points = refined(knots, math.ceil(n_points / (knots.shape[-1] - 1)))

    def function(k: Tensor, value: Tensor, slope: Tensor, curvature: Tensor) -> Tensor:
        root, rest = density_parts(k, value, slope, curvature)
        return torch.stack([value / level - LEAST_LEVEL, root - LEAST_ROOT, root**2 + rest - LEAST_DENSITY])

    return Bounds(function, points, _maps(knots, points, level))


def _edge_bounds(knots: Tensor, level: Tensor) -> Bounds:
    """At the outermost quotes of an expiry the probability of ending beyond them is above 0: no vertical spreads.

    Beyond the last one it is N(d2) - n(d2) v' with v the root of w, here over N(d2); the first one mirrors it.
    """
    points = knots[:, [0, -1]]
    sign = knots.new_tensor([-1.0, 1.0])

    def function(k: Tensor, value: Tensor, slope: Tensor, curvature: Tensor) -> Tensor:
        root = torch.sqrt(value)
        outward = sign * (k / root + 0.5 * root)
        ratio = mills_ratio(outward)  # N / n
        return (1.0 - 0.5 * sign * slope / (root * ratio)).unsqueeze(0)

    return Bounds(function, points, _maps(knots, points, level))


def _pair_bounds(knots: Tensor, level: Tensor, expiries: Tensor, n_points: int) -> Bounds:
    """Each interval between expiries, where both are quoted: no calendar spreads, and no butterflies inside.

    There w, w', w'' are linear in time, and Dupire's denominator is a square of monotone root plus a concave function:
    on each part of the interval the sums of one at one end and the other at the other bound it from below.
    """
    low, high = knots[:, 0].max(), knots[:, -1].min()
    every = knots[(knots >= low) & (knots <= high)]
    every = torch.cat([low.reshape(1), every, high.reshape(1)]).unique()
    n_parts = math.ceil(n_points / (every.shape[0] - 1))
    points = refined(every, n_parts).expand(knots.shape[0] - 1, -1)
    before, after = _maps(knots[:-1], points, level[:-1]), _maps(knots[1:], points, level[1:])
    maps = torch.stack([before, torch.zeros_like(before), torch.zeros_like(after), after])
    maps = torch.cat([torch.cat([maps[0], maps[1]], dim=-1), torch.cat([maps[2], maps[3]], dim=-1)], dim=1)
    rise = level[1:] * expiries.diff(dim=0) / expiries[1:]

    def function(k: Tensor, *inputs: Tensor) -> Tensor:
        ends = torch.stack(inputs[:3]), torch.stack(inputs[3:])
        roots, rests = zip(
            *(density_parts(k, *torch.lerp(*ends, part / N_PARTS)) for part in range(N_PARTS + 1)), strict=True
        )
        squares, rests = torch.stack(roots) ** 2, torch.stack(rests)
        density = torch.cat([(squares + rests)[1:-1], squares[1:] + rests[:-1], squares[:-1] + rests[1:]])
        rising = (inputs[3] - inputs[0]) / rise - LEAST_RISE
        return torch.cat([rising.unsqueeze(0), density - LEAST_DENSITY])

    return Bounds(function, points, maps)
