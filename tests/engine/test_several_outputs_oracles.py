"""Heads with several outputs: losses against torch and scikit-learn, every network, the stack, storage, metrics."""

from dataclasses import replace

import numpy as np
import pytest
import sklearn.metrics
import torch
from network_stacks import generator, inputs, moved_off_the_start, stack_of

import qfml
from qfml.data import TimeDataset
from qfml.engine.fit import load_fits, save_fits
from qfml.engine.stack import Layout
from qfml.engine.streams import stream
from qfml.errors import UserError
from qfml.losses import CrossEntropy, Pinball, Quantiles
from qfml.networks import NETWORKS

TRAIN, VAL = np.arange(200), np.arange(200, 300)
LOSSES = [CrossEntropy(n_classes=3, class_weight=(1.0, 2.0, 0.5)), Quantiles(levels=(0.1, 0.5, 0.9))]
WINDOW = 4
CASES = {
    "mlp": qfml.MLP(hidden=(9, 7), dropout=0.2, layer_norm=True),
    "residual_mlp": qfml.ResidualMLP(width=9, blocks=1, hidden=13),
    "monotone_mlp": qfml.MonotoneMLP(increasing=(1,), decreasing=(0,), hidden=(9, 5)),
    "convex_mlp": qfml.ConvexMLP(convex=(1,), hidden=(9, 5)),
    "tabm": qfml.TabM(hidden=(9, 5), k=3),
    "tcn": qfml.TCN(channels=(6, 5), kernel=3),
    "lstm": qfml.LSTM(hidden=7),
    "gru": qfml.GRU(hidden=7),
    "transformer": qfml.Transformer(width=8, heads=2, layers=1, hidden=16),
}


