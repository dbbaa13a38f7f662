"""Fresh paths put together from blocks of the returns of a real price series."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar

import numpy as np
import polars as pl
import torch
from torch import Tensor

from pricers.noise import address
from pricers.parameters import number as one_number
from pricers.parameters import whole
from qfml.config import OneOf, build_kind
from qfml.data.sources import SOURCES
from qfml.data.validation import ErrorOnMissing, validate
from qfml.errors import ConfigError, DataError
from qfml.hedging.book import Book
from qfml.hedging.paths import PathSet
from qfml.hedging.sight import Sight
from qfml.hedging.traded_prices import TradedPrices, as_config_error, check_common, rolling_vol

__all__ = ["BootstrappedReturns", "block_rows", "without_gaps"]

TILE = 1024  # paths of one generator


def block_rows(
    n_rows: int, n_steps: int, block_length: float, method: str, generator: torch.Generator, n_paths: int
) -> Tensor:
    r"""Rows of a block bootstrap, shape `(n_paths, n_steps)`: the series goes on, or begins anew at a random row.

    A stationary block ends after each step with probability 1 / `block_length`; a circular one has just that length.
    The series is closed to a circle, so that each row is as likely as any other.

    References:
        Politis and Romano (1994), The stationary bootstrap. Politis and Romano (1992), A circular block-resampling
        procedure for stationary data.

    Example:
        >>> block_rows(100, 6, 3, "circular", torch.Generator().manual_seed(1), 1).diff()[0, [0, 1, 3, 4]]
        tensor([1, 1, 1, 1])
    """
    starts = torch.randint(n_rows, (n_paths, n_steps), generator=generator)
    place = torch.arange(n_steps)
    if method == "circular":
        fresh = (place % int(block_length) == 0).expand(n_paths, -1)
    else:
        fresh = torch.rand(n_paths, n_steps, generator=generator) < 1.0 / block_length
        fresh[:, 0] = True
    begun = torch.where(fresh, place, 0).cummax(dim=1).values
    return (starts.gather(1, begun) + place - begun) % n_rows


def without_gaps(frame: pl.DataFrame, market: BootstrappedReturns) -> pl.DataFrame:
    """The prices of a market by date.

    Raises:
        DataError: times that do not ascend or leave a longer gap than `max_gap`; prices missing or not above 0.
    """
    name = market.column
    try:
        return validate(frame, prices=[name], missing=ErrorOnMissing(), max_gap=market.max_gap, columns=[name])[0]
    except DataError as error:
        raise DataError(f"{market.source.describe()}: {error}") from None


@dataclass(frozen=True)
class BootstrappedReturns:
    r"""Fresh paths put together from blocks of the returns of a real price series.

    Blocks keep what returns have in common with their neighbours: clusters of volatility, and trends. A policy finds
    those trends and bets on them, though one history holds too few to tell them from luck. With `signs` drawn, a wild
    bootstrap, each period's return beyond the rate has its sign drawn anew: the clusters stay, and whatever has been
    seen, prices are expected to earn the rate.

    Args:
        source: where the prices come from; see `qfml.data.SOURCES`.
        n_steps: trading periods of a path, each of one period of the series.
        block_length: mean length of a stationary block, or the length of a circular one, in periods.
        keep_drift: whether the mean return of the series is kept; otherwise each period's expected return is the rate.
        method: "stationary" or "circular".
        signs: of the returns, "kept" or "drawn"; these have no drift to keep.
        column: of prices in the source.
        start: first day that is used; None: all.
        end: last day that is used; None: all.
        max_gap: longest time between two prices, such as "10D", for more is no return of one period; None: any.
        periods_per_year: of the series.
        window: number of past returns behind the feature `realised_vol`; drawn before the first date.
        spot: price at the first date.
        rate: continuous rate per year.
        information: what a policy sees: see `FEATURES`.
        reference_vol: the unit of volatility of the features; None: that of the returns used.

    Raises:
        ConfigError: settings that break a rule.
        DataError: prices with gaps or not above 0, or fewer returns than a block.

    References:
        Politis and Romano (1994), The stationary bootstrap. Davidson and Flachaire (2008), The wild bootstrap, tamed at
        last, for the signs.

    Example:
        >>> import pricers as pr
        >>> market = BootstrappedReturns(
        ...     {"kind": "arch", "name": "sp500"}, n_steps=21, block_length=10, keep_drift=False, window=21,
        ...     information=("log_moneyness", "realised_vol"),
        ... )
        >>> paths = market.paths(8, Book(((1.0, pr.European(1.0, 21 / 252)),)), seed=1)
        >>> paths.prices.shape, paths.features.shape
        (torch.Size([8, 22, 1]), torch.Size([8, 22, 2]))
    """

    source: Annotated[Any, OneOf(SOURCES)]
    n_steps: int
    block_length: float
    keep_drift: bool
    method: str = "stationary"
    signs: str = "kept"
    column: str = "close"
    start: str | None = None
    end: str | None = None
    max_gap: str | None = "10D"
    periods_per_year: float = 252.0
    window: int | None = None
    spot: float = 1.0
    rate: float = 0.0
    information: tuple[str, ...] = ("log_moneyness", "time_to_horizon")
    reference_vol: float | None = None
    kind: ClassVar[str] = "bootstrap"

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", build_kind(SOURCES, self.source))
        if self.source.group_column is not None:
            raise ConfigError("`source` must be a single series of prices, without a group; choose one of the panel")
        if self.method not in ("stationary", "circular"):
            raise ConfigError(f"`method` must be 'stationary' or 'circular', got {self.method!r}")
        if self.signs not in ("kept", "drawn"):
            raise ConfigError(f"`signs` must be 'kept' or 'drawn', got {self.signs!r}")
        if self.signs == "drawn" and self.keep_drift:
            raise ConfigError("`signs: drawn` leaves no drift that could be kept: set `keep_drift` to false")
        with as_config_error():
            whole("n_steps", self.n_steps, at_least=1)
            for name in ("block_length", "periods_per_year", "spot"):
                one_number(name, getattr(self, name), above=0.0)
            check_common(self)
        if self.block_length < 1 or (self.method == "circular" and self.block_length != int(self.block_length)):
            raise ConfigError(
                f"`block_length` must be 1 period or more, of circular blocks a whole number, got {self.block_length}"
            )

    @property
    def martingale(self) -> bool:
        """With drawn signs alone: the record's trends stay in its blocks though its drift is taken out."""
        return self.signs == "drawn"

    @cached_property
    def times(self) -> Tensor:
        """Trading dates in years, shape `(n_steps + 1,)`."""
        return torch.arange(self.n_steps + 1, dtype=torch.float64) / self.periods_per_year

    @cached_property
    def log_returns(self) -> Tensor:
        """Of the series, shape `(n,)`; without their drift, if it is removed."""
        frame = self.source.read([self.column], self.start, self.end)
        prices = frame[self.column].cast(pl.Float64).to_numpy()
        bad = ~(np.isfinite(prices) & (prices > 0))
        if bad.any():
            place = int(bad.argmax())
            raise DataError(
                f"`{self.column}` of {self.source.describe()} must be above 0 on each date, {int(bad.sum())} are not; "
                f"the first is {prices[place]} on {frame['time'][place]}; leave its time out by `start` or `end`"
            )
        if frame["time"].dtype.is_temporal():
            without_gaps(frame, self)
        if len(prices) < self.block_length + 1 or len(prices) < 3:
            raise DataError(f"{self.source.describe()} has {len(prices)} prices, too few for one block")
        if self.window is not None and len(prices) <= self.window:
            raise DataError(
                f"`window` must be below the {len(prices)} prices of {self.source.describe()}, got {self.window}"
            )
        returns = torch.from_numpy(np.log(prices)).diff()
        if self.signs == "drawn" and bool((returns >= math.log(2.0)).any()):
            row = int((returns >= math.log(2.0)).int().argmax()) + 1
            raise DataError(
                f"`{self.column}` of {self.source.describe()} doubles on {frame['time'][row]}, and with the other sign "
                "nothing would be left: keep the signs, or mend it"
            )
        if self.keep_drift:
            return returns
        return returns - returns.exp().mean().log() + self.rate / self.periods_per_year

    @property
    def vol(self) -> float:
        """The unit of volatility of the features, per year."""
        if self.reference_vol is not None:
            return self.reference_vol
        return math.sqrt(float((self.log_returns**2).mean()) * self.periods_per_year)

    def paths(
        self,
        n_paths: Any,
        book: Book,
        seed: Any,
        number: Any = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> PathSet:
        """Fresh paths; one depends on seed, number and its place only.

        Args:
            n_paths: how many.
            book: what is owed; its last contract ends on the last trading date.
            seed: any integer.
            number: which of the independent sets of paths of this seed.
            dtype: of prices and liability; features are float32.
            device: where they go.

        Raises:
            DataError: a contract date that is no trading date.
            ConfigError: information that is not known or cannot be seen.
        """
        with as_config_error():
            n_paths, seed = whole("n_paths", n_paths, at_least=1), whole("seed", seed)
            number = whole("number", number, at_least=0)
        before = self.window or 0
        returns = self._returns(n_paths, seed, number, before + self.n_steps)
        log_prices = torch.nn.functional.pad(returns.cumsum(1), (1, 0))
        log_prices = log_prices - log_prices[:, before : before + 1]
        all_times = (torch.arange(before + self.n_steps + 1, dtype=torch.float64) - before) / self.periods_per_year
        vol = rolling_vol(log_prices, all_times, before) if before else None
        spot = self.spot * log_prices[:, before:].exp()
        made = TradedPrices(self.times, spot.unsqueeze(-1), ("spot",), vol)
        return made.path_set(book, self.rate, self.vol, self.information).to(device, dtype)

    def sight(self, book: Book) -> Sight:
        """How the features follow from what is observed on a trading date."""
        made = TradedPrices(self.times, torch.full((1, len(self.times), 1), self.spot).double(), ("spot",), None)
        return made.sight(book, self.rate, self.vol, self.information)

    def _returns(self, n_paths: int, seed: int, number: int, n_steps: int) -> Tensor:
        tiles: list[Tensor] = []
        growth = self.rate / self.periods_per_year
        for tile in range(-(-n_paths // TILE)):
            generator = torch.Generator().manual_seed(address("bootstrap", seed, number, tile))
            rows = block_rows(len(self.log_returns), n_steps, self.block_length, self.method, generator, TILE)
            returns = self.log_returns[rows]
            if self.signs == "drawn":  # of simple returns: their mean is 0 whatever came before
                signs = torch.randint(2, returns.shape, generator=generator) * 2 - 1
                returns = torch.log1p(signs * torch.expm1(returns - growth)) + growth
            tiles.append(returns)
        return torch.cat(tiles)[:n_paths]
