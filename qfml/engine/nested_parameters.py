"""The fields of frozen dataclasses within dataclasses, by names with two underscores, as scikit-learn writes them."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from qfml.errors import UserError


def nested_fields(component: Any) -> dict[str, Any]:
    """The fields of a dataclass by name, and those of the dataclasses in it after two underscores.

    Example:
        >>> from qfml.engine import Trainer
        >>> fields = nested_fields(Trainer(max_epochs=5, batch_size=32))
        >>> fields["max_epochs"], fields["optimizer__lr"]
        (5, 0.001)
    """
    found: dict[str, Any] = {}
    if not _is_component(component):
        return found
    for field in dataclasses.fields(component):
        value = getattr(component, field.name)
        found[field.name] = value
        found |= {f"{field.name}__{name}": inner for name, inner in nested_fields(value).items()}
    return found


def rebuilt(component: Any, changes: Mapping[str, Any]) -> Any:
    """A copy of a frozen dataclass with some of its `nested_fields` changed, all at once.

    Example:
        >>> from qfml.engine import Trainer
        >>> trainer = rebuilt(Trainer(max_epochs=5, batch_size=32), {"max_epochs": 9, "optimizer__lr": 0.1})
        >>> trainer.max_epochs, trainer.optimizer.lr
        (9, 0.1)
    """
    own: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = defaultdict(dict)
    known = [field.name for field in dataclasses.fields(component)] if _is_component(component) else []
    for name, value in changes.items():
        first, within, rest = name.partition("__")
        if first not in known:
            raise UserError(f"{component!r} has no field `{first}`; it has: {', '.join(known) or 'none'}")
        if within:
            inner[first][rest] = value
        else:
            own[first] = value
    for first, nested in inner.items():
        own[first] = rebuilt(own.get(first, getattr(component, first)), nested)
    return dataclasses.replace(component, **own)


def _is_component(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)
