"""Every setting of `Trainer` either acts on a training of policies, or is refused by its name."""

import dataclasses

import pytest
import torch
from hedging.small_training import LOSSES, POLICY, data, members, paths_of, same, trainer

import qfml
from qfml.engine import EMA, LBFGS, SGD, Adam, Callback, Cosine, Muon, ParameterGroup, Profile, Sequential, Weighted
from qfml.errors import ConfigError
from qfml.hedging.loss import loss_of
from qfml.hedging.recurrent import Recurrent
from qfml.hedging.training import PathMember, train_policies

# changes of a setting, and with it of others that it needs
CHANGES = {
    "max_epochs": {"max_epochs": 1},
    "batch_size": {"batch_size": 32},
    "optimizer": {"optimizer": SGD(lr=1e-3)},
    "schedule": {"schedule": Cosine()},
    "max_steps": {"max_steps": 3},
    "precision": {"precision": "bf16"},
    "parameter_groups": {"parameter_groups": (ParameterGroup("head_*", lr_factor=0.0),)},
    "averaging": {"averaging": EMA(decay=0.9)},
    "clip_norm": {"clip_norm": 1e-4},
    "clip_value": {"clip_value": 1e-6},
    "min_delta": {"min_delta": 100.0},  # so that the first epoch stays the best
    "patience": {"patience": 1, "min_delta": 100.0, "max_epochs": 3},
    "fast_dev_run": {"fast_dev_run": True},
    "seed": {"seed": 2},
}
REFUSED = {
    "sampler": ({"sampler": Sequential()}, "`sampler` orders rows of a data set.*'sequential'"),
    "metrics": ({"metrics": ("mse",)}, "`metrics` compare predictions with labels"),
    "mode": ({"mode": "max"}, "`mode` must be min"),
}
# proved below, one by one
ASIDE = {
    "micro_batch_size", "compile", "monitor", "max_seconds", "log_every", "watch", "time_split", "profile", "device",
    "member_block", "checkpoint_seconds", "keep_checkpoints", "deterministic",
}  # fmt: skip


class _Told(Callback):
    def __init__(self):
        self.logged, self.parts, self.bytes, self.checkpoints = [], [], {}, []

    def log(self, member, step, values):
        self.logged.append((step, set(values)))

    def split(self, epoch, seconds, verdict):
        self.parts.append(set(seconds))

    def memory(self, bytes_by_part):
        self.bytes = dict(bytes_by_part)

    def checkpoint(self, folder):
        self.checkpoints.append(folder)


def trained(policy=POLICY, callbacks=(), folder=None, **changes):
    loss = loss_of(*LOSSES["entropic"], paths_of(0))
    settings = {"micro_batch_size": None, "max_epochs": 2} | changes
    options = {"callbacks": callbacks, "checkpoint_dir": folder}
    return train_policies(members(policy, 1), loss, data(), trainer(**settings), **options)[0]


def test_every_setting_is_known_to_act_or_refused():
    fields = {field.name for field in dataclasses.fields(qfml.Trainer)}
    assert fields == {*CHANGES, *REFUSED, *ASIDE}


@pytest.fixture(scope="module")
def usual():
    return trained()


@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_that_acts_changes_what_is_trained(name, usual):
    changes = CHANGES[name]
    without = {key: value for key, value in changes.items() if key != name}
    assert not same(trained(**changes), trained(**without) if without else usual)


@pytest.mark.parametrize("name", REFUSED)
def test_a_setting_that_would_do_nothing_is_refused(name):
    changes, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        trained(**changes)


def test_optimizers_that_cannot_work_are_refused_and_others_act():
    with pytest.raises(ConfigError, match="`optimizer` cannot be lbfgs"):
        trained(optimizer=LBFGS(), batch_size=None)
    with pytest.raises(ConfigError, match="`optimizer` cannot be 'muon' with a policy of kind 'feed_forward'"):
        trained(optimizer=Muon(lr=1e-3))
    recurrent = Recurrent(hidden=4, feature_names=POLICY.feature_names)
    found = [trained(recurrent, optimizer=each) for each in (Muon(lr=1e-3), Adam(lr=1e-3))]
    assert not same(*found)


def test_rows_and_transforms_are_no_settings_of_a_member():
    for name in ("train", "val", "transforms"):
        with pytest.raises(TypeError, match=name):
            PathMember(POLICY, **{name: None})


def test_the_sampler_of_the_default_is_no_choice():
    with pytest.raises(ConfigError, match="`sampler`"):
        trained(sampler=Weighted())


def test_a_micro_batch_limits_memory_and_leaves_the_gradient(usual):
    found = trained(micro_batch_size=16)
    torch.testing.assert_close(found.parameters, usual.parameters, rtol=1e-4, atol=1e-6)


def test_the_monitor_chooses_the_epoch():
    found = trained(monitor="train_loss", max_epochs=5, optimizer=SGD(lr=1e-2))
    losses = [record["train_loss"] for record in found.history]
    assert found.best_epoch == 1 + losses.index(min(losses))
    assert [record["val_loss"] for record in found.history].index(min(r["val_loss"] for r in found.history)) + 1 == (
        trained(max_epochs=5, optimizer=SGD(lr=1e-2)).best_epoch
    )


def test_what_is_watched_is_told_and_changes_nothing(usual, tmp_path):
    told = _Told()
    settings = {
        "log_every": 2,
        "watch": ("layers", "activations", "memory"),
        "time_split": True,
        "profile": Profile(str(tmp_path / "trace.json"), first=2, steps=1),
    }
    assert same(trained(callbacks=[told], **settings), usual)
    assert [step for step, _ in told.logged] == [2, 4, 6, 8]
    names = told.logged[0][1]
    assert {"loss", "gradient_norm/layer0_weight", "activation_mean/output"} <= names
    assert any(name.startswith("dead_units/") for name in names)
    assert told.bytes["batch"] > 0
    assert {"data", "forward", "backward", "validation"} <= told.parts[0]
    assert (tmp_path / "trace.json").stat().st_size > 0


def test_time_and_checkpoints_are_as_set(usual, tmp_path):
    assert trained(max_seconds=1e-9).status == "max_time"
    told = _Told()
    found = trained(callbacks=[told], folder=tmp_path / "kept", checkpoint_seconds=0.0, keep_checkpoints=3)
    assert same(found, usual)
    assert 1 <= len([path for path in (tmp_path / "kept").iterdir() if path.is_dir()]) <= 3
    assert told.checkpoints


def test_blocks_of_one_and_determinism_leave_the_bits():
    loss = loss_of(*LOSSES["entropic"], paths_of(0))
    whole = train_policies(members(), loss, data(), trainer())
    apart = train_policies(members(), loss, data(), trainer(member_block=1, deterministic=True, device="cpu"))
    assert all(same(one, other) for one, other in zip(whole, apart, strict=True))
