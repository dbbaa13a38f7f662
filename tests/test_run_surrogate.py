"""`task: surrogate` from the command line: labels, training, judgement, page, resume and export of a small one."""

import itertools
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command_line import qfml

import pricers as pr
from qfml.errors import ConfigError
from qfml.surrogate import Surrogate
from qfml.surrogate.points import GivenPoints

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("surrogate_*.yaml"))

SMALL = {
    "task": "surrogate",
    "name": "small",
    "problem": {
        "model": {"kind": "heston", "kappa": 2.0, "theta": 0.05, "sigma": 0.4},
        "instrument": {"kind": "european", "option": "call"},
        "box": {
            "v0": {"low": 0.03, "high": 0.1, "scale": "log"},
            "rho": {"low": -0.8, "high": 0.0},
            "expiry": {"low": "90D", "high": 1.5},
            "delta": {"low": 0.1, "high": 0.9},
        },
        "target": "implied_vol",
    },
    "labels": {"n_points": 300, "seed": 1, "folder": "labels", "shard_size": 64},
    "training": {
        "network": {"kind": "mlp", "hidden": [16, 16], "activation": "silu"},
        "trainer": {
            "max_epochs": 30,
            "batch_size": 128,
            "optimizer": {"kind": "muon", "lr": 0.01, "weight_decay": 0.0},
            "checkpoint_seconds": 0.0,
        },
        "n_seeds": 2,
    },
    "judgement": {"n_points": 400, "n_calibration": 400, "n_greeks": 50, "speed_paths": 256, "speed_steps": 8},
    "workers": 1,
}

SIMULATED = {
    "model": {"kind": "rough_bergomi", "eta": 1.5, "hurst": 0.1, "rho": -0.7},
    "instrument": {"kind": "european"},
    "box": {
        "xi": {"low": 0.03, "high": 0.1},
        "expiry": {"low": 0.5, "high": 1.0},
        "standard_moneyness": {"low": -1.0, "high": 1.0},
    },
    "target": "implied_vol",
}
PATHS = {"kind": "monte_carlo", "n_paths": 64, "n_steps": 4}
FEW_PATHS = {"n_points": 8, "seed": 1, "folder": "labels", "engine": PATHS}


