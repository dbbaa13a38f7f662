"""A training on another device mixes nothing with the CPU; the device is pretended, its numbers are real."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from elsewhere import pretended

import qfml
from qfml.data import TimeDataset
from qfml.networks import NETWORKS

TRAIN, VAL = np.arange(160), np.arange(161, 200)
TRAINER = qfml.Trainer(optimizer=qfml.AdamW(lr=1e-3), max_epochs=2, batch_size=32, clip_norm=1.0)
NETWORK, MSE = qfml.MLP(hidden=(8,)), qfml.MSE()
WINDOWED = ("tcn", "lstm", "gru", "transformer")
CHOSEN = {"convex_mlp": {"convex": (0,)}, "monotone_mlp": {"increasing": (1,)}}
TRAININGS = {
    **{kind: {"network": made(**CHOSEN.get(kind, {}))} for kind, made in NETWORKS.items()},
    "dropout and averages": {"network": qfml.MLP(hidden=(8,), dropout=0.25), "averaging": qfml.EMA(0.9)},
    "all rows": {"batch_size": None},
    "small pieces": {"micro_batch_size": 8},
    "early stop": {"patience": 1},
    "lbfgs": {"optimizer": qfml.LBFGS(), "batch_size": None, "clip_norm": None},
    "muon": {"optimizer": qfml.Muon(lr=1e-2)},
    "quantiles": {"loss": qfml.Quantiles(levels=(0.1, 0.5, 0.9))},
    "a loss of the sample": {"loss": qfml.NegativeSharpe(cost_bps=1.0), "batch_size": None},
}


def data(windowed):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 5, 4) if windowed else (200, 4)).astype(np.float32)
    days = np.datetime64("2020-01-01") + np.arange(200)
    y = 0.1 * X[..., 0].reshape(200, -1)[:, -1]
    return TimeDataset(X, y, time=days, label_end=days + 1, window_start=days - 4 * windowed)


def trained(device, network=NETWORK, loss=MSE, **settings):
    ds = data(network.kind in WINDOWED)
    members = [qfml.Member(network, TRAIN, VAL, seed=seed, lr=1e-3 * (seed + 1)) for seed in range(2)]
    fits = replace(TRAINER, device=device, **settings).fit_many(members, loss, ds)
    return torch.stack([fit.parameters for fit in fits]), fits[0].predict(ds, VAL)


@pytest.mark.parametrize("training", TRAININGS)
def test_training_stays_there_and_ends_with_the_numbers_of_the_cpu(training, monkeypatch):
    parameters, predictions = trained("cpu", **TRAININGS[training])
    with pretended(monkeypatch) as device:
        found, told = trained(device, **TRAININGS[training])
    torch.testing.assert_close(getattr(found, "here", found), parameters, rtol=0, atol=1e-6)
    np.testing.assert_allclose(told, predictions, rtol=0, atol=1e-6)
