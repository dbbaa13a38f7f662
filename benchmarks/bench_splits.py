"""Purged splits of millions of rows, beside skfolio, timeseriescv and purgedcv; seconds, memory, and whether right.

    python benchmarks/bench_splits.py [--out FILE.json] [--repeats 3] [--timeout 120] [--scale 1]

Every measurement is a process of its own, libraries in turns: it builds the data, walks through all folds once ("cold":
first touch of the memory included) and, unless slow, three times more ("warm": the fastest of them). Memory is the peak
above what the process held before, the data included. Agreement is judged on 2,000 rows, split by split, against the
rule of docs/purging.md spelled out sample by sample: with labels of one length, and with labels of any length, which a
purge by a fixed number of rows cannot follow. Run it alone on an idle machine; it takes some ten minutes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time as clock
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

MINUTE = np.timedelta64(60_000_000_000, "ns")
HORIZON, EMBARGO = 20, 60  # minutes
SMALL = 2_000
Splits = Iterator[tuple[np.ndarray, np.ndarray]]


def minutes(n_rows: int, *, one_length: bool, shuffled: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Decision times a minute apart, and label ends at most HORIZON minutes later."""
    rng = np.random.default_rng(0)
    time = np.datetime64("2000-01-01", "ns") + np.arange(n_rows) * MINUTE
    label_end = time + (HORIZON if one_length else rng.integers(1, HORIZON + 1, n_rows)) * MINUTE
    order = rng.permutation(n_rows) if shuffled else slice(None)
    return time[order], label_end[order]


# --- contenders: (time, label_end) -> all (train, test), embargo included ------------------------------------------


def ours_combinatorial(time: np.ndarray, label_end: np.ndarray) -> Splits:
    from qfml.splits import CombinatorialPurgedKFold

    return CombinatorialPurgedKFold(10, 2, embargo=f"{EMBARGO}min").split(time=time, label_end=label_end)


def ours_kfold(time: np.ndarray, label_end: np.ndarray) -> Splits:
    from qfml.splits import PurgedKFold

    return PurgedKFold(5, embargo=f"{EMBARGO}min").split(time=time, label_end=label_end)


def skfolio_combinatorial(time: np.ndarray, label_end: np.ndarray) -> Splits:
    from skfolio.model_selection import CombinatorialPurgedCV

    # it counts rows: a label of h rows overlaps h - 1 rows on either side
    splitter = CombinatorialPurgedCV(10, 2, purged_size=HORIZON - 1, embargo_size=EMBARGO)
    return ((train, np.concatenate(test)) for train, test in splitter.split(time.reshape(-1, 1)))


def _timeseriescv(n_splits: int, n_test: int, time: np.ndarray, label_end: np.ndarray) -> Splits:
    import pandas as pd
    from timeseriescv.cross_validation import CombPurgedKFoldCV

    splitter = CombPurgedKFoldCV(n_splits, n_test, embargo_td=pd.Timedelta(minutes=EMBARGO))
    frame = pd.DataFrame({"x": np.zeros(time.size)})
    return splitter.split(frame, pred_times=pd.Series(time), eval_times=pd.Series(label_end))


def timeseriescv_combinatorial(time: np.ndarray, label_end: np.ndarray) -> Splits:
    return _timeseriescv(10, 2, time, label_end)


def timeseriescv_kfold(time: np.ndarray, label_end: np.ndarray) -> Splits:
    return _timeseriescv(5, 1, time, label_end)


def _purgedcv(name: str, sizes: tuple[int, ...], time: np.ndarray, label_end: np.ndarray) -> Splits:
    import pandas as pd
    import purgedcv

    times = {"prediction_times": pd.Series(time), "evaluation_times": pd.Series(label_end)}
    return getattr(purgedcv, name)(*sizes, **times, embargo=pd.Timedelta(minutes=EMBARGO)).split(time.reshape(-1, 1))


