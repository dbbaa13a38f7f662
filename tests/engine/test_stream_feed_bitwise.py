"""Training from a stream: the bits of training from memory, for any number of workers, and after a resume."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import qfml
from qfml.data import TimeDataset
from qfml.data.streaming import StreamingTimeDataset, write_shards
from qfml.engine import Sequential, StreamMember

NAMES = ["a", "b", "c"]
BATCH = 24
# Python 3.12 warns when a process with threads forks, as DataLoader workers do; torch, when they outnumber the cores
FORK = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning", "ignore:This DataLoader will create")


def dataset(n=130, window=None, weight=True, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 3))
    y = np.tanh(X[:, 0] * X[:, 1]) + 0.1 * rng.standard_normal(n)
    time = np.datetime64("2020-01-01", "ns") + np.arange(n) * np.timedelta64(1, "D")
    return TimeDataset(
        X,
        y,
        time=time,
        label_end=time + np.timedelta64(1, "D"),
        weight=rng.uniform(0.5, 2, n) if weight else None,
        feature_names=NAMES,
        window=window,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("shards")
    write_shards(dataset(), path, rows_per_shard=50, rows_per_group=10)
    return path


def shards(folder, **options):
    options = {"features": NAMES, "weight": "weight", "batch_size": BATCH, "known_by": None} | options
    return StreamingTimeDataset(folder, **options)


def trainer(**options):
    return qfml.Trainer(**({"max_epochs": 3, "batch_size": BATCH, "optimizer": qfml.AdamW(lr=1e-2)} | options))


def members(count=3, network=None, **options):
    network = network or qfml.MLP(hidden=(16, 5), dropout=0.1)
    return [StreamMember(network, seed=seed, lr=0.01 / (1 + seed), **options) for seed in range(count)]


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a.parameters, b.parameters)
        assert a.history == b.history
        assert (a.status, a.best_epoch) == (b.status, b.best_epoch)


@pytest.mark.parametrize("window", [None, 4])
def test_a_stream_in_stored_order_trains_like_memory_in_time_order(tmp_path, window):
    ds, val = dataset(window=window), dataset(60, window=window, seed=1)
    write_shards(ds, tmp_path, rows_per_shard=50, rows_per_group=7)
    network = qfml.MLP(hidden=(16, 5), dropout=0.1) if window is None else qfml.TCN(channels=(8, 6), kernel=3)
    own = members(network=network)
    streamed = trainer().fit_stream(own, qfml.MSE(), shards(tmp_path), val=val)
    # one data set holds both: the rows of the validation data come after those of the shards
    resident = [qfml.Member(network, np.arange(len(ds)), seed=member.seed, lr=member.lr) for member in own]
    from_memory = trainer(sampler=Sequential()).fit_many(resident, qfml.MSE(), ds)
    for a, b in zip(streamed, from_memory, strict=True):
        last = a.history[-1]["val_loss"]
        assert [record["train_loss"] for record in a.history] == [record["train_loss"] for record in b.history]
        prediction = a.predict(val)
        best = a.history[a.best_epoch - 1]["val_loss"]
        weight = val.weight.double().numpy()
        assert best == pytest.approx(np.average((prediction - val.y.numpy()) ** 2, weights=weight), rel=1e-5)
        if a.best_epoch == a.n_epochs:
            assert torch.equal(a.parameters, b.parameters)
            assert best == last
    without = trainer().fit_stream(own, qfml.MSE(), shards(tmp_path))
    for a, b in zip(without, from_memory, strict=True):
        assert torch.equal(a.parameters, b.parameters)


@FORK
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_and_prefetch_change_no_bit(folder, persistent):
    own, val = members(), dataset(60, seed=1)
    options = {"seed": 7, "buffer_rows": 30, "interleave": 2}
    expected = trainer().fit_stream(own, qfml.MSE(), shards(folder, **options), val=val, ahead=0)
    assert_same(trainer().fit_stream(own, qfml.MSE(), shards(folder, **options), val=val, ahead=5), expected)
    for workers in (0, 1, 2):
        loader = DataLoader(
            shards(folder, **options),
            batch_size=None,
            num_workers=workers,
            persistent_workers=persistent and workers > 0,
        )
        assert_same(trainer().fit_stream(own, qfml.MSE(), loader, val=val), expected)


def test_a_member_in_a_stack_equals_solo(folder):
    own, val = members(4), dataset(60, seed=1)
    stacked = trainer(max_epochs=12, patience=1).fit_stream(own, qfml.MSE(), shards(folder, seed=3), val=val)
    assert len({fit.n_epochs for fit in stacked}) > 1, "some member must have stopped before the others"
    for member, fit in zip(own, stacked, strict=True):
        alone = trainer(max_epochs=12, patience=1).fit_stream([member], qfml.MSE(), shards(folder, seed=3), val=val)
        assert_same(alone, [fit])
    blocks = trainer(max_epochs=12, patience=1, member_block=3)
    assert_same(blocks.fit_stream(own, qfml.MSE(), shards(folder, seed=3), val=val), stacked)
