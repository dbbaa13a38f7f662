"""Payoffs of Asian options: brute force, a convolution, published continuous averages, order in the step."""

import itertools
import math

import numpy as np
import pytest
import torch
from lognormal_paths import controlled_mean, flat_discount, lognormal_paths, mean_and_error
from scipy import stats

from pricers.analytic.asian import FORMULAS, exceeded_asian_formula
from pricers.instruments.asian import Asian
from pricers.market import Market
from pricers.models.black_scholes import BlackScholes
from pricers.paths import Paths, time_grid

# Discrete arithmetic put, S 90, K 87, r .025, q .06, vol .13, first fixing now, length 11/12: fixings -> price. Two
# engines agree to 2e-5; the figures in Levy (1997), 1.6980 and 1.7402, are off by up to 1.3e-3.
ARITHMETIC_PUT = {12: 1.699283, 52: 1.740616}
# Linetsky (2004), Spectral expansions for Asian (average price) options, table 3: r, vol, T, S -> call with K = 2
CONTINUOUS_CALL = {
    (0.02, 0.10, 1.0, 2.0): 0.0559860415,
    (0.18, 0.30, 1.0, 2.0): 0.2183875466,
    (0.0125, 0.25, 2.0, 2.0): 0.1722687410,
    (0.05, 0.50, 1.0, 1.9): 0.1931737903,
    (0.05, 0.50, 1.0, 2.1): 0.3062203648,
    (0.05, 0.50, 2.0, 2.0): 0.3500952190,
}


def value(instrument: Asian, vol: float, market: Market) -> float:
    return FORMULAS[Asian, BlackScholes](instrument, BlackScholes(vol), market).value.item()


@pytest.mark.parametrize("option", ["call", "put"])
@pytest.mark.parametrize("average", ["arithmetic", "geometric"])
@pytest.mark.parametrize("floating", [False, True])
@pytest.mark.parametrize("n_past", [0, 3])
def test_payoff_brute_force(option: str, average: str, floating: bool, n_past: int):
    paths = lognormal_paths([0.2, 0.3, 0.7, 1.0], 16, seed=1)
    past = {"running_average": 93.0, "n_past": n_past} if n_past else {}
    contract = Asian(None if floating else 101.0, [0.2, 0.7, 1.0], option, average, floating, **past)
    found = contract.payoff(paths, flat_discount(0.05))
    for path, ours in zip(paths.spot.tolist(), found.tolist(), strict=True):
        fixings = [93.0] * n_past + [path[1], path[3], path[4]]
        mean = sum(fixings) / len(fixings) if average == "arithmetic" else math.prod(fixings) ** (1 / len(fixings))
        gain = path[4] - mean if floating else mean - 101.0
        assert ours == pytest.approx(math.exp(-0.05) * max(gain if option == "call" else -gain, 0.0), rel=1e-12)


def test_payoff_of_batches():
    paths = lognormal_paths([0.2, 0.3, 0.7, 1.0], 8, seed=2)
    strikes, times = [90.0, 110.0], [[0.2, 1.0], [0.3, 0.7], [0.0, 0.2]]
    contract = Asian(torch.tensor(strikes)[:, None].double(), times, "put")
    found = contract.payoff(paths, flat_discount(0.02))
    assert found.shape == (2, 3, 8)
    for i, j in itertools.product(range(2), range(3)):
        single = Asian(strikes[i], times[j], "put").payoff(paths, flat_discount(0.02))
        torch.testing.assert_close(found[i, j], single, rtol=1e-14, atol=0.0)


