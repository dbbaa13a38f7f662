"""A trained network as ONNX gives what torch gives: every network, transform and loss, in any batch."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hostile_text import HOSTILE
from network_stacks import generator, moved_off_the_start

import qfml
from qfml.data.transforms import QuantileNormal, RobustScale, Sklearn, Standardise, Winsorise, fit_transforms
from qfml.engine.stack import Layout
from qfml.errors import DataError, UserError
from qfml.export import export_fits, load_exported, trace
from qfml.export.fit_stack import FitStack, Seen
from qfml.export.transforms import EXPORTED_SKLEARN
from qfml.losses import LOSSES, Twin
from qfml.networks import NETWORKS

NAMES = ("carry", "value", "momentum", "size", "vol")
WINDOW = 6
NETWORKS_SEEN = {
    "mlp": qfml.MLP(hidden=(8, 8), activation="gelu", layer_norm=True),
    "residual_mlp": qfml.ResidualMLP(width=8, blocks=2, hidden=8, activation="silu"),
    "monotone_mlp": qfml.MonotoneMLP(increasing=(0,), decreasing=(2, 3), hidden=(8, 8)),
    "convex_mlp": qfml.ConvexMLP(convex=(1, 4), hidden=(8, 8)),
    "tabm": qfml.TabM(hidden=(8,), k=4),
    "tcn": qfml.TCN(channels=(8, 4), kernel=2),
    "lstm": qfml.LSTM(hidden=8, layers=2),
    "gru": qfml.GRU(hidden=8),
    "transformer": qfml.Transformer(width=16, heads=2, layers=2, hidden=16, positions="learned"),
}
NEEDS_WINDOWS = ("tcn", "lstm", "gru", "transformer")
LOSSES_SEEN = {
    "huber": qfml.Huber(delta=1.0),
    "pinball": qfml.Pinball(level=0.9),
    "weighted_bce": qfml.WeightedBCE(class_weight=(1.0, 9.0)),
    "focal": qfml.Focal(gamma=2.0),
    "cross_entropy": qfml.CrossEntropy(n_classes=3, class_weight=(1.0, 2.0, 3.0)),
    "quantiles": qfml.Quantiles(levels=(0.1, 0.5, 0.9)),
    "twin": Twin(label_scale=1.0, gradient_scale=(1.0,) * 5),
    "negative_sharpe": qfml.NegativeSharpe(cost_bps=1.0),
    "expected_shortfall": qfml.ExpectedShortfall(cost_bps=1.0, tail=0.1),
    "entropic_risk": qfml.EntropicRisk(cost_bps=1.0, risk_aversion=1.0),
    "mean_variance": qfml.MeanVariance(cost_bps=1.0, risk_aversion=1.0),
}


def made_up(network, loss=None, window=None, transforms=None, seed=0, n_features=5):
    """A fit whose parameters are drawn, not trained: parity asks only that the two compute the same."""
    loss = qfml.MSE() if loss is None else loss
    seen = n_features if transforms is None else transforms.n_features
    start = network.init(seen, window, generator(seed), loss.n_outputs)
    # a little off it: far off, products of gates leave torch's own float32 only five digits
    drawn = {name: torch.lerp(start[name], moved, 0.3) for name, moved in moved_off_the_start(start, seed=seed).items()}
    layout = Layout.of(drawn)
    return qfml.Fit(network, loss, layout.flatten(drawn), layout, transforms, seed, "finished", (), 0)


def raw(n, window=None, seed=3):
    """Features of very different sizes."""
    rng = np.random.default_rng(seed)
    shape = (n, 5) if window is None else (n, window, 5)
    return (np.array([0.01, 1.0, 100.0, 5000.0, 0.2]) * rng.standard_normal(shape) + 0.3).astype(np.float32)


def fitted(*transforms):
    return fit_transforms(transforms, torch.from_numpy(raw(300)), NAMES)


def by_torch(fit, x):
    """What `Fit.predict` says of rows or windows."""
    rows = torch.from_numpy(x).reshape(-1, x.shape[-1])
    window = None if x.ndim == 2 else x.shape[1]
    ends = torch.arange(len(x)) * (window or 1) + (window or 1) - 1
    return fit.predict_windows(rows, ends, window)


def assert_equals_torch(path, fit, window=None, tolerance=1e-5):
    model = load_exported(path)
    for n in (1, 2, 1000):
        x = raw(n, window)
        truth = by_torch(fit, x)
        found = model.predict(x)["prediction"]
        assert found.shape == truth.shape
        assert (np.abs(found - truth) <= tolerance * np.maximum(1, np.abs(truth))).all()
        assert n < 1000 or np.ptp(truth) > 1e-3, "a constant would prove nothing"


def test_what_is_seen_here_is_all_there_is():
    assert set(NETWORKS_SEEN) == set(NETWORKS)
    assert set(LOSSES) - set(LOSSES_SEEN) == {"mse", "mae", "bce"}  # as they are; bce is the base of two


@pytest.mark.parametrize("n_members", [6, pytest.param(64, marks=pytest.mark.slow)])
def test_members_share_one_trace_and_each_file_is_that_member(tmp_path, monkeypatch, n_members):
    """Members of two folds: transforms and weights are put into one graph."""
    chains = [fit_transforms([Winsorise(), Standardise()], torch.from_numpy(raw(300, seed=s)), NAMES) for s in (1, 2)]
    fits = [made_up(qfml.MLP(hidden=(8,)), transforms=chains[seed % 2], seed=seed) for seed in range(n_members)]
    traced = []
    export = torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", lambda *a, **k: traced.append(1) or export(*a, **k))
    paths = [tmp_path / f"{seed}.onnx" for seed in range(n_members)]
    written = export_fits(fits, paths, feature_names=NAMES, points=raw(200))
    assert len(traced) == 1
    assert [each.path for each in written] == paths
    x = raw(50)
    for fit, path in zip(fits, paths):
        np.testing.assert_allclose(load_exported(path).predict(x)["prediction"], by_torch(fit, x), atol=1e-6, rtol=1e-5)
    if n_members > 6:
        (alone,) = export_fits(fits[5:6], tmp_path / "alone.onnx", feature_names=NAMES, points=raw(200))
        assert len(traced) == 2
        found, own = (load_exported(path).predict(x)["prediction"] for path in (alone.path, paths[5]))
        assert np.array_equal(found, own)


def test_broken_weights_are_refused_and_what_was_there_stays(tmp_path, monkeypatch):
    """Returns are small: weights that are off by one in a hundred move the prediction by less than 1e-5."""
    fit = made_up(qfml.MLP(hidden=(8,)), transforms=fitted(Standardise()))
    named = fit.named_parameters()
    small = named | {name: 3e-4 * named[name] for name in ("head_weight", "head_bias")}
    fit = dataclasses.replace(fit, parameters=fit.layout.flatten(small))
    place = tmp_path / "model.onnx"
    place.write_bytes(b"before")
    filled = trace.Template.filled

    def broken(template, tensors):
        wrong = 1.01 * tensors["network.head_weight"]
        return filled(template, tensors | {"network.head_weight": wrong})

    monkeypatch.setattr(trace.Template, "filled", broken)
    with pytest.raises(UserError, match=r"standard deviation.*not written"):
        export_fits([fit], place, feature_names=NAMES)
    assert place.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.slow
def test_points_of_ones_own_do_not_replace_those_that_are_drawn(tmp_path, monkeypatch):
    """At the features' means all is 0 after standardising, and a wrong weight of the first layer does not show."""
    fit = made_up(qfml.MLP(hidden=(8,)), transforms=fitted(Standardise()))
    first = next(name for name, value in fit.named_parameters().items() if value.ndim == 2)
    own, filled = raw(300).mean(0, keepdims=True), trace.Template.filled
    (export,) = export_fits([fit], tmp_path / "model.onnx", feature_names=NAMES, points=own)
    assert export.parity.n_points == 10_001
    monkeypatch.setattr(
        trace.Template,
        "filled",
        lambda template, tensors: filled(
            template, tensors | {name: 1.5 * tensors[name] for name in tensors if name.endswith(first)}
        ),
    )
    with pytest.raises(UserError, match="differs from torch's"):
        export_fits([fit], tmp_path / "other.onnx", feature_names=NAMES, points=own)
    assert not (tmp_path / "other.onnx").exists()


