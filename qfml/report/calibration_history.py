"""Sections of the page of a calibration: surfaces through time, out of sample, and the posterior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qfml.report import formats
from qfml.report.calibration_run import CalibrationRun, rounded
from qfml.report.charts import COLORS, Figure, axis, plain
from qfml.report.layout import Charts, Section, note, warning
from qfml.report.markup import Html, el, join, scrolling_table

__all__ = ["history_section", "out_of_sample_section", "posterior_section"]

LABELS = {"model": "Model", "sticky_moneyness": "Sticky moneyness", "previous_parameters": "Previous parameters"}
METHOD_COLORS = {"model": "#0b4f8a", "sticky_moneyness": "#d17a00", "previous_parameters": "#7d848c"}


def history_section(run: CalibrationRun, charts: Charts) -> Section:
    """Error and parameters over the surfaces of a history."""
    surfaces, fit = run.surfaces, run.fit
    dated = all(s.get("date") for s in surfaces)
    across = axis([s["date"] for s in surfaces]) if dated else axis(list(range(1, len(surfaces) + 1)))
    parts = [
        charts.place(
            "errors",
            _path(across, [s["rmse_bps"] for s in surfaces], None, "rms error, bps of vol"),
            "Error of the fit",
        )
    ]
    for entry in fit["parameters"]:
        name = entry["name"]
        if isinstance(fit["params"][name][0], list):
            continue
        figure = _path(across, fit["params"][name], fit["std_error"][name], name)
        caption = "Band: two standard errors to each side."
        parts.append(charts.place(f"path-{name}", figure, name, caption))
    return Section("history", "Through time", "Error and parameters, surface by surface.", join(parts))


def _path(across: Any, values: Sequence[Any], errors: Sequence[Any] | None, name: str) -> Figure:
    y = np.array([np.nan if value is None else value for value in values], dtype=float)
    traces: list[dict[str, Any]] = []
    if errors is not None:
        se = np.array([np.nan if value is None else value for value in errors], dtype=float)
        low, high = np.where(np.isfinite(se), y - 2 * se, y), np.where(np.isfinite(se), y + 2 * se, y)
        # a parameter that is not identified on one day must not hide all the others
        floor, ceiling = np.nanmin(y), np.nanmax(y)
        room = 0.75 * (ceiling - floor) or abs(ceiling) or 1.0
        band = {"type": "scatter", "mode": "lines", "x": across.values, "line": {"width": 0}, "hoverinfo": "skip"}
        traces.append({**band, "y": np.clip(low, floor - room, None), "showlegend": False})
        fill = {"fill": "tonexty", "fillcolor": "rgba(11,79,138,0.15)"}
        traces.append({**band, **fill, "y": np.clip(high, None, ceiling + room), "showlegend": False})
    traces.append(
        {
            "type": "scatter",
            "mode": "lines",
            "x": across.values,
            "y": y,
            "line": {"color": COLORS["network"], "width": 1.6},
            "hovertemplate": "%{y:.5g}<extra></extra>",
            "showlegend": False,
        }
    )
    layout = {"xaxis": {"type": across.kind}, "yaxis": {"title": {"text": plain(name)}}}
    return {"data": traces, "layout": layout, "height": 240}


def out_of_sample_section(run: CalibrationRun, charts: Charts) -> Section:
    """The error of a day's parameters on later days, beside baselines that fit nothing."""
    found = run.metrics["out_of_sample"]
    by_horizon = found["by_horizon"]
    horizons = [0, *found["horizons"]]
    traces = []
    for name, errors in by_horizon.items():
        known = [horizon for horizon in horizons if str(horizon) in errors]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": plain(LABELS[name]),
                "x": known,
                "y": [errors[str(horizon)]["mean"] for horizon in known],
                "line": {"color": METHOD_COLORS[name]},
                "hovertemplate": "%{x} ahead: %{y:.1f} bps<extra></extra>",
            }
        )
    layout = {
        "xaxis": {"title": {"text": "surfaces ahead"}},
        "yaxis": {"title": {"text": "mean rms error, bps of vol"}, "rangemode": "tozero"},
    }
    caption = "Horizon 0 is the day of the fit."
    chart = charts.place(
        "out-of-sample", {"data": traces, "layout": layout, "height": 300}, "Error by horizon", caption
    )
    rows = [
        [
            str(horizon),
            *(_with_interval(by_horizon[name].get(str(horizon))) for name in by_horizon),
            *(_with_interval(gains.get(str(horizon))) for gains in found["gain_bps"].values()),
        ]
        for horizon in horizons
    ]
    heads = (
        "Surfaces ahead",
        *(LABELS[name] for name in by_horizon),
        *(f"Gain over {LABELS[name].lower()}" for name in found["gain_bps"]),
    )
    told = [scrolling_table(heads, rows, caption="Out-of-sample error by horizon, bps of vol")]
    told.append(
        note(
            "Means of the root mean square error over days, in basis points of vol, with 95 % intervals by the "
            "stationary bootstrap where there are 20 days; a gain above 0 says that the model is better."
        )
    )
    lost = found.get("without_vol", {"n_without": 0})
    if lost["n_without"]:
        told.append(
            warning(
                f"The model has no vol for {formats.count(lost['n_without'])} of {formats.count(lost['n_quotes'])} "
                "quotes, such as outside of a surrogate's box: no method is judged on them."
            )
        )
    if found["n_failed"]:
        lines = [el("li", f"{entry['date']}: {entry['reason']}") for entry in found["failures"][:20]]
        told.append(warning(f"{found['n_failed']} of {found['n_calibrated']} calibrations failed."))
        told.append(el("ul", *lines))
    intro = (
        "Parameters of one day price the surfaces of later days, with those days' forwards. Beside them: the day's own "
        "vols read at the later quotes' moneyness and expiry, and the parameters of the calibration before."
    )
    return Section("out-of-sample", "Out of sample", intro, join([chart, *told]))


