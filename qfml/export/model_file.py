"""An ONNX file with its metadata: written whole, checked and renamed into place, or not there at all.

The model's properties hold `qfml`, JSON, and `qfml.sha256`: the SHA-256 of the whole file with the 64 digits of that
property as zeros. One file carries everything, and no other needs to travel with it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
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


def written(contents: Sequence[tuple[Path, bytes]], *, outdated: Sequence[Path] = ()) -> None:
    """Write files beside their places, prove each readable, and rename them all; then clear what a kill left earlier.

    All are replaced or none, whatever error is raised. A process that is killed between two renames leaves some of
    each, every one of them whole; the next export mends that.

    Args:
        contents: place and bytes of each file.
        outdated: files of an earlier export that would not belong to these; removed with the rest, or kept with it.

    Raises:
        UserError: the disk is full, a place cannot be written, or onnx finds fault with a model; nothing is replaced.
    """
    made: list[tuple[Path, Path]] = []
    try:
        for path in (*(path for path, _ in contents), *outdated):
            if path.is_dir() and not path.is_symlink():
                raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
        for path, content in contents:
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.new")
            made.append((new, path))
            _write(new, content)
            _prove(new, content)
        _replace_all(made, outdated)
        for path in (*(path for path, _ in contents), *outdated):
            _clear_leftovers(path)
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or contents[0][0]}: {error.strerror or error}; make room, or name another "
            "place with `out`"
        ) from error
    finally:
        for new, _ in made:
            with suppress(OSError):
                new.unlink(missing_ok=True)


def _clear_leftovers(path: Path) -> None:
    """Remove the files that an export of `path` left beside it when it was killed."""
    ours = re.compile(re.escape(f".{path.name}.") + r"[0-9a-f]{8}\.(new|old)\Z")
    for each in list(path.parent.iterdir()):
        if ours.match(each.name):
            with suppress(OSError):
                each.unlink()


def _replace_all(made: Sequence[tuple[Path, Path]], outdated: Sequence[Path]) -> None:
    """Rename each new file to its place and remove what is outdated; after an error all is as it was before."""
    done: list[tuple[Path, Path | None]] = []  # a place, and what lay there
    try:
        for new, path in (*made, *((None, path) for path in outdated)):
            old = _second_name(path)
            done.append((path, old))
            if new is not None:
                os.replace(new, path)
            else:
                path.unlink(missing_ok=True)
    except BaseException:
        for path, old in reversed(done):
            if old is None:
                path.unlink(missing_ok=True)
            else:
                os.replace(old, path)  # does nothing where both are still names of one file
        raise
    finally:
        for _, old in done:
            if old is not None:
                with suppress(OSError):
                    old.unlink(missing_ok=True)


def _second_name(path: Path) -> Path | None:
    """Another name of the file at `path`, or a copy where the file system has no second names; None without a file."""
    if not os.path.lexists(path):
        return None
    name = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old")
    try:
        os.link(path, name, follow_symlinks=False)
    except OSError:
        shutil.copy2(path, name, follow_symlinks=False)
    return name


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
