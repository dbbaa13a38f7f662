"""What a search is worth: the returns of its trials, and how much of the winner's is the luck of many."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from qfml import metrics
from qfml.backtest import judgement
from qfml.backtest.folds import FoldRows
from qfml.backtest.judgement import Meaning
from qfml.backtest.positions import PositionRule
from qfml.backtest.strategies import Market, rule_input
from qfml.backtest.training import FoldFit, predict_folds
from qfml.data.dataset import TimeDataset
from qfml.errors import DataError, UserError
from qfml.files import replace_file
from qfml.tune.study import Study

__all__ = ["overfitting", "read_returns", "report_of", "returns_of", "write_returns"]

FOLDER = "trials"


def returns_of(
    ds: TimeDataset,
    folds: Sequence[FoldRows],
    fits: Sequence[FoldFit],
    market: Market,
    positions: PositionRule,
    means: Meaning,
) -> np.ndarray:
    """Net P&L per period of a trial on the blocks that it was judged on, traded like the backtest, seeds averaged."""
    seeds = dict.fromkeys(fit.seed for fit in fits)
    by_seed = np.stack([predict_folds(ds, folds, fits, seed) for seed in seeds])
    known = np.isfinite(by_seed).sum(axis=0)
    mean = np.where(known > 0, np.nansum(by_seed, axis=0) / np.maximum(known, 1), np.nan)
    return market.trade(positions, rule_input(positions, mean, means)).total


def write_returns(folder: Path, place: int, times: np.ndarray, net: np.ndarray) -> None:
    """Keep the returns of the trial at `place`; the file is never half there."""
    path = folder / FOLDER / f"{place:05d}.parquet"
    path.parent.mkdir(exist_ok=True)
    replace_file(path, pl.DataFrame({"time": times, "net": net}).write_parquet)


def read_returns(folder: Path, places: Sequence[int]) -> np.ndarray:
    """Returns of the trials at `places`, shape (periods, trials).

    Raises:
        UserError: a file is missing or damaged.
    """
    paths = [folder / FOLDER / f"{place:05d}.parquet" for place in places]
    try:
        frames = [pl.read_parquet(path) for path in paths]
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"the returns of a trial in {folder / FOLDER} cannot be read ({error}); search again") from None
    return np.stack([frame["net"].to_numpy() for frame in frames], axis=1)


def overfitting(returns: np.ndarray, winner: int, periods_per_year: float, n_tried: int) -> dict[str, Any]:
    """How much of the winner's record on the validation blocks is the luck of the best of many.

    Args:
        returns: net P&L per period of every trial, shape (periods, trials).
        winner: its column.
        periods_per_year: of the returns.
        n_tried: configurations that the ledger counts on these data, the trials among them. They are what the deflated
            ratio takes off, with the variance of the trials, whose blocks are the winner's.

    Returns:
        The winner's Sharpe ratio a year, probabilistic and deflated, the variance of the trials' Sharpe ratios a
        period, and the probability of backtest overfitting; None and a reason where one is not defined.
    """
    moments = [metrics.sharpe_moments(net) for net in returns.T]
    defined = [each.sharpe for each in moments if not math.isnan(each.sharpe)]
    variance = float(np.var(defined, ddof=1)) if len(defined) > 1 else math.nan
    own = moments[winner]
    n_trials = max(n_tried, len(moments))  # a ledger that was moved away in between counts too few
    found: dict[str, Any] = {
        "n_trials": n_trials,
        "n_periods": len(returns),
        "trial_variance": variance,
        "sharpe_ratio": own.sharpe * math.sqrt(periods_per_year),
        "probabilistic_sharpe_ratio": None if math.isnan(own.sharpe) else metrics.probabilistic_sharpe_ratio(*own),
        "deflated_sharpe_ratio": judgement.deflation(own, n_trials, variance)["deflated_sharpe_ratio"],
    }
    n_blocks = min(16, len(returns) // 20 * 2)
    found |= {"pbo": None, "pbo_blocks": n_blocks, "pbo_missing": None}
    try:
        found["pbo"] = metrics.probability_of_backtest_overfitting(returns, n_blocks)
    except DataError as error:
        found["pbo_missing"] = str(error)
    return judgement.plain(found)


def report_of(study: Study, folder: Path, market: Market, n_tried: int) -> dict[str, Any]:
    """What the search found, as JSON types.

    Args:
        study: of the search.
        folder: of the search, with the returns of its trials.
        market: in which they traded.
        n_tried: configurations that the ledger counts on these data.

    Raises:
        UserError: No trial was trained to the end.
    """
    told, best = study.told(), study.best()
    if best is None:
        raise UserError(
            "no trial was trained to the end with a finite objective, so that there is no winner: search lower "
            "learning rates, or give it more time or trials"
        )
    places = [each.place for each in told]
    returns = read_returns(folder, places)
    sharpes = [metrics.sharpe_moments(net).sharpe * math.sqrt(market.periods_per_year) for net in returns.T]
    trials = [
        {
            "place": each.place,
            "number": each.number,
            "state": "pruned" if each.pruned else "complete",
            "value": each.value,
            "params": each.params,
            "curve": list(each.curve),
            "epochs": list(each.epochs),
            "sharpe_ratio": sharpe,
        }
        for each, sharpe in zip(told, sharpes, strict=True)
    ]
    versions = {name: metadata.version(name) for name in ("qfml", "torch", "optuna", "numpy")}
    found = {
        "task": "tune",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | versions,
        "winner": {"place": best.place, "value": best.value, "params": best.params},
        "significance": overfitting(returns, places.index(best.place), market.periods_per_year, n_tried),
        "importance": study.importance(),
        "trials": trials,
    }
    return judgement.plain(found)
