"""Trains trials: as many as are asked at once, times folds, times seeds, as one stack of members."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Annotated, Any, Protocol, runtime_checkable

from qfml.backtest.folds import FoldRows
from qfml.backtest.training import FoldFit, fit_fold_transforms
from qfml.config import OneOf, Section, config_hash, to_dict
from qfml.data.dataset import TimeDataset
from qfml.data.transforms import FittedTransforms, Transform
from qfml.engine import Callback, Fit, Member, Trainer
from qfml.engine.monitor import judged
from qfml.errors import ConfigError
from qfml.losses import Loss
from qfml.networks import Network
from qfml.splits import SPLITTERS
from qfml.splits.base import Splitter
from qfml.tune.folds import DEFAULT_SPLIT
from qfml.tune.halving import SuccessiveHalving, leaders
from qfml.tune.search import SEARCHES, TPE, Search
from qfml.tune.space import Value
from qfml.tune.study import Asked, Study

__all__ = ["Candidate", "TrialSettings", "TuneConfig", "Tuner", "stack_key"]

_STACKS_DEEP = 4  # a stack takes so many times the trials trained at once: what it holds in memory is bounded
_SECONDS_BETWEEN_NOTES = 5.0  # what a kill can take off the time that counts for the timeout


@dataclass(frozen=True)
class TuneConfig:
    """How a search is done: the section `tune` of a config.

    Args:
        n_trials: trials in all; a grid has no more than its combinations.
        search: how the parameters of a trial are chosen.
        split: cuts the rows before the first test block of the config's own `split` into folds; each trains a network
            on the rest and judges it on its block, purged.
        concurrent: trials that are trained at once, as one stack.
        halving: drop trials that are behind; every trial is trained to the end if omitted.
        timeout: seconds after which no further trial begins; those in training are finished. The time before a
            resume counts too.
        seed: of the search.
    """

    n_trials: int
    search: Annotated[Search, OneOf(SEARCHES)] = TPE()  # noqa: RUF009  (frozen)
    split: Annotated[Splitter, OneOf(SPLITTERS)] = DEFAULT_SPLIT
    concurrent: int = 8
    halving: Annotated[SuccessiveHalving, Section(SuccessiveHalving)] | None = None
    timeout: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n_trials", "concurrent"):
            if getattr(self, name) < 1:
                raise ConfigError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if self.timeout is not None and not self.timeout > 0:
            raise ConfigError(f"`timeout` must be positive, got {self.timeout}; leave it out for none")


@runtime_checkable
class TrialSettings(Protocol):
    """What is trained in a trial; the task of a walk-forward has it all."""

    @property
    def network(self) -> Network:
        """The architecture."""
        ...

    @property
    def loss(self) -> Loss:
        """The training loss."""
        ...

    @property
    def trainer(self) -> Trainer:
        """How its members are trained."""
        ...

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """Fitted on each fold's training rows."""
        ...

    @property
    def n_seeds(self) -> int:
        """Members a fold."""
        ...

    @property
    def seed(self) -> int:
        """The first of them."""
        ...


@dataclass(eq=False)
class Candidate:
    """A trial at work.

    Attributes:
        place: its place among all trials.
        settings: what is trained.
        asked: the study's handle.
        curves: best objective so far of each member, after each of its epochs; smaller is better.
        going: members that are still training, by number in the trial.
        values: the trial's objective after each epoch that all its members have ended.
        fits: of the members that train no further, by number in the trial.
        behind: it is not among the leaders of its last rung; its members are dropped as they end their epochs.
        pruned: a member was dropped before its end.
    """

    place: int
    settings: TrialSettings
    asked: Asked
    curves: list[list[float]] = field(default_factory=list)
    going: set[int] = field(default_factory=set)
    values: list[float] = field(default_factory=list)
    fits: dict[int, Fit] = field(default_factory=dict)
    behind: bool = False
    pruned: bool = False


