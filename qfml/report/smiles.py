"""Smiles as small multiples in SVG: quotes, their bid and ask, and the fitted model, one panel an expiry."""

from __future__ import annotations

import numpy as np
import polars as pl

from qfml.report.formats import bps, significant
from qfml.report.markup import Html, el

__all__ = ["smile_panels"]

WIDTH, HEIGHT = 260, 170
LEFT, RIGHT, TOP, BOTTOM = 38, 8, 8, 20
QUOTE, MODEL = "#c8553d", "#0b4f8a"


def smile_panels(quotes: pl.DataFrame, curves: pl.DataFrame) -> Html:
    """One panel an expiry.

    Args:
        quotes: expiry, log_moneyness, vol, bid, ask (vols, null where there are none), residual_bps.
        curves: expiry, log_moneyness, model_vol: the model between and beside the quotes.
    """
    key = el(
        "p",
        el("i", class_="dot", style=f"background:{QUOTE}"),
        "quote, with bid and ask where given",
        el("i", class_="line", style=f"background:{MODEL}"),
        "model",
        class_="key",
    )
    by_expiry = dict(curves.sort("log_moneyness").partition_by("expiry", as_dict=True))
    panels = []
    for (expiry,), rows in sorted(quotes.partition_by("expiry", as_dict=True).items()):
        panels.append(_panel(expiry, rows, by_expiry.get((expiry,), curves.clear())))
    return el("div", key, el("div", *panels, class_="curves panels"))


def _panel(expiry: float, quotes: pl.DataFrame, curve: pl.DataFrame) -> Html:
    x = np.concatenate([quotes["log_moneyness"].to_numpy(), curve["log_moneyness"].to_numpy()])
    columns = ([quotes[name] for name in ("vol", "bid", "ask") if name in quotes.columns], curve["model_vol"])
    y = np.concatenate([*(column.cast(pl.Float64).to_numpy() for column in (*columns[0], columns[1]))])
    frame = _Frame(*_range(x), *_range(y[np.isfinite(y)]))
    drawn = [frame.axes(), frame.line(curve["log_moneyness"].to_numpy(), curve["model_vol"].to_numpy())]
    for row in quotes.iter_rows(named=True):
        drawn.append(frame.quote(row))
    error = quotes["residual_bps"].to_numpy()
    error = error[np.isfinite(error)]
    fitted = f"rms {bps(round(float(np.sqrt(np.mean(error**2))), 1))}" if len(error) else "not fitted"
    told = el("figcaption", el("strong", _time(expiry)), f" {len(quotes)} quotes, {fitted}")
    label = f"smile at {_time(expiry)}"
    return el("figure", told, el("svg", *drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label))


def _time(expiry: float) -> str:
    days = 365 * expiry
    return f"{days:,.0f} days" if days < 730 and abs(days - round(days)) < 0.02 else f"{significant(expiry, 3)} years"


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = 0.06 * (high - low) or 0.1 * abs(low) or 1.0
    return low - margin, high + margin


class _Frame:
    """Maps log-moneyness and vol to the panel."""

    def __init__(self, left: float, right: float, low: float, high: float) -> None:
        self.left, self.right, self.low, self.high = left, right, low, high

    def x(self, value: np.ndarray | float) -> np.ndarray | float:
        return LEFT + (value - self.left) / (self.right - self.left) * (WIDTH - LEFT - RIGHT)

    def y(self, value: np.ndarray | float) -> np.ndarray | float:
        return TOP + (self.high - value) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)

    def axes(self) -> Html:
        bottom, parts = HEIGHT - BOTTOM, []
        for share in (0.08, 0.5, 0.92):
            vol = self.low + share * (self.high - self.low)
            y = f"{self.y(vol):.1f}"
            parts.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, stroke="#e6e9ed"))
            parts.append(el("text", f"{100 * vol:.1f}%", x=LEFT - 4, y=y, dy="0.32em", text_anchor="end"))
        parts.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom, stroke="#9aa4ae"))
        for value, anchor in ((self.left, "start"), (self.right, "end")):
            text = f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")
            parts.append(el("text", text, x=f"{self.x(value):.1f}", y=HEIGHT - 6, text_anchor=anchor))
        parts.append(el("text", "log(K/F)", x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 6, text_anchor="middle"))
        return el("g", *parts)

    def line(self, x: np.ndarray, y: np.ndarray) -> Html:
        known = np.isfinite(y)
        if not known.any():
            return Html("")
        points = " ".join(f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in zip(x[known], y[known]))
        return el("polyline", points=points, fill="none", stroke=MODEL, stroke_width=1.4)

    def quote(self, row: dict[str, float]) -> Html:
        x = f"{self.x(row['log_moneyness']):.1f}"
        hint = f"strike {significant(row['strike'])}: vol {100 * row['vol']:.2f}%, model off {bps(row['residual_bps'])}"
        parts = [el("circle", el("title", hint), cx=x, cy=f"{self.y(row['vol']):.1f}", r=2.2, fill=QUOTE)]
        bid, ask = row.get("bid"), row.get("ask")
        if bid is not None and ask is not None and np.isfinite(bid) and np.isfinite(ask):
            ends = {"y1": f"{self.y(bid):.1f}", "y2": f"{self.y(ask):.1f}"}
            parts.insert(0, el("line", x1=x, x2=x, **ends, stroke=QUOTE, stroke_opacity=0.6))
        return el("g", *parts)