def write(place, **changes):
    (place / "config.yaml").write_text(yaml.safe_dump(SMALL | changes, sort_keys=False))


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A finished run."""
    place = tmp_path_factory.mktemp("small")
    write(place)
    done = qfml("run", "config.yaml", "--out", "run", cwd=place)
    assert done.code == 0, done.err
    return place


def test_the_surrogate_prices_as_the_engine_does_inside_its_stated_bound(small):
    surrogate = Surrogate.load(small / "run")  # a run is known by its folder
    rng = np.random.default_rng(7)
    v0, rho = rng.uniform(0.035, 0.09, 200), rng.uniform(-0.7, -0.1, 200)
    expiry, moneyness = rng.uniform(0.4, 1.4, 200), rng.uniform(-0.1, 0.1, 200)
    rows = torch.from_numpy(np.stack([v0, rho, expiry, moneyness], 1))
    model = pr.Heston(v0=v0, kappa=2.0, theta=0.05, sigma=0.4, rho=rho)
    call = pr.European(strike=np.exp(moneyness), expiry=expiry)
    price = pr.price(call, model, pr.Market(spot=1.0)).value
    vol = pr.implied_vol(price, 1.0, call.strike, call.expiry)
    error = (surrogate.predict(rows).value - vol).abs()
    assert metrics(small / "run")["judgement"]["vol_bps"]["rmse"] < 30
    assert float((error <= surrogate.bound.value).double().mean()) >= 0.95  # the level is 0.99


def test_metrics_and_page_hold_what_was_found(small):
    found = metrics(small / "run")
    judged = found["judgement"]
    assert found["labels"]["n_labels"] == 2400
    assert set(judged["greeks"]) == {"v0", "rho", "expiry", "log_moneyness"}
    assert judged["speed"]["surrogate"]["n_batch"] == 100_000
    assert 0.97 <= judged["conformal"]["coverage"] <= 1.0
    page = (small / "run" / "report.html").read_text()
    for text in ("Off by", "Over pairs of coordinates", "Negative density", "Faster than simulation", "held-out laws"):
        assert text in page
    assert page.count("error along ") == 4
    assert page.count("error over ") == 6


def test_a_second_run_reads_the_labels_of_the_first_and_ends_with_the_same_bits(small):
    before = {path: path.stat().st_mtime_ns for path in (small / "labels").glob("**/*.parquet")}
    assert len(before) == 5
    done = qfml("run", "config.yaml", "--out", "again", cwd=small)
    assert done.code == 0, done.err
    assert {path: path.stat().st_mtime_ns for path in (small / "labels").glob("**/*.parquet")} == before
    assert metrics(small / "again")["hash"] == metrics(small / "run")["hash"]


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(
            "import qfml.task.surrogate as t\nt.fit_surrogate = lambda *a, **k: os.kill(os.getpid(), 9)",
            marks=pytest.mark.slow,
        ),
        "import qfml.engine.block as b\nstep, seen = b.Block.step, []\n"
        "def count(self):\n    seen.append(1)\n    if len(seen) > 300:\n        os.kill(os.getpid(), 9)\n"
        "    return step(self)\nb.Block.step = count",
        pytest.param(
            "import qfml.task.surrogate as t\nt.judge = lambda *a, **k: os.kill(os.getpid(), 9)", marks=pytest.mark.slow
        ),
    ],
    ids=["before training", "while training", "before judgement"],
)
def test_a_killed_run_resumes_to_the_same_bits(moment, small, tmp_path):
    write(tmp_path)
    done = qfml("run", "config.yaml", "--out", "run", cwd=tmp_path, before=f"import os\n{moment}")
    assert done.code == -9
    done = qfml("resume", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert metrics(tmp_path / "run")["hash"] == metrics(small / "run")["hash"]


def test_a_config_that_was_changed_after_training_is_not_mixed_with_what_it_did_not_train(small, tmp_path):
    before = "import os\nimport qfml.task.surrogate as t\nt.judge = lambda *a, **k: os.kill(os.getpid(), 9)"
    write(tmp_path, labels=SMALL["labels"] | {"folder": str(small / "labels")})
    assert qfml("run", "config.yaml", "--out", "run", cwd=tmp_path, before=before).code == -9
    config = tmp_path / "run" / "config.yaml"
    as_begun = config.read_text()
    changed = yaml.safe_load(as_begun)
    changed["training"]["network"]["hidden"] = [8, 8]
    config.write_text(yaml.safe_dump(changed, sort_keys=False))
    done = qfml("resume", "run", cwd=tmp_path)
    assert (done.code, "`training`" in done.err, "restore the config" in done.err) == (2, True, True), done.err
    assert not (tmp_path / "run" / "metrics.json").exists()
    changed = yaml.safe_load(as_begun)
    changed["judgement"]["n_points"] = 500  # of no training: the whole run is of the new config
    config.write_text(yaml.safe_dump(changed, sort_keys=False))
    done = qfml("resume", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert metrics(tmp_path / "run")["hash"] == metrics(small / "run")["hash"]


def test_labels_where_the_error_is_are_added(tmp_path):
    write(tmp_path, refinement={"n_points": 100})
    done = qfml("run", "config.yaml", "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    found = metrics(tmp_path / "run")
    assert found["labels"]["n_labels"] == 3200
    assert found["labels"]["n_laws"] == 400
    assert "further labels where the error is" in done.err


def refined(place, **settings):
    """A quick config with rounds of refinement."""
    trainer = SMALL["training"]["trainer"] | {"max_epochs": 3}
    write(
        place,
        labels=SMALL["labels"] | {"n_points": 100},
        refinement={"n_points": 40, "rounds": 2} | settings,
        training=SMALL["training"] | {"trainer": trainer, "n_seeds": 1},
        judgement={"n_points": 100, "n_calibration": 100, "n_greeks": 0, "speed_paths": 0},
    )


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory):
    """A finished run of two rounds of refinement."""
    place = tmp_path_factory.mktemp("rounds")
    refined(place)
    done = qfml("run", "config.yaml", "--out", "run", cwd=place)
    assert done.code == 0, done.err
    return place


def test_each_round_adds_its_labels_to_those_before(two_rounds):
    found = metrics(two_rounds / "run")["labels"]
    assert (found["n_laws"], found["n_labels"]) == (180, 1440)
    folders = list((two_rounds / "labels").glob("labels-*"))
    assert len(folders) == 3
    chosen = [GivenPoints.load(path) for path in (two_rounds / "labels").glob("*/points.safetensors")]
    assert sorted(points.round for points in chosen) == [1, 2]
    assert len({points.parent for points in chosen}) == 2  # each rests on the networks of the round before


@pytest.mark.parametrize(
    "call",
    [
        pytest.param("refined_points", marks=pytest.mark.slow),
        "make_labels",
        pytest.param("fit_surrogate", marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_between_rounds_resumes_to_the_same_bits(call, two_rounds, tmp_path):
    """Before the points of the second round are chosen, before they are labelled, before they are learned from."""
    nth = {"refined_points": 2, "make_labels": 3, "fit_surrogate": 3}[call]
    refined(tmp_path)
    before = (
        f"import os\nimport qfml.task.surrogate as t\nplain, seen = t.{call}, []\n"
        "def count(*a, **k):\n    seen.append(1)\n"
        f"    if len(seen) == {nth}:\n        os.kill(os.getpid(), 9)\n    return plain(*a, **k)\nt.{call} = count"
    )
    assert qfml("run", "config.yaml", "--out", "run", cwd=tmp_path, before=before).code == -9
    assert sorted(path.name for path in (tmp_path / "run" / "rounds").glob("surrogate-*")) == [
        "surrogate-0",
        "surrogate-1",
    ]
    done = qfml("resume", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert metrics(tmp_path / "run")["hash"] == metrics(two_rounds / "run")["hash"]
    assert {path.name for path in (tmp_path / "labels").iterdir()} == {
        path.name for path in (two_rounds / "labels").iterdir()
    }


def test_weighted_rounds_learn_from_the_same_points_of_the_first_round_by_other_weights(two_rounds, tmp_path):
    refined(tmp_path, weighted=True, rounds=1)
    done = qfml("run", "config.yaml", "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    names = {path.name for path in (tmp_path / "labels").iterdir()}
    assert names < {path.name for path in (two_rounds / "labels").iterdir()}
    weighted, plain = (Surrogate.load(place / "run" / "rounds" / "surrogate-1") for place in (tmp_path, two_rounds))
    assert weighted.report["n_train"] == plain.report["n_train"]
    assert weighted.hash != plain.hash


@pytest.mark.slow
def test_the_run_is_exported_with_its_greeks(small):
    from qfml.export import load_exported

    done = qfml("export", "run", cwd=small)
    assert done.code == 0, done.err
    model = load_exported(small / "run" / "model_greeks.onnx")
    rows = np.array([[0.05, -0.5, 1.0, 0.05]])
    surrogate = Surrogate.load(small / "run" / "surrogate")
    value, gradient = surrogate.value_and_gradient(torch.from_numpy(rows))
    found = model.predict(rows)
    np.testing.assert_allclose(found["value"], value.numpy(), rtol=1e-5)
    np.testing.assert_allclose(found["gradient"], gradient.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"problem": SMALL["problem"] | {"box": {"v0": {"low": 0.1, "high": 0.03}}}}, "v0"),
        ({"problem": SMALL["problem"] | {"model": {"kind": "hestn"}}}, "heston"),
        (
            {"labels": {"n_points": 300, "seed": 1, "engine": {"kind": "monte_carlo", "n_paths": 64, "n_steps": 4}}},
            "delta",
        ),
        ({"training": SMALL["training"] | {"twin": 1.0}}, "gradients"),
        ({"labels": SMALL["labels"] | {"n_pointz": 3}}, "n_points"),
        ({"judgement": SMALL["judgement"] | {"n_calibration": 98}}, "must be 99 or more"),
        ({"problem": SIMULATED, "labels": FEW_PATHS}, "`judgement` cannot label fresh points: `engine: exact`"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, told, tmp_path):
    write(tmp_path, **changes)
    done = qfml("run", "config.yaml", "--out", "run", cwd=tmp_path)
    assert (done.code, told in " ".join(done.err.split())) == (2, True), done.err
    assert not (tmp_path / "labels").exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"shape": {"decreasing": ["strik"]}}, "`strik` is no input of the problem"),
        ({"shape": {"convex": ["log_moneyness"]}}, "`shape` is one of prices, and the target is implied_vol"),
        ({"network": {"kind": "gru"}}, "GRU needs windows"),
        ({"network": {"kind": "mlp", "hidden": [8], "activation": "relu"}, "twin": 1.0}, "kinks"),
        ({"twin": 1.0, "trainer": SMALL["training"]["trainer"] | {"precision": "bf16"}}, "`precision` must be"),
    ],
)
def test_a_training_that_could_not_begin_is_refused_before_the_labels(changes, told):
    from qfml.task import read_task

    labels = SMALL["labels"] | {"gradients": True}
    problem = SMALL["problem"]
    if "decreasing" in str(changes):
        box = {name: limits for name, limits in problem["box"].items() if name != "delta"}
        problem = problem | {"target": "price", "box": box | {"strike": {"low": 0.8, "high": 1.2}}}
    with pytest.raises(ConfigError, match=told):
        read_task(SMALL | {"problem": problem, "labels": labels, "training": SMALL["training"] | changes})


def test_more_paths_than_are_simulated_are_refused_before_the_labels():
    from qfml.task import read_task

    many = {"judgement": SMALL["judgement"] | {"engine": PATHS | {"n_paths": 2**23}}}
    with pytest.raises(ConfigError, match=r"`judgement` cannot label.*`n_paths` .* must be 4,194,304 or less"):
        read_task(SMALL | {"problem": SIMULATED, "labels": FEW_PATHS} | many)


def test_a_part_of_the_labels_tells_how_many_shards_there_are(tmp_path):
    from qfml.task.surrogate import make_part

    write(tmp_path, labels=SMALL["labels"] | {"n_points": 24, "shard_size": 8, "folder": str(tmp_path / "labels")})
    said: list[str] = []
    for part in ("1/3", "3/3"):
        make_part(tmp_path / "config.yaml", part, say=said.append)
    assert ["1 of all 3 are there" in said[0], "2 of all 3 are there" in said[1]] == [True, True]


def test_as_few_calibration_points_as_a_bound_needs_are_enough(tmp_path):
    """The least that the config allows is what the judgement's own rule allows."""
    from qfml.surrogate.conformal import conformal_bound
    from qfml.task import read_task

    for level, least in ((0.99, 99), (0.9, 9), (0.999, 999), (0.5, 1)):
        read_task(SMALL | {"judgement": {"level": level, "n_calibration": least}})
        assert conformal_bound(torch.arange(float(least)), level) == least - 1
        if least > 1:
            with pytest.raises(ConfigError, match=f"must be {least} or more"):
                read_task(SMALL | {"judgement": {"level": level, "n_calibration": least - 1}})


