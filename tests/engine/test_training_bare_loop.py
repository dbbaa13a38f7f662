"""Training against a loop written by hand in plain torch, and the rules of stopping."""

import math

import numpy as np
import pytest
import torch

import qfml
from qfml.data import TimeDataset
from qfml.engine.member import number, whole
from qfml.engine.streams import stream


def make_data(n=300, n_features=5, seed=0, weight=None):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, n_features)).astype(np.float32)
    y = X[:, 0] - 0.5 * X[:, 1] ** 2 + 0.1 * rng.standard_normal(n)
    time = np.datetime64("2010-01-01") + np.arange(n)
    return TimeDataset(X, y, time=time, label_end=time + 1, weight=weight)


def by_hand(ds, train, val, *, epochs, batch, lr, clip, seed=(0, 0)):
    """nn.Sequential, torch.optim.AdamW, torch's clipping and losses; the same first weights and the same shuffles."""
    first = qfml.MLP(hidden=(16, 8)).init(ds.n_features, None, stream(*seed, "init"))
    net = torch.nn.Sequential(
        torch.nn.Linear(ds.n_features, 16),
        torch.nn.ReLU(),
        torch.nn.Linear(16, 8),
        torch.nn.ReLU(),
        torch.nn.Linear(8, 1),
    )
    with torch.no_grad():
        for layer, name in ((net[0], "0"), (net[2], "1")):
            layer.weight.copy_(first[f"weight{name}"].T)
            layer.bias.copy_(first[f"bias{name}"])
        net[4].weight.copy_(first["head_weight"][None])
        net[4].bias.copy_(first["head_bias"])
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.01)
    weight = torch.ones(len(ds)) if ds.weight is None else ds.weight
    history = []
    for epoch in range(epochs):
        order = train[torch.randperm(len(train), generator=stream(*seed, "shuffle", epoch)).numpy()]
        total = 0.0
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            w = weight[rows]
            loss = (w * (net(ds.features[rows])[:, 0] - ds.y[rows]) ** 2).sum() / w.sum()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
            total += float(loss.detach() * w.sum())
        with torch.no_grad():
            w = weight[val]
            val_loss = float((w * (net(ds.features[val])[:, 0] - ds.y[val]) ** 2).sum() / w.sum())
        history.append((total / float(weight[train].sum()), val_loss))
    return net, history


@pytest.mark.parametrize("weighted", [False, True])
def test_history_and_predictions_equal_a_plain_torch_loop(weighted):
    rng = np.random.default_rng(3)
    ds = make_data(weight=rng.uniform(0, 2, 300) if weighted else None)
    train, val = np.arange(230), np.arange(230, 300)
    net, expected = by_hand(ds, train, val, epochs=4, batch=32, lr=3e-3, clip=0.7)
    trainer = qfml.Trainer(optimizer=qfml.AdamW(lr=3e-3), max_epochs=4, batch_size=32, clip_norm=0.7)
    fit = trainer.fit(qfml.MLP(hidden=(16, 8)), qfml.MSE(), ds, train=train, val=val)
    # fp32: sums in another order; 32 steps of a small network keep the difference near the rounding
    np.testing.assert_allclose([r["train_loss"] for r in fit.history], [h[0] for h in expected], rtol=2e-5)
    np.testing.assert_allclose([r["val_loss"] for r in fit.history], [h[1] for h in expected], rtol=2e-5)
    assert fit.best_epoch == 1 + int(np.argmin([h[1] for h in expected]))
    if fit.best_epoch == 4:
        with torch.no_grad():
            np.testing.assert_allclose(fit.predict(ds, val), net(ds.features[val])[:, 0].numpy(), rtol=1e-4, atol=1e-5)


