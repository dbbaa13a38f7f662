"""Intervals and tests by the stationary bootstrap, which keeps the dependence of returns over time.

Conventions, the same for every function here:

- The seed is an argument; the same seed gives the same numbers.
- `block_length` is the mean length of the blocks (they are geometric). Without it, the rule of Politis and White picks
  it from the data, the longest of those of the columns, and at least 1.
- Returns are gains. (The SPA test of `arch`, which does the resampling, takes losses; the sign is turned here.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qfml.errors import DataError
from qfml.metrics.checks import matrix, probability

__all__ = [
    "Interval",
    "SuperiorAbility",
    "block_length_rule",
    "bootstrap_interval",
    "bootstrap_intervals",
    "reality_check",
    "superior_predictive_ability",
]

_MIN_OBS = 20
Statistic = Callable[[Any], float]


class Interval(NamedTuple):
    """A statistic of the sample with its bootstrap interval.

    `n_undefined` resamples gave nan and are left out of the interval; low and high are nan if more than half did.
    """

    estimate: float
    low: float
    high: float
    n_undefined: int


class SuperiorAbility(NamedTuple):
    """P-values of Hansen's test: the consistent one, and its liberal and conservative bounds."""

    p_value: float
    lower: float
    upper: float


def block_length_rule(returns: ArrayLike) -> float:
    """Mean block length for the stationary bootstrap by the rule of Politis and White.

    Args:
        returns: returns, shape (n,) or (n, k).

    Returns:
        The largest of the columns' lengths, at least 1; constant columns have no say.

    Raises:
        DataError: fewer than 20 rows, or rows that are not finite.

    References:
        Politis and White (2004), Automatic block-length selection for the dependent bootstrap, with the correction of
        Patton, Politis and White (2009).

    Example:
        >>> import numpy as np
        >>> noise = np.random.default_rng(0).normal(size=1000)
        >>> block_length_rule(noise) < block_length_rule(np.cumsum(noise))
        True
    """
    columns = _enough(matrix(returns, "returns"))
    varying = columns[:, np.ptp(columns, axis=0) > 0.0]
    if not varying.shape[1]:
        return 1.0
    from arch.bootstrap import optimal_block_length  # it loads matplotlib and statsmodels: only when it is needed

    return max(1.0, float(optimal_block_length(varying)["stationary"].max()))


def bootstrap_interval(
    returns: ArrayLike,
    statistic: Statistic,
    *,
    seed: int,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    block_length: float | None = None,
) -> Interval:
    """Percentile interval of one statistic; see `bootstrap_intervals`.

    Args:
        returns: returns per period, shape (n,) or (n, k); rows are resampled whole.
        statistic: takes an array shaped like `returns` and gives a number.
        seed: of the resampling.
        confidence: probability that the interval is meant to cover.
        n_resamples: number of resamples.
        block_length: mean length of the blocks; by rule if None.

    Returns:
        The statistic of the sample and its interval.

    Raises:
        DataError: see `bootstrap_intervals`.

    Example:
        >>> import numpy as np
        >>> from qfml.metrics import sharpe_ratio
        >>> returns = np.random.default_rng(0).normal(0.001, 0.01, 1000)
        >>> interval = bootstrap_interval(returns, sharpe_ratio, seed=1)
        >>> interval.low < interval.estimate < interval.high
        True
    """
    return bootstrap_intervals(
        returns,
        {"statistic": statistic},
        seed=seed,
        confidence=confidence,
        n_resamples=n_resamples,
        block_length=block_length,
    )["statistic"]


