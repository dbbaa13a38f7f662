"""Barriers, lookbacks and continuous averages under SABR below beta = 1: Bachelier, CEV on a grid, limits, refusals."""

import math

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline
from scipy.linalg import solve_banded
from scipy.stats import norm

import pricers as pr
from pricers.models.sabr import Absorbed

F64 = torch.float64
SPOT, EXPIRY = 100.0, 1.0
MARKET = pr.Market(SPOT)
NORMAL = pr.SABR(alpha=10.0, beta=0.0, rho=-0.3, nu=0.0)  # dF = 10 dW: 0 is ten deviations away
CEV = pr.SABR(alpha=3.0, beta=0.5, rho=0.0, nu=0.0)


def extrapolated(instrument, model, market=MARKET, n_steps=8, n_paths=2**17, **settings):
    """Value without the error of order one in the step, from two lengths of step, and its standard error."""
    coarse, fine = (
        pr.price(instrument, model, market, pr.MonteCarlo(n_paths, n_steps=n, noise="sobol", seed=n, **settings))
        for n in (n_steps, 2 * n_steps)
    )
    error = (coarse.std_error.square() + 4.0 * fine.std_error.square()).sqrt()
    return 2.0 * fine.value - coarse.value, error, fine.value - coarse.value


def bachelier(mean, std, strike, sign=1.0):
    d = sign * (mean - strike) / std
    return sign * (mean - strike) * norm.cdf(d) + std * norm.pdf(d)


@pytest.mark.parametrize("option", ["call", "put"])
def test_average_of_a_normal_forward_is_normal(option):
    asian = pr.Asian([95.0, 100.0, 105.0], "continuous", option, expiry=EXPIRY)
    found, error, _ = extrapolated(asian, NORMAL, n_steps=4, n_paths=2**15)
    sign = 1.0 if option == "call" else -1.0
    exact = torch.tensor([bachelier(SPOT, 10.0 / math.sqrt(3.0), k, sign) for k in (95.0, 100.0, 105.0)], dtype=F64)
    assert ((found - exact).abs() <= 4.0 * error + 0.002).all()
    assert (error < 0.01).all()


def test_lookback_on_a_normal_forward_is_a_reflected_normal():
    """The maximum less the start is the absolute value of a normal, and so is the start less the minimum."""
    for option in ("call", "put"):
        for strike in (None, SPOT):
            found, error, change = extrapolated(pr.Lookback(strike, EXPIRY, option), NORMAL, n_steps=4, n_paths=2**15)
            exact = 10.0 * math.sqrt(2.0 / math.pi)
            assert abs(found.item() - exact) <= 4.0 * error.item() + 0.01, (option, strike)
            assert error < 0.06
            assert change.abs() < 0.1  # the bridges leave little to the steps


@pytest.mark.parametrize(
    ("kind", "level"), [("down-out", 92.0), ("up-out", 108.0), ("up-in", 112.0), ("down-in", 90.0)]
)
def test_barrier_on_a_normal_forward_by_reflection(kind, level):
    strike, sign = 100.0, 1.0 if kind.startswith("down") else -1.0  # a call above, a put below the barrier
    option = "call" if sign > 0 else "put"
    found, error, _ = extrapolated(pr.Barrier(strike, EXPIRY, level, kind, option), NORMAL, n_paths=2**15)
    knocked = bachelier(2.0 * level - SPOT, 10.0, strike, sign)  # the mirrored start
    exact = knocked if kind.endswith("in") else bachelier(SPOT, 10.0, strike, sign) - knocked
    assert abs(found.item() - exact) <= 4.0 * error.item() + 0.003
    assert error < 0.04


