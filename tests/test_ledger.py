"""The trial ledger: what counts as a trial, and what survives writers at a time, kills and a full disk."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import qfml.ledger
from qfml import metrics
from qfml.errors import DataError
from qfml.ledger import Ledger, LedgerWarning, trial_hash

PACKAGE = Path(qfml.ledger.__file__).parent
MOMENTS = {"sharpe": 0.05, "n_obs": 500, "skew": -0.3, "kurtosis": 4.2}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "runs" / "ledger.jsonl")


def record(ledger: Ledger, trial: str, *, data: str = "data", config: str = "config", periods: float = 252, **moments):
    return ledger.record(
        data_hash=data, trial_hash=trial, config_hash=config, periods_per_year=periods, **(MOMENTS | moments)
    )


def python(script: str, *arguments: object, **options) -> subprocess.Popen:
    """Run a script that finds the ledger without loading the root of the library, which takes seconds."""
    root = f"import sys, types; sys.modules['qfml'] = q = types.ModuleType('qfml'); q.__path__ = [{str(PACKAGE)!r}]\n"
    return subprocess.Popen([sys.executable, "-c", root + script, *map(str, arguments)], text=True, **options)


# --- what counts ---------------------------------------------------------------------------------------------------


def test_an_entry_comes_back_exactly(ledger):
    written = record(ledger, "a", sharpe=0.1 + 0.2, skew=1 / 3, label="tänze\nüber zwei Zeilen")
    entries, damaged = ledger.entries()
    assert entries == [written]
    assert damaged == []
    assert ledger.path.read_bytes().count(b"\n") == 1


def test_no_file_is_no_trial(ledger):
    trials = ledger.trials("data")
    assert (trials.n_trials, trials.n_runs) == (0, 0)
    assert not ledger.path.exists()


def test_reruns_and_other_seeds_are_not_new_trials(ledger):
    record(ledger, "a", config="seed 0", sharpe=0.1)
    record(ledger, "b", config="b", sharpe=0.3)
    record(ledger, "a", config="seed 1", sharpe=0.2)
    trials = ledger.trials("data")
    assert (trials.n_trials, trials.n_runs) == (2, 3)
    assert [(entry.trial_hash, entry.sharpe) for entry in trials.entries] == [("a", 0.2), ("b", 0.3)]
    assert trials.variance == pytest.approx(0.005)  # of 0.2 and 0.3 at ddof 1: the latest of each


def test_data_sets_do_not_mix(ledger):
    record(ledger, "a", data="sp500")
    record(ledger, "a", data="nasdaq")
    record(ledger, "b", data="nasdaq")
    assert [ledger.trials(name).n_trials for name in ("sp500", "nasdaq", "dax")] == [1, 2, 0]


def test_a_trial_without_a_sharpe_ratio_counts_but_has_no_variance(ledger):
    record(ledger, "flat", sharpe=math.nan, skew=math.nan, kurtosis=math.nan)
    record(ledger, "a", sharpe=0.1)
    assert math.isnan(ledger.trials("data").variance)
    assert math.isnan(metrics.deflated_sharpe_from_trials(metrics.SharpeMoments(**MOMENTS), ledger.trials("data")))
    record(ledger, "b", sharpe=0.3)
    trials = ledger.trials("data")
    assert trials.n_trials == 3
    assert trials.variance == pytest.approx(0.02)
    for line in ledger.path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # NaN is no JSON


def test_frequencies_are_brought_together(ledger):
    """Monthly .2 and daily .05 are annual .69 and .79: nearly equal trials, not two that are .15 apart."""
    record(ledger, "monthly", periods=12, sharpe=0.2)
    record(ledger, "daily", periods=252, sharpe=0.05)
    annual = [0.2 * math.sqrt(12), 0.05 * math.sqrt(252)]
    expected = (annual[1] - annual[0]) ** 2 / 2 / 252
    assert ledger.trials("data").variance == pytest.approx(expected, rel=1e-12)


def test_deflated_sharpe_takes_its_trials_from_the_ledger(ledger):
    moments = metrics.SharpeMoments(**MOMENTS)
    with pytest.raises(DataError, match="record the run"):
        metrics.deflated_sharpe_from_trials(moments, ledger.trials("data"))
    record(ledger, "a")
    record(ledger, "a", config="another seed")
    one = metrics.deflated_sharpe_from_trials(moments, ledger.trials("data"))
    assert one == metrics.probabilistic_sharpe_ratio(*moments)
    record(ledger, "b", sharpe=0.01)
    record(ledger, "c", sharpe=-0.02)
    variance = ((0.05 - 0.04 / 3) ** 2 + (0.01 - 0.04 / 3) ** 2 + (-0.02 - 0.04 / 3) ** 2) / 2
    three = metrics.deflated_sharpe_from_trials(moments, ledger.trials("data"))
    assert three == pytest.approx(metrics.deflated_sharpe_ratio(*moments, n_trials=3, trial_variance=variance))
    assert three < one


def test_trial_hash_leaves_out_seeds_and_output_only():
    settings = {"lr": 0.1, "trainer": {"seed": 1, "epochs": 3}, "members": [{"seed": 4, "width": 8}], "report": True}
    expected = trial_hash(settings, ignore=["report"])
    same = {"report": False, "members": [{"width": 8, "seed": 9}], "trainer": {"epochs": 3, "seed": 7}, "lr": 0.1}
    assert trial_hash(same, ignore=["report"]) == expected
    for other in (
        settings | {"lr": 0.2},
        settings | {"trainer": {"seed": 1, "epochs": 4}},
        settings | {"members": [{"seed": 4, "width": 9}]},
        settings | {"n_seeds": 2},
    ):
        assert trial_hash(other, ignore=["report"]) != expected
    assert trial_hash(settings) != expected
    assert len(expected) == 16
    assert int(expected, 16) >= 0


def test_trial_hash_refuses_slips():
    with pytest.raises(DataError, match="names \\['reprot'\\]"):
        trial_hash({"report": 1}, ignore=["reprot"])
    with pytest.raises(DataError, match="plain JSON"):
        trial_hash({"path": Path("x")})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sharpe": math.inf}, "`sharpe` must be a finite number, got inf"),
        ({"periods": math.nan}, "`periods_per_year` must be a finite number"),
        ({"periods": 0}, "must be positive"),
        ({"n_obs": 0}, "must be positive"),
        ({"data": ""}, "`data_hash` must not be empty"),
    ],
)
def test_bad_entries_are_refused_before_anything_is_written(ledger, change, message):
    with pytest.raises(DataError, match=message):
        record(ledger, "a", **change)
    assert not ledger.path.exists()


# --- what survives -------------------------------------------------------------------------------------------------

WRITER = """
import sys
from qfml.ledger import Ledger
path, name, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
for i in range(n):
    Ledger(path).record(data_hash="data", trial_hash=f"{name}-{i}", config_hash="c", sharpe=0.1, n_obs=10, skew=0.0,
                        kurtosis=3.0, periods_per_year=252, label=name * 3000)
