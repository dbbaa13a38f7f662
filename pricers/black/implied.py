r"""Implied vols in bulk, to machine accuracy, with derivatives by the implicit function theorem.

An in-the-money price is first turned into the out-of-the-money one by parity. With $c$ the price over the smaller of
forward and strike, the total vol $s$ solves $\log c(x, s) = \log c$ where $c \le 1/2$, and $\log(1 - c(x, s)) =
\log(1 - c)$ above: near the upper bound it is the distance from it that knows the vol. In logarithms the equation is
close to a quadratic in $1/s$ or $s$, so that two Householder steps of order four from a guess within a few per cent
end at rounding level; every element takes the same two steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pricers.black.normalised import log_ratio, mills_difference, normal_tail_mean
from pricers.normal import SQRT_2PI, mills_ratio, normal_density

__all__ = ["bachelier_total_vol", "black_total_vol"]

_STEPS = 2
_NORMAL_STEPS = 2
_GUESS_SWITCH = 2.0  # total vol from which the guess of small total vols gives way
_LOG_TINY = -600.0  # log price from which the quotient of price and bound may have underflown
# log1p(r / sqrt(2 pi)) / a as a ratio of polynomials in the root of the numerator, where r = a / E[(Z - a)^+];
# fitted to 8e-4 on 0 <= a <= 40
_NUMERATOR = (1.0, 0.31496325880897025, 0.8065129326323514, -0.05406864439011106, 0.22070373953128536)
_DENOMINATOR = (1.0, 0.3315646245121493, -0.13646873369092125, 0.31314840891870854)


def black_total_vol(price: Tensor, forward: Tensor, strike: Tensor, is_call: bool) -> Tensor:
    """Total vol (vol times the root of the expiry) of undiscounted Black-76 prices; NaN where there is none.

    Arguments are float64 and not checked otherwise. Derivatives are right to third order, in reverse and forward mode;
    NaN elements have zero gradients.
    """
    call_is_out = strike >= forward
    low, high = torch.where(call_is_out, forward, strike), torch.where(call_is_out, strike, forward)
    out = torch.where(call_is_out == is_call, price, price - (high - low))
    valid = (out > 0) & (out < low) & (low > 0) & (high < math.inf)
    return _where_valid(_black_root, valid, (out, low, high), (0.25, 1.0, 1.0))


def bachelier_total_vol(price: Tensor, forward: Tensor, strike: Tensor, is_call: bool) -> Tensor:
    """Normal total vol of undiscounted Bachelier prices; NaN where there is none. As `black_total_vol`."""
    call_is_out = strike >= forward
    distance = torch.where(call_is_out, strike - forward, forward - strike)
    out = torch.where(call_is_out == is_call, price, price - distance)
    valid = (out > 0) & (out < math.inf) & (distance < math.inf)
    return _where_valid(_bachelier_root, valid, (out, distance), (1.0, 1.0))


def _where_valid(
    root: Callable[..., Tensor], valid: Tensor, arguments: tuple[Tensor, ...], safe: tuple[float, ...]
) -> Tensor:
    """`root` of the valid elements, NaN for the others, which see safe arguments so that no gradient is NaN."""
    kept = (torch.where(valid, argument, number) for argument, number in zip(arguments, safe, strict=True))
    return torch.where(valid, root(*kept), math.nan)


def _black_root(price: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Total vol, differentiable: the inverse series of the price at the detached root, whose value is the root."""
    x = log_ratio(low, high)
    at = x.detach()
    root = _solve_black(price.detach(), low.detach(), at)
    middle = at / root
    # c(x, root) as a series in x, over c_s: c_x = phi(d1) R(-d2) = exp(-x) Phi(d2), c_xx = phi(d1) / s - c_x
    by_x = mills_ratio(0.5 * root - middle)
    by_x2 = 1.0 / root - by_x
    by_x3 = -by_x2 - (middle + 0.5 * root) / (root * root)
    shift = _zero(x)
    series = shift * (by_x + shift * (0.5 * by_x2 + shift * (by_x3 / 6.0)))
    density = normal_density(x / root + 0.5 * root)
    residual = (_zero(price / low) - density.detach() * series) / density
    # c_ss / c_s and its slope by total vol
    curvature = (x / root).square() / root - 0.25 * root
    slope = -3.0 * (x / root / root).square() - 0.25
    return root + _inverse_series(residual, curvature, slope)


def _bachelier_root(price: Tensor, distance: Tensor) -> Tensor:
    root = _solve_bachelier(price.detach(), distance.detach())
    a = distance / root
    residual = _zero((price - root * normal_tail_mean(a)) / normal_density(a))
    curvature = a.square() / root
    return root + _inverse_series(residual, curvature, -3.0 * (a / root).square())


def _inverse_series(residual: Tensor, curvature: Tensor, slope: Tensor) -> Tensor:
    """Root shift by the residual over the slope of the price, to third order."""
    cubic = curvature.square() / 3.0 - slope / 6.0
    return residual * (1.0 - residual * (0.5 * curvature - residual * cubic))


