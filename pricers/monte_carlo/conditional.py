"""Conditional (mixing) simulation: given the variance path the asset is lognormal, and its noise is integrated out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pricers.instruments.asian import Asian
from pricers.instruments.base import Instrument, call_sign
from pricers.instruments.digital import Digital
from pricers.instruments.european import European
from pricers.market import Market
from pricers.normal import deviation, normal_cdf
from pricers.paths import SAME_DATE

__all__ = ["CONDITIONAL", "ConditionalLaw", "Mixing"]

NEWTON_STEPS = 4
FARTHEST = 12.0  # standard deviations beyond which an option is a forward, or nothing


@dataclass(frozen=True)
class ConditionalLaw:
    """Given the path of everything but the asset's own noise, $\\log m_t$ is normal with independent increments.

    Args:
        times: recorded times, shape `(n,)`, the first is 0.
        mean: mean of $\\log m_t$, shape `n *batch paths`.
        variance: its variance, same shape.
        normals: normals that are left to the contract's own use, `n_rows paths`; none by default.
    """

    times: Tensor
    mean: Tensor
    variance: Tensor
    normals: Tensor | None = None

    def at(self, date: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance at contract dates of shape `*instrument_batch`; the result has shape `*batch paths`."""
        index = torch.searchsorted(self.times.detach(), date.detach().contiguous() - SAME_DATE)
        if index.ndim == 0:
            return self.mean[index], self.variance[index]
        return _pick(self.mean, index), _pick(self.variance, index)


def _pick(tensor: Tensor, index: Tensor) -> Tensor:
    """`tensor[index]` along the first axis, whose other axes `*batch paths` broadcast with those of `index`."""
    batch = torch.broadcast_shapes(index.shape, tensor.shape[1:-1])
    moved = tensor.movedim(0, -1).expand(*batch, tensor.shape[-1], tensor.shape[0])
    where = index.expand(batch)[..., None, None].expand(*batch, tensor.shape[-1], 1)
    return moved.gather(-1, where).squeeze(-1)


@dataclass(frozen=True)
class Mixing:
    """How a class of contracts is valued given the variance path.

    Args:
        value: `(instrument, law, market)` to today's value, shape `*batch paths`.
        suits: whether it can value this contract.
        n_rows: how many normals for each path it takes from the law.
    """

    value: Callable[[Any, ConditionalLaw, Market], Tensor]
    suits: Callable[[Any], bool] = lambda instrument: True
    n_rows: Callable[[Any], int] = lambda instrument: 0


def _forward_and_tails(instrument: European | Digital, law: ConditionalLaw, market: Market) -> tuple[Tensor, ...]:
    """Forward of each path, and the probabilities (with the asset as numeraire, and cash) of ending in the money."""
    mean, variance = law.at(instrument.expiry)
    forward = market.forward(instrument.expiry).unsqueeze(-1)
    sign = call_sign(instrument.option)
    spread = deviation(variance)
    d2 = (torch.log(forward / instrument.strike.unsqueeze(-1)) + mean) / spread
    by_asset, by_cash = (normal_cdf(sign * d) for d in (d2 + spread, d2))
    return forward * torch.exp(mean + 0.5 * variance), by_asset, by_cash


def european(instrument: European, law: ConditionalLaw, market: Market) -> Tensor:
    """Black's formula with the forward and the variance of each path.

    References:
        Romano and Touzi (1997), Contingent claims and market completeness in a stochastic volatility model.
    """
    forward, by_asset, by_cash = _forward_and_tails(instrument, law, market)
    value = forward * by_asset - instrument.strike.unsqueeze(-1) * by_cash
    return call_sign(instrument.option) * value * market.discount(instrument.expiry).unsqueeze(-1)


def digital(instrument: Digital, law: ConditionalLaw, market: Market) -> Tensor:
    """Probability to end in the money, of cash or of the asset."""
    forward, by_asset, by_cash = _forward_and_tails(instrument, law, market)
    value = by_cash if instrument.pays == "cash" else forward * by_asset
    return value * market.discount(instrument.expiry).unsqueeze(-1)


