"""Control variates: payoffs of known expectation on the same paths."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pricers.instruments.base import Instrument
from pricers.market import Market
from pricers.models.base import Model
from pricers.monte_carlo.conditional import ConditionalLaw
from pricers.paths import Paths

__all__ = ["Control", "controls_of"]


@dataclass(frozen=True)
class Control:
    """The forward to the last contract date: its discounted expectation is known under every model.

    Args:
        market: forwards and discount factors.
        horizon: last contract date.
        known: expectations, shape `*batch controls`.
    """

    market: Market
    horizon: Tensor
    known: Tensor

    def rows(self, paths: Paths) -> list[Tensor]:
        """Controls on simulated paths, each `*batch paths`."""
        discount = self.market.discount(self.horizon).unsqueeze(-1)
        return [paths.at(self.horizon.unsqueeze(-1))[..., 0] * discount]

    def conditional_rows(self, law: ConditionalLaw) -> list[Tensor]:
        """Their expectations given the variance paths."""
        mean, variance = law.at(self.horizon)
        forward = self.market.forward(self.horizon) * self.market.discount(self.horizon)
        return [forward.unsqueeze(-1) * torch.exp(mean + 0.5 * variance)]


def controls_of(instrument: Instrument, model: Model, market: Market, conditional: bool) -> Control | None:
    """The controls that suit a triple; None where there is none."""
    if model.n_assets > 1 or market.dividends is not None:
        return None
    horizon = instrument.horizon
    return Control(market, horizon, (market.forward(horizon) * market.discount(horizon)).unsqueeze(-1))
