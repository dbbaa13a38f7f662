"""How a table of quotes is to be read."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from qfml.calibration.surface_checks import (
    MOST_VOL,
)
from qfml.errors import ConfigError

__all__ = ["Reading"]


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
