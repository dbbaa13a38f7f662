import json
import math
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
import torch
from surrogate_cases import CALLS, VOLS, quick, rows_of, table_of

from pricers.black import black_price
from pricers.noise import address
from qfml.errors import ConfigError, DataError
from qfml.surrogate import JudgementSettings, Problem, Range, Surrogate, fit_surrogate, judge
from qfml.surrogate.arbitrage import arbitrage_of, derivatives_along, durrleman
from qfml.surrogate.exact_labels import target_values
from qfml.surrogate.fresh import engine_slopes, fresh_labels
from qfml.surrogate.points import unit_inputs
from qfml.surrogate.regions import MEASURES, by_coordinate, by_pair, coverage_by_bin
from qfml.surrogate.settings import ExactLabels, FiniteDifferenceLabels, MonteCarloLabels

FEW = JudgementSettings(n_points=400, n_calibration=300, n_greeks=50, n_bins=4, speed_paths=0)


def trained(problem, n, settings):
    rows = rows_of(problem, n)
    return fit_surrogate(problem, table_of(problem, rows, problem.exact(rows)), settings)


@pytest.fixture(scope="module")
def vols():
    return trained(VOLS, 700, quick(12, (16, 16)))


@pytest.fixture(scope="module")
def calls():
    return trained(CALLS, 300, quick(30, (12,)))


@pytest.fixture(scope="module")
def of_vols(vols):
    return judge(vols, FEW)


def test_errors_are_those_of_the_arrays_and_the_labels_exact(of_vols):
    arrays, metrics = of_vols.arrays, of_vols.metrics
    exact = VOLS.exact(torch.from_numpy(arrays["inputs"])).numpy()
    np.testing.assert_allclose(arrays["exact"], exact, rtol=0, atol=1e-8)
    error = arrays["value"] - arrays["exact"]
    np.testing.assert_array_equal(arrays["error"], error)
    found, size = metrics["error"], np.sort(np.abs(error))
    assert found["mse"] == pytest.approx(np.mean(error**2))
    assert found["rmse"] == pytest.approx(math.sqrt(np.mean(error**2)))
    assert found["r2"] == pytest.approx(1 - np.mean(error**2) / np.var(arrays["exact"]))
    assert found["q99"] == size[math.ceil(0.99 * len(size)) - 1]
    assert found["max"] == size[-1]
    assert metrics["vol_bps"]["mean_abs"] == pytest.approx(1e4 * np.mean(size))
    assert metrics["worst"][0]["error"] == error[np.argmax(np.abs(error))]
    assert metrics["points"]["n_points"] == len(error) == 400
    json.dumps(metrics, allow_nan=False)


def test_errors_in_prices_are_differences_of_blacks_formula(of_vols):
    arrays = of_vols.arrays
    expiry, k = arrays["inputs"][:, 5], arrays["inputs"][:, 6]
    prices = [black_price(1.0, np.exp(k), expiry, arrays[name]).numpy() for name in ("value", "exact")]
    expected = 1e4 * math.sqrt(np.mean((prices[0] - prices[1]) ** 2))
    assert of_vols.metrics["price_bps"]["rmse"] == pytest.approx(expected, rel=1e-9)


def test_greeks_are_compared_with_exact_derivatives(vols, of_vols):
    table = fresh_labels(VOLS, ExactLabels(), 20, 3, gradients=True)
    step = 1e-5
    for i, name in enumerate(VOLS.inputs):
        up, down = table.inputs.clone(), table.inputs.clone()
        up[:, i] += step
        down[:, i] -= step
        slope = (VOLS.exact(up) - VOLS.exact(down)) / (2 * step)
        torch.testing.assert_close(table.gradient[:, i], slope, rtol=1e-3, atol=1e-4)
        found = of_vols.metrics["greeks"][name]
        assert found["rmse"] == pytest.approx(math.sqrt(np.mean(of_vols.arrays["greeks_error"][:, i] ** 2)))
        assert found["relative"] == pytest.approx(found["rmse"] / found["rms_exact"])


