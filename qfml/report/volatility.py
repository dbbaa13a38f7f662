"""Sections of a calibration's page for what only some models have: the nodes of a swaption cube, local volatilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from qfml.report import formats
from qfml.report.charts import DIVERGING, Figure
from qfml.report.layout import Charts, Section, note
from qfml.report.markup import Html, el, join, scrolling_table

__all__ = ["CUBE_COLUMNS", "LOCAL_VOL_COLUMNS", "cube_section", "local_vol_section"]

CUBE_COLUMNS = ("expiry", "tenor", "forward", "alpha", "rho", "nu", "rmse_bps", "max_bps", "n_quotes", "converged")
CUBE_COLUMNS += ("alpha_std_error", "rho_std_error", "nu_std_error", "status", "warnings")
LOCAL_VOL_COLUMNS = ("surface", "expiry", "log_moneyness", "local_vol")
SEQUENTIAL = [[0.0, "#edf2f6"], [1.0, "#0b4f8a"]]
MAPS = {
    "rmse_bps": ("Error of the fit", "Root mean square, basis points of the shifted-lognormal vol."),
    "alpha": ("alpha", "Level of the vol."),
    "rho": ("rho", "Correlation of rate and vol: the skew."),
    "nu": ("nu", "Vol of vol: the curvature."),
}
ROOM = 1.1  # how far local vols are drawn, of the range of the quotes: the knots reach much further
N_ACROSS = 121
SHOWN_SHARE = 0.95  # of local vols that colours tell apart: quotes that are hardly compatible make them spike


def cube_section(nodes: pl.DataFrame, charts: Charts) -> Section:
    """Maps of the fit and the parameters over expiry and tenor, and a table of all nodes.

    Args:
        nodes: `nodes.parquet` of a run.
        charts: of the page.
    """
    maps = [charts.place(f"cube-{name}", _map(nodes, name), *words) for name, words in MAPS.items()]
    rows = [_node(row) for row in nodes.iter_rows(named=True)]
    heads = ("Expiry", "Tenor", "Quotes", "Forward", "alpha", "rho", "nu", "rms, bps", "Largest", "")
    table = scrolling_table(heads, rows, caption="Nodes of the cube")
    told = note("Behind each parameter its standard error; n/a where the quotes do not determine it. Time in years.")
    warned = [
        el("li", f"Expiry {row['expiry']:g}, tenor {row['tenor']:g}: {row['warnings']}")
        for row in nodes.iter_rows(named=True)
        if row["warnings"]
    ]
    found = [el("details", el("summary", f"{len(warned)} nodes with remarks"), el("ul", *warned))] if warned else []
    intro = "SABR at each expiry and tenor by itself; white: no quotes there, or no fit."
    return Section("cube", "Nodes", intro, join([el("div", *maps, class_="maps"), table, told, *found]))


def _node(row: dict[str, object]) -> list[object]:
    def with_error(name: str) -> Html:
        value, error = row[name], row[f"{name}_std_error"]
        return join([formats.significant(value, 4), el("small", f" ± {formats.significant(error, 2)}")])

    plain = "" if row["converged"] or not row["n_quotes"] else str(row["status"])
    return [
        f"{row['expiry']:.4g}",
        f"{row['tenor']:.4g}",
        formats.count(row["n_quotes"]),
        formats.percent(row["forward"]),
        *(with_error(name) for name in ("alpha", "rho", "nu")),
        formats.significant(row["rmse_bps"], 3),
        formats.significant(row["max_bps"], 3),
        plain,
    ]


def _map(nodes: pl.DataFrame, name: str) -> Figure:
    """A number over expiry (down) and tenor (across)."""
    expiries, tenors = (nodes[axis].unique().sort().to_list() for axis in ("expiry", "tenor"))
    values = {(row["expiry"], row["tenor"]): row[name] for row in nodes.iter_rows(named=True)}
    table = [[values.get((expiry, tenor)) for tenor in tenors] for expiry in expiries]
    across, down = ([f"{value:g} y" for value in axis] for axis in (tenors, expiries))
    correlation = name == "rho"
    trace = {
        "type": "heatmap",
        "x": across,
        "y": down,
        "z": table,
        "colorscale": DIVERGING if correlation else SEQUENTIAL,
        **({"zmin": -1, "zmax": 1} if correlation else {}),
        "text": [["" if value is None else formats.significant(value, 2) for value in row] for row in table],
        "texttemplate": "%{text}",
        "hovertemplate": "expiry %{y}, tenor %{x}: %{z:.4g}<extra></extra>",
        "showscale": False,
    }
    layout = {
        "xaxis": {"title": {"text": "tenor"}, "type": "category"},
        "yaxis": {"title": {"text": "expiry"}, "type": "category", "autorange": "reversed"},
        "hovermode": "closest",
    }
    return {"data": [trace], "layout": layout, "height": 110 + 30 * len(expiries)}


def local_vol_section(table: pl.DataFrame, quotes: pl.DataFrame, shown: Sequence[str], charts: Charts) -> Section:
    """Local vols of the surfaces shown, over expiry and log-moneyness.

    Args:
        table: `local_vol.parquet` of a run.
        quotes: `quotes.parquet`, whose range is drawn.
        shown: names of surfaces.
        charts: of the page.
    """
    parts = []
    for number, name in enumerate(shown):
        own = table.filter(pl.col("surface") == name)
        if not own.is_empty():
            places = quotes.filter(pl.col("surface") == name)["log_moneyness"].to_numpy()
            reach = ROOM * float(np.abs(places).max())
            figure, highest = _heat(own, reach)
            title = f"Local volatility of {name}" if len(shown) > 1 else "Local volatility"
            caption = (
                f"Per cent a year; the darkest is {formats.significant(highest, 3)} % and more, a twentieth of all."
            )
            parts.append(charts.place(f"local-vol-{number}", figure, title, caption))
    parts.append(
        note("local_vol.parquet holds every knot; qfml.calibration.local_vol_table.read_local_vol makes it a model.")
    )
    intro = (
        "Dupire's local volatility at the end of the time that each expiry closes. It is a second derivative of the "
        "quotes: where these are hardly compatible it spikes."
    )
    return Section("local-vol", "Local volatility", intro, join(parts))


def _heat(table: pl.DataFrame, reach: float) -> tuple[Figure, float]:
    """Local vols over expiry and log-moneyness, and the vol where the colours end."""
    expiries = table["expiry"].unique().sort().to_list()
    across = np.linspace(-reach, reach, N_ACROSS)
    rows = []
    for expiry in expiries:
        own = table.filter(pl.col("expiry") == expiry).sort("log_moneyness")
        rows.append(np.interp(across, own["log_moneyness"], 100.0 * own["local_vol"], left=np.nan, right=np.nan))
    values = np.array(rows)
    highest = float(np.nanquantile(values, SHOWN_SHARE))
    trace = {
        "type": "heatmap",
        "x": np.round(across, 4),
        "y": [f"{expiry:.3g} y" for expiry in expiries],
        "z": [[None if np.isnan(value) else round(value, 2) for value in row] for row in values.tolist()],
        "zmax": highest,
        "zmin": float(np.nanmin(values)),
        "zauto": False,
        "colorscale": SEQUENTIAL,
        "colorbar": {"title": {"text": "%"}, "thickness": 10, "outlinewidth": 0},
        "hovertemplate": "expiry %{y}, log-moneyness %{x:.3f}: %{z:.1f} %<extra></extra>",
    }
    layout = {
        "xaxis": {"title": {"text": "log(spot / forward)"}},
        "yaxis": {"title": {"text": "expiry"}, "type": "category"},
        "hovermode": "closest",
    }
    return {"data": [trace], "layout": layout, "height": 120 + 30 * len(expiries)}, highest
