"""A million implied Black vols beside QuantLib, py_lets_be_rational, fast-vollib and scipy: time, accuracy, memory.

    python benchmarks/bench_implied_vol.py [--out FILE.json] [--repeats N] [--threads N] [--size N] [--device cuda]

Quotes out of the money: a day to 10 years, vols of 5 to 150 %, strikes up to 5 standard deviations away. Libraries that
work option by option take a sample of 10,000, from which their time is scaled. Accuracy is judged on 2,000 other quotes
with prices from 40 digits, as the relative error of the vol in units of what is promised: the larger of 1e-12 and
4 eps price / (vega vol), the error that a few roundings of the price itself make. Memory is what a process of its own
grows by. Run it alone on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fast_vollib.jackel
import measure
import mpmath
import numpy as np
import py_lets_be_rational
import QuantLib as ql  # noqa: N813
import scipy.optimize
import scipy.special
import torch
from measure import Contender

import pricers as pr
from pricers.black import black_price

FORWARD = 100.0
SAMPLE, JUDGED = 10_000, 2_000
BAR = 0.5  # seconds for a million on two cores


@dataclass(frozen=True)
class Quotes:
    """Prices of calls (or puts) that are out of the money, and the vols behind them."""

    strike: np.ndarray
    expiry: np.ndarray
    vol: np.ndarray
    is_call: np.ndarray
    price: np.ndarray

    def take(self, rows: slice | np.ndarray) -> Quotes:
        return Quotes(*(column[rows] for column in vars(self).values()))


def drawn(n: int, seed: int) -> Quotes:
    rng = np.random.default_rng(seed)
    expiry = np.exp(rng.uniform(math.log(1 / 365), math.log(10.0), n))
    vol = np.exp(rng.uniform(math.log(0.05), math.log(1.5), n))
    strike = FORWARD * np.exp(vol * np.sqrt(expiry) * rng.uniform(-5.0, 5.0, n))
    is_call = strike >= FORWARD
    price = np.empty(n)
    for option, rows in (("call", is_call), ("put", ~is_call)):
        arguments = (torch.from_numpy(column[rows]) for column in (strike, expiry, vol))
        price[rows] = black_price(FORWARD, *arguments, option=option).numpy()
    # deep puts of vast total vols are worth less than any double can hold
    return Quotes(strike, expiry, vol, is_call, price).take(price > 1e-290)


def exact(quotes: Quotes) -> tuple[Quotes, np.ndarray]:
    """The quotes with prices from 40 digits, and the relative error of the vol that is promised for each."""
    prices, promised = [], []
    with mpmath.workdps(40):
        for strike, expiry, vol, is_call in zip(quotes.strike, quotes.expiry, quotes.vol, quotes.is_call, strict=True):
            forward, strike = mpmath.mpf(FORWARD), mpmath.mpf(float(strike))
            deviation = mpmath.mpf(float(vol)) * mpmath.sqrt(mpmath.mpf(float(expiry)))
            sign = 1 if is_call else -1
            d1 = mpmath.log(forward / strike) / deviation + deviation / 2
            price = sign * (forward * mpmath.ncdf(sign * d1) - strike * mpmath.ncdf(sign * (d1 - deviation)))
            vega_vol = forward * mpmath.npdf(d1) * deviation
            prices.append(float(price))
            promised.append(max(1e-12, float(4.0 * 2.0**-52 * price / vega_vol)))
    return Quotes(quotes.strike, quotes.expiry, quotes.vol, quotes.is_call, np.array(prices)), np.array(promised)


# --- the contenders: quotes -> vols, NaN where there is none ---------------------------------------------------------

Solver = Callable[[Quotes], np.ndarray]


def ours(device: str = "cpu") -> Solver:
    def solve(quotes: Quotes) -> np.ndarray:
        vols = np.empty(len(quotes.price))
        for option, rows in (("call", quotes.is_call), ("put", ~quotes.is_call)):
            price, strike, expiry = (
                torch.from_numpy(column[rows]).to(device) for column in (quotes.price, quotes.strike, quotes.expiry)
            )
            vols[rows] = pr.implied_vol(price, FORWARD, strike, expiry, option=option, errors="nan").cpu().numpy()
        return vols

    return solve


def one_by_one(vol: Callable[[float, float, float, bool], float]) -> Solver:
    def solve(quotes: Quotes) -> np.ndarray:
        found = []
        columns = (quotes.price.tolist(), quotes.strike.tolist(), quotes.expiry.tolist(), quotes.is_call.tolist())
        for row in zip(*columns, strict=True):
            try:
                found.append(vol(*row))
            except (RuntimeError, ValueError, ArithmeticError):
                found.append(math.nan)
        return np.array(found)

    return solve


def quantlib(price: float, strike: float, expiry: float, is_call: bool) -> float:
    option = ql.Option.Call if is_call else ql.Option.Put
    found = ql.blackFormulaImpliedStdDev(option, strike, FORWARD, price, 1.0, 0.0, ql.nullDouble(), 1e-12, 1000)
    return found / math.sqrt(expiry)


def quantlib_li(price: float, strike: float, expiry: float, is_call: bool) -> float:
    option = ql.Option.Call if is_call else ql.Option.Put
    found = ql.blackFormulaImpliedStdDevLiRS(
        option, strike, FORWARD, price, 1.0, 0.0, ql.nullDouble(), 1.0, 1e-12, 1000
    )
    return found / math.sqrt(expiry)


def rational(price: float, strike: float, expiry: float, is_call: bool) -> float:
    return py_lets_be_rational.implied_volatility_from_a_transformed_rational_guess(
        price, FORWARD, strike, expiry, 1.0 if is_call else -1.0
    )


def vectorised_rational(quotes: Quotes) -> np.ndarray:
    with np.errstate(all="ignore"):
        return fast_vollib.jackel.jackel_iv_black(
            quotes.price, np.full_like(quotes.strike, FORWARD), quotes.strike, quotes.expiry, quotes.is_call
        )


def newton(quotes: Quotes) -> np.ndarray:
    """What one writes first: scipy's vectorised Newton steps on the price, from the point of steepest ascent."""
    moneyness = np.log(FORWARD / quotes.strike)
    sign = np.where(quotes.is_call, 1.0, -1.0)

    def excess(total: np.ndarray) -> np.ndarray:
        d1 = moneyness / total + 0.5 * total
        ndtr = scipy.special.ndtr
        return sign * (FORWARD * ndtr(sign * d1) - quotes.strike * ndtr(sign * (d1 - total))) - quotes.price

    def vega(total: np.ndarray) -> np.ndarray:
        d1 = moneyness / total + 0.5 * total
        return FORWARD * np.exp(-0.5 * d1 * d1) / math.sqrt(2.0 * math.pi)

    start = np.maximum(np.sqrt(2.0 * np.abs(moneyness)), 1e-3)
    with np.errstate(all="ignore"):
        found = scipy.optimize.newton(excess, start, vega, tol=1e-14, maxiter=100, full_output=True, disp=False)
    return np.where(found.converged, found.root, math.nan) / np.sqrt(quotes.expiry)


