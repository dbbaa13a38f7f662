"""Markets that models make: martingales, liabilities that cost their price, addresses, features and refusals."""

import dataclasses
import math
import pickle

import pytest
import torch
from contract_examples import MODEL_EXAMPLES

import pricers as pr
from qfml.config import build, to_dict
from qfml.errors import ConfigError, DataError
from qfml.hedging.book import Book
from qfml.hedging.instruments import Option, Spot, VarianceSwapHedge
from qfml.hedging.model_market import ModelMarket, trading_dates

HORIZON = 0.1
MARKET = pr.Market(spot=100.0, rate=0.05, dividend_yield=0.02)
HESTON = pr.Heston(v0=0.04, kappa=2.0, theta=0.06, sigma=0.5, rho=-0.6)
CALL = Book(((1.0, pr.European(105.0, HORIZON)),))
ALL = ("log_moneyness", "time_to_horizon", "vol", "variance", "prices")
INSTRUMENTS = (Spot(), VarianceSwapHedge(HORIZON), Option(100.0, 0.3))
HESTON_MARKET = ModelMarket(
    HESTON, MARKET, INSTRUMENTS, n_steps=4, horizon=HORIZON, information=ALL, simulation_steps=16
)

LIGHT = dataclasses.replace(HESTON_MARKET, instruments=INSTRUMENTS[:2])  # without tables of option prices


def black_scholes(**changes):
    return ModelMarket(pr.BlackScholes(0.2), MARKET, **({"n_steps": 4, "horizon": HORIZON} | changes))


def test_prices_are_martingales_and_the_liability_costs_its_price():
    n_paths = 2**15
    paths = HESTON_MARKET.paths(n_paths, CALL, seed=1, dtype=torch.float64)
    change = paths.prices - paths.prices[:, :1]
    error = change.std(0) / math.sqrt(n_paths)
    assert bool((change.mean(0).abs() <= 4.0 * error + 1e-12).all())
    value, truth = paths.liability, pr.price(pr.European(105.0, HORIZON), HESTON, MARKET).value.item()
    error = value.std().item() / math.sqrt(n_paths)
    assert abs(value.mean().item() - truth) <= 4.0 * error
    assert error <= 0.02
    assert paths.instrument_names == ("spot", "variance swap 0.1", "call 100 0.3")


@pytest.mark.parametrize("kind", pr.MODELS)
def test_every_model_makes_a_market(kind):
    market = ModelMarket(
        MODEL_EXAMPLES[kind].at_point(), MARKET, n_steps=3, horizon=HORIZON, simulation_steps=12,
        information=("log_moneyness", "vol"),
    )  # fmt: skip
    paths = market.paths(4096, CALL, seed=3)
    assert paths.prices.dtype == paths.features.dtype == paths.liability.dtype == torch.float32
    gain = (paths.prices[:, -1, 0] - paths.prices[:, 0, 0]).double()
    assert abs(gain.mean().item()) <= 4.0 * gain.std().item() / 64.0
    deviation = paths.features.reshape(-1, 2).std(0)
    assert 0.2 < deviation[0] < 2.0  # of order one
    assert bool((paths.features[..., 1] < 20.0).all())


def test_paths_are_fresh_by_number_and_the_same_by_address():
    one = LIGHT.paths(128, CALL, seed=1, number=5)
    again = dataclasses.replace(LIGHT).paths(64, CALL, seed=1, number=5)
    for name in ("prices", "liability", "features"):
        assert torch.equal(getattr(one, name)[:64], getattr(again, name))
    for other in (LIGHT.paths(128, CALL, seed=1, number=6), LIGHT.paths(128, CALL, seed=2, number=5)):
        assert not bool((one.liability[one.liability > 0] == other.liability[one.liability > 0]).any())


def test_features_are_what_their_names_say():
    paths = HESTON_MARKET.paths(32, CALL, seed=1, dtype=torch.float64)
    made = pr.simulate(
        HESTON, MARKET, paths.times, 32, seed=1, n_steps=16, every_step=True
    ).on(paths.times)  # fmt: skip
    vol = HESTON_MARKET.vol
    assert abs(vol - math.sqrt(HESTON.cumulants(paths.times[-1])[1].item() / HORIZON)) < 1e-12
    forward = made.spot * torch.exp(0.03 * (HORIZON - made.times))
    option = INSTRUMENTS[2].pricer(HESTON, MARKET, paths.times)(made)
    columns = {
        "log_moneyness": torch.log(105.0 / forward) / (vol * HORIZON**0.5),
        "time_to_horizon": ((HORIZON - made.times) / HORIZON).expand(32, -1),
        "vol": made.state["variance"].sqrt() / vol,
        "variance": made.state["variance"] / vol**2,
        "call 100 0.3": option / (100.0 * vol * HORIZON**0.5),
    }
    assert set(columns) < set(paths.feature_names)
    for name, column in columns.items():
        found = paths.features[..., paths.feature_names.index(name)]
        torch.testing.assert_close(found.double(), column, rtol=1e-6, atol=1e-6)


