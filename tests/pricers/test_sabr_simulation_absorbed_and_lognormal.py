"""Simulation of SABR: moments, martingale with absorption, exact CEV, a finite-difference truth, weak orders."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import brentq

from pricers.market import Market
from pricers.models.sabr import SABR, Absorbed, LognormalGivenVol, absorbed_martingale_step, geometric_variance

F64 = torch.float64

# Antonov and Spector (2012), Advanced analytics for the SABR model: alpha .25, nu .3, rho -.8, beta .3, ten years on a
# forward of 1. Their printed volatilities, and those of QuantLib's two-dimensional finite differences (200 steps, 800 x
# 200 nodes; 1e-4 or better between its grids): an independent truth that the printed ones miss by up to .0011.
STRIKES = (0.1, 1.0, 2.0)
PRINTED = (0.5715, 0.2304, 0.1301)
FINITE_DIFFERENCES = (0.57258, 0.23096, 0.13025)
HAGAN = (0.7176, 0.2427, 0.1322)


def number(x):
    return torch.as_tensor(x, dtype=F64)


def sabr(alpha, beta, rho, nu, shift=0.0):
    return SABR(*map(number, (alpha, beta, rho, nu, shift)))


def simulate(model, expiry, n_steps, n_paths, seed, forward=1.0):
    """S_T over its forward; the second half of the paths mirrors the first."""
    scheme, expiry = Absorbed(), number(expiry)
    dt = expiry / n_steps
    market = Market(spot=number(forward))
    state = scheme.start(model, market, expiry)
    state = tuple(part.expand(*part.shape[:-1], n_paths) for part in state)
    coefficients = scheme.coefficients(model, market, 0.0 * dt, dt)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n_steps):
        normals = torch.randn(2, n_paths // 2, generator=generator, dtype=F64)
        state = scheme.advance(coefficients, state, torch.cat([normals, -normals], -1))
    return scheme.ratio(state)


def mean_and_error(values):
    pairs = 0.5 * (values[..., : values.shape[-1] // 2] + values[..., values.shape[-1] // 2 :])
    return pairs.mean(-1), pairs.std(-1) / math.sqrt(pairs.shape[-1])


def implied(price, strike, expiry):
    def excess(vol):
        d = (-math.log(strike) + 0.5 * vol**2 * expiry) / (vol * math.sqrt(expiry))
        return stats.norm.cdf(d) - strike * stats.norm.cdf(d - vol * math.sqrt(expiry)) - price

    return brentq(excess, 1e-4, 5.0, xtol=1e-12)


def vols(ratio, expiry, strikes=STRIKES):
    """Implied volatilities of calls and their standard errors, the forward as control variate."""
    result = []
    half = ratio.shape[-1] // 2
    control = 0.5 * (ratio[:half] + ratio[half:]) - 1.0
    for strike in strikes:
        call = (ratio - strike).clamp(min=0.0)
        call = 0.5 * (call[:half] + call[half:])
        call = call - (call * control).mean() / (control**2).mean() * control
        price, error = call.mean().item(), call.std().item() / math.sqrt(half)
        low, high = (implied(price + side * error, strike, expiry) for side in (-1, 1))
        result.append((implied(price, strike, expiry), 0.5 * (high - low)))
    return result


@pytest.mark.parametrize("relative_variance", [1e-8, 1e-3, 0.5, 1.4999, 1.5, 4.0, 60.0])
def test_a_step_has_exactly_its_two_moments(relative_variance):
    """Trapezoid on 400,001 normals from -12 to 12, weighted by their density."""
    normals = torch.linspace(-12.0, 12.0, 400_001, dtype=F64)
    weights = torch.exp(-0.5 * normals**2) / math.sqrt(2.0 * math.pi) * (normals[1] - normals[0])
    later = absorbed_martingale_step(number(0.7), number(relative_variance), normals)
    assert (later >= 0.0).all()
    assert (later.diff() >= 0.0).all() or relative_variance < 1.5  # the quadratic branch turns in its far left tail
    mean = (weights * later).sum().item()
    variance = (weights * (later - 0.7) ** 2).sum().item()
    assert mean == pytest.approx(0.7, rel=1e-8)
    assert variance == pytest.approx(relative_variance * 0.49, rel=1e-6)  # the trapezoid sees the kink at the atom


@pytest.mark.parametrize("nu", [0.0, 0.4, 1.5])
def test_the_mean_variance_given_both_ends_has_the_right_mean(nu):
    """Over the end it must average to E int sigma^2 = sigma^2 (exp(nu^2 dt) - 1) / nu^2; Simpson's rule errs by h^5."""
    points, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = torch.from_numpy(weights / weights.sum())
    errors = []
    for dt in (0.2, 0.1):
        end = 0.3 * torch.exp(nu * math.sqrt(dt) * torch.from_numpy(points) - 0.5 * nu**2 * dt)
        mean = (weights * geometric_variance(number(0.3), end, number(nu), number(dt))).sum().item()
        exact = 0.09 * (math.expm1(nu**2 * dt) / nu**2 if nu else dt)
        errors.append(abs(mean / exact - 1.0))
    if nu == 0.0:
        assert max(errors) < 1e-14
    else:
        assert errors[0] < 1e-4 * nu**8 / 0.4**8
        assert errors[0] / errors[1] == pytest.approx(16.0, rel=0.2)  # relative to h: one order less


