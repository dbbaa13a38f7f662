"""Features of one date, from what is observed, are those of whole paths: every market, every feature."""

import numpy as np
import pytest
import torch

import pricers as pr
import qfml
from qfml.errors import ConfigError, DataError
from qfml.hedging import (
    Book,
    BootstrappedReturns,
    DriftRemoved,
    JudgementSettings,
    ModelMarket,
    Option,
    RecordedPaths,
    Spot,
    VarianceSwapHedge,
)
from qfml.hedging.information import FEATURES, NEEDED
from qfml.hedging.sight import rows_of, sight_of
from qfml.hedging.traded_prices import rolling_vol

T, STEPS = 0.1, 5
CALL = Book(((1.0, pr.European(98.0, T)),))
HESTON = {"kind": "heston", "v0": 0.04, "kappa": 2.0, "theta": 0.05, "sigma": 0.5, "rho": -0.7}
RATES = {"spot": 100.0, "rate": 0.03, "dividend_yield": 0.01}
SABR = {"kind": "sabr", "alpha": 2.0, "beta": 0.5, "rho": -0.4, "nu": 0.8}
BARRIER = Book(
    ((1.0, pr.Barrier(100.0, T, 90.0, kind="down-out", monitoring=[T / 2, T])), (1.0, pr.Asian(100.0, [T / 2, T])))
)


SPOT = (Spot(),)


def model_market(model, instruments=SPOT, information=("log_moneyness", "time_to_horizon")):
    return ModelMarket(model, RATES, instruments=instruments, n_steps=STEPS, horizon=T, information=information)


CASES = {
    "black_scholes": (
        model_market(
            {"kind": "black_scholes", "vol": 0.2},
            (Spot(), Option(105.0, 0.2)),
            ("log_moneyness", "time_to_horizon", "call_delta", "prices"),
        ),
        CALL,
    ),
    "heston": (
        model_market(HESTON, (Spot(), VarianceSwapHedge(T)), ("log_moneyness", "vol", "variance", "prices")),
        CALL,
    ),
    "sabr": (model_market(SABR, information=("log_moneyness", "vol")), CALL),
    "path_dependent": (
        model_market(
            {"kind": "black_scholes", "vol": 0.2},
            information=("log_moneyness", "time_to_horizon", "alive", "running_average"),
        ),
        BARRIER,
    ),
    "several_options": (
        model_market({"kind": "black_scholes", "vol": 0.2}, information=("book_delta", "time_to_horizon")),
        Book(((2.0, pr.European(98.0, T)), (-3.0, pr.European(101.0, T / 2, "put")))),
    ),
    "no_strike": (model_market({"kind": "black_scholes", "vol": 0.2}), Book(((1.0, pr.VarianceSwap(0.04, T)),))),
}


def drawn(market, book):
    """Features of paths, float64 within, and what is observed on each date."""
    paths = market.paths(64, book, seed=4, number=2, dtype=torch.float64)
    made = market.prepared(book).simulation.draw(64, seed=4, number=2)
    on_dates = made.on(market.times)
    seen = {"spot": on_dates.spot} | {name: on_dates.state[name] for name in ("variance",) if name in on_dates.state}
    if "vol" in on_dates.state:
        seen["relative_vol"] = on_dates.state["vol"] / on_dates.state["vol"][:, :1]
    market_now = market.simulated_market
    for place, name in enumerate(paths.instrument_names[1:], 1):  # the price that is quoted then, not today's money
        seen[name] = paths.prices[..., place] / market_now.discount(market.times)
    return paths, seen | book.observables(made.paths, market.times)


@pytest.mark.parametrize("name", CASES)
def test_features_of_a_date_are_those_of_the_paths(name):
    market, book = CASES[name]
    paths, seen = drawn(market, book)
    sight = sight_of(market, book)
    assert set(sight.quantities) <= set(seen)
    for date in range(STEPS):
        own = rows_of(sight, {key: seen[key][:, date] for key in sight.quantities})
        found = sight.features(own, torch.full((64,), date))
        torch.testing.assert_close(found, paths.features[:, date], rtol=1e-6, atol=1e-6)
    # rows of several dates at once
    dates = torch.arange(64) % STEPS
    mixed = {key: seen[key][torch.arange(64), dates] for key in sight.quantities}
    torch.testing.assert_close(
        sight.features(mixed, dates), paths.features[torch.arange(64), dates], rtol=1e-6, atol=1e-6
    )


