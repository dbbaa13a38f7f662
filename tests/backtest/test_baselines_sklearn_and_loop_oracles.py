"""Baselines against scikit-learn, loops, and fits that cannot see the test rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.preprocessing import StandardScaler

from qfml.backtest import BASELINES, HAR, BuyAndHold, Momentum, Ridge
from qfml.backtest import baselines as module
from qfml.backtest.baselines import last_known_return, ridge_path
from qfml.backtest.folds import FoldRows
from qfml.config import build_kind, to_dict
from qfml.data import TimeDataset
from qfml.data.transforms import Standardise, fit_transforms
from qfml.errors import DataError, UserError

NONE = np.empty(0, dtype=np.int64)


def data(n=300, n_features=4, seed=0, classify=False, weight=False, window=None, names=None):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, n_features)) * [1.0, 30.0, 0.1, 5.0][:n_features] + 7.0
    y = X[:, 0] - 0.1 * X[:, 1] + rng.normal(0, 1, n)
    if classify:
        y = (y > np.median(y)).astype(float)
    days = np.datetime64("2020-01-01") + np.arange(n)
    return TimeDataset(
        X,
        y,
        time=days,
        label_end=days + 1,
        returns=rng.normal(0, 0.01, n),
        weight=rng.uniform(0.5, 2.0, n) if weight else None,
        window=window,
        feature_names=names,
    )


def fold(ds, n_train=150, n_val=50):
    rows = np.arange(len(ds))
    return FoldRows(rows[:n_train], rows[n_train : n_train + n_val], rows[n_train + n_val :], NONE, NONE, 0)


def numpy_of(ds, rows):
    x, y = ds.gather(torch.from_numpy(rows))[:2]
    return x.reshape(len(rows), -1).double().numpy(), y.double().numpy()


@pytest.mark.parametrize("weight", [False, True])
@pytest.mark.parametrize("window", [None, 3])
def test_ridge_equals_scikit_learn_for_every_penalty(weight, window, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 64)  # several chunks
    ds = data(weight=weight, window=window)
    part = fold(ds)
    x, y = numpy_of(ds, part.train)
    w = np.ones(len(y)) if ds.weight is None else ds.weight[part.train].double().numpy()
    scaler = StandardScaler().fit(x, sample_weight=w)
    losses, expected = [], []
    penalties = (0.01, 0.3, 5.0)
    for penalty in penalties:
        oracle = SklearnRidge(alpha=penalty * w.sum()).fit(scaler.transform(x), y, sample_weight=w)
        x_test, _ = numpy_of(ds, part.test)
        expected.append(oracle.predict(scaler.transform(x_test)))
        np.testing.assert_allclose(
            Ridge(penalties=(penalty,)).predict(ds, part, classify=False), expected[-1], rtol=1e-8, atol=1e-9
        )
        x_val, y_val = numpy_of(ds, part.val)
        w_val = np.ones(len(y_val)) if ds.weight is None else ds.weight[part.val].double().numpy()
        losses.append(w_val @ (oracle.predict(scaler.transform(x_val)) - y_val) ** 2)
    chosen = Ridge(penalties=penalties).predict(ds, part, classify=False)
    np.testing.assert_allclose(chosen, expected[int(np.argmin(losses))], rtol=1e-8, atol=1e-9)


def test_ridge_sees_the_network_s_transformed_features():
    ds = data()
    part = fold(ds)
    transforms = fit_transforms([Standardise()], ds.feature_rows(part.train))
    plain = Ridge().predict(ds, part, classify=False)
    np.testing.assert_allclose(Ridge().predict(ds, part, classify=False, transforms=transforms), plain, rtol=1e-4)


def test_ridge_ignores_a_constant_feature_and_pure_noise_goes_to_the_mean():
    rng = np.random.default_rng(1)
    n = 400
    X = np.column_stack([np.full(n, 1234.5), rng.normal(size=n)])
    days = np.datetime64("2020-01-01") + np.arange(n)
    ds = TimeDataset(X, rng.normal(3.0, 1.0, n), time=days, label_end=days + 1)
    part = fold(ds)
    predicted = Ridge(penalties=(1e6,)).predict(ds, part, classify=False)
    np.testing.assert_allclose(predicted, ds.y[part.train].double().mean(), atol=1e-4)


def test_logistic_ridge_equals_scikit_learn():
    ds = data(classify=True)
    part = fold(ds)
    x, y = numpy_of(ds, part.train)
    scaler = StandardScaler().fit(x)
    oracle = LogisticRegression(C=1.0 / (0.05 * len(y)), max_iter=1000).fit(scaler.transform(x), y)
    x_test, y_test = numpy_of(ds, part.test)
    predicted = Ridge(penalties=(0.05,)).predict(ds, part, classify=True)
    np.testing.assert_allclose(predicted, oracle.predict_proba(scaler.transform(x_test))[:, 1], rtol=1e-6)
    assert ((predicted > 0.5) == y_test).mean() > 0.7


def test_logistic_ridge_refuses_soft_labels_and_survives_a_single_class():
    ds = data(classify=True)
    part = fold(ds)
    ones = part.train[(ds.y[part.train] == 1).numpy()]
    single = FoldRows(ones, part.val, part.test, NONE, NONE, 0)
    np.testing.assert_array_equal(Ridge().predict(ds, single, classify=True), np.ones(len(part.test)))
    with pytest.raises(DataError, match="labels 0 and 1"):
        Ridge().predict(data(), part, classify=True)


def test_ridge_without_validation_rows_splits_a_purged_tail_off_its_training_rows():
    ds = data()
    part = fold(ds, n_train=200, n_val=0)
    bare = FoldRows(part.train, None, part.test, NONE, NONE, 0)
    # 15 % of 200 days are 30; labels end a day later, so that the day before the tail stays
    by_hand = FoldRows(part.train[:170], part.train[170:], part.test, NONE, NONE, 0)
    np.testing.assert_array_equal(
        Ridge().predict(ds, bare, classify=False), Ridge().predict(ds, by_hand, classify=False)
    )


def test_har_is_least_squares_on_its_three_columns():
    ds = data(weight=True, names=["har_monthly", "other", "har_daily", "har_weekly"])
    part = fold(ds)
    columns = [2, 3, 0]
    x, y = numpy_of(ds, part.train)
    x_test, _ = numpy_of(ds, part.test)
    oracle = LinearRegression().fit(x[:, columns], y, sample_weight=ds.weight[part.train].double().numpy())
    np.testing.assert_allclose(HAR().predict(ds, part, classify=False), oracle.predict(x_test[:, columns]), rtol=1e-7)


def test_har_says_which_features_are_missing():
    ds = data(names=["har_daily", "b", "c", "d"])
    with pytest.raises(DataError, match="missing: har_weekly, har_monthly"):
        HAR().predict(ds, fold(ds), classify=False)


@pytest.mark.parametrize("kind", ["ridge", "momentum", "har", "buy_and_hold"])
def test_test_labels_and_later_returns_change_no_prediction(kind):
    ds = data(names=["har_daily", "har_weekly", "har_monthly", "d"])
    part = fold(ds)
    baseline = build_kind(BASELINES, kind)
    before = baseline.predict(ds, part, classify=False)
    ds.y[torch.from_numpy(part.test)] = 99.0
    ds.returns[part.test[-1] :] = 0.5  # the return of the last test row is earned after its decision
    np.testing.assert_array_equal(baseline.predict(ds, part, classify=False), before)


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.integers(1, 3))
def test_last_known_return_equals_a_loop(seed, n_periods):
    rng = np.random.default_rng(seed)
    cells = rng.permutation(40)[: rng.integers(1, 30)]
    time, group = cells // 4, cells % 4
    returns = np.where(rng.random(len(cells)) < 0.2, np.nan, rng.normal(0, 0.1, len(cells)))
    found = last_known_return(time, group, returns, n_periods=n_periods)
    for row in range(len(cells)):
        earlier = sorted(
            (time[k], returns[k]) for k in range(len(cells)) if group[k] == group[row] and time[k] < time[row]
        )
        past = [value for _, value in earlier[-n_periods:]]
        expected = np.prod([1 + r for r in past]) - 1 if len(past) == n_periods else np.nan
        np.testing.assert_allclose(found[row], expected, rtol=1e-12, atol=1e-15)


def test_momentum_of_a_class_is_the_sign_as_a_probability():
    ds = data(n=6, n_features=2)
    ds.returns[:] = [0.1, -0.1, 0.0, 0.2, 0.1, 0.1]
    rows = np.arange(6)
    part = FoldRows(rows[:1], None, rows, NONE, NONE, 0)
    np.testing.assert_array_equal(Momentum().predict(ds, part, classify=True), [np.nan, 1.0, 0.0, 0.5, 1.0, 1.0])


def test_buy_and_hold_is_long_everything():
    ds = data()
    assert (BuyAndHold().predict(ds, fold(ds), classify=True) == 1.0).all()


def test_ridge_path_shrinks_monotonically():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5)) @ rng.normal(size=(5, 5))
    covariance = np.cov(np.column_stack([x, x.sum(1)]).T, ddof=0)
    path = ridge_path(covariance[:-1, :-1], covariance[:-1, -1], [1e-12, 0.1, 1.0, 10.0])
    scale = np.sqrt(np.diag(covariance)[:-1])
    np.testing.assert_allclose(path[:, 0], 1.0, rtol=1e-6)  # without a penalty, least squares finds the sum
    assert (np.diff(np.linalg.norm(path * scale[:, None], axis=0)) < 0).all()


@pytest.mark.parametrize("kind", BASELINES)
def test_every_baseline_reads_back_from_its_settings(kind):
    baseline = build_kind(BASELINES, kind)
    assert build_kind(BASELINES, to_dict(baseline)) == baseline


@pytest.mark.parametrize("make", [lambda: Ridge(penalties=()), lambda: Ridge(penalties=(-1.0,)), lambda: Momentum(0)])
def test_wrong_settings_are_refused(make):
    with pytest.raises(UserError):
        make()
