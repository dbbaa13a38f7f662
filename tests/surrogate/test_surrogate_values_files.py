import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from surrogate_cases import CALLS, VOLS, quick, rows_of, table_of

import pricers as pr
import qfml
from qfml.errors import CheckpointError, ConfigError, DataError, UserError
from qfml.surrogate import ErrorBound, Problem, Range, Shape, Surrogate, SurrogateTraining, fit_surrogate
from qfml.surrogate.bounded import Bounded
from qfml.surrogate.labels import split_by_law
from qfml.surrogate.tangents import outputs, outputs_and_slopes
from qfml.surrogate.target import Target
from qfml.surrogate.training import network_for, row_weights, training_data


@pytest.fixture(scope="module")
def vols():
    rows = rows_of(VOLS, 1500)
    return fit_surrogate(VOLS, table_of(VOLS, rows, VOLS.exact(rows)), quick(40, (32, 32)))


@pytest.fixture(scope="module")
def calls():
    rows = rows_of(CALLS, 800)
    return fit_surrogate(
        CALLS, table_of(CALLS, rows, CALLS.exact(rows)), quick(30, (24, 24), n_seeds=2, combine="mean")
    )


def test_vols_of_fresh_points_are_hestons(vols):
    rows = rows_of(VOLS, 500, seed=1)
    found, exact = vols.predict(rows, errors="flag"), VOLS.exact(rows)
    assert int(found.inside.sum()) > 350
    error = (found.value - exact)[found.inside]
    of_reference = (VOLS.reference_vol(rows) - exact)[found.inside]  # what a network that learned nothing would give
    assert float(error.square().mean().sqrt()) < 0.25 * float(of_reference.square().mean().sqrt())
    assert float(error.abs().max()) < 3e-2


def test_prices_are_those_of_the_engine_it_replaces(vols):
    strikes, expiries = [[92.0, 100.0, 108.0]], [[0.5], [1.5]]
    model = pr.Heston(v0=0.06, kappa=2.0, theta=0.05, sigma=0.4, rho=-0.5)
    market = pr.Market(spot=100.0, rate=0.04, dividend_yield=0.01)
    for option in ("call", "put"):
        contract = pr.European(strikes, expiries, option)
        exact = pr.price(contract, model, market).value
        torch.testing.assert_close(vols.price(contract, model, market), exact, rtol=0, atol=0.06)  # 10 bps times vega
        own = pr.implied_vol(
            exact,
            market.forward(contract.expiry),
            contract.strike,
            contract.expiry,
            market.discount(contract.expiry),
            option=option,
        )
        torch.testing.assert_close(vols.implied_vol(contract, model, market), own, rtol=0, atol=2e-3)


def test_greeks_are_derivatives_of_its_own_prices_and_near_the_exact_ones(vols):
    contract, market = pr.European([95.0, 100.0, 105.0], 1.0, "put"), pr.Market(100.0, 0.03, 0.01)
    model = pr.Heston(v0=0.06, kappa=2.0, theta=0.05, sigma=0.4, rho=-0.5)
    wrt = ("spot", "v0", ("spot", "spot"), ("spot", "v0"), "strike")
    found, exact = vols.greeks(contract, model, market, wrt), pr.greeks(contract, model, market, wrt)
    step = 1e-2

    def price(spot, v0):  # of the float64 function that the Greeks are derivatives of
        rows = vols.rows(
            {
                "v0": v0,
                "kappa": 2.0,
                "theta": 0.05,
                "sigma": 0.4,
                "rho": -0.5,
                "expiry": 1.0,
                "log_moneyness": torch.log(contract.strike / (spot * math.exp(0.02))),
            }
        )
        return pr.black.black_price(
            spot * math.exp(0.02), contract.strike, 1.0, vols.unchecked_values(rows), math.exp(-0.03), "put"
        )

    up, mid, down = (price(100.0 + k * step, 0.06) for k in (1, 0, -1))
    torch.testing.assert_close(found["spot"], (up - down) / (2 * step), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found["spot", "spot"], (up - 2 * mid + down) / step**2, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found["spot"], exact["spot"].value, rtol=0, atol=0.02)
    torch.testing.assert_close(found["v0"], exact["v0"].value, rtol=0.1, atol=0)
    torch.testing.assert_close(found["spot", "spot"], exact["spot", "spot"].value, rtol=0.25, atol=0)


