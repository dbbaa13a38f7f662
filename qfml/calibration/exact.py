"""Exact fits: many starts of many surfaces in one batch, on nodes that follow the parameters, checked by the engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from pricers.analytic.fourier_law import model_law
from pricers.black import black_total_vol
from pricers.fourier import cos_european
from pricers.parallel import one_thread, side_by_side
from qfml.calibration.fourier_vols import LEAST_PRICE, Characteristic, Grid, Slices
from qfml.calibration.least_squares import CONVERGED, NOT_FINITE, least_squares
from qfml.calibration.model import CalibrationModel, Quotes

__all__ = [
    "Fit",
    "FourierModel",
    "checked",
    "exact_vols",
    "fit",
    "floored_vols_and_jacobian",
    "joined",
    "refined",
    "screened",
]

BLOCK = 64  # problems that are solved side by side: their nodes stay in the cache
SMALL_BLOCK, MOST_SMALL_BLOCKS = 16, 4  # fewer problems make blocks of their own, for several cores
FIRST_STEPS = 8  # on the nodes of the start, which is far away
FIRST_TOLERANCE = 1e-3
SECOND_TOLERANCE = 1e-5  # enough to tell the best of several starts
FIRST_NODES = 64  # at most, where digits are not needed yet
ROUNDS = 5  # new nodes, solved again, at most
GOOD = 1e-6  # vol by which kernel and engine may differ: 0.01 bp


@runtime_checkable
class FourierModel(CalibrationModel, Protocol):
    """A model with a characteristic function: its vols come from the fast kernel and are checked by the engine."""

    @property
    def law(self) -> Characteristic:
        """The characteristic function for the kernel."""
        ...


@dataclass(frozen=True, eq=False)
class Fit:
    """Fits of S problems with N quotes and P parameters.

    Args:
        x: parameters, (S, P).
        vols: of the model, by the engine where there is one, (S, N).
        jacobian: of the vols, (S, N, P).
        cost: weighted sum of squared errors of these vols, (S,).
        status: a key of `least_squares.STATUS`, (S,).
        n_steps: (S,).
        kernel_error: largest difference between the kernel's vols and the engine's, (S,).
    """

    x: Tensor
    vols: Tensor
    jacobian: Tensor
    cost: Tensor
    status: Tensor
    n_steps: Tensor
    kernel_error: Tensor

    @property
    def converged(self) -> Tensor:
        """Which problems ended at a minimum."""
        return torch.isin(self.status, torch.tensor(CONVERGED))


def fit(
    model: CalibrationModel,
    quotes: Quotes,
    starts: Tensor,
    *,
    max_steps: int = 100,
    tolerance: float = 1e-10,
) -> Fit:
    """The best of the fits of every surface from its starts.

    Args:
        model: what is fitted.
        quotes: S surfaces.
        starts: strictly inside the bounds of the parameters, (S, M, P).
        max_steps: from each start.
        tolerance: of the least squares, relative.
    """
    n_surfaces, n_starts, _ = starts.shape
    solve: Any = _solve_fourier if isinstance(model, FourierModel) else _solve_plain
    owner = torch.arange(n_surfaces).repeat_interleave(n_starts)
    found = _in_blocks(
        lambda rows: solve(model, quotes.at(owner[rows]), starts.flatten(0, 1)[rows], max_steps, tolerance), len(owner)
    )
    best = found.cost.reshape(n_surfaces, n_starts).nan_to_num(nan=math.inf).argmin(-1)
    chosen = torch.arange(n_surfaces) * n_starts + best
    result = Fit(*(getattr(found, name)[chosen] for name in Fit.__dataclass_fields__))
    if isinstance(model, FourierModel):
        result = _in_blocks(
            lambda rows: _verified(model, quotes.at(rows), _at(result, rows), max_steps, tolerance), n_surfaces
        )
    return result


def refined(
    model: CalibrationModel, quotes: Quotes, start: Tensor, max_steps: int = 3, tolerance: float = 1e-10
) -> Fit:
    """A few exact steps from good starts, such as a network gives: for thousands of surfaces at once.

    What `fit` does beyond them is left out: a kernel's nodes are those of the start throughout, and its vols are not
    compared with the engine's, see `checked`; `kernel_error` is NaN, to say so.

    Args:
        model: what is fitted.
        quotes: of S surfaces.
        start: strictly inside the bounds of the parameters, (S, P).
        max_steps: Levenberg-Marquardt steps, each one evaluation of vols and Jacobian; 0: the vols at the start.
        tolerance: of the least squares, relative.
    """

    def block(rows: Tensor) -> Fit:
        some, settings = quotes.at(rows), _bounds(model) | {"max_steps": max_steps, "tolerance": tolerance}
        if isinstance(model, FourierModel):
            residuals: Any = _Residuals(Grid.planned(model.law, start[rows], Slices.of(some), some), some)
        else:
            residuals = _plain_residuals(model, some)
        found = least_squares(residuals, start[rows], **settings)
        scale = torch.where(some.used, some.root_weight, math.nan)  # undone: what is no quote has no vol
        vols, jacobian = found.residuals / scale + some.vol, found.jacobian / scale.unsqueeze(-1)
        unknown = torch.full_like(found.cost, math.nan)
        return Fit(found.x, vols, jacobian, found.cost, found.status, found.n_steps, unknown)

    return _in_blocks(block, quotes.n_surfaces)


def checked(model: CalibrationModel, quotes: Quotes, found: Fit) -> Fit:
    """A fit with the engine's vols in place of the kernel's, their cost, and by how much the two differ."""

    def block(rows: Tensor) -> Fit:
        some, own = quotes.at(rows), _at(found, rows)
        vols = exact_vols(model, own.x, some, floor=True)
        cost, error = _cost_and_difference(some, vols, own.vols)
        return replace(own, vols=vols, cost=cost, kernel_error=error)

    return _in_blocks(block, quotes.n_surfaces)


def _cost_and_difference(quotes: Quotes, vols: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Costs (S,) of the vols, and by how much the kernel's differ at most, infinite where one is no number."""
    cost = torch.where(quotes.used, quotes.weight * (vols - quotes.vol).square(), 0.0).sum(-1)
    error = torch.where(quotes.used, (kernel - vols).abs(), 0.0).nan_to_num(nan=math.inf).amax(-1)
    return cost, error


