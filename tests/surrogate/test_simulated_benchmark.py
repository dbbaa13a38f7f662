"""The benchmark of differential labels runs, at a small size, on labels of a real problem; no time is judged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_record_compares_errors_by_labels_and_by_time(tmp_path: Path):
    path = tmp_path / "record.json"
    words = "--sizes 64 256 --paths 16 --updates 60 --test-points 32 --test-paths 1024 --steps 12 --width 8 --seeds 1"
    command = [sys.executable, str(ROOT / "benchmarks" / "bench_differential_labels.py"), "--out", str(path)]
    done = subprocess.run([*command, *words.split()], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(path.read_text())
    assert [row["labels"] for row in record["rows"]] == [64, 256]
    for row in record["rows"]:
        for name in ("plain", "differential"):
            assert 0 < row[name]["rmse_bps"] < record["typical_price_bps"] * 2
            assert row[name]["total_seconds"] > row[name]["training_seconds"] > 0
    assert record["label_noise_bps"] > record["test_noise_bps"] > 0
