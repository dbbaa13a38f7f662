"""Models that are fitted by a search of their own, expiry by expiry or surface by surface: one way to ask them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from qfml.calibration.surface import Surface
from qfml.errors import ConfigError

__all__ = ["FitOptions", "SurfaceFitter", "count_option", "flag_option", "of_one"]

# options of `calibrate` that none of these models has: what stands for "not asked for", and the way out
REFUSED: dict[str, tuple[Any, str]] = {
    "n_polished": (None, "each of its `n_starts` is followed to the end: give `n_starts`"),
    "start": (None, "its starts are read off the quotes: leave it out"),
    "warm": (False, "each day is fitted by itself: leave it out, or take heston or bates"),
    "smoothness": (0.0, "each day is fitted by itself: leave it out, or take heston or bates"),
    "surrogate": (None, "it is fitted exactly: leave it out"),
    "inverse": (None, "it is fitted exactly: leave it out"),
}


@dataclass(frozen=True)
class FitOptions:
    """How the least squares of one problem goes about it.

    Args:
        n_starts: the most promising so many of the model's starts, each followed to the end.
        max_steps: from each start.
        tolerance: relative, see `least_squares`.
    """

    n_starts: int
    max_steps: int
    tolerance: float = 1e-10

    def changed(self, kind: str, most_starts: int, given: Mapping[str, Any]) -> FitOptions:
        """With the options that are not None.

        Raises:
            ConfigError: one that the model `kind` does not have or cannot take.

        >>> FitOptions(2, 100).changed("sabr", 20, {"max_steps": 7, "tolerance": None})
        FitOptions(n_starts=2, max_steps=7, tolerance=1e-10)
        """
        known = {name: value for name, value in given.items() if value is not None}
        for name in ("n_starts", "max_steps"):
            if name in known:
                count_option(name, known[name])
        if known.get("n_starts", 1) > most_starts:
            raise ConfigError(
                f"`n_starts` of {kind} must be at most {most_starts}, the starts that it has, got {known['n_starts']}"
            )
        tolerance = known.get("tolerance", self.tolerance)
        number = isinstance(tolerance, int | float) and not isinstance(tolerance, bool)
        if not number or not 0.0 < tolerance < 1.0:
            raise ConfigError(f"`tolerance` must be a number between 0 and 1, such as 1e-10, got {tolerance!r}")
        return replace(self, **known)


class SurfaceFitter(ABC):
    """A model that fits surfaces by itself: it has `fit_surfaces` in place of vols and derivatives.

    A subclass says what its search can be told (`usual`; None: nothing) and fits.
    """

    kind: ClassVar[str]
    usual: ClassVar[Any]  # FitOptions, or None
    most_starts: ClassVar[int] = 1

    def fit_surfaces(self, surfaces: Sequence[Surface], *, single: bool | None = None, **options: Any) -> Any:
        """Calibrate to each surface; one that cannot be fitted leaves the others alone.

        Args:
            surfaces: one or more.
            single: leave out the axis of surfaces; None does so for one surface.
            **options: `n_starts`, `max_steps` and `tolerance`, see `FitOptions`; None for what is usual for the model.
                A `seed` may be given and changes nothing, as nothing is random.

        Raises:
            ConfigError: an option that the model does not have or cannot take.
            DataError: surfaces without quotes.
        """
        surfaces = tuple(surfaces)
        result = self.calibrated(surfaces, self.options(options))
        return self.alone(result) if (len(surfaces) == 1 if single is None else single) else result

    @classmethod
    def options(cls, given: Mapping[str, Any]) -> Any:
        """What the options say of the search; None where the model has none to be told.

        Raises:
            ConfigError: as `fit_surfaces`.
        """
        own = dict(given)
        own.pop("seed", None)
        for name, (off, way_out) in REFUSED.items():
            value = own.pop(name, None)
            if not (value is None or (isinstance(value, bool | int | float) and value == off)):
                raise ConfigError(f"`{name}` does not apply to {cls.kind}: {way_out}")
        unknown = [name for name in own if name not in FitOptions.__dataclass_fields__]
        if unknown:
            names = ", ".join(FitOptions.__dataclass_fields__)
            raise ConfigError(f"`{unknown[0]}` is no option of {cls.kind}; there are {names}")
        if cls.usual is not None:
            return cls.usual.changed(cls.kind, cls.most_starts, own)
        asked = [name for name, value in own.items() if value is not None]
        if asked:
            raise ConfigError(
                f"`{asked[0]}` does not apply to {cls.kind}: its interior-point method has one start and its own "
                "end; leave it out"
            )
        return None

    @classmethod
    def alone(cls, result: Any) -> Any:
        """The result of one surface."""
        return of_one(result)

    @abstractmethod
    def calibrated(self, surfaces: tuple[Surface, ...], options: Any) -> Any:
        """The fits, with the axis of surfaces."""


def of_one(result: Any) -> Any:
    """A dataclass of results without its axis of surfaces."""

    def first(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value[0]
        return {name: one[0] for name, one in value.items()} if isinstance(value, dict) else value

    parts = {name: first(value) for name, value in vars(result).items()}
    return replace(result, **parts | {"status": result.status[0], "warnings": result.warnings[0]})


def count_option(name: str, value: Any) -> int:
    """A whole number of 1 or more.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < math.inf:
        raise ConfigError(f"`{name}` must be a whole number, 1 or more, got {value!r}")
    return value


def flag_option(name: str, value: Any) -> None:
    """True or False.

    Raises:
        ConfigError: it is neither: a word such as "no" would count as true.
    """
    if not isinstance(value, bool):
        raise ConfigError(f"`{name}` must be true or false, got {value!r}")
