"""Hedging as it would have gone: policies trained anew as history went on, each judged on what came after.

An episode is a window of the history in which the book is sold, hedged and settled. A splitter says which episodes
train and which test; the market of a fold is made of the returns between the first look-back and the last expiry of
its training episodes, and of no others. Unit of volatility, levels, premium and the vols of the textbook's hedges come
from these returns, or from those known at each date of an episode. All folds are trained as one stack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from pricers.noise import address
from qfml.engine import Callback, Trainer
from qfml.errors import ConfigError, DataError, UserError
from qfml.files import replace_file
from qfml.hedging.baseline_base import Baseline
from qfml.hedging.book import Book
from qfml.hedging.bootstrapped_returns import BootstrappedReturns
from qfml.hedging.costs import Cost
from qfml.hedging.deep_hedging import deep_hedges
from qfml.hedging.episodes import Episodes, cut, read_history
from qfml.hedging.gains import gains
from qfml.hedging.hedger import Hedger
from qfml.hedging.objective_base import Objective
from qfml.hedging.out_of_sample import check_n_bootstrap, check_n_episodes
from qfml.hedging.policies import FeedForward
from qfml.hedging.policy_base import Policy
from qfml.hedging.rules import TradingRules
from qfml.hedging.textbook import Case, named, problem_of, textbook_hedges
from qfml.hedging.walk_forward_judgement import judged
from qfml.splits import WalkForward
from qfml.splits.base import Fold

__all__ = ["HedgedFold", "WalkForwardHedge", "fold_market", "walk_forward_hedge"]


@dataclass(frozen=True, eq=False)
class HedgedFold:
    """One step of the walk.

    Attributes:
        number: from 0.
        split: rows of its episodes: train, test, purged, embargoed; `refit` is False where it has the policies of the
            fold before.
        hedger: its policies, on the market of its training returns.
        best: place of the policy that trades, by case: that whose risk on the validation paths was least.
        premium: by case, what that policy asks for the book on fresh paths of its own market.
    """

    number: int
    split: Fold
    hedger: Hedger
    best: dict[Case, int]
    premium: dict[Case, float]


@dataclass(frozen=True, eq=False)
class WalkForwardHedge:
    """What policies and textbook hedges would have earned, episode by episode.

    Attributes:
        episodes: all that the history holds.
        folds: in the order of time.
        table: a row for each case, hedge and test episode, in the order of time; see `walk_forward_hedge`.
        holdings: a row for each case, hedge, test episode and trading date: aversion, cost_level, hedge, start, date,
            spot (over that at the start), held (units from then on).
        left_out: why a textbook hedge is not among the baselines, by name.
        settings: of the judgement.
    """

    episodes: Episodes
    folds: tuple[HedgedFold, ...]
    table: pl.DataFrame
    holdings: pl.DataFrame
    left_out: dict[str, str]
    settings: dict[str, Any]

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """What was found, as plain JSON; see `walk_forward_judgement`."""
        return judged(self)

    def save(self, folder: str | Path) -> None:
        """Write `episodes.parquet` (the table) and `paths.parquet` (the holdings by date) into `folder`."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        replace_file(Path(folder) / "episodes.parquet", lambda beside: self.table.write_parquet(beside))
        replace_file(Path(folder) / "paths.parquet", lambda beside: self.holdings.write_parquet(beside))