@pytest.mark.parametrize(
    ("beta", "rho"), [(b, r) for b in (0.0, 0.3, 0.5, 0.9) for r in (-0.8, 0.5)] + [(1.0, -0.8), (1.0, 0.0)]
)
def test_the_forward_is_a_martingale_with_absorption(beta, rho):
    model = sabr(0.25, beta, rho, 0.5)
    ratio = simulate(model, 5.0, 20, 60_000, seed=3)
    mean, error = mean_and_error(ratio)
    assert abs(mean.item() - 1.0) <= 4.0 * error.item()
    assert error.item() < 0.02
    assert (ratio >= 0.0).all()
    if beta < 0.9:
        assert 0.005 < (ratio == 0.0).double().mean().item() < 0.6  # absorption does happen


def test_a_batch_with_shift_gives_each_its_own_martingale_and_stays_above_minus_the_shift():
    model = sabr(alpha=[[0.02], [0.1]], beta=[0.0, 0.4], rho=-0.3, nu=0.4, shift=0.03)
    ratio = simulate(model, 2.0, 10, 40_000, seed=4, forward=0.02)
    assert ratio.shape == (2, 2, 40_000)
    mean, error = mean_and_error(ratio)
    assert ((mean - 1.0).abs() <= 4.0 * error).all()
    assert (ratio >= -0.03 / 0.02 - 1e-12).all()
    assert (ratio < 0.0).any(-1).all()  # a forward below 0 is possible


def cev_call(strike, expiry, vol, beta):
    """Schroder (1989), Computing the constant elasticity of variance option pricing formula; absorbed, forward 1."""
    scale = vol**2 * expiry * (1.0 - beta) ** 2
    at_strike, at_forward, degrees = strike ** (2 - 2 * beta) / scale, 1.0 / scale, 1.0 / (1.0 - beta)
    above = 1.0 - stats.ncx2.cdf(at_strike, degrees + 2.0, at_forward)
    return above - strike * stats.ncx2.cdf(at_forward, degrees, at_strike)


@pytest.mark.parametrize("beta", [0.3, 0.6])
def test_without_vol_of_vol_it_is_the_exact_cev_model(beta):
    ratio = simulate(sabr(0.25, beta, -0.8, 0.0), 10.0, 40, 100_000, seed=5)
    for strike, (vol, error) in zip(STRIKES, vols(ratio, 10.0), strict=True):
        exact = implied(cev_call(strike, 10.0, 0.25, beta), strike, 10.0)
        # the step's own bias is 0.07 / n at the strike of .1 and 0.015 / n at the others, measured at n = 10 and 20
        bias = (0.07 if strike == 0.1 else 0.015) / 40
        assert abs(vol - exact) <= 4.0 * error + bias, strike
        assert error < 0.0012
    absorbed = (ratio == 0.0).double().mean().item()
    exact = stats.gamma.sf(1.0 / (2.0 * 0.25**2 * 10.0 * (1.0 - beta) ** 2), 1.0 / (2.0 * (1.0 - beta)))
    assert absorbed == pytest.approx(exact, abs=0.006)  # bias of the atom at 40 steps .005, standard error .001


