"""Control variates: payoffs of known expectation on the same paths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pricers.analytic.asian import asian_formula, forwards_at
from pricers.analytic.basket import geometric_basket_price
from pricers.analytic.heston_geometric_asian import heston_asian_formula
from pricers.black import black_price
from pricers.instruments.asian import Asian
from pricers.instruments.base import Instrument, exercised
from pricers.instruments.basket import Basket
from pricers.instruments.european import European
from pricers.market import Market
from pricers.models.base import Model
from pricers.models.black_scholes import BlackScholes
from pricers.models.heston import Heston
from pricers.monte_carlo.conditional import ConditionalLaw, asian
from pricers.monte_carlo.simulate import Plan
from pricers.parameters import converted, copied
from pricers.paths import Paths

__all__ = ["Control", "controls_of"]

UNLIKE_EUROPEAN = ("variance_option", "forward_start", "cliquet")  # their strike is no price

Rows = Callable[[Paths], Tensor]
LawRows = Callable[[ConditionalLaw], Tensor]


@dataclass(frozen=True)
class Control:
    """Numbers along each path whose expectations are known without any error of discretisation.

    Args:
        known: expectations, shape `*batch controls`.
        on_paths: the controls on simulated paths, each `*batch paths`.
        on_laws: the same given the variance path, under conditional simulation.
    """

    known: Tensor
    on_paths: tuple[Rows, ...] = ()
    on_laws: tuple[LawRows, ...] = ()

    def rows(self, paths: Paths) -> list[Tensor]:
        """Controls on simulated paths, each `*batch paths`."""
        return [control(paths) for control in self.on_paths]

    def conditional_rows(self, law: ConditionalLaw) -> list[Tensor]:
        """Their expectations given the variance paths."""
        return [control(law) for control in self.on_laws]


def controls_of(instrument: Instrument, model: Model, market: Market, conditional: bool, plan: Plan) -> Control | None:
    """The controls that suit a triple; None where there is none.

    The forward to the last date is one under every scheme that keeps it, and the mean of the forwards for an average.
    Where the model is simulated without error the geometric average is one for the arithmetic; under Black and Scholes
    the geometric basket for the weighted sum, and the European option for every other contract with a strike.
    """
    if market.dividends is not None:
        return None
    if model.n_assets > 1:
        return _of_several(instrument, model, market)
    horizon = instrument.horizon
    discount = market.discount(horizon)
    known: list[Tensor] = []
    on_paths: list[Rows] = []
    on_laws: list[LawRows] = []
    fair = plan.scheme.keeps_forward(model, plan.dt)
    if fair:
        forward = market.forward(horizon) * discount
        known.append(forward)
        on_paths.append(lambda paths: paths.at(horizon.unsqueeze(-1))[..., 0] * discount.unsqueeze(-1))
        on_laws.append(lambda law: _mean_spot(law, horizon) * forward.unsqueeze(-1))
    if isinstance(instrument, Asian) and not instrument.continuous:
        dates = instrument.dates
        if fair:
            known.append(forwards_at(market, dates).mean(-1) * discount)
            on_paths.append(lambda paths: paths.at(dates).mean(-1) * discount.unsqueeze(-1))
            on_laws.append(lambda law: _mean_average(law, dates, market) * discount.unsqueeze(-1))
        if instrument.average == "arithmetic" and not instrument.floating:
            geometric = copied(instrument, average="geometric")
            value = _geometric_value(geometric, model, market, plan)
            if value is not None:
                known.append(value)
                on_paths.append(lambda paths: geometric.payoff(paths, market.discount))
                on_laws.append(lambda law: asian(geometric, law, market))
    elif isinstance(model, BlackScholes):
        vanilla = _vanilla(instrument)
        if vanilla is not None:
            forward = market.forward(horizon)
            known.append(black_price(forward, vanilla.strike, horizon, model.vol, discount, vanilla.option))
            on_paths.append(lambda paths: vanilla.payoff(paths, market.discount))
    if not known:
        return None
    shape = torch.broadcast_shapes(*(number.shape for number in known))
    stacked = torch.stack([number.expand(shape) for number in known], dim=-1)
    return Control(stacked, tuple(on_paths), tuple(on_laws))


def _mean_spot(law: ConditionalLaw, horizon: Tensor) -> Tensor:
    mean, variance = law.at(horizon)
    return torch.exp(mean + 0.5 * variance)


def _mean_average(law: ConditionalLaw, dates: Tensor, market: Market) -> Tensor:
    prices = [market.forward(date).unsqueeze(-1) * _mean_spot(law, date) for date in dates.unbind(-1)]
    return sum(prices[1:], prices[0]) / len(prices)


def _geometric_value(geometric: Asian, model: Model, market: Market, plan: Plan) -> Tensor | None:
    """Value of the geometric average, where the model is simulated without error and has a formula for it."""
    if isinstance(model, BlackScholes):
        return asian_formula(geometric, model, market).value
    if isinstance(model, Heston) and plan.scheme.exact:
        device = plan.grid.device
        triple = (converted(item, torch.float64, device) for item in (geometric, model, market))
        return heston_asian_formula(*triple).value  # pyright: ignore[reportArgumentType]  # the types are kept
    return None


def _vanilla(instrument: Instrument) -> European | None:
    """The European option with the strike and the last date of a contract; None where it says nothing."""
    strike, option = getattr(instrument, "strike", None), getattr(instrument, "option", None)
    unlike = isinstance(instrument, European | Asian) or instrument.kind in UNLIKE_EUROPEAN
    if unlike or not isinstance(strike, Tensor) or option not in ("call", "put") or bool((strike.detach() <= 0).any()):
        return None
    return copied(European(1.0, 1.0, option), strike=strike, expiry=instrument.horizon)


def _of_several(instrument: Instrument, model: Model, market: Market) -> Control | None:
    """The geometric basket for a weighted sum."""
    if not isinstance(instrument, Basket) or instrument.weights is None or not isinstance(model, BlackScholes):
        return None
    weights, strike, expiry = instrument.weights, instrument.strike, instrument.expiry
    if bool((weights.detach() <= 0).any()) or bool((strike.detach() <= 0).any()) or model.correlation is None:
        return None
    total = weights.sum(-1, keepdim=True)
    discount = market.discount(expiry)

    def geometric(paths: Paths) -> Tensor:
        spot = paths.at(expiry.unsqueeze(-1))[..., 0, :]
        share = (weights / total).unsqueeze(-2)
        mean = total * torch.exp((share * spot.log()).sum(-1))
        return exercised(mean, strike.unsqueeze(-1), instrument.option) * discount.unsqueeze(-1)

    forwards = market.asset_forwards(expiry)
    value: Any = geometric_basket_price(
        forwards, strike, expiry, weights, model.vol, model.correlation, instrument.option
    )
    return Control((value * discount).unsqueeze(-1), (geometric,))
