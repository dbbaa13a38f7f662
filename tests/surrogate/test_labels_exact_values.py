"""Exact labels are the engine's own numbers, their gradients those of bumps; what has no label is counted."""

import numpy as np
import pytest
import torch

import pricers as pr
from qfml.config import build
from qfml.errors import ConfigError
from qfml.surrogate.exact_labels import target_gradients, target_values
from qfml.surrogate.labels import NO_VOL, NOT_TOLD, make_labels, make_shard, read_labels, split_by_law
from qfml.surrogate.points import placed, sobol_points
from qfml.surrogate.problem import Problem, Range
from qfml.surrogate.settings import FiniteDifferenceLabels, FourierLabels, LabelSettings, MonteCarloLabels

CPU = torch.device("cpu")
LAWS = {
    "v0": Range(0.02, 0.2, "log"),
    "kappa": Range(0.5, 5.0),
    "theta": Range(0.02, 0.2),
    "sigma": Range(0.2, 1.0),
    "rho": Range(-0.8, 0.2),
    "expiry": Range(0.2, 2.0),
}


def heston(target="implied_vol", **strike):
    box = LAWS | (strike or {"delta": Range(0.05, 0.95)})
    market = {"spot": 1.0, "rate": 0.03, "dividend_yield": 0.01}
    return Problem(model={"kind": "heston"}, instrument={"kind": "european"}, market=market, box=box, target=target)


def test_labels_are_prices_and_vols_of_pricers_row_by_row():
    problem = heston()
    shard = make_shard(problem, LabelSettings(n_points=6, seed=1, strikes_per_law=3), 0)
    assert len(shard) == 18
    assert shard.law.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3 + [5] * 3
    for row, value in zip(shard.inputs, shard.value, strict=True):
        *law, expiry, moneyness = row.tolist()
        forward, discount = np.exp(0.02 * expiry), np.exp(-0.03 * expiry)
        strike = forward * np.exp(moneyness)
        price = pr.price(pr.European(strike, expiry), pr.Heston(*law), pr.Market(1.0, 0.03, 0.01), pr.Fourier()).value
        assert value == pytest.approx(pr.implied_vol(price, forward, strike, expiry, discount).item(), abs=1e-9)
    assert not shard.std_error.any()
    delta = problem.delta(problem.columns(torch.from_numpy(shard.inputs)), torch.from_numpy(shard.value))
    assert 0.05 - 1e-4 < delta.min() < delta.max() < 0.95 + 1e-4


@pytest.mark.parametrize(
    ("problem", "engine", "size", "tolerance"),
    [
        (heston(), None, 1e-4, 1e-6),
        (heston("price", strike=Range(0.8, 1.2)), None, 1e-4, 1e-7),
        (heston("time_value", standard_moneyness=Range(-1.0, 1.0)), FourierLabels(), 1e-4, 1e-7),
    ],
    ids=["vol", "price", "time-value"],
)
def test_gradients_are_those_of_bumps(problem, engine, size, tolerance):
    engine = None if engine is None else engine.engine()
    columns = placed(problem, sobol_points(problem, 0, 2, seed=2, strikes_per_law=2), CPU).columns
    gradient = target_gradients(problem, columns, engine)
    assert gradient.shape == (2, 2, len(problem.inputs))
    for i, name in enumerate(problem.inputs):
        step = size * columns[name].abs().clamp(min=0.1)
        up, down = (target_values(problem, columns | {name: columns[name] + s}, engine) for s in (step, -step))
        np.testing.assert_allclose(gradient[..., i], (up.value - down.value) / (2 * step), atol=tolerance, rtol=1e-4)


def test_gradients_through_finite_differences_are_those_of_the_closed_form():
    problem = Problem(
        model={"kind": "black_scholes"},
        instrument={"kind": "european", "option": "put"},
        market={"spot": 1.0, "rate": 0.05},
        box={"vol": Range(0.1, 0.4), "expiry": Range(0.5, 1.0), "strike": Range(0.9, 1.1)},
        target="price",
    )
    columns = placed(problem, sobol_points(problem, 0, 2, seed=2, strikes_per_law=2), CPU).columns
    by_grid = target_gradients(problem, columns, FiniteDifferenceLabels(n_space=80, n_time=20).engine())
    np.testing.assert_allclose(by_grid, target_gradients(problem, columns), atol=1e-4)


