"""The charts of a hedging run: prices by risk aversion, P&L, holdings by spot, training."""

from __future__ import annotations

import html
from typing import Any

import numpy as np

from qfml.report.charts import COLORS, Figure
from qfml.report.hedging_run import BPS, HedgingRun, label_of

__all__ = ["curve_figure", "holdings_figure", "pnl_figure", "training_figure"]

POLICY = COLORS["network"]
NOTHING = "#7d848c"
OTHERS = ("#1b8a6b", "#a14a86", "#d17a00", "#8c564b", "#b5a000", "#4b9cd3")
BINS = 80
ENDS = (0.001, 0.999)  # quantiles that the histogram ends at
N_RIVALS = 2  # textbook hedges beside the policy in the histogram


def color_of(run: HedgingRun, name: str) -> str:
    """The colour of a hedge, the same in every chart."""
    if name in ("policy", "none"):
        return POLICY if name == "policy" else NOTHING
    every = (hedge["name"] for case in run.cases for hedge in case["baselines"])  # without costs there are fewer
    names = [each for each in dict.fromkeys(every) if each != "none"]
    return OTHERS[names.index(name) % len(OTHERS)]


def unit(run: HedgingRun) -> str:
    """Of cash, in a chart, whose texts are markup: an instrument of a file may be called anything."""
    return html.escape(run.unit)


def pnl_figure(run: HedgingRun) -> Figure:
    """Histograms of the P&L of the policy and of the best textbook hedges, after the policy's price."""
    case = run.cases[0]
    hedged = [hedge for hedge in case["baselines"] if hedge["name"] != "none"] or case["baselines"]
    baselines = sorted(hedged, key=lambda hedge: hedge["risk"]["value"])[:N_RIVALS]
    names = [hedge["name"] for hedge in case["baselines"]]
    rows = [len(case["policies"]) + names.index(hedge["name"]) for hedge in baselines]
    rows = [case["best"], *rows]
    pnl = BPS * (run.arrays["pnl"][rows].astype(np.float64) + run.best["price"]["value"]) / run.spot
    low, high = np.quantile(pnl, ENDS[0], axis=1).min(), np.quantile(pnl, ENDS[1], axis=1).max()
    edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    traces = []
    for own, name in zip(pnl, ["policy", *(hedge["name"] for hedge in baselines)], strict=True):
        counts, _ = np.histogram(np.clip(own, edges[0], edges[-1]), edges)
        trace: dict[str, Any] = {
            "type": "scatter",
            "mode": "lines",
            "name": label_of(name),
            "x": (0.5 * (edges[1:] + edges[:-1])).tolist(),
            "y": (counts / len(own)).tolist(),
            "line": {"color": color_of(run, name), "shape": "hvh", "width": 1.6},
            "hovertemplate": f"%{{x:.1f}} bps: %{{y:.2%}}<extra>{label_of(name)}</extra>",
        }
        if name == "policy":
            trace |= {"fill": "tozeroy", "fillcolor": "rgba(11,79,138,0.14)"}
        traces.append(trace)
    layout = {
        "xaxis": {"title": {"text": f"P&L with the premium, {unit(run)}"}},
        "yaxis": {"title": {"text": "share of paths"}, "tickformat": ".0%", "rangemode": "tozero"},
        "margin": {"l": 56, "r": 8, "t": 8, "b": 48},
    }
    return {"data": traces, "layout": layout, "height": 360}


def curve_figure(run: HedgingRun) -> Figure | None:
    """Price by aversion, or by cost level where that alone varies; None of a single case."""
    by_aversion = run.varies != "cost level"
    key, held = ("aversion", "cost_level") if by_aversion else ("cost_level", "aversion")
    if len({case[key] for case in run.cases}) < 2:
        return None
    traces = []
    for level in dict.fromkeys(case[held] for case in run.cases):
        cases = sorted((case for case in run.cases if case[held] == level), key=lambda case: case[key])
        suffix = "" if len({case[held] for case in run.cases}) == 1 else f", {held.replace('_', ' ')} {level:g}"
        means = [case["mean_price"] for case in cases]
        prices = [mean["value"] for mean in means]
        errors = [BPS * 2 * mean["std_error"] / run.spot for mean in means]
        traces.append(
            _priced(run, cases, key, prices, "policy", suffix)
            | {"error_y": {"type": "data", "array": errors, "width": 3, "visible": True}}
        )
        for name in dict.fromkeys(hedge["name"] for case in cases for hedge in case["baselines"]):
            if name == "none" or suffix:  # no hedge is off the scale; several cost levels show their policies alone
                continue
            prices = [_price_of(case, name) for case in cases]
            traces.append(_priced(run, cases, key, prices, name, suffix))
    layout = {
        "xaxis": {
            "type": "log" if min(case[key] for case in run.cases) > 0 else "linear",
            "title": {"text": run.varies},
        },
        "yaxis": {"title": {"text": f"price, {unit(run)}"}},
        "margin": {"l": 56, "r": 8, "t": 8, "b": 48},
    }
    return {"data": traces, "layout": layout, "height": 380}


