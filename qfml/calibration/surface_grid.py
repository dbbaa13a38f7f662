"""Quotes as columns: of a grid with a row for each expiry, or of columns that were given."""

from __future__ import annotations

from typing import Any

import numpy as np

from qfml.calibration.surface_checks import QuoteTable, float_column, floats
from qfml.errors import DataError

__all__ = ["QUOTE_COLUMNS", "grid_columns", "quote_table"]

QUOTE_COLUMNS = ("strike", "expiry", "vol", "bid", "ask", "weight", "forward", "discount")


def quote_table(columns: dict[str, Any]) -> QuoteTable:
    """Columns as a table: numbers are repeated, absent ones take what stands for nothing given."""
    sizes = [np.size(value) for value in columns.values()]
    if not min(sizes):
        raise DataError("the surface has no quotes; give one strike or more")
    n = max(sizes)
    absent = {"vol": np.nan, "bid": np.nan, "ask": np.nan, "weight": 1.0, "discount": 1.0}
    full = {name: float_column(name, columns.get(name, absent.get(name, np.nan)), n) for name in QUOTE_COLUMNS}
    return QuoteTable(**full, row=np.full(n, -1), surface=np.zeros(n, np.int64), labels=("",), rest={})


def grid_columns(strikes: Any, expiries: np.ndarray, vols: Any, bid: Any, ask: Any, weights: Any) -> dict[str, Any]:
    """The grid as flat columns, row by row."""
    grids = {"vol": vols, "bid": bid, "ask": ask}
    grids = {name: floats(name, value) for name, value in grids.items() if value is not None}
    if not ("vol" in grids or {"bid", "ask"} <= set(grids)):
        raise DataError("a grid needs `vols`, or `bid` and `ask`")
    strikes = floats("strikes", strikes)
    if not (expiries.size and strikes.size) or strikes.ndim not in (1, 2):
        raise DataError(
            f"a grid needs one expiry and one strike or more, got {expiries.size} expiries and strikes of shape "
            f"{strikes.shape}"
        )
    shape = (expiries.shape[0], strikes.shape[-1])
    named = grids | {"strikes": strikes, "weights": floats("weights", weights)}
    for name, grid in named.items():
        free = name in ("strikes", "weights") and grid.shape in ((), shape[1:])
        if grid.shape != shape and not free:
            turned = "; transpose it" if grid.shape == shape[::-1] else ""
            name = "vols" if name == "vol" else name
            raise DataError(
                f"`{name}` must have a row for each of the {shape[0]} expiries and a column for each of the {shape[1]} "
                f"strikes, got shape {grid.shape}{turned}"
            )
    flat = {name: grid.flatten() for name, grid in grids.items()}
    flat["strike"] = np.broadcast_to(strikes, shape).flatten()
    flat["weight"] = np.broadcast_to(named["weights"], shape).flatten()
    flat["expiry"] = np.repeat(expiries, shape[1])
    return flat
