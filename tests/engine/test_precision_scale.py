"""Precisions: a loss scale for each member as torch's GradScaler has, neighbours untouched, training close to fp32."""

import numpy as np
import pytest
import torch

import qfml
from qfml.data import TimeDataset
from qfml.engine import precision
from qfml.engine.precision import check_precision, rescale, start_scale
from qfml.engine.streams import stream

NETWORK = qfml.MLP(hidden=(16, 16))
ORDINARY, LARGE, ENDLESS = np.arange(0, 128), np.arange(128, 256), np.arange(256, 384)


def make_data():
    """Ordinary labels; labels whose scaled gradients overflow fp16 at first; labels that overflow at any scale."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((384, 5)).astype(np.float32)
    y = np.tanh(X[:, 0] + X[:, 1]) + 0.05 * rng.standard_normal(384)
    y[LARGE] *= 100.0
    y[ENDLESS] *= 1e18
    time = np.datetime64("2010-01-01") + np.arange(384)
    return TimeDataset(X, y, time=time, label_end=time + 1)


def fp16(**changes):
    settings = {"max_epochs": 5, "batch_size": 16, "optimizer": qfml.AdamW(lr=3e-3), "precision": "fp16"}
    return qfml.Trainer(**settings | changes)


def test_scales_follow_those_of_torch_for_each_member(monkeypatch):
    monkeypatch.setattr(precision, "GROWTH_INTERVAL", 5)
    state = start_scale("fp16", torch.zeros(4, 16))
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(4)]
    optimizers = [torch.optim.SGD([weight], lr=0.1) for weight in weights]
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=5) for _ in range(4)]
    chance = np.array([0.0, 0.1, 0.3, 0.9])
    rng = np.random.default_rng(0)
    seen = set()
    for step in range(40):
        finite = rng.random(4) >= (chance if step < 35 else 1.0)
        finite[0] &= step != 30  # before the largest scale, which torch does not know
        for weight, optimizer, scaler, fine in zip(weights, optimizers, scalers, finite):
            scaler.scale(torch.zeros(1))
            weight.grad = torch.full((1,), 1.0 if fine else float("inf"))
            scaler.step(optimizer)
            scaler.update()
        rescale(state, torch.from_numpy(finite)[:, None])
        assert state["scale"][:, 0].tolist() == [scaler.get_scale() for scaler in scalers]
        seen.update(state["scale"][:, 0].tolist())
    assert max(seen) > 2.0**18
    assert min(seen) < 2.0**4


def test_a_scale_stops_growing_before_it_overflows_itself(monkeypatch):
    monkeypatch.setattr(precision, "GROWTH_INTERVAL", 1)
    state = start_scale("fp16", torch.zeros(1, 16))
    for _ in range(200):
        rescale(state, torch.ones(1, 1, dtype=torch.bool))
    assert state["scale"].item() == precision.LARGEST_SCALE


def test_the_step_of_an_overflow_is_skipped_by_its_member_alone():
    ds = make_data()
    members = [qfml.Member(NETWORK, rows, seed=seed) for seed, rows in enumerate([ORDINARY, LARGE, ORDINARY])]
    fits = fp16(max_epochs=1, max_steps=1).fit_many(members, qfml.MSE(), ds)
    for seed, fit in enumerate(fits):
        first = fit.layout.flatten(NETWORK.init(5, None, stream(0, seed, "init")))
        assert torch.equal(fit.parameters, first) == (seed == 1)
    assert [fit.status for fit in fits] == ["finished"] * 3


def test_neighbours_of_an_overflow_have_the_bits_that_they_have_without_it():
    ds = make_data()
    good = [qfml.Member(NETWORK, ORDINARY, seed=seed) for seed in (1, 2)]
    large, endless = qfml.Member(NETWORK, LARGE, seed=3), qfml.Member(NETWORK, ENDLESS, seed=4)
    without = fp16().fit_many(good, qfml.MSE(), ds)
    together = fp16().fit_many([large, good[0], endless, good[1]], qfml.MSE(), ds)
    for a, b in zip(without, together[1::2]):
        assert torch.equal(a.parameters, b.parameters)
        assert a.history == b.history
    assert [fit.status for fit in together] == ["finished", "finished", "nan", "finished"]
    assert bool(torch.isfinite(together[2].parameters).all())


def test_a_member_that_overflowed_trains_on_with_a_smaller_scale():
    ds = make_data()
    fit = fp16(max_epochs=40, optimizer=qfml.AdamW(lr=1e-2)).fit(NETWORK, qfml.MSE(), ds, train=LARGE)
    losses = [record["train_loss"] for record in fit.history]
    assert fit.status == "finished"
    assert losses[-1] < 0.2 * losses[0]


def test_a_step_that_is_skipped_is_skipped_under_a_limit_of_the_norm_too():
    """The norm of a gradient that overflowed is no number, and must not get into the weights."""
    ds = make_data()
    limited, free = (fp16(max_epochs=1, max_steps=4, clip_norm=most) for most in (1e30, None))
    fits = [trainer.fit(NETWORK, qfml.MSE(), ds, train=LARGE) for trainer in (limited, free)]
    assert [fit.status for fit in fits] == ["finished"] * 2
    assert torch.equal(fits[0].parameters, fits[1].parameters)


def test_a_step_that_is_skipped_counts_as_no_update():
    """Adam's first update is the learning rate in each element, however many steps were skipped before it."""
    ds = make_data()
    for n_steps in range(1, 9):
        trainer = fp16(max_epochs=1, max_steps=n_steps, optimizer=qfml.AdamW(lr=1e-3, weight_decay=0.0))
        fit = trainer.fit(NETWORK, qfml.MSE(), ds, train=LARGE)
        moved = fit.parameters - fit.layout.flatten(NETWORK.init(5, None, stream(0, 0, "init")))
        if bool(moved.any()):
            break
    assert n_steps > 1, "the first step overflows"
    assert float(moved.abs().max()) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("loss", [qfml.MSE(), qfml.NegativeSharpe(cost_bps=1.0)], ids=lambda loss: loss.kind)
