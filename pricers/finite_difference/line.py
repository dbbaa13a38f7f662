"""One space dimension: Crank-Nicolson on a stretched grid, with early exercise, barriers and dividends."""

# torch leaves many of its functions without types
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pricers.finite_difference.grids import (
    Bands,
    Segment,
    first_difference,
    interpolate,
    second_difference,
    time_segments,
)
from pricers.finite_difference.tridiagonal import multiply, solve

__all__ = ["BarrierSide", "Curve", "Line", "Variance", "folded", "on_date", "solve_line", "steps_of", "with_ends"]

Curve = Callable[[Tensor], Tensor]
Variance = Tensor | Callable[[Tensor, Tensor], Tensor]
BarrierSide = Literal["low", "high", "below", "above"]
JUMP_STEPS = 4  # least number of steps after a date on which the value jumps


@dataclass(frozen=True)
class Line:
    r"""A claim on one asset, in units of its strike, on the coordinate $s = S / K$ or, moving, $s = F(t, T) / K$.

    What is solved for is the value discounted to today, $w$, which needs no interest:

    $$w_t + \tfrac12 \sigma^2 s^2 w_{ss} + \mu s w_s = 0$$

    Args:
        payoff: at expiry at nodes, not discounted.
        dates: contract dates, ascending, the last is the expiry; shape `*batch n_dates`.
        variance: squared local volatility at spots over strike and a time (shapes `*batch nodes` and `*batch`), or one
            number for all spots, shape `*batch`.
        discount: today's value of one unit of cash.
        growth: forward over spot.
        moving: whether the coordinate is the forward to expiry, in which there is no drift.
        obstacle: exercise value at spots over strike; None where it is held to expiry.
        exercise: "always", or for each date whether exercise is allowed there, shape `*batch n_dates`.
        barrier: "low" or "high" end of the grid that knocks out at any time, "below" or "above" for an inner level
            that knocks out on dates.
        level: the barrier over strike for dates, shape `*batch`.
        knocked: for each date whether the barrier is looked at, shape `*batch n_dates`.
        rebate: paid over strike when knocked out, shape `*batch`.
        dividends: cash over strike that leaves the spot on each date, shape `*batch n_dates`.
    """

    payoff: Callable[[Tensor], Tensor]
    dates: Tensor
    variance: Variance
    discount: Curve
    growth: Curve
    moving: bool = True
    obstacle: Callable[[Tensor], Tensor] | None = None
    exercise: Tensor | Literal["always"] | None = None
    barrier: BarrierSide | None = None
    level: Tensor | None = None
    knocked: Tensor | None = None
    rebate: Tensor | None = None
    dividends: Tensor | None = None

    def spots(self, nodes: Tensor, time: Tensor) -> Tensor:
        """Spot over strike at the nodes."""
        if not self.moving:
            return nodes
        return nodes * (self.growth(time) / self.growth(self.dates[..., -1])).unsqueeze(-1)

    def edge(self, time: Tensor) -> Tensor | None:
        """Discounted value on the barrier that ends the grid."""
        if self.barrier not in ("low", "high") or self.rebate is None:
            return None
        return (self.rebate * self.discount(time)).unsqueeze(-1)


def solve_line(line: Line, nodes: Tensor, n_steps: int, refinement: int = 1) -> Tensor:
    """Value today at the nodes, of shape `*batch nodes`."""
    expiry = line.dates[..., -1]
    values = line.payoff(nodes) * line.discount(expiry).unsqueeze(-1)
    segments = time_segments(line.dates, n_steps, refinement, 2 if line.knocked is None else JUMP_STEPS)
    first, second = first_difference(nodes), second_difference(nodes)
    inner = nodes[..., 1:-1]
    diffusion, drift_weights = second.times(0.5 * inner**2), first.times(inner)
    fixed: Bands | None = None
    after_expiry = True
    for index, segment in zip(range(len(segments) - 1, -1, -1), segments):
        values = on_date(line, nodes, values, segment.end, index)
        jumps = line.knocked is not None or after_expiry
        after_expiry = after_expiry and segment.fractions == (0.0,)  # no step between two dates of one day
        for later, earlier, implicitness in steps_of(segment, jumps):
            length = later - earlier
            if fixed is None or not line.moving or callable(line.variance):
                fixed = _operator(line, nodes, diffusion, drift_weights, later, earlier)
            values = _step(line, nodes, values, fixed, later, earlier, length.unsqueeze(-1), implicitness)
    return values