def test_gradients_stand_beside_their_labels():
    labels = LabelSettings(n_points=3, seed=1, strikes_per_law=2, gradients=True)
    problem = heston()
    shard = make_shard(problem, labels, 0)
    assert shard.gradient is not None
    inputs = torch.from_numpy(shard.inputs)
    step = torch.zeros(7, dtype=torch.float64)
    step[3] = 1e-4
    slope = (problem.exact(inputs + step) - problem.exact(inputs - step)) / 2e-4
    np.testing.assert_allclose(shard.gradient[:, 3], slope, atol=1e-6)


def test_what_has_no_vol_is_left_out_and_counted():
    box = LAWS | {"v0": Range(0.001, 0.002), "theta": Range(0.001, 0.002), "sigma": Range(0.01, 0.02)}
    problem = Problem(
        model={"kind": "heston"},
        instrument={"kind": "european"},
        box=box | {"log_moneyness": Range(-1.0, 1.0)},  # a hundred deviations
    )
    shard = make_shard(problem, LabelSettings(n_points=4, seed=1, strikes_per_law=5), 0)
    left_out = shard.about["left_out"]
    assert len(shard) + sum(left_out.values()) == 20
    assert set(left_out) <= {NO_VOL, NOT_TOLD}
    assert sum(left_out.values()) > 5
    np.testing.assert_allclose(shard.value, np.sqrt(0.0015), rtol=0.3)


def test_vols_of_prices_of_a_few_ulps_are_left_out():
    """A vol known in advance, at calls that are worth their intrinsic value and 1e-8 down to 1e-20 of the forward."""
    box = {"vol": Range(0.1, 0.5), "expiry": Range(0.5, 2.0), "log_moneyness": Range(-4.0, 4.0)}
    problem = Problem(model={"kind": "black_scholes"}, instrument={"kind": "european"}, box=box)
    shard = make_shard(problem, LabelSettings(n_points=64, seed=1, strikes_per_law=9), 0)
    assert np.abs(shard.value - shard.inputs[:, 0]).max() < 1e-4
    assert shard.about["left_out"][NO_VOL] == 576 - len(shard) > 100
    vol, expiry, moneyness = torch.from_numpy(shard.inputs).T
    assert (moneyness / (vol * expiry.sqrt())).abs().max() > 6.5, "what is told is kept"
    # all there is moves by its rounding at most
    moneyness = torch.linspace(-2.0, 2.0, 400, dtype=torch.float64).unsqueeze(-1)
    one = torch.ones_like(moneyness)
    columns = {"vol": 0.2 * one, "expiry": one, "log_moneyness": moneyness}
    found = target_values(problem, columns)
    told = found.value.isfinite()
    assert (~told).any()
    assert ((found.value - 0.2).abs() <= found.error_bound + 1e-15)[told].all()
    assert problem.exact(torch.tensor([[0.2, 1.0, -2.0]], dtype=torch.float64)).isnan()


def test_simulated_labels_agree_with_exact_ones_within_their_errors(tmp_path):
    problem = Problem(
        model={"kind": "heston", "kappa": 1.5, "theta": 0.06, "sigma": 0.4, "rho": -0.5},
        instrument={"kind": "asian", "times": [0.25, 0.5], "average": "geometric"},
        box={"v0": Range(0.02, 0.2), "strike": Range(0.8, 1.2)},
        target="price",
    )
    labels = LabelSettings(n_points=6, seed=1, engine=MonteCarloLabels(n_paths=4096, n_steps=8), shard_size=4)
    made = make_labels(problem, labels, tmp_path, workers=1)
    table = read_labels(made[0].parent)
    truth = pr.price(*problem.triple(table.inputs), pr.MonteCarlo(2**15, n_steps=8, seed=5))
    assert bool((table.std_error > 0).all())
    error = torch.hypot(table.std_error, truth.std_error)
    assert bool(((table.value - truth.value).abs() < 4.0 * error).all())


