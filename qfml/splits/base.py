"""The purge and embargo rule, in the one place where it is written down, and what all splitters share.

The rule. A sample decides at `time`, from information of `[window_start, time]`, and its label is made of what happens
in `(time, label_end]`. A block of test samples decides in `[a, b]`, its last label is known at `e`, and its earliest
feature window opens at `s`. A training sample

- before the block stays if `label_end <= a`: its label was known when the first test decision was taken;
- after the block stays if `time >= e`, and with an embargo if `time >= e + embargo`;
- with `purge_lookback` must also have `label_end < s` (before) or `window_start > e` (after).

An embargo of k timestamps drops the first k timestamps at or after `e`; a share is a count of that share of all
timestamps. Where nothing trains after the test (walk-forward) the embargo widens the gap before it:
`label_end + embargo <= a`, for a count: `a` is not among the first k timestamps at or after `label_end`.
"""

from __future__ import annotations

import dataclasses
import warnings
from abc import abstractmethod
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
from sklearn.model_selection import BaseCrossValidator
from sklearn.utils.metadata_routing import UNUSED

from qfml.errors import SplitError
from qfml.splits.offsets import Offset, Share, canonical, parse_embargo, parse_size, shift
from qfml.splits.timeline import Timeline, as_positions

__all__ = ["Fold", "LookbackWarning", "Plan", "PurgeRule", "Span", "Splitter", "merge", "span_of"]

Pieces = list[slice | np.ndarray]  # ascending, disjoint positions


class LookbackWarning(UserWarning):
    """Training samples after a test block may look back into prices that made the test labels."""


class Span(NamedTuple):
    """A contiguous block of test samples: positions `[start, stop)`, and the times a training sample must respect."""

    start: int
    stop: int
    first_decision: Any  # a
    last_label: Any  # e
    first_window: Any  # s


class Plan(NamedTuple):
    """What a splitter proposes: the test spans in time order, and the positions `[start, stop)` it may train on.

    `widens_gap` says that an embargo acts before the test; `refit=False` that the training set is the previous plan's.
    """

    tests: Sequence[Span]
    start: int
    stop: int
    widens_gap: bool = False
    refit: bool = True


@dataclass(frozen=True, eq=False)
class Fold:
    """One split as int64 row ids, ascending; `purged` and `embargoed` are what the rule took out of the training set.

    `refit` is False where the training set is exactly that of the fold before, so that its model can be kept.
    """

    train: np.ndarray
    test: np.ndarray
    purged: np.ndarray
    embargoed: np.ndarray
    refit: bool = True


def span_of(timeline: Timeline, start: int, stop: int) -> Span:
    """The span of all samples at the positions `[start, stop)`, which must not be empty."""
    starts = timeline.time if timeline.window_start is None else timeline.window_start
    return Span(start, stop, timeline.time[start], timeline.label_end[start:stop].max(), starts[start:stop].min())


def merge(spans: Sequence[Span]) -> list[Span]:
    """Join spans, given in time order, that touch each other."""
    merged = [spans[0]]
    for span in spans[1:]:
        last = merged[-1]
        if last.stop != span.start:
            merged.append(span)
            continue
        merged[-1] = Span(
            last.start,
            span.stop,
            last.first_decision,
            max(last.last_label, span.last_label),
            min(last.first_window, span.first_window),
        )
    return merged