"""


def test_processes_and_threads_write_at_a_time(ledger):
    """Lines longer than a pipe's atomic write, from three processes and two threads, with readers in between."""
    writers = [python(WRITER, ledger.path, name, 15) for name in "pqr"]

    def write(name: str) -> None:
        for i in range(15):
            record(ledger, f"{name}-{i}", label=name * 9000)

    threads = [threading.Thread(target=write, args=(name,)) for name in "st"]
    for thread in threads:
        thread.start()
    seen = 0
    while any(writer.poll() is None for writer in writers):
        now = ledger.trials("data").n_trials  # a torn line would warn, and warnings are errors
        assert now >= seen
        seen = now
        time.sleep(0.01)
    for thread in threads:
        thread.join()
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    trials = ledger.trials("data")
    assert {entry.trial_hash for entry in trials.entries} == {f"{name}-{i}" for name in "pqrst" for i in range(15)}
    assert trials.n_runs == 75


KILLED_WRITER = """
import os, signal, sys, time
from qfml.ledger import Ledger
write = os.write
def torn_write(file, data):
    write(file, data[: len(data) // 2])
    print("torn", flush=True)
    time.sleep(60)
os.write = torn_write
Ledger(sys.argv[1]).record(data_hash="data", trial_hash="killed", config_hash="c", sharpe=0.1, n_obs=10, skew=0.0,
                           kurtosis=3.0, periods_per_year=252)
"""


