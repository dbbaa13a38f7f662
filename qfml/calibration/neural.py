"""Networks in a calibration: a surrogate as a model that is calibrated, an inverse map as a start or an answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from qfml.calibration.inverse import EDGE, InverseMap
from qfml.calibration.model import CALIBRATION_MODELS, CalibrationModel, Parameter, Quotes, draw_starts
from qfml.errors import ConfigError
from qfml.surrogate.surrogate import Surrogate

__all__ = [
    "SurrogateModel",
    "inside_bounds",
    "inverse_answer",
    "inverse_warnings",
    "neural_start",
]

_OF_THE_QUOTES = ("expiry", "log_moneyness")
EXACT = "calibrate by method exact"  # for models that have one
MARGIN = 1e-3  # share of a parameter's range by which a start lies inside the bounds


@dataclass(frozen=True, eq=False)
class SurrogateModel:
    """A surrogate of implied vols as a model that is calibrated; its derivatives are written out layer by layer.

    The parameters are those of the surrogate's model that vary over its box, and the box bounds them. Expiry and
    log-moneyness are the quotes'.

    Args:
        surrogate: of the target implied_vol, over parameters of one model, expiry and log-moneyness (or delta, or
            standardised moneyness, which become log-moneyness).

    Raises:
        ConfigError: another target, or a box with other coordinates.
    """

    kind: ClassVar[str] = "surrogate"
    surrogate: Surrogate

    def __post_init__(self) -> None:
        problem = self.surrogate.problem
        if problem.target != "implied_vol":
            raise ConfigError(f"a surrogate that is calibrated gives implied vols, and this one gives {problem.target}")
        if problem.instrument.get("kind") != "european":
            raise ConfigError(f"quotes are of European options, and the surrogate is of {problem.instrument['kind']}")
        others = [
            axis.name for axis in problem.coordinates if axis.owner != "model" and axis.input not in _OF_THE_QUOTES
        ]
        missing = [name for name in _OF_THE_QUOTES if name not in problem.inputs]
        if others or missing or not self.parameters:
            reason = f"`{others[0]}` in its box" if others else f"no `{missing[0]}`" if missing else "no parameter"
            raise ConfigError(
                "a surrogate that is calibrated has a box of parameters of its model, expiry and log_moneyness, "
                f"standard_moneyness or delta, and this one has {reason}"
            )

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The model's coordinates of the box; starts lie where the middle 90 % of their range are."""
        return self._parameters

    @cached_property
    def _parameters(self) -> tuple[Parameter, ...]:
        problem = self.surrogate.problem
        found = []
        for axis, limits in zip(problem.coordinates, problem.box.values(), strict=True):
            if axis.owner != "model":
                continue
            whole = Parameter(
                axis.argument,
                limits.low,
                limits.high,
                limits.low,
                limits.high,
                "log" if limits.scale == "log" else "linear",
            )
            found.append(Parameter(axis.argument, limits.low, limits.high, whole.at(0.05), whole.at(0.95), whole.scale))
        return tuple(found)

    @cached_property
    def _columns(self) -> tuple[int, ...]:
        """Where the parameters stand among the inputs."""
        problem = self.surrogate.problem
        return tuple(place for place, axis in enumerate(problem.coordinates) if axis.owner == "model")

    def inputs(self, x: Float64[Tensor, "S P"], quotes: Quotes) -> Float64[Tensor, "S N d"]:
        """Rows of inputs; where there is no quote, the forward at the middle expiry of the box."""
        problem, used = self.surrogate.problem, quotes.used
        ends = problem.box[next(axis.name for axis in problem.coordinates if axis.input == "expiry")]
        of_quotes = {
            "expiry": torch.where(used, quotes.expiry, 0.5 * (ends.low + ends.high)),
            "log_moneyness": torch.where(used, quotes.log_moneyness, 0.0),
        }
        parameters = iter(x.unbind(-1))
        shape = quotes.vol.shape
        columns = [
            of_quotes[name] if name in of_quotes else next(parameters)[:, None].expand(shape) for name in problem.inputs
        ]
        return torch.stack(columns, dim=-1)

    def vols(self, x: Float64[Tensor, "S P"], quotes: Quotes) -> Float64[Tensor, "S N"]:
        """Vols of the surrogate, NaN where there is no quote; beyond its box they are extrapolated: see `outside`."""
        with torch.no_grad():
            found = self.surrogate.unchecked_values(self.inputs(x, quotes).flatten(0, 1)).view(quotes.vol.shape)
        return found.masked_fill(~quotes.used, torch.nan)

    def vols_and_jacobian(self, x: Tensor, quotes: Quotes) -> tuple[Tensor, Tensor]:
        """Vols (S, N) and derivatives (S, N, P)."""
        shape = quotes.vol.shape
        value, gradient = self.surrogate.unchecked_value_and_gradient(self.inputs(x, quotes).flatten(0, 1))
        jacobian = gradient[:, list(self._columns)].view(*shape, -1)
        unused = ~quotes.used
        return value.view(shape).masked_fill(unused, torch.nan), jacobian.masked_fill(unused[..., None], torch.nan)

    def starts(self, quotes: Quotes, n: int, generator: torch.Generator) -> Float64[Tensor, "S n P"]:
        """Sobol points in the inner part of the box."""
        return draw_starts(self.parameters, quotes.n_surfaces, n, generator)

    def pricer(self, x: Tensor) -> Any:
        """The model of `pricers` that the surrogate stands for: of one surface (P,), or of a batch (S, P)."""
        batch = x.reshape(-1, x.shape[-1])
        one = torch.ones(len(batch), 1, dtype=torch.float64)
        columns = self.surrogate.problem.columns(self.inputs(batch, Quotes.bare(one, one))[:, 0])
        _, model, _ = self.surrogate.problem.assembled(
            {name: column.reshape(x.shape[:-1]) for name, column in columns.items()}
        )
        return model

    def outside(self, x: Float64[Tensor, "S P"], quotes: Quotes) -> Tensor:
        """Which quotes lie outside of the surrogate's box at the parameters `x`, by their expiry or strike, (S, N)."""
        rows = self.inputs(x, quotes).flatten(0, 1)
        inside = self.surrogate.inside(rows).view(quotes.vol.shape)
        return ~inside & quotes.used

    def warnings(self, x: Float64[Tensor, "S P"], quotes: Quotes) -> tuple[tuple[str, ...], ...]:
        """What is to be said of each place: at the edge of the box, quotes outside of it."""
        low, high = bounds(self.parameters)
        log = torch.tensor([p.scale == "log" for p in self.parameters])
        names = [one.name for one in self.parameters]
        lost, n_quotes = self.outside(x, quotes).sum(1).tolist(), quotes.used.sum(1).tolist()
        exact = self.surrogate.problem.model["kind"] in CALIBRATION_MODELS
        way_out = EXACT if exact else "train a surrogate on a wider box"
        edges = _edges(x, names, low, high, log, "the surrogate's box", way_out)
        found = []
        for said, n_lost, n in zip(edges, lost, n_quotes, strict=True):
            outside = (
                f"{n_lost} of {n} quotes lie outside of the surrogate's box by expiry or strike: its vols are "
                "extrapolated there"
            )
            found.append((*said, outside) if n_lost else said)
        return tuple(found)


