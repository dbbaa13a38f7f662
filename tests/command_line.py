"""The command line under test: small configs, and `qfml`, which runs it in processes of its own.

Each call is a process with its own exit code, output and signals. Loading torch takes seconds, so one server process
loads the library once and forks a child for every call. The library is loaded there as users load it, without the
run-time checks of conftest.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "COLUMNS": "80"}
PATIENCE = 120.0  # seconds until a wait for another process is given up as hanging


# ---- processes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Completed:
    """A process that has ended: negative `code` for a signal that killed it."""

    code: int
    out: str
    err: str


class Started:
    """A process that runs."""

    def __init__(self, server: subprocess.Popen[str], pid: int, folder: Path) -> None:
        self.server, self.pid, self.folder = server, pid, folder

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)  # the server has not waited for it yet: the number is not another process's

    def wait(self) -> Completed:
        code = _ask(self.server, {"wait": self.pid})
        return Completed(code, (self.folder / "out").read_text(), (self.folder / "err").read_text())


# The tear sheet takes longer than all the rest of a small run and has tests of its own.
NO_SHEET = """
import qfml.report.walk_forward as page
from qfml.report.tearsheet import Tearsheet
page.write_tearsheet = lambda run: Tearsheet(None, ("left out in this test",))
"""


def qfml(*arguments: object, cwd: Path, before: str = "", sheet: bool = False) -> Completed:
    """Run `qfml ARGUMENTS` in `cwd`; the Python code `before` is executed in that process first."""
    return start(*arguments, cwd=cwd, before=before, sheet=sheet).wait()


def python(code: str, *, cwd: Path) -> Completed:
    """Run a script in `cwd`, where the library is as its users have it."""
    return start(cwd=cwd, before=f"{code}\nraise SystemExit", sheet=True).wait()


def start(*arguments: object, cwd: Path, before: str = "", sheet: bool = False) -> Started:
    before = before if sheet else NO_SHEET + before
    server = _server()
    folder = Path(tempfile.mkdtemp(dir=_scratch()))
    request = {"arguments": [str(word) for word in arguments], "cwd": str(cwd), "before": before, "to": str(folder)}
    return Started(server, _ask(server, request), folder)


def wait_until(condition: Any) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@functools.cache
def _scratch() -> str:
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return folder.name


@functools.cache
def _server() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-P", __file__],  # without this folder on the path, which has one called `pricers`
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    )
    atexit.register(_stop, process)
    return process


def _stop(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def _ask(server: subprocess.Popen[str], request: Mapping[str, Any]) -> int:
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return int(server.stdout.readline())


def _serve() -> None:
    import matplotlib.pyplot  # noqa: F401  (what the report would import in every child)
    import plotly.graph_objects  # noqa: F401
    import quantstats  # noqa: F401

    import qfml.cli

    answers = os.fdopen(os.dup(1), "w")
    while line := sys.stdin.readline():
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        elif (answer := os.fork()) == 0:
            code = _live(request, qfml.cli.main)
            os._exit(code)  # taking torch down in good order would cost more than most calls
        answers.write(f"{answer}\n")
        answers.flush()


def _live(request: Mapping[str, Any], main: Callable[[], None]) -> int:
    """What the interpreter does with a program, and its exit code."""
    try:
        _become(request)
        main()
        return 0
    except SystemExit as end:
        return 0 if end.code is None else end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _become(request: Mapping[str, Any]) -> None:
    for descriptor, name, flags in ((0, os.devnull, os.O_RDONLY), (1, "out", os.O_WRONLY), (2, "err", os.O_WRONLY)):
        file = os.open(Path(request["to"], name), flags | os.O_CREAT)  # an absolute name stands for itself
        os.dup2(file, descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    sys.argv = ["qfml", *request["arguments"]]
    sys.modules["__main__"] = program = types.ModuleType("__main__")
    exec(request["before"], vars(program))


# ---- inputs ---------------------------------------------------------------------------------------------------------


def prices(n: int = 420, seed: int = 0, start: str = "2015-01-01") -> pl.DataFrame:
    """Synthetic daily prices: time, close and volume."""
    rng = np.random.default_rng(seed)
    days = np.busday_offset(start, np.arange(n), roll="forward")
    close = 100 * np.exp(np.cumsum(rng.normal(2e-4, 0.01, n)))
    volume = rng.integers(1000, 2000, n).astype(float)
    return pl.DataFrame({"time": pl.Series(days.astype("datetime64[ms]")).dt.date(), "close": close, "volume": volume})


def panel(names: str = "ABC", n: int = 420) -> pl.DataFrame:
    """Several assets under the column `ticker`; the last misses some days."""
    frames = [prices(n, seed=i).with_columns(ticker=pl.lit(name)) for i, name in enumerate(names)]
    frames[-1] = frames[-1].filter(~pl.int_range(pl.len()).is_in([60, 200, 201, n - 9]))
    return pl.concat(frames)


def settings(**sections: Any) -> dict[str, Any]:
    """A small config that reads `prices.csv`; each of `sections` replaces one or is merged into it."""
    base: dict[str, Any] = {
        "task": "walk_forward",
        "name": "small",
        "data": {
            "source": {"kind": "csv", "path": "prices.csv"},
            "missing": {"kind": "error"},
            "features": [{"kind": "log_returns", "horizons": [1, 5]}, {"kind": "rsi", "period": 5}],
            "label": {"kind": "forward_return", "horizon": 2, "delay": 1},
        },
        "split": {"kind": "walk_forward", "train_size": 200, "test_size": 100},
        "transforms": [{"kind": "standardise"}],
        "network": {"kind": "mlp", "hidden": [8]},
        "loss": {"kind": "mse"},
        "trainer": {"max_epochs": 3, "batch_size": 64, "optimizer": {"kind": "adamw", "lr": 1e-2}},
        "n_seeds": 2,
        "validation": 0.2,
        "backtest": {"positions": {"kind": "vol_target", "window": 20}, "cost_bps": 1.0, "n_bootstrap": 50},
        "ledger": "ledger.jsonl",
    }
    for name, section in sections.items():
        old = base.get(name)
        merge = isinstance(old, dict) and isinstance(section, dict) and "kind" not in section
        base[name] = {**old, **section} if merge else section  # pyright: ignore[reportGeneralTypeIssues]
    return base


def workplace(folder: Path, frame: pl.DataFrame | None = None, **sections: Any) -> Path:
    """Write `prices.csv` and `config.yaml` into `folder`; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (prices() if frame is None else frame).write_csv(folder / "prices.csv")
    (folder / "config.yaml").write_text(yaml.safe_dump(settings(**sections)))
    return folder


@contextlib.contextmanager
def edited(path: Path) -> Iterator[bytearray]:
    """The bytes of a file to change in place; written back at the end."""
    content = bytearray(path.read_bytes())
    yield content
    path.write_bytes(content)


if __name__ == "__main__":
    _serve()
