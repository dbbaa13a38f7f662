"""The calibration of a smile to each expiry of each surface: numbers, their errors, and what they do not say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qfml.calibration.fit_options import FitOptions
from qfml.calibration.least_squares import CONVERGED
from qfml.calibration.smile_fit import FittedSmiles
from qfml.calibration.smile_uncertainty import SmileUncertainty, smile_uncertainty
from qfml.calibration.smiles import Smiles, at_the_money_vol, smiles_of
from qfml.calibration.surface import Surface, as_quotes
from qfml.errors import DataError

__all__ = ["NO_QUOTES", "SmileCalibration", "calibrate_smiles", "inside_share", "summary"]

NO_QUOTES = "failed: no quote has a weight above 0"
DENSITY_POINTS = 161
DEVIATIONS = 5.0  # standard deviations to each side within which the density is looked at
AT_BOUND = 1e-4  # of the range of a number of the fit, from which on it is at its bound
CALENDAR_POINTS = 41
CROSSING = 1e-8  # by which the total variance may fall from one expiry to the next: rounding
BLOCK = 512  # smiles whose density is looked at together


@dataclass(frozen=True, eq=False, repr=False)
class SmileCalibration:
    """Parameters of S surfaces with up to E expiries each. For one surface the axis S is left out everywhere.

    Args:
        model: what was fitted.
        expiries: years, NaN where a surface has fewer than E, shape (S, E).
        forwards: shape (S, E).
        params: parameter by name, shape (S, E) each.
        std_error: likewise; infinite where the quotes do not determine a parameter, NaN at a bound and where they leave
            no degree of freedom, 0 for a number that was given.
        identified: likewise; False where the quotes do not determine a parameter, or hardly.
        at_bound: likewise; True where a parameter is at its bound, or follows from numbers of the fit that are.
        correlation: of the parameters, shape (S, E, P, P).
        rmse_bps: root mean square error of the vols of a smile, basis points, shape (S, E).
        max_bps: largest error, likewise.
        sse: sum of squared errors of a surface, vol points squared, shape (S,).
        residuals: vol of the model less that of each quote, NaN where there is none, shape (S, N).
        inside_bid_ask: share of the quotes with bid and ask whose model vol lies between them, NaN without, shape (S,).
        n_quotes: shape (S, E).
        converged: shape (S, E).
        status: a sentence for each smile, by surface; empty beyond the last one.
        n_steps: shape (S, E).
        density_from: log-moneyness above which, up to the forward and beyond it to `density_to`, the density of the
            smile is positive; minus infinity if it is so to five standard deviations; shape (S, E).
        density_to: the same above the forward.
        warnings: by surface: not identified, at a bound, negative density, smiles that cross.
        method: "exact".
        surfaces: what was calibrated to.
    """

    model: Any
    expiries: np.ndarray
    forwards: np.ndarray
    params: dict[str, np.ndarray]
    std_error: dict[str, np.ndarray]
    identified: dict[str, np.ndarray]
    at_bound: dict[str, np.ndarray]
    correlation: np.ndarray
    rmse_bps: np.ndarray
    max_bps: np.ndarray
    sse: Any
    residuals: np.ndarray
    inside_bid_ask: Any
    n_quotes: np.ndarray
    converged: np.ndarray
    status: tuple[Any, ...]
    n_steps: np.ndarray
    density_from: np.ndarray
    density_to: np.ndarray
    warnings: tuple[Any, ...]
    surfaces: tuple[Surface, ...]
    method: str = "exact"

    @property
    def butterfly_free(self) -> np.ndarray:
        """Where the density is positive to five standard deviations to each side, shape (S, E)."""
        return np.isneginf(self.density_from) & np.isposinf(self.density_to)

    def vols(self, log_moneyness: Any) -> np.ndarray:
        """Vols of each smile at the same m places of log-moneyness, shape (S, E, m); NaN where there is no smile."""
        places = torch.as_tensor(log_moneyness, dtype=torch.float64).reshape(-1)
        shape = self.expiries.shape
        columns = torch.stack([torch.from_numpy(value.reshape(-1)) for value in self.params.values()], dim=-1)
        expiry, forward = (torch.from_numpy(part.reshape(-1)) for part in (self.expiries, self.forwards))
        vols = self.model.vols(places.expand(len(expiry), -1), expiry, forward, columns)
        return vols.numpy().reshape(*shape, -1)

    def smile(self, log_moneyness: Any, expiry: float, surface: int = 0) -> np.ndarray:
        """Vols (m,) of one surface at places of log-moneyness (m,) and one of its expiries (years).

        Raises:
            DataError: no smile was fitted at this expiry.
        """
        expiries = self.expiries if self.expiries.ndim == 1 else self.expiries[surface]
        slots = np.flatnonzero(np.isclose(expiries, expiry, rtol=1e-9, atol=0.0))
        if not len(slots):
            known = ", ".join(f"{years:.4g}" for years in expiries[np.isfinite(expiries)]) or "none"
            raise DataError(f"`expiry` must be one of {known}, where a smile was fitted, got {expiry:g}")
        every = self.vols(log_moneyness)
        return (every if self.expiries.ndim == 1 else every[surface])[slots[0]]

    def pricer(self) -> Any:
        """The same smiles in `pricers`, one model for each expiry: batch (S, E).

        Raises:
            ConfigError: there is no such model, as for SVI.
            DataError: a smile has no parameters.
        """
        missing = ~np.isfinite(np.stack(list(self.params.values()))).all(axis=0)
        if missing.any():
            raise DataError(f"{int(missing.sum())} smiles have no parameters; take `params` of the others")
        return self.model.pricer(self.params)

    def __str__(self) -> str:
        """A table for one surface; for a history what its fits have in common."""
        if self.expiries.ndim == 1:
            return _table(self)
        exists = np.isfinite(self.expiries)
        count = f"{len(self.surfaces)} surfaces, {int(exists.sum())} smiles"
        return many_fits(self.model.kind, count, self.converged[exists], self.rmse_bps, self.warnings)

    __repr__ = __str__


def many_fits(kind: str, count: str, converged: np.ndarray, rmse_bps: np.ndarray, warnings: Sequence[Any]) -> str:
    """What the fits of a history have in common."""
    rmse = rmse_bps[np.isfinite(rmse_bps)]
    lines = [f"{kind}: {count}, {float(np.mean(converged)):.1%} converged"]
    if len(rmse):
        ends = np.median(rmse), np.quantile(rmse, 0.99), rmse.max()
        lines.append("rmse in bps of vol: median {:.2f}, 99 % below {:.2f}, largest {:.2f}".format(*ends))
    return "\n".join([*lines, f"surfaces with warnings: {sum(map(bool, warnings))}"])


def _table(result: SmileCalibration) -> str:
    names = list(result.params)
    head = (
        f"{'expiry':>8}{'quotes':>8}" + "".join(f"{name:>22}" for name in names) + f"{'rmse bps':>10}{'max':>8}  status"
    )
    lines = [f"{result.model.kind}: {result.surfaces[0].name or 'one surface'}", head]
    for row in range(len(result.expiries)):
        cells = (f"{result.params[name][row]:.6g} +- {result.std_error[name][row]:.2g}" for name in names)
        lines.append(
            f"{result.expiries[row]:>8.4f}{int(result.n_quotes[row]):>8}"
            + "".join(f"{cell:>22}" for cell in cells)
            + f"{result.rmse_bps[row]:>10.2f}{result.max_bps[row]:>8.2f}  {result.status[row]}"
        )
    return "\n".join([*lines, *(f"! {warning}" for warning in result.warnings)])


def calibrate_smiles(model: Any, surfaces: tuple[Surface, ...], options: FitOptions) -> SmileCalibration:
    """Fit a smile to each expiry of each surface, all of them at once.

    Args:
        model: `SabrSmile` or `SviSmile`.
        surfaces: one or more.
        options: starts and steps of each smile.

    Raises:
        DataError: surfaces without quotes.

    >>> from qfml.calibration.sabr_smile import SabrSmile
    >>> result = calibrate_smiles(SabrSmile(beta=0.5), (Surface.dax_2002(),), SabrSmile.usual)
    >>> result.rmse_bps[0].round(1).tolist()
    [94.8, 24.2, 15.8, 22.5, 20.7, 5.4, 13.6, 27.9]
    """
    quotes = as_quotes(list(surfaces))
    smiles = smiles_of(quotes)
    if len(smiles) == 0:
        raise DataError("no quote of the surfaces has a weight above 0; give at least one of them one")
    return _result(model, smiles, model.fit(smiles, options), surfaces, quotes.vol.shape[1])


def _result(
    model: Any, smiles: Smiles, fit: FittedSmiles, surfaces: tuple[Surface, ...], n_columns: int
) -> SmileCalibration:
    numbers, warned = summary(model, smiles, fit)
    residuals = smiles.by_quote(fit.errors, n_columns)
    status = [[""] * smiles.shape[1] for _ in surfaces]
    warnings: list[list[str]] = [[] for _ in surfaces]
    rows = zip(smiles.surface.tolist(), smiles.slot.tolist(), smiles.expiry.tolist(), strict=True)
    for (surface, slot, expiry), sentence, lines in zip(rows, fit.sentences, warned, strict=True):
        status[surface][slot] = sentence
        warnings[surface] += [f"expiry {expiry:.4g}: {line}" for line in lines]
    for row, place in crossings(model, smiles, fit.x):
        warnings[int(smiles.surface[row])].append(
            f"expiry {smiles.expiry[row + 1].item():.4g}: its total variance falls below that of expiry "
            f"{smiles.expiry[row].item():.4g} at log-moneyness {place:.3g} (calendar arbitrage); `ssvi` and "
            "`local_vol` exclude it"
        )
    for surface in np.flatnonzero(np.isnan(numbers["expiries"]).all(axis=-1)):
        status[surface][0] = NO_QUOTES
    return SmileCalibration(
        model=model,
        **numbers,
        sse=np.where(np.isfinite(residuals).any(axis=-1), 1e4 * np.nansum(residuals**2, axis=-1), np.nan),
        residuals=residuals,
        inside_bid_ask=inside_share(surfaces, residuals),
        status=tuple(tuple(row) for row in status),
        warnings=tuple(tuple(lines) for lines in warnings),
        surfaces=surfaces,
    )


def summary(model: Any, smiles: Smiles, fit: FittedSmiles) -> tuple[dict[str, Any], list[list[str]]]:
    """What is said of each fit: numbers by name in tables of shape `smiles.shape`, and a list of warnings."""
    reported, slopes = model.reported(fit.x, smiles)
    reported = torch.where(fit.found.unsqueeze(-1), reported, torch.nan)
    at_lower, at_upper = _at_bounds(model, smiles, fit)
    known = smile_uncertainty(
        fit,
        slopes,
        smiles,
        ranges=model.ranges(smiles),
        held=at_lower | at_upper,
        blurred_from=model.blurred_from(reported, smiles),
    )
    n_quotes = smiles.n_quotes
    low, high = (torch.where(fit.found, end, torch.nan) for end in density_range(model, smiles, fit.x))
    numbers = {
        "expiries": smiles.table(smiles.expiry),
        "forwards": smiles.table(smiles.forward),
        "params": {name: smiles.table(reported[:, column]) for column, name in enumerate(model.names)},
        "std_error": {name: smiles.table(known.std_error[:, column]) for column, name in enumerate(model.names)},
        # where there is no smile there is nothing that its quotes do not determine
        "identified": {n: smiles.table(known.identified[:, column]) != 0.0 for column, n in enumerate(model.names)},
        "at_bound": _named_at_bound(model, smiles, known.at_bound, at_lower | at_upper),
        "correlation": smiles.table(known.correlation),
        "rmse_bps": smiles.table(1e4 * torch.sqrt(fit.errors.square().sum(-1) / n_quotes)),
        "max_bps": smiles.table(1e4 * fit.errors.abs().amax(-1)),
        "n_quotes": np.nan_to_num(smiles.table(n_quotes)).astype(np.int64),
        "converged": smiles.table(torch.isin(fit.status, torch.tensor(CONVERGED))) == 1.0,
        "n_steps": np.nan_to_num(smiles.table(fit.n_steps)).astype(np.int64),
        "density_from": smiles.table(low),
        "density_to": smiles.table(high),
    }
    return numbers, _warnings(model, smiles, fit, known, at_lower, at_upper, low, high)


def _at_bounds(model: Any, smiles: Smiles, fit: FittedSmiles) -> tuple[Tensor, Tensor]:
    """Which numbers of the fit are at their lower and at their upper bounds, shape (n, P) each."""
    lower, upper = model.bounds(smiles)
    room, found = AT_BOUND * model.ranges(smiles), fit.found.unsqueeze(-1)
    return (fit.x - lower < room) & found, (upper - fit.x < room) & found


def _named_at_bound(model: Any, smiles: Smiles, alone: Tensor, held: Tensor) -> dict[str, np.ndarray]:
    """By reported parameter: whether the number of its name is at a bound, or only such numbers move it (`alone`)."""
    named = dict(zip(model.fitted, held.unbind(-1), strict=True))
    flags = (of | named.get(name, of) for name, of in zip(model.names, alone.unbind(-1), strict=True))
    return {name: smiles.table(flag) == 1.0 for name, flag in zip(model.names, flags, strict=True)}


def inside_share(surfaces: Sequence[Surface], residuals: np.ndarray) -> np.ndarray:
    """Share of the quotes with a bid and an ask between which the model's vol lies; NaN for none; shape (S,)."""
    shares = np.full(len(surfaces), np.nan)
    for row, surface in enumerate(surfaces):
        if surface.bid is not None and surface.ask is not None:
            error = residuals[row, : len(surface)]
            two_sided = np.isfinite(error) & (surface.bid > 0.0) & (surface.ask > 0.0)
            vol = surface.vol + error
            if two_sided.any():
                shares[row] = np.mean(((vol >= surface.bid) & (vol <= surface.ask))[two_sided])
    return shares


