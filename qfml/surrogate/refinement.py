r"""Active refinement: further points where a trained surrogate errs, with the weights that undo the choice.

The errors of a pool, smoothed over nearest neighbours in the unit cube of the box, give a density: a point is $r$ times
as likely as under the uniform one, $r$ its smoothed error over the mean of all. Laws are drawn by their mean ratio, and
their strikes by the ratios along the smile. A part of the density stays uniform and no ratio exceeds a bound, so that
the weights $1 / r$ are bounded from both sides. A loss with these weights is that of the whole box, only better told
where the error is; without them the loss itself looks where the error is.

**Noisy labels.** The distance to a label with standard error $s_i$ holds its noise. Over $K$ neighbours the mean square
error is $x = \overline{e_i^2 - s_i^2}$, itself uncertain by $u = \sqrt{2\,\overline{s_i^4} / K}$. Only what is
significant of it counts: the smoothed error is $\sqrt{\max(x - c u, 0)} + \sqrt{\bar u}$, where the second term, the
same everywhere, is the size of an error that noise hides. Noise alone gives an even density, also where some
labels have more of it than others; without noise the smoothed error is the root mean square.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from pricers.noise import address
from qfml.errors import ConfigError, DataError
from qfml.surrogate.points import GivenPoints, Points, sobol_points, unit_inputs
from qfml.surrogate.problem import Problem

__all__ = ["MOST_RATIO", "refined_points"]

UNIFORM = 0.1  # share of the density that stays uniform
MOST_RATIO = 8.0  # how much denser than uniform points may lie
OVERSAMPLING = 16  # candidates for each law drawn: more than MOST_RATIO, so that none is drawn twice
NEIGHBOURS = 8  # errors of the pool that a smoothed one is the mean of
NOISY_NEIGHBOURS = 32  # the same of labels with noise, of which fewer tell nothing
SIGNIFICANT = 2.5  # deviations of its noise that a mean square error must exceed to count
GRID = 16  # strikes of a candidate at which the density is looked at
ROUND = 2**40  # laws of a round are numbered from its multiple of this


def refined_points(
    problem: Problem,
    errors: Any,
    inputs: Any,
    n: int,
    seed: int,
    *,
    std_error: Any = None,
    value: Tensor | None = None,
    strikes_per_law: int = 1,
    round_number: int = 1,
    parent: str = "",
) -> GivenPoints:
    """Points whose density follows the error of a surrogate.

    Args:
        problem: what is learned.
        errors: absolute distances of the surrogate from the labels of a pool, shape `(rows,)`.
        inputs: of the pool, in natural units, shape `(rows, d)`.
        n: number of laws.
        seed: of the candidates and the draw; a round is another address.
        std_error: of the labels, shape `(rows,)`; None: they are exact.
        value: implied vols of the pool, for a box in deltas; None: exact ones are made.
        strikes_per_law: strikes of each law; more than 1 if the box has a strike coordinate.
        round_number: of refinement, 1 or more.
        parent: hash of what the choice rests on, such as that of the surrogate; it enters the hash of the labels.

    Returns:
        The points, with weights $1 / r$: means over the points with these weights, over the sum of the weights, are
        those over the box.

    Raises:
        DataError: errors or standard errors that are negative or not finite, another number of them than of inputs,
            fewer than 2.
        ConfigError: a count below 1.

    References:
        Owen (2013), Monte Carlo theory, methods and examples, chapter 9: self-normalised importance sampling.
    """
    errors, inputs = torch.as_tensor(errors, dtype=torch.float64), torch.as_tensor(inputs, dtype=torch.float64)
    noise = torch.zeros_like(errors) if std_error is None else torch.as_tensor(std_error, dtype=torch.float64)
    _check(
        {"errors": errors, "std_error": noise},
        inputs,
        {"n": n, "strikes_per_law": strikes_per_law, "round_number": round_number},
    )
    axis = problem.strike_coordinate
    if strikes_per_law > 1 and axis is None:
        raise ConfigError(f"`strikes_per_law` = {strikes_per_law} needs a strike coordinate in the box: take 1")
    place = address(seed, "refinement", round_number)
    candidates = sobol_points(problem, 0, OVERSAMPLING * n, place, strikes_per_law=GRID if axis is not None else 1)
    pool = unit_inputs(problem, inputs, value).clamp(0.0, 1.0).numpy()
    ratio = _ratios(problem, pool, errors.numpy(), noise.numpy(), candidates)  # laws x grid
    generator = np.random.default_rng(address(place, "draw"))
    chosen = _systematic(ratio.mean(axis=1), n, generator)
    smiles, law = candidates.smiles[chosen], torch.arange(n) + round_number * ROUND
    if axis is None:
        points = Points(smiles, candidates.strikes[chosen], law)
        return GivenPoints(points, torch.from_numpy(1.0 / ratio[chosen]), round_number, parent)
    share, cell = _along(ratio[chosen], strikes_per_law, generator.random((n, 1)))
    weight = 1.0 / np.take_along_axis(ratio[chosen], cell, axis=1)
    points = Points(smiles, torch.from_numpy(share), law)
    return GivenPoints(points, torch.from_numpy(weight), round_number, parent)


def _ratios(
    problem: Problem, pool: np.ndarray, errors: np.ndarray, noise: np.ndarray, candidates: Points
) -> np.ndarray:
    """Density of each candidate over the uniform one, for each of its strikes; of mean 1."""
    n_laws, n_strikes = len(candidates.smiles), max(1, candidates.strikes.shape[1])
    table = np.empty((n_laws, n_strikes, len(problem.coordinates)))
    of_law = [i for i, axis in enumerate(problem.coordinates) if not axis.is_strike]
    table[..., of_law] = candidates.smiles.numpy()[:, None]
    for i, axis in enumerate(problem.coordinates):
        if axis.is_strike:  # cells of the range, the same for all laws
            table[..., i] = (np.arange(n_strikes) + 0.5) / n_strikes
    neighbours = min(NOISY_NEIGHBOURS if noise.any() else NEIGHBOURS, len(pool))
    _, index = KDTree(pool).query(table.reshape(-1, table.shape[-1]), k=neighbours, workers=-1)
    smoothed = _smoothed(errors[index], noise[index]).reshape(n_laws, n_strikes)
    return UNIFORM + (1.0 - UNIFORM) * _bounded(smoothed, (MOST_RATIO - UNIFORM) / (1.0 - UNIFORM))


def _smoothed(errors: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Root mean square errors over neighbours (the last axis), as far as they are more than noise; see the module."""
    excess = (errors**2 - noise**2).mean(axis=-1)
    uncertain = np.sqrt(2.0 * (noise**4).mean(axis=-1) / errors.shape[-1])
    return np.sqrt(np.maximum(excess - SIGNIFICANT * uncertain, 0.0)) + np.sqrt(uncertain.mean())


