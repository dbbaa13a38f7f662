"""Greeks by Monte Carlo: means of derivatives along paths, of scores, or of differences, with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pricers.estimate import Estimate
from pricers.greeks.derivatives import central_difference, forward_derivative
from pricers.greeks.parameters import Task, Triple
from pricers.monte_carlo import MonteCarlo, MultilevelMonteCarlo, Sampler
from pricers.monte_carlo.likelihood import jump_density
from pricers.monte_carlo.statistics import Moments, controlled, merged, tile_moments
from pricers.noise import TILE, Normals, Pseudo, Stored
from pricers.parameters import common_dtype

__all__ = ["fitting", "from_paths", "has_jumps", "moves_counts"]

STORED_BYTES = 2**27  # normals of a chunk, held while its derivatives are taken
DATES = ("expiry", "times", "reset", "monitoring")
ROUNDING = 1e4  # relative to the last digit of a control: derivatives below are those of its rounding
SECOND_ORDER = 10.0  # bumps of second order are that much wider: their variance falls with the third power
# The price is smooth in these along each path of a square-root variance. In the others the path has kinks (the variance
# is held at 0), which a second derivative along the path would miss.
SMOOTH = ("spot", "rate", "dividend_yield", "strike", "rho", "intensity", "jump_mean", "jump_std")


def from_paths(tasks: list[Task], triple: Triple, engine: MonteCarlo, method: str, bump: float) -> list[Estimate]:
    """An estimate for each task; all share the noise.

    Raises:
        ValueError: a method that model or engine do not allow, or an engine that aims at an error of the price.
    """
    if engine.target_std_error is not None:
        raise ValueError(
            "`target_std_error` is an error of the price, Greeks are simulated with all `n_paths`, got "
            f"{engine.target_std_error:g}; leave it out, and raise `n_paths` until each `std_error` is small enough"
        )
    engine = replace(engine, compile=False)
    base = engine.sampler(*triple)
    methods = [fitting(task, base, triple) if method == "auto" else method for task in tasks]
    _check(methods, tasks, base, triple)
    gathered = [Gathered([None] * base.noise.n_repeats, None) for _ in tasks]
    with torch.no_grad():
        for chunk in _chunks(base):
            noise: dict[bool, Normals] = {}
            for task, chosen, result in zip(tasks, methods, gathered, strict=True):
                weighted = chosen == "likelihood_ratio"
                if weighted not in noise:
                    noise[weighted] = _stored(base, chunk, weighted)
                rows, result.known = _derived(task, triple, engine, chosen, bump, chunk, noise[weighted])
                for repeat, part in zip(chunk.repeats, rows.split(chunk.width, dim=-1), strict=True):
                    for tile in tile_moments(part, base.noise.pairs):
                        result.repeats[repeat] = merged(result.repeats[repeat], tile)
    return [result.estimate(engine, chosen, triple) for result, chosen in zip(gathered, methods, strict=True)]


@dataclass(frozen=True)
class Chunk:
    """Paths that are differentiated at once: `width` of each of some repeats, from `start`."""

    repeats: tuple[int, ...]
    start: int
    width: int


def _chunks(sampler: Sampler) -> Iterator[Chunk]:
    """Chunks within bounds of memory; short repeats side by side, for each pass costs much besides its paths."""
    plan, n_repeats = sampler.plan, sampler.noise.n_repeats
    n_normals = plan.dt.shape[0] * (plan.scheme.n_normals + plan.model.n_assets)
    affordable = STORED_BYTES // (n_normals * plan.grid.element_size())
    width = min(replace(sampler, noise=Pseudo(0)).chunk_width(), max(TILE, 1 << max(affordable, 1).bit_length() - 1))
    per_repeat = sampler.n_paths // n_repeats
    # uniforms of bridges are addressed by the repeat
    abreast = 1 if sampler.instrument.bridge_uniforms else max(1, width // per_repeat)
    for first in range(0, n_repeats, abreast):
        repeats = tuple(range(first, min(first + abreast, n_repeats)))
        for start in range(0, per_repeat, width):
            yield Chunk(repeats, start, min(width, per_repeat - start))


def _stored(sampler: Sampler, chunk: Chunk, weighted: bool) -> Normals:
    """All normals of a chunk: nothing may be drawn in place while derivatives are taken."""
    parts: list[Tensor] = []
    for repeat in chunk.repeats:
        normals = sampler.normals(repeat, chunk.start, chunk.width, weighted)
        parts.append(normals.whole(sampler.plan.dt.shape[0]))
    return Stored(torch.cat(parts, dim=-1))


@dataclass
class Gathered:
    """Moments of the derivatives of payoffs and controls, and the derivatives of what the controls are known to be."""

    repeats: list[Moments | None]
    known: Tensor | None

    def estimate(self, engine: MonteCarlo, method: str, triple: Triple) -> Estimate:
        """Mean and standard error."""
        value, error = controlled([moments for moments in self.repeats if moments is not None], self.known)
        dtype = common_dtype(*triple)
        name = f"{engine.name}, {method.replace('_', ' ')}"
        return Estimate(value.to(dtype), error.to(dtype), n_paths=engine.n_paths, engine=name)


def _derived(
    task: Task, triple: Triple, engine: MonteCarlo, method: str, bump: float, chunk: Chunk, normals: Normals
) -> tuple[Tensor, Tensor | None]:
    """Derivatives of payoffs and controls along the paths of a chunk, and of the known expectations."""
    address = (chunk.repeats[0], chunk.start, chunk.width * len(chunk.repeats))
    # the number of jumps does not move with the paths: the derivative of its law is a weight
    counts = method != "bump" and has_jumps(triple, engine) and moves_counts(task)

    def along(*steps: Tensor) -> tuple[Tensor, ...]:
        moved = task.bumped(triple, *steps) if method == "bump" else task.moved(triple, *steps)
        sampler = engine.sampler(*moved)
        values = sampler.weighted_values if method == "likelihood_ratio" else sampler.values
        rows = values(*address, normals)
        if counts:
            density = jump_density(sampler.plan, normals)
            rows = rows * torch.exp(density - density.detach()).unsqueeze(-2)
        return (rows,) if sampler.known is None else (rows, sampler.known)

    sizes = [parameter.size(triple) for parameter in task.parameters]
    relative = ROUNDING
    if method == "bump":
        wider = bump * (SECOND_ORDER if task.order == 2 else 1.0)
        found = central_difference(along, [wider * size for size in sizes])
        relative /= wider**task.order
    else:
        found = forward_derivative(along, task.order)
    if len(found) == 1:
        return found[0], None
    rows, known = found
    price = engine.sampler(*triple).known
    assert price is not None
    noise = relative * torch.finfo(rows.dtype).eps * price.abs() / math.prod(sizes)
    controls = _without_rounding(rows[..., 1:, :], noise.unsqueeze(-1))
    return torch.cat([rows[..., :1, :], controls], dim=-2), _without_rounding(known, noise)


def _without_rounding(derivative: Tensor, noise: Tensor) -> Tensor:
    """Exactly 0 where it is rounding only: a forward, discounted, does not depend on the rate; no control is fitted."""
    return torch.where(derivative.abs() <= noise, 0.0, derivative)


def has_jumps(triple: Triple, engine: MonteCarlo | MultilevelMonteCarlo) -> bool:
    """Whether the paths jump."""
    model = triple[1]
    return model.schemes[engine.scheme or next(iter(model.schemes))].has_jumps


def moves_counts(task: Task) -> bool:
    """Whether the law of the number of jumps depends on a parameter: the intensity, or any date."""
    return any(p.name in ("intensity", "time") or p.owner == 0 for p in task.parameters)


def fitting(task: Task, sampler: Sampler, triple: Triple) -> str:
    """The method that holds, the least noisy first."""
    square_root = "v0" in vars(triple[1])
    if task.order == 2 and square_root and not any(head in SMOOTH for head in task.heads):
        return "bump"
    if sampler.conditional is not None:
        return "pathwise"  # the payoff is already averaged over the asset's noise: smooth
    if task.order == 1 and not triple[0].discontinuous:
        return "pathwise"
    return "likelihood_ratio" if sampler.has_density and _seen_by_density(task, triple) else "bump"


def _seen_by_density(task: Task, triple: Triple) -> bool:
    """Whether the score of the asset replaces all derivatives of the payoff that kinks or jumps would spoil.

    A level of the contract does not move the density: one derivative of a kink remains to the payoff, none of a jump.
    """
    levels = sum(p.owner == 0 and p.name not in ("time", *triple[0].date_fields, *DATES) for p in task.parameters)
    return levels <= (0 if triple[0].discontinuous else 1)


def _check(methods: list[str], tasks: list[Task], sampler: Sampler, triple: Triple) -> None:
    instrument, model, _ = triple
    if "likelihood_ratio" in methods and not sampler.has_density:
        raise ValueError(
            f"`method` 'likelihood_ratio' needs a model whose asset has a lognormal density in each step, "
            f"{type(model).__name__} is simulated without; use 'bump'"
        )
    for method, task in zip(methods, tasks, strict=True):
        if method == "likelihood_ratio" and not _seen_by_density(task, triple):
            names = ", ".join(parameter.name for parameter in task.parameters)
            raise ValueError(f"`method` 'likelihood_ratio' does not see levels of the contract ({names}); use 'bump'")
        if method == "pathwise" and sampler.conditional is None and (instrument.discontinuous or task.order == 2):
            what = "a second derivative" if task.order == 2 else f"the payoff of {type(instrument).__name__}"
            raise ValueError(f"`method` 'pathwise' would miss the kinks or jumps of {what}; use 'auto'")
        if method != "bump" and "intensity" in task.heads:
            intensity: Tensor = vars(model)["intensity"]
            if bool((intensity.detach() == 0).any()):
                raise ValueError(
                    "the derivative by `intensity` at 0 cannot be had from paths, for none of them jumps; use Fourier"
                )
