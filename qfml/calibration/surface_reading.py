"""From a table of quotes to vols: dates, strikes, forwards, discount factors, prices; one surface or thousands."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import polars as pl
import torch

from pricers import implied_vol
from qfml.calibration.forwards import forward_and_discount, parity_forward, rate_or_curve
from qfml.calibration.quote_columns import columns_of, filled_rows, is_dates, numbers, options, times
from qfml.calibration.surface_checks import (
    MOST_VOL,
    QuoteTable,
    Refusal,
    check_expiries,
    check_strikes,
    clean,
    moment,
    positive_spot,
)
from qfml.calibration.surface_units import decimal_vols, each_surface, strikes_in_prices
from qfml.errors import ConfigError, DataError

__all__ = ["QuotesRead", "Reading", "read_quotes"]

Rows = dict[str, np.ndarray]
Dates = Sequence[np.datetime64 | None]
DAYS_A_YEAR = 365.0
TEXT = ("option", "date", "name", "maturity")
SIDES = ("call", "put")


@dataclass(frozen=True)
class Reading:
    """How a table of quotes is read, where its columns do not say it.

    Args:
        spot: price of the asset, where there is no column `spot`.
        rates: a continuous rate, decimal, or a curve (times, zero rates), where there is no column `rate` or
            `discount`. Without any, put-call parity implies the discount factors.
        dividends: a continuous yield, like `rates`; 0 for none.
        parity: imply the forwards by put-call parity even where spot, rates and dividends are known.
        date: of the quotes, where there is no column `date`.
        name: of the underlying, where there is no column `name`.
        quote: what the columns `bid` and `ask` hold, "vol" or "price", where `vol` or `price` does not say it.
        vol_unit: "decimal" or "percent"; None for decimals, which are refused where they look like percent.
        strike_unit: "price", "percent_of_spot", "moneyness" (strike / spot) or "log_moneyness" (log of strike over
            forward); None for prices, which are refused where they look like another unit.
        max_vol: vols above it are refused.
        errors: what a row that cannot be used does: "raise" an error that names it, or "drop" it with a note.
        rename: the table's column names to ours.
        ignore: columns to leave out; "unknown" for all that are not known.
        separator: between the cells of a CSV file.
        time_format: of dates that are text but not ISO 8601, such as "%m/%d/%Y" or "%Y%m%d".
    """

    spot: Any = None
    rates: Any = None
    dividends: Any = None
    parity: Any = False
    date: Any = None
    name: str = ""
    quote: str | None = None
    vol_unit: str | None = None
    strike_unit: str | None = None
    max_vol: Any = MOST_VOL
    errors: str = "raise"
    rename: Mapping[str, str] = field(default_factory=dict)
    ignore: str | Sequence[str] = ()
    separator: str = ","
    time_format: str | None = None

    def __post_init__(self) -> None:
        if self.quote not in (None, "vol", "price"):
            raise ConfigError(f'`quote` must be "vol" or "price", got {self.quote!r}')
        if not isinstance(self.parity, bool):  # a word such as "no" would count as true
            raise ConfigError(f"`parity` must be true or false, got {self.parity!r}")
        if not isinstance(self.separator, str) or len(self.separator.encode()) != 1:
            raise ConfigError(f"`separator` must be one character of ASCII, such as ';', got {self.separator!r}")

    @classmethod
    def of(cls, how: Reading | None, settings: Mapping[str, Any]) -> Reading:
        """The settings as an object, or changed in one.

        Raises:
            ConfigError: no such setting.
        """
        names = [setting.name for setting in fields(cls)]
        for name in settings:
            if name not in names:
                close = difflib.get_close_matches(name, names, n=1)
                nearest = f" (did you mean `{close[0]}`?)" if close else ""
                raise ConfigError(f"reading quotes has no setting `{name}`{nearest}; there are: {', '.join(names)}")
        return replace(how or cls(), **settings)


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
    table = _with_terms(_uncrossed(table, refusal), how, refusal)
    if how.strike_unit in (None, "log_moneyness"):
        days = each_surface(table.surface, table.labels)
        strike = strikes_in_prices(table.strike, table.forward, table.rest.get("spot"), how.strike_unit, days)
        table = replace(table, strike=strike)
    table = _vols_of_prices(_out_of_the_money(table, refusal), refusal)
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


# ---- forwards and prices --------------------------------------------------------------------------------------------


def _uncrossed(table: QuoteTable, refusal: Refusal) -> QuoteTable:
    """Prices that may enter a forward: an ask of 0 is none, and a bid above its ask is refused, in the money too."""
    rest = table.rest
    if "ask_price" in rest:
        rest = dict(rest) | {"ask_price": np.where(rest["ask_price"] == 0.0, np.nan, rest["ask_price"])}
        table = replace(table, rest=rest)
    if not {"bid_price", "ask_price"} <= set(rest):
        return table
    sides = {name: rest[name] for name in ("bid_price", "ask_price")}
    rule = "`bid_price` must not be above `ask_price` (the market is crossed)"
    way_out = "correct them, or leave their cells empty"
    return refusal.rule(table, sides["bid_price"] > sides["ask_price"], rule, way_out, **sides)


def _with_terms(table: QuoteTable, how: Reading, refusal: Refusal) -> QuoteTable:
    """Forwards and discount factors of every row: given, of spot, rates and dividends, or by put-call parity."""
    rest = table.rest
    discount = _discounts(table, how)
    has_prices = any(name in rest for name in ("price", "bid_price", "ask_price"))
    known = not np.isnan(table.forward).all()
    if known and not how.parity:
        _refuse_dividends(how, "the forwards are those of the column `forward`")
        if discount is None and has_prices and np.isnan(table.vol).any():
            raise DataError("prices need discount factors: give `rates` (0 for none), or a column `rate` or `discount`")
        if discount is None:
            for surface in np.unique(table.surface):
                refusal.note(int(surface), "no rates are given: discount factors are 1 (vols do not depend on them)")
        return replace(table, discount=np.ones(len(table)) if discount is None else discount)
    dividends = "dividend" in rest or how.dividends is not None
    if "spot" in rest and discount is not None and dividends and not how.parity:
        if "dividend" in rest:
            _check_rate(table, "dividend")
            _refuse_dividends(how, "there is a column `dividend`")
        income = rest["dividend"] * table.expiry if "dividend" in rest else _yield(table.expiry, how.dividends)
        return replace(table, forward=rest["spot"] * np.exp(-income) / discount, discount=discount)
    if not (has_prices and "is_call" in rest):
        missing = [
            text
            for text, there in (
                ("`spot`", "spot" in rest),
                ("`rates`", discount is not None),
                ("`dividends`", dividends),
            )
            if not there
        ]
        raise DataError(
            f"quotes need forwards: give a column `forward`, or {' and '.join(missing) or 'both sides'} (0 for no "
            "dividends), or prices of calls and puts at the same strikes"
        )
    if not how.parity:  # which is asked for to override them
        _refuse_dividends(how, "put-call parity implies the forwards without a spot or without rates")
    return _parity_terms(table, discount, refusal)


def _refuse_dividends(how: Reading, why: str) -> None:
    if how.dividends is not None:
        raise DataError(f"`dividends` would do nothing, as {why}; leave out the argument, or the other")


def _check_rate(table: QuoteTable, name: str) -> None:
    """A column of continuous rates is decimal."""
    column = table.rest[name]
    bad = ~(np.abs(column) <= 1.0)
    if bad.any():
        row = int(bad.argmax())
        raise DataError(f"`{name}` must be decimal, in [-1, 1]: {table.place(row)} has {column[row]:g}; 3 % is 0.03")


def _discounts(table: QuoteTable, how: Reading) -> np.ndarray | None:
    given = not np.isnan(table.discount).all()
    column = "discount" if given else "rate" if "rate" in table.rest else None
    if column is not None and how.rates is not None:
        raise DataError(f"the table has a column `{column}`; leave out the argument `rates`, or ignore the column")
    if given:
        return table.discount
    if column == "rate":
        _check_rate(table, "rate")
        return np.exp(-table.rest["rate"] * table.expiry)
    return None if how.rates is None else forward_and_discount(table.expiry, 1.0, how.rates, 0.0)[1]


def _yield(expiry: np.ndarray, dividends: Any) -> np.ndarray:
    income = rate_or_curve("dividends", dividends)
    return -np.log(forward_and_discount(expiry, 1.0, income, 0.0)[1])


def _parity_terms(table: QuoteTable, discount: np.ndarray | None, refusal: Refusal) -> QuoteTable:
    """Forwards, and discount factors unless they are given, by put-call parity at each expiry of each surface."""
    price, width = _mid_prices(table.rest)
    order = np.lexsort((table.expiry, table.surface))
    ends = (np.diff(table.surface[order]) != 0) | (np.diff(table.expiry[order]) != 0.0)
    forwards, discounts = np.full(len(table), np.nan), np.full(len(table), np.nan)
    for group in np.split(order, np.flatnonzero(ends) + 1):
        calls, puts = _pairs(table, group, price)
        widths, without = (None, 0) if width is None else _widths(np.stack([width[calls], width[puts]]))
        try:
            fit = parity_forward(
                table.strike[calls],
                price[calls],
                price[puts],
                None if widths is None else np.hypot(*widths),
                None if discount is None else float(discount[group[0]]),
            )
        except DataError as error:
            if refusal.errors == "raise":
                label = table.labels[int(table.surface[group[0]])]
                place = f"expiry {table.expiry[group[0]]:.6g}" + (f" of {label}" if label else "")
                raise DataError(f"no forward at {place}: {error}") from None
            continue
        forwards[group], discounts[group] = fit.forward, fit.discount
        text = f"expiry {table.expiry[group[0]]:.4g}: {fit}"
        if fit.outlier.any():
            left_out = ", ".join(f"{strike:.6g}" for strike in table.strike[calls][fit.outlier])
            text += f", without the outliers at strikes {left_out}"
        if without:
            text += f"; {without} of {2 * len(calls)} markets have no width and were given one of the others'"
        refusal.note(int(table.surface[group[0]]), text)
    table = replace(table, forward=forwards, discount=discounts)
    return refusal.drop(table, np.isnan(forwards), "put-call parity implies no forward at their expiry")


def _mid_prices(rest: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
    """The price of every row, the mean of bid and ask where there is none, and the width of its market, if any."""
    if not {"bid_price", "ask_price"} <= set(rest):
        return (rest["price"] if "price" in rest else np.full(rest["is_call"].shape, np.nan)), None
    middle = 0.5 * (rest["bid_price"] + rest["ask_price"])
    price = np.where(np.isnan(rest["price"]), middle, rest["price"]) if "price" in rest else middle
    return price, rest["ask_price"] - rest["bid_price"]


def _widths(width: np.ndarray) -> tuple[np.ndarray | None, int]:
    """Widths above 0, and how many were not: a locked market counts as the narrowest, an unknown one as the middle."""
    known = width > 0.0
    if not known.any():
        return None, 0
    stand_in = np.where(width == 0.0, width[known].min(), np.median(width[known]))
    return np.where(known, width, stand_in), int((~known).sum())


def _pairs(table: QuoteTable, group: np.ndarray, price: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the calls and of the puts at the strikes where both have a price."""
    group = group[~np.isnan(price[group])]
    is_call = table.rest["is_call"][group]
    calls, puts = group[is_call], group[~is_call]
    _, first, second = np.intersect1d(table.strike[calls], table.strike[puts], return_indices=True)
    return calls[first], puts[second]


