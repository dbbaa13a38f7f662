"""SVI: its formula and density, Vogt's smile with and without arbitrage, random smiles, a peer."""

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares as scipy_least_squares
from torch import Tensor
from torch.func import jacrev, vmap

from pricers.black import black_price
from qfml.calibration import Surface, SviSmile, calibrate, svi_smile
from qfml.calibration.svi import (
    density_and_jacobian,
    raw_from_wings,
    raw_jacobian,
    svi_density,
    svi_total_variance,
    wings_from_raw,
    wings_variance_and_jacobian,
)
from qfml.errors import ConfigError

# Axel Vogt's example, Gatheral and Jacquier (2014), Arbitrage-free SVI volatility surfaces, example 3.1: T = 1
VOGT = {"a": -0.0410, "b": 0.1331, "rho": 0.3060, "m": 0.3586, "sigma": 0.4153}
NAMES = tuple(VOGT)


def tensors(values: dict[str, float]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(values[name], dtype=torch.float64) for name in NAMES)


def random_wings(n: int, seed: int) -> Tensor:
    u = torch.rand(n, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    low, high = (
        torch.tensor(x, dtype=torch.float64) for x in ((0.005, 0.03, 0.03, -0.3, 0.05), (0.1, 0.8, 0.8, 0.3, 0.6))
    )
    return low + (high - low) * u


def svi_surface(raw: np.ndarray, expiry: np.ndarray, n: int = 15) -> Surface:
    """Smiles of raw parameters (E, 5) at expiries (E,)."""
    k = np.linspace(-1.0, 1.0, n)
    parts = (torch.from_numpy(part) for part in np.split(raw, 5, axis=1))
    variance, _, _ = svi_total_variance(torch.from_numpy(k), *parts)
    vol = np.sqrt(variance.numpy() / expiry[:, None])
    return Surface(
        strike=np.tile(100.0 * np.exp(k), len(expiry)), expiry=np.repeat(expiry, n), vol=vol.ravel(), forward=100.0
    )


def test_derivatives_are_those_of_autograd() -> None:
    wings, k = random_wings(200, 0), torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)
    raw = raw_from_wings(wings)
    torch.testing.assert_close(wings_from_raw(raw), wings, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(raw_jacobian(wings), vmap(jacrev(raw_from_wings))(wings), rtol=1e-11, atol=1e-12)
    columns = raw.unsqueeze(-2).unbind(-1)
    places = k.expand(len(wings), -1)
    variance, slope, curvature = svi_total_variance(places, *columns)
    density = svi_density(places, *columns)
    for function, value in ((wings_variance_and_jacobian, variance), (density_and_jacobian, density)):
        found, jacobian = function(places, wings)
        torch.testing.assert_close(found, value, rtol=1e-11, atol=1e-13)
        expected = vmap(jacrev(lambda x, at, f=function: f(at, x)[0]))(wings, places)
        torch.testing.assert_close(jacobian, expected, rtol=1e-9, atol=1e-11)
    moving = places.clone().requires_grad_()
    value = svi_total_variance(moving, *columns)[0]
    (first,) = torch.autograd.grad(value.sum(), moving, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), moving)
    torch.testing.assert_close(slope, first.detach(), rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(curvature, second, rtol=1e-9, atol=1e-12)


def test_density_of_vogts_smile_is_negative_where_butterflies_are() -> None:
    k = torch.linspace(-1.5, 1.5, 1501, dtype=torch.float64)
    density = svi_density(k, *tensors(VOGT))
    assert -0.05 < density.min().item() < -0.02
    assert 0.7 < k[density.argmin()].item() < 1.0
    strike, vol = torch.exp(k), torch.sqrt(svi_total_variance(k, *tensors(VOGT))[0])
    calls = black_price(1.0, strike, 1.0, vol)
    butterflies = (calls.diff() / strike.diff()).diff() / (0.5 * (strike[2:] - strike[:-2]))
    d2 = -k / vol - 0.5 * vol
    expected = butterflies * vol[1:-1] * strike[1:-1] * (2.0 * torch.pi) ** 0.5 * torch.exp(0.5 * d2[1:-1] ** 2)
    seen = d2[1:-1].abs() < 4.0  # further out the prices are too small to be differenced twice
    torch.testing.assert_close(density[1:-1][seen], expected[seen], rtol=1e-3, atol=1e-4)


def test_vogts_smile_is_recovered_or_made_free_of_arbitrage() -> None:
    surface = svi_surface(np.array([[VOGT[name] for name in NAMES]]), np.array([1.0]))
    looked_at = calibrate(surface, SviSmile(butterfly_free=False))
    for name, value in VOGT.items():
        assert looked_at.params[name][0] == pytest.approx(value, abs=1e-6), name
    assert not looked_at.butterfly_free.any()
    assert any("negative density at log-moneyness 0." in warning for warning in looked_at.warnings)
    free = calibrate(surface, "svi")
    raw = tuple(torch.tensor(free.params[name][0], dtype=torch.float64) for name in NAMES)
    assert svi_density(torch.linspace(-30.0, 30.0, 60001, dtype=torch.float64), *raw).min().item() > 0.0
    assert free.butterfly_free.all()
    # Gatheral and Jacquier (2014), section 5.1, cure it by c = 0.3493158, v = 0.01548182 in the jump-wings parameters,
    # whose vols are off by 131 basis points in the mean square over the same strikes; least squares does better
    assert 10.0 < free.rmse_bps[0] < 120.0


def test_random_smiles_come_back() -> None:
    wings = random_wings(400, 1)
    clean = svi_density(
        torch.linspace(-3.0, 3.0, 200, dtype=torch.float64), *raw_from_wings(wings).unsqueeze(1).unbind(-1)
    )
    raw = raw_from_wings(wings[clean.amin(-1) > 0.01])[:100].numpy().reshape(10, 10, 5)
    expiry = np.linspace(0.2, 4.0, 10)
    result = calibrate([svi_surface(part, expiry) for part in raw], SviSmile())
    for column, name in enumerate(NAMES):
        np.testing.assert_allclose(result.params[name], raw[:, :, column], atol=1e-6, rtol=1e-6)
    assert result.converged.all()
    assert result.butterfly_free.all()


def test_fits_of_noisy_smiles_are_no_worse_than_scipys() -> None:
    rng = np.random.default_rng(3)
    expiry = np.array([0.3, 1.0, 3.0])
    raw = raw_from_wings(random_wings(3, 5)).numpy()
    clean = svi_surface(raw, expiry)
    vol = clean.vol * (1.0 + 0.003 * rng.standard_normal(len(clean)))
    surface = Surface(strike=clean.strike, expiry=clean.expiry, vol=vol, forward=100.0)
    result = calibrate(surface, SviSmile(butterfly_free=False))
    for row, years in enumerate(expiry):
        mine = surface.expiry == years
        k = torch.from_numpy(surface.log_moneyness[mine])

        def residuals(x: np.ndarray, k: Tensor = k, mine: np.ndarray = mine, years: float = years) -> np.ndarray:
            parts = (torch.tensor(part, dtype=torch.float64) for part in x)
            return np.sqrt(np.maximum(svi_total_variance(k, *parts)[0].numpy(), 1e-12) / years) - vol[mine]

        bounds = ([-1.0, 1e-6, -0.9999, -3.0, 1e-3], [1.0, 2.0, 0.9999, 3.0, 10.0])
        starts = [(0.02, 0.2, r, m, 0.3) for r in (-0.4, 0.4) for m in (-0.2, 0.2)]
        best = min(scipy_least_squares(residuals, x, bounds=bounds, x_scale="jac").cost for x in starts)
        assert (result.residuals[mine] ** 2).sum() <= 2.0 * best * (1.0 + 1e-6), row


@pytest.mark.slow
def test_the_dax_has_no_butterflies_and_says_what_it_cannot_know() -> None:
    surface = Surface.dax_2002()
    result = calibrate(surface, "svi")
    k = torch.linspace(-5.0, 5.0, 4001, dtype=torch.float64)
    for row in range(8):
        raw = tuple(torch.tensor(result.params[name][row], dtype=torch.float64) for name in NAMES)
        assert svi_density(k, *raw).min().item() > 0.0
        slopes = raw[1] * (1.0 + raw[2].abs())
        assert slopes.item() <= 2.0
    assert result.sse < 8.0
    np.testing.assert_allclose(result.sse, 1e4 * np.nansum(result.residuals**2))
    assert any("at its lower bound: right wing" in warning for warning in result.warnings)
    text = str(result)
    assert "rmse bps" in text
    assert text.count("\n") >= 9


def test_three_quotes_are_too_few_and_there_is_no_pricer() -> None:
    surface = Surface(strike=[90.0, 100.0, 110.0], expiry=0.5, vol=[0.22, 0.2, 0.19], forward=100.0)
    result = calibrate(surface, "svi")
    assert any("not identified: 3 quotes for 5 parameters" in warning for warning in result.warnings)
    assert np.isinf(result.std_error["m"]).all()
    with pytest.raises(ConfigError, match="no dynamics"):
        result.pricer()


def test_a_density_that_could_not_be_kept_above_zero_is_said(monkeypatch):
    """Where g is below 0 so far out that the density about the forward does not show it."""
    k = torch.linspace(-0.3, 0.3, 9, dtype=torch.float64)
    day = Surface(strike=np.exp(k.numpy()), expiry=1.0, vol=(0.2 - 0.1 * k + 0.1 * k * k).numpy(), forward=1.0)
    said = "Durrleman's g could not be kept above 0 everywhere: it falls to -3e-06"
    assert not any(said in line for line in calibrate(day, "svi").warnings)
    monkeypatch.setattr(svi_smile, "MARGINS", ())
    monkeypatch.setattr(svi_smile, "PENALTY", ())
    monkeypatch.setattr(svi_smile, "least_density", lambda x, smiles: torch.full_like(x[:, 0], -3e-6))
    assert any(said in line for line in calibrate(day, "svi").warnings)
    assert not any(said in line for line in calibrate(day, SviSmile(butterfly_free=False)).warnings)
