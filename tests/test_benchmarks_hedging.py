"""The benchmarks of hedging run at tiny sizes, and their records hold what they are for; no time is judged."""

import importlib
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    """A benchmark's module by its name, with what it imports from beside itself."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def record_of(module, folder, monkeypatch, *words):
    path = folder / "record.json"
    monkeypatch.setattr(sys, "argv", [f"benchmarks/{module.__name__}.py", "--out", str(path), *words])
    module.main()
    return json.loads(path.read_text())


def test_hedging_is_raced_and_priced_beside_the_exact_optimum(bench, tmp_path, monkeypatch):
    module = bench("bench_hedging")
    for name, size in {"N_PATHS": 32, "N_STEPS": 2, "JUDGED": 2**12, "JUDGED_AT_A_TIME": 2**11}.items():
        monkeypatch.setattr(module, name, size)
    monkeypatch.setattr(module, "CURVE", (1.0, 10.0))
    monkeypatch.setattr(module.Pfhedge, "start", classmethod(lambda cls: None))  # the peer may be absent
    words = ("--repeats", "1", "--threads", "1", "--steps", "2", "--seconds", "0.01")
    record = record_of(module, tmp_path, monkeypatch, *words)
    assert record["problem"]["paths"] == 32
    assert len(record["contenders"]) == 5
    assert all(row["million_path_steps_per_second"] > 0 for row in record["contenders"].values())
    optimum = record["exact"]["optimum"]
    assert 0 < record["exact"]["frictionless"] < optimum
    assert len(record["after_equal_time"]) == 2
    for found in record["after_equal_time"].values():
        assert found["steps"] >= 1
        assert found["price"] > optimum - 4 * found["std_error"]  # nothing is better than the optimum


def test_memory_of_hedging_is_measured_of_each_policy_and_way(bench, tmp_path, monkeypatch, capsys):
    module = bench("bench_hedging_memory")
    asked = []

    def in_this_process(script, *words, timeout):
        asked.append((Path(script).name, *words))
        monkeypatch.setattr(sys, "argv", [script, "--peak", *words])
        capsys.readouterr()
        module.main()
        return {"bytes": int(capsys.readouterr().out)}

    monkeypatch.setattr(module, "PATHS", 4)
    monkeypatch.setattr(module.measure, "peak_in_child", in_this_process)
    record = record_of(module, tmp_path, monkeypatch, "--dates", "5")
    assert [words[0] for words in asked] == ["bench_hedging_memory.py"] * 4
    pairs = {f"{name}, {way}, 5 dates" for name in module.POLICIES for way in module.WAYS}
    assert record["rows"].keys() == pairs
    assert all(row["bytes"] >= 0 for row in record["rows"].values())
