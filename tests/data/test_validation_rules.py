"""Each rule stops broken data with column, rule, count and first rows; what is changed is counted."""

import datetime as dt
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from polars.testing import assert_frame_equal

from qfml.config import build_kind, to_dict
from qfml.data.sources import ArchSource
from qfml.data.validation import (
    MISSING_POLICIES,
    DropMissing,
    ErrorOnMissing,
    ForwardFill,
    parse_offset,
    parse_times,
    validate,
)
from qfml.errors import ConfigError, DataError

DAY = dt.datetime(2024, 1, 1)
ERROR = ErrorOnMissing()


def _days(*numbers: int) -> list[dt.datetime]:
    return [DAY + dt.timedelta(days=number) for number in numbers]


def _panel(**changes: Any) -> pl.DataFrame:
    columns = {"time": _days(0, 1, 2, 0, 1, 2), "group": list("aaabbb"), "close": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}
    return pl.DataFrame(columns | changes)


# ---- data that keep the rules ---------------------------------------------------------------------------------------


def test_clean_panel_comes_back_unchanged_and_the_report_says_so() -> None:
    frame, report = validate(_panel(), group="group", missing=ERROR, max_gap="1D")
    assert_frame_equal(frame, _panel())
    assert (report.n_rows_in, report.n_rows_out, report.n_groups) == (6, 6, 2)
    assert (report.start, report.end) == (DAY, DAY + dt.timedelta(days=2))
    assert report.n_dropped == report.n_moved == 0
    assert report.filled == report.missing == report.infinite == {}
    assert report.largest_gap == dt.timedelta(days=1)
    assert report.positive == ("close",)
    assert len(report.lines) == 3  # nothing was done, nothing is reported as done


def test_panel_by_date_is_arranged_by_group_and_the_report_counts_it() -> None:
    frame, report = validate(_panel().sort("time", "group"), group="group", missing=ERROR)
    assert_frame_equal(frame, _panel())
    assert report.n_moved == 4  # the first and the last row keep their place
    assert "arranged by group, then time: 4 rows changed place" in report.lines


def test_pandas_with_time_in_the_index_and_text_times_validate_alike() -> None:
    expected, _ = validate(_panel(), group="group", missing=ERROR)
    assert_frame_equal(validate(_panel().to_pandas().set_index("time"), group="group", missing=ERROR)[0], expected)
    text = _panel().with_columns(pl.col("time").dt.strftime("%Y-%m-%d"))
    frame, report = validate(text, group="group", missing=ERROR)
    assert_frame_equal(frame, expected)
    assert "times read from ISO 8601 text" in report.lines


def test_bundled_prices_keep_the_rules_and_their_longest_closure_is_that_of_september_2001() -> None:
    _, report = validate(ArchSource("sp500").read(), missing=ERROR, max_gap="7D")
    assert report.largest_gap == dt.timedelta(days=7)
    assert report.n_rows_out == 5031
    with pytest.raises(DataError, match=r"1 of 5031 rows.*time=2001-09-17"):
        validate(ArchSource("sp500").read(), missing=ERROR, max_gap="6D")
    with pytest.raises(DataError, match="290 of 8611 rows"):
        validate(ArchSource("wti").read(), missing=ERROR)
    assert validate(ArchSource("wti").read(), missing=DropMissing())[1].n_dropped == 290


# ---- times ----------------------------------------------------------------------------------------------------------


def test_missing_time_and_group() -> None:
    with pytest.raises(DataError, match=r"`time` must be present.*1 of 6 rows.*row 1 \(time=None, group=a\)"):
        validate(_panel(time=[DAY, None, *_days(2, 0, 1, 2)]), group="group", missing=ERROR)
    with pytest.raises(DataError, match=r"`group` must be present.*1 of 6 rows.*row 2"):
        validate(_panel(group=["a", "a", None, *"bbb"]), group="group", missing=ERROR)
    with pytest.raises(DataError, match=r"`time` must be present.*row 1"):
        validate(pl.DataFrame({"time": [1.0, np.nan]}), missing=ERROR)


