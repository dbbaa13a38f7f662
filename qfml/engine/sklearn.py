"""`NeuralRegressor` and `NeuralClassifier`: the engine behind scikit-learn's interface."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from qfml.engine.estimator import DTYPES, NeuralEstimator, checked_weights
from qfml.errors import DataError, UserError
from qfml.losses import BCE, MSE, CrossEntropy, Loss, Quantiles

__all__ = ["EXPECTED_FAILED_CHECKS", "NeuralClassifier", "NeuralRegressor"]

EXPECTED_FAILED_CHECKS = {
    "check_sample_weight_equivalence_on_dense_data": "repeating a row changes which rows share a batch; a weight cannot"
}
"""What `sklearn.utils.estimator_checks.check_estimator` is told in `expected_failed_checks`, with the reason."""


class NeuralRegressor(RegressorMixin, NeuralEstimator):
    """Regression by small networks, trained as one stack of seeds, as a scikit-learn estimator.

    Without times the rows count as samples in their order whose labels are known at once: `validation` then keeps the
    last rows and nothing is purged. Pass `time` and `label_end` to `fit` (through a Pipeline or a search by metadata
    routing: `set_fit_request(time=True, label_end=True)`) to purge training rows whose labels reach into validation.

    Args:
        network: one of `qfml.networks.NETWORKS`, or a function that builds a `torch.nn.Module`; `MLP()` if None.
            Networks on windows take X of shape (n, L, F).
        loss: one of `qfml.losses.LOSSES`; `MSE()` if None. With `Quantiles(...)` predictions have a column a level.
        trainer: how to train; `Trainer(max_epochs=100, batch_size=32)` if None.
        validation: how much of the end of time to keep back for early stopping and the choice of the best epoch: a
            share of the timestamps (0.2), a count, or a length of time ("6M"); None trains on all rows.
        embargo: widens the gap before the validation rows: a count of timestamps or a length of time.
        purge_lookback: also purge training rows whose features or labels share times with validation windows.
        n_seeds: networks that differ in their seed only; the prediction is their mean.
        random_state: replaces the trainer's `seed`: a whole number, or a numpy `RandomState` that draws one. None
            keeps the trainer's, so that two fits agree to the last bit.

    Attributes:
        fits_: one `Fit` a seed, with its history, status and best epoch.
        n_features_in_: number of features (of rows of a window, if X holds windows).
        feature_names_in_: names of the columns of X, where X had names.
        input_shape_: shape of one sample, (F,) or (L, F).

    Parameters of network, loss and trainer are reached by two underscores, as in
    `GridSearchCV(model, {"trainer__optimizer__lr": [1e-3, 1e-2]})`.

    Example:
        >>> from qfml.engine import Trainer
        >>> X = np.linspace(-1, 1, 200)[:, None]
        >>> model = NeuralRegressor(trainer=Trainer(max_epochs=10, batch_size=32), n_seeds=2)
        >>> model = model.set_params(trainer__optimizer__lr=0.02).fit(X, 2 * X[:, 0])
        >>> mean, std = model.predict(X, return_std=True)
        >>> mean.shape, std.shape, bool(model.score(X, 2 * X[:, 0]) > 0.9)
        ((200,), (200,), True)
    """

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        time: Any = None,
        label_end: Any = None,
        window_start: Any = None,
        group: Any = None,
    ) -> NeuralRegressor:
        """Train on the samples.

        Args:
            X: features, shape (n, F), or (n, L, F) for networks on windows.
            y: labels, shape (n,).
            sample_weight: weights >= 0 of the rows in training and validation loss, shape (n,).
            time: decision times, shape (n,): datetimes or numbers.
            label_end: moments at which the labels are known, shape (n,).
            window_start: earliest information of the features, shape (n,); `time` itself if omitted.
            group: the asset of each sample of a panel, shape (n,).

        Returns:
            The estimator itself.

        Raises:
            ValueError: data or settings that break a rule; the message says which.
        """
        if len(shape := getattr(y, "shape", ())) == 2 and shape[1] > 1:
            raise DataError(
                f"`y` must be one label a row, got shape {tuple(shape)}: train a network for each column by "
                "sklearn.multioutput.MultiOutputRegressor(NeuralRegressor(...))"
            )
        X, y = validate_data(self, X, y, dtype=DTYPES, allow_nd=True, y_numeric=True)
        times = {"time": time, "label_end": label_end, "window_start": window_start, "group": group}
        loss = self._checked_component("loss", Loss, "MSE()")
        if isinstance(loss, CrossEntropy):
            raise UserError(f"`loss` predicts classes, got {loss!r}: use NeuralClassifier, or a loss such as MSE()")
        self._train(X, np.asarray(y), loss, checked_weights(sample_weight, len(X)), times)
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Predictions (n,), the mean over seeds, and with `return_std` their standard deviation over seeds (n,).

        Both are (n, K) for a loss of K quantiles.
        """
        each = self._each_seed(X)
        loss = self.fits_[0].loss
        levels = loss.levels if isinstance(loss, Quantiles) else None
        return self._mean_and_std(each, X, return_std, levels)

    def _default(self, name: str) -> Any:
        return MSE() if name == "loss" else super()._default(name)


