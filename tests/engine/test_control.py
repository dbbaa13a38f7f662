"""What decides the best epoch and what ends a training: monitored metrics, patience, steps, time, callbacks."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
import sklearn.metrics
import torch

import qfml
from qfml.data import TimeDataset

ROWS, TRAIN, VAL = 300, np.arange(200), np.arange(200, 300)


def make_data(classes=False):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((ROWS, 5)).astype(np.float32)
    y = X[:, 0] - 0.5 * X[:, 1] ** 2 + 0.3 * rng.standard_normal(ROWS)
    time = np.datetime64("2010-01-01") + np.arange(ROWS)
    return TimeDataset(X, (y > 0).astype(float) if classes else y, time=time, label_end=time + 1)


def fit(ds, loss=None, callbacks=(), val=VAL, **settings):
    options = {"optimizer": qfml.AdamW(lr=1e-2), "max_epochs": 8, "batch_size": 32} | settings
    loss = qfml.MSE() if loss is None else loss
    return qfml.Trainer(**options).fit(qfml.MLP(hidden=(16,)), loss, ds, train=TRAIN, val=val, callbacks=callbacks)


def test_metrics_of_the_best_epoch_are_those_of_its_predictions():
    ds = make_data(classes=True)
    metrics = ("accuracy", "roc_auc", "brier")
    found = fit(ds, qfml.BCE(), metrics=metrics, monitor="val_roc_auc", mode="max")
    scores = [record["val_roc_auc"] for record in found.history]
    assert len(set(scores)) > 3
    assert found.best_epoch == 1 + int(np.argmax(scores))
    probability, y = found.predict(ds, VAL), ds.y[VAL].numpy()
    best = found.history[found.best_epoch - 1]
    # the network's float32 forward pass in chunks of another row order
    assert best["val_roc_auc"] == pytest.approx(sklearn.metrics.roc_auc_score(y, probability), abs=1e-6)
    assert best["val_brier"] == pytest.approx(np.mean((probability - y) ** 2), rel=1e-5)
    assert best["val_accuracy"] == pytest.approx(np.mean((probability > 0.5) == y), abs=1e-9)


def test_patience_counts_from_the_best_of_the_monitored_metric_by_more_than_min_delta():
    found = fit(make_data(), metrics=("rank_ic",), monitor="val_rank_ic", mode="max", patience=2, max_epochs=60)
    scores = [record["val_rank_ic"] for record in found.history]
    assert found.status == "early_stopped"
    assert found.n_epochs == found.best_epoch + 2
    assert scores[found.best_epoch - 1] == max(scores)
    lazy = fit(make_data(), min_delta=10.0, patience=3, max_epochs=60)  # nothing gets better by that much
    assert (lazy.best_epoch, lazy.n_epochs, lazy.status) == (1, 4, "early_stopped")


def test_without_validation_rows_the_training_loss_can_be_monitored():
    found = fit(make_data(), val=None, monitor="train_loss", metrics=("mae",))
    losses = [record["train_loss"] for record in found.history]
    assert found.best_epoch == 1 + int(np.argmin(losses))
    assert {record["val_mae"] for record in found.history} == {None}


def test_max_steps_ends_within_an_epoch_as_a_loop_of_as_many_steps_would():
    ds = make_data()
    whole = fit(ds, max_epochs=2)  # 7 steps an epoch
    cut = fit(ds, max_epochs=50, max_steps=14)
    assert np.array_equal(whole.parameters.numpy(), cut.parameters.numpy())
    within = fit(ds, max_epochs=50, max_steps=10)
    assert (within.n_epochs, within.status) == (2, "finished")
    assert not np.array_equal(within.parameters.numpy(), cut.parameters.numpy())


def test_a_callback_stops_its_member_and_no_other():
    class Second(qfml.engine.Callback):
        def epoch(self, member, record, stopped):
            return member == 1 and record["epoch"] == 3

    ds = make_data()
    trainer = qfml.Trainer(max_epochs=6, batch_size=32)
    members = [qfml.Member(qfml.MLP(hidden=(16,)), TRAIN, VAL, seed=seed) for seed in range(3)]
    alone = trainer.fit_many(members, qfml.MSE(), ds)
    found = trainer.fit_many(members, qfml.MSE(), ds, callbacks=[Second()])
    assert [(one.status, one.n_epochs) for one in found] == [("finished", 6), ("stopped", 3), ("finished", 6)]
    for one, other in zip(found[::2], alone[::2], strict=True):
        assert np.array_equal(one.parameters.numpy(), other.parameters.numpy())


def test_time_that_is_over_ends_all_members_and_blocks_with_what_they_have():
    ds = make_data()
    members = [qfml.Member(qfml.MLP(hidden=(16,)), TRAIN, VAL, seed=seed) for seed in range(3)]
    trainer = qfml.Trainer(max_epochs=10**6, batch_size=32, member_block=2, max_seconds=0.2)
    found = trainer.fit_many(members, qfml.MSE(), ds)
    assert {one.status for one in found} == {"max_time"}
    assert found[2].n_epochs == 0  # its block was not reached
    assert all(np.isfinite(one.predict(ds)).all() for one in found)


def test_a_fast_dev_run_takes_two_steps_and_leaves_nothing_behind(tmp_path):
    ds = make_data()
    trainer = qfml.Trainer(max_epochs=100, batch_size=32, fast_dev_run=True)
    member = qfml.Member(qfml.MLP(hidden=(16,)), TRAIN, VAL)
    (found,) = trainer.fit_many([member], qfml.MSE(), ds, checkpoint_dir=tmp_path / "checkpoints")
    two = fit(ds, max_steps=2, optimizer=qfml.AdamW())
    assert np.array_equal(found.parameters.numpy(), two.parameters.numpy())
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"monitor": "val_r2"},
            "`monitor` must be one of train_loss, val_loss, got 'val_r2'; name",
        ),
        ({"metrics": ("sharpe",)}, "`metrics` must be of mse, mae, r2, .*got 'sharpe'"),
        ({"mode": "up"}, "`mode` must be min or max, got 'up'"),
        ({"min_delta": -1.0}, "`min_delta` must be >= 0"),
        ({"max_seconds": 0.0}, "`max_seconds` must be positive, got 0.0"),
        ({"max_steps": 0}, "`max_steps` must be a whole number, at least 1, got 0"),
    ],
)
def test_settings_of_control_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        qfml.Trainer(max_epochs=1, batch_size=8, **settings)


def test_a_plateau_needs_the_value_that_it_waits_for():
    plateau = qfml.engine.schedules.Plateau(gamma=0.5, patience=1)
    with pytest.raises(ValueError, match="the schedule 'plateau' waits for `val_loss`, which member 0 has not"):
        fit(make_data(), val=None, schedule=plateau)
    assert fit(make_data(), val=None, schedule=plateau, monitor="train_loss").n_epochs == 8


def test_patience_and_a_monitored_metric_need_the_value_that_they_wait_for():
    ds = make_data()
    with pytest.raises(ValueError, match="`patience` waits for `val_loss`, which member 0 has not: give it `val` rows"):
        fit(ds, val=None, patience=3)
    with pytest.raises(ValueError, match="the choice of the best epoch waits for `val_r2`, which member 0 has not"):
        fit(ds, val=None, metrics=("r2",), monitor="val_r2", mode="max")
    trainer = qfml.Trainer(max_epochs=1, batch_size=32)
    members = [qfml.Member(qfml.MLP(), TRAIN, VAL), qfml.Member(qfml.MLP(), TRAIN, patience=2)]
    with pytest.raises(ValueError, match="which member 1 has not"):
        trainer.fit_many(members, qfml.MSE(), ds)
    warm = qfml.engine.Warmup(2, then=qfml.engine.schedules.Plateau(gamma=0.5, patience=1))
    with pytest.raises(ValueError, match="waits for `val_loss`"):
        fit(ds, val=None, schedule=warm)
    assert fit(ds, val=None, schedule=Counting()).n_epochs == 8, "what remembers something need not wait for anything"


@dataclass(frozen=True)
class Counting(qfml.engine.schedules.Schedule):
    """A user's schedule with a memory that observes nothing."""

    kind: ClassVar[str] = "counting"

    def start(self, n_members):
        return {"n": np.zeros(n_members)}

    def factor(self, moment, state):
        state["n"] += 1
        return 1 / state["n"]


