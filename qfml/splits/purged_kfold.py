"""K-fold cross-validation in time order, with purge and embargo around each test block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from qfml.errors import SplitError
from qfml.splits.base import Plan, Span, Splitter, span_of, whole_number
from qfml.splits.offsets import Embargo, Size
from qfml.splits.timeline import Timeline

__all__ = ["PurgedKFold", "time_blocks"]


def time_blocks(timeline: Timeline, n_blocks: int) -> list[Span]:
    """Cut the timestamps into contiguous blocks of equal number; the first ones take the remainder."""
    if timeline.n_stamps < n_blocks:
        raise SplitError(
            f"{n_blocks} folds need at least {n_blocks} distinct timestamps, but the data have {timeline.n_stamps}; "
            f"ask for fewer folds"
        )
    size, remainder = divmod(timeline.n_stamps, n_blocks)
    positions = [timeline.position(i * size + min(i, remainder)) for i in range(n_blocks + 1)]
    return [span_of(timeline, start, stop) for start, stop in pairwise(positions)]


@dataclass(frozen=True)
class PurgedKFold(Splitter):
    """K-fold where every block of time is the test set once and all samples that know of it are purged.

    Args:
        n_splits: number of folds, at least 2; each holds the same number of timestamps.
        embargo: what else to leave out after the test block: a count of timestamps, a length of time ("5D"), or a
            share of all timestamps ("1%").
        purge_lookback: purge on the feature windows too, so that no price serves both sides.
        label_horizon: how long after the decision the label is known, where the data do not say: a count of
            timestamps or a length of time.

    Raises:
        SplitError: if a setting is not valid.

    References:
        M. Lopez de Prado (2018), Advances in Financial Machine Learning, section 7.4.

    Example:
        >>> import numpy as np
        >>> days = np.arange("2024-01-01", "2024-01-21", dtype="datetime64[D]")
        >>> for train, test in PurgedKFold(4).split(time=days, label_end=days + 3):
        ...     print(train, test)
        [ 7  8  9 10 11 12 13 14 15 16 17 18 19] [0 1 2 3 4]
        [ 0  1  2 12 13 14 15 16 17 18 19] [5 6 7 8 9]
        [ 0  1  2  3  4  5  6  7 17 18 19] [10 11 12 13 14]
        [ 0  1  2  3  4  5  6  7  8  9 10 11 12] [15 16 17 18 19]
    """

    kind: ClassVar[str] = "purged_kfold"

    n_splits: int
    embargo: Embargo = 0
    purge_lookback: bool = False
    label_horizon: Size | None = None

    def __post_init__(self) -> None:
        whole_number("n_splits", self.n_splits, 2)
        self._check_common()

    def _n_plans(self, timeline: Timeline | None) -> int:
        return self.n_splits

    def _plans(self, timeline: Timeline) -> Iterator[Plan]:
        for block in time_blocks(timeline, self.n_splits):
            yield Plan([block], 0, len(timeline))