@dataclass(frozen=True, eq=False)
class PurgeRule:
    """The rule of this module's docstring, applied to one timeline."""

    timeline: Timeline
    embargo: int | Offset
    purge_lookback: bool

    @classmethod
    def of(cls, timeline: Timeline, embargo: int | Offset | Share, purge_lookback: bool) -> PurgeRule:
        """The rule with a share of the timestamps turned into a count."""
        count = embargo.of(timeline.n_stamps) if isinstance(embargo, Share) else embargo
        return cls(timeline, count, purge_lookback)

    def purged(self, plan: Plan) -> Pieces:
        """The training positions that are left by the purge alone."""
        return self._kept(plan, 0)

    def train(self, plan: Plan) -> Pieces:
        """The training positions that are left by the purge and the embargo."""
        kept = self._kept(plan, self.embargo)
        if not plan.widens_gap or not isinstance(self.embargo, Offset):
            return kept
        # a calendar offset cannot be taken to the other side of `label_end + embargo <= a`: months are unequal
        first_decision = plan.tests[0].first_decision
        positions = as_positions(kept)
        return [positions[self._embargoed_end[positions] <= first_decision]]

    def _kept(self, plan: Plan, embargo: int | Offset) -> Pieces:
        """Walk through the gaps between the test spans: each obeys all spans before it and all after it."""
        stops = [span.start for span in plan.tests] + [plan.stop]
        first_windows = [span.first_window for span in plan.tests]
        kept: Pieces = []
        start, window_after = plan.start, None
        for gap, stop in enumerate(stops):
            ahead = plan.tests[gap:]
            # the nearest decision ahead binds the labels most, but not necessarily the windows
            label_by = ahead[0].first_decision if ahead else None
            if label_by is not None and plan.widens_gap and not isinstance(embargo, Offset):
                label_by = self._stamp_before(label_by, embargo)
            label_before = min(first_windows[gap:]) if ahead and self.purge_lookback else None
            kept += self._kept_between(start, min(stop, plan.stop), label_by, label_before, window_after)
            if ahead:
                span = ahead[0]
                resume = 0 if plan.widens_gap else self._resume(span.last_label, embargo)
                start = max(start, span.stop, resume)
                if self.purge_lookback:
                    window_after = span.last_label if window_after is None else max(window_after, span.last_label)
        return kept

    def _resume(self, last_label: Any, embargo: int | Offset) -> int:
        """The first position that may train after labels that end at `last_label`."""
        timeline = self.timeline
        if isinstance(embargo, Offset):
            until = shift(last_label, embargo, is_datetime=timeline.is_datetime)
            return int(np.searchsorted(timeline.time, until))
        stamp = int(np.searchsorted(timeline.stamps, last_label)) + embargo
        return timeline.position(min(stamp, timeline.n_stamps))

    def _stamp_before(self, decision: Any, count: int) -> Any:
        """The timestamp that lies `count` timestamps before that of `decision`; labels must be known by then."""
        stamps = self.timeline.stamps
        stamp = int(np.searchsorted(stamps, decision)) - count
        if stamp >= 0:
            return stamps[stamp]
        return np.iinfo(np.int64).min if stamps.dtype == np.int64 else -np.inf  # no label is known by then

    @cached_property
    def _embargoed_end(self) -> np.ndarray:
        if not isinstance(self.embargo, Offset):
            raise TypeError("only an embargo by time moves label ends")
        return shift(self.timeline.label_end, self.embargo, is_datetime=self.timeline.is_datetime)

    def _kept_between(self, start: int, stop: int, label_by: Any, label_before: Any, window_after: Any) -> Pieces:
        """The positions of a gap that obey `label_end <= label_by`, `< label_before` and `window_start > window_after`.

        Running extremes answer most positions by one search: all before the first late label are fine. Only the band
        between there and `stop`, about one label horizon wide, is looked at sample by sample.
        """
        if stop <= start:
            return []
        timeline = self.timeline
        fine_from, fine_to = start, stop
        if label_by is not None:
            fine_to = min(fine_to, int(np.searchsorted(timeline.latest_end_so_far, label_by, side="right")))
        if label_before is not None:
            fine_to = min(fine_to, int(np.searchsorted(timeline.latest_end_so_far, label_before, side="left")))
        if window_after is not None:
            fine_from = max(
                fine_from, int(np.searchsorted(timeline.earliest_start_from_here, window_after, side="right"))
            )
        if fine_to <= fine_from:
            fine_from = fine_to = stop
        kept: Pieces = []
        for band in (slice(start, fine_from), slice(fine_to, stop)):
            ok = np.ones(max(band.stop - band.start, 0), dtype=bool)
            if label_by is not None:
                ok &= timeline.label_end[band] <= label_by
            if label_before is not None:
                ok &= timeline.label_end[band] < label_before
            if window_after is not None:
                starts = timeline.time if timeline.window_start is None else timeline.window_start
                ok &= starts[band] > window_after
            kept.append(np.flatnonzero(ok) + band.start)
        return [kept[0], slice(fine_from, fine_to), kept[1]]


