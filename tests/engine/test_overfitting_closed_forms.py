"""Gap, bias and variance, dropout and ensembles against what is known in closed form."""

import numpy as np
import pytest
import torch

import qfml
from qfml.data import TimeDataset
from qfml.engine.overfitting import (
    bias_variance,
    bias_variance_of,
    ensemble,
    mc_dropout,
    total_variance,
    train_validation_gap,
)
from qfml.engine.overfitting.bias_variance import bootstrap_counts, repeated
from qfml.engine.overfitting.uncertainty import dropout_draws
from qfml.errors import UserError


def make_data(n=300, n_features=3, seed=0, binary=False, window=None):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, n_features))
    y = X[:, 0] + 0.3 * rng.standard_normal(n)
    time = np.datetime64("2010-01-01") + np.arange(n)
    return TimeDataset(X, y > 0 if binary else y, time=time, label_end=time + 1, window=window)


def trained(network, ds, loss, seeds=(0,), epochs=3):
    trainer = qfml.Trainer(max_epochs=epochs, batch_size=50)
    return trainer.fit_many([qfml.Member(network, np.arange(200), seed=seed) for seed in seeds], loss, ds)


def history(train, val):
    return [{"epoch": i + 1, "train_loss": t, "val_loss": v} for i, (t, v) in enumerate(zip(train, val))]


# --- gap


def test_gap_opens_after_the_best_epoch_and_stays():
    gap = train_validation_gap(history([3.0, 2.0, 1.0, 0.9, 0.5, 0.4], [3.0, 2.0, 1.0, 1.5, 0.52, 1.3]), margin=0.0)
    assert gap.best_epoch == 5
    assert gap.opened_at == 6
    np.testing.assert_allclose(gap.gap, [0, 0, 0, 0.6, 0.02, 0.9])
    gap = train_validation_gap(history([3.0, 2.0, 1.0, 0.5, 0.9, 0.4], [3.0, 2.0, 1.0, 1.2, 1.01, 1.3]))
    assert (gap.best_epoch, gap.opened_at) == (3, 4)  # 0.7, 0.11 and 0.9 all exceed 0.05
    assert (
        train_validation_gap(history([3.0, 2.0, 1.0, 0.5, 0.98, 0.4], [3.0, 2.0, 1.0, 1.2, 1.01, 1.3])).opened_at == 6
    )
    assert (
        train_validation_gap(history([3.0, 2.0, 1.0, 0.5], [4.0, 3.0, 2.0, 1.5])).opened_at is None
    )  # there all along
    assert train_validation_gap(history([3.0, 2.0, 2.1], [4.0, 3.0, 3.1])).opened_at is None
    # a loss below 0, such as minus a Sharpe ratio
    assert train_validation_gap(history([-1.0, -2.0, -3.0], [-1.0, -2.0, -1.9])).opened_at == 3


def test_gap_of_a_fit_that_overfits():
    rng = np.random.default_rng(0)
    X, time = rng.standard_normal((80, 20)), np.arange(80)
    ds = TimeDataset(X, X[:, 0] + rng.standard_normal(80), time=time, label_end=time + 1)
    trainer = qfml.Trainer(max_epochs=60, batch_size=None, optimizer=qfml.AdamW(lr=3e-2))
    fit = trainer.fit(qfml.MLP(hidden=(32,)), qfml.MSE(), ds, train=np.arange(40), val=np.arange(41, 80))
    gap = train_validation_gap(fit.history)
    assert gap.best_epoch == fit.best_epoch
    assert fit.best_epoch < gap.opened_at < 50
    assert gap.final > 0.5


def test_gap_leaves_out_epochs_that_are_not_finite():
    gap = train_validation_gap(history([2.0, 1.0, np.nan], [2.0, 1.0, np.inf]))
    assert (gap.epochs.tolist(), gap.opened_at) == ([1, 2], None)
    with pytest.raises(UserError, match="`history`"):
        train_validation_gap(history([1.0], [None]))


# --- bias and variance


def test_decomposition_is_exact_and_matches_brute_force():
    rng = np.random.default_rng(0)
    predictions, y = rng.standard_normal((5, 4, 30)) + rng.standard_normal((5, 1, 30)), rng.standard_normal(30)
    found = bias_variance(predictions, y)
    np.testing.assert_allclose(found.error, found.bias_squared + found.variance_rows + found.variance_seeds, rtol=1e-12)
    rows = seeds = bias = 0.0
    for i in range(30):
        grand = sum(predictions[t, s, i] for t in range(5) for s in range(4)) / 20
        bias += (grand - y[i]) ** 2 / 30
        for t in range(5):
            of_set = sum(predictions[t, s, i] for s in range(4)) / 4
            rows += (of_set - grand) ** 2 / 150
            seeds += sum((predictions[t, s, i] - of_set) ** 2 for s in range(4)) / 600
    np.testing.assert_allclose(
        [found.bias_squared, found.variance_rows, found.variance_seeds], [bias, rows, seeds], rtol=1e-12
    )


