"""A surrogate asked as an engine is: by instrument, model and market."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

import pricers as pr
from pricers.black.price import black_option
from pricers.parameters import broadcast_shape, copied
from qfml.errors import DataError
from qfml.surrogate.box import STRIKE_COORDINATES, argument_names
from qfml.surrogate.problem import Problem

# models whose law of S_t / S_0 does not depend on S_0: prices scale with spot, strike and barriers
SCALE_FREE = ("black_scholes", "merton", "heston", "bates", "rough_bergomi", "rough_heston")
IN_UNITS_OF_SPOT = ("strike", "barrier", "rebate", "running_average", "running_extremum")
Triple = tuple[pr.Instrument, pr.Model, pr.Market]
Name = str | tuple[str, str]


def rows_of(problem: Problem, instrument: Any, model: Any, market: Any) -> tuple[Tensor, torch.Size]:
    """Rows of inputs (N, d) of a batch of `pricers` objects, and the shape of the batch; differentiable.

    An implied vol asks for the model, the expiry and the strike over the forward, so that any market will do. A price
    is asked for per unit of spot: under a model whose returns do not depend on the level of the spot, any spot will do,
    and rates must be those of the problem.

    Raises:
        DataError: another instrument or model than the problem's, or a term that is fixed in the problem and differs.
    """
    given = {"instrument": instrument, "model": model, "market": market}
    for owner, cls in problem.classes.items():
        if type(given[owner]) is not cls:
            raise DataError(f"`{owner}` must be {cls.__name__}, for which the surrogate stands, got {given[owner]!r}")
    shape = broadcast_shape(
        instrument=instrument.batch_shape, model=model.batch_shape, market=market.batch_shape(model.n_assets)
    )
    ratio = _spot_ratio(problem, market)
    columns = []
    for axis in problem.coordinates:
        if axis.argument in STRIKE_COORDINATES:
            column = torch.log(instrument.strike / market.forward(instrument.expiry))
        else:
            column = getattr(given[axis.owner], axis.argument)
            column = column * ratio if axis.argument in IN_UNITS_OF_SPOT else column
        columns.append(column.double().expand(shape).reshape(-1))
    rows = torch.stack(columns, 1)
    _check_fixed(problem, given, ratio, rows.detach())
    return rows, shape


def price_of(problem: Problem, value: Tensor, triple: Triple, shape: torch.Size) -> Tensor:
    """Prices in cash, of the shape of the batch, from values (N,) of the target; differentiable."""
    instrument, _, market = triple
    value = value.double().view(shape)
    if problem.target == "price":
        return value * market.spot
    assert isinstance(instrument, (pr.European, pr.American))
    is_call = instrument.option == "call"
    if problem.target == "time_value" and isinstance(instrument, pr.American):
        distance = market.spot - instrument.strike if is_call else instrument.strike - market.spot
        return value * market.spot + torch.relu(distance)
    forward, discount = market.forward(instrument.expiry), market.discount(instrument.expiry)
    if problem.target == "time_value":
        distance = forward - instrument.strike if is_call else instrument.strike - forward
        return value * market.spot + discount * torch.relu(distance)
    forward, strike, total = torch.broadcast_tensors(forward, instrument.strike, value * instrument.expiry.sqrt())
    return discount * black_option(forward, strike, total, is_call)


def with_leaf(triple: Triple, name: str, shape: torch.Size) -> tuple[Triple, Tensor]:
    """The triple with the field `name` as a leaf of a graph, one number for each element of the batch."""
    for place, owner in enumerate(triple):
        value = getattr(owner, name, None)
        if isinstance(value, Tensor):
            leaf = value.detach().double().expand(shape).clone().requires_grad_()
            moved = copied(owner, **{name: leaf})
            changed: Any = (*triple[:place], moved, *triple[place + 1 :])
            return changed, leaf
    known = [f.name for owner in triple for f in fields(owner) if isinstance(getattr(owner, f.name), Tensor)]  # pyright: ignore[reportArgumentType]
    raise DataError(f"`wrt` must name one of {', '.join(known)}, got {name!r}")


def greeks_of(price: Any, triple: Triple, shape: torch.Size, wrt: Sequence[Name]) -> dict[Name, Tensor]:
    """Derivatives of `price(triple)` by names, and of second order by pairs of them; each of the shape of the batch."""
    found: dict[Name, Tensor] = {}
    for name in wrt:
        first, second = (name, None) if isinstance(name, str) else name
        moved, leaf = with_leaf(triple, first, shape)
        other = leaf
        if second is not None and second != first:
            moved, other = with_leaf(moved, second, shape)
        (slope,) = torch.autograd.grad(price(moved).sum(), leaf, create_graph=second is not None)
        if second is not None:
            (slope,) = torch.autograd.grad(slope.sum(), other, materialize_grads=True)
        found[name] = slope.detach()
    return found


def _spot_ratio(problem: Problem, market: pr.Market) -> Tensor:
    """By what a strike is multiplied to be one of the problem's spot; 1 where the level of the spot matters."""
    fixed = problem.market.get("spot")
    if problem.model["kind"] in SCALE_FREE and isinstance(fixed, (int, float)):
        return fixed / market.spot
    return torch.ones_like(market.spot)


def _check_fixed(problem: Problem, given: dict[str, Any], ratio: Tensor, rows: Tensor) -> None:
    """Refuse terms that the surrogate never saw."""
    own = dict(zip(("instrument", "model", "market"), problem.triple(rows[:1]), strict=True))
    free = {(axis.owner, axis.argument) for axis in problem.coordinates}
    if problem.strike_coordinate is not None:
        free |= {("instrument", "strike")}
    scale_free = problem.model["kind"] in SCALE_FREE
    if scale_free:
        free |= {("market", "spot")}
    of_vol = problem.target == "implied_vol"
    if of_vol:
        free |= {("instrument", "option")}
    owners = ("instrument", "model") if of_vol and scale_free else ("instrument", "model", "market")
    for owner in owners:
        for name in argument_names(problem.classes[owner]):
            if (owner, name) in free or not hasattr(own[owner], name):
                continue
            asked, known = getattr(given[owner], name), getattr(own[owner], name)
            asked = asked * ratio if name in IN_UNITS_OF_SPOT and isinstance(asked, Tensor) else asked
            if not _same(asked, known):
                raise DataError(
                    f"`{name}` of the {owner} is {_shown(known)} wherever the surrogate was trained, got "
                    f"{_shown(asked)}: price it with `pricers`, or train a surrogate whose box has it"
                )


def _same(asked: Any, known: Any) -> bool:
    if isinstance(asked, Tensor) and isinstance(known, Tensor):
        asked, known = asked.detach().double(), known.detach().double()
        try:
            asked, known = torch.broadcast_tensors(asked, known)
        except RuntimeError:
            return False
        return bool(torch.allclose(asked, known, rtol=1e-9, atol=1e-12))
    if is_dataclass(known):
        return type(asked) is type(known) and all(
            _same(getattr(asked, f.name), getattr(known, f.name)) for f in fields(known)
        )
    return not isinstance(asked, Tensor) and asked == known


def _shown(value: Any) -> str:
    return str(value.flatten()[:5].tolist()) if isinstance(value, Tensor) else repr(value)
