"""Smiles of total variance: the spline between quotes, and Dupire's local variance."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

__all__ = ["density_parts", "dupire_local_variance", "natural_spline", "refined", "spline_curvature"]

_solve = cast(Callable[[Tensor, Tensor], Tensor], torch.linalg.solve)  # torch states no type


def dupire_local_variance(
    log_moneyness: Tensor, total_variance: Tensor, slope: Tensor, curvature: Tensor, forward_variance: Tensor
) -> Tensor:
    r"""Local variance from the implied total variance $w(k, T) = \mathrm{vol}^2\,T$ and its derivatives.

    $$v = \frac{\partial_T w}{\left(1 - \frac{k w'}{2 w}\right)^2 - \frac{w'^2}{4}\left(\frac{1}{w} + \frac14\right) +
    \frac{w''}{2}}$$

    The denominator is the density of the log price over that of a normal: below 0 there is arbitrage.

    Args:
        log_moneyness: $k = \log(K / F)$.
        total_variance: $w$, above 0.
        slope: $\partial_k w$.
        curvature: $\partial_{kk} w$.
        forward_variance: $\partial_T w$ at constant $k$, 0 or more.

    Returns:
        Squared local volatility, annual, of the shape that the arguments broadcast to.

    References:
        Gatheral (2006), The Volatility Surface, eq. 1.10.

    >>> flat = [torch.tensor(x) for x in (0.3, 0.08, 0.0, 0.0, 0.04)]
    >>> dupire_local_variance(*flat)
    tensor(0.0400)
    """
    root, rest = density_parts(log_moneyness, total_variance, slope, curvature)
    return forward_variance / (root**2 + rest)


def density_parts(log_moneyness: Tensor, variance: Tensor, slope: Tensor, curvature: Tensor) -> tuple[Tensor, Tensor]:
    """Root of the squared term of Dupire's denominator, and the rest of it; arguments as `dupire_local_variance`."""
    root = 1.0 - 0.5 * log_moneyness * slope / variance
    return root, 0.5 * curvature - 0.25 * slope**2 * (1.0 / variance + 0.25)


def spline_curvature(knots: Tensor, values: Tensor) -> Tensor:
    """Second derivatives at the knots of the natural cubic spline: twice differentiable, straight at both ends.

    Args:
        knots: ascending, shape `*batch n`.
        values: what to interpolate, shape `*batch n`; batch axes broadcast.

    Returns:
        Shape `*batch n`.

    References:
        de Boor (1978), A Practical Guide to Splines, chapter IV.
    """
    slopes = values.diff(dim=-1) / knots.diff(dim=-1)
    if values.shape[-1] == 2:
        return torch.zeros_like(values + knots)
    width = knots.diff(dim=-1)
    matrix = torch.diag_embed(2.0 * (width[..., :-1] + width[..., 1:]))
    matrix = matrix + torch.diag_embed(width[..., 1:-1], offset=1) + torch.diag_embed(width[..., 1:-1], offset=-1)
    inner = _solve(matrix, 6.0 * slopes.diff(dim=-1).unsqueeze(-1)).squeeze(-1)
    return torch.nn.functional.pad(inner, (1, 1))


def natural_spline(knots: Tensor, values: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Natural cubic spline at `x`, with its first and second derivative.

    Args:
        knots: ascending, shape `*batch n`.
        values: at the knots, shape `*batch n`.
        x: between the first and the last knot, shape `*batch m`; batch axes broadcast.

    Returns:
        Value, slope and curvature, each of shape `*batch m`.

    >>> knots = torch.tensor([0.0, 1.0, 2.0])
    >>> natural_spline(knots, 3.0 * knots, torch.tensor([0.5, 1.5]))
    (tensor([1.5000, 4.5000]), tensor([3., 3.]), tensor([0., 0.]))
    """
    curvature = spline_curvature(knots, values)
    x, _ = torch.broadcast_tensors(x, curvature[..., :1])
    knots, values, curvature = (part.expand(*x.shape[:-1], part.shape[-1]) for part in (knots, values, curvature))
    right = torch.searchsorted(knots.detach().contiguous(), x.detach().contiguous()).clamp(1, knots.shape[-1] - 1)
    left = right - 1
    start, end = knots.gather(-1, left), knots.gather(-1, right)
    low, high = values.gather(-1, left), values.gather(-1, right)
    bend_low, bend_high = curvature.gather(-1, left), curvature.gather(-1, right)
    width = end - start
    b = (x - start) / width
    a = 1.0 - b
    sixth = width / 6.0
    value = a * low + b * high - a * b * ((1.0 + a) * bend_low + (1.0 + b) * bend_high) * width * sixth
    slope = (high - low) / width + ((3.0 * b * b - 1.0) * bend_high - (3.0 * a * a - 1.0) * bend_low) * sixth
    return value, slope, a * bend_low + b * bend_high


def refined(points: Tensor, n_parts: int) -> Tensor:
    """Ascending points with each interval between them cut into even parts.

    >>> refined(torch.tensor([0.0, 1.0, 3.0]), 2)
    tensor([0.0000, 0.5000, 1.0000, 2.0000, 3.0000])
    """
    share = torch.arange(n_parts, dtype=points.dtype, device=points.device) / n_parts
    inside = points[..., :-1, None] + share * points.diff(dim=-1).unsqueeze(-1)
    return torch.cat([inside.flatten(-2), points[..., -1:]], dim=-1)
