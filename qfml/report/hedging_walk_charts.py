"""The charts of a walk through history: what hedges have earned by date, differences, premium and price by fold."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from qfml.report.charts import Figure, Numbers, axis, float32
from qfml.report.hedging_charts import NOTHING, color_of, unit
from qfml.report.hedging_run import BPS, HedgingRun, label_of

__all__ = ["difference_figure", "earned_figure", "risk_figure", "rivals_of"]

N_RIVALS = 3  # textbook hedges beside the policy


def rivals_of(run: HedgingRun) -> list[str]:
    """The textbook hedges that are shown: the best of each kind, those of the least risk; no hedge if nothing else."""
    baselines = run.cases[0]["baselines"]
    hedged = [hedge for hedge in baselines if hedge["name"] != "none"] or baselines
    best: dict[str, str] = {}
    for hedge in sorted(hedged, key=lambda hedge: hedge["risk"]["value"]):
        best.setdefault(hedge["name"].removesuffix("_realised"), hedge["name"])
    return list(best.values())[:N_RIVALS]


def earned_figure(run: HedgingRun, table: pl.DataFrame) -> Figure:
    """Running sums of premium and P&L at each expiry, a line for each hedge."""
    names = ["none"] if any(hedge["name"] == "none" for hedge in run.cases[0]["baselines"]) else []
    names = list(dict.fromkeys([*names, *reversed(rivals_of(run)), "policy"]))  # the policy ends on top
    traces = [_line(run, name, *_sum(run, table, name)) for name in names]
    return {"data": traces, "layout": _layout(run), "height": 420}


def difference_figure(run: HedgingRun, table: pl.DataFrame) -> Figure:
    """Running sums of the policy's P&L less those of the textbook's."""
    ends, own = _sum(run, table, "policy")
    traces = [_line(run, name, ends, own - _sum(run, table, name)[1]) for name in reversed(rivals_of(run))]
    return {"data": traces, "layout": _layout(run), "height": 300}


def risk_figure(run: HedgingRun) -> Figure:
    """Premium of each fold, and the price that its tests have needed, of the policy and the best rival."""
    folds = run.found["folds"]
    x = [fold["test_start"] for fold in folds]
    cases = [fold["cases"][0] for fold in folds]
    premium = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": "Premium asked",
        "x": x,
        "y": [BPS * case["premium"] / run.spot for case in cases],
        "line": {"color": NOTHING, "dash": "dot", "width": 1.6},
        "hovertemplate": "%{y:.1f} bps",
    }
    traces = [premium]
    for name in ("policy", *rivals_of(run)[:1]):
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": f"Price needed, {label_of(name, inside=True)}",
                "x": x,
                "y": [BPS * case["hedges"][name]["price"] / run.spot for case in cases],
                "marker": {"color": color_of(run, name), "size": 9 if name == "policy" else 7},
                "hovertemplate": "%{y:.1f} bps",
            }
        )
    layout = {
        "xaxis": {"type": "date"},
        "yaxis": {"title": {"text": unit(run)}},
        "hovermode": "x unified",
        "margin": {"l": 56, "r": 8, "t": 8, "b": 44},
    }
    return {"data": traces, "layout": layout, "height": 300}


def _sum(run: HedgingRun, table: pl.DataFrame, name: str) -> tuple[pl.Series, Numbers]:
    rows = table.filter(hedge=name).sort("end", "start")
    return rows["end"], BPS * np.cumsum((rows["pnl"] + rows["premium"]).to_numpy()) / run.spot


def _line(run: HedgingRun, name: str, ends: pl.Series, values: Numbers) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": label_of(name),
        "x": axis(ends).values,
        "y": float32(values),
        "line": {"color": color_of(run, name), "width": 2.2 if name == "policy" else 1.4},
        "hovertemplate": "%{y:.0f} bps",
    }


def _layout(run: HedgingRun) -> dict[str, Any]:
    return {
        "xaxis": {"type": "date", "hoverformat": "%Y-%m-%d"},
        "yaxis": {"title": {"text": unit(run)}, "zeroline": True},
        "hovermode": "x unified",
        "margin": {"l": 64, "r": 8, "t": 8, "b": 44},
    }
