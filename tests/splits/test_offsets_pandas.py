"""Lengths of time added to times, against pandas' own offsets; and what is not a length."""

from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qfml.errors import SplitError
from qfml.splits.offsets import Offset, Share, canonical, parse_embargo, parse_size, shift

PANDAS = {
    "Y": lambda n: pd.DateOffset(years=n),
    "M": lambda n: pd.DateOffset(months=n),
    "W": lambda n: pd.DateOffset(weeks=n),
    "D": lambda n: pd.DateOffset(days=n),
    "B": lambda n: n * pd.offsets.BDay(),
    "h": lambda n: pd.Timedelta(n, "h"),
    "min": lambda n: pd.Timedelta(n, "min"),
    "s": lambda n: pd.Timedelta(n, "s"),
    "ms": lambda n: pd.Timedelta(n, "ms"),
    "us": lambda n: pd.Timedelta(n, "us"),
    "ns": lambda n: pd.Timedelta(n, "ns"),
}


@given(
    st.lists(st.datetimes(pd.Timestamp("1900-01-01"), pd.Timestamp("2100-01-01")), min_size=1, max_size=5),
    st.sampled_from(list(PANDAS)),
    st.integers(1, 60),
    st.sampled_from([1, -1]),
)
def test_shift_equals_pandas(times, unit, n, sign):
    nanoseconds = np.array(times, dtype="datetime64[ns]").view(np.int64)
    shifted = shift(nanoseconds, parse_size("step", f"{n}{unit}"), is_datetime=True, sign=sign)
    expected = [(pd.Timestamp(t).as_unit("ns") + PANDAS[unit](sign * n)).as_unit("ns").value for t in times]
    assert shifted.tolist() == expected
    assert shift(nanoseconds[0], parse_size("step", f"{n}{unit}"), is_datetime=True, sign=sign) == expected[0]


def test_shift_of_plain_numbers_keeps_their_type():
    assert shift(np.array([1, 5]), Offset(3, "units"), is_datetime=False).tolist() == [4, 8]
    assert shift(np.array([1.5]), Offset(0.25, "units"), is_datetime=False, sign=-1).tolist() == [1.25]


@pytest.mark.parametrize(
    ("offset", "is_datetime", "message"),
    [
        (Offset(3, "units"), True, "the times are datetimes"),
        (Offset(3, "D"), False, "the times are plain numbers"),
        (Offset(0.5, "units"), False, "not a whole number of the units"),
        (Offset(400, "Y"), True, "outside the years"),
        (Offset(200_000, "D"), True, "outside the range"),
        (Offset(200_000, "B"), True, "outside the range"),
    ],
)
def test_shift_refuses_what_it_cannot_represent(offset, is_datetime, message):
    with pytest.raises(SplitError, match=message):
        shift(np.array([0, 10**18]), offset, is_datetime=is_datetime)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (timedelta(days=5), "5D"),
        (timedelta(hours=36), "36h"),
        (pd.Timedelta("1ns"), "1ns"),
        (pd.Timedelta("90s"), "90s"),
        (np.timedelta64(3, "M"), "3M"),
        (np.timedelta64(90, "m"), "90 min"),
        (np.timedelta64(2, "D"), "2D"),
        (7, 7),
        ("63B", "63B"),
    ],
)
def test_timedelta_is_kept_as_a_string_that_reads_back(value, text):
    assert canonical(value) == text
    assert canonical(canonical(value)) == text
    parse_size("step", text)


@pytest.mark.parametrize(
    ("value", "parsed"),
    [
        (3, 3),
        ("5D", Offset(5, "D")),
        ("0.5 D", Offset(0.5, "D")),
        ("2y", Offset(2, "Y")),
        ("4 units", Offset(4, "units")),
    ],
)
def test_sizes_are_read(value, parsed):
    assert parse_size("step", value) == parsed


@pytest.mark.parametrize(
    ("value", "parsed"),
    [("1%", Share(0.01)), ("2.5 %", Share(0.025)), (0.01, Share(0.01)), (0.0, 0), ("0%", 0), (0, 0)],
)
def test_embargoes_are_read(value, parsed):
    assert parse_embargo("embargo", value) == parsed


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "`step` must be at least 1, got 0"),
        (-3, "must be at least 1"),
        (True, "must be a count of timestamps or a length"),
        (2.5, "must be a count of timestamps or a length"),
        ("0D", "must be positive"),
        ("-1D", "must be positive"),
        ("5 fortnights", "must be a number and a unit"),
        ("5m", "must be a number and a unit"),  # minutes or months?
        ("Y", "must be a number and a unit"),
        ("1.5M", "must be a whole number"),
        (np.timedelta64("NaT"), "must not be NaT"),
    ],
)
def test_what_is_no_size_is_refused(value, message):
    with pytest.raises(SplitError, match=message):
        parse_size("step", value)


@pytest.mark.parametrize("value", [1.0, 1.5, -0.1, "100%", "120%", float("nan")])
def test_what_is_no_share_is_refused(value):
    with pytest.raises(SplitError, match="as a share must lie in"):
        parse_embargo("embargo", value)


@pytest.mark.parametrize(
    ("fraction", "n_times", "count"), [(0.07, 100, 7), (0.01, 20, 1), (0.1, 20, 2), (0.29, 100, 29)]
)
def test_share_is_rounded_up_but_not_by_floating_point(fraction, n_times, count):
    assert Share(fraction).of(n_times) == count