def test_linear_regression_has_its_known_bias_and_variance():
    # least squares on a fixed design with k of the p columns: the variance at the design points is noise k / n on
    # average, the squared bias is what the other columns explain beside them
    rng = np.random.default_rng(1)
    n, noise, n_sets = 60, 0.5, 4000
    X = rng.standard_normal((n, 6))
    truth = X @ rng.standard_normal(6)
    hat = X[:, :4] @ np.linalg.pinv(X[:, :4])
    labels = truth + np.sqrt(noise) * rng.standard_normal((n_sets, n))
    predictions = (labels @ hat.T)[:, None]
    found = bias_variance(predictions, truth)
    # mean of n_sets values whose spread is about noise sqrt(2 k) / n: 4 standard errors
    np.testing.assert_allclose(found.variance, noise * 4 / n, atol=4 * noise * np.sqrt(8) / n / np.sqrt(n_sets))
    bias = np.square(truth - hat @ truth).mean()
    np.testing.assert_allclose(found.bias_squared_unbiased, bias, rtol=2e-3)
    # against fresh labels the noise counts as bias, until it is named
    fresh = truth + np.sqrt(noise) * rng.standard_normal(n)
    raw, freed = bias_variance(predictions, fresh), bias_variance(predictions, fresh, noise_variance=noise)
    np.testing.assert_allclose(freed.bias_squared_unbiased, raw.bias_squared_unbiased - noise)


@pytest.mark.parametrize("shape", [(5, 1), (1, 5), (5, 3)])
def test_unbiased_bias_has_the_right_mean(shape):
    # networks that are the truth + 1 + what the set adds (sd 2) + what the seed adds (sd 1)
    rng = np.random.default_rng(2)
    n = 200_000
    predictions = 1 + 2 * rng.standard_normal((shape[0], 1, n)) * (shape[0] > 1) + rng.standard_normal((*shape, n))
    found = bias_variance(predictions, np.zeros(n))
    np.testing.assert_allclose(found.bias_squared_unbiased, 1, atol=0.05)  # spread about 6 / sqrt(n)
    assert found.bias_squared > 1.1


def test_bootstrap_counts_are_blocks_of_timestamps():
    ds = make_data(100)
    rows = np.arange(10, 90)
    counts = np.stack([bootstrap_counts(ds, rows, 8, 0, number) for number in range(400)])
    assert set(counts.sum(axis=1)) == {80}
    edges = (np.diff(counts, axis=1) != 0).sum(axis=1)
    assert edges.max() <= 20  # ten blocks have twenty edges
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=4 * np.sqrt(1 / 400))
    assert (bootstrap_counts(ds, rows, 8, 0, 3) == counts[3]).all()
    single = np.stack([bootstrap_counts(ds, rows, 1, 0, number) for number in range(400)])
    np.testing.assert_allclose((single == 0).mean(), (1 - 1 / 80) ** 80, atol=0.01)


@pytest.mark.parametrize("window", [None, 4])
def test_repeated_rows_are_the_same_samples(window):
    ds = make_data(50, window=window)
    rows, counts = np.array([3, 7, 8]), np.array([2, 0, 3])
    larger, (taken,) = repeated(ds, rows, [counts])
    x, y = larger.gather(torch.as_tensor(taken))
    expected = ds.gather(torch.tensor([3, 8, 3, 8, 8]))
    assert torch.equal(x, expected[0])
    assert torch.equal(y, expected[1])
    assert len(set(taken)) == 5


