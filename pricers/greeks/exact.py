"""Greeks of the engines that draw nothing: the price is differentiated, and its error bound with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from functools import reduce
from typing import Any, TypeVar

import torch
from torch import Tensor

from pricers.estimate import Estimate
from pricers.finite_difference import FiniteDifference
from pricers.greeks.derivatives import Step, central_difference, forward_derivative, reverse_derivatives
from pricers.greeks.parameters import Name, Parameter, Task, Triple, stacked
from pricers.instruments.base import EarlyExercise
from pricers.models.heston import Heston
from pricers.models.local_vol import LocalVol
from pricers.parameters import broadcast_shape, converted, copied, tensors
from pricers.pricing import Engine

__all__ = ["without_noise"]

REACH = 0.1  # of a parameter: as far as the numerical error of a price is taken to vary no faster than the price
GRID_BUMP = 1e-3  # of a parameter: where a grid is differentiated twice by forward mode
STATE = ("spot", "v0")  # where the solution is read off: the region of exercise does not depend on it
GRAPH_BYTES = 2**31  # that the graph of a grid may hold; the graph of its derivatives holds as much again

Groups = Mapping[Name, list[Task]]
T = TypeVar("T")


def without_noise(groups: Groups, triple: Triple, engine: Engine, method: str, bump: float) -> dict[Name, Estimate]:
    """All entries of `wrt`: the derivatives for all entries of their event axes, from one price.

    Raises:
        ValueError: a method that needs paths, a second derivative that the region of exercise would have to follow.
    """
    if method == "bump":
        return {
            name: stacked(group[0], [_bumped(task, triple, engine, bump) for task in group])
            for name, group in groups.items()
        }
    if method not in ("auto", "pathwise"):
        raise ValueError(f"`method` {method!r} needs MonteCarlo, got {type(engine).__name__}; leave it away")
    if torch.is_inference_mode_enabled() or any(tensor.is_inference() for tensor in tensors(*triple)):
        with torch.inference_mode(False):
            instrument, model, market = triple
            triple = (_recordable(instrument), _recordable(model), _recordable(market))
            return without_noise(groups, triple, engine, method, bump)
    if isinstance(engine, FiniteDifference):
        return _on_a_grid(groups, triple, engine)
    price, values = _reversed(groups, triple, engine)
    bounds = [_cauchy(group[0], triple, price, value) for group, value in zip(groups.values(), values, strict=True)]
    return _estimates(groups, price, values, bounds)


def _on_a_grid(groups: Groups, triple: Triple, engine: FiniteDifference) -> dict[Name, Estimate]:
    """The error bound is the difference to the derivatives on a grid of half the resolution."""
    for group in groups.values():
        _check_exercise(group[0], triple)
    coarser = _coarser(engine)
    directly = _by_forward if _graph_bytes(groups, triple, engine, coarser) > GRAPH_BYTES else _reversed
    price, values = directly(groups, triple, engine)
    _, coarse = directly(groups, triple, coarser)
    bounds = [(fine - rough).abs() for fine, rough in zip(values, coarse, strict=True)]
    return _estimates(groups, price, values, bounds)


def _check_exercise(task: Task, triple: Triple) -> None:
    """Refuse second derivatives in which the region of exercise moves: it is a set of nodes, which has no derivative.

    To first order it does not matter (the value is at its best), and it depends neither on the spot today nor on `v0`;
    but on the spot under local volatility, whose surface moves along.
    """
    if not isinstance(triple[0], EarlyExercise) or task.order == 1:
        return
    if any(head in STATE for head in task.heads) and not isinstance(triple[1], LocalVol):
        return
    names = ", ".join(parameter.name for parameter in task.parameters)
    raise ValueError(
        f"the second derivative by {names} would need the region of exercise to move, which lies on the nodes of a "
        "grid: use method='bump' with a wide `bump` such as 0.05"
    )


def _estimates(groups: Groups, price: Estimate, values: list[Tensor], bounds: list[Tensor]) -> dict[Name, Estimate]:
    engine, dtype = f"{price.engine}, differentiated", price.value.dtype
    return {
        name: Estimate(value.to(dtype), 0.0, bound.detach().to(dtype), engine=engine, note=price.note)
        for name, value, bound in zip(groups, values, bounds, strict=True)
    }


def _reversed(groups: Groups, triple: Triple, engine: Engine) -> tuple[Estimate, list[Tensor]]:
    """Price and derivatives by reverse mode, from one graph.

    Forward mode is no match: torch differentiates what has no tangent by slow paths, and nested forward mode through a
    function with its own derivative (a tridiagonal solution) takes that derivative for constant.
    """
    kept = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors(*triple))
    wanted = [group[0].parameters for group in groups.values()]
    parameters = list(dict.fromkeys(parameter for pair in wanted for parameter in pair))
    with torch.enable_grad():
        steps, moved = _stepped(parameters, triple)
        price = _priced(moved, engine)
    keys = [tuple(parameters.index(parameter) for parameter in pair) for pair in wanted]
    return price, reverse_derivatives(price.value, steps, keys, kept)


def _batch(triple: Triple) -> torch.Size:
    instrument, model, market = triple
    return broadcast_shape(
        instrument=instrument.batch_shape, model=model.batch_shape, market=market.batch_shape(model.n_assets)
    )


def _priced(triple: Triple, engine: Engine) -> Estimate:
    """The price of the whole batch, also where some of its axes do not move it."""
    return engine.price(*triple).expanded(_batch(triple))


def _stepped(parameters: list[Parameter], triple: Triple) -> tuple[list[Step], Triple]:
    """A step for each parameter, or for each of its values where it has one for each price; and what they move."""
    batch, device = _batch(triple), triple[2].spot.device
    steps: list[Step] = []
    for parameter in parameters:
        own = parameter.batch_shape if parameter.batch_shape.numel() == batch.numel() else ()
        leaf = torch.zeros((*own, *parameter.event_shape), dtype=torch.float64, device=device)
        steps.append(Step(leaf.requires_grad_(), parameter.event_shape))
    moves = zip(parameters, steps, strict=True)
    return steps, reduce(lambda now, move: move[0].shifted(now, move[1].leaf), moves, triple)


def _recordable(item: T) -> T:
    """The same dataclass with tensors that a graph may hold, which those made in inference mode may not be."""
    changes: dict[str, Any] = {}
    for key, value in vars(item).items():
        if isinstance(value, Tensor):
            changes[key] = value.detach().clone()
        elif is_dataclass(value) and not isinstance(value, type):
            changes[key] = _recordable(value)
    return copied(item, **changes)


def _graph_bytes(groups: Groups, triple: Triple, engine: FiniteDifference, coarser: FiniteDifference) -> float:
    """What the graph of a price holds, from that on the coarser grid."""
    held = 0

    def counted(tensor: Tensor) -> None:
        nonlocal held
        held += tensor.numel() * tensor.element_size()

    parameters = list({parameter: None for group in groups.values() for parameter in group[0].parameters})
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(counted, lambda _: torch.empty(0)):
        coarser.price(*_stepped(parameters, triple)[1])
    ratio = engine.n_space * engine.n_time / (coarser.n_space * coarser.n_time)
    return held * ratio * (engine.n_variance / coarser.n_variance if isinstance(triple[1], Heston) else 1.0)


def _by_forward(groups: Groups, triple: Triple, engine: FiniteDifference) -> tuple[Estimate, list[Tensor]]:
    """Price and derivatives by forward mode, slow but without a graph."""
    price = _priced(triple, engine)
    values: list[Tensor] = []
    for group in groups.values():
        shape = tuple(n for parameter in group[0].parameters for n in parameter.event_shape)
        columns = torch.stack([_forward(task, triple, engine) for task in group], dim=-1)
        values.append(columns.reshape((*price.value.shape, *shape)))
    return price, values


def _forward(task: Task, triple: Triple, engine: FiniteDifference) -> Tensor:
    # nested forward mode is wrong here (see `_reversed`): a second derivative is the difference of first ones, these by
    # the spot if it is one of the two, for the solution is read off smoothly between its nodes
    both = zip(task.parameters, task.entries, strict=True)
    parameters, entries = zip(*sorted(both, key=lambda pair: pair[0].name == "spot"), strict=True)
    spot_last = Task(parameters, entries)

    def slope(*steps: Tensor) -> Tensor:
        return forward_derivative(lambda step: _priced(spot_last.moved(triple, *steps, step), engine).value, 1)

    return central_difference(slope, [GRID_BUMP * parameter.size(triple) for parameter in parameters[:-1]])


def _cauchy(task: Task, triple: Triple, price: Estimate, value: Tensor) -> Tensor:
    r"""Numerical error of derivatives by Cauchy's estimate.

    An error that stays below $b$ within a distance $r$ has derivatives below $n!\,b / r^n$; $r$ is a tenth of the
    parameter.
    """
    bound = price.error_bound
    for parameter in task.parameters:
        bound = bound / (REACH * parameter.size(triple))
    if task.order == 2 and task.parameters[0] == task.parameters[1]:
        bound = 2.0 * bound
    return bound[(..., *[None] * (value.ndim - bound.ndim))]


def _coarser(engine: FiniteDifference) -> FiniteDifference:
    def half(count: int, least: int) -> int:
        return max(least, count // 4 * 2)

    n_space, n_time, n_variance = half(engine.n_space, 16), half(engine.n_time, 4), half(engine.n_variance, 16)
    return replace(engine, n_space=n_space, n_time=n_time, n_variance=n_variance)


def _bumped(task: Task, triple: Triple, engine: Engine, bump: float) -> Estimate:
    """Central differences in double precision; the error bound from those with twice the step."""
    items: list[Any] = [converted(item, torch.float64, triple[2].spot.device) for item in triple]
    doubles: Triple = (items[0], items[1], items[2])
    price = _priced(triple, engine)

    def difference(scale: float) -> Tensor:
        sizes = [scale * bump * parameter.size(triple) for parameter in task.parameters]
        return central_difference(lambda *steps: _priced(task.bumped(doubles, *steps), engine).value, sizes)

    fine, coarse = difference(1.0), difference(2.0)
    dtype = price.value.dtype
    bound = ((fine - coarse).abs() / 3.0).to(dtype)
    return Estimate(fine.to(dtype), 0.0, bound, engine=f"{price.engine}, bump", note=price.note)
