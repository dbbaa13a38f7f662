"""Published values of European options under Heston, and the Greeks by automatic differentiation."""

import pytest
import torch

from pricers.analytic.fourier_engine import Fourier
from pricers.instruments import European
from pricers.market import Market
from pricers.models import Heston


def tensor(value):
    return torch.tensor(value, dtype=torch.float64)


# v0, kappa, theta, sigma, rho
CASE_1 = (0.04, 0.5, 0.04, 1.0, -0.9)  # Andersen (2008), Simple and efficient simulation of the Heston model, table 1
CASE_2 = (0.04, 0.3, 0.04, 0.9, -0.5)
CASE_3 = (0.09, 1.0, 0.09, 1.0, -0.3)
BROADIE_KAYA_1 = (0.010201, 6.21, 0.019, 0.61, -0.7)  # Broadie and Kaya (2006), Exact simulation, tables 1 and 2
BROADIE_KAYA_2 = (0.09, 2.0, 0.09, 1.0, -0.3)
LEWIS = (0.04, 4.0, 0.25, 1.0, -0.5)  # Lewis' values in QuantLib, test-suite/hestonmodel.cpp
FANG_OOSTERLEE = (0.0175, 1.5768, 0.0398, 0.5751, -0.5711)  # Fang and Oosterlee (2008), section 5.4
QUANTLIB_COS = (0.1, 4.0, 0.22, 1.8, -0.75)  # QuantLib, test-suite/hestonmodel.cpp, testCosHestonEngine
BUEHLER = (0.04, 1.0, 0.04, 2.0, -0.7)  # Buehler, Gonon, Teichmann and Wood (2019), Deep hedging, section 5.1

# name, model, expiry, rate, dividend yield, {strike: call}, unit of the last digit that is right
CALLS = (
    ("Andersen 1", CASE_1, 10.0, 0.0, 0.0, {60: 44.32997507, 70: 35.8497697, 100: 13.08467014, 140: 0.29577444}, 1e-8),
    ("Andersen 2", CASE_2, 15.0, 0.0, 0.0, {100: 16.64922292}, 1e-8),
    ("Andersen 3", CASE_3, 5.0, 0.05, 0.0, {60: 56.57502467, 100: 33.59681806, 140: 18.15695689}, 1e-8),
    ("Broadie-Kaya 1", BROADIE_KAYA_1, 1.0, 0.0319, 0.0, {100: 6.80611331}, 1e-8),
    ("Broadie-Kaya 2", BROADIE_KAYA_2, 5.0, 0.05, 0.0, {100: 34.99975835}, 1e-8),
    (
        "Lewis",
        LEWIS,
        1.0,
        0.01,
        0.02,
        {
            80: 26.774758743998854,
            90: 20.933349000596711,
            100: 16.070154917028834,
            110: 12.132211516709845,
            120: 9.0249134834578356,
        },
        2e-11,
    ),
    ("Fang-Oosterlee", FANG_OOSTERLEE, 1.0, 0.0, 0.0, {100: 5.785155434376}, 1e-12),
    ("Fang-Oosterlee", FANG_OOSTERLEE, 10.0, 0.0, 0.0, {100: 22.318945791154}, 1e-12),
    ("QuantLib COS", QUANTLIB_COS, 1.0, 0.15, 0.07, {120: 9.364410588426075, 250: 0.01036797658132471}, 1e-12),
    ("Buehler", BUEHLER, 30.0 / 365.0, 0.0, 0.0, {100: 1.6918339251}, 1e-10),
)


@pytest.mark.parametrize(
    ("parameters", "expiry", "rate", "dividend_yield", "calls", "digit"),
    [case[1:] for case in CALLS],
    ids=[f"{case[0]}, {case[2]:.2g} years" for case in CALLS],
)
def test_calls_equal_published_values(parameters, expiry, rate, dividend_yield, calls, digit):
    call = European(strike=[float(strike) for strike in calls], expiry=expiry, option="call")
    estimate = Fourier().price(call, Heston(*parameters), Market(100.0, rate, dividend_yield))
    for value, bound, published in zip(estimate.value, estimate.error_bound, calls.values(), strict=True):
        assert bound <= 3e-8  # 3e-10 of the spot
        # the last printed digit, or 1e-10 where more digits are printed than double precision of the source holds
        assert abs(value.item() - published) <= max(0.7 * digit, 1e-10 * published if digit < 1e-9 else 0.0)
    assert (estimate.std_error == 0.0).all()


# by finite differences of two engines, about 1e-7; the order is spot, spot twice, the parameters, rate
GREEKS = (
    (
        LEWIS,
        0.01,
        0.02,
        (
            0.5994713250,
            0.0092875374,
            10.1792654,
            0.6898541670,
            32.5601334,
            -1.1131714978,
            0.9498327395,
            43.876978,
        ),
    ),
    (
        FANG_OOSTERLEE,
        0.0,
        0.0,
        (
            0.6249163291,
            0.0305533634,
            54.5653309,
            0.8687402689,
            62.9151829,
            -2.2048085700,
            0.5805726110,
            56.706494,
        ),
    ),
)


@pytest.mark.parametrize(("parameters", "rate", "dividend_yield", "published"), GREEKS, ids=["Lewis", "Fang-Oosterlee"])
def test_greeks_by_automatic_differentiation_equal_published_values(parameters, rate, dividend_yield, published):
    spot, rate, *leaves = (tensor(value).requires_grad_() for value in (100.0, rate, *parameters))
    market = Market(spot, rate, tensor(dividend_yield))
    value = Fourier().price(European(tensor(100.0), tensor(1.0), "call"), Heston(*leaves), market).value
    delta, by_rate, *by_model = torch.autograd.grad(value, (spot, rate, *leaves), create_graph=True)
    (gamma,) = torch.autograd.grad(delta, spot)
    greeks = [greek.item() for greek in (delta, gamma, *by_model, by_rate)]
    assert greeks == pytest.approx(published, rel=2e-7, abs=2e-7)


def test_delta_and_gamma_equal_mpmath():
    # Fang-Oosterlee, 1 year: Lewis' integral differentiated in 30 digits
    spot = tensor(100.0).requires_grad_()
    value = Fourier().price(European(100.0, 1.0), Heston(*tensor(FANG_OOSTERLEE)), Market(spot)).value
    (delta,) = torch.autograd.grad(value, spot, create_graph=True)
    (gamma,) = torch.autograd.grad(delta, spot)
    assert value.item() == pytest.approx(5.785155434376189, rel=1e-12)
    assert delta.item() == pytest.approx(0.624916495626253, rel=1e-11)
    assert gamma.item() == pytest.approx(0.0305533418163964, rel=1e-9)
