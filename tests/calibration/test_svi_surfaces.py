"""SSVI: no arbitrage at any of its parameters, recovery, a peer, ragged surfaces, quotes that contradict it."""

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares as scipy_least_squares
from torch import Tensor

from qfml.calibration import SsviSurface, Surface, calibrate
from qfml.calibration.ssvi import largest_eta, ssvi_total_variance
from qfml.errors import DataError

EXPIRIES = np.array([0.1, 0.25, 0.5, 1.0, 2.0])


def number(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def durrleman(k: Tensor, theta: Tensor, rho: Tensor, eta: Tensor, gamma: Tensor) -> Tensor:
    """g by derivatives of autograd."""
    k = k.clone().requires_grad_()
    w = ssvi_total_variance(k, theta, rho, eta, gamma)
    (slope,) = torch.autograd.grad(w.sum(), k, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), k)
    k, w, slope = k.detach(), w.detach(), slope.detach()
    return (1.0 - k * slope / (2.0 * w)) ** 2 - slope**2 / 4.0 * (1.0 / w + 0.25) + curvature / 2.0


def ssvi_surface(theta: np.ndarray, expiries: np.ndarray, rho: float, eta: float, gamma: float, n: int = 9) -> Surface:
    k = np.linspace(-2.0, 2.0, n) * np.sqrt(theta)[:, None]
    w = ssvi_total_variance(
        torch.from_numpy(k), torch.from_numpy(theta)[:, None], number(rho), number(eta), number(gamma)
    )
    vol = np.sqrt(w.numpy() / expiries[:, None])
    strike = 100.0 * np.exp(k)
    return Surface(strike=strike.ravel(), expiry=np.repeat(expiries, n), vol=vol.ravel(), forward=100.0)


