"""Where prices come from: bundled samples, files, object stores, databases and frames, all read in one way.

A source is a frozen dataclass that says where the data are and what its columns are called. `read` returns a polars
frame with the columns `time`, `group` (for panels) and those that were asked for; other columns are never read. Open,
high, low, close, adjusted close and volume get their lower-case names without being told ("Adj Close" -> adj_close);
everything else keeps its name unless `rename` gives another.

A source changes no value and drops no row but those outside `start` and `end`; `qfml.data.validation` judges the rest.
"""

from __future__ import annotations

import datetime as dt
import glob
import importlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable
from zoneinfo import ZoneInfo

import pandas as pd
import polars as pl

from qfml.data.validation import parse_times, to_polars, unknown_column
from qfml.errors import ConfigError, DataError, MissingExtraError

__all__ = [
    "SOURCES",
    "ArchSource",
    "CsvSource",
    "FrameSource",
    "ParquetSource",
    "SkfolioSource",
    "Source",
    "SqlSource",
]

TIME, GROUP = "time", "group"  # the names of these columns in every frame that a source returns
ColumnType: TypeAlias = Any  # a polars type; run-time type checkers cannot read the class of polars
Columns: TypeAlias = Sequence[str] | None
Bound: TypeAlias = dt.date | str | float | None  # a datetime is a date; text is ISO 8601; numbers for numeric times

_STANDARD = ("open", "high", "low", "close", "adj_close", "volume")


@runtime_checkable
class Source(Protocol):
    """Where data come from: a frozen dataclass with a `kind`."""

    kind: ClassVar[str]

    @property
    def group_column(self) -> str | None:
        """Name of the group column in the frames that `read` returns, None for a single series."""
        ...

    def read(self, columns: Columns = None, start: Bound = None, end: Bound = None) -> pl.DataFrame:
        """Read `time`, the group and `columns` (all if None) from `start` to `end`, both included.

        A day without a clock time as `end` means all of that day.

        Raises:
            DataError: the data are not there, a column is not among them, or no row lies in the range.
        """
        ...

    def describe(self) -> str:
        """One line for reports and messages, without secrets."""
        ...


# ---- samples that come with a dependency ----------------------------------------------------------------------------

_ARCH_SETS = {
    "sp500": "S&P 500 price index, daily, 1999-2018",
    "nasdaq": "NASDAQ Composite price index, daily, 1999-2018",
    "wti": "West Texas Intermediate crude oil spot price, daily, 1986-2019, with missing days",
    "vix": "VIX index level (not tradable), daily, 2014-2019",
}
_ARCH_RENAME = {"wti": {"DCOILWTICO": "close"}, "vix": {"vix": "close"}}


@dataclass(frozen=True)
class ArchSource:
    """Daily prices that the dependency `arch` ships: no download, the default input.

    `sp500` and `nasdaq` hold open, high, low, close, adj_close and volume. They are price indices: dividends are not
    reinvested, and "Adj Close", kept as adj_close, equals close. `wti` and `vix` hold close alone; `wti` has missing
    values, so its validation needs a policy other than `error`.

    Args:
        name: sp500, nasdaq, wti or vix.

    >>> ArchSource("sp500").read(["close"], start="1999-01-04", end="1999-01-05")["close"].round(2).to_list()
    [1228.1, 1244.78]
    """

    name: str = "sp500"
    kind: ClassVar[str] = "arch"

    def __post_init__(self) -> None:
        if self.name not in _ARCH_SETS:
            raise ConfigError(f"`name` of source arch must be one of {', '.join(_ARCH_SETS)}, got {self.name!r}")

    @property
    def group_column(self) -> str | None:
        """None: a single series."""
        return None

    def read(self, columns: Columns = None, start: Bound = None, end: Bound = None) -> pl.DataFrame:
        """Read the columns from `start` to `end`; see `Source.read`."""
        frame = importlib.import_module(f"arch.data.{self.name}").load()
        layout = _Layout("Date", None, _ARCH_RENAME.get(self.name, {}))
        return _read(to_polars(frame, time="Date").lazy(), layout, columns, start, end, self.describe())

    def describe(self) -> str:
        """The name of the data set."""
        return f"arch: {self.name} ({_ARCH_SETS[self.name]})"


