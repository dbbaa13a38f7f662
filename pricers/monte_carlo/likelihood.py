"""Paths that stay where they are while their density moves: for derivatives of payoffs with jumps."""

from __future__ import annotations

import torch
from torch import Tensor

from pricers.models.base import DirectScheme, PathScheme, Step
from pricers.models.jumps import WithJumps
from pricers.monte_carlo.simulate import Plan, Recorded
from pricers.noise import Normals

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
    assert not isinstance(plan.scheme, DirectScheme)
    model, market, scheme = plan.model, plan.market, plan.scheme
    root = getattr(model, "correlation_root", None)
    several = root is not None
    times = plan.grid.reshape(-1, *[1] * len(market.batch_shape(model.n_assets)))
    forwards = (market.asset_forwards(times) if several else market.forward(times)).log()
    log_forward = [forward.unsqueeze(-1) for forward in forwards]
    assets = (model.n_assets,) if several else ()
    level = log_forward[0] + plan.grid.new_zeros(*model.batch_shape, *assets, width)
    density = torch.zeros((), dtype=level.dtype, device=level.device)
    ratios, variances, jumps = [level - log_forward[0]], [], []
    state, whole = (), None
    if isinstance(scheme, PathScheme):
        noise = torch.stack([normals.step(step)[: scheme.n_normals, :width] for step in range(plan.dt.shape[0])])
        whole = scheme.increments(model, plan.grid, noise)
    else:
        state = scheme.start(model)
    # with normals of its own or exact, a scheme does not look at the price: its steps add up to one normal
    joined = scheme.n_normals > 0 or scheme.exact
    tiny = torch.finfo(level.dtype).tiny
    drift = residual = shock = torch.zeros((), dtype=level.dtype, device=level.device)
    start = 0
    for step, keep in enumerate(plan.kept):
        drawn = normals.step(step)[:, :width]
        if isinstance(scheme, PathScheme):
            assert whole is not None
            done = Step((), *(part[step] for part in whole))
        else:
            coefficients = scheme.coefficients(model, market, plan.grid[step], plan.dt[step])
            done = scheme.advance(coefficients, level - log_forward[step], state, drawn[: scheme.n_normals])
            state = done.state
        z = drawn[scheme.n_normals :] if several else drawn[scheme.n_normals]
        drift, residual = drift + done.drift, residual + done.residual_variance
        shock = shock + done.deviation * (z if root is None else torch.matmul(root, z))
        if not keep and joined:
            continue
        mean = level + (log_forward[step + 1] - log_forward[start]) + drift
        deviation = residual.clamp(min=tiny).sqrt()
        level = (mean + shock).detach()
        density = density + _log_density(level - mean, deviation, root)
        drift = residual = shock = density.new_zeros(())
        start = step + 1
        if keep:
            ratios.append(level - log_forward[step + 1])
            if plan.continuous:
                variances.append(done.variance.expand_as(level))
                jumps.append(done.jumps_squared)
    recorded = Recorded(
        torch.stack(ratios).exp(),
        torch.stack(variances) if plan.continuous else None,
        torch.stack(jumps) if scheme.has_jumps and plan.continuous else None,
    )
    return recorded, density


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


def _log_density(gap: Tensor, deviation: Tensor, root: Tensor | None) -> Tensor:
    """Of a normal gap with the given deviation (for several assets: correlated by `root`), up to a constant."""
    scaled = gap / deviation
    if root is None:
        return -0.5 * scaled**2 - torch.log(deviation.expand_as(scaled))
    white = torch.linalg.solve_triangular(root, scaled, upper=False)
    spread = torch.log(deviation.expand_as(scaled)).sum(-2) + torch.log(root.diagonal(dim1=-2, dim2=-1)).sum(
        -1, keepdim=True
    )
    return -0.5 * (white**2).sum(-2) - spread
