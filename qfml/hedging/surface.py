"""What a policy holds by date and spot, beside a delta: means in bins of the spot on the paths that it has walked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from qfml.hedging.paths import PathSet

__all__ = ["held_by_spot"]

SHARES = (0.2, 0.5, 0.8, 1.0)  # of the way from the first date of trading to the last
BINS = 24
ENDS = (0.005, 0.995)  # quantiles of the spot between which it is looked at


def held_by_spot(
    paths: PathSet, held: Tensor, delta: Tensor | None = None, shares: Sequence[float] = SHARES
) -> tuple[list[int], dict[str, np.ndarray]]:
    """Holdings at some dates in bins of the first instrument's price.

    They are those that come about on the paths: a policy with costs holds what it has held before, which no grid of
    features knows.

    Args:
        paths: B paths.
        held: what the policy holds, (B, L - 1, K).
        delta: what the textbook does, of the same shape.
        shares: which dates, from 0, the first, to 1, the last on which is traded.

    Returns:
        Numbers of the dates, and arrays: surface_spot (D, bins), the middles; surface_policy, surface_low and
        surface_high (D, bins, K), mean and 10 and 90 % quantiles; surface_delta (D, bins, K). A bin without paths: nan.
    """
    dates = sorted({round(share * (paths.n_steps - 1)) for share in shares})
    found: dict[str, list[np.ndarray]] = {}
    for date in dates:
        spot = paths.prices[:, date, 0].double()
        low, high = torch.quantile(spot, torch.tensor(ENDS, dtype=torch.float64)).tolist()
        edges = torch.linspace(low, high, BINS + 1, dtype=torch.float64)
        place = torch.bucketize(spot, edges[1:-1])
        inside = (spot >= low) & (spot <= high)
        rows = [_of_bin(held[inside & (place == number), date]) for number in range(BINS)]
        found.setdefault("surface_spot", []).append((0.5 * (edges[1:] + edges[:-1])).numpy())
        for name, column in (("surface_low", 0), ("surface_policy", 1), ("surface_high", 2)):
            found.setdefault(name, []).append(np.stack([row[column] for row in rows]))
        if delta is not None:
            means = [_of_bin(delta[inside & (place == number), date])[1] for number in range(BINS)]
            found.setdefault("surface_delta", []).append(np.stack(means))
    return dates, {name: np.stack(parts) for name, parts in found.items()}


def _of_bin(held: Tensor) -> np.ndarray:
    """10 % quantile, mean and 90 % quantile of holdings (n, K), as (3, K); nan without paths."""
    if not len(held):
        return np.full((3, held.shape[1]), np.nan)
    numbers = held.double().numpy()
    return np.stack([np.quantile(numbers, 0.1, axis=0), numbers.mean(0), np.quantile(numbers, 0.9, axis=0)])
