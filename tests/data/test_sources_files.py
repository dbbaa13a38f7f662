"""CSV and Parquet sources: what is read, what is left alone, and what is said when something is wrong."""

import datetime as dt
from pathlib import Path

import polars as pl
import pytest

from qfml.config import build_kind, to_dict
from qfml.data.sources import SOURCES, CsvSource, ParquetSource
from qfml.errors import ConfigError, DataError

DAYS = [dt.datetime(2024, 1, day) for day in (2, 3, 4)]


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    path = tmp_path / "prices.csv"
    path.write_text(
        "Date,Open,Close,Adj Close,note\n2024-01-02,1,2,2.5,a\n2024-01-03,1,3,3.5,b\n2024-01-04,1,4,4.5,c\n"
    )
    return path


def _damage(path: Path, column: str) -> None:
    """Overwrite the data pages of one column with zeros, so that reading it cannot succeed."""
    import pyarrow.parquet as pq

    meta = pq.ParquetFile(path).metadata
    chunk = next(
        c for c in (meta.row_group(0).column(i) for i in range(meta.num_columns)) if c.path_in_schema == column
    )
    data = bytearray(path.read_bytes())
    first = chunk.dictionary_page_offset or chunk.data_page_offset
    data[first : first + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(data)


def test_csv_names_and_types_are_canonical(csv: Path) -> None:
    frame = CsvSource(csv, time="Date").read()
    assert frame.schema == {
        "time": pl.Datetime("us"),
        "open": pl.Float64,
        "close": pl.Float64,
        "adj_close": pl.Float64,
        "note": pl.String,
    }
    assert frame["time"].to_list() == DAYS
    assert frame["adj_close"].to_list() == [2.5, 3.5, 4.5]


def test_csv_prices_that_begin_as_whole_numbers_stay_exact(tmp_path: Path) -> None:
    # a reader that infers integers from the first rows would fail at, or round, the last one
    rows = [f"2024-01-01T{k // 3600:02}:{k // 60 % 60:02}:{k % 60:02},{k}" for k in range(20_000)]
    path = tmp_path / "ticks.csv"
    path.write_text("time,close\n" + "\n".join(rows) + "\n2024-01-02,0.25\n")
    assert CsvSource(path).read()["close"].tail(2).to_list() == [19_999.0, 0.25]


def test_csv_column_that_is_not_asked_for_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "half_broken.csv"
    path.write_text("time,close,low\n2024-01-02,1,oops\n2024-01-03,2,3\n")
    assert CsvSource(path).read(["close"])["close"].to_list() == [1.0, 2.0]
    with pytest.raises(DataError, match="oops"):
        CsvSource(path).read(["low"])


def test_parquet_column_that_is_not_asked_for_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "prices.parquet"
    frame = pl.DataFrame({"time": DAYS, "close": [1.0, 2.0, 3.0], "volume": [7.0, 8.0, 9.0]})
    frame.write_parquet(path, compression="zstd")
    _damage(path, "volume")
    assert ParquetSource(path).read(["close"])["close"].to_list() == [1.0, 2.0, 3.0]
    with pytest.raises(DataError, match="cannot read parquet"):
        ParquetSource(path).read(["volume"])


def test_csv_group_keeps_leading_zeros_and_time_format_is_obeyed(tmp_path: Path) -> None:
    path = tmp_path / "panel.csv"
    path.write_text("day;ticker;PX\n01/02/2024;000001;5\n01/03/2024;600000;n/a\n")
    source = CsvSource(
        path,
        time="day",
        group="ticker",
        rename={"PX": "close"},
        time_format="%m/%d/%Y",
        separator=";",
        null_values=("n/a",),
    )
    frame = source.read()
    assert source.group_column == "group"
    assert frame["group"].to_list() == ["000001", "600000"]
    assert frame["time"].to_list() == DAYS[:2]
    assert frame["close"].to_list() == [5.0, None]


def test_day_and_month_are_never_guessed(tmp_path: Path) -> None:
    path = tmp_path / "ambiguous.csv"
    path.write_text("time,close\n01/02/2024,1\n")
    with pytest.raises(DataError, match=r"`time` must be ISO 8601.*row 0 \(time=01/02/2024\).*time_format"):
        CsvSource(path).read()


@pytest.mark.parametrize("end", ["2024-01-03", dt.date(2024, 1, 3), dt.datetime(2024, 1, 3)])
def test_range_includes_both_ends_as_text_date_or_datetime(csv: Path, end: object) -> None:
    frame = CsvSource(csv, time="Date").read(["close"], start=dt.date(2024, 1, 2), end=end)  # pyright: ignore[reportArgumentType]
    assert frame["time"].to_list() == DAYS[:2]


def test_a_day_as_end_means_all_of_that_day(tmp_path: Path) -> None:
    path = tmp_path / "hours.parquet"
    hours = [dt.datetime(2024, 1, 2, hour) for hour in (0, 23)] + [dt.datetime(2024, 1, 3)]
    pl.DataFrame({"time": hours, "close": [1.0, 2.0, 3.0]}).write_parquet(path)
    assert ParquetSource(path).read(end="2024-01-02").height == 2
    assert ParquetSource(path).read(end="2024-01-02T00:00").height == 1
    assert ParquetSource(path).read(start="2024-01-02T12:00", end="2024-01-02").height == 1


def test_range_is_read_in_the_time_zone_of_the_column(tmp_path: Path) -> None:
    path = tmp_path / "zoned.parquet"
    times = pl.Series([dt.datetime(2024, 1, 2, hour) for hour in (3, 4, 5)]).dt.replace_time_zone("UTC")
    pl.DataFrame({"time": times.dt.convert_time_zone("America/New_York")}).write_parquet(path)
    # New York's 2 January begins at 5:00 UTC
    assert ParquetSource(path).read(start="2024-01-02").height == 1
    assert ParquetSource(path).read(start=dt.datetime(2024, 1, 2, 4, tzinfo=dt.UTC)).height == 2


def test_numeric_times_are_compared_as_numbers(tmp_path: Path) -> None:
    path = tmp_path / "ticks.parquet"
    pl.DataFrame({"time": [1, 2, 3], "close": [1.0, 2.0, 3.0]}).write_parquet(path)
    assert ParquetSource(path).read(start=1.5, end=3)["time"].to_list() == [2, 3]
    with pytest.raises(DataError, match="`start` must be a number"):
        ParquetSource(path).read(start="2024-01-01")


def test_date_and_integer_columns_become_datetime_and_float(tmp_path: Path) -> None:
    path = tmp_path / "dates.parquet"
    pl.DataFrame({"time": [day.date() for day in DAYS], "VOLUME": [1, 2, 3]}).write_parquet(path)
    frame = ParquetSource(path).read(start="2024-01-03")
    assert frame.schema == {"time": pl.Datetime("us"), "volume": pl.Float64}
    assert frame["time"].to_list() == DAYS[1:]


def test_glob_reads_every_file_and_relative_paths_start_at_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, day in enumerate(DAYS):
        pl.DataFrame({"time": [day], "close": [float(number)]}).write_parquet(tmp_path / f"part{number}.parquet")
    monkeypatch.chdir(tmp_path)
    assert ParquetSource("part*.parquet").read()["close"].to_list() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("naive_first", [True, False])
def test_shards_with_and_without_time_zone_are_refused(tmp_path: Path, naive_first: bool) -> None:
    naive = pl.DataFrame({"time": DAYS, "close": [1.0] * 3})
    zoned = naive.with_columns(pl.col("time").dt.replace_time_zone("UTC"))
    for name, frame in zip("ab", (naive, zoned) if naive_first else (zoned, naive)):
        frame.write_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match=r"`time` must be in one time zone in all files.*a\.parquet.*b\.parquet"):
        ParquetSource(tmp_path / "*.parquet").read()


