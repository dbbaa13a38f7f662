"""Local volatility: the surface without arbitrage that is closest to the quotes, and proof that it prices them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from pricers import FiniteDifference, LocalVol, Market, VolSurface, implied_vol
from pricers.black import black_greeks
from pricers.instruments.european import European
from qfml.calibration.fit_options import SurfaceFitter, count_option
from qfml.calibration.model import Quotes
from qfml.calibration.smile_result import NO_QUOTES, inside_share
from qfml.calibration.smiles import Smiles, smiles_of
from qfml.calibration.surface import Surface, as_quotes
from qfml.errors import ConfigError, DataError

__all__ = ["LocalVolCalibration", "LocalVolSurface", "Repricing"]


@dataclass(frozen=True)
class LocalVolSurface(SurfaceFitter):
    """Dupire's local volatility of a surface fitted without arbitrage (`pricers.VolSurface.fitted`).

    Each surface is a problem of its own with some hundred unknowns, of seconds rather than milliseconds.

    Args:
        smoothing: weight of the bends of each smile. 1e-4 moves smooth smiles by a fraction of a basis point, 1e-2
            smooths noise of some ten basis points.
        knots_per_quote: knots of the surface for each quote.

    Raises:
        ConfigError: a number that is not above 0, knots that are no whole number.
    """

    kind: ClassVar[str] = "local_vol"
    usual: ClassVar[Any] = None
    smoothing: float = 1e-4
    knots_per_quote: int = 2

    def __post_init__(self) -> None:
        smoothing: Any = self.smoothing
        number = isinstance(smoothing, int | float) and not isinstance(smoothing, bool)
        if not number or not 0.0 < smoothing < math.inf:
            raise ConfigError(f"`smoothing` of local_vol must be a number above 0, got {smoothing!r}; 1e-4 is usual")
        count_option("knots_per_quote", self.knots_per_quote)

    @classmethod
    def alone(cls, result: LocalVolCalibration) -> LocalVolCalibration:
        """As it is: the axis of surfaces stays."""
        return result

    def calibrated(self, surfaces: tuple[Surface, ...], options: None) -> LocalVolCalibration:
        """Each surface, one after the other."""
        quotes = as_quotes(list(surfaces))
        fits = [self._fitted(quotes.at(slice(row, row + 1))) for row in range(len(surfaces))]
        residuals = np.stack([residual for _, residual, _ in fits])
        return LocalVolCalibration(
            model=self,
            vol_surfaces=tuple(surface for surface, _, _ in fits),
            residuals=residuals,
            inside_bid_ask=inside_share(surfaces, residuals),
            status=tuple(sentence for _, _, sentence in fits),
            surfaces=surfaces,
        )

    def _fitted(self, quotes: Quotes) -> tuple[VolSurface | None, np.ndarray, str]:
        """The surface, the errors of the vols at the quotes, and how it went."""
        missing = np.full(quotes.vol.shape[1], np.nan)
        if not bool(quotes.used.any()):
            return None, missing, NO_QUOTES
        try:
            smiles = smiles_of(quotes)
            places, vols, weights, columns = _grid(smiles)
            fit = VolSurface.fitted(places, smiles.expiry, vols, weights, self.smoothing, self.knots_per_quote)
        except (DataError, ValueError, RuntimeError) as error:
            return None, missing, f"failed: {error}"
        quoted = columns >= 0
        missing[columns[quoted].numpy()] = fit.errors[quoted].numpy()
        return fit.surface, missing, "converged: the interior-point method reached its last barrier"


def _grid(smiles: Smiles) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-moneyness (E, n) ascending in each row, vols (NaN where there is none), weights and columns of the quotes.

    `VolSurface` wants as many places at each expiry: rows with fewer quotes get places without one, each in the middle
    of the widest gap.
    """
    width = int(smiles.n_quotes.max())
    shape = (len(smiles), width)
    places, vols, weights = (np.full(shape, np.nan) for _ in range(3))
    columns = np.full(shape, -1)
    for row in range(len(smiles)):
        quoted = (smiles.weight[row] > 0.0).numpy()
        k = smiles.log_moneyness[row].numpy()[quoted]
        if (np.diff(k) <= 0.0).any():
            strike = k[:-1][np.diff(k) <= 0.0][0]
            raise DataError(
                f"two quotes at expiry {smiles.expiry[row].item():g} have log-moneyness {strike:g}; keep one of them"
            )
        if len(k) < 2:
            raise DataError(
                f"local_vol needs two quotes or more at each expiry, got {len(k)} at expiry "
                f"{smiles.expiry[row].item():g}; leave that expiry out"
            )
        grid = k.tolist()
        while len(grid) < width:
            gap = int(np.argmax(np.diff(grid)))
            grid.insert(gap + 1, 0.5 * (grid[gap] + grid[gap + 1]))
        places[row] = grid
        at = np.searchsorted(grid, k)
        vols[row, at], weights[row, at] = smiles.vol[row].numpy()[quoted], smiles.weight[row].numpy()[quoted]
        columns[row, at] = smiles.place[row].numpy()[quoted]
    return (
        torch.from_numpy(places),
        torch.from_numpy(vols),
        torch.from_numpy(np.nan_to_num(weights)),
        torch.from_numpy(columns),
    )


