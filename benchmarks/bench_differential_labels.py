"""What derivatives of Monte Carlo labels are worth: the error of a surrogate with and without them, by labels and time.

    python benchmarks/bench_differential_labels.py [--out FILE.json] [--paths N] [--sizes N ...] [--draws N]

An Asian option with a barrier on its twelve monthly fixings under Heston; model, rate, strike and barrier vary. The
same labels (noise of their own, `--paths` paths each) train the same networks twice: on values alone, and on values and
pathwise derivatives. Both make the same number of updates. The error is that of fresh points against prices from
`--test-paths` paths, whose own noise is subtracted. For each size of the plain one the table tells how many labels with
derivatives reach its error for good (interpolated between sizes on a log-log scale), and how the whole times compare:
making the labels and training. Errors are root mean squares over `--draws` sets of labels that share none, or as many
as there are. Beside it, on exact labels (European calls by Fourier, gradients by automatic differentiation), the errors
with and without derivatives. Run it alone on an idle machine.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from measure import command, default_threads, machine, versions, write

from qfml.engine import Cosine, Muon, Trainer
from qfml.networks import MLP
from qfml.surrogate.box import Range
from qfml.surrogate.fitting import fit_surrogate
from qfml.surrogate.labels import LabelTable, make_labels, read_labels
from qfml.surrogate.problem import Problem
from qfml.surrogate.settings import FourierLabels, LabelSettings, MonteCarloLabels
from qfml.surrogate.simulated_labels import simulated_labels
from qfml.surrogate.training import SurrogateTraining

N_DATES = 12
HESTON = {
    "v0": Range(0.01, 0.16),
    "kappa": Range(0.5, 5.0),
    "theta": Range(0.01, 0.16),
    "sigma": Range(0.1, 1.0),
    "rho": Range(-0.9, 0.0),
    "strike": Range(0.8, 1.2),
}
EXACT = Problem(
    model={"kind": "heston"},
    instrument={"kind": "european", "expiry": 1.0, "option": "call"},
    market={"spot": 1.0},
    box=HESTON,
    target="price",
)
PROBLEM = Problem(
    model={"kind": "heston"},
    instrument={
        "kind": "asian_barrier",
        "times": [month / 12 for month in range(1, N_DATES + 1)],
        "asian_barrier_kind": "up-out",
        "option": "call",
    },
    market={"spot": 1.0},
    box=HESTON | {"rate": Range(0.0, 0.06), "barrier": Range(1.25, 1.8)},
    target="price",
)

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", type=Path)
parser.add_argument("--threads", type=int, default=default_threads())
parser.add_argument("--paths", type=int, default=64)
parser.add_argument("--steps", type=int, default=48)
parser.add_argument("--sizes", type=int, nargs="+", default=[500, 1000, 2500, 5000, 10_000, 25_000, 50_000])
parser.add_argument("--draws", type=int, default=3, help="sets of labels of each size, where there are so many")
parser.add_argument("--updates", type=int, default=4000)
parser.add_argument("--width", type=int, default=64)
parser.add_argument("--balance", type=float, default=1.0)  # of a derivative beside the value, in units of their noise
parser.add_argument("--exact-sizes", type=int, nargs="+", default=[1000, 4000])
parser.add_argument("--exact-balance", type=float, default=0.1, help="of a derivative, in units of its size")
parser.add_argument("--seeds", type=int, default=2)
parser.add_argument("--test-points", type=int, default=1024)
parser.add_argument("--test-paths", type=int, default=2**14)


def labelled(n: int, gradients: bool, arguments: argparse.Namespace) -> tuple[LabelTable, float]:
    """A table of labels and the seconds it took."""
    settings = LabelSettings(
        n, seed=1, engine=MonteCarloLabels(arguments.paths, arguments.steps), gradients=gradients, shard_size=2048
    )
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        paths = make_labels(PROBLEM, settings, folder, workers=1)
        seconds = time.perf_counter() - begin
        return read_labels(paths[0].parent), seconds


def test_set(arguments: argparse.Namespace) -> tuple[Tensor, Tensor, float]:
    """Fresh points, their prices, and the root mean square standard error of those."""
    settings = LabelSettings(arguments.test_points, seed=2, engine=MonteCarloLabels(16, arguments.steps))
    with tempfile.TemporaryDirectory() as folder:
        inputs = read_labels(make_labels(PROBLEM, settings, folder, workers=1)[0].parent).inputs
    accurate = simulated_labels(PROBLEM, inputs, arguments.test_paths, arguments.steps, seed=3, gradients=False)
    return inputs, accurate.value, float(accurate.std_error.square().mean().sqrt())


def trained_error(
    table: LabelTable, twin: float | None, arguments: argparse.Namespace, test: tuple[Tensor, Tensor, float]
) -> dict[str, float]:
    """Error on the fresh points, in basis points of spot, and the seconds of training."""
    batch = min(256, len(table) // 4)
    epochs = max(1, round(arguments.updates * batch / len(table)))
    settings = SurrogateTraining(
        trainer=Trainer(
            max_epochs=epochs,
            batch_size=batch,
            optimizer=Muon(lr=1e-2, weight_decay=0.0),
            schedule=Cosine(),
        ),
        network=MLP(hidden=(arguments.width,) * 3, activation="silu"),
        n_seeds=arguments.seeds,
        combine="mean",
        validation_share=0.1,
        twin=twin,
    )
    begin = time.perf_counter()
    surrogate = fit_surrogate(table.problem, table, settings)
    seconds = time.perf_counter() - begin
    inputs, price, noise = test
    squared = float((surrogate.predict(inputs).value.double() - price).square().mean()) - noise**2
    return {"rmse_bps": 1e4 * math.sqrt(max(squared, 0.0)), "training_seconds": seconds}


def on_exact_labels(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Errors of both ways on labels without noise."""

    def made(n: int, seed: int) -> LabelTable:
        settings = LabelSettings(n, seed=seed, engine=FourierLabels(), gradients=True)
        with tempfile.TemporaryDirectory() as folder:
            return read_labels(make_labels(EXACT, settings, folder, workers=1)[0].parent)

    fresh, table = made(arguments.test_points, seed=2), made(max(arguments.exact_sizes), seed=1)
    test, rows = (fresh.inputs, fresh.value, 0.0), []
    for size in arguments.exact_sizes:
        part, row = table.rows(torch.arange(size)), {"labels": size}
        for name, twin in (("plain", None), ("differential", arguments.exact_balance)):
            row[name] = trained_error(part, twin, arguments, test)
        rows.append(row)
        told = " and ".join(f"{name} {row[name]['rmse_bps']:.2f} bps" for name in ("plain", "differential"))
        print(f"{size:>7} exact labels: {told}", flush=True)
    return rows


