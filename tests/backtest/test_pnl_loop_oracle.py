"""The books of `profit_and_loss` against a loop that trades one asset and one period at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qfml.backtest.pnl import profit_and_loss
from qfml.errors import DataError, UserError


@st.composite
def markets(draw, missing=True):
    """Decided positions, returns (some unknown) and volatilities of a small random market."""
    shape = (draw(st.integers(1, 12)), draw(st.integers(1, 4)))
    decided = draw(arrays(float, shape, elements=st.sampled_from([-1.0, -0.25, 0.0, 0.5, 1.0])))
    returns = draw(arrays(float, shape, elements=st.floats(-0.2, 0.2)))
    if missing:
        returns = np.where(draw(arrays(bool, shape)), np.nan, returns)
    volatility = draw(arrays(float, shape, elements=st.floats(0.0, 0.05)))
    return decided, returns, volatility


def book_by_loop(decided, returns, volatility, cost_bps, slippage, lag):
    """Every asset on its own: look up the order given `lag` rows ago, trade to it, pay, earn."""
    gross, cost, held, not_held = (np.zeros(returns.shape) for _ in range(4))
    for asset in range(returns.shape[1]):
        position = 0.0
        for t in range(len(returns)):
            order = decided[t - lag, asset] if t >= lag else 0.0
            if np.isnan(returns[t, asset]):
                not_held[t, asset] = order != 0.0
                order = 0.0
            amount = abs(order - position)
            cost[t, asset] = amount * cost_bps / 10_000 + amount * slippage * volatility[t, asset]
            position = order
            held[t, asset] = position
            if position != 0.0:
                gross[t, asset] = position * returns[t, asset]
    return held, gross, cost, int(not_held.sum())


@settings(max_examples=100)
@given(markets(), st.integers(0, 14), st.floats(0.0, 50.0), st.floats(0.0, 2.0))
def test_books_equal_the_loop(market, lag, cost_bps, slippage):
    decided, returns, volatility = market
    books = profit_and_loss(
        decided, returns, cost_bps=cost_bps, slippage=slippage, volatility=volatility, execution_lag=lag
    )
    held, gross, cost, n_not_held = book_by_loop(decided, returns, volatility, cost_bps, slippage, lag)
    np.testing.assert_array_equal(books.held, held)
    np.testing.assert_array_equal(books.gross, gross)
    np.testing.assert_allclose(books.cost, cost, rtol=1e-12, atol=1e-18)  # a sum of products in another order
    assert books.n_not_held == n_not_held
    np.testing.assert_allclose(books.total, (gross - cost).sum(axis=1), rtol=0, atol=1e-15)
    np.testing.assert_allclose(books.exposure, np.abs(held).sum(axis=1))


@settings(max_examples=40)
@given(markets(), st.integers(0, 3))
def test_assets_add_up(market, lag):
    decided, returns, volatility = market
    whole = profit_and_loss(decided, returns, cost_bps=5.0, slippage=0.3, volatility=volatility, execution_lag=lag)
    alone = [
        profit_and_loss(
            decided[:, [i]],
            returns[:, [i]],
            cost_bps=5.0,
            slippage=0.3,
            volatility=volatility[:, [i]],
            execution_lag=lag,
        ).total
        for i in range(decided.shape[1])
    ]
    np.testing.assert_allclose(whole.total, np.sum(alone, axis=0), rtol=0, atol=1e-15)


@settings(max_examples=40)
@given(markets(), st.integers(0, 4), st.integers(0, 11), st.randoms())
def test_nothing_is_earned_before_the_order_is_filled(market, lag, t, random):
    decided, returns, volatility = market
    t = min(t, len(decided) - 1)
    changed = decided.copy()
    changed[t:] = [[random.uniform(-1, 1) for _ in row] for row in decided[t:]]
    later = returns.copy()
    later[t + lag :] = np.where(np.isnan(later[t + lag :]), 0.1, later[t + lag :] - 0.05)
    settings_ = {"cost_bps": 7.0, "slippage": 0.2, "volatility": volatility, "execution_lag": lag}
    before = slice(0, t + lag)
    first = profit_and_loss(decided, returns, **settings_)
    second = profit_and_loss(changed, later, **settings_)
    np.testing.assert_array_equal(first.net[before], second.net[before])
    np.testing.assert_array_equal(first.held[before], second.held[before])


@settings(max_examples=40)
@given(markets(missing=False))
def test_free_and_instant_trading_of_forward_returns_earns_position_times_label(market):
    decided, label, _ = market
    books = profit_and_loss(decided, label, cost_bps=0.0, execution_lag=0)
    np.testing.assert_array_equal(books.net, decided * label)


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_a_round_trip_costs_twice_the_rate(lag):
    decided = np.zeros((10, 1))
    decided[2:5] = 0.8
    books = profit_and_loss(decided, np.zeros((10, 1)), cost_bps=12.5, execution_lag=lag)
    assert books.total.sum() == pytest.approx(-2 * 0.8 * 12.5e-4)
    assert books.turnover.sum() == pytest.approx(1.6)
    assert np.flatnonzero(books.cost[:, 0]).tolist() == [2 + lag, 5 + lag]


def test_turning_from_long_to_short_trades_twice_the_position():
    decided = np.array([[1.0], [-1.0], [-1.0]])
    books = profit_and_loss(decided, np.zeros((3, 1)), cost_bps=10.0, execution_lag=0)
    np.testing.assert_allclose(books.cost[:, 0], [1e-3, 2e-3, 0.0])


def test_a_position_is_closed_over_an_unknown_return_and_taken_again():
    decided = np.ones((5, 1))
    returns = np.array([[0.01], [0.01], [np.nan], [0.01], [0.01]])
    books = profit_and_loss(decided, returns, cost_bps=100.0)
    np.testing.assert_array_equal(books.held[:, 0], [0, 1, 0, 1, 1])
    np.testing.assert_allclose(books.cost[:, 0], [0, 0.01, 0.01, 0.01, 0])
    assert books.n_not_held == 1
    assert np.isfinite(books.total).all()


def test_doubling_every_position_doubles_gross_and_cost():
    rng = np.random.default_rng(3)
    decided, returns = rng.normal(size=(50, 3)), rng.normal(0, 0.01, (50, 3))
    once = profit_and_loss(decided, returns, cost_bps=4.0)
    twice = profit_and_loss(2 * decided, returns, cost_bps=4.0)
    np.testing.assert_allclose(twice.net, 2 * once.net, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"execution_lag": -1}, "execution_lag"),
        ({"execution_lag": True}, "execution_lag"),
        ({"cost_bps": -1.0}, "cost_bps"),
        ({"cost_bps": np.nan}, "cost_bps"),
        ({"slippage": 0.1}, "pass `volatility`"),
        ({"returns": np.zeros((4, 1))}, "same shape"),
        ({"returns": np.full((3, 1), np.inf)}, "infinite"),
        ({"decided": np.array([[0.0], [np.nan], [0.0]])}, "finite, got nan at row 1, asset 0"),
    ],
)
def test_bad_input_is_refused_by_name(change, message):
    arguments = {"decided": np.zeros((3, 1)), "returns": np.zeros((3, 1)), "cost_bps": 1.0} | change
    with pytest.raises(UserError, match=message):
        profit_and_loss(arguments.pop("decided"), arguments.pop("returns"), **arguments)


def test_cost_must_be_stated():
    with pytest.raises(TypeError, match="cost_bps"):
        profit_and_loss(np.zeros((3, 1)), np.zeros((3, 1)))  # pyright: ignore[reportCallIssue]


def test_slippage_without_a_known_volatility_at_a_trade_is_refused():
    decided = np.ones((3, 1))
    volatility = np.array([[np.nan], [np.nan], [0.01]])
    with pytest.raises(DataError, match=r"1 trades have none .first: row 1, asset 0"):
        profit_and_loss(decided, np.zeros((3, 1)), cost_bps=0.0, slippage=0.5, volatility=volatility)
