"""Checkpoints beside the training: never torn, one at a time, errors told, none too soon; one member's parameters."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import qfml
from qfml.data import TimeDataset
from qfml.engine import load_member
from qfml.engine import saving as saving_module
from qfml.engine.checkpoint import _safetensors, read_checkpoint, read_manifest, write_checkpoint
from qfml.engine.saving import Saver, pack_histories, unpack_histories
from qfml.errors import CheckpointError

TRAIN, VAL = np.arange(96), np.arange(96, 128)


def dataset():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((128, 4)).astype(np.float32)
    time_ = np.datetime64("2010-01-01") + np.arange(128)
    return TimeDataset(X, X[:, 0] - X[:, 1] ** 2, time=time_, label_end=time_ + 1)


def members(n=3):
    return [qfml.Member(qfml.MLP(hidden=(8,)), TRAIN[: 64 + 8 * i], VAL, seed=i, lr=0.01) for i in range(n)]


def train(folder, callbacks=(), resume=False, n=3, **settings):
    options = {"max_epochs": 4, "batch_size": 32, "checkpoint_seconds": 0.0} | settings
    trainer = qfml.Trainer(**options)
    return trainer.fit_many(
        members(n), qfml.MSE(), dataset(), callbacks=callbacks, checkpoint_dir=folder, resume=resume
    )


class Written(qfml.engine.Callback):
    def __init__(self):
        self.folders, self.threads = [], set()

    def checkpoint(self, folder):
        self.folders.append(folder.name)
        self.threads.add(threading.current_thread())


def state_of(histories):
    return {"blocks": [{"histories": histories}]}


def test_what_is_written_is_the_state_at_the_call_whatever_training_does_meanwhile(tmp_path, monkeypatch):
    go = threading.Event()

    def slow(*arguments, **named):
        assert go.wait(10)
        return write_checkpoint(*arguments, **named)

    monkeypatch.setattr(saving_module, "write_checkpoint", slow)
    value = torch.arange(12.0).view(3, 4)
    before = value.clone()
    with Saver(tmp_path, 0.0, 2) as saver:
        saver.begin({"w": value}, state_of([]), {"threads": 1})
        value.zero_()
        assert saver.written() is None  # not yet, and nobody waits
        assert not saver.due  # one at a time
        go.set()
        path = saver.written(wait=True)
    assert path == tmp_path / "checkpoint-00000001"
    assert torch.equal(read_checkpoint(tmp_path)[0]["w"], before)


def test_the_next_comes_no_sooner_than_twenty_times_what_the_last_one_cost(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(saving_module.time, "monotonic", lambda: clock[0])

    def costly(*arguments, **named):
        clock[0] += 0.5
        return tmp_path

    monkeypatch.setattr(saving_module, "write_checkpoint", costly)
    with Saver(tmp_path, 2.0, 2) as saver:
        assert not saver.due
        clock[0] += 2.1
        assert saver.due
        saver.begin({}, state_of([]), {})
        saver.written(wait=True)
        ended = clock[0]
        for seconds, due in ((2.1, False), (9.9, False), (10.1, True)):
            clock[0] = ended + seconds
            assert saver.due is due


def test_callbacks_are_told_of_each_checkpoint_from_the_thread_that_trains(tmp_path):
    told = Written()
    train(tmp_path, [told], max_epochs=30, keep_checkpoints=3)
    assert told.folders == [f"checkpoint-{n:08d}" for n in range(1, len(told.folders) + 1)]
    assert told.threads == {threading.current_thread()}
    assert sorted(path.name for path in tmp_path.iterdir()) == told.folders[-3:]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("checkpoint")]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_in_the_background_ends_the_training_and_leaves_what_was_there(tmp_path, monkeypatch, step):
    train(tmp_path / "whole", max_epochs=6)
    real, calls = getattr(os, step), []

    def full(*arguments, **named):
        calls.append(threading.current_thread())
        if len(calls) > (5 if step == "fsync" else 1):  # the first checkpoint fits: three files and two folders
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(saving_module, "_SHARE", 0)
        patch.setattr(os, step, full)
        with pytest.raises(CheckpointError, match="No space left on device; the previous checkpoint is intact"):
            train(tmp_path / "full", max_epochs=6)
    assert threading.current_thread() not in calls
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["checkpoint-00000001"]
    whole = train(tmp_path / "whole", max_epochs=6, resume=True)
    resumed = train(tmp_path / "full", max_epochs=6, resume=True)
    assert [fit.history for fit in resumed] == [fit.history for fit in whole]
    assert all(torch.equal(a.parameters, b.parameters) for a, b in zip(resumed, whole, strict=True))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may mount")
def test_a_disk_that_is_really_full(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], capture_output=True)
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        write_checkpoint(small / "c", {"w": torch.ones(64)}, {"n": 1})
        with pytest.raises(CheckpointError, match="No space left on device; the previous checkpoint is intact"):
            write_checkpoint(small / "c", {"w": torch.ones(64_000)}, {"n": 2})
        assert read_checkpoint(small / "c")[1] == {"n": 1}
        assert [path.name for path in (small / "c").iterdir()] == ["checkpoint-00000001"]
    finally:
        subprocess.run(["umount", small], check=True)


def test_an_error_of_the_user_is_not_hidden_and_what_is_being_written_is_still_written(tmp_path, monkeypatch):
    begun = threading.Event()

    def slow(*arguments, **named):
        begun.set()
        time.sleep(0.1)
        return write_checkpoint(*arguments, **named)

    class Fails(qfml.engine.Callback):
        def epoch(self, member, record, stopped):
            if record["epoch"] == 2:
                assert begun.wait(10)
                raise KeyError("mine")

    monkeypatch.setattr(saving_module, "write_checkpoint", slow)
    with pytest.raises(KeyError, match="mine"):
        train(tmp_path, [Fails()])
    assert read_checkpoint(tmp_path)[1]["blocks"]


KILLED = """
import os, signal, sys
from pathlib import Path
from engine import kill_target
from qfml.engine import checkpoint, saving
saving._SHARE = 0
stage, number = sys.argv[2], int(sys.argv[3])
calls = [0]
def armed(real):
    def call(*arguments, **named):
        calls[0] += 1
        if calls[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **named)
    return call
