r"""Rough Bergomi: a lognormal variance driven by a Volterra process with fractional kernel.

The variance is simulated by the hybrid scheme of Bennedsen, Lunde and Pakkanen on any time grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pricers.estimate import Estimate
from pricers.models.base import AnyScheme, Model, PathScheme
from pricers.models.tiled_product import tiled_product
from pricers.noise import address
from pricers.normal import normal_cdf
from pricers.parameters import broadcast_shape, dates, plausible, real, whole, within
from pricers.paths import time_grid

__all__ = [
    "ForwardVarianceCurve",
    "HybridScheme",
    "RoughBergomi",
    "mixed_samples",
    "turbocharged_price",
    "volterra_weights",
]

BLOCK = 4096  # paths of one generator in `turbocharged_price`, simulated at once: the weights are made anew for each
MOST_DEVIATIONS = 4.0  # standard errors of a control's mean that it may be away from what is known
USUAL_SHARE = 2.0  # of the control in the price; below it any sample will do
LEAST_VARIANCE = 1e-12  # of the log price to expiry; below it a Black price has no usable derivative


@dataclass(frozen=True, eq=False, init=False)
class ForwardVarianceCurve:
    r"""Forward variances $\xi(t) = E V_t$ by time, linear between the nodes and flat outside.

    Args:
        times: years, ascending, the first may be 0; shape `(n_nodes,)`.
        variances: annualised variances above 0, decimal; shape `*batch n_nodes`.

    Raises:
        ValueError: a time is negative or out of order, a variance is not above 0, or the two do not match.

    >>> curve = ForwardVarianceCurve(times=[0.0, 1.0], variances=[0.04, 0.08])
    >>> curve.variance(torch.tensor([0.25, 3.0], dtype=torch.float64))
    tensor([0.0500, 0.0800], dtype=torch.float64)
    """

    times: Tensor
    variances: Tensor

    def __init__(self, times: Any, variances: Any) -> None:
        times, variances = dates("times", times, at_least=0.0), within("variances", variances, above=0.0)
        if times.ndim != 1:
            raise ValueError(f"`times` of a curve must have one axis, got shape {tuple(times.shape)}")
        if variances.ndim == 0 or variances.shape[-1] != times.shape[0]:
            raise ValueError(
                f"`variances` must have one number for each of the {times.shape[0]} times along its last axis, "
                f"got shape {tuple(variances.shape)} beside times of shape {tuple(times.shape)}"
            )
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "variances", variances)

    @property
    def batch_shape(self) -> torch.Size:
        """Shape of the batch of curves."""
        return self.variances.shape[:-1]

    def variance(self, time: Tensor) -> Tensor:
        """Forward variance at `time`, years, of shape `(n,)`; shape `*batch n`."""
        n_nodes = self.times.shape[0]
        if n_nodes == 1:
            return self.variances + torch.zeros_like(time)
        right = torch.searchsorted(self.times.detach(), time.detach().contiguous()).clamp(1, n_nodes - 1)
        start, end = self.times[right - 1], self.times[right]
        share = ((time - start) / (end - start)).clamp(0.0, 1.0)
        low, high = self.variances[..., right - 1], self.variances[..., right]
        return low + share * (high - low)


def volterra_weights(hurst: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    r"""Weights of the hybrid scheme for $Y_t = \sqrt{2H} \int_0^t (t - s)^{H - 1/2}\,dW_s$.

    At the end of step $i$, with independent standard normals $z, \bar z$ for each step and
    $\Delta W_k = \sqrt{\Delta_k}\,z_k$,

    $$Y_i = \sum_{k \le i} w_{ik} z_k + \bar w_i \bar z_i.$$

    The newest step enters by the exact joint law of $\Delta W_i$ and $\int (t_i - s)^{H - 1/2} dW_s$ ($\kappa = 1$). An
    older one enters by the mean of the kernel over it, which on a uniform grid is the optimal $b^*_k$ of the paper, and
    on any grid the projection of its Volterra integral on $\Delta W_k$.

    Args:
        hurst: in (0, 0.5]; shape `*batch`.
        grid: ascending times from 0, years; shape `(n_steps + 1,)`.

    Returns:
        $w$, lower triangular, shape `*batch n_steps n_steps`, and $\bar w$, shape `*batch n_steps`.

    References:
        Bennedsen, Lunde and Pakkanen (2017), Hybrid scheme for Brownian semistationary processes, eqs. 2.14-2.16 and
        proposition 2.8.

    >>> weights, fresh = volterra_weights(torch.tensor(0.1), torch.tensor([0.0, 0.3, 1.0]))
    >>> bool(weights[0, 0] ** 2 + fresh[0] ** 2 - 0.3**0.2 < 1e-6)
    True
    """
    dt, power = grid.diff(), hurst[..., None, None] + 0.5
    older = torch.ones(dt.shape[0], dt.shape[0], dtype=torch.bool, device=grid.device).tril(-1)
    lag = torch.where(older, grid[1:, None] - grid[:-1], 1.0)  # from the start of step k to the end of step i
    ratio = torch.where(older, dt / lag, 0.0)
    # mean of (t_i - s)^(H - 1/2) over step k, without the cancellation of two nearly equal powers
    mean_kernel = -(lag**power) * torch.expm1(power * torch.log1p(-ratio)) / (power * dt)
    weights = torch.where(older, (2.0 * hurst[..., None, None]).sqrt() * mean_kernel * dt.sqrt(), 0.0)
    hurst = hurst.unsqueeze(-1)
    scale = dt**hurst / (hurst + 0.5)
    # correlation of Delta W and the newest integral: sqrt(2 H) / (H + 1/2)
    return weights + torch.diag_embed((2.0 * hurst).sqrt() * scale), (0.5 - hurst) * scale


class HybridScheme(PathScheme):
    r"""The hybrid scheme with $\kappa = 1$ on any grid; the variance of a step is the one at its start.

    The Volterra process is one matrix product: up to some thousand steps this is faster than a fast Fourier transform,
    which also needs a uniform grid.

    The lognormal is compensated by the variance of the discrete process, not by its limit $t^{2H}$: so $E V_t = \xi(t)$
    on each date of any grid, and a variance swap has no bias beyond that of its quadrature. On a uniform grid the two
    differ by at most a tenth of a percent; where a step is far shorter than the one before it, by some percent.

    References:
        Bennedsen, Lunde and Pakkanen (2017), Hybrid scheme for Brownian semistationary processes.
    """

    n_normals: ClassVar[int] = 2
    variance_known: ClassVar[bool] = True

    def variances(self, model: RoughBergomi, grid: Tensor, normals: Tensor) -> Tensor:
        """Instantaneous variance at the start of each step, shape `n_steps *batch paths`.

        Args:
            model: the model.
            grid: ascending times from 0, years; shape `(n_steps + 1,)`.
            normals: shape `n_steps 2 paths`; the first of a step drives the Brownian motion.
        """
        dtype, n_axes = normals.dtype, len(model.batch_shape)
        weights, fresh = volterra_weights(_with_axes(model.hurst, n_axes), grid)
        spread = (weights.square().sum(-1) + fresh.square()).movedim(-1, 0).unsqueeze(-1)
        brownian = normals[:, 0].contiguous()
        # model by model: one product of all may round otherwise than that of a model alone
        matrices = weights.to(dtype).reshape(-1, *weights.shape[-2:]).unbind()
        older = torch.stack([tiled_product(matrix, brownian) for matrix in matrices]).reshape(*weights.shape[:-1], -1)
        volterra = older + fresh.unsqueeze(-1).to(dtype) * normals[:, 1]
        eta = model.eta.unsqueeze(-1)
        log_martingale = eta.to(dtype) * volterra.movedim(-2, 0) - (0.5 * eta**2 * spread).to(dtype)
        start = torch.zeros_like(log_martingale[:1])  # today's variance is known
        forward = _with_axes(model.forward_variance(grid[:-1]), n_axes + 1).movedim(-1, 0).unsqueeze(-1)
        return forward.to(dtype) * torch.cat([start, log_martingale[:-1]]).exp()

    def increments(self, model: RoughBergomi, grid: Tensor, normals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`drift`, `residual_variance` and `variance` of each step, as in `PathScheme.increments`."""
        dtype, n_axes = normals.dtype, len(model.batch_shape)
        dt = grid.diff().to(dtype).reshape(-1, *(1,) * (n_axes + 1))
        brownian = _with_axes_after_first(normals[:, 0], n_axes)
        rho = model.rho.unsqueeze(-1).to(dtype)
        variance = self.variances(model, grid, normals) * dt
        drift = rho * variance.sqrt() * brownian - 0.5 * variance
        residual = (1.0 - rho**2) * variance
        return drift, residual, variance.expand_as(drift)


