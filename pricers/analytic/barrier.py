"""Barrier options, continuously monitored: closed forms by the reflection principle."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pricers.analytic.reflection import (
    OTHERS,
    curve_refusal,
    flat_rates,
    normal_option,
    weighted_ndtr,
)
from pricers.estimate import Estimate
from pricers.instruments.barrier import Barrier, check_not_crossed
from pricers.instruments.base import call_sign
from pricers.market import Market
from pricers.models.black_scholes import BlackScholes
from pricers.normal import mills_ratio, normal_cdf

__all__ = [
    "FORMULAS",
    "REFUSALS",
    "barrier_formula",
    "barrier_price",
    "barrier_refusal",
    "hit_price",
    "no_hit_price",
]

N_TERMS = 40  # of the series in `hit_price`: error below 1e-16 for rate * expiry above -6
LOWEST_RATE_TIME = -6.0


@dataclass(frozen=True)
class _Law:
    """The log price to expiry: its deviation, its growth, and where spot stands to the barrier."""

    spot: Tensor
    barrier: Tensor
    root: Tensor  # vol sqrt(expiry)
    growth: Tensor  # (rate - dividend_yield) expiry
    side: float  # +1: the barrier lies below the spot, -1: above

    @property
    def gap(self) -> Tensor:
        return torch.log(self.barrier / self.spot)

    def upper(self, level: Tensor) -> Tensor:
        """Distance from a level to the mean in deviations, under the asset's measure."""
        return (torch.log(self.spot / level) + self.growth) / self.root + 0.5 * self.root

    def reflected(self, sign: float, asset: Tensor, cash: Tensor, level: Tensor) -> Tensor:
        """`normal_option` of the paths reflected at the barrier: terms C and D of Haug (2007), section 4.17.1."""
        drift = self.growth + 0.5 * self.root**2
        share = self.reflected_ndtr(level, drift)
        return sign * (asset * share - cash * self.reflected_ndtr(level, drift - self.root**2))

    def reflected_ndtr(self, level: Tensor, drift: Tensor) -> Tensor:
        """Probability to touch the barrier and end beyond it, or across from it beyond the level's image.

        The weight of the reflected density is the bridge's crossing probability: with h = log(barrier / spot) and
        k = log(barrier / level), exp(w) n(y) = n(x) exp(-2 h k / variance), x being the distance to the level itself.
        """
        variance, image = self.root**2, torch.log(self.barrier / level)
        to_image = (self.gap + image + drift) / self.root
        to_level = (image - self.gap + drift) / self.root
        log_density = -0.5 * to_level**2 - 2.0 * self.gap * image / variance
        return weighted_ndtr(self.side * to_image, 2.0 * drift * self.gap / variance, log_density)