class Tuner:
    """Runs a study to its end.

    Args:
        ds: the data.
        folds: what each member of a trial trains on and is judged on; from `tuning_folds`.
        study: asks for trials and keeps what came of them.
        settings_of: the settings of the trial with these parameters.
        keep: given the fits of a trial that is over, before the study is told: what a kill in between leaves is a
            trial that is trained again.
        plan: the section `tune`.
        say: told what happens, a line at a time.
    """

    def __init__(
        self,
        ds: TimeDataset,
        folds: Sequence[FoldRows],
        study: Study,
        settings_of: Callable[[Mapping[str, Value]], TrialSettings],
        keep: Callable[[int, TrialSettings, list[FoldFit]], None],
        plan: TuneConfig,
        say: Callable[[str], None],
    ) -> None:
        self.ds, self.folds, self.study, self.plan = ds, folds, study, plan
        self.settings_of, self.keep, self.say = settings_of, keep, say
        self.began, self.before, self.noted = monotonic(), study.seconds, study.seconds
        self.rungs: dict[int, dict[int, float]] = {}  # epoch -> place -> objective
        self.waiting: list[Candidate] = []
        self.transforms: dict[str, dict[int, FittedTransforms | None]] = {}
        self.n_trials = min(plan.n_trials, study.search.n_trials(study.spaces) or plan.n_trials)

    def run(self) -> None:
        """Train until the trials or the time are used up."""
        for told in self.study.told():
            values = [self.study.sign * value for value in told.curve]
            self._note_rungs(told.place, self.settings_of(told.params), values, 0, ended=not told.pruned)
        while True:
            while len(self.waiting) < self.plan.concurrent and (candidate := self.ask()):
                self.waiting.append(candidate)
            if not self.waiting:
                self.note_seconds()
                return
            key = stack_key(self.waiting[0].settings)
            first = [each for each in self.waiting if stack_key(each.settings) == key][: self.plan.concurrent]
            self.waiting = [each for each in self.waiting if each not in first]
            self._train(first, key)

    def ask(self) -> Candidate | None:
        """The next trial, or None when the trials or the time are used up."""
        late = self.plan.timeout is not None and self.seconds > self.plan.timeout
        if late and not self.study.n_again:
            return None
        while asked := self.study.ask(self.n_trials):
            try:
                return Candidate(asked.place, self.settings_of(asked.params), asked)
            except ConfigError as error:  # a rule that holds at the bounds of the spaces need not hold between them
                self.study.refuse(asked, str(error))
                self.say(f"trial {asked.place + 1} of {self.n_trials}: not trained, {error}")
        return None

    @property
    def seconds(self) -> float:
        """Time used so far, that of earlier processes included."""
        return self.before + monotonic() - self.began

    def note_seconds(self, after: float = 0.0) -> None:
        """Keep the time used so far, if more than `after` seconds went by since it was kept."""
        if self.seconds - self.noted >= after:
            self.noted = self.seconds
            self.study.note_seconds(self.noted)

    def members(self, settings: TrialSettings) -> list[Member]:
        """The members of a trial: fold by fold, seed by seed."""
        trainer = settings.trainer
        fitted = self._fitted(settings.transforms)
        return [
            Member(
                settings.network,
                fold.train,
                fold.test,
                seed=seed,
                lr=trainer.optimizer.lr,
                weight_decay=trainer.optimizer.weight_decay,
                clip_norm=trainer.clip_norm,
                patience=trainer.patience,
                transforms=fitted[fold.model],
            )
            for fold in self.folds
            for seed in _seeds(settings)
        ]

    def _fitted(self, transforms: Sequence[Transform]) -> dict[int, FittedTransforms | None]:
        """The transforms of each fold, fitted once for all trials that have the same."""
        key = config_hash(list(transforms))
        if key not in self.transforms:
            self.transforms[key] = fit_fold_transforms(self.ds, self.folds, transforms)
        return self.transforms[key]

    def _train(self, first: list[Candidate], key: str) -> None:
        """One stack, with the trials that take the places of those that are over."""
        stack = _Stack(self, key)
        members = [member for candidate in first for member in stack.take(candidate)]
        settings = first[0].settings
        trainer = replace(settings.trainer, member_block=settings.trainer.member_block or len(members))
        trainer.fit_many(members, settings.loss, self.ds, callbacks=[stack], refill=stack.refill)

    def _by_fold(self, candidate: Candidate) -> list[FoldFit]:
        places = [(number, seed) for number in range(len(self.folds)) for seed in _seeds(candidate.settings)]
        return [FoldFit(fold, seed, candidate.fits[own]) for own, (fold, seed) in enumerate(places)]

    def ended_epochs(self, candidate: Candidate) -> None:
        """Note the epochs that all members of a trial have ended, and what they mean for its rungs."""
        n_known = len(candidate.values)
        reached = [len(curve) for i, curve in enumerate(candidate.curves) if i in candidate.going]
        until = min(reached) if reached else max(map(len, candidate.curves))
        for epoch in range(n_known + 1, until + 1):
            at = [curve[min(epoch, len(curve)) - 1] for curve in candidate.curves]
            candidate.values.append(math.fsum(at) / len(at))
            self.study.report(candidate.asked, epoch, self.study.sign * candidate.values[-1])
        ended = not candidate.going and not candidate.behind
        self._note_rungs(candidate.place, candidate.settings, candidate.values, n_known, ended=ended)

    def falls_behind(self, candidate: Candidate) -> bool:
        """Whether a trial is not among the leaders of the last rung that it has come to."""
        if self.plan.halving is None:
            return False
        rungs = self.plan.halving.rungs(candidate.settings.trainer.max_epochs)
        passed = [rung for rung in rungs if rung <= len(candidate.values)]
        return bool(passed) and candidate.place not in leaders(self.rungs[passed[-1]], self.plan.halving.factor)

    def _note_rungs(
        self, place: int, settings: TrialSettings, values: Sequence[float], n_known: int, *, ended: bool
    ) -> None:
        """Enter a trial at the rungs it has come to; one that has ended keeps its last value at those above."""
        if self.plan.halving is None or not values:
            return
        for rung in self.plan.halving.rungs(settings.trainer.max_epochs):
            if n_known < rung <= len(values) or (ended and rung > n_known):
                self.rungs.setdefault(rung, {})[place] = values[min(rung, len(values)) - 1]

    def over(self, candidate: Candidate) -> None:
        """A trial has no member left: keep what is wanted of its fits, and tell the study."""
        self.keep(candidate.place, candidate.settings, self._by_fold(candidate))
        candidate.fits.clear()
        value = self.study.sign * candidate.values[-1]
        self.study.tell(candidate.asked, value, [len(curve) for curve in candidate.curves], pruned=candidate.pruned)
        self.note_seconds()
        how = f"dropped after {len(candidate.values)} epochs" if candidate.pruned else "trained to the end"
        self.say(f"trial {candidate.place + 1} of {self.n_trials}: {value:.6g}, {how}")


