"""What trading costs: proportional, fixed per trade and quadratic, for each instrument, and their sum."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from qfml.errors import ConfigError
from qfml.hedging.kinds import is_number

__all__ = [
    "COSTS",
    "Cost",
    "FixedPerTrade",
    "Proportional",
    "Quadratic",
    "Trade",
    "check_costs",
    "check_kinds",
    "total_cost",
]

PerInstrument = float | tuple[float, ...]
Trades = Float[Tensor, "*#batch instrument"]  # axes broadcast
Cash = Float[Tensor, "*#batch"]


class Trade(NamedTuple):
    """Of one instrument."""

    place: int  # of the instrument
    units: float
    worth: float


class Cost(ABC):
    """What a trade costs, in the discounted cash of its prices; a subclass is a frozen dataclass."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def settings(self) -> dict[str, PerInstrument]:
        """The settings that may differ between instruments, by name."""

    @abstractmethod
    def of(self, trade: Trades, price: Trades) -> Cash:
        """Cost of buying (or, where negative, selling) `trade` units at `price`, summed over the instruments."""

    def smoothed(self, trade: Trades, price: Trades) -> Cash:
        """The cost with a derivative at every trade, for training alone; the cost itself where that has one."""
        return self.of(trade, price)

    def share(self, trade: Trade | None) -> float:
        """The largest share that this cost takes of a trade; None: of any, however small."""
        return 0.0


@dataclass(frozen=True)
class Proportional(Cost):
    r"""A share of what is traded: :math:`\sum_k c_k\,|\Delta_k|\,P_k`.

    Args:
        rate: :math:`c_k` as a decimal in [0, 1), 1e-3 for ten basis points; one number, or one for each instrument.

    Raises:
        ConfigError: a rate below 0 or of 100 % and more.

    Example:
        >>> trade, price = torch.tensor([2.0, -1.0]), torch.tensor([10.0, 4.0])
        >>> Proportional(rate=(0.01, 0.05)).of(trade, price)
        tensor(0.4000)
    """

    kind: ClassVar[str] = "proportional"
    rate: PerInstrument

    def __post_init__(self) -> None:
        _check("rate", self.rate, below=1.0, meaning="a share of what is traded: 1e-3 for ten basis points")

    @property
    def settings(self) -> dict[str, PerInstrument]:
        return {"rate": self.rate}

    def of(self, trade: Trades, price: Trades) -> Cash:
        return (_factor(self.rate, trade) * trade.abs() * price.abs()).sum(-1)

    def share(self, trade: Trade | None) -> float:
        return max(_tuple(self.rate))


@dataclass(frozen=True)
class FixedPerTrade(Cost):
    r"""An amount of cash for every trade: :math:`\sum_k f_k\,1\{\Delta_k \ne 0\}`.

    It has no derivative. Training takes :math:`f_k (1 - e^{-(\Delta_k / h)^2})` instead, with h = `smooth`; what is
    judged always pays the exact amount.

    Args:
        amount: :math:`f_k`, discounted cash of at least 0; one number, or one for each instrument.
        smooth: h, the trade in units of the instrument at which training charges 63 % of the amount; None where
            nothing is trained.

    Raises:
        ConfigError: an amount below 0, a `smooth` that is not above 0.

    Example:
        >>> FixedPerTrade(amount=0.5).of(torch.tensor([0.0, -2.0]), torch.ones(2))
        tensor(0.5000)
    """

    kind: ClassVar[str] = "fixed_per_trade"
    amount: PerInstrument
    smooth: float | None = None

    def __post_init__(self) -> None:
        _check("amount", self.amount, below=math.inf, meaning="discounted cash for one trade")
        if self.smooth is not None and not (is_number(self.smooth) and 0 < self.smooth < math.inf):
            raise ConfigError(f"`smooth` must be a trade above 0, in units of the instrument, got {self.smooth!r}")

    @property
    def settings(self) -> dict[str, PerInstrument]:
        return {"amount": self.amount}

    def share(self, trade: Trade | None) -> float:
        return 0.0 if trade is None else _at(self.amount, trade.place) / trade.worth

    def of(self, trade: Trades, price: Trades) -> Cash:
        return (_factor(self.amount, trade) * (trade != 0).to(trade.dtype)).sum(-1)

    def smoothed(self, trade: Trades, price: Trades) -> Cash:
        if self.smooth is None:
            raise ConfigError(
                "`smooth` of the cost `fixed_per_trade` must be given to train on it, as a fixed amount has no "
                "derivative: set it to a small trade, such as 0.01 units"
            )
        return (_factor(self.amount, trade) * -torch.expm1(-(trade / self.smooth).square())).sum(-1)


