"""Settings of the right kind: what a wrong one is called, before it fails as something else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

from qfml.errors import ConfigError
from qfml.hedging.book import Book

__all__ = ["check_book", "check_each", "check_names", "check_number", "check_numbers", "is_number"]


def is_number(value: Any) -> bool:
    """Whether it is a real number; true and false are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_number(name: str, value: Any) -> None:
    """Raise ConfigError unless the setting is a number."""
    if not is_number(value):
        raise ConfigError(f"`{name}` must be a number, got {value!r}")


def check_numbers(name: str, given: Any) -> None:
    """Raise ConfigError unless the setting is a sequence, or an array, of numbers."""
    check_each(name, given.tolist() if hasattr(given, "tolist") else given, is_number, "numbers, such as (0.1, 0.2)")


def check_names(name: str, given: Any) -> None:
    """Raise ConfigError unless the setting is a sequence of names: one text alone would be taken letter by letter."""
    check_each(name, given, lambda one: isinstance(one, str), "names, such as ('log_moneyness', 'time_to_horizon')")


def check_each(name: str, given: Any, fits: Callable[[Any], bool], what: str) -> None:
    """Raise ConfigError unless the setting is a sequence in which each part fits; `what` they must be."""
    whole = f"`{name}` must be a sequence of {what}"
    if isinstance(given, str | Mapping) or not hasattr(given, "__iter__"):
        raise ConfigError(f"{whole}, got {given!r}; write one alone with a comma, (a,)")
    if bad := [one for one in given if not fits(one)]:
        raise ConfigError(f"{whole}, got {bad[0]!r} among them")


def check_book(book: Any) -> None:
    """Raise ConfigError unless it is a book."""
    if not isinstance(book, Book):
        raise ConfigError(f"`book` must be a Book, such as Book(((1.0, contract),)), got {book!r}")