def purgedcv_combinatorial(time: np.ndarray, label_end: np.ndarray) -> Splits:
    return _purgedcv("CombinatorialPurgedCV", (10, 2), time, label_end)


def purgedcv_kfold(time: np.ndarray, label_end: np.ndarray) -> Splits:
    return _purgedcv("PurgedKFold", (5,), time, label_end)


Contender = Callable[[np.ndarray, np.ndarray], Splits]
COMBINATORIAL: dict[str, Contender] = {
    "qfml": ours_combinatorial,
    "skfolio": skfolio_combinatorial,
    "timeseriescv": timeseriescv_combinatorial,
    "purgedcv": purgedcv_combinatorial,
}
KFOLD: dict[str, Contender] = {"qfml": ours_kfold, "timeseriescv": timeseriescv_kfold, "purgedcv": purgedcv_kfold}
# case -> rows, n_folds, n_test_folds, shuffled, contenders; the peers take rows in order of time only
CASES: dict[str, tuple[int, int, int, bool, dict[str, Contender]]] = {
    "combinatorial (10, 2), 50,000 rows": (50_000, 10, 2, False, COMBINATORIAL),
    "combinatorial (10, 2), 1,000,000 rows": (10**6, 10, 2, False, COMBINATORIAL),
    "combinatorial (10, 2), 1,000,000 rows shuffled": (10**6, 10, 2, True, {"qfml": ours_combinatorial}),
    "purged 5-fold, 500,000 rows": (500_000, 5, 1, False, KFOLD),
    "purged 5-fold, 10,000,000 rows": (10**7, 5, 1, False, KFOLD),
    "purged 5-fold, 10,000,000 rows shuffled": (10**7, 5, 1, True, {"qfml": ours_kfold}),
}


# --- the rule, sample by sample ------------------------------------------------------------------------------------