def test_best_epoch_is_restored_and_patience_counts_epochs():
    ds = make_data(n=80)
    trainer = qfml.Trainer(optimizer=qfml.AdamW(lr=3e-2), max_epochs=400, batch_size=8, patience=7)
    train, val = np.arange(40), np.arange(40, 80)
    fit = trainer.fit(qfml.MLP(hidden=(64,)), qfml.MSE(), ds, train=train, val=val)
    losses = [record["val_loss"] for record in fit.history]
    assert fit.status == "early_stopped"
    assert fit.best_epoch == 1 + int(np.argmin(losses))
    assert fit.n_epochs == fit.best_epoch + 7
    mse = np.mean((fit.predict(ds, val) - ds.y[val].numpy()) ** 2)
    assert mse == pytest.approx(min(losses), rel=1e-5)


def test_without_validation_the_last_epoch_is_kept():
    ds = make_data()
    fit = qfml.Trainer(max_epochs=3, batch_size=64).fit(qfml.MLP(), qfml.MSE(), ds, train=np.arange(200))
    assert (fit.status, fit.n_epochs, fit.best_epoch, fit.best_val_loss) == ("finished", 3, 3, None)


@pytest.mark.parametrize("settings", [{}, {"clip_norm": 1e30, "metrics": ("mae",)}], ids=str)
def test_nan_freezes_one_member_at_its_last_finite_state_and_spares_the_others(settings):
    ds = make_data()
    trainer = qfml.Trainer(optimizer=qfml.SGD(lr=1e-2), max_epochs=6, batch_size=32, **settings)
    train, val = np.arange(200), np.arange(200, 300)
    good = qfml.Member(qfml.MLP(hidden=(16,)), train, val, seed=1)
    diverging = qfml.Member(qfml.MLP(hidden=(16,)), train, val, seed=2, lr=1e18)
    alone = trainer.fit_many([good], qfml.MSE(), ds)[0]
    fits = trainer.fit_many([diverging, good, diverging], qfml.MSE(), ds)
    assert [fit.status for fit in fits] == ["nan", "finished", "nan"]
    assert torch.equal(fits[1].parameters, alone.parameters)
    assert fits[1].history == alone.history
    assert all(bool(torch.isfinite(fit.parameters).all()) for fit in fits)
    assert fits[0].n_epochs == 1, "a member that is no longer finite is taken out at the end of its epoch"


def test_warm_start_continues_from_the_given_fit():
    ds = make_data()
    trainer = qfml.Trainer(optimizer=qfml.SGD(lr=1e-9), max_epochs=1, batch_size=64)
    first = qfml.Trainer(max_epochs=5, batch_size=64).fit(qfml.MLP(), qfml.MSE(), ds, train=np.arange(200))
    warm = trainer.fit_many([qfml.Member(qfml.MLP(), np.arange(200), start=first)], qfml.MSE(), ds)[0]
    torch.testing.assert_close(warm.parameters, first.parameters, rtol=1e-5, atol=1e-6)


def test_a_start_of_another_architecture_is_refused():
    ds, trainer = make_data(), qfml.Trainer(max_epochs=1, batch_size=64)
    wide = trainer.fit(qfml.MLP(hidden=(16,)), qfml.MSE(), ds, train=np.arange(200))
    with pytest.raises(ValueError, match=r"`start` is a fit of another architecture.*'weight0': \(5, 16\).*\(5, 8\)"):
        trainer.fit_many([qfml.Member(qfml.MLP(hidden=(8,)), np.arange(200), start=wide)], qfml.MSE(), ds)


def test_nothing_passed_in_is_changed():
    ds = make_data()
    train = np.arange(200)
    before = (ds.data_hash, train.copy())
    qfml.Trainer(max_epochs=2, batch_size=64).fit(qfml.MLP(), qfml.MSE(), ds, train=train)
    state = torch.random.get_rng_state()
    qfml.Trainer(max_epochs=1, batch_size=64).fit(qfml.MLP(dropout=0.5), qfml.MSE(), ds, train=train)
    assert ds.data_hash == before[0]
    assert np.array_equal(train, before[1])
    assert torch.equal(torch.random.get_rng_state(), state), "the global random state is not touched"


