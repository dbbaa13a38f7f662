"""A finished calibration as its page reads it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

__all__ = ["SHOWN", "CalibrationRun", "rounded", "shown_surfaces"]

SHOWN = 4  # surfaces whose smiles are drawn


@dataclass(frozen=True)
class CalibrationRun:
    """What lies in the folder of a finished calibration.

    Args:
        path: the folder.
        config: text of its configuration.
        metrics: of metrics.json.
        quotes: every quote beside the model.
        curves: the fitted smiles.
    """

    path: Path
    config: str
    metrics: dict[str, Any]
    quotes: pl.DataFrame
    curves: pl.DataFrame

    @property
    def fit(self) -> dict[str, Any]:
        """The fit, as `fit_entry` wrote it."""
        return self.metrics["fit"]

    @property
    def surfaces(self) -> list[dict[str, Any]]:
        """An entry for each surface, or for each tenor of a cube."""
        return self.metrics["fit"]["surfaces"]

    @property
    def of_cube(self) -> bool:
        """Whether it is a swaption cube, whose surfaces are its tenors."""
        return (self.path / "nodes.parquet").is_file()

    @property
    def shown(self) -> list[int]:
        """The surfaces whose smiles are drawn: all of a few, else the worst, the median and the last."""
        return shown_surfaces(self.surfaces)


def shown_surfaces(surfaces: Sequence[Mapping[str, Any]]) -> list[int]:
    """Places of the surfaces whose smiles the page draws, by their `rmse_bps` (None: failed, worse than any other)."""
    n = len(surfaces)
    if n <= SHOWN:
        return list(range(n))
    errors = [math.inf if s["rmse_bps"] is None else s["rmse_bps"] for s in surfaces]
    order = sorted(range(n), key=lambda i: errors[i])
    return list(dict.fromkeys([order[-1], order[n // 2], n - 1]))


def rounded(value: float) -> float:
    """An error in basis points: two digits after the point below 10, else one."""
    return round(float(value), 2) if abs(value) < 10 else round(float(value), 1)
