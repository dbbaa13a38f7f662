"""Trackers of other projects; their packages come with the extra `track` and are imported by the constructor."""

from __future__ import annotations

import os
import posixpath
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from qfml.engine.tracking.base import Number, Tracker, optional_module
from qfml.errors import UserError


@dataclass(eq=False)
class TensorBoard(Tracker):
    """Event files for TensorBoard: one run a member, scalars `epoch/...` and `step/...`, written at once.

    Args:
        folder: of the event files, new; a member's lie in `member_0` and so on. To look: `tensorboard --logdir FOLDER`.
        resume: go on in the folder of a training that is resumed. A number that is there already is not written again.
            An event file cannot be changed: a repeated step that gives another number is written beside the first.

    How a member ended is no number, and not told; `JsonLines` has it.
    """

    kind: ClassVar[str] = "tensorboard"
    folder: str | Path
    resume: bool = False
    _writers: dict[int, Any] = field(default_factory=dict, init=False, repr=False)
    _known: dict[int, set[tuple[str, int, str]]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        optional_module("tensorboard")  # torch's own message would not say what to install

    def begin(self, n_members: int, max_epochs: int) -> None:
        self._writers, self._known = {}, {}
        if not self.resume and any(Path(self.folder).glob("member_*")):
            raise UserError(
                f"{self.folder} already holds a training: give each one a folder of its own, or pass `resume=True` to "
                "go on in the folder of a training that is resumed"
            )

    def write(self, member: int, axis: str, at: int, values: Mapping[str, Number]) -> None:
        scalars = [(f"{axis}/{name}", value) for name, value in values.items() if value is not None]
        known = self._known_of(member)
        new = [(tag, value) for tag, value in scalars if (tag, at, _single(value)) not in known]
        if not new:
            return
        if member not in self._writers:
            summary_writer = optional_module("torch.utils.tensorboard").SummaryWriter
            self._writers[member] = summary_writer(str(self._member_folder(member)))
        for tag, value in new:
            self._writers[member].add_scalar(tag, value, at)
        self._writers[member].flush()  # a kill loses nothing

    def epoch(self, member: int, record: dict[str, Any], stopped: bool) -> None:
        super().epoch(member, record, stopped)
        if stopped and member in self._writers:  # a writer is a thread: no more of them than members at work
            self._writers.pop(member).close()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _member_folder(self, member: int) -> Path:
        return Path(self.folder) / f"member_{member}"

    def _known_of(self, member: int) -> set[tuple[str, int, str]]:
        """The scalars that the member's event files hold when it is first heard of."""
        if member not in self._known:
            self._known[member] = set()
            if self.resume and self._member_folder(member).is_dir():
                self._known[member] = self._read(self._member_folder(member))
        return self._known[member]

    def _read(self, folder: Path) -> set[tuple[str, int, str]]:
        events = optional_module("tensorboard.backend.event_processing.event_accumulator")
        every = {"scalars": 0}  # 0: do not thin them out
        held = events.EventAccumulator(str(folder), size_guidance=every, purge_orphaned_data=False).Reload()
        return {(tag, e.step, _single(e.value)) for tag in held.Tags()["scalars"] for e in held.Scalars(tag)}


def _single(value: float) -> str:
    """A number as an event file holds it; as text, for nan equals nothing."""
    return repr(float(np.float32(value)))


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """A variable of the environment for our own calls; what the caller does with the same package keeps theirs."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@dataclass(eq=False)
class WeightsAndBiases(Tracker):
    """A run of Weights & Biases: `member_0/...` over epochs, `member_0_steps/...` over steps.

    A resumed training is a new run of the same group. It holds the training whole, for what was trained before is told
    again; only the numbers by step begin where the training was resumed.

    Args:
        project: name of the project.
        mode: "offline" keeps the run in `folder`, from where `wandb sync` uploads it, and sends nothing anywhere;
            "online" uploads it at once, and needs `wandb login` before.
        folder: where the files of the run are kept.
        group: name under which runs belong together; one of its own if omitted.
        config: settings to show with the run.
    """

    kind: ClassVar[str] = "wandb"
    project: str
    mode: str = "offline"
    folder: str | Path = "runs"
    group: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    _run: Any = field(default=None, init=False, repr=False)
    _axes: set[str] = field(default_factory=set, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.mode not in ("offline", "online"):
            raise UserError(
                f"`mode` must be offline or online, got {self.mode!r}; to record nothing leave the tracker out"
            )
        with self._quiet():
            self._wandb = optional_module("wandb")

    def begin(self, n_members: int, max_epochs: int) -> None:
        Path(self.folder).mkdir(parents=True, exist_ok=True)  # wandb would take the system's temporary folder
        with self._quiet():
            self._run = self._wandb.init(
                project=self.project,
                mode=self.mode,
                dir=str(self.folder),
                group=self.group,
                config={"n_members": n_members, "max_epochs": max_epochs} | self.config,
                reinit="create_new",  # a run that the caller has open goes on
                settings=self._wandb.Settings(silent=True, console="off"),  # what is printed is the caller's
            )
        self._axes = set()

    def _quiet(self) -> AbstractContextManager[None]:
        """Offline its service would still report its own errors and usage."""
        return _environment("WANDB_ERROR_REPORTING", "false") if self.mode == "offline" else nullcontext()

    def write(self, member: int, axis: str, at: int, values: Mapping[str, Number]) -> None:
        prefix = f"member_{member}" if axis == "epoch" else f"member_{member}_steps"
        if prefix not in self._axes:  # here, for members may join while others train
            self._axes.add(prefix)
            self._run.define_metric(f"{prefix}/*", step_metric=f"{prefix}/{axis}")
        known = {name: value for name, value in values.items() if value is not None}
        self._run.log({f"{prefix}/{name}": value for name, value in ({axis: at} | known).items()})

    def summary(self, member: int, values: Mapping[str, Any]) -> None:
        self._run.summary.update({f"member_{member}/{name}": value for name, value in values.items()})

    def close(self) -> None:
        self._run.finish()


@dataclass(eq=False)
class MLflow(Tracker):
    """A run of MLflow: metrics `member_0/...` over epochs, `member_0/step/...` over steps.

    A resumed training is a new run of the same experiment. It holds the training whole, for what was trained before is
    told again; only the numbers by step begin where the training was resumed. The run of a training that was cut off
    keeps the status RUNNING. MLflow's own telemetry is off while it is called from here.

    Args:
        store: MLflow's tracking URI, such as "sqlite:///mlflow.db" or the address of a server.
        experiment: name of the experiment, made if there is none.
        run_name: name of the run; MLflow makes one up if omitted.
        config: settings to keep as the run's parameters.
    """

    kind: ClassVar[str] = "mlflow"
    store: str
    experiment: str
    run_name: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    _id: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        if "://" not in self.store:
            raise UserError(f"`store` must be a URI such as sqlite:///mlflow.db or http://..., got {self.store!r}")
        with _without_telemetry():
            optional_module("mlflow")
            if self.store.startswith("sqlite:"):
                optional_module("alembic")  # without it MLflow opens no database
            self._metric = optional_module("mlflow.entities").Metric
            self._client = optional_module("mlflow.tracking").MlflowClient(tracking_uri=self.store)

    def begin(self, n_members: int, max_epochs: int) -> None:
        with _without_telemetry():
            held = self._client.get_experiment_by_name(self.experiment)
            experiment = self._client.create_experiment(self.experiment) if held is None else held.experiment_id
            self._id = self._client.create_run(experiment, run_name=self.run_name).info.run_id
            for name, value in ({"n_members": n_members, "max_epochs": max_epochs} | self.config).items():
                self._client.log_param(self._id, name, value)

    def write(self, member: int, axis: str, at: int, values: Mapping[str, Number]) -> None:
        prefix = f"member_{member}" if axis == "epoch" else f"member_{member}/step"
        now = time.time_ns() // 1_000_000  # milliseconds
        known = [(name, value) for name, value in values.items() if value is not None]
        metrics = [self._metric(f"{prefix}/{allowed_name(name)}", float(value), now, at) for name, value in known]
        with _without_telemetry():
            self._client.log_batch(self._id, metrics=metrics)

    def summary(self, member: int, values: Mapping[str, Any]) -> None:
        with _without_telemetry():
            for name, value in values.items():
                self._client.set_tag(self._id, f"member_{member}.{name}", str(value))

    def close(self) -> None:
        with _without_telemetry():
            self._client.set_terminated(self._id, "FINISHED")


def allowed_name(name: str) -> str:
    """A name as MLflow allows it, which a module's parameters need not have: other characters stand by their code.

    Example:
        >>> allowed_name("gradient_norm/0.weight"), allowed_name("gradient_norm/cell[2].weight")
        ('gradient_norm/0.weight', 'gradient_norm/cell_5b_2_5d_.weight')
    """
    plain = re.sub(r"[^A-Za-z0-9_\-. :/]", lambda found: f"_{ord(found[0]):x}_", name)
    return plain if posixpath.normpath(f"x/{plain}") == f"x/{plain}" else plain.replace("/", "_2f_")


def _without_telemetry() -> AbstractContextManager[None]:
    """MLflow asks at each call: it would fetch settings from its makers, and send them what was called."""
    return _environment("MLFLOW_DISABLE_TELEMETRY", "true")
