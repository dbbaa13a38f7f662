"""What every finished run has, whatever its task: read with one clear word about what is missing or damaged."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qfml.errors import UserError

__all__ = ["check_sections", "is_search", "read_metrics", "require", "task_of", "tells_q999"]


def is_search(folder: str | Path) -> bool:
    """Whether the folder is that of `qfml tune`: its `config.yaml`, as we write it, has a section `tune`."""
    path = Path(folder) / "config.yaml"
    return path.is_file() and re.search(rb"^tune:", path.read_bytes(), re.MULTILINE) is not None


def task_of(folder: str | Path) -> str | None:
    """The task of a run folder, by the `config.yaml` in it; None where there is none."""
    path = Path(folder) / "config.yaml"
    found = re.search(rb"^task:\s*(\w+)", path.read_bytes(), re.MULTILINE) if path.is_file() else None
    return None if found is None else found[1].decode()


def read_metrics(folder: str | Path, *, search: bool = False) -> dict[str, Any]:
    """What `metrics.json` of a finished run holds; of a finished search if `search`.

    Raises:
        UserError: there is no run, it is not finished, it is a search, or the file is damaged.
    """
    folder, what = Path(folder), "search" if search else "run"
    if not folder.is_dir():
        raise UserError(f"no run folder at {folder}; a run writes one (see `qfml run CONFIG --out DIR`)")
    path = folder / "metrics.json"
    if not search and is_search(folder):
        winner = folder / "winner"
        raise UserError(
            f"{folder} is a search, not a run: name its winner, {winner}"
            if (winner / "metrics.json").is_file()
            else f"{folder} is a search that has no winner yet: continue it with `qfml resume {folder}`"
        )
    if not path.is_file():
        way_out = (
            f"it holds no `metrics.json`; finish it with `qfml resume {folder}`"
            if (folder / "config.yaml").is_file()
            else f"it holds no config.yaml; name the folder that `qfml {'tune' if search else 'run'}` has written"
        )
        raise UserError(f"no finished {what} in {folder}: {way_out}")
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # damaged after it was written, which is all at once
        raise UserError(f"{path} is damaged: {error}; run it again") from None
    if not isinstance(metrics, dict):
        raise UserError(f"{path} is damaged: it must hold a mapping, got a {type(metrics).__name__}; run it again")
    return metrics


def check_sections(path: Path, metrics: Mapping[str, Any], required: Mapping[str, Sequence[str]]) -> None:
    """Raise UserError for a section of `metrics`, or a key of one, that a reader cannot do without.

    >>> check_sections(Path("metrics.json"), {"seconds": {"total": 1.0}}, {"seconds": ("data",)})
    Traceback (most recent call last):
    qfml.errors.UserError: metrics.json lacks `seconds.data`; it is damaged or of another version: run it again
    """
    for section, keys in required.items():
        require(path, section, metrics.get(section), keys)


def require(path: Path, section: str, found: Any, keys: Sequence[str]) -> None:
    """Raise UserError unless `found`, a section of the file at `path`, is a mapping with these keys."""
    if not isinstance(found, Mapping):
        raise UserError(f"{path} has no section `{section}`; it is damaged or of another version: run it again")
    missing = [f"`{section}.{key}`" for key in keys if key not in found]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; it is damaged or of another version: run it again")


def tells_q999(judgement: Mapping[str, Any]) -> bool:
    """Whether a surrogate's fresh points are so many that 99.9 % of them are fewer than all."""
    return judgement["points"]["n_points"] >= 1000