def test_a_derivative_that_is_zero_has_no_relative_error():
    """Black and Scholes have no smile: the vol of an exact price does not move with the strike, but by rounding."""
    problem = Problem(
        model={"kind": "black_scholes"},
        instrument={"kind": "european", "expiry": 1.0},
        market={"spot": 100.0, "rate": 0.02},
        box={"vol": Range(0.1, 0.4), "strike": Range(80.0, 120.0)},
        target="implied_vol",
    )
    surrogate = trained(problem, 60, quick(2, (4,)))
    found = judge(surrogate, replace(FEW, n_points=20, n_calibration=100, n_bins=2)).metrics["greeks"]
    assert found["strike"]["rms_exact"] < 1e-12
    assert found["strike"]["relative"] is None
    assert found["strike"]["rmse"] > 0
    assert found["vol"]["rms_exact"] == pytest.approx(1.0)
    assert found["vol"]["relative"] == pytest.approx(found["vol"]["rmse"])


def test_the_bound_is_proved_on_other_points_than_it_was_taken_from(of_vols):
    found, error = of_vols.metrics["conformal"], of_vols.arrays["error"]
    assert found["coverage"] == np.mean(np.abs(error) <= found["bound"])
    assert found["coverage_low"] < found["coverage"] <= found["coverage_high"]
    assert of_vols.surrogate.bound.value == found["bound"] != np.sort(np.abs(error))[-4]
    assert (found["level"], found["n_calibration"], found["of"]) == (0.99, 300, "value")
    assert of_vols.surrogate.predict(of_vols.arrays["inputs"][:3], errors="flag").bound == of_vols.surrogate.bound


def test_coverage_is_told_bin_by_bin(of_vols):
    found, arrays = of_vols.metrics["conformal"], of_vols.arrays
    by_bin = found["by_bin"]
    assert len(by_bin) == len(VOLS.box) * FEW.n_bins
    assert [one["name"] for one in by_bin[:: FEW.n_bins]] == list(VOLS.box)
    kept = np.abs(arrays["error"]) <= found["bound"]
    for name in ("v0", "expiry", "rho"):  # by a loop over natural units
        column = arrays["inputs"][:, VOLS.inputs.index(name)]
        own = [one for one in by_bin if one["name"] == name]
        assert (own[0]["low"], own[-1]["high"]) == pytest.approx((VOLS.box[name].low, VOLS.box[name].high))
        assert sum(one["n"] for one in own) == 400
        for one in own:
            mask = (column >= one["low"]) & (column < one["high"])
            assert one["n"] == mask.sum()
            assert one["coverage"] == pytest.approx(kept[mask].mean())
    empty = coverage_by_bin(CALLS, torch.full((3, 3), 0.1), torch.zeros(3), 1.0, 2)
    assert [(one["n"], one["coverage"]) for one in empty[:2]] == [(3, 1.0), (0, None)]


