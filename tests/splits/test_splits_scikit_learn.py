"""The splitters as scikit-learn's `cv=`: plain, nested, cloned, and with times from each of the three places."""

import copy
import pickle
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import get_scorer
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from qfml.data import TimeDataset
from qfml.errors import SplitError
from qfml.splits import CombinatorialPurgedKFold, PurgedKFold, WalkForward, cross_val_predict

N = 60
DAYS = pd.date_range("2024-01-01", periods=N, freq="D")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 3))
Y = X @ [1.0, -1.0, 0.5] + RNG.normal(size=N)
FRAME = pd.DataFrame(X, index=DAYS, columns=list("abc"))
SPLITTERS = [
    PurgedKFold(4, embargo=2, label_horizon="3D"),
    CombinatorialPurgedKFold(4, 2, label_horizon=3),
    WalkForward("20D", "10D", label_horizon="3D"),
]
ids = [type(splitter).__name__ for splitter in SPLITTERS]


@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


def scores_by_hand(splitter, data):
    scorer = get_scorer("r2")
    scores = []
    for train, test in splitter.split(data):
        scores.append(scorer(Ridge().fit(X[train], Y[train]), X[test], Y[test]))
    return scores


@pytest.mark.parametrize("splitter", SPLITTERS, ids=ids)
def test_cross_val_score_takes_times_from_the_index(splitter):
    scores = cross_val_score(Ridge(), FRAME, Y, cv=splitter)
    assert scores.tolist() == pytest.approx(scores_by_hand(splitter, FRAME), rel=1e-12)


@pytest.mark.parametrize("splitter", SPLITTERS, ids=ids)
def test_cross_val_score_takes_times_by_metadata_routing(splitter, routing):
    times = {"time": DAYS.to_numpy(), "label_end": DAYS.to_numpy() + np.timedelta64(3, "D")}
    # without a horizon of its own, as the label ends are routed
    bare = type(splitter)(**(splitter.get_params() | {"label_horizon": None}))
    scores = cross_val_score(Ridge(), X, Y, cv=bare, params=times)
    assert scores.tolist() == pytest.approx(scores_by_hand(bare, SimpleNamespace(**times)), rel=1e-12)


def test_routing_passes_window_start_to_the_purge(routing):
    time = np.arange(N)
    routed = {"time": time, "label_end": time + 1, "window_start": time - 5}
    splitter = PurgedKFold(4, purge_lookback=True)
    result = cross_validate(Ridge(), X, Y, cv=splitter, params=routed, return_indices=True)
    for found, (train, _) in zip(result["indices"]["train"], splitter.split(SimpleNamespace(**routed))):
        assert found.tolist() == train.tolist()


def test_times_from_a_time_dataset():
    ds = TimeDataset(X, Y, time=DAYS.to_numpy(), label_end=DAYS.to_numpy() + np.timedelta64(3, "D"))
    for splitter in (PurgedKFold(4), CombinatorialPurgedKFold(4, 2), WalkForward("20D", "10D")):
        pairs = list(splitter.split(ds))
        assert len(pairs) == splitter.get_n_splits(ds)
        by_hand = scores_by_hand(splitter, ds)
        assert cross_val_score(Ridge(), X, Y, cv=pairs).tolist() == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("inner", SPLITTERS[:2], ids=ids[:2])
def test_nested_grid_search_purges_inside_the_outer_fold(inner):
    outer = PurgedKFold(3, label_horizon="3D")
    search = GridSearchCV(make_pipeline(StandardScaler(), Ridge()), {"ridge__alpha": [0.1, 10.0]}, cv=inner)
    scores = cross_val_score(search, FRAME, Y, cv=outer)
    by_hand = []
    for train, test in outer.split(FRAME):
        part = FRAME.iloc[train]
        mean_scores = []
        for alpha in (0.1, 10.0):
            model = make_pipeline(StandardScaler(), Ridge(alpha))
            mean_scores.append(np.mean(cross_val_score(model, part, Y[train], cv=list(inner.split(part)))))
        best = make_pipeline(StandardScaler(), Ridge((0.1, 10.0)[int(np.argmax(mean_scores))]))
        by_hand.append(best.fit(part, Y[train]).score(FRAME.iloc[test], Y[test]))
    assert scores.tolist() == pytest.approx(by_hand, rel=1e-12)


def test_nested_grid_search_with_routed_times(routing):
    time = np.arange(N)
    routed = {"time": time, "label_end": time + 3}
    search = GridSearchCV(Ridge(), {"alpha": [0.1, 10.0]}, cv=PurgedKFold(3))
    by_routing = cross_val_score(search, X, Y, cv=PurgedKFold(4), params=routed)
    with sklearn.config_context(enable_metadata_routing=False):
        framed = GridSearchCV(Ridge(), {"alpha": [0.1, 10.0]}, cv=PurgedKFold(3, label_horizon="3D"))
        by_index = cross_val_score(framed, FRAME, Y, cv=PurgedKFold(4, label_horizon="3D"))
    assert by_routing.tolist() == pytest.approx(by_index.tolist(), rel=1e-12)