@dataclass(frozen=True)
class SkfolioSource:
    """The panel of 20 S&P 500 stocks, 1990-2022, that `skfolio` ships (extra `samples`), as (time, group, close).

    The prices are adjusted for splits and dividends. The stocks were picked with hindsight: all of them survived, so
    the return of holding them is not what an investor in 1990 could have expected.

    Args:
        name: sp500, the one panel that comes with the package.
    """

    name: str = "sp500"
    kind: ClassVar[str] = "skfolio"

    def __post_init__(self) -> None:
        if self.name != "sp500":
            raise ConfigError(f"`name` of source skfolio must be sp500 (the others are downloads), got {self.name!r}")

    @property
    def group_column(self) -> str | None:
        """The ticker, under the name `group`."""
        return GROUP

    def read(self, columns: Columns = None, start: Bound = None, end: Bound = None) -> pl.DataFrame:
        """Read the columns from `start` to `end`; see `Source.read`."""
        try:
            datasets = importlib.import_module("skfolio.datasets")
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "skfolio":
                raise
            raise MissingExtraError("skfolio", "samples") from None
        wide = to_polars(datasets.load_sp500_dataset(), time="Date")
        long = wide.unpivot(index="Date", variable_name=GROUP, value_name="close").lazy()
        return _read(long, _Layout("Date", GROUP, {}), columns, start, end, self.describe())

    def describe(self) -> str:
        """The name of the panel."""
        return "skfolio: 20 S&P 500 stocks, adjusted close, daily, 1990-2022"


# ---- files and object stores ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CsvSource:
    """A CSV file, a glob of them, or s3:// and gs:// objects; gzip and zstd are recognised.

    Args:
        path: a path (relative to the current directory), a glob such as "prices/*.csv", or an s3:// or gs:// URL.
        time: the time column: ISO 8601, or text of the form `time_format`.
        group: the group column of a panel, read as text ("000001" keeps its zeros); None for a single series.
        rename: other names for columns, from the file's to ours: {PX_LAST: close}.
        time_format: such as "%m/%d/%Y" where the times are not ISO 8601.
        separator: what stands between two values.
        null_values: text that means a missing value, such as "." or "n/a".
        storage_options: settings of the object store, as polars takes them; `${NAME}` stands for an environment
            variable, so that no secret is written into a config.
    """

    path: str | Path
    time: str = TIME
    group: str | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    time_format: str | None = None
    separator: str = ","
    null_values: tuple[str, ...] = ()
    storage_options: Mapping[str, str | bool | int] | None = None
    kind: ClassVar[str] = "csv"

    @property
    def group_column(self) -> str | None:
        """`group` for a panel."""
        return GROUP if self.group else None

    def read(self, columns: Columns = None, start: Bound = None, end: Bound = None) -> pl.DataFrame:
        """Read the columns from `start` to `end`; see `Source.read`."""
        path = _existing(self.path)
        layout = _Layout(self.time, self.group, self.rename, self.time_format)
        with _readable(self.describe()):
            header = self._scan(path, {}).collect_schema().names()
            types: dict[str, ColumnType] = {}
            for ours, theirs in layout.columns(header).items():
                # prices that happen to begin with whole numbers would be taken for integers
                if ours in _STANDARD:
                    types[theirs] = pl.Float64()
                if ours in (TIME, GROUP):
                    types[theirs] = pl.String()
            return _read(self._scan(path, types), layout, columns, start, end, self.describe())

    def _scan(self, path: str, types: Mapping[str, ColumnType]) -> pl.LazyFrame:
        return pl.scan_csv(
            path,
            separator=self.separator,
            null_values=list(self.null_values) or None,
            schema_overrides=dict(types),
            infer_schema_length=10_000,
            storage_options=_expanded(self.storage_options),
        )

    def describe(self) -> str:
        """The path."""
        return f"csv: {self.path}"


