"""Means and covariances of payoffs and controls, gathered tile by tile so that chunks do not matter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pricers.noise import TILE

__all__ = ["Moments", "controlled", "merged", "tile_moments"]


@dataclass(frozen=True)
class Moments:
    """Mean and scatter of rows of numbers.

    Args:
        n: how many.
        mean: shape `*batch rows`.
        scatter: sum of products of deviations, shape `*batch rows rows`.
    """

    n: int
    mean: Tensor
    scatter: Tensor


def tile_moments(values: Tensor, pairs: bool) -> list[Moments]:
    """Moments of each tile of the paths, in float64.

    Args:
        values: shape `*batch rows width`; the width begins at a tile.
        pairs: average the mirrored halves of each tile first: a pair is one number.
    """
    width = values.shape[-1]
    whole = width // TILE * TILE
    found: list[Moments] = []
    if whole:
        tiles = values[..., :whole].double().unflatten(-1, (-1, TILE)).movedim(-2, 0)
        found += [Moments(n, mean, scatter) for n, mean, scatter in _moments(tiles, pairs)]
    if width > whole:
        found += [Moments(n, mean, scatter) for n, mean, scatter in _moments(values[..., whole:].double()[None], pairs)]
    return found


def _moments(tiles: Tensor, pairs: bool) -> list[tuple[int, Tensor, Tensor]]:
    """Of each tile, `tiles *batch rows n`: how many, mean, scatter."""
    if pairs:
        half = tiles.shape[-1] // 2
        tiles = 0.5 * (tiles[..., :half] + tiles[..., half:])
    tiles = tiles.contiguous()  # so that a sum runs in the same order whatever is beside it
    mean = tiles.mean(-1)
    deviation = tiles - mean.unsqueeze(-1)
    rows = [[(one * other).sum(-1) for other in deviation.unbind(-2)] for one in deviation.unbind(-2)]
    scatter = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    return [(tiles.shape[-1], one, two) for one, two in zip(mean, scatter, strict=True)]


def merged(one: Moments | None, other: Moments) -> Moments:
    """Moments of both samples together.

    References:
        Chan, Golub and LeVeque (1983), Algorithms for computing the sample variance.
    """
    if one is None:
        return other
    n = one.n + other.n
    gap = other.mean - one.mean
    mean = one.mean + gap * (other.n / n)
    outer = gap.unsqueeze(-1) * gap.unsqueeze(-2)
    return Moments(n, mean, one.scatter + other.scatter + outer * (one.n * other.n / n))


def control_weights(scatter: Tensor) -> Tensor:
    """Regression coefficients of the first row on the others, shape `*batch rows-1`; 0 for a constant control."""
    controls = scatter[..., 1:, 1:]
    size = controls.diagonal(dim1=-2, dim2=-1)
    # scaled to a correlation, so that one threshold fits all units
    scale = torch.where(size > 0, size, 1.0).sqrt()
    correlation = controls / (scale.unsqueeze(-1) * scale.unsqueeze(-2))
    aim = scatter[..., 0, 1:] / scale
    weights = torch.linalg.pinv(correlation, hermitian=True, rtol=1e-9) @ aim.unsqueeze(-1)
    return weights.squeeze(-1) / scale


def controlled(repeats: list[Moments], known: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean of the first row after its controls, and the standard error of that mean.

    With several repeats the error comes from their scatter, else from the paths.

    Args:
        repeats: moments of each independent repeat; row 0 is the payoff, the others are controls.
        known: expectations of the controls, shape `*batch rows-1`; None without controls.
    """
    total: Moments | None = None
    for repeat in repeats:
        total = merged(total, repeat)
    assert total is not None
    if known is None:
        means = torch.stack([repeat.mean[..., 0] for repeat in repeats])
        residual = total.scatter[..., 0, 0]
        rows = 1
    else:
        weights = control_weights(total.scatter)
        means = torch.stack([r.mean[..., 0] - (weights * (r.mean[..., 1:] - known)).sum(-1) for r in repeats])
        residual = total.scatter[..., 0, 0] - (weights * total.scatter[..., 0, 1:]).sum(-1)
        rows = 1 + known.shape[-1]
    value = means.mean(0)
    if len(repeats) > 1:
        return value, means.std(0) / len(repeats) ** 0.5
    freedom = max(total.n - rows, 1)
    return value, (residual.clamp(min=0.0) / freedom / total.n).sqrt()