def test_an_operation_without_an_equal_in_onnx_is_named():
    with pytest.raises(UserError, match=r"lgamma`, which has no equal in ONNX"):
        trace.trace(
            lambda x, tensors: torch.lgamma(x[:, 0]) * tensors["a"],
            torch.ones(3, 2),
            {"a": torch.ones(1)},
            input_name="x",
            output_names=["y"],
        )


def test_an_ensemble_is_the_mean_and_says_what_it_is(tmp_path):
    chains = [fit_transforms([Winsorise(), RobustScale()], torch.from_numpy(raw(300, seed=s)), NAMES) for s in (1, 2)]
    loss = qfml.CrossEntropy(n_classes=3, class_weight=(1.0, 2.0, 3.0))
    fits = [made_up(NETWORKS_SEEN["mlp"], loss, transforms=chains[seed % 2], seed=seed) for seed in range(3)]
    hostile = (HOSTILE, "\x00\x12\x40" + "qfml.sha256" * 3, "../../etc", "ü", "vol")
    named = [{"fold": seed % 2, "seed": seed} for seed in range(3)]
    settings = {"units": {"vol": "per year"}, "members": named, "config_hash": "ab12", "ensemble": True}
    (written,) = export_fits(fits, tmp_path / "e.onnx", feature_names=hostile, **settings)
    model = load_exported(written.path)
    x = raw(400)
    truth = np.mean([by_torch(fit, x) for fit in fits], axis=0)
    np.testing.assert_allclose(model.predict(x)["prediction"], truth, atol=1e-6)
    np.testing.assert_allclose(truth.sum(1), 1, atol=1e-6)
    assert model.input_names == hostile
    assert (model.units["vol"], model.units["ü"]) == ("per year", "as given")
    assert model.metadata["members"] == named
    assert (model.metadata["config_hash"], model.metadata["outputs"]) == ("ab12", {"prediction": "class_probabilities"})
    assert type(loss.prediction(torch.zeros(1, 1, 3))) is torch.Tensor, (
        "the exporter leaves no tensor of its own behind"
    )
    content = written.path.read_bytes()
    for trait in (str(Path(qfml.__file__).parents[1]).encode(), b"site-packages", str(tmp_path).encode(), b".py"):
        assert trait not in content, "nothing of the machine"
    onnx.checker.check_model(str(written.path), full_check=True)
    session = onnxruntime.InferenceSession(content)
    bad = x.copy()
    bad[7, 2], bad[9, 0] = np.nan, np.inf
    (found,) = session.run(None, {"features": bad})
    assert np.flatnonzero(np.isnan(found).any(1)).tolist() == [7, 9], "a NaN never becomes a number"
    (same,) = session.run(None, {"features": x})
    assert np.array_equal(np.delete(found, [7, 9], 0), np.delete(same, [7, 9], 0))


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS_SEEN)
@pytest.mark.parametrize("window", [None, WINDOW])
def test_every_network_with_and_without_windows(tmp_path, kind, window):
    if window is None and kind in NEEDS_WINDOWS:
        pytest.skip("reads windows only")
    for loss in (qfml.MSE(), qfml.Quantiles(levels=(0.1, 0.5, 0.9))):
        fit = made_up(NETWORKS_SEEN[kind], loss, window, fitted(Standardise()))
        export_fits([fit], tmp_path / "model.onnx", feature_names=NAMES, window=window)
        assert_equals_torch(tmp_path / "model.onnx", fit, window)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LOSSES_SEEN)
