"""What can be calibrated: parameters with their bounds, a batch of quotes, and what a model must answer."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor

from qfml.errors import ConfigError, DataError

__all__ = [
    "CALIBRATION_MODELS",
    "CalibrationModel",
    "Parameter",
    "Quotes",
    "draw_starts",
    "inside_box",
    "model_of",
    "ranges_of",
    "whole_surface",
]


@dataclass(frozen=True)
class Parameter:
    """A parameter of a model that is calibrated.

    Args:
        name: as in `pricers`.
        lower: strict lower bound.
        upper: strict upper bound.
        start_lower: lower end of the range of starts.
        start_upper: upper end of the range of starts.
        scale: how starts are spread over that range: "linear" or "log".

    >>> Parameter("rho", -0.999, 0.999, -0.9, 0.3, "linear").at(0.5)
    -0.3
    """

    name: str
    lower: float
    upper: float
    start_lower: float
    start_upper: float
    scale: Literal["linear", "log"] = "linear"

    def at(self, share: Any) -> Any:
        """The start at this share of the range, from 0 to 1."""
        if self.scale == "log":
            return self.start_lower * (self.start_upper / self.start_lower) ** share
        return self.start_lower + (self.start_upper - self.start_lower) * share


@dataclass(frozen=True, eq=False)
class Quotes:
    """The quotes of S surfaces, N at most on each; what is missing has the weight 0. All of shape (S, N), float64.

    Args:
        log_moneyness: log(strike / forward).
        expiry: years.
        vol: implied vol, annualised.
        weight: 0: there is no quote; a residual is the root of the weight times (model vol - vol).
        forward: to the expiry.

    Raises:
        DataError: a quote of positive weight that is not finite, without vol or expiry; a negative weight.
    """

    log_moneyness: Float64[Tensor, "S N"]
    expiry: Float64[Tensor, "S N"]
    vol: Float64[Tensor, "S N"]
    weight: Float64[Tensor, "S N"]
    forward: Float64[Tensor, "S N"]

    def __post_init__(self) -> None:
        used = self.weight != 0.0
        rules = {
            "weight": (self.weight >= 0.0) & self.weight.isfinite(),
            "log_moneyness": self.log_moneyness.isfinite(),
            "expiry": (self.expiry > 0.0) & self.expiry.isfinite(),
            "vol": (self.vol > 0.0) & self.vol.isfinite(),
        }
        for name, fulfilled in rules.items():
            if bool((used & ~fulfilled).any()):
                surface, quote = (used & ~fulfilled).nonzero()[0].tolist()
                rule = {"weight": "finite, 0 or more", "log_moneyness": "finite"}.get(name, "finite and above 0")
                value = getattr(self, name)[surface, quote].item()
                raise DataError(
                    f"`{name}` of a quote must be {rule}, got {value} for quote {quote} of surface {surface}; "
                    "give what is missing the weight 0"
                )

    @classmethod
    def bare(cls, log_moneyness: Float64[Tensor, "S N"], expiry: Float64[Tensor, "S N"]) -> Quotes:
        """Places at which a model is asked for its vols: with vols, weights and forwards of 1."""
        one = torch.ones_like(log_moneyness)
        return cls(log_moneyness.contiguous(), expiry.contiguous(), one, one, one)

    @property
    def n_surfaces(self) -> int:
        """Number of surfaces S."""
        return self.vol.shape[0]

    @property
    def used(self) -> Tensor:
        """Which quotes count, shape (S, N)."""
        return self.weight > 0.0

    def at(self, index: Any) -> Quotes:
        """The surfaces at `index`."""
        return Quotes(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    @property
    def root_weight(self) -> Tensor:
        """Roots of the weights."""
        return self.weight.sqrt()


@runtime_checkable
class CalibrationModel(Protocol):
    """A model with named parameters that gives implied vols of a batch of surfaces, with their derivatives."""

    kind: ClassVar[str]

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The P parameters that are calibrated, in the order of the columns of `x`."""
        ...

    def vols(self, x: Tensor, quotes: Quotes) -> Tensor:
        """Model vols (S, N) at the parameters (S, P); NaN where there is no quote, or no vol."""
        ...

    def vols_and_jacobian(self, x: Tensor, quotes: Quotes) -> tuple[Tensor, Tensor]:
        """Model vols (S, N) and their derivatives (S, N, P)."""
        ...

    def starts(self, quotes: Quotes, n: int, generator: torch.Generator) -> Tensor:
        """Starts (S, n, P) of a search."""
        ...

    def pricer(self, x: Tensor) -> Any:
        """The same model in `pricers` with the batch (S,), or None."""
        ...


