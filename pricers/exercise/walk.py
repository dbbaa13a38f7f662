"""Paths from any state on, exercise date by exercise date: for regressions and nested simulation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pricers.market import Market
from pricers.models.base import Model, Scheme
from pricers.noise import Pseudo

__all__ = ["Point", "Walk"]

State = tuple[Tensor, ...]


@dataclass(frozen=True)
class Point:
    """Where paths are at one exercise date.

    Args:
        spot: prices, shape `*batch paths`, and a last axis of assets where there are several.
        log_ratio: logarithm of spot over forward, shape `*batch [assets] paths`.
        state: what else the scheme remembers.
        variance: variance per year over the last step, `*batch paths`; what of the state the exercise depends on.
    """

    spot: Tensor
    log_ratio: Tensor
    state: State
    variance: Tensor | None = None


@dataclass(frozen=True)
class Walk:
    """A simulation that can begin at any exercise date.

    Args:
        model: parameters.
        market: forwards.
        scheme: discretisation.
        grids: times from each exercise date (at first: today) to the next, inclusive; one tensor for each interval.
    """

    model: Model
    market: Market
    scheme: Scheme
    grids: list[Tensor]

    @property
    def n_normals(self) -> int:
        """Normals for each path and step."""
        return self.scheme.n_normals + self.model.n_assets

    def start(self, width: int) -> Point:
        """Today, for `width` paths."""
        assets = () if self.model.n_assets == 1 else (self.model.n_assets,)
        log_ratio = self.grids[0].new_zeros(*self.model.batch_shape, *assets, width)
        state = tuple(part.expand(*part.shape[:-1], width) for part in self.scheme.start(self.model))
        return Point(self._spot(self.grids[0][0], log_ratio), log_ratio, state)

    def onward(self, point: Point, interval: int, seed: int, first: int = 0) -> Iterator[Point]:
        """The points at the ends of `interval` and all later intervals.

        Args:
            point: where the paths are at the beginning of `interval`.
            interval: index into `grids`.
            seed: of the noise.
            first: address of the first path within the noise.
        """
        width = point.log_ratio.shape[-1]
        root = getattr(self.model, "correlation_root", None)
        steps = torch.cat([grid.diff() for grid in self.grids[interval:]])
        normals = Pseudo(seed).normals(0, first, width, steps, self.n_normals)
        log_ratio, state, variance = point.log_ratio, point.state, point.variance
        index = 0
        for grid in self.grids[interval:]:
            for time, dt in zip(grid[:-1], grid.diff(), strict=True):
                drawn = normals.step(index)
                index += 1
                coefficients = self.scheme.coefficients(self.model, self.market, time, dt)
                step = self.scheme.advance(coefficients, log_ratio, state, drawn[: self.scheme.n_normals])
                asset = drawn[self.scheme.n_normals :]
                asset = asset[0] if root is None else root @ asset
                log_ratio = log_ratio + step.drift + step.deviation * asset
                state, variance = step.state, step.variance / dt
            yield Point(self._spot(grid[-1], log_ratio), log_ratio, state, variance)

    def _spot(self, time: Tensor, log_ratio: Tensor) -> Tensor:
        if self.model.n_assets == 1:
            return self.market.forward(time).unsqueeze(-1) * log_ratio.exp()
        return (self.market.asset_forwards(time).unsqueeze(-1) * log_ratio.exp()).movedim(-2, -1)
