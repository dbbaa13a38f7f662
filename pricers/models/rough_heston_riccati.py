r"""The fractional Riccati equation of rough Heston, by collocation in powers of $t^{\alpha / 2}$.

With $\alpha = H + 1/2$ the equation is $D^\alpha h = F(h)$, $h(0) = 0$, with a quadratic $F$; that is $h = I^\alpha
F(h)$ with $I^\alpha f(t) = \Gamma(\alpha)^{-1} \int_0^t (t - s)^{\alpha - 1} f(s)\,ds$. In $t$ the solution has a
singularity at 0; as a function of $t^\alpha$ it is smooth, with a boundary layer at 0 for large arguments. So it is
taken as a polynomial of $x = t^{\alpha / 2}$ (the root thins the layer out), given by its values at Chebyshev nodes.
$I^\alpha$ is a matrix on them, and the equation is a small system for Newton's method: the error falls exponentially
in the number of nodes, where the fractional Adams scheme of El Euch and Rosenbaum has an order of 1 to 2 in the
number of steps.

References:
    El Euch and Rosenbaum (2019), The characteristic function of rough Heston models, theorem 4.1. Diethelm, Ford and
    Freed (2004), Detailed error analysis for a fractional Adams method. Zayernouri and Karniadakis (2014), Fractional
    spectral collocation method: polynomials of a power of t.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from pricers.models.rough_heston_collocation import (
    LONGER,
    chebyshev,
    chebyshev_coefficients,
    collocation,
    node_count,
    stretched,
)

__all__ = ["log_characteristic", "log_moment", "log_moments", "mean_variance", "solve_riccati"]

MOMENT_NODES = 40
ARGUMENTS = 96  # more arguments than these are interpolated
ARGUMENTS_AT_ONCE = 16
LARGEST_SCALE = 5_000.0  # of sigma u T^alpha: beyond it log phi is a straight line from 0
NEWTON_STEPS = 40
MODULUS_SLACK = 1e-9  # by which log |phi| may exceed its bound before the solution counts as wrong


def solve_riccati(constant: Tensor, linear: Tensor, quadratic: Tensor, integral: Tensor, nodes: Tensor) -> Tensor:
    r"""Values of $h = I^\alpha (c_0 + c_1 h + c_2 h^2)$ at the nodes, by Newton's method.

    The steps to convergence are not differentiated. The last two are: from a constant start, two quadratically
    convergent steps give the exact first and second derivatives.

    Args:
        constant: $c_0$, complex; shape `*batch`.
        linear: $c_1$, complex; shape `*batch`.
        quadratic: $c_2$, complex; shape `*batch`.
        integral: matrix of $I^\alpha$; shape `*batch n n`, broadcast.
        nodes: $t^\alpha$ at the nodes; shape `*batch n`, broadcast.

    Returns:
        $h$, shape `*batch n`; NaN where Newton's method does not converge.
    """
    with torch.no_grad():
        fixed = (constant.detach(), linear.detach(), quadratic.detach())
        matrix, nodes = integral.detach(), nodes.detach()
        # where h = 0 is unstable the solution leaves it late: follow it from a short horizon, which grows
        growth = (linear.detach().real.unsqueeze(-1) * nodes).amax().item()
        n_stages = math.ceil(math.log(max(2.0 * growth, 1.0), LONGER))
        scale = LONGER**-n_stages
        solution = _iterated(_between_limits(*fixed, scale * matrix, scale * nodes), *fixed, scale * matrix)
        for _ in range(n_stages):
            scale *= LONGER
            guess = solution @ stretched(nodes.shape[-1]).to(solution).mT
            solution = _iterated(guess, *fixed, scale * matrix)
    for _ in range(2):
        solution = solution - _newton_step(solution, constant, linear, quadratic, integral)
    return solution


def _iterated(solution: Tensor, constant: Tensor, linear: Tensor, quadratic: Tensor, integral: Tensor) -> Tensor:
    """Newton's method to six digits or so: the last steps are left to the caller. NaN where it does not converge."""
    running = torch.ones_like(constant.real, dtype=torch.bool)
    for _ in range(NEWTON_STEPS):
        step = _newton_step(solution, constant, linear, quadratic, integral)
        solution = solution - step
        running = step.abs().amax(-1) >= 1e-5 * (1.0 + solution.abs().amax(-1))  # not of NaN: there is no way back
        if not bool(running.any()):
            return solution
    return torch.where(running.unsqueeze(-1), math.nan, solution)


