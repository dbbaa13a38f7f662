"""Is a Sharpe ratio more than luck: standard errors, probabilistic and deflated Sharpe, lengths a record must have.

Conventions, the same for every function here:

- Sharpe ratios are per period, not annualised: `sharpe_ratio(returns, periods_per_year=1)`.
- `skew` and `kurtosis` are those of the returns; kurtosis is raw, 3 for a normal distribution. Excess kurtosis, passed
  by mistake, breaks `kurtosis >= 1 + skew**2`, which every distribution obeys, and raises in most cases.
- A Sharpe ratio, skew or kurtosis of nan (constant returns have none) gives nan.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike
from scipy.stats import norm

from qfml.errors import DataError
from qfml.ledger import Trials
from qfml.metrics.checks import series
from qfml.metrics.performance import sharpe_ratio

__all__ = [
    "SharpeMoments",
    "deflated_sharpe_from_trials",
    "deflated_sharpe_ratio",
    "expected_max_sharpe",
    "min_backtest_length",
    "min_track_record_length",
    "probabilistic_sharpe_ratio",
    "sharpe_moments",
    "sharpe_std_error",
]


class SharpeMoments(NamedTuple):
    """What the significance tests need of a series of returns; `moments._asdict()` passes it on by keyword."""

    sharpe: float
    n_obs: int
    skew: float
    kurtosis: float


def sharpe_moments(returns: ArrayLike) -> SharpeMoments:
    """Sharpe ratio per period (ddof 1), number of returns, skewness and raw kurtosis (both of the population, ddof 0).

    Args:
        returns: excess returns per period, shape (n,).

    Returns:
        The four numbers; all but `n_obs` are nan for constant returns.

    Raises:
        DataError: `returns` is empty, not 1-D or not finite.

    Example:
        >>> moments = sharpe_moments([0.01, 0.02, -0.01, 0.0])
        >>> round(moments.sharpe, 4), moments.n_obs, round(moments.skew, 4), round(moments.kurtosis, 4)
        (0.3873, 4, 0.0, 1.64)
    """
    returns = series(returns, "returns")
    if np.ptp(returns) == 0.0:
        return SharpeMoments(math.nan, len(returns), math.nan, math.nan)
    skew = float(scipy.stats.skew(returns))
    kurtosis = float(scipy.stats.kurtosis(returns, fisher=False))
    return SharpeMoments(sharpe_ratio(returns, periods_per_year=1), len(returns), skew, kurtosis)


def sharpe_std_error(sharpe: float, n_obs: int, skew: float, kurtosis: float) -> float:
    """Standard error of a Sharpe ratio, `sqrt((1 - skew * sharpe + (kurtosis - 1) / 4 * sharpe**2) / (n_obs - 1))`.

    Args:
        sharpe: Sharpe ratio per period.
        n_obs: number of returns.
        skew: skewness of the returns.
        kurtosis: raw kurtosis of the returns, 3 if normal.

    Returns:
        Standard error of the Sharpe ratio per period, returns taken as independent over time.

    Raises:
        DataError: fewer than two returns, or moments no distribution has.

    References:
        Lo (2002), The statistics of Sharpe ratios; Mertens (2002); Bailey and Lopez de Prado (2012), The Sharpe ratio
        efficient frontier, eq. 8.

    Example:
        >>> round(sharpe_std_error(0.7079, 134, skew=-0.2250, kurtosis=2.9570), 4)
        0.1028
    """
    if n_obs < 2:
        raise DataError(f"`n_obs` must be at least 2, got {n_obs}")
    return math.sqrt(_unit_variance(sharpe, skew, kurtosis) / (n_obs - 1))


def probabilistic_sharpe_ratio(
    sharpe: float, n_obs: int, skew: float, kurtosis: float, benchmark: float = 0.0
) -> float:
    """Probability that the true Sharpe ratio is above a benchmark, `N((sharpe - benchmark) / sharpe_std_error)`.

    Args:
        sharpe: Sharpe ratio per period.
        n_obs: number of returns.
        skew: skewness of the returns.
        kurtosis: raw kurtosis of the returns, 3 if normal.
        benchmark: Sharpe ratio per period to be beaten.

    Returns:
        Probability in [0, 1].

    Raises:
        DataError: see `sharpe_std_error`.

    References:
        Bailey and Lopez de Prado (2012), The Sharpe ratio efficient frontier, eq. 11.

    Example:
        >>> round(probabilistic_sharpe_ratio(1.585 / 12**0.5, 24, skew=-2.448, kurtosis=10.164), 4)
        0.9132
    """
    error = sharpe_std_error(sharpe, n_obs, skew, kurtosis)
    if error == 0.0:  # two-point returns at the one Sharpe ratio where the expansion has no variance
        return 0.5 if sharpe == benchmark else float(sharpe > benchmark)
    return float(norm.cdf((sharpe - benchmark) / error))


def expected_max_sharpe(n_trials: int, variance: float = 1.0) -> float:
    """Sharpe ratio expected of the best of `n_trials` strategies without any skill (False Strategy theorem).

    `sqrt(variance) * ((1 - g) * z(1 - 1 / n) + g * z(1 - 1 / (n e)))`, with `g` the Euler-Mascheroni constant and `z`
    the normal quantile; an approximation, 2.4 % high at 10 trials and 1 % high at 100. For one trial it is 0, exactly.

    Args:
        n_trials: number of independent trials. Trials that resemble each other count for less than one each, so the
            plain number errs on the side of caution.
        variance: variance across trials of their Sharpe ratios, in the period wanted for the result.

    Returns:
        Expected maximum, in the unit of `sqrt(variance)`.

    Raises:
        DataError: no trial, or a variance that is negative or nan with more than one trial.

    References:
        Bailey and Lopez de Prado (2014), The deflated Sharpe ratio, eq. 1 and appendix A.1.

    Example:
        >>> round(expected_max_sharpe(100), 6)
        2.530603
    """
    if n_trials < 1:
        raise DataError(f"`n_trials` must be at least 1, got {n_trials}: the strategy that is judged is a trial too")
    if n_trials == 1:
        return 0.0
    if not (math.isfinite(variance) and variance >= 0.0):
        raise DataError(f"the variance across {n_trials} trials must be a number from 0 up, got {variance}")
    quantiles = norm.isf([1.0 / n_trials, 1.0 / (n_trials * math.e)])
    return math.sqrt(variance) * float((1.0 - np.euler_gamma) * quantiles[0] + np.euler_gamma * quantiles[1])


def deflated_sharpe_ratio(
    sharpe: float, n_obs: int, skew: float, kurtosis: float, n_trials: int, trial_variance: float
) -> float:
    """Probability that the true Sharpe ratio is above what the best of `n_trials` without skill would have shown.

    `probabilistic_sharpe_ratio` with the benchmark `expected_max_sharpe(n_trials, trial_variance)`.

    Args:
        sharpe: Sharpe ratio per period of the strategy that was selected.
        n_obs: number of its returns.
        skew: skewness of its returns.
        kurtosis: raw kurtosis of its returns, 3 if normal.
        n_trials: number of strategies tried, this one included.
        trial_variance: variance across the trials of their Sharpe ratios per period (an annual one is divided by the
            periods per year). With one trial it plays no part and may be nan.

    Returns:
        Probability in [0, 1]; with one trial the probabilistic Sharpe ratio against 0.

    Raises:
        DataError: see `sharpe_std_error` and `expected_max_sharpe`.

    References:
        Bailey and Lopez de Prado (2014), The deflated Sharpe ratio, eq. 2.

    Example:
        >>> round(deflated_sharpe_ratio(2.5 / 250**0.5, 1250, -3, 10, n_trials=100, trial_variance=0.5 / 250), 4)
        0.9004
    """
    benchmark = expected_max_sharpe(n_trials, trial_variance)
    return probabilistic_sharpe_ratio(sharpe, n_obs, skew, kurtosis, benchmark)


def deflated_sharpe_from_trials(moments: SharpeMoments, trials: Trials) -> float:
    """Deflated Sharpe ratio with the number and the variance of the trials that a ledger holds.

    Args:
        moments: of the returns of the strategy that was selected; it must be in the ledger already.
        trials: `Ledger(path).trials(data_hash)`. Their variance is per period at the frequency of the latest trial,
            which must be the frequency of `moments`.

    Returns:
        Probability in [0, 1]; the probabilistic Sharpe ratio if there is one trial; nan if there are several and fewer
        than two of them have a Sharpe ratio, since their variance is not known then.

    Raises:
        DataError: the ledger holds no trial on these data; see also `deflated_sharpe_ratio`.

    Example:
        >>> import tempfile
        >>> from qfml.ledger import Ledger
        >>> moments = sharpe_moments([0.01, 0.02, -0.01, 0.0])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ledger = Ledger(f"{folder}/ledger.jsonl")
        ...     _ = ledger.record(
        ...         data_hash="d", trial_hash="t", config_hash="c", periods_per_year=252, **moments._asdict())
        ...     deflated = deflated_sharpe_from_trials(moments, ledger.trials("d"))
        >>> deflated == probabilistic_sharpe_ratio(**moments._asdict())
        True
    """
    if trials.n_trials == 0:
        raise DataError("the ledger holds no trial on these data; record the run before judging it")
    if trials.n_trials > 1 and math.isnan(trials.variance):
        return math.nan
    return deflated_sharpe_ratio(*moments, n_trials=trials.n_trials, trial_variance=trials.variance)


def min_track_record_length(
    sharpe: float, skew: float, kurtosis: float, benchmark: float = 0.0, confidence: float = 0.95
) -> float:
    """Number of returns from which a Sharpe ratio is above a benchmark at a confidence.

    `1 + (1 - skew * sharpe + (kurtosis - 1) / 4 * sharpe**2) * (z(confidence) / (sharpe - benchmark))**2`, where the
    probabilistic Sharpe ratio reaches `confidence`.

    Args:
        sharpe: Sharpe ratio per period.
        skew: skewness of the returns.
        kurtosis: raw kurtosis of the returns, 3 if normal.
        benchmark: Sharpe ratio per period to be beaten.
        confidence: probability wanted, above one half.

    Returns:
        Number of periods, not rounded (divide by the periods per year for years); inf if `sharpe <= benchmark`.

    Raises:
        DataError: a confidence outside (0.5, 1), or moments no distribution has.

    References:
        Bailey and Lopez de Prado (2012), The Sharpe ratio efficient frontier, eq. 13.

    Example:
        >>> round(min_track_record_length(2 / 250**0.5, skew=0, kurtosis=3, benchmark=1 / 250**0.5) / 250, 4)
        2.7312
    """
    if not 0.5 < confidence < 1.0:
        raise DataError(f"`confidence` must lie in (0.5, 1), got {confidence}")
    variance = _unit_variance(sharpe, skew, kurtosis)
    if sharpe <= benchmark:
        return math.inf
    return 1.0 + variance * (float(norm.ppf(confidence)) / (sharpe - benchmark)) ** 2


def min_backtest_length(n_trials: int, sharpe: float = 1.0) -> float:
    """Length a backtest needs so that the best of `n_trials` without skill is expected to show no more than `sharpe`.

    `(expected_max_sharpe(n_trials) / sharpe) ** 2`.

    Args:
        n_trials: number of independent trials.
        sharpe: Sharpe ratio not to be reached by luck; annual for a length in years, per period for one in periods.

    Returns:
        Length in years (or periods); 0 for one trial.

    Raises:
        DataError: no trial, or a Sharpe ratio that is not positive.

    References:
        Bailey, Borwein, Lopez de Prado and Zhu (2014), Pseudo-mathematics and financial charlatanism, theorem 2.

    Example:
        >>> round(min_backtest_length(45, sharpe=1.0), 3)
        4.998
    """
    if not sharpe > 0.0:
        raise DataError(f"`sharpe` must be positive, got {sharpe}")
    return (expected_max_sharpe(n_trials) / sharpe) ** 2


def _unit_variance(sharpe: float, skew: float, kurtosis: float) -> float:
    """n - 1 times the squared standard error; never negative for moments that a distribution can have."""
    if kurtosis < (1.0 + skew**2) * (1.0 - 1e-9):  # the slack is for rounding at two-point distributions
        raise DataError(
            f"`kurtosis` must be raw (3 if normal) and at least 1 + skew**2 = {1.0 + skew**2:.6g}, got {kurtosis}; "
            "add 3 to an excess kurtosis"
        )
    return max(1.0 - skew * sharpe + (kurtosis - 1.0) / 4.0 * sharpe**2, 0.0) if not math.isnan(sharpe) else math.nan
