"""From prices to vols: forwards, discount factors, put-call parity, and which option of a strike tells its vol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pricers import implied_vol
from qfml.calibration.forwards import forward_and_discount, parity_forward, rate_or_curve
from qfml.calibration.reading import Reading
from qfml.calibration.surface_checks import (
    QuoteTable,
    Refusal,
)
from qfml.errors import DataError

__all__ = ["out_of_the_money", "uncrossed", "vols_of_prices", "with_terms"]

SIDES = ("call", "put")


def uncrossed(table: QuoteTable, refusal: Refusal) -> QuoteTable:
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


def with_terms(table: QuoteTable, how: Reading, refusal: Refusal) -> QuoteTable:
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


def out_of_the_money(table: QuoteTable, refusal: Refusal) -> QuoteTable:
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


def vols_of_prices(table: QuoteTable, refusal: Refusal) -> QuoteTable:
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
