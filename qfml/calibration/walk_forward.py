"""Calibrate on day t, judge on days t + 1 to t + k: what parameters are worth beyond the quotes that they fit.

A saved result is a folder of three files:

- `errors.parquet`, a row for each calibrated day, horizon and method: `date`, `horizon` (surfaces ahead; 0 is the
  calibrated one), `judged_date`, `method` ("model", "sticky_moneyness", "previous_parameters"), `n_quotes`, `n_vols`
  (quotes to which the method gave a vol), `n_judged` (quotes to which all methods of that day and horizon gave one, on
  which they are judged), `rmse_bps`, `bias_bps` (mean of method less quote), `max_bps`,
  `inside_bid_ask` (share; null where no quote has bid and ask).
- `parameters.parquet`, a row for each calibrated day and parameter: `date`, `parameter`, `value`, `std_error` (null
  where there is none), and of the day `rmse_bps`, `converged`, `n_steps`, `status`, `warnings`, `seconds`.
- `metrics.json`: `n_days`, `n_calibrated`, `n_failed`, `failures` (date and reason), `without_vol` (`n_quotes` to be
  judged, and the `n_without` to which the model gives no vol, such as outside of a surrogate's box), `by_horizon`
  (method -> horizon ->
  days, mean and median of `rmse_bps`, and an interval of the mean by the stationary bootstrap where there are 20 days),
  `gain_bps` (baseline -> horizon -> mean of the baseline's error less the model's over the same days, with its
  interval: above 0 the model is better).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from qfml.calibration.exact import exact_vols
from qfml.calibration.fit_options import flag_option
from qfml.calibration.history import SurfaceHistory
from qfml.calibration.layout import vols_at
from qfml.calibration.model import CalibrationModel, inside_box, whole_surface
from qfml.calibration.smile_result import inside_share
from qfml.calibration.surface import Surface, as_quotes
from qfml.errors import ConfigError, DataError
from qfml.metrics.bootstrap import bootstrap_interval

__all__ = ["WalkForwardCalibration", "walk_forward_calibration"]

METHODS = ("model", "sticky_moneyness", "previous_parameters")
LEAST_DAYS = 20  # for an interval
WORSE = 2.0  # error, over that of the day before, from which on a warm start is not trusted
BPS = 1e4


@dataclass(frozen=True, eq=False)
class WalkForwardCalibration:
    """What a walk-forward calibration has found; see the module for the columns.

    Attributes:
        errors: a row for each calibrated day, horizon and method.
        parameters: a row for each calibrated day and parameter.
        metrics: summary, of JSON types.
    """

    errors: pl.DataFrame
    parameters: pl.DataFrame
    metrics: dict[str, Any]

    def save(self, folder: str | Path) -> dict[str, Path]:
        """Write the tables and the metrics into `folder`; returns their paths by name.

        They are written beside it first: a result that stood there before is replaced as a whole, or not at all.
        """
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished, before = (folder.with_name(f".{folder.name}-{uuid.uuid4().hex}") for _ in range(2))
        try:
            unfinished.mkdir()
            for name in ("errors", "parameters"):
                getattr(self, name).write_parquet(unfinished / f"{name}.parquet")
            text = json.dumps(self.metrics, indent=1, allow_nan=False)
            (unfinished / "metrics.json").write_text(text, encoding="utf-8")
            if folder.exists():
                os.replace(folder, before)  # no folder that holds files can be replaced in one go
            os.replace(unfinished, folder)
        except BaseException:
            if before.exists() and not folder.exists():
                os.replace(before, folder)
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        shutil.rmtree(before, ignore_errors=True)
        return {path.stem: path for path in sorted(folder.glob("*.*"))}

    def path(self, parameter: str) -> pl.DataFrame:
        """The days of one parameter: date, value and standard error.

        Raises:
            ConfigError: no such parameter.
        """
        rows = self.parameters.filter(pl.col("parameter") == parameter)
        if rows.is_empty():
            known = ", ".join(self.parameters["parameter"].unique(maintain_order=True))
            raise ConfigError(f"`{parameter}` was not calibrated; there are {known}")
        return rows.select("date", "value", "std_error")


def walk_forward_calibration(
    history: Any,
    model: Any = "heston",
    *,
    horizons: Any = (1, 5),
    every: Any = 1,
    warm: Any = True,
    method: Any = None,
    seed: Any = 0,
    **options: Any,
) -> WalkForwardCalibration:
    """Calibrate each day by itself, and judge its parameters on later surfaces with their own forwards.

    Nothing of a day's calibration depends on later surfaces. Two baselines are judged beside it: the day's own vols
    read at the later quotes' log-moneyness and time to expiry ("sticky_moneyness": total variance linear in time, a
    natural spline in log-moneyness, flat beyond the quotes), and the parameters of the calibration before it
    ("previous_parameters"). A day whose calibration fails is recorded with its reason and judged on nothing.

    Args:
        history: a `SurfaceHistory`, surfaces by ascending date.
        model: a name of `CALIBRATION_MODELS`, or a model.
        horizons: how many surfaces ahead the parameters are judged.
        every: surfaces from one calibration to the next.
        warm: each calibration starts from the parameters of the last one that converged; the parameters are searched
            anew where that ends in no minimum, or in twice the error of the day before. Where a network is given, it
            gives the starts of every day instead.
        method: of `calibrate`.
        seed: of its starts, and of the bootstrap.
        options: further arguments of `calibrate`; those of a search hold where there is one.

    Raises:
        ConfigError: horizons or `every` that make no sense; a model without parameters of a whole surface; an option
            that a walk day by day cannot heed.
        DataError: the history is too short for any judgement.
    """
    whole_surface(model, "a walk-forward calibration")
    horizons = _checked(history, horizons, every)
    flag_option("warm", warm)
    for name, way_out in _NOT_OF_A_WALK.items():
        if name in options:
            raise ConfigError(f"`{name}` is no option of a walk-forward calibration: {way_out}")
    warm = warm and all(options.get(network) is None for network in ("surrogate", "inverse"))
    days: list[_Day] = []
    for number in range(0, len(history), every):
        before = next((day for day in reversed(days) if day.usable), None)
        days.append(_calibrated(history[number], number, model, method, before if warm else None, seed, options))
    rows = [
        row
        for place, day in enumerate(days)
        if day.x is not None
        for horizon in (0, *horizons)
        if day.number + horizon < len(history)
        for row in _judged(day, days[place - 1] if place else None, history, horizon)
    ]
    errors = pl.DataFrame(rows, schema=_ERRORS, orient="row")
    parameters = pl.DataFrame([row for day in days for row in day.rows()], schema=_PARAMETERS, orient="row")
    return WalkForwardCalibration(errors, parameters, _metrics(history, days, errors, horizons, seed))


_NOT_OF_A_WALK = {
    "start": "each day starts from the one before, with `warm`, or is searched for",
    "smoothness": "it would let a day see later ones, and each is calibrated by itself",
}
_ERRORS: dict[str, Any] = {
    "date": pl.Datetime("us"),
    "horizon": pl.Int64,
    "judged_date": pl.Datetime("us"),
    "method": pl.String,
    "n_quotes": pl.Int64,
    "n_vols": pl.Int64,
    "n_judged": pl.Int64,
    "rmse_bps": pl.Float64,
    "bias_bps": pl.Float64,
    "max_bps": pl.Float64,
    "inside_bid_ask": pl.Float64,
}
_PARAMETERS: dict[str, Any] = {
    "date": pl.Datetime("us"),
    "parameter": pl.String,
    "value": pl.Float64,
    "std_error": pl.Float64,
    "rmse_bps": pl.Float64,
    "converged": pl.Boolean,
    "n_steps": pl.Int64,
    "status": pl.String,
    "warnings": pl.List(pl.String),
    "seconds": pl.Float64,
}


def _checked(history: Any, horizons: Any, every: Any) -> tuple[int, ...]:
    if not isinstance(history, SurfaceHistory):
        raise DataError(
            f"`history` must be a SurfaceHistory, got {type(history).__name__}; SurfaceHistory(surfaces) makes one of "
            "a list of surfaces with dates"
        )
    if not isinstance(horizons, Sequence) or isinstance(horizons, str):
        raise ConfigError(f"`horizons` must be a sequence of whole numbers, such as (1, 5), got {horizons!r}")
    whole = [isinstance(horizon, int) and not isinstance(horizon, bool) and horizon >= 1 for horizon in horizons]
    if not horizons or not all(whole) or len(set(horizons)) != len(horizons):
        raise ConfigError(f"`horizons` must be different whole numbers, at least 1, got {tuple(horizons)}")
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ConfigError(f"`every` must be a whole number, at least 1, got {every!r}")
    if len(history) <= min(horizons):
        raise DataError(
            f"a history of {len(history)} surfaces has none that lies {min(horizons)} ahead of another: give a longer "
            "one, or shorter `horizons`"
        )
    return tuple(sorted(horizons))


@dataclass(frozen=True, eq=False)
class _Day:
    """One calibration: the parameters (P,), or None where there are none."""

    number: int
    surface: Surface
    x: np.ndarray | None
    model: CalibrationModel | None
    found: Any
    reason: str | None
    seconds: float

    @property
    def usable(self) -> bool:
        """Whether a later calibration may start here."""
        return self.x is not None and bool(self.found.converged[0])

    def rows(self) -> list[tuple[Any, ...]]:
        if self.x is None or self.found is None:
            return []
        found = self.found
        facts = (
            _number(found.rmse_bps),
            bool(found.converged[0]),
            int(found.n_steps[0]),
            found.status[0],
            list(found.warnings[0]),
            self.seconds,
        )
        return [
            (_date(self.surface), name, value, _number(found.std_error[name]), *facts)
            for name, value in zip(found.params, self.x.tolist())
        ]


def _calibrated(
    surface: Surface,
    number: int,
    model: Any,
    method: str | None,
    before: _Day | None,
    seed: int,
    options: dict[str, Any],
) -> _Day:
    begin = time.perf_counter()
    try:
        found = _fitted(surface, model, method, before, seed, options)
    except (DataError, ArithmeticError) as error:
        return _Day(number, surface, None, None, None, str(error), time.perf_counter() - begin)
    seconds = time.perf_counter() - begin
    x = found.x[0]
    if not np.isfinite(x).all():
        return _Day(number, surface, None, None, found, found.status[0], seconds)
    return _Day(number, surface, x, found.model, found, None, seconds)


def _fitted(
    surface: Surface, model: Any, method: str | None, before: _Day | None, seed: int, options: dict[str, Any]
) -> Any:
    """From the parameters of the day before where that fits well, else as `calibrate` does it."""
    from qfml.calibration.calibrate import calibrate  # it is above most of this package

    if before is not None:
        of_fit = {name: value for name, value in options.items() if name not in ("n_starts", "n_polished")}
        found = calibrate(surface, model, method, start=before.x, **of_fit)
        if _trusted(found, before):
            return found
    return calibrate(surface, model, method, seed=seed, **options)


def _trusted(found: Any, before: _Day) -> bool:
    """Whether a fit from the parameters of the day before may stand, without a search."""
    return bool(found.converged[0]) and found.rmse_bps <= WORSE * before.found.rmse_bps


def _judged(day: _Day, before: _Day | None, history: SurfaceHistory, horizon: int) -> list[tuple[Any, ...]]:
    """The errors of all methods on one surface."""
    later = history[day.number + horizon]
    quotes = as_quotes([later])
    assert day.model is not None
    assert day.x is not None
    answers: dict[str, Callable[[], Tensor]] = {"model": lambda: _model_vols(day, quotes)}
    if horizon:
        answers["sticky_moneyness"] = lambda: vols_at(as_quotes([day.surface]), quotes.log_moneyness, quotes.expiry)
    if before is not None and before.x is not None:
        answers["previous_parameters"] = lambda: _model_vols(before, quotes)
    facts = (_date(day.surface), horizon, _date(later))
    vols = {method: answer()[0].numpy() for method, answer in answers.items()}
    # each on its own quotes would favour the method that has no vol where quotes are hard to meet
    common = np.logical_and.reduce([np.isfinite(own) for own in vols.values()])
    return [(*facts, method, *_errors(later, own, common)) for method, own in vols.items()]


def _model_vols(day: _Day, quotes: Any) -> Tensor:
    """By the exact engine where the model has one, as the errors of the calibration itself; a surrogate in its box."""
    assert day.model is not None
    x = torch.as_tensor(day.x, dtype=torch.float64)[None]
    with torch.no_grad():
        return inside_box(day.model, x, quotes, exact_vols(day.model, x, quotes, floor=True))


def _errors(surface: Surface, vols: np.ndarray, common: np.ndarray) -> tuple[Any, ...]:
    """n_quotes, n_vols, n_judged, rmse, bias, largest and the share inside bid and ask, of quotes with a weight."""
    counted = surface.weight > 0
    judged = counted & common & np.isfinite(surface.vol)
    own = BPS * (vols - surface.vol)[judged]
    inside = _number(inside_share([surface], np.where(judged, vols - surface.vol, np.nan)[None])[0])
    counts = int(counted.sum()), int((counted & np.isfinite(vols)).sum()), len(own)
    if not len(own):
        return *counts, None, None, None, inside
    return *counts, float(np.sqrt(np.mean(own**2))), float(own.mean()), float(np.abs(own).max()), inside


def _metrics(
    history: SurfaceHistory, days: list[_Day], errors: pl.DataFrame, horizons: tuple[int, ...], seed: int
) -> dict[str, Any]:
    failures = [{"date": str(_date(day.surface)), "reason": day.reason} for day in days if day.x is None]
    of_model = errors.filter(pl.col("method") == "model")
    by_horizon: dict[str, dict[str, Any]] = {}
    for method in METHODS:
        own = errors.filter((pl.col("method") == method) & pl.col("rmse_bps").is_not_null())
        by_horizon[method] = {
            str(horizon): _summary(own.filter(pl.col("horizon") == horizon)["rmse_bps"].to_numpy(), seed)
            for horizon in (0, *horizons)
            if (own["horizon"] == horizon).any()
        }
    wide = errors.pivot(on="method", index=["date", "horizon"], values="rmse_bps")
    gain = {
        baseline: {
            str(horizon): _summary(_gains(wide, baseline, horizon), seed)
            for horizon in horizons
            if len(_gains(wide, baseline, horizon))
        }
        for baseline in METHODS[1:]
    }
    return {
        "n_days": len(history),
        "n_calibrated": len(days),
        "n_failed": len(failures),
        "n_not_converged": sum(day.x is not None and not day.usable for day in days),
        "failures": failures,
        "without_vol": {
            "n_quotes": int(of_model["n_quotes"].sum()),
            "n_without": int((of_model["n_quotes"] - of_model["n_vols"]).sum()),
        },
        "horizons": list(horizons),
        "by_horizon": by_horizon,
        "gain_bps": gain,
    }


def _gains(wide: pl.DataFrame, baseline: str, horizon: int) -> np.ndarray:
    """What the baseline's error exceeds the model's by, on days on which both were judged."""
    if baseline not in wide.columns:
        return np.empty(0)
    own = wide.filter(pl.col("horizon") == horizon).select(pl.col(baseline) - pl.col("model")).to_series()
    return own.drop_nulls().to_numpy()


def _summary(values: np.ndarray, seed: int) -> dict[str, Any]:
    """Days, mean, median, and an interval of the mean where there are enough days."""
    found = {"days": len(values), "mean": float(values.mean()), "median": float(np.median(values))}
    interval = [None, None]
    if len(values) >= LEAST_DAYS:
        own = bootstrap_interval(values, np.mean, seed=seed)
        interval = [_number(own.low), _number(own.high)]
    return found | {"interval_95": interval}


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _date(surface: Surface) -> Any:
    return surface.date.astype("datetime64[us]").item() if surface.date is not None else None
