"""Means and covariances of payoffs and controls, gathered tile by tile so that chunks do not matter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from pricers.noise import TILE

__all__ = ["LEAST_DECIDING", "Moments", "controlled", "merged", "pooled", "student_factor", "tile_moments"]

LEAST_FREEDOM = 8  # degrees of freedom that the slopes of controls must leave to the repeats
DECISIVE = 0.5  # of the variance, which slopes of the repeats must leave less than to be taken
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
    return (_inverse(scatter[..., 1:, 1:]) @ scatter[..., 0, 1:].unsqueeze(-1)).squeeze(-1)


def _inverse(scatter: Tensor) -> Tensor:
    """Inverse on the rows that are not constant or combinations of others."""
    size = scatter.diagonal(dim1=-2, dim2=-1)
    # scaled to a correlation, so that one threshold fits all units
    scale = torch.where(size > 0, size, 1.0).sqrt()
    scales = scale.unsqueeze(-1) * scale.unsqueeze(-2)
    return torch.linalg.pinv(scatter / scales, hermitian=True, rtol=1e-9) / scales


def controlled(repeats: list[Moments], known: Tensor | None) -> tuple[Tensor, Tensor]:
    r"""Mean of the first row after its controls, and the standard error of that mean.

    The error comes from the paths, or from the scatter of several repeats. With $n$ repeats the deviation over the
    plain standard error $s$ follows Student's law of $\nu$ degrees of freedom, not the normal: what is returned is $s$
    times $t_\nu / 2$, with $t_\nu$ the quantile that belongs to 2 under the normal law, so that two standard errors
    cover as often as two of a known deviation would. That is 9 % for 16 repeats.

    The slopes of the controls come from the paths, or from the means of the repeats where these leave less than half
    the variance: what matters for low-discrepancy points is how their errors in payoff and control go together, not
    payoff and control on a path (Hickernell, Lemieux and Owen). That takes away most of the error of a payoff whose
    tail is that of its control, and with it the skewness that hides the error from a scatter. Slopes of the repeats
    cost a degree of freedom each, so that they are not taken for less.

    What is promised holds for repeats that are about normal. A payoff with a long tail and no control has skewed
    repeats, most of which miss the tail: then about one in eight lies beyond two standard errors at 16 repeats, on the
    low side. More repeats mend that at the cost of accuracy; a control mends it for nothing.

    Args:
        repeats: moments of each independent repeat; row 0 is the payoff, the others are controls.
        known: expectations of the controls, shape `*batch rows-1`; None without controls.

    References:
        Hickernell, Lemieux and Owen (2005), Control variates for quasi-Monte Carlo.
    """
    total = pooled(repeats)
    n_controls = 0 if known is None else known.shape[-1]
    # a payoff that a few paths decide is explained by anything: then no control is fitted to it
    trusted = (total.deciding >= LEAST_DECIDING * (1 + n_controls)).all(-1)
    if len(repeats) > 1:
        return _of_repeats(torch.stack([repeat.mean for repeat in repeats]), total, known, trusted)
    value, residual, freedom = repeats[0].mean[..., 0], total.scatter[..., 0, 0], torch.as_tensor(total.n - 1)
    if known is not None:
        weights = torch.where(trusted.unsqueeze(-1), control_weights(total.scatter), 0.0)
        value = value - (weights * (repeats[0].mean[..., 1:] - known)).sum(-1)
        residual = residual - (weights * total.scatter[..., 0, 1:]).sum(-1)
        freedom = total.n - 1 - n_controls * trusted
    return value, (residual.clamp(min=0.0) / freedom / total.n).sqrt()


def _of_repeats(means: Tensor, total: Moments, known: Tensor | None, trusted: Tensor) -> tuple[Tensor, Tensor]:
    """`controlled` from the means of the repeats, shape `n_repeats *batch rows`."""
    n_repeats = means.shape[0]
    plain, share, freedom = means[..., 0], means.new_tensor(1.0 / n_repeats), n_repeats - 1
    if known is None:
        value = plain.mean(0)
        return value, (plain - value).square().sum(0).mul(share / freedom).sqrt() * student_factor(freedom)
    n_controls = known.shape[-1]
    weights = torch.where(trusted.unsqueeze(-1), control_weights(total.scatter), 0.0)
    fitted = torch.zeros_like(trusted)
    if freedom - n_controls >= LEAST_FREEDOM:
        deviation = means - means.mean(0)
        constant = deviation.detach().abs().amax(0) <= 1e-11 * means.detach().abs().amax(0)  # but for rounding
        deviation = torch.where(constant, 0.0, deviation)
        inverse = _inverse((deviation[..., 1:].unsqueeze(-1) * deviation[..., 1:].unsqueeze(-2)).sum(0))
        aim = (deviation[..., 1:] * deviation[..., :1]).sum(0)
        slopes = (inverse @ aim.unsqueeze(-1)).squeeze(-1)
        left_by_paths, left_by_repeats = (_left(deviation.detach(), x.detach()) for x in (weights, slopes))
        decisive = left_by_repeats / (freedom - n_controls) < DECISIVE * left_by_paths / freedom
        # what is hit rarely, or the hits of a digital, take few values, to which a line fits by chance
        fitted = decisive & (_n_distinct(plain.detach()) > n_repeats // 2)
        weights = torch.where(fitted.unsqueeze(-1), slopes, weights)
        gap = means[..., 1:].mean(0) - known  # a line is less certain the further it is followed
        leverage = (gap.unsqueeze(-2) @ inverse @ gap.unsqueeze(-1))[..., 0, 0]
        share = share + torch.where(fitted, leverage, 0.0)
    adjusted = plain - (weights * (means[..., 1:] - known)).sum(-1)
    value = adjusted.mean(0)
    left = torch.where(fitted, freedom - n_controls, freedom)
    factors = means.new_tensor([student_factor(freedom), student_factor(max(1, freedom - n_controls))])
    return value, ((adjusted - value).square().sum(0) * share / left).sqrt() * factors[fitted.long()]


def _left(deviation: Tensor, weights: Tensor) -> Tensor:
    """Sum of squares that the controls leave of the payoff."""
    return (deviation[..., 0] - (weights * deviation[..., 1:]).sum(-1)).square().sum(0)


def _n_distinct(values: Tensor) -> Tensor:
    """Number of different values along the first axis."""
    ordered, _ = values.sort(dim=0)
    return 1 + (ordered.diff(dim=0) > 1e-12 * values.abs().amax(0)).sum(0)


@lru_cache(maxsize=64)
def student_factor(freedom: int) -> float:
    r"""Half the quantile $t$ of Student's law for which $P(|T| > t) = P(|Z| > 2)$, Z normal.

    Args:
        freedom: degrees of freedom, 1 or more.

    References:
        Abramowitz and Stegun (1964), eqs. 26.7.3 and 26.7.4: the law as a finite sum.

    >>> [round(student_factor(freedom), 4) for freedom in (1, 7, 15, 1000)]
    [6.9839, 1.2144, 1.0906, 1.0013]
    """
    low, high = 0.0, 0.5 * math.pi
    for _ in range(60):
        angle = 0.5 * (low + high)  # tan of it is t over the root of `freedom`
        term = math.cos(angle) if freedom % 2 else 1.0
        total = 0.0
        for k in range(1 + freedom % 2, freedom, 2):
            total += term
            term *= math.cos(angle) ** 2 * k / (k + 1)
        covered = math.sin(angle) * total
        if freedom % 2:
            covered = (2.0 / math.pi) * (angle + covered)
        low, high = (angle, high) if covered < math.erf(math.sqrt(2.0)) else (low, angle)
    return 0.5 * math.tan(low) * math.sqrt(freedom)
