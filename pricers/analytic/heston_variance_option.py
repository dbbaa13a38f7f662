"""Options on realised variance under Heston: the Laplace transform of the integrated variance, inverted."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pricers.characteristic import mean_variance
from pricers.estimate import Estimate
from pricers.instruments.variance import VarianceOption
from pricers.market import Market
from pricers.models.heston import Heston
from pricers.parameters import broadcast_shape

__all__ = ["FORMULAS", "mean_variance_log_laplace", "variance_put_price"]

N_NODES = 192  # of the trapezoidal rule, whose error falls geometrically: below rounding with room to spare
TILT = 0.4  # how far the contour bends to the left for each step along the imaginary axis
DEPTH = 40.0  # the contour ends where the integrand has fallen by e^-40
FARTHEST = 60  # in units of the contour's own parameter, along which it runs off exponentially
N_BISECTIONS = 60


def mean_variance_log_laplace(
    s: Tensor, expiry: Tensor, v0: Tensor, kappa: Tensor, theta: Tensor, sigma: Tensor
) -> Tensor:
    r"""$\log E\,e^{-s V}$ of the mean variance $V = \frac1T \int_0^T v_t\,dt$ of a square-root process.

    With $\lambda = s / T$, $\gamma = \sqrt{\kappa^2 + 2 \sigma^2 \lambda}$ and $e = e^{-\gamma T}$

    $$-\frac{2 \lambda (1 - e)}{(\gamma + \kappa) + (\gamma - \kappa) e}\,v_0
      - \frac{2 \kappa\theta \lambda T}{\gamma + \kappa}
      - \frac{2 \kappa\theta}{\sigma^2} \log\Big(1 - \frac{\sigma^2 \lambda (1 - e)}{\gamma (\gamma + \kappa)}\Big),$$

    analytic away from the negative real axis; written so that no digits are lost for small sigma.

    Args:
        s: complex, off the negative real axis; the other arguments broadcast with it.
        expiry: $T$ in years.
        v0: variance today, per year.
        kappa: speed of mean reversion, per year.
        theta: long-run variance, per year.
        sigma: volatility of variance.

    Returns:
        Complex, of the broadcast shape.

    References:
        Cox, Ingersoll and Ross (1985), A theory of the term structure of interest rates, eq. 23.
        Dufresne (2001), The integrated square-root process.
    """
    rate = s / expiry
    gamma = (kappa**2 + 2.0 * sigma**2 * rate).sqrt()
    decay = -torch.expm1(-gamma * expiry)
    loading = 2.0 * rate * decay / (2.0 * gamma - (gamma - kappa) * decay)
    drift = 2.0 * kappa * theta * rate * expiry / (gamma + kappa)
    ratio = sigma**2 * rate * decay / (gamma * (gamma + kappa))
    return -loading * v0 - drift - 2.0 * kappa * theta / sigma**2 * torch.log1p(-ratio)


def variance_put_price(
    strike: Tensor, expiry: Tensor, v0: Tensor, kappa: Tensor, theta: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Undiscounted put on the mean variance, $E (K - V)^+ = \frac{1}{2\pi i} \int e^{sK} E[e^{-sV}] \frac{ds}{s^2}$.

    The contour passes through the saddle point of the integrand on the positive axis and bends to the left, where the
    integrand dies away: $s = s_0 + b (1 - \cosh x) + i c \sinh x$ and the trapezoidal rule in $x$.

    Args:
        strike: $K$, above 0; all arguments broadcast.
        expiry: years, above 0.
        v0: variance today, per year.
        kappa: speed of mean reversion, per year.
        theta: long-run variance, per year.
        sigma: volatility of variance.

    Returns:
        The price and a bound of its error (the change on halving the nodes, and rounding).

    References:
        Carr, Geman, Madan and Yor (2005), Pricing options on realized variance, section 3.
        Weideman and Trefethen (2007), Parabolic and hyperbolic contours for computing the Bromwich integral.

    >>> number = [torch.tensor(x, dtype=torch.float64) for x in (0.04, 1.0, 0.04, 1.0, 0.04, 0.5)]
    >>> price, _ = variance_put_price(*number)
    >>> round(price.item(), 8)
    0.01474262
    """
    shape = broadcast_shape(strike=strike, expiry=expiry, v0=v0, kappa=kappa, theta=theta, sigma=sigma)
    strike = strike.expand(shape).unsqueeze(-1)
    law = tuple(parameter.expand(shape).unsqueeze(-1) for parameter in (expiry, v0, kappa, theta, sigma))
    with torch.no_grad():
        saddle, width = _saddle(strike, law)
        end = _end(strike, law, saddle, width)
        share = torch.arange(N_NODES + 1, dtype=strike.dtype, device=strike.device) / N_NODES
        s, slope = _contour(saddle, width, end * share)
        step = end / N_NODES
    # The price does not depend on the contour, nor do its derivatives: the nodes carry no graph.
    integrand = ((s * strike + mean_variance_log_laplace(s, *law)).exp() / s**2 * slope).imag * step / math.pi
    price = integrand.sum(-1) - 0.5 * integrand[..., 0]
    with torch.no_grad():
        coarse = 2.0 * (integrand[..., ::2].sum(-1) - 0.5 * integrand[..., 0])
        rounding = 8.0 * torch.finfo(strike.dtype).eps * (strike[..., 0] + integrand.abs().sum(-1))
    return price, (price.detach() - coarse).abs() + rounding


