"""Greeks of the engines that draw nothing: the price is differentiated, and its error bound with it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pricers.estimate import Estimate
from pricers.finite_difference import FiniteDifference
from pricers.greeks.derivatives import central_difference, forward_derivative, reverse_jacobian
from pricers.greeks.parameters import Task, Triple, stacked
from pricers.parameters import converted
from pricers.pricing import Engine

__all__ = ["without_noise"]

REACH = 0.1  # of a parameter: as far as the numerical error of a price is taken to vary no faster than the price
GRID_BUMP = 1e-3  # of a parameter: where a grid is differentiated twice
REVERSE_FROM = 4  # entries of a surface for each price, from which one backward pass is cheaper than many forward


def without_noise(group: list[Task], triple: Triple, engine: Engine, method: str, bump: float) -> Estimate:
    """One entry of `wrt`: the derivatives for all entries of its event axes.

    Raises:
        ValueError: a method that needs paths.
    """
    if method == "bump":
        return stacked(group[0], [_bumped(task, triple, engine, bump) for task in group])
    if method not in ("auto", "pathwise"):
        raise ValueError(f"`method` {method!r} needs MonteCarlo, got {type(engine).__name__}; leave it away")
    price = engine.price(*triple)
    value = _derivatives(group, triple, engine).to(price.value.dtype)
    name = f"{price.engine}, differentiated"
    return Estimate(value, 0.0, _bound(group, triple, engine, price, value), engine=name, note=price.note)


def _derivatives(group: list[Task], triple: Triple, engine: Engine) -> Tensor:
    """By forward mode, entry by entry; by reverse mode where there are many entries and few prices."""
    task = group[0]
    shape = tuple(n for parameter in task.parameters for n in parameter.event_shape)
    if task.order == 1 and len(group) >= REVERSE_FROM:
        parameter = task.parameters[0]
        batch = engine.price(*triple).value.numel()
        if len(group) >= REVERSE_FROM * batch:
            return reverse_jacobian(
                lambda steps: engine.price(*parameter.shifted(triple, steps)).value, parameter.event_shape
            )
    columns = [_forward(task, triple, engine) for task in group]
    if not shape:
        return columns[0]
    flat = torch.stack(columns, dim=-1)
    return flat.reshape(*flat.shape[:-1], *shape)


def _forward(task: Task, triple: Triple, engine: Engine) -> Tensor:
    def price(*steps: Tensor) -> Tensor:
        return engine.price(*task.moved(triple, *steps)).value

    outer = next((index for index, head in enumerate(task.heads) if head != "spot"), None)
    if task.order == 1 or outer is None or not isinstance(engine, FiniteDifference):
        return forward_derivative(price, task.order)

    # the solution on a grid is read off smoothly at any spot; in all else it is differentiated once, then differenced
    def slope(step: Tensor) -> Tensor:
        return forward_derivative(lambda other: price(*((step, other) if outer == 0 else (other, step))), 1)

    return central_difference(slope, [GRID_BUMP * task.parameters[outer].size(triple)])


def _bound(group: list[Task], triple: Triple, engine: Engine, price: Estimate, value: Tensor) -> Tensor:
    r"""Numerical error of derivatives.

    On a grid: the difference to the derivatives on a grid of half the resolution. Else Cauchy's estimate: an error that
    stays below $b$ within a distance $r$ has derivatives below $n!\,b / r^n$; $r$ is a tenth of the parameter.
    """
    if isinstance(engine, FiniteDifference):
        return (value - _derivatives(group, triple, _coarser(engine))).abs()
    task = group[0]
    bound = price.error_bound
    for parameter in task.parameters:
        bound = bound / (REACH * parameter.size(triple))
    if task.order == 2 and task.parameters[0] == task.parameters[1]:
        bound = 2.0 * bound
    return bound[(..., *[None] * (value.ndim - bound.ndim))].to(value.dtype)


def _coarser(engine: FiniteDifference) -> FiniteDifference:
    def half(count: int, least: int) -> int:
        return max(least, count // 4 * 2)

    n_space, n_time, n_variance = half(engine.n_space, 16), half(engine.n_time, 4), half(engine.n_variance, 16)
    return replace(engine, n_space=n_space, n_time=n_time, n_variance=n_variance)


def _bumped(task: Task, triple: Triple, engine: Engine, bump: float) -> Estimate:
    """Central differences in double precision; the error bound from those with twice the step."""
    items: list[Any] = [converted(item, torch.float64, triple[2].spot.device) for item in triple]
    doubles: Triple = (items[0], items[1], items[2])
    price = engine.price(*triple)

    def difference(scale: float) -> Tensor:
        sizes = [scale * bump * parameter.size(triple) for parameter in task.parameters]
        return central_difference(lambda *steps: engine.price(*task.bumped(doubles, *steps)).value, sizes)

    fine, coarse = difference(1.0), difference(2.0)
    dtype = price.value.dtype
    bound = ((fine - coarse).abs() / 3.0).to(dtype)
    return Estimate(fine.to(dtype), 0.0, bound, engine=f"{price.engine}, bump", note=price.note)
