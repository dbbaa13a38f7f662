r"""Rough Heston: a square-root variance with a fractional kernel, priced through its characteristic function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pricers.models.base import AnyScheme, Model
from pricers.models.rough_heston_lifting import LiftedQuadraticExponential
from pricers.models.rough_heston_riccati import log_characteristic, log_moment, log_moments
from pricers.parameters import broadcast_shape, within

__all__ = ["RoughHeston"]


@dataclass(frozen=True, eq=False, init=False)
class RoughHeston(Model):
    r"""Rough Heston model of El Euch and Rosenbaum.

    $$V_t = v_0 + \frac{1}{\Gamma(H + 1/2)} \int_0^t (t - s)^{H - 1/2}
      \left(\kappa (\theta - V_s)\,ds + \sigma \sqrt{V_s}\,dB_s\right),\quad dS = (r - q) S\,dt + \sqrt V S\,dW$$

    with $dW\,dB = \rho\,dt$. At $H = 1/2$ it is the Heston model with the same parameters. In the notation of the paper
    `kappa` is $\lambda$ and `sigma` is $\lambda\nu$; for $H < 1/2$ they are per year to the power $H + 1/2$.

    Args:
        v0: variance today, per year, 0 or more; shape `*batch`, as all of them.
        kappa: speed of mean reversion, above 0.
        theta: long-run variance, per year, above 0.
        sigma: volatility of variance, above 0.
        rho: correlation of asset and variance, in (-1, 1).
        hurst: in (0, 0.5].

    Raises:
        ValueError: a parameter outside its bounds, shapes that do not broadcast.

    References:
        El Euch and Rosenbaum (2019), The characteristic function of rough Heston models, eqs. 1.1-1.3.

    >>> model = RoughHeston(v0=0.04, kappa=0.3, theta=0.04, sigma=0.4, rho=-0.7, hurst=[0.1, 0.5])
    >>> u, expiry = torch.tensor([1.0], dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    >>> [round(value, 6) for value in model.log_characteristic(u, expiry)[0].squeeze(-1).tolist()]
    [-0.022514, -0.022184]
    """

    kind: ClassVar[str] = "rough_heston"
    schemes: ClassVar[Mapping[str, AnyScheme]] = {"lifted": LiftedQuadraticExponential()}
    v0: Tensor
    kappa: Tensor
    theta: Tensor
    sigma: Tensor
    rho: Tensor
    hurst: Tensor

    def __init__(self, v0: Any, kappa: Any, theta: Any, sigma: Any, rho: Any, hurst: Any) -> None:
        object.__setattr__(self, "v0", within("v0", v0, at_least=0.0))
        object.__setattr__(self, "kappa", within("kappa", kappa, above=0.0))
        object.__setattr__(self, "theta", within("theta", theta, above=0.0))
        object.__setattr__(self, "sigma", within("sigma", sigma, above=0.0))
        object.__setattr__(self, "rho", within("rho", rho, above=-1.0, below=1.0))
        object.__setattr__(self, "hurst", within("hurst", hurst, above=0.0, at_most=0.5))
        broadcast_shape(**self.parameters())

    def log_characteristic(self, u: Tensor, expiry: Tensor, shift: float = 0.0) -> tuple[Tensor, Tensor]:
        r"""Real and imaginary part of $\log E\,e^{i (u - i\,\mathrm{shift}) X}$, $X = \log(S_T / F_T)$.

        Args:
            u: real arguments along the last axis, shape `*batch n_u` or `n_u`.
            expiry: years, shape `*batch`.
            shift: in [0, 1].
        """
        return log_characteristic(u, shift, *self._law(expiry))

    def log_moment(self, order: Tensor, expiry: Tensor) -> Tensor:
        r"""$\log E\,e^{qX}$ at the real orders $q$ along the last axis; infinite where the moment is."""
        return log_moment(order, *self._law(expiry))

    def cumulants(self, expiry: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """First, second and fourth cumulant of the log-ratio at `expiry`, years."""
        first, second, _, fourth = log_moments(4, *self._law(expiry))
        return first, second, fourth

    def _law(self, expiry: Tensor) -> tuple[Tensor, ...]:
        return torch.as_tensor(expiry), self.v0, self.kappa, self.theta, self.sigma, self.rho, self.hurst
