"""Inverse maps as ONNX files: from the vols of a surface, at fixed places, to a model's parameters."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qfml import config
from qfml.calibration.inverse import EDGE, InverseMap
from qfml.errors import UserError
from qfml.export.fit_stack import library_version
from qfml.export.model_file import Export, sealed, written
from qfml.export.parity import N_POINTS, parity
from qfml.export.trace import trace

__all__ = ["export_inverse_map"]

INPUT, OUTPUT, INSIDE = "vols", "parameters", "inside"
_JUDGED = ("vol_error_bps", "mean_error_share_of_box", "n_judged")  # of the map's report: errors on fresh surfaces
_SMALLEST = 1e-6  # share of the box that `Box.inside` keeps from its edge
_ROUNDING = 1e-4  # share of the box about `EDGE` within which the rounding of float32 may decide on a side


def export_inverse_map(inverse: InverseMap, to: Any, *, config_hash: str | None = None) -> Export:
    """Write an inverse map: `vols` (N, places) in float64, annual decimal, to `parameters` (N, P) and `inside` (N,).

    `inside` is true where the map knows what it says, by the rules of its warnings in a calibration: every vol lies in
    the range that the training saw at its place, and every parameter a hundredth of its range or more from the edge of
    the box. The places are those of the map's layout, expiry by expiry; reading a surface there is left to the caller,
    and the names of the inputs say where. A row with a vol that is not a positive number gives NaN, and is not inside.

    Args:
        inverse: what is exported.
        to: the file.
        config_hash: of the settings that the map came from.

    Raises:
        UserError: a difference from torch, or a place that cannot be written.
    """
    begin, path = time.perf_counter(), Path(to)
    graph = _Graph(inverse)
    points = graph.points(N_POINTS)
    template = trace(graph.forward, points[:3], graph.tensors, input_name=INPUT, output_names=[OUTPUT, INSIDE])
    model = template.filled(graph.tensors)
    agreement = parity(model.SerializeToString(), graph.reference, points, measures={OUTPUT: graph.places})
    about = graph.metadata() | {"config_hash": config_hash, "parity": agreement.as_metadata()}
    written([(path, sealed(model, about))])
    return Export(path, f"parameters of {inverse.model.kind} from vols", agreement, time.perf_counter() - begin)


class _Graph:
    def __init__(self, inverse: InverseMap) -> None:
        self.inverse = inverse
        low, high, log = inverse.box._ends()
        views = inverse._layout().views(inverse.parameters)
        self.tensors: dict[str, Tensor] = {f"network.{name}": value for name, value in views.items()}
        self.tensors |= {"centre": inverse.centre, "scale": inverse.scale, "low": low, "high": high, "log": log}
        self.tensors |= {"lowest": inverse.lowest, "highest": inverse.highest}
        self.tensors["kept"] = torch.tensor([EDGE, 1 - EDGE], dtype=torch.float64)
        edges = torch.special.ndtri(torch.tensor([_SMALLEST, 1 - _SMALLEST], dtype=torch.float64))
        self.tensors["edges"] = edges

    def forward(self, x: Tensor, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """`InverseMap.answer` on vols (N, places), and whether it is to be relied on."""
        inverse = self.inverse
        log_vols = torch.log(x).float()
        seen = (log_vols - tensors["centre"]) / tensors["scale"]
        parameters = {name: tensors[f"network.{name}"] for name, _ in inverse._layout().shapes}
        stacked = seen.expand(len(inverse.parameters), -1, -1)
        z = inverse.network.forward(parameters, stacked).mean(0).double()
        z = z[:, None] if len(inverse.box.names) == 1 else z
        z = torch.minimum(torch.maximum(z, tensors["edges"][0]), tensors["edges"][1])
        # onnxruntime has no error function of float64
        share = 0.5 + 0.5 * torch.erf((z * 0.5**0.5).float()).double()
        place = tensors["low"] + (tensors["high"] - tensors["low"]) * share
        found = torch.where(tensors["log"], place.exp(), place)
        known = ((x > 0) & torch.isfinite(x)).all(1)
        inside = ((log_vols >= tensors["lowest"]) & (log_vols <= tensors["highest"])).all(1)
        inside = inside & ((share >= tensors["kept"][0]) & (share <= tensors["kept"][1])).all(1)
        return torch.where(known[:, None], found, torch.nan), inside & known

    def reference(self, x: Tensor) -> dict[str, Tensor]:
        """The same by the map itself."""
        found = self.inverse._parameters(x[:, None])
        place = torch.from_numpy(self.places(found.numpy()))
        kept = ((place >= EDGE) & (place <= 1 - EDGE)).all(1)
        return {OUTPUT: found, INSIDE: kept & ~self.inverse._beyond(x[:, None]).any(1)}

    def places(self, parameters: np.ndarray) -> np.ndarray:
        """Where parameters (N, P) lie in the box, from 0 to 1: in the logarithm of those whose range is of that scale.

        A small number of a wide range is held to as many digits as a large one.
        """
        low, high, log = (self.tensors[name].numpy() for name in ("low", "high", "log"))
        found = np.where(log, np.log(np.where(log, parameters, 1.0)), parameters)
        return (found - low) / (high - low)

    def points(self, n: int) -> Tensor:
        """Vols (n, places): wider than those that the map was trained on, and every second row moved into their range.

        Places of one surface move together, as vols do, and by a little of their own. Rows whose parameters lie so near
        to where `inside` turns that rounding decides are left out.

        Raises:
            UserError: most rows are such.
        """
        inverse, generator = self.inverse, torch.Generator()
        level, own = (torch.randn(2 * n, width, generator=generator) for width in (1, len(inverse.centre)))
        log_vols = inverse.centre + 1.5 * inverse.scale * (0.9 * level + 0.4 * own)
        log_vols[::2] = torch.minimum(torch.maximum(log_vols[::2], inverse.lowest), inverse.highest)
        vols = torch.exp(log_vols.double())
        place = self.places(inverse._parameters(vols[:, None]).numpy())
        near = np.minimum(np.abs(place - EDGE), np.abs(place - (1 - EDGE))).min(1) < _ROUNDING
        kept = vols[torch.from_numpy(~near)]
        if len(kept) < n:
            raise UserError(
                "the map answers almost every surface with the same parameters, at the edge of its box: it is not fit "
                "for use, train it again"
            )
        return kept[:n]

    def metadata(self) -> dict[str, Any]:
        """What the file says of itself, in JSON types."""
        inverse, layout = self.inverse, self.inverse.layout
        rows = layout.moneyness * len(layout.expiry) if len(layout.moneyness) == 1 else layout.moneyness
        named = [(expiry, place) for expiry, row in zip(layout.expiry, rows) for place in row]
        return {
            "kind": "inverse_map",
            "qfml": library_version(),
            "inputs": [{"name": f"vol[{t:.6g}, {k:.6g}]", "unit": "vol per year, decimal"} for t, k in named],
            "window": None,
            "outputs": {
                OUTPUT: list(inverse.box.names),
                INSIDE: "whether the map was trained on such vols, and no parameter is at the edge of its box",
            },
            "edge": EDGE,
            "trained_on": {end: torch.exp(getattr(inverse, end).double()).tolist() for end in ("lowest", "highest")},
            "model": config.to_dict(inverse.model),
            "layout": config.to_dict(layout),
            "box": dict(zip(inverse.box.names, map(list, zip(inverse.box.low, inverse.box.high)))),
            "network": config.to_dict(inverse.network),
            "members": len(inverse.parameters),
            "errors": {name: _finite(inverse.report[name]) for name in _JUDGED if name in inverse.report},
            "map_hash": inverse.hash,
        }


def _finite(value: Any) -> Any:
    """JSON has no infinity, the error of parameters that have no vols: null."""
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
