"""Lognormal jumps on top of any discretisation of what happens between them."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from pricers.market import Market
from pricers.models.base import Scheme, State, Step

__all__ = ["WithJumps"]

TAIL = 1e-17  # probability of more jumps in a step than are counted


class WithJumps(Scheme):
    r"""A scheme, and in each step a Poisson number of normal jumps of the log price, drawn exactly.

    The sum of $n$ jumps is normal. The sum of their squares, which a variance swap asks for, is taken as its mean given
    the sum: exact for one jump in a step.

    Args:
        inner: discretisation between the jumps.

    References:
        Merton (1976), eq. 1; Glasserman (2004), section 3.5.1.
    """

    has_jumps: ClassVar[bool] = True

    def __init__(self, inner: Scheme) -> None:
        self.inner = inner
        # both depend on what is wrapped; two more normals for number and size of the jumps
        self.n_normals = inner.n_normals + 2  # pyright: ignore[reportAttributeAccessIssue]
        self.exact = inner.exact  # pyright: ignore[reportAttributeAccessIssue]

    def start(self, model: Any) -> State:
        """State of the inner scheme."""
        return self.inner.start(model)

    def coefficients(self, model: Any, market: Market, time: Tensor, dt: Tensor) -> State:
        """Compensator and distribution of the jumps, then what the inner scheme needs."""
        mean, std = model.jump_mean, model.jump_std
        expected = model.intensity * dt
        compensator = -expected * torch.expm1(mean + 0.5 * std**2)
        levels = poisson_distribution(expected)
        jumps = (compensator.unsqueeze(-1), mean.unsqueeze(-1), std.unsqueeze(-1), levels)
        return (*jumps, *self.inner.coefficients(model, market, time, dt))

    def advance(self, coefficients: State, log_ratio: Tensor, state: State, normals: Tensor) -> Step:
        """The inner step and the jumps."""
        compensator, mean, std, levels = coefficients[:4]
        step = self.inner.advance(coefficients[4:], log_ratio, state, normals[:-2])
        survival = torch.special.ndtr(-normals[-2])
        count = torch.zeros_like(survival)
        for level in levels.unbind(-1):
            count = count + (survival < level.unsqueeze(-1))
        spread = count.sqrt() * normals[-1]
        jump = count * mean + spread * std
        # given the sum, the squares about their mean have the mean of a chi-squared with n - 1 degrees of freedom
        squares = jump * jump / count.clamp(min=1.0) + (count - 1.0).clamp(min=0.0) * std * std
        return step._replace(drift=step.drift + compensator + jump, jumps_squared=squares)


def poisson_distribution(expected: Tensor) -> Tensor:
    """Probabilities of more than 0, 1, 2, ... events, until they no longer matter; shape `*batch n`."""
    largest = expected.detach().max().item()
    n_levels = 1
    remaining = -math.expm1(-largest)
    probability = math.exp(-largest)
    while remaining > TAIL and n_levels < 10_000:
        probability *= largest / n_levels
        remaining -= probability
        n_levels += 1
        if probability < TAIL and n_levels > largest:
            break
    count = torch.arange(n_levels, dtype=expected.dtype, device=expected.device)
    # P(N > k) = P(k + 1, expected): the regularised incomplete gamma function keeps the digits of the tail
    return torch.special.gammainc(count + 1.0, expected.detach().unsqueeze(-1).clamp(min=0.0))
