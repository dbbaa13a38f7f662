"""Heston paths in float32, 100 steps, beside pfhedge and QuantLib; and the closed forms that pfhedge has, beside ours.

    python benchmarks/bench_simulation_peers.py [--out FILE.json] [--repeats N] [--threads N] [--device cuda]

Each contender simulates a European call and averages it (without controls and without integrating anything out), in
turns; the rate counts path-steps. The market is Andersen's case I, where the schemes differ. Bias is the mean over all
rounds, each with a seed of its own, less the exact price, in units of the forward, with its standard error. pfhedge
needs versions of its own and runs in .venv-peers (`make bench` makes it), as a process that answers by lines of JSON
and takes its own time; without it the record says so. QuantLib's engine is double precision on one thread, and takes
fewer paths. Run it alone on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import measure
import QuantLib as ql  # noqa: N813
import torch
from measure import Contender

import pricers as pr

ROOT = Path(__file__).resolve().parent.parent
PEER_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
PEER_SCRIPT = Path(__file__).resolve().parent / "peers" / "pfhedge_peer.py"

# Andersen (2008), table 1, case I
PARAMETERS = {"v0": 0.04, "kappa": 0.5, "theta": 0.04, "sigma": 1.0, "rho": -0.9}
SPOT, STRIKE, EXPIRY = 100.0, 100.0, 10.0
N_STEPS = 100
SHOWN = 1000  # points at which values of closed forms are compared


class Pfhedge:
    """The peer's process; `None` from `start` where its environment is absent."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [str(PEER_PYTHON), str(PEER_SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    @classmethod
    def start(cls) -> Pfhedge | None:
        return cls() if PEER_PYTHON.exists() else None

    def ask(self, **request: Any) -> dict:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of pfhedge ended with status {self.process.wait()}; its message is above")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


# --- simulation: each contender returns mean and standard error of the call ------------------------------------------


class Seeds:
    """1, 2, 3, ...: no round repeats the paths of another."""

    def __init__(self) -> None:
        self.last = 0

    def next(self) -> int:
        self.last += 1
        return self.last


def ours(n_paths: int, scheme: str, compiled: bool, device: str, seeds: Seeds) -> tuple[float, float]:
    engine = pr.MonteCarlo(
        n_paths, n_steps=N_STEPS, seed=seeds.next(), scheme=scheme, controls=False, conditional=False,
        dtype=torch.float32, device=torch.device(device), compile=compiled,
    )  # fmt: skip
    found = engine.price(pr.European(STRIKE, EXPIRY, "call"), pr.Heston(**PARAMETERS), pr.Market(SPOT))
    return float(found.value), float(found.std_error)


def quantlib(n_paths: int, scheme: int, seeds: Seeds) -> tuple[float, float]:
    today, day_count = ql.Date(15, 1, 2026), ql.Actual365Fixed()
    ql.Settings.instance().evaluationDate = today
    flat = ql.YieldTermStructureHandle(ql.FlatForward(today, 0.0, day_count))
    process = ql.HestonProcess(flat, flat, ql.QuoteHandle(ql.SimpleQuote(SPOT)), *PARAMETERS.values(), scheme)
    option = ql.VanillaOption(
        ql.PlainVanillaPayoff(ql.Option.Call, STRIKE), ql.EuropeanExercise(today + int(365 * EXPIRY))
    )
    engine = ql.MCEuropeanHestonEngine(
        process, "pseudorandom", timeSteps=N_STEPS, requiredSamples=n_paths, seed=seeds.next()
    )
    option.setPricingEngine(engine)
    return option.NPV(), option.errorEstimate()


def pfhedge(peer: Pfhedge, n_paths: int, threads: int, seeds: Seeds) -> dict:
    return peer.ask(
        task="heston", threads=threads, seed=seeds.next(), n_paths=n_paths, n_steps=N_STEPS, expiry=EXPIRY, spot=SPOT,
        strike=STRIKE, parameters=PARAMETERS,
    )  # fmt: skip


