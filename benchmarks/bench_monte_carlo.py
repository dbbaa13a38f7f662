"""Monte Carlo under Heston beside QuantLib: path-steps a second, and the time to a relative error of 1e-4.

    python benchmarks/bench_monte_carlo.py [--out FILE.json] [--repeats N] [--threads N] [--paths N]

Rate: QE-M of 100 steps in float32, compiled, beside eager, beside torch drawing the same normals and doing nothing with
them, and beside QuantLib's QE-M. Time to accuracy: a European and a 10-fixing arithmetic Asian call under two sets of
parameters (case I of Andersen, 2008, over ten years, and Fang and Oosterlee's over one) by conditional simulation and
scrambled Sobol points, beside QuantLib's Monte Carlo (antithetic, 50 steps; five a year over ten years) whose time is
extrapolated from 20,000 samples with its own measured error. The bias is the distance from the exact price, for the
Asian from our own price of eight times as many paths. The contenders run in turns; tables of the exact scheme are built
anew each time. Run it alone on an idle machine.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import measure
import QuantLib as ql  # noqa: N813  # as its own documentation calls it
import torch

import pricers as pr
from pricers.models.heston_exact import tables

parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
parser.add_argument("--out", type=Path)
parser.add_argument("--repeats", type=int, default=5)
parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
parser.add_argument("--paths", type=int, default=2**20)
arguments = parser.parse_args()

N_STEPS, N_SAMPLES = 100, 20_000
MARKET = pr.Market(100.0)
PARAMETERS = {"case I": (0.04, 0.5, 0.04, 1.0, -0.9), "Fang-Oosterlee": (0.0175, 1.5768, 0.0398, 0.5751, -0.5711)}
EXPIRY = {"case I": 10.0, "Fang-Oosterlee": 1.0}
EXACT = {"case I": 13.08467014, "Fang-Oosterlee": 5.785155434376}
N_PATHS = {"european": {"case I": 2**15, "Fang-Oosterlee": 2**14}, "asian": {"case I": 2**17, "Fang-Oosterlee": 2**15}}
DAY = ql.Date(1, 1, 2024)


def fixings(case: str) -> list[float]:
    return [EXPIRY[case] * (index + 1) / 10 for index in range(10)]


def ours(n_paths: int, compiled: bool) -> float:
    engine = pr.MonteCarlo(
        n_paths, n_steps=N_STEPS, seed=1, dtype=torch.float32, conditional=False, controls=False, compile=compiled
    )
    begin = time.perf_counter()
    engine.price(pr.European(100.0, 1.0), pr.Heston(*PARAMETERS["Fang-Oosterlee"]), MARKET)
    return n_paths * N_STEPS / (time.perf_counter() - begin)


def drawing(n_paths: int, n_threads: int) -> float:
    """The normals of a scheme with two for each step, drawn by torch into buffers of the cache's size.

    torch itself draws on one core only; here several generators draw side by side, one for each thread.
    """
    width = 2**16

    def block(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        buffer = torch.empty(2, width)
        for _ in range(N_STEPS):
            for row in buffer:
                row.normal_(generator=generator)

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(block, range(n_paths // width)))
    rate = n_paths * N_STEPS / (time.perf_counter() - begin)
    torch.set_num_threads(before)
    return rate


def quantlib_process(case: str) -> ql.HestonProcess:
    ql.Settings.instance().evaluationDate = DAY
    flat = ql.YieldTermStructureHandle(ql.FlatForward(DAY, 0.0, ql.Actual365Fixed()))
    v0, kappa, theta, sigma, rho = PARAMETERS[case]
    spot = ql.QuoteHandle(ql.SimpleQuote(100.0))
    scheme = ql.HestonProcess.QuadraticExponentialMartingale
    return ql.HestonProcess(flat, flat, spot, v0, kappa, theta, sigma, rho, scheme)


def quantlib_price(kind: str, case: str, n_samples: int, n_steps: int, antithetic: bool, seed: int) -> dict[str, float]:
    """Price, standard error and seconds of QuantLib's engine for the contract."""
    process = quantlib_process(case)
    payoff = ql.PlainVanillaPayoff(ql.Option.Call, 100.0)
    last = DAY + round(365 * EXPIRY[case])
    exercise = ql.EuropeanExercise(last)
    if kind == "european":
        option = ql.VanillaOption(payoff, exercise)
        engine = ql.MCEuropeanHestonEngine(
            process,
            "pseudorandom",
            timeSteps=n_steps,
            antitheticVariate=antithetic,
            requiredSamples=n_samples,
            seed=seed,
        )
    else:
        dates = [DAY + round(365 * time_) for time_ in fixings(case)]
        option = ql.DiscreteAveragingAsianOption(ql.Average.Arithmetic, 0.0, 0, dates, payoff, exercise)
        engine = ql.MCDiscreteArithmeticAPHestonEngine(
            process,
            "pseudorandom",
            antitheticVariate=antithetic,
            requiredSamples=n_samples,
            timeSteps=n_steps,
            seed=seed,
        )
    option.setPricingEngine(engine)
    begin = time.perf_counter()
    price = option.NPV()
    return {"price": price, "std_error": option.errorEstimate(), "seconds": time.perf_counter() - begin}


