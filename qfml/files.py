"""Files that are whole or not there: written beside their place, flushed to the disk, then renamed."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path

__all__ = ["remove_unfinished", "replace_file", "replace_text", "write_whole"]

_UNFINISHED = re.compile(r"\..+-[0-9a-f]{32}\Z")


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make a file beside `path`, flush it to the disk, and rename it.

    Without the flush a rename may reach the disk before the bytes do, and a power failure leave an empty file under the
    final name. The name beside is nobody else's, so that machines which share a folder do not meet in it.

    Args:
        path: of the file, new or old.
        write: writes a file at the path that it is handed.
    """
    beside = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        write(beside)
        with beside.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_whole(content: bytes, path: Path) -> None:
    """Write bytes as a file, whole or not at all."""
    replace_file(path, lambda beside: beside.write_bytes(content))


def replace_text(path: Path, text: str) -> None:
    """Write a text as a file in UTF-8, whole or not at all.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     replace_text(Path(folder, "note.txt"), "1 bp")
    ...     [(path.name, path.read_text()) for path in Path(folder).iterdir()]
    [('note.txt', '1 bp')]
    """
    replace_file(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def remove_unfinished(folder: Path) -> None:
    """Remove what kills have left of files that were being written in a folder where no other process writes."""
    for path in folder.iterdir():
        if _UNFINISHED.match(path.name) and path.is_file():
            path.unlink()
