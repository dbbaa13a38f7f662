"""What a run was begun with, and where: noted in its folder, and the same when it is resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qfml.errors import ConfigError, UserError
from qfml.files import replace_text

__all__ = ["INPUTS", "begun_in", "claimed"]

INPUTS = "inputs.json"  # in the run folder


def begun_in(folder: Path) -> str | None:
    """The directory in which the run was begun; None where that was not noted."""
    path = folder / INPUTS
    return _noted(path)["directory"] if path.is_file() else None


def claimed(folder: Path, hashes: Mapping[str, str]) -> bool:
    """Note what a run is begun with; a run that is resumed must have the same.

    Args:
        folder: of the run.
        hashes: of all that it must not change, by the name under which the user knows it.

    Returns:
        Whether it was begun before.

    Raises:
        ConfigError: one of them was changed since.
        UserError: the note is damaged.
    """
    path = folder / INPUTS
    if not path.is_file():
        replace_text(path, json.dumps({"directory": str(Path.cwd()), "hashes": dict(hashes)}, indent=1))
        return False
    before = _noted(path)["hashes"]
    for name, digest in hashes.items():
        if before.get(name) != digest:
            raise ConfigError(
                f"`{name}` is not what this run was begun with (hash {before.get(name)}, now {digest}): restore it, or "
                "start a new run"
            )
    return True


def _noted(path: Path) -> dict[str, Any]:
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        return {"directory": str(noted["directory"]), "hashes": dict(noted["hashes"])}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): start anew with the config beside it") from None
