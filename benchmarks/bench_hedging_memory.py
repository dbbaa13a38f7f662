"""Memory of one gradient of a hedging policy by the number of dates, with checkpointing and without.

    python benchmarks/bench_hedging_memory.py [--out FILE.json] [--dates 64 256 1024 4096]

128 paths, four layers of 32 or a GRU of 32, float32. Each row is a process of its own: the growth of its largest
resident memory while one gradient is taken, the paths already there. Holdings of all dates are kept in any case.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace
from pathlib import Path

import measure
import torch

from qfml.hedging import FeedForward, Policy, Recurrent

PATHS, NAMES = 128, ("log_moneyness", "time_to_horizon", "call_delta")
POLICIES: dict[str, Policy] = {
    "feed_forward": FeedForward(),
    "recurrent": Recurrent(),
}
DATES = (64, 256, 1024, 4096)
WAYS = {"whole": False, "checkpoint": True}


def growth(name: str, way: str, n_dates: int) -> int:
    """Bytes by which the process grows while one gradient is taken."""
    policy = replace(POLICIES[name], checkpoint=WAYS[way], feature_names=NAMES)
    drawn = policy.init(len(NAMES), n_dates + 1, torch.Generator().manual_seed(0), n_dates + 1)
    parameters = {key: value[None].requires_grad_() for key, value in drawn.items()}
    x = torch.randn(1, PATHS, n_dates + 1, len(NAMES), generator=torch.Generator().manual_seed(1))

    def run() -> None:
        torch.autograd.grad(policy.forward(parameters, x).square().mean(), list(parameters.values()))

    return measure.peak_growth(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    parser.add_argument("--dates", type=int, nargs="+", default=DATES)
    parser.add_argument("--peak", nargs=3, metavar=("POLICY", "WAY", "DATES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        torch.set_num_threads(1)
        name, way, n_dates = options.peak
        growth(name, way, 4)  # what the first call of all loads
        print(growth(name, way, int(n_dates)))
        return
    rows = {}
    for name, way, n_dates in itertools.product(POLICIES, WAYS, options.dates):
        row = measure.peak_in_child(__file__, name, way, str(n_dates), timeout=600.0)
        rows[f"{name}, {way}, {n_dates} dates"] = row
        print(f"  {f'{name}, {way}':28} {n_dates:6} dates  {row}", flush=True)
    record = {
        "benchmark": "hedging_memory",
        "command": measure.command(),
        "machine": measure.machine(),
        "versions": measure.versions("torch"),
        "problem": {"paths": PATHS, "features": len(NAMES)},
        "rows": rows,
    }
    measure.write(record, options.out)


if __name__ == "__main__":
    main()
