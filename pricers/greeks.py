"""Sensitivities of a price to whatever it depends on, each with its error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor

from pricers.estimate import Estimate
from pricers.exercise import LongstaffSchwartz
from pricers.instruments.base import Instrument
from pricers.market import Market, ZeroCurve
from pricers.models.base import Model
from pricers.monte_carlo import MonteCarlo, MultilevelMonteCarlo, Sampler
from pricers.monte_carlo.engine import common_dtype
from pricers.monte_carlo.statistics import Moments, controlled, merged, tile_moments
from pricers.noise import Normals, Stored
from pricers.parameters import copied
from pricers.pricing import Engine, default_engine

__all__ = ["greeks"]

Name = str | tuple[str, str]
Triple = tuple[Instrument, Model, Market]
METHODS = ("auto", "pathwise", "likelihood_ratio", "bump")


@dataclass(frozen=True)
class Parameter:
    """Something that a price depends on.

    Args:
        name: as the user calls it.
        owner: 0 for the instrument, 1 for the model, 2 for the market.
        path: names of the fields that lead to the tensor.
        event_shape: trailing axes that are no batch (assets, nodes of a curve): one Greek for each of their entries.
    """

    name: str
    owner: int
    path: tuple[str, ...]
    event_shape: torch.Size

    def entries(self) -> list[int | None]:
        """Flat indices into the event axes; None stands for a parameter without such axes."""
        return list(range(self.event_shape.numel())) if self.event_shape else [None]

    def moved(self, triple: Triple, step: Tensor, entry: int | None) -> Triple:
        """The triple with the parameter (or one entry of it) raised by `step`."""
        if self.name == "time":
            instrument, model, market = triple
            return instrument.shifted(step), model, market.shifted(step)
        items = list(triple)
        items[self.owner] = _raised(items[self.owner], self.path, step, entry, self.event_shape)
        return cast("Triple", tuple(items))


def greeks(
    instrument: Instrument,
    model: Model,
    market: Market,
    wrt: Sequence[Name],
    engine: Engine | None = None,
    method: str = "auto",
    bump: float = 1e-3,
) -> dict[Name, Estimate]:
    r"""Sensitivities of the price, of first order by a name and of second order by a pair of names.

    A name is a field of the market (`spot`, `rate`, `dividend_yield`), the model (`v0`, `vol`, ...) or the instrument
    (`strike`, `barrier`, ...); fields of fields are reached by dots (`surface.vols`, `rate.rates`); `rate` of a curve
    moves all its nodes. `theta` and `rho` are parameters of models; the decay by calendar time is "time". A parameter
    that the batch shares is differentiated for each element of the batch; entries of a curve, surface or of several
    assets add trailing axes.

    Without simulation the price is differentiated by forward-mode automatic differentiation. Under simulation the
    method is

    - "pathwise": mean of the derivatives along the paths; needs a payoff without jumps,
    - "likelihood_ratio": payoffs weighted with the score of the asset's density, for digitals and discrete barriers,
    - "bump": central differences of relative size `bump` on common random numbers; the check of the others.

    "auto" takes the first that holds. All three give standard errors from the paths (or repeats) themselves.

    Args:
        instrument: what is paid.
        model: dynamics of the asset.
        market: spot, rates and dividends.
        wrt: names, and pairs of names.
        engine: as in `price`.
        method: "auto", "pathwise", "likelihood_ratio" or "bump".
        bump: relative size of a bump (absolute for parameters near 0).

    Returns:
        An `Estimate` for each entry of `wrt`, in units of price per unit of the parameter.

    Raises:
        ValueError: an unknown name or method, or one that does not fit the engine.

    References:
        Glasserman (2004), Monte Carlo Methods in Financial Engineering, chapter 7.

    >>> import pricers as pr
    >>> call, market = pr.European(100.0, 1.0), pr.Market(100.0, rate=0.05)
    >>> found = pr.greeks(call, pr.BlackScholes(0.2), market, wrt=("spot", ("spot", "spot")))
    >>> round(found["spot"].value.item(), 6), round(found["spot", "spot"].value.item(), 6)
    (0.636831, 0.018762)
    """
    if isinstance(wrt, str):
        raise ValueError(f"`wrt` must be a sequence of names, got the text {wrt!r}; write ({wrt!r},)")
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    triple = (instrument, model, market)
    engine = engine or default_engine(*triple)
    if not bump > 0:
        raise ValueError(f"`bump` must be above 0, got {bump}")
    tasks = {name: _tasks(name, triple) for name in wrt}
    every = [task for group in tasks.values() for task in group]
    if isinstance(engine, MonteCarlo):
        estimates = _simulated(every, triple, engine, method, bump)
    else:
        estimates = [_drawn_nothing(task, triple, engine, method, bump) for task in every]
    done = iter(estimates)
    return {name: _stacked(group[0], [next(done) for _ in group]) for name, group in tasks.items()}


@dataclass(frozen=True)
class Task:
    """One number to be found for each element of the batch: a derivative in one or two parameters (or entries)."""

    parameters: tuple[Parameter, ...]
    entries: tuple[int | None, ...]

    def moved(self, triple: Triple, *steps: Tensor) -> Triple:
        """The triple with each parameter raised by its step."""
        moves = zip(self.parameters, steps, self.entries, strict=True)
        return reduce(lambda now, move: move[0].moved(now, move[1], move[2]), moves, triple)


def _tasks(name: Name, triple: Triple) -> list[Task]:
    names = (name,) if isinstance(name, str) else tuple(name)
    if len(names) not in (1, 2):
        raise ValueError(f"`wrt` knows first and second order (a name, a pair of names), got {names}")
    parameters = tuple(locate(single, triple) for single in names)
    return [Task(parameters, entries) for entries in product(*(parameter.entries() for parameter in parameters))]


def _stacked(task: Task, estimates: list[Estimate]) -> Estimate:
    """The entries of event axes side by side, behind the batch."""
    shape = tuple(n for parameter in task.parameters for n in parameter.event_shape)
    if not shape:
        return estimates[0]

    def columns(part: str) -> Tensor:
        stacked = torch.stack([getattr(estimate, part) for estimate in estimates], dim=-1)
        return stacked.reshape(*stacked.shape[:-1], *shape)

    first = estimates[0]
    return Estimate(
        columns("value"), columns("std_error"), columns("error_bound"), first.n_paths, first.engine, first.note
    )


def locate(name: str, triple: Triple) -> Parameter:
    """The parameter of that name.

    Raises:
        ValueError: nothing in the triple is called so.
    """
    if name == "time":
        return Parameter(name, 0, (), torch.Size())
    head, *rest = name.split(".")
    for owner in (2, 1, 0):
        value: Any = getattr(triple[owner], head, None) if head in vars(triple[owner]) else None
        for part in rest:
            value = vars(value).get(part) if hasattr(value, "__dict__") else None
        path = (head, *rest)
        if isinstance(value, ZeroCurve):
            return Parameter(name, owner, (*path, "rates"), torch.Size())
        if isinstance(value, Tensor):
            return Parameter(name, owner, path, _event_shape(path, value, triple))
    known = sorted({key for item in triple for key, value in vars(item).items() if isinstance(value, Tensor)})
    inside = sorted(
        f"{key}.{part}"
        for item in triple
        for key, value in vars(item).items()
        if hasattr(value, "__dict__") and not isinstance(value, Tensor)
        for part, leaf in vars(value).items()
        if isinstance(leaf, Tensor)
    )
    raise ValueError(
        f"`wrt` names what the price does not depend on: {name!r}; known are {', '.join([*known, *inside, 'time'])}"
    )


def _event_shape(path: tuple[str, ...], value: Tensor, triple: Triple) -> torch.Size:
    _, model, _ = triple
    if len(path) != 1:  # nodes of a curve or surface
        return value.shape
    if path[0] == "correlation":
        return value.shape[-2:]
    several = model.n_assets > 1 and path[0] in ("spot", "vol", "dividend_yield", "weights")
    return value.shape[-1:] if several and value.ndim else torch.Size()


def _raised(item: Any, path: tuple[str, ...], step: Tensor, entry: int | None, event_shape: torch.Size) -> Any:
    """A copy of `item` whose field at the end of `path` is raised by `step` (in one entry of its event axes)."""
    head, *rest = path
    if rest:
        return copied(item, **{head: _raised(getattr(item, head), tuple(rest), step, entry, event_shape)})
    value: Tensor = getattr(item, head)
    if entry is None:
        return copied(item, **{head: value + step.to(value.dtype)})
    direction = torch.zeros(event_shape.numel(), dtype=value.dtype, device=value.device)
    direction[entry] = 1.0
    direction = direction.reshape(event_shape)
    if head == "correlation":  # stays symmetric
        direction = direction + direction.mT if entry % (event_shape[0] + 1) else direction
    return copied(item, **{head: value + step.to(value.dtype) * direction})


def _drawn_nothing(task: Task, triple: Triple, engine: Engine, method: str, bump: float) -> Estimate:
    """A derivative of an engine that answers with a number (or keeps its noise whatever the parameters are)."""
    name = getattr(engine, "name", type(engine).__name__)
    price = lambda *steps: engine.price(*task.moved(triple, *steps))  # noqa: E731  # used twice, as a value
    if isinstance(engine, (LongstaffSchwartz, MultilevelMonteCarlo)):
        raise ValueError(
            f"{type(engine).__name__} gives no Greeks: its rule of exercise, or its number of paths, jumps "
            "with the parameters; use FiniteDifference or MonteCarlo"
        )
    if method == "bump":
        sizes = [_bump_size(parameter, triple, bump) for parameter in task.parameters]
        coarse, fine = (
            _differences(lambda *steps: price(*steps).value, [size * scale for size in sizes]) for scale in (2.0, 1.0)
        )
        return Estimate(fine, 0.0, error_bound=(fine - coarse).abs() / 3.0, engine=f"{name}, bump")
    if method not in ("auto", "pathwise"):
        raise ValueError(f"`method` {method!r} needs MonteCarlo, got {type(engine).__name__}; leave it away")
    value = _derivative(lambda *steps: price(*steps).value, len(task.parameters))
    return Estimate(value, 0.0, engine=name)


def _derivative(function: Callable[..., Any], order: int) -> Any:
    """Mixed derivative of `function(*steps)` in all its `order` scalar steps at 0, by nested forward mode."""
    zero = torch.zeros((), dtype=torch.float64)
    one = torch.ones_like(zero)

    def along(fixed: tuple[Tensor, ...]) -> Any:
        if len(fixed) == order:
            return function(*fixed)
        return torch.func.jvp(lambda step: along((*fixed, step)), (zero,), (one,))[1]

    return along(())


def _bump_size(parameter: Parameter, triple: Triple, bump: float) -> float:
    if parameter.name == "time":
        return bump * triple[0].horizon.detach().min().item()
    value: Any = triple[parameter.owner]
    for part in parameter.path:
        value = getattr(value, part)
    return bump * max(value.detach().abs().mean().item(), 0.01)


def _differences(function: Callable[..., Any], sizes: list[float]) -> Any:
    """Central difference in each step, one inside the other."""

    def along(fixed: tuple[Tensor, ...]) -> Any:
        if len(fixed) == len(sizes):
            return function(*fixed)
        size = sizes[len(fixed)]
        step = torch.tensor(size, dtype=torch.float64)
        up, down = along((*fixed, step)), along((*fixed, -step))
        if isinstance(up, tuple):
            return tuple((one - other) / (2.0 * size) for one, other in zip(up, down, strict=True))
        return (up - down) / (2.0 * size)

    return along(())


def _simulated(tasks: list[Task], triple: Triple, engine: MonteCarlo, method: str, bump: float) -> list[Estimate]:
    """Means of the derivatives of each path's discounted payoff; all tasks share the noise."""
    base = engine.sampler(*triple)
    methods = [_fitting_method(task, base, triple) if method == "auto" else method for task in tasks]
    if "likelihood_ratio" in methods and not base.has_density:
        raise ValueError(
            f"`method` 'likelihood_ratio' needs a model whose asset has a lognormal density in each step, "
            f"{type(triple[1]).__name__} is simulated without; use 'bump'"
        )
    gathered = [Gathered([None] * base.noise.n_repeats, None) for _ in tasks]
    with torch.no_grad():
        for chunk in base.chunks():
            noise: dict[bool, Normals] = {}
            for task, chosen, result in zip(tasks, methods, gathered, strict=True):
                weighted = chosen == "likelihood_ratio"
                if weighted not in noise:
                    noise[weighted] = _stored(base, chunk, weighted)
                rows, result.known = _derived_rows(task, triple, engine, chosen, bump, chunk, noise[weighted])
                for tile in tile_moments(rows, base.noise.pairs):
                    result.repeats[chunk[0]] = merged(result.repeats[chunk[0]], tile)
    return [result.estimate(engine, chosen, triple) for result, chosen in zip(gathered, methods, strict=True)]


