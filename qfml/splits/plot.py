"""A picture of the folds along time."""

from __future__ import annotations

from typing import Any

import numpy as np

from qfml.splits.base import Splitter
from qfml.splits.timeline import Timeline

__all__ = ["plot_folds"]

# from a palette that colour-blind readers can tell apart (Okabe and Ito)
COLOURS = {"train": "#0072B2", "purged": "#D55E00", "embargoed": "#F0E442", "test": "#009E73"}


def plot_folds(splitter: Splitter, X: Any = None, *, ax: Any = None, time: Any = None, label_end: Any = None) -> Any:
    """Draw one line a fold, top to bottom: what trains, what is purged, what is embargoed, what is tested.

    A bar covers the decision times of its samples, each up to the next timestamp. Where samples of one timestamp fare
    differently (their labels end at different times), purged is drawn over train.

    Args:
        splitter: any splitter of this package.
        X: what carries the times, as in `split`; or `time` and `label_end` by keyword.
        ax: matplotlib axes to draw on; a new figure is made if not given.
        time: (N,) decision times, if X does not carry them.
        label_end: (N,) moments the labels are known, if X does not carry them.

    Returns:
        The axes.
    """
    timeline = Timeline.of(X, time=time, label_end=label_end, label_horizon=splitter.label_horizon)
    folds = splitter.folds(X, time=time, label_end=label_end)
    if ax is None:
        from matplotlib import pyplot as plt

        _, ax = plt.subplots(figsize=(10, 1.2 + 0.32 * len(folds)), layout="constrained")
    stamp_of_row = np.empty(len(timeline), dtype=np.int64)
    order = slice(None) if timeline.order is None else timeline.order
    stamp_of_row[order] = np.repeat(np.arange(timeline.n_stamps), timeline.n_at_stamp)
    edges = _edges(timeline)
    for number, fold in enumerate(folds):
        state = np.full(timeline.n_stamps, -1)
        for code, kind in enumerate(COLOURS):
            state[stamp_of_row[getattr(fold, kind)]] = code
        starts = np.flatnonzero(np.diff(state, prepend=-2))
        stops = np.append(starts[1:], state.size)
        for code, (kind, colour) in enumerate(COLOURS.items()):
            bars = [(edges[i], edges[j] - edges[i]) for i, j in zip(starts, stops) if state[i] == code]
            ax.broken_barh(bars, (number - 0.4, 0.8), color=colour, linewidth=0, label=kind if number == 0 else None)
    ax.set_ylim(len(folds) - 0.5, -0.5)
    ax.set_xlim(edges[0], edges[-1])
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.set_ylabel("fold")
    if timeline.is_datetime:
        ax.xaxis_date()
    else:
        ax.set_xlabel("time")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(COLOURS), frameon=False)
    return ax


def _edges(timeline: Timeline) -> np.ndarray:
    """Where the bar of each stamp starts, and where the last one ends, in matplotlib's numbers."""
    stamps = timeline.stamps.astype(np.float64)
    width = np.median(np.diff(stamps)) if stamps.size > 1 else 1.0
    edges = np.append(stamps, stamps[-1] + width)
    return edges / 86_400e9 if timeline.is_datetime else edges  # matplotlib counts days since 1970
