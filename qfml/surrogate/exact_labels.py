"""Labels without noise: the target by a closed form, Fourier inversion or finite differences, and its gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

import pricers as pr
from pricers.black.price import black_d1_d2
from pricers.normal import normal_density
from pricers.pricing import Engine, default_engine
from qfml.errors import ConfigError
from qfml.surrogate.problem import Columns, Problem

__all__ = ["Targets", "target_gradients", "target_values"]

BLOCK = 256  # laws whose graph is held at once
LINE_BLOCK, PLANE_BLOCK = 16, 1  # the same by finite differences in one and in two dimensions
ROUNDING = 4 * torch.finfo(torch.float64).eps  # of a price, relative to the larger of forward and strike, discounted
LARGEST_VOL_ERROR = 1e-4  # from which on a price does not tell a vol


@dataclass(frozen=True, eq=False)
class Targets:
    """A target and what numerics may have moved it by, in its unit; NaN where no implied vol is told by the price."""

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
        implied vol, whose bound is that of the price and of its rounding over vega. Where rounding alone may move it by
        more than 1 basis point, out of the money below some 1e-13 of the larger of forward and strike, there is no vol:
        NaN.

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
        rounding = ROUNDING * discount * torch.maximum(forward, option.strike) / vega
    told = torch.where(rounding <= LARGEST_VOL_ERROR, vol, torch.nan)
    return Targets(told, estimate.error_bound.detach() / vega + rounding, estimate.note)


def _exercised(option: pr.European | pr.American, market: pr.Market) -> Tensor:
    """What exercise is worth: of a European at the forward, of an American today."""
    sign = 1.0 if option.option == "call" else -1.0
    if isinstance(option, pr.American):
        return (sign * (market.spot - option.strike)).clamp(min=0.0)
    forward, discount = market.forward(option.expiry), market.discount(option.expiry)
    return discount * (sign * (forward - option.strike)).clamp(min=0.0)


def target_gradients(
    problem: Problem, columns: Columns, engine: Engine | None = None
) -> Float[Tensor, "smiles strikes inputs"]:
    """Exact derivatives of the target in every input, by reverse mode: strikes share the graph of their law.

    Args:
        problem: what is to be learned.
        columns: inputs by name, those of the law of shape `(smiles, 1)`, others `(smiles, 1)` or `(smiles, strikes)`.
        engine: as in `target_values`.

    Returns:
        In units of the target per unit of the input.

    Raises:
        ConfigError: no such engine prices the problem.
    """
    ordered = {name: columns[name] for name in problem.inputs}
    length = max(len(column) for column in ordered.values())
    block = _block(problem, ordered, engine)
    parts = [
        _gradients(problem, {name: column[start : start + block] for name, column in ordered.items()}, engine)
        for start in range(0, length, block)
    ]
    return torch.cat(parts)


def _block(problem: Problem, columns: Columns, engine: Engine | None) -> int:
    """Laws whose graph is held at once: finite differences keep some vectors of the grid's size for each step."""
    first = {name: column[:1] for name, column in columns.items()}
    instrument, model, market = problem.assembled(first)
    try:
        chosen = default_engine(instrument, model, market) if engine is None else engine
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not isinstance(chosen, pr.FiniteDifference):
        return BLOCK
    return PLANE_BLOCK if isinstance(model, pr.Heston) else LINE_BLOCK


def _gradients(problem: Problem, columns: Columns, engine: Engine | None) -> Tensor:
    with torch.enable_grad():
        leaves = {name: column.detach().clone().requires_grad_() for name, column in columns.items()}
        shape = torch.broadcast_shapes(*(leaf.shape for leaf in leaves.values()))
        value = target_values(problem, leaves, engine).value.expand(shape)
        found: list[Tensor] = []
        for j in range(shape[-1]):
            of_strike = torch.autograd.grad(
                value[:, j].sum(), list(leaves.values()), retain_graph=True, allow_unused=True, materialize_grads=True
            )
            found.append(torch.stack([slope[:, j if slope.shape[-1] > 1 else 0] for slope in of_strike], dim=-1))
    return torch.stack(found, dim=1)
