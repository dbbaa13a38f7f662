"""Rules that price data must keep before anything is learnt from them, and the choices where a rule may be relaxed.

`validate` stops at the first broken rule and says which column, which rule, how many rows, and which come first. What
it does change (missing values under the chosen policy, the arrangement of the rows) is counted in its report: nothing
is dropped, filled or sorted silently.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

import pandas as pd
import polars as pl

from qfml.errors import ConfigError, DataError

__all__ = [
    "MISSING_POLICIES",
    "DropMissing",
    "ErrorOnMissing",
    "ForwardFill",
    "MissingPolicy",
    "ValidationReport",
    "parse_offset",
    "parse_times",
    "to_polars",
    "validate",
]

Frame: TypeAlias = pl.DataFrame | pd.DataFrame

PRICES = ("open", "high", "low", "close", "adj_close")  # checked for being positive where present
_ROW = "__row__"  # number of the row in the frame as given, for messages
_SHOWN = 5


# ---- choices --------------------------------------------------------------------------------------------------------


@runtime_checkable
class MissingPolicy(Protocol):
    """What to do with missing or infinite values: a frozen dataclass with a `kind` and the method `apply`."""

    kind: ClassVar[str]

    def apply(self, frame: pl.DataFrame, *, columns: Sequence[str], group: str | None) -> pl.DataFrame:
        """Return `frame` with the holes in `columns` treated; a hole that is left makes `validate` raise."""
        ...


@dataclass(frozen=True)
class ErrorOnMissing:
    """Any missing or infinite value is an error.

    >>> ErrorOnMissing.kind
    'error'
    """

    kind: ClassVar[str] = "error"

    def apply(self, frame: pl.DataFrame, *, columns: Sequence[str], group: str | None) -> pl.DataFrame:
        """Leave the frame as it is: every hole that is left is an error."""
        return frame


@dataclass(frozen=True)
class DropMissing:
    """Drop each row that has a missing or infinite value; the report counts them.

    >>> DropMissing.kind
    'drop'
    """

    kind: ClassVar[str] = "drop"

    def apply(self, frame: pl.DataFrame, *, columns: Sequence[str], group: str | None) -> pl.DataFrame:
        """Keep the rows without a hole."""
        holes = [_is_hole(frame, name) for name in columns]
        return frame.filter(~pl.any_horizontal(holes)) if holes else frame


@dataclass(frozen=True)
class ForwardFill:
    """Carry the last value of the same group forward over at most `limit` rows; a longer hole is an error.

    Args:
        limit: longest run of rows that is filled, at least 1.

    >>> ForwardFill(limit=2)
    ForwardFill(limit=2)
    """

    limit: int
    kind: ClassVar[str] = "forward_fill"

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ConfigError(f"`limit` of forward_fill must be at least 1 row, got {self.limit}")

    def apply(self, frame: pl.DataFrame, *, columns: Sequence[str], group: str | None) -> pl.DataFrame:
        """Fill each run of holes up to `limit` rows; nothing crosses from one group into the next."""
        filled = []
        for name in columns:
            value = pl.when(~_is_hole(frame, name)).then(pl.col(name)).forward_fill(limit=self.limit)
            filled.append((value.over(group) if group else value).alias(name))
        return frame.with_columns(filled)


MISSING_POLICIES: dict[str, type] = {cls.kind: cls for cls in (ErrorOnMissing, DropMissing, ForwardFill)}


# ---- validate -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ValidationReport:
    """What `validate` found and did, in numbers; `lines` says the same in words.

    Attributes:
        n_rows_in: rows of the frame as given.
        n_rows_out: rows that are left.
        n_groups: number of groups, 1 without a group column.
        start: earliest time that is left.
        end: latest time that is left.
        policy: the missing-value policy that was applied.
        checked: the columns that were searched for missing and infinite values.
        positive: the columns that were checked to be positive.
        missing: null and NaN values found, by column.
        infinite: infinite values found, by column.
        n_dropped: rows dropped by the policy.
        filled: values filled by the policy, by column.
        n_moved: rows that changed place when the frame was arranged by group, then time.
        largest_gap: longest time between two rows of one group, None with fewer than two rows in every group.
        max_gap: the longest gap allowed, None if gaps were not checked.
        text_times: True if the times came as text and were read as ISO 8601.
    """

    n_rows_in: int
    n_rows_out: int
    n_groups: int
    start: Any
    end: Any
    policy: str
    checked: tuple[str, ...]
    positive: tuple[str, ...]
    missing: dict[str, int]
    infinite: dict[str, int]
    n_dropped: int
    filled: dict[str, int]
    n_moved: int
    largest_gap: Any
    max_gap: Any
    text_times: bool

    @property
    def lines(self) -> tuple[str, ...]:
        """One sentence for each thing that was found or done."""
        gap = "gaps not limited" if self.max_gap is None else f"no gap longer than {self.max_gap}"
        positive = f"{', '.join(self.positive)} > 0" if self.positive else "no column checked for being positive"
        lines = [
            f"{self.n_rows_in} rows in, {self.n_rows_out} out, {self.n_groups} group(s), {self.start} to {self.end}",
            f"time present, unique and increasing in each group; {positive}; {gap}; the largest is {self.largest_gap}",
            f"searched for missing and infinite values: {', '.join(self.checked) or 'no column'}",
        ]
        if self.text_times:
            lines.append("times read from ISO 8601 text")
        for name in self.checked:
            if self.missing.get(name) or self.infinite.get(name):
                lines.append(
                    f"`{name}`: {self.missing.get(name, 0)} missing and {self.infinite.get(name, 0)} infinite values"
                )
        if self.n_dropped:
            lines.append(f"{self.n_dropped} of {self.n_rows_in} rows dropped by the policy {self.policy}")
        lines += [f"`{name}`: {n} values filled by the policy {self.policy}" for name, n in self.filled.items()]
        if self.n_moved:
            lines.append(f"arranged by group, then time: {self.n_moved} rows changed place")
        return tuple(lines)

    def __str__(self) -> str:
        return "\n".join(self.lines)


def validate(
    frame: Frame,
    *,
    time: str = "time",
    group: str | None = None,
    prices: Sequence[str] | None = None,
    missing: MissingPolicy,
    max_gap: str | dt.timedelta | int | None = None,
    columns: Sequence[str] | None = None,
) -> tuple[pl.DataFrame, ValidationReport]:
    """Check the rules of price data and apply the policy for missing values; stop at the first broken rule.

    The rules, in order: times are present, of one kind (all in one time zone or all naive), and no (time, group)
    occurs twice; times increase within each group; prices are positive; no value is missing or infinite after the
    policy; no gap between two rows of a group is longer than `max_gap`.

    Args:
        frame: polars or pandas; one row per (time, group), in any arrangement of the groups.
        time: the time column; datetimes, dates, numbers, or ISO 8601 text. A pandas index of that name will do.
        group: the group column, None for a single series.
        prices: columns that must be positive; by default open, high, low, close and adj_close where present.
        missing: one of MISSING_POLICIES, applied to null, NaN and infinite values. There is no default.
        max_gap: longest time allowed between two rows of a group, such as "10D" or "4h"; a number for numeric times.
        columns: columns searched for missing and infinite values; by default every numeric column.

    Returns:
        The frame (polars), arranged by group, then time, and the report of what was found and done.

    Raises:
        DataError: a rule is broken; the message names column, rule, count and the first five rows, counted from 0.

    >>> import datetime
    >>> prices = pl.DataFrame({"time": [datetime.date(2024, 1, 2), datetime.date(2024, 1, 3)], "close": [1.0, None]})
    >>> kept, report = validate(prices, missing=DropMissing())
    >>> kept.height, report.n_dropped, report.missing
    (1, 1, {'close': 1})
    """
    table = to_polars(frame, time=time)
    for name in (time, *([group] if group else []), *(prices or ()), *(columns or ())):
        if name not in table.columns:
            raise unknown_column(name, table.columns)
    text_times = table[time].dtype == pl.String
    table = table.with_columns(parse_times(table[time])).with_row_index(_ROW)
    limit = _gap_limit(max_gap, table[time])
    _check_times(table, time, group)
    positive = tuple(name for name in PRICES if name in table.columns) if prices is None else tuple(prices)
    _check_positive(table, positive, time, group)
    if columns is None:
        columns = [name for name in table.columns if name not in (_ROW, time, group) and table[name].dtype.is_numeric()]
    kept = missing.apply(table, columns=columns, group=group)
    _check_no_holes(table, kept, columns, time, group, missing)
    _check_gaps(kept, time, group, limit, max_gap)
    arranged = kept.sort([group, time], maintain_order=True) if group else kept
    missing_counts, infinite_counts = _count_holes(table, columns)
    before = table[kept[_ROW]]  # the rows that were kept, as they were
    filled = {name: int(before.select(_is_hole(before, name).sum()).item()) for name in columns}
    report = ValidationReport(
        n_rows_in=table.height,
        n_rows_out=kept.height,
        n_groups=kept[group].n_unique() if group else 1,
        start=kept[time].min(),
        end=kept[time].max(),
        policy=_policy_text(missing),
        checked=tuple(columns),
        positive=positive,
        missing=missing_counts,
        infinite=infinite_counts,
        n_dropped=table.height - kept.height,
        filled={name: n for name, n in filled.items() if n},
        n_moved=int((arranged[_ROW] != kept[_ROW]).sum()),
        largest_gap=_gaps(kept, time, group).max(),
        max_gap=max_gap,
        text_times=text_times,
    )
    return arranged.drop(_ROW), report


def _check_times(table: pl.DataFrame, time: str, group: str | None) -> None:
    if not table.height:
        raise DataError("the frame has no rows")
    keys = [time, group] if group else [time]
    for name in keys:
        absent = pl.col(name).is_null()
        if table[name].dtype.is_float():
            absent = absent | ~pl.col(name).is_finite()
        _refuse(table, absent, name, "must be present in every row", keys, "mend or drop these rows first")
    _refuse(
        table,
        pl.struct(keys).is_duplicated(),
        " and ".join(f"`{name}`" for name in keys),
        "must be unique: one row for each" + (" time and group" if group else " time"),
        keys,
        "keep one of each, or name the `group` column" if not group else "keep one row of each",
    )
    earlier = pl.col(time).diff() < (0 if table[time].dtype.is_numeric() else dt.timedelta(0))
    earlier = earlier.over(group) if group else earlier
    rule = "must increase" + (f" within each `{group}`" if group else " from row to row")
    way_out = f"sort by {' then '.join(reversed(keys))}" + ("" if group else ", or name the `group` column")
    _refuse(table, earlier, time, rule, keys, way_out)


def _check_positive(table: pl.DataFrame, positive: Sequence[str], time: str, group: str | None) -> None:
    for name in positive:
        if not table[name].dtype.is_numeric():
            raise DataError(f"`{name}` must hold numbers, got {table[name].dtype}; convert the column first")
        bad = ~_is_hole(table, name) & (pl.col(name) <= 0)
        shown = [time, *([group] if group else []), name]
        _refuse(table, bad, name, "must be positive", shown, "mend the rows, or leave the column out of `prices`")


def _check_no_holes(
    table: pl.DataFrame,
    kept: pl.DataFrame,
    columns: Sequence[str],
    time: str,
    group: str | None,
    missing: MissingPolicy,
) -> None:
    if not kept.height:
        raise DataError(f"no row is left after the policy {_policy_text(missing)}; every row has a missing value")
    for name in columns:
        rows = kept.filter(_is_hole(kept, name))[_ROW]
        shown = [time, *([group] if group else []), name]
        rule = f"must be finite, but values are missing or infinite after the policy {_policy_text(missing)}"
        way_out = f"choose another policy ({', '.join(sorted(MISSING_POLICIES))}) or mend the rows"
        _refuse(table, pl.col(_ROW).is_in(rows.implode()), name, rule, shown, way_out)


def _check_gaps(table: pl.DataFrame, time: str, group: str | None, limit: Any, max_gap: Any) -> None:
    if limit is None:
        return
    gapped = table.with_columns(_gaps(table, time, group).alias("gap"))
    shown = [time, *([group] if group else []), "gap"]
    _refuse(
        gapped,
        pl.col("gap") > limit,
        time,
        f"must not have a gap longer than {max_gap} before it",
        shown,
        "raise `max_gap`, start later, or mend the data",
    )


def _gaps(table: pl.DataFrame, time: str, group: str | None) -> pl.Series:
    difference = pl.col(time).diff()
    return table.select((difference.over(group) if group else difference).alias("gap"))["gap"]


def _gap_limit(max_gap: str | dt.timedelta | int | None, times: pl.Series) -> Any:
    if max_gap is None:
        return None
    if times.dtype.is_numeric() != (isinstance(max_gap, (int, float)) and not isinstance(max_gap, bool)):
        expected = "a number, as the times are" if times.dtype.is_numeric() else 'a duration such as "10D"'
        raise ConfigError(f"`max_gap` must be {expected}, got {max_gap!r}")
    if not isinstance(max_gap, str):
        return max_gap
    count, unit = parse_offset(max_gap, "max_gap")
    if unit not in _SECONDS:
        raise ConfigError(f"`max_gap` must have a fixed length ({', '.join(_SECONDS)}), got {max_gap!r}")
    return dt.timedelta(seconds=count * _SECONDS[unit])


def _refuse(table: pl.DataFrame, bad: pl.Expr, name: str, rule: str, shown: Sequence[str], way_out: str) -> None:
    """Raise DataError with count and first rows if `bad` holds anywhere."""
    rows = table.filter(bad)
    if rows.height:
        name = name if "`" in name else f"`{name}`"
        raise DataError(
            f"{name} {rule}: {rows.height} of {table.height} rows break this; {_first_rows(rows, shown)}; {way_out}"
        )


def _first_rows(rows: pl.DataFrame, shown: Sequence[str]) -> str:
    texts = []
    for record in rows.head(_SHOWN).iter_rows(named=True):
        texts.append(f"row {record[_ROW]} (" + ", ".join(f"{name}={record[name]}" for name in shown) + ")")
    return f"first: {', '.join(texts)}"


def _is_hole(frame: pl.DataFrame, name: str) -> pl.Expr:
    """True where the value is null, NaN or infinite; never null itself."""
    absent = pl.col(name).is_null()
    return absent | ~pl.col(name).is_finite().fill_null(False) if frame[name].dtype.is_float() else absent


def _count_holes(table: pl.DataFrame, columns: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
    missing, infinite = {}, {}
    for name in columns:
        n_infinite = int(table[name].is_infinite().sum()) if table[name].dtype.is_float() else 0
        n_holes = int(table.select(_is_hole(table, name).sum()).item())
        if n_holes > n_infinite:
            missing[name] = n_holes - n_infinite
        if n_infinite:
            infinite[name] = n_infinite
    return missing, infinite


def _policy_text(policy: MissingPolicy) -> str:
    settings = vars(policy) if dataclasses.is_dataclass(policy) else {}
    inside = ", ".join(f"{key}={value}" for key, value in settings.items())
    return f"{policy.kind}({inside})" if inside else policy.kind


# ---- times and frames -----------------------------------------------------------------------------------------------

_ISO = re.compile(r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)?\s?(Z|[+-]\d{2}:?\d{2})?)?$")
_OFFSET = r"(Z|[+-]\d{2}:?\d{2})$"
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_UNITS = {**{unit: unit for unit in _SECONDS}, "b": "bd", "bd": "bd", "mo": "mo", "q": "q", "y": "y"}


def parse_offset(text: str, name: str = "offset") -> tuple[int, str]:
    """Read a length of time such as "45d", "3mo" or "2bd" into its count and unit.

    Units, in either case: s, min, h, d, w; bd or b (weekdays), mo, q, y (calendar). "m" is refused: it could be
    minutes or months.

    Args:
        text: a whole number and a unit.
        name: the name of the argument, for the message.

    Raises:
        ConfigError: the text is not of that form.

    >>> parse_offset("45D"), parse_offset("2b")
    ((45, 'd'), (2, 'bd'))
    """
    match = re.fullmatch(r"\s*(\d+)\s*([A-Za-z]+)\s*", text)
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ConfigError(
            f"`{name}` must be a whole number and a unit ({', '.join(dict.fromkeys(_UNITS.values()))}), got {text!r}"
        )
    return int(match[1]), unit


def parse_times(times: pl.Series, time_format: str | None = None) -> pl.Series:
    """Make a series of times out of text; dates become midnight; datetimes and numbers pass through.

    Text is read as ISO 8601, by `time_format` if one is given, and never by guessing the order of day and month. Text
    with one UTC offset throughout becomes a series in UTC.

    Args:
        times: datetimes, dates, numbers or text.
        time_format: such as "%m/%d/%Y"; with %z each row's offset is applied and the result is in UTC.

    Raises:
        DataError: text of another form, or with different offsets, or of no time at all.

    >>> parse_times(pl.Series("time", ["2024-01-02"])).to_list()
    [datetime.datetime(2024, 1, 2, 0, 0)]
    """
    if times.dtype == pl.Date:
        return times.cast(pl.Datetime("us"))
    if times.dtype == pl.String:
        parsed = _parse_iso(times) if time_format is None else times.str.to_datetime(time_format, strict=False)
        form = "ISO 8601 text such as 2024-01-31 or 2024-01-31T16:00" if time_format is None else f"of {time_format!r}"
        _refuse_times(times, parsed.is_null() & times.is_not_null(), f"must be {form}", "give `time_format`")
        return parsed
    if time_format is not None:
        raise DataError(f"`time_format` is for text, but `{times.name}` holds {times.dtype}; leave it out")
    if not (times.dtype.is_numeric() or isinstance(times.dtype, pl.Datetime)):
        raise DataError(f"`{times.name}` must hold times (dates, datetimes, ISO 8601 text, numbers), got {times.dtype}")
    return times


def _parse_iso(times: pl.Series) -> pl.Series:
    """ISO 8601 text -> datetimes, null where the text is of another form; different offsets raise."""
    text = times.set(~times.str.contains(_ISO.pattern).fill_null(False), None)
    offset = text.str.slice(10).str.extract(_OFFSET).str.replace("Z", "+0000", literal=True).str.replace(":", "")
    kinds = offset.filter(text.is_not_null()).fill_null("none").value_counts(sort=True)
    if kinds.height > 1:
        first = kinds[times.name][0]
        found = ", ".join(f"{kind} ({count} rows)" for kind, count in kinds.iter_rows())
        _refuse_times(
            times,
            text.is_not_null() & (offset.fill_null("none") != first),
            f"must be in one time zone, but has the UTC offsets {found}",
            "convert to UTC first, or give a `time_format` that ends in %z",
        )
    clock = text.str.slice(0, 10) + "T" + text.str.slice(11).str.replace(r"\s?" + _OFFSET, "")
    clock = clock.str.replace("T$", "T00:00").str.replace(r"(T\d{2}:\d{2})$", "${1}:00")
    nanoseconds = bool(clock.str.contains(r"\.\d{7,9}$").any())
    parsed = clock.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", strict=False, time_unit="ns" if nanoseconds else "us")
    if kinds.height == 0 or kinds[times.name][0] == "none":
        return parsed
    sign = -1 if kinds[times.name][0][0] == "-" else 1
    hours, minutes = int(kinds[times.name][0][1:3]), int(kinds[times.name][0][3:5])
    return (parsed - sign * dt.timedelta(hours=hours, minutes=minutes)).dt.replace_time_zone("UTC")


def _refuse_times(times: pl.Series, bad: pl.Series, rule: str, way_out: str) -> None:
    table = pl.DataFrame({times.name: times, "bad": bad}).with_row_index(_ROW)
    _refuse(table, pl.col("bad"), times.name, rule, [times.name], way_out)


def to_polars(frame: Frame, *, time: str = "time") -> pl.DataFrame:
    """Return a polars frame; of a pandas frame, the index becomes the column `time` if the column is not there.

    Raises:
        DataError: neither pandas nor polars, column names that are not unique text, or an object column that mixes
            time zones.

    >>> to_polars(pd.DataFrame({"close": [1.0]}, index=pd.DatetimeIndex(["2024-01-02"]))).columns
    ['time', 'close']
    """
    if isinstance(frame, pl.DataFrame):
        return frame
    if not isinstance(frame, pd.DataFrame):
        raise DataError(f"expected a polars or pandas DataFrame, got {type(frame).__name__}")
    if time not in frame.columns:
        if time in frame.index.names:
            frame = frame.reset_index()
        elif isinstance(frame.index, pd.DatetimeIndex):
            frame = frame.rename_axis(index=time).reset_index()
    if not frame.columns.is_unique or not all(isinstance(name, str) for name in frame.columns):
        raise DataError(f"column names must be unique text, got {list(frame.columns)}; rename the columns")
    one_zone = {
        name: pd.to_datetime(frame[name])
        for name in frame.columns
        if frame[name].dtype == object and _holds_datetimes(frame[name])
    }
    frame = frame.assign(**one_zone)
    for name in frame.columns:
        try:
            pl.from_pandas(frame[[name]])
        except (ValueError, TypeError) as error:  # what pyarrow raises for an object column of several types
            raise DataError(f"`{name}` must hold values of one type: {error}; convert the column first") from None
    return pl.from_pandas(frame)


def _holds_datetimes(column: pd.Series) -> bool:
    """True if an object column holds datetimes of one zone; different zones raise."""
    kinds = [
        None if not isinstance(value, dt.datetime) or value is pd.NaT else str(value.tzinfo or "none")
        for value in column
    ]
    found = [kind for kind in dict.fromkeys(kinds) if kind is not None]
    if len(found) > 1:
        bad = pl.Series([kind is not None and kind != found[0] for kind in kinds])
        times = pl.Series(str(column.name), [str(value) for value in column])
        rule = f"must be in one time zone, but has {', '.join(found)} (none is a naive time)"
        _refuse_times(times, bad, rule, "convert to UTC with pandas.to_datetime(..., utc=True)")
    return bool(found)


def same_zone(left: pl.Series, right: pl.Series) -> None:
    """Raise DataError unless two series of times can be compared: both numbers, both naive, or both with a zone."""

    def nature(times: pl.Series) -> str:
        if not isinstance(times.dtype, pl.Datetime):
            return "numbers"
        return "times with a time zone" if times.dtype.time_zone else "naive times"

    if nature(left) != nature(right):
        raise DataError(
            f"`{left.name}` holds {nature(left)} ({left.dtype}) and `{right.name}` holds {nature(right)} "
            f"({right.dtype}); bring both to the same kind, with dt.replace_time_zone or dt.convert_time_zone"
        )


def unknown_column(name: str, names: Iterable[str]) -> DataError:
    """The error for a column that is not there, with the nearest name that is."""
    names = list(names)
    lowered = {other.lower(): other for other in names}
    close = difflib.get_close_matches(name.lower(), list(lowered), n=1)
    nearest = f" (did you mean `{lowered[close[0]]}`?)" if close else ""
    return DataError(f"there is no column `{name}`{nearest}; there are: {', '.join(names)}")
