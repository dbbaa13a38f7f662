"""Where a splitter finds the times of the samples, and the form it works on: rows sorted by decision time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np

from qfml.errors import SplitError
from qfml.splits.offsets import INT64_MAX, Offset, parse_size, shift

__all__ = ["Timed", "Timeline"]

NO_TIME = (
    "no times to split by: pass a TimeDataset (anything with attributes `time` and `label_end`), a DataFrame with a "
    "DatetimeIndex, or `time=` and `label_end=` (in scikit-learn through metadata routing, switched on with "
    "sklearn.set_config(enable_metadata_routing=True))"
)
NO_LABEL_END = (
    "no label ends to purge by: pass `label_end=`, or set `label_horizon` on the splitter (a count of timestamps, or a "
    'length of time such as "5D")'
)
NANOSECOND_YEARS = np.array(["1678-01-01", "2262-01-01"], dtype="datetime64[s]")


@runtime_checkable
class Timed(Protocol):
    """What a splitter needs to know of a data set: per sample, when it decides and when its label is known.

    A sample's label interval is `(time, label_end]`, its feature window `[window_start, time]`. An optional attribute
    `window_start` is read too. All are one-dimensional: datetimes, or integers or floats of one unit.
    """

    time: Any
    label_end: Any


@dataclass(frozen=True, eq=False)
class Timeline:
    """The times of all samples, sorted by decision time; "position" is a place in that order, "row" one in the input.

    Attributes:
        time: (N,) int64 nanoseconds or the user's numbers, ascending.
        label_end: (N,) the moment each label is known, in the order of `time`.
        window_start: (N,) the earliest information of each sample's features, or None where that is `time` itself.
        order: (N,) the row at each position, or None where the rows came sorted.
        stamps: (T,) the distinct times.
        first: (T + 1,) the first position of each stamp, then N; None where every sample has a stamp of its own.
        is_datetime: whether the numbers are nanoseconds since 1970.
    """

    time: np.ndarray
    label_end: np.ndarray
    window_start: np.ndarray | None
    order: np.ndarray | None
    stamps: np.ndarray
    first: np.ndarray | None
    is_datetime: bool

    @classmethod
    def of(
        cls,
        data: Any = None,
        *,
        time: Any = None,
        label_end: Any = None,
        window_start: Any = None,
        label_horizon: Any = None,
    ) -> Timeline:
        """Read the times of `data`; what is passed by keyword comes first.

        Raises:
            SplitError: if there are no times, they are malformed, or a sample breaks
                `window_start <= time <= label_end`.
        """
        found_time, found_end, found_start = _times_in(data)
        time = found_time if time is None else time
        label_end = found_end if label_end is None else label_end
        window_start = found_start if window_start is None else window_start
        if time is None:
            raise SplitError(NO_TIME)
        if label_end is None and label_horizon is None:
            raise SplitError(NO_LABEL_END)
        if label_end is not None and label_horizon is not None:
            raise SplitError("the label ends are given twice: drop `label_horizon`, or do not pass `label_end`")
        times, is_datetime = _as_numbers("time", time)
        _check_length(data, times)
        ends = None if label_end is None else _alike("label_end", label_end, times, is_datetime)
        starts = None if window_start is None else _alike("window_start", window_start, times, is_datetime)
        return cls._sorted(times, ends, starts, is_datetime, label_horizon)

    @classmethod
    def _sorted(
        cls,
        time: np.ndarray,
        label_end: np.ndarray | None,
        window_start: np.ndarray | None,
        is_datetime: bool,
        label_horizon: Any,
    ) -> Timeline:
        order = None
        if np.any(time[1:] < time[:-1]):
            order = np.argsort(time)
            time = time[order]
        first, stamps = _stamps(time)
        if label_end is None:
            horizon = parse_size("label_horizon", label_horizon)
            label_end = _ends_after(horizon, time, stamps, first, is_datetime)
        elif order is not None:
            label_end = label_end[order]
        if window_start is not None and order is not None:
            window_start = window_start[order]
        _check_order("label_end", "before", label_end < time, order)
        if window_start is not None:
            _check_order("window_start", "after", window_start > time, order)
            if np.array_equal(window_start, time):
                window_start = None
        return cls(time, label_end, window_start, order, stamps, first, is_datetime)

    def part(self, rows: np.ndarray) -> Timeline:
        """The timeline of some rows only, numbered by their place among those rows in ascending order."""
        chosen = np.zeros(len(self), dtype=bool)
        chosen[rows] = True
        positions = np.flatnonzero(chosen if self.order is None else chosen[self.order])
        place = np.cumsum(chosen) - 1
        time = self.time[positions]
        first, stamps = _stamps(time)
        return Timeline(
            time=time,
            label_end=self.label_end[positions],
            window_start=None if self.window_start is None else self.window_start[positions],
            order=None if self.order is None else place[self.order[positions]],
            stamps=stamps,
            first=first,
            is_datetime=self.is_datetime,
        )

    def __len__(self) -> int:
        return self.time.size

    @property
    def n_stamps(self) -> int:
        """The number of distinct times."""
        return self.stamps.size

    @cached_property
    def latest_end_so_far(self) -> np.ndarray:
        """At each position the latest `label_end` up to it: ascending, so that it can be searched."""
        return np.maximum.accumulate(self.label_end)

    @cached_property
    def earliest_start_from_here(self) -> np.ndarray:
        """At each position the earliest `window_start` from it on: ascending, so that it can be searched."""
        starts = self.time if self.window_start is None else self.window_start
        return np.minimum.accumulate(starts[::-1])[::-1]

    def position(self, stamp: int) -> int:
        """The first position of a stamp; N for the stamp after the last."""
        return stamp if self.first is None else int(self.first[stamp])

    @cached_property
    def n_at_stamp(self) -> np.ndarray:
        """The number of samples at each stamp."""
        return np.ones(self.time.size, dtype=np.int64) if self.first is None else np.diff(self.first)

    def rows(self, positions: Iterable[slice | np.ndarray]) -> np.ndarray:
        """The row ids at disjoint positions that are given in ascending pieces: int64, ascending."""
        pieces = [piece for piece in positions if not isinstance(piece, slice) or piece.stop > piece.start]
        if self.order is None:
            return as_positions(pieces)
        chosen = np.zeros(self.time.size, dtype=bool)
        for piece in pieces:
            chosen[self.order[piece]] = True
        return np.flatnonzero(chosen)

    def shown(self, time: Any) -> str:
        """A time as a reader would write it."""
        if not self.is_datetime:
            return str(time)
        text = str(np.datetime64(int(time), "ns"))
        return text.removesuffix("T00:00:00.000000000").removesuffix(".000000000")


def as_positions(pieces: Sequence[slice | np.ndarray]) -> np.ndarray:
    """The positions of ascending, disjoint pieces as one int64 array, made with a single allocation."""
    sizes = [piece.stop - piece.start if isinstance(piece, slice) else piece.size for piece in pieces]
    positions = np.arange(sum(sizes))
    filled = 0
    for piece, size in zip(pieces, sizes):
        if isinstance(piece, slice):
            positions[filled : filled + size] += piece.start - filled
        else:
            positions[filled : filled + size] = piece
        filled += size
    return positions


def _stamps(time: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """The first position of each distinct time (see `Timeline.first`), and the distinct times of ascending ones."""
    is_new = time[1:] != time[:-1]
    if is_new.all():
        return None, time
    first = np.concatenate(([0], np.flatnonzero(is_new) + 1, [time.size]))
    return first, time[first[:-1]]


def _times_in(data: Any) -> tuple[Any, Any, Any]:
    """The (time, label_end, window_start) that `data` carries, None for what it does not."""
    if hasattr(data, "iloc"):  # pandas: a column that happens to be named `time` is a feature, only the index counts
        return _times_of_index(data.index), None, None
    return tuple(getattr(data, name, None) for name in ("time", "label_end", "window_start"))  # pyright: ignore[reportReturnType]


def _times_of_index(index: Any) -> Any:
    levels = [index.get_level_values(i) for i in range(index.nlevels)]
    times = [level for level in levels if str(level.dtype).startswith("datetime64")]
    if len(times) > 1:
        raise SplitError("the index has more than one level of datetimes; pass `time=` to say which one counts")
    return times[0] if times else None


def _as_numbers(name: str, values: Any) -> tuple[np.ndarray, bool]:
    """Times as int64 nanoseconds (True) or as plain int64 or float64 (False)."""
    array = np.asarray(values)
    if array.dtype == object:
        # a pandas index with a time zone, or datetime objects: both mean instants, which we keep in UTC
        try:
            array = np.asarray(values, dtype="datetime64[ns]")
        except (ValueError, TypeError) as error:
            raise SplitError(f"`{name}` must hold datetimes or numbers: {error}") from None
    if array.ndim != 1:
        raise SplitError(f"`{name}` must be one-dimensional, got the shape {array.shape}")
    if array.size == 0:
        raise SplitError(f"`{name}` is empty: there is nothing to split")
    if array.dtype.kind == "M":
        return _as_nanoseconds(name, array), True
    if array.dtype.kind == "u" and array.max() > INT64_MAX:
        raise SplitError(f"`{name}` holds integers beyond 64 bits")
    if array.dtype.kind in "iu":
        return array.astype(np.int64, copy=False), False
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise SplitError(f"`{name}` has {np.count_nonzero(~np.isfinite(array))} values that are NaN or infinite")
        return array.astype(np.float64, copy=False), False
    raise SplitError(f"`{name}` must hold datetimes, integers or floats, got the dtype {array.dtype}")


def _as_nanoseconds(name: str, array: np.ndarray) -> np.ndarray:
    # NaT is the smallest int64, so the minimum finds it without a pass of its own
    if np.isnat(array.min()):
        raise SplitError(f"`{name}` has {np.count_nonzero(np.isnat(array))} missing values (NaT)")
    if np.datetime_data(array.dtype) != ("ns", 1):
        limits = array.min().astype("datetime64[s]"), array.max().astype("datetime64[s]")
        if limits[0] < NANOSECOND_YEARS[0] or limits[1] >= NANOSECOND_YEARS[1]:
            raise SplitError(f"`{name}` must lie in the years 1678 to 2261, got {limits[0]} to {limits[1]}")
        array = array.astype("datetime64[ns]")
    return np.ascontiguousarray(array).view(np.int64)


def _alike(name: str, values: Any, times: np.ndarray, is_datetime: bool) -> np.ndarray:
    """Read `label_end` or `window_start` and check that they fit `time`."""
    array, datetimes = _as_numbers(name, values)
    if datetimes != is_datetime:
        kinds = "datetimes" if is_datetime else "plain numbers", "datetimes" if datetimes else "plain numbers"
        raise SplitError(f"`time` holds {kinds[0]} but `{name}` holds {kinds[1]}; both must be of one kind")
    if array.size != times.size:
        raise SplitError(f"`time` has {times.size} values but `{name}` has {array.size}")
    if array.dtype != times.dtype:
        integers = array if array.dtype == np.int64 else times
        if max(abs(int(integers.max())), abs(int(integers.min()))) > 2**53:
            raise SplitError(f"`time` is {times.dtype} and `{name}` is {array.dtype}: comparing them would round")
    return array


def _check_order(name: str, relation: str, broken: np.ndarray, order: np.ndarray | None) -> None:
    if not broken.any():
        return
    positions = np.flatnonzero(broken)
    rows = np.sort(positions if order is None else order[positions])[:5].tolist()
    raise SplitError(
        f"`{name}` must not be {relation} `time`, but it is in {positions.size} of {broken.size} samples; the first "
        f"rows: {rows}"
    )


def _check_length(data: Any, times: np.ndarray) -> None:
    shape = getattr(data, "shape", None)
    n_rows = shape[0] if shape else len(data) if hasattr(data, "__len__") else times.size
    if n_rows != times.size:
        raise SplitError(f"the data have {n_rows} rows but `time` has {times.size} values")


def _ends_after(
    horizon: int | Offset, time: np.ndarray, stamps: np.ndarray, first: np.ndarray | None, is_datetime: bool
) -> np.ndarray:
    """The label ends of a fixed horizon: so much later, or at the so many-th later timestamp."""
    if isinstance(horizon, Offset):
        return shift(time, horizon, is_datetime=is_datetime)
    if horizon >= stamps.size:
        raise SplitError(f"`label_horizon` is {horizon} timestamps, but the data have only {stamps.size}")
    # The last labels end after the data. Any moment after the last stamp gives the same folds.
    beyond = stamps[-1] + 1 if stamps.dtype == np.int64 else np.nextafter(stamps[-1], np.inf)
    ends = np.concatenate((stamps[horizon:], np.full(horizon, beyond)))
    return ends if first is None else np.repeat(ends, np.diff(first))
