"""The mechanism of configuration: YAML -> frozen dataclasses, strictly, and back to a canonical form with a hash.

The component *is* its config: a frozen dataclass whose fields are the YAML keys. Where one of several may stand, the
field is annotated with `OneOf(REGISTRY)` and the YAML names the choice with `kind:`. A registry is a plain dict, so a
user's own class becomes available in YAML by `REGISTRY[MyClass.kind] = MyClass` before the config is read. A config
only ever names registered classes; nothing in it is imported or executed.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
import difflib
import hashlib
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml
from pydantic_core import core_schema

from qfml.errors import ConfigError

T = TypeVar("T")
Registry = Mapping[str, type]

_TEMPORAL = (datetime.date, datetime.time)  # a datetime is a date
DAYS = {"D": 1.0, "W": 7.0}
MONTHS = {"M": 1.0, "Y": 12.0}
DATED = ("expiry", "reset", "times", "monitoring")  # dates of contracts
DURATION = re.compile(r"^([0-9]+(?:\.[0-9]+)?)([DWMY])$")


class OneOf:
    """Marks a dataclass field that holds one component of a registry: `Annotated[Splitter, OneOf(SPLITTERS)]`."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(lambda value: build_kind(self.registry, value))


class Section:
    """Marks a nested section without a choice of kinds, also inside a container: `Annotated[Data, Section(Data)]`."""

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
    if not isinstance(kind, str) or kind not in registry:
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
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # pyright: ignore[reportArgumentType]
    kind = getattr(cls, "kind", None)
    if kind is not None and "kind" not in fields and value.get("kind") == kind:
        value = {key: item for key, item in value.items() if key != "kind"}  # `to_dict` writes it
    for key in value:
        if key not in fields:
            raise ConfigError(f"unknown key `{key}`{_nearest(key, fields)}; {cls.__name__} has: {', '.join(fields)}")
    missing = [f"`{name}`" for name, field in fields.items() if name not in value and _is_required(field)]
    if missing:
        raise ConfigError(f"{cls.__name__} needs {', '.join(missing)}")
    hints = typing.get_type_hints(cls, include_extras=True)
    settings = {key: _checked(key, hints[key], item) for key, item in value.items()}
    try:
        return cls(**settings)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _checked(key: str, hint: Any, item: Any) -> Any:
    """The setting `item` as the type of its field; a bare dataclass is read as a nested section."""
    try:
        if _is_bare_dataclass(hint):
            return build(hint, item)
        _refuse_inner_dataclasses(key, hint)
        made = pydantic.TypeAdapter(hint, config=_adapter_config(hint)).validate_python(item)
    except pydantic.ValidationError as error:
        raise ConfigError(_explain(key, item, error)) from None
    except ConfigError as error:
        raise ConfigError(_under(key, error)) from None
    place = _coerced(item, made)
    if place is not None:
        path, given, type_name = place
        raise ConfigError(f"{'.'.join((key, *path))}: expected a value of type {type_name}, got {given!r}")
    return made


def _coerced(given: Any, made: Any) -> tuple[tuple[str, ...], Any, str] | None:
    """The first place where pydantic read a text as a number, a truth value as a number, or a number as a date.

    Its strict mode would refuse these, but also a YAML list for a tuple and a text for a path or a date.
    """
    if isinstance(given, Mapping) and isinstance(made, Mapping):
        pairs = [(str(key), given[key], made[key]) for key in given if key in made]
    elif isinstance(given, (list, tuple)) and isinstance(made, (list, tuple)):
        pairs = [(str(i), *pair) for i, pair in enumerate(zip(given, made))]
    else:
        as_number = isinstance(made, (bool, int, float)) and (
            isinstance(given, (str, bytes)) or isinstance(given, bool) != isinstance(made, bool)
        )
        as_date = isinstance(given, (bool, int, float)) and isinstance(made, (*_TEMPORAL, datetime.timedelta))
        return ((), given, type(made).__name__) if as_number or as_date else None
    for name, inner_given, inner_made in pairs:
        place = _coerced(inner_given, inner_made)
        if place is not None:
            return (name, *place[0]), *place[1:]
    return None


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
    if isinstance(component, _TEMPORAL):
        return component.isoformat()
    raise TypeError(f"{type(component).__name__} cannot be written into a config")


