"""The columns of a table of quotes: what they may be called, and their cells as numbers, options and times."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from qfml.data.validation import parse_times
from qfml.errors import DataError

__all__ = ["ALIASES", "MISSING", "columns_of", "filled_rows", "frame_of", "is_dates", "numbers", "options", "times"]

ALIASES: Mapping[str, tuple[str, ...]] = {  # compared in lower case, with _ for spaces, dots and dashes
    "strike": ("strike", "k", "strike_price", "exercise_price"),
    "expiry": ("expiry", "t", "years", "ttm", "tau", "expiry_years", "time_to_expiry", "time_to_maturity"),
    "days": ("days", "dte", "days_to_expiry", "days_to_maturity", "calendar_days", "expiry_days"),
    "maturity": ("maturity", "maturity_date", "expiration", "expiration_date", "expiry_date", "exdate"),
    "vol": ("vol", "iv", "implied_vol", "implied_volatility", "impl_volatility", "volatility", "mid_vol", "mid_iv"),
    "price": ("price", "mid_price", "option_price", "premium", "settlement_price", "mid"),
    "option": ("option", "option_type", "type", "cp", "cp_flag", "call_put", "put_call", "right"),
    "call": ("call", "call_price", "c"),
    "put": ("put", "put_price", "p"),
    "bid": ("bid",),
    "ask": ("ask", "offer"),
    "bid_vol": ("bid_vol", "bid_iv", "vol_bid", "iv_bid", "bid_implied_vol"),
    "ask_vol": ("ask_vol", "ask_iv", "vol_ask", "iv_ask", "offer_vol", "ask_implied_vol"),
    "bid_price": ("bid_price", "best_bid", "price_bid"),
    "ask_price": ("ask_price", "best_offer", "best_ask", "price_ask", "offer_price"),
    "call_bid": ("call_bid", "bid_call"),
    "call_ask": ("call_ask", "ask_call"),
    "put_bid": ("put_bid", "bid_put"),
    "put_ask": ("put_ask", "ask_put"),
    "weight": ("weight", "weights", "w"),
    "forward": ("forward", "fwd", "f", "forward_price"),
    "spot": ("spot", "s", "s0", "underlying_price", "spot_price"),
    "rate": ("rate", "r", "zero_rate", "interest_rate", "risk_free_rate"),
    "dividend": ("dividend", "dividends", "q", "dividend_yield", "div_yield"),
    "discount": ("discount", "df", "discount_factor"),
    "date": ("date", "quote_date", "trade_date", "as_of", "asof", "valuation_date"),
    "name": ("name", "symbol", "ticker", "underlying", "root"),
}
MISSING = ("", "nan", "na", "n/a", "#n/a", "null", "none", "-")  # cells of text that mean no number, in any case


_CELLS = "are there as many cells in every row as in the header?"


def frame_of(path: Any, separator: str = ",") -> pl.DataFrame:
    """A CSV file, whose cells stay text, or a Parquet file.

    Raises:
        DataError: no such file, another format, or a file that cannot be read.
    """
    if not isinstance(path, str | Path):
        raise DataError(f"the path of quotes must be text or a Path, got {type(path).__name__}")
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"there is no file {path} (looked in {Path.cwd()}); paths are relative to that directory")
    kind = path.suffix.lower()
    try:
        if kind in (".parquet", ".pq"):
            return pl.read_parquet(path)
        if kind in (".csv", ".txt", ".tsv"):
            frame = pl.read_csv(path, separator="\t" if kind == ".tsv" else separator, infer_schema=False)
            return _separated(frame, path)
    except pl.exceptions.NoDataError as error:
        raise DataError(f"cannot read {path}: the file is empty; it needs a header and a row for each quote") from error
    except (pl.exceptions.PolarsError, OSError, UnicodeError) as error:
        reason, parquet = str(error).partition("\n")[0], kind in (".parquet", ".pq")
        hint = "write it again, it is no whole Parquet file" if parquet else _CELLS
        raise DataError(f"cannot read {path}: {reason}; {hint}") from error
    raise DataError(f"quotes are read from .csv, .txt, .tsv or .parquet files, got {path.name}")


def _separated(frame: pl.DataFrame, path: Path) -> pl.DataFrame:
    """The table, unless its one column shows that another separator was meant."""
    others = [mark for mark in ";\t|," if mark in frame.columns[0]]
    if frame.width == 1 and others:
        raise DataError(f"the cells of {path} seem to be separated by {others[0]!r}; pass separator={others[0]!r}")
    return frame


def columns_of(frame: pl.DataFrame, rename: Mapping[str, str], ignore: str | Sequence[str]) -> dict[str, pl.Series]:
    """The columns of a table under our names.

    Args:
        frame: the table.
        rename: the table's names to ours, for columns that are called something else.
        ignore: columns to leave out; "unknown" for all that have no name of ours.

    Raises:
        DataError: a column that is not known, or two for one thing.

    >>> columns_of(pl.DataFrame({"Strike Price": [90.0], "IV": [0.2]}), {}, ()).keys()
    dict_keys(['strike', 'vol'])
    """
    blank = [name for name in frame.columns if not name.strip() and frame[name].null_count() == frame.height]
    frame = frame.drop(blank)  # what a comma at the end of the lines makes
    known = {alias: name for name, aliases in ALIASES.items() for alias in aliases}
    ignored = () if ignore == "unknown" else (ignore,) if isinstance(ignore, str) else ignore
    for theirs in (*rename, *ignored):
        if theirs not in frame.columns:
            raise DataError(
                f"there is no column `{theirs}`{_nearest(theirs, frame.columns)}; there are: {_list(frame)}"
            )
    result: dict[str, pl.Series] = {}
    for theirs in frame.columns:
        if theirs in ignored:
            continue
        ours = known.get(_plain(rename.get(theirs, theirs)))
        if ours is None:
            if ignore == "unknown" and theirs not in rename:
                continue
            name = rename.get(theirs, theirs)
            raise DataError(
                f"the column `{theirs}` is not known{_nearest(name, known)}; name it with rename={{'{theirs}': ...}}, "
                f"leave it out with ignore=['{theirs}'], or all such with ignore=\"unknown\"; "
                f"known are: {', '.join(ALIASES)} and their usual other names"
            )
        if ours in result:
            raise DataError(
                f"`{result[ours].name}` and `{theirs}` are both the {ours}; leave one out with ignore=['{theirs}']"
            )
        column = frame[theirs]
        result[ours] = column.cast(pl.String) if column.dtype in (pl.Categorical, pl.Enum) else column
    return result


def filled_rows(frame: pl.DataFrame) -> np.ndarray:
    """Numbers of the rows that are not empty: blank lines are no quotes."""
    text = [name for name, dtype in frame.schema.items() if dtype == pl.String]
    blank = [pl.col(name).str.strip_chars().fill_null("") == "" for name in text]
    empty = [pl.col(name).is_null() for name in frame.columns if name not in text]
    if not (blank or empty):
        return np.arange(0)
    return np.flatnonzero(~frame.select(pl.all_horizontal(*blank, *empty)).to_series().to_numpy())


def numbers(column: pl.Series, rows: np.ndarray) -> np.ndarray:
    """A column as float64, NaN where the cell is empty.

    Args:
        column: of numbers or text.
        rows: number of each row, for messages.

    Raises:
        DataError: a cell that is not a number; the message names its row.
    """
    if column.dtype == pl.String:
        text = column.str.strip_chars()
        values = text.cast(pl.Float64, strict=False)
        bad = values.is_null() & text.is_not_null()
        bad = bad & ~text.str.to_lowercase().is_in(MISSING) if bad.any() else bad
        if bad.any():
            row = int(bad.arg_max() or 0)
            cell = str(text[row])
            hint = 'take off the % and pass vol_unit="percent"' if cell.endswith("%") else "correct it"
            hint = "write decimals with a point" if re.fullmatch(r"-?\d+,\d+", cell) else hint
            raise DataError(
                f"`{column.name}` must hold numbers: row {rows[row]} has {cell!r}; {hint}, or leave the cell empty"
            )
    elif column.dtype.is_numeric() or column.dtype == pl.Null:
        values = column.cast(pl.Float64)
    else:
        raise DataError(f"`{column.name}` must hold numbers, got {column.dtype}; convert the column first")
    result = values.fill_null(float("nan")).to_numpy().copy()
    if np.isinf(result).any():
        raise DataError(f"`{column.name}` must hold finite numbers: row {rows[np.isinf(result).argmax()]} is infinite")
    return result


def options(column: pl.Series, rows: np.ndarray) -> np.ndarray:
    """True for calls, False for puts.

    Raises:
        DataError: a cell that is neither.
    """
    if column.dtype != pl.String:
        raise DataError(f"`{column.name}` must hold call or put (C or P), got {column.dtype}")
    text = column.str.strip_chars().str.to_lowercase()
    is_call = text.is_in(["c", "call", "calls"]).fill_null(False)
    bad = ~(is_call | text.is_in(["p", "put", "puts"]).fill_null(False))
    if bad.any():
        row = int(bad.arg_max() or 0)
        raise DataError(
            f"`{column.name}` must hold call or put (C or P): row {rows[row]} has {column[row]!r}; correct it"
        )
    return is_call.to_numpy()


def times(column: pl.Series, rows: np.ndarray, time_format: str | None = None) -> np.ndarray:
    """A column of dates or times, as datetime64 to the microsecond; those with a zone in UTC.

    Raises:
        DataError: a cell that is not a date, or is empty.
    """
    if column.dtype.is_numeric():
        raise DataError(f"`{column.name}` must hold dates, got numbers; write them as ISO 8601 text, 2002-07-05")
    parsed = parse_times(column, time_format if column.dtype == pl.String else None)
    if parsed.null_count():
        row = int(parsed.is_null().arg_max() or 0)
        raise DataError(
            f"`{column.name}` must hold a date in every row: row {rows[row]} is empty; fill it in, or drop the row"
        )
    if isinstance(parsed.dtype, pl.Datetime) and parsed.dtype.time_zone is not None:
        parsed = parsed.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    return parsed.cast(pl.Datetime("us")).to_numpy().astype("datetime64[us]")


def is_dates(column: pl.Series, time_format: str | None = None) -> bool:
    """Whether the column holds dates rather than numbers, by its first cell."""
    if column.dtype != pl.String:
        return column.dtype.is_temporal()
    text = column.str.strip_chars()
    text = text.filter(text.is_not_null() & ~text.str.to_lowercase().is_in(MISSING))
    if time_format is not None and text[:1].str.to_datetime(time_format, strict=False).null_count() == 0:
        return text.len() > 0
    return text.len() > 0 and text[:1].cast(pl.Float64, strict=False).null_count() == 1


def _plain(name: str) -> str:
    return re.sub(r"[\s.\-]+", "_", name.strip()).lower()


def _nearest(name: str, known: Any) -> str:
    by_plain = {_plain(other): other for other in known}
    close = difflib.get_close_matches(_plain(name), list(by_plain), n=1)
    return f" (did you mean `{by_plain[close[0]]}`?)" if close else ""


def _list(frame: pl.DataFrame) -> str:
    return ", ".join(frame.columns)
