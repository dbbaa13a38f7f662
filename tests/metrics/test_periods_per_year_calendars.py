"""Periods per year of calendars whose rate is known."""

import datetime

import numpy as np
import pandas as pd
import polars as pl
import pytest

from qfml.errors import DataError
from qfml.metrics import periods_per_year


def business_days(start: str, end: str) -> np.ndarray:
    days = np.arange(start, end, dtype="datetime64[D]")
    return days[np.is_busday(days)]


def test_real_trading_days():
    """NYSE was open on 5,031 days of the twenty years 1999-2018: 251.55 a year."""
    from arch.data import sp500

    assert periods_per_year(sp500.load().index) == pytest.approx(5031 / 20, rel=2e-3)


@pytest.mark.parametrize("start", range(5))
@pytest.mark.parametrize("length", range(6, 40))
def test_business_days_do_not_depend_on_the_weekday(start, length):
    """A short sample gives 5 days in 7 whichever weekday it begins and ends on; counting gaps would give up to 365."""
    days = business_days("2001-01-01", "2001-12-31")[start : start + length]
    assert periods_per_year(days) == pytest.approx(365.25 * 5 / 7)


@pytest.mark.parametrize(
    ("time", "expected", "relative"),
    [
        (np.arange("2001-01", "2011-01", dtype="datetime64[M]"), 12, 1e-3),  # leap days
        (np.arange("2001", "2011", dtype="datetime64[Y]"), 1, 1e-3),
        (np.arange("2001-01-05", "2004-01-05", 7, dtype="datetime64[D]"), 365.25 / 7, 1e-12),
        (np.arange("2001-01-01", "2001-03-01", dtype="datetime64[h]"), 365.25 * 24, 1e-12),
        (np.arange("2001-01-01", "2001-03-01", dtype="datetime64[D]"), 365.25, 1e-12),
    ],
    ids=["months", "years", "weeks", "hours round the clock", "days round the week"],
)
def test_calendars(time, expected, relative):
    assert periods_per_year(time) == pytest.approx(expected, rel=relative)


def test_minutes_of_trading_sessions():
    """78 five-minute bars a day: a month gives what a year gives, nights and week-ends included."""
    days = business_days("2001-01-01", "2001-02-01").astype("datetime64[m]")
    bars = (days[:, None] + np.timedelta64(570, "m") + 5 * np.arange(78) * np.timedelta64(1, "m")).ravel()
    assert periods_per_year(bars) == pytest.approx(78 * 365.25 * 5 / 7)


def test_panels_orders_and_containers_agree():
    days = business_days("2001-01-01", "2003-01-01")
    expected = periods_per_year(days)
    shuffled = np.random.default_rng(0).permutation(np.repeat(days, 3))
    assert periods_per_year(shuffled) == expected
    assert periods_per_year(pl.Series(days)) == expected
    assert periods_per_year(pd.DatetimeIndex(days).tz_localize("UTC")) == expected
    assert periods_per_year([datetime.datetime.fromisoformat(str(day)) for day in days]) == expected


@pytest.mark.parametrize(
    ("time", "message"),
    [
        (np.arange(100), "numeric"),
        (np.array(["2001-01-01", "NaT"], dtype="datetime64[D]"), "1 missing"),
        (np.array(["2001-01-01", "2001-01-01"], dtype="datetime64[D]"), "1 distinct"),
        (np.array([], dtype="datetime64[D]"), "0 distinct"),
        (business_days("2001-01-01", "2001-01-06"), "whole week"),
        (["yesterday", "today or so"], "datetimes"),
    ],
)
def test_what_cannot_be_derived_is_refused(time, message):
    with pytest.raises(DataError, match=message):
        periods_per_year(time)
