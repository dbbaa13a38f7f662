"""Where in its box a surrogate errs, as small multiples in SVG: along each coordinate, and over each pair of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from qfml.report.formats import significant
from qfml.report.markup import Html, el

__all__ = ["coordinate_panels", "pair_panels", "shade_key"]

WIDTH, HEIGHT = 260, 150
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 8, 20
SQUARE = 220  # side of a map
RMSE, Q99, COUNT = 0, 1, 3  # of the measures
LINE, TAIL = "#0b4f8a", "#c8553d"


def coordinate_panels(names: Sequence[str], ranges: Sequence[Any], maps: np.ndarray, factor: float) -> Html:
    """Error in bins along each coordinate: the root mean square, and what 99 % stay below.

    Args:
        names: of the d coordinates.
        ranges: low, high and scale of each.
        maps: (d, bins, measures).
        factor: from the unit of the maps to the one that is shown.
    """
    high = factor * float(np.nanmax(maps[:, :, Q99]))
    panels = [_curve(name, limits, factor * own[:, :2], high) for name, limits, own in zip(names, ranges, maps)]
    key = el(
        "p",
        *(
            part
            for color, text in ((LINE, "root mean square"), (TAIL, "99 % stay below"))
            for part in (el("i", class_="line", style=f"background:{color}"), text)
        ),
        class_="key",
    )
    return el("div", key, el("div", *panels, class_="curves panels"))


def _curve(name: str, limits: Sequence[Any], values: np.ndarray, high: float) -> Html:
    n_bins, bottom = len(values), HEIGHT - BOTTOM
    centres = (np.arange(n_bins) + 0.5) / n_bins

    def y(value: float) -> float:
        return bottom - value / high * (bottom - TOP)

    parts = []
    for share in (0.5, 1.0):
        height = f"{y(share * high):.1f}"
        parts.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=height, y2=height, stroke="#e6e9ed"))
        parts.append(el("text", significant(share * high, 2), x=LEFT - 5, y=height, dy="0.32em", text_anchor="end"))
    parts.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom, stroke="#9aa4ae"))
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        x = f"{LEFT + share * (WIDTH - LEFT - RIGHT):.1f}"
        parts.append(el("text", _at(limits, share), x=x, y=HEIGHT - 6, text_anchor=anchor))
    for column, color in ((Q99, TAIL), (RMSE, LINE)):
        known = np.isfinite(values[:, column])
        points = " ".join(
            f"{LEFT + c * (WIDTH - LEFT - RIGHT):.1f},{y(v):.1f}" for c, v in zip(centres[known], values[known, column])
        )
        parts.append(el("polyline", points=points, fill="none", stroke=color, stroke_width=1.5))
    picture = el("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=f"error along {name}")
    return el("figure", el("figcaption", el("code", name)), picture)


def _at(limits: Sequence[Any], share: float) -> str:
    low, high, scale = limits
    value = low * (high / low) ** share if scale == "log" else low + share * (high - low)
    return significant(value, 3)


def pair_panels(names: Sequence[str], pairs: np.ndarray, maps: np.ndarray, factor: float) -> Html:
    """The root mean square error over each pair of coordinates; dark is large, white has no point.

    Args:
        names: of the coordinates.
        pairs: (P, 2).
        maps: (P, bins, bins, measures).
        factor: from the unit of the maps to the one that is shown.
    """
    high = factor * float(np.nanmax(maps[..., RMSE]))
    panels = []
    for pair, own in zip(pairs, maps):
        panels.append(_map(names[int(pair[0])], names[int(pair[1])], factor * own[..., RMSE], own[..., COUNT], high))
    return el("div", *panels, class_="curves")


def _map(across: str, up: str, values: np.ndarray, counts: np.ndarray, high: float) -> Html:
    n_bins = len(values)
    side = (SQUARE - 14) / n_bins
    cells = []
    for a in range(n_bins):
        for b in range(n_bins):
            value = values[a, b]
            if not math.isfinite(value):
                continue
            hint = f"{across} bin {a + 1}, {up} bin {b + 1}: {significant(value, 3)} bps, {counts[a, b]:.0f} points"
            place = {"x": f"{14 + a * side:.1f}", "y": f"{(n_bins - 1 - b) * side:.1f}"}
            size = {"width": f"{side:.2f}", "height": f"{side:.2f}"}
            cells.append(el("rect", el("title", hint), **place, **size, fill=_shade(value / high)))
    cells.append(el("text", f"{across} \N{RIGHTWARDS ARROW}", x=14, y=SQUARE - 2))
    turned = f"rotate(-90 9 {SQUARE - 16})"
    cells.append(el("text", f"{up} \N{RIGHTWARDS ARROW}", x=9, y=SQUARE - 16, transform=turned))
    label = f"error over {across} and {up}"
    return el("figure", el("svg", *cells, viewBox=f"0 0 {SQUARE} {SQUARE}", role="img", aria_label=label))


def shade_key(low: str, high: str) -> Html:
    """The colours of the maps from the least to the largest, between two labels."""
    stops = ", ".join(f"{_shade(k / 8)} {12.5 * k:g}%" for k in range(9))
    bar = f"display:inline-block;width:120px;height:9px;margin:0 8px;background:linear-gradient(90deg, {stops})"
    return el("span", low, el("i", style=bar), high, class_="nb")


def _shade(share: float) -> str:
    """From nearly white to dark blue, by the root of the share: small errors stay apart too."""
    t = math.sqrt(min(max(share, 0.0), 1.0))
    light, dark = (237, 242, 246), (11, 79, 138)
    return "#" + "".join(f"{round(a + t * (b - a)):02x}" for a, b in zip(light, dark))
