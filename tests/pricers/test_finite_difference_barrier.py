"""Barrier options by finite differences against published values, images and a convolution."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from pricers.finite_difference import FiniteDifference
from pricers.instruments.barrier import Barrier
from pricers.instruments.european import European
from pricers.market import Market
from pricers.models.black_scholes import BlackScholes

ENGINE = FiniteDifference()
SMALL = FiniteDifference(n_space=120, n_time=40)

# Haug (2007), section 4.17: rebate 3, at hit for outs and at expiry for ins; spot 100, half a year, rate .08,
# yield .04, volatility .25; calls with strikes 90, 100, 110.
HAUG = {
    ("down-out", 95.0): (9.0246, 6.7924, 4.8759),
    ("up-out", 105.0): (2.6789, 2.3580, 2.3453),
    ("down-in", 95.0): (7.7627, 4.0109, 2.0576),
    ("up-in", 105.0): (14.1112, 8.4482, 4.5910),
}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "level"), HAUG)
def test_barrier_with_rebate_published(kind, level):
    contract = Barrier([90.0, 100.0, 110.0], 0.5, level, kind, "call", rebate=3.0)
    estimate = ENGINE.price(contract, BlackScholes(0.25), Market(100.0, 0.08, 0.04))
    assert estimate.value.tolist() == pytest.approx(
        HAUG[kind, level], abs=6e-5 + 1e-5
    )  # digits printed, and 1e-7 of spot


def density(origin, target, drift, sd):
    z = (target[None, :] - origin[:, None] - drift) / sd
    return np.exp(-0.5 * z**2) / (sd * math.sqrt(2.0 * math.pi))


def convolution(contract, spot, rate, income, vol):
    """Value by Gauss-Legendre quadrature from each date to the one before; zero beyond the barrier on the dates."""
    strike, level, expiry = contract.strike.item(), contract.barrier.item(), contract.expiry.item()
    dates = [0.0, *contract.monitoring.tolist()]
    rebate, sign = contract.rebate.item(), 1.0 if contract.option == "call" else -1.0
    node, weight = np.polynomial.legendre.leggauss(300)

    def panels(*ends):
        x = np.concatenate([0.5 * (b - a) * node + 0.5 * (a + b) for a, b in pairwise(ends)])
        return x, np.concatenate([0.5 * (b - a) * weight for a, b in pairwise(ends)])

    wall, reach = math.log(level), 9.0 * vol * math.sqrt(expiry)
    low, high = math.log(spot) - reach, math.log(spot) + reach
    ends = [wall, high] if contract.down else [low, wall]
    middle = [math.log(strike)] if ends[0] < math.log(strike) < ends[1] else []
    x, w = panels(ends[0], *middle, ends[1])
    dead, dead_w = panels(low, wall) if contract.down else panels(wall, high)
    assert dates[-1] == expiry
    values = np.maximum(sign * (np.exp(x) - strike), 0.0)
    for start, end in zip(dates[-2::-1], dates[:0:-1]):
        length = end - start
        discount, drift, sd = math.exp(-rate * length), (rate - income - 0.5 * vol**2) * length, vol * math.sqrt(length)

        origin = x if start > 0.0 else np.array([math.log(spot)])
        paid = density(origin, dead, drift, sd) @ (dead_w * rebate)
        values = discount * (density(origin, x, drift, sd) @ (w * values) + paid)
    return values[0]


@pytest.mark.parametrize(
    ("kind", "option", "level"),
    [
        ("down-out", "call", 95.0),
        pytest.param("up-out", "call", 120.0, marks=pytest.mark.slow),
        pytest.param("down-out", "put", 85.0, marks=pytest.mark.slow),
    ],
)
def test_discrete_barrier_convolution(kind, option, level):
    contract = Barrier(100.0, 0.5, level, kind, option, 2.0, [0.1, 0.2, 0.3, 0.4, 0.5])
    estimate = ENGINE.price(contract, BlackScholes(0.25), Market(101.0, 0.08, 0.04))
    exact = convolution(contract, 101.0, 0.08, 0.04, 0.25)
    assert abs(estimate.value.item() - exact) <= estimate.error_bound.item()
    assert estimate.value.item() == pytest.approx(exact, abs=1e-3)


@pytest.mark.slow
def test_discrete_barrier_spot_beyond_the_level_today():
    contract = Barrier(100.0, 0.5, 105.0, "down-out", "call", 2.0, [0.25, 0.5])
    estimate = ENGINE.price(contract, BlackScholes(0.25), Market(103.0, 0.08, 0.04))
    exact = convolution(contract, 103.0, 0.08, 0.04, 0.25)
    assert abs(estimate.value.item() - exact) <= estimate.error_bound.item()


@pytest.mark.parametrize("monitoring", ["continuous", [0.25, 0.5, 0.75, 1.0]])
def test_in_and_out_with_rebates_make_the_european(monitoring):
    """Without rebate in + out is the European; the rebate of an in is paid at expiry if it never came alive."""
    market, model = Market(100.0, 0.05, 0.02), BlackScholes(0.3)
    out, inside = (
        SMALL.price(Barrier(100.0, 1.0, 80.0, kind, "put", 0.0, monitoring), model, market).value.item()
        for kind in ("down-out", "down-in")
    )
    european = SMALL.price(European(100.0, 1.0, "put"), model, market).value.item()
    assert out + inside == pytest.approx(european, abs=1e-9)


def test_far_barrier_is_no_barrier():
    market, model = Market(100.0, 0.05), BlackScholes(0.2)
    european = SMALL.price(European(100.0, 1.0), model, market).value.item()
    for kind, level in (("down-out", 1.0), ("up-out", 1e4)):
        value = SMALL.price(Barrier(100.0, 1.0, level, kind), model, market).value.item()
        assert value == pytest.approx(european, abs=1e-4)


def test_up_out_call_close_to_the_barrier():
    spots = torch.tensor([119.0, 119.9, 119.99], dtype=torch.float64)
    market, model = Market(spots, 0.05), BlackScholes(0.2)
    contract = Barrier(100.0, 1.0, 120.0, "up-out")
    estimate = ENGINE.price(contract, model, market)
    exact = images_up_out_call(spots.numpy(), 100.0, 120.0, 0.05, 0.2, 1.0)
    assert np.abs(estimate.value.numpy() - exact).max() < 1e-5
    assert (np.abs(estimate.value.numpy() - exact) <= estimate.error_bound.numpy() + 1e-9).all()


def images_up_out_call(spot, strike, level, rate, vol, expiry):
    """Quadrature of the payoff against the density of the log price that has not touched the level (two images)."""
    node, weight = np.polynomial.legendre.leggauss(200)
    low, high = math.log(strike), math.log(level)
    x, w = 0.5 * (high - low) * node + 0.5 * (low + high), 0.5 * (high - low) * weight
    drift, sd = rate - 0.5 * vol**2, vol * math.sqrt(expiry)
    start = np.log(spot)[:, None]
    density = np.exp(-0.5 * ((x - start - drift * expiry) / sd) ** 2)
    image = np.exp(2.0 * drift * (high - start) / vol**2 - 0.5 * ((x - 2.0 * high + start - drift * expiry) / sd) ** 2)
    paid = (density - image) / (sd * math.sqrt(2.0 * math.pi)) * (np.exp(x) - strike)
    return math.exp(-rate * expiry) * paid @ w


def test_crossed_barrier_is_refused():
    with pytest.raises(ValueError, match="crossed already"):
        ENGINE.price(Barrier(100.0, 1.0, 120.0, "up-out"), BlackScholes(0.2), Market(120.0))
