"""What a network must beat, on the same folds: buy and hold, ridge, last-sign momentum, HAR.

A baseline predicts the test rows of a fold from its training rows and, where a setting must be chosen, from its
validation tail; it never sees more than the network does. Predictions are in the unit of the label, or probabilities
where the label is a class.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from qfml.backtest.folds import FoldRows
from qfml.data.dataset import TimeDataset
from qfml.errors import DataError, UserError
from qfml.splits import validation_tail

__all__ = ["BASELINES", "HAR", "Baseline", "BuyAndHold", "Momentum", "Ridge", "last_known_return", "ridge_path"]

Forecasts = Literal["label", "direction", "nothing"]

_CHUNK = 32_768  # rows of flattened windows held in float64 at a time
_HAR_COLUMNS = ("har_daily", "har_weekly", "har_monthly")


@runtime_checkable
class Baseline(Protocol):
    """A strategy to compare with.

    `forecasts` says what its predictions are worth: the "label" itself, only its "direction", or "nothing".
    """

    kind: ClassVar[str]
    forecasts: ClassVar[Forecasts]

    def predict(self, ds: TimeDataset, fold: FoldRows, *, classify: bool, transforms: Any = None) -> np.ndarray:
        """Predictions (n_test,), float64, for the test rows of `fold`; nan where there is none."""
        ...


@dataclass(frozen=True)
class BuyAndHold:
    """Long every asset that has a row, equal weights."""

    kind: ClassVar[str] = "buy_and_hold"
    forecasts: ClassVar[Forecasts] = "nothing"

    def predict(self, ds: TimeDataset, fold: FoldRows, *, classify: bool, transforms: Any = None) -> np.ndarray:
        """One for every row: long."""
        return np.ones(len(fold.test))


@dataclass(frozen=True)
class Momentum:
    """The asset's last known return(s), compounded: the period that ends at the decision, and those before it.

    Attributes:
        n_periods: Number of returns.
    """

    kind: ClassVar[str] = "momentum"
    forecasts: ClassVar[Forecasts] = "direction"
    n_periods: int = 1

    def __post_init__(self) -> None:
        if self.n_periods < 1:
            raise UserError(f"`n_periods` must be at least 1, got {self.n_periods}")

    def predict(self, ds: TimeDataset, fold: FoldRows, *, classify: bool, transforms: Any = None) -> np.ndarray:
        """The last return; for classes 1 after a rise, 0 after a fall, 0.5 after neither."""
        if ds.returns is None:
            raise DataError("momentum needs the returns of the assets: pass `returns=` to TimeDataset")
        last = last_known_return(ds.time, ds.group, ds.returns, n_periods=self.n_periods)[fold.test]
        return (np.sign(last) + 1.0) / 2.0 if classify else last


@dataclass(frozen=True)
class Ridge:
    """Ridge regression on the network's own inputs, windows flattened; for classes ridge-penalised logistic regression.

    Fitted on the fold's training rows with each penalty; the penalty that predicts the validation tail best is taken,
    the largest one among equals. Without a validation tail one is split off the training rows for that choice.

    Attributes:
        penalties: Penalties tried, per training row and for features scaled to unit variance on the training rows.
        validation: Fraction of the training times used to choose where the run has no validation tail.
    """

    kind: ClassVar[str] = "ridge"
    forecasts: ClassVar[Forecasts] = "label"
    penalties: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)
    validation: float = 0.15

    def __post_init__(self) -> None:
        if not self.penalties or not all(np.isfinite(p) and p > 0.0 for p in self.penalties):
            raise UserError(f"`penalties` must be one or more positive numbers, got {self.penalties}")
        if not 0.0 < self.validation < 1.0:
            raise UserError(f"`validation` must lie in (0, 1), got {self.validation}")

    def predict(self, ds: TimeDataset, fold: FoldRows, *, classify: bool, transforms: Any = None) -> np.ndarray:
        """Predictions with the penalty that does best on the validation tail."""
        train, val = fold.train, fold.val
        if val is None:
            tail = validation_tail(ds, train, self.validation)
            train, val = tail.train, tail.test
        penalties = sorted(self.penalties, reverse=True)
        if classify:
            return _logistic(ds, train, val, fold.test, penalties, transforms)
        coefficients, intercepts = _fit_ridge(ds, train, penalties, transforms)
        losses = np.zeros(len(penalties))
        for x, y, weight in _chunks(ds, val, transforms):
            losses += weight @ (x @ coefficients + intercepts - y[:, None]) ** 2
        best = int(np.argmin(losses))
        parts = [x @ coefficients[:, best] + intercepts[best] for x, _, _ in _chunks(ds, fold.test, transforms)]
        return np.concatenate(parts)


@dataclass(frozen=True)
class HAR:
    """Least squares of the label on daily, weekly and monthly realised volatility: for labels of realised volatility.

    References:
        Corsi (2009), "A simple approximate long-memory model of realized volatility", eq. 8.
    """

    kind: ClassVar[str] = "har"
    forecasts: ClassVar[Forecasts] = "label"

    def predict(self, ds: TimeDataset, fold: FoldRows, *, classify: bool, transforms: Any = None) -> np.ndarray:
        """Predictions from the raw components; the network's transforms are left out."""
        missing = [name for name in _HAR_COLUMNS if name not in ds.feature_names]
        if missing:
            raise DataError(
                f"the HAR baseline needs the features {', '.join(_HAR_COLUMNS)}; missing: {', '.join(missing)}. "
                "Add the feature `har`, or leave `har` out of `baselines`"
            )
        if classify:
            raise UserError("the HAR baseline predicts a volatility, not a class; leave `har` out of `baselines`")
        columns = [ds.feature_names.index(name) for name in _HAR_COLUMNS]
        train, test = (
            np.column_stack([np.ones(len(rows)), ds.features[ds.ends[torch.as_tensor(rows)]][:, columns].double()])
            for rows in (fold.train, fold.test)
        )
        root_weight = np.sqrt(_weights(ds, fold.train))
        label = ds.y[torch.as_tensor(fold.train)].double().numpy()
        return test @ np.linalg.lstsq(train * root_weight[:, None], label * root_weight)[0]


