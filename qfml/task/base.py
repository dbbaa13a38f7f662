"""What every task of `qfml run` is: the root of a config that does its work in a run folder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch

from qfml import config
from qfml.engine import Callback
from qfml.errors import ConfigError, UserError
from qfml.files import replace_text

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


def check_name(name: str) -> None:
    """Refuse a `name` that would put the run folder elsewhere than under `runs/`, or hide it."""
    if not name or name.startswith(".") or any(c in "/\\" or not c.isprintable() for c in name):
        raise ConfigError(
            f"`name` must be one plain part of a path, without / and \\ and no dot in front, got {name!r}; `--out` "
            "puts the run folder elsewhere"
        )


def write_metrics(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Write `metrics.json`: last, because a folder that has it is that of a finished run."""
    replace_text(folder / "metrics.json", json.dumps(plain(metrics), indent=1, allow_nan=False))


def plain(value: Any) -> Any:
    """The value for JSON, which has no infinity and no NaN: null.

    >>> plain({"rmse": float("nan"), "bounds": (0.0, float("inf"))})
    {'rmse': None, 'bounds': [0.0, None]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_device(name: str) -> None:
    """Refuse a device that is not there before anything is read."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # the latter from a torch that is built without the device
        why = str(error).splitlines()[0]
        raise UserError(
            f"`trainer.device: {name}` cannot be used on this machine ({why}); leave it out for cpu"
        ) from None
