"""From contract, model and market to a problem on a line: units of the strike, grid, contract dates."""

# torch leaves many of its functions without types
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from pricers.finite_difference.grids import stretched
from pricers.instruments.barrier import Barrier
from pricers.instruments.base import Instrument
from pricers.instruments.digital import Digital
from pricers.instruments.early_exercise import American, Bermudan
from pricers.instruments.european import European
from pricers.market import Market

__all__ = [
    "Claim",
    "Contract",
    "Frame",
    "Schedule",
    "averaged_payoff",
    "barrier_frame",
    "contracts",
    "free_frame",
    "schedule",
]

REACH = 7.0  # standard deviations of the log price on either side: a normal tail of 1e-12


Claim = Literal["call", "put", "cash call", "cash put", "asset call", "asset put"]


def averaged_payoff(claim: Claim, nodes: Tensor) -> Tensor:
    """Payoff with strike 1 at the nodes; in the cell that holds the strike its average over the cell.

    References:
        Pooley, Vetzal and Forsyth (2003), Convergence remedies for non-smooth payoffs in option pricing.
    """
    middles = 0.5 * (nodes[..., 1:] + nodes[..., :-1])
    low = torch.cat([nodes[..., :1], middles], -1)
    high = torch.cat([middles, nodes[..., -1:]], -1)
    width = high - low
    above = (high - high.clamp(max=1.0)) - (low - low.clamp(max=1.0))  # length of the cell above the strike
    square_above = 0.5 * (high.clamp(min=1.0) ** 2 - low.clamp(min=1.0) ** 2)  # first moment of that part
    square_below = 0.5 * (high.clamp(max=1.0) ** 2 - low.clamp(max=1.0) ** 2)
    below = width - above
    holds_strike = (low < 1.0) & (high > 1.0)
    up = (nodes > 1.0).to(nodes.dtype)
    point, mass = {
        "call": ((nodes - 1.0).clamp(min=0.0), square_above - above),
        "put": ((1.0 - nodes).clamp(min=0.0), below - square_below),
        "cash call": (up, above),
        "cash put": (1.0 - up, below),
        "asset call": (up * nodes, square_above),
        "asset put": ((1.0 - up) * nodes, square_below),
    }[claim]
    return torch.where(holds_strike, mass / width, point)


@dataclass(frozen=True)
class Contract:
    """What the solvers know of an instrument."""

    claim: Claim
    strike: Tensor
    expiry: Tensor
    exercise: Tensor | Literal["always"] | None = None  # dates, shape `*batch n_dates`
    barrier: Tensor | None = None  # level that knocks out
    down: bool = False
    monitoring: Tensor | None = None  # dates on which the barrier is looked at; None: always
    rebate: Tensor | None = None  # paid when knocked out
    offset: Tensor | None = None  # taken off the payoff at expiry

    def payoff(self, nodes: Tensor) -> Tensor:
        """Payoff at expiry over strike, averaged over the cell that holds the strike."""
        paid = averaged_payoff(self.claim, nodes)
        return paid if self.offset is None else paid - (self.offset / self.strike).unsqueeze(-1)

    @property
    def unit(self) -> Tensor:
        """What a solution of 1 is worth: the strike, or a unit of cash."""
        return torch.ones_like(self.strike) if self.claim.startswith("cash") else self.strike

    def with_axis(self) -> Contract:
        """The same with one more batch axis, the last, of length 1."""

        def row(dates: Tensor | None) -> Tensor | None:
            return None if dates is None else dates.unsqueeze(-2)

        def column(number: Tensor | None) -> Tensor | None:
            return None if number is None else number.unsqueeze(-1)

        return Contract(
            self.claim,
            self.strike.unsqueeze(-1),
            self.expiry.unsqueeze(-1),
            exercise=row(self.exercise) if isinstance(self.exercise, Tensor) else self.exercise,
            barrier=column(self.barrier),
            down=self.down,
            monitoring=row(self.monitoring),
            rebate=column(self.rebate),
            offset=column(self.offset),
        )

    def exercised(self, spots: Tensor) -> Tensor:
        """Value on exercise over strike, at spots over strike."""
        return (spots - 1.0 if self.claim == "call" else 1.0 - spots).clamp(min=0.0)


