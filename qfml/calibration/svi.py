"""SVI smiles: total variance by two straight wings, its derivatives, and the density that it implies.

Two sets of five numbers describe the same smile. The raw ones (Gatheral) are reported. The fit works in the other one:
the least variance and the slopes of the two wings, in which all that keeps the variance positive and the wings below
Lee's bound is a box.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pricers.models.smile import density_parts

__all__ = [
    "GRID_POINTS",
    "LARGEST_SLOPE",
    "density_and_jacobian",
    "raw_from_wings",
    "raw_jacobian",
    "svi_density",
    "svi_total_variance",
    "wings_from_raw",
    "wings_start",
    "wings_variance_and_jacobian",
]

LARGEST_SLOPE = 2.0  # of the total variance in log-moneyness: Lee (2004)
GRID_POINTS = 9, 6  # places of m and widths sigma that a start is sought among
GRID_WIDTHS = 0.05, 2.0  # of sigma, in units of the range of the quotes
SLOPE_MARGIN = 0.005, 0.95  # of `LARGEST_SLOPE`, that a start keeps from both ends


def svi_total_variance(
    log_moneyness: Tensor, a: Tensor, b: Tensor, rho: Tensor, m: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Raw SVI, $w(k) = a + b\,(\rho (k - m) + \sqrt{(k - m)^2 + \sigma^2})$, with slope and curvature.

    Args:
        log_moneyness: log(strike / forward); all arguments broadcast.
        a: level of the total variance.
        b: 0 or more: half the sum of the slopes of the wings.
        rho: in (-1, 1).
        m: log-moneyness.
        sigma: width of the vertex, above 0.

    Returns:
        Total variance $w = \mathrm{vol}^2 T$, $w'$ and $w''$.

    References:
        Gatheral (2004), A parsimonious arbitrage-free implied volatility parameterization; Gatheral and Jacquier
        (2014), Arbitrage-free SVI volatility surfaces, eq. 3.1.

    >>> number = lambda x: torch.tensor(x, dtype=torch.float64)
    >>> variance, _, _ = svi_total_variance(*map(number, ([0.0, 0.3586], -0.0410, 0.1331, 0.3060, 0.3586, 0.4153)))
    >>> variance
    tensor([0.0174, 0.0143], dtype=torch.float64)
    """
    distance = log_moneyness - m
    root = torch.sqrt(distance**2 + sigma**2)
    slope = b * (rho + distance / root)
    return a + b * (rho * distance + root), slope, (b * sigma**2 / root**3).expand(slope.shape)


def svi_density(log_moneyness: Tensor, a: Tensor, b: Tensor, rho: Tensor, m: Tensor, sigma: Tensor) -> Tensor:
    r"""Durrleman's $g(k) = \left(1 - \frac{k w'}{2w}\right)^2 - \frac{w'^2}{4}\left(\frac1w + \frac14\right) +
    \frac{w''}{2}$ of a raw SVI smile: butterfly arbitrage where it is below 0.

    Args:
        log_moneyness: as `svi_total_variance`, and so are the others.
        a: as there.
        b: as there.
        rho: as there.
        m: as there.
        sigma: as there.

    Returns:
        Density of the log price over that of a normal, of the broadcast shape.

    References:
        Gatheral and Jacquier (2014), Arbitrage-free SVI volatility surfaces, eq. 2.1 and lemma 2.2.

    >>> number = lambda x: torch.tensor(x, dtype=torch.float64)
    >>> svi_density(*map(number, ([0.0, 0.8], -0.0410, 0.1331, 0.3060, 0.3586, 0.4153)))  # Axel Vogt's example
    tensor([ 1.0386, -0.0298], dtype=torch.float64)
    """
    root, rest = density_parts(log_moneyness, *svi_total_variance(log_moneyness, a, b, rho, m, sigma))
    return root**2 + rest


