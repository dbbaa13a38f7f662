"""Prices on trading dates, made to paths with a liability and features: what all markets of real prices share."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pricers.parameters import number, whole
from pricers.paths import Paths
from qfml.errors import ConfigError, UserError
from qfml.hedging.book import Book
from qfml.hedging.book_delta import Options, options_of
from qfml.hedging.information import Seen, features
from qfml.hedging.kinds import check_book, check_names
from qfml.hedging.paths import PathSet
from qfml.hedging.sight import Sight

__all__ = ["TradedPrices", "as_config_error", "check_common", "rolling_vol"]


def rolling_vol(log_prices: Tensor, times: Tensor, window: int) -> Tensor:
    r"""Volatility of the `window` returns that end at each time, $\sqrt{\sum r_i^2 / \sum \Delta t_i}$.

    Args:
        log_prices: shape `(B, n)`.
        times: years, shape `(n,)`.
        window: number of returns.

    Returns:
        Shape `(B, n - window)`: at the times from number `window` on.

    Example:
        >>> log_prices = torch.tensor([[0.0, 0.01, 0.0, 0.02]], dtype=torch.float64)
        >>> rolling_vol(log_prices, torch.arange(4.0, dtype=torch.float64) / 100, 2)
        tensor([[0.1000, 0.1581]], dtype=torch.float64)
    """
    squares = log_prices.diff(dim=1) ** 2
    total = squares.unfold(1, window, 1).sum(-1)
    return torch.sqrt(total / (times[window:] - times[:-window]))


@dataclass(frozen=True, eq=False)
class TradedPrices:
    """Prices on the trading dates `(B, L, K)`, not discounted, the spot first, and the volatility of the past."""

    times: Tensor
    prices: Tensor
    names: tuple[str, ...]
    realised_vol: Tensor | None
    typical_spot: float | None = None  # of all paths that there are, where these are some of them

    def path_set(self, book: Book, rate: float, vol: float, information: tuple[str, ...]) -> PathSet:
        check_book(book)
        book.check_dates(self.times, recorded=self.times)
        if book.continuous:
            raise ConfigError(
                "a contract of the book looks at the path between the recorded dates, where nothing is known; "
                "give it dates (`monitoring`, `times`)"
            )
        spot, last = self.prices[:, :, 0], float(self.times[-1])
        paths = Paths(self.times, spot)
        liability = book.liability(paths, lambda time: torch.exp(-rate * time))
        size = (self.typical_spot or float(spot[:, 0].mean())) * vol * last**0.5
        seen = Seen(
            self.times,
            spot * torch.exp(rate * (last - self.times)),
            book.strike or self._only_forward(rate * last),
            vol,
            {name: self.prices[:, :, place] / size for place, name in enumerate(self.names) if place},
            book.observables(paths, self.times),
            realised_vol=self.realised_vol,
            options=_options(book, rate, information),
        )
        made, called = features(information, seen)
        discounted = self.prices * torch.exp(-rate * self.times)[:, None]
        alive = {name: value for name, value in seen.observables.items() if name.startswith("alive")}
        known = {name: value for name, value in alive.items() if name not in called}
        return PathSet(self.times, discounted, liability, made, self.names, called, book, known)

    def sight(self, book: Book, rate: float, vol: float, information: tuple[str, ...]) -> Sight:
        """How the features of these paths follow from what is observed on a trading date."""
        book.check_dates(self.times, recorded=self.times)
        spot, last = self.prices[:, :, 0], float(self.times[-1])
        size = (self.typical_spot or float(spot[:, 0].mean())) * vol * last**0.5
        number = functools.partial(torch.tensor, dtype=torch.float64)
        return Sight(
            self.times,
            torch.exp(rate * (last - self.times)),
            number(book.strike or self._only_forward(rate * last)),
            number(vol),
            {name: torch.full_like(self.times, 1.0 / size) for name in self.names[1:]},
            information,
            self.names,
            book.observable_names,
            options=_options(book, rate, information),
        )

    def _only_forward(self, growth: float) -> float:
        """Today's forward, where all paths begin with one price."""
        first = self.prices[:, 0, 0]
        if bool((first != first[0]).any()):
            raise ConfigError(
                "a book without a strike needs paths that begin with one price, to measure moneyness from; set "
                "`rebased_to`"
            )
        return float(first[0]) * math.exp(growth)


def _options(book: Book, rate: float, information: tuple[str, ...]) -> Options | None:
    return options_of(book, information, lambda time: torch.exp(rate * time), lambda time: torch.exp(-rate * time))


MOST_RATE = 10.0  # what is beyond is in percent


def check_common(market: Any) -> None:
    """Rules of both sorts of recorded markets, as ValueErrors."""
    if not -MOST_RATE < number("rate", market.rate) < MOST_RATE:
        raise ValueError(f"`rate` must lie in (-{MOST_RATE:g}, {MOST_RATE:g}) a year, .05 for 5 %, got {market.rate}")
    if market.window is not None:
        whole("window", market.window, at_least=1)
    if market.reference_vol is not None:
        number("reference_vol", market.reference_vol, above=0.0)
    check_names("information", market.information)
    if not market.information:
        raise ConfigError("`information` must name at least one feature, such as 'time_to_horizon'")


@contextmanager
def as_config_error() -> Iterator[None]:
    """An error of a number's rule becomes one of the config."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None
