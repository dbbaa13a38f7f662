"""Bootstrap intervals and tests: coverage, size and power where the truth is known, and independent oracles."""

import math

import numpy as np
import pytest
import scipy.signal
from arch.bootstrap import StationaryBootstrap

from qfml import metrics
from qfml.errors import DataError
from qfml.metrics import bootstrap


def autoregressive(rng: np.random.Generator, n: int, coefficient: float) -> np.ndarray:
    noise = rng.normal(size=n + 100)
    return scipy.signal.lfilter([1.0], [1.0, -coefficient], noise)[100:]


def test_interval_of_the_mean_covers_with_dependence():
    """AR(.5), 500 observations, 90 % wanted: the bootstrap in blocks comes near, single rows cover about 65 %."""
    rng = np.random.default_rng(0)
    in_blocks, in_rows = 0, 0
    for i in range(120):
        sample = autoregressive(rng, 500, 0.5)
        for block, seen in ((None, "blocks"), (1.0, "rows")):
            interval = metrics.bootstrap_interval(
                sample, np.mean, seed=i, confidence=0.9, n_resamples=200, block_length=block
            )
            covered = interval.low <= 0.0 <= interval.high
            in_blocks += covered and seen == "blocks"
            in_rows += covered and seen == "rows"
    assert 0.8 <= in_blocks / 120 <= 0.98  # standard error 2.7 %; 200 resamples and a finite sample cost some more
    assert in_rows / 120 < 0.78


def test_interval_of_the_sharpe_matches_its_standard_error():
    """On independent normal returns the bootstrap spread is the standard error in closed form."""
    returns = np.random.default_rng(1).normal(0.1, 1, 2000)
    interval = metrics.bootstrap_interval(
        returns, lambda r: metrics.sharpe_ratio(r, 1), seed=0, confidence=0.6827, n_resamples=2000, block_length=1.0
    )
    error = metrics.sharpe_std_error(*metrics.sharpe_moments(returns))
    # half the width from 2,000 draws has a standard error of about 2 %
    assert (interval.high - interval.low) / 2 == pytest.approx(error, rel=0.08)


def test_seed_decides_and_all_statistics_share_the_resamples():
    returns = np.random.default_rng(2).normal(0.001, 0.01, 300)
    statistics = {"mean": np.mean, "minus": lambda r: -np.mean(r), "drawdown": metrics.max_drawdown}
    first = metrics.bootstrap_intervals(returns, statistics, seed=5)
    assert metrics.bootstrap_intervals(returns, statistics, seed=5) == first
    assert metrics.bootstrap_intervals(returns, statistics, seed=6) != first
    assert first["minus"].low == pytest.approx(-first["mean"].high)
    assert first["mean"] == metrics.bootstrap_interval(returns, np.mean, seed=5)
    assert first["mean"].estimate == pytest.approx(returns.mean())
    assert 0 < first["drawdown"].low < first["drawdown"].high < 1


def test_columns_stay_together():
    """The difference of two series that move as one is known far better than either."""
    rng = np.random.default_rng(3)
    market = rng.normal(0, 1, 400)
    both = np.column_stack([market + rng.normal(0.1, 0.01, 400), market])
    interval = metrics.bootstrap_interval(both, lambda x: x[:, 0].mean() - x[:, 1].mean(), seed=0)
    assert interval.low == pytest.approx(0.1, abs=0.005)
    assert interval.high == pytest.approx(0.1, abs=0.005)


def test_undefined_resamples_are_counted():
    """One loss in 200: some 37 % of resamples in single rows miss it and have no drawdown."""
    returns = np.full(200, 0.01)
    returns[50] = -0.1
    interval = metrics.bootstrap_interval(returns, metrics.calmar_ratio, seed=0, block_length=1.0)
    assert interval.n_undefined == pytest.approx(1000 * (1 - 1 / 200) ** 200, abs=4 * math.sqrt(1000 * 0.37 * 0.63))
    flat = metrics.bootstrap_interval(np.zeros(100), metrics.sharpe_ratio, seed=0)
    assert flat.n_undefined == 1000
    assert all(math.isnan(x) for x in flat[:3])


def test_block_length_grows_with_dependence_and_ignores_constants():
    rng = np.random.default_rng(4)
    lengths = [metrics.block_length_rule(autoregressive(rng, 2000, c)) for c in (0.0, 0.5, 0.9)]
    assert 1.0 <= lengths[0] < lengths[1] < lengths[2]
    panel = np.column_stack([autoregressive(rng, 500, 0.5), np.zeros(500)])
    assert metrics.block_length_rule(panel) == metrics.block_length_rule(panel[:, 0])
    assert metrics.block_length_rule(np.zeros(50)) == 1.0