def neural_start(quotes: Quotes, inverse: InverseMap, model: CalibrationModel) -> Float64[Tensor, "S P"]:
    """Parameters of `model` that an inverse map gives for surfaces, as starts: strictly inside the model's bounds.

    Raises:
        ConfigError: the map is of other parameters.
    """
    return inside_bounds(inverse_answer(quotes, inverse, model)[0], model.parameters)


def inverse_answer(
    quotes: Quotes, inverse: InverseMap, model: CalibrationModel
) -> tuple[Float64[Tensor, "S P"], Int64[Tensor, " S"]]:
    """Parameters of `model` that an inverse map gives for surfaces, as they are, and at how many places it guesses.

    Raises:
        ConfigError: the map is of other parameters.
    """
    names = tuple(one.name for one in model.parameters)
    if set(names) != set(inverse.box.names):
        raise ConfigError(
            f"the inverse map gives {', '.join(inverse.box.names)}, and the model has {', '.join(names)}: take a map "
            "of the same model"
        )
    order = [inverse.box.names.index(name) for name in names]
    # a surface without quotes has no start, and no fit either: the middle of the box stands for it
    found = inverse.box.inside(torch.zeros(quotes.n_surfaces, len(names), dtype=torch.float64))
    some = quotes.used.any(1)
    beyond = torch.zeros(quotes.n_surfaces, dtype=torch.int64)
    if bool(some.any()):
        found[some], beyond[some] = inverse.answer(quotes.at(some))
    return found[:, order], beyond


