r"""Which labels overlap: the bars that each label covers, and how many labels cover each bar.

A label is known over the half-open interval `(time, label_end]`. Concurrency is counted on *bars*, the distinct moments
at which something is known: a bar $s$ belongs to a label if $time < s \le label\_end$, and $c_s$ is the number of
labels of the same asset that it belongs to. By default the bars of an asset are the distinct values of its `time` and
`label_end`: where every row is a sample, these are its rows. Where samples are only some of the rows (events), pass the
rows themselves as `Bars`, or the stretches between samples count as one bar each. Labels of different assets never
overlap: they do not depend on the same return.

Reference: Lopez de Prado (2018), "Advances in Financial Machine Learning", chapter 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from qfml.data.feature_base import check_source, number
from qfml.errors import DataError

__all__ = ["Bars", "Spans", "concurrency", "label_spans"]

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Bars:
    """The moments on which overlaps are counted: all rows of the data, of which the samples may be only some.

    Args:
        time: moment of each bar, shape (n_bars,), in any order.
        group: asset of each bar, named as in the samples; None for a single series.
        returns: simple return from the bar to the next bar of its asset, shape (n_bars,), nan where not known. Only
            return attribution needs it.
    """

    time: Array
    group: Array | None = None
    returns: Array | None = None

    @classmethod
    def from_frame(
        cls, frame: pl.DataFrame, *, time: str = "time", group: str | None = None, price: str = "close"
    ) -> Bars:
        """The bars of a frame of one row per (group, time), sorted by group, then time.

        Example:
            >>> frame = pl.DataFrame({"time": [0, 1, 2], "close": [100.0, 110.0, 99.0]})
            >>> Bars.from_frame(frame).returns.round(12).tolist()
            [0.1, -0.1, nan]
        """
        check_source(frame, (price,), time=time, group=group, needed_by="bars")
        close = number(price)
        ahead = (close.shift(-1) / close - 1).fill_null(float("nan"))
        returns = frame.select(ahead if group is None else ahead.over(group)).to_series().to_numpy()
        return cls(frame[time].to_numpy(), None if group is None else frame[group].to_numpy(), returns)


@dataclass(frozen=True, eq=False)
class Spans:
    """Which bars each label covers: `start[i] <= b < end[i]` in the bars' order, which is by asset, then time.

    Attributes:
        start: first bar of each label, shape (N,).
        end: one past its last bar, shape (N,).
        n_bars: number of bars.
    """

    start: Array
    end: Array
    n_bars: int

    @property
    def length(self) -> Array:
        """Bars in each label, shape (N,)."""
        return self.end - self.start

    @property
    def count(self) -> Array:
        """Labels on each bar, shape (n_bars,)."""
        opened = np.bincount(self.start, minlength=self.n_bars + 1) - np.bincount(self.end, minlength=self.n_bars + 1)
        return np.cumsum(opened)[: self.n_bars]

    def sums(self, values: Array) -> Array:
        """Sum over each label's bars of values on the bars."""
        cumulative = np.concatenate(([0.0], np.cumsum(values)))
        return cumulative[self.end] - cumulative[self.start]


def label_spans(time: Any, label_end: Any, *, group: Any = None, bars: Bars | None = None) -> Spans:
    """The bars that each label covers, those in `(time, label_end]` of its asset."""
    keys = Keys(time, label_end, group, bars)
    grid = np.unique(np.concatenate((keys.time, keys.label_end)) if bars is None else keys.bars)
    start, end = (np.searchsorted(grid, key, side="right") for key in (keys.time, keys.label_end))
    if (end <= start).any():
        row = int(np.argmax(end <= start))
        raise DataError(
            f"{(end <= start).sum()} labels cover no bar, first row {row}: ({time[row]}, {label_end[row]}]; "
            "pass bars of the same assets and at least as fine as the labels"
        )
    return Spans(start, end, len(grid))


def concurrency(time: Any, label_end: Any, *, group: Any = None, bars: Bars | None = None) -> Array:
    r"""Number of labels that cover each bar, $c_s$.

    Args:
        time: decision times, shape (N,): datetimes or numbers, in any order.
        label_end: ends of the labels, shape (N,), each after its time.
        group: asset of each sample, shape (N,).
        bars: the bars, if they are not the distinct times and label ends.

    Returns:
        Int64, shape (n_bars,), the bars by asset, then time.

    References:
        Lopez de Prado (2018), section 4.3.

    Example:
        >>> concurrency([0, 2, 4], [3, 4, 6], bars=Bars(np.arange(1, 7))).tolist()
        [1, 1, 2, 1, 1, 1]
    """
    return label_spans(time, label_end, group=group, bars=bars).count


class Keys:
    """(asset, time) of samples and bars as single integers that sort by asset, then time."""

    def __init__(self, time: Any, label_end: Any, group: Any, bars: Bars | None) -> None:
        times, ends = np.asarray(time), np.asarray(label_end)
        bar_times = times[:0] if bars is None else np.asarray(bars.time)
        n = len(times)
        if ends.shape != (n,) or times.shape != (n,) or (group is not None and np.shape(group) != (n,)):
            raise DataError(
                f"`time`, `label_end` and `group` must have one shape (N,), got {times.shape}, {ends.shape}"
                + ("" if group is None else f", {np.shape(group)}")
            )
        if n == 0:
            raise DataError("there are no labels: `time` is empty")
        late = ~(ends > times)  # true for a missing time too
        if late.any():
            row = int(np.argmax(late))
            raise DataError(
                f"`label_end` must lie after `time`: {late.sum()} of {n} labels break this, "
                f"first row {row}: ({times[row]}, {ends[row]}]"
            )
        moments = np.unique(np.concatenate((times, ends, bar_times)))
        codes, bar_codes = _group_codes(group, n, bars)
        key = lambda code, when: code * len(moments) + np.searchsorted(moments, when)  # noqa: E731
        self.time, self.label_end = key(codes, times), key(codes, ends)
        self.bars = key(bar_codes, bar_times)


def _group_codes(group: Any, n: int, bars: Bars | None) -> tuple[Array, Array]:
    """Assets of samples and bars as integers on a common scale."""
    n_bars = 0 if bars is None else len(bars.time)
    if group is None and (bars is None or bars.group is None):
        return np.zeros(n, dtype=np.int64), np.zeros(n_bars, dtype=np.int64)
    if group is None or (bars is not None and bars.group is None):
        raise DataError("`group` must be given for both the samples and the bars, or for neither")
    samples = np.asarray(group)
    of_bars = samples[:0] if bars is None else np.asarray(bars.group)
    unknown = [] if bars is None else sorted({*samples.astype(str).tolist()} - {*of_bars.astype(str).tolist()})
    if unknown:
        raise DataError(f"the bars lack {len(unknown)} assets of the samples, first {unknown[0]!r}: name them alike")
    _, codes = np.unique(np.concatenate((samples.astype(str), of_bars.astype(str))), return_inverse=True)
    return codes[:n].astype(np.int64), codes[n:].astype(np.int64)