def convolution_put(strike: float, times: np.ndarray, spot: float, rate: float, income: float, vol: float) -> float:
    """Arithmetic put with the first fixing today, by the density of the log of what the rest of the sum is.

    The sum is S (1 + e^{R_1} (1 + e^{R_2} (1 + ...))) (Carverhill and Clewlow, 1990): from the last return inwards, the
    trapezoidal rule on a grid, which converges geometrically; the first return is integrated in closed form.
    """
    dt = times[1] - times[0]  # fixings are equidistant
    mean, deviation = (rate - income - 0.5 * vol**2) * dt, vol * math.sqrt(dt)
    grid = np.linspace(-1.5, 5.5, 2400)
    logs = np.log1p(np.exp(grid))
    step = (grid[1] - grid[0]) * stats.norm.pdf(grid[:, None] - logs[None, :], mean, deviation)
    inner = (grid[1] - grid[0]) * stats.norm.pdf(grid, mean, deviation)  # weights of B on the grid: the last return
    for _ in range(len(times) - 3):
        inner = step @ inner
    assert inner.sum() == pytest.approx(1.0, abs=1e-9)
    level = len(times) * strike / spot - 1.0  # put on e^{R_1 + log(1 + e^B)}
    forward = np.exp(logs + mean + 0.5 * deviation**2)
    d = np.log(forward / level) / deviation + 0.5 * deviation
    put = level * stats.norm.cdf(deviation - d) - forward * stats.norm.cdf(-d)
    return math.exp(-rate * times[-1]) * spot / len(times) * float(put @ inner)


@pytest.mark.parametrize("n_fixings", [12, 52])
def test_arithmetic_put_published_and_convolution(n_fixings: int):
    times = np.linspace(0.0, 11 / 12, n_fixings)
    oracle = convolution_put(87.0, times, 90.0, 0.025, 0.06, 0.13)
    assert oracle == pytest.approx(ARITHMETIC_PUT[n_fixings], abs=2e-5)
    paths = lognormal_paths(list(times[1:]), 2**15, spot=90.0, rate=0.025, dividend_yield=0.06, vol=0.13, seed=3)
    arithmetic, geometric = (Asian(87.0, times, "put", average) for average in ("arithmetic", "geometric"))
    discount = flat_discount(0.025)
    known = value(geometric, 0.13, Market(90.0, 0.025, 0.06))
    mean, error = controlled_mean(arithmetic.payoff(paths, discount), geometric.payoff(paths, discount), known)
    assert error < 4e-4
    assert abs(mean - oracle) < 4 * error


def test_deep_seasoned_call_is_a_forward():
    # 6 fixings of 130 and 4 to come: the average exceeds 75 whatever happens
    market, times = Market(100.0, 0.05, 0.01), [0.25, 0.5, 0.75, 1.0]
    contract = Asian(75.0, times, "call", running_average=130.0, n_past=6)
    forwards = [100 * math.exp(0.04 * t) for t in times]
    exact = math.exp(-0.05) * ((6 * 130.0 + sum(forwards)) / 10 - 75.0)
    assert value(contract, 0.3, market) == pytest.approx(exact, rel=1e-13)
    assert value(Asian(75.0, times, "put", running_average=130.0, n_past=6), 0.3, market) == 0.0
    paths = lognormal_paths(times, 2**14, rate=0.05, dividend_yield=0.01, vol=0.3)
    mean, error = mean_and_error(contract.payoff(paths, flat_discount(0.05)))
    assert abs(mean - exact) < 4 * error


def test_deep_seasoned_continuous_call_is_a_forward():
    market = Market(100.0, 0.05, 0.01)
    contract = Asian(75.0, "continuous", "call", running_average=130.0, elapsed=1.5, expiry=1.0)
    future = 100.0 * math.expm1(0.04) / 0.04
    exact = math.exp(-0.05) * ((1.5 * 130.0 + future) / 2.5 - 75.0)
    assert exceeded_asian_formula(contract, BlackScholes(0.3), market).value.item() == pytest.approx(exact, rel=1e-13)


def test_arithmetic_average_without_closed_form_says_so():
    with pytest.raises(ValueError, match="arithmetic average has no closed form"):
        value(Asian(75.0, [0.5, 1.0], "call", running_average=70.0, n_past=2), 0.3, Market(100.0))


