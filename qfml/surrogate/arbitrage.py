r"""Whether a surrogate's prices admit arbitrage: densities below 0, and options that lose value with their expiry.

Of vols, with total variance $w(k, T) = \mathrm{vol}^2 T$ at log-moneyness $k$, the density of the asset is that of a
normal law times Durrleman's function,

.. math:: g(k) = \left(1 - \frac{k w'}{2 w}\right)^2 - \frac{w'^2}{4}\left(\frac1w + \frac14\right) + \frac{w''}{2},

and no calendar spread is negative where $\partial_T w \ge 0$ at fixed k. Of prices, the value must be monotone and
convex in the strike where the payoff is; and the price of a European option over the discounted forward must not fall
with the expiry at fixed k, whatever the rates, as long as dividends are proportional. What is learnt in k is turned
into derivatives in the strike, and the other way round, by the chain rule.

References:
    Gatheral, Jacquier (2014), "Arbitrage-free SVI volatility surfaces", lemma 2.1 and equation 2.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import pricers as pr
from qfml.surrogate.coordinates import row_jacobian
from qfml.surrogate.problem import Problem
from qfml.surrogate.quoting import price_of
from qfml.surrogate.surrogate import Surrogate
from qfml.surrogate.tangents import ROWS_AT_A_TIME

ROUNDING = 1e-12  # of a price per unit of spot: on its bounds the terms of a chain rule cancel

# payoffs that are convex and monotone in the strike, all other terms fixed
CONVEX_IN_STRIKE = frozenset(
    {"european", "american", "bermudan", "asian", "asian_barrier", "barrier", "basket", "lookback"}
)


def durrleman(k: Tensor, vol: Tensor, slope: Tensor, curvature: Tensor, expiry: Tensor) -> Tensor:
    """Durrleman's function from the vol and its first two derivatives in the log-moneyness `k`.

    >>> k = torch.tensor([-0.3, 0.0, 0.5])
    >>> durrleman(k, 0.2 + 0 * k, 0 * k, 0 * k, 1 + 0 * k)  # a flat smile is a normal law
    tensor([1., 1., 1.])
    """
    w = vol * vol * expiry
    first = 2.0 * vol * slope * expiry
    second = 2.0 * (slope * slope + vol * curvature) * expiry
    return (1.0 - 0.5 * k * first / w).square() - 0.25 * first.square() * (1.0 / w + 0.25) + 0.5 * second


def arbitrage_note(problem: Problem) -> str:
    """Why rules of no-arbitrage are not looked at; "" if density or convexity and calendar are."""
    kind, axis = problem.instrument["kind"], problem.strike_coordinate
    if axis is None:
        return "no rule was looked at: the strike does not vary in the box"
    if problem.target != "implied_vol" and kind not in CONVEX_IN_STRIKE:
        return f"no rule was looked at: nothing is known of the value of a {kind} as a function of its strike"
    if problem.instrument.get("floating"):
        return "no rule was looked at: the strike of the contract is its average"
    if kind != "european":
        return "calendar spreads were not looked at: the rule is one of European options"
    if "expiry" not in problem.inputs:
        return "calendar spreads were not looked at: the expiry does not vary in the box"
    if problem.market.get("dividends") is not None:
        return "calendar spreads were not looked at: with cash dividends the price over the forward may fall"
    return ""


def arbitrage_of(surrogate: Surrogate, inputs: Tensor) -> dict[str, Any]:
    """Shares of rows that violate a rule, and the worst violation; see `judgement` for the keys.

    Args:
        surrogate: what is looked at.
        inputs: rows inside its box (N, d), float64.
    """
    note = arbitrage_note(surrogate.problem)
    if note.startswith("no rule"):
        return {}
    of = _of_vols if surrogate.problem.target == "implied_vol" else _of_prices
    return of(surrogate, inputs, calendar=not note)


def derivatives_along(surrogate: Surrogate, inputs: Tensor, place: int) -> tuple[Tensor, Tensor, Tensor]:
    """Value (N,) and its first two derivatives in the input `place`, float64."""
    value, gradient, second = _derivatives(surrogate.unchecked_values, inputs, place)
    return value, gradient[:, place], second


def _derivatives(function: Callable[[Tensor], Tensor], inputs: Tensor, place: int) -> tuple[Tensor, Tensor, Tensor]:
    """Value (N,), gradient (N, d) and second derivative (N,) in the input `place` of a function of rows, float64."""
    parts = []
    for block in inputs.double().split(ROWS_AT_A_TIME):
        rows = block.detach().clone().requires_grad_()
        with torch.enable_grad():
            value = function(rows)
            (gradient,) = torch.autograd.grad(value.sum(), rows, create_graph=True)
            (second,) = torch.autograd.grad(gradient[:, place].sum(), rows, materialize_grads=True)
        parts.append((value.detach(), gradient.detach(), second[:, place]))
    value, gradient, second = (torch.cat(column) for column in zip(*parts, strict=True))
    return value, gradient, second


def _of_vols(surrogate: Surrogate, inputs: Tensor, calendar: bool) -> dict[str, Any]:
    problem = surrogate.problem
    place, by_strike = _strike(problem)
    vol, gradient, second = _derivatives(surrogate.unchecked_values, inputs, place)
    slope, k = gradient[:, place], inputs[:, place]
    if by_strike:  # K d/dK is d/dk
        strike = k
        option, _, market = problem.triple(inputs)
        assert isinstance(option, pr.European)
        k = torch.log(strike / market.forward(option.expiry))
        slope = strike * gradient[:, place]
        second = strike.square() * second + slope
    expiry = problem.expiry(problem.columns(inputs)).expand_as(vol)
    found = {
        "density": _violations(
            durrleman(k, vol, slope, second, expiry), "Durrleman's function, of which a normal law has 1"
        )
    }
    if calendar:
        by_expiry = _at_fixed_moneyness(problem, inputs, gradient)
        growth = 1.0 + 2.0 * expiry * by_expiry / vol  # d log w / d log T at fixed k
        found["calendar"] = _violations(growth, "relative growth of total variance with the log of the expiry")
    return found


def _of_prices(surrogate: Surrogate, inputs: Tensor, calendar: bool) -> dict[str, Any]:
    problem = surrogate.problem
    place, by_strike = _strike(problem)

    def price(rows: Tensor) -> Tensor:
        triple = problem.triple(rows)
        return price_of(problem, surrogate.unchecked_values(rows), triple, rows.shape[:1]) / triple[2].spot

    def over_forward(rows: Tensor) -> Tensor:
        option, _, market = problem.triple(rows)
        assert isinstance(option, pr.European)
        return price(rows) * market.spot / (market.discount(option.expiry) * market.forward(option.expiry))

    _, gradient, second = _derivatives(price, inputs, place)
    slope = gradient[:, place]
    if not by_strike:  # K = F e^k
        instrument: Any = problem.triple(inputs)[0]
        strike = instrument.strike
        slope, second = slope / strike, (second - slope) / strike.square()
    sign = 1.0 if problem.instrument.get("option", "call") == "call" else -1.0
    found = {
        "monotone": _violations(-sign * slope, "price per unit of spot lost per unit of strike in the wrong direction"),
        "convex": _violations(
            second, "second derivative of the price per unit of spot in the strike", 0.0 if by_strike else ROUNDING
        ),
    }
    if calendar:
        growth = _at_fixed_moneyness(problem, inputs, _derivatives(over_forward, inputs, place)[1])
        what = "growth per year of the price over the discounted forward, at a fixed strike over the forward"
        found["calendar"] = _violations(growth, what, ROUNDING)
    return found


def _strike(problem: Problem) -> tuple[int, bool]:
    """The column of the strike, and whether it is the strike itself and not its log-moneyness."""
    axis = problem.strike_coordinate
    assert axis is not None
    return problem.inputs.index(axis.input), axis.argument == "strike"


def _at_fixed_moneyness(problem: Problem, inputs: Tensor, gradient: Tensor) -> Tensor:
    """The derivative (N,) in the expiry at a fixed strike over the forward, from the gradient (N, d) in the inputs."""
    place, by_strike = _strike(problem)
    expiry = problem.inputs.index("expiry")
    if not by_strike:
        return gradient[:, expiry]

    def log_forward(rows: Tensor) -> Tensor:
        option, _, market = problem.triple(rows)
        assert isinstance(option, pr.European)
        return torch.log(market.forward(option.expiry)).expand(len(rows)) + 0.0 * rows[:, expiry]

    carry = row_jacobian(lambda rows: log_forward(rows)[:, None], inputs)[:, 0, expiry]
    return gradient[:, expiry] + gradient[:, place] * inputs[:, place] * carry


def _violations(values: Tensor, what: str, rounding: float = 0.0) -> dict[str, Any]:
    """How often values that should be 0 or more are not, beyond rounding, and by how much."""
    lost = values < -rounding
    return {
        "share": float(lost.double().mean()),
        "count": int(lost.sum()),
        "n_points": len(values),
        "worst": float(values[lost].min()) if bool(lost.any()) else 0.0,
        "measured": what,
    }
