"""Reading an exported file back, with numpy and onnxruntime alone."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from qfml.errors import CheckpointError, DataError

__all__ = ["ExportedModel", "load_exported"]

SCHEMA = 1
PROPERTY, HASH_PROPERTY = "qfml", "qfml.sha256"
FORMATS = {"tensor(float)": np.float32, "tensor(double)": np.float64}
_MOST_BYTES = 2**31  # what a protobuf can hold
# the property as protobuf writes it: a key of 11 bytes, then a value of 64
_SEAL = re.compile(rb"\x0a\x0b" + re.escape(HASH_PROPERTY.encode()) + rb"\x12\x40([0-9a-f]{64})")


class ExportedModel:
    """An exported network, ready to run.

    Attributes:
        metadata: what the file says of itself: inputs with units, box, error bound, hashes, members.
        input_names: the columns of an input row, in order.
        units: the unit of each input by name, None where none was given.
        window: rows of a feature window, None for single rows.
        output_names: names of what `predict` returns.
    """

    def __init__(self, session: Any, metadata: dict[str, Any]) -> None:
        self.session, self.metadata = session, metadata
        inputs = metadata["inputs"]
        self.input_names: tuple[str, ...] = tuple(each["name"] for each in inputs)
        self.units: dict[str, str | None] = {each["name"]: each.get("unit") for each in inputs}
        self.window: int | None = metadata.get("window")
        self.output_names: tuple[str, ...] = tuple(output.name for output in session.get_outputs())
        source, *memory = session.get_inputs()
        self._name = source.name
        self._dtype = np.dtype(FORMATS[source.type])
        self._memory = memory[0] if memory else None

    def predict(
        self, inputs: Any, *, state: Any = None, units: Mapping[str, str] | None = None, errors: str = "raise"
    ) -> dict[str, np.ndarray]:
        """Run the graph on rows of inputs.

        Args:
            inputs: shape (N, d), columns in the order of `input_names`; or (N, L, d) for windows of L rows, the oldest
                first; or a mapping with an array (N,), or (N, L), or a number for each name.
            state: of a hedging policy that remembers: `next_state` of the date before, (N, S); zeros where left out, as
                on the first date.
            units: the units that these inputs have, by name; refused where the file has others.
            errors: "raise" refuses rows outside of what a surrogate or an inverse map was trained on; "flag" leaves
                them to the output `inside`.

        Returns:
            Each output by name, N rows each.

        Raises:
            DataError: other names, units, or shapes than the file's, no numbers, NaN, or rows outside the box.
        """
        if errors not in ("raise", "flag"):
            raise DataError(f'`errors` must be "raise" or "flag", got {errors!r}')
        self._check_units({} if units is None else units)
        rows = self._rows(inputs)
        # onnxruntime does not run every graph on no rows at all
        fed = rows if len(rows) else np.zeros((1, *rows.shape[1:]), dtype=rows.dtype)
        found = self.session.run(None, {self._name: fed} | self._state(state, rows, len(fed)))
        outputs = {name: output[: len(rows)] for name, output in zip(self.output_names, found, strict=True)}
        if errors == "raise" and "inside" in outputs and not outputs["inside"].all():
            self._refuse_outside(rows, outputs["inside"])
        return outputs

    def _state(self, state: Any, rows: np.ndarray, n_fed: int) -> dict[str, np.ndarray]:
        """What the network remembers, checked; nothing of one that does not."""
        if self._memory is None:
            if state is not None:
                raise DataError("`state` is for a policy that remembers, and this network has none: leave it out")
            return {}
        width = self._memory.shape[1]
        if state is None:
            late = rows[:, self.input_names.index("date")] > 0 if len(rows) else np.zeros(0, dtype=bool)
            if late.any():
                raise DataError(
                    f"`state` must be given after the first date, row {int(late.argmax())} has a later one: hand in "
                    "`next_state` of the date before"
                )
            state = np.zeros((n_fed, width))
        try:
            found = np.ascontiguousarray(np.asarray(state, dtype=np.float32))
        except (TypeError, ValueError) as error:
            raise DataError(f"`state` must be numbers: {error}") from None
        if len(rows) and (found.shape != (n_fed, width) or not np.isfinite(found).all()):
            raise DataError(f"`state` must be finite numbers of shape {(n_fed, width)}, got shape {found.shape}")
        return {self._memory.name: found if len(rows) else np.zeros((n_fed, width), dtype=np.float32)}

    def _check_units(self, units: Mapping[str, str]) -> None:
        for name, unit in units.items():
            if name not in self.units:
                raise DataError(f"`units` names {name!r}, which is no input; the inputs are {self._listed}")
            if unit != self.units[name]:
                raise DataError(f"`{name}` must be in {self.units[name]!r}, got {unit!r}: convert it first")

    def _rows(self, inputs: Any) -> np.ndarray:
        """Inputs as one array of the graph's number format, checked."""
        if isinstance(inputs, Mapping):
            inputs = self._columns(inputs)
        try:
            rows = np.asarray(inputs, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(f"inputs must be numbers: {error}") from None
        width = len(self.input_names)
        expected = f"(N, {width})" if self.window is None else f"(N, {self.window}, {width})"
        tail = (width,) if self.window is None else (self.window, width)
        if rows.shape[1:] != tail or rows.ndim != len(tail) + 1:
            raise DataError(f"inputs must have shape {expected}, columns {self._listed}; got {rows.shape}")
        with np.errstate(over="ignore"):
            rows = np.ascontiguousarray(rows.astype(self._dtype))
        wrong = ~np.isfinite(rows)
        if wrong.any():
            first = np.argwhere(wrong)[0]
            raise DataError(
                f"`{self.input_names[int(first[-1])]}` is not a finite number in row {int(first[0])} "
                f"({int(wrong.any(axis=tuple(range(1, rows.ndim))).sum())} rows in all): leave these rows out"
            )
        return rows

    def _columns(self, columns: Mapping[str, Any]) -> np.ndarray:
        missing = [name for name in self.input_names if name not in columns]
        unknown = [name for name in columns if name not in self.units]
        if missing or unknown:
            raise DataError(f"inputs must be {self._listed}; missing: {_quoted(missing)}; unknown: {_quoted(unknown)}")
        try:
            arrays = [np.asarray(columns[name], dtype=np.float64) for name in self.input_names]
            arrays = np.broadcast_arrays(*arrays)
        except (TypeError, ValueError) as error:
            raise DataError(f"inputs must be numbers and of one length: {error}") from None
        rows = np.stack(arrays, axis=-1)
        return rows[None] if rows.ndim == (1 if self.window is None else 2) else rows

    def _refuse_outside(self, rows: np.ndarray, inside: np.ndarray) -> None:
        first = int(np.flatnonzero(~inside)[0])
        count, flag = f"{int((~inside).sum())} of {len(rows)} rows", 'errors="flag" and read the output `inside`'
        seen = self.metadata.get("trained_on")
        if seen is not None:  # an inverse map
            beyond = ~((rows[first] >= seen["lowest"]) & (rows[first] <= seen["highest"]))
            place = int(np.argmax(beyond))
            raise DataError(
                f"{count} lie outside of what the map was trained on, first row {first}, "
                + (
                    f"where {self.input_names[place]} = {rows[first, place]:g} is not within "
                    f"{seen['lowest'][place]:g} to {seen['highest'][place]:g}"
                    if beyond.any()
                    else f"whose parameters are at the edge of the box {self.metadata.get('box')}"
                )
                + f": calibrate these otherwise, or take {flag}"
            )
        values = ", ".join(f"{name} = {value:g}" for name, value in zip(self.input_names, rows[first]))
        if self.metadata.get("kind") == "hedging":
            raise DataError(
                f"{count} hold what cannot be hedged, first row {first} ({values}): `date` must be a whole number, 0 "
                f"to {len(self.metadata['trading_dates']) - 2}, prices and volatilities must not be negative; correct "
                f"them, or take {flag}"
            )
        raise DataError(
            f"{count} lie outside the box that the network was trained on, first row {first} ({values}); the box is "
            f"{self.metadata.get('box')}: price these otherwise, or take {flag}"
        )

    @property
    def _listed(self) -> str:
        return _quoted(self.input_names)


def load_exported(path: str | Path) -> ExportedModel:
    """Read a file that `qfml export` wrote.

    Raises:
        CheckpointError: there is no such file, it is a folder or a pipe, it is not ours, or it was changed since it was
            written.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise CheckpointError(f"cannot read {path}: it is no file")  # a pipe would be waited for
        if path.stat().st_size >= _MOST_BYTES:
            raise CheckpointError(f"{path.name} is larger than an ONNX file can be")
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    place, digest = sealed_digest(content, path.name)
    if content[place : place + 64] != digest.encode():
        raise CheckpointError(f"{path.name} does not match its SHA-256: it was damaged or changed; export it again")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        metadata = json.loads(session.get_modelmeta().custom_metadata_map[PROPERTY])
        if metadata["schema"] != SCHEMA:
            raise CheckpointError(
                f"{path.name} has schema {metadata['schema']!r}, this version reads {SCHEMA}: export it again"
            )
        return ExportedModel(session, metadata)
    except CheckpointError:
        raise
    except Exception as error:  # onnxruntime raises classes of its own, without a common base
        raise CheckpointError(f"{path.name} is not a file of ours: {type(error).__name__}: {error}") from None


def sealed_digest(content: bytes, name: str = "the model") -> tuple[int, str]:
    """Where the digits of a file's hash stand, and what they must be: the hash with zeros in their place."""
    found = list(_SEAL.finditer(content))
    if len(found) != 1:
        raise CheckpointError(f"{name} is not a file that qfml exported: it holds no SHA-256 of itself")
    place = found[0].start(1)
    digest = hashlib.sha256(content[:place])
    digest.update(b"0" * 64)
    digest.update(content[place + 64 :])
    return place, digest.hexdigest()


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"
