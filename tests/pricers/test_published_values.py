"""Published and recomputed values through the public interface, to their printed digits or stated accuracy."""

import math

import pytest
import references_pricing as published
import torch
from scipy.optimize import least_squares

import pricers as pr


def number(values):
    return torch.tensor(values, dtype=torch.float64)


def test_black_scholes_of_the_hedging_benchmark():
    call = pr.European(1.0, 28.0 / 365.0)
    value = pr.price(call, pr.BlackScholes(0.2), pr.Market(1.0)).value.item()
    assert value == pytest.approx(0.0220962, rel=0.0, abs=5.001e-8)


def test_variance_of_a_swap_under_heston():
    swap = pr.price(pr.VarianceSwap(0.0, 1.0), pr.Heston(*published.LEWIS), pr.Market(100.0))
    assert swap.value.item() == pytest.approx(0.19846157104, rel=0.0, abs=5.001e-12)


@pytest.mark.parametrize("expiry", published.KIM_WEE_CALLS)
def test_continuous_geometric_asian_heston(expiry):
    call = pr.Asian([90.0, 95.0, 100.0, 105.0, 110.0], "continuous", "call", "geometric", expiry=expiry)
    found = pr.price(call, pr.Heston(*published.KIM_WEE), pr.Market(100.0, 0.05))
    assert found.value.tolist() == pytest.approx(published.KIM_WEE_CALLS[expiry], rel=0.0, abs=5.001e-5)


def test_floating_lookback():
    call = pr.Lookback(None, 0.5, "call", running_extremum=100.0)
    value = pr.price(call, pr.BlackScholes(0.3), pr.Market(120.0, 0.1, 0.06)).value.item()
    assert value == pytest.approx(25.3533, rel=0.0, abs=6e-5)  # cut, not rounded: 25.353355


@pytest.mark.parametrize("n_fixings", published.ARITHMETIC_PUTS)
def test_discrete_arithmetic_put(n_fixings):
    put = pr.Asian(87.0, [11.0 / 12.0 * i / (n_fixings - 1) for i in range(n_fixings)], "put")
    engine = pr.MonteCarlo(2**15, noise="sobol", seed=1)
    found = pr.price(put, pr.BlackScholes(0.13), pr.Market(90.0, 0.025, 0.06), engine)
    assert found.std_error.item() < 1.2e-5
    assert abs(found.value.item() - published.ARITHMETIC_PUTS[n_fixings]) <= 2e-5 + 3.0 * found.std_error.item()


@pytest.mark.parametrize(
    ("n_paths", "n_steps", "accuracy"), [(2**12, 120, 0.02), pytest.param(2**15, 240, 0.006, marks=pytest.mark.slow)]
)
def test_arithmetic_asian_heston(n_paths, n_steps, accuracy):
    # by the put, whose paths vary less, and the parity of the average
    times, strikes = [i / 12 for i in range(1, 121)], list(published.ZENG_KWOK_CALLS)
    engine = pr.MonteCarlo(n_paths, n_steps=n_steps, noise="sobol", seed=3)
    put, model = pr.Asian(strikes, times, "put"), pr.Heston(*published.FANG_OOSTERLEE)
    found = pr.price(put, model, pr.Market(100.0, 0.03), engine)
    average = sum(100.0 * math.exp(0.03 * time) for time in times) / 120.0
    calls = (found.value + math.exp(-0.3) * (average - number(strikes))).tolist()
    for strike, call, error in zip(strikes, calls, found.std_error.tolist(), strict=True):
        exact, exact_error = published.ASIAN_CALLS[strike]
        assert error < accuracy
        assert abs(call - exact) <= 3.0 * math.hypot(error, exact_error)
        assert abs(call - published.ZENG_KWOK_CALLS[strike]) < 0.03


@pytest.mark.slow
def test_american_put_heston():
    puts = published.IKONEN_TOIVANEN_PUTS
    market, model = pr.Market(list(puts), 0.1), pr.Heston(*published.IKONEN_TOIVANEN)
    engine = pr.FiniteDifference(n_space=360, n_time=120, n_variance=120)
    found = pr.price(pr.American(10.0, 0.25, "put"), model, market, engine)
    # the printed digits of 1.10763; of .520038 four units of the last one
    assert found.value.tolist() == pytest.approx(list(puts.values()), rel=0.0, abs=5e-6)


@pytest.mark.slow
def test_up_and_out_call_heston():
    call, model = pr.Barrier(100.0, 1.0, 135.0, "up-out"), pr.Heston(*published.UP_OUT_HESTON)
    engine, market = pr.FiniteDifference(n_time=160), pr.Market(100.0, 0.05)
    price = pr.price(call, model, market, engine).value.item()
    assert price == pytest.approx(published.UP_OUT_CALL["quantlib"], rel=0.0, abs=0.01)
    assert price == pytest.approx(published.UP_OUT_CALL["refined"], rel=0.0, abs=0.004)
    delta, gamma = (estimate.value.item() for estimate in engine.delta_gamma(call, model, market))
    assert delta == pytest.approx(published.UP_OUT_CALL["delta"], rel=0.0, abs=5e-4)
    assert gamma == pytest.approx(published.UP_OUT_CALL["gamma"], rel=0.0, abs=1e-4)


