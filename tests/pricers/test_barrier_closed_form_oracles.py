"""Closed forms of barrier options against published values, QuantLib, mpmath and the identities between them."""

import itertools

import mpmath
import numpy as np
import pytest
import QuantLib as ql  # noqa: N813  # its own tests call it so
import torch
from derivatives import assert_derivatives

from pricers.analytic.barrier import barrier_formula, barrier_price, hit_price, no_hit_price
from pricers.analytic.engine import Analytic
from pricers.analytic.reflection import weighted_ndtr
from pricers.instruments.barrier import Barrier
from pricers.instruments.european import European
from pricers.market import Market, ZeroCurve
from pricers.models.black_scholes import BlackScholes

# forward mode of torch imports TorchScript, which warns of itself
forward_mode = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
KINDS = ("down-out", "up-out", "down-in", "up-in")
ALL = list(itertools.product(KINDS, ("call", "put")))
# Haug (2007), The complete guide to option pricing formulas, table 4-13: S 100, T .5, r .08, q .04, vol .25, rebate 3;
# calls with K = 90, 100, 110
HAUG = {
    ("down-out", 95.0): (9.0246, 6.7924, 4.8759),
    ("up-out", 105.0): (2.6789, 2.3580, 2.3453),
    ("down-in", 95.0): (7.7627, 4.0109, 2.0576),
    ("up-in", 105.0): (14.1112, 8.4482, 4.5910),
}


