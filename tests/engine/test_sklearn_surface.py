"""The estimators against the trainer called by hand, and inside scikit-learn's own machinery."""

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict
from sklearn.multioutput import MultiOutputRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

import qfml
from qfml.data import TimeDataset
from qfml.engine import Member, NeuralClassifier, NeuralRegressor
from qfml.losses import CrossEntropy, Quantiles
from qfml.networks import Module
from qfml.splits import PurgedKFold, WalkForward, validation_tail
from qfml.splits import cross_val_predict as averaged_cross_val_predict

NETWORK = qfml.MLP(hidden=(16,))
TRAINER = qfml.Trainer(max_epochs=4, batch_size=32, optimizer=qfml.AdamW(lr=0.03), seed=3)
N = 160


def own_module():
    return torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, 4))
    y = X[:, 0] - 0.5 * X[:, 1] + 0.3 * rng.normal(size=N)
    day = np.arange("2020-01-01", "2020-06-09", dtype="datetime64[D]")[:N]
    return X, y, day, day + 7


def parameters(model):
    return np.stack([fit.parameters.numpy() for fit in model.fits_])


def test_plain_fit_is_the_trainers_to_the_last_bit(data):
    X, y, _, _ = data
    model = NeuralRegressor(NETWORK, qfml.Huber(delta=0.5), TRAINER).fit(X, y)
    ds = TimeDataset(X, y, time=np.arange(N), label_end=np.arange(N))
    by_hand = TRAINER.fit(NETWORK, qfml.Huber(delta=0.5), ds, train=np.arange(N))
    assert np.array_equal(model.fits_[0].parameters.numpy(), by_hand.parameters.numpy())
    assert model.fits_[0].history == by_hand.history
    assert np.array_equal(model.predict(X), by_hand.predict(ds))


def test_times_weights_validation_and_seeds_reach_the_trainer(data):
    X, y, day, end = data
    weight = np.linspace(0.1, 2.0, N)
    trainer = qfml.Trainer(max_epochs=30, batch_size=32, optimizer=qfml.AdamW(lr=0.05), patience=2)
    model = NeuralRegressor(NETWORK, None, trainer, validation=0.25, embargo="3D", n_seeds=3, random_state=11)
    model.fit(X, y, weight, time=day, label_end=end, window_start=day - 2)
    ds = TimeDataset(X, y, time=day, label_end=end, window_start=day - 2, weight=weight)
    fold = validation_tail(ds, np.arange(N), 0.25, embargo="3D")
    assert len(fold.purged) == 6
    assert len(fold.embargoed) == 3
    members = [Member(NETWORK, fold.train, fold.test, seed=seed) for seed in range(3)]
    seeded = qfml.Trainer(max_epochs=30, batch_size=32, optimizer=qfml.AdamW(lr=0.05), patience=2, seed=11)
    by_hand = seeded.fit_many(members, qfml.MSE(), ds)
    assert np.array_equal(parameters(model), np.stack([fit.parameters.numpy() for fit in by_hand]))
    assert {fit.status for fit in model.fits_} == {"early_stopped"}
    each = np.stack([fit.predict(ds) for fit in by_hand])
    mean, std = model.predict(X, return_std=True)
    assert np.array_equal(mean, model.predict(X))
    np.testing.assert_allclose(mean, each.mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, np.sqrt(((each - each.mean(0)) ** 2).sum(0) / 2), rtol=1e-9)


def test_each_seed_of_an_ensemble_equals_its_own_training(data):
    X, y, _, _ = data
    stack = NeuralRegressor(NETWORK, trainer=TRAINER, n_seeds=4).fit(X, y)
    alone = NeuralRegressor(NETWORK, trainer=TRAINER).fit(X, y)
    assert np.array_equal(parameters(stack)[0], parameters(alone)[0])
    assert len(np.unique(parameters(stack), axis=0)) == 4


def test_look_back_purges_only_when_asked(data):
    X, y, day, _ = data
    times = {"time": day, "label_end": day, "window_start": day - 5}
    trained = {}
    for purge in (False, True):
        model = NeuralRegressor(NETWORK, trainer=TRAINER, validation=0.25, purge_lookback=purge).fit(X, y, **times)
        ds = TimeDataset(X, y, **times)
        fold = validation_tail(ds, np.arange(N), 0.25, purge_lookback=purge)
        by_hand = TRAINER.fit(NETWORK, qfml.MSE(), ds, train=fold.train, val=fold.test)
        trained[purge] = parameters(model)[0]
        assert np.array_equal(trained[purge], by_hand.parameters.numpy())
    assert not np.array_equal(trained[False], trained[True])