def interpolated(sizes: list[float], errors: list[float], wanted: float) -> float | None:
    """Size from which on the error stays at or below `wanted`, on a log-log scale; None beyond the ends."""
    falling = np.maximum.accumulate(errors[::-1])[::-1]
    if not falling[-1] <= wanted <= falling[0]:
        return None
    return float(np.exp(np.interp(-math.log(wanted), -np.log(falling), np.log(sizes))))


def compared(rows: list[dict[str, Any]]) -> None:
    """For each row of the plain one: labels and seconds of the differential one that reach its error."""
    sizes = [row["labels"] for row in rows]
    errors = [row["differential"]["rmse_bps"] for row in rows]
    seconds = [row["differential"]["total_seconds"] for row in rows]
    for row in rows:
        wanted = row["plain"]["rmse_bps"]
        for name, scale, own in (("labels", sizes, row["labels"]), ("time", seconds, row["plain"]["total_seconds"])):
            enough = interpolated(scale, errors, wanted)
            row[f"times_fewer_{name}" if name == "labels" else "times_less_time"] = enough and own / enough
        if wanted > max(errors):  # fewer than the smallest set would do
            row["times_fewer_labels_at_least"] = row["labels"] / sizes[0]


def main() -> None:
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sizes = sorted(arguments.sizes)
    test = test_set(arguments)
    table, seconds_with = labelled(sizes[-1], True, arguments)
    _, seconds_without = labelled(sizes[-1], False, arguments)
    rows: list[dict[str, Any]] = []
    for size in sizes:
        draws = [torch.arange(i * size, (i + 1) * size) for i in range(min(arguments.draws, sizes[-1] // size))]
        row: dict[str, Any] = {"labels": size, "draws": len(draws)}
        ways = (("plain", None, seconds_without), ("differential", arguments.balance, seconds_with))
        for name, twin, seconds in ways:
            found = [trained_error(table.rows(draw), twin, arguments, test) for draw in draws]
            errors = [one["rmse_bps"] for one in found]
            training = sum(one["training_seconds"] for one in found) / len(found)
            label_seconds = seconds * size / sizes[-1]
            row[name] = {
                "rmse_bps": math.sqrt(sum(error**2 for error in errors) / len(errors)),
                "rmse_bps_of_draws": errors,
                "training_seconds": training,
                "label_seconds": label_seconds,
                "total_seconds": label_seconds + training,
            }
        rows.append(row)
        print(
            f"{size:>7} labels: plain {row['plain']['rmse_bps']:6.2f} bps in {row['plain']['total_seconds']:6.1f} s, "
            f"differential {row['differential']['rmse_bps']:6.2f} bps in {row['differential']['total_seconds']:6.1f} s",
            flush=True,
        )
    compared(rows)
    record = {
        "problem": "up-and-out Asian call on twelve fixings under Heston, eight inputs",
        "paths_of_a_label": arguments.paths,
        "steps": arguments.steps,
        "label_noise_bps": 1e4 * float(table.std_error.square().mean().sqrt()),
        "test_noise_bps": 1e4 * test[2],
        "typical_price_bps": 1e4 * float(test[1].mean()),
        "labels_per_second": {"plain": sizes[-1] / seconds_without, "differential": sizes[-1] / seconds_with},
        "updates": arguments.updates,
        "balance": arguments.balance,
        "rows": rows,
        "exact_balance": arguments.exact_balance,
        "rows_on_exact_labels": on_exact_labels(arguments),
        "command": command(),
        "machine": machine() | {"threads": arguments.threads},
        "versions": versions("torch", "numpy"),
    }
    write(record, arguments.out)
    for row in rows:
        if row["times_fewer_labels"]:
            print(
                f"the plain error of {row['labels']} labels: {row['times_fewer_labels']:.1f} times fewer labels, "
                f"{row['times_less_time'] or math.nan:.1f} times less time with derivatives"
            )


if __name__ == "__main__":
    main()
