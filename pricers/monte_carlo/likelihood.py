"""Paths that stay where they are while their density moves: for derivatives of payoffs with jumps."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from pricers.models.base import DirectScheme, PathScheme, State, Step
from pricers.models.jumps import WithJumps
from pricers.monte_carlo.simulate import Plan, Recorded
from pricers.noise import Normals
from pricers.normal import deviation

__all__ = ["jump_density", "record_weighted"]


def record_weighted(plan: Plan, normals: Normals, width: int) -> tuple[Recorded, Tensor]:
    r"""Prices of the paths, held fixed, and the logarithm of their density (up to a constant).

    Given the rest of the state, $\log S$ is normal between recorded times. The derivative of a mean is the mean of the
    derivative of `payoff * exp(log density)`, in which the prices are constants; what does not drive the asset itself
    (the variance path, the jumps) is differentiated along its path. The fewer times are recorded, the less noise.

    Returns:
        Prices over forwards of the fixed paths (so that times the forwards they do not move), and the logarithm of the
        density, whose own value does not matter; shape `*batch paths`.

    References:
        Glasserman (2004), section 7.3.
    """
    scheme, root = plan.scheme, getattr(plan.model, "correlation_root", None)
    log_forward = _log_forwards(plan)
    assets = () if root is None else (plan.model.n_assets,)
    level = log_forward[0] + plan.grid.new_zeros(*plan.model.batch_shape, *assets, width)
    steps = _Steps(plan, normals, width)
    # with normals of its own or exact, a scheme does not look at the price: its steps add up to one normal
    joined = scheme.n_normals > 0 or scheme.exact
    none = torch.zeros((), dtype=level.dtype, device=level.device)
    density = drift = residual = shock = none
    ratios, kept = [level - log_forward[0]], []
    start = 0
    for step, keep in enumerate(plan.kept):
        done, asset_normal = steps.advance(step, level - log_forward[step])
        drift, residual = drift + done.drift, residual + done.residual_variance
        shock = shock + done.deviation * asset_normal
        if not keep and joined:
            continue
        mean = level + (log_forward[step + 1] - log_forward[start]) + drift
        level = (mean + shock).detach()
        density = density + _log_density(level - mean, deviation(residual), root)
        drift = residual = shock = none
        start = step + 1
        if keep:
            ratios.append(level - log_forward[step + 1])
            kept.append(done)
    return _recorded(plan, ratios, kept), density


class _Steps:
    """The steps of the plan's scheme in order, each with the normal that drives the asset itself."""

    def __init__(self, plan: Plan, normals: Normals, width: int) -> None:
        self._plan, self._normals, self._width = plan, normals, width
        self._root = getattr(plan.model, "correlation_root", None)
        self._state: State = ()
        self._whole: tuple[Tensor, Tensor, Tensor] | None = None
        if isinstance(plan.scheme, PathScheme):
            n_normals, n_steps = plan.scheme.n_normals, plan.dt.shape[0]
            noise = torch.stack([normals.step(step)[:n_normals, :width] for step in range(n_steps)])
            self._whole = plan.scheme.increments(plan.model, plan.grid, noise)
        else:
            assert not isinstance(plan.scheme, DirectScheme)
            self._state = plan.scheme.start(plan.model)

    def advance(self, step: int, log_ratio: Tensor) -> tuple[Step, Tensor]:
        """The step from `log_ratio`, price over forward, and the asset's normal (for several assets: correlated)."""
        plan, drawn = self._plan, self._normals.step(step)[:, : self._width]
        n_normals = plan.scheme.n_normals
        if isinstance(plan.scheme, PathScheme):
            assert self._whole is not None
            done = Step((), *(part[step] for part in self._whole))
        else:
            assert not isinstance(plan.scheme, DirectScheme)
            coefficients = plan.scheme.coefficients(plan.model, plan.market, plan.grid[step], plan.dt[step])
            done = plan.scheme.advance(coefficients, log_ratio, self._state, drawn[:n_normals])
            self._state = done.state
        return done, drawn[n_normals] if self._root is None else torch.matmul(self._root, drawn[n_normals:])


def _log_forwards(plan: Plan) -> list[Tensor]:
    """Logarithm of the forward at each time of the grid, shape `*batch [n_assets] 1`."""
    model, market = plan.model, plan.market
    times = plan.grid.reshape(-1, *[1] * len(market.batch_shape(model.n_assets)))
    several = getattr(model, "correlation_root", None) is not None
    forwards = market.asset_forwards(times) if several else market.forward(times)
    return [forward.unsqueeze(-1) for forward in forwards.log()]


def _recorded(plan: Plan, log_ratios: list[Tensor], steps: list[Step]) -> Recorded:
    """What the payoff sees: prices over forwards, and for a continuous contract what happened between them."""
    ratios = torch.stack(log_ratios).exp()
    if not plan.continuous:
        return Recorded(ratios, None, None)
    variances = torch.stack([step.variance.expand_as(log_ratios[-1]) for step in steps])
    if not plan.scheme.has_jumps:
        return Recorded(ratios, variances, None)
    return Recorded(ratios, variances, torch.stack([cast(Tensor, step.jumps_squared) for step in steps]))


def jump_density(plan: Plan, normals: Normals) -> Tensor:
    r"""Logarithm of the probability of the numbers of jumps along the paths, up to a constant; shape `*batch paths`.

    $\sum_i n_i \log(\lambda \Delta_i) - \lambda \Delta_i$: its derivative is the score of the Poisson law.
    """
    scheme = plan.scheme
    assert isinstance(scheme, WithJumps)
    total = torch.zeros((), dtype=plan.grid.dtype, device=plan.grid.device)
    for step, dt in enumerate(plan.dt):
        total = total + scheme.log_probability(plan.model, dt, normals.step(step))
    return total


def _log_density(gap: Tensor, spread: Tensor, root: Tensor | None) -> Tensor:
    """Of a normal gap of standard deviation `spread` (for several assets: correlated by `root`), up to a constant."""
    scaled = gap / spread
    if root is None:
        return -0.5 * scaled**2 - torch.log(spread.expand_as(scaled))
    white = torch.linalg.solve_triangular(root, scaled, upper=False)
    log_volume = torch.log(spread.expand_as(scaled)).sum(-2) + torch.log(root.diagonal(dim1=-2, dim2=-1)).sum(
        -1, keepdim=True
    )
    return -0.5 * (white**2).sum(-2) - log_volume