@dataclass(frozen=True, eq=False, init=False)
class RoughBergomi(Model):
    r"""Rough Bergomi model of Bayer, Friz and Gatheral.

    $$V_t = \xi(t) \exp\left(\eta Y_t - \tfrac12 \eta^2 t^{2H}\right),\quad
      Y_t = \sqrt{2H} \int_0^t (t - s)^{H - 1/2}\,dW_s,\quad
      d\log m_t = \sqrt{V_t}\,(\rho\,dW_t + \sqrt{1 - \rho^2}\,dW^\perp_t) - \tfrac12 V_t\,dt$$

    with $m$ the asset over its forward. At $H = 1/2$ the variance is a geometric Brownian motion.

    Args:
        xi: forward variance, annualised, above 0: a number or tensor of shape `*batch`, or a `ForwardVarianceCurve`.
        eta: volatility of variance, above 0; shape `*batch`.
        hurst: in (0, 0.5]; shape `*batch`.
        rho: correlation of asset and variance, in (-1, 1); shape `*batch`. The asset is a true martingale for
            `rho` at most 0 only (Gassiat, 2019).

    Raises:
        ValueError: a parameter outside its range, or shapes that do not broadcast.

    References:
        Bayer, Friz and Gatheral (2016), Pricing under rough volatility, section 4. Gassiat (2019), On the martingale
        property in the rough Bergomi model, theorem 1.

    >>> model = RoughBergomi(xi=0.055, eta=1.9, hurst=0.07, rho=-0.9)
    >>> model.forward_variance(torch.tensor([0.0, 0.5], dtype=torch.float64))
    tensor([0.0550, 0.0550], dtype=torch.float64)
    """

    kind: ClassVar[str] = "rough_bergomi"
    schemes: ClassVar[Mapping[str, AnyScheme]] = {"hybrid": HybridScheme()}
    xi: Tensor | ForwardVarianceCurve
    eta: Tensor
    hurst: Tensor
    rho: Tensor

    def __init__(self, xi: Any, eta: Any, hurst: Any, rho: Any) -> None:
        object.__setattr__(self, "xi", xi if isinstance(xi, ForwardVarianceCurve) else within("xi", xi, above=0.0))
        object.__setattr__(self, "eta", within("eta", eta, above=0.0))
        object.__setattr__(self, "hurst", within("hurst", hurst, above=0.0, at_most=0.5))
        object.__setattr__(self, "rho", within("rho", rho, above=-1.0, below=1.0))
        _ = self.batch_shape  # shapes that do not broadcast are an error here, not later

    @property
    def batch_shape(self) -> torch.Size:
        """Shape of the batch of parameter sets."""
        xi = self.xi.batch_shape if isinstance(self.xi, ForwardVarianceCurve) else self.xi.shape
        return broadcast_shape(xi=xi, eta=self.eta, hurst=self.hurst, rho=self.rho)

    def forward_variance(self, time: Tensor) -> Tensor:
        """Forward variance at `time`, years, of shape `(n,)`; shape `*batch n`, the batch that of `xi`."""
        if isinstance(self.xi, ForwardVarianceCurve):
            return self.xi.variance(time)
        return self.xi.unsqueeze(-1) + torch.zeros_like(time)


