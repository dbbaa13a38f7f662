"""Heston calls from the characteristic function, from numbers to prices, beside QuantLib: time, accuracy, memory.

    python benchmarks/bench_fourier.py [--out FILE.json] [--repeats N] [--threads N] [--size N] [--device cuda]

1,000 strikes of one model, 1,000 parameter sets and expiries of their own, a surface of 40 strikes by 10 expiries, and
the six first-order Greeks of the 1,000 calls, in turns in one process. Building models and contracts counts, in both
libraries. QuantLib works option by option on one thread; it has no Greeks of Heston by formula and differences prices
of a sample. Errors are in units of the forward: of prices against Lewis' integral, itself checked against mpmath on a
sample; of Greeks against the reverse-mode derivatives of that integral. Memory is what a process of its own grows by.
Run it alone on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import measure
import mpmath
import QuantLib as ql  # noqa: N813
import torch
from measure import Contender
from torch import Tensor

import pricers as pr
from pricers.fourier import lewis_european

SPOT, RATE, YIELD = 100.0, 0.01, 0.02
NAMES = ("v0", "kappa", "theta", "sigma", "rho")
GREEKS = ("spot", *NAMES)
BUMP = 1e-4  # relative, of QuantLib's differences
TODAY = ql.Date(15, 1, 2026)
BARS = {"one model": 0.005, "a model for each call": 0.040}


@dataclass(frozen=True)
class Calls:
    """Calls under Heston; parameters, strikes and days (QuantLib knows whole ones only) broadcast."""

    parameters: dict[str, Tensor]
    strike: Tensor
    days: Tensor

    @property
    def expiry(self) -> Tensor:
        return self.days / 365.0

    @property
    def shape(self) -> torch.Size:
        return torch.broadcast_shapes(self.strike.shape, self.days.shape, *(p.shape for p in self.parameters.values()))

    def rows(self, n: int | None = None) -> list[tuple[tuple[float, ...], float, float]]:
        """Parameters, strike and days of each call, or of `n` of them at even distances."""
        columns = [
            t.expand(self.shape).reshape(-1).tolist() for t in (*self.parameters.values(), self.strike, self.days)
        ]
        rows = [(values[:5], values[5], values[6]) for values in zip(*columns, strict=True)]
        return rows if n is None else [rows[i] for i in self.sample(n)]

    def sample(self, n: int) -> list[int]:
        total = self.shape.numel()
        return [i * total // min(n, total) for i in range(min(n, total))]

    def to(self, device: str) -> Calls:
        moved = {name: value.to(device) for name, value in self.parameters.items()}
        return Calls(moved, self.strike.to(device), self.days.to(device))


def tensor(value: object) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def one_model(n: int) -> Calls:
    parameters = dict(zip(NAMES, tensor([0.04, 4.0, 0.25, 1.0, -0.5]), strict=True))
    return Calls(parameters, torch.linspace(50.0, 200.0, n, dtype=torch.float64), tensor(365.0))


def many_models(n: int) -> Calls:
    """From tame to far beyond Feller's condition, a week to 5 years, strikes up to 2 deviations away."""
    generator = torch.Generator().manual_seed(0)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator, dtype=torch.float64)

    box = ((0.01, 0.25), (0.3, 6.0), (0.01, 0.25), (0.1, 1.5), (-0.9, 0.3))
    parameters = {name: uniform(*ends) for name, ends in zip(NAMES, box, strict=True)}
    days = uniform(7.0, 5.0 * 365.0).round()
    width = torch.sqrt(parameters["theta"] * days / 365.0)
    return Calls(parameters, SPOT * torch.exp(width * uniform(-2.0, 2.0)), days)


