"""Sequential bootstrap of 10,000 overlapping labels: seconds, and that the draws are what they should be.

Run alone: python benchmarks/bench_sequential_bootstrap.py [--out FILE.json] [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time as clock
from pathlib import Path

import numpy as np

from qfml.data.bootstrap import sequential_bootstrap
from qfml.data.weights import average_uniqueness

N_LABELS = 10_000
N_SAMPLES = 80
N_SPARSE = 500  # draws of the uniqueness check: so many of all labels that most bars are drawn about once


def cases() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Labels on 10,000 bars whose ends differ from row to row; the last case has a few that span most of the data."""
    rng = np.random.default_rng(0)
    time = np.arange(N_LABELS)
    found = {f"up to {2 * h} bars": (time, time + rng.integers(1, 2 * h + 1, N_LABELS)) for h in (5, 10, 50)}
    long = np.where(rng.random(N_LABELS) < 0.001, 8000, rng.integers(1, 21, N_LABELS))
    return found | {"up to 20 bars, 0.1 % of 8,000": (time, time + long)}


def measure(time: np.ndarray, label_end: np.ndarray, repeats: int) -> dict[str, float]:
    seconds = []
    for seed in range(repeats):
        start = clock.perf_counter()
        sequential_bootstrap(time, label_end, seed=seed)
        seconds.append(clock.perf_counter() - start)
    rng = np.random.default_rng(1)

    def uniqueness(rows: np.ndarray) -> float:
        return float(average_uniqueness(time[rows], label_end[rows]).mean())

    sequential = [uniqueness(sequential_bootstrap(time, label_end, seed=rng, size=N_SPARSE)) for _ in range(N_SAMPLES)]
    independent = [uniqueness(rng.integers(0, N_LABELS, N_SPARSE)) for _ in range(N_SAMPLES)]
    error = ((np.var(sequential, ddof=1) + np.var(independent, ddof=1)) / N_SAMPLES) ** 0.5
    return {
        "min_seconds": min(seconds),
        "median_seconds": statistics.median(seconds),
        "sequential_uniqueness": statistics.mean(sequential),
        "independent_uniqueness": statistics.mean(independent),
        "standard_errors_apart": float((np.mean(sequential) - np.mean(independent)) / error),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the record here as JSON")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    results = {name: measure(*labels, arguments.repeats) for name, labels in cases().items()}
    record = {
        "benchmark": "sequential_bootstrap",
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "n_labels": N_LABELS,
        "n_draws": N_LABELS,
        "repeats": arguments.repeats,
        "results": results,
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "machine": {"processor": platform.machine(), "cpus": os.cpu_count(), "load": os.getloadavg()[0]},
    }
    for name, result in results.items():
        print(f"{name:32s} " + "  ".join(f"{key} {value:.4g}" for key, value in result.items()))
        if result["standard_errors_apart"] < 4:
            raise SystemExit(f"{name}: sequential draws are not more unique than independent ones")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
