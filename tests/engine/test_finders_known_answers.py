"""Finders: curves whose answers are known, memory counted by hand, and limits that are reached."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from matplotlib import pyplot

import qfml
from qfml.data import TimeDataset
from qfml.engine.finders import (
    BatchCurve,
    RateCurve,
    find_batch_size,
    find_lr,
    smallest_as_good,
    steepest_descent,
)
from qfml.engine.tensor_memory import TensorMemory
from qfml.errors import UserError


@pytest.fixture(autouse=True)
def _no_window():
    yield
    pyplot.close("all")


def make_data(n=256, n_features=4, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, n_features))
    time = np.datetime64("2010-01-01") + np.arange(n)
    return TimeDataset(X, X[:, 0] + 0.1 * rng.standard_normal(n), time=time, label_end=time + 1)


def test_each_rate_is_what_training_at_it_gives():
    ds, network, rates = make_data(), qfml.MLP(hidden=(8,), dropout=0.25), (1e-3, 1e-2, 1e-1)
    trainer = qfml.Trainer(
        max_epochs=3, batch_size=32, schedule=qfml.engine.Cosine(), patience=1, averaging=qfml.EMA(decay=0.9)
    )
    curve = find_lr(trainer, network, qfml.MSE(), ds, np.arange(200), rates=rates, n_steps=20, n_seeds=2, seed=5)
    for place, lr in enumerate(rates):
        for number in range(2):
            seen = []

            class Watch(qfml.Callback):
                def log(self, member, step, values, seen=seen):
                    seen.append(values["loss"])

            alone = qfml.Trainer(max_epochs=99, max_steps=20, batch_size=32, log_every=1)
            member = qfml.Member(network, np.arange(200), seed=5 + number, lr=lr)
            alone.fit_many([member], qfml.MSE(), ds, callbacks=[Watch()])
            assert curve.losses[place, number] == np.mean(seen[16:])


def test_quadratic_diverges_where_theory_says():
    # gradient descent on mean (y - w x - b)^2 with x = +-1 has the curvature 2 in w and in b: it diverges above 1
    X = np.tile([1.0, -1.0], 64)[:, None]
    time = np.arange(128)
    ds = TimeDataset(X, X[:, 0], time=time, label_end=time + 1)
    trainer = qfml.Trainer(max_epochs=1, batch_size=None, optimizer=qfml.SGD(lr=1.0))
    rates = (1e-3, 1e-2, 0.1, 0.5, 0.9, 1.1, 1.5)
    curve = find_lr(trainer, LinearNetwork(), qfml.MSE(), ds, np.arange(128), rates=rates, n_steps=60)
    assert curve.lowest == 0.5  # Newton's step
    assert curve.diverges == 1.1
    for lr, losses in zip(rates, curve.losses):
        steps = np.arange(48, 60)
        expected = curve.untrained * np.mean((1 - 2 * lr) ** (2 * steps))
        np.testing.assert_allclose(losses, expected, rtol=2e-3, atol=1e-12)


@dataclass(frozen=True)
class LinearNetwork:
    """One affine map, without a hidden layer; `out_of_memory_above` rows it fails as a GPU would."""

    kind = "linear"
    dropout_units = 0
    out_of_memory_above: int = 10**9

    def init(self, n_features, window, generator, n_outputs=1):
        draw = torch.empty(n_features + 1).uniform_(-0.5, 0.5, generator=generator)
        return {"head_weight": draw[:-1], "head_bias": draw[-1:]}

    def forward(self, parameters, x, dropout=None):
        if x.shape[1] > self.out_of_memory_above:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return (x * parameters["head_weight"][:, None]).sum(-1) + parameters["head_bias"]


def test_a_rate_that_overflows_is_left_out():
    ds = make_data()
    trainer = qfml.Trainer(max_epochs=1, batch_size=32, optimizer=qfml.SGD(lr=1.0))
    curve = find_lr(trainer, qfml.MLP(hidden=(8,)), qfml.MSE(), ds, np.arange(200), rates=(1e-3, 1e-1, 1e6), n_steps=20)
    assert np.isnan(curve.losses[2]).all()
    assert curve.suggestion == 0.1
    assert curve.diverges == 1e6
    assert curve.plot().get_xscale() == "log"
    with pytest.raises(UserError, match="all diverge"):
        find_lr(trainer, qfml.MLP(hidden=(8,)), qfml.MSE(), ds, np.arange(200), rates=(1e6, 1e7), n_steps=20)


def test_rules_on_curves_by_hand():
    rates = np.geomspace(1e-4, 10, 6)
    mean = np.array([1.0, 0.95, 0.5, 0.2, 0.19, 4.0])
    assert steepest_descent(rates, mean) == 2  # (0.2 - 0.95) over two decades beats 0.45 and 0.36 over two
    curve = RateCurve(rates, mean[:, None], np.array([1.0]), 10)
    assert curve.suggestion == curve.lowest == rates[4]  # one seed: no standard error
    assert curve.diverges == 10
    assert np.isnan(curve.std_error).all()
    # excess over the best of 0.01 +- 0.012 (standard error 0.012): as good; the rate below it is worse by far
    pair = np.stack([mean, mean], axis=1)
    pair[3] = [0.19 + 0.01 + 0.012, 0.19 + 0.01 - 0.012]
    assert smallest_as_good(pair) == 3
    pair[3] = [0.19 + 0.01 + 0.009, 0.19 + 0.01 - 0.009]
    assert smallest_as_good(pair) == 4
    pair[3] = [0.19 + 0.01 + 0.02, 0.19 + 0.01 - 0.02]
    assert smallest_as_good(pair) == 3
    pair[3] = [0.19 + 0.03, 0.19 + 0.04]
    assert smallest_as_good(pair) == 4


@pytest.mark.parametrize("rates", [(1e-2,), (1e-2, 1e-3), (0.0, 1e-2), (1e-2, np.inf)])
def test_wrong_rates_are_refused(rates):
    with pytest.raises(UserError, match="`rates`"):
        find_lr(
            qfml.Trainer(max_epochs=1, batch_size=8), qfml.MLP(), qfml.MSE(), make_data(), np.arange(9), rates=rates
        )


def test_memory_counted_by_hand():
    with TensorMemory() as memory:
        x, w = torch.zeros(100, 50), torch.zeros(50, 30, requires_grad=True)
        hidden = torch.relu(x @ w)  # x @ w is freed, relu keeps what it returns
        out = hidden * hidden.exp()
        assert memory.held == memory.peak == 4 * (5000 + 1500 + 3 * 3000)
        del hidden
        assert memory.held == 4 * (5000 + 1500 + 3 * 3000)  # the graph holds it
        (gradient,) = torch.autograd.grad(out.sum(), w)
        del out
        assert memory.held == 4 * (5000 + 2 * 1500)
        view = x.view(-1)[:7]
        assert memory.held == 4 * (5000 + 2 * 1500)
        torch.cat([view, view], out=(grown := torch.empty(0)))
        assert memory.held == 4 * (5000 + 2 * 1500 + 14)
        del x, w, gradient, view, grown
    assert memory.held == 0
    outside = torch.zeros(10)
    with TensorMemory() as memory:
        outside.add_(1).view(2, 5).detach()
    assert memory.peak == 0
    with pytest.raises(torch.OutOfMemoryError, match="1200 bytes"), TensorMemory(limit=1000):
        torch.zeros(300)


def test_budget_decides_the_largest_batch():
    ds, network = make_data(), qfml.MLP(hidden=(64, 64))
    trainer = qfml.Trainer(max_epochs=1, batch_size=None)
    free = find_batch_size(trainer, network, qfml.MSE(), ds, np.arange(200), memory_bytes=2**30, n_steps=1)
    assert free.batch_sizes.tolist() == [16, 32, 64, 128]
    assert free.limit == "rows"
    growth = free.peak_bytes[-1] - free.peak_bytes[-2]
    # a row keeps two hidden layers after relu for the backward pass, which makes the gradient of one beside them
    assert growth >= 64 * 4 * (64 + 64 + 64)
    for budget, largest in ((int(free.peak_bytes[2]), 64), (int(free.peak_bytes[2]) - 1, 32)):
        curve = find_batch_size(trainer, network, qfml.MSE(), ds, np.arange(200), memory_bytes=budget, n_steps=1)
        assert (curve.largest, curve.limit) == (largest, "memory")
    most = find_batch_size(
        trainer, network, qfml.MSE(), ds, np.arange(200), memory_bytes=2**30, n_steps=1, max_batch_size=32
    )
    assert (most.largest, most.limit) == (32, "max_batch_size")
    micro = find_batch_size(
        replace(trainer, micro_batch_size=16), network, qfml.MSE(), ds, np.arange(200), memory_bytes=2**30, n_steps=1
    )
    assert micro.peak_bytes[-1] - micro.peak_bytes[-2] < 0.2 * growth  # no more than the rows themselves


def test_out_of_memory_of_torch_ends_the_search():
    trainer = qfml.Trainer(max_epochs=1, batch_size=None)
    curve = find_batch_size(
        trainer,
        LinearNetwork(out_of_memory_above=64),
        qfml.MSE(),
        make_data(),
        np.arange(256),
        memory_bytes=2**30,
        n_steps=1,
    )
    assert (curve.largest, curve.limit) == (64, "memory")


def test_where_larger_batches_stop_paying():
    sizes = np.array([16, 32, 64, 128])
    curve = BatchCurve(sizes, sizes * 100, np.array([100.0, 95.0, 65.0, 35.0]), "memory")
    assert curve.rows_per_second.tolist() == [1600, 3040, 4160, 4480]
    assert curve.pays_up_to == 64
    assert curve.largest == 128
    assert "largest that fits: 128" in curve.plot().get_title()


def test_batch_size_errors_name_the_way_out():
    ds, trainer = make_data(), qfml.Trainer(max_epochs=1, batch_size=None)
    with pytest.raises(UserError, match="`memory_bytes` must be given on a CPU"):
        find_batch_size(trainer, qfml.MLP(), qfml.MSE(), ds, np.arange(256))
    with pytest.raises(UserError, match="`train` must hold at least 16 rows"):
        find_batch_size(trainer, qfml.MLP(), qfml.MSE(), ds, np.arange(10), memory_bytes=2**30)
    with pytest.raises(UserError, match="does not hold a step of 16 rows"):
        find_batch_size(trainer, qfml.MLP(), qfml.MSE(), ds, np.arange(256), memory_bytes=1000)
    with pytest.raises(UserError, match="loss of the whole sample"):
        find_batch_size(trainer, qfml.MLP(), qfml.NegativeSharpe(cost_bps=1.0), ds, np.arange(256), memory_bytes=10**9)


@pytest.mark.gpu
def test_batch_size_on_a_gpu():
    ds = make_data(4096)
    trainer = qfml.Trainer(max_epochs=1, batch_size=None, device="cuda")
    free = find_batch_size(trainer, qfml.MLP(), qfml.MSE(), ds, np.arange(4096))
    assert (free.largest, free.limit) == (4096, "rows")
    budget = int(free.peak_bytes[4])
    tight = find_batch_size(trainer, qfml.MLP(), qfml.MSE(), ds, np.arange(4096), memory_bytes=budget)
    assert tight.largest == 256


def test_a_watched_trainer_is_tried_unwatched(tmp_path):
    ds, network = make_data(), qfml.MLP(hidden=(8,))
    trainer = qfml.Trainer(max_epochs=1, batch_size=32)
    profile = qfml.engine.Profile(str(tmp_path / "trace.json"), first=1, steps=1)
    watched = replace(trainer, log_every=5, watch=("layers", "memory"), time_split=True, profile=profile)
    curves = [
        find_lr(each, network, qfml.MSE(), ds, np.arange(200), rates=(1e-3, 1e-2), n_steps=10)
        for each in (trainer, watched)
    ]
    assert np.array_equal(curves[0].losses, curves[1].losses)
    sizes = find_batch_size(watched, network, qfml.MSE(), ds, np.arange(32), memory_bytes=2**30, n_steps=1)
    assert sizes.largest == 32
    assert list(tmp_path.iterdir()) == []


def test_data_that_no_rate_can_train_on_is_told_from_rates_that_diverge():
    ds = make_data()
    ds.features[17, 2] = torch.nan
    with pytest.raises(UserError, match=r"at a rate of 0 too .* feature 2 of row 17 is nan"):
        find_lr(
            qfml.Trainer(max_epochs=1, batch_size=32), qfml.MLP(), qfml.MSE(), ds, np.arange(200), rates=(1e-3, 1e-2)
        )


def test_a_member_that_diverged_within_a_long_epoch_has_no_loss():
    # its weights stay as they were before, and so does the loss of the steps that are left of the epoch
    ds = make_data()
    trainer = qfml.Trainer(max_epochs=1, batch_size=2, optimizer=qfml.SGD(lr=1.0))
    curve = find_lr(trainer, qfml.MLP(hidden=(8,)), qfml.MSE(), ds, np.arange(256), rates=(1e-3, 1e3), n_steps=100)
    assert np.isfinite(curve.losses[0]).all()
    assert np.isnan(curve.losses[1]).all()
    assert curve.diverges == 1e3
