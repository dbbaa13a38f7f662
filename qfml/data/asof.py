"""As-of join: to each decision time, only what had been published by then.

A fundamental or macroeconomic number belongs to a period, is published weeks later, and is often revised after that.
Joining it by its period, or by its latest revision, tells the model the future. `join_asof` joins by the moment of
publication plus a lag, and keeps revisions (vintages) apart.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import TypeAlias, TypeVar

import pandas as pd
import polars as pl

from qfml.data.validation import parse_offset, parse_times, same_zone, to_polars, unknown_column
from qfml.errors import ConfigError, DataError

__all__ = ["availability", "join_asof"]

Frame: TypeAlias = pl.DataFrame | pd.DataFrame
LeftFrame = TypeVar("LeftFrame", pl.DataFrame, pd.DataFrame)
Lag: TypeAlias = str | int | dt.timedelta

_SHOWN = 5


def join_asof(
    left: LeftFrame,
    right: Frame,
    *,
    on: str = "time",
    published: str = "time",
    lag: Lag = "45d",
    by: str | Sequence[str] | None = None,
    strict: bool = True,
    reference: str | None = None,
    suffix: str = "_right",
) -> LeftFrame:
    """Join to each row of `left` the newest row of `right` that was available before its decision time.

    A row of `right` is available from `published + lag`. For a decision at t the candidates are the rows with the same
    `by` and `published + lag < t` (`<= t` if not `strict`). Of these, the one published last is joined. With
    `reference` (the period that the number describes) it is the newest period, in the last vintage that was available:
    a late revision of an old period then does not displace a newer period.

    Args:
        left: the decision times, increasing (ties allowed) within each `by`; polars or pandas.
        right: the published rows, `published` increasing (ties allowed) within each `by`; polars or pandas.
        on: the time column of `left`.
        published: the column of `right` that says when the row became known (or its period end, with a longer lag).
        lag: added to `published`: "45d", "3mo", "2bd" (weekdays; a weekend publication counts from Monday), "0d", a
            timedelta, or a number for numeric times. Calendar months end at the last day of a shorter month.
        by: columns that must agree, such as the ticker.
        strict: True if what becomes available at the very moment of the decision is not used.
        reference: the column of `right` with the period of the observation, if a period comes in several vintages or
            several periods are published at once.
        suffix: appended to the columns of `right` whose name `left` has already.

    Returns:
        `left` with its rows in their order (and its pandas index), and the columns of `right` other than `by`; null
        where nothing was available yet.

    Raises:
        DataError: a column is missing, a time or key is missing, the rows are not in order (as-of joins lose matches
            on unsorted rows), time zones cannot be compared, or two rows are equally new.
        ConfigError: the lag cannot be read.

    References:
        D. Croushore and T. Stark (2001), A real-time data set for macroeconomists, Journal of Econometrics 105.

    >>> day = dt.date
    >>> prices = pl.DataFrame({"time": [day(2024, 4, 30), day(2024, 5, 1), day(2024, 5, 2)]})
    >>> growth = pl.DataFrame({"time": [day(2024, 4, 25), day(2024, 4, 30)], "gdp": [1.6, 1.3]})
    >>> join_asof(prices, growth, lag="1d")["gdp"].to_list()
    [1.6, 1.6, 1.3]
    """
    keys = [by] if isinstance(by, str) else list(by or ())
    decisions, facts = to_polars(left, time=on), to_polars(right, time=published)
    _check_columns(decisions, [on, *keys], "left")
    _check_columns(facts, [published, *keys, *([reference] if reference else [])], "right")
    _check_key_types(decisions, facts, keys)
    taken = [name for name in facts.columns if name not in keys]
    names = {name: name + suffix if name in decisions.columns else name for name in taken}
    clash = [name for name in names.values() if list(names.values()).count(name) > 1 or name in decisions.columns]
    if clash:
        raise DataError(f"`{clash[0]}` would stand twice in the result; choose another `suffix` than {suffix!r}")
    decision_time, known = parse_times(decisions[on]), parse_times(facts[published])
    same_zone(decision_time, known)
    _check_sorted(decisions, decision_time, keys, on, "left")
    _check_sorted(facts, known, keys, published, "right")
    available = availability(known, lag)
    newest = _newest_rows(facts, known, available, keys, published, reference)
    rows = _last_before(decisions, decision_time, facts, available, newest, keys, strict)
    joined = facts.select(pl.col(name).gather(rows).alias(names[name]) for name in taken)
    if isinstance(left, pd.DataFrame):
        given = left if on in left.columns else left.rename_axis(index=on)
        return pd.concat([given, joined.to_pandas().set_axis(given.index)], axis=1)
    return left.hstack(joined.get_columns())


def availability(published: pl.Series, lag: Lag) -> pl.Series:
    """The moment from which each published row may be used: `published + lag`.

    Args:
        published: datetimes or numbers.
        lag: as in `join_asof`; zero or more.

    >>> availability(pl.Series([dt.datetime(2024, 1, 31)]), "1mo").to_list()
    [datetime.datetime(2024, 2, 29, 0, 0)]
    >>> availability(pl.Series([dt.datetime(2024, 3, 2)]), "2bd").to_list()  # a Saturday
    [datetime.datetime(2024, 3, 6, 0, 0)]
    """
    if isinstance(lag, str) and not published.dtype.is_numeric():
        count, unit = parse_offset(lag, "lag")
        if unit in ("h", "min", "s"):
            return published.dt.offset_by(f"{count}{'m' if unit == 'min' else unit}")  # time that passes on any clock
        return _on_wall_clock(published, count, unit)
    number = isinstance(lag, (int, float)) and not isinstance(lag, bool)
    if number != published.dtype.is_numeric() or isinstance(lag, str):
        expected = "a number, as the times are" if published.dtype.is_numeric() else 'a duration such as "45d"'
        raise ConfigError(f"`lag` must be {expected}, got {lag!r}")
    if lag < (0 if number else dt.timedelta(0)):  # pyright: ignore[reportOperatorIssue]
        raise ConfigError(f"`lag` must not be negative (that would read the future), got {lag!r}")
    return published + lag


def _on_wall_clock(published: pl.Series, count: int, unit: str) -> pl.Series:
    """Add days, months or weekdays at the same hour of the local clock; where the clock jumps, the later moment."""
    local = published.dt.replace_time_zone(None)
    later = local.dt.add_business_days(count, roll="forward") if unit == "bd" else local.dt.offset_by(f"{count}{unit}")
    zone = _zone(published)
    if zone is None:
        return later
    moved, moved_past_gap = (
        times.dt.replace_time_zone(zone, ambiguous="latest", non_existent="null")
        for times in (later, later + dt.timedelta(hours=1))
    )
    return moved.zip_with(moved.is_not_null(), moved_past_gap)


def _newest_rows(
    facts: pl.DataFrame,
    known: pl.Series,
    available: pl.Series,
    keys: list[str],
    published: str,
    reference: str | None,
) -> pl.Series:
    """Row numbers of `facts`, by availability, that are the newest of their key at the moment they become available.

    A row is newer than another by (reference, published). A row that is not newer than one available before it never
    comes to be joined: a late revision of an old period, or a month-end lag that overtakes.
    """
    periods = facts[reference] if reference else pl.repeat(0, facts.height, eager=True)
    table = _key_table(facts, keys, period=periods, published=known, available=available)
    tied = table.drop("available").is_duplicated()
    if tied.any():
        way_out = "drop one of each" if reference else "name the column of their period with `reference`"
        raise DataError(
            f"`{published}` of the right frame must tell which row is newer: {tied.sum()} of {tied.len()} rows "
            f"share it with another row{_in_words(keys)}; {_first_rows(facts, tied, [*keys, published])}; {way_out}"
        )
    by_newness = table.with_row_index("row").sort("period", "published").with_row_index("newness")
    by_availability = by_newness.sort("available", "newness")
    newest_so_far = _over(pl.col("newness").cum_max(), keys)
    return by_availability.filter(pl.col("newness") == newest_so_far)["row"]


def _last_before(
    decisions: pl.DataFrame,
    decision_time: pl.Series,
    facts: pl.DataFrame,
    available: pl.Series,
    rows: pl.Series,
    keys: list[str],
    strict: bool,
) -> pl.Series:
    """For each decision the last of `rows` with the same key that is available in time, null if there is none."""
    decided_at, available_at = _comparable(decision_time, available)
    lefts = _key_table(decisions, keys, at=decided_at).with_row_index("decision").sort("at")
    rights = _key_table(facts, keys, at=available_at)[rows].with_columns(rows.alias("row"))
    # both sides are sorted by time here; polars cannot check that itself once there are keys
    matched = lefts.join_asof(
        rights,
        on="at",
        by=_key_names(keys) or None,
        strategy="backward",
        allow_exact_matches=not strict,
        check_sortedness=False,
    )
    return matched.sort("decision")["row"]


def _comparable(left: pl.Series, right: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Two series of times in one type: the finer unit and UTC, or float numbers."""
    if left.dtype == right.dtype:
        return left, right
    if left.dtype.is_numeric():
        common = pl.Int64 if left.dtype.is_integer() and right.dtype.is_integer() else pl.Float64
        return left.cast(common), right.cast(common)
    unit = "ns" if "ns" in (_unit(left), _unit(right)) else "us"
    left, right = (times.dt.convert_time_zone("UTC") if _zone(times) else times for times in (left, right))
    return left.dt.cast_time_unit(unit), right.dt.cast_time_unit(unit)