def test_no_parameter_in_the_box_has_arbitrage() -> None:
    """At the bound of eta and gamma too, where the conditions of the theorems hold with equality."""
    u = torch.rand(4000, 4, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u[:1000, 1], u[:500, 2] = 1.0, 1.0
    rho, gamma, theta = -1.0 + 2.0 * u[:, 0], 0.5 * u[:, 2], torch.exp(-9.0 + 11.0 * u[:, 3])
    eta = u[:, 1] * largest_eta(rho)
    reach = torch.linspace(-12.0, 12.0, 97, dtype=torch.float64)
    k = torch.sinh(reach) / 100.0 * torch.sqrt(theta)
    assert durrleman(k, theta, rho, eta, gamma).min().item() > -1e-9
    later = ssvi_total_variance(k, 1.001 * theta, rho, eta, gamma)
    assert bool((later >= ssvi_total_variance(k, theta, rho, eta, gamma) * (1.0 - 1e-12)).all())
    # and beyond it there is some
    wild = durrleman(torch.linspace(-3.0, 3.0, 601, dtype=torch.float64), *map(number, (0.04, -0.7, 4.0, 0.5)))
    assert wild.min().item() < 0.0


def test_parameters_come_back_from_surfaces_of_different_length() -> None:
    rng = np.random.default_rng(0)
    surfaces, truth, thetas = [], [], []
    for row in range(40):
        n = 5 if row % 3 else 3
        rho, gamma = rng.uniform(-0.9, 0.5), rng.uniform(0.05, 0.48)
        eta = rng.uniform(0.1, 0.95) * 2.0 / np.sqrt(1.0 + abs(rho))
        theta = np.cumsum(rng.uniform(0.02, 0.1, n) * np.diff(EXPIRIES[:n], prepend=0.0))
        surfaces.append(ssvi_surface(theta, EXPIRIES[:n], rho, eta, gamma))
        truth.append((rho, eta, gamma))
        thetas.append(np.pad(theta, (0, 5 - n), constant_values=np.nan))
    result = calibrate(surfaces, "ssvi")
    found = np.stack([result.params[name] for name in ("rho", "eta", "gamma")], axis=-1)
    np.testing.assert_allclose(found, truth, atol=1e-6)
    np.testing.assert_allclose(result.theta, thetas, rtol=1e-6)
    assert result.converged.all()
    assert not any(result.warnings)
    alone = calibrate(surfaces[0], "ssvi")
    assert alone.params["rho"] == pytest.approx(truth[0][0], abs=1e-6)
    assert alone.theta.shape == (3,)


def test_the_dax_fit_has_no_arbitrage_anywhere_and_is_scipys() -> None:
    surface = Surface.dax_2002()
    result = calibrate(surface, SsviSurface())
    shape = [number(float(result.params[name])) for name in ("rho", "eta", "gamma")]
    k = torch.linspace(-2.0, 2.0, 401, dtype=torch.float64)
    times = np.linspace(0.01, result.expiries[-1], 60)
    before = torch.zeros_like(k)
    for years in times:
        vols = torch.from_numpy(result.smile(k, years))
        variance = vols**2 * years
        assert bool((variance > before).all())
        before = variance
        theta = number(float(result.smile(0.0, years)) ** 2 * years)
        assert durrleman(k, theta, *shape).min().item() > 0.0
    places, column = torch.from_numpy(surface.log_moneyness), np.searchsorted(result.expiries, surface.expiry)

    def residuals(x: np.ndarray) -> np.ndarray:
        theta = torch.from_numpy(np.exp(x[3:])[column])
        variance = ssvi_total_variance(places, theta, number(x[0]), number(x[1]), number(x[2]))
        return np.sqrt(variance.numpy() / surface.expiry) - surface.vol

    start = np.concatenate([[-0.5, 1.0, 0.4], np.log(0.07 * result.expiries)])
    best = scipy_least_squares(residuals, start, bounds=([-0.99, 0.0, 0.0] + [-9.0] * 8, [0.99, 1.2, 0.5] + [1.0] * 8))
    assert result.sse == pytest.approx(2e4 * best.cost, rel=1e-6)
    # the errors of the parameters are those of a linear model
    variance = 2.0 * best.cost / (104 - 11) * np.linalg.inv(best.jac.T @ best.jac)
    for position, name in enumerate(("rho", "eta", "gamma")):
        assert result.params[name] == pytest.approx(best.x[position], abs=1e-4)
        assert result.std_error[name] == pytest.approx(np.sqrt(variance[position, position]), rel=1e-2)
    np.testing.assert_allclose(result.std_error["theta"], np.sqrt(np.diag(variance)[3:]) * result.theta, rtol=1e-2)
    assert "rho" in str(result)


def test_falling_quotes_and_too_few_of_them_are_said() -> None:
    theta = np.array([0.01, 0.03, 0.02, 0.05, 0.09])  # the third falls
    result = calibrate(ssvi_surface(theta, EXPIRIES, -0.4, 0.8, 0.3), "ssvi")
    assert any(
        warning.endswith("where the quotes fall (calendar arbitrage): expiry 0.5") for warning in result.warnings
    )
    assert (np.diff(result.theta) > 0.0).all()
    assert result.at_bound["theta"].tolist() == [False, False, True, False, False]
    assert not any(result.at_bound[name] for name in ("rho", "eta", "gamma"))
    few = Surface(strike=[95.0, 105.0], expiry=0.5, vol=[0.21, 0.2], forward=100.0)
    result = calibrate(few, "ssvi")
    assert any("not identified: 2 quotes for 4 parameters" in warning for warning in result.warnings)
    assert np.isinf(result.std_error["rho"])
    assert not any(np.any(flags) for flags in result.identified.values())
    with pytest.raises(DataError, match=r"`expiry` must lie in \(0, 0.5\]"):
        result.smile(0.0, 0.6)


def test_what_is_identified_is_said_where_there_are_quotes() -> None:
    strike, years, theta = np.array([85.0, 100.0, 120.0, 80.0, 115.0]), [0.5] * 3 + [1.0] * 2, [0.02] * 3 + [0.05] * 2
    numbers = (torch.tensor(part, dtype=torch.float64) for part in (np.log(strike / 100.0), theta, -0.4, 0.9, 0.3))
    vol = np.sqrt(ssvi_total_variance(*numbers).numpy() / years)
    five = Surface(strike=strike, expiry=years, vol=vol, forward=100.0)
    silent = Surface(strike=five.strike, expiry=five.expiry, vol=five.vol, forward=100.0, weight=0.0)
    found = calibrate([silent, five, Surface.dax_2002()], "ssvi")
    assert found.identified["theta"].shape == found.theta.shape
    # no numbers, no doubts about them; five quotes for five; enough of them
    assert all(flags.all() for flags in found.identified.values())
    held = np.isnan(found.std_error["rho"]).tolist()
    assert held == [True, True, False]
    assert not any(flags[0].any() for flags in found.at_bound.values())
    assert found.warnings[1][0] == "no standard errors: 5 quotes for 5 parameters"
