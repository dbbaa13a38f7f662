"""Quotes of swaption vols by expiry, tenor and strike, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from pricers import implied_vol
from pricers.black import bachelier_price
from qfml.errors import ConfigError, DataError

__all__ = ["QUOTES", "SwaptionCube"]

COLUMNS = ("expiry", "tenor", "strike", "offset_bps", "forward", "vol", "vol_bps", "weight", "shift")
ALIASES = {"option_expiry": "expiry", "swap_tenor": "tenor"}
QUOTES = ("lognormal", "normal")
MOST_VOL = {"lognormal": 5.0, "normal": 0.2}  # above: in percent or basis points
MOST_RATE = 0.5  # absolute: above, a rate is in percent
MOST_YEARS = 100.0  # above: in days or months
SAME_YEARS, SAME_STRIKE = 1e-6, 1e-9  # closer: the same number, written twice
LEAST_RATE_VOL = 5e-4  # of the rate, absolute: a lognormal vol below was perhaps a normal one
BASIS_POINT = 1e-4


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class SwaptionCube:
    """Quotes of swaption vols by expiry, tenor and strike; a node is one expiry and tenor.

    Args:
        expiry: of the option, years, shape `(n,)`.
        tenor: of the swap, years, shape `(n,)`.
        strike: decimal rate, shape `(n,)`.
        forward: swap rate, decimal, the same for all quotes of a node, shape `(n,)`.
        vol: annual, NaN where there is no quote; shape `(n,)`.
        shift: of a shifted-lognormal vol and of the SABR model: what is added to forward and strike. Negative rates
            need one above their absolute value.
        quote: what `vol` is: "lognormal" (of the shifted rate) or "normal" (Bachelier, decimal).
        weight: of the squared error, 0 or more; a number stands for all.

    Raises:
        DataError: a rule is broken; the message names the first quote that breaks it.
        ConfigError: `quote` is unknown.

    >>> cube = SwaptionCube(expiry=[1.0] * 3, tenor=[5.0] * 3, strike=[0.01, 0.02, 0.03], forward=[0.02] * 3,
    ...                     vol=[0.4, 0.3, 0.28])
    >>> cube
    SwaptionCube: 1 expiry x 1 tenor, 3 quotes (lognormal, shift 0)
    """

    expiry: Any
    tenor: Any
    strike: Any
    forward: Any
    vol: Any
    shift: float = 0.0
    quote: str = "lognormal"
    weight: Any = 1.0

    def __post_init__(self) -> None:
        if self.quote not in QUOTES:
            raise ConfigError(f'`quote` of a cube must be "lognormal" or "normal", got {self.quote!r}')
        shift: Any = self.shift
        if isinstance(shift, bool) or not isinstance(shift, int | float) or not 0.0 <= shift < math.inf:
            raise DataError(f"`shift` of a cube must be one number of 0 or more, decimal, got {self.shift!r}")
        length = np.size(self.vol)
        for name in ("expiry", "tenor", "strike", "forward", "vol", "weight"):
            object.__setattr__(self, name, _column(name, getattr(self, name), length))  # the class is frozen
        self._check()

    def _check(self) -> None:
        quoted = ~np.isnan(self.vol)
        if not quoted.any():
            raise DataError("a cube needs quotes, got no vol that is a number")
        years = f"years above 0 and at most {MOST_YEARS:g}", "divide months by 12, days by 365, or leave it out"
        percent = "rates are decimal: write 0.03 for 3 %"
        rules = {
            "expiry": ((self.expiry > 0.0) & (self.expiry <= MOST_YEARS), *years),
            "tenor": ((self.tenor > 0.0) & (self.tenor <= MOST_YEARS), *years),
            "forward": (np.abs(self.forward) <= MOST_RATE, f"at most {MOST_RATE:g}", percent),
            "strike": (np.abs(self.strike) <= MOST_RATE, f"at most {MOST_RATE:g}", percent),
            "weight": (self.weight >= 0.0, "0 or more", "0 leaves a quote out"),
            "vol": (
                ~quoted | ((self.vol > 0.0) & (self.vol <= MOST_VOL[self.quote])),
                f"above 0 and at most {MOST_VOL[self.quote]:g} for {self.quote} vols",
                "vols are decimal (a column `vol_bps` is in basis points); NaN marks a missing quote",
            ),
        }
        for name, (kept, rule, way_out) in rules.items():
            values = getattr(self, name)
            self._refuse(~(kept & (np.isfinite(values) | (name == "vol"))), name, values, rule, way_out)
        for name in ("forward", "strike"):
            values = getattr(self, name)
            rule = f"above minus the shift of {self.shift:g}"
            self._refuse(
                values + self.shift <= 0.0, name, values, rule, "give a larger `shift`, or leave the quote out"
            )
        for name in ("expiry", "tenor"):
            values = getattr(self, name)
            distinct = np.unique(values)
            close = np.isin(values, distinct[1:][np.diff(distinct) < SAME_YEARS])
            rule = f"the same number as another one that is {SAME_YEARS:g} years away"
            self._refuse(close, name, values, rule, "write both with the same digits")
        keys = np.stack([self.expiry, self.tenor])
        _, first, node = np.unique(keys, axis=1, return_index=True, return_inverse=True)
        order = np.lexsort((self.strike, node.reshape(-1)))
        again = np.zeros(len(self.vol), dtype=bool)
        same = (np.diff(node.reshape(-1)[order]) == 0) & (np.diff(self.strike[order]) < SAME_STRIKE)
        again[order[1:][same]] = True
        self._refuse(again, "strike", self.strike, "quoted once for an expiry and tenor", "keep one of the quotes")
        other = np.abs(self.forward - self.forward[first][node.reshape(-1)]) > 1e-12
        self._refuse(other, "forward", self.forward, "one number for an expiry and tenor", "correct it")

    def _refuse(self, broken: np.ndarray, name: str, values: np.ndarray, rule: str, way_out: str) -> None:
        if broken.any():
            row = int(np.argmax(broken))
            raise DataError(
                f"`{name}` must be {rule}, got {values[row]:g} at quote {row} (expiry {self.expiry[row]:g}, tenor "
                f"{self.tenor[row]:g}, strike {self.strike[row]:g}), {int(broken.sum())} such in all; {way_out}"
            )

    @classmethod
    def read(cls, path: str | Path, *, shift: float | None = None, quote: str = "lognormal") -> SwaptionCube:
        """A cube from a long table, CSV or Parquet: a row for each quote.

        Args:
            path: columns `expiry` (or `option_expiry`), `tenor` (or `swap_tenor`), `forward`, either `strike` or
                `offset_bps` (of the strike from the forward), either `vol` or `vol_bps`, and perhaps `weight` and
                `shift`, in any case and order. An empty vol is a missing quote.
            shift: as the class; None: that of the column `shift`, or 0.
            quote: as the class.

        Raises:
            DataError: a file or column that is missing or not known, or quotes that break a rule.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"there is no file {path}; give a CSV or Parquet table of swaption vols")
        try:
            frame = (
                pl.read_parquet(path)
                if path.suffix.lower() in (".parquet", ".pq")
                else pl.read_csv(path, null_values=["NaN", "nan", ""])
            )
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(
                f"{path.name} cannot be read as a table: {error}; write CSV with a header, or Parquet"
            ) from error
        columns = _from_columns(frame, path.name)
        shift = _shift(columns.pop("shift", None), shift, path.name)
        return cls(**columns, shift=shift, quote=quote)

    def __repr__(self) -> str:
        counts = [len(np.unique(values)) for values in (self.expiry, self.tenor)]
        words = [
            f"{count} {name}{'' if count == 1 else ends}"
            for count, name, ends in zip(counts, ("expiry", "tenor"), ("", "s"))
        ]
        words[0] = words[0] if counts[0] == 1 else f"{counts[0]} expiries"
        n_quotes = int(np.isfinite(self.vol).sum())
        return f"SwaptionCube: {' x '.join(words)}, {n_quotes} quotes ({self.quote}, shift {self.shift:g})"

    __str__ = __repr__

    def __len__(self) -> int:
        return len(self.vol)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be known about the quotes: how many are missing, vols that look like normal ones."""
        missing = int(np.isnan(self.vol).sum())
        notes = [f"{missing} of {len(self)} quotes have no vol"] if missing else []
        of_rate = float(np.nanmedian(self.vol * (self.forward + self.shift)))
        if self.quote == "lognormal" and of_rate < LEAST_RATE_VOL:
            notes.append(
                f"half of the vols move the rate by less than {1e4 * of_rate:.2g} bps a year: if they are normal vols, "
                'say quote="normal"'
            )
        return tuple(notes)

    def lognormal_vol(self) -> np.ndarray:
        """Shifted-lognormal vols of the quotes: normal ones by way of their prices; NaN where there is no quote.

        Raises:
            DataError: a normal vol whose price no shifted-lognormal vol reaches.
        """
        if self.quote == "lognormal":
            return self.vol
        vols = np.full(len(self.vol), np.nan)
        quoted = np.isfinite(self.vol)
        for option in ("call", "put"):  # the one out of the money
            side = quoted & ((self.strike >= self.forward) == (option == "call"))
            forward, strike, expiry = (
                torch.from_numpy(part[side]) for part in (self.forward, self.strike, self.expiry)
            )
            if len(forward):
                price = bachelier_price(forward, strike, expiry, torch.from_numpy(self.vol[side]), option=option)
                found = implied_vol(
                    price, forward + self.shift, strike + self.shift, expiry, option=option, errors="nan"
                )
                vols[side] = found.numpy()
        rule = f"a price that a lognormal rate shifted by {self.shift:g} reaches"
        self._refuse(quoted & np.isnan(vols), "vol", self.vol, rule, "give a larger `shift`")
        return vols


def _column(name: str, value: Any, length: int) -> np.ndarray:
    try:
        column = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"`{name}` of a cube must be numbers, got {value!r}") from None
    if column.shape not in ((), (length,)):
        raise DataError(f"`{name}` of a cube must have the {length} numbers that `vol` has, got shape {column.shape}")
    return np.ascontiguousarray(np.broadcast_to(column, (length,)))


def _shift(column: np.ndarray | None, given: float | None, name: str) -> float:
    """The one shift of a cube."""
    if column is None:
        return 0.0 if given is None else given
    if not (column == column[0]).all():
        raise DataError(f"{name}: `shift` must be the same in all rows; read rows of another shift as another cube")
    if given is not None and given != column[0]:
        raise DataError(f"{name}: the column `shift` says {column[0]:g}, and {given!r} is given; leave out one of them")
    return float(column[0])


def _from_columns(frame: pl.DataFrame, name: str) -> dict[str, Any]:
    """The arguments of a cube from the columns of a table."""
    own = {column: column.strip().lower() for column in frame.columns}
    own = {column: ALIASES.get(known, known) for column, known in own.items()}
    twice = [column for column in frame.columns if list(own.values()).count(own[column]) > 1]
    if twice:
        raise DataError(f"{name}: the columns {', '.join(f'`{column}`' for column in twice)} are the same; keep one")
    frame = frame.rename(own)
    if frame.is_empty():
        raise DataError(f"{name}: a cube needs quotes, and the table has no row")
    unknown = [column for column in frame.columns if column not in COLUMNS]
    if unknown:
        raise DataError(f"{name}: column `{unknown[0]}` is not known; a cube has the columns {', '.join(COLUMNS)}")
    for pair in (("strike", "offset_bps"), ("vol", "vol_bps")):
        if sum(column in frame.columns for column in pair) != 1:
            raise DataError(
                f"{name}: needs one of the columns `{pair[0]}` and `{pair[1]}`; it has {', '.join(frame.columns)}"
            )
    for column in ("expiry", "tenor", "forward"):
        if column not in frame.columns:
            raise DataError(f"{name}: needs the column `{column}`; it has {', '.join(frame.columns)}")
    try:
        numbers = {column: frame[column].cast(pl.Float64).to_numpy() for column in frame.columns}
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{name}: every column must hold numbers: {error}") from error
    strike = numbers["strike"] if "strike" in numbers else numbers["forward"] + BASIS_POINT * numbers["offset_bps"]
    vol = numbers["vol"] if "vol" in numbers else BASIS_POINT * numbers["vol_bps"]
    rest = {
        column: numbers[column] for column in ("expiry", "tenor", "forward", "weight", "shift") if column in numbers
    }
    return {"strike": strike, "vol": vol} | rest