@dataclass(frozen=True)
class ParquetSource:
    """A Parquet file, a glob of them, or s3:// and gs:// objects, read through polars' own object store.

    Args:
        path: a path (relative to the current directory), a glob such as "s3://bucket/prices/*.parquet", or a URL.
        time: the time column: datetimes, dates, numbers, or text as for CSV.
        group: the group column of a panel; None for a single series.
        rename: other names for columns, from the file's to ours: {PX_LAST: close}.
        time_format: such as "%m/%d/%Y" where the times are text, but not ISO 8601.
        storage_options: settings of the object store, as polars takes them; `${NAME}` stands for an environment
            variable, so that no secret is written into a config.
    """

    path: str | Path
    time: str = TIME
    group: str | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    time_format: str | None = None
    storage_options: Mapping[str, str | bool | int] | None = None
    kind: ClassVar[str] = "parquet"

    @property
    def group_column(self) -> str | None:
        """`group` for a panel."""
        return GROUP if self.group else None

    def read(self, columns: Columns = None, start: Bound = None, end: Bound = None) -> pl.DataFrame:
        """Read the columns from `start` to `end`; see `Source.read`."""
        path = _existing(self.path)
        layout = _Layout(self.time, self.group, self.rename, self.time_format)
        with _readable(self.describe()):
            lazy = self._scan(path)
            if lazy.collect_schema().get(self.time) in (pl.Datetime, pl.Datetime("us", "UTC")):
                self._check_zones(path)
            return _read(lazy, layout, columns, start, end, self.describe())

    def _scan(self, path: str, **options: str) -> pl.LazyFrame:
        return pl.scan_parquet(path, storage_options=_expanded(self.storage_options), **options)  # pyright: ignore[reportArgumentType]

    def _check_zones(self, path: str) -> None:
        """Refuse files with and without a time zone: polars would read naive times as UTC, or UTC as naive."""
        if not (re.search(r"[*?\[]", path) or not Path(path).suffix):
            return
        files = self._scan(path, include_file_paths="__file__").select("__file__").unique(maintain_order=True).collect()
        first = None
        for file in files["__file__"]:
            dtype = self._scan(file).collect_schema().get(self.time)
            zone = dtype.time_zone if isinstance(dtype, pl.Datetime) else None
            first = first or (file, zone)
            if zone != first[1]:
                raise DataError(
                    f"`{self.time}` must be in one time zone in all files, but is in {first[1]} in {first[0]} "
                    f"and in {zone} in {file} (None is a naive time); write all files with the same zone"
                )

    def describe(self) -> str:
        """The path."""
        return f"parquet: {self.path}"


