"""What the estimators share: nested parameters, times and weights, training as one stack, predictions of each seed."""

from __future__ import annotations

import dataclasses
import warnings
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from qfml.data.dataset import TimeDataset
from qfml.engine.member import Member
from qfml.engine.nested_parameters import nested_fields, rebuilt
from qfml.engine.trainer import Trainer
from qfml.engine.unvalidated import check_unvalidated
from qfml.errors import DataError, SplitError, UserError
from qfml.losses import Loss
from qfml.networks import MLP, Network, as_network
from qfml.splits.validation import validation_tail

DTYPES = (np.float64, np.float32)  # what is neither of them becomes the first
_CONTAINERS = (None, "default", "pandas")


class NeuralEstimator(BaseEstimator):
    """What the regressor and the classifier have in common; they are in `qfml.engine.sklearn`."""

    def __init__(
        self,
        network: Any = None,
        loss: Any = None,
        trainer: Any = None,
        *,
        validation: Any = None,
        embargo: Any = 0,
        purge_lookback: Any = False,
        n_seeds: Any = 1,
        random_state: Any = None,
    ) -> None:
        self.network = network
        self.loss = loss
        self.trainer = trainer
        self.validation = validation
        self.embargo = embargo
        self.purge_lookback = purge_lookback
        self.n_seeds = n_seeds
        self.random_state = random_state

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters by name; with `deep` also what lies in them, as `trainer__max_epochs`."""
        params = super().get_params(deep=False)
        if deep:
            for name in ("network", "loss", "trainer"):
                inner = nested_fields(self._component(name))
                params |= {f"{name}__{field}": value for field, value in inner.items()}
        return params

    def set_params(self, **params: Any) -> NeuralEstimator:
        """Set parameters by name; `trainer__optimizer__lr=0.1` rebuilds the trainer with another optimizer in it."""
        super().set_params(**{name: value for name, value in params.items() if "__" not in name})
        inner: dict[str, dict[str, Any]] = defaultdict(dict)
        for name, value in params.items():
            first, within, rest = name.partition("__")
            if within:
                inner[first][rest] = value
        for first, changes in inner.items():
            if first not in ("network", "loss", "trainer"):
                raise UserError(f"`{first}` has no parameters of its own; network, loss and trainer have")
            setattr(self, first, rebuilt(self._component(first), changes))
        return self

    def set_output(self, *, transform: str | None = None) -> NeuralEstimator:
        """Choose what predictions come in: "pandas" gives them the index of X, "default" leaves numpy arrays.

        The keyword is scikit-learn's; None changes nothing.
        """
        if transform not in _CONTAINERS:
            raise UserError(f'`transform` must be "default", "pandas" or None, got {transform!r}')
        if transform is not None:
            self._sklearn_output_config = {"predict": transform}  # under this name `clone` copies it
        return self

    def _component(self, name: str) -> Any:
        """The network, loss or trainer that None stands for, or the one given."""
        given = getattr(self, name)
        return self._default(name) if given is None else given

    def _default(self, name: str) -> Any:
        return {"network": MLP(), "trainer": Trainer(max_epochs=100, batch_size=32)}[name]

    def _checked_component(self, name: str, kind: type, example: str) -> Any:
        component = self._component(name)
        if isinstance(component, type) or not isinstance(component, kind):
            raise UserError(f"`{name}` must be one such as {example}, got {component!r}")
        return component

    def _train(self, X: np.ndarray, y: np.ndarray, loss: Loss, weight: Any, times: Mapping[str, Any]) -> None:
        """Train one stack of `n_seeds` members, which differ in nothing but their seed, into `fits_`."""
        network = as_network(self._component("network"))
        if isinstance(network, type) or not isinstance(network, Network):
            raise UserError(f"`network` must be one such as MLP(hidden=(32, 32)), got {network!r}")
        trainer = self._checked_component("trainer", Trainer, "Trainer(max_epochs=100, batch_size=32)")
        seeds = self.n_seeds
        if isinstance(seeds, bool) or not isinstance(seeds, (int, np.integer)) or seeds < 1:
            raise UserError(f"`n_seeds` must be a whole number, at least 1, got {seeds!r}")
        if self.random_state is not None:
            trainer = dataclasses.replace(trainer, seed=_seed(self.random_state))
        ds = timed(X, y, weight, times)
        train, val = self._split(ds, trainer)
        self._check_rows(ds, train, val)
        members = [Member(network, train, val, seed=seed) for seed in range(int(seeds))]
        self.fits_ = trainer.fit_many(members, loss, ds)
        self.input_shape_ = X.shape[1:]
        broken = [fit.seed for fit in self.fits_ if fit.status == "nan"]
        if broken:
            warnings.warn(
                f"the networks of the seeds {broken} met a NaN or infinity and were kept as they were before; lower "
                "the learning rate, clip the gradient, or scale X and y",
                ConvergenceWarning,
                stacklevel=3,
            )

    def _split(self, ds: TimeDataset, trainer: Trainer) -> tuple[np.ndarray, np.ndarray | None]:
        """The rows to train on and, if asked for, the validation rows at the end of time."""
        rows = np.arange(len(ds))
        if self.validation is not None:
            if len(ds) < 2:
                raise DataError("`validation` needs rows to train on and others to judge by, got n_samples=1")
            try:
                fold = validation_tail(
                    ds, rows, self.validation, embargo=self.embargo, purge_lookback=self.purge_lookback
                )
            except SplitError as error:
                raise SplitError(f"`validation` cannot be kept back: {error}") from None
            return fold.train, fold.test
        for name, unused in (("embargo", self.embargo not in (0, None)), ("purge_lookback", self.purge_lookback)):
            if unused:
                raise UserError(
                    f"`{name}` acts between training and validation rows, of which there are none: set `validation`, "
                    f"such as 0.2, or leave `{name}` out, got {getattr(self, name)!r}"
                )
        check_unvalidated(trainer, "set `validation`, such as 0.2")
        return rows, None

    def _check_rows(self, ds: TimeDataset, train: np.ndarray, val: np.ndarray | None) -> None:
        """Raise ValueError where all rows of one side weigh nothing."""
        for name, rows in (("training", train), ("validation", val)):
            if rows is not None and ds.weight is not None and not bool((ds.weight[rows] > 0).any()):
                raise DataError(f"`sample_weight` is zero on all {len(rows)} {name} rows: leave such rows out")

    def _each_seed(self, X: Any) -> np.ndarray:
        """Predictions (n_seeds, n, ...), float64."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=DTYPES, allow_nd=True)
        if X.shape[1:] != self.input_shape_:
            raise DataError(f"X has samples of shape {X.shape[1:]}, but the networks know {self.input_shape_}")
        rows = np.arange(len(X))
        ds = timed(X, np.zeros(len(X)), None, {})
        return np.stack([fit.predict(ds, rows) for fit in self.fits_])

    def _mean_and_std(self, each: np.ndarray, X: Any, return_std: bool, columns: Any = None) -> Any:
        """The mean over seeds and, if wanted, their sample standard deviation, in the container that was chosen."""
        if not return_std:
            return self._contained(each.mean(0), X, columns)
        if len(each) < 2:
            raise UserError("`return_std` is the spread over seeds, of which there is one: set `n_seeds` to at least 2")
        return tuple(self._contained(value, X, columns) for value in (each.mean(0), each.std(0, ddof=1)))

    def _contained(self, values: np.ndarray, X: Any, columns: Any = None) -> Any:
        """`values` as an array or, if `set_output` said so, as a pandas object with the index of X."""
        if getattr(self, "_sklearn_output_config", {}).get("predict", "default") == "default":
            return values
        index = getattr(X, "index", None)
        if values.ndim == 1:
            return pd.Series(values, index=index, name="prediction")
        return pd.DataFrame(values, index=index, columns=columns)


