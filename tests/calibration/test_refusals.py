"""What cannot be meant is refused with a way out: networks of another model, arguments that do nothing, wrong types."""

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from calibration.known_cube import SHIFT, table
from formula_smile import FormulaSmile, history_of, quotes_at, surface_of
from rough_surrogate import rough_surface, rough_surrogate

from qfml.calibration import HestonCalibration, Surface, SurfaceHistory, SwaptionCube, calibrate
from qfml.calibration.forwards import parity_forward
from qfml.calibration.model import Quotes
from qfml.calibration.quote_columns import frame_of
from qfml.calibration.reading import Reading
from qfml.calibration.walk_forward import walk_forward_calibration
from qfml.errors import ConfigError, DataError, UserError

DAY = [0.25, -0.2, 0.3, 1.0]
VOLS = {"strike": [90.0, 100.0, 110.0], "expiry": [0.5] * 3, "vol": [0.22, 0.2, 0.19]}


@pytest.mark.parametrize("model", ["heston", HestonCalibration()])
def test_a_surrogate_of_another_model_is_refused_however_the_model_is_named(model: Any) -> None:
    with pytest.raises(ConfigError, match=r"one of the model 'rough_bergomi', got the `model` 'heston'"):
        calibrate(rough_surface(0.1, 0.04, -0.7), model, "neural", surrogate=rough_surrogate())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"surrogate": "folder"}, r"Surrogate\.load\(folder\)"),
        ({"inverse": "folder"}, r"InverseMap\.load\(folder\)"),
        ({"model": None}, "`model` must be a calibration model .* got None"),
        ({"model": 3}, "`model` must be a calibration model .* got 3"),
        ({"model": HestonCalibration}, "the class HestonCalibration: make one of it"),
        ({"smoothness": None}, "`smoothness` must be a finite number"),
        ({"smoothness": "a"}, "`smoothness` must be a finite number"),
        ({"warm": "no"}, "`warm` must be true or false, got 'no'"),
        ({"start": "abc"}, "`start` must hold numbers"),
        ({"start": {"level": [0.2] * 2, "skew": 0.0, "bend": 0.1, "decay": 1.0}}, "`start` of `level` must be one"),
        ({"seed": 2**70}, "`seed` must be a whole number, from 0 to"),
        ({"surface": [1, 2]}, "got int at place 0"),
    ],
)
def test_arguments_of_another_kind_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        calibrate(**({"surface": surface_of(DAY), "model": FormulaSmile()} | settings))


def test_what_is_no_surface_and_no_history_is_refused(tmp_path: Any) -> None:
    day = surface_of(DAY)
    quotes = pl.DataFrame(table()[0])
    quotes.write_csv(tmp_path / "cube.csv")
    quotes.write_parquet(tmp_path / "cube.PARQUET")
    cube = SwaptionCube.read(tmp_path / "cube.csv", shift=SHIFT)
    assert len(SwaptionCube.read(tmp_path / "cube.PARQUET", shift=SHIFT)) == len(cube)
    with pytest.raises(DataError, match="calibrate_cube"):
        calibrate(cube, "sabr")
    with pytest.raises(DataError, match=r"SurfaceHistory\(\[surface\]\)"):
        SurfaceHistory(day)
    with pytest.raises(DataError, match="must be a SurfaceHistory, got Surface"):
        walk_forward_calibration(day, FormulaSmile())
    with pytest.raises(ConfigError, match="`horizons` must be a sequence"):
        walk_forward_calibration(history_of([DAY] * 3), FormulaSmile(), horizons=1)
    with pytest.raises(ConfigError, match="`warm` must be true or false"):
        walk_forward_calibration(history_of([DAY] * 3), FormulaSmile(), horizons=(1,), warm="no")


