"""`walk_forward`: train on each fold, trade its test block, and judge the whole beside the baselines."""

from __future__ import annotations

import platform
import time as clock
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from qfml import config, metrics
from qfml.backtest import judgement
from qfml.backtest.baselines import Baseline, BuyAndHold, Momentum, Ridge
from qfml.backtest.entries import describe, fold_entry, member_entry
from qfml.backtest.folds import FoldRows, plan_folds
from qfml.backtest.judgement import Meaning, meaning_of
from qfml.backtest.pnl import ProfitAndLoss, check_costs
from qfml.backtest.positions import PositionRule, Sign
from qfml.backtest.result import WalkForwardResult
from qfml.backtest.strategies import Market, baseline_rule, check_rule, pnl_frame, positions_frame, rule_input
from qfml.backtest.training import FitsMany, fit_fold_transforms, fit_folds, predict_folds
from qfml.data.dataset import TimeDataset
from qfml.data.transforms import Transform
from qfml.engine import Callback
from qfml.engine.provenance import provenance
from qfml.errors import UserError
from qfml.losses import Loss
from qfml.networks import Network

__all__ = ["walk_forward"]

_PACKAGES = ("qfml", "torch", "numpy", "polars", "scikit-learn", "arch")


def walk_forward(
    ds: TimeDataset,
    *,
    splitter: Any,
    network: Network,
    trainer: FitsMany,
    loss: Loss,
    cost_bps: float,
    positions: PositionRule = Sign(),  # noqa: B008  (frozen)
    n_seeds: int = 1,
    seed: int = 0,
    validation: float = 0.15,
    transforms: Sequence[Transform] = (),
    slippage: float = 0.0,
    execution_lag: int = 1,
    warm_start: bool = False,
    baselines: Sequence[Baseline] = (BuyAndHold(), Ridge(), Momentum()),
    n_bootstrap: int = 1000,
    n_trials: int = 1,
    trial_variance: float | None = None,
    periods_per_year: float | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint_dir: str | Path | None = None,
    resume: bool = False,
) -> WalkForwardResult:
    """Backtest a network out of sample: train on each fold, trade its test block, compare with baselines.

    Every fold and seed is a member of one stack. Scalers are fitted on a fold's training rows only, the last part of
    which is kept back, purged, to stop early and to choose the ridge penalty. The traded prediction is the mean over
    seeds. All strategies pay the same costs over the same periods.

    Args:
        ds: Data with `returns`.
        splitter: One of `qfml.splits` that tests each row once at most.
        network: Specification of the network, drawn anew for each fold and seed.
        trainer: A `Trainer`.
        loss: The training loss. It says what a prediction means: a probability (`BCE`), a position
            (losses of the P&L, such as `NegativeSharpe`), else the label.
        cost_bps: Cost of trading, basis points of the amount traded. Never defaulted.
        positions: One of `qfml.backtest.POSITIONS`.
        n_seeds: Members per fold.
        seed: Of the first member; the others follow by one. Also seeds the bootstrap.
        validation: Fraction of a fold's training times in the purged validation tail; 0 for none.
        transforms: Transforms of the features, in order.
        slippage: Further cost, in multiples of an asset's trailing per-period volatility times the amount traded.
        execution_lag: Periods between decision and fill. Zero fills at the price of the decision itself.
        warm_start: Start each fold from the parameters of the one before. Folds then train one after another and
            cannot be stacked; the seeds of a fold still are.
        baselines: Strategies to compare with. Add `HAR()` where the label is realised volatility.
        n_bootstrap: Resamples behind intervals and tests; 0 leaves them out.
        n_trials: Configurations tried on these data, this one included.
        trial_variance: Variance of their Sharpe ratios per period.
        periods_per_year: Periods in a year; derived from the times if None.
        callbacks: Told of every epoch; a `Bar` is told the number of folds.
        checkpoint_dir: Folder of the trainer's checkpoints.
        resume: Continue training from them.

    Returns:
        Predictions, positions, P&L, metrics and the trained members.

    Raises:
        UserError: If settings contradict each other or the data.
        DataError: If the data have no returns.
        SplitError: If a fold ends up empty.

    Example:
        >>> import numpy as np, qfml
        >>> from qfml.data import TimeDataset
        >>> from qfml.splits import WalkForward
        >>> rng = np.random.default_rng(0)
        >>> days = np.arange("2020-01-01", "2021-02-04", dtype="datetime64[D]")
        >>> X, r = rng.normal(size=(400, 2)), rng.normal(0, 0.01, 400)
        >>> ds = TimeDataset(X, r, time=days, label_end=days + 1, returns=r)
        >>> result = walk_forward(
        ...     ds, splitter=WalkForward(train_size=200, test_size=50), network=qfml.MLP(hidden=(4,)), loss=qfml.MSE(),
        ...     trainer=qfml.Trainer(max_epochs=2, batch_size=64), cost_bps=1.0, n_bootstrap=100)
        >>> len(result.metrics["folds"]), sorted(result.metrics["strategies"])
        (4, ['buy_and_hold', 'momentum', 'network', 'ridge'])
    """
    begin = clock.perf_counter()
    _check_kinds(positions, baselines, transforms)
    check_costs(cost_bps, slippage, execution_lag)
    _check(n_seeds, n_bootstrap, baselines)
    means = meaning_of(loss)
    check_rule(positions, means)
    _check_trials(n_trials, trial_variance)
    p = metrics.periods_per_year(ds.time) if periods_per_year is None else float(periods_per_year)
    folds = plan_folds(ds, splitter, validation)
    market = Market.of(ds, folds, periods_per_year=p, cost_bps=cost_bps, slippage=slippage, execution_lag=execution_lag)
    market.trade(positions, np.full(len(ds), np.nan))  # a rule that cannot trade these assets says so before training
    fitted = fit_fold_transforms(ds, folds, transforms)
    # baselines first: what they refuse is then refused before the long part
    predicted: dict[str, np.ndarray] = {}
    meanings: dict[str, Meaning] = {}
    books: dict[str, ProfitAndLoss] = {}
    for baseline in baselines:
        values = np.full(len(ds), np.nan)
        for fold in folds:
            values[fold.test] = baseline.predict(
                ds, fold, classify=means == "probability", transforms=fitted[fold.model]
            )
        its_meaning = _baseline_meaning(baseline, means)
        rule = baseline_rule(positions, baseline)
        books[baseline.kind] = market.trade(rule, rule_input(rule, values, its_meaning))
        if baseline.forecasts != "nothing":
            predicted[baseline.kind], meanings[baseline.kind] = values, its_meaning

    seeds = range(seed, seed + n_seeds)
    training_begin = clock.perf_counter()
    fits = fit_folds(
        ds,
        folds,
        fitted,
        network=network,
        trainer=trainer,
        loss=loss,
        seeds=seeds,
        warm_start=warm_start,
        callbacks=callbacks,
        checkpoint_dir=None if checkpoint_dir is None else Path(checkpoint_dir),
        resume=resume,
    )
    training_seconds = clock.perf_counter() - training_begin

    by_seed = {number: predict_folds(ds, folds, fits, number) for number in seeds}
    ensemble = _mean(list(by_seed.values()))
    predicted, meanings = {"network": ensemble, **predicted}, {"network": means, **meanings}
    books = {"network": market.trade(positions, rule_input(positions, ensemble, means)), **books}
    seed_books = {
        f"seed_{number}": market.trade(positions, rule_input(positions, values, means))
        for number, values in by_seed.items()
    }
    found: dict[str, Any] = {
        "task": "walk_forward",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "data_hash": ds.data_hash,
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in _PACKAGES},
        "conventions": {
            "periods_per_year": p,
            "ddof": 1,
            "kurtosis": "raw",
            "cost_bps": cost_bps,
            "slippage": slippage,
            "execution_lag": execution_lag,
            "positions": config.to_dict(positions),
            "baseline_positions": {b.kind: baseline_rule(positions, b).kind for b in baselines},
            "pnl": "fractions of a constant capital; return a year, drawdown and Calmar ratio compound it",
            "prediction_means": means,
            "seeds": f"{seeds[0]} to {seeds[-1]}, predictions averaged" if n_seeds > 1 else str(seed),
            "validation": validation,
            "warm_start": "each fold from the one before (folds not stacked)" if warm_start else "none",
            "training_rows": _training_side(ds, folds),
            "confidence": judgement.CONFIDENCE,
            "n_bootstrap": n_bootstrap,
        },
        "data": describe(ds, books["network"], predicted["network"], folds),
        "audit": {"ran": False, "n_times": 0, "leaks": []},
        "folds": [
            fold_entry(ds, number, fold, market, books["network"], predicted["network"], means)
            for number, fold in enumerate(folds)
        ],
        "members": [member_entry(ds, each, folds, market, seed_books, by_seed, means) for each in fits],
        "strategies": {
            name: {
                "metrics": judgement.performance(book, p),
                "intervals": judgement.intervals(book.total, p, n_bootstrap=n_bootstrap, seed=seed),
            }
            for name, book in books.items()
        },
        "prediction": _predictions_judged(ds, folds, predicted, meanings),
        "calibration": judgement.calibration(*_tested(ds, folds, predicted["network"]), means),
        "significance": judgement.significance(
            {name: book.total for name, book in books.items()},
            p,
            n_trials=n_trials,
            trial_variance=trial_variance,
            n_bootstrap=n_bootstrap,
            seed=seed,
            n_seeds=n_seeds,
        ),
    }
    components = {"splitter": splitter, "network": network, "trainer": trainer, "loss": loss, "positions": positions}
    numbers = {
        "cost_bps": cost_bps,
        "slippage": slippage,
        "execution_lag": execution_lag,
        "n_seeds": n_seeds,
        "seed": seed,
        "validation": validation,
        "warm_start": warm_start,
        "n_bootstrap": n_bootstrap,
    }
    lists = {"transforms": [_plain(t) for t in transforms], "baselines": [_plain(b) for b in baselines]}
    settings = {"task": "walk_forward"} | {name: _plain(part) for name, part in components.items()} | lists | numbers
    found["config_hash"] = config.config_hash(settings)
    made = provenance(
        seeds=seeds,
        data_hash=ds.data_hash,
        config_hash=found["config_hash"],
        threads=torch.get_num_threads(),
    )
    found["provenance"] = {name: made[name] for name in ("platform", "threads", "seeds", "git")}
    found["seconds"] = {"training": training_seconds, "total": clock.perf_counter() - begin}
    return WalkForwardResult(
        predictions=_predictions_frame(ds, folds, by_seed, predicted),
        positions=positions_frame(ds, market, books),
        pnl=pnl_frame(market, books | seed_books),
        metrics=judgement.plain(found),
        fits=fits,
        settings=settings,
    )


