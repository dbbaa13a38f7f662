"""Closed-form Greeks against published digits, and against automatic differentiation in both modes."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import grad

from pricers.black import (
    bachelier_call_put,
    bachelier_greeks,
    bachelier_price,
    black_call_put,
    black_digital,
    black_greeks,
    black_price,
    black_scholes_greeks,
)

# torch's own forward-mode module calls the deprecated torch.jit.script when it is first loaded
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

# Haug (2007), The Complete Guide to Option Pricing Formulas, chapter 2; printed to four digits
DELTA, GAMMA, VEGA, RHO = 0.5946, 0.0278, 18.9358, 38.7325
HALF_DIGIT = 5e-5


def leaf(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected.expand(actual.shape), rtol=1e-10, atol=1e-12)


def test_published_greeks() -> None:
    futures = black_scholes_greeks(105.0, 100.0, 0.5, 0.36, rate=0.1, dividend_yield=0.1)
    stock = black_scholes_greeks(55.0, 60.0, 0.75, 0.30, rate=0.1)
    other = black_scholes_greeks(72.0, 75.0, 1.0, 0.19, rate=0.09)
    assert futures.delta.item() == pytest.approx(DELTA, abs=HALF_DIGIT)
    assert stock.gamma.item() == pytest.approx(GAMMA, abs=HALF_DIGIT)
    assert stock.vega.item() == pytest.approx(VEGA, abs=HALF_DIGIT)
    assert other.rho.item() == pytest.approx(RHO, abs=HALF_DIGIT)


@pytest.mark.parametrize("option", ["call", "put"])
@pytest.mark.parametrize(
    ("price", "greeks", "scale"), [(black_price, black_greeks, 1), (bachelier_price, bachelier_greeks, 30)]
)
def test_forward_greeks_are_the_derivatives_of_the_price(price, greeks, scale, option: str) -> None:
    forward, strike = leaf([100.0] * 5), leaf([60.0, 95.0, 100.0, 105.0, 180.0])
    expiry, vol = leaf([0.02, 0.5, 1.0, 2.0, 10.0]), leaf([0.9 * scale, 0.2 * scale, 0.3 * scale, 0.05 * scale, scale])
    rate = leaf([0.05, 0.0, -0.01, 0.03, 0.1])
    value = price(forward, strike, expiry, vol, torch.exp(-rate * expiry), option)
    by_forward, by_vol, by_expiry, by_rate, by_strike = grad(
        value.sum(), (forward, vol, expiry, rate, strike), create_graph=True
    )
    closed = greeks(forward, strike, expiry, vol, torch.exp(-rate * expiry), option)
    close(closed.delta, by_forward)
    close(closed.vega, by_vol)
    close(closed.theta, -by_expiry)
    close(closed.rho, by_rate)
    close(closed.dual_delta, by_strike)
    close(closed.gamma, grad(by_forward.sum(), forward, retain_graph=True)[0])
    close(closed.vanna, grad(by_forward.sum(), vol, retain_graph=True)[0])
    close(closed.volga, grad(by_vol.sum(), vol)[0])


@pytest.mark.parametrize("option", ["call", "put"])
def test_spot_greeks_are_the_derivatives_of_the_price(option: str) -> None:
    spot, strike = leaf([100.0] * 4), leaf([70.0, 100.0, 103.0, 150.0])
    expiry, vol = leaf([0.1, 0.5, 1.0, 5.0]), leaf([0.5, 0.2, 0.1, 0.3])
    rate, dividend_yield = leaf([0.05, 0.0, -0.01, 0.03]), leaf([0.0, 0.02, 0.01, 0.06])
    value = black_price(
        spot * torch.exp((rate - dividend_yield) * expiry), strike, expiry, vol, torch.exp(-rate * expiry), option
    )
    wrt = (spot, vol, expiry, rate, dividend_yield, strike)
    by_spot, by_vol, by_expiry, by_rate, by_yield, by_strike = grad(value.sum(), wrt, create_graph=True)
    closed = black_scholes_greeks(spot, strike, expiry, vol, rate, dividend_yield, option)
    close(closed.delta, by_spot)
    close(closed.vega, by_vol)
    close(closed.theta, -by_expiry)
    close(closed.rho, by_rate)
    close(closed.dividend_rho, by_yield)
    close(closed.dual_delta, by_strike)
    close(closed.gamma, grad(by_spot.sum(), spot, retain_graph=True)[0])
    close(closed.vanna, grad(by_spot.sum(), vol, retain_graph=True)[0])
    close(closed.volga, grad(by_vol.sum(), vol)[0])


@pytest.mark.parametrize("pair", [black_call_put, bachelier_call_put])
def test_prices_pass_gradcheck_twice_and_in_forward_mode(pair) -> None:
    arguments = leaf([1.0, 1.0, 1.0]), leaf([0.8, 1.0 + 1e-9, 1.3]), leaf([0.03, 0.2, 0.4])
    assert torch.autograd.gradcheck(pair, arguments, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(pair, arguments, check_fwd_over_rev=True)


def test_nested_forward_mode_gives_the_closed_form_volga() -> None:
    vol = torch.tensor([0.02, 0.2, 0.7], dtype=torch.float64)
    one = torch.ones_like(vol)

    def value(vol: Tensor) -> Tensor:
        return black_price(100.0, 110.0, 0.5, vol)

    def slope(vol: Tensor) -> Tensor:
        return torch.func.jvp(value, (vol,), (one,))[1]

    _, second = torch.func.jvp(slope, (vol,), (one,))
    close(second, black_greeks(100.0, 110.0, 0.5, vol).volga)


def test_digital_derivatives_are_finite_everywhere_and_match_the_density() -> None:
    strike = leaf([50.0, 100.0, 200.0])
    vol = leaf([0.0, 0.0, 0.0])
    slopes = grad(black_digital(100.0, strike, 1.0, vol).sum(), (strike, vol))
    assert all(bool(slope.isfinite().all()) for slope in slopes)
    strike, vol = leaf([80.0, 100.0, 130.0]), 0.25
    slope = grad(black_digital(100.0, strike, 1.0, vol).sum(), strike)[0]
    z = (torch.log(100.0 / strike) - 0.5 * vol**2) / vol
    close(slope, -torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi) / (strike * vol))


def test_greeks_stay_exact_far_out_of_the_money() -> None:
    strike = leaf([300.0, 1000.0, 0.5])
    forward = leaf([100.0, 100.0, 100.0])
    value = torch.where(strike > forward, *(black_price(forward, strike, 0.25, 0.3, option=o) for o in ("call", "put")))
    delta = grad(value.sum(), forward, create_graph=True)[0]
    gamma = grad(delta.sum(), forward)[0]
    calls = black_greeks(forward, strike, 0.25, 0.3)
    puts = black_greeks(forward, strike, 0.25, 0.3, option="put")
    torch.testing.assert_close(delta, torch.where(strike > forward, calls.delta, puts.delta), rtol=1e-11, atol=0)
    torch.testing.assert_close(gamma, calls.gamma, rtol=1e-11, atol=0)
