"""How good a surrogate is, on fresh points: errors, where they are, Greeks, arbitrage, speed, and a bound.

`judge` returns the surrogate with its error bound, `metrics` (plain JSON) and `arrays`. Errors are surrogate less exact
value (or many-path label), in the unit of the target unless the name says `_bps`.

metrics:
    target, unit            what is predicted, and its unit
    points                  n_points, n_calibration, left_out (reason: count), engine; note and error_bound, what the
                            engine without noise says of its own values at the first of the points: n_points, rms, max
                            in the unit of the target (None where it knows no number); None of simulated labels
    noise                   std_error_rms of the fresh labels, 0 if they are exact; of the error the labels' own share:
                            rmse_without_noise = sqrt(max(0, mse - std_error_rms^2))
    error                   mse, rmse, r2, bias, mean_abs, q99, q999, max
    vol_bps                 rmse, mean_abs, q99, q999, max in basis points of vol, n_points: those that have an implied
                            vol; None where there are no vols
    price_bps               the same in basis points of spot
    worst                   the five largest errors: inputs by name, value, exact, error
    greeks                  in float32, by input: rmse, rms_exact, relative = rmse / rms_exact (None where the
                            exact derivative is 0, by rounding), q99 of the absolute error, noise; {} where none were
                            asked for
    greeks_note             how the derivatives of the engine were made, or why there are none
    arbitrage               density and calendar of vols, monotone, convex and calendar of prices: share, count,
                            n_points, worst, measured; {} where no rule applies
    arbitrage_note          which rules were not looked at, and why; "" if all were
    conformal               level, bound, unit, n_calibration, of ("value" | "label"), n_test, n_covered, coverage,
                            coverage_low, coverage_high (95 %, Clopper-Pearson, for the bound as it came out), p_value
                            (one-sided: of so few covered or fewer, the draw of the calibration points taken into
                            account), by_bin: list of name, low, high, n, coverage (None of an empty bin) along each
                            coordinate of the box
    speed                   surrogate: threads, n_batch, batch_seconds (of the target), price_batch_seconds
                            (where the target is another), gradient_batch_seconds, single_seconds (least, median each);
                            exact, the engine of the fresh labels where it draws nothing: engine, seconds_per_price (of
                            the target); simulated: engine, n_paths, n_steps, seconds_per_price, std_error,
                            seconds_per_price_at_equal_error; ratio_exact, ratio_simulated: their seconds over the
                            surrogate's median in a batch, of the target and of prices
    regions                 coordinates, units, ranges (low, high, scale), n_bins, measures, pairs: names of the maps

arrays:
    inputs (N, d), exact (N,), std_error (N,), value (N,), error (N,), shares (N, d): place in the range of each
    coordinate of the box in [0, 1]; regions_by_coordinate (d, bins, measures); regions_by_pair (P, bins, bins,
    measures); pairs (P, 2); greeks_error (N', d); training_error (epochs, 3): epoch, training and validation loss of
    the best seed.

Points are drawn independently, not from a Sobol sequence: a conformal bound and a binomial interval are statements on
independent draws. The points of the bound, those of its proof and the labels of the training have three seeds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor

import pricers as pr
from pricers.noise import address
from qfml.config import OneOf
from qfml.errors import ConfigError
from qfml.files import write_whole
from qfml.surrogate.arbitrage import arbitrage_note, arbitrage_of
from qfml.surrogate.conformal import ErrorBound, binomial_interval, conformal_bound, coverage_p_value
from qfml.surrogate.exact_labels import target_values
from qfml.surrogate.fresh import engine_slopes, fresh_labels
from qfml.surrogate.labels import LabelTable
from qfml.surrogate.points import unit_inputs
from qfml.surrogate.problem import UNITS, Problem
from qfml.surrogate.quoting import price_of
from qfml.surrogate.regions import MEASURES, by_coordinate, by_pair, coverage_by_bin
from qfml.surrogate.settings import LABEL_ENGINES, ExactLabels, LabelEngine
from qfml.surrogate.speed import exact_speed, simulation_speed, surrogate_speed
from qfml.surrogate.surrogate import Surrogate

BPS = 1e4
ZERO_SLOPE = 1e-7  # of the target, that a derivative moves it by over the whole input: less is rounding, and no size
STATED_POINTS = 64  # at which the engine is asked for the error of its own values


@dataclass(frozen=True)
class JudgementSettings:
    """How a surrogate is judged: the YAML section `judgement:`.

    Args:
        n_points: fresh points.
        n_calibration: further ones, which the error bound is taken from.
        level: probability with which a fresh error keeps the bound.
        engine: labels the fresh points: exact where it can, else as many paths as is affordable.
        n_greeks: points of which derivatives are judged; 0 leaves them out. Where the engine gives none itself, each
            costs 8 labels an input.
        n_bins: bins of each coordinate.
        speed_paths: paths of the Monte Carlo that is timed beside the surrogate, 2 or more; 0 times nothing.
        speed_steps: its time steps.
        seed: of the points.
    """

    n_points: int = 20_000
    n_calibration: int = 20_000
    level: float = 0.99
    engine: Annotated[LabelEngine, OneOf(LABEL_ENGINES)] = field(default_factory=ExactLabels)
    n_greeks: int = 2_000
    n_bins: int = 10
    speed_paths: int = 2**13
    speed_steps: int = 100
    seed: int = 1

    def __post_init__(self) -> None:
        least = {"n_points": 1, "n_calibration": 1, "n_greeks": 0, "n_bins": 1, "speed_paths": 0, "speed_steps": 1}
        for name, fewest in least.items():
            if getattr(self, name) < fewest:
                raise ConfigError(f"`{name}` must be {fewest} or more, got {getattr(self, name)}")
        if self.speed_paths == 1:
            raise ConfigError(
                "`speed_paths` must be 0, which times nothing, or 2 or more, got 1: one path tells no standard error"
            )
        if not 0 < self.level < 1:
            raise ConfigError(f"`level` must lie in (0, 1), got {self.level}")


@dataclass(frozen=True, eq=False)
class Judgement:
    """What was found; see the module for the keys.

    Attributes:
        surrogate: the judged one, with its error bound.
        metrics: plain JSON.
        arrays: numpy arrays by name.
    """

    surrogate: Surrogate
    metrics: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def save(self, folder: str | Path) -> None:
        """Write `judgement.json` and `judgement.safetensors`, each whole or not at all, into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {name: np.ascontiguousarray(array) for name, array in self.arrays.items()}
        write_whole(safetensors.numpy.save(arrays), folder / "judgement.safetensors")
        write_whole(json.dumps(self.metrics, indent=1).encode(), folder / "judgement.json")


