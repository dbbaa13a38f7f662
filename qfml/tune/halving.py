"""Successive halving: trials that are behind at a rung give their place to new ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qfml.errors import ConfigError

__all__ = ["SuccessiveHalving", "leaders"]


@dataclass(frozen=True)
class SuccessiveHalving:
    """Rungs at `first`, `first * factor`, `first * factor**2`, ... epochs; the best `1 / factor` pass each.

    Trials come to a rung at different times, since freed places are taken by new trials. So a trial is compared with
    all that have come to the rung so far, again after each of its epochs until its next rung; nothing is dropped
    before `factor` trials have come.

    Args:
        first: epochs that every trial is given.
        factor: of the trials at a rung one in `factor` goes on.

    References:
        Li, Jamieson, Rostamizadeh, Gonina, Hardt, Recht and Talwalkar (2020), A system for massively parallel
        hyperparameter tuning, algorithm 2.

    Example:
        >>> SuccessiveHalving(first=2, factor=3).rungs(60)
        [2, 6, 18, 54]
    """

    first: int = 3
    factor: int = 3

    def __post_init__(self) -> None:
        if self.first < 1:
            raise ConfigError(f"`first` must be at least 1 epoch, got {self.first}")
        if self.factor < 2:
            raise ConfigError(f"`factor` must be at least 2, got {self.factor}")

    def rungs(self, max_epochs: int) -> list[int]:
        """Epochs after which trials are compared, all before the last epoch."""
        rungs = []
        epoch = self.first
        while epoch < max_epochs:
            rungs.append(epoch)
            epoch *= self.factor
        return rungs


def leaders(values: Mapping[int, float], factor: int) -> set[int]:
    """The trials that may go on: the best `len(values) // factor`, all of them while they are fewer than `factor`.

    Args:
        values: of each trial that has come to the rung; smaller is better, and the earlier trial wins a tie.
        factor: one in `factor` goes on.

    Example:
        >>> leaders({0: 0.3, 1: 0.1, 2: 0.2, 3: 0.4}, factor=2)
        {1, 2}
    """
    if len(values) < factor:
        return set(values)
    best = sorted(values, key=lambda trial: (values[trial], trial))
    return set(best[: len(values) // factor])
