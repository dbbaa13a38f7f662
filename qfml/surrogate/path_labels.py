r"""Monte Carlo labels of contracts on dates: each label has its own model, its own terms and its own noise.

Simulating one batch with shared noise would give all labels one common error, which a network learns as if it were the
price. Here row $i$ gets noise of its own, addressed by the seed and the number of the row, so that errors of different
labels are independent and average out in training.

**One-step survival.** A knock-out makes the payoff jump along the path, and its derivative along the path misses the
jump. Given the path of the variance the log price is normal from one fixing date to the next. So each path is drawn on
the live side of the barrier, from the truncated normal law, and carries the probability of having stayed there as a
weight: the payoff times the weight has the same mean, less variance, and no jump. Its derivatives along the path are
unbiased where the scheme of the variance is smooth; what QE's switch between its two branches adds is far below the
noise of labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

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
MODELS = (pr.Heston, pr.BlackScholes)  # whose steps do not depend on the time
_special: Any = torch.special  # has no type stubs


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

    >>> drawn, probability = truncated_normal(torch.tensor([-3.0, 40.0]).double(), torch.tensor([0.5, 0.5]).double())
    >>> drawn
    tensor([-3.2049, 0.0000], dtype=torch.float64)
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
    scheme = next(iter(model.schemes.values()))
    assert isinstance(scheme, Scheme)
    batch = torch.broadcast_shapes(instrument.batch_shape, model.batch_shape, market.batch_shape())
    times = terms.times.expand(*batch, -1)
    n_dates = times.shape[-1]
    per_interval = 1 if scheme.exact else -(-n_steps // n_dates)
    lengths = times.diff(dim=-1, prepend=torch.zeros_like(times[..., :1])) / per_interval

    def wide(column: Tensor) -> Tensor:
        """A column for each path: elementwise operations on short rows beside columns are slow."""
        return column.expand(*batch, n_paths).contiguous()

    state = tuple(wide(part) for part in scheme.start(model))
    book = _Book(terms, n_dates)
    for date in range(n_dates):
        dt = lengths[..., date]
        columns = scheme.coefficients(model, market, torch.zeros_like(dt), dt)
        coefficients = tuple(wide(column.expand(*batch, 1)) for column in columns)
        mean = variance = torch.zeros((), dtype=times.dtype, device=times.device)
        for _ in range(per_interval):
            normals = draws.normals().unsqueeze(0) if scheme.n_normals else times.new_empty(0)
            step = scheme.advance(coefficients, mean, state, normals)
            state, mean, variance = step.state, mean + step.drift, variance + step.residual_variance
        forward = market.forward(times[..., date]).log().expand(batch).unsqueeze(-1)
        spread = (variance + torch.finfo(times.dtype).tiny).sqrt()
        book.fix(forward, mean.expand(*batch, n_paths), spread.expand(*batch, n_paths), draws.uniforms())
    return book.payoff() * market.discount(times[..., -1]).unsqueeze(-1)


class _Book:
    """Fixings so far, of paths that stay on the live side of the barrier and (for "in") of free ones."""

    def __init__(self, terms: _Terms, n_dates: int) -> None:
        self.terms, self.n_dates = terms, n_dates
        self.live: Tensor | float = 0.0  # log of the asset over its forward, of a path that survives
        self.free: Tensor | float = 0.0  # the same without a barrier
        self.weight: Tensor | float = 1.0
        self.total: Tensor | float = 0.0
        self.free_total: Tensor | float = 0.0

    def fix(self, log_forward: Tensor, mean: Tensor, spread: Tensor, uniform: Tensor) -> None:
        """One more date: given the variance the log-ratio grows by a normal of this mean and deviation."""
        terms = self.terms
        if terms.barrier is None or not terms.out:
            self.free = self.free + mean + spread * _special.ndtri(uniform)
            self.free_total = self.free_total + self._fixing(log_forward + self.free)
        if terms.barrier is None:
            return
        sign = 1.0 if terms.up else -1.0
        place = self.live + mean
        barrier = terms.barrier.log().unsqueeze(-1) if terms.barrier.ndim else terms.barrier.log()
        bound = sign * (barrier - log_forward - place) / spread
        # below the barrier the normal grows with u; above it the mirrored normal falls with 1 - u
        drawn, probability = truncated_normal(bound, uniform if terms.up else 1.0 - uniform)
        self.live = place + spread * (sign * drawn)
        self.weight = self.weight * probability
        self.total = self.total + self._fixing(log_forward + self.live)

    def _fixing(self, log_spot: Tensor) -> Tensor:
        return log_spot.exp() if self.terms.arithmetic else log_spot

    def payoff(self) -> Tensor:
        """Undiscounted payoff, of shape `(N, n_paths)`."""
        terms = self.terms
        free = None if terms.barrier is not None and terms.out else self._paid(self.free_total)
        if terms.barrier is None:
            assert free is not None
            return free
        out = self.weight * self._paid(self.total)
        return out if free is None else free - out

    def _paid(self, total: Tensor | float) -> Tensor:
        assert isinstance(total, Tensor)
        average = total / self.n_dates
        strike = self.terms.strike
        gain = (average if self.terms.arithmetic else average.exp()) - (strike.unsqueeze(-1) if strike.ndim else strike)
        return (gain if self.terms.call else -gain).clamp(min=0.0)


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
