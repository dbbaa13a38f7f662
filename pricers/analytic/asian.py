"""Closed forms of geometric Asian options under Black-Scholes: the average is lognormal."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from pricers.analytic.basket import exchange_price
from pricers.estimate import Estimate
from pricers.instruments.asian import Asian
from pricers.market import Market, ZeroCurve
from pricers.models.base import Model
from pricers.models.black_scholes import BlackScholes
from pricers.normal import deviation
from pricers.parameters import broadcast_shape
from pricers.quadrature import gauss_legendre

__all__ = [
    "FORMULAS",
    "forwards_at",
    "geometric_continuous_moments",
    "geometric_discrete_moments",
    "lognormal_average_price",
    "mean_log_forward",
    "model_free_refusal",
]

N_NODES = 12  # between two nodes of a curve: far more than a smooth exponent needs


def forwards_at(market: Market, times: Tensor) -> Tensor:
    """Forwards to dates along the last axis: the batch axes of market and dates broadcast, the dates stay last."""
    return torch.stack([market.forward(time) for time in times.unbind(-1)], dim=-1)


def geometric_discrete_moments(
    vol: Tensor, times: Tensor, log_forwards: Tensor, past_log_mean: Tensor, past_weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Mean and variance of $\log G$ of fixings, and its covariance with $\log S_T$ at the last one.

    With $w$ the share of the past, $n$ fixings to come and $F_i$ the forward to the $i$-th,

    $$E = w \log \bar A + \frac{1 - w}{n} \sum_i \big(\log F_i - \tfrac12 \mathrm{vol}^2 t_i\big), \quad
      V = \frac{(1 - w)^2 \mathrm{vol}^2}{n^2} \sum_{i=1}^n (2 (n - i) + 1)\,t_i, \quad
      C = \frac{(1 - w)\,\mathrm{vol}^2}{n} \sum_i t_i.$$

    Args:
        vol: annual volatility, shape `*batch`.
        times: fixing dates to come in years, shape `*batch n`.
        log_forwards: $\log F_i$, shape `*batch n`.
        past_log_mean: $\log \bar A$, shape `*batch`.
        past_weight: $w$ in [0, 1), shape `*batch`.

    Returns:
        The three moments, each `*batch`.

    References:
        Kemna and Vorst (1990), A pricing method for options based on average asset values, section 3.
        Clewlow and Strickland (1997), Exotic options, pages 118-119: discrete fixings.
    """
    n = times.shape[-1]
    later = torch.arange(n - 1, -1, -1, dtype=times.dtype, device=times.device)
    free, variance = 1.0 - past_weight, vol**2
    mean_time = times.mean(-1)
    mean = past_weight * past_log_mean + free * (log_forwards.mean(-1) - 0.5 * variance * mean_time)
    shared = ((2.0 * later + 1.0) * times).sum(-1) / n**2  # sum of min(t_i, t_j) over n^2
    return mean, free**2 * variance * shared, free * variance * mean_time