def test_split_keeps_laws_whole_and_in_their_set(tmp_path):
    problem = heston(log_moneyness=Range(-0.1, 0.1))
    made = make_labels(problem, LabelSettings(n_points=400, seed=1, strikes_per_law=2), tmp_path, workers=1)
    table = read_labels(made[0].parent)
    sets = split_by_law(table, (0.7, 0.2, 0.1), seed=5)
    assert sorted(np.concatenate(sets).tolist()) == list(range(len(table)))
    laws = [set(table.law[rows].tolist()) for rows in sets]
    assert not laws[0] & laws[1]
    assert not laws[0] & laws[2]
    assert not laws[1] & laws[2]
    np.testing.assert_allclose([len(found) / 400 for found in laws], [0.7, 0.2, 0.1], atol=0.07)  # 3 deviations
    fewer = split_by_law(table.rows(table.law < 100), (0.7, 0.2, 0.1), seed=5)
    assert set(table.law[fewer[1]].tolist()) == {law for law in laws[1] if law < 100}
    with pytest.raises(ConfigError, match="add up to 1"):
        split_by_law(table, (0.5, 0.6))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"n_points": 0}, "`n_points` must be 1 or more"),
        ({"engine": {"kind": "monte_carlo", "n_paths": 1000, "n_steps": 8}}, "must be a power of two, got 1000"),
        ({"engine": {"kind": "monte_carlo", "n_paths": 1024, "n_steps": 8}}, "box.delta needs exact vols"),
        ({"engine": "analytic"}, "`engine: analytic` does not label this problem: no closed form"),
        ({"engine": {"kind": "fourier", "n_term": 3}}, "did you mean `n_terms`"),
        ({"device": "tpu"}, "`device` must be cpu or cuda"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        build(LabelSettings, {"n_points": 8, "seed": 1} | settings).checked(heston())


BARRIER = {"kind": "barrier", "expiry": 1.0, "barrier": 0.8, "barrier_kind": "down-out"}
FIXED_HESTON = {"kind": "heston", "v0": 0.04, "kappa": 1.5, "theta": 0.04, "sigma": 0.4, "rho": -0.5}
ROUGH = {"kind": "rough_bergomi", "eta": 1.5, "hurst": 0.1, "rho": -0.7, "xi": 0.04}


@pytest.mark.parametrize(
    ("model", "instrument", "target", "says"),
    [
        (FIXED_HESTON, BARRIER, "price", "not Barrier"),
        (ROUGH, {"kind": "european", "expiry": 1.0}, "price", "not RoughBergomi"),
        (ROUGH, {"kind": "european", "expiry": 1.0}, "time_value", "must be 'price', or 'implied_vol'"),
        ({"kind": "black_scholes", "vol": 0.2}, {"kind": "european", "expiry": 1.0}, "implied_vol", "RoughBergomi"),
    ],
)
def test_simulations_that_are_not_made_are_refused_before_the_first_shard(model, instrument, target, says):
    box = {"log_moneyness" if target == "implied_vol" else "strike": Range(0.8, 1.2)}
    problem = Problem(model, instrument, {"spot": 1.0}, box, target)
    with pytest.raises(ConfigError, match=says):
        LabelSettings(4, 1, MonteCarloLabels(64, 8)).checked(problem)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"engine": MonteCarloLabels(64, 7)}, "must be even under rough Bergomi, got 7"),
        ({"engine": MonteCarloLabels(8, 8)}, "must be 16 or more, got 8"),
        ({"engine": MonteCarloLabels(64, 8), "gradients": True}, "without gradients"),
    ],
)
def test_simulated_vols_need_an_even_number_of_steps_and_no_gradients(changes, says):
    box = {"log_moneyness": Range(-0.1, 0.1)}
    problem = Problem(ROUGH, {"kind": "european", "expiry": 1.0}, {"spot": 1.0}, box)
    with pytest.raises(ConfigError, match=says):
        LabelSettings(4, 1, **changes).checked(problem)


def test_laws_of_a_fixed_rough_model_have_noise_of_their_own():
    box = {"expiry": Range(0.5, 0.500001), "log_moneyness": Range(1e-6, 2e-6)}
    problem = Problem(ROUGH, {"kind": "european"}, {"spot": 1.0}, box)
    labels = LabelSettings(64, 1, MonteCarloLabels(64, 4), strikes_per_law=2)
    values = make_shard(problem, labels, 0).value.reshape(64, 2)
    # one option 128 times: laws differ by their noise alone, which its strikes share
    assert values[:, 0].std() > 0.01
    assert np.abs(values[:, 0] - values[:, 1]).max() < 1e-3


def test_strikes_need_a_coordinate_and_expiries_too():
    problem = Problem(
        model={"kind": "black_scholes"},
        instrument={"kind": "european", "strike": 1.0, "expiry": 1.0},
        box={"vol": Range(0.1, 0.4)},
        target="price",
    )
    shard = make_shard(problem, LabelSettings(n_points=4, seed=1), 0)
    assert shard.inputs.shape == (4, 1)
    for name in ("strikes_per_law", "expiries_per_law"):
        with pytest.raises(ConfigError, match=f"`{name}` = 2 needs"):
            LabelSettings(n_points=4, seed=1, **{name: 2}).checked(problem)
