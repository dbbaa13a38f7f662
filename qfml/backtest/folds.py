"""What each fold of a backtest trains, validates and tests on, and the checks that make a backtest of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qfml.data.dataset import TimeDataset
from qfml.errors import UserError
from qfml.splits import Splitter, validation_tail

__all__ = ["FoldRows", "plan_folds"]

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


def plan_folds(ds: TimeDataset, splitter: Any, validation: float) -> list[FoldRows]:
    """The folds of `splitter` on `ds`, each with the purged tail of its training rows kept back for validation.

    Args:
        ds: The data.
        splitter: One of `qfml.splits`.
        validation: Fraction of the distinct training times in the tail, in (0, 1); 0 for none.

    Raises:
        UserError: If the splitter is not one of `qfml.splits`, or tests a row more than once.
    """
    if not isinstance(splitter, Splitter):
        raise UserError(
            f"`splitter` must be one of qfml.splits, which purge by label ends; {type(splitter).__name__} does not"
        )
    if not 0.0 <= validation < 1.0:
        raise UserError(f"`validation` must lie in (0, 1), or be 0 for none, got {validation}")
    plans: list[FoldRows] = []
    for number, fold in enumerate(splitter.folds(ds)):
        if not fold.refit:
            last = plans[-1]
            plans.append(FoldRows(last.train, last.val, fold.test, fold.purged, fold.embargoed, last.model))
            continue
        train, val, purged = fold.train, None, fold.purged
        if validation != 0.0:
            tail = validation_tail(ds, fold.train, validation, purge_lookback=bool(splitter.purge_lookback))
            train, val, purged = tail.train, tail.test, np.concatenate([purged, tail.purged])
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