def barrier_price(
    spot: Tensor,
    strike: Tensor,
    expiry: Tensor,
    barrier: Tensor,
    kind: str,
    option: str,
    rebate: Tensor,
    rate: Tensor,
    dividend_yield: Tensor,
    vol: Tensor,
) -> Tensor:
    r"""Value of a barrier option under Black-Scholes, the barrier watched at all times.

    With $V(L)$ the value of $\phi (S_T - K)$ where $S_T$ ends beyond $L$ on the option's side, and $R(L)$ the same of
    the path reflected at the barrier $H$, an option that is alive on the far side of the barrier without limit
    (down-and-out call, up-and-out put) is worth

    $$V(L) - R(L), \qquad L = \max(K, H)\ \text{for down}, \ \min(K, H)\ \text{for up},$$

    and one that is cut off by the barrier (up-and-out call, down-and-out put) $V(L) - V(H) + R(L) - R(H)$. The
    knock-in is the European option less the knock-out, arranged so that nothing cancels.

    Args:
        spot: price today, strictly on the live side of the barrier; all tensors broadcast.
        strike: above 0.
        expiry: years, above 0.
        barrier: above 0.
        kind: "down-out", "up-out", "down-in" or "up-in".
        option: "call" or "put".
        rebate: cash paid when an out is hit, or at expiry by an in that was not.
        rate: continuous, per year.
        dividend_yield: continuous, per year.
        vol: annualised, above 0.

    Returns:
        The broadcast shape.

    References:
        Merton (1973), eq. 55; Reiner and Rubinstein (1991), Breaking down the barriers; Rich (1994), The mathematical
        foundations of barrier option-pricing theory; Haug (2007), section 4.17.1.

    >>> number = lambda x: torch.tensor(x, dtype=torch.float64)
    >>> contract = (number(100.0), number(90.0), number(0.5), number(95.0), "down-out", "call", number(3.0))
    >>> barrier_price(*contract, number(0.08), number(0.04), number(0.25))
    tensor(9.0246, dtype=torch.float64)
    """
    down, out = kind.startswith("down"), kind.endswith("out")
    sign = call_sign(option)
    law = _Law(spot, barrier, vol * expiry.sqrt(), (rate - dividend_yield) * expiry, 1.0 if down else -1.0)
    asset, cash = spot * torch.exp(-dividend_yield * expiry), strike * torch.exp(-rate * expiry)
    level = torch.maximum(strike, barrier) if down else torch.minimum(strike, barrier)

    beyond = normal_option(sign, asset, cash, law.upper(level), law.root)
    lost = law.reflected(sign, asset, cash, level)
    if sign != law.side:  # the barrier cuts the payoff off
        lost = law.reflected(sign, asset, cash, barrier) - lost
        lost = lost + normal_option(sign, asset, cash, law.upper(barrier), law.root)
    if out:
        return beyond - lost + rebate * hit_price(spot, expiry, barrier, rate, dividend_yield, vol, down)
    european = normal_option(sign, asset, cash, law.upper(strike), law.root)
    not_hit = no_hit_price(spot, expiry, barrier, rate, dividend_yield, vol, down)
    return (european - beyond) + lost + rebate * not_hit


def no_hit_price(
    spot: Tensor, expiry: Tensor, barrier: Tensor, rate: Tensor, dividend_yield: Tensor, vol: Tensor, down: bool
) -> Tensor:
    r"""Value of one unit of cash at expiry if the barrier is not touched before: $e^{-rT} P(\tau > T)$.

    Args:
        spot: price today; all tensors broadcast.
        expiry: years.
        barrier: the level.
        rate: continuous, per year.
        dividend_yield: continuous, per year.
        vol: annualised.
        down: whether the barrier lies below the spot.

    References:
        Reiner and Rubinstein (1991), Breaking down the barriers: term E of Haug (2007), section 4.17.1.
    """
    law = _Law(spot, barrier, vol * expiry.sqrt(), (rate - dividend_yield) * expiry, 1.0 if down else -1.0)
    beyond = normal_cdf(law.side * (law.upper(barrier) - law.root))
    return torch.exp(-rate * expiry) * (beyond - law.reflected_ndtr(barrier, law.growth - 0.5 * law.root**2))


