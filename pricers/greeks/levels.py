"""Greeks by multilevel Monte Carlo: means of the derivatives of each level's correction along its paths."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from pricers.estimate import Estimate
from pricers.greeks.derivatives import forward_derivative
from pricers.greeks.parameters import Task, Triple
from pricers.greeks.simulated import fitting, has_jumps, moves_counts
from pricers.monte_carlo import MultilevelMonteCarlo
from pricers.monte_carlo.multilevel import Level

__all__ = ["from_levels"]


def from_levels(task: Task, triple: Triple, engine: MultilevelMonteCarlo, method: str) -> Estimate:
    r"""Sum over the levels of $E[\partial(P_l - P_{l-1})]$, both derivatives along one Brownian path.

    Levels and paths are chosen anew for each Greek: its corrections have means and variances of their own.

    Raises:
        ValueError: a payoff or an order whose jumps or kinks derivatives along the path would miss; another method.

    References:
        Burgos and Giles (2012), Computing Greeks using multilevel path simulation.
    """
    _check(task, triple, engine, method)

    def derived(level: Level, start: int, width: int) -> Tensor:
        normals = engine.normals(level, start, width)

        def along(*steps: Tensor) -> Tensor:
            moved = engine.level(level.index, *task.moved(triple, *steps))
            return engine.corrections(moved, start, width, normals)

        return forward_derivative(along, task.order)

    size = math.prod(parameter.size(triple) for parameter in task.parameters)
    found = engine.summed(triple, derived, engine.accuracy / size)
    return replace(found, engine=f"{engine.name}, pathwise")


def _check(task: Task, triple: Triple, engine: MultilevelMonteCarlo, method: str) -> None:
    names = ", ".join(parameter.name for parameter in task.parameters)
    if method not in ("auto", "pathwise"):
        raise ValueError(f"`method` {method!r} needs MonteCarlo, MultilevelMonteCarlo differentiates along its paths")
    if fitting(task, engine.level(0, *triple).fine, triple) != "pathwise":
        raise ValueError(
            f"MultilevelMonteCarlo differentiates along its paths, which would miss the kinks or jumps of the "
            f"{'second derivative' if task.order == 2 else 'payoff'} of {type(triple[0]).__name__} by {names}; "
            "use MonteCarlo"
        )
    if has_jumps(triple, engine) and moves_counts(task):
        raise ValueError(
            f"the number of jumps of {type(triple[1]).__name__} does not move along a path with {names}, only its law "
            "does; use MonteCarlo"
        )
