"""Hagan's smile in units of the forward: values, derivatives, the level of an at-the-money vol, the density."""

import numpy as np
import pytest
import QuantLib
import torch
from torch import Tensor

from pricers.black import black_price
from qfml.calibration.sabr import (
    level_at_the_money,
    level_slopes,
    sabr_density,
    sabr_vols,
    sabr_vols_and_jacobian,
)


def number(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def random_smiles(n: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Log-moneyness (n, 11), then expiry, level, beta, rho, nu of shape (n, 1), to the ends of their ranges."""
    u = torch.rand(n, 5, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    k = torch.linspace(-1.0, 1.0, 11, dtype=torch.float64).expand(n, -1).clone()
    k[:, 4] *= 1e-7  # as good as at the money, where the formula is 0 / 0
    nu = 3.0 * u[:, 4]
    nu[: n // 50] = 0.0
    rho = -1.0 + 2.0 * u[:, 3]
    return k, 0.02 + 5.0 * u[:, 0], 0.05 + u[:, 1], u[:, 2], rho, nu


def test_vols_are_quantlibs() -> None:
    k, *parts = random_smiles(60)
    vols = sabr_vols(k, *parts)
    for row in range(len(k)):
        expiry, level, beta, rho, nu = (part[row].item() for part in parts)
        forward = 100.0
        alpha = level * forward ** (1.0 - beta)
        for place in (0, 5, 10):
            strike = forward * float(np.exp(k[row, place].item()))
            expected = QuantLib.sabrVolatility(strike, forward, expiry, alpha, beta, nu, rho)
            assert vols[row, place].item() == pytest.approx(expected, rel=1e-10)


def test_jacobian_is_that_of_autograd() -> None:
    k, expiry, level, beta, rho, nu = random_smiles(300)
    vols, jacobian = sabr_vols_and_jacobian(k, expiry, level, beta, rho, nu)
    assert torch.equal(vols, sabr_vols(k, expiry, level, beta, rho, nu))
    names = ("level", "rho", "nu", "beta")
    parts = {name: part.expand(k.shape).clone().requires_grad_() for name, part in zip(names, (level, rho, nu, beta))}
    expected = torch.autograd.grad(sabr_vols(k, expiry, **parts).sum(), list(parts.values()))
    # the bound is that of the series near the money: 1e-8 of the slope
    torch.testing.assert_close(jacobian, torch.stack(expected, dim=-1), rtol=1e-7, atol=1e-9)


def test_level_is_the_smallest_positive_root_of_the_cubic() -> None:
    _, expiry, vol, beta, rho, nu = (part[:, 0] for part in random_smiles(400, seed=1))
    level = level_at_the_money(vol, expiry, beta, rho, nu)
    n_none = 0
    for row in range(len(vol)):
        t, sigma, b, r, v = (part[row].item() for part in (expiry, vol, beta, rho, nu))
        roots = np.roots([(1 - b) ** 2 * t / 24, 0.25 * r * b * v * t, 1 + (2 - 3 * r * r) / 24 * v * v * t, -sigma])
        real = np.sort(roots.real[(np.abs(roots.imag) < 1e-9 * np.abs(roots)) & (roots.real > 0.0)])
        if torch.isnan(level[row]):
            n_none += 1
            # none, or one past the point where the formula bends back
            assert len(real) < 2
        else:
            assert level[row].item() == pytest.approx(real[0], rel=1e-9)
    assert 0 < n_none < 40
    back = sabr_vols(torch.zeros_like(vol), expiry, level, beta, rho, nu)
    found = ~level.isnan()
    torch.testing.assert_close(back[found], vol[found], rtol=1e-12, atol=0.0)


def test_level_derivatives_are_those_of_the_implicit_function() -> None:
    _, expiry, vol, beta, rho, nu = (part[:, 0] for part in random_smiles(200, seed=2))
    level = level_at_the_money(vol, expiry, beta, rho, nu)
    found = ~level.isnan()
    slopes = level_slopes(level, expiry, beta, rho, nu)
    step = 1e-6
    for column, moved in enumerate(((step, 0.0), (0.0, step))):
        ends = [level_at_the_money(vol, expiry, beta, rho + s * moved[0], nu + s * moved[1]) for s in (1.0, -1.0)]
        expected = (ends[0] - ends[1]) / (2.0 * step)
        smooth = found & expected.isfinite() & (expected.abs() < 10.0)  # not beside the end of the roots
        assert int(smooth.sum()) > 150
        torch.testing.assert_close(slopes[column][smooth], expected[smooth], rtol=1e-4, atol=1e-6)
    rho = rho.clone().requires_grad_()
    (automatic,) = torch.autograd.grad(level_at_the_money(vol, expiry, beta, rho, nu)[found].sum(), rho)
    torch.testing.assert_close(automatic[found], slopes[0][found], rtol=1e-10, atol=1e-12)


def test_density_is_negative_where_butterflies_of_prices_are() -> None:
    """Alpha .25, nu .3, rho -.8, beta .3, ten years (Antonov and Spector, 2012): the formula fails at low strikes."""
    numbers = [number(x) for x in (10.0, 0.25, 0.3, -0.8, 0.3)]
    k = torch.linspace(-3.0, 1.5, 901, dtype=torch.float64)
    density = sabr_density(k, *numbers)
    vols = sabr_vols(k, *numbers)
    strike = torch.exp(k)
    calls = black_price(1.0, strike, 10.0, vols)
    slopes = calls.diff() / strike.diff()
    butterflies = slopes.diff() / (0.5 * (strike[2:] - strike[:-2]))
    inner = density[1:-1]
    clear = butterflies.abs() > 1e-3
    assert bool((inner < 0.0).any())
    assert bool((inner > 0.0).any())
    assert torch.equal((inner > 0.0)[clear], (butterflies > 0.0)[clear])
    # g is the density of the log price over n(d2) / total vol
    total = vols * 10.0**0.5
    d2 = -k / total - 0.5 * total
    normal = torch.exp(-0.5 * d2**2) / (2.0 * torch.pi) ** 0.5 / total
    torch.testing.assert_close((inner * normal[1:-1] / strike[1:-1]), butterflies, rtol=2e-3, atol=2e-4)