@pytest.mark.parametrize("name", ["vols", "calls"])
def test_written_out_derivatives_are_autograds(name, request):
    surrogate = request.getfixturevalue(name)
    rows = rows_of(surrogate.problem, 5000, seed=2).requires_grad_()  # more than one block
    value = surrogate.unchecked_values(rows)
    (expected,) = torch.autograd.grad(value.sum(), rows)
    found, gradient = surrogate.unchecked_value_and_gradient(rows.detach())
    assert not gradient.requires_grad
    torch.testing.assert_close(found, value.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-11)
    fast = surrogate.predict(rows.detach(), errors="flag")
    torch.testing.assert_close(fast.value[fast.inside].double(), value.detach()[fast.inside], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("output", [None, "softplus", "exp"])
@pytest.mark.parametrize("activation", ["silu", "gelu", "tanh", "relu"])
def test_slopes_of_every_perceptron_are_autograds(activation, output):
    inner = qfml.MLP(hidden=(9, 7, 5), activation=activation)
    network = inner if output is None else Bounded(inner, output)
    parameters = {k: v.double() for k, v in network.init(4, None, torch.Generator().manual_seed(1)).items()}
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64, requires_grad=True)
    expected = network.forward({k: v[None] for k, v in parameters.items()}, x[None])[0]
    (slopes,) = torch.autograd.grad(expected.sum(), x)
    found = outputs_and_slopes(network, parameters, x.detach())
    torch.testing.assert_close(found[0], expected.detach(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found[1], slopes, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(outputs(network, parameters, x.detach()), expected.detach(), rtol=1e-12, atol=1e-13)


def test_slopes_of_a_network_that_has_none_written_out():
    network = qfml.ConvexMLP(convex=(1,), hidden=(6, 6))
    parameters = {k: v.double() for k, v in network.init(3, None, torch.Generator().manual_seed(1)).items()}
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    step = 1e-6
    value, slopes = outputs_and_slopes(network, parameters, x)
    moved = torch.stack([outputs(network, parameters, x + step * torch.eye(3).double()[j]) for j in range(3)], 1)
    torch.testing.assert_close(slopes, (moved - value[:, None]) / step, rtol=0, atol=1e-5)


def test_european_prices_never_leave_the_no_arbitrage_bounds(calls):
    rows = rows_of(CALLS, 4000, seed=3)
    rough = replace(calls, fits=tuple(replace(fit, parameters=fit.parameters * 1.7) for fit in calls.fits))
    value = rough.unchecked_values(rows)
    forward, strike = torch.exp(-0.01 * rows[:, 1]), rows[:, 2] * torch.exp(-0.03 * rows[:, 1])
    assert bool((value >= torch.relu(forward - strike) - 1e-12).all())
    assert bool((value <= forward + 1e-12).all())
    assert float((value - CALLS.exact(rows)).abs().max()) > 0.01, "the network must be a bad one"


def test_the_mean_over_the_seeds_is_the_mean_of_their_prices(calls):
    rows = rows_of(CALLS, 50, seed=4)
    alone = [replace(calls, fits=(fit,)).unchecked_values(rows) for fit in calls.fits]
    assert len(alone) == 2
    torch.testing.assert_close(calls.unchecked_values(rows), (alone[0] + alone[1]) / 2, rtol=1e-12, atol=0)
    assert calls.report["validation_rmse"][0] <= calls.report["validation_rmse"][1]


def test_rows_outside_are_refused_by_name_or_flagged(vols):
    inside = {"v0": 0.05, "kappa": 1.0, "theta": 0.05, "sigma": 0.4, "rho": -0.5, "expiry": 1.0}
    columns = inside | {"log_moneyness": [0.0, 0.1]}
    assert vols.predict(columns).inside.tolist() == [True, True]
    far = inside | {"rho": [-0.5, 0.3], "log_moneyness": 0.0}
    with pytest.raises(
        DataError,
        match=r"1 of 2 rows lie outside of the box; first row 1: rho 0.3, and the surrogate "
        r"knows -0.9 to 0; .*errors='flag'",
    ):
        vols.predict(far)
    flagged = vols.predict(far, errors="flag")
    assert flagged.inside.tolist() == [True, False]
    assert flagged.value.isnan().tolist() == [False, True]
    deep = inside | {"log_moneyness": 1.5}
    with pytest.raises(DataError, match=r"delta .* \(log_moneyness 1.5\), and the surrogate knows 0.1 to 0.9"):
        vols.predict(deep)
    nan = inside | {"log_moneyness": [0.0, math.nan]}
    assert vols.predict(nan, errors="flag").inside.tolist() == [True, False]
    with pytest.raises(DataError, match="first row 1"):
        vols.predict(nan)


def test_derivatives_outside_are_refused_by_name_or_flagged(vols):
    law = {"v0": 0.05, "kappa": 1.0, "theta": 0.05, "sigma": 0.4, "expiry": 1.0, "log_moneyness": 0.0}
    far = vols.rows(law | {"rho": [-0.5, 0.3]})
    with pytest.raises(DataError, match=r"1 of 2 rows lie outside of the box; first row 1: rho 0.3"):
        vols.value_and_gradient(far)
    with pytest.raises(ConfigError, match="`errors` must be one of raise, flag, got 'ignore'"):
        vols.value_and_gradient(far, errors="ignore")
    value, gradient = vols.value_and_gradient(far, errors="flag")
    plain, slopes = vols.unchecked_value_and_gradient(far)
    assert (value.dtype, value.isnan().tolist()) == (torch.float64, [False, True])
    assert gradient.isnan().all(1).tolist() == gradient.isnan().any(1).tolist() == [False, True]
    assert torch.equal(value[0], plain[0])
    assert torch.equal(gradient[0], slopes[0])
    assert bool(plain.isfinite().all()), "what is not checked is extrapolated"
    for given in (law | {"rho": -0.5}, far[:1].tolist(), far[:1].numpy()):
        torch.testing.assert_close(vols.value_and_gradient(given)[1], slopes[:1], rtol=1e-12, atol=1e-14)
    assert vols.value_and_gradient(far[:1].float())[1].dtype == torch.float32


def test_a_strike_beyond_all_labels_is_outside_whatever_delta_the_network_gives_it(vols, tmp_path):
    # sigma of the total vol so large that the network's own call delta comes back into the box far out of the money
    law = {"v0": 0.05, "kappa": 1.0, "theta": 0.05, "sigma": 0.4, "rho": -0.5, "expiry": 1.0}
    wild = replace(vols, fits=tuple(replace(fit, parameters=fit.parameters * 2.0) for fit in vols.fits))
    rows = wild.rows(law | {"log_moneyness": torch.linspace(-12.0, 12.0, 241)})
    z = rows[:, -1] / VOLS.reference_vol(rows)
    with torch.no_grad():
        by_delta = ~VOLS.outside(rows, wild.unchecked_values(rows)).any(1)
    assert bool((by_delta & (z.abs() > 1.51)).any()), "a strike is far out and its delta in the box"
    wild.save(tmp_path / "s")
    for surrogate in (wild, Surrogate.load(tmp_path / "s")):
        low, high = surrogate.moneyness
        assert -1.5 <= low < -1.49
        assert 1.49 < high <= 1.5
        torch.testing.assert_close(surrogate.inside(rows), by_delta & (z >= low) & (z <= high))
    first = int((by_delta & (z.abs() > 1.51)).nonzero()[0])
    with pytest.raises(DataError, match=r"reference deviations from the money, and the labels lay between -1.49"):
        wild.predict(rows[first : first + 1])


def test_an_edge_of_the_box_is_inside(calls):
    corners = [[0.1, 0.5, 0.8], [0.4, 2.0, 1.2], [0.4 + 1e-12, 2.0, 0.8]]
    assert calls.predict(corners).inside.all()
    assert not calls.predict([[0.4 + 1e-6, 2.0, 0.8]], errors="flag").inside.any()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([[0.2, 1.0]], r"inputs must have shape \(N, 3\), columns vol, expiry, strike, got \(1, 2\)"),
        ([0.2, 1.0, 1.0], r"got \(3,\)"),
        ("x", r"inputs must be numbers of shape \(N, 3\)"),
        ({"vol": 0.2, "expiry": 1.0}, "inputs lack `strike`"),
        (
            {"vol": [0.2, 0.3], "expiry": [1.0, 1.0, 1.5], "strike": 1.0},
            r"shapes that broadcast.*vol \(2,\), expiry \(3,",
        ),
        ({"vol": "high", "expiry": 1.0, "strike": 1.0}, "input `vol` must be numbers, got 'high'"),
        ({"vol": [[0.2], [0.2, 0.3]], "expiry": 1.0, "strike": 1.0}, "input `vol` must be numbers"),
        ({"vol": 0.2, "expiry": 1.0, "strike": 1.0, "rho": 0.1}, "`rho` is no input of the surrogate"),
    ],
)
def test_inputs_of_another_form_are_refused(calls, given, message):
    with pytest.raises(DataError, match=message):
        calls.predict(given)


