"""Heston's stochastic volatility."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pricers.characteristic import heston_cumulants, heston_log_characteristic, heston_log_moment, mean_variance
from pricers.models.base import Model
from pricers.models.heston_schemes import HESTON_SCHEMES
from pricers.parameters import broadcast_shape, within

__all__ = ["Heston"]


@dataclass(frozen=True, eq=False, init=False)
class Heston(Model):
    r"""$dS = (r - q) S dt + \sqrt v S dW$, $dv = \kappa (\theta - v) dt + \sigma \sqrt v dB$, $dW dB = \rho dt$.

    Feller's condition $2\kappa\theta \ge \sigma^2$ is not asked for: the variance may reach 0, as it does under most
    parameters that markets imply.

    Args:
        v0: variance today, per year, 0 or more; shape `*batch`, as all of them.
        kappa: speed of mean reversion, per year, above 0.
        theta: long-run variance, per year, above 0.
        sigma: volatility of variance, above 0; its limit 0 is approached without loss of digits.
        rho: correlation of asset and variance, in (-1, 1).

    Raises:
        ValueError: a parameter outside its bounds, shapes that do not broadcast.

    References:
        Heston (1993), A closed-form solution for options with stochastic volatility, eqs. 1-4.

    >>> model = Heston(v0=0.04, kappa=4.0, theta=0.25, sigma=1.0, rho=[-0.5, 0.0])
    >>> model.batch_shape
    torch.Size([2])
    """

    kind: ClassVar[str] = "heston"
    schemes = HESTON_SCHEMES
    v0: Tensor
    kappa: Tensor
    theta: Tensor
    sigma: Tensor
    rho: Tensor

    def __init__(self, v0: Any, kappa: Any, theta: Any, sigma: Any, rho: Any) -> None:
        object.__setattr__(self, "v0", within("v0", v0, at_least=0.0))
        object.__setattr__(self, "kappa", within("kappa", kappa, above=0.0))
        object.__setattr__(self, "theta", within("theta", theta, above=0.0))
        object.__setattr__(self, "sigma", within("sigma", sigma, above=0.0))
        object.__setattr__(self, "rho", within("rho", rho, above=-1.0, below=1.0))
        broadcast_shape(**self.parameters())

    def log_characteristic(self, u: Tensor, expiry: Tensor, shift: float = 0.0) -> tuple[Tensor, Tensor]:
        r"""Real and imaginary part of $\log E\,e^{i (u - i\,\mathrm{shift}) X}$, $X = \log(S_T / F_T)$.

        Args:
            u: real arguments along the last axis, shape `*batch n_u` or `n_u`.
            expiry: years, shape `*batch`.
            shift: in [0, 1].
        """
        return heston_log_characteristic(u, *(tensor.unsqueeze(-1) for tensor in self._law(expiry)), shift=shift)

    def log_moment(self, order: Tensor, expiry: Tensor) -> Tensor:
        r"""$\log E\,e^{qX}$ at the real orders $q$ along the last axis; infinite where the moment is."""
        return heston_log_moment(order, *(tensor.unsqueeze(-1) for tensor in self._law(expiry)))

    def cumulants(self, expiry: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """First, second and fourth cumulant of the log-ratio at `expiry`, years."""
        return heston_cumulants(*self._law(expiry))

    def mean_variance(self, expiry: Tensor) -> Tensor:
        """Expected annualised variance up to `expiry`, years."""
        return mean_variance(expiry, self.v0, self.kappa, self.theta)

    def _law(self, expiry: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        return torch.as_tensor(expiry), self.v0, self.kappa, self.theta, self.sigma, self.rho