def cev_on_a_grid(low, high, payoff, edges=(None, None), beta=0.5, n=1200, steps=400):
    """Crank-Nicolson, four implicit half steps first, for dF = 3 F^beta dW between edges of given value; at SPOT."""
    power = 1.0 - beta
    nodes = np.linspace(low**power, high**power, n + 1) ** (1.0 / power)
    left, right = np.diff(nodes)[:-1], np.diff(nodes)[1:]
    diffusion = 0.5 * 9.0 * nodes[1:-1] ** (2.0 * beta)
    lower, upper = 2.0 * diffusion / (left * (left + right)), 2.0 * diffusion / (right * (left + right))
    values = payoff(nodes)
    values[0], values[-1] = (
        value if edge is None else edge for value, edge in zip(values[[0, -1]], edges, strict=True)
    )

    def moved(values, dt, share):
        change = lower * values[:-2] - (lower + upper) * values[1:-1] + upper * values[2:]
        rhs = values[1:-1] + (1.0 - share) * dt * change
        rhs[0] += share * dt * lower[0] * values[0]
        rhs[-1] += share * dt * upper[-1] * values[-1]
        bands = np.zeros((3, n - 1))
        bands[0, 1:], bands[2, :-1] = -share * dt * upper[:-1], -share * dt * lower[1:]
        bands[1] = 1.0 + share * dt * (lower + upper)
        return np.concatenate([values[:1], solve_banded((1, 1), bands, rhs), values[-1:]])

    dt = EXPIRY / steps
    for _ in range(4):
        values = moved(values, 0.5 * dt, 1.0)
    for _ in range(steps - 2):
        values = moved(values, dt, 0.5)
    return float(CubicSpline(nodes, values)(SPOT))


@pytest.mark.parametrize(
    ("kind", "level", "option", "strike"),
    [("down-out", 85.0, "call", 100.0), ("up-out", 130.0, "call", 100.0), ("up-out", 120.0, "put", 110.0)],
)
def test_cev_barrier_on_a_grid_and_order_one(kind, level, option, strike):
    down, sign = kind.startswith("down"), 1.0 if option == "call" else -1.0
    payoff = lambda forward: np.maximum(sign * (forward - strike), 0.0)  # noqa: E731
    bounds, edges = ((level, 600.0), (0.0, None)) if down else ((0.0, level), (None, 0.0))
    exact = cev_on_a_grid(*bounds, payoff, edges)
    found, error, change = extrapolated(pr.Barrier(strike, EXPIRY, level, kind, option), CEV, n_paths=2**16)
    assert abs(found.item() - exact) <= 4.0 * error.item() + 0.002 * exact
    assert error < 0.012 * exact
    assert change.abs() < 0.015 * exact  # of 8 steps against 16


def test_cev_lookbacks_are_integrals_of_probabilities_on_a_grid():
    """E max - F = int_F^inf P(max > b) db, and E (F_T - min) = int_0^F P(min < b) db."""
    points, weights = np.polynomial.legendre.leggauss(16)
    above = SPOT + 150.0 * (points + 1.0) / 2.0  # five deviations
    reach = [cev_on_a_grid(0.0, b, lambda f: np.zeros_like(f), (0.0, 1.0), n=300, steps=100) for b in above]
    below = 1e-9 + SPOT * (points + 1.0) / 2.0
    fall = [cev_on_a_grid(b, 600.0, lambda f: np.zeros_like(f), (1.0, 0.0), n=300, steps=100) for b in below]
    for option, exact in (("put", 75.0 * weights @ reach), ("call", 50.0 * weights @ fall)):
        found, error, _ = extrapolated(pr.Lookback(None, EXPIRY, option), CEV, n_paths=2**16)
        assert abs(found.item() - exact) <= 4.0 * error.item() + 0.002 * exact, option
        assert error < 0.005 * exact


def test_far_barriers_leave_the_european():
    """Path by path: the same noise, and 0 is not beyond a barrier above."""
    model, engine = pr.SABR(4.0, 0.3, -0.6, 0.5), pr.MonteCarlo(2**12, n_steps=8, seed=4, controls=False)
    for option in ("call", "put"):
        european = pr.price(pr.European(100.0, 2.0, option), model, MARKET, engine).value.item()
        up = pr.price(pr.Barrier(100.0, 2.0, 1e7, "up-out", option), model, MARKET, engine).value.item()
        assert up == pytest.approx(european, rel=1e-10), option
    call = pr.price(pr.European(100.0, 2.0), model, MARKET, engine).value.item()
    down = pr.price(pr.Barrier(100.0, 2.0, 1e-4, "down-out"), model, MARKET, engine).value.item()
    assert down == pytest.approx(call, rel=1e-10)


