"""How well predictions fit: numbers against numbers, and classes or probabilities against classes.

Conventions, the same for every function here:

- `y_true` comes first, `y_pred` second, as in scikit-learn, which computes the standard ones.
- A quantity that the sample does not define is nan, not 0 and not a warning: R² of a constant, a rank correlation with
  a constant, precision where nothing was predicted positive, ROC-AUC of a single class.
- An empty series, nan or infinity, or series of different length raise `DataError`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import sklearn.metrics
from numpy.typing import ArrayLike, NDArray

from qfml.errors import DataError
from qfml.metrics.checks import pair, series

__all__ = [
    "CrossSectionalIC",
    "accuracy",
    "brier",
    "confusion_matrix",
    "cross_sectional_rank_ic",
    "f1",
    "mae",
    "mse",
    "precision",
    "r2",
    "rank_ic",
    "recall",
    "roc_auc",
]


def mse(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Mean squared error, `mean((y_true - y_pred) ** 2)`.

    Args:
        y_true: observed labels, shape (n,).
        y_pred: predictions in the same unit, shape (n,).

    Returns:
        Mean squared error in the unit of the label squared.

    Raises:
        DataError: see the conventions of the module.

    Example:
        >>> mse([0.0, 2.0], [1.0, 2.0])
        0.5
    """
    return float(sklearn.metrics.mean_squared_error(*pair(y_true, y_pred)))


