"""What a result holds where a surface has no quotes, and which model it gives for one surface or a batch."""

import os

import numpy as np
import pytest
import torch
from rough_surrogate import rough_surface, rough_surrogate

from qfml.calibration import HestonCalibration, InverseMap, InverseTraining, Layout, SsviSurface, Surface, calibrate
from qfml.calibration.sources import SurfaceFile
from qfml.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def day():
    return Surface.dax_2002("exact_days")


def without_weight(surface, dropped=slice(None)):
    weight = surface.weight.copy()
    weight[dropped] = 0.0
    return Surface(
        strike=surface.strike, expiry=surface.expiry, vol=surface.vol, forward=surface.forward, weight=weight
    )


def test_ssvi_leaves_a_surface_without_quotes_alone(day):
    short = day.where(day.expiry < 0.5)
    fits = SsviSurface().fit_surfaces([short, without_weight(day), day])
    alone = [SsviSurface().fit_surfaces([surface]) for surface in (short, day)]
    for place, own in zip((0, 2), alone):
        assert fits.rmse_bps[place] == pytest.approx(own.rmse_bps, rel=1e-6)
        assert fits.status[place] == own.status
        assert fits.warnings[place] == own.warnings
        np.testing.assert_allclose(fits.smile([-0.1, 0.1], 0.3, surface=place), own.smile([-0.1, 0.1], 0.3), rtol=1e-6)
    assert fits.status[1] == "failed: no quote has a weight above 0"
    assert not fits.converged[1]
    assert np.isnan(fits.params["rho"][1])
    assert np.isnan(fits.theta[1]).all()
    assert np.isnan(fits.residuals[1]).all()
    assert np.isnan(fits.smile([0.0, 0.1], 0.5, surface=1)).all()
    assert "nan" not in str(fits)
    with pytest.raises(DataError, match="no quote of the surfaces has a weight"):
        SsviSurface().fit_surfaces([without_weight(day)])


def test_a_failed_surface_has_a_smile_of_nans(day):
    fits = calibrate([day, without_weight(day)])
    assert np.isfinite(fits.smile([-0.1, 0.0, 0.1], 0.5, surface=0)).all()
    assert np.isnan(fits.smile([-0.1, 0.0, 0.1], 0.5, surface=1)).all()


def test_the_model_of_one_surface_and_of_a_batch_through_a_surrogate():
    days = [rough_surface(0.1, 0.04, -0.7), rough_surface(0.3, 0.06, -0.4)]
    batch = calibrate(days, "rough_bergomi", "neural", surrogate=rough_surrogate())
    model = batch.pricer()
    torch.testing.assert_close(model.rho, torch.as_tensor(batch.params["rho"]))
    one = calibrate(days[1], "rough_bergomi", "neural", surrogate=rough_surrogate())
    single = one.pricer()
    assert single.hurst.shape == ()
    assert {name: getattr(single, name).item() for name in one.params} == pytest.approx(one.params)
    assert single.rho.item() == pytest.approx(batch.params["rho"][1], rel=1e-4)


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({"end": "20240102"}, [1, 2]),
        ({"end": "2024-01-02"}, [1, 2]),
        ({"start": "20240102", "end": "2024-01-03T09:00"}, [2]),
        ({"start": "2024-W01-3"}, [3]),
    ],
)
def test_limits_of_a_file_are_dates_not_text(limits, kept, tmp_path):
    rows = [f"2024-01-0{day}T16:00,{strike},0.5,0.2,100" for day in (1, 2, 3) for strike in (90, 100, 110)]
    path = tmp_path / "days.csv"
    path.write_text("\n".join(["date,strike,expiry,vol,forward", *rows]))
    found = SurfaceFile(str(path), **limits).read()
    assert [int(name[8:10]) for name in found] == kept


def test_limits_of_a_file_that_are_none_are_refused():
    with pytest.raises(ConfigError, match="`end` must be ISO 8601"):
        SurfaceFile("days.csv", end="2.1.2024")
    with pytest.raises(ConfigError, match="`start` must not lie after `end`"):
        SurfaceFile("days.csv", start="2024-02-01", end="20240101")


def test_an_inverse_map_that_is_not_wholly_written_is_not_there(tmp_path, monkeypatch):
    layout = Layout.standard(0.2, 1.0, n_expiries=2)
    training = InverseTraining(n_surfaces=40, max_epochs=1, n_judged=5)
    made = InverseMap.train(HestonCalibration(), layout, training)

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stopped)  # the last thing that is done
        with pytest.raises(KeyboardInterrupt):
            made.save(tmp_path / "map")
    assert list(tmp_path.iterdir()) == []
    InverseMap.load(made.save(tmp_path / "map"))


def test_one_expiry_leaves_ssvi_a_direction_that_takes_no_freedom():
    """eta and gamma are one number at a single expiry: four quotes tell the other three, with errors."""
    strike, vol = np.array([80.0, 90.0, 110.0, 120.0]), np.array([0.26, 0.23, 0.195, 0.19])
    fit = calibrate(Surface(strike=strike, expiry=0.5, vol=vol, forward=100.0), "ssvi")
    assert [bool(np.ravel(fit.identified[name])[0]) for name in ("rho", "eta", "gamma")] == [True, False, False]
    assert np.isfinite(fit.std_error["rho"]).all()
    assert float(np.ravel(fit.std_error["rho"])[0]) > 0
