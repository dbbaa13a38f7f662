"""What a calibration has found as plain types and tables: the section `fit` of metrics.json, quotes, smiles."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from qfml import config
from qfml.calibration import Surface
from qfml.calibration.cube_tables import CURVE_POINTS, CURVE_ROOM
from qfml.calibration.result import Calibration
from qfml.report.calibration_run import shown_surfaces

__all__ = ["array_hash", "curve_table", "data_hash", "fit_entry", "quote_table"]

MOST_CURVES = 400  # last surfaces whose smiles are written, beside those that the page shows


def fit_entry(model: Any, found: Any, named: Mapping[str, Surface]) -> dict[str, Any]:
    """The result in plain types: a list entry for each surface; by expiry a list in it."""
    n, params = len(named), _params(found)
    surfaces = []
    for i, (name, surface) in enumerate(named.items()):
        status = found.status[i]
        surfaces.append(
            {
                "name": name,
                "date": surface.date_text or None,
                "n_quotes": len(surface),
                "rmse_bps": _rmse(found.residuals[i]),
                "max_bps": 1e4 * float(np.nanmax(np.abs(found.residuals[i])))
                if np.isfinite(found.residuals[i]).any()
                else None,
                "sse": float(np.asarray(found.sse)[i]),
                "inside_bid_ask": float(np.asarray(found.inside_bid_ask)[i]),
                "converged": _converged(found, i),
                "status": status if isinstance(status, str) else "; ".join(dict.fromkeys(filter(None, status))),
                "warnings": list(found.warnings[i]),
                "notes": list(surface.notes),
            }
        )
    fit: dict[str, Any] = {
        "model": model.kind,
        "settings": config.to_dict(model),
        "method": found.method,
        "surfaces": surfaces,
        "parameters": _parameters(found),
        "params": {name: [_values(values, i) for i in range(n)] for name, values in params.items()},
        "std_error": {name: [_values(found.std_error[name], i) for i in range(n)] for name in params},
        # JSON has no infinity and no NaN: null in `std_error` is an error that is not known, or not bounded
        "identified": {name: np.asarray(found.identified[name]).tolist() for name in params},
        "at_bound": {name: np.asarray(found.at_bound[name]).tolist() for name in params},
    }
    per_expiry = any(np.ndim(values) == 2 for values in params.values())
    if per_expiry:
        fit["expiries"] = [_values(found.expiries, i) for i in range(n)]
    elif isinstance(found, Calibration) and np.isfinite(found.correlation[0]).all():
        fit["correlation"] = found.correlation[0].tolist()
    return fit


def _converged(found: Any, place: int) -> bool:
    """Whether all fits of a surface ended at a minimum: of smiles, those that it has."""
    one = np.asarray(found.converged[place])
    if one.ndim == 0:
        return bool(one)
    exists = np.isfinite(found.expiries[place])
    return bool(exists.any() and one[exists].all())


def _parameters(found: Any) -> list[dict[str, Any]]:
    """Names and bounds of what was fitted."""
    bounds = {p.name: p for p in found.model.parameters} if isinstance(found, Calibration) else {}
    return [
        {"name": name, "lower": bounds[name].lower, "upper": bounds[name].upper} if name in bounds else {"name": name}
        for name in _params(found)
    ]


def _params(found: Any) -> dict[str, Any]:
    """Numbers of each surface (S,) or of each of its expiries (S, E) by name; SSVI has both."""
    return found.params | ({"theta": found.theta} if hasattr(found, "theta") else {})


def _values(values: Any, place: int) -> Any:
    one = np.asarray(values)[place]
    return float(one) if np.ndim(one) == 0 else [float(value) for value in one]


def _rmse(residuals: np.ndarray) -> float | None:
    known = residuals[np.isfinite(residuals)]
    return 1e4 * float(np.sqrt(np.mean(known**2))) if len(known) else None


def quote_table(found: Any, named: Mapping[str, Surface]) -> pl.DataFrame:
    """Every quote beside the model."""
    frames = []
    for i, (name, surface) in enumerate(named.items()):
        n = len(surface)
        residual = found.residuals[i, :n]
        absent = np.full(n, np.nan)
        columns = {
            "expiry": surface.expiry,
            "strike": surface.strike,
            "forward": surface.forward,
            "log_moneyness": surface.log_moneyness,
            "vol": surface.vol,
            "bid": absent if surface.bid is None else surface.bid,
            "ask": absent if surface.ask is None else surface.ask,
            "weight": surface.weight,
            "model_vol": surface.vol + residual,
            "residual_bps": 1e4 * residual,
        }
        frames.append(pl.DataFrame({"surface": [name] * n} | columns))
    return pl.concat(frames)


def curve_table(found: Any, named: Mapping[str, Surface], fitted: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """The fitted smiles between and beside the quotes; where no quote of an expiry has a weight there is none."""
    columns: dict[str, list[Any]] = {"surface": [], "expiry": [], "log_moneyness": [], "model_vol": []}
    every, drawn = list(named.items()), {*shown_surfaces(fitted), *range(max(len(named) - MOST_CURVES, 0), len(named))}
    for i in sorted(drawn):
        name, surface = every[i]
        used = surface.weight > 0.0
        for expiry in np.unique(surface.expiry[used]):
            k = surface.log_moneyness[used & (surface.expiry == expiry)]
            room = CURVE_ROOM * (k.max() - k.min()) or 0.1
            grid = np.linspace(k.min() - room, k.max() + room, CURVE_POINTS)
            columns["surface"] += [name] * len(grid)
            columns["expiry"] += [float(expiry)] * len(grid)
            columns["log_moneyness"] += grid.tolist()
            columns["model_vol"] += found.smile(grid, float(expiry), surface=i).tolist()
    types = {name: pl.String if name == "surface" else pl.Float64 for name in columns}
    return pl.DataFrame(columns, schema=types)


def data_hash(surfaces: Sequence[Surface]) -> str:
    """16 hex digits of all quotes, bid and ask included: a posterior and what lies between them depend on both."""
    names = ("strike", "expiry", "vol", "weight", "forward", "discount", "bid", "ask")
    columns = [(name, getattr(surface, name)) for surface in surfaces for name in names]
    said = " ".join(f"{name} {'absent' if column is None else len(column)}" for name, column in columns)
    return array_hash((column for _, column in columns if column is not None), said)


def array_hash(arrays: Iterable[np.ndarray], said: str = "") -> str:
    """16 hex digits of all arrays, in their order, and of what is said beside them."""
    digest = hashlib.sha256(said.encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
