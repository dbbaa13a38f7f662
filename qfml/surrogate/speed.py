"""How fast a surrogate answers, beside the engine that it replaces."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import pricers as pr
from pricers.pricing import WITHOUT_SIMULATION, Engine, capable_engines
from qfml.surrogate.exact_labels import target_values
from qfml.surrogate.problem import Problem
from qfml.surrogate.surrogate import Surrogate

MANY = 100_000  # rows of a large batch
ENGINE_ROWS = 64  # points that the engine prices in one call
SIMULATED: dict[str, Any] = {"MonteCarlo": pr.MonteCarlo, "LongstaffSchwartz": pr.LongstaffSchwartz}


def surrogate_speed(surrogate: Surrogate, inputs: Tensor, repeats: int = 5) -> dict[str, Any]:
    """Seconds of a large batch and of a single row, least and median; and the number of threads.

    `batch_seconds` is `predict`, the target itself; `price_batch_seconds`, of another target than prices, is `price`,
    asked by instrument, model and market, with the formula that makes a price of it. Each call is made once before it
    is timed.

    Args:
        surrogate: what is measured.
        inputs: rows inside of its box (N, d), repeated up to the size of the batch.
        repeats: calls of each.
    """
    many = inputs.repeat(-(-MANY // len(inputs)), 1)[:MANY]
    one, narrow = inputs[:1], many.float()
    prices = {}
    if surrogate.problem.target != "price":
        triple = surrogate.problem.triple(many)
        prices = {"price_batch_seconds": _timed(lambda: surrogate.price(*triple, errors="flag"), repeats)}
    return {
        "threads": torch.get_num_threads(),
        "n_batch": MANY,
        "batch_seconds": _timed(lambda: surrogate.predict(many, errors="flag"), repeats),
        **prices,
        "gradient_batch_seconds": _timed(lambda: surrogate.value_and_gradient(narrow, errors="flag"), repeats),
        "single_seconds": _timed(lambda: surrogate.predict(one, errors="flag"), 20 * repeats),
    }


def exact_speed(problem: Problem, inputs: Tensor, engine: Engine | None) -> dict[str, Any] | None:
    """Median seconds a value of the target by an engine without noise; None where no such engine is known.

    Args:
        problem: what is priced.
        inputs: rows inside of its box.
        engine: the one that labels the fresh points, with its settings; None takes the best.
    """
    rows = inputs[:ENGINE_ROWS]
    able = capable_engines(*problem.triple(rows))
    name = next((name for name in able if name in WITHOUT_SIMULATION), None)
    name = name if engine is None else type(engine).__name__
    if name is None:
        return None
    columns = problem.columns(rows)
    with torch.no_grad():
        seconds = _timed(lambda: target_values(problem, columns, engine), 3)["median"] / len(rows)
    return {"engine": name, "seconds_per_price": seconds}


def simulation_speed(
    problem: Problem, inputs: Tensor, rmse: float, n_paths: int, n_steps: int
) -> dict[str, Any] | None:
    """Seconds a price of a Monte Carlo with so many paths that its error is that of the surrogate; None without one.

    One of `n_paths` is timed, after a call that is not; its standard error falls with the root of the time.

    Args:
        problem: what is priced.
        inputs: rows inside of its box.
        rmse: the surrogate's error in prices per unit of spot.
        n_paths: paths of the timed Monte Carlo.
        n_steps: time steps to the last date.
    """
    triple = problem.triple(inputs[:ENGINE_ROWS])
    name = next((name for name in capable_engines(*triple) if name in SIMULATED), None)
    if name is None:
        return None
    engine = SIMULATED[name](n_paths, n_steps=n_steps, seed=0)
    with torch.no_grad():
        estimate = pr.price(*triple, engine)
        seconds = _timed(lambda: pr.price(*triple, engine), 1, warm=True)["median"] / len(inputs[:ENGINE_ROWS])
    error = float((estimate.std_error / triple[2].spot).square().mean().sqrt())
    return {
        "engine": name,
        "n_paths": n_paths,
        "n_steps": n_steps,
        "seconds_per_price": seconds,
        "std_error": error,
        "seconds_per_price_at_equal_error": seconds * (error / rmse) ** 2 if rmse > 0 else None,
    }


def _timed(call: Callable[[], Any], repeats: int, warm: bool = False) -> dict[str, float]:
    """Least and median seconds of a call; made once before unless it is `warm` already."""
    if not warm:
        call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    seconds.sort()
    return {"least": seconds[0], "median": seconds[len(seconds) // 2]}
