"""Do predictions mean what they say: reliability bins, and the calibration error they add up to."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qfml.errors import DataError
from qfml.metrics.checks import pair
from qfml.metrics.prediction import probabilities

__all__ = ["CalibrationBin", "expected_calibration_error", "reliability_bins", "reliability_bins_regression"]


@dataclass(frozen=True)
class CalibrationBin:
    """One bin of a reliability diagram: means of prediction and outcome over its rows.

    `std_error` is that of `observed`, rows taken as independent; nan for a single row.
    """

    predicted: float
    observed: float
    count: int
    std_error: float


def reliability_bins(
    y_true: ArrayLike, probability: ArrayLike, n_bins: int = 10, positive: float = 1
) -> list[CalibrationBin]:
    """Mean predicted probability against observed frequency in bins of equal width, `(k/n_bins, (k+1)/n_bins]`.

    Args:
        y_true: observed classes as numbers, shape (n,).
        probability: predicted probability of `positive`, shape (n,); 0 falls in the first bin.
        n_bins: number of bins over [0, 1].
        positive: the class in question; all others are its opposite.

    Returns:
        The bins that hold rows, by rising probability; their counts add up to n.

    Raises:
        DataError: see `qfml.metrics.prediction`; also a probability outside [0, 1] or fewer than one bin.

    References:
        DeGroot and Fienberg (1983), The comparison and evaluation of forecasters.

    Example:
        >>> bins = reliability_bins([0, 1, 1, 1], [0.25, 0.25, 0.75, 1.0], n_bins=2)
        >>> [(b.predicted, b.observed, b.count) for b in bins]
        [(0.25, 0.5, 2), (0.875, 1.0, 2)]
    """
    true, predicted = pair(y_true, probabilities(probability))
    inner_edges = np.linspace(0.0, 1.0, _at_least_one(n_bins) + 1)[1:-1]
    return _bins((true == positive).astype(np.float64), predicted, np.searchsorted(inner_edges, predicted, side="left"))


def reliability_bins_regression(y_true: ArrayLike, y_pred: ArrayLike, n_bins: int = 10) -> list[CalibrationBin]:
    """Mean prediction against mean outcome in bins of equally many rows, cut at quantiles of the prediction.

    Args:
        y_true: observed labels, shape (n,).
        y_pred: predictions in the same unit, shape (n,). Equal predictions share a bin, so ties leave fewer bins.
        n_bins: number of bins, at most.

    Returns:
        The bins by rising prediction; their counts add up to n. A calibrated forecaster has `predicted == observed`
        up to the standard error.

    Raises:
        DataError: see `qfml.metrics.prediction`; also fewer than one bin.

    References:
        Mincer and Zarnowitz (1969), The evaluation of economic forecasts: a regression of outcome on prediction,
        here without the assumption of a line.

    Example:
        >>> bins = reliability_bins_regression([1, 2, 5, 6], [0, 1, 2, 3], n_bins=2)
        >>> [(b.predicted, b.observed, b.count) for b in bins]
        [(0.5, 1.5, 2), (2.5, 5.5, 2)]
    """
    true, predicted = pair(y_true, y_pred)
    first_position = np.searchsorted(np.sort(predicted), predicted, side="left")  # equal predictions, equal position
    return _bins(true, predicted, first_position * _at_least_one(n_bins) // len(predicted))


def expected_calibration_error(
    y_true: ArrayLike, probability: ArrayLike, n_bins: int = 10, positive: float = 1
) -> float:
    """Expected calibration error, `sum over bins of count / n * |observed - predicted|`, bins of equal width.

    Biased upwards: a perfect forecaster scores about `sqrt(2 p (1 - p) n_bins / (pi n))` above zero.

    Args:
        y_true: observed classes as numbers, shape (n,).
        probability: predicted probability of `positive`, shape (n,), in [0, 1].
        n_bins: number of bins over [0, 1].
        positive: the class in question; all others are its opposite.

    Returns:
        Expected calibration error in [0, 1].

    Raises:
        DataError: see `reliability_bins`.

    References:
        Guo, Pleiss, Sun and Weinberger (2017), On calibration of modern neural networks, eq. 3.

    Example:
        >>> expected_calibration_error([0, 1, 1, 1], [0.25, 0.25, 0.75, 1.0], n_bins=2)
        0.1875
    """
    bins = reliability_bins(y_true, probability, n_bins, positive)
    return sum(b.count * abs(b.observed - b.predicted) for b in bins) / sum(b.count for b in bins)


def _bins(observed: NDArray[np.float64], predicted: NDArray[np.float64], index: NDArray) -> list[CalibrationBin]:
    result = []
    for k in np.unique(index):
        inside = index == k
        y, n = observed[inside], int(inside.sum())
        std_error = float(y.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
        result.append(CalibrationBin(float(predicted[inside].mean()), float(y.mean()), n, std_error))
    return result


def _at_least_one(n_bins: int) -> int:
    if n_bins < 1:
        raise DataError(f"`n_bins` must be at least 1, got {n_bins}")
    return int(n_bins)
