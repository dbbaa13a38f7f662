"""From a table of quotes to vols: dates, strikes, forwards, discount factors, prices; one surface or thousands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from qfml.calibration.quote_columns import columns_of, filled_rows, is_dates, numbers, options, times
from qfml.calibration.quote_prices import out_of_the_money, uncrossed, vols_of_prices, with_terms
from qfml.calibration.reading import Reading
from qfml.calibration.surface_checks import (
    QuoteTable,
    Refusal,
    check_expiries,
    check_strikes,
    clean,
    moment,
    positive_spot,
)
from qfml.calibration.surface_units import decimal_vols, each_surface, strikes_in_prices
from qfml.errors import DataError

__all__ = ["QuotesRead", "read_quotes"]

Rows = dict[str, np.ndarray]
Dates = Sequence[np.datetime64 | None]
DAYS_A_YEAR = 365.0
TEXT = ("option", "date", "name", "maturity")
SIDES = ("call", "put")


@dataclass(frozen=True, eq=False)
class QuotesRead:
    """What a table held: checked quotes, and what belongs to each surface.

    Args:
        table: the quotes, ordered by surface.
        dates: of each surface, ascending; None where the table has no date.
        spots: of each surface, None where it is not known.
        name: of the underlying.
        notes: what reading has found, by surface.
    """

    table: QuoteTable
    dates: Dates
    spots: Sequence[float | None]
    name: str
    notes: dict[int, list[str]]


def read_quotes(frame: pl.DataFrame, how: Reading) -> QuotesRead:
    """Read a table, one row for each quote, or for the call and the put of a strike.

    Raises:
        DataError: a rule is broken; the message names the row.
    """
    filled = filled_rows(frame)
    if not len(filled):
        raise DataError("the table of quotes has no rows")
    columns = columns_of(frame[filled], how.rename, how.ignore)
    if "strike" not in columns:
        raise DataError(f"quotes need a column `strike`; there are: {', '.join(frame.columns)}")
    refusal = Refusal(how.errors)
    rows, dates, labels = _rows(columns, filled, how)
    if len(filled) < frame.height:
        refusal.note(0, f"{frame.height - len(filled)} empty rows were left out")
    name = _one_name(columns, how)
    rows, spots = _with_spot(rows, how, labels)
    if how.strike_unit in ("percent_of_spot", "moneyness"):
        rows["strike"] = strikes_in_prices(rows["strike"], rows["spot"], rows["spot"], how.strike_unit)
    vols = {key: rows[key] for key in ("vol", "bid", "ask") if key in rows}
    rows |= decimal_vols(vols, how.vol_unit, each_surface(rows["surface"], labels))
    table = _table(rows, labels)
    table = check_expiries(table, refusal)
    if how.strike_unit != "log_moneyness":
        table = check_strikes(table, refusal)
    if how.strike_unit is None and "spot" in table.rest:  # before parity trips over them
        days = each_surface(table.surface, table.labels)
        strikes_in_prices(table.strike, table.strike, table.rest["spot"], None, days)
    table = with_terms(uncrossed(table, refusal), how, refusal)
    if how.strike_unit in (None, "log_moneyness"):
        days = each_surface(table.surface, table.labels)
        strike = strikes_in_prices(table.strike, table.forward, table.rest.get("spot"), how.strike_unit, days)
        table = replace(table, strike=strike)
    table = vols_of_prices(out_of_the_money(table, refusal), refusal)
    table = clean(table, refusal, how.max_vol)
    table = table.where(np.argsort(table.surface, kind="stable"))
    return QuotesRead(table, dates, spots, name, refusal.notes)


# ---- columns --------------------------------------------------------------------------------------------------------


def _rows(columns: dict[str, pl.Series], row: np.ndarray, how: Reading) -> tuple[Rows, Dates, tuple[str, ...]]:
    """Columns as arrays: calls and puts below each other, expiries in years, the surfaces numbered by date."""
    dated = {
        name: columns[name]
        for name in ("expiry", "maturity")
        if name in columns and is_dates(columns[name], how.time_format)
    }
    rows = {name: numbers(column, row) for name, column in columns.items() if name not in TEXT and name not in dated}
    rows["row"] = row
    if "maturity" in columns and "maturity" not in dated:
        rows["maturity"] = numbers(columns["maturity"], row)
    dates, rows["surface"] = _dates(columns, row, how)
    labels = tuple(str(date).removesuffix("T00:00:00.000000") for date in dates) if len(dates) > 1 else ("",)
    rows["expiry"] = _expiries(rows, dated, dates, how)
    if "option" in columns:
        rows["is_call"] = options(columns["option"], row)
    return _named_bids(_stacked(rows), how), dates, labels


def _dates(columns: dict[str, pl.Series], row: np.ndarray, how: Reading) -> tuple[Dates, np.ndarray]:
    if "date" not in columns:
        return (moment(how.date),), np.zeros(len(row), np.int64)
    if how.date is not None:
        raise DataError(f"the table has a column `{columns['date'].name}`; leave out `date`, or ignore the column")
    dates, surface = np.unique(times(columns["date"], row, how.time_format), return_inverse=True)
    return tuple(dates), surface.astype(np.int64)


def _expiries(rows: Rows, dated: dict[str, pl.Series], dates: Dates, how: Reading) -> np.ndarray:
    """Years to each expiry, from years, days or dates."""
    found = [*(name for name in ("expiry", "days", "maturity") if name in rows), *dated]
    if len(found) != 1:
        raise DataError(
            "quotes need one column for the expiry: `expiry` (years), `days`, or `maturity` (dates); "
            f"got {', '.join(found) or 'none'}" + ("; leave out all but one with `ignore`" if found else "")
        )
    name = found[0]
    if name not in dated:
        years = rows.pop(name)
        return years / DAYS_A_YEAR if name == "days" else years
    if any(date is None for date in dates):
        raise DataError(f"`{dated[name].name}` holds dates, so quotes need a `date`, as a column or an argument")
    elapsed = times(dated[name], rows["row"], how.time_format) - np.array(dates)[rows["surface"]]
    return elapsed / np.timedelta64(1, "D") / DAYS_A_YEAR


def _stacked(rows: Rows) -> Rows:
    """Columns for calls and puts side by side become rows below each other."""
    sides = [side for side in SIDES if side in rows or f"{side}_bid" in rows or f"{side}_ask" in rows]
    if not sides:
        return rows
    clash = [name for name in ("option", "is_call", "price", "bid_price", "ask_price") if name in rows]
    if clash:
        raise DataError(f"quotes have columns for {' and '.join(sides)} and a column for `{clash[0]}`; leave one out")
    own = {f"{side}{suffix}" for side in SIDES for suffix in ("", "_bid", "_ask")}
    shared = {name: np.concatenate([column] * len(sides)) for name, column in rows.items() if name not in own}
    empty = np.full(rows["row"].shape, np.nan)
    for name, suffix in (("price", ""), ("bid_price", "_bid"), ("ask_price", "_ask")):
        if any(f"{side}{suffix}" in rows for side in sides):
            shared[name] = np.concatenate([rows.get(f"{side}{suffix}", empty) for side in sides])
    shared["is_call"] = np.repeat([side == "call" for side in sides], len(empty))
    return shared


def _named_bids(rows: Rows, how: Reading) -> Rows:
    """`bid` and `ask` hold vols from here on, `bid_price` and `ask_price` prices."""
    plain = [name for name in ("bid", "ask") if name in rows]
    priced = any(name in rows for name in ("price", "bid_price", "ask_price"))
    if plain:
        unit = how.quote or (
            "vol" if "vol" in rows and not priced else "price" if priced and "vol" not in rows else None
        )
        if unit is None:
            raise DataError('`bid` and `ask` may be vols or prices; pass quote="vol" or quote="price"')
        for name in plain:
            column, ours = rows.pop(name), f"{name}_{unit}"
            if ours in rows:
                raise DataError(
                    f"quotes have a column `{name}` and a column for its {unit}; leave one out with `ignore`"
                )
            rows[ours] = column
    for name in ("bid", "ask"):
        if f"{name}_vol" in rows:
            rows[name] = rows.pop(f"{name}_vol")
    quoted = [name for name in ("vol", "bid", "ask", "price", "bid_price", "ask_price") if name in rows]
    if not quoted:
        raise DataError("quotes need a column `vol` or `price`, or `bid` and `ask`")
    if not {"vol", "bid", "ask"} & set(quoted) and "is_call" not in rows:
        raise DataError("prices need a column `option` that holds call or put (C or P)")
    return rows


def _one_name(columns: dict[str, pl.Series], how: Reading) -> str:
    if "name" not in columns:
        return how.name
    names = columns["name"].drop_nulls().unique().sort().cast(pl.String).to_list()
    if len(names) > 1:
        raise DataError(
            f"the table holds {len(names)} underlyings ({', '.join(names[:5])}); keep the rows of one, "
            f"or leave the column out with ignore=['{columns['name'].name}']"
        )
    if names and how.name not in ("", names[0]):
        raise DataError(
            f"the table has a column `{columns['name'].name}` that says {names[0]}, and `name` is {how.name!r}; leave "
            "out the argument, or ignore the column"
        )
    return names[0] if names else how.name


def _with_spot(rows: Rows, how: Reading, labels: tuple[str, ...]) -> tuple[Rows, tuple[float | None, ...]]:
    """The spot of every row, and of every surface."""
    if "spot" not in rows:
        spot = positive_spot(how.spot)
        return (rows if spot is None else rows | {"spot": np.full(rows["row"].shape, spot)}), (spot,) * len(labels)
    if how.spot is not None:
        raise DataError("the table has a column `spot`; leave out the argument, or ignore the column")
    spot, surface = rows["spot"], rows["surface"]
    first = np.zeros(len(labels), np.int64)
    first[surface[::-1]] = np.arange(surface.shape[0])[::-1]
    # a date may do without one where the forwards are given
    absent = np.isnan(spot) & np.isnan(spot[first[surface]]) & ("forward" in rows)
    bad = ~(absent | ((spot > 0.0) & (spot == spot[first[surface]])))
    if bad.any():
        row = int(bad.argmax())
        raise DataError(
            f"`spot` must be a number above 0, one for each date: row {rows['row'][row]} has {spot[row]:.10g}, "
            f"the first of its date has {spot[first[surface[row]]]:.10g}; correct it, or ignore the column and give "
            "forwards"
        )
    return rows, tuple(None if np.isnan(value) else float(value) for value in spot[first])


def _table(rows: Rows, labels: tuple[str, ...]) -> QuoteTable:
    shape = rows["row"].shape
    absent = {"weight": 1.0}
    names = ("strike", "expiry", "vol", "bid", "ask", "weight", "forward", "discount", "row", "surface")
    columns = {name: rows[name] if name in rows else np.full(shape, absent.get(name, np.nan)) for name in names}
    return QuoteTable(**columns, labels=labels, rest={name: rows[name] for name in rows if name not in names})
