"""Training a user's own module: against a plain torch loop, in a stack against alone, resumed against uninterrupted."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import qfml
from qfml.data import TimeDataset
from qfml.data.transforms import Standardise
from qfml.errors import Interrupted
from qfml.networks import Module


def make_data(window=None):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 5)).astype(np.float32)
    time = np.datetime64("2010-01-01") + np.arange(300)
    return TimeDataset(X, np.tanh(X[:, 0] * X[:, 1]), time=time, label_end=time + 1, window=window)


def mlp():
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1))


def with_dropout():
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.recurrent, self.dropout, self.last = nn.GRU(5, 8, batch_first=True), nn.Dropout(0.1), nn.Linear(8, 1)

    def forward(self, x):
        return self.last(self.dropout(self.recurrent(x)[0][:, -1]))


def members(network, n=4):
    return [qfml.Member(network, np.arange(10, 150 + 10 * i), np.arange(200, 290), seed=i) for i in range(n)]


def test_training_equals_a_plain_torch_loop():
    ds, train, val = make_data(), np.arange(200), np.arange(200, 300)
    trainer = qfml.Trainer(optimizer=qfml.AdamW(lr=1e-2), max_epochs=12, batch_size=None)
    fit = trainer.fit(mlp, qfml.MSE(), ds, train=train, val=val)
    start = qfml.Trainer(optimizer=qfml.SGD(lr=1e-30), max_epochs=1, batch_size=None)
    module = Module(mlp).module(start.fit(mlp, qfml.MSE(), ds, train=train).named_parameters())
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        ((module(ds.features[:200])[:, 0] - ds.y[:200]) ** 2).mean().backward()
        optimizer.step()
        with torch.no_grad():
            losses.append(float(((module(ds.features[200:])[:, 0] - ds.y[200:]) ** 2).mean()))
    assert [record["val_loss"] for record in fit.history] == pytest.approx(losses, rel=1e-4)
    kept = fit.network.module(fit.named_parameters())
    with torch.no_grad():
        expected = kept(ds.features)[:, 0].double().numpy()
    np.testing.assert_allclose(fit.predict(ds), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("factory", [mlp, with_dropout])
def test_a_stacked_member_agrees_with_itself_alone(factory):
    ds, trainer = make_data(), qfml.Trainer(max_epochs=3, batch_size=50)
    for member, fit in zip(members(factory), trainer.fit_many(members(factory), qfml.MSE(), ds)):
        alone = trainer.fit_many([member], qfml.MSE(), ds)[0]
        torch.testing.assert_close(fit.parameters, alone.parameters, rtol=1e-5, atol=1e-5)
        assert fit.history[-1]["val_loss"] == pytest.approx(alone.history[-1]["val_loss"], rel=1e-4)
    assert not torch.equal(fit.parameters, trainer.fit_many(members(factory), qfml.MSE(), ds)[0].parameters)


def test_micro_batches_of_a_module_with_dropout_give_the_same_gradient():
    ds = make_data()
    whole = qfml.Trainer(max_epochs=2, batch_size=64)
    parts = qfml.Trainer(max_epochs=2, batch_size=64, micro_batch_size=16)
    a, b = (t.fit(with_dropout, qfml.MSE(), ds, train=np.arange(200)) for t in (whole, parts))
    torch.testing.assert_close(a.parameters, b.parameters, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def recurrent():
    """The factory, after its one warning."""
    ds = make_data(window=4)
    with pytest.warns(UserWarning, match="Recurrent is trained member by member") as told:
        qfml.Trainer(max_epochs=1, batch_size=32).fit_many(members(Recurrent, 2), qfml.MSE(), ds)
    assert len(told) == 1
    return Recurrent


def test_what_cannot_be_stacked_has_the_same_bits_in_any_company(recurrent):
    ds, trainer = make_data(window=4), qfml.Trainer(max_epochs=3, batch_size=50)
    for member, fit in zip(members(recurrent, 3), trainer.fit_many(members(recurrent, 3), qfml.MSE(), ds)):
        alone = trainer.fit_many([member], qfml.MSE(), ds)[0]
        assert torch.equal(fit.parameters, alone.parameters)
        assert fit.history == alone.history


@pytest.mark.parametrize("factory", [with_dropout, Recurrent])
def test_a_resumed_training_has_the_bits_of_an_uninterrupted_one(tmp_path, recurrent, factory):
    ds = make_data(window=4 if factory is Recurrent else None)
    trainer = qfml.Trainer(max_epochs=4, batch_size=50, checkpoint_seconds=0.0)

    class Stop(qfml.Callback):
        told = 0

        def epoch(self, member, record, stopped):
            self.told += 1
            if self.told == 7:
                raise Interrupted(15)
            return False

    whole = trainer.fit_many(members(factory, 3), qfml.MSE(), ds)
    with pytest.raises(Interrupted):
        trainer.fit_many(members(factory, 3), qfml.MSE(), ds, checkpoint_dir=tmp_path, callbacks=[Stop()])
    resumed = trainer.fit_many(members(factory, 3), qfml.MSE(), ds, checkpoint_dir=tmp_path, resume=True)
    for a, b in zip(whole, resumed):
        assert torch.equal(a.parameters, b.parameters)
        assert a.history == b.history


def test_resume_tells_another_module_from_the_one_that_was_trained(tmp_path):
    ds, trainer = make_data(), qfml.Trainer(max_epochs=1, batch_size=50)
    trainer.fit(mlp, qfml.MSE(), ds, train=np.arange(200), checkpoint_dir=tmp_path)
    with pytest.raises(qfml.errors.CheckpointError, match="belongs to other data, members or settings"):
        trainer.fit(with_dropout, qfml.MSE(), ds, train=np.arange(200), checkpoint_dir=tmp_path, resume=True)


def test_transforms_frozen_groups_warm_starts_and_losses_of_the_whole_sample_reach_a_module():
    ds = make_data()
    scale = Standardise().fit(ds.features[:200])
    group = qfml.ParameterGroup("0.*", lr_factor=0.0)
    trainer = qfml.Trainer(max_epochs=2, batch_size=None, parameter_groups=(group,))
    first = qfml.Trainer(max_epochs=2, batch_size=50).fit(mlp, qfml.MSE(), ds, train=np.arange(200))
    member = qfml.Member(mlp, np.arange(200), transforms=scale, start=first)
    fit = trainer.fit_many([member], qfml.NegativeSharpe(cost_bps=1.0), ds)[0]
    before, after = first.named_parameters(), fit.named_parameters()
    assert torch.equal(before["0.weight"], after["0.weight"])
    assert not torch.equal(before["2.weight"], after["2.weight"])


def test_random_state_and_warnings_stay_as_they_are():
    ds = make_data()
    before = torch.random.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = qfml.Trainer(max_epochs=1, batch_size=50).fit(with_dropout, qfml.MSE(), ds, train=np.arange(200))
    assert np.array_equal(fit.predict(ds), fit.predict(ds))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_network_that_is_none_is_still_refused():
    for network in (qfml.MLP, int, "mlp", nn.Linear(5, 1)):
        with pytest.raises(qfml.errors.UserError, match=r"`(network|factory)` must"):
            qfml.Member(network, np.arange(9))


def test_fits_of_a_module_are_not_saved_and_nothing_is_left_behind(tmp_path):
    """A factory is code, and no file can hold it; the parameters are the user's to keep."""
    fit = qfml.Trainer(max_epochs=1, batch_size=50).fit(mlp, qfml.MSE(), make_data(), train=np.arange(200))
    with pytest.raises((TypeError, qfml.errors.UserError), match="Module"):
        qfml.engine.save_fits(tmp_path / "fits", [fit])
    assert not (tmp_path / "fits").exists()
    kept = {name: value.numpy().copy() for name, value in fit.named_parameters().items()}
    module = Module(mlp).module({name: torch.from_numpy(value) for name, value in kept.items()})
    x = make_data().features
    np.testing.assert_allclose(module(x)[:, 0].detach(), fit.predict(make_data()), rtol=1e-5, atol=1e-6)


def test_a_network_of_a_named_factory_survives_pickling_by_reference():
    network = Module(Recurrent)
    cls, arguments = network.__reduce__()
    assert cls(*arguments) == network
