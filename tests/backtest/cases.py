"""Small data sets and a trainer without training, shared by the tests of the walk-forward."""

import numpy as np
import torch

from qfml.data import TimeDataset
from qfml.engine import Fit
from qfml.engine.stack import Layout


def single_asset(n=320, seed=0, signal=0.0, horizon=1, classify=False, returns=True):
    """Daily rows of one asset; feature 0 forecasts the label, its forward return, with strength `signal`."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 3)).astype(np.float32)
    r = 0.01 * (signal * X[:, 0] + rng.normal(size=n))
    y = (r > 0).astype(float) if classify else r
    days = np.datetime64("2020-01-01") + np.arange(n)
    return TimeDataset(X, y, time=days, label_end=days + horizon, returns=r if returns else None)


def panel(n_days=200, n_assets=5, seed=0, missing=0.1):
    """A panel with rows missing at random, the rows of all assets mixed."""
    rng = np.random.default_rng(seed)
    day, asset = np.nonzero(rng.random((n_days, n_assets)) >= missing)
    order = rng.permutation(len(day))
    day, asset = day[order], asset[order]
    time = np.datetime64("2020-01-01") + day
    r = rng.normal(0, 0.01, len(day))
    r[rng.random(len(day)) < 0.02] = np.nan  # some returns are not known
    X = rng.normal(size=(len(day), 3))
    names = np.array([f"asset{i}" for i in range(n_assets)])
    return TimeDataset(X, np.nan_to_num(r), time=time, label_end=time + 1, group=names[asset], returns=r)


class FakeFit(Fit):
    """Predicts feature 0, shifted so that members can differ."""

    def predict(self, ds, rows=None):
        return ds.features[ds.ends[rows], 0].double().numpy() + float(self.parameters)


class FakeTrainer:
    """Trains nothing, and records what it was asked to train."""

    def __init__(self, shift=lambda member: 0.0):
        self.calls, self.shift = [], shift

    def fit_many(self, members, loss, ds, **options):
        self.calls.append((list(members), options))
        history = ({"epoch": 1, "train_loss": 1.0, "val_loss": None},)
        return [
            FakeFit(
                each.network,
                loss,
                torch.tensor(self.shift(each)),
                Layout(()),
                each.transforms,
                each.seed,
                "finished",
                history,
                1,
            )
            for each in members
        ]
