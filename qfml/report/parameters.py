"""The objective of every trial against each parameter, as small multiples in SVG: one panel a parameter."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qfml.report.formats import percent, significant
from qfml.report.markup import Html, el
from qfml.tune.space import short_names

__all__ = ["parameter_panels", "value_text"]

WIDTH, HEIGHT = 260, 170
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 10, 22
COLORS = {"winner": "#c8553d", "complete": "#0b4f8a", "pruned": "#b4bcc4"}
RADII = {"winner": 4.2, "complete": 2.8, "pruned": 2.2}


def value_text(value: Any) -> str:
    """A value of a parameter for a reader."""
    return significant(value) if isinstance(value, float) else "none" if value is None else str(value)


def parameter_panels(found: Mapping[str, Any]) -> Html:
    """One panel a parameter, the most important first; trials that successive halving dropped are grey.

    Args:
        found: Metrics of a search: "trials", "winner", "space", "importance", "objective".
    """
    shares = found.get("importance") or {}
    names = sorted(found["space"], key=lambda name: -(shares.get(name) or 0.0))
    shorts = short_names(names)
    panels = [_panel(found, name, shorts[name], shares.get(name)) for name in names]
    return el("div", *panels, class_="curves panels")


@dataclass(frozen=True)
class _Across:
    """Where a value stands between the left and the right end of a panel, from 0 to 1, and the ticks below."""

    share: Callable[[Any], float]
    ticks: list[tuple[float, str]]


def _panel(found: Mapping[str, Any], name: str, short: str, share: float | None) -> Html:
    trials = [trial for trial in found["trials"] if trial["value"] is not None]
    across = _across(found["space"][name], [trial["params"][name] for trial in trials])
    low, high = _shown([t["value"] for t in trials if t["state"] == "complete"] or [t["value"] for t in trials])
    winner = found["winner"]["place"]
    # what matters is drawn last
    kinds = {t["place"]: "winner" if t["place"] == winner else t["state"] for t in trials}
    order = ["pruned", "complete", "winner"]
    trials.sort(key=lambda trial: order.index(kinds[trial["place"]]) if kinds[trial["place"]] in order else 0)
    dots = []
    for trial in trials:
        kind = kinds[trial["place"]] if kinds[trial["place"]] in COLORS else "pruned"
        value = trial["params"][name]
        hint = f"trial {trial['place'] + 1}: {value_text(value)}, {significant(trial['value'])}"
        x = LEFT + across.share(value) * (WIDTH - LEFT - RIGHT)
        y = TOP + (high - min(max(trial["value"], low), high)) / (high - low) * (HEIGHT - TOP - BOTTOM)
        dot = {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": RADII[kind], "fill": COLORS[kind], "fill_opacity": 0.85}
        dots.append(el("circle", el("title", hint), **dot))
    told = el("figcaption", el("code", short, title=name), "" if share is None else f" {percent(share)}")
    picture = el(
        "svg",
        _axes(low, high, across.ticks),
        *dots,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"objective by {name}",
    )
    return el("figure", told, picture)


def _axes(low: float, high: float, ticks: Sequence[tuple[float, str]]) -> Html:
    parts, bottom = [], HEIGHT - BOTTOM
    for share in (0.08, 0.5, 0.92):
        y = f"{TOP + (1 - share) * (bottom - TOP):.1f}"
        parts.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, stroke="#e6e9ed"))
        text = significant(low + share * (high - low), 4)
        parts.append(el("text", text, x=LEFT - 5, y=y, dy="0.32em", text_anchor="end"))
    parts.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom, stroke="#9aa4ae"))
    for place, (share, text) in enumerate(ticks):
        ends = {0: "start", len(ticks) - 1: "end"} if 0.0 in (ticks[0][0], 1.0 - ticks[-1][0]) else {}
        x = f"{LEFT + share * (WIDTH - LEFT - RIGHT):.1f}"
        parts.append(el("text", text, x=x, y=HEIGHT - 7, text_anchor=ends.get(place, "middle")))
    return el("g", *parts)


def _across(space: Any, values: Sequence[Any]) -> _Across:
    kind = space.get("kind") if isinstance(space, Mapping) else None
    if kind in ("uniform", "log_uniform", "int"):
        move = math.log if kind == "log_uniform" else float
        low, high = move(space["low"]), move(space["high"])
        middle = math.exp((low + high) / 2) if kind == "log_uniform" else (low + high) / 2
        marks = [(0.0, space["low"]), (0.5, middle), (1.0, space["high"])]
        if kind == "int":
            ticks = [(share, f"{value:,.0f}") for share, value in marks if value == round(value)]
        else:
            ticks = [(share, significant(value, 2)) for share, value in marks]
        return _Across(lambda value: (move(value) - low) / (high - low), ticks)
    listed = space.get("values", ()) if isinstance(space, Mapping) else ()
    stored = [value if isinstance(value, (str, int, float)) or value is None else json.dumps(value) for value in listed]
    texts = list(dict.fromkeys([*map(str, stored), *map(str, values)]))
    places = {text: (i + 0.5) / len(texts) for i, text in enumerate(texts)}
    room = 36 // max(len(texts), 1)  # letters a label may have beside its neighbours
    ticks = [(share, text if len(text) <= room else text[: max(room - 1, 1)] + "…") for text, share in places.items()]
    return _Across(lambda value: places[str(value)], ticks)


def _shown(values: Sequence[float]) -> tuple[float, float]:
    """The range of objectives shown: that of the trials trained to the end; what lies outside stands at the edge."""
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.06 * abs(low) or 1.0
    return low - margin, high + margin
