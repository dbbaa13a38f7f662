"""Where in its box a surrogate errs: errors by bins of one coordinate, and of two at a time."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qfml.surrogate.points import natural
from qfml.surrogate.problem import Problem

MEASURES = ("rmse", "q99", "max", "count")


def by_coordinate(shares: Tensor, error: Tensor, n_bins: int) -> np.ndarray:
    """Errors in `n_bins` equal bins of each coordinate: (d, n_bins, 4), the last axis `MEASURES`; NaN in empty bins.

    >>> shares, error = torch.tensor([[0.1], [0.2], [0.9]]), torch.tensor([3.0, 4.0, -1.0])
    >>> by_coordinate(shares, error, 2)[0, :, 0].round(4)
    array([3.5355, 1.    ])
    """
    cells = _cells(shares, n_bins)
    return np.stack([_measured(cells[:, i], error, n_bins) for i in range(cells.shape[1])])


def coverage_by_bin(problem: Problem, shares: Tensor, error: Tensor, bound: float, n_bins: int) -> list[dict[str, Any]]:
    """Share of absolute errors within `bound` in each bin of each coordinate, whose ends are in natural units.

    Returns:
        For each coordinate, bin after bin: `name`, `low`, `high`, `n`, `coverage` (None where n is 0).
    """
    cells, covered = _cells(shares, n_bins), (error.abs() <= bound).numpy()
    ends = torch.arange(n_bins + 1, dtype=torch.float64) / n_bins
    found = []
    for i, (axis, limits) in enumerate(zip(problem.coordinates, problem.box.values(), strict=True)):
        edges = natural(limits, ends).tolist()
        count = np.bincount(cells[:, i], minlength=n_bins).tolist()
        kept = np.bincount(cells[:, i], weights=covered, minlength=n_bins).tolist()
        found += [
            {"name": axis.name, "low": edges[k], "high": edges[k + 1], "n": n, "coverage": kept[k] / n if n else None}
            for k, n in enumerate(count)
        ]
    return found


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
