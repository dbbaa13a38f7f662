"""The benchmarks of the engine run, at small sizes, and their records hold what they are for; no time is judged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def record_of(name, folder, *words):
    path = folder / "record.json"
    script = str(ROOT / "benchmarks" / f"bench_{name}.py")
    command = [sys.executable, script, "--out", str(path), "--repeats", "1", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    record = json.loads(path.read_text())
    assert str(folder) not in record["command"]
    return record


@pytest.mark.slow
def test_the_loops_by_hand_learn_as_much_as_a_member_and_run_on_one_thread_too(tmp_path):
    record = record_of("engine", tmp_path, "--rows", "2560", "--threads", "2")
    step, loading = record["cases"].values()
    assert {row["threads"] for name, row in step.items() if name.startswith("bare loop,")} == {1, 2}
    assert len(step) == 5
    losses = [row["result"] for row in step.values()]
    assert max(losses) < 0.15  # of the last epoch; a constant reaches 0.3: all of them really train
    assert {row["result"] for row in loading.values()} == {25_600}


@pytest.mark.slow
def test_all_contenders_train_the_same_networks(tmp_path):
    for peer in ("skorch", "lightning"):
        pytest.importorskip(peer, reason="a peer of the `bench` extra")
    words = ("--epochs", "3", "--peer-members", "2", "--threads", "2")
    results = record_of("stack", tmp_path, *words)["results"]
    assert sorted(row["threads"] for row in results.values()) == [1, 1, 1, 2, 2, 2, 2, 2]
    errors = [row["mse_on_unseen_rows"] for row in results.values()]
    assert max(errors) < 1.1 * min(errors)


@pytest.mark.slow
def test_a_training_with_checkpoints_writes_some(tmp_path):
    record = record_of("checkpoint", tmp_path, "--rows", "640", "--epochs", "3", "--threads", "1")
    assert record["cases"]["a training"]["with checkpoints"]["checkpoints"] >= 1
    assert record["cases"]["a checkpoint of 256 members"]["qfml, whole"]["megabytes"] > 1


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "records").glob("*.json")), ids=lambda path: path.stem)
def test_a_record_names_no_place_on_the_machine_that_made_it(path):
    assert " /" not in json.loads(path.read_text())["command"]
