"""The Monte Carlo engine: noise to paths to payoffs, chunk by chunk, to an estimate with its standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from pricers.estimate import Estimate
from pricers.instruments.base import EarlyExercise, Instrument
from pricers.market import Market
from pricers.models.base import AnyScheme, DirectScheme, Model, PathScheme
from pricers.models.black_scholes import BlackScholes
from pricers.monte_carlo.conditional import CONDITIONAL, ConditionalLaw, Mixing
from pricers.monte_carlo.controls import Control, controls_of
from pricers.monte_carlo.likelihood import record_weighted
from pricers.monte_carlo.simulate import Plan, assemble, asset_normals, prepared, record, record_conditional
from pricers.monte_carlo.statistics import LEAST_DECIDING, Moments, controlled, merged, pooled, tile_moments
from pricers.noise import NOISES, TILE, Noise, Normals, Stored, block_size, bridge, uniforms
from pricers.parallel import side_by_side
from pricers.parameters import (
    broadcast_shape,
    choice,
    common_dtype,
    converted,
    device_of,
    flag,
    number,
    tensors,
    whole,
    word,
)
from pricers.paths import Paths, time_grid

__all__ = ["MonteCarlo"]

CHUNK_BYTES = 2**26  # what one chunk of paths may hold on a CPU core
CUDA_CHUNK_BYTES = 2**32
COMPILE_FROM = 2_000_000_000  # path-steps from which compiling (some ten seconds) pays
DEFAULT_STEPS = 100
MOST_PATHS, MOST_STEPS = 2**40, 2**24


@dataclass(frozen=True)
class MonteCarlo:
    """Simulate paths and average the discounted payoffs.

    The result depends on the seed and the number of paths, not on chunks, threads or what else is priced beside.

    Args:
        n_paths: number of paths (of all repeats together), at least 2.
        n_steps: number of largest time steps to the last contract date; None takes the contract dates alone under
            models that are simulated exactly, else 100.
        noise: "pseudo", "antithetic" (mirrored pairs) or "sobol" (scrambled, Brownian bridge, independent repeats).
        seed: any integer.
        scheme: name of the discretisation, one of the model's `schemes`; None takes the first.
        controls: whether control variates with known expectations are used where there are some.
        conditional: whether the asset is integrated out given the variance path (mixing) where model and instrument
            allow it; None does so when possible, True raises where it is not.
        repeats: independent scrambles behind the standard error of Sobol noise.
        target_std_error: stop when the standard error (the largest of a batch) is at most this, in units of price, and
            enough paths decide the value; `n_paths` is then the most that is spent.
        dtype: floating point type of the paths; None takes that of the inputs. Averages are always float64.
        device: torch device or its name; None takes that of the inputs.
        compile: whether the time step is compiled; None compiles long simulations only.

    Raises:
        ValueError: a number of paths, steps or repeats that is too small, an unknown kind of noise.

    References:
        Glasserman (2004), Monte Carlo Methods in Financial Engineering.
    """

    name: ClassVar[str] = "monte carlo"
    n_paths: int
    _: KW_ONLY
    n_steps: int | None = None
    noise: str = "pseudo"
    seed: int
    scheme: str | None = None
    controls: bool = True
    conditional: bool | None = None
    repeats: int = 16
    target_std_error: float | None = None
    dtype: torch.dtype | None = None
    device: torch.device | str | None = None
    compile: bool | None = None

    def __post_init__(self) -> None:
        choice("noise", self.noise, tuple(NOISES))
        set_field = object.__setattr__  # the class is frozen
        set_field(self, "n_paths", whole("n_paths", self.n_paths, at_least=2, at_most=MOST_PATHS))
        set_field(self, "seed", whole("seed", self.seed))
        set_field(self, "repeats", whole("repeats", self.repeats, at_least=2))  # a standard error needs them
        set_field(self, "controls", flag("controls", self.controls))
        optional: dict[str, Callable[[str, Any], Any]] = {
            "n_steps": partial(whole, at_least=1, at_most=MOST_STEPS),
            "scheme": word,
            "conditional": flag,
            "target_std_error": partial(number, above=0.0),
            "device": device_of,
            "compile": flag,
        }
        for name, checked in optional.items():
            if getattr(self, name) is not None:
                set_field(self, name, checked(name, getattr(self, name)))
        if self.noise == "antithetic" and (self.n_paths % 2 or self.n_paths < 4):
            raise ValueError(
                f"`n_paths` must be even and 4 or more (two pairs) for antithetic noise, got {self.n_paths}"
            )
        if self.noise == "sobol" and self.n_paths % self.repeats:
            raise ValueError(
                f"`n_paths` must be a multiple of `repeats` = {self.repeats} for sobol noise, got {self.n_paths}; "
                "powers of two fill space best"
            )
        if self.dtype not in (None, torch.float32, torch.float64):
            raise ValueError(f"`dtype` must be torch.float32 or torch.float64, got {self.dtype}")

    def refusal(self, instrument: Instrument, model: Model, market: Market) -> str | None:
        """Why this engine cannot price the instrument under the model; None if it can."""
        if isinstance(instrument, EarlyExercise):
            return "early exercise needs a rule when to exercise: use LongstaffSchwartz"
        if not model.schemes:
            return f"{type(model).__name__} has no simulation scheme"
        if self.scheme is not None and self.scheme not in model.schemes:
            known = ", ".join(map(repr, model.schemes))
            return f"`scheme` of {type(model).__name__} must be one of {known}, got {self.scheme!r}"
        misfit = self._scheme(model).refusal(model)
        if misfit is not None:
            return misfit
        if market.dividends is not None and not (isinstance(model, BlackScholes) and model.n_assets == 1):
            return "cash dividends are for BlackScholes on one asset"
        misfit = instrument.asset_refusal(model.n_assets)
        if misfit is not None:
            return misfit
        scheme = self._scheme(model)
        if isinstance(scheme, DirectScheme) and instrument.continuous:
            misfit = scheme.between_refusal(instrument, model)
            if misfit is not None:
                return misfit
        if self.conditional and self._conditional(instrument, model, market) is None:
            return f"conditional simulation of {type(instrument).__name__} under {type(model).__name__} is not known"
        return None

    def price(self, instrument: Instrument, model: Model, market: Market) -> Estimate:
        """Value of the instrument, with its standard error.

        Raises:
            ValueError: the engine cannot price it, or shapes do not broadcast.
        """
        reason = self.refusal(instrument, model, market)
        if reason is not None:
            raise ValueError(f"MonteCarlo cannot price {type(instrument).__name__}: {reason}")
        if self.target_std_error is None:
            return self._run(instrument, model, market, self.n_paths)
        return self._until(instrument, model, market, self.target_std_error)

    def _until(self, instrument: Instrument, model: Model, market: Market, target: float) -> Estimate:
        """Double the paths until the error is small enough, each time from the start: the seed decides, not the way."""
        n_paths = min(self.n_paths, self.repeats * TILE)
        while True:
            estimate = self._run(instrument, model, market, n_paths)
            worst = estimate.std_error.max().item()
            if worst <= target and not estimate.note:
                return estimate
            if n_paths >= self.n_paths:
                reached = "at" if worst <= target else "above"
                note = f"the standard error {worst:.3g} is {reached} the target {target:.3g} after all {n_paths} paths"
                note = "; ".join(filter(None, (note, estimate.note)))
                return estimate.with_note(note)
            n_paths = min(self.n_paths, 2 * n_paths)

    def _scheme(self, model: Model) -> AnyScheme:
        name = self.scheme if self.scheme is not None else next(iter(model.schemes))
        return model.schemes[name]

    def _conditional(self, instrument: Instrument, model: Model, market: Market) -> Mixing | None:
        scheme = self._scheme(model)
        if isinstance(scheme, DirectScheme) or scheme.local or model.n_assets > 1 or market.dividends is not None:
            return None
        mixing = CONDITIONAL.get(type(instrument))
        if mixing is None or not mixing.suits(instrument):
            return None
        # without other noise than the asset's there must be something left to simulate
        return mixing if scheme.n_normals or mixing.n_rows(instrument) else None

    def _run(self, instrument: Instrument, model: Model, market: Market, n_paths: int) -> Estimate:
        sampler = self.sampler(instrument, model, market, n_paths)
        repeats = sampler.moments()
        value, error = controlled(repeats, sampler.known)
        dtype = common_dtype(instrument, model, market)
        note = _note_of_few(pooled(repeats).deciding[..., 0])
        return Estimate(value.to(dtype), error.to(dtype), n_paths=n_paths, engine=self.name, note=note)

    def sampler(self, instrument: Instrument, model: Model, market: Market, n_paths: int | None = None) -> Sampler:
        """What simulates this triple chunk by chunk: for Greeks, multilevel and regression engines."""
        batch_of(instrument, model, market)
        dtype = self.dtype or common_dtype(instrument, model, market)
        device = market.spot.device if self.device is None else torch.device(self.device)
        instrument, model, market = (
            converted(instrument, dtype, device),
            converted(model, dtype, device),
            converted(market, dtype, device),
        )
        scheme = self._scheme(model)
        conditional = None if self.conditional is False else self._conditional(instrument, model, market)
        dates = instrument.dates
        if market.dividends is not None:
            times = market.dividends.times
            dates = torch.cat([dates.reshape(-1), times[times < instrument.horizon.max()]])
        refine = self.n_steps
        if refine is None and (not scheme.exact or instrument.continuous):
            refine = DEFAULT_STEPS
        grid = time_grid(dates, refine)
        n_paths = n_paths or self.n_paths
        plan = Plan(model, market, scheme, grid, time_grid(dates, None)[1:], instrument.continuous, instrument.horizon)
        compiled = self.compile
        if compiled is None:
            work = n_paths * (grid.shape[0] - 1) * model.batch_shape.numel()
            compiled = not scheme.exact and work >= COMPILE_FROM
        plan = replace(plan, compiled=compiled)
        noise = self._noise()
        control = controls_of(instrument, model, market, conditional is not None, plan) if self.controls else None
        return Sampler(instrument, plan, noise, n_paths, conditional, control)

    def _noise(self) -> Noise:
        if self.noise == "sobol":
            return NOISES["sobol"](self.seed, self.repeats)  # pyright: ignore[reportCallIssue]
        return NOISES[self.noise](self.seed)


@dataclass(frozen=True)
class Sampler:
    """Simulation of one instrument under one model, in chunks that may be taken in any order."""

    instrument: Instrument
    plan: Plan
    noise: Noise
    n_paths: int
    conditional: Mixing | None
    control: Control | None

    @property
    def known(self) -> Tensor | None:
        """Expectations of the controls, shape `*batch controls`."""
        if self.control is None:
            return None
        known = self.control.known.double()
        return known.expand(*self.batch, known.shape[-1])

    @property
    def batch(self) -> torch.Size:
        """Shape of the batch of prices."""
        return batch_of(self.instrument, self.plan.model, self.plan.market)

    def normals(self, repeat: int, start: int, width: int, weighted: bool = False) -> Normals:
        """The noise that `values` (or `weighted_values`) needs for a chunk; drawn anew for each use."""
        plan = self.plan
        n_assets = 0 if self.conditional and not weighted else asset_normals(plan.scheme, plan.model)
        return self.noise.normals(repeat, start, width, plan.dt.detach(), plan.scheme.n_normals + n_assets)

    def values(self, repeat: int, start: int, width: int, normals: Normals | None = None) -> Tensor:
        """Discounted payoffs (row 0) and controls of the paths from `start`, shape `*batch rows width`.

        Args:
            repeat: independent repeat.
            start: first path.
            width: number of paths.
            normals: what `normals(...)` gave, where it must be made elsewhere (outside of a derivative).
        """
        plan, market = self.plan, self.plan.market
        shape = self.batch
        normals = normals or self.normals(repeat, start, width)
        columns = slice(0, width)
        if self.conditional is not None:
            mean, variance = record_conditional(plan, normals, columns)
            law = ConditionalLaw(plan.recorded_times, mean, variance, self._law_normals(repeat, start, width))
            rows = [self.conditional.value(self.instrument, law, market)]
            if self.control is not None:
                rows += self.control.conditional_rows(law)
        else:
            paths = self._paths(repeat, start, width, normals, columns)
            rows = [self.instrument.payoff(paths, market.discount)]
            if self.control is not None:
                rows += self.control.rows(paths)
        return torch.stack([row.expand(*shape, width) for row in rows], dim=-2)

    @property
    def has_density(self) -> bool:
        """Whether the asset has a lognormal density in each step, whose score `weighted_values` needs."""
        return not isinstance(self.plan.scheme, DirectScheme) and self.plan.market.dividends is None

    def weighted_values(self, repeat: int, start: int, width: int, normals: Normals | None = None) -> Tensor:
        """As `values`, on paths that stay while their density moves: for derivatives of payoffs with jumps."""
        plan = self.plan
        normals = normals or self.normals(repeat, start, width, weighted=True)
        recorded, density = record_weighted(plan, normals, width)
        paths = assemble(plan, recorded, self._uniforms(repeat, start, width))
        rows = [self.instrument.payoff(paths, plan.market.discount)]
        if self.control is not None:
            rows += self.control.rows(paths)
        weight = torch.exp(density - density.detach())  # 1, but not its derivatives
        return torch.stack([(row * weight).expand(*self.batch, width) for row in rows], dim=-2)

    def _paths(self, repeat: int, start: int, width: int, normals: Any, columns: slice) -> Paths:
        recorded = record(self.plan, normals, columns)
        return assemble(self.plan, recorded, self._uniforms(repeat, start, width))

    def _law_normals(self, repeat: int, start: int, width: int) -> Tensor | None:
        """Normals that the contract takes for itself under conditional simulation, the important ones first."""
        assert self.conditional is not None
        n_rows = self.conditional.n_rows(self.instrument)
        if not n_rows:
            return None
        dt = self.plan.dt.detach()
        rows = self.noise.extra(repeat, start, width, dt, self.plan.scheme.n_normals, n_rows)
        return bridge(rows, dt.new_ones(n_rows)) if self.noise.kind == "sobol" else rows

    def _uniforms(self, repeat: int, start: int, width: int) -> Tensor | None:
        if not self.instrument.bridge_uniforms:
            return None
        n_intervals = self.plan.recorded_times.shape[0] - 1
        return uniforms(self.noise.seed, repeat, start, width, n_intervals, self.plan.grid.detach())

    def chunks(self) -> Iterator[tuple[int, int, int]]:
        """Repeat, first path and width of each chunk."""
        per_repeat = self.n_paths // self.noise.n_repeats
        width = self.chunk_width()
        for repeat in range(self.noise.n_repeats):
            for start in range(0, per_repeat, width):
                yield repeat, start, min(width, per_repeat - start)

    def chunk_width(self) -> int:
        """Paths of a chunk: a power of two that keeps its memory within bounds."""
        plan, device = self.plan, self.plan.grid.device
        n_steps = plan.dt.shape[0]
        n_normals = plan.scheme.n_normals + asset_normals(plan.scheme, plan.model)
        simulated = plan.model.batch_shape.numel() * plan.model.n_assets
        numbers = simulated * (16 + 2 * plan.recorded_times.shape[0] * (3 if plan.continuous else 1))
        if self.noise.kind == "sobol":
            numbers += 3 * n_steps * n_normals
        if isinstance(plan.scheme, PathScheme):  # the whole path at once
            numbers += 2 * n_steps * n_normals + 6 * n_steps * simulated
        numbers += 6 * self.batch.numel() * max(1, self.instrument.dates.shape[-1])
        budget = CUDA_CHUNK_BYTES if device.type == "cuda" else CHUNK_BYTES
        width = budget // (numbers * plan.grid.element_size())
        # not so wide that the noise of all steps leaves the cache
        most = block_size(device) * (1 if self.noise.kind == "sobol" else 4)
        return min(max(TILE, 1 << max(width, 1).bit_length() - 1), most)

    @property
    def requires_grad(self) -> bool:
        """Whether a graph leads from a parameter to the payoffs."""
        return any(tensor.requires_grad for tensor in tensors(self.instrument, self.plan.model, self.plan.market))

    def moments(self) -> list[Moments]:
        """Moments of payoff and controls for each repeat: the chunks side by side on the machine's cores.

        Where a parameter requires a gradient the graph of all paths is kept, one chunk after the other.
        """
        chunks = list(self.chunks())
        recording = torch.is_grad_enabled() and self.requires_grad
        mode = torch.enable_grad if recording else torch.no_grad
        with mode():
            sampler = replace(self, plan=prepared(self.plan))
        eager = replace(sampler, plan=replace(sampler.plan, compiled=False))

        def gather(chunk: tuple[int, int, int]) -> list[Moments]:
            # a chunk of another width would be compiled again, and a graph is recorded step by step
            shared = sampler if chunk[-1] == chunks[0][-1] and not recording else eager
            with mode():
                # the buffer of the noise is used again, which a graph does not bear
                stored = Stored(shared.normals(*chunk).whole(self.plan.dt.shape[0])) if recording else None
                return tile_moments(shared.values(*chunk, stored), self.noise.pairs)

        repeats: list[Moments | None] = [None] * self.noise.n_repeats
        with side_by_side(self.plan.grid.device, 1 if recording else len(chunks)) as run:
            for (repeat, _, _), tiles in zip(chunks, run(gather, chunks), strict=True):
                for tile in tiles:
                    repeats[repeat] = merged(repeats[repeat], tile)
        return [moments for moments in repeats if moments is not None]


def _note_of_few(deciding: Tensor) -> str:
    """What a reader must know where a handful of paths makes the value: the scatter cannot show what is rarer."""
    if bool((deciding >= LEAST_DECIDING).all()):
        return ""
    if bool((deciding == 0).any()):
        return "all paths pay the same: unless that is certain, the standard error misses what rarer paths pay"
    fewest = deciding.min().item()
    return f"about {fewest:.0f} paths decide the value: the standard error is rough, and misses what rarer paths pay"


def batch_of(instrument: Instrument, model: Model, market: Market) -> torch.Size:
    """The common batch shape of a triple.

    Raises:
        ValueError: they do not broadcast; the message names both shapes.
    """
    shapes = {"instrument": instrument.batch_shape, "model": model.batch_shape}
    return broadcast_shape(**shapes, market=market.batch_shape(model.n_assets))
