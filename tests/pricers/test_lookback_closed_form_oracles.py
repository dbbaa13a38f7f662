"""Closed forms of lookback options against published values, QuantLib, mpmath and the identities between them."""

import itertools

import mpmath
import numpy as np
import pytest
import QuantLib as ql  # noqa: N813  # its own tests call it so
import torch
from derivatives import assert_derivatives

from pricers.analytic.engine import Analytic
from pricers.analytic.lookback import lookback_formula, lookback_price, strike_bonus
from pricers.instruments.european import European
from pricers.instruments.lookback import Lookback
from pricers.market import CashDividends, Market, ZeroCurve
from pricers.models.black_scholes import BlackScholes

# forward mode of torch imports TorchScript, which warns of itself
forward_mode = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
CONTRACTS = list(itertools.product(("floating", "fixed"), ("call", "put")))


def number(x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


def price(strike, option, spot=100.0, expiry=0.5, extremum=None, rate=0.05, income=0.02, vol=0.25):
    level = spot if extremum is None else extremum
    law = (number(x) for x in (rate, income, vol))
    strike = None if strike is None else number(strike)
    return lookback_price(number(spot), strike, number(expiry), number(level), option, *law)


def test_floating_lookback_call_haug():
    # Haug (2007), section 4.15.1: 25.3533, that is 25.35335 to more digits
    contract = Lookback(None, 0.5, "call", running_extremum=100.0)
    estimate = lookback_formula(contract, BlackScholes(0.3), Market(120.0, 0.10, 0.06))
    assert estimate.value.item() == pytest.approx(25.3533, abs=1e-4)
    assert estimate.engine == "analytic"


def test_fixed_lookback_call_haug_table():
    # Haug (2007), table 4-8: S = K = 100, r .1, q 0, T .5
    contract = Lookback(100.0, 0.5, "call")
    values = lookback_formula(contract, BlackScholes([0.1, 0.2, 0.3]), Market(100.0, 0.10, 0.0)).value
    assert values == pytest.approx(np.array([8.5126, 14.1702, 20.2296]), abs=5.1e-5)  # the printed digits


def quantlib_lookback(strike, option, spot, days, extremum, rate, income, vol):
    today = ql.Date(15, 1, 2024)
    ql.Settings.instance().evaluationDate = today
    day_count = ql.Actual365Fixed()

    def curve(level):
        return ql.YieldTermStructureHandle(ql.FlatForward(today, level, day_count))

    flat_vol = ql.BlackVolTermStructureHandle(ql.BlackConstantVol(today, ql.NullCalendar(), vol, day_count))
    spot_quote = ql.QuoteHandle(ql.SimpleQuote(spot))
    process = ql.BlackScholesMertonProcess(spot_quote, curve(income), curve(rate), flat_vol)
    side, exercise = ql.Option.Call if option == "call" else ql.Option.Put, ql.EuropeanExercise(today + days)
    if strike is None:
        contract = ql.ContinuousFloatingLookbackOption(extremum, ql.FloatingTypePayoff(side), exercise)
        contract.setPricingEngine(ql.AnalyticContinuousFloatingLookbackEngine(process))
    else:
        contract = ql.ContinuousFixedLookbackOption(extremum, ql.PlainVanillaPayoff(side, strike), exercise)
        contract.setPricingEngine(ql.AnalyticContinuousFixedLookbackEngine(process))
    return contract.NPV()


@pytest.mark.parametrize(("form", "option"), CONTRACTS)
def test_lookback_quantlib_grid(form, option):
    random = np.random.default_rng(3)
    for _ in range(200):
        days, vol = int(random.integers(5, 4000)), float(random.uniform(0.06, 0.6))
        rate, income = float(random.uniform(-0.02, 0.12)), float(random.uniform(-0.02, 0.12))
        strike = float(random.uniform(60.0, 150.0)) if form == "fixed" else None
        beyond = float(random.choice([1.0, random.uniform(1.0, 1.6)]))
        extremum = 100.0 * beyond if (form == "fixed") == (option == "call") else 100.0 / beyond
        expected = quantlib_lookback(strike, option, 100.0, days, extremum, rate, income, vol)
        ours = price(strike, option, 100.0, days / 365, extremum, rate, income, vol).item()
        # QuantLib divides by rate - income: its rounding error grows by vol^2 / (2 (rate - income))
        lost = vol**2 / (2.0 * abs(rate - income))
        assert ours == pytest.approx(expected, rel=1e-11 * (1.0 + lost), abs=1e-10)


def mpmath_extreme_mean(spot, level, expiry, rate, income, vol, of_maximum):
    """Discounted mean of the excess of the maximum over `level` (or of `level` over the minimum): the tail integral."""
    with mpmath.workdps(30):
        sign = 1 if of_maximum else -1
        drift = sign * (mpmath.mpf(rate) - income - mpmath.mpf(vol) ** 2 / 2)
        root = vol * mpmath.sqrt(mpmath.mpf(expiry))

        def tail(x):  # P(max of the log, from 0, exceeds x)
            first = mpmath.ncdf((drift * expiry - x) / root)
            return first + mpmath.exp(2 * drift * x / mpmath.mpf(vol) ** 2) * mpmath.ncdf((-x - drift * expiry) / root)

        start = sign * mpmath.log(mpmath.mpf(level) / spot)
        points = [start + k * root for k in (0, 0.5, 1, 2, 4, 8, 16)]
        excess = mpmath.quad(lambda x: spot * mpmath.exp(sign * x) * tail(x), points)
        return float(mpmath.exp(-mpmath.mpf(rate) * expiry) * excess)


@pytest.mark.slow
@pytest.mark.parametrize("option", ["call", "put"])
@pytest.mark.parametrize(
    ("rate", "income", "vol", "expiry"),
    [
        (0.05, 0.05, 0.25, 1.0),  # rate = yield: the textbook formula is 0 / 0
        (0.05, 0.05 - 1e-12, 0.25, 1.0),
        (0.05, 0.049999, 0.25, 1.0),  # the textbook formula loses 5 digits
        (0.05, 0.0, 0.25, 1.0),
        (0.0, 0.10, 0.6, 20.0),
        (-0.02, 0.01, 0.05, 0.01),
        (0.10, 0.02, 0.02, 2.0),
        (0.02, 0.10, 0.02, 2.0),
    ],
)
@pytest.mark.parametrize("beyond", [1.0, 1.001, 1.2])
def test_fixed_lookback_mpmath_rate_near_yield_included(option, rate, income, vol, expiry, beyond):
    level = 100.0 * beyond if option == "call" else 100.0 / beyond
    ours = price(level, option, expiry=expiry, extremum=level, rate=rate, income=income, vol=vol).item()
    expected = mpmath_extreme_mean(100.0, level, expiry, rate, income, vol, option == "call")
    assert ours == pytest.approx(expected, rel=1e-11, abs=2e-13)


def test_floating_and_fixed_lookbacks_differ_by_a_forward():
    """E max(M, L) - E S = E (M - L)^+ + L - E S, and the same below."""
    spot, expiry, rate, income, vol = (number(x) for x in (100.0, 2.0, 0.04, 0.01, 0.3))
    discount, share = torch.exp(-rate * expiry), torch.exp(-income * expiry)
    for option, level in (("put", 115.0), ("call", 88.0)):
        level, other = number(level), "call" if option == "put" else "put"
        floating = lookback_price(spot, None, expiry, level, option, rate, income, vol)
        fixed = lookback_price(spot, level, expiry, level, other, rate, income, vol)
        sign = 1.0 if option == "call" else -1.0
        expected = fixed + sign * (spot * share - level * discount)
        torch.testing.assert_close(floating, expected, rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("option", ["call", "put"])
def test_fixed_strike_already_passed_is_certain_money_plus_a_new_option(option):
    extremum, strike = (120.0, 105.0) if option == "call" else (80.0, 95.0)
    certain = abs(extremum - strike) * np.exp(-0.05 * 0.5)
    expected = certain + price(extremum, option, extremum=extremum).item()
    assert price(strike, option, extremum=extremum).item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("option", ["call", "put"])
def test_extremum_out_of_reach_makes_the_floating_lookback_european(option):
    far = 10.0 if option == "call" else 1000.0
    tensors = [number(x) for x in (100.0, 0.5, 0.05, 0.02, 0.25)]
    spot, expiry, rate, income, vol = tensors
    european = Analytic().price(European(number(far), expiry, option), BlackScholes(vol), Market(spot, rate, income))
    assert price(None, option, extremum=far).item() == pytest.approx(european.value.item(), rel=1e-13)


def test_lookback_is_worth_more_than_the_european_and_grows_with_the_extremum():
    model, market = BlackScholes(number(0.25)), Market(number(100.0), number(0.05), number(0.02))
    for option in ("call", "put"):
        strikes = torch.linspace(70.0, 140.0, 30, dtype=torch.float64)
        fixed = lookback_formula(Lookback(strikes, number(1.0), option), model, market).value
        european = Analytic().price(European(strikes, number(1.0), option), model, market).value
        assert (fixed > european).all()
        slope = fixed.diff() * (1.0 if option == "put" else -1.0)
        assert (slope > 0).all()
    maxima = torch.linspace(100.0, 200.0, 40, dtype=torch.float64)
    floating = lookback_formula(Lookback(None, number(1.0), "put", maxima), model, market).value
    assert (floating.diff() > 0).all()
    minima = torch.linspace(100.0, 50.0, 40, dtype=torch.float64)
    floating = lookback_formula(Lookback(None, number(1.0), "call", minima), model, market).value
    assert (floating.diff() > 0).all()


def test_new_contract_starts_at_the_spot_and_scales_with_it():
    """Without a past the floating lookback is linear in the spot: its delta is value over spot."""
    spot = number(100.0).requires_grad_()
    for option in ("call", "put"):
        contract = Lookback(None, number(0.7), option)
        value = lookback_formula(contract, BlackScholes(number(0.3)), Market(spot, number(0.03), number(0.01))).value
        (delta,) = torch.autograd.grad(value, spot)
        torch.testing.assert_close(delta * spot, value, rtol=1e-13, atol=0.0)


@forward_mode
@pytest.mark.parametrize(("form", "option"), CONTRACTS)
@pytest.mark.parametrize("income", [0.05, 0.0499, 0.01])  # rate = yield, close to it, and apart
def test_lookback_derivatives_of_both_orders(form, option, income):
    extremum = 108.0 if (form == "fixed") == (option == "call") else 93.0
    for strike in (None,) if form == "floating" else (number(85.0), number(120.0)):

        def value(spot, expiry, level, rate, dividend, vol, strike=strike):
            return lookback_price(spot, strike, expiry, level, option, rate, dividend, vol)

        assert_derivatives(value, [100.0, 0.8, extremum, 0.05, income, 0.3])


@pytest.mark.parametrize(("form", "option"), CONTRACTS)
def test_price_solves_the_black_scholes_equation(form, option):
    rate, income, vol = 0.03, 0.06, 0.35
    extremum = number(110.0 if (form == "fixed") == (option == "call") else 92.0)
    strike = None if form == "floating" else number(97.0)
    spot, expiry = number(103.0).requires_grad_(), number(0.7).requires_grad_()
    value = lookback_price(spot, strike, expiry, extremum, option, number(rate), number(income), number(vol))
    delta, speed = torch.autograd.grad(value, (spot, expiry), create_graph=True)
    (gamma,) = torch.autograd.grad(delta, spot)
    residual = -speed + (rate - income) * spot * delta + 0.5 * vol**2 * spot**2 * gamma - rate * value
    assert abs(residual.item()) < 1e-9  # terms of order 10


@pytest.mark.parametrize("option", ["call", "put"])
def test_extremum_at_the_spot_has_no_influence_to_first_order(option):
    """At S = m a slightly different extremum changes nothing: the boundary condition of Goldman, Sosin and Gatto."""
    level = number(100.0).requires_grad_()
    law = (number(x) for x in (0.04, 0.01, 0.3))
    value = lookback_price(number(100.0), None, number(0.5), level, option, *law)
    (slope,) = torch.autograd.grad(value, level)
    assert abs(slope.item()) < 1e-13


def test_bonus_is_smooth_across_the_switch_to_the_series():
    rate = torch.linspace(-0.3, 0.3, 1201, dtype=torch.float64).requires_grad_()
    for of_maximum, level in ((False, 95.0), (True, 105.0), (False, 70.0)):
        bonus = strike_bonus(number(100.0), number(1.0), number(level), rate, number(0.0), number(0.3), of_maximum)
        (slope,) = torch.autograd.grad(bonus.sum(), rate)
        assert slope.diff().diff().diff().abs().max() < 1e-5  # third differences of a smooth function, step 5e-4


@pytest.mark.parametrize(("form", "option"), CONTRACTS)
def test_gradients_are_finite_for_tiny_and_huge_inputs(form, option):
    cases = itertools.product(
        (1e-4, 0.01, 0.2, 3.0), (1 / 365 / 24, 0.1, 30.0), (-0.02, 0.0, 0.05), (0.0, 0.05), (1.0, 1.000001, 1.1, 3.0)
    )
    vol, expiry, rate, income, beyond = torch.tensor(list(cases), dtype=torch.float64).unbind(-1)
    extremum = 100.0 * beyond if (form == "fixed") == (option == "call") else 100.0 / beyond
    for strike in (None,) if form == "floating" else (60.0, 100.0, 180.0):
        inputs = [torch.full_like(vol, 100.0), expiry, extremum, rate, income, vol]
        spot, time, level, r, q, v = inputs = [x.clone().requires_grad_() for x in inputs]
        strike = None if strike is None else number(strike)
        value = lookback_price(spot, strike, time, level, option, r, q, v)
        assert value.isfinite().all()
        assert (value > -1e-9).all()
        for gradient in torch.autograd.grad(value.sum(), inputs):
            assert gradient.isfinite().all()


def test_float32_survives_an_extremum_out_of_reach():
    """Powers of a distance of 1,000 deviations would overflow single precision."""
    vol = torch.tensor([0.003, 0.3]).requires_grad_()
    spot, expiry, extremum, rate = map(torch.tensor, (100.0, 0.01, 70.0, 0.05))
    value = lookback_price(spot, None, expiry, extremum, "call", rate, rate, vol)
    (slope,) = torch.autograd.grad(value.sum(), vol)
    assert value.dtype == torch.float32
    assert value.tolist() == pytest.approx(2 * [30.0 * np.exp(-0.0005)], rel=1e-5)
    assert slope.isfinite().all()


def test_tiny_vol_follows_the_forward():
    grown = 100.0 * (np.exp(0.10) - 1.0) * np.exp(-0.10)
    assert price(None, "call", expiry=1.0, rate=0.10, income=0.0, vol=1e-6).item() == pytest.approx(grown, rel=1e-9)
    assert price(100.0, "call", expiry=1.0, rate=0.10, income=0.0, vol=1e-6).item() == pytest.approx(grown, rel=1e-9)
    assert price(None, "put", expiry=1.0, rate=0.10, income=0.0, vol=1e-6).item() == pytest.approx(0.0, abs=1e-8)


def test_lookback_formula_refuses_curves_dividends_and_a_wrong_extremum():
    model, curve = BlackScholes(0.2), ZeroCurve([0.5, 1.0], [0.01, 0.02])
    for market in (Market(100.0, curve), Market(100.0, 0.01, curve)):
        with pytest.raises(ValueError, match=r"not for a curve; use FiniteDifference or MonteCarlo"):
            lookback_formula(Lookback(None, 1.0), model, market)
    with pytest.raises(ValueError, match="without cash dividends; use"):
        lookback_formula(Lookback(None, 1.0), model, Market(100.0, dividends=CashDividends([0.5], [1.0])))
    with pytest.raises(ValueError, match=r"`running_extremum` is the minimum .* got 101 at a spot of 100"):
        lookback_formula(Lookback(None, 1.0, "call", [99.0, 101.0]), model, Market(100.0))
    with pytest.raises(ValueError, match=r"`running_extremum` is the maximum .* got 99 at a spot of 100"):
        lookback_formula(Lookback(90.0, 1.0, "call", 99.0), model, Market(100.0))
