"""Closed forms of forward starts, under Black-Scholes and Merton, and of cliquets without a global bound."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pricers.analytic.basket import exchange_price
from pricers.analytic.merton import merton_call_put
from pricers.estimate import Estimate
from pricers.instruments.forward_start import Cliquet, ForwardStart
from pricers.market import Market
from pricers.models.bates import Merton
from pricers.models.black_scholes import BlackScholes
from pricers.parameters import broadcast_shape

__all__ = ["FORMULAS", "bounded_return", "forward_start_price"]

CASH_DIVIDENDS = "an asset that pays cash dividends is not lognormal"


def forward_start_price(
    moneyness: Tensor, reset_forward: Tensor, expiry_forward: Tensor, std: Tensor, option: str
) -> Tensor:
    r"""Undiscounted price of the option on $S_T$ struck at $m S_t$: $F_t$ options on $S_T / S_t$, independent of $S_t$.

    $$F_T \Phi(d) - m F_t \Phi(d - s), \quad d = \frac{\log(F_T / (m F_t))}{s} + \frac{s}{2}, \quad
      s = \mathrm{vol} \sqrt{T - t}.$$

    Args:
        moneyness: $m$, above 0.
        reset_forward: $F_t$, forward to the date that sets the strike.
        expiry_forward: $F_T$, forward to the expiry.
        std: $s$, standard deviation of $\log(S_T / S_t)$.
        option: "call" or "put".

    Returns:
        The broadcast shape of the arguments.

    References:
        Rubinstein (1991), Pay now, choose later, Risk 4(2).

    >>> number = lambda value: torch.tensor(value, dtype=torch.float64)
    >>> round(forward_start_price(number(1.0), number(100.0), number(100.0), number(0.2), "call").item(), 6)
    7.965567
    """
    strike = moneyness * reset_forward
    pair = (expiry_forward, strike) if option == "call" else (strike, expiry_forward)
    return exchange_price(*pair, std)


def bounded_return(growth: Tensor, std: Tensor, floor: Tensor | None, cap: Tensor | None) -> Tensor:
    r"""Mean of $\min(\max(R - 1, f), c)$ for a lognormal $R$: the floor, plus a call at it, minus a call at the cap.

    Args:
        growth: $E R$, above 0.
        std: standard deviation of $\log R$.
        floor: $f$ or None; a floor of -1 or less never binds.
        cap: $c$ or None; a cap of -1 or less is what is paid.

    Returns:
        The broadcast shape of the arguments.

    >>> number = lambda value: torch.tensor(value, dtype=torch.float64)
    >>> round(bounded_return(number(1.0), number(0.2), number(0.0), None).item(), 8)
    0.07965567
    """
    lower = -1.0 + torch.zeros_like(growth) if floor is None else floor
    value = lower + _call_on_growth(growth, std, 1.0 + lower)
    return value if cap is None else value - _call_on_growth(growth, std, 1.0 + cap)


def _call_on_growth(growth: Tensor, std: Tensor, strike: Tensor) -> Tensor:
    """Undiscounted call; at a strike that is not positive it is a forward."""
    positive = strike > 0
    option = exchange_price(growth, torch.where(positive, strike, 1.0), std)
    return torch.where(positive, option, growth - strike)


def forward_start_formula(instrument: ForwardStart, model: BlackScholes, market: Market) -> Estimate:
    """Rubinstein's formula; rates may have a term structure.

    Raises:
        ValueError: there is no closed form.
    """
    if market.dividends is not None:
        raise ValueError(CASH_DIVIDENDS)
    broadcast_shape(instrument=instrument.batch_shape, model=model.batch_shape, market=market.batch_shape())
    reset, expiry = instrument.reset, instrument.expiry
    std = model.vol * (expiry - reset).sqrt()
    value = forward_start_price(
        instrument.moneyness, market.forward(reset), market.forward(expiry), std, instrument.option
    )
    return Estimate(value * market.discount(expiry), std_error=0.0, engine="analytic")


def forward_start_merton(instrument: ForwardStart, model: Merton, market: Market) -> Estimate:
    """Merton's series over the time after the reset: the growth until then is independent of the one thereafter.

    Raises:
        ValueError: there is no closed form.
    """
    if market.dividends is not None:
        raise ValueError(CASH_DIVIDENDS)
    shape = broadcast_shape(instrument=instrument.batch_shape, model=model.batch_shape, market=market.batch_shape())
    reset, expiry = instrument.reset, instrument.expiry
    forward, strike = market.forward(expiry), instrument.moneyness * market.forward(reset)
    law = (model.vol, model.intensity, model.jump_mean, model.jump_std)
    call, put = merton_call_put(forward, strike, expiry - reset, *law)
    discount = market.discount(expiry)
    value = discount * (call if instrument.option == "call" else put)
    largest = torch.maximum(*torch.broadcast_tensors(forward, strike)).detach()
    bound = 32.0 * torch.finfo(value.dtype).eps * discount.detach() * largest
    return Estimate(value.expand(shape), 0.0, bound, engine="analytic")


def _cliquet_refusal(instrument: Cliquet, model: BlackScholes, market: Market) -> str | None:
    """Why there is no closed form, or None."""
    if instrument.global_floor is not None or instrument.global_cap is not None:
        return "a cliquet with a global floor or cap is no sum of forward starts; simulate it"
    return None if market.dividends is None else CASH_DIVIDENDS


def cliquet_formula(instrument: Cliquet, model: BlackScholes, market: Market) -> Estimate:
    """Sum of forward-starting call spreads, one for each period; rates may have a term structure.

    Raises:
        ValueError: there is no closed form.
    """
    reason = _cliquet_refusal(instrument, model, market)
    if reason is not None:
        raise ValueError(reason)
    shape = broadcast_shape(instrument=instrument.batch_shape, model=model.batch_shape, market=market.batch_shape())
    dates = instrument.times.unbind(-1)
    total = torch.zeros_like(dates[0])
    for start, end in pairwise(dates):
        growth = market.growth(end) / market.growth(start)
        std = model.vol * (end - start).sqrt()
        total = total + bounded_return(growth, std, instrument.local_floor, instrument.local_cap)
    discount = market.discount(dates[-1])
    return Estimate((total * discount).expand(shape), std_error=0.0, engine="analytic")


FORMULAS: dict[tuple[type[Any], type[Any]], Callable[..., Estimate]] = {
    (ForwardStart, BlackScholes): forward_start_formula,
    (ForwardStart, Merton): forward_start_merton,
    (Cliquet, BlackScholes): cliquet_formula,
}
REFUSALS = {(Cliquet, BlackScholes): _cliquet_refusal}
