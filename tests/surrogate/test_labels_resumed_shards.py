"""Shards: each a function of its number, whole or not there, made once, by any number of processes."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qfml.errors import ConfigError, DataError
from qfml.surrogate import labels as labels_module
from qfml.surrogate.labels import join_labels, labels_folder, make_labels, make_shard, read_labels
from qfml.surrogate.problem import Problem, Range
from qfml.surrogate.settings import AnalyticLabels, LabelSettings
from qfml.surrogate.shards import read_shard, write_shard
from qfml.surrogate.worker_process import main as worker

PROBLEM = Problem(
    model={"kind": "black_scholes"},
    instrument={"kind": "european"},
    box={"vol": Range(0.1, 0.5), "expiry": Range(0.1, 2.0), "log_moneyness": Range(-0.2, 0.2)},
    target="price",
)
LABELS = LabelSettings(n_points=50, seed=3, shard_size=8, gradients=True)


def content(paths):
    return {path.name: path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_labels(PROBLEM, LABELS, tmp_path_factory.mktemp("whole"), workers=1)


def test_table_holds_every_point_once_with_its_provenance(whole):
    table = read_labels(whole[0].parent)
    assert len(table) == 400
    assert table.law.bincount().tolist() == [8] * 50
    assert table.problem == PROBLEM
    assert table.hash == LABELS.hash(PROBLEM)
    torch.testing.assert_close(table.value, PROBLEM.exact(table.inputs), rtol=1e-14, atol=0.0)
    about = read_shard(whole[-1]).about
    assert about["laws"] == [48, 50]
    assert about["left_out"] == {}
    assert about["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


@pytest.mark.parametrize(
    "change",
    [
        {"n_points": 51},
        {"seed": 4},
        {"strikes_per_law": 7},
        {"expiries_per_law": 2},
        {"gradients": False},
        {"shard_size": 9},
        {"device": "cuda"},
        {"engine": AnalyticLabels()},
    ],
)
def test_hash_knows_every_setting(change):
    assert replace(LABELS, **change).hash(PROBLEM) != LABELS.hash(PROBLEM)


def test_the_order_of_the_box_is_kept_and_known(tmp_path, whole):
    """Three orders of one box are three problems with columns of their own, none of them alphabetical by chance."""
    boxes = [list(PROBLEM.box.items())[start:] + list(PROBLEM.box.items())[:start] for start in range(3)]
    problems = [replace(PROBLEM, box=dict(box)) for box in boxes]
    assert len({LABELS.hash(problem) for problem in problems}) == 3
    tables = []
    for problem in problems:
        made = make_labels(problem, LABELS, tmp_path)
        tables.append(read_labels(made[0].parent))
        assert tables[-1].names == tables[-1].problem.inputs == problem.inputs
        torch.testing.assert_close(tables[-1].value, tables[-1].problem.exact(tables[-1].inputs), rtol=1e-14, atol=0.0)
    with pytest.raises(DataError, match="are of two problems"):
        join_labels(tables[:2])
    # a shard that says another order, under the same hash
    shard = read_shard(made[3])
    write_shard(replace(shard, about=shard.about | {"inputs": list(PROBLEM.inputs)}), made[3])
    with pytest.raises(DataError, match=r"part-00003.parquet .*with the inputs log_moneyness, vol, expiry: move it"):
        read_labels(made[0].parent)


def test_hash_knows_the_problem_but_not_the_folder():
    for change in (
        {"target": "time_value"},
        {"box": PROBLEM.box | {"vol": Range(0.1, 0.4)}},
        {"market": {"spot": 2.0}},
    ):
        assert LABELS.hash(replace(PROBLEM, **change)) != LABELS.hash(PROBLEM)
    assert replace(LABELS, folder=Path("elsewhere")).hash(PROBLEM) == LABELS.hash(PROBLEM)
    assert replace(LABELS, strikes_per_law=8).hash(PROBLEM) == LABELS.hash(PROBLEM)  # what None takes


def test_shards_in_any_order_and_parts_are_those_of_one_go(tmp_path, whole):
    made = make_labels(PROBLEM, LABELS, tmp_path, shards=[5, 2])
    assert [path.name for path in made] == ["part-00002.parquet", "part-00005.parquet"]
    with pytest.raises(DataError, match=r"has 2 of 7 shards, part-00000.parquet is missing"):
        read_labels(made[0].parent)
    made = make_labels(PROBLEM, LABELS, tmp_path, shards=range(7))
    assert content(made) == content(whole)
    with pytest.raises(ConfigError, match="`shards` must lie in 0 to 6, got 7"):
        make_labels(PROBLEM, LABELS, tmp_path, shards=[7])


def test_what_is_there_is_not_made_again(tmp_path, whole, monkeypatch):
    made = make_labels(PROBLEM, LABELS, tmp_path, shards=[0, 1, 3])
    (made[0].parent / ".part-00002.parquet-cafe").write_bytes(b"what a kill left behind")
    calls = []
    monkeypatch.setattr(labels_module, "make_shard", lambda *a: calls.append(a[2]) or make_shard(*a))
    assert content(make_labels(PROBLEM, LABELS, tmp_path)) == content(whole)
    assert calls == [2, 4, 5, 6]


def test_damaged_shard_is_made_again_with_a_word_and_refused_on_reading(tmp_path, whole):
    made = make_labels(PROBLEM, LABELS, tmp_path)
    good = made[3].read_bytes()
    for damaged in (good[: len(good) // 2], b"", good[:300] + bytes([good[300] ^ 1]) + good[301:]):
        made[3].write_bytes(damaged)
        with pytest.raises(DataError, match=r"part-00003.parquet"):
            read_labels(made[0].parent)
        with pytest.warns(UserWarning, match="part-00003.parquet .*: it is made again"):
            make_labels(PROBLEM, LABELS, tmp_path)
        assert content(made) == content(whole)


def test_foreign_shard_is_refused(tmp_path):
    other = make_labels(PROBLEM, replace(LABELS, seed=4), tmp_path)
    made = make_labels(PROBLEM, LABELS, tmp_path)
    made[3].write_bytes(other[3].read_bytes())
    for refused in (lambda: make_labels(PROBLEM, LABELS, tmp_path), lambda: read_labels(made[0].parent)):
        with pytest.raises(DataError, match=r"holds shard 3 of the labels .*move it away"):
            refused()
    made[3].write_bytes(made[2].read_bytes())
    with pytest.raises(DataError, match="holds shard 2"):
        read_labels(made[0].parent)


def test_numbers_that_are_not_finite_are_refused(tmp_path, whole):
    shard = read_shard(whole[0])
    value = shard.value.copy()
    value[3] = float("nan")
    write_shard(replace(shard, value=value), tmp_path / "part-00000.parquet")
    with pytest.raises(DataError, match="`value` must be finite, got nan in row 3"):
        read_shard(tmp_path / "part-00000.parquet")
    with pytest.raises(DataError, match="there are no labels in"):
        read_labels(tmp_path / "nowhere")


def test_worker_answers_each_number_with_its_shard(tmp_path, whole):
    place = make_labels(PROBLEM, LABELS, tmp_path, shards=[0])[0].parent
    answers = io.StringIO()
    worker(place, io.StringIO("6\n1\n"), answers)
    assert [json.loads(line) for line in answers.getvalue().splitlines()] == [
        {"shard": 6, "error": ""},
        {"shard": 1, "error": ""},
    ]
    made = sorted(place.glob("part-*"))
    assert content(made) == {path.name: path.read_bytes() for path in (whole[0], whole[1], whole[6])}


def test_tables_of_one_problem_are_joined(tmp_path, whole):
    table = read_labels(whole[0].parent)
    both = join_labels([table, table.rows([0, 5])])
    assert len(both) == 402
    torch.testing.assert_close(both.gradient[-1], table.gradient[5])
    other = replace(PROBLEM, target="time_value")
    made = make_labels(other, LABELS, tmp_path)
    with pytest.raises(DataError, match="are of two problems"):
        join_labels([table, read_labels(made[0].parent)])


@pytest.mark.slow
def test_two_processes_make_what_one_makes(tmp_path, whole):
    made = make_labels(PROBLEM, LABELS, tmp_path, workers=2)
    assert content(made) == content(whole)


@pytest.mark.slow
def test_killed_and_made_again_is_the_same(tmp_path):
    """SIGKILL in the middle, of the maker and whatever it holds; the next call makes the rest."""
    labels = replace(LABELS, n_points=1200)
    script = tmp_path / "make.py"
    script.write_text(
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from test_labels_resumed_shards import PROBLEM, LABELS, make_labels, replace\n"
        "make_labels(PROBLEM, replace(LABELS, n_points=1200), sys.argv[1], workers=1)\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    here = str(Path(__file__).parent)
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path), here], env=environment)
    place = labels_folder(PROBLEM, labels, tmp_path)
    while len(list(place.glob("part-*"))) < 5 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in place.glob("part-*")}
    assert 5 <= len(before) < labels.n_shards
    resumed = make_labels(PROBLEM, labels, tmp_path, workers=1)
    assert all(path.stat().st_mtime_ns == moment for path, moment in before.items())
    assert content(resumed) == content(make_labels(PROBLEM, labels, tmp_path / "again", workers=1))
