"""American and Bermudan options under rough Bergomi: limits with an exact price, Europeans, both bounds, the past."""

import math

import pytest
import torch

import pricers as pr
from pricers.models import PathScheme
from pricers.models.rough_bergomi import HybridScheme

ROUGH = pr.RoughBergomi(0.09, 1.9, 0.07, -0.9)
MARKET = pr.Market(100.0, 0.05)
MONTHS = [month / 12.0 for month in range(1, 13)]
QUARTERS = [0.25, 0.5, 0.75, 1.0]


def test_without_vol_of_vol_it_is_black_scholes():
    model = pr.RoughBergomi(0.04, 1e-4, 0.1, -0.7)
    put = pr.American([95.0, 105.0], 1.0, "put")
    exact = pr.price(put, pr.BlackScholes(0.2), MARKET, pr.FiniteDifference(n_space=120, n_time=40)).value
    found = pr.price(put, model, MARKET, pr.LongstaffSchwartz(16_384, n_steps=24, seed=1))
    assert (found.value <= exact + 4.0 * found.std_error).all()
    assert (found.value >= 0.99 * exact - 4.0 * found.std_error).all()
    assert (found.std_error < 0.02 * exact).all()


def test_at_one_half_it_is_a_lognormal_volatility():
    """With H = 1/2 and the forward variance of SABR at beta = 1 the two are one model: V = vol^2, eta = 2 nu."""
    alpha, nu, rho = 0.25, 0.5, -0.6
    times = torch.linspace(0.0, 1.0, 201, dtype=torch.float64)
    curve = pr.ForwardVarianceCurve(times, alpha**2 * torch.exp(nu**2 * times))
    rough, option = pr.RoughBergomi(curve, 2.0 * nu, 0.5, rho), pr.Bermudan([95.0, 110.0], QUARTERS, "put")
    found = pr.price(option, rough, MARKET, pr.LongstaffSchwartz(32_768, n_steps=64, seed=1))
    sabr = pr.SABR(alpha, 1.0, rho, nu)
    exact = pr.price(option, sabr, MARKET, pr.LongstaffSchwartz(32_768, n_steps=32, seed=2, scheme="lognormal"))
    error = torch.hypot(found.std_error, exact.std_error)
    assert ((found.value - exact.value).abs() <= 4.0 * error + 0.005 * exact.value).all()
    assert (error < 0.015 * exact.value).all()


def test_one_date_is_the_european_on_the_same_grid():
    put = pr.European([90.0, 110.0], 1.0, "put")
    exact = pr.price(put, ROUGH, MARKET, pr.MonteCarlo(2**16, n_steps=32, noise="sobol", seed=1))
    found = pr.price(pr.Bermudan([90.0, 110.0], [1.0], "put"), ROUGH, MARKET, pr.LongstaffSchwartz(32_768, 32, seed=2))
    error = torch.hypot(found.std_error, exact.std_error)
    assert ((found.value - exact.value).abs() <= 4.0 * error).all()
    assert (error < 0.02 * exact.value).all()


def test_without_interest_a_put_is_the_european_and_never_more():
    """A look ahead at noise to come would lift the rule above it."""
    market = pr.Market(100.0)
    exact = pr.price(
        pr.European(105.0, 1.0, "put"), ROUGH, market, pr.MonteCarlo(2**16, n_steps=24, noise="sobol", seed=1)
    )
    found = pr.price(pr.American(105.0, 1.0, "put"), ROUGH, market, pr.LongstaffSchwartz(32_768, 24, seed=2))
    error = 4.0 * torch.hypot(found.std_error, exact.std_error)
    assert found.value <= exact.value + error
    assert found.value >= 0.99 * exact.value - error
    assert error < 0.05 * exact.value


def test_bounds_enclose_the_put():
    engine = pr.LongstaffSchwartz(16_384, n_steps=24, seed=3, n_outer=64, n_inner=64)
    option = pr.Bermudan([90.0, 110.0], QUARTERS, "put")
    lower, upper = engine.bounds(option, ROUGH, MARKET)
    assert upper is not None
    european = pr.price(pr.European([90.0, 110.0], 1.0, "put"), ROUGH, MARKET, pr.MonteCarlo(2**15, n_steps=24, seed=1))
    assert (lower.value >= european.value - 4.0 * torch.hypot(lower.std_error, european.std_error)).all()
    assert (upper.value >= lower.value - 4.0 * upper.std_error).all()
    assert (upper.value <= 1.06 * lower.value + 4.0 * upper.std_error).all()
    price = engine.price(option, ROUGH, MARKET)
    assert "not the past that the model remembers" in price.note
    assert "dual upper bound" in price.note
    torch.testing.assert_close(price.error_bound, (upper.value - lower.value).clamp(min=0.0), rtol=1e-12, atol=0.0)


def test_without_an_upper_bound_the_note_says_what_the_rule_does_not_see():
    found = pr.price(pr.American(100.0, 1.0, "put"), ROUGH, MARKET, pr.LongstaffSchwartz(1024, n_steps=4, seed=1))
    assert found.note == (
        "lower bound by a fitted rule of exercise, which sees spot and variance of the day and not the past that the "
        "model remembers"
    )
    assert found.error_bound.item() == 0.0