def brute_force(time: np.ndarray, label_end: np.ndarray, n_folds: int, n_test: int) -> dict[tuple, list[int]]:
    """Test rows -> training rows of every split, by comparing each sample with each test block."""
    t, end = ((values.astype(np.int64) // 60_000_000_000).tolist() for values in (time, label_end))
    folds = [part.tolist() for part in np.array_split(np.argsort(time, kind="stable"), n_folds)]
    found = {}
    for chosen in itertools.combinations(range(n_folds), n_test):
        blocks: list[list[int]] = []
        for fold in chosen:
            if fold - 1 in chosen:
                blocks[-1] = blocks[-1] + folds[fold]
            else:
                blocks.append(folds[fold])
        test = tuple(sorted(itertools.chain(*blocks)))
        bounds = [(min(t[i] for i in block), max(end[i] for i in block)) for block in blocks]
        train = []
        for row in set(range(len(t))) - set(test):
            for first, last in bounds:
                if not (end[row] <= first if t[row] < first else t[row] >= last + EMBARGO):
                    break
            else:
                train.append(row)
        found[test] = sorted(train)
    return found


def agreement(contender: Contender, n_folds: int, n_test: int, *, one_length: bool, shuffled: bool) -> dict:
    """How many splits have exactly the training rows of the rule, and how far the others are off."""
    data = minutes(SMALL, one_length=one_length, shuffled=shuffled)
    rule = brute_force(*data, n_folds, n_test)
    n_right = too_many = too_few = 0
    for train, test in contender(*data):
        found, expected = set(train.tolist()), set(rule.get(tuple(sorted(test.tolist())), ()))
        n_right += found == expected
        too_many += len(found - expected)
        too_few += len(expected - found)
    return {"splits": len(rule), "right": n_right, "rows_leaked": too_many, "rows_lost": too_few}


# --- measuring -----------------------------------------------------------------------------------------------------


def measure(case: str, library: str, n_rows: int) -> dict:
    """In a process of its own: seconds for all folds, peak memory, agreement."""
    _, n_folds, n_test, shuffled, contenders = CASES[case]
    contender = contenders[library]
    right = {
        name: agreement(contender, n_folds, n_test, one_length=one_length, shuffled=shuffled)
        for name, one_length in (("labels of one length", True), ("labels of any length", False))
    }
    before = _peak_bytes()
    data = minutes(n_rows, one_length=False, shuffled=shuffled)
    seconds = []
    while len(seconds) < 4 and sum(seconds) < 10:
        start = clock.perf_counter()
        n_train = sum(train.size for train, _ in contender(*data))
        seconds.append(clock.perf_counter() - start)
    return {
        "cold_seconds": seconds[0],
        "warm_seconds": min(seconds[1:], default=None),
        "peak_mebibytes": (_peak_bytes() - before) / 2**20,
        "training_rows": int(n_train),
        "agreement": right,
    }


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def in_own_process(case: str, library: str, n_rows: int, timeout: float) -> dict:
    command = [sys.executable, __file__, "--one", case, library, str(n_rows)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"no result within {timeout:g} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"killed by signal {-done.returncode}"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def race(case: str, n_rows: int, repeats: int, timeout: float) -> dict:
    runs: dict[str, list[dict]] = {library: [] for library in CASES[case][4]}
    for _ in range(repeats):
        for library, so_far in runs.items():
            if not any("failed" in run for run in so_far):
                so_far.append(in_own_process(case, library, n_rows, timeout))
    return {"rows": n_rows} | {library: summary(found) for library, found in runs.items()}


def summary(runs: list[dict]) -> dict:
    if failed := [run for run in runs if "failed" in run]:
        return failed[0]
    cold = [run["cold_seconds"] for run in runs]
    warm = [run["warm_seconds"] for run in runs if run["warm_seconds"] is not None]
    return {
        "cold_seconds": {"min": min(cold), "median": statistics.median(cold)},
        "warm_seconds": {"min": min(warm), "median": statistics.median(warm)} if warm else None,
        "peak_mebibytes": statistics.median(run["peak_mebibytes"] for run in runs),
        "training_rows": runs[0]["training_rows"],
        "agreement": runs[0]["agreement"],
    }


def show(case: str, result: dict) -> None:
    print(case)
    for library, found in result.items():
        if library == "rows":
            continue
        if "failed" in found:
            print(f"  {library:13s} {found['failed']}")
            continue
        warm = f"{found['warm_seconds']['min']:8.3f} s" if found["warm_seconds"] else "      none"
        right = ", ".join(f"{name} {a['right']}/{a['splits']}" for name, a in found["agreement"].items())
        cold, memory = found["cold_seconds"]["min"], found["peak_mebibytes"]
        print(f"  {library:13s} cold {cold:8.3f} s, warm {warm}, {memory:7.0f} MiB; right: {right}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    parser.add_argument("--repeats", type=int, default=3, help="processes a library and case")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the rows, for a quick look")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds a process may take, data included")
    parser.add_argument("--one", nargs=3, metavar=("CASE", "LIBRARY", "ROWS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        case, library, n_rows = arguments.one
        print(json.dumps(measure(case, library, int(n_rows))))
        return

    record: dict = {
        "command": " ".join(["python", *sys.argv]),
        "started": clock.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "hardware": {"machine": platform.machine(), "system": platform.system(), "cores": os.cpu_count()},
        "threads": os.environ["OMP_NUM_THREADS"],
        "load_before": os.getloadavg(),
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in ("qfml", "numpy", "pandas", "skfolio", "timeseriescv", "purgedcv")},
        "settings": {"horizon_minutes": HORIZON, "embargo_minutes": EMBARGO, "repeats": arguments.repeats},
        "cases": {},
    }
    for case in CASES:
        n_rows = round(CASES[case][0] * arguments.scale)
        record["cases"][case] = race(case, n_rows, arguments.repeats, arguments.timeout)
        show(case, record["cases"][case])
    record["load_after"] = os.getloadavg()
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
