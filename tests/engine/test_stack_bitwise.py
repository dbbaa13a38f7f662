"""A member's result is its solo result, to the last bit (fp32, eager, CPU), whatever the stack around it."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

import qfml
from qfml.data import TimeDataset
from qfml.engine.training import plan_blocks


def make_data(n=400, n_features=7, window=None, weights=False, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, n_features)).astype(np.float32)
    y = np.tanh(X[:, 0] * X[:, 1]) + 0.3 * rng.standard_normal(n)
    time = np.datetime64("2010-01-01") + np.arange(n)
    weight = rng.uniform(0.1, 2.0, n) if weights else None
    return TimeDataset(X, y, time=time, label_end=time + 1, window=window, weight=weight)


def make_members(network, n, count, seed=1):
    """Members of different lengths, seeds, rates, clips and patience."""
    rng = np.random.default_rng(seed)
    members = []
    for i in range(count):
        stop = int(rng.integers(n // 2, n - 60))
        start = int(rng.integers(0, stop // 2))
        members.append(
            qfml.Member(
                network,
                np.arange(start, stop),
                np.arange(stop, stop + int(rng.integers(20, 60))),
                seed=i,
                lr=float(10 ** rng.uniform(-3, -2)),
                clip_norm=None if i % 3 == 0 else float(rng.uniform(0.1, 2.0)),
                patience=None if i % 2 == 0 else 3 + i,
                weight_decay=None if i % 4 else 0.1,
            )
        )
    return members


def assert_same(a, b):
    assert torch.equal(a.parameters, b.parameters)
    assert a.history == b.history
    assert (a.status, a.best_epoch) == (b.status, b.best_epoch)


NETWORKS = {
    "relu": (qfml.MLP(hidden=(32, 32)), None),
    "odd widths": (qfml.MLP(hidden=(33, 17, 5)), None),
    "dropout and norm": (qfml.MLP(hidden=(24, 24), dropout=0.2, layer_norm=True), None),
    "silu": (qfml.MLP(hidden=(16,), activation="silu"), None),
    "gelu": (qfml.MLP(hidden=(19,), activation="gelu"), None),
    "tanh": (qfml.MLP(hidden=(19,), activation="tanh"), None),
    "tcn": (qfml.TCN(channels=(8, 6), kernel=3, dropout=0.1), 10),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_member_in_a_stack_equals_solo(name):
    network, window = NETWORKS[name]
    ds = make_data(window=window)
    trainer = qfml.Trainer(max_epochs=50 if name == "relu" else 8, batch_size=64, member_block=100)
    members = make_members(network, len(ds), 6)
    stacked = trainer.fit_many(members, qfml.MSE(), ds)
    assert len({fit.n_epochs for fit in stacked}) > 1 or name != "relu", "some member must have stopped early"
    for member, fit in zip(members, stacked):
        assert_same(trainer.fit_many([member], qfml.MSE(), ds)[0], fit)


@pytest.mark.parametrize("network", [qfml.MLP(hidden=(24, 24)), qfml.MLP(hidden=(9,), layer_norm=True), qfml.TabM()])
def test_members_of_one_stack_have_dropout_of_their_own(network):
    ds = make_data()
    trainer = qfml.Trainer(max_epochs=8, batch_size=64)
    probabilities = (0.1, 0.45, 0.1, 0.3, 0.0, 0.25)
    members = [
        replace(member, network=replace(network, dropout=p))
        for p, member in zip(probabilities, make_members(network, len(ds), len(probabilities)))
    ]
    blocks = plan_blocks(trainer, members, qfml.MSE(), ds)
    assert sorted(map(len, blocks)) == [1, 5], "all that have dropout are one stack"
    for member, fit in zip(members, trainer.fit_many(members, qfml.MSE(), ds)):
        assert fit.network == member.network
        assert_same(trainer.fit_many([member], qfml.MSE(), ds)[0], fit)


@pytest.mark.parametrize("network", [qfml.MLP(hidden=(24, 24)), qfml.MLP(hidden=(9,), layer_norm=True)])
def test_those_that_are_left_keep_their_dropout_when_the_first_has_stopped(network):
    ds, trainer = make_data(), qfml.Trainer(max_epochs=3, batch_size=32)
    members = [
        qfml.Member(replace(network, dropout=p), np.arange(rows), np.arange(300, 340), seed=i)
        for i, (p, rows) in enumerate(((0.1, 40), (0.5, 150), (0.5, 200)))
    ]
    assert len(plan_blocks(trainer, members, qfml.MSE(), ds)) == 1
    for member, fit in zip(members, trainer.fit_many(members, qfml.MSE(), ds)):
        assert_same(trainer.fit_many([member], qfml.MSE(), ds)[0], fit)


class HalfDropout(qfml.MLP):
    """A network of a user's own, that makes something else of its probability."""

    def forward(self, parameters, x, dropout=None):
        return super().forward(parameters, x if dropout is None else dropout(x, self.dropout / 2))


