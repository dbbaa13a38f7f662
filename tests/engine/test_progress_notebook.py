"""The progress bar in a terminal, a file and a notebook, with and without widgets."""

import importlib.util
import warnings
from itertools import pairwise

import numpy as np
import pytest

import qfml
from qfml.data import TimeDataset


@pytest.fixture
def notebook(monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def train(bar, epochs=4):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 3)).astype(np.float32)
    time = np.datetime64("2010-01-01") + np.arange(60)
    ds = TimeDataset(X, X[:, 0], time=time, label_end=time + 1)
    members = [qfml.Member(qfml.MLP(hidden=(4,)), np.arange(60), seed=seed) for seed in range(2)]
    with bar:
        return qfml.Trainer(max_epochs=epochs, batch_size=30).fit_many(members, qfml.MSE(), ds, callbacks=[bar])


def test_a_notebook_without_widgets_gets_one_line_that_is_written_over(notebook, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # rich would ask for ipywidgets at every refresh
        train(qfml.Bar(folds=2))
    text = capsys.readouterr()
    assert text.err == ""
    assert text.out.count("\n") == 1
    assert text.out.endswith("\n")
    last = text.out.split("\r")[-1]
    assert last.startswith("training 100 %, folds 2/2, members 2/2, epochs 8, loss ")
    assert "\x1b" not in text.out


def test_lines_are_as_long_as_those_that_they_write_over(notebook, capsys, monkeypatch):
    seconds = iter(np.arange(0.0, 1e4, 1.0).tolist())
    monkeypatch.setattr("qfml.engine.progress.time.monotonic", lambda: next(seconds))
    train(qfml.Bar())
    lines = [line.rstrip("\n") for line in capsys.readouterr().out.split("\r")[1:]]
    assert len(lines) == 8
    assert all(len(line) >= len(before.rstrip()) for before, line in pairwise(lines))


def test_elsewhere_nothing_is_written_as_text(capsys):
    bar = qfml.Bar()
    train(bar)
    assert not bar.as_text
    assert "\r" not in capsys.readouterr().out
