"""Surrogates as ONNX files: value, box check and error bound in one graph, the derivatives in all inputs in a second.

A graph takes inputs in natural units as float64: a row on the edge of the box is not moved across it by rounding. The
coordinates are computed in float64, and so are the derivatives; the network of `model.onnx` is run in float32.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qfml import config
from qfml.errors import UserError
from qfml.export.fit_stack import library_version
from qfml.export.model_file import Export, sealed, written
from qfml.export.parity import N_POINTS, parity
from qfml.export.trace import trace, with_gradient
from qfml.surrogate import Surrogate
from qfml.surrogate.coordinates import Coordinates, reference_deviation
from qfml.surrogate.problem import DELTA_SLACK, Problem

__all__ = ["export_surrogate"]

INPUT = "inputs"
_SLACK = 1e-9  # of `Problem.outside`
_MOST_DRAWS = 50


def export_surrogate(
    surrogate: Surrogate, folder: Any, *, config_hash: str | None = None, greeks: bool = True
) -> list[Export]:
    """Write a surrogate as `model.onnx`, and its value with all first derivatives as `model_greeks.onnx`.

    Both take `inputs` (N, d) in float64, columns in natural units in the order of `surrogate.problem.inputs`. They give
    `value` (N,) in the unit of the target, `inside` (N,), whether a row lies in the box, and `error_bound` (N,) if the
    surrogate has one; `model_greeks.onnx` gives `gradient` (N, d) too. Outside of the box numbers are NaN.

    Each graph is compared with torch on 10,000 points in the box and some outside of it: values with
    `Surrogate.predict`, derivatives with torch's reverse mode in float64, in units of a derivative's root mean square.

    Args:
        surrogate: what is exported.
        folder: where the files go; older ones are replaced, both or none; a process that is killed
            between the two leaves one of each, which the next export mends.
        config_hash: of the settings that the surrogate came from.
        greeks: whether to write the second file; if not, an older one is removed, which may be another surrogate's.

    Raises:
        UserError: a difference from torch, or a folder that cannot be written.
    """
    folder = Path(folder)
    graph = _Graph(surrogate)
    points = box_points(surrogate, N_POINTS)
    wanted = [("model.onnx", False), *([("model_greeks.onnx", True)] if greeks else [])]
    contents, exports = [], []
    for name, differentiated in wanted:
        begin = time.perf_counter()
        template = trace(
            graph.with_gradient if differentiated else graph.forward,
            points[:3],
            graph.tensors,
            input_name=INPUT,
            output_names=graph.output_names(differentiated),
            differentiated=differentiated,
        )
        model = template.filled(graph.tensors)
        reference = graph.reference_with_gradient if differentiated else graph.reference
        measures = None
        if differentiated:
            scale = gradient_scale(reference(points)["gradient"]).numpy()
            measures = {"gradient": lambda gradient, scale=scale: gradient / scale}
        agreement = parity(model.SerializeToString(), reference, points, measures=measures)
        about = graph.metadata(differentiated) | {"config_hash": config_hash, "parity": agreement.as_metadata()}
        contents.append((folder / name, sealed(model, about)))
        what = f"{surrogate.problem.target}{' and its derivatives' if differentiated else ''} of {surrogate.hash}"
        exports.append(Export(folder / name, what, agreement, time.perf_counter() - begin))
    written(contents, outdated=[] if greeks else [folder / "model_greeks.onnx"])
    return exports


class _Graph:
    """The functions that the two graphs hold, and what they must equal."""

    def __init__(self, surrogate: Surrogate) -> None:
        self.surrogate, self.problem = surrogate, surrogate.problem
        low, high = _limits(self.problem)
        self.tensors: dict[str, Tensor] = {"box.low": low, "box.high": high}
        for i, fit in enumerate(surrogate.fits):
            for name, value in fit.named_parameters().items():
                self.tensors[f"network{i}.{name}"] = value.detach().cpu().float()[None]
        if surrogate.moneyness_limits is not None:
            self.tensors["box.moneyness"] = surrogate.moneyness_limits
        if surrogate.bound is not None:
            self.tensors["bound.value"] = torch.tensor([surrogate.bound.value], dtype=torch.float64)

    def output_names(self, differentiated: bool) -> list[str]:
        """In the order in which the functions give them."""
        bound = ["error_bound"] if self.surrogate.bound is not None else []
        return ["value", *(["gradient"] if differentiated else []), "inside", *bound]

    def raw(
        self, x: Tensor, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float64
    ) -> tuple[Tensor, Tensor]:
        """Values (N,) anywhere, the network run in `dtype`, and whether a row lies in the box."""
        target, network = self.surrogate.target, self.surrogate.network
        coordinates = Coordinates(self.problem)
        needed = coordinates.standardised is not None or target.by_reference
        reference = self.problem.reference_vol(x) if needed else None
        features = coordinates(x, reference).to(dtype)[None]
        values = []
        for i, fit in enumerate(self.surrogate.fits):
            parameters = {name: tensors[f"network{i}.{name}"].to(dtype) for name, _ in fit.layout.shapes}
            learnt = network.forward(parameters, features)[0].double()
            values.append(target.decode(learnt, x, reference))
        value = values[0] if len(values) == 1 else torch.stack(values).mean(0)
        place = _places(self.problem, x, value)
        inside = ((place >= tensors["box.low"]) & (place <= tensors["box.high"])).all(1)
        if "box.moneyness" in tensors:  # no further from the money than the labels
            assert coordinates.standardised is not None
            z = x[:, coordinates.standardised] / reference_deviation(self.problem, x, reference)
            least, most = tensors["box.moneyness"].unbind(0)
            inside = inside & (z >= least) & (z <= most)
        return value, inside & torch.isfinite(value)

    def forward(self, x: Tensor, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The outputs of `model.onnx`."""
        value, inside = self.raw(x, tensors, torch.float32)
        return torch.where(inside, value, torch.nan), inside, *self._bound(inside, value, tensors)

    def with_gradient(self, x: Tensor, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The outputs of `model_greeks.onnx`."""
        value, gradient, inside = with_gradient(self.raw)(x, tensors)
        masked = torch.where(inside[:, None], gradient, torch.nan)
        return torch.where(inside, value, torch.nan), masked, inside, *self._bound(inside, value, tensors)

    def _bound(self, inside: Tensor, value: Tensor, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        if "bound.value" not in tensors:
            return []
        return [torch.where(inside, tensors["bound.value"].expand_as(value), torch.nan)]

    def reference(self, x: Tensor) -> dict[str, Tensor]:
        """What the surrogate itself says."""
        found = self.surrogate.predict(x, errors="flag")
        bound = self._bound(found.inside, found.value.double(), self.tensors)
        return {"value": found.value, "inside": found.inside} | dict(zip(["error_bound"], bound))

    def reference_with_gradient(self, x: Tensor) -> dict[str, Tensor]:
        """The same with the derivatives by torch's reverse mode, in float64."""
        found = self.reference(x)
        leaf = x.detach().clone().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.surrogate.unchecked_values(leaf).sum(), leaf)
        return found | {"gradient": torch.where(found["inside"][:, None], gradient, torch.nan)}

    def metadata(self, differentiated: bool) -> dict[str, Any]:
        """What a file says of itself, in JSON types."""
        surrogate, problem = self.surrogate, self.problem
        units, bound = problem.units, surrogate.bound
        meanings = {
            "value": f"{problem.target}, {problem.target_unit}",
            "gradient": "derivative of the value in each input, per unit of that input",
            "inside": "whether the row lies in the box; numbers are NaN where it does not",
            "error_bound": "what fresh points keep at the level of `error_bound`, in units of the value; NaN outside",
        }
        return {
            "kind": "surrogate_greeks" if differentiated else "surrogate",
            "qfml": library_version(),
            "inputs": [{"name": name, "unit": units[name]} for name in problem.inputs],
            "window": None,
            "outputs": {name: meanings[name] for name in self.output_names(differentiated)},
            "target": problem.target,
            "target_unit": problem.target_unit,
            "box": {name: [limits.low, limits.high] for name, limits in problem.box.items()},
            "moneyness": surrogate.moneyness,
            "error_bound": None if bound is None else asdict(bound),
            "problem": config.to_dict(problem),
            "problem_hash": config.config_hash(problem),
            "surrogate_hash": surrogate.hash,
            "network": config.to_dict(surrogate.network),
            "members": [{"seed": fit.seed} for fit in surrogate.fits],
        }