def judge(surrogate: Surrogate, settings: JudgementSettings | None = None) -> Judgement:
    """Judge a surrogate on fresh points of its box, and give it an error bound.

    Raises:
        DataError: too few calibration points for the level; all fresh points without a label.
        ConfigError: the engine does not label the problem.
    """
    settings = JudgementSettings() if settings is None else settings
    problem = surrogate.problem
    fresh = fresh_labels(problem, settings.engine, settings.n_points, address(settings.seed, "fresh points"))
    held = fresh_labels(problem, settings.engine, settings.n_calibration, address(settings.seed, "calibration points"))
    value = _values(surrogate, fresh.inputs)
    error = value - fresh.value
    bound = _bound(surrogate, held, settings.level)
    shares = unit_inputs(problem, fresh.inputs, fresh.value).clamp(0.0, 1.0)
    price_error = _price_errors(problem, fresh, value)
    pairs, maps = by_pair(shares, error, settings.n_bins)
    greeks, greeks_note, greeks_error = _greeks(surrogate, settings)
    metrics = {
        "target": problem.target,
        "unit": problem.target_unit,
        "points": {
            "n_points": len(fresh),
            "n_calibration": len(held),
            "left_out": fresh.left_out,
            "engine": settings.engine.kind,
            **_stated(problem, settings.engine, fresh.inputs),
        },
        "noise": _noise(error, fresh.std_error),
        "error": _errors(error) | {"r2": _r2(error, fresh.value), "bias": float(error.mean())},
        "vol_bps": _vol_errors(problem, fresh, value, error),
        "price_bps": _in_bps(price_error),
        "worst": _worst(problem, fresh, value, error),
        "greeks": greeks,
        "greeks_note": greeks_note,
        "arbitrage": arbitrage_of(surrogate, fresh.inputs),
        "arbitrage_note": arbitrage_note(problem),
        "conformal": _coverage(bound, error)
        | {"by_bin": coverage_by_bin(problem, shares, error, bound.value, settings.n_bins)},
        "speed": _speed(surrogate, fresh.inputs, float(price_error.square().mean().sqrt()), settings),
        "regions": {
            "coordinates": [axis.name for axis in problem.coordinates],
            "units": [UNITS.get(axis.argument, "as the model states it") for axis in problem.coordinates],
            "ranges": [[limits.low, limits.high, limits.scale] for limits in problem.box.values()],
            "n_bins": settings.n_bins,
            "measures": list(MEASURES),
        },
    }
    arrays = {
        "inputs": fresh.inputs.numpy(),
        "exact": fresh.value.numpy(),
        "std_error": fresh.std_error.numpy(),
        "value": value.numpy(),
        "error": error.numpy(),
        "shares": shares.numpy(),
        "regions_by_coordinate": by_coordinate(shares, error, settings.n_bins),
        "regions_by_pair": maps,
        "pairs": pairs,
        "greeks_error": greeks_error.numpy(),
        "training_error": _history(surrogate),
    }
    return Judgement(replace(surrogate, bound=bound), metrics, arrays)