def turbocharged_price(
    model: RoughBergomi, log_moneyness: Any, expiry: Any, *, n_paths: int, n_steps: int, seed: int
) -> Estimate:
    r"""Out-of-the-money options of all strikes and expiries from one set of paths, by the mixed estimator.

    Given the Brownian motion of the variance, the asset is lognormal: each path gives the Black price with forward
    $m^1_T = \exp(\rho \int \sqrt{V} dW - \tfrac12 \rho^2 \int V dt)$ and variance $(1 - \rho^2) \int V dt$. The
    control variate is the Black price with the same forward and variance $\rho^2 (Q - \int V dt)$: an option on $m^1$
    at the time its quadratic variation reaches $\rho^2 Q$, where it is lognormal. $Q$ is the largest $\int V dt$ among
    the paths, as in the paper. That, and the regression on the same paths, bias the price by order 1 / `n_paths`.
    Where the mean of the control is more than 4 of its standard errors from the known one and the regression's
    coefficient 2 or more, as in wings that none of its paths reaches, the price is the mean without it. Paths come in
    antithetic pairs.

    Args:
        model: the model; batches broadcast.
        log_moneyness: log(strike/forward): a put below 0, a call from 0 on; shape `(n_strikes,)` or
            `(n_expiries, n_strikes)`.
        expiry: years, ascending; shape `(n_expiries,)`.
        n_paths: number of paths, even.
        n_steps: steps to the last expiry. Convergence in it is slow: at H = 0.07 and three months the right wing moves
            by a fifth of a volatility point between 300 and 1,000 steps.
        seed: any integer; the result depends on it and on `n_paths`, not on what else is in the batch.

    Returns:
        Undiscounted prices per unit of forward, shape `*batch n_expiries n_strikes`; `std_error` is that of the pairs.

    Raises:
        ValueError: `n_paths` is odd or below 4, or an argument has a wrong shape.

    References:
        McCrickerd and Pakkanen (2018), Turbocharging Monte Carlo pricing for the rough Bergomi model, section 3.

    >>> model = RoughBergomi(xi=0.055, eta=1.9, hurst=0.07, rho=-0.9)
    >>> price = turbocharged_price(model, [-0.1, 0.0, 0.1], [0.25, 0.5], n_paths=4096, n_steps=100, seed=1)
    >>> price.value.shape, bool((price.std_error < 1e-3).all())
    (torch.Size([2, 3]), True)
    """
    if not isinstance(model, RoughBergomi):
        raise ValueError(f"`model` must be a RoughBergomi, got {type(model).__name__}; price others by MonteCarlo")
    expiry = dates("expiry", expiry)
    log_moneyness = _strikes(log_moneyness, expiry)
    n_paths, n_steps = whole("n_paths", n_paths), whole("n_steps", n_steps, at_least=1)
    seed = whole("seed", seed)
    if n_paths < 4 or n_paths % 2:
        raise ValueError(f"`n_paths` must be even and 4 or more, got {n_paths}")
    grid = time_grid(expiry, n_steps)
    nodes = torch.searchsorted(grid.detach(), expiry.detach() - 1e-10) - 1  # the step that ends at each expiry
    log_forward, variance = _conditional_paths(model, grid, nodes, n_paths, seed)
    columns = [
        _mean_and_error(mixed_samples(model.rho, log_forward[row], variance[row], log_moneyness[row]))
        for row in range(len(expiry))
    ]
    value, std_error = (torch.stack(part, dim=-2) for part in zip(*columns, strict=True))
    note = f"hybrid scheme, {grid.shape[0] - 1} steps"
    return Estimate(value, std_error, n_paths=n_paths, engine="turbocharged", note=note)


