"""Closed-form sensitivities of European options, by the forward and by the spot.

The engines' Greeks come by automatic differentiation; these are the formulas that they are held against, and the fast
way where a Black vol is all there is. `theta` here is time decay per year: minus the derivative by the expiry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pricers.black.price import OPTIONS, bachelier_call_put, black_call_put, black_d1_d2
from pricers.normal import normal_cdf, normal_density
from pricers.parameters import broadcast_shape, choice, real, within

__all__ = ["ForwardGreeks", "SpotGreeks", "bachelier_greeks", "black_greeks", "black_scholes_greeks"]


@dataclass(frozen=True, eq=False)
class ForwardGreeks:
    """Sensitivities of a price that is a function of forward, strike, expiry, vol and discount factor.

    Args:
        delta: by the forward, the discount factor held.
        gamma: twice by the forward.
        vega: by the vol, per unit of vol.
        theta: time decay per year: minus the derivative by the expiry, forward, vol and the rate
            -log(discount) / expiry held.
        rho: by that rate, the forward held.
        vanna: by forward and vol.
        volga: twice by the vol.
        dual_delta: by the strike.
    """

    delta: Tensor
    gamma: Tensor
    vega: Tensor
    theta: Tensor
    rho: Tensor
    vanna: Tensor
    volga: Tensor
    dual_delta: Tensor


@dataclass(frozen=True, eq=False)
class SpotGreeks:
    """Sensitivities of a price that is a function of spot, strike, expiry, vol, rate and dividend yield.

    Args:
        delta: by the spot.
        gamma: twice by the spot.
        vega: by the vol, per unit of vol.
        theta: time decay per year: minus the derivative by the expiry, all else held.
        rho: by the rate, per unit of rate.
        dividend_rho: by the dividend yield, per unit of yield.
        vanna: by spot and vol.
        volga: twice by the vol.
        dual_delta: by the strike.
    """

    delta: Tensor
    gamma: Tensor
    vega: Tensor
    theta: Tensor
    rho: Tensor
    dividend_rho: Tensor
    vanna: Tensor
    volga: Tensor
    dual_delta: Tensor


def black_greeks(
    forward: Any, strike: Any, expiry: Any, vol: Any, discount: Any = 1.0, option: str = "call"
) -> ForwardGreeks:
    r"""Sensitivities of `black_price`.

    $$\Delta = D\,\Phi(d_1), \quad \Gamma = \frac{D\,\varphi(d_1)}{F \sigma\sqrt{T}}, \quad
    \mathcal{V} = D F \varphi(d_1) \sqrt{T}$$

    for the call.

    Args:
        forward: above zero; all arguments broadcast.
        strike: above zero.
        expiry: years, above zero.
        vol: annualised, decimal, above zero.
        discount: discount factor to the expiry, above zero.
        option: "call" or "put".

    Returns:
        The sensitivities, each of the broadcast shape.

    Raises:
        ValueError: an argument breaks its rule, or two shapes do not broadcast.

    References:
        Haug (2007), The Complete Guide to Option Pricing Formulas, chapter 2.

    >>> greeks = black_greeks(forward=105.0, strike=100.0, expiry=0.5, vol=0.36, discount=0.951229)
    >>> round(greeks.delta.item(), 4)
    0.5946
    """
    forward, strike = within("forward", forward, above=0.0), within("strike", strike, above=0.0)
    strike, expiry, vol, discount, sign = _arguments(forward, strike, expiry, vol, discount, option)
    root = expiry.sqrt()
    deviation = vol * root
    d1, d2 = black_d1_d2(forward, strike, deviation)
    call, put = black_call_put(forward, strike, deviation)
    value = discount * (call if sign > 0 else put)
    density = discount * normal_density(d1)
    vega = forward * density * root
    return ForwardGreeks(
        delta=sign * discount * normal_cdf(sign * d1),
        gamma=density / (forward * deviation),
        vega=vega,
        theta=-value * torch.log(discount) / expiry - 0.5 * vega * vol / expiry,
        rho=-expiry * value,
        vanna=-density * d2 / vol,
        volga=vega * d1 * d2 / vol,
        dual_delta=-sign * discount * normal_cdf(sign * d2),
    )


def bachelier_greeks(
    forward: Any, strike: Any, expiry: Any, vol: Any, discount: Any = 1.0, option: str = "call"
) -> ForwardGreeks:
    r"""Sensitivities of `bachelier_price`.

    $$\Delta = D\,\Phi(d), \quad \Gamma = \frac{D\,\varphi(d)}{\sigma\sqrt{T}}, \quad
    \mathcal{V} = D\,\varphi(d) \sqrt{T}$$

    for the call.

    Args:
        forward: any sign; all arguments broadcast.
        strike: any sign.
        expiry: years, above zero.
        vol: normal vol, in units of the forward per root of a year, above zero.
        discount: discount factor to the expiry, above zero.
        option: "call" or "put".

    Returns:
        The sensitivities, each of the broadcast shape.

    Raises:
        ValueError: an argument breaks its rule, or two shapes do not broadcast.

    >>> bachelier_greeks(forward=0.01, strike=0.01, expiry=1.0, vol=0.01).delta
    tensor(0.5000, dtype=torch.float64)
    """
    forward, strike = real("forward", forward), real("strike", strike)
    strike, expiry, vol, discount, sign = _arguments(forward, strike, expiry, vol, discount, option)
    root = expiry.sqrt()
    deviation = vol * root
    d = (forward - strike) / deviation
    call, put = bachelier_call_put(forward, strike, deviation)
    value = discount * (call if sign > 0 else put)
    density = discount * normal_density(d)
    delta = sign * discount * normal_cdf(sign * d)
    vega = density * root
    return ForwardGreeks(
        delta=delta,
        gamma=density / deviation,
        vega=vega,
        theta=-value * torch.log(discount) / expiry - 0.5 * vega * vol / expiry,
        rho=-expiry * value,
        vanna=-density * d / vol,
        volga=vega * d * d / vol,
        dual_delta=-delta,
    )


def black_scholes_greeks(
    spot: Any,
    strike: Any,
    expiry: Any,
    vol: Any,
    rate: Any = 0.0,
    dividend_yield: Any = 0.0,
    option: str = "call",
) -> SpotGreeks:
    r"""Sensitivities of a Black-Scholes price by the spot, the forward being $F = S e^{(r - q) T}$.

    $$\Delta = e^{-qT}\,\Phi(d_1), \quad \Gamma = \frac{e^{-qT} \varphi(d_1)}{S \sigma\sqrt{T}}, \quad
    \mathcal{V} = S e^{-qT} \varphi(d_1) \sqrt{T}, \quad \rho = K T e^{-rT}\,\Phi(d_2)$$

    for the call.

    Args:
        spot: above zero; all arguments broadcast.
        strike: above zero.
        expiry: years, above zero.
        vol: annualised, decimal, above zero.
        rate: continuous, per year, decimal.
        dividend_yield: continuous, per year, decimal.
        option: "call" or "put".

    Returns:
        The sensitivities, each of the broadcast shape.

    Raises:
        ValueError: an argument breaks its rule, or two shapes do not broadcast.

    References:
        Haug (2007), The Complete Guide to Option Pricing Formulas, chapter 2.

    >>> greeks = black_scholes_greeks(spot=55.0, strike=60.0, expiry=0.75, vol=0.3, rate=0.1)
    >>> round(greeks.gamma.item(), 4), round(greeks.vega.item(), 4)
    (0.0278, 18.9358)
    """
    spot, rate = within("spot", spot, above=0.0), real("rate", rate)
    dividend_yield = real("dividend_yield", dividend_yield)
    broadcast_shape(spot=spot, rate=rate, dividend_yield=dividend_yield)
    strike = within("strike", strike, above=0.0)
    strike, expiry, vol, _, sign = _arguments(spot, strike, expiry, vol, 1.0, option)
    broadcast_shape(rate=rate, dividend_yield=dividend_yield, strike=strike, expiry=expiry, vol=vol)
    root, discount, carry = expiry.sqrt(), torch.exp(-rate * expiry), torch.exp(-dividend_yield * expiry)
    d1, d2 = black_d1_d2(spot * carry / discount, strike, vol * root)
    asset_leg = sign * spot * carry * normal_cdf(sign * d1)
    cash_leg = sign * strike * discount * normal_cdf(sign * d2)
    density = carry * normal_density(d1)
    vega = spot * density * root
    return SpotGreeks(
        delta=asset_leg / spot,
        gamma=density / (spot * vol * root),
        vega=vega,
        theta=dividend_yield * asset_leg - rate * cash_leg - 0.5 * vega * vol / expiry,
        rho=expiry * cash_leg,
        dividend_rho=-expiry * asset_leg,
        vanna=-density * d2 / vol,
        volga=vega * d1 * d2 / vol,
        dual_delta=-cash_leg / strike,
    )


def _arguments(
    forward: Tensor, strike: Tensor, expiry: Any, vol: Any, discount: Any, option: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    """Strike, expiry, vol, discount, checked, and 1 for a call, -1 for a put."""
    expiry, vol = within("expiry", expiry, above=0.0), within("vol", vol, above=0.0)
    discount = within("discount", discount, above=0.0)
    broadcast_shape(forward=forward, strike=strike, expiry=expiry, vol=vol, discount=discount)
    return strike, expiry, vol, discount, 1.0 if choice("option", option, OPTIONS) == "call" else -1.0
