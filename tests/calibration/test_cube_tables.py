"""A cube from a file to the tables of a run: nodes, quotes, smiles and sums say what the fit says."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from calibration.known_cube import BETA, OFFSETS_BPS, SHIFT, table

from qfml.calibration import SabrCube, SwaptionCube, calibrate_cube
from qfml.calibration.cube_tables import cube_curves, cube_nodes, cube_quotes, cube_summary
from qfml.calibration.sources import CUBE_SOURCES
from qfml.config import build_kind
from qfml.errors import ConfigError, DataError


def frame() -> pl.DataFrame:
    """Quotes with noise; a node without any, one with two, one quote without weight."""
    quotes, _ = table()
    noise = np.random.default_rng(2).normal(scale=1e-3, size=len(quotes["vol"]))
    vol = quotes["vol"] + noise
    vol[:9], vol[18:25] = np.nan, np.nan
    weight = np.ones(len(vol))
    weight[-1] = 0.0
    columns = {"Option_Expiry": quotes["expiry"], "swap_tenor": quotes["tenor"], "weight": weight, "vol": vol}
    return pl.DataFrame(columns | {name: quotes[name] for name in ("strike", "forward")}).with_columns(shift=SHIFT)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> SabrCube:
    path = tmp_path_factory.mktemp("cube") / "cube.parquet"
    frame().write_parquet(path)
    source = build_kind(CUBE_SOURCES, {"kind": "swaption_cube", "path": str(path)})
    cube = source.read()
    assert source.describe() == f"Swaption vols of {path}, lognormal"
    assert (len(cube), cube.shift, cube.notes) == (144, SHIFT, ("16 of 144 quotes have no vol",))
    return calibrate_cube(cube, BETA)


def test_nodes_hold_what_was_fitted(fitted: SabrCube) -> None:
    nodes = cube_nodes(fitted)
    assert len(nodes) == 16
    for name in ("alpha", "rho", "nu"):
        np.testing.assert_array_equal(nodes[name].to_numpy().reshape(4, 4), fitted.params[name])
    first = nodes.row(0, named=True)
    assert (first["alpha"], first["rmse_bps"], first["status"], first["n_quotes"]) == (None, None, "no quotes", 0)
    assert "not identified: 2 quotes for 3 parameters" in nodes.row(2, named=True)["warnings"]


def test_quotes_and_smiles_are_those_of_the_cube(fitted: SabrCube) -> None:
    quotes, curves = cube_quotes(fitted), cube_curves(fitted)
    assert len(quotes) == 128
    assert curves.group_by("surface", "expiry").len().height == 15
    read = frame().filter(~pl.col("vol").is_nan())
    np.testing.assert_array_equal(quotes["strike"].to_numpy(), read["strike"].to_numpy())
    np.testing.assert_array_equal(quotes["vol"].to_numpy(), read["vol"].to_numpy())
    weighed = quotes.filter(pl.col("weight") > 0.0)
    assert np.isnan(quotes["model_vol"].to_numpy()[-1])  # a quote without weight is not looked at
    tenor = weighed["surface"].str.extract(r"tenor (\d+) y").cast(pl.Float64).to_numpy()
    model = fitted.vol(weighed["expiry"].to_numpy(), tenor, weighed["strike"].to_numpy())
    np.testing.assert_allclose(weighed["model_vol"].to_numpy(), model, rtol=1e-12)
    smile = curves.filter((pl.col("surface") == "tenor 5 y") & (pl.col("expiry") == 1.0))
    strike = (fitted.forwards[1, 1] + SHIFT) * np.exp(smile["log_moneyness"].to_numpy()) - SHIFT
    np.testing.assert_allclose(smile["model_vol"].to_numpy(), fitted.vol(1.0, 5.0, strike), rtol=1e-12)
    assert strike.min() < fitted.forwards[1, 1] + 1e-4 * OFFSETS_BPS[0]


def test_sums_by_tenor(fitted: SabrCube) -> None:
    summary, quotes = cube_summary(fitted), cube_quotes(fitted)
    assert [entry["name"] for entry in summary["surfaces"]] == [f"tenor {years} y" for years in (1, 5, 10, 30)]
    for entry in summary["surfaces"]:
        own = quotes.filter((pl.col("surface") == entry["name"]) & ~pl.col("residual_bps").is_nan())
        error = own["residual_bps"].to_numpy()
        assert entry["rmse_bps"] == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-12)
        assert entry["sse"] == pytest.approx(np.sum((error / 100.0) ** 2), rel=1e-12)
        assert entry["converged"]
    assert summary["params"]["rho"][3] == fitted.params["rho"][:, 3].tolist()
    assert summary["identified"]["rho"][2] == [False, True, True, True]
    assert summary["identified"]["beta"][2] == [True] * 4  # which was given
    assert any("expiry 0.25: not identified" in line for line in summary["surfaces"][2]["warnings"])


def test_files_that_contradict_themselves_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cube.csv"
    cases = {
        "the columns `Option_Expiry`, `expiry` are the same": frame().with_columns(expiry=1.0),
        "`shift` must be the same in all rows": frame().with_columns(shift=pl.int_range(pl.len()) * 0.01),
        "the table has no row": frame().head(0),
    }
    for message, broken in cases.items():
        broken.write_csv(path)
        with pytest.raises(DataError, match=message):
            SwaptionCube.read(path)
    frame().write_csv(path)
    with pytest.raises(DataError, match=r"the column `shift` says 0.03, and 0.02 is given"):
        SwaptionCube.read(path, shift=0.02)
    for change, message in (({"quote": "black"}, "`quote` of a cube"), ({"shift": -0.01}, "`shift` of a cube")):
        with pytest.raises(ConfigError, match=message):
            build_kind(CUBE_SOURCES, {"kind": "swaption_cube", "path": str(path)} | change)
    with pytest.raises(ConfigError, match=r"`beta` of a cube must be one number in \[0, 1\]"):
        calibrate_cube(SwaptionCube.read(path), None)
