"""Files that are whole or not there, whatever happens while they are written."""

import os

import pytest

from qfml.files import replace_file, replace_text, write_whole


def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace

    def flushed(descriptor):
        done.append(("flushed", os.fstat(descriptor).st_ino, os.fstat(descriptor).st_size))
        fsync(descriptor)

    def renamed(old, new):
        done.append(("renamed", os.stat(old).st_ino, os.stat(old).st_size))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    replace_file(tmp_path / "a", lambda beside: beside.write_bytes(b"12345"))
    replace_text(tmp_path / "b", "1 €")
    write_whole(b"1234567", tmp_path / "c")
    assert [(what, size) for what, _, size in done] == [(w, n) for n in (5, 5, 7) for w in ("flushed", "renamed")]
    assert [number for what, number, _ in done if what == "flushed"] == [
        (tmp_path / name).stat().st_ino for name in "abc"
    ]
    assert (tmp_path / "b").read_text(encoding="utf-8") == "1 €"


def test_every_file_of_a_run_goes_this_way(tmp_path, monkeypatch):
    """The writers of tables, metrics, labels and the page flush what they rename."""
    from qfml.report.layout import Charts
    from qfml.report.markup import Html
    from qfml.report.page import write_page
    from qfml.surrogate import shards
    from qfml.task import base

    seen, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (seen.append(os.fstat(descriptor).st_ino), fsync(descriptor)))
    base.write_metrics(tmp_path, {"rmse": 1.0})
    shards.write_whole(b"labels", tmp_path / "labels")
    write_page(tmp_path, "title", Html("head"), [], Charts())
    assert seen == [(tmp_path / name).stat().st_ino for name in ("metrics.json", "labels", "report.html")]
    assert len(list(tmp_path.iterdir())) == 3


def test_what_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "table"
    replace_text(path, "old")

    def fails(beside):
        beside.write_text("half")
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        replace_file(path, fails)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
