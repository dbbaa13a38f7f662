"""The strict config mechanism: what it reads, what it refuses and with which words, and that nothing is executed."""

import datetime
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from qfml.config import OneOf, Section, build, build_kind, config_hash, override, read_yaml, to_dict, write_yaml
from qfml.errors import ConfigError, UserError


@dataclass(frozen=True)
class Adam:
    kind: ClassVar[str] = "adam"
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ConfigError(f"`lr` must be positive, got {self.lr}")


@dataclass(frozen=True)
class Momentum:
    kind: ClassVar[str] = "momentum"
    lr: float = 0.1
    nesterov: bool = False


OPTIMIZERS: dict[str, type] = {cls.kind: cls for cls in (Adam, Momentum)}


@dataclass(frozen=True)
class Window:
    size: int | Literal["all"]
    start: datetime.date | None = None


@dataclass(frozen=True)
class Unmarked:
    plain: Window | None = None


@dataclass(frozen=True)
class Job:
    name: str
    epochs: int = 10
    size: int | str = "5Y"
    path: Path | None = None
    start: datetime.date | None = None
    shuffle: bool = True
    layers: tuple[int, ...] = (32, 32)
    levels: dict[str, float] = field(default_factory=dict)
    optimizer: Annotated[Any, OneOf(OPTIMIZERS)] = Momentum()
    fallbacks: tuple[Annotated[Any, OneOf(OPTIMIZERS)], ...] = ()
    second: Annotated[Any, OneOf(OPTIMIZERS)] | None = None
    window: Annotated[Window, Section(Window)] | None = None
    bare: Adam = Adam(lr=0.5)
    derived: int = field(init=False, default=7)


def message(function: Callable[..., Any], *args: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        function(*args)
    return str(caught.value)


def read(tmp_path: Path, text: str) -> dict[str, Any]:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return read_yaml(path)


# --- what is built ------------------------------------------------------------------------------------------------


def test_every_field_is_built_in_its_own_type():
    job = build(
        Job,
        {
            "name": "a",
            "epochs": 3,
            "size": 250,
            "path": "data/x.csv",
            "start": "2001-02-03",
            "shuffle": False,
            "layers": [8, 4],
            "levels": {"low": 1},
            "optimizer": {"kind": "adam", "lr": 1, "betas": [0.8, 0.99]},
            "fallbacks": ["momentum", {"kind": "adam", "lr": 0.1}],
            "window": {"size": "all"},
            "bare": {"lr": 2},
        },
    )
    assert job == Job(
        name="a",
        epochs=3,
        size=250,
        path=Path("data/x.csv"),
        start=datetime.date(2001, 2, 3),
        shuffle=False,
        layers=(8, 4),
        levels={"low": 1.0},
        optimizer=Adam(lr=1.0, betas=(0.8, 0.99)),
        fallbacks=(Momentum(), Adam(lr=0.1)),
        window=Window(size="all"),
        bare=Adam(lr=2.0),
    )
    assert type(job.optimizer.lr) is float
    assert type(job.levels["low"]) is float


def test_ready_made_components_pass_through_untouched():
    adam = Adam(lr=0.3)
    job = build(Job, {"name": "a", "optimizer": adam, "fallbacks": [adam]})
    assert job.optimizer is adam
    assert job.fallbacks[0] is adam
    assert build(Job, job) is job
    assert build_kind(OPTIMIZERS, adam) is adam


def test_a_class_registered_later_is_available_by_its_kind():
    registry: dict[str, type] = {"adam": Adam}
    assert "`kind: momentum` is not known" in message(build_kind, registry, "momentum")
    registry[Momentum.kind] = Momentum
    assert build_kind(registry, {"kind": "momentum", "lr": 0.7}) == Momentum(lr=0.7)


def test_an_empty_section_means_its_defaults():
    assert build(Momentum, None) == build(Momentum, {}) == Momentum()


# --- what is refused, in which words ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"name": "a", "epoch": 3}, "unknown key `epoch` (did you mean `epochs`?); Job has: name, epochs,"),
        ({"name": "a", "zzz": 3}, "unknown key `zzz`; Job has: name,"),
        ({"name": "a", "derived": 3}, "unknown key `derived`"),
        ({"name": "a", True: 3}, "unknown key `True`"),
        ({}, "Job needs `name`"),
        (
            {"name": "a", "optimizer": {"kind": "adan", "lr": 1}},
            "optimizer: `kind: adan` is not known (did you mean `adam`?)",
        ),
        ({"name": "a", "optimizer": {"kind": "adam"}}, "optimizer: Adam needs `lr`"),
        ({"name": "a", "optimizer": {"kind": "adam", "lrr": 1}}, "optimizer: unknown key `lrr` (did you mean `lr`?)"),
        ({"name": "a", "optimizer": {"kind": "adam", "lr": -1}}, "optimizer: `lr` must be positive, got -1.0"),
        ({"name": "a", "optimizer": {"kind": ["adam"]}}, "optimizer: `kind: ['adam']` is not known"),
        ({"name": "a", "optimizer": {"kind": None}}, "optimizer: `kind: None` is not known"),
        (
            {"name": "a", "optimizer": {"lr": 1}},
            "optimizer: expected a mapping with a key `kind` (one of: adam, momentum)",
        ),
        ({"name": "a", "optimizer": 5}, "optimizer: expected a mapping with a key `kind`"),
        ({"name": "a", "second": {"kind": "adam", "lr": "x"}}, "second.lr: "),
        ({"name": "a", "fallbacks": ["momentum", {"kind": "adam", "lr": "x"}]}, "fallbacks.1.lr: "),
        ({"name": "a", "fallbacks": [{"kind": "adam", "lr": 1, "betas": [0.9, "x"]}]}, "fallbacks.0.betas.1: "),
        ({"name": "a", "window": {"size": 5, "stop": 1}}, "window: unknown key `stop`"),
        ({"name": "a", "window": 3}, "window: expected a mapping of Window settings, got 3"),
        ({"name": "a", "bare": {"lr": 0}}, "bare: `lr` must be positive, got 0.0"),
        ({"name": "a", "bare": {"kind": "momentum", "lr": 1}}, "bare: unknown key `kind`"),
        ({"name": "a", "levels": {"low": "x"}}, "levels.low: "),
    ],
)
def test_messages_name_the_place_the_rule_and_the_nearest_name(settings, expected):
    assert expected in message(build, Job, settings)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", "3"),
        ("epochs", True),
        ("epochs", 2.5),
        ("epochs", None),
        ("epochs", [3]),
        ("shuffle", "yes"),
        ("shuffle", 1),
        ("name", 5),
        ("name", False),
        ("layers", [8, "4"]),
        ("layers", [8, True]),
        ("layers", 8),
        ("levels", {"low": True}),
        ("levels", [1.0]),
        ("start", 2001),
        ("start", "2001-13-45"),
        ("size", True),
        ("size", [1]),
        ("path", 3),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_and_shown(key, value):
    text = message(build, Job, {"name": "a", key: value})
    assert text.startswith(key)
    inner = value[-1] if key == "layers" and isinstance(value, list) else value
    inner = inner["low"] if isinstance(inner, dict) else inner
    assert repr(inner) in text