def density_range(model: Any, smiles: Smiles, x: Tensor) -> tuple[Tensor, Tensor]:
    """Between which log-moneyness about the forward the density is positive: infinite where it is as far as looked at.

    Looked at are five standard deviations to each side, or the quotes where they reach further. A smile without a
    positive density at the forward has (0, 0).
    """
    parts = [_density_range(model, smiles.at(index), x[index]) for index in torch.arange(len(smiles)).split(BLOCK)]
    return torch.cat([low for low, _ in parts]), torch.cat([high for _, high in parts])


def _density_range(model: Any, smiles: Smiles, x: Tensor) -> tuple[Tensor, Tensor]:
    deviation = at_the_money_vol(smiles) * torch.sqrt(smiles.expiry)
    reach = torch.maximum(DEVIATIONS * deviation, 1.05 * smiles.log_moneyness.abs().amax(-1))
    share = torch.linspace(-1.0, 1.0, DENSITY_POINTS, dtype=x.dtype)
    places = reach.unsqueeze(-1) * share
    failed = ~(model.density(places, x, smiles) > 0.0)
    middle = DENSITY_POINTS // 2
    below = torch.where(failed[:, : middle + 1], places[:, : middle + 1], -torch.inf).amax(-1)
    above = torch.where(failed[:, middle:], places[:, middle:], torch.inf).amin(-1)
    return below, above


