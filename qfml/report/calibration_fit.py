"""Sections of the page of a calibration: parameters with their errors, and the fit to every quote."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from qfml.report import formats
from qfml.report.calibration_run import SHOWN, CalibrationRun, rounded
from qfml.report.charts import DIVERGING, Figure
from qfml.report.layout import Charts, Section, note
from qfml.report.markup import el, join, scrolling_table
from qfml.report.smiles import smile_panels

__all__ = ["parameters_section", "smiles_section"]


def parameters_section(run: CalibrationRun, charts: Charts) -> Section:
    """Parameters with errors: of each surface shown, and their correlations."""
    fit, parts = run.fit, []
    for place in run.shown:
        surface = run.surfaces[place]
        rows = _parameter_rows(fit, place)
        if len(run.surfaces) > 1:
            parts.append(el("h3", surface["name"]))
        heads = ("Parameter", "Value", "Standard error", "95 % interval", "Range allowed", "")
        parts.append(scrolling_table(heads, rows, caption=f"Parameters of {surface['name']}"))
        parts.append(note(surface["status"]))
    correlation = fit.get("correlation")
    if correlation:
        names = [entry["name"] for entry in fit["parameters"]]
        figure = _correlation(names, np.array(correlation, dtype=float))
        parts.append(charts.place("correlation", figure, "Correlation of the estimates", run.surfaces[0]["name"]))
    intro = (
        "Standard errors come from the curvature of the fit at the optimum, with the scatter of the residuals as the "
        "error of a quote: they say how well these quotes pin a parameter down, not whether the model is right."
    )
    return Section("parameters", "Parameters", intro, join(parts))


def _parameter_rows(fit: Mapping[str, Any], place: int) -> list[list[object]]:
    rows: list[list[object]] = []
    for entry in fit["parameters"]:
        name = entry["name"]
        value, error, known, held = (fit[key][name][place] for key in ("params", "std_error", "identified", "at_bound"))
        if isinstance(value, list):  # one an expiry
            for expiry, *own in zip(fit["expiries"][place], value, error, known, held):
                if expiry is not None:
                    rows.append(_parameter_row(entry, f"{name} at {formats.significant(expiry, 3)} y", *own))
        else:
            rows.append(_parameter_row(entry, name, value, error, known, held))
    return rows


def _parameter_row(
    entry: Mapping[str, Any], name: str, value: Any, error: Any, identified: bool, at_bound: bool
) -> list[object]:
    remark = "at its bound" if at_bound else "" if identified else "not identified"
    known = isinstance(value, float) and isinstance(error, float)
    bounds = (value - 1.96 * error, value + 1.96 * error) if known else None
    allowed = (entry.get("lower"), entry.get("upper"))
    if not known and value is not None and not remark:
        remark = "no standard error"
    return [
        el("code", name),
        formats.significant(value, 5),
        formats.significant(error, 3),
        formats.interval(bounds, lambda x: formats.significant(x, 4)),
        formats.interval(allowed, lambda x: formats.significant(x, 3)) if None not in allowed else "",
        remark,
    ]


def _correlation(names: list[str], matrix: np.ndarray) -> Figure:
    shown = np.round(matrix, 2)
    trace = {
        "type": "heatmap",
        "x": names,
        "y": names,
        "z": shown.tolist(),
        "zmin": -1,
        "zmax": 1,
        "colorscale": DIVERGING,
        "text": [[f"{value:.2f}".replace("-", "\N{MINUS SIGN}") for value in row] for row in shown.tolist()],
        "texttemplate": "%{text}",
        "hovertemplate": "%{y} and %{x}: %{z:.2f}<extra></extra>",
        "showscale": False,
    }
    layout = {"yaxis": {"autorange": "reversed"}, "hovermode": "closest"}
    return {"data": [trace], "layout": layout, "height": 90 + 40 * len(names)}


def smiles_section(run: CalibrationRun, charts: Charts) -> Section:
    """Quotes and fitted smiles, and the residuals, of each surface that is shown."""
    parts = []
    for place in run.shown:
        name = run.surfaces[place]["name"]
        quotes = run.quotes.filter(pl.col("surface") == name)
        curves = run.curves.filter(pl.col("surface") == name)
        if quotes.is_empty():
            continue
        if len(run.surfaces) > 1:
            parts.append(el("h3", f"{name}: {formats.bps(rounded(run.surfaces[place]['rmse_bps'] or math.nan))}"))
        if not run.fit["parameters"]:  # a table of which would say how the fit ended
            parts.append(note(run.surfaces[place]["status"]))
        parts.append(smile_panels(quotes, curves))
        lost = int((~curves["model_vol"].is_finite().fill_null(False)).sum())
        if 0 < lost < len(curves):
            parts.append(
                note(
                    f"The model has no vol at {lost} of {len(curves)} places of the curves, such as outside of a "
                    "surrogate's box: they are not drawn there."
                )
            )
        caption = "Model less quote, basis points of vol; a dot is a quote."
        parts.append(charts.place(f"residuals-{place}", _residuals(quotes), "Residuals over the surface", caption))
    intro = "Every quote beside the fitted model."
    if len(run.surfaces) > SHOWN:
        unit = "tenor" if run.of_cube else "surface"
        intro = f"The worst {unit}, the median one and the last; quotes.parquet and curves.parquet hold all of them."
    return Section("smiles", "Fit", intro, join(parts))


def _residuals(quotes: pl.DataFrame) -> Figure:
    errors = quotes["residual_bps"].to_numpy()
    known = np.abs(errors[np.isfinite(errors)])
    reach = (float(np.quantile(known, 0.98)) if len(known) else 0.0) or 1.0
    ticks = _spread(np.unique(quotes["expiry"].to_numpy()))
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": quotes["log_moneyness"].to_numpy(),
        "y": quotes["expiry"].to_numpy(),
        "customdata": np.round(quotes["strike"].to_numpy(), 4),
        "marker": {
            "size": 11,
            "symbol": "square",
            "color": errors,
            "colorscale": DIVERGING,
            "cmin": -reach,
            "cmax": reach,
            "line": {"color": "#9aa4ae", "width": 0.5},
            "colorbar": {"title": {"text": "bps"}, "thickness": 10, "outlinewidth": 0},
        },
        "hovertemplate": "strike %{customdata}, expiry %{y:.3f} y: %{marker.color:.1f} bps<extra></extra>",
    }
    layout = {
        "xaxis": {"title": {"text": "log(strike / forward)"}},
        "yaxis": {
            "title": {"text": "expiry, years"},
            "type": "log",
            "tickvals": ticks,
            "ticktext": [formats.significant(value, 2) for value in ticks],
        },
        "hovermode": "closest",
        "showlegend": False,
    }
    return {"data": [trace], "layout": layout, "height": 340}


def _spread(expiries: np.ndarray, ratio: float = 1.35) -> list[float]:
    """Expiries far enough from one another to be written on a logarithmic axis."""
    kept: list[float] = []
    for expiry in expiries.tolist():
        if not kept or expiry > ratio * kept[-1]:
            kept.append(expiry)
    return kept
