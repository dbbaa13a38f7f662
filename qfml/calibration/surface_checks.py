"""What a quote must be: rules over flat columns, for one surface or thousands at once.

A rule that is broken raises `DataError` with the row, or drops the rows and counts them in the notes of their surface
when the caller asked for that. Missing quotes are always dropped and counted.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from qfml.errors import ConfigError, DataError

__all__ = [
    "QuoteTable",
    "Refusal",
    "check_expiries",
    "check_strikes",
    "clean",
    "float_column",
    "floats",
    "moment",
    "positive_spot",
]

MOST_YEARS = 60.0  # longer expiries than any market quotes: days, or dates written as numbers
MOST_VOL = 5.0  # 500 %
MOST_DISCOUNT = 10.0  # far beyond any negative rate: a discount factor in percent
COLUMNS = ("strike", "expiry", "vol", "bid", "ask", "weight", "forward", "discount", "row", "surface")


@dataclass(frozen=True, eq=False)
class QuoteTable:
    """Quotes of any number of surfaces as columns of one length; float64, NaN where a number is missing.

    Args:
        strike: in the unit of the forward.
        expiry: years.
        vol: annual Black vol.
        bid: bid vol.
        ask: ask vol.
        weight: of the squared error, 0 or more.
        forward: to the expiry.
        discount: discount factor to the expiry.
        row: number of the row in the caller's data, -1 where it has none.
        surface: number of the surface to which the quote belongs.
        labels: what a message calls each surface, "" for a single one.
        rest: what else a row holds, such as prices.
    """

    strike: np.ndarray
    expiry: np.ndarray
    vol: np.ndarray
    bid: np.ndarray
    ask: np.ndarray
    weight: np.ndarray
    forward: np.ndarray
    discount: np.ndarray
    row: np.ndarray
    surface: np.ndarray
    labels: tuple[str, ...] = ("",)
    rest: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.strike.shape[0]

    def where(self, keep: np.ndarray | slice) -> QuoteTable:
        """The rows of a mask, an index or a slice."""
        columns = {name: getattr(self, name)[keep] for name in COLUMNS}
        rest = {name: column[keep] for name, column in self.rest.items()}
        return QuoteTable(**columns, labels=self.labels, rest=rest)

    def place(self, index: int) -> str:
        """How a message names a row: its number, strike and expiry, and its surface where there are several."""
        label, row = self.labels[int(self.surface[index])], int(self.row[index])
        terms = f"strike {self.strike[index]:.10g}, expiry {self.expiry[index]:.6g}"
        if "is_call" in self.rest:
            terms = f"{'call' if self.rest['is_call'][index] else 'put'}, {terms}"
        terms = f"{label}, {terms}" if label else terms
        return f"row {row} ({terms})" if row >= 0 else f"the quote at {terms}"


class Refusal:
    """What to do with rows that break a rule, and the notes of each surface.

    Args:
        errors: "raise" names the first of them, "drop" leaves them out and counts them.
    """

    def __init__(self, errors: str = "raise") -> None:
        if errors not in ("raise", "drop"):
            raise ConfigError(f'`errors` must be "raise" or "drop", got {errors!r}')
        self.errors = errors
        self.notes: dict[int, list[str]] = {}

    def note(self, surface: int, text: str) -> None:
        """Add a note to a surface."""
        self.notes.setdefault(surface, []).append(text)

    def drop(self, table: QuoteTable, bad: np.ndarray, why: str) -> QuoteTable:
        """The table without the rows of `bad`, which are counted in the notes."""
        if not bad.any():
            return table
        counts, sizes = np.bincount(table.surface[bad]), np.bincount(table.surface)
        for surface in np.flatnonzero(counts):
            self.note(int(surface), f"{counts[surface]} of {sizes[surface]} quotes dropped: {why}")
        return table.where(~bad)

    def rule(self, table: QuoteTable, bad: np.ndarray, rule: str, way_out: str, **shown: np.ndarray) -> QuoteTable:
        """Refuse or drop the rows of `bad`; `shown` are the columns whose values the message gives."""
        if not bad.any():
            return table
        if self.errors == "drop":
            return self.drop(table, bad, rule)
        index = int(np.flatnonzero(bad)[0])
        values = ", ".join(f"{name} {column[index]:.10g}" for name, column in shown.items())
        raise DataError(
            f"{rule}: {table.place(index)} has {values}; {int(bad.sum())} of {len(table)} quotes break this; "
            f'{way_out}, or leave such rows out with errors="drop"'
        )


def floats(name: str, value: Any) -> np.ndarray:
    """Numbers as a float64 array of their own shape, a copy; None is NaN.

    Raises:
        DataError: not numbers, or rows of different lengths.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        return value.astype(np.float64)
    try:
        array = np.array(value.tolist() if hasattr(value, "tolist") else value, dtype=object)
        if any(isinstance(element, str | bool) for element in array.flat):
            raise ValueError
        return array.astype(np.float64)  # None becomes NaN
    except (TypeError, ValueError):
        text = repr(value)
        text = text if len(text) <= 60 else text[:57] + "..."
        raise DataError(
            f"`{name}` must hold numbers, NaN where there is none, in rows of one length, got {text}"
        ) from None


