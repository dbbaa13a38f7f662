"""Charts over time: equity and drawdown, positions, costs, turnover and exposure of the strategies of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from qfml.report.charts import COLORS, Figure, Numbers, axis, color_of, float32, is_seed, plain, thin
from qfml.report.folder import RunFolder
from qfml.report.formats import label_of, sort_strategies

__all__ = [
    "activity_figure",
    "can_be_logarithmic",
    "cost_figure",
    "equity_figure",
    "growth",
    "position_figure",
    "underwater",
]


def growth(net: Numbers) -> Numbers:
    """What one unit of capital has become: the running product of 1 + net.

    An unknown return counts as none. Once everything is lost nothing comes back, whatever is earned later.
    """
    factors = 1.0 + np.nan_to_num(net)
    ruined = np.maximum.accumulate(factors <= 0.0)
    return np.cumprod(np.where(ruined, 0.0, factors))


def underwater(equity: Numbers) -> Numbers:
    """The fall below the highest capital so far, the starting capital included, as a fraction <= 0."""
    peak = np.maximum.accumulate(np.maximum(equity, 1.0))
    return equity / peak - 1.0


def equity_figure(run: RunFolder) -> Figure:
    """Growth of one unit of capital above its drawdown, every strategy, the seeds faint behind."""
    names = run.pnl["strategy"].unique().to_list()
    strategies = sort_strategies(name for name in names if not is_seed(name))
    seeds = sorted(name for name in names if is_seed(name))
    traces, kind = [], "date"
    for name in [*seeds, *reversed(strategies)]:  # drawn in this order: the network ends on top
        rows = run.strategy(name)
        times = axis(rows["time"])
        kind = times.kind
        equity = growth(rows["net"].to_numpy())
        line = {"color": color_of(name, strategies), "width": 2.2 if name == "network" else 1.4}
        shown: dict[str, Any] = {
            "name": plain(label_of(name)),
            "legendgroup": name,
            "legendrank": _rank(name, strategies),
        }
        if is_seed(name):
            line = {"color": "rgba(11,79,138,0.28)", "width": 0.8}
            shown = {"name": "Single seeds", "legendgroup": "seeds", "legendrank": 2000, "showlegend": name == seeds[0]}
        common = {"type": "scatter", "mode": "lines", "line": line, **shown}
        keep = thin(equity)
        traces.append(
            {**common, "x": times.values[keep], "y": float32(equity[keep]), "hovertemplate": "%{y:.3f}"}
            | ({"hoverinfo": "skip", "hovertemplate": None} if is_seed(name) else {})
        )
        if not is_seed(name):
            depth = underwater(equity)
            keep = thin(depth)
            below = {"x": times.values[keep], "y": float32(depth[keep]), "yaxis": "y2", "showlegend": False}
            below["hovertemplate"] = "%{y:.1%}"
            if name == "network":
                below |= {"fill": "tozeroy", "fillcolor": "rgba(11,79,138,0.10)"}
            traces.append(common | below | {"line": line | {"width": 1.2 if name == "network" else 0.9}})
    layout = {
        "xaxis": {"type": kind, "anchor": "y2", "hoverformat": "%Y-%m-%d" if kind == "date" else None},
        "yaxis": {"domain": [0.40, 1.0], "title": {"text": "growth of 1"}},
        "yaxis2": {"domain": [0.0, 0.33], "title": {"text": "drawdown"}, "tickformat": ".0%"},
        "hovermode": "x unified",
    }
    return {"data": traces, "layout": layout}


def can_be_logarithmic(run: RunFolder) -> bool:
    """Whether every strategy keeps some capital throughout, so that a log scale can show it."""
    names = run.pnl["strategy"].unique().to_list()
    return all(bool((growth(run.strategy(name)["net"].to_numpy()) > 0).all()) for name in names)


def position_figure(run: RunFolder, window: int) -> Figure:
    """What the network held: the position in one asset, or net and gross exposure across a panel.

    The position of each period is drawn faint, its average over the last `window` periods on top.
    """
    held = run.positions.filter(pl.col("strategy") == "network")
    sums = (pl.col("position").sum().alias("net"), pl.col("position").abs().sum().alias("gross"))
    held = held.group_by("time").agg(*sums).sort("time")
    times = axis(held["time"])
    lines = [("net", "Net exposure" if run.is_panel else "Position", COLORS["network"], "rgba(11,79,138,0.30)")]
    if run.is_panel:
        lines.insert(0, ("gross", "Gross exposure", COLORS["buy_and_hold"], "rgba(125,132,140,0.35)"))
    traces = []
    for column, name, color, faint in lines:
        each = held[column].to_numpy()
        smooth = held[column].rolling_mean(window, min_samples=1).to_numpy()
        for values, line in (
            (each, {"color": faint, "width": 0.8, "shape": "hv"}),
            (smooth, {"color": color, "width": 1.6}),
        ):
            keep = thin(values)
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": name if values is smooth else f"{name}, each period",
                    "showlegend": values is smooth and run.is_panel,
                    "x": times.values[keep],
                    "y": float32(values[keep]),
                    "line": line,
                    "hovertemplate": "%{y:.3f}",
                }
            )
    layout = {
        "xaxis": {"type": times.kind},
        "yaxis": {"title": {"text": "fraction of capital"}, "zeroline": True},
        "hovermode": "x unified",
    }
    return {"data": traces, "layout": layout, "height": 290}


def cost_figure(run: RunFolder) -> Figure:
    """Running sums of the network's gross return, of its cost and of what is left."""
    rows = run.strategy("network")
    times = axis(rows["time"])
    lines = [("gross", "Gross", "#86a9c8", 1), ("net", "Net", COLORS["network"], 1), ("cost", "Cost", "#c8553d", -1)]
    traces = []
    for column, name, color, sign in lines:
        total = sign * np.cumsum(np.nan_to_num(rows[column].to_numpy()))
        keep = thin(total)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "x": times.values[keep],
                "y": float32(total[keep]),
                "line": {"color": color, "width": 2 if name == "Net" else 1.4},
                "hovertemplate": "%{y:.1%}",
            }
        )
    layout = {
        "xaxis": {"type": times.kind},
        "yaxis": {"title": {"text": "running sum"}, "tickformat": ".0%", "zeroline": True},
        "hovermode": "x unified",
    }
    return {"data": traces, "layout": layout, "height": 320}


