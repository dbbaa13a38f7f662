"""COS against Lewis' integral over a wide box of parameters, a day to 30 years, ten standard deviations."""

import math

import pytest
import torch

from pricers.analytic.fourier_engine import model_law
from pricers.fourier import cos_european, lewis_european
from pricers.models import Bates, Heston, Merton


def tensor(value):
    return torch.tensor(value, dtype=torch.float64)


def box(seed, n):
    generator = torch.Generator().manual_seed(seed)

    def uniform(low, high):
        return low + (high - low) * torch.rand(n, generator=generator, dtype=torch.float64)

    def spread(low, high):
        return torch.exp(uniform(math.log(low), math.log(high)))

    return uniform, spread


def against_lewis(model, expiry, tolerance):
    """The largest of (error of COS) / (what its bound admits), after asserting the error itself."""
    deviation = torch.sqrt(model.cumulants(expiry)[1])
    distances = tensor([-10.0, -4.0, -1.5, -0.5, 0.0, 0.3, 1.0, 3.0, 10.0])
    # Lewis' integral carries the factor sqrt(K / F), so that its own rounding limits the strikes
    log_strike = (deviation.unsqueeze(-1) * distances).clamp(-25.0, 6.0)
    value, bound = cos_european(model_law(model, expiry), log_strike)
    assert not value.isnan().any()
    for i in range(len(expiry)):
        one = type(model)(**{name: parameter[i] for name, parameter in model.parameters().items()})
        exact, moved = lewis_european(
            lambda u, shift, one=one, time=expiry[i]: one.log_characteristic(u, time, shift),
            log_strike[i],
            deviation[i].item(),
        )
        error = (value[i] - exact).abs()
        rounding = moved + 1e-12 * (1.0 + torch.exp(0.5 * log_strike[i]))
        described = f"{ {name: p[i].item() for name, p in model.parameters().items()} } expiry {expiry[i].item()}"
        assert error.max() <= tolerance + rounding.max(), described
        assert (error <= bound[i] + rounding).all(), described


def test_heston_box():
    n = 150
    uniform, spread = box(0, n)
    model = Heston(spread(1e-4, 0.5), spread(0.1, 20.0), spread(0.01, 0.5), spread(0.02, 3.5), uniform(-0.99, 0.99))
    against_lewis(model, spread(1 / 365, 30.0), 1e-8)


def test_bates_and_merton_boxes():
    n = 60
    uniform, spread = box(1, n)
    heston = (spread(1e-3, 0.5), spread(0.1, 20.0), spread(0.01, 0.5), spread(0.02, 2.0), uniform(-0.9, 0.9))
    jumps = (spread(0.01, 3.0), uniform(-0.4, 0.3), uniform(0.0, 0.4))
    expiry = spread(1 / 365, 10.0)
    against_lewis(Bates(*heston, *jumps), expiry, 1e-8)
    against_lewis(Merton(spread(0.03, 0.6), *jumps), expiry, 1e-8)


@pytest.mark.slow
def test_heston_box_of_two_thousand():
    n = 2000
    uniform, spread = box(2, n)
    model = Heston(spread(1e-4, 0.5), spread(0.1, 20.0), spread(0.01, 0.5), spread(0.02, 3.5), uniform(-0.99, 0.99))
    against_lewis(model, spread(1 / 365, 30.0), 1e-8)


def test_markets_that_break_feller():
    # Andersen (2008), table 1; the optimum of the DAX surface; Buehler et al. (2019)
    v0, kappa, theta, sigma, rho, expiry = tensor(
        [
            [0.04, 0.5, 0.04, 1.0, -0.9, 10.0],
            [0.04, 0.3, 0.04, 0.9, -0.5, 15.0],
            [0.09, 1.0, 0.09, 1.0, -0.3, 5.0],
            [0.195661, 15.662486, 0.074591, 3.361902, -0.511491, 13 / 365],
            [0.195661, 15.662486, 0.074591, 3.361902, -0.511491, 2.0],
            [0.04, 1.0, 0.04, 2.0, -0.7, 30 / 365],
            [0.0, 1.0, 0.04, 1.0, -0.7, 1 / 365],  # the variance starts at 0
            [1e-6, 1.0, 0.04, 0.5, -0.7, 1 / 365],
            [0.04, 1.0, 0.04, 1.0, -0.9999, 1.0],
            [0.04, 1.0, 0.04, 1.0, 0.9999, 1.0],
        ]
    ).unbind(1)
    against_lewis(Heston(v0, kappa, theta, sigma, rho), expiry, 1e-8)


def test_heavy_tails_need_more_than_the_range_of_the_cumulants():
    # Andersen's first case: ten standard deviations, as Fang and Oosterlee (2008), eq. 49, lose the left tail
    model, expiry = Heston(*tensor([[0.04], [0.5], [0.04], [1.0], [-0.9]])), tensor([10.0])
    first, second, fourth = model.cumulants(expiry)
    half = 10.0 * torch.sqrt(second + torch.sqrt(fourth))
    log_strike = tensor([[-1.0, 0.0, 0.3]])
    exact, _ = lewis_european(
        lambda u, shift: model.log_characteristic(u, expiry, shift), log_strike[0], second.sqrt().item()
    )
    value, bound = cos_european(model_law(model, expiry), log_strike)
    assert (value - exact).abs().max() < 1e-11
    assert bound.max() < 1e-10
    # what lies to the left of the cumulants' range (Gil-Pelaez, 1951): an error of the forward 10,000 times that above
    left = first - half
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) * 0.01
    real, imaginary = model.log_characteristic(u, expiry)
    mass = 0.5 - (torch.exp(real) * torch.sin(imaginary - u * left) / u).sum().item() * 0.01 / math.pi
    assert mass > 1e-6


def test_too_few_terms_are_admitted_in_the_bound():
    model, expiry = Heston(*tensor([[0.04], [4.0], [0.25], [1.0], [-0.5]])), tensor([1.0])
    log_strike = tensor([[-0.3, 0.0, 0.3]])
    exact, _ = cos_european(model_law(model, expiry), log_strike)
    for n_terms in (4, 8, 16, 32, 64):
        value, bound = cos_european(model_law(model, expiry), log_strike, n_terms)
        assert ((value - exact).abs() <= bound).all()
    assert bound.max() < 1e-6
