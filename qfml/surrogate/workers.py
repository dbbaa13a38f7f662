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
        UserError: a shard cannot be made; what was made stays.
        RuntimeError: a worker died.
    """
    waiting: SimpleQueue[int] = SimpleQueue()
    for number in numbers:
        waiting.put(number)
    with ThreadPoolExecutor(n_workers) as pool:
        try:
            list(pool.map(lambda _: _serve(place, waiting), range(n_workers)))
        except BaseException:
            while _next(waiting) is not None:  # the others stop after the shard that they are making
                pass
            raise


def _next(waiting: SimpleQueue[int]) -> int | None:
    try:
        return waiting.get_nowait()
    except Empty:
        return None


def _serve(place: Path, waiting: SimpleQueue[int]) -> None:
    """Hand numbers to one worker until there are none left."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, "-m", "qfml.surrogate.worker_process", str(place.resolve())]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environment
    ) as worker:
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
                raise RuntimeError(
                    f"the process that makes shard {number} of {place} died (exit code {worker.wait()}); what it wrote "
                    "stands above; memory may be short: fewer `workers`, or a smaller `shard_size`"
                )
            error = json.loads(answer)["error"]
            if error:
                raise UserError(f"shard {number} of {place} cannot be made: {error}")
