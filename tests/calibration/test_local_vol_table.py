"""Local volatilities kept in a file: the same model comes back, to the bit, and a damaged file is refused."""

from pathlib import Path

import polars as pl
import pytest
import torch

import pricers as pr
from qfml.calibration import LocalVolSurface, Surface
from qfml.calibration.local_vol import LocalVolCalibration
from qfml.calibration.local_vol_table import local_vol_table, read_local_vol
from qfml.errors import CheckpointError, DataError


def quotes(vols: list[float], name: str = "") -> Surface:
    strike, expiry = [90.0, 100.0, 110.0] * 2, [0.5] * 3 + [1.0] * 3
    return Surface(strike=strike, expiry=expiry, vol=vols * 2, forward=100.0, name=name)


@pytest.fixture(scope="module")
def fitted() -> LocalVolCalibration:
    """Two surfaces, and one that cannot be fitted between them."""
    lone = Surface(strike=[90.0], expiry=0.5, vol=0.2, forward=100.0, name="lone")
    flat = Surface(strike=[90.0, 110.0], expiry=1.0, vol=[0.21, 0.2], forward=100.0, name="flat")
    surfaces = [quotes([0.22, 0.2, 0.19], "down"), lone, flat]
    return LocalVolSurface(knots_per_quote=1).fit_surfaces(surfaces)


def test_the_same_model_comes_back(fitted: LocalVolCalibration, tmp_path: Path) -> None:
    path = tmp_path / "local_vol.parquet"
    local_vol_table(fitted).write_parquet(path)
    for row, name in ((0, "down"), (2, "flat")):
        model, again = fitted.pricer(row), read_local_vol(path, name)
        places = torch.linspace(-0.5, 0.5, 41, dtype=torch.float64)
        for years in (0.01, 0.5, 0.7, 2.0):
            time = torch.tensor(years, dtype=torch.float64)
            assert torch.equal(model.local_variance(places, time), again.local_variance(places, time))
    put = pr.European(strike=[90.0, 100.0], expiry=0.75, option="put")
    engine = pr.FiniteDifference(32, 16)
    prices = [pr.price(put, model, pr.Market(spot=100.0), engine).value for model in (fitted.pricer(2), again)]
    assert torch.equal(*prices)


def test_the_column_is_dupires_vol_and_the_knots_are_the_surfaces(fitted: LocalVolCalibration) -> None:
    table = local_vol_table(fitted).filter(pl.col("surface") == "down")
    model, surface = fitted.pricer(0), fitted.vol_surfaces[0]
    assert surface is not None
    for (years,), rows in table.group_by("expiry", maintain_order=True):
        place, time = torch.tensor(rows["log_moneyness"].to_numpy()), torch.tensor(years, dtype=torch.float64)
        local = torch.sqrt(model.local_variance(place, time))
        torch.testing.assert_close(torch.tensor(rows["local_vol"].to_numpy()), local, rtol=1e-14, atol=0.0)
        low, high = surface.edges
        inside = (place >= low) & (place <= high)
        vols = surface.vol(place[inside], time)
        torch.testing.assert_close(torch.tensor(rows["vol"].to_numpy())[inside], vols, rtol=1e-12, atol=0.0)
    assert local_vol_table(fitted)["surface"].unique(maintain_order=True).to_list() == ["down", "flat"]


def test_what_cannot_be_read_is_said(fitted: LocalVolCalibration, tmp_path: Path) -> None:
    table, path = local_vol_table(fitted), tmp_path / "local_vol.parquet"
    with pytest.raises(DataError, match="holds 2 surfaces; name one as `surface`: down, flat"):
        read_local_vol(table)
    with pytest.raises(DataError, match="has no surface 'lone'; it has down, flat"):
        read_local_vol(table, "lone")
    with pytest.raises(DataError, match="there is no file"):
        read_local_vol(path)
    for names in (["a", "b"], ["a", "b", "a"]):
        with pytest.raises(DataError, match="`names` must be 3 different names"):
            local_vol_table(fitted, names)
    path.write_bytes(b"PAR1 and nothing")
    damaged = [
        (path, "is damaged"),
        (table.drop("vol"), "lacks the column `vol`"),
        (table[1:], "not every expiry has as many knots"),
        (table.with_columns(vol=pl.when(pl.col("expiry") > 0.9).then(0.1).otherwise(pl.col("vol"))), "arbitrage"),
        (table.with_columns(vol=pl.lit(float("nan"))), "is damaged: `vols`"),
        (table.with_columns(expiry=pl.lit(None, pl.Float64)), "a cell is empty"),
    ]
    for broken, message in damaged:
        with pytest.raises(CheckpointError, match=message):
            read_local_vol(broken, "down")
