"""What a schedule is: a factor for each member, from the member's own clock.

Each rule is a function of plain numbers, evaluated once for every distinct place in time among the members: a
vectorised cosine or power may round by its place in the array, and a member's rate must not depend on its stack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from qfml.errors import UserError

State = dict[str, np.ndarray]
UNITS = ("step", "epoch")


@dataclass(frozen=True)
class Moment:
    """Where each of M members stands before a step; every array has shape (M,).

    Attributes:
        step: steps done.
        epoch: epochs done.
        steps_per_epoch: steps of one epoch.
        max_epochs: epochs of the whole run.
        max_steps: steps after which the run ends, if that is sooner.
        begin: steps that were done when the schedule took over; None for all 0.
    """

    step: np.ndarray
    epoch: np.ndarray
    steps_per_epoch: np.ndarray
    max_epochs: int
    max_steps: int | None = None
    begin: np.ndarray | None = None

    def position(self, unit: str) -> np.ndarray:
        """Steps or whole epochs since the schedule took over."""
        if unit == "epoch" and self.begin is None:
            return self.epoch
        done = self.step if self.begin is None else self.step - self.begin
        return done if unit == "step" else done // self.steps_per_epoch

    def length(self, unit: str) -> np.ndarray:
        """Steps or epochs, a begun one counted, from there to the end of the run."""
        steps = self.max_epochs * self.steps_per_epoch
        if self.max_steps is not None:
            steps = np.minimum(steps, self.max_steps)
        steps = steps if self.begin is None else steps - self.begin
        return steps if unit == "step" else -(-steps // self.steps_per_epoch)

    def of(self, members: np.ndarray) -> Moment:
        """The same of some of the members."""
        begin = None if self.begin is None else self.begin[members]
        chosen = {name: getattr(self, name)[members] for name in ("step", "epoch", "steps_per_epoch")}
        return replace(self, **chosen, begin=begin)


class Schedule:
    """A factor of the learning rate, for each member by its own clock.

    A subclass is a frozen dataclass that overrides `factor`, and `start` and `observe` if it remembers anything.
    """

    kind: ClassVar[str]

    def start(self, n_members: int) -> State:
        """What is remembered, an array (M, ...) for each name."""
        return {}

    def factor(self, moment: Moment, state: State) -> np.ndarray:
        """Factors of the next step, shape (M,)."""
        raise NotImplementedError

    def observe(self, state: State, member: int, value: float) -> None:
        """A member has ended an epoch with this value of the monitored metric; smaller is better."""


@dataclass(frozen=True)
class Constant(Schedule):
    """The learning rate as it is given."""

    kind: ClassVar[str] = "constant"

    def factor(self, moment: Moment, state: State) -> np.ndarray:
        """Ones."""
        return np.ones(len(moment.step))


def each(rule: Callable[..., float], *columns: np.ndarray) -> np.ndarray:
    """`rule` of each member's whole numbers; members at the same place in time share its value."""
    places = list(zip(*(column.tolist() for column in columns), strict=True))
    values = {place: rule(*place) for place in set(places)}
    return np.array([values[place] for place in places], dtype=np.float64)


def line(begin: float, end: float, share: float) -> float:
    """From `begin` to `end` along a line, `share` of the way."""
    return begin + (end - begin) * share


def check_whole(schedule: Any, name: str, least: int = 1) -> None:
    """Raise ValueError for a field that is not a whole number, or too small."""
    value = getattr(schedule, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"`{name}` must be a whole number, at least {least}, got {value!r}")


def check_gamma(schedule: Any) -> None:
    """Raise ValueError for a factor that does not lower."""
    if not 0 < schedule.gamma <= 1:
        raise UserError(f"`gamma` must lie in (0, 1], got {schedule.gamma}: a schedule lowers the learning rate")


def check_unit(schedule: Any) -> None:
    """Raise ValueError for an unknown unit of time."""
    if schedule.unit not in UNITS:
        raise UserError(f"`unit` must be step or epoch, got {schedule.unit!r}")
