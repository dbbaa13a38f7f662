"""The problem of a contract under a model, solved on two grids."""

# torch leaves many of its functions without types
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import torch
from torch import Tensor

from pricers.finite_difference.contracts import Contract, Frame, Schedule, barrier_frame, free_frame, schedule
from pricers.finite_difference.grids import interpolate
from pricers.finite_difference.line import BarrierSide, Curve, Line, Variance, solve_line
from pricers.finite_difference.plane import solve_plane, variance_nodes
from pricers.finite_difference.solution import Solution
from pricers.market import Market
from pricers.models.base import Model
from pricers.models.black_scholes import BlackScholes
from pricers.models.heston import Heston
from pricers.models.local_vol import LocalVol

__all__ = ["on_line", "on_plane"]

WIDEST = 10.0  # deviations of the log price beyond which powers of the spot leave the range of numbers
DENSE = 0.5  # standard deviations from the strike within which the grid is dense
DENSE_UNDER_HESTON = 0.2  # its deviation is that of fat tails; the middle is narrow


def on_line(contract: Contract, model: BlackScholes | LocalVol, market: Market, n_space: int, n_time: int) -> Solution:
    """Values today of a contract on one asset that has no other state, on the grid and on every second node."""
    shape = _problems(contract, model, market)
    expiry = contract.expiry.expand(shape)
    dates = schedule(contract, expiry, market, model.surface.expiries if isinstance(model, LocalVol) else None)
    frame = _frame(contract, market, expiry, _deviation(model, expiry), n_space, DENSE, dates)
    variance = _variance(contract, model, market, shape)
    line = _line(contract, dates, variance, market.discount, market.growth)
    fine = solve_line(line, frame.nodes, n_time // 2, refinement=2)
    coarse = solve_line(line, frame.nodes[..., ::2], n_time // 2)
    return Solution(frame.nodes, fine, coarse, frame.query, frame.slope / contract.strike, contract.unit)


def on_plane(contract: Contract, model: Heston, market: Market, n_space: int, n_time: int, n_variance: int) -> Solution:
    """Values today under stochastic variance, at today's variance, on the grid and on every second node."""
    shape = _problems(contract, model, market)
    expiry = contract.expiry.expand(shape)
    _, second, fourth = (cumulant.double().detach() for cumulant in model.cumulants(expiry))
    deviation = (second + fourth.abs().sqrt()).sqrt().expand(shape)
    frame = _frame(contract, market, expiry, deviation, n_space, DENSE_UNDER_HESTON, schedule(contract, expiry, market))
    nodes, variances = frame.nodes.unsqueeze(-2), variance_nodes(model, expiry, n_variance)
    # From here on an axis of length 1 stands for the variances, before that of dates or spots.
    column = contract.with_axis()
    line = _line(
        column,
        schedule(column, expiry.unsqueeze(-1), market),
        torch.zeros_like(expiry),
        lambda time: market.discount(time.squeeze(-1)).unsqueeze(-1),
        lambda time: market.growth(time.squeeze(-1)).unsqueeze(-1),
    )
    today = model.v0.double().expand(shape)[..., None, None]

    def solved(stride: int, refinement: int) -> Tensor:
        grid = variances[..., ::stride]
        values = solve_plane(line, model, nodes[..., ::stride], grid, n_time // 2, refinement)
        return interpolate(grid.unsqueeze(-2), values.mT, today).squeeze(-1)

    return Solution(
        frame.nodes,
        solved(1, 2),
        solved(2, 1),
        frame.query,
        frame.slope / contract.strike,
        contract.unit,
        # Early exercise by splitting is of an order between 1 and 2 in time: the error is stated for order 1.
        halved_time=solved(1, 1).detach() if contract.exercise == "always" else None,
    )


def _check_width(deviation: Tensor) -> None:
    widest = deviation.detach().amax().item()
    if widest > WIDEST:
        raise ValueError(
            f"the standard deviation of the log price at expiry must be {WIDEST:g} or less on a grid, got {widest:g}; "
            "shorten `expiry` or lower the volatility"
        )


def _frame(
    contract: Contract,
    market: Market,
    expiry: Tensor,
    deviation: Tensor,
    n_space: int,
    dense: float,
    dates: Schedule,
) -> Frame:
    _check_width(deviation)
    growth = market.growth(expiry).expand(expiry.shape)
    ratio = market.spot / contract.strike
    if contract.barrier is None:
        paid_out = 0.0 if dates.dividends is None else dates.dividends.detach().sum(-1)
        return free_frame(ratio, growth, deviation, n_space, dense, paid_out)
    level = (contract.barrier / contract.strike).expand(expiry.shape)
    return barrier_frame(ratio, growth, deviation, n_space, dense, level, contract.down, contract.monitoring is None)


def _line(contract: Contract, dates: Schedule, variance: Variance, discount: Curve, growth: Curve) -> Line:
    return Line(
        payoff=contract.payoff,
        dates=dates.dates,
        variance=variance,
        discount=discount,
        growth=growth,
        moving=contract.barrier is None,
        obstacle=None if contract.exercise is None else contract.exercised,
        exercise="always" if contract.exercise == "always" else dates.exercise,
        barrier=_barrier(contract),
        level=None if contract.barrier is None else contract.barrier / contract.strike,
        knocked=dates.knocked,
        rebate=None if contract.rebate is None else contract.rebate / contract.strike,
        dividends=dates.dividends,
    )


def _problems(contract: Contract, model: Model, market: Market) -> torch.Size:
    """Batch of the problems that differ: without spot and strike where only their ratio counts."""
    rates = torch.broadcast_shapes(market.growth(contract.expiry).shape, market.discount(contract.expiry).shape)
    shapes = [contract.expiry.shape, model.batch_shape, rates]
    if contract.exercise is not None and contract.exercise != "always":
        shapes.append(contract.exercise.shape[:-1])
    if contract.barrier is not None and contract.rebate is not None:
        shapes += [contract.barrier.shape, contract.rebate.shape]
        shapes += [] if contract.monitoring is None else [contract.monitoring.shape[:-1]]
    scaled = contract.barrier is None and market.dividends is None and not isinstance(model, LocalVol)
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