@dataclass(frozen=True, eq=False)
class Repricing:
    """Prices of the quoted options by finite differences under the local volatility.

    Args:
        residuals: implied vol of the price less the quote, NaN where there is none or the price has no vol, shape (N,).
        fitted: the part of it that the fit of the surface explains: what the fitted surface is off, shape (N,).
        bound: bound of the numerical error of the vols that the engine states, shape (N,).
    """

    residuals: np.ndarray
    fitted: np.ndarray
    bound: np.ndarray

    @property
    def rmse_bps(self) -> float:
        """Of the prices' vols against the quotes, basis points."""
        return float(1e4 * np.sqrt(np.nanmean(self.residuals**2)))

    @property
    def local_vol_rmse_bps(self) -> float:
        """Of the prices' vols against those of the fitted surface: what Dupire's formula and the grid are off."""
        return float(1e4 * np.sqrt(np.nanmean((self.residuals - self.fitted) ** 2)))

    @property
    def local_vol_max_bps(self) -> float:
        """The largest of the same."""
        return float(1e4 * np.nanmax(np.abs(self.residuals - self.fitted)))

    def __str__(self) -> str:
        return (
            f"finite differences under the local vol: rmse {self.rmse_bps:.2f} bps of vol against the quotes; against "
            f"the fitted surface {self.local_vol_rmse_bps:.2f}, largest {self.local_vol_max_bps:.2f}"
        )


