"""Conditional simulation of SABR and rough Bergomi: the prices of plain simulation, with smaller errors."""

import math

import pytest
import torch

import pricers as pr

MARKET = pr.Market(100.0, 0.02)
STRIKES = [80.0, 100.0, 120.0]
CALLS = pr.European(STRIKES, 1.0)
MODELS = {
    "sabr": (pr.SABR(alpha=0.25, beta=1.0, rho=-0.4, nu=0.6), "lognormal"),
    "rough_bergomi": (pr.RoughBergomi(xi=0.04, eta=1.6, hurst=0.1, rho=-0.7), "hybrid"),
}


def estimate(name, instrument, seed, **settings):
    model, scheme = MODELS[name]
    return pr.price(instrument, model, MARKET, pr.MonteCarlo(2**15, n_steps=40, seed=seed, scheme=scheme, **settings))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("noise", ["pseudo", "sobol"])
def test_integrating_the_asset_out_leaves_the_price_and_cuts_the_error(name, noise):
    mixed = estimate(name, CALLS, 3, noise=noise, conditional=True)
    plain = estimate(name, CALLS, 4, noise="pseudo", conditional=False)
    apart = (mixed.value - plain.value) / torch.hypot(mixed.std_error, plain.std_error)
    assert apart.abs().max() < 4
    # at correlation -0.4 and -0.7 the asset's own noise holds 84 % and 51 % of the variance
    assert (mixed.std_error < 0.75 * plain.std_error).all()


@pytest.mark.parametrize("name", MODELS)
def test_conditional_digitals_are_the_slope_of_conditional_calls(name):
    """The same variance paths stand behind both, so that the identity holds path by path."""
    size = 1e-3
    low, high = (
        estimate(name, pr.European(100.0 + step, 1.0), 3, conditional=True, controls=False).value
        for step in (-size, size)
    )
    digital = estimate(name, pr.Digital(100.0, 1.0), 3, conditional=True, controls=False).value
    assert digital.item() == pytest.approx((low - high).item() / (2 * size), rel=1e-6)


def test_sabr_without_vol_of_vol_is_black():
    model = pr.SABR(alpha=0.25, beta=1.0, rho=-0.4, nu=0.0)
    engine = pr.MonteCarlo(2**10, n_steps=10, seed=1, scheme="lognormal", conditional=True)
    exact = pr.price(CALLS, pr.BlackScholes(0.25), MARKET).value
    found = pr.price(CALLS, model, MARKET, engine)
    # rho of the noise is known, the rest is integrated out: what varies is the known part
    assert ((found.value - exact).abs() <= 4 * found.std_error + 1e-12).all()
    free = pr.SABR(alpha=0.25, beta=1.0, rho=0.0, nu=0.0)
    assert pr.price(CALLS, free, MARKET, engine).value.tolist() == pytest.approx(exact.tolist(), rel=1e-12)


def test_the_forward_is_no_control_of_a_scheme_that_does_not_keep_it():
    model, scheme = MODELS["sabr"]
    engine = pr.MonteCarlo(2**10, n_steps=4, seed=1, scheme=scheme)
    assert engine.sampler(CALLS, model, MARKET).known is None
    absorbed = pr.MonteCarlo(2**10, n_steps=4, seed=1, scheme="absorbed")
    known = absorbed.sampler(CALLS, model, MARKET).known
    assert known is not None
    assert known.flatten().tolist() == pytest.approx([100.0 * math.exp(0.0)] * 3, rel=1e-12)
