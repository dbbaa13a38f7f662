"""Rough Heston: the Riccati equation against published prices, Heston, QuantLib and a fractional Adams scheme."""

import math
import re

import mpmath
import numpy as np
import pytest
import QuantLib
import torch

from pricers.models.rough_heston import RoughHeston
from pricers.models.rough_heston_collocation import collocation
from pricers.models.rough_heston_riccati import log_characteristic, mean_variance

# QuantLib's test suite for rough Heston; r = 0.03, S = 100. The order of the parameters is that of RoughHeston.
PARAMETERS = (0.04, 0.3, 0.04, 0.4, -0.7, 0.1)
PUBLISHED = {
    0.25: {75.0: 25.762400, 100.0: 3.793313, 130.0: 0.001586},
    1.0: {75.0: 28.394103, 100.0: 8.336634, 130.0: 0.202295},
}
# One printed value is 2e-6 below the limit that QuantLib's own engine converges to (see the test of extrapolation)
CONVERGED_AT_THE_MONEY = 8.3366361
HESTON_SETS = [  # v0, kappa, theta, sigma, rho, expiry: among them the DAX optimum, which breaks Feller's condition
    (0.04, 0.3, 0.04, 0.4, -0.7, 1.0),
    (0.195661, 15.662486, 0.074591, 3.361902, -0.511491, 1.44),
    (0.04, 0.5, 0.04, 1.0, -0.9, 10.0),
    (0.0175, 1.5768, 0.0398, 0.5751, -0.5711, 1 / 365),
    (0.09, 2.0, 0.09, 1.0, 0.6, 0.5),
]


def double(value):
    return torch.tensor(value, dtype=torch.float64)


def model(*parameters):
    return RoughHeston(*map(double, parameters))


def unchecked(*parameters):
    """A model whose parameters may step over the edge, as finite differences do."""
    made = RoughHeston.__new__(RoughHeston)
    for name, value in zip(("v0", "kappa", "theta", "sigma", "rho", "hurst"), parameters, strict=True):
        object.__setattr__(made, name, value)
    return made


def lewis_call(parameters, strike, expiry, spot=100.0, rate=0.03, end=600.0):
    """Lewis (2001) on Gauss and Legendre nodes: independent of the library's Fourier engine."""
    forward = spot * math.exp(rate * expiry)
    log_strike = math.log(strike / forward)
    nodes, weights = np.polynomial.legendre.leggauss(400)
    u = double(0.5 * end * (nodes + 1.0))
    real, imaginary = model(*parameters).log_characteristic(u, double(expiry), shift=0.5)
    integrand = torch.exp(real) * torch.cos(imaginary - u * log_strike) / (u**2 + 0.25)
    integral = (integrand * double(0.5 * end * weights)).sum().item()
    return math.exp(-rate * expiry) * (forward - math.sqrt(forward * strike) / math.pi * integral)


def heston_log_characteristic(argument, v0, kappa, theta, sigma, rho, expiry):
    """Albrecher et al. (2007), formulation 2, at the complex exponent `argument` of E exp(argument X)."""
    v0, kappa, theta, sigma, rho, expiry = map(mpmath.mpf, (v0, kappa, theta, sigma, rho, expiry))
    b = kappa - rho * sigma * argument
    d = mpmath.sqrt(b**2 - sigma**2 * (argument**2 - argument))
    g = (b - d) / (b + d)
    decay = mpmath.exp(-d * expiry)
    level = kappa * theta / sigma**2 * ((b - d) * expiry - 2 * mpmath.log((1 - g * decay) / (1 - g)))
    return level + v0 / sigma**2 * (b - d) * (1 - decay) / (1 - g * decay)


def fractional_adams(u, shift, expiry, v0, kappa, theta, sigma, rho, hurst, n_steps):
    """Diethelm, Ford and Freed (2004), eqs. 1.11-1.15, and the trapezium rule: log E exp((i u + shift) X)."""
    alpha, dt = hurst + 0.5, expiry / n_steps
    exponent = complex(shift, u)

    def slope(h):
        return 0.5 * (exponent**2 - exponent) + (exponent * rho * sigma - kappa) * h + 0.5 * sigma**2 * h**2

    k = np.arange(n_steps + 1, dtype=float)
    predictor = dt**alpha / math.gamma(alpha + 1) * ((k + 1) ** alpha - k**alpha)
    unit = dt**alpha / math.gamma(alpha + 2)
    corrector = unit * ((k + 2) ** (alpha + 1) + k ** (alpha + 1) - 2 * (k + 1) ** (alpha + 1))
    h = np.zeros(n_steps + 1, dtype=complex)
    f = np.zeros(n_steps + 1, dtype=complex)
    f[0] = slope(0.0)
    for n in range(n_steps):
        guess = np.dot(predictor[: n + 1][::-1], f[: n + 1])
        first = unit * (n ** (alpha + 1) - (n - alpha) * (n + 1) ** alpha)
        h[n + 1] = first * f[0] + np.dot(corrector[:n][::-1], f[1 : n + 1]) + unit * slope(guess)
        f[n + 1] = slope(h[n + 1])
    return np.trapezoid(kappa * theta * h + v0 * f, dx=dt)


