"""Paths that were recorded, read from a file or given as an array."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import torch
from torch import Tensor

from pricers.noise import address
from pricers.parameters import number as one_number
from pricers.parameters import whole
from qfml.data.validation import unknown_column
from qfml.errors import ConfigError, DataError
from qfml.hedging.book import Book
from qfml.hedging.kinds import check_names, check_numbers
from qfml.hedging.paths import PathSet
from qfml.hedging.sight import Sight
from qfml.hedging.traded_prices import TradedPrices, as_config_error, check_common, rolling_vol

__all__ = ["RecordedPaths"]


@dataclass(frozen=True)
class RecordedPaths:
    """Paths that were recorded, as a file or an array; training shuffles them, and sees each once before any twice.

    Trading dates are the recorded times. Contracts that look at the path between them have no payoff here.

    Args:
        path: a Parquet or CSV file. In the long form it has the columns `path`, `time` and one for each instrument; in
            the wide form one row for each path, and columns that are called by their time in years.
        form: "long" or "wide".
        array: prices from a script instead, shape `(B, n)` or `(B, n, K)`; needs `times`.
        times: years of the array's columns, ascending.
        instruments: names of the instruments, columns of the long form; the first is the spot.
        rate: continuous rate per year at which prices are discounted.
        history: number of recorded times before the first trading date, for `window`.
        window: number of past returns behind the feature `realised_vol`; at most `history`.
        rows: first path that is used and the one after the last, in the order of the file; None: all.
        rebased_to: each path is multiplied so that it begins with this spot; None: as recorded.
        max_gap: longest period between recorded times, in units of the median one: what is longer is a date that all
            paths lack. None: any, for dates that are meant to lie unevenly.
        information: what a policy sees: see `FEATURES`.
        reference_vol: the unit of volatility of the features; None: that of all returns used.
        reference_spot: the unit of the prices of instruments among the features, with that volatility and the root of
            the horizon; None: the mean of all first prices used.

    Raises:
        ConfigError: settings that break a rule.
        DataError: no such file or column; a gap, named by path and time; a price that is not above 0.

    Example:
        >>> import pricers as pr
        >>> market = RecordedPaths(array=[[1.0, 1.1, 1.2], [1.0, 0.9, 0.8]], times=(0.0, 0.1, 0.2))
        >>> paths = market.paths(None, Book(((1.0, pr.European(1.0, 0.2)),)), seed=1)
        >>> [round(value, 4) for value in paths.liability.tolist()]
        [0.2, 0.0]
    """

    path: str | Path | None = None
    form: str = "long"
    array: Any = field(default=None, repr=False, compare=False)
    times: tuple[float, ...] | None = None
    instruments: tuple[str, ...] = ("spot",)
    rate: float = 0.0
    history: int = 0
    window: int | None = None
    rows: tuple[int, int] | None = None
    rebased_to: float | None = None
    max_gap: float | None = 5.0
    information: tuple[str, ...] = ("log_moneyness", "time_to_horizon")
    reference_vol: float | None = None
    reference_spot: float | None = None
    kind: ClassVar[str] = "recorded"

    def __post_init__(self) -> None:
        if (self.path is None) == (self.array is None):
            raise ConfigError("recorded paths need either the `path` of a file or, from a script, an `array`")
        if (self.array is None) != (self.times is None):
            raise ConfigError("`times` in years go with an `array`; a file has its own")
        if self.times is not None:
            check_numbers("times", self.times)
        if self.rows is not None:
            _check_rows(self.rows)
        check_names("instruments", self.instruments)
        if self.form not in ("long", "wide"):
            raise ConfigError(f"`form` must be 'long' or 'wide', got {self.form!r}")
        if not self.instruments or len(set(self.instruments)) < len(self.instruments):
            raise ConfigError(f"`instruments` must be different names, the spot first, got {self.instruments}")
        if self.path is not None and self.form == "wide" and len(self.instruments) > 1:
            raise ConfigError("the wide form holds one instrument, the spot; write several in the long form")
        with as_config_error():
            whole("history", self.history, at_least=0)
            check_common(self)
            if self.reference_spot is not None:
                one_number("reference_spot", self.reference_spot, above=0.0)
            if self.rebased_to is not None:
                one_number("rebased_to", self.rebased_to, above=0.0)
            if self.max_gap is not None:
                one_number("max_gap", self.max_gap, above=1.0)
        if self.window is not None and self.window > self.history:
            raise ConfigError(
                f"`window` of {self.window} returns needs as many recorded times before the first trading date, got "
                f"`history` = {self.history}; raise `history`"
            )

    @cached_property
    def recorded(self) -> tuple[Tensor, Tensor]:
        """All times in years from the first trading date, and the prices used, `(B, n, K)`, float64."""
        times, prices, names = self._from_array() if self.array is not None else self._from_file()
        _check_record(times, prices, names, self.instruments)
        _check_gaps(times, self.max_gap)
        if self.history > len(times) - 2:
            raise DataError(f"`history` of {self.history} leaves no two trading dates of {len(times)} recorded times")
        if self.rows is not None:
            first, last = self.rows
            if not 0 <= first < last <= len(prices):
                raise DataError(
                    f"`rows` must be ascending and within the {len(prices)} recorded paths, got {self.rows}"
                )
            prices = prices[first:last]
        if self.rebased_to is not None:
            prices = prices * (self.rebased_to / prices[:, self.history : self.history + 1, :1])
        return torch.from_numpy(times - times[self.history]), torch.from_numpy(np.array(prices, order="C"))

    @property
    def vol(self) -> float:
        """The unit of volatility of the features, per year."""
        return self._vol if self.reference_vol is None else self.reference_vol

    @cached_property
    def _vol(self) -> float:
        times, prices = self.recorded
        squares = float((prices[:, :, 0].log().diff(dim=1) ** 2).sum())
        if squares == 0:
            raise DataError("the recorded spot never moves, so that features have no unit: look at the prices")
        return math.sqrt(squares / (len(prices) * float(times[-1] - times[0])))

    @property
    def martingale(self) -> bool:
        """Not known: what was recorded may drift."""
        return False

    def paths(
        self,
        n_paths: Any,
        book: Book,
        seed: Any,
        number: Any = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> PathSet:
        """Some of the paths: set `number` of a shuffle by `seed`, which begins anew when too few are left.

        Args:
            n_paths: how many; None: all, in the order of the file.
            book: what is owed; its last contract ends on the last recorded date.
            seed: any integer.
            number: which set.
            dtype: of prices and liability; features are float32.
            device: where they go.

        Raises:
            DataError: more paths than there are, a contract date that was not recorded.
            ConfigError: information that is not known or cannot be seen.
        """
        times, prices = self.recorded
        if n_paths is not None:
            prices = prices[self._chosen(n_paths, seed, number, len(prices))]
        today = self.history
        vol = rolling_vol(prices[:, :, 0].log(), times, self.window)[:, today - self.window :] if self.window else None
        made = TradedPrices(times[today:], prices[:, today:], self.instruments, vol, self.typical_spot)
        return made.path_set(book, self.rate, self.vol, self.information).to(device, dtype)

    def parted(self, n_last: int, n_step: int = 1) -> tuple[RecordedPaths, RecordedPaths]:
        """The paths used but the last, and the last `n_last`, both in the same unit of volatility.

        Raises:
            DataError: fewer than the `n_step` paths of a training step are left.
        """
        first, end = (0, len(self.recorded[1])) if self.rows is None else self.rows
        if n_last >= end - first:
            raise DataError(
                f"`n_validation` takes the last paths of a record from its training: it must be below the "
                f"{end - first} that are used, got {n_last}"
            )
        if n_step > end - first - n_last:
            raise DataError(
                f"`batch_size` must be at most the {end - first - n_last} paths that `n_validation` of {n_last} leaves "
                f"of {end - first}, got {n_step}"
            )
        parts = ((first, end - n_last), (end - n_last, end))
        units = {"reference_vol": self.vol, "reference_spot": self.typical_spot}
        return tuple(replace(self, rows=rows, **units) for rows in parts)  # pyright: ignore[reportReturnType]

    def shares_paths(self, other: Any) -> bool:
        """Whether both use a path: whatever it is called, in which file it is, and on what spot it begins.

        Where most paths of this record are equal to others of it, as on a tree, those of two records may be by chance:
        then only rows of one file tell.
        """
        if not isinstance(other, RecordedPaths):
            return False
        if self.path is not None and other.path is not None and Path(self.path).resolve() == Path(other.path).resolve():
            spans = [(0, math.inf) if one.rows is None else one.rows for one in (self, other)]
            return max(first for first, _ in spans) < min(end for _, end in spans)
        own = self._relative
        return 2 * len(own) > len(self.recorded[1]) and not own.isdisjoint(other._relative)

    @cached_property
    def _relative(self) -> set[bytes]:
        """Each path used from the first trading date, relative to its first spot."""
        prices = self.recorded[1][:, self.history :]
        return {row.tobytes() for row in (prices / prices[:, :1, :1]).float().numpy()}

    def sight(self, book: Book) -> Sight:
        """How the features follow from what is observed on a trading date."""
        times, prices = self.recorded
        made = TradedPrices(times[self.history :], prices[:, self.history :], self.instruments, None, self.typical_spot)
        return made.sight(book, self.rate, self.vol, self.information)

    @cached_property
    def typical_spot(self) -> float:
        """The unit of the prices of instruments, the same whichever paths are drawn."""
        if self.reference_spot is not None:
            return self.reference_spot
        return float(self.recorded[1][:, self.history, 0].mean())

    def _chosen(self, n_paths: Any, seed: Any, number: Any, available: int) -> Tensor:
        with as_config_error():
            n_paths, seed = whole("n_paths", n_paths, at_least=1), whole("seed", seed)
            number = whole("number", number, at_least=0)
        if n_paths > available:
            raise DataError(f"`n_paths` must be {available} or less, as many as are recorded, got {n_paths}")
        shuffle, place = divmod(number, available // n_paths)
        generator = torch.Generator().manual_seed(address("recorded paths", seed, shuffle))
        return torch.randperm(available, generator=generator)[place * n_paths : (place + 1) * n_paths]

    def _from_array(self) -> tuple[np.ndarray, np.ndarray, list[str]]:
        given = self.array.detach().cpu() if isinstance(self.array, Tensor) else self.array
        try:
            if np.iscomplexobj(given):
                raise TypeError
            prices = np.array(given, dtype=np.float64)
        except (TypeError, ValueError):
            raise DataError("`array` must hold numbers, shape (paths, times) or (paths, times, instruments)") from None
        times = np.array(self.times, dtype=np.float64)
        prices = prices[..., None] if prices.ndim == 2 else prices
        if prices.ndim != 3 or prices.shape[1:] != (len(times), len(self.instruments)) or not len(prices):
            raise DataError(
                f"`array` must have shape (paths, {len(times)} times, {len(self.instruments)} instruments), "
                f"got {np.shape(self.array)}"
            )
        return times, prices, [str(place) for place in range(len(prices))]

    def _from_file(self) -> tuple[np.ndarray, np.ndarray, list[str]]:
        path = Path(str(self.path))
        readers: dict[str, Callable[..., pl.DataFrame]] = {".parquet": pl.read_parquet, ".csv": pl.read_csv}
        if path.suffix not in readers:
            raise DataError(f"recorded paths must be a .parquet or .csv file, got {path}")
        if not path.is_file():
            raise DataError(f"there is no file {path} with recorded paths")
        try:
            frame = readers[path.suffix](path)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DataError(f"{path} cannot be read: {error}") from None
        return _wide(frame) if self.form == "wide" else _long(frame, self.instruments)

    def __getstate__(self) -> dict[str, Any]:
        """The settings alone: what was read is read again elsewhere."""
        return {part.name: getattr(self, part.name) for part in fields(self)}


def _check_rows(rows: Any) -> None:
    """Refuse what is no span of paths."""
    if not isinstance(rows, list | tuple) or len(rows) != 2 or not all(_is_whole(row) for row in rows):
        raise ConfigError(
            f"`rows` must be two whole numbers, the first path and the one after the last, such as (0, 1000), got "
            f"{rows!r}"
        )


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _wide(frame: pl.DataFrame) -> tuple[np.ndarray, np.ndarray, list[str]]:
    names = [str(name) for name in frame["path"]] if "path" in frame.columns else list(map(str, range(len(frame))))
    columns = [name for name in frame.columns if name != "path"]
    try:
        times = np.array([float(name) for name in columns])
        prices = frame.select(pl.col(columns).cast(pl.Float64)).to_numpy()
    except (ValueError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"the wide form has a column `path` and columns called by their time in years, with numbers: {error}"
        ) from None
    return times, prices[..., None], names


def _long(frame: pl.DataFrame, instruments: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    for name in ("path", "time", *instruments):
        if name not in frame.columns:
            raise unknown_column(name, frame.columns)
    try:
        frame = frame.select("path", pl.col("time", *instruments).cast(pl.Float64))
    except pl.exceptions.PolarsError as error:
        raise DataError(f"the long form has times in years and prices, which are numbers: {error}") from None
    twice = frame.select("path", "time").is_duplicated()
    if twice.any():
        path, time = frame.select("path", "time").filter(twice).row(0)
        raise DataError(f"each path must have one row for each time, path {path} has several at {time:g} years")
    names, times = frame["path"].unique(maintain_order=True), frame["time"].unique().sort()
    full = names.to_frame().join(times.to_frame(), how="cross").join(frame, on=["path", "time"], how="left")
    shape = (len(names), len(times), len(instruments))
    prices = full.select(*instruments).to_numpy().reshape(shape)
    return times.to_numpy(), prices, [str(name) for name in names]


def _check_gaps(times: np.ndarray, most: float | None) -> None:
    """Refuse times of which one is missing on all paths."""
    periods = np.diff(times)
    ratio = periods / np.median(periods)
    if most is not None and ratio.max() > most * (1.0 + 1e-6):
        place = int(ratio.argmax())
        raise DataError(
            f"recorded times must have no gap: none of the paths has a price between {times[place]:.10g} and "
            f"{times[place + 1]:.10g} years, {ratio[place]:.3g} times the median period; mend it, or set `max_gap`, "
            f"which is {most:g}, to null where the dates are meant to lie so"
        )


def _check_record(times: np.ndarray, prices: np.ndarray, names: list[str], instruments: tuple[str, ...]) -> None:
    """Refuse what is no record of prices, by the name of the path and the time."""
    if len(times) < 2 or not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        raise DataError(f"recorded times must be ascending numbers in years, at least two, got {times.tolist()}")
    if not len(prices):
        raise DataError("there is no recorded path")
    for what, bad in (("a gap", ~np.isfinite(prices)), ("a price that is not above 0", ~(prices > 0))):
        if bad[..., : 1 if what != "a gap" else None].any():
            places = np.argwhere(bad[..., :1] if what != "a gap" else bad)
            path, date, column = places[0]
            raise DataError(
                f"recorded paths must be complete and above 0, path {names[path]} has {what} at {times[date]:g} years "
                f"({instruments[column]}), one of {len(places)}; mend it, or leave the path out"
            )
