"""Fitted transforms: numbers learnt from training rows, applied to any rows, stored as JSON and tensors.

No pickle: `meta()` is plain JSON, `state()` a dict of tensors, and `load_transform` rebuilds the same bits from them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from qfml.data.sklearn_state import decode_estimator, encode_estimator
from qfml.errors import CheckpointError, DataError

__all__ = [
    "FITTED",
    "FittedAffine",
    "FittedClip",
    "FittedQuantileNormal",
    "FittedSklearn",
    "FittedTransform",
    "FittedTransforms",
    "checked_features",
    "load_transform",
    "sklearn_output",
    "to_float32",
]


@runtime_checkable
@runtime_checkable
class FittedTransform(Protocol):
    """What `fit` returns: a map of feature vectors that can be written down as JSON and tensors."""

    kind: ClassVar[str]

    @property
    def n_features_in(self) -> int:
        """Number of features it takes, F."""
        ...

    @property
    def n_features(self) -> int:
        """Number of features it gives, F'."""
        ...

    def apply(self, x: Float[Tensor, "*batch features_in"]) -> Float[Tensor, "*batch features_out"]:
        """Transform features (..., F) into float32 features (..., F'), row by row."""
        ...

    def meta(self) -> dict[str, Any]:
        """Everything but the tensors, as JSON types, with `kind`."""
        ...

    def state(self) -> dict[str, Tensor]:
        """The tensors, by name."""
        ...

    @classmethod
    def load(cls, meta: Mapping[str, Any], state: Mapping[str, Tensor]) -> FittedTransform:
        """Rebuild the fitted transform from `meta()` and `state()`."""
        ...


@dataclass(frozen=True, eq=False)
class _Elementwise:
    """Base of the fitted transforms that map each feature on its own, by tensors whose first axis is the feature."""

    kind: ClassVar[str]
    _dtype: ClassVar[torch.dtype] = torch.float32
    _ndim: ClassVar[int] = 1

    @property
    def n_features_in(self) -> int:
        """Number of features it takes, F."""
        return len(next(iter(self.state().values())))

    @property
    def n_features(self) -> int:
        """Number of features it gives, F."""
        return self.n_features_in

    def meta(self) -> dict[str, Any]:
        """The kind; everything else is in the tensors."""
        return {"kind": self.kind}

    def state(self) -> dict[str, Tensor]:
        """The tensors, by name."""
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}

    @classmethod
    def load(cls, meta: Mapping[str, Any], state: Mapping[str, Tensor]) -> Any:
        """Rebuild the fitted transform from `meta()` and `state()`."""
        tensors = {f.name: _stored(state, f.name, cls._dtype, cls._ndim) for f in dataclasses.fields(cls)}
        if set(state) != set(tensors) or len({tensor.shape for tensor in tensors.values()}) != 1:
            raise CheckpointError(f"the state of `{cls.kind}` must hold {list(tensors)} of one shape")
        return cls(**tensors)


@dataclass(frozen=True, eq=False)
class FittedAffine(_Elementwise):
    """`(x - centre) / scale`, with float32 `centre` and `scale` of shape (F,)."""

    kind: ClassVar[str] = "affine"
    centre: Tensor
    scale: Tensor

    def apply(self, x: Float[Tensor, "*batch features_in"]) -> Float[Tensor, "*batch features_out"]:
        """Transform features (..., F) into float32 features (..., F)."""
        x = checked_features(x, self.n_features_in)
        return (x - self.centre.to(x.device)) / self.scale.to(x.device)


@dataclass(frozen=True, eq=False)
class FittedClip(_Elementwise):
    """`min(max(x, low), high)`, with float32 `low` and `high` of shape (F,)."""

    kind: ClassVar[str] = "clip"
    low: Tensor
    high: Tensor

    def apply(self, x: Float[Tensor, "*batch features_in"]) -> Float[Tensor, "*batch features_out"]:
        """Transform features (..., F) into float32 features (..., F)."""
        x = checked_features(x, self.n_features_in)
        return torch.clamp(x, self.low.to(x.device), self.high.to(x.device))


