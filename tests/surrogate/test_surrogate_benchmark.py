"""The benchmark of a surrogate runs for every shipped config, at a small size; no time is judged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = {
    "training.trainer.max_epochs": 4,
    "training.trainer.batch_size": 64,
    "judgement.n_points": 64,
    "judgement.n_calibration": 99,
    "judgement.n_greeks": 4,
    "judgement.n_bins": 2,
    "judgement.speed_paths": 0,
}
OF_CONFIG = {
    "surrogate_heston": {"labels.n_points": 64},
    "surrogate_rough_bergomi": {
        "labels.n_points": 32,
        "labels.engine.n_paths": 256,
        "judgement.engine.n_paths": 512,
        "judgement.engine.n_steps": 20,
    },
    "surrogate_asian_barrier": {"labels.n_points": 256, "judgement.engine.n_paths": 1024},
    "surrogate_bermudan": {"labels.n_points": 32, "judgement.n_greeks": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs").glob("surrogate_*.yaml")))
def test_the_record_of_a_config_has_errors_noise_coverage_speed_and_parity(name: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    words = ["--config", f"configs/{name}.yaml", "--out", str(path), "--repeats", "1", "--threads", "1"]
    words += ["--rows", "2000", "--simulated", "4"]
    for setting, value in (SMALL | OF_CONFIG[name]).items():
        words += ["--set", f"{setting}={value}"]
    command = [sys.executable, "benchmarks/bench_surrogate.py", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(path.read_text())
    assert (record["config"], record["benchmark"]) == (f"{name}.yaml", f"surrogate of {name}")
    assert f"--config configs/{name}.yaml" in record["command"]
    simulated = name in ("surrogate_rough_bergomi", "surrogate_asian_barrier")
    noise = record["label_noise"]
    assert [noise[key] > 0 for key in ("of_training_labels", "of_fresh_labels")] == [simulated, simulated]
    assert noise["rmse"] == record["error"]["rmse"] > 0
    assert 0.8 < record["conformal"]["coverage"] <= 1.0
    assert {file: found["largest_difference"] < 1e-5 for file, found in record["onnx"].items()} == {
        "model.onnx": True,
        "model_greeks.onnx": True,
    }
    engines = {"surrogate_heston": "Fourier, 1 thread", "surrogate_bermudan": "FiniteDifference, 1 thread"}
    own = [row for row in record["contenders"] if not row.startswith("surrogate")]
    assert own == ([] if simulated else [engines[name]])
    assert record["simulation"]["engine"] == ("LongstaffSchwartz" if name == "surrogate_bermudan" else "MonteCarlo")
    assert record["simulation"]["times_surrogate"] > 0
    assert bool(record["bars"]) == (name == "surrogate_heston")