def test_another_contract_or_market_is_refused(calls, vols):
    contract, model = pr.European(1.0, 1.0), pr.BlackScholes(0.2)
    market = pr.Market(spot=1.0, rate=0.03, dividend_yield=0.01)
    torch.testing.assert_close(
        calls.price(contract, model, market), pr.price(contract, model, market).value, rtol=0, atol=2e-3
    )
    hundredfold = pr.Market(spot=100.0, rate=0.03, dividend_yield=0.01)  # prices scale with the spot
    scaled = calls.price(pr.European(100.0, 1.0), model, hundredfold)
    torch.testing.assert_close(scaled, 100 * calls.price(contract, model, market), rtol=1e-6, atol=0)
    with pytest.raises(
        DataError, match=r"`rate` of the market is .*0.03.* wherever the surrogate was trained, got .*0.05"
    ):
        calls.price(contract, model, pr.Market(spot=1.0, rate=0.05, dividend_yield=0.01))
    with pytest.raises(DataError, match=r"`option` of the instrument is 'call' wherever .* got 'put'"):
        calls.price(pr.European(1.0, 1.0, "put"), model, market)
    with pytest.raises(DataError, match="`instrument` must be European, for which the surrogate stands, got Digital"):
        vols.price(pr.Digital(1.0, 1.0), pr.Heston(0.05, 1.0, 0.05, 0.4, -0.5), market)
    with pytest.raises(DataError, match="`wrt` must name one of strike, expiry, vol, spot"):
        calls.greeks(contract, model, market, ("v0",))


