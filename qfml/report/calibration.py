"""The page of a calibration: parameters with their errors, the fit to every quote, histories, what warns."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from qfml.finished import check_sections, read_metrics
from qfml.report import formats
from qfml.report.charts import COLORS, DIVERGING, Figure, axis, plain
from qfml.report.folder import read_table, read_text
from qfml.report.layout import Charts, Section, note, warning
from qfml.report.markup import Html, definitions, el, join, scrolling_table
from qfml.report.page import write_page
from qfml.report.provenance import origin
from qfml.report.smiles import smile_panels
from qfml.report.volatility import CUBE_COLUMNS, LOCAL_VOL_COLUMNS, cube_section, local_vol_section

__all__ = ["write_calibration_report"]

FIT = ("model", "method", "surfaces", "parameters", "params", "std_error", "identified", "at_bound")
REQUIRED = {"fit": FIT, "versions": (), "seconds": ()}
QUOTES = ("surface", "expiry", "strike", "log_moneyness", "vol", "model_vol", "residual_bps", "weight")
CURVES = ("surface", "expiry", "log_moneyness", "model_vol")
AS_ASKED = ("refined:", "read off by the network")  # ends of the method inverse, which searches for no minimum
SHOWN = 4  # surfaces whose smiles are drawn
LABELS = {"model": "Model", "sticky_moneyness": "Sticky moneyness", "previous_parameters": "Previous parameters"}
METHOD_COLORS = {"model": "#0b4f8a", "sticky_moneyness": "#d17a00", "previous_parameters": "#7d848c"}


@dataclass(frozen=True)
class _Run:
    path: Path
    config: str
    metrics: dict[str, Any]
    quotes: pl.DataFrame
    curves: pl.DataFrame

    @property
    def fit(self) -> dict[str, Any]:
        return self.metrics["fit"]

    @property
    def surfaces(self) -> list[dict[str, Any]]:
        return self.metrics["fit"]["surfaces"]

    @property
    def of_cube(self) -> bool:
        """Whether it is a swaption cube, whose surfaces are its tenors."""
        return (self.path / "nodes.parquet").is_file()

    @property
    def shown(self) -> list[int]:
        """The surfaces whose smiles are drawn: all of a few, else the worst, the median and the last."""
        return shown_surfaces(self.surfaces)


def shown_surfaces(surfaces: Sequence[Mapping[str, Any]]) -> list[int]:
    """Places of the surfaces whose smiles the page draws, by their `rmse_bps` (None: failed, worse than any other)."""
    n = len(surfaces)
    if n <= SHOWN:
        return list(range(n))
    errors = [math.inf if s["rmse_bps"] is None else s["rmse_bps"] for s in surfaces]
    order = sorted(range(n), key=lambda i: errors[i])
    return list(dict.fromkeys([order[-1], order[n // 2], n - 1]))


def write_calibration_report(folder: Path) -> Path:
    """Write `report.html` of a finished calibration."""
    metrics = read_metrics(folder)
    check_sections(folder / "metrics.json", metrics, REQUIRED)
    run = _Run(
        folder,
        read_text(folder / "config.yaml"),
        metrics,
        read_table(folder / "quotes.parquet", QUOTES),
        _curves(folder / "curves.parquet"),
    )
    charts = Charts()
    if run.of_cube:
        sections = [cube_section(read_table(folder / "nodes.parquet", CUBE_COLUMNS), charts), _smiles(run, charts)]
    else:
        sections = [_parameters(run, charts)] if run.fit["parameters"] else []
        sections.append(_smiles(run, charts))
    if (folder / "local_vol.parquet").is_file():
        table = read_table(folder / "local_vol.parquet", LOCAL_VOL_COLUMNS)
        shown = [run.surfaces[place]["name"] for place in run.shown]
        sections.append(local_vol_section(table, run.quotes, shown, charts))
    if len(run.surfaces) > SHOWN and not run.of_cube:
        sections.append(_history(run, charts))
    if metrics.get("out_of_sample"):
        sections.append(_out_of_sample(run, charts))
    if metrics.get("posterior"):
        sections.append(_posterior(run))
    sections += [_quotes(run), _reproduction(run)]
    return write_page(folder, "Calibration", _headline(run), sections, charts, metrics["versions"].get("qfml"))


def _curves(path: Path) -> pl.DataFrame:
    """The fitted smiles; none where none of the surfaces that are drawn was fitted."""
    if path.is_file():
        return read_table(path, CURVES)
    return pl.DataFrame(schema={name: pl.String if name == "surface" else pl.Float64 for name in CURVES})


def _headline(run: _Run) -> Html:
    fit, surfaces = run.fit, run.surfaces
    quotes = sum(s["n_quotes"] for s in surfaces)
    failed = sum(not (s["converged"] or s["status"].startswith(AS_ASKED)) for s in surfaces)
    first, many = surfaces[0], len(surfaces) > 1
    model = formats.model_name(fit["model"])
    model = model[0].upper() + model[1:]
    unit = "tenor" if run.of_cube else "surface"
    kind = unit + "s" if many else unit
    errors = np.array([np.nan if s["rmse_bps"] is None else s["rmse_bps"] for s in surfaces], dtype=float)
    title = f"{model} fits {formats.count(quotes)} quotes to {formats.bps(_rounded(np.nanmedian(errors)))} of vol"
    if many:
        title = (
            f"{model} fits {formats.count(len(surfaces))} {kind}, the median to "
            f"{formats.bps(_rounded(np.nanmedian(errors)))}"
        )
    cards = [
        ("Root mean square error", formats.bps(_rounded(np.nanmedian(errors))), f"median {unit}" if many else "of vol"),
        ("Largest error", formats.bps(_rounded(_largest(surfaces, "max_bps"))), "of vol, any quote"),
        ("Not converged", formats.count(failed), f"of {formats.count(len(surfaces))} {kind}"),
        ("Time", f"{formats.significant(run.metrics['seconds'].get('calibration'), 3)} s", fit["method"]),
    ]
    bid, ask, vol = (run.quotes[name].to_numpy() for name in ("bid", "ask", "model_vol"))
    two_sided = np.isfinite(bid) & np.isfinite(ask) & (bid > 0.0) & np.isfinite(vol)
    if two_sided.any():
        inside = float(((vol >= bid) & (vol <= ask))[two_sided].mean())
        cards.insert(2, ("Inside bid and ask", formats.percent(inside), "of the two-sided quotes"))
    if not many:
        cards.insert(2, ("Sum of squares", formats.significant(first.get("sse"), 6), "vol points squared"))
    parts = [
        el("div", el("dt", name), el("dd", value), el("dd", small, class_="interval")) for name, value, small in cards
    ]
    return el(
        "header",
        el("p", "Calibration", class_="eyebrow"),
        el("h1", title),
        el("p", f"{run.metrics.get('source', '')}", class_="lead"),
        *(warning(text) for text in ([] if run.of_cube else _warnings(surfaces))),  # those of nodes stand with them
        el("dl", *parts, class_="cards"),
        class_="title",
    )


def _rounded(value: float) -> float:
    return round(float(value), 2) if abs(value) < 10 else round(float(value), 1)


def _largest(surfaces: Sequence[Mapping[str, Any]], name: str) -> float:
    return max((s[name] for s in surfaces if s.get(name) is not None), default=math.nan)


def _warnings(surfaces: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader must not overlook: all of one surface, counts of many."""
    if len(surfaces) <= SHOWN:
        several = len(surfaces) > 1
        return [f"{s['name']}: {text}" if several else text for s in surfaces for text in s["warnings"]]
    places: dict[str, set[int]] = {}
    wordings: dict[str, set[str]] = {}
    for place, surface in enumerate(surfaces):
        for text in surface["warnings"]:
            said = _PREFIX.sub("", text).split(":")[0]
            kind = _NUMBER.sub("\N{HORIZONTAL ELLIPSIS}", said)
            places.setdefault(kind, set()).add(place)
            wordings.setdefault(kind, set()).add(said)
    return [
        f"{wordings[kind].pop() if len(wordings[kind]) == 1 else kind} ({len(own)} of {len(surfaces)} surfaces)"
        for kind, own in sorted(places.items())
    ]


