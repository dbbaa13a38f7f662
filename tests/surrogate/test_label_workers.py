"""Processes that make labels: one that dies, one that is refused, Ctrl-C, and a parent that is killed.

The workers here are fresh interpreters as in earnest, with a program in place of the library, so that they start at
once.
"""

import io
import json
import os
import signal
import textwrap
import threading
import time
from dataclasses import replace

import pytest
import yaml
from command_line import qfml, start, wait_until

from qfml.errors import UserError
from qfml.surrogate import labels as labels_module
from qfml.surrogate import workers
from qfml.surrogate.labels import make_labels
from qfml.surrogate.problem import Problem, Range
from qfml.surrogate.settings import LabelSettings
from qfml.surrogate.worker_process import main as worker

PROBLEM = Problem(
    model={"kind": "black_scholes"},
    instrument={"kind": "european"},
    box={"vol": Range(0.1, 0.5), "expiry": Range(0.1, 2.0), "log_moneyness": Range(-0.2, 0.2)},
    target="price",
)
LABELS = LabelSettings(n_points=24, seed=3, shard_size=8)

ANSWERS = "print(json.dumps({'shard': number, 'error': ''}), flush=True)"
HANGS = "time.sleep(20)"
DIES = "sys.exit(7)"


def programs(folder, act):
    """A folder of packages with a worker that notes its session and, at its end, that it ended; then does `act`."""
    place = folder / "programs" / "qfml" / "surrogate"
    place.mkdir(parents=True)
    for package in (place, place.parent):
        (package / "__init__.py").touch()
    (place / "worker_process.py").write_text(
        textwrap.dedent(f"""
        import json, os, pathlib, sys, time
        notes = pathlib.Path({str(folder)!r})
        for number in map(int, sys.stdin):
            (notes / f"session-{{os.getpid()}}").write_text(f"{{os.getsid(0)}} ")
            {act}
        (notes / f"ended-{{os.getpid()}}").touch()
        """)
    )
    return place.parents[1]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where the shards would lie; away from the checkout, whose library the workers would find first."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "labels"


def test_workers_have_a_session_of_their_own_and_end_with_their_work(place, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "ROOT", programs(tmp_path, ANSWERS))
    workers.make_by_processes(place, range(40), 2)
    noted = list(tmp_path.glob("session-*"))
    assert len(noted) in (1, 2)
    assert str(os.getsid(0)) not in {path.read_text().strip() for path in noted}
    assert {path.name.split("-")[1] for path in tmp_path.glob("ended-*")} >= {p.name.split("-")[1] for p in noted}


