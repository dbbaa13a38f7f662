"""A progress bar."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import rich.progress

from qfml.engine.callbacks import Callback


class Bar(Callback):
    """A progress bar with members, epochs, the mean of the members' last losses, and the time left.

    The time left counts every member at its full number of epochs, so early stopping makes it shorter.

    Args:
        folds: number of folds that the members are spread over, in order, fold by fold.
    """

    def __init__(self, folds: int | None = None) -> None:
        self.folds = folds
        self.bar = rich.progress.Progress(
            rich.progress.TextColumn("training"),
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
            rich.progress.TextColumn("{task.description}"),
            rich.progress.TextColumn("elapsed"),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("left"),
            rich.progress.TimeRemainingColumn(),
        )

    def __enter__(self) -> Bar:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.stop()

    def begin(self, n_members: int, max_epochs: int) -> None:
        """Training is about to start."""
        self.n_members, self.max_epochs = n_members, max_epochs
        self.losses: dict[int, float] = {}
        self.stopped: set[int] = set()
        self.n_epochs = 0
        self.task = self.bar.add_task("", total=n_members * max_epochs)

    def epoch(self, member: int, record: dict[str, Any], stopped: bool) -> None:
        """A member has ended an epoch."""
        self.n_epochs += 1
        loss = record["train_loss"] if record["val_loss"] is None else record["val_loss"]
        self.losses[member] = loss
        if stopped:
            self.stopped.add(member)
        mean = sum(self.losses.values()) / len(self.losses)
        parts = [f"members {len(self.stopped)}/{self.n_members}", f"epochs {self.n_epochs}", f"loss {mean:.4g}"]
        if self.folds:
            seeds = self.n_members // self.folds
            finished = [all(fold * seeds + seed in self.stopped for seed in range(seeds)) for fold in range(self.folds)]
            parts.insert(0, f"folds {sum(finished)}/{self.folds}")
        advance = 1 + (self.max_epochs - record["epoch"] if stopped else 0)
        self.bar.update(self.task, advance=advance, description=", ".join(parts))
