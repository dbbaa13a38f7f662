"""Search spaces, searches and rungs against their definitions."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import optuna
import pytest

from qfml.data import TimeDataset
from qfml.errors import ConfigError
from qfml.tune import TPE, Grid, Random, Study, SuccessiveHalving, TuneConfig, Tuner, filled, leaders, spaces_in
from qfml.tune.space import Choice, Integer, LogUniform, Uniform, corners

SETTINGS = {
    "network": {"kind": "mlp", "hidden": {"choice": [[8], [16, 16]]}, "dropout": {"uniform": [0.0, 0.5]}},
    "transforms": [{"kind": "winsorise", "limit": {"log_uniform": [1e-3, 1e-1]}}, {"kind": "standardise"}],
    "trainer": {"patience": {"int": [2, 9]}, "schedule": {"choice": [{"kind": "constant"}, {"kind": "cosine"}]}},
    "seed": 0,
}
PATHS = ["network.hidden", "network.dropout", "transforms.0.limit", "trainer.patience", "trainer.schedule"]


def test_spaces_are_found_by_path_and_filled_with_the_values_of_the_config():
    spaces = spaces_in(SETTINGS)
    assert list(spaces) == PATHS
    values = ["[16, 16]", 0.25, 0.01, 3, '{"kind": "cosine"}']
    made = filled(SETTINGS, spaces, dict(zip(PATHS, values, strict=True)))
    assert made == {
        "network": {"kind": "mlp", "hidden": [16, 16], "dropout": 0.25},
        "transforms": [{"kind": "winsorise", "limit": 0.01}, {"kind": "standardise"}],
        "trainer": {"patience": 3, "schedule": {"kind": "cosine"}},
        "seed": 0,
    }
    assert spaces_in(made) == {}
    assert list(spaces_in(SETTINGS)) == PATHS  # nothing was changed in place


def test_a_choice_tells_equal_values_of_different_types_apart():
    space = Choice((1, True, 1.5, "1"))
    assert [(type(space.setting(value)), space.setting(value)) for value in space.grid(1)] == [
        (int, 1), (bool, True), (float, 1.5), (str, "1"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("space", "named"),
    [
        ({"log_uniform": [0, 1]}, "positive"),
        ({"uniform": [1.0, 1.0]}, "below"),
        ({"uniform": [0.0, math.inf]}, "finite"),
        ({"int": [1.5, 3]}, "whole"),
        ({"int": [True, 3]}, "whole"),
        ({"uniform": "ab"}, "list"),
        ({"choice": ["a"]}, "two values"),
        ({"choice": ["a", "a"]}, "twice"),
        ({"choice": [{"lr": {"uniform": [0, 1]}}, 3]}, "further"),
    ],
)
def test_a_space_that_cannot_be_is_refused_by_its_path(space, named):
    with pytest.raises(ConfigError, match=f"(?s)trainer.lr: .*{named}"):
        spaces_in({"trainer": {"lr": space}})


def test_the_grid_visits_every_combination_once(tmp_path):
    spaces = {"a": Integer(1, 3), "b": LogUniform(1e-4, 1e-2), "c": Choice(("x", [1]))}
    grid = Grid(points=3)
    points = [tuple(grid.point(spaces, place).values()) for place in range(grid.n_trials(spaces))]
    assert points == list(itertools.product([1, 2, 3], [1e-4, 10.0**-3, 1e-2], ["x", "[1]"]))
    study = Study(tmp_path / "grid.db", spaces, grid, mode="min", seed=0)
    asked = [study.ask(18) for _ in range(19)]
    study.close()
    assert asked[18] is None
    assert [tuple(each.params[name] for name in spaces) for each in asked[:18]] == points


def test_corners_show_every_choice_and_both_bounds():
    spaces = {"a": Integer(1, 9), "b": Uniform(0.0, 1.0), "c": Choice(("x", "y", "z"))}
    seen = {name: {corner[name] for corner in corners(spaces)} for name in spaces}
    assert seen == {"a": {1, 9}, "b": {0.0, 1.0}, "c": {"x", "y", "z"}}


def test_random_search_is_uniform_in_the_logarithm(tmp_path):
    study = Study(tmp_path / "random.db", {"lr": LogUniform(1e-5, 1e-1)}, Random(), mode="min", seed=3)
    exponents = np.array([math.log10(study.ask(48).params["lr"]) for _ in range(48)])
    study.close()
    assert -5 <= exponents.min() < exponents.max() <= -1
    assert abs(exponents.mean() + 3) < 4 * (4 / math.sqrt(12)) / math.sqrt(48)


def test_tpe_finds_the_minimum_of_a_parabola_better_than_its_random_start(tmp_path):
    study = Study(tmp_path / "tpe.db", {"x": Uniform(-5.0, 5.0)}, TPE(n_startup=8), mode="min", seed=1)
    errors = []
    for _ in range(32):
        asked = study.ask(32)
        errors.append((asked.params["x"] - 1.7) ** 2)
        study.tell(asked, errors[-1], [1], pruned=False)
    best = study.best()
    study.close()
    assert best.value == min(errors)
    assert np.median(errors[16:]) < 0.25 * np.median(errors[:8])


def test_leaders_are_the_best_share_by_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(50):
        n, factor = int(rng.integers(1, 20)), int(rng.integers(2, 5))
        values = {int(place): float(rng.integers(0, 6)) for place in rng.permutation(40)[:n]}
        found = leaders(values, factor)
        ahead = {p: sum((values[q], q) < (values[p], p) for q in values) for p in values}
        assert found == ({p for p in values if ahead[p] < n // factor} if n >= factor else set(values))


def test_rungs_grow_by_the_factor_and_end_before_the_last_epoch():
    assert SuccessiveHalving(first=1, factor=2).rungs(16) == [1, 2, 4, 8]
    assert SuccessiveHalving(first=5, factor=3).rungs(5) == []


def test_a_killed_study_asks_the_same_trials_in_the_same_places(tmp_path):
    spaces = {"lr": LogUniform(1e-5, 1e-1), "depth": Integer(1, 5)}

    def study(name):
        return Study(tmp_path / name, spaces, Random(), mode="max", seed=7)

    whole = study("whole.db")
    wanted = [whole.ask(8).params for _ in range(8)]
    whole.close()
    first = study("cut.db")
    asked = [first.ask(8) for _ in range(5)]
    first.report(asked[1], 1, 0.5)
    first.tell(asked[1], 0.5, [1], pruned=False)
    first.close()  # places 0, 2, 3 and 4 are in training
    second = study("cut.db")
    assert second.n_again == 4
    second.ask(8)
    second.close()
    third = study("cut.db")  # killed again, with one of them begun a second time
    again = [third.ask(8) for _ in range(7)]
    assert third.ask(8) is None
    for each in again:
        third.tell(each, float(each.place), [1], pruned=False)
    found = third.told()
    assert [each.place for each in again] == [0, 2, 3, 4, 5, 6, 7]
    assert [each.params for each in found] == wanted
    assert third.best().place == 7
    third.close()


def test_the_storage_is_one_that_optuna_reads_by_itself(tmp_path):
    study = Study(tmp_path / "s.db", {"x": Uniform(0.0, 1.0)}, Random(), mode="max", seed=0)
    asked = study.ask(2)
    for epoch, value in enumerate((0.1, 0.4, 0.3, math.inf, -math.inf), 1):
        study.report(asked, epoch, value)
    assert study.n_places == 1
    study.tell(asked, 0.4, [3, 3], pruned=False)
    dropped = study.ask(2)
    study.report(dropped, 1, 0.05)
    study.tell(dropped, 0.05, [1, 1], pruned=True)
    study.close()
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 's.db'}")
    read = optuna.load_study(study_name="tune", storage=storage)
    first, second = read.trials
    assert read.direction.name == "MAXIMIZE"
    assert (first.value, first.intermediate_values) == (0.4, {1: 0.1, 2: 0.4, 3: 0.3, 4: math.inf, 5: -math.inf})
    assert (second.state.name, second.value) == ("PRUNED", 0.05)
    storage.remove_session()
    storage.engine.dispose()


def test_parameters_that_the_settings_refuse_are_a_trial_that_is_not_trained(tmp_path):
    spaces, said = {"x": Uniform(0.0, 1.0)}, []

    def settings_of(params):
        if params["x"] < 0.5:
            raise ConfigError("x must be at least 0.5")
        return SimpleNamespace(x=params["x"], network=0, loss=0, trainer=0, transforms=(), n_seeds=1, seed=0)

    days = np.datetime64("2020-01-01") + np.arange(3)
    ds = TimeDataset(np.zeros((3, 1)), np.zeros(3), time=days, label_end=days + 1)

    def tuner():
        study = Study(tmp_path / "s.db", spaces, Random(), mode="min", seed=0)
        return Tuner(ds, [], study, settings_of, lambda *_: None, TuneConfig(n_trials=12), said.append)

    first = tuner()
    taken = list(iter(first.ask, None))
    assert 0 < len(taken) < 12
    assert len(taken) + len(said) == 12
    assert all(candidate.settings.x >= 0.5 for candidate in taken)
    assert all("not trained, x must be at least 0.5" in line for line in said)
    first.study.close()
    again = tuner()
    assert [candidate.place for candidate in iter(again.ask, None)] == [candidate.place for candidate in taken]
    again.study.close()
