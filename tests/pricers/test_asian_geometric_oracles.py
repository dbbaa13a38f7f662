"""Geometric Asian options under Black-Scholes: published value, QuantLib, limits, parity, derivatives."""

import itertools
import math

import numpy as np
import pytest
import QuantLib as ql  # noqa: N813 - the name that its own examples use
import torch
from scipy import integrate, stats
from torch import Tensor

from pricers.analytic.asian import FORMULAS, mean_log_forward
from pricers.black.price import black_price
from pricers.instruments.asian import Asian
from pricers.market import Market, ZeroCurve
from pricers.models.black_scholes import BlackScholes

# Clewlow and Strickland (1997), Exotic options, pages 118-119, recomputed: S = K = 100, r .06, q .03, vol .2, T 1
DISCRETE_GEOMETRIC_CALL = 5.3425606635
# torch itself loads its deprecated script compiler with the first forward-mode derivative
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

RATE, YIELD, VOL, SPOT = 0.06, 0.03, 0.2, 100.0
TENTHS = [0.1 * i for i in range(1, 11)]


def value(instrument: Asian, vol: float | Tensor = VOL, market: Market | None = None) -> Tensor:
    market = Market(SPOT, RATE, YIELD) if market is None else market
    return FORMULAS[Asian, BlackScholes](instrument, BlackScholes(vol), market).value


def quantlib_process(vol: float) -> ql.BlackScholesMertonProcess:
    today = ql.Date(1, 1, 2024)
    ql.Settings.instance().evaluationDate = today
    count = ql.Actual360()
    rates = [ql.YieldTermStructureHandle(ql.FlatForward(today, r, count)) for r in (YIELD, RATE)]
    surface = ql.BlackVolTermStructureHandle(ql.BlackConstantVol(today, ql.NullCalendar(), vol, count))
    return ql.BlackScholesMertonProcess(ql.QuoteHandle(ql.SimpleQuote(SPOT)), *rates, surface)


def test_discrete_call_published():
    assert value(Asian(100.0, TENTHS, "call", "geometric")).item() == pytest.approx(DISCRETE_GEOMETRIC_CALL, rel=1e-11)