owner = {"replace": checkpoint.os, "fsync": checkpoint.os, "rmtree": checkpoint.shutil, "_prove": checkpoint}[stage]
setattr(owner, stage, armed(getattr(owner, stage)))
kill_target.train(Path(sys.argv[1]), resume=False, max_epochs=3)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "number"), [("fsync", 7), ("fsync", 9), ("replace", 3), ("_prove", 2), ("rmtree", 1)]
)
def test_a_kill_inside_the_write_in_the_background_loses_nothing(tmp_path, stage, number):
    from engine import kill_target

    environment = os.environ | {"JAXTYPING_DISABLE": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "cut"), stage, str(number)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, env=environment)
    assert done.returncode == -signal.SIGKILL
    whole = kill_target.describe(*kill_target.train(tmp_path / "whole", resume=False, max_epochs=3))
    resumed = kill_target.describe(*kill_target.train(tmp_path / "cut", resume=True, max_epochs=3))
    assert resumed == whole


def test_a_run_that_ran_out_of_time_goes_on_when_resumed_and_ends_as_one_that_did_not(tmp_path, monkeypatch):
    whole = train(tmp_path / "whole", member_block=2)
    now = [0.0]
    monkeypatch.setattr("qfml.engine.training.time.monotonic", lambda: now[0])

    class Late(qfml.engine.Callback):
        def epoch(self, member, record, stopped):
            now[0] += 1.0

    cut = train(tmp_path / "cut", [Late()], member_block=2, max_seconds=2.5)
    assert [fit.status for fit in cut] == ["max_time"] * 3
    assert [fit.n_epochs for fit in cut] == [2, 1, 0]
    fits, runs = cut, 1
    while any(fit.status == "max_time" for fit in fits):
        fits, runs = train(tmp_path / "cut", [Late()], resume=True, member_block=2, max_seconds=2.5), runs + 1
    assert runs == 4  # 12 epochs in all, 3 in a run
    assert [fit.history for fit in fits] == [fit.history for fit in whole]
    assert all(torch.equal(a.parameters, b.parameters) for a, b in zip(fits, whole, strict=True))


