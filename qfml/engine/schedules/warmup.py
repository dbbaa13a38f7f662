"""A warm-up before any other schedule, and the registry of all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np

from qfml.config import OneOf
from qfml.engine.schedules.base import Constant, Moment, Schedule, State, check_unit, check_whole, each, line
from qfml.engine.schedules.decay import Cosine, Exponential, OneCycle, StepDecay
from qfml.engine.schedules.plateau import Plateau
from qfml.errors import UserError

SCHEDULES: dict[str, type] = {cls.kind: cls for cls in (Constant, StepDecay, Exponential, Cosine, OneCycle, Plateau)}


@dataclass(frozen=True)
class Warmup(Schedule):
    r"""A linear rise to the learning rate, then another schedule, whose time begins at the end of the rise.

    Factor $s + (1 - s) t / T$ at time $t < T$. A whole run of the other schedule is what the rise leaves of it; a
    plateau also observes the epochs of the rise.

    Args:
        length: T, in `unit`s.
        then: the schedule that follows.
        begin: s, the first factor, in (0, 1).
        unit: "step" or "epoch": what the length counts. The factor changes as often.

    References:
        Goyal et al. (2017), "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", section 2.2.

    Example:
        >>> moment = Moment(np.array([0, 5, 10]), np.array([0, 1, 2]), np.array([5, 5, 5]), max_epochs=4)
        >>> Warmup(length=10, begin=0.5, then=Exponential(gamma=0.9)).factor(moment, {}).tolist()
        [0.5, 0.75, 1.0]
    """

    kind: ClassVar[str] = "warmup"
    length: int
    then: Annotated[Schedule, OneOf(SCHEDULES)] = Constant()  # noqa: RUF009  (frozen)
    begin: float = 0.1
    unit: str = "step"

    def __post_init__(self) -> None:
        check_whole(self, "length")
        if not 0 < self.begin < 1:
            raise UserError(f"`begin` must lie in (0, 1), a factor of the learning rate, got {self.begin}")
        if not isinstance(self.then, Schedule) or isinstance(self.then, Warmup):
            raise UserError(f"`then` must be a schedule other than a warm-up, got {self.then!r}")
        check_unit(self)

    def start(self, n_members: int) -> State:
        """What the other schedule remembers."""
        return self.then.start(n_members)

    def factor(self, moment: Moment, state: State) -> np.ndarray:
        """The rise of the members that are in it, the other schedule's of the rest."""
        factors = each(lambda t: line(self.begin, 1.0, min(t, self.length) / self.length), moment.position(self.unit))
        end = self.length * (np.ones_like(moment.step) if self.unit == "step" else moment.steps_per_epoch)
        risen = np.flatnonzero(moment.step >= end)
        if len(risen):
            later = replace(moment, begin=end).of(risen)
            factors[risen] = self.then.factor(later, {name: value[risen] for name, value in state.items()})
        return factors

    def observe(self, state: State, member: int, value: float) -> None:
        """Pass it on."""
        self.then.observe(state, member, value)


SCHEDULES[Warmup.kind] = Warmup