def test_shards_in_two_time_zones_are_refused(tmp_path: Path) -> None:
    for zone in ("UTC", "Europe/Paris"):
        times = pl.Series(DAYS).dt.replace_time_zone(zone)
        pl.DataFrame({"time": times}).write_parquet(tmp_path / f"{zone[:3]}.parquet")
    with pytest.raises(DataError, match="Europe/Paris"):
        ParquetSource(tmp_path / "*.parquet").read()


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("clsoe", "did you mean `close`"),
        ("Adj Close", "is called `adj_close`"),
        ("bid", "there are: time, open, close, adj_close, note"),
    ],
)
def test_unknown_column_offers_the_nearest_name(csv: Path, asked: str, answer: str) -> None:
    with pytest.raises(DataError, match=answer):
        CsvSource(csv, time="Date").read([asked])


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({"time": "Dat"}, "no column `Dat`.*did you mean `Date`"),
        ({"time": "Date", "group": "Note"}, "did you mean `note`"),
        ({"time": "Date", "rename": {"Opn": "open"}}, "did you mean `Open`"),
        ({"time": "Date", "rename": {"Open": "close"}}, "`Open` and `Close` would both be called `close`"),
    ],
)
def test_layout_that_does_not_fit_the_file_is_named(csv: Path, settings: dict, answer: str) -> None:
    with pytest.raises(DataError, match=answer):
        CsvSource(csv, **settings).read()


def test_empty_range_names_the_range_there_is(csv: Path) -> None:
    source = CsvSource(csv, time="Date")
    with pytest.raises(
        DataError, match=r"no rows from 2025-01-01 to its end; it reaches from 2024-01-02.* to 2024-01-04"
    ):
        source.read(start="2025-01-01")
    with pytest.raises(DataError, match="`start` must not be after `end`"):
        source.read(start="2024-01-04", end="2024-01-02")
    with pytest.raises(ConfigError, match="`end` must be a date"):
        source.read(end="soon")
    with pytest.raises(DataError, match="time zone"):
        source.read(end=dt.datetime(2024, 1, 2, tzinfo=dt.UTC))


def test_file_that_is_not_there_or_is_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file nowhere\.csv \(looked in "):
        CsvSource("nowhere.csv").read()
    with pytest.raises(DataError, match="no file"):
        ParquetSource(tmp_path / "*.parquet").read()
    empty = tmp_path / "empty.csv"
    empty.write_text("time,close\n")
    with pytest.raises(DataError, match="has no rows"):
        CsvSource(empty).read()


def test_a_column_called_group_is_an_ordinary_one_unless_named(tmp_path: Path) -> None:
    path = tmp_path / "sectors.parquet"
    pl.DataFrame({"time": DAYS, "group": [1, 2, 3], "close": [1.0] * 3}).write_parquet(path)
    assert ParquetSource(path).read(["close"]).columns == ["time", "close"]
    assert ParquetSource(path, group="group").read(["close"]).columns == ["time", "group", "close"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_sources_are_chosen_in_yaml_and_written_back(kind: str) -> None:
    settings = {"kind": kind, "path": "x", "time": "Date", "group": None, "rename": {"PX": "close"}}
    source = build_kind(SOURCES, settings)
    assert build_kind(SOURCES, to_dict(source)) == source
    assert settings.items() <= to_dict(source).items()
    assert source.describe() == f"{kind}: x"
    with pytest.raises(ConfigError, match=r"`tme`.*`time`"):
        build_kind(SOURCES, {"kind": kind, "path": "x", "tme": "Date"})
