r"""Characteristic functions of the log-ratio $X = \log(S_T / F_T)$, in real arithmetic: pure functions.

All take the argument $z = \mathrm{shift} + i u$ of $E\,e^{z X}$ as two real numbers and return the real and the
imaginary part of the logarithm. Everything broadcasts; give parameters an axis of length 1 where `u` has its own.
Complex `exp` and `log` of torch cost many times what the real ones do, so none is used.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pricers.parameters import broadcast_shape

__all__ = [
    "heston_cumulants",
    "heston_log_characteristic",
    "heston_log_moment",
    "jump_cumulants",
    "jump_log_characteristic",
    "jump_log_moment",
    "mean_variance",
    "normal_log_characteristic",
]

Complex = tuple[Tensor, Tensor]  # real and imaginary part


def _times(a: Complex, b: Complex) -> Complex:
    return torch.addcmul(a[0] * b[0], a[1], b[1], value=-1.0), torch.addcmul(a[0] * b[1], a[1], b[0])


def _over(a: Complex, b: Complex) -> Complex:
    inverse = torch.addcmul(b[0] * b[0], b[1], b[1]).reciprocal()
    real = torch.addcmul(a[0] * b[0], a[1], b[1])
    imaginary = torch.addcmul(a[1] * b[0], a[0], b[1], value=-1.0)
    return real * inverse, imaginary * inverse


def normal_log_characteristic(u: Tensor, variance: Tensor, shift: float = 0.0) -> Complex:
    r"""$\log E\,e^{z X}$ of a normal $X$ with $E\,e^X = 1$: $\tfrac12 w (z^2 - z)$.

    Args:
        u: real argument.
        variance: total variance $w$ of X.
        shift: real part of z.

    >>> one = torch.tensor(1.0, dtype=torch.float64)
    >>> [part.item() for part in normal_log_characteristic(one, 0.04 * one)]
    [-0.02, -0.02]
    """
    return -0.5 * variance * (u * u + shift * (1.0 - shift)), (shift - 0.5) * variance * u


def jump_log_characteristic(
    u: Tensor, expiry: Tensor, intensity: Tensor, jump_mean: Tensor, jump_std: Tensor, shift: float = 0.0
) -> Complex:
    r"""$\log E\,e^{z J}$ of compensated lognormal jumps: $\lambda T\,(e^{z m + z^2 s^2 / 2} - 1 - z\,\bar k)$.

    Args:
        u: real argument.
        expiry: years.
        intensity: $\lambda$, jumps a year.
        jump_mean: mean $m$ of the log jump.
        jump_std: standard deviation $s$ of the log jump.
        shift: real part of z.

    References:
        Merton (1976), Option pricing when underlying stock returns are discontinuous; Bates (1996), eq. 3.
    """
    spread = jump_std * jump_std
    growth = torch.expm1(jump_mean + 0.5 * spread)  # k bar, the mean relative jump
    size = torch.exp(shift * jump_mean + 0.5 * spread * (shift * shift - u * u))
    half = 0.5 * u * (jump_mean + shift * spread)
    sine = torch.sin(half)
    expected = intensity * expiry
    # cos x = 1 - 2 sin^2(x / 2): small arguments keep their digits
    real = expected * ((size - 1.0) - 2.0 * size * sine * sine - shift * growth)
    imaginary = expected * (2.0 * size * sine * torch.cos(half) - u * growth)
    return real, imaginary


def heston_log_characteristic(
    u: Tensor,
    expiry: Tensor,
    v0: Tensor,
    kappa: Tensor,
    theta: Tensor,
    sigma: Tensor,
    rho: Tensor,
    shift: float = 0.0,
) -> Complex:
    r"""$\log E\,e^{z X} = C + D v_0$ of Heston's model, without a branch cut and stable for small $\sigma$.

    With $p = z^2 - z$, $\beta = \kappa - \rho \sigma z$, $d = \sqrt{\beta^2 - \sigma^2 p}$ and
    $E = (1 - e^{-dT}) / 2d$, $A = p E / (\beta + d)$, the form of Albrecher et al. reads

    $$D = \frac{p E}{1 + \sigma^2 A},\qquad
      C = \kappa\theta\Bigl[\frac{p\,T}{\beta + d} - \frac{2}{\sigma^2} \log(1 + \sigma^2 A)\Bigr],$$

    where `log1p` keeps the limit of small sigma.

    Args:
        u: real argument; 0 needs kappa - rho sigma shift away from 0 (there d is 0).
        expiry: years.
        v0: variance today, per year.
        kappa: speed of mean reversion, per year.
        theta: long-run variance, per year.
        sigma: volatility of variance.
        rho: correlation of asset and variance.
        shift: real part of z, in [0, 1].

    References:
        Heston (1993), eq. 17; Albrecher, Mayer, Schoutens and Tistaert (2007), The little Heston trap, eq. 2;
        Lord and Kahl (2010), Complex logarithms in Heston-like models, theorem 3 (the principal branch is right).

    >>> values = [torch.tensor(value, dtype=torch.float64) for value in (1.0, 1.0, 0.04, 4.0, 0.25, 1.0, -0.5)]
    >>> [round(part.item(), 6) for part in heston_log_characteristic(*values)]
    [-0.10682, -0.088091]
    """
    vol_squared = sigma * sigma
    leverage = rho * sigma
    beta = kappa - shift * leverage
    u_squared = u * u
    # d^2 = x + i y; x > 0 as it is a sum of squares, so that the root has no branch to choose
    x = beta * beta + shift * (1.0 - shift) * vol_squared + (vol_squared * (1.0 - rho * rho)) * u_squared
    y = ((1.0 - 2.0 * shift) * vol_squared - 2.0 * beta * leverage) * u
    modulus = torch.sqrt(torch.addcmul(x * x, y, y))
    d_real = torch.sqrt(0.5 * (modulus + x))
    d_imag = 0.5 * y / d_real
    # 1 - exp(-d T), by the half angle
    fall = torch.expm1(-d_real * expiry)
    rest = 1.0 + fall
    half = 0.5 * expiry * d_imag
    sine = torch.sin(half)
    turned = 2.0 * rest * sine
    gone_real = torch.addcmul(-fall, turned, sine)
    gone_imag = turned * torch.cos(half)
    scale = 0.5 * modulus.reciprocal()  # 1 / 2d = conj(d) / 2|d|^2
    e_real = torch.addcmul(gone_real * d_real, gone_imag, d_imag) * scale
    e_imag = torch.addcmul(gone_imag * d_real, gone_real, d_imag, value=-1.0) * scale
    p_real = -u_squared if shift * (1.0 - shift) == 0.0 else -u_squared - shift * (1.0 - shift)
    p = p_real, (2.0 * shift - 1.0) * u
    q_real, q_imag = _over(p, (beta + d_real, d_imag - leverage * u))  # p / (beta + d)
    a_real, a_imag = _times((q_real, q_imag), (e_real, e_imag))
    w_real, w_imag = vol_squared * a_real, vol_squared * a_imag
    one = 1.0 + w_real
    log_real = torch.log1p(torch.addcmul(w_real * (1.0 + one), w_imag, w_imag))  # twice the real part
    log_imag = torch.atan2(w_imag, one)
    slope_real, slope_imag = _over(_times(p, (e_real, e_imag)), (one, w_imag))  # D
    pull = kappa * theta
    steady, curved = pull * expiry, -pull / vol_squared
    real = torch.addcmul(torch.addcmul(v0 * slope_real, steady, q_real), curved, log_real)
    imaginary = torch.addcmul(torch.addcmul(v0 * slope_imag, steady, q_imag), 2.0 * curved, log_imag)
    return real, imaginary


def jump_log_moment(order: Tensor, expiry: Tensor, intensity: Tensor, jump_mean: Tensor, jump_std: Tensor) -> Tensor:
    r"""$\log E\,e^{q J}$ of compensated lognormal jumps at a real order $q$; it is finite everywhere."""
    spread = jump_std * jump_std
    growth = torch.expm1(jump_mean + 0.5 * spread)
    # beyond exp(600) no bound is of use, and 0 jumps a year times infinity would be no number
    size = torch.expm1((order * jump_mean + 0.5 * spread * order * order).clamp(max=600.0))
    return intensity * expiry * (size - order * growth)


def heston_log_moment(
    order: Tensor, expiry: Tensor, v0: Tensor, kappa: Tensor, theta: Tensor, sigma: Tensor, rho: Tensor
) -> Tensor:
    r"""$\log E\,e^{q X}$ at a real order $q$, infinite where the moment is: what bounds the tails of the distribution.

    Args:
        order: $q$, any real number.
        expiry: years.
        v0: variance today, per year.
        kappa: speed of mean reversion, per year.
        theta: long-run variance, per year.
        sigma: volatility of variance.
        rho: correlation of asset and variance.

    References:
        Andersen and Piterbarg (2007), Moment explosions in stochastic volatility models, proposition 3.1.

    >>> values = [torch.tensor(value, dtype=torch.float64) for value in (1.0, 0.04, 4.0, 0.25, 1.0, -0.5)]
    >>> [round(heston_log_moment(torch.tensor(order), *values).item(), 4) for order in (1.0, 2.0, 200.0)]
    [0.0, 0.1705, inf]
    """
    p = order * (order - 1.0)
    vol_squared = sigma * sigma
    beta = kappa - rho * sigma * order
    square = beta * beta - vol_squared * p  # d^2; negative: d = i omega
    root = torch.sqrt(square.abs()).clamp(min=1e-12)
    angle = 0.5 * root * expiry
    # hyperbolic: e = exp(-d T), Q = (1 + e)/2 + beta (1 - e)/2d has the sign of the distance to the explosion
    gone = -torch.expm1(-2.0 * angle)
    e = 0.5 * gone / root
    q = 1.0 - 0.5 * gone + beta * e
    # (beta - d) / sigma^2, by the stable one of its two forms
    below = torch.where(beta > 0.0, p / (beta + root).clamp(min=1e-300), (beta - root) / vol_squared)
    hyperbolic = v0 * p * e / q + kappa * theta * (below * expiry - 2.0 * torch.log(q.clamp(min=1e-300)) / vol_squared)
    # trigonometric
    cosine = torch.cos(angle) + beta / root * torch.sin(angle)
    trigonometric = v0 * p * torch.sin(angle) / root / cosine + kappa * theta / vol_squared * (
        beta * expiry - 2.0 * torch.log(cosine.clamp(min=1e-300))
    )
    before = angle < torch.atan2(root, -beta)  # the first zero of the cosine form lies at the explosion
    infinite = torch.full_like(q, math.inf)
    return torch.where(
        square >= 0.0,
        torch.where((q > 0.0) | (p <= 0.0), hyperbolic, infinite),
        torch.where(before & (cosine > 0.0), trigonometric, infinite),
    )


def jump_cumulants(
    expiry: Tensor, intensity: Tensor, jump_mean: Tensor, jump_std: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """First, second and fourth cumulant of the compensated lognormal jumps up to `expiry`."""
    expected, square, spread = intensity * expiry, jump_mean * jump_mean, jump_std * jump_std
    growth = torch.expm1(jump_mean + 0.5 * spread)
    fourth = square * square + 6.0 * square * spread + 3.0 * spread * spread
    return expected * (jump_mean - growth), expected * (square + spread), expected * fourth


def mean_variance(expiry: Tensor, v0: Tensor, kappa: Tensor, theta: Tensor) -> Tensor:
    r"""$E\,\frac1T\int_0^T v_t\,dt = \theta + (v_0 - \theta)(1 - e^{-\kappa T}) / \kappa T$ of a square-root variance.

    >>> values = [torch.tensor(value, dtype=torch.float64) for value in (1.0, 0.04, 4.0, 0.25)]
    >>> round(mean_variance(*values).item(), 11)
    0.19846157104
    """
    x = kappa * expiry
    return theta - (v0 - theta) * torch.expm1(-x) / x


def heston_cumulants(
    expiry: Tensor, v0: Tensor, kappa: Tensor, theta: Tensor, sigma: Tensor, rho: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""First, second and fourth cumulant of $X$, well-conditioned for any $\kappa T$ and for small sigma.

    The Taylor coefficients of $\log E\,e^{z X}$ in $\zeta = \sigma z$, from
    $\tilde Q = \cosh\sqrt y + \tfrac12 \beta T \sinh\sqrt y / \sqrt y$, $y = (dT/2)^2$ a quadratic in $\zeta$:
    $C = \kappa\theta\sigma^{-2}(\beta T - 2 \log \tilde Q)$, $D = \tfrac12 p\,T \sinh\sqrt y / (\sqrt y \tilde Q)$.

    Args:
        expiry: years.
        v0: variance today, per year.
        kappa: speed of mean reversion, per year.
        theta: long-run variance, per year.
        sigma: volatility of variance.
        rho: correlation of asset and variance.

    References:
        Fang and Oosterlee (2008), A novel pricing method for European options, section 5.1 (the second cumulant).

    >>> values = [torch.tensor(value, dtype=torch.float64) for value in (1.0, 0.04, 4.0, 0.25, 1.0, -0.5)]
    >>> [round(value.item(), 6) for value in heston_cumulants(*values)]
    [-0.099231, 0.217858, 0.052636]
    """
    shape = broadcast_shape(expiry=expiry, v0=v0, kappa=kappa, theta=theta, sigma=sigma, rho=rho)
    expiry, kappa, sigma, rho = (tensor.expand(shape) for tensor in (expiry, kappa, sigma, rho))
    first = -0.5 * mean_variance(expiry, v0, kappa, theta) * expiry
    long = kappa * expiry > 40.0  # exp(-40) is below the last digit
    short_logs, short_ratio = _heston_jets(torch.where(long, 40.0 / kappa, expiry), kappa, sigma, rho)
    long_logs, long_ratio = _heston_jets_stationary(expiry, kappa, sigma, rho)
    logs = [torch.where(long, far, near) for near, far in zip(short_logs, long_logs, strict=True)]
    ratio = [torch.where(long, far, near) for near, far in zip(short_ratio, long_ratio, strict=True)]
    pull = -2.0 * kappa * theta
    second = pull * logs[2] + v0 * (ratio[0] - sigma * ratio[1])
    fourth = sigma**2 * (pull * logs[4] + v0 * (ratio[2] - sigma * ratio[3]))
    return first, 2.0 * second, 24.0 * fourth