def walk_forward_hedge(
    market: Any,
    book: Book,
    objective: Objective,
    *,
    splitter: WalkForward,
    start_every: int | str = 1,
    baselines: Sequence[Baseline] | None = None,
    n_bootstrap: int = 2000,
    seed: int = 1,
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
) -> WalkForwardHedge:
    """Walk through a history: train on the returns known by then, hedge the episodes that come after, move on.

    Args:
        market: `BootstrappedReturns`; names the history, how its training returns are put together to paths, and what
            a policy sees.
        book: what is owed, in units of the market's `spot`, at which each episode begins: a strike of that spot is at
            the money.
        objective: one of `OBJECTIVES`, minimised.
        splitter: which episodes train and test, by their look-back, start and expiry.
        start_every: periods from one start to the next, or "week", "month", "quarter", "year".
        baselines: textbook hedges; None takes all that have a formula for the book, with the vol of each fold's
            training returns and, where past returns are seen, with what those have realised.
        n_bootstrap: resamples behind each interval.
        seed: of the resamples and of the paths that premiums are asked on.
        costs, unwind, policy, rules, trainer, steps_per_epoch, n_validation, seeds, aversions, cost_levels, exact,
            callbacks, checkpoint_dir, resume: as of `deep_hedge`; the rules are the textbook's too.

    Returns:
        Folds and a table with the columns: aversion, cost_level; hedge ("policy": in each fold the seed whose risk on
        the validation paths was least; "policy_seed_0" and so on, where there are several; the textbook's by name);
        fold, start, end; spot (the price at the start); final, lowest, highest (over it, on the trading dates);
        vol_before (null without a look-back), vol_during (per year); liability, premium, pnl, trading, cost, turnover,
        in units of the market's `spot`, today's money of the start. No premium is in a P&L.

    Raises:
        ConfigError: settings that do not fit together, such as tests that overlap.
        DataError: a history with gaps or too short for an episode, a fold or an interval.
        SplitError: a fold without training episodes.

    Example:
        >>> import pricers as pr, qfml
        >>> from qfml.hedging import Entropic
        >>> market = BootstrappedReturns({"kind": "arch", "name": "sp500"}, n_steps=5, block_length=5, keep_drift=False)
        >>> trainer = qfml.Trainer(optimizer=qfml.AdamW(lr=3e-3), max_epochs=1, batch_size=256, seed=1)
        >>> walk = walk_forward_hedge(
        ...     market, Book(((1.0, pr.European(1.0, 5 / 252)),)), Entropic(10.0), splitter=WalkForward("10Y", "5Y"),
        ...     start_every="week", trainer=trainer, steps_per_epoch=10, n_validation=256, n_bootstrap=100,
        ... )
        >>> [(fold.number, fold.hedger.market.end) for fold in walk.folds]
        [(0, '2009-01-12'), (1, '2014-01-13')]
    """
    if not isinstance(market, BootstrappedReturns):
        name = type(market).__name__
        raise ConfigError(f"a walk through history is made of returns: a market of kind bootstrap, got {name}")
    check_n_bootstrap(n_bootstrap)
    episodes = cut(read_history(market), market.n_steps, market.window, start_every)
    splits = splitter.folds(episodes)
    check_tests(episodes, splits)
    fitted = np.cumsum([split.refit for split in splits]) - 1  # which training each fold has its policies from
    markets: list[Any] = [
        fold_market(market, episodes, split, number) for number, split in enumerate(splits) if split.refit
    ]
    for split, place in zip(splits, fitted, strict=True):
        check_baselines(baselines or (), markets[place], book, episodes.rows(split.test))
    hedgers = deep_hedges(
        markets,
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
    premiums = [premiums_of(hedger, n_validation, seed) for hedger in hedgers]
    folds = tuple(
        HedgedFold(number, split, hedgers[place], best_of(hedgers[place]), premiums[place])
        for number, (split, place) in enumerate(zip(splits, fitted, strict=True))
    )
    table, holdings, left_out = _tables(episodes, folds, baselines)
    settings = {"market": market, "start_every": start_every, "n_bootstrap": n_bootstrap, "seed": seed}
    return WalkForwardHedge(episodes, folds, table, holdings, left_out, settings)


def fold_market(market: BootstrappedReturns, episodes: Episodes, split: Fold, number: int) -> BootstrappedReturns:
    """The market of a fold: the returns from the first look-back to the last expiry of its training episodes.

    Raises:
        DataError: fewer returns than a block has.
    """
    first, last = episodes.spans(split.train)
    made = replace(market, start=first, end=last)
    try:
        _ = made.log_returns
    except DataError as error:
        raise DataError(f"fold {number} trains from {first} to {last}: {error}") from None
    return made


def check_tests(episodes: Episodes, splits: Sequence[Fold]) -> None:
    """Refuse tests that share an episode, or periods shorter than an episode is."""
    tested = np.concatenate([split.test for split in splits])
    if len(np.unique(tested)) < len(tested):
        raise ConfigError(
            "test periods overlap, so that some episodes would count twice: let `step` be at least `test_size`, or "
            "leave it out"
        )
    check_n_episodes(len(tested))
    for number, (split, after) in enumerate(pairwise(splits)):
        n_prices = int(episodes.first[after.test[0]] - episodes.first[split.test[0]])
        if n_prices < episodes.n_steps:
            raise ConfigError(
                f"the horizon of {episodes.n_steps} periods is longer than the test period of fold {number}, which "
                f"holds {n_prices}: take a longer `test_size`, or a shorter horizon"
            )


def check_baselines(baselines: Sequence[Baseline], market: BootstrappedReturns, book: Book, episodes: Episodes) -> None:
    """Refuse before the training what has no formula on these episodes."""
    paths, problem = episodes.paths(market, book), problem_of(market, book)
    for hedge in baselines:
        try:
            hedge.holdings(paths, problem)
        except UserError as error:
            raise ConfigError(f"`baselines`: {hedge.kind}: {error}") from None


def cases_of(hedger: Hedger) -> dict[Case, list[int]]:
    """Places of the policies of each case."""
    has_dial = hedger.loss.objective.dial is not None
    found: dict[Case, list[int]] = {}
    for place, (member, lost) in enumerate(zip(hedger.members, hedger.lost, strict=True)):
        if lost:
            continue
        found.setdefault(Case(member.aversion if has_dial else None, member.cost_level), []).append(place)
    return found


def best_of(hedger: Hedger) -> dict[Case, int]:
    """The policy of each case whose risk on the validation paths was least: those after the training have no say."""
    losses = [fit.best_val_loss for fit in hedger.fits]
    ranked = {place: float("inf") if loss is None else loss for place, loss in enumerate(losses)}
    return {case: min(places, key=lambda place: ranked[place]) for case, places in cases_of(hedger).items()}


def premiums_of(hedger: Hedger, n_paths: int, seed: int) -> dict[Case, float]:
    """What the policy that trades asks for the book on fresh paths of its own market.

    Its indifference price; of an objective whose risk is no cash, the mean loss.
    """
    paths = hedger.paths(n_paths, address("premium", seed))
    pnl, objective = hedger.gains(paths).pnl, hedger.loss.objective
    if "cash_invariant" in objective.axioms:
        asked = objective.price(pnl, aversion=hedger.aversions).value
    else:
        asked = -pnl.double().mean(1)
    return {case: float(asked[place]) for case, place in best_of(hedger).items()}


def _tables(
    episodes: Episodes, folds: Sequence[HedgedFold], baselines: Sequence[Baseline] | None
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, str]]:
    """The table and the holdings of all folds, with the hedges that each of them has, and why others are left out."""
    left_out: dict[str, str] = {}
    tables: list[pl.DataFrame] = []
    holdings: list[pl.DataFrame] = []
    for fold in folds:
        for case in fold.best:
            held, reasons = _held(episodes.rows(fold.split.test), fold, case, baselines)
            left_out |= reasons
            table, dated = _of_fold(episodes.rows(fold.split.test), fold, case, held)
            tables.append(table)
            holdings.append(dated)
    order = ("aversion", "cost_level", "hedge", "start")
    known = ~pl.col("hedge").is_in(list(left_out))
    table = pl.concat(tables).filter(known).sort(order, maintain_order=True)
    return table, pl.concat(holdings).filter(known).sort(*order, "date", maintain_order=True), left_out


