"""A surrogate of configs/, whole: labels, training, errors on fresh points, speed, and its exported files.

    python benchmarks/bench_surrogate.py [--config FILE.yaml] [--out FILE.json] [--repeats N] [--threads N]
                                         [--rows N] [--simulated N] [--set a.b=c ...]

The time from nothing to a judged surrogate, what it reaches beside the noise of its labels, the share of fresh points
that keep its bound, how far its ONNX files are from torch, and how fast it is: 100,000 rows in a batch, beside the
engine that labelled the fresh points, where that draws nothing (scaled from fewer points), and simulation (of some of
the points, scaled by the square of its standard error to the surrogate's own error). Labels are made anew. Run it alone
on an idle machine.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import numpy as np
import safetensors.numpy
import torch
from measure import Contender

import pricers as pr
from pricers.pricing import capable_engines, default_engine
from qfml import config
from qfml.config import config_hash
from qfml.export import export_surrogate
from qfml.finished import read_metrics
from qfml.run import run
from qfml.surrogate import JudgementSettings, Problem, Surrogate
from qfml.surrogate.exact_labels import target_values
from qfml.surrogate.settings import MonteCarloLabels
from qfml.surrogate.speed import SIMULATED

CONFIG = Path(__file__).parent.parent / "configs" / "surrogate_heston.yaml"
BARS = {
    "surrogate_heston": {
        "rmse, bps of vol, below": 3.0,
        "99 % of fresh points within, bps of vol": 10.0,
        "minutes on 2 cores, at most": 20.0,
        "100,000 prices, milliseconds, below": 40.0,
        "times faster than Monte Carlo at equal error, at least": 1000.0,
    }
}
STEPS = 100  # of a simulation, where the labels are of none
ENGINE_SHARE = {"FiniteDifference": 0.001}  # of the batch that an engine is asked for: each row is a grid of its own
USUAL_SHARE = 0.1


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Args:
        metrics: of the run.
        surrogate: that it trained and judged.
        inputs: the fresh points (N, d) that it was judged on.
        seconds: what all of it took, labels included.
        exported: each ONNX file's difference from torch.
    """

    metrics: dict[str, Any]
    surrogate: Surrogate
    inputs: torch.Tensor
    seconds: float
    exported: dict[str, dict[str, Any]]

    def points(self, n: int) -> torch.Tensor:
        """Inputs (n, d): fresh points, repeated where there are fewer."""
        return self.inputs.repeat(-(-n // len(self.inputs)), 1)[:n]


def trained(path: Path, folder: Path, overrides: list[str]) -> Trained:
    """The run of a config, with labels of its own."""
    begin = time.perf_counter()
    place = run(path, out=folder / "run", overrides=[*overrides, f"labels.folder={folder / 'labels'}"], progress=False)
    seconds = time.perf_counter() - begin
    surrogate = Surrogate.load(place)
    inputs = np.array(safetensors.numpy.load_file(place / "judgement.safetensors")["inputs"])
    files = {one.path.name: one.parity.as_metadata() for one in export_surrogate(surrogate, folder / "onnx")}
    return Trained(read_metrics(place), surrogate, torch.from_numpy(inputs), seconds, files)


def contenders(found: Trained, judgement: JudgementSettings, threads: int, batch: int) -> dict[str, Contender]:
    """The surrogate on `batch` rows, also with derivatives, and the engine of the fresh labels if it draws nothing."""
    surrogate, problem = found.surrogate, found.surrogate.problem
    many = found.points(batch)
    values = Contender(lambda: surrogate.predict(many, errors="flag").value, batch)
    racing = measure.at_threads("surrogate", values, threads)
    if problem.target != "price":
        triple = problem.triple(many)
        prices = Contender(lambda: surrogate.price(*triple, errors="flag"), batch)
        racing |= measure.at_threads("surrogate, prices of contracts", prices, threads)
    with_slopes = Contender(lambda: surrogate.value_and_gradient(many, errors="flag")[0], batch)
    racing |= measure.at_threads("surrogate with derivatives", with_slopes, threads)
    if judgement.engine.simulated:
        return racing
    engine = judgement.engine.engine() or default_engine(*problem.triple(found.points(1)))
    name = type(engine).__name__
    n = max(1, round(batch * ENGINE_SHARE.get(name, USUAL_SHARE)))
    columns = problem.columns(found.points(n))
    exact = Contender(lambda: target_values(problem, columns, engine).value, n, rounds=3)
    return racing | measure.at_threads(name, exact, threads)


def simulation(problem: Problem, inputs: torch.Tensor, error: float, n_steps: int) -> dict[str, Any]:
    """Seconds of one price by simulation, where its standard error equals `error` (per unit of spot)."""
    name = next(name for name in capable_engines(*problem.triple(inputs)) if name in SIMULATED)
    settings = {"noise": "sobol"} if name == "MonteCarlo" else {}
    engine = SIMULATED[name](2**14, n_steps=n_steps, seed=1, **settings)
    seconds = []
    for row in inputs:
        contract, model, market = problem.triple(row[None])
        begin = time.perf_counter()
        found = pr.price(contract, model, market, engine)
        taken = time.perf_counter() - begin
        seconds.append(taken * (float(found.std_error / market.spot) / error) ** 2)
    return {
        "engine": name,
        "n_steps": n_steps,
        "median_seconds_at_equal_error": sorted(seconds)[len(seconds) // 2],
        "mean_seconds": sum(seconds) / len(seconds),
        "std_error": error,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG, help="of a surrogate; that of Heston if omitted")
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=measure.default_threads())
    parser.add_argument("--rows", type=int, default=100_000, help="of a batch")
    parser.add_argument("--simulated", type=int, default=64, help="points that are simulated, one at a time")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="change a setting of the config")
    options = parser.parse_args()

    before = measure.machine()
    torch.set_num_threads(options.threads)
    settings = config.override(config.read_yaml(options.config), options.overrides)
    judgement = config.build(JudgementSettings, settings.get("judgement", {}))
    with tempfile.TemporaryDirectory() as folder:
        found = trained(options.config, Path(folder), options.overrides)
    rows, _ = measure.race(contenders(found, judgement, options.threads, options.rows), options.repeats)
    torch.set_num_threads(options.threads)
    judged, problem = found.metrics["judgement"], found.surrogate.problem
    engine = judgement.engine
    n_steps = engine.n_steps if isinstance(engine, MonteCarloLabels) else STEPS
    error = judged["price_bps"]["rmse"] / 1e4
    simulated = simulation(problem, found.points(options.simulated), error, n_steps)
    own = rows[next(iter(rows))]["min_seconds"] / options.rows
    simulated["times_surrogate"] = simulated["median_seconds_at_equal_error"] / own
    measure.show(f"{options.rows:,} values of {settings['name']}", rows)
    unit = "vol" if judged["vol_bps"] else "spot"
    errors = judged["vol_bps"] or judged["price_bps"]
    print(
        f"rmse {errors['rmse']:.2f} bps of {unit}, 99 % {errors['q99']:.2f}, in {found.seconds / 60:.1f} min; "
        f"{judged['conformal']['coverage']:.2%} keep the bound; "
        f"simulation takes {simulated['times_surrogate']:,.0f} times as long"
    )
    record = {
        "benchmark": f"surrogate of {settings['name']}",
        "command": measure.command(),
        "machine": before,
        "load_after": measure.machine()["load"],
        "versions": measure.versions("torch", "numpy", "onnxruntime"),
        "config": options.config.name,
        "config_hash": config_hash(settings),
        "bars": BARS.get(settings["name"], {}),
        "minutes": found.seconds / 60,
        "seconds": found.metrics["seconds"],
        "n_labels": found.metrics["labels"]["n_labels"],
        "label_noise": {
            "unit": judged["unit"],
            "of_training_labels": found.metrics["labels"]["std_error_rms"],
            "of_fresh_labels": judged["noise"]["std_error_rms"],
            "rmse": judged["error"]["rmse"],
            "rmse_without_noise": judged["noise"]["rmse_without_noise"],
        },
        "points": judged["points"],
        "error": judged["error"],
        "vol_bps": judged["vol_bps"],
        "price_bps": judged["price_bps"],
        "greeks": judged["greeks"],
        "arbitrage": judged["arbitrage"],
        "conformal": judged["conformal"],
        "onnx": found.exported,
        "contenders": rows,
        "simulation": simulated,
    }
    measure.write(record, options.out)


if __name__ == "__main__":
    main()
