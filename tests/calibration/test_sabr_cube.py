"""The swaption cube: nodes come back in one batch, vols between them, tables, rules."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from calibration.known_cube import BETA, SHIFT, table

import pricers as pr
from pricers.black import bachelier_price, black_price
from qfml.calibration import SabrCube, SabrSmile, Surface, SwaptionCube, calibrate_cube
from qfml.errors import ConfigError, DataError

WILD = {"alpha": 0.2, "beta": 1.0, "rho": -0.98, "nu": 2.0}


@pytest.fixture(scope="module")
def fitted() -> SabrCube:
    return calibrate_cube(SwaptionCube(**table()[0], shift=SHIFT), BETA)


def test_every_node_comes_back(fitted: SabrCube) -> None:
    quotes, truth = table()
    for name, values in truth.items():
        np.testing.assert_allclose(fitted.params[name], values, rtol=1e-6, err_msg=name)
    assert fitted.converged.all()
    np.testing.assert_allclose(
        fitted.vol(quotes["expiry"], quotes["tenor"], quotes["strike"]), quotes["vol"], rtol=1e-9
    )
    assert np.nanmax(np.abs(fitted.residuals)) < 1e-9
    assert any("negative density" in line for row in fitted.warnings for node in row for line in node)
    assert str(fitted).count("converged") == 16
    solved = calibrate_cube(SwaptionCube(**quotes, shift=SHIFT), BETA, at_the_money=True)
    np.testing.assert_allclose(solved.params["alpha"], truth["alpha"], rtol=1e-6)


def test_normal_vols_are_the_same_prices(fitted: SabrCube) -> None:
    quotes, truth = table()
    normal = fitted.vol(quotes["expiry"], quotes["tenor"], quotes["strike"], quote="normal")
    f, k, t, v = (torch.from_numpy(quotes[name]) for name in ("forward", "strike", "expiry", "vol"))
    by_normal = bachelier_price(f, k, t, torch.from_numpy(normal))
    torch.testing.assert_close(by_normal, black_price(f + SHIFT, k + SHIFT, t, v), rtol=1e-9, atol=1e-14)
    again = calibrate_cube(SwaptionCube(**(quotes | {"vol": normal}), shift=SHIFT, quote="normal"), BETA)
    for name, values in truth.items():
        np.testing.assert_allclose(again.params[name], values, rtol=1e-6, err_msg=name)


def test_between_nodes_parameters_are_bilinear(fitted: SabrCube) -> None:
    found = fitted.pricer(3.0, 7.0)  # half way between 1 and 5, two fifths between 5 and 10
    share = np.array([[0.3, 0.2], [0.3, 0.2]])
    for name in ("rho", "nu"):
        expected = (share * fitted.params[name][1:3, 1:3]).sum()
        assert getattr(found, name).item() == pytest.approx(expected, rel=1e-12)
    levels = fitted.params["alpha"] * (fitted.forwards + SHIFT) ** (BETA - 1.0)
    forward = (share * fitted.forwards[1:3, 1:3]).sum()
    expected = (share * levels[1:3, 1:3]).sum() * (forward + SHIFT) ** (1.0 - BETA)
    assert found.alpha.item() == pytest.approx(expected, rel=1e-12)
    strikes = np.array([-0.01, 0.01, 0.03])
    call = pr.European(strike=strikes + SHIFT, expiry=3.0, option="call")
    shifted = pr.SABR(alpha=found.alpha, beta=BETA, rho=found.rho, nu=found.nu)
    vols = pr.implied_vol(
        pr.price(call, shifted, pr.Market(spot=forward + SHIFT)).value, forward + SHIFT, strikes + SHIFT, 3.0
    )
    np.testing.assert_allclose(fitted.vol(3.0, 7.0, strikes), vols.numpy(), rtol=1e-9)
    np.testing.assert_allclose(fitted.vol(3.0, 7.0, strikes, forward), vols.numpy(), rtol=1e-9)


def test_missing_quotes_and_nodes(fitted: SabrCube) -> None:
    quotes, _ = table()
    vol = quotes["vol"].copy()
    vol[:9] = np.nan  # the first node
    vol[9:15] = np.nan  # three quotes are left of the second, as many as parameters
    vol[18:25] = np.nan  # two are left of the third
    result = calibrate_cube(SwaptionCube(**(quotes | {"vol": vol}), shift=SHIFT), BETA)
    assert np.isnan(result.params["alpha"][0, 0])
    assert result.status[0][0] == "no quotes"
    assert result.n_quotes[0].tolist() == [0, 3, 2, 9]
    assert "not identified: 2 quotes for 3 parameters" in result.warnings[0][2]
    np.testing.assert_allclose(result.params["alpha"][1:], fitted.params["alpha"][1:], rtol=1e-9)
    with pytest.raises(DataError, match=r"node of expiry 0.25 and tenor 1 has no parameters"):
        result.vol(0.5, 3.0, 0.02)
    assert np.isfinite(result.vol(1.0, 3.0, 0.02))  # on the line of nodes that have parameters
    for place, name in (((0.1, 5.0), "expiry"), ((1.0, 31.0), "tenor")):
        with pytest.raises(DataError, match=f"`{name}` must lie in"):
            result.vol(*place, 0.02)
    with pytest.raises(DataError, match="`strike` must be above minus the shift"):
        result.vol(1.0, 5.0, -0.04)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tables(tmp_path: Path, suffix: str) -> None:
    quotes, truth = table()
    frame = pl.DataFrame(
        {
            "expiry": quotes["expiry"],
            "tenor": quotes["tenor"],
            "offset_bps": 1e4 * (quotes["strike"] - quotes["forward"]),
            "forward": quotes["forward"],
            "vol": [None, *quotes["vol"][1:]],
        }
    )
    path = tmp_path / f"cube.{suffix}"
    frame.write_csv(path) if suffix == "csv" else frame.write_parquet(path)
    cube = SwaptionCube.read(path, shift=SHIFT)
    assert str(cube) == "SwaptionCube: 4 expiries x 4 tenors, 143 quotes (lognormal, shift 0.03)"
    np.testing.assert_allclose(calibrate_cube(cube, BETA).params["rho"], truth["rho"], rtol=1e-6)
    frame.rename({"vol": "vola"}).write_csv(tmp_path / "wrong.csv")
    with pytest.raises(DataError, match="column `vola` is not known"):
        SwaptionCube.read(tmp_path / "wrong.csv")
    frame.drop("vol").write_csv(tmp_path / "wrong.csv")
    with pytest.raises(DataError, match="needs one of the columns `vol` and `vol_bps`"):
        SwaptionCube.read(tmp_path / "wrong.csv")
    with pytest.raises(DataError, match="there is no file"):
        SwaptionCube.read(tmp_path / "nothing.csv")


def test_bad_quotes_are_named() -> None:
    good: dict[str, Any] = {
        "expiry": [1.0] * 3,
        "tenor": [5.0] * 3,
        "strike": [0.01, 0.02, 0.03],
        "forward": [0.02] * 3,
        "vol": [0.4, 0.3, 0.28],
    }
    cases: list[tuple[dict[str, Any], str]] = [
        ({"vol": [0.4, 0.0, 0.28]}, "`vol` must be above 0 and at most 5"),
        ({"vol": [0.4, 9.0, 0.28]}, "`vol` must be above 0 and at most 5 for lognormal vols, got 9 at quote 1"),
        ({"vol": [np.nan] * 3}, "a cube needs quotes"),
        ({"strike": [1.0, 2.0, 3.0]}, "`strike` must be at most 0.5, got 1"),
        ({"strike": [-0.01, 0.02, 0.03]}, "`strike` must be above minus the shift of 0"),
        ({"strike": [0.01, 0.01, 0.03]}, "`strike` must be quoted once"),
        ({"forward": [0.02, 0.021, 0.02]}, "`forward` must be one number for an expiry and tenor"),
        ({"expiry": [1.0, -1.0, 1.0]}, "`expiry` must be years above 0"),
        ({"expiry": [1.0, np.nan, 1.0]}, "`expiry` must be years above 0"),
        ({"weight": [1.0, -1.0, 1.0]}, "`weight` must be 0 or more"),
        ({"tenor": [5.0, 5.0]}, "`tenor` of a cube must have the 3 numbers"),
        ({"shift": -0.01}, "`shift` of a cube must be one number of 0 or more"),
        ({"vol": [0.4, np.inf, 0.28]}, "`vol` must be above 0 and at most 5 for lognormal vols, got inf at quote 1"),
        ({"expiry": [365.0] * 3}, "`expiry` must be years above 0 and at most 100, got 365 .*divide months by 12"),
        ({"tenor": [5.0, 5.0, 5.0 + 1e-9]}, "`tenor` must be the same number as another one .*with the same digits"),
        ({"expiry": [1.0, 1.0 + 1e-13, 1.0]}, "`expiry` must be the same number as another one"),
        ({"strike": [0.02, 0.02 + 1e-12, 0.03]}, "`strike` must be quoted once"),
    ]
    for change, message in cases:
        with pytest.raises(DataError, match=message):
            SwaptionCube(**(good | change))
    with pytest.raises(ConfigError, match="`quote` of a cube must be"):
        SwaptionCube(**good, quote="black")
    good["vol"] = [0.0001, 0.15, 0.0001]
    dear = SwaptionCube(**good, quote="normal")
    with pytest.raises(DataError, match="a price that a lognormal rate shifted by 0 reaches"):
        dear.lognormal_vol()
    with pytest.raises(DataError, match="no quote of the cube has a vol and a weight"):
        calibrate_cube(SwaptionCube(**good, weight=0.0), BETA)


def test_what_looks_like_other_vols_is_noted() -> None:
    quotes = {"expiry": 1.0, "tenor": 5.0, "strike": [0.01, 0.02, 0.03], "forward": 0.02}
    assert SwaptionCube(**quotes, vol=[0.4, 0.3, 0.28]).notes == ()
    normal = [0.0085, 0.008, np.nan]
    assert SwaptionCube(**quotes, vol=normal).notes == (
        "1 of 3 quotes have no vol",
        'half of the vols move the rate by less than 1.6 bps a year: if they are normal vols, say quote="normal"',
    )
    assert SwaptionCube(**quotes, vol=normal, quote="normal").notes == ("1 of 3 quotes have no vol",)


def test_where_the_expansion_breaks_down_there_is_no_vol() -> None:
    """At nu^2 T far above 1 and rho near -1 Hagan's correction for time exceeds the vol, and is negative."""
    good = {"expiry": 10.0, "tenor": 5.0, "strike": [0.01, 0.02, 0.03], "forward": 0.02, "vol": [0.4, 0.3, 0.28]}
    cube = calibrate_cube(SwaptionCube(**good), 1.0)
    wild = replace(cube, params={name: np.full((1, 1), x) for name, x in WILD.items()})
    assert 1.0 + (2.0 - 3.0 * WILD["rho"] ** 2) * WILD["nu"] ** 2 * 10.0 / 24.0 < -0.1
    assert np.isnan(wild.vol(10.0, 5.0, 0.02))
    assert np.isnan(wild.vol(10.0, 5.0, 0.02, quote="normal"))
    surface = Surface(strike=[0.01, 0.02, 0.03], expiry=10.0, vol=[0.4, 0.3, 0.28], forward=0.02, strike_unit="price")
    smile = SabrSmile(beta=1.0).fit_surfaces([surface])
    wild_smile = replace(smile, params={name: np.array([x]) for name, x in WILD.items()})
    assert np.isnan(wild_smile.smile([0.0], 10.0)).all()
    assert np.isfinite(smile.smile([0.0], 10.0)).all()
