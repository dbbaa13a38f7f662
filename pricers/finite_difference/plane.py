"""Two space dimensions, spot and variance: the modified Craig-Sneyd splitting of Heston's equation."""

# torch leaves many of its functions without types
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pricers.finite_difference.grids import Bands, first_difference, second_difference, time_segments
from pricers.finite_difference.line import JUMP_STEPS, Line, folded, on_date, steps_of, with_ends
from pricers.finite_difference.tridiagonal import multiply, reduction, solve
from pricers.models.heston import Heston

__all__ = ["solve_plane", "variance_nodes"]

CORRECTIONS = 5  # of the multiplier of early exercise in each step
RELAXATION = 1.7  # the answer to a correction falls short of it, for it spreads


def variance_nodes(model: Heston, expiry: Tensor, n_intervals: int) -> Tensor:
    r"""Nodes of the variance from 0, dense below its mean, equal steps of $\operatorname{arsinh}(v / 0.3 \bar v)$.

    The last lies in the exponential tail of the noncentral chi-square law of the variance.

    Returns:
        Shape `*problems n_intervals + 1`, without gradient.

    References:
        In 't Hout and Foulon (2010), eq. 2.2.
    """
    with torch.no_grad():
        kappa, theta, sigma, v0 = (x.detach().double() for x in (model.kappa, model.theta, model.sigma, model.v0))
        decay = torch.exp(-kappa * expiry.detach())
        tail = 0.5 * sigma**2 * (1.0 - decay) / kappa  # the density falls like exp(-v / tail)
        spread = (tail * (theta * (1.0 - decay) + 2.0 * v0 * decay)).sqrt()
        highest = torch.maximum(v0, theta) + 8.0 * spread + 12.0 * tail
        width = 0.3 * model.mean_variance(expiry).detach().double()
        steps = torch.linspace(0.0, 1.0, n_intervals + 1, dtype=expiry.dtype, device=expiry.device)
        return width.unsqueeze(-1) * torch.sinh((highest / width).asinh().unsqueeze(-1) * steps)


@dataclass(frozen=True)
class Operators:
    """The parts of the space operator on inner spots and all variances, `*problems n_variances n_spots`."""

    spot: Bands  # second and first derivative by the spot, ends folded in
    edge: Tensor  # weight of the given value on the barrier, zero where there is none
    variance: Tensor  # matrix of the derivatives by the variance
    mixed_spot: Bands
    mixed_variance: Tensor

    def along_spot(self, values: Tensor, edge: Tensor | float) -> Tensor:
        return multiply(*self.spot, values) + self.edge * edge

    def mixed(self, values: Tensor) -> Tensor:
        return self.mixed_variance @ multiply(*self.mixed_spot, values)


def _variance_matrices(model: Heston, variances: Tensor) -> tuple[Tensor, Tensor]:
    r"""Matrices of the derivatives by the variance alone, and of the one in the mixed term.

    $$\tfrac12 \sigma^2 v\,\partial_{vv} + \kappa (\theta - v)\,\partial_v, \qquad \rho \sigma v\,\partial_v$$

    At v = 0 the equation itself holds, with a one-sided derivative of second order; at the last node the second and
    the mixed derivative vanish and the drift looks inwards.
    """
    n = variances.shape[-1]
    kappa, theta, sigma, rho = (x.double().unsqueeze(-1) for x in (model.kappa, model.theta, model.sigma, model.rho))
    inner = variances[..., 1:-1]
    first, second = first_difference(variances), second_difference(variances)
    bands = second.times(0.5 * sigma**2 * inner).plus(first.times(kappa * (theta - inner)))
    left, right = variances[..., 1] - variances[..., 0], variances[..., 2] - variances[..., 1]
    both = left + right
    at_zero = torch.stack([-(left + both) / (left * both), both / (left * right), -left / (right * both)], -1)
    last = variances[..., -1:] - variances[..., -2:-1]
    outward = kappa * (theta - variances[..., -1:]) / last
    shape = bands.lower.shape[:-1]
    top = torch.nn.functional.pad((kappa * theta * at_zero).expand(*shape, 3), (0, n - 3))
    bottom = torch.nn.functional.pad(torch.cat([-outward, outward], -1).expand(*shape, 2), (n - 2, 0))
    return _matrix(bands, top, bottom), _matrix(
        first.times(rho * sigma * inner), torch.zeros_like(top), torch.zeros_like(top)
    )


