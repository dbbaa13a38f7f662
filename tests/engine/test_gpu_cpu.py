"""Training on a GPU against training on a CPU: `pytest --device cuda -m gpu tests/engine`."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

import qfml
from qfml.data import StreamingTimeDataset, TimeDataset, write_shards
from qfml.engine import StreamMember

pytestmark = pytest.mark.gpu

TRAIN, VAL = np.arange(320), np.arange(320, 400)
TRAINER = qfml.Trainer(optimizer=qfml.AdamW(lr=1e-3), max_epochs=2, batch_size=64, clip_norm=1.0)  # ten steps
NETWORK = qfml.MLP(hidden=(32, 32), activation="tanh")


def make_data():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((400, 6))
    days = np.datetime64("2020-01-01") + np.arange(400)
    return TimeDataset(X, X[:, 0] * X[:, 1], time=days, label_end=days + 1)


def members(n=3, network=NETWORK):
    return [qfml.Member(network, TRAIN, VAL, seed=seed, lr=1e-3 * (seed + 1)) for seed in range(n)]


def furthest(ours, theirs):
    return max(float((a.parameters.cpu() - b.parameters.cpu()).abs().max()) for a, b in zip(ours, theirs, strict=True))


def fits(device, network=NETWORK, **settings):
    own = replace(TRAINER, device=str(device), **settings)
    return own.fit_many(members(network=network), qfml.MSE(), make_data())


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_ten_steps_agree_with_the_cpu(device, dropout):
    network = replace(NETWORK, dropout=dropout)
    assert furthest(fits(device, network), fits("cpu", network)) <= 1e-5


def test_a_member_of_a_stack_agrees_with_itself_alone(device):
    own = replace(TRAINER, device=str(device))
    alone = [own.fit_many([member], qfml.MSE(), make_data())[0] for member in members()]
    assert furthest(own.fit_many(members(), qfml.MSE(), make_data()), alone) <= 1e-5


@pytest.mark.parametrize(("precision", "bound"), [("tf32", 1e-3), ("bf16", 1e-2), ("fp16", 1e-2)])
def test_other_precisions_stay_near(device, precision, bound):
    distance = furthest(fits(device, precision=precision), fits("cpu"))
    assert 0 < distance <= bound


@pytest.mark.parametrize("mode", ["default", "cuda_graphs"])
def test_compiled_steps_agree_with_eager_ones(device, mode):
    if os.environ.get("JAXTYPING_DISABLE") != "1":
        pytest.skip("the checks of annotations and torch.compile clash: set JAXTYPING_DISABLE=1")
    assert furthest(fits(device, compile=mode), fits(device)) <= 1e-5


def test_a_deterministic_training_repeats_its_bits(device):
    if os.environ.get("CUBLAS_WORKSPACE_CONFIG") is None:
        pytest.skip("set CUBLAS_WORKSPACE_CONFIG=:4096:8 before the tests start")
    pair = [fits(device, deterministic=True) for _ in range(2)]
    assert furthest(*pair) == 0


def test_streams_are_copied_from_pinned_memory_and_agree_with_the_cpu(device, tmp_path):
    write_shards(make_data(), tmp_path / "shards", rows_per_shard=100)
    found, told = [], []

    class Told(qfml.Callback):
        def split(self, epoch, seconds, verdict):
            told.append(seconds)

    for where in (str(device), "cpu"):
        stream = StreamingTimeDataset(tmp_path / "shards", features=make_data().feature_names, batch_size=64, seed=1)
        own = replace(TRAINER, device=where, time_split=True)
        found.append(own.fit_stream([StreamMember(NETWORK)], qfml.MSE(), stream, callbacks=[Told()]))
    assert furthest(*found) <= 1e-5
    assert told[0]["copy"] > 0


def test_a_run_resumes_on_the_gpu_from_a_checkpoint_of_the_cpu(device, tmp_path):
    class Stop(qfml.Callback):
        def epoch(self, member, record, stopped):
            if record["epoch"] == 1 and member == 2:
                os.kill(os.getpid(), 15)

    with pytest.raises(qfml.errors.Interrupted):
        TRAINER.fit_many(members(), qfml.MSE(), make_data(), checkpoint_dir=tmp_path / "run", callbacks=[Stop()])
    own = replace(TRAINER, device=str(device))
    resumed = own.fit_many(members(), qfml.MSE(), make_data(), checkpoint_dir=tmp_path / "run", resume=True)
    assert furthest(resumed, fits("cpu")) <= 1e-5


def test_memory_is_reported_with_its_peak(device):
    told = []

    class Told(qfml.Callback):
        def memory(self, bytes_by_part):
            told.append(dict(bytes_by_part))

    own = replace(TRAINER, device=str(device), watch=("memory",))
    own.fit_many(members(), qfml.MSE(), make_data(), callbacks=[Told()])
    parts = {name: size for name, size in told[0].items() if name != "peak"}
    assert told[0]["peak"] >= parts["parameters"] + parts["gradient"] + parts["optimizer"]
    assert told[0]["peak"] <= torch.cuda.max_memory_allocated()
