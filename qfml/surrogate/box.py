"""The box of a surrogate: ranges of coordinates, and what each coordinate is a field of."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qfml.config import years_of
from qfml.errors import ConfigError

__all__ = ["STRIKE_COORDINATES", "Coordinate", "Range", "argument_names", "nearest", "resolved"]

SCALES = ("linear", "log")
OWNERS = ("instrument", "model", "market")
STRIKE_COORDINATES = ("log_moneyness", "standard_moneyness", "delta")  # each stands for the instrument's `strike`


@dataclass(frozen=True)
class Range:
    """Where a coordinate lies, and on which scale its points are even.

    Args:
        low: lower end, in the natural unit of the coordinate; of a time also a duration such as "7D".
        high: upper end, above `low`.
        scale: "linear", or "log" for a coordinate that is above 0.

    Raises:
        ConfigError: an end that is no finite number, `low` not below `high`, "log" with `low` not above 0.

    >>> Range("73D", "3Y", scale="log")
    Range(low=0.2, high=3.0, scale='log')
    """

    low: Any
    high: Any
    scale: str = "linear"
    of_time: bool = field(default=False, init=False, repr=False, compare=False)  # an end was given as a duration

    def __post_init__(self) -> None:
        object.__setattr__(self, "of_time", isinstance(self.low, str) or isinstance(self.high, str))
        for name in ("low", "high"):
            value = years_of(name, getattr(self, name))
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ConfigError(f"`{name}` must be a finite number, got {value!r}")
            object.__setattr__(self, name, float(value))
        if self.scale not in SCALES:
            raise ConfigError(f"`scale` must be one of linear, log, got {self.scale!r}")
        if not self.low < self.high:
            raise ConfigError(
                f"`low` must be below `high`, got {self.low:g} and {self.high:g}; "
                "what does not vary is no coordinate: fix it in `model`, `instrument` or `market`"
            )
        if self.scale == "log" and float(self.low) <= 0.0:
            raise ConfigError(f"`scale: log` needs `low` above 0, got {self.low:g}; use scale: linear")


@dataclass(frozen=True)
class Coordinate:
    """One axis of the box.

    Args:
        name: as the settings write it.
        owner: "instrument", "model" or "market".
        argument: which argument of the owner it is, or one of `STRIKE_COORDINATES`.
    """

    name: str
    owner: str
    argument: str

    @property
    def is_strike(self) -> bool:
        """Whether it tells one strike from another: all other coordinates are the law's."""
        return self.owner == "instrument" and self.argument in ("strike", *STRIKE_COORDINATES)

    @property
    def input(self) -> str:
        """The name of the column of inputs that it becomes."""
        return "log_moneyness" if self.argument in STRIKE_COORDINATES else self.name


def argument_names(cls: type) -> dict[str, inspect.Parameter]:
    """Arguments of a class of `pricers` by the names that settings use.

    An argument `kind` beside the registered one (as a barrier has) is called by both: `barrier_kind`.
    """
    arguments = list(inspect.signature(cls).parameters.values())
    own = {argument.name: argument for argument in arguments}
    if "kind" in own:
        registered = vars(cls)["kind"]  # the default of the field, under which the class is registered
        own = {f"{registered}_kind" if name == "kind" else name: argument for name, argument in own.items()}
    return own


def resolved(name: str, known: Mapping[str, Mapping[str, Any]]) -> Coordinate:
    """The coordinate that a name of the box stands for: a field of model, instrument or market.

    Args:
        name: `argument`, or `owner.argument`.
        known: names of the arguments of each owner.

    Raises:
        ConfigError: an unknown name, or one that several owners have.
    """
    owner, dot, argument = name.partition(".")
    if dot:
        if owner not in known or argument not in known[owner]:
            raise ConfigError(f"box.{name} is not known{nearest(name, _full_names(known))}; {_listed(known)}")
        return Coordinate(name, owner, argument)
    owners = [owner for owner in OWNERS if name in known[owner]]
    if not owners:
        every = [argument for arguments in known.values() for argument in arguments]
        raise ConfigError(f"box.{name} is not known{nearest(name, every)}; {_listed(known)}")
    if len(owners) > 1:
        ways = " or ".join(f"`{owner}.{name}`" for owner in owners)
        raise ConfigError(f"box.{name} is ambiguous, for {' and '.join(owners)} have it: write {ways}")
    return Coordinate(name, owners[0], name)


def nearest(name: str, names: Any) -> str:
    """A hint at the name that was meant, or nothing."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean `{close[0]}`?)" if close else ""


def _full_names(known: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [f"{owner}.{argument}" for owner, arguments in known.items() for argument in arguments]


def _listed(known: Mapping[str, Mapping[str, Any]]) -> str:
    return "; ".join(f"{owner} has {', '.join(arguments)}" for owner, arguments in known.items())