def hit_price(
    spot: Tensor, expiry: Tensor, barrier: Tensor, rate: Tensor, dividend_yield: Tensor, vol: Tensor, down: bool
) -> Tensor:
    r"""Value of one unit of cash at the first touch of the barrier before expiry: $E[e^{-r\tau}; \tau \le T]$.

    With $h = \log(H/S)$, $\nu = r - q - v^2/2$, $a = |h| / (v \sqrt T)$ and $b^2 = (\nu^2 + 2 r v^2) T / v^2$

    $$e^{\nu h / v^2} \left[e^{-ab} N(b - a) + e^{ab} N(-b - a)\right].$$

    The square $b^2$ may be negative when rates are; the value is an entire function of it, taken from its power series
    around 0 (where the derivative of the root would not be finite).

    Args:
        spot: price today; all tensors broadcast.
        expiry: years.
        barrier: the level.
        rate: continuous, per year; `rate * expiry` above -6.
        dividend_yield: continuous, per year.
        vol: annualised.
        down: whether the barrier lies below the spot.

    References:
        Reiner and Rubinstein (1991), Breaking down the barriers: term F of Haug (2007), section 4.17.1.
    """
    root = vol * expiry.sqrt()
    gap = torch.log(barrier / spot)
    drift = (rate - dividend_yield) * expiry - 0.5 * root**2
    near = (-gap if down else gap) / root  # a
    square = (drift / root) ** 2 + 2.0 * rate * expiry  # b^2
    small = square < 0.5
    log_density = -0.5 * ((gap - drift) / root) ** 2 - rate * expiry  # nu h / v^2 - (a^2 + b^2) / 2

    b = torch.where(small, 1.0, square).sqrt()
    log_weight = gap * drift / root**2
    closed = weighted_ndtr(b - near, log_weight - near * b, log_density)
    closed = closed + weighted_ndtr(-b - near, log_weight + near * b, log_density)

    series = _even_series(near, torch.where(small, square, 0.0)) * torch.exp(log_density)
    return torch.where(small, series, closed)


def _even_series(near: Tensor, square: Tensor) -> Tensor:
    r"""$e^{(a^2 + b^2)/2} [e^{-ab} N(b-a) + e^{ab} N(-b-a)]$ as a power series in $b^2$.

    The bracket is $2 \int_a^\infty n(v) \exp(-a^2 b^2 / 2 v^2) dv$, that is $2 n(a) \sum_k (-b^2/2)^k J_k / k!$ with
    $J_k = a^{2k} \int_a^\infty v^{-2k} n(v) / n(a) dv$, where by parts $(2k - 1) J_k = a - a^2 J_{k-1}$.
    """
    far = near > 40.0  # the density that multiplies the series is 0 there
    a = torch.where(far, 1.0, near)
    power = torch.ones_like(square)
    moment = mills_ratio(a)
    total = moment
    for k in range(1, N_TERMS):
        moment = (a - a**2 * moment) / (2 * k - 1)
        power = power * square * (-0.5 / k)
        total = total + power * moment
    return torch.where(far, 0.0, math.sqrt(2.0 / math.pi) * torch.exp(0.5 * square) * total)


def barrier_refusal(instrument: Barrier, model: BlackScholes, market: Market) -> str | None:
    """Why the closed form does not hold; None if it does."""
    if not instrument.continuous:
        return "the closed form of a barrier option watches the barrier at all times, not on dates; " + OTHERS
    reason = curve_refusal(market)
    if reason is None:
        lowest = (flat_rates(market)[0].detach() * instrument.expiry.detach()).min().item()
        if lowest < LOWEST_RATE_TIME:
            return f"`rate` times `expiry` must be {LOWEST_RATE_TIME:g} or more, got {lowest:g}; " + OTHERS
    return reason


def barrier_formula(instrument: Barrier, model: BlackScholes, market: Market) -> Estimate:
    """`barrier_price` for contract, model and market.

    Raises:
        ValueError: the barrier is watched on dates only, is crossed already, or rates are not flat.
    """
    reason = barrier_refusal(instrument, model, market)
    if reason is not None:
        raise ValueError(reason)
    rate, dividend_yield = flat_rates(market)
    check_not_crossed(instrument, market.spot)
    value = barrier_price(
        market.spot,
        instrument.strike,
        instrument.expiry,
        instrument.barrier,
        instrument.kind,
        instrument.option,
        instrument.rebate,
        rate,
        dividend_yield,
        model.vol,
    )
    return Estimate(value, std_error=0.0, engine="analytic")


FORMULAS = {(Barrier, BlackScholes): barrier_formula}
REFUSALS = {(Barrier, BlackScholes): barrier_refusal}
