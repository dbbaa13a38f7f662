"""Training of a walk-forward: one member per fold and seed, as one stack or, warm-started, fold after fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from qfml.backtest.folds import FoldRows
from qfml.data.dataset import TimeDataset
from qfml.data.transforms import FittedTransforms, Transform, fit_transforms
from qfml.engine import Bar, Callback, Fit, Member
from qfml.losses import Loss

__all__ = ["FoldFit", "fit_fold_transforms", "fit_folds", "predict_folds"]


@runtime_checkable
class FitsMany(Protocol):
    """What a walk-forward needs of a trainer."""

    def fit_many(
        self,
        members: Sequence[Member],
        loss: Loss,
        ds: TimeDataset,
        *,
        callbacks: Sequence[Callback] = (),
        checkpoint_dir: Path | None = None,
        resume: bool = False,
    ) -> list[Fit]:
        """Train members as one stack, one fit a member in their order."""
        ...


@dataclass(frozen=True, eq=False)
class FoldFit:
    """A trained member with the number of its fold and its seed."""

    fold: int
    seed: int
    fit: Fit


def fit_fold_transforms(
    ds: TimeDataset, folds: Sequence[FoldRows], transforms: Sequence[Transform]
) -> dict[int, FittedTransforms | None]:
    """The transforms fitted on the training rows of each fold that trains, and on no others."""
    own = {fold.model: fold for fold in reversed(folds)}
    if not transforms:
        return dict.fromkeys(own)
    return {
        model: fit_transforms(transforms, ds.feature_rows(fold.train), ds.feature_names)
        for model, fold in sorted(own.items())
    }


def fit_folds(
    ds: TimeDataset,
    folds: Sequence[FoldRows],
    fitted: dict[int, FittedTransforms | None],
    *,
    network: Any,
    trainer: FitsMany,
    loss: Loss,
    seeds: Sequence[int],
    warm_start: bool,
    callbacks: Sequence[Callback],
    checkpoint_dir: Path | None,
    resume: bool,
) -> list[FoldFit]:
    """Train every seed of every fold that trains; fold by fold and seed by seed in the result.

    Without warm start all members are one stack. With it, a fold's members start from the parameters of the same seed
    in the fold before, so that folds wait for each other and only the seeds are stacked.
    """
    models = {fold.model: fold for fold in reversed(folds)}
    order = sorted(models)
    for callback in callbacks:
        if isinstance(callback, Bar) and callback.folds is None:
            callback.folds = len(order)

    def members(model: int, start: Sequence[Fit] | None = None) -> list[Member]:
        fold = models[model]
        return [
            Member(
                network,
                fold.train,
                fold.val,
                seed=seed,
                transforms=fitted[model],
                start=None if start is None else start[i],
            )
            for i, seed in enumerate(seeds)
        ]

    if not warm_start:
        stack = [member for model in order for member in members(model)]
        fits = trainer.fit_many(stack, loss, ds, callbacks=callbacks, checkpoint_dir=checkpoint_dir, resume=resume)
        return [FoldFit(model, seed, fit) for (model, seed), fit in zip(_places(order, seeds), fits, strict=True)]
    done: list[FoldFit] = []
    last: list[Fit] | None = None
    for number, model in enumerate(order):
        folder = None if checkpoint_dir is None else checkpoint_dir / f"fold_{model}"
        before = [each.fit for each in done]
        last = trainer.fit_many(
            members(model, last),
            loss,
            ds,
            callbacks=[_OneFold(callback, number, len(order), len(seeds), before) for callback in callbacks],
            checkpoint_dir=folder,
            # a fold that the interrupted run had not reached has nothing to resume from
            resume=resume and (number == 0 or (folder is not None and any(folder.glob("checkpoint-*")))),
        )
        done += [FoldFit(model, seed, fit) for seed, fit in zip(seeds, last, strict=True)]
    return done


def predict_folds(ds: TimeDataset, folds: Sequence[FoldRows], fits: Sequence[FoldFit], seed: int) -> np.ndarray:
    """Test predictions of one seed, each by its fold's model: shape (rows of ds,), nan on rows that no fold tests."""
    by_fold = {fit.fold: fit.fit for fit in fits if fit.seed == seed}
    predicted = np.full(len(ds), np.nan)
    for fold in folds:
        predicted[fold.test] = by_fold[fold.model].predict(ds, fold.test)
    return np.where(np.isfinite(predicted), predicted, np.nan)  # an overflow is no prediction, and is counted as none


def _places(order: Sequence[int], seeds: Sequence[int]) -> list[tuple[int, int]]:
    return [(model, seed) for model in order for seed in seeds]


class _OneFold(Callback):
    """Tells a callback of one fold of several as if all were trained together; `before` are the fits of earlier ones.

    A member has its number among all; the beginning and the end are told once.
    """

    def __init__(self, callback: Callback, number: int, n_folds: int, n_seeds: int, before: Sequence[Fit]) -> None:
        self.callback, self.number, self.n_folds, self.n_seeds, self.before = callback, number, n_folds, n_seeds, before
        self.split, self.memory, self.checkpoint = callback.split, callback.memory, callback.checkpoint

    def begin(self, n_members: int, max_epochs: int) -> None:
        if self.number == 0:
            self.callback.begin(self.n_seeds * self.n_folds, max_epochs)

    def epoch(self, member: int, record: dict[str, Any], stopped: bool) -> bool | None:
        return self.callback.epoch(len(self.before) + member, record, stopped)

    def log(self, member: int, step: int, values: dict[str, float]) -> None:
        self.callback.log(len(self.before) + member, step, values)

    def fail(self, member: int, step: int, sentence: str) -> None:
        self.callback.fail(len(self.before) + member, step, sentence)

    def finished(self, member: int, fit: Fit) -> None:
        self.callback.finished(len(self.before) + member, fit)

    def end(self, fits: Sequence[Fit]) -> None:
        if self.number == self.n_folds - 1:
            self.callback.end([*self.before, *fits])
