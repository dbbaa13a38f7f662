"""64 small networks (16 folds x 4 seeds): one stack beside a bare PyTorch loop, skorch, Lightning, and one at a time.

    python benchmarks/bench_stack.py [--out FILE.json] [--repeats N] [--threads N] [--epochs N]

Each network is a 20-32-32-1 MLP on 2,000 rows of its own fold, batches of 64, AdamW, no validation, the same number of
epochs. The contenders run in turns in one process; the peers on all threads and, beside it, on one, which our own loop
takes of itself. skorch and Lightning train `--peer-members` of the 64 one after another and are scaled to 64, since a
member's time does not depend on the number before it; the bare loop and our own loop train all 64. Accuracy is the
mean squared error on rows that no contender has seen, over the same 4 members. Run it alone on an idle machine.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import os
import platform
import statistics
import time
import warnings
from pathlib import Path

import lightning
import numpy as np
import skorch
import torch
from torch import nn

import qfml
from qfml.data import TimeDataset

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", type=Path)
parser.add_argument("--repeats", type=int, default=5)
parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--peer-members", type=int, default=4)
arguments = parser.parse_args()

N_FOLDS, N_SEEDS, N_ROWS, BATCH, N_FEATURES = 16, 4, 2000, 64, 20
N_MEMBERS = N_FOLDS * N_SEEDS
STEP = 100  # rows from one fold to the next
LR = 1e-3


def dataset() -> tuple[TimeDataset, np.ndarray]:
    """Rows for all folds and, at the end, 2,000 rows that none of them trains on."""
    rng = np.random.default_rng(0)
    n = N_ROWS + (N_FOLDS - 1) * STEP + 2000
    X = rng.standard_normal((n, N_FEATURES)).astype(np.float32)
    y = (np.tanh(X[:, 0] + X[:, 1] * X[:, 2]) + 0.5 * rng.standard_normal(n)).astype(np.float32)
    day = np.datetime64("2000-01-01") + np.arange(n)
    return TimeDataset(X, y, time=day, label_end=day + 1), np.arange(n - 2000, n)


def rows_of(member: int) -> np.ndarray:
    start = (member // N_SEEDS) * STEP
    return np.arange(start, start + N_ROWS)


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(N_FEATURES, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))


def stacked(ds: TimeDataset, test: np.ndarray, member_block: int | None = None) -> tuple[float, list[float]]:
    trainer = qfml.Trainer(
        optimizer=qfml.AdamW(lr=LR), max_epochs=arguments.epochs, batch_size=BATCH, member_block=member_block
    )
    members = [qfml.Member(qfml.MLP(hidden=(32, 32)), rows_of(m), seed=m) for m in range(N_MEMBERS)]
    begin = time.perf_counter()
    fits = trainer.fit_many(members, qfml.MSE(), ds)
    seconds = time.perf_counter() - begin
    y = ds.y[test].numpy()
    return seconds, [float(np.mean((fit.predict(ds, test) - y) ** 2)) for fit in fits[:4]]


def one_by_one(ds: TimeDataset, test: np.ndarray) -> tuple[float, list[float]]:
    return stacked(ds, test, member_block=1)


def bare(ds: TimeDataset, test: np.ndarray) -> tuple[float, list[float]]:
    """What one writes by hand: fused AdamW and sliced batches."""
    nets = []
    begin = time.perf_counter()
    for member in range(N_MEMBERS):
        model = net(member)
        optimizer = torch.optim.AdamW(model.parameters(), lr=LR, fused=True)
        rows = torch.from_numpy(rows_of(member))
        x, y = ds.features[rows], ds.y[rows][:, None]
        for _ in range(arguments.epochs):
            order = torch.randperm(N_ROWS)
            for start in range(0, N_ROWS, BATCH):
                batch = order[start : start + BATCH]
                loss = nn.functional.mse_loss(model(x[batch]), y[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        nets.append(model)
    seconds = time.perf_counter() - begin
    with torch.no_grad():
        return seconds, [float(nn.functional.mse_loss(m(ds.features[test])[:, 0], ds.y[test])) for m in nets[:4]]


def with_skorch(ds: TimeDataset, test: np.ndarray) -> tuple[float, list[float]]:
    errors, seconds = [], 0.0
    for member in range(arguments.peer_members):
        regressor = skorch.NeuralNetRegressor(
            net(member), max_epochs=arguments.epochs, batch_size=BATCH, lr=LR, optimizer=torch.optim.AdamW,
            optimizer__fused=True, train_split=None, verbose=0, iterator_train__shuffle=True,
        )  # fmt: skip
        rows = rows_of(member)
        X, y = ds.features[rows].numpy(), ds.y[rows].numpy()[:, None]
        begin = time.perf_counter()
        regressor.fit(X, y)
        seconds += time.perf_counter() - begin
        found = regressor.predict(ds.features[test].numpy())[:, 0]
        errors.append(float(np.mean((found - ds.y[test].numpy()) ** 2)))
    return seconds * N_MEMBERS / arguments.peer_members, errors


class Module(lightning.LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.model(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=LR, fused=True)


def with_lightning(ds: TimeDataset, test: np.ndarray) -> tuple[float, list[float]]:
    """Lightning without logger, checkpoints, bar and summary; its loader fetches whole batches."""
    errors, seconds = [], 0.0
    for member in range(arguments.peer_members):
        module = Module(net(member))
        rows = torch.from_numpy(rows_of(member))
        data = torch.utils.data.TensorDataset(ds.features[rows], ds.y[rows][:, None])
        begin = time.perf_counter()
        batches = torch.utils.data.BatchSampler(torch.utils.data.RandomSampler(data), BATCH, drop_last=False)
        loader = torch.utils.data.DataLoader(data, sampler=batches, batch_size=None)
        lightning.Trainer(
            max_epochs=arguments.epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        ).fit(module, loader)  # fmt: skip
        seconds += time.perf_counter() - begin
        with torch.no_grad():
            errors.append(float(nn.functional.mse_loss(module.model(ds.features[test])[:, 0], ds.y[test])))
    return seconds * N_MEMBERS / arguments.peer_members, errors


OURS = {"qfml, one stack": stacked, "qfml, one at a time": one_by_one}
PEERS = {"bare PyTorch loop": bare, "skorch": with_skorch, "Lightning": with_lightning}
# name -> what trains, threads, networks that it trains
CONTENDERS = {name: (contender, arguments.threads, N_MEMBERS) for name, contender in OURS.items()} | {
    f"{name}, {threads} thread{'s' * (threads > 1)}": (
        contender,
        threads,
        N_MEMBERS if contender is bare else arguments.peer_members,
    )
    for name, contender in PEERS.items()
    for threads in sorted({arguments.threads, 1}, reverse=True)
}


def main() -> None:
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    ds, test = dataset()
    load_before = os.getloadavg()
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    errors: dict[str, float] = {}
    for repeat in range(arguments.repeats + 1):
        for name, (contender, threads, _) in CONTENDERS.items():
            torch.set_num_threads(threads)
            taken, found = contender(ds, test)
            if repeat:  # the first round warms up
                seconds[name].append(taken)
            errors[name] = statistics.mean(found)
    best = min(seconds["qfml, one stack"])
    record = {
        "benchmark": "16 folds x 4 seeds of a 20-32-32-1 MLP, 2,000 rows each, batch 64",
        "command": f"python benchmarks/bench_stack.py --repeats {arguments.repeats} --threads {arguments.threads} "
        f"--epochs {arguments.epochs}",
        "epochs": arguments.epochs,
        "members": N_MEMBERS,
        "results": {
            name: {
                "seconds_min": min(taken),
                "seconds_median": statistics.median(taken),
                "times_slower_than_stack_min": min(taken) / best,
                "times_slower_than_stack_median": statistics.median(taken)
                / statistics.median(seconds["qfml, one stack"]),
                "microseconds_per_member_step": 1e6 * min(taken) / (N_MEMBERS * arguments.epochs * -(-N_ROWS // BATCH)),
                "mse_on_unseen_rows": errors[name],
                "threads": CONTENDERS[name][1],
                "scaled_from_members": CONTENDERS[name][2],
            }
            for name, taken in seconds.items()
        },
        "threads": arguments.threads,
        "load_before": load_before,
        "load_after": os.getloadavg(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in ("qfml", "torch", "skorch", "lightning", "numpy")},
    }
    for name, row in record["results"].items():
        print(
            f"{name:28} min {row['seconds_min']:7.3f} s  median {row['seconds_median']:7.3f} s  "
            f"{row['times_slower_than_stack_min']:6.1f} x the stack  MSE {row['mse_on_unseen_rows']:.4f}"
        )
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
