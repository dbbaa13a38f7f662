"""Jump models against QuantLib, a published value and Merton's Poisson series; Heston against QuantLib."""

import math
from statistics import NormalDist

import pytest
import QuantLib as ql  # noqa: N813  # its users know it by this name
import torch

from pricers.analytic.fourier_engine import Fourier
from pricers.instruments import European
from pricers.market import Market
from pricers.models import Bates, Heston, Merton

HESTON_SETS = (  # v0, kappa, theta, sigma, rho
    (0.04, 4.0, 0.25, 1.0, -0.5),
    (0.09, 1.0, 0.09, 1.0, -0.3),
    (0.02, 1.5, 0.04, 0.6, 0.7),
    (0.1, 4.0, 0.22, 1.8, -0.75),
)
JUMPS = ((0.3, -0.25, 0.25), (2.0, 0.05, 0.1), (0.05, -0.6, 0.4))  # intensity, mean, std
STRIKES = (50.0, 80.0, 100.0, 115.0, 180.0)
SPOT, RATE, DIVIDEND_YIELD = 100.0, 0.03, 0.01


def quantlib_prices(parameters, days, option, jumps=None):
    """Calls or puts by QuantLib's adaptive integration, at relative accuracy 1e-12."""
    today = ql.Date(2, 1, 2026)
    ql.Settings.instance().evaluationDate = today
    counter = ql.Actual365Fixed()
    curves = [ql.YieldTermStructureHandle(ql.FlatForward(today, rate, counter)) for rate in (RATE, DIVIDEND_YIELD)]
    spot = ql.QuoteHandle(ql.SimpleQuote(SPOT))
    v0, kappa, theta, sigma, rho = parameters
    if jumps is None:
        model = ql.HestonModel(ql.HestonProcess(*curves, spot, v0, kappa, theta, sigma, rho))
        engine = ql.AnalyticHestonEngine(model, 1e-12, 100_000)
    else:
        model = ql.BatesModel(ql.BatesProcess(*curves, spot, v0, kappa, theta, sigma, rho, *jumps))
        engine = ql.BatesEngine(model, 1e-12, 100_000)
    exercise = ql.EuropeanExercise(today + days)
    values = []
    for strike in STRIKES:
        contract = ql.VanillaOption(ql.PlainVanillaPayoff(option, strike), exercise)
        contract.setPricingEngine(engine)
        values.append(contract.NPV())
    return values


@pytest.mark.parametrize("parameters", HESTON_SETS)
@pytest.mark.parametrize("days", [7, 365, 3650])
def test_heston_equals_quantlib(parameters, days):
    for option, kind in (("call", ql.Option.Call), ("put", ql.Option.Put)):
        instrument = European(STRIKES, days / 365.0, option)
        value = Fourier().price(instrument, Heston(*parameters), Market(SPOT, RATE, DIVIDEND_YIELD)).value
        assert value.tolist() == pytest.approx(quantlib_prices(parameters, days, kind), abs=1e-8 * SPOT, rel=0.0)


@pytest.mark.parametrize("parameters", HESTON_SETS)
@pytest.mark.parametrize("jumps", JUMPS)
def test_bates_equals_quantlib(parameters, jumps):
    for days in (30, 730):
        instrument = European(STRIKES, days / 365.0, "call")
        value = Fourier().price(instrument, Bates(*parameters, *jumps), Market(SPOT, RATE, DIVIDEND_YIELD)).value
        exact = quantlib_prices(parameters, days, ql.Option.Call, jumps)
        assert value.tolist() == pytest.approx(exact, abs=1e-8 * SPOT, rel=0.0)


def test_bates_without_jumps_is_heston():
    call, market = European(STRIKES, 0.7), Market(SPOT, RATE, DIVIDEND_YIELD)
    for parameters in HESTON_SETS:
        bates = Fourier().price(call, Bates(*parameters, 0.0, -0.3, 0.2), market).value
        heston = Fourier().price(call, Heston(*parameters), market).value
        torch.testing.assert_close(bates, heston, rtol=0.0, atol=1e-10)


def merton_series(strike, expiry, vol, intensity, mean, std):
    """Merton (1976), eq. 18: Black-Scholes prices mixed by the number of jumps."""
    normal = NormalDist().cdf
    growth = math.exp(mean + 0.5 * std * std) - 1.0
    total = 0.0
    for n in range(120):
        weight = math.exp(-intensity * expiry + n * math.log(intensity * expiry) - math.lgamma(n + 1.0))
        forward = SPOT * math.exp((RATE - DIVIDEND_YIELD - intensity * growth) * expiry + n * (mean + 0.5 * std * std))
        deviation = math.sqrt(vol * vol * expiry + n * std * std)
        d1 = math.log(forward / strike) / deviation + 0.5 * deviation
        total += weight * (forward * normal(d1) - strike * normal(d1 - deviation))
    return math.exp(-RATE * expiry) * total


@pytest.mark.parametrize("expiry", [1.0 / 365.0, 1.0, 10.0])
def test_merton_equals_its_series(expiry):
    for parameters in ((0.12, 0.4, -0.12, 0.18), (0.3, 3.0, 0.1, 0.05), (0.05, 0.1, -0.6, 0.4)):
        value = (
            Fourier().price(European(STRIKES, expiry), Merton(*parameters), Market(SPOT, RATE, DIVIDEND_YIELD)).value
        )
        exact = [merton_series(strike, expiry, *parameters) for strike in STRIKES]
        assert value.tolist() == pytest.approx(exact, abs=1e-9 * SPOT, rel=0.0)


def test_merton_equals_the_published_value():
    # QuantLib, test-suite/jumpdiffusion.cpp, and the series
    call, market = European(100.0, 1.0, "call"), Market(100.0, 0.05, 0.01)
    value = Fourier().price(call, Merton(vol=0.12, intensity=0.4, jump_mean=-0.12, jump_std=0.18), market).value
    assert value.item() == pytest.approx(8.675684635426279, rel=1e-10)