def bootstrap_intervals(
    returns: ArrayLike,
    statistics: Mapping[str, Statistic],
    *,
    seed: int,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    block_length: float | None = None,
) -> dict[str, Interval]:
    """Percentile intervals of several statistics, all from the same resamples of the stationary bootstrap.

    The drawdown of a resample is that of another order of the same history; its interval tells what drawdown such
    returns may bring, and it need not hold the sample's own.

    Args:
        returns: returns per period, shape (n,) or (n, k); rows are resampled whole, so that columns stay together (a
            strategy beside its benchmark).
        statistics: each takes an array shaped like `returns` and gives a number.
        seed: of the resampling.
        confidence: probability that an interval is meant to cover.
        n_resamples: number of resamples.
        block_length: mean length of the blocks; by rule if None.

    Returns:
        Per statistic its value on the sample and its interval.

    Raises:
        DataError: fewer than 20 rows, rows that are not finite, a confidence outside (0, 1), a block length below 1 or
            above n, or no resamples.

    References:
        Politis and Romano (1994), The stationary bootstrap.

    Example:
        >>> import numpy as np
        >>> from qfml.metrics import max_drawdown, sharpe_ratio
        >>> returns = np.random.default_rng(0).normal(0.001, 0.01, 500)
        >>> intervals = bootstrap_intervals(returns, {"sharpe": sharpe_ratio, "drawdown": max_drawdown}, seed=1)
        >>> sorted(intervals)
        ['drawdown', 'sharpe']
    """
    columns = _enough(matrix(returns, "returns"))
    sample = columns[:, 0] if np.asarray(returns).ndim == 1 else columns
    half = (1.0 - probability(confidence, "confidence")) / 2.0
    block = _block_length(block_length, columns)
    from arch.bootstrap import StationaryBootstrap

    resampler = StationaryBootstrap(block, sample, seed=_seed(seed))  # pyright: ignore[reportArgumentType]
    draws = np.array(
        [
            [statistic(data[0]) for statistic in statistics.values()]
            for data, _ in resampler.bootstrap(_resamples(n_resamples))
        ]
    )
    return {
        name: _interval(float(statistic(sample)), draws[:, i], half)
        for i, (name, statistic) in enumerate(statistics.items())
    }


def superior_predictive_ability(
    returns: ArrayLike,
    benchmark: ArrayLike,
    *,
    seed: int,
    n_resamples: int = 1000,
    block_length: float | None = None,
) -> SuperiorAbility:
    """Test that no strategy has a higher mean return than the benchmark, allowing for the choice of the best (SPA).

    The statistic is `max over k of mean(d_k) / omega_k` with `d_k = returns_k - benchmark` and `omega_k` its long-run
    standard deviation under the bootstrap. `arch` resamples; it does not divide by `omega_k` itself (its `studentize`
    has no effect on the statistic), so the differences are divided before they go in.

    Args:
        returns: returns per period of the strategies, shape (n,) or (n, k).
        benchmark: returns per period of the benchmark, shape (n,).
        seed: of the resampling.
        n_resamples: number of resamples.
        block_length: mean length of the blocks; by rule if None.

    Returns:
        Consistent p-value and its bounds; small if the best strategy beats the benchmark by more than luck.

    Raises:
        DataError: see `bootstrap_intervals`; also lengths that differ, or a strategy that never departs from the
            benchmark.

    References:
        Hansen (2005), A test for superior predictive ability, eq. 3 and section 2.2.

    Example:
        >>> import numpy as np
        >>> returns = np.random.default_rng(0).normal(0, 0.01, (500, 3))
        >>> superior_predictive_ability(returns, np.zeros(500), seed=1).p_value > 0.05
        True
        >>> superior_predictive_ability(returns + [0, 0, 0.003], np.zeros(500), seed=1).p_value < 0.01
        True
    """
    gains = _differences(returns, benchmark)
    block = _block_length(block_length, gains)
    pvalues = _pvalues(gains / _long_run_std(gains, block), block, seed, n_resamples)
    return SuperiorAbility(pvalues["consistent"], pvalues["lower"], pvalues["upper"])