def test_stack_of_seeds_and_bootstraps_is_what_members_alone_give():
    ds, network = make_data(), qfml.MLP(hidden=(8,))
    trainer = qfml.Trainer(max_epochs=3, batch_size=50)
    train, test = np.arange(200), np.arange(210, 300)
    found, fits = bias_variance_of(
        trainer, network, qfml.MSE(), ds, train, test, n_seeds=3, n_bootstraps=2, block=10, noise_variance=0.09
    )
    assert [[fit.seed for fit in own] for own in fits] == [[0, 1, 2], [0, 1, 2]]
    y = ds.y[210:].double().numpy()
    errors = [np.square(fit.predict(ds, test) - y).mean() for own in fits for fit in own]
    np.testing.assert_allclose(found.error, np.mean(errors), rtol=1e-12)
    assert found.variance_rows > 0
    # a member alone, on a plain data set that holds its rows as often as they were drawn
    counts = bootstrap_counts(ds, train, 10, 0, 1)
    larger, (taken,) = repeated(ds, train, [counts])
    alone = trainer.fit_many([qfml.Member(network, taken, seed=2)], qfml.MSE(), larger)[0]
    assert torch.equal(alone.parameters, fits[1][2].parameters)
    plain, _ = bias_variance_of(trainer, network, qfml.MSE(), ds, train, test, n_seeds=3)
    assert (plain.n_sets, plain.variance_rows) == (1, 0)
    with pytest.raises(UserError, match="`block`"):
        bias_variance_of(trainer, network, qfml.MSE(), ds, train, test, n_bootstraps=2)
    with pytest.raises(UserError, match="does not predict a mean"):
        bias_variance_of(trainer, network, qfml.MAE(), ds, train, test)


# --- uncertainty


def test_dropout_before_a_linear_head_has_its_known_mean_and_variance():
    # output = b + sum_j w_j h_j m_j / q with independent m_j ~ Bernoulli(q): mean b + w h, variance sum (w h)^2 (1-q)/q
    ds = make_data()
    network = qfml.MLP(hidden=(16,), dropout=0.25)
    (fit,) = trained(network, ds, qfml.MSE())
    p = fit.named_parameters()
    hidden = torch.relu(ds.features @ p["weight0"] + p["bias0"]).double().numpy()
    terms = hidden * p["head_weight"].double().numpy()
    mean, variance = terms.sum(1) + float(p["head_bias"]), np.square(terms).sum(1) / 3
    n_draws = 1000
    found = mc_dropout(fit, ds, n_draws=n_draws, seed=1)
    # one mask serves all rows, so that rows err together: 5 standard errors for the worst of them
    np.testing.assert_array_less(np.abs(found.mean - mean), 5 * np.sqrt(variance / n_draws) + 1e-6)
    np.testing.assert_allclose(found.epistemic, variance, rtol=5 * np.sqrt(2 / n_draws), atol=1e-9)
    np.testing.assert_allclose(found.std_error, np.sqrt(variance / n_draws), rtol=0.1)
    assert found.aleatoric is None
    with pytest.raises(UserError, match="`noise_variance`"):
        _ = found.total_std


def test_draws_depend_on_their_address_alone(monkeypatch):
    ds = make_data(window=5)
    (fit,) = trained(qfml.TCN(channels=(4,), kernel=3, dropout=0.25), ds, qfml.MSE(), epochs=1)
    draws = dropout_draws(fit, ds, n_draws=7, seed=3)
    assert draws.shape == (7, len(ds))
    assert len({tuple(draw) for draw in draws}) == 7
    some = np.array([5, 290, 17])
    np.testing.assert_array_equal(dropout_draws(fit, ds, some, n_draws=4, seed=3), draws[:4, some])
    monkeypatch.setattr("qfml.engine.overfitting.uncertainty._ELEMENTS", 1)  # draw by draw
    np.testing.assert_array_equal(dropout_draws(fit, ds, n_draws=7, seed=3), draws)
    assert (dropout_draws(fit, ds, n_draws=7, seed=4) != draws).any()


def test_ensemble_is_mean_and_spread_of_its_members():
    ds = make_data()
    fits = trained(qfml.MLP(hidden=(8,)), ds, qfml.MSE(), seeds=range(5))
    noise = np.linspace(0.1, 0.2, 50)
    rows = np.arange(250, 300)
    found = ensemble(fits, ds, rows, noise_variance=noise)
    each = np.stack([fit.predict(ds, rows) for fit in fits])
    np.testing.assert_allclose(found.mean, each.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.std, each.std(0, ddof=1), rtol=1e-12)
    np.testing.assert_allclose(found.total_std**2, each.var(0, ddof=1) + noise, rtol=1e-12)


def test_total_variance_of_a_mixture():
    # labels drawn from each member's own normal law have, pooled, the variance of the law of total variance
    rng = np.random.default_rng(0)
    means, variances = rng.standard_normal((6, 2)), rng.uniform(0.5, 2.0, (6, 2))
    pooled = (means[:, None] + np.sqrt(variances)[:, None] * rng.standard_normal((6, 200_000, 2))).reshape(-1, 2)
    found = total_variance(means, variances)
    np.testing.assert_allclose(found.epistemic * 5 / 6 + found.aleatoric, pooled.var(0), rtol=0.01)


