"""`deep_hedge`: a book, a market and an objective to policies that hedge it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qfml.config import to_dict
from qfml.engine import Callback, Trainer
from qfml.errors import ConfigError, DataError
from qfml.hedging.asked import (
    check_costs_of_book,
    check_counts,
    check_exact,
    check_flags,
    check_known_hedge,
    check_markets,
    check_parts,
    check_spot_hedge,
    check_sweep,
)
from qfml.hedging.book import Book
from qfml.hedging.costs import Cost
from qfml.hedging.given_markets import HedgingMarket, identity, parted
from qfml.hedging.hedger import Hedger
from qfml.hedging.loss import loss_of
from qfml.hedging.objective_base import CertaintyEquivalent, Objective
from qfml.hedging.paths import PathSet
from qfml.hedging.policies import FeedForward
from qfml.hedging.policy_base import Policy
from qfml.hedging.rules import TradingRules
from qfml.hedging.training import Draw, PathData, PathMember, train_policies

__all__ = ["deep_hedge", "deep_hedges", "fitted"]

STEEPEST = 1e6  # mean slope of a loss at its first level; it is 1 at the best
VALIDATION = 2**40  # number of the validation paths, which no step of a training reaches


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
    check_costs_of_book(costs, cost_levels, book, validations[0])
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
                f"lost: {fit.failure}; {hedger.loss.objective.when_lost}"
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
    made = replace(policy, rules=rules, unit=unit, **seen)
    check_spot_hedge(made, paths.instrument_names)
    return made


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