def log_characteristic(
    u: Tensor,
    shift: float,
    expiry: Tensor,
    v0: Tensor,
    kappa: Tensor,
    theta: Tensor,
    sigma: Tensor,
    rho: Tensor,
    hurst: Tensor,
) -> tuple[Tensor, Tensor]:
    r"""Real and imaginary part of $\log E\,e^{a X_T}$, $a = i u + \mathrm{shift}$, $X = \log(S_T / F_T)$.

    $$\log E\,e^{a X_T} = \int_0^T \kappa \theta\,h(t) + v_0 F(h(t))\,dt,\quad
      F(h) = \tfrac12 (a^2 - a) + (a \rho \sigma - \kappa) h + \tfrac12 \sigma^2 h^2$$

    Args:
        u: real; shape `n_u` or `*batch n_u`.
        shift: real part of a, in [0, 1].
        expiry: years; shape `*batch`, like all parameters.
        v0, kappa, theta, sigma, rho, hurst: parameters of `RoughHeston`.

    Returns:
        Two tensors of shape `*batch n_u`.

    Raises:
        ValueError: `shift` outside [0, 1], where the moment may be infinite, or an equation that was not solved.

    References:
        El Euch and Rosenbaum (2019), eqs. 4.4-4.5, with $\lambda \nu$ = `sigma`; there the last term is
        $v_0 I^{1 - \alpha} h$, which equals $v_0 \int F(h)$.
    """
    if not 0.0 <= shift <= 1.0:
        raise ValueError(f"`shift` must lie in [0, 1], got {shift:g}; `log_moment` knows which moments are finite")
    law = tuple(part.double() for part in (expiry, v0, kappa, theta, sigma, rho, hurst))
    wide = u.double()
    rate = (law[4] * law[0].detach() ** (law[6] + 0.5)).detach().unsqueeze(-1)
    stretch = (wide.detach().abs() * rate / LARGEST_SCALE).clamp(min=1.0)
    wide = wide / stretch
    logarithm = stretch * (_solved(wide, shift, *law) if u.shape[-1] <= ARGUMENTS else _interpolated(wide, shift, law))
    # |E exp(a X)| <= E exp(shift X) <= 1 for a shift in [0, 1]; NaN fails too
    solved = (logarithm.detach().real <= MODULUS_SLACK * stretch).all(-1)
    if not bool(solved.all()):
        raise ValueError(_refusal(solved, *law))
    return logarithm.real.to(u.dtype), logarithm.imag.to(u.dtype)


def _refusal(solved: Tensor, expiry: Tensor, v0: Tensor, *others: Tensor) -> str:
    """What to say of the first element of the batch whose equation was not solved."""
    index = tuple((~solved).nonzero()[0].tolist())
    named = zip(("expiry", "kappa", "theta", "sigma", "rho", "hurst"), (expiry, *others), strict=True)
    value = {name: part.detach().expand(solved.shape)[index].item() for name, part in named}
    place = f" at index {index[0] if len(index) == 1 else index}" if index else ""
    return (
        f"`expiry` must be short enough to solve the fractional Riccati equation, got {value['expiry']:g}{place} with "
        f"`kappa` {value['kappa']:g}, `sigma` {value['sigma']:g}, `rho` {value['rho']:g} and `hurst` "
        f"{value['hurst']:g}; shorten it, or lower `sigma`: with `rho` * `sigma` far above `kappa` the moments of the "
        "asset are close to infinite"
    )


def _interpolated(u: Tensor, shift: float, law: tuple[Tensor, ...]) -> Tensor:
    """`_solved` through Chebyshev nodes of asinh(2 u): analytic there in a strip, whatever the range of u."""
    angle = torch.asinh(2.0 * u)
    low, high = angle.detach().amin(-1, keepdim=True) - 1e-3, angle.detach().amax(-1, keepdim=True) + 1e-3
    degree = torch.arange(ARGUMENTS, dtype=u.dtype, device=u.device)
    position = (degree + 0.5) * (math.pi / ARGUMENTS)
    nodes = torch.sinh(low + (high - low) * (0.5 - 0.5 * position.cos())) / 2.0
    values = _solved(nodes, shift, *law)
    basis = chebyshev(((angle - low) / (high - low)), degree)
    matrix = (basis @ chebyshev_coefficients(degree, position)).to(values.dtype)
    return (matrix @ values.unsqueeze(-1)).squeeze(-1)