def test_sabr_calibration_round_trip():
    calls, market = pr.European(list(published.SABR_STRIKES), 0.5), pr.Market(100.0)

    def residuals(law):
        alpha, nu, rho = law.tolist()
        found = pr.price(calls, pr.SABR(alpha=alpha, beta=0.5, rho=rho, nu=nu), market).value
        return (found - number(published.SABR_CALLS)).numpy()

    bounds = ([0.1, 0.01, -0.99], [10.0, 3.0, 0.99])
    fit = least_squares(residuals, [1.0, 0.5, 0.0], bounds=bounds, xtol=1e-14, ftol=1e-14, gtol=1e-14)
    # prices are printed to 1e-8: what that leaves open in each parameter
    assert fit.x.tolist() == pytest.approx([1.5, 0.33, 0.1], rel=0.0, abs=1e-6)
    assert abs(fit.fun).max() < 1.1e-8


def test_rough_heston_at_half_is_heston():
    calls = pr.European(number([75.0, 100.0, 130.0])[:, None], number([0.25, 1.0]))
    law, market = (0.04, 0.3, 0.04, 0.4, -0.7), pr.Market(100.0, 0.03)
    rough, plain = (pr.price(calls, model, market).value for model in (pr.RoughHeston(*law, 0.5), pr.Heston(*law)))
    torch.testing.assert_close(rough, plain, rtol=0.0, atol=1e-8)


def implied(estimate, strike, expiry, option):
    """Volatility and its standard error, on a forward of 1."""
    one = number(1.0)
    vols = [
        pr.implied_vol(price, one, number(strike), number(expiry), one, option).item()
        for price in (estimate.value, estimate.value + estimate.std_error)
    ]
    return vols[0], vols[1] - vols[0]


@pytest.mark.slow
@pytest.mark.parametrize("log_moneyness", published.ROUGH_BERGOMI_VOLS)
def test_rough_bergomi_smile(log_moneyness):
    option, strike = "put" if log_moneyness < 0 else "call", math.exp(log_moneyness)
    engine = pr.MonteCarlo(2**18, n_steps=312, noise="sobol", seed=4)
    model = pr.RoughBergomi(**published.ROUGH_BERGOMI)
    found = pr.price(pr.European(strike, 0.25, option), model, pr.Market(1.0), engine)
    vol, error = implied(found, strike, 0.25, option)
    assert error < 4e-4
    # what the paper's own paths and the printed digits leave open
    assert abs(vol - published.ROUGH_BERGOMI_VOLS[log_moneyness]) <= 3.0 * error + 2e-4


@pytest.mark.slow
@pytest.mark.parametrize("strike", published.SABR_TRUTH)
def test_sabr_simulation_is_the_truth_that_the_expansion_misses(strike):
    option, model = "put" if strike < 1.0 else "call", pr.SABR(alpha=0.25, beta=0.3, rho=-0.8, nu=0.3)
    contract, market = pr.European(strike, 10.0, option), pr.Market(1.0)
    values = {}
    for n_steps in (100, 200):
        engine = pr.MonteCarlo(2**18, n_steps=n_steps, noise="sobol", seed=n_steps)
        values[n_steps] = implied(pr.price(contract, model, market, engine), strike, 10.0, option)
    printed, exact, hagan = published.SABR_TRUTH[strike]
    vol = 2.0 * values[200][0] - values[100][0]  # the bias falls like the step
    error = math.hypot(2.0 * values[200][1], values[100][1])
    assert error < 8e-4
    assert abs(vol - exact) <= 3.0 * error
    assert abs(vol - printed) <= 3.0 * error + abs(exact - printed)
    expansion = implied(pr.price(contract, model, market), strike, 10.0, option)[0]
    assert expansion == pytest.approx(hagan, rel=0.0, abs=5.001e-5)


def equal_correlation(size, rho):
    return number([[1.0 if i == j else rho for j in range(size)] for i in range(size)])


@pytest.mark.parametrize(("n_paths", "accuracy"), [(2**19, 3e-3), pytest.param(2**23, 5e-4, marks=pytest.mark.slow)])
def test_basket_of_four(n_paths, accuracy):
    calls = published.KREKEL_CALLS
    basket = pr.Basket(list(calls), 5.0, "call", weights=[0.25] * 4)
    model = pr.BlackScholes([0.4] * 4, equal_correlation(4, 0.5))
    engine = pr.MonteCarlo(n_paths, noise="sobol", seed=2)
    found = pr.price(basket, model, pr.Market([100.0] * 4), engine)
    assert bool((found.std_error < accuracy).all())
    assert bool(((found.value - number(list(calls.values()))).abs() <= 4.0 * found.std_error).all())


@pytest.mark.slow
@pytest.mark.parametrize("spot", published.MAX_CALLS)
def test_bermudan_call_on_the_better_of_two(spot):
    call = pr.Bermudan(100.0, [i / 3 for i in range(1, 10)], "call", "max")
    model, market = pr.BlackScholes([0.2, 0.2], equal_correlation(2, 0.0)), pr.Market([spot, spot], 0.05, 0.1)
    engine = pr.LongstaffSchwartz(2**18, n_steps=9, seed=3, degree=5, n_outer=2048, n_inner=256)
    lower, upper = engine.bounds(call, model, market)
    assert upper is not None
    known, half_digit = published.MAX_CALLS[spot], 5e-3
    assert lower.value.item() <= known + half_digit + 3.0 * lower.std_error.item()
    assert upper.value.item() >= known - half_digit - 3.0 * upper.std_error.item()
    for bound in (lower, upper):
        assert bound.std_error.item() < 0.03
        assert abs(bound.value.item() - known) < 0.05 + 3.0 * bound.std_error.item()