def _conditional_paths(
    model: RoughBergomi, grid: Tensor, nodes: Tensor, n_paths: int, seed: int
) -> tuple[Tensor, Tensor]:
    r"""$\log m^1$ and $\int V dt$ at the ends of steps `nodes`, shape `n_nodes *batch pairs 2`."""
    scheme, rho, n_steps = HybridScheme(), model.rho.unsqueeze(-1), grid.shape[0] - 1
    forwards: list[Tensor] = []
    variances: list[Tensor] = []
    for start in range(0, n_paths, BLOCK):
        generator = torch.Generator(device=grid.device).manual_seed(address("turbocharged", seed, start // BLOCK))
        # a whole block is drawn, even of a short last one: a path does not depend on how many come after it
        shape = (n_steps, scheme.n_normals, BLOCK // 2)
        normals = torch.randn(shape, generator=generator, dtype=grid.dtype, device=grid.device)
        normals = normals[..., : (n_paths - start) // 2]
        drift, _, variance = scheme.increments(model, grid, torch.cat([normals, -normals], dim=-1))
        drift = drift + 0.5 * (1.0 - rho**2) * variance
        forwards.append(_pairs(drift.cumsum(0)[nodes]))
        variances.append(_pairs(variance.cumsum(0)[nodes]))
    return torch.cat(forwards, dim=-2), torch.cat(variances, dim=-2)


def _pairs(paths: Tensor) -> Tensor:
    """Mirror images side by side: `... paths` as `... pairs 2`."""
    return torch.stack(paths.chunk(2, dim=-1), dim=-1)


def mixed_samples(rho: Tensor, log_forward: Tensor, variance: Tensor, log_moneyness: Tensor) -> Tensor:
    """Out-of-the-money Black prices given the variance, with their control variate: see `turbocharged_price`.

    Args:
        rho: correlation, shape `*batch`.
        log_forward: $\\log m^1$ to one expiry, mirror images side by side, shape `*batch pairs 2`.
        variance: $\\int V dt$ of the same paths.
        log_moneyness: shape `(n_strikes,)`.

    Returns:
        A price of each pair, undiscounted per unit of forward; shape `*batch n_strikes pairs`.
    """
    squared = (rho**2)[..., None, None]
    most = variance.detach().amax((-2, -1), keepdim=True) * (1.0 + 1e-6)  # a bit more, so that no variance is 0
    log_strike = log_moneyness[:, None, None]
    payoff = _otm_price(log_forward.unsqueeze(-3), log_strike, ((1.0 - squared) * variance).unsqueeze(-3)).mean(-1)
    control = _otm_price(log_forward.unsqueeze(-3), log_strike, (squared * (most - variance)).unsqueeze(-3)).mean(-1)
    expected = _otm_price(torch.zeros_like(log_strike), log_strike, (squared * most).unsqueeze(-3)).mean(-1)
    n_pairs = payoff.shape[-1]
    mean = _sum(control.detach()) / n_pairs
    centred = control.detach() - mean.unsqueeze(-1)
    spread = _sum(centred.square())
    share = _sum(centred * payoff.detach()) / torch.where(spread > 0.0, spread, 1.0)
    # far in the wings the control may pay on paths too rare to be among these: its scatter is far too small then, the
    # share far too large, and their product with the known mean would swamp the price; where the share is that of two
    # options alike, a sample far from the mean is what the control is for
    told = (mean - expected.squeeze(-1)).abs() * n_pairs <= MOST_DEVIATIONS * spread.sqrt()
    share = torch.where(told | (share.abs() < USUAL_SHARE), share, 0.0)
    return payoff - share.unsqueeze(-1) * (control - expected)


def _mean_and_error(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard error over the last axis."""
    n_pairs = samples.shape[-1]
    mean = _sum(samples) / n_pairs
    sample_variance = _sum((samples - mean.unsqueeze(-1)).square()) / (n_pairs - 1)
    return mean, (sample_variance / n_pairs).sqrt()


def _sum(samples: Tensor) -> Tensor:
    """Sum over the last axis, block by block: torch splits a long sum otherwise when it is the only one."""
    return torch.stack([block.sum(-1) for block in samples.split(BLOCK, -1)], dim=-1).sum(-1)


def _otm_price(log_forward: Tensor, log_strike: Tensor, variance: Tensor) -> Tensor:
    """Black price of the put below strike 1 and of the call from 1 on."""
    deviation = variance.clamp_min(LEAST_VARIANCE).sqrt()
    sign = torch.where(log_strike < 0.0, -1.0, 1.0).to(log_strike.dtype)
    upper = (log_forward - log_strike) / deviation + 0.5 * deviation
    return sign * (
        log_forward.exp() * normal_cdf(sign * upper) - log_strike.exp() * normal_cdf(sign * (upper - deviation))
    )


def _strikes(log_moneyness: Any, expiry: Tensor) -> Tensor:
    """Log-moneyness as `n_expiries n_strikes`."""
    log_moneyness = plausible(
        "log_moneyness", real("log_moneyness", log_moneyness), 20.0, "are these strikes? give log(strike / forward)"
    )
    if expiry.ndim != 1:
        raise ValueError(f"`expiry` must have one axis, got shape {tuple(expiry.shape)}")
    if log_moneyness.ndim not in (1, 2) or (log_moneyness.ndim == 2 and log_moneyness.shape[0] != expiry.shape[0]):
        raise ValueError(
            f"`log_moneyness` must have shape (n_strikes,) or ({expiry.shape[0]}, n_strikes) beside `expiry` of shape "
            f"{tuple(expiry.shape)}, got {tuple(log_moneyness.shape)}"
        )
    return log_moneyness.expand(expiry.shape[0], log_moneyness.shape[-1])


def _with_axes(tensor: Tensor, n_axes: int) -> Tensor:
    """`tensor` with leading axes of length 1 up to `n_axes`."""
    return tensor.reshape((1,) * (n_axes - tensor.ndim) + tensor.shape)


def _with_axes_after_first(tensor: Tensor, n_axes: int) -> Tensor:
    """A tensor `n_steps paths` with `n_axes` axes of length 1 between the two."""
    return tensor.reshape(tensor.shape[0], *(1,) * n_axes, tensor.shape[1])
