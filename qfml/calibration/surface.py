"""Quotes of implied vols on one day: read, checked, looked at and written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pricers import VolSurface
from qfml.calibration import dax
from qfml.calibration.forwards import forward_and_discount
from qfml.calibration.quote_columns import frame_of
from qfml.calibration.reading import Reading
from qfml.calibration.surface_arbitrage import Finding, Smile, arbitrage
from qfml.calibration.surface_batch import as_quotes, black_vega
from qfml.calibration.surface_checks import (
    MOST_VOL,
    QuoteTable,
    Refusal,
    clean,
    float_column,
    moment,
    positive_spot,
)
from qfml.calibration.surface_grid import QUOTE_COLUMNS, grid_columns, quote_table
from qfml.calibration.surface_reading import QuotesRead, read_quotes
from qfml.calibration.surface_units import decimal_vols, strikes_in_prices
from qfml.calibration.surface_writing import table_of, write_table
from qfml.data.validation import to_polars
from qfml.errors import ConfigError, DataError

__all__ = ["Surface", "as_quotes"]

SHOWN = 12  # notes in print


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Surface:
    """Quotes of implied vols at strikes and expiries, with the forwards to which they belong.

    The strikes may differ from expiry to expiry. Quotes without a vol are dropped and counted in `remarks`; what else
    breaks a rule is refused.

    Args:
        strike: in the unit of the forward, shape `(n,)`.
        expiry: years, ACT/365.
        vol: annual Black vol, decimal; NaN where only bid and ask are given, whose mean is then the vol.
        forward: of the asset to the expiry.
        bid: bid vol, NaN or 0 where there is none; None for none at all.
        ask: ask vol, likewise.
        weight: of the squared error of the vol, 0 or more. Numbers stand for all quotes.
        discount: discount factor to the expiry. It does not enter the vols, only prices made from them.
        spot: price of the asset today, if known.
        date: of the quotes.
        name: of the underlying.
        remarks: what reading the quotes has found.
        vol_unit: of the vols given, see `from_grid`.
        strike_unit: of the strikes given, likewise.
        max_vol: likewise.
        errors: likewise.

    Raises:
        DataError: a rule is broken; the message names the quote.

    >>> surface = Surface(strike=[90.0, 100.0, 110.0], expiry=0.5, vol=[0.22, 0.2, 0.19], forward=101.0)
    >>> len(surface), surface.log_moneyness.round(3).tolist()
    (3, [-0.115, -0.01, 0.085])
    """

    strike: np.ndarray
    expiry: np.ndarray
    vol: np.ndarray
    forward: np.ndarray
    bid: np.ndarray | None
    ask: np.ndarray | None
    weight: np.ndarray
    discount: np.ndarray
    spot: float | None
    date: np.datetime64 | None
    name: str
    remarks: tuple[str, ...]

    def __init__(
        self,
        *,
        strike: Any,
        expiry: Any,
        vol: Any,
        forward: Any,
        bid: Any = None,
        ask: Any = None,
        weight: Any = 1.0,
        discount: Any = 1.0,
        spot: Any = None,
        date: Any = None,
        name: str = "",
        remarks: Sequence[str] = (),
        vol_unit: str | None = None,
        strike_unit: str | None = None,
        max_vol: Any = MOST_VOL,
        errors: str = "raise",
    ) -> None:
        columns = {"strike": strike, "expiry": expiry, "vol": vol, "forward": forward, "bid": bid, "ask": ask}
        columns |= {"weight": weight, "discount": discount}
        refusal, spot = Refusal(errors), positive_spot(spot)
        table = quote_table({key: value for key, value in columns.items() if value is not None})
        vols = decimal_vols({key: getattr(table, key) for key in ("vol", "bid", "ask")}, vol_unit)
        table = replace(table, strike=strikes_in_prices(table.strike, table.forward, spot, strike_unit), **vols)
        table = clean(table, refusal, max_vol)
        remarks = (*remarks, *refusal.notes.get(0, ()))
        _fill(self, table, spot=spot, date=moment(date), name=name, remarks=remarks)

    @classmethod
    def from_grid(
        cls,
        strikes: Any,
        expiries: Any,
        vols: Any,
        *,
        spot: Any = None,
        rates: Any = 0.0,
        dividends: Any = 0.0,
        forwards: Any = None,
        bid: Any = None,
        ask: Any = None,
        weights: Any = 1.0,
        date: Any = None,
        name: str = "",
        vol_unit: str | None = None,
        strike_unit: str | None = None,
        max_vol: Any = MOST_VOL,
        errors: str = "raise",
    ) -> Surface:
        """A surface from a grid with one row, a smile, for each expiry.

        Args:
            strikes: shape `(n_strikes,)`, or `(n_expiries, n_strikes)` where they differ by expiry.
            expiries: years, shape `(n_expiries,)`.
            vols: annual Black vols, NaN where there is no quote; shape `(n_expiries, n_strikes)`. None for the means
                of bid and ask.
            spot: price of the asset today; needed unless `forwards` are given.
            rates: a continuous rate, decimal, or a curve: a pair (times, zero rates), or a `pricers.ZeroCurve`.
            dividends: a continuous yield, like `rates`.
            forwards: to the expiries, shape `(n_expiries,)`; None for those of spot, rates and dividends.
            bid: bid vols, of the shape of `vols`.
            ask: ask vols, likewise.
            weights: of the squared errors; a number or of that shape.
            date: of the quotes: a date, or ISO 8601 text.
            name: of the underlying.
            vol_unit: "decimal" or "percent"; None for decimals, which are refused where they look like percent.
            strike_unit: "price", "percent_of_spot", "moneyness" (strike / spot) or "log_moneyness" (log of strike over
                forward); None for prices, which are refused where they look like another unit.
            max_vol: vols above it are refused.
            errors: what a quote that breaks a rule does: "raise" an error that names it, or "drop" it with a note.

        Raises:
            DataError: a rule is broken; the message names the quote.

        >>> surface = Surface.from_grid([90, 100, 110], [0.5, 1.0], [[0.24, 0.2, 0.19]] * 2, spot=100.0, rates=0.03)
        >>> surface.forward.round(3).tolist()
        [101.511, 101.511, 101.511, 103.045, 103.045, 103.045]
        """
        expiries = float_column("expiries", expiries)
        columns = grid_columns(strikes, expiries, vols, bid, ask, weights)
        spot = positive_spot(spot)
        expiry = columns["expiry"]
        given = None
        if forwards is not None:
            if not (isinstance(dividends, int | float) and dividends == 0.0):
                raise DataError("`dividends` would do nothing beside `forwards`; leave out one of them")
            given = float_column("forwards", forwards, expiries.shape[0])
            given = np.repeat(given, expiry.shape[0] // expiries.shape[0])
        forward, discount = forward_and_discount(expiry, spot, rates, dividends, given)
        columns |= {"forward": forward, "discount": discount}
        columns["strike"] = strikes_in_prices(columns["strike"], forward, spot, strike_unit)
        vol_names = {name: columns[name] for name in ("vol", "bid", "ask") if name in columns}
        refusal = Refusal(errors)
        table = clean(quote_table(columns | decimal_vols(vol_names, vol_unit)), refusal, max_vol)
        return cls.of_table(table, spot=spot, date=moment(date), name=name, remarks=tuple(refusal.notes.get(0, ())))

    @classmethod
    def dax_2002(cls, maturities: str = "exact_days") -> Surface:
        """The DAX on 5 July 2002: 13 strikes at 8 maturities, the classic data of Heston calibration.

        Args:
            maturities: "exact_days", or "week_rounded" to whole weeks, as in the published fits.

        References:
            QuantLib, test-suite/hestonmodel.cpp, testDAXCalibration.

        >>> surface = Surface.dax_2002()
        >>> len(surface), surface.vol.min().item(), surface.vol.max().item()
        (104, 0.2241, 0.6625)
        """
        days = dax.maturities_in_years("exact_days")
        curve = ([0.0, *days], [dax.ZERO_RATES[0], *dax.ZERO_RATES])
        years = dax.maturities_in_years(maturities)
        return cls.from_grid(
            dax.STRIKES, years, dax.VOLS, spot=dax.SPOT, rates=curve, date=dax.DATE, name=f"DAX, {maturities}"
        )

    @classmethod
    def read(cls, path: Any, how: Reading | None = None, **settings: Any) -> Surface:
        """Read the quotes of one day from a CSV or Parquet file.

        One row is a quote, or the call and the put of a strike. Columns, in any order and case, and under their usual
        other names (`quote_columns.ALIASES`):

        - `strike`; one of `expiry` (years), `days` and `maturity` (dates);
        - `vol`, or `price` with `option` (call or put, C or P), or `call` and `put` (prices);
        - `bid` and `ask`, in the unit of `vol` or `price` beside them, or `bid_vol`, `ask_vol`, `bid_price`,
          `ask_price`, `call_bid`, `call_ask`, `put_bid`, `put_ask`;
        - `forward`, or `spot`, `rate` or `discount`, and `dividend`. Without a forward, and unless spot, rates and
          dividends are known, put-call parity implies the forwards, and the discount factors where rates are not known;
        - `weight`, `date`, `name`. Times with a zone are turned into UTC.

        Empty cells are missing quotes: dropped and counted. Of a call and a put at one strike, the one out of the money
        stays.

        Args:
            path: a .csv, .tsv, .txt or .parquet file.
            how: what the columns do not say.
            **settings: fields of `Reading`, in place of `how`: rates=0.03, ignore="unknown", ...

        Raises:
            DataError: a rule is broken; the message names the row (the first below the header is row 0).
        """
        how = Reading.of(how, settings)
        return cls._only(read_quotes(frame_of(path, how.separator), how))

    @classmethod
    def from_frame(cls, frame: Any, how: Reading | None = None, **settings: Any) -> Surface:
        """The surface in a pandas or polars frame: see `read`.

        >>> import polars as pl
        >>> table = pl.DataFrame({"strike": [90.0, 100.0], "days": [73, 73], "price": [0.5, 3.5], "option": ["P", "C"]})
        >>> surface = Surface.from_frame(table, spot=100.0, rates=0.02, dividends=0.0)
        >>> surface.vol.round(4).tolist()
        [0.2057, 0.1852]
        """
        return cls._only(read_quotes(to_polars(frame), Reading.of(how, settings)))

    @classmethod
    def _only(cls, found: QuotesRead) -> Surface:
        if len(found.dates) > 1:
            raise DataError(
                f"the table holds {len(found.dates)} dates, {found.dates[0]} to {found.dates[-1]}; read it with "
                "SurfaceHistory, or keep the rows of one date"
            )
        return cls.of_quotes(found)

    @classmethod
    def of_quotes(cls, found: QuotesRead, number: int = 0) -> Surface:
        """One of the surfaces that were read.

        Raises:
            DataError: none of its quotes is left.
        """
        first, last = np.searchsorted(found.table.surface, [number, number + 1])
        date, notes = found.dates[number], tuple(found.notes.get(number, ()))
        if first == last:
            raise DataError(f"no quote{f' of {date}' if date is not None else ''} is left: {'; '.join(notes)}")
        table = found.table.where(slice(int(first), int(last)))
        return cls.of_table(table, spot=found.spots[number], date=date, name=found.name, remarks=notes)

    def write(self, path: Any) -> Path:
        """Write the quotes as CSV or Parquet, that `read` turns into the same numbers; the remarks are not kept."""
        return write_table(path, table_of([self]))

    @classmethod
    def of_table(cls, table: QuoteTable, **rest: Any) -> Surface:
        """A surface of checked quotes: no rule is looked at again."""
        surface = object.__new__(cls)
        _fill(surface, table, **rest)
        return surface

    def __len__(self) -> int:
        return self.strike.shape[0]

    @property
    def log_moneyness(self) -> np.ndarray:
        """log(strike / forward) of each quote."""
        return np.log(self.strike / self.forward)

    def check(self) -> tuple[Finding, ...]:
        """Arbitrage between the quotes, the largest first, vols outside their market, and expiries too few.

        Findings are no errors: a calibration weighs such quotes as it weighs the others.

        >>> print(Surface.dax_2002().check()[0])
        butterfly arbitrage at expiry 1.436, strikes 4400, 4500, 4600: 17 bps of vol, 7.5 in price
        """
        return self._findings

    @cached_property
    def _findings(self) -> tuple[Finding, ...]:
        smiles = self.smiles()
        found = []
        if len(smiles) == 1:
            found.append(Finding("one_expiry", (smiles[0].expiry,), ()))
        if self.bid is not None and self.ask is not None:
            with np.errstate(invalid="ignore"):
                outside = np.fmax(self.bid - self.vol, self.vol - self.ask)
            n_outside = int((outside > 0.0).sum())
            if n_outside:
                size = float(1e4 * np.nanmax(outside))
                found.append(Finding("outside_market", (), (), vol_bps=size, n_quotes=n_outside))
        for smile in smiles:
            forwards = self.forward[self.expiry == smile.expiry]
            if np.ptp(forwards) > 1e-9 * smile.forward:
                apart = (float(forwards.min()), float(forwards.max()))
                found.append(Finding("several_forwards", (smile.expiry,), apart, n_quotes=forwards.shape[0]))
        return (*found, *arbitrage(smiles))

    def where(self, keep: Any) -> Surface:
        """The surface of some of the quotes.

        Args:
            keep: a mask of shape `(n,)`, or indices.

        >>> surface = Surface.dax_2002()
        >>> len(surface.where(surface.expiry > 0.5))
        52
        """
        try:
            rows = np.arange(len(self))[np.asarray(keep)]
        except IndexError as error:
            raise DataError(f"`keep` must be a mask of {len(self)} quotes, or indices of them: {error}") from None
        remark = f"{len(rows)} of {len(self)} quotes were chosen"
        return self._with({}, rows, (*self.remarks, remark))

    def _with(self, changed: dict[str, np.ndarray], keep: np.ndarray | slice, remarks: tuple[str, ...]) -> Surface:
        """Some of the quotes, with other columns."""
        columns = {name: getattr(self, name) for name in QUOTE_COLUMNS if getattr(self, name) is not None}
        table = quote_table(columns | changed).where(keep)
        return Surface.of_table(table, spot=self.spot, date=self.date, name=self.name, remarks=remarks)

    def reweighted(self, weights: str, least_width: float = 1e-4) -> Surface:
        r"""The surface with other weights of the squared vol errors, of mean 1; quotes of weight 0 keep it.

        Args:
            weights: "equal"; "vega", proportional to the square of Black's vega in price, so that to first order
                errors of prices count; or "spread", to $1 / (\text{ask} - \text{bid})^2$ in vol, so that errors count
                in widths of the market.
            least_width: vol to which narrower markets are widened.

        Raises:
            ConfigError: no such weights.
            DataError: "spread" where a quote lacks bid or ask; no quote with a weight.

        >>> surface = Surface.dax_2002().reweighted("vega")
        >>> surface.weight.mean().round(12).item(), bool(surface.weight[6] > surface.weight[0])
        (1.0, True)
        """
        if weights == "equal":
            weight = np.ones(len(self))
        elif weights == "vega":
            columns = [torch.from_numpy(column.copy()) for column in (self.log_moneyness, self.expiry, self.vol)]
            weight = np.square(black_vega(*columns).numpy() * self.forward * self.discount)
        elif weights == "spread":
            width = np.full(len(self), np.nan) if self.bid is None or self.ask is None else self.ask - self.bid
            if np.isnan(width).any():
                lacking = int(np.isnan(width).sum())
                raise DataError(f'"spread" weights need bid and ask of every quote, {lacking} lack them; use "vega"')
            weight = np.maximum(width, least_width) ** -2.0
        else:
            raise ConfigError(f'`weights` must be "equal", "vega" or "spread", got {weights!r}')
        used = self.weight > 0.0
        if not used.any():
            raise DataError("every quote has weight 0, so there is nothing to weigh; give some of them a weight")
        return self._with({"weight": np.where(used, weight / weight[used].mean(), 0.0)}, slice(None), self.remarks)

    def vol_surface(self, smoothing: float = 1e-4, knots_per_quote: int = 2) -> VolSurface:
        """The surface without arbitrage that is closest to the quotes, for a local volatility (Dupire).

        Args:
            smoothing: see `pricers.VolSurface.fitted`.
            knots_per_quote: likewise.

        Raises:
            DataError: the fit failed, or an expiry has fewer than two quotes.
        """
        from qfml.calibration.local_vol import LocalVolSurface  # which is built on surfaces

        fitted = LocalVolSurface(smoothing, knots_per_quote).fit_surfaces([self])
        found = fitted.vol_surfaces[0]
        if found is None:
            raise DataError(f"there is no surface without arbitrage near the quotes: {fitted.status[0]}")
        return found

    def smiles(self) -> list[Smile]:
        """The quotes of each expiry by ascending strike."""
        order = np.lexsort((self.strike, self.expiry))
        parts = np.split(order, np.flatnonzero(np.diff(self.expiry[order])) + 1)
        empty = np.full(len(self), np.nan)
        bid, ask = (empty if side is None else side for side in (self.bid, self.ask))
        return [
            Smile(
                float(self.expiry[part[0]]),
                float(np.median(self.forward[part])),
                *(column[part] for column in (self.strike, self.vol, bid, ask)),
            )
            for part in parts
        ]

    def __str__(self) -> str:
        lines = [self._title()]
        lines.append("  expiry  quotes     forward  discount          strikes       vols, %  at the money")
        for smile in self.smiles():
            k, discount = smile.log_moneyness, self.discount[self.expiry == smile.expiry][0]
            middle = 100.0 * np.interp(0.0, k, smile.vol) if k[0] <= 0.0 <= k[-1] else np.nan
            strikes = f"{smile.strike[0]:.6g}-{smile.strike[-1]:.6g}"
            vols = f"{100.0 * smile.vol.min():.2f}-{100.0 * smile.vol.max():.2f}"
            lines.append(
                f"{smile.expiry:8.4f}{len(k):8d}{smile.forward:12.6g}{discount:10.5f}{strikes:>17}{vols:>14}{middle:14.2f}"
            )
        notes = self.notes
        lines += [f"- {note}" for note in notes[:SHOWN]]
        if len(notes) > SHOWN:
            lines.append(f"- and {len(notes) - SHOWN} more; see `notes`")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<{self._title()}>"

    def _title(self) -> str:
        title = " ".join(filter(None, (self.name, self.date_text))) or "Surface"
        spot = "" if self.spot is None else f", spot {self.spot:g}"
        return f"{title}: {len(self)} quotes at {len(self.expiries)} expiries{spot}"

    @property
    def date_text(self) -> str:
        """The date, with its time where it has one; empty without a date."""
        return "" if self.date is None else str(self.date).removesuffix("T00:00:00.000000")

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing about the quotes: what reading them has found, and what `check` finds."""
        return (*self.remarks, *map(str, self.check()))

    @property
    def expiries(self) -> np.ndarray:
        """The different expiries, ascending."""
        return np.unique(self.expiry)


def _fill(surface: Surface, table: QuoteTable, **rest: Any) -> None:
    if not len(table):
        raise DataError("the surface has no quotes; every one was empty or left out")
    columns: dict[str, Any] = {name: getattr(table, name) for name in QUOTE_COLUMNS}
    for name in ("bid", "ask"):
        if np.isnan(columns[name]).all():
            columns[name] = None
    for name, value in (columns | rest).items():
        if isinstance(value, np.ndarray):
            value.flags.writeable = False  # shared between surfaces and batches
        object.__setattr__(surface, name, value)