def raw_from_wings(wings: Tensor) -> Tensor:
    r"""From least variance, slopes of the left and right wing (both above 0), m, sigma to a, b, rho, m, sigma.

    $b = (l + r) / 2$, $\rho = (r - l) / (r + l)$ and $a = w_{min} - \sigma\sqrt{l r}$; shapes `*batch 5`.
    """
    least, left, right, m, sigma = wings.unbind(-1)
    total = left + right
    return torch.stack([least - sigma * torch.sqrt(left * right), 0.5 * total, (right - left) / total, m, sigma], -1)


def wings_from_raw(raw: Tensor) -> Tensor:
    """The inverse of `raw_from_wings`."""
    a, b, rho, m, sigma = raw.unbind(-1)
    least = a + b * sigma * torch.sqrt((1.0 - rho) * (1.0 + rho))
    return torch.stack([least, b * (1.0 - rho), b * (1.0 + rho), m, sigma], -1)


def raw_jacobian(wings: Tensor) -> Tensor:
    """Derivatives of `raw_from_wings`, shape `*batch 5 5`: for the standard errors of the raw parameters."""
    _, left, right, _, sigma = wings.unbind(-1)
    product, square = torch.sqrt(left * right), (left + right) ** 2
    zero, one = torch.zeros_like(left), torch.ones_like(left)
    rows = (
        (one, -0.5 * sigma * product / left, -0.5 * sigma * product / right, zero, -product),
        (zero, 0.5 * one, 0.5 * one, zero, zero),
        (zero, -2.0 * right / square, 2.0 * left / square, zero, zero),
        (zero, zero, zero, one, zero),
        (zero, zero, zero, zero, one),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def wings_variance_and_jacobian(log_moneyness: Tensor, wings: Tensor) -> tuple[Tensor, Tensor]:
    """Total variance and its derivatives in the five numbers of the fit.

    Args:
        log_moneyness: shape `*batch n`.
        wings: shape `*batch 5`.

    Returns:
        Shapes `*batch n` and `*batch n 5`.
    """
    least, left, right, m, sigma = (part.unsqueeze(-1) for part in wings.unbind(-1))
    distance = log_moneyness - m
    root = torch.sqrt(distance**2 + sigma**2)
    product, mean = torch.sqrt(left * right), 0.5 * (left + right)
    half = 0.5 * (right - left)
    variance = least + half * distance + mean * root - sigma * product
    parts = (
        torch.ones_like(variance),
        0.5 * (root - distance - sigma * product / left),
        0.5 * (root + distance - sigma * product / right),
        -half - mean * distance / root,
        mean * sigma / root - product,
    )
    return variance, torch.stack(parts, dim=-1)


def density_and_jacobian(log_moneyness: Tensor, wings: Tensor) -> tuple[Tensor, Tensor]:
    """Durrleman's g, as `svi_density`, and its derivatives in the five numbers of the fit; shapes as the variance's."""
    _, left, right, m, sigma = (part.unsqueeze(-1) for part in wings.unbind(-1))
    variance, in_variance = wings_variance_and_jacobian(log_moneyness, wings)
    distance = log_moneyness - m
    root = torch.sqrt(distance**2 + sigma**2)
    mean, direction = 0.5 * (left + right), distance / root
    slope = 0.5 * (right - left) + mean * direction
    unit = sigma**2 / root**3
    curvature = mean * unit
    zero = torch.zeros_like(variance)
    in_slope = (zero, 0.5 * (direction - 1.0), 0.5 * (direction + 1.0), -curvature, -mean * distance * sigma / root**3)
    in_curvature = (
        zero,
        0.5 * unit,
        0.5 * unit,
        3.0 * curvature * distance / root**2,
        curvature * (2.0 / sigma - 3.0 * sigma / root**2),
    )
    first, rest = density_parts(log_moneyness, variance, slope, curvature)
    by_variance = (first * log_moneyness * slope + 0.25 * slope**2) / variance**2
    by_slope = -first * log_moneyness / variance - 0.5 * slope * (1.0 / variance + 0.25)
    jacobian = (
        by_variance.unsqueeze(-1) * in_variance
        + by_slope.unsqueeze(-1) * torch.stack(in_slope, dim=-1)
        + 0.5 * torch.stack(in_curvature, dim=-1)
    )
    return first**2 + rest, jacobian


def wings_start(log_moneyness: Tensor, variance: Tensor, weight: Tensor, n_starts: int) -> Tensor:
    r"""Starts of a fit: for given m and sigma the variance is linear in the three others, found for a grid of both.

    Args:
        log_moneyness: shape `batch n`.
        variance: quoted total variance, anything where the weight is 0; shape `batch n`.
        weight: of the squared errors of the variance, 0 where there is no quote; shape `batch n`.
        n_starts: the best so many points of the grid.

    Returns:
        Wings, shape `batch n_starts 5`, inside their box.

    References:
        De Marco and Martini (2009), Quasi-explicit calibration of Gatheral's SVI model.
    """
    quoted = weight > 0.0
    low = torch.where(quoted, log_moneyness, torch.inf).amin(-1, keepdim=True)
    high = torch.where(quoted, log_moneyness, -torch.inf).amax(-1, keepdim=True)
    width = (high - low).clamp(min=1e-3)
    shares = torch.linspace(0.0, 1.0, GRID_POINTS[0], dtype=width.dtype)
    widths = torch.logspace(math.log10(GRID_WIDTHS[0]), math.log10(GRID_WIDTHS[1]), GRID_POINTS[1], dtype=width.dtype)
    m, sigma = (
        part.flatten(-2)
        for part in torch.broadcast_tensors((low + shares * (high - low)).unsqueeze(-1), (width * widths).unsqueeze(-2))
    )
    distance = log_moneyness.unsqueeze(-2) - m.unsqueeze(-1)  # batch grid n
    root = torch.sqrt(distance**2 + sigma.unsqueeze(-1) ** 2)
    share = weight / weight.sum(-1, keepdim=True)
    target = torch.where(quoted, variance, 0.0)
    sides = 0.5 * (root - distance), 0.5 * (root + distance)  # the variance is level + left * one + right * the other
    middles = [(side @ share.unsqueeze(-1)).squeeze(-1) for side in sides]
    middle = (share * target).sum(-1, keepdim=True)
    off = [side - mean.unsqueeze(-1) for side, mean in zip(sides, middles, strict=True)]
    weighted = [part * share.unsqueeze(-2) for part in off]
    by_target = [(part @ (target - middle).unsqueeze(-1)).squeeze(-1) for part in weighted]
    ll, lr, rr = ((weighted[i] * off[j]).sum(-1) for i, j in ((0, 0), (0, 1), (1, 1)))
    determinant = (1.0 + 1e-10) * ll * rr - lr**2 + 1e-300
    limits = [LARGEST_SLOPE * share for share in SLOPE_MARGIN]
    left = ((rr * by_target[0] - lr * by_target[1]) / determinant).clamp(*limits)
    right = ((by_target[1] - lr * left) / rr.clamp(min=1e-300)).clamp(*limits)  # the best beside a `left` that was held
    level = middle - left * middles[0] - right * middles[1]
    product = sigma * torch.sqrt(left * right)
    least = torch.maximum(level + product, 0.01 * middle)  # the variance stays above 0
    fitted = (least - product).unsqueeze(-1) + left.unsqueeze(-1) * sides[0] + right.unsqueeze(-1) * sides[1]
    error = share.unsqueeze(-2) * (fitted - target.unsqueeze(-2)) ** 2
    best = error.sum(-1).topk(min(n_starts, error.shape[1]), largest=False).indices
    every = torch.stack([least, left, right, m, sigma], dim=-1)
    return every.gather(1, best.unsqueeze(-1).expand(-1, -1, 5))
