"""Paths that stay where they are while their density moves: for derivatives of payoffs with jumps."""

from __future__ import annotations

import torch
from torch import Tensor

from pricers.models.base import DirectScheme, PathScheme
from pricers.monte_carlo.simulate import Plan, Recorded
from pricers.noise import Normals

__all__ = ["record_weighted"]


def record_weighted(plan: Plan, normals: Normals, width: int) -> tuple[Recorded, Tensor]:
    r"""Prices of the paths, held fixed, and the logarithm of their density (up to a constant).

    Given the rest of the state, $\log S$ is normal over each step. The derivative of a mean is the mean of the
    derivative of `payoff * exp(log density)`, in which the prices are constants; what does not drive the asset itself
    (the variance path) is differentiated along its path.

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
    n_steps = plan.dt.shape[0]
    increments = None
    if isinstance(scheme, PathScheme):
        noise = torch.stack([normals.step(step)[:, :width].clone() for step in range(n_steps)])
        increments = (*scheme.increments(model, plan.grid, noise[:, : scheme.n_normals]), noise[:, scheme.n_normals :])
        state = ()
    else:
        state = scheme.start(model)
    assets = (model.n_assets,) if several else ()
    log_forward = [forward.unsqueeze(-1) for forward in forwards]
    level = log_forward[0] + plan.grid.new_zeros(*model.batch_shape, *assets, width)
    density = torch.zeros((), dtype=level.dtype, device=level.device)
    ratios, variances, jumps = [level - log_forward[0]], [], []
    for step, keep in enumerate(plan.kept):
        if increments is not None:
            drift, residual, variance, asset = (part[step] for part in increments)
            jumped, z = None, asset[0]
        else:
            assert not isinstance(scheme, PathScheme)
            drawn = normals.step(step)[:, :width]
            relative = level - log_forward[step]
            coefficients = scheme.coefficients(model, market, plan.grid[step], plan.grid[step + 1] - plan.grid[step])
            done = scheme.advance(coefficients, relative, state, drawn[: scheme.n_normals])
            state, drift, residual, variance, jumped = done
            z = torch.matmul(root, drawn[scheme.n_normals :]) if several else drawn[scheme.n_normals]
        mean = level + (log_forward[step + 1] - log_forward[step]) + drift
        deviation = residual.sqrt()
        after = (mean + deviation * z).detach()
        density = density + _log_density(after - mean, deviation, root)
        level = after
        if keep:
            ratios.append(level - log_forward[step + 1])
            if plan.continuous:
                variances.append(variance.expand_as(level))
                jumps.append(jumped)
    recorded = Recorded(
        torch.stack(ratios).exp(),
        torch.stack(variances) if plan.continuous else None,
        torch.stack(jumps) if scheme.has_jumps and plan.continuous else None,
    )
    return recorded, density


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
