"""Callbacks: what wants to know how a training goes, or to stop it."""

from __future__ import annotations

from collections.abc import Sequence
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

    def log(self, member: int, step: int, values: dict[str, float]) -> None:
        """What a step of a member was like, every `log_every` steps: "loss", "gradient_norm" before clipping, "lr"."""

    def checkpoint(self, folder: Path) -> None:
        """A checkpoint was written."""

    def end(self, fits: Sequence[Fit]) -> None:
        """Training is over."""
