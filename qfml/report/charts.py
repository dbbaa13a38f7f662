"""Charts as plain plotly figures (dicts of traces and layout, arrays left as numpy): folds, calibration, assets."""

from __future__ import annotations

import dataclasses
import html
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

__all__ = [
    "COLORS",
    "DIVERGING",
    "MAX_ASSETS",
    "Figure",
    "Numbers",
    "asset_figure",
    "axis",
    "calibration_figure",
    "color_of",
    "float32",
    "fold_figure",
    "fold_sharpe_figure",
    "is_seed",
    "plain",
    "thin",
]

Figure = dict[str, Any]
Numbers = np.ndarray

# One colour per strategy, the same in every chart; told apart by the colour-blind too.
COLORS = {"network": "#0b4f8a", "buy_and_hold": "#7d848c", "ridge": "#d17a00", "momentum": "#1b8a6b", "har": "#a14a86"}
DIVERGING = [[0.0, "#0b4f8a"], [0.5, "#f3f4f6"], [1.0, "#c8553d"]]  # about 0, blue below
OTHER_COLORS = ("#6b5b95", "#8c564b", "#4b9cd3", "#b5a000", "#c0504d")

BLOCKS = {
    "train": ("Train", "#cfdbe6"),
    "validation": ("Validation", "#86a9c8"),
    "purged": ("Purged", "#c8553d"),
    "embargoed": ("Embargoed", "#e8b04b"),
    "test": ("Test", "#0b4f8a"),
}

MAX_POINTS = 12_000  # beyond this a line keeps the extremes of every pixel-sized stretch, which draws the same picture


MAX_ASSETS = 50


@dataclasses.dataclass(frozen=True)
class Axis:
    """Positions along an axis and the kind of axis they need (`date`: milliseconds since 1970)."""

    values: Numbers
    kind: str


def axis(times: Sequence[Any] | pl.Series) -> Axis:
    """Times as plotly reads them: dates as milliseconds of wall time, anything else as numbers."""
    series = times if isinstance(times, pl.Series) else pl.Series(times)
    if series.dtype == pl.String:
        series = series.str.to_datetime(time_unit="ms", strict=False)
    if series.dtype == pl.Date or isinstance(series.dtype, pl.Datetime):
        wall = series.cast(pl.Datetime("ms")) if series.dtype == pl.Date else series.dt.replace_time_zone(None)
        return Axis(wall.dt.epoch("ms").cast(pl.Float64).to_numpy(), "date")
    return Axis(series.cast(pl.Float64).to_numpy(), "linear")


def color_of(strategy: str, others: Sequence[str] = ()) -> str:
    """The colour of a strategy; one without a fixed colour takes the next free one."""
    unknown = [name for name in others if name not in COLORS]
    if strategy in COLORS or strategy not in unknown:
        return COLORS.get(strategy, OTHER_COLORS[0])
    return OTHER_COLORS[unknown.index(strategy) % len(OTHER_COLORS)]


def is_seed(strategy: str) -> bool:
    """Whether the P&L is that of one seed of the network alone."""
    return strategy.startswith("seed_")


def thin(values: Numbers, n_points: int = MAX_POINTS) -> Numbers:
    """Indices that draw the same line: all of them if few, else first, lowest, highest and last of each stretch.

    Args:
        values: (n,) the line.
        n_points: Draw no more than this many points.

    Returns:
        Increasing indices into `values`.
    """
    if len(values) <= n_points:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), n_points // 4 + 1).astype(int)
    kept = []
    for low, high in itertools.pairwise(edges):
        part = np.nan_to_num(values[low:high])
        kept += [low, low + int(part.argmin()), low + int(part.argmax()), high - 1]
    return np.unique(kept)


