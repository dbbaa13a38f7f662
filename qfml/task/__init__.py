"""The tasks of `qfml run`, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qfml import config
from qfml.errors import ConfigError
from qfml.task.base import Say, Task, as_settings, check_name
from qfml.task.calibration import CalibrationTask
from qfml.task.hedging import HedgingTask
from qfml.task.surrogate import SurrogateTask
from qfml.task.walk_forward import WalkForwardTask

__all__ = [
    "TASKS",
    "CalibrationTask",
    "HedgingTask",
    "Say",
    "SurrogateTask",
    "Task",
    "WalkForwardTask",
    "as_settings",
    "read_task",
    "read_walk_forward",
]

TASKS: dict[str, type[Any]] = {cls.task: cls for cls in (WalkForwardTask, SurrogateTask, CalibrationTask, HedgingTask)}


def read_task(settings: Mapping[str, Any]) -> Task:
    """The task that plain settings describe; ConfigError names what is wrong in them."""
    name = settings.get("task")
    if "tune" in settings:
        raise ConfigError("this config has a section `tune`: search with `qfml tune`, or remove the section to run it")
    if not isinstance(name, str) or name not in TASKS:
        raise ConfigError(f"`task` must be one of {', '.join(TASKS)}, got {name!r}")
    task = config.build(TASKS[name], {key: value for key, value in settings.items() if key != "task"})
    check_name(task.name)
    return task


def read_walk_forward(settings: Mapping[str, Any], what: str) -> WalkForwardTask:
    """The walk-forward backtest that settings describe; `what` is only for those."""
    task = read_task(settings)
    if not isinstance(task, WalkForwardTask):
        raise ConfigError(f"{what} is for `task: walk_forward`, got {task.task!r}")
    return task