class Splitter(BaseCrossValidator):
    """What all splitters share; a concrete one is a frozen dataclass that proposes `Plan`s.

    Every splitter has the fields `embargo`, `purge_lookback` and `label_horizon`. It works as scikit-learn's `cv=`.
    """

    kind: ClassVar[str]
    warns_of_lookback: ClassVar[bool] = True

    embargo: Any
    purge_lookback: Any
    label_horizon: Any

    # A frozen dataclass has no `set_split_request`: the times are always asked for.
    __metadata_request__split: ClassVar = {"groups": UNUSED, "time": True, "label_end": True, "window_start": True}

    @abstractmethod
    def _plans(self, timeline: Timeline) -> Iterator[Plan]:
        """Propose the folds in their order."""

    @abstractmethod
    def _n_plans(self, timeline: Timeline | None) -> int:
        """How many folds there will be; `timeline` is None where the caller has no data at hand."""

    def split(
        self,
        X: Any = None,
        y: Any = None,
        groups: Any = None,
        *,
        time: Any = None,
        label_end: Any = None,
        window_start: Any = None,
    ) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
        """Yield (train, test) row ids, int64 and ascending, one pair a fold.

        Args:
            X: what carries the times: a TimeDataset (anything with attributes `time`, `label_end` and perhaps
                `window_start`), or a pandas object with a DatetimeIndex; or plain features if `time` is passed.
            y: not used; scikit-learn passes it.
            groups: not used; scikit-learn passes it. Samples that share a timestamp always stay together.
            time: (N,) decision times, if X does not carry them.
            label_end: (N,) moments the labels are known, if X does not carry them.
            window_start: (N,) earliest information of the features, if X does not carry it.

        Raises:
            SplitError: if there are no times, or a fold ends up empty.
        """
        rule = self._rule(X, time, label_end, window_start)
        return ((rule.timeline.rows(train), _test_rows(rule, plan)) for plan, train in self._checked(rule))

    def folds(self, X: Any = None, *, time: Any = None, label_end: Any = None, window_start: Any = None) -> list[Fold]:
        """All folds with what was purged and embargoed; arguments as in `split`."""
        rule = self._rule(X, time, label_end, window_start)
        folds: list[Fold] = []
        for plan, train in self._checked(rule):
            if plan.refit:
                folds.append(fold_of(rule, plan, train))
            else:
                folds.append(dataclasses.replace(folds[-1], test=_test_rows(rule, plan), refit=False))
        return folds

    def get_n_splits(  # pyright: ignore[reportIncompatibleMethodOverride]  (scikit-learn's is inferred as None)
        self,
        X: Any = None,
        y: Any = None,
        groups: Any = None,
        *,
        time: Any = None,
        label_end: Any = None,
        window_start: Any = None,
    ) -> int:
        """The number of folds; arguments as in `split` (K-folds know it without data)."""
        if X is None and time is None:
            return self._n_plans(None)
        timeline = Timeline.of(
            X, time=time, label_end=label_end, window_start=window_start, label_horizon=self.label_horizon
        )
        return self._n_plans(timeline)

    def plot(self, X: Any = None, *, ax: Any = None, time: Any = None, label_end: Any = None) -> Any:
        """Draw the folds along time with matplotlib: train, purged, embargoed, test. Returns the axes."""
        from qfml.splits.plot import plot_folds  # matplotlib is slow to import and seldom needed

        return plot_folds(self, X, ax=ax, time=time, label_end=label_end)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The fields by name, as scikit-learn's `clone` wants them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # pyright: ignore[reportArgumentType]

    def _rule(self, X: Any, time: Any, label_end: Any, window_start: Any) -> PurgeRule:
        timeline = Timeline.of(
            X, time=time, label_end=label_end, window_start=window_start, label_horizon=self.label_horizon
        )
        if self.warns_of_lookback and timeline.window_start is not None and not self.purge_lookback:
            warnings.warn(
                "the data have look-back windows (window_start < time) and `purge_lookback` is off: training samples "
                "after a test block may use prices that made its labels; set purge_lookback=True to drop them",
                LookbackWarning,
                stacklevel=3,
            )
        return PurgeRule.of(timeline, parse_embargo("embargo", self.embargo), self.purge_lookback)

    def _checked(self, rule: PurgeRule) -> Iterator[tuple[Plan, Pieces]]:
        """The plans with their training positions; one that leaves nothing to train or test on raises."""
        train: Pieces = []
        for number, plan in enumerate(self._plans(rule.timeline)):
            if plan.refit:
                train = rule.train(plan)
            if _count(train) == 0:
                raise SplitError(_why_empty(rule, plan, number))
            yield plan, train

    def _check_common(self) -> None:
        """Validate the fields that all splitters have; a timedelta is kept as the string a config would hold."""
        settle(self, "embargo", "label_horizon")
        parse_embargo("embargo", self.embargo)
        if self.label_horizon is not None:
            parse_size("label_horizon", self.label_horizon)
        if not isinstance(self.purge_lookback, bool):
            raise SplitError(f"`purge_lookback` must be true or false, got {self.purge_lookback!r}")