def test_long_run_std_loop_and_bootstrap():
    """Against the formula lag by lag, and against the spread of 4,000 bootstrap means it describes."""
    gains = np.column_stack([autoregressive(np.random.default_rng(5), 300, c) for c in (0.0, 0.6)])
    block = 7.0
    centred, n = gains - gains.mean(axis=0), len(gains)
    expected = (centred**2).mean(axis=0)
    for i in range(1, n):
        kappa = (1 - i / n) * (1 - 1 / block) ** i + i / n * (1 - 1 / block) ** (n - i)
        expected = expected + 2 * kappa * (centred[:-i] * centred[i:]).sum(axis=0) / n
    measured = bootstrap._long_run_std(gains, block)
    np.testing.assert_allclose(measured, np.sqrt(expected), rtol=1e-10)
    resampler = StationaryBootstrap(7, gains, seed=np.random.default_rng(0))
    means = np.array([data[0].mean(axis=0) for data, _ in resampler.bootstrap(4000)])
    np.testing.assert_allclose(measured, means.std(axis=0) * math.sqrt(n), rtol=0.05)  # standard error 1.1 %


def plain_spa(gains: np.ndarray, n_resamples: int, rng: np.random.Generator) -> float:
    """Hansen's consistent p-value with single rows as blocks, straight from section 2 of the paper."""
    n = len(gains)
    omega = gains.std(axis=0)
    mean = gains.mean(axis=0)
    statistic = max((math.sqrt(n) * mean / omega).max(), 0.0)
    kept = np.where(mean >= -omega / math.sqrt(n) * math.sqrt(2 * math.log(math.log(n))), mean, 0.0)
    exceed = 0
    for _ in range(n_resamples):
        star = gains[rng.integers(n, size=n)].mean(axis=0) - kept
        exceed += max((math.sqrt(n) * star / omega).max(), 0.0) > statistic
    return exceed / n_resamples


def test_spa_p_value_plain_implementation():
    """Strategies of different volatility, some of them bad: where studentising and recentring matter."""
    rng = np.random.default_rng(6)
    returns = rng.normal(size=(250, 4)) * [1.0, 5.0, 0.2, 1.0] + [0.1, -1.0, 0.01, -0.3]
    p_value = metrics.superior_predictive_ability(
        returns, np.zeros(250), seed=0, n_resamples=3000, block_length=1.0
    ).p_value
    expected = plain_spa(returns, 3000, np.random.default_rng(1))
    assert 0.05 < expected < 0.95
    assert p_value == pytest.approx(expected, abs=4 * math.sqrt(2 * 0.25 / 3000))


def test_spa_size_without_skill():
    """Five strategies as good as the benchmark: a 10 % test rejects about 10 % of the time."""
    rng = np.random.default_rng(7)
    p_values = [
        metrics.superior_predictive_ability(
            rng.normal(size=(120, 5)), np.zeros(120), seed=i, n_resamples=149, block_length=1.0
        ).p_value
        for i in range(120)
    ]
    assert 0.01 < np.mean(np.array(p_values) < 0.1) < 0.21  # four standard errors of 2.7 %


def test_gains_are_not_losses():
    """arch takes losses: with the sign lost, a hopeless strategy would look superior and a superior one hopeless."""
    noise = np.random.default_rng(8).normal(0, 0.01, 500)
    benchmark = np.random.default_rng(9).normal(0, 0.01, 500)
    for test in (lambda r: metrics.superior_predictive_ability(r, benchmark, seed=0).p_value,
                 lambda r: metrics.reality_check(r, benchmark, seed=0)):  # fmt: skip
        assert test(noise + 0.005) < 0.01
        assert test(noise - 0.005) > 0.5


def test_spa_bounds_are_ordered():
    rng = np.random.default_rng(10)
    result = metrics.superior_predictive_ability(rng.normal(size=(200, 6)) - np.arange(6) * 0.1, np.zeros(200), seed=0)
    assert result.lower <= result.p_value <= result.upper


def test_spa_does_not_depend_on_leverage():
    """Against cash, a strategy at a fifth of its size is as significant; the reality check would bury it under the
    volatility of the others. (`arch` alone gives the same p-value with and without `studentize`.)"""
    rng = np.random.default_rng(11)
    returns = rng.normal(size=(300, 2)) + np.array([0.25, 0.0])
    small = returns * [0.02, 1.0]
    cash = np.zeros(300)
    plain = metrics.superior_predictive_ability(returns, cash, seed=0, block_length=1.0)
    assert metrics.superior_predictive_ability(small, cash, seed=0, block_length=1.0) == plain
    assert plain.p_value < 0.01
    assert metrics.reality_check(small, cash, seed=0, block_length=1.0) > 0.05


def test_bad_input_is_named():
    returns = np.random.default_rng(0).normal(size=(50, 2))
    with pytest.raises(DataError, match="differs from `benchmark` by a constant"):
        metrics.superior_predictive_ability(returns, returns[:, 1], seed=0)
    with pytest.raises(DataError, match=r"must have shape \(50,\)"):
        metrics.reality_check(returns, returns, seed=0)
    with pytest.raises(DataError, match="fewer than 20"):
        metrics.bootstrap_interval(returns[:19], np.mean, seed=0)
    with pytest.raises(DataError, match="`block_length` must lie between 1 and the 50 rows, got 60"):
        metrics.bootstrap_interval(returns, np.mean, seed=0, block_length=60)
    with pytest.raises(DataError, match="`n_resamples`"):
        metrics.bootstrap_interval(returns, np.mean, seed=0, n_resamples=0)
    with pytest.raises(DataError, match="`confidence`"):
        metrics.bootstrap_interval(returns, np.mean, seed=0, confidence=95)