def contenders(paths: int, threads: int, device: str, peer: Pfhedge | None) -> dict[str, Contender]:
    seeds = Seeds()
    kinds = [("QE-M", "qe-m", True), ("QE-M", "qe-m", False), ("Euler", "euler", True), ("Euler", "euler", False)]
    found: dict[str, Contender] = {}
    for place in dict.fromkeys(["cpu", device]):
        for title, scheme, compiled in kinds:
            name = f"pricers {title}, {'compiled' if compiled else 'eager'}" + (f", {place}" if place != "cpu" else "")
            run = lambda s=scheme, c=compiled, d=place: ours(paths, s, c, d, seeds)  # noqa: E731  # one of many
            one = Contender(run, paths, threads)
            found |= measure.at_threads(name, one, threads) if scheme == "qe-m" and place == "cpu" else {name: one}
    if peer is not None:
        found["pfhedge generate_heston (QE)"] = Contender(
            lambda: pfhedge(peer, paths, threads, seeds), paths, threads, reported=lambda result: result["seconds"]
        )
    for name, scheme in (
        ("QuantLib QE-M", ql.HestonProcess.QuadraticExponentialMartingale),
        ("QuantLib full-truncation Euler", ql.HestonProcess.FullTruncation),
    ):
        few = max(2, paths // 4)
        found[name] = Contender(lambda scheme=scheme, few=few: quantlib(few, scheme, seeds), few)
    return found


def judged(results: list[Any], n_paths: int, exact: float) -> dict:
    """Bias of the mean over all rounds."""
    pairs = [
        (result["mean"], math.sqrt(result["variance"] / n_paths)) if isinstance(result, dict) else result
        for result in results
    ]
    n = len(pairs)
    bias = sum(mean for mean, _ in pairs) / n - exact
    error = math.sqrt(sum(error**2 for _, error in pairs)) / n
    return {"bias_of_forward": bias / SPOT, "standard_error_of_forward": error / SPOT, "paths_judged": n * n_paths}


def simulation(options: argparse.Namespace, peer: Pfhedge | None) -> dict:
    exact = float(pr.price(pr.European(STRIKE, EXPIRY, "call"), pr.Heston(**PARAMETERS), pr.Market(SPOT)).value)
    racing = contenders(options.paths, options.threads, options.device, peer)
    rows, results = measure.race(racing, options.repeats)
    words = ["--paths", str(options.paths), "--threads", str(options.threads), "--device", options.device]
    for name, row in rows.items():
        row["path_steps_per_second"] = options.paths * N_STEPS / row["min_seconds"]
        row |= judged(results[name], racing[name].work, exact)
        if options.no_memory:
            continue
        if name.startswith("pfhedge"):
            row["peak_memory_mib"] = pfhedge_peak(options)
        else:
            row |= measure.peak_in_child(__file__, name, *words)
    title = f"{options.paths:,} paths x {N_STEPS} steps, exact price {exact:.6f}"
    measure.show(
        title, rows, "path_steps_per_second", "bias_of_forward", "standard_error_of_forward", "peak_memory_mib"
    )
    return {
        "paths": options.paths,
        "steps": N_STEPS,
        "exact_price": exact,
        "parameters": PARAMETERS,
        "contenders": rows,
    }


def pfhedge_peak(options: argparse.Namespace) -> float:
    """In a process that has simulated only a few paths before."""
    fresh = Pfhedge()
    pfhedge(fresh, 100, options.threads, Seeds())
    found = fresh.ask(
        task="heston", threads=options.threads, seed=1, n_paths=options.paths, n_steps=N_STEPS, expiry=EXPIRY,
        spot=SPOT, strike=STRIKE, parameters=PARAMETERS, peak=True,
    )  # fmt: skip
    fresh.close()
    return round(found["peak_kib"] / 1024, 2)


# --- closed forms under Black-Scholes --------------------------------------------------------------------------------


def formula_points() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(4, SHOWN, generator=generator, dtype=torch.float64)
    log_moneyness = 0.8 * u[0] - 0.4
    return {
        "log_moneyness": log_moneyness,
        "expiry": 0.05 + 2.0 * u[1],
        "vol": 0.1 + 0.5 * u[2],
        "maximum": log_moneyness + 0.3 * u[3],
    }


def formulas(options: argparse.Namespace, peer: Pfhedge) -> dict:
    """Both libraries in turns, from the same points, without rates; the largest difference beside the times."""
    points, copies = formula_points(), max(1, options.points // SHOWN)
    spot, expiry, vol, maximum = (values.repeat(copies) for values in points.values())
    spot, maximum = STRIKE * torch.exp(spot), STRIKE * torch.exp(maximum)
    works = {
        "European": lambda: pr.European(STRIKE, expiry, "call"),
        "Digital": lambda: pr.Digital(STRIKE, expiry, "call"),
        "Lookback": lambda: pr.Lookback(STRIKE, expiry, "call", running_extremum=maximum),
    }
    lists = {name: values.tolist() for name, values in points.items()}
    rows: dict[str, dict] = {}
    for name, contract in works.items():
        request = {"task": "formula", "name": name, "points": lists, "copies": copies, "n_shown": SHOWN}
        request["threads"] = options.threads
        run = lambda contract=contract: pr.Analytic().price(contract(), pr.BlackScholes(vol), pr.Market(spot)).value  # noqa: E731
        racing = {
            "pricers": Contender(run, spot.numel(), options.threads),
            "pfhedge": Contender(
                lambda request=request: peer.ask(**request),
                spot.numel(),
                options.threads,
                reported=lambda result: result["seconds"],
            ),
        }  # fmt: skip
        rows[name], results = measure.race(racing, min(options.repeats, 5))
        theirs = torch.tensor(results["pfhedge"][-1]["values"], dtype=torch.float64)
        gap = float((results["pricers"][-1][:SHOWN] - theirs).abs().max())
        rows[name]["pricers"]["peak_memory_mib"] = round(measure.peak_growth(run) / 2**20, 2)
        rows[name]["pfhedge"]["peak_memory_mib"] = round(peer.ask(**request, peak=True)["peak_kib"] / 1024, 2)
        title = f"{name}, {spot.numel():,} prices, largest difference {gap:.1e}"
        measure.show(title, rows[name], "peak_memory_mib")
        rows[name] = {"contenders": rows[name], "largest_difference": gap}
    return {"prices": spot.numel(), "strike": STRIKE, "instruments": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=measure.default_threads())
    parser.add_argument("--paths", type=int, default=131_072, help="a multiple of 4")
    parser.add_argument("--points", type=int, default=1_000_000, help="of the closed forms")
    parser.add_argument("--device", default="cpu", help="a GPU on which pricers runs too")
    parser.add_argument("--no-memory", action="store_true", help="leave out the processes that measure it")
    parser.add_argument("--peak", nargs=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        (name,) = options.peak
        contender = contenders(options.paths, options.threads, options.device, None)[name]
        torch.set_num_threads(contender.threads or 1)
        contender.run()  # what is loaded or compiled at first use is not counted
        print(json.dumps(measure.peak_growth(contender.run)))
        return

    record: dict[str, Any] = {
        "benchmark": "Heston paths and Black-Scholes closed forms, beside pfhedge",
        "command": "python benchmarks/bench_simulation_peers.py " + " ".join(sys.argv[1:]),
        "machine_before": measure.machine(),
        "threads": options.threads,
        "versions": measure.versions("qfml", "torch", "QuantLib"),
    }
    peer = Pfhedge.start()
    record["pfhedge"] = (
        peer.ask(task="versions") if peer else "left out: there is no .venv-peers; `make bench` makes it"
    )
    if peer is None:
        print("pfhedge is left out: there is no .venv-peers; `make bench` makes it")
    record["simulation"] = simulation(options, peer)
    if peer is not None:
        record["closed_forms"] = formulas(options, peer)
        peer.close()
    record["machine_after"] = measure.machine()
    measure.write(record, options.out)


if __name__ == "__main__":
    main()
