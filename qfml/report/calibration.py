"""The page of a calibration: parameters with their errors, the fit to every quote, histories, what warns."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from qfml.finished import check_sections, read_metrics
from qfml.report import formats
from qfml.report.calibration_fit import parameters_section, smiles_section
from qfml.report.calibration_history import history_section, out_of_sample_section, posterior_section
from qfml.report.calibration_run import SHOWN, CalibrationRun, rounded
from qfml.report.folder import read_table, read_text
from qfml.report.layout import Charts, Section, note, warning
from qfml.report.markup import Html, definitions, el, join, scrolling_table
from qfml.report.page import write_page
from qfml.report.provenance import origin
from qfml.report.volatility import CUBE_COLUMNS, LOCAL_VOL_COLUMNS, cube_section, local_vol_section

__all__ = ["write_calibration_report"]

FIT = ("model", "method", "surfaces", "parameters", "params", "std_error", "identified", "at_bound")
REQUIRED = {"fit": FIT, "versions": (), "seconds": ()}
QUOTES = ("surface", "expiry", "strike", "log_moneyness", "vol", "model_vol", "residual_bps", "weight")
CURVES = ("surface", "expiry", "log_moneyness", "model_vol")
AS_ASKED = ("refined:", "read off by the network")  # ends of the method inverse, which searches for no minimum


def write_calibration_report(folder: Path) -> Path:
    """Write `report.html` of a finished calibration."""
    metrics = read_metrics(folder)
    check_sections(folder / "metrics.json", metrics, REQUIRED)
    run = CalibrationRun(
        folder,
        read_text(folder / "config.yaml"),
        metrics,
        read_table(folder / "quotes.parquet", QUOTES),
        _curves(folder / "curves.parquet"),
    )
    charts = Charts()
    if run.of_cube:
        sections = [
            cube_section(read_table(folder / "nodes.parquet", CUBE_COLUMNS), charts),
            smiles_section(run, charts),
        ]
    else:
        sections = [parameters_section(run, charts)] if run.fit["parameters"] else []
        sections.append(smiles_section(run, charts))
    if (folder / "local_vol.parquet").is_file():
        table = read_table(folder / "local_vol.parquet", LOCAL_VOL_COLUMNS)
        shown = [run.surfaces[place]["name"] for place in run.shown]
        sections.append(local_vol_section(table, run.quotes, shown, charts))
    if len(run.surfaces) > SHOWN and not run.of_cube:
        sections.append(history_section(run, charts))
    if metrics.get("out_of_sample"):
        sections.append(out_of_sample_section(run, charts))
    if metrics.get("posterior"):
        sections.append(posterior_section(run))
    sections += [_quotes(run), _reproduction(run)]
    return write_page(folder, "Calibration", _headline(run), sections, charts, metrics["versions"].get("qfml"))


def _curves(path: Path) -> pl.DataFrame:
    """The fitted smiles; none where none of the surfaces that are drawn was fitted."""
    if path.is_file():
        return read_table(path, CURVES)
    return pl.DataFrame(schema={name: pl.String if name == "surface" else pl.Float64 for name in CURVES})


def _headline(run: CalibrationRun) -> Html:
    fit, surfaces = run.fit, run.surfaces
    quotes = sum(s["n_quotes"] for s in surfaces)
    failed = sum(not (s["converged"] or s["status"].startswith(AS_ASKED)) for s in surfaces)
    first, many = surfaces[0], len(surfaces) > 1
    model = formats.model_name(fit["model"])
    model = model[0].upper() + model[1:]
    unit = "tenor" if run.of_cube else "surface"
    kind = unit + "s" if many else unit
    errors = np.array([np.nan if s["rmse_bps"] is None else s["rmse_bps"] for s in surfaces], dtype=float)
    title = f"{model} fits {formats.count(quotes)} quotes to {formats.bps(rounded(np.nanmedian(errors)))} of vol"
    if many:
        title = (
            f"{model} fits {formats.count(len(surfaces))} {kind}, the median to "
            f"{formats.bps(rounded(np.nanmedian(errors)))}"
        )
    cards = [
        ("Root mean square error", formats.bps(rounded(np.nanmedian(errors))), f"median {unit}" if many else "of vol"),
        ("Largest error", formats.bps(rounded(_largest(surfaces, "max_bps"))), "of vol, any quote"),
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


def _quotes(run: CalibrationRun) -> Section:
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


def _reproduction(run: CalibrationRun) -> Section:
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
