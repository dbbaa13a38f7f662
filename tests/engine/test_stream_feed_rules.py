"""What a training from a stream takes, what it refuses and why, and what becomes of faults while it reads."""

import gc
import os
import weakref

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

import qfml
from qfml.data import TimeDataset
from qfml.data.fitted_transforms import FittedTransform
from qfml.data.streaming import StreamingTimeDataset, write_shards
from qfml.engine import LBFGS, Sequential, StreamMember
from qfml.errors import DataError, UserError

FORK = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning", "ignore:This DataLoader will create")
N, BATCH = 40, 16
X = torch.randn(N, 3, generator=torch.Generator().manual_seed(0))
Y = X[:, 0].clone()
WEIGHT = torch.linspace(0.1, 2, N)


def fit(data, loss=None, member=None, **options):
    settings = {"max_epochs": 1, "batch_size": BATCH}
    own = {name: options.pop(name) for name in list(options) if name in qfml.Trainer.__dataclass_fields__}
    member = member or StreamMember(qfml.MLP(hidden=(8,)))
    return qfml.Trainer(**(settings | own)).fit_stream([member], loss or qfml.MSE(), data, **options)[0]


def loader(*columns, **options):
    return DataLoader(TensorDataset(*(columns or (X, Y))), **({"batch_size": BATCH} | options))


def validation(n_features=3, weight=None):
    time = np.arange(5)
    return TimeDataset(np.ones((5, n_features)), np.ones(5), time=time, label_end=time + 1, weight=weight)


def as_dict(rows):
    x, y, weight = (torch.stack(column) for column in zip(*rows, strict=True))
    return {"features": x.double(), "label": y, "importance": weight}


def test_custom_collate_adapter_and_dicts_give_the_same_training():
    plain = fit(loader(X, Y, WEIGHT))
    with_dicts = DataLoader(TensorDataset(X, Y, WEIGHT), batch_size=BATCH, collate_fn=as_dict)
    adapted = fit(with_dicts, adapter=lambda batch: (batch["features"], batch["label"], batch["importance"]))
    renamed = fit(
        with_dicts, adapter=lambda batch: {"x": batch["features"], "y": batch["label"], "weight": batch["importance"]}
    )
    assert torch.equal(plain.parameters, adapted.parameters)
    assert torch.equal(plain.parameters, renamed.parameters)
    assert not torch.equal(plain.parameters, fit(loader(X, Y)).parameters), "weights matter"


def test_a_loss_is_the_weighted_mean_over_all_rows_of_the_epoch():
    """With a learning rate of next to nothing, the last batch of 8 rows counts by its weights."""
    found = fit(loader(X, Y, WEIGHT), member=StreamMember(qfml.MLP(hidden=(8,)), lr=1e-12, weight_decay=0.0))
    time = np.arange(N)
    ds = TimeDataset(X, Y, time=time, label_end=time + 1, weight=WEIGHT)
    expected = np.average((found.predict(ds) - Y.numpy()) ** 2, weights=WEIGHT.numpy())
    assert found.history[0]["train_loss"] == pytest.approx(expected, rel=1e-6)


class Lazy(Dataset):
    """Rows by number; `at` tells what happens at row 20."""

    def __init__(self, at):
        self.at = at

    def __len__(self):
        return N

    def __getitem__(self, row):
        if row == 20:
            self.at()
        return X[row], Y[row]


def die():
    os._exit(3)


def fail():
    raise KeyError("the archive has no row 20")


@FORK
def test_a_worker_that_dies_is_explained():
    with pytest.raises(UserError, match=r"worker process of the DataLoader died .*Lower `num_workers`"):
        fit(DataLoader(Lazy(die), batch_size=BATCH, num_workers=1))


@FORK
@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_while_reading_comes_through(workers):
    with pytest.raises(KeyError, match="the archive has no row 20"):
        fit(DataLoader(Lazy(fail), batch_size=BATCH, num_workers=workers))


class Counted(IterableDataset):
    """Batches whose number is not what `len` says."""

    def __init__(self, n_batches, length):
        self.n_batches, self.length = n_batches, length

    def __len__(self):
        return self.length

    def __iter__(self):
        for _ in range(self.n_batches):
            yield X[:BATCH], Y[:BATCH]


class Unknown(IterableDataset):
    def __iter__(self):
        yield X[:BATCH], Y[:BATCH]


def test_the_number_of_batches_must_be_known_and_right():
    assert fit(DataLoader(Counted(3, 3), batch_size=None)).n_epochs == 1
    with pytest.raises(DataError, match="ended before its 3 batches"):
        fit(DataLoader(Counted(2, 3), batch_size=None))
    with pytest.raises(UserError, match="Unknown has no length: give it `__len__`"):
        fit(DataLoader(Unknown(), batch_size=None))


@pytest.mark.filterwarnings("ignore:Length of IterableDataset")
def test_more_batches_than_said_are_refused():
    with pytest.raises(DataError, match="more batches than its length says, 2"):
        fit(DataLoader(Counted(3, 2), batch_size=None))


