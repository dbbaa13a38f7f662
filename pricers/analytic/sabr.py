"""Hagan's expansions of the SABR smile: implied Black and Bachelier volatility, and prices from them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pricers.estimate import Estimate
from pricers.instruments.european import European
from pricers.market import Market
from pricers.models.sabr import SABR

__all__ = ["FORMULAS", "european_sabr", "hagan_lognormal_vol", "hagan_normal_vol"]

NOTE = "Hagan's expansion for a short expiry: an approximation of the SABR model, simulate to see its error"
N_SERIES = 9  # terms of atanh(y) / y: the next one is below 1e-19 where the series is used
SERIES_BELOW = 0.2


def hagan_lognormal_vol(
    forward: Tensor, strike: Tensor, expiry: Tensor, alpha: Tensor, beta: Tensor, rho: Tensor, nu: Tensor
) -> Tensor:
    r"""Black volatility that SABR implies, to first order in the expiry.

    $$\frac{\alpha}{A\,\left(1 + \frac{(1-\beta)^2}{24}\ell^2 + \frac{(1-\beta)^4}{1920}\ell^4\right)}\,\frac{z}{x(z)}
    \left(1 + \left[\frac{(1-\beta)^2\alpha^2}{24 A^2} + \frac{\rho\beta\nu\alpha}{4 A} + \frac{2-3\rho^2}{24}\nu^2
    \right] T\right)$$

    with $\ell = \log(F/K)$, $A = (F K)^{(1-\beta)/2}$, $z = \nu A \ell / \alpha$ and
    $x(z) = \log\frac{\sqrt{1 - 2\rho z + z^2} + z - \rho}{1 - \rho}$. All arguments broadcast; every derivative is
    finite at the money. Far from the money and over years the expansion is off by many volatility points, and it can
    even be negative.

    Args:
        forward: forward price, with the shift added where there is one, above 0.
        strike: strike, with the shift added, above 0.
        expiry: years.
        alpha: volatility of the forward today, above 0, in units of forward^(1-beta) per square root of a year.
        beta: exponent of the forward, in [0, 1].
        rho: correlation of forward and volatility, in (-1, 1).
        nu: volatility of the volatility, 0 or more.

    Returns:
        Annual Black volatility, decimal.

    References:
        Hagan, Kumar, Lesniewski and Woodward (2002), Managing smile risk, eq. 2.17a.

    >>> number = lambda x: torch.tensor(x, dtype=torch.float64)
    >>> vol = hagan_lognormal_vol(*map(number, (0.039, 0.03, 1.0, 0.3, 0.6, 0.01, 0.02)))
    >>> round(vol.item(), 12)
    1.167258373215
    """
    log_ratio = torch.log(forward) - torch.log(strike)
    backbone = (forward * strike) ** (0.5 * (1.0 - beta))
    level = alpha / (backbone * _series((1.0 - beta) * log_ratio))
    skew = _skew_ratio(nu * backbone * log_ratio / alpha, rho)
    local = alpha / backbone  # Black volatility of the backbone
    growth = ((1.0 - beta) * local) ** 2 / 24.0 + rho * beta * nu * local / 4.0 + (2.0 - 3.0 * rho**2) * nu**2 / 24.0
    return level * skew * (1.0 + growth * expiry)


def hagan_normal_vol(
    forward: Tensor,
    strike: Tensor,
    expiry: Tensor,
    alpha: Tensor,
    beta: Tensor,
    rho: Tensor,
    nu: Tensor,
    shift: Tensor | float = 0.0,
) -> Tensor:
    r"""Bachelier volatility that SABR implies, to first order in the expiry.

    With $F$ and $K$ shifted and the symbols of `hagan_lognormal_vol`:

    $$\alpha (F K)^{\beta/2}\,\frac{1 + \ell^2/24 + \ell^4/1920}{1 + \frac{(1-\beta)^2}{24}\ell^2 +
    \frac{(1-\beta)^4}{1920}\ell^4}\,\frac{z}{x(z)}\left(1 + \left[-\frac{\beta(2-\beta)\alpha^2}{24 A^2} +
    \frac{\rho\beta\nu\alpha}{4 A} + \frac{2-3\rho^2}{24}\nu^2\right] T\right)$$

    Args:
        forward: forward price; `forward + shift` above 0.
        strike: strike; `strike + shift` above 0.
        expiry: years.
        alpha: volatility of the forward today, above 0.
        beta: exponent of the shifted forward, in [0, 1].
        rho: correlation of forward and volatility, in (-1, 1).
        nu: volatility of the volatility, 0 or more.
        shift: what is added to forward and strike.

    Returns:
        Annual Bachelier volatility, in units of the forward.

    References:
        Hagan, Kumar, Lesniewski and Woodward (2002), Managing smile risk, appendix B, eq. B.69a.

    >>> number = lambda x: torch.tensor(x, dtype=torch.float64)
    >>> vol = hagan_normal_vol(*map(number, (0.01, -0.005, 1.0, 0.03, 0.5, -0.2, 0.4)), shift=0.02)
    >>> round(vol.item() * 1e4, 6)  # basis points a year
    58.237328
    """
    forward, strike = forward + shift, strike + shift
    log_ratio = torch.log(forward) - torch.log(strike)
    product = forward * strike
    backbone = product ** (0.5 * (1.0 - beta))
    level = alpha * product ** (0.5 * beta) * _series(log_ratio) / _series((1.0 - beta) * log_ratio)
    skew = _skew_ratio(nu * backbone * log_ratio / alpha, rho)
    local = alpha / backbone
    growth = -beta * (2.0 - beta) * local**2 / 24.0 + rho * beta * nu * local / 4.0 + (2 - 3 * rho**2) * nu**2 / 24.0
    return level * skew * (1.0 + growth * expiry)


def _series(x: Tensor) -> Tensor:
    """Hagan's truncated sinh(x/2) / (x/2)."""
    square = x**2
    return 1.0 + square / 24.0 + square**2 / 1920.0


