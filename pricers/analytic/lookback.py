"""Lookback options, continuously monitored: closed forms."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pricers.analytic.reflection import curve_refusal, flat_rates, normal_option, weighted_ndtr
from pricers.estimate import Estimate
from pricers.instruments.base import call_sign
from pricers.instruments.lookback import Lookback, check_running_extremum
from pricers.market import Market
from pricers.models.black_scholes import BlackScholes
from pricers.normal import mills_ratio, normal_cdf

__all__ = ["FORMULAS", "REFUSALS", "lookback_formula", "lookback_price", "lookback_refusal", "strike_bonus"]

N_TERMS = 10  # of the series in `strike_bonus`: error below 1e-16


def lookback_price(
    spot: Tensor,
    strike: Tensor | None,
    expiry: Tensor,
    extremum: Tensor,
    option: str,
    rate: Tensor,
    dividend_yield: Tensor,
    vol: Tensor,
) -> Tensor:
    r"""Value of a lookback option under Black-Scholes, the path watched at all times.

    A floating strike is a European option struck at the extreme so far, plus what later extremes add (`strike_bonus`).
    A fixed strike is the same, struck at the better of strike and extreme, plus what is in the money for certain.

    Args:
        spot: price today; all tensors broadcast.
        strike: above 0, or None for a floating strike.
        expiry: years, above 0.
        extremum: extreme so far, today included: the minimum, at most `spot`, for a floating call or a fixed put, else
            the maximum, at least `spot`.
        option: "call" or "put".
        rate: continuous, per year.
        dividend_yield: continuous, per year.
        vol: annualised, above 0.

    Returns:
        The broadcast shape.

    References:
        Goldman, Sosin and Gatto (1979); Conze and Viswanathan (1991); Haug (2007), sections 4.15.1 and 4.15.2.

    >>> number = lambda x: torch.tensor(x, dtype=torch.float64)
    >>> law = (number(0.10), number(0.06), number(0.30))
    >>> lookback_price(number(120.0), None, number(0.5), number(100.0), "call", *law)
    tensor(25.3534, dtype=torch.float64)
    """
    sign = call_sign(option)
    of_maximum = (strike is None) == (option == "put")
    level, certain = extremum, None
    if strike is not None:
        level = torch.maximum(strike, extremum) if of_maximum else torch.minimum(strike, extremum)
        certain = sign * (level - strike) * torch.exp(-rate * expiry)
    root = vol * expiry.sqrt()
    upper = (torch.log(spot / level) + (rate - dividend_yield) * expiry) / root + 0.5 * root
    asset, cash = spot * torch.exp(-dividend_yield * expiry), level * torch.exp(-rate * expiry)
    value = normal_option(sign, asset, cash, upper, root)
    value = value + strike_bonus(spot, expiry, level, rate, dividend_yield, vol, of_maximum)
    return value if certain is None else value + certain


def strike_bonus(
    spot: Tensor,
    expiry: Tensor,
    extremum: Tensor,
    rate: Tensor,
    dividend_yield: Tensor,
    vol: Tensor,
    of_maximum: bool,
) -> Tensor:
    r"""What a floating strike is worth beyond a European option struck at the extreme so far.

    For the minimum $m$, with $s = v\sqrt T$, $y = (r - q) T / s$ and $z = -\log(S/m)/s - s/2$ it is

    $$S e^{-rT}\,\frac{s}{2y} \left[(S/m)^{-2y/s} N(z + y) - e^{ys} N(z - y)\right]
      = m\,e^{-rT - a^2/2}\,s\,\frac{B(z + y) - B(z - y)}{2y}, \qquad B(x) = e^{x^2/2} N(x),$$

    $a = y - z - s$; for the maximum $z$ and $y$ change their sign. The second form is even in $y$: where $y$ is small
    it is taken from its power series, so that $r = q$ is no special case.

    Args:
        spot: price today; all tensors broadcast.
        expiry: years.
        extremum: extreme so far.
        rate: continuous, per year.
        dividend_yield: continuous, per year.
        vol: annualised.
        of_maximum: the extreme is the maximum, else the minimum.

    References:
        Garman (1989), Recollection in tranquillity: the name; Haug (2007), section 4.15.1: the third term.
    """
    sign = -1.0 if of_maximum else 1.0
    root, log_ratio = vol * expiry.sqrt(), torch.log(spot / extremum)
    growth = (rate - dividend_yield) * expiry
    y = growth / root
    z = -log_ratio / root - 0.5 * root
    half_square = 0.5 * (y - z - root) ** 2
    small = y.abs() * (1.0 + z.abs()) < 0.5

    safe = torch.where(small, 1.0, y)
    weight = log_ratio * (1.0 - 2.0 * y / root)
    first = weighted_ndtr(sign * (z + y), weight, -half_square)
    closed = sign * 0.5 * root / safe * (first - torch.exp(log_ratio + growth) * normal_cdf(sign * (z - y)))

    even = _divided_difference(torch.where(small, sign * z, 0.0), torch.where(small, y, 0.0))
    series = root * torch.exp(-half_square) * even
    return extremum * torch.exp(-rate * expiry) * torch.where(small, series, closed)


def _divided_difference(z: Tensor, y: Tensor) -> Tensor:
    r"""$(B(z + y) - B(z - y)) / 2y$ of $B(x) = e^{x^2/2} N(x)$ for small `y`.

    It is $\sum_j B^{(2j+1)}(z) y^{2j} / (2j + 1)!$; the derivatives follow from $B' = x B + 1/\sqrt{2\pi}$ by
    $B^{(k+1)} = z B^{(k)} + k B^{(k-1)}$.
    """
    far = z < -40.0  # what multiplies it is 0 there
    z = torch.where(far, 0.0, z)
    density = 1.0 / math.sqrt(2.0 * math.pi)
    before = mills_ratio(-z) * density
    derivative = z * before + density
    power = torch.ones_like(y)
    total = derivative
    for order in range(1, 2 * N_TERMS - 1, 2):  # `derivative` is of this order
        even = z * derivative + order * before
        before, derivative = even, z * even + (order + 1) * derivative
        power = power * y**2 / ((order + 1) * (order + 2))
        total = total + power * derivative
    return torch.where(far, 0.0, total)


def lookback_refusal(instrument: Lookback, model: BlackScholes, market: Market) -> str | None:
    """Why the closed form does not hold; None if it does."""
    return curve_refusal(market)


def lookback_formula(instrument: Lookback, model: BlackScholes, market: Market) -> Estimate:
    """`lookback_price` for contract, model and market.

    Raises:
        ValueError: the running extreme lies on the wrong side of the spot, or rates are not flat.
    """
    rate, dividend_yield = flat_rates(market)
    check_running_extremum(instrument, market.spot)
    extremum = market.spot if instrument.running_extremum is None else instrument.running_extremum
    value = lookback_price(
        market.spot,
        instrument.strike,
        instrument.expiry,
        extremum,
        instrument.option,
        rate,
        dividend_yield,
        model.vol,
    )
    return Estimate(value, std_error=0.0, engine="analytic")


FORMULAS = {(Lookback, BlackScholes): lookback_formula}
REFUSALS = {(Lookback, BlackScholes): lookback_refusal}
