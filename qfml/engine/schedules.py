"""Learning-rate schedules: a factor for each member, from the member's own clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

State = dict[str, np.ndarray]


@dataclass(frozen=True)
class Moment:
    """Where each of M members stands before a step; every array has shape (M,).

    Attributes:
        step: steps done.
        epoch: epochs done.
        steps_per_epoch: steps of one epoch.
        max_epochs: epochs of the whole run.
    """

    step: np.ndarray
    epoch: np.ndarray
    steps_per_epoch: np.ndarray
    max_epochs: int


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


SCHEDULES: dict[str, type] = {cls.kind: cls for cls in (Constant,)}