def config_hash(settings: Any) -> str:
    """The first 16 hex digits of the SHA-256 of the canonical JSON of a component or of plain settings."""
    canonical = json.dumps(to_dict(settings), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def years_of(name: str, value: Any) -> Any:
    """Years of a duration such as "7D", "2W", "6M" or "3Y" (365 days or 12 months a year); no text: as it is.

    Raises:
        ConfigError: a text of another form.

    >>> years_of("expiry", "73D"), years_of("expiry", "18M"), years_of("expiry", 0.5)
    (0.2, 1.5, 0.5)
    """
    if not isinstance(value, str):
        return value
    match = DURATION.match(value)
    if match is None:
        raise ConfigError(f"`{name}` must be a number of years or a duration such as 7D, 2W, 6M or 3Y, got {value!r}")
    count, unit = float(match[1]), match[2]
    return count * DAYS[unit] / 365.0 if unit in DAYS else count * MONTHS[unit] / 12.0


def contract_in_years(what: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a contract with durations as years, `what` it is called in messages; other texts stay.

    >>> contract_in_years("instrument", {"kind": "asian", "times": ["73D", 1.0], "option": "call"})
    {'kind': 'asian', 'times': [0.2, 1.0], 'option': 'call'}
    """
    found = dict(settings)
    for name in DATED:
        value = found.get(name)
        if isinstance(value, (list, tuple)):
            found[name] = [years_of(f"{what}.{name}", item) for item in value]
        elif isinstance(value, str) and value != "continuous":
            found[name] = years_of(f"{what}.{name}", value)
    return found


# YAML 1.2's plain scalars. PyYAML follows YAML 1.1, where `1e-3` is a text, the tickers ON and NO are truth values,
# 09:30 is the number 570 and the code 000012 is 10. A date stays a text until a field asks for a date.
_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(?:0|[1-9][0-9]*|[1-9][0-9]{0,2}(?:_[0-9]{3})+)|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
_PLAIN_TAGS = [f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")]


class _Loader(yaml.SafeLoader):
    """SafeLoader that knows the plain types only, reads scalars by YAML 1.2 and refuses a key that is given twice."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  (PyYAML's own class attribute)
    yaml_constructors = {  # noqa: RUF012  (PyYAML's own class attribute)
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag in (*_PLAIN_TAGS, None)  # None: the one that refuses every other tag
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # not hashable: refused by the constructor
            key = (key_node.tag, key_node.value)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise ConfigError(f"the key `{key_node.value}` stands twice, again in line {line}")
            seen.add(key)
        return node


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what `_Loader` would not read back as the same text."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  (PyYAML's own class attribute)


for _name, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first)


def _parse_yaml(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506  (derived from SafeLoader)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{origin} is not valid YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{origin} is nested too deeply") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file into plain types; nothing in it is executed."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no config file at {path}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}") from None
    settings = _parse_yaml(text, str(path))
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, got {settings!r}")
    return settings


def write_yaml(settings: Mapping[str, Any], path: str | Path) -> None:
    """Write plain settings as YAML, keys in their given order."""
    text = yaml.dump(dict(settings), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    Path(path).write_text(text, encoding="utf-8")


def override(settings: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Apply `a.b.0.c=value` assignments (values in YAML) to plain settings; returns a new mapping."""
    result = copy.deepcopy(settings)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not all(path.split(".")):
            raise ConfigError(f"`--set {assignment}` must read key.key=value")
        *parents, last = path.split(".")
        node: Any = result
        for name in parents:
            node = _child(node, name, assignment)
        value = _parse_yaml(text, f"`--set {assignment}`")
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
    if not name.isdecimal() or int(name) >= len(node):
        raise ConfigError(f"`--set {assignment}`: `{name}` is not a position in a list of {len(node)}")
    return int(name)


def _nearest(name: object, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(names), n=1)
    return f" (did you mean `{close[0]}`?)" if close else ""


def _under(key: str, error: ConfigError) -> str:
    """Prefix the message of a nested error with its key, so that it reads `a.b.c: ...`."""
    message = str(error)
    match = re.match(r"^([\w.\[\]]+): ", message)
    return f"{key}.{message}" if match else f"{key}: {message}"


def _explain(key: str, item: Any, error: pydantic.ValidationError) -> str:
    """One sentence for the first offending place; a union reports each of its branches, joined by `or`."""
    problems: dict[str, list[str]] = {}
    inputs: dict[str, Any] = {}
    for problem in error.errors():
        place = ".".join((key, *_path(item, problem["loc"])))
        # an error raised by a nested OneOf or Section arrives as a "value_error" with our own message
        if problem["type"] == "value_error":
            return _under(place, ConfigError(problem["msg"].removeprefix("Value error, ")))
        problems.setdefault(place, []).append(problem["msg"])
        inputs.setdefault(place, problem["input"])
    place = next(iter(problems))
    return f"{place}: {' or '.join(dict.fromkeys(problems[place]))}, got {inputs[place]!r}"


def _path(item: Any, loc: tuple[int | str, ...]) -> list[str]:
    """The parts of pydantic's `loc` that lead into `item`; the others only name branches of the type."""
    path: list[str] = []
    part: Any  # a key or a position, as `item` is a mapping or a sequence
    for part in loc:
        is_key = isinstance(item, Mapping) and part in item
        is_position = isinstance(item, (list, tuple)) and isinstance(part, int) and part < len(item)
        if is_key or is_position:
            item = item[part]
            path.append(str(part))
    return path


def _is_bare_dataclass(hint: Any) -> bool:
    return isinstance(hint, type) and not isinstance(hint, types.GenericAlias) and dataclasses.is_dataclass(hint)


def _refuse_inner_dataclasses(key: str, hint: Any) -> None:
    """Inside a container pydantic would read a dataclass by its own rules and ignore the keys it does not know."""
    if typing.get_origin(hint) is typing.Annotated:
        inner, *marks = typing.get_args(hint)
        if any(isinstance(mark, (OneOf, Section)) for mark in marks):
            return
        hints = (inner,)
    else:
        hints = typing.get_args(hint)
    for inner in hints:
        if _is_bare_dataclass(inner):
            raise TypeError(f"the field `{key}` must say Annotated[{inner.__name__}, Section({inner.__name__})]")
        _refuse_inner_dataclasses(key, inner)


def _adapter_config(hint: Any) -> pydantic.ConfigDict | None:
    """pydantic refuses a config on top of a dataclass; everything else must accept our protocols as they are."""
    bare = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint
    return None if _is_bare_dataclass(bare) else pydantic.ConfigDict(arbitrary_types_allowed=True)
