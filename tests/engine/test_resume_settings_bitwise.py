"""Whatever a member remembers survives a resume: optimizer, schedule, average, scale, sampler, dropout, to the bit."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

import qfml
from qfml.data import TimeDataset
from qfml.data.transforms import Standardise
from qfml.engine import EMA, SWA, Plateau, Warmup
from qfml.engine.optimizers import LBFGS, SGD, Adagrad, Lion, Muon, RAdam, RMSprop
from qfml.engine.sampling import ClassBalanced, Sequential, SequentialBootstrap, Weighted
from qfml.errors import Interrupted


def make_data(n=260):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, 5)).astype(np.float32)
    y = np.where(X[:, 0] + 0.5 * rng.standard_normal(n) > 0, 1.0, 0.0)
    time = np.datetime64("2010-01-01") + np.arange(n)
    return TimeDataset(X, y, time=time, label_end=time + 1, weight=rng.uniform(0.0, 2.0, n))


def make_members(ds, network):
    """Of different lengths, rates, limits and patience, each with a dropout and a transform of its own."""
    scales = [Standardise().fit(ds.features[:100]), None, Standardise().fit(ds.features[50:150])]
    return [
        qfml.Member(
            replace(network, dropout=(0.1, 0.4, 0.4)[i]) if network.dropout else network,
            np.arange(60 + 40 * i),
            np.arange(200, 250),
            seed=i,
            lr=0.02 / (1 + i),
            clip_norm=(None, 0.3, 2.0)[i] if network.dropout else None,
            patience=(None, 2, 5)[i],
            transforms=scales[i],
        )
        for i in range(3)
    ]


class Stop(qfml.Callback):
    """Asks the process to end after so many steps of all members together, in the midst of an epoch."""

    def __init__(self, steps):
        self.left = steps

    def log(self, member, step, values):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


SETTINGS = {
    "plateau after warm-up, highest metric": {
        "schedule": Warmup(length=3, then=Plateau(gamma=0.5, patience=0)),
        "metrics": ("roc_auc",),
        "monitor": "val_roc_auc",
        "mode": "max",
        "optimizer": RMSprop(momentum=0.9, centered=True),
        "sampler": Weighted(),
    },
    "average over steps": {"averaging": EMA(0.8), "optimizer": Adagrad(), "sampler": ClassBalanced()},
    "average over epochs": {"averaging": SWA(2), "optimizer": SGD(momentum=0.9), "sampler": Sequential()},
    "half precision": {"precision": "fp16", "averaging": EMA(0.8), "optimizer": RAdam()},
    "steps that end within an epoch": {"max_steps": 7, "max_epochs": 50, "optimizer": Muon(), "member_block": 2},
    "draws": {"sampler": SequentialBootstrap(), "optimizer": Lion()},
}


def resumed(trainer, members, ds, folder):
    """Stopped twice within an epoch, and resumed to the end."""
    trainer = replace(trainer, log_every=1, checkpoint_seconds=3600.0)
    for resume, steps in ((False, 4), (True, 7)):
        with pytest.raises(Interrupted):
            trainer.fit_many(members, qfml.BCE(), ds, checkpoint_dir=folder, resume=resume, callbacks=[Stop(steps)])
    return trainer.fit_many(members, qfml.BCE(), ds, checkpoint_dir=folder, resume=True)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_resumed_training_has_the_bits_of_an_uninterrupted_one(tmp_path, settings):
    ds = make_data()
    members = make_members(ds, qfml.MLP(hidden=(12, 7), dropout=0.1))
    trainer = qfml.Trainer(**{"max_epochs": 3, "batch_size": 32} | settings)
    for a, b in zip(trainer.fit_many(members, qfml.BCE(), ds), resumed(trainer, members, ds, tmp_path), strict=True):
        assert torch.equal(a.parameters, b.parameters)
        assert repr(a.history) == repr(b.history)
        assert (a.status, a.best_epoch) == (b.status, b.best_epoch)


def test_line_searches_resume_and_do_not_notice_members_that_have_stopped(tmp_path):
    ds = make_data()
    members = make_members(ds, qfml.MLP(hidden=(6,), activation="tanh"))
    members = [replace(member, train=np.arange(10 * i, 150 + 10 * i), lr=None) for i, member in enumerate(members)]
    trainer = qfml.Trainer(max_epochs=8, batch_size=None, optimizer=LBFGS())
    whole = trainer.fit_many(members, qfml.BCE(), ds)
    assert len({fit.n_epochs for fit in whole}) > 1, "some member must have stopped before the others"
    for member, a, b in zip(members, whole, resumed(trainer, members, ds, tmp_path), strict=True):
        (alone,) = trainer.fit_many([member], qfml.BCE(), ds)
        for other in (b, alone):
            assert torch.equal(a.parameters, other.parameters)
            assert a.history == other.history
