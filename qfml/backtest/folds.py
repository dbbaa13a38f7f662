"""What each fold of a backtest trains, validates and tests on, and the checks that make a backtest of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qfml.data.dataset import TimeDataset
from qfml.errors import SplitError, UserError
from qfml.splits.base import Plan, PurgeRule, Splitter, span_of
from qfml.splits.timeline import Timeline

__all__ = ["FoldRows", "plan_folds", "validation_tail"]

Rows = np.ndarray  # int64 row ids


@dataclass(frozen=True, eq=False)
class FoldRows:
    """The rows of one fold, int64 row ids.

    Attributes:
        train: Trains the network and the baselines.
        val: The purged tail of the training rows, in time; None without validation.
        test: Predicted, never seen in training.
        purged: Kept out because a label overlaps the test block or the validation tail.
        embargoed: Kept out by the embargo.
        model: Number of the fold whose model predicts this one; its own unless the splitter does not refit here.
    """

    train: Rows
    val: Rows | None
    test: Rows
    purged: Rows
    embargoed: Rows
    model: int


def validation_tail(
    ds: TimeDataset, train: Rows, fraction: float, *, purge_lookback: bool = False
) -> tuple[Rows, Rows, Rows]:
    """Split the last part of the training rows off for validation, by timestamps, and purge before it.

    The tail is the last `fraction` of the distinct training times, rounded up. Of the rest, a row stays only if its
    label ends by the first time of the tail, as before any test block.

    Args:
        ds: The data.
        train: Training rows of a fold.
        fraction: Fraction of the distinct training times, in (0, 1).
        purge_lookback: Also require that labels end before the earliest feature window of the tail opens.

    Returns:
        Rows left to train on, rows of the tail, rows purged.

    Raises:
        SplitError: If nothing is left to train on.
    """
    if not 0.0 < fraction < 1.0:
        raise UserError(f"`validation` must lie in (0, 1), or be 0 for none, got {fraction}")
    timeline = Timeline.of(time=ds.time[train], label_end=ds.label_end[train], window_start=ds.window_start[train])
    n_tail = int(np.ceil(fraction * timeline.n_stamps - 1e-9))
    if n_tail >= timeline.n_stamps:
        raise SplitError(f"{timeline.n_stamps} training time(s) are too few to split a validation tail from")
    start = int(timeline.first[timeline.n_stamps - n_tail])
    plan = Plan([span_of(timeline, start, len(timeline))], 0, start)
    kept = timeline.rows(PurgeRule(timeline, 0, purge_lookback).train(plan))
    if len(kept) == 0:
        raise SplitError(
            f"the validation tail of {n_tail} times leaves no training rows: all {start} labels before it end inside "
            "it; make `validation` smaller or the label horizon shorter"
        )
    tail = timeline.rows([slice(start, len(timeline))])
    purged = np.setdiff1d(np.arange(len(train)), np.concatenate([kept, tail]))
    return train[kept], train[tail], train[purged]


def plan_folds(ds: TimeDataset, splitter: Any, validation: float) -> list[FoldRows]:
    """The folds of `splitter` on `ds`, each with its validation tail.

    Raises:
        UserError: If the splitter is not one of `qfml.splits`, or tests a row more than once.
    """
    if not isinstance(splitter, Splitter):
        raise UserError(
            f"`splitter` must be one of qfml.splits, which purge by label ends; {type(splitter).__name__} does not"
        )
    plans: list[FoldRows] = []
    for number, fold in enumerate(splitter.folds(ds)):
        if not fold.refit:
            last = plans[-1]
            plans.append(FoldRows(last.train, last.val, fold.test, fold.purged, fold.embargoed, last.model))
            continue
        train, val, purged = fold.train, None, fold.purged
        if validation != 0.0:
            train, val, tail_purged = validation_tail(
                ds, fold.train, validation, purge_lookback=bool(splitter.purge_lookback)
            )
            purged = np.concatenate([purged, tail_purged])
        plans.append(FoldRows(train, val, fold.test, purged, fold.embargoed, number))
    _require_one_test(plans, len(ds), type(splitter).__name__)
    return plans


def _require_one_test(plans: list[FoldRows], n_rows: int, name: str) -> None:
    """A row that is tested twice would hold two positions at once."""
    times_tested = np.bincount(np.concatenate([plan.test for plan in plans]), minlength=n_rows)
    if times_tested.max() > 1:
        raise UserError(
            f"a backtest holds one position per asset and time, but {name} tests {int((times_tested > 1).sum())} rows "
            f"more than once (up to {int(times_tested.max())} times); use WalkForward with step >= test size or "
            "PurgedKFold here, and qfml.splits.cross_val_predict for the paths of a combinatorial splitter"
        )
