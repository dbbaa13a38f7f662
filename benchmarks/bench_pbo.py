"""Probability of backtest overfitting: block sums and one matrix product, beside a plain loop and purgedcv.

    python benchmarks/bench_pbo.py [--out FILE.json] [--repeats N] [--full-peer]

The contenders run in turns in one process, on the same returns. purgedcv needs most of a minute for 16 blocks of 100
configurations, so that it takes part at 10 blocks, and at 16 with --full-peer. Agreement is the largest difference of
any logit from those of the plain loop. Run it alone on an idle machine.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import purgedcv

from qfml.metrics import cscv

N_PERIODS, N_CONFIGS = 1600, 100
Contender = Callable[[np.ndarray, int], np.ndarray]


def ours(returns: np.ndarray, n_blocks: int) -> np.ndarray:
    return cscv(returns, n_blocks).logits


def plain_loop(returns: np.ndarray, n_blocks: int) -> np.ndarray:
    """One combination after another, all configurations of it at once: what one writes first in numpy."""
    blocks = np.array_split(np.arange(len(returns)), n_blocks)
    logits = []
    for chosen in itertools.combinations(range(n_blocks), n_blocks // 2):
        inside = np.concatenate([blocks[b] for b in chosen])
        outside = np.concatenate([blocks[b] for b in range(n_blocks) if b not in chosen])
        a, b = (returns[rows].mean(axis=0) / returns[rows].std(axis=0, ddof=1) for rows in (inside, outside))
        score = b[np.argmax(a)]
        w = (np.count_nonzero(b < score) + (np.count_nonzero(b == score) + 1) / 2) / (returns.shape[1] + 1)
        logits.append(np.log(w / (1 - w)))
    return np.array(logits)


def peer(returns: np.ndarray, n_blocks: int) -> np.ndarray:
    """purgedcv; it lists the halves out of sample first, which is the reverse order."""
    return purgedcv.probability_of_backtest_overfitting(returns.T, n_splits=n_blocks).logits[::-1]


def race(contenders: dict[str, Contender], n_blocks: int, repeats: int) -> dict:
    returns = np.random.default_rng(0).normal(0, 0.01, (N_PERIODS, N_CONFIGS))
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    logits: dict[str, np.ndarray] = {}
    for _ in range(repeats):
        for name, contender in contenders.items():
            start = time.perf_counter()
            logits[name] = contender(returns, n_blocks)
            seconds[name].append(time.perf_counter() - start)
    return {
        "n_periods": N_PERIODS,
        "n_configs": N_CONFIGS,
        "n_blocks": n_blocks,
        "n_combinations": len(logits["plain loop"]),
        "repeats": repeats,
        "contenders": {
            name: {
                "min_seconds": min(times),
                "median_seconds": statistics.median(times),
                "times_slower_than_qfml": min(times) / min(seconds["qfml"]),
                "pbo": float(np.mean(logits[name] <= 0)),
                "max_logit_difference": float(np.abs(logits[name] - logits["plain loop"]).max()),
            }
            for name, times in seconds.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of the small race; the large one has at most 3")
    parser.add_argument("--full-peer", action="store_true", help="purgedcv takes part at 16 blocks too")
    options = parser.parse_args()

    load_before = os.getloadavg()
    everyone: dict[str, Contender] = {"qfml": ours, "plain loop": plain_loop, "purgedcv": peer}
    without_peer = {name: contender for name, contender in everyone.items() if name != "purgedcv"}
    record = {
        "command": "python benchmarks/bench_pbo.py" + (" --full-peer" if options.full_peer else ""),
        "races": [
            race(everyone, n_blocks=10, repeats=options.repeats),
            race(everyone if options.full_peer else without_peer, n_blocks=16, repeats=min(options.repeats, 3)),
        ],
        "versions": {name: importlib.metadata.version(name) for name in ("qfml", "numpy", "purgedcv")}
        | {"python": platform.python_version()},
        "machine": {
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "threads": os.environ["OMP_NUM_THREADS"],
            "load_before": load_before,
            "load_after": os.getloadavg(),
        },
    }
    for result in record["races"]:
        print(f"{result['n_blocks']} blocks, {result['n_combinations']} combinations")
        for name, row in result["contenders"].items():
            print(
                f"  {name:<11} min {row['min_seconds']:8.3f} s  median {row['median_seconds']:8.3f} s  "
                f"{row['times_slower_than_qfml']:7.1f} x  logits differ by {row['max_logit_difference']:.1e}"
            )
    if options.out:
        options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
