"""What every task of `qfml run` is: the root of a config that does its work in a run folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch

from qfml import config
from qfml.engine import Callback
from qfml.errors import UserError

Say = Callable[[str], None]


@runtime_checkable
class Task(Protocol):
    """The root of a config: a frozen dataclass whose fields are the YAML keys below `task:`."""

    task: ClassVar[str]

    @property
    def name(self) -> str:
        """Names the run folder."""
        ...

    def execute(self, folder: Path, *, resume: bool, callbacks: Sequence[Callback], say: Say) -> None:
        """Do everything but the report, in `folder`; `metrics.json` is written last, and marks a finished run.

        Args:
            folder: holds `config.yaml`, and what an earlier, interrupted attempt has left.
            resume: whether training had begun there.
            callbacks: told of the training.
            say: told in words what happens.
        """
        ...


def as_settings(task: Task) -> dict[str, Any]:
    """The full settings of a task, nothing left to a default; `read_task` reads them back."""
    return {"task": task.task} | config.to_dict(task)


def check_device(name: str) -> None:
    """Refuse a device that is not there before anything is read."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # the latter from a torch that is built without the device
        why = str(error).splitlines()[0]
        raise UserError(
            f"`trainer.device: {name}` cannot be used on this machine ({why}); leave it out for cpu"
        ) from None
