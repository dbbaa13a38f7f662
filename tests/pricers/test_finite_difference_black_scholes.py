"""Finite differences in one dimension against closed forms, published values and QuantLib."""

import math

import pytest
from scipy.stats import norm

from pricers.finite_difference import FiniteDifference
from pricers.instruments.digital import Digital
from pricers.instruments.european import European
from pricers.market import Market
from pricers.models.black_scholes import BlackScholes

ENGINE = FiniteDifference()


def black_scholes(spot, strike, rate, income, vol, expiry, option="call"):
    """Price, delta and gamma."""
    sign = 1.0 if option == "call" else -1.0
    total = vol * math.sqrt(expiry)
    d1 = (math.log(spot / strike) + (rate - income) * expiry) / total + 0.5 * total
    carried, paid = spot * math.exp(-income * expiry), strike * math.exp(-rate * expiry)
    price = sign * (carried * norm.cdf(sign * d1) - paid * norm.cdf(sign * (d1 - total)))
    delta = sign * math.exp(-income * expiry) * norm.cdf(sign * d1)
    return price, delta, math.exp(-income * expiry) * norm.pdf(d1) / (spot * total)


CASES = [
    (100.0, 100.0, 0.05, 0.02, 0.2, 1.0),
    (80.0, 100.0, 0.05, 0.0, 0.2, 1.0),
    (130.0, 100.0, 0.0, 0.04, 0.3, 2.0),
    (100.0, 101.0, 0.1, 0.0, 0.05, 1 / 52),
    (100.0, 90.0, 0.03, 0.01, 0.6, 20.0),
    (100.0, 150.0, 0.1, 0.0, 0.01, 4.0),  # the drift is 40 deviations
]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "option"), [*((case, "call") for case in CASES), (CASES[1], "put")])
def test_european_black_scholes_formula(case, option):
    spot, strike, rate, income, vol, expiry = case
    price, delta, gamma = black_scholes(*case, option)
    contract, model, market = European(strike, expiry, option), BlackScholes(vol), Market(spot, rate, income)
    estimate = ENGINE.price(contract, model, market)
    error = abs(estimate.value.item() - price)
    assert error <= estimate.error_bound.item() + 1e-12 * spot
    assert error <= 1e-6 * spot
    tolerances = (1e-5, 1e-4 * gamma + 1e-9)  # cubic interpolation between the nodes
    for number, exact, tolerance in zip(ENGINE.delta_gamma(contract, model, market), (delta, gamma), tolerances):
        assert abs(number.value.item() - exact) <= number.error_bound.item() + 1e-10
        assert abs(number.value.item() - exact) <= tolerance


@pytest.mark.parametrize("option", ["call", "put"])
@pytest.mark.parametrize("pays", ["cash", "asset"])
@pytest.mark.parametrize("case", [CASES[0], *(pytest.param(case, marks=pytest.mark.slow) for case in CASES[1:5])])
def test_digital_closed_form(case, option, pays):
    spot, strike, rate, income, vol, expiry = case
    sign = 1.0 if option == "call" else -1.0
    total = vol * math.sqrt(expiry)
    d1 = (math.log(spot / strike) + (rate - income) * expiry) / total + 0.5 * total
    cash = math.exp(-rate * expiry) * norm.cdf(sign * (d1 - total))
    exact = cash if pays == "cash" else spot * math.exp(-income * expiry) * norm.cdf(sign * d1)
    estimate = ENGINE.price(Digital(strike, expiry, option, pays), BlackScholes(vol), Market(spot, rate, income))
    error = abs(estimate.value.item() - exact)
    assert error <= estimate.error_bound.item() + 1e-12 * spot
    assert error <= 1e-6 * (1.0 if pays == "cash" else spot)
