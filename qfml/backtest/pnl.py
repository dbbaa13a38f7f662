"""Positions -> costs -> P&L, on matrices of shape (times, assets).

The clock: row t is a time, and period t runs from row t to the next. `decided[t]` is what a rule wants at row t, from
information up to row t. `returns[t]` is what a position held over period t earns. With an execution lag of k periods
the order given at row t is filled at row t + k, so `held[t] = decided[t - k]`. The trade into `held[t]` is charged in
period t. Positions are fractions of a constant capital: P&L adds over time and over assets, profits are not
reinvested, and the drift of a position's weight between two rows is not traded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from qfml.errors import DataError, UserError

__all__ = ["ProfitAndLoss", "profit_and_loss"]

Matrix = Float[np.ndarray, "times assets"]
Column = Float[np.ndarray, " times"]


@dataclass(frozen=True, eq=False)
class ProfitAndLoss:
    """P&L of one strategy per period and asset, in fractions of capital; a gain is positive.

    Attributes:
        held: Position over each period, shape (times, assets).
        trade: Signed change of position at the start of each period.
        gross: `held` times the return of the period.
        cost: What the trade cost, never negative.
        not_held: Where the lagged decision was not flat but the return is unknown, so that nothing was held.
    """

    held: Matrix
    trade: Matrix
    gross: Matrix
    cost: Matrix
    not_held: Bool[np.ndarray, "times assets"]

    @property
    def net(self) -> Matrix:
        """`gross - cost`, per period and asset."""
        return self.gross - self.cost

    @property
    def total(self) -> Column:
        """Net P&L per period over all assets: the strategy's return series."""
        return self.net.sum(axis=1)

    @property
    def n_not_held(self) -> int:
        """How many decisions could not be held."""
        return int(self.not_held.sum())

    @property
    def turnover(self) -> Column:
        """Fraction of capital traded at the start of each period, buys plus sells."""
        return np.abs(self.trade).sum(axis=1)

    @property
    def exposure(self) -> Column:
        """Gross exposure over each period: the sum of absolute positions."""
        return np.abs(self.held).sum(axis=1)

    def at(self, periods: Bool[np.ndarray, " times"]) -> ProfitAndLoss:
        """The same books, only the chosen periods."""
        parts = (self.held, self.trade, self.gross, self.cost, self.not_held)
        return ProfitAndLoss(*(part[periods] for part in parts))


def profit_and_loss(
    decided: np.ndarray,
    returns: np.ndarray,
    *,
    cost_bps: float,
    execution_lag: int = 1,
    slippage: float = 0.0,
    volatility: np.ndarray | None = None,
) -> ProfitAndLoss:
    r"""Book the P&L of positions after execution lag, costs and slippage.

    $h_t = d_{t-k}$ (0 before the first order is filled, and 0 where $r_t$ is unknown),
    $\text{gross}_t = h_t r_t$, $\text{cost}_t = |h_t - h_{t-1}|\,(c / 10^4 + s\,\sigma_t)$.

    A position is never held through a return that is unknown: where `returns[t]` is nan (the asset has no row, or no
    next row) it is closed at row t, charged for it, and taken again, charged again, when a return is known.
    `n_not_held` counts these entries. A delisting loss that the data do not hold is therefore not in the
    P&L: put the delisting return into `returns`. Nothing is closed after the last row: the final position is marked,
    not sold.

    Args:
        decided: Positions decided at each row, fractions of capital, finite, shape (times, assets).
        returns: Simple return of each asset over each period, same shape; nan = unknown.
        cost_bps: Cost of trading, basis points of the amount traded.
        execution_lag: Periods between decision and fill. Zero fills at the very price the decision was made on.
        slippage: Further cost, in multiples of the asset's per-period volatility times the amount traded.
        volatility: Per-period volatility known at each row, as from `trailing_volatility`; needed for slippage.

    Returns:
        The books, per period and asset.

    Raises:
        UserError: If shapes differ, a cost is negative, the lag is not a whole number >= 0, or a
            position is not finite or a return infinite.
        DataError: If a trade meets an unknown volatility while slippage is charged.

    Example:
        >>> decided, returns = np.array([[1.0], [1.0], [0.0]]), np.array([[0.05], [0.01], [-0.02]])
        >>> profit_and_loss(decided, returns, cost_bps=10.0).total.round(6)
        array([ 0.   ,  0.009, -0.02 ])
        >>> profit_and_loss(decided, returns, cost_bps=10.0, execution_lag=0).total.round(6)
        array([ 0.049,  0.01 , -0.001])
    """
    _check(decided, returns, cost_bps, execution_lag, slippage)
    wanted = np.zeros_like(decided)
    wanted[execution_lag:] = decided[: max(len(decided) - execution_lag, 0)]
    known = np.isfinite(returns)
    held = np.where(known, wanted, 0.0)
    trade = np.diff(held, axis=0, prepend=0.0)
    gross = np.where(known, held * returns, 0.0)
    cost = np.abs(trade) * (cost_bps / 1e4 + _slippage(trade, slippage, volatility))
    return ProfitAndLoss(held, trade, gross, cost, not_held=~known & (wanted != 0.0))


def _slippage(trade: np.ndarray, slippage: float, volatility: np.ndarray | None) -> np.ndarray | float:
    if slippage == 0.0:
        return 0.0
    if volatility is None or volatility.shape != trade.shape:
        raise UserError("`slippage` is a multiple of volatility: pass `volatility` of the same shape as the positions")
    unknown = (trade != 0.0) & ~np.isfinite(volatility)
    if unknown.any():
        row, asset = np.argwhere(unknown)[0]
        raise DataError(
            f"slippage needs the volatility known at each trade, but {int(unknown.sum())} trades have none "
            f"(first: row {row}, asset {asset}); start trading an asset after its first return, or set `slippage` to 0"
        )
    return slippage * np.where(np.isfinite(volatility), volatility, 0.0)


def _check(decided: np.ndarray, returns: np.ndarray, cost_bps: float, execution_lag: int, slippage: float) -> None:
    if decided.shape != returns.shape:
        raise UserError(f"`decided` and `returns` must have the same shape, got {decided.shape} and {returns.shape}")
    check_costs(cost_bps, slippage, execution_lag)
    if np.isinf(returns).any():
        raise UserError("`returns` must be finite, or nan where unknown; got an infinite one")
    bad = ~np.isfinite(decided)
    if bad.any():
        row, asset = np.argwhere(bad)[0]
        raise UserError(
            f"positions must be finite, got {decided[row, asset]} at row {row}, asset {asset}; use 0 for none"
        )


def check_costs(cost_bps: float, slippage: float, execution_lag: int) -> None:
    """Refuse negative or non-finite costs and lags that are not whole numbers of periods."""
    for name, value in (("cost_bps", cost_bps), ("slippage", slippage)):
        if not (np.isfinite(value) and value >= 0.0):
            raise UserError(f"`{name}` must be a number >= 0, got {value}")
    if isinstance(execution_lag, bool) or not isinstance(execution_lag, (int, np.integer)) or execution_lag < 0:
        raise UserError(f"`execution_lag` must be a whole number of periods >= 0, got {execution_lag!r}")
