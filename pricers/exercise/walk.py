"""Paths from any state on, exercise date by exercise date: for regressions and nested simulation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pricers.market import Market
from pricers.models.base import DirectScheme, Model, PathScheme, Scheme
from pricers.noise import Pseudo

__all__ = ["DirectWalk", "DividendWalk", "LognormalWalk", "PathWalk", "Point", "Walk"]

State = tuple[Tensor, ...]


@dataclass(frozen=True)
class Point:
    """Where paths are at one exercise date.

    Args:
        spot: prices, shape `*batch paths`, and a last axis of assets where there are several.
        state: all that the future depends on; each tensor has the paths on its last axis.
        factor: what of the state the value of waiting depends on beside the prices, `*batch paths`; None: nothing.
    """

    spot: Tensor
    state: State
    factor: Tensor | None = None


class Walk(ABC):
    """A simulation that can begin at any exercise date.

    Its `grids` are the times from each exercise date (at first: today) to the next, inclusive, one tensor for each
    interval; where a date comes twice, before and after a dividend, the second interval is that one time.
    """

    model: Model
    market: Market
    grids: list[Tensor]

    @abstractmethod
    def start(self, width: int) -> Point:
        """Today, for `width` paths."""

    @abstractmethod
    def onward(self, point: Point, interval: int, seed: int, first: int = 0) -> Iterator[Point]:
        """The points at the ends of `interval` and all later intervals.

        Args:
            point: where the paths are at the beginning of `interval`.
            interval: index into `grids`.
            seed: of the noise.
            first: address of the first path within the noise.
        """


class _Stepwise(Walk):
    """A walk whose every step depends on the state at its beginning alone."""

    @property
    @abstractmethod
    def n_normals(self) -> int:
        """Normals for each path and step."""

    @abstractmethod
    def moved(self, state: State, time: Tensor, dt: Tensor, drawn: Tensor) -> tuple[State, Tensor | None]:
        """State and factor after one step."""

    @abstractmethod
    def spot(self, time: Tensor, state: State) -> Tensor:
        """Prices as in `Point`."""

    def left(self, state: State, interval: int, node: int) -> State:
        """The state after what happens at a node of an interval, before the step from there."""
        return state

    def onward(self, point: Point, interval: int, seed: int, first: int = 0) -> Iterator[Point]:
        width = point.state[0].shape[-1]
        steps = torch.cat([grid.diff() for grid in self.grids[interval:]])
        normals = Pseudo(seed).normals(0, first, width, steps, self.n_normals)
        state, factor, index = point.state, point.factor, 0
        for number, grid in enumerate(self.grids[interval:], start=interval):
            state = self.left(state, number, 0)
            for node, (time, dt) in enumerate(zip(grid[:-1], grid.diff(), strict=True)):
                if node:
                    state = self.left(state, number, node)
                state, factor = self.moved(state, time, dt, normals.step(index))
                index += 1
            yield Point(self.spot(grid[-1], state), state, factor)


@dataclass(frozen=True)
class LognormalWalk(_Stepwise):
    """Under a `Scheme`: the state begins with the logarithm of spot over forward, `*batch [assets] paths`."""

    model: Model
    market: Market
    scheme: Scheme
    grids: list[Tensor]

    @property
    def n_normals(self) -> int:
        return self.scheme.n_normals + self.model.n_assets

    def start(self, width: int) -> Point:
        assets = () if self.model.n_assets == 1 else (self.model.n_assets,)
        log_ratio = self.grids[0].new_zeros(*self.model.batch_shape, *assets, width)
        rest = (part.expand(*part.shape[:-1], width) for part in self.scheme.start(self.model))
        state = (log_ratio, *rest)
        return Point(self.spot(self.grids[0][0], state), state)

    def moved(self, state: State, time: Tensor, dt: Tensor, drawn: Tensor) -> tuple[State, Tensor | None]:
        log_ratio, *rest = state
        coefficients = self.scheme.coefficients(self.model, self.market, time, dt)
        step = self.scheme.advance(coefficients, log_ratio, tuple(rest), drawn[: self.scheme.n_normals])
        root = getattr(self.model, "correlation_root", None)
        asset = drawn[self.scheme.n_normals :]
        asset = asset[0] if root is None else root @ asset
        log_ratio = log_ratio + step.drift + step.deviation * asset
        return (log_ratio, *step.state), step.variance / dt if step.state else None

    def spot(self, time: Tensor, state: State) -> Tensor:
        ratio = state[0].exp()
        if self.model.n_assets == 1:
            return self.market.forward(time).unsqueeze(-1) * ratio
        return (self.market.asset_forwards(time).unsqueeze(-1) * ratio).movedim(-2, -1)


@dataclass(frozen=True)
class DividendWalk(_Stepwise):
    """Cash dividends on one asset whose scheme has no other state: the state is the price.

    An exercise date that is an ex-date comes before the dividend; where it comes twice, the second time after it.

    Args:
        model: parameters.
        market: with dividends.
        scheme: discretisation.
        grids: as in `Walk`, through all ex-dates.
        paid: amounts by interval and node of its grid, before the step from there.
    """

    model: Model
    market: Market
    scheme: Scheme
    grids: list[Tensor]
    paid: Mapping[tuple[int, int], Tensor]

    @property
    def n_normals(self) -> int:
        return 1

    def start(self, width: int) -> Point:
        shape = torch.broadcast_shapes(self.model.batch_shape, self.market.batch_shape())
        spot = self.market.spot.unsqueeze(-1).expand(*shape, width)
        return Point(spot, (spot,))

    def left(self, state: State, interval: int, node: int) -> State:
        amount = self.paid.get((interval, node))
        return state if amount is None else ((state[0] - amount).clamp(min=0.0),)

    def moved(self, state: State, time: Tensor, dt: Tensor, drawn: Tensor) -> tuple[State, Tensor | None]:
        (spot,) = state
        coefficients = self.scheme.coefficients(self.model, self.market, time, dt)
        step = self.scheme.advance(coefficients, torch.zeros_like(spot), (), drawn[:0])
        growth = (self.market.growth(time + dt) / self.market.growth(time)).unsqueeze(-1)
        return (spot * growth * torch.exp(step.drift + step.deviation * drawn[0]),), None

    def spot(self, time: Tensor, state: State) -> Tensor:
        return state[0]


@dataclass(frozen=True)
class DirectWalk(_Stepwise):
    """Under a `DirectScheme`, whose state holds the asset."""

    model: Model
    market: Market
    scheme: DirectScheme
    grids: list[Tensor]

    @property
    def n_normals(self) -> int:
        return self.scheme.n_normals

    def start(self, width: int) -> Point:
        state = self.scheme.start(self.model, self.market, self.grids[-1][-1])
        state = tuple(part.expand(*part.shape[:-1], width) for part in state)
        return Point(self.spot(self.grids[0][0], state), state)

    def moved(self, state: State, time: Tensor, dt: Tensor, drawn: Tensor) -> tuple[State, Tensor | None]:
        coefficients = self.scheme.coefficients(self.model, self.market, time, dt)
        state = self.scheme.advance(coefficients, state, drawn)
        return state, self.scheme.factor(state)

    def spot(self, time: Tensor, state: State) -> Tensor:
        return self.market.forward(time).unsqueeze(-1) * self.scheme.ratio(state)


@dataclass(frozen=True)
class PathWalk(Walk):
    """Under a `PathScheme`: the state is the noise of the whole past, `steps n_normals paths`.

    A path goes on from where it is by new noise after its own. The factor is the volatility of the step to come, where
    the scheme knows it at its start; else of the last one.
    """

    model: Model
    market: Market
    scheme: PathScheme
    grids: list[Tensor]

    def start(self, width: int) -> Point:
        past = self.grids[0].new_zeros(0, self.scheme.n_normals + 1, width)
        ratio = self.grids[0].new_ones(*self.model.batch_shape, width)
        return Point(self.market.forward(self.grids[0][0]).unsqueeze(-1) * ratio, (past,))

    def onward(self, point: Point, interval: int, seed: int, first: int = 0) -> Iterator[Point]:
        (past,) = point.state
        times = torch.cat([self.grids[0][:1], *(grid[1:] for grid in self.grids)])
        steps = torch.cat([grid.diff() for grid in self.grids[interval:]])
        n_normals = self.scheme.n_normals
        fresh = Pseudo(seed).normals(0, first, past.shape[-1], steps, n_normals + 1).whole(steps.shape[0])
        noise = torch.cat([past, fresh])
        drift, residual, variance = self.scheme.increments(self.model, times, noise[:, :n_normals])
        asset = noise[:, n_normals].reshape(noise.shape[0], *[1] * (drift.ndim - 2), -1)
        deviation = torch.sqrt(residual + torch.finfo(residual.dtype).tiny)  # differentiated at 0 too
        log_ratio = (drift + deviation * asset).cumsum(0)
        end = past.shape[0]
        for grid in self.grids[interval:]:
            end += grid.shape[0] - 1
            spot = self.market.forward(grid[-1]).unsqueeze(-1) * log_ratio[end - 1].exp()
            seen = min(end, steps.shape[0] + past.shape[0] - 1) if self.scheme.variance_known else end - 1
            rate = variance[seen] / times.diff()[seen]
            yield Point(spot, (noise[:end],), torch.sqrt(rate + torch.finfo(rate.dtype).tiny))
