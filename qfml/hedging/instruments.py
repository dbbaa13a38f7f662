"""What may be traded: hedging instruments and their discounted prices along the paths of a model.

Every price is in today's money and a martingale under the model, income included: the gain of a holding is the holding
times the change of the price.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

import pricers as pr
from pricers.black import black_call_put
from pricers.parameters import number
from pricers.paths import SAME_DATE
from qfml.config import years_of
from qfml.errors import ConfigError, DataError
from qfml.hedging.price_table import TABULATED, expected_variance, price_table

__all__ = ["HEDGES", "Hedge", "Option", "Pricer", "Spot", "VarianceSwapHedge"]

Pricer = Callable[[pr.Scenarios], Tensor]  # scenarios on the trading dates -> discounted prices (paths, dates)


@runtime_checkable
class Hedge(Protocol):
    """A hedging instrument: a frozen dataclass with a `kind`."""

    kind: ClassVar[str]
    needs_variance: ClassVar[bool]  # the integrated variance of the paths, which is recorded at each step

    @property
    def name(self) -> str:
        """For reports and features."""
        ...

    def typical_size(self, spot: float, vol: float, horizon: float) -> float:
        """Of its price, to which features are scaled; the vol is per year, the horizon in years."""
        ...

    def pricer(self, model: pr.Model, market: pr.Market, times: Tensor) -> Pricer:
        """What prices it along paths on the trading dates `times`, made once, for paths on any device.

        Raises:
            ConfigError: it has no price along the paths of this model.
            DataError: it expires before the last date.
        """
        ...


@dataclass(frozen=True)
class Spot:
    r"""The asset itself, its income reinvested: $P_t = S_t\,e^{-\int_0^t (r - q)}$.

    One unit of the holding is $e^{\int_0^t q}$ shares, one share where there are no dividends.
    """

    kind: ClassVar[str] = "spot"
    needs_variance: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """Spot."""
        return "spot"

    def typical_size(self, spot: float, vol: float, horizon: float) -> float:
        """A standard deviation of the spot."""
        return spot * vol * horizon**0.5

    def pricer(self, model: pr.Model, market: pr.Market, times: Tensor) -> Pricer:
        """See `Hedge.pricer`."""
        if model.n_assets != 1:
            raise ConfigError(f"a hedge of kind spot is of one asset, the model has {model.n_assets}")
        growth = market.growth(times)
        return lambda scenarios: scenarios.spot / growth.to(scenarios.spot)


@dataclass(frozen=True)
class Option:
    """A European option, at its exact price in the state of the path.

    Closed form under Black and Scholes; under Heston, Bates and Merton from tables of exact prices by spot and
    variance, one for each date, which are tried against the exact price to 1e-6 of the forward when they are made.

    Args:
        strike: above 0, in units of the spot.
        expiry: years, or a duration such as "60D", not before the last trading date.
        option: "call" or "put".
    """

    strike: float
    expiry: Any
    option: str = "call"
    kind: ClassVar[str] = "option"
    needs_variance: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "expiry", years_of("expiry", self.expiry))
        _checked(self, strike=self.strike, expiry=self.expiry)
        if self.option not in ("call", "put"):
            raise ConfigError(f"hedge of kind option: `option` must be 'call' or 'put', got {self.option!r}")

    @property
    def name(self) -> str:
        """Option, strike and expiry."""
        return f"{self.option} {self.strike:g} {self.expiry:g}"

    def typical_size(self, spot: float, vol: float, horizon: float) -> float:
        """A standard deviation of the spot."""
        return spot * vol * horizon**0.5

    def pricer(self, model: pr.Model, market: pr.Market, times: Tensor) -> Pricer:
        """See `Hedge.pricer`."""
        _check_expiry(self.name, self.expiry, times)
        if isinstance(model, pr.BlackScholes) and model.n_assets == 1:
            return self._closed_form(model, market, times)
        if isinstance(model, TABULATED):
            return self._tabulated(model, market, times)
        raise ConfigError(
            f"an option has no exact price along the paths of {type(model).__name__}; hedge with it under "
            f"{', '.join(cls.__name__ for cls in (pr.BlackScholes, *TABULATED))}, or record its prices"
        )

    def _closed_form(self, model: pr.BlackScholes, market: pr.Market, times: Tensor) -> Pricer:
        to_forward, discount, left = self._market(market, times)
        deviation = model.vol * left.sqrt()

        def prices(scenarios: pr.Scenarios) -> Tensor:
            spot = scenarios.spot
            strike = torch.full_like(spot, self.strike)
            both = black_call_put(spot * to_forward.to(spot), strike, deviation.to(spot).expand_as(spot))
            return discount.to(spot) * both[0 if self.option == "call" else 1]

        return prices

    def _tabulated(self, model: pr.Model, market: pr.Market, times: Tensor) -> Pricer:
        to_forward, discount, left = self._market(market, times)
        horizon = float(times[-1])
        made = [price_table(model, tau, horizon) if tau > SAME_DATE else None for tau in left.tolist()]
        tables_on = cache(lambda device: [table and table.to(device) for table in made])

        def prices(scenarios: pr.Scenarios) -> Tensor:
            forward = scenarios.spot * to_forward.to(scenarios.spot)
            columns = zip(
                tables_on(forward.device), forward.unbind(1), scenarios.state["variance"].unbind(1), strict=True
            )
            values = [
                self._exercised(at_date) if table is None else table.price(at_date, self.strike, variance, self.option)
                for table, at_date, variance in columns
            ]
            return discount.to(forward) * torch.stack(values, dim=1)

        return prices

    def _market(self, market: pr.Market, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Forward to the expiry over spot at each date, discount factor from the expiry, years left."""
        expiry = torch.tensor(self.expiry, dtype=torch.float64)
        left = (expiry - times).clamp(min=0.0)  # a last date that is the expiry but for rounding
        return market.growth(expiry) / market.growth(times), market.discount(expiry), left

    def _exercised(self, spot: Tensor) -> Tensor:
        gain = spot - self.strike
        return (gain if self.option == "call" else -gain).clamp(min=0.0)


