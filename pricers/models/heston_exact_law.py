r"""The law of Heston's variance over a step, and of its integral given both ends: quantiles by inversion."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["distribution", "integral_quantiles", "too_short", "variance_quantiles"]

MOST_COUNTS = 20_000  # terms of a Poisson mixture; a shorter step needs more
N_VALUES = 160  # places at which the distribution function of one state is inverted
N_SHARED = 1200  # the same for places that all states share
N_TERMS, N_AVERAGED, DAMPING = 30, 12, 22.0  # of the inversion of a Laplace transform: e^-22 is its error


def too_short(dt: float, sigma: float) -> str:
    """Why a step has no table."""
    return (
        f"a step of {dt:.3g} years at `sigma` = {sigma:.3g} is too short for the scheme 'exact': the variance hardly "
        "moves; 'qe-m' is right for it"
    )


def variance_quantiles(kappa: float, theta: float, sigma: float, dt: float, roots: Tensor, normals: Tensor) -> Tensor:
    r"""The variance after a step: its quantiles, given the variance before.

    It is $c$ times a noncentral chi-squared with $4 \kappa \theta / \sigma^2$ degrees of freedom,
    $c = \sigma^2 (1 - e^{-\kappa\Delta}) / (4\kappa)$: a mixture of gamma laws by a Poisson count. With one grid of
    values for all states, its distribution function is a matrix product of Poisson and gamma weights, all positive.

    Args:
        kappa: speed of reversion.
        theta: level of reversion.
        sigma: volatility of the variance.
        dt: length of the step, years.
        roots: roots of the variance before, shape `(n_states,)`.
        normals: standard normals whose probabilities the quantiles belong to, ascending; shape `(n_normals,)`.

    Returns:
        Shape `n_states n_normals`.

    References:
        Broadie and Kaya (2006), Exact simulation of stochastic volatility and other affine jump diffusion processes,
        eq. 9. van Haastrecht and Pelsser (2010), Efficient, almost exact simulation of the Heston model.
    """
    shape = 2.0 * kappa * theta / sigma**2
    double = -(sigma**2) * math.expm1(-kappa * dt) / (2.0 * kappa)  # 2 c
    intensity = roots**2 * math.exp(-kappa * dt) / double  # of the Poisson count
    highest = (math.sqrt(intensity.max().item() + shape) + 7.0) ** 2
    n_counts = int(highest + 10.0 * math.sqrt(highest)) + 20
    if n_counts > MOST_COUNTS:
        raise ValueError(too_short(dt, sigma))
    # values in units of 2 c: evenly spaced in their root, and geometrically down to 0
    even = torch.arange(1, int(math.sqrt(highest) / 0.02) + 2, dtype=torch.float64) * 0.02
    small = torch.logspace(-90.0, math.log10(0.02), 600, dtype=torch.float64)[:-1]
    values = torch.cat([small, even]) ** 2
    counts = torch.arange(n_counts, dtype=torch.float64)
    log_value = values.log()
    terms = torch.exp(counts[:, None] * log_value - values - torch.lgamma(counts + shape + 1.0)[:, None])
    terms = terms * torch.exp(shape * log_value)  # x^(a + k) e^-x / Gamma(a + k + 1)
    log_counts = torch.where(intensity > 0, intensity, 1.0).log()[:, None] * counts - torch.lgamma(counts + 1.0)
    weights = torch.exp(log_counts - intensity[:, None])
    weights[intensity == 0.0] = torch.eye(1, n_counts, dtype=torch.float64)
    up_to = weights.cumsum(-1).clamp(max=1.0)
    beyond = weights.flip(-1).cumsum(-1).flip(-1) - weights
    below = up_to @ terms
    above = torch.special.gammaincc(values.new_tensor(shape), values) + beyond.clamp(min=0.0) @ terms
    density = (weights @ (terms * (counts[:, None] + shape))) / values
    normal = torch.where(below < 0.5, torch.special.ndtri(below), -torch.special.ndtri(above))
    return double * _inverted(normal, density, values, normals)


def _inverted(normal: Tensor, density: Tensor, values: Tensor, aims: Tensor) -> Tensor:
    """Values at the normals `aims`, for rows of `normal` at ascending `values`: cubic in the logarithm."""
    found: list[Tensor] = []
    for row, dense, at in zip(normal, density, values.expand_as(normal), strict=True):
        usable = row.isfinite() & (dense > 0.0)
        usable[1:] &= row[1:] > row.nan_to_num(nan=-1e3, neginf=-1e3, posinf=1e3).cummax(0).values[:-1] + 1e-9
        x, y = row[usable], at[usable].log()
        if x.shape[0] < 2:  # all at 0
            found.append(torch.zeros_like(aims))
            continue
        # d log(value) / d normal = phi(normal) / (density value)
        slope = torch.exp(-0.5 * x * x - y) / (math.sqrt(2.0 * math.pi) * dense[usable])
        right = torch.searchsorted(x, aims).clamp(1, x.shape[0] - 1)
        left = right - 1
        width, gap = x[right] - x[left], y[right] - y[left]
        share = ((aims - x[left]) / width).clamp(0.0, 1.0)
        start, end = slope[left] * width - gap, gap - slope[right] * width
        inside = y[left] + share * gap + share * (1.0 - share) * ((1.0 - share) * start + share * end)
        found.append(torch.exp(inside + slope[0] * (aims - x[0]).clamp(max=0.0)))
    return torch.stack(found)


Pair = tuple[Tensor, Tensor]  # real and imaginary part: torch's complex functions are slow


def distribution(transform: Callable[[Tensor, Tensor], Pair], values: Tensor) -> Pair:
    r"""Distribution function and density of a positive number from $E e^{-bX}$, at `values`.

    Args:
        transform: real and imaginary part of the Laplace transform at real and imaginary parts of b, of the shape of
            `values` and one more axis.
        values: above 0.

    References:
        Abate and Whitt (1995), Numerical inversion of Laplace transforms of probability distributions, section 1.
    """
    real, imag, by_real, by_imag, by_density = _euler(values)
    phi, psi = transform(real, imag)
    return (phi * by_real + psi * by_imag).sum(-1), (phi * by_density).sum(-1)


def _euler(values: Tensor) -> tuple[Tensor, ...]:
    """Where a Laplace transform is looked at, and the weights of its parts in distribution function and density."""
    k = torch.arange(N_TERMS + N_AVERAGED + 1, dtype=values.dtype)
    imag = math.pi * k / values.unsqueeze(-1)
    real = (0.5 * DAMPING / values).unsqueeze(-1).expand_as(imag)
    # Euler's summation: the partial sums from N_TERMS on, averaged by binomial weights
    binomial = [math.comb(N_AVERAGED, j) / 2.0**N_AVERAGED for j in range(N_AVERAGED + 1)]
    share = [sum(binomial[max(0, index - N_TERMS) :]) for index in range(len(k))]
    weights = torch.tensor(share, dtype=values.dtype) * (1.0 - 2.0 * (k % 2))
    weights[0] *= 0.5
    weights = weights * math.exp(0.5 * DAMPING) / values.unsqueeze(-1)
    size = real**2 + imag**2
    return real, imag, weights * real / size, weights * imag / size, weights


def _transform_parts(kappa: float, sigma: float, dt: float, real: Tensor, imag: Tensor) -> tuple[Pair, Pair]:
    r"""$\gamma = \sqrt{\kappa^2 + 2 \sigma^2 b}$ by way of $\coth(\gamma \Delta / 2)\,\gamma$ and $\log r$.

    $r = \gamma \sinh(\kappa\Delta / 2) / (\kappa \sinh(\gamma\Delta / 2))$.
    """
    x, y = kappa**2 + 2.0 * sigma**2 * real, 2.0 * sigma**2 * imag
    root = torch.sqrt(0.5 * (torch.hypot(x, y) + x))
    turn = 0.5 * y / root
    small = torch.exp(-dt * root)
    near, far = small * torch.cos(dt * turn), -small * torch.sin(dt * turn)  # e^{-gamma dt}
    size = (1.0 - near) ** 2 + far**2
    # coth = (1 + e) / (1 - e)
    coth = ((1.0 - near**2 - far**2) / size, 2.0 * far / size)
    product = (root * coth[0] - turn * coth[1], root * coth[1] + turn * coth[0])
    constant = math.log(math.sinh(0.5 * kappa * dt) / kappa) + math.log(2.0)
    log_r = (
        constant + 0.5 * torch.log((root**2 + turn**2) / size) - 0.5 * dt * root,
        torch.atan2(turn, root) - torch.atan2(-far, 1.0 - near) - 0.5 * dt * turn,
    )
    return product, log_r


def integral_quantiles(
    kappa: float, theta: float, sigma: float, dt: float, sums: Tensor, arguments: Tensor, normals: Tensor
) -> Pair:
    r"""Quantiles of the two independent parts of $\int v\,dt$ over a step, given the variance u and w at its ends.

    Args:
        kappa: speed of reversion.
        theta: level of reversion.
        sigma: volatility of the variance.
        dt: length of the step, years.
        sums: u + w, ascending from 0; shape `(n_sums,)`.
        arguments: $\sqrt{u w}\,2\kappa / (\sigma^2 \sinh(\kappa\Delta/2))$, ascending from 0; shape `(n_arguments,)`.
        normals: standard normals whose probabilities the quantiles belong to; shape `(n_normals,)`.

    Returns:
        The part that grows with the sum, `n_sums n_normals`, and the one that grows with the argument.

    References:
        Broadie and Kaya (2006), Exact simulation of stochastic volatility and other affine jump diffusion processes,
        eq. 13: the Laplace transform. Glasserman and Kim (2011), Gamma expansion of the Heston stochastic volatility
        model, theorem 2.2: its parts.
    """
    degrees = 4.0 * kappa * theta / sigma**2
    unit = 2.0 * (sigma * dt) ** 2 / ((kappa * dt) ** 2 + 4.0 * math.pi**2)  # 1 / gamma_1: the tails fall like e^-x
    base = kappa / math.tanh(0.5 * kappa * dt)

    def by_sum(real: Tensor, imag: Tensor) -> Pair:
        (height, turn), _ = _transform_parts(kappa, sigma, dt, real, imag)
        row = sums[1:, None, None] / sigma**2
        size = torch.exp(row * (base - height))
        return size * torch.cos(row * turn), -size * torch.sin(row * turn)

    order = 0.5 * degrees - 1.0
    n_counts = int(0.5 * arguments.max().item() + 10.0 * arguments.max().sqrt().item()) + 30
    counts = torch.arange(n_counts, dtype=torch.float64)
    log_half = torch.where(arguments > 0, 0.5 * arguments, 1e-150).log()
    log_weights = 2.0 * counts * log_half[:, None] - torch.lgamma(counts + 1.0) - torch.lgamma(counts + order + 1.0)
    weights = torch.softmax(log_weights, dim=-1)  # of a Bessel count

    mean_count = (weights * counts).sum(-1)
    spread_count = (weights * counts**2).sum(-1) - mean_count**2
    slope, slope2, one, one2 = _cumulants(kappa, sigma, dt)
    first = _places(slope * sums[1:], slope2 * sums[1:], unit)
    heaviest = one * (degrees + 4.0 * mean_count[-1])
    widest = (one2 * (degrees + 4.0 * mean_count[-1]) + (4.0 * one) ** 2 * spread_count[-1]).sqrt()
    high = math.log(heaviest + 10.0 * widest + 25.0 * unit)
    second = torch.exp(torch.linspace(math.log(1e-7 * unit), high, N_SHARED, dtype=torch.float64))
    below, density = (weights @ table for table in _by_count(kappa, sigma, dt, degrees, n_counts, second))
    later = _inverted(_normal(below), density, second, normals)
    below, density = distribution(by_sum, first)
    earlier = _inverted(_normal(below), density, first, normals)
    return torch.cat([torch.zeros_like(earlier[:1]), earlier]), later


def _by_count(kappa: float, sigma: float, dt: float, degrees: float, n_counts: int, values: Tensor) -> Pair:
    """Distribution function and density, `n_counts n_values`, of the part that belongs to each count."""
    real, imag, by_real, by_imag, by_density = _euler(values)
    _, (log_size, turn) = _transform_parts(kappa, sigma, dt, real, imag)
    size = torch.exp(0.5 * degrees * log_size)
    phi, psi = size * torch.cos(0.5 * degrees * turn), size * torch.sin(0.5 * degrees * turn)
    size = torch.exp(2.0 * log_size)
    x, y = size * torch.cos(2.0 * turn), size * torch.sin(2.0 * turn)
    below, density = values.new_empty(n_counts, len(values)), values.new_empty(n_counts, len(values))
    for count in range(n_counts):  # each count adds the transform of four squared normals
        below[count] = (phi * by_real + psi * by_imag).sum(-1)
        density[count] = (phi * by_density).sum(-1)
        phi, psi = phi * x - psi * y, phi * y + psi * x
    return below, density


def _normal(probability: Tensor) -> Tensor:
    """The normal of a probability; not a number where the inversion cannot tell it from 0 or 1."""
    inside = (probability > 1e-9) & (probability < 1.0 - 1e-9)
    return torch.where(inside, torch.special.ndtri(probability.clamp(1e-10, 1.0 - 1e-10)), math.nan)


def _places(mean: Tensor, variance: Tensor, unit: float) -> Tensor:
    """Where the distribution of a positive number with this mean and variance is looked at, shape `n_rows N_VALUES`."""
    spread = (torch.log1p(variance / mean**2)).sqrt()
    low = torch.maximum(mean.log() - 9.0 * spread, mean.new_tensor(math.log(1e-7 * unit)))
    high = torch.log(mean + 10.0 * variance.sqrt() + 25.0 * unit)
    high = torch.minimum(high, mean.log() + 9.0 * spread + 3.0)
    high = torch.maximum(high, mean.new_tensor(math.log(2.0 * unit)))
    return torch.exp(torch.lerp(low[:, None], high[:, None], torch.linspace(0.0, 1.0, N_VALUES, dtype=mean.dtype)))


def _cumulants(kappa: float, sigma: float, dt: float) -> tuple[float, float, float, float]:
    r"""Mean and variance of the integral for one unit of the sum of the ends, and for one squared normal.

    References:
        Glasserman and Kim (2011), theorem 2.2, with $\gamma_n$ and $\lambda_n$ put in.
    """
    n, rest = torch.arange(1, 2001, dtype=torch.float64), 2000.5  # what is left out by an integral from there
    square = (2.0 * math.pi * n) ** 2
    below = (kappa * dt) ** 2 + square
    one = (square / below**2).sum().item() + 1.0 / (4.0 * math.pi**2 * rest)
    two = (square / below**3).sum().item() + 1.0 / (3.0 * (2.0 * math.pi) ** 4 * rest**3)
    three = (1.0 / below).sum().item() + 1.0 / (4.0 * math.pi**2 * rest)
    four = (1.0 / below**2).sum().item() + 1.0 / (3.0 * (2.0 * math.pi) ** 4 * rest**3)
    return (
        8.0 * dt * one,
        32.0 * dt * (sigma * dt) ** 2 * two,
        (sigma * dt) ** 2 * three,
        2.0 * (sigma * dt) ** 4 * four,
    )
