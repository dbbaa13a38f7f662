"""Search spaces: what stands in a config in place of a value, and the settings of one trial.

A mapping with the name of one distribution as its only key is a search space wherever a value may stand, in lists and
in components too: `lr: {log_uniform: [1e-5, 1e-2]}`. A parameter is called by its path: `trainer.optimizer.lr`.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from qfml.errors import ConfigError

__all__ = [
    "SPACES",
    "Choice",
    "Integer",
    "LogUniform",
    "Space",
    "Uniform",
    "corners",
    "filled",
    "short_names",
    "spaces_in",
]

Value = float | int | str | bool | None


class Space:
    """What one parameter may be.

    A value of the config and the value that the study stores of it are the same, except for a choice among lists or
    components, which is stored as its JSON.
    """

    kind: ClassVar[str]

    def distribution(self) -> Any:
        """The distribution as Optuna has it."""
        raise NotImplementedError

    def grid(self, points: int) -> list[Value]:
        """At most `points` values that cover the space, as the study stores them; all values of a choice."""
        raise NotImplementedError

    def setting(self, stored: Any) -> Any:
        """The value of the config that the study stores as `stored`."""
        return stored


@dataclass(frozen=True)
class Uniform(Space):
    """Real numbers from `low` to `high`: `{uniform: [0.0, 0.5]}`.

    Example:
        >>> Uniform(0.0, 1.0).grid(3)
        [0.0, 0.5, 1.0]
    """

    kind: ClassVar[str] = "uniform"
    low: float
    high: float

    def distribution(self) -> Any:
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high)

    def grid(self, points: int) -> list[Value]:
        return [*_between(self.low, self.high, points)]


@dataclass(frozen=True)
class LogUniform(Space):
    """Positive numbers whose logarithm is uniform: `{log_uniform: [1e-5, 1e-2]}`.

    Example:
        >>> LogUniform(1e-4, 1e-2).grid(3)
        [0.0001, 0.001, 0.01]
    """

    kind: ClassVar[str] = "log_uniform"
    low: float
    high: float

    def __post_init__(self) -> None:
        if self.low <= 0:
            raise ConfigError(f"`log_uniform` needs positive bounds, got {[self.low, self.high]}")

    def distribution(self) -> Any:
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high, log=True)

    def grid(self, points: int) -> list[Value]:
        inner = [10.0**exponent for exponent in _between(math.log10(self.low), math.log10(self.high), points)[1:-1]]
        return [self.low, *inner, self.high] if points > 1 else [math.sqrt(self.low * self.high)]


@dataclass(frozen=True)
class Integer(Space):
    """Whole numbers from `low` to `high`, both included: `{int: [1, 4]}`.

    Example:
        >>> Integer(1, 10).grid(4), Integer(1, 3).grid(9)
        ([1, 4, 7, 10], [1, 2, 3])
    """

    kind: ClassVar[str] = "int"
    low: int
    high: int

    def distribution(self) -> Any:
        from optuna.distributions import IntDistribution

        return IntDistribution(self.low, self.high)

    def grid(self, points: int) -> list[Value]:
        return list(dict.fromkeys(round(value) for value in _between(self.low, self.high, points)))


@dataclass(frozen=True)
class Choice(Space):
    """One of several values, lists or components: `{choice: [[32, 32], [64, 64]]}`.

    Example:
        >>> Choice((relu := "relu", [32, 32])).grid(1), Choice(([32, 32],)).setting("[32, 32]")
        (['relu', '[32, 32]'], [32, 32])
    """

    kind: ClassVar[str] = "choice"
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        stored = [_stored(value) for value in self.values]
        if len({(type(value), value) for value in stored}) < len(stored):
            raise ConfigError(f"`choice` names a value twice: {list(self.values)}")
        for value in self.values:
            if spaces_in(value):
                raise ConfigError(f"a `choice` cannot hold further search spaces, got {value}; list the values it has")

    def distribution(self) -> Any:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution([_stored(value) for value in self.values])

    def grid(self, points: int) -> list[Value]:
        return [_stored(value) for value in self.values]

    def setting(self, stored: Any) -> Any:
        return next(copy.deepcopy(value) for value in self.values if _same(_stored(value), stored))


SPACES: dict[str, type[Space]] = {cls.kind: cls for cls in (Uniform, LogUniform, Integer, Choice)}


def spaces_in(settings: Any) -> dict[str, Space]:
    """The search spaces in plain settings, by path, in the order of the settings.

    Raises:
        ConfigError: a space without the bounds or values that it needs.

    Example:
        >>> spaces_in({"trainer": {"optimizer": {"lr": {"log_uniform": [1e-5, 1e-2]}}}, "n_seeds": 1})
        {'trainer.optimizer.lr': LogUniform(low=1e-05, high=0.01)}
    """
    return {".".join(map(str, path)): space for path, space in _walk(settings, ())}


def filled(settings: Mapping[str, Any], spaces: Mapping[str, Space], stored: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of one trial: every space replaced by the value that the study stores for its path.

    Example:
        >>> settings = {"network": {"hidden": {"choice": [[8], [16]]}}}
        >>> filled(settings, spaces_in(settings), {"network.hidden": "[16]"})
        {'network': {'hidden': [16]}}
    """
    result = copy.deepcopy(dict(settings))
    for path, space in spaces.items():
        *parents, last = path.split(".")
        node: Any = result
        for name in parents:
            node = node[int(name)] if isinstance(node, list) else node[name]
        node[int(last) if isinstance(node, list) else last] = space.setting(stored[path])
    return result