def settle(splitter: Splitter, *names: str) -> None:
    for name in names:
        object.__setattr__(splitter, name, canonical(getattr(splitter, name)))


def whole_number(name: str, value: Any, least: int) -> None:
    """Raise unless `value` is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise SplitError(f"`{name}` must be a whole number of at least {least}, got {value!r}")


def _count(pieces: Pieces) -> int:
    return sum(max(p.stop - p.start, 0) if isinstance(p, slice) else p.size for p in pieces)


def _test_rows(rule: PurgeRule, plan: Plan) -> np.ndarray:
    return rule.timeline.rows(slice(span.start, span.stop) for span in plan.tests)


def fold_of(rule: PurgeRule, plan: Plan, train: Pieces) -> Fold:
    """Sort every position the plan may train on into train, purged and embargoed."""
    state = np.full(len(rule.timeline), "-", dtype="S1")
    state[plan.start : plan.stop] = b"p"
    for piece in rule.purged(plan):
        state[piece] = b"e"
    for piece in train:
        state[piece] = b"t"
    for span in plan.tests:
        state[span.start : span.stop] = b"-"
    rows = {name: rule.timeline.rows([np.flatnonzero(state == name)]) for name in (b"t", b"p", b"e")}
    return Fold(train=rows[b"t"], test=_test_rows(rule, plan), purged=rows[b"p"], embargoed=rows[b"e"])


def _why_empty(rule: PurgeRule, plan: Plan, number: int) -> str:
    timeline = rule.timeline
    n_candidates = (
        plan.stop
        - plan.start
        - sum(max(min(span.stop, plan.stop) - max(span.start, plan.start), 0) for span in plan.tests)
    )
    n_left = _count(rule.purged(plan))
    first, last = plan.tests[0], plan.tests[-1]
    test = f"{timeline.shown(first.first_decision)} to {timeline.shown(timeline.time[last.stop - 1])}"
    return (
        f"fold {number} (test {test}) has no training samples: of {n_candidates} candidates the purge took "
        f"{n_candidates - n_left} and the embargo the other {n_left}; shorten the label horizon, the look-back or the "
        f"embargo, or give the fold more history"
    )
