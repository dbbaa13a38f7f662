"""A box of one coordinate has no pairs: it is trained, judged, and its page made, like any other."""

import json

import yaml
from command_line import qfml

SETTINGS = {
    "task": "surrogate",
    "name": "smile",
    "problem": {
        "model": {"kind": "black_scholes", "vol": 0.2},
        "instrument": {"kind": "european", "expiry": 1.0},
        "market": {"spot": 1.0},
        "box": {"strike": {"low": 0.7, "high": 1.4}},
        "target": "price",
    },
    "labels": {"n_points": 64, "seed": 1, "folder": "labels"},
    "training": {
        "network": {"kind": "mlp", "hidden": [8], "activation": "silu"},
        "trainer": {"max_epochs": 2, "batch_size": 64},
        "n_seeds": 1,
    },
    "judgement": {"n_points": 120, "n_calibration": 120, "n_greeks": 0, "speed_paths": 0},
    "workers": 1,
}


def test_a_box_of_one_coordinate_runs_to_its_page(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(SETTINGS, sort_keys=False))
    done = qfml("run", "config.yaml", "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    page = (tmp_path / "run" / "report.html").read_text()
    assert "error along strike" in page
    assert "Over pairs of coordinates" not in page
    regions = json.loads((tmp_path / "run" / "metrics.json").read_text())["judgement"]["regions"]
    assert regions["coordinates"] == ["strike"]
