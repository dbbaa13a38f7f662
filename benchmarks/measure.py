"""What the benchmarks share: timing in turns, peak memory in a process of its own, the machine."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Contender:
    """One way to do a piece of work.

    Args:
        run: does it and returns what is judged for accuracy.
        work: how much of it, in whatever the race counts; times are scaled to the whole.
        threads: of torch; None for libraries that have none.
        rounds: at most so many rounds, for the slow ones.
        reported: seconds as `run` itself measured them (a peer in another process), from its result.
    """

    run: Callable[[], Any]
    work: int
    threads: int | None = None
    rounds: int = 1_000
    reported: Callable[[Any], float] | None = None

    def timed(self) -> tuple[float, Any]:
        torch.set_num_threads(self.threads or 1)
        begin = time.perf_counter()
        result = self.run()
        taken = time.perf_counter() - begin
        return (taken if self.reported is None else self.reported(result)), result


def race(contenders: dict[str, Contender], repeats: int) -> tuple[dict[str, dict], dict[str, list[Any]]]:
    """All contenders in turns; the first round warms up.

    Returns:
        For each contender its times, scaled to the work of the first; and the results of its timed rounds.
    """
    whole = next(iter(contenders.values())).work
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    results: dict[str, list[Any]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, contender in contenders.items():
            if repeat > contender.rounds:
                continue
            taken, result = contender.timed()
            if repeat:
                seconds[name].append(taken * whole / contender.work)
                results[name].append(result)
    rows = {
        name: {
            "min_seconds": min(taken),
            "median_seconds": statistics.median(taken),
            "rounds": len(taken),
            "threads": contenders[name].threads or 1,
            "scaled_from": contenders[name].work,
            "scaled_to": whole,
        }
        for name, taken in seconds.items()
    }
    return rows, results


def at_threads(name: str, contender: Contender, most: int) -> dict[str, Contender]:
    """The contender on all threads and, beside it, on one."""
    counts = sorted({most, 1}, reverse=True)
    return {f"{name}, {n} thread{'s' * (n > 1)}": replace(contender, threads=n) for n in counts}


def peak_growth(run: Callable[[], Any]) -> int:
    """Bytes by which this process grows at most while `run` works."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc: what is free but kept would hide growth
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):  # Linux: the high-water mark starts anew
        Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    run()
    return max(0, _peak() - before)


def _peak() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def peak_in_child(script: str, *words: str, timeout: float = 120.0) -> dict:
    """`peak_growth` of one contender, measured by `script --peak WORDS` in a process of its own."""
    command = [sys.executable, script, "--peak", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"peak_memory_failed": f"no result within {timeout:g} s"}
    if done.returncode:
        return {"peak_memory_failed": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]}
    return {"peak_memory_mib": round(json.loads(done.stdout.splitlines()[-1]) / 2**20, 2)}


def command() -> str:
    """How this benchmark was called, but for where its record went."""
    words, out = [], False
    for word in sys.argv[1:]:
        if out or word == "--out" or word.startswith("--out="):
            out = word == "--out"
            continue
        words.append(word)
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def default_threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))


def machine() -> dict:
    found = {"platform": platform.platform(), "cores": os.cpu_count(), "load": os.getloadavg()}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def versions(*names: str) -> dict[str, str]:
    """Versions of what is installed; what is not is left out."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def show(title: str, rows: dict[str, dict], *columns: str) -> None:
    """A race on the terminal: times, and the named columns."""
    print(title)
    for name, row in rows.items():
        found = "  ".join(f"{column} {row[column]:.3g}" for column in columns if row.get(column) is not None)
        scaled = "" if row["scaled_from"] == row["scaled_to"] else f"  (scaled from {row['scaled_from']:,})"
        print(
            f"  {name:44} min {1e3 * row['min_seconds']:10.2f} ms  "
            f"median {1e3 * row['median_seconds']:10.2f} ms  {found}{scaled}"
        )


def write(record: dict, path: Path | None) -> None:
    if path:
        path.write_text(json.dumps(record, indent=1) + "\n")