def _out_of_the_money(table: QuoteTable, refusal: Refusal) -> QuoteTable:
    """Of a call and a put at one strike the one that is out of the money stays: its price is all time value."""
    if "is_call" not in table.rest:
        return table
    columns = [table.vol, table.bid + table.ask, *(table.rest[name] for name in ("price",) if name in table.rest)]
    if {"bid_price", "ask_price"} <= set(table.rest):
        columns.append(np.where(table.rest["bid_price"] > 0.0, table.rest["ask_price"], np.nan))
    usable = ~np.isnan(columns).all(axis=0)
    out = table.rest["is_call"] == (table.strike >= table.forward)
    places = np.stack([table.surface.astype(np.float64), table.expiry, table.strike])
    _, place = np.unique(places, axis=1, return_inverse=True)
    place = place.ravel()
    has_out = np.bincount(place, usable & out) > 0
    beside = usable & ~out & has_out[place]
    return refusal.drop(table, beside, "in the money, beside the option out of the money at the same strike")


def _vols_of_prices(table: QuoteTable, refusal: Refusal) -> QuoteTable:
    """Vols, bids and asks from prices where they are not given."""
    for name, column in (("bid_price", "bid"), ("ask_price", "ask"), ("price", "vol")):
        if name not in table.rest or not np.isnan(getattr(table, column)).any():
            continue
        price, given = table.rest[name], getattr(table, column)
        wanted = np.isnan(given) & ~np.isnan(price)
        vol = np.where(wanted, _implied(table, price, wanted), given)
        failed = wanted & np.isnan(vol)
        table = replace(table, **{column: vol})
        is_call = table.rest["is_call"]
        side = np.where(is_call, 1.0, -1.0)
        intrinsic = table.discount * np.maximum(side * (table.forward - table.strike), 0.0)
        if column == "bid":  # nobody need bid for the time value: a bid at or below the intrinsic value is none
            cannot_be = (price < 0.0) | (price >= table.discount * np.where(is_call, table.forward, table.strike))
            _note_bids_without_vol(table, failed & ~cannot_be & (price > 0.0), refusal)
            failed &= cannot_be
        rule = (
            f"`{name}` must have an implied vol, above the discounted intrinsic value and below the discounted "
            "forward (call) or strike (put)"
        )
        way_out = "correct it or leave its cell empty"
        table = refusal.rule(table, failed, rule, way_out, **{name: price, "intrinsic": intrinsic})
    return table


def _note_bids_without_vol(table: QuoteTable, without: np.ndarray, refusal: Refusal) -> None:
    for surface, count in enumerate(np.bincount(table.surface[without]).tolist()):
        if count:
            refusal.note(surface, f"{count} bid(s) at or below the discounted intrinsic value have no vol: left out")


def _implied(table: QuoteTable, price: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    vols = np.full(len(table), np.nan)
    for option in SIDES:
        rows = wanted & (table.rest["is_call"] == (option == "call"))
        columns = (price, table.forward, table.strike, table.expiry, table.discount)
        if rows.any():
            given = [torch.from_numpy(column[rows]) for column in columns]
            vols[rows] = implied_vol(*given, option=option, errors="nan").numpy()
    return vols
