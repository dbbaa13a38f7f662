"""An ONNX file with its metadata: written whole, checked and renamed into place, or not there at all.

The model's properties hold `qfml`, JSON, and `qfml.sha256`: the SHA-256 of the whole file with the 64 digits of that
property as zeros. One file carries everything, and no other needs to travel with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from qfml.errors import UserError
from qfml.export.parity import Parity
from qfml.export.reader import HASH_PROPERTY, PROPERTY, SCHEMA, load_exported, sealed_digest

__all__ = ["Export", "sealed", "written"]

_ZEROS = "0" * 64


@dataclass(frozen=True, eq=False)
class Export:
    """A file that was written.

    Attributes:
        path: of the file.
        what: what it computes, in words.
        parity: how far it is from torch.
        seconds: what it took, the trace included where it was the first of its kind.
    """

    path: Path
    what: str
    parity: Parity
    seconds: float

    def __str__(self) -> str:
        return f"{self.path}: {self.what}; {self.parity}; {self.seconds:.1f} s"


def sealed(model: Any, metadata: Mapping[str, Any]) -> bytes:
    """The bytes of a model with its metadata and its hash; `metadata` may hold any text."""
    text = json.dumps({"schema": SCHEMA, **metadata}, allow_nan=False)  # ASCII, every control character escaped
    onnx.helper.set_model_props(model, {PROPERTY: text, HASH_PROPERTY: _ZEROS})
    content: bytes = model.SerializeToString()
    place, digest = sealed_digest(content)
    return content[:place] + digest.encode() + content[place + len(_ZEROS) :]


def written(contents: Sequence[tuple[Path, bytes]]) -> None:
    """Write files beside their places, prove each readable, and rename them all.

    Raises:
        UserError: the disk is full, a place cannot be written, or onnx finds fault with a model; nothing is replaced.
    """
    made: list[tuple[Path, Path]] = []
    try:
        for path, content in contents:
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.new")
            made.append((new, path))
            _write(new, content)
            _prove(new, content)
        for new, path in made:
            os.replace(new, path)
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or contents[0][0]}: {error.strerror or error}; make room, or name another "
            "place with `out`"
        ) from error
    finally:
        for new, _ in made:
            with suppress(OSError):
                new.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _prove(path: Path, content: bytes) -> None:
    """What lies on the disk is what was compared with torch, and a model by onnx's own rules."""
    if hashlib.sha256(path.read_bytes()).digest() != hashlib.sha256(content).digest():
        raise OSError(0, "what was written is not what is read back", str(path))
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UserError(
            f"the exported graph is not valid ONNX: {error}; nothing is written. Please report it"
        ) from None
    load_exported(path)