@dataclass(frozen=True)
class Quadratic(Cost):
    r"""Market impact: :math:`\sum_k \eta_k\,\Delta_k^2\,P_k`, so that the price moves by a share :math:`\eta_k` a unit.

    Args:
        impact: :math:`\eta_k`, per unit of the instrument, at least 0; one number, or one for each instrument.

    Raises:
        ConfigError: an impact below 0.

    References:
        Almgren and Chriss (2001), "Optimal Execution of Portfolio Transactions", eq. 7: temporary impact, linear in
        the size of the trade.

    Example:
        >>> Quadratic(impact=0.1).of(torch.tensor([-2.0]), torch.tensor([10.0]))
        tensor(4.)
    """

    kind: ClassVar[str] = "quadratic"
    impact: PerInstrument

    def __post_init__(self) -> None:
        _check("impact", self.impact, below=math.inf, meaning="a share of the price for one unit")

    @property
    def settings(self) -> dict[str, PerInstrument]:
        return {"impact": self.impact}

    def share(self, trade: Trade | None) -> float:
        return 0.0 if trade is None else _at(self.impact, trade.place) * trade.units

    def of(self, trade: Trades, price: Trades) -> Cash:
        return (_factor(self.impact, trade) * trade.square() * price.abs()).sum(-1)


COSTS: dict[str, type[Cost]] = {cls.kind: cls for cls in (Proportional, FixedPerTrade, Quadratic)}


def total_cost(costs: Sequence[Cost], trade: Trades, price: Trades, smooth: bool = False) -> Cash:
    """The sum of several costs of the same trades, 0 without any; `smooth` takes the costs that training takes.

    Args:
        costs: any number of costs.
        trade: units bought (positive) or sold, shape (..., K).
        price: discounted prices, shape (..., K); its axes broadcast.
        smooth: whether every cost must have a derivative.

    Returns:
        Discounted cash, shape (...).

    Example:
        >>> total_cost([Proportional(0.01), FixedPerTrade(1.0)], torch.tensor([-2.0]), torch.tensor([100.0]))
        tensor(3.)
    """
    total = torch.zeros(torch.broadcast_shapes(trade.shape, price.shape)[:-1], dtype=trade.dtype, device=trade.device)
    for cost in costs:
        total = total + (cost.smoothed(trade, price) if smooth else cost.of(trade, price))
    return total


def check_kinds(costs: Any) -> None:
    """Raise ConfigError unless all are costs."""
    if not isinstance(costs, Sequence) or not all(isinstance(cost, Cost) for cost in costs):
        raise ConfigError(f"`costs` must be a sequence of costs, such as (Proportional(1e-3),), got {costs!r}")


def check_costs(
    costs: Sequence[Cost], n_instruments: int, levels: Sequence[float] = (1.0,), trade: Trade | None = None
) -> None:
    """Refuse costs that do not fit the instruments, and levels that make them negative or more than is traded.

    Args:
        costs: of trading.
        n_instruments: how many may be traded.
        levels: factors of all costs.
        trade: which must cost less than it is worth; None: any, however small.

    Raises:
        ConfigError: as many numbers as there are no instruments, a level below 0, costs of 100 % and more at a level.
    """
    for cost in costs:
        for name, value in cost.settings.items():
            if isinstance(value, tuple) and len(value) != n_instruments:
                raise ConfigError(
                    f"`{name}` of the cost `{cost.kind}` must be a number, or one for each of the {n_instruments} "
                    f"hedging instruments, got {len(value)}: {value}"
                )
    for level in levels:
        if not 0 <= level < math.inf:
            raise ConfigError(f"`cost_level` must be at least 0 and finite, it multiplies the costs, got {level}")
        share = level * sum(cost.share(trade) for cost in costs)
        if share >= 1:
            size = "" if trade is None else f" in a trade of {trade.units:g} units"
            raise ConfigError(
                f"the costs must stay below 100 % of what is traded, got {share:.0%} at a `cost_level` of "
                f"{level:g}{size}; rates are decimals, 1e-3 is ten basis points, and an impact is of one unit"
            )


def _check(name: str, value: PerInstrument, below: float, meaning: str) -> None:
    values = _tuple(value)
    if bad := [each for each in values if not is_number(each)]:
        raise ConfigError(f"`{name}` must be a number, or a tuple of one for each instrument, got {bad[0]!r}")
    if not values or not all(0 <= each < below for each in values):
        bound = "at least 0" if below == math.inf else f"in [0, {below:g})"
        raise ConfigError(f"`{name}` must be {bound} and finite, {meaning}, got {value}")


def _tuple(value: PerInstrument) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)


def _at(value: PerInstrument, place: int) -> float:
    """The number of one instrument."""
    return value[place] if isinstance(value, tuple) else value


def _factor(value: PerInstrument, like: Tensor) -> Tensor | float:
    """A number as it is, several as a tensor (K,) beside `like`."""
    return torch.tensor(value, dtype=like.dtype, device=like.device) if isinstance(value, tuple) else value
