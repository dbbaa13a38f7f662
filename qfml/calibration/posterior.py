"""What quotes with errors leave open about a model's parameters: draws from the posterior law."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from qfml.calibration.chains import effective_sample_size, split_r_hat
from qfml.calibration.hamiltonian import Chains, hamiltonian
from qfml.calibration.model import CalibrationModel, Quotes, ranges_of
from qfml.engine.streams import stream
from qfml.errors import ConfigError, DataError

if TYPE_CHECKING:
    from qfml.calibration.surface import Surface

__all__ = ["Posterior", "half_spreads", "posterior", "residual_std"]

R_HAT, DRAWS = 1.01, 400  # Vehtari and others (2021), section 4: below, or fewer effective draws, a warning
OVERDISPERSION = 1.5  # of the starts, in standard deviations
ATTEMPTS = 20  # to find a start at which the model has vols


@dataclass(frozen=True, eq=False)
class Posterior:
    """Draws of the parameters of S surfaces, and what is to be known about them.

    Attributes:
        names: of the P parameters.
        draws: in natural units, shape (S, chains, draws, P).
        r_hat: rank-normalised split R-hat, (S, P); NaN where a chain never moved.
        effective_draws: effective sample size, (S, P).
        accept: mean acceptance probability, (S,).
        divergences: trajectories that left the region where the model has vols or lost their energy, (S,).
        vol_std: standard deviations of the errors of the vols, (S, N).
        warnings: sentences about each surface; none where all is well.
    """

    names: tuple[str, ...]
    draws: Float64[Tensor, "S C n P"]
    r_hat: Float64[Tensor, "S P"]
    effective_draws: Float64[Tensor, "S P"]
    accept: Float64[Tensor, " S"]
    divergences: Tensor
    vol_std: Float64[Tensor, "S N"]
    warnings: tuple[tuple[str, ...], ...]

    @property
    def mean(self) -> Float64[Tensor, "S P"]:
        """Posterior means."""
        return self.draws.flatten(1, 2).mean(1)

    @property
    def std(self) -> Float64[Tensor, "S P"]:
        """Posterior standard deviations."""
        return self.draws.flatten(1, 2).std(1)

    def quantile(self, levels: Sequence[float]) -> Float64[Tensor, "Q S P"]:
        """Posterior quantiles at `levels` in [0, 1]."""
        wanted = torch.tensor([float(level) for level in levels], dtype=torch.float64)
        return torch.quantile(self.draws.flatten(1, 2), wanted, dim=1)

    def correlation(self) -> Float64[Tensor, "S P P"]:
        """Posterior correlations of the parameters."""
        return torch.stack([own.flatten(0, 1).T.corrcoef() for own in self.draws])

    def to_dict(self) -> list[dict[str, Any]]:
        """One mapping a surface, of JSON types: per parameter mean, std, 5, 50 and 95 % quantile, R-hat, draws."""
        low, middle, high = self.quantile((0.05, 0.5, 0.95))
        columns = {
            "mean": self.mean,
            "std": self.std,
            "q05": low,
            "q50": middle,
            "q95": high,
            "r_hat": self.r_hat,
            "effective_draws": self.effective_draws,
        }
        return [
            {
                "parameters": {
                    name: {key: _number(values[s, p]) for key, values in columns.items()}
                    for p, name in enumerate(self.names)
                },
                "accept": float(self.accept[s]),
                "divergences": int(self.divergences[s]),
                "warnings": list(self.warnings[s]),
            }
            for s in range(len(self.draws))
        ]


def _number(value: Tensor) -> float | None:
    return float(value) if bool(value.isfinite()) else None


def posterior(
    model: CalibrationModel,
    quotes: Quotes,
    optimum: Float64[Tensor, "S P"],
    *,
    vol_std: Any = None,
    box: Mapping[str, Any] | None = None,
    n_chains: int = 4,
    n_draws: int = 500,
    n_warmup: int = 250,
    seed: int = 0,
) -> Posterior:
    r"""Draw from the posterior of each surface: normal errors of the vols, a uniform prior over a box.

    $$\log p(x \mid \text{quotes}) = -\tfrac12 \sum_i \frac{(\sigma_i(x) - \hat\sigma_i)^2}{s_i^2} + \text{const},
    \qquad x \in \text{box}$$

    The chains move in free coordinates $z$, $x = l + (u - l) / (1 + e^{-z})$ (of the logarithm where the parameter is
    of scale "log"), whose Jacobian belongs to the density; the mass matrix is the Gauss-Newton covariance at `optimum`,
    improved in the warm-up. What a surface draws depends on the seed and its place in the batch.

    Args:
        model: gives vols and their derivatives: exact, or a surrogate.
        quotes: of S surfaces.
        optimum: the calibrated parameters, strictly inside the box.
        vol_std: standard deviation of the errors, annual decimal: a number, (S,), or (S, N); see `half_spreads`. None
            for that of the residuals at the optimum, over the root of the weights.
        box: ranges of parameters by name, in place of the model's bounds.
        n_chains: chains of a surface.
        n_draws: draws kept of each.
        n_warmup: iterations before, not kept.
        seed: names the random streams.

    Raises:
        ConfigError: an infinite or empty box, an optimum outside it, a standard deviation that is not above 0.
        DataError: a surface with too few quotes, or too good a fit, to estimate its errors; no vols at the optimum.

    References:
        Neal (2011), "MCMC using Hamiltonian dynamics". Johannes and Polson (2010), "MCMC methods for continuous-time
        financial econometrics", for posteriors of Heston's parameters.
    """
    for name, value, least in (("n_chains", n_chains, 1), ("n_draws", n_draws, 8), ("n_warmup", n_warmup, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"`{name}` must be a whole number, at least {least}, got {value!r}")
    law = _Law.of(model, quotes, optimum, vol_std, box)
    centre = law.prior.outward(optimum)
    covariance = law.covariance(centre)
    generators = [stream(seed, "posterior", place) for place in range(len(optimum))]
    start = _starts(law, centre, covariance, generators, n_chains)
    chains = hamiltonian(law, start, covariance, generators, n_draws=n_draws, n_warmup=n_warmup)
    return _result(law, chains)


def half_spreads(surfaces: Surface | Sequence[Surface]) -> Float64[Tensor, "S N"]:
    """Half of ask less bid of each quote, padded as by `as_quotes`: standard deviations of its error.

    Raises:
        DataError: a surface with a quote that has no bid or ask, or no spread.
    """
    surfaces = list(surfaces) if isinstance(surfaces, Sequence) else [surfaces]
    found = np.ones((len(surfaces), max(map(len, surfaces))))
    for place, surface in enumerate(surfaces):
        if surface.bid is None or surface.ask is None:
            raise DataError(f"surface {place} has no bid and ask vols: give `vol_std` as a number")
        half = 0.5 * (surface.ask - surface.bid)
        if not (half > 0).all():
            raise DataError(
                f"quote {int(np.flatnonzero(~(half > 0))[0])} of surface {place} has no bid below an ask: give "
                "`vol_std` as a number, or leave the quote out"
            )
        found[place, : len(surface)] = half
    return torch.from_numpy(found)


def residual_std(model: CalibrationModel, quotes: Quotes, optimum: Float64[Tensor, "S P"]) -> Float64[Tensor, "S N"]:
    """Standard deviations of the errors by the residuals at the optimum, N - P degrees of freedom, over root weights.

    Raises:
        DataError: no more quotes than parameters, or residuals that are 0.
    """
    used = quotes.used
    error = torch.where(used, model.vols(optimum, quotes) - quotes.vol, 0.0)
    freedom = used.sum(1) - optimum.shape[1]
    if bool((freedom < 1).any()):
        place = int((freedom < 1).nonzero()[0, 0])
        raise DataError(
            f"surface {place} has {int(used[place].sum())} quotes for {optimum.shape[1]} parameters: their errors "
            "cannot be estimated; give `vol_std`"
        )
    std = ((quotes.weight * error.square()).sum(1) / freedom).sqrt()
    if not bool((std > 1e-9).all()):
        place = int((~(std > 1e-9)).nonzero()[0, 0])
        raise DataError(
            f"the residuals of surface {place} have a standard deviation of {float(std[place]):.3g}: there is no "
            "error left to estimate, or no vol; give `vol_std`"
        )
    return std[:, None] / torch.where(used, quotes.weight, 1.0).sqrt()


@dataclass(frozen=True, eq=False)
class _Prior:
    """A uniform law on a box, in free coordinates."""

    low: Tensor  # in the coordinates in which the range is linear
    high: Tensor
    log: Tensor

    @classmethod
    def of(cls, model: CalibrationModel, box: Mapping[str, Any] | None) -> _Prior:
        named = {one.name: (one.lower, one.upper) for one in model.parameters}
        named |= ranges_of(model, {} if box is None else box)
        for name, (low, high) in named.items():
            if not -math.inf < low < high < math.inf:
                raise ConfigError(
                    f"a uniform prior needs a finite range of `{name}`, got {low} to {high}: give one in `box`"
                )
        log = torch.tensor([one.scale == "log" and named[one.name][0] > 0 for one in model.parameters])
        ends = torch.tensor(list(named.values()), dtype=torch.float64)
        ends = torch.where(log[:, None], ends.abs().log(), ends)
        return cls(ends[:, 0], ends[:, 1], log)

    def inward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x (B, P), dx/dz, the log of the product of these (B,), and its derivatives in z."""
        width, share, rest = self.high - self.low, torch.sigmoid(z), torch.sigmoid(-z)
        place = self.low + width * share
        x = torch.where(self.log, place.exp(), place)
        bend = width * share * rest
        slope = torch.where(self.log, x * bend, bend)
        logarithm = torch.nn.functional.logsigmoid(z) + torch.nn.functional.logsigmoid(-z) + width.log()
        logarithm = logarithm + torch.where(self.log, place, 0.0)
        return x, slope, logarithm.sum(-1), rest - share + torch.where(self.log, bend, 0.0)

    def outward(self, x: Tensor) -> Tensor:
        """z of x."""
        place = torch.where(self.log, x.abs().log(), x)
        share = (place - self.low) / (self.high - self.low)
        if not bool(((share > 0) & (share < 1)).all()):
            row, column = (~((share > 0) & (share < 1))).nonzero()[0].tolist()
            raise ConfigError(
                f"`optimum` must lie strictly inside the box, got {float(x[row, column]):g} for parameter {column} of "
                f"surface {row}: widen the `box`"
            )
        return torch.logit(share)