BASELINES: dict[str, type] = {cls.kind: cls for cls in (BuyAndHold, Ridge, Momentum, HAR)}


def last_known_return(
    time: np.ndarray, group: np.ndarray | None, returns: np.ndarray, *, n_periods: int = 1
) -> np.ndarray:
    """The compounded return of each row's asset over the `n_periods` periods that end at the row.

    `returns` of a row runs to the asset's next row, so what is known at a row are the returns of the rows before it.

    Args:
        time: Time of each row, any order.
        group: Asset code of each row, or None for one asset.
        returns: Simple return of each row's asset from its time to the asset's next row; nan = unknown.
        n_periods: Number of periods.

    Returns:
        Shape (rows,); nan where an asset has too few rows before, or one of the returns is unknown.

    Example:
        >>> last_known_return(np.array([1, 2, 3]), None, np.array([0.1, -0.5, 0.3]), n_periods=2).round(3)
        array([  nan,   nan, -0.45])
    """
    asset = np.zeros(len(time), dtype=np.int64) if group is None else group
    order = np.lexsort((time, asset))
    growth, asset = 1.0 + returns[order], asset[order]
    known = np.ones(len(time))
    for back in range(1, n_periods + 1):
        before = np.full(len(time), np.nan)
        before[back:] = np.where(asset[back:] == asset[:-back], growth[:-back], np.nan)
        known *= before
    result = np.empty(len(time))
    result[order] = known - 1.0
    return result


