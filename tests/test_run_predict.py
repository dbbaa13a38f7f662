"""`qfml predict`: what a run says about a new day is what it said about that day when it was a test day."""

import csv
import json
import shutil
from typing import Any

import command_line
import numpy as np
import polars as pl
import pytest
from command_line import edited, qfml, workplace

from qfml import config, predict
from qfml.data.features import lookback_rows
from qfml.errors import CheckpointError, DataError, UserError
from qfml.run import read_task

LAG = 1  # the execution lag that configs have by default
PANEL = {"data": {"source": {"kind": "csv", "path": "prices.csv", "group": "ticker"}}}


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """A finished run on one series of daily prices."""
    return finished(workplace(tmp_path_factory.mktemp("series")))


@pytest.fixture(scope="module")
def panel(tmp_path_factory):
    """A finished run on a panel, one asset of which misses days."""
    return finished(workplace(tmp_path_factory.mktemp("panel"), command_line.panel(), **PANEL))


@pytest.fixture(scope="module")
def windowed(tmp_path_factory):
    """A finished run of a convolution over windows of days."""
    features = [{"kind": "log_returns", "horizons": [1]}]
    sections: dict[str, Any] = {
        "data": {"window": 8, "features": features},
        "network": {"kind": "tcn", "channels": [4, 4]},
    }
    return finished(workplace(tmp_path_factory.mktemp("windowed"), **sections))


def finished(place):
    done = qfml("run", "config.yaml", "--out", "run", cwd=place)
    assert done.code == 0, done.err
    return place


def history(place):
    return pl.read_csv(place / "prices.csv", try_parse_dates=True)


def last_fold(place):
    """The run's predictions of its last fold, and the positions of the network by (time, group)."""
    predictions = pl.read_parquet(place / "run" / "predictions.parquet")
    held = pl.read_parquet(place / "run" / "positions.parquet").filter(pl.col("strategy") == "network")
    return predictions.filter(pl.col("fold") == predictions["fold"].max()), held


