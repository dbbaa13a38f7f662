"""The files of a training hold exactly what the fits know, once, however often it was cut off."""

import json

import numpy as np
import pandas as pd
import pytest
from engine.tracked_training import fail, train, train_cut_twice

from qfml.config import build_kind, to_dict
from qfml.engine.tracking import TRACKERS, Csv, JsonLines
from qfml.errors import UserError


def same(told, known):
    return told is None if known is None else np.array_equal(float(told), known, equal_nan=True)


@pytest.mark.parametrize("cut", [False, True])
def test_json_lines_are_the_histories_and_endings_of_the_fits(tmp_path, cut):
    path = tmp_path / "made" / "training.jsonl"
    fits = train_cut_twice(lambda resume: JsonLines(path, resume), tmp_path) if cut else train([JsonLines(path)])
    lines = [json.loads(line, parse_constant=fail) for line in path.read_text().splitlines()]
    assert {fit.status for fit in fits} == {"finished", "nan"}
    for member, fit in enumerate(fits):
        *epochs, end = [line for line in lines if line["member"] == member]
        assert end["status"] == fit.status
        assert end["best_epoch"] == fit.best_epoch
        assert same(end["best_val_loss"], fit.best_val_loss)
        assert len(epochs) == len(fit.history)
        for line, record in zip(epochs, fit.history):
            assert line.keys() == {"member", *record}
            assert all(same(line[name], value) for name, value in record.items())
    assert len(lines) == sum(fit.n_epochs + 1 for fit in fits)


@pytest.mark.parametrize("cut", [False, True])
def test_a_csv_is_the_histories_of_the_fits(tmp_path, cut):
    path = tmp_path / "training.csv"
    fits = train_cut_twice(lambda resume: Csv(path, resume), tmp_path) if cut else train([Csv(path)])
    frame = pd.read_csv(path)
    assert set(frame["axis"]) == {"epoch"}
    for member, fit in enumerate(fits):
        own = frame[frame["member"] == member].pivot(index="at", columns="name", values="value")
        known = pd.DataFrame(fit.history).astype(float).set_index("epoch").sort_index(axis=1)
        np.testing.assert_array_equal(own.to_numpy(), known.to_numpy())  # every bit: nothing is rounded
        assert list(own.index) == list(known.index)
    assert len(frame) == sum(2 * fit.n_epochs for fit in fits)  # no line twice


@pytest.mark.parametrize("tracker", [JsonLines, Csv])
def test_a_cut_training_writes_the_file_of_a_whole_one(tmp_path, tracker):
    train([tracker(tmp_path / "whole")])
    train_cut_twice(lambda resume: tracker(tmp_path / "cut", resume), tmp_path)
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"cut", "whole", "checkpoints"}


def told(tracker, n_epochs, loss=0.1):
    tracker.begin(1, 3)
    tracker.log(0, 7, {"gradient norm, clipped": float("inf")})
    for epoch in range(1, n_epochs + 1):
        tracker.epoch(0, {"epoch": epoch, "train_loss": loss + epoch, "val_loss": None}, stopped=False)
    return tracker.path.read_text()


@pytest.mark.parametrize("tracker", [JsonLines, Csv])
def test_a_line_that_a_kill_tore_is_written_again(tmp_path, tracker):
    whole = told(tracker(tmp_path / "whole"), 3)
    for n_kept in range(len(whole)):
        (tmp_path / "torn").write_text(whole[:n_kept])
        assert told(tracker(tmp_path / "torn", resume=True), 3) == whole


@pytest.mark.parametrize("tracker", [JsonLines, Csv])
def test_other_numbers_of_the_same_epoch_replace_the_first(tmp_path, tracker):
    told(tracker(tmp_path / "file"), 3, loss=0.2)
    assert told(tracker(tmp_path / "file", resume=True), 3) == told(tracker(tmp_path / "other"), 3)


def test_the_formats_to_the_letter(tmp_path):
    assert told(JsonLines(tmp_path / "a"), 1) == (
        '{"member": 0, "step": 7, "gradient norm, clipped": "inf"}\n'
        '{"member": 0, "epoch": 1, "train_loss": 1.1, "val_loss": null}\n'
    )
    assert told(Csv(tmp_path / "b"), 1) == (
        "member,axis,at,name,value\n"
        '0,step,7,"gradient norm, clipped",inf\n'
        "0,epoch,1,train_loss,1.1\n"
        "0,epoch,1,val_loss,\n"
    )


@pytest.mark.parametrize("tracker", [JsonLines, Csv])
def test_a_file_that_is_there_is_left_alone(tmp_path, tracker):
    told(tracker(tmp_path / "file"), 1)
    with pytest.raises(UserError, match="file already exists: give each training a file of its own"):
        told(tracker(tmp_path / "file"), 1)
    for content, line in (
        ("member,axis,at,name,value\n1,2\n", r"line \d"),
        ("[]\n", "line 1"),
        ('{"member": 0, "a": 1}\n', "line 1"),
        ("\n", "line 1"),
    ):
        (tmp_path / "mine").write_text(content)
        with pytest.raises(UserError, match=f"mine is not a file of this tracker: {line} is"):
            told(tracker(tmp_path / "mine", resume=True), 1)
        assert (tmp_path / "mine").read_text() == content


def test_a_logged_number_may_be_called_epoch(tmp_path):
    for resume in (False, True):
        tracker = JsonLines(tmp_path / "a", resume)
        tracker.begin(1, 1)
        tracker.log(0, 7, {"epoch": 1, "loss": 0.5})
        tracker.epoch(0, {"epoch": 1, "loss": 0.25}, stopped=True)
    lines = (tmp_path / "a").read_text().splitlines()
    assert lines == ['{"member": 0, "step": 7, "epoch": 1, "loss": 0.5}', '{"member": 0, "epoch": 1, "loss": 0.25}']


def test_trackers_are_settings():
    tracker = build_kind(TRACKERS, {"kind": "json_lines", "path": "runs/training.jsonl", "resume": True})
    assert isinstance(tracker, JsonLines)
    assert to_dict(tracker) == {"kind": "json_lines", "path": "runs/training.jsonl", "resume": True}


def test_a_summary_says_where_a_member_failed(tmp_path):
    fits = train([JsonLines(tmp_path / "a")])
    ends = [line for line in map(json.loads, (tmp_path / "a").read_text().splitlines()) if "status" in line]
    assert [line.get("failure") for line in ends] == [fit.failure for fit in fits]
    assert ends[2]["failure"].startswith("step ")
    assert "failure" not in ends[0]


@pytest.mark.parametrize("tracker", [JsonLines, Csv])
def test_a_name_may_hold_anything(tmp_path, tracker):
    name = 'a\nb,"c"\r../\u2028'  # as of a parameter of one's own module
    for resume in (False, True):
        one = tracker(tmp_path / "a", resume)
        one.begin(1, 1)
        one.log(0, 1, {name: 1.0})
    assert len((tmp_path / "a").read_bytes().strip().split(b"\n")) == 1 + (tracker is Csv)