# ------------------------------------------------------------------ training


def test_noisy_vols_and_signed_prices_stay_linear_in_the_label():
    rows = rows_of(VOLS, 64)
    value = VOLS.exact(rows)
    assert Target.of(VOLS, value, torch.zeros(64)).kind == "log_vol"
    noisy = Target.of(VOLS, value, torch.full((64,), 1e-3))
    assert (noisy.kind, noisy.output) == ("vol_ratio", "exp")
    noise = 0.01 * torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shift = noisy.encode(value + noise, rows) - noisy.encode(value, rows)
    torch.testing.assert_close(shift, noise / VOLS.reference_vol(rows), rtol=1e-9, atol=1e-12)
    assert isinstance(network_for(VOLS, SurrogateTraining(), noisy), Bounded)


def test_weights_are_those_of_the_value_over_its_variance():
    slope, error = torch.tensor([1.0, 2.0, 2.0]).double(), torch.tensor([3.0, 0.0, 4.0]).double()
    expected = torch.tensor([1 / (9 + 1), 4 / 1, 4 / (16 + 1)]).double()
    torch.testing.assert_close(row_weights(slope, error, 1.0), expected)
    torch.testing.assert_close(row_weights(slope, torch.zeros(3), None), torch.tensor([1.0, 4.0, 4.0]).double())
    floor = math.sqrt(25 / 3)  # the root mean square
    torch.testing.assert_close(row_weights(slope, error, None), row_weights(slope, error, floor))


def test_importance_weights_of_refined_points_multiply_those_of_the_loss():
    rows = rows_of(CALLS, 40)
    table = table_of(CALLS, rows, CALLS.exact(rows))
    importance = torch.linspace(0.5, 2.0, 40, dtype=torch.float64)
    target = Target(CALLS, "linear", 0.2)
    plain = training_data(CALLS, table, target, quick()).weight.double()
    weighted = training_data(CALLS, replace(table, weight=importance), target, quick()).weight.double()
    torch.testing.assert_close(weighted, plain * importance / importance.mean(), rtol=1e-6, atol=0)
    surrogate = fit_surrogate(CALLS, replace(table, weight=importance), quick(1, (4,), validation_share=0.5))
    val = split_by_law(table, (0.5, 0.5), 0)[1]
    error = (surrogate.unchecked_values(rows[val]) - table.value[val]).square()
    expected = math.sqrt(float((error * importance[val]).sum() / importance[val].sum()))
    assert surrogate.report["validation_rmse"][0] == pytest.approx(expected, rel=1e-4)


