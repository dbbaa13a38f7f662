"""Probability of backtest overfitting by combinatorially symmetric cross-validation (CSCV)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qfml.errors import DataError
from qfml.metrics.checks import matrix

__all__ = ["CSCV", "cscv", "probability_of_backtest_overfitting"]

_MAX_BLOCKS = 24  # 2.7 million combinations
_CHUNK_ELEMENTS = 1 << 20  # combinations times configurations held at once: keeps the temporaries at 8 MiB each


@dataclass(frozen=True, eq=False)
class CSCV:
    """What selecting by in-sample Sharpe ratio did in each way of choosing half of the blocks.

    Combinations are in the order of `itertools.combinations(range(n_blocks), n_blocks // 2)`, the chosen blocks being
    in sample. Sharpe ratios are per period, ddof 1.

    Attributes:
        selected: configuration with the highest in-sample Sharpe ratio (the first one if several tie).
        in_sample: its Sharpe ratio in sample.
        out_of_sample: its Sharpe ratio out of sample.
        logits: `log(w / (1 - w))` with `w = rank / (n_configs + 1)`, its relative rank out of sample; 1 is the worst
            rank and ties share their average rank.
    """

    selected: NDArray[np.int64]
    in_sample: NDArray[np.float64]
    out_of_sample: NDArray[np.float64]
    logits: NDArray[np.float64]

    @property
    def pbo(self) -> float:
        """Share of combinations whose choice fell to the median or below out of sample (`logit <= 0`)."""
        return float(np.mean(self.logits <= 0.0))

    @property
    def probability_of_loss(self) -> float:
        """Share of combinations whose choice had a negative Sharpe ratio out of sample."""
        return float(np.mean(self.out_of_sample < 0.0))


def probability_of_backtest_overfitting(returns: ArrayLike, n_blocks: int = 16) -> float:
    """Probability that the configuration that looks best in sample is at or below the median out of sample.

    Args:
        returns: returns of every configuration tried, shape (n_periods, n_configs); see `cscv`.
        n_blocks: number of blocks of time, even.

    Returns:
        PBO in [0, 1]; about one half where no configuration has skill.

    Raises:
        DataError: see `cscv`.

    References:
        Bailey, Borwein, Lopez de Prado and Zhu (2017), The probability of backtest overfitting, definition 2.1.

    Example:
        >>> import numpy as np
        >>> probability_of_backtest_overfitting(np.random.default_rng(0).normal(0, 1, (240, 10)), n_blocks=6)
        0.2
    """
    return cscv(returns, n_blocks).pbo


def cscv(returns: ArrayLike, n_blocks: int = 16) -> CSCV:
    """Select by Sharpe ratio on every half of the blocks of time and rank the choice on the other half.

    Sums and sums of squares of each block, times the 0/1 matrix of combinations, give every Sharpe ratio at once.

    Args:
        returns: returns of every configuration tried, shape (n_periods, n_configs).
        n_blocks: number of contiguous blocks of time, even. If it does not divide `n_periods`, the first
            `n_periods % n_blocks` blocks hold one period more, as in `numpy.array_split`: no period is dropped, and
            each Sharpe ratio uses the number of periods of its own half.

    Returns:
        The choice of each of the `C(n_blocks, n_blocks / 2)` combinations.

    Raises:
        DataError: `returns` is not finite, has fewer than two configurations or fewer periods than blocks; an odd
            number of blocks; a configuration that is constant and not zero throughout some half (its Sharpe ratio is
            infinite). All zeros in a half count as a Sharpe ratio of 0: no position, no gain and no risk.

    References:
        Bailey, Borwein, Lopez de Prado and Zhu (2017), The probability of backtest overfitting, section 3.

    Example:
        >>> import numpy as np
        >>> returns = np.random.default_rng(0).normal(0, 1, (240, 10))
        >>> returns[:, 3] += 1.0
        >>> result = cscv(returns, n_blocks=6)
        >>> set(result.selected.tolist()), len(result.logits), result.pbo
        ({3}, 20, 0.0)
    """
    returns = matrix(returns, "returns")
    _check_shape(returns.shape, n_blocks)
    _refuse_constant_halves(returns, n_blocks)
    # equal configurations get equal numbers, so that they tie exactly whatever the order of summation
    distinct, copies = np.unique(returns, axis=1, return_inverse=True)
    sharpes = _HalfSharpes(distinct, n_blocks)
    n_combinations = math.comb(n_blocks, n_blocks // 2)
    result = CSCV(
        np.empty(n_combinations, np.int64), np.empty(n_combinations), np.empty(n_combinations), np.empty(n_combinations)
    )
    # the complement of combination i is combination n - 1 - i: one product serves both
    start = 0
    for halves in _halves_with_first_block(n_blocks, rows=max(1, _CHUNK_ELEMENTS // returns.shape[1])):
        chosen = sharpes.of(halves)[:, copies.ravel()]
        others = sharpes.of(1.0 - halves)[:, copies.ravel()]
        ids = np.arange(start, start + len(halves))
        _select(result, ids, chosen, others)
        _select(result, n_combinations - 1 - ids, others, chosen)
        start += len(halves)
    return result


def _check_shape(shape: tuple[int, ...], n_blocks: int) -> None:
    n_periods, n_configs = shape
    if n_configs < 2:
        raise DataError(f"`returns` must have at least 2 configurations (columns) to choose from, got {n_configs}")
    if n_blocks < 2 or n_blocks % 2 or n_blocks > _MAX_BLOCKS:
        raise DataError(f"`n_blocks` must be even and between 2 and {_MAX_BLOCKS}, got {n_blocks}")
    if n_periods < max(n_blocks, 4):
        raise DataError(f"`returns` has {n_periods} periods (rows), {n_blocks} blocks need {max(n_blocks, 4)}")


def _halves_with_first_block(n_blocks: int, rows: int) -> Iterator[NDArray[np.float64]]:
    """The combinations that hold block 0, which are the first half of all, as 0/1 matrices of at most `rows` rows."""
    combinations = itertools.combinations(range(1, n_blocks), n_blocks // 2 - 1)
    while batch := list(itertools.islice(combinations, rows)):
        halves = np.zeros((len(batch), n_blocks))
        halves[:, 0] = 1.0
        np.put_along_axis(halves, np.array(batch, dtype=np.int64).reshape(len(batch), -1), 1.0, axis=1)
        yield halves


class _HalfSharpes:
    """Sharpe ratios of every configuration on halves of the blocks, from block sums."""

    def __init__(self, returns: NDArray[np.float64], n_blocks: int) -> None:
        sizes, starts = _blocks(len(returns), n_blocks)
        self.mean = returns.mean(axis=0)
        self.size = sizes.astype(np.float64)
        block_mean = np.add.reduceat(returns, starts) / self.size[:, None]
        self.within = np.add.reduceat((returns - np.repeat(block_mean, sizes, axis=0)) ** 2, starts)
        self.sum = (block_mean - self.mean) * self.size[:, None]  # centred, or the difference in `of` would cancel
        self.square = (block_mean - self.mean) ** 2 * self.size[:, None]
        self.flat = np.logical_and.reduceat(returns == 0.0, starts).astype(np.float64)
        self.any_flat_half = bool((self.flat.sum(axis=0) >= n_blocks // 2).any())

    def of(self, halves: NDArray[np.float64]) -> NDArray[np.float64]:
        size = (halves @ self.size)[:, None]
        mean = halves @ self.sum / size
        between = np.maximum(halves @ self.square - size * mean * mean, 0.0)  # negative by rounding only
        variance = (halves @ self.within + between) / (size - 1.0)
        if not self.any_flat_half:
            return (mean + self.mean) / np.sqrt(variance)
        flat = halves @ self.flat == halves.sum(axis=1, keepdims=True)
        return np.where(flat, 0.0, (mean + self.mean) / np.sqrt(np.where(flat, 1.0, variance)))


def _blocks(n_periods: int, n_blocks: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sizes and first periods of the blocks."""
    sizes = np.full(n_blocks, n_periods // n_blocks, dtype=np.int64)
    sizes[: n_periods % n_blocks] += 1
    return sizes, np.cumsum(sizes) - sizes


def _refuse_constant_halves(returns: NDArray[np.float64], n_blocks: int) -> None:
    """A half is constant if all of its blocks are, at one value; zero is allowed."""
    _, starts = _blocks(len(returns), n_blocks)
    low, high = np.minimum.reduceat(returns, starts), np.maximum.reduceat(returns, starts)
    constant = (low == high) & (low != 0.0)
    for config in np.flatnonzero(constant.sum(axis=0) >= n_blocks // 2):
        values, counts = np.unique(low[constant[:, config], config], return_counts=True)
        if counts.max() >= n_blocks // 2:
            raise DataError(
                f"column {config} of `returns` is constant at {values[counts.argmax()]} in half of the blocks, so that "
                "its Sharpe ratio there is infinite; leave it out (a riskless rate is not a strategy)"
            )


def _select(result: CSCV, ids: NDArray, in_sample: NDArray[np.float64], out_of_sample: NDArray[np.float64]) -> None:
    """Write the choice of the combinations `ids`, rows of the two matrices, into `result`."""
    selected = in_sample.argmax(axis=1)
    score = np.take_along_axis(out_of_sample, selected[:, None], axis=1)
    n_worse = np.count_nonzero(out_of_sample < score, axis=1)
    n_equal = np.count_nonzero(out_of_sample == score, axis=1)
    w = (n_worse + (n_equal + 1) / 2) / (in_sample.shape[1] + 1)
    result.selected[ids] = selected
    result.in_sample[ids] = np.take_along_axis(in_sample, selected[:, None], axis=1)[:, 0]
    result.out_of_sample[ids] = score[:, 0]
    result.logits[ids] = np.log(w / (1.0 - w))
