"""The written-out gradient of a perceptron against torch's graph."""

import numpy as np
import pytest
import torch

import qfml
from qfml.losses import LOSSES
from qfml.networks import Dropout, writes_gradient
from qfml.networks.dense import SLOPES


def stacked(network, members, n_features, n_outputs, dtype=torch.float32):
    drawn = [network.init(n_features, None, torch.Generator().manual_seed(i), n_outputs) for i in range(members)]
    return {name: torch.stack([one[name] for one in drawn]).to(dtype).requires_grad_() for name in drawn[0]}


@pytest.mark.parametrize("activation", SLOPES)
@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize(
    ("members", "n_features", "hidden"), [(1, 20, (64, 64)), (3, 7, (10, 5)), (2, 5, (12,)), (2, 1, (4, 1, 3))]
)
def test_gradients_are_those_of_the_graph(activation, n_outputs, members, n_features, hidden):
    network = qfml.MLP(hidden=hidden, activation=activation)
    assert network.writes_gradient
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(members, 32, n_features, generator=generator)
    for dtype in (torch.float32, torch.float64):
        parameters = stacked(network, members, n_features, n_outputs, dtype)
        through_graph = network.forward(parameters, x.to(dtype))
        slopes = torch.randn(through_graph.shape, generator=generator).to(dtype)
        expected = torch.autograd.grad(through_graph, list(parameters.values()), slopes)
        with torch.no_grad():
            output, pull = network.pullback(parameters, x.to(dtype))
            found = pull(slopes)
        assert torch.equal(output, through_graph)
        for own, other in zip(found, expected, strict=True):
            if activation == "relu":
                assert torch.equal(own, other)
            else:
                tolerance = 1e-12 if dtype == torch.float64 else 2e-6
                torch.testing.assert_close(own, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("thresholds", [None, torch.tensor([200, 10, 128], dtype=torch.uint8)])
def test_gradients_through_dropout_are_those_of_the_graph(thresholds):
    network = qfml.MLP(hidden=(12, 7), dropout=0.3)
    generator = torch.Generator().manual_seed(5)
    x, slopes = torch.randn(3, 32, 5, generator=generator), torch.randn(3, 32, generator=generator)
    random_bytes = torch.randint(0, 256, (3, 32, 19), generator=generator, dtype=torch.uint8)
    parameters = stacked(network, 3, 5, 1, torch.float32)
    through_graph = network.forward(parameters, x, Dropout(random_bytes, thresholds))
    expected = torch.autograd.grad(through_graph, list(parameters.values()), slopes)
    with torch.no_grad():
        output, pull = network.pullback(parameters, x, Dropout(random_bytes, thresholds))
    assert torch.equal(output, through_graph)
    assert not torch.equal(output, network.forward(parameters, x))
    for own, other in zip(pull(slopes), expected, strict=True):
        assert torch.equal(own, other)


class Doubled(qfml.MLP):
    def forward(self, parameters, x, dropout=None):
        return 2 * super().forward(parameters, x, dropout)


class DoubledThroughout(Doubled):
    def forward(self, parameters, x, dropout=None):
        return super().forward(parameters, x, dropout)

    def pullback(self, parameters, x, dropout=None):
        output, pull = super().pullback(parameters, x, dropout)
        return 2 * output, lambda slope: pull(2 * slope)


def test_a_network_whose_gradient_is_not_written_goes_through_the_graph():
    assert writes_gradient(qfml.MLP())
    assert writes_gradient(DoubledThroughout())
    for network in (qfml.MLP(layer_norm=True), Doubled(), qfml.ResidualMLP(width=8)):
        assert not writes_gradient(network)


@pytest.mark.parametrize("kind", [kind for kind, loss in LOSSES.items() if loss.additive and not loss.differential])
def test_the_slopes_of_a_loss_are_those_of_torch(kind):
    settings = {
        "huber": {"delta": 0.7},
        "pinball": {"level": 0.8},
        "weighted_bce": {"class_weight": (1.0, 4.0)},
        "focal": {"gamma": 2.0},
        "cross_entropy": {"n_classes": 3},
        "quantiles": {"levels": (0.1, 0.5, 0.9)},
    }
    loss = LOSSES[kind](**settings.get(kind, {}))
    generator = torch.Generator().manual_seed(3)
    shape = (2, 16) if loss.n_outputs == 1 else (2, 16, loss.n_outputs)
    output = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    y = torch.randint(0, 2, (2, 16), generator=generator).double()
    (expected,) = torch.autograd.grad(loss.rows(output, y).sum(), output)
    torch.testing.assert_close(loss.slopes(output.detach(), y), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", [qfml.MSE(), qfml.BCE(), qfml.NegativeSharpe(cost_bps=2.0)])
@pytest.mark.parametrize("micro", [None, 48])
def test_training_equals_training_through_the_graph(loss, micro, monkeypatch):
    days = np.arange("2020-01-01", "2020-06-09", dtype="datetime64[D]")
    rng = np.random.default_rng(0)
    X = rng.standard_normal((len(days), 5))
    y = (rng.random(len(days)) < 0.5).astype(float) if loss.kind == "bce" else 0.01 * rng.standard_normal(len(days))
    ds = qfml.data.TimeDataset(X, y, time=days, label_end=days + 1)
    batch = 64 if loss.additive else None
    trainer = qfml.Trainer(max_epochs=4, batch_size=batch, micro_batch_size=micro, clip_norm=0.5)
    train, val = np.arange(120), np.arange(120, len(days))
    written = trainer.fit(qfml.MLP(hidden=(16,)), loss, ds, train=train, val=val)
    monkeypatch.setattr(qfml.MLP, "writes_gradient", False)
    through_graph = trainer.fit(qfml.MLP(hidden=(16,)), loss, ds, train=train, val=val)
    torch.testing.assert_close(written.parameters, through_graph.parameters, rtol=1e-4, atol=1e-6)
    assert written.best_val_loss == pytest.approx(through_graph.best_val_loss, rel=1e-5)
