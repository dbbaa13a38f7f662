"""The transforms against scikit-learn and scipy, and the property that only training rows are ever learnt from."""

import numpy as np
import pytest
import scipy.stats
import sklearn.decomposition
import sklearn.preprocessing
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.kernel_approximation import Nystroem
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from qfml.config import build_kind, config_hash, to_dict
from qfml.data.transforms import (
    TRANSFORMS,
    QuantileNormal,
    RobustScale,
    Sklearn,
    Standardise,
    Winsorise,
    fit_transforms,
)
from qfml.errors import ConfigError, DataError


def training_rows(n=500, n_features=4, seed=0):
    draws = np.random.default_rng(seed).standard_t(4, (n, n_features)) * [1e-3, 1.0, 50.0, 1.0] + [0, 5, -100, 0]
    draws[:, 3] = np.round(draws[:, 3])  # many ties
    return torch.from_numpy(draws).float()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Standardise(), sklearn.preprocessing.StandardScaler()),
        (RobustScale(), sklearn.preprocessing.RobustScaler()),
        (RobustScale(0.1, 0.8), sklearn.preprocessing.RobustScaler(quantile_range=(10, 80))),
    ],
)
def test_scaling_agrees_with_scikit_learn(ours, theirs):
    train, new = training_rows(), training_rows(seed=1)
    expected = theirs.fit(train.double().numpy()).transform(new.double().numpy())
    got = ours.fit(train).apply(new)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-5)  # -100 / 50 cancels a digit


def test_statistics_are_accumulated_in_float64():
    # in float32, the mean of 200,000 values around 10,000 is off by far more than the tolerance
    train = 10_000 + torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0))
    fitted = Standardise().fit(train)
    exact = train.double()
    assert fitted.centre.item() == np.float32(exact.mean().item())
    assert fitted.scale.item() == np.float32(exact.std(unbiased=False).item())


def test_winsorise_clips_at_the_quantiles_of_scipy():
    train, new = training_rows(), training_rows(seed=1) * 3
    low, high = scipy.stats.mstats.mquantiles(train.double().numpy(), [0.02, 0.9], alphap=1, betap=1, axis=0)
    expected = np.clip(new.double().numpy(), np.asarray(low), np.asarray(high))
    np.testing.assert_allclose(Winsorise(0.02, 0.9).fit(train).apply(new), expected, rtol=1e-6)


@pytest.mark.parametrize(("n_quantiles", "columns"), [(2, [1, 2, 3]), (37, [1, 2, 3]), (1000, [1, 2])])
def test_quantile_normal_agrees_with_scikit_learn_extremes_included(n_quantiles, columns):
    # left out: the first feature, which scikit-learn's absolute tolerance of 1e-7 blurs, and with a quantile for each
    # row the last, whose runs of ties it shortens by rounding (see the next test)
    train, new = training_rows()[:, columns], training_rows(seed=1)[:, columns]
    new = torch.cat([train, new, train.max(0).values[None] + 1, train.min(0).values[None] - 1])
    theirs = sklearn.preprocessing.QuantileTransformer(
        n_quantiles=min(n_quantiles, len(train)), output_distribution="normal", subsample=None
    )
    expected = theirs.fit(train.double().numpy()).transform(new.double().numpy())
    np.testing.assert_allclose(QuantileNormal(n_quantiles).fit(train).apply(new), expected, rtol=2e-6, atol=2e-6)


def test_quantile_normal_with_a_quantile_for_each_row_ranks_with_the_mean_rank_for_ties():
    train = training_rows()
    level = (scipy.stats.rankdata(train.numpy(), axis=0) - 1) / (len(train) - 1)
    level[train.numpy() == train.numpy().min(0)] = 0.0
    level[train.numpy() == train.numpy().max(0)] = 1.0
    expected = np.clip(scipy.stats.norm.ppf(level), -5.199337582605575, 5.199337582605575)
    np.testing.assert_allclose(QuantileNormal().fit(train).apply(train), expected, rtol=2e-6, atol=2e-6)


def test_quantile_normal_makes_training_rows_normal():
    train = training_rows(5000)[:, :3]
    out = QuantileNormal().fit(train).apply(train).double().numpy()
    for column in out.T:  # the p-value of a perfect fit is 1
        assert scipy.stats.kstest(column, "norm").pvalue > 0.99