@dataclass(frozen=True)
class VarianceSwapHedge:
    r"""The floating leg of a variance swap: what it has realised so far and what is expected until its end, per year.

    $$P_t = \frac{D(0, T)}{T}\Big([\log S]_0^t + E_t [\log S]_t^T\Big)$$

    Closed form under Black and Scholes, Merton, Heston and Bates, jumps included. Under the latter two the variance of
    a step is the trapezium's, so that the price is a martingale but for its error, which falls with the square of the
    step.

    Args:
        expiry: $T$ in years, or a duration, not before the last trading date.

    References:
        Buehler, Gonon, Teichmann and Wood (2019), Deep hedging, section 5.1.
    """

    expiry: Any
    kind: ClassVar[str] = "variance_swap"
    needs_variance: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "expiry", years_of("expiry", self.expiry))
        _checked(self, expiry=self.expiry)

    @property
    def name(self) -> str:
        """Variance swap and expiry."""
        return f"variance swap {self.expiry:g}"

    def typical_size(self, spot: float, vol: float, horizon: float) -> float:
        """A year's variance."""
        return vol**2

    def pricer(self, model: pr.Model, market: pr.Market, times: Tensor) -> Pricer:
        """See `Hedge.pricer`."""
        _check_expiry(self.name, self.expiry, times)
        known = (pr.BlackScholes, *TABULATED)
        if not isinstance(model, known) or model.n_assets != 1:
            raise ConfigError(
                f"the variance that {type(model).__name__} expects from any state on has no closed form here; hedge "
                f"with a variance swap under {', '.join(cls.__name__ for cls in known)} on one asset"
            )
        left = (self.expiry - times).clamp(min=0.0)
        slope, intercept = expected_variance(model, left)
        factor = market.discount(torch.tensor(self.expiry, dtype=torch.float64)) / self.expiry

        def prices(scenarios: pr.Scenarios) -> Tensor:
            state = scenarios.state
            realised = state["integrated_variance"]
            if "jumps_squared" in state:
                realised = realised + state["jumps_squared"]
            so_far = torch.cat([torch.zeros_like(realised[:, :1]), realised.cumsum(1)], dim=1)
            expected = state["variance"] * slope.to(so_far) + intercept.to(so_far)
            return factor.to(so_far) * (so_far + expected)

        return prices


HEDGES: dict[str, type] = {cls.kind: cls for cls in (Spot, Option, VarianceSwapHedge)}


def _checked(hedge: Any, **numbers: Any) -> None:
    for name, value in numbers.items():
        try:
            number(name, value, above=0.0)
        except ValueError as error:
            raise ConfigError(f"hedge of kind {hedge.kind}: {error}") from None


def _check_expiry(name: str, expiry: float, times: Tensor) -> None:
    horizon = float(times[-1])
    if expiry < horizon - SAME_DATE:
        raise DataError(
            f"`expiry` of the hedging instrument '{name}' must not lie before the last trading date, {horizon:g} "
            f"years, got {expiry:g}; take a longer one, or a shorter horizon"
        )
