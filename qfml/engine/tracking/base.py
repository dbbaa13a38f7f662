"""What all trackers share: a training, told as numbers by member, axis and place on it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from qfml.engine.callbacks import Callback
from qfml.engine.fit import Fit
from qfml.errors import MissingExtraError

Number = float | int | None


class Tracker(Callback):
    """Hands every number of a training to `write`, and how each member ended to `summary`.

    A tracker of your own implements these two, and `begin` where something has to be opened.
    """

    kind: ClassVar[str]

    def write(self, member: int, axis: str, at: int, values: Mapping[str, Number]) -> None:
        """Record numbers of one member.

        Args:
            member: its number, in the order passed to `fit_many`.
            axis: "epoch", counted from 1, or "step".
            at: the epoch or the step.
            values: by name; None where there is no such number, as of a validation loss without validation rows.
        """
        raise NotImplementedError

    def summary(self, member: int, values: Mapping[str, Any]) -> None:
        """Record how a member ended.

        Args:
            member: its number.
            values: "status", "n_epochs", "best_epoch", "best_val_loss" and, of a member that ended as "nan", "failure":
                the sentence that says where.
        """

    def close(self) -> None:
        """Nothing more will come."""

    def epoch(self, member: int, record: dict[str, Any], stopped: bool) -> None:
        self.write(member, "epoch", record["epoch"], {name: x for name, x in record.items() if name != "epoch"})

    def log(self, member: int, step: int, values: dict[str, float]) -> None:
        self.write(member, "step", step, values)

    def end(self, fits: Sequence[Fit]) -> None:
        for member, fit in enumerate(fits):
            values = {name: getattr(fit, name) for name in ("status", "n_epochs", "best_epoch", "best_val_loss")}
            self.summary(member, values if fit.failure is None else values | {"failure": fit.failure})
        self.close()


def optional_module(name: str) -> Any:
    """A module of the extra `track`; MissingExtraError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != name.partition(".")[0]:
            raise  # it is there, but something that it needs is not
        raise MissingExtraError(name.partition(".")[0], "track") from None
