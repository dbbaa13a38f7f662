"""A history of option quotes that Heston's model makes: for examples, and for tests that know the truth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from pricers.normal import normal_cdf
from qfml.calibration.heston import HestonCalibration
from qfml.calibration.history import SurfaceHistory
from qfml.calibration.inverse import Box
from qfml.calibration.model import Quotes
from qfml.calibration.surface import Surface
from qfml.engine.streams import stream
from qfml.errors import ConfigError

__all__ = ["SyntheticHeston"]

DAYS_A_YEAR = 365.0
RANGES = {"v0": (0.01, 0.16), "kappa": (1.0, 8.0), "theta": (0.02, 0.12), "sigma": (0.2, 1.5), "rho": (-0.9, -0.2)}
DELTAS = (0.05, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.95)
EXPIRIES = (1 / 12, 0.25, 0.5, 1.0, 2.0)
_NODES = 401  # at which deltas are looked for, within `_FARTHEST` standard deviations
_FARTHEST = 4.0


@dataclass(frozen=True)
class SyntheticHeston:
    """Daily surfaces under Heston's model whose parameters move: mean-reverting paths inside a box.

    In the normal quantiles of their place in the box, the parameters follow independent Ornstein-Uhlenbeck processes
    with stationary standard deviation `spread`. They move more slowly than a market's variance does, and are no
    model of one: what matters is that the truth of each day is known.

    Args:
        n_days: calendar days, one surface each.
        seed: of all that is drawn; days do not depend on how many come after them.
        ranges: of the parameters, by name; those left out keep the usual ones.
        reversion: speed of the parameters, per year.
        spread: how far they stray, in normal quantiles of the box: 1 fills it evenly.
        expiries: years, the same every day.
        deltas: call deltas on the forward, N(d1), of the strikes.
        vol_noise_bps: standard deviation of the error of the mid vols, basis points of vol.
        half_spread_bps: half of ask less bid, basis points of vol.
        spot: on the first day; it follows the variance of each day.
        rate: continuous, per year.
        dividend_yield: continuous, per year.
        first_date: ISO 8601.

    Example:
        >>> market = SyntheticHeston(n_days=3, seed=1, expiries=(0.25, 1.0), deltas=(0.25, 0.5, 0.75))
        >>> history = market.history()
        >>> len(history), len(history[0]), sorted(market.parameters)
        (3, 6, ['kappa', 'rho', 'sigma', 'theta', 'v0'])
    """

    n_days: int
    seed: int
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    reversion: float = 6.0
    spread: float = 0.6
    expiries: tuple[float, ...] = EXPIRIES
    deltas: tuple[float, ...] = DELTAS
    vol_noise_bps: float = 0.0
    half_spread_bps: float = 25.0
    spot: float = 100.0
    rate: float = 0.02
    dividend_yield: float = 0.01
    first_date: str = "2024-01-01"

    def __post_init__(self) -> None:
        if isinstance(self.n_days, bool) or not isinstance(self.n_days, int) or self.n_days < 1:
            raise ConfigError(f"`n_days` must be a whole number, at least 1, got {self.n_days!r}")
        for name in ("reversion", "half_spread_bps", "spot"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"`{name}` must be above 0, got {getattr(self, name)}")
        for name in ("spread", "vol_noise_bps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"`{name}` must be 0 or more, got {getattr(self, name)}")
        if not self.deltas or not all(0 < delta < 1 for delta in self.deltas):
            raise ConfigError(f"`deltas` must lie in (0, 1), got {self.deltas}")
        if not self.expiries or not all(0 < expiry < math.inf for expiry in self.expiries):
            raise ConfigError(f"`expiries` must be above 0, in years, got {self.expiries}")
        self.box  # noqa: B018  (its ranges are checked)

    @property
    def box(self) -> Box:
        """Ranges of the parameters."""
        return Box.of(HestonCalibration(), RANGES | dict(self.ranges))

    @property
    def parameters(self) -> dict[str, Float64[Tensor, " days"]]:
        """The true parameters of each day."""
        return dict(zip(self.box.names, self.x.unbind(-1), strict=True))

    @cached_property
    def x(self) -> Float64[Tensor, "days P"]:
        """The true parameters as rows."""
        box = self.box
        kept = math.exp(-self.reversion / DAYS_A_YEAR)
        shocks = torch.stack([self._normals("parameters", day, len(box.names)) for day in range(self.n_days)])
        z = [self.spread * shocks[0]]
        for shock in shocks[1:]:
            z.append(kept * z[-1] + self.spread * math.sqrt(1 - kept * kept) * shock)
        return box.inside(torch.stack(z))

    @cached_property
    def spots(self) -> Float64[Tensor, " days"]:
        """Spot of each day."""
        step = 1 / DAYS_A_YEAR
        shocks = torch.cat([self._normals("spot", day, 1) for day in range(self.n_days)])
        v0 = self.parameters["v0"]
        moves = (self.rate - self.dividend_yield - 0.5 * v0) * step + (v0 * step).sqrt() * shocks
        moves = torch.cat([moves.new_zeros(1), moves[:-1]])
        return self.spot * moves.cumsum(0).exp()

    def history(self) -> SurfaceHistory:
        """The surfaces: mid vols with noise, bid and ask around them."""
        places, vols = self._smiles()
        expiry = np.repeat(self.expiries, len(self.deltas))
        forward = self.spots[:, None] * torch.tensor(
            np.exp((self.rate - self.dividend_yield) * expiry), dtype=torch.float64
        )
        first = np.datetime64(self.first_date)
        surfaces = []
        for day in range(self.n_days):
            noise = 1e-4 * self.vol_noise_bps * self._normals("noise", day, len(expiry))
            mid = vols[day] + noise
            half = torch.minimum(torch.tensor(1e-4 * self.half_spread_bps), 0.5 * mid)  # a bid stays above 0
            surfaces.append(
                Surface(
                    strike=(forward[day] * places[day].exp()).numpy(),
                    expiry=expiry,
                    vol=mid.numpy(),
                    forward=forward[day].numpy(),
                    bid=(mid - half).numpy(),
                    ask=(mid + half).numpy(),
                    discount=np.exp(-self.rate * expiry),
                    spot=float(self.spots[day]),
                    date=first + np.timedelta64(day, "D"),
                    name="synthetic Heston",
                    vol_unit="decimal",
                    strike_unit="price",
                )
            )
        return SurfaceHistory(surfaces)

    def _smiles(self) -> tuple[Tensor, Tensor]:
        """Log-moneynesses and true vols of the quotes, (days, expiries x deltas)."""
        model, x = HestonCalibration(), self.x
        expiry = torch.tensor(self.expiries, dtype=torch.float64).expand(self.n_days, -1)
        at_the_money = _vols(model, x, torch.zeros_like(expiry), expiry)
        steps = torch.linspace(-_FARTHEST, _FARTHEST, _NODES, dtype=torch.float64)
        nodes = steps * (at_the_money * expiry.sqrt())[..., None]
        times = expiry[..., None].expand_as(nodes)
        vols = _vols(model, x, nodes.flatten(1), times.flatten(1)).view(nodes.shape)
        deviation = vols * times.sqrt()
        delta = normal_cdf(0.5 * deviation - nodes / deviation)
        places = torch.empty(self.n_days, len(self.expiries), len(self.deltas), dtype=torch.float64)
        for day in range(self.n_days):
            for e in range(len(self.expiries)):
                known = delta[day, e].isfinite()
                own, at = delta[day, e][known].flip(0).numpy(), nodes[day, e][known].flip(0).numpy()
                if not own[0] <= min(self.deltas) <= max(self.deltas) <= own[-1]:
                    raise ConfigError(
                        f"day {day} has deltas {own[0]:.3f} to {own[-1]:.3f} at the expiry {self.expiries[e]:g} within "
                        f"{_FARTHEST:g} standard deviations: take `deltas` between them, or calmer `ranges`"
                    )
                places[day, e] = torch.from_numpy(np.interp(self.deltas, own, at))
        places = places.flatten(1)
        times = expiry.repeat_interleave(len(self.deltas), dim=1)
        return places, _vols(model, x, places, times)

    def _normals(self, what: str, day: int, n: int) -> Tensor:
        return torch.randn(n, generator=stream(self.seed, "synthetic", what, day), dtype=torch.float64)


def _vols(model: Any, x: Tensor, log_moneyness: Tensor, expiry: Tensor) -> Tensor:
    return model.vols(x, Quotes.bare(log_moneyness, expiry))
