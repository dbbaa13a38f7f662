"""The page of a surrogate: its judgement, what it saves, what it was trained on, and how to make it again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from qfml.errors import UserError
from qfml.finished import check_sections, read_metrics
from qfml.report import formats
from qfml.report.charts import COLORS, Figure
from qfml.report.folder import read_text
from qfml.report.layout import Charts, Section, note
from qfml.report.markup import Html, definitions, el, join, scrolling_table
from qfml.report.page import write_page
from qfml.report.provenance import origin
from qfml.report.surrogate_judgement import (
    SurrogateRun,
    arbitrage_section,
    bound_section,
    bps,
    errors_section,
    greeks_section,
    regions_section,
)

__all__ = ["write_surrogate_report"]

REQUIRED = {
    "judgement": ("target", "error", "points", "noise", "conformal", "speed", "regions", "greeks", "arbitrage"),
    "labels": ("problem", "n_labels", "engine", "inputs", "units"),
    "training": ("validation_rmse", "n_parameters"),
    "versions": (),
    "seconds": (),
}
ARRAYS = ("error", "value", "regions_by_coordinate", "regions_by_pair", "pairs", "training_error")
TARGETS = {"implied_vol": "vols", "time_value": "time values"}  # other than prices


def write_surrogate_report(folder: Path) -> Path:
    """Write `report.html` of a finished surrogate."""
    metrics = read_metrics(folder)
    check_sections(folder / "metrics.json", metrics, REQUIRED)
    run = SurrogateRun(folder, read_text(folder / "config.yaml"), metrics, _arrays(folder / "judgement.safetensors"))
    charts = Charts()
    sections = [
        errors_section(run, charts),
        regions_section(run),
        greeks_section(run),
        arbitrage_section(run),
        bound_section(run),
        _speed(run),
        _training(run, charts),
        _reproduction(run),
    ]
    sections = [section for section in sections if section is not None]
    return write_page(folder, "Surrogate", _headline(run), sections, charts, metrics["versions"].get("qfml"))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(f"the run folder {path.parent} has no `{path.name}`: run it again")
    try:
        arrays = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); run it again") from None
    missing = [f"`{name}`" for name in ARRAYS if name not in arrays]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; it was written by another version: run it again")
    return arrays


def _headline(run: SurrogateRun) -> Html:
    found, error = run.found, run.found["error"]
    title = f"Off by {bps(error['rmse'])} {run.unit}, 99\u00a0% of points within {bps(error['q99'])}"
    conformal = found["conformal"]
    cards = [
        ("Root mean square error", bps(error["rmse"]), run.unit),
        *([("99.9 % of points within", bps(error["q999"]), run.unit)] if run.tells_q999 else []),
        ("Largest", bps(error["max"]), f"of {formats.count(found['points']['n_points'])} fresh points"),
        (
            f"Bound at {100 * conformal['level']:g}%",
            bps(conformal["bound"]),
            f"kept by {formats.percent(conformal['coverage'])}",
        ),
        *_speed_cards(found["target"], found["speed"]),
    ]
    parts = [
        el("div", el("dt", name), el("dd", value), el("dd", small, class_="interval")) for name, value, small in cards
    ]
    noise = found["noise"]["std_error_rms"]
    remarks = []
    if noise > 0:
        remarks.append(
            el(
                "p",
                f"The fresh labels are simulated, with standard errors of {bps(noise)} {run.unit}: without them the "
                f"error is {bps(found['noise']['rmse_without_noise'])}.",
                class_="muted",
            )
        )
    inputs = ", ".join(run.metrics["labels"]["inputs"])
    problem = f"{run.metrics['labels']['problem']}, as a function of {inputs}"
    return el(
        "header",
        el("p", "Surrogate pricer", class_="eyebrow"),
        el("h1", title),
        el("p", problem, class_="lead"),
        *remarks,
        el("dl", *parts, class_="cards"),
        class_="title",
    )


def _speed_cards(target: str, speed: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What it saves; nothing where nothing was timed."""
    if not speed:
        return []
    own = speed["surrogate"]
    cards = []
    for what, seconds in _batches(target, own):
        milliseconds = f"{formats.significant(1e3 * seconds, 3)} ms"
        cards.append((f"{formats.count(own['n_batch'])} {what}", milliseconds, _threads(own["threads"])))
    if speed.get("ratio_simulated"):
        times = f"{formats.significant(speed['ratio_simulated'], 3)}{formats.TIMES}"
        cards.append(("Faster than simulation", times, "at equal error"))
    return cards


def _batches(target: str, own: Mapping[str, Any]) -> list[tuple[str, float]]:
    """What was asked for in a batch, and its median seconds: the target, and prices where they are made of it."""
    found = [(TARGETS.get(target, "prices"), own["batch_seconds"]["median"])]
    if target in TARGETS and "price_batch_seconds" in own:
        found.append(("prices", own["price_batch_seconds"]["median"]))
    return found