_PREFIX = re.compile(r"^(?:expiry [^:]*|the network's start): ")
_NUMBER = re.compile(r"(?<![\w`])-?\d[\d.]*(?:e[+-]?\d+)?")


def _parameters(run: _Run, charts: Charts) -> Section:
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
        numbers = [fit[key][name][place] for key in ("params", "std_error", "identified", "at_bound")]
        if isinstance(numbers[0], list):  # one an expiry
            for expiry, *own in zip(fit["expiries"][place], *numbers):
                if expiry is not None:
                    rows.append(_parameter_row(f"{name} at {formats.significant(expiry, 3)} y", *own, entry))
        else:
            rows.append(_parameter_row(name, *numbers, entry))
    return rows


def _parameter_row(
    name: str, value: Any, error: Any, identified: bool, at_bound: bool, entry: Mapping[str, Any]
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


def _smiles(run: _Run, charts: Charts) -> Section:
    parts = []
    for place in run.shown:
        name = run.surfaces[place]["name"]
        quotes = run.quotes.filter(pl.col("surface") == name)
        curves = run.curves.filter(pl.col("surface") == name)
        if quotes.is_empty():
            continue
        if len(run.surfaces) > 1:
            parts.append(el("h3", f"{name}: {formats.bps(_rounded(run.surfaces[place]['rmse_bps'] or math.nan))}"))
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


def _history(run: _Run, charts: Charts) -> Section:
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


def _out_of_sample(run: _Run, charts: Charts) -> Section:
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


def _posterior(run: _Run) -> Section:
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
        f"the error of a vol: {formats.bps(_rounded(found['noise_bps']))} in the mean."
    )
    intro = "Hamiltonian Monte Carlo over the box, uniform in the parameters, normal errors of the vols."
    return Section("posterior", "Posterior", intro, join([*remarks, table, told]))


