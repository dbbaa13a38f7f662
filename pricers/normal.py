"""The standard normal law, accurate in its tails: what formulas and simulations share."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["SQRT_2PI", "deviation", "mills_ratio", "normal_cdf", "normal_density"]

SQRT_HALF = math.sqrt(0.5)
SQRT_2PI = math.sqrt(2.0 * math.pi)
SQRT_HALF_PI = math.sqrt(0.5 * math.pi)
_special: Any = torch.special  # has no type stubs


def normal_cdf(x: Tensor) -> Tensor:
    """Distribution function of the standard normal law, to full relative accuracy in the lower tail.

    >>> normal_cdf(torch.tensor([-20.0, 0.0], dtype=torch.float64))
    tensor([2.7536e-89, 5.0000e-01], dtype=torch.float64)
    """
    return 0.5 * torch.erfc(-SQRT_HALF * x)  # torch.special.ndtr has absolute accuracy only


def normal_density(x: Tensor) -> Tensor:
    """Density of the standard normal law."""
    return torch.exp(-0.5 * x * x) / SQRT_2PI


def mills_ratio(x: Tensor) -> Tensor:
    r"""Mills' ratio of the normal law, upper tail over density: $\sqrt{\pi/2}\ \mathrm{erfcx}(x / \sqrt 2)$.

    >>> mills_ratio(torch.tensor([0.0, 100.0], dtype=torch.float64))
    tensor([1.2533, 0.0100], dtype=torch.float64)
    """
    return SQRT_HALF_PI * _special.erfcx(x * SQRT_HALF)


def deviation(variance: Tensor, least: float | None = None) -> Tensor:
    """Standard deviation of a variance that may be 0, or below it by rounding: there its gradient is 0, not infinite.

    Args:
        variance: any shape.
        least: what smaller variances are raised to, above 0; the smallest normal number of the dtype if None.

    Returns:
        Same shape, above 0.

    >>> variance = torch.tensor([0.0, 4.0], dtype=torch.float64, requires_grad=True)
    >>> torch.autograd.grad(deviation(variance).sum(), variance)
    (tensor([0.0000, 0.2500], dtype=torch.float64),)
    """
    return variance.clamp(min=torch.finfo(variance.dtype).tiny if least is None else least).sqrt()