def test_duplicate_time_and_group_shows_the_first_five_rows() -> None:
    frame = pl.DataFrame({"time": _days(0, 1, 1, 1, 1, 1, 1), "group": ["a"] * 7})
    with pytest.raises(DataError) as caught:
        validate(frame, group="group", missing=ERROR)
    message = str(caught.value)
    assert "`time` and `group` must be unique" in message
    assert "6 of 7 rows" in message
    assert [f"row {number} " in message for number in range(8)] == [False, True, True, True, True, True, False, False]


def test_times_that_go_back_are_named_within_their_group_only() -> None:
    # b starts before a ends: fine. b's last row precedes the one before it: not fine
    frame = _panel(time=_days(0, 1, 2, 0, 2, 1))
    with pytest.raises(DataError, match=r"`time` must increase within each `group`: 1 of 6 rows.*row 5.*sort by group"):
        validate(frame, group="group", missing=ERROR)
    with pytest.raises(DataError, match="name the `group` column"):
        validate(frame.with_columns(time=pl.Series(_days(0, 1, 2, -3, -2, -1))), missing=ERROR)


def test_interleaved_groups_are_no_reason_to_complain() -> None:
    frame = _panel(time=_days(5, 0, 6, 1, 7, 2), group=list("ababab"))
    assert validate(frame, group="group", missing=ERROR)[1].n_groups == 2


def test_mixed_time_zones_in_text_and_in_objects() -> None:
    text = ["2024-01-01T00:00+01:00", "2024-01-02T00:00:00+01:00", "2024-07-01 00:00:00.5+02:00", "2024-07-02T00:00"]
    with pytest.raises(DataError, match=r"one time zone.*\+0100 \(2 rows\).*2 of 4 rows.*row 2 .*row 3 .*%z"):
        validate(pl.DataFrame({"time": text}), missing=ERROR)
    stamps = [pd.Timestamp("2024-01-01", tz="Europe/Paris"), pd.Timestamp("2024-01-02", tz="UTC"), pd.NaT]
    with pytest.raises(DataError, match=r"`time` must be in one time zone.*Europe/Paris, UTC.*1 of 3 rows.*row 1 "):
        validate(pd.DataFrame({"time": pd.Series(stamps, dtype=object)}), missing=ERROR)


def test_text_with_one_offset_becomes_utc() -> None:
    times = parse_times(pl.Series("time", ["2024-01-01T00:30:00-05:30", None, "2024-01-02 00:00-0530"]))
    assert times.dtype == pl.Datetime("us", "UTC")
    assert times.to_list() == [
        dt.datetime(2024, 1, 1, 6, tzinfo=dt.UTC),
        None,
        dt.datetime(2024, 1, 2, 5, 30, tzinfo=dt.UTC),
    ]
    zulu = parse_times(pl.Series("time", ["2024-01-01T00:00Z", "2024-01-01T01:00+00:00"]))
    assert zulu.dt.hour().to_list() == [0, 1]


def test_time_format_with_offset_reads_each_row_into_utc() -> None:
    times = parse_times(pl.Series(["2024-01-01 01:00+0100", "2024-07-01 02:00+0200"]), "%Y-%m-%d %H:%M%z")
    assert times.to_list() == [dt.datetime(2024, 1, 1, tzinfo=dt.UTC), dt.datetime(2024, 7, 1, tzinfo=dt.UTC)]


@given(
    st.lists(st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2200, 1, 1)), min_size=1, max_size=5),
    st.sampled_from(["auto", "milliseconds", "microseconds"]),
    st.sampled_from(["T", " "]),
)
def test_iso_text_is_read_as_python_reads_it(times: list[dt.datetime], precision: str, separator: str) -> None:
    text = [time.isoformat(separator, precision) for time in times]
    assert parse_times(pl.Series("time", text)).to_list() == [dt.datetime.fromisoformat(line) for line in text]


