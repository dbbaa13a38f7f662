"""Exact prices of hedging a short call with proportional costs, by dynamic programming: the truth for hedging networks.

    python benchmarks/hedging_truth.py [--risk-aversions 1 10 50 100] [--cost 1e-3] [--out FILE.json]

A trader owes (S_n - K)^+ and holds the asset between n dates. Her loss is judged by the entropic risk of aversion
lambda; a trade of d units costs c S |d|, the first one too, and nothing is unwound at the end. With the holding d' that
she comes with, the least risk of what is to come follows backwards from J_n(S, d') = (S - K)^+:

    g_l(S, d)  = 1/lambda log E[exp(lambda (J_{l+1}(S', d) - d (S' - S))) | S]         the value of holding d
    J_l(S, d') = min over d of g_l(S, d) + c S |d - d'|                                the value of coming with d'

with log S' = log S + (drift - vol^2 / 2) dt + vol sqrt(dt) N(0, 1). As g is convex in d, the best holding is the point
of a no-transaction band [low, high] that is nearest to d': the slope of g is -c S at its low end and c S at its high
end (Davis, Panas and Zariphopoulou, 1993, "European Option Pricing with Transaction Costs").

The grid is even in log S with a node at the strike, so that the Gaussian expectation is a trapezoidal sum: spectrally
exact where J is smooth, and of fourth order at the kink with the value there that Euler and Maclaurin's formula asks
for. Holdings are nodes too, and nothing is interpolated between dates. The printed grid error is what a grid twice as
fine in both directions changes.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.interpolate import CubicSpline

Hedge = Callable[[int, np.ndarray], np.ndarray]  # holding at a date number and spots


@dataclass(frozen=True)
class Problem:
    """A short call, hedged with the asset at `n_steps` dates; money is discounted, years and decimals throughout.

    `quantity` is the number of calls that are owed: with 0 the same recursion gives the risk of trading on the drift
    alone, which is taken off the risk to have the indifference price.
    """

    risk_aversion: float
    cost: float = 0.0
    n_steps: int = 28
    dt: float = 1 / 365
    vol: float = 0.2
    drift: float = 0.0
    spot: float = 1.0
    strike: float = 1.0
    quantity: float = 1.0

    @property
    def deviation(self) -> float:
        """Standard deviation of the log-return of one step."""
        return self.vol * math.sqrt(self.dt)


@dataclass(frozen=True)
class Grid:
    """Nodes per standard deviation of a step, holdings between two bounds, and how many deviations the spot may go."""

    per_deviation: int = 6
    n_holdings: int = 201
    lowest: float = 0.0
    highest: float = 1.0
    width: float = 8.0

    def halved(self) -> Grid:
        """Twice as fine in both directions."""
        return replace(self, per_deviation=2 * self.per_deviation, n_holdings=2 * self.n_holdings - 1)

    def step(self, problem: Problem) -> float:
        """Distance of nodes in log-spot."""
        return problem.deviation / self.per_deviation

    def log_moneyness(self, problem: Problem) -> np.ndarray:
        """Nodes of log(S / K), shape (X,), 0 in the middle."""
        reach = self.width * problem.deviation * math.sqrt(problem.n_steps) + abs(
            math.log(problem.spot / problem.strike)
        )
        count = math.ceil(reach / self.step(problem))
        return np.arange(-count, count + 1) * self.step(problem)

    def holdings(self) -> np.ndarray:
        """Nodes of the holding, shape (D,)."""
        return np.linspace(self.lowest, self.highest, self.n_holdings)

    def transition(self, problem: Problem) -> np.ndarray:
        """Probabilities of going 2H + 1 nodes, from H down to H up; they cover `width` deviations and add up to 1."""
        mean = (problem.drift - 0.5 * problem.vol**2) * problem.dt
        reach = math.ceil(self.width * self.per_deviation + abs(mean) / self.step(problem))
        moves = np.arange(-reach, reach + 1) * self.step(problem)
        density = np.exp(-0.5 * ((moves - mean) / problem.deviation) ** 2)
        return density / density.sum()


@dataclass(frozen=True)
class Solution:
    """The least risk, and the holdings that have it, on nodes of the spot.

    `low` and `high` (n_steps, X) are the ends of the no-transaction band at each date, `spot` (X,) the nodes.
    """

    price: float
    spot: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def hold(self, date: int, spot: np.ndarray, before: np.ndarray) -> np.ndarray:
        """The holding after the trade at a date: the point of the band that is nearest to the holding before."""
        ends = (np.interp(spot, self.spot, band[date]) for band in (self.low, self.high))
        return np.clip(before, *ends)


@dataclass(frozen=True)
class PolicyValue:
    """Entropic price of a policy without costs, and its holdings (n_steps, X) on nodes of the spot (X,)."""

    price: float
    spot: np.ndarray
    holdings: np.ndarray

    def hold(self, date: int, spot: np.ndarray) -> np.ndarray:
        """The holding at a date and spots between the nodes."""
        return CubicSpline(self.spot, self.holdings[date])(spot)


def solve(problem: Problem, grid: Grid | None = None) -> Solution:
    """The dynamic program: least entropic risk with costs, and the no-transaction bands that reach it.

    Raises:
        ValueError: the band at the start ends at a bound of the grid's holdings, which would decide then.
    """
    grid = grid or Grid()
    spot, weights = _spots(problem, grid), grid.transition(problem)
    holdings = grid.holdings()[:, None]
    owed = _payoff(problem, grid)
    value = np.broadcast_to(owed, (grid.n_holdings, len(spot)))
    low, high = np.empty((2, problem.n_steps, len(spot)))
    for date in reversed(range(problem.n_steps)):
        wide, value_wide = _beyond(problem, spot, value, weights)
        exponent = problem.risk_aversion * (value_wide - holdings * wide)
        held = log_mean_exp(exponent, weights) / problem.risk_aversion + holdings * spot
        low[date], high[date] = _band(held, grid.holdings(), problem.cost * spot)
        value = _after_trading(held, problem.cost * spot * holdings)
    _check_bounds(problem, grid, spot, low, high)
    start = _at_spot(problem, spot, value[np.argmin(np.abs(grid.holdings()))])
    return Solution(start, spot, low, high)


def frictionless(problem: Problem, grid: Grid | None = None) -> PolicyValue:
    """The least risk without costs, and its hedge: one state, and Newton's method in the holding at each node."""
    return _walk(replace(problem, cost=0.0), grid or Grid(), hedge=None)


