"""Days judged on later ones: never seen before, by hand, beside baselines; what fails is recorded."""

import json
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from formula_smile import NEVER, FormulaSmile, history_of, surface_of

from qfml.calibration.heston import HestonCalibration
from qfml.calibration.history import SurfaceHistory
from qfml.calibration.layout import vols_at
from qfml.calibration.model import Quotes
from qfml.calibration.surface import as_quotes
from qfml.calibration.walk_forward import WalkForwardCalibration, walk_forward_calibration
from qfml.errors import ConfigError, DataError


def path(n: int) -> list[list[float]]:
    return [[0.2 + 0.02 * day, -0.2 - 0.01 * day, 0.3, 1.0] for day in range(n)]


def run(history: SurfaceHistory, **settings: Any) -> WalkForwardCalibration:
    return walk_forward_calibration(history, FormulaSmile(), n_starts=16, n_polished=2, **settings)


def test_calibration_of_a_day_does_not_see_later_surfaces() -> None:
    history = history_of(path(6), noise=0.002)
    changed = SurfaceHistory([*history[:3], *history_of([[0.9, 0.5, 2.0, 5.0]] * 6)[3:]])
    for warm in (True, False):
        one, two = run(history, horizons=(1, 2), warm=warm), run(changed, horizons=(1, 2), warm=warm)
        today = history[2].date.item()
        known = (pl.col("date") <= today) & (pl.col("judged_date") <= today)
        assert one.errors.filter(known).equals(two.errors.filter(known))
        kept = [frame.parameters.filter(pl.col("date") <= today).drop("seconds") for frame in (one, two)]
        assert kept[0].equals(kept[1])
        assert not one.errors.equals(two.errors)


def test_errors_are_those_of_the_parameters_on_later_surfaces() -> None:
    history = history_of(path(4), spread=0.015)
    found = run(history, horizons=(1, 3))
    assert found.metrics["n_failed"] == 0
    later = as_quotes([history[1]])
    truth = FormulaSmile().vols(torch.tensor([path(4)[0]], dtype=torch.float64), later)[0].numpy() - history[1].vol
    sticky = vols_at(as_quotes([history[0]]), later.log_moneyness, later.expiry)[0].numpy() - history[1].vol
    rows = found.errors.filter((pl.col("horizon") == 1) & (pl.col("date") == history[0].date.item()))
    for method, error in (("model", truth), ("sticky_moneyness", sticky)):
        row = rows.filter(pl.col("method") == method).row(0, named=True)
        assert row["rmse_bps"] == pytest.approx(1e4 * np.sqrt(np.mean(error**2)), rel=1e-4)
        assert row["bias_bps"] == pytest.approx(1e4 * error.mean(), rel=1e-4)
        assert row["max_bps"] == pytest.approx(1e4 * np.abs(error).max(), rel=1e-4)
        assert row["inside_bid_ask"] == pytest.approx(np.mean(np.abs(error) <= 0.015), abs=1e-12)
        assert row["judged_date"] == history[1].date.item()
    # the parameters of day 0 judged on day 1: its horizon 1, and the baseline of day 1 in its own sample
    same_day = found.errors.filter((pl.col("judged_date") == history[1].date.item()) & (pl.col("horizon") == 0))
    previous = same_day.filter(pl.col("method") == "previous_parameters")["rmse_bps"][0]
    assert previous == pytest.approx(1e4 * np.sqrt(np.mean(truth**2)), rel=1e-4)
    assert same_day.filter(pl.col("method") == "model")["rmse_bps"][0] < 1e-2
    assert found.path("level")["value"].to_list() == pytest.approx([x[0] for x in path(4)], rel=1e-6)


def test_surface_that_never_moves_is_no_error_for_anyone() -> None:
    found = run(history_of([path(1)[0]] * 24), horizons=(2,), every=1)
    assert found.errors["rmse_bps"].max() < 1e-2
    assert found.errors.filter(pl.col("horizon") == 2).height == 22 + 22 + 21
    own = found.metrics["by_horizon"]["model"]["2"]
    assert own["days"] == 22
    assert own["interval_95"][0] <= own["mean"] <= own["interval_95"][1]
    assert found.metrics["gain_bps"]["sticky_moneyness"]["2"]["mean"] == pytest.approx(0.0, abs=1e-2)


