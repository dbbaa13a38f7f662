"""The folds that trials are judged on: none of their rows is tested in the backtest of the winner."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np

from qfml.backtest.folds import FoldRows
from qfml.data.dataset import TimeDataset
from qfml.errors import SplitError, UserError
from qfml.splits import PurgedKFold
from qfml.splits.base import LookbackWarning, Splitter

__all__ = ["DEFAULT_SPLIT", "looking_back", "tuning_folds"]

DEFAULT_SPLIT = PurgedKFold(5)


def tuning_folds(ds: TimeDataset, backtest: Splitter, inner: Splitter) -> list[FoldRows]:
    """Cut what may be learnt from before the first test into folds.

    The pool is the training set of the backtest's first fold, which is purged against the test block after it, less
    every row that any fold tests. A choice made on the validation tails of later folds would be no better than one
    made on test rows: those tails lie in the test blocks of the folds before.

    Args:
        ds: the data.
        backtest: the splitter of the backtest that the winner goes through.
        inner: cuts the pool.

    Returns:
        Folds whose `test` is the purged block that a trial's members are validated on. Where `DEFAULT_SPLIT` leaves
        rows that look back into a block (`looking_back`), no warning tells of them: nobody chose it.

    Raises:
        UserError: no row is left in the pool, or `inner` judges a row more than once.

    Example:
        >>> from qfml.splits import PurgedKFold, WalkForward
        >>> days = np.arange("2020-01-01", "2020-04-10", dtype="datetime64[D]")
        >>> ds = TimeDataset(np.zeros((100, 1)), np.zeros(100), time=days, label_end=days + 1)
        >>> folds = tuning_folds(ds, WalkForward(train_size=60, test_size=20), PurgedKFold(3))
        >>> [(int(fold.test.min()), int(fold.test.max())) for fold in folds]
        [(0, 19), (20, 39), (40, 59)]
    """
    outer = list(backtest.folds(ds))
    tested = np.concatenate([fold.test for fold in outer])
    pool = np.setdiff1d(outer[0].train, tested)
    if len(pool) == 0:
        raise UserError(
            f"`split: {backtest.kind}` tests every row, so that none is left to tune on; use walk_forward, whose first "
            "training window comes before all tests"
        )
    times = {"time": ds.time[pool], "label_end": ds.label_end[pool]}
    if ds.window_start is not None:
        times["window_start"] = ds.window_start[pool]
    try:
        with warnings.catch_warnings():
            if inner == DEFAULT_SPLIT:
                warnings.simplefilter("ignore", LookbackWarning)
            found = list(inner.folds(SimpleNamespace(**times)))
    except SplitError as error:
        raise SplitError(f"`tune.split` on the {len(pool)} rows before the first test: {error}") from None
    folds = [
        FoldRows(pool[fold.train], None, pool[fold.test], pool[fold.purged], pool[fold.embargoed], number)
        for number, fold in enumerate(found)
    ]
    judged = np.concatenate([fold.test for fold in folds])
    if len(np.unique(judged)) < len(judged):
        raise UserError(
            f"`tune.split: {inner.kind}` judges rows more than once; take purged_kfold, or walk_forward with a step of "
            "at least its test size"
        )
    return folds


def looking_back(ds: TimeDataset, folds: Sequence[FoldRows]) -> list[int]:
    """Training rows of each fold after its block whose look-back windows reach prices that its labels are made of.

    Example:
        >>> from qfml.splits import WalkForward
        >>> days = np.arange("2020-01-01", "2020-04-10", dtype="datetime64[D]")
        >>> ds = TimeDataset(np.zeros((100, 1)), np.zeros(100), time=days, label_end=days + 1, window_start=days - 5)
        >>> looking_back(ds, tuning_folds(ds, WalkForward(train_size=60, test_size=20), DEFAULT_SPLIT))
        [6, 6, 6, 6, 0]
    """
    if ds.window_start is None:
        return [0] * len(folds)
    counts = []
    for fold in folds:
        after = fold.train[ds.time[fold.train] > ds.time[fold.test].max()]
        counts.append(int((ds.window_start[after] <= ds.label_end[fold.test].max()).sum()))
    return counts
