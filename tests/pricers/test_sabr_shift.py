"""Shifted SABR: formula beside simulation, the unshifted model of the shifted forward, forwards below 0."""

import math

import pytest
import torch
from scipy.stats import norm

import pricers as pr
from pricers.analytic.sabr import hagan_normal_vol

F64 = torch.float64


@pytest.mark.parametrize(
    ("forward", "model", "expiry", "accuracy"),
    [
        # what Hagan's expansion is off by, in units of the forward: largest below the forward and over years
        (0.02, pr.SABR(0.03, 0.5, -0.3, 0.4, shift=0.03), 1.0, 6e-4),
        (100.0, pr.SABR(0.8, 0.7, 0.2, 0.3, shift=50.0), 1.0, 3e-4),
        (100.0, pr.SABR(12.0, 0.0, -0.2, 0.3, shift=60.0), 0.5, 3e-4),
    ],
)
@pytest.mark.parametrize("option", ["call", "put"])
def test_formula_agrees_with_simulation(forward, model, expiry, accuracy, option):
    contract = pr.European([forward * share for share in (0.6, 0.8, 1.0, 1.3, 1.6)], expiry, option)
    market = pr.Market(forward)
    exact = pr.price(contract, model, market).value
    engine = pr.MonteCarlo(2**15, n_steps=16, noise="sobol", seed=1)
    found = pr.price(contract, model, market, engine)
    assert ((found.value - exact).abs() <= 4.0 * found.std_error + accuracy * forward).all()
    assert (found.std_error <= 2e-4 * forward).all()


def test_shift_is_the_model_of_the_shifted_forward():
    """F + s under SABR without a shift: the same noise gives the same paths, and payoffs see differences only."""
    shifted = pr.SABR(0.8, 0.6, -0.3, 0.4, shift=30.0)
    plain = pr.SABR(0.8, 0.6, -0.3, 0.4)
    engine = pr.MonteCarlo(2**12, n_steps=8, seed=2, controls=False)
    for option in ("call", "put"):
        here = pr.European([60.0, 80.0], 2.0, option), shifted, pr.Market(70.0)
        there = pr.European([90.0, 110.0], 2.0, option), plain, pr.Market(100.0)
        for chosen in (engine, pr.Analytic()):
            one, two = (chosen.price(*triple).value for triple in (here, there))
            torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


def test_forwards_and_strikes_below_zero_by_moving_them():
    """The way out of the docstring, against Bachelier's formula at Hagan's normal volatility."""
    forward, strikes, shift, expiry, rate = -0.005, (-0.01, -0.005, 0.005), 0.03, 1.0, 0.01
    model = pr.SABR(alpha=0.02, beta=0.4, rho=-0.2, nu=0.3)
    market = pr.Market(forward + shift, rate, dividend_yield=rate)
    calls = pr.European([k + shift for k in strikes], expiry)
    found = pr.price(calls, model, market)
    simulated = pr.price(calls, model, market, pr.MonteCarlo(2**15, n_steps=16, noise="sobol", seed=3))
    parameters = [torch.tensor(x, dtype=F64) for x in (expiry, 0.02, 0.4, -0.2, 0.3)]
    for index, strike in enumerate(strikes):
        ends = (torch.tensor(x, dtype=F64) for x in (forward, strike))
        std = hagan_normal_vol(*ends, *parameters, shift=shift).item() * math.sqrt(expiry)
        d = (forward - strike) / std
        exact = math.exp(-rate * expiry) * ((forward - strike) * norm.cdf(d) + std * norm.pdf(d))
        # two expansions of one model, and a simulation: within two hundredths of a basis point of the forward
        assert found.value[index].item() == pytest.approx(exact, abs=2e-6)
        assert abs(simulated.value[index].item() - exact) <= 4.0 * simulated.std_error[index].item() + 5e-6


def test_what_is_below_zero_is_refused_by_name():
    with pytest.raises(ValueError, match=r"`spot` must be above 0, got -0.01"):
        pr.Market(-0.01)
    with pytest.raises(ValueError, match=r"`strike` must be above 0, got -0.01"):
        pr.European(-0.01, 1.0)
    with pytest.raises(ValueError, match=r"`shift` must be 0 or more, got -0.1"):
        pr.SABR(0.2, 0.5, 0.0, 0.3, shift=-0.1)
