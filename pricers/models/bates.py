"""Lognormal jumps on a constant volatility (Merton) and on Heston's (Bates)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from pricers.characteristic import (
    heston_cumulants,
    heston_log_characteristic,
    heston_log_moment,
    jump_cumulants,
    jump_log_characteristic,
    jump_log_moment,
    mean_variance,
    normal_log_characteristic,
)
from pricers.models.base import AnyScheme, Model
from pricers.models.black_scholes import ExactLognormal
from pricers.models.heston_schemes import HESTON_SCHEMES
from pricers.models.jumps import WithJumps
from pricers.parameters import broadcast_shape, volatility, within

__all__ = ["Bates", "Merton"]


@dataclass(frozen=True, eq=False, init=False)
class Merton(Model):
    r"""Merton: $dS = (r - q - \lambda \bar k) S\,dt + \mathrm{vol}\,S\,dW + (J - 1) S\,dN$ with lognormal jumps $J$.

    $\log J$ is normal with mean `jump_mean` and standard deviation `jump_std`, $N$ counts `intensity` jumps a year,
    $\bar k = E J - 1$.

    Args:
        vol: annual volatility between jumps, in (0, 10]; shape `*batch`, as all of them.
        intensity: jumps a year, 0 or more.
        jump_mean: mean of the log jump.
        jump_std: standard deviation of the log jump, 0 or more.

    Raises:
        ValueError: a parameter outside its bounds, shapes that do not broadcast.

    References:
        Merton (1976), Option pricing when underlying stock returns are discontinuous, eq. 1.

    >>> Merton(vol=[0.1, 0.2], intensity=0.4, jump_mean=-0.12, jump_std=0.18).batch_shape
    torch.Size([2])
    """

    kind: ClassVar[str] = "merton"
    schemes: ClassVar[Mapping[str, AnyScheme]] = {"exact": WithJumps(ExactLognormal())}
    vol: Tensor
    intensity: Tensor
    jump_mean: Tensor
    jump_std: Tensor

    def __init__(self, vol: Any, intensity: Any, jump_mean: Any, jump_std: Any) -> None:
        object.__setattr__(self, "vol", volatility("vol", vol))
        object.__setattr__(self, "intensity", within("intensity", intensity, at_least=0.0))
        object.__setattr__(self, "jump_mean", within("jump_mean", jump_mean))
        object.__setattr__(self, "jump_std", within("jump_std", jump_std, at_least=0.0))
        broadcast_shape(**self.parameters())

    def log_characteristic(self, u: Tensor, expiry: Tensor, shift: float = 0.0) -> tuple[Tensor, Tensor]:
        r"""Real and imaginary part of $\log E\,e^{i (u - i\,\mathrm{shift}) X}$, $X = \log(S_T / F_T)$.

        Args:
            u: real arguments along the last axis, shape `*batch n_u` or `n_u`.
            expiry: years, shape `*batch`.
            shift: in [0, 1].
        """
        diffusion = normal_log_characteristic(u, (self.vol**2 * expiry).unsqueeze(-1), shift)
        jumps = jump_log_characteristic(u, *(tensor.unsqueeze(-1) for tensor in self._jumps(expiry)), shift=shift)
        return diffusion[0] + jumps[0], diffusion[1] + jumps[1]

    def log_moment(self, order: Tensor, expiry: Tensor) -> Tensor:
        r"""$\log E\,e^{qX}$ at the real orders $q$ along the last axis."""
        diffusion = 0.5 * (self.vol**2 * expiry).unsqueeze(-1) * order * (order - 1.0)
        return diffusion + jump_log_moment(order, *(tensor.unsqueeze(-1) for tensor in self._jumps(expiry)))

    def cumulants(self, expiry: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """First, second and fourth cumulant of the log-ratio at `expiry`, years."""
        first, second, fourth = jump_cumulants(*self._jumps(expiry))
        variance = self.vol**2 * expiry
        return first - 0.5 * variance, second + variance, fourth + 0.0 * variance

    def _jumps(self, expiry: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return expiry, self.intensity, self.jump_mean, self.jump_std


@dataclass(frozen=True, eq=False, init=False)
class Bates(Model):
    r"""Bates: the variance of `Heston`, and the lognormal jumps of `Merton`.

    Args:
        v0: variance today, per year, 0 or more; shape `*batch`, as all of them.
        kappa: speed of mean reversion, per year, above 0.
        theta: long-run variance, per year, above 0.
        sigma: volatility of variance, above 0.
        rho: correlation of asset and variance, in (-1, 1).
        intensity: jumps a year, 0 or more.
        jump_mean: mean of the log jump.
        jump_std: standard deviation of the log jump, 0 or more.

    Raises:
        ValueError: a parameter outside its bounds, shapes that do not broadcast.

    References:
        Bates (1996), Jumps and stochastic volatility: exchange rate processes implicit in Deutsche mark options, eq. 1.

    >>> Bates(0.04, 4.0, 0.25, 1.0, -0.5, intensity=0.3, jump_mean=-0.1, jump_std=0.2).batch_shape
    torch.Size([])
    """

    kind: ClassVar[str] = "bates"
    schemes: ClassVar[Mapping[str, AnyScheme]] = {name: WithJumps(scheme) for name, scheme in HESTON_SCHEMES.items()}
    v0: Tensor
    kappa: Tensor
    theta: Tensor
    sigma: Tensor
    rho: Tensor
    intensity: Tensor
    jump_mean: Tensor
    jump_std: Tensor

    def __init__(
        self,
        v0: Any,
        kappa: Any,
        theta: Any,
        sigma: Any,
        rho: Any,
        intensity: Any,
        jump_mean: Any,
        jump_std: Any,
    ) -> None:
        object.__setattr__(self, "v0", within("v0", v0, at_least=0.0))
        object.__setattr__(self, "kappa", within("kappa", kappa, above=0.0))
        object.__setattr__(self, "theta", within("theta", theta, above=0.0))
        object.__setattr__(self, "sigma", within("sigma", sigma, above=0.0))
        object.__setattr__(self, "rho", within("rho", rho, above=-1.0, below=1.0))
        object.__setattr__(self, "intensity", within("intensity", intensity, at_least=0.0))
        object.__setattr__(self, "jump_mean", within("jump_mean", jump_mean))
        object.__setattr__(self, "jump_std", within("jump_std", jump_std, at_least=0.0))
        broadcast_shape(**self.parameters())

    def log_characteristic(self, u: Tensor, expiry: Tensor, shift: float = 0.0) -> tuple[Tensor, Tensor]:
        r"""Real and imaginary part of $\log E\,e^{i (u - i\,\mathrm{shift}) X}$, $X = \log(S_T / F_T)$.

        Args:
            u: real arguments along the last axis, shape `*batch n_u` or `n_u`.
            expiry: years, shape `*batch`.
            shift: in [0, 1].
        """
        diffusion = heston_log_characteristic(u, *(t.unsqueeze(-1) for t in self._diffusion(expiry)), shift=shift)
        jumps = jump_log_characteristic(u, *(t.unsqueeze(-1) for t in self._jumps(expiry)), shift=shift)
        return diffusion[0] + jumps[0], diffusion[1] + jumps[1]

    def log_moment(self, order: Tensor, expiry: Tensor) -> Tensor:
        r"""$\log E\,e^{qX}$ at the real orders $q$ along the last axis; infinite where the moment is."""
        diffusion = heston_log_moment(order, *(tensor.unsqueeze(-1) for tensor in self._diffusion(expiry)))
        return diffusion + jump_log_moment(order, *(tensor.unsqueeze(-1) for tensor in self._jumps(expiry)))

    def cumulants(self, expiry: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """First, second and fourth cumulant of the log-ratio at `expiry`, years."""
        diffusion, jumps = heston_cumulants(*self._diffusion(expiry)), jump_cumulants(*self._jumps(expiry))
        return diffusion[0] + jumps[0], diffusion[1] + jumps[1], diffusion[2] + jumps[2]

    def mean_variance(self, expiry: Tensor) -> Tensor:
        """Expected annualised variance of the diffusion up to `expiry`, years; jumps come on top."""
        return mean_variance(expiry, self.v0, self.kappa, self.theta)

    def _diffusion(self, expiry: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        return expiry, self.v0, self.kappa, self.theta, self.sigma, self.rho

    def _jumps(self, expiry: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return expiry, self.intensity, self.jump_mean, self.jump_std