@pytest.mark.parametrize(("name", "digits"), [("bf16", 8), ("fp16", 11)])
def test_half_precision_trains_close_to_fp32(name, digits, loss):
    whole = make_data()
    time, y = whole.time[ORDINARY], whole.y[ORDINARY] * (1.0 if loss.additive else 0.01)
    ds = TimeDataset(whole.features[ORDINARY], y, time=time, label_end=time + np.timedelta64(1, "D"))
    settings = {"max_epochs": 10, "batch_size": 32 if loss.additive else None, "optimizer": qfml.AdamW(lr=3e-3)}
    exact = qfml.Trainer(**settings).fit(NETWORK, loss, ds, train=ORDINARY)
    half = qfml.Trainer(**settings, precision=name).fit(NETWORK, loss, ds, train=ORDINARY)
    a, b = exact.predict(ds, ORDINARY), half.predict(ds, ORDINARY)
    assert half.parameters.dtype == torch.float32
    error = np.sqrt(np.mean((a - b) ** 2)) / np.std(a)
    assert 0 < error < 16 * 2.0**-digits  # of the format's relative spacing, some for the steps
    losses = np.array([[record["train_loss"] for record in fit.history] for fit in (exact, half)])
    assert np.abs(losses[1] - losses[0]).max() < 16 * 2.0**-digits * np.abs(losses[0]).max()
    assert losses[1][-1] < losses[1][0]


def test_small_gradients_survive_fp16_by_their_scale():
    """Gradients of 1e-7 and less vanish in fp16; the steps of Adam do not depend on their size."""
    ds = make_data()
    small = TimeDataset(ds.features, 1e-6 * ds.y, time=ds.time, label_end=ds.label_end)
    network = qfml.MLP(hidden=(8,), activation="tanh")
    zero = qfml.Trainer(max_epochs=1, batch_size=None).fit(network, qfml.MSE(), ds, train=ORDINARY)
    start = type(zero)(**{**vars(zero), "parameters": 1e-3 * zero.parameters})
    members = [qfml.Member(network, ORDINARY, start=start)]
    optimizer = qfml.AdamW(lr=1e-5, eps=1e-16, weight_decay=0.0)
    settings = {"max_epochs": 3, "batch_size": 64, "optimizer": optimizer}
    exact = qfml.Trainer(**settings).fit_many(members, qfml.MSE(), small)[0]
    half = qfml.Trainer(**settings, precision="fp16").fit_many(members, qfml.MSE(), small)[0]
    moved = [fit.parameters - start.parameters for fit in (exact, half)]
    assert float((moved[1] - moved[0]).norm() / moved[0].norm()) < 0.2


@pytest.mark.parametrize("name", ["fp32", "tf32", "bf16"])
def test_other_precisions_have_no_scale(name):
    assert start_scale(name, torch.zeros(3, 16)) == {}


def test_what_a_device_does_not_have_is_refused():
    with pytest.raises(ValueError, match="`precision` tf32 needs a CUDA device: only its tensor cores have the format"):
        qfml.Trainer(max_epochs=1, batch_size=None, precision="tf32")
    check_precision("tf32", torch.device("cuda"))
    with pytest.raises(ValueError, match="`precision` must be one of fp32, tf32, bf16, fp16, got 'half'"):
        qfml.Trainer(max_epochs=1, batch_size=None, precision="half")
