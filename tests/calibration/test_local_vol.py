"""Local volatility: what flat quotes give, that finite differences give the quotes back, ragged and broken surfaces."""

import numpy as np
import pytest
import torch

import pricers as pr
from pricers import FiniteDifference
from qfml.calibration import LocalVolSurface, Surface, calibrate
from qfml.calibration.local_vol import LocalVolCalibration
from qfml.errors import ConfigError, DataError

EXPIRIES = np.array([0.5, 1.0])


def heston_surface() -> Surface:
    """Vols of a Heston model: a smile without arbitrage that is none of the fit's splines."""
    strike = np.array([80.0, 90.0, 100.0, 110.0, 125.0])
    option = pr.European(strike=torch.from_numpy(strike), expiry=torch.from_numpy(EXPIRIES)[:, None], option="call")
    model = pr.Heston(v0=0.04, kappa=2.0, theta=0.05, sigma=0.4, rho=-0.6)
    price = pr.price(option, model, pr.Market(spot=100.0)).value
    vol = pr.implied_vol(price, 100.0, option.strike, option.expiry).numpy()
    return Surface(strike=np.tile(strike, 2), expiry=np.repeat(EXPIRIES, 5), vol=vol.ravel(), forward=100.0)


def ragged_surface(whole: Surface) -> Surface:
    kept = np.array([0, 2, 4, 5, 6, 7, 8, 9])
    return Surface(strike=whole.strike[kept], expiry=whole.expiry[kept], vol=whole.vol[kept], forward=100.0)


@pytest.fixture(scope="module")
def fitted() -> LocalVolCalibration:
    """A surface with fewer quotes at its first expiry, and one that cannot be fitted."""
    lone = Surface(strike=[90.0, 100.0, 100.0], expiry=[0.5, 0.5, 1.0], vol=[0.2, 0.2, 0.2], forward=100.0)
    # a knot for each quote: enough for smooth smiles, and fast
    return calibrate([ragged_surface(heston_surface()), lone], LocalVolSurface(knots_per_quote=1))


def test_finite_differences_give_the_quotes_back(fitted: LocalVolCalibration) -> None:
    assert fitted.rmse_bps[0] < 2.0
    assert set(fitted.rmse_bps_by_expiry()) == set(EXPIRIES)
    coarse, fine = (fitted.repriced(engine=FiniteDifference(n, n // 2)) for n in (32, 64))
    # against the fitted surface what is left is the grid's error, which falls with its square
    assert fine.local_vol_max_bps < 12.0
    assert fine.local_vol_rmse_bps < 0.5 * coarse.local_vol_rmse_bps
    assert fine.rmse_bps < fitted.rmse_bps[0] + 8.0
    np.testing.assert_allclose(fine.fitted, fitted.residuals[0, :8])
    assert (fine.bound > 0.0).all()
    assert "finite differences under the local vol" in str(fine)


def test_expiries_of_different_length_keep_their_quotes(fitted: LocalVolCalibration) -> None:
    assert np.isfinite(fitted.residuals).sum(-1).tolist() == [8, 0]
    assert fitted.max_bps[0] < 5.0
    ragged = fitted.surfaces[0]
    places = torch.log(torch.tensor(ragged.strike[:3], dtype=torch.float64) / 100.0)
    surface = fitted.vol_surfaces[0]
    assert surface is not None
    vols = surface.vol(places, torch.tensor(0.5, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(vols - ragged.vol[:3], fitted.residuals[0, :3], atol=1e-12)
    assert "rmse" in str(fitted)


def test_a_surface_that_cannot_be_fitted_leaves_the_others_alone(fitted: LocalVolCalibration) -> None:
    assert fitted.converged.tolist() == [True, False]
    assert "needs two quotes or more at each expiry, got 1 at expiry 1" in fitted.status[1]
    assert np.isnan(fitted.rmse_bps[1])
    with pytest.raises(DataError, match="surface 1 has no local volatility"):
        fitted.pricer(1)


def test_beyond_the_knots_there_is_no_vol() -> None:
    """Quotes far out, as of a short expiry: a drawing that goes further than the surface is cut off, not refused."""
    wide = Surface(strike=100.0 * np.exp([-1.5, 0.0, 1.5]), expiry=0.1, vol=[0.5, 0.3, 0.4], forward=100.0)
    result = LocalVolSurface(knots_per_quote=1).fit_surfaces([wide])
    vols = result.smile([-1.7, -1.5, 0.0, 1.5, 1.7], 0.1)
    assert np.isnan(vols[[0, 4]]).all()
    np.testing.assert_allclose(vols[1:4] - wide.vol, result.residuals[0], atol=1e-12)
    for years in (0.0, 0.2):
        with pytest.raises(DataError, match=r"`expiry` must lie in \(0, 0.1\], where there are quotes"):
            result.smile([0.0], years)


def test_settings_that_do_not_apply_are_refused() -> None:
    with pytest.raises(ConfigError, match="`n_starts` does not apply to local_vol"):
        calibrate(heston_surface(), "local_vol", n_starts=4)
    with pytest.raises(ConfigError, match=r"`smoothing` of local_vol must be a number above 0, got 0\.0"):
        LocalVolSurface(smoothing=0.0)


@pytest.mark.slow
def test_flat_quotes_give_a_flat_local_volatility() -> None:
    strike = np.tile([80.0, 100.0, 120.0], 2)
    surface = Surface(strike=strike, expiry=np.repeat(EXPIRIES, 3), vol=0.2 * np.ones(6), forward=100.0)
    model = calibrate(surface, LocalVolSurface()).pricer()
    places = torch.linspace(-0.2, 0.2, 9, dtype=torch.float64)
    for years in (0.1, 0.7):
        vol = torch.sqrt(model.local_variance(places, torch.tensor(years, dtype=torch.float64)))
        torch.testing.assert_close(vol, torch.full_like(vol, 0.2), rtol=1e-3, atol=0.0)


@pytest.mark.slow
def test_the_dax_is_priced_to_its_fit() -> None:
    result = calibrate(Surface.dax_2002(), "local_vol")
    assert (
        result.rmse_bps[0] < 8.0
    )  # the quotes have arbitrage: no surface without any is closer than some basis points
    repriced = result.repriced()
    assert repriced.local_vol_rmse_bps < 2.5
    assert repriced.rmse_bps < 9.0


def test_surfaces_without_a_weight_say_so_and_leave_the_others_alone() -> None:
    whole = heston_surface()
    silent = Surface(strike=whole.strike, expiry=whole.expiry, vol=whole.vol, forward=100.0, weight=0.0)
    found = calibrate([silent, whole], LocalVolSurface(knots_per_quote=1))
    assert found.status[0] == "failed: no quote has a weight above 0"
    assert found.converged.tolist() == [False, True]
