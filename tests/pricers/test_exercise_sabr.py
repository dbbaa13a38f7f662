"""American and Bermudan options under SABR at any beta: CEV on a grid, Europeans, both bounds, limits."""

import math

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline
from scipy.linalg import solve_banded

import pricers as pr

RATE, EXPIRY = 0.06, 1.0
MARKET = pr.Market(100.0, RATE)
DATES = [0.25, 0.5, 0.75, 1.0]
SKEWED = pr.SABR(3.0, 0.5, -0.6, 0.5)


def cev_bermudan_put(strike, dates, alpha=3.0, beta=0.5, n=800, per_year=400):
    """Crank-Nicolson in the forward to the last date, discounted to today; exercise is looked at on the dates."""
    power, last = 1.0 - beta, dates[-1]
    nodes = np.linspace(0.0, 600.0**power, n + 1) ** (1.0 / power)
    left, right = np.diff(nodes)[:-1], np.diff(nodes)[1:]
    diffusion = 0.5 * alpha**2 * nodes[1:-1] ** (2.0 * beta)
    lower, upper = 2.0 * diffusion / (left * (left + right)), 2.0 * diffusion / (right * (left + right))

    def exercised(time):  # the spot is the forward to the last date, discounted from there
        return math.exp(-RATE * time) * np.maximum(strike - nodes * math.exp(-RATE * (last - time)), 0.0)

    def moved(values, dt, share):
        change = lower * values[:-2] - (lower + upper) * values[1:-1] + upper * values[2:]
        rhs = values[1:-1] + (1.0 - share) * dt * change
        rhs[0] += share * dt * lower[0] * values[0]
        bands = np.zeros((3, n - 1))
        bands[0, 1:], bands[2, :-1] = -share * dt * upper[:-1], -share * dt * lower[1:]
        bands[1] = 1.0 + share * dt * (lower + upper)
        return np.concatenate([values[:1], solve_banded((1, 1), bands, rhs), values[-1:]])

    values = exercised(last)
    for start, end in reversed(list(zip([0.0, *dates[:-1]], dates, strict=True))):
        steps = max(4, round(per_year * (end - start)))
        for step in range(steps):
            halves = 2 if step < 2 else 1
            for _ in range(halves):
                values = moved(values, (end - start) / steps / halves, 1.0 if halves == 2 else 0.5)
        if start > 0.0:
            values = np.maximum(values, exercised(start))
    return float(CubicSpline(nodes, values)(100.0 * math.exp(RATE * last)))


@pytest.mark.parametrize("beta", [0.5, 0.2])
def test_cev_bermudan_put_on_a_grid(beta):
    alpha = 30.0 / 100.0**beta
    strikes = [95.0, 105.0]
    exact = torch.tensor([cev_bermudan_put(k, DATES, alpha, beta) for k in strikes], dtype=torch.float64)
    engine = pr.LongstaffSchwartz(32_768, n_steps=32, seed=1, n_outer=64, n_inner=64)
    lower, upper = engine.bounds(pr.Bermudan(strikes, DATES, "put"), pr.SABR(alpha, beta, 0.0, 0.0), MARKET)
    assert upper is not None
    # steps of a thirty-second of a year bias a European of these strikes by less than 0.3 %
    assert (lower.value <= 1.003 * exact + 4.0 * lower.std_error).all()
    assert (lower.value >= 0.99 * exact - 4.0 * lower.std_error).all()
    assert (upper.value >= 0.997 * exact - 4.0 * upper.std_error).all()
    assert (upper.value <= 1.03 * exact + 4.0 * upper.std_error).all()
    assert (lower.std_error < 0.01 * exact).all()


def test_cev_american_put_on_a_grid_of_many_dates():
    dates = [i / 25.0 for i in range(1, 26)]
    exact = cev_bermudan_put(105.0, dates)
    engine = pr.LongstaffSchwartz(32_768, n_steps=25, seed=2)
    found = pr.price(pr.American(105.0, 1.0, "put"), pr.SABR(3.0, 0.5, 0.0, 0.0), MARKET, engine)
    assert "lower bound" in found.note
    error = 4.0 * found.std_error.item()
    assert 0.985 * exact - error <= found.value.item() <= 1.003 * exact + error
    assert found.std_error < 0.01 * exact


def test_one_date_is_the_european():
    for beta in (0.3, 0.8):
        model = pr.SABR(30.0 / 100.0**beta, beta, -0.5, 0.6)
        engine = pr.MonteCarlo(2**17, n_steps=16, noise="sobol", seed=1)
        exact = pr.price(pr.European(100.0, 1.0, "put"), model, MARKET, engine)
        found = pr.price(pr.Bermudan(100.0, [1.0], "put"), model, MARKET, pr.LongstaffSchwartz(65_536, 16, seed=3))
        error = torch.hypot(found.std_error, exact.std_error)
        assert (found.value - exact.value).abs() <= 4.0 * error
        assert error < 0.01 * exact.value


def test_put_without_interest_is_the_european():
    market = pr.Market(100.0)
    european = pr.price(pr.European(100.0, 1.0, "put"), SKEWED, market, pr.MonteCarlo(2**17, n_steps=20, seed=5))
    found = pr.price(pr.American(100.0, 1.0, "put"), SKEWED, market, pr.LongstaffSchwartz(32_768, 20, seed=3))
    error = 4.0 * torch.hypot(found.std_error, european.std_error)
    assert found.value <= european.value + error
    assert found.value >= 0.99 * european.value - error
    assert error < 0.05 * european.value


