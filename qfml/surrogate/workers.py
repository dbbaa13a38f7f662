"""Shards made by processes of their own, each with one thread of torch.

A worker is a fresh interpreter that reads the numbers of shards from its input and answers each, so that a script needs
no guard around its main part, and a worker whose parent was killed ends after the shard that it is making.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import Empty, SimpleQueue

from qfml.errors import UserError
from qfml.surrogate.problem import Problem

__all__ = ["make_by_processes", "n_cores", "own_kinds"]

ROOT = Path(__file__).resolve().parents[2]  # of the packages, for the workers' import path


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def own_kinds(problem: Problem) -> str:
    """The kind of a model or instrument that a user registered, which a fresh interpreter does not know; or nothing."""
    for owner in ("model", "instrument"):
        if problem.classes[owner].__module__.split(".")[0] != "pricers":
            return str(getattr(problem, owner)["kind"])
    return ""


def make_by_processes(place: Path, numbers: Sequence[int], n_workers: int) -> None:
    """Have shards of a folder made, whose settings lie in it.

    Args:
        place: `labels-HASH`.
        numbers: of the shards.
        n_workers: processes.

    Raises:
        UserError: a shard cannot be made, or a worker died (from a ChildProcessError); what was made stays.
    """
    waiting: SimpleQueue[int] = SimpleQueue()
    for number in numbers:
        waiting.put(number)
    with ExitStack() as stack:
        workers = [stack.enter_context(_started(place)) for _ in range(n_workers)]
        with ThreadPoolExecutor(n_workers) as pool:
            try:
                list(pool.map(lambda worker: _serve(worker, place, waiting), workers))
            except BaseException as error:
                while _next(waiting) is not None:  # the others stop after the shard that they are making
                    pass
                if not isinstance(error, Exception):  # Ctrl-C: at once, for a shard is whole or not there
                    for worker in workers:
                        worker.kill()
                raise


def _next(waiting: SimpleQueue[int]) -> int | None:
    try:
        return waiting.get_nowait()
    except Empty:
        return None


def _started(place: Path) -> subprocess.Popen[str]:
    """A worker; in a session of its own, so that Ctrl-C reaches this process only, which ends its workers."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-m", "qfml.surrogate.worker_process", str(place.resolve())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": path},
        start_new_session=True,
    )


def _serve(worker: subprocess.Popen[str], place: Path, waiting: SimpleQueue[int]) -> None:
    """Hand numbers to one worker until there are none left."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    while (number := _next(waiting)) is not None:
        try:
            worker.stdin.write(f"{number}\n")
            worker.stdin.flush()
            answer = worker.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise UserError(
                f"the process that makes shard {number} of {place} died (exit code {worker.wait()}); what it wrote "
                "stands above; memory may be short: fewer `workers`, or a smaller `shard_size`"
            ) from ChildProcessError(worker.returncode, "a worker died")
        if error := json.loads(answer)["error"]:
            raise UserError(error)
    worker.stdin.close()  # it ends, and frees its memory