def test_weights_that_are_not_finite_are_refused() -> None:
    quotes = quotes_at(np.zeros(2), np.ones(2), 1)
    with pytest.raises(DataError, match="`weight` of a quote must be finite"):
        Quotes(**(vars(quotes) | {"weight": torch.tensor([[1.0, torch.inf]], dtype=torch.float64)}))


@pytest.mark.parametrize(
    ("columns", "settings", "said"),
    [
        ({"spot": 100.0, "rate": 0.02}, {"rates": 0.05, "dividends": 0.0}, "a column `rate`; leave out the argument"),
        ({"forward": 101.0, "discount": 0.9}, {"rates": 0.05}, "a column `discount`; leave out the argument"),
        ({"spot": 100.0, "dividend": 0.01}, {"rates": 0.05, "dividends": 0.0}, "there is a column `dividend`"),
        ({"forward": 101.0}, {"dividends": 0.01}, "the forwards are those of the column `forward`"),
        ({"forward": 101.0, "name": "DAX"}, {"name": "SPX"}, "says DAX, and `name` is 'SPX'"),
        ({"spot": 100.0, "dividend": 2.0}, {"rates": 0.05}, r"`dividend` must be decimal, in \[-1, 1\]: row 0"),
        ({"forward": 101.0, "spot": 100.0}, {"spot": 99.0}, "a column `spot`; leave out the argument"),
    ],
)
def test_an_argument_beside_a_column_of_the_same_is_refused(columns: Any, settings: Any, said: str) -> None:
    frame = pl.DataFrame(VOLS).with_columns(**{name: pl.lit(value) for name, value in columns.items()})
    with pytest.raises(DataError, match=said):
        Surface.from_frame(frame, **settings)


def test_dividends_beside_forwards_are_refused_and_rates_give_the_discount_factors() -> None:
    frame = pl.DataFrame(VOLS).with_columns(forward=pl.lit(101.0))
    assert Surface.from_frame(frame, rates=0.1).discount == pytest.approx(np.exp(-0.05))
    with pytest.raises(DataError, match="`dividends` would do nothing beside `forwards`"):
        Surface.from_grid([90.0, 100.0], [0.5], [[0.2, 0.2]], forwards=[101.0], dividends=0.02)


@pytest.mark.parametrize(("name", "value"), [("parity", "no"), ("separator", "ab"), ("separator", ";;")])
def test_settings_of_reading_of_another_kind_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"`{name}` must be"):
        Reading(**{name: value})


def test_ways_out_that_are_named_exist(tmp_path: Any) -> None:
    quotes: dict[str, Any] = {"strike": [90.0, 100.0], "expiry": 0.5, "vol": [9.0, 0.2], "forward": 100.0}
    with pytest.raises(DataError, match=r'raise `max_vol`, or leave such rows out with errors="drop"'):
        Surface(**quotes)
    assert Surface(**quotes, max_vol=10.0).vol.tolist() == [9.0, 0.2]
    assert Surface(**quotes, errors="drop").vol.tolist() == [0.2]
    strike = np.array([90.0, 100.0, 110.0])
    with pytest.raises(DataError, match=r"Give the forward$"):
        parity_forward(strike, np.zeros(3), np.full(3, 1000.0), discount=0.9)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "empty.csv").write_bytes(b"")
    with pytest.raises(DataError, match="no whole Parquet file"):
        frame_of(tmp_path / "broken.parquet")
    with pytest.raises(DataError, match="the file is empty"):
        frame_of(tmp_path / "empty.csv")


def test_a_file_of_quotes_is_replaced_as_a_whole_or_not_at_all(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = surface_of(DAY).write(tmp_path / "day.csv")
    before = path.read_bytes()

    def half(self: pl.DataFrame, target: Any) -> None:
        target.write_bytes(b"strike,ex")
        raise OSError("no space left")

    monkeypatch.setattr(pl.DataFrame, "write_csv", half)
    with pytest.raises(OSError, match="no space"):
        surface_of([0.3, -0.2, 0.3, 1.0]).write(path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["day.csv"]