def timed(X: np.ndarray, y: np.ndarray, weight: Any, times: Mapping[str, Any]) -> TimeDataset:
    """The samples with the times that were given; without any, the rows in their order, each label known at once."""
    given: dict[str, Any] = {name: value for name, value in times.items() if value is not None}
    if given and not {"time", "label_end"} <= given.keys():
        raise DataError(
            f"`time` and `label_end` are needed to purge, but only {', '.join(f'`{name}`' for name in given)} was "
            "passed: pass both (`label_end=time` says that labels are known at once), or no times at all"
        )
    if not given:
        given = {name: np.arange(len(X)) for name in ("time", "label_end", "window_start")}
    return TimeDataset(X, y, weight=weight, **given)


def _seed(random_state: Any) -> int:
    """A whole number is the seed itself; a generator draws one."""
    if isinstance(random_state, (int, np.integer)):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))


def checked_weights(sample_weight: Any, n: int) -> np.ndarray | None:
    """Weights (n,) as float64; DataError if they are no weights, or all of them 0."""
    if sample_weight is None:
        return None
    weight = np.asarray(sample_weight, dtype=np.float64)
    if weight.shape != (n,):
        raise DataError(f"`sample_weight` must have shape ({n},) like the rows of X, got {weight.shape}")
    bad = ~(np.isfinite(weight) & (weight >= 0))
    if bad.any():
        raise DataError(
            f"`sample_weight` must be finite and >= 0, got {weight[bad][0]} in row {bad.argmax()} ({bad.sum()} such)"
        )
    if not weight.any():
        raise DataError("`sample_weight` is zero everywhere: no row is left to train on")
    return weight
