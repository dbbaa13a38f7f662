"""Features of one asset's own prices, volumes and calendar."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi
from typing import ClassVar, Literal

import numpy as np
import polars as pl

from qfml.data.feature_base import Feature, by_group, check_rows, name_of, number, weighted_sum
from qfml.errors import ConfigError, DataError

__all__ = [
    "RSI",
    "Calendar",
    "LogReturns",
    "Momentum",
    "MovingAverageDistance",
    "Returns",
    "VolumeRatio",
]


@dataclass(frozen=True)
class Returns(Feature):
    r"""Simple returns $P_t / P_{t-h} - 1$ over each horizon $h$, decimal, not annualised.

    Args:
        horizons: rows back, one column each.
        price: name of the price column.

    Example:
        >>> frame = pl.DataFrame({"time": [0, 1, 2], "close": [100.0, 110.0, 121.0]})
        >>> Returns((1, 2)).add_to(frame, time="time", group=None)["return_2"].round(12).to_list()
        [None, None, 0.21]
    """

    kind: ClassVar[str] = "returns"
    horizons: tuple[int, ...]
    price: str = "close"

    def __post_init__(self) -> None:
        _check_horizons(self.horizons)

    @property
    def names(self) -> tuple[str, ...]:
        """`return_1`, `return_5`, ..."""
        return tuple(name_of(f"return_{h}", self.price, "close") for h in self.horizons)

    @property
    def lookback(self) -> int:
        """The longest horizon."""
        return max(self.horizons)

    @property
    def columns(self) -> tuple[str, ...]:
        """The price."""
        return (self.price,)

    def values(self, frame: pl.DataFrame, *, time: str, group: str | None) -> pl.DataFrame:
        """Price over the price `h` rows back, less one."""
        price = number(self.price)
        return by_group(frame, group, {n: price / price.shift(h) - 1 for n, h in zip(self.names, self.horizons)})


@dataclass(frozen=True)
class LogReturns(Feature):
    r"""Log returns $\log(P_t / P_{t-h})$ over each horizon $h$, not annualised.

    Args:
        horizons: rows back, one column each.
        price: name of the price column.

    Example:
        >>> frame = pl.DataFrame({"time": [0, 1, 2], "close": [100.0, 110.0, 121.0]})
        >>> LogReturns((1,)).add_to(frame, time="time", group=None)["log_return_1"].round(6).to_list()
        [None, 0.09531, 0.09531]
    """

    kind: ClassVar[str] = "log_returns"
    horizons: tuple[int, ...]
    price: str = "close"

    def __post_init__(self) -> None:
        _check_horizons(self.horizons)

    @property
    def names(self) -> tuple[str, ...]:
        """`log_return_1`, `log_return_5`, ..."""
        return tuple(name_of(f"log_return_{h}", self.price, "close") for h in self.horizons)

    @property
    def lookback(self) -> int:
        """The longest horizon."""
        return max(self.horizons)

    @property
    def columns(self) -> tuple[str, ...]:
        """The price."""
        return (self.price,)

    def values(self, frame: pl.DataFrame, *, time: str, group: str | None) -> pl.DataFrame:
        """Log of the price over the price `h` rows back."""
        price = number(self.price)
        return by_group(frame, group, {n: (price / price.shift(h)).log() for n, h in zip(self.names, self.horizons)})


@dataclass(frozen=True)
class Momentum(Feature):
    r"""Return over a long window that leaves out the latest rows: $P_{t-s} / P_{t-n} - 1$, decimal.

    Args:
        window: n, rows back to the start.
        skip: s, latest rows left out (short-term reversal); `Momentum(252, skip=21)` is "12-1" on daily bars.
        price: name of the price column.

    References:
        Jegadeesh and Titman (1993), "Returns to buying winners and selling losers", J. Finance 48.

    Example:
        >>> frame = pl.DataFrame({"time": [0, 1, 2], "close": [100.0, 110.0, 121.0]})
        >>> Momentum(2, skip=1).add_to(frame, time="time", group=None)["momentum_2_1"].round(12).to_list()
        [None, None, 0.1]
    """

    kind: ClassVar[str] = "momentum"
    window: int
    skip: int = 0
    price: str = "close"

    def __post_init__(self) -> None:
        check_rows("skip", self.skip, least=0)
        if self.window <= self.skip:
            raise ConfigError(f"`window` must be longer than `skip`, got {self.window} and {self.skip}")

    @property
    def names(self) -> tuple[str, ...]:
        """`momentum_252_21`."""
        return (name_of(f"momentum_{self.window}_{self.skip}", self.price, "close"),)

    @property
    def lookback(self) -> int:
        """The window."""
        return self.window

    @property
    def columns(self) -> tuple[str, ...]:
        """The price."""
        return (self.price,)

    def values(self, frame: pl.DataFrame, *, time: str, group: str | None) -> pl.DataFrame:
        """Price `skip` rows back over the price `window` rows back, less one."""
        price = number(self.price)
        return by_group(frame, group, {self.names[0]: price.shift(self.skip) / price.shift(self.window) - 1})


@dataclass(frozen=True)
class MovingAverageDistance(Feature):
    r"""Distance of the price from its moving average: $P_t / \bar P_{t,n} - 1$, the current row included.

    Args:
        window: n, rows of the average.
        price: name of the price column.

    Example:
        >>> frame = pl.DataFrame({"time": [0, 1], "close": [90.0, 110.0]})
        >>> feature = MovingAverageDistance(2)
        >>> feature.add_to(frame, time="time", group=None)["moving_average_distance_2"].round(12).to_list()
        [None, 0.1]
    """

    kind: ClassVar[str] = "moving_average_distance"
    window: int
    price: str = "close"

    def __post_init__(self) -> None:
        check_rows("window", self.window, least=2)

    @property
    def names(self) -> tuple[str, ...]:
        """`moving_average_distance_50`."""
        return (name_of(f"moving_average_distance_{self.window}", self.price, "close"),)

    @property
    def lookback(self) -> int:
        """The rest of the window."""
        return self.window - 1

    @property
    def columns(self) -> tuple[str, ...]:
        """The price."""
        return (self.price,)

    def values(self, frame: pl.DataFrame, *, time: str, group: str | None) -> pl.DataFrame:
        """Price over its rolling mean, less one."""
        price = number(self.price)
        return by_group(frame, group, {self.names[0]: price / price.rolling_mean(self.window) - 1})


@dataclass(frozen=True)
class VolumeRatio(Feature):
    r"""Volume over its moving average $V_t / \bar V_{t,n}$, the current row included; null where it is 0/0.

    Args:
        window: n, rows of the average.
        volume: name of the volume column.

    Example:
        >>> frame = pl.DataFrame({"time": [0, 1], "volume": [100, 300]})
        >>> VolumeRatio(2).add_to(frame, time="time", group=None)["volume_ratio_2"].to_list()
        [None, 1.5]
    """

    kind: ClassVar[str] = "volume_ratio"
    window: int
    volume: str = "volume"

    def __post_init__(self) -> None:
        check_rows("window", self.window, least=2)

    @property
    def names(self) -> tuple[str, ...]:
        """`volume_ratio_20`."""
        return (name_of(f"volume_ratio_{self.window}", self.volume, "volume"),)

    @property
    def lookback(self) -> int:
        """The rest of the window."""
        return self.window - 1

    @property
    def columns(self) -> tuple[str, ...]:
        """The volume."""
        return (self.volume,)

    def values(self, frame: pl.DataFrame, *, time: str, group: str | None) -> pl.DataFrame:
        """Volume over its rolling mean."""
        volume = number(self.volume)
        traded = volume.rolling_max(self.window) > 0
        return by_group(frame, group, {self.names[0]: pl.when(traded).then(volume / volume.rolling_mean(self.window))})


@dataclass(frozen=True)
class RSI(Feature):
    r"""Wilder's relative strength index over a finite memory, between 0 and 100; 50 where no price moved.

    $100\, G / (G + L)$ with $G$ and $L$ the smoothed gains and losses of the price changes. Wilder's smoothing
    $A_t = ((n-1) A_{t-1} + x_t) / n$ remembers every price since the beginning, so its value depends on where the data
    happen to start. Here each row starts the recursion anew `memory` changes ago, in his way: with the plain mean
    of the first n changes. The look-back is then exact, and with m the memory a fraction $(1 - 1/n)^{m-n}$ of the
    weight (0.009 % for n = 14, m = 140) lies on that start. `memory = period` is Cutler's index (plain means).

    Args:
        period: n, Wilder's smoothing.
        memory: m, price changes read; ten periods if omitted.
        price: name of the price column.

    References:
        Wilder (1978), "New Concepts in Technical Trading Systems", section VI.

    Example:
        >>> frame = pl.DataFrame({"time": [0, 1, 2], "close": [100.0, 103.0, 102.0]})
        >>> RSI(period=2, memory=2).add_to(frame, time="time", group=None)["rsi_2"].to_list()
        [None, None, 75.0]
    """

    kind: ClassVar[str] = "rsi"
    period: int = 14
    memory: int | None = None
    price: str = "close"

    def __post_init__(self) -> None:
        check_rows("period", self.period)
        if self.memory is not None:
            check_rows("memory", self.memory, least=self.period)

    @property
    def names(self) -> tuple[str, ...]:
        """`rsi_14`, with the memory if it is not the usual one."""
        memory = "" if self.memory is None or self.memory == self.period else f"_{self.memory}"
        return (name_of(f"rsi_{self.period}{memory}", self.price, "close"),)

    @property
    def lookback(self) -> int:
        """One price more than changes, the row's own not counted."""
        return 10 * self.period if self.memory is None else self.memory

    @property
    def columns(self) -> tuple[str, ...]:
        """The price."""
        return (self.price,)

    def values(self, frame: pl.DataFrame, *, time: str, group: str | None) -> pl.DataFrame:
        """Smoothed gains as a percentage of smoothed gains and losses."""
        n, keep = self.period, 1 - 1 / self.period
        after = keep ** np.arange(self.lookback - n)[::-1] / n  # one step of the recursion per change, latest last
        weights = np.concatenate((np.full(n, keep ** (self.lookback - n) / n), after))
        change = number(self.price).diff()
        gain = weighted_sum(change.clip(lower_bound=0.0), weights.tolist())
        loss = weighted_sum((-change).clip(lower_bound=0.0), weights.tolist())
        return by_group(
            frame, group, {self.names[0]: pl.when(gain + loss == 0).then(50.0).otherwise(100 * gain / (gain + loss))}
        )


