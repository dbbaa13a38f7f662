r"""Strikes at given deltas: the smile of each law, inverted.

$d_1(k)$ of a smile without arbitrage falls in $k$ (Fukasawa 2012, theorem 2.8), so that each delta $\Phi(d_1)$ has one
strike. A coarse grid around the reference vol brackets the deltas, a finer one between the brackets is even in $d_1$,
and a monotone cubic through it is read at each $d_1$. Strikes are cheap: all of one law share its characteristic
function.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from pricers.black.price import black_d1_d2
from qfml.surrogate.exact_labels import target_values
from qfml.surrogate.problem import Columns, Problem

__all__ = ["strikes_at_delta"]

COARSE = torch.sinh(torch.linspace(-5.0, 5.0, 21, dtype=torch.float64)) / math.sinh(5.0) * 12.0  # reference deviations
N_FINE = 33
FARTHEST = 8.0  # what is beyond counts as no strike: a d1 that is not told from infinity
LARGEST_ERROR = 1e-3  # of a vol, relative: beyond it d1 is not told


def strikes_at_delta(
    problem: Problem, columns: Columns, delta: Float[Tensor, "smiles strikes"]
) -> Float[Tensor, "smiles strikes"]:
    """log(strike / forward) at which the call's delta on the forward, with the strike's own vol, is `delta`.

    Args:
        problem: whose exact vols are meant.
        columns: inputs of the laws by name, each of shape `(smiles, 1)`.
        delta: in (0, 1).

    Returns:
        NaN where the time value of the strikes next to it is too small to tell their vol.

    References:
        Fukasawa (2012), The normalizing transformation of the implied volatility smile.
    """
    wanted = torch.special.ndtri(delta)
    scale = problem.reference(columns) * problem.expiry(columns).sqrt()
    grid = scale * COARSE.to(delta)
    for _ in range(2):
        d1 = _d1(problem, columns, grid)
        grid = _refined(grid, d1, wanted)
    d1 = _d1(problem, columns, grid)
    return _inverted(grid, d1, wanted)


def _d1(problem: Problem, columns: Columns, moneyness: Tensor) -> Tensor:
    """d1 at each strike; infinite, with the sign of the side, where the vol is not told."""
    found = target_values(problem, {**columns, "log_moneyness": moneyness})
    total = found.value * problem.expiry(columns).sqrt()
    told = found.value.isfinite() & (found.error_bound <= LARGEST_ERROR * found.value)
    safe = torch.where(told, total, 1.0)
    d1, _ = black_d1_d2(torch.ones_like(safe), torch.exp(moneyness), safe)
    d1 = torch.where(told, d1, torch.where(moneyness < 0.0, math.inf, -math.inf))
    # rounding may break the order in the far wings; there it is restored
    return torch.cummin(d1, dim=-1).values


def _refined(grid: Tensor, d1: Tensor, wanted: Tensor) -> Tensor:
    """Strikes between those that bracket what is wanted, even in d1."""
    above = (d1 >= wanted.amax(dim=-1, keepdim=True)).sum(dim=-1, keepdim=True)
    below = (d1 > wanted.amin(dim=-1, keepdim=True)).sum(dim=-1, keepdim=True)
    last = grid.shape[-1] - 1
    first, end = (above - 1).clamp(0, last), below.clamp(0, last)
    high, low = (d1.clamp(-FARTHEST, FARTHEST).gather(-1, index) for index in (first, end))
    share = torch.linspace(0.0, 1.0, N_FINE, dtype=grid.dtype, device=grid.device)
    return _linear(grid, d1.clamp(-FARTHEST, FARTHEST), high + (low - high) * share)


def _linear(grid: Tensor, d1: Tensor, wanted: Tensor) -> Tensor:
    """Strikes at which d1, linear between the grid's, is what is wanted."""
    right = torch.searchsorted(-d1.contiguous(), -wanted.contiguous()).clamp(1, grid.shape[-1] - 1)
    d0, d2 = d1.gather(-1, right - 1), d1.gather(-1, right)
    k0, k2 = grid.gather(-1, right - 1), grid.gather(-1, right)
    share = ((d0 - wanted) / (d0 - d2).clamp(min=1e-300)).clamp(0.0, 1.0)
    return k0 + (k2 - k0) * share


def _inverted(grid: Tensor, d1: Tensor, wanted: Tensor) -> Tensor:
    """The monotone cubic through k as a function of -d1, read where it is wanted; NaN outside of what is told."""
    told = d1.isfinite()
    x = -torch.where(told, d1, d1.sign() * FARTHEST)
    slopes = _monotone_slopes(x, grid)
    right = torch.searchsorted(x.contiguous(), -wanted.contiguous()).clamp(1, grid.shape[-1] - 1)
    left = right - 1
    x0, x1, k0, k1, s0, s1, t0, t1 = (
        table.gather(-1, index) for table in (x, grid, slopes, told) for index in (left, right)
    )
    h = (x1 - x0).clamp(min=1e-300)
    t = (-wanted - x0) / h
    inside = t0 & t1 & (t >= 0.0) & (t <= 1.0)
    t = t.clamp(0.0, 1.0)
    cubic = (
        k0 * (1 + 2 * t) * (1 - t).square()
        + h * s0 * t * (1 - t).square()
        + k1 * t.square() * (3 - 2 * t)
        + h * s1 * t.square() * (t - 1)
    )
    return torch.where(inside, cubic, math.nan)


def _monotone_slopes(x: Tensor, y: Tensor) -> Tensor:
    """Slopes of a monotone cubic through rising points: harmonic means, as Fritsch and Butland (1984)."""
    h = x.diff(dim=-1).clamp(min=1e-300)
    secant = y.diff(dim=-1) / h
    a, b, h0, h1 = secant[..., :-1], secant[..., 1:], h[..., :-1], h[..., 1:]
    weight = (h0 + 2.0 * h1) / (3.0 * (h0 + h1))
    inner = torch.where((a > 0.0) & (b > 0.0), a * b / (weight * b + (1.0 - weight) * a).clamp(min=1e-300), 0.0)
    return torch.cat([secant[..., :1], inner, secant[..., -1:]], dim=-1)