def test_a_metric_that_is_never_defined_is_said():
    ds = make_data()
    y = ds.y.numpy().copy()
    y[VAL] = 1.0  # without ranks
    constant = TimeDataset(ds.features.numpy(), y, time=ds.time, label_end=ds.label_end)
    with pytest.warns(UserWarning, match="`val_rank_ic` was not finite in any epoch"):
        trained = fit(constant, metrics=("rank_ic",), monitor="val_rank_ic", mode="max", patience=2)
    assert (trained.best_epoch, trained.n_epochs) == (0, 2)
    with pytest.warns(UserWarning, match="a member of seed 0"):
        average = fit(constant, metrics=("rank_ic",), monitor="val_rank_ic", patience=2, averaging=qfml.EMA(0.5))
    assert not torch.equal(average.parameters, trained.parameters), "kept is the average, as it is validated"


def test_other_features_than_those_trained_on_are_refused():
    ds = make_data()
    trained = fit(ds)
    narrow = TimeDataset(ds.features[:, :3].numpy(), ds.y.numpy(), time=ds.time, label_end=ds.label_end)
    with pytest.raises(ValueError, match="trained on features of another shape than these, 3 features"):
        trained.predict(narrow)
    one = TimeDataset(ds.features[:, :1].numpy(), ds.y.numpy(), time=ds.time, label_end=ds.label_end)
    for network in (qfml.MLP(hidden=(4,)), qfml.TabM(hidden=(4,)), qfml.ResidualMLP(width=4)):
        by_one = qfml.Trainer(max_epochs=1, batch_size=32).fit(network, qfml.MSE(), one, train=TRAIN)
        with pytest.raises(ValueError, match="trained on features of another shape than these, 5 features"):
            by_one.predict(ds)
    with pytest.raises(ValueError, match="`rows` must be row ids from 0 to 299, got -1 to 5"):
        trained.predict(ds, np.array([5, -1]))


