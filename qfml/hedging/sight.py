"""From what can be observed on a trading date (spot, variance, prices) to the features of a policy, for live use.

A market makes features of whole paths; `Sight` makes the same features of single dates, by the same functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qfml.errors import ConfigError, DataError
from qfml.hedging.book import Book
from qfml.hedging.book_delta import Options
from qfml.hedging.information import NEEDED, Seen, features

__all__ = ["Sight", "sight_of"]

UNITS = {
    "spot": "price of the asset",
    "variance": "instantaneous variance, per year, decimal",
    "relative_vol": "instantaneous volatility over that of the first trading date",
    "realised_vol": "root mean square of the past log returns, per year, decimal",
}
OF_OBSERVABLES = {
    "running_average": "average of the fixings so far, today's included, or the spot before the first; a price",
    "running_extremum": "greatest or least price so far",
    "alive": "1 until the barrier is touched, then 0",
    "realised_variance": "quadratic variation of the log price so far over the years of the contract, decimal",
}
POSITIVE = ("spot", "relative_vol", "running_average", "running_extremum")  # and others must not be negative


@dataclass(frozen=True, eq=False)
class Sight:
    """How the features of a market follow from what is observed on a trading date.

    Args:
        times: trading dates in years, `(L,)`, float64.
        growth: forward to the horizon over the spot at each date, `(L,)`.
        reference: strike of the book, or today's forward where it has none, `()`.
        vol: the unit of volatility, per year, `()`.
        factors: by hedging instrument but the spot, what its price, not discounted, is multiplied by at each date,
            `(L,)`.
        information: names of `FEATURES`, "prices" and observables.
        instruments: names of all hedging instruments.
        observables: of the book, by name.
        state: what tells the volatility, "variance" or "relative_vol"; None where it is not known.
        options: of the book, where its delta is seen.
    """

    times: Tensor
    growth: Tensor
    reference: Tensor
    vol: Tensor
    factors: Mapping[str, Tensor]
    information: tuple[str, ...]
    instruments: tuple[str, ...]
    observables: tuple[str, ...] = ()
    state: str | None = None
    options: Options | None = None

    @property
    def n_steps(self) -> int:
        """Trading periods."""
        return len(self.times) - 1

    @property
    def quantities(self) -> dict[str, str]:
        """What is to be observed on a date, each with its unit."""
        found: dict[str, str] = {}
        for name in self.information:
            if name == "prices":
                found |= dict.fromkeys(self.factors, "price, not discounted")
            elif name in self.observables:
                found[name] = next(unit for prefix, unit in OF_OBSERVABLES.items() if name.startswith(prefix))
            elif needed := self.state if name == "vol" else NEEDED[name]:
                found[needed] = UNITS[needed]
        return found

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All numbers, by name."""
        own = {name: getattr(self, name) for name in ("times", "growth", "reference", "vol")}
        of_options = {} if self.options is None else self.options.tensors
        own |= {f"factor {name}": value for name, value in self.factors.items()}
        return own | {f"option {name}": value for name, value in of_options.items()}

    def of(self, tensors: Mapping[str, Tensor]) -> Sight:
        """The same with other tensors, named as `tensors`."""
        factors = {name: tensors[f"factor {name}"] for name in self.factors}
        own = {name: tensors[name] for name in ("times", "growth", "reference", "vol")}
        of_options = {name: tensors[f"option {name}"] for name in (self.options.tensors if self.options else ())}
        return replace(self, factors=factors, options=Options.of(of_options) if of_options else None, **own)

    def known(self, quantities: Mapping[str, Tensor]) -> Tensor:
        """Whether each of B rows holds what can be observed: finite numbers, prices and volatilities of their sign."""
        found = [torch.ones_like(next(iter(quantities.values())), dtype=torch.bool)] if quantities else []
        for name, value in quantities.items():
            found.append(value.isfinite())
            if self._rule(name) != "finite":
                found.append(value > 0 if self._rule(name) == "above 0" else value >= 0)
            if self._rule(name) == "0 or 1":
                found.append((value == 0) | (value == 1))
        return torch.stack(found, -1).all(-1)

    def _rule(self, name: str) -> str:
        """What a quantity must be."""
        if name in self.factors:
            return "finite"
        return "above 0" if name.startswith(POSITIVE) else "0 or 1" if name.startswith("alive") else "0 or more"

    def features(self, quantities: Mapping[str, Tensor], date: Tensor) -> Tensor:
        """Features (B, F), float32, of B rows of quantities (B,) each at its own date (B,), int64."""
        row = {name: value[:, None] for name, value in quantities.items()}
        growth = self.growth[date, None]
        seen = Seen(
            self.times,
            growth * row["spot"] if "spot" in row else growth,
            self.reference,
            self.vol,
            {name: row[name] * factor[date, None] for name, factor in self.factors.items() if name in row},
            {name: row[name] for name in self.observables if name in row},
            row.get("variance"),
            row.get("relative_vol"),
            row.get("realised_vol"),
            date,
            self.options,
        )
        return features(self.information, seen)[0][:, 0]


def sight_of(market: Any, book: Book) -> Sight:
    """How the market's features follow from what is observed.

    Raises:
        ConfigError: a market that does not say so.
    """
    if not hasattr(market, "sight"):
        raise ConfigError(
            f"a market of kind {getattr(market, 'kind', type(market).__name__)!r} does not tell how its features "
            "follow from what is observed: hand in the features themselves"
        )
    return market.sight(book)


def rows_of(sight: Sight, observed: Mapping[str, Any]) -> dict[str, Tensor]:
    """What a caller has observed as float64 tensors of one shape, () or (B,).

    Raises:
        DataError: a quantity that is missing or unknown, no number, or one that cannot be observed.
    """
    names = tuple(sight.quantities)
    listed = ", ".join(names) or "nothing but the date"
    if missing := [name for name in names if name not in observed]:
        raise DataError(f"what is observed lacks {missing[0]!r}; the policy needs {listed}")
    if unknown := [name for name in observed if name not in names]:
        raise DataError(f"{unknown[0]!r} is nothing that the policy needs, which is {listed}")
    found = {name: as_numbers(name, observed[name]).double() for name in names}
    try:
        shape = torch.broadcast_shapes(*(value.shape for value in found.values()))
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in found.items())
        raise DataError(f"what is observed must be numbers, or arrays (B,) of one length, got {shapes}") from None
    found = {name: value.expand(shape) for name, value in found.items()}
    for name, value in found.items():
        if value.ndim > 1:
            raise DataError(f"{name!r} must be a number, or an array (B,), got shape {tuple(value.shape)}")
        if not bool(sight.known({name: value}).all()):
            bad = value[~sight.known({name: value})].reshape(-1)[0]
            unit = sight.quantities[name]
            raise DataError(f"{name!r} must be a number, {sight._rule(name)}, got {float(bad):g}; it is the {unit}")
    return found


def as_numbers(name: str, value: Any) -> Tensor:
    """A tensor of numbers.

    Raises:
        DataError: what is none.
    """
    try:
        given = value if isinstance(value, torch.Tensor) else np.asarray(value)  # Python's numbers in double precision
        found = torch.as_tensor(given, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise DataError(f"{name!r} must be numbers, got {value!r}") from None
    if found.is_complex():
        raise DataError(f"{name!r} must be real numbers, got {value!r}")
    return found