def test_dropout_drops_the_stated_share_in_training_only():
    network = qfml.MLP(hidden=(64,), dropout=0.25)
    row_bytes = torch.arange(256, dtype=torch.uint8).repeat(64)[:16384].view(1, 256, 64)
    x = torch.ones(1, 256, 64)
    dropped = qfml.networks.Dropout(row_bytes)(x, 0.25)
    assert float((dropped == 0).float().mean()) == 0.25
    assert float(dropped.mean()) == pytest.approx(1.0)
    ds = make_data()
    fit = qfml.Trainer(max_epochs=1, batch_size=64).fit(network, qfml.MSE(), ds, train=np.arange(200))
    assert np.array_equal(fit.predict(ds), fit.predict(ds))


def test_negative_sharpe_learns_a_known_signal():
    rng = np.random.default_rng(0)
    signal = rng.standard_normal(1500).astype(np.float32)
    returns = 0.002 * signal + 0.01 * rng.standard_normal(1500)
    time = np.datetime64("2010-01-01") + np.arange(1500)
    ds = TimeDataset(signal[:, None], returns, time=time, label_end=time + 1)
    trainer = qfml.Trainer(optimizer=qfml.AdamW(lr=1e-2), max_epochs=100, batch_size=None)
    fit = trainer.fit(qfml.MLP(hidden=(8,)), qfml.NegativeSharpe(cost_bps=0.0), ds, train=np.arange(1000))
    position = fit.predict(ds, np.arange(1000, 1500))
    assert np.corrcoef(position, signal[1000:])[0, 1] > 0.8
    pnl = position * returns[1000:]
    assert pnl.mean() / pnl.std() * math.sqrt(252) > 1.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": np.array([], dtype=np.int64)}, "`train` must be a non-empty 1-D array of row ids"),
        ({"train": np.array([0, 300])}, "`train` must hold row ids from 0 to 299, got 0 to 300"),
        ({"train": np.array([True, False])}, "`train` must be a non-empty 1-D array of row ids"),
        ({"val": np.array([5, 250])}, "`val` shares rows with `train`"),
    ],
)
def test_bad_rows_are_refused(change, message):
    arguments = {"train": np.arange(200), "val": np.arange(200, 300)} | change
    with pytest.raises(ValueError, match=message):
        qfml.Trainer(max_epochs=1, batch_size=32).fit(qfml.MLP(), qfml.MSE(), make_data(), **arguments)


def test_settings_that_do_not_fit_are_refused():
    ds = make_data()
    with pytest.raises(ValueError, match="`negative_sharpe` is a loss of the whole sample: set `batch_size` to None"):
        qfml.Trainer(max_epochs=1, batch_size=32).fit(
            qfml.MLP(), qfml.NegativeSharpe(cost_bps=1.0), ds, train=np.arange(9)
        )
    with pytest.raises(ValueError, match=r"`bce` needs labels in \[0, 1\]"):
        qfml.Trainer(max_epochs=1, batch_size=32).fit(qfml.MLP(), qfml.BCE(), ds, train=np.arange(9))
    with pytest.raises(ValueError, match="a temporal convolution needs windows"):
        qfml.Trainer(max_epochs=1, batch_size=32).fit(qfml.TCN(), qfml.MSE(), ds, train=np.arange(9))
    with pytest.raises(ValueError, match="`members` is empty"):
        qfml.Trainer(max_epochs=1, batch_size=32).fit_many([], qfml.MSE(), ds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_epochs": 0}, "`max_epochs` must be a whole number, at least 1, got 0"),
        ({"patience": True}, "`patience` must be a whole number, at least 1, got True"),
        ({"clip_norm": 0.0}, "`clip_norm` must be positive, got 0.0"),
        ({"device": "cdua"}, "`device` must name a torch device such as cpu or cuda, got 'cdua'"),
    ],
)
def test_trainer_settings_are_refused_by_name_and_value(change, message):
    with pytest.raises(ValueError, match=message):
        qfml.Trainer(**{"max_epochs": 1, "batch_size": 32} | change)


