"""Forwards and discount factors of quotes: given, from rates and dividends, or implied by put-call parity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pricers import Market, ZeroCurve
from qfml.errors import DataError

__all__ = ["ParityFit", "forward_and_discount", "parity_forward", "rate_or_curve"]

BIWEIGHT = 4.685  # standard deviations beyond which a pair is left out: 95 % efficient for normal noise
MAD_TO_STD = 1.4826  # of a normal law
ROUNDING = 1e-12  # of the strike: pairs that agree to it are exact
PLAUSIBLE_DISCOUNT = 0.3, 1.5
MAX_STEPS, LEAST_MOVE = 50, 1e-13


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

    Args:
        forward: to the expiry.
        discount: discount factor to the expiry.
        forward_std_error: NaN where there are as many unknowns as pairs.
        discount_std_error: likewise; 0 where the discount factor was given.
        outlier: pairs that were left out, shape `(n_pairs,)`.
    """

    forward: float
    discount: float
    forward_std_error: float
    discount_std_error: float
    outlier: np.ndarray

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

    Fits $C - P = D\,(F - K)$ by least squares with Tukey's biweight, from the median of the slopes between all pairs of
    strikes (Theil and Sen), weighted by how well each is known, so that a few stale prices do not move it. Standard
    errors are those of the weighted regression, with the noise as the pairs show it.

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
        Stoll (1969), The relationship between put and call option prices. Huber and Ronchetti (2009), Robust
        Statistics, section 7.8.

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
    solution, covariance, outlier = _biweight(design / scale[:, None], target / scale, start, ROUNDING * middle)
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
            "the unit of the prices? "
            "Give `rates`, or the forward"
        )
    return ParityFit(forward, -slope, float(np.sqrt(gradient @ covariance @ gradient)), slope_error, outlier)


def _median(values: np.ndarray, weight: np.ndarray) -> float:
    """The weighted median, the mean of two where the weight is halved between them."""
    order = np.argsort(values)
    share = np.cumsum(weight[order]) / weight.sum()
    low, high = np.searchsorted(share, [0.5 - 1e-12, 0.5 + 1e-12])
    return float(0.5 * (values[order[low]] + values[order[high]]))


def _biweight(
    design: np.ndarray, target: np.ndarray, start: np.ndarray, rounding: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least squares with Tukey's biweight: solution, its covariance and the rows without weight."""
    n_rows, n_unknowns = design.shape
    solution = start
    spread = max(MAD_TO_STD * float(np.median(np.abs(target - design @ solution))), rounding)
    spread *= np.sqrt(n_rows / max(n_rows - n_unknowns, 1))  # the start passes through some of them
    weight = np.ones(n_rows)
    for _ in range(MAX_STEPS):
        share = (target - design @ solution) / (BIWEIGHT * spread)
        weight = np.where(np.abs(share) < 1.0, (1.0 - share**2) ** 2, 0.0)
        root = np.sqrt(weight)
        if np.count_nonzero(weight) < n_unknowns:
            break
        moved, *_ = np.linalg.lstsq(design * root[:, None], target * root, rcond=None)
        done = np.abs(moved - solution).max() <= LEAST_MOVE * np.abs(moved).max()
        solution = moved
        if done:
            break
    residual = target - design @ solution
    freedom = weight.sum() - n_unknowns
    noise = float((weight * residual**2).sum() / freedom) if freedom > 0.0 else np.nan
    covariance = noise * np.linalg.pinv((design * weight[:, None]).T @ design)
    return solution, covariance, weight == 0.0
