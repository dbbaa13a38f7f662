"""Discretisations of the square-root variance of Heston, by name."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from pricers.market import Market
from pricers.models.base import Scheme, State, Step
from pricers.models.heston_exact import Exact

__all__ = ["HESTON_SCHEMES", "FullTruncationEuler", "QuadraticExponential"]

SURVIVAL = (
    1.5950394753, -1.55867208728, -0.204427186212, -0.0789585451547, 0.0371404871858, 0.00999347455028,
    0.00210632656839, -0.00383540701685, -0.000486217149141, 0.000330448325493, 0.000270620046636, -8.6769273697e-05,
)  # fmt: skip
LEAST_MOMENT = 0.01  # nearer than this to where the moment of the asset explodes no step is corrected


def minus_log_survival(normal: Tensor) -> Tensor:
    r"""$-\log(1 - \Phi(z))$ for z in [-0.9, 8.4], to 1.2e-8; its value at -0.9 below.

    The logarithm of a uniform that falls as the normal grows, in 13 multiplications and one division: $z^2 / 2$ and a
    polynomial in $1 / (z + 6)$, fitted at Chebyshev nodes.

    Args:
        normal: z, any shape.
    """
    normal = normal.clamp(min=-0.9)
    scaled = 15.793548387096772 / (normal + 6.0) - 2.096774193548387
    total = torch.full_like(scaled, SURVIVAL[-1])
    for coefficient in SURVIVAL[-2::-1]:
        total = total * scaled + coefficient
    return total + 0.5 * normal * normal


class FullTruncationEuler(Scheme):
    """Euler steps with the variance set to 0 in the coefficients where it is negative; weak order 1.

    References:
        Lord, Koekkoek and van Dijk (2010), A comparison of biased simulation schemes for stochastic volatility models.
    """

    n_normals: ClassVar[int] = 1

    def start(self, model: Any) -> State:
        """Today's variance."""
        return (model.v0.unsqueeze(-1),)

    def coefficients(self, model: Any, market: Market, time: Tensor, dt: Tensor) -> State:
        """Parameters and length of the step."""
        columns = (model.kappa * dt, model.theta, model.sigma, model.rho, dt)
        return tuple(column.unsqueeze(-1) for column in columns)

    def advance(self, coefficients: State, log_ratio: Tensor, state: State, normals: Tensor) -> Step:
        """The variance moves by a normal, the asset by the variance before."""
        speed, theta, sigma, rho, dt = coefficients
        (variance,) = state
        positive = variance.clamp(min=0.0)
        # square roots of it, here and by whom reads the step, are differentiated at 0 too
        integrated = positive * dt + torch.finfo(positive.dtype).tiny
        noise = torch.sqrt(integrated) * normals[0]
        after = variance + speed * (theta - positive) + sigma * noise
        drift = rho * noise - 0.5 * integrated
        return Step((after,), drift, (1.0 - rho * rho) * integrated, integrated)


