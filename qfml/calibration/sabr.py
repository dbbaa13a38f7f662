"""SABR smiles: Hagan's volatility with its derivatives, alpha from the at-the-money volatility, where it has a density.

All in units of the forward: Hagan's formula depends on $K / F$ only once alpha is written as
$\\lambda = \\alpha F^{\\beta-1}$, the *level*, which is a volatility.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pricers.analytic.sabr import hagan_lognormal_smile, hagan_lognormal_vol
from pricers.models.smile import density_parts

__all__ = ["level_at_the_money", "level_slopes", "sabr_density", "sabr_vols", "sabr_vols_and_jacobian"]

NEWTON_STEPS = 12  # from sigma / C, monotone: quadratic, and 6 are enough unless there is almost no root
ROOT_TOLERANCE = 1e-12  # of the at-the-money volatility that the level found must reach
SERIES_BELOW = 1e-4  # |z| under which the slope of z / x(z) is read from its series, to 1e-8 of itself


def sabr_vols(log_moneyness: Tensor, expiry: Tensor, level: Tensor, beta: Tensor, rho: Tensor, nu: Tensor) -> Tensor:
    """Hagan's lognormal volatility (`pricers`' formula) of strikes in units of the forward; arguments broadcast.

    Args:
        log_moneyness: log(strike / forward), with the shift in both where there is one.
        expiry: years.
        level: alpha times forward^(beta-1), annual, above 0.
        beta: exponent of the forward, in [0, 1].
        rho: correlation of forward and volatility, in (-1, 1).
        nu: volatility of the volatility, 0 or more.

    Returns:
        Annual Black volatility. It is an expansion for short expiries: it may even be negative far from the money.

    References:
        Hagan, Kumar, Lesniewski and Woodward (2002), Managing smile risk, eq. 2.17a.

    >>> number = lambda x: torch.tensor(x, dtype=torch.float64)
    >>> sabr_vols(*map(number, ([-0.1, 0.0, 0.1], 0.5, 0.15, 0.5, 0.1, 0.33)))
    tensor([0.1541, 0.1507, 0.1498], dtype=torch.float64)
    """
    return hagan_lognormal_vol(torch.ones_like(expiry), torch.exp(log_moneyness), expiry, level, beta, rho, nu)


def sabr_vols_and_jacobian(
    log_moneyness: Tensor, expiry: Tensor, level: Tensor, beta: Tensor, rho: Tensor, nu: Tensor
) -> tuple[Tensor, Tensor]:
    r"""`sabr_vols` and its derivatives in level, rho, nu and beta, written out: a tenth of the time of forward mode.

    With $\chi = z / x(z)$ and $J = \sqrt{1 - 2\rho z + z^2}$, $x' = 1 / J$ gives
    $\chi' = \chi (1 - \chi / J) / z$, and for $z \ge 0$
    $\partial_\rho x = 2 z^2 (1-\rho) / [J (J + z - \rho)(J + 1 - z)^2]$, in which nothing cancels.

    Args:
        log_moneyness: as `sabr_vols`, and so are the others.
        expiry: as there.
        level: as there.
        beta: as there.
        rho: as there.
        nu: as there.

    Returns:
        Volatilities of the broadcast shape, and derivatives with one more last axis: level, rho, nu, beta.
    """
    vol = sabr_vols(log_moneyness, expiry, level, beta, rho, nu)
    elasticity = 1.0 - beta
    local = level * torch.exp(-0.5 * elasticity * log_moneyness)
    distance = -log_moneyness / local
    z = nu * distance
    in_z, in_rho = _skew_slopes(z, rho)  # of log(chi)
    square = (elasticity * log_moneyness) ** 2
    bend = 1.0 + square / 24.0 + square**2 / 1920.0
    in_bend = elasticity * log_moneyness**2 * (1.0 / 12.0 + square / 480.0) / bend  # of -log(bend), in beta
    cross = 0.25 * rho * beta * nu
    growth = 1.0 + expiry * ((elasticity * local) ** 2 / 24.0 + cross * local + (2.0 - 3.0 * rho**2) * nu**2 / 24.0)
    per_growth = expiry / growth
    in_local = (
        1.0 - z * in_z + per_growth * local * (elasticity**2 * local / 12.0 + cross)
    )  # of log(vol), in log(local)
    parts = (
        in_local / level,
        in_rho + per_growth * nu * (0.25 * beta * local - 0.25 * rho * nu),
        distance * in_z + per_growth * (0.25 * rho * beta * local + (2.0 - 3.0 * rho**2) * nu / 12.0),
        0.5 * log_moneyness * in_local + in_bend + per_growth * local * (0.25 * rho * nu - elasticity * local / 12.0),
    )
    return vol, torch.stack([(vol * part).expand(vol.shape) for part in parts], dim=-1)


def _skew_slopes(z: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of log(z / x(z)) in z and in rho."""
    sign = torch.where(z < 0.0, -1.0, 1.0).to(z.dtype)  # x(-z; -rho) = -x(z; rho): z is not negative below
    z, rho = sign * z, sign * rho
    to_one = 1.0 - rho
    distance = z - rho
    root = torch.sqrt(distance**2 + to_one * (1.0 + rho))  # J
    larger = torch.where(distance > 0.0, root + distance, root - distance)
    root_sum = torch.where(distance > 0.0, larger, to_one * (1.0 + rho) / larger)  # J + z - rho
    below_one = torch.where(z < 1.0, root + 1.0 - z, 2.0 * z * to_one / (root + z - 1.0))  # J + 1 - z
    small = z < SERIES_BELOW
    safe = torch.where(small, 1.0, z)
    w_over_z = (root_sum + to_one) / (to_one * (root + 1.0))  # x = log(1 + w)
    ratio = torch.where(small, 1.0, safe / torch.log1p(safe * w_over_z))
    near = -0.5 * rho + (1.0 / 3.0 - 0.75 * rho**2) * z  # of log(chi): chi'/chi to first order
    in_z = torch.where(small, near, (1.0 - ratio / root) / safe)
    in_rho = -2.0 * ratio * z * to_one / (root * root_sum * below_one**2)
    return sign * in_z, sign * in_rho