def _with_interval(entry: Mapping[str, Any] | None) -> Html | str:
    if entry is None:
        return ""
    interval = entry.get("interval_95") or [None, None]
    text = formats.ratio(entry["mean"])
    if interval[0] is None:
        return text
    return join([text, el("small", formats.interval(interval, formats.ratio))])


def posterior_section(run: CalibrationRun) -> Section:
    """What the draws say of each parameter, or why there are none."""
    found = run.metrics["posterior"]
    if reason := found.get("failed"):
        told = warning(f"There are no draws for {run.surfaces[0]['name']}: {reason}")
        return Section("posterior", "Posterior", "Hamiltonian Monte Carlo over the box.", told)
    rows = [
        [
            el("code", name),
            formats.significant(line["mean"], 5),
            formats.significant(line["std"], 3),
            formats.interval((line["q05"], line["q95"]), lambda x: formats.significant(x, 4)),
            formats.probability(line["r_hat"]),
            formats.count(line["effective_draws"]),
        ]
        for name, line in found["parameters"].items()
    ]
    heads = ("Parameter", "Mean", "Standard deviation", "90 % interval", "R-hat", "Effective draws")
    table = scrolling_table(heads, rows, caption="Posterior of the parameters")
    remarks = [warning(text) for text in found["warnings"]]
    told = note(
        f"{run.surfaces[0]['name']}: {found['n_chains']} chains of {formats.count(found['n_draws'])} draws through the "
        f"{found['through']}; accepted "
        f"{formats.percent(found['accept'])}; {formats.count(found['divergences'])} divergent. Standard deviation of "
        f"the error of a vol: {formats.bps(rounded(found['noise_bps']))} in the mean."
    )
    intro = "Hamiltonian Monte Carlo over the box, uniform in the parameters, normal errors of the vols."
    return Section("posterior", "Posterior", intro, join([*remarks, table, told]))
