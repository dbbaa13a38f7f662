"""A checkpoint with right hashes and impossible contents is refused before anything of it is used."""

import copy

import numpy as np
import pytest
import torch

import qfml
from qfml.data import TimeDataset
from qfml.engine.block import Block
from qfml.errors import CheckpointError

TRAIN, VAL = np.arange(64), np.arange(64, 80)


def make_block(steps):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((80, 4)).astype(np.float32)
    time = np.datetime64("2010-01-01") + np.arange(80)
    ds = TimeDataset(X, X[:, 0], time=time, label_end=time + 1)
    members = [qfml.Member(qfml.MLP(hidden=(8,)), TRAIN[: 48 + 8 * i], VAL, seed=i) for i in range(3)]
    trainer = qfml.Trainer(max_epochs=9, batch_size=32)
    block = Block(trainer, members, qfml.MSE(), ds, lambda member, record, stopped: member == 1, *[silent] * 2)
    for _ in range(steps):
        block.step()
    return block


def silent(*_):
    pass


@pytest.fixture(scope="module")
def saved():
    block = make_block(5)  # member 1 is stopped after its first epoch
    assert block.members == [0, 2]
    return {name: value.clone() for name, value in block.tensors().items()}, block.counters()


def test_what_was_saved_is_restored(saved):
    block = make_block(0)
    block.restore(*copy.deepcopy(saved))
    assert block.counters() == saved[1]
    assert all(torch.equal(value, saved[0][name]) for name, value in block.tensors().items())


def put(path, value):
    def change(tensors, counters):
        place = counters
        *parents, last = path
        for name in parents:
            place = place[name]
        if value is KeyError:
            del place[last]
        else:
            place[last] = value

    return change


def tensor(name, value):
    def change(tensors, counters):
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value(tensors[name])

    return change


CHANGES = {
    "no members": put(["members"], KeyError),
    "members out of order": put(["members"], [2, 0]),
    "a member twice": put(["members"], [0, 0]),
    "a member that is not there": put(["members"], [0, 3]),
    "a negative member": put(["members"], [-1, 2]),
    "a true member": put(["members"], [False, 2]),
    "members as text": put(["members"], "02"),
    "a member both stopped and going": put(["members"], [0, 1, 2]),
    "clock of another length": put(["clock", "epoch"], [0]),
    "clock of floats": put(["clock", "step"], [0.0, 1.0]),
    "clock beyond the epoch": put(["clock", "step"], [2, 2]),
    "negative step": put(["clock", "step"], [-1, 0]),
    "epochs without a history": put(["clock", "epoch"], [7, 7]),
    "fewer steps in all than in the epoch": put(["clock", "n_steps"], [0, 0]),
    "no clock": put(["clock"], None),
    "one more clock": put(["clock", "hour"], [0, 0]),
    "array of another length": put(["arrays", "lr"], [0.1]),
    "array of another shape": put(["arrays", "lr"], [[0.1], [0.1]]),
    "one number for all": put(["arrays", "lr"], 0.1),
    "array of text": put(["arrays", "lr"], ["a", "b"]),
    "whole numbers that are not": put(["arrays", "best_epoch"], [1.5, 1.0]),
    "an array that is missing": put(["arrays", "best"], KeyError),
    "an array too many": put(["arrays", "worst"], [1.0, 1.0]),
    "no histories": put(["histories"], {}),
    "too few histories": put(["histories"], [[]]),
    "a history of numbers": put(["histories", 0], [1]),
    "an epoch that is missing": put(["histories", 0], [{"epoch": 2, "train_loss": 1.0}] * 2),
    "a fit too few": put(["fits"], {}),
    "a fit of nobody": put(["fits", "17"], {"status": "finished", "best_epoch": 1}),
    "a status of our own making": put(["fits", "1", "status"], "perfect"),
    "a best epoch that never was": put(["fits", "1", "best_epoch"], 2),
    "a fit of text": put(["fits", "1"], "finished"),
    "failures of another kind": put(["failures"], [[0, "1", "x"]]),
    "a failure of nobody": put(["failures"], [[17, 1, "x"]]),
    "a tensor that is missing": tensor("parameters", None),
    "one row for all members": tensor("parameters", lambda value: value[:1]),
    "narrower rows": tensor("best", lambda value: value[:, :-1]),
    "another dtype": tensor("parameters", lambda value: value.double()),
    "a moment of another shape": tensor("loss_sum", lambda value: value[:, None]),
    "a fit that is missing": tensor("fit.1", None),
    "a fit of another length": tensor("fit.1", lambda value: value[:1]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_cannot_be_is_refused(saved, change):
    tensors, counters = dict(saved[0]), copy.deepcopy(saved[1])
    change(tensors, counters)
    block = make_block(0)
    before = block.counters()
    with pytest.raises(CheckpointError, match="the checkpoint is not ours: `"):
        block.restore(tensors, counters)
    assert block.counters() == before