def contracts(instrument: Instrument) -> list[tuple[float, Contract]] | None:
    """The contracts whose signed sum is the instrument, in double precision; None for an instrument of another kind."""
    if isinstance(instrument, European | American | Bermudan | Digital | Barrier):
        strike = instrument.strike.double()
        claim: Claim = "call" if instrument.option == "call" else "put"
        if isinstance(instrument, Bermudan):
            if instrument.on != "single":
                return None
            times = instrument.times.double()
            return [(1.0, Contract(claim, strike, times[..., -1], exercise=times))]
        plain = Contract(claim, strike, instrument.expiry.double())
        if isinstance(instrument, European):
            return [(1.0, plain)]
        if isinstance(instrument, American):
            return [(1.0, replace(plain, exercise="always"))]
        if isinstance(instrument, Digital):
            return [(1.0, replace(plain, claim=_DIGITALS[instrument.pays, instrument.option]))]
        monitoring = instrument.monitoring.double() if isinstance(instrument.monitoring, Tensor) else None
        knocked = replace(plain, barrier=instrument.barrier.double(), down=instrument.down, monitoring=monitoring)
        rebate = instrument.rebate.double()
        if instrument.out:
            return [(1.0, replace(knocked, rebate=rebate))]
        # An in is the option less what an out pays that gives up the rebate of the in at expiry.
        return [(1.0, plain), (-1.0, replace(knocked, rebate=torch.zeros_like(rebate), offset=rebate))]
    return None


_DIGITALS: dict[tuple[str, str], Claim] = {
    ("cash", "call"): "cash call",
    ("cash", "put"): "cash put",
    ("asset", "call"): "asset call",
    ("asset", "put"): "asset put",
}


@dataclass(frozen=True)
class Frame:
    """Nodes of the fine grid and the place of today's spot on them."""

    nodes: Tensor  # shape `*problems n_space + 1`
    query: Tensor  # shape `*batch`
    slope: Tensor  # derivative of `query` with respect to spot


@dataclass(frozen=True)
class Schedule:
    """Contract dates and what happens on each."""

    dates: Tensor  # shape `*problems n_dates`, the last is the expiry
    exercise: Tensor | None
    knocked: Tensor | None
    dividends: Tensor | None  # in units of the strike


def schedule(contract: Contract, expiry: Tensor, market: Market, stops: Tensor | None = None) -> Schedule:
    """All dates in order, each with what happens on it.

    Dividends after expiry are put there with amount 0, so that all problems of a batch have as many dates.

    Args:
        contract: the contract.
        expiry: in the shape of the batch of problems.
        market: for its dividends.
        stops: more dates, on which nothing happens but the step ends: kinks of the coefficients in time.
    """
    shape = expiry.shape
    last = expiry.unsqueeze(-1)
    times: list[Tensor] = []
    marks: list[tuple[bool, bool]] = []
    amounts: list[Tensor] = []

    def add(dates: Tensor, is_exercise: bool, is_monitored: bool, amount: Tensor | None) -> None:
        n_dates = dates.shape[-1]
        times.append(dates.expand(*shape, n_dates))
        marks.extend([(is_exercise, is_monitored)] * n_dates)
        amounts.append(torch.zeros_like(times[-1]) if amount is None else amount.expand(*shape, n_dates))

    if stops is not None:
        add(torch.minimum(stops, last), False, False, None)
    if contract.monitoring is not None:
        add(contract.monitoring, False, True, None)
    if isinstance(contract.exercise, Tensor):
        add(contract.exercise, True, False, None)
    dividends = market.dividends
    if dividends is not None:
        within_life = dividends.times <= last
        paid = dividends.amounts / contract.strike.unsqueeze(-1)
        add(torch.where(within_life, dividends.times, last), False, False, torch.where(within_life, paid, 0.0))
    add(last, False, False, None)
    dates, order = torch.cat(times, -1).sort(dim=-1, stable=True)  # on one day the expiry stays last
    flags = torch.tensor(marks, device=expiry.device)
    return Schedule(
        dates,
        flags[:, 0][order] if isinstance(contract.exercise, Tensor) else None,
        flags[:, 1][order] if contract.monitoring is not None else None,
        torch.cat(amounts, -1).gather(-1, order) if dividends is not None else None,
    )


