"""A progress bar."""

from __future__ import annotations

import importlib.util
import time
from types import TracebackType
from typing import Any

import rich.console
import rich.progress

from qfml.engine.callbacks import Callback


class Bar(Callback):
    """A progress bar with members, epochs, the mean of the members' last losses, and the time left.

    The time left counts every member at its full number of epochs, so early stopping makes it shorter. In a notebook
    without the package ipywidgets, which a live bar needs there, it is a line of text that is written over.

    Args:
        folds: number of folds that the members are spread over, in order, fold by fold.
    """

    def __init__(self, folds: int | None = None) -> None:
        self.folds = folds
        self.console = rich.console.Console()
        self.as_text = self.console.is_jupyter and importlib.util.find_spec("ipywidgets") is None
        self._shown, self._width = -1.0, 0
        self.bar = rich.progress.Progress(
            rich.progress.TextColumn("training"),
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
            rich.progress.TextColumn("{task.description}"),
            rich.progress.TextColumn("elapsed"),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("left"),
            rich.progress.TimeRemainingColumn(),
            console=self.console,
        )

    def __enter__(self) -> Bar:
        if not self.as_text:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self.as_text:
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
        if self.as_text:
            self._write(", ".join(parts), last=len(self.stopped) == self.n_members)

    def _write(self, description: str, last: bool) -> None:
        """Write the line over the one before, a few times a second."""
        now = time.monotonic()
        if now - self._shown < 0.2 and not last:
            return
        task = self.bar.tasks[self.task]
        left = "" if task.time_remaining is None else f", left {task.time_remaining:.0f} s"
        line = f"training {task.percentage:.0f} %, {description}, elapsed {task.elapsed or 0:.0f} s{left}"
        print(f"\r{line.ljust(self._width)}", end="\n" if last else "", flush=True)
        self._shown, self._width = now, len(line)
