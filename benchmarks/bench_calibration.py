"""Heston calibrated to surfaces like the DAX of July 2002, exactly and in batches, beside QuantLib: time, fit errors.

    python benchmarks/bench_calibration.py [--out FILE.json] [--repeats N] [--threads N] [--surfaces N] [--peer N]
                                           [--map FOLDER]

Each surface is the DAX surface with its levels and its single vols disturbed at random: 13 strikes at 8 maturities. All
contenders start from the same parameters, but for the rows of the multi-start, which search for themselves. QuantLib
(HestonModelHelper, AnalyticHestonEngine, LevenbergMarquardt) takes the first surfaces one after another, on one core;
its time is scaled. Further rows are of an inverse map (a network from surface to parameters over the whole box) by
itself, with exact steps after it, and as `calibrate(..., method="inverse")` does all of it: three steps, judged by the
exact engine, with standard errors. The map is read from the folder `--map`, or trained (some minutes, into that folder
if it is named); its training is not part of the rows' time, and is recorded. Errors are those of the exact engine, in
bps of vol. Run it alone on an idle machine.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import measure
import numpy as np
import QuantLib as ql  # noqa: N813
import torch
from measure import Contender

from qfml.calibration import HestonCalibration, Surface, calibrate
from qfml.calibration.dax import DATE, DAYS, SPOT, STRIKES, ZERO_RATES
from qfml.calibration.exact import exact_vols, refined
from qfml.calibration.inverse import InverseMap
from qfml.calibration.layout import Layout
from qfml.calibration.model import Quotes
from qfml.calibration.neural import neural_start
from qfml.calibration.surface import as_quotes

START = {"v0": 0.1, "kappa": 2.0, "theta": 0.1, "sigma": 0.8, "rho": -0.5}  # as QuantLib's own test has it, about
BAR = 15.0  # times QuantLib's surfaces per second, on each core
MODEL = HestonCalibration()
BOX = {"v0": (0.005, 0.5), "kappa": (0.1, 20.0), "theta": (0.005, 0.5), "sigma": (0.05, 4.0), "rho": (-0.95, 0.5)}


def surfaces(n: int, seed: int) -> Quotes:
    """DAX surfaces with vols scaled by up to 20 %, tilted, and disturbed by half a per cent."""
    rng = np.random.default_rng(seed)
    dax = as_quotes([Surface.dax_2002("exact_days")])
    log_moneyness, vol = dax.log_moneyness[0].numpy(), dax.vol[0].numpy()
    level = rng.uniform(0.8, 1.2, (n, 1))
    tilt = rng.uniform(-0.1, 0.1, (n, 1)) * log_moneyness
    disturbed = vol * level + tilt + 0.005 * vol * rng.standard_normal((n, len(vol)))
    repeated = {name: column.expand(n, -1).contiguous() for name, column in vars(dax).items()}
    return Quotes(**(repeated | {"vol": torch.from_numpy(disturbed)}))


def by_quantlib(quotes: Quotes) -> np.ndarray:
    """Parameters (n, 5) in the order of ours, one surface after another."""
    today = ql.Date(int(DATE[8:10]), int(DATE[5:7]), int(DATE[:4]))
    ql.Settings.instance().evaluationDate = today
    dates = [today, *(today + days for days in DAYS)]
    curve = ql.ZeroCurve(
        dates, [ZERO_RATES[0], *ZERO_RATES], ql.Actual365Fixed(), ql.NullCalendar(), ql.Linear(), ql.Continuous
    )
    rates = ql.YieldTermStructureHandle(curve)
    dividends = ql.YieldTermStructureHandle(ql.FlatForward(today, 0.0, ql.Actual365Fixed()))
    spot = ql.QuoteHandle(ql.SimpleQuote(SPOT))
    found = []
    for vols, moneyness, years in zip(quotes.vol, quotes.log_moneyness, quotes.expiry, strict=True):
        process = ql.HestonProcess(
            rates, dividends, spot, *(START[name] for name in ("v0", "kappa", "theta", "sigma", "rho"))
        )
        model = ql.HestonModel(process)
        engine = ql.AnalyticHestonEngine(model)
        helpers = []
        for vol, log_moneyness, expiry in zip(vols.tolist(), moneyness.tolist(), years.tolist(), strict=True):
            days = round(365.0 * expiry)
            forward = SPOT / curve.discount(today + days)
            strike = min(STRIKES, key=lambda one: abs(one - forward * np.exp(log_moneyness)))
            helper = ql.HestonModelHelper(
                ql.Period(days, ql.Days),
                ql.NullCalendar(),
                SPOT,
                strike,
                ql.QuoteHandle(ql.SimpleQuote(vol)),
                rates,
                dividends,
                ql.BlackCalibrationHelper.ImpliedVolError,
            )
            helper.setPricingEngine(engine)
            helpers.append(helper)
        model.calibrate(helpers, ql.LevenbergMarquardt(1e-8, 1e-8, 1e-8), ql.EndCriteria(400, 40, 1e-8, 1e-8, 1e-8))
        theta, kappa, sigma, rho, v0 = model.params()
        found.append([v0, kappa, theta, sigma, rho])
    return np.array(found)


def contenders(n: int, n_peer: int, threads: int, inverse: InverseMap) -> dict[str, Contender]:
    quotes = surfaces(n, seed=0)
    few = quotes.at(slice(0, n_peer))
    racing = measure.at_threads("exact", Contender(lambda: calibrate(quotes, start=START).x, n), threads)
    racing |= measure.at_threads("exact, multi-start", Contender(lambda: calibrate(quotes).x, n), threads)
    racing["QuantLib, one core"] = Contender(lambda: by_quantlib(few), n_peer)
    return racing | neural(quotes, inverse, threads)


def neural(quotes: Quotes, inverse: InverseMap, threads: int) -> dict[str, Contender]:
    """Rows of the trained network: its answer, and so many exact steps from there."""

    def steps(n_steps: int) -> np.ndarray:
        return refined(MODEL, quotes, neural_start(quotes, inverse, MODEL), n_steps).x.numpy()

    n = quotes.n_surfaces
    racing = measure.at_threads(
        "inverse map", Contender(lambda: neural_start(quotes, inverse, MODEL).numpy(), n), threads
    )
    for n_steps in (1, 2, 3):
        one = Contender(lambda n_steps=n_steps: steps(n_steps), n)
        racing |= measure.at_threads(f"inverse map and {n_steps} steps", one, threads)
    whole = Contender(lambda: calibrate(quotes, method="inverse", inverse=inverse).x, n)
    return racing | measure.at_threads('calibrate(method="inverse")', whole, threads)


def trained_map(folder: Path | None) -> InverseMap:
    """The map of the folder; where there is none it is trained, and kept if the folder is named."""
    if folder is not None and folder.exists():
        return InverseMap.load(folder)
    made = InverseMap.train(MODEL, Layout.of(as_quotes([Surface.dax_2002("exact_days")])), box=BOX)
    if folder is not None:
        made.save(folder)
    return made


def fit_errors(parameters: np.ndarray, quotes: Quotes) -> dict[str, float]:
    """Of the exact engine at these parameters: root mean square over each surface, bps of vol."""
    some = quotes.at(slice(0, len(parameters)))
    vols = exact_vols(MODEL, torch.from_numpy(np.ascontiguousarray(parameters)), some)
    rmse = 1e4 * (vols - some.vol).square().mean(-1).sqrt()
    return {"median_rmse_bps": rmse.median().item(), "max_rmse_bps": rmse.max().item()}


def excess(rows: dict[str, dict], results: dict[str, list[np.ndarray]], quotes: Quotes) -> None:
    """Adds to each row how much worse than the best fit of a surface its fits are, at most, bps."""
    n = min(len(found[-1]) for found in results.values())
    some = quotes.at(slice(0, n))
    error = {}
    for name, found in results.items():
        vols = exact_vols(MODEL, torch.from_numpy(np.ascontiguousarray(found[-1][:n])), some)
        error[name] = 1e4 * (vols - some.vol).square().mean(-1).sqrt()
    best = torch.stack(list(error.values())).amin(0)
    for name, found in error.items():
        rows[name]["max_excess_bps"] = (found - best).max().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=measure.default_threads())
    parser.add_argument("--surfaces", type=int, default=1000)
    parser.add_argument("--peer", type=int, default=10, help="surfaces that QuantLib takes")
    parser.add_argument("--map", type=Path, help="folder of an inverse map")
    options = parser.parse_args()
    inverse = trained_map(options.map)

    before = measure.machine()
    quotes = surfaces(options.surfaces, seed=0)
    rows, results = measure.race(contenders(options.surfaces, options.peer, options.threads, inverse), options.repeats)
    for name, row in rows.items():
        row["surfaces_per_second"] = options.surfaces / row["min_seconds"]
        row |= fit_errors(results[name][-1], quotes)
    excess(rows, results, quotes)
    peer = rows["QuantLib, one core"]["surfaces_per_second"]
    for row in rows.values():
        row["times_quantlib"] = row["surfaces_per_second"] / peer
    measure.show(
        f"{options.surfaces:,} surfaces of 104 quotes, Heston",
        rows,
        "surfaces_per_second",
        "times_quantlib",
        "median_rmse_bps",
        "max_rmse_bps",
        "max_excess_bps",
    )
    record = {
        "benchmark": "calibration of Heston to surfaces",
        "command": measure.command(),
        "bar_times_quantlib_per_core": BAR,
        "surfaces": options.surfaces,
        "quotes_per_surface": 104,
        "start": START,
        "inverse_map": inverse.report,
        "contenders": rows,
        "machine_before": before,
        "machine_after": measure.machine(),
        "versions": measure.versions("qfml", "torch", "numpy", "QuantLib"),
    }
    measure.write(record, options.out)


if __name__ == "__main__":
    main()
