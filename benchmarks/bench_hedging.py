"""Training of a hedging policy beside pfhedge: path-steps per second, price after equal time, a curve as one stack.

    python benchmarks/bench_hedging.py [--out FILE.json] [--repeats N] [--threads N] [--steps N] [--seconds S]

A short call at the money, vol 20 %, 20 daily steps, proportional cost 1e-3, entropic risk of aversion 10; 10,000 fresh
paths a step, four layers of 32, float32, Adam at the same rate. Every round trains a new network for `--steps` steps,
all that a run does (simulation, gradient, update, one validation of ours on 1,024 paths; pfhedge's validation is off).
Then both train for `--seconds`, and are priced on fresh paths. The exact optimum of the problem stands beside them
(`hedging_truth.py`). A curve of eight risk aversions is trained as one stack on shared paths; one by one it would take
the time of the first row for each. The last row is the bound that no training of this network passes: its matrix
products alone, forth and back, without biases, slopes, paths or losses. Without `.venv-peers` the rows of pfhedge are
missing. Run it alone on an idle machine.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import hedging_truth
import measure
import torch
from bench_simulation_peers import Pfhedge
from measure import Contender

import pricers as pr
import qfml
from qfml.hedging import Band, Book, Entropic, FeedForward, Hedger, ModelMarket, Proportional, deep_hedge

N_PATHS, N_STEPS, COST, AVERSION, LR = 10_000, 20, 1e-3, 10.0, 1e-3
CURVE = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 50.0, 100.0)
JUDGED, JUDGED_AT_A_TIME = 2**19, 2**16
INFORMATION = ("log_moneyness", "time_to_horizon", "call_delta")
POLICIES = {
    "direct": FeedForward(),
    "band": FeedForward(holding=Band(("call_delta",)), sees_holdings=False),
}


def trained(steps: int, aversions: tuple[float, ...] = (AVERSION,), policy: str = "direct", **limits: Any) -> Hedger:
    """Policies after so many steps, or less where a limit is set."""
    horizon = N_STEPS / 365
    information = INFORMATION if policy == "band" else INFORMATION[:2]
    market = ModelMarket(
        pr.BlackScholes(0.2), pr.Market(1.0), n_steps=N_STEPS, horizon=horizon, information=information
    )
    trainer = qfml.Trainer(
        optimizer=qfml.AdamW(lr=LR, weight_decay=0.0), max_epochs=1, batch_size=N_PATHS, seed=1, **limits
    )
    return deep_hedge(
        market,
        Book(((1.0, pr.European(1.0, horizon)),)),
        Entropic(AVERSION),
        costs=(Proportional(COST),),
        policy=POLICIES[policy],
        trainer=trainer,
        steps_per_epoch=steps,
        n_validation=1024,
        aversions=aversions,
    )


def products(steps: int) -> None:
    """The matrix products of so many steps, of all paths at once: outputs, slopes of inputs, gradients of weights."""
    widths = [len(INFORMATION), *POLICIES["direct"].hidden, 1]  # two features and the holding before
    rows = [torch.randn(N_PATHS, width) for width in widths]
    maps = [torch.randn(pair) for pair in itertools.pairwise(widths)]
    kept = [[one.clone() for one in rows] for _ in range(N_STEPS)]  # a training reads again what it has kept
    slopes, weights = [one.clone() for one in rows], [one.clone() for one in maps]
    for _ in range(steps):
        for own in kept:
            for layer, weight in enumerate(maps):
                torch.mm(own[layer], weight, out=own[layer + 1])
        for own in reversed(kept):
            for layer in reversed(range(len(maps))):
                torch.mm(own[layer].t(), slopes[layer + 1], out=weights[layer])
                if layer:
                    torch.mm(slopes[layer + 1], maps[layer].t(), out=slopes[layer])


def priced(hedger: Hedger) -> dict[str, float]:
    """Price on fresh paths with its standard error."""
    found = [hedger.price(hedger.paths(JUDGED_AT_A_TIME, seed=2, number=n)) for n in range(JUDGED // JUDGED_AT_A_TIME)]
    values, errors = ([float(getattr(one, name)[0]) for one in found] for name in ("value", "std_error"))
    n = len(found)
    return {"price": sum(values) / n, "std_error": sum(error**2 for error in errors) ** 0.5 / n}


def contenders(steps: int, threads: int, peer: Pfhedge | None) -> dict[str, Contender]:
    work = steps * N_PATHS * N_STEPS
    found = {
        f"qfml, {threads} threads": Contender(lambda: trained(steps), work, threads),
        "qfml, 1 thread": Contender(lambda: trained(steps), work, 1),
        f"qfml, no-transaction band, {threads} threads": Contender(
            lambda: trained(steps, policy="band"), work, threads
        ),
        f"qfml, 8 risk aversions as one stack, {threads} threads": Contender(
            lambda: trained(max(1, steps // 8), CURVE), max(1, steps // 8) * 8 * N_PATHS * N_STEPS, threads
        ),
    }
    for n in dict.fromkeys((threads, 1)):
        found[f"matrix products alone, {n} thread{'s' * (n > 1)}"] = Contender(lambda: products(steps), work, n)
    if peer is not None:
        for n in dict.fromkeys((threads, 1)):
            found[f"pfhedge, {n} thread{'s' * (n > 1)}"] = Contender(
                lambda n=n: asked(peer, n, steps), work, n, reported=lambda answer: answer["seconds"]
            )
    return found


def asked(peer: Pfhedge, threads: int, epochs: int, n_judged: int = 0) -> dict[str, Any]:
    return peer.ask(
        task="hedging",
        threads=threads,
        seed=1,
        n_paths=N_PATHS,
        n_steps=N_STEPS,
        epochs=epochs,
        risk_aversion=AVERSION,
        cost=COST,
        lr=LR,
        n_judged=n_judged,
    )


def after_equal_time(seconds: float, rows: dict[str, dict], steps: int, threads: int, peer: Pfhedge | None) -> dict:
    """Prices after so many seconds of training each, by the median rates of the race."""
    found: dict[str, Any] = {}
    for name, policy in (
        (f"qfml, {threads} threads", "direct"),
        (f"qfml, no-transaction band, {threads} threads", "band"),
    ):
        own = max(1, int(seconds / rows[name]["median_seconds"] * steps))
        found[name] = priced(trained(own, policy=policy)) | {"steps": own}
    if peer is not None:
        name = f"pfhedge, {threads} threads"
        own = max(1, int(seconds / rows[name]["median_seconds"] * steps))
        answer = asked(peer, threads, own, JUDGED // 2**16)
        found[name] = {key: answer[key] for key in ("price", "std_error", "seconds")} | {"steps": own}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=measure.default_threads())
    parser.add_argument("--steps", type=int, default=40, help="training steps of a round")
    parser.add_argument("--seconds", type=float, default=60.0, help="of training before prices are compared; 0: none")
    options = parser.parse_args()

    peer = Pfhedge.start()
    versions = measure.versions("torch") | (peer.ask(task="versions") if peer else {})
    before = measure.machine()
    rows, _ = measure.race(contenders(options.steps, options.threads, peer), options.repeats)
    per_round = options.steps * N_PATHS * N_STEPS
    for row in rows.values():
        row["million_path_steps_per_second"] = per_round / row["median_seconds"] / 1e6
    problem = hedging_truth.Problem(AVERSION, COST, N_STEPS)
    record = {
        "benchmark": "hedging",
        "command": measure.command(),
        "machine": before,
        "versions": versions,
        "problem": {"paths": N_PATHS, "steps": N_STEPS, "cost": COST, "risk_aversion": AVERSION, "lr": LR},
        "contenders": rows,
        "exact": {
            "optimum": hedging_truth.solve(problem).price,
            "frictionless": hedging_truth.frictionless(problem).price,
        },
    }
    if options.seconds:
        record["after_equal_time"] = after_equal_time(options.seconds, rows, options.steps, options.threads, peer)
        record["seconds_of_training"] = options.seconds
    measure.show(f"{per_round:,} path-steps of training", rows)
    for name, found in record.get("after_equal_time", {}).items():
        print(f"  {name:44} price {found['price']:.6f} +- {found['std_error']:.6f} after {found['steps']} steps")
    print(f"  {'exact optimum':44} price {record['exact']['optimum']:.6f}")
    measure.write(record, options.out)
    if peer is not None:
        peer.close()


if __name__ == "__main__":
    main()
