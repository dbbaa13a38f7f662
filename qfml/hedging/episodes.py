"""Episodes: the windows of a price history in which a book would have been sold, hedged and settled."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from pricers.parameters import whole
from qfml.errors import ConfigError, DataError
from qfml.hedging.book import Book
from qfml.hedging.bootstrapped_returns import BootstrappedReturns, without_gaps
from qfml.hedging.paths import PathSet
from qfml.hedging.traded_prices import TradedPrices, rolling_vol

__all__ = ["CALENDAR", "Episodes", "History", "read_history"]

CALENDAR = ("week", "month", "quarter", "year")  # whose first trading dates episodes may start on


@dataclass(frozen=True, eq=False)
class History:
    """Prices of one asset, checked.

    Args:
        times: ascending, a polars series of datetimes.
        prices: above 0, shape (n,), float64.
    """

    times: pl.Series
    prices: Float[Tensor, " row"]

    def __len__(self) -> int:
        return len(self.prices)

    def day(self, row: int) -> str:
        """The time of a row as `start` and `end` of a source take it: a day where all times are days."""
        moment: datetime = self.times[row]
        of_days = bool((self.times.dt.time() == datetime.min.time()).all())
        return moment.date().isoformat() if of_days else moment.isoformat()


def read_history(market: BootstrappedReturns) -> History:
    """The prices that a market is made of, every rule of a price series checked.

    Args:
        market: names source, column, `start`, `end` and `max_gap`.

    Raises:
        DataError: times that are no dates, do not ascend or leave a longer gap; prices missing or not above 0.
    """
    name = market.column
    frame = market.source.read([name], market.start, market.end)
    if not frame["time"].dtype.is_temporal():
        raise DataError(
            f"a walk through history needs dates, the times of {market.source.describe()} are {frame['time'].dtype}"
        )
    frame = without_gaps(frame, market)
    return History(frame["time"], torch.from_numpy(frame[name].cast(pl.Float64).to_numpy().copy()))


@dataclass(frozen=True, eq=False)
class Episodes:
    """Windows of a history, each a sample that decides at its first trading date and is known at its last.

    A splitter takes it as it is: `window_start <= time < label_end` are the first price of the look-back, the first
    trading date and the expiry.

    Args:
        history: the prices.
        first: row of each first trading date, ascending.
        n_steps: trading periods of each.
        window: returns before the first trading date that are looked back on.
    """

    history: History
    first: np.ndarray
    n_steps: int
    window: int = 0

    def __len__(self) -> int:
        return len(self.first)

    @cached_property
    def time(self) -> np.ndarray:
        """First trading dates."""
        return self._times(self.first)

    @cached_property
    def label_end(self) -> np.ndarray:
        """Last trading dates."""
        return self._times(self.first + self.n_steps)

    @cached_property
    def window_start(self) -> np.ndarray:
        """First prices of the look-back."""
        return self._times(self.first - self.window)

    def rows(self, chosen: np.ndarray) -> Episodes:
        """Some of the episodes."""
        return Episodes(self.history, self.first[chosen], self.n_steps, self.window)

    def prices(self) -> Tensor:
        """Prices from the look-back on, as recorded, (B, window + n_steps + 1)."""
        at = self.first[:, None] + np.arange(-self.window, self.n_steps + 1)
        return self.history.prices[torch.from_numpy(at)]

    def paths(self, market: BootstrappedReturns, book: Book) -> PathSet:
        """What a policy of the market sees and trades: each episode begins at the market's `spot`.

        Args:
            market: whose dates, rate, features and unit of volatility are taken; none of its returns.
            book: what is owed, struck in units of that spot.

        Raises:
            DataError: a contract date that is no trading date.
        """
        prices = self.prices()
        prices = prices * (market.spot / prices[:, self.window : self.window + 1])
        back = self.window
        years = (torch.arange(back + self.n_steps + 1, dtype=torch.float64) - back) / market.periods_per_year
        vol = rolling_vol(prices.log(), years, back) if back else None
        made = TradedPrices(market.times, prices[:, back:, None], ("spot",), vol)
        return made.path_set(book, market.rate, market.vol, market.information).to("cpu", torch.float32)

    def spans(self, chosen: np.ndarray) -> tuple[str, str]:
        """First and last day that the chosen episodes know of, look-back and expiry included."""
        first, last = int(self.first[chosen].min()) - self.window, int(self.first[chosen].max()) + self.n_steps
        return self.history.day(first), self.history.day(last)

    def _times(self, rows: np.ndarray) -> np.ndarray:
        return self.history.times.gather(rows).dt.replace_time_zone(None).to_numpy().astype("datetime64[ns]")


def cut(history: History, n_steps: int, window: int | None, start_every: int | str) -> Episodes:
    """All episodes that the history holds from look-back to expiry.

    Args:
        history: the prices.
        n_steps: trading periods of an episode.
        window: returns of the look-back; None: none.
        start_every: periods from one start to the next; or "week", "month", "quarter", "year": the first trading date
            of each.

    Raises:
        ConfigError: no such rule of starting.
        DataError: a history that holds no episode.

    Example:
        >>> days = pl.datetime_range(datetime(2024, 1, 1), datetime(2024, 1, 10), "1d", eager=True)
        >>> cut(History(days, torch.ones(10, dtype=torch.float64)), 3, 2, 2).first
        array([2, 4, 6])
    """
    back = window or 0
    first, stop = back, len(history) - n_steps
    if stop <= first:
        raise DataError(
            f"the history holds {len(history)} prices, too few for an episode of {n_steps} periods after a look-back "
            f"of {back}: take a longer one, or a shorter horizon"
        )
    if isinstance(start_every, str):
        rows = _firsts(history.times, start_every)
        rows = rows[(rows >= first) & (rows < stop)]
        if not len(rows):
            raise DataError(f"no {start_every} of the history begins with a whole episode: take more starts")
    else:
        check_start_every(start_every)
        rows = np.arange(first, stop, start_every)
    return Episodes(history, rows, n_steps, back)


def check_start_every(start_every: Any) -> None:
    """Refuse what is neither a number of periods nor a part of the calendar."""
    if isinstance(start_every, str):
        if start_every not in CALENDAR:
            raise ConfigError(
                f"`start_every` must be a number of periods or one of {', '.join(CALENDAR)}, got {start_every!r}"
            )
        return
    try:
        whole("start_every", start_every, at_least=1)
    except ValueError as error:
        raise ConfigError(f"{error}; or one of {', '.join(CALENDAR)}") from None


def _firsts(times: pl.Series, part: str) -> np.ndarray:
    """Rows of the first date of each week, month, quarter or year but the first, which may have begun before."""
    check_start_every(part)
    length = {"week": "1w", "month": "1mo", "quarter": "1q", "year": "1y"}[part]
    begins = times.dt.truncate(length)
    return np.flatnonzero((begins != begins.shift(1)).fill_null(False).to_numpy())
