"""Walk-forward splits: train on the past, test on what comes next, move on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from qfml.errors import SplitError
from qfml.splits.base import Plan, Span, Splitter, settle, span_of, whole_number
from qfml.splits.offsets import Embargo, Offset, Size, parse_size, shift
from qfml.splits.timeline import Timeline

__all__ = ["WalkForward"]


class _Bound(NamedTuple):
    """A moment between samples: the first stamp at or after it, and the moment itself where it is known.

    Counting past either end of the data leaves a stamp number out of range and no moment.
    """

    stamp: int
    time: Any


class _Window(NamedTuple):
    """Training and test period of one fold as half-open ranges of stamps."""

    train: tuple[int, int]
    test: tuple[int, int]
    is_complete: bool


@dataclass(frozen=True)
class WalkForward(Splitter):
    """Train on a window of the past, test on the period after it, step forward, to the end of the data.

    Periods are half-open: a test period of "1Y" from 3 January 2005 ends before 3 January 2006. The first one starts
    `train_size` and `gap` after the first timestamp, and all others are counted from its start, so that periods of a
    calendar length abut without drift. The purge takes samples out of the end of the training window; it does not move
    the window.

    Args:
        train_size: length of the training window, or of the first one if `expanding`.
        test_size: length of a test period.
        step: from the start of one test period to the next; `test_size` if not given.
        gap: left out between training window and test period, on top of the purge.
        expanding: keep all history in the training window instead of rolling it.
        max_train_size: the longest an expanding window may grow.
        refit_every: train anew only for every so many-th fold; the folds between reuse its training set.
        drop_last: leave out a last test period that the data do not fill.
        embargo: widens the gap: a training label must be known this much before the first test decision; a count of
            timestamps, a length of time ("5D"), or a share of all timestamps ("1%").
        purge_lookback: purge on the feature windows too, so that no price serves both sides.
        label_horizon: how long after the decision the label is known, where the data do not say.

    Sizes are counts of timestamps or lengths of time: "5Y", "6M", "63B" (business days), "30D", "4h".

    Raises:
        SplitError: if a setting is not valid.

    Example:
        >>> import numpy as np
        >>> days = np.arange("2024-01-01", "2024-01-11", dtype="datetime64[D]")
        >>> for train, test in WalkForward(4, 3).split(time=days, label_end=days + 2):
        ...     print(train, test)
        [0 1 2] [4 5 6]
        [3 4 5] [7 8 9]
        >>> for train, test in WalkForward("4D", "3D", expanding=True).split(time=days, label_end=days + 2):
        ...     print(train, test)
        [0 1 2] [4 5 6]
        [0 1 2 3 4 5] [7 8 9]
    """

    kind: ClassVar[str] = "walk_forward"
    warns_of_lookback: ClassVar[bool] = False  # nothing trains after a test

    train_size: Size
    test_size: Size
    step: Size | None = None
    gap: Size = 0
    expanding: bool = False
    max_train_size: Size | None = None
    refit_every: int = 1
    drop_last: bool = False
    embargo: Embargo = 0
    purge_lookback: bool = False
    label_horizon: Size | None = None

    def __post_init__(self) -> None:
        settle(self, "train_size", "test_size", "step", "gap", "max_train_size")
        parse_size("train_size", self.train_size)
        parse_size("test_size", self.test_size)
        parse_size("gap", self.gap, least=0)
        if self.step is not None:
            parse_size("step", self.step)
        for name in ("expanding", "drop_last"):
            if not isinstance(getattr(self, name), bool):
                raise SplitError(f"`{name}` must be true or false, got {getattr(self, name)!r}")
        if self.max_train_size is not None:
            parse_size("max_train_size", self.max_train_size)
            if not self.expanding:
                raise SplitError(
                    "`max_train_size` limits an expanding window: set expanding=True, or give the length of a rolling "
                    "window as `train_size`"
                )
        whole_number("refit_every", self.refit_every, 1)
        self._check_common()

    def _n_plans(self, timeline: Timeline | None) -> int:
        if timeline is None:
            raise SplitError("the number of walk-forward folds depends on the data: pass what you pass to `split`")
        return len(self._windows(timeline))

    def _plans(self, timeline: Timeline) -> Iterator[Plan]:
        windows = self._windows(timeline)
        for first in range(0, len(windows), self.refit_every):
            together = windows[first : first + self.refit_every]
            tests = [_test_span(timeline, window, first + i) for i, window in enumerate(together)]
            start, stop = (timeline.position(stamp) for stamp in together[0].train)
            # the one training set must respect the feature windows of every test it serves
            first_window = min(test.first_window for test in tests)
            for i, test in enumerate(tests):
                yield Plan([test._replace(first_window=first_window)], start, stop, widens_gap=True, refit=i == 0)

    def _windows(self, timeline: Timeline) -> list[_Window]:
        """The periods of all folds."""
        train_size = parse_size("train_size", self.train_size)
        test_size = parse_size("test_size", self.test_size)
        step = test_size if self.step is None else parse_size("step", self.step)
        gap = parse_size("gap", self.gap, least=0)
        longest = None if self.max_train_size is None else parse_size("max_train_size", self.max_train_size)
        n = timeline.n_stamps
        first_test = _move(timeline, _move(timeline, _Bound(0, timeline.stamps[0]), train_size), gap)
        windows: list[_Window] = []
        reached_end = False
        while not reached_end:
            test_start = _move(timeline, first_test, step * len(windows))
            if test_start.stamp >= n:
                break
            # from the same anchor, so that the end of a period is the start of the next
            together = _sum(step * len(windows), test_size)
            test_stop = _move(timeline, *((test_start, test_size) if together is None else (first_test, together)))
            train_stop = _move(timeline, test_start, gap, sign=-1)
            length = longest if self.expanding else train_size
            train_start = 0 if length is None else _move(timeline, train_stop, length, sign=-1).stamp
            reached_end = test_stop.stamp >= n
            is_complete = test_stop.stamp <= n if isinstance(test_size, int) else test_stop.stamp < n
            if is_complete or not self.drop_last:
                test = (test_start.stamp, min(test_stop.stamp, n))
                windows.append(_Window((max(train_start, 0), max(train_stop.stamp, 0)), test, is_complete))
        if not windows:
            raise SplitError(self._why_none(timeline))
        return windows

    def _why_none(self, timeline: Timeline) -> str:
        first, last = (timeline.shown(stamp) for stamp in (timeline.stamps[0], timeline.stamps[-1]))
        complete = " complete" if self.drop_last else ""
        return (
            f"no fold fits: the data have {timeline.n_stamps} timestamps from {first} to {last}, which leaves no"
            f"{complete} test period of {self.test_size} after training on {self.train_size} (gap {self.gap})"
        )


def _move(timeline: Timeline, bound: _Bound, size: int | Offset, *, sign: int = 1) -> _Bound:
    """Move a bound by a number of stamps or by a length of time."""
    stamps = timeline.stamps
    if isinstance(size, int):
        if size == 0:
            return bound
        stamp = bound.stamp + sign * size
        return _Bound(stamp, stamps[stamp] if 0 <= stamp < stamps.size else None)
    if bound.time is None:  # counted past an end of the data: no length of time leads back
        return bound
    time = shift(bound.time, size, is_datetime=timeline.is_datetime, sign=sign)
    return _Bound(int(np.searchsorted(stamps, time)), time)


def _sum(size: int | Offset, other: int | Offset) -> int | Offset | None:
    """The two lengths as one, None where they are of different kinds."""
    if isinstance(size, int) and isinstance(other, int):
        return size + other
    if isinstance(size, Offset) and isinstance(other, Offset) and size.unit == other.unit:
        return size + other
    return None


def _test_span(timeline: Timeline, window: _Window, number: int) -> Span:
    start, stop = (timeline.position(stamp) for stamp in window.test)
    if stop <= start:
        around = timeline.shown(timeline.stamps[min(window.test[0], timeline.n_stamps - 1)])
        raise SplitError(
            f"fold {number} has no test samples: no timestamp lies in its test period, the next one is {around}; use a "
            f'longer test period, or a count of timestamps (a day may be a holiday; "B" skips weekends only)'
        )
    return span_of(timeline, start, stop)