def _values(surrogate: Surrogate, inputs: Tensor) -> Tensor:
    """What the surrogate says in float32, as it is used; fresh points at an edge of deltas may lie just outside."""
    with torch.no_grad():
        value, _ = surrogate.unchecked(inputs)
    return value.double()


def _stated(problem: Problem, engine: LabelEngine, inputs: Tensor) -> dict[str, Any]:
    """What an engine without noise says of the error of its own values, and its note, at a few fresh points."""
    if engine.simulated:
        return {"note": "simulated", "error_bound": None}
    rows = inputs[:STATED_POINTS]
    with torch.no_grad():
        found = target_values(problem, problem.columns(rows), engine.engine())
    bound = found.error_bound.expand(len(rows))
    known = bool(bound.isfinite().all())
    sizes = {"rms": float(bound.square().mean().sqrt()), "max": float(bound.max())} if known else {}
    return {"note": found.note, "error_bound": {"n_points": len(rows), "rms": None, "max": None} | sizes}


def _errors(error: Tensor) -> dict[str, float]:
    size = error.abs()
    return {
        "mse": float(error.square().mean()),
        "rmse": float(error.square().mean().sqrt()),
        "mean_abs": float(size.mean()),
        "q99": _upper(size, 0.99),
        "q999": _upper(size, 0.999),
        "max": float(size.max()),
    }


def _upper(size: Tensor, level: float) -> float:
    """The smallest size that `level` of all do not exceed."""
    return float(size.kthvalue(max(1, int(np.ceil(level * len(size) - 1e-9)))).values)


def _in_bps(error: Tensor) -> dict[str, float]:
    found = {name: BPS * value for name, value in _errors(error).items() if name != "mse"}
    return found | {"n_points": len(error)}


def _r2(error: Tensor, exact: Tensor) -> float | None:
    """None where all values are the same."""
    spread = float((exact - exact.mean()).square().mean())
    return 1.0 - float(error.square().mean()) / spread if spread > 0 else None


def _noise(error: Tensor, std_error: Tensor) -> dict[str, float]:
    noise = float(std_error.square().mean())
    mse = float(error.square().mean())
    return {"std_error_rms": noise**0.5, "rmse_without_noise": max(0.0, mse - noise) ** 0.5}


def _price_errors(problem: Problem, fresh: LabelTable, value: Tensor) -> Tensor:
    """Errors in prices per unit of spot, (N,)."""
    if problem.target != "implied_vol":
        return value - fresh.value
    triple = problem.triple(fresh.inputs)
    shape = fresh.value.shape
    spot = triple[2].spot
    return (price_of(problem, value, triple, shape) - price_of(problem, fresh.value, triple, shape)) / spot


def _vol_errors(problem: Problem, fresh: LabelTable, value: Tensor, error: Tensor) -> dict[str, float] | None:
    if problem.target == "implied_vol":
        return _in_bps(error)
    if problem.instrument["kind"] != "european" or bool((fresh.std_error > 0).any()):
        return None
    option, _, market = triple = problem.triple(fresh.inputs)
    assert isinstance(option, pr.European)
    terms = (market.forward(option.expiry), option.strike, option.expiry, market.discount(option.expiry))
    vols = [
        pr.implied_vol(price_of(problem, one, triple, one.shape), *terms, option=option.option, errors="nan")
        for one in (value, fresh.value)
    ]
    in_vol = vols[0] - vols[1]
    in_vol = in_vol[in_vol.isfinite()]
    return _in_bps(in_vol) if len(in_vol) else None


