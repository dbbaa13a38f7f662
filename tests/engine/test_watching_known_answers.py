"""What a training shows of itself: numbers of its layers, and where a NaN was born, against brute force."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import qfml
from qfml.data import TimeDataset
from qfml.engine.callbacks import Callback
from qfml.engine.watching.statistics import activation_statistics, update_ratio
from qfml.networks import NETWORKS

N, FEATURES = 300, 5
OWN_SETTINGS = {"monotone_mlp": {"increasing": (0,)}, "convex_mlp": {"convex": (0,)}}


def make_data(window=None):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N, FEATURES)).astype(np.float32)
    time = np.datetime64("2010-01-01") + np.arange(N)
    return TimeDataset(X, X[:, 0] - X[:, 1], time=time, label_end=time + 1, window=window)


class Told(Callback):
    def __init__(self):
        self.logs, self.failures, self.reports = {}, [], []

    def log(self, member, step, values):
        self.logs[member, step] = values

    def fail(self, member, step, sentence):
        self.failures.append((member, step, sentence))

    def memory(self, bytes_by_part):
        self.reports.append(dict(bytes_by_part))


def members(count=3, network=None, **settings):
    network = qfml.MLP(hidden=(8, 6)) if network is None else network
    return [qfml.Member(network, np.arange(200 + 10 * i), seed=i, **settings) for i in range(count)]


def stack(network, count=3, window=None):
    drawn = [network.init(FEATURES, window, torch.Generator().manual_seed(i)) for i in range(count)]
    return {name: torch.stack([one[name] for one in drawn]) for name in drawn[0]}


def brute_force(values, there, saturates=False):
    """Statistics of one member's units (rows, units) on the rows that are there, element by element."""
    values = values[there].double().numpy()
    dead = (values == 0).all(0) | ((abs(values) > 0.99).all(0) & saturates)
    return {
        "activation_mean": values.mean(),
        "activation_std": values.std(),
        "zeros": (values == 0).mean(),
        "dead_units": dead.sum(),
    }


@pytest.mark.parametrize("activation", ["relu", "tanh", "silu", "gelu"])
def test_activation_statistics_of_a_perceptron_are_those_of_its_formula(activation):
    network = qfml.MLP(hidden=(8, 6), activation=activation)
    p = stack(network)
    if activation in ("relu", "tanh"):
        p["bias0"][0, 2] = -50.0  # dead under relu, saturated under tanh
    x = torch.randn(3, 32, FEATURES, generator=torch.Generator().manual_seed(1))
    there = torch.ones(3, 32, dtype=torch.bool)
    there[1, 20:] = False
    parts = [slice(0, 16), slice(16, 32)]
    found = activation_statistics(network, p, [(x[:, s], None) for s in parts], [there[:, s] for s in parts])
    functions = {"relu": torch.relu, "tanh": torch.tanh, "silu": torch.nn.functional.silu}
    act = functions.get(activation, lambda z: torch.nn.functional.gelu(z, approximate="tanh"))
    h0 = act(x @ p["weight0"] + p["bias0"][:, None])
    h1 = act(h0 @ p["weight1"] + p["bias1"][:, None])
    for layer, h in (("weight0", h0), ("weight1", h1)):
        for member in range(3):
            for kind, value in brute_force(h[member], there[member], activation == "tanh").items():
                # float32 forward passes in two orders of summation
                assert float(found[f"{kind}/{layer}"][member]) == pytest.approx(value, rel=1e-5, abs=1e-6), (
                    kind,
                    layer,
                )
    output = (h1 * p["head_weight"][:, None]).sum(-1) + p["head_bias"]
    assert float(found["activation_mean/output"][1]) == pytest.approx(float(output[1, :20].mean()), rel=1e-4)
    assert (activation in ("relu", "tanh")) == (found["dead_units/weight0"][0] >= 1)


def test_layers_of_every_network_are_recognised_and_fillers_do_not_count():
    windowed = {"tcn", "lstm", "gru", "transformer"}
    for kind, cls in NETWORKS.items():
        window = 6 if kind in windowed else None
        network = cls(**OWN_SETTINGS.get(kind, {}))
        p = stack(network, window=window)
        shape = (3, 32, FEATURES) if window is None else (3, 32, window, FEATURES)
        x, there = torch.randn(shape, generator=torch.Generator().manual_seed(2)), torch.ones(3, 32, dtype=torch.bool)
        there[:, 20:] = False
        other = x.clone()
        other[:, 20:] = 1e3
        found, again = (activation_statistics(network, p, [(values, None)], [there]) for values in (x, other))
        assert len([name for name in found if name.startswith("zeros/")]) >= 2, kind
        for name, value in found.items():
            assert torch.isfinite(value).all(), (kind, name)
            assert torch.equal(value, again[name]), (kind, name)
        brute = network.forward(p, x[:, :20])
        assert torch.allclose(found["activation_mean/output"].float(), brute.mean(1), atol=1e-5), kind


