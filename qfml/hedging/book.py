"""What the trader has sold: contracts of any kind, what they pay along a path, and what can be seen of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import pricers as pr
from pricers.instruments.base import Discount, EarlyExercise
from pricers.parameters import converted, number
from pricers.paths import SAME_DATE, Paths, merged_dates
from qfml.errors import ConfigError, DataError
from qfml.hedging.contracts import built, settings_of
from qfml.hedging.observables import OBSERVABLES

__all__ = ["Book"]


@dataclass(frozen=True)
class Book:
    r"""Contracts that the trader owes: $Z = \sum_i q_i\,\mathrm{payoff}_i$, in today's money.

    Args:
        positions: pairs of a quantity and a contract of `pricers`, or mappings `{quantity: ..., instrument: {kind:
            ...}}`. A quantity above 0 is sold, one below 0 is bought.

    Raises:
        ConfigError: no position, a quantity of 0, a batch of contracts, a contract with early exercise or on several
            assets.

    Example:
        >>> book = Book(((1.0, pr.European(100.0, 0.5)), (-1.0, pr.European(110.0, 0.5))))
        >>> book.horizon
        0.5
        >>> times = torch.tensor([0.0, 0.5], dtype=torch.float64)
        >>> book.liability(pr.Scenarios(times, torch.tensor([[100.0, 125.0]]), {}).paths, pr.Market(100.0).discount)
        tensor([10.], dtype=torch.float64)
    """

    positions: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.positions, (tuple, list)) or not self.positions:
            raise ConfigError(
                f"`positions` must hold pairs of a quantity and a contract, at least one, got {self.positions!r}"
            )
        plain = tuple(_position(place, given) for place, given in enumerate(self.positions))
        object.__setattr__(self, "positions", plain)
        for name, contract in zip(self.names, self.contracts, strict=True):
            _check(name, contract)

    @cached_property
    def contracts(self) -> tuple[pr.Instrument, ...]:
        """The contracts of the positions."""
        places = enumerate(self.positions)
        return tuple(built(f"positions.{i}.instrument", one["instrument"], pr.INSTRUMENTS) for i, one in places)

    def to(self, device: torch.device | str) -> Book:
        """The same book with its contracts on a device, for paths that are there."""
        if torch.device(device).type == "cpu":
            return self
        made = Book(self.positions)
        contracts = tuple(converted(contract, torch.float64, torch.device(device)) for contract in self.contracts)
        made.__dict__["contracts"] = contracts  # in the place of those that it would make itself
        return made

    @property
    def quantities(self) -> tuple[float, ...]:
        """What is owed of each."""
        return tuple(one["quantity"] for one in self.positions)

    @property
    def size(self) -> float:
        """The largest quantity, of either sign: the unit in which policies hold, and features tell, what is hedged."""
        return max(map(abs, self.quantities))

    @property
    def names(self) -> tuple[str, ...]:
        """Places of the positions, for messages."""
        return tuple(f"positions.{i} ({one['instrument']['kind']})" for i, one in enumerate(self.positions))

    @property
    def told(self) -> str:
        """The positions, for messages."""
        return ", ".join(_told(one["quantity"], one["instrument"]) for one in self.positions)

    @cached_property
    def horizon(self) -> float:
        """Last date of all contracts, years."""
        return max(float(contract.horizon) for contract in self.contracts)

    @cached_property
    def dates(self) -> Tensor:
        """All contract dates after today, ascending, years."""
        found = merged_dates(torch.cat([contract.dates.double().reshape(-1) for contract in self.contracts]))
        return found[found > SAME_DATE]

    @property
    def continuous(self) -> bool:
        """Whether a payoff looks at the path between its dates."""
        return any(contract.continuous for contract in self.contracts)

    @property
    def bridge_uniforms(self) -> bool:
        """Whether a payoff draws extremes between the recorded times.

        A barrier watched at all times does too: its payoff in probability, which a price is well served by, has less
        risk than the payoff itself.
        """
        return any(
            contract.bridge_uniforms or (isinstance(contract, pr.Barrier) and contract.continuous)
            for contract in self.contracts
        )

    @property
    def strike(self) -> float | None:
        """The first strike among the contracts; None if there is none."""
        for contract in self.contracts:
            strike = getattr(contract, "strike", None)
            if isinstance(strike, Tensor) and contract.kind not in ("variance_swap", "variance_option"):
                return float(strike)
        return None

    def check_dates(self, times: Tensor, recorded: Tensor | None = None) -> None:
        """Refuse trading dates that do not end with the book, and recorded times that lack a date of it.

        Args:
            times: trading dates in years.
            recorded: times of which the prices are known, where they are given and not simulated.

        Raises:
            DataError: naming the date.
        """
        last = float(times[-1])
        if abs(last - self.horizon) > SAME_DATE:
            raise DataError(
                f"the horizon of the book is not on the grid: its last contract ends after {self.horizon:.10g} years, "
                f"the last trading date is {last:.10g}; let both be the same"
            )
        if recorded is None:
            return
        for date in self.dates.tolist():
            if float((recorded - date).abs().min()) > SAME_DATE:
                raise DataError(
                    f"contract dates must be among the recorded times, {date:.10g} years is not; record it, or move it"
                )

    def liability(self, paths: Paths, discount: Discount) -> Tensor:
        """What is owed along each path, discounted, shape `(paths,)`, float64.

        Args:
            paths: with all contract dates.
            discount: today's value of one unit of cash at a time in years.

        Raises:
            ConfigError: a contract does not go with the paths (a barrier that is crossed today).
        """
        total = paths.spot.new_zeros(len(paths.spot), dtype=torch.float64)
        for name, quantity, contract in zip(self.names, self.quantities, self.contracts, strict=True):
            try:
                total = total + quantity * contract.payoff(paths, discount)
            except ValueError as error:
                raise ConfigError(f"{name}: {error}") from None
        return total

    @property
    def observable_names(self) -> tuple[str, ...]:
        """What can be seen of path-dependent contracts; the second of a name is called name_2, and so on."""
        return tuple(name for name, _ in self._observed)

    @cached_property
    def _observed(self) -> tuple[tuple[str, pr.Instrument], ...]:
        """Each name, and the contract of which it is seen."""
        found: list[tuple[str, pr.Instrument]] = []
        for contract in self.contracts:
            for name in OBSERVABLES.get(type(contract), {}):
                count = sum(other == name or other.startswith(f"{name}_") for other, _ in found)
                found.append((f"{name}_{count + 1}" if count else name, contract))
        return tuple(found)

    def check_seen(self, seen: Mapping[str, Tensor]) -> None:
        """Refuse a spot beyond a barrier that is watched at all times and said not to be touched.

        Args:
            seen: what a policy sees of `spot` and the observables, by name, of one shape.

        Raises:
            DataError: naming both.
        """
        for name, contract in self._observed:
            watched = name.startswith("alive") and isinstance(contract, pr.Barrier) and contract.continuous
            if not watched or not {name, "spot"} <= set(seen):
                continue
            assert isinstance(contract, pr.Barrier)
            spot = seen["spot"]
            beyond = (spot <= contract.barrier) if contract.down else (spot >= contract.barrier)
            wrong = (beyond & (seen[name] > 0)).reshape(-1)
            if bool(wrong.any()):
                raise DataError(
                    f"{name!r} must be 0 from the first time that the barrier {float(contract.barrier):g} is touched, "
                    f"and the spot is {float(spot.reshape(-1)[wrong][0]):g}"
                )

    def observables(self, paths: Paths, times: Tensor) -> dict[str, Tensor]:
        """The observables by name at each trading date, shape `(paths, dates)`; nothing is known before its time."""
        made = [
            observe(contract, paths, times)
            for contract in self.contracts
            for observe in OBSERVABLES.get(type(contract), {}).values()
        ]
        return dict(zip(self.observable_names, made, strict=True))


def _position(place: int, given: Any) -> dict[str, Any]:
    """One position as plain settings."""
    what = f"positions.{place}"
    if isinstance(given, Mapping):
        if set(given) != {"quantity", "instrument"}:
            raise ConfigError(f"{what} must have `quantity` and `instrument`, got {', '.join(map(str, given))}")
        quantity, instrument = given["quantity"], given["instrument"]
    elif isinstance(given, (tuple, list)) and len(given) == 2:
        quantity, instrument = given
    else:
        raise ConfigError(f"{what} must be a pair of a quantity and a contract, got {given!r}")
    try:
        quantity = number(f"{what}.quantity", quantity)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if quantity == 0.0:
        raise ConfigError(f"`{what}.quantity` must not be 0; leave the position out")
    return {"quantity": quantity, "instrument": settings_of(built(f"{what}.instrument", instrument, pr.INSTRUMENTS))}


def _told(quantity: float, instrument: Mapping[str, Any]) -> str:
    """A position, for messages: what is not given is left out."""
    said = ("kind", "option")
    terms = (f"{name} {value}" for name, value in instrument.items() if name not in said and value is not None)
    return f"{quantity:g} {' '.join(instrument[name] for name in said if name in instrument)} ({', '.join(terms)})"


def _check(name: str, contract: pr.Instrument) -> None:
    if contract.batch_shape.numel() != 1 or len(contract.batch_shape):
        raise ConfigError(f"{name} is a batch of shape {tuple(contract.batch_shape)}: give each contract a position")
    if isinstance(contract, EarlyExercise):
        raise ConfigError(f"{name} may be exercised early, which its holder decides: only European contracts are owed")
    if contract.n_assets != 1:
        raise ConfigError(f"{name} is on several assets; a book is on one")
