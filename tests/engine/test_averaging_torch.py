"""Averages of weights against torch.optim.swa_utils, for members at different clocks, and in training."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import qfml
from qfml import config
from qfml.data import TimeDataset
from qfml.engine.averaging import AVERAGES, EMA, SWA
from qfml.engine.streams import stream
from qfml.errors import ConfigError


def make_data(n=160):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, 4)).astype(np.float32)
    time = np.datetime64("2010-01-01") + np.arange(n)
    return TimeDataset(X, X[:, 0] + 0.5 * rng.standard_normal(n), time=time, label_end=time + 1)


def plain(ds, epochs, averaged, take, train=100, batch=32, lr=0.05):
    """SGD in plain torch on a network with one tanh layer; `take(averaged model, model, end of epoch)` averages."""
    first = qfml.MLP(hidden=(8,), activation="tanh").init(4, None, stream(0, 0, "init"))
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    with torch.no_grad():
        net[0].weight.copy_(first["weight0"].T)
        net[0].bias.copy_(first["bias0"])
        net[2].weight.copy_(first["head_weight"][None])
        net[2].bias.copy_(first["head_bias"])
    optimizer, average = torch.optim.SGD(net.parameters(), lr=lr), averaged(net)
    val, val_losses = np.arange(train, len(ds)), []
    for epoch in range(epochs):
        order = torch.randperm(train, generator=stream(0, 0, "shuffle", epoch))
        for rows in order.split(batch):
            optimizer.zero_grad()
            (net(ds.features[rows])[:, 0] - ds.y[rows]).square().mean().backward()
            optimizer.step()
            take(average, net, None)
        take(average, net, epoch + 1)
        judged = average if int(average.n_averaged) else net
        with torch.no_grad():
            val_losses.append(float((judged(ds.features[val])[:, 0] - ds.y[val]).square().mean()))
    return average.module, val_losses


def ema_step(average, net, epoch):
    if epoch is None:
        average.update_parameters(net)


def swa_from_three(average, net, epoch):
    if epoch is not None and epoch >= 3:
        average.update_parameters(net)


@pytest.mark.parametrize(
    ("averaging", "averaged", "take"),
    [
        (EMA(decay=0.8), lambda net: AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.8)), ema_step),
        (SWA(start=3), AveragedModel, swa_from_three),
    ],
    ids=["ema", "swa"],
)
def test_trained_average_and_its_validation_losses_equal_torch(averaging, averaged, take):
    ds, train, val = make_data(), np.arange(100), np.arange(100, 160)
    module, val_losses = plain(ds, 6, averaged, take)
    trainer = qfml.Trainer(max_epochs=6, batch_size=32, optimizer=qfml.SGD(lr=0.05), averaging=averaging)
    network = qfml.MLP(hidden=(8,), activation="tanh")
    fit = trainer.fit(network, qfml.MSE(), ds, train=train, val=val)
    np.testing.assert_allclose([record["val_loss"] for record in fit.history], val_losses, rtol=1e-5)
    last = trainer.fit(network, qfml.MSE(), ds, train=train)  # without validation the last epoch is kept
    own = last.named_parameters()
    torch.testing.assert_close(own["weight0"].T, module[0].weight.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(own["head_weight"][None], module[2].weight.detach(), rtol=1e-5, atol=1e-6)
    unaveraged = replace(trainer, averaging=None).fit(network, qfml.MSE(), ds, train=train)
    assert not torch.allclose(last.parameters, unaveraged.parameters, rtol=1e-3)


def test_ema_of_members_with_different_counts_equals_torch_for_each():
    generator = torch.Generator().manual_seed(0)
    walk = torch.randn(12, 3, 5, generator=generator)
    averaging, average, count = EMA(decay=0.9), torch.zeros(3, 5), np.zeros(3, dtype=np.int64)
    models = [torch.nn.Linear(5, 1, bias=False) for _ in range(3)]
    theirs = [AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)) for model in models]
    for step, parameters in enumerate(walk):
        # a member enters the stack with a clock of its own: member 1 begins at step 3, member 2 at step 7
        begun = step >= np.array([0, 3, 7])
        count += begun
        average[~torch.from_numpy(begun)] = 0.0
        averaging.after_step(average, parameters, np.maximum(count, 1))
        for member in np.flatnonzero(begun):
            models[member].weight.data = parameters[member : member + 1].clone()
            theirs[member].update_parameters(models[member])
    for member in range(3):
        expected = theirs[member].module.weight[0].detach()
        torch.testing.assert_close(average[member], expected, rtol=1e-6, atol=1e-7)


def test_swa_is_the_mean_of_the_ends_of_epochs_from_its_start_on():
    walk = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    averaging, average = SWA(start=4), torch.full((5,), 7.0)
    for epoch, parameters in enumerate(walk, start=1):
        averaging.after_epoch(average, parameters, epoch)
        assert averaging.ready(epoch) == (epoch >= 4)
        if epoch >= 4:
            torch.testing.assert_close(average, walk[3:epoch].mean(0))
        else:
            assert (average == 7.0).all()


@pytest.mark.parametrize("averaging", [EMA(decay=0.9), SWA(start=2)], ids=lambda one: one.kind)
def test_averages_in_a_stack_equal_solo(averaging):
    ds = make_data()
    trainer = qfml.Trainer(max_epochs=6, batch_size=16, averaging=averaging, patience=2)
    members = [
        qfml.Member(qfml.MLP(hidden=(9,)), np.arange(40 + 20 * i), np.arange(120, 160), seed=i) for i in range(4)
    ]
    for member, fit in zip(members, trainer.fit_many(members, qfml.MSE(), ds)):
        solo = trainer.fit_many([member], qfml.MSE(), ds)[0]
        assert torch.equal(solo.parameters, fit.parameters)
        assert solo.history == fit.history


@pytest.mark.parametrize("averaging", [EMA(decay=0.9), SWA(start=2)], ids=lambda one: one.kind)
def test_training_itself_does_not_notice_the_average(averaging):
    ds, train = make_data(), np.arange(100)
    trainer = qfml.Trainer(max_epochs=4, batch_size=32)
    without = trainer.fit(qfml.MLP(hidden=(8,)), qfml.MSE(), ds, train=train)
    averaged = replace(trainer, averaging=averaging).fit(qfml.MLP(hidden=(8,)), qfml.MSE(), ds, train=train)
    losses = [[record["train_loss"] for record in fit.history] for fit in (without, averaged)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "ema", "decay": 1.0}, r"`decay` must lie in \(0, 1\), got 1.0"),
        ({"kind": "ema", "decay": 0.0}, r"`decay` must lie in \(0, 1\), got 0.0"),
        ({"kind": "swa", "start": 0}, "`start` must be a whole number, at least 1, got 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        config.build_kind(AVERAGES, settings)
