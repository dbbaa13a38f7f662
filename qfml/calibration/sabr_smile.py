"""SABR for each expiry of a surface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pricers import SABR
from qfml.calibration.fit_options import FitOptions, SurfaceFitter, flag_option
from qfml.calibration.sabr import (
    level_at_the_money,
    level_slopes,
    sabr_density,
    sabr_vols,
    sabr_vols_and_jacobian,
)
from qfml.calibration.smile_fit import FittedSmiles, fit_smiles
from qfml.calibration.smile_result import SmileCalibration, calibrate_smiles
from qfml.calibration.smiles import Smiles, at_the_money_vol
from qfml.calibration.surface import Surface
from qfml.errors import ConfigError

__all__ = ["SabrSmile"]

LEVEL, NU = (1e-6, 20.0), (0.0, 100.0)
START_RHO = (-0.8, -0.4, 0.0, 0.4, 0.8)
START_NU = (0.1, 0.4, 1.0, 2.5)  # times the root of the expiry


@dataclass(frozen=True)
class SabrSmile(SurfaceFitter):
    """SABR by Hagan's lognormal volatility, a smile of its own at each expiry.

    The smile hardly tells beta from rho, so that beta is usually chosen. With `at_the_money` alpha is solved for such
    that the at-the-money volatility of the quotes (between quotes: linear in log-moneyness) is met exactly, and only
    rho and nu are fitted; standard errors then take that volatility as known.

    Args:
        beta: exponent of the forward, in [0, 1]; None: fitted too.
        at_the_money: whether alpha follows from the at-the-money volatility.

    Raises:
        ConfigError: a beta outside [0, 1], or none together with `at_the_money`.

    References:
        Hagan, Kumar, Lesniewski and Woodward (2002), Managing smile risk.

    >>> SabrSmile(beta=0.5).names
    ('alpha', 'beta', 'rho', 'nu')
    """

    kind: ClassVar[str] = "sabr"
    usual: ClassVar[Any] = FitOptions(n_starts=2, max_steps=100)
    most_starts: ClassVar[int] = len(START_RHO) * len(START_NU)
    beta: float | None = 1.0
    at_the_money: bool = False

    def __post_init__(self) -> None:
        beta: Any = self.beta
        number = isinstance(beta, int | float) and not isinstance(beta, bool)
        if beta is not None and not (number and 0.0 <= beta <= 1.0):
            raise ConfigError(
                f"`beta` of SABR must be a number in [0, 1], or None to fit it, got {beta!r}; rates often take 0.5, "
                "equities 1"
            )
        flag_option("at_the_money", self.at_the_money)
        if self.beta is None and self.at_the_money:
            raise ConfigError("`at_the_money` needs a `beta`: one smile does not tell beta from rho; write beta: 0.5")

    @property
    def names(self) -> tuple[str, ...]:
        """alpha, beta, rho and nu."""
        return ("alpha", "beta", "rho", "nu")

    @property
    def fitted(self) -> tuple[str, ...]:
        """What the numbers of the fit are called."""
        if self.at_the_money:
            return ("rho", "nu")
        return ("alpha", "rho", "nu") if self.beta is not None else ("alpha", "rho", "nu", "beta")

    def bounds(self, smiles: Smiles) -> tuple[Tensor, Tensor]:
        """As `SmileModel`."""
        pairs = {"alpha": LEVEL, "rho": (-1.0, 1.0), "nu": NU, "beta": (0.0, 1.0)}
        ends = torch.tensor([pairs[name] for name in self.fitted], dtype=torch.float64)
        return ends[:, 0].expand(len(smiles), -1), ends[:, 1].expand(len(smiles), -1)

    def ranges(self, smiles: Smiles) -> Tensor:
        """As `SmileModel`."""
        level = at_the_money_vol(smiles)
        one = torch.ones_like(level)
        every = {"alpha": level, "rho": one, "nu": one, "beta": one}
        return torch.stack([every[name] for name in self.fitted], dim=-1)

    def blurred_from(self, reported: Tensor, smiles: Smiles) -> Tensor:
        """Of alpha and nu their values, of beta and rho one half."""
        half = torch.full_like(reported, 0.5)
        return torch.where(torch.tensor([True, False, False, True]), reported, half)

    def starts(self, smiles: Smiles, n_starts: int) -> Tensor:
        """The best of a grid of rho and nu, with alpha from the at-the-money volatility."""
        vol, expiry = at_the_money_vol(smiles)[:, None], smiles.expiry[:, None]
        rho, nu = torch.cartesian_prod(
            torch.tensor(START_RHO, dtype=vol.dtype), torch.tensor(START_NU, dtype=vol.dtype)
        ).T
        rho, nu = rho.expand(len(smiles), -1), (nu / torch.sqrt(expiry)).clamp(max=0.5 * NU[1])
        beta = torch.full_like(expiry, 0.5 if self.beta is None else self.beta)
        level = level_at_the_money(vol, expiry, beta, rho, nu)
        possible = level.isfinite() & (level > LEVEL[0]) & (level < LEVEL[1])
        level = torch.where(possible, level, vol.clamp(*LEVEL))
        parts = (part.unsqueeze(-1) for part in (level, beta.expand_as(level), rho, nu))
        vols = sabr_vols(smiles.log_moneyness.unsqueeze(1), expiry.unsqueeze(-1), *parts)
        off = torch.where(smiles.weight.unsqueeze(1) > 0.0, vols - smiles.vol.unsqueeze(1), 0.0)
        cost = (smiles.weight.unsqueeze(1) * off**2).sum(-1)
        cost = torch.where(
            possible | torch.tensor(not self.at_the_money), torch.nan_to_num(cost, nan=torch.inf), torch.inf
        )
        best = cost.topk(min(n_starts, cost.shape[-1]), largest=False).indices
        every = {"alpha": level, "rho": rho, "nu": nu, "beta": beta.expand_as(level)}
        return torch.stack([every[name].gather(-1, best) for name in self.fitted], dim=-1)

    def fit(self, smiles: Smiles, options: FitOptions) -> FittedSmiles:
        """Least squares in the vols."""
        return fit_smiles(self, smiles, options)

    def calibrated(self, surfaces: tuple[Surface, ...], options: FitOptions) -> SmileCalibration:
        """Each expiry of each surface."""
        return calibrate_smiles(self, surfaces, options)

    def natural(self, x: Tensor, smiles: Smiles) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Level, beta, rho and nu, shape (n,) each."""
        if self.at_the_money:
            rho, nu = x.unbind(-1)
            beta = torch.full_like(rho, float(self.beta or 0.0))
            return level_at_the_money(at_the_money_vol(smiles), smiles.expiry, beta, rho, nu), beta, rho, nu
        level, rho, nu = x[..., :3].unbind(-1)
        return level, x[..., 3] if self.beta is None else torch.full_like(level, self.beta), rho, nu

    def vols_and_jacobian(self, x: Tensor, smiles: Smiles) -> tuple[Tensor, Tensor]:
        """As `SmileModel`."""
        parts = self.natural(x, smiles)
        columns = [part.unsqueeze(-1) for part in parts]
        vols, jacobian = sabr_vols_and_jacobian(smiles.log_moneyness, smiles.expiry.unsqueeze(-1), *columns)
        if not self.at_the_money:
            return vols, jacobian[..., : x.shape[-1]]
        slopes = torch.stack(level_slopes(parts[0], smiles.expiry, *parts[1:]), dim=-1)
        return vols, jacobian[..., 1:3] + jacobian[..., :1] * slopes.unsqueeze(-2)

    def reported(self, x: Tensor, smiles: Smiles) -> tuple[Tensor, Tensor]:
        """alpha = level times forward^(1-beta); the other three as they are."""
        level, beta, rho, nu = self.natural(x, smiles)
        unit = smiles.forward ** (1.0 - beta)
        rows = torch.zeros(len(smiles), 4, x.shape[-1], dtype=x.dtype)
        at = {name: place for place, name in enumerate(self.fitted)}
        if "alpha" in at:
            rows[:, 0, at["alpha"]] = unit
        else:
            rows[:, 0, :] = unit.unsqueeze(-1) * torch.stack(level_slopes(level, smiles.expiry, beta, rho, nu), dim=-1)
        if "beta" in at:
            rows[:, 0, at["beta"]] = -level * unit * torch.log(smiles.forward)
            rows[:, 1, at["beta"]] = 1.0
        rows[:, 2, at["rho"]] = 1.0
        rows[:, 3, at["nu"]] = 1.0
        return torch.stack([level * unit, beta, rho, nu], dim=-1), rows

    def pricer(self, params: dict[str, np.ndarray]) -> SABR:
        """The model in `pricers`."""
        return SABR(**{name: torch.from_numpy(params[name]) for name in self.names})

    def density(self, log_moneyness: Tensor, x: Tensor, smiles: Smiles) -> Tensor:
        """Durrleman's g on an even grid of log-moneyness, shape (n, m)."""
        columns = [part.unsqueeze(-1) for part in self.natural(x, smiles)]
        return sabr_density(log_moneyness, smiles.expiry.unsqueeze(-1), *columns)

    def curve(self, log_moneyness: Tensor, x: Tensor, smiles: Smiles) -> Tensor:
        """Vols of the fits at other log-moneyness (n, m)."""
        columns = [part.unsqueeze(-1) for part in self.natural(x, smiles)]
        return sabr_vols(log_moneyness, smiles.expiry.unsqueeze(-1), *columns)

    def vols(self, log_moneyness: Tensor, expiry: Tensor, forward: Tensor, reported: Tensor) -> Tensor:
        """Vols at other log-moneyness (n, m) of expiries and forwards (n,), from reported parameters (n, 4).

        NaN where the expansion gives no positive number.
        """
        alpha, beta, rho, nu = (part.unsqueeze(-1) for part in reported.unbind(-1))
        level = alpha * forward.unsqueeze(-1) ** (beta - 1.0)
        vols = sabr_vols(log_moneyness, expiry.unsqueeze(-1), level, beta, rho, nu)
        return torch.where(vols > 0.0, vols, torch.nan)
