"""Fitted transforms as plain tensor operations, the ones that a graph can hold.

A fitted transform is taken apart into steps: a kind, and tensors that another fold may replace. Steps of the same kinds
and shapes are the same graph, so that one trace serves all folds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qfml.data.fitted_transforms import FittedAffine, FittedClip, FittedQuantileNormal, FittedSklearn, FittedTransforms
from qfml.errors import UserError

__all__ = ["EXPORTED_SKLEARN", "Step", "applied", "raw_points", "steps_of"]


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a transform: `kind` is a key of `_STEPS`, whose function takes `tensors` by name."""

    kind: str
    tensors: dict[str, Tensor]


def steps_of(transform: Any) -> tuple[Step, ...]:
    """A fitted transform as steps, in order; none for None.

    Raises:
        UserError: a transform that has no equal in plain operations; the message names what to take instead.
    """
    if transform is None:
        return ()
    if isinstance(transform, FittedTransforms):
        return tuple(step for each in transform.steps for step in steps_of(each))
    if isinstance(transform, FittedSklearn):
        return _sklearn_steps(transform.estimator)
    if isinstance(transform, FittedQuantileNormal):
        return (Step(transform.kind, transform.state() | {"normal": NORMAL, "limits": LIMITS}),)
    if isinstance(transform, (FittedAffine, FittedClip)):
        return (Step(transform.kind, transform.state()),)
    raise UserError(
        f"the transform {getattr(transform, 'kind', type(transform).__name__)!r} cannot be exported: a graph holds the "
        f"transforms of qfml only; {_INSTEAD}"
    )