CALIBRATION_MODELS: dict[str, type] = {}  # by `kind`; filled where the package is imported


def model_of(model: Any) -> Any:
    """The calibration model that is meant by a name of `CALIBRATION_MODELS`, or by itself.

    Raises:
        ConfigError: a name that is not known, a class, or something else.
    """
    if isinstance(model, str):
        if model in CALIBRATION_MODELS:
            return CALIBRATION_MODELS[model]()
        near = difflib.get_close_matches(model, CALIBRATION_MODELS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ConfigError(
            f"`model` {model!r} is not known{hint}; choose one of: {', '.join(sorted(CALIBRATION_MODELS))}"
        )
    if isinstance(model, type) or not (hasattr(model, "fit_surfaces") or isinstance(model, CalibrationModel)):
        got = f"the class {model.__name__}: make one of it" if isinstance(model, type) else repr(model)
        raise ConfigError(
            "`model` must be a calibration model or the name of one "
            f"({', '.join(sorted(CALIBRATION_MODELS))}), got {got}"
        )
    return model


def ranges_of(model: CalibrationModel, box: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """The ranges of a `box` by names of the model's parameters, such as `{"kappa": (0.1, 10.0)}`, as numbers.

    Raises:
        ConfigError: a name that is no parameter of the model, or what is not two numbers.
    """
    names = [one.name for one in model.parameters]
    found: dict[str, tuple[float, float]] = {}
    for name, ends in box.items():
        if name not in names:
            raise ConfigError(f"`{name}` is no parameter of {model.kind}, which has {', '.join(names)}")
        try:
            low, high = map(float, ends)
        except (TypeError, ValueError):
            raise ConfigError(f"the range of `{name}` must be two numbers, low and high, got {ends!r}") from None
        found[name] = (low, high)
    return found


def whole_surface(model: Any, what: str) -> None:
    """Refuses a model, or the name of one, that has no parameters of a whole surface: for `what` that needs them.

    Raises:
        ConfigError: the model is fitted by a search of its own (`sabr`, `svi`, `ssvi`, `local_vol`).
    """
    found = CALIBRATION_MODELS.get(model) if isinstance(model, str) else model
    if hasattr(found, "fit_surfaces"):
        kind = getattr(found, "kind", model)
        raise ConfigError(
            f"{what} is for models with parameters of a whole surface, such as heston and bates, and {kind} has none: "
            "take another model"
        )


def inside_box(model: Any, x: Tensor, points: Quotes, vols: Tensor) -> Tensor:
    """Vols (S, N) of a model at `x` (S, P), NaN where a surrogate's box does not hold the point.

    A search may look beyond the box of a surrogate; what is read off its result may not.
    """
    outside = getattr(model, "outside", None)
    return vols if outside is None else vols.masked_fill(outside(x, points), torch.nan)


def draw_starts(parameters: tuple[Parameter, ...], n_surfaces: int, n: int, generator: torch.Generator) -> Tensor:
    """Scrambled Sobol points in the ranges of starts, the same for every surface.

    Args:
        parameters: P parameters.
        n_surfaces: S.
        n: points.
        generator: gives the scrambling.

    Returns:
        Starts of shape (S, n, P).

    >>> parameter = Parameter("kappa", 0.0, 50.0, 0.5, 20.0, "log")
    >>> draw_starts((parameter,), 3, 8, torch.Generator().manual_seed(1)).shape
    torch.Size([3, 8, 1])
    """
    seed = int(torch.randint(2**31, (), generator=generator))
    sobol = torch.quasirandom.SobolEngine(len(parameters), scramble=True, seed=seed)
    shares = sobol.draw(n, dtype=torch.float64)
    points = torch.stack([parameter.at(shares[:, i]) for i, parameter in enumerate(parameters)], dim=-1)
    return points.expand(n_surfaces, n, len(parameters))