# ---- databases ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SqlSource:
    """A table or a query in a database, read through polars; of it, only the columns that are needed are selected.

    The rows come ordered by group and time, since a table has no order of its own. `start` and `end` are applied after
    reading: put a WHERE into `query` to leave the rest in the database.

    Args:
        uri: such as "postgresql://user:${PGPASSWORD}@host/prices" or "sqlite:////data/prices.db", where `${NAME}`
            stands for an environment variable; needs `connectorx` (extra `sql`).
        table: a table or view, also with its schema ("market.prices"); this or `query`.
        query: a SELECT.
        time: the time column: timestamps, dates, numbers, or text as for CSV.
        group: the group column of a panel; None for a single series.
        rename: other names for columns, from the table's to ours: {px_last: close}.
        time_format: such as "%m/%d/%Y" where the times are text, but not ISO 8601.
        connection: an open DB-API connection, from a script only; this or `uri`.
    """

    uri: str | None = None
    table: str | None = None
    query: str | None = None
    time: str = TIME
    group: str | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    time_format: str | None = None
    connection: Any = field(default=None, repr=False, compare=False)
    kind: ClassVar[str] = "sql"

    def __post_init__(self) -> None:
        if (self.uri is None) == (self.connection is None):
            raise ConfigError("source sql needs a `uri` (or, from a script, an open `connection`), and not both")
        if isinstance(self.connection, (str, bytes, Mapping, list, int, float)):
            raise ConfigError("`connection` takes an open DB-API connection from a script; in a config give a `uri`")
        if (self.table is None) == (self.query is None):
            raise ConfigError("source sql needs a `table` or a `query`, and not both")

    @property
    def group_column(self) -> str | None:
        """`group` for a panel."""
        return GROUP if self.group else None

    def read(self, columns: Columns = None, start: Bound = None, end: Bound = None) -> pl.DataFrame:
        """Read the columns from `start` to `end`; see `Source.read`."""
        layout = _Layout(self.time, self.group, self.rename, self.time_format)
        query = (self.query or "").strip().rstrip(";")
        origin = f"({query}) qfml_source" if query else ".".join(map(self._quoted, (self.table or "").split(".")))
        available = layout.columns(self._run(f"SELECT * FROM {origin} WHERE 1 = 0").columns)
        selected = ", ".join(self._quoted(available[name]) for name in _wanted(columns, available, layout.group))
        order = ", ".join(self._quoted(name) for name in (self.group, self.time) if name)
        frame = self._run(f"SELECT {selected} FROM {origin} ORDER BY {order}")
        return _read(frame.lazy(), layout, columns, start, end, self.describe())

    def _run(self, query: str) -> pl.DataFrame:
        with _readable(self.describe()):
            if self.uri is None:
                return pl.read_database(query, self.connection, infer_schema_length=None)
            uri = _with_environment(self.uri)
            try:
                return pl.read_database_uri(query, uri)
            except ModuleNotFoundError:
                raise MissingExtraError("connectorx", "sql") from None
            except Exception as error:  # connectorx raises bare RuntimeErrors
                raise DataError(f"cannot read {self.describe()}: {str(error).replace(uri, self.uri)}") from None

    def _quoted(self, name: str) -> str:
        dialect = self.uri.partition(":")[0] if self.uri else type(self.connection).__module__
        mark = "`" if re.search("mysql|mariadb|bigquery", dialect.lower()) else '"'
        return mark + name.replace(mark, mark * 2) + mark

    def describe(self) -> str:
        """Database and table, without the password."""
        where = re.sub(r"(://[^:/@]*):.*@", r"\1:***@", self.uri) if self.uri else "open connection"
        return f"sql: {where}, {self.table or 'query'}"


# ---- frames ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FrameSource:
    """A polars frame (eager or lazy) or a pandas frame, from a script; a config cannot hold one.

    Args:
        frame: the data; a pandas DatetimeIndex serves as the time column if there is no column of that name.
        time: the time column: datetimes, dates, numbers, or text as for CSV.
        group: the group column of a panel; None for a single series.
        rename: other names for columns, from the frame's to ours: {PX_LAST: close}.
        time_format: such as "%m/%d/%Y" where the times are text, but not ISO 8601.

    >>> prices = pl.DataFrame({"Date": ["2024-01-02", "2024-01-03"], "Close": [1.0, 2.0], "note": ["a", "b"]})
    >>> FrameSource(prices, time="Date").read(["close"], start="2024-01-03").columns
    ['time', 'close']
    """

    frame: Any = field(repr=False)
    time: str = TIME
    group: str | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    time_format: str | None = None
    kind: ClassVar[str] = "frame"

    def __post_init__(self) -> None:
        if not isinstance(self.frame, (pl.DataFrame, pl.LazyFrame, pd.DataFrame)):
            raise ConfigError(
                f"source frame takes a polars or pandas frame from a script, got {type(self.frame).__name__}; "
                "in a config choose csv, parquet or sql"
            )

    @property
    def group_column(self) -> str | None:
        """`group` for a panel."""
        return GROUP if self.group else None

    def read(self, columns: Columns = None, start: Bound = None, end: Bound = None) -> pl.DataFrame:
        """Read the columns from `start` to `end`; see `Source.read`."""
        frame = self.frame if isinstance(self.frame, pl.LazyFrame) else to_polars(self.frame, time=self.time).lazy()
        layout = _Layout(self.time, self.group, self.rename, self.time_format)
        with _readable(self.describe()):
            return _read(frame, layout, columns, start, end, self.describe())

    def describe(self) -> str:
        """The type of the frame."""
        return f"frame: {type(self.frame).__module__.partition('.')[0]} {type(self.frame).__name__}"


