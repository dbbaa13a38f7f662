"""Fitted transforms survive JSON and safetensors bit for bit, and hostile files are refused."""

import copy
import json
import pickle

import numpy as np
import pytest
import sklearn.decomposition
import sklearn.preprocessing
import torch
from safetensors.torch import load, save
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, KBinsDiscretizer, PowerTransformer, SplineTransformer

from qfml.data.fitted_transforms import FittedSklearn
from qfml.data.transforms import (
    QuantileNormal,
    RobustScale,
    Sklearn,
    Standardise,
    Winsorise,
    fit_transforms,
    load_transform,
)
from qfml.errors import CheckpointError

# every transformer of the two modules that needs nothing but a matrix of features
UNSTORABLE = {"SplineTransformer"}  # holds scipy splines: its own test below
NEED_MORE = {"KernelCenterer", "SparseCoder", "TargetEncoder", "LabelBinarizer", "LabelEncoder", "MultiLabelBinarizer"}
NAMES = sorted(
    name
    for module in (sklearn.preprocessing, sklearn.decomposition)
    for name in module.__all__
    if hasattr(getattr(module, name), "transform") and name not in UNSTORABLE | NEED_MORE
)
PARAMS = {
    "DictionaryLearning": {"max_iter": 2, "n_components": 2, "transform_algorithm": "threshold"},
    "MiniBatchDictionaryLearning": {"max_iter": 2, "n_components": 2, "random_state": 1},
    "SparsePCA": {"max_iter": 2, "n_components": 2},
    "MiniBatchSparsePCA": {"max_iter": 2, "n_components": 2},
    "MiniBatchNMF": {"n_components": 2},
    "NMF": {"n_components": 2, "init": "random", "tol": 0.1},
    "KernelPCA": {"n_components": 2, "kernel": "rbf"},
    "KBinsDiscretizer": {"n_bins": 4, "quantile_method": "averaged_inverted_cdf"},
    "TruncatedSVD": {"n_components": 2},
    "OrdinalEncoder": {"handle_unknown": "use_encoded_value", "unknown_value": -1},
    "OneHotEncoder": {"handle_unknown": "ignore"},
    "QuantileTransformer": {"n_quantiles": 50},
    "PCA": {"n_components": 3, "whiten": True},
}


def rows(n=120, seed=0):
    return torch.rand(n, 4, generator=torch.Generator().manual_seed(seed)) + 0.1


def stored_and_loaded(fitted):
    """Through the bytes of a JSON text and a safetensors file, keys in another order."""
    meta = json.loads(json.dumps(fitted.meta(), sort_keys=True, allow_nan=False))
    return load_transform(meta, load(save(fitted.state())))


def assert_same(fitted, again):
    x = rows(seed=1)
    assert torch.equal(fitted.apply(x), again.apply(x))
    assert again.meta() == fitted.meta()
    for key, tensor in fitted.state().items():
        assert again.state()[key].dtype == tensor.dtype
        assert torch.equal(again.state()[key], tensor)
    assert (again.n_features_in, again.n_features) == (fitted.n_features_in, fitted.n_features)


@pytest.mark.parametrize("transform", [Standardise(), RobustScale(), Winsorise(), QuantileNormal()])
def test_own_transforms_come_back_bit_for_bit(transform):
    fitted = transform.fit(rows())
    assert_same(fitted, stored_and_loaded(fitted))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # two iterations are enough to be stored
@pytest.mark.parametrize("name", NAMES)
def test_every_transformer_of_scikit_learn_comes_back_bit_for_bit(name):
    fitted = Sklearn(name, PARAMS.get(name, {})).fit(rows())
    assert_same(fitted, stored_and_loaded(fitted))


def test_nested_estimators_come_back_bit_for_bit():
    bins = KBinsDiscretizer(3, quantile_method="averaged_inverted_cdf")
    columns = ColumnTransformer([("a", PowerTransformer(), [0, 1]), ("b", bins, slice(2, 4))])
    fitted = Sklearn(transformer=make_pipeline(columns, sklearn.decomposition.PCA(3))).fit(rows())
    assert_same(fitted, stored_and_loaded(fitted))


def test_a_chain_comes_back_bit_for_bit():
    steps = [Winsorise(), QuantileNormal(20), Sklearn("PCA", {"n_components": 2}), Standardise()]
    for chain in (fit_transforms(steps, rows()), fit_transforms([], rows())):
        assert_same(chain, stored_and_loaded(chain))
        assert_same(chain, pickle.loads(pickle.dumps(chain)))  # noqa: S301  (objects travel to workers)


def test_memory_order_is_kept():
    # a matrix product may be rounded differently when the stored components were turned around
    fitted = Sklearn("PCA", {"n_components": 3}).fit(rows())
    assert isinstance(fitted, FittedSklearn)
    fitted.estimator.components_ = np.asfortranarray(fitted.estimator.components_)
    again = stored_and_loaded(fitted)
    assert isinstance(again, FittedSklearn)
    assert again.estimator.components_.flags.f_contiguous
    assert not again.estimator.components_.flags.c_contiguous
    np.testing.assert_array_equal(again.estimator.components_, fitted.estimator.components_)


@pytest.mark.parametrize(
    ("transformer", "place"),
    [
        (FunctionTransformer(np.tanh), "FunctionTransformer.func"),
        (SplineTransformer(), r"SplineTransformer.bsplines_\[0\]"),
        (make_pipeline(FunctionTransformer(np.tanh)), r"Pipeline.steps\[0\]\[1\].func"),
        (PowerTransformer().set_params(method=np.str_("box-cox")), None),
    ],
)
def test_what_cannot_be_stored_is_named_when_saving(transformer, place):
    fitted = Sklearn(transformer=transformer).fit(rows())
    if place is None:  # a numpy string is a string array of no axes: stored
        assert_same(fitted, stored_and_loaded(fitted))
        return
    with pytest.raises(CheckpointError, match=f"`{place}` is a .* cannot be stored without pickle"):
        fitted.meta()


