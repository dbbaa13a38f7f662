"""Twin losses against a bare loop that differentiates twice, the stack, micro-batches, and what they are worth."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from network_stacks import generator, inputs

import qfml
from qfml.data import TimeDataset
from qfml.data.transforms import Standardise
from qfml.engine.backward import losses_and_gradient
from qfml.engine.differential import labels_of
from qfml.engine.feed import Batch
from qfml.engine.fit import load_fits, save_fits
from qfml.engine.stack import Layout
from qfml.engine.streams import stream
from qfml.errors import DataError, UserError

TRAIN, VAL = np.arange(150), np.arange(150, 200)


def make_data(n=200, n_features=3, window=None, weights=False, seed=0):
    """y = exp(x0 / 2) + sin(x1) x2 and its exact derivatives; in windows the sum over their rows, 3 features each."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, *(() if window is None else (window,)), n_features)).astype(np.float32)
    a, b, c = (X[..., j].astype(np.float64) for j in range(3))
    value, gradient = np.exp(a / 2) + np.sin(b) * c, np.zeros(X.shape)
    gradient[..., 0], gradient[..., 1], gradient[..., 2] = np.exp(a / 2) / 2, np.cos(b) * c, np.sin(b)
    gradient[..., 3:] = 0.01
    value = value + 0.01 * X[..., 3:].sum(-1)
    time = np.datetime64("2010-01-01") + np.arange(n)
    options = {} if window is None else {"window_start": time - window}
    weight = rng.uniform(0.1, 2.0, n) if weights else None
    y = value if window is None else value.sum(1)
    return TimeDataset(X, y, time=time, label_end=time + 1, label_gradient=gradient, weight=weight, **options)


def by_hand(loss, forward, x, y, gradient, weight):
    """The loss of one member in plain torch: x (B, F), the slopes row by row."""
    x = x.clone().requires_grad_()
    output = forward(x)
    (slopes,) = torch.autograd.grad(output.sum(), x, create_graph=True)
    n = len(loss.gradient_scale)
    value = (output - y).square() / loss.label_scale**2
    derivatives = ((slopes - gradient) / torch.tensor(loss.gradient_scale, dtype=x.dtype)).square().flatten(1).mean(1)
    alpha = 1 / (1 + loss.balance * n)
    return ((alpha * value + (1 - alpha) * derivatives) * weight).sum() / weight.sum()


def plain(p):
    return lambda x: torch.tanh(x @ p["weight0"] + p["bias0"]) @ p["head_weight"] + p["head_bias"]


def test_sizes_are_those_of_the_training_rows():
    ds = make_data()
    loss = qfml.Twin.of(ds, TRAIN, balance=0.5)
    assert loss.label_scale == pytest.approx(float(np.std(ds.y[TRAIN].numpy(), ddof=1)), rel=1e-6)
    expected = np.sqrt(np.square(ds.label_gradient[TRAIN].numpy()).mean(0))
    np.testing.assert_allclose(loss.gradient_scale, expected, rtol=1e-6)
    assert loss.balance == 0.5


