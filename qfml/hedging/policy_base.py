"""What a policy is: one date at a time, from what is seen, held and remembered to the holdings until the next."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from qfml.config import OneOf, Section
from qfml.errors import ConfigError
from qfml.hedging.again import made_again
from qfml.hedging.holding import HOLDINGS, NOTHING, Direct, Holding, InUnits
from qfml.hedging.rules import Ruled, TradingRules
from qfml.hedging.walk import joined
from qfml.networks.base import Dropout, Parameters, linear

__all__ = ["Policy", "State"]

Features = Float[Tensor, "member path time feature"]
State = tuple[Tensor, ...]  # what a policy remembers from one date to the next; each (M, B, ...)


@dataclass(frozen=True, kw_only=True)
class Policy(ABC):
    """A network of the training engine that holds from each date to the next what it makes of the dates up to it.

    At date l it is handed the features of that date, its own holdings before, and what it remembers of dates before,
    and nothing else, so that it cannot look ahead. A subclass says what it remembers.

    Args:
        holding: how its outputs become holdings.
        sees_holdings: the holdings before are among its inputs. A rule that starts from them may do without.
        truncate: dates through which gradients go back: what is remembered and held is taken as given at every so
            many dates (truncated back-propagation through time); None: through all. The holdings stay what they are.
        checkpoint: keep of each piece of sqrt(L) dates only what it begins with, and walk it again for the gradient:
            the memory grows with the square root of the dates, and each is walked twice.
        rules: limits and lots, of which every holding is; filled in by `deep_hedge`.
        unit: of what it holds: its outputs, and the holdings among its inputs, are numbers of it; filled in by
            `deep_hedge`, as the largest quantity that is owed.
        feature_names: of the columns of the features; filled in by `deep_hedge`.
        n_instruments: hedging instruments K; likewise.

    References:
        Williams and Peng (1990), "An Efficient Gradient-Based Algorithm for On-Line Training of Recurrent Network
        Trajectories", for the truncation. Chen, Xu, Zhang and Guestrin (2016), "Training Deep Nets with Sublinear
        Memory Cost", section 4.1, for the pieces.
    """

    kind: ClassVar[str]
    holding: Annotated[Holding, OneOf(HOLDINGS)] = Direct()  # noqa: RUF009  (frozen)
    sees_holdings: bool = True
    truncate: int | None = None
    checkpoint: bool = False
    rules: Annotated[TradingRules, Section(TradingRules)] = TradingRules()  # noqa: RUF009  (frozen)
    unit: float = 1.0
    feature_names: tuple[str, ...] = ()
    n_instruments: int = 1

    def __post_init__(self) -> None:
        if self.truncate is not None and (type(self.truncate) is not int or self.truncate < 1):
            raise ConfigError(f"`truncate` must be a number of dates, at least 1, got {self.truncate!r}; null for all")
        if not self.feature_names:  # what is hedged with what is not known yet
            return
        if unknown := [name for name in self.holding.hedge if name not in (*self.feature_names, NOTHING)]:
            raise ConfigError(
                f"`hedge` of the holding names `{unknown[0]}`, and the features are {', '.join(self.feature_names)}: "
                "add it to what the policy may see"
            )
        if self.holding.hedge and len(self.holding.hedge) != self.n_instruments:
            raise ConfigError(
                f"`hedge` must name a feature for each of {self.n_instruments} instrument(s), got "
                f"{', '.join(self.holding.hedge)}"
            )
        self.rules.check_instruments(self.n_instruments)

    @property
    def rule(self) -> Holding:
        """What makes holdings of its outputs."""
        holding = self.holding if self.unit == 1.0 else InUnits(self.holding, self.unit)
        return holding if self.rules.free else Ruled(holding, self.rules)

    @property
    def dropout_units(self) -> int:
        """None."""
        return 0

    @abstractmethod
    def init(
        self, n_features: int, window: int | None, generator: torch.Generator, n_outputs: int = 1
    ) -> dict[str, Tensor]:
        """Parameters of one member: those of the network, and `level`, the levels of the objective, (J,)."""

    def state_shapes(self, members: int, paths: int, date: int) -> list[tuple[int, ...]]:
        """Shapes of what it remembers before a date, if all dates were walked one by one; none if nothing."""
        return []

    def start(self, x: Tensor) -> State:
        """What it remembers before the first date, of the paths whose features (M, B, F) are `x`: zeros."""
        return tuple(x.new_zeros(shape) for shape in self.state_shapes(x.shape[0], x.shape[1], 0))

    @abstractmethod
    def step(
        self, parameters: Parameters, x: Tensor, before: Tensor, date: int, state: State = ()
    ) -> tuple[Tensor, State]:
        """Holdings (M, B, K) from date number `date` on, and what is then remembered.

        Args:
            parameters: each (M, ...).
            x: the features (M, B, F) of the date.
            before: units held until then.
            date: from 0.
            state: of `start`, or of the step before.
        """

    def advance(
        self, parameters: Parameters, x: Tensor, before: Tensor, date: int, state: State
    ) -> tuple[list[Tensor], State]:
        """Holdings of several dates in a row, the first being `date`, and what is then remembered; see `step`."""
        found = []
        for place in range(x.shape[2]):
            before, state = self.step(parameters, x[:, :, place], before, date + place, state)
            found.append(before)
        return found, state

    def walk(self, parameters: Parameters, x: Features) -> list[Tensor]:
        """Holdings (M, B, K) of each date but the last, differentiable; see `truncate` and `checkpoint`."""
        n_dates = x.shape[2] - 1
        before, state = x.new_zeros(*x.shape[:2], self.n_instruments), self.start(x[:, :, 0])
        found: list[Tensor] = []
        for first, last in self.pieces(n_dates):
            if self.truncate and first % self.truncate == 0:
                before, state = before.detach(), tuple(part.detach() for part in state)
            seen = x[:, :, first:last]
            if self.checkpoint and torch.is_grad_enabled():
                held, state = self._again(parameters, seen, before, first, state)
            else:
                held, state = self.advance(parameters, seen, before, first, state)
            found += held
            before = held[-1]
        return found

    def _again(
        self, parameters: Parameters, x: Tensor, before: Tensor, first: int, state: State
    ) -> tuple[list[Tensor], State]:
        """`advance`, of which only the arguments are kept."""
        names, n_dates = list(parameters), x.shape[2]

        def run(x: Tensor, before: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
            own = dict(zip(names, others[: len(names)], strict=True))
            held, after = self.advance(own, x, before, first, others[len(names) :])
            return *held, *after[kept:]

        kept = self.n_kept(state)
        found = made_again(run, x, before, *parameters.values(), *state)
        return list(found[:n_dates]), (*state[:kept], *found[n_dates:])

    def n_kept(self, state: State) -> int:
        """How many tensors of a state stay as they are at the dates to come."""
        return 0

    def pieces(self, n_dates: int) -> list[tuple[int, int]]:
        """First date and end of what is walked at a time: to where gradients end, or what is walked again."""
        piece = math.ceil(math.sqrt(n_dates)) if self.checkpoint else n_dates
        stretch = min(self.truncate or n_dates, n_dates)
        ends = [*range(0, n_dates, stretch), n_dates]
        starts = [first for one, end in pairwise(ends) for first in range(one, end, piece)]
        return list(pairwise([*starts, n_dates]))

    def holdings(self, parameters: Parameters, x: Features) -> Tensor:
        """The holdings of all dates, (M, B, L - 1, K)."""
        return torch.stack(self.walk(parameters, x), 2)

    def forward(self, parameters: Parameters, x: Features, dropout: Dropout | None = None) -> Tensor:
        """Holdings of all dates and J levels of the objective, (M, B, (L - 1) K + J); differentiable."""
        return joined(self.walk(parameters, x), parameters["level"][:, None])

    def hedge(self, x: Tensor) -> Tensor | None:
        """The known hedge (..., K) among the features (..., F)."""
        if not self.holding.hedge:
            return None
        none = torch.zeros_like(x[..., 0])
        columns = (none if name == NOTHING else x[..., self.feature_names.index(name)] for name in self.holding.hedge)
        return torch.stack(list(columns), -1)

    def n_inputs(self, n_features: int) -> int:
        """Inputs of the network at a date."""
        return n_features + self.n_instruments * self.sees_holdings

    def inputs(self, x: Tensor, before: Tensor) -> Tensor:
        """What the network sees at a date."""
        if not self.sees_holdings:
            return x
        return torch.cat([x, before if self.unit == 1.0 else before / self.unit], -1)

    def n_levels(self, window: int, n_outputs: int) -> int:
        """Levels of the objective among the outputs."""
        return n_outputs - (window - 1) * self.n_instruments

    def raw(self, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The last map, from hidden units (M, B, H) to raw outputs (M, B, R), in full precision.

        Half a format's eight bits would put a holding of one half off by two thousandths.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            return linear(hidden.to(weight.dtype), weight, bias)