@dataclass(frozen=True, eq=False)
class FittedQuantileNormal(_Elementwise):
    """`Phi^-1(F(x))`, with the float64 quantiles of each feature, shape (F, n_quantiles)."""

    kind: ClassVar[str] = "quantile_normal"
    _dtype: ClassVar[torch.dtype] = torch.float64
    _ndim: ClassVar[int] = 2
    # Phi^-1 of the smallest level that scikit-learn lets through (1e-7)
    _EXTREME: ClassVar[float] = 5.199337582605575
    quantiles: Tensor

    def apply(self, x: Float[Tensor, "*batch features_in"]) -> Float[Tensor, "*batch features_out"]:
        """Transform features (..., F) into float32 features (..., F)."""
        x = checked_features(x, self.n_features_in)
        # float64 inside: near level 1, neighbouring float32 levels lie visibly apart after Phi^-1
        values = x.reshape(-1, x.shape[-1]).T.to(torch.float64).contiguous()
        level = _empirical_level(values, self.quantiles.to(x.device))
        normal = torch.special.ndtri(level).clamp(-self._EXTREME, self._EXTREME)
        return normal.T.reshape(x.shape).to(torch.float32)


def _empirical_level(values: Tensor, quantiles: Tensor) -> Tensor:
    """`F(values)` for values (F, n) from quantiles (F, Q) at equidistant levels; the mean over a run of ties."""
    last = quantiles.shape[1] - 1
    below = torch.searchsorted(quantiles, values, right=False)  # number of quantiles < value
    up_to = torch.searchsorted(quantiles, values, right=True)  # number of quantiles <= value
    i = (up_to - 1).clamp(0, last - 1)
    left, right = quantiles.gather(1, i), quantiles.gather(1, i + 1)
    gap = torch.where(right > left, right - left, 1.0)
    between = (i + (values - left) / gap) / last
    tied = (below + up_to - 1) / (2 * last)  # the value is quantiles[below] = ... = quantiles[up_to - 1]
    level = torch.where(up_to > below, tied, between)
    # at or beyond the extremes the level is 0 or 1, ties or not
    level = torch.where(values <= quantiles[:, :1], 0.0, level)
    return torch.where(values >= quantiles[:, -1:], 1.0, level)


@dataclass(frozen=True, eq=False)
class FittedSklearn:
    """A fitted scikit-learn transformer from `n_features_in` to `n_features` features."""

    kind: ClassVar[str] = "sklearn"
    estimator: Any
    n_features_in: int  # pyright: ignore[reportIncompatibleVariableOverride]
    n_features: int  # pyright: ignore[reportIncompatibleVariableOverride]

    def apply(self, x: Float[Tensor, "*batch features_in"]) -> Float[Tensor, "*batch features_out"]:
        """Transform features (..., F) into float32 features (..., F'); float64 on the CPU inside."""
        x = checked_features(x, self.n_features_in)
        rows = x.detach().reshape(-1, x.shape[-1]).to("cpu", torch.float64).numpy()
        # scikit-learn refuses an empty batch
        out = sklearn_output(self.estimator, rows) if len(rows) else np.empty((0, self.n_features))
        return to_float32(out).to(x.device).reshape(*x.shape[:-1], self.n_features)

    def meta(self) -> dict[str, Any]:
        """The estimator's classes and plain attributes, as JSON types."""
        sizes = {"n_features_in": self.n_features_in, "n_features": self.n_features}
        return {"kind": self.kind, **sizes, "estimator": encode_estimator(self.estimator)[0]}

    def state(self) -> dict[str, Tensor]:
        """The estimator's arrays."""
        return encode_estimator(self.estimator)[1]

    @classmethod
    def load(cls, meta: Mapping[str, Any], state: Mapping[str, Tensor]) -> FittedSklearn:
        """Rebuild the fitted transform from `meta()` and `state()`; only classes of scikit-learn are instantiated."""
        estimator = decode_estimator(meta["estimator"], state)
        if not callable(getattr(estimator, "transform", None)):
            raise CheckpointError(f"{type(estimator).__name__} is not a transformer")
        return cls(estimator, int(meta["n_features_in"]), int(meta["n_features"]))


