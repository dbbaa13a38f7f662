"""The sequential bootstrap: draws of labels that overlap less than independent draws would."""

from __future__ import annotations

from typing import Any

import numpy as np

from qfml.data.overlap import Bars, Spans, label_spans
from qfml.errors import ConfigError

__all__ = ["draw_probabilities", "sequential_bootstrap"]

Array = np.ndarray


def draw_probabilities(drawn: Any, time: Any, label_end: Any, *, group: Any = None, bars: Bars | None = None) -> Array:
    r"""Probability that each label comes next in a sequential bootstrap, given those drawn so far.

    $\delta_i = \bar u_i / \sum_k \bar u_k$ with $\bar u_i$ the mean over the bars of label i of $1 / (1 + c_s)$, and
    $c_s$ the number of drawn labels (repeats counted) on bar s.

    Args:
        drawn: rows drawn so far, with repeats.
        time: decision times, shape (N,).
        label_end: ends of the labels, shape (N,), each after its time.
        group: asset of each sample, shape (N,).
        bars: the bars, if they are not the distinct times and label ends.

    Returns:
        Float64, shape (N,), of sum 1.

    References:
        Lopez de Prado (2018), "Advances in Financial Machine Learning", section 4.5.

    Example:
        >>> draw_probabilities([1], [0, 2, 4], [3, 4, 6], bars=Bars(np.arange(7))) * 14
        array([5., 3., 6.])
    """
    spans = label_spans(time, label_end, group=group, bars=bars)
    rows = np.asarray(drawn, dtype=np.int64)
    count = Spans(spans.start[rows], spans.end[rows], spans.n_bars).count
    uniqueness = spans.sums(1 / (1 + count)) / spans.length
    return uniqueness / uniqueness.sum()


def sequential_bootstrap(
    time: Any,
    label_end: Any,
    *,
    seed: int | np.random.Generator,
    size: int | None = None,
    group: Any = None,
    bars: Bars | None = None,
) -> Array:
    """Draw labels with replacement, each with a probability that falls with its overlap with those drawn before.

    Every draw follows `draw_probabilities` exactly. Only the labels that overlap the one just drawn change, so a draw
    costs as much as there are such labels, plus the square root of the number of all.

    Args:
        time: decision times, shape (N,): datetimes or numbers, in any order.
        label_end: ends of the labels, shape (N,), each after its time.
        seed: seed or generator of the draws. Not defaulted.
        size: number of draws; N if omitted.
        group: asset of each sample, shape (N,).
        bars: the bars, if they are not the distinct times and label ends.

    Returns:
        Rows in the order drawn, int64, shape (size,).

    Raises:
        DataError: As `average_uniqueness`.

    References:
        Lopez de Prado (2018), "Advances in Financial Machine Learning", section 4.5.

    Example:
        >>> sequential_bootstrap([0, 2, 4], [3, 4, 6], seed=0, bars=Bars(np.arange(7))).shape
        (3,)
    """
    spans = label_spans(time, label_end, group=group, bars=bars)
    n = len(spans.start)
    size = n if size is None else size
    if size < 1:
        raise ConfigError(f"`size` must be at least 1 draw, got {size}")
    order = np.argsort(spans.start, kind="stable")
    ranked = Spans(spans.start[order], spans.end[order], spans.n_bars)
    return order[_draw(ranked, np.random.default_rng(seed).random(size))]


def _draw(spans: Spans, uniforms: Array) -> Array:
    """One draw per uniform number; the labels are sorted by their first bar."""
    start, end, length = spans.start, spans.end, spans.length
    # labels that may overlap label i lie in [first[i], last[i]): those after start before it ends, and all before
    # `first` have ended when it starts
    latest_end = np.maximum.accumulate(end)
    first, last = np.searchsorted(latest_end, start, side="right"), np.searchsorted(start, end, side="left")

    count = np.zeros(spans.n_bars)
    share = np.ones(spans.n_bars)  # 1 / (1 + count)
    width = max(1, int(len(start) ** 0.5))
    uniqueness = np.zeros((-(-len(start) // width), width))  # in blocks, so that a draw need not add up all of them
    flat = uniqueness.reshape(-1)
    flat[: len(start)] = 1.0
    blocks = uniqueness.sum(1)

    drawn = np.empty(len(uniforms), dtype=np.int64)
    for step, uniform in enumerate(uniforms):
        cumulative = blocks.cumsum()
        target = uniform * cumulative[-1]
        block = min(int(cumulative.searchsorted(target, side="right")), len(blocks) - 1)
        within = uniqueness[block].cumsum()
        rest = target - (cumulative[block - 1] if block else 0.0)
        label = min(
            block * width + int(within.searchsorted(rest, side="right")), block * width + width - 1, len(start) - 1
        )
        drawn[step] = label

        own = slice(start[label], end[label])
        count[own] += 1
        share[own] = 1 / (1 + count[own])
        lo, hi = first[label], last[label]
        low_bar, high_bar = start[lo], latest_end[hi - 1]
        sums = np.concatenate(((0.0,), share[low_bar:high_bar].cumsum()))
        flat[lo:hi] = (sums[end[lo:hi] - low_bar] - sums[start[lo:hi] - low_bar]) / length[lo:hi]
        touched = slice(lo // width, (hi - 1) // width + 1)
        blocks[touched] = uniqueness[touched].sum(1)
    return drawn
