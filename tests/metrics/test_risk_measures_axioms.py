"""Value at risk and expected shortfall by the axioms that hold for each, and by the one that value at risk fails."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from metrics.risk_axioms import (
    assert_cash_invariant,
    assert_convex,
    assert_monotone,
    assert_positively_homogeneous,
)

from qfml.metrics import expected_shortfall, value_at_risk

N = 17  # with the tails below, n * tail is fractional
VALUES = arrays(np.float64, N, elements=st.floats(-10, 10, width=32))
TAILS = st.sampled_from([0.01, 0.05, 0.3, 0.5, 0.93])
ROUNDING = 1e-12 * 10 * N


@pytest.mark.parametrize("measure", [value_at_risk, expected_shortfall])
@given(pnl=VALUES, gain=VALUES, tail=TAILS, cash=st.floats(-10, 10), scale=st.floats(0.01, 10))
def test_monotone_cash_invariant_homogeneous(measure, pnl, gain, tail, cash, scale):
    def risk(x):
        return measure(x, tail=tail)

    assert_monotone(risk, pnl, gain, ROUNDING)
    assert_cash_invariant(risk, pnl, cash, ROUNDING)
    assert_positively_homogeneous(risk, pnl, scale, 10 * ROUNDING)


@given(a=VALUES, b=VALUES, tail=TAILS, weight=st.floats(0, 1))
def test_expected_shortfall_convex(a, b, tail, weight):
    assert_convex(lambda x: expected_shortfall(x, tail=tail), a, b, weight, ROUNDING)


def test_value_at_risk_is_not_convex():
    """Two bonds that default in one of 25 states each: diversification raises VaR. The assert must be able to fail."""
    first, second = np.zeros(25), np.zeros(25)
    first[0], second[1] = -100.0, -100.0
    with pytest.raises(AssertionError):
        assert_convex(lambda x: value_at_risk(x, tail=0.05), first, second, 0.5, ROUNDING)


@given(pnl=VALUES, tail=TAILS)
def test_expected_shortfall_is_the_rockafellar_uryasev_minimum(pnl, tail):
    """The objective is piecewise linear with its kinks at the losses, so that the best of the kinks is its minimum."""
    objective = [z + np.mean(np.maximum(-pnl - z, 0)) / tail for z in -pnl]
    assert expected_shortfall(pnl, tail=tail) == pytest.approx(min(objective), abs=ROUNDING)


@given(pnl=VALUES, tail=TAILS)
def test_value_at_risk_is_the_first_quantile_that_reaches_the_tail(pnl, tail):
    reaching = [x for x in pnl if np.mean(pnl <= x) >= tail]
    assert value_at_risk(pnl, tail=tail) == -min(reaching)


@given(pnl=VALUES, tail=TAILS)
def test_expected_shortfall_bounds_value_at_risk_and_the_mean(pnl, tail):
    shortfall = expected_shortfall(pnl, tail=tail)
    assert shortfall >= value_at_risk(pnl, tail=tail) - ROUNDING
    assert shortfall >= expected_shortfall(pnl, tail=1.0) - ROUNDING


def test_value_at_risk_where_rounding_would_move_the_rank():
    """100 * 0.07 is 7.000000000000001 in floating point; the seventh worst return is meant."""
    assert value_at_risk(np.arange(100.0), tail=0.07) == -6.0