def solvers(device: str) -> dict[str, tuple[Solver, bool]]:
    """Each solver, and whether it works option by option."""
    found: dict[str, tuple[Solver, bool]] = {"pricers": (ours(), False)}
    if device != "cpu":
        found[f"pricers, {device}"] = (ours(device), False)
    return found | {
        "fast-vollib": (vectorised_rational, False),
        "scipy.optimize.newton": (newton, False),
        "QuantLib": (one_by_one(quantlib), True),
        "QuantLib LiRS": (one_by_one(quantlib_li), True),
        "py_lets_be_rational": (one_by_one(rational), True),
    }


def contenders(size: int, threads: int, device: str) -> dict[str, Contender]:
    quotes = drawn(size, seed=0)
    sample = quotes.take(slice(0, min(SAMPLE, size)))
    found: dict[str, Contender] = {}
    for name, (solve, slow) in solvers(device).items():
        given = sample if slow else quotes
        contender = Contender(lambda solve=solve, given=given: solve(given), len(given.price), rounds=5)
        found |= measure.at_threads(name, contender, threads) if name == "pricers" else {name: contender}
    return found


def accuracy(solve: Solver, quotes: Quotes, promised: np.ndarray) -> dict:
    error = np.abs(solve(quotes) / quotes.vol - 1.0)
    none = int(np.isnan(error).sum())
    return {
        "max_relative_error": float(np.nanmax(error)) if none < len(error) else None,
        "max_error_in_promised": float(np.nanmax(error / promised)) if none < len(error) else None,
        "share_within_promised": float((error <= promised).mean()),
        "share_without_vol": none / len(error),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=measure.default_threads())
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--device", default="cpu", help="a GPU that takes part too")
    parser.add_argument("--no-memory", action="store_true", help="leave out the processes that measure it")
    parser.add_argument("--peak", nargs=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    setting = (options.size, options.threads, options.device)
    if options.peak:
        (name,) = options.peak
        contenders(1000, *setting[1:])[name].run()  # what is loaded at first use is not counted
        contender = contenders(*setting)[name]
        torch.set_num_threads(contender.threads or 1)
        print(json.dumps(measure.peak_growth(contender.run)))
        return

    before = measure.machine()
    racing = contenders(*setting)
    rows, _ = measure.race(racing, options.repeats)
    judged, promised = exact(drawn(JUDGED, seed=1))
    words = ["--size", str(options.size), "--threads", str(options.threads), "--device", options.device]
    known = solvers(options.device)
    for name, row in rows.items():
        solve, _ = known[name] if name in known else known[name.rsplit(", ", 1)[0]]
        row |= accuracy(solve, judged, promised)
        if not options.no_memory:
            row |= measure.peak_in_child(__file__, name, *words)
    measure.show(
        f"{options.size:,} implied vols",
        rows,
        "max_relative_error",
        "max_error_in_promised",
        "share_without_vol",
        "peak_memory_mib",
    )
    record = {
        "benchmark": "implied Black vols",
        "command": "python benchmarks/bench_implied_vol.py " + " ".join(sys.argv[1:]),
        "bar_seconds": BAR,
        "quotes": next(iter(racing.values())).work,
        "quotes_judged": len(judged.price),
        "contenders": rows,
        "machine_before": before,
        "machine_after": measure.machine(),
        "versions": measure.versions(
            "qfml", "torch", "numpy", "scipy", "QuantLib", "py_lets_be_rational", "fast-vollib", "mpmath"
        ),
    }
    measure.write(record, options.out)


if __name__ == "__main__":
    main()
