"""Means and covariances of payoffs and controls, gathered tile by tile so that chunks do not matter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pricers.noise import TILE

__all__ = ["LEAST_DECIDING", "Moments", "controlled", "merged", "pooled", "tile_moments"]

LEAST_DECIDING = 16  # samples for each coefficient of a regression; below, a standard error is rough too


@dataclass(frozen=True)
class Moments:
    """Mean and scatter of rows of numbers.

    Args:
        n: how many.
        mean: shape `*batch rows`.
        scatter: sum of products of deviations, shape `*batch rows rows`.
        quartic: sum of the fourth powers of the deviations from the mean of each tile, shape `*batch rows`.
    """

    n: int
    mean: Tensor
    scatter: Tensor
    quartic: Tensor

    @property
    def deciding(self) -> Tensor:
        r"""How many samples decide the scatter of each row, $(\sum d^2)^2 / \sum d^4$; shape `*batch rows`.

        A third of them all for a normal row, the number of hits for a payoff that is rarely hit, 0 for a constant.
        """
        square = self.scatter.diagonal(dim1=-2, dim2=-1)
        return torch.where(self.quartic > 0, square**2 / self.quartic, 0.0)


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
        found += _moments(tiles, pairs)
    if width > whole:
        found += _moments(values[..., whole:].double()[None], pairs)
    return found


def _moments(tiles: Tensor, pairs: bool) -> list[Moments]:
    """Of each tile, `tiles *batch rows n`."""
    if pairs:
        half = tiles.shape[-1] // 2
        tiles = 0.5 * (tiles[..., :half] + tiles[..., half:])
    tiles = tiles.contiguous()  # so that a sum runs in the same order whatever is beside it
    mean = tiles.mean(-1)
    deviation = tiles - mean.unsqueeze(-1)
    rows = [[(one * other).sum(-1) for other in deviation.unbind(-2)] for one in deviation.unbind(-2)]
    scatter = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    quartic = deviation.detach().square().square_().sum(-1)
    return [Moments(tiles.shape[-1], *parts) for parts in zip(mean, scatter, quartic, strict=True)]


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
    scatter = one.scatter + other.scatter + outer * (one.n * other.n / n)
    return Moments(n, mean, scatter, one.quartic + other.quartic)


def pooled(repeats: list[Moments]) -> Moments:
    """Moments of all repeats together."""
    total: Moments | None = None
    for repeat in repeats:
        total = merged(total, repeat)
    assert total is not None
    return total


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
    total = pooled(repeats)
    means = torch.stack([repeat.mean[..., 0] for repeat in repeats])
    residual, freedom = total.scatter[..., 0, 0], torch.as_tensor(total.n - 1)
    if known is not None:
        n_controls = known.shape[-1]
        # a payoff that a few paths decide is explained by anything: then no control is fitted to it
        trusted = (total.deciding >= LEAST_DECIDING * (1 + n_controls)).all(-1, keepdim=True)
        weights = torch.where(trusted, control_weights(total.scatter), 0.0)
        controls = torch.stack([repeat.mean[..., 1:] for repeat in repeats])
        means = means - (weights * (controls - known)).sum(-1)
        residual = residual - (weights * total.scatter[..., 0, 1:]).sum(-1)
        freedom = total.n - 1 - n_controls * trusted.squeeze(-1)
    value = means.mean(0)
    if len(repeats) > 1:
        return value, means.std(0) / len(repeats) ** 0.5
    return value, (residual.clamp(min=0.0) / freedom / total.n).sqrt()
