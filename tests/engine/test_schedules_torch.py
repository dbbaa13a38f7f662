"""Schedules against torch.optim.lr_scheduler, for members at different clocks in one stack."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

import qfml
from qfml import config
from qfml.data import TimeDataset
from qfml.engine.schedules import (
    SCHEDULES,
    Constant,
    Cosine,
    Exponential,
    Moment,
    OneCycle,
    Plateau,
    StepDecay,
    Warmup,
)
from qfml.engine.streams import stream
from qfml.errors import ConfigError

STEPS_PER_EPOCH = np.array([7, 3, 1, 11, 7])
MAX_EPOCHS = 12


def sgd(lr=1.0):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)


def rates(make, n):
    """The learning rates of n steps under torch's scheduler `make(optimizer)`, stepped after each."""
    optimizer = sgd()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of SequentialLR itself
        scheduler = make(optimizer)
        seen = []
        for _ in range(n):
            seen.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            scheduler.step()
    return np.array(seen)


def ours(schedule, steps, max_steps=None):
    """Factors (n, M) of members that stand at the rows of `steps` (n, M)."""
    state = schedule.start(steps.shape[1])
    return np.stack(
        [
            schedule.factor(Moment(step, step // STEPS_PER_EPOCH, STEPS_PER_EPOCH, MAX_EPOCHS, max_steps), state)
            for step in steps
        ]
    )


def staggered():
    """Every member goes through its whole run, each from another place on: no two clocks agree for long."""
    total = MAX_EPOCHS * STEPS_PER_EPOCH
    return (np.arange(total.max())[:, None] + np.array([0, 5, 2, 40, 61])) % total


# schedule, and torch's scheduler for a member of s steps an epoch; the unit in which torch is stepped
CASES = {
    "step, epochs": (StepDecay(every=3, gamma=0.3), lambda s: lambda o: lr_scheduler.StepLR(o, 3, 0.3), "epoch"),
    "step, steps": (StepDecay(5, 0.9, "step"), lambda s: lambda o: lr_scheduler.StepLR(o, 5, 0.9), "step"),
    "exponential, epochs": (Exponential(0.8), lambda s: lambda o: lr_scheduler.ExponentialLR(o, 0.8), "epoch"),
    "exponential, steps": (Exponential(0.97, "step"), lambda s: lambda o: lr_scheduler.ExponentialLR(o, 0.97), "step"),
    "cosine, steps": (
        Cosine(),
        lambda s: lambda o: lr_scheduler.CosineAnnealingLR(o, MAX_EPOCHS * s),
        "step",
    ),
    "cosine, epochs": (
        Cosine(minimum=0.05, unit="epoch"),
        lambda s: lambda o: lr_scheduler.CosineAnnealingLR(o, MAX_EPOCHS, 0.05),
        "epoch",
    ),
    "equal restarts, steps": (
        Cosine(epochs=3, minimum=0.1, restart_multiplier=1),
        lambda s: lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3 * s, 1, 0.1),
        "step",
    ),
    "longer restarts, steps": (
        Cosine(epochs=1, minimum=0.1, restart_multiplier=2),
        lambda s: lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, s, 2, 0.1),
        "step",
    ),
    "longer restarts, epochs": (
        Cosine(epochs=1, restart_multiplier=3, unit="epoch"),
        lambda s: lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 1, 3),
        "epoch",
    ),
    "one cycle": (
        OneCycle(),
        lambda s: lambda o: lr_scheduler.OneCycleLR(o, 1.0, total_steps=MAX_EPOCHS * s),
        "step",
    ),
    "one cycle, linear, epochs": (
        OneCycle(peak=0.45, div_factor=7.0, final_div_factor=50.0, anneal="linear", unit="epoch"),
        lambda s: (
            lambda o: lr_scheduler.OneCycleLR(
                o, 1.0, MAX_EPOCHS, pct_start=0.45, anneal_strategy="linear", div_factor=7.0, final_div_factor=50.0
            )
        ),
        "epoch",
    ),
    "one cycle that begins on the way down": (
        OneCycle(peak=0.07, unit="epoch"),
        lambda s: lambda o: lr_scheduler.OneCycleLR(o, 1.0, MAX_EPOCHS, pct_start=0.07),
        "epoch",
    ),
    "warm-up": (
        Warmup(length=9, begin=0.2),
        lambda s: lambda o: lr_scheduler.LinearLR(o, 0.2, 1.0, 9),
        "step",
    ),
    "warm-up of steps, cosine over the rest": (
        Warmup(length=6, begin=0.25, then=Cosine(minimum=0.1)),
        lambda s: (
            lambda o: lr_scheduler.SequentialLR(
                o,
                [lr_scheduler.LinearLR(o, 0.25, 1.0, 6), lr_scheduler.CosineAnnealingLR(o, MAX_EPOCHS * s - 6, 0.1)],
                [6],
            )
        ),
        "step",
    ),
    "warm-up of epochs, exponential": (
        Warmup(length=4, begin=0.1, then=Exponential(0.7), unit="epoch"),
        lambda s: (
            lambda o: lr_scheduler.SequentialLR(
                o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 4), lr_scheduler.ExponentialLR(o, 0.7)], [4]
            )
        ),
        "epoch",
    ),
    "warm-up of epochs, stairs of steps": (
        Warmup(length=2, begin=0.1, then=StepDecay(4, 0.5, "step"), unit="epoch"),
        None,  # a rise by epochs and stairs by steps: written out below
        "step",
    ),
}