def steps_of(segment: Segment, jumps: bool, most: int = 4) -> list[tuple[Tensor, Tensor, float]]:
    """Later time, earlier time and weight of the new time level.

    After a jump the first steps are made of two implicit halves each (Rannacher, 1984): one step in four, `most` of
    them at most. As the steps start tiny, that is short.
    """
    steps: list[tuple[Tensor, Tensor, float]] = []
    damped = min(most, max(1, len(segment.fractions) // 4)) if jumps else 0
    for number, (later, earlier) in enumerate(segment.steps()):
        if number < damped:
            middle = 0.5 * (later + earlier)
            steps += [(later, middle, 1.0), (middle, earlier, 1.0)]
        else:
            steps.append((later, earlier, 0.5))
    return steps


def _operator(
    line: Line, nodes: Tensor, diffusion: Bands, drift_weights: Bands, later: Tensor, earlier: Tensor
) -> Bands:
    """The space operator at the middle of a step."""
    variance = line.variance
    if callable(variance):
        middle = 0.5 * (later + earlier)
        local = variance(line.spots(nodes[..., 1:-1], middle), middle)
    else:
        local = variance.unsqueeze(-1)
    operator = diffusion.times(local)
    if not line.moving:
        length = later - earlier
        empty = length == 0
        drift = (line.growth(later) / line.growth(earlier)).log() / torch.where(empty, 1.0, length)
        operator = operator.plus(drift_weights.times(torch.where(empty, 0.0, drift).unsqueeze(-1)))
    return operator


def folded(bands: Bands, nodes: Tensor, low_given: bool, high_given: bool) -> Bands:
    """The operator on the inner nodes alone where the value is linear in the spot at an end that is not given."""
    lower, diagonal, upper = torch.broadcast_tensors(*bands)
    if not low_given:
        ratio = (nodes[..., 1:2] - nodes[..., :1]) / (nodes[..., 2:3] - nodes[..., 1:2])
        outer = lower[..., :1]
        diagonal = torch.cat([diagonal[..., :1] + outer * (1.0 + ratio), diagonal[..., 1:]], -1)
        upper = torch.cat([upper[..., :1] - outer * ratio, upper[..., 1:]], -1)
    if not high_given:
        ratio = (nodes[..., -1:] - nodes[..., -2:-1]) / (nodes[..., -2:-1] - nodes[..., -3:-2])
        outer = upper[..., -1:]
        diagonal = torch.cat([diagonal[..., :-1], diagonal[..., -1:] + outer * (1.0 + ratio)], -1)
        lower = torch.cat([lower[..., :-1], lower[..., -1:] - outer * ratio], -1)
    return Bands(lower, diagonal, upper)


def _step(
    line: Line,
    nodes: Tensor,
    values: Tensor,
    operator: Bands,
    later: Tensor,
    earlier: Tensor,
    length: Tensor,
    implicitness: float,
) -> Tensor:
    r"""One step of the theta scheme, or its complementarity problem where exercise is allowed.

    $$(I - \theta h A)\,w^{new} = (I + (1 - \theta) h A)\,w^{old}$$
    """
    edge = line.edge(earlier)
    bands = folded(operator, nodes, line.barrier == "low", line.barrier == "high").times(-implicitness * length)
    lower, diagonal, upper = bands.lower, 1.0 + bands.diagonal, bands.upper
    rhs = values[..., 1:-1]
    if implicitness < 1.0:
        rhs = rhs + (1.0 - implicitness) * length * operator.apply(values)
    if edge is not None and line.barrier == "low":
        known = implicitness * length * operator.lower[..., :1] * edge
        rhs = torch.cat([rhs[..., :1] + known, rhs[..., 1:]], -1)
    elif edge is not None:
        known = implicitness * length * operator.upper[..., -1:] * edge
        rhs = torch.cat([rhs[..., :-1], rhs[..., -1:] + known], -1)
    if line.exercise == "always" and line.obstacle is not None:
        exercised = line.obstacle(line.spots(nodes, earlier)) * line.discount(earlier).unsqueeze(-1)
        inner = _complementary(lower, diagonal, upper, rhs, exercised[..., 1:-1])
    else:
        inner = solve(lower, diagonal, upper, rhs)
    return with_ends(line, nodes, inner, edge)


def with_ends(line: Line, nodes: Tensor, inner: Tensor, edge: Tensor | None) -> Tensor:
    """Values at all nodes: the given one on a barrier, else the line through the last two inner nodes."""

    def continued(far: slice, near: slice, nearer: slice) -> Tensor:
        ratio = (nodes[..., far] - nodes[..., near]) / (nodes[..., near] - nodes[..., nearer])
        return inner_at(near) + ratio * (inner_at(near) - inner_at(nearer))

    def inner_at(node: slice) -> Tensor:
        return torch.nn.functional.pad(inner, (1, 1))[..., node]

    shape = (*inner.shape[:-1], 1)
    if line.barrier == "low" and edge is not None:
        low = edge.expand(shape)
    else:
        low = continued(slice(0, 1), slice(1, 2), slice(2, 3))
    if line.barrier == "high" and edge is not None:
        high = edge.expand(shape)
    else:
        n = nodes.shape[-1]
        high = continued(slice(n - 1, n), slice(n - 2, n - 1), slice(n - 3, n - 2))
    return torch.cat([low, inner, high], -1)


def _complementary(lower: Tensor, diagonal: Tensor, upper: Tensor, rhs: Tensor, exercised: Tensor) -> Tensor:
    r"""Solution of $\min(M w - b,\ w - g) = 0$ by policy iteration.

    The set where exercise is best is found on detached values; the solution then comes from one differentiable solve
    with that set fixed, whose derivative is that of the solution (a node where both are best does not move it).

    References:
        Howard (1960), Dynamic Programming and Markov Processes; Reisinger and Witte (2012), On the use of policy
        iteration as an easy way of pricing American options, algorithm 2.1.
    """

    def policy_solve(stop: Tensor) -> Tensor:
        zero = torch.zeros((), dtype=rhs.dtype, device=rhs.device)
        return solve(
            torch.where(stop, zero, lower),
            torch.where(stop, zero + 1.0, diagonal),
            torch.where(stop, zero, upper),
            torch.where(stop, exercised, rhs),
        )

    with torch.no_grad():
        stop = solve(lower, diagonal, upper, rhs) < exercised
        for _ in range(lower.shape[-1]):
            values = policy_solve(stop)
            residual = multiply(lower, diagonal, upper, values) - rhs
            better = values - exercised < residual
            if bool((better == stop).all()):
                break
            stop = better
    return policy_solve(stop)


def on_date(line: Line, nodes: Tensor, values: Tensor, time: Tensor, index: int) -> Tensor:
    """What happens on a contract date, seen from right before it."""
    is_expiry = index == line.dates.shape[-1] - 1
    discount = line.discount(time).unsqueeze(-1)
    spots = line.spots(nodes, time)
    if line.dividends is not None:
        amount = line.dividends[..., index].unsqueeze(-1)
        paid = torch.minimum(amount, spots)
        after = interpolate(nodes, values, nodes - paid * nodes / spots, limited=True)
        values = torch.where(amount > 0, after, values)
    if line.obstacle is not None and not is_expiry:
        exercised = line.obstacle(spots) * discount
        if isinstance(line.exercise, Tensor):
            allowed = line.exercise[..., index].unsqueeze(-1)
            values = torch.where(allowed, torch.maximum(values, exercised), values)
        elif line.exercise == "always":
            values = torch.maximum(values, exercised)
    if line.knocked is not None and line.level is not None and line.rebate is not None:
        looked = line.knocked[..., index].unsqueeze(-1)
        values = torch.where(looked, _knocked_out(line, nodes, values, discount), values)
    return values


def _knocked_out(line: Line, nodes: Tensor, values: Tensor, discount: Tensor) -> Tensor:
    """Values where the level is not reached, the rebate beyond it, and the mean in the cell that holds the level."""
    assert line.level is not None
    assert line.rebate is not None
    middles = 0.5 * (nodes[..., 1:] + nodes[..., :-1])
    low = torch.cat([nodes[..., :1], middles], -1)
    high = torch.cat([middles, nodes[..., -1:]], -1)
    level = line.level.unsqueeze(-1)
    share_above = ((high - torch.minimum(torch.maximum(level, low), high)) / (high - low)).clamp(0.0, 1.0)
    alive = share_above if line.barrier == "below" else 1.0 - share_above
    return alive * values + (1.0 - alive) * line.rebate.unsqueeze(-1) * discount
