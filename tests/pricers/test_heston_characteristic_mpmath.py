"""Characteristic functions, moments and cumulants against the complex formulas in high precision."""

import math

import mpmath
import pytest
import torch

from pricers.characteristic import (
    heston_cumulants,
    heston_log_characteristic,
    heston_log_moment,
    jump_cumulants,
    jump_log_characteristic,
    jump_log_moment,
    normal_log_characteristic,
)
from pricers.models import Bates, Heston, Merton

# torch warns so at its own first use of forward mode
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


def tensor(value):
    return torch.tensor(value, dtype=torch.float64)


def uniform(generator, low, high):
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def random_heston(seed, n, largest_sigma=5.0):
    """Expiry from a day to 30 years; Feller's condition violated up to a thousandfold."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        expiry = math.exp(uniform(generator, math.log(1 / 365), math.log(30.0)))
        yield (
            expiry,
            10 ** uniform(generator, -5.0, 0.0),
            10 ** uniform(generator, -2.0, 1.3),
            10 ** uniform(generator, -3.0, 0.0),
            10 ** uniform(generator, -5.0, math.log10(largest_sigma)),
            uniform(generator, -0.999, 0.999),
        )


def reference(z, expiry, v0, kappa, theta, sigma, rho):
    """Albrecher et al. (2007), eq. 2, as printed."""
    beta = kappa - rho * sigma * z
    d = mpmath.sqrt(beta * beta - sigma * sigma * (z * z - z))
    g = (beta - d) / (beta + d)
    e = mpmath.exp(-d * expiry)
    level = kappa * theta / sigma**2 * ((beta - d) * expiry - 2 * mpmath.log((1 - g * e) / (1 - g)))
    return level + v0 * (beta - d) / sigma**2 * (1 - e) / (1 - g * e)


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0])
def test_heston_log_characteristic_equals_mpmath(shift):
    for parameters in random_heston(1, 40):
        for u in (1e-3, 0.3, 5.0, 200.0):
            with mpmath.workdps(60):
                exact = complex(reference(mpmath.mpc(shift, u), *map(mpmath.mpf, parameters)))
            real, imaginary = heston_log_characteristic(tensor(u), *map(tensor, parameters), shift=shift)
            # rounding of terms that are as large as the logarithm itself
            assert abs(complex(real.item(), imaginary.item()) - exact) <= 1e-12 * (1.0 + abs(exact))


def test_heston_log_characteristic_has_no_jump_where_the_principal_branch_of_the_printed_form_has():
    # 30 years, a large volatility of variance: the angle turns many times
    parameters = [tensor(value) for value in (30.0, 0.04, 0.5, 0.04, 2.0, -0.9)]
    u = torch.linspace(1e-3, 60.0, 20_001, dtype=torch.float64)
    _, imaginary = heston_log_characteristic(u, *parameters)
    steps = imaginary.diff()
    assert steps.diff().abs().max() < 1e-4  # a jump would be of the order of 2 pi kappa theta / sigma^2


def test_heston_log_moment_equals_mpmath_and_explodes_where_the_riccati_equation_does():
    n_infinite = 0
    for parameters in random_heston(2, 40):
        expiry, _, kappa, theta, sigma, rho = parameters
        scale = math.sqrt(-heston_cumulants(*map(tensor, parameters))[0].item() * 2.0)
        for order in (-6.0 / scale, -1.0 / scale, -0.1 / scale, 0.3, 1.0 + 0.1 / scale, 1.0 + 4.0 / scale):
            moment = heston_log_moment(tensor(order), *map(tensor, parameters)).item()
            # the explosion: D' = (z^2 - z)/2 - beta D + sigma^2 D^2 / 2 reaches infinity before expiry
            p, beta = order * order - order, kappa - rho * sigma * order
            square = beta * beta - sigma * sigma * p
            if p <= 0.0 or (square >= 0.0 and beta > 0.0):
                explosion = math.inf
            elif square >= 0.0:
                root = math.sqrt(square)
                explosion = math.log((beta - root) / (beta + root)) / root
            else:
                root = math.sqrt(-square)
                explosion = 2.0 / root * (math.pi * (beta > 0.0) - math.atan(root / beta))
            if expiry >= explosion:
                n_infinite += 1
                assert moment == math.inf
                continue
            with mpmath.workdps(60):
                exact = float(mpmath.re(reference(mpmath.mpf(order), *map(mpmath.mpf, parameters))))
            # the mean reversion term cancels to this much of it
            assert moment == pytest.approx(exact, rel=1e-9, abs=1e-12 * (1.0 + kappa * theta * expiry / sigma**2))
    assert n_infinite > 10


def test_heston_cumulants_equal_derivatives_in_high_precision():
    for parameters in random_heston(3, 40):
        cumulants = heston_cumulants(*map(tensor, parameters))
        with mpmath.workdps(120):
            exact = [mpmath.mpf(value) for value in parameters]
            for order, cumulant in zip((1, 2, 4), cumulants, strict=True):
                # beside 0, where the printed form is 0 / 0
                derivative = mpmath.diff(
                    lambda z, exact=exact: reference(z, *exact), mpmath.mpf(10) ** -40, order, h=mpmath.mpf(10) ** -18
                )
                assert cumulant.item() == pytest.approx(float(derivative), rel=2e-12, abs=0.0)


def test_jump_characteristic_moment_and_cumulants_equal_mpmath():
    intensity, mean, std, expiry = 0.7, -0.15, 0.3, 2.5

    def exact(z):
        growth = mpmath.exp(mpmath.mpf(mean) + mpmath.mpf(std) ** 2 / 2) - 1
        return intensity * expiry * (mpmath.exp(z * mean + z * z * std**2 / 2) - 1 - z * growth)

    jumps = [tensor(value) for value in (expiry, intensity, mean, std)]
    for shift in (0.0, 0.5, 1.0):
        for u in (1e-4, 0.5, 3.0, 40.0):
            real, imaginary = jump_log_characteristic(tensor(u), *jumps, shift=shift)
            value = complex(exact(mpmath.mpc(shift, u)))
            assert abs(complex(real.item(), imaginary.item()) - value) < 1e-13 * (1.0 + abs(value))
    for order in (-4.0, 0.5, 7.0):
        assert jump_log_moment(tensor(order), *jumps).item() == pytest.approx(float(exact(order)), rel=1e-13)
    with mpmath.workdps(40):
        for order, cumulant in zip((1, 2, 4), jump_cumulants(*jumps), strict=True):
            assert cumulant.item() == pytest.approx(float(mpmath.diff(exact, 0, order)), rel=1e-12)


MODELS = (
    Heston(v0=0.04, kappa=1.5, theta=0.09, sigma=0.8, rho=-0.7),
    Bates(0.04, 1.5, 0.09, 0.8, 0.6, intensity=0.8, jump_mean=-0.2, jump_std=0.15),
    Merton(vol=0.2, intensity=1.5, jump_mean=0.1, jump_std=0.05),
)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.kind)
def test_the_forward_is_a_martingale(model):
    expiry = tensor([0.01, 1.0, 30.0])
    assert model.log_moment(tensor([1.0]), expiry).abs().max() < 1e-13
    # z = 1 + iu, u -> 0
    real, imaginary = model.log_characteristic(tensor([1e-9]), expiry, shift=1.0)
    assert real.abs().max() < 1e-13
    assert imaginary.abs().max() < 1e-7


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.kind)
def test_cumulants_are_the_derivatives_of_the_log_moment(model):
    expiry = tensor(1.3)
    order = tensor([0.0]).requires_grad_()
    moment = model.log_moment(order, expiry)
    derivatives = []
    for _ in range(4):
        (moment,) = torch.autograd.grad(moment.sum(), order, create_graph=True)
        derivatives.append(moment.item())
    first, second, fourth = (cumulant.item() for cumulant in model.cumulants(expiry))
    # the moment formula cancels in its fourth derivative
    assert (first, second, fourth) == pytest.approx((derivatives[0], derivatives[1], derivatives[3]), rel=1e-8)


def test_small_volatility_of_variance_tends_to_the_normal_law_without_losing_digits():
    v0, kappa, theta, expiry = (tensor(value) for value in (0.04, 1.5, 0.09, 2.0))
    mean = theta + (v0 - theta) * (-torch.expm1(-kappa * expiry)) / (kappa * expiry)
    u = tensor([0.1, 1.0, 10.0])
    limit = normal_log_characteristic(u, mean * expiry)
    for sigma in (1e-5, 1e-9, 1e-13):
        real, imaginary = heston_log_characteristic(u, expiry, v0, kappa, theta, tensor(sigma), tensor(-0.7))
        for part, exact in zip((real, imaginary), limit, strict=True):
            # the first-order term is of the order of sigma u^3
            assert ((part - exact).abs() <= 200.0 * sigma + 1e-13 * exact.abs()).all()


def test_log_characteristic_and_cumulants_pass_gradcheck_of_both_modes_and_second_order():
    values = [1.7, 0.3, 0.04, 1.5, 0.09, 0.8, -0.7]
    checks = {"check_forward_ad": True, "check_undefined_grad": False}  # the latter is for hand-written derivatives
    inputs = tuple(tensor(value).requires_grad_() for value in values)
    assert torch.autograd.gradcheck(heston_log_characteristic, inputs, fast_mode=True, **checks)
    assert torch.autograd.gradgradcheck(heston_log_characteristic, inputs, fast_mode=True)
    assert torch.autograd.gradcheck(heston_cumulants, inputs[1:], fast_mode=True, **checks)
    long = (tensor(30.0).requires_grad_(), *inputs[2:])  # the stationary branch
    assert torch.autograd.gradcheck(heston_cumulants, long, fast_mode=True, **checks)
    jumps = tuple(tensor(value).requires_grad_() for value in (1.7, 0.3, 0.8, -0.2, 0.15))
    assert torch.autograd.gradcheck(jump_log_characteristic, jumps, **checks)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("v0", -0.01, "`v0` must be 0 or more, got -0.01"),
        ("kappa", 0.0, "`kappa` must be above 0, got 0"),
        ("theta", 0.0, "`theta` must be above 0, got 0"),
        ("sigma", 0.0, "`sigma` must be above 0, got 0"),
        ("rho", 1.0, r"`rho` must lie in \(-1, 1\), got 1"),
        ("intensity", -0.1, "`intensity` must be 0 or more, got -0.1"),
        ("jump_std", -0.1, "`jump_std` must be 0 or more, got -0.1"),
        ("jump_mean", math.nan, "`jump_mean` must be finite, got nan"),
    ],
)
def test_parameters_outside_their_bounds_are_refused(name, value, message):
    valid = {"v0": 0.04, "kappa": 1.0, "theta": 0.04, "sigma": 0.5, "rho": -0.5}
    valid |= {"intensity": 0.1, "jump_mean": -0.1, "jump_std": 0.1}
    with pytest.raises(ValueError, match=message):
        Bates(**(valid | {name: value}))
    if name in ("v0", "kappa", "theta", "sigma", "rho"):
        with pytest.raises(ValueError, match=message):
            Heston(**{key: number for key, number in (valid | {name: value}).items() if key in list(valid)[:5]})
    else:
        with pytest.raises(ValueError, match=message):
            Merton(
                vol=0.2, **{key: number for key, number in (valid | {name: value}).items() if key in list(valid)[5:]}
            )


def test_parameters_that_do_not_broadcast_are_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"`v0` of shape \(2,\) and `kappa` of shape \(3,\) do not broadcast"):
        Heston(v0=[0.04, 0.05], kappa=[1.0, 2.0, 3.0], theta=0.04, sigma=0.5, rho=-0.5)
