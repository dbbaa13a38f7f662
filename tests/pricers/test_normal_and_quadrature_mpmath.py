"""The shared normal law and quadrature against mpmath and exact integrals."""

import mpmath
import pytest
import torch

from pricers.normal import deviation, mills_ratio, normal_cdf, normal_density
from pricers.quadrature import gauss_legendre

POINTS = [-37.0, -20.0, -8.0, -1.0, 0.0, 0.3, 5.0]


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def expected(function):
    with mpmath.workdps(40):
        return double([float(function(mpmath.mpf(x))) for x in POINTS])


def test_normal_law_keeps_its_digits_in_the_lower_tail():
    x = double(POINTS)
    torch.testing.assert_close(normal_cdf(x), expected(mpmath.ncdf), rtol=1e-13, atol=0.0)
    torch.testing.assert_close(normal_density(x), expected(mpmath.npdf), rtol=1e-13, atol=0.0)


def test_mills_ratio_is_upper_tail_over_density():
    exact = expected(lambda x: mpmath.ncdf(-x) / mpmath.npdf(x))
    # at -37 it is near exp(37^2 / 2), which multiplies the rounding of the argument by 37^2
    torch.testing.assert_close(mills_ratio(double(POINTS)), exact, rtol=37.0**2 * 2.3e-16, atol=0.0)


def test_normal_law_derivatives_match_differences_in_both_modes():
    x = double([-6.0, -0.5, 2.0]).requires_grad_()
    for function in (normal_cdf, normal_density, mills_ratio):
        assert torch.autograd.gradcheck(function, x, check_forward_ad=True, atol=1e-8)
        assert torch.autograd.gradgradcheck(function, x, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_deviation_is_the_root_and_has_no_gradient_at_zero(dtype):
    variance = torch.tensor([-1e-20, 0.0, 1e-12, 0.09], dtype=dtype, requires_grad=True)
    for least in (None, 1e-14):
        found = deviation(variance, least)
        assert bool((found > 0).all())
        torch.testing.assert_close(found[2:], torch.tensor([1e-6, 0.3], dtype=dtype))
        (gradient,) = torch.autograd.grad(found.sum(), variance)
        assert gradient[:2].tolist() == [0.0, 0.0]
        torch.testing.assert_close(gradient[2:], torch.tensor([0.5e6, 0.5 / 0.3], dtype=dtype))


@pytest.mark.parametrize("n", [1, 2, 5, 16, 32])
def test_quadrature_is_exact_up_to_its_degree_and_no_further(n):
    nodes, weights = gauss_legendre(n, double(0.0))
    for degree in range(2 * n):
        exact = 0.0 if degree % 2 else 2.0 / (degree + 1)
        assert (weights * nodes**degree).sum().item() == pytest.approx(exact, abs=1e-14)
    # the error on the next even power is known: 2^(2n+1) (n!)^4 / ((2n+1) ((2n)!)^2)
    error = 2.0 ** (2 * n + 1) * float(mpmath.factorial(n) ** 4 / mpmath.factorial(2 * n) ** 2) / (2 * n + 1)
    assert 2.0 / (2 * n + 1) - (weights * nodes ** (2 * n)).sum().item() == pytest.approx(error, rel=1e-3, abs=1e-14)
    assert gauss_legendre(n, torch.zeros(1))[0].dtype == torch.float32