@pytest.mark.parametrize("which", ["series", "windowed"])
def test_history_up_to_a_test_day_gives_the_run_s_own_prediction_and_position(which, request):
    place = request.getfixturevalue(which)
    tested, held = last_fold(place)
    for row in (0, 7, tested.height // 2, tested.height - 2):
        day = tested["time"][row]
        found = predict(place / "run", history(place).filter(pl.col("time") <= day.date()))
        assert found.columns == ["time", "prediction", "position"]
        assert found["time"].to_list() == [day]
        assert found["prediction"][0] == pytest.approx(tested["network"][row], rel=1e-6)
        filled = held.filter(pl.col("time") > day)["time"].min()
        [position] = held.filter(pl.col("time") == filled)["position"]
        assert position != 0
        assert found["position"][0] == pytest.approx(position, rel=1e-9)


def test_the_command_prints_them(series, tmp_path):
    tested, _ = last_fold(series)
    day = tested["time"][20]
    new = history(series).filter(pl.col("time") <= day.date())
    new.write_csv(tmp_path / "NEW.csv")
    done = qfml("predict", "run", tmp_path / "NEW.csv", cwd=series)
    assert (done.code, done.err) == (0, "")
    expected = predict(series / "run", new)
    [line] = [line for line in done.out.splitlines() if str(day.date()) in line]
    for name in ("prediction", "position"):
        assert f"{expected[name][0]:.6g}" in line
    assert f"{tested['network'][20]:.5g}"[:6] in line


def test_rows_after_the_last_do_not_exist_yet_so_the_newest_row_counts(series):
    """The prediction of a day does not move when the days after it become known."""
    tested, _ = last_fold(series)
    full = predict(series / "run", history(series))
    assert full["time"][0] == history(series)["time"].cast(pl.Datetime("us")).max()
    assert full["time"][0] > tested["time"].max()  # its label is not known: the run could not test it


def test_the_frame_may_be_pandas_polars_or_a_path_and_in_any_order(series):
    frame = history(series)
    expected = predict(series / "run", frame)
    for same in (frame.lazy(), frame.to_pandas(), series / "prices.csv", str(series / "prices.csv")):
        assert predict(series / "run", same).equals(expected)


def test_a_column_that_only_the_label_reads_need_not_be_there(tmp_path):
    """The label here reads `volume`; tomorrow's prediction needs `close` alone."""
    label = {"kind": "forward_return", "horizon": 2, "delay": 1, "price": "volume"}
    place = finished(workplace(tmp_path, data={"label": label}))
    with_it = predict(place / "run", history(place))
    assert predict(place / "run", history(place).drop("volume")).equals(with_it)


def test_panel_history_up_to_a_test_day_gives_the_run_s_own_predictions_and_positions(panel):
    tested, held = last_fold(panel)
    days = tested["time"].unique().sort()
    compared = 0
    for day in (days[5], days[-4], days[-2]):  # the last two after the gap of asset C
        found = predict(panel / "run", history(panel).filter(pl.col("time") <= day.date()))
        own = tested.filter(pl.col("time") == day).sort("group")
        assert found["group"].to_list() == own["group"].to_list() == ["A", "B", "C"]
        np.testing.assert_allclose(found["prediction"], own["network"], rtol=1e-6)
        filled = held.filter(pl.col("time") == held.filter(pl.col("time") > day)["time"].min()).sort("group")
        for asset, position in filled.select("group", "position").iter_rows():
            [mine] = found.filter(pl.col("group") == asset)["position"]
            assert mine == pytest.approx(position, rel=1e-9)
            compared += 1
    assert compared == 9


def test_an_asset_without_a_row_on_the_newest_day_has_neither(panel):
    frame = history(panel)
    gap = sorted(set(frame["time"]) - set(frame.filter(pl.col("ticker") == "C")["time"]))[-1]
    found = predict(panel / "run", frame.filter(pl.col("time") <= gap))
    assert found["group"].to_list() == ["A", "B", "C"]
    assert found["prediction"].null_count() == found["position"].null_count() == 1
    assert found.row(2)[2:] == (None, None)
    done = qfml("predict", "run", "prices.csv", cwd=panel)
    assert done.code == 0
    assert [line.split()[3] for line in done.out.splitlines() if line.startswith("│ 20")] == ["│", "│", "│"]


def test_the_csv_is_read_with_the_names_and_the_format_of_the_run_s_own(tmp_path):
    """A user's file calls its columns as it likes; tomorrow's file does the same."""
    frame = command_line.prices().select(
        Day=pl.col("time").dt.strftime("%d.%m.%Y"), px_last=pl.col("close"), volume=pl.col("volume")
    )
    source = {"kind": "csv", "path": "prices.csv", "time": "Day", "time_format": "%d.%m.%Y"}
    source |= {"rename": {"px_last": "close"}}
    place = finished(workplace(tmp_path, frame, data={"source": source}))
    frame.tail(100).write_csv(place / "NEW.csv")
    done = qfml("predict", "run", "NEW.csv", cwd=place)
    assert done.code == 0, done.err
    assert "2016-08-10" in done.out


# ---- what is refused ------------------------------------------------------------------------------------------------


def refused(place, new, *messages):
    done = qfml("predict", "run", new, cwd=place)
    assert done.code == 2, (done.out, done.err)
    assert "Traceback" not in done.err
    said = " ".join(done.err.split())
    assert said.startswith("error: ")
    for message in messages:
        assert message in said


HOSTILE = {
    "empty file": (b"", "empty CSV"),
    "header alone": (b"time,close,volume\n", "no rows"),
    "binary": (bytes(range(256)) * 20, "`time`"),
    "another table": (b"name,amount\nrent,1200\n", "`time`"),
    "text for prices": (b"time,close\n2020-01-01,=cmd|'/c calc'!A1\n2020-01-02,2\n", "close"),
    "times that are none": (b"time,close\nyesterday,1\ntoday,2\n", "time"),
    "the same day twice": (b"time,close\n" + b"2020-01-01,100\n" * 40, "2020-01-01"),
    "a negative price": (b"".join([b"time,close\n", *(b"2020-01-%02d,-5\n" % day for day in range(1, 32))]), "close"),
    "a hole": (b"".join([b"time,close\n", *(b"2020-01-%02d,\n" % day for day in range(1, 32))]), "close"),
    "an infinite price": (b"".join([b"time,close\n", *(b"2020-01-%02d,inf\n" % day for day in range(1, 32))]), "close"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_csv_is_refused_with_a_reason(series, tmp_path, what):
    content, message = HOSTILE[what]
    (tmp_path / "NEW.csv").write_bytes(content)
    refused(series, tmp_path / "NEW.csv", message)


def test_a_missing_column_is_named(series, tmp_path):
    history(series).select("time", "volume").write_csv(tmp_path / "NEW.csv")
    refused(series, tmp_path / "NEW.csv", "`close`", "volume")


def test_a_missing_file_is_named(series):
    refused(series, "nowhere.csv", "no file nowhere.csv")
    refused(series, ".", "no file .")


def test_a_history_that_is_too_short_says_which_features_are_unknown(series, panel, windowed, tmp_path):
    history(series).tail(5).write_csv(tmp_path / "NEW.csv")
    refused(series, tmp_path / "NEW.csv", "too short", "log_return_5", "give more rows")
    lookback = lookback_rows(read_task(config.read_yaml(series / "run" / "config.yaml")).data.features)
    history(series).tail(lookback).write_csv(tmp_path / "NEW.csv")
    refused(series, tmp_path / "NEW.csv", "too short")
    history(series).tail(lookback + 1).write_csv(tmp_path / "NEW.csv")
    assert qfml("predict", "run", tmp_path / "NEW.csv", cwd=series).code == 0
    long, short = history(panel).filter(pl.col("ticker") != "B"), history(panel).filter(pl.col("ticker") == "B")
    pl.concat([long, short.tail(3)]).write_csv(tmp_path / "NEW.csv")
    refused(panel, tmp_path / "NEW.csv", "history of B is too short")
    history(windowed).tail(8).write_csv(tmp_path / "NEW.csv")
    refused(windowed, tmp_path / "NEW.csv", "too short")
    history(windowed).tail(9).write_csv(tmp_path / "NEW.csv")
    assert qfml("predict", "run", tmp_path / "NEW.csv", cwd=windowed).code == 0


def test_the_prediction_from_the_shortest_sufficient_history_is_that_of_the_whole(windowed):
    """Features and window read nothing older than they declare."""
    frame = history(windowed)
    short, whole = predict(windowed / "run", frame.tail(9)), predict(windowed / "run", frame)
    assert short["prediction"][0] == pytest.approx(whole["prediction"][0], rel=1e-5)


def flip(folder):
    with edited(folder / "tensors.safetensors") as content:
        content[-1] ^= 1


def another_network(folder):
    state = json.loads((folder / "state.json").read_text())
    state["network"]["hidden"] = [4096]
    (folder / "state.json").write_text(json.dumps(state))


TAMPER = {
    "flipped bit": flip,
    "other settings": another_network,
    "pickle for a tensor file": lambda folder: (folder / "tensors.safetensors").write_bytes(b"\x80\x04cos\nsystem\n."),
    "missing manifest": lambda folder: (folder / "manifest.json").unlink(),
    "missing folder": shutil.rmtree,
}


@pytest.mark.parametrize("how", TAMPER)
def test_a_tampered_model_is_refused(series, tmp_path, how):
    shutil.copytree(series / "run", tmp_path / "run")
    TAMPER[how](tmp_path / "run" / "model")
    with pytest.raises(CheckpointError):
        predict(tmp_path / "run", history(series))
    refused(tmp_path, series / "prices.csv", "model")


def test_a_run_that_is_unfinished_or_damaged_is_refused(series, tmp_path):
    shutil.copytree(series / "run", tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.json"
    metrics.write_text(metrics.read_text()[:-100])
    refused(tmp_path, series / "prices.csv", "metrics.json is damaged")
    metrics.unlink()
    refused(tmp_path, series / "prices.csv", "qfml resume run")
    with pytest.raises(UserError, match="no finished run"):
        predict(tmp_path, history(series))


def test_a_frame_without_a_time_is_refused(series):
    with pytest.raises(DataError, match="time"):
        predict(series / "run", pl.DataFrame({"close": [1.0, 2.0]}))


def test_a_cell_that_looks_like_a_formula_is_only_text(panel, tmp_path):
    """An asset's name is printed, not interpreted: neither rich's markup nor the terminal sees a command."""
    names = {"A": "[red]=1+1", "B": "[/b]", "C": "\x1b[2Jx"}
    frame = history(panel).with_columns(ticker=pl.col("ticker").replace(names))
    frame.write_csv(tmp_path / "NEW.csv", quote_style="always")
    done = qfml("predict", "run", tmp_path / "NEW.csv", cwd=panel)
    assert done.code == 0
    assert all(name in done.out for name in ("[red]=1+1", "[/b]", r"\x1b[2Jx"))
    assert "\x1b" not in done.out
    with (tmp_path / "NEW.csv").open() as file:
        assert next(csv.reader(file)) == frame.columns
