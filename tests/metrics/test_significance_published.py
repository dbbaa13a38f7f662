"""Significance of Sharpe ratios against published values, identities and their limits."""

import itertools
import math

import numpy as np
import pytest
import references as ref
from scipy.integrate import quad
from scipy.stats import kurtosis, norm, skew

from qfml import metrics
from qfml.errors import DataError

DIGITS = 1e-10  # closed form against published digits


@pytest.mark.parametrize(("n_trials", "value"), ref.EXPECTED_MAX_SHARPE.items())
def test_expected_max_sharpe_published(n_trials, value):
    assert metrics.expected_max_sharpe(n_trials) == pytest.approx(value, rel=DIGITS)
    assert metrics.expected_max_sharpe(n_trials, variance=0.25) == pytest.approx(value / 2, rel=DIGITS)


@pytest.mark.parametrize("case", ref.PROBABILISTIC_SHARPE)
def test_probabilistic_sharpe_published(case):
    value = metrics.probabilistic_sharpe_ratio(case["sharpe"], case["n_obs"], case["skew"], case["kurtosis"])
    assert value == pytest.approx(case["psr"], rel=DIGITS)


def test_std_error_published():
    case = dict(ref.SHARPE_STD_ERROR)
    printed = case.pop("std_error")
    assert metrics.sharpe_std_error(**case) == pytest.approx(printed, abs=5e-5)  # printed to four digits


def test_deflated_sharpe_published():
    case = ref.DEFLATED_SHARPE
    value = metrics.deflated_sharpe_ratio(
        case["annual_sharpe"] / math.sqrt(case["periods_per_year"]),
        case["n_obs"],
        case["skew"],
        case["kurtosis"],
        n_trials=case["n_trials"],
        trial_variance=case["annual_trial_variance"] / case["periods_per_year"],
    )
    assert value == pytest.approx(case["dsr"], rel=DIGITS)


@pytest.mark.parametrize(("frequency", "years"), ref.MIN_TRACK_RECORD_YEARS.items())
def test_min_track_record_published(frequency, years):
    root = math.sqrt(frequency)
    length = metrics.min_track_record_length(2 / root, skew=0.0, kurtosis=3.0, benchmark=1 / root)
    assert length / frequency == pytest.approx(years, rel=DIGITS)


def test_min_backtest_published():
    case = ref.MIN_BACKTEST_YEARS
    value = metrics.min_backtest_length(case["n_trials"], case["sharpe"])
    assert value == pytest.approx(case["years"], rel=DIGITS)


@pytest.mark.parametrize("case", ref.PROBABILITY_OF_OVERFITTING)
def test_probability_of_overfitting_published(case):
    returns = np.random.default_rng(case["seed"]).normal(0, 1, case["shape"])
    assert metrics.probability_of_backtest_overfitting(returns, case["n_blocks"]) == pytest.approx(case["pbo"])


@pytest.mark.parametrize(("n_trials", "error"), [(10, 0.025), (100, 0.011), (1000, 0.005)])
def test_expected_max_sharpe_integral(n_trials, error):
    """Against the exact mean of the maximum, `n * integral of x pdf cdf^(n-1)`, within the error that is stated."""
    exact, _ = quad(lambda x: n_trials * x * norm.pdf(x) * norm.cdf(x) ** (n_trials - 1), -8, 12)
    assert exact < metrics.expected_max_sharpe(n_trials) < exact * (1 + error)


def test_min_track_record_is_where_the_probability_reaches_the_confidence():
    moments = {"skew": -1.5, "kurtosis": 9.0}
    for confidence in (0.6, 0.95, 0.999):
        length = metrics.min_track_record_length(0.12, **moments, benchmark=0.03, confidence=confidence)
        below = metrics.probabilistic_sharpe_ratio(0.12, math.floor(length), **moments, benchmark=0.03)
        above = metrics.probabilistic_sharpe_ratio(0.12, math.ceil(length), **moments, benchmark=0.03)
        assert below < confidence <= above


