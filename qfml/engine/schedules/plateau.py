"""A schedule that watches the monitored metric."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qfml.engine.schedules.base import Moment, Schedule, State, check_whole
from qfml.errors import UserError


@dataclass(frozen=True)
class Plateau(Schedule):
    r"""Times `gamma` when a member's monitored metric has stopped to improve.

    An epoch is better if the metric falls below the best so far by more than `threshold`; after more than `patience`
    epochs in a row that are not, the factor is reduced. A metric of which more is better counts with its sign turned.

    Args:
        gamma: in (0, 1).
        patience: epochs without improvement that are put up with.
        threshold: the least improvement that counts.
        relative: whether `threshold` is a share of the size of the best value, or in the units of the metric.
        cooldown: epochs after a reduction that are not counted.
        minimum: the factor never falls below it, in [0, 1).

    Example:
        >>> schedule, moment = Plateau(gamma=0.5, patience=1), Moment(*np.ones((3, 1), dtype=int), max_epochs=9)
        >>> state = schedule.start(1)
        >>> for value in (1.0, 1.0, 1.0):
        ...     schedule.observe(state, 0, value)
        >>> schedule.factor(moment, state).tolist()
        [0.5]
    """

    kind: ClassVar[str] = "plateau"
    gamma: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    relative: bool = True
    cooldown: int = 0
    minimum: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.gamma < 1:
            raise UserError(f"`gamma` must lie in (0, 1), got {self.gamma}")
        check_whole(self, "patience", least=0)
        check_whole(self, "cooldown", least=0)
        if not 0 <= self.threshold < math.inf:
            raise UserError(f"`threshold` must be >= 0 and finite, got {self.threshold}")
        if not 0 <= self.minimum < 1:
            raise UserError(f"`minimum` must lie in [0, 1), a factor of the learning rate, got {self.minimum}")

    def start(self, n_members: int) -> State:
        """Each member's factor, best value, epochs without improvement and epochs of cooldown that are left."""
        counters = {name: np.zeros(n_members, dtype=np.int64) for name in ("bad_epochs", "cooling")}
        return {"factor": np.ones(n_members), "best": np.full(n_members, np.inf)} | counters

    def factor(self, moment: Moment, state: State) -> np.ndarray:
        """As reduced so far."""
        return state["factor"].copy()

    def observe(self, state: State, member: int, value: float) -> None:
        """Count the epoch, and reduce the factor if it was one too many."""
        best, bad_epochs, cooling = (state[name] for name in ("best", "bad_epochs", "cooling"))
        if self._is_better(value, float(best[member])):
            best[member], bad_epochs[member] = value, 0
        else:
            bad_epochs[member] += 1
        if cooling[member]:
            cooling[member] -= 1
            bad_epochs[member] = 0
        if bad_epochs[member] > self.patience:
            state["factor"][member] = max(self.gamma * state["factor"][member], self.minimum)
            cooling[member], bad_epochs[member] = self.cooldown, 0

    def _is_better(self, value: float, best: float) -> bool:
        if math.isinf(best):
            return value < best
        # of the size: a share of a negative value, such as a negated Sharpe ratio, would let it grow worse
        return value < best - self.threshold * (abs(best) if self.relative else 1.0)