# ---- the box --------------------------------------------------------------------------------------------------------


def _limits(problem: Problem) -> tuple[Tensor, Tensor]:
    """Limits (d,) of `_places`, the slack of `Problem.outside` included.

    Tensors of a graph, and not numbers in the code, which the exporter would round to float32.
    """
    low, high = [], []
    for axis, limits in zip(problem.coordinates, problem.box.values(), strict=True):
        slack = _SLACK * max(abs(limits.low), abs(limits.high))
        slack = DELTA_SLACK if axis.argument == "delta" else slack
        edges = torch.tensor([limits.low - slack, limits.high + slack], dtype=torch.float64)
        if axis.argument == "delta":
            edges = torch.special.ndtri(edges.clamp(0.0, 1.0))
        low.append(edges[0])
        high.append(edges[1])
    return torch.stack(low), torch.stack(high)


def _places(problem: Problem, x: Tensor, value: Tensor) -> Tensor:
    """Where rows lie along each axis of the box (N, d): the input, or the standardised moneyness, or d1 for a delta."""
    columns = problem.columns(x)
    found = []
    for axis in problem.coordinates:
        column = columns[axis.input]
        if axis.argument == "standard_moneyness":
            column = column / (problem.reference(columns) * problem.expiry(columns).sqrt())
        elif axis.argument == "delta":
            total = value * problem.expiry(columns).sqrt()
            column = 0.5 * total - column / total
        found.append(column)
    return torch.stack(found, 1)


