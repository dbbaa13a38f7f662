"""A swaption cube as a calibration run: SABR at every node, its tables, and what of the settings applies."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import polars as pl

from qfml.calibration import calibrate_cube
from qfml.calibration.cube_tables import cube_curves, cube_nodes, cube_quotes, cube_summary
from qfml.config import config_hash
from qfml.errors import ConfigError
from qfml.files import replace_file
from qfml.task.base import Say, as_settings
from qfml.task.begun import claimed
from qfml.task.calibration_tables import array_hash

__all__ = ["check_cube", "fitted_cube", "has_tenors"]

_TENORS = {"tenor", "swap_tenor"}
_EXPIRIES = {"expiry", "option_expiry"}
_COLUMNS = ("expiry", "tenor", "strike", "forward", "vol", "weight")
_OFF = ("surrogate", "inverse", "inverse_training", "posterior", "walk_forward", "warm", "smoothness", "n_polished")


def check_cube(task: Any) -> None:
    """ConfigError where a `CalibrationTask` asks for what no swaption cube has."""
    if task.model.kind != "sabr":
        raise ConfigError(
            f"a swaption cube is fitted by `sabr` with one `beta`, got the model {task.model.kind}: write "
            "`model: {kind: sabr, beta: 0.5}`, or --model sabr --set model.beta=0.5"
        )
    if task.method not in (None, "exact"):
        raise ConfigError(f"a swaption cube is fitted by the method exact, got {task.method}: leave `method` out")
    for name in _OFF:
        if getattr(task, name):
            raise ConfigError(
                f"`{name}` does not apply to a swaption cube, whose nodes are fitted one by one: leave it out"
            )


def fitted_cube(task: Any, folder: Path, say: Say) -> dict[str, Any]:
    """Calibrate the cube that a `CalibrationTask` names and write its tables; what `metrics.json` says of it."""
    start = time.perf_counter()
    cube = task.surface.read()
    say(f"{task.surface.describe()}: {cube}")
    for line in cube.notes:
        say(line)
    hashed = array_hash((getattr(cube, name) for name in _COLUMNS), f"{cube.shift!r} {cube.quote}")
    claimed(folder, {"surface": hashed, "config.yaml": config_hash(as_settings(task))})
    seconds = {"data": time.perf_counter() - start}
    start = time.perf_counter()
    options = {name: getattr(task, name) for name in ("n_starts", "max_steps", "tolerance")}
    found = calibrate_cube(cube, task.model.beta, at_the_money=task.model.at_the_money, **options)
    seconds["calibration"] = time.perf_counter() - start
    for name, table in (("quotes", cube_quotes), ("curves", cube_curves), ("nodes", cube_nodes)):
        replace_file(folder / f"{name}.parquet", table(found).write_parquet)
    return {"fit": cube_summary(found), "notes": list(cube.notes), "data_hash": hashed, "seconds": seconds}


def has_tenors(path: Path) -> bool:
    """Whether the file is a table with expiries and tenors, as only a swaption cube has; False where it is no table."""
    if not path.is_file():
        return False
    try:
        names = pl.read_parquet_schema(path) if path.suffix == ".parquet" else pl.read_csv(path, n_rows=0).columns
    except (pl.exceptions.PolarsError, OSError):
        return False
    found = {name.strip().lower() for name in names}
    return bool(found & _TENORS) and bool(found & _EXPIRIES)
