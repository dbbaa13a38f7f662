"""Combinatorial purged cross-validation: many test sets from few blocks of time, joined into backtest paths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Any, ClassVar

import numpy as np

from qfml.errors import SplitError
from qfml.splits.base import Plan, Splitter, merge, whole_number
from qfml.splits.offsets import Embargo, Size
from qfml.splits.purged_kfold import time_blocks
from qfml.splits.timeline import Timeline

__all__ = ["CombinatorialPurgedKFold", "combinatorial_paths"]


def combinatorial_paths(n_folds: int, n_test_folds: int) -> np.ndarray:
    """Which split tests which fold on which path.

    Each fold is tested in `comb(n_folds - 1, n_test_folds - 1)` splits; path j takes the j-th of them for every fold.

    Args:
        n_folds: number of blocks of time.
        n_test_folds: number of blocks that are tested together.

    Returns:
        (n_folds, n_paths) int64: entry [fold, path] is the number of the split whose test of `fold` is on `path`.

    References:
        M. Lopez de Prado (2018), Advances in Financial Machine Learning, section 12.4.

    Example:
        >>> combinatorial_paths(4, 2)
        array([[0, 1, 2],
               [0, 3, 4],
               [1, 3, 5],
               [2, 4, 5]])
    """
    tested = np.array(list(combinations(range(n_folds), n_test_folds)), dtype=np.int64)
    n_paths = comb(n_folds - 1, n_test_folds - 1)
    # a stable sort by fold lists, fold after fold, the splits that test it in ascending order
    by_fold = np.argsort(tested.ravel(), kind="stable") // n_test_folds
    return by_fold.reshape(n_folds, n_paths)


@dataclass(frozen=True)
class CombinatorialPurgedKFold(Splitter):
    """Every choice of `n_test_folds` out of `n_folds` blocks of time is the test set once; the rest trains, purged.

    Test blocks that touch are one block; each block of a test set is purged on its own. The splits come in
    lexicographic order of their test blocks.

    Args:
        n_folds: number of blocks, each of the same number of timestamps.
        n_test_folds: number of blocks in a test set, at least 1 and less than `n_folds`.
        embargo: what else to leave out after each test block: a count of timestamps, a length of time ("5D"), or a
            share of all timestamps ("1%").
        purge_lookback: purge on the feature windows too, so that no price serves both sides.
        label_horizon: how long after the decision the label is known, where the data do not say: a count of
            timestamps or a length of time.

    Raises:
        SplitError: if a setting is not valid.

    References:
        M. Lopez de Prado (2018), Advances in Financial Machine Learning, section 12.3.

    Example:
        >>> cv = CombinatorialPurgedKFold(6, 2)
        >>> cv.get_n_splits(), cv.n_paths
        (15, 5)
        >>> import numpy as np
        >>> train, test = list(cv.split(time=np.arange(12), label_end=np.arange(12) + 2))[7]
        >>> print(train, test)
        [ 0  5  6 11] [2 3 8 9]
    """

    kind: ClassVar[str] = "combinatorial_purged_kfold"

    n_folds: int
    n_test_folds: int
    embargo: Embargo = 0
    purge_lookback: bool = False
    label_horizon: Size | None = None

    def __post_init__(self) -> None:
        whole_number("n_folds", self.n_folds, 2)
        whole_number("n_test_folds", self.n_test_folds, 1)
        if self.n_test_folds >= self.n_folds:
            raise SplitError(
                f"`n_test_folds` must be less than `n_folds` so that something trains, got {self.n_test_folds} of "
                f"{self.n_folds}"
            )
        self._check_common()

    @property
    def n_paths(self) -> int:
        """The number of backtest paths: how often each block is tested."""
        return comb(self.n_folds - 1, self.n_test_folds - 1)

    def paths(self) -> np.ndarray:
        """`combinatorial_paths` of this splitter: (n_folds, n_paths) numbers of splits."""
        return combinatorial_paths(self.n_folds, self.n_test_folds)

    def path_predictions(
        self, predictions: Sequence[np.ndarray], X: Any = None, *, time: Any = None, label_end: Any = None
    ) -> np.ndarray:
        """Join the test predictions of the splits into complete paths.

        Args:
            predictions: one array a split, in the order of `split`, aligned with its test rows on the first axis.
            X: what carries the times, as in `split`; or `time` and `label_end` by keyword.
            time: (N,) decision times, if X does not carry them.
            label_end: (N,) moments the labels are known, if X does not carry them.

        Returns:
            (N, n_paths, ...): column j is a prediction of every sample, each made without knowing it.

        Raises:
            SplitError: if the predictions do not match the test sets.
        """
        if len(predictions) != self.get_n_splits():
            raise SplitError(
                f"`predictions` must hold {self.get_n_splits()} arrays, one a split, got {len(predictions)}"
            )
        timeline = Timeline.of(X, time=time, label_end=label_end, label_horizon=self.label_horizon)
        blocks = [timeline.rows([slice(b.start, b.stop)]) for b in time_blocks(timeline, self.n_folds)]
        first = np.asarray(predictions[0])
        joined = np.empty((len(timeline), self.n_paths, *first.shape[1:]), dtype=first.dtype)
        path_of = np.zeros(self.n_folds, dtype=np.int64)  # the next free path of each fold
        for split, tested in enumerate(combinations(range(self.n_folds), self.n_test_folds)):
            test = np.sort(np.concatenate([blocks[fold] for fold in tested]))
            made = np.asarray(predictions[split])
            if made.shape[:1] != test.shape:
                raise SplitError(
                    f"split {split} tests {test.size} samples, but its predictions have shape {made.shape}"
                )
            for fold in tested:
                joined[blocks[fold], path_of[fold]] = made[np.searchsorted(test, blocks[fold])]
                path_of[fold] += 1
        return joined

    def _n_plans(self, timeline: Timeline | None) -> int:
        return comb(self.n_folds, self.n_test_folds)

    def _plans(self, timeline: Timeline) -> Iterator[Plan]:
        blocks = time_blocks(timeline, self.n_folds)
        for tested in combinations(blocks, self.n_test_folds):
            yield Plan(merge(tested), 0, len(timeline))