def test_a_union_reports_all_its_branches_without_pydantics_names():
    text = message(build, Job, {"name": "a", "size": [1]})
    assert text == "size: Input should be a valid integer or Input should be a valid string, got [1]"


def test_every_error_is_a_user_error():
    with pytest.raises(UserError):
        build(Job, {})


def test_a_dataclass_inside_a_container_without_a_mark_is_our_own_bug():
    # pydantic would read it by its own rules and ignore unknown keys
    with pytest.raises(TypeError, match=r"the field `plain` must say Annotated\[Window, Section\(Window\)\]"):
        build(Unmarked, {"plain": {"size": 3, "sise": 4}})


# --- YAML ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("-2E+4", -2e4),
        (".5e1", 5.0),
        ("1.", 1.0),
        ("+3", 3),
        ("65_536", 65536),
        ("0x1F", 31),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        # YAML 1.1 makes numbers, truth values and dates of these
        ("on", "on"),
        ("ON", "ON"),
        ("NO", "NO"),
        ("yes", "yes"),
        ("09:30", "09:30"),
        ("12:30:15", "12:30:15"),
        ("000012", "000012"),
        ("2019_01", "2019_01"),
        ("2001-02-03", "2001-02-03"),
        ("5Y", "5Y"),
        ("1e3x", "1e3x"),
        ("e5", "e5"),
        (".", "."),
        ("-", None),  # an empty list item, see below
        ("1.2.3", "1.2.3"),
        ("0b11", "0b11"),
        ("=", "="),
    ],
)
def test_plain_scalars_follow_yaml_1_2(tmp_path, text, value):
    made = read(tmp_path, f"key: {text}\n")["key"] if text != "-" else read(tmp_path, "key:\n  -\n")["key"][0]
    assert made == value
    assert type(made) is type(value)