def test_classifier_is_the_trainers_with_labels_0_and_1(data):
    X, y, _, _ = data
    names = np.where(y > 0, "up", "down")
    model = NeuralClassifier(NETWORK, trainer=TRAINER, n_seeds=2).fit(X, names)
    ds = TimeDataset(X, y > 0, time=np.arange(N), label_end=np.arange(N))
    by_hand = TRAINER.fit_many([Member(NETWORK, np.arange(N), seed=s) for s in range(2)], qfml.BCE(), ds)
    probability = np.mean([fit.predict(ds) for fit in by_hand], axis=0)
    proba, std = model.predict_proba(X, return_std=True)
    assert model.classes_.tolist() == ["down", "up"]
    np.testing.assert_allclose(proba, np.stack([1 - probability, probability], axis=1), rtol=1e-12)
    assert np.array_equal(model.predict(X), np.where(probability > 0.5, "up", "down"))
    assert std.shape == (N, 2)
    np.testing.assert_allclose(std[:, 0], std[:, 1], rtol=1e-9)
    assert model.score(X, names) > 0.8


def test_windows_go_to_networks_that_want_them(data):
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(96, 5, 3)), rng.normal(size=96)
    network = qfml.TCN(channels=(8,), kernel=3)
    model = NeuralRegressor(network, trainer=TRAINER).fit(X, y)
    rows = np.arange(96)
    ds = TimeDataset(X, y, time=rows, label_end=rows, window_start=rows)
    by_hand = TRAINER.fit(network, qfml.MSE(), ds, train=rows)
    assert np.array_equal(model.predict(X[:7]), by_hand.predict(ds, rows[:7]))
    with pytest.raises(ValueError, match=r"samples of shape \(5, 2\), but the networks know \(5, 3\)"):
        model.predict(X[:, :, :2])


def test_pickle_and_clone(data):
    X, y, _, _ = data
    model = NeuralRegressor(NETWORK, trainer=TRAINER, n_seeds=2, validation=0.2).set_output(transform="pandas")
    model.fit(pd.DataFrame(X, columns=list("abcd")), y)
    frame = pd.DataFrame(X, columns=list("abcd"))
    again = pickle.loads(pickle.dumps(model))  # noqa: S301
    assert np.array_equal(parameters(again), parameters(model))
    pd.testing.assert_series_equal(again.predict(frame), model.predict(frame), check_exact=True)
    assert again.feature_names_in_.tolist() == list("abcd")
    fresh = clone(model)
    assert fresh.get_params() == model.get_params()
    assert not hasattr(fresh, "fits_")
    assert isinstance(fresh.fit(frame, y).predict(frame), pd.Series)
    assert np.array_equal(parameters(fresh), parameters(model))


def test_pandas_output_carries_the_index_and_the_classes(data):
    X, y, day, _ = data
    frame = pd.DataFrame(X, columns=list("abcd"), index=day)
    model = NeuralRegressor(NETWORK, trainer=TRAINER, n_seeds=2).fit(frame, y)
    plain = model.predict(frame, return_std=True)
    assert all(type(values) is np.ndarray for values in plain)
    for values, expected in zip(model.set_output(transform="pandas").predict(frame, return_std=True), plain):
        assert values.index.equals(frame.index)
        assert np.array_equal(values.to_numpy(), expected)
    assert type(model.set_output(transform="default").predict(frame)) is np.ndarray
    classifier = NeuralClassifier(NETWORK, trainer=TRAINER).set_output(transform="pandas")
    proba = classifier.fit(frame, np.where(y > 0, "up", "down")).predict_proba(frame)
    assert proba.columns.tolist() == ["down", "up"]
    assert (proba.idxmax(axis=1) == classifier.predict(frame)).all()
    with pytest.raises(ValueError, match="`transform` must be"):
        model.set_output(transform="arrow")


def test_frames_of_a_pipeline_name_the_features(data):
    X, y, _, _ = data
    pipe = make_pipeline(StandardScaler(), NeuralRegressor(NETWORK, trainer=TRAINER)).set_output(transform="pandas")
    pipe.fit(pd.DataFrame(X, columns=list("abcd")), y)
    assert pipe[-1].feature_names_in_.tolist() == list("abcd")


