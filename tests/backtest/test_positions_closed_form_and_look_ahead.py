"""Position rules: values by hand, limits on capital, and blindness to the future."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import norm

from qfml.backtest.positions import (
    POSITIONS,
    bet_size,
    quantile_long_short,
    sign_positions,
    tanh_positions,
    vol_target,
)
from qfml.backtest.volatility import trailing_volatility
from qfml.config import build_kind, to_dict
from qfml.errors import ConfigError, UserError

SETTINGS = {"tanh": {"scale": 0.5}, "vol_target": {"window": 3, "target": 0.2, "max_leverage": 1.5}}


def rule_of(kind):
    return build_kind(POSITIONS, {"kind": kind} | SETTINGS.get(kind, {}))


@st.composite
def panels(draw, min_assets=2):
    shape = (draw(st.integers(2, 12)), draw(st.integers(min_assets, 6)))
    score = draw(arrays(float, shape, elements=st.sampled_from([0.0, 0.1, 0.35, 0.5, 0.8, 1.0])))
    score = np.where(draw(arrays(bool, shape)), score, np.nan)
    returns = draw(arrays(float, shape, elements=st.floats(-0.1, 0.1)))
    return score, np.where(draw(arrays(bool, shape)), returns, np.nan)


@pytest.mark.parametrize("kind", POSITIONS)
@settings(max_examples=25)
@given(panels(), st.integers(0, 11), st.randoms())
def test_the_future_changes_no_position(kind, panel, t, random):
    score, returns = panel
    t = min(t, len(score) - 1)
    rule = rule_of(kind)
    before = rule.decide(score, returns, periods_per_year=252.0)
    later_score, later_returns = score.copy(), returns.copy()
    later_score[t + 1 :] = random.random()
    later_returns[t:] = random.uniform(-0.1, 0.1)  # the return of row t itself is earned after the decision at t
    after = rule.decide(later_score, later_returns, periods_per_year=252.0)
    np.testing.assert_array_equal(before[: t + 1], after[: t + 1])


@pytest.mark.parametrize("kind", POSITIONS)
@settings(max_examples=25)
@given(panels())
def test_no_prediction_is_no_position_and_capital_is_bounded(kind, panel):
    score, returns = panel
    held = rule_of(kind).decide(score, returns, periods_per_year=252.0)
    assert np.isfinite(held).all()
    assert (held[np.isnan(score)] == 0.0).all()
    limit = {"vol_target": 1.5, "predicted_vol_target": 2.0}.get(kind, 1.0)
    assert (np.abs(held).sum(axis=1) <= limit + 1e-12).all()


@pytest.mark.parametrize("kind", POSITIONS)
@settings(max_examples=15)
@given(panels(), st.randoms())
def test_the_order_of_the_assets_does_not_matter(kind, panel, random):
    score, returns = panel
    order = list(range(score.shape[1]))
    random.shuffle(order)
    rule = rule_of(kind)
    straight = rule.decide(score, returns, periods_per_year=252.0)
    shuffled = rule.decide(score[:, order], returns[:, order], periods_per_year=252.0)
    np.testing.assert_allclose(shuffled, straight[:, order], rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", POSITIONS)
def test_every_rule_reads_back_from_its_settings(kind):
    rule = rule_of(kind)
    assert build_kind(POSITIONS, to_dict(rule)) == rule
    assert rule.reads in ("score", "probability", "position", "volatility")


def test_sign_shares_capital_among_the_assets_present():
    held = sign_positions(np.array([[2.0, -3.0, 0.0, np.nan], [np.nan, np.nan, np.nan, 4.0], [np.nan] * 4]))
    np.testing.assert_allclose(held, [[1 / 3, -1 / 3, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]])


def test_tanh_is_tanh():
    np.testing.assert_allclose(tanh_positions(np.array([[0.2], [-0.4]]), scale=0.4), np.tanh([[0.5], [-1.0]]))


def test_vol_target_reaches_the_target_when_the_volatility_is_right():
    rng = np.random.default_rng(0)
    returns = rng.normal(0, 0.01, (20_000, 1))
    volatility = trailing_volatility(returns, window=250)
    held = vol_target(np.ones_like(returns), volatility, target=0.12, max_leverage=9.0, periods_per_year=252)
    pnl = (held * returns)[250:]
    assert (held[:250] == 0).all()
    assert pnl.std() * np.sqrt(252) == pytest.approx(0.12, rel=0.03)  # 4 standard errors of a volatility: 2 %


def test_vol_target_is_capped_and_flat_on_a_volatility_that_says_nothing():
    volatility = np.array([[1e-9, 0.0, np.nan, 0.1]])
    held = vol_target(-np.ones((1, 4)), volatility, target=0.1, max_leverage=3.0, periods_per_year=100)
    np.testing.assert_allclose(held, [[-0.75, 0.0, 0.0, -0.025]])


def test_a_predicted_volatility_sizes_a_long_position():
    rule = build_kind(POSITIONS, {"kind": "predicted_vol_target", "target": 0.1, "max_leverage": 2})
    held = rule.decide(np.array([[0.2, 0.4, -0.1, np.nan]]), np.full((1, 4), np.nan), periods_per_year=252.0)
    assert rule.reads == "volatility"
    np.testing.assert_allclose(held, [[0.5 / 3, 0.25 / 3, 0.0, 0.0]])


def test_direct_positions_are_the_predictions_and_bounded():
    rule = build_kind(POSITIONS, "direct")
    held = rule.decide(np.array([[0.5, -1.0, np.nan]]), np.zeros((1, 3)), periods_per_year=252.0)
    np.testing.assert_allclose(held, [[0.25, -0.5, 0.0]])
    with pytest.raises(UserError, match=r"got 1\.5"):
        rule.decide(np.array([[1.5]]), np.zeros((1, 1)), periods_per_year=252.0)


@pytest.mark.parametrize("kind", POSITIONS)
@settings(max_examples=15)
@given(panels())
def test_a_scale_free_rule_ignores_the_size_of_predictions(kind, panel):
    score, returns = panel
    rule = rule_of(kind)
    small = rule.decide(score / 8, returns, periods_per_year=252.0)
    if rule.scale_free:
        np.testing.assert_array_equal(rule.decide(score, returns, periods_per_year=252.0), small)


def test_trailing_volatility_equals_a_loop_over_known_returns():
    rng = np.random.default_rng(1)
    returns = np.where(rng.random((60, 3)) < 0.3, np.nan, rng.normal(0, 0.02, (60, 3)))
    volatility = trailing_volatility(returns, window=7, min_periods=3)
    for t in range(60):
        for asset in range(3):
            past = [r for r in returns[:t, asset] if not np.isnan(r)][-7:]
            expected = np.sqrt(np.mean(np.square(past))) if len(past) >= 3 else np.nan
            np.testing.assert_allclose(volatility[t, asset], expected, rtol=1e-12)


@settings(max_examples=50)
@given(panels(), st.sampled_from([0.1, 0.2, 0.3, 1 / 3, 0.5]))
def test_long_short_is_the_mean_over_all_orders_of_ties(panel, quantile):
    score, _ = panel
    held = quantile_long_short(score, quantile=quantile)
    np.testing.assert_allclose(held.sum(axis=1), 0.0, atol=1e-12)
    rng = np.random.default_rng(0)
    for row, weights in zip(score, held):
        present = np.flatnonzero(~np.isnan(row))
        if len(present) < 2:
            assert (weights == 0).all()
            continue
        k = max(1, int(quantile * len(present) + 1e-9))
        low, high = np.sort(row[present])[k - 1], np.sort(row[present])[-k]
        assert np.abs(weights).sum() <= 1.0 + 1e-12
        assert (weights[present[row[present] > max(low, high)]] == pytest.approx(0.5 / k)) or k == 0
        draws = np.zeros(len(row))
        for _ in range(200):  # each random order of the ties gives one admissible portfolio
            order = present[np.lexsort((rng.random(len(present)), row[present]))]
            draws[order[-k:]] += 0.5 / k / 200
            order = present[np.lexsort((rng.random(len(present)), row[present]))]
            draws[order[:k]] -= 0.5 / k / 200
        np.testing.assert_allclose(weights, draws, atol=5 * 0.5 / k / np.sqrt(200))


def test_long_short_without_ties_by_hand():
    held = quantile_long_short(np.array([[0.5, 0.1, 0.4, 0.2, 0.3, np.nan]]), quantile=0.4)
    np.testing.assert_allclose(held, [[0.25, -0.25, 0.25, -0.25, 0.0, 0.0]])


def test_long_short_needs_a_panel():
    with pytest.raises(UserError, match="there is only one"):
        quantile_long_short(np.ones((5, 1)), quantile=0.2)


@given(st.floats(0.0, 1.0))
def test_bet_size_is_odd_and_follows_the_book(p):
    size = bet_size(np.array([[p]]))[0, 0]
    assert -1.0 <= size <= 1.0
    assert bet_size(np.array([[1.0 - p]]))[0, 0] == pytest.approx(-size, abs=1e-9)
    if 0.0 < p < 1.0:  # Lopez de Prado (2018), snippet 10.1: side times 2 N(z) - 1 of the probability of that side
        side, q = (1.0, p) if p >= 0.5 else (-1.0, 1.0 - p)
        if q < 1.0:
            z = (q - 0.5) / (q * (1 - q)) ** 0.5
            assert size == pytest.approx(side * (2 * norm.cdf(z) - 1), abs=1e-9)


def test_bet_size_rounds_to_its_step():
    held = bet_size(np.array([[0.9], [0.1], [0.52], [np.nan]]), step=0.25)
    np.testing.assert_allclose(held[:, 0], [0.75, -0.75, 0.0, 0.0])


def test_bet_size_refuses_what_is_not_a_probability():
    with pytest.raises(UserError, match=r"probabilities in \[0, 1\], got -0.3"):
        bet_size(np.array([[0.2, -0.3]]))


@pytest.mark.parametrize(
    "settings_",
    [
        {"kind": "tanh", "scale": 0.0},
        {"kind": "tanh"},
        {"kind": "vol_target", "target": -1.0},
        {"kind": "vol_target", "window": 1},
        {"kind": "predicted_vol_target", "target": 0},
        {"kind": "quantile_long_short", "quantile": 0.6},
        {"kind": "bet_size", "step": 2.0},
        {"kind": "sgn"},
    ],
)
def test_wrong_settings_are_refused(settings_):
    with pytest.raises(ConfigError):
        build_kind(POSITIONS, settings_)
