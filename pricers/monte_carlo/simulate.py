"""From a model and noise to paths: the loop over the steps of one block of paths."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from pricers.market import Market
from pricers.models.base import AnyScheme, DirectScheme, Model, PathScheme, Scheme
from pricers.noise import Normals
from pricers.paths import SAME_DATE, Paths

__all__ = ["Plan", "Recorded", "assemble", "asset_normals", "prepared", "record", "record_conditional"]

# on a CPU blocks run side by side, each on one thread; the wrapper in C++ lets go of Python's lock in the kernel
COMPILER_OPTIONS: dict[str, dict[str, Any]] = {"cpu": {"cpp.threads": 1, "cpp_wrapper": True}}


@dataclass(frozen=True)
class Plan:
    """What is the same for all blocks of one simulation.

    Args:
        model: parameters, of the dtype and on the device of the simulation.
        market: the same.
        scheme: discretisation.
        grid: times from 0, years; shape `(n_steps + 1,)`.
        dates: contract dates (and dates of cash dividends) on the grid, ascending.
        continuous: every step is recorded, with its variance.
        horizon: last contract date; shape `*instrument_batch`.
        compiled: the step is compiled.
        prepared: coefficients of all steps, where they are not wanted anew for each block (see `prepared`).
        observe: what of a scheme's state is recorded beside the prices; of a `PathScheme`, whose variance of a step is
            known at its start, of the variance per year.
    """

    model: Model
    market: Market
    scheme: AnyScheme
    grid: Tensor
    dates: Tensor
    continuous: bool
    horizon: Tensor
    compiled: bool = False
    prepared: tuple[tuple[Tensor, ...], ...] | None = None
    observe: Callable[[tuple[Tensor, ...]], Tensor] | None = None

    @property
    def compiler(self) -> str | None:
        """Kind of device to compile for, if the step is compiled at all."""
        return self.grid.device.type if self.compiled else None

    @property
    def dt(self) -> Tensor:
        """Lengths of the steps, shape `(n_steps,)`."""
        return self.grid.diff()

    @property
    def kept(self) -> list[bool]:
        """For each step whether its end is recorded."""
        n_steps = self.grid.shape[0] - 1
        if self.continuous:
            return [True] * n_steps
        index: list[int] = torch.searchsorted(self.grid.detach(), self.dates.detach() - SAME_DATE).tolist()
        ends = set(index)
        return [step + 1 in ends for step in range(n_steps)]

    @property
    def recorded_times(self) -> Tensor:
        """Times of the recorded points, the first is 0."""
        mask = torch.tensor([True, *self.kept], device=self.grid.device)
        return self.grid[mask]


@dataclass(frozen=True)
class Recorded:
    """The ratio of spot and forward (or its logarithm) at the recorded times, time first: `n *batch [assets] paths`."""

    ratio: Tensor
    variance: Tensor | None = None
    jumps_squared: Tensor | None = None
    observed: Tensor | None = None


def asset_normals(scheme: AnyScheme, model: Model) -> int:
    """Normals for each step that belong to the assets themselves."""
    return 0 if isinstance(scheme, DirectScheme) else model.n_assets


def prepared(plan: Plan) -> Plan:
    """The plan with the coefficients of all its steps, which many blocks share."""
    if isinstance(plan.scheme, PathScheme):
        return plan
    fresh = replace(plan, prepared=None)
    return replace(plan, prepared=tuple(_coefficients(fresh, step) for step in range(plan.grid.shape[0] - 1)))


def record(plan: Plan, normals: Normals, columns: slice) -> Recorded:
    """Simulate the paths of one block (its `columns`) and keep what the plan asks for."""
    if isinstance(plan.scheme, PathScheme):
        return _record_whole(plan, plan.scheme, normals, columns)
    if isinstance(plan.scheme, DirectScheme):
        return _record_direct(plan, plan.scheme, normals, columns)
    return _record_steps(plan, plan.scheme, normals, columns)


def record_conditional(plan: Plan, normals: Normals, columns: slice) -> tuple[Tensor, Tensor]:
    """Mean and variance of the log-ratio given the path of everything but the asset's own noise.

    Returns:
        Sums of drift and residual variance up to each recorded time; shape `n *batch paths`, zero first.
    """
    if isinstance(plan.scheme, PathScheme):
        noise = normals.whole(plan.dt.shape[0])[..., columns]
        drift, residual, _ = plan.scheme.increments(plan.model, plan.grid, noise)
        kept = torch.tensor(plan.kept, device=noise.device)
        return _from_zero(drift.cumsum(0)[kept]), _from_zero(residual.cumsum(0)[kept])
    assert isinstance(plan.scheme, Scheme)
    advance = _conditional_step(plan.scheme, plan.compiler)
    state = plan.scheme.start(plan.model)
    mean = total = plan.grid.new_zeros(*plan.model.batch_shape, columns.stop - columns.start)
    means, totals = [mean], [total]
    for step, keep in enumerate(plan.kept):
        coefficients = _coefficients(plan, step)
        mean, total, *state = advance(coefficients, mean, total, tuple(state), normals.step(step)[:, columns])
        if keep:
            means.append(mean)
            totals.append(total)
    return torch.stack(means), torch.stack(totals)


def assemble(plan: Plan, recorded: Recorded, uniforms: Tensor | None = None) -> Paths:
    """Prices on the recorded times: forwards times ratios, and cash dividends taken off on their dates."""
    times, market = plan.recorded_times, plan.market
    n_assets = plan.model.n_assets
    batch = market.batch_shape(n_assets)
    leading = times.reshape(-1, *[1] * len(batch))
    several = n_assets > 1
    if market.dividends is not None:
        ratio = _with_dividends(plan, recorded.ratio, leading)
    else:
        growth = market.asset_forwards(leading) if several else market.forward(leading)
        ratio = _times_batch(growth, recorded.ratio)

    def paths_first(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        return tensor.movedim((0, -2), (-2, -1)) if several else tensor.movedim(0, -1)

    spot = paths_first(ratio)
    assert spot is not None
    return Paths(
        times,
        spot,
        paths_first(recorded.variance),
        paths_first(recorded.jumps_squared),
        uniforms,
        n_asset_axes=int(several),
    )


def _times_batch(growth: Tensor, ratio: Tensor) -> Tensor:
    """`growth` (n *market [assets]) beside `ratio` (n *model [assets] paths), the batches aligned to the right."""
    growth = growth.unsqueeze(-1)
    rank = max(growth.ndim, ratio.ndim)
    growth = growth.reshape(growth.shape[0], *[1] * (rank - growth.ndim), *growth.shape[1:])
    return growth * ratio.reshape(ratio.shape[0], *[1] * (rank - ratio.ndim), *ratio.shape[1:])


def _with_dividends(plan: Plan, ratio: Tensor, leading: Tensor) -> Tensor:
    """Prices that grow with the ratio between ex-dates and fall by the amount on them, never below 0."""
    dividends = plan.market.dividends
    assert dividends is not None
    undisturbed = _times_batch(plan.market.spot * plan.market.growth(leading), ratio)
    ex_times: list[float] = dividends.times.tolist()
    amounts = {round(time, 9): amount for time, amount in zip(ex_times, dividends.amounts, strict=True)}
    spot = [undisturbed[0]]
    for index, time in enumerate(plan.recorded_times.tolist()[1:], start=1):
        grown = spot[-1] * (undisturbed[index] / undisturbed[index - 1])
        amount = amounts.get(round(time, 9))
        spot.append(grown if amount is None else (grown - amount).clamp(min=0.0))
    return torch.stack(spot)


def _coefficients(plan: Plan, step: int) -> tuple[Tensor, ...]:
    if plan.prepared is not None:
        return plan.prepared[step]
    scheme = plan.scheme
    assert not isinstance(scheme, PathScheme)
    return scheme.coefficients(plan.model, plan.market, plan.grid[step], plan.grid[step + 1] - plan.grid[step])


def _record_steps(plan: Plan, scheme: Scheme, normals: Normals, columns: slice) -> Recorded:
    model = plan.model
    root = getattr(model, "correlation_root", None)
    advance = _full_step(scheme, plan.continuous, plan.compiler)
    width = columns.stop - columns.start
    assets = () if root is None else (model.n_assets,)
    log_ratio = plan.grid.new_zeros(*model.batch_shape, *assets, width)
    state = scheme.start(model)
    points, variances, jumps = [log_ratio], [], []
    observed = [] if plan.observe is None else [plan.observe(state).expand_as(log_ratio)]
    for step, keep in enumerate(plan.kept):
        coefficients = _coefficients(plan, step)
        log_ratio, variance, jumped, *state = advance(
            coefficients, log_ratio, tuple(state), normals.step(step)[:, columns], root
        )
        if keep:
            points.append(log_ratio)
            if plan.observe is not None:
                observed.append(plan.observe(tuple(state)))
            if plan.continuous:
                variances.append(variance.expand_as(log_ratio))
                jumps.append(jumped)
    has_jumps = scheme.has_jumps and plan.continuous
    return Recorded(
        torch.stack(points).exp(),
        torch.stack(variances) if plan.continuous else None,
        torch.stack(jumps) if has_jumps else None,
        torch.stack(observed) if observed else None,
    )


def _record_whole(plan: Plan, scheme: PathScheme, normals: Normals, columns: slice) -> Recorded:
    noise, grid, n_steps = normals.whole(plan.dt.shape[0])[..., columns], plan.grid, plan.dt.shape[0]
    own = noise[:, : scheme.n_normals]
    if plan.observe is not None:  # the variance at the end is that at the start of one more step
        grid = torch.cat([grid, 2.0 * grid[-1:] - grid[-2:-1]])
        own = torch.cat([own, torch.zeros_like(own[:1])])
    drift, residual, variance = scheme.increments(plan.model, grid, own)
    kept = torch.tensor(plan.kept, device=noise.device)
    observed = None
    if plan.observe is not None:
        per_year = variance / grid.diff().reshape(-1, *[1] * (variance.ndim - 1))
        observed = plan.observe((torch.cat([per_year[:1], per_year[1:][kept]]),))
        drift, residual, variance = drift[:n_steps], residual[:n_steps], variance[:n_steps]
    asset = noise[:, scheme.n_normals].reshape(noise.shape[0], *[1] * (drift.ndim - 2), -1)
    deviation = torch.sqrt(residual + torch.finfo(residual.dtype).tiny)  # differentiated at 0 too
    log_ratio = (drift + deviation * asset).cumsum(0)
    ratio = _from_zero(log_ratio[kept]).exp()
    return Recorded(ratio, variance if plan.continuous else None, observed=observed)


def _record_direct(plan: Plan, scheme: DirectScheme, normals: Normals, columns: slice) -> Recorded:
    advance = _direct_step(scheme, plan.compiler)
    state = scheme.start(plan.model, plan.market, plan.horizon)
    state = tuple(part.expand(*part.shape[:-1], columns.stop - columns.start) for part in state)
    points, variances = [scheme.ratio(state)], []
    observed = [] if plan.observe is None else [plan.observe(state)]
    for step, keep in enumerate(plan.kept):
        coefficients = _coefficients(plan, step)
        later = advance(coefficients, state, normals.step(step)[:, columns])
        if keep:
            points.append(scheme.ratio(later))
            if plan.observe is not None:
                observed.append(plan.observe(later))
            if plan.continuous:
                variances.append(scheme.variance(coefficients, state, later))
        state = later
    ratio, seen = torch.stack(points), torch.stack(observed) if observed else None
    if not plan.continuous:
        return Recorded(ratio, observed=seen)
    # what looks between the steps takes logarithms: that of an asset absorbed at 0 must be finite
    return Recorded(ratio.clamp(min=torch.finfo(ratio.dtype).tiny), torch.stack(variances), observed=seen)


def _from_zero(tensor: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(tensor[:1]), tensor])


@lru_cache(maxsize=64)
def _full_step(scheme: Scheme, continuous: bool, compiler: str | None) -> Callable[..., Any]:
    n_normals = scheme.n_normals

    def advance(
        coefficients: Sequence[Tensor],
        log_ratio: Tensor,
        state: tuple[Tensor, ...],
        normals: Tensor,
        root: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        step = scheme.advance(tuple(coefficients), log_ratio, state, normals[:n_normals])
        asset = torch.matmul(root, normals[n_normals:]) if root is not None else normals[n_normals]
        log_ratio = log_ratio + step.drift + step.deviation * asset
        if not continuous:  # what nobody reads is not written
            return log_ratio, None, None, *step.state
        return log_ratio, step.variance, step.jumps_squared, *step.state

    return _maybe_compiled(advance, compiler)


@lru_cache(maxsize=64)
def _conditional_step(scheme: Scheme, compiler: str | None) -> Callable[..., Any]:
    def advance(
        coefficients: Sequence[Tensor], mean: Tensor, total: Tensor, state: tuple[Tensor, ...], normals: Tensor
    ) -> tuple[Tensor, ...]:
        step = scheme.advance(tuple(coefficients), mean, state, normals)
        return mean + step.drift, total + step.residual_variance, *step.state

    return _maybe_compiled(advance, compiler)


@lru_cache(maxsize=64)
def _direct_step(scheme: DirectScheme, compiler: str | None) -> Callable[..., Any]:
    return _maybe_compiled(scheme.advance, compiler)


def _maybe_compiled(step: Callable[..., Any], compiler: str | None) -> Callable[..., Any]:
    """The step, compiled to one kernel if asked; where the compiler fails, the step itself, with one warning."""
    if compiler is None:
        return step
    lock, state = Lock(), "new"
    fast = step

    def checked(*arguments: Any) -> Any:
        nonlocal state, fast
        if state == "new":
            with lock:  # threads come here side by side, one of them compiles
                if state == "new":
                    try:
                        fast = torch.compile(step, options=COMPILER_OPTIONS.get(compiler))
                        done = fast(*arguments)
                        state = "compiled"
                        return done
                    except Exception as error:  # whatever the compiler raises: the eager step gives the same
                        state, fast = "eager", step
                        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                        warnings.warn(f"torch.compile failed, the steps run eagerly (slower): {reason}", stacklevel=2)
        return fast(*arguments)

    return checked
