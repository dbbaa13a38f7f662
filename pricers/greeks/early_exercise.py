"""Greeks of options that are exercised early by a fitted rule."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pricers.estimate import Estimate
from pricers.exercise import LongstaffSchwartz
from pricers.greeks.derivatives import central_difference, forward_derivative
from pricers.greeks.parameters import Task, Triple
from pricers.parameters import common_dtype

__all__ = ["with_rule"]

CURVATURE_BUMP = 10.0  # bumps of second order are that much wider
DATES = ("time", "expiry", "times", "dividends.times")  # an ex-date and an exercise date may meet or part
STATE = ("spot", "v0")  # where the paths start: the best rule of exercise does not depend on it


def with_rule(task: Task, triple: Triple, engine: LongstaffSchwartz, method: str, bump: float) -> Estimate:
    r"""Derivative of the value of a rule of exercise, which is fitted once and held.

    At the best rule the value does not change to first order with the rule (envelope theorem), so its derivative is
    that along each path up to its time of exercise. Differences ("bump") let the time of exercise move, under the same
    rule, on the same noise. A second derivative is the difference of first ones; it exists for the spot or `v0` with
    anything else, since the best rule does not depend on them.

    References:
        Piterbarg (2004), Computing deltas of callable Libor exotics in forward Libor models; Glasserman (2004),
        section 7.2.

    Raises:
        ValueError: another method, a second derivative that the rule would have to follow, or a derivative by dates
            under cash dividends.
    """
    if method == "likelihood_ratio":
        raise ValueError("LongstaffSchwartz has no scores: use method='pathwise' or 'bump'")
    if task.order == 2 and not any(head in STATE for head in task.heads):
        names = " and ".join(parameter.name for parameter in task.parameters)
        raise ValueError(
            f"the second derivative by {names} would need the rule of exercise to move, LongstaffSchwartz holds it: "
            "use FiniteDifference, or a pair with `spot` or `v0`"
        )
    dated = [parameter.name for parameter in task.parameters if parameter.name in DATES]
    if dated and triple[2].dividends is not None:
        raise ValueError(
            f"the derivative by {dated[0]} moves exercise dates against the dates of cash dividends, on which "
            "LongstaffSchwartz holds its rule: use FiniteDifference"
        )
    values = engine.followed(*triple)
    sizes = [bump * (CURVATURE_BUMP if task.order == 2 else 1.0) * p.size(triple) for p in task.parameters]
    with torch.no_grad():
        if method == "bump":
            found = central_difference(lambda *steps: values(*task.bumped(triple, *steps)), sizes)
        elif task.order == 1:
            found = forward_derivative(lambda step: values(*task.moved(triple, step)), 1)
        else:
            found = _mixed(task, triple, values, sizes)
    value, error = found.mean(-1), found.std(-1) / found.shape[-1] ** 0.5
    dtype = common_dtype(*triple)
    name = f"{engine.name}, {'bump' if method == 'bump' else 'pathwise'}"
    note = "of the value of a fitted rule of exercise, which is held"
    return Estimate(value.to(dtype), error.to(dtype), n_paths=engine.n_paths, engine=name, note=note)


def _mixed(task: Task, triple: Triple, values: Callable[..., Tensor], sizes: list[float]) -> Tensor:
    """Differences, in the parameter that the rule does not depend on, of derivatives in the other one."""
    outer = next(index for index, head in enumerate(task.heads) if head in STATE)

    def slope(step: Tensor) -> Tensor:
        def along(inner: Tensor) -> Tensor:
            steps = (step, inner) if outer == 0 else (inner, step)
            return values(*task.moved(triple, *steps))

        return forward_derivative(along, 1)

    return central_difference(slope, [sizes[outer]])