def test_a_kill_in_the_middle_of_a_write_is_reported_and_harms_nothing_else(ledger):
    first = record(ledger, "first")
    writer = python(KILLED_WRITER, ledger.path, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "torn\n"
    writer.send_signal(signal.SIGKILL)  # it holds the lock and half a line is in the file
    writer.wait()
    writer.stdout.close()
    with pytest.warns(LedgerWarning, match=r"1 lines that are not entries, the first in line 2 .*killed"):
        trials = ledger.trials("data")
    assert trials.entries == (first,)
    second = record(ledger, "second")
    with pytest.warns(LedgerWarning, match="line 2"):
        trials = ledger.trials("data")
    assert trials.entries == (first, second)
    (damage,) = trials.damaged
    assert damage.line == 2
    assert damage.text.startswith('{"timestamp"')  # what is left of it is kept for a person to read
    assert "second" not in damage.text


def test_a_line_cut_at_any_byte_is_an_entry_or_is_reported(ledger):
    first, last = record(ledger, "first"), record(ledger, "last")
    whole = ledger.path.read_bytes()
    start = whole.index(b"\n") + 1
    for cut in range(start + 1, len(whole)):
        ledger.path.write_bytes(whole[:cut])
        entries, damaged = ledger.entries()
        complete = cut >= len(whole) - 1  # all but the line break
        assert entries == ([first, last] if complete else [first])
        assert len(damaged) == (0 if complete else 1)


def test_a_complete_line_without_its_break_is_kept_apart_from_the_next(ledger):
    first = record(ledger, "first")
    ledger.path.write_bytes(ledger.path.read_bytes().rstrip(b"\n"))
    second = record(ledger, "second")
    assert ledger.trials("data").entries == (first, second)


@pytest.mark.parametrize("line", ["[1, 2]", '{"sharpe": 1}', "null", "\x00\x00", "not json", '"text"'])
def test_foreign_lines_are_reported(ledger, line):
    first = record(ledger, "first")
    with ledger.path.open("a") as file:
        file.write(line + "\n")
    with pytest.warns(LedgerWarning, match="line 2"):
        assert ledger.trials("data").entries == (first,)


FULL_DISK = """
import resource, signal, sys
from qfml.ledger import Ledger
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
size = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
try:
    Ledger(sys.argv[1]).record(data_hash="data", trial_hash="x", config_hash="c", sharpe=0.1, n_obs=10, skew=0.0,
                               kurtosis=3.0, periods_per_year=252, label="x" * 9000)
except OSError as error:
    print(type(error).__name__)
"""


def test_a_full_disk_is_an_error_and_leaves_the_file_as_it_was(ledger):
    """The system itself cuts the write short after 100 bytes (a limit on the size of files)."""
    record(ledger, "first")
    before = ledger.path.read_bytes()
    writer = python(FULL_DISK, ledger.path, len(before) + 100, stdout=subprocess.PIPE)
    output, _ = writer.communicate()
    assert output == "OSError\n"
    assert ledger.path.read_bytes() == before


def test_an_entry_is_on_the_disk_before_record_returns(ledger, monkeypatch):
    synced = []
    fsync = os.fsync

    def watched(file: int) -> None:
        synced.append(ledger.path.read_text().count('"trial_hash": "a"'))
        fsync(file)

    monkeypatch.setattr(os, "fsync", watched)
    record(ledger, "a")
    assert synced == [1, 1]  # the file with the line in it, then the folder with the name of the new file
    record(ledger, "a")
    assert synced == [1, 1, 2]
