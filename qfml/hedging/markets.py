"""Where paths come from: a model, a record, or returns of prices, by their `kind`; with drift, or without."""

from __future__ import annotations

from qfml.hedging.drift import DriftRemoved
from qfml.hedging.given_markets import (
    GIVEN_MARKETS,
    BootstrappedReturns,
    HedgingMarket,
    ModelMarket,
    RecordedPaths,
)

__all__ = [
    "GIVEN_MARKETS",
    "MARKETS",
    "BootstrappedReturns",
    "DriftRemoved",
    "HedgingMarket",
    "ModelMarket",
    "RecordedPaths",
    "as_given",
]

MARKETS: dict[str, type] = GIVEN_MARKETS | {DriftRemoved.kind: DriftRemoved}


def as_given(market: HedgingMarket) -> HedgingMarket:
    """The market with its drift, whose instruments, dates and features those of any measure are."""
    return market.market if isinstance(market, DriftRemoved) else market
