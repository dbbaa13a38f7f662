"""Axioms of risk measures as asserts, for any function from P&L samples of shape (n,) to a positive loss."""

from collections.abc import Callable

import numpy as np

RiskMeasure = Callable[[np.ndarray], float]


def assert_monotone(risk: RiskMeasure, pnl: np.ndarray, gain: np.ndarray, tolerance: float) -> None:
    """A P&L that is nowhere lower is no riskier."""
    assert risk(pnl + np.abs(gain)) <= risk(pnl) + tolerance


def assert_cash_invariant(risk: RiskMeasure, pnl: np.ndarray, cash: float, tolerance: float) -> None:
    """Sure cash lowers the risk by its amount."""
    assert abs(risk(pnl + cash) - (risk(pnl) - cash)) <= tolerance


def assert_convex(risk: RiskMeasure, a: np.ndarray, b: np.ndarray, weight: float, tolerance: float) -> None:
    """A mixture is no riskier than the mixture of the risks."""
    assert risk(weight * a + (1 - weight) * b) <= weight * risk(a) + (1 - weight) * risk(b) + tolerance


def assert_positively_homogeneous(risk: RiskMeasure, pnl: np.ndarray, scale: float, tolerance: float) -> None:
    """Twice the position is twice the risk (coherent measures only)."""
    assert abs(risk(scale * pnl) - scale * risk(pnl)) <= tolerance
