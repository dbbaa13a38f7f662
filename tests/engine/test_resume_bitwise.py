"""A run that is killed and resumed ends with the bits of an uninterrupted one."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from engine import kill_target

import qfml
from qfml.data.transforms import Standardise
from qfml.engine.checkpoint import read_checkpoint
from qfml.engine.saving import unpack_histories
from qfml.errors import CheckpointError, Interrupted

N_EPOCHS = 95  # of all members together, a little less than the run takes
TARGET = Path(__file__).with_name("kill_target.py")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    subprocess.run([sys.executable, TARGET, folder], check=True, stdout=subprocess.DEVNULL, env=environment())
    return (folder / "result.json").read_text()


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "JAXTYPING_DISABLE": "1"}


def start(folder, *, resume):
    arguments = [sys.executable, TARGET, folder, *(["resume"] if resume else [])]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), text=True)


def kill_after(process, n_epochs, delay, number):
    """Signal the process `delay` seconds after it has told of `n_epochs` epochs; True if it was still running."""
    for _ in range(n_epochs):
        if not process.stdout.readline():
            break
    time.sleep(delay)
    process.send_signal(number)
    process.communicate()
    return process.returncode != 0


def survive_kills(folder, kills_wanted, rng, uninterrupted):
    """Kill a run `kills_wanted` times, further on each time, let it end, and compare; returns the kills that hit."""
    hits, resume = 0, False
    for kill in range(kills_wanted):
        process = start(folder, resume=resume)
        # a resumed run first tells again of the epochs it has: count on from there
        n_epochs = (kill * N_EPOCHS) // kills_wanted + rng.randrange(1, N_EPOCHS // kills_wanted + 1)
        hits += kill_after(process, n_epochs, rng.uniform(0, 0.02), signal.SIGKILL)
        resume = any((folder / "checkpoints").glob("checkpoint-*"))
    assert start(folder, resume=resume).communicate() is not None
    assert (folder / "result.json").read_text() == uninterrupted
    return hits


@pytest.mark.slow  # of runs as a whole, tests/test_run_interrupted_and_resumed.py does it in seconds
def test_kill_9_and_resume_equals_uninterrupted_to_the_last_bit(tmp_path, uninterrupted):
    assert survive_kills(tmp_path, 3, random.Random(1), uninterrupted) == 3


@pytest.mark.slow
def test_fifty_kills_at_random_moments(tmp_path, uninterrupted):
    rng, hits, attempt = random.Random(2), 0, 0
    while hits < 50:
        folder = tmp_path / str(attempt)
        folder.mkdir()
        hits += survive_kills(folder, 10, rng, uninterrupted)
        attempt += 1
        assert attempt < 10


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_writes_a_checkpoint_and_the_run_resumes(tmp_path, monkeypatch, number):
    whole = kill_target.describe(*kill_target.train(tmp_path / "whole", resume=False, checkpoint_seconds=3600.0))
    told = kill_target.Told.epoch

    def interrupt(self, member, record, stopped):
        told(self, member, record, stopped)
        if len(self.told) == 37:
            os.kill(os.getpid(), number)
            if number == signal.SIGTERM:  # a supervisor may say it twice
                os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(kill_target.Told, "epoch", interrupt)
        with pytest.raises(Interrupted) as stopped:
            kill_target.train(tmp_path / "cut", resume=False, checkpoint_seconds=3600.0)
    assert stopped.value.signal_number == number
    assert signal.getsignal(number) == handler
    resumed = kill_target.train(tmp_path / "cut", resume=True, checkpoint_seconds=3600.0)
    assert kill_target.describe(*resumed) == whole


def test_a_finished_run_resumes_to_itself(tmp_path):
    first = kill_target.describe(*kill_target.train(tmp_path, resume=False))
    assert kill_target.describe(*kill_target.train(tmp_path, resume=True)) == first


def test_resume_refuses_other_settings_and_missing_checkpoints(tmp_path):
    kill_target.train(tmp_path, resume=False, max_epochs=2)
    with pytest.raises(CheckpointError, match="belongs to other data, members or settings"):
        kill_target.train(tmp_path, resume=True, max_epochs=3)
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        kill_target.train(tmp_path / "empty", resume=True)
    ds, trainer = kill_target.dataset(), qfml.Trainer(max_epochs=1, batch_size=8)
    with pytest.raises(CheckpointError, match="`resume` needs `checkpoint_dir`"):
        trainer.fit(qfml.MLP(), qfml.MSE(), ds, train=kill_target.np.arange(9), resume=True)


def test_a_new_training_leaves_the_checkpoints_of_another_alone(tmp_path):
    kill_target.train(tmp_path, resume=False, max_epochs=1)
    before = sorted((tmp_path / "checkpoints").iterdir())
    with pytest.raises(CheckpointError, match=r"holds the checkpoints of a training.*continue it by `resume=True`"):
        kill_target.train(tmp_path, resume=False, max_epochs=2)
    assert sorted((tmp_path / "checkpoints").iterdir()) == before
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "checkpoints").write_text("no folder")
    with pytest.raises(CheckpointError, match="is a file: name another place"):
        kill_target.train(tmp_path / "file", resume=False, max_epochs=1)


def test_resume_tells_a_transform_from_one_that_was_fitted_on_other_rows(tmp_path):
    ds, trainer = kill_target.dataset(), qfml.Trainer(max_epochs=1, batch_size=64)

    def train(rows, resume):
        scale = Standardise().fit(ds.features[:rows])
        member = qfml.Member(qfml.MLP(), kill_target.np.arange(300), transforms=scale)
        trainer.fit_many([member], qfml.MSE(), ds, checkpoint_dir=tmp_path, resume=resume)

    train(250, resume=False)
    train(250, resume=True)
    with pytest.raises(CheckpointError, match="belongs to other data, members or settings"):
        train(200, resume=True)


def test_one_stacked_file_holds_a_row_for_each_member(tmp_path):
    kill_target.train(tmp_path, resume=False, max_epochs=1)
    tensors, state = unpack_histories(*read_checkpoint(tmp_path / "checkpoints"))
    assert [len(block["histories"]) for block in state["blocks"]] == [3, 2]
    assert {name for name in tensors if ".fit." in name} == {"0.fit.0", "0.fit.1", "0.fit.2", "1.fit.0", "1.fit.1"}
