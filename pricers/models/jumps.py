"""Lognormal jumps on top of any discretisation of what happens between them."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from pricers.market import Market
from pricers.models.base import Scheme, State, Step
from pricers.normal import normal_cdf

__all__ = ["WithJumps"]

TAIL = 1e-17  # probability of more jumps in a step than are counted
BEYOND = 64  # further numbers of events that the tails are summed over


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

    def keeps_forward(self, model: Any, dt: Tensor) -> bool:
        """As the inner scheme: the jumps are compensated exactly."""
        return self.inner.keeps_forward(model, dt)

    def start(self, model: Any) -> State:
        """State of the inner scheme."""
        return self.inner.start(model)

    def coefficients(self, model: Any, market: Market, time: Tensor, dt: Tensor) -> State:
        """Compensator and distribution of the jumps, then what the inner scheme needs."""
        mean, std = model.jump_mean, model.jump_std
        expected = model.intensity * dt
        compensator = -expected * torch.expm1(mean + 0.5 * std**2)
        tails = poisson_tails(expected)
        jumps = (compensator.unsqueeze(-1), mean.unsqueeze(-1), std.unsqueeze(-1), tails)
        return (*jumps, *self.inner.coefficients(model, market, time, dt))

    def advance(self, coefficients: State, log_ratio: Tensor, state: State, normals: Tensor) -> Step:
        """The inner step and the jumps."""
        compensator, mean, std, tails = coefficients[:4]
        step = self.inner.advance(coefficients[4:], log_ratio, state, normals[:-2])
        count = n_jumps(tails, normals[-2])
        jump = count * mean + std * (count.sqrt() * normals[-1])
        # given the sum, the squares about their mean have the mean of a chi-squared with n - 1 degrees of freedom
        squares = jump * jump / count.clamp(min=1.0) + (count - 1.0).clamp(min=0.0) * std * std
        return step._replace(drift=step.drift + compensator + jump, jumps_squared=squares)

    def log_probability(self, model: Any, dt: Tensor, normals: Tensor) -> Tensor:
        r"""Logarithm of the probability of the number of jumps in a step, $n \log m - m$, up to a constant.

        Args:
            model: with the intensity.
            dt: length of the step, years.
            normals: what `advance` draws in the step (others may follow): the number itself is held.

        Returns:
            Shape `*batch paths`; differentiable where the intensity is above 0.
        """
        expected = model.intensity * dt
        count = n_jumps(poisson_tails(expected), normals[self.n_normals - 2])
        return torch.xlogy(count, expected.unsqueeze(-1)) - expected.unsqueeze(-1)


def n_jumps(tails: Tensor, normal: Tensor) -> Tensor:
    """Number of events by inversion of one normal per path, shape `*batch paths`: piecewise constant.

    Args:
        tails: from `poisson_tails`.
        normal: shape `paths`.
    """
    survival = normal_cdf(-normal)
    count = torch.zeros_like(survival)
    for tail in tails.unbind(-1):
        count = count + (survival < tail.unsqueeze(-1))
    return count


def poisson_tails(expected: Tensor) -> Tensor:
    """Probabilities of more than 0, 1, 2, ... events, until they are below 1e-17; shape `*batch n`.

    Args:
        expected: mean number of events, 0 or more; shape `*batch`.

    >>> poisson_tails(torch.tensor(0.5, dtype=torch.float64))[:3]
    tensor([0.3935, 0.0902, 0.0144], dtype=torch.float64)
    """
    mean = expected.detach()
    largest = mean.max().item()
    n = math.ceil(largest) + 1  # Chernoff's bound on the tail holds above the mean
    while largest > 0.0 and n * (1.0 + math.log(largest / n)) - largest > math.log(TAIL):
        n += 1
    count = torch.arange(1, n + 1 + BEYOND, dtype=torch.float64, device=mean.device)
    mean = mean.double().unsqueeze(-1)
    weights = torch.exp(torch.special.xlogy(count, mean) - mean - torch.lgamma(count + 1.0))
    # summed from the smallest on: every digit of the tail is kept (torch's incomplete gamma function has nine of them)
    return weights.flip(-1).cumsum(-1).flip(-1)[..., :n].to(expected.dtype)