def _reduced(values: Tensor, shape: torch.Size, largest: bool) -> Tensor:
    """Largest or smallest of the queries that each problem of the batch answers."""
    extra = values.ndim - len(shape)
    axes = [*range(extra), *(extra + i for i, size in enumerate(shape) if size == 1 and values.shape[extra + i] > 1)]
    if not axes:
        return values.expand(shape)
    reduced = values.amax(axes, keepdim=True) if largest else values.amin(axes, keepdim=True)
    return reduced.reshape(shape)


def free_frame(
    spot_over_strike: Tensor,
    growth: Tensor,
    deviation: Tensor,
    n_space: int,
    dense: float,
    paid_out: Tensor | float = 0.0,
) -> Frame:
    """Grid in the forward over strike, dense at the strike.

    Args:
        spot_over_strike: shape `*batch`.
        growth: forward to expiry over spot, shape `*problems`.
        deviation: standard deviation of the log price at expiry, same shape.
        n_space: intervals of the fine grid.
        dense: standard deviations from the strike within which the grid is dense.
        paid_out: cash dividends to expiry over strike, by which the spot may fall.
    """
    query = spot_over_strike * growth
    with torch.no_grad():
        sd = deviation.detach()
        place = query.detach().log()
        leaving = paid_out * growth.detach()
        lowest = (query.detach() - leaving).clamp(min=0.05 * query.detach()).log()
        low = _reduced(lowest, sd.shape, largest=False).clamp(max=0.0) - (REACH + 0.5 * sd) * sd
        high = _reduced(place, sd.shape, largest=True).clamp(min=0.0) + (REACH + 0.5 * sd) * sd
        zero = torch.zeros_like(sd)
        nodes = stretched(low, high, n_space, zero.unsqueeze(-1), dense * sd.unsqueeze(-1), zero).exp()
    return Frame(nodes, query, growth.expand_as(query))


def barrier_frame(
    spot_over_strike: Tensor,
    growth: Tensor,
    deviation: Tensor,
    n_space: int,
    dense: float,
    level: Tensor,
    down: bool,
    ends: bool,
) -> Frame:
    """Grid in the spot over strike, dense at the strike and at the barrier, both on nodes.

    The nodes move with the barrier (and the strike stays on its node), so that derivatives with respect to either see
    it move.

    Args:
        spot_over_strike: shape `*batch`.
        growth: forward to expiry over spot, shape `*problems`.
        deviation: standard deviation of the log price at expiry, same shape.
        n_space: intervals of the fine grid.
        dense: standard deviations from the strike within which the grid is dense.
        level: barrier over strike.
        down: whether the barrier is the lower end.
        ends: whether the grid ends at the barrier.
    """
    log_level = level.log()
    with torch.no_grad():
        sd, place = deviation.detach(), spot_over_strike.detach().log()
        drift, fixed = growth.detach().log().expand_as(sd), log_level.detach().expand_as(sd)
        low = (_reduced(place, sd.shape, largest=False) + drift.clamp(max=0.0)).clamp(max=0.0) - (REACH + 0.5 * sd) * sd
        high = (_reduced(place, sd.shape, largest=True) + drift.clamp(min=0.0)).clamp(min=0.0) + (REACH + 0.5 * sd) * sd
        wall = torch.maximum(fixed, low) if down else torch.minimum(fixed, high)
        if ends:
            low, high = (wall, high) if down else (low, wall)
        strike = torch.zeros_like(wall)
        inside = (strike > low) & (strike < high)
        strike = torch.where(inside, strike, wall)
        centres = torch.stack([strike, wall], -1)
        apart = (strike - wall).abs()
        width = torch.where(apart > 0, torch.minimum(dense * sd, apart), dense * sd)
        log_nodes = stretched(low, high, n_space, centres, torch.stack([dense * sd, width], -1), strike, wall)
        reached = (wall == fixed).unsqueeze(-1)
        share = log_nodes / torch.where(wall == 0, 1.0, wall).unsqueeze(-1)
        share = torch.where((wall == 0).unsqueeze(-1) | ~inside.unsqueeze(-1), 1.0, share.clamp(0.0, 1.0))
        share = torch.where(reached, share, 0.0)
    moved = log_nodes + share * (log_level - fixed).unsqueeze(-1)
    return Frame(moved.exp(), spot_over_strike, torch.ones_like(spot_over_strike))
