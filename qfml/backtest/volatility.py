"""Volatility as it is known at a decision."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.lib.stride_tricks import sliding_window_view

from qfml.errors import UserError

__all__ = ["trailing_volatility"]

Matrix = Float[np.ndarray, "times assets"]


def trailing_volatility(returns: Matrix, *, window: int, min_periods: int | None = None) -> Matrix:
    r"""Volatility per period over an asset's last known returns, as known at the decision.

    $\sigma_{t,i} = \sqrt{\frac{1}{m}\sum r_{s,i}^2}$ over the asset's last $m \le$ `window` known returns with $s < t$
    (the return of row t itself is the future). The mean is taken as zero: over short windows it is all noise.

    Args:
        returns: Simple returns, shape (times, assets); `returns[t]` is earned from t on; nan = unknown.
        window: Number of known returns to look back.
        min_periods: Fewest known returns needed, else nan; the full window by default.

    Returns:
        Per-period volatility, same shape; nan where there is too little history.

    Raises:
        UserError: If `window` is not positive or `min_periods` is not in [1, window].

    References:
        J.P. Morgan/Reuters (1996), "RiskMetrics technical document", section 5.3 (zero mean).

    Example:
        >>> trailing_volatility(np.array([[0.03], [-0.04], [9.0]]), window=2, min_periods=1).round(4).ravel()
        array([   nan, 0.03  , 0.0354])
    """
    least = window if min_periods is None else min_periods
    if window < 1 or not 1 <= least <= window:
        raise UserError(f"`window` must be positive and `min_periods` in [1, window], got {window} and {least}")
    volatility = np.full(returns.shape, np.nan)
    for asset in range(returns.shape[1]):
        known = np.isfinite(returns[:, asset])
        n_before = np.concatenate([[0], np.cumsum(known)[:-1]])  # known returns strictly before each row
        squares = np.concatenate([np.zeros(window), returns[known, asset] ** 2])
        sums = sliding_window_view(squares, window).sum(axis=1)  # sums[k]: over the last `window` of the first k
        enough = n_before >= least
        count = np.minimum(n_before[enough], window)
        volatility[enough, asset] = np.sqrt(sums[n_before[enough]] / count)
    return volatility
