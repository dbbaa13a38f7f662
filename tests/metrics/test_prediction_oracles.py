"""Prediction metrics against plain counting, scipy and scikit-learn, and nan where a sample does not define them."""

import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from qfml import metrics
from qfml.errors import DataError

RNG = np.random.default_rng(11)
TRUE = RNG.normal(size=200)
PREDICTED = 0.3 * TRUE + RNG.normal(size=200)
SIGN, GUESS = np.sign(TRUE), np.sign(PREDICTED)
PROBABILITY = scipy.stats.norm.cdf(PREDICTED)


def test_errors_by_hand():
    difference = [t - p for t, p in zip(TRUE, PREDICTED, strict=True)]
    assert metrics.mse(TRUE, PREDICTED) == pytest.approx(sum(d * d for d in difference) / 200, rel=1e-13)
    assert metrics.mae(TRUE, PREDICTED) == pytest.approx(sum(abs(d) for d in difference) / 200, rel=1e-13)
    explained = 1 - sum(d * d for d in difference) / sum((t - TRUE.mean()) ** 2 for t in TRUE)
    assert metrics.r2(TRUE, PREDICTED) == pytest.approx(explained, rel=1e-12)


def test_classification_by_counting():
    hits = sum(t == g for t, g in zip(SIGN, GUESS, strict=True))
    both = sum(t == 1 and g == 1 for t, g in zip(SIGN, GUESS, strict=True))
    assert metrics.accuracy(SIGN, GUESS) == pytest.approx(hits / 200)
    assert metrics.precision(SIGN, GUESS) == pytest.approx(both / sum(GUESS == 1))
    assert metrics.recall(SIGN, GUESS) == pytest.approx(both / sum(SIGN == 1))
    precision, recall = metrics.precision(SIGN, GUESS), metrics.recall(SIGN, GUESS)
    assert metrics.f1(SIGN, GUESS) == pytest.approx(2 * precision * recall / (precision + recall))


def test_the_positive_class_can_be_chosen():
    down = metrics.precision(SIGN, GUESS, positive=-1)
    assert down == pytest.approx(sum((SIGN == -1) & (GUESS == -1)) / sum(GUESS == -1))
    assert metrics.roc_auc(SIGN, -PREDICTED, positive=-1) == pytest.approx(metrics.roc_auc(SIGN, PREDICTED))


def test_roc_auc_pairs_with_ties():
    score = np.round(PREDICTED, 1)
    pairs = [(a > b) + 0.5 * (a == b) for a in score[SIGN == 1] for b in score[SIGN == -1]]
    assert metrics.roc_auc(SIGN, score) == pytest.approx(sum(pairs) / len(pairs), rel=1e-12)


def test_brier_scikit_learn_and_classes_of_any_name():
    expected = sklearn.metrics.brier_score_loss(SIGN == 1, PROBABILITY)
    assert metrics.brier(SIGN, PROBABILITY) == pytest.approx(expected, rel=1e-13)
    assert metrics.brier((SIGN + 1) / 2, PROBABILITY) == pytest.approx(expected, rel=1e-13)


def test_confusion_matrix_rows_are_observed():
    table = metrics.confusion_matrix([0, 0, 0, 1, 2], [0, 1, 1, 1, 0])
    assert table.tolist() == [[1, 2, 0], [0, 1, 0], [1, 0, 0]]
    assert metrics.confusion_matrix([0, 1], [0, 1], classes=[1, 0, 2]).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    with pytest.raises(DataError, match=r"leaves out \[2.0\]"):
        metrics.confusion_matrix([0, 2], [0, 1], classes=[0, 1])


@pytest.mark.parametrize("decimals", [1, 8], ids=["ties", "no ties"])
def test_rank_ic_scipy(decimals):
    y_true, y_pred = TRUE.round(decimals), PREDICTED.round(decimals)
    expected = scipy.stats.spearmanr(y_true, y_pred).statistic
    assert metrics.rank_ic(y_true, y_pred) == pytest.approx(expected, rel=1e-12)


def test_cross_sectional_rank_ic_scipy_per_time():
    """Ragged cross-sections with ties in shuffled rows, against one call of scipy for each time."""
    time = RNG.permutation(np.repeat(np.arange(40), np.tile([2, 5, 3, 10], 10)))
    y_true, y_pred = TRUE.round(1), PREDICTED.round(1)
    time = time.astype("datetime64[D]").astype("datetime64[ns]")
    result = metrics.cross_sectional_rank_ic(y_true, y_pred, time)
    expected = []
    for t in np.unique(time):
        a, b = y_true[time == t], y_pred[time == t]
        defined = np.ptp(a) > 0 and np.ptp(b) > 0
        expected.append(scipy.stats.spearmanr(a, b).statistic if defined else math.nan)
    np.testing.assert_array_equal(result.time, np.unique(time))
    np.testing.assert_allclose(result.values, expected, atol=1e-12)
    assert result.mean == pytest.approx(np.nanmean(expected), abs=1e-12)
    assert result.std_error == pytest.approx(scipy.stats.sem(expected, nan_policy="omit"), rel=1e-10)
    assert result.n_undefined == np.isnan(expected).sum()


def test_pooled_and_cross_sectional_ic_part_ways():
    """Predictions right on the level of each day and wrong within each day: +IC pooled, -1 across assets."""
    time = np.repeat(np.arange(30), 3)
    y_true = 10.0 * time + np.tile([0, 1, 2], 30)
    y_pred = 10.0 * time - np.tile([0, 1, 2], 30)
    assert metrics.rank_ic(y_true, y_pred) > 0.9
    assert metrics.cross_sectional_rank_ic(y_true, y_pred, time).mean == pytest.approx(-1)


def test_what_a_sample_does_not_define_is_nan():
    zeros, ones = np.zeros(5), np.ones(5)
    for value in (
        metrics.r2(ones, np.arange(5)),
        metrics.r2([1.0], [1.0]),
        metrics.rank_ic(ones, np.arange(5)),
        metrics.precision(ones, zeros),
        metrics.recall(zeros, ones),
        metrics.f1(zeros, zeros),
        metrics.roc_auc(ones, np.arange(5)),
        metrics.cross_sectional_rank_ic(np.arange(5), np.arange(5), np.arange(5)).mean,
    ):
        assert math.isnan(value)
    assert metrics.recall(ones, zeros) == 0.0  # defined: there were positives and none was found
    assert metrics.f1(ones, zeros) == 0.0


@pytest.mark.parametrize(
    "metric",
    [
        metrics.mse,
        metrics.mae,
        metrics.r2,
        metrics.rank_ic,
        metrics.accuracy,
        metrics.precision,
        metrics.recall,
        metrics.f1,
        metrics.roc_auc,
        metrics.brier,
        metrics.confusion_matrix,
        metrics.reliability_bins,
        metrics.reliability_bins_regression,
        metrics.expected_calibration_error,
    ],
)
def test_bad_input_is_named(metric):
    with pytest.raises(DataError, match="empty"):
        metric([], [])
    with pytest.raises(DataError, match="`y_true` has 1 rows that are not finite"):
        metric([math.nan, 1.0], [0.0, 1.0])
    with pytest.raises(DataError, match="one length, got 3 and 2"):
        metric([0.0, 1.0, 0.0], [0.0, 1.0])


def test_logits_are_not_probabilities():
    with pytest.raises(DataError, match="not logits"):
        metrics.brier([0, 1], [0.5, 1.5])
    with pytest.raises(DataError, match="`time` must have the shape"):
        metrics.cross_sectional_rank_ic([0, 1], [0, 1], [0])
