"""Black-76 and Bachelier prices of calls, puts and digitals as pure functions of the forward.

The `..._call_put` functions take the total vol and check nothing: they are for use inside the library. The others check
their arguments, by name. All are differentiable in every argument, forwards and backwards, as often as one likes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pricers.black.normalised import log_ratio, normal_tail_mean, normalised_call, positive_total_vol
from pricers.normal import normal_cdf
from pricers.parameters import broadcast_shape, choice, real, within

__all__ = [
    "bachelier_call_put",
    "bachelier_digital",
    "bachelier_price",
    "black_call_put",
    "black_d1_d2",
    "black_digital",
    "black_price",
    "total_vol",
]

OPTIONS = ("call", "put")
PAYMENTS = ("cash", "asset")


def black_call_put(forward: Tensor, strike: Tensor, total_vol: Tensor) -> tuple[Tensor, Tensor]:
    """Undiscounted Black-76 call and put; nothing is checked.

    The one that is out of the money has full relative accuracy, the other one is it plus the intrinsic value.

    Args:
        forward: above zero.
        strike: above zero.
        total_vol: vol times the root of the expiry, zero or more.

    Returns:
        Call and put, in the unit of the forward, broadcast.
    """
    call_is_out = strike >= forward
    low, high = torch.where(call_is_out, forward, strike), torch.where(call_is_out, strike, forward)
    out = low * normalised_call(log_ratio(low, high), positive_total_vol(total_vol))
    out = _zero_value(out, total_vol)
    other = out + (high - low)
    return torch.where(call_is_out, out, other), torch.where(call_is_out, other, out)


def bachelier_call_put(forward: Tensor, strike: Tensor, total_vol: Tensor) -> tuple[Tensor, Tensor]:
    """Undiscounted call and put on a normal forward; nothing is checked. As `black_call_put`, forward and strike real.

    Args:
        forward: any sign.
        strike: any sign.
        total_vol: normal vol times the root of the expiry, in the unit of the forward, zero or more.

    Returns:
        Call and put, in the unit of the forward, broadcast.
    """
    call_is_out = strike >= forward
    distance = torch.where(call_is_out, strike - forward, forward - strike)
    scale = positive_total_vol(total_vol)
    out = _zero_value(scale * normal_tail_mean(distance / scale), total_vol)
    other = out + distance
    return torch.where(call_is_out, out, other), torch.where(call_is_out, other, out)


def black_d1_d2(forward: Tensor, strike: Tensor, total_vol: Tensor) -> tuple[Tensor, Tensor]:
    """d1 and d2 = d1 - total vol of Black's formula; nothing is checked.

    >>> d1, d2 = black_d1_d2(torch.tensor(100.0), torch.tensor(100.0), torch.tensor(0.2))
    >>> round(d1.item(), 3), round(d2.item(), 3)
    (0.1, -0.1)
    """
    call_is_out = strike >= forward
    log_of_ratio = log_ratio(torch.where(call_is_out, forward, strike), torch.where(call_is_out, strike, forward))
    middle = torch.where(call_is_out, log_of_ratio, -log_of_ratio) / positive_total_vol(total_vol)
    return middle + 0.5 * total_vol, middle - 0.5 * total_vol


def total_vol(vol: Tensor, expiry: Tensor) -> Tensor:
    """vol times the root of the expiry, with a zero in place of the infinite slope at expiry zero."""
    alive = expiry > 0
    return vol * torch.where(alive, torch.where(alive, expiry, 1.0).sqrt(), 0.0)


def black_price(forward: Any, strike: Any, expiry: Any, vol: Any, discount: Any = 1.0, option: str = "call") -> Tensor:
    r"""Price of a European option on a lognormal forward.

    $$D\,[F\,\Phi(d_1) - K\,\Phi(d_2)], \qquad d_{1,2} = \frac{\log(F/K)}{\sigma\sqrt{T}} \pm \frac{\sigma\sqrt{T}}{2}$$

    for the call; the put by parity. Out of the money the relative error is a few units in the last place however small
    the price.

    Args:
        forward: forward of the asset to the expiry, above zero; all arguments broadcast.
        strike: above zero.
        expiry: years, zero or more.
        vol: annualised, decimal, zero or more.
        discount: discount factor to the expiry, above zero.
        option: "call" or "put".

    Returns:
        The price today, of the broadcast shape.

    Raises:
        ValueError: an argument breaks its rule, or two shapes do not broadcast.

    References:
        Black (1976), The pricing of commodity contracts, equation 16.

    >>> black_price(forward=100.0, strike=[100.0, 110.0], expiry=1.0, vol=0.2, discount=0.95)
    tensor([7.567..., 4.07...], dtype=torch.float64)
    """
    forward, strike, discount, deviation = _black_arguments(forward, strike, expiry, vol, discount)
    call, put = black_call_put(forward, strike, deviation)
    return discount * (call if choice("option", option, OPTIONS) == "call" else put)


def bachelier_price(
    forward: Any, strike: Any, expiry: Any, vol: Any, discount: Any = 1.0, option: str = "call"
) -> Tensor:
    r"""Price of a European option on a normal forward.

    $$D\,[(F - K)\,\Phi(d) + \sigma\sqrt{T}\,\varphi(d)], \qquad d = \frac{F - K}{\sigma\sqrt{T}}$$

    for the call; the put by parity. Out of the money the relative error is a few units in the last place.

    Args:
        forward: forward of the asset to the expiry, any sign; all arguments broadcast.
        strike: any sign.
        expiry: years, zero or more.
        vol: normal vol, in units of the forward per root of a year, zero or more.
        discount: discount factor to the expiry, above zero.
        option: "call" or "put".

    Returns:
        The price today, of the broadcast shape.

    Raises:
        ValueError: an argument breaks its rule, or two shapes do not broadcast.

    References:
        Bachelier (1900), Théorie de la spéculation.

    >>> bachelier_price(forward=0.01, strike=0.01, expiry=1.0, vol=0.01)
    tensor(0.0040, dtype=torch.float64)
    """
    forward, strike, discount, deviation = _bachelier_arguments(forward, strike, expiry, vol, discount)
    call, put = bachelier_call_put(forward, strike, deviation)
    return discount * (call if choice("option", option, OPTIONS) == "call" else put)


def black_digital(
    forward: Any,
    strike: Any,
    expiry: Any,
    vol: Any,
    discount: Any = 1.0,
    option: str = "call",
    pays: str = "cash",
) -> Tensor:
    r"""Price of an option that pays one unit of cash, or the asset, if it ends in the money.

    $$D\,\Phi(d_2) \quad\text{(cash)}, \qquad D\,F\,\Phi(d_1) \quad\text{(asset)}$$

    for the call.

    Args:
        forward: forward of the asset to the expiry, above zero; all arguments broadcast.
        strike: above zero.
        expiry: years, zero or more. With the forward at the strike and no vol or time left the value is half the
            payment.
        vol: annualised, decimal, zero or more.
        discount: discount factor to the expiry, above zero.
        option: "call" pays above the strike, "put" below.
        pays: "cash" or "asset".

    Returns:
        The price today, of the broadcast shape.

    Raises:
        ValueError: an argument breaks its rule, or two shapes do not broadcast.

    References:
        Reiner and Rubinstein (1991), Unscrambling the binary code.

    >>> black_digital(forward=100.0, strike=100.0, expiry=1.0, vol=0.2)
    tensor(0.4601..., dtype=torch.float64)
    """
    forward, strike, discount, deviation = _black_arguments(forward, strike, expiry, vol, discount)
    d1, d2 = black_d1_d2(forward, strike, deviation)
    sign = 1.0 if choice("option", option, OPTIONS) == "call" else -1.0
    if choice("pays", pays, PAYMENTS) == "cash":
        return discount * normal_cdf(sign * d2)
    return discount * forward * normal_cdf(sign * d1)


def bachelier_digital(
    forward: Any, strike: Any, expiry: Any, vol: Any, discount: Any = 1.0, option: str = "call"
) -> Tensor:
    r"""Price of one unit of cash if a normal forward ends in the money: $D\,\Phi(d)$ for the call.

    Args:
        forward: forward of the asset to the expiry, any sign; all arguments broadcast.
        strike: any sign.
        expiry: years, zero or more. With the forward at the strike and no vol or time left the value is half the
            payment.
        vol: normal vol, in units of the forward per root of a year, zero or more.
        discount: discount factor to the expiry, above zero.
        option: "call" pays above the strike, "put" below.

    Returns:
        The price today, of the broadcast shape.

    Raises:
        ValueError: an argument breaks its rule, or two shapes do not broadcast.

    >>> bachelier_digital(forward=0.01, strike=0.01, expiry=1.0, vol=0.01, discount=0.9)
    tensor(0.4500, dtype=torch.float64)
    """
    forward, strike, discount, deviation = _bachelier_arguments(forward, strike, expiry, vol, discount)
    sign = 1.0 if choice("option", option, OPTIONS) == "call" else -1.0
    return discount * normal_cdf(sign * (forward - strike) / positive_total_vol(deviation))


def _black_arguments(
    forward: Any, strike: Any, expiry: Any, vol: Any, discount: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _arguments(within("forward", forward, above=0.0), within("strike", strike, above=0.0), expiry, vol, discount)


def _bachelier_arguments(
    forward: Any, strike: Any, expiry: Any, vol: Any, discount: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _arguments(real("forward", forward), real("strike", strike), expiry, vol, discount)


def _arguments(
    forward: Tensor, strike: Tensor, expiry: Any, vol: Any, discount: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Forward, strike, discount and total vol, checked."""
    expiry, vol = within("expiry", expiry, at_least=0.0), within("vol", vol, at_least=0.0)
    discount = within("discount", discount, above=0.0)
    broadcast_shape(forward=forward, strike=strike, expiry=expiry, vol=vol, discount=discount)
    return forward, strike, discount, total_vol(vol, expiry)


def _zero_value(price: Tensor, total_vol: Tensor) -> Tensor:
    """`price`, exactly zero where there is no vol; its slope, which is not zero at the money, stays."""
    return price - torch.where(total_vol > 0, torch.zeros_like(price), price.detach())