class _Stack(Callback):
    """The trials of one stack: hears of their epochs, drops those that fall behind, fills their places."""

    def __init__(self, tuner: Tuner, key: str) -> None:
        self.tuner, self.key = tuner, key
        self.candidates: list[Candidate] = []
        self.owner: list[tuple[Candidate, int]] = []
        self.at_work: list[Candidate] = []

    def take(self, candidate: Candidate) -> list[Member]:
        """The members of a trial, numbered after all others."""
        members = self.tuner.members(candidate.settings)
        candidate.curves = [[] for _ in members]
        candidate.going = set(range(len(members)))
        self.candidates.append(candidate)
        self.at_work.append(candidate)
        self.owner += [(candidate, own) for own in range(len(members))]
        return members

    def epoch(self, member: int, record: dict[str, Any], stopped: bool) -> bool | None:
        """A member has ended an epoch; True drops it."""
        candidate, own = self.owner[member]
        trainer, curve = candidate.settings.trainer, candidate.curves[own]
        value = judged(record, trainer.monitor, trainer.mode)
        best = curve[-1] if curve else math.inf
        # the rule by which the trainer keeps the best epoch, so that the objective is that of the weights kept
        better = value is not None and math.isfinite(value) and value < best - trainer.min_delta
        curve.append(value if better and value is not None else best)
        self.tuner.note_seconds(_SECONDS_BETWEEN_NOTES)
        self._leave(candidate, own, stopped or candidate.behind)
        self.tuner.ended_epochs(candidate)
        if not candidate.behind and candidate.going:
            candidate.behind = self.tuner.falls_behind(candidate)
        drop = candidate.behind and not stopped
        candidate.pruned |= drop
        self._leave(candidate, own, drop)
        return drop

    def finished(self, member: int, fit: Fit) -> None:
        """A member trains no further."""
        candidate, own = self.owner[member]
        candidate.fits[own] = fit

    def _leave(self, candidate: Candidate, own: int, leaves: bool) -> None:
        if leaves:
            candidate.going.discard(own)

    def refill(self, _: int) -> list[Member]:
        """Members of new trials in place of those of the trials that are over."""
        over = [candidate for candidate in self.at_work if not candidate.going]
        self.at_work = [candidate for candidate in self.at_work if candidate.going]
        for candidate in over:
            self.tuner.over(candidate)
        return [member for _ in over for member in self._another()]

    def _another(self) -> list[Member]:
        tuner = self.tuner
        room = tuner.plan.concurrent
        if len(self.candidates) >= _STACKS_DEEP * room or len(tuner.waiting) >= room:
            return []
        candidate = tuner.ask()
        if candidate is None:
            return []
        if stack_key(candidate.settings) == self.key:
            return self.take(candidate)
        tuner.waiting.append(candidate)  # it trains in another way: with its like, in the next stack
        return []


def stack_key(settings: TrialSettings) -> str:
    """The same for trials that can be one stack: they differ at most in what belongs to a member."""
    trainer = settings.trainer
    plain = to_dict(trainer)
    plain["optimizer"] = {name: v for name, v in plain["optimizer"].items() if name not in ("lr", "weight_decay")}
    plain |= {"clip_norm": trainer.clip_norm is None, "patience": trainer.patience is None}
    return config_hash([plain, to_dict(settings.loss)])


def _seeds(settings: TrialSettings) -> range:
    return range(settings.seed, settings.seed + settings.n_seeds)