Jet = list[Tensor]  # Taylor coefficients up to order 4


def _multiply(a: Jet, b: Jet) -> Jet:
    return [sum((a[i] * b[n - i] for i in range(1, n + 1)), a[0] * b[n]) for n in range(5)]


def _divide(a: Jet, b: Jet) -> Jet:
    quotient: Jet = []
    for n in range(5):
        rest = sum((quotient[i] * b[n - i] for i in range(n)), torch.zeros_like(b[0]))
        quotient.append((a[n] - rest) / b[0])
    return quotient


def _log(a: Jet) -> Jet:
    result = [torch.log(a[0])]
    for n in range(1, 5):
        rest = sum((i / n * result[i] * a[n - i] for i in range(1, n)), torch.zeros_like(a[0]))
        result.append((a[n] - rest) / a[0])
    return result


def _heston_jets(expiry: Tensor, kappa: Tensor, sigma: Tensor, rho: Tensor) -> tuple[Jet, Jet]:
    """Taylor coefficients in sigma z of log Q and of D / (z^2 - z), by entire functions."""
    zero = torch.zeros_like(kappa)
    quarter = 0.25 * expiry * expiry
    y = quarter * kappa * kappa
    step: Jet = [zero, quarter * (sigma - 2.0 * kappa * rho), quarter * (rho * rho - 1.0), zero, zero]
    # derivatives G_n of sinh(sqrt y) / sqrt y: the highest two by their series, the rest by 4 y G'' + 6 G' = G and its
    # derivatives; for y >= 0 every term is positive
    high, higher = (_sinhc_derivative(y, n) for n in (4, 5))
    derivatives = [higher, high]
    for n in range(3, -1, -1):
        derivatives.append((4.0 * n + 6.0) * derivatives[-1] + 4.0 * y * derivatives[-2])
    derivatives = derivatives[::-1]  # G_0 .. G_5
    # cosh(sqrt y) = G + 2 y G'
    cosh = [(2.0 * n + 1.0) * derivatives[n] + 2.0 * y * derivatives[n + 1] for n in range(5)]
    sinhc_jet, cosh_jet = _compose(derivatives[:5], step), _compose(cosh, step)
    half_beta: Jet = [0.5 * kappa * expiry, -0.5 * rho * expiry, zero, zero, zero]
    q = [c + s for c, s in zip(cosh_jet, _multiply(half_beta, sinhc_jet), strict=True)]
    ratio = _divide([0.5 * expiry * s for s in sinhc_jet], q)
    return _log(q), ratio


