"""Checkpoints: folders of safetensors and JSON that are whole or not there at all.

A checkpoint is written into a temporary folder, flushed to the disk, renamed into place, and read back before an older
one is removed. `manifest.json` holds the SHA-256 of each file and of itself. Nothing is ever unpickled or executed, and
nothing outside the folder is opened: the names of the files are fixed, and links are not followed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import uuid
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from qfml.engine.provenance import environment
from qfml.errors import CheckpointError

SCHEMA = 1
_FILES = ("state.json", "tensors.safetensors")
_NAME = re.compile(r"^checkpoint-([0-9]{8,})\Z")  # more digits after 99999999
_MOST_BYTES = {"manifest.json": 2**24, "state.json": 2**30}  # read as JSON, which takes many times as much memory
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int = 2,
    *,
    record: Mapping[str, Any] | None = None,
    damaged: Collection[int] = (),
) -> Path:
    """Write the next checkpoint of `folder` and remove all but the last `keep`.

    Args:
        folder: the folder that holds a run's checkpoints.
        tensors: named tensors.
        state: everything else, as JSON types.
        keep: checkpoints to keep, at least 2: the new one and the one before it.
        record: what goes into the manifest beside the hashes; versions and threads if omitted.
        damaged: numbers of checkpoints that were found damaged; they are removed and do not count as kept.

    Returns:
        The folder of the new checkpoint.

    Raises:
        CheckpointError: the disk is full or not writable; the previous checkpoint is untouched.
    """
    temporary = folder / f".writing-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        numbers = _numbers(folder)
        target = folder / f"checkpoint-{(numbers[-1] if numbers else 0) + 1:08d}"
        _remove_unfinished(folder)
        manifest = write_folder(temporary, tensors, state, record)
        os.replace(temporary, target)
        _flush(folder)
        _prove(target, manifest)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"cannot write a checkpoint into {folder}: {error.strerror or error}; the previous checkpoint is intact. "
            "Make room or mend the disk, then resume the run"
        ) from error
    whole = [number for number in numbers if number not in damaged]
    for number in [*whole[: max(0, len(whole) + 1 - max(keep, 2))], *set(damaged).intersection(numbers)]:
        shutil.rmtree(folder / f"checkpoint-{number:08d}", ignore_errors=True)
    return target


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The newest checkpoint of `folder` that is whole; a damaged one is passed over with a warning.

    Returns:
        Tensors and state as they were written.

    Raises:
        CheckpointError: there is none, or none is whole.
    """
    tensors, state, _ = newest_whole(folder)
    return tensors, state


def check_unused(folder: Path) -> None:
    """Refuse a place where a new training cannot write its checkpoints, or would remove those of another one.

    Raises:
        CheckpointError: a file, or a folder that holds checkpoints.
    """
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"checkpoints are written into a folder, and {folder} is a file: name another place")
    if _numbers(folder):
        raise CheckpointError(
            f"{folder} holds the checkpoints of a training, which a new one would remove: continue it by `resume=True`,"
            " or take another folder"
        )


def newest_whole(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], list[int]]:
    """What `read_checkpoint` returns, and the numbers of the damaged checkpoints that were passed over."""
    numbers = _numbers(folder)
    if not numbers:
        raise CheckpointError(f"no checkpoint in {folder}: the run was stopped before its first one; start it anew")
    reasons: dict[int, str] = {}
    for number in reversed(numbers):
        place = folder / f"checkpoint-{number:08d}"
        try:
            if place.is_symlink():
                raise CheckpointError(f"{place.name} is damaged: it is a link, which is not followed")
            tensors, state = read_folder(place)
        except CheckpointError as error:
            reasons[number] = str(error)
            continue
        if reasons:
            warnings.warn(f"{'; '.join(reasons.values())}; using {place.name} instead", UserWarning, stacklevel=3)
        return tensors, state, list(reasons)
    raise CheckpointError(f"no checkpoint in {folder} is whole: {'; '.join(reasons.values())}")


