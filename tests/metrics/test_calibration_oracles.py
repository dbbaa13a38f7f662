"""Reliability bins against scikit-learn's curve, plain loops and forecasters whose calibration is known."""

import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from qfml.errors import DataError
from qfml.metrics import expected_calibration_error, reliability_bins, reliability_bins_regression

RNG = np.random.default_rng(5)
PROBABILITY = RNG.uniform(size=5000).round(2)  # many values on the edges of the bins
HAPPENED = (RNG.uniform(size=5000) < PROBABILITY**2).astype(float)


@pytest.mark.parametrize("n_bins", [1, 4, 10])
def test_bins_scikit_learn(n_bins):
    observed, predicted = calibration_curve(HAPPENED, PROBABILITY, n_bins=n_bins)
    bins = reliability_bins(HAPPENED, PROBABILITY, n_bins)
    np.testing.assert_allclose([b.observed for b in bins], observed, rtol=1e-12)
    np.testing.assert_allclose([b.predicted for b in bins], predicted, rtol=1e-12)
    assert sum(b.count for b in bins) == len(HAPPENED)


def test_expected_calibration_error_loop():
    total = 0.0
    for k in range(10):
        inside = [i for i, p in enumerate(PROBABILITY) if k / 10 < p <= (k + 1) / 10 or (k == 0 and p == 0)]
        gap = sum(HAPPENED[i] for i in inside) - sum(PROBABILITY[i] for i in inside)
        total += abs(gap) / len(HAPPENED)
    assert expected_calibration_error(HAPPENED, PROBABILITY) == pytest.approx(total, rel=1e-9)


def test_known_forecasters():
    """p^2 forecast as p: the error is the mean of p - p^2, 1/6. An honest one has the bias stated: about 1 %."""
    assert expected_calibration_error(HAPPENED, PROBABILITY) == pytest.approx(1 / 6, abs=0.02)  # 4 / sqrt(5000) * .36
    honest = expected_calibration_error(HAPPENED, PROBABILITY**2)
    assert honest < 0.02
    assert expected_calibration_error([0, 1], [0.0, 1.0]) == 0.0


def test_standard_errors_cover_an_honest_forecaster():
    """Observed minus predicted in standard errors: of 20 bins some 1 lies beyond 2, none beyond 4."""
    bins = reliability_bins(HAPPENED, PROBABILITY**2, n_bins=20)
    scores = [abs(b.observed - b.predicted) / b.std_error for b in bins if b.std_error > 0]
    assert max(scores) < 4
    assert np.mean(np.array(scores) > 2) < 0.25


def test_regression_bins_hold_equally_many_and_a_line():
    x = RNG.normal(size=1003)
    bins = reliability_bins_regression(2.0 * x + 1.0, x, n_bins=10)
    assert sum(b.count for b in bins) == 1003
    assert {b.count for b in bins} <= {100, 101}
    for b in bins:
        assert b.observed == pytest.approx(2.0 * b.predicted + 1.0, abs=1e-12)


def test_regression_bins_loop_oracle():
    x = RNG.normal(size=97)
    y = RNG.normal(size=97)
    order = sorted(range(97), key=lambda i: x[i])
    chunks = [[i for position, i in enumerate(order) if position * 5 // 97 == k] for k in range(5)]
    for b, rows in zip(reliability_bins_regression(y, x, n_bins=5), chunks, strict=True):
        assert b.count == len(rows)
        assert b.observed == pytest.approx(np.mean([y[i] for i in rows]))
        assert b.std_error == pytest.approx(np.std([y[i] for i in rows], ddof=1) / math.sqrt(len(rows)))


def test_equal_predictions_share_a_bin():
    bins = reliability_bins_regression([1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 1], n_bins=3)
    assert [(b.predicted, b.observed, b.count) for b in bins] == [(0, 3, 5), (1, 6, 1)]
    assert math.isnan(bins[1].std_error)


def test_bad_bins_are_named():
    with pytest.raises(DataError, match="`n_bins` must be at least 1, got 0"):
        reliability_bins(HAPPENED, PROBABILITY, n_bins=0)
    with pytest.raises(DataError, match="not logits"):
        reliability_bins([0, 1], [-3.0, 0.2])
