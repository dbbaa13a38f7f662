"""What a calibration has found: parameters with their errors, how well they fit, and what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from qfml.calibration.model import CalibrationModel, Quotes, inside_box
from qfml.calibration.smile_result import inside_share
from qfml.calibration.uncertainty import Uncertainty

__all__ = ["Calibration"]

SHOWN = 6  # surfaces with warnings that are printed of a long history


@dataclass(frozen=True, eq=False)
class Calibration:
    """Fits of one surface or of a batch of S surfaces.

    What is one number for each surface is a float for one surface, and an array (S,) for a batch.

    Args:
        model: what was fitted.
        method: "exact", "neural", "inverse" or "polished".
        x: parameters (S, P).
        params: the same by name.
        std_error: by name; infinite where a parameter is not identified, NaN where it has none; of a smoothed history
            those of the penalised problem, see `uncertainty`.
        identified: by name, bool or (S,); False where the quotes do not determine a parameter, or hardly: its error is
            as large as itself, or as half of its range.
        at_bound: by name, bool or (S,).
        correlation: of the estimates, (S, P, P).
        vols: of the model, (S, N), by the exact engine where the model has one; NaN where there is no quote.
        residuals: model vol less quoted vol, (S, N); NaN where there is no quote.
        rmse_bps: root of the mean squared error of the vols, bps.
        max_bps: largest error of a vol, bps.
        sse: sum of squared errors in vol points (0.01), without weights.
        inside_bid_ask: share of the quotes with bid and ask whose model vol lies between; NaN where none has.
        converged: whether the search ended at a minimum, (S,); never where there are no quotes.
        status: a sentence for each surface.
        n_steps: steps of the least squares that led to the fit, (S,).
        warnings: for each surface what is to be known about its parameters.
        quotes: what was fitted, padded.
        surfaces: what was given.
    """

    model: CalibrationModel
    method: str
    x: np.ndarray
    params: dict[str, Any]
    std_error: dict[str, Any]
    identified: dict[str, Any]
    at_bound: dict[str, Any]
    correlation: np.ndarray
    vols: np.ndarray
    residuals: np.ndarray
    rmse_bps: Any
    max_bps: Any
    sse: Any
    inside_bid_ask: Any
    converged: np.ndarray
    status: tuple[str, ...]
    n_steps: np.ndarray
    warnings: tuple[tuple[str, ...], ...]
    quotes: Quotes = field(repr=False)
    surfaces: tuple[Any, ...] = field(repr=False)

    @property
    def n_surfaces(self) -> int:
        """Number of surfaces S."""
        return self.x.shape[0]

    @property
    def single(self) -> bool:
        """Whether one surface was given, not a batch of them."""
        return isinstance(next(iter(self.params.values())), float)

    def pricer(self) -> Any:
        """The fitted model in `pricers`: of one surface, or with the batch (S,)."""
        x = torch.as_tensor(self.x)
        return self.model.pricer(x[0] if self.single else x)

    def smile(self, log_moneyness: Any, expiry: float, surface: int = 0) -> np.ndarray:
        """Model vols (m,) of one surface at log-moneyness (m,) and one expiry (years); NaN where there are none.

        All are NaN where the fit of the surface failed, and those outside of a surrogate's box where one was fitted.
        """
        if not np.isfinite(self.x[surface]).all():
            return np.full(np.size(log_moneyness), np.nan)
        places = torch.as_tensor(log_moneyness, dtype=torch.float64).reshape(1, -1)
        points = Quotes.bare(places, torch.full_like(places, expiry))
        x = torch.as_tensor(self.x[surface : surface + 1])
        with torch.no_grad():
            return inside_box(self.model, x, points, self.model.vols(x, points))[0].numpy()

    def rmse_bps_by_expiry(self, surface: int = 0) -> dict[float, float]:
        """Root of the mean squared error at each expiry (years) of one surface, bps of vol."""
        expiry, error = self.quotes.expiry[surface].numpy(), self.residuals[surface]
        used = np.isfinite(error)
        return {
            float(years): 1e4 * float(np.sqrt(np.mean(error[used & (expiry == years)] ** 2)))
            for years in np.unique(expiry[used])
        }

    def __str__(self) -> str:
        return _one(self) if self.single else _many(self)


def calibration(
    model: CalibrationModel,
    method: str,
    quotes: Quotes,
    surfaces: Sequence[Any],
    *,
    single: bool,
    x: torch.Tensor,
    vols: torch.Tensor,
    known: Uncertainty,
    converged: torch.Tensor,
    status: Sequence[str],
    n_steps: torch.Tensor,
    warnings: Sequence[Sequence[str]] = (),
    from_neighbours: torch.Tensor | None = None,
) -> Calibration:
    """Puts a `Calibration` together: errors of the fit, and warnings, follow from the rest."""
    used = quotes.used.numpy()
    fitted = vols.numpy()
    residuals = np.where(used, fitted - quotes.vol.numpy(), np.nan)
    count = used.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        square = np.where(used, residuals, 0.0) ** 2
        rmse = 1e4 * np.sqrt(square.sum(-1) / count)
        largest = np.where(count > 0, 1e4 * np.sqrt(square.max(-1, initial=0.0)), np.nan)
    sse = np.where(count > 0, 1e4 * square.sum(-1), np.nan)
    values = x.numpy().copy()
    failed = ~np.isfinite(rmse)
    if from_neighbours is not None:
        failed &= ~from_neighbours.numpy()
    values[failed] = np.nan
    names = [parameter.name for parameter in model.parameters]
    errors = known.std_error.numpy().copy()
    errors[failed] = np.nan
    # of a fit that failed there is nothing to say
    told, held = known.identified.numpy() | failed[:, None], known.at_bound.numpy() & ~failed[:, None]

    def shaped(numbers: np.ndarray) -> Any:
        return float(numbers[0]) if single else numbers

    return Calibration(
        model=model,
        method=method,
        x=values,
        params={name: shaped(values[:, i]) for i, name in enumerate(names)},
        std_error={name: shaped(errors[:, i]) for i, name in enumerate(names)},
        identified={name: bool(told[0, i]) if single else told[:, i] for i, name in enumerate(names)},
        at_bound={name: bool(held[0, i]) if single else held[:, i] for i, name in enumerate(names)},
        correlation=known.correlation.numpy(),
        vols=fitted,
        residuals=residuals,
        rmse_bps=shaped(rmse),
        max_bps=shaped(largest),
        sse=shaped(sse),
        inside_bid_ask=shaped(_inside(surfaces, residuals)),
        converged=converged.numpy() & ~failed,
        status=tuple(status),
        n_steps=n_steps.numpy(),
        warnings=_warnings(model, quotes, known, failed, warnings),
        quotes=quotes,
        surfaces=tuple(surfaces),
    )


def _inside(surfaces: Sequence[Any], residuals: np.ndarray) -> np.ndarray:
    return inside_share(surfaces, residuals) if surfaces else np.full(len(residuals), np.nan)


def _warnings(
    model: CalibrationModel, quotes: Quotes, known: Uncertainty, failed: np.ndarray, more: Sequence[Sequence[str]]
) -> tuple[tuple[str, ...], ...]:
    n_quotes = quotes.used.sum(-1).tolist()
    result = []
    for i in range(quotes.n_surfaces):
        said = list(more[i]) if len(more) else []
        if not failed[i]:
            n_parameters = len(model.parameters)
            told = known.identified[i]
            if n_quotes[i] < n_parameters and bool(known.std_error[i].isinf().any()):
                said.append(f"not identified: {n_quotes[i]} quotes for {n_parameters} parameters")
            else:
                said += [
                    f"`{parameter.name}` is not identified: the quotes do not determine it"
                    for parameter, seen in zip(model.parameters, told.tolist(), strict=True)
                    if not seen
                ]
                if n_quotes[i] == n_parameters and bool(known.std_error[i].isnan().all()):
                    said.append(f"no standard errors: {n_quotes[i]} quotes for {n_parameters} parameters")
            said += [
                f"`{parameter.name}` is at its bound, between {parameter.lower:g} and {parameter.upper:g}"
                for parameter, bound in zip(model.parameters, known.at_bound[i].tolist(), strict=True)
                if bound
            ]
        result.append(tuple(said))
    return tuple(result)


def _one(fit: Calibration) -> str:
    name = getattr(fit.surfaces[0], "name", "") if fit.surfaces else ""
    lines = [f"{fit.model.kind}, {fit.method}" + (f": {name}" if name else ""), fit.status[0], ""]
    lines.append(f"  {'parameter':<12}{'value':>12}{'std error':>12}")
    lines += [f"  {key:<12}{value:>12.6g}{fit.std_error[key]:>12.3g}" for key, value in fit.params.items()]
    n_quotes = int(fit.quotes.used.sum())
    lines += [
        "",
        f"  fit error   {fit.rmse_bps:.2f} bps of vol (root mean square), {fit.max_bps:.2f} at most, {n_quotes} quotes",
        f"  SSE         {fit.sse:.4f} vol points squared",
    ]
    if np.isfinite(fit.inside_bid_ask):
        lines.append(f"  bid to ask  {100.0 * fit.inside_bid_ask:.1f} % of the two-sided quotes inside")
    lines += [f"  {years:>8.4f} y {error:>9.2f} bps" for years, error in fit.rmse_bps_by_expiry().items()]
    lines += [f"  warning: {text}" for text in fit.warnings[0]]
    return "\n".join(lines)


def _many(fit: Calibration) -> str:
    good = fit.converged
    lines = [f"{fit.model.kind}, {fit.method}: {int(good.sum())} of {fit.n_surfaces} surfaces converged", ""]
    found = np.isfinite(fit.rmse_bps)
    if found.any():
        lines.append(f"  {'parameter':<12}{'median':>12}{'least':>12}{'most':>12}{'std error':>12}")
        for key, value in fit.params.items():
            error = fit.std_error[key][found]
            finite = error[np.isfinite(error)]
            typical = float(np.median(finite)) if finite.size else np.nan
            low, middle, high = np.quantile(value[found], [0.0, 0.5, 1.0])
            lines.append(f"  {key:<12}{middle:>12.6g}{low:>12.6g}{high:>12.6g}{typical:>12.3g}")
        error = fit.rmse_bps[found]
        lines += ["", f"  fit error   {np.median(error):.2f} bps of vol in the median, {error.max():.2f} at most"]
    troubled = [i for i in range(fit.n_surfaces) if not good[i] or fit.warnings[i]]
    for i in troubled[:SHOWN]:
        said = [fit.status[i]] if not good[i] else []
        lines.append(f"  {_label(fit, i)}: " + "; ".join([*said, *fit.warnings[i]]))
    if len(troubled) > SHOWN:
        lines.append(f"  and {len(troubled) - SHOWN} more with warnings")
    return "\n".join(lines)


def _label(fit: Calibration, i: int) -> str:
    if i < len(fit.surfaces):
        date, name = getattr(fit.surfaces[i], "date", None), getattr(fit.surfaces[i], "name", "")
        if date is not None:
            return str(date)
        if name:
            return name
    return f"surface {i}"
