"""The mechanism of configuration: YAML -> frozen dataclasses, strictly, and back to a canonical form with a hash.

The component *is* its config: a frozen dataclass whose fields are the YAML keys. Where one of several may stand, the
field is annotated with `OneOf(REGISTRY)` and the YAML names the choice with `kind:`. A registry is a plain dict, so a
user's own class becomes available in YAML by `REGISTRY[MyClass.kind] = MyClass` before the config is read. A config
only ever names registered classes; nothing in it is imported or executed.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml
from pydantic_core import core_schema

from qfml.errors import ConfigError

T = TypeVar("T")
Registry = Mapping[str, type]


class OneOf:
    """Marks a dataclass field that holds one component of a registry: `Annotated[Splitter, OneOf(SPLITTERS)]`."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(lambda value: build_kind(self.registry, value))


class Section:
    """Marks a dataclass field that holds a nested section without a choice of kinds: `Annotated[Data, Section(Data)]`."""

    def __init__(self, cls: type) -> None:
        self.cls = cls

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(lambda value: build(self.cls, value))


def build_kind(registry: Registry, value: Any) -> Any:
    """Build the component that `value["kind"]` names in `registry`; a ready-made component passes through."""
    if isinstance(value, tuple(registry.values())):
        return value
    choices = ", ".join(sorted(registry))
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, Mapping) or "kind" not in value:
        raise ConfigError(f"expected a mapping with a key `kind` (one of: {choices}), got {value!r}")
    kind = value["kind"]
    if kind not in registry:
        raise ConfigError(f"`kind: {kind}` is not known{_nearest(kind, registry)}; choose one of: {choices}")
    return build(registry[kind], {key: item for key, item in value.items() if key != "kind"})


def build(cls: type[T], value: Any) -> T:
    """Build the dataclass `cls` from a mapping; an unknown key, a missing key or a wrong type raises `ConfigError`."""
    if isinstance(value, cls):
        return value
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"expected a mapping of {cls.__name__} settings, got {value!r}")
    names = [field.name for field in dataclasses.fields(cls) if field.init]  # pyright: ignore[reportArgumentType]
    for key in value:
        if key not in names:
            raise ConfigError(f"unknown key `{key}`{_nearest(key, names)}; {cls.__name__} has: {', '.join(names)}")
    hints = typing.get_type_hints(cls, include_extras=True)
    settings: dict[str, Any] = {}
    for key, item in value.items():
        try:
            settings[key] = pydantic.TypeAdapter(hints[key], config=_adapter_config(hints[key])).validate_python(item)
        except pydantic.ValidationError as error:
            raise ConfigError(_explain(key, error)) from None
        except ConfigError as error:
            raise ConfigError(_under(key, error)) from None
    try:
        return cls(**settings)
    except TypeError as error:
        missing = [
            field.name
            for field in dataclasses.fields(cls)  # pyright: ignore[reportArgumentType]
            if field.init
            and field.name not in settings
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise ConfigError(f"{cls.__name__} needs {', '.join(f'`{name}`' for name in missing)}") from None
        raise error
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def to_dict(component: Any) -> Any:
    """The full settings of a component as plain JSON types, `kind` first; `build` reads them back."""
    if dataclasses.is_dataclass(component) and not isinstance(component, type):
        kind = getattr(component, "kind", None)
        settings = {"kind": kind} if isinstance(kind, str) else {}
        fields = (field for field in dataclasses.fields(component) if field.init)
        return settings | {field.name: to_dict(getattr(component, field.name)) for field in fields}
    if isinstance(component, Mapping):
        return {str(key): to_dict(item) for key, item in component.items()}
    if isinstance(component, (tuple, list)):
        return [to_dict(item) for item in component]
    if component is None or isinstance(component, (bool, int, float, str)):
        return component
    if isinstance(component, Path):
        return str(component)
    if hasattr(component, "isoformat"):
        return component.isoformat()
    raise TypeError(f"{type(component).__name__} cannot be written into a config")


def config_hash(settings: Any) -> str:
    """The first 16 hex digits of the SHA-256 of the canonical JSON of a component or of plain settings."""
    canonical = json.dumps(to_dict(settings), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads `1e-3` as a number (YAML 1.2) and refuses a key that is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise ConfigError(f"the key `{key}` stands twice, again in line {key_node.start_mark.line + 1}")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)$"), list("-+0123456789.")
)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file into plain types; nothing in it is executed."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no config file at {path}")
    try:
        settings = yaml.load(path.read_text(), _Loader)  # noqa: S506  (derived from SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, got {settings!r}")
    return settings


def write_yaml(settings: Mapping[str, Any], path: str | Path) -> None:
    """Write plain settings as YAML, keys in their given order."""
    Path(path).write_text(yaml.safe_dump(dict(settings), sort_keys=False))


def override(settings: dict[str, Any], assignments: typing.Iterable[str]) -> dict[str, Any]:
    """Apply `a.b.0.c=value` assignments (values in YAML) to plain settings; returns a new mapping."""
    result = json.loads(json.dumps(settings, default=str))
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise ConfigError(f"`--set {assignment}` must read key.key=value")
        *parents, last = path.split(".")
        node: Any = result
        for name in parents:
            node = _child(node, name, assignment)
        value = yaml.load(text, _Loader)  # noqa: S506  (derived from SafeLoader)
        if isinstance(node, list):
            node[_index(node, last, assignment)] = value
        elif isinstance(node, dict):
            node[last] = value
        else:
            raise ConfigError(f"`--set {assignment}`: `{'.'.join(parents)}` is a plain value and has no `{last}`")
    return result


def _child(node: Any, name: str, assignment: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, name, assignment)]
    if not isinstance(node, dict):
        raise ConfigError(f"`--set {assignment}`: a plain value has no `{name}`")
    if node.get(name) is None:
        node[name] = {}
    return node[name]


def _index(node: list[Any], name: str, assignment: str) -> int:
    if not name.isdigit() or int(name) >= len(node):
        raise ConfigError(f"`--set {assignment}`: `{name}` is not a position in a list of {len(node)}")
    return int(name)


def _nearest(name: object, names: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(names), n=1)
    return f" (did you mean `{close[0]}`?)" if close else ""


def _under(key: str, error: ConfigError) -> str:
    """Prefix the message of a nested error with its key, so that it reads `a.b.c: ...`."""
    message = str(error)
    match = re.match(r"^([\w.\[\]]+): ", message)
    return f"{key}.{message}" if match else f"{key}: {message}"


def _explain(key: str, error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in (key, *first["loc"]) if not str(part).startswith(("function-", "lax-or")))
    # an error raised by a nested OneOf/Section arrives as a "value_error" with our own message
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return _under(place, ConfigError(message))
    return f"{place}: {message}, got {first['input']!r}"


def _adapter_config(hint: Any) -> pydantic.ConfigDict | None:
    """pydantic refuses a config on top of a dataclass; everything else must accept our protocols as they are."""
    origin = typing.get_origin(hint)
    bare = typing.get_args(hint)[0] if origin is typing.Annotated else hint
    if isinstance(bare, type) and not isinstance(bare, types.GenericAlias) and dataclasses.is_dataclass(bare):
        return None
    return pydantic.ConfigDict(arbitrary_types_allowed=True)