def write_folder(
    folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any], record: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write `tensors.safetensors`, `state.json` and the manifest of both, each flushed to the disk.

    Returns:
        The manifest.
    """
    folder.mkdir(parents=True)
    hashes = {
        "state.json": _write(folder / "state.json", [json.dumps(state).encode()]),
        "tensors.safetensors": _write(folder / "tensors.safetensors", _safetensors(tensors)),
    }
    manifest: dict[str, Any] = {**(environment() if record is None else record), "schema": SCHEMA, "files": hashes}
    manifest["sha256"] = _hash(manifest)
    _write(folder / "manifest.json", [json.dumps(manifest, indent=1).encode()])
    _flush(folder)
    return manifest


def read_folder(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_folder` wrote, every hash checked; CheckpointError says what is wrong."""
    try:
        manifest = _read_manifest(folder)
        contents = {name: _read(folder / name) for name in _FILES}
        for name, content in contents.items():
            if hashlib.sha256(content).hexdigest() != manifest["files"][name]:
                raise CheckpointError(f"{folder.name} is damaged: {name} does not match its SHA-256")
        state = json.loads(contents["state.json"])
        if not isinstance(state, dict):
            raise CheckpointError(f"{folder.name} is damaged: state.json holds no object")
        return safetensors.torch.load(contents["tensors.safetensors"]), state
    except _DAMAGE as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{folder.name} is damaged: {type(error).__name__}: {error}") from None


# what reading a damaged or hostile file may end in; RecursionError: JSON of very deep nesting
_DAMAGE = (OSError, ValueError, KeyError, TypeError, RecursionError, MemoryError, safetensors.SafetensorError)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint: hashes of its files, versions, threads, and what else was recorded."""
    try:
        return _read_manifest(folder)
    except _DAMAGE as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{folder.name} is damaged: {type(error).__name__}: {error}") from None


def _read_manifest(folder: Path) -> dict[str, Any]:
    manifest = json.loads(_read(folder / "manifest.json"))
    if not isinstance(manifest, dict) or manifest.pop("sha256", None) != _hash(manifest):
        raise CheckpointError(f"{folder.name} is damaged: manifest.json does not match its own hash")
    if manifest["schema"] != SCHEMA:
        raise CheckpointError(f"{folder.name} has schema {manifest['schema']}, this version reads {SCHEMA}")
    if not isinstance(manifest["files"], dict) or sorted(manifest["files"]) != sorted(_FILES):
        raise CheckpointError(f"{folder.name} lists files that are not a checkpoint's: {manifest['files']}")
    return manifest


def _write(path: Path, chunks: Iterable[bytes | memoryview]) -> str:
    """Write a file, flushed to the disk; returns its SHA-256, taken on the way."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _safetensors(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """A safetensors file in pieces: the length of the header, the header, and the tensors' own memory, not copied."""
    header, end = {}, 0
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))  # each stays aligned
    for name, value in ordered:
        begin, end = end, end + value.numel() * value.element_size()
        header[name] = {"dtype": _DTYPES[value.dtype], "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, value in ordered:
        yield value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def _read(path: Path) -> bytes:
    """The bytes of a plain file; a link, a pipe or a file that is far too large is refused before it is read."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise CheckpointError(f"{path.parent.name} is damaged: {path.name} is not a plain file")
        if found.st_size > _MOST_BYTES.get(path.name, found.st_size):
            raise CheckpointError(
                f"{path.parent.name} is damaged: {path.name} has {found.st_size:,} bytes, more than any of ours"
            )
        return file.read()


def _prove(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Read a checkpoint back; OSError if the disk does not return what was written, which is then removed."""
    wanted = manifest["files"] | {"manifest.json": hashlib.sha256(json.dumps(manifest, indent=1).encode()).hexdigest()}
    for name, digest in wanted.items():
        with (folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                shutil.rmtree(folder, ignore_errors=True)
                raise OSError(f"the disk does not return what was written to {name}")


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