def screened(model: CalibrationModel, quotes: Quotes, starts: Tensor, n_best: int) -> Tensor:
    """The `n_best` of the starts (S, M, P) with the least costs, judged without a Jacobian: (S, n_best, P)."""
    n_surfaces, n_starts, _ = starts.shape
    if n_best >= n_starts:
        return starts
    cost = _in_blocks(lambda rows: (_screen(model, quotes.at(rows), starts[rows]),), n_surfaces)[0]
    order = cost.nan_to_num(nan=math.inf).argsort(-1)[:, :n_best]
    return starts.gather(1, order.unsqueeze(-1).expand(-1, -1, starts.shape[-1]))


def exact_vols(model: CalibrationModel, x: Tensor, quotes: Quotes, floor: bool = False) -> Tensor:
    """Implied vols (S, N) by the engine of `pricers`, to 1e-9 of the forward; NaN where there is no quote or no vol.

    Args:
        model: a model whose `pricer` has a characteristic function; others answer for themselves.
        x: parameters (S, P).
        quotes: S surfaces.
        floor: where the model's price is below 1e-11 of the forward, which tells no vol, give that of this price.
    """
    if not isinstance(model, FourierModel):
        return model.vols(x, quotes)
    slices = Slices.of(quotes)
    rows = model.pricer(x[slices.surface])
    with torch.no_grad():
        value, _ = cos_european(model_law(cast("Any", rows), slices.expiry), slices.log_strike)
    price = slices.to_quotes(value.clamp(min=LEAST_PRICE) if floor else value)
    price = torch.where(slices.present, price, math.nan)
    moneyness = torch.where(slices.present, quotes.log_moneyness, 0.0)
    low, high = torch.exp(moneyness.clamp(max=0.0)), torch.exp(moneyness.clamp(min=0.0))
    return black_total_vol(price, low, high, True) / quotes.expiry.sqrt()


