"""The end of a training set kept back for validation, purged like any other test block."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from qfml.errors import SplitError
from qfml.splits.base import Fold, Plan, PurgeRule, fold_of, span_of, whole_number
from qfml.splits.offsets import Embargo, Offset, Share, Size, parse_embargo, shift
from qfml.splits.timeline import Timeline

__all__ = ["validation_tail"]


def validation_tail(
    X: Any,
    train: np.ndarray,
    size: float | Size,
    *,
    embargo: Embargo = 0,
    purge_lookback: bool = False,
    label_horizon: Size | None = None,
) -> Fold:
    """Keep back the latest samples of a training set for validation and purge the rest against them.

    Args:
        X: what carries the times of all samples, as in `Splitter.split`.
        train: row ids of the training set.
        size: how much of its end to keep back: a share of its timestamps (0.2 or "20%"), a count of timestamps, or a
            length of time up to its last timestamp ("6M").
        embargo: widens the gap before the validation block, as in walk-forward.
        purge_lookback: purge on the feature windows too.
        label_horizon: how long after the decision the label is known, where the data do not say.

    Returns:
        A `Fold` whose `test` is the validation set; all four parts are row ids out of `train`.

    Raises:
        SplitError: if nothing is left to train on.

    Example:
        >>> import numpy as np
        >>> from types import SimpleNamespace
        >>> data = SimpleNamespace(time=np.arange(10), label_end=np.arange(10) + 2)
        >>> fold = validation_tail(data, np.arange(8), 0.25)
        >>> print(fold.train, fold.purged, fold.test)
        [0 1 2 3 4] [5] [6 7]
    """
    train = np.asarray(train)
    timeline = Timeline.of(X, label_horizon=label_horizon).part(train)
    n = timeline.n_stamps
    length = parse_embargo("size", size)
    if isinstance(length, Offset):
        start = int(np.searchsorted(timeline.stamps, _before_last(timeline, length), side="right"))
    else:
        count = length.of(n) if isinstance(length, Share) else length
        whole_number("size", count, 1)
        start = n - count
    if not 0 < start < n:
        raise SplitError(f"a validation set of {size} leaves {max(start, 0)} of {n} timestamps to train on")
    block = span_of(timeline, timeline.position(start), len(timeline))
    rule = PurgeRule.of(timeline, parse_embargo("embargo", embargo), purge_lookback)
    plan = Plan([block], 0, block.start, widens_gap=True)
    fold = fold_of(rule, plan, rule.train(plan))
    if fold.train.size == 0:
        raise SplitError(
            f"a validation set of {size} leaves no training samples: {fold.purged.size} are purged and "
            f"{fold.embargoed.size} embargoed; shorten it, the label horizon or the embargo"
        )
    rows = np.sort(train)
    parts = {name: rows[getattr(fold, name)] for name in ("train", "test", "purged", "embargoed")}
    return dataclasses.replace(fold, **parts)


def _before_last(timeline: Timeline, length: Offset) -> Any:
    return shift(timeline.stamps[-1], length, is_datetime=timeline.is_datetime, sign=-1)