def _bounded(errors: np.ndarray, most: float) -> np.ndarray:
    r"""Errors times the factor $c$ with which $\min(c e, \text{most})$ has mean 1.

    Where errors are 0 almost everywhere there is none: those above 0 get `most`, the others share what is left.
    """
    n, above = errors.size, errors > 0.0
    if above.sum() * most <= n:
        rest = (n - most * above.sum()) / (n - above.sum())
        return np.where(above, most, rest)
    falling = np.sort(errors, axis=None)[::-1] / errors.max()
    tails = falling[::-1].cumsum()[::-1]  # of all from the k-th on, k of them being cut
    missing = n - most * np.arange(n)
    k = int(np.argmax(falling * missing <= most * tails))
    return np.minimum(errors / errors.max() * (missing[k] / tails[k]), most)


def _systematic(ratio: np.ndarray, n: int, generator: np.random.Generator) -> np.ndarray:
    """Systematic sampling without repetition: each candidate with probability proportional to its ratio.

    In random order: every sixteenth point of a Sobol sequence, say, is one cell of the cube.
    """
    order = generator.permutation(len(ratio))
    steps = np.cumsum(ratio[order]) * (n / ratio.sum())
    found = np.searchsorted(steps, np.arange(n) + generator.random(), side="right")
    return np.sort(order[np.minimum(found, len(ratio) - 1)])


def _along(ratio: np.ndarray, n_strikes: int, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the strike's range, by the inverse of each law's distribution along it; and their cells."""
    edges = np.cumsum(ratio, axis=1) / ratio.sum(axis=1, keepdims=True)
    wanted = (np.arange(n_strikes) + offset) / n_strikes
    cell = np.minimum((wanted[:, :, None] >= edges[:, None, :]).sum(axis=-1), ratio.shape[1] - 1)
    start = np.concatenate([np.zeros((len(edges), 1)), edges], axis=1)
    low, high = np.take_along_axis(start, cell, axis=1), np.take_along_axis(start, cell + 1, axis=1)
    return (cell + (wanted - low) / (high - low)) / ratio.shape[1], cell


def _check(given: dict[str, Tensor], inputs: Tensor, counts: dict[str, int]) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"`{name}` must be 1 or more, got {count}")
    for name, column in given.items():
        if column.ndim != 1 or inputs.ndim != 2 or len(column) != len(inputs) or len(column) < 2:
            raise DataError(
                f"`{name}` must be one number for each of 2 rows of `inputs` or more, got shapes "
                f"{tuple(column.shape)} and {tuple(inputs.shape)}"
            )
        bad = ~(column.isfinite() & (column >= 0.0))
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            raise DataError(f"`{name}` must be finite and 0 or more, got {column[row].item():g} in row {row}")