SOURCES: dict[str, type] = {
    cls.kind: cls for cls in (ArchSource, SkfolioSource, CsvSource, ParquetSource, SqlSource, FrameSource)
}


# ---- the one way to read --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    """What the columns are called where they come from."""

    time: str
    group: str | None
    rename: Mapping[str, str]
    time_format: str | None = None

    def columns(self, names: Sequence[str]) -> dict[str, str]:
        """Our name -> the source's name, for every column there is; time and group first."""
        for name in (self.time, *([self.group] if self.group else []), *self.rename):
            if name not in names:
                raise unknown_column(name, names)
        ours = {self.time: TIME} | ({self.group: GROUP} if self.group else {})
        rest = {name: self.rename.get(name, _standard_name(name)) for name in names if name not in ours}
        result: dict[str, str] = {}
        for theirs, name in (ours | rest).items():
            if name in result:
                raise DataError(f"`{result[name]}` and `{theirs}` would both be called `{name}`; use `rename` for one")
            result[name] = theirs
        return result


def _standard_name(name: str) -> str:
    lowered = re.sub(r"[\s_]+", "_", name.strip().lower())
    return lowered if lowered in _STANDARD else name


def _wanted(columns: Columns, available: Mapping[str, str], group: str | None) -> list[str]:
    """Our names of the columns to read: time, group, then those asked for, in that order."""
    if columns is None:
        return list(available)
    columns = [columns] if isinstance(columns, str) else list(columns)
    renamed = {theirs: ours for ours, theirs in available.items()}
    for name in columns:
        if name in available:
            continue
        if name in renamed:
            raise DataError(f"the column `{name}` is called `{renamed[name]}` once it is read; ask for that name")
        raise unknown_column(name, available)
    return list(dict.fromkeys([TIME, *([GROUP] if group else []), *columns]))


def _read(lazy: pl.LazyFrame, layout: _Layout, columns: Columns, start: Bound, end: Bound, what: str) -> pl.DataFrame:
    """Select, rename, parse times and cut to the range; the selection reaches the file before anything is read."""
    available = layout.columns(lazy.collect_schema().names())
    lazy = lazy.select(pl.col(available[name]).alias(name) for name in _wanted(columns, available, layout.group))
    schema = lazy.collect_schema()
    to_float = [name for name in schema if name in _STANDARD and schema[name].is_numeric()]
    lazy = lazy.with_columns(pl.col(to_float).cast(pl.Float64))
    if GROUP in schema and layout.group:
        lazy = lazy.with_columns(pl.col(GROUP).cast(pl.String))
    if schema[TIME] == pl.Date:
        lazy = lazy.with_columns(pl.col(TIME).cast(pl.Datetime("us")))
    elif not (isinstance(schema[TIME], pl.Datetime) or schema[TIME].is_numeric()):
        frame = lazy.collect()
        lazy = frame.with_columns(parse_times(frame[TIME], layout.time_format)).lazy()
    elif layout.time_format is not None:
        parse_times(pl.Series(TIME, [], schema[TIME]), layout.time_format)  # raises: a format for what is not text
    rows = lazy.filter(_in_range(lazy.collect_schema()[TIME], start, end)).collect()
    if not rows.height:
        _explain_empty(lazy, start, end, what)
    return rows


