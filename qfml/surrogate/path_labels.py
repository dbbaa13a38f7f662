r"""Monte Carlo labels of contracts on dates: each label has its own model, its own terms and its own noise.

Simulating one batch with shared noise would give all labels one common error, which a network learns as if it were the
price. Here row $i$ gets noise of its own, addressed by the seed and the number of the row, so that errors of different
labels are independent and average out in training.

**One-step survival.** A knock-out makes the payoff jump along the path, and its derivative along the path misses the
jump. Given the path of the variance the log price is normal from one fixing date to the next. So each path is drawn on
the live side of the barrier, from the truncated normal law, and carries the probability of having stayed there as a
weight: the payoff times the weight has the same mean, less variance, and no jump. The last date is integrated out: a
Black formula between strike and barrier takes its place, so that the payoff has no kink either, and no label is exactly
0 because none of its paths ended in the money.

**Paths whose variance stays near 0** between two dates cross the barrier or not by their drift alone, and the jump is
back: as a slope of the size of 1 over the deviation, on paths too rare to be met. So a least variance is added between
any two dates. It moves prices of a year's monthly fixings by less than 0.03 basis points of spot, also at a v0 of 1 %
and a sigma of 1. At 1e-12 in its place the slope in rho, at v0 = theta = 0.04, kappa = 1 and sigma = 1, came out some
4 % too small in six of eight samples of 130,000 paths, and almost three times too large in another.

**QE's switch.** The scheme of the variance takes one of two laws of the same two moments, and the price given the
variance may jump where a path changes from one to the other; derivatives along the path miss that. Against
central differences on common noise of 2 million paths of 12 steps, at sigma = 1, v0 = 0.01, kappa = 2 and theta = 0.04,
that is not to be told from 0: less than 0.4 % of the slopes of a European option in v0, kappa and theta, and 0.7 % of
that in sigma, where the noise of a label of 128 paths is 8 % to 27 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

import pricers as pr
from pricers.models.base import Scheme
from pricers.noise import address
from pricers.normal import normal_cdf

__all__ = ["FEWEST_PATHS", "block_rows", "discounted_payoffs", "label_block", "refusal"]

BLOCK = 2**14  # paths of one block of rows on a CPU: with the tape of their steps some tens of megabytes
CUDA_BLOCK = 2**20
GROUPS = 32  # of paths of one label, whose scatter gives the standard error of its gradient
FEWEST_PATHS = 16
FARTHEST = 37.0  # standard deviations; beyond, a normal probability is below the least double
LEAST_VARIANCE = 1e-7  # of the log price between two dates, 3 basis points squared; see the module
MODELS = (pr.Heston, pr.BlackScholes)  # whose steps do not depend on the time
_special: Any = torch.special  # has no type stubs


@runtime_checkable
class Triples(Protocol):
    """What turns rows of inputs into instrument, model and market of a batch: a `Problem`."""

    def triple(self, inputs: Tensor) -> tuple[pr.Instrument, pr.Model, pr.Market]:
        """Batches of as many elements as `inputs` has rows, with a graph to `inputs`."""
        ...


@dataclass(frozen=True)
class _Terms:
    """The terms of a contract on dates; tensors of shape `(N,)` and `(N, n_dates)`, or such that broadcast with it."""

    times: Tensor
    strike: Tensor
    call: bool
    arithmetic: bool
    barrier: Tensor | None = None
    up: bool = True
    out: bool = True


def refusal(instrument: pr.Instrument, model: pr.Model, market: pr.Market) -> str | None:
    """Why there are no labels of this triple by simulation with independent noise; None if there are."""
    if isinstance(instrument, pr.Asian):
        if instrument.continuous or instrument.floating or instrument.n_past:
            return "of the Asian options those on fixings to come with a fixed strike are simulated"
    elif not isinstance(instrument, pr.AsianBarrier | pr.European):
        return f"European, Asian and AsianBarrier are simulated row by row, not {type(instrument).__name__}"
    if not isinstance(model, MODELS) or model.n_assets > 1:
        return f"one asset under Heston or BlackScholes is simulated row by row, not {type(model).__name__}"
    if market.dividends is not None:
        return "cash dividends are not simulated here; use `dividend_yield`"
    return None


def _terms(instrument: pr.Instrument) -> _Terms:
    if isinstance(instrument, pr.European):
        return _Terms(instrument.expiry.unsqueeze(-1), instrument.strike, instrument.option == "call", True)
    assert isinstance(instrument, pr.Asian | pr.AsianBarrier)
    assert isinstance(instrument.times, Tensor)
    assert instrument.strike is not None
    usual = (instrument.times, instrument.strike, instrument.option == "call", instrument.average == "arithmetic")
    if isinstance(instrument, pr.Asian):
        return _Terms(*usual)
    return _Terms(*usual, instrument.barrier, not instrument.down, instrument.out)


class _Truncated(torch.autograd.Function):
    r"""The normal below $c$ at the uniform $u$: $y = \Phi^{-1}(u\,\Phi(c))$, with $y' = u\,\varphi(c) / \varphi(y)$."""

    @staticmethod
    def forward(ctx: FunctionCtx, probability: Tensor, bound: Tensor, uniform: Tensor) -> Tensor:
        drawn = _special.ndtri(uniform * probability)
        ctx.save_for_backward(bound, uniform, drawn)  # pyright: ignore[reportAttributeAccessIssue]
        return drawn

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        bound, uniform, drawn = ctx.saved_tensors
        # the ratio of two densities, each of which may be too small for a number of its own
        return None, grads[0] * uniform * torch.exp(0.5 * (drawn - bound) * (drawn + bound)), None