@dataclass
class Gathered:
    """Moments of the derivatives of payoffs and controls, and the derivatives of what the controls are known to be."""

    repeats: list[Moments | None]
    known: Tensor | None

    def estimate(self, engine: MonteCarlo, method: str, triple: Triple) -> Estimate:
        value, error = controlled([moments for moments in self.repeats if moments is not None], self.known)
        dtype = common_dtype(*triple)
        name = f"{engine.name}, {method.replace('_', ' ')}"
        return Estimate(value.to(dtype), error.to(dtype), n_paths=engine.n_paths, engine=name)


def _derived_rows(
    task: Task,
    triple: Triple,
    engine: MonteCarlo,
    method: str,
    bump: float,
    chunk: tuple[int, int, int],
    normals: Normals,
) -> tuple[Tensor, Tensor | None]:
    """Derivatives of payoffs and controls along the paths of a chunk, and of the known expectations."""

    def along(*steps: Tensor) -> tuple[Tensor, ...]:
        sampler = engine.sampler(*task.moved(triple, *steps))
        values = sampler.weighted_values if method == "likelihood_ratio" else sampler.values
        rows = values(*chunk, normals)
        return (rows,) if sampler.known is None else (rows, sampler.known)

    if method == "bump":
        found = _differences(along, [_bump_size(parameter, triple, bump) for parameter in task.parameters])
    else:
        found = _derivative(along, len(task.parameters))
    return found[0], found[1] if len(found) > 1 else None


def _stored(sampler: Sampler, chunk: tuple[int, int, int], weighted: bool) -> Normals:
    """All normals of a chunk: nothing may be drawn in place while derivatives are taken."""
    normals = sampler.normals(*chunk, weighted)
    n_steps = sampler.plan.dt.shape[0]
    return Stored(torch.stack([normals.step(step).clone() for step in range(n_steps)]))


def _fitting_method(task: Task, sampler: Sampler, triple: Triple) -> str:
    """The method that holds, the least noisy first."""
    if any(parameter.name == "intensity" for parameter in task.parameters):
        return "bump"  # the number of jumps along a path is not differentiable
    if sampler.conditional is not None:
        return "pathwise"  # the payoff is already averaged over the asset's noise: smooth
    if len(task.parameters) == 1 and not triple[0].discontinuous:
        return "pathwise"
    return "likelihood_ratio" if sampler.has_density else "bump"