def _check_kinds(positions: Any, baselines: Any, transforms: Any) -> None:
    """Refuse names and classes where components are wanted."""
    wanted = [("positions", [positions], "decide", "Sign()"), ("baselines", baselines, "predict", "(Ridge(),)")]
    wanted.append(("transforms", transforms, "fit", "(Standardise(),)"))
    for name, found, method, example in wanted:
        parts = [found] if isinstance(found, str) or not isinstance(found, Sequence) else list(found)
        wrong = [part for part in parts if isinstance(part, (str, type)) or not hasattr(part, method)]
        if wrong:
            raise UserError(f"`{name}` takes components such as {example}, got {wrong[0]!r}")


def _check_trials(n_trials: int, trial_variance: float | None) -> None:
    """Refuse a number of trials below 1 and a negative variance, before anything is trained."""
    if n_trials < 1:
        raise UserError(f"`n_trials` counts this configuration too and is at least 1, got {n_trials}")
    if trial_variance is not None and trial_variance < 0:
        raise UserError(f"`trial_variance` must not be negative, got {trial_variance}")


def _check(n_seeds: int, n_bootstrap: int, baselines: Sequence[Baseline]) -> None:
    if n_seeds < 1:
        raise UserError(f"`n_seeds` must be at least 1, got {n_seeds}")
    if n_bootstrap < 0:
        raise UserError(f"`n_bootstrap` must be a number of resamples, or 0 for none, got {n_bootstrap}")
    names = [baseline.kind for baseline in baselines]
    if len(set(names)) != len(names) or "network" in names:
        raise UserError(f"`baselines` must have distinct kinds, none of them `network`, got {', '.join(names)}")