@dataclass(frozen=True, eq=False)
class _Law:
    """Log density of the free coordinates; its rows belong to surfaces."""

    model: CalibrationModel
    quotes: Quotes
    prior: _Prior
    std: Tensor

    @classmethod
    def of(cls, model: CalibrationModel, quotes: Quotes, optimum: Tensor, vol_std: Any, box: Any) -> _Law:
        if optimum.shape != (quotes.n_surfaces, len(model.parameters)):
            raise ConfigError(
                f"`optimum` must have shape {(quotes.n_surfaces, len(model.parameters))}, got {tuple(optimum.shape)}"
            )
        if vol_std is None:
            std = residual_std(model, quotes, optimum)
        else:
            std = torch.as_tensor(vol_std, dtype=torch.float64)
            std = std[:, None] if std.ndim == 1 else std
            std = std.expand(quotes.vol.shape) if std.ndim in (0, 2) else std
            usable = (std > 0) & std.isfinite()
            if std.shape != quotes.vol.shape or not bool((usable | ~quotes.used).all()):
                raise ConfigError(
                    "`vol_std` must be above 0, annual decimal: a number, one for each surface, or one for each quote "
                    f"of shape {tuple(quotes.vol.shape)}; got {vol_std!r}"
                )
        return cls(model, quotes, _Prior.of(model, box), std)

    def residuals(self, x: Tensor, surface: Tensor) -> tuple[Tensor, Tensor]:
        """Errors over their standard deviations (B, N), and derivatives (B, N, P); 0 where there is no quote."""
        quotes, std = self.quotes.at(surface), self.std[surface]
        vols, jacobian = self.model.vols_and_jacobian(x, quotes)
        used = quotes.used
        return torch.where(used, (vols - quotes.vol) / std, 0.0), torch.where(
            used[..., None], jacobian / std[..., None], 0.0
        )

    def __call__(self, z: Tensor, surface: Tensor) -> tuple[Tensor, Tensor]:
        x, slope, logarithm, bend = self.prior.inward(z)
        residuals, jacobian = self.residuals(x, surface)
        value = logarithm - 0.5 * residuals.square().sum(-1)
        return value, bend - slope * torch.einsum("bn,bnp->bp", residuals, jacobian)

    def covariance(self, z: Tensor) -> Tensor:
        """The inverse of the Gauss-Newton curvature of the density in the free coordinates, (S, P, P)."""
        x, slope, _, _ = self.prior.inward(z)
        _, jacobian = self.residuals(x, torch.arange(len(z)))
        jacobian = jacobian * slope[:, None]
        # minus the second derivative of the two logistic logarithms keeps it above 0 where quotes say nothing
        curvature = jacobian.mT @ jacobian + torch.diag_embed(2 * torch.sigmoid(z) * torch.sigmoid(-z))
        if not bool(curvature.isfinite().all()):
            place = int((~curvature.isfinite().all(-1).all(-1)).nonzero()[0, 0])
            raise DataError(f"the model has no vols at the optimum of surface {place}: calibrate it first")
        factor = torch.linalg.cholesky(curvature)
        return torch.cholesky_inverse(factor)


