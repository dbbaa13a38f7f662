"""Multilevel Monte Carlo: many cheap coarse paths correct few dear fine ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from pricers.estimate import Estimate
from pricers.instruments.base import Instrument
from pricers.market import Market
from pricers.models.base import Model, PathScheme
from pricers.monte_carlo.engine import MonteCarlo, Sampler
from pricers.monte_carlo.statistics import Moments, merged, tile_moments
from pricers.noise import TILE, Pseudo, Stored, address
from pricers.parameters import common_dtype, flag, number, whole, word

__all__ = ["Level", "MultilevelMonteCarlo"]

PILOT = 16 * TILE  # paths of each level before its variance is trusted
CHUNK_NUMBERS = 2**24  # normals held at once


@dataclass
class Level:
    """What is known of one correction $E[P_l - P_{l-1}]$."""

    index: int
    fine: Sampler
    coarse: Sampler | None
    moments: Moments | None = None
    wanted: int = PILOT

    @property
    def cost(self) -> float:
        """Steps for each path."""
        n_steps = self.fine.plan.dt.shape[0]
        return n_steps + (self.coarse.plan.dt.shape[0] if self.coarse else 0)

    @property
    def mean(self) -> Tensor:
        """Mean of the correction, shape `*batch`."""
        assert self.moments is not None
        return self.moments.mean[..., 0]

    @property
    def variance(self) -> Tensor:
        """Variance of the correction along one path, shape `*batch`."""
        assert self.moments is not None
        return self.moments.scatter[..., 0, 0] / (self.moments.n - 1)


Triple = tuple[Instrument, Model, Market]
Corrections = Callable[[Level, int, int], Tensor]  # of paths from the first one, so many: shape `*batch 1 width`


@dataclass(frozen=True)
class MultilevelMonteCarlo:
    r"""Giles' estimator $\sum_l E[P_l - P_{l-1}]$, levels of $2^l$ steps, to a target root mean square error.

    Both payoffs of a correction share their Brownian path. Levels are added until the bias that remains, extrapolated
    from the last corrections, is below $1/\sqrt 2$ of the accuracy; the paths of each level are those that reach the
    statistical half at the least cost.

    Args:
        accuracy: root mean square error, in units of price (for a batch: of its worst element), above 0; of a Greek:
            of its product with the size of its parameter, so that a delta is found to `accuracy` over spot.
        seed: any integer.
        n_steps: steps of the coarsest level (largest steps to the last date).
        max_levels: finest level that may be used.
        scheme: name of the model's discretisation; None takes the first.
        conditional: as in `MonteCarlo`.

    Raises:
        ValueError: an accuracy that is not above 0, counts below 1.

    References:
        Giles (2008), Multilevel Monte Carlo path simulation, algorithm of section 5.
    """

    name: ClassVar[str] = "multilevel monte carlo"
    accuracy: float
    seed: int
    n_steps: int = 2
    max_levels: int = 10
    scheme: str | None = None
    conditional: bool | None = None

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # the class is frozen
        set_field(self, "accuracy", number("accuracy", self.accuracy, above=0.0))
        set_field(self, "seed", whole("seed", self.seed))
        set_field(self, "n_steps", whole("n_steps", self.n_steps, at_least=1))
        set_field(self, "max_levels", whole("max_levels", self.max_levels, at_least=2))
        if self.scheme is not None:
            word("scheme", self.scheme)
        if self.conditional is not None:
            set_field(self, "conditional", flag("conditional", self.conditional))

    def _engine(self) -> MonteCarlo:
        return MonteCarlo(
            n_paths=PILOT,
            n_steps=self.n_steps,
            seed=self.seed,
            scheme=self.scheme,
            controls=False,
            conditional=self.conditional,
            compile=False,
        )

    def refusal(self, instrument: Instrument, model: Model, market: Market) -> str | None:
        """Why this engine cannot price the triple; None if it can."""
        engine = self._engine()
        reason = engine.refusal(instrument, model, market)
        if reason is not None:
            return reason
        scheme = model.schemes[self.scheme or next(iter(model.schemes))]
        if isinstance(scheme, PathScheme):
            return f"the noise of {type(model).__name__} cannot be halved; use MonteCarlo"
        if scheme.exact and not instrument.continuous:
            name = type(model).__name__
            return f"{name} is simulated exactly at the contract's dates: there is no bias to remove; use MonteCarlo"
        return None

    def price(self, instrument: Instrument, model: Model, market: Market) -> Estimate:
        """Value with its standard error; `error_bound` is the bias that remains by extrapolation.

        Raises:
            ValueError: the engine cannot price the triple.
        """
        reason = self.refusal(instrument, model, market)
        if reason is not None:
            raise ValueError(f"MultilevelMonteCarlo cannot price {type(instrument).__name__}: {reason}")
        return self.summed((instrument, model, market), self._corrections, self.accuracy)

    def level(self, index: int, instrument: Instrument, model: Model, market: Market) -> Level:
        """The correction from $2^{l-1}$ to $2^l$ times the steps of the coarsest level; that itself at index 0."""
        coarse, fine = None, self._engine().sampler(instrument, model, market)
        for _ in range(index):
            coarse, fine = fine, _halved(fine)
        return Level(index, fine, coarse)

    def summed(self, triple: Triple, corrections: Corrections, accuracy: float) -> Estimate:
        """Sum of the means of the corrections on all levels, as many as `accuracy` takes."""
        levels = [self.level(0, *triple)]
        target = accuracy / math.sqrt(2.0)
        note = ""
        while True:
            self._draw(levels, corrections)
            finished = self._allocate(levels, target)
            if not finished:
                continue
            bias = _remaining_bias(levels)
            if bias.max().item() <= target:
                break
            if len(levels) > self.max_levels:
                note = f"the bias {bias.max().item():.3g} is above {target:.3g} at the finest of {len(levels)} levels"
                break
            levels.append(Level(len(levels), _halved(levels[-1].fine), levels[-1].fine))
        value = torch.stack([level.mean for level in levels]).sum(0)
        error = torch.stack([level.variance / level.moments.n for level in levels if level.moments]).sum(0).sqrt()
        n_paths = sum(level.moments.n for level in levels if level.moments)
        dtype = common_dtype(*triple)
        return Estimate(value.to(dtype), error.to(dtype), bias.to(dtype), n_paths, self.name, note)

    def _draw(self, levels: list[Level], corrections: Corrections | None = None) -> None:
        """Bring each level to the number of paths that it wants."""
        corrections = corrections or self._corrections
        for level in levels:
            start = level.moments.n if level.moments else 0
            width = _chunk_width(level)
            while start < level.wanted:
                chunk = min(width, level.wanted - start)
                with torch.no_grad():
                    values = corrections(level, start, chunk)
                for tile in tile_moments(values, pairs=False):
                    level.moments = merged(level.moments, tile)
                start += chunk

    def normals(self, level: Level, start: int, width: int) -> Tensor:
        """The noise of some fine paths of a level, shape `n_steps n_normals width`."""
        sampler = replace(level.fine, noise=self._noise(level))
        return sampler.normals(0, start, width).whole(level.fine.plan.dt.shape[0])

    def _corrections(self, level: Level, start: int, width: int) -> Tensor:
        return self.corrections(level, start, width, self.normals(level, start, width))

    def corrections(self, level: Level, start: int, width: int, normals: Tensor) -> Tensor:
        """Differences of the payoffs on fine and coarse paths, shape `*batch 1 width`."""
        noise = self._noise(level)
        fine = replace(level.fine, noise=noise).values(0, start, width, Stored(normals))
        if level.coarse is None:
            return fine
        # the Brownian increment of a coarse step is the sum of its two halves
        coarse = (normals[0::2] + normals[1::2]) * math.sqrt(0.5)
        return fine - replace(level.coarse, noise=noise).values(0, start, width, Stored(coarse))

    def _noise(self, level: Level) -> Pseudo:
        return Pseudo(address("multilevel", self.seed, level.index))

    def _allocate(self, levels: list[Level], target: float) -> bool:
        """Giles (2008), eq. 12; True when every level has its paths."""
        spread = [level.variance.max().item() for level in levels]
        total = sum(math.sqrt(v * level.cost) for v, level in zip(spread, levels, strict=True))
        done = True
        for v, level in zip(spread, levels, strict=True):
            best = math.ceil(math.sqrt(v / level.cost) * total / target**2)
            wanted = max(level.wanted, -(-best // TILE) * TILE)
            assert level.moments is not None
            done = done and wanted <= 1.01 * level.moments.n
            level.wanted = wanted
        return done


def _halved(sampler: Sampler) -> Sampler:
    """The same simulation with each step cut in two."""
    grid = sampler.plan.grid
    middle = 0.5 * (grid[1:] + grid[:-1])
    finer = torch.cat([grid[:1], torch.stack([middle, grid[1:]], dim=-1).reshape(-1)])
    return replace(sampler, plan=replace(sampler.plan, grid=finer))


def _chunk_width(level: Level) -> int:
    numbers = level.fine.plan.dt.shape[0] * (level.fine.plan.scheme.n_normals + 1) + 4 * level.fine.batch.numel()
    width = CHUNK_NUMBERS // numbers // TILE * TILE
    return min(max(TILE, width), PILOT)


def _remaining_bias(levels: list[Level]) -> Tensor:
    r"""Bias after the last level, from the last corrections; its order is read off them, between 1/2 and 2."""
    if len(levels) < 3:
        return torch.full_like(levels[-1].mean, math.inf)
    last, before = levels[-1].mean.abs(), levels[-2].mean.abs()
    noise = 2.0 * (levels[-1].variance / (levels[-1].moments.n if levels[-1].moments else 1)).sqrt()
    ratio = (before / last.clamp(min=1e-300)).clamp(2.0**0.5, 4.0)
    # what the last level cannot tell from 0 is not taken for convergence: two of its standard errors at most
    reach = torch.maximum(last, before / ratio)
    return torch.minimum(reach, last + noise) / (ratio - 1.0)