def floored_vols_and_jacobian(model: CalibrationModel, x: Tensor, quotes: Quotes) -> tuple[Tensor, Tensor]:
    """Vols (S, N) and derivatives (S, N, P) as a search sees them: of the least price where a price tells no vol."""
    if not isinstance(model, FourierModel):
        return model.vols_and_jacobian(x, quotes)
    return Grid.planned(model.law, x, Slices.of(quotes), quotes).vols_and_jacobian(x, floor=True)


class _Residuals:
    """What least squares minimises on fixed nodes."""

    def __init__(self, grid: Grid, quotes: Quotes) -> None:
        self.grid, self.quotes = grid, quotes
        self.last: Tensor | None = None
        self.here = grid, quotes.vol, quotes.root_weight

    def __call__(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        if index is not self.last:
            if len(index) < self.quotes.n_surfaces:
                self.here = self.grid.at(index), self.quotes.vol[index], self.quotes.root_weight[index]
            self.last = index
        grid, vol, root_weight = self.here
        model_vol, jacobian = grid.vols_and_jacobian(x, floor=True)
        return _weighted(model_vol, jacobian, vol, root_weight)


def _plain_residuals(model: CalibrationModel, quotes: Quotes) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """What least squares minimises of a model that answers for its vols."""

    def function(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        some = quotes if len(index) == quotes.n_surfaces else quotes.at(index)
        return _weighted(*model.vols_and_jacobian(x, some), some.vol, some.root_weight)

    return function


def _weighted(model_vol: Tensor, jacobian: Tensor, vol: Tensor, root_weight: Tensor) -> tuple[Tensor, Tensor]:
    used = root_weight > 0.0
    return (
        torch.where(used, root_weight * (model_vol - vol), 0.0),
        torch.where(used.unsqueeze(-1), root_weight.unsqueeze(-1) * jacobian, 0.0),
    )


def _bounds(model: CalibrationModel) -> dict[str, Any]:
    return {
        "lower": [parameter.lower for parameter in model.parameters],
        "upper": [parameter.upper for parameter in model.parameters],
    }


def _solve_plain(model: CalibrationModel, quotes: Quotes, start: Tensor, max_steps: int, tolerance: float) -> Fit:
    """A model that answers for its vols: one run."""
    residuals = _plain_residuals(model, quotes)
    solution = least_squares(residuals, start, **_bounds(model), max_steps=max_steps, tolerance=tolerance)
    vols, jacobian = model.vols_and_jacobian(solution.x, quotes)
    return Fit(
        solution.x, vols, jacobian, solution.cost, solution.status, solution.n_steps, torch.zeros_like(solution.cost)
    )


def _solve_fourier(model: FourierModel, quotes: Quotes, start: Tensor, max_steps: int, tolerance: float) -> Fit:
    """Roughly on the nodes of the start, then on those of where that led to."""
    slices = Slices.of(quotes)
    bounds = _bounds(model)
    rough = Grid.planned(model.law, start, slices, quotes, most=FIRST_NODES)
    first = least_squares(
        _Residuals(rough, quotes), start, **bounds, max_steps=min(FIRST_STEPS, max_steps), tolerance=FIRST_TOLERANCE
    )
    grid = Grid.planned(model.law, first.x, slices, quotes)
    second = least_squares(
        _Residuals(grid, quotes),
        first.x,
        **bounds,
        max_steps=max(0, max_steps - FIRST_STEPS),
        tolerance=max(tolerance, SECOND_TOLERANCE),
    )
    empty = torch.full_like(quotes.vol, math.nan)
    return Fit(
        second.x,
        empty,
        empty.unsqueeze(-1).expand(*empty.shape, start.shape[-1]),
        second.cost,
        torch.where(first.status == NOT_FINITE, NOT_FINITE, second.status),
        first.n_steps + second.n_steps,
        torch.full_like(second.cost, math.inf),
    )


def _verified(model: FourierModel, quotes: Quotes, found: Fit, max_steps: int, tolerance: float) -> Fit:
    """To the end on nodes of their own, and vols by the engine; where these differ, on with finer nodes."""
    slices = Slices.of(quotes)
    x, status, n_steps = found.x.clone(), found.status.clone(), found.n_steps.clone()
    result: tuple[Tensor, ...] | None = None
    wrong = torch.arange(len(x))
    for attempt in range(ROUNDS):
        some, finer = quotes.at(wrong), 1.0 + attempt
        grid = Grid.planned(model.law, x[wrong], Slices.of(some) if attempt else slices, some, finer=finer)
        again = least_squares(
            _Residuals(grid, some),
            x[wrong],
            **_bounds(model),
            max_steps=max_steps - n_steps[wrong],
            tolerance=tolerance,
        )
        x[wrong], n_steps[wrong], status[wrong] = again.x, n_steps[wrong] + again.n_steps, again.status
        kernel, jacobian = grid.vols_and_jacobian(x[wrong], floor=True)
        vols = exact_vols(model, x[wrong], some, floor=True)
        cost, error = _cost_and_difference(some, vols, kernel)
        if result is None:
            result = vols, jacobian, cost, error
        else:
            for whole, part in zip(result, (vols, jacobian, cost, error), strict=True):
                whole[wrong] = part
        wrong = wrong[error > GOOD]
        if len(wrong) == 0:
            break
    vols, jacobian, cost, error = cast("tuple[Tensor, Tensor, Tensor, Tensor]", result)
    return Fit(x, vols, jacobian, cost, status, n_steps, error)


def _screen(model: CalibrationModel, quotes: Quotes, starts: Tensor) -> Tensor:
    """Costs (S, M) of the starts, roughly."""
    costs = []
    if isinstance(model, FourierModel):
        grid = Grid.of_quotes(model.law, Slices.of(quotes), quotes)
        price = grid.black(quotes.vol)
        per_vega = quotes.root_weight / grid.vega(quotes.vol)
        for start in starts.unbind(1):
            error = torch.where(quotes.used, (grid.prices(start) - price) * per_vega, 0.0)
            costs.append(error.square().sum(-1))
    else:
        for start in starts.unbind(1):
            error = torch.where(quotes.used, quotes.root_weight * (model.vols(start, quotes) - quotes.vol), 0.0)
            costs.append(error.square().sum(-1))
    return torch.stack(costs, dim=-1)


def joined(parts: Sequence[Fit]) -> Fit:
    """Fits of several batches as one."""
    return Fit(*(torch.cat([getattr(part, name) for part in parts]) for name in Fit.__dataclass_fields__))


def _at(found: Fit, rows: Tensor) -> Fit:
    return Fit(*(getattr(found, name)[rows] for name in Fit.__dataclass_fields__))


def _in_blocks(work: Callable[[Tensor], Any], n: int) -> Any:
    """`work` on blocks of the numbers up to `n`, side by side, and its results in one piece."""
    # the last digits depend on the blocks: these must not depend on the machine
    n_blocks = max(-(-n // BLOCK), min(MOST_SMALL_BLOCKS, n // SMALL_BLOCK), 1)
    blocks = torch.arange(n).tensor_split(n_blocks)

    def quiet(rows: Tensor) -> Any:
        with torch.no_grad():
            return work(rows)

    # a lone block is small: a second thread inside of its operations costs more than it brings
    with one_thread() if n_blocks == 1 else nullcontext(), side_by_side(torch.device("cpu"), n_blocks) as pool_map:
        parts = list(pool_map(quiet, blocks))
    if isinstance(parts[0], Fit):
        return joined(parts)
    return tuple(torch.cat(pieces) for pieces in zip(*parts, strict=True))