def minute_recipe(path):
    """The words behind `qfml` of the command for a minute, as the head of a config shows it."""
    head = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    text = "\n".join(line.removeprefix("#") for line in head).replace("\\\n", " ")
    (recipe,) = [line for line in text.splitlines() if "qfml run" in line and "--set" in line]
    command, told = recipe.split("#")
    words = shlex.split(command)
    assert (words[:3], told.strip()) == (["qfml", "run", f"configs/{path.name}"], "the same in a minute")
    return words[1:]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_recipe_for_a_minute_is_a_config_that_can_be_run(path):
    from qfml import config
    from qfml.task import read_task

    words = minute_recipe(path)[2:]
    assert set(words[::2]) == {"--set"}
    settings = config.read_yaml(path)
    assert read_task(config.override(settings, words[1::2])) != read_task(settings)


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_recipe_for_a_minute_learns_something(path, tmp_path):
    words = minute_recipe(path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    done = qfml(*words, "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert (tmp_path / "run" / "report.html").is_file()
    found = metrics(tmp_path / "run")["judgement"]
    assert found["error"]["r2"] > 0.9  # of labels with noise too
    assert found["conformal"]["p_value"] > 1e-3
    assert set(found["greeks"]) == set(metrics(tmp_path / "run")["labels"]["inputs"])
