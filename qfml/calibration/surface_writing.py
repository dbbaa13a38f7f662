"""Surfaces as a table, one row for each quote, that reads back to the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from qfml.errors import DataError
from qfml.files import replace_file

if TYPE_CHECKING:
    from qfml.calibration.surface import Surface

__all__ = ["table_of", "write_table"]


def table_of(surfaces: Sequence[Surface]) -> pl.DataFrame:
    """Surfaces below each other; columns that none of them has are left out."""
    length = np.array([len(surface) for surface in surfaces])
    columns: dict[str, Any] = {}
    if any(surface.date is not None for surface in surfaces):
        columns["date"] = np.repeat(np.array([surface.date for surface in surfaces], "datetime64[us]"), length)
    names = [surface.name for surface in surfaces if surface.name]
    if names:  # one underlying, which not every surface need name
        columns["name"] = np.repeat(np.array([surface.name or names[0] for surface in surfaces]), length)
    if any(surface.spot is not None for surface in surfaces):
        columns["spot"] = np.repeat([np.nan if surface.spot is None else surface.spot for surface in surfaces], length)
    columns |= {name: _joined(surfaces, name) for name in ("strike", "expiry", "forward", "discount", "vol")}
    for name in ("bid", "ask"):
        if any(getattr(surface, name) is not None for surface in surfaces):
            columns[f"{name}_vol"] = _joined(surfaces, name)
    return pl.DataFrame(columns | {"weight": _joined(surfaces, "weight")}).fill_nan(None)


def write_table(path: Any, frame: pl.DataFrame) -> Path:
    """Write a table as CSV or Parquet, by the end of the path.

    Raises:
        DataError: another end.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise DataError(f"surfaces are written as .csv or .parquet, got {path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, frame.write_csv if path.suffix.lower() == ".csv" else frame.write_parquet)
    return path


def _joined(surfaces: Sequence[Surface], name: str) -> np.ndarray:
    columns = [getattr(surface, name) for surface in surfaces]
    empty = (np.full(len(surface), np.nan) for surface in surfaces)
    return np.concatenate([other if column is None else column for column, other in zip(columns, empty, strict=True)])
