"""The training engine beside plain PyTorch: a step of one member, and loading from memory.

    python benchmarks/bench_engine.py [--out FILE.json] [--repeats N] [--threads N]

Step: an MLP 20-64-64-1, batches of 256 out of 25,600 rows, ten epochs: ours with clipping and NaN guard beside a loop
written by hand (nn.Sequential, AdamW(fused=True), no clipping), which takes its batches by index, or as slices of the
rows shuffled once an epoch. A member of ours trains on one thread; the loops are run on all and on one. Loading: one
shuffled epoch of 256,000 rows in batches of 256, to the features and labels of each batch and nothing more, beside
slicing by hand and DataLoader(TensorDataset). The contenders run in turns in one process. Run it alone on an idle
machine.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import measure
import numpy as np
import torch
from measure import Contender, at_threads
from torch.utils.data import DataLoader, TensorDataset

import qfml
from qfml.data import TimeDataset
from qfml.engine.clock import Clock
from qfml.engine.feed import ResidentFeed
from qfml.engine.inputs import Inputs
from qfml.engine.sampling import Shuffled

N_FEATURES, BATCH, EPOCHS = 20, 256, 10
BARS = {"step over bare loop, at most": 1.05, "loading over DataLoader, at least": 30.0}


def dataset(n_rows: int) -> TimeDataset:
    generator = np.random.default_rng(0)
    X = generator.standard_normal((n_rows, N_FEATURES)).astype(np.float32)
    y = np.tanh(X[:, 0] * X[:, 1]) + 0.1 * generator.standard_normal(n_rows).astype(np.float32)
    minutes = np.datetime64("2000-01-01T00:00") + np.arange(n_rows)
    return TimeDataset(X, y, time=minutes, label_end=minutes + 1)


def our_steps(ds: TimeDataset) -> float:
    trainer = qfml.Trainer(optimizer=qfml.AdamW(lr=1e-3), max_epochs=EPOCHS, batch_size=BATCH, clip_norm=1.0)
    fit = trainer.fit(qfml.MLP(hidden=(64, 64)), qfml.MSE(), ds, train=np.arange(len(ds)))
    return fit.history[-1]["train_loss"]


def bare_steps(ds: TimeDataset, slices: bool = False) -> float:
    x, y = ds.features, ds.y
    generator = torch.Generator().manual_seed(0)
    layers = [torch.nn.Linear(N_FEATURES, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers, torch.nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    total = 0.0
    for _ in range(EPOCHS):
        order, total = torch.randperm(len(y), generator=generator), 0.0
        own_x, own_y = (x[order], y[order]) if slices else (x, y)
        for start in range(0, len(y), BATCH):
            rows = slice(start, start + BATCH) if slices else order[start : start + BATCH]
            optimizer.zero_grad()
            loss = (network(own_x[rows]).squeeze(-1) - own_y[rows]).square().mean()
            loss.backward()
            optimizer.step()
            total += loss.detach()
    return float(total) * BATCH / len(y)


def _shuffled(ds: TimeDataset, rows: np.ndarray, generator: torch.Generator) -> np.ndarray:
    return Shuffled().order(rows, ds, generator)


def our_loading(ds: TimeDataset) -> float:
    clock = Clock([np.arange(len(ds))], [(0, 0)], BATCH, partial(_shuffled, ds))
    feed, total = ResidentFeed(Inputs(ds, [None]), clock, None), 0
    for _ in range(int(clock.steps_per_epoch[0])):
        total += feed.next().x.shape[1]
        clock.advance()
    return total


def sliced_loading(ds: TimeDataset) -> float:
    order, total = torch.randperm(len(ds), generator=torch.Generator().manual_seed(0)), 0
    for start in range(0, len(ds), BATCH):
        rows = order[start : start + BATCH]
        x, _ = ds.features[rows], ds.y[rows]
        total += len(x)
    return total


def torch_loading(ds: TimeDataset) -> float:
    loader = DataLoader(TensorDataset(ds.features, ds.y), batch_size=BATCH, shuffle=True)
    return sum(len(x) for x, _ in loader)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=measure.default_threads())
    parser.add_argument("--rows", type=int, default=25_600, help="of the training; ten times as many are loaded")
    options = parser.parse_args()
    few, many = dataset(options.rows), dataset(10 * options.rows)
    n_steps = EPOCHS * -(-options.rows // BATCH)
    races = {
        "one member, a step": {
            "qfml": Contender(lambda: our_steps(few), n_steps, options.threads),
            **at_threads("bare loop", Contender(lambda: bare_steps(few), n_steps), options.threads),
            **at_threads("bare loop, slices", Contender(lambda: bare_steps(few, True), n_steps), options.threads),
        },
        "loading, an epoch": {
            "qfml": Contender(lambda: our_loading(many), len(many), options.threads),
            "slices by hand": Contender(lambda: sliced_loading(many), len(many), options.threads),
            "DataLoader(TensorDataset)": Contender(lambda: torch_loading(many), len(many), options.threads, rounds=3),
        },
    }
    record = {
        "benchmark": "The training engine beside plain PyTorch",
        "command": measure.command(),
        "machine_before": measure.machine(),
        "bars": BARS,
        "cases": {},
    }
    for case, racing in races.items():
        rows, results = measure.race(racing, options.repeats)
        ours = rows["qfml"]
        for name, row in rows.items():
            row["result"] = results[name][-1]  # the last training loss; rows loaded
            row["over_qfml_min"] = row["min_seconds"] / ours["min_seconds"]
            row["over_qfml_median"] = row["median_seconds"] / ours["median_seconds"]
            row["peak_memory_mib"] = round(measure.peak_growth(racing[name].run) / 2**20, 2)
            if case.startswith("one"):
                row["microseconds_a_step_min"] = 1e6 * row["min_seconds"] / n_steps
        record["cases"][case] = rows
        measure.show(case, rows, "over_qfml_min", "over_qfml_median", "microseconds_a_step_min", "result")
    record |= {"machine_after": measure.machine(), "versions": measure.versions("qfml", "torch")}
    measure.write(record, options.out)


if __name__ == "__main__":
    main()
