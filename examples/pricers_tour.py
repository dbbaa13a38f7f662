"""A tour of pricers: each instrument under each model that makes sense, with value, error and time.

    python examples/pricers_tour.py [--paths 16384] [--only asian,heston]

Each pair is priced by the best engine that draws nothing and, where there is one, by simulation beside it. The two
should agree within their errors: the last column says how many errors of both together they are apart. A fixed number
of time steps leaves a bias beside the error, which shows under `rough_heston` first. Pairs without the left column have
no engine but simulation; the notes of approximations stand below the table.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pricers as pr
from pricers.pricing import WITHOUT_SIMULATION, Engine, capable_engines

MARKET = pr.Market(spot=100.0, rate=0.03, dividend_yield=0.01)
MARKET_OF_TWO = pr.Market(spot=[100.0, 95.0], rate=0.03, dividend_yield=[0.01, 0.02])
HEAD = f"{'value':>11} {'error':>8} {'time':>11}"
MONTHS = [month / 12 for month in range(1, 13)]

# --- models: roughly 20 % volatility each -------------------------------------------------------------------------

SMILE = pr.VolSurface(
    log_moneyness=[-0.5, -0.25, 0.0, 0.25, 0.5],
    expiries=[0.25, 1.0, 2.0],
    vols=[
        [0.29, 0.24, 0.200, 0.19, 0.20],
        [0.26, 0.225, 0.200, 0.19, 0.19],
        [0.245, 0.22, 0.200, 0.19, 0.19],
    ],
)
MODELS: dict[str, pr.Model] = {
    "black_scholes": pr.BlackScholes(vol=0.2),
    "local_vol": pr.LocalVol(SMILE),
    "heston": pr.Heston(v0=0.04, kappa=2.0, theta=0.04, sigma=0.4, rho=-0.6),
    "bates": pr.Bates(0.03, 2.0, 0.03, 0.4, -0.6, intensity=0.3, jump_mean=-0.08, jump_std=0.12),
    "merton": pr.Merton(vol=0.17, intensity=0.4, jump_mean=-0.08, jump_std=0.12),
    "sabr": pr.SABR(alpha=0.2, beta=1.0, rho=-0.4, nu=0.4),
    "rough_bergomi": pr.RoughBergomi(xi=0.04, eta=1.6, hurst=0.1, rho=-0.7),
    "rough_heston": pr.RoughHeston(v0=0.04, kappa=0.3, theta=0.04, sigma=0.3, rho=-0.7, hurst=0.1),
}
TWO_ASSETS = pr.BlackScholes(vol=[0.2, 0.25], correlation=[[1.0, 0.4], [0.4, 1.0]])

# --- instruments --------------------------------------------------------------------------------------------------

INSTRUMENTS: dict[str, pr.Instrument] = {
    "European call": pr.European(strike=100.0, expiry=1.0, option="call"),
    "Digital, cash": pr.Digital(strike=100.0, expiry=1.0, option="call", pays="cash"),
    "Digital, asset": pr.Digital(strike=100.0, expiry=1.0, option="put", pays="asset"),
    "Barrier, down-out": pr.Barrier(strike=100.0, expiry=1.0, barrier=85.0, kind="down-out", option="call"),
    "Barrier, up-in on dates": pr.Barrier(100.0, 1.0, barrier=115.0, kind="up-in", option="call", monitoring=MONTHS),
    "Asian, arithmetic": pr.Asian(strike=100.0, times=MONTHS, option="call"),
    "Asian, geometric": pr.Asian(strike=100.0, times=MONTHS, option="call", average="geometric"),
    "Asian with a barrier": pr.AsianBarrier(100.0, MONTHS, barrier=125.0, kind="up-out", option="call"),
    "Lookback, fixed": pr.Lookback(strike=100.0, expiry=1.0, option="call"),
    "Lookback, floating": pr.Lookback(None, expiry=1.0, option="put"),
    "American put": pr.American(strike=100.0, expiry=1.0, option="put"),
    "Bermudan put": pr.Bermudan(strike=100.0, times=[0.25, 0.5, 0.75, 1.0], option="put"),
    "Forward start": pr.ForwardStart(moneyness=1.0, reset=0.5, expiry=1.0, option="call"),
    "Cliquet": pr.Cliquet(times=[0.0, 0.25, 0.5, 0.75, 1.0], local_floor=-0.03, local_cap=0.05),
    "Autocallable": pr.Autocallable(
        times=[0.25, 0.5, 0.75, 1.0], reference=100.0, autocall_barrier=1.0, coupon=0.02, protection_barrier=0.7
    ),
    "Variance swap": pr.VarianceSwap(strike=0.035, expiry=1.0),
    "Variance option": pr.VarianceOption(strike=0.035, expiry=1.0, option="call"),
}
INSTRUMENTS_OF_TWO: dict[str, pr.Instrument] = {
    "Basket, weighted": pr.Basket(strike=100.0, expiry=1.0, option="call", weights=[0.5, 0.5]),
    "Basket, best of": pr.Basket(strike=100.0, expiry=1.0, option="call", on="max"),
    "Basket, worst of": pr.Basket(strike=100.0, expiry=1.0, option="put", on="min"),
    "Basket, spread": pr.Basket(strike=5.0, expiry=1.0, option="call", on="spread"),
    "Bermudan max-call": pr.Bermudan(100.0, times=[1 / 3, 2 / 3, 1.0], option="call", on="max"),
}


def triples() -> Iterator[tuple[str, str, pr.Instrument, pr.Model, pr.Market]]:
    """Every pair with its names and the market."""
    for instrument_name, instrument in INSTRUMENTS.items():
        for model_name, model in MODELS.items():
            yield instrument_name, model_name, instrument, model, MARKET
    for instrument_name, instrument in INSTRUMENTS_OF_TWO.items():
        yield instrument_name, "black_scholes of two", instrument, TWO_ASSETS, MARKET_OF_TWO


def engines(able: tuple[str, ...], n_paths: int) -> tuple[Engine | None, Engine | None]:
    """The best engine that draws nothing, and a simulation; None where there is none."""
    exact = next((pr.ENGINES[name] for name in able if name in WITHOUT_SIMULATION), None)
    if "MonteCarlo" in able:
        return exact, pr.MonteCarlo(n_paths, n_steps=48, noise="sobol", seed=1)
    if "LongstaffSchwartz" in able:
        return exact, pr.LongstaffSchwartz(n_paths, n_steps=48, seed=1)
    return exact, None


def timed(
    instrument: pr.Instrument, model: pr.Model, market: pr.Market, engine: Engine | None
) -> tuple[pr.Estimate | None, float]:
    """The price, and the seconds that it took."""
    if engine is None:
        return None, 0.0
    start = time.perf_counter()
    estimate = pr.price(instrument, model, market, engine)
    return estimate, time.perf_counter() - start


def cell(estimate: pr.Estimate | None, seconds: float) -> str:
    """Value, error (statistical and numerical together) and milliseconds in one column."""
    if estimate is None:
        return " " * len(HEAD)
    return f"{estimate.value.item():11.6f} {error(estimate):8.1e} {1e3 * seconds:8.0f} ms"


def error(*estimates: pr.Estimate) -> float:
    """Standard errors and numerical bounds of independent numbers, as one."""
    return math.hypot(*(part.item() for one in estimates for part in (one.std_error, one.error_bound)))


@dataclass(frozen=True)
class Row:
    """One pair: the estimate that draws nothing, the simulated one, and the printed line."""

    instrument: str
    model: str
    exact: pr.Estimate | None
    simulated: pr.Estimate | None
    line: str

    @property
    def notes(self) -> list[str]:
        """What the engines want a reader to know."""
        return [estimate.note for estimate in (self.exact, self.simulated) if estimate is not None and estimate.note]


def rows(n_paths: int, only: tuple[str, ...] = ()) -> Iterator[Row]:
    """The pairs whose names contain all words of `only`; those that nothing prices are left out."""
    for instrument_name, model_name, instrument, model, market in triples():
        words = f"{instrument_name} {type(instrument).__name__} {model_name}".lower()
        if not all(word in words for word in only):
            continue
        able = capable_engines(instrument, model, market)
        if not able:
            continue
        exact, simulated = engines(able, n_paths)
        one, one_time = timed(instrument, model, market, exact)
        other, other_time = timed(instrument, model, market, simulated)
        apart = ""
        if one is not None and other is not None and error(one, other) > 0:
            apart = f"{(other.value - one.value).item() / error(one, other):5.1f}"
        line = f"{instrument_name:23} {model_name:19} {cell(one, one_time)} | {cell(other, other_time)} {apart}"
        yield Row(instrument_name, model_name, one, other, line.rstrip())


def main() -> None:
    """Print the table, and below it the notes of the engines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paths", type=int, default=16_384, help="paths of each simulation, a multiple of 16")
    parser.add_argument("--only", default="", help="words that instrument or model must contain, by commas")
    arguments = parser.parse_args()
    print(f"{'':23} {'':19} {'without simulation':{len(HEAD)}} | {'simulated':{len(HEAD)}}")
    print(f"{'instrument':23} {'model':19} {HEAD} | {HEAD} apart", flush=True)
    notes: dict[str, list[str]] = {}
    for row in rows(arguments.paths, tuple(filter(None, arguments.only.lower().split(",")))):
        print(row.line, flush=True)
        for note in row.notes:
            notes.setdefault(note, []).append(f"{row.instrument} under {row.model}")
    for note, pairs in notes.items():
        print(f"\n{note}:\n    " + "\n    ".join(pairs))


if __name__ == "__main__":
    main()
