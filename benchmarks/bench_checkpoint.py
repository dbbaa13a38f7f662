"""Checkpoints: what writing one costs, and the share of a training that goes into them.

    python benchmarks/bench_checkpoint.py [--out FILE.json] [--repeats N] [--threads N]

Writing: a stack of 256 members (MLP 20-32-32-1, AdamW) with the histories of 100 epochs. "wait" is what the training
thread loses to the copy, "whole" the time until the checkpoint lies on the disk, flushed, renamed and read back; beside
them safetensors.torch.save_file of the same tensors, which neither hashes, flushes nor reads back. Share: the same
members trained with checkpoints as often as the rule allows and without any, in turns. Run it alone on an idle machine.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import measure
import numpy as np
import safetensors.torch
import torch
from bench_engine import dataset
from measure import Contender

import qfml
from qfml.data import TimeDataset
from qfml.engine.block import Block
from qfml.engine.callbacks import Callback
from qfml.engine.saving import Saver

BATCH, N_MEMBERS, N_HISTORY = 64, 256, 100
BARS = {"a checkpoint of 256 members, milliseconds, at most": 100.0, "share of a training, at most": 0.05}


def members(ds: TimeDataset) -> list[qfml.Member]:
    cut = 4 * len(ds) // 5
    network = qfml.MLP(hidden=(32, 32))
    return [qfml.Member(network, np.arange(cut), np.arange(cut, len(ds)), seed=i) for i in range(N_MEMBERS)]


def snapshot(ds: TimeDataset) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What a checkpoint of the stack consists of, after some steps, with long histories."""
    trainer = qfml.Trainer(max_epochs=N_HISTORY, batch_size=BATCH, member_block=N_MEMBERS)
    block = Block(trainer, members(ds), qfml.MSE(), ds, lambda *_: False, lambda *_: None, lambda *_: None)
    for _ in range(3):
        block.step()
    numbers = np.random.default_rng(0).random((N_MEMBERS, N_HISTORY, 2)).tolist()
    histories = [[{"epoch": e + 1, "train_loss": a, "val_loss": b} for e, (a, b) in enumerate(own)] for own in numbers]
    counters = block.counters() | {"histories": histories, "ids": list(range(N_MEMBERS)), "shapes": block.layout.shapes}
    tensors = {f"0.{name}": value for name, value in block.tensors().items()}
    return tensors, {"fingerprint": "", "blocks": [counters]}


class Count(Callback):
    """How many checkpoints were written."""

    def __init__(self) -> None:
        self.n = 0

    def checkpoint(self, folder: Path) -> None:
        self.n += 1


def trained(ds: TimeDataset, n_epochs: int, checkpoints: bool) -> int:
    """Train the stack; returns the number of checkpoints."""
    trainer = qfml.Trainer(max_epochs=n_epochs, batch_size=BATCH, checkpoint_seconds=0.0)
    count = Count()
    with tempfile.TemporaryDirectory() as folder:
        place = folder if checkpoints else None
        trainer.fit_many(members(ds), qfml.MSE(), ds, callbacks=[count], checkpoint_dir=place)
    return count.n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=measure.default_threads())
    parser.add_argument("--rows", type=int, default=6_400)
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    ds = dataset(options.rows)
    before = measure.machine()
    tensors, state = snapshot(ds)
    waits: list[float] = []
    with tempfile.TemporaryDirectory() as folder, Saver(Path(folder) / "ours", 0.0, 2) as saver:

        def whole() -> float:
            begin = time.perf_counter()
            saver.begin(tensors, state, {})
            waits.append(time.perf_counter() - begin)
            saver.written(wait=True)
            return waits[-1]

        def library() -> float:
            safetensors.torch.save_file(tensors, Path(folder) / "library.safetensors")
            return 0.0

        writing, _ = measure.race(
            {
                "qfml, whole": Contender(whole, 1, options.threads),
                "save_file, tensors alone": Contender(library, 1, options.threads),
            },
            options.repeats,
        )
    ours = writing["qfml, whole"]
    ours["training_waits_milliseconds"] = 1e3 * sorted(waits[1:])[len(waits[1:]) // 2]
    ours["megabytes"] = sum(value.numel() * value.element_size() for value in tensors.values()) / 1e6
    measure.show("a checkpoint of 256 members", writing, "training_waits_milliseconds", "megabytes")
    share, results = measure.race(
        {
            "with checkpoints": Contender(lambda: trained(ds, options.epochs, True), 1, options.threads),
            "without": Contender(lambda: trained(ds, options.epochs, False), 1, options.threads),
        },
        max(2, options.repeats // 3),
    )
    added = share["with checkpoints"]["min_seconds"] / share["without"]["min_seconds"] - 1
    share["with checkpoints"] |= {"added_share": added, "checkpoints": results["with checkpoints"][-1]}
    measure.show("a training", share, "added_share", "checkpoints")
    record = {
        "benchmark": "Checkpoints of a stack",
        "command": measure.command(),
        "machine_before": before,
        "bars": BARS,
        "cases": {"a checkpoint of 256 members": writing, "a training": share},
        "machine_after": measure.machine(),
        "versions": measure.versions("qfml", "torch", "safetensors"),
    }
    measure.write(record, options.out)


if __name__ == "__main__":
    main()