@pytest.mark.parametrize("averaging", [None, qfml.engine.EMA(decay=0.9)])
def test_the_parameters_of_one_member_are_those_of_its_fit_and_where_it_stood(tmp_path, averaging):
    fits = train(tmp_path, n=3, member_block=2, averaging=averaging)
    for member, fit in enumerate(fits):
        found = load_member(tmp_path, member)
        wanted = fit.named_parameters()
        assert list(found) == list(wanted)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        with pytest.raises(CheckpointError, match="has no last parameters: it has stopped"):
            load_member(tmp_path, member, which="last")
    with pytest.raises(CheckpointError, match=r"member 3 is not in the checkpoint; these had begun: \[0, 1, 2\]"):
        load_member(tmp_path, 3)
    with pytest.raises(ValueError, match='`which` must be "best" or "last", got \'worst\''):
        load_member(tmp_path, 0, which="worst")


def test_a_member_that_is_training_has_its_last_and_its_best(tmp_path):
    class Stop(qfml.engine.Callback):
        def epoch(self, member, record, stopped):
            if member == 0 and record["epoch"] == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(qfml.errors.Interrupted):
        train(tmp_path, [Stop()], n=1, checkpoint_seconds=3600.0, max_epochs=50)
    (three,) = train(None, n=1, max_epochs=3)
    last, best = load_member(tmp_path, 0, "last"), load_member(tmp_path, 0)
    assert three.best_epoch == 3  # the loss still falls: the last are the best
    for name, value in three.named_parameters().items():
        assert torch.equal(last[name], value)
        assert torch.equal(best[name], value)


def test_histories_come_back_as_they_were():
    histories = [
        [{"epoch": 1, "train_loss": 0.1, "val_loss": None}, {"epoch": 2, "train_loss": float("nan"), "val_loss": 3.0}],
        [],
        [{"epoch": 1, "train_loss": 5e-324, "val_loss": 1 / 3}],
    ]
    others = [[{"epoch": 1, "train_loss": 1.0}, {"epoch": 2, "train_loss": 1.0, "note": "x"}]]
    state = {"fingerprint": "f", "blocks": [{"histories": h, "ids": [0]} for h in (histories, others, [[], []])]}
    tensors, packed = pack_histories(state)
    assert list(tensors) == ["0.history.train_loss"]
    left, back = unpack_histories(tensors | {"0.best": torch.ones(1)}, packed)
    assert list(left) == ["0.best"]
    assert repr(back) == repr(state | {"blocks": back["blocks"]})
    assert [repr(block["histories"]) for block in back["blocks"]] == [repr(h) for h in (histories, others, [[], []])]


@pytest.mark.parametrize("lengths", [[1], [3], [-1, 3], ["a"], None, [1.0, 1.0]])
def test_histories_of_impossible_lengths_are_refused(lengths):
    block = {"lengths": lengths, "columns": {"epoch": [1, 2]}}
    with pytest.raises(CheckpointError, match="histories of the checkpoint are not ours"):
        unpack_histories({}, {"blocks": [block]})


def test_our_tensor_file_is_what_the_safetensors_library_reads():
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8]
    tensors = {f"t{i}": torch.arange(i * 5).view(5, i).to(kind) for i, kind in enumerate(kinds)}
    tensors |= {"bool": torch.tensor([True, False, True]), "scalar": torch.tensor(2.5), "turned": torch.rand(3, 4).T}
    found = safetensors.torch.load(b"".join(bytes(chunk) for chunk in _safetensors(tensors)))
    assert set(found) == set(tensors)
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def test_the_manifest_says_what_the_run_came_from(tmp_path):
    train(tmp_path, seed=7)
    found = read_manifest(sorted(tmp_path.iterdir())[-1])
    assert found["seeds"] == [0, 1, 2, 7]
    assert found["data_hash"] == dataset().data_hash
    assert found["threads"] == torch.get_num_threads()
    assert found["config"]["trainer"]["max_epochs"] == 4
    assert found["versions"]["torch"] == torch.__version__
    assert set(found) >= {"config_hash", "git", "platform"}
