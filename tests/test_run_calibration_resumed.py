"""A calibration that was killed and resumed: with what it was begun with, or not at all."""

import json

import numpy as np
import pytest
import yaml
from command_line import qfml

from qfml.calibration import Surface
from qfml.task.calibration_tables import data_hash

CONFIG = """
task: calibration
surface: {kind: synthetic_heston, n_days: 1, seed: 1, expiries: [0.25, 1.0], deltas: [0.25, 0.5, 0.75]}
model: {kind: heston}
method: inverse
inverse_training: {n_surfaces: 40, max_epochs: 1, n_judged: 5}
"""


def test_an_own_inverse_map_is_that_of_the_config_that_the_run_was_begun_with(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    killed = "import qfml.task.calibration as t, os\nt.calibrate = lambda *a, **k: os.kill(os.getpid(), 9)\n"
    assert qfml("run", "config.yaml", "--out", "run", cwd=tmp_path, before=killed).code == -9
    assert (tmp_path / "run" / "inverse").is_dir()
    config = tmp_path / "run" / "config.yaml"
    as_begun = config.read_text()
    changed = yaml.safe_load(as_begun)
    changed["inverse_training"]["n_surfaces"] = 60
    config.write_text(yaml.safe_dump(changed, sort_keys=False))
    done = qfml("resume", "run", cwd=tmp_path)
    told = " ".join(done.err.split())
    assert (done.code, "`config.yaml` is not what this run was begun with" in told) == (2, True), done.err
    assert not (tmp_path / "run" / "metrics.json").exists()
    config.write_text(as_begun)
    done = qfml("resume", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    seconds = json.loads((tmp_path / "run" / "metrics.json").read_text())["seconds"]
    assert {"networks_since_resume", "total_since_resume"} < set(seconds)  # the map was trained before
    assert not {"networks", "total"} & set(seconds)


def surface(**changes):
    vol = np.array([0.25, 0.2, 0.21])
    columns = {"strike": [90.0, 100.0, 110.0], "expiry": 1.0, "vol": vol, "bid": vol - 0.01, "ask": vol + 0.01}
    return Surface(**(columns | {"forward": 100.0} | changes))


@pytest.mark.parametrize("name", ["strike", "vol", "bid", "ask"])
def test_the_hash_of_the_data_knows_every_number_of_every_quote(name):
    for place in range(3):
        moved = np.array(getattr(surface(), name))
        moved[place] += 1e-6
        assert data_hash([surface(**{name: moved})]) != data_hash([surface()])
    assert data_hash([surface()]) == data_hash([surface()])


def test_the_hash_of_the_data_knows_which_side_is_absent():
    """The bytes are the same whether the one column there is called bid or ask, or there are two surfaces or one."""
    without = surface(bid=None, ask=None)
    assert len({data_hash(s) for s in ([surface()], [without], [without, surface()], [surface(), without])}) == 4