def make_data(loss, n=300, window=None, seed=0):
    """Three classes of a linear score, or a label whose spread depends on the features."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 5)).astype(np.float32)
    noise = rng.standard_normal((n, 3))
    y = (X[:, :3] + 0.3 * noise).argmax(1) if loss.kind == "cross_entropy" else X[:, 0] + np.exp(X[:, 1]) * noise[:, 0]
    time = np.datetime64("2010-01-01") + np.arange(n)
    return TimeDataset(X, y, time=time, label_end=time + 1, window=window)


@pytest.mark.parametrize("class_weight", [None, (1.0, 2.0, 0.25, 3.0)])
def test_cross_entropy_and_its_gradient_equal_torchs(class_weight):
    output = 4 * inputs(3, 20, 4)
    y = torch.randint(0, 4, (3, 20), generator=generator())
    weight = None if class_weight is None else torch.tensor(class_weight, dtype=torch.float64)
    output.requires_grad_(True)
    got = CrossEntropy(n_classes=4, class_weight=class_weight).rows(output, y.double())
    expected = torch.nn.functional.cross_entropy(output.transpose(1, 2), y, weight=weight, reduction="none")
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)
    slopes = [torch.autograd.grad(value.square().sum(), output, retain_graph=True)[0] for value in (got, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("class_weight", [None, (1.0, 5.0, 0.2)])
def test_cross_entropy_predicts_the_frequencies_of_classes_whatever_the_weights(class_weight):
    loss = CrossEntropy(n_classes=3, class_weight=class_weight)
    y = torch.tensor([[0.0] * 6 + [1.0] * 3 + [2.0]], dtype=torch.float64)
    logits = torch.zeros(1, 1, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], line_search_fn="strong_wolfe", max_iter=100, tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        value = loss.rows(logits.expand(1, 10, 3), y).sum()
        value.backward()
        return value

    optimizer.step(closure)
    expected = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    torch.testing.assert_close(loss.prediction(logits.detach())[0, 0], expected, rtol=1e-4, atol=0)


def test_quantiles_are_the_mean_of_pinball_losses():
    levels = (0.05, 0.5, 0.8)
    output, y = inputs(2, 30, 3), inputs(2, 30, seed=3)
    expected = sum(Pinball(level=level).rows(output[..., k], y) for k, level in enumerate(levels)) / 3
    torch.testing.assert_close(Quantiles(levels=levels).rows(output, y), expected, rtol=1e-13, atol=0)


def test_sorted_quantiles_never_cross_and_never_raise_the_loss():
    loss = Quantiles(levels=(0.05, 0.3, 0.5, 0.9))
    output, y = inputs(2, 200, 4), inputs(2, 200, seed=3)
    predicted = loss.prediction(output)
    assert bool((predicted.diff(dim=-1) >= 0).all())
    assert bool((loss.rows(predicted, y) <= loss.rows(output, y) + 1e-15).all())
    assert bool((loss.rows(predicted, y) < loss.rows(output, y) - 1e-3).any())


@pytest.mark.parametrize("name", NETWORKS)
def test_each_output_is_that_of_a_network_of_its_own(name):
    # the parameters of one output, cut out of those of three, give the network of one output that all oracles know
    network = replace(CASES[name], dropout=0.0) if name == "mlp" else CASES[name]
    drawn = [network.init(5, WINDOW, generator(seed), 3) for seed in range(2)]
    several = {key: torch.stack([one[key] for one in drawn]).double() for key in drawn[0]}
    several = moved_off_the_start(several)
    single = stack_of(network, 5, WINDOW, 2, torch.float64)
    x = inputs(2, 16, WINDOW, 5)
    output = network.forward(several, x)
    assert output.shape == (2, 16, 3)
    assert several.keys() == single.keys()
    for k in range(3):
        own = {}
        for key, value in several.items():
            if value.shape == single[key].shape:
                own[key] = value
            else:
                cut = value[..., k : k + 1]
                own[key] = cut if cut.shape == single[key].shape else cut[..., 0]
        torch.testing.assert_close(network.forward(own, x), output[..., k], rtol=1e-12, atol=1e-13)


def test_one_output_draws_what_it_always_drew():
    for network in CASES.values():
        implicit, explicit = network.init(5, WINDOW, generator()), network.init(5, WINDOW, generator(), 1)
        assert all(torch.equal(implicit[key], explicit[key]) for key in implicit)


@pytest.mark.parametrize("n_outputs", [2, 3, 5, 16])
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_and_gradients_in_a_stack_equal_solo(name, n_outputs):
    network = CASES[name]
    drawn = [network.init(5, WINDOW, generator(seed), n_outputs) for seed in range(3)]
    layout = Layout.of(drawn[0])
    flat = torch.stack([layout.flatten(one) for one in drawn])
    x = inputs(3, 32, WINDOW, 5, dtype=torch.float32)
    y = torch.randint(0, n_outputs, (3, 32), generator=generator()).float()
    loss = CrossEntropy(n_classes=n_outputs)

    def output_and_gradient(own):
        views = layout.views(flat[own].clone(), requires_grad=True)
        output = network.forward(views, x[own].clone())
        rows = loss.rows(output, y[own])
        return output, rows, loss.prediction(output), layout.gradient(rows.sum(1), views, torch.zeros_like(flat[own]))

    whole = output_and_gradient(slice(0, 3))
    for member in range(3):
        for part, expected in zip(output_and_gradient(slice(member, member + 1)), whole):
            assert torch.equal(part[0], expected[member])


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.kind)
@pytest.mark.parametrize("name", ["mlp", "tabm"])
def test_members_trained_in_a_stack_equal_solo(name, loss):
    ds = make_data(loss)
    metrics = ("accuracy", "brier") if loss.kind == "cross_entropy" else ("coverage_error",)
    trainer = qfml.Trainer(max_epochs=3, batch_size=30, micro_batch_size=16, metrics=metrics)
    members = [qfml.Member(CASES[name], np.arange(20 * seed, 200), VAL[: 60 + seed], seed=seed) for seed in range(3)]
    for member, fit in zip(members, trainer.fit_many(members, loss, ds)):
        (alone,) = trainer.fit_many([member], loss, ds)
        assert torch.equal(alone.parameters, fit.parameters)
        assert alone.history == fit.history
        assert np.array_equal(alone.predict(ds), fit.predict(ds))


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.kind)
def test_training_equals_a_bare_torch_loop(loss):
    ds, network = make_data(loss), qfml.MLP(hidden=(8,), activation="tanh")
    trainer = qfml.Trainer(optimizer=qfml.SGD(lr=0.05, momentum=0.0), max_epochs=20, batch_size=None)
    fit = trainer.fit(network, loss, ds, train=TRAIN)
    first = network.init(5, None, stream(0, 0, "init"), 3)
    own = {name: torch.nn.Parameter(value) for name, value in first.items()}
    optimizer = torch.optim.SGD(own.values(), lr=0.05)
    x, y = ds.features[TRAIN], ds.y[TRAIN]
    for _ in range(20):
        output = torch.tanh(x @ own["weight0"] + own["bias0"]) @ own["head_weight"] + own["head_bias"]
        if loss.kind == "cross_entropy":
            weight = torch.tensor(loss.class_weight)
            value = torch.nn.functional.cross_entropy(output, y.long(), weight=weight, reduction="sum") / len(y)
        else:
            error, levels = y[:, None] - output, torch.tensor(loss.levels)
            value = torch.where(error > 0, levels * error, (levels - 1) * error).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    for name, value in fit.named_parameters().items():
        torch.testing.assert_close(value, own[name].detach(), rtol=1e-4, atol=1e-5)


def test_classes_are_learnt_and_metrics_are_those_of_scikit_learn(tmp_path):
    loss = CrossEntropy(n_classes=3)
    ds = make_data(loss)
    settings = {"metrics": ("accuracy", "brier"), "monitor": "val_accuracy", "mode": "max"}
    trainer = qfml.Trainer(optimizer=qfml.AdamW(lr=1e-2), max_epochs=15, batch_size=32, **settings)
    fit = trainer.fit(qfml.MLP(hidden=(16,)), loss, ds, train=TRAIN, val=VAL)
    predicted, y = fit.predict(ds, VAL), ds.y[VAL].numpy()
    assert predicted.shape == (100, 3)
    np.testing.assert_allclose(predicted.sum(1), 1, rtol=1e-6)
    best = fit.history[fit.best_epoch - 1]
    assert best["val_accuracy"] == sklearn.metrics.accuracy_score(y, predicted.argmax(1))
    assert best["val_accuracy"] == max(record["val_accuracy"] for record in fit.history) > 0.75
    normed = predicted / predicted.sum(1, keepdims=True)  # in float64, as scikit-learn insists
    assert best["val_loss"] == pytest.approx(sklearn.metrics.log_loss(y, normed), rel=1e-6)
    by_hand = np.square(predicted - np.eye(3)[y.astype(int)]).sum(1).mean()
    assert best["val_brier"] == pytest.approx(by_hand, rel=1e-12)
    assert fit.predict(ds, np.array([], dtype=np.int64)).shape == (0, 3)
    save_fits(tmp_path / "fits", [fit])
    (loaded,), _ = load_fits(tmp_path / "fits")
    assert loaded.loss == loss
    assert np.array_equal(loaded.predict(ds, VAL), predicted)


def test_quantiles_are_learnt_and_their_coverage_is_counted(tmp_path):
    loss = Quantiles(levels=(0.1, 0.5, 0.9))
    ds = make_data(loss, n=3000)
    train, val = np.arange(2000), np.arange(2000, 3000)
    trainer = qfml.Trainer(optimizer=qfml.AdamW(lr=1e-2), max_epochs=15, batch_size=128, metrics=("coverage_error",))
    fit = trainer.fit(qfml.MLP(hidden=(16,)), loss, ds, train=train, val=val)
    predicted, y = fit.predict(ds, val), ds.y[val].double().numpy()
    share = (y[:, None] <= predicted).mean(0)
    assert fit.history[fit.best_epoch - 1]["val_coverage_error"] == pytest.approx(np.abs(share - loss.levels).mean())
    np.testing.assert_allclose(share, loss.levels, atol=0.05)  # 5 standard errors at the median are 0.08
    spread = predicted[:, 2] - predicted[:, 0]
    x = ds.features[val].numpy()
    assert spread[x[:, 1] > 1].mean() > 3 * spread[x[:, 1] < -1].mean(), "the spread grows with the second feature"
    save_fits(tmp_path / "fits", [fit])
    (loaded,), _ = load_fits(tmp_path / "fits")
    assert loaded.loss == loss
    assert np.array_equal(loaded.predict(ds, val), predicted)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CrossEntropy(n_classes=1), "`n_classes` must be a whole number of at least 2, got 1"),
        (lambda: CrossEntropy(n_classes=3, class_weight=(1.0, 2.0)), "`class_weight` must be 3 positive numbers"),
        (lambda: CrossEntropy(n_classes=2, class_weight=(1.0, 0.0)), "`class_weight` must be 2 positive numbers"),
        (lambda: Quantiles(levels=(0.5,)), "for a single one take the loss pinball"),
        (lambda: Quantiles(levels=(0.9, 0.1)), "`levels` must be two or more rising levels"),
        (lambda: Quantiles(levels=(0.0, 0.5)), "`levels` must be two or more rising levels"),
        (lambda: CrossEntropy(n_classes=3).check_labels(torch.tensor([0.0, 3.0])), "class ids 0 to 2 as labels, got 3"),
        (lambda: CrossEntropy(n_classes=3).check_labels(torch.tensor([0.5, 1.0])), "class ids 0 to 2 .* got 0.5"),
    ],
)
def test_settings_and_labels_that_make_no_sense_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_what_does_not_fit_together_is_refused():
    loss = CrossEntropy(n_classes=3)
    ds, network = make_data(loss), qfml.MLP(hidden=(4,))
    with pytest.raises(UserError, match=r"'r2', which the predictions of `cross_entropy` .* take of accuracy, brier"):
        qfml.Trainer(max_epochs=1, batch_size=32, metrics=("r2",)).fit(network, loss, ds, train=TRAIN, val=VAL)
    trainer = qfml.Trainer(max_epochs=1, batch_size=32, metrics=("coverage_error",))
    with pytest.raises(UserError, match="'coverage_error', which the predictions of `mse`"):
        trainer.fit(network, qfml.MSE(), ds, train=TRAIN, val=VAL)
    trainer = qfml.Trainer(max_epochs=1, batch_size=32)
    fit = trainer.fit(network, qfml.MSE(), ds, train=TRAIN)
    with pytest.raises(UserError, match="`start` of member 0 has 1 outputs, but `cross_entropy` needs 3"):
        trainer.fit_many([qfml.Member(network, TRAIN, start=fit)], loss, ds)