def asian(instrument: Asian, law: ConditionalLaw, market: Market) -> Tensor:
    r"""Fixed-strike average of fixings: the one direction that moves the geometric average is integrated out.

    The asset's noise at the fixings is $\xi = x e + \xi^\perp$ with $e$ the direction of the log of the geometric
    average. The prices are $S_i = e^{l_i + a_i x}$ with $l$ from $\xi^\perp$, so that the average grows with the normal
    $x$, and with $A(x^*) = K$ the expectation over $x$ is a sum of Black terms. For a geometric average $\xi^\perp$
    does not matter.

    References:
        Glasserman (2004), section 5.5.2: smoothing by conditioning on all but one direction.
        Griebel, Kuo and Sloan (2013), The smoothing effect of integration in R^d and the ANOVA decomposition.
    """
    assert isinstance(instrument.times, Tensor)
    assert instrument.strike is not None
    assert law.normals is not None
    laws = [(market.forward(date).unsqueeze(-1), *law.at(date)) for date in instrument.dates.unbind(-1)]
    batch = torch.Size((*instrument.batch_shape, 1))  # of the strikes too: dates come first below
    shape = torch.broadcast_shapes(batch, *(tensor.shape for row in laws for tensor in row))
    level = torch.stack([(forward.log() + mean).expand(shape) for forward, mean, _ in laws])
    total = torch.stack([variance.expand(shape) for _, _, variance in laws])
    spreads = deviation(total.diff(dim=0, prepend=torch.zeros_like(total[:1])))  # of each increment, dates first
    n = len(laws)
    later = torch.arange(n, 0, -1, dtype=total.dtype, device=total.device).reshape(-1, *[1] * (total.ndim - 1))
    direction = spreads * later  # how much the sum of the logs moves with each increment
    direction = direction / deviation(direction.square().sum(0))
    slope = (spreads * direction).cumsum(0)
    weight = (1.0 - instrument.past_weight.unsqueeze(-1)) / n
    strike = instrument.strike.unsqueeze(-1)
    sign = call_sign(instrument.option)
    discount = market.discount(instrument.horizon).unsqueeze(-1)
    if instrument.average == "geometric":
        spot = market.spot if instrument.running_average is None else instrument.running_average
        centre = weight * level.sum(0) + instrument.past_weight.unsqueeze(-1) * spot.unsqueeze(-1).log()
        spread = deviation((weight * slope.sum(0)).square())
        d = (centre - strike.log()) / spread
        upper = torch.exp(centre + 0.5 * spread**2) * normal_cdf(sign * (d + spread))
        return sign * (upper - strike * normal_cdf(sign * d)) * discount
    noise = law.normals.reshape(n, *[1] * (total.ndim - 2), -1)
    rest = noise - direction * (direction * noise).sum(0)
    level = level + (spreads * rest).cumsum(0) + weight.log()
    if instrument.running_average is not None:
        strike = strike - instrument.past_weight.unsqueeze(-1) * instrument.running_average.unsqueeze(-1)
    place = _crossing(level, slope, strike)
    bought = (torch.exp(level + 0.5 * slope**2) * normal_cdf(sign * (slope - place))).sum(0)
    return sign * (bought - strike * normal_cdf(-sign * place)) * discount


def _crossing(level: Tensor, slope: Tensor, strike: Tensor) -> Tensor:
    r"""$x$ at which $\sum_i e^{l_i + a_i x}$ is the strike; far below where it is above it anyway.

    The logarithm of the sum is convex and grows, so that Newton's method converges from anywhere.
    """
    aim = strike.clamp(min=torch.finfo(level.dtype).tiny).log()
    place = torch.zeros_like(level[0])
    for _ in range(NEWTON_STEPS):
        place = place.detach()  # the last step alone carries the derivative, by the implicit function theorem
        terms = torch.exp(level + slope * place)
        total = terms.sum(0)
        gap = torch.log(total) - aim
        place = (place - gap * total / (slope * terms).sum(0)).clamp(-FARTHEST, FARTHEST)
    return place


CONDITIONAL: dict[type[Instrument], Mixing] = {
    European: Mixing(european),
    Digital: Mixing(digital),
    Asian: Mixing(
        asian,
        suits=lambda instrument: not instrument.floating and not instrument.continuous,
        n_rows=lambda instrument: instrument.dates.shape[-1],
    ),
}
