"""Learning and validation curves against members trained alone; one batch that can and cannot be learned by heart."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib import pyplot

import qfml
from qfml.data import TimeDataset
from qfml.data.transforms import Standardise, fit_transforms
from qfml.engine.overfitting import learning_curve, overfit_one_batch, validation_curve
from qfml.engine.overfitting.curves import nested
from qfml.engine.overfitting.one_batch import constant_loss
from qfml.errors import UserError
from qfml.networks import Module
from qfml.splits import PurgedKFold, WalkForward


@pytest.fixture(autouse=True)
def _no_window():
    yield
    pyplot.close("all")


def make_data(n=240, n_features=3, seed=0, horizon=3):
    rng = np.random.default_rng(seed)
    X = 2 + 3 * rng.standard_normal((n, n_features))
    time = np.arange(n)
    return TimeDataset(X, 0.3 * X[:, 0] + 0.3 * rng.standard_normal(n), time=time, label_end=time + horizon)


def own_module():
    return torch.nn.Linear(3, 1)


TRAINER = qfml.Trainer(max_epochs=3, batch_size=20, optimizer=qfml.AdamW(lr=1e-2))
NETWORK = qfml.MLP(hidden=(8,))


def test_learning_curve_is_what_members_alone_give():
    ds, splitter = make_data(), PurgedKFold(3)
    curve = learning_curve(
        TRAINER, NETWORK, qfml.MSE(), ds, splitter, sizes=(0.3, 1.0), n_seeds=2, seed=4, transforms=[Standardise()]
    )
    y = ds.y.double().numpy()
    for k, size in enumerate((0.3, 1.0)):
        for f, (train, test) in enumerate(splitter.split(ds)):
            own = train[len(train) - round(size * len(train)) :]  # the newest
            scaler = fit_transforms([Standardise()], ds.feature_rows(own), ds.feature_names)
            for s in range(2):
                fit = TRAINER.fit_many([qfml.Member(NETWORK, own, seed=4 + s, transforms=scaler)], qfml.MSE(), ds)[0]
                for rows, found in ((own, curve.train), (test, curve.test)):
                    expected = np.square(fit.predict(ds, rows) - y[rows]).mean()
                    np.testing.assert_allclose(found[k, f, s], expected, rtol=1e-5)
            assert curve.n_rows[k, f] == len(own)
    frame = curve.frame()
    assert frame.shape == (12, 7)
    assert frame.filter(value=1.0, fold=1, seed=1)["test"].item() == curve.test[1, 1, 1]


def test_subsets_are_nested_purged_and_whole_in_time():
    time = np.repeat(np.arange(50), 2)
    ds = TimeDataset(np.ones((100, 1)), np.zeros(100), time=time, label_end=time + 4, group=np.tile(["a", "b"], 50))
    for train, test in WalkForward(30, 10).split(ds):
        before = np.array([], dtype=np.int64)
        for size in (1, 7, 0.5, 1.0):
            for keep in ("oldest", "newest"):
                own = nested(ds, train, size, keep)
                stamps = np.unique(ds.time[own])
                assert len(own) == 2 * len(stamps)  # both assets of every timestamp
                assert ds.label_end[own].max() <= ds.time[test].min()
                edge = ds.time[train].min() if keep == "oldest" else ds.time[train].max()
                assert edge in stamps
            assert set(before) <= set(own)
            before = own
        assert set(before) == set(train)
    with pytest.raises(UserError, match="60 timestamps of a fold that has"):
        nested(ds, train, 60, "oldest")


def test_spreads_and_plot():
    ds = make_data()
    curve = learning_curve(
        TRAINER, NETWORK, qfml.MSE(), ds, PurgedKFold(3), sizes=(20, 60, 120), n_seeds=2, metric="r2", keep="oldest"
    )
    assert curve.metric == "r2"
    test = curve.test
    np.testing.assert_allclose(curve.mean(), [test[k].mean() for k in range(3)])
    np.testing.assert_allclose(curve.std_over_folds(), [np.std(test[k].mean(1), ddof=1) for k in range(3)])
    seeds = [np.sqrt(np.mean([np.var(test[k, f], ddof=1) for f in range(3)])) for k in range(3)]
    np.testing.assert_allclose(curve.std_over_seeds(), seeds)
    ax = curve.plot()
    drawn = {line.get_label(): line for line in ax.containers}
    np.testing.assert_allclose(drawn["test"][0].get_xdata(), curve.n_rows.mean(1))
    np.testing.assert_allclose(drawn["test"][0].get_ydata(), curve.mean())


@pytest.mark.parametrize(
    ("parameter", "values"),
    [("lr", (1e-3, 1e-2)), ("network.hidden", ((4,), (8, 8))), ("trainer.max_epochs", (1, 3))],
)
def test_validation_curve_is_what_members_alone_give(parameter, values):
    ds, splitter = make_data(), PurgedKFold(2)
    curve = validation_curve(
        TRAINER, NETWORK, qfml.MSE(), ds, splitter, parameter=parameter, values=values, n_seeds=1, validation=0.2
    )
    for k, value in enumerate(values):
        alone = validation_curve(
            TRAINER, NETWORK, qfml.MSE(), ds, splitter, parameter=parameter, values=[value], n_seeds=1, validation=0.2
        )
        assert alone.test.tolist() == curve.test[k : k + 1].tolist()  # to the last bit
    assert curve.test[0].tolist() != curve.test[1].tolist()
    member = {"lr": {"lr": values[1]}, "network.hidden": {}}.get(parameter, {})
    network = qfml.MLP(hidden=values[1]) if parameter == "network.hidden" else NETWORK
    train, test = next(iter(splitter.split(ds)))
    from qfml.splits import validation_tail

    tail = validation_tail(ds, train, 0.2)
    fit = TRAINER.fit_many([qfml.Member(network, tail.train, tail.test, **member)], qfml.MSE(), ds)[0]
    expected = np.square(fit.predict(ds, test) - ds.y[torch.as_tensor(test)].double().numpy()).mean()
    np.testing.assert_allclose(curve.test[1, 0, 0], expected, rtol=1e-5)
    curve.plot()


def test_wrong_settings_are_named():
    ds, splitter = make_data(), PurgedKFold(2)
    for sizes in ((), (0.5, 0.2), (0.0, 0.5), (0.5, 1.5), (0, 3), (1, 0.5)):
        with pytest.raises(UserError, match="`sizes`"):
            learning_curve(TRAINER, NETWORK, qfml.MSE(), ds, splitter, sizes=sizes)
    with pytest.raises(UserError, match="`keep`"):
        learning_curve(TRAINER, NETWORK, qfml.MSE(), ds, splitter, keep="best")
    with pytest.raises(UserError, match="`metric`"):
        learning_curve(TRAINER, NETWORK, qfml.MSE(), ds, splitter, metric="sharp")
    for parameter in ("network.widths", "seed", "loss.delta"):
        with pytest.raises(UserError, match="`parameter` must be"):
            validation_curve(TRAINER, NETWORK, qfml.MSE(), ds, splitter, parameter=parameter, values=[1])


# --- one batch


def test_a_sound_network_learns_its_batch_by_heart():
    ds = make_data()
    trainer = qfml.Trainer(max_epochs=1, batch_size=16, optimizer=qfml.AdamW(lr=1e-2, weight_decay=0.1))
    check = overfit_one_batch(
        trainer, qfml.MLP(hidden=(32, 32), dropout=0.5), qfml.MSE(), ds, np.arange(16), n_steps=400
    )
    assert check.passed
    assert check.verdict.startswith("passed")
    y = ds.y[:16].double().numpy()
    np.testing.assert_allclose(check.constant_loss, y.var(), rtol=1e-6)


def test_features_that_say_nothing_fail_even_where_the_mean_is_large():
    time = np.arange(32)
    rng = np.random.default_rng(0)
    ds = TimeDataset(np.ones((32, 2)), 100 + rng.standard_normal(32), time=time, label_end=time + 1)
    trainer = qfml.Trainer(max_epochs=1, batch_size=16, optimizer=qfml.AdamW(lr=1e-1))
    check = overfit_one_batch(trainer, NETWORK, qfml.MSE(), ds, np.arange(32), n_steps=200)
    assert check.lowest < 0.01 * check.losses[0, 0]  # it looks like success beside the untrained network
    assert check.lowest >= 0.999 * check.constant_loss
    assert not check.passed
    assert check.verdict.startswith("failed")


@pytest.mark.slow
def test_a_wrong_learning_rate_is_told_from_a_wrong_network():
    ds = make_data()
    trainer = qfml.Trainer(max_epochs=1, batch_size=16, optimizer=qfml.AdamW(lr=1e-5))
    check = overfit_one_batch(
        trainer, qfml.MLP(hidden=(32,)), qfml.MSE(), ds, np.arange(8), n_steps=400, factors=(1.0, 1000.0)
    )
    assert check.rate == pytest.approx(1e-2)
    assert "not at the trainer's learning rate 1e-05" in check.verdict


@pytest.mark.parametrize("loss", ["mae", "pinball", "bce", "cross_entropy"])
def test_best_constant_is_known(loss):
    rng = np.random.default_rng(0)
    y, time = rng.exponential(size=101), np.arange(101)
    if loss in ("bce", "cross_entropy"):
        y = (y > 1).astype(np.float64)
    ds = TimeDataset(np.ones((101, 1)), y, time=time, label_end=time + 1)
    y = ds.y.double().numpy()
    p = y.mean()
    entropy = -p * np.log(p) - (1 - p) * np.log(1 - p) if loss in ("bce", "cross_entropy") else None
    level = np.quantile(y, 0.9)
    kind, expected = {
        "mae": (qfml.MAE(), np.abs(y - np.median(y)).mean()),
        "pinball": (qfml.Pinball(level=0.9), np.maximum(0.9 * (y - level), -0.1 * (y - level)).mean()),
        "bce": (qfml.BCE(), entropy),
        "cross_entropy": (qfml.losses.CrossEntropy(n_classes=2), entropy),
    }[loss]
    # a kink is only met to within a step of the line search
    np.testing.assert_allclose(constant_loss(kind, ds, np.arange(101)), expected, rtol=1e-3)


def test_what_has_no_zero_is_refused():
    ds, rows = make_data(), np.arange(16)
    with pytest.raises(UserError, match="no lowest value of 0"):
        overfit_one_batch(TRAINER, NETWORK, qfml.NegativeSharpe(cost_bps=1.0), ds, rows)
    soft = TimeDataset(ds.features, torch.full((240,), 0.3), time=ds.time, label_end=ds.label_end)
    with pytest.raises(UserError, match="between two classes"):
        overfit_one_batch(TRAINER, NETWORK, qfml.BCE(), soft, rows)
    with pytest.raises(UserError, match="by a constant"):
        overfit_one_batch(TRAINER, NETWORK, qfml.MSE(), soft, rows)
    with pytest.raises(UserError, match="`factors`"):
        overfit_one_batch(TRAINER, NETWORK, qfml.MSE(), ds, rows, factors=(0.1, 1.0))


def test_a_batch_that_is_not_finite_is_told_from_a_network_that_fails():
    ds = make_data()
    ds.features[3, 1] = torch.inf
    with pytest.raises(UserError, match="not finite at once, step 1, epoch 1: feature 1 of row 3 is inf"):
        overfit_one_batch(TRAINER, NETWORK, qfml.MSE(), ds, np.arange(16), n_steps=5)


def test_values_that_are_not_all_of_one_type_make_a_frame():
    ds, splitter = make_data(), PurgedKFold(2)
    for parameter, values, told in (("weight_decay", (0, 0.1), [0.0, 0.1]), ("patience", (None, 2), ["None", "2"])):
        curve = validation_curve(
            TRAINER, NETWORK, qfml.MSE(), ds, splitter, parameter=parameter, values=values, n_seeds=1, validation=0.2
        )
        assert curve.frame()["value"].to_list() == [value for value in told for _ in range(2)]


def test_curves_refuse_before_training_what_they_cannot_tell():
    ds, splitter = make_data(), PurgedKFold(2)
    endless = replace(TRAINER, max_epochs=10**9)
    for trainer, network, loss, settings, message in (
        (replace(endless, patience=3), NETWORK, qfml.MSE(), {}, "waits for `val_loss`, but there are no validation"),
        (endless, NETWORK, qfml.MSE(), {"parameter": "patience", "values": (2, 3)}, "waits for `val_loss`"),
        (endless, NETWORK, qfml.Quantiles(levels=(0.1, 0.9)), {"metric": "r2"}, "take of coverage_error"),
        (endless, NETWORK, qfml.MSE(), {"n_seeds": True}, "`n_seeds` must be a whole number"),
        (endless, Module(own_module), qfml.MSE(), {"parameter": "network.hidden"}, "network. and one of none"),
    ):
        given = {"parameter": "lr", "values": (1e-3,)} | settings
        with pytest.raises(UserError, match=message):
            validation_curve(trainer, network, loss, ds, splitter, **given)
    with pytest.raises(UserError, match="`rows` must hold row ids from 0 to 239, got 300"):
        overfit_one_batch(TRAINER, NETWORK, qfml.MSE(), ds, np.array([300]))


def test_quantiles_have_a_curve_of_their_own_metric():
    ds, loss = make_data(), qfml.Quantiles(levels=(0.1, 0.9))
    curve = learning_curve(TRAINER, NETWORK, loss, ds, PurgedKFold(2), sizes=(1.0,), n_seeds=1, metric="coverage_error")
    for fold, (train, test) in enumerate(PurgedKFold(2).split(ds)):
        told = TRAINER.fit(NETWORK, loss, ds, train=train).predict(ds, test)
        share = (ds.y.numpy()[test][:, None] <= told).mean(axis=0)
        np.testing.assert_allclose(curve.test[0, fold, 0], np.abs(share - [0.1, 0.9]).mean())


def test_a_batch_on_which_every_rate_diverges_is_said_so():
    trainer = replace(TRAINER, optimizer=qfml.SGD(lr=1e20))
    check = overfit_one_batch(trainer, NETWORK, qfml.MSE(), make_data(), np.arange(16), n_steps=5, factors=(1.0, 1e5))
    assert check.verdict == "failed: the loss diverged at every rate from 1e+20 to 1e+25; lower them"
