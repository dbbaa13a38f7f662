"""Merton's closed form against a published value, mpmath, Fourier inversion and its own limits."""

import math

import mpmath
import pytest
import torch

import pricers as pr
from pricers.analytic.merton import merton_call_put, poisson_probabilities

# Published: Merton set of QuantLib's test suite, call at S = K = 100, r = .05, q = .01, T = 1
PUBLISHED = 8.675684635426279
MODEL = pr.Merton(vol=0.12, intensity=0.4, jump_mean=-0.12, jump_std=0.18)
MARKET = pr.Market(100.0, rate=0.05, dividend_yield=0.01)


def number(x):
    return torch.tensor(x, dtype=torch.float64)


def test_published_value():
    found = pr.price(pr.European(100.0, 1.0), MODEL, MARKET)
    assert found.engine == "analytic"
    assert found.value.item() == pytest.approx(PUBLISHED, rel=1e-12)


def exact_call(forward, strike, expiry, vol, intensity, mean, std):
    """The series in 40 digits."""
    with mpmath.workdps(40):
        forward, strike, expiry, vol, intensity, mean, std = map(
            mpmath.mpf, (forward, strike, expiry, vol, intensity, mean, std)
        )
        total, expected = mpmath.mpf(0), intensity * expiry
        compensator = expected * mpmath.expm1(mean + std**2 / 2)
        for n in range(400):
            ahead = forward * mpmath.exp(n * (mean + std**2 / 2) - compensator)
            deviation = mpmath.sqrt(vol**2 * expiry + n * std**2)
            d1 = mpmath.log(ahead / strike) / deviation + deviation / 2
            black = ahead * mpmath.ncdf(d1) - strike * mpmath.ncdf(d1 - deviation)
            total += mpmath.exp(-expected) * expected**n / mpmath.factorial(n) * black
        return float(total)


@pytest.mark.parametrize("strike", [40.0, 100.0, 260.0])
@pytest.mark.parametrize(
    "law",
    [
        (1.0, 0.12, 0.4, -0.12, 0.18),
        (0.01, 0.3, 2.0, 0.1, 0.0),
        (5.0, 0.2, 8.0, 0.05, 0.3),
        (30.0, 0.1, 2.0, -0.3, 0.1),
    ],
)
def test_equals_the_series_in_forty_digits(strike, law):
    call, put = merton_call_put(number(100.0), number(strike), *map(number, law))
    exact = exact_call(100.0, strike, *law)
    # 1e-14 of the forward, and relative: far out of the money keeps its digits
    assert call.item() == pytest.approx(exact, rel=2e-13, abs=1e-14 * 100.0)
    assert (call - put).item() == pytest.approx(100.0 - strike, abs=1e-11)


def test_equals_fourier_over_a_grid():
    options = pr.European(number([60.0, 90.0, 100.0, 140.0])[:, None], number([0.05, 0.5, 3.0]), "put")
    series, fourier = pr.Analytic().price(options, MODEL, MARKET), pr.Fourier().price(options, MODEL, MARKET)
    assert ((series.value - fourier.value).abs() <= fourier.error_bound + series.error_bound).all()


def test_without_jumps_is_black():
    model = pr.Merton(0.2, 0.0, -0.1, 0.2)
    call = pr.European([80.0, 100.0, 130.0], 0.7)
    torch.testing.assert_close(
        pr.Analytic().price(call, model, MARKET).value,
        pr.Analytic().price(call, pr.BlackScholes(0.2), MARKET).value,
        rtol=1e-14,
        atol=1e-14,
    )


def test_probabilities_are_those_of_poisson():
    mean = number([0.0, 1e-8, 0.3, 20.0, 900.0])
    found = poisson_probabilities(mean, 1500)
    torch.testing.assert_close(found.sum(-1), torch.ones_like(mean), rtol=0.0, atol=1e-12)
    count = torch.arange(1500, dtype=torch.float64)
    torch.testing.assert_close((found * count).sum(-1), mean, rtol=1e-11, atol=0.0)
    assert found[2, 2].item() == pytest.approx(math.exp(-0.3) * 0.3**2 / 2.0, rel=1e-14)


@pytest.mark.parametrize("intensity", [0.0, 0.4, 30.0])
@pytest.mark.parametrize("std", [0.0, 0.18])
def test_every_derivative_twice(intensity, std):
    def price(vol, intensity, mean, std, expiry):
        return torch.stack(merton_call_put(number(100.0), number(95.0), expiry, vol, intensity, mean, std))

    point = tuple(number(x).requires_grad_() for x in (0.12, intensity, -0.12, std, 1.0))
    if intensity > 0.0 and std > 0.0:
        assert torch.autograd.gradcheck(price, point, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(price, point)
    for row in torch.autograd.functional.hessian(lambda *x: price(*x)[0], point):
        assert all(bool(entry.isfinite()) for entry in row)


def test_slope_in_the_intensity_at_zero_is_the_value_of_one_jump():
    """d/d intensity at 0 is T times the mean change of the price by one jump, less the drift that pays for it."""
    zero = number(0.0).requires_grad_()
    law = [number(x) for x in (1.0, 0.2)]
    mean, std = number(-0.1), number(0.15)
    call, _ = merton_call_put(number(100.0), number(105.0), *law, zero, mean, std)
    (slope,) = torch.autograd.grad(call, zero)
    step = 1e-5
    up = exact_call(100.0, 105.0, 1.0, 0.2, step, -0.1, 0.15)
    upper = exact_call(100.0, 105.0, 1.0, 0.2, 2 * step, -0.1, 0.15)
    none = exact_call(100.0, 105.0, 1.0, 0.2, 0.0, -0.1, 0.15)
    assert slope.item() == pytest.approx((4 * up - upper - 3 * none) / (2 * step), rel=1e-6)


def test_single_precision():
    model = pr.Merton(*(torch.tensor(x, dtype=torch.float32) for x in (0.12, 0.4, -0.12, 0.18)))
    market = pr.Market(*(torch.tensor(x, dtype=torch.float32) for x in (100.0, 0.05, 0.01)))
    one = torch.tensor(1.0, dtype=torch.float32)
    found = pr.Analytic().price(pr.European(100.0 * one, one), model, market).value
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(PUBLISHED, rel=2e-6)
