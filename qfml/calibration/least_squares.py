r"""Levenberg and Marquardt for thousands of small least-squares problems at once, each with its own state.

Bounds are kept by a smooth change of variables, in which the problem is free: $x = l + (u - l) / (1 + e^{-y})$ between
two bounds, $l + e^y$ above one, $u - e^{-y}$ below one. Each problem has its own damping, scaling, status and number of
steps; what has finished leaves the batch, and a problem that yields no numbers leaves the others alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

__all__ = ["CONVERGED", "STATUS", "Solution", "least_squares"]

Function = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
_cholesky_ex = cast("Callable[[Tensor], tuple[Tensor, Tensor]]", torch.linalg.cholesky_ex)  # torch states no type

RUNNING, GRADIENT, STEP, COST, MAX_STEPS, NOT_FINITE, NO_DESCENT = range(7)
STATUS: dict[int, str] = {
    GRADIENT: "converged: the residuals are at right angles to every column of the Jacobian",
    STEP: "converged: the last step is below the tolerance",
    COST: "converged: the cost no longer falls by more than the tolerance",
    MAX_STEPS: "not converged: the limit of steps is reached",
    NOT_FINITE: "failed: the residuals at the start are not finite",
    NO_DESCENT: "not converged: no step lowers the cost, however short; the Jacobian may not belong to the residuals",
}
CONVERGED = (GRADIENT, STEP, COST)

LONGEST = 3.0  # step in the free variable of a bounded parameter: further out the bounds flatten everything
STEEP_DAMPING = 1e6  # from here on a step is short because it has failed, not because it has arrived
STEEPEST_DAMPING = 1e12  # no step lowers the cost
COMPACT_BELOW = 0.8  # share of the batch still at work under which what has finished leaves


@dataclass(frozen=True, eq=False)
class Solution:
    """The solutions of a batch of S problems with P parameters and N residuals each.

    Args:
        x: parameters, strictly inside their bounds, shape (S, P).
        cost: sum of squared residuals, shape (S,).
        residuals: shape (S, N).
        jacobian: of the residuals in `x`, shape (S, N, P).
        status: how each problem ended, a key of `STATUS`, shape (S,).
        n_steps: steps tried, shape (S,).
    """

    x: Float64[Tensor, "S P"]
    cost: Float64[Tensor, " S"]
    residuals: Float64[Tensor, "S N"]
    jacobian: Float64[Tensor, "S N P"]
    status: Int64[Tensor, " S"]
    n_steps: Int64[Tensor, " S"]

    @property
    def converged(self) -> Tensor:
        """Which problems ended at a minimum to the tolerance, shape (S,)."""
        return torch.isin(self.status, torch.tensor(CONVERGED))

    @property
    def sentences(self) -> tuple[str, ...]:
        """How each problem ended, in words."""
        return tuple(STATUS[code] for code in cast("list[int]", self.status.tolist()))


def least_squares(
    function: Function,
    start: Any,
    *,
    lower: Any = -math.inf,
    upper: Any = math.inf,
    max_steps: Any = 100,
    tolerance: float = 1e-10,
    damping: float = 1e-3,
) -> Solution:
    r"""Minimises the sum of squared residuals of S independent problems by the method of Levenberg and Marquardt.

    A step solves $(J^\top J + \mu\,\mathrm{diag}\,D)\,\delta = -J^\top r$ in the free variables, where $D$ is the
    largest diagonal of $J^\top J$ so far (Moré) and $\mu$ follows the ratio of actual to predicted reduction (Nielsen).

    Args:
        function: takes parameters (S', P) and the numbers (S',) of the problems they belong to, ascending; returns the
            weighted residuals (S', N) and their Jacobian (S', N, P). A missing residual is 0 with a row of zeros. What
            is not finite counts as a step that goes too far.
        start: where each problem starts, strictly inside the bounds, shape (S, P).
        lower: strict lower bounds, shape (P,) or (S, P); minus infinity: none.
        upper: strict upper bounds, likewise.
        max_steps: steps at most, each one evaluation; one number, or one for each problem, shape (S,).
        tolerance: relative, of the cosine between residuals and columns, of the step, and of the reduction of the cost.
        damping: $\mu$ at the start, relative to $D$.

    Returns:
        The solutions; `status` tells for each problem how it ended.

    Raises:
        ValueError: a start outside its bounds, bounds that do not enclose anything, numbers that make no sense.

    References:
        Moré (1978), The Levenberg-Marquardt algorithm: implementation and theory, sections 2 and 6; Nielsen (1999),
        Damping parameter in Marquardt's method, eq. 2.4; Madsen, Nielsen and Tingleff (2004), algorithm 3.16.

    >>> def circle_and_line(x, index):  # two circles of radius 1 and 2, cut by the diagonal
    ...     radius = 1.0 + index.to(x)
    ...     residuals = torch.stack([(x * x).sum(-1) - radius**2, x[:, 0] - x[:, 1]], -1)
    ...     slopes = torch.tensor([1.0, -1.0], dtype=x.dtype).expand_as(x)
    ...     return residuals, torch.stack([2.0 * x, slopes], 1)
    >>> solution = least_squares(circle_and_line, [[0.5, 0.1], [0.5, 0.1]], lower=0.0)
    >>> solution.x[:, 0] * 2**0.5
    tensor([1.0000, 2.0000], dtype=torch.float64)
    """
    x = torch.as_tensor(start, dtype=torch.float64)
    if x.ndim != 2:
        raise ValueError(f"`start` must have the shape (problems, parameters), got {tuple(x.shape)}")
    limit = torch.as_tensor(max_steps).expand(len(x))
    if bool((limit < 0).any()):
        raise ValueError(f"`max_steps` must be 0 or more, got {max_steps}")
    if not (tolerance > 0.0 and damping > 0.0):
        raise ValueError(f"`tolerance` and `damping` must be above 0, got {tolerance} and {damping}")
    bounds = _Bounds.of(lower, upper, x)
    return _Batch(function, x, bounds, tolerance, damping).solve(limit)


@dataclass(frozen=True, eq=False)
class _Bounds:
    """The change of variables: x in (lower, upper) to y free, all of shape (S, P)."""

    lower: Tensor
    upper: Tensor

    @classmethod
    def of(cls, lower: Any, upper: Any, x: Tensor) -> _Bounds:
        low, high = (torch.as_tensor(bound, dtype=torch.float64).expand_as(x) for bound in (lower, upper))
        if not bool(((low < x) & (x < high)).all()):
            row, column = ((low >= x) | (x >= high) | x.isnan()).nonzero()[0].tolist()
            raise ValueError(
                f"`start` must lie strictly between its bounds, got {x[row, column]:g} for parameter {column} of "
                f"problem {row} with bounds {low[row, column]:g} and {high[row, column]:g}; move it inside"
            )
        return cls(low, high)

    def at(self, index: Tensor) -> _Bounds:
        return _Bounds(self.lower[index], self.upper[index])

    @property
    def free(self) -> Tensor:
        return self.lower.isinf() & self.upper.isinf()

    def outward(self, x: Tensor) -> Tensor:
        """y of x."""
        # the branches not taken may be no numbers; nothing is differentiated here
        above, below = torch.log(x - self.lower), -torch.log(self.upper - x)
        result = torch.where(self.upper.isinf(), above, torch.where(self.lower.isinf(), below, above + below))
        return torch.where(self.free, x, result)

    def inward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """x of y, strictly inside in floating point too, and dx / dy."""
        share = torch.sigmoid(y)
        width = self.upper - self.lower
        both = torch.where(y < 0.0, self.lower + width * share, self.upper - width * torch.sigmoid(-y))
        grown, shrunk = torch.exp(y), torch.exp(-y)
        one = torch.where(self.lower.isinf(), self.upper - shrunk, self.lower + grown)
        one_slope = torch.where(self.lower.isinf(), shrunk, grown)
        two = self.lower.isfinite() & self.upper.isfinite()
        x = torch.where(two, both, torch.where(self.free, y, one))
        slope = torch.where(two, width * share * torch.sigmoid(-y), torch.where(self.free, 1.0, one_slope))
        inner_low = torch.nextafter(self.lower, self.upper)
        inner_high = torch.nextafter(self.upper, self.lower)
        return torch.minimum(torch.maximum(x, inner_low), inner_high), slope


class _Batch:
    """The state of all problems (full tensors) and of those at work (`index`)."""

    def __init__(self, function: Function, x: Tensor, bounds: _Bounds, tolerance: float, damping: float) -> None:
        self.function, self.tolerance = function, tolerance
        n_problems = x.shape[0]
        index = torch.arange(n_problems)
        residuals, jacobian = function(x, index)
        finite = _finite(residuals, jacobian)
        cost = residuals.square().sum(-1)
        self.done = Solution(
            x=x.clone(),
            cost=torch.where(finite, cost, math.inf),
            residuals=residuals.clone(),
            jacobian=jacobian.clone(),
            status=torch.where(finite, MAX_STEPS, NOT_FINITE),
            n_steps=torch.zeros(n_problems, dtype=torch.int64),
        )
        self.work = _Work.started(index, x, bounds, residuals, jacobian, damping).at(finite.nonzero().squeeze(-1))

    def solve(self, limit: Int64[Tensor, " S"]) -> Solution:
        work = self.work
        work.status = torch.where(work.flat(self.tolerance), GRADIENT, work.status)
        work = self._compacted(work, force=True)
        most = int(limit.max()) if len(limit) else 0
        same = bool((limit == most).all())
        for n_taken in range(most):
            if not same:
                spent = (work.status == RUNNING) & (limit[work.index] <= n_taken)
                work.status = torch.where(spent, MAX_STEPS, work.status)
                work = self._compacted(work)
            if len(work.index) == 0:
                break
            work.step(self.function, self.tolerance)
            work = self._compacted(work)
        self._store(work)
        return self.done

    def _compacted(self, work: _Work, force: bool = False) -> _Work:
        running = work.status == RUNNING
        n_running = int(running.sum())
        if n_running == len(work.index) or (n_running > COMPACT_BELOW * len(work.index) and not force):
            return work
        self._store(work)
        return work.at(running.nonzero().squeeze(-1))

    def _store(self, work: _Work) -> None:
        done, index = self.done, work.index
        done.x[index], done.residuals[index], done.jacobian[index] = work.x, work.residuals, work.jacobian
        done.cost[index], done.n_steps[index] = work.cost, work.n_steps
        done.status[index] = torch.where(work.status == RUNNING, MAX_STEPS, work.status)


@dataclass(eq=False)
class _Work:
    """Problems at work; every tensor has their axis first."""

    index: Tensor
    bounds: _Bounds
    x: Tensor
    y: Tensor
    slope: Tensor
    residuals: Tensor
    jacobian: Tensor  # in x
    cost: Tensor
    normal: Tensor  # J^T J in y
    gradient: Tensor  # J^T r in y
    scale: Tensor  # D
    damping: Tensor
    growth: Tensor  # by which the damping grows when a step fails
    status: Tensor
    n_steps: Tensor

    @classmethod
    def started(
        cls, index: Tensor, x: Tensor, bounds: _Bounds, residuals: Tensor, jacobian: Tensor, damping: float
    ) -> _Work:
        y = bounds.outward(x)
        _, slope = bounds.inward(y)
        normal, gradient = _normal_equations(residuals, jacobian, slope)
        n = len(index)
        return cls(
            index=index,
            bounds=bounds,
            x=x,
            y=y,
            slope=slope,
            residuals=residuals,
            jacobian=jacobian,
            cost=residuals.square().sum(-1),
            normal=normal,
            gradient=gradient,
            scale=torch.diagonal(normal, dim1=-2, dim2=-1).clone(),
            damping=torch.full((n,), damping, dtype=torch.float64),
            growth=torch.full((n,), 2.0, dtype=torch.float64),
            status=torch.full((n,), RUNNING, dtype=torch.int64),
            n_steps=torch.zeros(n, dtype=torch.int64),
        )

    def at(self, rows: Tensor) -> _Work:
        """The problems in `rows`."""
        return _Work(
            **{name: (value.at if name == "bounds" else value.__getitem__)(rows) for name, value in vars(self).items()}
        )

    def flat(self, tolerance: float) -> Tensor:
        """Where the residuals are at right angles to every column of the Jacobian, or there are none."""
        columns = torch.diagonal(self.normal, dim1=-2, dim2=-1).sqrt()
        steepest = (self.gradient.abs() / (columns * self.cost.sqrt().unsqueeze(-1)).clamp(min=1e-300)).amax(-1)
        return (steepest <= tolerance) | (self.cost == 0.0)

    def step(self, function: Function, tolerance: float) -> None:
        """Tries one step for every problem that still runs."""
        running = self.status == RUNNING
        delta, solved = self._direction()
        x, slope = self.bounds.inward(self.y + delta)
        residuals, jacobian = function(x, self.index)
        cost = residuals.square().sum(-1)
        usable = _finite(residuals, jacobian) & solved
        predicted = -(delta * (self.gradient * 2.0 + torch.einsum("spq,sq->sp", self.normal, delta))).sum(-1)
        actual = torch.where(usable, self.cost - cost, -math.inf)
        size = (self.scale.sqrt() * delta).norm(dim=-1)
        short = size <= tolerance * ((self.scale.sqrt() * self.y).norm(dim=-1) + tolerance)
        level = tolerance * self.cost
        stalled = (actual.abs() <= level) & (predicted <= level)
        better = running & (actual > 0.0)
        arrived = solved & (self.damping <= STEEP_DAMPING)
        self._take(better, x, self.y + delta, slope, residuals, jacobian, cost)
        self._damp(better, actual, predicted)
        self.n_steps += running
        status = torch.where(self.damping > STEEPEST_DAMPING, NO_DESCENT, RUNNING)
        status = torch.where(short & arrived, STEP, status)
        status = torch.where(stalled & arrived, COST, status)
        status = torch.where(better & self.flat(tolerance), GRADIENT, status)
        self.status = torch.where(running, status, self.status)

    def _direction(self) -> tuple[Tensor, Tensor]:
        """The damped Gauss-Newton step, not too long where there are bounds; and where there is one."""
        scale = torch.where(self.scale > 0.0, self.scale, 1.0)  # a parameter that nothing depends on stays
        matrix = self.normal + torch.diag_embed(self.damping.unsqueeze(-1) * scale)
        factor, info = _cholesky_ex(matrix)
        delta = -torch.cholesky_solve(self.gradient.unsqueeze(-1), factor).squeeze(-1)
        solved = (info == 0) & delta.isfinite().all(-1)
        delta = torch.where(solved.unsqueeze(-1), delta, 0.0)
        longest = torch.where(self.bounds.free, 0.0, delta.abs()).amax(-1, keepdim=True)
        return delta * (LONGEST / longest.clamp(min=LONGEST)), solved

    def _take(
        self,
        better: Tensor,
        x: Tensor,
        y: Tensor,
        slope: Tensor,
        residuals: Tensor,
        jacobian: Tensor,
        cost: Tensor,
    ) -> None:
        column, matrix = better.unsqueeze(-1), better[:, None, None]
        normal, gradient = _normal_equations(residuals, jacobian, slope)
        self.x, self.y = torch.where(column, x, self.x), torch.where(column, y, self.y)
        self.slope = torch.where(column, slope, self.slope)
        self.residuals = torch.where(column, residuals, self.residuals)
        self.jacobian = torch.where(matrix, jacobian, self.jacobian)
        self.cost = torch.where(better, cost, self.cost)
        self.normal, self.gradient = (
            torch.where(matrix, normal, self.normal),
            torch.where(column, gradient, self.gradient),
        )
        diagonal = torch.diagonal(self.normal, dim1=-2, dim2=-1)
        self.scale = torch.maximum(self.scale, diagonal)

    def _damp(self, better: Tensor, actual: Tensor, predicted: Tensor) -> None:
        gain = actual / predicted.clamp(min=1e-300)
        shrink = (1.0 - (2.0 * gain - 1.0) ** 3).clamp(min=1.0 / 3.0)  # Nielsen (1999), eq. 2.4
        self.damping = (self.damping * torch.where(better, shrink, self.growth)).clamp(min=1e-15)
        self.growth = torch.where(better, 2.0, 2.0 * self.growth)


def _normal_equations(residuals: Tensor, jacobian: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """J^T J and J^T r in the free variables."""
    both = torch.cat([jacobian * slope.unsqueeze(-2), residuals.unsqueeze(-1)], dim=-1)
    product = both.mT @ both
    return product[..., :-1, :-1], product[..., :-1, -1]


def _finite(residuals: Tensor, jacobian: Tensor) -> Tensor:
    # a sum is finite only if every term is, or infinities of both signs make it NaN
    return (residuals.square().sum(-1) + jacobian.abs().sum((-2, -1))).isfinite()
