"""Greeks, from numbers to numbers, beside QuantLib: time and accuracy.

    python benchmarks/bench_greeks.py [--out FILE.json] [--repeats N] [--threads N] [--size N]

Six first-order and three second-order Greeks of 1,000 Heston calls by Fourier, under one model and under a model for
each call; five Greeks of 100,000 Black-Scholes calls by `greeks` (which differentiates the price) and by the formulas
of `black_scholes_greeks`. QuantLib works option by option on one thread: Greeks of Heston are central differences of
the prices of a sample, those of Black-Scholes come from its closed form. Building models and contracts counts, in both
libraries. Errors are relative to the largest Greek of its kind: Heston's against derivatives of Lewis' integral in
reverse mode, those of Black-Scholes against mpmath, both on a sample. Run it alone on an idle machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import measure
import mpmath
import QuantLib as ql  # noqa: N813
import torch
from bench_fourier import (
    ENGINES,
    GREEKS,
    RATE,
    SPOT,
    TODAY,
    YIELD,
    Calls,
    Engine,
    lewis_price,
    many_models,
    one_model,
    quantlib_engine,
    quantlib_greeks,
    quantlib_price,
    tensor,
    triple,
)
from measure import Contender
from torch import Tensor

import pricers as pr
from pricers.black import black_scholes_greeks

SAMPLE = 20  # calls that QuantLib differences and that are judged
SECOND = (("spot", "spot"), ("spot", "v0"), ("v0", "v0"))
SECOND_BUMP = 1e-3  # relative, of QuantLib's second differences
CLOSED = ("spot", ("spot", "spot"), "vol", "rate", "time")
BARS = {"Heston, one model": 0.05, "Heston, a model for each call": 0.4}

Row = tuple[tuple[float, ...], float, float]  # Heston parameters, strike, days


# --- Heston ---------------------------------------------------------------------------------------------------------


def ours(calls: Calls, wrt: tuple) -> Tensor:
    found = pr.greeks(*triple(calls), wrt=wrt, engine=pr.Fourier())
    return torch.stack([found[name].value.reshape(-1) for name in wrt], dim=-1)


def quantlib_second(rows: list[Row], engine: Engine) -> Tensor:
    """Central differences of prices in spot and initial variance, two at a time."""
    return tensor([_second_differences(row, engine) for row in rows])


def _second_differences(row: Row, engine: Engine) -> list[float]:
    parameters, strike, days = row
    h, k = SECOND_BUMP * SPOT, SECOND_BUMP * parameters[0]

    def at(i: int, j: int) -> float:
        moved = (parameters[0] + j * k, *parameters[1:])
        return quantlib_price(strike, days, quantlib_engine(moved, engine, SPOT + i * h))

    gamma, convexity = ((at(i, j) - 2.0 * at(0, 0) + at(-i, -j)) for i, j in ((1, 0), (0, 1)))
    cross = at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1)
    return [gamma / h**2, cross / (4.0 * h * k), convexity / k**2]


def exact(calls: Calls) -> tuple[Tensor, Tensor]:
    """First and second derivatives of Lewis' integral for the sample."""
    first, second = [], []
    for parameters, strike, days in calls.rows(SAMPLE):
        leaves = tensor([SPOT, *parameters]).requires_grad_()
        price = lewis_price(leaves[1:], leaves[0], tensor([strike]), tensor(days / 365.0))
        (slope,) = torch.autograd.grad(price.sum(), leaves, create_graph=True)
        rows = [torch.autograd.grad(slope[i], leaves, retain_graph=True)[0] for i in (0, 1)]
        first.append(slope.detach())
        second.append(torch.stack([rows[0][0], rows[0][1], rows[1][1]]))
    return torch.stack(first), torch.stack(second)


def heston(calls: Calls, threads: int, second: bool) -> dict[str, Contender]:
    wrt, peer = (SECOND, quantlib_second) if second else (GREEKS, quantlib_greeks)
    n, rows = calls.shape.numel(), calls.rows(SAMPLE)
    found = measure.at_threads("pricers", Contender(lambda: ours(calls, wrt), n, rounds=10), threads)
    price = Contender(lambda: pr.Fourier().price(*triple(calls)).value, n)
    found |= measure.at_threads("pricers, prices alone", price, 1)
    for name, engine in ENGINES.items():
        found[f"QuantLib {name}, differenced"] = Contender(
            lambda engine=engine: peer(rows, engine), len(rows), rounds=5
        )
    return found


# --- Black-Scholes --------------------------------------------------------------------------------------------------


