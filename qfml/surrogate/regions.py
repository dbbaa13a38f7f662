"""Where in its box a surrogate errs: errors by bins of one coordinate, and of two at a time."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from qfml.surrogate.points import unit
from qfml.surrogate.problem import Problem

MEASURES = ("rmse", "q99", "max", "count")


def shares_of(problem: Problem, inputs: Tensor, value: Tensor) -> Tensor:
    """Where each row lies in the range of each coordinate of the box, (N, d) in [0, 1] along the range's scale.

    Args:
        problem: whose box it is.
        inputs: (N, d), natural units.
        value: (N,), the target, from which a delta is found.
    """
    columns = problem.columns(inputs)
    shares = []
    for axis, limits in zip(problem.coordinates, problem.box.values(), strict=True):
        column = columns[axis.input]
        if axis.argument == "delta":
            column = problem.delta(columns, value)
        elif axis.argument == "standard_moneyness":
            column = column / (problem.reference(columns) * problem.expiry(columns).sqrt())
        shares.append(unit(limits, column))
    return torch.stack(shares, 1).clamp(0.0, 1.0)


def by_coordinate(shares: Tensor, error: Tensor, n_bins: int) -> np.ndarray:
    """Errors in `n_bins` equal bins of each coordinate: (d, n_bins, 4), the last axis `MEASURES`; NaN in empty bins.

    >>> shares, error = torch.tensor([[0.1], [0.2], [0.9]]), torch.tensor([3.0, 4.0, -1.0])
    >>> by_coordinate(shares, error, 2)[0, :, 0].round(4)
    array([3.5355, 1.    ])
    """
    cells = _cells(shares, n_bins)
    return np.stack([_measured(cells[:, i], error, n_bins) for i in range(cells.shape[1])])


def by_pair(shares: Tensor, error: Tensor, n_bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Errors in squares of bins of every two coordinates i < j, in the order of `itertools.combinations`.

    Returns:
        The pairs (P, 2), and (P, n_bins, n_bins, 4): bin of i, bin of j, `MEASURES`.
    """
    cells = _cells(shares, n_bins)
    pairs = list(itertools.combinations(range(cells.shape[1]), 2))
    maps = [_measured(cells[:, i] * n_bins + cells[:, j], error, n_bins**2) for i, j in pairs]
    shape = (len(pairs), n_bins, n_bins, len(MEASURES))
    return np.array(pairs, dtype=np.int64).reshape(-1, 2), np.array(maps, dtype=np.float64).reshape(shape)


def _cells(shares: Tensor, n_bins: int) -> np.ndarray:
    return (shares * n_bins).long().clamp(max=n_bins - 1).numpy()


def _measured(cell: np.ndarray, error: Tensor, n_cells: int) -> np.ndarray:
    """Root mean square, 99 % and largest absolute error, and number of rows of each cell, (n_cells, 4)."""
    size = error.double().abs().numpy()
    order = np.lexsort((size, cell))
    edges = np.searchsorted(cell[order], np.arange(n_cells + 1))
    found = np.full((n_cells, len(MEASURES)), math.nan)
    found[:, 3] = np.diff(edges)
    for i in np.flatnonzero(found[:, 3]):
        own = size[order[edges[i] : edges[i + 1]]]  # ascending
        place = math.ceil(0.99 * len(own)) - 1
        found[i, :3] = np.sqrt(np.mean(own * own)), own[place], own[-1]
    return found
