"""Lengths of time as they are written in a config ("5Y", "63B", "1%", 21) and how they are added to times.

Times are plain numbers here: int64 nanoseconds since 1970 where the data carry datetimes, else the user's own integers
or floats.
"""

from __future__ import annotations

import datetime
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from qfml.errors import SplitError

__all__ = ["Embargo", "Offset", "Share", "Size", "canonical", "parse_embargo", "parse_size", "shift"]

Size = int | str | datetime.timedelta | np.timedelta64
"""A number of timestamps, or a length of time: "5Y", "6M", "2W", "30D", "63B" (business days), "4h", "2.5 units"."""

Embargo = int | float | str | datetime.timedelta | np.timedelta64
"""Like `Size`, or a share of all timestamps: "1%", which may also be written 0.01."""

NANOSECONDS = {
    "W": 7 * 86_400_000_000_000,
    "D": 86_400_000_000_000,
    "h": 3_600_000_000_000,
    "min": 60_000_000_000,
    "s": 1_000_000_000,
    "ms": 1_000_000,
    "us": 1_000,
    "ns": 1,
}
MONTHS = {"Y": 12, "M": 1}
UNITS = (*MONTHS, "B", *NANOSECONDS, "units")
ALIASES = {"y": "Y", "w": "W", "d": "D", "unit": "units"}
FIRST_YEAR, LAST_YEAR = 1678, 2261  # the whole years that int64 nanoseconds can hold
DAY = NANOSECONDS["D"]
INT64_MAX = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Offset:
    """A length of time: `count` times `unit`, one of Y, M, W, D, B, h, min, s, ms, us, ns, or units (plain numbers)."""

    count: int | float
    unit: str

    def __mul__(self, times: int) -> Offset:
        return Offset(self.count * times, self.unit)

    def __add__(self, other: Offset) -> Offset:
        if self.unit != other.unit:
            raise ValueError("offsets of different units cannot be added")  # a defect of ours, callers check
        return Offset(self.count + other.count, self.unit)

    def __str__(self) -> str:
        return f"{self.count:g} units" if self.unit == "units" else f"{self.count:g}{self.unit}"


@dataclass(frozen=True)
class Share:
    """A share of all distinct timestamps, as a fraction in (0, 1)."""

    fraction: float

    def of(self, n_times: int) -> int:
        """The share as a count, rounded up, so that an embargo that was asked for never vanishes."""
        return math.ceil(round(self.fraction * n_times, 9))  # 0.07 * 100 is 7.000000000000001


def canonical(value: Any) -> Any:
    """A timedelta as the string a config would hold; anything else as it is."""
    if isinstance(value, np.timedelta64):
        if np.isnat(value):
            raise SplitError("a length of time must not be NaT")
        unit, step = np.datetime_data(value.dtype)
        count = int(value.astype(np.int64)) * step
        names = {"m": "min", "generic": "units"}
        return f"{count} {names[unit]}" if unit in names else f"{count}{unit}"
    if isinstance(value, datetime.timedelta):
        nanoseconds = (value.days * 86_400 + value.seconds) * 10**9 + value.microseconds * 1_000
        nanoseconds += int(getattr(value, "nanoseconds", 0))  # pandas.Timedelta is finer than datetime.timedelta
        unit = next(unit for unit in ("D", "h", "min", "s", "ms", "us", "ns") if nanoseconds % NANOSECONDS[unit] == 0)
        return f"{nanoseconds // NANOSECONDS[unit]}{unit}"
    return value


def parse_size(name: str, value: Any, *, least: int = 1) -> int | Offset:
    """Read a `Size`: a count of timestamps of at least `least`, or an offset (positive unless `least` is 0)."""
    value = canonical(value)
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        if value < least:
            raise SplitError(f"`{name}` must be at least {least}, got {value}")
        return int(value)
    if not isinstance(value, str):
        raise SplitError(f'`{name}` must be a count of timestamps or a length of time such as "30D", got {value!r}')
    match = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", value)
    unit = ALIASES.get(match[2], match[2]) if match else None
    if match is None or unit not in UNITS:
        raise SplitError(
            f"`{name}` must be a number and a unit, one of {', '.join(UNITS)} (B: business days, M: months, "
            f"min: minutes, units: the unit of times that are plain numbers), got {value!r}"
        )
    count = float(match[1]) if "." in match[1] else int(match[1])
    if count < 0 or (count == 0 and least > 0):
        raise SplitError(f"`{name}` must be {'positive' if least else 'at least 0'}, got {value!r}")
    if unit in (*MONTHS, "B") and count != int(count):
        raise SplitError(f"`{name}` in {unit} must be a whole number, got {value!r}")
    return Offset(count, unit)