def _matrix(bands: Bands, top: Tensor, bottom: Tensor) -> Tensor:
    """Dense rows of the inner nodes between a first and a last row."""
    lower, diagonal, upper = torch.broadcast_tensors(*bands)
    pad = torch.nn.functional.pad
    rows = pad(lower.diag_embed(), (0, 2)) + pad(diagonal.diag_embed(), (1, 1)) + pad(upper.diag_embed(), (2, 0))
    return torch.cat([top.unsqueeze(-2), rows, bottom.unsqueeze(-2)], -2)


def _operators(
    line: Line, model: Heston, nodes: Tensor, variances: Tensor, later: Tensor, earlier: Tensor
) -> Operators:
    inner = nodes[..., 1:-1]
    first = first_difference(nodes).times(inner)
    spot = second_difference(nodes).times(0.5 * inner**2 * variances.unsqueeze(-1))
    if not line.moving:
        length = later - earlier
        empty = length == 0
        drift = (line.growth(later) / line.growth(earlier)).log() / torch.where(empty, 1.0, length)
        spot = spot.plus(first.times(torch.where(empty, 0.0, drift).unsqueeze(-1)))
    low, high = line.barrier == "low", line.barrier == "high"
    edge = torch.zeros_like(spot.lower)
    if low:
        edge = torch.cat([spot.lower[..., :1], edge[..., 1:]], -1)
    elif high:
        edge = torch.cat([edge[..., :-1], spot.upper[..., -1:]], -1)
    along, mixed = _variance_matrices(model, variances)
    return Operators(folded(spot, nodes, low, high), edge, along, folded(first, nodes, low, high), mixed)


def solve_plane(
    line: Line, model: Heston, nodes: Tensor, variances: Tensor, n_steps: int, refinement: int = 1
) -> Tensor:
    """Value today of the contract on all nodes, shape `*problems n_variances n_spots`.

    Args:
        line: the contract, its batch axes followed by one of length 1 that stands for the variances.
        model: parameters that broadcast with the batch of problems.
        nodes: spots, shape `*problems 1 n_spots`.
        variances: shape `*problems n_variances`.
        n_steps: of the coarse grid in time.
        refinement: 1 or 2.
    """
    expiry = line.dates[..., -1]
    at_expiry = line.payoff(nodes) * line.discount(expiry).unsqueeze(-1)
    shape = torch.broadcast_shapes(at_expiry.shape, (*variances.shape, 1))
    values = at_expiry.expand(shape)
    pressure = torch.zeros_like(values[..., 1:-1])  # the multiplier of early exercise
    operators: Operators | None = None
    after_expiry = True
    segments = time_segments(line.dates, n_steps, refinement, 2 if line.knocked is None else JUMP_STEPS)
    for index, segment in zip(range(len(segments) - 1, -1, -1), segments):
        values = on_date(line, nodes, values, segment.end, index)
        steps = steps_of(segment, after_expiry or line.knocked is not None, most=2)
        after_expiry = after_expiry and not steps  # no step between two dates of one day
        for later, earlier, implicitness in steps:
            length = (later - earlier).unsqueeze(-1)
            if operators is None or not line.moving:
                operators = _operators(line, model, nodes, variances, later, earlier)
            old, new = line.edge(later), line.edge(earlier)
            theta = 1.0 if implicitness == 1.0 else _weight(model)
            step = Splitting(operators, length, theta, 0.0 if old is None else old, 0.0 if new is None else new)
            inner = values[..., 1:-1]
            inner = step.douglas(inner, pressure) if implicitness == 1.0 else step.craig_sneyd(inner, pressure)
            if line.exercise == "always" and line.obstacle is not None:
                exercised = line.obstacle(line.spots(nodes, earlier)) * line.discount(earlier).unsqueeze(-1)
                inner, pressure = step.exercise(inner, exercised[..., 1:-1], pressure)
            values = with_ends(line, nodes, inner, new)
    return values