def _warnings(
    model: Any,
    smiles: Smiles,
    fit: FittedSmiles,
    known: SmileUncertainty,
    at_lower: Tensor,
    at_upper: Tensor,
    low: Tensor,
    high: Tensor,
) -> list[list[str]]:
    """What the user must know about each smile."""
    lines: list[list[str]] = [[] for _ in range(len(smiles))]

    def add(rows: Tensor, sentence: Any) -> None:
        for row in rows.nonzero().squeeze(-1).tolist():
            lines[row].append(sentence(row))

    names, n_quotes, unseen = model.fitted, smiles.n_quotes, ~known.identified
    few = fit.found & known.few
    add(few, lambda row: f"not identified: {int(n_quotes[row])} quotes for {fit.x.shape[-1]} parameters")
    add(unseen.any(-1) & ~few, lambda row: f"not identified by the quotes: {_listed(model.names, unseen[row])}")
    add(
        fit.found & ~few & (n_quotes == known.n_free),
        lambda row: f"no standard errors: {int(n_quotes[row])} quotes for {int(known.n_free[row])} parameters",
    )
    add(at_lower.any(-1), lambda row: f"at its lower bound: {_listed(names, at_lower[row])}")
    add(at_upper.any(-1), lambda row: f"at its upper bound: {_listed(names, at_upper[row])}")
    add(low.isfinite(), lambda row: f"negative density at log-moneyness {low[row].item():.3g} and perhaps below")
    add(high.isfinite(), lambda row: f"negative density at log-moneyness {high[row].item():.3g} and perhaps above")
    if hasattr(model, "negative_density"):
        least = model.negative_density(fit.x, smiles)
        unsaid = fit.found & ~least.isnan() & low.isinf() & high.isinf()
        add(
            unsaid,
            lambda row: f"Durrleman's g could not be kept above 0 everywhere: it falls to {least[row].item():.1g}",
        )
    return lines