def test_features_of_recorded_and_resampled_prices_are_those_of_their_paths():
    steps = torch.randn(40, 8, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    prices = 100.0 * torch.exp((0.02 * steps).cumsum(1))
    times = tuple(T * place / 5 for place in range(-2, 6))
    shared = {"information": ("log_moneyness", "book_delta", "realised_vol", "prices"), "rate": 0.03}
    described = {"times": times, "instruments": ("spot", "future"), "history": 2, "window": 2} | shared
    record = RecordedPaths(array=prices.numpy(), **described)
    some = record.paths(8, CALL, seed=3)
    sight = sight_of(record, CALL)
    assert list(sight.quantities) == ["spot", "realised_vol", "future"]
    log_prices = prices[..., 0].log()
    all_of_them, vol = record.paths(None, CALL, seed=3), rolling_vol(log_prices, torch.tensor(times).double(), 2)
    for date in range(5):
        rows = {"spot": prices[:, 2 + date, 0], "realised_vol": vol[:, date], "future": prices[:, 2 + date, 1]}
        found = sight.features(rows_of(sight, rows), torch.full((40,), date))
        torch.testing.assert_close(found, all_of_them.features[:, date], rtol=1e-6, atol=1e-6)
    # features of a path do not depend on which others are drawn with it
    matches = (all_of_them.features[None] == some.features[:, None]).flatten(2).all(2)
    assert matches.any(1).all()
    # nor on which part of the record it comes from
    first, last = (part.paths(None, CALL, seed=3) for part in record.parted(10))
    assert torch.equal(torch.cat([first.features, last.features]), all_of_them.features)
    for scale in (2.0, 1.0):
        other = RecordedPaths(array=scale * prices.flip(1).numpy(), **described)
        fresh = JudgementSettings(market=other).fresh(record)
        assert (fresh.typical_spot, fresh.vol) == (record.typical_spot, record.vol)
    trainer = qfml.Trainer(max_epochs=1, batch_size=16)
    assert sight_of(DriftRemoved(record, trainer), CALL).quantities == sight.quantities
    returns = {"kind": "arch", "name": "sp500"}
    series = BootstrappedReturns(
        returns, n_steps=5, block_length=5, keep_drift=False, rate=0.02, periods_per_year=50, window=2, **RESAMPLED
    )
    book = Book(((1.0, pr.European(1.0, 0.1)), (-2.0, pr.European(1.1, 0.1, "put"))))
    paths, sight = series.paths(32, book, seed=1), sight_of(series, book)
    spot = paths.prices[:, 3, 0].double() * np.exp(0.02 * 3 / 50)
    realised = paths.features[:, 3, 1].double() * series.vol
    found = sight.features({"spot": spot, "realised_vol": realised}, torch.full((32,), 3))
    torch.testing.assert_close(found, paths.features[:, 3], rtol=1e-5, atol=1e-5)


RESAMPLED = {"information": ("log_moneyness", "realised_vol", "book_delta")}


def test_every_feature_says_what_must_be_observed():
    assert set(NEEDED) == set(FEATURES)


def test_what_cannot_be_observed_is_refused():
    market, book = CASES["path_dependent"]
    sight = sight_of(market, book)
    good = {"spot": 100.0, "alive": 1.0, "running_average": 99.0}
    assert rows_of(sight, good)["alive"].dtype == torch.float64
    for change, told in (
        ({"alive": 0.5}, "'alive' must be a number, 0 or 1, got 0.5"),
        ({"running_average": 0.0}, "'running_average' must be a number, above 0"),
        ({"spot": [1.0, 2.0], "alive": [1.0, 1.0, 0.0]}, "arrays .B,. of one length"),
    ):
        with pytest.raises(DataError, match=told):
            rows_of(sight, good | change)

    class Elsewhere:
        kind = "elsewhere"

    with pytest.raises(ConfigError, match="market of kind 'elsewhere' does not tell"):
        sight_of(Elsewhere(), book)