class OwnScaler(sklearn.preprocessing.StandardScaler):
    """A class from outside scikit-learn."""


def test_classes_from_outside_scikit_learn_are_refused_when_saving():
    fitted = Sklearn(transformer=OwnScaler()).fit(rows())
    with pytest.raises(CheckpointError, match="OwnScaler' is not an estimator of scikit-learn"):
        fitted.meta()


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "sklearn.os.system",
        "sklearn..preprocessing._data.StandardScaler",
        "sklearn_evil.Transformer",
        "evil.sklearn.preprocessing.StandardScaler",
        "sklearn.preprocessing.StandardScaler",  # visible there, but defined elsewhere: one name for each class
        "sklearn.preprocessing._data.np",
        "sklearn.preprocessing._data.check_array",
        "sklearn.preprocessing._data.NoSuchThing",
        "sklearn.base.clone",
        "sklearn.utils.Bunch",
        "sklearn.externals._arff.ArffDecoder",
        "sklearn.tests.test_base.MyEstimator",
        "sklearn.conftest.raccoon_face_fxt",
        "sklearn.preprocessing._data.StandardScaler\n",
        "",
        None,
        7,
        ["sklearn"],
    ],
)
def test_a_file_can_name_nothing_but_estimators_of_scikit_learn(name):
    fitted = Sklearn("StandardScaler").fit(rows())
    meta = fitted.meta()
    meta["estimator"]["estimator"] = name
    with pytest.raises(CheckpointError, match="not an estimator of scikit-learn"):
        load_transform(meta, fitted.state())


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("__class__", "x"),
        ("__reduce__", "x"),
        ("transform", {"list": []}),
        ("get_params", None),
        ("n_samples_seen_", {"eval": "1"}),
        ("n_samples_seen_", {"object": "os.system", "args": []}),
        ("n_samples_seen_", [1, 2]),
        ("n_samples_seen_", {"array": "nowhere", "fortran": False, "scalar": False}),
        ("n_samples_seen_", {"array": {}, "fortran": False, "scalar": False}),
        ("n_samples_seen_", {"numpy_type": "os"}),
        ("n_samples_seen_", {"dtype": "O"}),
        ("n_samples_seen_", {"random_state": {"tuple": ["MT19937", "os.system"]}}),
        ("n_samples_seen_", {"objects": [1], "shape": [1], "dtype": "(1000000000,)O", "scalar": False}),
        ("n_samples_seen_", {"objects": [1], "shape": [5], "dtype": "|O", "scalar": False}),
        ("n_samples_seen_", {"dict": [[{"list": []}, 1]]}),
        ("n_samples_seen_", {"float": "1e9"}),
        ("not an identifier", 1),
    ],
)
def test_hostile_attributes_are_refused(attribute, value):
    fitted = Sklearn("StandardScaler").fit(rows())
    meta = copy.deepcopy(fitted.meta())
    meta["estimator"]["attributes"][attribute] = value
    with pytest.raises(CheckpointError):
        load_transform(meta, fitted.state())


def test_a_bottomless_file_is_refused():
    meta = Sklearn("StandardScaler").fit(rows()).meta()
    deep = 1
    for _ in range(5000):
        deep = {"list": [deep]}
    meta["estimator"]["attributes"]["copy"] = deep
    with pytest.raises(CheckpointError, match="nested too deeply"):
        load_transform(meta, {})


@pytest.mark.parametrize(
    "meta",
    [
        None,
        [],
        {},
        {"kind": "os.system"},
        {"kind": ["affine"]},
        {"kind": "standardise"},
        {"kind": "sklearn"},
        {"kind": "sklearn", "estimator": {"list": []}, "n_features_in": 4, "n_features": 4},
        {"kind": "chain", "steps": 7, "n_features_in": 4},
        {"kind": "chain", "steps": [{"kind": "affine"}], "n_features_in": 4},
        {"kind": "affine"},
    ],
)
def test_damaged_metadata_is_refused(meta):
    with pytest.raises(CheckpointError):
        load_transform(meta, {})


@pytest.mark.parametrize(
    "state",
    [
        {"centre": torch.zeros(3)},
        {"centre": torch.zeros(3), "scale": torch.ones(4)},
        {"centre": torch.zeros(3), "scale": torch.ones(3, dtype=torch.float64)},
        {"centre": torch.zeros(3, 1), "scale": torch.ones(3, 1)},
        {"centre": torch.zeros(3), "scale": [1, 1, 1]},
        {"centre": torch.zeros(3), "scale": torch.ones(3), "other": torch.ones(3)},
    ],
)
def test_damaged_tensors_are_refused(state):
    with pytest.raises(CheckpointError):
        load_transform({"kind": "affine"}, state)


def test_a_chain_whose_steps_do_not_fit_together_is_refused():
    chain = fit_transforms([Sklearn("PCA", {"n_components": 2}), Standardise()], rows())
    meta = chain.meta()
    meta["steps"].reverse()
    state = {("1" if key[0] == "0" else "0") + key[1:]: tensor for key, tensor in chain.state().items()}
    with pytest.raises(CheckpointError, match="takes 2 features but is given 4"):
        load_transform(meta, state)


def test_another_version_of_scikit_learn_is_told():
    fitted = Sklearn("StandardScaler").fit(rows())
    meta = fitted.meta()
    meta["estimator"]["sklearn"] = "0.1.2"
    with pytest.warns(UserWarning, match=r"fitted with scikit-learn 0\.1\.2"):
        load_transform(meta, fitted.state())
