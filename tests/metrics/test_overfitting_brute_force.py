"""CSCV by block sums against a loop over every combination, a peer library, and cases whose answer is known."""

import itertools
import math

import numpy as np
import purgedcv
import pytest
import scipy.stats

from qfml.errors import DataError
from qfml.metrics import cscv, overfitting, probability_of_backtest_overfitting

FIELDS = ("selected", "in_sample", "out_of_sample", "logits")


def brute_force(returns: np.ndarray, n_blocks: int) -> dict[str, list]:
    """Definition 2.1 word for word."""
    blocks = np.array_split(np.arange(len(returns)), n_blocks)
    result: dict[str, list] = {name: [] for name in FIELDS}
    for chosen in itertools.combinations(range(n_blocks), n_blocks // 2):
        inside = np.concatenate([blocks[b] for b in chosen])
        outside = np.concatenate([blocks[b] for b in range(n_blocks) if b not in chosen])
        a, b = (returns[rows].mean(axis=0) / returns[rows].std(axis=0, ddof=1) for rows in (inside, outside))
        best = int(np.argmax(a))
        w = scipy.stats.rankdata(b)[best] / (returns.shape[1] + 1)
        for name, value in zip(FIELDS, (best, a[best], b[best], math.log(w / (1 - w))), strict=True):
            result[name].append(value)
    return result


@pytest.mark.parametrize(
    ("n_periods", "n_configs", "n_blocks"),
    [(4, 2, 2), (60, 5, 4), (240, 10, 6), (241, 3, 8), (97, 12, 10), (23, 4, 10), (10, 3, 10)],
    ids=lambda value: str(value),
)
def test_every_combination_brute_force(n_periods, n_configs, n_blocks):
    """Uneven blocks included: no period is dropped."""
    returns = np.random.default_rng(n_periods).normal(0.05, 1, (n_periods, n_configs))
    result, expected = cscv(returns, n_blocks), brute_force(returns, n_blocks)
    for name in FIELDS:
        np.testing.assert_allclose(getattr(result, name), expected[name], rtol=1e-9, atol=1e-12, err_msg=name)
    assert result.pbo == np.mean(np.array(expected["logits"]) <= 0)
    assert result.probability_of_loss == np.mean(np.array(expected["out_of_sample"]) < 0)


def test_every_combination_purgedcv():
    """The peer lists the halves out of sample first, the other way round. An odd number of configurations makes a
    logit of exactly 0 possible, where the peer counts `< 0` and the paper `<= 0`."""
    returns = np.random.default_rng(1).normal(0, 1, (203, 7))
    result = cscv(returns, 8)
    peer = purgedcv.probability_of_backtest_overfitting(returns.T, n_splits=8)
    np.testing.assert_allclose(result.logits[::-1], peer.logits, atol=1e-12)
    np.testing.assert_allclose(result.in_sample[::-1], peer.is_oos_performance[:, 0], rtol=1e-10)
    assert (peer.logits == 0).any()
    assert result.pbo == peer.pbo + np.mean(peer.logits == 0)


def test_chunks_change_nothing(monkeypatch):
    returns = np.random.default_rng(2).normal(0, 1, (100, 6))
    whole = cscv(returns, 10)
    monkeypatch.setattr(overfitting, "_CHUNK_ELEMENTS", 100)
    chunked = cscv(returns, 10)
    for name in FIELDS:
        np.testing.assert_allclose(getattr(chunked, name), getattr(whole, name), rtol=1e-13)


def test_skill_is_never_overfit_and_reversal_always():
    """A configuration better throughout is chosen and stays best. Two that are good in one half of time each: whichever
    shone in sample fails out of sample."""
    noise = np.random.default_rng(4).normal(0, 1, (400, 20))
    skilled = noise.copy()
    skilled[:, 7] += 1.0
    assert probability_of_backtest_overfitting(skilled, 8) == 0.0
    reversal = np.sign(np.arange(400) - 199.5)[:, None] * np.array([1.0, -1.0]) + 0.1 * noise[:, :2]
    assert probability_of_backtest_overfitting(reversal, 2) == 1.0


def test_noise_averages_one_half():
    """Mean PBO of pure noise over 60 data sets of 20 configurations; about 11/21 below, four standard errors around."""
    values = [
        probability_of_backtest_overfitting(np.random.default_rng(seed).normal(0, 1, (240, 20)), 6)
        for seed in range(60)
    ]
    assert np.mean(values) == pytest.approx(0.5, abs=4 * np.std(values) / math.sqrt(60) + 0.03)


def test_copies_tie_exactly():
    """Copies of one configuration share their average rank, whatever rounding does: all alike, all at the median."""
    one = np.random.default_rng(5).normal(0, 1, (120, 1))
    result = cscv(np.repeat(one, 7, axis=1), 6)
    assert np.all(result.logits == 0.0)
    assert np.all(result.selected == 0)
    assert result.pbo == 1.0


def test_leverage_and_order_change_nothing():
    returns = np.random.default_rng(6).normal(0.02, 1, (123, 9))
    order = np.random.default_rng(7).permutation(9)
    scaled = returns * 2.0 ** np.arange(9)  # powers of two: exact
    expected = cscv(returns, 6)
    np.testing.assert_allclose(cscv(scaled, 6).logits, expected.logits)
    permuted = cscv(returns[:, order], 6)
    np.testing.assert_allclose(permuted.logits, expected.logits)
    np.testing.assert_array_equal(order[permuted.selected], expected.selected)


def test_a_large_mean_does_not_cancel():
    """Returns of 1e6 plus noise of 1: sums of squares would lose the variance without centring."""
    returns = 1e6 + np.random.default_rng(8).normal(0, 1, (60, 4))
    np.testing.assert_allclose(cscv(returns, 6).in_sample, brute_force(returns, 6)["in_sample"], rtol=1e-8)


def test_no_position_in_a_half_is_a_sharpe_of_zero():
    """Configuration 0 trades in the last block only. In halves without that block its Sharpe ratio is 0, ahead of
    configuration 1, which always loses."""
    rng = np.random.default_rng(9)
    returns = np.zeros((80, 2))
    returns[60:, 0] = rng.normal(-1, 1, 20)
    returns[:, 1] = rng.normal(-3, 1, 80)
    result = cscv(returns, 4)
    without_last = [3 not in chosen for chosen in itertools.combinations(range(4), 2)]
    assert np.all(result.in_sample[without_last] == 0.0)
    assert np.all(result.out_of_sample[~np.array(without_last)] == 0.0)
    assert np.all(result.selected == 0)


def test_a_riskless_half_is_refused():
    returns = np.random.default_rng(10).normal(0, 1, (80, 3))
    returns[:40, 1] = 0.001
    with pytest.raises(DataError, match=r"column 1 of `returns` is constant at 0\.001"):
        cscv(returns, 4)
    returns[:20, 1] = 0.002  # two constants are a half with a variance
    assert np.isfinite(cscv(returns, 4).in_sample).all()


@pytest.mark.parametrize(
    ("shape", "n_blocks", "message"),
    [
        ((100, 1), 4, "at least 2 configurations"),
        ((100, 3), 5, "`n_blocks` must be even"),
        ((100, 3), 0, "`n_blocks` must be even"),
        ((100, 3), 26, "between 2 and 24"),
        ((7, 3), 8, "has 7 periods"),
        ((3, 3), 2, "has 3 periods"),
    ],
)
def test_bad_shapes_are_named(shape, n_blocks, message):
    with pytest.raises(DataError, match=message):
        cscv(np.random.default_rng(0).normal(0, 1, shape), n_blocks)


def test_holes_are_named():
    returns = np.random.default_rng(0).normal(0, 1, (20, 3))
    returns[4, 1] = math.nan
    with pytest.raises(DataError, match="1 rows that are not finite, the first at position 4"):
        probability_of_backtest_overfitting(returns, 4)