@dataclass(frozen=True, eq=False)
class FittedTransforms:
    """A chain of fitted transforms, applied in order; itself a fitted transform (the identity if empty)."""

    kind: ClassVar[str] = "chain"
    steps: tuple[FittedTransform, ...]
    n_features_in: int  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def n_features(self) -> int:
        """Number of features it gives, F'."""
        return self.steps[-1].n_features if self.steps else self.n_features_in

    def apply(self, x: Float[Tensor, "*batch features_in"]) -> Float[Tensor, "*batch features_out"]:
        """Transform features (..., F) into float32 features (..., F')."""
        x = checked_features(x, self.n_features_in)
        for step in self.steps:
            x = step.apply(x)
        return x

    def meta(self) -> dict[str, Any]:
        """The steps' meta data in order."""
        return {"kind": self.kind, "n_features_in": self.n_features_in, "steps": [step.meta() for step in self.steps]}

    def state(self) -> dict[str, Tensor]:
        """The steps' tensors under `<step>.<name>`."""
        return {f"{i}.{name}": tensor for i, step in enumerate(self.steps) for name, tensor in step.state().items()}

    @classmethod
    def load(cls, meta: Mapping[str, Any], state: Mapping[str, Tensor]) -> FittedTransforms:
        """Rebuild the chain from `meta()` and `state()`."""
        steps: list[FittedTransform] = []
        for i, step in enumerate(meta["steps"]):
            own = {key.removeprefix(f"{i}."): tensor for key, tensor in state.items() if key.startswith(f"{i}.")}
            steps.append(load_transform(step, own))
        n_features_in = n_features = int(meta["n_features_in"])
        for step in steps:
            if step.n_features_in != n_features:
                raise CheckpointError(
                    f"the stored `{step.kind}` takes {step.n_features_in} features but is given {n_features}"
                )
            n_features = step.n_features
        return cls(tuple(steps), n_features_in)


FITTED: dict[str, type[Any]] = {
    cls.kind: cls for cls in (FittedAffine, FittedClip, FittedQuantileNormal, FittedSklearn, FittedTransforms)
}


def load_transform(meta: Any, state: Mapping[str, Any]) -> FittedTransform:
    """Rebuild a fitted transform bit for bit from its `meta()` and `state()`; nothing in them is executed.

    Raises:
        CheckpointError: they are damaged, or name something that is not a fitted transform.
    """
    kind = meta.get("kind") if isinstance(meta, Mapping) else None
    if not isinstance(kind, str) or kind not in FITTED:
        raise CheckpointError(f"`kind` of a stored transform must be one of {', '.join(FITTED)}, got {kind!r}")
    try:
        return FITTED[kind].load(meta, state)
    except CheckpointError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"the stored transform `{kind}` is damaged: {error!r}") from None


def checked_features(x: Tensor, n_features: int) -> Tensor:
    """`x` as float32, if its last axis holds `n_features` features."""
    if x.ndim == 0 or x.shape[-1] != n_features:
        raise DataError(f"the transform was fitted on {n_features} features (the last axis), got {tuple(x.shape)}")
    return x.to(torch.float32)


def _stored(state: Mapping[str, Tensor], name: str, dtype: torch.dtype, ndim: int) -> Tensor:
    tensor = state[name]
    if not isinstance(tensor, Tensor) or tensor.dtype != dtype or tensor.ndim != ndim:
        raise CheckpointError(f"`{name}` of a stored transform must be a {dtype} tensor with {ndim} axes")
    return tensor


def to_float32(array: np.ndarray) -> Tensor:
    """An array as a float32 tensor; what overflows becomes infinite."""
    with np.errstate(over="ignore"):  # the callers judge the result
        return torch.from_numpy(np.array(array, dtype=np.float32, order="C"))


def sklearn_output(estimator: Any, rows: np.ndarray) -> np.ndarray:
    """What a fitted scikit-learn transformer makes of `rows`, as a dense matrix of numbers."""
    out = estimator.transform(rows)
    toarray: Callable[[], np.ndarray] | None = getattr(out, "toarray", None)  # sparse: one-hot encoders
    out = np.asarray(toarray() if toarray is not None else out)
    if out.ndim != 2 or out.dtype.kind not in "biuf":
        raise DataError(f"{type(estimator).__name__} gives {out.dtype} of shape {out.shape}, not rows of numbers")
    return out