def test_rows_named_twice_are_refused():
    ds, trainer = make_data(), qfml.Trainer(max_epochs=1, batch_size=32)
    with pytest.raises(ValueError, match="`train` names a row twice: 3 ids, 2 of them distinct"):
        trainer.fit(qfml.MLP(), qfml.MSE(), ds, train=np.array([1, 1, 2]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -0.01}, "`lr` of a member must be positive and finite, got -0.01"),
        ({"lr": 0.0}, "`lr` of a member must be positive"),
        ({"lr": math.nan}, "`lr` of a member must be positive"),
        ({"weight_decay": -1.0}, "`weight_decay` of a member must be >= 0 and finite, got -1.0"),
        ({"clip_norm": -1.0}, "`clip_norm` of a member must be positive, got -1.0; leave it out to take the trainer's"),
        ({"clip_norm": 0.0}, "`clip_norm` of a member must be positive, got 0.0"),
        ({"patience": 0}, "`patience` of a member must be a whole number, at least 1, got 0"),
        ({"seed": True}, "`seed` of a member must be a whole number, got True"),
    ],
)
@pytest.mark.parametrize("member", [qfml.Member, qfml.engine.StreamMember])
def test_settings_of_a_member_are_refused_by_name_and_value(member, settings, message):
    rows = {"train": np.arange(9)} if member is qfml.Member else {}
    with pytest.raises(ValueError, match=message):
        member(qfml.MLP(), **rows, **settings)


@pytest.mark.parametrize("own", [{"lr": 0.02}, {"weight_decay": 3.0}, {"clip_norm": 0.1}, {"patience": 1}], ids=str)
def test_a_members_own_settings_are_those_of_a_trainer_that_has_them(own):
    ds, train, val = make_data(), np.arange(100), np.arange(200, 300)
    settings = {"max_epochs": 5, "batch_size": 32, "clip_norm": 5.0, "patience": 4, "min_delta": 0.5}
    optimizer = {"lr": 0.1, "weight_decay": 0.01}
    by_member, same = (
        qfml.Trainer(**settings, optimizer=qfml.AdamW(**optimizer)).fit_many([member], qfml.MSE(), ds)[0]
        for member in (
            qfml.Member(qfml.MLP(hidden=(8,)), train, val, **own),
            qfml.Member(qfml.MLP(hidden=(8,)), train, val),
        )
    )
    assert by_member.history != same.history
    optimizer |= {name: value for name, value in own.items() if name in optimizer}
    settings |= {name: value for name, value in own.items() if name in settings}
    trainer = qfml.Trainer(**settings, optimizer=qfml.AdamW(**optimizer))
    by_trainer = trainer.fit(qfml.MLP(hidden=(8,)), qfml.MSE(), ds, train=train, val=val)
    assert torch.equal(by_member.parameters, by_trainer.parameters)
    assert by_member.history == by_trainer.history


def test_numpys_numbers_become_pythons_and_nothing_else_does():
    """A seed names a random stream by its text, and numpy's 3 has another one."""
    assert [type(whole("seed", value)) for value in (3, np.int64(3), np.uint8(3))] == [int] * 3
    assert [type(number("lr", value)) for value in (1, 0.5, np.float32(0.5), np.int64(1))] == [float] * 4
    for value in (1.5, "1", None, np.float64(1.0)):
        with pytest.raises(ValueError, match="`seed` of a member must be a whole number, got"):
            whole("seed", value)
    for value in ("0.1", True, np.inf, 1j):
        with pytest.raises(ValueError, match="`lr` of a member must be positive and finite, got"):
            number("lr", value)
