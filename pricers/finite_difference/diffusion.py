"""Black-Scholes and local volatility: the line problem of a contract, solved on two grids."""

# torch leaves many of its functions without types
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import torch
from torch import Tensor

from pricers.finite_difference.contracts import Contract, barrier_frame, free_frame, schedule
from pricers.finite_difference.line import BarrierSide, Line, Variance, solve_line
from pricers.finite_difference.solution import Solution
from pricers.market import Market
from pricers.models.black_scholes import BlackScholes
from pricers.models.local_vol import LocalVol

__all__ = ["on_line"]


def on_line(contract: Contract, model: BlackScholes | LocalVol, market: Market, n_space: int, n_time: int) -> Solution:
    """Values today of a contract on one asset that has no other state, on the grid and on every second node."""
    shape = _problems(contract, model, market)
    expiry = contract.expiry.expand(shape)
    growth = market.growth(expiry).expand(shape)
    stops = model.surface.expiries if isinstance(model, LocalVol) else None
    dates = schedule(contract, expiry, market, stops)
    ratio = market.spot / contract.strike
    deviation = _deviation(model, expiry)
    if contract.barrier is None:
        paid_out = 0.0 if dates.dividends is None else dates.dividends.sum(-1)
        frame = free_frame(ratio, growth, deviation, n_space, paid_out)
    else:
        level = (contract.barrier / contract.strike).expand(shape)
        ends = contract.monitoring is None
        frame = barrier_frame(ratio, growth, deviation, n_space, level, contract.down, ends)
    line = Line(
        payoff=contract.payoff,
        dates=dates.dates,
        variance=_variance(contract, model, market, shape),
        discount=market.discount,
        growth=market.growth,
        moving=contract.barrier is None,
        obstacle=None if contract.exercise is None else contract.exercised,
        exercise="always" if contract.exercise == "always" else dates.exercise,
        barrier=_barrier(contract),
        level=None if contract.barrier is None else contract.barrier / contract.strike,
        knocked=dates.knocked,
        rebate=None if contract.rebate is None else contract.rebate / contract.strike,
        dividends=dates.dividends,
    )
    fine = solve_line(line, frame.nodes, n_time // 2, refinement=2)
    coarse = solve_line(line, frame.nodes[..., ::2], n_time // 2)
    return Solution(frame.nodes, fine, coarse, frame.query, frame.slope / contract.strike, contract.unit)


def _problems(contract: Contract, model: BlackScholes | LocalVol, market: Market) -> torch.Size:
    """Batch of the problems that differ: without spot and strike where only their ratio counts."""
    rates = torch.broadcast_shapes(market.growth(contract.expiry).shape, market.discount(contract.expiry).shape)
    shapes = [contract.expiry.shape, model.batch_shape, rates]
    if contract.exercise is not None and contract.exercise != "always":
        shapes.append(contract.exercise.shape[:-1])
    if contract.barrier is not None and contract.rebate is not None:
        shapes += [contract.barrier.shape, contract.rebate.shape]
        shapes += [] if contract.monitoring is None else [contract.monitoring.shape[:-1]]
    scaled = contract.barrier is None and market.dividends is None and isinstance(model, BlackScholes)
    shapes += [] if scaled else [contract.strike.shape]
    shapes += [market.spot.shape] if isinstance(model, LocalVol) else []
    return torch.broadcast_shapes(*shapes)


def _deviation(model: BlackScholes | LocalVol, expiry: Tensor) -> Tensor:
    vol = model.vol.double() if isinstance(model, BlackScholes) else model.surface.vols.double().amax((-1, -2))
    return (vol * expiry.sqrt()).expand(expiry.shape)


def _variance(contract: Contract, model: BlackScholes | LocalVol, market: Market, shape: torch.Size) -> Variance:
    if isinstance(model, BlackScholes):
        return (model.vol.double() ** 2).expand(shape)

    def local(spots: Tensor, time: Tensor) -> Tensor:
        forward = market.forward(time) / contract.strike
        return model.local_variance((spots / forward.unsqueeze(-1)).log(), time)

    return local


def _barrier(contract: Contract) -> BarrierSide | None:
    if contract.barrier is None:
        return None
    if contract.monitoring is None:
        return "low" if contract.down else "high"
    return "below" if contract.down else "above"
