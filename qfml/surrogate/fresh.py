"""Labels of fresh points, drawn independently of all others, and the derivatives of the engine that makes them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pricers.noise import address
from pricers.parallel import side_by_side
from qfml.errors import DataError
from qfml.surrogate.labels import LabelTable, labelled
from qfml.surrogate.points import Points, placed
from qfml.surrogate.problem import Problem
from qfml.surrogate.settings import LabelEngine, LabelSettings, MonteCarloLabels

ROWS_OF_A_PIECE = 1024
BUMP = 0.01  # of the range of a coordinate, on its scale: a central difference spans twice that
REPEATS = 4  # seeds of a central difference, whose scatter is its standard error


class Slopes(NamedTuple):
    """Derivatives of an engine at fresh points, float64.

    Args:
        inputs: natural units, shape `(N, d)`.
        gradient: derivatives of the target in the inputs, shape `(N, d)`.
        std_error: theirs, same shape; 0 where they are exact.
        note: how they were made.
    """

    inputs: Tensor
    gradient: Tensor
    std_error: Tensor
    note: str


def fresh_labels(problem: Problem, engine: LabelEngine, n: int, seed: int, gradients: bool = False) -> LabelTable:
    """Labels of `n` independent points of the box, each a law of its own, even on the scale of each coordinate.

    Raises:
        DataError: none of the points has a label.
        ConfigError: the engine does not label the problem.
    """
    points = _points(problem, n, seed)
    settings = LabelSettings(n_points=n, seed=seed, engine=engine, strikes_per_law=1, gradients=gradients)
    settings.checked(problem)

    def piece(start: int) -> Any:
        own = slice(start, start + ROWS_OF_A_PIECE)
        piece_points = points.part(own.start, own.stop)
        about = {"hash": "fresh", "laws": [start, start + len(piece_points.law)]}
        return labelled(problem, settings, piece_points, about)

    starts = range(0, n, ROWS_OF_A_PIECE)
    with side_by_side(torch.device("cpu"), len(starts)) as run:
        shards = list(run(piece, starts))

    def joined(name: str) -> Any:
        parts = [getattr(shard, name) for shard in shards]
        return None if parts[0] is None else torch.from_numpy(np.concatenate(parts))

    left_out: dict[str, int] = {}
    for shard in shards:
        for reason, count in shard.about["left_out"].items():
            left_out[reason] = left_out.get(reason, 0) + count
    columns = ("inputs", "value", "std_error", "gradient", "gradient_std_error", "law")
    table = LabelTable(
        problem.inputs, *(joined(name) for name in columns), problem=problem, hash="fresh", left_out=left_out
    )
    if not len(table):
        raise DataError(f"none of {n} fresh points has a label: {left_out}; mend the box")
    return table


def engine_slopes(problem: Problem, engine: LabelEngine, n: int, seed: int) -> Slopes:
    """Derivatives at `n` independent points of the box: the engine's own, else central differences on common noise.

    Raises:
        DataError: none of the points has a label.
        ConfigError: the engine does not label the problem.
    """
    if isinstance(engine, MonteCarloLabels) and problem.target == "implied_vol":
        return _differences(problem, engine, n, seed)
    table = fresh_labels(problem, engine, n, seed, gradients=True)
    assert table.gradient is not None
    error = table.gradient_std_error
    how = "along the simulated paths" if engine.simulated else "of the engine itself, without noise"
    return Slopes(table.inputs, table.gradient, torch.zeros_like(table.gradient) if error is None else error, how)


def _differences(problem: Problem, engine: MonteCarloLabels, n: int, seed: int) -> Slopes:
    """Central differences of simulated labels, both ends from the same noise; a row without a label is left out."""
    from qfml.surrogate.simulated_labels import simulated_labels  # loaded where labels are simulated

    LabelSettings(n_points=n, seed=seed, engine=engine, strikes_per_law=1).checked(problem)
    points = _points(problem, n, seed)
    smiles, strikes = (2 * BUMP + (1 - 4 * BUMP) * share for share in (points.smiles, points.strikes))
    inner = Points(smiles, strikes, points.law)  # both ends of a difference lie in the box
    columns = placed(problem, inner, torch.device("cpu")).columns
    inputs = torch.stack([column[:, 0] for column in columns.values()], -1)
    steps = _steps(problem, inputs)

    def values(moved: Tensor, repeat: int) -> Tensor:
        noise = address(seed, "noise of differences", repeat)
        return simulated_labels(problem, moved, engine.n_paths, engine.n_steps, noise, False, law=points.law).value

    repeats = []
    for repeat in range(REPEATS):
        slopes = []
        for i, step in enumerate(steps.T):
            ends = [inputs.clone(), inputs.clone()]
            ends[0][:, i] += step
            ends[1][:, i] -= step
            slopes.append((values(ends[0], repeat) - values(ends[1], repeat)) / (2.0 * step))
        repeats.append(torch.stack(slopes, -1))
    found = torch.stack(repeats)
    kept = found.isfinite().all(-1).all(0)
    if not bool(kept.any()):
        raise DataError(f"none of {n} fresh points has a label at both ends of a difference; mend the box")
    found = found[:, kept]
    how = f"central differences over {200 * BUMP:g} % of each range, both ends from the same {REPEATS} sets of paths"
    return Slopes(inputs[kept], found.mean(0), found.std(0) / REPEATS**0.5, how)


def _steps(problem: Problem, inputs: Tensor) -> Tensor:
    """Half the width of each central difference, shape `(N, d)`, in the units of the inputs."""
    columns, steps = problem.columns(inputs), []
    for axis, limits in zip(problem.coordinates, problem.box.values(), strict=True):
        column = columns[axis.input]
        if limits.scale == "log":
            step = column * float(np.log(limits.high / limits.low))
        else:
            step = torch.full_like(column, limits.high - limits.low)
        if axis.argument == "standard_moneyness":
            step = step * problem.reference(columns) * problem.expiry(columns).sqrt()
        steps.append(BUMP * step)
    return torch.stack(steps, -1)


def _points(problem: Problem, n: int, seed: int) -> Points:
    generator = torch.Generator().manual_seed(seed % 2**63)
    shares = torch.rand(n, len(problem.coordinates), generator=generator, dtype=torch.float64)
    strike = [i for i, axis in enumerate(problem.coordinates) if axis.is_strike]
    others = [i for i, axis in enumerate(problem.coordinates) if not axis.is_strike]
    return Points(shares[:, others], shares[:, strike], torch.arange(n))
