"""SSVI: one surface of total variance for all expiries, free of calendar and butterfly arbitrage by its parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from qfml.calibration.fit_options import FitOptions, SurfaceFitter
from qfml.calibration.least_squares import CONVERGED, STATUS, least_squares
from qfml.calibration.model import Quotes
from qfml.calibration.smile_fit import FittedSmiles, chosen
from qfml.calibration.smile_result import NO_QUOTES, inside_share, many_fits
from qfml.calibration.smile_uncertainty import SmileUncertainty, smile_uncertainty
from qfml.calibration.smiles import Smiles, at_the_money_vol, smiles_of
from qfml.calibration.surface import Surface, as_quotes
from qfml.errors import DataError

__all__ = ["SsviCalibration", "SsviSurface", "largest_eta", "ssvi_total_variance"]

SHAPE = ("rho", "eta", "gamma")
START_RHO, START_SHARE, START_GAMMA = (-0.8, -0.4, 0.0, 0.4, 0.8), (0.15, 0.4, 0.8), (0.15, 0.4)
LEAST_RISE = 1e-3  # of the at-the-money variance between the expiries of a start
AT_BOUND = 1e-4


def largest_eta(rho: Tensor) -> Tensor:
    r"""$2 / \sqrt{1 + |\rho|}$: up to it, with gamma in (0, 1/2], no smile has butterfly arbitrage.

    With $\varphi = \eta\,\theta^{-\gamma}(1+\theta)^{\gamma-1}$ both $\theta\varphi(1+|\rho|) < 4$ and
    $\theta\varphi^2(1+|\rho|) \le 4$ (Gatheral and Jacquier, 2014, theorem 4.2) then hold for every $\theta$: the
    second because $\theta^{1-2\gamma}(1+\theta)^{2\gamma-2} \le 1$, the first because $\theta\varphi \le \eta$.
    """
    return 2.0 / torch.sqrt(1.0 + rho.abs())


def ssvi_total_variance(log_moneyness: Tensor, theta: Tensor, rho: Tensor, eta: Tensor, gamma: Tensor) -> Tensor:
    r"""$w = \frac\theta2\left(1 + \rho\varphi k + \sqrt{(\varphi k + \rho)^2 + 1 - \rho^2}\right)$ with
    $\varphi = \eta\,\theta^{-\gamma}(1+\theta)^{\gamma-1}$.

    Args:
        log_moneyness: log(strike / forward); all arguments broadcast.
        theta: total variance at the money, above 0. It must rise with the expiry.
        rho: correlation of the wings, in (-1, 1).
        eta: in (0, `largest_eta(rho)`].
        gamma: in (0, 1/2].

    Returns:
        Total variance: squared vol times expiry.

    References:
        Gatheral and Jacquier (2014), Arbitrage-free SVI volatility surfaces, eq. 4.1, example 4.2 and section 4.3.

    >>> number = lambda x: torch.tensor(x, dtype=torch.float64)
    >>> ssvi_total_variance(*map(number, ([-0.2, 0.0, 0.2], 0.04, -0.5, 1.2, 0.4)))
    tensor([0.0606, 0.0400, 0.0302], dtype=torch.float64)
    """
    x = eta * torch.exp(-gamma * torch.log(theta) + (gamma - 1.0) * torch.log1p(theta)) * log_moneyness
    return 0.5 * theta * (1.0 + rho * x + torch.sqrt((x + rho) ** 2 + (1.0 - rho) * (1.0 + rho)))


def _variance_and_slopes(k: Tensor, theta: Tensor, rho: Tensor, share: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Total variance, and its derivatives in rho, the share of the largest eta, gamma, and theta."""
    eta = share * largest_eta(rho)
    log_theta, log_more = torch.log(theta), torch.log1p(theta)
    x = eta * torch.exp(-gamma * log_theta + (gamma - 1.0) * log_more) * k
    root = torch.sqrt((x + rho) ** 2 + (1.0 - rho) * (1.0 + rho))
    variance = 0.5 * theta * (1.0 + rho * x + root)
    by_log_phi = 0.5 * theta * (rho + (x + rho) / root) * x
    by_rho = 0.5 * theta * (x + x / root) - by_log_phi * 0.5 * torch.sign(rho) / (1.0 + rho.abs())
    by_theta = variance / theta + by_log_phi * (-gamma / theta + (gamma - 1.0) / (1.0 + theta))
    return variance, torch.stack([by_rho, by_log_phi / share, by_log_phi * (log_more - log_theta), by_theta], dim=-1)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Surfaces as problems: quotes (S, N), the number of the expiry of each, and which of E expiries there are."""

    smiles: Smiles
    years: Tensor  # of each quote
    slot: Tensor
    exists: Tensor  # (S, E)

    def at(self, index: Tensor) -> _Rows:
        return _Rows(self.smiles.at(index), self.years[index], self.slot[index], self.exists[index])


def _rows(quotes: Quotes, smiles: Smiles) -> _Rows:
    n_surfaces, n_expiries = smiles.shape
    slot = torch.zeros(quotes.vol.shape, dtype=torch.int64)
    quoted = smiles.place >= 0
    rows = smiles.surface.unsqueeze(-1).expand_as(quoted)[quoted]
    slot[rows, smiles.place[quoted]] = smiles.slot.unsqueeze(-1).expand_as(quoted)[quoted]
    exists = torch.zeros(n_surfaces, n_expiries, dtype=torch.bool)
    exists[smiles.surface, smiles.slot] = True
    number = torch.arange(n_surfaces)
    every = Smiles(
        log_moneyness=torch.where(quotes.used, quotes.log_moneyness, 0.0),
        vol=torch.where(quotes.used, quotes.vol, 0.0),
        weight=quotes.weight,
        expiry=torch.zeros(n_surfaces, dtype=torch.float64),
        forward=torch.zeros(n_surfaces, dtype=torch.float64),
        surface=number,
        slot=0 * number,
        place=torch.arange(quotes.vol.shape[1]).expand(quotes.vol.shape),
        shape=(n_surfaces, 1),
    )
    return _Rows(every, torch.where(quotes.used, quotes.expiry, 1.0), slot, exists)


@dataclass(frozen=True)
class SsviSurface(SurfaceFitter):
    r"""SSVI with the power law $\varphi = \eta\,\theta^{-\gamma}(1+\theta)^{\gamma-1}$: a whole surface at once.

    Its parameters are rho, eta, gamma and the total variance at the money of each expiry, $\theta_1 < \theta_2 < \dots$
    They are fitted under rising $\theta$, eta below `largest_eta` and gamma below 1/2, which exclude calendar and
    butterfly arbitrage at every strike (Gatheral and Jacquier, 2014, theorems 4.1 and 4.2). Between expiries $\theta$
    is linear in time, which keeps that.

    References:
        Gatheral and Jacquier (2014), Arbitrage-free SVI volatility surfaces, section 4.

    >>> result = SsviSurface().fit_surfaces([Surface.dax_2002()])
    >>> result.converged, bool((result.theta[1:] > result.theta[:-1]).all())
    (np.True_, True)
    """

    kind: ClassVar[str] = "ssvi"
    usual: ClassVar[Any] = FitOptions(n_starts=2, max_steps=200)
    most_starts: ClassVar[int] = len(START_RHO) * len(START_SHARE) * len(START_GAMMA)

    def calibrated(self, surfaces: tuple[Surface, ...], options: FitOptions) -> SsviCalibration:
        """Each surface; one of many without a quote has a status, and NaN for its numbers."""
        quotes = as_quotes(list(surfaces))
        some = quotes.used.any(-1)
        if not bool(some.any()):
            raise DataError("no quote of the surfaces has a weight above 0; give at least one of them one")
        quoted = tuple(surface for surface, known in zip(surfaces, some.tolist(), strict=True) if known)
        quotes = quotes.at(some.nonzero().squeeze(-1))
        smiles = smiles_of(quotes)
        rows = _rows(quotes, smiles)
        fit = _fit(rows, _starts(rows, smiles, options.n_starts), options)
        return _among(_result(self, rows, smiles, fit, quoted), surfaces, some.numpy())


def _vols_and_jacobian(x: Tensor, rows: _Rows) -> tuple[Tensor, Tensor]:
    """Vols (S, N) and their derivatives in rho, share, gamma and the rises of theta, (S, N, 3 + E)."""
    rho, share, gamma = (part.unsqueeze(-1) for part in x[:, :3].unbind(-1))
    theta = x[:, 3:].cumsum(-1).gather(-1, rows.slot)
    variance, slopes = _variance_and_slopes(rows.smiles.log_moneyness, theta, rho, share, gamma)
    counted = torch.arange(x.shape[1] - 3) <= rows.slot.unsqueeze(-1)
    vols = torch.sqrt(variance / rows.years)
    jacobian = torch.cat([slopes[..., :3], slopes[..., 3:] * counted], dim=-1)
    return vols, jacobian / (2.0 * vols * rows.years).unsqueeze(-1)


def _starts(rows: _Rows, smiles: Smiles, n_starts: int) -> Tensor:
    """The best of a grid of rho, eta and gamma, with theta from the at-the-money vols, made to rise."""
    variance = torch.ones(smiles.shape, dtype=torch.float64)
    variance[smiles.surface, smiles.slot] = at_the_money_vol(smiles) ** 2 * smiles.expiry
    rises = [variance[:, 0]]
    reached = variance[:, 0]
    for column in range(1, smiles.shape[1]):
        rise = torch.maximum(variance[:, column] - reached, LEAST_RISE * reached)
        reached = reached + rise
        rises.append(rise)
    shapes = torch.cartesian_prod(
        *(torch.tensor(part, dtype=torch.float64) for part in (START_RHO, START_SHARE, START_GAMMA))
    )
    every = torch.stack(rises, dim=-1).unsqueeze(1).expand(-1, len(shapes), -1)
    every = torch.cat([shapes.expand(len(variance), -1, -1), every], dim=-1)
    costs: list[Tensor] = []
    for start in every.unbind(1):
        vols, _ = _vols_and_jacobian(start, rows)
        costs.append(
            (rows.smiles.weight * torch.where(rows.smiles.weight > 0.0, vols - rows.smiles.vol, 0.0) ** 2).sum(-1)
        )
    best = torch.stack(costs, dim=-1).topk(min(n_starts, len(shapes)), largest=False).indices
    return every.gather(1, best.unsqueeze(-1).expand(-1, -1, every.shape[-1]))


def _fit(rows: _Rows, starts: Tensor, options: FitOptions) -> FittedSmiles:
    n, n_starts, n_numbers = starts.shape
    missing = (~rows.exists).double()
    lower = torch.cat([torch.tensor([-1.0, 0.0, 0.0]), torch.zeros(n_numbers - 3)])
    upper = torch.cat([torch.tensor([1.0, 1.0, 0.5]), torch.full((n_numbers - 3,), torch.inf)])
    first = starts[:, 0, 3:]

    def function(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        number = index // n_starts
        part = rows.at(number)
        root = torch.sqrt(part.smiles.weight)
        vols, jacobian = _vols_and_jacobian(x, part)
        residuals = torch.where(root > 0.0, root * (vols - part.smiles.vol), 0.0)
        # an expiry that a surface lacks: its rise stays where it is
        held = missing[number]
        return (
            torch.cat([residuals, held * torch.log(x[:, 3:] / first[number])], dim=-1),
            torch.cat([root.unsqueeze(-1) * jacobian, _padded(held / x[:, 3:])], dim=-2),
        )

    how = {"max_steps": options.max_steps, "tolerance": options.tolerance}
    solution = least_squares(function, starts.flatten(0, 1), lower=lower, upper=upper, **how)
    best = solution.cost.reshape(n, n_starts).argmin(-1) + n_starts * torch.arange(n)
    return chosen(solution, best, rows.smiles)


def _padded(diagonal: Tensor) -> Tensor:
    """Rows of a Jacobian in which only the rises of theta count."""
    return torch.nn.functional.pad(torch.diag_embed(diagonal), (3, 0))


@dataclass(frozen=True, eq=False, repr=False)
class SsviCalibration:
    """SSVI of S surfaces. For one surface the axis S is left out everywhere.

    Args:
        model: what was fitted.
        expiries: years, NaN where a surface has fewer than E, shape (S, E).
        params: rho, eta and gamma, shape (S,) each, and theta, the total variance at the money, shape (S, E), NaN
            beyond the last expiry.
        std_error: likewise; infinite where the quotes do not determine a parameter, NaN at a bound and where they leave
            no degree of freedom.
        identified: likewise; False where the quotes do not determine a parameter, or hardly.
        at_bound: likewise; True at a bound, of theta where it is held at that of the expiry before.
        correlation: of rho, eta and gamma, shape (S, 3, 3); NaN where it is not known.
        rmse_bps: of a surface, basis points of vol, shape (S,).
        max_bps: shape (S,).
        rmse_bps_by_expiry: shape (S, E).
        sse: sum of squared errors, vol points squared, shape (S,).
        residuals: vol of the model less that of each quote, NaN where there is none, shape (S, N).
        inside_bid_ask: share of the quotes whose model vol lies between bid and ask, NaN without, shape (S,).
        converged: shape (S,).
        status: a sentence for each surface.
        n_steps: shape (S,).
        warnings: by surface.
        surfaces: what was calibrated to.
    """

    model: Any
    expiries: np.ndarray
    params: dict[str, Any]
    std_error: dict[str, Any]
    identified: dict[str, Any]
    at_bound: dict[str, Any]
    correlation: np.ndarray
    rmse_bps: Any
    max_bps: Any
    rmse_bps_by_expiry: np.ndarray
    sse: Any
    residuals: np.ndarray
    inside_bid_ask: Any
    converged: Any
    status: Any
    n_steps: Any
    warnings: tuple[Any, ...]
    surfaces: tuple[Surface, ...]
    method: str = "exact"

    @property
    def theta(self) -> np.ndarray:
        """Total variance at the money, shape (S, E)."""
        return self.params["theta"]

    def smile(self, log_moneyness: Any, expiry: float, surface: int = 0) -> np.ndarray:
        """Vols of one surface at any strikes and an expiry up to its last; theta is linear in time, from 0 at time 0.

        Args:
            log_moneyness: log(strike / forward), any shape.
            expiry: years, above 0 and up to the last one.
            surface: which one.

        Returns:
            Vols of the shape of `log_moneyness`; NaN where the surface has no fit.

        Raises:
            DataError: an expiry outside.
        """
        one = self.expiries.ndim == 1
        expiries = self.expiries if one else self.expiries[surface]
        theta = self.theta if one else self.theta[surface]
        known = np.isfinite(expiries)
        if not known.any():
            return np.full(np.shape(log_moneyness), np.nan)
        if not 0.0 < expiry <= expiries[known][-1]:
            raise DataError(
                f"`expiry` must lie in (0, {expiries[known][-1]:g}], where there are quotes, got {expiry:g}"
            )
        level = np.interp(expiry, [0.0, *expiries[known]], [0.0, *theta[known]])
        numbers = [float(self.params[name] if one else self.params[name][surface]) for name in SHAPE]
        places = torch.as_tensor(log_moneyness, dtype=torch.float64)
        variance = ssvi_total_variance(
            places, *(torch.tensor(number, dtype=torch.float64) for number in (level, *numbers))
        )
        return torch.sqrt(variance / expiry).numpy()

    def __str__(self) -> str:
        """The parameters of one surface; for a history what its fits have in common."""
        if self.expiries.ndim == 1:
            numbers = ", ".join(f"{name} {self.params[name]:.6g} +- {self.std_error[name]:.2g}" for name in SHAPE)
            lines = [f"ssvi: {self.surfaces[0].name or 'one surface'}", numbers, f"{self.status}"]
            lines.append(f"rmse {self.rmse_bps:.2f} bps of vol, largest {self.max_bps:.2f}")
            lines.append(f"{'expiry':>8}{'theta':>22}{'rmse bps':>10}")
            for row, expiry in enumerate(self.expiries):
                cell = f"{self.theta[row]:.6g} +- {self.std_error['theta'][row]:.2g}"
                lines.append(f"{expiry:>8.4f}{cell:>22}{self.rmse_bps_by_expiry[row]:>10.2f}")
            return "\n".join([*lines, *(f"! {warning}" for warning in self.warnings)])
        return many_fits("ssvi", f"{len(self.surfaces)} surfaces", self.converged, self.rmse_bps, self.warnings)

    __repr__ = __str__


def _result(
    model: SsviSurface, rows: _Rows, smiles: Smiles, fit: FittedSmiles, surfaces: tuple[Surface, ...]
) -> SsviCalibration:
    rho, share, gamma = fit.x[:, :3].unbind(-1)
    eta = share * largest_eta(rho)
    theta = torch.where(rows.exists, fit.x[:, 3:].cumsum(-1), torch.nan)
    slopes = torch.zeros(len(rho), fit.x.shape[1], fit.x.shape[1], dtype=torch.float64)
    slopes[:, 0, 0], slopes[:, 2, 2] = 1.0, 1.0
    slopes[:, 1, 0] = -0.5 * eta * torch.sign(rho) / (1.0 + rho.abs())
    slopes[:, 1, 1] = largest_eta(rho)
    slopes[:, 3:, 3:] = torch.ones(theta.shape[1], theta.shape[1], dtype=torch.float64).tril()
    ends, flat = _at_bounds(fit, rows)
    at_end = torch.stack(list(ends.values()), dim=-1).unflatten(-1, (3, 2)).any(-1)
    one, level = torch.ones_like(rho), fit.x[:, 3:].cumsum(-1)
    known = smile_uncertainty(
        fit,
        slopes,
        rows.smiles,
        ranges=torch.cat([torch.stack([one, one, 0.5 * one], dim=-1), level], dim=-1),
        held=torch.cat([at_end, flat | ~rows.exists], dim=-1),
        # half of the ranges of rho, eta and gamma; theta itself
        blurred_from=torch.cat([torch.stack([0.5 * one, 0.5 * largest_eta(rho), 0.25 * one], dim=-1), level], dim=-1),
        n_fitted=3 + rows.exists.sum(-1),
    )
    error = known.std_error
    quoted = rows.smiles.weight > 0.0
    residuals = torch.where(quoted, fit.errors, torch.nan).numpy()
    squares = torch.zeros(smiles.shape, dtype=torch.float64).scatter_add(1, rows.slot, fit.errors**2)
    counts = torch.zeros(smiles.shape, dtype=torch.float64).scatter_add(1, rows.slot, quoted.double())
    return SsviCalibration(
        model=model,
        expiries=smiles.table(smiles.expiry),
        params=_blank(dict(zip((*SHAPE, "theta"), (rho, eta, gamma, theta), strict=True)), fit.found),
        std_error={name: error[:, column].numpy() for column, name in enumerate(SHAPE)}
        | {"theta": torch.where(rows.exists, error[:, 3:], torch.nan).numpy()},
        identified={name: known.identified[:, column].numpy() for column, name in enumerate(SHAPE)}
        | {"theta": (known.identified[:, 3:] | ~rows.exists).numpy()},
        at_bound={name: at_end[:, column].numpy() for column, name in enumerate(SHAPE)} | {"theta": flat.numpy()},
        correlation=known.correlation[:, :3, :3].numpy(),
        rmse_bps=1e4 * torch.sqrt(squares.sum(-1) / counts.sum(-1)).numpy(),
        max_bps=1e4 * fit.errors.abs().amax(-1).numpy(),
        rmse_bps_by_expiry=1e4 * torch.sqrt(squares / counts).numpy(),
        sse=1e4 * squares.sum(-1).numpy(),
        residuals=residuals,
        inside_bid_ask=inside_share(surfaces, residuals),
        converged=torch.isin(fit.status, torch.tensor(CONVERGED)).numpy(),
        status=tuple(STATUS[int(code)] for code in fit.status.tolist()),
        n_steps=fit.n_steps.numpy(),
        warnings=_warnings(fit, rows, known, ends, flat, smiles.table(smiles.expiry)),
        surfaces=surfaces,
    )


def _blank(values: dict[str, Tensor], found: Tensor) -> dict[str, np.ndarray]:
    """NaN in the rows of surfaces without a fit."""
    return {
        name: torch.where(found.reshape(-1, *[1] * (value.ndim - 1)), value, torch.nan).numpy()
        for name, value in values.items()
    }


def _among(result: SsviCalibration, surfaces: tuple[Surface, ...], some: np.ndarray) -> SsviCalibration:
    """The result of those surfaces that have quotes, in its place among all of them: the others have NaN, or 0.

    Of what they do not have nothing is said to be not identified, or at a bound.
    """
    if some.all():
        return result

    def spread(values: np.ndarray, filler: Any = 0) -> np.ndarray:
        filler = np.nan if values.dtype.kind == "f" else filler
        out = np.full((len(some), *values.shape[1:]), filler, dtype=values.dtype)
        out[some] = values
        return out

    arrays = {name: spread(value) for name, value in vars(result).items() if isinstance(value, np.ndarray)}
    fillers = {"params": 0, "std_error": 0, "identified": True, "at_bound": False}
    tables = {name: {k: spread(v, filler=fillers[name]) for k, v in getattr(result, name).items()} for name in fillers}
    status, warnings = iter(result.status), iter(result.warnings)
    return replace(
        result,
        **arrays,
        **tables,
        status=tuple(next(status) if known else NO_QUOTES for known in some),
        warnings=tuple(next(warnings) if known else () for known in some),
        surfaces=surfaces,
    )


def _at_bounds(fit: FittedSmiles, rows: _Rows) -> tuple[dict[str, Tensor], Tensor]:
    """Which surfaces are at an end of rho, share or gamma, (S,) each, by what is said of it, two ends of each number.

    And which theta do not rise, (S, E).
    """
    rho, share, gamma = fit.x[:, :3].unbind(-1)
    ends = {
        "rho at its lower bound": rho < AT_BOUND - 1.0,
        "rho at its upper bound": rho > 1.0 - AT_BOUND,
        "eta at 0": share < AT_BOUND,
        "eta at the bound of butterfly arbitrage": share > 1.0 - AT_BOUND,
        "gamma at 0": gamma < AT_BOUND,
        "gamma at 1/2, the bound of butterfly arbitrage": gamma > 0.5 - AT_BOUND,
    }
    rises = fit.x[:, 3:] / torch.where(rows.exists, fit.x[:, 3:].cumsum(-1), torch.inf)
    return {name: end & fit.found for name, end in ends.items()}, rows.exists & (rises < AT_BOUND) & fit.found[:, None]


def _warnings(
    fit: FittedSmiles, rows: _Rows, known: SmileUncertainty, ends: dict[str, Tensor], flat: Tensor, expiries: np.ndarray
) -> tuple[tuple[str, ...], ...]:
    """What the user must know about each surface."""
    every: list[tuple[str, ...]] = []
    for row, n_quotes in enumerate(rows.smiles.n_quotes.tolist()):
        lines: list[str] = []
        unseen = ~known.identified[row]
        names = [name for name, flag in zip(SHAPE, unseen[:3].tolist(), strict=True) if flag]
        late = [f"theta at expiry {years:.4g}" for years in expiries[row][(unseen[3:] & rows.exists[row]).numpy()]]
        if bool(known.few[row]):
            lines.append(f"not identified: {n_quotes} quotes for {3 + int(rows.exists[row].sum())} parameters")
        elif names or late:
            lines.append(f"not identified by the quotes: {', '.join([*names, *late])}")
        elif n_quotes == int(known.n_free[row]):
            lines.append(f"no standard errors: {n_quotes} quotes for {n_quotes} parameters")
        lines += [name for name, reached in ends.items() if bool(reached[row])]
        if bool(flat[row].any()):
            held = ", ".join(f"{years:.4g}" for years in expiries[row][flat[row].numpy()])
            lines.append(f"theta is held at that before it where the quotes fall (calendar arbitrage): expiry {held}")
        every.append(tuple(lines))
    return tuple(every)