def closed_calls(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Strikes, days and vols."""
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(3, n, generator=generator, dtype=torch.float64)
    days, vol = (7.0 + 1818.0 * u[0]).round(), 0.05 + 0.75 * u[1]
    return SPOT * torch.exp((vol * (days / 365.0).sqrt()) * (4.0 * u[2] - 2.0)), days, vol


def ours_closed(strike: Tensor, days: Tensor, vol: Tensor) -> Tensor:
    market = pr.Market(SPOT, RATE, YIELD)
    found = pr.greeks(pr.European(strike, days / 365.0), pr.BlackScholes(vol), market, CLOSED, pr.Analytic())
    return torch.stack([found[name].value for name in CLOSED], dim=-1)


def formulas(strike: Tensor, days: Tensor, vol: Tensor) -> Tensor:
    found = black_scholes_greeks(SPOT, strike, days / 365.0, vol, RATE, YIELD)
    return torch.stack([found.delta, found.gamma, found.vega, found.rho, found.theta], dim=-1)


def quantlib_closed(rows: list[tuple[float, ...]]) -> Tensor:
    ql.Settings.instance().evaluationDate = TODAY
    day_count = ql.Actual365Fixed()
    rate, income = (ql.YieldTermStructureHandle(ql.FlatForward(TODAY, level, day_count)) for level in (RATE, YIELD))
    spot = ql.QuoteHandle(ql.SimpleQuote(SPOT))
    found = []
    for strike, days, vol in rows:
        surface = ql.BlackVolTermStructureHandle(ql.BlackConstantVol(TODAY, ql.NullCalendar(), vol, day_count))
        process = ql.BlackScholesMertonProcess(spot, income, rate, surface)
        option = ql.VanillaOption(ql.PlainVanillaPayoff(ql.Option.Call, strike), ql.EuropeanExercise(TODAY + int(days)))
        option.setPricingEngine(ql.AnalyticEuropeanEngine(process))
        found.append([option.delta(), option.gamma(), option.vega(), option.rho(), option.theta()])
    return tensor(found)


def mpmath_closed(strike: float, days: float, vol: float) -> list[float]:
    """The formulas of Haug (2007), chapter 2, in 30 digits."""
    with mpmath.workdps(30):
        strike, time, vol, rate, income = (mpmath.mpf(x) for x in (strike, days / 365.0, vol, RATE, YIELD))
        deviation = vol * mpmath.sqrt(time)
        d1 = (mpmath.log(SPOT / strike) + (rate - income) * time) / deviation + deviation / 2
        owned, paid = SPOT * mpmath.exp(-income * time), strike * mpmath.exp(-rate * time)
        delta, density = mpmath.exp(-income * time) * mpmath.ncdf(d1), mpmath.npdf(d1)
        cash = paid * mpmath.ncdf(d1 - deviation)
        vega = owned * density * mpmath.sqrt(time)
        decay = -owned * density * vol / (2 * mpmath.sqrt(time)) - rate * cash + income * delta * SPOT
        return [float(x) for x in (delta, owned / SPOT * density / (SPOT * deviation), vega, time * cash, decay)]


def black_scholes(n: int, threads: int) -> dict[str, Contender]:
    calls = closed_calls(n)
    rows = list(zip(*(column.tolist() for column in calls), strict=True))
    found = measure.at_threads("pricers.greeks", Contender(lambda: ours_closed(*calls), n), threads)
    found |= measure.at_threads("pricers.black.black_scholes_greeks", Contender(lambda: formulas(*calls), n), threads)
    few = rows[: min(n, 2_000)]
    found["QuantLib AnalyticEuropeanEngine"] = Contender(lambda: quantlib_closed(few), len(few), rounds=5)
    return found


# --- the races ------------------------------------------------------------------------------------------------------


def judged(results: dict[str, list[Tensor]], truth: Tensor, chosen: list[int]) -> dict[str, dict]:
    """Of each contender that gives all Greeks the largest error, relative to the largest Greek of the kind."""
    scale, found = truth.abs().amax(dim=0), {}
    for name, rounds in results.items():
        values = rounds[-1]
        if values.ndim == 2:
            sample = values if len(values) == len(chosen) else values[chosen]
            found[name] = {"max_relative_error": float(((sample - truth).abs() / scale).max())}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=measure.default_threads())
    parser.add_argument("--size", type=int, default=1000, help="number of Heston calls; a hundred times as many closed")
    options = parser.parse_args()

    record = {
        "benchmark": "Greeks without simulation",
        "command": "python benchmarks/bench_greeks.py " + " ".join(sys.argv[1:]),
        "machine_before": measure.machine(),
        "bars_seconds": BARS,
        "cases": {},
    }

    def raced(case: str, racing: dict[str, Contender], truth: Tensor, chosen: list[int], judge: str) -> None:
        rows, results = measure.race(racing, options.repeats)
        for name, found in judged(results, truth, chosen).items():
            rows[name] |= found
        for name, contender in racing.items():
            rows[name]["peak_memory_mib"] = round(measure.peak_growth(contender.run) / 2**20, 2)
        work = next(iter(racing.values())).work
        record["cases"][case] = {"options": work, "contenders": rows, "truth": f"{judge}, {len(chosen)} options"}
        measure.show(f"{case}: {judge}", rows, "max_relative_error", "peak_memory_mib")

    builders: dict[str, Callable[[int], Calls]] = {"one model": one_model, "a model for each call": many_models}
    for case, build in builders.items():
        calls = build(options.size)
        truths, chosen = exact(calls), calls.sample(SAMPLE)
        for second, title in enumerate((f"Heston, {case}", f"Heston, second order, {case}")):
            racing = heston(calls, options.threads, bool(second))
            raced(title, racing, truths[second], chosen, "reverse-mode derivatives of Lewis' integral")
    n = 100 * options.size
    columns = [column.tolist() for column in closed_calls(n)]
    chosen = list(range(SAMPLE))
    truth = tensor([mpmath_closed(*row) for row in list(zip(*columns, strict=True))[:SAMPLE]])
    raced("Black-Scholes", black_scholes(n, options.threads), truth, chosen, "the formulas in mpmath")
    record |= {"machine_after": measure.machine(), "versions": measure.versions("qfml", "torch", "QuantLib", "mpmath")}
    measure.write(record, options.out)


if __name__ == "__main__":
    main()
