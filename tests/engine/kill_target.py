"""A small training run for the resume tests: `python kill_target.py FOLDER [resume]` writes FOLDER/result.json."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

import qfml
from qfml.data import TimeDataset
from qfml.data.transforms import Standardise


class Told(qfml.engine.Callback):
    """Keeps what a fit tells, and says on standard output that an epoch has ended."""

    def __init__(self):
        self.told = []

    def epoch(self, member, record, stopped):
        self.told.append([member, record, stopped])
        print("epoch", flush=True)


def dataset():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((500, 6)).astype(np.float32)
    y = X[:, 0] * X[:, 1] + 0.3 * rng.standard_normal(500)
    time = np.datetime64("2010-01-01") + np.arange(500)
    return TimeDataset(X, y, time=time, label_end=time + 1)


def train(folder, resume, **settings):
    ds = dataset()
    network = qfml.MLP(hidden=(24, 12), dropout=0.1, layer_norm=True)
    scale = Standardise().fit(ds.features[:250])
    members = [
        qfml.Member(network, np.arange(300 + 10 * i), np.arange(400, 500), seed=i, lr=1e-3 * (i + 1), patience=5 + i)
        for i in range(5)
    ]
    members[3] = qfml.Member(network, np.arange(300), np.arange(400, 500), seed=3, transforms=scale)
    members[4] = qfml.Member(network, np.arange(300), np.arange(400, 500), seed=4, lr=1e30)  # ends as nan
    options = {"max_epochs": 25, "batch_size": 16, "member_block": 3, "checkpoint_seconds": 0.0} | settings
    told = Told()
    fits = qfml.Trainer(**options).fit_many(
        members, qfml.MSE(), ds, checkpoint_dir=folder / "checkpoints", resume=resume, callbacks=[told]
    )
    return fits, told.told


def describe(fits, told):
    def digest(fit):
        return hashlib.sha256(fit.parameters.numpy().tobytes()).hexdigest()

    # as text: nan equals itself, and Python writes a float with all its bits
    last = {member: record for member, record, _ in told}
    return json.dumps(
        [[digest(fit), fit.status, fit.best_epoch, list(fit.history), last[i]] for i, fit in enumerate(fits)]
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    result = describe(*train(folder, resume=len(sys.argv) > 2))
    (folder / "result.json").write_text(result)