@dataclass(frozen=True, eq=False, repr=False)
class LocalVolCalibration:
    """Local volatilities of S surfaces, each with what separates it from its quotes.

    Args:
        model: what was fitted.
        vol_surfaces: free of arbitrage; None where the fit failed.
        residuals: fitted less quoted vol, NaN where there is none, shape (S, N).
        inside_bid_ask: share of the quotes whose fitted vol lies between bid and ask, NaN without, shape (S,).
        status: a sentence for each surface.
        surfaces: what was calibrated to.
    """

    model: Any
    vol_surfaces: tuple[VolSurface | None, ...]
    residuals: np.ndarray
    inside_bid_ask: np.ndarray
    status: tuple[str, ...]
    surfaces: tuple[Surface, ...]
    method: str = "exact"

    @property
    def converged(self) -> np.ndarray:
        """Shape (S,)."""
        return np.array([surface is not None for surface in self.vol_surfaces])

    @property
    def rmse_bps(self) -> np.ndarray:
        """Root mean square error of a surface, basis points of vol; NaN where the fit failed; shape (S,)."""
        quoted = np.isfinite(self.residuals)
        squares = np.where(quoted, self.residuals, 0.0) ** 2
        count = quoted.sum(-1)
        return 1e4 * np.sqrt(np.where(count > 0, squares.sum(-1) / np.maximum(count, 1), np.nan))

    @property
    def max_bps(self) -> np.ndarray:
        """Largest error, shape (S,)."""
        return 1e4 * np.where(self.converged, np.nan_to_num(np.abs(self.residuals)).max(-1), np.nan)

    @property
    def sse(self) -> np.ndarray:
        """Sum of squared errors, vol points squared, shape (S,)."""
        return np.where(self.converged, 1e4 * np.nansum(self.residuals**2, axis=-1), np.nan)

    @property
    def params(self) -> dict[str, Any]:
        """None: what was fitted is a surface."""
        return {}

    @property
    def std_error(self) -> dict[str, Any]:
        """None, as there are no parameters."""
        return {}

    @property
    def identified(self) -> dict[str, Any]:
        """None, likewise."""
        return {}

    @property
    def at_bound(self) -> dict[str, Any]:
        """None, likewise."""
        return {}

    @property
    def warnings(self) -> tuple[tuple[str, ...], ...]:
        """Of each surface: why its fit failed, if it did."""
        return tuple(
            () if fitted else (sentence,) for fitted, sentence in zip(self.converged, self.status, strict=True)
        )

    def smile(self, log_moneyness: Any, expiry: float, surface: int = 0) -> np.ndarray:
        """Fitted vols (m,) of one surface at log-moneyness (m,) and an expiry (years) up to its last.

        They are NaN where the fit failed, and outside of the surface's knots, which reach beyond its quotes.

        Raises:
            DataError: an expiry outside.
        """
        places = torch.as_tensor(log_moneyness, dtype=torch.float64).reshape(-1)
        vols, found = torch.full_like(places, torch.nan), self.vol_surfaces[surface]
        if found is None:
            return vols.numpy()
        last = found.expiries[-1].item()
        if not 0.0 < expiry <= last:
            raise DataError(f"`expiry` must lie in (0, {last:g}], where there are quotes, got {expiry:g}")
        low, high = found.edges
        inside = (places >= low) & (places <= high)
        vols[inside] = found.vol(places[inside], torch.tensor(expiry, dtype=torch.float64)).detach()
        return vols.numpy()

    def rmse_bps_by_expiry(self, surface: int = 0) -> dict[float, float]:
        """Root mean square error of each expiry of one surface, basis points of vol."""
        expiry = self.surfaces[surface].expiry
        error = self.residuals[surface, : len(expiry)]
        return {
            float(years): float(1e4 * np.sqrt(np.mean(error[(expiry == years) & np.isfinite(error)] ** 2)))
            for years in np.unique(expiry[np.isfinite(error)])
        }

    def pricer(self, surface: int = 0) -> LocalVol:
        """The model of one surface in `pricers`.

        Raises:
            DataError: its fit failed.
        """
        found = self.vol_surfaces[surface]
        if found is None:
            raise DataError(f"surface {surface} has no local volatility: {self.status[surface]}")
        return LocalVol(found)

    def repriced(self, surface: int = 0, engine: Any = None) -> Repricing:
        """Price every quote by finite differences under the local volatility and read the vols of the prices.

        Local volatility depends on spot over forward only, so that everything is done in units of the forward.

        Args:
            surface: which one.
            engine: `pricers.FiniteDifference(n_space, n_time)`; None: its default. A grid twice as fine has a
                quarter of the error.

        Raises:
            DataError: the fit of the surface failed.
        """
        model = self.pricer(surface)
        engine = FiniteDifference() if engine is None else engine
        quotes = self.surfaces[surface]
        error = self.residuals[surface, : len(quotes)]
        used = np.flatnonzero(np.isfinite(error))
        strike = torch.from_numpy(np.exp(quotes.log_moneyness[used]))
        expiry = torch.from_numpy(quotes.expiry[used])
        vols, bounds = (np.full(len(quotes), np.nan) for _ in range(2))
        for option in ("call", "put"):  # the one out of the money
            side = (strike >= 1.0) if option == "call" else (strike < 1.0)
            if not bool(side.any()):
                continue
            contract = European(strike=strike[side], expiry=expiry[side], option=option)
            found = engine.price(contract, model, Market(spot=1.0))
            vol = implied_vol(found.value, 1.0, strike[side], expiry[side], option=option, errors="nan")
            vega = black_greeks(1.0, strike[side], expiry[side], vol, option=option).vega
            rows = used[side.numpy()]
            vols[rows], bounds[rows] = vol.numpy(), (found.error_bound / vega).numpy()
        return Repricing(residuals=vols - quotes.vol, fitted=error, bound=bounds)

    def __str__(self) -> str:
        """The errors by expiry of one surface; for several a line each."""
        lines: list[str] = []
        for row, surface in enumerate(self.surfaces):
            name = surface.name or f"surface {row}"
            lines.append(
                f"local_vol: {name}: rmse {self.rmse_bps[row]:.2f} bps of vol, largest {self.max_bps[row]:.2f}; "
                f"{self.status[row]}"
            )
        if len(self.surfaces) == 1 and self.vol_surfaces[0] is not None:
            lines.append(f"{'expiry':>8}{'rmse bps':>10}")
            lines += [f"{years:>8.4f}{rmse:>10.2f}" for years, rmse in self.rmse_bps_by_expiry().items()]
        return "\n".join(lines)

    __repr__ = __str__