def _explain_empty(lazy: pl.LazyFrame, start: Bound, end: Bound, what: str) -> None:
    first, last = lazy.select(pl.col(TIME).min().alias("first"), pl.col(TIME).max().alias("last")).collect().row(0)
    if first is None:
        raise DataError(f"{what} has no rows")
    raise DataError(
        f"{what} has no rows from {start or 'its beginning'} to {end or 'its end'}; "
        f"it reaches from {first} to {last}: choose `start` and `end` in this range"
    )


def _in_range(dtype: ColumnType, start: Bound, end: Bound) -> pl.Expr:
    inside = pl.lit(True)
    first = last = None
    if start is not None:
        first, _ = _moment(start, "start", dtype)
        inside = inside & (pl.col(TIME) >= _literal(first, dtype))
    if end is not None:
        last, whole_day = _moment(end, "end", dtype)
        until = last + dt.timedelta(days=1) if whole_day else last
        inside = inside & (
            pl.col(TIME) < _literal(until, dtype) if whole_day else pl.col(TIME) <= _literal(last, dtype)
        )
        last = until
    if first is not None and last is not None and first > last:
        raise DataError(f"`start` must not be after `end`, got {start} and {end}")
    return inside


def _literal(value: Any, dtype: ColumnType) -> pl.Expr:
    """A bound in the column's own type, so that the comparison can reach the file's statistics."""
    return pl.lit(value, dtype) if isinstance(dtype, pl.Datetime) else pl.lit(value)


def _moment(value: Bound, name: str, dtype: ColumnType) -> tuple[Any, bool]:
    """A bound of the range in the kind of the time column, and whether it is a day without a clock time."""
    if not isinstance(dtype, pl.Datetime):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return value, False
        raise DataError(f"`{name}` must be a number, as the times are ({dtype}), got {value!r}")
    if isinstance(value, str):
        try:
            value = (
                dt.date.fromisoformat(value) if len(value) == len("2024-01-31") else dt.datetime.fromisoformat(value)
            )
        except ValueError:
            raise ConfigError(f"`{name}` must be a date such as 2024-01-31, got {value!r}") from None
    if not isinstance(value, dt.date):
        raise ConfigError(f"`{name}` must be a date such as 2024-01-31, got {value!r}")
    whole_day = not isinstance(value, dt.datetime)
    moment = dt.datetime(value.year, value.month, value.day) if whole_day else value
    if dtype.time_zone is None:
        if moment.tzinfo is not None:
            raise DataError(f"`{name}` has a time zone ({value}), but the times have none; leave it out")
        return moment, whole_day
    zone = ZoneInfo(dtype.time_zone)
    return (moment.replace(tzinfo=zone) if moment.tzinfo is None else moment.astimezone(zone)), whole_day


def _existing(path: str | Path) -> str:
    """The path as text, after making sure that a local one is there; URLs pass through."""
    text = os.path.expanduser(path)
    if "://" not in text and not os.path.exists(text) and not glob.glob(text, recursive=True):
        raise DataError(f"there is no file {path} (looked in {Path.cwd()}); paths are relative to that directory")
    return text


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """Turn polars' and the operating system's reading errors into DataError."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"cannot read {what}: {error}") from error


def _expanded(options: Mapping[str, str | bool | int] | None) -> dict[str, Any] | None:
    if options is None:
        return None
    return {
        key: _with_environment(str(value).lower() if value is True or value is False else str(value))
        for key, value in options.items()
    }


def _with_environment(text: str) -> str:
    """Replace `${NAME}` by the environment variable of that name."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise ConfigError(f"the environment variable `{match[1]}` is not set; set it, or leave out ${{{match[1]}}}")
        return os.environ[match[1]]

    return re.sub(r"\$\{(\w+)\}", value, text)