def _zone(times: pl.Series) -> str | None:
    return times.dtype.time_zone if isinstance(times.dtype, pl.Datetime) else None


def _unit(times: pl.Series) -> str | None:
    return times.dtype.time_unit if isinstance(times.dtype, pl.Datetime) else None


def _key_names(keys: Sequence[str]) -> list[str]:
    return [f"key_{number}" for number in range(len(keys))]


def _key_table(frame: pl.DataFrame, keys: Sequence[str], **columns: pl.Series) -> pl.DataFrame:
    """The keys under names of our own, so that no column of the user's can clash, beside `columns`."""
    return pl.DataFrame({name: frame[key] for name, key in zip(_key_names(keys), keys)} | columns)


def _over(expression: pl.Expr, keys: Sequence[str]) -> pl.Expr:
    return expression.over(_key_names(keys)) if keys else expression


def _check_columns(frame: pl.DataFrame, names: Sequence[str], side: str) -> None:
    for name in names:
        if name not in frame.columns:
            raise DataError(f"{side} frame: {unknown_column(name, frame.columns)}")
        absent = frame[name].is_null()
        if frame[name].dtype.is_float():
            absent = absent | frame[name].is_nan().fill_null(False)
        if absent.any():
            raise DataError(
                f"`{name}` of the {side} frame must be present in every row: {absent.sum()} of {frame.height} are "
                f"missing; {_first_rows(frame, absent, names)}; drop or mend these rows first"
            )


