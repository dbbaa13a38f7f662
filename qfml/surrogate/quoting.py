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
# contracts that are worth twice as much if spot, strike, barrier, rebate and past prices are doubled
HOMOGENEOUS = (
    "european",
    "barrier",
    "asian",
    "asian_barrier",
    "lookback",
    "american",
    "bermudan",
    "forward_start",
)
IN_UNITS_OF_SPOT = ("strike", "barrier", "rebate", "running_average", "running_extremum")
Triple = tuple[pr.Instrument, pr.Model, pr.Market]
Name = str | tuple[str, str]


def rows_of(problem: Problem, instrument: Any, model: Any, market: Any) -> tuple[Tensor, torch.Size]:
    """Rows of inputs (N, d) of a batch of `pricers` objects, and the shape of the batch; differentiable.

    An implied vol asks for the model, the expiry and the strike over the forward, so that any market will do. A price
    is asked for per unit of spot: any spot will do under a model whose returns do not depend on its level, if the
    contract is worth twice as much once spot, strike and barrier are doubled (a digital that pays cash is not, nor is
    anything with cash dividends); rates must be those of the problem.

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
            if not isinstance(column, Tensor):
                raise DataError(
                    f"`{axis.argument}` of the {axis.owner} must be a number wherever the surrogate was trained, got "
                    f"{column!r}: price it with `pricers`"
                )
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
    place = _owner_of(triple, name)
    owner: Any = triple[place]
    leaf = getattr(owner, name).detach().double().expand(shape).clone().requires_grad_()
    moved = copied(owner, **{name: leaf})
    changed: Any = (*triple[:place], moved, *triple[place + 1 :])
    return changed, leaf


def _owner_of(triple: Triple, name: str) -> int:
    """Which of instrument, model and market has the number `name`."""
    for place, owner in enumerate(triple):
        if isinstance(getattr(owner, name, None), Tensor):
            return place
    known = [f.name for owner in triple for f in fields(owner) if isinstance(getattr(owner, f.name), Tensor)]  # pyright: ignore[reportArgumentType]
    raise DataError(f"`wrt` must name one of {', '.join(known)}, got {name!r}")


def _check_varied(problem: Problem, triple: Triple, name: str) -> None:
    """Refuse a derivative in what was the same wherever the surrogate was trained."""
    owner = ("instrument", "model", "market")[_owner_of(triple, name)]
    known: set[tuple[str, str]] = {
        (axis.owner, "strike" if axis.argument in STRIKE_COORDINATES else axis.argument) for axis in problem.coordinates
    }
    if _is_homogeneous(problem) and not any(problem.instrument.get(term) for term in IN_UNITS_OF_SPOT):
        known |= {("market", "spot")}  # a fixed strike would have to move with it
    if _fits_any_market(problem):
        known |= {("market", "rate"), ("market", "dividend_yield")}
    if (owner, name) not in known:
        raise DataError(
            f"`{name}` of the {owner} did not vary where the surrogate was trained: it has derivatives in "
            f"{', '.join(sorted(argument for _, argument in known))}; take `pricers.greeks`, or train a surrogate "
            f"whose box has `{name}`"
        )


def greeks_of(
    problem: Problem, price: Any, triple: Triple, shape: torch.Size, wrt: Sequence[Name]
) -> dict[Name, Tensor]:
    """Derivatives of `price(triple)` by names, and of second order by pairs of them; each of the shape of the batch.

    Raises:
        DataError: a field that the triple does not have, or in which the surrogate's price is no function.
    """
    found: dict[Name, Tensor] = {}
    for name in wrt:
        first, second = (name, None) if isinstance(name, str) else name
        for one in (first,) if second is None else (first, second):
            _check_varied(problem, triple, one)
        moved, leaf = with_leaf(triple, first, shape)
        other = leaf
        if second is not None and second != first:
            moved, other = with_leaf(moved, second, shape)
        (slope,) = torch.autograd.grad(price(moved).sum(), leaf, create_graph=second is not None)
        if second is not None:
            (slope,) = torch.autograd.grad(slope.sum(), other, materialize_grads=True)
        found[name] = slope.detach()
    return found


def _is_homogeneous(problem: Problem) -> bool:
    """Whether the problem's one number for the spot stands for all: prices double with spot, strike and barrier."""
    instrument, market = problem.instrument, problem.market
    of_asset = instrument["kind"] == "digital" and instrument.get("pays") == "asset"
    return (
        problem.model["kind"] in SCALE_FREE
        and (instrument["kind"] in HOMOGENEOUS or of_asset)
        and isinstance(market.get("spot"), (int, float))
        and market.get("dividends") is None
    )


def _fits_any_market(problem: Problem) -> bool:
    """Whether the target is a vol that depends on spot and rates through the strike over the forward only."""
    strike = problem.strike_coordinate
    by_forward = strike is not None and strike.argument in STRIKE_COORDINATES
    return problem.target == "implied_vol" and by_forward and _is_homogeneous(problem)


def _spot_ratio(problem: Problem, market: pr.Market) -> Tensor:
    """By what a strike is multiplied to be one of the problem's spot; 1 where the level of the spot matters."""
    return problem.market["spot"] / market.spot if _is_homogeneous(problem) else torch.ones_like(market.spot)


def _check_fixed(problem: Problem, given: dict[str, Any], ratio: Tensor, rows: Tensor) -> None:
    """Refuse terms that the surrogate never saw."""
    own: dict[str, Any] = dict(zip(("instrument", "model", "market"), problem.triple(rows[:1]), strict=True))
    free = {(axis.owner, axis.argument) for axis in problem.coordinates}
    if problem.strike_coordinate is not None:
        free |= {("instrument", "strike")}
    if _is_homogeneous(problem):
        free |= {("market", "spot")}
    if _fits_any_market(problem):
        free |= {("market", "rate"), ("market", "dividend_yield")}
    if problem.target == "implied_vol":
        free |= {("instrument", "option")}
    for owner, cls in problem.classes.items():
        for name, argument in argument_names(cls).items():
            field = argument.name  # of a barrier `kind`, which settings call `barrier_kind`
            if (owner, name) in free or not hasattr(own[owner], field):
                continue
            asked, known = getattr(given[owner], field), getattr(own[owner], field)
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