def box_points(surrogate: Surrogate, n: int) -> Tensor:
    """Inputs of `n` rows in the box, and of up to a ninth as many outside of it, in the order they were drawn.

    Raises:
        UserError: too few of the rows drawn lie in the box, which only a network that is not finite there causes.
    """
    generator = torch.Generator()
    drawn: list[Tensor] = []
    places: list[Tensor] = []
    inside = torch.zeros(0, dtype=torch.bool)
    for _ in range(_MOST_DRAWS):
        drawn.append(_spread(surrogate.problem, n, generator))
        places.append(surrogate.predict(drawn[-1], errors="flag").inside)
        inside = torch.cat(places)
        if int(inside.sum()) >= n:
            kept = (inside & (inside.cumsum(0) <= n)) | (~inside & ((~inside).cumsum(0) <= max(1, n // 9)))
            return torch.cat(drawn)[kept]
    raise UserError(
        f"only {int(inside.sum()):,} of {len(inside):,} rows spread over the box lie in it by the surrogate's own "
        "values: it is not fit for use, train it again"
    )


def _spread(problem: Problem, n: int, generator: torch.Generator) -> Tensor:
    """Inputs (n, d) spread over the box, a tenth of them with one input somewhat beyond its range."""
    uniform = torch.rand(n, len(problem.inputs), generator=generator, dtype=torch.float64)
    beyond = torch.arange(n) % 10 == 9
    which = torch.randint(len(problem.inputs), (n,), generator=generator)
    uniform[beyond, which[beyond]] = uniform[beyond, which[beyond]] * 1.4 - 0.2
    points = torch.empty_like(uniform)
    strike: int | None = None
    for place, (axis, limits) in enumerate(zip(problem.coordinates, problem.box.values(), strict=True)):
        share = uniform[:, place]
        if limits.scale == "log":
            points[:, place] = limits.low * (limits.high / limits.low) ** share
        else:
            points[:, place] = limits.low + share * (limits.high - limits.low)
        if axis.argument == "delta":  # about the strike that has it, by the reference vol
            points[:, place] = -torch.special.ndtri(points[:, place].clamp(0.001, 0.999))
        if axis.argument in ("delta", "standard_moneyness"):
            strike = place
    if strike is not None:
        columns = problem.columns(points)
        points[:, strike] *= problem.reference(columns) * problem.expiry(columns).sqrt()
    return points


def gradient_scale(gradient: Tensor) -> Tensor:
    """The root mean square of each derivative (d,) over the rows where it is known; 1 where it is nowhere."""
    known = torch.isfinite(gradient).all(1)
    size = gradient[known].square().mean(0).sqrt()
    return torch.where(size > 0, size, 1.0)
