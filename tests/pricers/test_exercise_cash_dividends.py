"""Early exercise by regression with cash dividends: against finite differences, and dates that meet ex-dates."""

import math

import pytest
import torch

import pricers as pr

STRIKES = [90.0, 100.0, 110.0]
MODEL = pr.BlackScholes(0.25)
GRID = pr.FiniteDifference(n_space=120, n_time=40)


def market(times, amounts, rate=0.05):
    return pr.Market(100.0, rate, dividends=pr.CashDividends(times, amounts))


@pytest.mark.slow
@pytest.mark.parametrize("option", ["call", "put"])
@pytest.mark.parametrize(
    "paying",
    [
        market([0.2, 0.6], [3.0, 4.0]),
        market([0.5, 1.0], [5.0, 6.0]),  # on dates of exercise, one on the last
        market([0.25, 0.75, 1.5], [2.0, 2.5, 9.0]),  # one after expiry
    ],
    ids=["between", "on_dates", "after_expiry"],
)
def test_american_and_bermudan_against_finite_differences(paying, option):
    american = pr.American(STRIKES, 1.0, option)
    bermudan = pr.Bermudan(STRIKES, [0.25, 0.5, 0.75, 1.0], option)
    engine = pr.LongstaffSchwartz(n_paths=16_384, n_steps=25, seed=1, degree=4)
    for contract in (american, bermudan):
        exact = pr.price(contract, MODEL, paying, GRID)
        found = pr.price(contract, MODEL, paying, engine)
        error = 4.0 * found.std_error
        assert (found.value <= exact.value + error + exact.error_bound).all()
        # what a rule of degree four, on 25 dates for the American, loses
        assert (found.value >= 0.994 * exact.value - error).all()
        assert (found.std_error <= 0.022 * exact.value).all()


def test_call_is_exercised_right_before_and_put_right_after_the_dividend():
    """One large dividend late in the life, hardly any volatility: the values follow from the payoffs."""
    model, paying = pr.BlackScholes(0.01), market([0.7], [30.0], rate=0.0)
    engine = pr.LongstaffSchwartz(n_paths=4096, n_steps=2, seed=1)  # 0.7 is none of the two dates
    call = pr.price(pr.American(80.0, 1.0, "call"), model, paying, engine)
    assert call.value.item() == pytest.approx(20.0, abs=4.0 * call.std_error.item() + 1e-9)
    # interest makes the put, sure to pay, worth stopping at once when the spot has fallen
    paying = market([0.7], [30.0], rate=0.1)
    put = pr.price(pr.American(140.0, 1.0, "put"), model, paying, engine)
    later = 140.0 * math.exp(-0.07) - (100.0 - 30.0 * math.exp(-0.07))
    assert put.value.item() == pytest.approx(later, abs=4.0 * put.std_error.item() + 1e-3)
    assert later > 140.0 * math.exp(-0.1) - (100.0 - 30.0 * math.exp(-0.07)) + 2.0  # waiting to expiry


def test_upper_bound_holds_with_dividends():
    paying = market([0.5, 1.0], [5.0, 6.0])
    option = pr.Bermudan(STRIKES, [0.25, 0.5, 0.75, 1.0], "call")
    exact = pr.price(option, MODEL, paying, GRID).value
    lower, upper = pr.LongstaffSchwartz(16_384, n_steps=4, seed=2, degree=4, n_outer=128, n_inner=64).bounds(
        option, MODEL, paying
    )
    assert upper is not None
    assert (lower.value <= exact + 4.0 * lower.std_error).all()
    assert (upper.value >= exact - 4.0 * upper.std_error).all()
    assert (upper.value <= 1.05 * exact + 4.0 * upper.std_error).all()


def test_one_date_is_the_european_after_its_dividend():
    paying = market([0.4, 1.0], [5.0, 3.0])
    european = pr.price(pr.European(STRIKES, 1.0, "put"), MODEL, paying, GRID).value
    found = pr.price(pr.Bermudan(STRIKES, [1.0], "put"), MODEL, paying, pr.LongstaffSchwartz(65_536, 1, seed=3))
    assert ((found.value - european).abs() <= 4.0 * found.std_error).all()
    assert (found.std_error < 0.01 * european).all()


def test_dividends_of_nothing_change_nothing():
    contract = pr.Bermudan(STRIKES, [0.5, 1.0], "put")
    engine = pr.LongstaffSchwartz(4096, n_steps=2, seed=4)
    without = pr.price(contract, MODEL, pr.Market(100.0, 0.05), engine).value
    nothing = pr.price(contract, MODEL, market([0.5], [0.0]), engine).value
    torch.testing.assert_close(nothing, without, rtol=1e-10, atol=0.0)


def test_an_asset_that_pays_all_it_is_worth_is_worth_nothing():
    paying = market([0.5], [1000.0], rate=0.0)
    put = pr.price(pr.American(100.0, 1.0, "put"), MODEL, paying, pr.LongstaffSchwartz(1024, n_steps=4, seed=1))
    assert put.value.item() == pytest.approx(100.0, rel=1e-12)


@pytest.mark.slow
def test_greeks_hold_the_rule_with_dividends():
    triple = (pr.American(100.0, 1.0, "put"), MODEL, market([0.2, 0.6], [3.0, 4.0]))
    exact = pr.greeks(*triple, ("spot", "vol", "rate"), GRID)
    found = pr.greeks(*triple, ("spot", "vol", "rate"), pr.LongstaffSchwartz(16_384, n_steps=20, seed=1))
    for name, estimate in found.items():
        gap = (estimate.value - exact[name].value).abs()
        assert gap <= 4.0 * estimate.std_error + 0.02 * exact[name].value.abs(), name
        assert estimate.std_error <= 0.05 * exact[name].value.abs(), name
