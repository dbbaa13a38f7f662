r"""Simulation of rough Heston by lifting: the fractional kernel as a sum of exponentials, one factor for each.

Let $\xi_0(t) = E V_t$. With $K(t) = t^{H - 1/2} / \Gamma(H + 1/2) \approx \sum_i c_i e^{-x_i t}$ the variance is
$V_t = \xi_0(t) + \sum_i c_i U^i_t$, where $dU^i = -(x_i U^i + \kappa \sum_j c_j U^j) dt + \sigma \sqrt V dB$: a Markov
process, linear but for its noise.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from pricers.market import Market
from pricers.models.base import Scheme, State, Step
from pricers.models.rough_heston_riccati import mean_variance
from pricers.models.tiled_product import tiled_product
from pricers.normal import normal_cdf

__all__ = ["LiftedQuadraticExponential", "exponential_sum", "resolvent_integrals"]

SERIES_TERMS = 120
LONGEST_STEP = 4.0  # of kappa dt^alpha: up to here the series keep 9 digits
LEAST_RATIO = 1e-10  # of a variance and the square of its mean: below it a quadratic would lose all digits


def exponential_sum(hurst: Tensor) -> tuple[Tensor, Tensor]:
    r"""Rates $x_i$ and weights $c_i$ with $\sum_i c_i e^{-x_i t} \approx t^{H - 1/2} / \Gamma(H + 1/2)$.

    The kernel is the integral of $e^{-xt} x^{1/2 - H} \sin(\pi (1/2 - H)) / \pi$ over $\log x$, taken by the
    trapezoidal rule at $x = e^{-7}, e^{-6}, \ldots, e^{13}$; the terms below are lumped at their mean. The relative
    error is below 2e-4 for times from an hour to thirty years, and 0 at H = 1/2.

    Args:
        hurst: in (0, 0.5]; shape `*batch`.

    Returns:
        Rates per year and weights, float64, shape `*batch 22`.

    References:
        Abi Jaber (2019), Lifting the Heston model, section 3, with another quadrature. Beylkin and Monzon (2010),
        Approximation by exponential sums revisited, section 3: the rule.

    >>> rates, weights = exponential_sum(torch.tensor(0.1))
    >>> kernel = (weights * torch.exp(-rates * 0.5)).sum()
    >>> bool((kernel / 0.5**-0.4 * math.gamma(0.6) - 1).abs() < 2e-4)
    True
    """
    gap = 0.5 - hurst.double().unsqueeze(-1)
    rates = torch.arange(-7.0, 14.0, dtype=torch.float64, device=hurst.device).exp() + torch.zeros_like(gap)
    weights = torch.sin(math.pi * gap) / math.pi * rates**gap
    # sum over j < 0 of e^(j gap): a geometric series, written so that it is smooth at gap = 0
    lowest = torch.sinc(gap) * _over_expm1(gap) * rates[..., :1] ** gap
    mean_rate = rates[..., :1] * torch.expm1(gap) / torch.expm1(1.0 + gap)
    return torch.cat([mean_rate, rates], -1), torch.cat([lowest, weights], -1)


def resolvent_integrals(kappa: Tensor, hurst: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    r"""$\int_0^{dt} R$ and $\int_0^{dt} R^2$ of the kernel with mean reversion, $R + \kappa K * R = K$.

    $R(t) = t^{\alpha - 1} \sum_k (-\kappa t^\alpha)^k / \Gamma(\alpha (k + 1))$, $\alpha = H + 1/2$.

    Raises:
        ValueError: $\kappa\,dt^\alpha$ is too large for the series: the step is far longer than mean reversion.
    """
    alpha, step = (hurst + 0.5).double(), dt.double()
    speed = kappa.double() * step**alpha
    if bool((speed.detach() > LONGEST_STEP).any()):
        raise ValueError(
            f"`kappa` * dt ** (hurst + 0.5) must be {LONGEST_STEP:g} or less in each step of the simulation, "
            f"got {speed.detach().max().item():g}; raise `n_steps`"
        )
    k = torch.arange(SERIES_TERMS, dtype=torch.float64, device=step.device)
    order = alpha.unsqueeze(-1)
    terms = (-speed.unsqueeze(-1)) ** k * torch.exp(-torch.lgamma(order * (k + 1.0)))
    first = step**alpha * (terms / (order * (k + 1.0))).sum(-1)
    powers = order.unsqueeze(-1) * (k[:, None] + k + 2.0) - 1.0
    squares = (terms.unsqueeze(-1) * terms.unsqueeze(-2) / powers).sum((-2, -1))
    return first, step ** (2.0 * alpha - 1.0) * squares


class LiftedQuadraticExponential(Scheme):
    r"""Lifted factors for the past, and for the newest step the hybrid quadratic-exponential law.

    Given the past, $V_{n+1} = \hat\xi + \int R(t_{n+1} - s)\,\sigma\sqrt V dB$ over the step, with $\hat\xi$ its
    conditional mean and R the kernel with mean reversion. The integral is split into a multiple of
    $\chi = \int \sigma \sqrt V dB$ and a rest uncorrelated with it. Each, with one half of $\hat\xi$, is drawn by
    Andersen's QE: so the variance stays above 0 and its mean is exact on every grid. $\chi$ moves the factors and the
    asset. The martingale correction keeps $E\,m_{t+\Delta} = m_t$ where the moment is finite (always for `rho` at most
    0). The integrated variance is that of a trapezium. The bias of prices falls with the power 0.7 to 1 of the step: of
    the forward, at the money, over a year and 64 steps it is 2.5e-4 at H = 0.5 and about 6e-4 at H = 0.1 or 0.2.

    References:
        Gatheral (2022), Efficient simulation of affine forward variance models: the HQE scheme, whose memory of all
        steps is replaced by factors here. Abi Jaber (2019), Lifting the Heston model. Andersen (2008), Simple and
        efficient simulation of the Heston stochastic volatility model, sections 3.2 and 4.
    """

    n_normals: ClassVar[int] = 2
    switch: ClassVar[float] = 1.5  # psi_c of Andersen

    def keeps_forward(self, model: Any, dt: Tensor) -> bool:
        """Where the moment of the correction is sure to be finite."""
        return bool((model.rho.detach() <= 0.0).all())

    def start(self, model: Any) -> State:
        """Factors at 0, factor axis first, and the variance."""
        n_factors = exponential_sum(model.hurst)[0].shape[-1]
        n_axes = len(model.batch_shape)
        return model.v0.new_zeros(n_factors, *(1,) * (n_axes + 1)), model.v0.unsqueeze(-1)

    def coefficients(self, model: Any, market: Market, time: Tensor, dt: Tensor) -> State:
        """Matrices of the factors, then what the two draws need, made in float64."""
        batch, dtype = model.batch_shape, model.v0.dtype
        rates, weights = exponential_sum(model.hurst)
        transition, response = _transition(rates, weights, model.kappa.double(), dt.double())
        readout = (weights.unsqueeze(-2) @ transition).expand(*batch, 1, rates.shape[-1])
        first, second = resolvent_integrals(model.kappa, model.hurst, dt)
        mean = mean_variance(time + dt, model.v0, model.kappa, model.theta, model.hurst)
        sigma, rho, step = model.sigma.double(), model.rho.double(), dt.double()
        share = first / step  # of chi in the next variance
        spread = sigma**2 * first**2 / step
        rest = sigma**2 * (second - first**2 / step).clamp(min=0.0)  # 0 at H = 1/2, but for rounding
        leverage = rho / (sigma * share)
        columns = (mean, 2.0 * model.hurst.double(), 1.0 / share, spread, rest, leverage, rho, step)
        readout_and_transition = torch.cat([readout, transition.expand(*batch, -1, -1)], dim=-2)
        matrices = (readout_and_transition, response.expand(*batch, -1).unsqueeze(-1))
        return tuple(part.to(dtype) for part in (*matrices, *(column.unsqueeze(-1) for column in columns)))

    def advance(self, coefficients: State, log_ratio: Tensor, state: State, normals: Tensor) -> Step:
        """One step; the first normal drives the noise that the asset shares."""
        readout_and_transition, response, mean, roughness, scale, spread, rest, leverage, rho, dt = coefficients
        factors, before = state
        rows = tiled_product(readout_and_transition, factors.movedim(0, -2))
        # of a variance that is conditionally 0 nothing is left to draw: the floor only keeps its square above 0
        expected = (mean + rows[..., 0, :]).clamp(min=1e-9)
        half = 0.5 * expected
        # conditional mean of the variance within the step (Gatheral, section 5)
        average = (expected + roughness * before) / (1.0 + roughness)
        quarter = 0.25 * dt * rho * rho
        noise, noise_moment = self._draw(half, spread * average, normals[0], leverage - quarter)
        other, other_moment = self._draw(half, rest * average, normals[1], -quarter)
        innovation = noise - half
        after = noise + other
        rows = rows[..., 1:, :] + response * (scale * innovation).unsqueeze(-2)
        integrated = 0.5 * dt * (before + after) + torch.finfo(after.dtype).tiny
        correction = leverage * half + quarter * before - noise_moment - other_moment
        drift = leverage * innovation - 0.5 * integrated + correction
        return Step((rows.movedim(-2, 0), after), drift, (1.0 - rho * rho) * integrated, integrated)

    def _draw(self, mean: Tensor, variance: Tensor, normal: Tensor, growth: Tensor) -> tuple[Tensor, Tensor]:
        r"""QE draw, and $\log E\,e^{g Q}$ (to second order where it is infinite)."""
        tiny = torch.finfo(normal.dtype).tiny
        psi = (variance / (mean * mean)).clamp(min=max(LEAST_RATIO, torch.finfo(normal.dtype).eps ** 1.5))
        quadratic = psi <= self.switch
        # each branch is clamped to its own side: both are differentiated
        double = 2.0 / psi.clamp(max=self.switch)
        b_squared = double - 1.0 + torch.sqrt(double * (double - 1.0))  # Andersen, eq. 27
        a = mean / (1.0 + b_squared)
        root = torch.sqrt(b_squared) + normal
        alive = 2.0 / (psi.clamp(min=self.switch) + 1.0)  # 1 - p, eq. 29
        beta = alive / mean
        survival = normal_cdf(-normal).clamp(min=tiny)
        exponential = torch.log(alive / survival).clamp(min=0.0) / beta  # eq. 25
        # eqs. 37 and 38
        tail = (1.0 - 2.0 * growth * a).clamp(min=0.01)
        squared = growth * b_squared * a / tail - 0.5 * torch.log(tail)
        distance = (beta - growth).clamp(min=0.01 * beta)
        jumped = torch.log((1.0 - alive + alive * beta / distance).clamp(min=tiny))
        finite = torch.where(quadratic, 2.0 * growth * a < 0.99, growth < 0.99 * beta)
        moment = torch.where(quadratic, squared, jumped)
        moment = torch.where(finite, moment, growth * mean + 0.5 * growth * growth * variance)
        return torch.where(quadratic, a * root * root, exponential), moment


def _transition(rates: Tensor, weights: Tensor, kappa: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    r"""$e^{M dt}$ and $dt^{-1} \int_0^{dt} e^{M s} 1\,ds$ of the factors, $M = -\mathrm{diag}(x) - \kappa 1 c^\top$."""
    n_factors = rates.shape[-1]
    matrix = -torch.diag_embed(rates) - (kappa.unsqueeze(-1) * weights).unsqueeze(-2)
    ones = torch.ones_like(matrix[..., :1])
    generator = torch.nn.functional.pad(torch.cat([matrix, ones], dim=-1), (0, 0, 0, 1))
    exponential: Any = torch.linalg.matrix_exp  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    whole = cast("Tensor", exponential(generator * dt))
    return whole[..., :n_factors, :n_factors], whole[..., :n_factors, n_factors] / dt


def _over_expm1(x: Tensor) -> Tensor:
    """x / (e^x - 1) for 0 <= x <= 1/2, to 1e-10: Bernoulli numbers, smooth at 0."""
    square = x * x
    return 1.0 - 0.5 * x + square * (1 / 12 - square * (1 / 720 - square * (1 / 30240 - square / 1209600)))
