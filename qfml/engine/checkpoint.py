"""Checkpoints: folders of safetensors and JSON that are whole or not there at all.

A checkpoint is written into a temporary folder, flushed to the disk, renamed into place, and read back before an older
one is removed. `manifest.json` holds the SHA-256 of each file and of itself. Nothing is ever unpickled or executed.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from qfml.errors import CheckpointError

SCHEMA = 1
_FILES = ("state.json", "tensors.safetensors")
_NAME = re.compile(r"^checkpoint-(\d{8})$")


def write_checkpoint(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int = 2) -> Path:
    """Write the next checkpoint of `folder` and remove all but the last `keep`.

    Args:
        folder: the folder that holds a run's checkpoints.
        tensors: named tensors.
        state: everything else, as JSON types.
        keep: checkpoints to keep, at least 2: the new one and the one before it.

    Returns:
        The folder of the new checkpoint.

    Raises:
        CheckpointError: the disk is full or not writable; the previous checkpoint is untouched.
    """
    numbers = _numbers(folder)
    target = folder / f"checkpoint-{(numbers[-1] if numbers else 0) + 1:08d}"
    temporary = folder / f".writing-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(folder)
        write_folder(temporary, tensors, state)
        os.replace(temporary, target)
        _flush(folder)
        read_folder(target)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"cannot write a checkpoint into {folder}: {error.strerror or error}; the previous checkpoint is intact. "
            "Make room, then resume the run"
        ) from error
    for number in numbers[: max(0, len(numbers) + 1 - max(keep, 2))]:
        shutil.rmtree(folder / f"checkpoint-{number:08d}", ignore_errors=True)
    return target


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The newest checkpoint of `folder` that is whole; a damaged one is passed over with a warning.

    Returns:
        Tensors and state as they were written.

    Raises:
        CheckpointError: there is none, or none is whole.
    """
    numbers = _numbers(folder)
    if not numbers:
        raise CheckpointError(f"no checkpoint in {folder}: the run was stopped before its first one; start it anew")
    reasons = []
    for number in reversed(numbers):
        try:
            found = read_folder(folder / f"checkpoint-{number:08d}")
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        if reasons:
            warnings.warn(f"{'; '.join(reasons)}; using checkpoint-{number:08d} instead", UserWarning, stacklevel=2)
        return found
    raise CheckpointError(f"no checkpoint in {folder} is whole: {'; '.join(reasons)}")


def write_folder(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write `tensors.safetensors`, `state.json` and the manifest of both, each flushed to the disk."""
    folder.mkdir(parents=True)
    contents = {
        "state.json": json.dumps(state).encode(),
        "tensors.safetensors": safetensors.torch.save({name: t.contiguous() for name, t in tensors.items()}),
    }
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
        "versions": {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()},
        "threads": torch.get_num_threads(),
    }
    manifest["sha256"] = _hash(manifest)
    for name, content in {**contents, "manifest.json": json.dumps(manifest, indent=1).encode()}.items():
        with (folder / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    _flush(folder)


def read_folder(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_folder` wrote, every hash checked; CheckpointError says what is wrong."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        if not isinstance(manifest, dict) or manifest.pop("sha256", None) != _hash(manifest):
            raise CheckpointError(f"{folder.name} is damaged: manifest.json does not match its own hash")
        if manifest["schema"] != SCHEMA:
            raise CheckpointError(f"{folder.name} has schema {manifest['schema']}, this version reads {SCHEMA}")
        if sorted(manifest["files"]) != sorted(_FILES):
            raise CheckpointError(f"{folder.name} lists files that are not a checkpoint's: {manifest['files']}")
        contents = {name: (folder / name).read_bytes() for name in _FILES}
        for name, content in contents.items():
            if hashlib.sha256(content).hexdigest() != manifest["files"][name]:
                raise CheckpointError(f"{folder.name} is damaged: {name} does not match its SHA-256")
        return safetensors.torch.load(contents["tensors.safetensors"]), json.loads(contents["state.json"])
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{folder.name} is damaged: {type(error).__name__}: {error}") from None


def _numbers(folder: Path) -> list[int]:
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(int(match[1]) for match in map(_NAME.match, names) if match)


def _remove_unfinished(folder: Path) -> None:
    """Clear away what a killed process left half-written."""
    for leftover in folder.glob(".writing-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _hash(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
