"""What a backtest is worth: metrics of P&L and predictions, intervals, significance, and a sentence that sums it up.

Returns here are net P&L per period in fractions of capital; a metric that is undefined is None, as JSON has no nan.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from qfml import metrics
from qfml.backtest.pnl import ProfitAndLoss
from qfml.errors import UserError
from qfml.losses import Loss

__all__ = [
    "calibration",
    "deflation",
    "intervals",
    "meaning_of",
    "performance",
    "plain",
    "prediction_metrics",
    "significance",
]

Meaning = Literal["label", "probability", "position", "direction"]
CONFIDENCE = 0.95
_FEWEST_PERIODS = 20  # a bootstrap of fewer means nothing


def meaning_of(loss: Loss) -> Meaning:
    """What the predictions of a network trained with `loss` are, for the rule that makes positions of them.

    Raises:
        UserError: Several predictions a row: a position is made of one.
    """
    if loss.n_outputs > 1:
        raise UserError(
            f"`loss` {loss.kind} predicts {loss.n_outputs} numbers a row, and a position is made of one: take bce for "
            "two classes, pinball for one quantile, or mse"
        )
    if loss.predicts == "probability":
        return "probability"
    return "position" if loss.predicts == "position" else "label"


def performance(books: ProfitAndLoss, periods_per_year: float) -> dict[str, float | None]:
    """Performance and activity of one strategy.

    Args:
        books: Its P&L over the periods to be judged.
        periods_per_year: Periods in a year.

    Returns:
        Metric by name. What compounds (growth, drawdown, Calmar) is None if a period lost all of the capital and more.
    """
    net, p = books.total, periods_per_year
    survives = bool(net.min() >= -1.0)
    found = {
        "sharpe_ratio": metrics.sharpe_ratio(net, p),
        "annualised_return": metrics.annualised_return(net, p) if survives else None,
        "annualised_vol": metrics.annualised_vol(net, p),
        "max_drawdown": metrics.max_drawdown(net) if survives else None,
        "sortino_ratio": metrics.sortino_ratio(net, p),
        "calmar_ratio": metrics.calmar_ratio(net, p) if survives else None,
        "omega_ratio": metrics.omega_ratio(net),
        "value_at_risk": metrics.value_at_risk(net),
        "expected_shortfall": metrics.expected_shortfall(net),
        "hit_rate": metrics.hit_rate(net),
        "turnover": float(books.turnover.mean()) * p,
        "exposure": float(books.exposure.mean()),
        "annualised_cost": float(books.cost.sum(axis=1).mean()) * p,
        "n_periods": len(net),
    }
    return plain(found)


def intervals(
    net: np.ndarray, periods_per_year: float, *, n_bootstrap: int, seed: int
) -> dict[str, list[float | None]]:
    """95 % intervals of the main performance metrics by the stationary bootstrap of a strategy's net returns.

    Args:
        net: Net P&L per period, shape (periods,).
        periods_per_year: Periods in a year.
        n_bootstrap: Number of resamples; 0 for no intervals.
        seed: Of the resampling.

    Returns:
        [low, high] by metric; empty without resamples or with fewer than 20 periods.
    """
    if n_bootstrap == 0 or len(net) < _FEWEST_PERIODS:
        return {}
    statistics = {
        "sharpe_ratio": lambda x: metrics.sharpe_ratio(x, periods_per_year),
        "annualised_vol": lambda x: metrics.annualised_vol(x, periods_per_year),
    }
    if net.min() > -1.0:
        statistics["annualised_return"] = lambda x: metrics.annualised_return(x, periods_per_year)
        statistics["max_drawdown"] = lambda x: metrics.max_drawdown(x)
    found = metrics.bootstrap_intervals(net, statistics, seed=seed, confidence=CONFIDENCE, n_resamples=n_bootstrap)
    return {name: [_number(interval.low), _number(interval.high)] for name, interval in found.items()}


def prediction_metrics(
    y: np.ndarray, predicted: np.ndarray, means: Meaning, time: np.ndarray | None = None
) -> dict[str, Any]:
    """How well labels were predicted.

    Args:
        y: Labels of the test rows, shape (rows,).
        predicted: Predictions, nan where there is none, which are left out and counted.
        means: What a prediction is: the "label", the "probability" of label 1, a "position", or only a "direction".
            The last two share no unit with the label, so that only their order is judged.
        time: Time of each row of a panel: adds the rank IC across assets, averaged over times.

    Returns:
        Metric by name.
    """
    there = np.isfinite(predicted)
    found: dict[str, Any] = {"n_obs": int(there.sum()), "n_missing": int((~there).sum())}
    if not there.any():
        return found
    y, predicted = y[there], predicted[there]
    if means == "label":
        found |= {"mse": metrics.mse(y, predicted), "mae": metrics.mae(y, predicted), "r2": metrics.r2(y, predicted)}
    if means == "probability":
        found |= _classification(y, predicted)
    found["rank_ic"] = metrics.rank_ic(y, predicted)
    if time is not None:
        across = metrics.cross_sectional_rank_ic(y, predicted, time[there])
        found |= {"cross_sectional_rank_ic": across.mean, "cross_sectional_rank_ic_std_error": across.std_error}
    return plain(found)


def _classification(y: np.ndarray, probability: np.ndarray) -> dict[str, Any]:
    guess = (probability > 0.5).astype(float)
    if not np.isin(y, (0.0, 1.0)).all():  # the loss allows labels that are probabilities themselves
        return {"mse": metrics.mse(y, probability)}
    return {
        "accuracy": metrics.accuracy(y, guess),
        "precision": metrics.precision(y, guess),
        "recall": metrics.recall(y, guess),
        "f1": metrics.f1(y, guess),
        "roc_auc": metrics.roc_auc(y, probability),
        "brier": metrics.brier(y, probability),
        "expected_calibration_error": metrics.expected_calibration_error(y, probability),
        "confusion_matrix": metrics.confusion_matrix(y, guess, classes=[0.0, 1.0]).tolist(),
    }


def calibration(y: np.ndarray, predicted: np.ndarray, means: Meaning, n_bins: int = 10) -> dict[str, Any]:
    """Mean prediction against mean outcome, bin by bin; no bins where predictions share no unit with the label."""
    kind = "classification" if means == "probability" else "regression"
    there = np.isfinite(predicted)
    if means not in ("label", "probability") or not there.any():
        return {"kind": kind, "bins": []}
    y, predicted = y[there], predicted[there]
    if means == "probability" and np.isin(y, (0.0, 1.0)).all():
        bins = metrics.reliability_bins(y, predicted, n_bins)
    else:
        bins = metrics.reliability_bins_regression(y, predicted, n_bins)
    return {"kind": kind, "bins": [plain(dataclasses.asdict(each)) for each in bins]}


def significance(
    net: Mapping[str, np.ndarray],
    periods_per_year: float,
    *,
    n_trials: int,
    trial_variance: float | None,
    n_bootstrap: int,
    seed: int,
    n_seeds: int = 1,
) -> dict[str, Any]:
    """Could the network's record be luck, and does it beat the baselines?

    Args:
        net: Net P&L per period of each strategy, "network" among them, all over the same periods.
        periods_per_year: Periods in a year.
        n_trials: Configurations tried on these data, this one included.
        trial_variance: Variance of their Sharpe ratios per period; None or nan with fewer than two.
        n_bootstrap: Resamples of the stationary bootstrap; 0 leaves out what needs them.
        seed: Of the resampling.
        n_seeds: Seeds whose mean the network's prediction is.

    Returns:
        The section `significance` of metrics.json.
    """
    network, p = net["network"], periods_per_year
    moments = metrics.sharpe_moments(network)
    enough = len(network) >= 2 and not math.isnan(moments.sharpe)
    found: dict[str, Any] = {
        "probabilistic_sharpe_ratio": metrics.probabilistic_sharpe_ratio(*moments) if enough else None,
        **deflation(moments, n_trials, trial_variance),
        "min_track_record_length_years": _track_record(moments) / p if enough else None,
        "sharpe_per_period": moments.sharpe,
        "skew": moments.skew,
        "kurtosis": moments.kurtosis,
        "n_obs": moments.n_obs,
    }
    rivals = {name: series for name, series in net.items() if name != "network"}
    found |= _against_rivals(network, rivals, p, n_bootstrap, seed)
    found |= _overfitting(n_seeds)
    return plain(found)


def deflation(moments: metrics.SharpeMoments, n_trials: int, trial_variance: float | None) -> dict[str, Any]:
    """What depends on how much was tried: the deflated Sharpe ratio and the minimum backtest length.

    Args:
        moments: Of the network's net P&L per period.
        n_trials: Configurations tried on these data, this one included.
        trial_variance: Variance of their Sharpe ratios per period; None or nan with fewer than two.

    Returns:
        With one trial the probabilistic Sharpe ratio; with several and no variance None, as it is not known then.
    """
    variance = math.nan if trial_variance is None else float(trial_variance)
    deflated = None
    if moments.n_obs >= 2 and not math.isnan(moments.sharpe):
        if n_trials == 1:
            deflated = metrics.probabilistic_sharpe_ratio(*moments)
        elif not math.isnan(variance):
            deflated = metrics.deflated_sharpe_ratio(*moments, n_trials, variance)
    return plain(
        {
            "deflated_sharpe_ratio": deflated,
            "n_trials": n_trials,
            "trial_variance": variance,
            "min_backtest_length_years": metrics.min_backtest_length(n_trials),
        }
    )


def _track_record(moments: metrics.SharpeMoments) -> float:
    return metrics.min_track_record_length(moments.sharpe, moments.skew, moments.kurtosis)


def _overfitting(n_seeds: int) -> dict[str, Any]:
    """PBO asks how the choice among configurations fares out of sample; seeds are draws of one, not a choice."""
    why = "not defined for one run: it needs the returns of the configurations that were chosen from"
    if n_seeds > 1:
        why += "; the seeds of this run are averaged, none of them was selected"
    return {"pbo": None, "pbo_note": why}


def _against_rivals(
    network: np.ndarray, rivals: Mapping[str, np.ndarray], p: float, n_bootstrap: int, seed: int
) -> dict[str, Any]:
    """SPA of the network against the best baseline, the paired Sharpe difference with its interval, and the verdict."""
    own = metrics.sharpe_ratio(network, p)
    sharpes = {name: metrics.sharpe_ratio(series, p) for name, series in rivals.items()}
    ranked = {name: value for name, value in sharpes.items() if not math.isnan(value)}
    best = max(ranked, key=ranked.__getitem__) if ranked else None
    difference: list[float] | None = None
    p_value = None
    testable = best is not None and n_bootstrap > 0 and len(network) >= _FEWEST_PERIODS
    # a rival that holds the very same positions leaves nothing to test
    if best is not None and testable and np.ptp(network - rivals[best]) > 0.0:
        p_value = metrics.superior_predictive_ability(network, rivals[best], seed=seed, n_resamples=n_bootstrap).p_value
        paired = metrics.bootstrap_interval(
            np.column_stack([network, rivals[best]]),
            lambda x: metrics.sharpe_ratio(x[:, 0], p) - metrics.sharpe_ratio(x[:, 1], p),
            seed=seed,
            confidence=CONFIDENCE,
            n_resamples=n_bootstrap,
        )
        difference = [paired.low, paired.high]
    return {
        "spa_p_value": p_value,
        "best_baseline": best,
        "sharpe_difference": None if best is None else own - ranked[best],
        "sharpe_difference_interval": difference,
        "verdict": verdict(own, best, ranked.get(best) if best else None, difference),
    }


def verdict(sharpe: float, best: str | None, best_sharpe: float | None, difference: list[float] | None) -> str:
    """One honest sentence about the network beside the best baseline.

    Args:
        sharpe: Annualised Sharpe ratio of the network after costs.
        best: Name of the baseline with the highest Sharpe ratio, chosen with hindsight, which favours the baselines.
        best_sharpe: That Sharpe ratio.
        difference: Interval of the paired difference, network minus baseline.

    Example:
        >>> verdict(0.61, "ridge", 0.48, [-0.2, 0.46])
        'The network (Sharpe ratio 0.61) shows no advantage over the best baseline, ridge (0.48), that these data can \
confirm: the 95 % interval of the difference is [-0.20, 0.46].'
    """
    if math.isnan(sharpe):
        return "The network never gained or lost anything after costs: there is no Sharpe ratio to judge."
    if best is None or best_sharpe is None:
        return f"The network has a Sharpe ratio of {sharpe:.2f} after costs; no baseline was run to compare it with."
    versus = f"the best baseline, {best.replace('_', ' ')} ({best_sharpe:.2f})"
    if sharpe == best_sharpe:
        return f"The network earned exactly what {versus} did: it adds nothing."
    if difference is None or any(math.isnan(bound) for bound in difference):
        how = "above" if sharpe > best_sharpe else "not above"
        return f"The network (Sharpe ratio {sharpe:.2f}) is {how} {versus}; whether that is luck was not tested."
    low, high = difference
    stated = f"the 95 % interval of the difference is [{low:.2f}, {high:.2f}]"
    if low > 0.0:
        return f"The network (Sharpe ratio {sharpe:.2f}) beats {versus}: {stated}."
    if high < 0.0:
        return f"The network (Sharpe ratio {sharpe:.2f}) is worse than {versus}: {stated}."
    return (
        f"The network (Sharpe ratio {sharpe:.2f}) shows no advantage over {versus}, that these data can confirm: "
        f"{stated}."
    )


def plain(found: Mapping[str, Any]) -> dict[str, Any]:
    """The same with Python numbers for numpy's, and None for nan."""
    return {name: _plain(value) for name, value in found.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return plain(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return _number(float(value))
    return value.item() if isinstance(value, np.generic) else value


def _number(value: float) -> float | None:
    """None for nan and infinity, neither of which JSON knows."""
    return value if math.isfinite(value) else None
