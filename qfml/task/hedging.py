"""The task `hedging`: policies that hedge a book, trained on fresh paths and judged beside textbook hedges."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from qfml import config
from qfml.config import OneOf, Section
from qfml.engine import Callback, Trainer
from qfml.errors import ConfigError, UserError
from qfml.hedging.asked import (
    check_costs_of_book,
    check_counts,
    check_exact,
    check_flags,
    check_known_hedge,
    check_sample,
    check_sweep,
)
from qfml.hedging.baselines import BASELINES
from qfml.hedging.book import Book
from qfml.hedging.costs import COSTS
from qfml.hedging.deep_hedging import deep_hedge, fitted
from qfml.hedging.hedger import Hedger
from qfml.hedging.judgement import JudgementSettings, check_enough, check_same, judge, stressed_markets
from qfml.hedging.markets import MARKETS, DriftRemoved, as_given
from qfml.hedging.objectives import OBJECTIVES
from qfml.hedging.paths import PathSet
from qfml.hedging.policies import POLICIES, FeedForward
from qfml.hedging.rules import TradingRules
from qfml.hedging.saved import save_hedger
from qfml.hedging.textbook import problem_of
from qfml.hedging.training import check_trainer
from qfml.task.base import Say, as_settings, check_device, write_metrics
from qfml.task.begun import claimed
from qfml.task.hedging_parts import MODEL, head, log_rows, member_rows, trained, write_log
from qfml.task.hedging_walk_forward import WalkForwardSettings, check_walk, walk

MEASURES = "measures"  # folder of what removes a drift in that of the run
PILOT_PATHS = 16  # on which everything is tried before the training begins
JUDGED_ONLY = ("baselines", "judgement", "name")  # what no training depends on


@dataclass(frozen=True)
class HedgingTask:
    """Deep hedging: the root of a config with `task: hedging`.

    Args:
        market: where the paths come from: one of `MARKETS`.
        book: what is owed: `positions`, each with `quantity` and `instrument`.
        objective: one of `OBJECTIVES`, which the training minimises and the price is by.
        trainer: `batch_size` is the number of paths of a step, a multiple of 16.
        costs: of trading, added up; see `COSTS`.
        unwind: whether the holdings are sold at the horizon, at a cost.
        policy: the architecture: one of `POLICIES`.
        rules: limits and lots of what is held, by the policies and by the textbook hedges; see `TradingRules`.
        seeds: of initial networks.
        aversions: in place of the objective's own; every seed is trained at each of them, all as one stack.
        cost_levels: factors of all costs, likewise.
        exact: take the objective of each batch as a sample, in place of its additive form with a learned level.
        steps_per_epoch: steps between two validations.
        n_validation: paths on which the best epoch is chosen.
        baselines: textbook hedges beside the policies; None takes all that have a formula for the book.
        judgement: fresh paths, and other markets as a stress.
        walk_forward: train anew as history goes on, and judge on the episodes that come after, in place of fresh paths:
            the market is then one of kind bootstrap, and each fold has that of the returns known by then.
        name: names the run folder.
    """

    task: ClassVar[str] = "hedging"
    market: Annotated[Any, OneOf(MARKETS)]
    book: Annotated[Book, Section(Book)]
    objective: Annotated[Any, OneOf(OBJECTIVES)]
    trainer: Annotated[Trainer, Section(Trainer)]
    costs: tuple[Annotated[Any, OneOf(COSTS)], ...] = ()
    unwind: bool = False
    policy: Annotated[Any, OneOf(POLICIES)] = FeedForward()  # noqa: RUF009  (frozen)
    rules: Annotated[TradingRules, Section(TradingRules)] | None = None
    seeds: tuple[int, ...] = (0,)
    aversions: tuple[float, ...] | None = None
    cost_levels: tuple[float, ...] = (1.0,)
    exact: bool = False
    steps_per_epoch: int = 100
    n_validation: int = 2**14
    baselines: tuple[Annotated[Any, OneOf(BASELINES)], ...] | None = None
    judgement: Annotated[JudgementSettings, Section(JudgementSettings)] = JudgementSettings()  # noqa: RUF009  (frozen)
    walk_forward: Annotated[WalkForwardSettings, Section(WalkForwardSettings)] | None = None
    name: str = "hedging"

    def __post_init__(self) -> None:
        self._check_numbers()
        check_known_hedge(self.policy, self.book)
        paths = as_given(self.market).paths(PILOT_PATHS, self.book, 0)
        check_costs_of_book(self.costs, self.cost_levels, self.book, paths)
        try:
            fitted(self.policy, paths, self.rules, self.book.size)
        except ConfigError as error:
            raise ConfigError(f"`policy`: {error}") from None
        self._check_judgement(paths)

    def _check_numbers(self) -> None:
        aversions = (None,) if self.aversions is None else self.aversions
        check_sweep(self.objective, self.seeds, aversions, self.cost_levels)
        check_counts(self.steps_per_epoch, self.n_validation, self.objective, aversions)
        check_flags(unwind=self.unwind, exact=self.exact)
        try:
            check_trainer(self.trainer)
            check_exact(self.exact, self.trainer.batch_size, self.objective, aversions)
        except ConfigError as error:
            raise ConfigError(f"`trainer`: {error}") from None

    def _check_judgement(self, paths: PathSet) -> None:
        """Refuse what would fail only after the training."""
        if self.walk_forward is not None:
            check_walk(self)
            return
        try:
            fresh = self.judgement.fresh(self.market)
            if fresh is not self.market:
                check_same(self.market, fresh, self.book)
            check_enough(fresh, self.judgement.n_paths)
            stressed_markets(self.market, self.judgement.stress, self.book, self.judgement.n_paths)
            if self.judgement.n_paths is not None:
                check_sample("n_paths", self.judgement.n_paths, self.objective, self.aversions or (None,))
        except UserError as error:
            raise ConfigError(f"`judgement`: {error}") from None
        problem = problem_of(self.market, self.book)
        for hedge in self.baselines or ():
            try:
                hedge.holdings(paths, problem)
            except UserError as error:
                raise ConfigError(f"`baselines`: {hedge.kind}: {error}") from None

    def execute(self, folder: Path, *, resume: bool, callbacks: Sequence[Callback], say: Say) -> None:
        """Train, judge, and write everything but the report into `folder`."""
        begin = time.perf_counter()
        check_device(self.trainer.device)
        resumed = self._claim(folder)
        if self.walk_forward is not None:
            walk(self, folder, resume, callbacks, say)
            return
        self._remove_drift(folder / MEASURES, callbacks, say)
        hedger = self._trained(folder, resume, callbacks)
        seconds = {"training": time.perf_counter() - begin}
        say(f"trained {len(hedger.members)} policies of {hedger.fits[0].parameters.numel():,} parameters")
        start = time.perf_counter()
        judgement = judge(hedger, self.judgement, self.baselines)
        seconds |= {"judgement": time.perf_counter() - start, "total": time.perf_counter() - begin}
        if resumed:  # what was done before the kill has left no time
            seconds = {name if name == "judgement" else f"{name}_since_resume": s for name, s in seconds.items()}
        judgement.save(folder)
        write_log(log_rows(hedger), folder)
        shutil.rmtree(folder / MODEL, ignore_errors=True)
        save_hedger(hedger, folder / MODEL)
        write_metrics(folder, self._metrics(hedger, judgement.metrics, seconds))

    def _remove_drift(self, folder: Path, callbacks: Sequence[Callback], say: Say) -> None:
        """Learn the measures, or read those that were learned before the run was resumed."""
        for market in (self.market, self.judgement.fresh(self.market)):
            if isinstance(market, DriftRemoved):
                told = market.measure(self.book, folder, callbacks).told
                assert told is not None
                say(f"measure without drift: {told['effective_paths']:,.0f} effective paths of {told['n_paths']:,}")

    def _claim(self, folder: Path) -> bool:
        """Note what is trained; whether it was noted before. ConfigError: it was changed since."""
        settings = {name: value for name, value in as_settings(self).items() if name not in JUDGED_ONLY}
        try:
            return claimed(folder, {"training": config.config_hash(settings)})
        except ConfigError:
            raise ConfigError(
                f"market, book, objective, costs, policy or training were changed in {folder / 'config.yaml'} since "
                "the policies there were begun: restore it, or start a new run"
            ) from None

    def _trained(self, folder: Path, resume: bool, callbacks: Sequence[Callback]) -> Hedger:
        return deep_hedge(
            self.market,
            self.book,
            self.objective,
            costs=self.costs,
            unwind=self.unwind,
            policy=self.policy,
            rules=self.rules,
            trainer=self.trainer,
            steps_per_epoch=self.steps_per_epoch,
            n_validation=self.n_validation,
            seeds=self.seeds,
            aversions=(None,) if self.aversions is None else self.aversions,
            cost_levels=self.cost_levels,
            exact=self.exact,
            callbacks=callbacks,
            checkpoint_dir=folder / "checkpoints",
            resume=resume,
        )

    def _metrics(self, hedger: Hedger, judged: dict[str, Any], seconds: dict[str, float]) -> dict[str, Any]:
        settings = as_settings(self)
        members = member_rows(hedger)
        training = trained(settings, hedger) | {"members": members}
        return {**head(self, seconds), "training": training, "judgement": judged}
