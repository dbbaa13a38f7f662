"""Grids in space and time, difference weights on them, and reading a value between the nodes."""

# torch leaves many of its functions without types
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Bands", "Segment", "first_difference", "interpolate", "second_difference", "stretched", "time_segments"]


class Bands(NamedTuple):
    """Weights of the left neighbour, the node itself and the right neighbour, at the inner nodes."""

    lower: Tensor
    diagonal: Tensor
    upper: Tensor

    def times(self, factor: Tensor | float) -> Bands:
        """All weights multiplied by `factor`."""
        return Bands(self.lower * factor, self.diagonal * factor, self.upper * factor)

    def plus(self, other: Bands) -> Bands:
        """Sum of two operators."""
        return Bands(self.lower + other.lower, self.diagonal + other.diagonal, self.upper + other.upper)

    def apply(self, values: Tensor) -> Tensor:
        """The operator on values at all nodes: its result at the inner ones."""
        return self.lower * values[..., :-2] + self.diagonal * values[..., 1:-1] + self.upper * values[..., 2:]


def first_difference(nodes: Tensor) -> Bands:
    """Central weights of the first derivative, exact for parabolas on any grid."""
    left, right = nodes[..., 1:-1] - nodes[..., :-2], nodes[..., 2:] - nodes[..., 1:-1]
    both = left + right
    return Bands(-right / (left * both), (right - left) / (left * right), left / (right * both))


def second_difference(nodes: Tensor) -> Bands:
    """Central weights of the second derivative, exact for parabolas on any grid."""
    left, right = nodes[..., 1:-1] - nodes[..., :-2], nodes[..., 2:] - nodes[..., 1:-1]
    both = left + right
    return Bands(2.0 / (left * both), -2.0 / (left * right), 2.0 / (right * both))


def stretched(
    low: Tensor,
    high: Tensor,
    n_intervals: int,
    centres: Tensor,
    widths: Tensor,
    anchor: Tensor,
    second_anchor: Tensor | None = None,
) -> Tensor:
    r"""Nodes that are dense around some centres, with `anchor` (and `second_anchor`) on a node of every second grid.

    Equal steps in $\xi(x) = \sum_k \operatorname{arsinh}((x - c_k) / w_k)$. The ends give way to the anchors by up to
    one step; where `second_anchor` is an end it is met exactly. Halving `n_intervals` gives every second node.

    Args:
        low: lower end, shape `*batch`.
        high: upper end.
        n_intervals: even.
        centres: shape `*batch n_centres`.
        widths: distance from its centre at which a concentration fades, same shape.
        anchor: point that shall be a node.
        second_anchor: another one. Closer to the first than half a step it is not met unless it is an end.

    Returns:
        Shape `*batch n_intervals + 1`, ascending, without gradient.

    References:
        Tavella and Randall (2000), Pricing Financial Instruments: The Finite Difference Method, section 5.2.
    """

    def stretch(x: Tensor) -> Tensor:
        return ((x.unsqueeze(-1) - centres.unsqueeze(-2)) / widths.unsqueeze(-2)).asinh().sum(-1)

    with torch.no_grad():
        ends = torch.stack([low, high, anchor, anchor if second_anchor is None else second_anchor], -1)
        start, end, first, second = stretch(ends).unbind(-1)
        n_coarse = n_intervals // 2
        step = (end - start) / n_coarse
        gap = second - first
        n_between = (gap.abs() / step).floor()
        step = torch.where(n_between > 0, gap.abs() / n_between.clamp(min=1.0), step)
        origin = first
        if second_anchor is not None:  # with no room for a node between the two, the end is the one that is met
            origin = second
        offset = -((origin - start) / step).round()
        if second_anchor is not None:
            offset = torch.where(second_anchor == high, -float(n_coarse), offset)
        count = torch.arange(n_intervals + 1, dtype=low.dtype, device=low.device) / 2.0
        xi = origin.unsqueeze(-1) + (offset.unsqueeze(-1) + count) * step.unsqueeze(-1)
        # xi is concave or convex by parts, so bisection; each arsinh alone bounds the root.
        bounds = torch.stack(
            [c + w * torch.sinh(xi / centres.shape[-1]) for c, w in zip(centres.split(1, -1), widths.split(1, -1))]
        )
        left, right = bounds.amin(0), bounds.amax(0)
        for _ in range(60 if centres.shape[-1] > 1 else 0):
            middle = 0.5 * (left + right)
            below = stretch(middle) < xi
            left, right = torch.where(below, middle, left), torch.where(below, right, middle)
        return 0.5 * (left + right)