def inverse_warnings(
    x: Float64[Tensor, "S P"], inverse: InverseMap, model: CalibrationModel, beyond: Int64[Tensor, " S"]
) -> tuple[tuple[str, ...], ...]:
    """What is to be said of an inverse map's answers: which lie outside of what it was trained on, or at its edge.

    Args:
        x: the answers, or where steps have led from them.
        inverse: the map.
        model: what `x` are parameters of.
        beyond: at how many places a surface has a vol that the training never came to.
    """
    box = inverse.box
    order = [box.names.index(one.name) for one in model.parameters]
    low, high = (torch.tensor([ends[i] for i in order], dtype=torch.float64) for ends in (box.low, box.high))
    log = torch.tensor([bool(box.log[i]) for i in order])
    said = _edges(x, [one.name for one in model.parameters], low, high, log, "the inverse map's box", EXACT)
    extrapolated = (
        "the vols at {} of {} places of the surface lie outside of those that the inverse map was trained on: it "
        f"extrapolates there; {EXACT}"
    )
    return tuple(
        (*lines, extrapolated.format(n, inverse.layout.n_places)) if n else lines
        for lines, n in zip(said, beyond.tolist(), strict=True)
    )


def _edges(
    x: Float64[Tensor, "S P"], names: Sequence[str], low: Tensor, high: Tensor, log: Tensor, box: str, way_out: str
) -> tuple[tuple[str, ...], ...]:
    """A sentence about each parameter that lies at the edge of a box, or beyond."""
    place, start, end = (torch.where(log, value.abs().log(), value) for value in (x, low, high))
    ends = list(zip(low.tolist(), high.tolist(), strict=True))
    return tuple(
        tuple(
            f"`{name}` is at the {'lower' if own < EDGE else 'upper'} edge of {box}, "
            f"{least if own < EDGE else most:g}: the optimum may lie outside; {way_out}"
            for name, own, (least, most) in zip(names, row, ends, strict=True)
            if not EDGE <= own <= 1 - EDGE
        )
        for row in ((place - start) / (end - start)).tolist()
    )


def bounds(parameters: tuple[Parameter, ...]) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds (P,)."""
    low, high = (torch.tensor([getattr(p, end) for p in parameters], dtype=torch.float64) for end in ("lower", "upper"))
    return low, high


def inside_bounds(x: Float64[Tensor, "S P"], parameters: tuple[Parameter, ...]) -> Float64[Tensor, "S P"]:
    """Starts moved, where they lie outside, to a thousandth of the range inside the bounds, on the parameter's scale.

    For starts only: an answer is not moved.
    """
    columns = []
    for parameter, column in zip(parameters, x.unbind(-1), strict=True):
        low, high = parameter.lower, parameter.upper
        if parameter.scale == "log" and low > 0.0:
            step = (high / low) ** MARGIN if math.isfinite(high) else 1.0 + MARGIN
            columns.append(column.clamp(low * step, high / step))
        else:
            margin = MARGIN * (high - low) if math.isfinite(high - low) else 0.0
            columns.append(column.clamp(low + margin, high - margin))
    return torch.stack(columns, dim=-1)