@pytest.mark.slow
def test_what_is_absorbed_hits_any_barrier_below_and_its_minimum_is_zero():
    model, engine = pr.SABR(60.0, 0.1, 0.0, 0.5), pr.MonteCarlo(2**13, n_steps=32, seed=4)
    european = pr.price(pr.European(100.0, 5.0, "put"), model, MARKET, engine)
    assert european.value > 50.0  # most paths end at 0
    alive = pr.price(pr.Barrier(100.0, 5.0, 1e-6, "down-out", "put"), model, MARKET, engine)
    dead = pr.price(pr.Barrier(100.0, 5.0, 1e-6, "down-in", "put"), model, MARKET, engine)
    assert (alive.value + dead.value).item() == pytest.approx(
        european.value.item(), abs=4.0 * european.std_error.item()
    )
    assert alive.value < 0.2 * dead.value
    absorbed = pr.price(pr.Digital(1e-6, 5.0, "put"), model, MARKET, engine).value.item()
    floor = pr.price(pr.Lookback(100.0, 5.0, "put"), model, MARKET, engine).value.item()
    assert 0.5 < absorbed < 1.0
    assert 100.0 * absorbed < floor < 100.0


def test_wild_paths_average_to_the_forward():
    """A call on the average struck at nearly nothing is worth the mean of the forwards: Simpson's middle is tame."""
    model, market = pr.SABR(40.0, 0.2, -0.5, 0.8), pr.Market(SPOT, 0.03)
    sure = pr.Asian(1e-8, "continuous", expiry=3.0)
    found = pr.price(sure, model, market, pr.MonteCarlo(2**16, n_steps=24, seed=5, controls=False))
    exact = SPOT * math.expm1(0.09) / 0.09 * math.exp(-0.09)
    assert abs(found.value.item() - exact) <= 4.0 * found.std_error.item() + 0.006 * exact
    assert found.std_error < 0.01 * exact


@pytest.mark.slow
@pytest.mark.parametrize(
    "contract",
    [
        pr.Barrier(100.0, 1.0, 85.0, "down-out", rebate=2.0),
        pr.Lookback(100.0, 1.0),
        pr.Asian(100.0, "continuous", expiry=1.0),
        pr.Asian(100.0, "continuous", average="geometric", expiry=1.0),
        pr.VarianceOption(0.09, 1.0),
    ],
    ids=lambda contract: type(contract).__name__,
)
def test_beta_one_is_the_lognormal_scheme_and_a_limit(contract):
    market = pr.Market(SPOT, 0.03)
    lognormal = pr.SABR(0.3, 1.0, -0.5, 0.6)
    exact, exact_error, _ = extrapolated(
        contract, lognormal, market, n_paths=2**15, scheme="lognormal", conditional=False
    )
    found, error, _ = extrapolated(contract, lognormal, market, n_paths=2**15)
    error = torch.hypot(error, exact_error).item()
    assert abs((found - exact).item()) <= 4.0 * error + 0.004 * exact.item()
    assert error < 0.04 * exact.item()
    if not isinstance(contract, pr.VarianceOption):
        forward = market.forward(torch.tensor(1.0, dtype=F64)).item()
        engine = pr.MonteCarlo(2**12, n_steps=8, seed=2)
        values = [
            pr.price(contract, pr.SABR(0.3 * forward ** (1.0 - beta), beta, -0.5, 0.6), market, engine).value.item()
            for beta in (1.0, 1.0 - 1e-7)
        ]
        assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_variance_swap_at_beta_one_is_the_mean_of_a_lognormal():
    """E (1/T) int sigma^2 = alpha^2 (exp(nu^2 T) - 1) / (nu^2 T), whichever scheme."""
    model, swap = pr.SABR(0.3, 1.0, -0.5, 0.6), pr.VarianceSwap(0.05, 1.5)
    exact = 0.09 * math.expm1(0.36 * 1.5) / (0.36 * 1.5) - 0.05
    assert pr.price(swap, model, MARKET).value.item() == pytest.approx(exact, rel=1e-12)
    calm = pr.price(swap, pr.SABR(0.3, 1.0, -0.5, 0.0), MARKET).value.item()
    assert calm == pytest.approx(0.04, rel=1e-12)
    for scheme in ("absorbed", "lognormal"):
        found = pr.price(swap, model, MARKET, pr.MonteCarlo(2**16, n_steps=16, noise="sobol", seed=1, scheme=scheme))
        assert abs(found.value.item() - exact) <= 4.0 * found.std_error.item() + 1e-5
        assert found.std_error < 0.002