def test_a_cosine_over_the_whole_run_ends_where_max_steps_ends_it():
    rates = []

    class Watched(qfml.SGD):
        def update(self, parameters, gradient, state, step):
            rates.append(float(step.lr[0]))

    cosine = qfml.engine.schedules.Cosine()
    fit(make_data(), schedule=cosine, optimizer=Watched(lr=1.0), max_epochs=50, max_steps=10)
    expected = [0.5 * (1 + np.cos(np.pi * step / 10)) for step in range(10)]
    np.testing.assert_allclose(rates, expected, rtol=1e-12, atol=1e-12)


def test_drawing_by_weight_replaces_weighing_by_it():
    rng = np.random.default_rng(1)
    X, weight = rng.standard_normal((ROWS, 5)).astype(np.float32), rng.integers(0, 3, ROWS).astype(float)
    y = np.where(weight == 0, 1e6, weight)  # what has no weight is never seen
    time = np.datetime64("2010-01-01") + np.arange(ROWS)
    ds = TimeDataset(X, y, time=time, label_end=time + 1, weight=weight)
    # a network that cannot move: its loss is the mean of the labels' squared distances from 0 or so
    still = {"optimizer": qfml.SGD(lr=1e-12), "max_epochs": 40, "batch_size": 50, "val": None}
    drawn = fit(ds, sampler=qfml.engine.sampling.Weighted(), **still)
    weighed = fit(ds, **still)
    seen = weight[TRAIN]
    residual = (weighed.predict(ds, TRAIN) - y[TRAIN]) ** 2
    expected = np.sum(residual * seen) / seen.sum()
    assert weighed.history[0]["train_loss"] == pytest.approx(expected, rel=1e-5)
    losses = [record["train_loss"] for record in drawn.history]
    deviation = np.sqrt(np.sum(seen * (residual - expected) ** 2) / seen.sum() / (200 * 40))
    assert abs(np.mean(losses) - expected) < 4 * deviation
    twice = np.sum(residual * seen**2) / np.sum(seen**2)
    assert abs(twice - expected) > 10 * deviation  # weights that count twice would be noticed
    with pytest.raises(ValueError, match="`sampler` weighted needs a `batch_size`"):
        fit(ds, sampler=qfml.engine.sampling.Weighted(), batch_size=None)


