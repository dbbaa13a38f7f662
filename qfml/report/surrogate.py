"""The page of a surrogate: how wrong it is and where, its Greeks, arbitrage, its bound, and what it saves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from qfml.errors import UserError
from qfml.finished import check_sections, read_metrics, tells_q999
from qfml.report import formats
from qfml.report.charts import COLORS, Figure
from qfml.report.folder import read_text
from qfml.report.layout import Charts, Section, note, warning
from qfml.report.markup import Html, definitions, el, join, scrolling_table
from qfml.report.page import write_page
from qfml.report.provenance import origin
from qfml.report.regions import coordinate_panels, pair_panels, shade_key

__all__ = ["write_surrogate_report"]

REQUIRED = {
    "judgement": ("target", "error", "points", "noise", "conformal", "speed", "regions", "greeks", "arbitrage"),
    "labels": ("problem", "n_labels", "engine", "inputs", "units"),
    "training": ("validation_rmse", "n_parameters"),
    "versions": (),
    "seconds": (),
}
ARRAYS = ("error", "value", "regions_by_coordinate", "regions_by_pair", "pairs", "training_error")
BPS = 1e4
TARGETS = {"implied_vol": "vols", "time_value": "time values"}  # other than prices
NEGLIGIBLE = 0.01  # share of the surrogate's error below which the engine's own is not told


@dataclass(frozen=True)
class _Run:
    path: Path
    config: str
    metrics: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def found(self) -> dict[str, Any]:
        return self.metrics["judgement"]

    @property
    def unit(self) -> str:
        """Of errors on this page."""
        return "bps of vol" if self.found["target"] == "implied_vol" else "bps of spot"

    @property
    def truth(self) -> str:
        """What the surrogate is compared with."""
        if self.found["conformal"]["of"] == "label":
            return "label"
        return "engine's value" if self.stated else "exact value"

    @property
    def stated(self) -> str:
        """What the engine says of the error of its own values; nothing where it is beyond what the page shows."""
        bound, note = self.found["points"].get("error_bound"), self.found["points"].get("note")
        if bound is None:
            return ""
        told = [] if not note else [f"of its values it says: {note}"]
        if bound["max"] is None:
            told.append("it states no bound of their error")
        elif bound["max"] > NEGLIGIBLE * self.found["error"]["rmse"]:
            told.append(
                f"it bounds their error by {_bps(bound['rms'])} {self.unit} in the root mean square and "
                f"{_bps(bound['max'])} at most, at {formats.count(bound['n_points'])} of the points"
            )
        return "; ".join(told)

    @property
    def tells_q999(self) -> bool:
        """Whether 99.9 % of the points are fewer than all of them."""
        return tells_q999(self.found)


def write_surrogate_report(folder: Path) -> Path:
    """Write `report.html` of a finished surrogate."""
    metrics = read_metrics(folder)
    check_sections(folder / "metrics.json", metrics, REQUIRED)
    run = _Run(folder, read_text(folder / "config.yaml"), metrics, _arrays(folder / "judgement.safetensors"))
    charts = Charts()
    sections = [
        _errors(run, charts),
        _regions(run),
        _greeks(run),
        _arbitrage(run),
        _bound(run),
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


def _bps(value: Any) -> str:
    return formats.significant(BPS * value, 3) if isinstance(value, float) else formats.MISSING


def _headline(run: _Run) -> Html:
    found, error = run.found, run.found["error"]
    title = f"Off by {_bps(error['rmse'])} {run.unit}, 99\u00a0% of points within {_bps(error['q99'])}"
    conformal = found["conformal"]
    cards = [
        ("Root mean square error", _bps(error["rmse"]), run.unit),
        *([("99.9 % of points within", _bps(error["q999"]), run.unit)] if run.tells_q999 else []),
        ("Largest", _bps(error["max"]), f"of {formats.count(found['points']['n_points'])} fresh points"),
        (
            f"Bound at {100 * conformal['level']:g}%",
            _bps(conformal["bound"]),
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
                f"The fresh labels are simulated, with standard errors of {_bps(noise)} {run.unit}: without them the "
                f"error is {_bps(found['noise']['rmse_without_noise'])}.",
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


def _errors(run: _Run, charts: Charts) -> Section:
    found = run.found
    measures = {
        "rmse": "Root mean square",
        "mean_abs": "Mean absolute",
        "q99": "99 %",
        "q999": "99.9 %",
        "max": "Largest",
    }
    if not run.tells_q999:
        del measures["q999"]
    rows = []
    for name, key in (("Vol, bps", "vol_bps"), ("Price, bps of spot", "price_bps")):
        own = found.get(key)
        if own:
            rows.append([name, *(formats.significant(own[measure], 3) for measure in measures)])
    heads = ("Error", *measures.values())
    table = scrolling_table(heads, rows, caption="Errors on fresh points")
    error = found["error"]
    r2 = (
        formats.MISSING if error["r2"] is None else f"{error['r2']:.7f}" if error["r2"] > 0.99 else f"{error['r2']:.3f}"
    )
    told = note(
        f"R² {r2}; mean squared error {formats.significant(error['mse'], 3)}, bias {_bps(error['bias'])} {run.unit}. "
        f"{formats.count(found['points']['n_points'])} points drawn independently of the labels, priced by "
        f"{found['points']['engine'].replace('_', ' ')}{'; ' if run.stated else ''}{run.stated}."
    )
    left_out = [
        note(f"{formats.count(count)} points left out: {why}.") for why, count in found["points"]["left_out"].items()
    ]
    chart = charts.place(
        "errors",
        _histogram(run),
        "Errors of fresh points",
        f"Surrogate less {run.truth}, {run.unit}; what lies beyond 99.5 % stands at the ends.",
    )
    worst = found.get("worst") or []
    parts = [table, told, *left_out, chart]
    if worst:
        names = list(worst[0]["inputs"])
        lines = [
            [
                _bps(abs(one["error"])),
                formats.significant(one["exact"], 5),
                *(formats.significant(one["inputs"][name], 3) for name in names),
            ]
            for one in worst
        ]
        heads = (f"Error, {run.unit}", run.truth.capitalize(), *(el("code", name) for name in names))
        parts += [el("h3", "The largest errors"), scrolling_table(heads, lines, caption="The largest errors")]
    return Section("errors", "Errors", "On fresh points of the box, which no training has seen.", join(parts))


def _histogram(run: _Run) -> Figure:
    error = BPS * run.arrays["error"]
    reach = float(np.quantile(np.abs(error), 0.995)) or 1.0
    counts, edges = np.histogram(np.clip(error, -reach, reach), bins=80, range=(-reach, reach))
    trace = {
        "type": "bar",
        "x": (0.5 * (edges[1:] + edges[:-1])).tolist(),
        "y": counts.tolist(),
        "marker": {"color": COLORS["network"]},
        "hovertemplate": "%{x:.3g} bps: %{y:,} points<extra></extra>",
    }
    layout = {
        "bargap": 0.04,
        "xaxis": {"title": {"text": run.unit}},
        "yaxis": {"title": {"text": "points"}},
        "showlegend": False,
    }
    return {"data": [trace], "layout": layout, "height": 300}


def _regions(run: _Run) -> Section:
    regions, arrays = run.found["regions"], run.arrays
    names = regions["coordinates"]
    parts = [
        coordinate_panels(names, regions["ranges"], arrays["regions_by_coordinate"], BPS),
    ]
    if len(arrays["pairs"]):  # a box of one coordinate has none
        darkest = BPS * float(np.nanmax(arrays["regions_by_pair"][..., 0]))
        parts += [
            el("h3", "Over pairs of coordinates"),
            pair_panels(names, arrays["pairs"], arrays["regions_by_pair"], BPS),
            note(
                "Root mean square error in bins of equal width along each coordinate's scale; white: no point. ",
                shade_key(f"0 {run.unit}", f"{formats.significant(darkest, 3)} {run.unit}"),
            ),
        ]
    return Section("regions", "Regions", f"Where in the box the errors are, in {run.unit}.", join(parts))


def _greeks(run: _Run) -> Section | None:
    greeks, remark = run.found["greeks"], run.found.get("greeks_note")
    intro = "Derivatives of the surrogate in each input, against those of the engine."
    if not greeks:
        return Section("greeks", "Greeks", intro, note(remark)) if remark else None
    noisy = any(own["noise"] for own in greeks.values())
    units = run.metrics["labels"]["units"]
    rows = [
        [
            el("code", name),
            units.get(name, ""),
            formats.significant(own["rms_exact"], 3),
            formats.significant(own["rmse"], 3),
            formats.percent(own["relative"]),
            formats.significant(own["q99"], 3),
            *([formats.significant(own["noise"], 2) if own["noise"] else ""] if noisy else []),
        ]
        for name, own in greeks.items()
    ]
    heads = ("In", "Unit", "Typical size", "Error (rms)", "Relative", "99 % within")
    heads += ("Noise of the label",) if noisy else ()
    table = scrolling_table(heads, rows, n_text=2, caption="Errors of the derivatives")
    told = [note("Compared with derivatives ", remark)] if remark else []
    return Section("greeks", "Greeks", intro, join([table, *told]))


def _arbitrage(run: _Run) -> Section | None:
    found, remark = run.found["arbitrage"], run.found.get("arbitrage_note")
    intro = "Rules that the exact values obey, looked at on the fresh points."
    if not found:
        return Section("arbitrage", "Arbitrage", intro, note(_sentence(remark))) if remark else None
    titles = {
        "density": "Negative density (butterfly)",
        "calendar": "Losing with the expiry (calendar)",
        "monotone": "Not monotone in the strike",
        "convex": "Not convex in the strike",
    }
    rows = [
        [
            titles.get(name, name),
            formats.count(own["count"]),
            formats.count(own["n_points"]),
            formats.percent(own["share"]) if own["count"] else "0",
            formats.significant(own["worst"], 3),
        ]
        for name, own in found.items()
    ]
    heads = ("Rule", "Violations", "Points", "Share", "Worst")
    table = scrolling_table(heads, rows, caption="Violations of no-arbitrage")
    told = [note(f"{titles.get(name, name)}: {own['measured']}.") for name, own in found.items()]
    told += [note(_sentence(remark))] if remark else []
    return Section("arbitrage", "Arbitrage", intro, join([table, *told]))


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _bound(run: _Run) -> Section:
    own = run.found["conformal"]
    rows = [
        ("Level", f"{100 * own['level']:g}%"),
        (f"Bound, {run.unit}", _bps(own["bound"])),
        ("Points it was taken from", formats.count(own["n_calibration"])),
        ("Further points", formats.count(own["n_test"])),
        ("Of these within the bound", formats.percent(own["coverage"])),
        ("95 % interval of that share", formats.interval((own["coverage_low"], own["coverage_high"]), formats.percent)),
    ]
    if own.get("p_value") is not None:
        rows.append(("Chance of so few, if the level holds", formats.probability(own["p_value"])))
    remarks = []
    if own["of"] == "label":
        remarks.append(note("The labels are simulated: the bound covers the distance to a label, its noise included."))
    if own["coverage_high"] < own["level"]:
        remarks.append(warning("The bound is kept by fewer fresh points than it says."))
    intro = "Split-conformal: of fresh points inside the box, at most 1 less the level exceed the bound."
    table = scrolling_table(("Error bound", "Value"), rows, caption="Conformal error bound")
    return Section("bound", "Error bound", intro, join([*remarks, table, *_coverage_by_bin(own)]))


def _coverage_by_bin(own: Mapping[str, Any]) -> list[Html]:
    """A row a coordinate: the share of the fresh points of each bin that keep the bound."""
    by_coordinate: dict[str, list[Mapping[str, Any]]] = {}
    for one in own.get("by_bin") or ():
        by_coordinate.setdefault(one["name"], []).append(one)
    if not by_coordinate:
        return []
    n_bins = max(map(len, by_coordinate.values()))
    rows = [[el("code", name), *map(_bin, bins)] for name, bins in by_coordinate.items()]
    known = [one for bins in by_coordinate.values() for one in bins if one["n"]]
    worst = min(known, key=lambda one: (one["coverage"], -one["n"]))
    ends = formats.interval((worst["low"], worst["high"]), lambda x: formats.significant(x, 3))
    told = note(
        "The level is of the whole box, and a bin may keep less. Fewest keep the bound where ",
        el("code", worst["name"]),
        f" lies in {ends}: {formats.percent(worst['coverage'])} of {formats.count(worst['n'])} points.",
    )
    heads = ("Along", *(f"Bin {number + 1}" for number in range(n_bins)))
    return [
        el("h3", "Share within the bound, bin by bin"),
        scrolling_table(heads, rows, caption="Coverage by coordinate and bin"),
        told,
    ]


def _bin(one: Mapping[str, Any]) -> Html:
    if not one["n"]:
        return el("span", formats.MISSING, title="no points")
    ends = formats.interval((one["low"], one["high"]), lambda x: formats.significant(x, 3))
    return el("span", formats.percent(one["coverage"]), title=f"{ends}: {formats.count(one['n'])} points")


def _speed(run: _Run) -> Section | None:
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


def _training(run: _Run, charts: Charts) -> Section:
    labels, training = run.metrics["labels"], run.metrics["training"]
    pairs: list[tuple[object, object]] = [
        ("Labels", f"{formats.count(labels['n_labels'])} of {formats.count(labels['n_laws'])} laws"),
        ("Engine", _settings(labels["engine"])),
        ("Noise of the labels", f"{_bps(labels['std_error_rms'])} {run.unit}" if labels["std_error_rms"] else "none"),
        ("Derivatives", "learned from" if _learns_slopes(run.config) else "not learned from"),
        ("Network", _settings(training["network"])),
        ("Parameters", formats.count(training["n_parameters"])),
        (
            f"Error on held-out laws, {run.unit}",
            join((el("span", f"{_bps(value)} (seed {seed}) ") for value, seed in _seeds(training)), ""),
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


def _reproduction(run: _Run) -> Section:
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