def quantlib_rate(case: str) -> float:
    return N_SAMPLES * N_STEPS / quantlib_price("european", case, N_SAMPLES, N_STEPS, False, 1)["seconds"]


def accurate(kind: str, case: str, n_paths: int, seed: int) -> dict[str, float]:
    """Our price, standard error and seconds, with everything that is prepared for the parameters."""
    tables.cache_clear()
    contract = pr.European(100.0, EXPIRY[case]) if kind == "european" else pr.Asian(100.0, fixings(case))
    engine = pr.MonteCarlo(n_paths, noise="sobol", scheme="exact", seed=seed)
    begin = time.perf_counter()
    found = engine.price(contract, pr.Heston(*PARAMETERS[case]), MARKET)
    seconds = time.perf_counter() - begin
    return {"price": found.value.item(), "std_error": found.std_error.item(), "seconds": seconds}


def grown(run: Callable[[], Any]) -> float:
    """MiB by which the process grows at most while `run` works."""
    return round(measure.peak_growth(run) / 2**20, 2)


def rates() -> dict[str, Any]:
    contenders: dict[str, Callable[[], float]] = {
        "qfml, compiled": lambda: ours(arguments.paths, True),
        "qfml, eager": lambda: ours(arguments.paths // 4, False),
        "torch draws the normals alone": lambda: drawing(arguments.paths, 1),
        "torch draws the normals alone, side by side": lambda: drawing(arguments.paths, arguments.threads),
        "QuantLib QE-M": lambda: quantlib_rate("Fang-Oosterlee"),
    }
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(arguments.repeats + 1):
        for name, contender in contenders.items():
            rate = contender()
            if repeat:  # the first round warms up and compiles
                found[name].append(rate)
    best = {name: max(rate) for name, rate in found.items()}
    return {
        "path_steps_per_second": {
            name: {"max": max(rate), "median": statistics.median(rate), "peak_memory_mib": grown(contenders[name])}
            for name, rate in found.items()
        },
        "compiled_over_quantlib": best["qfml, compiled"] / best["QuantLib QE-M"],
        "compiled_over_drawing": best["qfml, compiled"] / best["torch draws the normals alone"],
        "compiled_over_drawing_side_by_side": best["qfml, compiled"]
        / best["torch draws the normals alone, side by side"],
    }


def accuracy(kind: str, case: str) -> dict[str, Any]:
    n_paths = N_PATHS[kind][case]
    truth = EXACT[case] if kind == "european" else accurate(kind, case, 8 * n_paths, 10_000)["price"]
    mine: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    for repeat in range(arguments.repeats):
        mine.append(accurate(kind, case, n_paths, repeat))
        theirs.append(quantlib_price(kind, case, N_SAMPLES, 50, True, repeat + 1))
    seconds = [run["seconds"] for run in mine]
    extrapolated = [run["seconds"] * (run["std_error"] / (1e-4 * truth)) ** 2 for run in theirs]
    mean = statistics.mean(run["price"] for run in mine)
    return {
        "n_paths": n_paths,
        "seconds_min": min(seconds),
        "seconds_median": statistics.median(seconds),
        "relative_std_error_median": statistics.median(run["std_error"] for run in mine) / truth,
        "relative_bias_of_mean": mean / truth - 1.0,
        "relative_distances": [run["price"] / truth - 1.0 for run in mine],
        "quantlib_seconds_to_1e-4_min": min(extrapolated),
        "quantlib_seconds_to_1e-4_median": statistics.median(extrapolated),
        "quantlib_relative_bias_of_mean": statistics.mean(run["price"] for run in theirs) / truth - 1.0,
        "peak_memory_mib": grown(lambda: accurate(kind, case, n_paths, 0)),
        "quantlib_peak_memory_mib": grown(lambda: quantlib_price(kind, case, N_SAMPLES, 50, True, 1)),
        "times_faster_median": statistics.median(extrapolated) / statistics.median(seconds),
    }


def main() -> None:
    torch.set_num_threads(arguments.threads)
    load_before = os.getloadavg()
    record: dict[str, Any] = {
        "benchmark": "Monte Carlo under Heston: rate of QE-M, time to a relative standard error of 1e-4",
        "command": f"python benchmarks/bench_monte_carlo.py --repeats {arguments.repeats} "
        f"--threads {arguments.threads} --paths {arguments.paths}",
        "rate": rates(),
    }
    record["accuracy"] = {f"{kind}, {case}": accuracy(kind, case) for kind in N_PATHS for case in PARAMETERS}
    record |= {
        "threads": arguments.threads,
        "load_before": load_before,
        "load_after": os.getloadavg(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in ("qfml", "torch", "QuantLib")},
    }
    for name, rate in record["rate"]["path_steps_per_second"].items():
        print(f"{name:32} max {rate['max'] / 1e6:7.1f} M path-steps/s  median {rate['median'] / 1e6:7.1f}")
    for name, row in record["accuracy"].items():
        print(
            f"{name:26} {row['seconds_median']:6.2f} s  error {row['relative_std_error_median']:.1e}  bias "
            f"{row['relative_bias_of_mean']:+.1e}  QuantLib {row['quantlib_seconds_to_1e-4_median']:7.0f} s to 1e-4"
        )
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