def _starts(
    law: _Law, centre: Tensor, covariance: Tensor, generators: Sequence[torch.Generator], n_chains: int
) -> Tensor:
    """Starts (S, C, P) spread around the optimum; one without vols is drawn again, half as far."""
    n_surfaces, size = centre.shape
    factor = OVERDISPERSION * torch.linalg.cholesky(covariance)[:, None]
    surface = torch.arange(n_surfaces).repeat_interleave(n_chains)
    spread, start = 1.0, centre[:, None].expand(-1, n_chains, -1).clone()
    missing = torch.ones(n_surfaces, n_chains, dtype=torch.bool)
    # all attempts at once: how many a surface needs must not move the streams of the others
    shape = (ATTEMPTS, n_chains, size)
    drawn = torch.stack([torch.randn(*shape, generator=g, dtype=torch.float64) for g in generators], dim=1)
    for normals in drawn:
        moved = centre[:, None] + spread * (factor @ normals[..., None])[..., 0]
        start = torch.where(missing[..., None], moved, start)
        value, slope = law(start.flatten(0, 1), surface)
        missing = ~(value.isfinite() & slope.isfinite().all(-1)).view(n_surfaces, n_chains)
        if not bool(missing.any()):
            return start
        spread *= 0.5
    return torch.where(missing[..., None], centre[:, None], start)


