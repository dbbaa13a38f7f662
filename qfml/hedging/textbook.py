"""Which textbook hedges stand beside a policy, and what they are told: those that have a formula for the book."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pricers as pr
from pricers.noise import address
from qfml.errors import ConfigError, DataError
from qfml.hedging.baseline_base import Baseline, HedgingProblem, Vol
from qfml.hedging.baselines import (
    BlackScholesDelta,
    Leland,
    MinimumVarianceDelta,
    ModelDelta,
    NoHedge,
    WhalleyWilmott,
)
from qfml.hedging.book import Book
from qfml.hedging.costs import Cost, Proportional
from qfml.hedging.hull_white import HullWhiteDelta, fitted_hull_white
from qfml.hedging.instruments import Spot
from qfml.hedging.markets import HedgingMarket, ModelMarket, RecordedPaths, as_given
from qfml.hedging.objective_base import Objective
from qfml.hedging.objectives import Entropic
from qfml.hedging.paths import PathSet

__all__ = ["Case", "named", "problem_of", "textbook_hedges"]

FITTED_TO = 2**14  # paths


@dataclass(frozen=True)
class Case:
    """What the members of a stack differ in but the seed.

    Args:
        aversion: risk aversion, tail or scale of the objective; None where it has none.
        cost_level: factor of all costs.
    """

    aversion: float | None
    cost_level: float


def problem_of(market: HedgingMarket, book: Book) -> HedgingProblem:
    """What a textbook hedge is told of a market: its model too, where there is one."""
    market = as_given(market)
    if isinstance(market, ModelMarket):
        model, today = market.simulated_model, market.simulated_market
        return HedgingProblem(book, today, market.instruments, model, market.vol)
    settings: Any = market  # of recorded or resampled prices: a rate, and no model
    return HedgingProblem(book, pr.Market(1.0, rate=settings.rate), (Spot(),), None, market.vol)


def textbook_hedges(
    market: HedgingMarket, book: Book, objective: Objective, costs: Sequence[Cost], case: Case, paths: PathSet
) -> tuple[dict[str, Baseline], dict[str, str]]:
    """The textbook hedges that have a formula for the book, by name, and why the others are left out.

    Their vol is the market's and, where past returns are seen, also what those have realised. Whalley and Wilmott's and
    Leland's costs are those of the spot, proportional.

    Args:
        market: of the training.
        book: what is owed.
        objective: whose risk aversion Whalley and Wilmott's band has, if it is an entropic one.
        costs: of trading.
        case: risk aversion and cost level.
        paths: a few of the market, on which each hedge is tried.
    """
    problem = problem_of(market, book)
    vols: list[Vol] = [market.vol, *(["realised"] if "realised_vol" in paths.feature_names else [])]
    wanted: list[Baseline] = [NoHedge(), *(BlackScholesDelta(vol) for vol in vols)]
    left_out: dict[str, str] = {}
    if problem.model is None:
        try:
            wanted.append(_fitted(market, book, problem))
        except (ConfigError, DataError) as error:
            left_out[HullWhiteDelta.kind] = str(error)
    elif not isinstance(problem.model, pr.BlackScholes):
        wanted += [ModelDelta(), MinimumVarianceDelta()]
    with_costs, reasons = _with_costs(objective, costs, case, vols)
    wanted, left_out = wanted + with_costs, left_out | reasons
    found: list[Baseline] = []
    for name, hedge in named(wanted).items():
        try:
            hedge.holdings(paths, problem)
        except (ConfigError, DataError) as error:
            left_out[name] = str(error)
        else:
            found.append(hedge)
    return named(found), left_out


def _with_costs(
    objective: Objective, costs: Sequence[Cost], case: Case, vols: Sequence[Vol]
) -> tuple[list[Baseline], dict[str, str]]:
    """The hedges for proportional costs, and why they are left out; of trading that costs nothing none is missed."""
    charged = [cost for cost in costs if case.cost_level > 0 and _charges(cost)]
    if not charged:
        return [], {}
    rate = case.cost_level * sum(_of_spot(cost.rate) for cost in costs if isinstance(cost, Proportional))
    if rate == 0:
        kinds = ", ".join(cost.kind for cost in charged)
        why = f"it is for proportional costs of the spot, and the costs are {kinds}, without a rate of the spot"
        return [], {Leland.kind: why, WhalleyWilmott.kind: why}
    found: list[Baseline] = [Leland(vol, rate) for vol in vols]
    if not isinstance(objective, Entropic) or case.aversion is None:
        why = f"its band has the risk aversion of exponential utility, the objective is {objective.kind}"
        return found, {WhalleyWilmott.kind: why}
    return [*found, *(WhalleyWilmott(vol, case.aversion, rate) for vol in vols)], {}


def _fitted(market: HedgingMarket, book: Book, problem: HedgingProblem) -> Baseline:
    """Least variance on paths of the training, where there is no model that would tell it."""
    n_paths = None if isinstance(market, RecordedPaths) else FITTED_TO
    return fitted_hull_white(market.paths(n_paths, book, address("hull_white")), problem, market.vol)


def named(hedges: Sequence[Baseline]) -> dict[str, Baseline]:
    """Hedges by their kind, those of a realised vol by kind_realised; the second of a name is called name_2.

    >>> list(named([NoHedge(), BlackScholesDelta(0.1), BlackScholesDelta(0.2), BlackScholesDelta("realised")]))
    ['none', 'black_scholes_delta', 'black_scholes_delta_2', 'black_scholes_delta_realised']
    """
    found: dict[str, Baseline] = {}
    counts: dict[str, int] = {}
    for hedge in hedges:
        name = f"{hedge.kind}_realised" if getattr(hedge, "vol", None) == "realised" else hedge.kind
        counts[name] = counts.get(name, 0) + 1
        suffix = f"_{counts[name]}" if counts[name] > 1 else ""
        found[f"{name}{suffix}"] = hedge
    return found


def _charges(cost: Cost) -> bool:
    """Whether it takes anything from any instrument."""
    return any(max(given) > 0 if isinstance(given, tuple) else given > 0 for given in cost.settings.values())


def _of_spot(rate: float | tuple[float, ...]) -> float:
    return rate[0] if isinstance(rate, tuple) else rate
