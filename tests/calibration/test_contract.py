"""What every model of `CALIBRATION_MODELS` and every source of quotes must do, run on each that is registered."""

import numpy as np
import polars as pl
import pytest
from calibration.known_cube import table

from qfml.calibration import CALIBRATION_MODELS, Surface, calibrate
from qfml.calibration.sources import CUBE_SOURCES, SURFACE_SOURCES, SurfaceSource
from qfml.config import build_kind, to_dict
from qfml.errors import ConfigError

BASIS_POINT = 1e-4
SLOW = ("bates", "local_vol")
SMOOTHED = ("local_vol",)  # a surface that is smoothed is smoothed once more when it is fitted again


def kinds(registry):
    return [pytest.param(kind, marks=[pytest.mark.slow] if kind in SLOW else []) for kind in registry]


@pytest.mark.parametrize("kind", kinds(CALIBRATION_MODELS))
def test_a_model_finds_its_own_vols_again(kind):
    """The vols that a fit to the market has are vols that the model can make: to them it fits exactly."""
    market = Surface.dax_2002("exact_days")
    first = calibrate(market, kind)
    own = np.asarray(market.vol) + np.asarray(first.residuals).reshape(-1)[: len(market)]
    again = calibrate(Surface(strike=market.strike, expiry=market.expiry, vol=own, forward=market.forward), kind)
    assert np.nanmax(np.abs(own - market.vol)) > BASIS_POINT  # else nothing was made
    assert np.isfinite(again.residuals).all()
    if kind in SMOOTHED:
        assert np.abs(again.residuals).max() < 0.5 * np.abs(first.residuals).max()
    else:
        assert np.abs(again.residuals).max() < BASIS_POINT


@pytest.mark.parametrize("kind", CALIBRATION_MODELS)
def test_a_model_is_known_by_its_kind_and_refuses_what_it_does_not_know(kind):
    assert build_kind(CALIBRATION_MODELS, kind).kind == kind
    with pytest.raises(ConfigError, match="max_steps"):
        calibrate(Surface.dax_2002(), kind, max_steps=-1)
    with pytest.raises(ConfigError, match="nonsense"):
        build_kind(CALIBRATION_MODELS, {"kind": kind, "nonsense": 1})


@pytest.fixture
def examples(tmp_path):
    """The settings of one of each kind of source; a kind that is missing here fails."""
    dax = Surface.dax_2002()
    quotes = {"strike": dax.strike, "expiry": dax.expiry, "vol": dax.vol, "forward": dax.forward}
    pl.DataFrame(quotes).write_csv(tmp_path / "dax.csv")
    pl.DataFrame(table()[0]).write_csv(tmp_path / "cube.csv")
    return {
        "dax_2002": {},
        "file": {"path": str(tmp_path / "dax.csv")},
        "synthetic_heston": {"n_days": 2, "seed": 1, "expiries": [0.5, 1.0], "deltas": [0.25, 0.5, 0.75]},
        "swaption_cube": {"path": str(tmp_path / "cube.csv"), "shift": 0.03},
    }


@pytest.mark.parametrize("kind", SURFACE_SOURCES | CUBE_SOURCES)
def test_a_source_reads_the_same_quotes_twice_and_says_what_they_are(kind, examples):
    sources = SURFACE_SOURCES | CUBE_SOURCES
    source = build_kind(sources, {"kind": kind} | examples[kind])
    assert isinstance(source, SurfaceSource)
    assert to_dict(build_kind(sources, to_dict(source))) == to_dict(source)
    assert source.describe()
    assert source.describe().isprintable()
    first, again = source.read(), source.read()
    if kind in CUBE_SOURCES:
        first, again = {"cube": first}, {"cube": again}
    assert list(first) == list(again) != []
    for name, quotes in first.items():
        vol = np.asarray(quotes.vol)
        np.testing.assert_array_equal(vol, again[name].vol)
        assert (vol[np.isfinite(vol)] > 0).all()
    with pytest.raises(ConfigError, match="nonsense"):
        build_kind(sources, {"kind": kind, "nonsense": 1} | examples[kind])