def _zero(number: Tensor) -> Tensor:
    """Zero with the derivatives of `number`."""
    return number - number.detach()


def _solve_black(price: Tensor, low: Tensor, x: Tensor) -> Tensor:
    upper = price > 0.5 * low
    ratio = price / low
    target = torch.log(torch.where(upper, (low - price) / low, ratio))
    # a quotient under the smallest float has no logarithm; the difference of two always has one
    target = torch.where(target < _LOG_TINY, torch.log(price) - torch.log(low), target)
    sign = torch.where(upper, -1.0, 1.0).to(x.dtype)
    total_vol = _black_guess(x, ratio, target, sign)
    for _ in range(_STEPS):
        total_vol = _black_step(total_vol, x, target, sign)
    return total_vol


def _black_step(total_vol: Tensor, x: Tensor, target: Tensor, sign: Tensor) -> Tensor:
    """One Householder step of order four on the log of the price, or of its distance from the upper bound."""
    a, t = -x / total_vol, 0.5 * total_vol
    minus_d1 = a - t
    tails = mills_difference(minus_d1, a + t, total_vol, sign)
    log_error = torch.log(tails / SQRT_2PI) - 0.5 * minus_d1 * minus_d1 - target
    inverse = sign * tails  # 1 / (log c)'
    slope = 1.0 / inverse
    curvature = (a * a - t * t) / total_vol  # c'' / c'
    second = curvature - slope  # (log c)'' / (log c)'
    third = curvature * (curvature - 3.0 * slope) + 2.0 * slope * slope - 3.0 * (a / total_vol).square() - 0.25
    newton = -log_error * inverse
    return total_vol + newton * (1.0 + 0.5 * second * newton) / (1.0 + newton * (second + third * newton / 6.0))


def _black_guess(x: Tensor, ratio: Tensor, target: Tensor, sign: Tensor) -> Tensor:
    """Total vol within a few per cent (10 % at the worst, near the switch)."""
    small = _normal_guess(ratio * torch.exp(0.5 * x), -x)
    square = small * small
    # Black against Bachelier to next order: 1 + s^2 / 24 at the money, 1 + s^2 / (8 a^2) far out of it
    small = small * (1.0 + square / (24.0 + 8.0 * (x * x / square)))
    return torch.where(square < _GUESS_SWITCH**2, small, _quantile_guess(x, target, sign))


def _normal_guess(price: Tensor, distance: Tensor) -> Tensor:
    """Normal total vol to 8e-4 from price and distance of forward and strike."""
    r = distance / price + 1e-30  # keeps the quotient below at the money, where it is sqrt(2 pi)
    log_r = torch.log1p(r / SQRT_2PI)
    root = log_r.sqrt()
    return price * (r / log_r) * (_polynomial(_NUMERATOR, root) / _polynomial(_DENOMINATOR, root))


def _quantile_guess(x: Tensor, target: Tensor, sign: Tensor) -> Tensor:
    """Total vol from d1: c = Phi(d1) (1 - q), q = R(-d2) / R(-d1), where q follows from the last d1 and a rough R."""
    quantile = _rough_quantile(target)
    for _ in range(2):
        share = _rough_mills(torch.sqrt(quantile * quantile - 2.0 * x)) / _rough_mills(-quantile)
        quantile = _rough_quantile(target - torch.log1p(-sign * share))
    d1 = sign * quantile
    root = torch.sqrt(d1 * d1 - 2.0 * x)
    return torch.where(d1 > 0, d1 + root, -2.0 * x / (root - d1))


def _rough_quantile(log_probability: Tensor) -> Tensor:
    """Normal quantile to 5e-4 for probabilities up to 1/2, Abramowitz and Stegun (1964), equation 26.2.23."""
    t = torch.sqrt(-2.0 * log_probability)
    return ((0.010328 * t + 0.802853) * t + 2.515517) / (((0.001308 * t + 0.189269) * t + 1.432788) * t + 1.0) - t


def _rough_mills(z: Tensor) -> Tensor:
    """Mills' ratio to half a per cent for z >= 0, Boyd (1959)."""
    return math.pi / ((math.pi - 1.0) * z + torch.sqrt(z * z + 2.0 * math.pi))


def _solve_bachelier(price: Tensor, distance: Tensor) -> Tensor:
    total_vol = _normal_guess(price, distance)
    for _ in range(_NORMAL_STEPS):
        a = distance / total_vol
        mean = normal_tail_mean(a)
        error = torch.log(total_vol * mean / price)
        slope = normal_density(a) / (total_vol * mean)
        curvature = a * a / total_vol
        second = curvature - slope
        third = curvature * (curvature - 3.0 * slope) + 2.0 * slope * slope - 3.0 * (a / total_vol).square()
        newton = -error / slope
        total_vol = total_vol + newton * (1.0 + 0.5 * second * newton) / (
            1.0 + newton * (second + third * newton / 6.0)
        )
    return total_vol


def _polynomial(coefficients: tuple[float, ...], z: Tensor) -> Tensor:
    total = torch.full_like(z, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * z + coefficient
    return total