def test_nanoseconds_are_kept() -> None:
    times = parse_times(pl.Series(["2024-01-01T00:00:00.123456789"]))
    assert times.dtype == pl.Datetime("ns")
    assert times.dt.nanosecond().item() == 123_456_789


@pytest.mark.parametrize("text", ["02/01/2024", "2024-02-30", "2024-01-01T25:00", "20240101", "yesterday", ""])
def test_text_that_is_no_iso_time_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"`time` must be ISO 8601.*1 of 2 rows.*row 1 .*time_format"):
        parse_times(pl.Series("time", ["2024-01-01", text]))


def test_time_that_is_no_time_is_refused() -> None:
    with pytest.raises(DataError, match="must hold times"):
        validate(pl.DataFrame({"time": [True, False]}), missing=ERROR)
    with pytest.raises(DataError, match="no rows"):
        validate(_panel().clear(), missing=ERROR)


# ---- values ---------------------------------------------------------------------------------------------------------


def test_missing_values_stop_the_error_policy_with_their_own_values() -> None:
    frame = _panel(close=[1.0, np.nan, 3.0, None, np.inf, -np.inf])
    with pytest.raises(DataError) as caught:
        validate(frame, group="group", missing=ERROR, prices=())
    message = str(caught.value)
    assert "`close` must be finite" in message
    assert "4 of 6 rows" in message
    for row in ("row 1", "close=nan", "row 3", "close=None", "close=inf", "close=-inf", "drop, error, forward_fill"):
        assert row in message


def test_drop_counts_rows_and_values_by_column() -> None:
    frame = _panel(close=[1.0, np.nan, 3.0, None, np.inf, 6.0]).with_columns(volume=pl.Series([1, 2, None, None, 5, 6]))
    kept, report = validate(frame, group="group", missing=DropMissing())
    assert kept["close"].to_list() == [1.0, 6.0]
    assert report.n_dropped == 4
    assert report.missing == {"close": 2, "volume": 2}
    assert report.infinite == {"close": 1}
    assert report.filled == {}
    assert "4 of 6 rows dropped by the policy drop" in report.lines
    assert "`close`: 2 missing and 1 infinite values" in report.lines


def test_dropping_everything_is_an_error() -> None:
    with pytest.raises(DataError, match="no row is left"):
        validate(
            _panel(close=[None] * 6).with_columns(pl.col("close").cast(pl.Float64)),
            missing=DropMissing(),
            group="group",
        )


def test_forward_fill_counts_and_never_crosses_a_group() -> None:
    kept, report = validate(
        _panel(close=[1.0, np.nan, np.inf, 4.0, None, 6.0]), group="group", missing=ForwardFill(limit=2)
    )
    assert kept["close"].to_list() == [1.0, 1.0, 1.0, 4.0, 4.0, 6.0]
    assert report.filled == {"close": 3}
    assert report.n_dropped == 0
    assert "`close`: 3 values filled by the policy forward_fill(limit=2)" in report.lines
    with pytest.raises(DataError, match=r"forward_fill\(limit=2\): 1 of 6 rows.*row 3 "):
        validate(_panel(close=[1.0, 2.0, 3.0, None, 5.0, 6.0]), group="group", missing=ForwardFill(limit=2))


def test_forward_fill_beyond_its_limit_is_an_error() -> None:
    frame = pl.DataFrame({"time": _days(*range(5)), "close": [1.0, None, None, None, 5.0]})
    with pytest.raises(DataError, match=r"`close` must be finite.*1 of 5 rows.*row 3 "):
        validate(frame, missing=ForwardFill(limit=2))
    assert validate(frame, missing=ForwardFill(limit=3))[1].filled == {"close": 3}


cells = st.sampled_from([None, float("nan"), float("inf"), 1.0, 2.0, 3.0])


