"""The engine: prices by finite differences, each with an error bound from halving its grid."""

# torch leaves many of its functions without types
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from pricers.estimate import Estimate
from pricers.finite_difference.contracts import Contract, contracts
from pricers.finite_difference.problems import on_line, on_plane
from pricers.finite_difference.solution import Solution, read
from pricers.instruments.barrier import Barrier, check_not_crossed
from pricers.instruments.base import Instrument
from pricers.instruments.early_exercise import Bermudan
from pricers.market import Market
from pricers.models.base import Model
from pricers.models.black_scholes import BlackScholes
from pricers.models.heston import Heston
from pricers.models.local_vol import LocalVol
from pricers.parameters import broadcast_shape, whole

__all__ = ["FiniteDifference", "refusal"]

NAME = "finite difference"


@dataclass(frozen=True)
class FiniteDifference:
    r"""Prices from the pricing equation on a grid, of second order in space and time, extrapolated.

    One asset: Crank-Nicolson steps that grow quadratically after each contract date, on a grid dense at strike and
    barrier; early exercise by policy iteration, that is the exact solution of each step's complementarity problem.
    Heston: the modified Craig-Sneyd splitting on a grid in spot and variance; early exercise by operator splitting.
    Barriers are watched at all times or on dates, after each of which the value jumps: several steps, the first of them
    damped, lie between any two.

    Each price is solved for on the grid and on the grid of half its resolution in all directions, $V_h$ and $V_{2h}$.
    The value is $V_h + (V_h - V_{2h}) / 3$; `error_bound` is $|V_h - V_{2h}| / 3$, the error of $V_h$, at its largest
    near the spot. A problem is solved once for all spots and, where nothing but the strike sets the scale, for all
    strikes.

    Under Heston an American's bound also holds what half as many time steps change: its order in time lies below 2.

    Reverse mode keeps some vectors of the grid's size for each step: a few megabytes for one asset, 0.6 GB for one
    problem under Heston at the default grid. Forward mode keeps nothing. `delta_gamma` holds a local variance fixed in
    the spot; the derivative of `price` by the market's spot moves it with the forward.

    Args:
        n_space: intervals of the grid in the spot; even.
        n_time: time steps from today to the last date (more when there are many dates); even.
        n_variance: intervals of the grid in the variance, under Heston; even.

    Raises:
        ValueError: a count that is odd or too small.

    References:
        Rannacher (1984); Tavella and Randall (2000); Pooley, Vetzal and Forsyth (2003); Reisinger and Whitley (2014);
        In 't Hout and Foulon (2010), ADI finite difference schemes for option pricing in the Heston model with
        correlation; Ikonen and Toivanen (2004), Operator splitting methods for American option pricing.

    >>> from pricers.instruments.european import European
    >>> call = European(strike=[90.0, 100.0, 110.0], expiry=1.0)
    >>> estimate = FiniteDifference().price(call, BlackScholes(vol=0.2), Market(spot=100.0, rate=0.05))
    >>> [round(value, 4) for value in estimate.value.tolist()]
    [16.6994, 10.4506, 6.0401]
    """

    name: ClassVar[str] = "finite difference"
    n_space: int = 240
    n_time: int = 80
    n_variance: int = 80

    def __post_init__(self) -> None:
        for name, least in (("n_space", 16), ("n_time", 4), ("n_variance", 16)):
            count = whole(name, getattr(self, name))
            object.__setattr__(self, name, count)  # the class is frozen
            if count < least or count % 2:
                raise ValueError(f"`{name}` must be an even number of {least} or more, got {count}")

    def refusal(self, instrument: Instrument, model: Model, market: Market) -> str | None:
        """Why this engine cannot price the three together, or None."""
        return refusal(instrument, model, market)

    def price(self, instrument: Instrument, model: Model, market: Market) -> Estimate:
        """Value today, shape `*batch`; `error_bound` is the error of the finer of two grids, before extrapolation.

        Raises:
            ValueError: the engine cannot price this; the message says why.
        """
        return self._read(instrument, model, market, (0,))[0]

    def delta_gamma(self, instrument: Instrument, model: Model, market: Market) -> tuple[Estimate, Estimate]:
        """First and second derivative by the spot, from differences on the grid.

        Raises:
            ValueError: the engine cannot price this; the message says why.
        """
        delta, gamma = self._read(instrument, model, market, (1, 2))
        return delta, gamma

    def _read(
        self, instrument: Instrument, model: Model, market: Market, orders: tuple[int, ...]
    ) -> tuple[Estimate, ...]:
        """Derivatives of the value by the spot, of the orders asked for."""
        reason = refusal(instrument, model, market)
        if reason is not None:
            raise ValueError(reason)
        shape = broadcast_shape(
            instrument=instrument.batch_shape, model=model.batch_shape, market=market.batch_shape(model.n_assets)
        )
        if isinstance(instrument, Barrier) and instrument.continuous:
            check_not_crossed(instrument, market.spot)
        dtype = torch.promote_types(instrument.dates.dtype, market.spot.dtype)
        for parameter in model.parameters().values():
            dtype = torch.promote_types(dtype, parameter.dtype)
        parts = [(sign, part, self._solve(part, model, market)) for sign, part in contracts(instrument) or []]
        estimates: list[Estimate] = []
        for order in orders:
            value, bound = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
            for sign, part, solution in parts:
                number, error = read(solution, order)
                if order == 0 and part.exercise == "always":
                    number = torch.maximum(number, part.exercised(market.spot / part.strike) * part.strike)
                value, bound = value + sign * number, bound + error
            estimates.append(Estimate(value.to(dtype), 0.0, bound.to(dtype), engine=NAME))
        return tuple(estimates)

    def _solve(self, contract: Contract, model: Model, market: Market) -> Solution:
        if isinstance(model, Heston):
            return on_plane(contract, model, market, self.n_space, self.n_time, self.n_variance)
        assert isinstance(model, BlackScholes | LocalVol)
        return on_line(contract, model, market, self.n_space, self.n_time)


def refusal(instrument: Instrument, model: Model, market: Market) -> str | None:
    """Why finite differences cannot price this, or None."""
    if contracts(instrument) is None:
        what = "Bermudan options on several assets" if isinstance(instrument, Bermudan) else type(instrument).__name__
        return (
            f"FiniteDifference prices European, Digital, Barrier, American and Bermudan (on one asset), not {what}; "
            "use MonteCarlo, or LongstaffSchwartz for early exercise"
        )
    if not isinstance(model, BlackScholes | LocalVol | Heston):
        return (
            f"FiniteDifference solves BlackScholes, LocalVol and Heston, not {type(model).__name__}; "
            "use Fourier or MonteCarlo"
        )
    if model.n_assets > 1:
        return f"FiniteDifference prices one asset, the model has {model.n_assets}; use MonteCarlo or LongstaffSchwartz"
    if market.dividends is not None and not isinstance(model, BlackScholes):
        return f"cash dividends are for BlackScholes, not for {type(model).__name__}; use `dividend_yield`"
    return None
