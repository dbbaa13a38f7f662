"""Bates' model, calibrated: Heston's variance and lognormal jumps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pricers.characteristic import jump_log_characteristic
from pricers.characteristic_gradient import (
    Complex,
    heston_on_the_line,
    heston_on_the_line_with_gradient,
    jumps_on_the_line_with_gradient,
)
from pricers.models import Bates
from qfml.calibration.fourier_model import FourierCalibration, Table, columns
from qfml.calibration.fourier_vols import Characteristic
from qfml.calibration.heston import HESTON_PARAMETERS, heston_variance
from qfml.calibration.model import Parameter

__all__ = ["BatesCalibration"]

BATES_PARAMETERS = (
    *HESTON_PARAMETERS,
    Parameter("intensity", 1e-4, 10.0, 0.05, 2.0, "log"),
    Parameter("jump_mean", -1.0, 1.0, -0.4, 0.1, "linear"),
    Parameter("jump_std", 1e-3, 1.0, 0.05, 0.4, "log"),
)


def _value(u: Tensor, expiry: Tensor, x: Tensor) -> Complex:
    each = columns(x)
    diffusion = heston_on_the_line(u, expiry, *each[:5])
    jumps = jump_log_characteristic(u, expiry, *each[5:], shift=0.5)
    return diffusion[0] + jumps[0], diffusion[1] + jumps[1]


def _gradient(u: Tensor, expiry: Tensor, x: Tensor) -> tuple[Complex, tuple[Complex, ...]]:
    each = columns(x)
    diffusion, by_diffusion = heston_on_the_line_with_gradient(u, expiry, *each[:5])
    jumps, by_jumps = jumps_on_the_line_with_gradient(u, expiry, *each[5:])
    return (diffusion[0] + jumps[0], diffusion[1] + jumps[1]), (*by_diffusion, *by_jumps)


def _variance(expiry: Tensor, x: Tensor) -> Tensor:
    intensity, jump_mean, jump_std = x[:, 5], x[:, 6], x[:, 7]
    return heston_variance(expiry, x) + expiry * intensity * (jump_mean * jump_mean + jump_std * jump_std)


def _more_nodes(end: Tensor, x: Tensor) -> Tensor:
    """Jumps wave u m times up to u = 4 / s, which may be the first bit of the range only."""
    jump_mean, jump_std = x[:, 6], x[:, 7]
    reach = torch.minimum(4.0 / jump_std, end)
    # share of the nodes of Gauss and Legendre below `reach`
    share = torch.arccos(1.0 - 2.0 * reach / end) / math.pi
    return (4.0 + 0.36 * reach * jump_mean.abs()) / share


@dataclass(frozen=True)
class BatesCalibration(FourierCalibration):
    """Bates' eight parameters fitted to implied vols.

    References:
        Bates (1996), Jumps and stochastic volatility: exchange rate processes implicit in Deutsche mark options.

    >>> [parameter.name for parameter in BatesCalibration().parameters][5:]
    ['intensity', 'jump_mean', 'jump_std']
    """

    kind: ClassVar[str] = "bates"
    table: ClassVar[Table] = Table(BATES_PARAMETERS, Characteristic(_value, _gradient, _variance, _more_nodes), Bates)
