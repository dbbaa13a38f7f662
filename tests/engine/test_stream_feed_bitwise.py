"""Training from a stream: the bits of training from memory, for any number of workers, and after a resume."""

import os
import signal

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import qfml
from qfml.data import TimeDataset
from qfml.data.streaming import StreamingTimeDataset, write_shards
from qfml.engine import Callback, Sequential, StreamMember
from qfml.errors import CheckpointError, Interrupted

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


@pytest.mark.slow
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
    network, val = qfml.MLP(hidden=(16, 5), dropout=0.1), dataset(60, seed=1)
    own = [StreamMember(network, seed=seed, lr=lr, patience=1) for seed, lr in enumerate((0.003, 0.5, 0.01))]
    stacked = trainer(max_epochs=6).fit_stream(own, qfml.MSE(), shards(folder, seed=3), val=val)
    assert len({fit.n_epochs for fit in stacked}) > 1, "some member must have stopped before the others"
    for member, fit in zip(own, stacked, strict=True):
        assert_same(trainer(max_epochs=6).fit_stream([member], qfml.MSE(), shards(folder, seed=3), val=val), [fit])
    blocks = trainer(max_epochs=6, member_block=2)
    assert_same(blocks.fit_stream(own, qfml.MSE(), shards(folder, seed=3), val=val), stacked)


class Stop(Callback):
    """Asks the process to end after a step, in the midst of an epoch."""

    def __init__(self, step):
        self.step = step

    def log(self, member, step, values):
        if (member, step) == (0, self.step):
            os.kill(os.getpid(), signal.SIGTERM)


def shuffled_loader(workers=0, seed=None, **options):
    ds = dataset(weight=False)
    generator = torch.Generator()
    if seed is not None:
        generator.manual_seed(seed)
    options = {"batch_size": BATCH, "shuffle": True, "num_workers": workers, "generator": generator} | options
    return DataLoader(TensorDataset(ds.features, ds.y), **options)


SOURCES = {
    "shards": lambda folder: shards(folder, seed=7, buffer_rows=30),
    "shards, workers": lambda folder: DataLoader(
        shards(folder, seed=7, buffer_rows=30), batch_size=None, num_workers=2, persistent_workers=True
    ),
    "loader": lambda folder: shuffled_loader(seed=5),
    "loader, persistent workers": lambda folder: shuffled_loader(2, persistent_workers=True),
}


@FORK
@pytest.mark.parametrize("source", SOURCES)
def test_a_training_that_is_resumed_within_an_epoch_equals_an_uninterrupted_one(tmp_path, folder, source):
    own, val = members(2), dataset(60, seed=1)
    settings = {"max_epochs": 3, "log_every": 1, "checkpoint_seconds": 3600.0}

    def train(where, **options):
        return trainer(**settings).fit_stream(own, qfml.MSE(), SOURCES[source](folder), val=val, **where, **options)

    whole = train({})
    where = {"checkpoint_dir": tmp_path}
    for step in (3, 10):  # in the first epoch of six batches, and in the second
        with pytest.raises(Interrupted):
            train(where, callbacks=[Stop(step)], resume=step > 3)
    assert_same(train(where, resume=True), whole)
    other = StreamingTimeDataset(folder, features=NAMES, weight="weight", batch_size=BATCH, known_by=None, seed=8)
    with pytest.raises(CheckpointError, match="belongs to other data"):
        trainer(**settings).fit_stream(own, qfml.MSE(), other, val=val, **where, resume=True)


def test_a_loader_in_order_trains_like_memory():
    ds = dataset(weight=False)
    loader = DataLoader(TensorDataset(ds.features, ds.y), batch_size=BATCH)
    own = members()
    resident = [qfml.Member(one.network, np.arange(len(ds)), seed=one.seed, lr=one.lr) for one in own]
    from_memory = trainer(sampler=Sequential()).fit_many(resident, qfml.MSE(), ds)
    for a, b in zip(trainer().fit_stream(own, qfml.MSE(), loader), from_memory, strict=True):
        assert torch.equal(a.parameters, b.parameters)
        assert [record["train_loss"] for record in a.history] == [record["train_loss"] for record in b.history]


@FORK
def test_workers_and_what_a_generator_drew_before_change_no_bit_of_a_shuffled_loader():
    own = members(2)
    expected = trainer().fit_stream(own, qfml.MSE(), shuffled_loader())
    loader = shuffled_loader(seed=99)
    next(iter(loader))
    assert_same(trainer().fit_stream(own, qfml.MSE(), loader), expected)
    for workers in (1, 2):
        assert_same(trainer().fit_stream(own, qfml.MSE(), shuffled_loader(workers)), expected)
    other = trainer(seed=1).fit_stream(own, qfml.MSE(), shuffled_loader())
    assert not torch.equal(other[0].parameters, expected[0].parameters)


def test_each_epoch_of_a_shuffled_loader_has_an_order_of_its_own_and_every_row():
    seen = []

    def note(batch):
        seen.append(batch[1])
        return batch

    trainer(max_epochs=2).fit_stream(members(1), qfml.MSE(), shuffled_loader(), adapter=note)
    first, second = torch.cat(seen[:6]), torch.cat(seen[6:])
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, dataset().y.sort().values)
    assert torch.equal(second.sort().values, dataset().y.sort().values)
