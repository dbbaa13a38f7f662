"""Options of the models that fit surfaces by themselves: each one changes the fit, or is refused with the way out."""

from typing import Any

import numpy as np
import pytest

from qfml.calibration import LocalVolSurface, SabrSmile, SsviSurface, Surface, SviSmile, SwaptionCube, calibrate_cube
from qfml.calibration.fit_options import flag_option
from qfml.errors import ConfigError

SEARCHING = (SabrSmile(beta=0.5), SviSmile(butterfly_free=False), SsviSurface())
EVERY = (*SEARCHING, LocalVolSurface())


@pytest.fixture(scope="module")
def surface() -> Surface:
    whole = Surface.dax_2002("week_rounded")
    return whole.where(whole.expiry > 0.5)


@pytest.mark.parametrize("model", SEARCHING, ids=lambda model: model.kind)
def test_steps_tolerance_and_starts_change_the_search(model: Any, surface: Surface) -> None:
    usual = model.fit_surfaces([surface])
    short = model.fit_surfaces([surface], max_steps=1)
    assert np.max(short.n_steps) == 1
    assert not np.any(short.converged)
    rough = model.fit_surfaces([surface], tolerance=1e-2)
    assert np.sum(rough.n_steps) < np.sum(usual.n_steps)
    assert np.all(rough.converged)
    one = model.fit_surfaces([surface], n_starts=1, max_steps=3)
    many = model.fit_surfaces([surface], n_starts=model.most_starts, max_steps=3)
    assert many.sse < one.sse * (1.0 - 1e-9)  # a better start is among all of them
    same = model.fit_surfaces([surface], n_starts=None, max_steps=None, tolerance=None, n_polished=None, start=None)
    np.testing.assert_array_equal(same.residuals, usual.residuals)


@pytest.mark.parametrize("model", EVERY, ids=lambda model: model.kind)
@pytest.mark.parametrize(
    ("option", "value"),
    [("n_polished", 2), ("start", {"rho": 0.0}), ("warm", True), ("smoothness", 1e-4), ("inverse", object())],
)
def test_what_no_such_model_has_is_refused_by_name(model: Any, surface: Surface, option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"`{option}` does not apply to {model.kind}: .*(leave it out|give `n_start)"):
        model.fit_surfaces([surface], **{option: value})
    with pytest.raises(ConfigError, match="`n_step` is no option of"):
        model.fit_surfaces([surface], n_step=4)


def test_local_vol_has_no_search_to_be_told_of(surface: Surface) -> None:
    options: list[dict[str, Any]] = [{"n_starts": 1}, {"max_steps": 9}, {"tolerance": 1e-6}]
    for option in options:
        with pytest.raises(ConfigError, match=r"does not apply to local_vol: its interior-point .*; leave it out"):
            LocalVolSurface().fit_surfaces([surface], **option)


@pytest.mark.parametrize("name", ["n_starts", "max_steps"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3"])
def test_counts_are_whole_numbers_of_one_or_more(surface: Surface, name: str, value: Any) -> None:
    cube = SwaptionCube(
        expiry=[1.0] * 3, tenor=[5.0] * 3, strike=[0.01, 0.02, 0.03], forward=[0.02] * 3, vol=[0.4, 0.3, 0.28]
    )
    for model in SEARCHING:
        with pytest.raises(ConfigError, match=f"`{name}` must be a whole number, 1 or more"):
            model.fit_surfaces([surface], **{name: value})
    with pytest.raises(ConfigError, match=f"`{name}` must be a whole number, 1 or more"):
        calibrate_cube(cube, 0.5, **{name: value})


def test_other_numbers_that_cannot_be(surface: Surface) -> None:
    for value in (0.0, -1e-9, 1.0, float("nan"), "small", True):
        with pytest.raises(ConfigError, match="`tolerance` must be a number between 0 and 1"):
            SabrSmile().fit_surfaces([surface], tolerance=value)
    with pytest.raises(ConfigError, match="`n_starts` of sabr must be at most 20, the starts that it has, got 21"):
        SabrSmile().fit_surfaces([surface], n_starts=21)


def test_settings_of_the_models_are_of_their_kind() -> None:
    for beta in (float("nan"), 1.1, -0.1):
        with pytest.raises(ConfigError, match=r"`beta` of SABR must be a number in \[0, 1\], or None"):
            SabrSmile(beta=beta)
    for knots in (0, True):
        with pytest.raises(ConfigError, match="`knots_per_quote` must be a whole number"):
            LocalVolSurface(knots_per_quote=knots)
    for smoothing in (float("inf"), float("nan"), -1.0):
        with pytest.raises(ConfigError, match="`smoothing` of local_vol must be a number above 0"):
            LocalVolSurface(smoothing=smoothing)
    with pytest.raises(ConfigError, match="`at_the_money` must be true or false, got 'no'"):
        flag_option("at_the_money", "no")  # a word counts as true