def _check_key_types(left: pl.DataFrame, right: pl.DataFrame, keys: Sequence[str]) -> None:
    for key in keys:
        if left[key].dtype != right[key].dtype:
            raise DataError(
                f"`{key}` must have one type in both frames, got {left[key].dtype} and {right[key].dtype}; cast one"
            )


def _check_sorted(frame: pl.DataFrame, times: pl.Series, keys: list[str], name: str, side: str) -> None:
    zero = 0 if times.dtype.is_numeric() else dt.timedelta(0)
    earlier = _over(pl.col("at").diff() < zero, keys).fill_null(False)
    backward = _key_table(frame, keys, at=times).select(earlier.alias("backward"))["backward"]
    if backward.any():
        raise DataError(
            f"`{name}` of the {side} frame must not decrease{_in_words(keys)}: {backward.sum()} of {frame.height} rows "
            f"do; {_first_rows(frame, backward, [*keys, name])}; sort the frame by {', '.join([*keys, name])}"
        )


def _in_words(keys: Sequence[str]) -> str:
    return f" within each {', '.join(keys)}" if keys else ""


def _first_rows(frame: pl.DataFrame, bad: pl.Series, shown: Sequence[str]) -> str:
    rows = frame.with_row_index("__row__").filter(bad).head(_SHOWN)
    texts = [
        f"row {record['__row__']} (" + ", ".join(f"{name}={record[name]}" for name in dict.fromkeys(shown)) + ")"
        for record in rows.iter_rows(named=True)
    ]
    return f"first: {', '.join(texts)}"
