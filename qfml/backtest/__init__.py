"""Predictions to positions to costs to P&L, beside baselines."""

from qfml.backtest.baselines import BASELINES, HAR, Baseline, BuyAndHold, Momentum, Ridge
from qfml.backtest.pnl import ProfitAndLoss, profit_and_loss
from qfml.backtest.positions import (
    POSITIONS,
    BetSize,
    Direct,
    PositionRule,
    PredictedVolTarget,
    QuantileLongShort,
    Sign,
    Tanh,
    VolTarget,
    bet_size,
    quantile_long_short,
    sign_positions,
    tanh_positions,
    vol_target,
)
from qfml.backtest.result import WalkForwardResult
from qfml.backtest.training import FoldFit
from qfml.backtest.volatility import trailing_volatility
from qfml.backtest.walk_forward import walk_forward

__all__ = [
    "BASELINES",
    "HAR",
    "POSITIONS",
    "Baseline",
    "BetSize",
    "BuyAndHold",
    "Direct",
    "FoldFit",
    "Momentum",
    "PositionRule",
    "PredictedVolTarget",
    "ProfitAndLoss",
    "QuantileLongShort",
    "Ridge",
    "Sign",
    "Tanh",
    "VolTarget",
    "WalkForwardResult",
    "bet_size",
    "profit_and_loss",
    "quantile_long_short",
    "sign_positions",
    "tanh_positions",
    "trailing_volatility",
    "vol_target",
    "walk_forward",
]