def test_a_sampler_that_takes_fewer_rows_is_refused():
    class Half(qfml.engine.sampling.Sampler):
        kind = "half"

        def order(self, rows, ds, generator):
            return rows[::2]

    with pytest.raises(ValueError, match="the sampler `half` must take as many rows as a member has, 200, got 100"):
        fit(make_data(), sampler=Half())


def test_line_searches_train_through_the_engine_and_refuse_what_changes_their_loss():
    ds = make_data()
    lbfgs = {"optimizer": qfml.engine.optimizers.LBFGS(), "batch_size": None, "max_epochs": 40}
    found = fit(ds, **lbfgs)
    adam = fit(ds, batch_size=None, max_epochs=40)
    losses = [record["train_loss"] for record in found.history]
    assert all(later <= earlier for earlier, later in pairwise(losses))
    assert losses[-1] < adam.history[-1]["train_loss"]
    with pytest.raises(ValueError, match="`batch_size` must be None with the optimizer lbfgs, got 32"):
        fit(ds, **lbfgs | {"batch_size": 32})
    with pytest.raises(ValueError, match="`clip_norm` must be None with the optimizer lbfgs, got 1"):
        fit(ds, **lbfgs, clip_norm=1.0)
    with pytest.raises(ValueError, match="member 0 has dropout, with which the optimizer lbfgs cannot train"):
        qfml.Trainer(**lbfgs).fit(qfml.MLP(hidden=(8,), dropout=0.5), qfml.MSE(), ds, train=TRAIN)


