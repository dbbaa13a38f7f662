"""Out-of-sample predictions from splitters that do not partition the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from sklearn.base import clone, is_classifier
from sklearn.model_selection import check_cv

from qfml.errors import SplitError
from qfml.splits.base import Splitter

__all__ = ["cross_val_predict"]


def cross_val_predict(
    estimator: Any,
    X: Any,
    y: Any,
    *,
    cv: Splitter | Iterable[tuple[np.ndarray, np.ndarray]],
    method: str = "predict",
    time: Any = None,
    label_end: Any = None,
    window_start: Any = None,
    fit_params: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """Predict every tested sample by models that did not train on it, averaged over the splits that test it.

    scikit-learn's function of this name refuses splitters that test a sample several times (combinatorial) or never
    (walk-forward). Here the former are averaged and the latter are nan.

    Args:
        estimator: a scikit-learn estimator; it is cloned for every split.
        X: (N, ...) features: an array, or a pandas object whose DatetimeIndex gives the times.
        y: (N,) or (N, n_outputs) labels.
        cv: a splitter of this package, or the (train, test) pairs of one.
        method: "predict", "predict_proba", "predict_log_proba" or "decision_function".
        time: (N,) decision times, if X does not carry them.
        label_end: (N,) moments the labels are known, if X does not carry them.
        window_start: (N,) earliest information of the features, if X does not carry it.
        fit_params: further arguments of `fit`; arrays of length N are cut to the training rows.

    Returns:
        float64 of shape (N,), or (N, n_classes) in the order of the sorted classes; nan where a sample is never tested.

    Raises:
        SplitError: for predicted classes, which have no average, or a class that no model of a split can know.

    Example:
        >>> import numpy as np
        >>> from sklearn.linear_model import LinearRegression
        >>> from qfml.splits import WalkForward
        >>> x = np.arange(8.0)
        >>> cross_val_predict(
        ...     LinearRegression(), x[:, None], 2 * x, cv=WalkForward(4, 2), time=x, label_end=x + 1
        ... ).round(6)
        array([nan, nan, nan, nan,  8., 10., 12., 14.])
    """
    if method == "predict" and is_classifier(estimator):
        raise SplitError("predicted classes have no average: use method='predict_proba' or 'decision_function'")
    if isinstance(cv, Splitter):
        splits = cv.split(X, y, time=time, label_end=label_end, window_start=window_start)
    elif time is not None or label_end is not None or window_start is not None:
        raise SplitError(
            "`time`, `label_end` and `window_start` are for a splitter; the pairs in `cv` are already split"
        )
    else:
        pairs: Any = cv
        checked: Any = check_cv(pairs)
        splits = checked.split(X, y)
    y = np.asarray(y) if not hasattr(y, "iloc") else y
    classes = np.unique(np.asarray(y)) if is_classifier(estimator) else None
    n_samples = len(y)
    total: np.ndarray | None = None
    n_times = np.zeros(n_samples, dtype=np.int64)
    for train, test in splits:
        model: Any = clone(estimator)
        model.fit(_take(X, train), _take(y, train), **_cut(fit_params, train, n_samples))
        made = np.asarray(getattr(model, method)(_take(X, test)), dtype=np.float64)
        if classes is not None and not np.array_equal(model.classes_, classes):
            made = _spread(made, model.classes_, classes, method)
        if total is None:
            total = np.zeros((n_samples, *made.shape[1:]))
        total[test] += made
        n_times[test] += 1
    if total is None:
        raise SplitError("`cv` has no splits")
    with np.errstate(invalid="ignore"):
        return total / n_times.reshape(-1, *[1] * (total.ndim - 1))  # 0 / 0 is nan: never tested


def _take(values: Any, rows: np.ndarray) -> Any:
    return values.iloc[rows] if hasattr(values, "iloc") else values[rows]


def _cut(fit_params: Mapping[str, Any] | None, rows: np.ndarray, n_samples: int) -> dict[str, Any]:
    """The arguments of `fit` with whatever has one value per sample cut to `rows`."""
    arguments = dict(fit_params or {})
    for name, value in arguments.items():
        shape = np.shape(value)
        if shape and shape[0] == n_samples:
            arguments[name] = _take(value if hasattr(value, "iloc") else np.asarray(value), rows)
    return arguments


def _spread(made: np.ndarray, known: np.ndarray, classes: np.ndarray, method: str) -> np.ndarray:
    """Probabilities of the classes a model knows, as probabilities of all classes: it gives 0 to the others."""
    if method not in ("predict_proba", "predict_log_proba"):
        missing = np.setdiff1d(classes, known).tolist()
        raise SplitError(
            f"a training set has no sample of the classes {missing}, and `{method}` has no value for a class it does "
            f"not know; use method='predict_proba', or folds that hold every class"
        )
    spread = np.full((len(made), classes.size), 0.0 if method == "predict_proba" else -np.inf)
    spread[:, np.searchsorted(classes, known)] = made
    return spread
