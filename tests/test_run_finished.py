"""A run folder that is damaged, unfinished or of a search: every reader says so, and what to do."""

import json

import pytest

from qfml import predict
from qfml.errors import UserError
from qfml.export import export_run
from qfml.finished import read_metrics
from qfml.report import write_report
from qfml.run import resume
from qfml.summary import show_run

PRICES = "prices.csv"
READERS = {
    "metrics": read_metrics,
    "predict": lambda folder: predict(folder, PRICES),
    "export": export_run,
    "report": write_report,
    "resume": resume,
    "terminal": show_run,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 100_000])
def test_damaged_metrics_are_named(reader, content, tmp_path):
    (tmp_path / "config.yaml").write_text("task: calibration\nsurface: dax_2002\nmodel: heston\n")
    (tmp_path / "metrics.json").write_bytes(content)
    with pytest.raises(UserError, match=r"metrics\.json is damaged: .*run it again"):
        READERS[reader](tmp_path)


@pytest.mark.parametrize("reader", [name for name in READERS if name != "report"])
@pytest.mark.parametrize("finished", [False, True])
def test_a_search_is_told_from_a_run(reader, finished, tmp_path):
    (tmp_path / "config.yaml").write_text("task: walk_forward\ntune:\n  n_trials: 3\n")
    if finished:
        (tmp_path / "winner").mkdir()
        for folder in (tmp_path, tmp_path / "winner"):
            (folder / "metrics.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match="is a search"):
        READERS[reader](tmp_path)


def test_the_page_of_an_unfinished_search_says_how_it_goes_on(tmp_path):
    (tmp_path / "config.yaml").write_text("task: walk_forward\ntune: {n_trials: 3}\n")
    with pytest.raises(UserError, match=r"no finished search in .*qfml resume"):
        write_report(tmp_path)
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(UserError, match=r"metrics\.json is damaged"):
        write_report(tmp_path)


def test_predict_needs_what_the_rule_reads(tmp_path):
    (tmp_path / "config.yaml").write_text("task: calibration\nsurface: dax_2002\nmodel: heston\n")
    (tmp_path / "metrics.json").write_text(json.dumps({"task": "calibration"}))
    with pytest.raises(UserError, match="for `task: walk_forward`, got 'calibration'"):
        predict(tmp_path, PRICES)
