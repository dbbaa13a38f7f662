"""Time grids, and simulated paths on them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["Paths", "merged_dates", "time_grid"]

SAME_DATE = 1e-10  # years (3 milliseconds): dates that differ by less are one date


def merged_dates(dates: Tensor) -> Tensor:
    """The distinct dates of any shape, ascending; the graph to the dates is kept.

    >>> merged_dates(torch.tensor([[0.5, 1.0], [0.25, 0.5]]))
    tensor([0.2500, 0.5000, 1.0000])
    """
    flat, _ = dates.reshape(-1).sort()
    first = torch.ones_like(flat, dtype=torch.bool)
    first[1:] = flat.detach().diff() > SAME_DATE
    return flat[first]


def time_grid(dates: Tensor, n_steps: int | None) -> Tensor:
    """Grid from 0 through all contract dates, refined to steps no longer than the horizon over `n_steps`.

    Args:
        dates: contract dates in years, any shape; those at 0 (today) are the start itself.
        n_steps: number of largest steps to the last date; None takes the dates alone.

    Returns:
        Ascending times in years, the first is 0; shape `(n + 1,)`. Between two dates all steps are of one length.

    >>> time_grid(torch.tensor([0.1, 1.0]), 4)
    tensor([0.0000, 0.1000, 0.3250, 0.5500, 0.7750, 1.0000])
    """
    later = merged_dates(dates)
    later = later[later.detach() > SAME_DATE]
    nodes = torch.cat([later.new_zeros(1), later])
    if n_steps is None or later.numel() == 0:
        return nodes
    longest = nodes[-1].item() / n_steps
    pieces = [nodes[:1]]
    for start, end in pairwise(nodes):
        n_pieces = max(1, math.ceil((end - start).item() / longest * (1 - 1e-9)))
        share = torch.arange(1, n_pieces + 1, dtype=nodes.dtype, device=nodes.device) / n_pieces
        pieces.append(start + (end - start) * share)
    return torch.cat(pieces)


@dataclass(frozen=True, eq=False)
class Paths:
    """Simulated paths of one or several assets at recorded times, the first of which is today.

    Args:
        times: recorded times in years, ascending, the first is 0; shape `(n,)`.
        spot: prices, shape `*batch paths n`, and a last axis of assets where there are several.
        variance: integrated variance of the log price over each interval between recorded times, without jumps; shape
            `*batch paths n-1` (and assets). Recorded for instruments that are `continuous`.
        jumps_squared: sum of the squared jumps of the log price over each interval, same shape; None without jumps.
        bridge_uniforms: independent uniforms in (0, 1) for the extremes between the recorded times, shape
            `paths n-1`; drawn for instruments that ask by `bridge_uniforms`.
    """

    times: Tensor
    spot: Tensor
    variance: Tensor | None = None
    jumps_squared: Tensor | None = None
    bridge_uniforms: Tensor | None = None
    n_asset_axes: int = 0

    def at(self, dates: Tensor) -> Tensor:
        """Prices at contract dates.

        Args:
            dates: recorded dates, shape `*instrument_batch n_dates`; a date that was not recorded is our own fault.

        Returns:
            Shape `*batch paths n_dates` (and assets): the batches of instrument and simulation broadcast.
        """
        index = torch.searchsorted(self.times.detach(), dates.detach().contiguous() - SAME_DATE)
        assert bool(((self.times.detach()[index] - dates.detach()).abs() <= 2 * SAME_DATE).all()), "date not recorded"
        if index.ndim == 1:
            return self.spot.index_select(self.spot.ndim - 1 - self.n_asset_axes, index)
        spot = self.spot if self.n_asset_axes else self.spot.unsqueeze(-1)  # *sim paths n assets
        n_paths, n_times, n_assets = spot.shape[-3:]
        batch = torch.broadcast_shapes(spot.shape[:-3], index.shape[:-1])
        index = index[..., None, :, None].expand(*batch, n_paths, index.shape[-1], n_assets)
        chosen = spot.expand(*batch, n_paths, n_times, n_assets).gather(-2, index)
        return chosen if self.n_asset_axes else chosen.squeeze(-1)

    @property
    def last(self) -> Tensor:
        """Prices at the last recorded time."""
        return self.spot.select(self.spot.ndim - 1 - self.n_asset_axes, -1)
