"""The engine of closed forms: one visible table from (instrument, model) to its formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from pricers.analytic import (
    asian,
    barrier,
    basket,
    digital,
    forward_start,
    heston_geometric_asian,
    heston_variance_option,
    lookback,
    merton,
    sabr,
    variance,
)
from pricers.black import black_price
from pricers.estimate import Estimate
from pricers.instruments.base import Instrument
from pricers.instruments.european import European
from pricers.market import Market
from pricers.models.base import Model
from pricers.models.black_scholes import BlackScholes

__all__ = ["FORMULAS", "REFUSALS", "Analytic"]

Pair = tuple[type[Any], type[Any]]


def european_black_scholes(instrument: European, model: BlackScholes, market: Market) -> Estimate:
    """Black and Scholes on the forward."""
    expiry = instrument.expiry
    value = black_price(
        market.forward(expiry), instrument.strike, expiry, model.vol, market.discount(expiry), instrument.option
    )
    return Estimate(value, 0.0, engine=Analytic.name)


# (instrument, model) -> formula(instrument, model, market)
FORMULAS: dict[Pair, Callable[..., Estimate]] = {
    (European, BlackScholes): european_black_scholes,
    **digital.FORMULAS,
    **barrier.FORMULAS,
    **lookback.FORMULAS,
    **asian.FORMULAS,
    **basket.FORMULAS,
    **forward_start.FORMULAS,
    **variance.FORMULAS,
    **sabr.FORMULAS,
    **heston_geometric_asian.FORMULAS,
    **heston_variance_option.FORMULAS,
    **merton.FORMULAS,
}

# why a formula does not hold for some contracts, models or markets; None where it does
REFUSALS: dict[Pair, Callable[..., str | None]] = {
    **digital.REFUSALS,
    **barrier.REFUSALS,
    **lookback.REFUSALS,
    **asian.REFUSALS,
    **basket.REFUSALS,
    **forward_start.REFUSALS,
    **sabr.REFUSALS,
    **heston_geometric_asian.REFUSALS,
}


@dataclass(frozen=True)
class Analytic:
    """Closed forms; where one is an approximation the estimate's `note` says so.

    >>> from pricers import BlackScholes, European, Market
    >>> round(Analytic().price(European(100.0, 1.0), BlackScholes(0.2), Market(100.0)).value.item(), 10)
    7.9655674554
    """

    name: ClassVar[str] = "analytic"

    def refusal(self, instrument: Instrument, model: Model, market: Market) -> str | None:
        """Why no closed form applies; None if one does."""
        pair = (type(instrument), type(model))
        if pair not in FORMULAS:
            return f"no closed form of {type(instrument).__name__} under {type(model).__name__} is known"
        if market.dividends is not None:
            return "closed forms know no cash dividends; use FiniteDifference or MonteCarlo"
        misfit = instrument.asset_refusal(model.n_assets)
        if misfit is not None:
            return misfit
        return REFUSALS[pair](instrument, model, market) if pair in REFUSALS else None

    def price(self, instrument: Instrument, model: Model, market: Market) -> Estimate:
        """Value of the instrument, with standard error 0.

        Raises:
            ValueError: no closed form applies.
        """
        reason = self.refusal(instrument, model, market)
        if reason is not None:
            raise ValueError(f"Analytic cannot price {type(instrument).__name__}: {reason}")
        return FORMULAS[type(instrument), type(model)](instrument, model, market)
