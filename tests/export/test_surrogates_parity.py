"""A surrogate as ONNX gives its values, its derivatives and its box; and an inverse map its parameters."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from network_stacks import generator, moved_off_the_start

import qfml
import qfml.surrogate as qs
from qfml import config
from qfml.calibration import CALIBRATION_MODELS
from qfml.calibration.inverse import InverseMap, InverseTraining
from qfml.calibration.layout import Layout as Places
from qfml.engine.stack import Layout
from qfml.errors import DataError, UserError
from qfml.export import export_run, export_surrogate, load_exported, surrogates
from qfml.export.inverse_maps import _Graph
from qfml.surrogate.bounded import Bounded
from qfml.surrogate.reference_vol import REFERENCE_VOLS
from qfml.surrogate.target import Target

LOG = "log"
HESTON = {
    "v0": qs.Range(0.005, 0.5, LOG),
    "kappa": qs.Range(0.1, 20.0, LOG),
    "theta": qs.Range(0.005, 0.5, LOG),
    "sigma": qs.Range(0.05, 4.0, LOG),
    "rho": qs.Range(-0.95, 0.5),
    "expiry": qs.Range(7 / 365, 3.0, LOG),
}
BLACK_SCHOLES = {"vol": qs.Range(0.1, 0.4), "expiry": qs.Range(0.5, 2.0), "strike": qs.Range(0.8, 1.2)}


def heston(strike="delta", limits=(0.02, 0.98)):
    box = HESTON | {strike: qs.Range(*limits)}
    return qs.Problem(model={"kind": "heston"}, instrument={"kind": "european"}, box=box, target="implied_vol")


def black_scholes():
    market = {"spot": 1.0, "rate": 0.03}
    own = {"model": {"kind": "black_scholes"}, "instrument": {"kind": "european"}, "market": market}
    return qs.Problem(**own, box=BLACK_SCHOLES, target="price")


def made_up(problem, kind, network, scale=1.0, seeds=1):
    """A surrogate whose parameters are drawn, not trained."""
    fits = []
    for seed in range(seeds):
        drawn = moved_off_the_start(network.init(len(problem.inputs), None, generator(seed), 1), seed=seed)
        layout = Layout.of(drawn)
        flat = layout.flatten({name: 0.5 * value for name, value in drawn.items()})
        fits.append(qfml.Fit(network, qfml.MSE(), flat, layout, None, seed, "finished", (), 0))
    bound = qs.ErrorBound(0.99, 1.5e-3, "vol", 100)
    return qs.Surrogate(problem, Target(problem, kind, scale), tuple(fits), bound, {})


SILU = qfml.MLP(hidden=(8, 8), activation="silu")
CASES = {
    "black_scholes mlp": lambda: made_up(black_scholes(), "linear", qfml.MLP((8,), "tanh"), 0.2),
    "heston by delta": lambda: replace(made_up(heston(), "log_vol", SILU, seeds=2), moneyness=(-0.9, 1.1)),
    "heston by moneyness": lambda: made_up(heston("log_moneyness", (-0.5, 0.5)), "vol_ratio", Bounded(SILU, "exp")),
    "heston by standard moneyness": lambda: made_up(heston("standard_moneyness", (-3, 3)), "log_vol", SILU),
    "black_scholes residual": lambda: made_up(
        black_scholes(), "positive", Bounded(qfml.ResidualMLP(8, 1, 8, "gelu"), "softplus"), 0.2
    ),
    "black_scholes monotone": lambda: made_up(
        black_scholes(),
        "positive",
        Bounded(qfml.MonotoneMLP(increasing=(0,), decreasing=(2,), hidden=(8, 8)), "softplus"),
        0.2,
    ),
    "black_scholes convex": lambda: made_up(
        black_scholes(), "positive", Bounded(qfml.ConvexMLP(convex=(2,), hidden=(8, 8)), "softplus"), 0.2
    ),
    "black_scholes tabm": lambda: made_up(
        black_scholes(), "linear", qfml.TabM(hidden=(8,), k=4, activation="tanh"), 0.2
    ),
}


@pytest.mark.parametrize(
    "name", ["black_scholes mlp", *(pytest.param(n, marks=pytest.mark.slow) for n in list(CASES)[1:])]
)
def test_value_derivatives_box_and_bound_are_the_surrogate_s(tmp_path, name):
    surrogate = CASES[name]()
    problem = surrogate.problem
    written = export_surrogate(surrogate, tmp_path, config_hash="ab12")
    assert [each.path.name for each in written] == ["model.onnx", "model_greeks.onnx"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model_greeks.onnx"]
    model, greeks = (load_exported(each.path) for each in written)
    points = surrogates.box_points(surrogate, 1900)
    truth = surrogate.predict(points, errors="flag")
    assert int(truth.inside.sum()) == 1900
    assert 20 <= len(points) - 1900 <= 1900 // 9
    leaf = points.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(surrogate.unchecked_values(leaf).sum(), leaf)
    inside = truth.inside.numpy()
    scale = gradient[truth.inside].square().mean(0).sqrt().numpy()
    for n in (1, 2, 1000, len(points)):
        found = greeks.predict(points[:n].numpy(), errors="flag")
        value = model.predict(points[:n].numpy(), errors="flag")
        for own in (found, value):
            assert np.array_equal(own["inside"], inside[:n])
            assert np.isnan(own["value"][~inside[:n]]).all()
            np.testing.assert_allclose(own["value"], truth.value[:n], rtol=1e-5, atol=1e-6)
            assert set(own["error_bound"][inside[:n]]) <= {1.5e-3}
            assert np.isnan(own["error_bound"][~inside[:n]]).all()
        assert np.isnan(found["gradient"][~inside[:n]]).all()
        error = np.abs(found["gradient"] - gradient[:n].numpy())[inside[:n]] / np.maximum(
            scale, np.abs(gradient[:n].numpy())[inside[:n]]
        )
        assert error.max() <= 1e-5
    # bumps, which know nothing of torch's derivatives
    base = points[truth.inside][:200]
    for column in range(base.shape[1]):
        step = 1e-6 * base[:, column].abs().clamp(min=1e-2)
        up, down = base.clone(), base.clone()
        up[:, column] += step
        down[:, column] -= step
        bumped = (surrogate.unchecked_values(up) - surrogate.unchecked_values(down)) / (2 * step)
        own = greeks.predict(base.numpy())["gradient"][:, column]
        np.testing.assert_allclose(own, bumped, rtol=1e-3, atol=1e-3 * max(1e-3, float(bumped.abs().max())))
    metadata = greeks.metadata
    assert model.input_names == problem.inputs
    assert model.units == problem.units
    assert (metadata["surrogate_hash"], metadata["config_hash"]) == (surrogate.hash, "ab12")
    assert metadata["error_bound"]["level"] == 0.99
    assert metadata["box"] == {key: [limits.low, limits.high] for key, limits in problem.box.items()}
    for each in written:
        assert each.parity.n_points == 10_000
        assert each.parity.n_unknown > 100
        stated = load_exported(each.path).metadata["parity"]
        assert (stated["points"], stated["points_without_a_value"]) == (10_000, each.parity.n_unknown)
        content = each.path.read_bytes()
        machine = (str(Path(qfml.__file__).parents[1]), "site-packages", str(tmp_path))
        assert all(trait.encode() not in content for trait in machine)
    if name == "black_scholes mlp":
        edges_belong_to_the_box(model)
        rows_outside_are_refused(model)


def edges_belong_to_the_box(model):
    edges = np.array([[0.1, 0.5, 0.8], [0.4, 2.0, 1.2], [0.4, 0.5, 1.2]])
    assert model.predict(edges)["inside"].all()
    for sign in (-1, 1):
        beyond = np.where(sign * (edges - edges.mean(0)) > 0, edges * (1 + sign * 1e-7), edges)
        moved = (beyond != edges).any(1)
        assert np.array_equal(model.predict(beyond, errors="flag")["inside"], ~moved)


def rows_outside_are_refused(model):
    with pytest.raises(DataError, match=r"1 of 2 rows lie outside the box.*row 1 \(vol = 0\.9"):
        model.predict([[0.2, 1.0, 1.0], [0.9, 1.0, 1.0]])
    one = model.predict({"strike": [0.9, 1.0], "vol": 0.2, "expiry": 1.0}, units={"expiry": "years"})
    assert one["value"].shape == (2,)
    with pytest.raises(DataError, match="`expiry` must be in 'years', got 'days'"):
        model.predict({"strike": 1.0, "vol": 0.2, "expiry": 30.0}, units={"expiry": "days"})


@pytest.mark.slow
def test_a_greeks_graph_that_differs_leaves_both_files_as_they_were(tmp_path, monkeypatch):
    surrogate = CASES["black_scholes monotone"]()
    export_surrogate(surrogate, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    whole = surrogates._Graph.with_gradient

    def broken(graph, x, tensors):
        value, gradient, *rest = whole(graph, x, tensors)
        return value, gradient * 1.001, *rest

    monkeypatch.setattr(surrogates._Graph, "with_gradient", broken)
    with pytest.raises(UserError, match="`gradient` of the exported graph differs"):
        export_surrogate(surrogate, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.slow
def test_a_saved_surrogate_and_an_inverse_map_export_from_their_folders(tmp_path):
    surrogate = CASES["black_scholes monotone"]()
    surrogate.save(tmp_path / "surrogate")
    files = export_run(tmp_path / "surrogate", tmp_path / "out", say=str)
    assert [path.name for path in files] == ["model.onnx", "model_greeks.onnx"]
    model, places = CALIBRATION_MODELS["heston"](), Places.standard(0.25, 1.0, n_expiries=2)
    inverse = InverseMap.train(model, places, InverseTraining(n_surfaces=200, max_epochs=2, n_judged=10))
    inverse.save(tmp_path / "inverse")
    (path,) = export_run(tmp_path / "inverse", tmp_path / "inverse_out", say=str)
    exported = load_exported(path)
    assert exported.metadata["outputs"]["parameters"] == list(inverse.box.names)
    judged = exported.metadata["errors"]
    assert judged["mean_error_share_of_box"] == inverse.report["mean_error_share_of_box"]
    errors = inverse.report["vol_error_bps"].items()
    assert judged["vol_error_bps"] == {level: error if np.isfinite(error) else None for level, error in errors}
    assert judged["n_judged"] == 10
    moved = replace(inverse, parameters=inverse.parameters * (1 + 1e-6))
    assert exported.metadata["map_hash"] == inverse.hash != moved.hash
    places = _Graph(inverse).places(torch.tensor([inverse.box.low, inverse.box.high]).double().numpy())
    np.testing.assert_allclose(places, [[0.0] * 5, [1.0] * 5], atol=1e-6)  # of a logarithmic range too
    vols = torch.exp(torch.randn(50, 2, 11, generator=generator()).double() * 0.2 - 1.5)
    found = exported.predict(vols.flatten(1).numpy(), errors="flag")["parameters"]
    np.testing.assert_allclose(found, inverse._parameters(vols), rtol=1e-5)
    with pytest.raises(UserError, match="`member` chooses a network of a walk-forward"):
        export_run(tmp_path / "inverse", member="all")


MODELS_SEEN = {
    "heston": {"v0": 0.04, "kappa": qs.Range(0.5, 5.0), "theta": 0.05, "sigma": 0.5, "rho": -0.5},
    "bates": {"v0": 0.04, "kappa": 2.0, "theta": 0.05, "sigma": 0.5, "rho": -0.5, "intensity": qs.Range(0.1, 1.0),
              "jump_mean": -0.1, "jump_std": 0.1},
    "merton": {"vol": 0.2, "intensity": qs.Range(0.1, 1.0), "jump_mean": -0.1, "jump_std": 0.1},
    "black_scholes": {"vol": qs.Range(0.1, 0.4)},
    "sabr": {"alpha": 0.2, "beta": qs.Range(0.3, 1.0), "rho": -0.3, "nu": 0.4},
    "rough_bergomi": {"xi": qs.Range(0.01, 0.16, LOG), "eta": 1.9, "hurst": 0.1, "rho": -0.7},
    "rough_heston": {"v0": 0.04, "kappa": 0.3, "theta": 0.06, "sigma": 0.3, "rho": -0.7, "hurst": qs.Range(0.05, 0.4)},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(REFERENCE_VOLS))
def test_every_model_with_a_reference_vol_exports(tmp_path, kind):
    numbers = {name: value for name, value in MODELS_SEEN[kind].items() if not isinstance(value, qs.Range)}
    box = {name: value for name, value in MODELS_SEEN[kind].items() if isinstance(value, qs.Range)}
    box |= {"expiry": qs.Range(0.1, 2.0, LOG), "standard_moneyness": qs.Range(-2.0, 2.0)}
    problem = qs.Problem({"kind": kind} | numbers, {"kind": "european"}, box=box, target="implied_vol")
    assert_exports(made_up(problem, "log_vol", SILU), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rough_bergomi", "asian_barrier", "bermudan"])
def test_the_problems_of_the_configs_export(tmp_path, pytestconfig, name):
    settings = config.read_yaml(pytestconfig.rootpath / f"configs/surrogate_{name}.yaml")
    problem = config.build(qs.Problem, settings["problem"])
    network = qfml.MLP(hidden=(64, 64, 64), activation="silu")
    kind, output = ("vol_ratio", "exp") if name == "rough_bergomi" else ("positive", "softplus")
    assert_exports(made_up(problem, kind, Bounded(network, output), 0.1, seeds=2), tmp_path)


def assert_exports(surrogate, folder):
    """Both files, and that they give what the surrogate says on points of its box."""
    model, greeks = (load_exported(each.path) for each in export_surrogate(surrogate, folder))
    points = surrogates.box_points(surrogate, 500)
    truth = surrogate.predict(points, errors="flag")
    for own in (model, greeks):
        found = own.predict(points.numpy(), errors="flag")
        assert np.array_equal(found["inside"], truth.inside.numpy())
        np.testing.assert_allclose(found["value"], truth.value, rtol=1e-5, atol=1e-6)
