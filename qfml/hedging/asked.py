"""What a training is asked for, checked before any path is made: parts of the right kind, numbers that make members."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import pricers as pr
from qfml.engine import Trainer
from qfml.errors import ConfigError
from qfml.hedging.book import Book
from qfml.hedging.costs import Cost, Trade, check_costs, check_kinds
from qfml.hedging.given_markets import HedgingMarket
from qfml.hedging.information import FEATURES
from qfml.hedging.kinds import check_book, is_number
from qfml.hedging.objective_base import Objective
from qfml.hedging.paths import PathSet
from qfml.hedging.policy_base import Policy
from qfml.hedging.rules import TradingRules
from qfml.hedging.sight import OF_OBSERVABLES

__all__ = [
    "check_costs_of_book",
    "check_counts",
    "check_exact",
    "check_flags",
    "check_known_hedge",
    "check_markets",
    "check_parts",
    "check_sample",
    "check_spot_hedge",
    "check_sweep",
]

DELTAS = ("call_delta", "book_delta")
OF_A_MODEL = re.compile(r"(call|put|variance swap) .*")  # names of its instruments but the spot
Aversions = Sequence[float | None]  # None: the objective's own


def check_markets(markets: Any) -> None:
    """Refuse what is no market, or none at all.

    Raises:
        ConfigError: naming it.
    """
    if isinstance(markets, str) or not isinstance(markets, Sequence) or not markets:
        raise ConfigError(f"`markets` must be a sequence of markets, at least one, got {markets!r}")
    for market in markets:
        if not isinstance(market, HedgingMarket):
            raise ConfigError(f"`market` must be one of `MARKETS`, such as ModelMarket(...), got {market!r}")


def check_parts(book: Any, objective: Any, costs: Any, policy: Any, rules: Any, trainer: Any) -> None:
    """Refuse what is no book, objective, cost, policy, rule or trainer.

    Raises:
        ConfigError: naming it.
    """
    check_book(book)
    for name, given, kind in (
        ("objective", objective, Objective),
        ("policy", policy, Policy),
        ("rules", rules, TradingRules | None),
        ("trainer", trainer, Trainer),
    ):
        if not isinstance(given, kind):
            raise ConfigError(f"`{name}` must be a {getattr(kind, '__name__', 'TradingRules')}, got {given!r}")
    check_kinds(costs)


def check_known_hedge(policy: Policy, book: Book) -> None:
    """Refuse the delta of one call as the known hedge of a book that is none: no training would tell of it.

    Raises:
        ConfigError: naming the hedge that the book has.
    """
    if "call_delta" not in policy.holding.hedge or _is_one_call(book):
        return
    if all(isinstance(contract, pr.European) for contract in book.contracts):
        instead = "take 'book_delta', the delta of all its options"
    else:
        instead = "take another feature that hedges it, or the holding `direct`, which needs none"
    raise ConfigError(
        f"`hedge` of the policy's holding `{policy.holding.kind}` names 'call_delta', the delta of one call that is "
        f"owed, and the book owes {book.told}: {instead}"
    )


def check_costs_of_book(costs: Sequence[Cost], levels: Sequence[float], book: Book, paths: PathSet) -> None:
    """Refuse costs that do not fit the instruments, or that would take all of a trade of the whole book in the spot.

    Raises:
        ConfigError: naming the share.
    """
    place = spot_place(paths.instrument_names)
    if place is None:
        check_costs(costs, paths.n_instruments, levels)
        return
    worth = book.size * float(paths.prices[:, 0, place].double().mean())
    check_costs(costs, paths.n_instruments, levels, Trade(place, book.size, worth))


def spot_place(instruments: Sequence[str]) -> int | None:
    """Which instrument is the spot: by its name under a model, the first one of a record; None without one."""
    if "spot" in instruments:
        return instruments.index("spot")
    return None if OF_A_MODEL.fullmatch(instruments[0]) else 0


def check_spot_hedge(policy: Policy, instruments: Sequence[str]) -> None:
    """Refuse as the known hedge features that are no holdings, and the delta for another instrument than the spot.

    Raises:
        ConfigError: naming the instrument.
    """
    for name in policy.holding.hedge:
        if (name in (*FEATURES, *instruments) and name not in DELTAS) or name.startswith(tuple(OF_OBSERVABLES)):
            raise ConfigError(
                f"`hedge` of the policy's holding `{policy.holding.kind}` names {name!r}, which is no number of an "
                "instrument to hold: take 'book_delta', or the holding `direct`, which needs no known hedge"
            )
    spot = spot_place(instruments)
    for place, name in enumerate(policy.holding.hedge):
        if name in DELTAS and place != spot:
            raise ConfigError(
                f"`hedge` of the policy's holding `{policy.holding.kind}` names {name!r} for the instrument "
                f"'{instruments[place]}', and it is the delta of the spot: let the features stand in the order of the "
                "instruments, and 'none' where an instrument has no known hedge"
            )


def check_sweep(objective: Objective, seeds: Any, aversions: Any, cost_levels: Any) -> None:
    """Refuse numbers that make no members, or one of them twice; an aversion of None is that of the objective.

    Raises:
        ConfigError: naming them.
    """
    for name, given in (("seeds", seeds), ("aversions", aversions), ("cost_levels", cost_levels)):
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise ConfigError(f"`{name}` must be a sequence of numbers, got {given!r}")
        bad = [one for one in given if not is_number(one) and not (name == "aversions" and one is None)]
        if bad:
            raise ConfigError(f"`{name}` must hold numbers, got {bad[0]!r}")
        if not given or len(set(given)) < len(given):
            raise ConfigError(f"`{name}` must hold different numbers, at least one, got {list(given)}")
    if bad := [level for level in cost_levels if not 0 <= level < math.inf]:
        raise ConfigError(f"`cost_levels` must be 0 or more and finite, got {bad[0]}")
    own = [aversion for aversion in aversions if aversion is not None]
    if own and objective.dial is None:
        raise ConfigError(f"`aversions`: the objective `{objective.kind}` has none; leave them out")
    for aversion in own:
        objective.check_dial(aversion)


def check_flags(**flags: Any) -> None:
    """Refuse what is neither true nor false: a text such as "no" would count as true.

    Raises:
        ConfigError: naming it.
    """
    for name, given in flags.items():
        if not isinstance(given, bool):
            raise ConfigError(f"`{name}` must be true or false, got {given!r}")


def check_exact(exact: bool, batch_size: int | None, objective: Objective, aversions: Aversions) -> None:
    """Refuse steps whose exact risk looks at a tail that holds less than one of their paths.

    Raises:
        ConfigError: naming the least number.
    """
    if exact and batch_size is not None:
        check_sample("batch_size", batch_size, objective, aversions)


def check_counts(steps_per_epoch: Any, n_validation: Any, objective: Objective, aversions: Aversions) -> None:
    """Refuse an epoch without a step, which would never end, and validation paths that have no risk.

    Raises:
        ConfigError: naming the number.
    """
    for name, given, least in (("steps_per_epoch", steps_per_epoch, 1), ("n_validation", n_validation, 2)):
        if isinstance(given, bool) or not isinstance(given, int) or given < least:
            raise ConfigError(f"`{name}` must be a whole number, {least} or more, got {given!r}")
    check_sample("n_validation", n_validation, objective, aversions)


def check_sample(name: str, n_paths: int, objective: Objective, aversions: Aversions) -> None:
    """Refuse so few paths, whose number is called `name`, that they do not reach into the tail of the objective.

    Raises:
        ConfigError: naming the least number.
    """
    tails = [tail for aversion in aversions for tail in objective.tails_at(aversion)]
    if tails and n_paths * min(tails) < 1:
        raise ConfigError(
            f"`{name}` must be {math.ceil(1 / min(tails))} or more, for a tail of {min(tails):g} to hold one path, "
            f"got {n_paths}"
        )


def _is_one_call(book: Book) -> bool:
    (contract, *others), (quantity, *_) = book.contracts, book.quantities
    return not others and isinstance(contract, pr.European) and contract.option == "call" and quantity > 0
