"""A closed-form scale of the implied vol of each model: what a network's target is measured in.

It is right to the order of magnitude and smooth in all parameters; nothing is checked, so that it can be exported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ["REFERENCE_VOLS"]

Parameters = Mapping[str, Tensor]


def _mean(start: Tensor, end: Tensor, x: Tensor) -> Tensor:
    """Mean over the life of a variance that moves from `start` to `end` with speed times life `x`."""
    return end - (start - end) * torch.expm1(-x) / x


def heston(p: Parameters, expiry: Tensor, forward: Tensor) -> Tensor:
    """Root of the expected mean variance: exact for the variance swap."""
    return torch.sqrt(_mean(p["v0"], p["theta"], p["kappa"] * expiry))


def _jumps(p: Parameters) -> Tensor:
    return p["intensity"] * (p["jump_mean"].square() + p["jump_std"].square())


def bates(p: Parameters, expiry: Tensor, forward: Tensor) -> Tensor:
    """The same with the variance of the jumps."""
    return torch.sqrt(_mean(p["v0"], p["theta"], p["kappa"] * expiry) + _jumps(p))


def merton(p: Parameters, expiry: Tensor, forward: Tensor) -> Tensor:
    """Root of the variance of the log price, a year."""
    return torch.sqrt(p["vol"].square() + _jumps(p))


def black_scholes(p: Parameters, expiry: Tensor, forward: Tensor) -> Tensor:
    """The vol."""
    return p["vol"]


def sabr(p: Parameters, expiry: Tensor, forward: Tensor) -> Tensor:
    """The lognormal vol at the money of the backbone."""
    shifted = forward + p["shift"]
    return p["alpha"] * torch.exp((p["beta"] - 1.0) * torch.log(shifted)) * shifted / forward


def rough_bergomi(p: Parameters, expiry: Tensor, forward: Tensor) -> Tensor:
    """Root of the flat forward variance."""
    return torch.sqrt(p["xi"])


def rough_heston(p: Parameters, expiry: Tensor, forward: Tensor) -> Tensor:
    """Root of the mean variance, with an exponential in place of the Mittag-Leffler function."""
    power = p["hurst"] + 0.5
    x = p["kappa"] * torch.exp(power * torch.log(expiry) - _log_gamma(power + 1.0))
    return torch.sqrt(_mean(p["v0"], p["theta"], x))


def _log_gamma(x: Tensor) -> Tensor:
    """Logarithm of the Gamma function to 1e-12, for x >= 1: `torch.lgamma` has no equal in ONNX.

    Stirling's series at x + 7, and seven steps back by Gamma(x + 1) = x Gamma(x).
    """
    passed = x * (x + 1.0) * (x + 2.0) * (x + 3.0) * (x + 4.0) * (x + 5.0) * (x + 6.0)
    y = x + 7.0
    square = 1.0 / (y * y)
    series = (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square * (1 / 1680 - square / 1188)))) / y
    return (y - 0.5) * torch.log(y) - y + 0.5 * math.log(2 * math.pi) + series - torch.log(passed)


REFERENCE_VOLS: dict[str, Callable[[Parameters, Tensor, Tensor], Tensor]] = {
    "heston": heston,
    "bates": bates,
    "merton": merton,
    "black_scholes": black_scholes,
    "sabr": sabr,
    "rough_bergomi": rough_bergomi,
    "rough_heston": rough_heston,
}