def test_a_weighted_loss_is_the_loss_in_vols_to_first_order():
    rows = rows_of(VOLS, 200)
    value = VOLS.exact(rows)
    table, target = table_of(VOLS, rows, value), Target(VOLS, "log_vol")
    ds = training_data(VOLS, table, target, quick())
    off = 1e-4 * torch.randn(200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    in_log = (ds.weight.double() * (target.encode(value + off, rows) - target.encode(value, rows)).square()).mean()
    assert float(in_log * value.square().mean()) == pytest.approx(float(off.square().mean()), rel=2e-3)


def test_derivatives_of_labels_reach_the_twin_loss_in_the_features():
    rows = rows_of(CALLS, 300)
    leaf = rows.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(CALLS.exact(leaf).sum(), leaf)
    table = table_of(CALLS, rows, CALLS.exact(rows), gradient=gradient)
    ds = training_data(CALLS, table, Target(CALLS, "linear", 0.2), quick(twin=1.0))
    expected = gradient / 0.2 * torch.tensor([0.15, 0.75, 0.2]).double()  # the feature moves by 1 over half a range
    torch.testing.assert_close(ds.label_gradient.double(), expected, rtol=1e-6, atol=1e-6)
    surrogate = fit_surrogate(CALLS, table, quick(12, (12,), twin=1.0))
    assert surrogate.fits[0].loss.kind == "twin"
    found = surrogate.unchecked_value_and_gradient(rows)[1]
    assert float((found - gradient).square().mean()) < 0.3 * float(gradient.square().mean())
    with pytest.raises(ConfigError, match="`twin` learns from derivatives, which these labels do not have"):
        fit_surrogate(CALLS, table_of(CALLS, rows, CALLS.exact(rows)), quick(1, twin=1.0))


@pytest.mark.parametrize("shape", [Shape(convex=("strike",)), Shape(decreasing=("strike",), increasing=("vol",))])
def test_a_shape_in_the_strike_holds_for_any_weights(shape):
    rows = rows_of(CALLS, 100)
    surrogate = fit_surrogate(CALLS, table_of(CALLS, rows, CALLS.exact(rows)), quick(2, (8, 8), shape=shape))
    grid = torch.linspace(0.8, 1.2, 41, dtype=torch.float64)
    value = surrogate.unchecked_values(surrogate.rows({"vol": 0.25, "expiry": 1.0, "strike": grid}))
    assert bool((value > 0).all())
    if shape.convex:
        assert bool((value.diff(n=2) >= -1e-13).all())
    else:
        assert bool((value.diff() <= 1e-13).all())
        rising = surrogate.unchecked_values(
            surrogate.rows({"vol": torch.linspace(0.1, 0.4, 20), "expiry": 1.0, "strike": 1.0})
        )
        assert bool((rising.diff() >= -1e-13).all())


def test_monotonicity_is_promised_only_in_inputs_that_move_one_feature():
    box = {"vol": Range(0.1, 0.4), "expiry": Range(0.5, 2.0), "standard_moneyness": Range(-2.0, 2.0)}
    problem = Problem(model={"kind": "black_scholes"}, instrument={"kind": "european"}, box=box, target="price")
    rows = rows_of(problem, 60)
    table = table_of(problem, rows, problem.exact(rows))
    for shape in (Shape(increasing=("vol",)), Shape(decreasing=("log_moneyness", "expiry"))):
        with pytest.raises(ConfigError, match="moves the feature of `log_moneyness` too, which is standardised"):
            fit_surrogate(problem, table, quick(1, shape=shape))
    surrogate = fit_surrogate(problem, table, quick(1, (8,), shape=Shape(decreasing=("log_moneyness",))))
    grid = torch.linspace(-0.3, 0.3, 31, dtype=torch.float64)
    value = surrogate.unchecked_values(surrogate.rows({"vol": 0.25, "expiry": 1.0, "log_moneyness": grid}))
    assert bool((value.diff() <= 1e-13).all())


def test_settings_that_do_not_fit_are_refused():
    rows = rows_of(VOLS, 20)
    table = table_of(VOLS, rows, VOLS.exact(rows))
    with pytest.raises(ConfigError, match="`shape` is one of prices, and the target is implied_vol"):
        fit_surrogate(VOLS, table, quick(1, shape=Shape(convex=("log_moneyness",))))
    with pytest.raises(ConfigError, match="no network here is both"):
        Shape(convex=("strike",), decreasing=("strike",))
    with pytest.raises(ConfigError, match=r"`shape` makes a network of the widths of `network`, .* got residual_mlp"):
        SurrogateTraining(network=qfml.ResidualMLP(), shape=Shape(convex=("strike",)))
    with pytest.raises(
        DataError, match=r"the labels are of v0, kappa, .*, and the problem's inputs vol, expiry, strike"
    ):
        fit_surrogate(CALLS, table, quick(1))
    with pytest.raises(DataError, match="the labels are of 1 laws"):
        fit_surrogate(VOLS, replace(table, law=torch.zeros(20, dtype=torch.int64)), quick(1))
    with pytest.raises(UserError, match=r"`dropout` of a bounded network's `inner` must be 0, got 0.1"):
        Bounded(qfml.MLP(dropout=0.1))


# ------------------------------------------------------------------ files


def test_what_is_saved_is_read_back(calls, tmp_path):
    with_bound = replace(calls, bound=ErrorBound(0.99, 1.2e-3, "per unit of spot", 1000))
    with_bound.save(tmp_path / "s")
    again = Surrogate.load(tmp_path / "s")
    rows = rows_of(CALLS, 30, seed=6)
    assert torch.equal(again.predict(rows).value, calls.predict(rows).value)
    assert again.bound == with_bound.bound
    assert again.hash == calls.hash
    assert again.problem == calls.problem
    assert again.report == calls.report
    assert not list(tmp_path.glob(".*")), "nothing unfinished is left"
    with pytest.raises(CheckpointError, match="exists: a surrogate is saved into a new folder"):
        calls.save(tmp_path / "s")


def test_the_hash_is_that_of_problem_network_and_labels(calls):
    moved = replace(calls.fits[0], parameters=calls.fits[0].parameters + 1e-7)
    others = [
        replace(calls, fits=(moved, *calls.fits[1:])),
        replace(calls, fits=calls.fits[:1]),
        replace(calls, report=calls.report | {"labels": "others"}),
        replace(calls, target=replace(calls.target, scale=2.0)),
    ]
    assert len({calls.hash, *(other.hash for other in others)}) == 5


def edit_state(folder, change):
    """Change `state.json` and mend every hash of the files, as a careless tool would."""
    import hashlib

    state = json.loads((folder / "state.json").read_text())
    change(state)
    (folder / "state.json").write_text(json.dumps(state))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["state.json"] = hashlib.sha256((folder / "state.json").read_bytes()).hexdigest()
    del manifest["sha256"]
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.update(version=1), "is of version 1 of surrogate files, and this qfml reads 2"),
        (lambda state: state.update(hash="0" * 16), "says that its hash is 0000000000000000, and what it holds has"),
        (lambda state: state["problem"]["box"]["vol"].update(high=0.8), "says that its hash is"),
        (lambda state: state["target"].update(scale=0.5), "says that its hash is"),
        (lambda state: state["network"].update(inner={"kind": "mlp", "hidden": [3]}), "are not those of its network"),
        (lambda state: state["problem"].update(target="gamma"), "does not describe a surrogate: .*`target` must be"),
        (lambda state: state.update(format="other"), "holds no surrogate, but other"),
        (lambda state: state.pop("bound"), "does not describe a surrogate"),
        (lambda state: state.update(moneyness=[-9.0, 9.0]), "says that its hash is"),
    ],
)
def test_a_file_that_was_changed_is_refused(calls, tmp_path, change, message):
    calls.save(tmp_path / "s")
    edit_state(tmp_path / "s", change)
    with pytest.raises(CheckpointError, match=message):
        Surrogate.load(tmp_path / "s")


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_changed_byte_is_refused(calls, tmp_path, name):
    calls.save(tmp_path / "s")
    content = bytearray((tmp_path / "s" / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "s" / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        Surrogate.load(tmp_path / "s")


def test_a_run_without_a_surrogate_says_so(calls, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("task: surrogate")
    with pytest.raises(CheckpointError, match="run is not finished: continue it with `qfml resume"):
        Surrogate.load(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("task: calibration\nname: x\n")
    with pytest.raises(CheckpointError, match="run of the task calibration, which trains no surrogate"):
        Surrogate.load(tmp_path / "run")
    calls.save(tmp_path / "run" / "surrogate")
    assert Surrogate.load(tmp_path / "run").hash == calls.hash


def test_no_folder_is_no_surrogate(tmp_path):
    with pytest.raises(CheckpointError, match="no surrogate at"):
        Surrogate.load(tmp_path / "none")


def test_numpy_inputs_and_many_rows_agree_with_one_by_one(calls):
    rows = rows_of(CALLS, 9000, seed=7)
    whole = calls.predict(np.asarray(rows)).value
    torch.testing.assert_close(whole[8190:8200], calls.predict(rows[8190:8200]).value, rtol=1e-5, atol=1e-7)