def walk_of(n_steps=12):
    engine = pr.LongstaffSchwartz(2, n_steps=n_steps, seed=3)
    return engine._checked(pr.Bermudan(100.0, QUARTERS, "put"), ROUGH, MARKET).walk


def test_a_path_goes_on_from_its_own_past():
    """From a point in the middle: the past stays, the variance of today too, and the price moves on from there."""
    walk = walk_of()
    points = list(walk.onward(walk.start(64), 0, 7))
    assert [point.state[0].shape[0] for point in points] == [3, 6, 9, 12]
    onward = list(walk.onward(points[1], 2, 8))
    assert len(onward) == 2
    assert torch.equal(onward[0].state[0][:6], points[1].state[0])
    assert not torch.isclose(onward[0].spot, points[2].spot).any()
    # the same noise once more gives the same path
    scheme = walk.scheme
    assert isinstance(scheme, PathScheme)
    times = torch.linspace(0.0, 1.0, 13, dtype=torch.float64)
    noise = onward[1].state[0]
    drift, residual, variance = scheme.increments(ROUGH, times, noise[:, :2])
    spot = MARKET.forward(times[1:])[:, None] * (drift + residual.sqrt() * noise[:, 2]).cumsum(0).exp()
    torch.testing.assert_close(spot[5], points[1].spot, rtol=1e-10, atol=0.0)
    torch.testing.assert_close(spot[8], onward[0].spot, rtol=1e-10, atol=0.0)
    assert points[1].factor is not None
    torch.testing.assert_close(points[1].factor, (12.0 * variance[6]).sqrt(), rtol=1e-10, atol=0.0)


def test_the_variance_of_a_step_is_known_at_its_start():
    """What `variance_known` promises: new noise from a step on leaves its variance as it was."""
    assert HybridScheme.variance_known
    times = torch.linspace(0.0, 1.0, 9, dtype=torch.float64)
    noise = torch.randn(8, 2, 100, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    other = noise.clone()
    other[5:] = -noise[5:]
    one, two = (HybridScheme().increments(ROUGH, times, drawn)[2] for drawn in (noise, other))
    assert torch.equal(one[:6], two[:6])
    assert not torch.isclose(one[6], two[6]).any()


def test_conditional_means_are_those_of_the_past():
    """Going on from one point many times, the asset over its forward keeps its mean: a martingale given the past."""
    walk = walk_of()
    point = list(walk.onward(walk.start(4), 0, 7))[1]
    many = type(point)(point.spot, (point.state[0].repeat_interleave(16_384, dim=-1),))
    end = list(walk.onward(many, 2, 9))[-1].spot.reshape(4, -1) * math.exp(-0.05 * 0.5)
    error = end.std(-1) / end.shape[-1] ** 0.5
    assert ((end.mean(-1) - point.spot).abs() <= 4.0 * error).all()
    assert (error < 0.01 * point.spot).all()


@pytest.mark.slow
def test_bounds_of_monthly_puts_are_close():
    """xi .09, eta 1.9, H .07, rho -.9, rate .05: twelve dates; the gap is 1 % at strike 80 and 3 % at 120."""
    option = pr.Bermudan([70.0, 80.0, 90.0, 100.0, 110.0, 120.0], MONTHS, "put")
    engine = pr.LongstaffSchwartz(65_536, n_steps=48, seed=1, n_outer=128, n_inner=128)
    lower, upper = engine.bounds(option, ROUGH, MARKET)
    assert upper is not None
    assert (upper.value <= 1.045 * lower.value + 4.0 * upper.std_error).all()
    assert (upper.value >= lower.value - 4.0 * upper.std_error).all()


def test_greeks_of_the_held_rule():
    option, engine = pr.Bermudan(105.0, QUARTERS, "put"), pr.LongstaffSchwartz(16_384, n_steps=16, seed=8)
    found = pr.greeks(option, ROUGH, MARKET, ("spot", "xi"), engine)
    bumped = pr.greeks(option, ROUGH, MARKET, ("spot", "xi"), engine, "bump", bump=1e-2)
    for name, estimate in found.items():
        error = torch.hypot(estimate.std_error, bumped[name].std_error)
        assert (estimate.value - bumped[name].value).abs() <= 4.0 * error + 0.02 * estimate.value.abs(), name
    assert -1.0 < found["spot"].value < 0.0 < found["xi"].value


def test_a_batch_of_models_prices_as_its_elements():
    option, engine = pr.American(100.0, 0.5, "put"), pr.LongstaffSchwartz(2048, n_steps=5, seed=1)
    both = pr.price(option, pr.RoughBergomi(0.04, 1.5, [0.1, 0.3], -0.7), MARKET, engine)
    for index, hurst in enumerate((0.1, 0.3)):
        alone = pr.price(option, pr.RoughBergomi(0.04, 1.5, hurst, -0.7), MARKET, engine)
        assert both.value[index].item() == pytest.approx(alone.value.item(), rel=1e-9)