def _worst(problem: Problem, fresh: LabelTable, value: Tensor, error: Tensor) -> list[dict[str, Any]]:
    rows = error.abs().topk(min(5, len(error))).indices.tolist()
    return [
        {
            "inputs": dict(zip(problem.inputs, fresh.inputs[row].tolist(), strict=True)),
            "value": float(value[row]),
            "exact": float(fresh.value[row]),
            "error": float(error[row]),
        }
        for row in rows
    ]


def _greeks(surrogate: Surrogate, settings: JudgementSettings) -> tuple[dict[str, Any], str, Tensor]:
    """Errors of the derivatives in each input, against those of the labels' engine; how those were made."""
    names, n = surrogate.problem.inputs, settings.n_greeks
    if not n:
        return {}, "`n_greeks` is 0: derivatives were not compared", torch.zeros(0, len(names), dtype=torch.float64)
    slopes = engine_slopes(surrogate.problem, settings.engine, n, address(settings.seed, "points of greeks"))
    value, gradient = surrogate.unchecked_value_and_gradient(slopes.inputs.float())  # single, as they are timed
    error = gradient.double() - slopes.gradient
    typical = float(value.double().square().mean().sqrt())
    found = {}
    for i, name in enumerate(names):
        size = float(slopes.gradient[:, i].square().mean().sqrt())
        rmse = float(error[:, i].square().mean().sqrt())
        largest = _upper(slopes.gradient[:, i].abs(), 0.99)  # of single points the engine itself may be off
        reach = float(slopes.inputs[:, i].abs().max())
        found[name] = {
            "rmse": rmse,
            "rms_exact": size,
            "relative": rmse / size if largest * reach > ZERO_SLOPE * typical else None,
            "q99": _upper(error[:, i].abs(), 0.99),
            "noise": float(slopes.std_error[:, i].square().mean().sqrt()),
        }
    return found, slopes.note, error


def _bound(surrogate: Surrogate, held: LabelTable, level: float) -> ErrorBound:
    error = _values(surrogate, held.inputs) - held.value
    noisy = bool((held.std_error > 0).any())
    unit = surrogate.problem.target_unit
    return ErrorBound(level, conformal_bound(error, level), unit, len(error), "label" if noisy else "value")


def _coverage(bound: ErrorBound, error: Tensor) -> dict[str, Any]:
    covered = int((error.abs() <= bound.value).sum())
    low, high = binomial_interval(covered, len(error))
    return {
        "level": bound.level,
        "bound": bound.value,
        "unit": bound.unit,
        "n_calibration": bound.n_calibration,
        "of": bound.of,
        "n_test": len(error),
        "n_covered": covered,
        "coverage": covered / len(error),
        "coverage_low": low,
        "coverage_high": high,
        "p_value": coverage_p_value(covered, len(error), bound.n_calibration, bound.level),
    }


def _speed(surrogate: Surrogate, inputs: Tensor, rmse: float, settings: JudgementSettings) -> dict[str, Any]:
    if not settings.speed_paths:
        return {}
    problem, engine = surrogate.problem, settings.engine
    own = surrogate_speed(surrogate, inputs)
    found: dict[str, Any] = {"surrogate": own}
    exact = exact_speed(problem, inputs, None if engine.simulated else engine.engine())
    if exact is not None:  # a value of the target against another
        one = own["batch_seconds"]["median"] / own["n_batch"]
        found |= {"exact": exact, "ratio_exact": exact["seconds_per_price"] / one}
    simulated = simulation_speed(problem, inputs, rmse, settings.speed_paths, settings.speed_steps)
    if simulated is not None:  # a price against another
        found["simulated"] = simulated
        if (seconds := simulated["seconds_per_price_at_equal_error"]) is not None:
            prices = own.get("price_batch_seconds", own["batch_seconds"])
            found["ratio_simulated"] = seconds / (prices["median"] / own["n_batch"])
    return found


def _history(surrogate: Surrogate) -> np.ndarray:
    rows = [(r["epoch"], r["train_loss"], r["val_loss"]) for r in surrogate.fits[0].history]
    return np.array(rows, dtype=np.float64).reshape(-1, 3)
