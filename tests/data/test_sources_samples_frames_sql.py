"""Bundled samples, frames and databases."""

import datetime as dt
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from qfml.config import build_kind, to_dict
from qfml.data.sources import SOURCES, ArchSource, FrameSource, SkfolioSource, SqlSource
from qfml.errors import ConfigError, DataError, MissingExtraError

DAYS = [dt.datetime(2024, 1, day) for day in (2, 3, 4)]

# ---- samples --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sp500", "nasdaq"])
def test_arch_index_is_a_price_index_of_5031_days(name: str) -> None:
    frame = ArchSource(name).read()
    assert frame.columns == ["time", "open", "high", "low", "close", "adj_close", "volume"]
    assert frame.height == 5031
    assert frame["time"].is_sorted()
    assert frame["time"].is_unique().all()
    assert frame["time"][0] == dt.datetime(1999, 1, 4)
    assert frame["time"][-1] == dt.datetime(2018, 12, 31)
    assert (frame["close"] == frame["adj_close"]).all()  # no dividends in it
    assert ArchSource(name).group_column is None


def test_arch_sp500_known_closes() -> None:
    # published closes: peak before the crisis, its low, and the last trading day of 2018
    days = [dt.datetime(2007, 10, 9), dt.datetime(2009, 3, 9), dt.datetime(2018, 12, 31)]
    frame = ArchSource().read(["close"]).filter(pl.col("time").is_in(days))
    np.testing.assert_allclose(frame["close"], [1565.15, 676.53, 2506.85], atol=0.005)


@pytest.mark.parametrize(("name", "n_rows", "n_missing"), [("wti", 8611, 290), ("vix", 1305, None)])
def test_arch_single_columns_are_called_close(name: str, n_rows: int, n_missing: int | None) -> None:
    frame = ArchSource(name).read()
    assert frame.columns == ["time", "close"]
    assert frame.height == n_rows
    if n_missing is not None:
        assert frame["close"].null_count() == n_missing  # kept: the validation decides what becomes of them


def test_arch_unknown_set_and_empty_range() -> None:
    with pytest.raises(ConfigError, match="sp500, nasdaq, wti, vix"):
        ArchSource("dax")
    with pytest.raises(DataError, match="reaches from 1999-01-04"):
        ArchSource().read(start=dt.date(2020, 1, 1))


def test_skfolio_panel_is_long_and_complete() -> None:
    pytest.importorskip("skfolio", reason="comes with the extra `samples`")
    source = SkfolioSource()
    frame = source.read(["close"])
    assert frame.schema == {"time": pl.Datetime("us"), "group": pl.String, "close": pl.Float64}
    assert source.group_column == "group"
    assert frame["group"].n_unique() == 20
    assert frame.height == 20 * 8313
    assert frame.null_count().sum_horizontal().item() == 0
    xom = frame.filter(pl.col("group") == "XOM")
    assert xom["close"][0] == 4.068
    assert xom["close"][-1] == 106.627
    assert frame.select(pl.col("time").is_sorted().over("group").all()).item()
    assert source.read(["close"], start="2022-12-28").height == 20


def test_skfolio_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "skfolio"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "skfolio", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'qfml\[samples\]'"):
        SkfolioSource().read()


@pytest.mark.parametrize("settings", [{"kind": "arch", "name": "nasdaq"}, {"kind": "skfolio", "name": "sp500"}])
def test_samples_are_chosen_in_yaml(settings: dict) -> None:
    source = build_kind(SOURCES, settings)
    assert to_dict(source) == settings
    assert source.describe().startswith(settings["kind"])


# ---- frames ---------------------------------------------------------------------------------------------------------


def test_pandas_polars_and_lazy_frames_read_alike() -> None:
    polars = pl.DataFrame({"Date": DAYS, "Close": [1.0, 2.0, 3.0], "ticker": ["b", "a", "a"]})
    expected = pl.DataFrame({"time": DAYS[1:], "group": ["a", "a"], "close": [2.0, 3.0]})
    for frame in (polars, polars.lazy(), polars.to_pandas(), polars.to_pandas().set_index("Date")):
        source = FrameSource(frame, time="Date", group="ticker")
        assert_frame_equal(source.read(["close"], start="2024-01-03"), expected)


def test_unnamed_pandas_index_is_the_time() -> None:
    frame = pd.DataFrame({"close": [1.0, np.nan]}, index=pd.DatetimeIndex(["2024-01-02", "2024-01-03"], tz="UTC"))
    read = FrameSource(frame).read()
    assert read["time"].dtype.time_zone == "UTC"  # pyright: ignore[reportAttributeAccessIssue]
    assert read["close"].to_list() == [1.0, None]
    assert "time" not in frame.columns  # the user's frame is as it was


def test_lazy_frame_column_that_is_not_asked_for_is_not_computed() -> None:
    def explode(_: pl.Series) -> pl.Series:
        raise AssertionError("this column was computed")

    lazy = pl.LazyFrame({"time": DAYS, "close": [1.0, 2.0, 3.0]}).with_columns(
        pl.col("close").map_batches(explode, return_dtype=pl.Float64).alias("expensive")
    )
    assert FrameSource(lazy).read(["close"]).columns == ["time", "close"]
    with pytest.raises(Exception, match="this column was computed"):
        FrameSource(lazy).read(["expensive"])


