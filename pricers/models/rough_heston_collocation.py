r"""Polynomials of $t^{\alpha / 2}$ on Chebyshev nodes, and the fractional integral as a matrix on them."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Collocation", "chebyshev", "chebyshev_coefficients", "collocation", "node_count", "stretched"]

MOST_NODES = 128
LONGER = 1.3  # growth of T^alpha from one stage to the next where the equation is unstable at 0


class Collocation(NamedTuple):
    """Polynomials of $t^{\\alpha / 2}$ on [0, 1], given by their values at Chebyshev nodes.

    Args:
        nodes: values of $t^\\alpha$, shape `(n,)`.
        integral: values of $f$ to values of $I^\\alpha f$ at the nodes, shape `*batch n n`.
        mean: values of $f$ to $\\int_0^1 f\\,dt$, shape `*batch n`.
        end: values of $f$ to $f(1)$, shape `(n,)`.
    """

    nodes: Tensor
    integral: Tensor
    mean: Tensor
    end: Tensor


def collocation(alpha: Tensor, n_nodes: int) -> Collocation:
    r"""Collocation of the fractional integral of order `alpha` on the unit interval.

    On [0, T] the integral is $T^\alpha$ times as large.

    Args:
        alpha: order in (0, 1]; shape `*batch`.
        n_nodes: number of Chebyshev nodes.

    Returns:
        Nodes and matrices, float64.

    >>> scheme = collocation(torch.tensor(0.6, dtype=torch.float64), 8)
    >>> one = torch.ones(8, dtype=torch.float64)  # I^a 1 = t^a / Gamma(1 + a)
    >>> bool(torch.allclose(scheme.integral @ one, scheme.nodes / math.gamma(1.6)))
    True
    """
    alpha = alpha.double().unsqueeze(-1)
    basis = _basis(n_nodes)
    log_y, log_rest, jacobian = (part.to(alpha.device) for part in _quadrature(n_nodes))
    # int_0^t (t - r)^(alpha - 1) f(r) dr with r = t y^(1/alpha): f sees s y
    log_kernel = (alpha - 1.0) * torch.log(-torch.expm1(log_y / alpha)) - torch.lgamma(alpha)
    measure = torch.exp(log_y / alpha + log_rest) * jacobian / alpha
    nodes, scaled, plain, end = (part.to(alpha.device) for part in basis)
    flat = (log_kernel.exp() * measure) @ scaled
    return Collocation(nodes, flat.reshape(*flat.shape[:-1], n_nodes, n_nodes), measure @ plain, end)


def node_count(scale: float) -> int:
    """Nodes for an error of $\\log\\phi$ of about 1e-10 while $|\\phi|$ is above that.

    Args:
        scale: largest product of $T^\\alpha$ and a rate of the equation, $\\sigma u$ or $\\kappa$.
    """
    return min(MOST_NODES, 8 * math.ceil((16.0 + 10.0 * scale**0.4) / 8.0))


@lru_cache(maxsize=8)
def _quadrature(n_nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Double exponential quadrature on (0, 1), for powers of y and 1 - y as singularities at the ends.

    Takahasi and Mori (1974): y = (1 + tanh(pi/2 sinh t)) / 2. Returns log y, log(1 - y) and dy / (y (1 - y)).
    """
    times = torch.linspace(-4.0, 4.0, 3 * n_nodes + 161, dtype=torch.float64)
    argument = math.pi * times.sinh()
    jacobian = (times[1] - times[0]) * math.pi * times.cosh()
    softplus = torch.nn.functional.softplus
    return -softplus(-argument), -softplus(argument), jacobian


@lru_cache(maxsize=8)
def _basis(n_nodes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Squares of Chebyshev nodes x; their cardinal polynomials at x_i y_q, times x_i^2, as `q (i j)`; at y_q; at 1."""
    y = (0.5 * _quadrature(n_nodes)[0]).exp()
    degree = torch.arange(n_nodes, dtype=torch.float64)
    angle = (degree + 0.5) * (math.pi / n_nodes)
    nodes = 0.5 - 0.5 * angle.cos()
    coefficients = chebyshev_coefficients(degree, angle)
    points = (nodes * y[:, None]).clamp(0.0, 1.0)
    scaled = nodes[:, None] ** 2 * (chebyshev(points, degree) @ coefficients)
    return nodes**2, scaled.flatten(1), chebyshev(y, degree) @ coefficients, coefficients.sum(0)


@lru_cache(maxsize=8)
def stretched(n_nodes: int) -> Tensor:
    """Values of f to values of f at `LONGER` t^alpha, constant from the end on: a guess for a longer horizon."""
    degree = torch.arange(n_nodes, dtype=torch.float64)
    angle = (degree + 0.5) * (math.pi / n_nodes)
    coefficients = chebyshev_coefficients(degree, angle)
    points = (math.sqrt(LONGER) * (0.5 - 0.5 * angle.cos())).clamp(max=1.0)
    return chebyshev(points, degree) @ coefficients


def chebyshev_coefficients(degree: Tensor, angle: Tensor) -> Tensor:
    """Values at the nodes to coefficients: c_k = (2 - [k = 0]) / n sum_j f_j T_k(-cos angle_j)."""
    coefficients = torch.cos(degree[:, None] * (math.pi - angle)) * (2.0 / degree.shape[0])
    coefficients[0] *= 0.5
    return coefficients


def chebyshev(points: Tensor, degree: Tensor) -> Tensor:
    """Shifted Chebyshev polynomials, one more axis for `degree`."""
    return torch.cos(degree * torch.acos(2.0 * points - 1.0).unsqueeze(-1))
