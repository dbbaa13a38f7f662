"""`Hedger`: trained policies, and what they hold, earn and cost."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pricers import Estimate
from qfml.engine.fit import Fit
from qfml.errors import ConfigError, DataError
from qfml.hedging.book import Book
from qfml.hedging.gains import Gains, gains
from qfml.hedging.given_markets import HedgingMarket, independent, record_of
from qfml.hedging.loss import Risk, RiskRows
from qfml.hedging.paths import PathSet
from qfml.hedging.policy_base import Policy, State
from qfml.hedging.rules import TradingRules
from qfml.hedging.sight import Sight, as_numbers, rows_of, sight_of
from qfml.hedging.training import PathMember

__all__ = ["Hedger"]

SAME = 1e-9  # years
PATHS_AT_A_TIME = 8192  # of what is judged


@dataclass(frozen=True, eq=False)
class Hedger:
    """Trained policies of one architecture, and what they hedge.

    Attributes:
        market: where they were trained.
        book: what is owed.
        loss: objective, costs and whether the holdings are sold at the end.
        members: seed, risk aversion and cost level of each.
        fits: what was trained, in the same order.
    """

    market: HedgingMarket
    book: Book
    loss: RiskRows | Risk
    members: tuple[PathMember, ...]
    fits: tuple[Fit, ...]

    @property
    def policy(self) -> Policy:
        """The architecture."""
        policy = self.members[0].network
        assert isinstance(policy, Policy)
        return policy

    @property
    def rules(self) -> TradingRules:
        """What may be held: by the policies, and by what they are judged beside."""
        return self.policy.rules

    @property
    def lost(self) -> tuple[bool, ...]:
        """Members whose training ended in numbers that are not finite before a first epoch: they hedge nothing."""
        return tuple(fit.status == "nan" and fit.best_val_loss is None for fit in self.fits)

    @property
    def aversions(self) -> Tensor | None:
        """Risk aversion of each member, (M,); None where the objective has none."""
        if self.loss.objective.dial is None:
            return None
        return torch.tensor([member.aversion for member in self.members], dtype=torch.float64)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Parameters of all members by name, (M, ...)."""
        each = [fit.named_parameters() for fit in self.fits]
        return {name: torch.stack([one[name] for one in each]) for name in each[0]}

    def paths(self, n_paths: int, seed: int, number: int = 0) -> PathSet:
        """Fresh paths of the market, independent ones; no training has seen those of another seed than its own.

        Raises:
            DataError: a market of recorded paths, which are all known to the training or its choice of an epoch.
        """
        if record_of(self.market) is not None:
            raise DataError(
                "recorded paths that were trained on are not fresh: take those of others, such as "
                "`RecordedPaths(..., rows=...).paths(None, hedger.book, seed)`"
            )
        return independent(self.market).paths(n_paths, self.book, seed, number)

    @torch.no_grad()
    def holdings(self, paths: PathSet) -> Float[Tensor, "member path period instrument"]:
        """Units of each instrument that each policy holds from each date to the next, (M, B, L - 1, K).

        Raises:
            DataError: no paths, or paths with other dates, instruments or features than those of the training. Of a
                market that does not tell its dates only their number is known.
        """
        self._check(paths)
        parameters, members = self.parameters, len(self.members)
        blocks = paths.features.split(PATHS_AT_A_TIME)
        return torch.cat([self.policy.holdings(parameters, x.expand(members, -1, -1, -1)) for x in blocks], 1)

    @cached_property
    def sight(self) -> Sight:
        """How the features follow from what is observed on a trading date.

        Raises:
            ConfigError: a market that does not say so.
        """
        return sight_of(self.market, self.book)

    @property
    def quantities(self) -> dict[str, str]:
        """What `hedge` is told of a date, by name, each with its unit."""
        return self.sight.quantities

    @torch.no_grad()
    def hedge(self, seen: Any, before: Any, date: Any, member: Any = 0, state: State = ()) -> tuple[Tensor, State]:
        """What to hold now: one date at a time, for live use.

        Args:
            seen: what is observed now: a mapping with a number, or an array (B,), for each of `quantities`. Or the
                features themselves, an array (F,) or (B, F) with the columns `policy.feature_names`.
            before: units held until now, (K,) or (B, K); zeros on the first date.
            date: number of the trading date, from 0.
            member: which policy.
            state: what came with the holdings of the date before; nothing on the first.

        Returns:
            Units of each instrument, (K,) or (B, K), and the state to hand in at the next date, which is empty of a
            policy that remembers nothing.

        Raises:
            DataError: quantities that are missing, unknown or cannot be observed, features of another number or not
                finite, a date after the last that trades, a member that does not exist, a state that is missing or
                belongs to another date or policy.
        """
        date = _place("date", date, self.loss.n_steps, "the number of a trading date")
        member = _place("member", member, len(self.members), "the number of a policy")
        held = as_numbers("before", before).to(torch.float32)
        x = self._features(seen, held, date)
        single = x.ndim == 1
        if held.shape != (*x.shape[:-1], self.policy.n_instruments):
            raise DataError(
                f"`before` must hold units of each of {self.policy.n_instruments} instrument(s) for each row of what "
                f"is seen, shape {(*x.shape[:-1], self.policy.n_instruments)}, got {tuple(held.shape)}"
            )
        if not bool(held.isfinite().all()):
            raise DataError("`before` must be finite")
        x, held = (torch.atleast_2d(part) for part in (x, held))
        own = {name: value[None] for name, value in self.fits[member].named_parameters().items()}
        found, after = self.policy.step(own, x[None], held[None], date, self._state(x, date, state))
        return found[0, 0] if single else found[0], after

    def _features(self, seen: Any, held: Tensor, date: int) -> Tensor:
        """The features (F,) or (B, F) of what is seen."""
        if isinstance(seen, Mapping):
            rows = rows_of(self.sight, seen)
            self.book.check_seen(rows)
            shape = next(iter(rows.values())).shape if rows else held.shape[:-1]
            rows = {name: value.reshape(-1) for name, value in rows.items()}
            x = self.sight.features(rows, torch.full((shape.numel(),), date))
            x = x.reshape(*shape, x.shape[-1])
        else:
            x = as_numbers("seen", seen).to(torch.float32)
        names = self.policy.feature_names
        if x.ndim not in (1, 2) or x.shape[-1] != len(names):
            raise DataError(
                f"`seen` must be a mapping of what is observed, or features of shape ({len(names)},) or "
                f"(B, {len(names)}), {', '.join(names)}, got shape {tuple(x.shape)}"
            )
        if not bool(x.isfinite().all()):
            raise DataError(f"features must be finite, `{names[int((~x.isfinite()).nonzero()[0, -1])]}` is not")
        return x

    def gains(self, paths: PathSet) -> Gains:
        """P&L, costs and turnover of each policy on paths, each (M, B)."""
        levels = [member.cost_level for member in self.members]
        return gains(self.holdings(paths), paths, self.loss.costs, torch.tensor(levels), self.loss.unwind)

    def price(self, paths: PathSet) -> Estimate:
        """Indifference price of each policy, the risk of its P&L, (M,), with its standard error."""
        return self.loss.objective.price(self.gains(paths).pnl, aversion=self.aversions)

    def _state(self, x: Tensor, date: int, state: State) -> State:
        """What the policy remembers before a date."""
        if date == 0 and isinstance(state, tuple) and not state:
            return self.policy.start(x[None])
        expected = self.policy.state_shapes(1, len(x), date)
        if not isinstance(state, tuple) or not all(isinstance(part, Tensor) for part in state):
            raise DataError(f"`state` must be the tuple that came with the holdings of the date before, got {state!r}")
        if [tuple(part.shape) for part in state] != expected:
            raise DataError(
                f"`state` must be what came with the holdings of the date before: the policy {self.policy.kind!r} "
                f"remembers {len(expected)} tensors of shape {expected[0] if expected else ()} before date {date}, got "
                f"{len(state)}"
            )
        return state

    def save(self, folder: str | Path) -> None:
        """Write the policies, and all that they hedge, into a new folder; see `save_hedger`."""
        from qfml.hedging.saved import save_hedger  # which knows this class

        save_hedger(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> Hedger:
        """Read what `save` wrote, or the policies of a finished run; see `load_hedger`."""
        from qfml.hedging.saved import load_hedger  # which knows this class

        return load_hedger(folder)

    def _check(self, paths: Any) -> None:
        if not isinstance(paths, PathSet):
            raise DataError(f"`paths` must be a PathSet, such as `hedger.paths(1000, seed=1)` makes, got {paths!r}")
        expected = (self.loss.n_steps, self.loss.n_instruments, self.policy.feature_names)
        found = (paths.n_steps, paths.n_instruments, paths.feature_names)
        if found != expected:
            raise DataError(
                f"the policies trade {expected[0]} periods of {expected[1]} instrument(s) and see "
                f"{', '.join(expected[2])}; these paths have {found[0]}, {found[1]} and {', '.join(found[2])}"
            )
        names = self._instrument_names
        if names is not None and paths.instrument_names != names:
            raise DataError(
                f"the policies trade {', '.join(names)}, in this order, and the prices of these paths are those of "
                f"{', '.join(paths.instrument_names)}"
            )
        if paths.owed is not None and paths.owed != self.book:
            raise DataError(
                f"the policies hedge {self.book.told}, and on these paths {paths.owed.told} is owed: make them with "
                "the book of the hedger, as `hedger.paths` does"
            )
        known = self._dates
        if known is not None and bool((paths.times - known).abs().max() > SAME):
            place = int(((paths.times - known).abs() > SAME).nonzero()[0])
            raise DataError(
                f"the policies trade on other dates: number {place} is at {float(known[place]):.10g} years, and at "
                f"{float(paths.times[place]):.10g} on these paths"
            )

    @property
    def _instrument_names(self) -> tuple[str, ...] | None:
        """What was traded in training; None where the market does not tell it, or its record is gone."""
        try:
            return self.sight.instruments
        except (ConfigError, DataError):
            return None

    @property
    def _dates(self) -> Tensor | None:
        """Trading dates of the training; None where the market does not tell them, or its record is gone."""
        try:
            return self.sight.times
        except (ConfigError, DataError):
            return None


def _place(name: str, value: Any, count: int, what: str) -> int:
    """A whole number from 0 to `count` - 1."""
    try:
        place = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        place = -1
    if not 0 <= place < count:
        raise DataError(f"`{name}` must be {what}, 0 to {count - 1}, got {value!r}")
    return place