def test_a_judgement_that_is_cut_off_leaves_the_one_before(of_vols, tmp_path, monkeypatch):
    of_vols.save(tmp_path)
    before = (tmp_path / "judgement.json").read_bytes()

    def cut(path, content):
        raise OSError("no space left")

    monkeypatch.setattr("pathlib.Path.write_bytes", cut)
    with pytest.raises(OSError, match="no space"):
        replace(of_vols, metrics={}).save(tmp_path)
    assert (tmp_path / "judgement.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["judgement.json", "judgement.safetensors"]


ROUGH = Problem(
    model={"kind": "rough_bergomi", "hurst": 0.2, "rho": 0.0},
    instrument={"kind": "european", "expiry": 0.5},
    box={"xi": Range(0.02, 0.08, "log"), "eta": Range(0.001, 0.01), "standard_moneyness": Range(-1.0, 1.0)},
    target="implied_vol",
)


def test_derivatives_of_rough_bergomi_are_differences_on_common_paths():
    """With a vol of vol of next to 0 the vol is the root of `xi`, whose derivative is known, and there is no smile."""
    slopes = engine_slopes(ROUGH, MonteCarloLabels(64, 4), 6, 3)
    torch.testing.assert_close(slopes.gradient[:, 0], 0.5 / slopes.inputs[:, 0].sqrt(), rtol=2e-3, atol=0)
    assert slopes.gradient[:, 2].abs().max() < 1e-3
    assert "central differences over 2 % of each range" in slopes.note
    for i, limits in enumerate((ROUGH.box["xi"], ROUGH.box["eta"])):
        assert bool(((slopes.inputs[:, i] > limits.low) & (slopes.inputs[:, i] < limits.high)).all())


@pytest.mark.slow
def test_standard_errors_of_differences_are_the_scatter_over_paths():
    problem = replace(ROUGH, model=ROUGH.model | {"rho": -0.7}, box=ROUGH.box | {"eta": Range(1.0, 1.00001)})
    slopes = engine_slopes(problem, MonteCarloLabels(128, 4), 16, 3)
    many = engine_slopes(problem, MonteCarloLabels(4096, 4), 16, 3)  # of the same points
    assert torch.equal(slopes.inputs, many.inputs)
    scatter = (slopes.gradient - many.gradient)[:, [0, 2]].square().mean(0).sqrt()
    told = slopes.std_error[:, [0, 2]].square().mean(0).sqrt()
    torch.testing.assert_close(told, scatter, rtol=0.4, atol=0)


def test_derivatives_of_a_bermudan_are_those_of_its_equation():
    problem = Problem(
        model={"kind": "black_scholes"},
        instrument={"kind": "bermudan", "option": "put", "times": [0.25, 0.5]},
        market={"spot": 1.0, "rate": 0.05},
        box={"vol": Range(0.2, 0.4), "strike": Range(0.9, 1.2)},
        target="price",
    )
    engine = FiniteDifferenceLabels(n_space=80, n_time=20)
    slopes = engine_slopes(problem, engine, 6, 3)
    assert (slopes.note, float(slopes.std_error.max())) == ("of the engine itself, without noise", 0.0)
    for i, step in enumerate((1e-3, 1e-3)):
        up, down = slopes.inputs.clone(), slopes.inputs.clone()
        up[:, i] += step
        down[:, i] -= step
        ends = [
            target_values(problem, {n: c[:, None] for n, c in problem.columns(rows).items()}, engine.engine()).value
            for rows in (up, down)
        ]
        difference = ((ends[0] - ends[1]) / (2 * step)).reshape(-1)
        torch.testing.assert_close(slopes.gradient[:, i], difference, rtol=0.02, atol=2e-3)


def test_what_was_not_compared_is_said(calls):
    found = judge(calls, replace(FEW, n_points=50, n_calibration=100, n_greeks=0)).metrics
    assert (found["greeks"], found["greeks_note"]) == ({}, "`n_greeks` is 0: derivatives were not compared")


def test_a_judgement_is_written_and_its_bound_saved(of_vols, tmp_path):
    of_vols.save(tmp_path)
    assert json.loads((tmp_path / "judgement.json").read_text()) == of_vols.metrics
    arrays = safetensors.numpy.load_file(tmp_path / "judgement.safetensors")
    assert {name: array.tolist() for name, array in arrays.items() if name == "error"}["error"] == list(
        of_vols.arrays["error"]
    )
    of_vols.surrogate.save(tmp_path / "s")
    assert Surrogate.load(tmp_path / "s").bound == of_vols.surrogate.bound


def test_noisy_labels_are_told_from_the_error():
    problem = Problem(
        model={"kind": "heston", "kappa": 2.0, "theta": 0.05, "sigma": 0.4, "rho": -0.6},
        instrument={"kind": "european", "expiry": 1.0},
        box={"v0": Range(0.02, 0.1), "strike": Range(0.8, 1.2)},
        target="price",
    )
    surrogate = trained(problem, 200, quick(30, (12,)))
    exactly = replace(FEW, n_points=128, n_calibration=128, n_greeks=0)
    exact, noisy = judge(surrogate, exactly), judge(surrogate, replace(exactly, engine=MonteCarloLabels(64, 4)))
    noise = noisy.metrics["noise"]
    np.testing.assert_array_equal(noisy.arrays["inputs"], exact.arrays["inputs"])
    scatter = math.sqrt(np.mean((noisy.arrays["exact"] - exact.arrays["exact"]) ** 2))  # with a small bias of 4 steps
    assert 1e-4 < scatter == pytest.approx(noise["std_error_rms"], rel=0.4)
    assert noise["rmse_without_noise"] < noisy.metrics["error"]["rmse"]
    assert noisy.surrogate.bound.of == "label"
    assert noisy.metrics["vol_bps"] is None
    np.testing.assert_allclose(noise["std_error_rms"], math.sqrt(np.mean(noisy.arrays["std_error"] ** 2)), rtol=1e-12)


def test_fresh_points_are_even_in_the_box_and_independent_of_one_another():
    first, second = (fresh_labels(VOLS, ExactLabels(), 300, seed) for seed in (1, 2))
    assert not set(first.inputs[:, 0].tolist()) & set(second.inputs[:, 0].tolist())
    assert len(first.law.unique()) == len(first)
    shares = unit_inputs(VOLS, first.inputs, first.value)
    for column in shares.T:  # Kolmogorov and Smirnov
        size = (column.sort().values - torch.arange(0.5, 300) / 300).abs().max()
        assert float(size) < 1.95 / math.sqrt(300)


def test_regions_are_those_of_a_loop():
    generator = torch.Generator().manual_seed(3)
    shares = torch.rand(500, 3, generator=generator, dtype=torch.float64)
    shares[0] = 1.0  # the upper edge belongs to the last bin
    error = torch.randn(500, generator=generator, dtype=torch.float64)
    one, (pairs, two) = by_coordinate(shares, error, 3), by_pair(shares, error, 3)
    cell = np.minimum((shares.numpy() * 3).astype(int), 2)

    def measured(mask):
        size = np.sort(np.abs(error.numpy()[mask]))
        return [math.sqrt(np.mean(size**2)), size[math.ceil(0.99 * len(size)) - 1], size[-1], len(size)]

    assert MEASURES == ("rmse", "q99", "max", "count")
    for i in range(3):
        for b in range(3):
            np.testing.assert_allclose(one[i, b], measured(cell[:, i] == b))
    assert pairs.tolist() == [[0, 1], [0, 2], [1, 2]]
    for p, (i, j) in enumerate(pairs):
        for a in range(3):
            for b in range(3):
                np.testing.assert_allclose(two[p, a, b], measured((cell[:, i] == a) & (cell[:, j] == b)))


def test_an_empty_region_has_no_error():
    found = by_coordinate(torch.tensor([[0.1], [0.2]]), torch.tensor([1.0, 1.0]), 2)
    assert np.isnan(found[0, 1, :3]).all()
    assert found[0, :, 3].tolist() == [2, 0]


def test_durrlemans_function_is_the_density_over_the_normal_one():
    # Breeden and Litzenberger (1978): the density is the second derivative of the call in the strike
    expiry, k = 0.7, torch.linspace(-0.15, 0.15, 11, dtype=torch.float64)

    def vol(k):
        return 0.25 - 0.1 * k - 4.0 * k**2

    step = 2e-4
    strike = torch.exp(k)
    calls = [black_price(1.0, strike + j * step, expiry, vol(torch.log(strike + j * step))) for j in (-1, 0, 1)]
    density = (calls[0] - 2 * calls[1] + calls[2]) / step**2
    total = vol(k) * math.sqrt(expiry)
    d2 = -k / total - 0.5 * total
    normal = torch.exp(-0.5 * d2**2) / (math.sqrt(2 * math.pi) * total * strike)
    g = durrleman(k, vol(k), -0.1 - 8.0 * k, torch.full_like(k, -8.0), torch.full_like(k, expiry))
    torch.testing.assert_close(g, density / normal, rtol=2e-4, atol=2e-4)
    assert float(g.min()) < 0 < float(g.max())


def test_arbitrage_is_what_finite_differences_find(vols):
    bad = replace(vols, fits=tuple(replace(fit, parameters=-2.5 * fit.parameters) for fit in vols.fits))
    rows = fresh_labels(VOLS, ExactLabels(), 200, 5).inputs
    k, expiry, step = rows[:, 6], rows[:, 5], 1e-4

    def moved(column, by):
        out = rows.clone()
        out[:, column] += by
        return bad.unchecked_values(out)

    up, mid, down = (moved(6, j * step) for j in (1, 0, -1))
    slope, curvature = (up - down) / (2 * step), (up - 2 * mid + down) / step**2
    found = derivatives_along(bad, rows, 6)
    torch.testing.assert_close(found[1], slope, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[2], curvature, rtol=1e-3, atol=1e-3)
    g = durrleman(k, mid, slope, curvature, expiry)
    variance = [moved(5, j * step) ** 2 * (expiry + j * step) for j in (-1, 1)]
    arbitrage = arbitrage_of(bad, rows)
    assert arbitrage["density"]["count"] == int((g < 0).sum()) > 0
    assert arbitrage["density"]["worst"] == pytest.approx(float(g.min()), rel=1e-2)
    assert arbitrage["calendar"]["count"] == int((variance[1] < variance[0]).sum()) > 0
    assert arbitrage["calendar"]["share"] == arbitrage["calendar"]["count"] / 200


def test_a_convex_network_has_no_butterfly_arbitrage(calls):
    from qfml.surrogate import Shape

    shaped = trained(CALLS, 100, quick(2, (6, 6), shape=Shape(convex=("strike",))))
    assert arbitrage_of(shaped, rows_of(CALLS, 200))["convex"]["count"] == 0
    bad = replace(calls, fits=tuple(replace(fit, parameters=-3 * fit.parameters) for fit in calls.fits))
    found = arbitrage_of(bad, rows_of(CALLS, 200))
    assert found["convex"]["count"] + found["monotone"]["count"] > 20
    assert min(found["convex"]["worst"], found["monotone"]["worst"]) < 0


def test_no_rule_is_claimed_where_none_holds():
    digital = Problem(
        model={"kind": "black_scholes"},
        instrument={"kind": "digital", "expiry": 1.0},
        box={"vol": Range(0.1, 0.4), "strike": Range(0.8, 1.2)},
        target="price",
    )
    assert arbitrage_of(trained(digital, 40, quick(1, (4,))), rows_of(digital, 10)) == {}


def test_speed_tells_what_was_timed(calls, monkeypatch):
    monkeypatch.setattr("qfml.surrogate.speed.MANY", 100)
    found = judge(
        calls, replace(FEW, n_points=64, n_calibration=100, n_greeks=0, speed_paths=64, speed_steps=4)
    ).metrics
    speed = found["speed"]
    assert speed["exact"]["engine"] == "Analytic"
    assert speed["simulated"]["engine"] == "MonteCarlo"
    ratio = (speed["simulated"]["std_error"] * 1e4 / found["price_bps"]["rmse"]) ** 2
    timed = speed["simulated"]
    assert timed["seconds_per_price_at_equal_error"] == pytest.approx(timed["seconds_per_price"] * ratio, rel=1e-9)
    assert found["greeks"] == {}
    assert "price_batch_seconds" not in speed["surrogate"]
    own = speed["surrogate"]["batch_seconds"]["median"] / 100
    assert speed["ratio_simulated"] == pytest.approx(timed["seconds_per_price_at_equal_error"] / own)


def test_what_cannot_be_judged_is_refused(calls):
    with pytest.raises(DataError, match=r"a bound at level 0.99 needs 99 calibration points at least, got 50"):
        judge(calls, replace(FEW, n_calibration=50))
    with pytest.raises(ConfigError, match=r"`level` must lie in \(0, 1\), got 1"):
        JudgementSettings(level=1.0)
    for setting in ({"n_points": 0}, {"speed_steps": 0}):
        with pytest.raises(ConfigError, match="must be 1 or more, got 0"):
            JudgementSettings(**setting)
    with pytest.raises(ConfigError, match="`speed_paths` must be 0, which times nothing, or 2 or more, got 1"):
        JudgementSettings(speed_paths=1)


def test_the_fewest_paths_and_steps_can_be_timed(calls, monkeypatch):
    monkeypatch.setattr("qfml.surrogate.speed.MANY", 100)
    few = replace(FEW, n_points=16, n_calibration=100, n_greeks=0, speed_paths=2, speed_steps=1)
    json.dumps(judge(calls, few).metrics, allow_nan=False)


def test_the_engine_that_made_the_labels_is_timed_and_its_own_error_told(calls, monkeypatch):
    """By default a European call has a closed form; here its labels are of a coarse grid, and so is what is timed."""
    monkeypatch.setattr("qfml.surrogate.speed.MANY", 100)
    asked = []

    def timed(problem, columns, engine=None):
        asked.append(engine)
        return target_values(problem, columns, engine)

    monkeypatch.setattr("qfml.surrogate.speed.target_values", timed)
    grid = FiniteDifferenceLabels(n_space=20, n_time=4)
    settings = replace(
        FEW, n_points=32, n_calibration=100, n_greeks=0, speed_paths=64, speed_steps=2, engine=grid, level=0.9
    )
    found = judge(calls, settings).metrics
    assert found["speed"]["exact"]["engine"] == "FiniteDifference"
    assert {(engine.n_space, engine.n_time) for engine in asked} == {(20, 4)}
    own = found["speed"]["surrogate"]["batch_seconds"]["median"] / 100
    assert found["speed"]["ratio_exact"] == pytest.approx(found["speed"]["exact"]["seconds_per_price"] / own)
    bound = found["points"]["error_bound"]
    assert bound["n_points"] == 32
    assert 1e-5 < bound["rms"] < bound["max"] < 0.05
    assert judge(calls, replace(settings, engine=ExactLabels(), speed_paths=0)).metrics["points"] == {
        "n_points": 32,
        "n_calibration": 100,
        "left_out": {},
        "engine": "exact",
        "note": "",
        "error_bound": {"n_points": 32, "rms": 0.0, "max": 0.0},
    }


def test_prices_of_a_surrogate_of_vols_are_timed_by_their_own_name(vols, monkeypatch):
    monkeypatch.setattr("qfml.surrogate.speed.MANY", 100)
    few = replace(FEW, n_points=32, n_calibration=100, n_greeks=0, speed_paths=64, speed_steps=2)
    found = judge(vols, few).metrics["speed"]
    own, simulated = found["surrogate"], found["simulated"]["seconds_per_price_at_equal_error"]
    assert own["price_batch_seconds"]["least"] > 0
    assert found["ratio_simulated"] == pytest.approx(simulated * 100 / own["price_batch_seconds"]["median"])


def test_derivatives_are_judged_in_the_precision_they_are_timed_in(vols, of_vols):
    slopes = engine_slopes(VOLS, ExactLabels(), FEW.n_greeks, address(FEW.seed, "points of greeks"))
    single = vols.unchecked_value_and_gradient(slopes.inputs.float())[1]
    assert single.dtype == torch.float32
    np.testing.assert_array_equal(of_vols.arrays["greeks_error"], (single.double() - slopes.gradient).numpy())


def test_answers_do_not_depend_on_the_callers_default_dtype(vols):
    rows = rows_of(VOLS, 50)
    plain = vols.predict(rows, errors="flag")
    torch.set_default_dtype(torch.float64)
    try:
        double = vols.predict(rows, errors="flag")
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(plain.value.nan_to_num(), double.value.nan_to_num())
    assert torch.equal(plain.inside, double.inside)