def _skew_ratio(z: Tensor, rho: Tensor) -> Tensor:
    """z / x(z), exact to rounding with its derivatives for every z, through 0, and rho up to the ends of (-1, 1).

    x(z) = log(1 + w) with w = (J + z - rho) / (1 - rho) - 1, J = sqrt(1 - 2 rho z + z^2). The ratio is the product of
    z / w, which is algebraic, and w / log(1 + w), which has a series at 0.
    """
    sign = torch.where(z < 0.0, -1.0, 1.0).to(z.dtype)  # x(-z; -rho) = -x(z; rho): z is not negative below
    z, rho = sign * z, sign * rho
    to_one = 1.0 - rho
    distance = z - rho
    root = torch.sqrt(distance**2 + to_one * (1.0 + rho))
    larger = torch.where(distance > 0.0, root + distance, root - distance)  # no cancellation in the sum
    root_sum = torch.where(distance > 0.0, larger, to_one * (1.0 + rho) / larger)  # J + z - rho
    w_over_z = (root_sum + to_one) / (to_one * (root + 1.0))
    return 1.0 / (w_over_z * _log1p_ratio(z * w_over_z))


def _log1p_ratio(w: Tensor) -> Tensor:
    """log(1 + w) / w for w of 0 or more, with correct derivatives at 0."""
    small = w < SERIES_BELOW
    w_small = torch.where(small, w, 0.0)
    square = (w_small / (2.0 + w_small)) ** 2  # log(1 + w) = 2 atanh(w / (2 + w))
    series = torch.full_like(square, 1.0 / (2 * N_SERIES + 1))
    for k in range(N_SERIES - 1, -1, -1):
        series = series * square + 1.0 / (2 * k + 1)
    w_large = torch.where(small, 1.0, w)
    return torch.where(small, 2.0 / (2.0 + w_small) * series, torch.log1p(w_large) / w_large)


def european_sabr(instrument: European, model: SABR, market: Market) -> Estimate:
    """Black's price of a call or put at Hagan's volatility, on the forward to its expiry.

    Raises:
        ValueError: the shifted forward is not above 0, or the expansion gives a volatility that is not above 0.

    >>> call = European(strike=[90.0, 100.0, 110.0], expiry=0.5)
    >>> estimate = european_sabr(call, SABR(alpha=1.5, beta=0.5, rho=0.1, nu=0.33), Market(spot=100.0))
    >>> estimate.value
    tensor([10.9195,  4.2501,  1.1156], dtype=torch.float64)
    """
    strike, expiry = instrument.strike, instrument.expiry
    forward, vol = _shifted_forward_and_vol(strike, expiry, model, market)
    std_dev = vol * torch.sqrt(expiry)
    strike = strike + model.shift
    d_plus = (torch.log(forward) - torch.log(strike)) / std_dev + 0.5 * std_dev
    sign = 1.0 if instrument.option == "call" else -1.0
    undiscounted = sign * (forward * _cdf(sign * d_plus) - strike * _cdf(sign * (d_plus - std_dev)))
    return Estimate(market.discount(expiry) * undiscounted, std_error=0.0, engine="analytic", note=NOTE)


def _cdf(x: Tensor) -> Tensor:
    """The standard normal distribution function, accurate in the lower tail."""
    return 0.5 * torch.erfc(-math.sqrt(0.5) * x)


def _shifted_forward_and_vol(strike: Tensor, expiry: Tensor, model: SABR, market: Market) -> tuple[Tensor, Tensor]:
    forward = model.shifted_forward(market, expiry)
    vol = hagan_lognormal_vol(forward, strike + model.shift, expiry, model.alpha, model.beta, model.rho, model.nu)
    failed = ~(vol.detach() > 0.0)
    if bool(failed.any()):
        worst = strike.detach().expand(failed.shape)[failed][0].item()
        raise ValueError(
            f"Hagan's expansion must give a volatility above 0, got {vol.detach()[failed][0].item():g} at strike "
            f"{worst:g}: it does not hold at this `nu`, `rho` and expiry; use MonteCarlo"
        )
    return forward, vol


FORMULAS: dict[tuple[type[Any], type[Any]], Callable[..., Estimate]] = {(European, SABR): european_sabr}
