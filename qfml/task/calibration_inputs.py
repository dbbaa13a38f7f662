"""The networks that a calibration uses: loaded, and named by their hashes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qfml.calibration.inverse import InverseMap
from qfml.errors import CheckpointError, ConfigError

__all__ = ["load_networks"]


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
