"""Hagan's expansions of the SABR smile: implied Black and Bachelier volatility, and prices from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pricers.black import black_call_put, black_d1_d2
from pricers.estimate import Estimate
from pricers.instruments.base import call_sign
from pricers.instruments.digital import Digital
from pricers.instruments.european import European
from pricers.instruments.variance import VarianceSwap
from pricers.market import Market
from pricers.models.sabr import SABR, expm1_ratio, unfit_for_variance
from pricers.normal import normal_cdf, normal_density
from pricers.parameters import broadcast_shape

__all__ = [
    "FORMULAS",
    "REFUSALS",
    "digital_sabr",
    "european_sabr",
    "hagan_lognormal_smile",
    "hagan_lognormal_vol",
    "hagan_normal_vol",
    "variance_swap_sabr",
]

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
    return hagan_lognormal_smile(forward, strike, expiry, alpha, beta, rho, nu)[0]


def hagan_lognormal_smile(
    forward: Tensor, strike: Tensor, expiry: Tensor, alpha: Tensor, beta: Tensor, rho: Tensor, nu: Tensor
) -> tuple[Tensor, Tensor]:
    """`hagan_lognormal_vol` and its derivative in the strike, by which a digital differs from Black's.

    Args:
        forward: as there, and so are the others.
        strike: as there.
        expiry: as there.
        alpha: as there.
        beta: as there.
        rho: as there.
        nu: as there.

    Returns:
        Annual Black volatility, and its slope in 1 / strike.
    """
    log_forward, log_strike = torch.log(forward), torch.log(strike)
    log_ratio = log_forward - log_strike
    elasticity = 1.0 - beta
    # not by `**`, whose second derivatives are wrong at exponent 0 (torch sets them to 0)
    backbone = torch.exp(0.5 * elasticity * (log_forward + log_strike))
    local = alpha / backbone  # Black volatility of the backbone
    z = nu * log_ratio / local
    level, level_slope = _series(elasticity * log_ratio)
    skew, skew_slope = _skew_ratio(z, rho)
    cross = rho * beta * nu / 4.0
    growth = 1.0 + expiry * ((elasticity * local) ** 2 / 24.0 + cross * local + (2.0 - 3.0 * rho**2) * nu**2 / 24.0)
    vol = local / level * skew * growth
    # the logarithmic derivative of each factor in log(strike); that of `local` is -elasticity / 2
    slope = -0.5 * elasticity + elasticity * level_slope / level
    slope = slope + skew_slope / skew * (0.5 * elasticity * z - nu / local)
    slope = slope - 0.5 * elasticity * local * expiry * (elasticity**2 * local / 12.0 + cross) / growth
    return vol, vol * slope / strike


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
        Hagan, Kumar, Lesniewski and Woodward (2002), Managing smile risk, appendix on equivalent volatilities.

    >>> number = lambda x: torch.tensor(x, dtype=torch.float64)
    >>> vol = hagan_normal_vol(*map(number, (0.01, -0.005, 1.0, 0.03, 0.5, -0.2, 0.4)), shift=0.02)
    >>> round(vol.item() * 1e4, 6)  # basis points a year
    58.237328
    """
    forward, strike = forward + shift, strike + shift
    log_forward, log_strike = torch.log(forward), torch.log(strike)
    log_ratio, log_product = log_forward - log_strike, log_forward + log_strike
    backbone = torch.exp(0.5 * (1.0 - beta) * log_product)
    level = alpha * torch.exp(0.5 * beta * log_product) * _series(log_ratio)[0] / _series((1.0 - beta) * log_ratio)[0]
    skew, _ = _skew_ratio(nu * backbone * log_ratio / alpha, rho)
    local = alpha / backbone
    growth = -beta * (2.0 - beta) * local**2 / 24.0 + rho * beta * nu * local / 4.0 + (2 - 3 * rho**2) * nu**2 / 24.0
    return level * skew * (1.0 + growth * expiry)


