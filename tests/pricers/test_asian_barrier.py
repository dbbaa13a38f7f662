"""Asian options with a barrier on the fixing dates: limits, brute force by numpy, a closed form on one date."""

import math

import numpy as np
import pytest
import torch

import pricers as pr

MARKET = pr.Market(spot=100.0, rate=0.03, dividend_yield=0.01)
HESTON = pr.Heston(v0=0.04, kappa=2.0, theta=0.05, sigma=0.5, rho=-0.6)
TIMES = [0.25, 0.5, 0.75, 1.0]
KINDS = ["down-out", "up-out", "down-in", "up-in"]
ENGINE = pr.MonteCarlo(2**10, n_steps=8, seed=5, controls=False, conditional=False)  # the same paths for all


@pytest.mark.parametrize(
    ("model", "option", "average"),
    [(pr.BlackScholes(vol=0.25), "call", "geometric"), (HESTON, "call", "arithmetic"), (HESTON, "put", "geometric")],
)
def test_out_and_in_make_the_asian_and_a_far_barrier_leaves_it(model: pr.Model, option: str, average: str):
    asian = pr.price(pr.Asian(100.0, TIMES, option, average), model, MARKET, ENGINE).value
    for side, barrier in (("down", 90.0), ("up", 112.0)):
        parts = [
            pr.price(pr.AsianBarrier(100.0, TIMES, barrier, f"{side}-{end}", option, average), model, MARKET, ENGINE)
            for end in ("out", "in")
        ]
        assert all(part.value > 0.01 for part in parts)
        torch.testing.assert_close(parts[0].value + parts[1].value, asian, rtol=1e-12, atol=1e-12)
    for kind, barrier in (("down-out", 1e-6), ("up-out", 1e6), ("up-in", 1e-6), ("down-in", 1e6)):
        contract = pr.AsianBarrier(100.0, TIMES, barrier, kind, option, average)
        assert pr.price(contract, model, MARKET, ENGINE).value.item() == asian.item()
    for kind, barrier in (("down-in", 1e-6), ("up-in", 1e6), ("up-out", 1e-6), ("down-out", 1e6)):
        contract = pr.AsianBarrier(100.0, TIMES, barrier, kind, option, average)
        assert pr.price(contract, model, MARKET, ENGINE).value.item() == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_black_scholes_against_plain_numpy(kind: str):
    vol, n_paths = 0.25, 200_000
    barrier = 88.0 if kind.startswith("down") else 115.0
    steps = np.random.default_rng(7).standard_normal((n_paths, 4)) * vol * 0.5 + (0.02 - 0.5 * vol**2) * 0.25
    fixings = 100.0 * np.exp(steps.cumsum(axis=1))
    beyond = (fixings.min(axis=1) <= barrier) if kind.startswith("down") else (fixings.max(axis=1) >= barrier)
    gain = math.exp(-0.03) * np.maximum(101.0 - fixings.mean(axis=1), 0.0)
    paid = np.where(beyond == kind.endswith("in"), gain, 0.0)
    contract = pr.AsianBarrier(101.0, TIMES, barrier, kind, "put")
    found = pr.price(contract, pr.BlackScholes(vol), MARKET, pr.MonteCarlo(2**17, seed=3))
    error = math.hypot(found.std_error.item(), paid.std() / n_paths**0.5)
    assert error < 0.035
    assert abs(found.value.item() - paid.mean()) < 4 * error


@pytest.mark.parametrize("model", [pr.BlackScholes(vol=0.25), HESTON])
def test_one_date_is_a_spread_of_calls_and_digitals(model: pr.Model):
    """On one date an up-and-out call pays $(S - K)^+ - (S - B)^+ - (B - K) 1\\{S > B\\}$."""
    strike, barrier = 95.0, 118.0
    low, high = (pr.price(pr.European(level, 1.0, "call"), model, MARKET).value for level in (strike, barrier))
    above = pr.price(pr.Digital(barrier, 1.0, "call", pays="cash"), model, MARKET).value
    exact = low - high - (barrier - strike) * above
    engine = pr.MonteCarlo(2**16, n_steps=32, seed=11)
    found = pr.price(pr.AsianBarrier(strike, [1.0], barrier, "up-out", "call"), model, MARKET, engine)
    assert found.std_error < 0.03
    assert abs(found.value - exact) < 4 * found.std_error


def test_a_fixing_on_the_barrier_is_beyond_it():
    still = pr.BlackScholes(vol=1e-12)
    market = pr.Market(spot=100.0)
    for kind, alive in (("up-out", False), ("down-out", False), ("up-in", True), ("down-in", True)):
        # exp(log 1) is 1 in any arithmetic only without noise: a barrier a hair inside and outside
        inside = 1.0 - 1e-9 if kind.startswith("up") else 1.0 + 1e-9
        contract = pr.AsianBarrier(90.0, [0.5, 1.0], 100.0 * inside, kind, "call")
        value = pr.price(contract, still, market, pr.MonteCarlo(16, seed=1, controls=False)).value.item()
        assert value == pytest.approx(10.0 if alive else 0.0)


def test_simulation_gradients_are_not_pathwise_where_the_payoff_jumps():
    contract = pr.AsianBarrier(100.0, TIMES, 115.0, "up-out", "call")
    with pytest.raises(ValueError, match="would miss the kinks or jumps"):
        pr.greeks(contract, HESTON, MARKET, ("spot",), ENGINE, method="pathwise")
    found = pr.greeks(contract, HESTON, MARKET, ("spot",), pr.MonteCarlo(2**12, n_steps=8, seed=5))["spot"]
    bumped = [
        pr.price(contract, HESTON, pr.Market(100.0 + step, 0.03, 0.01), pr.MonteCarlo(2**16, n_steps=8, seed=6)).value
        for step in (2.0, -2.0)
    ]
    assert abs(found.value - (bumped[0] - bumped[1]) / 4.0) < 4 * found.std_error + 0.02
