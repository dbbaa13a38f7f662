"""Significance and verdict on returns whose truth is known."""

import dataclasses

import numpy as np
import pytest
from backtest.cases import FakeTrainer, single_asset

import qfml
from qfml import metrics
from qfml.backtest import judgement, walk_forward
from qfml.backtest.pnl import profit_and_loss
from qfml.splits import WalkForward

N = 1500


def noise(seed, mean=0.0):
    return np.random.default_rng(seed).normal(mean, 0.01, N)


def judge(**net):
    return judgement.significance(net, 252.0, n_trials=1, trial_variance=None, n_bootstrap=300, seed=0)


def test_a_network_with_skill_beats_a_baseline_without():
    found = judge(network=noise(0, 0.002), ridge=noise(1), momentum=noise(2) - 0.001)
    assert found["best_baseline"] == "ridge"
    assert found["spa_p_value"] < 0.01
    assert found["sharpe_difference_interval"][0] > 0
    assert " beats the best baseline, ridge" in found["verdict"]


def test_two_records_without_skill_show_no_advantage():
    found = judge(network=noise(3), ridge=noise(4))
    low, high = found["sharpe_difference_interval"]
    assert low < found["sharpe_difference"] < high
    assert "shows no advantage" in found["verdict"]


def test_a_network_that_is_worse_is_called_worse():
    assert "is worse than" in judge(network=noise(5, -0.002), ridge=noise(6, 0.001))["verdict"]


def test_the_same_returns_add_nothing():
    found = judge(network=noise(7), ridge=noise(7))
    assert found["spa_p_value"] is None
    assert "adds nothing" in found["verdict"]


def test_pairing_removes_what_both_have_in_common():
    market = noise(8, 0.0005)
    paired = judge(network=market + 0.1 * noise(9, 0.002), ridge=market)
    apart = judge(network=market + 0.1 * noise(9, 0.002), ridge=noise(10, 0.0005))
    width = [np.diff(found["sharpe_difference_interval"])[0] for found in (paired, apart)]
    assert width[0] < 0.3 * width[1]


def test_a_flat_network_is_not_judged():
    found = judge(network=np.zeros(N), ridge=noise(1))
    assert found["probabilistic_sharpe_ratio"] is None
    assert "never gained or lost" in found["verdict"]


def test_one_trial_is_the_probabilistic_sharpe_ratio_and_more_trials_deflate():
    returns = noise(11, 0.0005)
    moments = metrics.sharpe_moments(returns)
    one = judgement.deflation(moments, 1, None)
    assert one["deflated_sharpe_ratio"] == metrics.probabilistic_sharpe_ratio(*moments)
    assert one["min_backtest_length_years"] == 0.0
    many = judgement.deflation(moments, 50, 1e-3)
    assert many["deflated_sharpe_ratio"] == metrics.deflated_sharpe_ratio(*moments, 50, 1e-3)
    assert many["deflated_sharpe_ratio"] < one["deflated_sharpe_ratio"]
    assert judgement.deflation(moments, 50, None)["deflated_sharpe_ratio"] is None  # not known, not guessed


def test_track_record_is_in_years():
    returns = noise(12, 0.001)
    sharpe, _, skew, kurtosis = metrics.sharpe_moments(returns)
    expected = metrics.min_track_record_length(sharpe, skew, kurtosis) / 252
    assert judge(network=returns)["min_track_record_length_years"] == pytest.approx(expected)


def test_a_result_takes_its_trials_from_a_ledger_later():
    ds = single_asset(n=220)
    result = walk_forward(
        ds, splitter=WalkForward(train_size=100, test_size=40), network=qfml.MLP(hidden=(4,)), trainer=FakeTrainer(),
        loss=qfml.MSE(), cost_bps=0.0, n_bootstrap=0, baselines=(),
    )  # fmt: skip
    later = result.with_trials(20, 0.002)
    net = result.pnl.filter(result.pnl["strategy"] == "network")["net"].to_numpy()
    assert result.moments == pytest.approx(metrics.sharpe_moments(net))
    expected = metrics.deflated_sharpe_ratio(*metrics.sharpe_moments(net), 20, 0.002)
    assert later.metrics["significance"]["deflated_sharpe_ratio"] == pytest.approx(expected)
    assert result.metrics["significance"]["n_trials"] == 1  # the first result is as it was
    assert "no baseline was run" in later.metrics["significance"]["verdict"]
    named = result.with_metrics(data={"label": "forward_return"}, config_hash="abc")
    assert named.metrics["data"]["label"] == "forward_return"
    assert named.metrics["data"]["n_samples"] == len(ds)


def test_performance_by_hand():
    decided = np.array([[1.0], [1.0], [-1.0], [0.0]])
    returns = np.array([[0.10], [-0.05], [0.02], [0.03]])
    found = judgement.performance(profit_and_loss(decided, returns, cost_bps=100.0, execution_lag=0), 4.0)
    # net: .10 - .01, -.05, -.02 - .02, 0 - .01
    assert found["hit_rate"] == pytest.approx(1 / 4)
    assert found["turnover"] == pytest.approx((1 + 0 + 2 + 1) / 4 * 4)
    assert found["exposure"] == pytest.approx(3 / 4)
    assert found["annualised_cost"] == pytest.approx(0.04)
    assert found["annualised_return"] == pytest.approx(1.09 * 0.95 * 0.96 * 0.99 - 1)
    assert found["max_drawdown"] == pytest.approx(1 - 0.95 * 0.96 * 0.99)


def test_a_loss_of_more_than_the_capital_leaves_growth_undefined():
    books = profit_and_loss(np.full((3, 1), 3.0), np.array([[0.1], [-0.5], [0.1]]), cost_bps=0.0, execution_lag=0)
    found = judgement.performance(books, 252.0)
    assert found["annualised_return"] is None
    assert found["max_drawdown"] is None
    assert found["sharpe_ratio"] is not None


def test_missing_predictions_are_left_out_and_counted():
    y, predicted = np.array([0.1, 0.2, 0.3]), np.array([0.1, np.nan, 0.4])
    found = judgement.prediction_metrics(y, predicted, "label")
    assert (found["n_obs"], found["n_missing"]) == (2, 1)
    assert found["mse"] == pytest.approx(0.01 / 2)
    assert judgement.prediction_metrics(y, np.full(3, np.nan), "label") == {"n_obs": 0, "n_missing": 3}


def test_calibration_bins_are_those_of_the_metric():
    rng = np.random.default_rng(0)
    p = rng.random(500)
    y = (rng.random(500) < p).astype(float)
    bins = judgement.calibration(y, p, "probability")["bins"]
    assert bins == [dataclasses.asdict(each) for each in metrics.reliability_bins(y, p)]
    assert judgement.calibration(y, p, "position")["bins"] == []