def expected(case, steps_per_epoch):
    """The rates of a member's whole run, one a step."""
    _, make, unit = CASES[case]
    n_steps = MAX_EPOCHS * steps_per_epoch
    if make is None:
        rise = np.repeat(rates(lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 2), 2), steps_per_epoch)
        return np.r_[rise, rates(lambda o: lr_scheduler.StepLR(o, 4, 0.5), n_steps - len(rise))]
    if unit == "epoch":
        return np.repeat(rates(make(steps_per_epoch), MAX_EPOCHS), steps_per_epoch)
    return rates(make(steps_per_epoch), n_steps)


@pytest.mark.parametrize("case", CASES)
def test_factors_equal_torch(case):
    steps = staggered()
    found = ours(CASES[case][0], steps)
    for member, s in enumerate(STEPS_PER_EPOCH.tolist()):
        np.testing.assert_allclose(found[:, member], expected(case, s)[steps[:, member]], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("case", CASES)
def test_a_member_in_a_stack_has_its_solo_bits(case):
    schedule, steps = CASES[case][0], staggered()
    together = ours(schedule, steps)
    for member, s in enumerate(STEPS_PER_EPOCH):
        alone = [
            schedule.factor(Moment(t, t // s, np.array([s]), MAX_EPOCHS), {})[0] for t in steps[:, member : member + 1]
        ]
        assert together[:, member].tolist() == alone


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("cooldown", [0, 3])
def test_plateau_equals_torch_for_each_member(relative, cooldown):
    rng = np.random.default_rng(0)
    schedule = Plateau(gamma=0.6, patience=2, threshold=0.01, relative=relative, cooldown=cooldown, minimum=0.02)
    values = np.exp(-0.01 * np.arange(300))[:, None] * rng.uniform(0.9, 1.1, (300, 4)) + np.array([0, 0.2, 1.0, 5.0])
    values[rng.random((300, 4)) < 0.02] = np.nan
    state, optimizers = schedule.start(4), [sgd() for _ in range(4)]
    mode = "rel" if relative else "abs"
    theirs = [
        lr_scheduler.ReduceLROnPlateau(
            one, "min", 0.6, 2, threshold=0.01, threshold_mode=mode, cooldown=cooldown, min_lr=0.02, eps=0.0
        )
        for one in optimizers
    ]
    seen = set()
    for epoch, row in enumerate(values):
        for member in np.flatnonzero(epoch % np.array([1, 1, 2, 3]) == 0).tolist():  # epochs of different lengths
            schedule.observe(state, member, float(row[member]))
            theirs[member].step(float(row[member]))
        factor = schedule.factor(Moment(*np.full((3, 4), epoch), max_epochs=300), state)
        rate = [float(one.param_groups[0]["lr"]) for one in optimizers]
        np.testing.assert_allclose(factor, rate, rtol=1e-12)
        seen.update(factor.tolist())
    assert 0.02 in seen
    assert len(seen) > 3


def test_plateau_does_not_take_a_worse_negative_value_for_a_better_one():
    schedule = Plateau(gamma=0.5, patience=0, threshold=0.1)
    state = schedule.start(1)
    for value in (-1.0, -0.95):  # a negated Sharpe ratio that falls
        schedule.observe(state, 0, value)
    assert state["factor"][0] == 0.5
    assert state["best"][0] == -1.0
    schedule.observe(state, 0, -1.2)
    assert state["factor"][0] == 0.5


def test_plateau_after_a_warmup_keeps_what_it_saw():
    schedule = Warmup(length=2, begin=0.5, then=Plateau(gamma=0.1, patience=0))
    state = schedule.start(3)
    for member, value in [(0, 1.0), (2, 1.0), (2, 2.0)]:
        schedule.observe(state, member, value)
    moment = Moment(np.array([0, 2, 2]), np.zeros(3, int), np.array([5, 5, 5]), 4)
    np.testing.assert_allclose(schedule.factor(moment, state), [0.5, 1.0, 0.1])


def test_cosine_stays_at_its_minimum():
    schedule, steps = Cosine(epochs=4, minimum=0.3), staggered()
    found = ours(schedule, steps)
    over = steps >= 4 * STEPS_PER_EPOCH
    assert (found[over] == 0.3).all()
    assert (found[~over] > 0.3).all()


@pytest.mark.parametrize("schedule", [Cosine(), OneCycle(), Warmup(length=3, then=Cosine())])
def test_a_run_that_ends_by_its_steps_is_scheduled_to_their_end(schedule):
    ended = ours(schedule, np.arange(10)[:, None] + np.zeros(5, int), max_steps=10)[:, 3]
    whole = [schedule.factor(Moment(np.array([t]), np.array([t]), np.array([1]), 10), {})[0] for t in range(10)]
    assert ended.tolist() == whole


def test_one_cycle_with_its_peak_on_the_first_step_begins_there():
    moment = Moment(np.arange(4), np.arange(4), np.ones(4, int), 4)
    factor = OneCycle(peak=0.25).factor(moment, {})
    assert factor[0] == 1.0
    assert factor[-1] == pytest.approx(1 / 25 / 1e4, rel=1e-12)


def test_factors_neither_rise_above_one_nor_fall_below_zero():
    for schedule, _, _ in CASES.values():
        found = ours(schedule, staggered())
        assert (found <= 1).all()
        assert (found >= 0).all()


SCHEDULED = [
    StepDecay(2, 0.5),
    Exponential(0.97, "step"),
    Cosine(epochs=2, minimum=0.05, restart_multiplier=2),
    OneCycle(),
    Plateau(gamma=0.3, patience=0),
    Warmup(length=5, then=Cosine()),
]


def make_data(n=220):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, 4)).astype(np.float32)
    time = np.datetime64("2010-01-01") + np.arange(n)
    return TimeDataset(X, X[:, 0] + rng.standard_normal(n), time=time, label_end=time + 1)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULED, ids=lambda schedule: schedule.kind)
