"""Callbacks: what wants to know how a training goes, or to stop it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qfml.engine.fit import Fit


class Callback:
    """Told of what happens while `fit_many` runs; override what is of interest.

    Members are numbered as they were passed to `fit_many`. A resumed fit first repeats the epochs that it already has.
    What a callback raises ends the training.
    """

    def begin(self, n_members: int, max_epochs: int) -> None:
        """Training is about to start."""

    def epoch(self, member: int, record: dict[str, Any], stopped: bool) -> bool | None:
        """A member has ended an epoch.

        Args:
            member: its number.
            record: "epoch" (from 1), "train_loss", "val_loss" and the other metrics of the epoch.
            stopped: the member trains no further.

        Returns:
            True to stop the member here; its status is then "stopped".
        """

    def finished(self, member: int, fit: Fit) -> None:
        """A member trains no further, and this is its fit; a resumed training repeats those that it already has."""

    def log(self, member: int, step: int, values: dict[str, float]) -> None:
        """What a step of a member was like, every `log_every` steps.

        Args:
            member: its number.
            step: counted from 1.
            values: "loss", "gradient_norm" before clipping, "lr", "update_ratio" (length of the step over that of the
                parameters), and what the trainer's `watch` adds to them.
        """

    def fail(self, member: int, step: int, sentence: str) -> None:
        """A member has met something that is not finite, and trains no further.

        Args:
            member: its number.
            step: the step, counted from 1.
            sentence: step, epoch and the first place that was not finite, as in `Fit.failure`. A resumed fit repeats
                it.
        """

    def split(self, epoch: int, seconds: Mapping[str, float], verdict: str) -> None:
        """What the time went into, with the trainer's `time_split`.

        Args:
            epoch: the epoch that the first member of the block at work has ended; blocks begin again at 1. What comes
                after the last one is told at the end, under its number; 0 if none was ended.
            seconds: by part, since the last call: "data" (waiting for batches), "copy" (of a stream's batches to the
                device; 0 where they are gathered there), "forward", "backward" (the loss and its gradient), "step"
                (guard, clipping, optimizer), "validation", "checkpoint", "other" (callbacks, ends of epochs, beginnings
                of blocks). On a GPU they are the GPU's own.
            verdict: one line on the largest of them; "after the last epoch" on what comes after it.
        """

    def memory(self, bytes_by_part: Mapping[str, int]) -> None:
        """What a block holds after its first step, with "memory" in the trainer's `watch`.

        Args:
            bytes_by_part: "parameters", "gradient", "optimizer", "other_state", "batch", "data", and "peak", the most
                that the GPU, or on a CPU the whole process, has held.
        """

    def checkpoint(self, folder: Path) -> None:
        """A checkpoint was written."""

    def end(self, fits: Sequence[Fit]) -> None:
        """Training is over."""
