"""Local volatilities as a table that can be kept, and back: the same model in `pricers`, to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from pricers import LocalVol, VolSurface
from qfml.calibration.local_vol import LocalVolCalibration
from qfml.errors import CheckpointError, DataError

__all__ = ["local_vol_table", "read_local_vol"]

SCHEMA = {
    "surface": pl.String,
    "expiry": pl.Float64,
    "log_moneyness": pl.Float64,
    "vol": pl.Float64,
    "local_vol": pl.Float64,
}


def local_vol_table(fit: LocalVolCalibration, names: Sequence[str] | None = None) -> pl.DataFrame:
    """A row for each expiry and knot of log-moneyness of each surface that was fitted.

    `vol` is the implied vol there, from which everything follows; `local_vol` is Dupire's, at the end of the interval
    of time that the expiry closes. Annual, decimal; `log_moneyness` is log(spot / forward).

    Args:
        fit: of S surfaces.
        names: of the surfaces; None takes their own, and numbers where these are missing or not unique.

    Raises:
        DataError: not one name for each surface, or a name twice.

    >>> from qfml.calibration import LocalVolSurface, Surface
    >>> quotes = Surface(strike=[90.0, 100.0, 110.0], expiry=0.5, vol=[0.22, 0.2, 0.19], forward=100.0)
    >>> table = local_vol_table(LocalVolSurface(knots_per_quote=1).fit_surfaces([quotes]))
    >>> table.columns, bool((table["local_vol"] > 0.0).all())
    (['surface', 'expiry', 'log_moneyness', 'vol', 'local_vol'], True)
    """
    if names is None:
        names = [surface.name for surface in fit.surfaces]
        if not all(names) or len(set(names)) < len(names):
            names = [f"surface {row}" for row in range(len(names))]
    if len(names) != len(fit.vol_surfaces) or len(set(names)) < len(names):
        raise DataError(f"`names` must be {len(fit.vol_surfaces)} different names, one a surface, got {list(names)}")
    frames = [pl.DataFrame(schema=SCHEMA)]
    for name, surface in zip(names, fit.vol_surfaces, strict=True):
        if surface is not None:
            expiries = surface.expiries.detach()
            places = surface.log_moneyness.detach().expand(surface.vols.shape)
            local = [surface.local_variance(row, years).sqrt() for row, years in zip(places, expiries, strict=True)]
            columns = {
                "surface": [name] * places.numel(),
                "expiry": expiries.unsqueeze(-1).expand(places.shape).reshape(-1).numpy(),
                "log_moneyness": places.reshape(-1).numpy(),
                "vol": surface.vols.detach().reshape(-1).numpy(),
                "local_vol": torch.stack(local).detach().reshape(-1).numpy(),
            }
            frames.append(pl.DataFrame(columns, schema=SCHEMA))
    return pl.concat(frames)


def read_local_vol(table: Any, surface: str | None = None) -> LocalVol:
    """The model in `pricers` from a table of `local_vol_table`.

    Args:
        table: a Parquet file, or the table itself.
        surface: which one; None: the only one.

    Raises:
        DataError: no such file or surface, or several and none is named.
        CheckpointError: the file is damaged: columns, knots or vols are not those of a surface without arbitrage.
    """
    frame, name = _frame(table)
    known = frame["surface"].unique(maintain_order=True).to_list()
    if surface is None and len(known) != 1:
        raise DataError(f"{name} holds {len(known)} surfaces; name one as `surface`: {', '.join(known) or 'none'}")
    if surface is not None and surface not in known:
        raise DataError(f"{name} has no surface {surface!r}; it has {', '.join(known) or 'none'}")
    rows = frame.filter(pl.col("surface") == (known[0] if surface is None else surface))
    expiries, first = np.unique(rows["expiry"].to_numpy(), return_index=True)
    if len(rows) % len(expiries) or (np.diff(first, append=len(rows)) != len(rows) // len(expiries)).any():
        raise CheckpointError(f"{name} is damaged: not every expiry has as many knots; write it again")
    places, vols = (
        torch.tensor(rows[column].to_numpy().reshape(len(expiries), -1)) for column in ("log_moneyness", "vol")
    )
    try:
        return LocalVol(VolSurface(places, torch.from_numpy(expiries), vols))
    except ValueError as error:
        raise CheckpointError(f"{name} is damaged: {error}; write it again") from error


def _frame(table: Any) -> tuple[pl.DataFrame, str]:
    """The table, checked, and how to call it."""
    name = "the table"
    if not isinstance(table, pl.DataFrame):
        path = Path(table)
        name = path.name
        if not path.is_file():
            raise DataError(f"there is no file {path}; a calibration of local_vol writes one")
        try:
            table = pl.read_parquet(path)
        except pl.exceptions.PolarsError as error:
            raise CheckpointError(f"{name} is damaged: {error}; write it again") from error
    lacking = [column for column, kind in SCHEMA.items() if table.schema.get(column) != kind]
    if lacking:
        raise CheckpointError(f"{name} is damaged: it lacks the column `{lacking[0]}`; write it again")
    if table.null_count().sum_horizontal().item():
        raise CheckpointError(f"{name} is damaged: a cell is empty; write it again")
    return table, name
