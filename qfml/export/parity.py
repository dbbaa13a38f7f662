"""Whether an exported graph computes what torch computes, point by point."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from qfml.errors import UserError
from qfml.export.reader import FORMATS

__all__ = ["N_POINTS", "TOLERANCE", "Parity", "parity"]

N_POINTS = 10_000
TOLERANCE = 1e-5
_SPREAD = 1e-3  # a prediction of returns is small: its differences are held against how much it varies, too
_LEAST_SPREAD = 1e-4  # below, the rounding of float32 is as large
_ROWS = 1_000

Measure = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Parity:
    """How far an exported graph is from torch.

    Attributes:
        n_points: rows whose numbers were compared.
        n_unknown: further rows where torch gives NaN, such as those outside of a box, and so must the graph.
        largest: the largest |a - b| / max(1, |a|), a by torch and b by the exported graph, over all outputs.
        tolerance: what `largest` may be.
    """

    n_points: int
    n_unknown: int
    largest: float
    tolerance: float = TOLERANCE

    def as_metadata(self) -> dict[str, Any]:
        """In JSON types."""
        return {
            "points": self.n_points,
            "points_without_a_value": self.n_unknown,
            "largest_difference": self.largest,
            "tolerance": self.tolerance,
        }

    def __str__(self) -> str:
        beside = f" and NaN on {self.n_unknown:,} others" if self.n_unknown else ""
        return f"largest difference {self.largest:.1e} on {self.n_points:,} points{beside} (at most {self.tolerance:g})"


def parity(
    model: bytes,
    reference: Callable[[Tensor], Mapping[str, Tensor]],
    points: Tensor,
    *,
    measures: Mapping[str, Measure] | None = None,
) -> Parity:
    """Compare a model with torch on `points`, in batches of 1, 2 and 1,000 rows.

    Args:
        model: the bytes of an ONNX model with one input, or with several whose columns stand side by side in `points`.
        reference: what torch gives for each output, by name, for inputs (n, ...).
        points: inputs (n, ...).
        measures: of an output, what it is turned into, by torch and by the graph, before the two are compared.

    Raises:
        UserError: a difference beyond the tolerance, other shapes, or NaN where torch has none.
    """
    session = quiet_session(model)
    sources = session.get_inputs()
    names = [output.name for output in session.get_outputs()]
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    wanted: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for chunk in _batches(points):
        try:
            outputs = session.run(None, _fed(sources, chunk))
        except Exception as error:  # onnxruntime raises classes of its own, without a common base
            raise UserError(f"the exported graph does not run on {len(chunk)} rows: {error}; {_NOT_WRITTEN}") from None
        with torch.no_grad():
            expected = reference(chunk)
        for name, output in zip(names, outputs, strict=True):
            truth = expected[name].numpy()
            if np.shape(output) != truth.shape:
                raise UserError(
                    f"the exported graph gives `{name}` of shape {np.shape(output)} for {len(chunk)} rows, torch gives "
                    f"{truth.shape}: {_NOT_WRITTEN}"
                )
            found[name].append(np.asarray(output))
            wanted[name].append(truth)
    measures = {} if measures is None else measures
    largest, known = [], np.ones(len(points), dtype=bool)
    for name in names:
        truth, own = np.concatenate(wanted[name]), np.concatenate(found[name])
        largest.append(_largest(name, truth, own, measures.get(name)))
        known &= np.isfinite(truth).reshape(len(points), -1).all(1)
    return Parity(int(known.sum()), int((~known).sum()), max(largest))


def _fed(sources: Sequence[Any], chunk: Tensor) -> dict[str, np.ndarray]:
    if len(sources) == 1:
        return {sources[0].name: chunk.numpy()}
    parts = chunk.split([source.shape[1] for source in sources], 1)
    return {s.name: part.numpy().astype(FORMATS[s.type]) for s, part in zip(sources, parts, strict=True)}


def quiet_session(model: bytes) -> Any:
    """A session on one thread that says nothing about what it optimises."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _batches(points: Tensor) -> Sequence[Tensor]:
    sizes = [1, 2] if len(points) > 3 else []
    left = len(points) - sum(sizes)
    sizes += [_ROWS] * (left // _ROWS) + ([left % _ROWS] if left % _ROWS else [])
    return points.split(sizes)


def _largest(name: str, torch_s: np.ndarray, graph_s: np.ndarray, measure: Measure | None) -> float:
    """The largest difference of one output; UserError if it is too large."""
    if torch_s.dtype == bool:
        wrong = int((torch_s != graph_s).sum())
        if wrong:
            raise UserError(f"`{name}` of the exported graph differs from torch's in {wrong} places: {_NOT_WRITTEN}")
        return 0.0
    a, b = torch_s.astype(np.float64), graph_s.astype(np.float64)
    known = np.isfinite(a)
    if not known.any():
        raise UserError(f"torch gives no finite `{name}` on the points compared: the network is not fit for use")
    if (known != np.isfinite(b)).any():
        raise UserError(f"`{name}` of the exported graph is not finite where torch's is, or is: {_NOT_WRITTEN}")
    if measure is not None:
        a, b = measure(a), measure(b)
    error = np.abs(a - b)[known]
    a = a[known]
    largest = float((error / np.maximum(1.0, np.abs(a))).max())
    if largest > TOLERANCE:
        raise UserError(
            f"`{name}` of the exported graph differs from torch's by {largest:.1e} of max(1, |{name}|) on "
            f"{len(a):,} points, more than {TOLERANCE:g}: {_NOT_WRITTEN}"
        )
    spread = float(np.sqrt(np.square(error).mean())) / max(float(a.std()), _LEAST_SPREAD)
    if spread > _SPREAD:
        raise UserError(
            f"`{name}` of the exported graph differs from torch's by {spread:.1e} of its standard deviation, more than "
            f"{_SPREAD:g}: {_NOT_WRITTEN}"
        )
    return largest


_NOT_WRITTEN = (
    "the file is not written. Train with other transforms or another network, or serve the run with qfml; and please "
    "report it"
)