def _price_of(case: dict[str, Any], name: str) -> float | None:
    return next((hedge["price"]["value"] for hedge in case["baselines"] if hedge["name"] == name), None)


def _priced(
    run: HedgingRun, cases: list[dict[str, Any]], key: str, prices: list[float | None], name: str, suffix: str
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": label_of(name) + suffix,
        "x": [case[key] for case in cases],
        "y": [None if price is None else BPS * price / run.spot for price in prices],
        "line": {"color": color_of(run, name) if not suffix else None, "dash": "solid" if name == "policy" else "dot"},
        "hovertemplate": "%{x:g}: %{y:.2f} bps<extra></extra>",
    }


def holdings_figure(run: HedgingRun, row: int, column: int) -> Figure:
    """What is held of one instrument on one date by spot: policy, the range of most paths, the delta."""
    spot = run.arrays["surface_spot"][row]
    known = np.isfinite(run.arrays["surface_policy"][row, :, column])
    x = spot[known].tolist()

    def line(name: str, key: str, **style: Any) -> dict[str, Any]:
        y = run.arrays[key][row, known, column].tolist()
        base = {"type": "scatter", "mode": "lines", "name": name, "x": x, "y": y}
        return base | {"hovertemplate": "%{x:.4g}: %{y:.3f}<extra></extra>"} | style

    hidden = {"line": {"width": 0}, "showlegend": False, "hoverinfo": "skip", "hovertemplate": None}
    traces = [
        line("low", "surface_low", **hidden),
        line("80 % of paths", "surface_high", **hidden | {"fill": "tonexty", "fillcolor": "rgba(11,79,138,0.16)"}),
        line("Policy", "surface_policy", line={"color": POLICY, "width": 2}),
    ]
    if "surface_delta" in run.arrays:
        delta = run.found["surface"]["delta"]
        style = {"color": color_of(run, delta), "dash": "dash", "width": 1.6}
        traces.append(line(label_of(delta), "surface_delta", line=style))
    layout = {
        "xaxis": {
            "title": {"text": f"{html.escape(run.found['paths']['instruments'][0])}, in today's money"},
            "nticks": 6,
        },
        "yaxis": {"title": {"text": "units held"}},
        "margin": {"l": 50, "r": 8, "t": 8, "b": 44},
    }
    return {"data": traces, "layout": layout, "height": 270}


def training_figure(run: HedgingRun) -> Figure:
    """Risk on the validation paths by epoch, a line for each policy."""
    members = run.metrics["training"]["members"]
    aversions = {member["aversion"] for member in members}
    traces = []
    for place, member in enumerate(members):
        rows = [row for row in run.log if row["member"] == place]
        told = f"seed {member['seed']}" + ("" if len(aversions) == 1 else f", {run.varies} {member['aversion']:g}")
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": told,
                "x": [row["epoch"] for row in rows],
                "y": [_scaled(run, row["val_loss"]) for row in rows],
                "line": {"color": POLICY if not place else OTHERS[(place - 1) % len(OTHERS)], "width": 1.6},
                "hovertemplate": f"epoch %{{x}}: %{{y:.2f}}<extra>{told}</extra>",
            }
        )
    told = unit(run) if run.of_cash else run.risk_unit
    layout = {
        "xaxis": {"title": {"text": "epoch"}},
        "yaxis": {"title": {"text": f"risk, {told}"}},
        "margin": {"l": 56, "r": 8, "t": 8, "b": 44},
        "showlegend": len(members) > 1,
    }
    return {"data": traces, "layout": layout, "height": 300}


def _scaled(run: HedgingRun, risk: float | None) -> float | None:
    if risk is None:
        return None
    return BPS * risk / run.spot if run.of_cash else risk
