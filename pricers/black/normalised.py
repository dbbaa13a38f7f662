r"""The normalised Black and Bachelier functions, exact far out of the money, differentiable.

Notation, for an option at or out of the money, `low` the smaller and `high` the larger of forward and strike:
$x = \log(low / high) \le 0$ and $s$ the total vol (vol times the root of the expiry). The price over `low`

$$c(x, s) = \Phi(d_1) - e^{-x}\,\Phi(d_2), \qquad d_1 = x/s + s/2, \quad d_2 = d_1 - s,$$

cancels when it is small. With Mills' ratio $R(z) = \Phi(-z) / \varphi(z)$ it is one factor and one difference,

$$c = \varphi(d_1)\,[R(-d_1) - R(-d_2)],$$

and the difference is a Taylor series where $s$ is small, which also keeps the derivatives exact. Nothing here is
validated.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pricers.normal import mills_ratio, normal_density

__all__ = [
    "log_ratio",
    "mills_difference",
    "normal_tail_mean",
    "normalised_call",
    "positive_total_vol",
]

_SERIES_BELOW = 0.06  # total vol under which the difference of Mills' ratios is summed as a series
_SERIES_TERMS = 10  # the first one left out is under 1e-16 of the sum
_FRACTION_ABOVE = 7.0  # argument from which the continued fraction of Mills' ratio is used
_FRACTION_LEVELS = 24


def log_ratio(low: Tensor, high: Tensor) -> Tensor:
    """log(low / high) for 0 < low <= high, to full relative accuracy also where the two are close."""
    # the difference of two close numbers is exact, their quotient is not
    close = torch.log1p(((low - high) / high).clamp(min=-0.5))
    return torch.where(low < 0.5 * high, torch.log(low / high), close)


def positive_total_vol(total_vol: Tensor) -> Tensor:
    """`total_vol`, and where it is (as good as) zero a number that formulas with x / s^2 survive; gradients pass."""
    nothing, smallest = (1e-30, 1e-30) if total_vol.dtype == torch.float64 else (1e-15, 1e-7)
    return total_vol + smallest * (total_vol <= nothing).to(total_vol.dtype)


def mills_difference(low: Tensor, high: Tensor, total_vol: Tensor, sign: Tensor) -> Tensor:
    """R(low) - R(high) where `sign` is 1, R(-low) + R(high) where it is -1; high - low is `total_vol`.

    A sign of -1 belongs to a total vol above `_SERIES_BELOW`.
    """
    at_high = mills_ratio(high)
    plain = mills_ratio(low * sign) - sign * at_high
    # Taylor around `high`: f_k = (-s)^k R^(k), where R' = z R - 1 and R^(k) = (k - 1) R^(k-2) + z R^(k-1)
    square, product = total_vol * total_vol, -total_vol * high
    before, here = at_high, torch.addcmul(total_vol, product, at_high)
    series = here
    for k in range(2, _SERIES_TERMS + 1):
        before, here = here, torch.addcmul(product * here, square, before, value=k - 1)
        series = torch.add(series, here, alpha=1.0 / math.factorial(k))
    return torch.where(total_vol < _SERIES_BELOW, series, plain)


def normalised_call(x: Tensor, total_vol: Tensor) -> Tensor:
    r"""$c(x, s) = \Phi(x/s + s/2) - e^{-x}\Phi(x/s - s/2)$ for x <= 0, s > 0, to full relative accuracy.

    Args:
        x: log of the smaller over the larger of forward and strike, zero or negative.
        total_vol: vol times the root of the expiry, above zero.

    Returns:
        The out-of-the-money price over the smaller of forward and strike, broadcast.
    """
    a, t = -x / total_vol, 0.5 * total_vol
    # far in d1 > 0 R(-d1) overflows: there it is one minus the two tails
    upper = a - t < -1.0
    sign = torch.where(upper, -1.0, 1.0).to(total_vol.dtype)
    scaled = normal_density(a - t) * mills_difference(a - t, a + t, total_vol, sign)
    return torch.where(upper, 1.0 - scaled, scaled)


def normal_tail_mean(a: Tensor) -> Tensor:
    r"""$E[(Z - a)^+] = \varphi(a) - a\,\Phi(-a)$ of a standard normal Z for a >= 0, to full relative accuracy."""
    # 1 - a R(a) loses a^2 eps; with the continued fraction R = 1 / (a + k), k = 1 / (a + 2 / (a + ...)), it is
    # k / (a + k), which loses nothing
    z = a.clamp(min=_FRACTION_ABOVE)
    tail = z
    for level in range(_FRACTION_LEVELS, 1, -1):
        tail = z + level / tail
    near = a.clamp(max=_FRACTION_ABOVE)
    factor = torch.where(a < _FRACTION_ABOVE, 1.0 - near * mills_ratio(near), 1.0 / (z * tail + 1.0))
    return normal_density(a) * factor