def number(x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


def price(
    kind, option, spot=100.0, strike=100.0, expiry=0.5, barrier=90.0, rebate=0.0, rate=0.05, income=0.02, vol=0.25
):
    arguments = (number(x) for x in (rebate, rate, income, vol))
    return barrier_price(number(spot), number(strike), number(expiry), number(barrier), kind, option, *arguments)


@pytest.mark.parametrize(("kind", "barrier"), HAUG)
def test_barrier_haug_table(kind, barrier):
    contract = Barrier([90.0, 100.0, 110.0], 0.5, barrier, kind, "call", rebate=3.0)
    estimate = barrier_formula(contract, BlackScholes(0.25), Market(100.0, 0.08, 0.04))
    assert estimate.value == pytest.approx(np.array(HAUG[kind, barrier]), abs=5.1e-5)  # the printed digits
    assert estimate.engine == "analytic"
    assert not estimate.std_error.any()


def quantlib_barrier(kind, option, spot, strike, days, barrier, rebate, rate, income, vol):
    today = ql.Date(15, 1, 2024)
    ql.Settings.instance().evaluationDate = today
    day_count = ql.Actual365Fixed()

    def curve(level):
        return ql.YieldTermStructureHandle(ql.FlatForward(today, level, day_count))

    flat_vol = ql.BlackVolTermStructureHandle(ql.BlackConstantVol(today, ql.NullCalendar(), vol, day_count))
    spot_quote = ql.QuoteHandle(ql.SimpleQuote(spot))
    process = ql.BlackScholesMertonProcess(spot_quote, curve(income), curve(rate), flat_vol)
    names = dict(zip(KINDS, (ql.Barrier.DownOut, ql.Barrier.UpOut, ql.Barrier.DownIn, ql.Barrier.UpIn), strict=True))
    payoff = ql.PlainVanillaPayoff(ql.Option.Call if option == "call" else ql.Option.Put, strike)
    contract = ql.BarrierOption(names[kind], barrier, rebate, payoff, ql.EuropeanExercise(today + days))
    contract.setPricingEngine(ql.AnalyticBarrierEngine(process))
    return contract.NPV()


@pytest.mark.parametrize(("kind", "option"), ALL)
def test_barrier_quantlib_grid(kind, option):
    random = np.random.default_rng(7)
    for _ in range(150):
        spot, days = 100.0, int(random.integers(5, 4000))
        strike, vol = float(random.uniform(60.0, 150.0)), float(random.uniform(0.08, 0.6))
        rate, income = float(random.uniform(0.0, 0.12)), float(random.uniform(-0.02, 0.12))
        rebate = float(random.choice([0.0, 3.0, 20.0]))
        barrier = float(random.uniform(55.0, 99.9) if kind.startswith("down") else random.uniform(100.1, 180.0))
        expected = quantlib_barrier(kind, option, spot, strike, days, barrier, rebate, rate, income, vol)
        ours = price(kind, option, spot, strike, days / 365, barrier, rebate, rate, income, vol).item()
        assert ours == pytest.approx(expected, rel=1e-10, abs=1e-10)  # both in double precision, prices up to 100


def mpmath_hit(spot, barrier, expiry, rate, income, vol):
    """First-passage integral, 30 digits: no closed form, no sign of a square."""
    with mpmath.workdps(30):
        gap, drift = mpmath.log(mpmath.mpf(barrier) / spot), mpmath.mpf(rate) - income - mpmath.mpf(vol) ** 2 / 2

        def density(t):
            return (
                abs(gap)
                / (vol * mpmath.sqrt(2 * mpmath.pi * t**3))
                * mpmath.exp(-((gap - drift * t) ** 2) / (2 * vol**2 * t) - rate * t)
            )

        pieces = [0, *(expiry * mpmath.mpf(x) for x in ("0.001", "0.01", "0.05", "0.1", "0.3", "0.6", "1"))]
        return float(mpmath.quad(density, pieces))


@pytest.mark.parametrize(
    ("rate", "income", "vol", "expiry"),
    [
        (0.05, 0.02, 0.25, 1.0),
        (0.0, -0.02, 0.2, 2.0),  # nu = 0 and rate 0: the square is exactly 0
        (-0.01, -0.01, 0.2, 5.0),  # a negative square
        (-0.05, -0.04, 0.3, 10.0),
        (-0.1, -0.09, 0.4, 50.0),  # rate * expiry = -5
        (0.03, 0.0, 0.9, 0.02),
        (0.2, 0.0, 0.05, 0.5),
    ],
)
@pytest.mark.parametrize("barrier", [50.0, 80.0, 99.0, 100.5, 120.0, 250.0])
def test_hit_price_mpmath_negative_rates_included(rate, income, vol, expiry, barrier):
    law = [number(x) for x in (rate, income, vol)]
    ours = hit_price(number(100.0), number(expiry), number(barrier), *law, down=barrier < 100.0).item()
    expected = mpmath_hit(100.0, barrier, expiry, rate, income, vol)
    # the series loses a factor exp(4 |rate| expiry) at most
    assert ours == pytest.approx(expected, rel=1e-9, abs=1e-14 * np.exp(4 * max(0.0, -rate * expiry)))


@pytest.mark.parametrize("option", ["call", "put"])
@pytest.mark.parametrize("side", ["down", "up"])
def test_in_plus_out_is_european_plus_rebates(side, option):
    spot, strike = number(100.0), torch.tensor([70.0, 95.0, 100.0, 130.0], dtype=torch.float64)[:, None]
    barrier = torch.tensor([60.0, 95.0, 99.99] if side == "down" else [100.01, 130.0, 190.0], dtype=torch.float64)
    rate, income, vol, expiry, rebate = (number(x) for x in (0.04, 0.01, 0.3, 1.5, 7.0))
    pair = [
        barrier_price(spot, strike, expiry, barrier, f"{side}-{end}", option, rebate, rate, income, vol)
        for end in ("in", "out")
    ]
    european = Analytic().price(European(strike, expiry, option), BlackScholes(vol), Market(spot, rate, income)).value
    rebates = rebate * (
        hit_price(spot, expiry, barrier, rate, income, vol, side == "down")
        + no_hit_price(spot, expiry, barrier, rate, income, vol, side == "down")
    )
    torch.testing.assert_close(pair[0] + pair[1], european + rebates, rtol=1e-13, atol=1e-12)


def test_rebates_without_interest_pay_once():
    law = (number(0.0), number(0.03), number(0.2))
    for barrier, down in ((90.0, True), (104.0, False)):
        at = (number(100.0), number(2.0), number(barrier))
        total = hit_price(*at, *law, down) + no_hit_price(*at, *law, down)
        torch.testing.assert_close(total, number(1.0), rtol=0.0, atol=1e-14)


@pytest.mark.parametrize("option", ["call", "put"])
def test_barrier_far_away_is_european_or_nothing(option):
    european = Analytic().price(European(100.0, 0.5, option), BlackScholes(0.25), Market(100.0, 0.05, 0.02)).value
    for side, far in (("down", 1.0), ("up", 1e4)):
        torch.testing.assert_close(price(f"{side}-out", option, barrier=far), european, rtol=1e-14, atol=1e-13)
        assert price(f"{side}-in", option, barrier=far).abs() < 1e-13
        paid = 5.0 * np.exp(-0.05 * 0.5)
        assert price(f"{side}-in", option, barrier=far, rebate=5.0).item() == pytest.approx(paid, abs=1e-12)


@pytest.mark.parametrize("option", ["call", "put"])
def test_spot_at_the_barrier_pays_the_rebate_or_is_european(option):
    european = Analytic().price(European(100.0, 0.5, option), BlackScholes(0.25), Market(100.0, 0.05, 0.02)).value
    for side, near in (("down", 100.0 * (1 - 1e-12)), ("up", 100.0 * (1 + 1e-12))):
        assert price(f"{side}-out", option, barrier=near, rebate=4.0).item() == pytest.approx(4.0, abs=1e-9)
        assert price(f"{side}-in", option, barrier=near, rebate=4.0).item() == pytest.approx(european.item(), abs=1e-9)


def test_payoff_beyond_the_barrier_is_worth_nothing():
    assert price("up-out", "call", strike=130.0, barrier=120.0) == 0.0
    assert price("down-out", "put", strike=80.0, barrier=85.0) == 0.0


@pytest.mark.parametrize("option", ["call", "put"])
def test_knock_out_grows_with_the_distance_of_its_barrier(option):
    down = torch.stack([price("down-out", option, barrier=b) for b in np.linspace(50.0, 99.9, 60)])
    up = torch.stack([price("up-out", option, barrier=b) for b in np.linspace(100.1, 200.0, 60)])
    assert (down.diff() <= 1e-14).all()
    assert (up.diff() >= -1e-14).all()
    assert (down >= 0).all()
    assert (up >= 0).all()


def test_price_solves_the_black_scholes_equation():
    """Every kind, with its rebate: theta + (r - q) S delta + vol^2 S^2 gamma / 2 = r V."""
    rate, income, vol = 0.03, 0.06, 0.35
    for (kind, option), strike in itertools.product(ALL, (80.0, 104.0, 140.0)):
        barrier = number(85.0 if kind.startswith("down") else 125.0)
        spot, expiry = number(103.0).requires_grad_(), number(0.7).requires_grad_()
        law = [number(x) for x in (2.0, rate, income, vol)]
        value = barrier_price(spot, number(strike), expiry, barrier, kind, option, *law)
        delta, speed = torch.autograd.grad(value, (spot, expiry), create_graph=True)
        (gamma,) = torch.autograd.grad(delta, spot)
        residual = -speed + (rate - income) * spot * delta + 0.5 * vol**2 * spot**2 * gamma - rate * value
        assert abs(residual.item()) < 1e-9  # terms of order 10


@forward_mode
@pytest.mark.parametrize(("kind", "option"), ALL)
def test_barrier_derivatives_of_both_orders(kind, option):
    def value(spot, strike, expiry, barrier, rebate, rate, income, vol):
        return barrier_price(spot, strike, expiry, barrier, kind, option, rebate, rate, income, vol)

    for strike in (75.0, 95.0, 130.0):
        assert_derivatives(
            value, [100.0, strike, 0.8, 90.0 if kind.startswith("down") else 115.0, 3.0, 0.03, 0.01, 0.3]
        )


@forward_mode
@pytest.mark.parametrize("rate", [-0.02, -0.005, 0.0, 0.11, 0.12, 0.13, 0.2])
def test_hit_price_derivatives_on_both_sides_of_the_switch_to_the_series(rate):
    """At b^2 = 0.5 (rate .12) the closed form meets the series; at 0 its square root would have no derivative."""

    def value(spot, expiry, barrier, rate, income, vol):
        return hit_price(spot, expiry, barrier, rate, income, vol, down=True)

    assert_derivatives(value, [100.0, 2.0, 88.0, rate, rate, 0.2])


def test_hit_price_has_no_step_at_the_switch_to_the_series():
    rates = torch.linspace(0.10, 0.15, 201, dtype=torch.float64).requires_grad_()
    values = hit_price(number(100.0), number(2.0), number(88.0), rates, rates, number(0.2), down=True)
    (slope,) = torch.autograd.grad(values.sum(), rates)
    square = (-0.5 * 0.04 * 2.0) ** 2 / 0.08 + 2.0 * rates * 2.0
    assert (square < 0.5).any()
    assert (square > 0.5).any()
    assert slope.diff().diff().diff().abs().max() < 1e-7


@pytest.mark.parametrize(("kind", "option"), ALL)
def test_gradients_are_finite_for_tiny_and_huge_inputs(kind, option):
    down = kind.startswith("down")
    cases = itertools.product(
        (1e-4, 0.01, 0.2, 3.0), (1 / 365 / 24, 0.1, 30.0), (-0.02, 0.0, 0.05), (0.0, 0.05), (0.3, 0.97, 0.999999)
    )
    vol, expiry, rate, income, ratio = torch.tensor(list(cases), dtype=torch.float64).unbind(-1)
    barrier = 100.0 * ratio if down else 100.0 / ratio
    for strike in (60.0, 100.0, 180.0):
        inputs = [torch.full_like(vol, 100.0), torch.full_like(vol, strike), expiry, barrier, rate, income, vol]
        inputs = [x.clone().requires_grad_() for x in inputs]
        spot, level, time, wall, r, q, v = inputs
        value = barrier_price(spot, level, time, wall, kind, option, number(2.0), r, q, v)
        assert value.isfinite().all()
        assert (value > -1e-9).all()
        for gradient in torch.autograd.grad(value.sum(), inputs):
            assert gradient.isfinite().all()


def test_tiny_vol_follows_the_forward():
    """Without noise the path is the forward: it hits or it does not."""
    law = {"rate": 0.10, "income": 0.0, "vol": 1e-5, "expiry": 1.0}
    forward_pays = 100.0 - 100.0 * np.exp(-0.10)
    assert price("down-out", "call", barrier=99.0, **law).item() == pytest.approx(forward_pays, rel=1e-9)
    hit_time = np.log(1.05) / 0.10
    rebate = price("up-out", "call", barrier=105.0, rebate=3.0, **law).item()
    assert rebate == pytest.approx(3.0 * np.exp(-0.10 * hit_time), rel=1e-6)
    assert price("up-in", "call", barrier=105.0, **law).item() == pytest.approx(forward_pays, rel=1e-9)


@pytest.mark.parametrize("x", [-1e3, -50.0, -8.0, -1e-9, 0.0, 1e-9, 3.0])
def test_weighted_ndtr_mpmath(x):
    weight = x**2 / 2 - 1.0 if x < 0 else -2.0
    ours = weighted_ndtr(number(x), number(weight), number(weight - x**2 / 2)).item()
    with mpmath.workdps(40):
        expected = float(mpmath.exp(weight) * mpmath.ncdf(x))
    assert ours == pytest.approx(expected, rel=1e-13)


def test_barrier_formula_batches_broadcast():
    contract = Barrier([[90.0], [110.0]], [0.5, 1.0, 2.0], 80.0, "down-out", "put", rebate=1.0)
    values = barrier_formula(contract, BlackScholes(0.2), Market(100.0, 0.01)).value
    assert values.shape == (2, 3)
    for row, column in itertools.product(range(2), range(3)):
        single = Barrier([90.0, 110.0][row], [0.5, 1.0, 2.0][column], 80.0, "down-out", "put", rebate=1.0)
        alone = barrier_formula(single, BlackScholes(0.2), Market(100.0, 0.01)).value
        torch.testing.assert_close(values[row, column], alone, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize(
    ("kind", "barrier"), [("down-out", 100.0), ("down-in", 101.0), ("up-out", 99.0), ("up-in", 100.0)]
)
def test_crossed_barrier_is_refused(kind, barrier):
    with pytest.raises(
        ValueError, match=rf"`barrier` of kind '{kind}' .* got {barrier:g} at a spot of 100.*crossed already"
    ):
        barrier_formula(Barrier(100.0, 1.0, barrier, kind), BlackScholes(0.2), Market(100.0))


def test_closed_form_refuses_what_it_does_not_know():
    model, contract = BlackScholes(0.2), Barrier(100.0, 1.0, 90.0, "down-out")
    curve = ZeroCurve([0.5, 1.0], [0.01, 0.02])
    for market in (Market(100.0, curve), Market(100.0, 0.01, curve)):
        with pytest.raises(ValueError, match=r"not for a curve; use FiniteDifference or MonteCarlo"):
            barrier_formula(contract, model, market)
    with pytest.raises(ValueError, match="not on dates; use FiniteDifference"):
        barrier_formula(Barrier(100.0, 1.0, 90.0, "down-out", monitoring=[0.5, 1.0]), model, Market(100.0))
    with pytest.raises(ValueError, match=r"-6 or more, got -7"):
        barrier_formula(Barrier(100.0, 70.0, 90.0, "down-out"), model, Market(100.0, -0.1))