def test_pandas_frame_with_mixed_zones_or_types_is_refused() -> None:
    mixed = [pd.Timestamp("2024-01-02"), pd.Timestamp("2024-01-03", tz="UTC")]
    with pytest.raises(DataError, match=r"`time` must be in one time zone.*UTC.*1 of 2 rows.*row 1"):
        FrameSource(pd.DataFrame({"time": pd.Series(mixed, dtype=object), "close": [1.0, 2.0]})).read()
    with pytest.raises(DataError, match="`close` must hold values of one type"):
        FrameSource(pd.DataFrame({"time": DAYS, "close": pd.Series([1.0, "x", 2.0], dtype=object)})).read()
    with pytest.raises(DataError, match="unique"):
        FrameSource(pd.DataFrame([[1.0, 2.0]], columns=["close", "close"], index=DAYS[:1])).read()


def test_frame_is_for_scripts_only() -> None:
    source = FrameSource(pl.DataFrame({"time": DAYS}))
    assert build_kind(SOURCES, source) is source
    assert source.describe() == "frame: polars DataFrame"
    with pytest.raises(ConfigError, match="choose csv, parquet or sql"):
        build_kind(SOURCES, {"kind": "frame", "frame": "prices"})


# ---- databases ------------------------------------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A table whose rows are not in order, and a view of it in which one column cannot be computed."""
    path = tmp_path / "prices.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute('CREATE TABLE prices (day TEXT, ticker TEXT, "px last" REAL, lots INTEGER)')
        rows = [("2024-01-03", "B", 4.5, 1), ("2024-01-02", "B", 3.5, 1), ("2024-01-02", "A", 1.5, 1)]
        connection.executemany("INSERT INTO prices VALUES (?, ?, ?, ?)", rows)
        # the absolute value of the smallest integer overflows: any statement that touches `lots` fails
        broken = "abs(-9223372036854775807 - lots)"
        connection.execute(f'CREATE VIEW half_broken AS SELECT day, ticker, "px last", {broken} AS lots FROM prices')
        connection.commit()
    return path


SETTINGS = {"time": "day", "group": "ticker", "rename": {"px last": "close"}}
EXPECTED = pl.DataFrame(
    {"time": [DAYS[0], DAYS[0], DAYS[1]], "group": ["A", "B", "B"], "close": [1.5, 3.5, 4.5]},
    schema_overrides={"time": pl.Datetime("us")},
)


def _asked(database: Path) -> tuple[list[str], sqlite3.Connection]:
    connection = sqlite3.connect(database)
    statements: list[str] = []
    connection.set_trace_callback(statements.append)
    return statements, connection


@pytest.mark.parametrize("table", ["prices", "half_broken"])
def test_sql_by_uri_reads_only_what_is_asked_for_in_order(database: Path, table: str) -> None:
    source = SqlSource(f"sqlite://{database}", table=table, **SETTINGS)
    assert_frame_equal(source.read(["close"]), EXPECTED)
    assert_frame_equal(source.read(["close"], start="2024-01-03"), EXPECTED.tail(1))


def test_sql_column_that_fails_is_reported_only_when_asked_for(database: Path) -> None:
    with pytest.raises(DataError, match="integer overflow"):
        SqlSource(f"sqlite://{database}", table="half_broken", **SETTINGS).read(["lots"])


def test_sql_by_connection_selects_only_the_columns_asked_for(database: Path) -> None:
    statements, connection = _asked(database)
    with closing(connection):
        source = SqlSource(query="SELECT * FROM prices;", connection=connection, **SETTINGS)
        assert_frame_equal(source.read(["close"]), EXPECTED)
    selects = [statement for statement in statements if statement.startswith("SELECT")]
    assert selects[0].endswith("WHERE 1 = 0")
    assert selects[1].startswith('SELECT "day", "ticker", "px last" FROM (')
    assert len(selects) == 2


def test_sql_unknown_column_and_missing_table(database: Path) -> None:
    source = SqlSource(f"sqlite://{database}", table="prices", **SETTINGS)
    with pytest.raises(DataError, match="did you mean `lots`"):
        source.read(["lot"])
    with pytest.raises(DataError, match="no such table"):
        SqlSource(f"sqlite://{database}", table="nothing").read()


def test_sql_secrets_come_from_the_environment_and_stay_out_of_messages(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SqlSource("sqlite://${PRICES_DB}", table="prices", **SETTINGS)
    with pytest.raises(ConfigError, match="environment variable `PRICES_DB` is not set"):
        source.read()
    monkeypatch.setenv("PRICES_DB", str(database))
    assert source.read().height == 3
    assert "${PRICES_DB}" in to_dict(source)["uri"]
    assert "secret" not in SqlSource("postgresql://me:secret@host/db", table="prices").describe()


def test_sql_mysql_quotes_with_backticks() -> None:
    source = SqlSource("mysql://host/db", table="prices")
    assert source._quoted("a`b") == "`a``b`"
    assert SqlSource("postgresql://host/db", table="prices")._quoted('a"b') == '"a""b"'


@pytest.mark.parametrize(
    "settings",
    [
        {"table": "t"},
        {"uri": "sqlite:///x"},
        {"uri": "sqlite:///x", "table": "t", "query": "SELECT 1"},
        {"connection": "sqlite:///x", "table": "t"},
    ],
)
def test_sql_settings_that_do_not_fit_together(settings: dict) -> None:
    with pytest.raises(ConfigError):
        build_kind(SOURCES, {"kind": "sql", **settings})
