"""Members without validation rows: what would wait for a value that never comes."""

from __future__ import annotations

from qfml.engine.schedules import Schedule, Warmup
from qfml.engine.trainer import Trainer
from qfml.errors import UserError


def waits_for_validation(trainer: Trainer, *, own_patience: bool = False) -> str | None:
    """What of a trainer waits for a value measured on validation rows; None if nothing does.

    Args:
        trainer: how members are trained.
        own_patience: members have a patience of their own.
    """
    schedule = trainer.schedule
    observer = schedule.then if isinstance(schedule, Warmup) else schedule
    waiting = {
        f"the schedule {schedule.kind!r}": type(observer).observe is not Schedule.observe,
        "`patience`": trainer.patience is not None or own_patience,
        "the choice of the best epoch": trainer.monitor != "val_loss",  # the default, which without val is the last
    }
    return None if trainer.monitor == "train_loss" else next((name for name, waits in waiting.items() if waits), None)


def check_unvalidated(trainer: Trainer, way_out: str, *, own_patience: bool = False) -> None:
    """Raise UserError if a trainer waits for what only validation rows have, of which there are none; `way_out` too."""
    if what := waits_for_validation(trainer, own_patience=own_patience):
        raise UserError(
            f"{what} waits for `{trainer.monitor}`, but there are no validation rows: {way_out}, or set the trainer's "
            '`monitor` to "train_loss"'
        )
