"""From the predictions of each strategy to its books, on one clock for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from qfml.backtest.baselines import Baseline
from qfml.backtest.folds import FoldRows
from qfml.backtest.judgement import Meaning
from qfml.backtest.panel import Panel
from qfml.backtest.pnl import ProfitAndLoss, profit_and_loss
from qfml.backtest.positions import PositionRule, Sign
from qfml.backtest.volatility import trailing_volatility
from qfml.data.dataset import TimeDataset
from qfml.errors import DataError, UserError

__all__ = ["SLIPPAGE_WINDOW", "Market", "baseline_rule", "check_rule", "pnl_frame", "positions_frame", "rule_input"]

SLIPPAGE_WINDOW = 21  # known returns in the trailing volatility that slippage is a multiple of


@dataclass(frozen=True, eq=False)
class Market:
    """The periods of a backtest and what assets earned in them.

    A period belongs to the fold whose decision is held over it: with a lag of k, the fold tested k rows before. Where
    no fold tests, nothing is ordered; the period in which the last position is closed still belongs to its fold, and
    the periods after it are not part of the backtest.

    Attributes:
        panel: Where each row of the data stands among times and assets.
        returns: Return of each asset over each period, shape (times, assets).
        fold: Fold of each period, shape (times,); -1 for periods that are not part of the backtest.
        periods_per_year: Periods in a year.
        cost_bps: Cost of trading, basis points of the amount traded.
        slippage: Further cost in multiples of the trailing per-period volatility.
        execution_lag: Periods between decision and fill.
    """

    panel: Panel
    returns: np.ndarray
    fold: np.ndarray
    periods_per_year: float
    cost_bps: float
    slippage: float
    execution_lag: int

    @classmethod
    def of(cls, ds: TimeDataset, folds: list[FoldRows], **settings: Any) -> Market:
        """The market of `ds` over the test blocks of `folds`.

        Raises:
            DataError: If the data have no returns, or none in the periods that the folds decide on.
        """
        if ds.returns is None:
            raise DataError(
                "a backtest needs what positions earn: pass `returns=` to TimeDataset (the simple return of each row's "
                "asset to its next row), or build it with TimeDataset.from_frame. It leaves them out where a backtest "
                "would be wrong: for a meta-label, which sizes a bet and does not say its direction, and where rows in "
                f"mid-history have no label (here {ds.dropped.get('no label in mid-history', 0)})"
            )
        panel = Panel.from_rows(ds.time, ds.group, ds.group_names)
        returns = panel.matrix(ds.returns)
        fold = _fold_of_period(panel, returns, folds, settings["execution_lag"])
        return cls(panel, returns, fold, **settings)

    @property
    def active(self) -> np.ndarray:
        """Which periods are part of the backtest."""
        return self.fold >= 0

    @property
    def times(self) -> np.ndarray:
        """The starts of those periods."""
        return self.panel.times[self.active]

    def trade(self, rule: PositionRule, prediction: np.ndarray) -> ProfitAndLoss:
        """Books of the positions that `rule` takes on one prediction per row of the data, nan outside the tests."""
        decided = rule.decide(self.panel.matrix(prediction), self.returns, periods_per_year=self.periods_per_year)
        books = profit_and_loss(
            decided,
            self.returns,
            cost_bps=self.cost_bps,
            execution_lag=self.execution_lag,
            slippage=self.slippage,
            volatility=trailing_volatility(self.returns, window=SLIPPAGE_WINDOW, min_periods=1),
        )
        return books.at(self.active)


def _fold_of_period(panel: Panel, returns: np.ndarray, folds: list[FoldRows], lag: int) -> np.ndarray:
    n_periods = len(panel.times)
    tested = np.full(n_periods, -1)
    for number, fold in enumerate(folds):
        tested[panel.row_time[fold.test]] = number
    filled = np.full(n_periods, -1)
    filled[lag:] = tested[: max(n_periods - lag, 0)]
    closing = np.full(n_periods, -1)
    closing[1:] = filled[:-1]
    fold = np.where(filled >= 0, filled, closing)
    known = np.flatnonzero(np.isfinite(returns).any(axis=1))
    fold[known[-1] + 1 if len(known) else 0 :] = -1  # after the last known return there is nothing to earn
    if not (fold >= 0).any():
        raise DataError(
            f"no return is known in the periods that the test blocks decide on (execution lag {lag}): check `returns` "
            "of the data set, or test on earlier times"
        )
    return fold


def check_rule(rule: PositionRule, means: Meaning) -> None:
    """Refuse a rule that reads something else than the network predicts, before anything is trained."""
    wanted = {"probability": "probability", "position": "position", "volatility": "label"}.get(rule.reads)
    if wanted is not None and means != wanted:
        loss = {"probability": "`bce`", "position": "`negative_sharpe`", "volatility": "`mse` on realised volatility"}
        raise UserError(
            f"the position rule `{rule.kind}` reads a {rule.reads}, but with this loss the network predicts a {means}; "
            f"train on {loss[rule.reads]}, or use `sign`, `tanh` or `vol_target`"
        )


def rule_input(rule: PositionRule, predicted: np.ndarray, means: Meaning) -> np.ndarray:
    """A prediction as the rule reads it; the score of a probability p is 2p - 1, the expected sign."""
    return 2.0 * predicted - 1.0 if means == "probability" and rule.reads == "score" else predicted


def baseline_rule(rule: PositionRule, baseline: Baseline) -> PositionRule:
    """The rule a baseline trades by: the network's where its predictions mean what that rule reads, else the sign."""
    if baseline.forecasts == "label" and rule.reads != "position":
        return rule
    if baseline.forecasts == "direction" and rule.reads == "score" and rule.scale_free:
        return rule
    return Sign()


def positions_frame(ds: TimeDataset, market: Market, books: Mapping[str, ProfitAndLoss]) -> pl.DataFrame:
    """One row per strategy, period and asset that has a row then, or is traded: position held and what it earned."""
    has_row = np.isfinite(market.panel.matrix(np.zeros(len(ds))))[market.active]
    frames = []
    for name, book in books.items():
        period, asset = np.nonzero(has_row | (book.trade != 0.0))
        columns: dict[str, Any] = {"time": market.times[period]}
        if ds.group is not None:
            columns["group"] = np.array(ds.group_names)[asset]
        columns["strategy"] = np.full(len(period), name)
        for column, matrix in (("position", book.held), ("gross", book.gross), ("cost", book.cost), ("net", book.net)):
            columns[column] = matrix[period, asset]
        frames.append(pl.DataFrame(columns))
    return pl.concat(frames)


def pnl_frame(market: Market, books: Mapping[str, ProfitAndLoss]) -> pl.DataFrame:
    """One row per strategy and period: totals over the assets."""
    return pl.concat(
        pl.DataFrame(
            {
                "time": market.times,
                "strategy": np.full(len(market.times), name),
                "gross": book.gross.sum(axis=1),
                "cost": book.cost.sum(axis=1),
                "net": book.total,
                "turnover": book.turnover,
                "exposure": book.exposure,
            }
        )
        for name, book in books.items()
    )
