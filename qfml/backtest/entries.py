"""The entries of metrics.json that tell of the data, of each fold and of each member."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qfml.backtest import judgement
from qfml.backtest.folds import FoldRows
from qfml.backtest.judgement import Meaning
from qfml.backtest.pnl import ProfitAndLoss
from qfml.backtest.strategies import Market
from qfml.backtest.training import FoldFit
from qfml.data.dataset import TimeDataset

__all__ = ["describe", "fold_entry", "member_entry"]

_PER_FOLD = ("sharpe_ratio", "annualised_return", "annualised_vol", "max_drawdown", "hit_rate", "turnover")


def describe(ds: TimeDataset, books: ProfitAndLoss, predicted: np.ndarray, folds: Sequence[FoldRows]) -> dict[str, Any]:
    """The data, and which of the network's decisions came to nothing."""
    n_missing = int(sum(np.isnan(predicted[fold.test]).sum() for fold in folds))
    told = [
        f"{books.n_not_held} position(s) of the network not held: the return of the period is unknown",
        f"{n_missing} test row(s) without a finite prediction of the network: no position",
    ]
    return {
        "source": "TimeDataset",
        "n_rows": len(ds) + sum(ds.dropped.values()),
        "n_samples": len(ds),
        "start": _iso(ds.time.min()),
        "end": _iso(ds.time.max()),
        "n_groups": max(len(ds.group_names), 1),
        "features": list(ds.feature_names),
        "label": "y",
        "dropped": dict(ds.dropped),
        "validation": [line for line in told if not line.startswith("0 ")],
    }


def fold_entry(
    ds: TimeDataset,
    number: int,
    fold: FoldRows,
    market: Market,
    books: ProfitAndLoss,
    predicted: np.ndarray,
    means: Meaning,
) -> dict[str, Any]:
    """The rows of a fold, their spans of time, and how the network did on its test block."""
    val = np.empty(0, dtype=np.int64) if fold.val is None else fold.val
    parts = {
        "train": fold.train,
        "validation": val,
        "purged": fold.purged,
        "embargoed": fold.embargoed,
        "test": fold.test,
    }
    stamps = market.panel.times
    blocks = [
        {"kind": kind, "start": _iso(stamps[first]), "end": _iso(stamps[last])}
        for kind, rows in parts.items()
        for first, last in _runs(market.panel.row_time[rows])
    ]
    return {
        "fold": number,
        "n_train": len(fold.train),
        "n_val": len(val),
        "n_test": len(fold.test),
        "n_purged": len(fold.purged),
        "n_embargoed": len(fold.embargoed),
        "model": fold.model,
        "blocks": sorted(blocks, key=lambda block: block["start"]),
        "metrics": _fold_metrics(ds, [number], fold.test, market, books, predicted, means),
    }


def member_entry(
    ds: TimeDataset,
    each: FoldFit,
    folds: Sequence[FoldRows],
    market: Market,
    seed_books: dict[str, ProfitAndLoss],
    by_seed: dict[int, np.ndarray],
    means: Meaning,
) -> dict[str, Any]:
    """How a member trained, and how it did alone on the test blocks that its model predicts."""
    predicts = [number for number, fold in enumerate(folds) if fold.model == each.fold]
    rows = np.concatenate([folds[number].test for number in predicts])
    books = seed_books[f"seed_{each.seed}"]
    history = each.fit.history
    return {
        "fold": each.fold,
        "seed": each.seed,
        "status": each.fit.status,
        "n_epochs": each.fit.n_epochs,
        "best_epoch": each.fit.best_epoch,
        "best_val_loss": each.fit.best_val_loss,
        "final_train_loss": history[-1]["train_loss"] if history else None,
        "metrics": _fold_metrics(ds, predicts, rows, market, books, by_seed[each.seed], means),
    }


def _fold_metrics(
    ds: TimeDataset,
    numbers: Sequence[int],
    rows: np.ndarray,
    market: Market,
    books: ProfitAndLoss,
    predicted: np.ndarray,
    means: Meaning,
) -> dict[str, Any]:
    """Performance over the periods that these folds' decisions were held, and how well their rows were predicted."""
    periods = np.isin(market.fold[market.active], numbers)
    found: dict[str, Any] = {}
    if periods.any():
        performance = judgement.performance(books.at(periods), market.periods_per_year)
        found = {name: performance[name] for name in _PER_FOLD}
    judged = judgement.prediction_metrics(ds.y.cpu().double().numpy()[rows], predicted[rows], means)
    return found | {name: value for name, value in judged.items() if name not in ("confusion_matrix", "n_missing")}


def _runs(stamps: np.ndarray) -> list[tuple[int, int]]:
    """First and last of each run of consecutive time indices."""
    distinct = np.unique(stamps)
    if not len(distinct):
        return []
    breaks = np.flatnonzero(np.diff(distinct) > 1)
    firsts, lasts = np.r_[distinct[:1], distinct[breaks + 1]], np.r_[distinct[breaks], distinct[-1:]]
    return [(int(first), int(last)) for first, last in zip(firsts, lasts)]


def _iso(moment: Any) -> str:
    return str(np.datetime_as_string(moment, unit="s")) if isinstance(moment, np.datetime64) else str(moment)
