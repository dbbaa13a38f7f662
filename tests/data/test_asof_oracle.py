"""The as-of join against a loop over all rows, and the leaks it exists to prevent."""

import datetime as dt
import warnings
from typing import Any

import hypothesis.strategies as st
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from polars.testing import assert_frame_equal

from qfml.data.asof import availability, join_asof
from qfml.errors import ConfigError, DataError

DAY = dt.datetime(2024, 1, 1)


def _days(*numbers: float) -> list[dt.datetime]:
    return [DAY + dt.timedelta(days=number) for number in numbers]


def _loop(left: list[tuple], right: list[tuple], lag: int, strict: bool, by_period: bool) -> list[float | None]:
    """left: (key, time); right: (key, published, period, value)."""
    result: list[float | None] = []
    for key, time in left:
        known = [
            row for row in right if row[0] == key and (row[1] + lag < time or (not strict and row[1] + lag == time))
        ]
        newest = max(known, key=lambda row: (row[2] if by_period else 0, row[1]), default=None)
        result.append(newest[3] if newest else None)
    return result


keys = st.sampled_from("abc")
small = st.integers(0, 12)


@settings(max_examples=200)
@given(
    st.lists(st.tuples(keys, small), max_size=15),
    st.lists(st.tuples(keys, small, small), max_size=25, unique=True),
    st.integers(0, 4),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_join_agrees_with_a_loop(
    left: list, right: list, lag: int, strict: bool, by_period: bool, numeric: bool, in_groups: bool
) -> None:
    if not by_period:  # one publication at a time
        right = list({row[:2]: row for row in right}.values())
    # either arrangement is in order within each key: by key then time, or by time
    left.sort(key=lambda row: row if in_groups else row[1])
    right.sort(key=lambda row: row if in_groups else row[1])
    valued = [(*row, float(number)) for number, row in enumerate(right)]
    times = (lambda ns: list(ns)) if numeric else (lambda ns: _days(*ns))
    kind = pl.Int64 if numeric else pl.Datetime("us")
    decisions = pl.DataFrame(
        {"key": [k for k, _ in left], "time": times(t for _, t in left)}, schema={"key": pl.String, "time": kind}
    )
    facts = pl.DataFrame(
        {
            "key": [row[0] for row in valued],
            "published": times(row[1] for row in valued),
            "period": [row[2] for row in valued],
            "value": [row[3] for row in valued],
        },
        schema={"key": pl.String, "published": kind, "period": pl.Int64, "value": pl.Float64},
    )
    joined = join_asof(
        decisions,
        facts,
        published="published",
        by="key",
        lag=lag if numeric else f"{lag}d",
        strict=strict,
        reference="period" if by_period else None,
    )
    assert joined["value"].to_list() == _loop(left, valued, lag, strict, by_period)
    assert_frame_equal(joined.select("key", "time"), decisions)  # rows and their order are the left frame's


@given(st.lists(small, max_size=15), st.lists(small, max_size=15, unique=True), st.integers(0, 4), st.booleans())
def test_join_without_keys_agrees_with_a_loop(left: list[int], right: list[int], lag: int, strict: bool) -> None:
    left.sort()
    right.sort()
    decisions = pl.DataFrame({"time": left}, schema={"time": pl.Int64})
    facts = pl.DataFrame(
        {"time": right, "value": [float(n) for n in right]}, schema={"time": pl.Int64, "value": pl.Float64}
    )
    expected = _loop([("", t) for t in left], [("", t, 0, float(t)) for t in right], lag, strict, False)
    assert join_asof(decisions, facts, lag=lag, strict=strict)["value"].to_list() == expected


# ---- leaks ----------------------------------------------------------------------------------------------------------


def test_what_is_published_at_the_moment_of_the_decision_is_not_known_yet() -> None:
    left, right = pl.DataFrame({"time": _days(9, 10, 11)}), pl.DataFrame({"time": _days(5), "value": [1.0]})
    assert join_asof(left, right, lag="5d")["value"].to_list() == [None, None, 1.0]
    assert join_asof(left, right, lag="5d", strict=False)["value"].to_list() == [None, 1.0, 1.0]


def test_a_revision_never_shows_before_its_publication() -> None:
    # the first quarter: 1.6 on day 30, revised to 1.3 on day 60 and to 1.4 on day 90
    right = pl.DataFrame({"quarter": ["2024Q1"] * 3, "published": _days(30, 60, 90), "growth": [1.6, 1.3, 1.4]})
    left = pl.DataFrame({"time": _days(30, 31, 60, 61, 90, 91)})
    for reference in (None, "quarter"):
        joined = join_asof(left, right, published="published", lag="0d", reference=reference)
        assert joined["growth"].to_list() == [None, 1.6, 1.6, 1.3, 1.3, 1.4]


def test_a_late_revision_of_an_old_period_does_not_displace_a_newer_period() -> None:
    right = pl.DataFrame(
        {"quarter": ["2024Q1", "2024Q2", "2024Q1"], "published": _days(30, 120, 150), "growth": [1.6, 2.0, 1.1]}
    )
    left = pl.DataFrame({"time": _days(31, 121, 151)})
    joined = join_asof(left, right, published="published", lag="0d", reference="quarter")
    assert joined["growth"].to_list() == [1.6, 2.0, 2.0]
    # without a reference period the last publication is the newest, as documented
    assert join_asof(left, right, published="published", lag="0d")["growth"].to_list() == [1.6, 2.0, 1.1]


@given(st.lists(st.tuples(small, small), min_size=1, max_size=15, unique=True), small)
def test_later_publications_never_change_earlier_joins(rows: list[tuple[int, int]], cut: int) -> None:
    rows.sort()
    table = {"published": [r[0] for r in rows], "period": [r[1] for r in rows], "value": list(range(len(rows)))}
    right, left = pl.DataFrame(table), pl.DataFrame({"time": range(15)})
    options: dict[str, Any] = {"published": "published", "lag": 1, "reference": "period"}
    full = join_asof(left, right, **options).filter(pl.col("time") <= cut)
    early = join_asof(left, right.filter(pl.col("published") + 1 < cut), **options).filter(pl.col("time") <= cut)
    assert_frame_equal(full, early)


def test_polars_loses_matches_on_unsorted_rows_and_ours_refuses_them() -> None:
    left = pl.DataFrame({"time": _days(1, 2, 3), "key": ["a"] * 3})
    right = pl.DataFrame({"time": _days(2, 1, 0), "key": ["a"] * 3, "value": [2.0, 1.0, 0.0]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # polars warns that with `by` it cannot check the order, and goes on
        lost = left.join_asof(right, on="time", by="key")["value"].to_list()
        full = left.join_asof(right.sort("time"), on="time", by="key")["value"].to_list()
    assert full == [1.0, 2.0, 2.0]
    assert lost != full
    with pytest.raises(
        DataError, match=r"`time` of the right frame must not decrease within each key: 2 of 3.*row 1 .*sort"
    ):
        join_asof(left, right, by="key", lag="0d")
    with pytest.raises(DataError, match=r"`time` of the left frame must not decrease"):
        join_asof(left.reverse(), right.sort("time"), by="key", lag="0d")
    assert join_asof(left, right.sort("time"), by="key", lag="0d", strict=False)["value"].to_list() == full


# ---- lags -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("published", "lag", "expected"),
    [
        (dt.datetime(2024, 1, 31), "45d", dt.datetime(2024, 3, 16)),
        (dt.datetime(2023, 11, 30), "3mo", dt.datetime(2024, 2, 29)),
        (dt.datetime(2024, 2, 29), "1y", dt.datetime(2025, 2, 28)),
        (dt.datetime(2024, 1, 31), "1q", dt.datetime(2024, 4, 30)),
        (dt.datetime(2024, 3, 1, 16), "2bd", dt.datetime(2024, 3, 5, 16)),  # Friday -> Tuesday
        (dt.datetime(2024, 3, 2, 16), "2bd", dt.datetime(2024, 3, 6, 16)),  # Saturday counts as Monday
        (dt.datetime(2024, 3, 1), "90min", dt.datetime(2024, 3, 1, 1, 30)),
        (dt.datetime(2024, 3, 1), dt.timedelta(days=1), dt.datetime(2024, 3, 2)),
    ],
)
def test_lags_in_days_months_and_weekdays(
    published: dt.datetime, lag: str | dt.timedelta, expected: dt.datetime
) -> None:
    assert availability(pl.Series([published]), lag).to_list() == [expected]


def test_lags_keep_the_hour_of_the_local_clock() -> None:
    # clocks in New York went forward at 2:00 on 10 March 2024 and back at 2:00 on 3 November 2024
    local = [dt.datetime(2024, 3, 9, 16), dt.datetime(2024, 3, 9, 2, 30), dt.datetime(2024, 11, 2, 1, 30)]
    zoned = pl.Series(local).dt.replace_time_zone("America/New_York")
    later = availability(zoned, "1d").dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    # 16:00 EDT; 2:30 does not exist, so 3:30 EDT; 1:30 happens twice, so the later one, in EST
    assert later.to_list() == [
        dt.datetime(2024, 3, 10, 20),
        dt.datetime(2024, 3, 10, 7, 30),
        dt.datetime(2024, 11, 3, 6, 30),
    ]
    hours = availability(zoned, "24h").dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    assert hours[0] == dt.datetime(2024, 3, 10, 21)


def test_a_month_end_lag_that_overtakes_still_joins_the_last_publication() -> None:
    # both are available in the night of 28 February 2023, the later publication twenty hours earlier
    right = pl.DataFrame({"time": [dt.datetime(2023, 1, 30, 23), dt.datetime(2023, 1, 31, 3)], "value": [1.0, 2.0]})
    left = pl.DataFrame({"time": [dt.datetime(2023, 2, 28, hour) for hour in (2, 4)] + [dt.datetime(2023, 3, 1)]})
    assert join_asof(left, right, lag="1mo")["value"].to_list() == [None, 2.0, 2.0]


@pytest.mark.parametrize("lag", ["45", "-1d", "1m", "soon", 5, dt.timedelta(days=-1)])
def test_lag_that_is_none_or_reads_the_future_is_refused(lag: Any) -> None:
    with pytest.raises(ConfigError, match="`lag` must"):
        join_asof(pl.DataFrame({"time": _days(1)}), pl.DataFrame({"time": _days(0)}), lag=lag)


# ---- frames ---------------------------------------------------------------------------------------------------------


def test_pandas_keeps_its_index_and_types() -> None:
    index = pd.DatetimeIndex(_days(1, 2, 3), name="when")
    left = pd.DataFrame(
        {"ticker": pd.Categorical(["a"] * 3), "shares": pd.array([1, None, 3], dtype="Int64")}, index=index
    )
    right = pd.DataFrame({"published": _days(1, 2), "value": [1.0, 2.0]})
    joined = join_asof(left, right, on="when", published="published", lag="0d")
    pd.testing.assert_frame_equal(joined[["ticker", "shares"]], left)
    assert joined["value"].isna().tolist() == [True, False, False]
    assert joined["value"].tolist()[1:] == [1.0, 2.0]


def test_units_dates_and_zones_compare_as_instants() -> None:
    left = pl.DataFrame({"time": pl.Series(_days(1, 2)).dt.replace_time_zone("America/New_York")})
    right = pl.DataFrame(
        {"time": pl.Series([DAY + dt.timedelta(days=1, hours=5)]).dt.replace_time_zone("UTC"), "value": [1.0]}
    )
    right = right.with_columns(pl.col("time").dt.cast_time_unit("ns"))
    assert join_asof(left, right, lag="0d")["value"].to_list() == [None, 1.0]  # midnight in New York is 5:00 UTC
    dates = pl.DataFrame({"time": [dt.date(2024, 1, 2), dt.date(2024, 1, 3)]})
    hours = pl.DataFrame({"time": [dt.datetime(2024, 1, 2, 12)], "value": [1.0]})
    joined = join_asof(dates, hours, lag="0d")
    assert joined["value"].to_list() == [None, 1.0]
    assert joined["time"].dtype == pl.Date


def test_aware_and_naive_frames_are_refused() -> None:
    left = pl.DataFrame({"time": pl.Series(_days(1)).dt.replace_time_zone("UTC")})
    with pytest.raises(DataError, match=r"times with a time zone.*naive times"):
        join_asof(left, pl.DataFrame({"time": _days(0)}))
    with pytest.raises(DataError, match=r"times with a time zone.*numbers"):
        join_asof(left, pl.DataFrame({"time": [0]}))


@pytest.mark.parametrize(
    ("right", "options", "answer"),
    [
        ({"tme": _days(0)}, {}, "right frame: there is no column `time`.*did you mean `tme`"),
        ({"time": [DAY, None]}, {}, r"`time` of the right frame must be present in every row: 1 of 2.*row 1"),
        ({"time": _days(0, 0), "value": [1, 2]}, {}, r"2 of 2 rows share it.*`reference`"),
        ({"time": _days(0, 0), "p": [1, 1]}, {"reference": "p"}, "drop one of each"),
        ({"time": _days(0), "key": [1]}, {"by": "key"}, "`key` must have one type in both frames"),
        ({"time": _days(0), "close": [1.0]}, {"suffix": ""}, "would stand twice"),
    ],
)
def test_frames_that_cannot_be_joined_are_refused(right: dict, options: dict, answer: str) -> None:
    left = pl.DataFrame({"time": _days(1), "close": [1.0], "key": ["a"]})
    with pytest.raises(DataError, match=answer):
        join_asof(left, pl.DataFrame(right), lag="0d", **options)


def test_columns_of_the_same_name_get_a_suffix_and_the_publication_stays_visible() -> None:
    left = pl.DataFrame({"time": _days(1), "at": [7], "row": [8]})
    right = pl.DataFrame({"time": _days(0), "at": [1], "newness": [2]})
    joined = join_asof(left, right, lag="0d")
    assert joined.row(0, named=True) == {
        "time": _days(1)[0],
        "at": 7,
        "row": 8,
        "time_right": DAY,
        "at_right": 1,
        "newness": 2,
    }
