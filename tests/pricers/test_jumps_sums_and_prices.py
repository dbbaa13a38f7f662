"""Simulated jumps: law of numbers and sums, martingales, prices against Fourier and Merton's series."""

import math

import pytest
import torch

import pricers as pr
from pricers.models.jumps import WithJumps, n_jumps, poisson_tails

MERTON = pr.Merton(vol=0.12, intensity=0.4, jump_mean=-0.12, jump_std=0.18)
MARKET = pr.Market(100.0, 0.05, 0.01)


def number(x):
    return torch.tensor(x, dtype=torch.float64)


def normals(n_rows, width=2**18, seed=0):
    return torch.randn(n_rows, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mean", [1e-6, 0.05, 1.0, 30.0])
def test_tails_are_those_of_poisson(mean):
    tails = poisson_tails(number(mean))
    weights, total = [], 0.0
    for n in range(400):
        weights.append(math.exp(-mean + n * math.log(mean) - math.lgamma(n + 1)))
    for k in range(tails.shape[0]):
        total = sum(weights[k + 1 :])
        assert tails[k].item() == pytest.approx(total, rel=2e-13)  # rounding of the logarithms, about 100 here
    assert sum(weights[tails.shape[0] + 1 :]) < 2e-17


@pytest.mark.parametrize("mean", [0.05, 1.0, 30.0])
def test_numbers_have_mean_and_variance_of_poisson(mean):
    count = n_jumps(poisson_tails(number(mean)), normals(1)[0])
    n = count.numel()
    assert count.mean().item() == pytest.approx(mean, abs=4.0 * math.sqrt(mean / n))
    fourth = mean + 2.0 * mean**2  # variance of a squared deviation
    assert count.var().item() == pytest.approx(mean, abs=4.0 * math.sqrt(fourth / n))


def step(model, dt, width=2**18):
    scheme = type(model).schemes[next(iter(type(model).schemes))]
    assert isinstance(scheme, WithJumps)
    drawn = normals(scheme.n_normals, width)
    coefficients = scheme.coefficients(model, MARKET, number(0.0), number(dt))
    return scheme.advance(coefficients, torch.zeros(width, dtype=torch.float64), scheme.start(model), drawn)


@pytest.mark.parametrize("dt", [0.01, 1.0, 25.0])
def test_mean_of_the_squared_jumps(dt):
    """intensity dt (mean^2 + std^2): what a variance swap pays for the jumps."""
    squares = step(MERTON, dt).jumps_squared
    error = squares.std().item() / squares.numel() ** 0.5
    assert squares.mean().item() == pytest.approx(0.4 * dt * (0.12**2 + 0.18**2), abs=4.0 * error)


@pytest.mark.parametrize("dt", [0.01, 1.0, 10.0])
def test_one_step_is_a_martingale(dt):
    done = step(MERTON, dt)
    ratio = torch.exp(done.drift + 0.5 * done.residual_variance)
    assert ratio.mean().item() == pytest.approx(1.0, abs=4.0 * ratio.std().item() / ratio.numel() ** 0.5)


def test_no_jumps_at_intensity_0_and_a_batch_of_intensities():
    model = pr.Merton(0.2, [0.0, 0.5, 5.0], -0.1, 0.2)
    done = step(model, 1.0, 2**15)
    assert done.drift.shape == (3, 2**15)
    assert (done.jumps_squared[0] == 0).all()
    torch.testing.assert_close(done.drift[0], torch.full_like(done.drift[0], -0.02))
    call = pr.European(105.0, 1.0)
    exact = pr.price(call, model, MARKET)
    found = pr.price(call, model, MARKET, pr.MonteCarlo(n_paths=2**15, seed=1))
    assert ((found.value - exact.value).abs() <= 4.0 * found.std_error + 1e-9).all()


@pytest.mark.parametrize("n_steps", [None, 8])
@pytest.mark.parametrize("conditional", [None, False])
def test_merton_prices(n_steps, conditional):
    put = pr.European([70.0, 100.0, 130.0], 2.0, "put")
    exact = pr.price(put, MERTON, MARKET)
    engine = pr.MonteCarlo(n_paths=2**16, n_steps=n_steps, seed=5, conditional=conditional)
    found = pr.price(put, MERTON, MARKET, engine)
    assert ((found.value - exact.value).abs() <= 4.0 * found.std_error).all()
    assert (found.std_error <= 0.05).all()


def test_bates_prices():
    model = pr.Bates(0.04, 4.0, 0.25, 1.0, -0.5, intensity=0.4, jump_mean=-0.12, jump_std=0.18)
    call = pr.European([80.0, 100.0, 120.0], 1.0)
    exact = pr.price(call, model, MARKET)
    found = pr.price(call, model, MARKET, pr.MonteCarlo(n_paths=2**16, n_steps=32, seed=5))
    # two basis points of the spot for the steps of the variance
    assert ((found.value - exact.value).abs() <= 4.0 * found.std_error + 0.02).all()
    assert (found.std_error <= 0.05).all()


def test_derivatives_along_the_path_are_those_of_differences():
    def drift(mean, std):
        model = pr.Merton(0.12, 3.0, mean, std)
        return step(model, 1.0, 512).drift

    point = (number(-0.12), number(0.18))
    for index in range(2):
        tangent = tuple(number(float(index == i)) for i in range(2))
        _, slope = torch.func.jvp(drift, point, tangent)
        h = 1e-6
        up = drift(*(p + h * t for p, t in zip(point, tangent, strict=True)))
        down = drift(*(p - h * t for p, t in zip(point, tangent, strict=True)))
        torch.testing.assert_close(slope, (up - down) / (2.0 * h), rtol=0.0, atol=1e-8)


@pytest.mark.parametrize("law", [(0.0, -0.1, 0.2), (0.4, 0.0, 0.0), (1e-12, -2.0, 1e-9), (200.0, -0.01, 0.02)])
def test_no_gradient_is_nan(law):
    leaves = [number(x).requires_grad_() for x in law]
    model = pr.Merton(0.2, *leaves)
    done = step(model, 1.0, 4096)
    gradients = torch.autograd.grad((done.drift.exp() + done.jumps_squared).mean(), leaves)
    assert all(bool(gradient.isfinite()) for gradient in gradients)