def _result(law: _Law, chains: Chains) -> Posterior:
    draws = law.prior.inward(chains.draws)[0]
    by_parameter = draws.permute(0, 3, 1, 2)
    r_hat, effective = split_r_hat(by_parameter), effective_sample_size(by_parameter)
    names = tuple(one.name for one in law.model.parameters)
    n_kept = draws.shape[1] * draws.shape[2]
    warnings = tuple(_warnings(names, *row, n_kept) for row in zip(r_hat, effective, chains.divergences.tolist()))
    return Posterior(names, draws, r_hat, effective, chains.accept, chains.divergences, law.std, warnings)


def _warnings(
    names: tuple[str, ...], r_hat: Tensor, effective: Tensor, divergences: int, n_kept: int
) -> tuple[str, ...]:
    found = []
    if not bool((r_hat < R_HAT).all()):
        worst = int(r_hat.nan_to_num(nan=math.inf).argmax())
        found.append(
            f"the chains have not met: R-hat of `{names[worst]}` is {float(r_hat[worst]):.3f}, above {R_HAT}; take "
            "more draws"
        )
    if not bool((effective >= DRAWS).all()):
        least = int(effective.nan_to_num(nan=0.0).argmin())
        found.append(
            f"the draws of `{names[least]}` are worth {float(effective[least]):.0f} independent ones, below {DRAWS}: "
            "the tails are not known; take more draws"
        )
    if divergences:
        found.append(
            f"{divergences} of {n_kept} trajectories lost their energy or met parameters without vols: the posterior "
            "may reach beyond what was drawn"
        )
    return tuple(found)