Law = tuple[Tensor, ...]


def _exponent(s: Tensor, strike: Tensor, law: Law) -> Tensor:
    """Logarithm of the integrand."""
    return s * strike + mean_variance_log_laplace(s, *law) - 2.0 * s.log()


def _slope(s: Tensor, strike: Tensor, law: Law) -> Tensor:
    """Derivative of the exponent on the positive axis, by a complex step: no digits are lost."""
    tiny = 1e-20 * s
    return _exponent(torch.complex(s, tiny), strike, law).imag / tiny


def _saddle(strike: Tensor, law: Law) -> tuple[Tensor, Tensor]:
    """Where the convex exponent is least on the positive axis, and one over the root of its curvature there."""
    low, high = -math.log(10.0) + 0.0 * strike, 40.0 + 0.0 * strike  # of log(s strike)
    for _ in range(N_BISECTIONS):
        middle = 0.5 * (low + high)
        falling = _slope(middle.exp() / strike, strike, law) < 0
        low, high = torch.where(falling, middle, low), torch.where(falling, high, middle)
    saddle = (0.5 * (low + high)).exp() / strike
    near = 1e-3
    curvature = _slope(saddle * (1 + near), strike, law) - _slope(saddle * (1 - near), strike, law)
    return saddle, (curvature / (2.0 * near * saddle)).rsqrt()


def _contour(saddle: Tensor, width: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Points of the contour and their derivative in its parameter."""
    sinh, cosh = x.sinh(), x.cosh()
    points = torch.complex(saddle + TILT * width * (1.0 - cosh), width * sinh)
    return points, torch.complex(-TILT * width * sinh, width * cosh)


def _end(strike: Tensor, law: Law, saddle: Tensor, width: Tensor) -> Tensor:
    """Parameter at which the integrand is negligible."""
    x = torch.arange(1, FARTHEST + 1, dtype=strike.dtype, device=strike.device) * 0.5
    s, slope = _contour(saddle, width, x)
    size = (_exponent(s, strike, law) + slope.log()).real
    top = (_exponent(torch.complex(saddle, torch.zeros_like(saddle)), strike, law)).real + width.log()
    alive = (size > top - DEPTH).to(x)
    return 0.5 * (alive * torch.arange(1, FARTHEST + 1, device=x.device).to(x)).amax(-1, keepdim=True) + 0.5


def variance_option_formula(instrument: VarianceOption, model: Heston, market: Market) -> Estimate:
    """Put by inversion, call by parity with the swap.

    Raises:
        ValueError: the market pays cash dividends.
    """
    if market.dividends is not None:
        raise ValueError("a cash dividend makes the price jump by an unknown share of itself; simulate it")
    broadcast_shape(instrument=instrument.batch_shape, model=model.batch_shape, market=market.batch_shape())
    strike, expiry = instrument.strike, instrument.expiry
    value, bound = variance_put_price(strike, expiry, model.v0, model.kappa, model.theta, model.sigma)
    if instrument.option == "call":
        value = value + mean_variance(expiry, model.v0, model.kappa, model.theta) - strike
    discount = market.discount(expiry)
    value = value * discount
    return Estimate(value, std_error=0.0, error_bound=bound * discount.detach(), engine="analytic")


FORMULAS = {(VarianceOption, Heston): variance_option_formula}
