"""Which method a calibration uses, and the options that it heeds: what it would not heed is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from qfml.calibration.fit_options import flag_option
from qfml.errors import ConfigError

__all__ = ["check_options", "chosen_method"]

METHODS = ("exact", "neural", "inverse", "polished")
LARGEST_SEED = 2**63 - 1  # that every generator takes


def chosen_method(method: Any, *, surrogate: bool, inverse: bool) -> str:
    """The method that is meant, given which networks there are.

    Raises:
        ConfigError: no such method, or one that needs another network.

    >>> chosen_method(None, surrogate=False, inverse=True)
    'polished'
    """
    networks = surrogate or inverse
    if method is None:
        return "polished" if networks else "exact"
    if method not in METHODS:
        raise ConfigError(f"`method` must be one of {', '.join(METHODS)}, got {method!r}")
    if method == "neural" and not surrogate:
        raise ConfigError("the method 'neural' needs a `surrogate`: a trained network that gives the model's vols")
    if method == "inverse" and surrogate:
        raise ConfigError(
            "the method 'inverse' uses no surrogate; leave out `surrogate`, or take 'neural' or 'polished'"
        )
    if method == "inverse" and not inverse:
        raise ConfigError("the method 'inverse' needs `inverse`: a trained `InverseMap`")
    if method == "polished" and not networks:
        raise ConfigError("the method 'polished' starts from a network: give `surrogate` or `inverse`")
    if method == "exact" and networks:
        raise ConfigError("the method 'exact' uses no network; leave out `surrogate` and `inverse`, or the method")
    return method


def check_options(
    model: Any,
    method: str,
    options: Mapping[str, Any],
    *,
    inverse: bool = False,
    start: Any = None,
    warm: Any = False,
    smoothness: Any = 0.0,
) -> None:
    """Refuses what the method, or a model that is fitted by a search of its own, would not heed.

    Args:
        model: what is fitted; None where only a surrogate knows it.
        method: as `chosen_method` gives it.
        options: `n_starts`, `n_polished`, `max_steps`, `tolerance` and `seed`; None: as the method has it.
        inverse: whether an inverse map gives the starts.
        start: where the user starts, or None.
        warm: as `calibrate`.
        smoothness: as `calibrate`.

    Raises:
        ConfigError: such an option, or a value that it cannot have.

    >>> check_options(None, "exact", {"max_steps": 0})
    Traceback (most recent call last):
        ...
    qfml.errors.ConfigError: `max_steps` must be a whole number, 1 or more, got 0
    """
    flag_option("warm", warm)
    number = isinstance(smoothness, int | float) and not isinstance(smoothness, bool)
    if not number or not 0.0 <= smoothness < math.inf:
        raise ConfigError(f"`smoothness` must be a finite number, 0 or more, got {smoothness!r}")
    if hasattr(model, "fit_surfaces"):
        if method != "exact":
            raise ConfigError(f"{model.kind} is fitted exactly, by itself; the method {method!r} does not apply")
        model.options({**options, "start": start, "warm": warm, "smoothness": smoothness})
    else:
        _check_least_squares(method, options)
        _check_starts(method, options, inverse, start, warm)
        _check_days(method, warm, smoothness)


def _check_least_squares(method: str, options: Mapping[str, Any]) -> None:
    """Numbers that are what they are called."""
    for name in ("n_starts", "n_polished"):
        _whole(name, options.get(name), 1)
    _whole("max_steps", options.get("max_steps"), 0 if method == "inverse" else 1)
    _whole("seed", options.get("seed"), 0, LARGEST_SEED)
    tolerance = options.get("tolerance")
    if tolerance is not None and not (isinstance(tolerance, int | float) and 0.0 < tolerance < 1.0):
        raise ConfigError(f"`tolerance` must be a number between 0 and 1, such as 1e-10, got {tolerance!r}")


def _check_starts(method: str, options: Mapping[str, Any], inverse: bool, start: Any, warm: bool) -> None:
    """One thing only gives the starts."""
    if inverse and start is not None:
        raise ConfigError("the inverse map reads the parameters off the quotes and starts nowhere: leave out `start`")
    giver = "`start`" if start is not None else "the inverse map" if inverse else None
    for name in ("n_starts", "n_polished"):
        if giver is not None and options.get(name) is not None:
            raise ConfigError(f"`{name}` is of a search for starts, and {giver} gives the start: leave out one of them")
    if warm and giver is not None:
        raise ConfigError(f"`warm` starts each day from the one before, and {giver} gives its start: leave out one")
    if warm and method == "polished":
        raise ConfigError("`warm` starts each day from the one before, 'polished' from a network: leave out one")


def _check_days(method: str, warm: bool, smoothness: float) -> None:
    """One thing only ties the days together."""
    if warm and smoothness:
        raise ConfigError("`warm` goes through the days one by one, `smoothness` solves them together; choose one")
    if smoothness and method == "inverse":
        raise ConfigError(
            "the method 'inverse' answers for each day by itself, `smoothness` solves all days together: take the "
            "method 'polished'"
        )


def _whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if value is not None and (not whole or value < least or (most is not None and value > most)):
        rule = f"{least} or more" if most is None else f"from {least} to {most}"
        raise ConfigError(f"`{name}` must be a whole number, {rule}, got {value!r}")
