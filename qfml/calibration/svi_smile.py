"""SVI for each expiry of a surface, with or without the density kept positive."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from qfml.calibration.fit_options import FitOptions, SurfaceFitter, flag_option
from qfml.calibration.least_squares import least_squares
from qfml.calibration.smile_fit import BLOCK, FittedSmiles, chosen, fit_smiles
from qfml.calibration.smile_result import SmileCalibration, calibrate_smiles
from qfml.calibration.smiles import Smiles
from qfml.calibration.surface import Surface
from qfml.calibration.svi import (
    GRID_POINTS,
    LARGEST_SLOPE,
    density_and_jacobian,
    raw_from_wings,
    raw_jacobian,
    svi_density,
    svi_total_variance,
    wings_start,
    wings_variance_and_jacobian,
)
from qfml.errors import ConfigError

__all__ = ["SviSmile"]

REACH = 2.0  # of m beyond the quotes, in units of their range
SIGMA = 1e-3, 10.0  # in units of the range of the quotes
LEAST_RANGE = 1e-3  # of log-moneyness, below which quotes are one point
GRID = 101  # places at which the density is kept from 0
FINE_GRID = 401  # places at which it is looked at
REACH_OF_DENSITY = 40.0  # half width of both grids, in units of the range of the quotes and sigma
MARGINS = 1e-3, 1e-2, 3e-2, 0.1  # by which the density is kept above 0, one after the other
PENALTY = 30.0, 100.0, 300.0, 1000.0  # vol (root of the mean weight) for a density that is 1 too low


@dataclass(frozen=True)
class SviSmile(SurfaceFitter):
    r"""Raw SVI, $w(k) = a + b(\rho(k-m) + \sqrt{(k-m)^2 + \sigma^2})$, a smile of its own at each expiry.

    The variance is positive and the wings obey Lee's bound in every fit. `butterfly_free` also keeps Durrleman's g
    above 0: smiles whose best fit breaks it are fitted again with what g lacks as further residuals, until a fine grid
    shows none. Expiries know nothing of one another: that smiles do not cross is checked, and said. SSVI excludes it.

    Args:
        butterfly_free: whether the density is kept above 0, or only looked at.

    References:
        Gatheral and Jacquier (2014), Arbitrage-free SVI volatility surfaces; De Marco and Martini (2009),
        Quasi-explicit calibration of Gatheral's SVI model.

    >>> SviSmile().names
    ('a', 'b', 'rho', 'm', 'sigma')
    """

    kind: ClassVar[str] = "svi"
    usual: ClassVar[Any] = FitOptions(n_starts=3, max_steps=400)  # nearly straight smiles: long flat valleys
    most_starts: ClassVar[int] = GRID_POINTS[0] * GRID_POINTS[1]
    butterfly_free: bool = True

    def __post_init__(self) -> None:
        flag_option("butterfly_free", self.butterfly_free)

    @property
    def names(self) -> tuple[str, ...]:
        """a, b, rho, m and sigma."""
        return ("a", "b", "rho", "m", "sigma")

    @property
    def fitted(self) -> tuple[str, ...]:
        """What the numbers of the fit are called."""
        return ("least variance", "left wing", "right wing", "m", "sigma")

    def bounds(self, smiles: Smiles) -> tuple[Tensor, Tensor]:
        """As `SmileModel`."""
        low, high = quoted_range(smiles)
        width = (high - low).clamp(min=LEAST_RANGE)
        zero = torch.zeros_like(width)
        lower = (zero, zero, zero, low - REACH * width, SIGMA[0] * width)
        upper = (zero + torch.inf, zero + LARGEST_SLOPE, zero + LARGEST_SLOPE, high + REACH * width, SIGMA[1] * width)
        return torch.stack(lower, dim=-1), torch.stack(upper, dim=-1)

    def ranges(self, smiles: Smiles) -> Tensor:
        """As `SmileModel`."""
        low, high = quoted_range(smiles)
        width = (high - low).clamp(min=LEAST_RANGE)
        level = (smiles.weight * smiles.vol**2).sum(-1) / smiles.weight.sum(-1) * smiles.expiry
        slope = 0.1 * torch.ones_like(width)
        return torch.stack([level, slope, slope, width, width], dim=-1)

    def blurred_from(self, reported: Tensor, smiles: Smiles) -> Tensor:
        """Half of the ranges, of a that of the variance, of m and sigma that of the quotes; of a steep b its value."""
        level, slope, _, width, _ = (0.5 * self.ranges(smiles)).unbind(-1)
        steepness = torch.maximum(slope, reported[:, 1])
        return torch.stack([level, steepness, torch.full_like(level, 0.5), width, width], dim=-1)

    def starts(self, smiles: Smiles, n_starts: int) -> Tensor:
        """From the linear problem for given m and sigma, on a grid of both."""
        expiry = smiles.expiry.unsqueeze(-1)
        quoted = smiles.weight > 0.0
        # an error of the vol is one of the variance over 2 vol T
        weight = torch.where(quoted, smiles.weight / (2.0 * torch.where(quoted, smiles.vol, 1.0) * expiry) ** 2, 0.0)
        return wings_start(smiles.log_moneyness, smiles.vol**2 * expiry, weight, n_starts)

    def vols_and_jacobian(self, x: Tensor, smiles: Smiles) -> tuple[Tensor, Tensor]:
        """As `SmileModel`."""
        variance, jacobian = wings_variance_and_jacobian(smiles.log_moneyness, x)
        expiry = smiles.expiry.unsqueeze(-1)
        vols = torch.sqrt(variance / expiry)
        return vols, jacobian / (2.0 * vols * expiry).unsqueeze(-1)

    def reported(self, x: Tensor, smiles: Smiles) -> tuple[Tensor, Tensor]:
        """As `SmileModel`."""
        return raw_from_wings(x), raw_jacobian(x)

    def fit(self, smiles: Smiles, options: FitOptions) -> FittedSmiles:
        """Least squares, and again with the density kept above 0 where it is not."""
        fit = fit_smiles(self, smiles, options)
        if not self.butterfly_free:
            return fit
        blocks = torch.arange(len(smiles)).split(BLOCK)
        least = torch.cat([least_density(fit.x[index], smiles.at(index)) for index in blocks])
        broken = (~(least > 0.0)).nonzero().squeeze(-1)
        for margin, penalty in zip(MARGINS, PENALTY, strict=True):
            if len(broken) == 0:
                break
            again, least = self._kept_positive(fit.x[broken], smiles.at(broken), options, margin, penalty)
            for name, value in vars(fit).items():
                value[broken] = getattr(again, name)
            broken = broken[~(least > 0.0)]
        return fit

    def calibrated(self, surfaces: tuple[Surface, ...], options: FitOptions) -> SmileCalibration:
        """Each expiry of each surface."""
        return calibrate_smiles(self, surfaces, options)

    def _kept_positive(
        self, x: Tensor, smiles: Smiles, options: FitOptions, margin: float, penalty: float
    ) -> tuple[FittedSmiles, Tensor]:
        """Least squares in the errors of the vols and in what the density lacks of `margin`; and its least value."""
        starts = torch.cat([x.unsqueeze(1), self.starts(smiles, options.n_starts)], dim=1)
        n, n_starts, _ = starts.shape
        every = smiles.at(torch.arange(n).repeat_interleave(n_starts))
        lower, upper = self.bounds(every)
        mean_weight = every.weight.sum(-1) / every.n_quotes

        def function(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
            part = every.at(index)
            root = torch.sqrt(part.weight)
            vols, jacobian = self.vols_and_jacobian(x, part)
            density, slopes = density_and_jacobian(density_grid(part, GRID), x)
            unit = penalty * torch.sqrt(mean_weight[index] / GRID)[:, None]
            lack = (margin - density).clamp(min=0.0)
            pull = torch.where(lack > 0.0, -unit, 0.0)
            return (
                torch.cat([torch.where(root > 0.0, root * (vols - part.vol), 0.0), unit * lack], dim=-1),
                torch.cat([root.unsqueeze(-1) * jacobian, pull.unsqueeze(-1) * slopes], dim=-2),
            )

        room = 1e-3 * torch.cat([self.ranges(every)[:, :3], upper[:, 3:] - lower[:, 3:]], dim=-1)
        inside = torch.minimum(torch.maximum(starts.flatten(0, 1), lower + room), upper - room)  # not glued to a bound
        how = {"max_steps": options.max_steps, "tolerance": options.tolerance}
        solution = least_squares(function, inside, lower=lower, upper=upper, **how)
        found = chosen(solution, torch.arange(len(every)), every)
        least = least_density(found.x, every)
        # the best of those without arbitrage; where there is none, the one with the least of it
        free, cost, lack = (part.reshape(n, n_starts) for part in (least > 0.0, found.cost, -least))
        rank = torch.where(free.any(-1, keepdim=True), torch.where(free, cost, torch.inf), lack)
        best = rank.argmin(-1) + n_starts * torch.arange(n)
        return chosen(solution, best, smiles), least[best]

    def pricer(self, params: dict[str, np.ndarray]) -> Any:
        """There is none: SVI is a smile, not a dynamics.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("`svi` describes smiles and has no dynamics to price with; calibrate `local_vol` for that")

    def density(self, log_moneyness: Tensor, x: Tensor, smiles: Smiles) -> Tensor:
        """Durrleman's g, shape (n, m)."""
        return svi_density(log_moneyness, *raw_from_wings(x).unsqueeze(-2).unbind(-1))

    def negative_density(self, x: Tensor, smiles: Smiles) -> Tensor:
        """The least of Durrleman's g where it is below 0 although it was to be kept above, else NaN; shape (n,)."""
        if not self.butterfly_free:
            return torch.full_like(x[:, 0], torch.nan)
        blocks = torch.arange(len(smiles)).split(BLOCK)
        least = torch.cat([least_density(x[index], smiles.at(index)) for index in blocks])
        return torch.where(least > 0.0, torch.nan, least)

    def curve(self, log_moneyness: Tensor, x: Tensor, smiles: Smiles) -> Tensor:
        """Vols of the fits at other log-moneyness (n, m)."""
        return self.vols_and_jacobian(x, replace(smiles, log_moneyness=log_moneyness))[0]

    def vols(self, log_moneyness: Tensor, expiry: Tensor, forward: Tensor, reported: Tensor) -> Tensor:
        """Vols at log-moneyness (n, m) of expiries (n,), from reported parameters (n, 5)."""
        variance, _, _ = svi_total_variance(log_moneyness, *reported.unsqueeze(-2).unbind(-1))
        return torch.sqrt(variance / expiry.unsqueeze(-1))