def float_column(name: str, value: Any, n: int | None = None) -> np.ndarray:
    """A float64 column; a number stands for all rows.

    Raises:
        DataError: not numbers, or not one for each of the `n` rows.
    """
    column = floats(name, value)
    if column.ndim == 0 and n is not None:
        return np.full(n, column[()])
    if column.ndim != 1 or (n is not None and column.shape[0] != n):
        expected = "have one axis" if n is None else f"be one number, or one for each of the {n} quotes"
        raise DataError(f"`{name}` must {expected}, got shape {column.shape}")
    return column


def clean(table: QuoteTable, refusal: Refusal, max_vol: Any = MOST_VOL) -> QuoteTable:
    """Apply every rule to quotes whose units are settled: vols in decimals, strikes in units of the forward.

    The vol of a quote that has none is the mean of its bid and ask vols; quotes that then have none are missing, and
    are dropped. A bid or ask vol of 0 is none.

    Raises:
        DataError: a rule is broken and `refusal` raises; duplicate quotes that contradict each other, always.
    """
    if isinstance(max_vol, bool) or not isinstance(max_vol, int | float) or not max_vol > 0.0:
        raise ConfigError(f"`max_vol` must be a number above 0, got {max_vol!r}")
    bid, ask = (np.where(side == 0.0, np.nan, side) for side in (table.bid, table.ask))
    table = replace(table, bid=bid, ask=ask)
    no_vol = np.isnan(table.vol)
    one_sided = no_vol & (np.isnan(table.bid) != np.isnan(table.ask))
    missing = no_vol & np.isnan(table.bid) & np.isnan(table.ask)
    table = replace(table, vol=np.where(no_vol, 0.5 * (table.bid + table.ask), table.vol))
    table = (
        refusal.drop(table, missing, "no vol (an empty cell or NaN)")
        if not one_sided.any()
        else _drop_both(table, missing, one_sided, refusal)
    )
    table = _terms_in_range(table, refusal)
    table = _vols_in_range(table, refusal, max_vol)
    return _without_duplicates(table, refusal)


def _drop_both(table: QuoteTable, missing: np.ndarray, one_sided: np.ndarray, refusal: Refusal) -> QuoteTable:
    kept = ~missing
    table = refusal.drop(table, missing, "no vol (an empty cell or NaN)")
    return refusal.drop(table, one_sided[kept], "a bid without an ask, or an ask without a bid, and no vol beside it")


def check_strikes(table: QuoteTable, refusal: Refusal) -> QuoteTable:
    """Strikes are prices."""
    return _positive("strike", table, refusal)


def check_expiries(table: QuoteTable, refusal: Refusal) -> QuoteTable:
    """Expiries lie ahead, and are years."""
    rule = "`expiry` must be a number above 0 (0 or less has expired)"
    table = refusal.rule(table, ~(table.expiry > 0.0), rule, "check the quote date", expiry=table.expiry)
    rule, way_out = (
        f"`expiry` must be at most {MOST_YEARS:g} years",
        "give days in a column `days` and dates, as ISO 8601 text, in a column `maturity`",
    )
    return refusal.rule(table, table.expiry > MOST_YEARS, rule, way_out, expiry=table.expiry)


def _positive(name: str, table: QuoteTable, refusal: Refusal) -> QuoteTable:
    column = getattr(table, name)
    bad = ~((column > 0.0) & (column < np.inf))
    return refusal.rule(table, bad, f"`{name}` must be a number above 0", "correct it", **{name: column})


