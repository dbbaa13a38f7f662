"""Have the chains of a sampler met, and how many independent draws are theirs worth?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["effective_sample_size", "split_r_hat"]


def split_r_hat(draws: Tensor) -> Tensor:
    r"""Rank-normalised split $\hat R$: 1 where the halves of all chains agree in location and in spread.

    The larger of that of the draws and that of their distances from the median; both are taken of normal scores of the
    ranks, so that neither a monotone transform of the draws nor a heavy tail matters.

    Args:
        draws: shape `*batch chains draws`, at least 4 draws a chain.

    Returns:
        Shape `*batch`; NaN where all draws are equal, or one is not finite.

    References:
        Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), "Rank-normalization, folding, and localization: an
        improved R-hat for assessing convergence of MCMC", section 4, eq. 14.

    Example:
        >>> apart = torch.stack([torch.linspace(0, 1, 50), torch.linspace(5, 6, 50)]).double()
        >>> bool(split_r_hat(apart) > 1.5)
        True
    """
    halves = _split(draws)
    median = halves.flatten(-2).median(dim=-1).values[..., None, None]
    location, spread = (_r_hat(_normal_scores(part)) for part in (halves, (halves - median).abs()))
    return torch.where(halves.isfinite().flatten(-2).all(-1), torch.maximum(location, spread), math.nan)


def effective_sample_size(draws: Tensor) -> Tensor:
    r"""Independent draws whose mean would be as sure: $mn / (1 + 2 \sum_t \rho_t)$ over m half chains of n draws.

    The sum ends where the sum of two neighbouring autocorrelations turns negative, and these sums are made to fall.

    Args:
        draws: shape `*batch chains draws`, at least 8 draws a chain.

    Returns:
        Shape `*batch`; NaN where all draws are equal, or one is not finite.

    References:
        Geyer (1992), "Practical Markov chain Monte Carlo", section 3.3: the initial monotone sequence. Vehtari and
        others (2021), eqs. 10-13, whose "bulk" effective sample size this is.

    Example:
        >>> white = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> 3000 < float(effective_sample_size(white)) < 5000
        True
    """
    halves = _normal_scores(_split(draws))
    n_chains, n = halves.shape[-2:]
    centred = halves - halves.mean(-1, keepdim=True)
    spectrum = torch.fft.rfft(centred, n=2 * n, dim=-1).abs().square()  # twice as long: no wrapping around
    covariance = torch.fft.irfft(spectrum, n=2 * n, dim=-1)[..., :n] / n
    within = covariance[..., 0].mean(-1) * n / (n - 1)
    between = halves.mean(-1).var(-1) if n_chains > 1 else torch.zeros_like(within)
    total = within * (n - 1) / n + between
    correlation = 1 - (within[..., None] - covariance.mean(-2) * n / (n - 1)) / total[..., None]
    correlation[..., 0] = 1.0
    pairs = correlation[..., : n // 2 * 2].unflatten(-1, (-1, 2)).sum(-1)
    kept = (pairs > 0).cumprod(-1)  # up to the first negative one
    monotone = (pairs * kept).cummin(-1).values * kept
    time = (2 * monotone.sum(-1) - 1).clamp_min(1 / math.log10(n_chains * n))  # as Stan bounds what is anticorrelated
    found = n_chains * n / time
    return torch.where(draws.isfinite().flatten(-2).all(-1) & (total > 0), found, math.nan)


def _split(draws: Tensor) -> Tensor:
    """Each chain as two, `*batch 2 chains half`; of an odd number the middle draw is left out."""
    half = draws.shape[-1] // 2
    return torch.cat([draws[..., :half], draws[..., -half:]], dim=-2).double()


def _normal_scores(draws: Tensor) -> Tensor:
    """Normal quantiles of the ranks among all draws of a batch element; equal draws share their mean rank."""
    flat = draws.flatten(-2)
    ordered = flat.sort(dim=-1).values.contiguous()
    low = torch.searchsorted(ordered, flat.contiguous(), right=False)
    high = torch.searchsorted(ordered, flat.contiguous(), right=True)
    rank = 0.5 * (low + high + 1).double()
    return torch.special.ndtri((rank - 0.375) / (flat.shape[-1] + 0.25)).view(draws.shape)


def _r_hat(chains: Tensor) -> Tensor:
    """The root of total over within variance, eqs. 1-4."""
    n = chains.shape[-1]
    within, between = chains.var(-1).mean(-1), chains.mean(-1).var(-1)
    return torch.sqrt(((n - 1) / n * within + between) / within)