def test_missing_values_stay_missing():
    train = training_rows()
    new = train[:3].clone()
    new[1, 2] = torch.nan
    for transform in (Standardise(), RobustScale(), Winsorise(), QuantileNormal()):
        assert torch.equal(transform.fit(train).apply(new).isnan(), new.isnan())


@pytest.mark.parametrize(
    ("name", "params"),
    [("PowerTransformer", {}), ("PCA", {"n_components": 2}), ("PolynomialFeatures", {"degree": 2}), ("FastICA", {})],
)
def test_sklearn_by_name_agrees_with_scikit_learn(name, params):
    train, new = training_rows(), training_rows(seed=1)
    fitted = build_kind(TRANSFORMS, {"kind": "sklearn", "name": name, "params": params}).fit(train)
    cls = getattr(sklearn.preprocessing, name, None) or getattr(sklearn.decomposition, name)
    theirs = cls(**params, **({"random_state": 0} if "random_state" in cls().get_params() else {}))
    expected = theirs.fit(train.double().numpy()).transform(new.double().numpy())
    assert fitted.n_features == expected.shape[1]
    np.testing.assert_allclose(fitted.apply(new), expected, rtol=1e-6)


def test_sklearn_takes_any_instance_and_leaves_it_alone():
    instance = make_pipeline(sklearn.preprocessing.StandardScaler(), Nystroem(n_components=3))
    train = training_rows()
    one, two = (Sklearn(transformer=instance).fit(train) for _ in range(2))
    assert not hasattr(instance[0], "mean_")
    assert torch.equal(one.apply(train), two.apply(train))  # unset random states were fixed
    assert one.n_features == 3


def test_one_hot_output_is_dense():
    fitted = Sklearn("OneHotEncoder").fit(torch.tensor([[0.0], [1.0], [2.0]]))
    assert torch.equal(fitted.apply(torch.tensor([[1.0]])), torch.tensor([[0.0, 1.0, 0.0]]))


@pytest.mark.parametrize("transform", [Standardise(), QuantileNormal(), Sklearn("PCA", {"n_components": 2})])
def test_windows_are_transformed_row_by_row(transform):
    fitted = fit_transforms([Winsorise(), transform], training_rows())
    windows = training_rows(60, seed=2).reshape(12, 5, 4)
    flat = fitted.apply(windows.reshape(60, 4))
    assert torch.equal(fitted.apply(windows), flat.reshape(12, 5, -1))
    assert fitted.apply(windows[:0]).shape == (0, 5, fitted.n_features)


def test_a_chain_fits_each_step_on_what_the_former_gives():
    train, new = training_rows(), training_rows(seed=1)
    chain = fit_transforms([Winsorise(0.05, 0.95), Standardise(), Sklearn("PCA", {"n_components": 2})], train)
    low, high = np.quantile(train.double().numpy(), [0.05, 0.95], axis=0)
    scaler = sklearn.preprocessing.StandardScaler().fit(np.clip(train.double().numpy(), low, high))
    pca = sklearn.decomposition.PCA(2).fit(scaler.transform(np.clip(train.double().numpy(), low, high)))
    expected = pca.transform(scaler.transform(np.clip(new.double().numpy(), low, high)))
    assert (chain.n_features_in, chain.n_features) == (4, 2)
    np.testing.assert_allclose(chain.apply(new), expected, rtol=1e-4, atol=1e-5)


def test_an_empty_chain_changes_nothing():
    x = training_rows()
    assert torch.equal(fit_transforms([], x).apply(x), x)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(sorted(set(TRANSFORMS) - {"sklearn"})), size=st.integers(1, 9))
def test_rows_outside_the_training_set_change_nothing(seed, kind, size):
    train, other = training_rows(50, seed=seed), training_rows(size, seed=seed + 1)
    everything = torch.cat([train, other])
    fitted = fit_transforms([TRANSFORMS[kind]()], everything[:50])
    everything[50:] = 1e6  # the future, rewritten after the fit
    again = fit_transforms([TRANSFORMS[kind]()], everything[:50])
    assert torch.equal(fitted.apply(other), again.apply(other))
    # and no output depends on the rows that are transformed beside it
    alone = torch.cat([fitted.apply(row[None]) for row in other])
    assert torch.equal(fitted.apply(other), alone)


