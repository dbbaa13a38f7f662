"""Rough Heston by lifting: the kernel and its integrals against exact ones, simulated prices against the cf price."""

import math
from itertools import pairwise

import mpmath
import pytest
import torch
from scipy.integrate import quad

from pricers.market import Market
from pricers.models.rough_heston import RoughHeston
from pricers.models.rough_heston_lifting import LiftedQuadraticExponential, exponential_sum, resolvent_integrals
from pricers.models.rough_heston_riccati import mean_variance

MARKET = Market(1.0)
SCHEME = LiftedQuadraticExponential()
ROUGH = (0.04, 0.3, 0.04, 0.4, -0.7, 0.1)  # v0, kappa, theta, sigma, rho, hurst
STRIKES = (-0.3, 0.0, 0.2)  # log(strike / forward)


def double(value):
    return torch.tensor(value, dtype=torch.float64)


def conditional(model, grid, n_paths, seed):
    """Mean and variance of the log-ratio given the variance path, and the last variance."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*model.batch_shape, n_paths)
    mean = variance = torch.zeros(shape, dtype=torch.float64)
    state = SCHEME.start(model)
    for start, end in pairwise(grid):
        coefficients = SCHEME.coefficients(model, MARKET, start, end - start)
        normals = torch.randn(2, n_paths, dtype=torch.float64, generator=generator)
        step = SCHEME.advance(coefficients, mean, state, normals)
        state, mean, variance = step.state, mean + step.drift, variance + step.residual_variance
    return mean, variance, state[1]


def out_of_the_money(mean, variance, log_strike):
    """Black's formula on each path, for a put below 0 and a call from 0 on."""
    sign = -1.0 if log_strike < 0 else 1.0
    deviation = variance.sqrt()
    lower = sign * (mean - log_strike) / deviation
    upper = lower + sign * deviation
    cdf = torch.special.ndtr
    return sign * ((mean + 0.5 * variance).exp() * cdf(upper) - math.exp(log_strike) * cdf(lower))


def exact(model, log_strike, expiry, end=400.0, n_nodes=4000):
    """Lewis (2001) by the midpoint rule, which is spectrally accurate for an even analytic integrand."""
    u = double([(index + 0.5) * end / n_nodes for index in range(n_nodes)])
    real, imaginary = model.log_characteristic(u, double(expiry), 0.5)
    integral = (real.exp() * torch.cos(imaginary - u * log_strike) / (u**2 + 0.25)).sum().item() * end / n_nodes
    call = 1.0 - math.exp(0.5 * log_strike) / math.pi * integral
    return call if log_strike >= 0 else call - 1.0 + math.exp(log_strike)


def steps(n_steps, expiry=1.0):
    return torch.linspace(0.0, expiry, n_steps + 1, dtype=torch.float64)


@pytest.mark.parametrize("hurst", [0.001, 0.02, 0.1, 0.3, 0.4999, 0.5])
def test_sum_of_exponentials_is_the_fractional_kernel(hurst):
    rates, weights = exponential_sum(double(hurst))
    assert bool((rates >= 0).all() and (weights >= -1e-16).all())
    time = torch.logspace(-4, math.log10(30.0), 60, dtype=torch.float64)
    kernel = (weights * torch.exp(-rates * time[:, None])).sum(-1)
    exact_kernel = time ** (hurst - 0.5) / math.gamma(hurst + 0.5)
    assert (kernel / exact_kernel - 1.0).abs().max() < (2e-4 if hurst < 0.49 else 1e-6)


@pytest.mark.parametrize(
    ("hurst", "kappa", "dt"), [(0.05, 0.3, 0.01), (0.1, 3.0, 0.1), (0.3, 8.0, 0.4), (0.5, 4.0, 1.0)]
)
def test_integrals_of_the_resolvent_over_a_step(hurst, kappa, dt):
    alpha = hurst + 0.5
    terms = [float((-kappa) ** k * mpmath.rgamma(alpha * (k + 1))) for k in range(150)]

    def smooth(s):  # R(t) = t^(alpha - 1) smooth(t^alpha)
        return math.fsum(term * s**k for k, term in enumerate(terms))

    # t = s^(1 / alpha), and for the square t = r^(1 / (2 H)): no singularity is left
    first = quad(smooth, 0.0, dt**alpha, epsabs=0.0, epsrel=1e-11)[0] / alpha
    squares = quad(lambda r: smooth(r ** (alpha / (2 * hurst))) ** 2, 0.0, dt ** (2 * hurst), epsabs=0.0, epsrel=1e-9)
    second = squares[0] / (2 * hurst)
    one, two = resolvent_integrals(double(kappa), double(hurst), double(dt))
    assert one.item() == pytest.approx(first, rel=1e-9)
    assert two.item() == pytest.approx(second, rel=1e-7)
    if hurst == 0.5:
        assert one.item() == pytest.approx(-math.expm1(-kappa * dt) / kappa, rel=1e-12)
        assert two.item() == pytest.approx(-math.expm1(-2 * kappa * dt) / (2 * kappa), rel=1e-12)


