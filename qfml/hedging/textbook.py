"""Which textbook hedges stand beside a policy, and what they are told: those that have a formula for the book."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pricers as pr
from qfml.errors import ConfigError, DataError
from qfml.hedging.baselines import (
    Baseline,
    BlackScholesDelta,
    HedgingProblem,
    Leland,
    MinimumVarianceDelta,
    ModelDelta,
    NoHedge,
    WhalleyWilmott,
)
from qfml.hedging.book import Book
from qfml.hedging.costs import Cost, Proportional
from qfml.hedging.instruments import Spot
from qfml.hedging.markets import HedgingMarket, ModelMarket, as_given
from qfml.hedging.objective_base import Objective
from qfml.hedging.objectives import Entropic
from qfml.hedging.paths import PathSet

__all__ = ["Case", "named", "problem_of", "textbook_hedges"]


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
    """The textbook hedges that have a formula for the book, by name, and why the others have none.

    Their vol is the market's; Whalley and Wilmott's and Leland's costs are those of the spot, proportional.

    Args:
        market: of the training.
        book: what is owed.
        objective: whose risk aversion Whalley and Wilmott's band has, if it is an entropic one.
        costs: of trading.
        case: risk aversion and cost level.
        paths: a few of the market, on which each hedge is tried.
    """
    problem = problem_of(market, book)
    wanted: list[Baseline] = [NoHedge(), BlackScholesDelta(market.vol)]
    if problem.model is not None and not isinstance(problem.model, pr.BlackScholes):
        wanted += [ModelDelta(), MinimumVarianceDelta()]
    rate = case.cost_level * sum(_of_spot(cost.rate) for cost in costs if isinstance(cost, Proportional))
    if rate > 0:
        wanted.append(Leland(market.vol, rate))
        if isinstance(objective, Entropic) and case.aversion is not None:
            wanted.append(WhalleyWilmott(market.vol, case.aversion, rate))
    found: list[Baseline] = []
    left_out: dict[str, str] = {}
    for hedge in wanted:
        try:
            hedge.holdings(paths, problem)
        except (ConfigError, DataError) as error:
            left_out[hedge.kind] = str(error)
        else:
            found.append(hedge)
    return named(found), left_out


def named(hedges: Sequence[Baseline]) -> dict[str, Baseline]:
    """Hedges by their kind; the second of a kind is called kind_2, and so on.

    >>> list(named([NoHedge(), BlackScholesDelta(0.1), BlackScholesDelta(0.2)]))
    ['none', 'black_scholes_delta', 'black_scholes_delta_2']
    """
    found: dict[str, Baseline] = {}
    counts: dict[str, int] = {}
    for hedge in hedges:
        counts[hedge.kind] = counts.get(hedge.kind, 0) + 1
        suffix = f"_{counts[hedge.kind]}" if counts[hedge.kind] > 1 else ""
        found[f"{hedge.kind}{suffix}"] = hedge
    return found


def _of_spot(rate: float | tuple[float, ...]) -> float:
    return rate[0] if isinstance(rate, tuple) else rate