def _series(x: Tensor) -> tuple[Tensor, Tensor]:
    """Hagan's truncated sinh(x/2) / (x/2), and its derivative."""
    square = x**2
    return 1.0 + square / 24.0 + square**2 / 1920.0, x * (1.0 / 12.0 + square / 480.0)


def _skew_ratio(z: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
    """z / x(z) and its derivative, exact to rounding for every z, through 0, and rho up to the ends of (-1, 1).

    x(z) = log(1 + w) with w = (J + z - rho) / (1 - rho) - 1, J = sqrt(1 - 2 rho z + z^2). The ratio is the product of
    z / w, which is algebraic, and w / log(1 + w), which has a series at 0.
    """
    sign = torch.where(z < 0.0, -1.0, 1.0).to(z.dtype)  # x(-z; -rho) = -x(z; rho): z is not negative below
    z, rho = sign * z, sign * rho
    to_one = 1.0 - rho
    distance = z - rho
    root = torch.sqrt(distance**2 + to_one * (1.0 + rho))  # J
    larger = torch.where(distance > 0.0, root + distance, root - distance)  # no cancellation in the sum
    root_sum = torch.where(distance > 0.0, larger, to_one * (1.0 + rho) / larger)  # J + z - rho
    w_over_z = (root_sum + to_one) / (to_one * (root + 1.0))
    w_over_z_slope = (to_one * (1.0 + 2.0 * rho - z) + root_sum) / (to_one * root * (root + 1.0) ** 2)
    log_ratio, log_slope = _log1p_ratio(z * w_over_z)
    ratio = 1.0 / (w_over_z * log_ratio)
    w_slope = root_sum / (to_one * root)
    return ratio, -sign * ratio * (w_over_z_slope / w_over_z + w_slope * log_slope / log_ratio)


def _log1p_ratio(w: Tensor) -> tuple[Tensor, Tensor]:
    """log(1 + w) / w and its derivative for w of 0 or more, correct at 0 with the derivatives that torch takes."""
    small = w < SERIES_BELOW
    near = torch.where(small, w, 0.0)
    inverse = 1.0 / (2.0 + near)
    y = near * inverse  # log(1 + w) = 2 atanh(w / (2 + w))
    square = y**2
    series = torch.full_like(y, 1.0 / (2 * N_SERIES + 1))  # of atanh(y) / y in y^2
    series_slope = torch.zeros_like(y)
    for k in range(N_SERIES - 1, -1, -1):
        series_slope = series_slope * square + series
        series = series * square + 1.0 / (2 * k + 1)
    near_ratio = 2.0 * inverse * series
    near_slope = 2.0 * inverse**2 * (4.0 * y * inverse * series_slope - series)
    far = torch.where(small, 1.0, w)
    far_ratio = torch.log1p(far) / far
    far_slope = (1.0 / (1.0 + far) - far_ratio) / far
    return torch.where(small, near_ratio, far_ratio), torch.where(small, near_slope, far_slope)


def european_sabr(instrument: European, model: SABR, market: Market) -> Estimate:
    """Black's price of a call or put at Hagan's volatility, on the forward to its expiry.

    Raises:
        ValueError: the shifted forward is not above 0, or the expansion gives a volatility that is not above 0.

    >>> call = European(strike=[90.0, 100.0, 110.0], expiry=0.5)
    >>> estimate = european_sabr(call, SABR(alpha=1.5, beta=0.5, rho=0.1, nu=0.33), Market(spot=100.0))
    >>> estimate.value
    tensor([10.9195,  4.2501,  1.1156], dtype=torch.float64)
    """
    forward, strike, vol, _ = _smile(instrument, model, market)
    return _estimate(instrument, market, _option(forward, strike, vol, instrument))


def digital_sabr(instrument: Digital, model: SABR, market: Market) -> Estimate:
    r"""Minus (call) or plus (put) the strike derivative of the European, along Hagan's smile.

    A unit of cash on the call side is worth $N(d_2) - \text{vega}\,\partial_K\mathrm{vol}$; a share is the European
    plus `strike` units of cash.

    Raises:
        ValueError: as `european_sabr`.

    >>> digital = Digital(strike=[90.0, 100.0, 110.0], expiry=0.5)
    >>> digital_sabr(digital, SABR(alpha=1.5, beta=0.5, rho=0.1, nu=0.33), Market(spot=100.0)).value
    tensor([0.8275, 0.4847, 0.1701], dtype=torch.float64)
    """
    forward, strike, vol, slope = _smile(instrument, model, market)
    root = torch.sqrt(instrument.expiry)
    d1, d2 = black_d1_d2(forward, strike, vol * root)
    sign = call_sign(instrument.option)
    vega = forward * root * normal_density(d1)
    value = normal_cdf(sign * d2) - sign * vega * slope
    if instrument.pays == "asset":
        value = instrument.strike * value + sign * _option(forward, strike, vol, instrument)
    return _estimate(instrument, market, value)


def variance_swap_sabr(instrument: VarianceSwap, model: SABR, market: Market) -> Estimate:
    r"""At beta = 1 the mean of a lognormal: $\frac1T\int E\sigma_t^2 dt = \alpha^2 (e^{\nu^2 T} - 1) / (\nu^2 T)$.

    >>> swap = VarianceSwap(strike=0.04, expiry=1.0)
    >>> variance_swap_sabr(swap, SABR(alpha=0.2, beta=1.0, rho=-0.3, nu=0.5), Market(spot=100.0)).value
    tensor(0.0054, dtype=torch.float64)
    """
    expiry = instrument.expiry
    mean = model.alpha**2 * expm1_ratio(model.nu**2 * expiry)
    shape = broadcast_shape(instrument=instrument.batch_shape, model=model.batch_shape, market=market.batch_shape())
    value = (mean - instrument.strike) * market.discount(expiry)
    return Estimate(value.expand(shape), std_error=0.0, engine="analytic")


def refuse_variance_swap(instrument: VarianceSwap, model: SABR, market: Market) -> str | None:
    """Why the variance of the log price has no mean; None if it has."""
    return unfit_for_variance(model)


def _smile(instrument: European | Digital, model: SABR, market: Market) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shifted forward and strike, volatility and its slope in the strike; checked."""
    expiry = instrument.expiry
    forward, strike = model.shifted_forward(market, expiry), instrument.strike + model.shift
    vol, slope = hagan_lognormal_smile(forward, strike, expiry, model.alpha, model.beta, model.rho, model.nu)
    failed = ~(vol.detach() > 0.0)
    if bool(failed.any()):
        worst = instrument.strike.detach().expand(failed.shape)[failed][0].item()
        raise ValueError(
            f"Hagan's expansion must give a volatility above 0, got {vol.detach()[failed][0].item():g} at strike "
            f"{worst:g}: it does not hold at this `nu`, `rho` and expiry; use MonteCarlo"
        )
    return forward, strike, vol, slope


def _option(forward: Tensor, strike: Tensor, vol: Tensor, instrument: European | Digital) -> Tensor:
    call, put = black_call_put(forward, strike, vol * torch.sqrt(instrument.expiry))
    return call if instrument.option == "call" else put


def _estimate(instrument: European | Digital, market: Market, undiscounted: Tensor) -> Estimate:
    value = market.discount(instrument.expiry) * undiscounted
    return Estimate(value, std_error=0.0, engine="analytic", note=NOTE)


FORMULAS: dict[tuple[type[Any], type[Any]], Callable[..., Estimate]] = {
    (European, SABR): european_sabr,
    (Digital, SABR): digital_sabr,
    (VarianceSwap, SABR): variance_swap_sabr,
}
REFUSALS: dict[tuple[type[Any], type[Any]], Callable[..., str | None]] = {(VarianceSwap, SABR): refuse_variance_swap}