def test_step_that_is_too_long_for_the_series_is_refused():
    with pytest.raises(ValueError, match=r"`kappa` \* dt \*\* \(hurst \+ 0.5\) must be 4 or less .* raise `n_steps`"):
        resolvent_integrals(double(50.0), double(0.1), double(0.5))


@pytest.mark.parametrize("uneven", [False, True], ids=["uniform", "uneven"])
def test_mean_variance_and_martingale(uneven):
    model = RoughHeston(double(0.02), 1.2, 0.09, double([0.3, 0.5]), double([-0.8, 0.4]), double([0.08, 0.3]))
    grid = double([0.0, 0.05, 0.06, 0.2, 0.5, 0.55, 0.9]) if uneven else steps(12, 0.9)
    n_paths = 60_000
    mean, variance, last = conditional(model, grid, n_paths, seed=1)
    ratio = (mean + 0.5 * variance).exp()
    expected = mean_variance(double(0.9), model.v0, model.kappa, model.theta, model.hurst)
    assert bool((last >= 0).all())
    for sample, target in ((ratio, double([1.0, 1.0])), (last, expected)):
        std_error = sample.std(-1) / n_paths**0.5
        assert bool(((sample.mean(-1) - target).abs() <= 4 * std_error).all())
        assert bool((std_error <= 0.015 * target).all())


def test_prices_at_half_are_those_of_heston():
    model = RoughHeston(*map(double, (0.04, 2.0, 0.09, 0.5, -0.7, 0.5)))
    mean, variance, _ = conditional(model, steps(64), 2**16, seed=2)
    for log_strike in STRIKES:
        price = out_of_the_money(mean, variance, log_strike)
        std_error = price.std().item() / price.shape[-1] ** 0.5
        # the stated bias
        assert abs(price.mean().item() - exact(model, log_strike, 1.0)) <= 4 * std_error + 2.5e-4
        assert std_error < 5e-4


def test_simulated_smile_is_that_of_the_characteristic_function():
    model = RoughHeston(*map(double, ROUGH))
    mean, variance, _ = conditional(model, steps(64), 2**16, seed=3)
    for log_strike in STRIKES:
        price = out_of_the_money(mean, variance, log_strike)
        std_error = price.std().item() / price.shape[-1] ** 0.5
        # the stated bias
        assert abs(price.mean().item() - exact(model, log_strike, 1.0)) <= 4 * std_error + 6e-4
        assert std_error < 5e-4


@pytest.mark.slow
def test_bias_of_the_wing_is_of_order_one_in_the_step():
    model = RoughHeston(*map(double, ROUGH))
    target, errors, sizes = exact(model, 0.2, 1.0), [], [8, 16, 32, 64]
    for n_steps in sizes:
        mean, variance, _ = conditional(model, steps(n_steps), 2**18, seed=4)
        price = out_of_the_money(mean, variance, 0.2)
        errors.append(price.mean().item() - target)
        assert price.std().item() / price.shape[-1] ** 0.5 < 1.5e-5
    slope = math.log(errors[0] / errors[-1]) / math.log(sizes[-1] / sizes[0])
    assert slope == pytest.approx(1.0, abs=0.25)


def test_batched_parameters_equal_one_at_a_time():
    model = RoughHeston(double([0.04, 0.1]), 0.3, double([[0.04], [0.1], [0.3]]), 0.4, double(-0.7), double([0.1, 0.5]))
    together = conditional(model, double([0.0, 0.1, 0.4]), 5, seed=5)
    for row in range(3):
        for column in range(2):
            alone = RoughHeston(
                model.v0[column], model.kappa, model.theta[row, 0], model.sigma, model.rho, model.hurst[column]
            )
            single = conditional(alone, double([0.0, 0.1, 0.4]), 5, seed=5)
            for many, one in zip(together, single, strict=True):
                assert many.shape == (3, 2, 5)
                torch.testing.assert_close(many[row, column], one, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own forward mode
@pytest.mark.parametrize("hurst", [0.01, 0.3])
def test_paths_are_differentiable_in_every_parameter(hurst):
    inputs = [double(value).requires_grad_() for value in (*ROUGH[:5], hurst)]
    grid = double([0.0, 0.2, 0.5])

    def paths(*parameters):
        model = RoughHeston.__new__(RoughHeston)
        for name, value in zip(("v0", "kappa", "theta", "sigma", "rho", "hurst"), parameters, strict=True):
            object.__setattr__(model, name, value)
        return conditional(model, grid, 3, seed=6)

    assert torch.autograd.gradcheck(paths, inputs, eps=1e-6, atol=1e-5, rtol=1e-4, check_forward_ad=True)


@pytest.mark.parametrize("hurst", [1e-6, 0.5])
def test_gradients_at_the_edges_are_numbers(hurst):
    inputs = [double(value).requires_grad_() for value in (*ROUGH[:5], hurst)]
    mean, variance, last = conditional(RoughHeston(*inputs), steps(8), 500, seed=7)
    for total in (mean.sum(), variance.sum(), last.sum()):
        gradients = torch.autograd.grad(total, inputs, retain_graph=True, allow_unused=True)
        assert gradients[0] is not None
        assert all(gradient is None or bool(gradient.isfinite()) for gradient in gradients)