def applied(x: Tensor, kinds: Sequence[str], tensors: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Features (..., F) after all steps, float32 (..., F')."""
    x = x.to(torch.float32)
    for kind, own in zip(kinds, tensors, strict=True):
        x = _STEPS[kind](x, **own)
    return x


# ---- the steps ------------------------------------------------------------------------------------------------------


def _affine(x: Tensor, centre: Tensor, scale: Tensor) -> Tensor:
    return (x - centre) / scale


def _clip(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(x, low), high)


def _quantile_normal(x: Tensor, quantiles: Tensor, normal: Tensor, limits: Tensor) -> Tensor:
    """`FittedQuantileNormal.apply` by a search and an inverse normal that are written out."""
    values = x.reshape(-1, x.shape[-1]).T.to(torch.float64)
    n_features, n_quantiles = quantiles.shape
    last = n_quantiles - 1
    below, up_to = _count(quantiles, values, torch.lt), _count(quantiles, values, torch.le)
    i = (up_to - 1).clamp(0, last - 1)
    left, right = quantiles.gather(1, i), quantiles.gather(1, i + 1)
    gap = torch.where(right > left, right - left, 1.0)
    level = torch.where(up_to > below, (below + up_to - 1) / (2 * last), (i + (values - left) / gap) / last)
    level = torch.where(values <= quantiles[:, :1], 0.0, level)
    level = torch.where(values >= quantiles[:, -1:], 1.0, level)
    return inverse_normal(level, normal, limits).T.reshape(*x.shape[:-1], n_features).to(torch.float32)


def _count(quantiles: Tensor, values: Tensor, is_smaller: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """How many of the rising `quantiles` (F, Q) are smaller than each of `values` (F, n), by bisection."""
    n_quantiles = quantiles.shape[1]
    found = torch.zeros_like(values, dtype=torch.int64)
    step = 1 << (n_quantiles.bit_length() - 1)
    while step:
        further = found + step
        entry = quantiles.gather(1, (further - 1).clamp(max=n_quantiles - 1))
        found = torch.where((further <= n_quantiles) & is_smaller(entry, values), further, found)
        step //= 2
    return found


def _affine64(x: Tensor, centre: Tensor, scale: Tensor) -> Tensor:
    return ((x.to(torch.float64) - centre) / scale).to(torch.float32)


def _multiply_add64(x: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    return (x.to(torch.float64) * factor + offset).to(torch.float32)


def _multiply_add_clip64(x: Tensor, factor: Tensor, offset: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return _clip(x.to(torch.float64) * factor + offset, low, high).to(torch.float32)


def _project64(x: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    return (x.to(torch.float64) @ matrix - offset).to(torch.float32)


def _yeo_johnson64(x: Tensor, power: Tensor, centre: Tensor, scale: Tensor) -> Tensor:
    """Yeo, Johnson (2000), "A New Family of Power Transformations", eq. 1.1, then scaled."""
    x = x.to(torch.float64)
    curved = torch.where(x >= 0, _box_cox(x.clamp(min=0.0), power), -_box_cox((-x).clamp(min=0.0), 2 - power))
    return ((curved - centre) / scale).to(torch.float32)


def _box_cox(x: Tensor, power: Tensor) -> Tensor:
    """((1 + x)^power - 1) / power of x >= 0, and log(1 + x) where the power is 0."""
    is_log = power.abs() < 2.0**-52  # scikit-learn's own limit
    safe = torch.where(is_log, 1.0, power)
    log = torch.log1p(x)
    return torch.where(is_log, log, (torch.exp(safe * log) - 1) / safe)


_STEPS: dict[str, Callable[..., Tensor]] = {
    "affine": _affine,
    "clip": _clip,
    "quantile_normal": _quantile_normal,
    "affine64": _affine64,
    "multiply_add64": _multiply_add64,
    "multiply_add_clip64": _multiply_add_clip64,
    "project64": _project64,
    "yeo_johnson64": _yeo_johnson64,
}

# Wichura (1988), algorithm AS 241, PPND16, in rising powers: numerator and denominator near the middle, then in the
# tails (its far tails, levels below 1e-11, are never reached here). Tensors of a graph, and not numbers in the code,
# because the exporter rounds every float64 number in the code to float32.
NORMAL = torch.tensor(
    [
        (3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4,
         4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3),
        (1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3,
         2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4, 5.2264952788528545610e3),
        (1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0, 3.64784832476320460504e0,
         1.27045825245236838258e0, 2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4),
        (1.0, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1,
         1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4, 1.05075007164441684324e-9),
    ],
    dtype=torch.float64,
)  # fmt: skip
# the middle's half width and its square, the tails' shift; the least level whose logarithm is taken, which lies beyond
# the extreme of `FittedQuantileNormal`, and that extreme
LIMITS = torch.tensor([0.425, 0.180625, 1.6, 1e-8, FittedQuantileNormal._EXTREME], dtype=torch.float64)


def inverse_normal(level: Tensor, normal: Tensor, limits: Tensor) -> Tensor:
    """Phi^-1 of float64 levels in [0, 1], within +-5.2 as in `FittedQuantileNormal`.

    Args:
        level: the levels.
        normal: `NORMAL`.
        limits: `LIMITS`.

    References:
        Wichura (1988), "Algorithm AS 241: The Percentage Points of the Normal Distribution".
    """
    half_width, square, shift, least, extreme = limits.unbind()
    level = _clip(level, least, 1 - least)
    centred = level - 0.5
    middle = centred * _ratio(square - centred * centred, normal[0], normal[1])
    tail = _ratio(torch.sqrt(-torch.log(torch.minimum(level, 1 - level))) - shift, normal[2], normal[3])
    found = torch.where(centred.abs() <= half_width, middle, torch.where(centred < 0, -tail, tail))
    return _clip(found, -extreme, extreme)


def _ratio(x: Tensor, above: Tensor, below: Tensor) -> Tensor:
    return _polynomial(x, above) / _polynomial(x, below)


def _polynomial(x: Tensor, coefficients: Tensor) -> Tensor:
    *lower, value = coefficients.unbind()
    for coefficient in reversed(lower):
        value = value * x + coefficient
    return value


# ---- scikit-learn's -------------------------------------------------------------------------------------------------

EXPORTED_SKLEARN = (
    "StandardScaler",
    "RobustScaler",
    "MinMaxScaler",
    "MaxAbsScaler",
    "PowerTransformer",
    "PCA",
    "IncrementalPCA",
    "TruncatedSVD",
)
_INSTEAD = (
    "train with standardise, robust_scale, winsorise, quantile_normal or scikit-learn's "
    f"{', '.join(EXPORTED_SKLEARN)} instead, or serve the run with qfml"
)


def _sklearn_steps(estimator: Any) -> tuple[Step, ...]:
    name = type(estimator).__name__
    if name not in EXPORTED_SKLEARN:
        raise UserError(f"scikit-learn's {name} cannot be exported: it is not written as graph operations; {_INSTEAD}")
    n_features = int(estimator.n_features_in_)
    if name == "PowerTransformer":
        return _power_steps(estimator, n_features)
    if name in ("PCA", "IncrementalPCA", "TruncatedSVD"):
        return _projection_steps(estimator)
    if name == "MinMaxScaler":
        tensors = {"factor": _double(estimator.scale_), "offset": _double(estimator.min_)}
        if not estimator.clip:
            return (Step("multiply_add64", tensors),)
        low, high = (torch.full((n_features,), float(edge), dtype=torch.float64) for edge in estimator.feature_range)
        return (Step("multiply_add_clip64", tensors | {"low": low, "high": high}),)
    centre = getattr(estimator, {"StandardScaler": "mean_", "RobustScaler": "center_"}.get(name, ""), None)
    if name == "StandardScaler" and not estimator.with_mean:  # it keeps a mean that it does not use
        centre = None
    if getattr(estimator, "clip", False):
        raise UserError(f"scikit-learn's {name} with clip=True cannot be exported; {_INSTEAD}")
    tensors = {
        "centre": torch.zeros(n_features, dtype=torch.float64) if centre is None else _double(centre),
        "scale": torch.ones(n_features, dtype=torch.float64) if estimator.scale_ is None else _double(estimator.scale_),
    }
    return (Step("affine64", tensors),)


def _power_steps(estimator: Any, n_features: int) -> tuple[Step, ...]:
    if estimator.method != "yeo-johnson":
        raise UserError(
            f"scikit-learn's PowerTransformer cannot be exported with method={estimator.method!r}, which refuses "
            "features that are not positive, as a graph cannot; train with method='yeo-johnson'"
        )
    scaler = estimator._scaler if estimator.standardize else None
    tensors = {
        "power": _double(estimator.lambdas_),
        "centre": torch.zeros(n_features, dtype=torch.float64) if scaler is None else _double(scaler.mean_),
        "scale": torch.ones(n_features, dtype=torch.float64) if scaler is None else _double(scaler.scale_),
    }
    return (Step("yeo_johnson64", tensors),)


def _projection_steps(estimator: Any) -> tuple[Step, ...]:
    matrix = np.asarray(estimator.components_, dtype=np.float64).T
    mean = getattr(estimator, "mean_", None)
    if getattr(estimator, "whiten", False):
        matrix = matrix / np.sqrt(np.maximum(estimator.explained_variance_, np.finfo(np.float64).eps))
    offset = np.zeros(matrix.shape[1]) if mean is None else np.asarray(mean, dtype=np.float64) @ matrix
    return (Step("project64", {"matrix": _double(matrix), "offset": _double(offset)}),)


def _double(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float64, order="C"))


# ---- points to compare at -------------------------------------------------------------------------------------------


def raw_points(steps: Sequence[Step], n_features: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Features (*shape, F) about as wide as those that the first step was fitted on, and somewhat beyond.

    Standard normals of twice the spread where there is no step that knows its features' scale.
    """
    normal = torch.randn(*shape, n_features, generator=generator)
    uniform = 1.2 * torch.rand(*shape, n_features, generator=generator) - 0.1  # a tenth beyond either end
    if not steps:
        return 2 * normal
    kind, own = steps[0].kind, steps[0].tensors
    if kind in ("affine", "affine64"):
        return (own["centre"] + 2 * own["scale"] * normal).to(torch.float32)
    if kind == "clip":
        return own["low"] + uniform * (own["high"] - own["low"])
    if kind.startswith("multiply_add"):  # to [0, 1], or nearly
        return ((uniform - own["offset"]) / own["factor"]).to(torch.float32)
    if kind == "quantile_normal":
        return _between_quantiles(own["quantiles"], uniform, generator)
    return 2 * normal


def _between_quantiles(quantiles: Tensor, uniform: Tensor, generator: torch.Generator) -> Tensor:
    """Points between neighbouring quantiles, every third one of them, and some beyond either end."""
    last = quantiles.shape[1] - 1
    rank = torch.randint(0, last, uniform.shape, generator=generator).reshape(-1, uniform.shape[-1]).T
    left, right = quantiles.gather(1, rank), quantiles.gather(1, rank + 1)
    share = uniform.reshape(-1, uniform.shape[-1]).T
    share = torch.where(share < 1 / 3, 0.0, share)  # on a quantile, as many of the training rows are
    return (left + share * (right - left)).T.reshape(uniform.shape).to(torch.float32)
