"""Black-76 and Bachelier prices of calls, puts and digitals as pure functions of the forward.

What takes the total vol checks nothing: it is for use inside the library. The others check their arguments, by name,
and work through long tensors in chunks. All are differentiable in every argument, forwards and backwards, as often as
one likes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pricers.black.chunks import in_chunks
from pricers.black.normalised import log_ratio, normal_tail_mean, normalised_call, positive_total_vol
from pricers.normal import normal_cdf
from pricers.parameters import choice, real, within

__all__ = [
    "bachelier_call_put",
    "bachelier_digital",
    "bachelier_option",
    "bachelier_price",
    "black_call_put",
    "black_d1_d2",
    "black_digital",
    "black_option",
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
    out = _black_out(forward, strike, total_vol)
    return out + _intrinsic(forward, strike, True), out + _intrinsic(forward, strike, False)


def black_option(forward: Tensor, strike: Tensor, total_vol: Tensor, is_call: bool) -> Tensor:
    """One of the two of `black_call_put`."""
    return _black_out(forward, strike, total_vol) + _intrinsic(forward, strike, is_call)


def bachelier_call_put(forward: Tensor, strike: Tensor, total_vol: Tensor) -> tuple[Tensor, Tensor]:
    """Undiscounted call and put on a normal forward; nothing is checked. As `black_call_put`, forward and strike real.

    Args:
        forward: any sign.
        strike: any sign.
        total_vol: normal vol times the root of the expiry, in the unit of the forward, zero or more.

    Returns:
        Call and put, in the unit of the forward, broadcast.
    """
    out = _bachelier_out(forward, strike, total_vol)
    return out + _intrinsic(forward, strike, True), out + _intrinsic(forward, strike, False)


def bachelier_option(forward: Tensor, strike: Tensor, total_vol: Tensor, is_call: bool) -> Tensor:
    """One of the two of `bachelier_call_put`."""
    return _bachelier_out(forward, strike, total_vol) + _intrinsic(forward, strike, is_call)


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
    checked = _black_arguments(forward, strike, expiry, vol, discount)
    is_call = choice("option", option, OPTIONS) == "call"
    return in_chunks(partial(_discounted, black_option, is_call), **checked)


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
    checked = _bachelier_arguments(forward, strike, expiry, vol, discount)
    is_call = choice("option", option, OPTIONS) == "call"
    return in_chunks(partial(_discounted, bachelier_option, is_call), **checked)


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
    checked = _black_arguments(forward, strike, expiry, vol, discount)
    is_call = choice("option", option, OPTIONS) == "call"
    formula = _black_cash if choice("pays", pays, PAYMENTS) == "cash" else _black_asset
    return in_chunks(partial(_discounted, formula, is_call), **checked)


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
    checked = _bachelier_arguments(forward, strike, expiry, vol, discount)
    is_call = choice("option", option, OPTIONS) == "call"
    return in_chunks(partial(_discounted, _bachelier_cash, is_call), **checked)


def _black_out(forward: Tensor, strike: Tensor, total_vol: Tensor) -> Tensor:
    """Whichever of call and put is out of the money."""
    call_is_out = strike >= forward
    low, high = torch.where(call_is_out, forward, strike), torch.where(call_is_out, strike, forward)
    return _zero_value(low * normalised_call(log_ratio(low, high), positive_total_vol(total_vol)), total_vol)


def _bachelier_out(forward: Tensor, strike: Tensor, total_vol: Tensor) -> Tensor:
    """Whichever of call and put is out of the money."""
    distance = torch.where(strike >= forward, strike - forward, forward - strike)
    scale = positive_total_vol(total_vol)
    return _zero_value(scale * normal_tail_mean(distance / scale), total_vol)


def _intrinsic(forward: Tensor, strike: Tensor, is_call: bool) -> Tensor:
    """Intrinsic value. At the money, where it has no slope, the call counts as out of the money, as everywhere here."""
    call_is_out = strike >= forward
    if is_call:
        return torch.where(call_is_out, 0.0, forward - strike)
    return torch.where(call_is_out, strike - forward, 0.0)


def _black_cash(forward: Tensor, strike: Tensor, total_vol: Tensor, is_call: bool) -> Tensor:
    d2 = black_d1_d2(forward, strike, total_vol)[1]
    return normal_cdf(d2 if is_call else -d2)


def _black_asset(forward: Tensor, strike: Tensor, total_vol: Tensor, is_call: bool) -> Tensor:
    d1 = black_d1_d2(forward, strike, total_vol)[0]
    return forward * normal_cdf(d1 if is_call else -d1)


def _bachelier_cash(forward: Tensor, strike: Tensor, total_vol: Tensor, is_call: bool) -> Tensor:
    return normal_cdf((forward - strike if is_call else strike - forward) / positive_total_vol(total_vol))


def _discounted(
    undiscounted: Callable[[Tensor, Tensor, Tensor, bool], Tensor],
    is_call: bool,
    forward: Tensor,
    strike: Tensor,
    expiry: Tensor,
    vol: Tensor,
    discount: Tensor,
) -> Tensor:
    return discount * undiscounted(forward, strike, total_vol(vol, expiry), is_call)


def _black_arguments(forward: Any, strike: Any, expiry: Any, vol: Any, discount: Any) -> dict[str, Tensor]:
    return {
        "forward": within("forward", forward, above=0.0),
        "strike": within("strike", strike, above=0.0),
        **_arguments(expiry, vol, discount),
    }


def _bachelier_arguments(forward: Any, strike: Any, expiry: Any, vol: Any, discount: Any) -> dict[str, Tensor]:
    return {"forward": real("forward", forward), "strike": real("strike", strike), **_arguments(expiry, vol, discount)}


def _arguments(expiry: Any, vol: Any, discount: Any) -> dict[str, Tensor]:
    return {
        "expiry": within("expiry", expiry, at_least=0.0),
        "vol": within("vol", vol, at_least=0.0),
        "discount": within("discount", discount, above=0.0),
    }


def _zero_value(price: Tensor, total_vol: Tensor) -> Tensor:
    """`price`, exactly zero where there is no vol; its slope, which is not zero at the money, stays."""
    return price - torch.where(total_vol > 0, torch.zeros_like(price), price.detach())
