"""A simulated history against the pricing engine, the deltas that it was asked for, and its own parameters."""

import numpy as np
import pytest
import torch

import pricers as pr
from pricers.normal import normal_cdf
from qfml.calibration.calibrate import calibrate
from qfml.calibration.synthetic import SyntheticHeston
from qfml.errors import ConfigError

SETTINGS = {"seed": 5, "expiries": (0.25, 1.0), "deltas": (0.1, 0.3, 0.5, 0.7, 0.9)}


def test_quotes_are_hestons_vols_at_the_deltas_that_were_asked_for() -> None:
    market = SyntheticHeston(n_days=3, **SETTINGS)
    for day, surface in enumerate(market.history()):
        model = pr.Heston(**{name: float(values[day]) for name, values in market.parameters.items()})
        own = pr.Market(spot=surface.spot, rate=market.rate, dividend_yield=market.dividend_yield)
        expiry, strike = torch.tensor(surface.expiry), torch.tensor(surface.strike)
        np.testing.assert_allclose(surface.forward, own.forward(expiry).numpy(), rtol=1e-12)
        calls = pr.price(pr.European(strike=strike, expiry=expiry, option="call"), model, own).value
        vols = pr.implied_vol(calls, own.forward(expiry), strike, expiry, own.discount(expiry))
        np.testing.assert_allclose(surface.vol, vols.numpy(), atol=2e-6)
        deviation = vols * expiry.sqrt()
        delta = normal_cdf(torch.log(own.forward(expiry) / strike) / deviation + 0.5 * deviation)
        np.testing.assert_allclose(delta.numpy(), np.tile(market.deltas, 2), atol=1e-3)
        np.testing.assert_allclose(surface.ask - surface.bid, 0.005, atol=1e-12)


def test_days_do_not_depend_on_how_many_come_after_them() -> None:
    short, long = (SyntheticHeston(n_days=n, vol_noise_bps=10.0, **SETTINGS) for n in (2, 4))
    for one, two in zip(short.history(), long.history()):
        assert np.array_equal(one.vol, two.vol)
        assert np.array_equal(one.strike, two.strike)
    other = SyntheticHeston(n_days=2, vol_noise_bps=10.0, **(SETTINGS | {"seed": 6}))
    assert not np.array_equal(other.history()[0].vol, short.history()[0].vol)


def test_parameters_stay_in_the_box_and_have_the_spread_and_persistence_asked_for() -> None:
    market = SyntheticHeston(n_days=3000, seed=2, reversion=30.0, spread=0.5)
    low, high = (torch.tensor(ends, dtype=torch.float64) for ends in (market.box.low, market.box.high))
    assert ((market.x > low) & (market.x < high)).all()
    z = torch.special.ndtri(((market.x - low) / (high - low))[:, 4])  # rho, whose scale is linear
    kept = np.exp(-30.0 / 365.0)
    worth = 3000 * (1 - kept) / (1 + kept)
    assert abs(z.mean()) < 4 * 0.5 / np.sqrt(worth)
    assert z.std() == pytest.approx(0.5, rel=4 / np.sqrt(2 * worth / 2))
    assert np.corrcoef(z[1:], z[:-1])[0, 1] == pytest.approx(kept, abs=0.02)


def test_calibration_finds_the_parameters_of_a_history_without_noise() -> None:
    market = SyntheticHeston(n_days=2, **SETTINGS)
    found = calibrate(market.history(), "heston", start=market.x.mean(0))
    np.testing.assert_allclose(found.x, market.x.numpy(), rtol=1e-3)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"n_days": 0}, "n_days"),
        ({"deltas": (0.0, 0.5)}, "deltas"),
        ({"expiries": ()}, "expiries"),
        ({"half_spread_bps": 0.0}, "half_spread_bps"),
        ({"vol_noise_bps": -1.0}, "vol_noise_bps"),
        ({"ranges": {"kappa": (2.0, 1.0)}}, "kappa"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, word: str) -> None:
    with pytest.raises(ConfigError, match=f"`{word}`"):
        SyntheticHeston(**({"n_days": 2, "seed": 0} | settings))