def truncated_normal(bound: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    r"""A standard normal given that it lies below `bound`, and the probability of that.

    Args:
        bound: $c$, any shape.
        uniform: $u$ in (0, 1), same shape, without gradient.

    Returns:
        $\Phi^{-1}(u\,\Phi(c))$ and $\Phi(c)$, both differentiable in `bound`.

    References:
        Glasserman and Staum (2001), Conditioning on one-step survival for barrier option simulations, section 3.

    >>> drawn, probability = truncated_normal(torch.tensor([-3.0, 40.0]).double(), torch.tensor([0.5, 0.25]).double())
    >>> drawn
    tensor([-3.2052, -0.6745], dtype=torch.float64)
    """
    bound = bound.clamp(min=-FARTHEST)  # such a path has no weight left
    probability = normal_cdf(bound)
    return _Truncated.apply(probability.detach(), bound, uniform), probability  # pyright: ignore[reportReturnType]


class _Draws:
    """Noise of a block of rows, drawn in the order of use; the two halves of the paths mirror each other."""

    def __init__(self, generator: torch.Generator, block: tuple[int, int], rows: slice, groups: int) -> None:
        self.generator, self.block, self.rows, self.groups = generator, block, rows, groups

    def _drawn(self, kind: str) -> Tensor:
        # a whole block is drawn, even where some of its rows are not wanted: a label does not depend on its company
        size, n_paths = self.block
        drawn = torch.empty(size, n_paths // 2, dtype=torch.float64, device=self.generator.device)
        if kind == "normal":
            drawn.normal_(generator=self.generator)
        else:
            drawn.uniform_(generator=self.generator)
        return drawn[self.rows].reshape(-1, n_paths // 2 // self.groups)

    def normals(self) -> Tensor:
        """Standard normals, shape `(rows * groups, paths)`."""
        half = self._drawn("normal")
        return torch.cat([half, -half], dim=-1)

    def uniforms(self) -> Tensor:
        """Uniforms in (0, 1), same shape."""
        half = self._drawn("uniform").clamp_(min=2.0**-54)
        return torch.cat([half, 1.0 - half], dim=-1)


def discounted_payoffs(
    triple: tuple[pr.Instrument, pr.Model, pr.Market], draws: _Draws, n_paths: int, n_steps: int
) -> Tensor:
    """Payoffs along paths of their own for each element of a batch, weighted by survival; shape `(N, n_paths)`.

    Args:
        triple: instrument, model and market, a batch of shape `(N,)`.
        draws: the noise.
        n_paths: for each element.
        n_steps: steps of the variance to the last date, spread evenly over the intervals between dates.
    """
    instrument, model, market = triple
    terms = _terms(instrument)
    batch = torch.broadcast_shapes(instrument.batch_shape, model.batch_shape, market.batch_shape())
    times = terms.times.expand(*batch, -1)
    sides = _sides(terms, times.shape[-1])
    *earlier, last = _increments(model, market, times, draws, n_paths, n_steps)
    for increment in earlier:
        uniforms = draws.uniforms()
        for side in sides:
            side.fix(*increment, uniforms)
    values = [side.value(*last) for side in sides]
    value = values[0] if len(values) == 1 else values[0] - values[1]
    return value * market.discount(times[..., -1]).unsqueeze(-1)


def _increments(
    model: pr.Model, market: pr.Market, times: Tensor, draws: _Draws, n_paths: int, n_steps: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For each date the log of the forward `(N, 1)`, and given the variance the drift and deviation `(N, n_paths)`."""
    batch, n_dates = times.shape[:-1], times.shape[-1]
    scheme = next(iter(model.schemes.values()))
    assert isinstance(scheme, Scheme)
    per_interval = 1 if scheme.exact else -(-n_steps // n_dates)
    lengths = times.diff(dim=-1, prepend=torch.zeros_like(times[..., :1])) / per_interval

    def wide(column: Tensor) -> Tensor:
        """A column for each path: elementwise operations on short rows beside columns are slow."""
        return column.expand(*batch, n_paths).contiguous()

    state = tuple(wide(part) for part in scheme.start(model))
    for date in range(n_dates):
        dt = lengths[..., date]
        coefficients = tuple(wide(column) for column in scheme.coefficients(model, market, torch.zeros_like(dt), dt))
        drift = variance = torch.zeros((), dtype=times.dtype, device=times.device)
        for _ in range(per_interval):
            normals = draws.normals().unsqueeze(0) if scheme.n_normals else times.new_empty(0)
            step = scheme.advance(coefficients, drift, state, normals)
            state, drift, variance = step.state, drift + step.drift, variance + step.residual_variance
        forward = market.forward(times[..., date]).log().expand(batch).unsqueeze(-1)
        spread = (variance + LEAST_VARIANCE).sqrt()
        yield forward, drift.expand(*batch, n_paths), spread.expand(*batch, n_paths)


def _sides(terms: _Terms, n_dates: int) -> list[_Side]:
    """The paths whose values make the price: free ones, surviving ones, or free ones less surviving ones for "in"."""
    free = _Side(terms, n_dates, None)
    if terms.barrier is None:
        return [free]
    alive = _Side(terms, n_dates, terms.barrier.log().unsqueeze(-1) if terms.barrier.ndim else terms.barrier.log())
    return [alive] if terms.out else [free, alive]


@dataclass
class _Side:
    """Fixings so far of paths without a barrier, or of paths that are kept on its live side.

    A date adds a normal of the deviation `spread` around `mean`: the log of the forward and the drift of this path.
    """

    terms: _Terms
    n_dates: int
    barrier: Tensor | None  # its logarithm, shape `(N, 1)`
    noise: Tensor | float = 0.0  # what the asset's own noise and drifts have added to the log price
    weight: Tensor | float = 1.0
    total: Tensor | float = 0.0  # of the fixings, or of their logarithms

    def fix(self, forward: Tensor, drift: Tensor, spread: Tensor, uniform: Tensor) -> None:
        """One more date, not the last one."""
        place = self.noise + drift
        if self.barrier is None:
            moved = spread * _special.ndtri(uniform)
        else:
            sign = 1.0 if self.terms.up else -1.0
            # above a barrier the mirrored normal is kept below a bound, and falls with 1 - u
            bound = sign * (self.barrier - forward - place) / spread
            drawn, probability = truncated_normal(bound, uniform if self.terms.up else 1.0 - uniform)
            moved, self.weight = sign * spread * drawn, self.weight * probability
        self.noise = place + moved
        log_spot = forward + self.noise
        self.total = self.total + (log_spot.exp() if self.terms.arithmetic else log_spot)

    def value(self, forward: Tensor, drift: Tensor, spread: Tensor) -> Tensor:
        r"""Expected payoff times the weight, the noise of the last date integrated out.

        With $\log S = \mu + s z$ the payoff is $\pm(a e^{b s z} - k)$ for $z$ between two bounds, where $b$ is 1 for
        an arithmetic average and $1/n$ for a geometric one.
        """
        terms, n = self.terms, self.n_dates
        mean = forward + self.noise + drift
        strike = terms.strike.unsqueeze(-1) if terms.strike.ndim else terms.strike
        least = torch.finfo(mean.dtype).tiny
        if terms.arithmetic:  # what the last fixing must be; at or below 0: any
            missing, exponent, start = n * strike - self.total, spread, mean.exp()
            edge, level, scale = missing.clamp(min=least).log(), missing, 1.0 / n
        else:
            edge, level, scale = n * strike.log() - self.total, strike, 1.0
            exponent, start = spread / n, ((self.total + mean) / n).exp()
        edge = (edge - mean) / spread
        low, high = (edge, None) if terms.call else (None, edge)
        if self.barrier is not None:
            wall = (self.barrier - mean) / spread
            if terms.up:
                high = wall if high is None else torch.minimum(high, wall)
            else:
                low = wall if low is None else torch.maximum(low, wall)
        by_asset, by_cash = (_between(low, high, shift) for shift in (exponent, torch.zeros_like(exponent)))
        paid = start * torch.exp(0.5 * exponent * exponent) * by_asset - level * by_cash
        return self.weight * scale * (paid if terms.call else -paid)


def _between(low: Tensor | None, high: Tensor | None, shift: Tensor) -> Tensor:
    """Probability that a normal of mean `shift` lies between two bounds; 0 where they are in the wrong order."""
    if low is None:
        assert high is not None
        return normal_cdf(high - shift)
    if high is None:
        return normal_cdf(shift - low)
    return normal_cdf(torch.maximum(low, high) - shift) - normal_cdf(low - shift)


def block_rows(n_paths: int, device: torch.device) -> int:
    """Labels that are simulated together, with noise from one generator."""
    return max(1, (CUDA_BLOCK if device.type == "cuda" else BLOCK) // n_paths)


def label_block(
    triples: Triples, inputs: Tensor, n_paths: int, n_steps: int, seed: int, block: int, rows: slice, gradients: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Values, their standard errors, gradients and theirs, of some rows of one block, in units of price over spot.

    Args:
        triples: a `Problem`.
        inputs: the inputs of these rows, shape `(n, d)`.
        n_paths: a power of two.
        n_steps: steps of the variance to the last date.
        seed: any integer.
        block: number of the block.
        rows: which rows of the block they are.
        gradients: whether derivatives by the inputs are wanted.
    """
    n, n_pairs = len(inputs), n_paths // 2
    groups = min(GROUPS, n_pairs) if gradients else 1
    generator = torch.Generator(device=inputs.device).manual_seed(address("labels", seed, n_paths, block))
    draws = _Draws(generator, (block_rows(n_paths, inputs.device), n_paths), rows, groups)
    with torch.set_grad_enabled(gradients):
        leaf = inputs.detach().repeat_interleave(groups, dim=0).requires_grad_(gradients)
        triple = triples.triple(leaf)
        market = triple[2]
        spot = market.spot.unsqueeze(-1) if market.spot.ndim else market.spot
        paths = discounted_payoffs(triple, draws, n_paths // groups, n_steps) / spot
        means = paths.mean(-1)
    halves = paths.detach().reshape(n, groups, 2, n_pairs // groups)
    pairs = halves.mean(2).reshape(n, n_pairs)
    value, std_error = pairs.mean(-1), pairs.std(-1) / math.sqrt(n_pairs)
    if not gradients:
        return value, std_error, None, None
    (slopes,) = torch.autograd.grad(means.sum(), leaf)
    slopes = slopes.reshape(n, groups, -1)
    return value, std_error, slopes.mean(1), slopes.std(1) / math.sqrt(groups)