@pytest.mark.parametrize("several", [False, True])
def test_a_probability_brings_its_own_variance(several):
    # of an indicator: p (1 - p) in all, whatever the draws, with the draws' variance over D
    ds = make_data(binary=True)
    loss = qfml.losses.CrossEntropy(n_classes=2) if several else qfml.BCE()
    (fit,) = trained(qfml.MLP(hidden=(16,), dropout=0.5), ds, loss)
    found = mc_dropout(fit, ds, n_draws=50)
    assert found.mean.shape == ((300, 2) if several else (300,))
    total = found.epistemic * 49 / 50 + found.aleatoric
    np.testing.assert_allclose(total, found.mean * (1 - found.mean), rtol=1e-9)


def test_what_cannot_be_answered_is_refused():
    ds = make_data()
    (fit,) = trained(qfml.MLP(hidden=(8,)), ds, qfml.MSE(), epochs=1)
    (other,) = trained(qfml.MLP(hidden=(8,)), ds, qfml.MAE(), epochs=1)
    (dropping,) = trained(qfml.MLP(hidden=(8,), dropout=0.25), ds, qfml.MSE(), epochs=1)
    assert mc_dropout(dropping, ds, np.array([], dtype=np.int64), n_draws=3).mean.shape == (0,)
    with pytest.raises(UserError, match="without dropout"):
        mc_dropout(fit, ds)
    with pytest.raises(UserError, match="`n_draws` must be a whole number, at least 2, got True"):
        mc_dropout(dropping, ds, n_draws=True)
    with pytest.raises(UserError, match="`fits` must be two or more"):
        ensemble([fit], ds)
    with pytest.raises(UserError, match="different losses"):
        ensemble([fit, other], ds)
    with pytest.raises(UserError, match="predictions of a mean"):
        ensemble([other, other], ds, noise_variance=1.0)
    for wrong in (-1.0, np.ones(3)):
        with pytest.raises(UserError, match="one for each of 300 rows"):
            ensemble([fit, fit], ds, noise_variance=wrong)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_seeds": 0}, "`n_seeds` must be a whole number, at least 1, got 0"),
        ({"n_bootstraps": 0}, "`n_bootstraps` must be a whole number"),
        ({"n_seeds": 1}, "a single network has no variance"),
        ({"block": 5}, "`block` is of the bootstrap"),
        ({"n_bootstraps": 2, "block": 100}, "at least 1 and fewer than the 100 of the training rows, got 100"),
        ({"n_bootstraps": 2, "block": 0}, "at least 1 and fewer than"),
        ({"train": np.arange(150)}, "`test` shares 40 rows with `train`"),
        ({"train": np.arange(300) < 100}, "`train` must be a non-empty 1-D array of distinct row ids, got bool"),
        ({"train": np.array([3, 3, 4])}, "`train` must be .*distinct"),
        ({"test": np.array([], dtype=np.int64)}, "`test` must be a non-empty"),
        ({"test": np.arange(290, 310)}, "`test` must hold row ids from 0 to 299, got 290 to 309"),
        ({"target": np.zeros(5)}, "`target` must be 90 finite numbers"),
        ({"target": np.full(90, np.nan)}, "`target` must be 90 finite numbers"),
        ({"noise_variance": -1.0}, "`noise_variance` must be >= 0"),
    ],
)
def test_inputs_that_have_no_decomposition_are_refused_before_training(settings, message):
    given = {"train": np.arange(100), "test": np.arange(110, 200)} | settings
    trainer = qfml.Trainer(max_epochs=10**9, batch_size=50)  # it would never end
    with pytest.raises(UserError, match=message):
        bias_variance_of(trainer, qfml.MLP(hidden=(8,)), qfml.MSE(), make_data(), **given)


def test_networks_that_diverged_have_no_error_to_take_apart():
    trainer = qfml.Trainer(max_epochs=20, batch_size=50, optimizer=qfml.SGD(lr=1e8))
    with pytest.raises(UserError, match=r"2 of 2 networks diverged.*seed 0 on training set 0 at step"):
        bias_variance_of(
            trainer, qfml.MLP(hidden=(8,)), qfml.MSE(), make_data(), np.arange(100), np.arange(110, 200), n_seeds=2
        )