def geometric_continuous_moments(
    vol: Tensor, expiry: Tensor, mean_log_forward: Tensor, past_log_mean: Tensor, past_weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Mean and variance of $\log G$ of a continuous average, and its covariance with $\log S_T$ at its end.

    $$E = w \log \bar A + (1 - w) \Big(\frac1T \int_0^T \log F(t)\,dt - \tfrac14 \mathrm{vol}^2 T\Big), \quad
      V = \tfrac13 (1 - w)^2 \mathrm{vol}^2 T, \quad C = \tfrac12 (1 - w)\,\mathrm{vol}^2 T.$$

    Args:
        vol: annual volatility, shape `*batch`.
        expiry: $T$ in years, shape `*batch`.
        mean_log_forward: mean over $[0, T]$ of the log forward, shape `*batch`.
        past_log_mean: $\log \bar A$, shape `*batch`.
        past_weight: $w$ in [0, 1), shape `*batch`.

    Returns:
        The three moments, each `*batch`.

    References:
        Kemna and Vorst (1990), A pricing method for options based on average asset values, eqs. 7-9.
    """
    free, variance = 1.0 - past_weight, vol**2 * expiry
    mean = past_weight * past_log_mean + free * (mean_log_forward - 0.25 * variance)
    return mean, free**2 * variance / 3.0, 0.5 * free * variance


def lognormal_average_price(
    mean: Tensor,
    variance: Tensor,
    option: str,
    *,
    strike: Tensor | None = None,
    last_forward: Tensor | None = None,
    last_variance: Tensor | None = None,
    covariance: Tensor | None = None,
) -> Tensor:
    r"""Undiscounted price of an option on an average $G$ whose logarithm is normal.

    A fixed strike makes it Black's formula in the forward $e^{E + V/2}$; a floating one, the option to exchange $G$ for
    $S_T$ or the reverse, Margrabe's with variance $V + V_S - 2 C$.

    Args:
        mean: $E$, mean of $\log G$.
        variance: $V$, its variance.
        option: "call" or "put".
        strike: of a fixed-strike option.
        last_forward: forward to the last date, for a floating strike.
        last_variance: $V_S$, variance of $\log S_T$, for a floating strike.
        covariance: $C$, covariance of $\log G$ and $\log S_T$, for a floating strike.

    Returns:
        The broadcast shape of the arguments.

    >>> number = lambda value: torch.tensor(value, dtype=torch.float64)
    >>> round(lognormal_average_price(number(100.0).log(), number(0.01), "call", strike=number(100.0)).item(), 6)
    4.253374
    """
    average = (mean + 0.5 * variance).exp()
    # no variance is left where the only fixing is today, or the expiry of a floating strike
    least = torch.finfo(variance.dtype).eps ** 2
    if strike is not None:
        bought, sold = (average, strike) if option == "call" else (strike, average)
        return exchange_price(bought, sold, deviation(variance, least))
    assert last_forward is not None
    assert last_variance is not None
    assert covariance is not None
    bought, sold = (last_forward, average) if option == "call" else (average, last_forward)
    return exchange_price(bought, sold, deviation(variance + last_variance - 2.0 * covariance, least))


def mean_log_forward(market: Market, expiry: Tensor) -> Tensor:
    r"""$\frac1T \int_0^T \log F(t)\,dt$, exact for flat rates and for curves that are linear between their nodes.

    Args:
        market: without cash dividends.
        expiry: $T$ in years, shape `*batch`.

    Returns:
        Shape `*batch`, broadcast with the market.
    """
    return market.spot.log() + _mean_over_time(market, expiry, torch.log)


def _mean_over_time(market: Market, expiry: Tensor, transform: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean over [0, T] of a function of the forward over spot: Gauss-Legendre between the nodes of the curves."""
    curves = [curve for curve in (market.rate, market.dividend_yield) if isinstance(curve, ZeroCurve)]
    nodes = torch.cat([curve.times for curve in curves]).sort()[0].unbind() if curves else ()
    edges = [torch.zeros_like(expiry), *(torch.minimum(node, expiry) for node in nodes), expiry]
    places, weights = gauss_legendre(N_NODES, expiry)
    total = torch.zeros_like(expiry)
    for left, right in pairwise(edges):
        for place, weight in zip(places, weights, strict=True):
            time = 0.5 * (left + right) + 0.5 * (right - left) * place
            total = total + 0.5 * (right - left) * weight * transform(market.growth(time))
    return total / expiry


def model_free_refusal(instrument: Asian, model: Model, market: Market) -> str | None:
    """Why no closed form that every model shares applies, or None: the payoff is linear in the prices."""
    if instrument.average != "arithmetic":
        return "a geometric average is no sum of prices, of which the forwards tell the value"
    if market.dividends is not None:
        return "cash dividends may not be paid in full"
    if not _exceeded(instrument):
        return "an arithmetic average has no closed form unless the past alone exceeds the strike; simulate it"
    return None


def _exceeded(instrument: Asian) -> bool:
    """Whether the average ends above the strike whatever the prices do."""
    if instrument.strike is None or instrument.running_average is None:
        return False
    return bool((instrument.past_weight * instrument.running_average >= instrument.strike).detach().all())


def exceeded_asian_formula(instrument: Asian, model: Model, market: Market) -> Estimate:
    """An arithmetic average whose past alone exceeds the strike: the call is a forward on the average, the put is 0.

    It holds under every model, for it needs no more than the forwards.

    Raises:
        ValueError: the contract is another one.
    """
    reason = model_free_refusal(instrument, model, market)
    if reason is not None:
        raise ValueError(reason)
    assert instrument.strike is not None
    assert instrument.running_average is not None
    if instrument.continuous:
        future = market.spot * _mean_over_time(market, instrument.horizon, torch.clone)
    else:
        future = forwards_at(market, instrument.dates).mean(-1)
    weight = instrument.past_weight
    gain = weight * instrument.running_average + (1.0 - weight) * future - instrument.strike
    value = gain if instrument.option == "call" else torch.zeros_like(gain)
    return Estimate(value * market.discount(instrument.horizon), std_error=0.0, engine="analytic")


def _geometric_refusal(instrument: Asian, model: BlackScholes, market: Market) -> str | None:
    """Why there is no closed form under Black-Scholes, or None."""
    if market.dividends is not None:
        return "an asset that pays cash dividends is not lognormal"
    if instrument.average == "arithmetic":
        return model_free_refusal(instrument, model, market)
    return None


def asian_formula(instrument: Asian, model: BlackScholes, market: Market) -> Estimate:
    """Geometric average under Black-Scholes: fixed and floating strike, fixings and continuous, seasoned and new.

    Raises:
        ValueError: there is no closed form.
    """
    reason = _geometric_refusal(instrument, model, market)
    if reason is not None:
        raise ValueError(reason)
    if instrument.average == "arithmetic":
        return exceeded_asian_formula(instrument, model, market)
    broadcast_shape(instrument=instrument.batch_shape, model=model.batch_shape, market=market.batch_shape())
    past = (market.spot if instrument.running_average is None else instrument.running_average).log()
    weight, expiry = instrument.past_weight, instrument.horizon
    if instrument.continuous:
        level = mean_log_forward(market, expiry)
        mean, variance, covariance = geometric_continuous_moments(model.vol, expiry, level, past, weight)
    else:
        logs = forwards_at(market, instrument.dates).log()
        mean, variance, covariance = geometric_discrete_moments(model.vol, instrument.dates, logs, past, weight)
    value = lognormal_average_price(
        mean,
        variance,
        instrument.option,
        strike=instrument.strike,
        last_forward=market.forward(expiry),
        last_variance=model.vol**2 * expiry,
        covariance=covariance,
    )
    return Estimate(value * market.discount(expiry), std_error=0.0, engine="analytic")


FORMULAS = {(Asian, BlackScholes): asian_formula}
REFUSALS = {(Asian, BlackScholes): _geometric_refusal}