def reality_check(
    returns: ArrayLike,
    benchmark: ArrayLike,
    *,
    seed: int,
    n_resamples: int = 1000,
    block_length: float | None = None,
) -> float:
    """White's reality check: as `superior_predictive_ability`, but of `max over k of mean(d_k)`, not studentised.

    Every strategy is taken to be as good as the benchmark under the null, so bad and volatile ones in the set cost
    power; prefer the SPA test.

    Args:
        returns: returns per period of the strategies, shape (n,) or (n, k).
        benchmark: returns per period of the benchmark, shape (n,).
        seed: of the resampling.
        n_resamples: number of resamples.
        block_length: mean length of the blocks; by rule if None.

    Returns:
        P-value.

    Raises:
        DataError: see `superior_predictive_ability`.

    References:
        White (2000), A reality check for data snooping, proposition 2.2 and section 4.

    Example:
        >>> import numpy as np
        >>> returns = np.random.default_rng(0).normal(0, 0.01, (500, 3))
        >>> reality_check(returns + [0, 0, 0.003], np.zeros(500), seed=1) < 0.01
        True
    """
    gains = _differences(returns, benchmark)
    return _pvalues(gains, _block_length(block_length, gains), seed, n_resamples)["upper"]


def _pvalues(gains: NDArray[np.float64], block: float, seed: int, n_resamples: int) -> dict[str, float]:
    # arch takes losses and tests benchmark - model: a gain over the benchmark is a negative loss against zero
    from arch.bootstrap import SPA

    test = SPA(
        np.zeros(len(gains)),
        -gains,
        block_size=math.ceil(block),
        reps=_resamples(n_resamples),
        seed=_seed(seed),
    )
    test.compute()
    return {str(name): float(value) for name, value in test.pvalues.items()}


def _differences(returns: ArrayLike, benchmark: ArrayLike) -> NDArray[np.float64]:
    strategies, base = _enough(matrix(returns, "returns")), matrix(benchmark, "benchmark")
    if base.shape != (len(strategies), 1):
        raise DataError(
            f"`benchmark` must have shape ({len(strategies)},) like a column of `returns`, got {base.shape}"
        )
    gains = strategies - base
    # rounding noise between two computations of one strategy must not be studentised into a finding
    same = np.flatnonzero(np.ptp(gains, axis=0) <= 1e-12 * np.abs(strategies).max(axis=0))
    if same.size:
        raise DataError(
            f"strategy {same[0]} (column of `returns`) differs from `benchmark` by a constant, so that there is "
            "nothing to test; leave it out"
        )
    return gains


def _long_run_std(gains: NDArray[np.float64], block: float) -> NDArray[np.float64]:
    """Standard deviation of `sqrt(n) * mean` under the stationary bootstrap.

    Politis and Romano (1994), lemma 1; Hansen (2005), section 2.2: autocovariances weighted by
    `(1 - i/n) (1 - q)**i + i/n (1 - q)**(n - i)` with `q = 1 / block`.
    """
    n = len(gains)
    q = 1.0 / math.ceil(block)
    spectrum = np.fft.rfft(gains - gains.mean(axis=0), n=2 * n, axis=0)  # padded to 2n: no wrapping around
    autocovariance = np.fft.irfft(np.abs(spectrum) ** 2, n=2 * n, axis=0)[:n] / n
    lag = np.arange(n)
    weight = (1 - lag / n) * (1 - q) ** lag + lag / n * (1 - q) ** (n - lag)
    weight[1:] *= 2.0
    weight[0] = 1.0
    return np.sqrt(weight @ autocovariance)


def _interval(estimate: float, draws: NDArray[np.float64], half: float) -> Interval:
    defined = draws[~np.isnan(draws)]
    n_undefined = len(draws) - len(defined)
    if n_undefined > len(draws) / 2:
        return Interval(estimate, math.nan, math.nan, n_undefined)
    low, high = np.quantile(defined, [half, 1.0 - half])
    return Interval(estimate, float(low), float(high), n_undefined)


def _block_length(block_length: float | None, columns: NDArray[np.float64]) -> float:
    if block_length is None:
        return block_length_rule(columns)
    if not 1.0 <= block_length <= len(columns):
        raise DataError(f"`block_length` must lie between 1 and the {len(columns)} rows, got {block_length}")
    return float(block_length)


def _enough(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    if len(columns) < _MIN_OBS:
        raise DataError(f"`returns` has {len(columns)} rows; a bootstrap of fewer than {_MIN_OBS} means nothing")
    return columns


def _resamples(n_resamples: int) -> int:
    if n_resamples < 1:
        raise DataError(f"`n_resamples` must be at least 1, got {n_resamples}")
    return int(n_resamples)


def _seed(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)