def test_variance_of_a_step_is_that_of_a_straight_line_in_the_power():
    """Simpson's rule on 2,000 intervals of X^(2 beta - 2) where X^(1 - beta) is straight; small steps."""
    beta, start, end, vol, dt = 0.4, 0.8, 1.3, 0.3, 1e-6
    model = pr.SABR(vol, beta, 0.0, 0.0)
    coefficients = Absorbed().coefficients(model, MARKET, torch.zeros((), dtype=F64), torch.tensor(dt, dtype=F64))
    states = [tuple(torch.tensor([x], dtype=F64) for x in (ratio, vol, 0.0)) for ratio in (start, end)]
    line = np.linspace(start**0.6, end**0.6, 2001) ** (1.0 / 0.6)
    simpson = np.ones(2001)
    simpson[1:-1:2], simpson[2:-1:2] = 4.0, 2.0
    exact = vol**2 * dt * (simpson @ line ** (2.0 * beta - 2.0)) / 6000.0
    assert Absorbed().variance(coefficients, *states).item() == pytest.approx(exact, rel=1e-6)


def test_gradients_of_absorbed_paths_are_finite():
    inputs = {"alpha": 60.0, "beta": 0.1, "rho": -0.3, "nu": 0.5}
    for contract in (
        pr.Barrier(100.0, 5.0, 60.0, "down-out", "put", rebate=3.0),
        pr.Barrier(100.0, 5.0, 160.0, "up-in", "call"),
        pr.Lookback(None, 5.0),
        pr.Asian(100.0, "continuous", "put", expiry=5.0),
        pr.Asian(100.0, "continuous", "put", "geometric", expiry=5.0),
    ):
        leaves = {name: torch.tensor(value, dtype=F64, requires_grad=True) for name, value in inputs.items()}
        spot = torch.tensor(SPOT, dtype=F64, requires_grad=True)
        value = pr.price(contract, pr.SABR(**leaves), pr.Market(spot), pr.MonteCarlo(2**11, n_steps=8, seed=4)).value
        assert value.isfinite()
        gradients = torch.autograd.grad(value, [*leaves.values(), spot])
        assert all(gradient.isfinite().all() for gradient in gradients), type(contract)


def test_multilevel_reaches_its_accuracy():
    barrier = pr.Barrier(100.0, EXPIRY, 85.0, "down-out")
    found = pr.price(barrier, CEV, MARKET, pr.MultilevelMonteCarlo(accuracy=0.1, seed=2))
    exact = cev_on_a_grid(85.0, 600.0, lambda f: np.maximum(f - 100.0, 0.0), (0.0, None))
    assert abs(found.value.item() - exact) <= 4.0 * found.std_error.item() + found.error_bound.item()
    assert found.std_error <= 0.1


@pytest.mark.parametrize("contract", [pr.VarianceSwap(0.04, 1.0), pr.VarianceOption(0.04, 1.0)])
def test_variance_contracts_below_beta_one_have_no_price(contract):
    with pytest.raises(ValueError, match=r"`beta` = 1, got 0.5.*infinite; use `beta` = 1 or"):
        pr.price(contract, CEV, MARKET, pr.MonteCarlo(1024, seed=0))
    with pytest.raises(ValueError, match="beta"):
        pr.price(contract, CEV, MARKET)


def test_a_shift_needs_dates():
    model, engine = pr.SABR(3.0, 0.5, 0.0, 0.3, shift=20.0), pr.MonteCarlo(1024, n_steps=4, seed=0)
    barrier = pr.Barrier(100.0, 1.0, 85.0, "down-out")
    for contract in (barrier, pr.Lookback(100.0, 1.0), pr.Asian(100.0, "continuous", expiry=1.0)):
        with pytest.raises(ValueError, match=r"`shift` = 0, got 20.*logarithm.*or take dates"):
            pr.price(contract, model, MARKET, engine)
    on_dates = pr.Barrier(100.0, 1.0, 85.0, "down-out", monitoring=[0.5, 1.0])
    assert pr.price(on_dates, model, MARKET, engine).value > 0.0