def test_ctrl_c_stops_the_workers_at_once(place, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "ROOT", programs(tmp_path, HANGS))

    def press():
        wait_until(lambda: len(list(tmp_path.glob("session-*"))) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    presser = threading.Thread(target=press)
    presser.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            workers.make_by_processes(place, range(4), 2)  # which waits for its workers
    finally:
        presser.join()
        signal.signal(signal.SIGINT, before)
    assert not list(tmp_path.glob("ended-*"))  # they were asleep


def test_a_worker_that_dies_is_told_with_what_to_do(place, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "ROOT", programs(tmp_path, DIES))
    with pytest.raises(UserError, match=r"died \(exit code 7\).*fewer `workers`, or a smaller `shard_size`"):
        workers.make_by_processes(place, range(4), 2)


def test_what_a_pricer_refuses_is_told_in_its_words(tmp_path, monkeypatch):
    def refuses(*_):
        raise ValueError("`vol` must be 0 or more, got -1")

    monkeypatch.setattr(labels_module, "make_shard", refuses)
    told = r"shard 0 of .*labels-\w+ cannot be made: `vol` must be 0 or more, got -1"
    with pytest.raises(UserError, match=told):
        make_labels(PROBLEM, LABELS, tmp_path, workers=1)
    (folder,) = tmp_path.iterdir()
    answers = io.StringIO()
    worker(folder, io.StringIO("0\n"), answers)
    assert "cannot be made: `vol` must be 0 or more, got -1" in json.loads(answers.getvalue())["error"]


CONFIG = {
    "task": "surrogate",
    "problem": {
        "model": {"kind": "black_scholes"},
        "instrument": {"kind": "european"},
        "box": {
            "vol": {"low": 0.1, "high": 0.5},
            "expiry": {"low": 0.1, "high": 2.0},
            "log_moneyness": {"low": -0.2, "high": 0.2},
        },
        "target": "price",
    },
    "labels": {"n_points": 24, "seed": 3, "shard_size": 8, "folder": "labels"},
    "workers": 2,
}


def own_workers(folder, act):
    """Python code that has a process of the command line start these workers."""
    path = str(programs(folder, act))
    return f"import pathlib\nimport qfml.surrogate.workers as w\nw.ROOT = pathlib.Path({path!r})\n"


@pytest.mark.slow
def test_a_run_whose_worker_died_says_how_it_goes_on(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    done = qfml("run", "config.yaml", "--out", "run", cwd=tmp_path, before=own_workers(tmp_path, DIES))
    assert (done.code, "Traceback" in done.err) == (2, False), done.err
    assert "died (exit code 7)" in done.err
    assert done.err.rstrip().endswith("Continue with: qfml resume run")
    assert (tmp_path / "run" / "config.yaml").is_file()


def test_workers_of_a_killed_process_end(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    slow = f"time.sleep(0.2 if number else 0.4); {ANSWERS}"
    running = start("labels", "config.yaml", cwd=tmp_path, before=own_workers(tmp_path, slow))
    wait_until(lambda: len(list(tmp_path.glob("session-*"))) == 2)
    running.signal(signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    numbers = {path.name.split("-")[1] for path in tmp_path.glob("session-*")}
    wait_until(lambda: not any(is_alive(int(number)) for number in numbers))


def is_alive(number):
    """Whether the process runs; one that has ended and that nobody has asked for is dead too."""
    try:
        with open(f"/proc/{number}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_true_workers_of_a_killed_process_end_without_a_word(tmp_path):
    many = CONFIG | {"labels": CONFIG["labels"] | {"n_points": 40_000, "shard_size": 20_000}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(many, sort_keys=False))
    running = start("labels", "config.yaml", cwd=tmp_path)
    found = []

    def begun():
        found[:] = [int(p.name) for p in os.scandir("/proc") if p.name.isdigit() and _works_in(p.name, tmp_path)]
        return len(found) == 2

    wait_until(begun)
    time.sleep(0.1)
    running.signal(signal.SIGKILL)
    done = running.wait()
    assert done.code == -signal.SIGKILL
    wait_until(lambda: not any(map(is_alive, found)))
    assert "Traceback" not in (running.folder / "err").read_text()


def _works_in(number, folder):
    try:
        with open(f"/proc/{number}/cmdline") as file:
            words = file.read().split("\0")
    except OSError:
        return False
    return "qfml.surrogate.worker_process" in words and any(word.startswith(str(folder)) for word in words)


def test_the_labels_are_those_of_one_process_after_a_refusal(tmp_path, monkeypatch):
    """A refused shard leaves nothing behind: the next call makes the same files as if there had been none."""
    make = labels_module.make_shard

    def refuses_the_second(problem, labels, number, *rest):
        if number == 1:
            raise ValueError("no price")
        return make(problem, labels, number, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(labels_module, "make_shard", refuses_the_second)
        with pytest.raises(UserError, match="shard 1 of"):
            make_labels(PROBLEM, LABELS, tmp_path / "a", workers=1)
    (folder,) = (tmp_path / "a").iterdir()
    assert {path.name for path in folder.iterdir()} == {"part-00000.parquet", "settings.json"}
    again, clean = (make_labels(PROBLEM, replace(LABELS), tmp_path / name, workers=1) for name in "ab")
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in clean]