class NeuralClassifier(ClassifierMixin, NeuralEstimator):
    """Classification by small networks, trained as one stack of seeds, as a scikit-learn estimator.

    Times, validation and nested parameters are those of `NeuralRegressor`.

    Args:
        network: as in `NeuralRegressor`.
        loss: for two classes `BCE()`, `WeightedBCE(...)` or `Focal(...)`, for any number K of them
            `CrossEntropy(n_classes=K)`; if None `BCE()` for two classes, else the cross-entropy.
        trainer: how to train; `Trainer(max_epochs=100, batch_size=32)` if None.
        validation: how much of the end of time to keep back, as in `NeuralRegressor`.
        embargo: widens the gap before the validation rows.
        purge_lookback: also purge by the windows of the features.
        n_seeds: networks that differ in their seed only; the probability is their mean.
        random_state: replaces the trainer's `seed`, as in `NeuralRegressor`.

    Attributes:
        classes_: the labels, sorted.
        fits_: one `Fit` a seed, with its history, status and best epoch.
        n_features_in_: number of features (of rows of a window, if X holds windows).
        feature_names_in_: names of the columns of X, where X had names.
        input_shape_: shape of one sample, (F,) or (L, F).

    Example:
        >>> from qfml.engine import Trainer
        >>> X = np.linspace(-1, 1, 200)[:, None]
        >>> model = NeuralClassifier(trainer=Trainer(max_epochs=10, batch_size=32))
        >>> model = model.fit(X, np.where(X[:, 0] > 0, "up", "down"))
        >>> model.classes_, model.predict([[-0.9], [0.9]])
        (array(['down', 'up'], dtype='<U4'), array(['down', 'up'], dtype='<U4'))
    """

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        time: Any = None,
        label_end: Any = None,
        window_start: Any = None,
        group: Any = None,
    ) -> NeuralClassifier:
        """Train on the samples; `y` (n,) holds the classes, all else is as in `NeuralRegressor.fit`."""
        X, y = validate_data(self, X, y, dtype=DTYPES, allow_nd=True)
        weight = checked_weights(sample_weight, len(X))
        try:
            check_classification_targets(y)
            self.classes_, codes = np.unique(y, return_inverse=True)
        except TypeError:  # there is no order of None and texts
            raise DataError("`y` must hold classes of one kind, none of them missing: numbers, or texts") from None
        if len(np.unique(codes if weight is None else codes[weight > 0])) < 2:
            raise DataError(f"`y` holds one class only, {self.classes_}: a classifier needs two classes that weigh")
        times = {"time": time, "label_end": label_end, "window_start": window_start, "group": group}
        loss = self._loss_of(len(self.classes_))
        self._train(X, codes.astype(np.float32), loss, weight, times)
        return self

    def predict(self, X: Any) -> Any:
        """The most probable class of each sample, shape (n,)."""
        probabilities = self._probabilities(X).mean(0)
        return self._contained(self.classes_[probabilities.argmax(1)], X)

    def predict_proba(self, X: Any, return_std: bool = False) -> Any:
        """Probabilities (n, n_classes), the mean over seeds; with `return_std` also their spread over seeds."""
        return self._mean_and_std(self._probabilities(X), X, return_std, self.classes_)

    def _probabilities(self, X: Any) -> np.ndarray:
        """Probabilities (n_seeds, n, n_classes)."""
        each = self._each_seed(X)
        if each.ndim == 2:
            return np.stack([1 - each, each], axis=-1)
        return each / each.sum(axis=-1, keepdims=True)  # they were rounded to single precision one by one

    def _loss_of(self, n_classes: int) -> Loss:
        """The loss for so many classes; ValueError if the one given is for another number of them."""
        if self.loss is None:
            return BCE() if n_classes == 2 else CrossEntropy(n_classes=n_classes)
        known = self.loss.n_classes if isinstance(self.loss, CrossEntropy) else 2
        if not isinstance(self.loss, (BCE, CrossEntropy)):
            raise UserError(f"`loss` must be one such as BCE() or CrossEntropy(n_classes=3), got {self.loss!r}")
        if known != n_classes:
            raise UserError(
                f"`loss` {self.loss!r} is for {known} classes, but `y` holds {n_classes}: take "
                f"CrossEntropy(n_classes={n_classes}), or leave `loss` out"
            )
        return self.loss

    def _default(self, name: str) -> Any:
        return None if name == "loss" else super()._default(name)
