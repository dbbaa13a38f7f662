"""How a run folder is made, resumed and finished."""

from __future__ import annotations

import fcntl
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from qfml import config
from qfml.engine import Bar
from qfml.errors import CheckpointError, Interrupted, UserError
from qfml.files import remove_unfinished
from qfml.finished import is_search, read_metrics
from qfml.report import write_report
from qfml.task import Say, Task, as_settings, read_task
from qfml.task.begun import INPUTS, begun_in


def run(
    path: str | Path | Mapping[str, Any],
    *,
    out: str | Path | None = None,
    overrides: Iterable[str] = (),
    progress: bool = True,
    say: Say = print,
) -> Path:
    """Do what a config says, in a new run folder.

    Args:
        path: a YAML file, or its settings as a mapping.
        out: the run folder; made under `runs/` if omitted.
        overrides: assignments such as "trainer.max_epochs=5".
        progress: draw a progress bar.
        say: told what happens, a line at a time.

    Returns:
        The run folder, with `report.html` in it.

    Raises:
        UserError: anything the user can mend, before training where possible.
        Interrupted: stopped by a signal; `resume` continues.
    """
    settings = dict(path) if isinstance(path, Mapping) else config.read_yaml(path)
    task = read_task(config.override(settings, overrides))
    folder = new_folder(task, out)
    config.write_yaml(as_settings(task), folder / "config.yaml")
    with only_process(folder):
        try:
            with way_on(folder):
                execute(folder, task, progress=progress, say=say)
        except UserError:
            forget_if_not_begun(folder)
            raise
    return folder


def resume(folder: str | Path, *, progress: bool = True, say: Say = print) -> Path:
    """Continue a run that was killed or interrupted; its result is the same to the last bit as if it had not been.

    Raises:
        UserError: there is no run in `folder`, it is finished, or its checkpoints are damaged.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"no run in {folder}: it holds no config.yaml")
    if is_search(folder):
        raise UserError(f"{folder} is a search, not a run: continue it with `qfml resume {folder}`")
    if (folder / "metrics.json").exists():
        read_metrics(folder)  # a damaged file is no finished run
        raise UserError(f"the run in {folder} is finished; `qfml report {folder}` rebuilds its report")
    task = read_task(config.read_yaml(folder / "config.yaml"))
    with only_process(folder), way_on(folder):
        try:
            execute(folder, task, progress=progress, say=say)
        except UserError as error:
            if (begun := begun_in(folder)) not in (None, str(Path.cwd())):
                error.add_note(f"The paths in its config are those seen from {begun}, where the run was begun")
            raise
    return folder


def execute(folder: Path, task: Task, *, progress: bool, say: Say) -> None:
    """Do the task in its folder, from the last checkpoint if there is one, and write the report."""
    remove_unfinished(folder)
    shutil.rmtree(folder / "model", ignore_errors=True)  # half a result of a run that was killed while writing it
    begun = any((folder / "checkpoints").glob("**/checkpoint-*"))
    with Bar() if progress else nullcontext() as bar:
        task.execute(folder, resume=begun, callbacks=() if bar is None else (bar,), say=say)
    write_report(folder)


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Refuse to work in a folder that another process works in; however a process ends, the system frees its lock."""
    with (folder / "config.yaml").open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is at work in {folder}: wait until it ends, or stop it, then continue with "
                f"`qfml resume {folder}`; or take another folder with `--out`"
            ) from None
        yield


@contextmanager
def way_on(folder: Path, *, anew: str | None = None) -> Iterator[None]:
    """Note on whatever stops a run how it goes on; Ctrl-C and SIGTERM outside training become `Interrupted` too.

    Args:
        folder: of the run.
        anew: what to do if its checkpoints are damaged; by default, to run its config anew.
    """
    with _sigterm_like_ctrl_c() as caught:
        try:
            yield
        except KeyboardInterrupt:
            stopped = Interrupted(caught[0] if caught else signal.SIGINT)
            stopped.add_note(f"Continue with: qfml {_next_command(folder)}")
            raise stopped from None
        except Interrupted as stopped:
            caught.append(stopped.signal_number)
            stopped.add_note(f"The checkpoint is written. Continue with: qfml {_next_command(folder)}")
            raise
        except (OSError, CheckpointError) as error:
            unwritten = isinstance(error, OSError) or isinstance(error.__cause__, OSError)
            anew = anew or f"Start anew with: qfml run {shlex.quote(str(folder / 'config.yaml'))}"
            error.add_note(f"Continue with: qfml {_next_command(folder)}" if unwritten else anew)
            raise
        except UserError as error:
            if isinstance(error.__cause__, ChildProcessError) and _has_begun(folder):  # of no setting, but of luck
                error.add_note(f"Continue with: qfml {_next_command(folder)}")
            raise


@contextmanager
def _sigterm_like_ctrl_c() -> Iterator[list[int]]:
    """SIGTERM raises KeyboardInterrupt wherever it comes; the list then holds its number. Training has its own way."""
    caught: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        if not caught and not isinstance(sys.exc_info()[1], Interrupted):  # else it is being obeyed
            caught.append(number)
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield caught
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield caught
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _next_command(folder: Path) -> str:
    finished = (folder / "metrics.json").exists()
    return f"{'report' if finished else 'resume'} {shlex.quote(str(folder))}"


def forget_if_not_begun(folder: Path) -> None:
    """Give the name of a run that was refused before it began back to the next attempt."""
    if not _has_begun(folder):
        shutil.rmtree(folder)


def _has_begun(folder: Path) -> bool:
    """Whether the folder of a run holds more than what it was asked for."""
    return not {path.name for path in folder.iterdir()} <= {"config.yaml", INPUTS}


def new_folder(task: Task, out: str | Path | None) -> Path:
    """The empty folder of a new run; made under `runs/` if `out` is None."""
    if out is None:
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        out = Path("runs") / f"{task.name}-{stamp}-{config.config_hash(as_settings(task))[:6]}"
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty: choose another `--out`, or continue it with `qfml resume {folder}`")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
