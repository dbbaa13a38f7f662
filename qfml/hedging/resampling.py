"""The paired bootstrap of a difference of risks: both hedges on the same resampled paths, blocks of them kept whole."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pricers.noise import address
from qfml.errors import ConfigError
from qfml.hedging.objective_base import Objective

__all__ = ["check_resampling", "interval", "paired_bootstrap", "resampled_rows"]

ENDS = (0.025, 0.975)


def check_resampling(n_resamples: Any, block_length: Any) -> None:
    """Refuse numbers that make no interval.

    Raises:
        ConfigError: no whole numbers; fewer than 100 resamples, but for none at all; a block of no path.
    """
    for name, given in (("n_resamples", n_resamples), ("block_length", block_length)):
        if isinstance(given, bool) or not isinstance(given, Integral):
            raise ConfigError(f"`{name}` must be a whole number, got {given!r}")
    if n_resamples != 0 and n_resamples < 100:
        raise ConfigError(f"`n_resamples` must be 100 or more for a 95 % interval, or 0 for none, got {n_resamples}")
    if block_length < 1:
        raise ConfigError(f"`block_length` must be a number of paths in succession, at least 1, got {block_length}")


def resampled_rows(n_rows: int, block_length: int, generator: torch.Generator) -> Int[Tensor, " row"]:
    """Rows of one resample: blocks of a circle, begun at random, until there are as many as before.

    Args:
        n_rows: of the sample.
        block_length: rows in succession that stay together, 1 where all are independent.
        generator: of the starts.

    References:
        Politis and Romano (1992), "A circular block-resampling procedure for stationary data".

    Example:
        >>> resampled_rows(6, 3, torch.Generator().manual_seed(0)).diff()[[0, 1, 3, 4]].remainder(6)
        tensor([1, 1, 1, 1])
    """
    starts = torch.randint(n_rows, (-(-n_rows // block_length), 1), generator=generator)
    return ((starts + torch.arange(block_length)) % n_rows).flatten()[:n_rows]


def paired_bootstrap(
    objective: Objective,
    pnl: Float[Tensor, "hedge path"],
    aversion: float | None = None,
    *,
    n_resamples: int = 200,
    seed: int = 0,
    block_length: int = 1,
) -> Float[Tensor, "resample hedge"]:
    """Risk of the first hedge less that of each, on resampled paths that all hedges share.

    Args:
        objective: whose risk it is.
        pnl: of each hedge on the same paths, discounted cash.
        aversion: in place of the objective's own.
        n_resamples: how many.
        seed: of the resamples; each has a generator of its own.
        block_length: paths in succession that stay together.

    Returns:
        The differences, 0 in the first column.

    References:
        Efron and Tibshirani (1993), "An Introduction to the Bootstrap", chapter 13.

    Example:
        >>> from qfml.hedging import MeanVariance
        >>> pnl = torch.randn(1, 400, generator=torch.Generator().manual_seed(0)) + torch.tensor([[0.1], [0.0]])
        >>> paired_bootstrap(MeanVariance(1.0), pnl, n_resamples=100)[:, 1].std() < 1e-6  # one is the other and a sum
        tensor(True)
    """
    check_resampling(n_resamples, block_length)
    if n_resamples and 2 * block_length > pnl.shape[1]:
        raise ConfigError(
            f"`block_length` must leave two blocks or more of {pnl.shape[1]} paths, got {block_length}: resamples of "
            "one block are the sample itself"
        )
    pnl = pnl.double()
    dials = None if aversion is None else torch.full((len(pnl),), aversion, dtype=torch.float64)
    found = []
    for number in range(n_resamples):
        generator = torch.Generator().manual_seed(address(seed, "paired bootstrap", number))
        risk = objective.risk(pnl[:, resampled_rows(pnl.shape[1], block_length, generator)], dials)
        found.append(risk[0] - risk)
    return torch.stack(found) if found else pnl.new_zeros(0, len(pnl))


def interval(differences: Tensor) -> dict[str, float]:
    """The 95 % interval of resampled differences, by their quantiles."""
    low, high = torch.quantile(differences, torch.tensor(ENDS, dtype=differences.dtype)).tolist()
    return {"low": low, "high": high}
