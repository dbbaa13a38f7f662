"""Discretisations of the square-root variance of Heston, by name."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from pricers.market import Market
from pricers.models.base import Scheme, State, Step

__all__ = ["FullTruncationEuler", "QuadraticExponential"]

SQRT_HALF = math.sqrt(0.5)


class FullTruncationEuler(Scheme):
    """Euler steps with the variance set to 0 in the coefficients where it is negative; weak order 1.

    References:
        Lord, Koekkoek and van Dijk (2010), A comparison of biased simulation schemes for stochastic volatility models.
    """

    n_normals: ClassVar[int] = 1

    def start(self, model: Any) -> State:
        return (model.v0.unsqueeze(-1),)

    def coefficients(self, model: Any, market: Market, time: Tensor, dt: Tensor) -> State:
        columns = (model.kappa * dt, model.theta, model.sigma, model.rho, dt)
        return tuple(column.unsqueeze(-1) for column in columns)

    def advance(self, coefficients: State, log_ratio: Tensor, state: State, normals: Tensor) -> Step:
        speed, theta, sigma, rho, dt = coefficients
        (variance,) = state
        positive = variance.clamp(min=0.0)
        # the square root is differentiated at 0 too
        noise = torch.sqrt(positive * dt + torch.finfo(positive.dtype).tiny) * normals[0]
        integrated = positive * dt
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

    def start(self, model: Any) -> State:
        return (model.v0.unsqueeze(-1),)

    def coefficients(self, model: Any, market: Market, time: Tensor, dt: Tensor) -> State:
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
        decay, mean0, scale, scale0, k0, k1, k2, k3, half = coefficients
        (before,) = state
        normal = normals[0]
        tiny = torch.finfo(normal.dtype).tiny
        mean = (decay * before + mean0).clamp(min=tiny)
        psi = (scale * before + scale0) / (mean * mean)
        quadratic = psi <= self.switch
        # each branch is clamped to its own side: both are differentiated
        double = 2.0 / psi.clamp(max=self.switch).clamp(min=tiny)
        b_squared = double - 1.0 + torch.sqrt(double * (double - 1.0))  # eq. 27
        a = mean / (1.0 + b_squared)  # eq. 28
        root = torch.sqrt(b_squared) + normal
        rest = 2.0 / (psi.clamp(min=self.switch) + 1.0)  # 1 - p, eq. 29
        beta = rest / mean  # eq. 30
        survival = 0.5 * torch.erfc(SQRT_HALF * normal)
        exponential = torch.log(rest / survival.clamp(min=tiny)).clamp(min=0.0) / beta  # eq. 25
        after = torch.where(quadratic, a * root * root, exponential)
        total = before + after
        if self.martingale:
            # eqs. 37 and 38; where the moment does not exist the plain k0 is kept
            growth = k2 + 0.5 * k3
            tail = (1.0 - 2.0 * growth * a).clamp(min=tiny)
            squared = -growth * b_squared * a / tail + 0.5 * torch.log(tail)
            distance = (beta - growth).clamp(min=tiny)
            jumped = -torch.log((1.0 - rest + beta * rest / distance).clamp(min=tiny))
            finite = torch.where(quadratic, 2.0 * growth * a < 0.99, growth < 0.99 * beta)
            corrected = torch.where(quadratic, squared, jumped) - (k1 + 0.5 * k3) * before
            k0 = torch.where(finite, corrected, k0)
        drift = k0 + k1 * before + k2 * after
        return Step((after,), drift, k3 * total, half * total)