def corners(spaces: Mapping[str, Space]) -> list[dict[str, Value]]:
    """Parameters that show every bound and every choice at least once, the others at their first value."""
    first = {path: space.grid(2)[0] for path, space in spaces.items()}
    others = [{**first, path: value} for path, space in spaces.items() for value in space.grid(2)[1:]]
    return [first, *others]


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """As many last parts of each path as tell it from the others: for tables and charts.

    Example:
        >>> short_names(["network.hidden", "trainer.optimizer.lr", "transforms.0.limit", "transforms.1.limit"])
        {'network.hidden': 'hidden', 'trainer.optimizer.lr': 'lr', 'transforms.0.limit': '0.limit', \
'transforms.1.limit': '1.limit'}
    """
    every = list(paths)

    def ending(path: str, n: int) -> str:
        return ".".join(path.split(".")[-n:])

    def shortest(path: str) -> str:
        n = 1
        while ending(path, n) != path and sum(ending(other, n) == ending(path, n) for other in every) > 1:
            n += 1
        return ending(path, n)

    return {path: shortest(path) for path in every}


def _walk(node: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Space]]:
    if isinstance(node, Mapping):
        kind = next(iter(node)) if len(node) == 1 else None
        if kind in SPACES:
            yield path, _space(str(kind), node[kind], ".".join(map(str, path)))
            return
        for key, value in node.items():
            yield from _walk(value, (*path, key))
    elif isinstance(node, (list, tuple)):
        for place, value in enumerate(node):
            yield from _walk(value, (*path, place))


def _space(kind: str, given: Any, path: str) -> Space:
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) < 2:
        raise ConfigError(f"{path}: `{kind}` needs a list of {_wanted(kind)}, got {given!r}")
    try:
        if kind == "choice":
            return Choice(tuple(given))
        number = int if kind == "int" else (int, float)
        if len(given) != 2 or not all(isinstance(bound, number) and not isinstance(bound, bool) for bound in given):
            raise ConfigError(f"`{kind}` needs {_wanted(kind)}, got {given}")
        if not -math.inf < given[0] < given[1] < math.inf:
            raise ConfigError(f"`{kind}` needs a finite low bound below a finite high one, got {given}")
        return SPACES[kind](*(given if kind == "int" else map(float, given)))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _wanted(kind: str) -> str:
    return {"choice": "two values or more", "int": "two whole numbers, low and high"}.get(
        kind, "two numbers, low and high"
    )


def _between(low: float, high: float, points: int) -> list[float]:
    """Evenly spaced numbers with both ends; the middle for a single one."""
    if points == 1:
        return [(low + high) / 2]
    return [low, *(low + (high - low) * i / (points - 1) for i in range(1, points - 1)), high]


def _stored(value: Any) -> Value:
    """Optuna's categories are plain values: a list or a component is stored as its JSON."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else json.dumps(value)


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and a == b