@pytest.mark.parametrize("transform", [Standardise(), RobustScale(), QuantileNormal()])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e-30, 12345.678])
def test_a_constant_feature_is_named(transform, value):
    train = training_rows(77)
    train[:, 2] = value
    with pytest.raises(DataError, match=r"`vol`: constant in the 77 training rows"):
        transform.fit(train, feature_names=["a", "b", "vol", "d"])


@pytest.mark.parametrize("transform", [cls() for kind, cls in TRANSFORMS.items() if kind != "sklearn"])
def test_missing_training_values_are_named(transform):
    train = training_rows()
    train[3, 1] = torch.inf
    with pytest.raises(DataError, match="`b`: NaN or infinite in some of the 500"):
        fit_transforms([transform], train, ["a", "b", "c", "d"])
    train[:, 0] = torch.nan
    with pytest.raises(DataError, match="feature 0: NaN in all of the 500"):
        fit_transforms([transform], train)


def test_a_feature_without_a_quantile_range_is_named():
    train = training_rows()
    train[50:, 0] = 0.0
    with pytest.raises(DataError, match=r"`a`: the 0.25 and 0.75 quantiles .* equal"):
        RobustScale().fit(train, feature_names=list("abcd"))


def test_a_transform_that_breaks_down_on_its_training_rows_is_refused():
    train = training_rows()
    with pytest.raises(DataError, match="gives NaN or infinity"):
        Sklearn(transformer=FunctionTransformer(lambda x: np.where(x > 0, x, np.inf))).fit(train)
    with pytest.raises(DataError, match="could not be fitted"):
        Sklearn("FunctionTransformer", {"func": "exec"}).fit(train)
    with pytest.raises(DataError, match="could not be fitted"):
        Sklearn("PCA", {"n_components": 9}).fit(train)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (3, 2, 2)])
def test_rows_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(DataError, match="shape"):
        Standardise().fit(torch.ones(shape))


def test_a_wrong_number_of_features_is_refused():
    fitted = Standardise().fit(training_rows())
    with pytest.raises(DataError, match="fitted on 4 features"):
        fitted.apply(torch.ones(3, 5))
    with pytest.raises(DataError, match="must hold 4 names"):
        Standardise().fit(training_rows(), feature_names=["a"])


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"kind": "standardize"}, "did you mean `standardise`"),
        ({"kind": "winsorise", "low": 0.9, "high": 0.1}, "low < high"),
        ({"kind": "robust_scale", "lo": 0.1}, "unknown key `lo`"),
        ({"kind": "quantile_normal", "n_quantiles": 1}, "at least 2"),
        ({"kind": "sklearn"}, "needs either"),
        ({"kind": "sklearn", "name": "PowerTransform"}, "did you mean `PowerTransformer`"),
        ({"kind": "sklearn", "name": "os.system"}, "not a transformer"),
        ({"kind": "sklearn", "name": "StandardScaler.fit"}, "not a transformer"),
        ({"kind": "sklearn", "name": "LogisticRegression"}, "not a transformer"),
        ({"kind": "sklearn", "name": "TargetEncoder"}, "labels"),
        ({"kind": "sklearn", "name": "LabelEncoder"}, "labels"),
        ({"kind": "sklearn", "name": "PCA", "params": {"components": 2}}, "no parameter `components`"),
        ({"kind": "sklearn", "name": "PCA", "transformer": 1}, "unknown key `transformer`"),
    ],
)
def test_bad_settings_are_explained(settings_, message):
    with pytest.raises(ConfigError, match=message):
        build_kind(TRANSFORMS, settings_)


def test_settings_survive_a_config_and_count_in_its_hash():
    for settings_ in (
        {"kind": "winsorise", "low": 0.0, "high": 0.5},
        {"kind": "sklearn", "name": "PCA", "params": {"n_components": 2}},
    ):
        assert to_dict(build_kind(TRANSFORMS, settings_)) == settings_
    two, three = (Sklearn(transformer=sklearn.decomposition.PCA(n)) for n in (2, 3))
    assert config_hash(two) != config_hash(three)