def quoted_range(smiles: Smiles) -> tuple[Tensor, Tensor]:
    """Lowest and highest quoted log-moneyness, shape (n,) each."""
    quoted = smiles.weight > 0.0
    low = torch.where(quoted, smiles.log_moneyness, torch.inf).amin(-1)
    return low, torch.where(quoted, smiles.log_moneyness, -torch.inf).amax(-1)


def density_grid(smiles: Smiles, n_points: int) -> Tensor:
    """Places that are dense about the quotes and reach far into the wings, shape (n, n_points)."""
    low, high = quoted_range(smiles)
    width = (high - low).clamp(min=LEAST_RANGE)
    share = torch.linspace(-1.0, 1.0, n_points, dtype=low.dtype)
    reach = 6.0  # sinh(6) is 200: half of the places lie within a tenth of the whole
    shape = torch.sinh(reach * share) / torch.sinh(torch.tensor(reach, dtype=low.dtype))
    return (0.5 * (low + high)).unsqueeze(-1) + REACH_OF_DENSITY * width.unsqueeze(-1) * shape


def least_density(x: Tensor, smiles: Smiles) -> Tensor:
    """The least of Durrleman's g about the quotes, about the vertex, and far out; shape (n,)."""
    raw = raw_from_wings(x).unsqueeze(-2)
    m, sigma = x[:, 3:4], x[:, 4:5]
    share = torch.linspace(-8.0, 8.0, FINE_GRID // 2, dtype=x.dtype)
    about_vertex = m + sigma * torch.sinh(share)
    places = torch.cat([density_grid(smiles, FINE_GRID), about_vertex], dim=-1)
    return svi_density(places, *raw.unbind(-1)).amin(-1)