def test_min_track_record_below_the_benchmark_is_never_long_enough():
    assert metrics.min_track_record_length(0.1, 0.0, 3.0, benchmark=0.1) == math.inf


def test_one_trial_is_the_probabilistic_sharpe():
    moments = (0.1, 500, -0.5, 5.0)
    assert metrics.expected_max_sharpe(1) == 0.0
    assert metrics.min_backtest_length(1) == 0.0
    expected = metrics.probabilistic_sharpe_ratio(*moments)
    assert metrics.deflated_sharpe_ratio(*moments, n_trials=1, trial_variance=math.nan) == expected


def test_more_trials_deflate():
    values = [metrics.deflated_sharpe_ratio(0.1, 500, 0, 3, n, 0.002) for n in (1, 2, 10, 100, 10**6, 10**12)]
    assert all(a > b for a, b in itertools.pairwise(values))
    assert values[-1] > 0  # the quantiles keep their precision far in the tail


def test_moments_scipy():
    returns = np.random.default_rng(0).gamma(2.0, size=300) - 1.0
    moments = metrics.sharpe_moments(returns)
    assert moments.sharpe == pytest.approx(returns.mean() / returns.std(ddof=1), rel=1e-12)
    assert moments.n_obs == 300
    assert moments.skew == pytest.approx(skew(returns), rel=1e-12)
    assert moments.kurtosis == pytest.approx(kurtosis(returns) + 3, rel=1e-12)


def test_excess_kurtosis_is_refused():
    """A known defect elsewhere: excess kurtosis, 0 for a normal distribution, fed where the raw one is needed."""
    returns = np.random.default_rng(0).normal(size=300)
    sharpe, n_obs, skewness, raw = metrics.sharpe_moments(returns)
    with pytest.raises(DataError, match="add 3 to an excess kurtosis"):
        metrics.probabilistic_sharpe_ratio(sharpe, n_obs, skewness, raw - 3)


def test_two_point_returns_have_the_smallest_kurtosis_there_is():
    """Raw kurtosis is 1 + skew^2 there, up to rounding, and must pass; the variance may vanish and nothing breaks."""
    for n_up in range(1, 20):
        returns = np.array([0.01] * n_up + [-0.02] * (20 - n_up))
        assert 0.0 <= metrics.probabilistic_sharpe_ratio(*metrics.sharpe_moments(returns)) <= 1.0
    assert metrics.probabilistic_sharpe_ratio(1.0, 10, skew=2.0, kurtosis=5.0, benchmark=0.5) == 1.0
    assert metrics.probabilistic_sharpe_ratio(1.0, 10, skew=2.0, kurtosis=5.0, benchmark=1.0) == 0.5


def test_constant_returns_give_nan_throughout():
    moments = metrics.sharpe_moments([0.0] * 50)
    assert moments.n_obs == 50
    assert math.isnan(metrics.probabilistic_sharpe_ratio(*moments))
    assert math.isnan(metrics.deflated_sharpe_ratio(*moments, n_trials=5, trial_variance=0.1))
    assert math.isnan(metrics.min_track_record_length(moments.sharpe, moments.skew, moments.kurtosis))


def test_bad_settings_are_named():
    with pytest.raises(DataError, match="`n_trials` must be at least 1, got 0"):
        metrics.expected_max_sharpe(0)
    with pytest.raises(DataError, match="variance across 5 trials"):
        metrics.expected_max_sharpe(5, math.nan)
    with pytest.raises(DataError, match="`n_obs` must be at least 2, got 1"):
        metrics.probabilistic_sharpe_ratio(0.1, 1, 0.0, 3.0)
    with pytest.raises(DataError, match=r"`confidence` must lie in \(0.5, 1\), got 95"):
        metrics.min_track_record_length(0.1, 0.0, 3.0, confidence=95)
    with pytest.raises(DataError, match="`sharpe` must be positive"):
        metrics.min_backtest_length(10, sharpe=0.0)