def _solved(
    u: Tensor,
    shift: float,
    expiry: Tensor,
    v0: Tensor,
    kappa: Tensor,
    theta: Tensor,
    sigma: Tensor,
    rho: Tensor,
    hurst: Tensor,
) -> Tensor:
    """Complex logarithm of the characteristic function, from the equation itself."""
    alpha = hurst + 0.5
    horizon = expiry**alpha
    v0, kappa, theta, sigma, rho = (part.unsqueeze(-1) for part in (v0, kappa, theta, sigma, rho))
    pieces: list[Tensor] = []
    for part in u.chunk(-(-u.shape[-1] // ARGUMENTS_AT_ONCE), dim=-1):  # neighbours need about as many nodes
        size = torch.maximum(sigma * (part.abs() + shift), kappa).detach()
        rate = size * horizon.detach().unsqueeze(-1)
        scheme = collocation(alpha, node_count(rate.max().item()))
        matrix, mean = (horizon[..., None, None] * scheme.integral).unsqueeze(-3), scheme.mean.unsqueeze(-2)
        nodes = (horizon[..., None] * scheme.nodes).unsqueeze(-2)
        argument = torch.complex(torch.full_like(part, shift), part)
        constant, linear = 0.5 * argument * (argument - 1.0), rho * sigma * argument - kappa
        quadratic = (0.5 * sigma**2).to(argument.dtype)
        solution = solve_riccati(constant, linear, quadratic, matrix, nodes)
        slope = _riccati(solution, constant, linear, quadratic)
        pieces.append((((kappa * theta).unsqueeze(-1) * solution + v0.unsqueeze(-1) * slope) * mean).sum(-1))
    return expiry.unsqueeze(-1) * torch.cat(pieces, dim=-1)


def log_moment(
    order: Tensor,
    expiry: Tensor,
    v0: Tensor,
    kappa: Tensor,
    theta: Tensor,
    sigma: Tensor,
    rho: Tensor,
    hurst: Tensor,
) -> Tensor:
    r"""$\log E\,e^{q X_T}$ at real orders, infinite where the Riccati equation explodes before `expiry`.

    Beyond [0, 1] the solution rises from 0, and Newton's method started at 0 rises to it where it exists. It is not
    differentiated.

    Args:
        order: $q$, any real numbers; shape `n` or `*batch n`.
        expiry: years; shape `*batch`, like all parameters of `RoughHeston`.
    """
    with torch.no_grad():
        alpha = (hurst + 0.5).double()
        horizon = expiry.double() ** alpha
        scheme = collocation(alpha, MOMENT_NODES)
        matrix = (horizon[..., None, None] * scheme.integral).unsqueeze(-3)
        v0, kappa, theta, sigma, rho = (part.double().unsqueeze(-1) for part in (v0, kappa, theta, sigma, rho))
        wanted = order.double()
        constant, linear = 0.5 * wanted * (wanted - 1.0), rho * sigma * wanted - kappa
        quadratic = 0.5 * sigma**2
        solution = torch.zeros_like(constant + linear).unsqueeze(-1) * scheme.nodes
        step = solution
        for _ in range(NEWTON_STEPS):
            step = _newton_step(solution, constant, linear, quadratic, matrix).nan_to_num(0.0, 0.0, 0.0)
            solution = solution - step
        size = 1.0 + solution.abs().amax(-1)
        found = (step.abs().amax(-1) < 1e-8 * size) & (solution * constant.unsqueeze(-1).sign() >= 0.0).all(-1)
        slope = _riccati(solution, constant, linear, quadratic)
        integrand = (kappa * theta).unsqueeze(-1) * solution + v0.unsqueeze(-1) * slope
        logarithm = expiry.double().unsqueeze(-1) * (integrand * scheme.mean.unsqueeze(-2)).sum(-1)
        return torch.where(found, logarithm, math.inf).to(order.dtype)


def log_moments(
    order: int,
    expiry: Tensor,
    v0: Tensor,
    kappa: Tensor,
    theta: Tensor,
    sigma: Tensor,
    rho: Tensor,
    hurst: Tensor,
) -> list[Tensor]:
    r"""Cumulants 1 to `order` of $X_T$: the expansion of the Riccati equation in powers of its argument.

    With $h = \sum a^k h_k$ each $h_k$ solves a linear equation $D^\alpha h_k = f_k - \kappa h_k$, where
    $f_k = -\tfrac12 [k = 1] + \tfrac12 [k = 2] + \rho \sigma h_{k-1} + \tfrac12 \sigma^2 \sum_{0<j<k} h_j h_{k-j}$.
    """
    alpha = (hurst + 0.5).double()
    horizon = expiry.double() ** alpha
    scheme = collocation(alpha, node_count((kappa * horizon).detach().max().item()))
    matrix = horizon[..., None, None] * scheme.integral
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    implicit = identity + kappa.double()[..., None, None] * matrix
    v0, kappa, theta, sigma, rho = (part.double().unsqueeze(-1) for part in (v0, kappa, theta, sigma, rho))
    powers: list[Tensor] = []
    cumulants: list[Tensor] = []
    for k in range(1, order + 1):
        source = torch.full_like(scheme.nodes, {1: -0.5, 2: 0.5}.get(k, 0.0)) + torch.zeros_like(sigma)
        if powers:
            source = source + rho * sigma * powers[-1]
        for j in range(1, k):
            source = source + 0.5 * sigma**2 * powers[j - 1] * powers[k - j - 1]
        power = _solve(implicit, (matrix @ source.unsqueeze(-1)).squeeze(-1))
        powers.append(power)
        integrand = kappa * theta * power + v0 * (source - kappa * power)
        cumulants.append(math.factorial(k) * expiry.double() * (integrand * scheme.mean).sum(-1))
    return cumulants


def mean_variance(time: Tensor, v0: Tensor, kappa: Tensor, theta: Tensor, hurst: Tensor) -> Tensor:
    r"""$E V_t = \theta + (v_0 - \theta) E_\alpha(-\kappa t^\alpha)$ with the Mittag-Leffler function, float64.

    That function y solves $y = 1 - \kappa I^\alpha y$.
    """
    alpha = (hurst + 0.5).double()
    speed = kappa.double() * time.double() ** alpha
    scheme = collocation(alpha, node_count(speed.detach().max().item()))
    identity = torch.eye(scheme.nodes.shape[0], dtype=torch.float64, device=scheme.nodes.device)
    matrix = identity + speed[..., None, None] * scheme.integral
    relaxation = _solve(matrix, torch.ones_like(matrix[..., 0])) @ scheme.end
    return theta.double() + (v0 - theta).double() * relaxation


def _riccati(solution: Tensor, constant: Tensor, linear: Tensor, quadratic: Tensor) -> Tensor:
    return constant.unsqueeze(-1) + (linear.unsqueeze(-1) + quadratic.unsqueeze(-1) * solution) * solution


def _newton_step(solution: Tensor, constant: Tensor, linear: Tensor, quadratic: Tensor, integral: Tensor) -> Tensor:
    """What Newton's method subtracts from `solution`."""
    integral = integral.to(solution.dtype)
    slope = _riccati(solution, constant, linear, quadratic)
    residual = solution - (integral @ slope.unsqueeze(-1)).squeeze(-1)
    derivative = linear.unsqueeze(-1) + 2.0 * quadratic.unsqueeze(-1) * solution
    identity = torch.eye(integral.shape[-1], dtype=integral.dtype, device=integral.device)
    return _solve(identity - integral * derivative.unsqueeze(-2), residual)


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Solution of a system for each vector along the last axis; singular systems give infinity or NaN."""
    solve: Any = torch.linalg.solve_ex
    return cast("Tensor", solve(matrix, right.unsqueeze(-1))[0]).squeeze(-1)


def _between_limits(constant: Tensor, linear: Tensor, quadratic: Tensor, integral: Tensor, nodes: Tensor) -> Tensor:
    """A first guess: the rational function with the slope of the solution at 0 and its limit at infinity."""
    limit = -(linear + torch.sqrt(linear**2 - 4.0 * quadratic * constant)) / (2.0 * quadratic)
    at_one = (integral.sum(-1) / nodes)[..., :1]  # I^a 1 = s / Gamma(1 + a)
    early = constant.unsqueeze(-1) * at_one * nodes
    total = limit.unsqueeze(-1) + early
    return torch.where(total == 0.0, 0.0, limit.unsqueeze(-1) * early / torch.where(total == 0.0, 1.0, total))
