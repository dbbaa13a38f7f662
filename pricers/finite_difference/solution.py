"""Reading prices and their derivatives from two grids, with the error that their difference tells."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pricers.finite_difference.grids import first_difference, interpolate, second_difference

__all__ = ["Solution", "read"]

ROUNDING = 1e-11  # of the largest value near: what the sums of a solve may lose in double precision
NEIGHBOURS = 2  # coarse nodes on either side among which the largest error is taken: it may vanish at one of them


@dataclass(frozen=True)
class Solution:
    """Values today in units of `scale`, on a grid and on every second node of it."""

    nodes: Tensor  # of the fine grid, shape `*problems n + 1`
    fine: Tensor  # values on it, same shape
    coarse: Tensor  # values of the coarse grid, shape `*problems n / 2 + 1`
    query: Tensor  # today's spot on the grid, shape `*batch`
    slope: Tensor  # derivative of `query` by the spot
    scale: Tensor  # the strike
    halved_time: Tensor | None = (
        None  # values on the fine grid by half as many steps, where these need a bound of their own
    )


def read(solution: Solution, order: int = 0) -> tuple[Tensor, Tensor]:
    """The value, or its first or second derivative by the spot, extrapolated, and the error bound of it.

    Where both grids have an error $c h^2$, a third of their difference is the error of the finer one.
    """
    nodes, fine = solution.nodes, solution.fine
    coarse_nodes, coarse = nodes[..., ::2], solution.coarse
    weights = first_difference if order == 1 else second_difference
    if order:
        fine, coarse = weights(nodes).apply(fine), weights(coarse_nodes).apply(coarse)
        nodes, coarse_nodes = nodes[..., 1:-1], coarse_nodes[..., 1:-1]
    common = fine[..., 1::2] if order else fine[..., ::2]
    error = (common - coarse) / 3.0
    query = solution.query.unsqueeze(-1)
    value = (interpolate(nodes, fine, query) + interpolate(coarse_nodes, error, query)).squeeze(-1)
    with torch.no_grad():
        spread = error.abs() + ROUNDING * common.abs()
        if solution.halved_time is not None:
            halved = (
                weights(solution.nodes).apply(solution.halved_time)[..., 1::2]
                if order
                else solution.halved_time[..., ::2]
            )
            spread = spread + (common - halved).abs()
        spread = _largest_near(spread)
        bound = interpolate(coarse_nodes, spread, query, limited=True).squeeze(-1).abs()
    factor = solution.scale * solution.slope**order
    return value * factor, bound * factor.detach().abs()


def _largest_near(errors: Tensor) -> Tensor:
    rows = errors.reshape(-1, 1, errors.shape[-1])
    width = 2 * NEIGHBOURS + 1
    return torch.nn.functional.max_pool1d(rows, width, stride=1, padding=NEIGHBOURS).reshape(errors.shape)