def _terms_in_range(table: QuoteTable, refusal: Refusal) -> QuoteTable:
    """Strikes, expiries, forwards, discount factors and weights."""
    table = check_expiries(check_strikes(table, refusal), refusal)
    for name in ("forward", "discount"):
        table = _positive(name, table, refusal)
    table = refusal.rule(
        table,
        table.discount > MOST_DISCOUNT,
        f"`discount` must be at most {MOST_DISCOUNT:g}",
        "divide discount factors in percent by 100",
        discount=table.discount,
    )
    bad = ~((table.weight >= 0.0) & (table.weight < np.inf))
    way_out = "0 leaves a quote out of the fit"
    return refusal.rule(table, bad, "`weight` must be a number of 0 or more", way_out, weight=table.weight)


def _vols_in_range(table: QuoteTable, refusal: Refusal, max_vol: float) -> QuoteTable:
    for name in ("vol", "bid", "ask"):
        column = getattr(table, name)
        table = refusal.rule(
            table,
            column <= 0.0,
            f"`{name}` of a quote must be above 0",
            "correct it, or leave its cell empty",
            **{name: column},
        )
        column = getattr(table, name)
        table = refusal.rule(
            table,
            column > max_vol,
            f"`{name}` of a quote must be at most {max_vol:g} ({100.0 * max_vol:g} %)",
            "correct it (divide percent by 100), leave its cell empty, or raise `max_vol`",
            **{name: column},
        )
    return refusal.rule(
        table,
        table.bid > table.ask,
        "`bid` must not be above `ask` (the market is crossed)",
        "correct them, or leave their cells empty",
        bid=table.bid,
        ask=table.ask,
    )


def _without_duplicates(table: QuoteTable, refusal: Refusal) -> QuoteTable:
    """Refuse two quotes of one strike and expiry; copies that say the same are dropped."""
    order = np.lexsort((table.strike, table.expiry, table.surface))
    first, second = order[:-1], order[1:]
    same = np.ones(first.shape[0], bool)
    for column in (table.strike, table.expiry, table.surface):
        same &= column[first] == column[second]
    if not same.any():
        return table
    first, second = first[same], second[same]
    equal = np.ones(first.shape[0], bool)
    for column in (table.vol, table.bid, table.ask, table.weight, table.forward, table.discount):
        equal &= (column[first] == column[second]) | (np.isnan(column[first]) & np.isnan(column[second]))
    if not equal.all():
        a, b = int(first[~equal][0]), int(second[~equal][0])
        raise DataError(
            f"a strike must be quoted once for each expiry: {table.place(b)} has vol {table.vol[b]:.10g} and "
            f"{table.place(a)} has vol {table.vol[a]:.10g}; {int((~equal).sum())} pairs break this; keep one of each"
        )
    repeated = np.zeros(len(table), bool)
    repeated[np.maximum(first, second)] = True
    return refusal.drop(table, repeated, "copies of a quote that is there")


def positive_spot(spot: Any) -> float | None:
    """A spot as a float above 0; None stays None."""
    if spot is None:
        return None
    if isinstance(spot, bool) or not isinstance(spot, int | float | np.number) or not 0.0 < float(spot) < np.inf:
        raise DataError(f"`spot` must be a number above 0, got {spot!r}")
    return float(spot)


def moment(date: Any) -> np.datetime64 | None:
    """A date or time as numpy keeps it, to the microsecond; one with a time zone in UTC.

    Raises:
        DataError: it is not a date.

    >>> moment("2002-07-05")
    np.datetime64('2002-07-05T00:00:00.000000')
    """
    if date is None:
        return None
    try:
        if isinstance(date, str):
            date = dt.datetime.fromisoformat(date)
        if not isinstance(date, dt.date | np.datetime64) or date != date:  # NaT is not itself
            raise ValueError
        if isinstance(date, dt.datetime) and date.tzinfo is not None:
            date = date.astimezone(dt.UTC).replace(tzinfo=None)
        result = np.datetime64(date).astype("datetime64[us]")
        if np.isnat(result):
            raise ValueError
    except ValueError:
        raise DataError(f"`date` must be a date, or ISO 8601 text such as 2002-07-05, got {date!r}") from None
    return result
