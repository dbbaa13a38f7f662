"""Searches: how the parameters of the next trial are chosen."""

from __future__ import annotations

import hashlib
import itertools
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from qfml.errors import ConfigError
from qfml.tune.space import Space, Value

__all__ = ["SEARCHES", "TPE", "Grid", "Random", "Search", "seed_of"]


class Search:
    """Chooses the parameters of a trial by its place among all trials, so that a resumed study asks the same."""

    kind: ClassVar[str]

    def n_trials(self, spaces: Mapping[str, Space]) -> int | None:
        """How many different trials there are; None for as many as one likes."""
        return None

    def point(self, spaces: Mapping[str, Space], place: int) -> dict[str, Value] | None:
        """The parameters of the trial at `place` from 0, where no sampler is needed for them."""
        return None

    def sampler(self, seed: int) -> Any:
        """Optuna's sampler for one trial."""
        raise NotImplementedError


@dataclass(frozen=True)
class Grid(Search):
    """Every combination, the last parameter of the config changing fastest.

    Args:
        points: values of each range, evenly spaced (in the logarithm for `log_uniform`), both bounds included.

    Example:
        >>> from qfml.tune.space import Choice, Integer
        >>> spaces = {"depth": Integer(1, 3), "activation": Choice(("relu", "tanh"))}
        >>> Grid(points=2).n_trials(spaces), Grid(points=2).point(spaces, 1)
        (4, {'depth': 1, 'activation': 'tanh'})
    """

    kind: ClassVar[str] = "grid"
    points: int = 5

    def __post_init__(self) -> None:
        if self.points < 1:
            raise ConfigError(f"`points` must be at least 1, got {self.points}")

    def n_trials(self, spaces: Mapping[str, Space]) -> int | None:
        return math.prod(len(space.grid(self.points)) for space in spaces.values())

    def point(self, spaces: Mapping[str, Space], place: int) -> dict[str, Value] | None:
        every = itertools.product(*(space.grid(self.points) for space in spaces.values()))
        return dict(zip(spaces, next(itertools.islice(every, place, None)), strict=True))

    def sampler(self, seed: int) -> Any:
        return Random().sampler(seed)  # asked for nothing: `point` has every parameter


@dataclass(frozen=True)
class Random(Search):
    """Independent draws, whatever the trials before found."""

    kind: ClassVar[str] = "random"

    def sampler(self, seed: int) -> Any:
        from optuna.samplers import RandomSampler

        return RandomSampler(seed=seed)


@dataclass(frozen=True)
class TPE(Search):
    """Tree-structured Parzen estimator: draws where good trials are dense and bad ones are not.

    Trials in training count as bad ones, so that those asked at once differ from each other.

    Args:
        n_startup: trials drawn at random before it begins.

    References:
        Bergstra, Bardenet, Bengio and Kegl (2011), Algorithms for hyper-parameter optimization, section 4.
    """

    kind: ClassVar[str] = "tpe"
    n_startup: int = 10

    def __post_init__(self) -> None:
        if self.n_startup < 1:
            raise ConfigError(f"`n_startup` must be at least 1, got {self.n_startup}")

    def sampler(self, seed: int) -> Any:
        from optuna.exceptions import ExperimentalWarning
        from optuna.samplers import TPESampler

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # of constant_liar
            return TPESampler(n_startup_trials=self.n_startup, constant_liar=True, seed=seed)


SEARCHES: dict[str, type[Search]] = {cls.kind: cls for cls in (Grid, Random, TPE)}


def seed_of(seed: int, place: int) -> int:
    """The seed of the sampler that asks the trial at `place`."""
    return int.from_bytes(hashlib.sha256(f"{seed} {place}".encode()).digest()[:4], "big")
