"""Calibration through a trained surrogate, from a start that a network or a search gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from pricers.parallel import side_by_side
from qfml.calibration.exact import Fit, FourierModel, fit, screened
from qfml.calibration.fourier_vols import Grid, Slices
from qfml.calibration.inverse import InverseMap
from qfml.calibration.least_squares import least_squares
from qfml.calibration.model import CalibrationModel, Parameter, Quotes, draw_starts
from qfml.engine.streams import stream
from qfml.errors import ConfigError
from qfml.surrogate.surrogate import Surrogate

__all__ = [
    "NeuralFit",
    "SurrogateModel",
    "inside_bounds",
    "inverse_answer",
    "inverse_warnings",
    "neural_calibration",
    "neural_start",
    "refined",
]

N_STARTS, N_SCREENED = 4, 64  # starts that are followed, and those among which they are chosen
_OF_THE_QUOTES = ("expiry", "log_moneyness")
BLOCK = 64  # surfaces whose quadrature nodes stay in the cache
MARGIN = 1e-3  # share of a parameter's range by which a start lies inside the bounds
EDGE = 0.01  # share of a parameter's range within which a solution counts as at the edge


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
            found = self.surrogate.values(self.inputs(x, quotes).flatten(0, 1)).view(quotes.vol.shape)
        return found.masked_fill(~quotes.used, torch.nan)

    def vols_and_jacobian(self, x: Tensor, quotes: Quotes) -> tuple[Tensor, Tensor]:
        """Vols (S, N) and derivatives (S, N, P)."""
        shape = quotes.vol.shape
        value, gradient = self.surrogate.value_and_gradient(self.inputs(x, quotes).flatten(0, 1))
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
        columns = self.surrogate.problem.columns(self.inputs(batch, Quotes(*(one,) * 7))[:, 0])
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
        """What is to be said of each solution: at the edge of the box, quotes outside of it."""
        low, high = bounds(self.parameters)
        log = torch.tensor([p.scale == "log" for p in self.parameters])
        low, high, place = (torch.where(log, value.abs().log(), value) for value in (low, high, x))
        share = (place - low) / (high - low)
        outside = self.outside(x, quotes)
        found = []
        for row, lost, n_quotes in zip(share.tolist(), outside.sum(1).tolist(), quotes.used.sum(1).tolist()):
            sentences = [
                f"`{one.name}` is at the {'lower' if own < EDGE else 'upper'} edge of the surrogate's box, "
                f"{one.lower if own < EDGE else one.upper:g}: the optimum may lie outside; calibrate by method exact"
                for one, own in zip(self.parameters, row)
                if not EDGE <= own <= 1 - EDGE
            ]
            if lost:
                sentences.append(
                    f"{lost} of {n_quotes} quotes lie outside of the surrogate's box by expiry or strike: its vols "
                    "are extrapolated there"
                )
            found.append(tuple(sentences))
        return tuple(found)


@dataclass(frozen=True, eq=False)
class NeuralFit:
    """Surfaces calibrated through a surrogate.

    Attributes:
        model: the surrogate as a model.
        fit: parameters, vols of the surrogate, Jacobian, cost, status and steps of each surface.
        warnings: sentences about each surface.
    """

    model: SurrogateModel
    fit: Fit
    warnings: tuple[tuple[str, ...], ...]


def neural_calibration(
    quotes: Quotes,
    surrogate: Surrogate | SurrogateModel,
    start: Float64[Tensor, "S P"] | None = None,
    *,
    inverse: InverseMap | None = None,
    n_starts: int = N_STARTS,
    seed: int = 0,
    max_steps: int = 50,
    tolerance: float = 1e-6,
) -> NeuralFit:
    """Calibrate surfaces through a surrogate.

    Args:
        quotes: of S surfaces.
        surrogate: trained over a box of its model's parameters.
        start: parameters to start from, moved into the box where they lie outside.
        inverse: a network that gives the starts.
        n_starts: without either, the best so many of 64 points of the box are followed.
        seed: of these points.
        max_steps: Levenberg-Marquardt steps from each start.
        tolerance: of the least squares; a surrogate's own error is far above.

    Returns:
        The fits, with a sentence about each surface whose solution lies at the edge of the box or whose quotes lie
        outside of it.
    """
    model = surrogate if isinstance(surrogate, SurrogateModel) else SurrogateModel(surrogate)
    if start is None and inverse is not None:
        start = neural_start(quotes, inverse, model)
    if start is None:
        drawn = model.starts(quotes, max(N_SCREENED, n_starts), stream(seed, "neural", "starts"))
        starts = screened(model, quotes, drawn, n_starts)
    else:
        starts = inside_bounds(start, model.parameters)[:, None]
    found = fit(model, quotes, starts, max_steps=max_steps, tolerance=tolerance)
    return NeuralFit(model, found, model.warnings(found.x, quotes))


def neural_start(quotes: Quotes, inverse: InverseMap, model: CalibrationModel) -> Float64[Tensor, "S P"]:
    """Parameters of `model` that an inverse map gives for surfaces, as starts: strictly inside the model's bounds.

    Raises:
        ConfigError: the map is of other parameters.
    """
    return inside_bounds(inverse_answer(quotes, inverse, model), model.parameters)


def inverse_answer(quotes: Quotes, inverse: InverseMap, model: CalibrationModel) -> Float64[Tensor, "S P"]:
    """Parameters of `model` that an inverse map gives for surfaces, as they are.

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
    if bool(some.any()):
        found[some] = inverse.start(quotes.at(some))
    return found[:, order]


