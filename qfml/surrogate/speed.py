"""How fast a surrogate answers, beside the engine that it replaces."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import pricers as pr
from pricers.pricing import WITHOUT_SIMULATION, capable_engines
from qfml.surrogate.exact_labels import target_values
from qfml.surrogate.surrogate import Surrogate

MANY = 100_000  # rows of a large batch
ENGINE_ROWS = 64  # points that the engine prices in one call
SIMULATED: dict[str, Any] = {"MonteCarlo": pr.MonteCarlo, "LongstaffSchwartz": pr.LongstaffSchwartz}


def surrogate_speed(surrogate: Surrogate, inputs: Tensor, repeats: int = 5) -> dict[str, Any]:
    """Seconds of a large batch and of a single row, least and median; and the number of threads.

    Args:
        surrogate: what is measured.
        inputs: rows inside of its box (N, d), repeated up to the size of the batch.
        repeats: calls of each.
    """
    many = inputs.repeat(-(-MANY // len(inputs)), 1)[:MANY]
    one = inputs[:1]
    return {
        "threads": torch.get_num_threads(),
        "n_batch": MANY,
        "batch_seconds": _timed(lambda: surrogate.predict(many, errors="flag"), repeats),
        "gradient_batch_seconds": _timed(lambda: surrogate.value_and_gradient(many.float()), 1),
        "single_seconds": _timed(lambda: surrogate.predict(one, errors="flag"), 20 * repeats),
    }


def engine_speed(surrogate: Surrogate, inputs: Tensor, rmse: float, n_paths: int, n_steps: int) -> dict[str, Any]:
    """Seconds a price of the exact engine, and of Monte Carlo simulated until its error is that of the surrogate.

    A Monte Carlo of `n_paths` is timed; its standard error falls with the root of the time.

    Args:
        surrogate: what is compared.
        inputs: rows inside of its box.
        rmse: the surrogate's error in prices per unit of spot.
        n_paths: paths of the timed Monte Carlo.
        n_steps: time steps to the last date.
    """
    problem, rows = surrogate.problem, inputs[:ENGINE_ROWS]
    triple = problem.triple(rows)
    found: dict[str, Any] = {}
    able = capable_engines(*triple)
    exact = next((name for name in able if name in WITHOUT_SIMULATION), None)
    if exact is not None:
        columns = problem.columns(rows)
        with torch.no_grad():
            found["exact"] = {
                "engine": exact,
                "seconds_per_price": _timed(lambda: target_values(problem, columns), 3)["least"] / len(rows),
            }
    name = next((name for name in able if name in SIMULATED), None)
    if name is None:
        return found
    engine = SIMULATED[name](n_paths, n_steps=n_steps, seed=0)
    start = time.perf_counter()
    with torch.no_grad():
        estimate = pr.price(*triple, engine)
    seconds = (time.perf_counter() - start) / len(rows)
    error = float((estimate.std_error / triple[2].spot).square().mean().sqrt())
    found["simulated"] = {
        "engine": name,
        "n_paths": n_paths,
        "n_steps": n_steps,
        "seconds_per_price": seconds,
        "std_error": error,
        "seconds_per_price_at_equal_error": seconds * (error / rmse) ** 2 if rmse > 0 else None,
    }
    return found


def _timed(call: Callable[[], Any], repeats: int) -> dict[str, float]:
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    seconds.sort()
    return {"least": seconds[0], "median": seconds[len(seconds) // 2]}
