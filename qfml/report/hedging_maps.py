"""Heat maps of what is held: the policy, the delta and their difference, by date and spot, for thirds of the vol."""

from __future__ import annotations

import html
from typing import Any

import numpy as np

from qfml.report.charts import DIVERGING, Figure
from qfml.report.hedging_run import HedgingRun, instrument_label, label_of
from qfml.report.layout import Charts, note
from qfml.report.markup import Html, el

__all__ = ["map_places"]

THIRDS = ("lowest third of the vol", "middle third of the vol", "highest third of the vol")
FADED = [[0.0, "#ecf1f5"], [1.0, "#0b4f8a"]]


def map_places(run: HedgingRun, charts: Charts) -> list[Html]:
    """The maps of each instrument, those of the policy and of the delta on one scale."""
    policy, delta = run.arrays["map_policy"], run.arrays.get("map_delta")
    instruments = run.found["surface"]["instruments"]
    parts: list[Html] = []
    for column, instrument in enumerate(instruments):
        maps = {"Policy": policy[..., column]}
        if delta is not None:
            maps |= {label_of(run.found["surface"]["delta"]): delta[..., column]}
            maps |= {"Policy less delta": policy[..., column] - delta[..., column]}
        levels = np.concatenate([values[np.isfinite(values)] for values in list(maps.values())[:2]])
        ends = (float(levels.min()), float(levels.max())) if len(levels) else (0.0, 1.0)
        for third in range(len(policy)):
            places = []
            told = ", ".join(
                [instrument_label(instrument)] * (len(instruments) > 1) + [THIRDS[third]] * (len(policy) > 1)
            )
            for number, (name, values) in enumerate(maps.items()):
                figure = _figure(run, values[third], ends if number < 2 else None)
                places.append(charts.place(f"map-{column}-{third}-{number}", figure, name, told))
            parts.append(el("div", *places, class_="maps"))
    small = note("Means over the fresh paths that come by; white where fewer than 5 do.")
    return [el("h3", "By date and spot"), *parts, small]


def _figure(run: HedgingRun, values: np.ndarray, ends: tuple[float, float] | None) -> Figure:
    """One map (D, bins); without `ends` a difference, about 0."""
    known = values[np.isfinite(values)]
    most = max(float(np.abs(known).max()) if len(known) else 0.0, 1e-12)
    low, high = (-most, most) if ends is None else ends
    spot = run.arrays["map_spot"]
    trace: dict[str, Any] = {
        "type": "heatmap",
        "x": (365 * run.arrays["map_times"]).tolist(),
        "y": (0.5 * (spot[1:] + spot[:-1])).tolist(),
        "z": [[None if not np.isfinite(value) else float(value) for value in row] for row in values.T],
        "zmin": low,
        "zmax": high,
        "colorscale": DIVERGING if ends is None else FADED,
        "colorbar": {"thickness": 10, "len": 0.9, "outlinewidth": 0, "nticks": 5},
        "hovertemplate": "day %{x:.3g}, spot %{y:.4g}: %{z:.3f}<extra></extra>",
    }
    name = html.escape(run.found["paths"]["instruments"][0])
    layout = {
        "xaxis": {"title": {"text": "days"}, "nticks": 6},
        "yaxis": {"title": {"text": name}, "nticks": 6},
        "margin": {"l": 56, "r": 8, "t": 8, "b": 44},
        "hovermode": "closest",
    }
    return {"data": [trace], "layout": layout, "height": 270}