def test_logged_steps_are_those_of_a_loop_by_hand():
    logged = []

    class Told(qfml.engine.Callback):
        def log(self, member, step, values):
            logged.append((member, step, values))

    ds = make_data()
    cosine = qfml.engine.Cosine()
    network, seeds = qfml.MLP(hidden=(16,)), (3, 4)
    members = [qfml.Member(network, TRAIN, VAL, seed=seed, lr=0.01 * seed) for seed in seeds]
    settings = {"optimizer": qfml.SGD(), "schedule": cosine, "max_epochs": 9, "batch_size": None, "clip_norm": 1e-3}
    trainer = qfml.Trainer(**settings, log_every=3, member_block=1)
    trainer.fit_many(members, qfml.MSE(), ds, callbacks=[Told()])
    assert [(member, step) for member, step, _ in logged] == [(m, s) for m in (0, 1) for s in (3, 6, 9)]
    for member, step, values in logged:
        assert values["lr"] == pytest.approx(0.01 * seeds[member] * 0.5 * (1 + np.cos(np.pi * (step - 1) / 9)))
        # the loss and the gradient of the step before it was taken
        judged_on_training = qfml.Trainer(**settings, monitor="train_loss")
        (before,) = judged_on_training.fit_many([members[member]], qfml.MSE(), ds, callbacks=[StopAfter(step - 1)])
        parameters = {name: one[None].requires_grad_() for name, one in before.named_parameters().items()}
        output = network.forward(parameters, ds.features[TRAIN][None])[0]
        loss = (output - ds.y[TRAIN]).square().mean()
        loss.backward()
        norm = sum(float(one.grad.square().sum()) for one in parameters.values()) ** 0.5
        assert values["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert values["gradient_norm"] == pytest.approx(norm, rel=1e-4)


class StopAfter(qfml.engine.Callback):
    """Stops all members after so many epochs; the schedule goes on as if there were more."""

    def __init__(self, epochs):
        self.epochs = epochs

    def epoch(self, member, record, stopped):
        return record["epoch"] == self.epochs


@pytest.mark.parametrize("kind", ["class_balanced", "sequential", "sequential_bootstrap", "weighted"])
def test_a_member_under_any_sampler_equals_its_solo_result(kind):
    rng = np.random.default_rng(2)
    data = make_data(classes=True)
    ds = TimeDataset(
        data.features.numpy(),
        data.y.numpy(),
        time=data.time,
        label_end=data.label_end,
        weight=rng.uniform(0.1, 2.0, ROWS),
    )
    sampler = qfml.engine.SAMPLERS[kind]()
    trainer = qfml.Trainer(max_epochs=3, batch_size=32, sampler=sampler)
    members = [qfml.Member(qfml.MLP(hidden=(16,)), TRAIN[seed:], VAL, seed=seed) for seed in range(3)]
    stacked = trainer.fit_many(members, qfml.BCE(), ds)
    for member, fit_in_stack in zip(members, stacked, strict=True):
        (alone,) = trainer.fit_many([member], qfml.BCE(), ds)
        assert np.array_equal(alone.parameters.numpy(), fit_in_stack.parameters.numpy())
        assert alone.history == fit_in_stack.history


def test_members_that_take_a_place_left_by_another_equal_their_solo_results():
    ds = make_data()
    trainer = qfml.Trainer(max_epochs=4, batch_size=32, averaging=qfml.engine.EMA(0.9), schedule=qfml.engine.Cosine())
    networks = [qfml.MLP(hidden=(16,), dropout=0.25), qfml.MLP(hidden=(24,))]
    waiting = [
        qfml.Member(networks[0], TRAIN[40:], VAL, seed=7),
        qfml.Member(networks[1], TRAIN, VAL, seed=8),  # another architecture: a stack of its own
        qfml.Member(networks[0], TRAIN, VAL, seed=9, lr=0.01),
    ]
    members = [qfml.Member(networks[0], TRAIN[: 64 + 50 * i], VAL, seed=i) for i in range(3)]
    asked = []

    def refill(places):
        asked.append(places)
        return [waiting.pop(0) for _ in range(min(places, len(waiting)))]

    everyone = [*members, *waiting]
    epochs, logged = [], []

    class Told(qfml.engine.Callback):
        def epoch(self, member, record, stopped):
            epochs.append((member, record["epoch"]))
            return member == 1 and record["epoch"] == 2

        def log(self, member, step, values):
            logged.append((member, step))

    fits = replace(trainer, log_every=5, watch=("layers",)).fit_many(
        members, qfml.MSE(), ds, callbacks=[Told()], refill=refill
    )
    assert sum(asked) == len(fits) == len(everyone) == 6
    assert [fit.status for fit in fits] == ["finished", "stopped", *["finished"] * 4]
    assert sorted(epochs) == [(m, e) for m in range(6) for e in range(1, 3 if m == 1 else 5)]
    n_steps = [-(-len(member.train) // 32) * fit.n_epochs for member, fit in zip(everyone, fits)]
    assert sorted(logged) == [(m, step) for m in range(6) for step in range(5, n_steps[m] + 1, 5)]
    for place, (member, fit) in enumerate(zip(everyone, fits, strict=True)):
        (alone,) = trainer.fit_many([member], qfml.MSE(), ds, callbacks=[StopAfter(2)] if place == 1 else [])
        assert np.array_equal(alone.parameters.numpy(), fit.parameters.numpy())
        assert alone.history == fit.history
    with pytest.raises(ValueError, match="`refill` and `checkpoint_dir` exclude each other"):
        trainer.fit_many(members, qfml.MSE(), ds, refill=refill, checkpoint_dir="never_made")
