"""Labels without noise: the target by a closed form, Fourier inversion or finite differences, and its gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

import pricers as pr
from pricers.black.price import black_d1_d2
from pricers.normal import normal_density
from pricers.pricing import Engine
from qfml.errors import ConfigError
from qfml.surrogate.problem import Columns, Problem

__all__ = ["Targets", "target_gradients", "target_values"]


@dataclass(frozen=True, eq=False)
class Targets:
    """A target and what numerics may have moved it by, in its unit; NaN where there is no implied vol."""

    value: Tensor
    error_bound: Tensor
    note: str


def target_values(problem: Problem, columns: Columns, engine: Engine | None = None) -> Targets:
    r"""The target of a problem at inputs whose shapes broadcast: strikes of one law may be an axis of their own.

    Args:
        problem: what is to be learned.
        columns: inputs by name, in natural units.
        engine: None takes the best that draws nothing.

    Returns:
        Value and error bound of the broadcast shape: the price over the spot; that less the value of exercise; or the
        implied vol, whose bound is that of the price over vega.

    Raises:
        ConfigError: no such engine prices the problem.
    """
    instrument, model, market = problem.assembled(columns)
    try:
        estimate = pr.price(instrument, model, market, engine)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if problem.target == "implied_vol":
        assert isinstance(instrument, pr.European)
        return _implied_vols(estimate, instrument, market)
    value, bound = estimate.value / market.spot, (estimate.error_bound / market.spot).detach()
    if problem.target == "time_value":
        assert isinstance(instrument, (pr.European, pr.American))
        value = value - _exercised(instrument, market) / market.spot
    return Targets(value, bound, estimate.note)


def _implied_vols(estimate: pr.Estimate, option: pr.European, market: pr.Market) -> Targets:
    forward, discount = market.forward(option.expiry), market.discount(option.expiry)
    vol = pr.implied_vol(
        estimate.value, forward, option.strike, option.expiry, discount, option=option.option, errors="nan"
    )
    with torch.no_grad():
        root = option.expiry.sqrt()
        d1, _ = black_d1_d2(*torch.broadcast_tensors(forward, option.strike, vol.detach() * root))
        vega = discount * forward * root * normal_density(d1)
    return Targets(vol, estimate.error_bound.detach() / vega.detach(), estimate.note)


def _exercised(option: pr.European | pr.American, market: pr.Market) -> Tensor:
    """What exercise is worth: of a European at the forward, of an American today."""
    sign = 1.0 if option.option == "call" else -1.0
    if isinstance(option, pr.American):
        return (sign * (market.spot - option.strike)).clamp(min=0.0)
    forward, discount = market.forward(option.expiry), market.discount(option.expiry)
    return discount * (sign * (forward - option.strike)).clamp(min=0.0)


def target_gradients(problem: Problem, columns: Mapping[str, Tensor], engine: Engine | None = None) -> Tensor:
    """Exact derivatives of the target in every input, by forward mode: strikes share the law's derivatives too.

    Args:
        problem: what is to be learned.
        columns: inputs by name whose shapes broadcast to `shape`.
        engine: as in `target_values`.

    Returns:
        Shape `(*shape, d)`, in units of the target per unit of the input.
    """
    names, values = tuple(columns), tuple(columns.values())
    shape = torch.broadcast_shapes(*(value.shape for value in values))

    def target(*moved: Tensor) -> Tensor:
        return target_values(problem, dict(zip(names, moved, strict=True)), engine).value.expand(shape)

    gradients: list[Tensor] = []
    for i in range(len(values)):
        tangents = tuple(torch.ones_like(v) if j == i else torch.zeros_like(v) for j, v in enumerate(values))
        gradients.append(torch.func.jvp(target, values, tangents)[1])
    order = [names.index(name) for name in problem.inputs]
    return torch.stack([gradients[i] for i in order], dim=-1)
