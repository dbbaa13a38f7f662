"""Inverse maps as ONNX files: from the vols of a surface, at fixed places, to a model's parameters."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qfml import config
from qfml.calibration.inverse import InverseMap
from qfml.export.fit_stack import library_version
from qfml.export.model_file import Export, sealed, written
from qfml.export.parity import N_POINTS, parity
from qfml.export.trace import trace

__all__ = ["export_inverse_map"]

INPUT, OUTPUT = "vols", "parameters"
_JUDGED = ("vol_error_bps", "mean_error_share_of_box", "n_judged")  # of the map's report: errors on fresh surfaces
_SMALLEST = 1e-6  # share of the box that `Box.inside` keeps from its edge


def export_inverse_map(inverse: InverseMap, to: Any, *, config_hash: str | None = None) -> Export:
    """Write an inverse map: `vols` (N, places) in float64, annual decimal, to `parameters` (N, P).

    The places are those of the map's layout, expiry by expiry; reading a surface there is left to the caller, and the
    names of the inputs say where. A row with a vol that is not a positive number gives NaN.

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
    template = trace(graph.forward, points[:3], graph.tensors, input_name=INPUT, output_names=[OUTPUT])
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
        edges = torch.special.ndtri(torch.tensor([_SMALLEST, 1 - _SMALLEST], dtype=torch.float64))
        self.tensors["edges"] = edges

    def forward(self, x: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """`InverseMap.start` on vols (N, places)."""
        inverse = self.inverse
        seen = (torch.log(x).float() - tensors["centre"]) / tensors["scale"]
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
        return torch.where(known[:, None], found, torch.nan)

    def reference(self, x: Tensor) -> dict[str, Tensor]:
        """The same by the map itself."""
        return {OUTPUT: self.inverse._parameters(x[:, None])}

    def places(self, parameters: np.ndarray) -> np.ndarray:
        """Where parameters (N, P) lie in the box, from 0 to 1: in the logarithm of those whose range is of that scale.

        A small number of a wide range is held to as many digits as a large one.
        """
        low, high, log = (self.tensors[name].numpy() for name in ("low", "high", "log"))
        found = np.where(log, np.log(np.where(log, parameters, 1.0)), parameters)
        return (found - low) / (high - low)

    def points(self, n: int) -> Tensor:
        """Vols (n, places) about as wide as those of the surfaces that the map was trained on."""
        normal = torch.randn(n, len(self.inverse.centre), generator=torch.Generator())
        return torch.exp(self.inverse.centre + 1.5 * self.inverse.scale * normal).double()

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
            "outputs": {OUTPUT: list(inverse.box.names)},
            "model": config.to_dict(inverse.model),
            "layout": config.to_dict(layout),
            "box": dict(zip(inverse.box.names, map(list, zip(inverse.box.low, inverse.box.high)))),
            "network": config.to_dict(inverse.network),
            "members": len(inverse.parameters),
            "errors": {name: _finite(inverse.report[name]) for name in _JUDGED if name in inverse.report},
            "map_hash": map_hash(inverse),
        }


def map_hash(inverse: InverseMap) -> str:
    """16 hex digits that change with model, layout, box, network or parameters of a map."""
    named = {name: config.to_dict(getattr(inverse, name)) for name in ("model", "layout", "box", "network")}
    digest = hashlib.sha256(config.config_hash(named).encode())
    for tensor in (inverse.parameters, inverse.centre, inverse.scale):
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _finite(value: Any) -> Any:
    """JSON has no infinity, the error of parameters that have no vols: null."""
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