class Splitting:
    """One step of an alternating direction scheme."""

    def __init__(
        self,
        operators: Operators,
        length: Tensor,
        theta: float,
        edge_old: Tensor | float,
        edge_new: Tensor | float,
    ) -> None:
        self.operators, self.length, self.theta = operators, length, theta
        self.edge_old, self.edge_new = edge_old, edge_new
        bands = operators.spot.times(-theta * length)
        self.bands = Bands(bands.lower, 1.0 + bands.diagonal, bands.upper)
        self.factors = reduction(*self.bands)
        matrix = operators.variance
        identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        self.inverse: Tensor = torch.linalg.inv(identity - theta * length * matrix)

    def respond(self, rhs: Tensor) -> Tensor:
        """Answer of the implicit stages to a right-hand side."""
        return self.inverse @ solve(*self.bands, rhs, self.factors)

    def douglas(self, values: Tensor, source: Tensor) -> Tensor:
        """Fully implicit in each direction: first order, damps all that is rough. For theta = 1."""
        operators, h = self.operators, self.length
        along_variance = operators.variance @ values
        start = values + h * (operators.mixed(values) + along_variance + operators.edge * self.edge_new + source)
        return self.inverse @ (solve(*self.bands, start, self.factors) - h * along_variance)

    def craig_sneyd(self, values: Tensor, source: Tensor) -> Tensor:
        """In 't Hout and Welfert (2009), eq. 1.4: second order for any weight of the mixed derivative."""
        operators, h, theta = self.operators, self.length, self.theta
        mixed = operators.mixed(values)
        along_spot = operators.along_spot(values, self.edge_old)
        along_variance = operators.variance @ values
        edge = theta * h * operators.edge * self.edge_new

        def implicit(start: Tensor) -> Tensor:
            first = solve(*self.bands, start - theta * h * along_spot + edge, self.factors)
            return self.inverse @ (first - theta * h * along_variance)

        start = values + h * (mixed + along_spot + along_variance + source)
        predicted = implicit(start)
        mixed_after = operators.mixed(predicted) - mixed
        change = (
            mixed_after
            + operators.along_spot(predicted, self.edge_new)
            - along_spot
            + operators.variance @ predicted
            - along_variance
        )
        return implicit(start + h * (theta * mixed_after + (0.5 - theta) * change))

    def exercise(self, values: Tensor, exercised: Tensor, pressure: Tensor) -> tuple[Tensor, Tensor]:
        r"""Raises the values of a step to the exercise value, by a multiplier $\lambda \ge 0$ acting where they meet.

        Ikonen and Toivanen (2004), eq. 17, set $\lambda$ once from the shortfall, as if its effect did not spread: of
        first order in time. Here the implicit stages answer to the change of $\lambda$, and the shortfall that is
        left is corrected again.
        """
        h = self.length
        moving = h > 0
        safe = torch.where(moving, h, 1.0)
        for _ in range(CORRECTIONS):
            raised = (pressure + RELAXATION * (exercised - values) / safe).clamp(min=0.0)
            raised = torch.where(moving, raised, pressure)
            values = values + self.respond(h * (raised - pressure))
            pressure = raised
        raised = (pressure + (exercised - values) / safe).clamp(min=0.0)
        return torch.maximum(values - h * pressure, exercised), torch.where(moving, raised, pressure)


def _weight(model: Heston) -> float:
    """Least weight for which the scheme is stable: In 't Hout and Mishra (2011), theorem 2.5."""
    correlation = float(model.rho.detach().abs().max())
    return max(1.0 / 3.0, 2.0 / 13.0 * (2.0 * correlation + 1.0))
