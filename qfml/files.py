"""Files that are whole or not there: written beside their place, flushed to the disk, then renamed."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path

__all__ = ["replace_file", "replace_text", "write_whole"]


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