def changed(values, row, value):
    values = values.clone()
    values[row] = value
    return values


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ((changed(X, 20, float("nan")), Y), r"`x` must be finite: row 4 of batch 1 of epoch 0"),
        ((X, changed(Y, 39, float("inf"))), r"`y` must be finite: row 7 of batch 2 of epoch 0"),
        ((X, Y, changed(WEIGHT, 3, -1.0)), r"`weight` must be >= 0, .* in batch 0 of epoch 0"),
        ((X, Y, WEIGHT[:, None]), r"`weight` must be >= 0, one for each of 16 rows"),
        ((X[:, 0], Y), r"must have features \(B, F\) or \(B, L, F\)"),
        ((X, Y[:, None]), r"labels \(B,\), one a row, got \(16, 3\) and \(16, 1\): take `y\[:, 0\]` by an `adapter`"),
        ((X, X), r"labels \(B,\), one a row, got \(16, 3\) and \(16, 3\)"),
        ((X,), r"must be tensors \(x, y\) or \(x, y, weight\).*got \(Tensor\).*pass an `adapter`"),
        ((X, Y, WEIGHT, WEIGHT), r"got \(Tensor, Tensor, Tensor, Tensor\)"),
    ],
)
def test_bad_batches_are_named(columns, message):
    with pytest.raises(DataError, match=message):
        fit(loader(*columns))


def test_labels_are_those_of_the_loss():
    with pytest.raises(ValueError, match=r"`bce` needs labels in \[0, 1\]"):
        fit(loader(X, Y), qfml.BCE())
    assert fit(loader(X, (Y > 0).float()), qfml.BCE()).n_epochs == 1


def test_rows_of_other_shapes_are_refused():
    batches = [(X[:BATCH], Y[:BATCH]), (X[:BATCH, :2], Y[:BATCH])]
    with pytest.raises(DataError, match=r"batch 1 of epoch 0 has features of shape \(2,\) a row, the first one \(3,\)"):
        fit(DataLoader(batches, batch_size=None))  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match="has 40 rows, more than `batch_size` 16"):
        fit(DataLoader([(X, Y)], batch_size=None))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": qfml.NegativeSharpe(cost_bps=5.0), "batch_size": BATCH}, "loss of the whole sample"),
        ({"batch_size": None}, "`batch_size` must be the stream's batch size, got None"),
        ({"batch_size": 32}, "must be that of the stream, 16, got 32"),
        ({"optimizer": LBFGS(), "batch_size": None}, "lbfgs takes all rows at once"),
        ({"sampler": Sequential()}, "the order of a stream is its own"),
        ({"member": qfml.Member(qfml.MLP(), np.arange(3))}, "make it a StreamMember"),
        ({"member": StreamMember(qfml.MLP(), val=np.arange(2))}, "pass `val=` as well"),
        (
            {"member": StreamMember(qfml.MLP(), val=np.arange(9)), "val": validation()},
            "from 0 to 4, got 0 to 8",
        ),
        ({"val": validation(2)}, "it has 2 and window None, the stream 3 and None"),
        ({"val": validation(weight=np.zeros(5))}, "all 5 rows of `val` of member 0 have weight 0"),
        ({"ahead": -1}, "`ahead` must be a whole number"),
        ({"data": [1, 2]}, "must be a StreamingTimeDataset or a DataLoader, got list"),
    ],
)
def test_what_a_stream_cannot_do_is_refused_with_the_way_out(options, message):
    with pytest.raises(UserError, match=message):
        fit(**({"data": loader()} | options))


def test_transforms_are_for_the_shards():
    fitted = qfml.data.TRANSFORMS["standardise"]().fit(X, [f"x{i}" for i in range(3)])
    assert isinstance(fitted, FittedTransform)
    with pytest.raises(UserError, match="apply them before the shards are written"):
        fit(loader(), member=StreamMember(qfml.MLP(), transforms=fitted))


class Unseeded(IterableDataset):
    def __len__(self):
        return 1

    def __iter__(self):
        yield X[:BATCH], Y[:BATCH]


class Seeded(Unseeded):
    epochs: tuple = ()

    def set_epoch(self, epoch):
        self.epochs = (*self.epochs, epoch)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: loader(shuffle=True), "RandomSampler has no `generator`"),
        (lambda: loader(sampler=RandomSampler(X)), "RandomSampler has no `generator`"),  # pyright: ignore
        (lambda: DataLoader(Unseeded(), batch_size=None), "Unseeded has no `set_epoch"),
    ],
)
def test_an_order_that_cannot_be_had_again_trains_but_writes_no_checkpoints(tmp_path, data, reason):
    assert fit(data()).n_epochs == 1
    with pytest.raises(UserError, match=f"{reason}.*leave `checkpoint_dir` out"):
        fit(data(), checkpoint_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_data_set_is_told_its_epoch(tmp_path):
    data = Seeded()
    fit(DataLoader(data, batch_size=None), checkpoint_dir=tmp_path, max_epochs=3)
    assert sorted(set(data.epochs)) == [0, 1, 2]


def test_joining_batches_of_shards_is_refused(tmp_path):
    time = np.arange(N)
    write_shards(
        TimeDataset(X, Y, time=time, label_end=time + 1, feature_names=["a", "b", "c"]), tmp_path, rows_per_shard=20
    )
    stream = StreamingTimeDataset(tmp_path, features=["a", "b", "c"], batch_size=BATCH)
    with pytest.raises(UserError, match="`batch_size` of the DataLoader must be None, got 4"):
        fit(DataLoader(stream, batch_size=4))
    as_dicts = StreamingTimeDataset(tmp_path, features=["a", "b", "c"], batch_size=BATCH, as_dict=True)
    assert torch.equal(fit(stream).parameters, fit(as_dicts).parameters)
    assert torch.equal(fit(stream).parameters, fit(loader()).parameters), "stored in the same order"


def test_a_loader_is_let_go_without_the_garbage_collector():
    """Its workers would otherwise be waited for when the collector finds it."""
    data = loader()
    known = weakref.ref(data)
    gc.disable()
    try:
        fit(data)
        del data
        assert known() is None
    finally:
        gc.enable()