def test_a_network_that_is_not_ours_shares_a_stack_with_its_equals_alone():
    ds = make_data()
    members = [qfml.Member(HalfDropout(dropout=p), np.arange(200), seed=1) for p in (0.1, 0.2, 0.1)]
    assert sorted(map(len, plan_blocks(qfml.Trainer(max_epochs=1, batch_size=64), members, qfml.MSE(), ds))) == [1, 2]


# a matrix product rounds by where a matrix begins in memory: odd widths, features and batches put it anywhere
ODD = [(5, 3), (8, 4), (9, 5), (10, 5), (12, 6), (17, 9), (18, 9), (25, 9), (33, 17), (17, 9, 5), (33, 17, 5), (50, 25)]


def differing_shapes(widths, features, batches, rows=237):
    """Shapes of which some member of a stack of three differs from its solo result."""
    found = []
    for hidden, n_features, batch_size in itertools.product(widths, features, batches):
        ds = make_data(n=300, n_features=n_features)
        trainer = qfml.Trainer(max_epochs=2, batch_size=batch_size)
        members = [qfml.Member(qfml.MLP(hidden=hidden), np.arange(rows), np.arange(250, 300), seed=i) for i in range(3)]
        for member, fit in zip(members, trainer.fit_many(members, qfml.MSE(), ds)):
            solo = trainer.fit_many([member], qfml.MSE(), ds)[0]
            if not torch.equal(solo.parameters, fit.parameters) or solo.history != fit.history:
                found.append((hidden, n_features, batch_size))
    return found


@pytest.mark.parametrize("n_features", [5, 20])
def test_odd_shapes_keep_the_bits(n_features):
    assert differing_shapes(ODD, [n_features], [50]) == []


@pytest.mark.slow
def test_many_odd_shapes_keep_the_bits():
    assert differing_shapes([*ODD, (16,), (19, 9), (20, 10), (32, 32), (100,)], [3, 5, 7, 20], [64, 50, None]) == []


@pytest.mark.parametrize("block", [1, 2, 3, 5, 8])
def test_member_block_changes_nothing(block):
    ds = make_data(weights=True)
    trainer = qfml.Trainer(max_epochs=12, batch_size=50, member_block=100)
    members = make_members(qfml.MLP(hidden=(20, 12)), len(ds), 8)
    whole = trainer.fit_many(members, qfml.Huber(delta=0.5), ds)
    for a, b in zip(whole, replace(trainer, member_block=block).fit_many(members, qfml.Huber(delta=0.5), ds)):
        assert_same(a, b)


@pytest.mark.parametrize(
    "loss", [qfml.MSE(), qfml.NegativeSharpe(cost_bps=5.0), qfml.BCE()], ids=lambda loss: loss.kind
)
def test_all_rows_at_once_equals_solo(loss):
    ds = make_data()
    if loss.kind == "bce":
        ds = TimeDataset(ds.features, ds.y > 0, time=ds.time, label_end=ds.label_end)
    elif loss.kind == "negative_sharpe":
        ds = TimeDataset(ds.features, 0.01 * ds.y, time=ds.time, label_end=ds.label_end)
    trainer = qfml.Trainer(max_epochs=20, batch_size=None, patience=4)
    network = qfml.MLP(hidden=(12,))
    members = make_members(network, len(ds), 4)
    members += [replace(member, seed=77) for member in members]
    for member, fit in zip(members, trainer.fit_many(members, loss, ds)):
        assert_same(trainer.fit_many([member], loss, ds)[0], fit)


def test_order_of_members_changes_nothing():
    ds = make_data()
    trainer = qfml.Trainer(max_epochs=5, batch_size=32)
    members = make_members(qfml.MLP(), len(ds), 5)
    forward = trainer.fit_many(members, qfml.MSE(), ds)
    for a, b in zip(forward, trainer.fit_many(members[::-1], qfml.MSE(), ds)[::-1]):
        assert_same(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [2, 3])
def test_more_threads_keep_the_promise(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        test_member_in_a_stack_equals_solo("odd widths")
        test_all_rows_at_once_equals_solo(qfml.MSE())
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
