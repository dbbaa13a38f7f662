"""What a textbook hedge is: its problem, the delta of the book, and the vol that it believes in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

import pricers as pr
from qfml.errors import ConfigError, DataError
from qfml.hedging.book import Book
from qfml.hedging.contract_greeks import alive_feature, black_scholes_slopes
from qfml.hedging.instruments import Spot
from qfml.hedging.paths import PathSet

__all__ = ["Baseline", "HedgingProblem", "Vol", "black_scholes_delta", "dated_vol"]

Dates = Float[Tensor, "path period"]
Held = Float[Tensor, "path period instrument"]
Vol: TypeAlias = float | Literal["realised"]


@dataclass(frozen=True, eq=False)
class HedgingProblem:
    """What a textbook hedge is told beside the paths.

    Args:
        book: what is owed: European options; by Black and Scholes digitals and barriers too, and anything unhedged.
        market: today's rates and dividends.
        instruments: hedging instruments, of which the first is the spot.
        model: of the paths, for the hedges that know it.
        vol: the unit of volatility in which the paths have their features `variance` or `vol`.
    """

    book: Book
    market: pr.Market
    instruments: tuple[Any, ...] = (Spot(),)
    model: pr.Model | None = None
    vol: float = 1.0


@runtime_checkable
class Baseline(Protocol):
    """A textbook hedge: a frozen dataclass with a `kind`."""

    kind: ClassVar[str]

    def holdings(self, paths: PathSet, problem: HedgingProblem) -> Held:
        """Units of each instrument held from each trading date to the next, (B, L - 1, K).

        Raises:
            ConfigError: a book, a model or instruments that this hedge has no formula for.
        """
        ...


def black_scholes_delta(paths: PathSet, problem: HedgingProblem, vols: Any) -> tuple[Dates, Dates]:
    """Delta and gamma of the book's discounted value in the discounted spot, by the model's closed forms.

    Args:
        paths: paths whose first instrument is the spot.
        problem: book, rates and dividends; what the book may hold is told by `black_scholes_slopes`.
        vols: of each position of the book, annualised, decimal: a number, or one for each path and date, (B, L - 1).

    Returns:
        Both (B, L - 1), float64.
    """
    check_spot(problem)
    delta, gamma = torch.zeros_like(spot_of(paths)), torch.zeros_like(spot_of(paths))
    book = problem.book
    for place, (quantity, contract, vol) in enumerate(zip(book.quantities, book.contracts, vols, strict=True)):
        slopes = black_scholes_slopes(contract, paths, problem.market, vol, alive_feature(book, place))
        delta, gamma = delta + quantity * slopes[0], gamma + quantity * slopes[1]
    return delta, gamma


def dated_vol(vol: Vol, paths: PathSet, problem: HedgingProblem) -> float | Tensor:
    """The vol that a hedge believes in: its number, or what the past returns have realised by each date, (B, L - 1).

    Raises:
        ConfigError: `realised`, and the paths have no feature `realised_vol`.
        DataError: returns that have realised nothing.
    """
    if vol != "realised":
        return vol
    if "realised_vol" not in paths.feature_names:
        raise ConfigError(
            "`vol: realised` needs to see the past returns, got the features "
            f"{', '.join(paths.feature_names)}: add 'realised_vol' to `information`, and a `window`"
        )
    seen = problem.vol * paths.features[:, :-1, paths.feature_names.index("realised_vol")].double()
    if not bool((seen > 0).all()):
        path, date = (seen <= 0).nonzero()[0].tolist()
        raise DataError(
            f"`vol: realised` must be above 0, path {path} has realised nothing by its date {date}: take a longer "
            "`window`, or a number"
        )
    return seen


def spot_of(paths: PathSet) -> Dates:
    """Discounted spot at the dates of trading, (B, L - 1), float64."""
    return paths.prices[:, :-1, 0].double()


def in_spot(holding: Dates, paths: PathSet) -> Held:
    """A holding of the first instrument alone, in the precision of the prices."""
    held = torch.zeros_like(paths.prices[:, :-1])
    held[..., 0] = holding
    return held


def check_spot(problem: HedgingProblem) -> None:
    """Refuse a problem whose first instrument is not the spot."""
    first = problem.instruments[0] if problem.instruments else None
    if not isinstance(first, Spot):
        raise DataError(f"a textbook hedge trades the spot, which must be the first instrument, got {first!r}")


def check_positive(**values: float) -> None:
    """Refuse settings that are not above 0."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ConfigError(f"`{name}` must be positive and finite, got {value}")


def check_vol(vol: Any) -> None:
    """Refuse what is no vol."""
    if vol != "realised":
        if isinstance(vol, str):
            raise ConfigError(f"`vol` must be a number or 'realised', got {vol!r}")
        check_positive(vol=vol)