def _baseline_meaning(baseline: Baseline, means: Meaning) -> Meaning:
    if baseline.forecasts == "nothing":
        return "direction"
    if means == "probability":
        return "probability"
    return "label" if baseline.forecasts == "label" else "direction"


def _mean(predictions: list[np.ndarray]) -> np.ndarray:
    """Mean over the seeds that have a prediction; nan where none has."""
    stacked = np.stack(predictions)
    count = np.isfinite(stacked).sum(axis=0)
    return np.where(count > 0, np.nansum(stacked, axis=0) / np.maximum(count, 1), np.nan)


def _tested(ds: TimeDataset, folds: Sequence[FoldRows], values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = np.concatenate([fold.test for fold in folds])
    return ds.y.cpu().double().numpy()[rows], values[rows]


def _predictions_judged(
    ds: TimeDataset, folds: Sequence[FoldRows], predicted: dict[str, np.ndarray], meanings: dict[str, Meaning]
) -> dict[str, Any]:
    rows = np.concatenate([fold.test for fold in folds])
    time = None if ds.group is None else ds.time[rows]
    return {
        name: judgement.prediction_metrics(*_tested(ds, folds, values), meanings[name], time)
        for name, values in predicted.items()
    }


def _predictions_frame(
    ds: TimeDataset, folds: Sequence[FoldRows], by_seed: dict[int, np.ndarray], predicted: dict[str, np.ndarray]
) -> pl.DataFrame:
    rows = np.concatenate([fold.test for fold in folds])
    columns: dict[str, Any] = {"time": ds.time[rows]}
    if ds.group is not None:
        columns["group"] = np.array(ds.group_names)[ds.group[rows]]
    columns["fold"] = np.repeat(np.arange(len(folds)), [len(fold.test) for fold in folds])
    columns["y"] = ds.y.cpu().double().numpy()[rows]
    columns["network"] = predicted["network"][rows]
    columns |= {f"seed_{number}": values[rows] for number, values in by_seed.items()}
    columns |= {name: values[rows] for name, values in predicted.items() if name != "network"}
    keys = ["time"] if ds.group is None else ["time", "group"]
    return pl.DataFrame(columns, nan_to_null=True).sort(keys)


def _training_side(ds: TimeDataset, folds: Sequence[FoldRows]) -> str:
    later = any(ds.time[fold.train].max() > ds.time[fold.test].min() for fold in folds)
    return (
        "on both sides of the test block (cross-validation, no trader could have done it)" if later else "earlier only"
    )


def _plain(component: Any) -> Any:
    """A component's settings, or its name if it is the user's own and has none that can be written down."""
    try:
        return config.to_dict(component)
    except TypeError:
        return repr(component)
