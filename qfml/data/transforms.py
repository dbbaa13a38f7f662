"""Feature transforms: fitted on training rows only, applied to any rows, stored without pickle.

A transform is a config (a frozen dataclass); `fit` turns it into a fitted transform that holds numbers and no longer
knows the data. Statistics are computed in float64 and applied in float32, where nothing else is said.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import sklearn.decomposition
import sklearn.preprocessing
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.utils import get_tags
from torch import Tensor

from qfml.data.fitted_transforms import (
    FITTED,
    FittedAffine,
    FittedClip,
    FittedQuantileNormal,
    FittedSklearn,
    FittedTransform,
    FittedTransforms,
    checked_features,
    load_transform,
    sklearn_output,
    to_float32,
)
from qfml.errors import ConfigError, DataError

__all__ = [
    "FITTED",
    "TRANSFORMS",
    "FittedTransform",
    "FittedTransforms",
    "QuantileNormal",
    "RobustScale",
    "Sklearn",
    "Standardise",
    "Transform",
    "Winsorise",
    "fit_transforms",
    "load_transform",
]


@runtime_checkable
@runtime_checkable
class Transform(Protocol):
    """A transform that is not fitted yet: settings only."""

    kind: ClassVar[str]

    def fit(self, x: Tensor, feature_names: Sequence[str] | None = None) -> FittedTransform:
        """Learn from training rows `x` of shape (n, F); `feature_names` are used in messages only."""
        ...


@dataclass(frozen=True)
class Standardise:
    """Zero mean and unit variance: `(x - mean) / std`, with the population's `std` (ddof 0).

    Example:
        >>> Standardise().fit(torch.tensor([[1.0], [3.0]])).apply(torch.tensor([[5.0]])).item()
        3.0
    """

    kind: ClassVar[str] = "standardise"

    def fit(self, x: Tensor, feature_names: Sequence[str] | None = None) -> FittedAffine:
        """Learn mean and standard deviation from training rows `x` (n, F); see `Transform.fit`."""
        rows = _training_rows(x, feature_names)
        _refuse_constant(rows, feature_names)
        return _fitted_affine(rows.mean(0), rows.std(0), feature_names)


@dataclass(frozen=True)
class RobustScale:
    """Zero median and unit quantile range: `(x - median) / (q(high) - q(low))`.

    Args:
        low: probability of the lower quantile.
        high: probability of the upper quantile.
    """

    kind: ClassVar[str] = "robust_scale"
    low: float = 0.25
    high: float = 0.75

    def __post_init__(self) -> None:
        _check_probabilities(self.low, self.high)

    def fit(self, x: Tensor, feature_names: Sequence[str] | None = None) -> FittedAffine:
        """Learn median and quantile range from training rows `x` (n, F); see `Transform.fit`."""
        rows = _training_rows(x, feature_names)
        _refuse_constant(rows, feature_names)
        low, median, high = np.quantile(rows, [self.low, 0.5, self.high], axis=0)
        flat = _listed(high == low, feature_names)
        if flat:
            raise DataError(
                f"{flat}: the {self.low} and {self.high} quantiles of the training rows are equal (most values are), "
                "so there is no range to scale by: widen `low` and `high`, or leave the feature out"
            )
        return _fitted_affine(median, high - low, feature_names)


@dataclass(frozen=True)
class Winsorise:
    """Values beyond the training rows' `low` and `high` quantiles are set to those quantiles.

    Args:
        low: probability of the lower quantile.
        high: probability of the upper quantile.
    """

    kind: ClassVar[str] = "winsorise"
    low: float = 0.01
    high: float = 0.99

    def __post_init__(self) -> None:
        _check_probabilities(self.low, self.high)

    def fit(self, x: Tensor, feature_names: Sequence[str] | None = None) -> FittedClip:
        """Learn the two quantiles from training rows `x` (n, F); see `Transform.fit`."""
        low, high = np.quantile(_training_rows(x, feature_names), [self.low, self.high], axis=0)
        return FittedClip(to_float32(low), to_float32(high))


@dataclass(frozen=True)
class QuantileNormal:
    """Each feature through its empirical distribution to a standard normal: `Phi^-1(F(x))`.

    `F` is linear between the training rows' quantiles; ties get the middle of their range. Values at or beyond the
    training extremes become +-5.2, where scikit-learn's `QuantileTransformer` puts them too.

    Args:
        n_quantiles: number of quantiles that are kept; at most one for each training row.
    """

    kind: ClassVar[str] = "quantile_normal"
    n_quantiles: int = 1000

    def __post_init__(self) -> None:
        if self.n_quantiles < 2:
            raise ConfigError(f"`n_quantiles` must be at least 2, got {self.n_quantiles}")

    def fit(self, x: Tensor, feature_names: Sequence[str] | None = None) -> FittedQuantileNormal:
        """Learn the quantiles from training rows `x` (n, F); see `Transform.fit`."""
        rows = _training_rows(x, feature_names)
        _refuse_constant(rows, feature_names)
        last, steps = len(rows) - 1, min(self.n_quantiles, len(rows)) - 1
        # in whole numbers: `np.quantile` rounds its levels, and so moves the ends of a run of ties by one quantile
        whole, part = np.divmod(np.arange(steps + 1) * last, steps)
        ordered = np.sort(rows, axis=0)
        left, right = ordered[whole], ordered[np.minimum(whole + 1, last)]
        quantiles = left + (right - left) * (part / steps)[:, None]
        return FittedQuantileNormal(torch.from_numpy(np.ascontiguousarray(quantiles.T)))


@dataclass(frozen=True)
class Sklearn:
    """A scikit-learn transformer, by name of `sklearn.preprocessing` or `sklearn.decomposition`, or any instance.

    scikit-learn works in float64 on the CPU; the result is returned as float32 on the input's device. An unset
    `random_state` is fixed to 0, so that a second fit gives the same bits.

    Args:
        name: class name, such as `PowerTransformer` (YAML).
        params: its constructor's arguments (YAML).
        transformer: an instance instead of `name` and `params` (scripts); it is cloned, never fitted itself.

    Example:
        >>> fitted = Sklearn("PCA", {"n_components": 1}).fit(torch.tensor([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]]))
        >>> fitted.apply(torch.zeros(5, 7, 2)).shape
        torch.Size([5, 7, 1])
    """

    kind: ClassVar[str] = "sklearn"
    name: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    _: KW_ONLY
    transformer: InitVar[Any] = None

    def __post_init__(self, transformer: Any) -> None:
        if (transformer is None) == (self.name is None):
            raise ConfigError("`sklearn` needs either `name` (and `params`) or, in a script, `transformer`")
        if transformer is None:
            template: Any = _named_transformer(str(self.name), self.params)
        elif not isinstance(transformer, BaseEstimator) or not hasattr(transformer, "fit"):
            raise ConfigError(f"`transformer` must be a scikit-learn transformer, got {transformer!r}")
        else:
            template = clone(transformer)
            object.__setattr__(self, "name", type(template).__name__)
            object.__setattr__(self, "params", _plain_params(template))
        tags = get_tags(template)
        if tags.target_tags.required or not tags.input_tags.two_d_array:
            raise ConfigError(f"`{self.name}` transforms or needs labels; choose a transformer of features alone")
        object.__setattr__(self, "_template", template)

    def fit(self, x: Tensor, feature_names: Sequence[str] | None = None) -> FittedSklearn:
        """Fit a clone of the transformer on training rows `x` (n, F); see `Transform.fit`."""
        rows = _training_rows(x, feature_names)
        estimator: Any = clone(self._template)  # pyright: ignore[reportAttributeAccessIssue]
        unset = {k: 0 for k, v in estimator.get_params().items() if v is None and k.split("__")[-1] == "random_state"}
        estimator.set_params(**unset)
        try:
            estimator.fit(rows)
        except (TypeError, ValueError) as error:
            raise DataError(f"scikit-learn's {self.name} could not be fitted to {rows.shape} rows: {error}") from error
        out = sklearn_output(estimator, rows)
        if not np.isfinite(out).all():
            raise DataError(
                f"scikit-learn's {self.name} gives NaN or infinity on its own training rows; "
                f"constant features there: {_listed(rows.min(0) == rows.max(0), feature_names) or 'none'}"
            )
        return FittedSklearn(estimator, rows.shape[1], out.shape[1])


TRANSFORMS = {cls.kind: cls for cls in (Standardise, RobustScale, Winsorise, QuantileNormal, Sklearn)}


def fit_transforms(
    transforms: Sequence[Transform], x: Tensor, feature_names: Sequence[str] | None = None
) -> FittedTransforms:
    """Fit transforms one after another, each on what those before it make of the training rows.

    Args:
        transforms: in the order in which they are applied; may be empty.
        x: features of the training rows, and of no others, shape (n, F).
        feature_names: F names for error messages.

    Returns:
        The chain, from F to F' features.

    Raises:
        DataError: a feature that is constant, NaN or infinite in the training rows where that matters.

    Example:
        >>> chain = fit_transforms([Winsorise(0.0, 0.5), Standardise()], torch.tensor([[0.0], [2.0], [90.0]]))
        >>> chain.apply(torch.tensor([[1000.0]])).item() == chain.apply(torch.tensor([[2.0]])).item()
        True
    """
    x = checked_features(x, x.shape[-1] if x.ndim else 0)
    steps: list[FittedTransform] = []
    names, n_features_in = feature_names, x.shape[-1]
    for transform in transforms:
        fitted = transform.fit(x, names)
        x = fitted.apply(x)
        if fitted.n_features != fitted.n_features_in:
            names = [f"{transform.kind}[{i}]" for i in range(fitted.n_features)]
        steps.append(fitted)
    return FittedTransforms(tuple(steps), n_features_in)


def _training_rows(x: Tensor, names: Sequence[str] | None) -> np.ndarray:
    """Training rows as float64, finite and not empty."""
    if x.ndim != 2 or x.shape[0] == 0 or x.shape[1] == 0:
        raise DataError(f"a transform is fitted on rows of features, shape (n, F), got {tuple(x.shape)}")
    if names is not None and len(names) != x.shape[1]:
        raise DataError(f"`feature_names` must hold {x.shape[1]} names, got {len(names)}")
    rows = x.detach().to("cpu", torch.float64).numpy()
    for rule, bad in (("NaN in all", np.isnan(rows).all(0)), ("NaN or infinite in some", ~np.isfinite(rows).all(0))):
        if bad.any():
            raise DataError(f"{_listed(bad, names)}: {rule} of the {len(rows)} training rows; leave it out or mend it")
    return rows


def _refuse_constant(rows: np.ndarray, names: Sequence[str] | None) -> None:
    # not `std == 0`: the mean of equal numbers may be rounded
    constant = _listed(rows.min(0) == rows.max(0), names)
    if constant:
        raise DataError(f"{constant}: constant in the {len(rows)} training rows and cannot be scaled; leave it out")


def _listed(chosen: Any, names: Sequence[str] | None) -> str:
    """The chosen features by name, the first five; empty if there are none."""
    where = np.flatnonzero(chosen)
    shown = ", ".join(f"`{names[i]}`" if names is not None else f"feature {i}" for i in where[:5])
    return shown + (f" and {len(where) - 5} more" if len(where) > 5 else "")


def _fitted_affine(centre: np.ndarray, scale: np.ndarray, names: Sequence[str] | None) -> FittedAffine:
    fitted = FittedAffine(to_float32(centre), to_float32(scale))
    lost = _listed(
        (~torch.isfinite(fitted.centre) | ~torch.isfinite(fitted.scale) | (fitted.scale == 0)).numpy(), names
    )
    if lost:
        raise DataError(f"{lost}: its centre or spread lies outside the range of float32; change its unit")
    return fitted


def _check_probabilities(low: float, high: float) -> None:
    if not 0.0 <= low < high <= 1.0:
        raise ConfigError(f"`low` and `high` must satisfy 0 <= low < high <= 1, got {low} and {high}")


def _named_transformer(name: str, params: Mapping[str, Any]) -> BaseEstimator:
    """An instance of that class of scikit-learn's preprocessing or decomposition; nothing else is importable."""
    known: dict[str, Any] = {}
    for module in (sklearn.preprocessing, sklearn.decomposition):
        known |= {key: getattr(module, key) for key in module.__all__}
    known = {k: c for k, c in known.items() if isinstance(c, type) and hasattr(c, "fit") and hasattr(c, "transform")}
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        raise ConfigError(
            f"`{name}` is not a transformer of sklearn.preprocessing or sklearn.decomposition"
            + (f" (did you mean `{close[0]}`?)" if close else "")
        )
    allowed = list(inspect.signature(known[name].__init__).parameters)[1:]
    for key in params:
        if key not in allowed:
            raise ConfigError(f"{name} has no parameter `{key}`; it has: {', '.join(allowed)}")
    try:
        return known[name](**params)
    except TypeError as error:
        raise ConfigError(f"{name}: {error}") from None


def _plain_params(template: BaseEstimator) -> dict[str, Any]:
    """The instance's parameters for a config's hash: plain values as they are, others in scikit-learn's own words."""
    plain = (bool, int, float, str, type(None))
    return {
        key: value if isinstance(value, plain) else repr(value)
        for key, value in template.get_params(deep=False).items()
    }