@pytest.mark.parametrize("case", CONTINUOUS_CALL)
def test_continuous_arithmetic_call_published(case: tuple[float, float, float, float]):
    rate, vol, expiry, spot = case
    grid = time_grid(torch.tensor([expiry], dtype=torch.float64), 16)[1:]
    paths = lognormal_paths(grid, 2**16, spot=spot, rate=rate, vol=vol, seed=4)
    arithmetic, geometric = (
        Asian(2.0, "continuous", "call", average, expiry=expiry) for average in ("arithmetic", "geometric")
    )
    known, discount = value(geometric, vol, Market(spot, rate)), flat_discount(rate)
    mean, error = controlled_mean(arithmetic.payoff(paths, discount), geometric.payoff(paths, discount), known)
    assert error < 1e-3 * mean
    assert abs(mean - CONTINUOUS_CALL[case]) < 4 * error


@pytest.mark.parametrize("floating", [False, True])
@pytest.mark.parametrize("option", ["call", "put"])
def test_continuous_geometric_payoff_has_no_bias_at_any_step(floating: bool, option: str):
    strike = None if floating else 102.0
    contract = Asian(strike, "continuous", option, "geometric", floating, running_average=95.0, elapsed=0.2, expiry=1.0)
    exact = value(contract, 0.5, Market(100.0, 0.03, 0.01))
    for grid in ([1.0], [0.3, 1.0]):  # one or two steps
        paths = lognormal_paths(grid, 2**17, rate=0.03, dividend_yield=0.01, vol=0.5, seed=5)
        mean, error = mean_and_error(contract.payoff(paths, flat_discount(0.03)))
        assert error < 0.07
        assert abs(mean - exact) < 4 * error


def test_continuous_arithmetic_error_is_of_second_order_or_better():
    # differences between grids on the same Brownian paths: the noise of the payoff cancels
    fine = lognormal_paths([i / 32 for i in range(1, 33)], 2**18, vol=0.8, seed=6)
    contract = Asian(100.0, "continuous", "call", expiry=1.0)
    prices = {n: contract.payoff(coarsened(fine, 32 // n), flat_discount(0.0)) for n in (1, 2, 4, 32)}
    gaps = {n: mean_and_error(prices[n] - prices[32]) for n in (1, 2, 4)}
    for n in (1, 2, 4):
        bound = 0.5 / n**2  # half a unit in one step of one year at a volatility of 80 %, and falling as its square
        assert abs(gaps[n][0]) < bound + 4 * gaps[n][1]
        assert gaps[n][1] < 0.5 * bound


def coarsened(paths: Paths, every: int) -> Paths:
    assert paths.variance is not None
    variance = paths.variance.unflatten(-1, (-1, every)).sum(-1)
    return Paths(paths.times[::every].contiguous(), paths.spot[:, ::every], variance)


def test_continuous_batch_of_expiries_stops_at_each():
    paths = lognormal_paths([0.25, 0.5, 0.75, 1.0], 8, seed=7)
    both = Asian(100.0, "continuous", "put", expiry=[0.5, 1.0]).payoff(paths, flat_discount(0.02))
    short = Paths(paths.times[:3], paths.spot[:, :3], paths.variance[:, :2])
    alone = Asian(100.0, "continuous", "put", expiry=0.5).payoff(short, flat_discount(0.02))
    torch.testing.assert_close(both[0], alone, rtol=1e-14, atol=0.0)


def test_payoff_survives_absorption_at_zero():
    spot = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    paths = Paths(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), spot)
    for average in ("arithmetic", "geometric"):
        price = Asian(0.4, [0.5, 1.0], "put", average).payoff(paths, flat_discount(0.0))
        assert price.item() == pytest.approx(0.4)
        assert bool(torch.autograd.grad(price.sum(), spot)[0].isfinite().all())