@pytest.mark.parametrize("option", ["call", "put"])
@pytest.mark.parametrize("vol", [0.05, 0.2, 0.9])
@pytest.mark.parametrize("n_past", [0, 3])
def test_discrete_fixed_strike_quantlib(option: str, vol: float, n_past: int):
    process, today = quantlib_process(vol), ql.Date(1, 1, 2024)
    kind = ql.Option.Call if option == "call" else ql.Option.Put
    for strike, days in itertools.product([70.0, 100.0, 120.0], [[36, 90, 180], [30 * i for i in range(1, 13)]]):
        contract = ql.DiscreteAveragingAsianOption(
            ql.Average.Geometric,
            96.0**n_past,
            n_past,
            [today + day for day in days],
            ql.PlainVanillaPayoff(kind, strike),
            ql.EuropeanExercise(today + days[-1]),
        )
        contract.setPricingEngine(ql.AnalyticDiscreteGeometricAveragePriceAsianEngine(process))
        past = {"running_average": 96.0, "n_past": n_past} if n_past else {}
        ours = value(Asian(strike, [day / 360 for day in days], option, "geometric", **past), vol)
        assert ours.item() == pytest.approx(contract.NPV(), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("option", ["call", "put"])
def test_discrete_floating_strike_by_quadrature(option: str):
    # log G and log S_T are jointly normal: integrate the payoff over both, the inner one up to its kink
    times, weights = np.array([0.1, 0.25, 0.7, 1.1]), np.full(4, 0.25)
    covariance = VOL**2 * np.minimum.outer(times, times)
    drift = (RATE - YIELD - 0.5 * VOL**2) * times
    mean = weights @ drift, drift[-1]
    deviation = math.sqrt(weights @ covariance @ weights), VOL * math.sqrt(times[-1])
    rho = (weights @ covariance[:, -1]) / deviation[0] / deviation[1]
    sign = 1.0 if option == "call" else -1.0

    def given_last(z: float) -> float:
        last = SPOT * math.exp(mean[1] + deviation[1] * z)
        center, left = math.log(SPOT) + mean[0] + deviation[0] * rho * z, deviation[0] * math.sqrt(1 - rho**2)
        d = (math.log(last) - center) / left
        below = last * stats.norm.cdf(sign * d)
        return stats.norm.pdf(z) * sign * (below - math.exp(center + left**2 / 2) * stats.norm.cdf(sign * (d - left)))

    oracle = math.exp(-RATE * times[-1]) * integrate.quad(given_last, -12, 12, epsabs=1e-13, epsrel=1e-13, limit=200)[0]
    ours = value(Asian(None, times, option, "geometric", floating=True))
    assert ours.item() == pytest.approx(oracle, rel=1e-10)


@pytest.mark.parametrize("option", ["call", "put"])
def test_continuous_fixed_strike_quantlib(option: str):
    process, today = quantlib_process(VOL), ql.Date(1, 1, 2024)
    kind = ql.Option.Call if option == "call" else ql.Option.Put
    for strike, days in itertools.product([80.0, 100.0, 115.0], [10, 90, 720]):
        contract = ql.ContinuousAveragingAsianOption(
            ql.Average.Geometric, ql.PlainVanillaPayoff(kind, strike), ql.EuropeanExercise(today + days)
        )
        contract.setPricingEngine(ql.AnalyticContinuousGeometricAveragePriceAsianEngine(process))
        ours = value(Asian(strike, "continuous", option, "geometric", expiry=days / 360))
        assert ours.item() == pytest.approx(contract.NPV(), rel=1e-10, abs=1e-13)


@pytest.mark.parametrize("floating", [False, True])
@pytest.mark.parametrize("option", ["call", "put"])
def test_many_fixings_tend_to_continuous(floating: bool, option: str):
    strike = None if floating else 101.0
    limit = value(Asian(strike, "continuous", option, "geometric", floating, expiry=0.8)).item()
    gaps = []
    for n in (250, 500):  # midpoints, where the sum is of second order
        fixings = [0.8 * (i + 0.5) / n for i in range(n)] + [0.8]
        gaps.append(value(Asian(strike, fixings, option, "geometric", floating)).item() - limit)
    assert abs(gaps[1]) < 1e-2
    assert gaps[0] / gaps[1] == pytest.approx(2.0, abs=0.1)  # the fixing at the end has weight 1/n


def test_seasoned_continuous_is_limit_of_seasoned_fixings():
    limit = value(Asian(99.0, "continuous", "call", "geometric", running_average=103.0, expiry=0.6, elapsed=0.3)).item()
    n = 2000
    fixings = [0.6 * (i + 0.5) / n for i in range(n)]
    discrete = value(Asian(99.0, [*fixings[:-1], 0.6], "call", "geometric", running_average=103.0, n_past=n // 2))
    assert discrete.item() == pytest.approx(limit, abs=3e-4)


def test_one_fixing_is_european():
    for option in ("call", "put"):
        ours = value(Asian(105.0, [0.7], option, "geometric"))
        market = Market(SPOT, RATE, YIELD)
        expiry = torch.tensor(0.7, dtype=torch.float64)
        vanilla = black_price(market.forward(expiry), 105.0, expiry, VOL, market.discount(expiry), option)
        assert ours.item() == pytest.approx(vanilla.item(), rel=1e-13)


@pytest.mark.parametrize("floating", [False, True])
def test_put_call_parity_through_moments(floating: bool):
    strike = None if floating else 97.0
    call, put = (value(Asian(strike, TENTHS, option, "geometric", floating)).item() for option in ("call", "put"))
    times = torch.tensor(TENTHS, dtype=torch.float64)
    variance = VOL**2 * torch.minimum(times[:, None], times[None, :]).mean().item()  # by its definition
    average = SPOT * math.exp((RATE - YIELD - 0.5 * VOL**2) * times.mean().item() + 0.5 * variance)
    forward = SPOT * math.exp(RATE - YIELD) - average if floating else average - 97.0
    assert call - put == pytest.approx(math.exp(-RATE) * forward, rel=1e-12)


def test_curves_by_quadrature():
    curve, income = ZeroCurve([0.0, 0.3, 1.0], [0.02, 0.05, 0.03]), ZeroCurve([0.5, 2.0], [0.01, 0.04])
    market = Market(SPOT, curve, income)
    expiry = torch.tensor(1.4, dtype=torch.float64)
    grid = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000 * expiry
    assert mean_log_forward(market, expiry).item() == pytest.approx(market.forward(grid).log().mean().item(), abs=1e-10)


def test_flat_curve_is_flat_rate():
    market = Market(SPOT, ZeroCurve([0.2, 0.7], [RATE, RATE]), ZeroCurve([0.4], [YIELD]))
    for contract in (
        Asian(100.0, TENTHS, "call", "geometric"),
        Asian(100.0, "continuous", "put", "geometric", expiry=0.9),
        Asian(None, "continuous", "put", "geometric", floating=True, expiry=0.9),
    ):
        assert value(contract, market=market).item() == pytest.approx(value(contract).item(), rel=1e-13)


def test_batches_of_strikes_expiries_vols_and_spots():
    strike = torch.tensor([90.0, 110.0], dtype=torch.float64)[:, None]
    times = torch.tensor([[0.25, 0.5, 1.0], [0.5, 1.0, 2.0], [0.1, 0.2, 0.3]], dtype=torch.float64)
    vol = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    spot = torch.tensor([95.0, 100.0], dtype=torch.float64)[:, None]
    whole = value(Asian(strike, times, "put", "geometric"), vol, Market(spot, RATE, YIELD))
    assert whole.shape == (2, 3)
    for i, j in itertools.product(range(2), range(3)):
        single = Asian(strike[i, 0], times[j], "put", "geometric")
        assert whole[i, j].item() == pytest.approx(
            value(single, vol[j], Market(spot[i, 0], RATE, YIELD)).item(), rel=1e-13
        )


@pytest.mark.parametrize("floating", [False, True])
@pytest.mark.parametrize("continuous", [False, True])
def test_derivatives_against_differences(floating: bool, continuous: bool):
    def price(strike: Tensor, expiry: Tensor, vol: Tensor, spot: Tensor, rate: Tensor) -> Tensor:
        times = "continuous" if continuous else expiry * torch.tensor([0.2, 0.7, 1.0], dtype=torch.float64)
        contract = Asian(
            None if floating else strike,
            times,
            "call",
            "geometric",
            floating,
            expiry=expiry if continuous else None,
        )
        return value(contract, vol, Market(spot, rate, 0.01))

    inputs = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (103.0, 0.9, 0.25, 100.0, 0.04)]
    assert torch.autograd.gradcheck(
        price, inputs, check_forward_ad=True, check_undefined_grad=False, rtol=1e-6, atol=1e-6
    )
    assert torch.autograd.gradgradcheck(price, inputs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("floating", [False, True])
def test_gradients_are_finite_where_the_average_is_certain(floating: bool):
    # the only fixing is today; or, with a floating strike, it is the expiry itself
    fixings = torch.tensor([1.0 if floating else 0.0], dtype=torch.float64, requires_grad=True)
    vol = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    price = value(Asian(None if floating else 90.0, fixings, "call", "geometric", floating), vol)
    gradients = torch.autograd.grad(price, (fixings, vol))
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert price.item() == pytest.approx(0.0 if floating else 10.0, abs=1e-12)


def test_time_decay_keeps_todays_fixing():
    contract = Asian(100.0, [0.0, 0.5, 1.0], "call", "geometric")
    elapsed = torch.tensor(1e-3, dtype=torch.float64)
    later = contract.shifted(elapsed)
    # the fixing of today is the spot: what one past fixing at the spot makes it
    same = Asian(100.0, [0.499, 0.999], "call", "geometric", running_average=SPOT, n_past=1)
    assert value(later).item() == pytest.approx(value(same).item(), rel=1e-12)


def test_time_decay_of_a_new_continuous_average():
    contract = Asian(100.0, "continuous", "call", "geometric", expiry=1.0)
    later = contract.shifted(torch.tensor(0.01, dtype=torch.float64))
    same = Asian(100.0, "continuous", "call", "geometric", running_average=SPOT, expiry=0.99, elapsed=0.01)
    assert value(later).item() == pytest.approx(value(same).item(), rel=1e-14)