def _quotes(run: _Run) -> Section:
    """What was read, and what the checks found in it."""
    rows = []
    for surface in run.surfaces[:50]:
        expiries = run.quotes.filter(pl.col("surface") == surface["name"])["expiry"].n_unique()
        rows.append([surface["name"], formats.count(surface["n_quotes"]), formats.count(expiries)])
    parts = [scrolling_table(("Tenor" if run.of_cube else "Surface", "Quotes", "Expiries"), rows, caption="Quotes")]
    if len(run.surfaces) > 50:
        parts.append(note(f"The first 50 of {formats.count(len(run.surfaces))}."))
    notes = [(s["name"], text) for s in run.surfaces for text in s["notes"]]
    notes += [("All", text) for text in run.metrics.get("notes", [])]
    if notes:
        several = len(run.surfaces) > 1
        lines = [el("li", f"{name}: {text}" if several else text) for name, text in notes[:100]]
        parts += [el("h3", "Found in the quotes"), el("ul", *lines)]
        if len(notes) > 100:
            parts.append(note(f"The first 100 of {formats.count(len(notes))} findings."))
    else:
        parts.append(note("The checks (crossed quotes, duplicates, arbitrage) found nothing."))
    return Section("quotes", "Quotes", "What was read, and what its checks found.", join(parts))


def _reproduction(run: _Run) -> Section:
    metrics = run.metrics
    pairs: list[tuple[object, object]] = [
        ("Made", formats.day(metrics.get("created", formats.MISSING)).replace("T", " ")),
        *origin(metrics, metrics.get("data_hash")),
        *((name.capitalize(), f"{one['path']}, {one['hash']}") for name, one in metrics.get("networks", {}).items()),
        *((f"Seconds, {name}", formats.significant(value, 3)) for name, value in metrics["seconds"].items()),
        *metrics["versions"].items(),
    ]
    parts = [definitions(pairs), el("details", el("summary", "Configuration"), el("pre", run.config), open=True)]
    intro = "Everything needed to make this page again; quotes.parquet holds every quote beside the model."
    return Section("reproduction", "Reproduction", intro, join(parts))