@pytest.mark.parametrize("option", ["call", "put"])
def test_bounds_are_close_under_a_random_volatility(option):
    market = pr.Market(100.0, 0.05, 0.03)
    engine = pr.LongstaffSchwartz(16_384, n_steps=16, seed=4, degree=4, n_outer=128, n_inner=64)
    lower, upper = engine.bounds(pr.Bermudan([90.0, 110.0], DATES, option), SKEWED, market)
    assert upper is not None
    assert (upper.value >= lower.value - 4.0 * upper.std_error).all()
    assert (upper.value <= 1.03 * lower.value + 4.0 * upper.std_error).all()


def test_both_schemes_agree_at_beta_one():
    model, option = pr.SABR(0.3, 1.0, -0.5, 0.6), pr.Bermudan([95.0, 105.0], DATES, "put")
    absorbed, lognormal = (
        pr.price(option, model, MARKET, pr.LongstaffSchwartz(32_768, n_steps=32, seed=6, scheme=scheme))
        for scheme in ("absorbed", "lognormal")
    )
    error = torch.hypot(absorbed.std_error, lognormal.std_error)
    assert ((absorbed.value - lognormal.value).abs() <= 4.0 * error + 0.005 * lognormal.value).all()
    assert (error < 0.015 * lognormal.value).all()


def test_the_rule_sees_the_volatility():
    """Where the volatility is random and the drift large, a rule that is blind to it loses."""
    model, market = pr.SABR(2.0, 0.5, 0.0, 1.5), pr.Market(100.0, 0.15)
    option = pr.Bermudan(110.0, [i / 10.0 for i in range(1, 11)], "put")
    engine = pr.LongstaffSchwartz(32_768, n_steps=10, seed=7)
    problem = engine._checked(option, model, market)
    seeing = problem.follow(problem.fit(32_768, 1), 32_768, 2)
    point = next(iter(problem.walk.onward(problem.walk.start(8), 0, 3)))
    assert point.factor is not None
    assert problem._columns(point).shape[-1] == 10  # all products up to degree 3
    scheme = type(problem.walk.scheme)
    blind_factor = pytest.MonkeyPatch()
    blind_factor.setattr(scheme, "factor", lambda *_: None)
    blind = problem.follow(problem.fit(32_768, 1), 32_768, 2)
    blind_factor.undo()
    gain = seeing - blind
    assert gain.mean() > 4.0 * gain.std() / gain.shape[-1] ** 0.5


def test_greeks_of_the_held_rule():
    option = pr.Bermudan(105.0, DATES, "put")
    found = pr.greeks(option, SKEWED, MARKET, ("spot", "alpha"), pr.LongstaffSchwartz(16_384, n_steps=16, seed=8))
    bumped = pr.greeks(
        option, SKEWED, MARKET, ("spot", "alpha"), pr.LongstaffSchwartz(16_384, 16, seed=8), "bump", bump=1e-2
    )
    for name, estimate in found.items():
        error = torch.hypot(estimate.std_error, bumped[name].std_error)
        assert (estimate.value - bumped[name].value).abs() <= 4.0 * error + 0.02 * estimate.value.abs(), name
    assert -1.0 < found["spot"].value < 0.0 < found["alpha"].value


def test_shift_keeps_early_exercise():
    """A shifted model is the unshifted one of a shifted forward: without interest, strikes move along."""
    plain = pr.Bermudan(100.0, DATES, "put"), pr.SABR(3.0, 0.5, -0.3, 0.4), pr.Market(100.0)
    moved = pr.Bermudan(70.0, DATES, "put"), pr.SABR(3.0, 0.5, -0.3, 0.4, shift=30.0), pr.Market(70.0)
    engine = pr.LongstaffSchwartz(8192, n_steps=8, seed=9)
    values = [engine.price(*triple) for triple in (plain, moved)]
    assert values[0].value.item() == pytest.approx(values[1].value.item(), rel=2e-3)


def test_local_volatility_walks_by_its_second_scheme_too():
    smile = pr.VolSurface([-0.4, 0.0, 0.4], [0.5, 1.0], [[0.24, 0.2, 0.19], [0.23, 0.2, 0.19]])
    model, option = pr.LocalVol(smile), pr.Bermudan([95.0, 105.0], DATES, "put")
    exact = pr.price(option, model, MARKET, pr.FiniteDifference(n_space=120, n_time=40)).value
    found = pr.price(option, model, MARKET, pr.LongstaffSchwartz(16_384, n_steps=8, seed=1, scheme="quadratic"))
    assert ((found.value - exact).abs() <= 4.0 * found.std_error + 0.01 * exact).all()


def test_a_batch_of_models_prices_as_its_elements():
    option, engine = pr.American(100.0, 0.5, "put"), pr.LongstaffSchwartz(2048, n_steps=5, seed=1)
    betas = (0.0, 0.5, 1.0)
    alphas = [20.0 / 100.0**beta for beta in betas]
    both = pr.price(option, pr.SABR(alphas, list(betas), -0.3, 0.5), MARKET, engine)
    for index, (alpha, beta) in enumerate(zip(alphas, betas, strict=True)):
        alone = pr.price(option, pr.SABR(alpha, beta, -0.3, 0.5), MARKET, engine)
        assert both.value[index].item() == pytest.approx(alone.value.item(), rel=1e-9)
