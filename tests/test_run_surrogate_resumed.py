"""A surrogate that is resumed: from where its labels are, and with its seconds named for what they are."""

import json

import pytest
import yaml
from command_line import qfml
from test_run_surrogate import SMALL

KILLED = "import os\nimport qfml.task.surrogate as t\nt.fit_surrogate = lambda *a, **k: os.kill(os.getpid(), 9)"


@pytest.mark.slow
def test_labels_are_looked_for_where_the_run_was_begun(tmp_path):
    quick = {
        "labels": SMALL["labels"] | {"n_points": 64},
        "training": SMALL["training"] | {"trainer": SMALL["training"]["trainer"] | {"max_epochs": 2}, "n_seeds": 1},
        "judgement": {"n_points": 100, "n_calibration": 100, "n_greeks": 0, "speed_paths": 0},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(SMALL | quick, sort_keys=False))
    assert qfml("run", "config.yaml", "--out", "run", cwd=tmp_path, before=KILLED).code == -9
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "labels").glob("**/*.parquet")}
    assert len(made) == 1
    (tmp_path / "elsewhere").mkdir()
    done = qfml("resume", "../run", cwd=tmp_path / "elsewhere")
    assert done.code == 2, done.err
    told = " ".join(done.err.split())
    assert f"`labels.folder: labels` is that seen from {tmp_path}" in told
    assert not list((tmp_path / "elsewhere").iterdir())
    done = qfml("resume", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "labels").glob("**/*.parquet")} == made
    seconds = json.loads((tmp_path / "run" / "metrics.json").read_text())["seconds"]
    names = {"labels_since_resume", "training_since_resume", "judgement", "total_since_resume"}
    assert set(seconds) == names
    assert "Seconds, total since resume" in (tmp_path / "run" / "report.html").read_text()
