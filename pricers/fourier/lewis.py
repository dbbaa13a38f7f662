"""Lewis' integral: the independent check of the COS series."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pricers.quadrature import gauss_legendre

__all__ = ["lewis_european"]


def lewis_european(
    log_characteristic: Callable[[Tensor, float], tuple[Tensor, Tensor]], log_strike: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    r"""Calls and puts, those that are out of the money, per unit of forward, by Lewis' integral: slow and independent.

    $$\frac{C}{F} = 1 - \frac{e^{x/2}}{\pi} \int_0^\infty \mathrm{Re}\bigl[e^{-iux}\,E\,e^{(1/2 + iu) X}\bigr]
      \frac{du}{u^2 + 1/4}$$

    on panels of Gauss and Legendre, halved until nothing changes.

    Args:
        log_characteristic: takes `u`, shape `(n_u,)`, and the shift 1/2; returns the real and the imaginary part.
        log_strike: $x = \log(K / F_T)$, shape `(n_strikes,)`.
        scale: typical size of X.

    Returns:
        The values, and how much the last halving moved them.

    Raises:
        ValueError: the characteristic function does not decay.

    References:
        Lewis (2001), A simple option formula for general jump-diffusion and other exponential Levy processes, eq. 3.11.
    """
    end = 1.0 / scale
    while log_characteristic(torch.tensor([end], dtype=log_strike.dtype), 0.5)[0].item() - math.log(end) > -36.0:
        end *= 1.25
        if end > 1e9 / scale:
            raise ValueError("the characteristic function must decay, its modulus is above 1e-16 at 1e9 / scale")
    start = min(0.5, 0.5 * end)  # the integrand has the width 1/2 near 0
    n_panels, before = 8, None
    while True:
        ratio = (end / start) ** (1.0 / n_panels)
        edges = [0.0, *(start * ratio**i for i in range(n_panels + 1))]
        value = _lewis(log_characteristic, log_strike, edges)
        if before is not None:
            moved = (value - before).abs().detach()
            if bool((moved < 1e-14).all()) or n_panels >= 2**13:
                return value, moved + 64.0 * torch.finfo(value.dtype).eps
        before = value
        n_panels *= 2


def _lewis(
    log_characteristic: Callable[[Tensor, float], tuple[Tensor, Tensor]], log_strike: Tensor, edges: list[float]
) -> Tensor:
    """One quadrature with 16 nodes on each panel."""
    nodes, weights = gauss_legendre(16, log_strike)
    low = torch.tensor(edges[:-1], dtype=log_strike.dtype, device=log_strike.device)[:, None]
    half = 0.5 * (torch.tensor(edges[1:], dtype=log_strike.dtype, device=log_strike.device)[:, None] - low)
    u = (low + half * (1.0 + nodes)).flatten()
    mass = (half * weights).flatten()
    log_modulus, angle = log_characteristic(u, 0.5)
    factor = mass * torch.exp(log_modulus) / (u * u + 0.25) / math.pi
    integral = (factor * torch.cos(angle - u * log_strike.unsqueeze(-1))).sum(dim=-1)
    out_of_money = torch.exp(log_strike.clamp(max=0.0))  # the lesser of 1 and K / F
    return out_of_money - torch.exp(0.5 * log_strike) * integral
