"""Paths from blocks of real returns: moments by the exact chain, blocks that go on, addresses, and bad series."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

import pricers as pr
from qfml.config import build, to_dict
from qfml.data.sources import ArchSource, FrameSource
from qfml.errors import ConfigError, DataError
from qfml.hedging.book import Book
from qfml.hedging.bootstrapped_returns import BootstrappedReturns, block_rows

N_STEPS = 10
CALL = Book(((1.0, pr.European(1.0, N_STEPS / 252)),))


def market(**changes):
    settings = {"source": ArchSource("sp500"), "n_steps": N_STEPS, "block_length": 5.0, "keep_drift": False}
    return BootstrappedReturns(**(settings | changes))


def chain_moment(returns, n_steps, block_length, method):
    """Mean of the product of gross returns, by the transition of the block chain, row by row."""
    value = torch.ones_like(returns)
    gross = returns.exp()
    for step in range(n_steps):
        left = n_steps - step  # in a circular bootstrap a block begins at multiples of its length
        ended = 1.0 / block_length if method == "stationary" else float(left % block_length == 0)
        going_on = value.roll(-1)
        value = gross * ((1.0 - ended) * going_on + ended * value.mean()) if step else gross
    return value.mean().item()


@pytest.mark.parametrize("method", ["stationary", "circular"])
@pytest.mark.parametrize("power", [1.0, 4.0])
def test_moments_are_those_of_the_block_chain(method, power):
    made = market(method=method, block_length=5)
    n_paths = 2**15
    final = made.paths(n_paths, CALL, seed=1, dtype=torch.float64).prices[:, -1, 0] ** power
    returns = power * made.log_returns
    if method == "stationary":
        truth = chain_moment(returns, N_STEPS, 5.0, method)
    else:  # two whole blocks, independent of each other
        block = torch.stack([returns.roll(-i) for i in range(5)]).sum(0).exp().mean().item()
        truth = block**2
    error = final.std().item() / math.sqrt(n_paths)
    assert abs(final.mean().item() - truth) <= 4.0 * error
    assert error < 2e-3


def test_returns_are_those_of_the_series_and_their_drift_is_the_rate():
    made = market(keep_drift=True)
    raw = np.log(ArchSource("sp500").read(["close"])["close"].to_numpy())
    np.testing.assert_allclose(made.log_returns.numpy(), np.diff(raw), rtol=0.0, atol=1e-15)
    paths = made.paths(64, CALL, seed=1, dtype=torch.float64)
    drawn = paths.prices[:, :, 0].log().diff(dim=1)
    gap = (drawn.reshape(-1, 1) - made.log_returns).abs().min(1).values
    assert bool((gap < 1e-12).all())
    without = market(rate=0.05).log_returns
    assert abs(without.exp().mean().item() - math.exp(0.05 / 252)) < 1e-12


def test_blocks_go_on_and_have_their_lengths():
    generator = torch.Generator().manual_seed(1)
    rows = block_rows(50, 12, 4, "circular", generator, 200)
    going_on = (rows.diff(dim=1) - 1) % 50 == 0
    inside = torch.arange(1, 12) % 4 != 0
    assert bool(going_on[:, inside].all())
    assert going_on[:, ~inside].double().mean() < 0.1
    rows = block_rows(5000, 100, 8.0, "stationary", generator, 2000)
    share = ((rows.diff(dim=1) - 1) % 5000 == 0).double().mean().item()
    expected = 1.0 - 1.0 / 8.0 + 1.0 / 8.0 / 5000  # by chance a new block begins at the next row
    assert abs(share - expected) < 4.0 * math.sqrt(expected * (1 - expected) / (2000 * 99))
    counts = torch.bincount(rows.reshape(-1), minlength=5000)  # each row as often as any other
    assert abs(counts.double().mean().item() - 40.0) < 1e-9
    assert counts.min() > 0


def test_path_depends_on_its_address_alone():
    made = market(window=3, information=("log_moneyness", "realised_vol"))
    many, few = made.paths(1500, CALL, seed=1, number=4), made.paths(20, CALL, seed=1, number=4)
    assert torch.equal(many.prices[:20], few.prices)
    assert torch.equal(many.features[:20], few.features)
    for other in (made.paths(20, CALL, seed=1, number=5), made.paths(20, CALL, seed=2, number=4)):
        assert not bool((other.prices[:, -1] == few.prices[:, -1]).any())
    assert not bool((many.prices[1024:1034, -1] == many.prices[:10, -1]).any())


def test_realised_vol_is_of_the_returns_before_each_date():
    made = market(window=4, information=("realised_vol",), reference_vol=0.2)
    paths = made.paths(16, CALL, seed=1, dtype=torch.float64)
    returns = paths.prices[:, :, 0].log().diff(dim=1)
    for date in range(4, N_STEPS + 1):  # from here on all returns of the window are on the path
        vol = torch.sqrt((returns[:, date - 4 : date] ** 2).mean(1) * 252) / 0.2
        torch.testing.assert_close(paths.features[:, date, 0].double(), vol, rtol=1e-5, atol=0.0)
    first = paths.features[:, 0, 0]
    assert bool((first > 0).all())
    assert len(first.unique()) > 8


def test_liability_and_discount():
    paths = market(rate=0.05, spot=2.0).paths(
        8, Book(((1.0, pr.European(2.0, N_STEPS / 252)),)), 1, dtype=torch.float64
    )
    spot = paths.prices[:, -1, 0] * math.exp(0.05 * N_STEPS / 252)
    paid = (spot - 2.0).clamp(min=0.0) * math.exp(-0.05 * N_STEPS / 252)
    torch.testing.assert_close(paths.liability, paid, rtol=1e-12, atol=1e-14)
    assert torch.equal(paths.prices[:, 0, 0], torch.full((8,), 2.0, dtype=torch.float64))


def series(prices):
    dates = pd.date_range("2020-01-01", periods=len(prices))
    return FrameSource(pd.DataFrame({"time": dates, "close": prices}))


@pytest.mark.parametrize(
    ("prices", "message"),
    [
        ([1.0, 2.0, None, 2.0, 1.0, 2.0, 2.0], "2020-01-03"),
        ([1.0, 2.0, 3.0, -2.0, 1.0, 2.0, 2.0], r"-2\.0 on 2020-01-04"),
        ([1.0, 2.0, 3.0], "too few"),
    ],
)
def test_bad_series_are_refused(prices, message):
    with pytest.raises(DataError, match=message):
        market(source=series(prices)).paths(2, CALL, seed=1)


def test_a_window_is_shorter_than_the_series():
    prices = [1.0, 1.1, 1.0, 1.2, 1.1]
    made = market(source=series(prices), block_length=2, window=4)
    assert made.paths(2, CALL, seed=1).features.isfinite().all()
    with pytest.raises(DataError, match="`window` must be below the 5 prices"):
        market(source=series(prices), block_length=2, window=5).paths(2, CALL, seed=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_steps": 0}, "n_steps"),
        ({"block_length": 0.5}, "block_length"),
        ({"block_length": 2.5, "method": "circular"}, "whole number"),
        ({"method": "moving"}, "method"),
        ({"window": 0}, "window"),
        ({"spot": -1.0}, "spot"),
        ({"information": ()}, "information"),
        ({"source": {"kind": "skfolio"}}, "single series"),
        ({"source": {"kind": "bloomberg"}}, "not known"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        market(**change)


def test_book_must_fit_the_dates():
    with pytest.raises(DataError, match="horizon of the book is not on the grid"):
        market().paths(2, Book(((1.0, pr.European(1.0, 0.5)),)), seed=1)


def test_market_is_its_config():
    made = market(start="2005-01-01", end="2010-12-31", window=5)
    assert build(BootstrappedReturns, to_dict(made)) == made
    assert len(made.log_returns) < 1600


@pytest.mark.parametrize(("signs", "foreseen"), [("kept", True), ("drawn", False)])
def test_drawn_signs_leave_nothing_to_foresee_but_the_vol(signs, foreseen):
    """Next return on the last one and its square: the blocks' own trends go, the clusters of volatility stay."""
    rng = np.random.default_rng(3)
    vol = np.where(np.arange(400) // 50 % 2, 0.03, 0.005)
    shocks = vol * rng.normal(size=400)
    closes = 100 * np.exp(np.cumsum(0.4 * np.r_[0.0, shocks[:-1]] + shocks))  # returns that go on
    days = pd.date_range("2015-01-01", periods=400)
    source = FrameSource(pd.DataFrame({"time": days, "close": closes}))
    made = market(source=source, block_length=20.0, rate=0.05, signs=signs)
    discounted = made.paths(2**14, CALL, seed=4, dtype=torch.float64).prices[:, :, 0]
    moves = discounted[:, 1:] / discounted[:, :-1] - 1
    before, after = moves[:, :-1].reshape(-1), moves[:, 1:].reshape(-1)

    def in_errors(one, other):
        product = (one - one.mean()) * (other - other.mean())
        return abs(float(product.mean() / (product.std() / math.sqrt(len(product)))))

    assert (in_errors(before, after) > 8) == foreseen
    assert in_errors(before.square(), after.square()) > 8
    gain = discounted[:, -1] - 1
    assert signs == "kept" or abs(float(gain.mean())) < 4 * float(gain.std()) / math.sqrt(len(gain))
    assert made.martingale == (signs == "drawn")
    assert torch.allclose(moves.abs().max(), (made.log_returns - 0.05 / 252).expm1().abs().max())


def test_drawn_signs_are_addressed_and_go_with_no_drift():
    made = market(signs="drawn")
    one, two = (made.paths(n, CALL, seed=1, dtype=torch.float64).prices for n in (700, 1500))
    assert torch.equal(one, two[:700])
    with pytest.raises(ConfigError, match="no drift that could be kept"):
        market(signs="drawn", keep_drift=True)
    with pytest.raises(ConfigError, match="'kept' or 'drawn', got 'random'"):
        market(signs="random")
    days = pd.date_range("2015-01-01", periods=30)
    doubled = pd.DataFrame({"time": days, "close": [1.0] * 15 + [2.1] * 15})
    with pytest.raises(DataError, match="doubles on 2015-01-16"):
        market(source=FrameSource(doubled), signs="drawn").paths(4, CALL, seed=1)