def test_day_that_fails_is_recorded_and_leaves_the_others_alone() -> None:
    surfaces = list(history_of(path(4)))
    surfaces[1] = surface_of(path(4)[1], 1, expiries=(NEVER,))  # the model has no vols there
    found = run(SurfaceHistory(surfaces), horizons=(1,))
    assert found.metrics["n_failed"] == 1
    failure = found.metrics["failures"][0]
    assert failure["date"].startswith("2024-01-02")
    assert "failed" in failure["reason"]
    dates = found.errors.filter(pl.col("method") == "model")["date"].dt.day().unique().sort().to_list()
    assert dates == [1, 3, 4]
    judged = found.errors.filter((pl.col("judged_date").dt.day() == 2) & (pl.col("method") == "model"))
    assert judged["n_judged"].to_list() == [0]
    assert judged["rmse_bps"].to_list() == [None]
    assert judged["n_quotes"].to_list() == [7]


def test_all_methods_are_judged_on_the_quotes_that_all_have_a_vol_for() -> None:
    surfaces = list(history_of(path(3)))
    surfaces[1] = surface_of(path(3)[1], 1, expiries=(0.1, 0.5, NEVER))  # the model has no vols at the last
    found = run(SurfaceHistory(surfaces), horizons=(1,))
    rows = found.errors.filter((pl.col("horizon") == 1) & (pl.col("date").dt.day() == 1))
    assert dict(rows.select("method", "n_vols").iter_rows()) == {"model": 14, "sticky_moneyness": 21}
    assert rows["n_judged"].to_list() == [14, 14]
    assert rows["n_quotes"].to_list() == [21, 21]


class EngineOnly(HestonCalibration):
    """Heston's model whose fast, unchecked vols are not to be asked for."""

    def vols(self, x: torch.Tensor, quotes: Quotes) -> torch.Tensor:
        raise AssertionError("unchecked vols")


def test_the_judge_is_the_exact_engine() -> None:
    found = walk_forward_calibration(
        history_of(path(2)), EngineOnly(), horizons=(1,), n_starts=4, n_polished=1, max_steps=15
    )
    fitted = found.errors.filter((pl.col("horizon") == 0) & (pl.col("method") == "model"))["rmse_bps"].to_list()
    assert fitted == pytest.approx(found.parameters["rmse_bps"].to_list()[::5], rel=1e-9)


def test_every_second_day_is_calibrated_and_saved(tmp_path: Any) -> None:
    found = run(history_of(path(5), noise=0.001), horizons=(1,), every=2)
    assert found.parameters["date"].dt.day().unique().sort().to_list() == [1, 3, 5]
    paths = found.save(tmp_path / "run")
    assert pl.read_parquet(paths["errors"]).equals(found.errors)
    assert pl.read_parquet(paths["parameters"]).equals(found.parameters)
    assert json.loads(paths["metrics"].read_text()) == found.metrics
    assert (found.parameters["std_error"] > 0).all()


def test_settings_that_make_no_sense_are_refused() -> None:
    history = history_of(path(3))
    with pytest.raises(ConfigError, match="`horizons`"):
        run(history, horizons=(0,))
    with pytest.raises(ConfigError, match="`horizons`"):
        run(history, horizons=(1, 1))
    with pytest.raises(ConfigError, match="`every`"):
        run(history, every=0)
    with pytest.raises(DataError, match="none that lies 3 ahead"):
        run(history, horizons=(3,))
    with pytest.raises(ConfigError, match="`vol` was not calibrated"):
        run(history, horizons=(1,)).path("vol")


def test_result_is_replaced_as_a_whole_or_not_at_all(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = run(history_of(path(2)), horizons=(1,)), run(history_of(path(3)), horizons=(1,))
    first.save(tmp_path / "walk")

    def broken(*_: Any, **__: Any) -> str:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr("qfml.calibration.walk_forward.json.dumps", broken)
        with pytest.raises(OSError, match="no space"):
            second.save(tmp_path / "walk")
    assert pl.read_parquet(tmp_path / "walk" / "errors.parquet").equals(first.errors)
    second.save(tmp_path / "walk")
    assert pl.read_parquet(tmp_path / "walk" / "errors.parquet").equals(second.errors)
    assert [one.name for one in tmp_path.iterdir()] == ["walk"]
