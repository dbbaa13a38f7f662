"""Sample weights for labels that overlap in time; `qfml.data.overlap` says how the overlap is counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from qfml.data.overlap import Bars, Keys, Spans, concurrency, label_spans
from qfml.errors import ConfigError, DataError

__all__ = [
    "WEIGHTS",
    "AverageUniqueness",
    "Bars",
    "ReturnAttribution",
    "TimeDecay",
    "Weights",
    "average_uniqueness",
    "concurrency",
    "return_attribution",
    "time_decay",
]

Array = np.ndarray


def average_uniqueness(time: Any, label_end: Any, *, group: Any = None, bars: Bars | None = None) -> Array:
    r"""Mean of $1 / c_s$ over the bars of each label: 1 for a label that shares no bar with another.

    Args:
        time: decision times, shape (N,): datetimes or numbers, in any order.
        label_end: ends of the labels, shape (N,), each after its time.
        group: asset of each sample, shape (N,).
        bars: the bars, if they are not the distinct times and label ends.

    Returns:
        Float64 in (0, 1], shape (N,).

    Raises:
        DataError: Lengths that differ, a missing time, a label that does not end after its time, or that covers no bar.

    References:
        Lopez de Prado (2018), section 4.4.

    Example:
        >>> average_uniqueness([0, 2, 4], [3, 4, 6], bars=Bars(np.arange(7))).round(4).tolist()
        [0.8333, 0.75, 1.0]
    """
    spans = label_spans(time, label_end, group=group, bars=bars)
    return spans.sums(1 / np.maximum(spans.count, 1)) / spans.length


def return_attribution(
    time: Any, label_end: Any, returns: Any = None, *, group: Any = None, bars: Bars | None = None
) -> Array:
    r"""Size of the return that is a label's own: $|\sum_s \log(1 + r_s) / c_s|$ over its bars.

    Each bar's return is shared among the labels that it belongs to.

    Args:
        time: decision times, shape (N,): datetimes or numbers, in any order.
        label_end: ends of the labels, shape (N,), each after its time.
        returns: simple return from each sample to the next sample of its asset, shape (N,); read if `bars` is omitted,
            which takes the samples to be all bars. Labels that end after the last sample then have no returns to share
            and are refused: pass `bars`.
        group: asset of each sample, shape (N,).
        bars: all rows of the data, with their returns. Times and label ends must be among them.

    Returns:
        Float64, not negative, shape (N,); the book scales it to a mean of 1, as `ReturnAttribution` does.

    Raises:
        DataError: As `average_uniqueness`; a label that ends where there is no bar; or a return in a label not known.

    References:
        Lopez de Prado (2018), section 4.6.

    Example:
        >>> bars = Bars(np.arange(5), returns=np.expm1([0.01, 0.02, 0.04, -0.01, np.nan]))
        >>> return_attribution([0, 1], [2, 3], bars=bars).round(12).tolist()
        [0.02, 0.05]
    """
    if bars is None:
        if returns is None:
            raise DataError("return attribution needs `returns`, or `bars` with their returns")
        bars = Bars(np.asarray(time), None if group is None else np.asarray(group), np.asarray(returns, dtype=float))
    if bars.returns is None:
        raise DataError(
            "return attribution needs the bars' `returns`: use Bars(time, group, returns) or Bars.from_frame"
        )
    keys = Keys(time, label_end, group, bars)
    order = np.argsort(keys.bars, kind="stable")
    grid = keys.bars[order]
    if (grid[1:] == grid[:-1]).any():
        raise DataError("two bars share the same (time, group)")
    # the return of a bar runs to the next one, so a label over (time, label_end] takes the bars of [time, label_end)
    start, end = np.searchsorted(grid, keys.time), np.searchsorted(grid, keys.label_end)
    for name, given, index, key in (
        ("time", time, start, keys.time),
        ("label_end", label_end, end, keys.label_end),
    ):
        absent = grid[np.minimum(index, len(grid) - 1)] != key
        if absent.any():
            row = int(np.argmax(absent))
            raise DataError(
                f"`{name}` of {absent.sum()} labels is no bar of its asset, first row {row}: {given[row]}; "
                "pass all rows of the data as `bars=Bars.from_frame(...)`"
            )
    spans = Spans(start, end, len(grid))
    known = np.asarray(bars.returns, dtype=float)[order]
    if not (known[spans.count > 0] > -1).all():
        raise DataError("return attribution needs a return above -1 on every bar of every label; some are nan or below")
    count = spans.count
    shares = np.where(count > 0, np.log1p(np.where(count > 0, known, 0.0)) / np.maximum(count, 1), 0.0)
    return np.abs(spans.sums(shares))


def time_decay(time: Any, label_end: Any, oldest: float, *, group: Any = None, bars: Bars | None = None) -> Array:
    r"""Weights that fall linearly with age, counted in unique labels: 1 for the latest, `oldest` for the first.

    With $x$ the average uniqueness summed over all labels decided up to a label's time, and $X$ its total:
    $\max(0, a + b x)$, where $b = (1 - o)/X$ for $o \ge 0$ and $1 / ((1 + o) X)$ for $o < 0$, and $a = 1 - b X$. Labels
    decided at the same time weigh the same. As in the book `oldest` is the limit at $x = 0$: the first label itself
    lies a little above.

    Args:
        time: decision times, shape (N,): datetimes or numbers, in any order.
        label_end: ends of the labels, shape (N,), each after its time.
        oldest: o, in (-1, 1]: 1 for no decay, 0 for weights that reach zero at the first label, -0.25 for zero weights
            on the oldest quarter.
        group: asset of each sample, shape (N,).
        bars: the bars, if they are not the distinct times and label ends.

    Returns:
        Float64 in [0, 1], shape (N,).

    References:
        Lopez de Prado (2018), section 4.7.

    Example:
        >>> time_decay([0, 1, 2, 3], [1, 2, 3, 4], oldest=0.0).tolist()
        [0.25, 0.5, 0.75, 1.0]
    """
    _check_oldest(oldest)
    uniqueness = average_uniqueness(time, label_end, group=group, bars=bars)
    _, moment = np.unique(np.asarray(time), return_inverse=True)
    fraction = np.cumsum(np.bincount(moment, weights=uniqueness)) / uniqueness.sum()
    slope = 1 - oldest if oldest >= 0 else 1 / (1 + oldest)
    return np.maximum(0.0, 1 - slope * (1 - fraction))[moment]


@runtime_checkable
class Weights(Protocol):
    """A rule for sample weights; `weights` has mean 1, so that a weighted loss keeps the scale of an unweighted one."""

    kind: ClassVar[str]

    def weights(
        self,
        time: Array,
        label_end: Array,
        returns: Array | None = None,
        *,
        group: Any = None,
        bars: Bars | None = None,
    ) -> Array:
        """One weight per sample, shape (N,), not negative, of mean 1; arguments as in `return_attribution`."""
        ...


@dataclass(frozen=True)
class AverageUniqueness:
    """Weights in proportion to `average_uniqueness`.

    Example:
        >>> AverageUniqueness().weights(np.array([0, 1, 5]), np.array([2, 3, 6])).round(4).tolist()
        [0.9, 0.9, 1.2]
    """

    kind: ClassVar[str] = "average_uniqueness"

    def weights(
        self,
        time: Array,
        label_end: Array,
        returns: Array | None = None,
        *,
        group: Any = None,
        bars: Bars | None = None,
    ) -> Array:
        """Average uniqueness of each label, scaled to a mean of 1; `returns` are not read."""
        return _mean_one(average_uniqueness(time, label_end, group=group, bars=bars))


@dataclass(frozen=True)
class ReturnAttribution:
    """Weights in proportion to `return_attribution`: labels with large returns of their own count more.

    Example:
        >>> bars = Bars(np.arange(4), returns=np.expm1([0.01, 0.03, 0.02, np.nan]))
        >>> ReturnAttribution().weights(np.array([0, 1]), np.array([1, 2]), bars=bars).round(12).tolist()
        [0.5, 1.5]
    """

    kind: ClassVar[str] = "return_attribution"

    def weights(
        self,
        time: Array,
        label_end: Array,
        returns: Array | None = None,
        *,
        group: Any = None,
        bars: Bars | None = None,
    ) -> Array:
        """Attributed return of each label, scaled to a mean of 1."""
        return _mean_one(return_attribution(time, label_end, returns, group=group, bars=bars))


@dataclass(frozen=True)
class TimeDecay:
    """Weights in proportion to `time_decay`: older labels count less.

    The decay runs over all samples that are given, so the first and last label of a training fold differ by less.

    Args:
        oldest: weight of the oldest label relative to the latest, in (-1, 1]; negative for zero weights on that share
            of the oldest.

    Example:
        >>> TimeDecay(oldest=0.0).weights(np.arange(4), np.arange(4) + 1).round(4).tolist()
        [0.4, 0.8, 1.2, 1.6]
    """

    kind: ClassVar[str] = "time_decay"
    oldest: float

    def __post_init__(self) -> None:
        _check_oldest(self.oldest)

    def weights(
        self,
        time: Array,
        label_end: Array,
        returns: Array | None = None,
        *,
        group: Any = None,
        bars: Bars | None = None,
    ) -> Array:
        """Decay of each label, scaled to a mean of 1; `returns` are not read."""
        return _mean_one(time_decay(time, label_end, self.oldest, group=group, bars=bars))


#: Every rule that a config can name by its `kind`. A class of your own: `WEIGHTS[Mine.kind] = Mine`.
WEIGHTS: dict[str, type[Weights]] = {cls.kind: cls for cls in (AverageUniqueness, ReturnAttribution, TimeDecay)}


def _mean_one(weights: Array) -> Array:
    if not weights.sum() > 0:
        raise DataError("every sample would weigh zero: no label has a return of its own, or no weight is left")
    return weights * (len(weights) / weights.sum())


def _check_oldest(oldest: float) -> None:
    if not -1 < oldest <= 1:
        raise ConfigError(f"`oldest` must lie in (-1, 1], got {oldest}")