def inverse_warnings(x: Float64[Tensor, "S P"], inverse: InverseMap, model: CalibrationModel) -> list[tuple[str, ...]]:
    """What is to be said of an inverse map's answers: which lie at the edge of the box that it was trained on."""
    box, found = inverse.box, []
    order = [box.names.index(one.name) for one in model.parameters]
    ends = torch.tensor([[box.low[i] for i in order], [box.high[i] for i in order]], dtype=torch.float64)
    log = torch.tensor([bool(box.log[i]) for i in order])
    low, high = torch.where(log, ends.abs().log(), ends)
    share = (torch.where(log, x.abs().log(), x) - low) / (high - low)
    for row in share.tolist():
        found.append(
            tuple(
                f"`{one.name}` is at the {'lower' if own < EDGE else 'upper'} edge of the inverse map's box, "
                f"{ends[0 if own < EDGE else 1, i]:g}: the truth may lie outside; calibrate by method exact"
                for i, (one, own) in enumerate(zip(model.parameters, row, strict=True))
                if not EDGE <= own <= 1 - EDGE
            )
        )
    return found


def refined(model: FourierModel, quotes: Quotes, start: Float64[Tensor, "S P"], n_steps: int = 2) -> Fit:
    """A few exact steps from good starts, such as `neural_start` gives: for thousands of surfaces at once.

    What `calibrate` does beyond them is left out: the kernel's nodes are those of the start throughout, its vols are
    not checked by the engine, and no search follows where the start was poor. `kernel_error` is NaN, to say so.

    Args:
        model: with a characteristic function.
        quotes: of S surfaces.
        start: strictly inside the bounds of the parameters.
        n_steps: Levenberg-Marquardt steps, each one evaluation of vols and Jacobian.
    """
    low, high = bounds(model.parameters)

    def block(rows: Tensor) -> Fit:
        some = quotes.at(rows)
        grid = Grid.planned(model.law, start[rows], Slices.of(some), some)
        root = some.root_weight

        def residuals(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
            own = grid if len(index) == len(rows) else grid.at(index)
            vols, jacobian = own.vols_and_jacobian(x, floor=True)
            used, weight = some.used[index], root[index]
            error = torch.where(used, weight * (vols - some.vol[index]), 0.0)
            return error, torch.where(used[..., None], weight[..., None] * jacobian, 0.0)

        with torch.no_grad():
            found = least_squares(residuals, start[rows], lower=low, upper=high, max_steps=n_steps)
        scale = torch.where(some.used, root, torch.nan)  # undone: what is no quote has no vol
        vols, jacobian = found.residuals / scale + some.vol, found.jacobian / scale[..., None]
        unchecked = torch.full_like(found.cost, torch.nan)
        return Fit(found.x, vols, jacobian, found.cost, found.status, found.n_steps, unchecked)

    blocks = torch.arange(quotes.n_surfaces).split(BLOCK)
    with side_by_side(torch.device("cpu"), len(blocks)) as run:
        parts = list(run(block, blocks))
    return Fit(*(torch.cat([getattr(part, name) for part in parts]) for name in Fit.__dataclass_fields__))


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
