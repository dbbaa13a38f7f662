"""What an epoch is judged by: metrics on the validation rows, and which of them decides."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from qfml.errors import UserError
from qfml.losses import Loss
from qfml.metrics.prediction import accuracy, brier, mae, mse, r2, rank_ic, roc_auc

Metric = Callable[[np.ndarray, np.ndarray], float]
MetricOfSeveral = Callable[[np.ndarray, np.ndarray, Loss], float]


def _accuracy(y: np.ndarray, probability: np.ndarray) -> float:
    return accuracy(y, (probability > 0.5).astype(np.float64))


def _class_accuracy(y: np.ndarray, probabilities: np.ndarray, loss: Loss) -> float:
    """Share of rows whose most probable class is the observed one."""
    return accuracy(y, probabilities.argmax(axis=1).astype(np.float64))


def _class_brier(y: np.ndarray, probabilities: np.ndarray, loss: Loss) -> float:
    """Mean over rows of the squared distance to the observed class, summed over classes, as Brier (1950) has it."""
    observed = y[:, None] == np.arange(probabilities.shape[1])
    return float(np.mean(np.square(probabilities - observed).sum(axis=1)))


def _coverage_error(y: np.ndarray, quantiles: np.ndarray, loss: Loss) -> float:
    """Mean over levels of the distance between a level and the share of labels at or below its quantile."""
    share = (y[:, None] <= quantiles).mean(axis=0)
    return float(np.mean(np.abs(share - np.array(getattr(loss, "levels")))))  # noqa: B009  (of `Quantiles` alone)


# of labels and predictions of one number a row: the label's mean, a probability, or a position, as the loss has it
METRICS: dict[str, Metric] = {
    "mse": mse,
    "mae": mae,
    "r2": r2,
    "rank_ic": rank_ic,
    "accuracy": _accuracy,
    "roc_auc": roc_auc,
    "brier": brier,
}
# of predictions of K numbers a row (n, K), by what the loss predicts
METRICS_OF_SEVERAL: dict[str, dict[str, MetricOfSeveral]] = {
    "class_probabilities": {"accuracy": _class_accuracy, "brier": _class_brier},
    "quantiles": {"coverage_error": _coverage_error},
}
KNOWN = tuple(dict.fromkeys((*METRICS, *(name for own in METRICS_OF_SEVERAL.values() for name in own))))
MODES = ("min", "max")


def check_monitor(monitor: str, mode: str, metrics: Sequence[str], min_delta: float) -> None:
    """Raise ValueError for what cannot be monitored."""
    for metric in metrics:
        if metric not in KNOWN:
            raise UserError(f"`metrics` must be of {', '.join(KNOWN)}, got {metric!r}")
    known = ("train_loss", "val_loss", *(f"val_{metric}" for metric in metrics))
    if monitor not in known:
        raise UserError(f"`monitor` must be one of {', '.join(known)}, got {monitor!r}; name others in `metrics`")
    if mode not in MODES:
        raise UserError(f"`mode` must be min or max, got {mode!r}")
    if not 0 <= min_delta < math.inf:
        raise UserError(f"`min_delta` must be >= 0 and finite, got {min_delta}")


def check_metrics(metrics: Sequence[str], loss: Loss) -> None:
    """Raise ValueError for metrics that the predictions of a loss do not have."""
    known = METRICS if loss.n_outputs == 1 else METRICS_OF_SEVERAL.get(loss.predicts, {})
    for metric in metrics:
        if metric not in known:
            raise UserError(
                f"`metrics` has {metric!r}, which the predictions of `{loss.kind}` ({loss.predicts}) do not have: "
                f"take of {', '.join(known) or 'none'}"
            )


def measured(metrics: Sequence[str], y: np.ndarray, prediction: np.ndarray, loss: Loss) -> dict[str, float]:
    """The metrics by name, with `val_` before it; nan where one is not defined on these rows.

    Nor is it for a member that has diverged, whose neighbours in the stack go on.
    """
    if not np.isfinite(prediction).all():
        return {f"val_{name}": math.nan for name in metrics}
    if loss.n_outputs == 1:
        return {f"val_{name}": float(METRICS[name](y, prediction)) for name in metrics}
    known = METRICS_OF_SEVERAL[loss.predicts]
    return {f"val_{name}": known[name](y, prediction, loss) for name in metrics}


def judged(record: Mapping[str, Any], monitor: str, mode: str) -> float | None:
    """The monitored value, turned so that smaller is better; None if the epoch has none."""
    value = record[monitor]
    if value is None:
        return None
    return value if mode == "min" else -value
