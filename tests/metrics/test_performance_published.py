"""Performance figures against quantstats' and risk measures against published values."""

import numpy as np
import pytest
import references as ref

from qfml.metrics import (
    calmar_ratio,
    expected_shortfall,
    max_drawdown,
    omega_ratio,
    sharpe_ratio,
    sortino_ratio,
    value_at_risk,
)

RETURNS = np.random.RandomState(42).randn(500) * 0.02
PRINTED = 1e-12  # digits in which the values were printed


def test_ratios_quantstats():
    assert sharpe_ratio(RETURNS) == pytest.approx(ref.QUANTSTATS["sharpe"], abs=PRINTED)
    assert sortino_ratio(RETURNS) == pytest.approx(ref.QUANTSTATS["sortino"], abs=PRINTED)
    assert omega_ratio(RETURNS) == pytest.approx(ref.QUANTSTATS["omega"], abs=PRINTED)
    assert calmar_ratio(RETURNS) == pytest.approx(ref.QUANTSTATS["calmar"], abs=PRINTED)


def test_max_drawdown_quantstats_with_our_sign():
    assert max_drawdown(RETURNS) == pytest.approx(-ref.QUANTSTATS["max_drawdown"], abs=PRINTED)


@pytest.mark.parametrize(("tail", "value"), ref.GAUSSIAN_EXPECTED_SHORTFALL.items())
def test_gaussian_expected_shortfall_published(tail, value):
    returns = np.array([-1.0, 1.0]) / np.sqrt(2)  # mean 0, standard deviation 1 at ddof 1
    assert expected_shortfall(returns, tail=tail, method="gaussian") == pytest.approx(value, abs=5e-11)


def test_sample_expected_shortfall_published():
    case = ref.SAMPLE_EXPECTED_SHORTFALL
    assert expected_shortfall(case["pnl"], tail=case["tail"]) == case["value"]


def test_gaussian_and_historical_agree_on_a_normal_sample():
    """At the quantiles of a normal distribution both methods measure the same thing."""
    from scipy.stats import norm

    returns = 0.01 + 0.2 * norm.ppf((np.arange(100_000) + 0.5) / 100_000)
    for measure in (expected_shortfall, value_at_risk):
        gaussian = measure(returns, tail=0.05, method="gaussian")
        assert gaussian == pytest.approx(measure(returns, tail=0.05), rel=1e-3)  # 1e5 points of a smooth quantile