@pytest.mark.parametrize("alpha", [0.501, 0.6, 0.9, 1.0])
def test_fractional_integral_of_powers_is_exact(alpha):
    scheme = collocation(double(alpha), 48)
    for k in (0, 1, 2, 7, 15):
        power = scheme.nodes**k
        factor = math.exp(math.lgamma(k * alpha + 1) - math.lgamma((k + 1) * alpha + 1))
        torch.testing.assert_close(scheme.integral @ power, factor * scheme.nodes ** (k + 1), rtol=0.0, atol=1e-12)
        assert (scheme.mean @ power).item() == pytest.approx(1.0 / (k * alpha + 1.0), abs=1e-12)
        assert (scheme.end @ power).item() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("expiry", PUBLISHED)
def test_published_prices_to_the_printed_digits(expiry):
    for strike, published in PUBLISHED[expiry].items():
        expected = CONVERGED_AT_THE_MONEY if (expiry, strike) == (1.0, 100.0) else published
        assert lewis_call(PARAMETERS, strike, expiry) == pytest.approx(expected, abs=5e-7)


def test_price_is_what_an_adams_scheme_extrapolates_to():
    """QuantLib's engine at 512 and 1,024 steps; its error falls with the power 1.6 of the step at H = 0.1."""
    today = QuantLib.Date(1, 1, 2024)
    QuantLib.Settings.instance().evaluationDate = today
    day_count = QuantLib.Actual365Fixed()

    def curve(rate):
        return QuantLib.YieldTermStructureHandle(QuantLib.FlatForward(today, rate, day_count))

    v0, kappa, theta, sigma, rho, hurst = PARAMETERS
    spot = QuantLib.QuoteHandle(QuantLib.SimpleQuote(100.0))
    process = QuantLib.HestonProcess(curve(0.03), curve(0.0), spot, v0, kappa, theta, sigma, rho)
    rough = QuantLib.RoughHestonModel(process, hurst)
    for strike in (75.0, 100.0, 130.0):
        payoff = QuantLib.PlainVanillaPayoff(QuantLib.Option.Call, strike)
        option = QuantLib.VanillaOption(payoff, QuantLib.EuropeanExercise(today + 365))
        prices = []
        for n_steps in (512, 1024):
            option.setPricingEngine(QuantLib.AnalyticRoughHestonEngine(rough, 128, n_steps))
            prices.append(option.NPV())
        limit = prices[1] + (prices[1] - prices[0]) / (2.0**1.6 - 1.0)
        assert lewis_call(PARAMETERS, strike, 1.0) == pytest.approx(limit, abs=1e-6)


@pytest.mark.parametrize("parameters", HESTON_SETS)
@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0])
def test_half_is_heston(parameters, shift):
    *law, expiry = parameters
    u = double([0.05, 1.0, 7.0, 30.0, 80.0])
    real, imaginary = model(*law, 0.5).log_characteristic(u, double(expiry), shift)
    for index, argument in enumerate(u.tolist()):
        expected = heston_log_characteristic(mpmath.mpc(shift, argument), *parameters)
        # what matters is phi: an error of its logarithm counts in proportion to |phi|
        weight = math.exp(min(0.0, float(expected.real)))
        error = abs(complex(real[index].item(), imaginary[index].item()) - complex(expected))
        assert weight * error < 1e-10


@pytest.mark.parametrize("hurst", [0.05, 0.1, 0.3])
def test_adams_scheme_converges_to_the_collocation(hurst):
    law = (*PARAMETERS[:5], hurst)
    real, imaginary = log_characteristic(double([5.0]), 0.5, double(1.0), *map(double, law))
    exact = complex(real.item(), imaginary.item())
    sizes = [128, 256, 512, 1024]
    errors = [abs(fractional_adams(5.0, 0.5, 1.0, *law, n) - exact) for n in sizes]
    slope = math.log(errors[0] / errors[-1]) / math.log(sizes[-1] / sizes[0])
    assert slope == pytest.approx(1.5 + hurst, abs=0.12)  # order 1 + alpha
    assert errors[-1] < 1e-4


