"""One batch in one piece against micro-batches: the same gradient, to 1e-6, whatever the loss and the dropout."""

import numpy as np
import pytest
import torch

import qfml
from qfml.data import TimeDataset
from qfml.data.dataset import gather_windows
from qfml.engine.backward import losses_and_gradient, micro_batches
from qfml.engine.feed import Batch
from qfml.engine.inputs import panel_of
from qfml.engine.stack import Layout
from qfml.engine.streams import stream
from qfml.networks import Dropout

LOSSES = [
    qfml.MSE(),
    qfml.Huber(delta=0.5),
    qfml.NegativeSharpe(cost_bps=5.0),
    qfml.ExpectedShortfall(cost_bps=5.0, tail=0.1),
    qfml.EntropicRisk(cost_bps=5.0, risk_aversion=20.0),
    qfml.MeanVariance(cost_bps=5.0, risk_aversion=20.0),
]


def make_data(n=300, window=None, weighted=True):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, 5)).astype(np.float32)
    y = 0.01 * (X[:, 0] + rng.standard_normal(n))
    weight = rng.uniform(0.1, 2.0, n) if weighted else None
    time = np.datetime64("2010-01-01") + np.arange(n)
    return TimeDataset(X, y, time=time, label_end=time + 1, window=window, weight=weight)


def first_batch(ds, loss, batch_size):
    """The first rows of three members as a batch, filled up to a multiple of 16 with rows of weight 0."""
    rows = [np.arange(10 * i, 150 + 10 * i)[:batch_size] for i in range(3)]
    fill = -len(rows[0]) % 16
    table = torch.from_numpy(np.stack([np.r_[own, np.full(fill, own[0])] for own in rows]))
    weight = torch.ones(table.shape)
    weight[:, len(rows[0]) :] = 0
    if ds.weight is not None:
        weight = weight * ds.weight[table]
    total = weight.sum(1, keepdim=True)
    panel = None if loss.additive else panel_of(ds, rows, table.shape[1])
    x = gather_windows(ds.features, ds.ends[table], ds.window)
    return Batch(x, ds.y[table], weight, weight / total, total[:, 0].double(), table, panel)


def first_gradient(network, loss, ds, size, batch_size):
    """Losses and gradients of the first step of three members, with micro-batches of `size`."""
    batch = first_batch(ds, loss, batch_size)
    drawn = [network.init(5, ds.window, stream(0, seed, "init")) for seed in range(3)]
    layout = Layout.of(drawn[0])
    flat = torch.stack([layout.flatten(one) for one in drawn])
    views, gradient = layout.views(flat, requires_grad=True), torch.zeros_like(flat)
    row_bytes = torch.zeros(*batch.y.shape, network.dropout_units, dtype=torch.uint8)
    row_bytes.random_(generator=stream(0, "dropout"))
    dropout = Dropout(row_bytes) if network.dropout_units else None

    def forward(x, part):
        return network.forward(views, x, None if dropout is None else dropout[part])

    def take(values, weights, first):
        layout.gradient(values, views, gradient, weights, add=not first)

    return losses_and_gradient(forward, loss, batch, size, take), gradient


@pytest.mark.parametrize("size", [1, 16, 48, 100, 149, 4096])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.kind)
def test_micro_batches_change_no_gradient(loss, dropout, size):
    ds, network = make_data(), qfml.MLP(hidden=(12, 7), dropout=dropout)
    batch_size = 120 if loss.additive else None  # 120: the padded width is no multiple of most sizes
    whole = first_gradient(network, loss, ds, None, batch_size)
    parts = first_gradient(network, loss, ds, size, batch_size)
    torch.testing.assert_close(parts[0], whole[0], rtol=1e-6, atol=1e-7)
    scale = whole[1].abs().amax(1, keepdim=True)
    assert bool((scale > 0).all())
    assert float(((parts[1] - whole[1]) / scale).abs().max()) < 1e-6