def test_contract_dates_off_the_trading_grid_are_simulated():
    fixings = [0.0301, 0.0777, HORIZON]
    book = Book(((1.0, pr.Asian(100.0, fixings, average="geometric")),))
    market = black_scholes(information=("log_moneyness", "running_average"))
    paths = market.paths(2**14, book, seed=1, dtype=torch.float64)
    assert paths.times.tolist() == trading_dates(4, HORIZON, None).tolist()
    truth = pr.price(book.contracts[0], pr.BlackScholes(0.2), MARKET).value.item()
    error = paths.liability.std().item() / 2**7
    assert abs(paths.liability.mean().item() - truth) <= 4.0 * error
    assert error < 0.03
    assert paths.feature_names == ("log_moneyness", "running_average")


def test_path_dependent_books_make_finite_paths():
    book = Book(((1.0, pr.Lookback(None, HORIZON, "put")), (1.0, pr.Barrier(100.0, HORIZON, 95.0, "down-out"))))
    paths = black_scholes(information=("running_extremum", "alive"), simulation_steps=8).paths(2**14, book, seed=1)
    truth = sum(pr.price(one, pr.BlackScholes(0.2), MARKET).value.item() for one in book.contracts)
    liability = paths.liability.double()
    assert abs(liability.mean().item() - truth) <= 4.0 * liability.std().item() / 2**7


def test_drift_moves_the_spot_and_nothing_else():
    still, moved = (black_scholes(drift=drift).paths(64, CALL, seed=1, dtype=torch.float64) for drift in (0.0, 0.3))
    factor = torch.exp(0.3 * still.times)[:, None]
    torch.testing.assert_close(moved.prices, still.prices * factor, rtol=1e-12, atol=0.0)


def test_market_is_its_config_and_can_be_pickled_after_use():
    assert build(ModelMarket, to_dict(HESTON_MARKET)) == HESTON_MARKET
    LIGHT.paths(4, CALL, seed=1)
    copied = pickle.loads(pickle.dumps(LIGHT))  # noqa: S301  (made here)
    assert copied == LIGHT
    assert torch.equal(copied.paths(4, CALL, 1).prices, LIGHT.paths(4, CALL, 1).prices)


def test_dates_of_choice():
    paths = ModelMarket(pr.BlackScholes(0.2), MARKET, dates=(0.01, 0.05, HORIZON)).paths(4, CALL, seed=1)
    assert paths.times.tolist() == [0.0, 0.01, 0.05, HORIZON]


def test_horizon_that_is_not_on_the_grid_is_refused():
    with pytest.raises(DataError, match="horizon of the book is not on the grid"):
        black_scholes(horizon=0.2).paths(4, CALL, seed=1)


def test_instrument_that_expires_before_the_book_is_refused():
    with pytest.raises(DataError, match="must not lie before the last trading date"):
        black_scholes(instruments=(Spot(), Option(100.0, 0.05)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_steps": None}, "either"),
        ({"dates": (0.1,)}, "either"),
        ({"n_steps": 0}, "n_steps"),
        ({"horizon": -1.0}, "horizon"),
        ({"n_steps": None, "horizon": None, "dates": (0.2, 0.1)}, "ascending"),
        ({"n_steps": None, "horizon": None, "dates": (float("nan"),)}, "ascending"),
        ({"instruments": ()}, "at least one"),
        ({"instruments": (Spot(), Spot())}, "differ"),
        ({"information": ()}, "at least one"),
        ({"noise": "white"}, "noise"),
        ({"scheme": "qe"}, "exact"),
        ({"simulation_steps": 0}, "n_steps"),
        ({"drift": float("inf")}, "drift"),
        ({"reference_vol": 0.0}, "reference_vol"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        black_scholes(**change)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("log_monyness", "did you mean 'log_moneyness'"),
        ("running_average", "not known"),
        ("prices", "only hedging instrument"),
        ("realised_vol", "cannot be seen on this market"),
    ],
)
def test_information_that_is_not_there_is_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        black_scholes(information=(name,)).paths(4, CALL, seed=1)


def test_drift_is_refused_where_the_vol_depends_on_the_price():
    with pytest.raises(ConfigError, match="models of returns"):
        ModelMarket(MODEL_EXAMPLES["sabr"].at_point(), MARKET, n_steps=2, horizon=HORIZON, drift=0.1)


@pytest.mark.parametrize(("n_paths", "seed"), [(0, 1), (4, 1.5)])
def test_bad_draws_are_refused(n_paths, seed):
    market = black_scholes()
    with pytest.raises(ConfigError):
        market.paths(n_paths, CALL, seed)
