"""A small training to be recorded by a tracker, whole or cut off twice."""

import os
import signal

import numpy as np
import pytest

import qfml
from qfml.data import TimeDataset
from qfml.errors import Interrupted


class CutOff(qfml.engine.Callback):
    """Acts after so many new epochs of all members together."""

    def __init__(self, n_epochs, act):
        self.left, self.act = n_epochs, act

    def epoch(self, member, record, stopped):
        self.left -= 1
        if self.left == 0:
            self.act()


def fail():
    raise RuntimeError("power cut")


def train(callbacks, folder=None, resume=False):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((120, 3)).astype(np.float32)
    time = np.arange(120)
    ds = TimeDataset(X, X[:, 0] + 0.1 * rng.standard_normal(120), time=time, label_end=time + 1)
    network = qfml.MLP(hidden=(8,))
    members = [
        qfml.Member(network, np.arange(80), np.arange(80, 120), seed=0),
        qfml.Member(network, np.arange(60), None, seed=1),  # no validation loss
        qfml.Member(network, np.arange(60), np.arange(80, 120), seed=2, lr=1e30),  # diverges
    ]
    trainer = qfml.Trainer(max_epochs=6, batch_size=16, member_block=2, checkpoint_seconds=3600.0)
    return trainer.fit_many(
        members, qfml.MSE(), ds, callbacks=callbacks, checkpoint_dir=folder and folder / "checkpoints", resume=resume
    )


def train_cut_twice(make, folder):
    """Stopped with a checkpoint, then killed well after it, then whole; `make(resume)` makes the tracker."""
    with pytest.raises(Interrupted):
        train([make(False), CutOff(4, lambda: os.kill(os.getpid(), signal.SIGTERM))], folder)
    with pytest.raises(RuntimeError, match="power cut"):
        train([make(True), CutOff(4 + 5, fail)], folder, resume=True)
    return train([make(True)], folder, resume=True)