def test_dead_units_of_a_long_lost_layer_are_counted_by_member():
    network = qfml.MLP(hidden=(8,))
    p = stack(network)
    p["bias0"][1, :3] = -1e3
    x = torch.randn(3, 64, FEATURES, generator=torch.Generator().manual_seed(1))
    found = activation_statistics(network, p, [(x, None)], [torch.ones(3, 64, dtype=torch.bool)])
    assert found["dead_units/weight0"].tolist() == [0, 3, 0]


def test_logged_norms_and_ratio_of_plain_gradient_descent():
    told, ds = Told(), make_data()
    trainer = qfml.Trainer(
        max_epochs=1, batch_size=None, optimizer=qfml.SGD(lr=0.1), log_every=1, watch=("layers",), clip_norm=1e-3
    )
    trainer.fit_many(members(), qfml.MSE(), ds, callbacks=[told])
    for (_, _), values in told.logs.items():

        def total(kind, own=values):
            return np.sqrt(sum(v**2 for name, v in own.items() if name.startswith(f"{kind}/")))

        assert total("gradient_norm") == pytest.approx(values["gradient_norm"], rel=1e-5)  # before clipping
        # a clipped step of gradient descent is lr * clip_norm long
        assert values["update_ratio"] == pytest.approx(0.1 * 1e-3 / total("weight_norm"), rel=1e-3)


def test_update_ratio():
    before, after = torch.tensor([[3.0, 4.0], [0.6, 0.8]]), torch.tensor([[3.0, 4.5], [0.6, 0.8]])
    assert update_ratio(before, after).tolist() == pytest.approx([0.1, 0.0])


def failure(ds, **settings):
    told = Told()
    options = {"max_epochs": 2, "batch_size": 50} | settings
    fits = qfml.Trainer(**options).fit_many(members(), qfml.MSE(), ds, callbacks=[told])
    assert [(m, s) for m, _, s in told.failures] == [(m, fits[m].failure) for m, _, _ in told.failures]
    assert all((fit.status == "nan") == (fit.failure is not None) for fit in fits)
    return fits, told


def test_nan_in_a_feature_is_found_with_row_and_column_in_the_member_that_has_the_row():
    ds = make_data()
    ds.features[215, 3] = torch.nan  # of the last member alone
    fits, told = failure(ds)
    assert [fit.failure is None for fit in fits] == [True, True, False]
    ((_, step, sentence),) = told.failures
    assert sentence == f"step {step}, epoch 1: feature 3 of row 215 is nan"


def test_infinite_label_is_found():
    ds = make_data()
    ds.y[205] = -torch.inf
    fits, told = failure(ds)
    assert fits[0].failure is None
    assert all("the label of row 205 is -inf" in sentence for _, _, sentence in told.failures)
    assert len(told.failures) == 2


def test_overflow_is_found_in_the_layer_where_it_happens():
    ds = make_data()
    start = replace(qfml.Trainer(max_epochs=1, batch_size=50).fit_many(members(1), qfml.MSE(), ds)[0])
    start.named_parameters()["weight1"].fill_(1e38)
    start.named_parameters()["weight1"][:, 1:] *= -1.0
    told = Told()
    member = replace(members(1)[0], start=start)
    (fit,) = qfml.Trainer(max_epochs=1, batch_size=50).fit_many([member], qfml.MSE(), ds, callbacks=[told])
    assert fit.status == "nan"
    assert fit.failure is not None
    assert "layer `weight1`" in fit.failure
    assert fit.failure.startswith("step 1, epoch 1: ")


def test_parameter_that_was_nan_before_the_first_step():
    ds = make_data()
    start = qfml.Trainer(max_epochs=1, batch_size=50).fit_many(members(1), qfml.MSE(), ds)[0]
    start.named_parameters()["bias1"][2] = torch.nan
    (fit,) = qfml.Trainer(max_epochs=1, batch_size=50).fit_many([replace(members(1)[0], start=start)], qfml.MSE(), ds)
    assert (
        fit.failure == "step 1, epoch 1: the parameter `bias1` was not finite before the step, in 1 of its 6 elements"
    )


def test_nan_in_a_validation_row_is_told_from_one_in_training():
    ds = make_data()
    ds.features[290, 1] = torch.inf
    member = replace(members(1)[0], val=np.arange(280, 300))
    (fit,) = qfml.Trainer(max_epochs=2, batch_size=50).fit_many([member], qfml.MSE(), ds)
    assert (fit.status, fit.n_epochs) == ("nan", 1)
    assert fit.failure is not None
    assert "validation: feature 1 of row 290 is inf" in fit.failure


def test_memory_report_counts_the_bytes_of_the_block():
    told, ds = Told(), make_data()
    qfml.Trainer(max_epochs=1, batch_size=64, watch=("memory",)).fit_many(members(), qfml.MSE(), ds, callbacks=[told])
    (report,) = told.reports
    padded = -(-(FEATURES * 8 + 8 + 8 * 6 + 6 + 6 + 1) // 16) * 16
    assert report["parameters"] == report["gradient"] == 3 * padded * 4
    assert report["optimizer"] == 2 * report["parameters"]  # AdamW's two moments
    assert report["batch"] >= 3 * 64 * FEATURES * 4
    assert report["data"] >= N * (FEATURES + 1) * 4
    assert report["peak"] > sum(value for name, value in report.items() if name != "peak")
