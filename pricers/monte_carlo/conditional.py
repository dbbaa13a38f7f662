"""Conditional (mixing) simulation: given the variance path the asset is lognormal, and its noise is integrated out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pricers.instruments.base import Instrument, call_sign
from pricers.instruments.european import European
from pricers.market import Market
from pricers.paths import SAME_DATE

__all__ = ["CONDITIONAL", "ConditionalLaw"]


@dataclass(frozen=True)
class ConditionalLaw:
    """Given the path of everything but the asset's own noise, $\\log m_t$ is normal with independent increments.

    Args:
        times: recorded times, shape `(n,)`, the first is 0.
        mean: mean of $\\log m_t$, shape `n *batch paths`.
        variance: its variance, same shape.
    """

    times: Tensor
    mean: Tensor
    variance: Tensor

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


def european(instrument: European, law: ConditionalLaw, market: Market) -> Tensor:
    """Black's formula with the forward and the variance of each path.

    References:
        Romano and Touzi (1997), Contingent claims and market completeness in a stochastic volatility model.
    """
    mean, variance = law.at(instrument.expiry)
    forward = market.forward(instrument.expiry).unsqueeze(-1)
    strike = instrument.strike.unsqueeze(-1)
    sign = call_sign(instrument.option)
    deviation = variance.clamp(min=torch.finfo(variance.dtype).tiny).sqrt()
    d2 = (torch.log(forward / strike) + mean) / deviation
    d1 = d2 + deviation
    asset = forward * torch.exp(mean + 0.5 * variance) * torch.special.ndtr(sign * d1)
    value = sign * (asset - strike * torch.special.ndtr(sign * d2))
    return value * market.discount(instrument.expiry).unsqueeze(-1)


CONDITIONAL: dict[type[Instrument], Callable[..., Any]] = {European: european}
