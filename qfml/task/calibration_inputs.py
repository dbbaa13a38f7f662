"""The networks that a calibration uses: loaded, named by their hashes, and the same when a run is resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qfml.calibration.inverse import InverseMap
from qfml.errors import CheckpointError, ConfigError, UserError
from qfml.task.base import replace_text

__all__ = ["INPUTS", "begun_in", "claimed", "load_networks"]

INPUTS = "inputs.json"  # in the run folder: what it was begun with, and where


def load_networks(paths: Mapping[str, str | None]) -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
    """The networks at the paths that are not None, and path and hash of each.

    Args:
        paths: of `surrogate` and `inverse`.

    Raises:
        ConfigError: there is no such folder, or what it holds cannot be used; the message names the setting.
    """
    networks: dict[str, Any] = {}
    used: dict[str, dict[str, str]] = {}
    for name, path in paths.items():
        if path is None:
            continue
        if not Path(path).is_dir():
            raise ConfigError(
                f"`{name}`: there is no folder {path}, seen from {Path.cwd()}: give the folder of a trained one, from "
                "the directory in which qfml runs, or as an absolute path"
            )
        try:
            networks[name], digest = _LOAD[name](path)
        except CheckpointError as error:
            raise ConfigError(f"`{name}: {path}` cannot be used: {error}") from None
        used[name] = {"path": path, "hash": digest}
    return networks, used


def _surrogate(path: str) -> tuple[Any, str]:
    from qfml.surrogate import Surrogate  # loaded where it is asked for

    found = Surrogate.load(path)
    return found, found.hash


def _inverse(path: str) -> tuple[Any, str]:
    found = InverseMap.load(path)
    return found, found.hash


_LOAD = {"surrogate": _surrogate, "inverse": _inverse}


def begun_in(folder: Path) -> str | None:
    """The directory in which the run was begun; None where that was not noted."""
    path = folder / INPUTS
    return _noted(path)["directory"] if path.is_file() else None


def _noted(path: Path) -> dict[str, Any]:
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        return {"directory": str(noted["directory"]), "hashes": dict(noted["hashes"])}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): start anew with the config beside it") from None


def claimed(folder: Path, used: Mapping[str, Mapping[str, str]], data_hash: str) -> None:
    """Note what a run is begun with; a run that is resumed must have the same.

    Raises:
        ConfigError: quotes or a network were changed since.
    """
    path = folder / INPUTS
    now = {name: one["hash"] for name, one in used.items()} | {"surface": data_hash}
    if not path.is_file():
        replace_text(path, json.dumps({"directory": str(Path.cwd()), "hashes": now}, indent=1))
        return
    before = _noted(path)["hashes"]
    for name, digest in now.items():
        if before.get(name) != digest:
            raise ConfigError(
                f"`{name}` is not what this run was begun with (hash {before.get(name)}, now {digest}): restore it, or "
                "start a new run"
            )