def parse_embargo(name: str, value: Any) -> int | Offset | Share:
    """Read an `Embargo`: a count, an offset, or a share of all timestamps ("1%" or 0.01)."""
    value = canonical(value)
    percent = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value) if isinstance(value, str) else None
    fraction = float(percent[1]) / 100 if percent else value
    if not isinstance(fraction, (float, np.floating)):
        return parse_size(name, value, least=0)
    if not 0 <= fraction < 1:
        raise SplitError(
            f"`{name}` as a share must lie in [0, 1) or [0%, 100%), got {value!r}; write a whole number for a count"
        )
    return Share(float(fraction)) if fraction else 0


def shift(times: Any, offset: Offset, *, is_datetime: bool, sign: int = 1) -> Any:
    """Add `sign` x `offset` to times (a number or an array of them).

    Months keep the day of the month, cut to the last day of a shorter month (31 January + 1M is 28 or 29 February).
    Business days are Monday to Friday: from a weekend, one business day ahead is Monday and one back is Friday.

    Args:
        times: int64 nanoseconds if `is_datetime`, else int64 or float64 of the user's own unit.
        offset: the length of time.
        is_datetime: whether `times` count nanoseconds.
        sign: +1 or -1.

    Returns:
        The shifted times, of the shape and dtype of `times`.

    Raises:
        SplitError: if the offset's unit does not suit the times, or the result leaves the range of the dtype.
    """
    if is_datetime == (offset.unit == "units"):
        raise SplitError(
            f'"{offset}" is a length in plain numbers, but the times are datetimes; write for example "5D"'
            if is_datetime
            else f'"{offset}" is a length of calendar time, but the times are plain numbers; write "5 units"'
        )
    times = np.asarray(times)
    if offset.count == 0:
        return times[()]
    if offset.unit in MONTHS:
        return _shift_months(times, sign * int(offset.count) * MONTHS[offset.unit], offset)[()]
    if offset.unit == "B":
        return _shift_business_days(times, sign * int(offset.count), offset)[()]
    length = offset.count * NANOSECONDS.get(offset.unit, 1)
    if np.issubdtype(times.dtype, np.floating):
        return (times + sign * float(length))[()]
    if length != int(length):
        raise SplitError(f'"{offset}" is not a whole number of the units that the times count')
    _check_range(times, sign * int(length), offset)
    return (times + np.int64(sign * int(length)))[()]


def _shift_months(times: np.ndarray, months: int, offset: Offset) -> Any:
    days, in_day = np.divmod(times, DAY)
    dates = days.astype("datetime64[D]")
    month = dates.astype("datetime64[M]")
    shifted = month + np.timedelta64(months, "M")
    years = shifted.astype("datetime64[Y]").astype(np.int64) + 1970
    if times.size and (years.min() < FIRST_YEAR or years.max() > LAST_YEAR):
        raise SplitError(f'"{offset}" leads outside the years {FIRST_YEAR} to {LAST_YEAR} that nanoseconds can hold')
    first = shifted.astype("datetime64[D]")
    month_length = (shifted + np.timedelta64(1, "M")).astype("datetime64[D]") - first
    day_of_month = np.minimum(dates - month.astype("datetime64[D]"), month_length - np.timedelta64(1, "D"))
    return (first + day_of_month).astype(np.int64) * DAY + in_day


def _shift_business_days(times: np.ndarray, days: int, offset: Offset) -> Any:
    _check_range(times, days * 2 * DAY, offset)  # five business days are seven days
    date, in_day = np.divmod(times, DAY)
    roll = "backward" if days > 0 else "forward"
    shifted = np.busday_offset(date.astype("datetime64[D]"), days, roll=roll)
    return shifted.astype(np.int64) * DAY + in_day


def _check_range(times: np.ndarray, length: int, offset: Offset) -> None:
    largest = max(abs(int(times.max())), abs(int(times.min()))) if times.size else 0
    if largest + abs(length) > INT64_MAX:
        raise SplitError(f'"{offset}" leads outside the range of 64-bit times')