class QuadraticExponential(Scheme):
    r"""Andersen's QE: the next variance matches two moments by a squared normal, or by a mass at 0 and an exponential.

    Args:
        martingale: keep $E\,m_{t + \Delta} = m_t$ in each step (QE-M), where its moment is finite.

    References:
        Andersen (2008), Simple and efficient simulation of the Heston stochastic volatility model, sections 3.2 and 4.
    """

    n_normals: ClassVar[int] = 1
    switch: ClassVar[float] = 1.5  # psi_c

    def __init__(self, martingale: bool) -> None:
        self.martingale = martingale

    def keeps_forward(self, model: Any, dt: Tensor) -> bool:
        """Whether the mean of the asset is the forward: steps are corrected, by a moment that exists."""
        if not self.martingale:
            return False
        kappa, sigma, rho = model.kappa.detach(), model.sigma.detach(), model.rho.detach()
        longest = dt.detach().max()
        growth = rho / sigma * (1.0 + kappa * longest) + 0.5 * longest * (0.5 - rho**2)  # k2 + k3 / 2 is not above it
        # a and m R are at most the conditional variance of v over its mean, which is at most this
        ratio = -(sigma**2) * torch.expm1(-kappa * longest) / kappa
        return bool((growth * ratio < 1.0 - LEAST_MOMENT).all())

    def start(self, model: Any) -> State:
        """Today's variance."""
        return (model.v0.unsqueeze(-1),)

    def coefficients(self, model: Any, market: Market, time: Tensor, dt: Tensor) -> State:
        """Moments of the next variance, and the weights of both variances in the asset."""
        kappa, theta, sigma, rho = model.kappa, model.theta, model.sigma, model.rho
        decay = torch.exp(-kappa * dt)
        lost = -torch.expm1(-kappa * dt)
        # eqs. 17 and 18: conditional mean decay v + mean0, conditional variance scale v + scale0
        mean0, scale = theta * lost, sigma**2 * decay * lost / kappa
        scale0 = theta * sigma**2 * lost**2 / (2.0 * kappa)
        # eq. 33 with gamma1 = gamma2 = 1/2
        half, leverage = 0.5 * dt, rho / sigma
        k0 = -leverage * kappa * theta * dt
        k1 = half * (kappa * leverage - 0.5) - leverage
        k2 = half * (kappa * leverage - 0.5) + leverage
        k3 = half * (1.0 - rho**2)
        columns = (decay, mean0, scale, scale0, k0, k1, k2, k3, half)
        return tuple(column.unsqueeze(-1) for column in torch.broadcast_tensors(*columns))

    def advance(self, coefficients: State, log_ratio: Tensor, state: State, normals: Tensor) -> Step:
        """The variance by its two moments, the asset by the trapezoid of the variances."""
        decay, mean0, scale, scale0, k0, k1, k2, k3, half = coefficients
        (before,) = state
        normal = normals[0]
        mean = decay * before + mean0
        psi = (scale * before + scale0) / (mean * mean)
        quadratic = psi <= self.switch
        # Each branch is held on its own side of the switch, for both are differentiated.
        # Eqs. 23, 27 and 28 without cancellation: with h = sqrt(1 - psi / 2), a b^2 = m h and a = m (1 - h)
        lost = 0.5 * psi.clamp(max=self.switch)
        held = torch.sqrt(1.0 - lost)
        loose = lost / (1.0 + held)  # 1 - h
        squared = held + normal * (2.0 * torch.sqrt(held * loose) + loose * normal)
        # Eqs. 25, 29 and 30 with R = (psi + 1) / 2, which is 1 / (1 - p) and 1 / (beta m)
        inverse = 0.5 * psi.clamp(min=self.switch) + 0.5
        exponential = inverse * (minus_log_survival(normal) - torch.log(inverse))
        after = mean * torch.where(quadratic, squared, exponential).clamp(min=0.0)
        if self.martingale:
            # Eqs. 37 and 38 with A m = `growth`; where the moment does not exist the plain k0 is kept
            growth = (k2 + 0.5 * k3) * mean
            moment = 1.0 - growth * torch.where(quadratic, 2.0 * loose, inverse)
            finite = moment > LEAST_MOMENT
            moment = moment.clamp(min=LEAST_MOMENT)
            share = torch.where(quadratic, growth * held, moment) / torch.where(quadratic, moment, moment + growth)
            corrected = torch.where(quadratic, 0.5, 1.0) * torch.log(torch.where(quadratic, moment, share))
            corrected = corrected - torch.where(quadratic, share, 0.0) - (k1 + 0.5 * k3) * before
            k0 = torch.where(finite, corrected, k0)
        total = before + after
        drift = k0 + k1 * before + k2 * after
        return Step((after,), drift, k3 * total, half * total)


HESTON_SCHEMES: dict[str, Scheme] = {
    "qe-m": QuadraticExponential(martingale=True),
    "qe": QuadraticExponential(martingale=False),
    "euler": FullTruncationEuler(),
    "exact": Exact(),
}
