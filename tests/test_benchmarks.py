"""The benchmarks of pricers run, at small sizes, and their records hold what they are for; no time is judged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def record_of(name, folder, *words):
    path = folder / "record.json"
    script = str(ROOT / "benchmarks" / f"bench_{name}.py")
    command = [sys.executable, script, "--out", str(path), "--repeats", "1", "--threads", "1", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())


def test_fourier_record_is_accurate_beside_quantlib(tmp_path):
    cases = record_of("fourier", tmp_path, "--no-memory", "--size", "50")["cases"]
    assert len(cases) == 5
    for case in cases.values():
        rows = case["contenders"]
        assert sum(name.startswith("QuantLib") for name in rows) >= 2
        error = rows["pricers, 1 thread"]
        assert error.get("max_error_of_forward", 0.0) < 1e-8
        assert error.get("max_relative_error", 0.0) < 1e-7
        assert case.get("truth_against_mpmath_of_forward", 0.0) < 1e-13


def test_implied_vol_record_keeps_what_is_promised(tmp_path):
    for peer in ("fast_vollib", "py_lets_be_rational"):
        pytest.importorskip(peer, reason="a peer of the `bench` extra")
    rows = record_of("implied_vol", tmp_path, "--no-memory", "--size", "2000")["contenders"]
    assert rows["pricers, 1 thread"]["max_error_in_promised"] < 1.0
    assert rows["pricers, 1 thread"]["share_without_vol"] == 0.0
    assert {"QuantLib", "fast-vollib", "py_lets_be_rational"} <= set(rows)


def test_simulation_record_agrees_with_the_exact_price(tmp_path):
    record = record_of("simulation_peers", tmp_path, "--no-memory", "--paths", "8192", "--points", "2000")
    row = record["simulation"]["contenders"]["pricers QE-M, eager, 1 thread"]
    assert abs(row["bias_of_forward"]) <= 4.0 * row["standard_error_of_forward"] < 0.01
    if isinstance(record["pfhedge"], str):
        assert ".venv-peers" in record["pfhedge"]
    else:
        assert all(found["largest_difference"] < 1e-9 for found in record["closed_forms"]["instruments"].values())


def test_greeks_record_is_accurate_beside_quantlib(tmp_path):
    cases = record_of("greeks", tmp_path, "--size", "30")["cases"]
    assert len(cases) >= 4
    for case in cases.values():
        rows = case["contenders"]
        assert any(name.startswith("QuantLib") for name in rows)
        judged = [
            row["max_relative_error"]
            for name, row in rows.items()
            if name.startswith("pricers") and "max_relative_error" in row
        ]
        assert judged
        assert max(judged) < 1e-7
