"""Where stacking pays: a step over width, batch and members, as one stack, in the blocks that the trainer takes, alone.

    python benchmarks/bench_stack_table.py [--out FILE.json] [--repeats N] [--threads N] [--device cpu|cuda]

Networks 20-w-w-1 under AdamW with clipping and NaN guard. Each number is the time of a step divided by the members
that it trains: of all members at once ("stack"), of a block of them as `Trainer` cuts it to the cache ("blocks"), and
of the loop written by hand (nn.Sequential, AdamW(fused=True), batches by index), which trains one. The three take
turns. Run it alone on an idle machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch

import qfml
from qfml.data import TimeDataset
from qfml.engine.block import Block
from qfml.engine.training import plan_blocks

WIDTHS, BATCHES, MEMBERS, N_FEATURES = (32, 64, 128, 256), (64, 256, 1024), (1, 4, 16, 64, 256), 20
MOST_BYTES = 6 * 2**30  # of activations and buffers: larger stacks are left out, and said so


def dataset(n_rows: int) -> TimeDataset:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_rows, N_FEATURES)).astype(np.float32)
    minutes = np.datetime64("2000-01-01T00:00") + np.arange(n_rows)
    return TimeDataset(X, np.tanh(X[:, 0]), time=minutes, label_end=minutes + 1)


def our_steps(ds: TimeDataset, width: int, batch: int, members: int, blocks: bool, device: str) -> tuple[Any, int]:
    """A function that takes one step, and the members that it trains."""
    trainer = qfml.Trainer(
        optimizer=qfml.AdamW(lr=1e-3), max_epochs=10**6, batch_size=batch, clip_norm=1.0, device=device
    )
    network = qfml.MLP(hidden=(width, width))
    everyone = [qfml.Member(network, np.arange(len(ds)), seed=seed) for seed in range(members)]
    own = plan_blocks(trainer, everyone, qfml.MSE(), ds)[0] if blocks else range(members)
    chosen = [everyone[place] for place in own]
    block = Block(trainer, chosen, qfml.MSE(), ds.to(device), *[lambda *_: False] * 3)
    return block.step, len(chosen)


def bare_steps(ds: TimeDataset, width: int, batch: int, device: str) -> Callable[[], None]:
    data = ds.to(device)
    layers = [torch.nn.Linear(N_FEATURES, width), torch.nn.ReLU(), torch.nn.Linear(width, width), torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers, torch.nn.Linear(width, 1)).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    rows = torch.randperm(len(ds)).to(device)[:batch]

    def step() -> None:
        optimizer.zero_grad()
        (network(data.features[rows]).squeeze(-1) - data.y[rows]).square().mean().backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None], n_steps: int, threads: int, device: str) -> float:
    torch.set_num_threads(threads)
    begin = time.perf_counter()
    for _ in range(n_steps):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / n_steps


def cell(width: int, batch: int, members: int, options: argparse.Namespace) -> dict[str, Any]:
    """Microseconds a member and step of the three, minimum and median."""
    parameters = N_FEATURES * width + width * width + 3 * width + 1
    flops = 6 * batch * parameters
    if members * 4 * (8 * parameters + 8 * batch * width) > MOST_BYTES:
        return {"left_out": f"more than {MOST_BYTES / 2**30:g} GiB"}
    ds = dataset(16 * batch)
    stack, size = our_steps(ds, width, batch, members, False, options.device)
    contenders = {"stack": (stack, size), "bare": (bare_steps(ds, width, batch, options.device), 1)}
    block, block_size = our_steps(ds, width, batch, members, True, options.device)
    if block_size < members:
        contenders["blocks"] = (block, block_size)
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(options.repeats + 1):
        for name, (step, trained) in contenders.items():
            n_steps = int(min(100, max(3, 2e9 / (flops * trained))))
            threads = options.threads if name == "bare" else min(options.threads, trained)  # as the trainer does
            found = seconds(step, n_steps, threads, options.device) / trained
            if repeat:  # the first round warms up
                taken[name].append(1e6 * found)
    rows = {name: {"min": min(own), "median": statistics.median(own)} for name, own in taken.items()}
    best = min(rows[name]["min"] for name in rows if name != "bare")
    return {"block": block_size, **rows, "times_bare_loop": rows["bare"]["min"] / best}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=measure.default_threads())
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    record: dict[str, Any] = {
        "benchmark": "A step over width, batch and members",
        "command": measure.command(),
        "unit": "microseconds a member and step",
        "machine_before": measure.machine(),
        "cases": [],
    }
    for width, batch, members in product(WIDTHS, BATCHES, MEMBERS):
        found = cell(width, batch, members, options)
        record["cases"].append({"width": width, "batch": batch, "members": members} | found)
        shown = {name: round(found[name]["min"], 1) for name in ("stack", "blocks", "bare") if name in found}
        print(f"width {width:4d}  batch {batch:5d}  members {members:4d}  {shown or found}", flush=True)
    record |= {"machine_after": measure.machine(), "versions": measure.versions("qfml", "torch")}
    measure.write(record, options.out)


if __name__ == "__main__":
    main()