@given(st.lists(st.tuples(st.sampled_from("abc"), cells), min_size=1, max_size=30), st.integers(1, 3))
def test_forward_fill_agrees_with_a_loop(rows: list[tuple[str, float | None]], limit: int) -> None:
    frame = pl.DataFrame(
        {"time": range(len(rows)), "group": [g for g, _ in rows], "close": [v for _, v in rows]},
        schema_overrides={"close": pl.Float64},
    )
    last: dict[str, tuple[int, float]] = {}
    seen: dict[str, int] = {}
    expected: list[float | None] = []
    for name, value in rows:
        seen[name] = seen.get(name, 0) + 1
        if value is not None and np.isfinite(value):
            last[name] = (seen[name], value)
        at, carried = last.get(name, (0, None))
        expected.append(carried if seen[name] - at <= limit else None)
    filled = ForwardFill(limit).apply(frame, columns=["close"], group="group")
    assert filled["close"].to_list() == expected
    if None in expected:
        with pytest.raises(DataError, match=f"{expected.count(None)} of {len(rows)} rows"):
            validate(frame, group="group", missing=ForwardFill(limit))
    else:
        _, report = validate(frame, group="group", missing=ForwardFill(limit))
        assert sum(report.filled.values()) == sum(v is None or not np.isfinite(v) for _, v in rows)


def test_non_positive_prices() -> None:
    frame = _panel(close=[1.0, 0.0, 3.0, -4.0, np.nan, 6.0])
    with pytest.raises(DataError, match=r"`close` must be positive: 2 of 6 rows.*row 1 .*row 3 .*close=-4\.0"):
        validate(frame, group="group", missing=DropMissing())
    assert validate(frame, group="group", missing=DropMissing(), prices=())[1].n_dropped == 1
    with pytest.raises(DataError, match="did you mean `close`"):
        validate(frame, group="group", missing=DropMissing(), prices=("clos",))
    with pytest.raises(DataError, match="`close` must hold numbers"):
        validate(pl.DataFrame({"time": [1], "close": ["1.0"]}), missing=ERROR)


def test_gaps_are_measured_within_groups_and_after_dropping() -> None:
    frame = _panel(time=_days(0, 1, 2, 20, 21, 22), close=[1.0, None, 3.0, 4.0, 5.0, 6.0])
    _, report = validate(frame, group="group", missing=DropMissing(), max_gap="2D")
    assert report.largest_gap == dt.timedelta(days=2)
    with pytest.raises(DataError, match=r"gap longer than 1d.*1 of 5 rows.*row 2 .*gap=2 days"):
        validate(frame, group="group", missing=DropMissing(), max_gap="1d")
    with pytest.raises(DataError, match=r"gap longer than 1"):
        validate(pl.DataFrame({"time": [1, 2, 4]}), missing=ERROR, max_gap=1)


@pytest.mark.parametrize("max_gap", ["3mo", "2bd", "10", "D", 10, "1m"])
def test_gap_limit_that_has_no_fixed_length_is_refused(max_gap: str | int) -> None:
    with pytest.raises(ConfigError, match="`max_gap`"):
        validate(_panel(), group="group", missing=ERROR, max_gap=max_gap)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("45D", (45, "d")), ("3 MO", (3, "mo")), ("1Y", (1, "y")), ("63B", (63, "bd")), ("5min", (5, "min"))],
)
def test_offsets_are_read(text: str, parsed: tuple[int, str]) -> None:
    assert parse_offset(text) == parsed


# ---- policies in YAML -----------------------------------------------------------------------------------------------


def test_policies_are_chosen_in_yaml_and_have_no_default() -> None:
    for settings in ({"kind": "error"}, {"kind": "drop"}, {"kind": "forward_fill", "limit": 3}):
        assert to_dict(build_kind(MISSING_POLICIES, settings)) == settings
    with pytest.raises(ConfigError, match="needs `limit`"):
        build_kind(MISSING_POLICIES, "forward_fill")
    with pytest.raises(ConfigError, match="at least 1"):
        build_kind(MISSING_POLICIES, {"kind": "forward_fill", "limit": 0})
    with pytest.raises(TypeError, match="missing"):
        validate(_panel())  # pyright: ignore[reportCallIssue]
