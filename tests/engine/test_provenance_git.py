"""What a result came from: the git revision as git tells it, without running hooks; deterministic mode restored."""

import os
import subprocess

import numpy as np
import pytest
import torch

import qfml
from qfml.backtest import walk_forward
from qfml.data import TimeDataset
from qfml.engine.determinism import deterministic
from qfml.engine.provenance import git_revision, provenance
from qfml.errors import UserError
from qfml.splits import WalkForward

PLAIN = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}


def git(folder, *words):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *identity, *words], cwd=folder, env=PLAIN, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "repository"
    (folder / "src").mkdir(parents=True)
    git(folder, "init", "-q")
    (folder / "src" / "a.py").write_text("1")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "one")
    return folder


def test_outside_a_repository_there_is_none(tmp_path):
    assert git_revision(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert git_revision(tmp_path) is None  # no commit yet
    (tmp_path / ".git" / "HEAD").write_text("ref: ../../../etc/passwd\n")
    assert git_revision(tmp_path) is None


def test_the_revision_is_that_of_git_however_it_is_stored(repository, tmp_path):
    def agrees(folder):
        found = git_revision(folder)
        return found == {"revision": git(folder, "rev-parse", "HEAD"), "dirty": False}

    assert agrees(repository)
    assert agrees(repository / "src")
    git(repository, "pack-refs", "--all")
    assert agrees(repository)
    git(repository, "commit", "-q", "--allow-empty", "-m", "two")  # a loose branch beside the packed one
    assert agrees(repository)
    git(repository, "worktree", "add", "-q", "-b", "other", str(tmp_path / "linked"))
    git(tmp_path / "linked", "commit", "-q", "--allow-empty", "-m", "three")
    assert agrees(tmp_path / "linked")
    git(repository, "checkout", "-q", "--detach")
    assert agrees(repository)


def test_dirty_means_that_a_tracked_file_differs(repository):
    (repository / "new.txt").write_text("untracked")
    assert git_revision(repository)["dirty"] is False
    (repository / "src" / "a.py").write_text("2")
    assert git_revision(repository)["dirty"] is True
    git(repository, "add", "src/a.py")
    assert git_revision(repository)["dirty"] is True
    git(repository, "commit", "-q", "-m", "two")
    assert git_revision(repository)["dirty"] is False


def test_no_hook_is_run_and_nothing_is_written(repository, tmp_path):
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    hook.chmod(0o755)
    git(repository, "config", "core.fsmonitor", str(hook))
    hooks = repository / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("post-index-change", "fsmonitor-watchman"):
        (hooks / name).write_text(hook.read_text())
        (hooks / name).chmod(0o755)
    os.utime(repository / "src" / "a.py", (1, 1))  # git would like to refresh its index
    before = (repository / ".git" / "index").read_bytes()
    assert git_revision(repository)["dirty"] is False
    assert (repository / ".git" / "index").read_bytes() == before
    assert not (tmp_path / "ran").exists()
    git(repository, "status")
    assert (tmp_path / "ran").exists()  # the hook would have run


def test_without_git_only_dirty_is_unknown(repository, monkeypatch):
    revision = git(repository, "rev-parse", "HEAD")
    monkeypatch.setenv("PATH", "")
    found = provenance(seeds=[3, 1, 3], data_hash="d", config_hash="c", threads=2, folder=repository)
    assert found["git"] == {"revision": revision, "dirty": None}
    assert (found["seeds"], found["threads"], found["data_hash"]) == ([1, 3], 2, "d")


def settings():
    cudnn = torch.backends.cudnn
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.benchmark,
        cudnn.deterministic,
    )


def test_deterministic_algorithms_are_chosen_within_and_no_longer(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = settings()
    within = []

    def train():
        with deterministic(True, torch.device("cuda")):
            within.append(settings())
            raise KeyError

    with pytest.raises(KeyError):
        train()
    assert within == [(True, False, False, True)]
    assert settings() == before
    for wanted, device in ((False, "cuda"), (True, "cpu")):
        with deterministic(wanted, torch.device(device)):
            assert settings() == before


@pytest.mark.parametrize("workspace", [None, ":8:8"])
def test_without_a_fixed_workspace_cuda_is_refused_with_the_way_out(monkeypatch, workspace):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if workspace is not None:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", workspace)
    with (
        pytest.raises(UserError, match="start Python with CUBLAS_WORKSPACE_CONFIG=:4096:8, or set `deterministic`"),
        deterministic(True, torch.device("cuda")),
    ):
        pass


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("keep_checkpoints", 1, "`keep_checkpoints` must be a whole number, at least 2, got 1"),
        ("keep_checkpoints", True, "`keep_checkpoints` must be a whole number"),
    ],
)
def test_settings_are_checked(setting, value, message):
    with pytest.raises(ValueError, match=message):
        qfml.Trainer(**{"max_epochs": 1, "batch_size": 8, setting: value})


def test_a_walk_forward_says_what_it_came_from(repository, monkeypatch):
    monkeypatch.chdir(repository)
    rng = np.random.default_rng(0)
    days = np.arange("2020-01-01", "2021-02-04", dtype="datetime64[D]")
    X, r = rng.normal(size=(400, 2)), rng.normal(0, 0.01, 400)
    result = walk_forward(
        TimeDataset(X, r, time=days, label_end=days + 1, returns=r),
        splitter=WalkForward(train_size=200, test_size=100),
        network=qfml.MLP(hidden=(4,)),
        loss=qfml.MSE(),
        trainer=qfml.Trainer(max_epochs=1, batch_size=64),
        cost_bps=1.0,
        n_bootstrap=50,
        n_seeds=2,
        seed=5,
    )
    found = result.metrics["provenance"]
    assert found["git"] == {"revision": git(repository, "rev-parse", "HEAD"), "dirty": False}
    assert (found["seeds"], found["threads"]) == ([5, 6], torch.get_num_threads())
