"""Early exercise by simulation: a learned rule gives a lower bound, its martingale an upper one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from pricers.estimate import Estimate
from pricers.exercise.regression import BASES, Rule, backward_induction, design, forward_value
from pricers.exercise.walk import DirectWalk, DividendWalk, LognormalWalk, PathWalk, Point, Walk
from pricers.instruments.base import Instrument
from pricers.instruments.early_exercise import American, Bermudan
from pricers.market import Market
from pricers.models.base import AnyScheme, DirectScheme, Model, PathScheme, Scheme
from pricers.models.black_scholes import BlackScholes
from pricers.monte_carlo.engine import batch_of
from pricers.noise import BLOCK, address
from pricers.parameters import choice, common_dtype, converted, whole, word
from pricers.paths import SAME_DATE, merged_dates, time_grid

__all__ = ["LongstaffSchwartz"]


@dataclass(frozen=True)
class LongstaffSchwartz:
    """Least-squares Monte Carlo: the rule is fitted on some paths and valued on others.

    The value is a lower bound (the rule is not the best one) with its standard error. With `n_outer` paths a dual upper
    bound is simulated too; `error_bound` is then the gap between the two, and `bounds` gives both.

    Args:
        n_paths: paths for the fit, and as many fresh ones for the value; at least 2.
        n_steps: largest time steps to the last date; for an American option also its number of exercise dates.
        seed: any integer.
        basis: "polynomial", "laguerre", "hermite" or "chebyshev", of spot over strike, and of the variance (of the
            volatility under SABR) where the model has a random one.
        degree: highest order of the basis.
        n_outer: paths of the upper bound; 0 leaves it out.
        n_inner: paths of each nested simulation behind it.
        scheme: name of the model's discretisation; None takes the first.

    Raises:
        ValueError: counts below their least, an unknown basis.

    References:
        Longstaff and Schwartz (2001), Valuing American options by simulation. Andersen and Broadie (2004), Primal-dual
        simulation algorithm for pricing multidimensional American options.
    """

    name: ClassVar[str] = "longstaff-schwartz"
    n_paths: int
    n_steps: int
    seed: int
    basis: str = "polynomial"
    degree: int = 3
    n_outer: int = 0
    n_inner: int = 256
    scheme: str | None = None

    def __post_init__(self) -> None:
        choice("basis", self.basis, tuple(BASES))
        for name, least in (("n_paths", 2), ("n_steps", 1), ("degree", 1), ("n_outer", 0), ("n_inner", 2)):
            object.__setattr__(self, name, whole(name, getattr(self, name), at_least=least))  # the class is frozen
        object.__setattr__(self, "seed", whole("seed", self.seed))
        if self.scheme is not None:
            word("scheme", self.scheme)
        if self.n_outer == 1:
            raise ValueError("`n_outer` must be 0 or at least 2 (its standard error needs them), got 1")

    def refusal(self, instrument: Instrument, model: Model, market: Market) -> str | None:
        """Why this engine cannot price the triple; None if it can."""
        if not isinstance(instrument, (American, Bermudan)):
            return "it is for early exercise; use MonteCarlo"
        misfit = instrument.asset_refusal(model.n_assets)
        if misfit is not None:
            return misfit
        if instrument.dates.ndim > 1 and merged_dates(instrument.dates).numel() != instrument.dates.shape[-1]:
            return "all contracts of a batch must share their exercise dates; price one expiry at a time"
        if market.dividends is not None and not isinstance(model, BlackScholes):
            return f"cash dividends are for BlackScholes, not for {type(model).__name__}; use `dividend_yield`"
        if market.dividends is not None and model.n_assets > 1:
            return f"cash dividends are for one asset, the model has {model.n_assets}; use `dividend_yield`"
        if not model.schemes:
            return f"{type(model).__name__} has no simulation scheme"
        if self.scheme is not None and self.scheme not in model.schemes:
            return f"`scheme` must be one of {', '.join(map(repr, model.schemes))}, got {self.scheme!r}"
        return self._scheme(model).refusal(model)

    def price(self, instrument: Instrument, model: Model, market: Market) -> Estimate:
        """Lower bound with its standard error; `error_bound` is the gap to the upper bound where there is one.

        Raises:
            ValueError: the engine cannot price the triple.
        """
        lower, upper = self.bounds(instrument, model, market)
        if upper is None:
            note = f"lower bound by a fitted rule of exercise{self._blindness(model)}"
            return Estimate(lower.value, lower.std_error, 0.0, lower.n_paths, self.name, note)
        gap = (upper.value - lower.value).clamp(min=0.0)
        rest = "error_bound reaches to the dual upper bound"
        note = f"lower bound by a fitted rule of exercise{self._blindness(model)}; {rest}"
        return Estimate(lower.value, lower.std_error, gap, lower.n_paths + upper.n_paths, self.name, note)

    def bounds(self, instrument: Instrument, model: Model, market: Market) -> tuple[Estimate, Estimate | None]:
        """Lower bound, and upper bound where `n_outer` asks for it, each with its standard error.

        Raises:
            ValueError: the engine cannot price the triple.
        """
        problem = self._checked(instrument, model, market)
        dtype = common_dtype(instrument, model, market)
        rule = problem.fit(self.n_paths, address("fit", self.seed))
        today = problem.today()
        values = problem.follow(rule, self.n_paths, address("value", self.seed))
        mean, error = values.mean(-1), values.std(-1) / values.shape[-1] ** 0.5
        stop_now = today >= mean  # exercising today is a rule too
        mean, error = torch.where(stop_now, today, mean), torch.where(stop_now, 0.0, error)
        lower = Estimate(mean.to(dtype), error.to(dtype), n_paths=2 * self.n_paths, engine=self.name)
        if self.n_outer == 0:
            return lower, None
        gaps = problem.dual(rule, self.n_outer, self.n_inner, address("dual", self.seed))
        high = torch.maximum(values.mean(-1) + gaps.mean(-1), today)
        error = (values.var(-1) / values.shape[-1] + gaps.var(-1) / self.n_outer).sqrt()
        upper = Estimate(high.to(dtype), error.to(dtype), n_paths=self.n_outer * self.n_inner, engine=self.name)
        return lower, upper

    def followed(self, instrument: Instrument, model: Model, market: Market) -> Callable[..., Tensor]:
        """Fit the rule, and hold it: a function of other (instrument, model, market) to its values on the same noise.

        Returns:
            The function; it gives discounted values, shape `*batch n_paths`, that are differentiable along the paths,
            whose times of exercise are held.

        Raises:
            ValueError: the engine cannot price the triple.
        """
        problem = self._checked(instrument, model, market)
        with torch.no_grad():
            rule = problem.fit(self.n_paths, address("fit", self.seed))
            waiting = problem.follow(rule, self.n_paths, address("value", self.seed)).mean(-1)
            stop_now = (problem.today() >= waiting).unsqueeze(-1)  # exercising today is a rule too

        def values(instrument: American | Bermudan, model: Model, market: Market) -> Tensor:
            moved = self._problem(instrument, model, market)
            later = moved.follow(rule, self.n_paths, address("value", self.seed))
            return torch.where(stop_now, moved.today().unsqueeze(-1), later)

        return values

    def _checked(self, instrument: Instrument, model: Model, market: Market) -> Problem:
        reason = self.refusal(instrument, model, market)
        if reason is not None:
            raise ValueError(f"LongstaffSchwartz cannot price {type(instrument).__name__}: {reason}")
        assert isinstance(instrument, (American, Bermudan))
        batch_of(instrument, model, market)
        return self._problem(instrument, model, market)

    def _blindness(self, model: Model) -> str:
        if not isinstance(self._scheme(model), PathScheme):
            return ""
        return ", which sees spot and variance of the day and not the past that the model remembers"

    def _scheme(self, model: Model) -> AnyScheme:
        return model.schemes[self.scheme or next(iter(model.schemes))]

    def _problem(self, instrument: American | Bermudan, model: Model, market: Market) -> Problem:
        dtype, device = common_dtype(instrument, model, market), market.spot.device
        instrument, model, market = (
            converted(instrument, dtype, device),
            converted(model, dtype, device),
            converted(market, dtype, device),
        )
        dates = merged_dates(instrument.dates)
        if isinstance(instrument, American):
            share = torch.arange(1, self.n_steps + 1, dtype=dates.dtype, device=device) / self.n_steps
            dates = dates[-1] * share
        if market.dividends is not None:
            dates, walk = self._with_dividends(dates, isinstance(instrument, American), model, market)
        else:
            walk = self._walk(dates, model, market)
        return Problem(instrument, walk, dates, self.basis, self.degree)

    def _walk(self, dates: Tensor, model: Model, market: Market) -> Walk:
        scheme = self._scheme(model)
        grid = time_grid(dates, None if scheme.exact else self.n_steps)
        grids = [_between(grid, *ends) for ends in pairwise([grid[0], *dates])]
        if isinstance(scheme, PathScheme):
            return PathWalk(model, market, scheme, grids)
        if isinstance(scheme, DirectScheme):
            return DirectWalk(model, market, scheme, grids)
        return LognormalWalk(model, market, scheme, grids)

    def _with_dividends(self, dates: Tensor, always: bool, model: Model, market: Market) -> tuple[Tensor, DividendWalk]:
        """Exercise dates and the walk. An exercise on an ex-date comes before the dividend.

        Who may exercise `always` may do so right before and right after each dividend; a dividend on the last date
        leaves the choice of before and after to all.
        """
        dividends, scheme = market.dividends, self._scheme(model)
        assert dividends is not None
        assert isinstance(scheme, Scheme)
        alive = dividends.times.detach() <= dates[-1].detach() + SAME_DATE
        ex_times, amounts = dividends.times[alive], dividends.amounts[alive]
        last = dates[-1]
        if always:
            dates = merged_dates(torch.cat([dates, ex_times]))
        twice = [time for time in ex_times if always or bool((time - last).abs() <= SAME_DATE)]
        dates = torch.cat([dates, *(time.unsqueeze(0) for time in twice)]).sort(stable=True).values
        grid = time_grid(torch.cat([dates, ex_times]), None)
        grids = [_between(grid, *ends) for ends in pairwise([grid[0], *dates])]
        paid: dict[tuple[int, int], Tensor] = {}
        for time, amount in zip(ex_times, amounts, strict=True):
            leaving = [
                (interval, node)
                for interval, nodes in enumerate(grids)
                for node in range(max(1, nodes.shape[0] - 1))
                if bool((nodes[node] - time).abs() <= SAME_DATE)
            ]
            paid[leaving[0]] = amount
        return dates, DividendWalk(model, market, scheme, grids, paid)


def _between(grid: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """The times of the grid from start to end, both included, up to rounding."""
    same = max(SAME_DATE, 8.0 * torch.finfo(grid.dtype).eps * grid[-1].item())
    return grid[(grid >= start - same) & (grid <= end + same)]


@dataclass(frozen=True)
class Problem:
    """One option to stop, ready to be simulated."""

    instrument: American | Bermudan
    walk: Walk
    dates: Tensor
    basis: str
    degree: int

    def today(self) -> Tensor:
        """Value of exercise now, where the contract allows it; shape `*batch`."""
        shape = batch_of(self.instrument, self.walk.model, self.walk.market)
        if not isinstance(self.instrument, American):
            return self.dates.new_zeros(shape)
        return self.instrument.exercise_value(self.walk.start(1).spot)[..., 0].expand(shape)

    def fit(self, n_paths: int, seed: int) -> Rule:
        """The rule of exercise, by regression on `n_paths` paths."""
        exercise, columns = self._sampled(self.walk.start(n_paths), 0, seed)
        return backward_induction(exercise, columns)[0]

    def follow(self, rule: Rule, n_paths: int, seed: int) -> Tensor:
        """Discounted values of following the rule on fresh paths, shape `*batch n_paths`."""
        values = []
        for first in range(0, n_paths, BLOCK):
            width = min(BLOCK, n_paths - first)
            exercise, columns = self._sampled(self.walk.start(width), 0, seed, first)
            values.append(forward_value(rule, exercise, columns))
        return torch.cat(values, dim=-1)

    def dual(self, rule: Rule, n_outer: int, n_inner: int, seed: int) -> Tensor:
        r"""How far hindsight beats the rule after its martingale is paid, on each outer path; shape `*batch n_outer`.

        The mean of the result is the gap between the upper bound and the value of the rule. The value of waiting that
        the martingale needs is simulated at each date of each outer path; the noise of that can only raise the bound.
        """
        point = self.walk.start(n_outer)
        waiting = self._waiting(rule, point, 0, n_inner, address("inner", seed, 0))
        martingale = torch.zeros_like(waiting)
        best: Tensor | None = None
        for date, later in enumerate(self.walk.onward(point, 0, seed)):
            exercise = self._discounted(later, date)
            stops = rule.exercises(date, exercise, self._columns(later))
            if date + 1 < len(self.walk.grids):
                continuing = self._waiting(rule, later, date + 1, n_inner, address("inner", seed, date + 1))
            else:
                continuing = torch.zeros_like(exercise)
            martingale = martingale + torch.where(stops, exercise, continuing) - waiting
            waiting = continuing
            best = exercise - martingale if best is None else torch.maximum(best, exercise - martingale)
        assert best is not None
        return best - self._waiting(rule, point, 0, n_inner, address("inner", seed, 0))

    def _waiting(self, rule: Rule, point: Point, interval: int, n_inner: int, seed: int) -> Tensor:
        """Discounted value of following the rule from the next date on, from each point; shape `*batch paths`."""
        n_outer = point.state[0].shape[-1]
        repeated = Point(point.spot, tuple(part.repeat_interleave(n_inner, dim=-1) for part in point.state))
        exercise, columns = self._sampled(repeated, interval, seed)
        values = forward_value(Rule(rule.coefficients[..., interval:, :]), exercise, columns)
        return values.reshape(*values.shape[:-1], n_outer, n_inner).mean(-1)

    def _sampled(
        self, start: Point, interval: int, seed: int, first: int = 0
    ) -> tuple[Tensor, Callable[[int], Tensor]]:
        """Discounted values of exercise at the remaining dates, and the basis functions there."""
        points = list(self.walk.onward(start, interval, seed, first))
        exercise = torch.stack([self._discounted(point, interval + i) for i, point in enumerate(points)], dim=-1)
        return exercise, lambda date: self._columns(points[date])

    def _discounted(self, point: Point, date: int) -> Tensor:
        discount = self.walk.market.discount(self.dates[date])
        return self.instrument.exercise_value(point.spot) * discount.unsqueeze(-1)

    def _columns(self, point: Point) -> Tensor:
        """Basis functions of what exercise may depend on: prices over strike, and the variance where it is random."""
        strike = self.instrument.strike.unsqueeze(-1)
        if self.walk.model.n_assets == 1:
            features = [point.spot / strike]
        else:  # the largest first: the value does not depend on the order of alike assets
            ordered = point.spot.sort(dim=-1, descending=True).values / strike.unsqueeze(-1)
            features = list(ordered.unbind(-1))
        if point.factor is not None:
            features.append(point.factor)
        return design(features, self.basis, self.degree)