def test_not_a_number_is_read():
    assert math.isnan(override({}, ["a=.nan"])["a"])


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3\n", "x:\n  - {a: 1, 'a': 2}\n"])
def test_a_key_given_twice_is_refused_with_its_line(tmp_path, text):
    line = text[: text.rindex("a")].count("\n") + 1
    assert f"the key `a` stands twice, again in line {line}" in message(read, tmp_path, text)


def test_merge_keys_work_and_may_be_overridden(tmp_path):
    text = "base: &base {a: 1, b: 2}\nnext: &next\n  <<: *base\n  b: 3\nlast:\n  <<: *next\n  a: 4\n"
    settings = read(tmp_path, text)
    assert settings["next"] == {"a": 1, "b": 3}
    assert settings["last"] == {"a": 4, "b": 3}


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['touch {trap}']",
        "!!python/object/new:subprocess.Popen [['touch', '{trap}']]",
        "!!python/name:os.system",
        "!!python/module:subprocess",
        "!!python/object:qfml.errors.Interrupted {{signal_number: 1}}",
        "!!python/tuple [1, 2]",
        "!!timestamp nonsense",
        "!!binary aGVsbG8=",
        "!!set {{a, b}}",
        "!mine 3",
    ],
)
def test_tags_that_would_make_objects_are_refused_and_nothing_runs(tmp_path, tag):
    trap = tmp_path / "trap"
    text = tag.format(trap=trap)
    assert "could not determine a constructor for the tag" in message(read, tmp_path, f"a: {text}\n")
    assert "could not determine a constructor for the tag" in message(override, {}, [f"a={text}"])
    assert not trap.exists()


@pytest.mark.parametrize("kind", ["trapped_module.Evil", "trapped_module:Evil", "trapped_module", "os.system"])
def test_a_kind_is_looked_up_and_never_imported(tmp_path, monkeypatch, kind):
    (tmp_path / "trapped_module.py").write_text("class Evil: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "is not known" in message(build_kind, OPTIMIZERS, {"kind": kind})
    assert "trapped_module" not in sys.modules


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a: [1, 2\n", "is not valid YAML"),
        (b"a: !!int x\n", "is not valid YAML"),
        (b"? [a, b]\n: 1\n", "is not valid YAML"),
        (b"- 1\n- 2\n", "must hold a mapping of settings, got [1, 2]"),
        (b"", "must hold a mapping of settings, got None"),
        (b"a: \xff\xfe\n", "is not UTF-8 text"),
        (b"a: " + b"[" * 5000, "is nested too deeply"),
    ],
)
def test_a_file_that_is_no_config_says_why(tmp_path, content, expected):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    text = message(read_yaml, path)
    assert expected in text
    assert str(path) in text


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    assert message(read_yaml, tmp_path / "none.yaml") == f"no config file at {tmp_path / 'none.yaml'}"
    assert message(read_yaml, tmp_path) == f"no config file at {tmp_path}"


# --- override -----------------------------------------------------------------------------------------------------


def test_override_sets_nested_values_and_leaves_its_input_alone():
    settings = {"a": {"b": [1, {"c": 2}]}, "d": None, 3: "kept", "day": datetime.date(2001, 1, 1)}
    before = {"a": {"b": [1, {"c": 2}]}, "d": None, 3: "kept", "day": datetime.date(2001, 1, 1)}
    made = override(settings, ["a.b.1.c=1e-3", "a.b.0={x: ON}", "d.e.f=text", "g==", "h="])
    assert made == {
        "a": {"b": [{"x": "ON"}, {"c": 1e-3}]},
        "d": {"e": {"f": "text"}},
        3: "kept",
        "day": datetime.date(2001, 1, 1),
        "g": "=",
        "h": None,
    }
    assert settings == before


def test_later_assignments_win():
    assert override({}, ["a.b=1", "a.b=2"]) == {"a": {"b": 2}}


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("a", "`--set a` must read key.key=value"),
        ("=1", "`--set =1` must read key.key=value"),
        ("a..b=1", "`--set a..b=1` must read key.key=value"),
        ("list.2=1", "`2` is not a position in a list of 2"),
        ("list.-1=1", "`-1` is not a position in a list of 2"),
        ("list.²=1", "`²` is not a position in a list of 2"),
        ("list.x.y=1", "`x` is not a position in a list of 2"),
        ("number.x=1", "`number` is a plain value and has no `x`"),
        ("number.x.y=1", "a plain value has no `x`"),
        ("a=[1", "is not valid YAML"),
        ("a={b: 1, b: 2}", "the key `b` stands twice"),
    ],
)
def test_a_bad_assignment_says_why(assignment, expected):
    assert expected in message(override, {"list": [1, 2], "number": 5}, [assignment])