class Segment(NamedTuple):
    """The steps between two contract dates, backwards in time."""

    start: Tensor  # the earlier date, shape `*batch`
    end: Tensor  # the later date
    fractions: tuple[float, ...]  # times left to `start`: 0 at the later date, 1 at the earlier one

    def steps(self) -> list[tuple[Tensor, Tensor]]:
        """Later and earlier time of each step."""
        length = self.end - self.start
        times = [self.end - length * fraction for fraction in self.fractions]
        return list(pairwise(times))


def time_segments(dates: Tensor, n_steps: int, refinement: int = 1, least: int = 2) -> list[Segment]:
    """From the last date back to today, by quadratically growing steps after each date.

    The solution has a kink or a jump right before each date, which smooths like the square root of the time gone by:
    equal steps of that root keep second order, and a refinement cuts each step of the root into equal parts.

    Args:
        dates: ascending, shape `*batch n_dates`; today, 0, is not among them.
        n_steps: steps in all, shared out by length.
        refinement: parts into which each step of the root is cut.
        least: number of steps between two dates, before refinement, however close they are.

    References:
        Reisinger and Whitley (2014), The impact of a natural time change on the convergence of the Crank-Nicolson
        scheme.
    """
    knots = torch.cat([torch.zeros_like(dates[..., :1]), dates], -1)
    with torch.no_grad():
        shares = (knots.diff(dim=-1) / knots[..., -1:]).reshape(-1, dates.shape[-1]).amax(0).tolist()
    segments: list[Segment] = []
    for index in range(dates.shape[-1] - 1, -1, -1):
        count = refinement * max(least, round(n_steps * shares[index])) if shares[index] > 0 else 0
        fractions = tuple((i / count) ** 2 for i in range(count + 1)) if count else (0.0,)
        segments.append(Segment(knots[..., index], knots[..., index + 1], fractions))
    return segments


def interpolate(nodes: Tensor, values: Tensor, points: Tensor, limited: bool = False) -> Tensor:
    """Cubic through the four nodes around each point; outside, along the line through the last two.

    Args:
        nodes: ascending, shape `*batch n`.
        values: at the nodes.
        points: shape `*batch n_points`.
        limited: keep each result between its two neighbours, so that monotone values stay monotone.
    """
    shape = torch.broadcast_shapes(nodes.shape[:-1], values.shape[:-1], points.shape[:-1])
    n = nodes.shape[-1]
    if nodes.numel() == n and values.numel() == n:  # one grid answers all
        flat = _interpolate(nodes.reshape(n), values.reshape(n), points.reshape(-1), limited)
        return flat.reshape(*shape, points.shape[-1])
    points = points.expand(*shape, points.shape[-1])
    return _interpolate(nodes.expand(*shape, n), values.expand(*shape, n), points, limited)


def _interpolate(nodes: Tensor, values: Tensor, points: Tensor, limited: bool) -> Tensor:
    n = nodes.shape[-1]
    right = torch.searchsorted(nodes.detach().contiguous(), points.detach().contiguous()).clamp(1, n - 1)
    outside = (points < nodes[..., :1]) | (points > nodes[..., -1:])
    first = (right - 2).clamp(0, n - 4)
    x = [nodes.gather(-1, first + k) for k in range(4)]
    y = [values.gather(-1, first + k) for k in range(4)]
    result = torch.zeros_like(points)
    for k in range(4):
        weight = torch.ones_like(points)
        for j in range(4):
            if j != k:
                weight = weight * (points - x[j]) / (x[k] - x[j])
        result = result + weight * y[k]
    x_left, x_right = nodes.gather(-1, right - 1), nodes.gather(-1, right)
    y_left, y_right = values.gather(-1, right - 1), values.gather(-1, right)
    if limited:
        result = torch.maximum(torch.minimum(result, torch.maximum(y_left, y_right)), torch.minimum(y_left, y_right))
    line = y_left + (y_right - y_left) * (points - x_left) / (x_right - x_left)
    return torch.where(outside, line, result)
