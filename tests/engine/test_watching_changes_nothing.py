"""Watching changes no bit; what it finds survives a resume; traces, splits and out-of-memory errors."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import qfml
from qfml.data import TimeDataset
from qfml.engine.callbacks import Callback
from qfml.engine.watching.memory import explained
from qfml.engine.watching.settings import Profile
from qfml.engine.watching.split import PARTS, Stopwatch, verdict
from qfml.errors import UserError


def make_data(n=300, window=None):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, 5)).astype(np.float32)
    time = np.datetime64("2010-01-01") + np.arange(n)
    return TimeDataset(X, X[:, 0] - X[:, 1], time=time, label_end=time + 1, window=window)


def members(network, count=3):
    return [
        qfml.Member(network, np.arange(190 + 10 * i), np.arange(250, 280), seed=i, patience=2 if i == 1 else None)
        for i in range(count)
    ]


class Told(Callback):
    def __init__(self, stop_after=None):
        self.logs, self.failures, self.splits, self.n_logs, self.stop_after = [], [], [], 0, stop_after

    def log(self, member, step, values):
        self.logs.append((member, step, values))
        if self.stop_after is not None and step >= self.stop_after:
            raise KeyboardInterrupt

    def fail(self, member, step, sentence):
        self.failures.append((member, step, sentence))

    def split(self, epoch, seconds, verdict):
        self.splits.append((epoch, dict(seconds), verdict))


EVERYTHING = {"log_every": 3, "watch": ("layers", "activations", "memory"), "time_split": True}


@pytest.mark.parametrize(
    ("network", "window", "settings"),
    [
        (qfml.MLP(hidden=(8, 6)), None, {}),
        (qfml.MLP(hidden=(8, 6), dropout=0.2, layer_norm=True), None, {"micro_batch_size": 16}),
        (qfml.MLP(hidden=(8,)), None, {"averaging": qfml.EMA(decay=0.9), "clip_norm": 0.1}),
        (qfml.networks.GRU(hidden=8), 4, {}),
    ],
    ids=["mlp", "dropout and micro-batches", "clip and averages", "gru"],
)
def test_a_watched_training_has_the_same_bits(network, window, settings, tmp_path):
    ds = make_data(window=window)
    trainer = qfml.Trainer(max_epochs=4, batch_size=50, **settings)
    plain = trainer.fit_many(members(network), qfml.MSE(), ds)
    told = Told()
    profile = Profile(str(tmp_path / "trace.json"), first=2, steps=1)
    watched = replace(trainer, **EVERYTHING, profile=profile)
    for a, b in zip(plain, watched.fit_many(members(network), qfml.MSE(), ds, callbacks=[told]), strict=True):
        assert torch.equal(a.parameters, b.parameters)
        assert (a.history, a.status, a.best_epoch) == (b.history, b.status, b.best_epoch)
    assert {step for _, step, _ in told.logs} == {3, 6, 9, 12, 15, 18}
    assert all(any(name.startswith("dead_units/") for name in values) for _, _, values in told.logs)
    assert (tmp_path / "trace.json").exists()


def test_what_a_member_shows_does_not_depend_on_its_stack():
    ds, told, alone = make_data(), Told(), Told()
    trainer = qfml.Trainer(max_epochs=2, batch_size=50, **EVERYTHING)
    own = members(qfml.MLP(hidden=(8, 6)))
    trainer.fit_many(own, qfml.MSE(), ds, callbacks=[told])
    trainer.fit_many(own[2:], qfml.MSE(), ds, callbacks=[alone])
    in_stack = [(step, values) for member, step, values in told.logs if member == 2]
    for (step, values), (_, again, own_values) in zip(in_stack, alone.logs, strict=True):
        assert step == again
        assert values == pytest.approx(own_values, rel=1e-6)


def test_a_failure_survives_interrupt_and_resume(tmp_path):
    ds = make_data()
    ds.features[5, 2] = torch.nan
    own = members(qfml.MLP(hidden=(8,)))
    own[0] = replace(own[0], train=np.arange(10, 200))
    trainer = qfml.Trainer(max_epochs=3, batch_size=50, log_every=1, checkpoint_seconds=0.0)
    whole = Told()
    expected = trainer.fit_many(own, qfml.MSE(), ds, callbacks=[whole])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit_many(own, qfml.MSE(), ds, callbacks=[Told(stop_after=7)], checkpoint_dir=tmp_path)
    again = Told()
    fits = trainer.fit_many(own, qfml.MSE(), ds, callbacks=[again], checkpoint_dir=tmp_path, resume=True)
    assert [fit.failure for fit in fits] == [fit.failure for fit in expected]
    assert "feature 2 of row 5 is nan" in fits[1].failure
    assert sorted(again.failures) == sorted(whole.failures)
    qfml.engine.save_fits(tmp_path / "saved", fits)
    assert [fit.failure for fit in qfml.engine.load_fits(tmp_path / "saved")[0]] == [fit.failure for fit in fits]


def test_watching_is_no_other_run(tmp_path):
    ds, own = make_data(), members(qfml.MLP(hidden=(8,)))
    trainer = qfml.Trainer(max_epochs=2, batch_size=50)
    trainer.fit_many(own, qfml.MSE(), ds, checkpoint_dir=tmp_path)
    fits = replace(trainer, **EVERYTHING).fit_many(own, qfml.MSE(), ds, checkpoint_dir=tmp_path, resume=True)
    assert [fit.n_epochs for fit in fits] == [2, 2, 2]


def test_every_epoch_is_split_and_its_parts_are_those_that_ran(tmp_path):
    told = Told()
    trainer = qfml.Trainer(max_epochs=3, batch_size=50, time_split=True, checkpoint_seconds=0.0)
    own = members(qfml.MLP(hidden=(8,)))
    trainer.fit_many(own, qfml.MSE(), make_data(), callbacks=[told], checkpoint_dir=tmp_path)
    # the longest member ends its third one later, and after it the last checkpoint is written
    assert [epoch for epoch, _, _ in told.splits] == [1, 2, 3, 3, 3]
    for _, seconds, _ in told.splits:
        assert set(seconds) == set(PARTS)
    assert [line for _, _, line in told.splits[:-1]] == [verdict(seconds) for _, seconds, _ in told.splits[:-1]]
    *epochs, (_, last, line) = told.splits
    assert line == "after the last epoch"
    for _, seconds, _ in epochs:
        ran = ("data", "forward", "backward", "step", "validation", "other")
        assert all(seconds[part] > 0 for part in ran)
        assert seconds["copy"] == 0
    assert last["checkpoint"] > 0
    assert last["forward"] == last["validation"] == 0


@pytest.mark.parametrize("settings", [{}, {"max_steps": 7}, {"member_block": 1}, {"max_seconds": 1e-9}])
def test_the_splits_add_up_to_the_whole_training(monkeypatch, tmp_path, settings):
    looks = [0.0]

    def look():
        looks.append(looks[-1] + 1)  # a second from each look at the clock to the next
        return looks[-1]

    monkeypatch.setattr("qfml.engine.watching.split.time", SimpleNamespace(perf_counter=look))
    told = Told()
    trainer = qfml.Trainer(max_epochs=4, batch_size=50, time_split=True, **settings)
    own = members(qfml.MLP(hidden=(8,)))
    fits = trainer.fit_many(own, qfml.MSE(), make_data(), callbacks=[told], checkpoint_dir=tmp_path)
    assert ("max_seconds" in settings) == (fits[0].status == "max_time")
    assert sum(sum(seconds.values()) for _, seconds, _ in told.splits) == looks[-1] - looks[1]
    assert told.splits[-1][1]["checkpoint"] > 0  # the last one


def test_a_stream_is_split_into_waiting_and_copying():
    ds = make_data()
    told, plain = Told(), []
    data = torch.utils.data.TensorDataset(ds.features, ds.y)
    for settings in ({}, EVERYTHING):
        trainer = qfml.Trainer(max_epochs=2, batch_size=50, **settings)
        loader = torch.utils.data.DataLoader(data, batch_size=50)
        own = [qfml.engine.StreamMember(qfml.MLP(hidden=(8, 6)), seed=seed) for seed in range(2)]
        plain.append(trainer.fit_stream(own, qfml.MSE(), loader, callbacks=[told]))
    for a, b in zip(*plain, strict=True):
        assert torch.equal(a.parameters, b.parameters)
    assert [epoch for epoch, _, _ in told.splits] == [1, 2, 2]
    assert all(seconds["copy"] > 0 < seconds["data"] for _, seconds, _ in told.splits[:2])
    assert {step for _, step, _ in told.logs} == {3, 6, 9, 12}
    assert all("dead_units/weight1" in values for _, _, values in told.logs)


class Odd(torch.nn.Module):
    """A module whose parts have names that a file or a service might stumble on."""

    def __init__(self):
        super().__init__()
        self.add_module('a\nb,"c"', torch.nn.Linear(5, 8))
        self.add_module("/out", torch.nn.Linear(8, 1))

    def forward(self, x):
        first, last = self.children()
        return last(torch.relu(first(x)))


def test_a_module_of_ones_own_is_watched_and_keeps_its_bits():
    ds, told = make_data(), Told()
    trainer = qfml.Trainer(max_epochs=2, batch_size=50)
    plain = trainer.fit_many(members(Odd), qfml.MSE(), ds)
    watched = replace(trainer, **EVERYTHING).fit_many(members(Odd), qfml.MSE(), ds, callbacks=[told])
    assert all(torch.equal(a.parameters, b.parameters) for a, b in zip(plain, watched, strict=True))
    layer = 'a\nb,"c".weight'
    for _, _, values in told.logs:
        assert {f"dead_units/{layer}", f"gradient_norm/{layer}", f"weight_norm/{layer}"} <= values.keys()
        assert 0 < values[f"zeros/{layer}"] < 1  # what relu leaves


@pytest.mark.slow  # compiles
def test_a_compiled_training_is_watched_and_keeps_its_bits():
    here, environment = Path(__file__), os.environ | {"JAXTYPING_DISABLE": "1"}  # the hook and torch.compile clash
    environment |= {"PYTHONPATH": str(here.parents[2]), "OMP_NUM_THREADS": "1"}
    tests = f"import sys; sys.path.append({str(here.parents[1])!r})"  # at the end: tests/pricers is not pricers
    command = [sys.executable, "-c", f"{tests}; import {here.stem} as here; here.compiled_watched_and_the_same()"]
    done = subprocess.run(command, cwd=here.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def compiled_watched_and_the_same():
    ds, told = make_data(), Told()
    trainer = qfml.Trainer(max_epochs=2, batch_size=50, compile="default")
    plain = trainer.fit_many(members(qfml.MLP(hidden=(8, 6))), qfml.MSE(), ds)
    watched = replace(trainer, **EVERYTHING).fit_many(
        members(qfml.MLP(hidden=(8, 6))), qfml.MSE(), ds, callbacks=[told]
    )
    assert all(torch.equal(a.parameters, b.parameters) for a, b in zip(plain, watched, strict=True))
    assert all("dead_units/weight1" in values for _, _, values in told.logs)
    assert all(seconds["forward"] > 0 for _, seconds, _ in told.splits[:-1])


def test_nested_parts_share_the_time_and_nothing_is_lost(monkeypatch):
    now = iter([0.0, 1.0, 2.0, 4.0, 7.0, 11.0, 16.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    watch = Stopwatch(torch.device("cpu"))
    inner = watch.timed("forward", lambda: None)
    watch.timed("backward", inner)()
    seconds = watch.take()
    assert (seconds["other"], seconds["backward"], seconds["forward"]) == (2 + 5, 2 + 4, 3)


def test_on_a_gpu_the_times_are_those_of_its_events(monkeypatch):
    class Event:  # of a GPU that takes a second from each event to the next
        n = 0

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            Event.n += 1
            self.at = Event.n

        def synchronize(self):
            pass

        def elapsed_time(self, following):
            return 1000.0 * (following.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr("qfml.engine.watching.split.MOST_EVENTS", 3)  # added up in pieces
    watch = Stopwatch(torch.device("cuda"))
    watch.timed("backward", watch.timed("forward", lambda: None))()
    watch.timed("data", lambda: None)()
    seconds = watch.take()
    assert {part: spent for part, spent in seconds.items() if spent} == {
        "other": 3.0,
        "backward": 2.0,
        "forward": 1.0,
        "data": 1.0,
    }
    assert sum(watch.take().values()) == 1.0


def test_members_that_join_a_stack_are_watched_too():
    ds, own, told = make_data(), members(qfml.MLP(hidden=(8,)), 4), Told()
    trainer = qfml.Trainer(max_epochs=2, batch_size=50)
    waiting, again = [own[3]], [own[3]]

    def take(pool):
        return lambda n_free: [pool.pop()] if pool else []

    plain = trainer.fit_many(own[:3], qfml.MSE(), ds, refill=take(waiting))
    watched = replace(trainer, **EVERYTHING | {"log_every": 1})
    fits = watched.fit_many(own[:3], qfml.MSE(), ds, refill=take(again), callbacks=[told])
    assert len(fits) == len(plain) == 4
    assert all(torch.equal(a.parameters, b.parameters) for a, b in zip(plain, fits, strict=True))
    assert "dead_units/weight0" in next(values for member, _, values in told.logs if member == 3)


@pytest.mark.parametrize(
    ("seconds", "says"),
    [
        ({"data": 62.0, "forward": 38.0}, "62 % of the time is spent waiting for data: "),
        ({"data": 40.0, "forward": 25.0, "backward": 35.0}, "60 % of the time is spent on computing outputs and grad"),
        ({"checkpoint": 9.0, "step": 1.0}, "90 % of the time is spent on writing checkpoints: raise `checkpoint_sec"),
        ({}, "no time was spent"),
    ],
)
def test_verdict_names_the_largest_part(seconds, says):
    assert verdict(seconds).startswith(says)


def test_trace_holds_the_chosen_steps_and_no_others(tmp_path):
    path = tmp_path / "new" / "trace.json"
    trainer = qfml.Trainer(max_epochs=2, batch_size=50, profile=Profile(str(path), first=3, steps=2))
    trainer.fit_many(members(qfml.MLP(hidden=(8,))), qfml.MSE(), make_data())
    names = [event["name"] for event in json.loads(path.read_text())["traceEvents"]]
    assert names.count("aten::linalg_vector_norm") == 2  # one a step


def test_a_training_that_fails_within_a_trace_leaves_the_profiler_to_the_next(tmp_path):
    class Fails(Callback):
        def epoch(self, member, record, stopped):
            raise RuntimeError("of one's own")

    first, second = (Profile(str(tmp_path / name), first=2, steps=steps) for name, steps in (("a", 99), ("b", 1)))
    own = members(qfml.MLP(hidden=(8,)), 1)
    with pytest.raises(RuntimeError, match="of one's own"):
        qfml.Trainer(max_epochs=1, batch_size=50, profile=first).fit_many(
            own, qfml.MSE(), make_data(), callbacks=[Fails()]
        )
    qfml.Trainer(max_epochs=1, batch_size=50, profile=second).fit_many(own, qfml.MSE(), make_data())
    names = [event["name"] for event in json.loads((tmp_path / "b").read_text())["traceEvents"]]
    assert names.count("aten::linalg_vector_norm") == 1
    assert (tmp_path / "a").exists()


def test_a_folder_in_place_of_a_trace_is_refused_at_once(tmp_path):
    trainer = qfml.Trainer(max_epochs=10**9, batch_size=50, profile=Profile(str(tmp_path)))
    with pytest.raises(UserError, match=r"must name a file such as trace\.json, and .* is a folder"):
        trainer.fit_many(members(qfml.MLP(hidden=(8,))), qfml.MSE(), make_data())


def test_a_trace_that_was_never_begun_is_told(tmp_path):
    trainer = qfml.Trainer(max_epochs=1, batch_size=50, profile=Profile(str(tmp_path / "t.json"), first=99))
    with pytest.warns(UserWarning, match="the training had 4 steps, and the first to be traced is step 99"):
        trainer.fit_many(members(qfml.MLP(hidden=(8,)), 2), qfml.MSE(), make_data())


def test_out_of_memory_says_what_to_lower_and_other_errors_pass():
    class Greedy(Callback):
        def epoch(self, member, record, stopped):
            torch.empty(2**62, dtype=torch.uint8)

    trainer = qfml.Trainer(max_epochs=1, batch_size=50, member_block=2)
    with pytest.raises(
        UserError, match=r"lower one of .*`member_block` \(now 2\), `batch_size` \(now 50\).*`window`"
    ) as e:
        trainer.fit_many(members(qfml.MLP(hidden=(8,))), qfml.MSE(), make_data(), callbacks=[Greedy()])
    assert isinstance(e.value.__cause__, RuntimeError)
    with pytest.raises(UserError, match=r"`batch_size` \(now 7\)"), explained({"batch_size": 7}):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    with pytest.raises(RuntimeError, match="shapes differ"), explained({"batch_size": 7}):
        raise RuntimeError("shapes differ")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"watch": ("layer",), "log_every": 1}, "`watch` must be a tuple of layers, activations, memory, got"),
        ({"watch": ("layers",)}, "`watch` layers is told on log steps: set `log_every`, got None"),
    ],
)
def test_settings_that_would_tell_nothing_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        qfml.Trainer(max_epochs=1, batch_size=8, **settings)


@pytest.mark.parametrize("settings", [{"first": 0}, {"steps": 0}, {"path": ""}])
def test_profiles_that_cannot_be_are_refused(settings):
    with pytest.raises(UserError):
        Profile(**{"path": "trace.json"} | settings)