def test_training_in_a_stack_equals_solo(schedule):
    ds = make_data()
    trainer = qfml.Trainer(max_epochs=7, batch_size=16, schedule=schedule, member_block=9, patience=3)
    members = [
        qfml.Member(qfml.MLP(hidden=(9,)), np.arange(90 + 20 * i), np.arange(180, 220), seed=i, lr=0.02 / (i + 1))
        for i in range(4)
    ]
    constant = qfml.Trainer(max_epochs=7, batch_size=16, patience=3).fit_many(members, qfml.MSE(), ds)
    stacked = trainer.fit_many(members, qfml.MSE(), ds)
    assert any(fit.history != other.history for fit, other in zip(stacked, constant)), "the schedule moved nothing"
    for member, fit in zip(members, stacked):
        solo = trainer.fit_many([member], qfml.MSE(), ds)[0]
        assert torch.equal(solo.parameters, fit.parameters)
        assert solo.history == fit.history


@pytest.mark.parametrize("unit", ["step", "epoch"])
def test_training_equals_a_plain_torch_loop_with_a_scheduler(unit):
    ds, train = make_data(), np.arange(100)
    network = qfml.MLP(hidden=(8,), activation="tanh")
    own = {name: torch.nn.Parameter(value) for name, value in network.init(4, None, stream(0, 0, "init")).items()}
    optimizer = torch.optim.SGD(own.values(), lr=0.05)
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.9)
    for epoch in range(3):
        order = torch.randperm(100, generator=stream(0, 0, "shuffle", epoch))
        for rows in order.split(32):
            optimizer.zero_grad()
            hidden = torch.tanh(ds.features[rows] @ own["weight0"] + own["bias0"])
            (hidden @ own["head_weight"] + own["head_bias"] - ds.y[rows]).square().mean().backward()
            optimizer.step()
            if unit == "step":
                scheduler.step()
        if unit == "epoch":
            scheduler.step()
    trainer = qfml.Trainer(
        max_epochs=3, batch_size=32, optimizer=qfml.SGD(lr=0.05), schedule=Exponential(0.9, unit=unit)
    )
    fit = trainer.fit(network, qfml.MSE(), ds, train=train)
    for name, value in own.items():
        torch.testing.assert_close(fit.named_parameters()[name], value.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "step", "every": 0}, "`every` must be a whole number, at least 1, got 0"),
        ({"kind": "step", "every": 2, "gamma": 0.0}, r"`gamma` must lie in \(0, 1\], got 0.0"),
        ({"kind": "step", "every": 2, "unit": "day"}, "`unit` must be step or epoch, got 'day'"),
        ({"kind": "exponential", "gamma": 1.5}, r"`gamma` must lie in \(0, 1\], got 1.5"),
        ({"kind": "exponential", "gamma": math.nan}, r"`gamma` must lie in \(0, 1\], got nan"),
        ({"kind": "cosine", "epochs": 0}, "`epochs` must be a whole number, at least 1, got 0"),
        ({"kind": "cosine", "minimum": 1.0}, r"`minimum` must lie in \[0, 1\), a factor"),
        ({"kind": "cosine", "restart_multiplier": 2}, "`restart_multiplier` 2 needs `epochs`"),
        ({"kind": "cosine", "epochs": 2, "restart_multiplier": 0}, "`restart_multiplier` must be a whole number"),
        ({"kind": "one_cycle", "peak": 1.0}, r"`peak` must lie in \(0, 1\), a share of the run, got 1.0"),
        ({"kind": "one_cycle", "div_factor": 0.5}, "`div_factor` must be at least 1 and finite, got 0.5"),
        ({"kind": "one_cycle", "anneal": "cosine"}, "`anneal` must be cos or linear, got 'cosine'"),
        ({"kind": "plateau", "gamma": 1.0}, r"`gamma` must lie in \(0, 1\), got 1.0"),
        ({"kind": "plateau", "patience": -1}, "`patience` must be a whole number, at least 0, got -1"),
        ({"kind": "plateau", "threshold": -1e-3}, "`threshold` must be >= 0 and finite, got -0.001"),
        ({"kind": "plateau", "minimum": -0.1}, r"`minimum` must lie in \[0, 1\)"),
        ({"kind": "warmup", "length": 0}, "`length` must be a whole number, at least 1, got 0"),
        ({"kind": "warmup", "length": 5, "begin": 0.0}, r"`begin` must lie in \(0, 1\), a factor"),
        ({"kind": "warmup", "length": 5, "then": {"kind": "warmup", "length": 2}}, "`then` must be a schedule other"),
        ({"kind": "warmup", "length": 5, "then": {"kind": "cosin"}}, "then: `kind: cosin` is not known .did you mean"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        config.build_kind(SCHEDULES, settings)


@pytest.mark.parametrize("schedule", [Constant(), *SCHEDULED], ids=lambda schedule: schedule.kind)
def test_a_schedule_survives_its_yaml_form(schedule):
    assert config.build_kind(SCHEDULES, config.to_dict(schedule)) == schedule
