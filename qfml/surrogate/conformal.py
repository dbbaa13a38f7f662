"""Error bounds that hold on fresh points at a stated level, whatever the distribution of the errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.stats import beta, betabinom
from torch import Tensor

from qfml.errors import DataError


@dataclass(frozen=True)
class ErrorBound:
    """An error that fresh points exceed with probability `1 - level` at most (split-conformal).

    Args:
        level: probability, such as 0.99.
        value: the bound, in the unit of the target.
        unit: that unit.
        n_calibration: points that the bound was taken from.
        of: "value", or "label": for labels with noise the bound covers the distance to the noisy label.
    """

    level: float
    value: float
    unit: str
    n_calibration: int
    of: str = "value"


def conformal_bound(errors: Tensor, level: float) -> float:
    r"""The bound that the absolute error of a fresh point keeps with probability `level` at least.

    The $\lceil (n + 1) \cdot \mathrm{level} \rceil$-th smallest of n absolute errors, on points drawn like the fresh
    one and used for nothing else. The probability is over the draw of both; it lies below level + 1 / (n + 1).

    Args:
        errors: (n,), signed or not.
        level: in (0, 1).

    Raises:
        DataError: too few errors for the level, a NaN.

    References:
        Vovk, Gammerman, Shafer (2005), Algorithmic Learning in a Random World; Lei, G'Sell, Rinaldo, Tibshirani,
        Wasserman (2018), "Distribution-Free Predictive Inference for Regression", algorithm 2.

    Example:
        >>> import torch
        >>> conformal_bound(torch.tensor([0.3, -0.1, 0.2, 0.4]), 0.5)  # the third smallest of four
        0.3
    """
    if not 0 < level < 1:
        raise DataError(f"`level` must lie in (0, 1), got {level}")
    if not bool(errors.isfinite().all()):
        raise DataError(
            f"{int((~errors.isfinite()).sum())} of {len(errors)} errors are not finite: no bound holds them"
        )
    place = _place(len(errors), level)
    if place > len(errors):
        raise DataError(
            f"a bound at level {level:g} needs {math.ceil(level / (1 - level) - 1e-9)} calibration points at least, "
            f"got {len(errors)}"
        )
    return round(float(errors.double().abs().kthvalue(place).values), 15)


def _place(n: int, level: float) -> int:
    return math.ceil((n + 1) * level - 1e-9)


def coverage_p_value(n_covered: int, n_test: int, n_calibration: int, level: float) -> float:
    """Probability that so few fresh errors keep a bound of `conformal_bound`, or fewer, though nothing is amiss.

    The coverage moves with the calibration errors, by a beta law, and the count about it, by a binomial one.

    Example:
        >>> coverage_p_value(3, 9, 1, 0.5)  # one calibration error: each count is as likely
        0.4
    """
    place = _place(n_calibration, level)
    return round(float(betabinom.cdf(n_covered, n_test, place, n_calibration + 1 - place)), 12)


def binomial_interval(count: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a probability of which `count` successes in `n` independent trials were seen.

    References:
        Clopper, Pearson (1934), "The use of confidence or fiducial limits illustrated in the case of the binomial".

    Example:
        >>> low, high = binomial_interval(990, 1000)
        >>> round(low, 4), round(high, 4)
        (0.9817, 0.9952)
    """
    tail = 0.5 * (1.0 - confidence)
    low = 0.0 if count == 0 else float(beta.ppf(tail, count, n - count + 1))
    high = 1.0 if count == n else float(beta.ppf(1.0 - tail, count + 1, n - count))
    return low, high
