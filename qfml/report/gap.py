"""Validation minus training loss of all networks along the epochs, and in how many of them the gap opened, and when."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import numpy as np
import polars as pl

from qfml.engine.overfitting import Gap, train_validation_gap
from qfml.report import formats
from qfml.report.charts import Figure
from qfml.report.layout import Charts, note
from qfml.report.markup import Html, el, join

__all__ = ["Gaps", "gap_chart", "gap_figure", "gap_sentence", "network_gaps", "widening"]

Gaps = Mapping[tuple[int, int], Gap]

MARGIN = 0.05  # how much more gap counts as open, as a share of the lowest validation loss
BAND, MEDIAN, OPENED, NETWORKS = "rgba(11,79,138,0.18)", "#0b4f8a", "#c8553d", "#7d848c"
DOTTED = {"color": OPENED, "width": 1.2, "dash": "dot"}


def network_gaps(log: pl.DataFrame) -> dict[tuple[int, int], Gap]:
    """The gap of every network, by fold and seed; one without an epoch of two finite losses has none.

    Args:
        log: Columns fold, seed, epoch, train_loss, val_loss.
    """
    known = log.filter(pl.col("train_loss").is_finite() & pl.col("val_loss").is_finite())
    parts = known.sort("fold", "seed", "epoch").partition_by("fold", "seed", as_dict=True, maintain_order=True)
    return {(fold, seed): train_validation_gap(rows.to_dicts(), MARGIN) for (fold, seed), rows in parts.items()}


def gap_chart(gaps: Gaps, n_networks: int, charts: Charts) -> Html:
    """The chart, the sentence that reads it, and what the words in it mean."""
    if not gaps:
        return note("No gap between training and validation loss: no network has a finite validation loss.")
    rule = (
        "The gap is the validation loss less the training loss. It counts as open from the first epoch after that of "
        f"the lowest validation loss from which on it stays wider than at that epoch by more than {MARGIN:.0%} of that "
        "loss. A training loss is a mean over the epoch, with dropout on, so that a gap may begin below zero."
    )
    missing = n_networks - len(gaps)
    left_out = f" Left out for want of a finite validation loss: {missing} of {n_networks} networks." if missing else ""
    zero = sum(not np.isfinite(widening(gap)).all() for gap in gaps.values())
    left_out += f" Not drawn, since a share of a loss of zero is not defined: {zero}." if zero else ""
    caption = (
        "By how much the gap is wider than at the lowest validation loss, as a share of that loss; over all networks, "
        "where a quarter of them or more trained."
    )
    place = charts.place("gap", gap_figure(gaps), "Gap between validation and training loss", caption)
    return join([place, el("p", gap_sentence(gaps)), note(rule + left_out)])


def gap_sentence(gaps: Gaps) -> str:
    """In how many networks the gap opened and when, and how wide it is at the best and at the last epoch."""
    opened = [gap.opened_at for gap in gaps.values() if gap.opened_at is not None]
    at_best = statistics.median(float(gap.gap[gap.epochs == gap.best_epoch][0]) for gap in gaps.values())
    at_last = statistics.median(gap.final for gap in gaps.values())
    if opened:
        when = f"at epoch {statistics.median(opened):g} in the median (from {min(opened)} to {max(opened)})"
        told = (
            f"The gap opened for good in {len(opened)} of {len(gaps)} networks, {when}: from there on training learnt "
            "what the validation rows do not share."
        )
    else:
        told = f"The gap opened for good in none of {len(gaps)} networks."
    return (
        f"{told} Its median is {formats.significant(at_best, 3)} at the epoch of the lowest validation loss and "
        f"{formats.significant(at_last, 3)} at the last."
    )


def widening(gap: Gap) -> np.ndarray:
    """How much wider the gap is at each epoch than at that of the lowest validation loss, as a share of that loss."""
    best = int(np.flatnonzero(gap.epochs == gap.best_epoch)[0])
    lowest = abs(float(gap.val_loss[best]))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.true_divide(gap.gap - gap.gap[best], lowest))


def gap_figure(gaps: Gaps) -> Figure:
    """How the gap widens around each network's best epoch, above; below, how many networks it is seen in, and open in.

    The epochs of a network are counted from that of its lowest validation loss: counted from the first, the networks
    that train on for long would be another choice of folds than all, and the lines would show that choice.
    """
    each = [gap for gap in gaps.values() if np.isfinite(widening(gap)).all()]
    first = min((int(gap.epochs[0]) - gap.best_epoch for gap in each), default=0)
    last = max((int(gap.epochs[-1]) - gap.best_epoch for gap in each), default=0)
    table = np.full((len(each), last - first + 1), np.nan)
    for row, gap in zip(table, each):
        row[gap.epochs - gap.best_epoch - first] = widening(gap)
    seen = np.isfinite(table).sum(axis=0)
    there = np.flatnonzero(seen)
    epochs = there + first
    low, middle, high = np.nanquantile(table[:, there], (0.25, 0.5, 0.75), axis=0) if each else np.empty((3, 0))
    opened_after = [gap.opened_at - gap.best_epoch for gap in each if gap.opened_at is not None]
    opened = np.array([sum(after <= epoch for after in opened_after) for epoch in epochs])
    many = epochs[4 * seen[there] >= len(each)]
    counts = {"yaxis": "y2", "hovertemplate": "%{y}"}
    shade = {"fill": "tonexty", "fillcolor": BAND, "hovertemplate": "from %{y:.1%}"}
    traces = [
        _line("Upper quartile", epochs, high, {"width": 0}, showlegend=False),
        _line("Middle half", epochs, low, {"width": 0}, legendrank=2, **shade),
        _line("Median", epochs, middle, {"color": MEDIAN, "width": 2}, legendrank=1),
        _line("Counts as open", epochs, np.full(len(epochs), MARGIN), DOTTED, legendrank=3),
        _line("Networks", epochs, seen[there], _step(NETWORKS), legendrank=4, **counts),
        _line("Networks with an open gap", epochs, opened, _step(OPENED), legendrank=5, **counts),
    ]
    layout = {
        "xaxis": {
            "anchor": "y2",
            "title": {"text": "epochs from the lowest validation loss"},
            "range": [float(many[0]) - 0.3, float(many[-1]) + 0.3] if len(many) > 1 else None,
        },
        "yaxis": {"domain": [0.4, 1.0], "title": {"text": "widening"}, "tickformat": ".0%", "zeroline": True},
        "yaxis2": {"domain": [0.0, 0.26], "title": {"text": "networks"}, "rangemode": "tozero", "nticks": 4},
        "hovermode": "x unified",
        "margin": {"l": 56, "r": 8, "t": 8, "b": 40},
        "legend": {"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom", "traceorder": "normal"},
    }
    return {"data": traces, "layout": layout, "height": 380}


def _step(color: str) -> dict[str, object]:
    return {"color": color, "width": 1.6, "shape": "hv"}


def _line(
    name: str, epochs: np.ndarray, values: np.ndarray, line: Mapping[str, object], **more: object
) -> dict[str, object]:
    own = {"type": "scatter", "mode": "lines", "name": name, "x": epochs.astype(np.float64), "line": dict(line)}
    return own | {"y": np.asarray(values, dtype=np.float64), "hovertemplate": "%{y:.1%}"} | more