def test_the_truth_where_hagans_expansion_fails():
    """The bias falls like 1 / n: what two step sizes extrapolate to is compared with the truth within 4 errors."""
    model = sabr(0.25, 0.3, -0.8, 0.3)
    coarse = vols(simulate(model, 10.0, 32, 120_000, seed=1), 10.0)
    fine = vols(simulate(model, 10.0, 64, 120_000, seed=2), 10.0)
    for i in range(3):
        vol = 2.0 * fine[i][0] - coarse[i][0]
        error = math.hypot(2.0 * fine[i][1], coarse[i][1])
        assert error < 0.0018
        assert abs(vol - FINITE_DIFFERENCES[i]) <= 4.0 * error
        assert abs(vol - PRINTED[i]) <= 4.0 * error + 0.0011  # see FINITE_DIFFERENCES
    assert abs(HAGAN[0] - fine[0][0]) > 0.1
    assert abs(HAGAN[1] - fine[1][0]) > 0.009


@pytest.mark.slow
def test_weak_order_one():
    """Log-log slope of the error of the volatility at the strike of 2, standard errors below 4 % of the errors."""
    model = sabr(0.25, 0.3, -0.8, 0.3)
    steps = (5, 10, 20)
    errors = [vols(simulate(model, 10.0, n, 2_000_000, seed=n), 10.0, (2.0,))[0][0] - 0.13025 for n in steps]
    slope = np.polyfit(np.log(steps), np.log(np.abs(errors)), 1)[0]
    assert slope == pytest.approx(-1.0, abs=0.25)


def lognormal_calls(model, normals, expiry, strikes):
    """Black's price given the volatility path, averaged: conditional simulation."""
    scheme, market = LognormalGivenVol(), Market(spot=1.0)
    dt = number(expiry / normals.shape[0])
    coefficients = scheme.coefficients(model, market, 0.0 * dt, dt)
    state = scheme.start(model)
    mean = variance = torch.zeros(normals.shape[-1], dtype=F64)
    for row in normals:
        step = scheme.advance(coefficients, mean, state, row[None])
        state, mean, variance = step.state, mean + step.drift, variance + step.residual_variance
    forward, root = torch.exp(mean + 0.5 * variance), variance.sqrt()
    prices = []
    for strike in strikes:
        d = (torch.log(forward) - math.log(strike)) / root + 0.5 * root
        prices.append(forward * torch.special.ndtr(d) - strike * torch.special.ndtr(d - root))
    return torch.stack([forward, *prices])


