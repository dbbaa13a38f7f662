"""Standard errors and probabilities of Sharpe ratios against simulation of returns with skew and fat tails."""

import numpy as np
import pytest

from qfml import metrics

TRUE_SHARPE, N_OBS, N_PATHS = 0.3, 500, 5_000


def moments_of(returns: np.ndarray) -> list[metrics.SharpeMoments]:
    """`sharpe_moments` of each row, all rows at once."""
    centred = returns - returns.mean(axis=1, keepdims=True)
    variance = (centred**2).mean(axis=1)
    skew = (centred**3).mean(axis=1) / variance**1.5
    kurtosis = (centred**4).mean(axis=1) / variance**2
    sharpe = returns.mean(axis=1) / returns.std(axis=1, ddof=1)
    rows = zip(sharpe.tolist(), skew.tolist(), kurtosis.tolist(), strict=True)
    return [metrics.SharpeMoments(s, returns.shape[1], g, k) for s, g, k in rows]


@pytest.fixture(scope="module")
def simulated() -> list[metrics.SharpeMoments]:
    """Returns 1 - Exp(1) + .3: standard deviation 1, skewness -2, raw kurtosis 9, Sharpe ratio .3 per period."""
    noise = 1.0 - np.random.default_rng(8).exponential(size=(N_PATHS, N_OBS))
    return moments_of(noise + TRUE_SHARPE)


def test_rows_are_the_library_moments(simulated):
    noise = 1.0 - np.random.default_rng(8).exponential(size=(N_PATHS, N_OBS))
    for row in (0, 77):
        assert simulated[row] == pytest.approx(metrics.sharpe_moments(noise[row] + TRUE_SHARPE), rel=1e-10)


def test_std_error_simulated(simulated):
    """The spread over 5,000 paths has a relative standard error of about 1 %; 4 % leaves room for order 1/n.

    The normal formula would be 23 % too small here, and skewness of the wrong sign 35 %.
    """
    spread = np.std([m.sharpe for m in simulated])
    assert metrics.sharpe_std_error(TRUE_SHARPE, N_OBS, skew=-2.0, kurtosis=9.0) == pytest.approx(spread, rel=0.04)


@pytest.mark.parametrize("confidence", [0.1, 0.5, 0.9, 0.95])
def test_probabilistic_sharpe_is_calibrated(simulated, confidence):
    """Against the true Sharpe ratio the probability is uniform: it stays below any level that often.

    Four binomial standard errors (3 %) and 2 % for the expansion at 500 observations.
    """
    probabilities = np.array([metrics.probabilistic_sharpe_ratio(*m, benchmark=TRUE_SHARPE) for m in simulated])
    allowed = 4 * np.sqrt(confidence * (1 - confidence) / N_PATHS) + 0.02
    assert np.mean(probabilities < confidence) == pytest.approx(confidence, abs=allowed)


def test_deflated_sharpe_of_the_best_of_many_without_skill():
    """50 strategies without skill, the best selected: its probabilistic Sharpe is nearly always high, the deflated one
    centres on one half."""
    probabilistic, deflated = [], []
    rng = np.random.default_rng(3)
    for _ in range(200):
        trials = moments_of(rng.normal(size=(50, 250)))
        best = max(trials, key=lambda m: m.sharpe)
        variance = float(np.var([m.sharpe for m in trials], ddof=1))
        probabilistic.append(metrics.probabilistic_sharpe_ratio(*best))
        deflated.append(metrics.deflated_sharpe_ratio(*best, n_trials=50, trial_variance=variance))
    assert np.median(probabilistic) > 0.97
    assert np.median(deflated) == pytest.approx(0.5, abs=0.1)
    assert np.mean(np.array(deflated) > 0.95) < 0.05
