"""Short trainings that finders and checks are made of: some steps at a constant rate, with the loss of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qfml.data.dataset import TimeDataset
from qfml.engine.callbacks import Callback
from qfml.engine.member import Member
from qfml.engine.schedules import Constant
from qfml.engine.trainer import Trainer
from qfml.losses import Loss


def short_run(trainer: Trainer, n_steps: int, **settings: Any) -> Trainer:
    """The same trainer for exactly `n_steps` steps at a constant rate, unwatched.

    Args:
        trainer: its optimizer, batches, clipping and precision are kept.
        n_steps: of each member.
        settings: of the trainer, that are to be others too.
    """
    own: dict[str, Any] = {"max_epochs": n_steps, "max_steps": n_steps, "schedule": Constant(), "averaging": None}
    own |= {"monitor": "train_loss", "mode": "min", "metrics": (), "patience": None}
    own |= {"max_seconds": None, "fast_dev_run": False}
    own |= {"log_every": None, "watch": (), "time_split": False, "profile": None}
    return replace(trainer, **own | settings)


def step_losses(
    trainer: Trainer, members: Sequence[Member], loss: Loss, ds: TimeDataset, n_steps: int
) -> tuple[np.ndarray, list[str | None]]:
    """The loss of every step, nan from where a member has diverged, and where each that did came to its end.

    Args:
        trainer: one of `short_run`.
        members: what to train.
        loss: the training loss.
        ds: the data.
        n_steps: that the trainer takes.

    Returns:
        Losses (M, S) before each step, and for each member what stopped it, or None.
    """
    record = _Losses(len(members), n_steps)
    fits = replace(trainer, log_every=1).fit_many(members, loss, ds, callbacks=[record])
    losses = np.where(np.isfinite(record.losses), record.losses, np.nan)
    for member, first in record.failed.items():
        losses[member, first - 1 :] = np.nan  # it trains no further: what comes is the loss of what it was
    return losses, [fit.failure for fit in fits]


class _Losses(Callback):
    """The loss of every step of every member (M, S), and the steps at which members failed."""

    def __init__(self, n_members: int, n_steps: int) -> None:
        self.losses = np.full((n_members, n_steps), np.nan)
        self.failed: dict[int, int] = {}

    def log(self, member: int, step: int, values: dict[str, float]) -> None:
        self.losses[member, step - 1] = values["loss"]

    def fail(self, member: int, step: int, sentence: str) -> None:
        self.failed[member] = step