def test_lognormal_scheme_has_weak_order_two_on_coupled_paths():
    model = sabr(0.4, 1.0, -0.6, 0.8)
    generator = torch.Generator().manual_seed(11)
    finest = torch.randn(64, 100_000, generator=generator, dtype=F64)

    def coarser(n):
        return finest.reshape(n, 64 // n, -1).sum(1) / math.sqrt(64 / n)

    truth = lognormal_calls(model, finest, 2.0, (0.7, 1.0, 1.4))
    differences = [(lognormal_calls(model, coarser(n), 2.0, (0.7, 1.0, 1.4)) - truth) for n in (2, 4, 8)]
    errors = torch.stack([difference.mean(-1) for difference in differences])[:, 2]
    noise = differences[-1][2].std() / math.sqrt(100_000)
    assert noise < 0.3 * errors[-1].abs()
    slope = np.polyfit(np.log([2, 4, 8]), errors.abs().log().numpy(), 1)[0]
    assert slope < -1.6
    forward = truth[0]
    assert abs(forward.mean().item() - 1.0) <= 4.0 * forward.std().item() / math.sqrt(100_000)


@pytest.mark.slow
def test_both_schemes_agree_where_both_apply():
    model = sabr(0.3, 1.0, -0.5, 0.6)
    generator = torch.Generator().manual_seed(12)
    normals = torch.randn(32, 60_000, generator=generator, dtype=F64)
    exact = lognormal_calls(model, normals, 1.0, (0.8, 1.0, 1.3))[1:]
    direct = vols(simulate(model, 1.0, 64, 100_000, seed=13), 1.0, (0.8, 1.0, 1.3))
    for i, strike in enumerate((0.8, 1.0, 1.3)):
        price, error = exact[i].mean().item(), exact[i].std().item() / math.sqrt(60_000)
        spread = implied(price + error, strike, 1.0) - implied(price, strike, 1.0)
        bias = 0.02 / 64  # of weak order 1, read off 16 and 32 steps
        assert abs(direct[i][0] - implied(price, strike, 1.0)) <= 4.0 * math.hypot(direct[i][1], spread) + bias


def test_the_lognormal_scheme_refuses_other_exponents_and_shifts():
    for model in (sabr(0.3, 0.9, 0.0, 0.4), sabr(0.3, 1.0, 0.0, 0.4, shift=0.1)):
        reason = LognormalGivenVol().refusal(model)
        assert reason == "the scheme 'lognormal' of SABR needs `beta` = 1 and `shift` = 0; use 'absorbed'"


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_pathwise_derivatives_equal_differences_with_common_noise(beta):
    point = {"alpha": 0.3, "beta": beta, "rho": -0.4, "nu": 0.5}

    def price(**changed):
        model = SABR(**{name: number(value) for name, value in (point | changed).items()})
        return (simulate(model, 2.0, 8, 20_000, seed=8) - 0.9).clamp(min=0.0).mean()

    inputs = {name: number(value).requires_grad_() for name, value in point.items()}
    gradients = torch.autograd.grad(price(**inputs), list(inputs.values()))
    for (name, value), gradient in zip(point.items(), gradients, strict=True):
        h = 1e-6
        low, high = (max(value - h, 0.0), min(value + h, 1.0)) if name == "beta" else (value - h, value + h)
        difference = ((price(**{name: high}) - price(**{name: low})) / (high - low)).item()
        assert gradient.item() == pytest.approx(difference, rel=1e-3, abs=1e-5), name


def test_absorbed_and_extreme_states_keep_finite_gradients():
    ratio = torch.tensor([0.0, 1e-13, 1e-11, 1e-3, 1.0, 1e6], dtype=F64, requires_grad=True)
    vol = torch.tensor(3.0, dtype=F64, requires_grad=True)
    beta = torch.tensor(0.0, dtype=F64, requires_grad=True)
    model = SABR(vol, beta, -0.5, 0.0)
    for size in (-6.0, 0.0, 6.0):
        coefficients = Absorbed().coefficients(model, Market(1.0), number(0.0), number(0.5))
        normals = torch.full((2, 6), size, dtype=F64)
        later = Absorbed().advance(coefficients, (ratio, vol.expand(6), number([0.0])), normals)[0]
        gradients = torch.autograd.grad(later.sum(), (ratio, vol, beta))
        assert later[:2].tolist() == [0.0, 0.0]
        assert all(gradient.isfinite().all() for gradient in (later, *gradients))


def test_single_precision_stays_single():
    model = SABR(*map(torch.tensor, (0.3, 0.4, -0.2, 0.5, 0.0)))
    market = Market(*map(torch.tensor, (1.0, 0.0, 0.0)))
    scheme = Absorbed()
    state = scheme.start(model, market, torch.tensor(1.0))
    coefficients = scheme.coefficients(model, market, torch.tensor(0.0), torch.tensor(0.1))
    state = scheme.advance(coefficients, state, torch.zeros(2, 5))
    assert scheme.ratio(state).dtype == torch.float32
