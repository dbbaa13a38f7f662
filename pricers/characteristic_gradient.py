r"""Heston's and Bates' characteristic functions with their gradients by the parameters, in real arithmetic.

What a calibration needs: $\log E\,e^{z X}$ on the line $z = \tfrac12 + i u$ of Lewis' integral, $X = \log(S_T / F_T)$,
and its derivatives, written out. On that line $z^2 - z = -(u^2 + \tfrac14)$ is real, which saves a third of the work.
A complex number is a pair of tensors, real and imaginary part; everything broadcasts.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["heston_on_the_line", "heston_on_the_line_with_gradient", "jumps_on_the_line_with_gradient"]

Complex = tuple[Tensor, Tensor]


def _times(a: Complex, b: Complex) -> Complex:
    return torch.addcmul(a[0] * b[0], a[1], b[1], value=-1.0), torch.addcmul(a[0] * b[1], a[1], b[0])


def _square(a: Complex) -> Complex:
    return torch.addcmul(a[0] * a[0], a[1], a[1], value=-1.0), 2.0 * a[0] * a[1]


def _over(a: Complex, b: Complex) -> Complex:
    inverse = torch.addcmul(b[0] * b[0], b[1], b[1]).reciprocal()
    real = torch.addcmul(a[0] * b[0], a[1], b[1])
    imaginary = torch.addcmul(a[1] * b[0], a[0], b[1], value=-1.0)
    return real * inverse, imaginary * inverse


def heston_on_the_line(
    u: Tensor, expiry: Tensor, v0: Tensor, kappa: Tensor, theta: Tensor, sigma: Tensor, rho: Tensor
) -> Complex:
    r"""$\log E\,e^{(1/2 + iu) X}$ of Heston's model: `heston_log_characteristic` with shift 1/2, in fewer operations.

    Args:
        u: real argument.
        expiry: years.
        v0: variance today, per year.
        kappa: speed of mean reversion, per year.
        theta: long-run variance, per year.
        sigma: volatility of variance.
        rho: correlation of asset and variance.

    >>> values = [torch.tensor(value, dtype=torch.float64) for value in (1.0, 1.0, 0.04, 4.0, 0.25, 1.0, -0.5)]
    >>> [round(part.item(), 6) for part in heston_on_the_line(*values)]
    [-0.116789, 0.00982]
    """
    pieces = _Pieces(u, expiry, v0, kappa, theta, sigma, rho)
    return pieces.value()


def heston_on_the_line_with_gradient(
    u: Tensor, expiry: Tensor, v0: Tensor, kappa: Tensor, theta: Tensor, sigma: Tensor, rho: Tensor
) -> tuple[Complex, tuple[Complex, ...]]:
    r"""$\psi(u) = \log E\,e^{(1/2 + iu) X}$ of Heston's model and its derivatives by the parameters.

    With $p = -(u^2 + \tfrac14)$, $b = \kappa - \rho\sigma z$, $d = \sqrt{b^2 - \sigma^2 p}$, $e = e^{-dT}$ and
    $Q = (d + b) + (d - b) e$ the exponent is $\psi = v_0 D + \kappa\theta I$ with

    $$D = p\,\frac{1 - e}{Q},\qquad I = \frac{1}{\sigma^2}\Bigl[(b - d) T - 2 \log\frac{Q}{2d}\Bigr].$$

    As functions of $b$ and $d$: $D_b = -D^2 / p$, $D_d = p\,(2dTe - (1 - e^2)) / Q^2$, $\sigma^2 I_b = T - 2D/p$,
    $\sigma^2 I_d = -T - 2 (1 + e - T e (d - b)) / Q + 2 / d$; then $\partial d / \partial b = b / d$ and
    $\partial d / \partial \sigma^2 = -p / 2d$.

    Args:
        u: real argument.
        expiry: years.
        v0: variance today, per year.
        kappa: speed of mean reversion, per year.
        theta: long-run variance, per year.
        sigma: volatility of variance.
        rho: correlation of asset and variance.

    Returns:
        The exponent, and its five derivatives in the order of the parameters.

    References:
        Cui, del Bano Rollin and Germano (2017), Full and fast calibration of the Heston stochastic volatility model,
        section 3 (a gradient in closed form; this one is another arrangement, by b and d).

    >>> values = [torch.tensor(value, dtype=torch.float64) for value in (1.0, 1.0, 0.04, 4.0, 0.25, 1.0, -0.5)]
    >>> _, gradient = heston_on_the_line_with_gradient(*values)
    >>> [round(real.item(), 6) for real, _ in gradient]
    [-0.14129, -0.008356, -0.444549, 0.008641, -0.012728]
    """
    pieces = _Pieces(u, expiry, v0, kappa, theta, sigma, rho)
    return pieces.value(), pieces.gradient()


class _Pieces:
    """The quantities that value and gradient share."""

    def __init__(
        self, u: Tensor, expiry: Tensor, v0: Tensor, kappa: Tensor, theta: Tensor, sigma: Tensor, rho: Tensor
    ) -> None:
        self.u, self.expiry = u, expiry
        self.v0, self.kappa, self.theta, self.sigma, self.rho = v0, kappa, theta, sigma, rho
        self.variance_rate = sigma * sigma
        leverage = rho * sigma
        beta = kappa - 0.5 * leverage
        self.minus_p = torch.addcmul(torch.full_like(u, 0.25), u, u)
        u_leverage = leverage * u
        # d^2 = x + i y; x > 0 as it is a sum of squares, so that the root has no branch to choose
        x = torch.addcmul(
            beta * beta + 0.25 * self.variance_rate, self.variance_rate * (1.0 - rho * rho), self.minus_p - 0.25
        )
        y = -2.0 * beta * u_leverage
        modulus = torch.sqrt(torch.addcmul(x * x, y, y))
        d_real = torch.sqrt(0.5 * (modulus + x))
        d_imag = 0.5 * y / d_real
        self.modulus = modulus
        self.b: Complex = (beta, -u_leverage)
        self.d: Complex = (d_real, d_imag)
        # 1 - e by the half angle
        fall = torch.expm1(-d_real * expiry)
        self.decay = 1.0 + fall
        half = 0.5 * expiry * d_imag
        sine = torch.sin(half)
        turned = 2.0 * self.decay * sine
        self.gone: Complex = (torch.addcmul(-fall, turned, sine), turned * torch.cos(half))  # 1 - e
        self.sum_: Complex = (beta + d_real, d_imag - u_leverage)  # d + b
        # (b - d) = sigma^2 p / (d + b): the difference without cancellation
        inverse = torch.addcmul(self.sum_[0] * self.sum_[0], self.sum_[1], self.sum_[1]).reciprocal_()
        scaled = inverse * self.minus_p
        self.q: Complex = (-scaled * self.sum_[0], scaled * self.sum_[1])  # p / (d + b) = (b - d) / sigma^2
        # 1 + w = Q / 2d with w = sigma^2 q (1 - e) / 2d
        scale = (0.5 * self.variance_rate) / modulus
        e_real = torch.addcmul(self.gone[0] * d_real, self.gone[1], d_imag) * scale
        e_imag = torch.addcmul(self.gone[1] * d_real, self.gone[0], d_imag, value=-1.0) * scale
        w = _times(self.q, (e_real, e_imag))
        one = 1.0 + w[0]
        self.log_real = torch.log1p(torch.addcmul(w[0] * (1.0 + one), w[1], w[1]))  # twice the real part
        self.log_imag = torch.atan2(w[1], one)
        # D = p (1 - e) / Q, with Q = 2 d (1 + w)
        ratio = _over((e_real, e_imag), (one, w[1]))  # sigma^2 (1 - e) / Q
        self.slope_per_p: Complex = (ratio[0] / self.variance_rate, ratio[1] / self.variance_rate)  # (1 - e) / Q
        self.slope: Complex = (-self.minus_p * self.slope_per_p[0], -self.minus_p * self.slope_per_p[1])
        curved = 1.0 / self.variance_rate
        self.integral: Complex = (
            torch.addcmul(expiry * self.q[0], -curved, self.log_real),
            torch.addcmul(expiry * self.q[1], -2.0 * curved, self.log_imag),
        )
        self.one_plus_w: Complex = (one, w[1])

    def value(self) -> Complex:
        pull = self.kappa * self.theta
        return (
            torch.addcmul(self.v0 * self.slope[0], pull, self.integral[0]),
            torch.addcmul(self.v0 * self.slope[1], pull, self.integral[1]),
        )

    def gradient(self) -> tuple[Complex, ...]:
        expiry, d = self.expiry, self.d
        pull = self.kappa * self.theta
        rate = pull / self.variance_rate
        e: Complex = (1.0 - self.gone[0], -self.gone[1])
        big: Complex = _times((2.0 * d[0], 2.0 * d[1]), self.one_plus_w)  # Q
        inverse = torch.addcmul(big[0] * big[0], big[1], big[1]).reciprocal_()
        per_q: Complex = (big[0] * inverse, -big[1] * inverse)  # 1 / Q
        te: Complex = (expiry * e[0], expiry * e[1])
        # D_d = p (2 d T e - (1 - e)(1 + e)) / Q^2
        first = _times((2.0 * d[0], 2.0 * d[1]), te)
        second = _times(self.gone, (1.0 + e[0], e[1]))
        slope_d = _times((first[0] - second[0], first[1] - second[1]), _square(per_q))
        # (1 + e - T e (d - b)) / Q, where d - b = -sigma^2 q
        turned = _times(te, self.q)
        inner = _times(
            (
                torch.addcmul(1.0 + e[0], self.variance_rate, turned[0]),
                torch.addcmul(e[1], self.variance_rate, turned[1]),
            ),
            per_q,
        )
        per_d = self.modulus.reciprocal()
        inverse_d: Complex = (d[0] * per_d, -d[1] * per_d)
        v0_p = -self.v0 * self.minus_p
        psi_d: Complex = (
            torch.addcmul(rate * (2.0 * (inverse_d[0] - inner[0]) - expiry), v0_p, slope_d[0]),
            torch.addcmul(rate * (2.0 * (inverse_d[1] - inner[1])), v0_p, slope_d[1]),
        )
        along = _times(psi_d, inverse_d)  # psi_d / d
        square = _square(self.slope_per_p)  # D^2 / p^2
        partial: Complex = (
            torch.addcmul(rate * (expiry - 2.0 * self.slope_per_p[0]), -v0_p, square[0]),
            torch.addcmul(-2.0 * rate * self.slope_per_p[1], -v0_p, square[1]),
        )
        swing = _times(self.b, along)
        psi_b: Complex = (partial[0] + swing[0], partial[1] + swing[1])
        half_p = self.minus_p * self.sigma  # 2 sigma * (-p / 2)
        pulled = 2.0 * pull / self.sigma
        # z psi_b
        z_real = torch.addcmul(0.5 * psi_b[0], self.u, psi_b[1], value=-1.0)
        z_imag = torch.addcmul(0.5 * psi_b[1], self.u, psi_b[0])
        by_sigma: Complex = (
            torch.addcmul(half_p * along[0], pulled, self.integral[0], value=-1.0).addcmul_(
                self.rho, z_real, value=-1.0
            ),
            torch.addcmul(half_p * along[1], pulled, self.integral[1], value=-1.0).addcmul_(
                self.rho, z_imag, value=-1.0
            ),
        )
        return (
            self.slope,
            (
                torch.addcmul(psi_b[0], self.theta, self.integral[0]),
                torch.addcmul(psi_b[1], self.theta, self.integral[1]),
            ),
            (self.kappa * self.integral[0], self.kappa * self.integral[1]),
            by_sigma,
            (-self.sigma * z_real, -self.sigma * z_imag),
        )


def jumps_on_the_line_with_gradient(
    u: Tensor, expiry: Tensor, intensity: Tensor, jump_mean: Tensor, jump_std: Tensor
) -> tuple[Complex, tuple[Complex, ...]]:
    r"""$\log E\,e^{(1/2 + iu) J}$ of compensated lognormal jumps, and its derivatives by $\lambda, m, s$.

    With $z = \tfrac12 + iu$ and $G = e^{z m + z^2 s^2 / 2}$: $\lambda T\,[G - 1 - z\,(e^{m + s^2/2} - 1)]$, whose
    derivatives by $m$ and $s$ are $\lambda T z\,[G - e^{m + s^2/2}]$ and $\lambda T s z\,[z G - e^{m + s^2/2}]$.

    Args:
        u: real argument.
        expiry: years.
        intensity: jumps a year.
        jump_mean: mean of the log jump.
        jump_std: standard deviation of the log jump.

    Returns:
        The exponent, and its three derivatives in the order of the parameters.

    References:
        Merton (1976), Option pricing when underlying stock returns are discontinuous; Bates (1996), eq. 3.

    >>> values = [torch.tensor(value, dtype=torch.float64) for value in (1.0, 1.0, 0.3, -0.27, 0.27)]
    >>> value, gradient = jumps_on_the_line_with_gradient(*values)
    >>> [round(real.item(), 6) for real, _ in (value, *gradient)]
    [-0.020636, -0.068786, 0.064329, -0.066372]
    """
    spread = jump_std * jump_std
    mean = torch.exp(jump_mean + 0.5 * spread)
    growth = torch.expm1(jump_mean + 0.5 * spread)
    size = torch.exp(0.5 * jump_mean + 0.5 * spread * (0.25 - u * u))
    angle = u * (jump_mean + 0.5 * spread)
    g: Complex = (size * torch.cos(angle), size * torch.sin(angle))
    expected = intensity * expiry
    unit: Complex = (g[0] - 1.0 - 0.5 * growth, g[1] - u * growth)
    moved: Complex = (g[0] - mean, g[1])
    by_mean = _times((torch.full_like(u, 0.5), u), moved)
    zg = _times((torch.full_like(u, 0.5), u), g)
    by_std = _times((torch.full_like(u, 0.5), u), (zg[0] - mean, zg[1]))
    swing = expected * jump_std
    return (expected * unit[0], expected * unit[1]), (
        (expiry * unit[0], expiry * unit[1]),
        (expected * by_mean[0], expected * by_mean[1]),
        (swing * by_std[0], swing * by_std[1]),
    )
