"""Models, markets and contracts of `pricers` as plain settings, and back: what a config names by its `kind`."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

from torch import Tensor

import pricers as pr
from qfml.config import contract_in_years
from qfml.errors import ConfigError

__all__ = ["built", "settings_of"]

INSIDE: dict[str, type] = {  # arguments that are objects themselves
    "rate": pr.ZeroCurve,
    "dividend_yield": pr.ZeroCurve,
    "dividends": pr.CashDividends,
    "xi": pr.ForwardVarianceCurve,
    "surface": pr.VolSurface,
}


def built(what: str, value: Any, registry: Mapping[str, type]) -> Any:
    """The object that settings name by `kind` in `registry`; an object passes through.

    An argument `kind` beside the registered one, as a barrier has, is called by both: `barrier_kind`. Dates may
    be durations such as "30D".

    Args:
        what: its place in the config, for messages.
        value: settings, or an object of one of the classes.
        registry: classes by `kind`.

    Raises:
        ConfigError: an unknown `kind` or key, a key that is missing, a value that breaks its rule.

    Example:
        >>> built("model", {"kind": "black_scholes", "vol": 0.2}, pr.MODELS).vol.item()
        0.2
    """
    if isinstance(value, tuple(registry.values())):
        return value
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if not isinstance(kind, str) or kind not in registry:
        raise ConfigError(f"{what} must have a `kind`, one of: {', '.join(sorted(registry))}, got {value!r}")
    return _made(what, registry[kind], {key: item for key, item in value.items() if key != "kind"})


def settings_of(value: Any) -> Any:
    """The settings that `built` makes an object of `pricers` of, as plain types; what is plain stays.

    Example:
        >>> settings_of(pr.European(1.0, 0.5, "put"))
        {'kind': 'european', 'strike': 1.0, 'expiry': 0.5, 'option': 'put'}
    """
    if isinstance(value, Tensor):
        return value.tolist()
    if not is_dataclass(value) or isinstance(value, type):
        return value
    cls = type(value)
    kind = vars(cls).get("kind")
    named = {name: settings_of(getattr(value, argument)) for name, argument in _arguments(cls).items()}
    return ({"kind": kind} if isinstance(kind, str) else {}) | named


def _arguments(cls: type) -> dict[str, str]:
    """Arguments of a class by the names that settings use."""
    own = list(inspect.signature(cls).parameters)
    return {f"{vars(cls)['kind']}_kind" if name == "kind" else name: name for name in own}


def _made(what: str, cls: type, settings: Mapping[str, Any]) -> Any:
    arguments = _arguments(cls)
    for key in settings:
        if key not in arguments:
            close = difflib.get_close_matches(key, arguments, n=1)
            hint = f" (did you mean `{close[0]}`?)" if close else ""
            raise ConfigError(f"{what}: unknown key `{key}`{hint}; {cls.__name__} has: {', '.join(arguments)}")
    settings = contract_in_years(what, settings)
    values = {
        arguments[key]: _made(f"{what}.{key}", INSIDE[key], item) if isinstance(item, Mapping) else item
        for key, item in settings.items()
    }
    signature = inspect.signature(cls).parameters
    missing = [key for key, name in arguments.items() if name not in values and _required(signature[name])]
    if missing:
        raise ConfigError(f"{what}: {cls.__name__} needs {', '.join(f'`{key}`' for key in missing)}")
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"{what}: {error}") from None


def _required(parameter: inspect.Parameter) -> bool:
    return parameter.default is inspect.Parameter.empty