def level_at_the_money(vol: Tensor, expiry: Tensor, beta: Tensor, rho: Tensor, nu: Tensor) -> Tensor:
    r"""The level whose at-the-money volatility is `vol`: the smallest positive root of a cubic.

    $$\frac{(1-\beta)^2 T}{24}\lambda^3 + \frac{\rho\beta\nu T}{4}\lambda^2 +
    \left(1 + \frac{2 - 3\rho^2}{24}\nu^2 T\right)\lambda = \mathrm{vol}$$

    Newton's steps from vol over the last coefficient run to that root without crossing it, from the right where the
    cubic is convex and from the left where it is concave.

    Args:
        vol: at-the-money Black volatility, above 0; arguments broadcast.
        expiry: years.
        beta: exponent of the forward.
        rho: correlation.
        nu: volatility of the volatility.

    Returns:
        alpha times forward^(beta-1); NaN where the expansion reaches `vol` at no level. Differentiable once, by the
        implicit function theorem.

    References:
        West (2005), Calibration of the SABR model in illiquid markets, section 3.

    >>> number = lambda x: torch.tensor(x, dtype=torch.float64)
    >>> level = level_at_the_money(*map(number, (0.2, 2.0, 0.5, -0.4, 0.6)))
    >>> sabr_vols(*map(number, (0.0, 2.0)), level, *map(number, (0.5, -0.4, 0.6)))
    tensor(0.2000, dtype=torch.float64)
    """
    cubic = (1.0 - beta) ** 2 * expiry / 24.0
    quadratic = 0.25 * rho * beta * nu * expiry
    linear = 1.0 + (2.0 - 3.0 * rho**2) / 24.0 * nu**2 * expiry
    with torch.no_grad():
        level = vol / linear
        for _ in range(NEWTON_STEPS):
            value = level * (linear + level * (quadratic + level * cubic)) - vol
            level = level - value / (linear + level * (2.0 * quadratic + level * 3.0 * cubic))
        slope = linear + level * (2.0 * quadratic + level * 3.0 * cubic)
        value = level * (linear + level * (quadratic + level * cubic)) - vol
        found = (value.abs() <= ROOT_TOLERANCE * vol) & (level > 0.0) & (linear > 0.0) & (slope > 0.0)
        level = torch.where(found, level, torch.nan)
    value = level * (linear + level * (quadratic + level * cubic)) - vol
    return level - value / slope.detach()


def level_slopes(level: Tensor, expiry: Tensor, beta: Tensor, rho: Tensor, nu: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives in rho and nu of `level_at_the_money`, at the level that it found; arguments as there."""
    square = level * level
    slope = (
        1.0
        + (2.0 - 3.0 * rho**2) / 24.0 * nu**2 * expiry
        + 0.5 * rho * beta * nu * expiry * level
        + (1.0 - beta) ** 2 * expiry / 8.0 * square
    )
    in_rho = 0.25 * expiry * nu * (beta * square - rho * nu * level)
    in_nu = 0.25 * expiry * (rho * beta * square + (2.0 - 3.0 * rho**2) / 3.0 * nu * level)
    return -in_rho / slope, -in_nu / slope


def sabr_density(log_moneyness: Tensor, expiry: Tensor, level: Tensor, beta: Tensor, rho: Tensor, nu: Tensor) -> Tensor:
    r"""Durrleman's $g(k)$ of Hagan's smile: its density over a lognormal's; below 0 the formula has arbitrage.

    Args:
        log_moneyness: an even grid, ascending, along the last axis: the curvature is a difference of exact slopes.
        expiry: years; this and the others broadcast with the grid.
        level: as `sabr_vols`.
        beta: as there.
        rho: as there.
        nu: as there.

    Returns:
        Density of log(strike) over that of the normal with the volatility of the strike, NaN where the formula gives
        no positive volatility; shape of the grid.

    References:
        Gatheral and Jacquier (2014), Arbitrage-free SVI volatility surfaces, eq. 2.1.
    """
    strike = torch.exp(log_moneyness)
    vol, slope = hagan_lognormal_smile(torch.ones_like(expiry), strike, expiry, level, beta, rho, nu)
    vol = torch.where(vol > 0.0, vol, torch.nan)
    variance = vol**2 * expiry
    variance_slope = 2.0 * vol * slope * strike * expiry
    step = log_moneyness[..., 1:2] - log_moneyness[..., :1]
    curvature = (variance_slope[..., 2:] - variance_slope[..., :-2]) / (2.0 * step)
    curvature = torch.cat([curvature[..., :1], curvature, curvature[..., -1:]], dim=-1)
    root, rest = density_parts(log_moneyness, variance, variance_slope, curvature)
    return root**2 + rest