def test_every_loss_says_what_the_output_means(tmp_path, kind):
    fit = made_up(qfml.MLP(hidden=(8,)), LOSSES_SEEN[kind], transforms=fitted(Standardise()))
    export_fits([fit], tmp_path / "model.onnx", feature_names=NAMES)
    assert_equals_torch(tmp_path / "model.onnx", fit)
    about = load_exported(tmp_path / "model.onnx").metadata
    assert about["outputs"] == {"prediction": fit.loss.predicts}
    position = "position, fraction of capital"
    unit = {"probability": "probability", "class_probabilities": "probability", "position": position}
    assert about["output_units"] == {"prediction": unit.get(fit.loss.predicts, "label")}


TRANSFORMS_SEEN = {
    "winsorise": [Winsorise(0.1, 0.9)],
    "robust_scale": [RobustScale()],
    "quantile_normal": [QuantileNormal()],
    "few quantiles": [QuantileNormal(7)],
    "chain": [Standardise(), QuantileNormal(50), Sklearn("PCA", {"n_components": 3}), Standardise()],
    "StandardScaler without mean": [Sklearn("StandardScaler", {"with_mean": False})],
    "StandardScaler without std": [Sklearn("StandardScaler", {"with_std": False})],
    "RobustScaler without centre": [Sklearn("RobustScaler", {"with_centering": False, "unit_variance": True})],
    "MinMaxScaler that clips": [Sklearn("MinMaxScaler", {"clip": True, "feature_range": (-1, 2)})],
    "PowerTransformer alone": [Sklearn("PowerTransformer", {"standardize": False})],
    "PCA that whitens": [Sklearn("PCA", {"n_components": 2, "whiten": True})],
} | {name: [Standardise(), Sklearn(name)] for name in EXPORTED_SKLEARN if name != "TruncatedSVD"}
TRANSFORMS_SEEN["TruncatedSVD"] = [Standardise(), Sklearn("TruncatedSVD", {"n_components": 2})]


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMS_SEEN)
def test_every_transform_is_in_the_graph(tmp_path, name):
    fit = made_up(qfml.MLP(hidden=(8,)), transforms=fitted(*TRANSFORMS_SEEN[name]))
    export_fits([fit], tmp_path / "model.onnx", feature_names=NAMES)
    assert_equals_torch(tmp_path / "model.onnx", fit)


