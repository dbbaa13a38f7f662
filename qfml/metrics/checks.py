"""The input checks that every metric shares: a metric of a hole or of nothing is an error, never a number."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qfml.errors import DataError

__all__ = ["matrix", "pair", "probability", "series"]


def series(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """Return `values` as a float64 array of shape (n,); raises `DataError` if empty, not 1-D or not finite."""
    array = _numbers(values, name)
    if array.ndim != 1:
        raise DataError(f"`{name}` must be one series of shape (n,), got {array.shape}; pass one column at a time")
    return _filled(array, name)


def matrix(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """Return `values` as a float64 array of shape (n, k), one series being k = 1; the same checks as `series`."""
    array = _numbers(values, name)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2:
        raise DataError(f"`{name}` must have shape (n,) or (n, k), got shape {array.shape}")
    return _filled(array, name)


def pair(y_true: ArrayLike, y_pred: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return two finite series of one length."""
    true, predicted = series(y_true, "y_true"), series(y_pred, "y_pred")
    if len(true) != len(predicted):
        raise DataError(f"`y_true` and `y_pred` must have one length, got {len(true)} and {len(predicted)}")
    return true, predicted


def probability(value: float, name: str) -> float:
    """Return `value` if it lies strictly between 0 and 1."""
    if not 0.0 < value < 1.0:
        raise DataError(f"`{name}` must lie in (0, 1), got {value}")
    return float(value)


def _numbers(values: ArrayLike, name: str) -> NDArray[np.float64]:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"`{name}` must be an array of numbers: {error}") from None


def _filled(array: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    if array.size == 0:
        raise DataError(f"`{name}` is empty, shape {array.shape}: there is nothing to measure")
    holes = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
    if holes.size:
        raise DataError(
            f"`{name}` has {holes.size} rows that are not finite, the first at position {holes[0]}; "
            "fill or drop them first, knowing what they mean"
        )
    return array