@pytest.mark.parametrize("hurst", [0.001, 0.1, 0.5])
@pytest.mark.parametrize("expiry", [1 / 365, 1.0, 30.0])
def test_mass_and_martingale_identities(hurst, expiry):
    """phi(0) = phi(-i) = 1, |phi| <= 1, phi(-u) is the conjugate."""
    rough = model(*PARAMETERS[:5], hurst)
    for shift in (0.0, 1.0):
        real, imaginary = rough.log_characteristic(double([0.0]), double(expiry), shift)
        assert abs(real.item()) < 1e-14
        assert abs(imaginary.item()) < 1e-14
    u = torch.logspace(-3, 7, 40, dtype=torch.float64)
    real, imaginary = rough.log_characteristic(torch.cat([u, -u]), double(expiry))
    assert bool((real <= 0.0).all())
    torch.testing.assert_close(real[:40], real[40:], rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(imaginary[:40], -imaginary[40:], rtol=1e-10, atol=1e-14)


@pytest.mark.slow
def test_many_arguments_equal_few():
    rough, expiry = model(*PARAMETERS), double(0.7)
    u = torch.linspace(0.02, 900.0, 700, dtype=torch.float64)
    many = torch.complex(*rough.log_characteristic(u, expiry, 0.5))
    few = torch.complex(*rough.log_characteristic(u[::20].clone(), expiry, 0.5))
    error = (many[::20] - few).abs() * few.real.exp()
    assert error.max() < 1e-11


def test_batches_equal_one_at_a_time():
    rough = RoughHeston(double([0.04, 0.2]), 0.3, double([[0.04], [0.1], [0.3]]), 0.4, double(-0.7), double([0.1, 0.5]))
    expiry, u = double([0.5, 2.0]), double([0.3, 4.0, 25.0])
    real, imaginary = rough.log_characteristic(u, expiry, 0.5)
    cumulants = rough.cumulants(expiry)
    moments = rough.log_moment(double([0.5, 2.0]), expiry)
    assert real.shape == imaginary.shape == (3, 2, 3)
    assert moments.shape == (3, 2, 2)
    for row in range(3):
        for column in range(2):
            alone = RoughHeston(
                rough.v0[column], rough.kappa, rough.theta[row, 0], rough.sigma, rough.rho, rough.hurst[column]
            )
            one = alone.log_characteristic(u, expiry[column], 0.5)
            torch.testing.assert_close(real[row, column], one[0], rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(imaginary[row, column], one[1], rtol=1e-9, atol=1e-11)
            for many, single in zip(cumulants, alone.cumulants(expiry[column]), strict=True):
                torch.testing.assert_close(many.expand(3, 2)[row, column], single, rtol=1e-9, atol=1e-13)
            torch.testing.assert_close(moments[row, column], alone.log_moment(double([0.5, 2.0]), expiry[column]))


@pytest.mark.parametrize("parameters", HESTON_SETS)
def test_cumulants_at_half_are_those_of_heston(parameters):
    *law, expiry = parameters
    with mpmath.workdps(50):
        series = mpmath.taylor(lambda a: heston_log_characteristic(a, *parameters), 0, 4)
    for order, cumulant in zip((1, 2, 4), model(*law, 0.5).cumulants(double(expiry)), strict=True):
        expected = float(series[order] * math.factorial(order))
        assert cumulant.item() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("hurst", [0.02, 0.1, 0.3])
def test_cumulants_are_derivatives_of_the_characteristic_function(hurst):
    rough, expiry = model(*PARAMETERS[:5], hurst), double(0.8)
    u = double([0.05, 0.1, 0.15, 0.2, 0.25])
    real, imaginary = rough.log_characteristic(u, expiry)
    even = np.linalg.solve(u.numpy()[:, None] ** (2 * np.arange(5) + 2), real.numpy())
    odd = np.linalg.solve(u.numpy()[:, None] ** (2 * np.arange(5) + 1), imaginary.numpy())
    first, second, fourth = (cumulant.item() for cumulant in rough.cumulants(expiry))
    assert first == pytest.approx(odd[0], rel=1e-8)
    assert second == pytest.approx(-2.0 * even[0], rel=1e-8)
    assert fourth == pytest.approx(24.0 * even[1], rel=1e-4)


def test_moments_between_zero_and_one_and_where_they_end():
    order, expiry = double([-2.0, 0.0, 0.3, 0.5, 1.0, 4.0, 60.0]), double(1.0)
    for hurst in (0.1, 0.5):
        rough = model(*PARAMETERS[:5], hurst)
        moments = rough.log_moment(order, expiry)
        for index in (2, 3):
            inside = rough.log_characteristic(double([0.0]), expiry, shift=order[index].item())[0].item()
            assert moments[index].item() == pytest.approx(inside, abs=1e-12)
        assert moments[1] == moments[4] == 0.0
        assert moments[-1] == math.inf
        if hurst == 0.5:
            for index in (0, 5):
                expected = heston_log_characteristic(mpmath.mpf(order[index].item()), *PARAMETERS[:5], 1.0)
                assert moments[index].item() == pytest.approx(float(expected.real), rel=1e-9)
    assert model(*PARAMETERS).log_moment(double([60.0]), double(1e-3)).isfinite().all()


def test_shift_beyond_the_certain_moments_is_refused():
    with pytest.raises(ValueError, match=r"`shift` must lie in \[0, 1\], got 60"):
        log_characteristic(double([0.0]), 60.0, double(1.0), *map(double, PARAMETERS))


def test_an_equation_that_is_not_solved_names_the_element_and_its_parameters():
    # a solution is found, but of no characteristic function: its modulus exceeds 1
    law = (double(0.04), double(1e-9), double(0.04), double([0.1, 1e3]), double(0.9999999), double(0.5))
    values = "at index (1, 1) with `kappa` 1e-09, `sigma` 1000, `rho` 1 and `hurst` 0.5; shorten it, or lower `sigma`"
    with pytest.raises(ValueError, match=r"`expiry` must be short .*, got 1000 " + re.escape(values)):
        log_characteristic(double([1.0, 10.0, 1e4]), 0.0, double([[0.5], [1000.0]]), *law)
    # Newton's method finds none
    law = (double(0.04), double(1e4), double(0.04), double(1e6), double(0.9999999), double(0.5))
    with pytest.raises(ValueError, match=r"`expiry` must be short .*, got 1000 with `kappa` 10000, `sigma` 1e[+]06"):
        log_characteristic(double([5.1282]), 1.0, double(1000.0), *law)


@pytest.mark.parametrize("hurst", [0.01, 0.25, 0.5])
def test_mean_variance_is_a_mittag_leffler_function(hurst):
    kappa, times, alpha = 1.7, [0.01, 0.5, 2.0], mpmath.mpf(hurst) + 0.5
    value = mean_variance(double(times), double(0.01), double(kappa), double(0.09), double(hurst))
    for index, time in enumerate(times):
        with mpmath.workdps(60):
            z = -kappa * mpmath.mpf(time) ** alpha
            relaxation = mpmath.nsum(lambda k, z=z: z**k * mpmath.rgamma(alpha * k + 1), [0, 400])
        assert value[index].item() == pytest.approx(0.09 - 0.08 * float(relaxation), rel=1e-10)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own forward mode
@pytest.mark.parametrize("hurst", [1e-3, 0.2, 0.5])
def test_characteristic_function_and_cumulants_are_differentiable(hurst):
    inputs = [double(value).requires_grad_() for value in (*PARAMETERS[:5], hurst, 0.6)]
    u = double([6.0])

    def logarithm(*values):
        return unchecked(*values[:6]).log_characteristic(u, values[6], 0.5)

    def cumulants(*values):
        return unchecked(*values[:6]).cumulants(values[6])

    for function in (logarithm, cumulants):
        assert torch.autograd.gradcheck(function, inputs, eps=1e-5, atol=1e-6, rtol=1e-5, check_forward_ad=True)
    if hurst == 0.2:
        assert torch.autograd.gradgradcheck(logarithm, inputs, eps=1e-5, atol=1e-5, rtol=1e-4)


def test_derivative_along_the_interpolated_arguments():
    kappa = double(0.3).requires_grad_()
    u = torch.linspace(0.1, 60.0, 200, dtype=torch.float64)

    def both(u):
        law = map(double, (0.04, 0.04, 0.4, -0.7, 0.1))
        v0, theta, sigma, rho, hurst = law
        return log_characteristic(u, 0.5, double(1.0), v0, kappa, theta, sigma, rho, hurst)[0]

    (many,) = torch.autograd.grad(both(u)[::10].sum(), kappa)
    (few,) = torch.autograd.grad(both(u[::10].clone()).sum(), kappa)
    torch.testing.assert_close(many, few, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, -0.01, "`v0` must be 0 or more, got -0.01"),
        (1, 0.0, "`kappa` must be above 0, got 0"),
        (2, -1.0, "`theta` must be above 0, got -1"),
        (3, math.inf, "`sigma` must be finite"),
        (4, 1.0, r"`rho` must lie in \(-1, 1\), got 1"),
        (5, 0.0, r"`hurst` must lie in \(0, 0.5\], got 0"),
        (5, 0.6, r"`hurst` must lie in \(0, 0.5\], got 0.6"),
    ],
)
def test_parameters_outside_their_range_are_named(index, value, message):
    parameters = [*PARAMETERS]
    parameters[index] = value
    with pytest.raises(ValueError, match=message):
        RoughHeston(*parameters)
    with pytest.raises(ValueError, match="do not broadcast"):
        RoughHeston([0.04, 0.05], [0.3, 0.3, 0.3], *PARAMETERS[2:])