def activity_figure(run: RunFolder, window: int) -> Figure:
    """Turnover and exposure of every strategy, averaged over the `window` periods up to each point."""
    strategies = sort_strategies(name for name in run.pnl["strategy"].unique().to_list() if not is_seed(name))
    traces, kind = [], "date"
    for name in reversed(strategies):
        rows = run.strategy(name).with_columns(
            pl.col("turnover", "exposure").rolling_mean(window, min_samples=1).cast(pl.Float64)
        )
        times = axis(rows["time"])
        kind = times.kind
        for column, place in (("turnover", "y"), ("exposure", "y2")):
            values = rows[column].to_numpy()
            keep = thin(values)
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": plain(label_of(name)),
                    "legendgroup": name,
                    "legendrank": _rank(name, strategies),
                    "showlegend": place == "y",
                    "x": times.values[keep],
                    "y": float32(values[keep]),
                    "yaxis": place,
                    "line": {"color": color_of(name, strategies), "width": 1.8 if name == "network" else 1.2},
                    "hovertemplate": "%{y:.3f}",
                }
            )
    layout = {
        "xaxis": {"type": kind, "anchor": "y2"},
        "yaxis": {"domain": [0.55, 1.0], "title": {"text": "turnover"}, "rangemode": "tozero"},
        "yaxis2": {"domain": [0.0, 0.45], "title": {"text": "exposure"}, "rangemode": "tozero"},
        "hovermode": "x unified",
    }
    return {"data": traces, "layout": layout, "height": 420}


def _rank(name: str, strategies: Sequence[str]) -> int:
    return 1000 + list(strategies).index(name) if name in strategies else 2000