def test_nested_parameters_rebuild_what_is_frozen():
    model = NeuralRegressor()
    deep = model.get_params()
    assert (deep["trainer"], deep["trainer__max_epochs"], deep["network__hidden"]) == (None, 100, (32, 32))
    model.set_params(trainer__max_epochs=5, trainer__optimizer__lr=0.1, network__hidden=(64,), n_seeds=2)
    assert model.trainer == qfml.Trainer(max_epochs=5, batch_size=32, optimizer=qfml.AdamW(lr=0.1))
    assert model.network == qfml.MLP(hidden=(64,))
    assert model.get_params()["trainer__optimizer__lr"] == 0.1
    model.set_params(trainer=TRAINER, trainer__optimizer=qfml.SGD(lr=0.5), trainer__optimizer__momentum=0.9)
    assert model.trainer.optimizer == qfml.SGD(lr=0.5, momentum=0.9)
    assert TRAINER.optimizer == qfml.AdamW(lr=0.03)
    # both change at once: either alone is a trainer that does not exist
    model.set_params(trainer__batch_size=None, trainer__optimizer=qfml.LBFGS())
    assert model.trainer.batch_size is None
    for wrong in ("trainer__max_epoch", "trainer__optimizer__learning_rate", "n_seeds__x", "nothing"):
        with pytest.raises(ValueError, match=r"has no|Invalid parameter"):
            model.set_params(**{wrong: 1})


def test_grid_search_over_the_learning_rate_finds_what_by_hand_is_best(data):
    X, y, _, _ = data
    pipe = Pipeline([("scale", StandardScaler()), ("net", NeuralRegressor(NETWORK, trainer=TRAINER))])
    rates = [1e-5, 1e-2]
    search = GridSearchCV(pipe, {"net__trainer__optimizer__lr": rates}, cv=KFold(2)).fit(X, y)
    assert search.best_params_ == {"net__trainer__optimizer__lr": 1e-2}
    for rate, score in zip(rates, search.cv_results_["split0_test_score"]):
        train, test = next(KFold(2).split(X))
        own = clone(pipe).set_params(net__trainer__optimizer__lr=rate).fit(X[train], y[train])
        assert own.score(X[test], y[test]) == score


@pytest.mark.parametrize("estimator", [NeuralRegressor, NeuralClassifier])
def test_times_are_routed_to_estimator_and_splitter(data, estimator):
    X, y, day, end = data
    y = y if estimator is NeuralRegressor else (y > 0).astype(int)
    cv = PurgedKFold(3)
    with sklearn.config_context(enable_metadata_routing=True):
        model = estimator(NETWORK, trainer=TRAINER, validation=0.2)
        model.set_fit_request(time=True, label_end=True)
        grid = {"net__trainer__max_epochs": [2, 4]}
        search = GridSearchCV(Pipeline([("scale", StandardScaler()), ("net", model)]), grid, cv=cv)
        search.fit(X, y, time=day, label_end=end)
        predicted = cross_val_predict(model, X, y, cv=cv, params={"time": day, "label_end": end})
    best = search.best_estimator_
    by_hand = clone(model).set_params(trainer__max_epochs=best[-1].trainer.max_epochs)
    by_hand.fit(best[0].transform(X), y, time=day, label_end=end)
    assert np.array_equal(parameters(best[-1]), parameters(by_hand))
    untimed = clone(by_hand).fit(best[0].transform(X), y)  # nothing purged, so more rows
    assert not np.array_equal(parameters(untimed), parameters(by_hand))
    for train, test in cv.split(time=day, label_end=end):
        own = clone(model).fit(X[train], y[train], time=day[train], label_end=end[train])
        assert np.array_equal(predicted[test], own.predict(X[test]))


def test_averaged_cross_val_predict_of_a_walk_forward(data):
    X, y, day, end = data
    model = NeuralRegressor(NETWORK, trainer=TRAINER, validation=0.2)
    times = {"time": day, "label_end": end}
    predicted = averaged_cross_val_predict(model, X, y, cv=WalkForward(80, 40), fit_params=times, **times)
    assert np.isnan(predicted).sum() == 80
    for train, test in WalkForward(80, 40).split(**times):
        own = clone(model).fit(X[train], y[train], time=day[train], label_end=end[train])
        assert np.array_equal(predicted[test], own.predict(X[test]))


