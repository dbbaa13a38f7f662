"""The sections of a surrogate's page that judge it: errors and where they are, Greeks, arbitrage, its bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qfml.finished import tells_q999
from qfml.report import formats
from qfml.report.charts import COLORS, Figure
from qfml.report.layout import Charts, Section, note, warning
from qfml.report.markup import Html, el, join, scrolling_table
from qfml.report.regions import coordinate_panels, pair_panels, shade_key

__all__ = [
    "SurrogateRun",
    "arbitrage_section",
    "bound_section",
    "bps",
    "errors_section",
    "greeks_section",
    "regions_section",
]

BPS = 1e4
NEGLIGIBLE = 0.01  # share of the surrogate's error below which the engine's own is not told


@dataclass(frozen=True)
class SurrogateRun:
    """The finished run of a surrogate, as its page reads it.

    Args:
        path: the run's folder.
        config: its settings, as they stand in `config.yaml`.
        metrics: `metrics.json`.
        arrays: `judgement.safetensors`.
    """

    path: Path
    config: str
    metrics: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def found(self) -> dict[str, Any]:
        """What the judgement has found."""
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
                f"it bounds their error by {bps(bound['rms'])} {self.unit} in the root mean square and "
                f"{bps(bound['max'])} at most, at {formats.count(bound['n_points'])} of the points"
            )
        return "; ".join(told)

    @property
    def tells_q999(self) -> bool:
        """Whether 99.9 % of the points are fewer than all of them."""
        return tells_q999(self.found)


def bps(value: Any) -> str:
    """A vol, or a price per unit of spot, in basis points."""
    return formats.significant(BPS * value, 3) if isinstance(value, float) else formats.MISSING


def errors_section(run: SurrogateRun, charts: Charts) -> Section:
    """How large the errors are: in figures, as a histogram, and the largest of them."""
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
        f"R² {r2}; mean squared error {formats.significant(error['mse'], 3)}, bias {bps(error['bias'])} {run.unit}. "
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
                bps(abs(one["error"])),
                formats.significant(one["exact"], 5),
                *(formats.significant(one["inputs"][name], 3) for name in names),
            ]
            for one in worst
        ]
        heads = (f"Error, {run.unit}", run.truth.capitalize(), *(el("code", name) for name in names))
        parts += [el("h3", "The largest errors"), scrolling_table(heads, lines, caption="The largest errors")]
    return Section("errors", "Errors", "On fresh points of the box, which no training has seen.", join(parts))


def _histogram(run: SurrogateRun) -> Figure:
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


def regions_section(run: SurrogateRun) -> Section:
    """Where in the box the errors are."""
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


def greeks_section(run: SurrogateRun) -> Section | None:
    """Errors of the derivatives, or why there are none; None of a run that says neither."""
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


def arbitrage_section(run: SurrogateRun) -> Section | None:
    """Violations of no-arbitrage, or why none were looked for; None of a run that says neither."""
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


def bound_section(run: SurrogateRun) -> Section:
    """The conformal error bound, and how many fresh points keep it."""
    own = run.found["conformal"]
    rows = [
        ("Level", f"{100 * own['level']:g}%"),
        (f"Bound, {run.unit}", bps(own["bound"])),
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
