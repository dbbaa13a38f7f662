"""Performance and risk of a series of returns.

Conventions, the same for every function here:

- Returns are simple, per period and decimal; equity starts at 1 and compounds. P&L positive is gain.
- Sharpe and Sortino ratio, volatility and turnover are annualised by `periods_per_year`, by its square root where the
  quantity is a standard deviation. Nothing is subtracted for a risk-free rate: pass excess returns.
- Risk measures return a positive loss.
- A ratio whose denominator is zero (constant returns, no loss, no drawdown) is undefined and comes back as nan; an
  infinite ratio would win every search. So does a standard deviation of `ddof` or fewer returns.
- An empty series, nan or infinity among the returns raise `DataError`.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from qfml.errors import DataError
from qfml.metrics.checks import matrix, probability, series

__all__ = [
    "annualised_return",
    "annualised_vol",
    "calmar_ratio",
    "drawdown",
    "expected_shortfall",
    "hit_rate",
    "max_drawdown",
    "omega_ratio",
    "periods_per_year",
    "sharpe_ratio",
    "sortino_ratio",
    "turnover",
    "value_at_risk",
]

_DAY = np.timedelta64(1, "D")
_WEEK = 7 * _DAY
_DAYS_PER_YEAR = 365.25


def periods_per_year(time: ArrayLike) -> float:
    """Derive from the timestamps how many periods there are in a year.

    Rule: distinct timestamps per year of 365.25 days that passed. Where the median step is a week or longer, that is
    `(n - 1) / years` between the first and the last timestamp. Where it is shorter, markets may rest at week-ends, so
    the timestamps are counted over the whole weeks that passed since the first: a month of business days then gives
    260.9 and not a number that depends on the weekday it ends on, and twenty years of US trading days give about 251.6.

    Args:
        time: datetimes in any order, shape (n,); a timestamp that repeats (a panel) counts once.

    Returns:
        Periods per year, not rounded.

    Raises:
        DataError: `time` is not made of datetimes, has a missing one, or spans no step (no whole week if the step is
            shorter than a week); then pass the number of periods per year yourself.

    Example:
        >>> import numpy as np
        >>> days = np.arange("2001-01-01", "2001-12-31", dtype="datetime64[D]")
        >>> round(periods_per_year(days[np.is_busday(days)]), 1)
        260.9
        >>> round(periods_per_year(np.arange("2001-01", "2003-01", dtype="datetime64[M]")), 1)
        12.0
    """
    times = np.unique(_datetimes(time))
    if len(times) < 2:
        raise DataError(f"`time` has {len(times)} distinct timestamps, not two; state `periods_per_year` instead")
    elapsed = times[-1] - times[0]
    if np.median(np.diff(times).astype(np.int64)) >= _WEEK / np.timedelta64(1, "ns"):
        return float((len(times) - 1) / (elapsed / _DAY) * _DAYS_PER_YEAR)
    n_weeks = int(elapsed // _WEEK)
    if n_weeks == 0:
        raise DataError(
            f"`time` spans {elapsed / _DAY:.2f} days with a step shorter than a week: a rate per year needs a whole "
            "week at least; state `periods_per_year` instead"
        )
    n_periods = np.searchsorted(times, times[0] + n_weeks * _WEEK, side="left")
    return float(n_periods / (7 * n_weeks) * _DAYS_PER_YEAR)


def annualised_return(returns: ArrayLike, periods_per_year: float = 252) -> float:
    """Compound growth per year, `prod(1 + r) ** (periods_per_year / n) - 1`.

    Args:
        returns: simple returns per period, shape (n,).
        periods_per_year: number of periods in a year.

    Returns:
        Return per year, decimal; -1 after a total loss.

    Raises:
        DataError: see the conventions of the module; also a return below -1, which no capital survives.

    Example:
        >>> round(annualised_return([0.01] * 12, periods_per_year=12), 6)
        0.126825
    """
    growth = _growth(returns)
    years = len(growth) / _positive(periods_per_year)
    if growth.min() == 0.0:
        return -1.0
    return math.expm1(float(np.log(growth).sum()) / years)


def annualised_vol(returns: ArrayLike, periods_per_year: float = 252, ddof: int = 1) -> float:
    """Standard deviation of the returns times `sqrt(periods_per_year)`.

    Args:
        returns: simple returns per period, shape (n,).
        periods_per_year: number of periods in a year.
        ddof: the standard deviation divides by `n - ddof`.

    Returns:
        Volatility per year, decimal; nan for `ddof` or fewer returns.

    Raises:
        DataError: see the conventions of the module.

    Example:
        >>> round(annualised_vol([0.01, -0.01, 0.01, -0.01], periods_per_year=252), 4)
        0.1833
    """
    return _std(series(returns, "returns"), ddof) * math.sqrt(_positive(periods_per_year))


def sharpe_ratio(returns: ArrayLike, periods_per_year: float = 252, ddof: int = 1) -> float:
    """Sharpe ratio, `mean / std * sqrt(periods_per_year)`.

    Args:
        returns: excess returns per period, shape (n,).
        periods_per_year: number of periods in a year; 1 gives the Sharpe ratio per period, which is what the
            significance tests take.
        ddof: the standard deviation divides by `n - ddof`.

    Returns:
        Annualised Sharpe ratio; nan for constant returns and for `ddof` or fewer returns.

    Raises:
        DataError: see the conventions of the module.

    References:
        Sharpe (1994), The Sharpe ratio, eq. 3-6.

    Example:
        >>> round(sharpe_ratio([0.01, 0.02, -0.01, 0.0], periods_per_year=1), 4)
        0.3873
    """
    returns = series(returns, "returns")
    return _ratio(float(returns.mean()), _std(returns, ddof)) * math.sqrt(_positive(periods_per_year))


def sortino_ratio(returns: ArrayLike, periods_per_year: float = 252, target: float = 0.0) -> float:
    """Sortino ratio, `(mean - target) / sqrt(mean(min(r - target, 0) ** 2)) * sqrt(periods_per_year)`.

    Args:
        returns: returns per period, shape (n,).
        periods_per_year: number of periods in a year.
        target: return per period below which a return is a loss. The squared shortfall is averaged over all periods.

    Returns:
        Annualised Sortino ratio; nan if no return is below the target.

    Raises:
        DataError: see the conventions of the module.

    References:
        Sortino and Price (1994), Performance measurement in a downside risk framework.

    Example:
        >>> round(sortino_ratio([0.01, 0.02, -0.01, 0.0], periods_per_year=1), 4)
        1.0
    """
    excess = series(returns, "returns") - target
    downside = math.sqrt(float(np.mean(np.minimum(excess, 0.0) ** 2)))
    return _ratio(float(excess.mean()), downside) * math.sqrt(_positive(periods_per_year))


def calmar_ratio(returns: ArrayLike, periods_per_year: float = 252) -> float:
    """Compound return per year over the maximum drawdown of the same series.

    Args:
        returns: simple returns per period, shape (n,).
        periods_per_year: number of periods in a year.

    Returns:
        Calmar ratio; nan if there is no drawdown.

    Raises:
        DataError: see `annualised_return`.

    References:
        Young (1991), Calmar ratio: a smoother tool. The whole series is used, not only its last 36 months.

    Example:
        >>> round(calmar_ratio([0.10, -0.05, 0.10], periods_per_year=3), 3)
        2.99
    """
    return _ratio(annualised_return(returns, periods_per_year), max_drawdown(returns))


def omega_ratio(returns: ArrayLike, threshold: float = 0.0) -> float:
    """Omega ratio, `sum(max(r - threshold, 0)) / sum(max(threshold - r, 0))`.

    Args:
        returns: returns per period, shape (n,).
        threshold: return per period that parts gains from losses.

    Returns:
        Omega ratio, 1 where gains and losses balance; nan if no return is below the threshold.

    Raises:
        DataError: see the conventions of the module.

    References:
        Keating and Shadwick (2002), A universal performance measure.

    Example:
        >>> round(omega_ratio([0.02, 0.01, -0.01]), 6)
        3.0
    """
    excess = series(returns, "returns") - threshold
    return _ratio(float(np.maximum(excess, 0.0).sum()), float(np.maximum(-excess, 0.0).sum()))


def drawdown(returns: ArrayLike) -> NDArray[np.float64]:
    """Loss from the highest equity so far, `1 - E_t / max(1, E_1, ..., E_t)`, as a positive share.

    Args:
        returns: simple returns per period, shape (n,).

    Returns:
        Drawdown after each period, shape (n,), in [0, 1]; the starting capital counts as a peak.

    Raises:
        DataError: see `annualised_return`.

    Example:
        >>> drawdown([-0.5, 1.0, 0.25, -0.2]).round(6).tolist()
        [0.5, 0.0, 0.0, 0.2]
    """
    equity = np.cumprod(_growth(returns))
    return 1.0 - equity / np.maximum(np.maximum.accumulate(equity), 1.0)


def max_drawdown(returns: ArrayLike) -> float:
    """Largest loss from a peak of the compounded equity, as a positive share of that peak.

    Args:
        returns: simple returns per period, shape (n,).

    Returns:
        Maximum drawdown in [0, 1].

    Raises:
        DataError: see `annualised_return`.

    Example:
        >>> round(max_drawdown([0.1, -0.2, 0.05]), 6)
        0.2
    """
    return float(drawdown(returns).max())


def value_at_risk(
    returns: ArrayLike, tail: float = 0.05, method: Literal["historical", "gaussian"] = "historical"
) -> float:
    """Loss that is exceeded with probability `tail` at most.

    Historical: minus the lower empirical quantile, `-x_(k)` with `k = ceil(n * tail)` and `x_(1)` the worst return (no
    interpolation). Gaussian: `-(mean + std * z(tail))` with the standard deviation at ddof 1.

    Args:
        returns: returns or P&L, shape (n,).
        tail: probability of the tail, not the confidence level.
        method: "historical" (the sample) or "gaussian" (a normal distribution fitted by its moments).

    Returns:
        Value at risk in the unit of `returns`; positive is a loss.

    Raises:
        DataError: see the conventions of the module; also `tail` outside (0, 1).

    References:
        Acerbi and Tasche (2002), On the coherence of expected shortfall, definition 2.1 (at their lower quantile).

    Example:
        >>> value_at_risk([-3.0, -2.0, -1.0, 0.0], tail=0.5)
        2.0
    """
    returns, tail = series(returns, "returns"), probability(tail, "tail")
    if method == "gaussian":
        return -float(returns.mean() + _std(returns, ddof=1) * norm.ppf(tail))
    if method != "historical":
        raise DataError(f'`method` must be "historical" or "gaussian", got {method!r}')
    # n * tail is meant to be exact: 100 * 0.07 is 7.000000000000001 in floating point and must not become 8
    k = math.ceil(round(len(returns) * tail, 9))
    return -float(np.partition(returns, k - 1)[k - 1])


def expected_shortfall(
    returns: ArrayLike, tail: float = 0.05, method: Literal["historical", "gaussian"] = "historical"
) -> float:
    """Average loss in the worst `tail` share of outcomes (CVaR).

    Historical: the mean of the worst `n * tail` returns, the last of them with its fractional weight, which equals
    `min over z of z + mean(max(-x - z, 0)) / tail`. Gaussian: `-mean + std * pdf(z(tail)) / tail`, std at ddof 1.

    Args:
        returns: returns or P&L, shape (n,).
        tail: probability of the tail, not the confidence level; 1 is minus the mean.
        method: "historical" (the sample) or "gaussian" (a normal distribution fitted by its moments).

    Returns:
        Expected shortfall in the unit of `returns`; positive is a loss.

    Raises:
        DataError: see the conventions of the module; also `tail` outside (0, 1].

    References:
        Acerbi and Tasche (2002), On the coherence of expected shortfall, definition 2.6 and proposition 4.1.
        Rockafellar and Uryasev (2000), Optimization of conditional value-at-risk, theorem 1.

    Example:
        >>> expected_shortfall([0.0, -1.0, -2.0, -3.0], tail=0.5)
        2.5
    """
    returns = series(returns, "returns")
    if tail == 1.0:
        return -float(returns.mean())
    tail = probability(tail, "tail")
    if method == "gaussian":
        return -float(returns.mean()) + _std(returns, ddof=1) * float(norm.pdf(norm.ppf(tail))) / tail
    if method != "historical":
        raise DataError(f'`method` must be "historical" or "gaussian", got {method!r}')
    mass = len(returns) * tail
    weight = np.clip(mass - np.arange(len(returns)), 0.0, 1.0)
    return -float(np.sort(returns) @ weight) / mass


def turnover(positions: ArrayLike, periods_per_year: float = 252) -> float:
    """Traded share of capital per year, the mean over periods of `sum_g |p_t - p_(t-1)|` times `periods_per_year`.

    Args:
        positions: positions held, in fractions of capital, shape (n,) or (n, n_assets). The first is bought from flat.
            Both sides count: going from +1 to -1 trades 2. What prices do to a position between trades is not counted.
        periods_per_year: number of periods in a year; 1 gives turnover per period.

    Returns:
        Turnover per year in multiples of the capital.

    Raises:
        DataError: a position is missing (write 0 where none is held).

    Example:
        >>> turnover([1.0, 1.0, -1.0, -1.0], periods_per_year=1)
        0.75
    """
    held = matrix(positions, "positions")
    traded = np.abs(np.diff(held, axis=0, prepend=np.zeros((1, held.shape[1]))))
    return float(traded.sum()) / len(held) * _positive(periods_per_year)


def hit_rate(returns: ArrayLike) -> float:
    """Share of gains among the periods that gained or lost, `#(r > 0) / #(r != 0)`.

    Args:
        returns: returns per period, shape (n,); a period of exactly zero (no position) is neither hit nor miss.

    Returns:
        Hit rate in [0, 1]; nan if every return is zero.

    Raises:
        DataError: see the conventions of the module.

    Example:
        >>> hit_rate([0.01, 0.0, -0.02, 0.01, 0.03])
        0.75
    """
    returns = series(returns, "returns")
    return _ratio(float(np.count_nonzero(returns > 0)), float(np.count_nonzero(returns)))


def _datetimes(time: ArrayLike) -> NDArray:
    times = np.asarray(time)
    if times.dtype.kind in "iufbc":
        raise DataError("`time` is numeric and carries no calendar; state `periods_per_year` instead")
    if times.dtype.kind != "M":  # Python datetimes, pandas timestamps (time zones go to UTC), ISO strings
        try:
            times = pd.to_datetime(pd.Series(times.ravel()), utc=True, format="ISO8601").dt.tz_localize(None).to_numpy()
        except (TypeError, ValueError) as error:
            raise DataError(f"`time` must be made of datetimes: {error}") from None
    n_missing = int(np.isnat(times).sum())
    if n_missing:
        raise DataError(f"`time` has {n_missing} missing timestamps (NaT); drop those rows first")
    return times.astype("datetime64[ns]").ravel()


def _growth(returns: ArrayLike) -> NDArray[np.float64]:
    growth = 1.0 + series(returns, "returns")
    if growth.min() < 0.0:
        first = int(np.flatnonzero(growth < 0.0)[0])
        raise DataError(
            f"`returns` must be at least -1 to compound, got {growth[first] - 1.0} at position {first}: "
            "more than the capital was lost; lower the leverage or check the unit (decimal, not per cent)"
        )
    return growth


def _std(returns: NDArray[np.float64], ddof: int) -> float:
    if len(returns) <= ddof:
        return math.nan
    # np.ptp, because the rounding error of the mean gives a constant series a standard deviation of 1e-18, not 0
    return float(returns.std(ddof=ddof)) if np.ptp(returns) > 0.0 else 0.0


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator != 0.0 else math.nan


def _positive(periods_per_year: float) -> float:
    if not (math.isfinite(periods_per_year) and periods_per_year > 0):
        raise DataError(f"`periods_per_year` must be a positive number, got {periods_per_year}")
    return float(periods_per_year)