# --- round trips and the hash -------------------------------------------------------------------------------------

finite = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | finite | st.text()
plain = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)
tricky = st.sampled_from(
    ["1e-3", "on", "NO", "0x10", "012", "1_000", "2001-01-01", "<<", "=", "~", "", "null", ".5", "a: b"]
)
adam = st.builds(Adam, lr=st.floats(1e-12, 1e3), betas=st.tuples(finite, finite))
optimizer = adam | st.builds(Momentum, lr=finite, nesterov=st.booleans())
window = st.builds(Window, size=st.integers() | st.just("all"), start=st.none() | st.dates())
jobs = st.builds(
    Job,
    name=st.text() | tricky,
    epochs=st.integers(),
    size=st.integers() | st.text() | tricky,
    path=st.none() | st.just(Path("a/b.csv")),
    start=st.none() | st.dates(),
    shuffle=st.booleans(),
    layers=st.lists(st.integers(), max_size=3).map(tuple),
    levels=st.dictionaries(st.text() | tricky, finite, max_size=3),
    optimizer=optimizer,
    fallbacks=st.lists(optimizer, max_size=2).map(tuple),
    second=st.none() | optimizer,
    window=st.none() | window,
    bare=adam,
)


@given(settings=st.dictionaries(st.text() | tricky, plain | tricky, max_size=4))
def test_plain_settings_survive_yaml_in_order_and_type(tmp_path_factory, settings):
    path = tmp_path_factory.getbasetemp() / "round.yaml"
    write_yaml(settings, path)
    again = read_yaml(path)
    assert again == settings
    assert list(again) == list(settings)
    assert repr(again) == repr(settings)  # 1, 1.0 and True compare equal


@given(job=jobs)
def test_components_survive_yaml_and_keep_their_hash(tmp_path_factory, job):
    path = tmp_path_factory.getbasetemp() / "job.yaml"
    write_yaml(to_dict(job), path)
    again = build(Job, read_yaml(path))
    assert again == job
    assert config_hash(again) == config_hash(job) == config_hash(read_yaml(path))


@given(job=jobs)
def test_other_yaml_1_2_and_1_1_readers_see_no_tags(job):
    """What is written are plain types: PyYAML's own safe reader accepts it (it may read a text as a number)."""
    text = yaml.safe_dump(to_dict(job))
    assert "!!" not in text or any("!!" in str(item) for item in (job.name, job.size, *job.levels))


@given(settings=st.dictionaries(st.text(), plain, max_size=5), order=st.randoms(use_true_random=False))
def test_the_hash_does_not_see_the_order_of_keys(settings, order):
    keys = list(settings)
    order.shuffle(keys)
    assert config_hash({key: settings[key] for key in keys}) == config_hash(settings)


def test_the_hash_sees_every_field():
    base = Job(name="a")
    changed = {
        "name": "b",
        "epochs": 11,
        "size": 5,
        "path": Path("x"),
        "start": datetime.date(2001, 1, 1),
        "shuffle": False,
        "layers": (32,),
        "levels": {"a": 1.0},
        "optimizer": Momentum(nesterov=True),
        "fallbacks": (Momentum(),),
        "second": Momentum(),
        "window": Window(size=1),
        "bare": Adam(lr=0.25),
    }
    assert set(changed) == {item.name for item in fields(Job) if item.init}
    settings = to_dict(base)
    hashes = {config_hash(settings | {key: to_dict(value)}) for key, value in changed.items()}
    assert len(hashes | {config_hash(base)}) == len(changed) + 1


def test_the_hash_is_the_same_in_every_process():
    # printf '{"a":"x","b":[1,2.5,null]}' | sha256sum
    assert config_hash({"b": [1, 2.5, None], "a": "x"}) == "ce74053d7a9997b7"


def test_tuples_lists_and_kinds_are_written_as_plain_types():
    assert to_dict(Adam(lr=0.1)) == {"kind": "adam", "lr": 0.1, "betas": [0.9, 0.999]}
    assert next(iter(to_dict(Adam(lr=0.1)))) == "kind"
    with pytest.raises(TypeError, match="object cannot be written into a config"):
        to_dict({"a": object()})
