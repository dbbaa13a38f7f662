"""Validation minus training loss of all networks along the epochs, and in how many of them the gap opened, and when."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from qfml.engine.overfitting import Gap, train_validation_gap
from qfml.report import formats
from qfml.report.charts import Figure
from qfml.report.layout import Charts, note
from qfml.report.markup import Html, el, join

__all__ = ["Gaps", "gap_chart", "gap_figure", "gap_sentence", "network_gaps"]

Gaps = Mapping[tuple[int, int], Gap]

MARGIN = 0.05  # how much more gap counts as open, as a share of the lowest validation loss
BAND, MEDIAN, OPENED, TRAINING = "rgba(11,79,138,0.18)", "#0b4f8a", "#c8553d", "#7d848c"


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
        f"A gap counts as open from the first epoch after that of the lowest validation loss from which on it stays "
        f"wider than at that epoch by more than {formats.percent(MARGIN)} of that loss. A training loss is a mean over "
        "the epoch, with dropout on, so that a gap may begin below zero. Networks leave the chart as they stop."
    )
    missing = n_networks - len(gaps)
    left_out = f" Left out for want of a finite validation loss: {missing} of {n_networks} networks." if missing else ""
    place = charts.place(
        "gap", gap_figure(gaps), "Gap between validation and training loss", "Over all networks, by epoch."
    )
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


def gap_figure(gaps: Gaps) -> Figure:
    """Median and quartiles of the gap above; below, how many networks train on and in how many the gap is open."""
    each = list(gaps.values())
    table = np.full((len(each), max(int(gap.epochs[-1]) for gap in each)), np.nan)
    for row, gap in zip(table, each):
        row[gap.epochs - 1] = gap.gap
    training = np.isfinite(table).sum(axis=0)
    epochs = np.flatnonzero(training) + 1
    low, middle, high = np.nanquantile(table[:, epochs - 1], (0.25, 0.5, 0.75), axis=0)
    opened_at = [gap.opened_at for gap in each if gap.opened_at is not None]
    opened = np.array([sum(at <= epoch for at in opened_at) for epoch in epochs])
    traces = [
        _line("Upper quartile", epochs, high, {"width": 0}, "%{y:.4g}", showlegend=False),
        _line(
            "Middle half", epochs, low, {"width": 0}, "from %{y:.4g}", fill="tonexty", fillcolor=BAND, legendrank=1002
        ),
        _line("Median gap", epochs, middle, {"color": MEDIAN, "width": 2}, "%{y:.4g}", legendrank=1001),
        _line("Training", epochs, training[epochs - 1], _step(TRAINING), "%{y} networks", yaxis="y2"),
        _line("Gap open", epochs, opened, _step(OPENED), "%{y} networks", yaxis="y2"),
    ]
    layout = {
        "xaxis": {"anchor": "y2", "title": {"text": "epoch"}, "rangemode": "nonnegative"},
        "yaxis": {"domain": [0.42, 1.0], "title": {"text": "loss"}, "zeroline": True},
        "yaxis2": {"domain": [0.0, 0.28], "title": {"text": "networks"}, "rangemode": "tozero", "nticks": 4},
        "hovermode": "x unified",
        "margin": {"l": 56, "r": 8, "t": 8, "b": 40},
    }
    return {"data": traces, "layout": layout, "height": 360}


def _step(color: str) -> dict[str, object]:
    return {"color": color, "width": 1.6, "shape": "hv"}


def _line(
    name: str, epochs: np.ndarray, values: np.ndarray | Sequence[float], line: Mapping[str, object], hover: str,
    **more: object,
) -> dict[str, object]:  # fmt: skip
    own = {"type": "scatter", "mode": "lines", "name": name, "x": epochs.astype(np.float64)}
    return own | {"y": np.asarray(values, dtype=np.float64), "line": dict(line), "hovertemplate": hover} | more
