"""Forwards and discount factors of quotes: given, from rates and dividends, or implied by put-call parity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit

from pricers import Market, ZeroCurve
from qfml.errors import DataError

__all__ = ["ParityFit", "forward_and_discount", "parity_forward", "rate_or_curve"]

FALSE_ALARM = 0.01  # how often a test may call one of the good pairs an outlier
LEAST_FREEDOM = 2  # of the noise once a pair is left out: with fewer nobody can tell which pair is wrong
ROUNDING = 1e-12  # of the strike: pairs that agree to it are exact
PLAUSIBLE_DISCOUNT = 0.3, 1.5


def rate_or_curve(name: str, value: Any) -> float | ZeroCurve:
    """A rate as a number, or as a curve of zero rates, linear in time between its nodes and flat outside.

    Args:
        name: what messages call it.
        value: a number (continuous, per year, decimal), a `pricers.ZeroCurve`, a pair (times in years, rates), or a
            mapping with the keys `times` and `rates`.

    Raises:
        DataError: none of these, or rates that look like percent.

    >>> rate_or_curve("rates", ([0.0, 1.0], [0.02, 0.03])).rates.tolist()
    [0.02, 0.03]
    """
    if isinstance(value, Mapping):
        if set(value) != {"times", "rates"}:
            raise DataError(
                f"`{name}` as a mapping must have the keys times and rates, got {', '.join(map(str, value))}"
            )
        value = (value["times"], value["rates"])
    try:
        if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str):
            if len(value) != 2 or np.ndim(value[0]) != 1:
                raise DataError(
                    f"`{name}` must be a number, a pair (times, rates) or a pricers.ZeroCurve, got {value!r:.80}; "
                    "give a rate for each expiry as (expiries, rates)"
                )
            value = ZeroCurve([float(x) for x in value[0]], [float(x) for x in value[1]])
        elif value is None:
            raise DataError(f"`{name}` must be given; 0 for none")
        elif not isinstance(value, ZeroCurve):
            value = float(value)
    except (TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"`{name}` must be a number, a pair (times, rates) or a pricers.ZeroCurve: {error}") from None
    largest = float(value.rates.abs().max()) if isinstance(value, ZeroCurve) else abs(value)
    if not largest <= 1.0:
        raise DataError(f"`{name}` must be decimal, in [-1, 1], got {largest:g}; 3 % is 0.03")
    return value


def forward_and_discount(
    expiry: np.ndarray, spot: float | None, rates: Any, dividends: Any, forward: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    r"""Forwards $S\,e^{(r - q) T}$, unless given, and discount factors $e^{-r T}$.

    Args:
        expiry: years, shape `(n,)`.
        spot: price of the asset today; None where `forward` is given.
        rates: see `rate_or_curve`.
        dividends: a continuous yield, like `rates`.
        forward: forwards to the expiries, shape `(n,)`, or None.

    Raises:
        DataError: neither spot nor forwards; numbers out of range.

    >>> forward, discount = forward_and_discount(np.array([1.0]), 100.0, 0.05, 0.02)
    >>> forward.round(6).tolist(), discount.round(6).tolist()
    ([103.045453], [0.951229])
    """
    rate, income = rate_or_curve("rates", rates), rate_or_curve("dividends", dividends)
    if spot is None and forward is None:
        raise DataError("quotes need forwards: give `forwards`, or `spot` with `rates` and `dividends`")
    times = torch.from_numpy(np.where(expiry > 0.0, expiry, 1.0))  # expired quotes are refused later, by their row
    market = Market(1.0 if spot is None else spot, rate, income)
    discount = market.discount(times).numpy()
    return (market.forward(times).numpy() if forward is None else forward), discount


@dataclass(frozen=True, eq=False)
class ParityFit:
    """Forward and discount factor implied by put-call parity at one expiry.

    The standard errors are honest about few pairs only with Student's law: 95 of 100 intervals of `quantile` standard
    errors hold the truth, where `quantile` is that of `degrees_of_freedom` (12.7 for one, 2.2 for eleven).

    Args:
        forward: to the expiry.
        discount: discount factor to the expiry.
        forward_std_error: NaN where there are as many unknowns as pairs.
        discount_std_error: likewise; 0 where the discount factor was given.
        outlier: pairs that were left out, shape `(n_pairs,)`.
        degrees_of_freedom: pairs that were used beyond the unknowns, from which the noise is known.
    """

    forward: float
    discount: float
    forward_std_error: float
    discount_std_error: float
    outlier: np.ndarray
    degrees_of_freedom: int

    def __str__(self) -> str:
        n_used = int((~self.outlier).sum())
        text = f"forward {self.forward:.6g} (std error {self.forward_std_error:.2g})"
        if self.discount_std_error != 0.0:
            text += f", discount factor {self.discount:.6g} (std error {self.discount_std_error:.2g})"
        return f"{text} by put-call parity from {n_used} pairs"


def parity_forward(
    strike: np.ndarray,
    call: np.ndarray,
    put: np.ndarray,
    width: np.ndarray | None = None,
    discount: float | None = None,
) -> ParityFit:
    r"""Forward, and discount factor unless it is given, from European calls and puts of the same strikes.

    Fits $C - P = D\,(F - K)$ by weighted least squares to the pairs that belong together. The others are found by their
    distance from the median of the slopes between all pairs of strikes (Theil and Sen), which a few stale prices do not
    move: from the nearest of the suspects outwards each is predicted from the pairs nearer than it, and an error that
    Student's law allows in fewer than `FALSE_ALARM` of the cases makes it and all beyond it outliers. At most a third
    can be, and none of three or four with the discount factor unknown: there nobody can tell which is wrong.
    Standard errors are those of the regression, with the noise as the pairs that are used show it.

    Args:
        strike: two different strikes or more, shape `(n_pairs,)`.
        call: prices of the calls.
        put: prices of the puts.
        width: standard deviation of each `call - put` up to a factor, such as the root of the sum of the squared
            widths of the two markets; None for equal ones.
        discount: discount factor, where it is known.

    Raises:
        DataError: fewer than two different strikes, or prices that imply no possible forward or discount factor.

    References:
        Stoll (1969), The relationship between put and call option prices. Rosner (1983), Percentage points for a
        generalized ESD many-outlier procedure. Sen (1968), Estimates of the regression coefficient based on Kendall's
        tau.

    >>> strike = np.array([90.0, 100.0, 110.0])
    >>> fit = parity_forward(strike, 0.97 * (102.0 - strike) + 7.0, np.full(3, 7.0))
    >>> round(fit.forward, 6), round(fit.discount, 6)
    (102.0, 0.97)
    """
    if np.unique(strike).shape[0] < 2:
        raise DataError(
            f"put-call parity needs a call and a put at two strikes or more, got {np.unique(strike).shape[0]}; "
            "give `forward` as a column, or spot, rates and dividends"
        )
    middle = float(np.median(strike))
    difference, moneyness = call - put, strike - middle
    scale = np.ones_like(strike) if width is None else width / np.median(width)
    if discount is None:
        first, second = np.triu_indices(strike.shape[0], 1)
        distinct = strike[first] != strike[second]
        first, second = first[distinct], second[distinct]
        run = strike[second] - strike[first]
        slopes = (difference[second] - difference[first]) / run
        slope = _median(slopes, np.abs(run) / np.hypot(scale[first], scale[second]))
        start = np.array([_median(difference - slope * moneyness, 1.0 / scale), slope])
        design = np.stack([np.ones_like(strike), moneyness], axis=-1)
        target = difference
    else:
        start = np.array([_median(difference + discount * moneyness, 1.0 / scale)])
        design = np.ones((strike.shape[0], 1))
        target = difference + discount * moneyness
    design, target = design / scale[:, None], target / scale
    outlier = _outliers(design, target, start, ROUNDING * middle)
    solution, noise, spread = _regression(design[~outlier], target[~outlier])
    covariance = noise * spread
    level, slope = float(solution[0]), float(solution[1]) if discount is None else -discount
    forward, slope_error = middle - level / slope, 0.0
    gradient = np.array([-1.0 / slope, level / slope**2])[: solution.shape[0]]
    if discount is None:
        slope_error = float(np.sqrt(covariance[1, 1]))
    low, high = PLAUSIBLE_DISCOUNT
    if not low <= -slope <= high or not forward > 0.0:
        raise DataError(
            f"put-call parity must imply a forward above 0 and a discount factor in [{low:g}, {high:g}], got "
            f"{forward:g} and {-slope:g}; are the options European, the prices of one time, and strikes in "
            f"the unit of the prices? Give {'`rates`, or ' if discount is None else ''}the forward"
        )
    forward_error = float(np.sqrt(gradient @ covariance @ gradient))
    return ParityFit(forward, -slope, forward_error, slope_error, outlier, int((~outlier).sum()) - solution.shape[0])


def _median(values: np.ndarray, weight: np.ndarray) -> float:
    """The weighted median, the mean of two where the weight is halved between them."""
    order = np.argsort(values)
    share = np.cumsum(weight[order]) / weight.sum()
    low, high = np.searchsorted(share, [0.5 - 1e-12, 0.5 + 1e-12])
    return float(0.5 * (values[order[low]] + values[order[high]]))


def _regression(design: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """Least squares: the solution, the variance of the noise (NaN without freedom) and the inverse of X'X."""
    solution, *_ = np.linalg.lstsq(design, target, rcond=None)
    freedom = design.shape[0] - design.shape[1]
    noise = float(np.square(target - design @ solution).sum() / freedom) if freedom > 0 else np.nan
    return solution, noise, np.linalg.pinv(design.T @ design)


def _outliers(design: np.ndarray, target: np.ndarray, start: np.ndarray, rounding: float) -> np.ndarray:
    """The rows that do not belong to the others, judged by Student's law of what the others predict."""
    n_rows, n_unknowns = design.shape
    order = np.argsort(np.abs(target - design @ start), kind="stable")
    outlier = np.zeros(n_rows, bool)
    most = min(n_rows // 3, n_rows - n_unknowns - LEAST_FREEDOM)
    for n_near in range(n_rows - most, n_rows):
        near, suspect = order[:n_near], order[n_near]
        if np.linalg.matrix_rank(design[near]) < n_unknowns:
            continue  # strikes too alike to predict from
        solution, noise, spread = _regression(design[near], target[near])
        error = abs(float(target[suspect] - design[suspect] @ solution))
        deviation = max(np.sqrt(noise), rounding) * np.sqrt(1.0 + design[suspect] @ spread @ design[suspect])
        # any of the n_near + 1 rows could have been the farthest
        if error > deviation * stdtrit(n_near - n_unknowns, 1.0 - 0.5 * FALSE_ALARM / (n_near + 1)):
            outlier[order[n_near:]] = True
            break
    return outlier
