"""Learning curves as small multiples in SVG: one panel per fold (or per member), readable with dozens of members."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from qfml.report.formats import significant
from qfml.report.markup import Html, el

__all__ = ["learning_curves"]

WIDTH, HEIGHT = 260, 150
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 20
TRAIN, VALIDATION, BEST = "#9aa4ae", "#0b4f8a", "#c8553d"
MAX_MEMBERS_PER_PANEL = 8
MAX_POINTS = 200  # a panel is 260 pixels wide


def learning_curves(log: pl.DataFrame, members: Sequence[Mapping[str, Any]]) -> Html:
    """Draw training and validation loss by epoch with each member's best epoch.

    Args:
        log: Columns fold, seed, epoch, train_loss, val_loss.
        members: Entries with fold, seed, status and best_epoch (None where there is none).

    Returns:
        A grid of SVG panels: seeds of a fold share one, unless there are more than eight of them.
    """
    panels: dict[tuple[int, ...], list[Mapping[str, Any]]] = {}
    by_fold: dict[int, list[Mapping[str, Any]]] = {}
    for member in members:
        by_fold.setdefault(member["fold"], []).append(member)
    for fold, same_fold in by_fold.items():
        if len(same_fold) <= MAX_MEMBERS_PER_PANEL:
            panels[(fold,)] = same_fold
        else:
            panels |= {(fold, member["seed"]): [member] for member in same_fold}
    curves = dict(log.partition_by("fold", "seed", as_dict=True))
    drawn = [_panel(key, shown, curves) for key, shown in panels.items()]
    return el("div", *drawn, class_="curves many" if len(drawn) > 24 else "curves")


def _panel(key: tuple[int, ...], members: Sequence[Mapping[str, Any]], curves: Mapping[Any, pl.DataFrame]) -> Html:
    lines = [(m, curves[(m["fold"], m["seed"])]) for m in members if (m["fold"], m["seed"]) in curves]
    title = f"fold {key[0]}" if len(key) == 1 else f"fold {key[0]}, seed {key[1]}"
    if not lines:
        return el("figure", el("figcaption", title), el("p", "no epoch logged", class_="muted"))
    losses = np.concatenate([rows.select("train_loss", "val_loss").to_numpy().ravel() for _, rows in lines])
    losses = losses[np.isfinite(losses.astype(float))] if losses.dtype != object else np.array([])
    if not len(losses):
        return el("figure", el("figcaption", title), el("p", "no finite loss", class_="muted"))
    epochs = np.concatenate([rows["epoch"].to_numpy() for _, rows in lines])
    frame = _Frame(float(epochs.min()), float(epochs.max()), *_loss_range(losses))
    opacity = 0.9 if len(lines) <= 2 else 0.65
    drawn = [frame.axes()]
    for column, color, width in (("train_loss", TRAIN, 1.1), ("val_loss", VALIDATION, 1.3)):
        for _, rows in lines:
            drawn += frame.line(rows["epoch"].to_numpy(), rows[column].to_numpy(), color, width, opacity)
    for member, rows in lines:
        drawn.append(frame.best(member, rows))
    failed = [str(m["seed"]) for m in members if m["status"] == "nan"]
    note = [el("span", f" seed {', '.join(failed)} diverged", class_="bad")] if failed else []
    picture = el("svg", *drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=f"learning curves of {title}")
    return el("figure", el("figcaption", title, *note), picture)


def _loss_range(losses: np.ndarray) -> tuple[float, float]:
    """The range of losses shown: a wild first epoch is cut off at the top, never the bottom."""
    low = float(losses.min())
    high = float(min(losses.max(), np.quantile(losses, 0.98) + (np.quantile(losses, 0.98) - low)))
    margin = 0.06 * (high - low) or 0.06 * abs(low) or 1.0
    return low - margin, high + margin


class _Frame:
    """Maps epochs and losses to the panel."""

    def __init__(self, first: float, last: float, low: float, high: float) -> None:
        self.first, self.last, self.low, self.high = first, max(last, first + 1), low, high

    def x(self, epoch: Any) -> Any:
        return LEFT + (epoch - self.first) / (self.last - self.first) * (WIDTH - LEFT - RIGHT)

    def y(self, loss: Any) -> Any:
        bounded = np.clip(loss, self.low, self.high)
        return TOP + (self.high - bounded) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)

    def axes(self) -> Html:
        bottom = HEIGHT - BOTTOM
        ticks = []
        for share in (0.08, 0.5, 0.92):
            loss = self.low + share * (self.high - self.low)
            y = f"{self.y(loss):.1f}"
            ticks.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, stroke="#e6e9ed"))
            ticks.append(el("text", significant(loss, 3), x=LEFT - 5, y=y, dy="0.32em", text_anchor="end"))
        for epoch, anchor in ((self.first, "start"), (self.last, "end")):
            ticks.append(el("text", f"{epoch:.0f}", x=f"{self.x(epoch):.1f}", y=HEIGHT - 6, text_anchor=anchor))
        ticks.append(el("text", "epoch", x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 6, text_anchor="middle"))
        ticks.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom, stroke="#9aa4ae"))
        return el("g", *ticks)

    def line(self, epochs: np.ndarray, losses: np.ndarray, color: str, width: float, opacity: float) -> list[Html]:
        finite = np.isfinite(losses)
        epochs, losses = epochs[finite], losses[finite]
        if not len(epochs):
            return []
        step = math.ceil(len(epochs) / MAX_POINTS)
        shown = np.unique(np.r_[np.arange(0, len(epochs), step), len(epochs) - 1])
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(self.x(epochs[shown]), self.y(losses[shown])))
        style = {"stroke": color, "stroke_width": width, "stroke_opacity": opacity}
        return [el("polyline", points=points, fill="none", **style)]

    def best(self, member: Mapping[str, Any], rows: pl.DataFrame) -> Html:
        if member["best_epoch"] is None:
            return Html("")
        at_best = rows.filter(pl.col("epoch") == member["best_epoch"])["val_loss"].to_list()
        if not at_best or at_best[0] is None or not math.isfinite(at_best[0]):
            return Html("")
        hint = f"seed {member['seed']}: best epoch {member['best_epoch']}, validation loss {significant(at_best[0])}"
        x, y = f"{self.x(member['best_epoch']):.1f}", f"{self.y(at_best[0]):.1f}"
        return el("circle", el("title", hint), cx=x, cy=y, r=2.6, fill=BEST)