def policy_value(problem: Problem, hedge: Hedge, grid: Grid | None = None) -> PolicyValue:
    """Entropic risk of the policy `hedge(date, spot)` without costs: the known mean of a control variate.

    With J_n the payoff, J_l(S) = 1/lambda log E[exp(lambda (J_{l+1}(S') - d_l(S) (S' - S)))].
    """
    return _walk(replace(problem, cost=0.0), grid or Grid(), hedge)


def log_mean_exp(exponent: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """log of the mean of exp(exponent) after one step: rows (D, X + 2H) in, (D, X) out.

    Direct sums of positive terms, scaled block by block, keep their digits where a transform would lose them to the
    largest term. A block of 2H nodes is one product with a matrix that all blocks share.
    """
    block = len(weights) - 1
    n_out = exponent.shape[1] - block
    n_blocks = -(-n_out // block)
    filled = np.pad(exponent, ((0, 0), (0, n_blocks * block - n_out)), mode="edge")
    windows = sliding_window_view(filled, 2 * block, axis=1)[:, ::block]  # (D, blocks, 4H)
    shifted = np.zeros((2 * block, block))
    for column in range(block):
        shifted[column : column + len(weights), column] = weights
    top = windows.max(axis=2, keepdims=True)
    means = np.exp(windows - top) @ shifted
    return (np.log(means) + top).reshape(len(exponent), -1)[:, :n_out]


def cost_exponent(risk_aversion: float, costs: np.ndarray, grid: Grid | None = None) -> float:
    """Slope of log(price - frictionless price) in log(cost): how the price of trading grows with its cost."""
    free = frictionless(Problem(risk_aversion), grid).price
    dearer = [solve(Problem(risk_aversion, cost), grid).price - free for cost in costs]
    return float(np.polyfit(np.log(costs), np.log(dearer), 1)[0])


def _spots(problem: Problem, grid: Grid) -> np.ndarray:
    return problem.strike * np.exp(grid.log_moneyness(problem))


def _payoff(problem: Problem, grid: Grid) -> np.ndarray:
    """What is owed, with the value at the strike that makes a trapezoidal sum over the kink one order better.

    A sum of exp(lambda payoff) with steps h falls short by h^2 / 12 times the jump of its slope, lambda K: the node at
    the strike gets the weight 1 + h lambda K / 12.
    """
    moneyness = grid.log_moneyness(problem)
    owed = problem.quantity * problem.strike * np.maximum(np.expm1(moneyness), 0.0)
    jump = problem.risk_aversion * problem.quantity * problem.strike
    owed[len(owed) // 2] = math.log1p(jump * grid.step(problem) / 12) / problem.risk_aversion
    return owed


def _beyond(
    problem: Problem, spot: np.ndarray, value: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Spots and values on H more nodes at both ends, where value less payoff stays what it is at the end."""
    reach = len(weights) // 2
    ratio = spot[1] / spot[0]
    more = ratio ** np.arange(1, reach + 1)
    wide = np.concatenate([spot[0] / more[::-1], spot, spot[-1] * more])
    above = value - _owed(problem, spot)
    return wide, np.pad(above, ((0, 0), (reach, reach)), mode="edge") + _owed(problem, wide)


def _owed(problem: Problem, spot: np.ndarray) -> np.ndarray:
    return problem.quantity * np.maximum(spot - problem.strike, 0.0)


def _after_trading(held: np.ndarray, price_of_holding: np.ndarray) -> np.ndarray:
    """min over d of held(d) + |price (d - d')| for all d': the cheapest from above, and from below."""
    from_below = np.minimum.accumulate(held - price_of_holding, axis=0) + price_of_holding
    from_above = np.minimum.accumulate((held + price_of_holding)[::-1], axis=0)[::-1] - price_of_holding
    return np.minimum(from_below, from_above)


def _band(held: np.ndarray, holdings: np.ndarray, slope: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Holdings at which the slope of `held` (D, X) is minus and plus `slope` (X,), between the nodes."""
    step = holdings[1] - holdings[0]
    slopes = np.diff(held, axis=0) / step  # at the middles of the nodes, rising
    middles = 0.5 * (holdings[1:] + holdings[:-1])
    ends = np.empty((2, held.shape[1]))
    for node in range(held.shape[1]):
        ends[:, node] = np.interp([-slope[node], slope[node]], slopes[:, node], middles)
    ends[ends <= middles[0]], ends[ends >= middles[-1]] = holdings[0], holdings[-1]
    return ends[0], ends[1]


def _check_bounds(problem: Problem, grid: Grid, spot: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """Refuse holdings that the drift pushes over the bounds: between 0 and 1 all is in order for a call without one."""
    if problem.drift == 0.0 and grid.lowest <= 0.0 and grid.highest >= problem.quantity:
        return
    start = int(np.argmin(np.abs(spot - problem.spot)))
    if low[0, start] <= grid.lowest or high[0, start] >= grid.highest:
        raise ValueError(
            f"the best holding must lie within the grid's {grid.lowest} to {grid.highest}, got the band "
            f"{low[0, start]:.3f} to {high[0, start]:.3f} at the start; widen `lowest` and `highest`"
        )


def _at_spot(problem: Problem, spot: np.ndarray, value: np.ndarray) -> float:
    return float(CubicSpline(np.log(spot), value)(math.log(problem.spot)))


def _walk(problem: Problem, grid: Grid, hedge: Hedge | None) -> PolicyValue:
    """Backwards without costs, under a given hedge or, where it is None, under the best one."""
    spot, weights = _spots(problem, grid), grid.transition(problem)
    value = _payoff(problem, grid)
    holdings = np.empty((problem.n_steps, len(spot)))
    holding = 0.5 * problem.quantity * np.ones(len(spot))
    for date in reversed(range(problem.n_steps)):
        wide, value_wide = _beyond(problem, spot, value[None], weights)
        gain = sliding_window_view(wide, len(weights)) - spot[:, None]
        exponent = problem.risk_aversion * sliding_window_view(value_wide[0], len(weights)) + np.log(weights)
        holding = _best_holding(exponent, gain, problem.risk_aversion, holding) if hedge is None else hedge(date, spot)
        exponent = exponent - problem.risk_aversion * holding[:, None] * gain
        top = exponent.max(axis=1)
        value = (np.log(np.exp(exponent - top[:, None]).sum(axis=1)) + top) / problem.risk_aversion
        holdings[date] = holding
    return PolicyValue(_at_spot(problem, spot, value), spot, holdings)


def _best_holding(exponent: np.ndarray, gain: np.ndarray, risk_aversion: float, start: np.ndarray) -> np.ndarray:
    """The holding at which the gain has mean 0 under the tilted probabilities, by Newton's method."""
    holding = start
    for _ in range(100):
        tilted = exponent - risk_aversion * holding[:, None] * gain
        chance = np.exp(tilted - tilted.max(axis=1, keepdims=True))
        chance /= chance.sum(axis=1, keepdims=True)
        mean = (chance * gain).sum(axis=1)
        move = mean / (risk_aversion * (chance * (gain - mean[:, None]) ** 2).sum(axis=1))
        holding = holding + np.clip(move, -0.5, 0.5)  # far from the root Newton's method oversteps
        if np.abs(move).max() < 1e-10:
            return holding
    raise RuntimeError("Newton's method for the frictionless hedge did not converge")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--risk-aversions", type=float, nargs="+", default=[1.0, 10.0, 50.0, 100.0])
    parser.add_argument("--cost", type=float, default=1e-3, help="proportional cost, a fraction of what is traded")
    parser.add_argument("--out", type=Path, help="write the results to this JSON file")
    options = parser.parse_args()
    rows = []
    for risk_aversion in options.risk_aversions:
        problem = Problem(risk_aversion, options.cost)
        price = solve(problem).price
        row = asdict(problem) | {
            "price": price,
            "grid_error": abs(solve(problem, Grid().halved()).price - price),
            "frictionless": frictionless(problem).price,
            "no_hedge": policy_value(problem, lambda date, spot: np.zeros_like(spot)).price,
            "cost_exponent": cost_exponent(risk_aversion, np.geomspace(1e-4, 2e-3, 5)),
        }
        rows.append(row)
        print(
            f"risk aversion {risk_aversion:g}: price {row['price']:.7f} (grid error {row['grid_error']:.0e}), "
            f"frictionless {row['frictionless']:.7f}, no hedge {row['no_hedge']:.7f}, "
            f"cost exponent {row['cost_exponent']:.3f}"
        )
    if options.out:
        options.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