def ridge_path(covariance: np.ndarray, cross: np.ndarray, penalties: Any) -> np.ndarray:
    r"""Ridge coefficients for many penalties from one eigendecomposition, features scaled to unit variance.

    $\beta_\lambda = D^{-1} (D^{-1} C D^{-1} + \lambda I)^{-1} D^{-1} c$ with $D$ the features' standard deviations.
    A feature that does not vary gets coefficient 0.

    Args:
        covariance: Covariance $C$ of the features, shape (features, features).
        cross: Covariance $c$ of the features with the label, shape (features,).
        penalties: Penalties $\lambda > 0$, shape (penalties,).

    Returns:
        Coefficients, shape (features, penalties).

    Example:
        >>> ridge_path(np.array([[4.0]]), np.array([2.0]), [1.0]).round(3)
        array([[0.25]])
    """
    deviation = np.sqrt(np.diag(covariance))
    inverse = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 0.0)
    values, vectors = np.linalg.eigh(covariance * np.outer(inverse, inverse))
    # rounding can make a zero eigenvalue slightly negative, which no penalty may meet
    shrunk = (vectors.T @ (cross * inverse))[:, None] / (np.maximum(values, 0.0)[:, None] + np.asarray(penalties))
    return inverse[:, None] * (vectors @ shrunk)


def _fit_ridge(ds: TimeDataset, rows: np.ndarray, penalties: Any, transforms: Any) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (features, penalties) and intercepts (penalties,) from weighted moments, taken chunk by chunk."""
    x, y, _ = next(_chunks(ds, rows[:1], transforms))
    # moments about a typical row, so that a large mean does not swallow the variance
    shift = np.append(x[0], y[0])
    total, first, second = 0.0, np.zeros(len(shift)), np.zeros((len(shift), len(shift)))
    for x, y, weight in _chunks(ds, rows, transforms):
        joint = np.column_stack([x, y]) - shift
        total += weight.sum()
        first += weight @ joint
        second += (joint * weight[:, None]).T @ joint
    mean = first / total
    covariance = second / total - np.outer(mean, mean)
    mean += shift
    flat = np.diag(covariance) <= (1e-7 * np.abs(mean)) ** 2  # below what float32 features resolve
    covariance[flat] = covariance[:, flat] = 0.0
    coefficients = ridge_path(covariance[:-1, :-1], covariance[:-1, -1], penalties)
    return coefficients, mean[-1] - mean[:-1] @ coefficients


def _logistic(
    ds: TimeDataset, train: np.ndarray, val: np.ndarray, test: np.ndarray, penalties: Any, transforms: Any
) -> np.ndarray:
    (x, y, weight), (x_val, y_val, weight_val), (x_test, _, _) = (
        (np.concatenate(parts) for parts in zip(*_chunks(ds, rows, transforms))) for rows in (train, val, test)
    )
    if not np.isin(y, (0.0, 1.0)).all():
        raise DataError("ridge-penalised logistic regression needs labels 0 and 1; leave `ridge` out of `baselines`")
    if y.min() == y.max():
        return np.full(len(test), y[0])  # one class only: nothing to fit
    mean = np.dot(weight, x) / weight.sum()
    deviation = np.sqrt(np.dot(weight, (x - mean) ** 2) / weight.sum())
    scale = np.where(deviation > 1e-7 * np.abs(mean), deviation, np.inf)
    best_loss, best = np.inf, np.empty(0)
    for penalty in penalties:
        # scikit-learn minimises |b|^2 / 2 + C * sum of losses; `penalty` is per training row
        model: Any = LogisticRegression(C=1.0 / (penalty * weight.sum()), max_iter=1000)
        model.fit((x - mean) / scale, y, sample_weight=weight)
        score = (x_val - mean) / scale @ model.coef_[0] + model.intercept_[0]
        loss = float(np.average(np.logaddexp(0.0, score) - y_val * score, weights=weight_val))
        if loss < best_loss:
            best_loss, best = loss, model.predict_proba((x_test - mean) / scale)[:, 1]
    return best


def _chunks(ds: TimeDataset, rows: np.ndarray, transforms: Any) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Flattened inputs (n, F) or (n, L * F), labels and weights of `rows` in float64, some rows at a time."""
    for start in range(0, len(rows), _CHUNK):
        some = rows[start : start + _CHUNK]
        x, y = ds.gather(torch.as_tensor(some))[:2]
        x = x if transforms is None else transforms.apply(x)
        yield x.reshape(len(some), -1).double().numpy(), y.double().numpy(), _weights(ds, some)


def _weights(ds: TimeDataset, rows: np.ndarray) -> np.ndarray:
    return np.ones(len(rows)) if ds.weight is None else ds.weight[torch.as_tensor(rows)].double().numpy()