def mae(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Mean absolute error, `mean(|y_true - y_pred|)`.

    Args:
        y_true: observed labels, shape (n,).
        y_pred: predictions in the same unit, shape (n,).

    Returns:
        Mean absolute error in the unit of the label.

    Raises:
        DataError: see the conventions of the module.

    Example:
        >>> mae([0.0, 2.0], [1.0, 2.0])
        0.5
    """
    return float(sklearn.metrics.mean_absolute_error(*pair(y_true, y_pred)))


def r2(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Coefficient of determination, `1 - mse(y_true, y_pred) / var(y_true)`.

    The comparison is with the mean of the very labels that are judged, which no forecaster knew: out of sample a
    useless prediction scores slightly below zero.

    Args:
        y_true: observed labels, shape (n,).
        y_pred: predictions in the same unit, shape (n,).

    Returns:
        R², 1 at best; nan if `y_true` is constant.

    Raises:
        DataError: see the conventions of the module.

    Example:
        >>> r2([0.0, 1.0, 2.0], [0.0, 1.0, 1.0])
        0.5
    """
    true, predicted = pair(y_true, y_pred)
    return float(sklearn.metrics.r2_score(true, predicted)) if np.ptp(true) > 0.0 else math.nan


def rank_ic(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Rank information coefficient of all rows pooled: Spearman's correlation, ties at their average rank.

    On a panel the pooled figure mixes skill across assets with skill over time; `cross_sectional_rank_ic` separates.

    Args:
        y_true: observed labels, shape (n,).
        y_pred: predictions, shape (n,); only their order matters.

    Returns:
        Rank correlation in [-1, 1]; nan if either series is constant.

    Raises:
        DataError: see the conventions of the module.

    References:
        Grinold and Kahn (2000), Active portfolio management, chapter 6.

    Example:
        >>> rank_ic([0.1, 0.2, 0.3], [1.0, 2.0, 30.0])
        1.0
    """
    true, predicted = pair(y_true, y_pred)
    return float(_grouped_rank_correlation(true, predicted, np.zeros(len(true), dtype=np.int64))[0])


class CrossSectionalIC(NamedTuple):
    """Rank information coefficients per time and their mean.

    `std_error` takes the times as independent; labels that overlap make it too small.
    """

    time: NDArray
    values: NDArray[np.float64]
    mean: float
    std_error: float
    n_undefined: int


def cross_sectional_rank_ic(y_true: ArrayLike, y_pred: ArrayLike, time: ArrayLike) -> CrossSectionalIC:
    """Rank information coefficient across the assets of each time, and its mean over time.

    Args:
        y_true: observed labels, shape (n,).
        y_pred: predictions, shape (n,); only their order within a time matters.
        time: time of each row in any order, shape (n,).

    Returns:
        The distinct times in order; the coefficient of each, nan where a time has a single row or a constant label or
        prediction; mean and standard error (ddof 1) over the times that have one; how many have none.

    Raises:
        DataError: see the conventions of the module.

    Example:
        >>> ic = cross_sectional_rank_ic([1, 2, 3, 1, 2, 3], [1, 2, 3, 3, 2, 1], time=[0, 0, 0, 1, 1, 1])
        >>> ic.values.tolist(), ic.mean
        ([1.0, -1.0], 0.0)
    """
    true, predicted = pair(y_true, y_pred)
    times = np.asarray(time)
    if times.shape != true.shape:
        raise DataError(f"`time` must have the shape of `y_true`, {true.shape}, got {times.shape}")
    distinct, codes = np.unique(times, return_inverse=True)
    values = _grouped_rank_correlation(true, predicted, codes.astype(np.int64))
    defined = values[~np.isnan(values)]
    n = len(defined)
    mean = float(defined.mean()) if n else math.nan
    std_error = float(defined.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return CrossSectionalIC(distinct, values, mean, std_error, len(values) - n)


def accuracy(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Share of rows whose class was predicted.

    Args:
        y_true: observed classes as numbers, shape (n,).
        y_pred: predicted classes, shape (n,).

    Returns:
        Accuracy in [0, 1].

    Raises:
        DataError: see the conventions of the module.

    Example:
        >>> accuracy([1, 0, 1, 1], [1, 0, 0, 1])
        0.75
    """
    return float(sklearn.metrics.accuracy_score(*pair(y_true, y_pred)))


def precision(y_true: ArrayLike, y_pred: ArrayLike, positive: float = 1) -> float:
    """Share of the rows predicted `positive` that are so.

    Args:
        y_true: observed classes as numbers, shape (n,).
        y_pred: predicted classes, shape (n,).
        positive: the class in question; all others are its opposite.

    Returns:
        Precision in [0, 1]; nan if no row was predicted positive.

    Raises:
        DataError: see the conventions of the module.

    Example:
        >>> precision([1, -1, 1, 1], [1, 1, -1, 1])
        0.6666666666666666
    """
    true, predicted = _one_against_rest(y_true, y_pred, positive)
    return float(sklearn.metrics.precision_score(true, predicted)) if predicted.any() else math.nan


def recall(y_true: ArrayLike, y_pred: ArrayLike, positive: float = 1) -> float:
    """Share of the rows that are `positive` and were predicted so.

    Args:
        y_true: observed classes as numbers, shape (n,).
        y_pred: predicted classes, shape (n,).
        positive: the class in question; all others are its opposite.

    Returns:
        Recall in [0, 1]; nan if no row is positive.

    Raises:
        DataError: see the conventions of the module.

    Example:
        >>> recall([1, -1, 1, 1], [1, 1, -1, -1])
        0.3333333333333333
    """
    true, predicted = _one_against_rest(y_true, y_pred, positive)
    return float(sklearn.metrics.recall_score(true, predicted)) if true.any() else math.nan


def f1(y_true: ArrayLike, y_pred: ArrayLike, positive: float = 1) -> float:
    """Harmonic mean of precision and recall, `2 TP / (2 TP + FP + FN)`.

    Args:
        y_true: observed classes as numbers, shape (n,).
        y_pred: predicted classes, shape (n,).
        positive: the class in question; all others are its opposite.

    Returns:
        F1 in [0, 1]; nan if no row is positive and none was predicted so.

    Raises:
        DataError: see the conventions of the module.

    Example:
        >>> f1([1, -1, 1, 1], [1, 1, -1, -1])
        0.4
    """
    true, predicted = _one_against_rest(y_true, y_pred, positive)
    return float(sklearn.metrics.f1_score(true, predicted)) if true.any() or predicted.any() else math.nan


def roc_auc(y_true: ArrayLike, score: ArrayLike, positive: float = 1) -> float:
    """Area under the ROC curve: the chance that a positive row scores above another one, ties counting one half.

    Args:
        y_true: observed classes as numbers, shape (n,).
        score: probability or any score that rises with it, shape (n,).
        positive: the class in question; all others are its opposite.

    Returns:
        ROC-AUC in [0, 1]; nan if only one class was observed.

    Raises:
        DataError: see the conventions of the module.

    Example:
        >>> roc_auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
        0.75
    """
    true, scores = pair(y_true, score)
    true = true == positive
    return float(sklearn.metrics.roc_auc_score(true, scores)) if true.any() and not true.all() else math.nan


def brier(y_true: ArrayLike, probability: ArrayLike, positive: float = 1) -> float:
    """Brier score, `mean((probability - [y_true == positive]) ** 2)`.

    Args:
        y_true: observed classes as numbers, shape (n,).
        probability: predicted probability of `positive`, shape (n,), in [0, 1].
        positive: the class in question; all others are its opposite.

    Returns:
        Brier score in [0, 1]; 0 is perfect, 0.25 is a coin.

    Raises:
        DataError: see the conventions of the module; also a probability outside [0, 1].

    References:
        Brier (1950), Verification of forecasts expressed in terms of probability (his score is twice this one).

    Example:
        >>> round(brier([0, 1, 1], [0.0, 1.0, 0.5]), 6)
        0.083333
    """
    true, predicted = pair(y_true, probabilities(probability))
    return float(np.mean((predicted - (true == positive)) ** 2))


def confusion_matrix(y_true: ArrayLike, y_pred: ArrayLike, classes: ArrayLike | None = None) -> NDArray[np.int64]:
    """Count the rows of each observed class (row) that were predicted as each class (column).

    Args:
        y_true: observed classes as numbers, shape (n,).
        y_pred: predicted classes, shape (n,).
        classes: order of rows and columns; without it, all classes that occur, ascending.

    Returns:
        Counts, shape (n_classes, n_classes).

    Raises:
        DataError: see the conventions of the module; also a class that `classes` leaves out.

    Example:
        >>> confusion_matrix([1, -1, 1, 1], [1, 1, -1, 1]).tolist()
        [[0, 1], [1, 2]]
    """
    true, predicted = pair(y_true, y_pred)
    found = np.union1d(true, predicted)
    labels = found if classes is None else series(classes, "classes")
    left_out = np.setdiff1d(found, labels)
    if left_out.size:
        raise DataError(f"`classes` leaves out {left_out.tolist()}, which occurs in the data; name every class")
    return np.asarray(sklearn.metrics.confusion_matrix(true, predicted, labels=labels), dtype=np.int64)


def probabilities(values: ArrayLike) -> NDArray[np.float64]:
    """Return `values` as a series; raises `DataError` unless all lie in [0, 1]."""
    array = series(values, "probability")
    outside = np.flatnonzero((array < 0.0) | (array > 1.0))
    if outside.size:
        raise DataError(
            f"`probability` must lie in [0, 1]; {outside.size} rows do not, the first is {array[outside[0]]} at "
            f"position {outside[0]}: pass probabilities, not logits or scores"
        )
    return array


def _one_against_rest(y_true: ArrayLike, y_pred: ArrayLike, positive: float) -> tuple[NDArray, NDArray]:
    true, predicted = pair(y_true, y_pred)
    return true == positive, predicted == positive


def _grouped_rank_correlation(a: NDArray, b: NDArray, codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Spearman's correlation within each group 0..max(codes), nan where a rank has no variation."""
    count = np.bincount(codes)
    x, y = _centred_ranks(a, codes, count), _centred_ranks(b, codes, count)
    covariance, variance_x, variance_y = (np.bincount(codes, weights=w) for w in (x * y, x * x, y * y))
    result = np.full(len(count), math.nan)
    # the centred ranks of a constant are exactly zero, so > 0 is a safe test
    np.divide(covariance, np.sqrt(variance_x * variance_y), out=result, where=(variance_x > 0) & (variance_y > 0))
    return np.clip(result, -1.0, 1.0)  # sqrt(v * v) may round below v


def _centred_ranks(values: NDArray, codes: NDArray[np.int64], count: NDArray) -> NDArray[np.float64]:
    """Average ranks within each group, minus their mean."""
    order = np.lexsort((values, codes))
    sorted_codes, sorted_values = codes[order], values[order]
    new = np.concatenate([[True], (np.diff(sorted_codes) != 0) | (np.diff(sorted_values) != 0)])
    run = np.cumsum(new) - 1
    first = np.flatnonzero(new)
    last = np.append(first[1:], len(values)) - 1
    ranks = np.empty(len(values))
    ranks[order] = ((first + last) / 2)[run]
    group_start = np.cumsum(count) - count
    return ranks - (group_start + (count - 1) / 2)[codes]