def test_array_without_time_is_refused_inside_scikit_learn():
    with pytest.raises(SplitError, match="no times to split by"):
        cross_val_score(Ridge(), X, Y, cv=PurgedKFold(3))


@pytest.mark.parametrize("splitter", SPLITTERS, ids=ids)
def test_splitters_clone_copy_and_pickle(splitter):
    for copied in (clone(splitter), copy.deepcopy(splitter), pickle.loads(pickle.dumps(splitter))):  # noqa: S301  (ours)
        assert copied == splitter
        assert hash(copied) == hash(splitter)
    search = clone(GridSearchCV(Ridge(), {"alpha": [1.0]}, cv=splitter))
    assert search.cv == splitter


def test_panel_frame_keeps_the_assets_of_a_day_together():
    index = pd.MultiIndex.from_product([["AAPL", "MSFT"], DAYS], names=["asset", "date"])
    frame = pd.DataFrame({"x": np.zeros(2 * N)}, index=index)
    for train, test in PurgedKFold(4, label_horizon="3D").split(frame):
        days = index.get_level_values("date")
        assert not set(days[train]) & set(days[test])
        assert len(set(days[test])) == 15


# --- cross_val_predict ---------------------------------------------------------------------------------------------


def test_cross_val_predict_averages_the_appearances():
    splitter = CombinatorialPurgedKFold(4, 2, label_horizon="3D")
    made = np.full((splitter.get_n_splits(), N), np.nan)
    for split, (train, test) in enumerate(splitter.split(FRAME)):
        made[split, test] = Ridge().fit(FRAME.iloc[train], Y[train]).predict(FRAME.iloc[test])
    assert (np.isfinite(made).sum(axis=0) == splitter.n_paths).all()
    predicted = cross_val_predict(Ridge(), FRAME, Y, cv=splitter)
    assert predicted == pytest.approx(np.nanmean(made, axis=0), rel=1e-12)


def test_cross_val_predict_equals_scikit_learn_on_a_partition():
    splitter = PurgedKFold(4, label_horizon="3D")
    theirs = sklearn.model_selection.cross_val_predict(Ridge(), FRAME, Y, cv=splitter)
    assert cross_val_predict(Ridge(), FRAME, Y, cv=splitter) == pytest.approx(theirs, rel=1e-12)
    kfold = KFold(4)
    theirs = sklearn.model_selection.cross_val_predict(Ridge(), X, Y, cv=kfold)
    assert cross_val_predict(Ridge(), X, Y, cv=kfold.split(X)) == pytest.approx(theirs, rel=1e-12)


def test_cross_val_predict_leaves_what_is_never_tested_nan():
    time = np.arange(N)
    predicted = cross_val_predict(Ridge(), X, Y, cv=WalkForward(20, 10), time=time, label_end=time + 1)
    assert np.isnan(predicted[:20]).all()
    assert np.isfinite(predicted[20:]).all()


def test_cross_val_predict_probabilities_cover_classes_a_fold_does_not_know():
    classes = np.array(["down", "flat", "up"])[np.r_[np.zeros(20, int), np.arange(20) % 2, np.full(20, 2)]]
    time = np.arange(N)
    arguments = {"cv": WalkForward(40, 20), "time": time, "label_end": time + 1}
    predicted = cross_val_predict(LogisticRegression(), X, classes, method="predict_proba", **arguments)
    model = LogisticRegression().fit(X[:40], classes[:40])
    assert predicted[40:, :2] == pytest.approx(model.predict_proba(X[40:]), rel=1e-12)
    assert (predicted[40:, 2] == 0).all()
    with pytest.raises(SplitError, match=r"no sample of the classes \['up'\]"):
        cross_val_predict(LogisticRegression(), X, classes, method="decision_function", **arguments)


def test_cross_val_predict_cuts_sample_weights_with_the_rows():
    splitter = PurgedKFold(3, label_horizon="3D")
    weight = np.arange(1.0, N + 1)
    by_hand = np.empty(N)
    for train, test in splitter.split(FRAME):
        by_hand[test] = Ridge().fit(X[train], Y[train], sample_weight=weight[train]).predict(X[test])
    found = cross_val_predict(Ridge(), FRAME, Y, cv=splitter, fit_params={"sample_weight": weight})
    assert found == pytest.approx(by_hand, rel=1e-12)


def test_cross_val_predict_refuses_to_average_classes():
    with pytest.raises(SplitError, match="predicted classes have no average"):
        cross_val_predict(LogisticRegression(), FRAME, Y > 0, cv=PurgedKFold(3, label_horizon=1))
    with pytest.raises(SplitError, match="are for a splitter"):
        cross_val_predict(Ridge(), X, Y, cv=KFold(3).split(X), time=np.arange(N))