def surface(n: int) -> Calls:
    days = tensor([30.0, 60.0, 91.0, 182.0, 273.0, 365.0, 547.0, 730.0, 1095.0, 1825.0])
    distance = torch.linspace(-2.0, 2.0, max(2, n // 25), dtype=torch.float64)[:, None]
    return Calls(one_model(1).parameters, SPOT * torch.exp(0.3 * torch.sqrt(days / 365.0) * distance), days[None, :])


# --- the contenders -------------------------------------------------------------------------------------------------


def triple(calls: Calls) -> tuple[pr.European, pr.Heston, pr.Market]:
    market = pr.Market(calls.strike.new_tensor(SPOT), rate=RATE, dividend_yield=YIELD)
    return pr.European(calls.strike, calls.expiry, "call"), pr.Heston(**calls.parameters), market


def ours(calls: Calls) -> Tensor:
    return pr.Fourier().price(*triple(calls)).value.cpu()


def our_greeks(calls: Calls) -> Tensor:
    found = pr.greeks(*triple(calls), wrt=GREEKS, engine=pr.Fourier())
    return torch.stack([found[name].value.reshape(-1).cpu() for name in GREEKS], dim=-1)


Engine = Callable[[ql.HestonModel], ql.PricingEngine]
ENGINES: dict[str, Engine] = {
    "AnalyticHestonEngine": ql.AnalyticHestonEngine,
    "AnalyticHestonEngine, adaptive to 1e-10": lambda model: ql.AnalyticHestonEngine(model, 1e-10, 100_000),
    "COSHestonEngine": ql.COSHestonEngine,
}


def quantlib_engine(parameters: tuple[float, ...], engine: Engine, spot: float = SPOT) -> ql.PricingEngine:
    ql.Settings.instance().evaluationDate = TODAY
    day_count = ql.Actual365Fixed()
    rate, dividend = (ql.YieldTermStructureHandle(ql.FlatForward(TODAY, level, day_count)) for level in (RATE, YIELD))
    process = ql.HestonProcess(rate, dividend, ql.QuoteHandle(ql.SimpleQuote(spot)), *parameters)
    return engine(ql.HestonModel(process))


def quantlib_price(strike: float, days: float, engine: ql.PricingEngine) -> float:
    option = ql.VanillaOption(ql.PlainVanillaPayoff(ql.Option.Call, strike), ql.EuropeanExercise(TODAY + int(days)))
    option.setPricingEngine(engine)
    return option.NPV()


def quantlib(rows: list[tuple[tuple[float, ...], float, float]], engine: Engine) -> Tensor:
    """One call after another; a model is built where the parameters change."""
    prices, before, ready = [], None, None
    for parameters, strike, days in rows:
        if parameters != before:
            before, ready = parameters, quantlib_engine(parameters, engine)
        prices.append(quantlib_price(strike, days, ready))
    return tensor(prices)


def quantlib_greeks(rows: list[tuple[tuple[float, ...], float, float]], engine: Engine) -> Tensor:
    """Central differences of prices."""
    found = []
    for parameters, strike, days in rows:
        greeks = []
        for i, level in enumerate((SPOT, *parameters)):
            ends = []
            for sign in (1.0, -1.0):
                moved = [SPOT, *parameters]
                moved[i] += sign * BUMP * level
                ends.append(quantlib_price(strike, days, quantlib_engine(tuple(moved[1:]), engine, moved[0])))
            greeks.append((ends[0] - ends[1]) / (2.0 * BUMP * level))
        found.append(greeks)
    return tensor(found)


# --- the truth ------------------------------------------------------------------------------------------------------


def lewis_price(parameters: Tensor, spot: Tensor, strike: Tensor, expiry: Tensor) -> Tensor:
    model = pr.Heston(*parameters)
    forward, discount = spot * torch.exp((RATE - YIELD) * expiry), torch.exp(-RATE * expiry)
    scale = float(torch.sqrt(model.cumulants(expiry)[1]).detach())
    out, _ = lewis_european(
        lambda u, shift: model.log_characteristic(u, expiry, shift), torch.log(strike / forward), scale
    )
    return discount * (forward * out + (forward - strike).clamp(min=0.0))


def exact(calls: Calls) -> Tensor:
    """All prices by Lewis' integral, calls of one law together."""
    groups: dict[tuple, list[int]] = {}
    rows = calls.rows()
    for i, (parameters, _, days) in enumerate(rows):
        groups.setdefault((*parameters, days), []).append(i)
    prices = torch.empty(len(rows), dtype=torch.float64)
    for (*parameters, days), members in groups.items():
        strikes = tensor([rows[i][1] for i in members])
        prices[members] = lewis_price(tensor(parameters), tensor(SPOT), strikes, tensor(days / 365.0))
    return prices


def exact_greeks(calls: Calls, n: int) -> Tensor:
    """Greeks of a sample by reverse-mode differentiation of Lewis' integral."""
    found = []
    for parameters, strike, days in calls.rows(n):
        leaves = tensor([SPOT, *parameters]).requires_grad_()
        price = lewis_price(leaves[1:], leaves[0], tensor([strike]), tensor(days / 365.0))
        found.append(torch.autograd.grad(price.sum(), leaves)[0])
    return torch.stack(found)


def mpmath_price(parameters: tuple[float, ...], strike: float, days: float) -> float:
    """Lewis' integral once more, from the formula of the paper and in 30 digits."""
    with mpmath.workdps(30):
        v0, kappa, theta, sigma, rho = map(mpmath.mpf, parameters)
        time = mpmath.mpf(days) / 365
        forward = SPOT * mpmath.exp((mpmath.mpf(RATE) - mpmath.mpf(YIELD)) * time)
        x = mpmath.log(strike / forward)

        def integrand(u: mpmath.mpf) -> mpmath.mpf:
            z = mpmath.mpc(u, -0.5)
            b = kappa - 1j * rho * sigma * z
            d = mpmath.sqrt(b * b + sigma**2 * (1j * z + z * z))
            g = (b - d) / (b + d)
            decay = mpmath.exp(-d * time)
            level = kappa * theta / sigma**2 * ((b - d) * time - 2 * mpmath.log((1 - g * decay) / (1 - g)))
            exponent = level + v0 * (b - d) / sigma**2 * (1 - decay) / (1 - g * decay)
            return mpmath.re(mpmath.exp(exponent - 1j * u * x)) / (u * u + 0.25)

        end = mpmath.mpf(1)
        while abs(integrand(end)) > mpmath.mpf(10) ** -18:
            end *= 2
        edges = [mpmath.mpf(0), *(end / 2**k for k in range(12, -1, -1))]
        value = forward - mpmath.sqrt(strike * forward) / mpmath.pi * mpmath.quad(integrand, edges)
        return float(mpmath.exp(-mpmath.mpf(RATE) * time) * value)


# --- the races ------------------------------------------------------------------------------------------------------

CASES: dict[str, tuple[Callable[[int], Calls], bool]] = {
    "one model": (one_model, False),
    "a model for each call": (many_models, False),
    "surface of 10 expiries": (surface, False),
    "Greeks, one model": (one_model, True),
    "Greeks, a model for each call": (many_models, True),
}
SAMPLE = 40  # calls whose Greeks QuantLib differences


def contenders(case: str, size: int, threads: int, device: str) -> dict[str, Contender]:
    build, greeks = CASES[case]
    calls = build(size)
    n, work = calls.shape.numel(), our_greeks if greeks else ours
    rounds = 5 if greeks else 1_000
    found = measure.at_threads("pricers", Contender(lambda: work(calls), n, rounds=rounds), threads)
    if device != "cpu":
        there = calls.to(device)
        found[f"pricers, {device}"] = Contender(lambda: work(there), n, rounds=rounds)
    rows = calls.rows(SAMPLE if greeks else None)
    peer = quantlib_greeks if greeks else quantlib
    for name, engine in ENGINES.items():
        if not (greeks and name == "AnalyticHestonEngine"):  # too rough to difference
            found[f"QuantLib {name}"] = Contender(lambda engine=engine: peer(rows, engine), len(rows), rounds=5)
    return found


def errors(case: str, size: int, results: dict[str, Tensor]) -> tuple[dict[str, dict], dict]:
    """Of each contender the largest error, in units of the forward; and what is known of the truth itself."""
    build, greeks = CASES[case]
    calls = build(size)
    if greeks:
        chosen, truth = calls.sample(SAMPLE), exact_greeks(calls, SAMPLE)
        scale = truth.abs().amax(dim=0)  # of each Greek
        found = {
            name: {
                "max_relative_error": float(
                    ((result if len(result) == len(chosen) else result[chosen]) - truth).abs().div(scale).max()
                )
            }
            for name, result in results.items()
        }
        return found, {
            "truth": f"reverse-mode derivatives of Lewis' integral, {len(chosen)} calls; relative to the largest"
        }
    forward = (SPOT * torch.exp((RATE - YIELD) * calls.expiry)).expand(calls.shape).reshape(-1)
    truth = exact(calls)
    few = calls.sample(5)
    by_mpmath = tensor([mpmath_price(*row) for row in calls.rows(5)])
    found = {}
    for name, result in results.items():
        error = (result.reshape(-1) - truth).abs() / forward
        found[name] = {
            "max_error_of_forward": float(error.max()),
            "share_above_1e-8": float((error > 1e-8).double().mean()),
        }
    return found, {
        "truth": "Lewis' integral",
        "truth_against_mpmath_of_forward": float(((by_mpmath - truth[few]).abs() / forward[few]).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=measure.default_threads())
    parser.add_argument("--size", type=int, default=1000, help="number of calls (of the surface: 400)")
    parser.add_argument("--device", default="cpu", help="a GPU that takes part too")
    parser.add_argument("--no-memory", action="store_true", help="leave out the processes that measure it")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    setting = (options.size, options.threads, options.device)
    if options.peak:
        case, name = options.peak
        contenders(case, 50, *setting[1:])[name].run()  # what is loaded at first use is not counted
        contender = contenders(case, *setting)[name]
        torch.set_num_threads(contender.threads or 1)
        print(json.dumps(measure.peak_growth(contender.run)))
        return

    record = {
        "benchmark": "Heston calls by Fourier methods",
        "command": "python benchmarks/bench_fourier.py " + " ".join(sys.argv[1:]),
        "machine_before": measure.machine(),
        "bars_seconds": BARS,
        "cases": {},
    }
    for case in CASES:
        racing = contenders(case, *setting)
        rows, results = measure.race(racing, options.repeats)
        found, truth = errors(case, options.size, {name: result[-1] for name, result in results.items()})
        words = ["--size", str(options.size), "--threads", str(options.threads), "--device", options.device]
        for name, row in rows.items():
            row |= found[name]
            if not options.no_memory:
                row |= measure.peak_in_child(__file__, case, name, *words)
        record["cases"][case] = {"calls": next(iter(racing.values())).work, "contenders": rows} | truth
        measure.show(f"{case}: {truth}", rows, "max_error_of_forward", "max_relative_error", "peak_memory_mib")
    record |= {"machine_after": measure.machine(), "versions": measure.versions("qfml", "torch", "QuantLib", "mpmath")}
    measure.write(record, options.out)


if __name__ == "__main__":
    main()