def _held(
    episodes: Episodes, fold: HedgedFold, case: Case, baselines: Sequence[Baseline] | None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What each hedge of a case holds on episodes, (B, L - 1, 1), and why textbook hedges are left out."""
    hedger = fold.hedger
    market: Any = hedger.market
    paths = episodes.paths(market, hedger.book)
    if baselines is None:
        loss = hedger.loss
        hedges, left_out = textbook_hedges(market, hedger.book, loss.objective, loss.costs, case, paths)
    else:
        hedges, left_out = named(baselines), {}
    held = hedger.holdings(paths)
    found = {"policy": held[fold.best[case]]}
    places = cases_of(hedger)[case]
    if len(places) > 1:
        found |= {f"policy_seed_{hedger.members[place].seed}": held[place] for place in places}
    problem = problem_of(market, hedger.book)
    return found | {name: hedger.rules.of(hedge.holdings(paths, problem)) for name, hedge in hedges.items()}, left_out


def _of_fold(
    episodes: Episodes, fold: HedgedFold, case: Case, held: Mapping[str, Tensor]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows of the table and of the holdings."""
    hedger = fold.hedger
    market: Any = hedger.market
    paths = episodes.paths(market, hedger.book)
    of_case = (pl.lit(case.aversion, pl.Float64).alias("aversion"), pl.lit(case.cost_level).alias("cost_level"))
    known = _known(episodes, market.periods_per_year).with_columns(
        *of_case,
        pl.lit(fold.number).alias("fold"),
        pl.lit(fold.premium[case]).alias("premium"),
        pl.Series("liability", paths.liability.double().numpy()),
    )
    dated = _dated(episodes).with_columns(*of_case)
    tables: list[pl.DataFrame] = []
    holdings: list[pl.DataFrame] = []
    for name, one in held.items():
        made = gains(one[None].to(paths.prices.dtype), paths, hedger.loss.costs, case.cost_level, hedger.loss.unwind)
        cash = {each: getattr(made, each)[0].double().numpy() for each in ("pnl", "trading", "cost", "turnover")}
        tables.append(known.with_columns(pl.lit(name).alias("hedge"), *(pl.Series(k, v) for k, v in cash.items())))
        units = pl.Series("held", one[..., 0].double().reshape(-1).numpy())
        holdings.append(dated.with_columns(pl.lit(name).alias("hedge"), units))
    return pl.concat(tables).select(COLUMNS), pl.concat(holdings).select(OF_DATES)


COLUMNS = (
    *("aversion", "cost_level", "hedge", "fold", "start", "end", "spot", "final", "lowest", "highest"),
    *("vol_before", "vol_during", "liability", "premium", "pnl", "trading", "cost", "turnover"),
)
OF_DATES = ("aversion", "cost_level", "hedge", "start", "date", "spot", "held")


def _dated(episodes: Episodes) -> pl.DataFrame:
    """Dates of trading and prices over those at the start, episode by episode."""
    rows = episodes.first[:, None] + np.arange(episodes.n_steps)
    prices = episodes.prices()[:, episodes.window : -1]
    times = episodes.history.times
    return pl.DataFrame(
        {
            "start": times.gather(np.repeat(episodes.first, episodes.n_steps)),
            "date": times.gather(rows.reshape(-1)),
            "spot": (prices / prices[:, :1]).reshape(-1).numpy(),
        }
    )


def _known(episodes: Episodes, periods_per_year: float) -> pl.DataFrame:
    """Dates and a summary of the prices of each episode."""
    prices, back = episodes.prices(), episodes.window
    relative = prices[:, back:] / prices[:, back : back + 1]
    squares = prices.log().diff(dim=1).square() * periods_per_year
    before = squares[:, :back].mean(1).sqrt() if back else torch.full((len(prices),), torch.nan)
    columns = {
        "spot": prices[:, back],
        "final": relative[:, -1],
        "lowest": relative.min(1).values,
        "highest": relative.max(1).values,
        "vol_before": before,
        "vol_during": squares[:, back:].mean(1).sqrt(),
    }
    times = episodes.history.times
    frame = pl.DataFrame({name: values.numpy() for name, values in columns.items()})
    return frame.with_columns(
        times.gather(episodes.first).alias("start"),
        times.gather(episodes.first + episodes.n_steps).alias("end"),
        pl.col("vol_before").fill_nan(None),
    )