def test_dropout_was_at_work():
    ds = make_data()
    with_dropout = first_gradient(qfml.MLP(hidden=(12,), dropout=0.4), qfml.MSE(), ds, 16, 120)[1]
    without = first_gradient(qfml.MLP(hidden=(12,)), qfml.MSE(), ds, 16, 120)[1]
    assert not torch.allclose(with_dropout, without, rtol=1e-2)


@pytest.mark.parametrize("loss", [qfml.MSE(), qfml.NegativeSharpe(cost_bps=5.0)], ids=lambda loss: loss.kind)
def test_micro_batches_of_windows(loss):
    ds, network = make_data(window=6), qfml.TCN(channels=(6, 6), kernel=3, dropout=0.2)
    batch_size = 64 if loss.additive else None
    whole = first_gradient(network, loss, ds, None, batch_size)[1]
    parts = first_gradient(network, loss, ds, 32, batch_size)[1]
    assert float(((parts - whole) / whole.abs().amax(1, keepdim=True)).abs().max()) < 1e-6


@pytest.mark.parametrize("loss", [qfml.MSE(), qfml.NegativeSharpe(cost_bps=5.0)], ids=lambda loss: loss.kind)
def test_the_gradient_equals_that_of_autograd_on_all_rows(loss):
    ds = make_data(weighted=loss.additive)
    network = qfml.MLP(hidden=(12,), activation="tanh")
    own = {name: value.requires_grad_() for name, value in network.init(5, None, stream(0, 0, "init")).items()}
    rows = torch.arange(150)
    output = torch.tanh(ds.features[rows] @ own["weight0"] + own["bias0"]) @ own["head_weight"] + own["head_bias"]
    if loss.additive:
        weight = ds.weight[rows]
        value = (weight * (output - ds.y[rows]).square()).sum() / weight.sum()
    else:
        position = torch.tanh(output)
        pnl = position * ds.y[rows] - 5e-4 * torch.diff(position, prepend=torch.zeros(1)).abs()
        value = -pnl.mean() / pnl.std()
    expected = torch.autograd.grad(value, list(own.values()))
    losses, gradient = first_gradient(network, loss, ds, 48, None)
    assert float(losses[0]) == pytest.approx(float(value.detach()), rel=1e-5)
    flat = torch.cat([one.flatten() for one in expected])
    torch.testing.assert_close(gradient[0, : len(flat)], flat, rtol=1e-4, atol=1e-5 * float(flat.abs().max()))


@pytest.mark.parametrize("loss", [qfml.MSE(), qfml.NegativeSharpe(cost_bps=5.0)], ids=lambda loss: loss.kind)
def test_micro_batches_in_a_stack_equal_solo(loss):
    ds, network = make_data(), qfml.MLP(hidden=(9,), dropout=0.3)
    trainer = qfml.Trainer(max_epochs=4, batch_size=60 if loss.additive else None, micro_batch_size=20)
    rows = [np.arange(20 * i, 150 + 20 * i + 30 * i * loss.additive) for i in range(3)]
    members = [qfml.Member(network, own, seed=i) for i, own in enumerate(rows)]
    for member, fit in zip(members, trainer.fit_many(members, loss, ds)):
        solo = trainer.fit_many([member], loss, ds)[0]
        assert torch.equal(solo.parameters, fit.parameters)
        assert solo.history == fit.history


@pytest.mark.parametrize(("width", "size"), [(64, None), (64, 16), (80, 33), (16, 1), (48, 4096)])
def test_the_pieces_cover_the_batch_once_and_begin_on_a_cache_line(width, size):
    parts = list(micro_batches(width, size))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(width))
    assert all(part.start % 16 == 0 for part in parts)
    if size is not None:
        assert max(part.stop - part.start for part in parts) <= -(-size // 16) * 16


def test_no_more_rows_than_a_micro_batch_go_through_the_network():
    ds, seen = make_data(), []
    loss = qfml.NegativeSharpe(cost_bps=5.0)

    def forward(x, part):
        seen.append((x.shape[1], part.start))
        return x.sum(-1)

    losses_and_gradient(forward, loss, first_batch(ds, loss, None), 32, lambda *_: None)
    assert seen == [(32, 0), (32, 32), (32, 64), (32, 96), (32, 128)] * 2