def _heston_jets_stationary(expiry: Tensor, kappa: Tensor, sigma: Tensor, rho: Tensor) -> tuple[Jet, Jet]:
    """The same where exp(-kappa T) is nothing: Q = exp(d T / 2) (1 + beta / d) / 2, D / (z^2 - z) = 1 / (beta + d)."""
    zero = torch.zeros_like(kappa)
    square: Jet = [kappa * kappa, sigma - 2.0 * kappa * rho, rho * rho - 1.0, zero, zero]
    d: Jet = [kappa]
    for n in range(1, 5):
        rest = sum((d[i] * d[n - i] for i in range(1, n)), zero)
        d.append((square[n] - rest) / (2.0 * kappa))
    total = [kappa + d[0], d[1] - rho, d[2], d[3], d[4]]
    logs = [0.5 * expiry * a + b - c for a, b, c in zip(d, _log(total), _log(d), strict=True)]
    one: Jet = [torch.ones_like(kappa), zero, zero, zero, zero]
    return logs, _divide(one, total)


def _sinhc_derivative(y: Tensor, n: int) -> Tensor:
    """The n-th derivative of sinh(sqrt y) / sqrt y at 0 <= y <= 400."""
    # sum over j of (j + n)! / j! y^j / (2 j + 2 n + 1)!, by Horner's rule
    n_terms = 60
    ratios = [(j + n) / j / ((2 * (j + n) + 1) * (2 * (j + n))) for j in range(1, n_terms)]
    total = torch.ones_like(y)
    for ratio in reversed(ratios):
        total = 1.0 + ratio * y * total
    return total * (math.factorial(n) / math.factorial(2 * n + 1))


def _compose(derivatives: Jet, step: Jet) -> Jet:
    """Taylor coefficients of f(y + step) from the derivatives of f at y; `step` has no constant term."""
    result = [torch.zeros_like(step[0]) for _ in range(5)]
    power: Jet = [torch.ones_like(step[0]), *result[1:]]
    for n, derivative in enumerate(derivatives):
        result = [r + derivative / math.factorial(n) * p for r, p in zip(result, power, strict=True)]
        power = _multiply(power, step)
    return result
