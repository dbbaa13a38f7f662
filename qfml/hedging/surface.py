"""What a policy holds by date and spot, beside a delta: means in bins of the spot on the paths that it has walked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from qfml.hedging.paths import PathSet

__all__ = ["held_by_spot", "held_by_spot_and_date"]

SHARES = (0.2, 0.5, 0.8, 1.0)  # of the way from the first date of trading to the last
BINS = 24
MAP_BINS, MAP_DATES = 30, 30  # at most
FEWEST = 5  # paths of a cell
VOLS = ("vol", "variance")  # features that tell the vol of the moment
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


def held_by_spot_and_date(paths: PathSet, held: Tensor, delta: Tensor | None = None) -> dict[str, np.ndarray]:
    """Mean holdings on a grid of dates and of the first instrument's price, for thirds of the vol where it is seen.

    Args:
        paths: B paths.
        held: what the policy holds, (B, L - 1, K).
        delta: what the textbook does, of the same shape.

    Returns:
        map_times (D,) in years; map_spot (bins + 1,), the ends of the bins; map_policy and map_delta (V, D, bins, K),
        nan where fewer than 5 paths come. V is 3 where a feature tells the vol of the moment, by thirds of it at each
        date, else 1.
    """
    places = np.linspace(0, paths.n_steps - 1, min(paths.n_steps, MAP_DATES))
    dates = sorted({round(place) for place in places})
    spot = paths.prices[:, dates, 0].double().numpy()
    low, high = np.quantile(spot[:, -1], ENDS)
    edges = np.linspace(low, high, MAP_BINS + 1)
    seen = next((name for name in VOLS if name in paths.feature_names), None)
    third = np.zeros(spot.shape, dtype=int)
    if seen is not None:
        vol = paths.features[:, dates, paths.feature_names.index(seen)].double().numpy()
        ends = np.quantile(vol, (1 / 3, 2 / 3), axis=0)
        third = (vol > ends[0]).astype(int) + (vol > ends[1])
    bins = np.digitize(spot, edges) - 1
    inside = (bins >= 0) & (bins < MAP_BINS)
    cell = (third * len(dates) + np.arange(len(dates))) * MAP_BINS + bins
    shape = (1 if seen is None else 3, len(dates), MAP_BINS)
    found = {"map_times": paths.times[dates].numpy(), "map_spot": edges}
    for name, holdings in (("map_policy", held), ("map_delta", delta)):
        if holdings is not None:
            found[name] = _means(holdings[:, dates].double().numpy()[inside], cell[inside], shape)
    return found


def _means(values: np.ndarray, cell: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Means of values (N, K) in cells (N,) of a grid, (*shape, K)."""
    size = int(np.prod(shape))
    counts = np.bincount(cell, minlength=size)
    sums = [np.bincount(cell, weights=column, minlength=size) for column in values.T]
    means = np.full((size, len(sums)), np.nan)
    known = counts >= FEWEST
    means[known] = np.stack(sums, axis=1)[known] / counts[known, None]
    return means.reshape(*shape, -1)


def _of_bin(held: Tensor) -> np.ndarray:
    """10 % quantile, mean and 90 % quantile of holdings (n, K), as (3, K); nan without paths."""
    if not len(held):
        return np.full((3, held.shape[1]), np.nan)
    numbers = held.double().numpy()
    return np.stack([np.quantile(numbers, 0.1, axis=0), numbers.mean(0), np.quantile(numbers, 0.9, axis=0)])
