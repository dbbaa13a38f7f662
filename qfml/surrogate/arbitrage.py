r"""Whether a surrogate's prices admit arbitrage: densities below 0, and options that lose value with their expiry.

Of vols, with total variance $w(k, T) = \mathrm{vol}^2 T$ at log-moneyness $k$, the density of the asset is that of a
normal law times Durrleman's function,

.. math:: g(k) = \left(1 - \frac{k w'}{2 w}\right)^2 - \frac{w'^2}{4}\left(\frac1w + \frac14\right) + \frac{w''}{2},

and no calendar spread is negative where $\partial_T w \ge 0$ at fixed k. Of prices, the value must be monotone and
convex in the strike where the payoff is.

References:
    Gatheral, Jacquier (2014), "Arbitrage-free SVI volatility surfaces", lemma 2.1 and equation 2.1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qfml.surrogate.surrogate import ROWS_AT_A_TIME, Surrogate

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


def arbitrage_of(surrogate: Surrogate, inputs: Tensor) -> dict[str, Any]:
    """Shares of rows that violate a rule, and the worst violation; see `judgement` for the keys.

    Args:
        surrogate: what is looked at.
        inputs: rows inside its box (N, d), float64.
    """
    problem, names = surrogate.problem, surrogate.problem.inputs
    if problem.target == "implied_vol":
        return _of_vols(surrogate, inputs) if "log_moneyness" in names else {}
    axis = problem.strike_coordinate
    if axis is None or problem.target != "price" or problem.instrument["kind"] not in CONVEX_IN_STRIKE:
        return {}
    if axis.argument != "strike" or problem.instrument.get("floating"):
        return {}
    _, slope, curvature = derivatives_along(surrogate, inputs, names.index(axis.input))
    sign = 1.0 if problem.instrument.get("option", "call") == "call" else -1.0
    return {
        "monotone": _violations(-sign * slope, "price per unit of spot lost per unit of strike in the wrong direction"),
        "convex": _violations(curvature, "second derivative of the price per unit of spot in the strike"),
    }


def derivatives_along(surrogate: Surrogate, inputs: Tensor, place: int) -> tuple[Tensor, Tensor, Tensor]:
    """Value (N,) and its first two derivatives in the input `place`, float64."""
    parts = []
    for block in inputs.double().split(ROWS_AT_A_TIME):
        rows = block.detach().clone().requires_grad_()
        with torch.enable_grad():
            value = surrogate.values(rows)
            (gradient,) = torch.autograd.grad(value.sum(), rows, create_graph=True)
            (second,) = torch.autograd.grad(gradient[:, place].sum(), rows, materialize_grads=True)
        parts.append((value.detach(), gradient[:, place].detach(), second[:, place]))
    value, slope, curvature = (torch.cat(column) for column in zip(*parts, strict=True))
    return value, slope, curvature


def _of_vols(surrogate: Surrogate, inputs: Tensor) -> dict[str, Any]:
    problem, names = surrogate.problem, surrogate.problem.inputs
    place = names.index("log_moneyness")
    vol, slope, curvature = derivatives_along(surrogate, inputs, place)
    expiry = problem.expiry(problem.columns(inputs)).expand_as(vol)
    g = durrleman(inputs[:, place], vol, slope, curvature, expiry)
    found = {"density": _violations(g, "Durrleman's function, of which a normal law has 1")}
    if "expiry" in names:
        by_expiry = surrogate.value_and_gradient(inputs)[1][:, names.index("expiry")]
        growth = 1.0 + 2.0 * expiry * by_expiry / vol  # d log w / d log T at fixed k
        found["calendar"] = _violations(growth, "relative growth of total variance with the log of the expiry")
    return found


def _violations(values: Tensor, what: str) -> dict[str, Any]:
    """How often values that should be 0 or more are not, and by how much."""
    return {
        "share": float((values < 0).double().mean()),
        "count": int((values < 0).sum()),
        "n_points": len(values),
        "worst": float(values.min().clamp(max=0.0)),
        "measured": what,
    }