@pytest.mark.slow
def test_ties_and_extremes_of_quantiles_are_kept(tmp_path):
    """Runs of equal training values: on them the level jumps, and the graph must jump at the same bit."""
    rng = np.random.default_rng(0)
    rows = np.round(rng.standard_normal((500, 5)), 1).astype(np.float32)
    chain = fit_transforms([QuantileNormal(100)], torch.from_numpy(rows), NAMES)
    fit = made_up(qfml.MLP(hidden=(8,)), transforms=chain)
    points = np.concatenate([rows, np.nextafter(rows, np.float32(9)), np.nextafter(rows, np.float32(-9)), 50 * rows])
    (written,) = export_fits([fit], tmp_path / "model.onnx", feature_names=NAMES, points=points)
    assert written.parity.n_points == len(points) + 10_000  # what is given, beside what every export is checked on
    found = load_exported(written.path).predict(points)["prediction"]
    np.testing.assert_allclose(found, by_torch(fit, points), atol=2e-6)


def refused(message, *fits, error=UserError, **settings):
    with pytest.raises(error, match=message):
        export_fits(fits, "nowhere.onnx", **({"feature_names": NAMES} | settings))


def test_what_cannot_be_exported_says_why_and_what_instead(tmp_path):
    mlp = qfml.MLP(hidden=(8,))
    for name, params in (("PolynomialFeatures", {}), ("PowerTransformer", {"method": "box-cox"}), ("Normalizer", {})):
        rows = torch.from_numpy(np.abs(raw(300)) + 0.1)
        refused(
            f"{name}.*cannot be exported.*train", made_up(mlp, transforms=fit_transforms([Sklearn(name, params)], rows))
        )
    module = qfml.Module(lambda: torch.nn.Linear(5, 1))
    drawn = module.init(5, None, generator())
    own = dataclasses.replace(made_up(mlp), network=module, layout=Layout.of(drawn))
    refused(r"torch\.onnx\.export", own)
    two = made_up(mlp), made_up(qfml.MLP(hidden=(4,)))
    refused("one network and one loss", *two, ensemble=True)
    refused("a file for each", *two)
    fit = made_up(mlp, transforms=fitted(Standardise()))
    refused("fitted on 5 features", fit, error=DataError, feature_names=NAMES[:3])
    refused("other features", made_up(mlp), error=DataError, feature_names=NAMES[:3])
    refused("other features", fit, error=DataError, window=3)
    refused("different names", fit, error=DataError, feature_names=("a",) * 5)
    refused("no feature", fit, error=DataError, units={"spot": "cash"})
    refused("shape", fit, error=DataError, points=np.zeros((3, 4)))
    refused("NaN", fit, error=DataError, points=np.full((3, 5), np.nan))


def test_a_full_disk_or_a_folder_in_the_way_replaces_nothing(tmp_path):
    from qfml.export.model_file import written

    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        written([(tmp_path / "file" / "model.onnx", b"")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_the_points_compared_at_are_as_wide_as_the_training_rows():
    rows = torch.from_numpy(raw(300))
    for transform in (Standardise(), Winsorise(), QuantileNormal(50), Sklearn("MinMaxScaler"), Sklearn("RobustScaler")):
        fit = made_up(qfml.MLP(), transforms=fit_transforms([transform], rows))
        points = FitStack.of((fit,), Seen(NAMES, None, {})).points(5000)
        ratio = points.std(0) / rows.std(0)
        assert bool(((ratio > 0.4) & (ratio < 4)).all()), (transform, ratio)
        assert bool((points.amax(0) > rows.quantile(0.9, 0)).all())


def test_metadata_is_plain_json(tmp_path):
    fit = made_up(qfml.MLP(hidden=(4,)), transforms=fitted(Standardise()))
    metadata = FitStack.of((fit,), Seen(NAMES, None, {})).metadata()
    assert json.loads(json.dumps(metadata)) == metadata
