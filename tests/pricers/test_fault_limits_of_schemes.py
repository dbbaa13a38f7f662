"""Limits: a price after a cash dividend, a moment that explodes, a far boundary, Newton steps far from the root."""

import math

import pytest
import torch

import pricers as pr
from pricers.finite_difference.grids import first_difference, second_difference
from pricers.finite_difference.line import Line, folded, solve_line, with_ends
from pricers.models.heston_schemes import QuadraticExponential
from pricers.monte_carlo.conditional import _crossing

TAME = pr.Heston(v0=0.04, kappa=0.5, theta=0.04, sigma=0.5, rho=-0.5)


def test_a_price_does_not_fall_below_zero_on_an_ex_date():
    dividends = pr.CashDividends([0.5], [95.0])
    market = pr.Market(100.0, 0.05, dividends=dividends)
    engine = pr.MonteCarlo(4096, seed=1, controls=False)
    sampler = engine.sampler(pr.Asian(1.0, [0.25, 0.5, 1.0]), pr.BlackScholes(0.4), market)
    spot = sampler._paths(0, 0, 4096, sampler.normals(0, 0, 4096), slice(0, 4096)).spot
    after, end = spot[..., -2], spot[..., -1]
    assert spot.min().item() == 0.0
    assert 0.2 < (after == 0.0).double().mean().item() < 0.8
    assert torch.equal(after == 0.0, end == 0.0)  # what is worth nothing stays so


def test_the_holder_of_a_put_gets_no_more_than_its_strike():
    """A spot of 90 that moves by 0.1 % cannot pay a dividend of 99: it is worth nothing then."""
    market = pr.Market(90.0, 0.05, dividends=pr.CashDividends([0.5], [99.0]))
    found = pr.MonteCarlo(64, seed=1).price(pr.European(50.0, 1.0, "put"), pr.BlackScholes(0.001), market)
    assert found.value.item() == pytest.approx(50.0 * math.exp(-0.05), rel=1e-12)


def step_of(model, martingale, dt, normals):
    scheme = QuadraticExponential(martingale)
    one = torch.tensor(dt, dtype=torch.float64)
    coefficients = scheme.coefficients(model, pr.Market(100.0), torch.zeros_like(one), one)
    return scheme.advance(coefficients, torch.zeros_like(normals), scheme.start(model), normals.unsqueeze(0))


NORMALS = torch.linspace(-4.0, 4.0, 201, dtype=torch.float64)


@pytest.mark.parametrize("theta", [0.04, 0.4])  # the next variance by an exponential, and by a square
def test_where_the_moment_explodes_the_step_is_the_plain_one(theta):
    model = pr.Heston(v0=theta, kappa=2.0, theta=theta, sigma=1.0, rho=0.95)
    assert not QuadraticExponential(True).keeps_forward(model, torch.tensor([20.0], dtype=torch.float64))
    plain, corrected = (step_of(model, martingale, 20.0, NORMALS) for martingale in (False, True))
    assert torch.isfinite(corrected.drift).all()
    assert torch.equal(corrected.drift, plain.drift)


def test_where_the_moment_is_finite_the_step_keeps_the_forward():
    dt = 0.25
    assert QuadraticExponential(True).keeps_forward(TAME, torch.tensor([dt], dtype=torch.float64))
    z = torch.linspace(-8.0, 8.0, 40001, dtype=torch.float64)
    step = step_of(TAME, True, dt, z)
    growth = torch.exp(step.drift + 0.5 * step.residual_variance)
    weight = torch.exp(-0.5 * z**2) / math.sqrt(2.0 * math.pi)
    assert torch.trapezoid(growth * weight, z).item() == pytest.approx(1.0, rel=2e-6)


def nodes():
    return torch.linspace(-2.0, 1.5, 30, dtype=torch.float64).exp()


@pytest.mark.parametrize(("low_given", "high_given"), [(False, False), (True, False), (False, True)])
def test_operators_on_a_line_are_exact_at_ends_that_are_not_given(low_given, high_given):
    x = nodes()
    inner = x[1:-1]
    line = 3.0 + 2.0 * inner
    here = slice(1 if low_given else 0, -1 if high_given else None)
    for bands, expected in ((first_difference(x), 2.0), (second_difference(x), 0.0)):
        lower, diagonal, upper = folded(bands, x, low_given, high_given)
        assert lower.shape == diagonal.shape == inner.shape
        found = diagonal * line
        found[1:] += lower[1:] * line[:-1]
        found[:-1] += upper[:-1] * line[1:]
        torch.testing.assert_close(found[here], torch.full_like(found[here], expected), rtol=0.0, atol=1e-9)


def claim(payoff):
    one = torch.ones((), dtype=torch.float64)
    return Line(payoff, one.unsqueeze(-1), 0.09 * one, lambda time: torch.exp(-0.05 * time), lambda time: one)


def test_ends_continue_the_line_through_the_inner_nodes():
    x = nodes()
    line = 3.0 + 2.0 * x
    torch.testing.assert_close(with_ends(claim(torch.clone), x, line[1:-1], None), line, rtol=1e-12, atol=1e-12)


def test_a_forward_keeps_its_value_up_to_both_ends_of_the_grid():
    x = nodes()
    found = solve_line(claim(lambda s: 5.0 + 2.0 * s), x, 20)
    torch.testing.assert_close(found, (5.0 + 2.0 * x) * math.exp(-0.05), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("vol", [0.02, 0.2, 0.6, 1.0])
@pytest.mark.parametrize("moneyness", [0.7, 1.0, 1.4])
def test_the_noise_at_which_an_average_is_its_strike_is_found(vol, moneyness):
    n, expiry = 12, 2.0
    times = torch.arange(1, n + 1, dtype=torch.float64) * expiry / n
    generator = torch.Generator().manual_seed(1)
    steps = torch.randn(n, 64, dtype=torch.float64, generator=generator) * vol * (expiry / n) ** 0.5
    direction = torch.arange(n, 0, -1, dtype=torch.float64)
    direction = direction / direction.norm()
    slope = (vol * (expiry / n) ** 0.5 * direction).cumsum(0).unsqueeze(-1).expand(n, 64)
    level = math.log(100.0 / n) - 0.5 * vol**2 * times.unsqueeze(-1) + 0.3 * steps.cumsum(0)
    strike = torch.tensor([100.0 * moneyness], dtype=torch.float64)
    place = _crossing(level, slope, strike)
    inside = place.abs() < 12.0
    average = torch.exp(level + slope * place).sum(0)
    print(
        "N", vol, moneyness, inside.sum().item(), (average / strike - 1).abs()[inside].max() if inside.any() else None
    )
    assert ((average / strike - 1.0).abs()[inside] < 1e-12).all()
    assert (torch.sign(average - strike) == -torch.sign(place))[~inside].all()
