"""`deep_hedge`: a book, a market and an objective to policies that hedge it, and `Hedger`, what they then do."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pricers import Estimate
from qfml.config import to_dict
from qfml.engine import Callback, Trainer
from qfml.engine.fit import Fit
from qfml.errors import ConfigError, DataError
from qfml.hedging.asked import (
    check_counts,
    check_exact,
    check_flags,
    check_known_hedge,
    check_markets,
    check_parts,
    check_sweep,
)
from qfml.hedging.book import Book
from qfml.hedging.costs import Cost
from qfml.hedging.gains import Gains, gains
from qfml.hedging.given_markets import HedgingMarket, identity, independent, parted
from qfml.hedging.loss import Risk, RiskRows, loss_of
from qfml.hedging.objective_base import CertaintyEquivalent, Objective
from qfml.hedging.paths import PathSet
from qfml.hedging.policies import FeedForward
from qfml.hedging.policy_base import Policy, State
from qfml.hedging.rules import TradingRules
from qfml.hedging.sight import Sight, as_numbers, rows_of, sight_of
from qfml.hedging.training import Draw, PathData, PathMember, train_policies

__all__ = ["Hedger", "deep_hedge", "deep_hedges"]

SAME = 1e-9  # years
PATHS_AT_A_TIME = 8192  # of what is judged
STEEPEST = 1e6  # mean slope of a loss at its first level; it is 1 at the best
VALIDATION = 2**40  # number of the validation paths, which no step of a training reaches


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
        """Fresh paths of the market, independent ones; no training has seen those of another seed than its own."""
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
        known = self._dates
        if known is not None and bool((paths.times - known).abs().max() > SAME):
            place = int(((paths.times - known).abs() > SAME).nonzero()[0])
            raise DataError(
                f"the policies trade on other dates: number {place} is at {float(known[place]):.10g} years, and at "
                f"{float(paths.times[place]):.10g} on these paths"
            )

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


def deep_hedge(
    market: HedgingMarket,
    book: Book,
    objective: Objective,
    *,
    costs: Sequence[Cost] = (),
    unwind: bool = False,
    policy: Policy = FeedForward(),  # noqa: B008  (frozen)
    rules: TradingRules | None = None,
    trainer: Trainer,
    steps_per_epoch: int = 100,
    n_validation: int = 2**14,
    seeds: Sequence[int] = (0,),
    aversions: Sequence[float | None] = (None,),
    cost_levels: Sequence[float] = (1.0,),
    exact: bool = False,
    callbacks: Sequence[Callback] = (),
    checkpoint_dir: Path | None = None,
    resume: bool = False,
) -> Hedger:
    """Train policies that hedge a book, as one stack on shared paths, fresh ones at every step.

    Args:
        market: one of `MARKETS`.
        book: what is owed.
        objective: one of `OBJECTIVES`, minimised.
        costs: of trading, added up.
        unwind: whether the holdings are sold at the horizon, at a cost.
        policy: the architecture; names of features and number of instruments are filled in.
        rules: limits and lots of what is held; None takes those of `policy`, which has none of itself.
        trainer: `batch_size` is the number of paths of a step, a multiple of 16; its `seed` addresses all paths.
        steps_per_epoch: steps between two validations.
        n_validation: paths on which the best epoch is chosen, others than those of training: of a record its last ones.
        seeds: of initial networks; every one is combined with every aversion and cost level.
        aversions: in place of the objective's.
        cost_levels: factors of all costs.
        exact: take the objective of each batch as a sample, in place of its additive form with a learned level: surer
            where a few paths decide, as at a very high risk aversion.
        callbacks, checkpoint_dir, resume: as of `Trainer.fit_many`.

    Raises:
        ConfigError: settings that do not fit together.
        DataError: a horizon that is not on the grid, an instrument that expires before the book; a training in which
            every seed of an aversion and cost level was lost to numbers that are not finite.

    Example:
        >>> import qfml, pricers as pr
        >>> from qfml.hedging import Entropic, ModelMarket, Proportional
        >>> market = ModelMarket(pr.BlackScholes(0.2), pr.Market(1.0), n_steps=4, horizon=4 / 365)
        >>> trainer = qfml.Trainer(optimizer=qfml.AdamW(lr=3e-3), max_epochs=1, batch_size=256, seed=1)
        >>> book = Book(((1.0, pr.European(1.0, 4 / 365)),))
        >>> hedger = deep_hedge(market, book, Entropic(10.0), trainer=trainer, n_validation=256)
        >>> price = hedger.price(hedger.paths(4096, seed=2))
        >>> bool(abs(price.value - 0.0084) < 0.001)  # Black and Scholes: .00835
        True
    """
    (hedger,) = deep_hedges(
        [market],
        book,
        objective,
        costs=costs,
        unwind=unwind,
        policy=policy,
        rules=rules,
        trainer=trainer,
        steps_per_epoch=steps_per_epoch,
        n_validation=n_validation,
        seeds=seeds,
        aversions=aversions,
        cost_levels=cost_levels,
        exact=exact,
        callbacks=callbacks,
        checkpoint_dir=checkpoint_dir,
        resume=resume,
    )
    return hedger


def deep_hedges(
    markets: Sequence[HedgingMarket],
    book: Book,
    objective: Objective,
    *,
    costs: Sequence[Cost] = (),
    unwind: bool = False,
    policy: Policy = FeedForward(),  # noqa: B008  (frozen)
    rules: TradingRules | None = None,
    trainer: Trainer,
    steps_per_epoch: int = 100,
    n_validation: int = 2**14,
    seeds: Sequence[int] = (0,),
    aversions: Sequence[float | None] = (None,),
    cost_levels: Sequence[float] = (1.0,),
    exact: bool = False,
    callbacks: Sequence[Callback] = (),
    checkpoint_dir: Path | None = None,
    resume: bool = False,
) -> list[Hedger]:
    """Train policies on several markets, all as one stack: each sees paths of its own market alone.

    Args:
        markets: with the same dates, instruments and features.
        book, objective, costs, unwind, policy, rules, trainer, steps_per_epoch, n_validation, seeds, aversions,
            cost_levels, exact, callbacks, checkpoint_dir, resume: as of `deep_hedge`.

    Returns:
        The policies of each market; to the last bit what `deep_hedge` would have made of it alone.

    Raises:
        ConfigError, DataError: as `deep_hedge`; also markets whose paths differ in shape.
    """
    check_markets(markets)
    check_parts(book, objective, costs, policy, rules, trainer)
    check_known_hedge(policy, book)
    check_sweep(objective, seeds, aversions, cost_levels)
    check_counts(steps_per_epoch, n_validation, objective, aversions)
    check_flags(unwind=unwind, exact=exact)
    size = trainer.batch_size
    check_exact(exact, size, objective, aversions)
    halves = [parted(market, n_validation, size or 1) for market in markets]
    validations = [kept_out.paths(n_validation, book, trainer.seed, number=VALIDATION) for _, kept_out in halves]
    martingale = markets[0].martingale
    if any(market.martingale != martingale for market in markets):
        raise ConfigError("`markets` must all drift or all be martingales, to share one gradient: train them apart")
    loss = loss_of(objective, costs, validations[0], unwind=unwind, exact=exact, martingale=martingale)
    network = fitted(policy, validations[0], rules, book.size)
    of_market: list[tuple[PathMember, ...]] = []
    for world, paths in enumerate(validations):
        combined = product(seeds, aversions, cost_levels)
        members = [PathMember(network, seed=s, aversion=a, cost_level=c, world=world) for s, a, c in combined]
        of_market.append(tuple(levelled([member.checked(objective) for member in members], objective, paths)))
    draws = [_drawing(given, book, size, trainer) for given, _ in halves]
    decides = [[identity(market) for market in markets], to_dict(book), size, trainer.seed]
    data = PathData(draws, validations, steps_per_epoch, decides)
    options: dict[str, Any] = {"callbacks": callbacks, "checkpoint_dir": checkpoint_dir, "resume": resume}
    fits = train_policies([member for members in of_market for member in members], loss, data, trainer, **options)
    each = len(of_market[0])
    hedgers = [
        Hedger(market, book, loss, members, tuple(fits[place * each : (place + 1) * each]))
        for place, (market, members) in enumerate(zip(markets, of_market, strict=True))
    ]
    for hedger in hedgers:
        check_lost(hedger)
    return hedgers


def check_lost(hedger: Hedger) -> None:
    """Raise DataError if no policy of an aversion and cost level came through its first epoch."""
    alive = {(m.aversion, m.cost_level) for m, lost in zip(hedger.members, hedger.lost, strict=True) if not lost}
    for member, fit in zip(hedger.members, hedger.fits, strict=True):
        if (member.aversion, member.cost_level) not in alive:
            raise DataError(
                f"the training of seed {member.seed}, aversion {member.aversion}, cost level {member.cost_level} was "
                f"lost: {fit.failure}; look for prices or losses beyond all measure, or lower the learning rate"
            )


def _drawing(market: HedgingMarket, book: Book, size: Any, trainer: Trainer) -> Draw:
    """The paths of a step, made where they are trained on."""
    return lambda step: market.paths(size, book, trainer.seed, step, torch.float32, trainer.device)


def fitted(policy: Policy, paths: PathSet, rules: TradingRules | None = None, unit: float = 1.0) -> Policy:
    """The policy for paths such as these, and for a book of so many units.

    Raises:
        ConfigError: a holding rule or trading rules that do not go with features and instruments.
    """
    rules = policy.rules if rules is None else rules
    if not policy.rules.free and policy.rules != rules:
        raise ConfigError(f"`rules` are given twice, {rules}, and those of the policy, {policy.rules}: leave one out")
    seen = {"feature_names": paths.feature_names, "n_instruments": paths.n_instruments}
    return replace(policy, rules=rules, unit=unit, **seen)


def levelled(members: Sequence[PathMember], objective: Objective, paths: PathSet) -> list[PathMember]:
    """The members with centre and scale of their level: it begins with that of a perfect hedge, the mean loss.

    From there a tail is met from its wide side. A level that begins with the tail of the book that nobody hedges has
    left all but a few paths without a say by the time that a policy hedges at all: after 400 steps on a call the worst
    hundredth cost twice as much. Where the loss is so steep at the mean that the first gradients would outweigh all
    later ones, the level begins as far towards the tail as makes it `STEEPEST`.
    """
    if not isinstance(objective, CertaintyEquivalent):
        return list(members)
    owed = -paths.liability[None].double().expand(len(members), -1)
    dial = None if objective.dial is None else [member.aversion for member in members]
    level = objective.best_level(owed, dial).reshape(len(members), -1)
    mean = -owed.mean(1)
    gap = (level - mean[:, None]).abs().amax(1)
    scale = gap.maximum(owed.std(1)).clamp_min(1e-12)
    if objective.n_levels == 1:
        mean = _tamed(objective, owed, mean, level[:, 0], dial)
    numbers = zip(members, mean.tolist(), scale.tolist(), strict=True)
    return [replace(member, centre=centre, scale=unit) for member, centre, unit in numbers]


def _tamed(objective: CertaintyEquivalent, pnl: Tensor, level: Tensor, best: Tensor, dial: Any) -> Tensor:
    """The levels (M,), moved towards the best of P&L (M, B) until the mean slope of the loss is `STEEPEST` at most."""
    for _ in range(64):
        leaf = pnl.clone().requires_grad_()
        (slope,) = torch.autograd.grad(objective.rows(leaf, level, dial).sum(), leaf)
        steep = ~(slope.abs().mean(1) <= STEEPEST)  # or no number
        if not bool(steep.any()):
            break
        level = torch.where(steep, 0.5 * (level + best), level)
    return level
