"""The delta of a whole book as a feature is the textbook's hedge; what it and the delta of one call refuse."""

import pytest
import torch

import pricers as pr
import qfml
from qfml.errors import ConfigError
from qfml.hedging import (
    Band,
    BlackScholesDelta,
    Book,
    Correction,
    DriftRemoved,
    Entropic,
    FeedForward,
    ModelMarket,
    RecordedPaths,
    deep_hedge,
)
from qfml.hedging.textbook import problem_of
from qfml.task import read_task

T, STEPS = 0.1, 5
SEEN = ("time_to_horizon", "book_delta")
CALL, PUT = pr.European(98.0, T), pr.European(101.0, T, "put")
EARLY = pr.European(103.0, 2 * T / STEPS)
BOOKS = {
    "sold_call": Book(((1.0, CALL),)),
    "sold_put": Book(((1.0, PUT),)),
    "bought_call": Book(((-1.0, CALL),)),
    "straddle_and_a_shorter_option": Book(((2.0, CALL), (3.0, PUT), (-5.0, EARLY))),
}
BARRIER = Book(((1.0, CALL), (1.0, pr.Barrier(100.0, T, 90.0, kind="down-out", monitoring=[2 * T / STEPS, T]))))
MODEL = ModelMarket(
    {"kind": "heston", "v0": 0.04, "kappa": 2.0, "theta": 0.05, "sigma": 0.5, "rho": -0.7},
    {"spot": 100.0, "rate": 0.05, "dividend_yield": 0.08},
    n_steps=STEPS,
    horizon=T,
    information=SEEN,
)
MOVES = torch.randn(40, STEPS + 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
RECORD = RecordedPaths(
    array=(100.0 * torch.exp((0.03 * MOVES).cumsum(1))).numpy(),
    times=tuple(T * place / STEPS for place in range(STEPS + 1)),
    rate=0.05,
    information=SEEN,
)
MARKETS = {"model": MODEL, "recorded": RECORD}


@pytest.mark.parametrize("market", MARKETS)
@pytest.mark.parametrize("name", BOOKS)
def test_it_is_what_the_textbook_holds_in_units_of_the_largest_quantity(name, market):
    book, market = BOOKS[name], MARKETS[market]
    paths = market.paths(40, book, seed=3, dtype=torch.float64)
    wanted = BlackScholesDelta(market.vol).holdings(paths, problem_of(market, book))[..., 0]
    found = paths.features[..., SEEN.index("book_delta")]
    torch.testing.assert_close(book.size * found[:, :-1].double(), wanted, rtol=0, atol=2e-6)
    assert float(wanted.std()) > 0.05
    assert not found[:, -1].any()  # all has expired


def test_of_one_call_without_dividends_it_is_the_delta_of_a_call():
    market = ModelMarket(pr.BlackScholes(0.2), pr.Market(98.0, 0.05), n_steps=STEPS, horizon=T, information=BOTH)
    features = market.paths(50, BOOKS["sold_call"], seed=2).features[:, :-1]
    torch.testing.assert_close(features[..., 0], features[..., 1], rtol=0, atol=1e-6)


BOTH = ("call_delta", "book_delta")


def test_the_size_of_a_book_is_its_largest_quantity():
    assert [book.size for book in BOOKS.values()] == [1.0, 1.0, 1.0, 5.0]
    assert Book(((0.5, CALL), (-0.25, PUT))).size == 0.5


@pytest.mark.parametrize("market", [MODEL, RECORD, DriftRemoved(RECORD, qfml.Trainer(max_epochs=1, batch_size=16))])
def test_a_book_of_other_contracts_has_none(market):
    told = r"`information` names 'book_delta'.*the book has positions.1 \(barrier\); leave it out.*`direct`"
    for asked in (lambda: market.paths(8, BARRIER, seed=1), lambda: market.sight(BARRIER)):
        with pytest.raises(ConfigError, match=told):
            asked()


def hedged(book, holding, market=MODEL):
    trainer = qfml.Trainer(optimizer=qfml.AdamW(lr=1e-2), max_epochs=1, batch_size=64, seed=1)
    policy = FeedForward(hidden=(4,), holding=holding)
    return deep_hedge(market, book, Entropic(0.1), policy=policy, trainer=trainer, steps_per_epoch=2, n_validation=64)


def test_a_live_hedge_by_the_spot_holds_what_it_holds_on_paths():
    book = BOOKS["straddle_and_a_shorter_option"]
    hedger = hedged(book, Correction(("book_delta",)))
    assert list(hedger.quantities) == ["spot"]
    paths = MODEL.paths(32, book, seed=5, dtype=torch.float64)
    wanted, held = hedger.holdings(paths)[0], torch.zeros(32, 1)
    spot = paths.prices[..., 0] * MODEL.simulated_market.growth(MODEL.times)
    for date in range(STEPS):
        held, _ = hedger.hedge({"spot": spot[:, date]}, held, date)
        torch.testing.assert_close(held, wanted[:, date], rtol=0, atol=1e-6)


OTHERS = {
    "put": (BOOKS["sold_put"], r"1 european put \(strike 101.0, expiry 0.1\): take 'book_delta'"),
    "bought": (BOOKS["bought_call"], r"-1 european call \(.*\): take 'book_delta'"),
    "several": (
        Book(((2.0, CALL), (3.0, CALL))),
        r"2 european call .*, 3 european call .*: take 'book_delta'",
    ),
    "barrier": (BARRIER, r"1 european call .*, 1 barrier call \(.*barrier 90.0.*\): take another feature"),
}


@pytest.mark.parametrize("holding", [Band(("call_delta",)), Correction(("call_delta",))])
@pytest.mark.parametrize("name", OTHERS)
def test_the_delta_of_one_call_is_no_hedge_of_another_book(name, holding):
    book, told = OTHERS[name]
    with pytest.raises(ConfigError, match=f"holding `{holding.kind}` names 'call_delta'.*owes {told}"):
        hedged(book, holding)


def test_a_task_is_refused_before_it_trains():
    option = {"kind": "european", "strike": 98.0, "expiry": T, "option": "put"}
    settings = {
        "task": "hedging",
        "market": {
            "kind": "model",
            "model": {"kind": "black_scholes", "vol": 0.2},
            "market": {"spot": 100.0},
            "n_steps": STEPS,
            "horizon": T,
            "information": list(BOTH),
        },
        "book": {"positions": [{"quantity": 2.0, "instrument": option}]},
        "objective": {"kind": "entropic", "risk_aversion": 0.1},
        "policy": {"kind": "feed_forward", "holding": {"kind": "band", "hedge": ["call_delta"]}},
        "trainer": {"max_epochs": 1, "batch_size": 64},
    }
    with pytest.raises(ConfigError, match=r"`hedge` of the policy's holding `band`.*owes 2 european put"):
        read_task(settings)
    settings["policy"]["holding"]["hedge"] = ["book_delta"]
    assert read_task(settings).policy.holding == Band(("book_delta",))