@pytest.mark.parametrize("size", [None, 16, 33])
def test_losses_and_gradients_equal_a_double_backward_in_float64(size):
    loss = qfml.Twin(label_scale=1.7, gradient_scale=(0.3, 2.0, 5.0, 1.0), balance=0.8)
    network = qfml.MLP(hidden=(7,), activation="tanh")
    drawn = [network.init(4, None, generator(seed)) for seed in range(3)]
    layout = Layout.of(drawn[0])
    flat = torch.stack([layout.flatten(one) for one in drawn]).double()
    x, y, weight = inputs(3, 48, 4), inputs(3, 48, 5, seed=1), inputs(3, 48, seed=2).abs()
    weight[:, 40:] = 0
    total = weight.sum(1, keepdim=True)
    views, got = layout.views(flat, requires_grad=True), torch.zeros_like(flat)

    def take(values, weights, first):
        layout.gradient(values, views, got, weights, add=not first)

    batch = Batch(x, y, weight, weight / total, total[:, 0])
    losses = losses_and_gradient(lambda x, part: network.forward(views, x), loss, batch, size, take)
    for m in range(3):
        own = {name: value[m].detach().requires_grad_() for name, value in views.items()}
        expected = by_hand(loss, plain(own), x[m], y[m, :, 0], y[m, :, 1:], weight[m])
        assert float(losses[m]) == pytest.approx(float(expected.detach()), rel=1e-12)
        slopes = torch.cat([slope.flatten() for slope in torch.autograd.grad(expected, list(own.values()))])
        torch.testing.assert_close(got[m, : len(slopes)], slopes, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("micro", [None, 32])
def test_training_equals_a_bare_loop(micro):
    ds, network = make_data(weights=True), qfml.MLP(hidden=(8,), activation="tanh")
    loss = qfml.Twin.of(ds, TRAIN)
    settings = {"optimizer": qfml.SGD(lr=0.05, momentum=0.0), "max_epochs": 10, "batch_size": None}
    trainer = qfml.Trainer(**settings, micro_batch_size=micro, metrics=("mse",))
    fit = trainer.fit(network, loss, ds, train=TRAIN, val=VAL)
    own = {name: torch.nn.Parameter(p) for name, p in network.init(3, None, stream(0, 0, "init")).items()}
    optimizer = torch.optim.SGD(own.values(), lr=0.05)

    def value(rows):
        return by_hand(loss, plain(own), ds.features[rows], ds.y[rows], ds.label_gradient[rows], ds.weight[rows])

    for record in fit.history:
        before = value(TRAIN)
        assert record["train_loss"] == pytest.approx(float(before.detach()), rel=1e-4)
        optimizer.zero_grad()
        before.backward()
        optimizer.step()
        assert record["val_loss"] == pytest.approx(float(value(VAL).detach()), rel=1e-4)
    assert fit.best_epoch == 10
    for name, p in fit.named_parameters().items():
        torch.testing.assert_close(p, own[name].detach(), rtol=1e-4, atol=1e-5)
    error = np.square(fit.predict(ds, VAL) - ds.y[VAL].double().numpy()).mean()
    assert fit.history[-1]["val_mse"] == pytest.approx(error, rel=1e-12)


CASES = {
    "no filling": (qfml.MLP(hidden=(16, 8), activation="tanh"), 16, None),
    "odd": (qfml.MLP(hidden=(9, 5), activation="gelu", layer_norm=True, dropout=0.2), 5, None),
    "residual": (qfml.ResidualMLP(width=16, blocks=1, hidden=16, activation="silu"), 16, None),
    "tcn": (qfml.TCN(channels=(6,), kernel=2, activation="tanh"), 3, 3),
    "lstm": (qfml.LSTM(hidden=8), 4, 3),
    "transformer": (qfml.Transformer(width=8, heads=2, layers=1, hidden=8, activation="gelu"), 3, 3),
    "convex": (qfml.ConvexMLP(convex=(0, 1, 2), hidden=(8, 5)), 3, None),
    "monotone": (qfml.MonotoneMLP(increasing=(0,), hidden=(9, 5)), 3, None),
    "tabm": (qfml.TabM(hidden=(8, 5), k=3, activation="silu"), 5, None),
}


@pytest.mark.parametrize("name", CASES)
def test_a_member_of_a_stack_equals_solo(name):
    network, n_features, window = CASES[name]
    ds = make_data(n_features=n_features, window=window)
    loss = qfml.Twin.of(ds, TRAIN)
    trainer = qfml.Trainer(max_epochs=2, batch_size=40, micro_batch_size=32)
    members = [qfml.Member(network, np.arange(20 * seed, 150), VAL[: 40 + seed], seed=seed) for seed in range(3)]
    for member, fit in zip(members, trainer.fit_many(members, loss, ds)):
        (alone,) = trainer.fit_many([member], loss, ds)
        assert torch.equal(alone.parameters, fit.parameters)
        assert alone.history == fit.history
        assert fit.status == "finished"


def test_derivatives_make_more_of_the_same_rows(tmp_path):
    ds = make_data(n=1100)
    train, test = np.arange(100), np.arange(100, 1100)
    trainer = qfml.Trainer(optimizer=qfml.AdamW(lr=1e-2), max_epochs=80, batch_size=50)
    network = qfml.MLP(hidden=(24, 24), activation="silu")
    errors = {}
    for loss in (qfml.MSE(), qfml.Twin.of(ds, train)):
        fits = trainer.fit_many([qfml.Member(network, train, seed=seed) for seed in range(2)], loss, ds)
        errors[loss.kind] = np.mean([np.square(fit.predict(ds, test) - ds.y[test].numpy()).mean() for fit in fits])
        save_fits(tmp_path / loss.kind, fits)
        loaded, _ = load_fits(tmp_path / loss.kind)
        assert loaded[0].loss == loss
        assert np.array_equal(loaded[0].predict(ds, test), fits[0].predict(ds, test))
    assert errors["twin"] < 0.5 * errors["mse"]


def test_a_training_that_diverges_says_where():
    ds = make_data()
    trainer = qfml.Trainer(max_epochs=30, batch_size=32, optimizer=qfml.SGD(lr=1e4))
    fit = trainer.fit(qfml.MLP(hidden=(8,), activation="silu"), qfml.Twin.of(ds, TRAIN), ds, train=TRAIN, val=VAL)
    assert fit.status == "nan"
    assert "is not finite" in fit.failure or "the loss of" in fit.failure
    assert bool(torch.isfinite(fit.parameters).all())


def test_gradients_go_with_their_samples():
    ds = make_data()
    X, gradient = ds.features.numpy(), np.repeat(ds.label_gradient.numpy()[:, None], 4, axis=1)
    keys = {"time": ds.time, "label_end": ds.label_end}
    cut = TimeDataset(X, ds.y, **keys, window=4, label_gradient=gradient)
    assert cut.label_gradient.shape == (197, 4, 3)
    assert np.array_equal(cut.label_gradient.numpy(), gradient[3:])
    assert torch.equal(ds.to("cpu").label_gradient, ds.label_gradient)
    without = TimeDataset(X, ds.y, **keys)
    other = TimeDataset(X, ds.y, **keys, label_gradient=2 * ds.label_gradient)
    assert len({ds.data_hash, without.data_hash, other.data_hash}) == 3
    with pytest.raises(DataError, match=r"`label_gradient` must have shape \(200, 3\), that of the samples, got"):
        TimeDataset(X, ds.y, **keys, label_gradient=np.zeros((200, 2)))
    with pytest.raises(DataError, match="`label_gradient` must be finite"):
        TimeDataset(X, ds.y, **keys, label_gradient=np.full((200, 3), np.nan))


def test_what_twin_losses_cannot_learn_from_is_refused():
    ds = make_data()
    loss, network = qfml.Twin.of(ds, TRAIN), qfml.MLP(hidden=(4,), activation="tanh")
    trainer = qfml.Trainer(max_epochs=1, batch_size=32)
    without = TimeDataset(ds.features, ds.y, time=ds.time, label_end=ds.label_end)
    scaler = Standardise().fit(ds.features[TRAIN])

    def refused(message, network=network, loss=loss, ds=ds, trainer=trainer, transforms=None):
        with pytest.raises(UserError, match=message):
            trainer.fit_many([qfml.Member(network, TRAIN, transforms=transforms)], loss, ds)

    refused("learns from derivatives: give the `TimeDataset` a `label_gradient`", ds=without)
    refused("`gradient_scale` must hold 3 numbers, one a feature, got 2", loss=qfml.Twin(1.0, (1.0, 1.0)))
    refused("member 0 has `transforms`, after which the derivatives", transforms=scaler)
    refused(r"the network mlp of member 0 has kinks \(relu\)", network=qfml.MLP(hidden=(4,)))
    refused(r"the network convex_mlp of member 0 has kinks", network=qfml.ConvexMLP(convex=(0,), hidden=(4,)))
    refused("`precision` must be fp32 or tf32 with the loss twin", trainer=replace(trainer, precision="bf16"))
    with pytest.raises(UserError, match="`ds` has no `label_gradient`"):
        qfml.Twin.of(without, TRAIN)
    flat = TimeDataset(
        ds.features,
        ds.y,
        time=ds.time,
        label_end=ds.label_end,
        label_gradient=ds.label_gradient * torch.tensor([1, 0, 1]),
    )
    with pytest.raises(UserError, match="derivative in feature 1 is 0 on all `rows`"):
        qfml.Twin.of(flat, TRAIN)
    for bad in ({"label_scale": 0.0}, {"gradient_scale": ()}, {"gradient_scale": (1.0, -1.0)}, {"balance": 0.0}):
        with pytest.raises(UserError, match="must be positive and finite"):
            qfml.Twin(**{"label_scale": 1.0, "gradient_scale": (1.0,)} | bad)


@pytest.mark.parametrize("loss", [qfml.MSE(), qfml.NegativeSharpe(cost_bps=1.0)], ids=lambda loss: loss.kind)
def test_a_member_whose_rows_all_have_weight_zero_is_refused(loss):
    plain = make_data()
    weight = np.ones(200)
    weight[:100] = 0
    keys = {"time": plain.time, "label_end": plain.label_end}
    ds = TimeDataset(plain.features, 0.01 * plain.y, **keys, weight=weight)
    trainer, network = qfml.Trainer(max_epochs=1, batch_size=None), qfml.MLP(hidden=(4,))
    with pytest.raises(UserError, match="all 50 rows of `train` of member 0 have weight 0"):
        trainer.fit(network, loss, ds, train=np.arange(50))
    with pytest.raises(UserError, match="all 50 rows of `val` of member 0 have weight 0"):
        trainer.fit(network, loss, ds, train=VAL, val=np.arange(50))
    fit = trainer.fit(network, loss, ds, train=np.arange(90, 150), val=VAL)
    assert np.isfinite(fit.history[0]["train_loss"])
    if not loss.additive:
        with pytest.raises(UserError, match=r"needs at least 2 periods whose weight is not 0, and `train` .* has 1"):
            trainer.fit(network, loss, ds, train=np.arange(90, 101))


def test_weights_of_derivatives_multiply_their_squared_errors():
    ds = make_data()
    gradient = ds.label_gradient.numpy()
    share = np.random.default_rng(3).uniform(0.0, 2.0, gradient.shape)
    X, y, keys = ds.features.numpy(), ds.y.numpy(), {"time": ds.time, "label_end": ds.label_end}
    weighted = TimeDataset(X, y, **keys, label_gradient=gradient, label_gradient_weight=share)
    loss = qfml.Twin(0.5, (1.0, 2.0, 3.0), balance=0.7)
    output = torch.randn(1, len(ds), 4, generator=torch.Generator().manual_seed(1))
    found = loss.rows(output, labels_of(loss, weighted)[None])[0].double().numpy()
    error = np.square(output[0].double().numpy() - np.c_[ds.y.numpy(), gradient])
    expected = error[:, 0] / 0.25 + 0.7 * (share * error[:, 1:] / np.square([1.0, 2.0, 3.0])).sum(1)
    np.testing.assert_allclose(found, expected / (1 + 0.7 * 3), rtol=1e-5)
    size = np.sqrt((share * np.square(gradient))[TRAIN].sum(0) / share[TRAIN].sum(0))
    np.testing.assert_allclose(qfml.Twin.of(weighted, TRAIN).gradient_scale, size, rtol=1e-5)
    assert weighted.data_hash != ds.data_hash
    with pytest.raises(DataError, match=r"`label_gradient_weight` must be finite and >= 0"):
        TimeDataset(X, y, **keys, label_gradient=gradient, label_gradient_weight=-share)
    with pytest.raises(DataError, match=r"there is no `label_gradient`: pass it too"):
        TimeDataset(X, y, **keys, label_gradient_weight=share)
