"""Performance figures against plain loops and closed forms, and what they do where they are not defined."""

import math

import numpy as np
import pytest

from qfml import metrics
from qfml.errors import DataError

RETURNS = np.random.default_rng(3).standard_t(4, 400) * 0.01


def test_drawdown_loop():
    equity, peak, expected = 1.0, 1.0, []
    for r in RETURNS:
        equity *= 1 + r
        peak = max(peak, equity)
        expected.append((peak - equity) / peak)
    np.testing.assert_allclose(metrics.drawdown(RETURNS), expected, atol=1e-13)
    assert metrics.max_drawdown(RETURNS) == pytest.approx(max(expected), abs=1e-13)


def test_drawdown_counts_the_starting_capital():
    assert metrics.max_drawdown([-0.1, 0.05]) == pytest.approx(0.1)


def test_annualised_return_of_constant_growth():
    assert metrics.annualised_return([0.01] * 7, periods_per_year=12) == pytest.approx(1.01**12 - 1, rel=1e-13)
    assert metrics.annualised_return([0.5, -1.0, 0.3]) == -1.0


@pytest.mark.parametrize("ddof", [0, 1])
def test_sharpe_by_hand(ddof):
    n = len(RETURNS)
    mean = math.fsum(RETURNS) / n
    std = math.sqrt(math.fsum((RETURNS - mean) ** 2) / (n - ddof))
    assert metrics.sharpe_ratio(RETURNS, 250, ddof=ddof) == pytest.approx(mean / std * math.sqrt(250), rel=1e-12)
    assert metrics.annualised_vol(RETURNS, 250, ddof=ddof) == pytest.approx(std * math.sqrt(250), rel=1e-12)


def test_sortino_and_omega_loops_with_a_target():
    target = 0.002
    shortfall = [min(r - target, 0.0) ** 2 for r in RETURNS]
    expected = (RETURNS.mean() - target) / math.sqrt(sum(shortfall) / len(RETURNS)) * math.sqrt(12)
    assert metrics.sortino_ratio(RETURNS, 12, target=target) == pytest.approx(expected, rel=1e-12)
    gains = sum(r - target for r in RETURNS if r > target)
    losses = sum(target - r for r in RETURNS if r < target)
    assert metrics.omega_ratio(RETURNS, threshold=target) == pytest.approx(gains / losses, rel=1e-12)


def test_turnover_loop_over_assets():
    positions = np.random.default_rng(0).normal(size=(30, 4))
    traded, before = 0.0, [0.0] * 4
    for row in positions:
        traded += sum(abs(now - then) for now, then in zip(row, before, strict=True))
        before = row
    assert metrics.turnover(positions, 252) == pytest.approx(traded / 30 * 252, rel=1e-13)
    assert metrics.turnover(positions[:, 0], 1) == pytest.approx(metrics.turnover(positions[:, :1], 1))


def test_hit_rate_leaves_periods_without_a_result_out():
    assert metrics.hit_rate([0.1, 0.0, 0.0, -0.1, 0.2]) == pytest.approx(2 / 3)


def test_leverage_scales_what_it_should():
    """Sharpe, Sortino and omega do not depend on leverage, volatility and shortfall are proportional to it."""
    for ratio in (metrics.sharpe_ratio, metrics.sortino_ratio, metrics.omega_ratio, metrics.hit_rate):
        assert ratio(3 * RETURNS) == pytest.approx(ratio(RETURNS), rel=1e-12)
    for measure in (metrics.annualised_vol, metrics.expected_shortfall, metrics.value_at_risk):
        assert measure(3 * RETURNS) == pytest.approx(3 * measure(RETURNS), rel=1e-12)


@pytest.mark.parametrize("constant", [0.0, 0.1, -0.1])  # 0.1 has a standard deviation of 1e-17 if one is careless
def test_constant_returns_have_no_sharpe(constant):
    assert math.isnan(metrics.sharpe_ratio([constant] * 7))


def test_undefined_ratios_are_nan():
    gains = [0.01, 0.02]
    for ratio in (metrics.sortino_ratio, metrics.calmar_ratio, metrics.omega_ratio):
        assert math.isnan(ratio(gains))
    assert math.isnan(metrics.hit_rate([0.0, 0.0]))
    assert math.isnan(metrics.sharpe_ratio([0.01]))
    assert math.isnan(metrics.annualised_vol([0.01]))


RETURN_METRICS = [
    metrics.sharpe_ratio,
    metrics.sortino_ratio,
    metrics.calmar_ratio,
    metrics.omega_ratio,
    metrics.max_drawdown,
    metrics.value_at_risk,
    metrics.expected_shortfall,
    metrics.turnover,
    metrics.hit_rate,
    metrics.annualised_return,
    metrics.annualised_vol,
    metrics.sharpe_moments,
]


@pytest.mark.parametrize("metric", RETURN_METRICS)
def test_bad_input_is_named(metric):
    with pytest.raises(DataError, match="empty"):
        metric([])
    with pytest.raises(DataError, match="not finite, the first at position 1"):
        metric([0.1, math.nan, math.inf])
    with pytest.raises(DataError, match="shape"):
        metric(np.zeros((2, 2, 2)))
    with pytest.raises(DataError, match="numbers"):
        metric(["a", "b"])


def test_bad_settings_are_named():
    with pytest.raises(DataError, match="at least -1"):
        metrics.max_drawdown([0.1, -1.5])
    with pytest.raises(DataError, match="`periods_per_year` must be a positive number"):
        metrics.sharpe_ratio(RETURNS, periods_per_year=0)
    with pytest.raises(DataError, match=r"`tail` must lie in \(0, 1\), got 5"):
        metrics.value_at_risk(RETURNS, tail=5)
    with pytest.raises(Exception, match="method"):  # the type check of the tests is faster than ours
        metrics.expected_shortfall(RETURNS, method="cornish")  # pyright: ignore[reportArgumentType]
