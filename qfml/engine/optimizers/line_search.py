"""Line search for the strong Wolfe conditions, written as a generator of trial steps.

A search knows nothing of parameters: it yields a step length and is sent the loss there and its slope along the
direction. Many searches can so share their evaluations, each with its own step length.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import NamedTuple


class Point(NamedTuple):
    """A step length, the loss there and its derivative in the step length."""

    step: float
    loss: float
    slope: float


Search = Generator[float, tuple[float, float], float]


def cubic_minimum(a: Point, b: Point, lowest: float, highest: float) -> float:
    """Minimiser of the cubic through two points with their slopes, within [lowest, highest]; their middle if none.

    References:
        Nocedal, Wright (2006), "Numerical Optimization", equation 3.59.

    Example:
        >>> cubic_minimum(Point(0.0, 1.0, -2.0), Point(3.0, 4.0, 4.0), 0.0, 3.0)  # (x - 1)^2
        1.0
    """
    if a.step > b.step:
        a, b = b, a
    middle = (lowest + highest) / 2
    if not all(map(math.isfinite, (*a, *b))) or a.step == b.step:
        return middle
    d1 = a.slope + b.slope - 3 * (a.loss - b.loss) / (a.step - b.step)
    discriminant = d1 * d1 - a.slope * b.slope
    if not 0 <= discriminant < math.inf:
        return middle
    d2 = math.sqrt(discriminant)
    denominator = b.slope - a.slope + 2 * d2
    if denominator == 0:
        return middle
    return min(max(b.step - (b.step - a.step) * ((b.slope + d2 - d1) / denominator), lowest), highest)


def strong_wolfe(
    start: Point, first: float, most: int, c1: float = 1e-4, c2: float = 0.9, shortest: float = 0.0
) -> Search:
    """A step length t with loss(t) <= loss(0) + c1 t slope(0) and |slope(t)| <= c2 |slope(0)|.

    A loss that is not finite counts as too high.

    Args:
        start: the point of step 0; its slope is negative.
        first: first trial.
        most: number of evaluations after the first.
        c1: sufficient decrease, of the slope at the start.
        c2: curvature, of the slope at the start.
        shortest: a bracket shorter than this is not divided any further.

    Yields:
        Step lengths; the loss and the slope there are to be sent back.

    Returns:
        The accepted step length, 0 if none was found to lower the loss. After `most` evaluations it is the best so far,
        which may miss a condition.

    References:
        Nocedal, Wright (2006), "Numerical Optimization", algorithms 3.5 and 3.6, with cubic interpolation kept away
        from the ends of the bracket.

    Example:
        >>> search = strong_wolfe(Point(0.0, 1.0, -2.0), first=3.0, most=10)  # (x - 1)^2
        >>> next(search)
        3.0
        >>> search.send((4.0, 4.0))
        1.0
    """
    step, before = first, start
    for i in range(most):
        point = yield from _at(step)
        if _too_high(point, start, c1) or (i > 0 and point.loss >= before.loss):
            return (yield from _zoom(before, point, start, most - i, c1, c2, shortest))
        if abs(point.slope) <= -c2 * start.slope:
            return point.step
        if point.slope >= 0:
            return (yield from _zoom(point, before, start, most - i, c1, c2, shortest))
        step = cubic_minimum(before, point, step + 0.01 * (step - before.step), 10 * step)
        before = point
    point = yield from _at(step)
    return point.step if point.loss <= before.loss else before.step


def _at(step: float) -> Generator[float, tuple[float, float], Point]:
    loss, slope = yield step
    finite = math.isfinite(loss) and math.isfinite(slope)
    return Point(step, loss, slope) if finite else Point(step, math.inf, math.inf)


def _too_high(point: Point, start: Point, c1: float) -> bool:
    return point.loss > start.loss + c1 * point.step * start.slope


def _zoom(low: Point, high: Point, start: Point, most: int, c1: float, c2: float, shortest: float) -> Search:
    """Divide the bracket of two points until one in it fulfils both conditions (algorithm 3.6).

    `low` has the lowest loss of the points with sufficient decrease, and the loss falls from there towards `high`.
    """
    near_end = False
    for _ in range(most):
        left, right = sorted((low.step, high.step))
        if right - left <= shortest:
            break
        step, near_end = _inside(cubic_minimum(low, high, left, right), left, right, near_end)
        point = yield from _at(step)
        if _too_high(point, start, c1) or point.loss >= low.loss:
            high = point
            continue
        if abs(point.slope) <= -c2 * start.slope:
            return point.step
        if point.slope * (high.step - low.step) >= 0:
            high = low
        low = point
    return low.step


def _inside(step: float, left: float, right: float, near_end: bool) -> tuple[float, bool]:
    """A trial close to an end of the bracket, twice in a row or at the end itself, moves a tenth of it inward."""
    margin = 0.1 * (right - left)
    if min(right - step, step - left) >= margin:
        return step, False
    if not near_end and left < step < right:
        return step, True
    return (right - margin if right - step < step - left else left + margin), False