def _listed(names: tuple[str, ...], flags: Tensor) -> str:
    return ", ".join(name for name, flag in zip(names, flags.tolist(), strict=True) if flag)


def crossings(model: Any, smiles: Smiles, x: Tensor) -> list[tuple[int, float]]:
    """Smiles whose total variance exceeds that of the next expiry where both are quoted, and at which log-moneyness."""
    if len(smiles) < 2:
        return []
    quoted = smiles.weight > 0.0
    low = torch.where(quoted, smiles.log_moneyness, torch.inf).amin(-1)
    high = torch.where(quoted, smiles.log_moneyness, -torch.inf).amax(-1)
    low, high = torch.maximum(low[:-1], low[1:]), torch.minimum(high[:-1], high[1:])
    share = torch.linspace(0.0, 1.0, CALENDAR_POINTS, dtype=x.dtype)
    places = low.unsqueeze(-1) + (high - low).unsqueeze(-1) * share
    index = torch.arange(len(smiles))
    variances = [
        model.curve(places, x[rows], smiles.at(rows)) ** 2 * smiles.expiry[rows].unsqueeze(-1)
        for rows in (index[:-1], index[1:])
    ]
    fall = variances[0] - variances[1]
    neighbours = (smiles.surface[:-1] == smiles.surface[1:]) & (high > low)
    worst, where = fall.max(-1)
    crossed = neighbours & (worst > CROSSING)
    return [(row, places[row, where[row]].item()) for row in crossed.nonzero().squeeze(-1).tolist()]