def test_a_panel_needs_its_groups(data):
    X, y, day, end = data
    half = {"time": np.repeat(day[: N // 2], 2), "label_end": np.repeat(end[: N // 2], 2)}
    model = NeuralRegressor(NETWORK, trainer=TRAINER, validation=0.2)
    with pytest.raises(ValueError, match="share the same"):
        model.fit(X, y, **half)
    model.fit(X, y, **half, group=np.tile(["A", "B"], N // 2))
    assert model.fits_[0].best_val_loss is not None


def test_random_state_replaces_the_trainers_seed(data):
    X, y, _, _ = data

    def fitted(seed, random_state):
        trainer = qfml.Trainer(max_epochs=2, batch_size=32, seed=seed)
        return parameters(NeuralRegressor(NETWORK, trainer=trainer, random_state=random_state).fit(X, y))

    assert np.array_equal(fitted(3, None), fitted(0, 3))
    assert not np.array_equal(fitted(3, None), fitted(3, 4))
    drawn = int(np.random.RandomState(0).randint(2**31 - 1))
    assert np.array_equal(fitted(0, np.random.RandomState(0)), fitted(0, drawn))


def test_a_training_that_diverged_warns(data):
    X, y, _, _ = data
    trainer = qfml.Trainer(max_epochs=40, batch_size=32, optimizer=qfml.SGD(lr=1e6))
    with pytest.warns(ConvergenceWarning, match=r"seeds \[0, 1\] met a NaN"):
        NeuralRegressor(NETWORK, trainer=trainer, n_seeds=2).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NeuralRegressor(NETWORK, trainer=TRAINER).fit(X, y)


@pytest.mark.parametrize(
    ("settings", "fit", "message"),
    [
        ({"n_seeds": 0}, {}, "`n_seeds` must be a whole number, at least 1, got 0"),
        ({"network": "mlp"}, {}, "`network` must be one such as MLP"),
        ({"trainer": qfml.MLP()}, {}, "`trainer` must be one such as Trainer"),
        ({"loss": qfml.MSE}, {}, "`loss` must be one such as MSE"),
        ({"loss": qfml.BCE()}, {}, r"needs labels in \[0, 1\]"),
        ({"embargo": "5D"}, {}, "`embargo` acts between training and validation rows"),
        ({"purge_lookback": True}, {}, "`purge_lookback` acts between training and validation rows"),
        ({"trainer__patience": 3}, {}, "waits for `val_loss`, but there are no validation rows"),
        ({"trainer__monitor": "val_mae", "trainer__metrics": ("mae",)}, {}, "waits for `val_mae`"),
        ({"validation": 1.0}, {}, "`validation` cannot be kept back: .* got 1.0"),
        ({}, {"time": np.arange(N)}, "only `time` was passed"),
        ({}, {"label_end": np.arange(N)}, "only `label_end` was passed"),
        ({}, {"sample_weight": -np.ones(N)}, "`sample_weight` must be finite and >= 0, got -1.0 in row 0"),
        ({"validation": 0.5}, {"sample_weight": np.arange(N) < N / 2}, "zero on all 80 validation rows"),
        ({"validation": 0.5}, {"sample_weight": np.arange(N) >= N / 2}, "zero on all 80 training rows"),
    ],
)
def test_what_does_not_fit_is_refused(data, settings, fit, message):
    X, y, _, _ = data
    with pytest.raises(ValueError, match=message):
        NeuralRegressor().set_params(**settings).fit(X, y, **fit)


def test_one_seed_has_no_spread(data):
    X, y, _, _ = data
    model = NeuralRegressor(NETWORK, trainer=TRAINER).fit(X, y)
    with pytest.raises(ValueError, match="set `n_seeds` to at least 2"):
        model.predict(X, return_std=True)


def test_three_classes_are_the_cross_entropy_of_their_places(data):
    X, _, _, _ = data
    names = np.array(["flat", "rise", "fall"])[np.digitize(X[:, 0], [-0.4, 0.4])]
    trainer = qfml.Trainer(max_epochs=12, batch_size=32, optimizer=qfml.AdamW(lr=0.03))
    model = NeuralClassifier(NETWORK, trainer=trainer, n_seeds=2).fit(X, names)
    codes = np.searchsorted(["fall", "flat", "rise"], names)
    ds = TimeDataset(X, codes, time=np.arange(N), label_end=np.arange(N))
    members = [Member(NETWORK, np.arange(N), seed=seed) for seed in range(2)]
    by_hand = trainer.fit_many(members, CrossEntropy(n_classes=3), ds)
    assert np.array_equal(parameters(model), np.stack([fit.parameters.numpy() for fit in by_hand]))
    proba, std = model.predict_proba(X, return_std=True)
    each = np.stack([fit.predict(ds) for fit in by_hand])
    np.testing.assert_allclose(proba, (each / each.sum(axis=2, keepdims=True)).mean(0), rtol=1e-12)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-15 * 3)  # which single precision would not reach
    assert log_loss(names, proba) == pytest.approx(-np.log(proba[np.arange(N), codes]).mean())
    assert proba.shape == std.shape == (N, 3)
    assert model.predict(X).tolist() == [["fall", "flat", "rise"][place] for place in proba.argmax(1)]
    assert model.score(X, names) > 0.85
    frame = clone(model).set_output(transform="pandas").fit(X, names).predict_proba(X)
    assert frame.columns.tolist() == ["fall", "flat", "rise"]


def test_two_classes_under_the_cross_entropy_agree_with_the_binary_loss(data):
    X, y, _, _ = data
    trainer = qfml.Trainer(max_epochs=20, batch_size=32, optimizer=qfml.AdamW(lr=0.03))
    binary = NeuralClassifier(NETWORK, trainer=trainer).fit(X, y > 0)
    two = NeuralClassifier(NETWORK, CrossEntropy(n_classes=2), trainer).fit(X, y > 0)
    assert two.predict_proba(X).shape == (N, 2)
    assert (two.predict(X) == binary.predict(X)).mean() > 0.95


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (qfml.BCE(), r"is for 2 classes, but `y` holds 3: take CrossEntropy\(n_classes=3\)"),
        (CrossEntropy(n_classes=4), "is for 4 classes, but `y` holds 3"),
        (qfml.MSE(), r"`loss` must be one such as BCE\(\)"),
    ],
)
def test_a_loss_of_other_classes_is_refused(data, loss, message):
    X, _, _, _ = data
    with pytest.raises(ValueError, match=message):
        NeuralClassifier(NETWORK, loss, TRAINER).fit(X, np.arange(N) % 3)


def test_quantiles_have_a_column_a_level(data):
    X, y, _, _ = data
    model = NeuralRegressor(NETWORK, Quantiles(levels=(0.1, 0.5, 0.9)), TRAINER, n_seeds=2).fit(X, y)
    mean, std = model.predict(X, return_std=True)
    assert mean.shape == std.shape == (N, 3)
    assert (np.diff(mean, axis=1) >= 0).all()
    ds = TimeDataset(X, y, time=np.arange(N), label_end=np.arange(N))
    np.testing.assert_allclose(mean, np.mean([fit.predict(ds) for fit in model.fits_], axis=0), rtol=1e-12)
    assert model.set_output(transform="pandas").predict(X).columns.tolist() == [0.1, 0.5, 0.9]
    with pytest.raises(ValueError, match="use NeuralClassifier"):
        NeuralRegressor(NETWORK, CrossEntropy(n_classes=3), TRAINER).fit(X, np.arange(N) % 3)


def test_classes_that_have_no_order_are_refused(data):
    X, y, _, _ = data
    with pytest.raises(ValueError, match="classes of one kind, none of them missing"):
        NeuralClassifier(NETWORK, trainer=TRAINER).fit(X, np.where(y > 1, None, "up"))


def test_labels_of_several_columns_take_a_network_each(data):
    X, y, _, _ = data
    both = np.stack([y, -2 * X[:, 2]], axis=1)
    model = NeuralRegressor(NETWORK, trainer=TRAINER)
    with pytest.raises(ValueError, match=r"got shape \(160, 2\): train a network for each column"):
        model.fit(X, both)
    predicted = MultiOutputRegressor(model).fit(X, both).predict(X)
    for column in range(2):
        assert np.array_equal(predicted[:, column], clone(model).fit(X, both[:, column]).predict(X))


def test_a_module_of_ones_own(data):
    X, y, _, _ = data
    model = NeuralRegressor(own_module, trainer=TRAINER).fit(X, y)
    ds = TimeDataset(X, y, time=np.arange(N), label_end=np.arange(N))
    by_hand = TRAINER.fit(Module(own_module), qfml.MSE(), ds, train=np.arange(N))
    assert np.array_equal(model.predict(X), by_hand.predict(ds))
    again = pickle.loads(pickle.dumps(clone(model).fit(X, y)))  # noqa: S301
    assert np.array_equal(again.predict(X), model.predict(X))