def _speed(run: SurrogateRun) -> Section | None:
    speed = run.found["speed"]
    if not speed:
        return None
    own = speed["surrogate"]
    target, n = run.found["target"], own["n_batch"]
    rows = [[f"Surrogate, {what} in a batch", _seconds(s / n), ""] for what, s in _batches(target, own)]
    what = TARGETS.get(target, "prices")
    rows += [
        [f"Surrogate, {what} with all derivatives", _seconds(own["gradient_batch_seconds"]["median"] / n), ""],
        ["Surrogate, one at a time", _seconds(own["single_seconds"]["median"]), ""],
    ]
    exact, simulated = speed.get("exact"), speed.get("simulated")
    if exact:
        rows.append([f"{exact['engine']}, {what}", _seconds(exact["seconds_per_price"]), _times(speed["ratio_exact"])])
    if simulated:
        name = f"{simulated['engine']}, prices, as many paths as give the surrogate's error"
        ratio = _times(speed.get("ratio_simulated"))
        rows.append([name, _seconds(simulated["seconds_per_price_at_equal_error"]), ratio])
    told = [
        f"On {_threads(own['threads'])}; the median of the rounds, the first left out; {formats.count(n)} rows in a "
        "batch, in float32, as the errors on this page."
    ]
    if simulated:
        told.append(
            f" Simulation was timed with {formats.count(simulated['n_paths'])} paths of {simulated['n_steps']} steps, "
            "and scaled by the square of its standard error."
        )
    heads = ("", "Time for one", "Of the surrogate's")
    table = scrolling_table(heads, rows, caption="Time for one value")
    return Section("speed", "Speed", "What a value costs, here and by the engines.", join([table, note(*told)]))


def _threads(count: int) -> str:
    return "one thread" if count == 1 else f"{count} threads"


def _seconds(value: float | None) -> str:
    if value is None:
        return formats.MISSING
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9)):
        if value >= size:
            return f"{formats.significant(value / size, 3)} {unit}"
    return f"{formats.significant(value, 2)} s"


def _times(value: Any) -> str:
    return f"{formats.significant(value, 3)}{formats.TIMES}" if value else ""


def _training(run: SurrogateRun, charts: Charts) -> Section:
    labels, training = run.metrics["labels"], run.metrics["training"]
    pairs: list[tuple[object, object]] = [
        ("Labels", f"{formats.count(labels['n_labels'])} of {formats.count(labels['n_laws'])} laws"),
        ("Engine", _settings(labels["engine"])),
        ("Noise of the labels", f"{bps(labels['std_error_rms'])} {run.unit}" if labels["std_error_rms"] else "none"),
        ("Derivatives", "learned from" if _learns_slopes(run.config) else "not learned from"),
        ("Network", _settings(training["network"])),
        ("Parameters", formats.count(training["n_parameters"])),
        (
            f"Error on held-out laws, {run.unit}",
            join((el("span", f"{bps(value)} (seed {seed}) ") for value, seed in _seeds(training)), ""),
        ),
    ]
    pairs += [(why, formats.count(count)) for why, count in labels.get("left_out", {}).items()]
    parts = [definitions(pairs)]
    history = run.arrays["training_error"]
    if len(history):
        figure = _learning(history)
        parts.append(charts.place("learning", figure, "Loss by epoch", "Of the best seed; logarithmic."))
    return Section("training", "Training", "What the network learned from, and how.", join(parts))


def _settings(settings: Mapping[str, Any]) -> str:
    """The kind of a part and what it is set to, without what is off."""
    parts = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            parts.append(f"{key} {_settings(value)}")
        elif key != "kind" and value is not None and value is not False and value != 0:
            shown = "-".join(map(str, value)) if isinstance(value, list) else value
            parts.append(f"{key.replace('_', ' ')} {shown}")
    return f"{settings['kind']} ({', '.join(parts)})" if parts else str(settings["kind"])


def _learns_slopes(config: str) -> bool:
    lines = [line.strip() for line in config.splitlines()]
    return any(line.startswith("twin:") and "null" not in line for line in lines)


def _seeds(training: Mapping[str, Any]) -> list[tuple[float, int]]:
    return list(zip(training["validation_rmse"], training["seeds"]))


def _learning(history: np.ndarray) -> Figure:
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": history[:, 0].tolist(),
            "y": history[:, column].tolist(),
            "line": {"color": color},
            "hovertemplate": f"epoch %{{x}}: %{{y:.3g}}<extra>{name.lower()}</extra>",
        }
        for column, name, color in ((1, "Training", "#9aa4ae"), (2, "Held-out laws", COLORS["network"]))
    ]
    layout = {"xaxis": {"title": {"text": "epoch"}}, "yaxis": {"type": "log", "title": {"text": "loss"}}}
    return {"data": traces, "layout": layout, "height": 300}


def _reproduction(run: SurrogateRun) -> Section:
    metrics = run.metrics
    pairs: list[tuple[object, object]] = [
        ("Made", formats.day(metrics.get("created", formats.MISSING)).replace("T", " ")),
        ("Hash of the surrogate", el("code", metrics.get("hash", formats.MISSING))),
        *origin(metrics, metrics.get("data_hash")),
        *(
            (f"Seconds, {name.replace('_', ' ')}", formats.significant(value, 3))
            for name, value in metrics["seconds"].items()
        ),
        *metrics["versions"].items(),
    ]
    parts = [definitions(pairs), el("details", el("summary", "Configuration"), el("pre", run.config), open=True)]
    intro = "Everything needed to make this page again; `surrogate/` holds the network, for Surrogate.load."
    return Section("reproduction", "Reproduction", intro, join(parts))
