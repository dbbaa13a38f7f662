"""The Heston surrogate of configs/surrogate_heston.yaml, whole: labels, training, errors on fresh points, speed.

    python benchmarks/bench_surrogate.py [--out FILE.json] [--repeats N] [--threads N] [--set a.b=c ...]

The time from nothing to a judged surrogate, what it reaches, and how fast it then is: 100,000 vols and prices in a
batch, beside the Fourier engine (scaled from 10,000 points) and Monte Carlo (a Sobol simulation of some of the points,
scaled by the square of its standard error to the surrogate's own error). Labels are made anew. Run it alone on an idle
machine.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import measure
import torch
from measure import Contender

import pricers as pr
from qfml import config
from qfml.config import config_hash
from qfml.finished import read_metrics
from qfml.run import run
from qfml.surrogate import Problem, Surrogate
from qfml.surrogate.judgement import fresh_labels
from qfml.surrogate.settings import FourierLabels

CONFIG = Path(__file__).parent.parent / "configs" / "surrogate_heston.yaml"
BARS = {
    "rmse, bps of vol, below": 3.0,
    "99 % of fresh points within, bps of vol": 10.0,
    "minutes on 2 cores, at most": 20.0,
    "100,000 prices, milliseconds, below": 40.0,
    "times faster than Monte Carlo at equal error, at least": 1000.0,
}
BATCH, FOURIER, SIMULATED = 100_000, 10_000, 64


def trained(folder: Path, overrides: list[str]) -> tuple[dict[str, Any], Surrogate, float]:
    """Metrics and surrogate of the config, and the seconds it took, labels included."""
    begin = time.perf_counter()
    place = run(
        CONFIG, out=folder / "run", overrides=[*overrides, f"labels.folder={folder / 'labels'}"], progress=False
    )
    seconds = time.perf_counter() - begin
    return read_metrics(place), Surrogate.load(place / "surrogate"), seconds


def points(problem: Problem, n: int) -> torch.Tensor:
    """Inputs (n, d), drawn independently of those of training and judgement."""
    found = fresh_labels(problem, FourierLabels(), min(n, FOURIER), seed=20_261_121).inputs
    return found.repeat(-(-n // len(found)), 1)[:n]


def simulation(problem: Problem, inputs: torch.Tensor, error: float) -> dict[str, float]:
    """Seconds of one price by Monte Carlo, where its standard error equals `error` (per unit of spot)."""
    seconds = []
    for row in inputs:
        option, model, market = problem.triple(row[None])
        engine = pr.MonteCarlo(2**14, n_steps=100, noise="sobol", seed=1)
        begin = time.perf_counter()
        found = pr.price(option, model, market, engine)
        taken = time.perf_counter() - begin
        seconds.append(taken * (float(found.std_error) / error) ** 2)
    ordered = sorted(seconds)
    return {"median_seconds_at_equal_error": ordered[len(ordered) // 2], "mean_seconds": sum(seconds) / len(seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=measure.default_threads())
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="change a setting of the config")
    options = parser.parse_args()

    before = measure.machine()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        metrics, surrogate, seconds = trained(Path(folder), options.overrides)
    problem = surrogate.problem
    many, few = points(problem, BATCH), points(problem, FOURIER)
    vols = Contender(lambda: surrogate.predict(many, errors="flag").value, BATCH)
    triple = problem.triple(many)
    prices = Contender(lambda: surrogate.price(*triple, errors="flag"), BATCH)
    with_slopes = Contender(lambda: surrogate.value_and_gradient(many)[0], BATCH)
    racing = measure.at_threads("surrogate", vols, options.threads)
    racing |= measure.at_threads("surrogate, prices of contracts", prices, options.threads)
    racing |= measure.at_threads("surrogate with derivatives", with_slopes, options.threads)
    racing |= measure.at_threads("Fourier", Contender(lambda: problem.exact(few), FOURIER, rounds=3), options.threads)
    rows, _ = measure.race(racing, options.repeats)
    torch.set_num_threads(options.threads)
    judged = metrics["judgement"]
    error = judged["price_bps"]["rmse"] / 1e4
    simulated = simulation(problem, points(problem, SIMULATED), error)
    own = rows[next(iter(rows))]["min_seconds"] / BATCH
    simulated |= {"times_surrogate": simulated["median_seconds_at_equal_error"] / own, "std_error": error}
    measure.show(f"{BATCH:,} vols under Heston", rows)
    print(
        f"rmse {judged['vol_bps']['rmse']:.2f} bps, 99 % {judged['vol_bps']['q99']:.2f}, in {seconds / 60:.1f} min; "
        f"simulation takes {simulated['times_surrogate']:,.0f} times as long"
    )
    record = {
        "benchmark": "surrogate of Heston",
        "command": measure.command(),
        "machine": before,
        "load_after": measure.machine()["load"],
        "versions": measure.versions("torch", "numpy"),
        "config_hash": config_hash(config.override(config.read_yaml(CONFIG), options.overrides)),
        "bars": BARS,
        "minutes": seconds / 60,
        "seconds": metrics["seconds"],
        "n_labels": metrics["labels"]["n_labels"],
        "vol_bps": judged["vol_bps"],
        "price_bps": judged["price_bps"],
        "greeks": judged["greeks"],
        "conformal": judged["conformal"],
        "contenders": rows,
        "simulation": simulated,
    }
    measure.write(record, options.out)


if __name__ == "__main__":
    main()
