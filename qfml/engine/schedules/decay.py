"""Schedules that are a function of time alone: step, exponential, cosine and one cycle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qfml.engine.schedules.base import Moment, Schedule, State, check_gamma, check_unit, check_whole, each, line
from qfml.errors import UserError


@dataclass(frozen=True)
class StepDecay(Schedule):
    r"""Times `gamma` after every `every` epochs or steps: $\gamma^{\lfloor t / n \rfloor}$.

    Args:
        every: n, in `unit`s.
        gamma: in (0, 1].
        unit: "step" or "epoch", what t counts.

    Example:
        >>> moment = Moment(np.array([0, 25]), np.array([0, 5]), np.array([5, 5]), max_epochs=9)
        >>> StepDecay(every=2, gamma=0.5).factor(moment, {}).tolist()
        [1.0, 0.25]
    """

    kind: ClassVar[str] = "step"
    every: int
    gamma: float = 0.1
    unit: str = "epoch"

    def __post_init__(self) -> None:
        check_whole(self, "every")
        check_gamma(self)
        check_unit(self)

    def factor(self, moment: Moment, state: State) -> np.ndarray:
        """A stair."""
        return each(lambda t: self.gamma ** (t // self.every), moment.position(self.unit))


@dataclass(frozen=True)
class Exponential(Schedule):
    r"""Times `gamma` after each epoch or step: $\gamma^t$.

    Args:
        gamma: in (0, 1].
        unit: "step" or "epoch", what t counts.

    Example:
        >>> moment = Moment(np.array([0, 15]), np.array([0, 3]), np.array([5, 5]), max_epochs=9)
        >>> Exponential(gamma=0.5).factor(moment, {}).tolist()
        [1.0, 0.125]
    """

    kind: ClassVar[str] = "exponential"
    gamma: float
    unit: str = "epoch"

    def __post_init__(self) -> None:
        check_gamma(self)
        check_unit(self)

    def factor(self, moment: Moment, state: State) -> np.ndarray:
        """A geometric sequence."""
        return each(lambda t: self.gamma**t, moment.position(self.unit))


def cosine(begin: float, end: float, share: float) -> float:
    """From `begin` to `end` along half a cosine, `share` of the way."""
    return end + (begin - end) * (1 + math.cos(math.pi * share)) / 2


def since_restart(position: int, length: int, multiplier: int) -> tuple[int, int]:
    """Position in the present cycle, and its length, where each cycle is `multiplier` times as long as the last."""
    if multiplier == 1:
        return position % length, length
    while position >= length:
        position, length = position - length, length * multiplier
    return position, length


@dataclass(frozen=True)
class Cosine(Schedule):
    r"""Half a cosine from 1 down to `minimum`, where it stays, or restarts.

    $m + (1 - m) (1 + \cos(\pi t / T)) / 2$.

    Args:
        epochs: the length T; None takes the whole run.
        minimum: m, a factor like all else here, in [0, 1).
        restart_multiplier: restart after T epochs; each cycle is so many times as long as the one before. None never
            restarts.
        unit: "step" or "epoch", when the factor changes.

    References:
        Loshchilov, Hutter (2017), "SGDR: Stochastic Gradient Descent with Warm Restarts", equation 5.

    Example:
        >>> moment = Moment(np.array([0, 10, 20]), np.array([0, 2, 4]), np.array([5, 5, 5]), max_epochs=4)
        >>> Cosine(minimum=0.2).factor(moment, {}).round(12).tolist()
        [1.0, 0.6, 0.2]
    """

    kind: ClassVar[str] = "cosine"
    epochs: int | None = None
    minimum: float = 0.0
    restart_multiplier: int | None = None
    unit: str = "step"

    def __post_init__(self) -> None:
        if self.epochs is not None:
            check_whole(self, "epochs")
        if self.restart_multiplier is not None:
            check_whole(self, "restart_multiplier")
            if self.epochs is None:
                raise UserError(
                    f"`restart_multiplier` {self.restart_multiplier} needs `epochs`, the length of the first cycle: "
                    "the whole run leaves no room for a restart"
                )
        if not 0 <= self.minimum < 1:
            raise UserError(f"`minimum` must lie in [0, 1), a factor of the learning rate, got {self.minimum}")
        check_unit(self)

    def factor(self, moment: Moment, state: State) -> np.ndarray:
        """Annealed by the share of the length that has passed."""
        if self.epochs is None:
            length = moment.length(self.unit)
        else:
            length = self.epochs * (moment.steps_per_epoch if self.unit == "step" else np.ones_like(moment.epoch))
        return each(self._at, moment.position(self.unit), length)

    def _at(self, position: int, length: int) -> float:
        if self.restart_multiplier is not None:
            position, length = since_restart(position, length, self.restart_multiplier)
        return cosine(1.0, self.minimum, min(position, length) / length)


@dataclass(frozen=True)
class OneCycle(Schedule):
    r"""Up to the learning rate, then down to almost nothing, over the whole run.

    Of T steps, the factor rises from $1 / d$ to 1 until step $p T - 1$, and falls to $1 / (d f)$ at the last, $T - 1$.

    Args:
        peak: p, the share of the run until the peak, in (0, 1).
        div_factor: d, at least 1.
        final_div_factor: f, at least 1.
        anneal: "cos" or "linear", the shape of both slopes.
        unit: "step" or "epoch", when the factor changes.

    References:
        Smith, Topin (2018), "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates".

    Example:
        >>> moment = Moment(np.array([0, 4, 19]), np.array([0, 0, 3]), np.array([5, 5, 5]), max_epochs=4)
        >>> OneCycle(peak=0.25, div_factor=10, final_div_factor=10).factor(moment, {}).round(12).tolist()
        [0.1, 1.0, 0.01]
    """

    kind: ClassVar[str] = "one_cycle"
    peak: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    anneal: str = "cos"
    unit: str = "step"

    def __post_init__(self) -> None:
        if not 0 < self.peak < 1:
            raise UserError(f"`peak` must lie in (0, 1), a share of the run, got {self.peak}")
        for name in ("div_factor", "final_div_factor"):
            if not 1 <= getattr(self, name) < math.inf:
                raise UserError(f"`{name}` must be at least 1 and finite, got {getattr(self, name)}")
        if self.anneal not in ("cos", "linear"):
            raise UserError(f"`anneal` must be cos or linear, got {self.anneal!r}")
        check_unit(self)

    def factor(self, moment: Moment, state: State) -> np.ndarray:
        """By the share of the slope that has passed."""
        return each(self._at, moment.position(self.unit), moment.length(self.unit))

    def _at(self, position: int, length: int) -> float:
        first, top = 1 / self.div_factor, self.peak * length - 1
        slope = cosine if self.anneal == "cos" else line
        if position <= top:
            return slope(first, 1.0, position / top) if top else 1.0
        # a run too short to rise begins on the way down
        return slope(1.0, first / self.final_div_factor, (position - top) / (length - 1 - top))
