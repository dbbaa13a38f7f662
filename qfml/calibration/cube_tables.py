"""A fitted swaption cube as tables: its nodes, its quotes beside the model, its smiles, and the sums of its fit.

Quotes and smiles are told apart by tenor (`surface`) and expiry, as those of surfaces are by surface and expiry.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import torch

from qfml.calibration.sabr import sabr_vols
from qfml.calibration.sabr_cube import SabrCube

__all__ = ["cube_curves", "cube_nodes", "cube_quotes", "cube_summary"]

CURVE_POINTS = 61
CURVE_ROOM = 0.15  # beyond the outermost quotes, share of their range


def cube_nodes(fit: SabrCube) -> pl.DataFrame:
    """A row for each expiry and tenor: forward, shift, parameters with their errors, and how the fit went.

    What a node without quotes does not have is null.
    """
    expiry, tenor = (part.ravel() for part in np.meshgrid(fit.expiries, fit.tenors, indexing="ij"))
    columns: dict[str, Any] = {"expiry": expiry, "tenor": tenor, "forward": fit.forwards.ravel()}
    columns["shift"] = np.full(len(expiry), fit.shift)
    columns |= {name: values.ravel() for name, values in fit.params.items()}
    columns |= {f"{name}_std_error": values.ravel() for name, values in fit.std_error.items()}
    for name in ("rmse_bps", "max_bps", "n_quotes", "converged", "n_steps"):
        columns[name] = getattr(fit, name).ravel()
    columns["status"] = [sentence for row in fit.status for sentence in row]
    columns["warnings"] = ["; ".join(lines) for row in fit.warnings for lines in row]
    return pl.DataFrame(columns).with_columns(pl.col(pl.Float64).fill_nan(None))


def cube_quotes(fit: SabrCube) -> pl.DataFrame:
    """Every quote beside the model: rates as they are given, vols and log-moneyness of the shifted rate."""
    cube, vol = fit.cube, fit.cube.lognormal_vol()
    absent = np.full(len(cube), np.nan)
    columns = {
        "surface": [_name(tenor) for tenor in cube.tenor],
        "expiry": cube.expiry,
        "strike": cube.strike,
        "forward": cube.forward,
        "log_moneyness": np.log((cube.strike + fit.shift) / (cube.forward + fit.shift)),
        "vol": vol,
        "bid": absent,
        "ask": absent,
        "weight": cube.weight,
        "model_vol": vol + fit.residuals,
        "residual_bps": 1e4 * fit.residuals,
    }
    return pl.DataFrame(columns).filter(~pl.col("vol").is_nan())


def cube_curves(fit: SabrCube) -> pl.DataFrame:
    """The smile of each node that has parameters, between and beside its quotes."""
    frames = []
    cube = fit.cube
    used = np.isfinite(fit.residuals)
    place = np.log((cube.strike + fit.shift) / (cube.forward + fit.shift))
    for row, column in np.argwhere(np.isfinite(fit.params["alpha"])):
        expiry = fit.expiries[row]
        k = place[used & (cube.expiry == expiry) & (cube.tenor == fit.tenors[column])]
        room = CURVE_ROOM * (k.max() - k.min()) or 0.1
        grid = np.linspace(k.min() - room, k.max() + room, CURVE_POINTS)
        alpha, beta, rho, nu = (float(fit.params[name][row, column]) for name in ("alpha", "beta", "rho", "nu"))
        level = alpha * (fit.forwards[row, column] + fit.shift) ** (beta - 1.0)
        numbers = (torch.tensor(value, dtype=torch.float64) for value in (expiry, level, beta, rho, nu))
        vols = sabr_vols(torch.from_numpy(grid), *numbers).numpy()
        columns = {"expiry": np.full(CURVE_POINTS, expiry), "log_moneyness": grid, "model_vol": vols}
        frames.append(pl.DataFrame({"surface": [_name(fit.tenors[column])] * CURVE_POINTS} | columns))
    return pl.concat(frames)


def cube_summary(fit: SabrCube) -> dict[str, Any]:
    """The fit in plain types (NaN where there is no number): `surfaces` has an entry for each tenor.

    Keys as those of the `fit` of a calibration's metrics: model, settings, method, surfaces, parameters, and by name
    and tenor a list over the expiries in params, std_error, identified and at_bound; expiries by tenor.
    """
    surfaces = []
    cube = fit.cube
    for column, tenor in enumerate(fit.tenors):
        own = cube.tenor == tenor
        error = fit.residuals[own & np.isfinite(fit.residuals)]
        nodes = np.isfinite(fit.params["alpha"][:, column])
        status = [fit.status[row][column] for row in range(len(fit.expiries))]
        surfaces.append(
            {
                "name": _name(tenor),
                "date": None,
                "n_quotes": int(np.isfinite(cube.vol[own]).sum()),
                "rmse_bps": 1e4 * float(np.sqrt(np.mean(error**2))) if len(error) else None,
                "max_bps": 1e4 * float(np.abs(error).max()) if len(error) else None,
                "sse": 1e4 * float(np.sum(error**2)) if len(error) else None,
                "inside_bid_ask": None,
                "converged": bool(nodes.any() and fit.converged[nodes, column].all()),
                "status": "; ".join(dict.fromkeys(status)),
                "warnings": [
                    f"expiry {expiry:g}: {line}"
                    for row, expiry in enumerate(fit.expiries)
                    for line in fit.warnings[row][column]
                ],
                "notes": [],
            }
        )
    return {
        "model": fit.model.kind,
        "settings": {"kind": fit.model.kind, "beta": fit.model.beta, "at_the_money": fit.model.at_the_money},
        "method": "exact",
        "shift": fit.shift,
        "surfaces": surfaces,
        "parameters": [{"name": name} for name in fit.params],
        "params": {name: values.T.tolist() for name, values in fit.params.items()},
        "std_error": {name: values.T.tolist() for name, values in fit.std_error.items()},
        "identified": {name: values.T.tolist() for name, values in fit.identified.items()},
        "at_bound": {name: values.T.tolist() for name, values in fit.at_bound.items()},
        "expiries": [fit.expiries.tolist() for _ in fit.tenors],
    }


def _name(tenor: Any) -> str:
    return f"tenor {tenor:g} y"
