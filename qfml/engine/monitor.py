"""What an epoch is judged by: metrics on the validation rows, and which of them decides."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from qfml.errors import UserError
from qfml.metrics.prediction import accuracy, brier, mae, mse, r2, rank_ic, roc_auc

Metric = Callable[[np.ndarray, np.ndarray], float]


def _accuracy(y: np.ndarray, probability: np.ndarray) -> float:
    return accuracy(y, (probability > 0.5).astype(np.float64))


# of labels and predictions: the label's mean, a probability, or a position, as the loss has it
METRICS: dict[str, Metric] = {
    "mse": mse,
    "mae": mae,
    "r2": r2,
    "rank_ic": rank_ic,
    "accuracy": _accuracy,
    "roc_auc": roc_auc,
    "brier": brier,
}
MODES = ("min", "max")


def check_monitor(monitor: str, mode: str, metrics: Sequence[str], min_delta: float) -> None:
    """Raise ValueError for what cannot be monitored."""
    for metric in metrics:
        if metric not in METRICS:
            raise UserError(f"`metrics` must be of {', '.join(METRICS)}, got {metric!r}")
    known = ("train_loss", "val_loss", *(f"val_{metric}" for metric in metrics))
    if monitor not in known:
        raise UserError(f"`monitor` must be one of {', '.join(known)}, got {monitor!r}; name others in `metrics`")
    if mode not in MODES:
        raise UserError(f"`mode` must be min or max, got {mode!r}")
    if not 0 <= min_delta < math.inf:
        raise UserError(f"`min_delta` must be >= 0 and finite, got {min_delta}")


def measured(metrics: Sequence[str], y: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """The metrics by name, with `val_` before it; nan where one is not defined on these rows."""
    return {f"val_{name}": float(METRICS[name](y, prediction)) for name in metrics}


def judged(record: Mapping[str, Any], monitor: str, mode: str) -> float | None:
    """The monitored value, turned so that smaller is better; None if the epoch has none."""
    value = record[monitor]
    if value is None:
        return None
    return value if mode == "min" else -value
