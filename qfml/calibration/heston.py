"""Heston's model, calibrated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pricers.characteristic import mean_variance
from pricers.characteristic_gradient import Complex, heston_on_the_line, heston_on_the_line_with_gradient
from pricers.models import Heston
from qfml.calibration.fourier_model import FourierCalibration, Table, columns
from qfml.calibration.fourier_vols import Characteristic
from qfml.calibration.model import Parameter

__all__ = ["HESTON_PARAMETERS", "HestonCalibration", "heston_variance"]

HESTON_PARAMETERS = (
    Parameter("v0", 1e-4, 2.0, 0.005, 0.5, "log"),
    Parameter("kappa", 0.01, 50.0, 0.3, 20.0, "log"),
    Parameter("theta", 1e-4, 2.0, 0.005, 0.5, "log"),
    Parameter("sigma", 0.01, 10.0, 0.1, 4.0, "log"),
    Parameter("rho", -0.999, 0.999, -0.9, 0.4, "linear"),
)


def _value(u: Tensor, expiry: Tensor, x: Tensor) -> Complex:
    return heston_on_the_line(u, expiry, *columns(x))


def _gradient(u: Tensor, expiry: Tensor, x: Tensor) -> tuple[Complex, tuple[Complex, ...]]:
    return heston_on_the_line_with_gradient(u, expiry, *columns(x))


def heston_variance(expiry: Tensor, x: Tensor) -> Tensor:
    """Expected variance (R,) up to the expiry at parameters (R, P) that begin with Heston's."""
    v0, kappa, theta = x[:, 0], x[:, 1], x[:, 2]
    return expiry * mean_variance(expiry, v0, kappa, theta)


@dataclass(frozen=True)
class HestonCalibration(FourierCalibration):
    """Heston's five parameters fitted to implied vols.

    References:
        Heston (1993); Cui, del Bano Rollin and Germano (2017), Full and fast calibration of the Heston stochastic
        volatility model; Andersen and Lake (2018), Robust high-precision option pricing by Fourier transforms.
    """

    kind: ClassVar[str] = "heston"
    table: ClassVar[Table] = Table(HESTON_PARAMETERS, Characteristic(_value, _gradient, heston_variance), Heston)
