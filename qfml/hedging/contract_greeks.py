"""Delta and gamma of contracts along paths, by the closed forms of Black and Scholes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

import pricers as pr
from pricers.black import black_d1_d2
from pricers.normal import normal_cdf, normal_density
from pricers.paths import SAME_DATE
from qfml.errors import ConfigError
from qfml.hedging.book import Book
from qfml.hedging.paths import PathSet

__all__ = ["alive_feature", "black_scholes_slopes"]

Dates = Float[Tensor, "path period"]


def black_scholes_slopes(
    contract: pr.Instrument, paths: PathSet, market: pr.Market, vol: float | Tensor, seen_as: str | None = None
) -> tuple[Dates, Dates]:
    r"""First and second derivative of a contract's discounted value in the discounted spot, at the trading dates.

    European options by Black's formula; digitals and barriers watched at all times from their closed forms. A barrier
    that is alive with the weight w that the paths tell is worth w times the live contract, and a knock-in the rest
    of the European option that it has become: for a dead knock-out, nothing is left to hedge.

    Args:
        contract: of one asset.
        paths: paths whose first instrument is the discounted spot.
        market: rates and dividends.
        vol: annualised, decimal: a number, or one for each path and date, (B, L - 1).
        seen_as: the feature, or what is known, that says whether a barrier is alive.

    Returns:
        Both (B, L - 1), float64.

    Raises:
        ConfigError: a contract without a closed form along paths, or a barrier that cannot be seen.
    """
    spot, times = paths.prices[:, :-1, 0].double(), paths.times[:-1]
    if isinstance(contract, pr.European):
        return _of_european(contract, spot, times, market, vol)
    if isinstance(contract, pr.Digital):
        return _of_dates(contract, spot, times, market, vol)
    if isinstance(contract, pr.Barrier) and not isinstance(contract.monitoring, Tensor):
        return _of_barrier(contract, spot, times, market, vol, _weight(paths, seen_as))
    raise ConfigError(
        f"the delta of the book's {type(contract).__name__} has no closed form along paths: european, digital and "
        "barrier contracts (watched at all times) have one; compare with the baseline none"
    )


def alive_feature(book: Book, place: int) -> str | None:
    """Name under which a position's survival is seen; None for a contract that cannot die."""
    names = [name for name in book.observable_names if name.startswith("alive")]
    barriers = [i for i, each in enumerate(book.contracts) if isinstance(each, (pr.Barrier, pr.AsianBarrier))]
    return names[barriers.index(place)] if place in barriers and len(names) == len(barriers) else None


def _of_european(
    contract: pr.European, spot: Dates, times: Tensor, market: pr.Market, vol: float | Tensor
) -> tuple[Dates, Dates]:
    left = (contract.expiry.double() - times).expand_as(spot)
    alive = left > SAME_DATE
    growth, discount = market.growth(contract.expiry), market.discount(contract.expiry)
    forward = spot * growth
    deviation = vol * torch.where(alive, left, 1.0).sqrt()
    d1, _ = black_d1_d2(forward, contract.strike.expand_as(forward), deviation)
    sign = 1.0 if contract.option == "call" else -1.0
    factor = discount * growth * alive
    delta = factor * sign * normal_cdf(sign * d1)
    return delta, factor * growth * normal_density(d1) / (forward * deviation)


def _of_dates(contract: Any, spot: Dates, times: Tensor, market: pr.Market, vol: float | Tensor) -> tuple[Dates, Dates]:
    """By the analytic engine, one date after the other: the contract and the curves as they stand then."""
    delta, gamma = torch.zeros_like(spot), torch.zeros_like(spot)
    vols = vol.unbind(1) if isinstance(vol, Tensor) else [vol] * len(times)
    for date, time in enumerate(times):
        if float(contract.horizon) - float(time) <= SAME_DATE:
            continue
        growth, discount = market.growth(time), market.discount(time)
        now = replace(market.shifted(time), spot=spot[:, date] * growth)
        wrt = ("spot", ("spot", "spot"))
        greeks = pr.greeks(contract.shifted(time), pr.BlackScholes(vols[date]), now, wrt, pr.Analytic())
        delta[:, date] = discount * growth * greeks["spot"].value
        gamma[:, date] = discount * growth**2 * greeks["spot", "spot"].value
    return delta, gamma


def _of_barrier(
    contract: pr.Barrier, spot: Dates, times: Tensor, market: pr.Market, vol: float | Tensor, weight: Dates
) -> tuple[Dates, Dates]:
    # a dead contract has no formula at its spot: it is asked for at today's, and not counted
    today = spot[:1, :1]
    live = _of_dates(contract, torch.where(weight > 0, spot, today), times, market, vol)
    if contract.out:
        return weight * live[0], weight * live[1]
    option = _of_european(pr.European(contract.strike, contract.expiry, contract.option), spot, times, market, vol)
    return weight * live[0] + (1 - weight) * option[0], weight * live[1] + (1 - weight) * option[1]


def _weight(paths: PathSet, seen_as: str | None) -> Dates:
    if seen_as is not None and seen_as in paths.known:
        return paths.known[seen_as][:, :-1].double()
    if seen_as is None or seen_as not in paths.feature_names:
        raise ConfigError(
            f"the delta of a barrier needs to see whether it is alive, got the features "
            f"{', '.join(paths.feature_names)}: add '{seen_as or 'alive'}' to `information`"
        )
    return paths.features[:, :-1, paths.feature_names.index(seen_as)].double()