def fold_figure(folds: Sequence[Mapping[str, Any]]) -> Figure:
    """One row per fold: which stretch of time trained, validated, was purged, embargoed, tested."""
    labels = [f"fold {fold['fold']}" for fold in folds]
    traces, kind, low, high = [], "date", [], []
    # what is thin is drawn last, or the outlines of its neighbours would cover it
    for block in sorted(BLOCKS, key=lambda block: block in ("purged", "embargoed")):
        name, color = BLOCKS[block]
        where, starts, ends = [], [], []
        for label, fold in zip(labels, folds):
            for part in fold["blocks"]:
                if part["kind"] == block:
                    where.append(label)
                    starts.append(part["start"])
                    ends.append(part["end"])
        if not where:
            continue
        start, end = axis(starts), axis(ends)
        kind = start.kind
        low.append(start.values.min())
        high.append(end.values.max())
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": name,
                "legendrank": 1000 + list(BLOCKS).index(block),
                "y": where,
                "base": start.values,
                "x": end.values - start.values,
                "customdata": [[plain(a), plain(b)] for a, b in zip(starts, ends)],
                "hovertemplate": f"%{{y}}, {name.lower()}<br>%{{customdata[0]}} to %{{customdata[1]}}<extra></extra>",
                # the outline keeps a purge of a few days visible among years of training
                "marker": {"color": color, "line": {"color": color, "width": 1.5}},
            }
        )
    layout = {
        "barmode": "overlay",
        "bargap": 0.35,
        "xaxis": {"type": kind, "showgrid": True, "range": [min(low), max(high)] if low else None},
        "yaxis": {"autorange": "reversed", "showgrid": False, "automargin": True},
        "hovermode": "closest",
    }
    return {"data": traces, "layout": layout, "height": int(min(900, 110 + max(14, 30 - len(folds) // 4) * len(folds)))}


def fold_sharpe_figure(folds: Sequence[Mapping[str, Any]], members: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Sharpe ratio of the network in each fold beside that of each of its seeds; None where not recorded."""
    name = "sharpe_ratio"
    rows = [(f"fold {f['fold']}", f.get("metrics", {}).get(name)) for f in folds]
    seeds = [(f"fold {m['fold']}", m.get("metrics", {}).get(name), m["seed"]) for m in members]
    if not any(value is not None for _, value in rows):
        return None
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "Single seeds",
            "x": [fold for fold, value, _ in seeds if value is not None],
            "y": [value for _, value, _ in seeds if value is not None],
            "customdata": [seed for _, value, seed in seeds if value is not None],
            "hovertemplate": "%{x}, seed %{customdata}: %{y:.2f}<extra></extra>",
            "marker": {"color": "rgba(11,79,138,0.35)", "size": 7},
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "Network",
            "x": [fold for fold, _ in rows],
            "y": [value for _, value in rows],
            "hovertemplate": "%{x}: %{y:.2f}<extra></extra>",
            "marker": {"color": COLORS["network"], "size": 18, "symbol": "line-ew-open", "line": {"width": 3}},
        },
    ]
    traces = [trace for trace in traces if trace["x"]]
    layout = {
        "xaxis": {"type": "category", "categoryorder": "array", "categoryarray": [fold for fold, _ in rows]},
        "yaxis": {"title": {"text": "Sharpe ratio"}, "zeroline": True},
        "hovermode": "closest",
    }
    return {"data": traces, "layout": layout, "height": 300}


def calibration_figure(calibration: Mapping[str, Any]) -> Figure | None:
    """Predicted against observed by bin with the line of perfect calibration, bin sizes below; None without bins."""
    # a bin without samples has no means
    bins = [b for b in calibration["bins"] if _is_known(b.get("predicted")) and _is_known(b.get("observed"))]
    if not bins:
        return None
    predicted = [float(b["predicted"]) for b in bins]
    observed = [float(b["observed"]) for b in bins]
    counts = [b.get("count") for b in bins]
    is_probability = calibration["kind"] == "classification"
    low, high = (0.0, 1.0) if is_probability else (min(predicted), max(predicted))
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "Perfect calibration",
            "x": [low, high],
            "y": [low, high],
            "line": {"color": COLORS["buy_and_hold"], "width": 1.2, "dash": "dot"},
            "hoverinfo": "skip",
        },
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "Network",
            "x": predicted,
            "y": observed,
            "customdata": counts,
            "line": {"color": COLORS["network"], "width": 1.6},
            "marker": {"color": COLORS["network"], "size": 8},
            "hovertemplate": "predicted %{x:.4g}<br>observed %{y:.4g}<br>%{customdata:,} samples<extra></extra>",
        },
        {
            "type": "bar",
            "x": predicted,
            "y": counts,
            "yaxis": "y2",
            "showlegend": False,
            "marker": {"color": "#86a9c8"},
            "hovertemplate": "%{y:,} samples<extra></extra>",
        },
    ]
    what = ("predicted probability", "observed frequency") if is_probability else ("mean prediction", "mean outcome")
    layout = {
        "xaxis": {"anchor": "y2", "title": {"text": what[0]}},
        "yaxis": {"domain": [0.32, 1.0], "title": {"text": what[1]}, "zeroline": True},
        "yaxis2": {"domain": [0.0, 0.2], "title": {"text": "samples"}, "nticks": 3},
        "hovermode": "closest",
    }
    if is_probability:
        layout["xaxis"]["range"] = [-0.02, 1.02]
        layout["yaxis"]["range"] = [-0.02, 1.02]
    return {"data": traces, "layout": layout, "height": 460}


def asset_figure(per_asset: pl.DataFrame) -> Figure:
    """Net contribution of each asset to the network's P&L; `per_asset` has columns group, net (sums).

    Of very many assets the best and the worst are drawn.
    """
    ordered = per_asset.sort("net")
    if len(ordered) > MAX_ASSETS:
        ordered = pl.concat([ordered.head(MAX_ASSETS // 2), ordered.tail(MAX_ASSETS // 2)])
    trace = {
        "type": "bar",
        "orientation": "h",
        "y": [plain(name) for name in ordered["group"].to_list()],
        "x": ordered["net"].to_numpy(),
        "marker": {"color": [COLORS["network"] if value >= 0 else "#c8553d" for value in ordered["net"].to_list()]},
        "hovertemplate": "%{y}: %{x:.1%}<extra></extra>",
    }
    layout = {
        "xaxis": {"tickformat": ".0%", "title": {"text": "sum of net returns"}, "zeroline": True, "showgrid": True},
        "yaxis": {"type": "category", "automargin": True, "showgrid": False, "dtick": 1},
        "hovermode": "closest",
        "showlegend": False,
    }
    return {"data": [trace], "layout": layout, "height": 80 + 19 * len(ordered)}


def _is_known(value: Any) -> bool:
    return isinstance(value, (int, float)) and bool(np.isfinite(value))


def plain(value: object) -> str:
    """Text for plotly, which reads a small part of HTML in names and labels."""
    return html.escape(str(value), quote=False)


def float32(values: Numbers) -> Numbers:
    """Single precision: seven digits are more than a screen shows, at half the size of the page."""
    return np.asarray(values, dtype=np.float32)