Part = Literal["hour", "weekday", "day_of_month", "month"]


@dataclass(frozen=True)
class Calendar(Feature):
    r"""Position of the row's time in the day, week, month or year, on a circle: $\sin 2\pi f$ and $\cos 2\pi f$.

    The fraction f is (hour + minute / 60) / 24, (weekday - 1) / 7 with Monday 1, (day - 1) / (days in the month) and
    (month - 1) / 12, all in the time zone of the column.

    Args:
        parts: any of "hour", "weekday", "day_of_month", "month".

    Example:
        >>> from datetime import date
        >>> frame = pl.DataFrame({"time": [date(2024, 1, 1), date(2024, 4, 1)]})
        >>> Calendar(("month",)).add_to(frame, time="time", group=None)["month_sin"].to_list()
        [0.0, 1.0]
    """

    kind: ClassVar[str] = "calendar"
    parts: tuple[Part, ...] = ("weekday", "month")

    def __post_init__(self) -> None:
        if not self.parts or len(set(self.parts)) < len(self.parts):
            raise ConfigError(f"`parts` must be one or more distinct parts of the calendar, got {self.parts}")

    @property
    def names(self) -> tuple[str, ...]:
        """`weekday_sin`, `weekday_cos`, ..."""
        return tuple(f"{part}_{wave}" for part in self.parts for wave in ("sin", "cos"))

    @property
    def lookback(self) -> int:
        """The row's own time only."""
        return 0

    @property
    def columns(self) -> tuple[str, ...]:
        """None but the time."""
        return ()

    def values(self, frame: pl.DataFrame, *, time: str, group: str | None) -> pl.DataFrame:
        """Sine and cosine of each part."""
        if not frame.schema[time].is_temporal():
            raise DataError(f"feature `calendar` needs dates or datetimes in `{time}`, got {frame.schema[time]}")
        moment = pl.col(time)
        if "hour" in self.parts and frame.schema[time] == pl.Date:
            raise DataError(
                f"feature `calendar` cannot take the hour of `{time}`: it holds dates without a time of day"
            )
        waves: list[pl.Expr] = []
        for part in self.parts:
            angle = 2 * pi * _fraction(moment, part)
            waves += [angle.sin(), angle.cos()]
        return frame.select(wave.alias(name) for name, wave in zip(self.names, waves))


def _fraction(moment: pl.Expr, part: Part) -> pl.Expr:
    """How much of the day, week, month or year has passed, in [0, 1)."""
    if part == "hour":
        return (moment.dt.hour() + moment.dt.minute() / 60) / 24
    if part == "weekday":
        return (moment.dt.weekday() - 1) / 7
    if part == "day_of_month":
        return (moment.dt.day() - 1) / moment.dt.month_end().dt.day()
    return (moment.dt.month() - 1) / 12


def _check_horizons(horizons: tuple[int, ...]) -> None:
    if not horizons or len(set(horizons)) < len(horizons):
        raise ConfigError(f"`horizons` must be one or more distinct numbers of rows, got {horizons}")
    for horizon in horizons:
        check_rows("horizons", horizon)
