"""The book: what it owes, by payoffs taken one by one; what is seen of it, by loops over the past alone."""

import math

import pytest
import torch
from contract_examples import INSTRUMENT_EXAMPLES, MODEL_EXAMPLES

import pricers as pr
from qfml.config import build, build_kind, to_dict
from qfml.errors import ConfigError, DataError
from qfml.hedging import MARKETS, ModelMarket, Option
from qfml.hedging.book import Book
from qfml.hedging.contracts import built, settings_of

MARKET = pr.Market(spot=100.0, rate=0.05)
HORIZON = 0.4
TIMES = torch.linspace(0.0, HORIZON, 5, dtype=torch.float64)
FIXINGS = [0.15, 0.2, 0.4]


def simulated(model=None, n_paths=64):
    return pr.simulate(
        model or pr.BlackScholes(0.3),
        MARKET,
        sorted({*TIMES.tolist(), *FIXINGS}),
        n_paths,
        seed=1,
        n_steps=16,
        every_step=True,
        bridge_uniforms=True,
    )


def test_liability_is_the_sum_of_the_payoffs():
    made = simulated()
    call, asian = pr.European(95.0, HORIZON), pr.Asian(100.0, FIXINGS)
    book = Book(((2.0, call), (-1.0, asian)))
    spot = made.spot[:, -1]
    fixed = made.paths.at(torch.tensor(FIXINGS, dtype=torch.float64)).mean(1)
    expected = (2.0 * (spot - 95.0).clamp(min=0.0) - (fixed - 100.0).clamp(min=0.0)) * math.exp(-0.05 * HORIZON)
    torch.testing.assert_close(book.liability(made.paths, MARKET.discount), expected, rtol=1e-12, atol=1e-12)
    assert (book.horizon, book.strike, book.dates.tolist()) == (HORIZON, 95.0, FIXINGS)


CONTRACTS = {
    "asian": pr.Asian(100.0, FIXINGS),
    "asian with a past": pr.Asian(100.0, FIXINGS, running_average=120.0, n_past=2),
    "geometric asian": pr.Asian(100.0, FIXINGS, average="geometric"),
    "continuous asian": pr.Asian(100.0, "continuous", expiry=HORIZON),
    "barrier on dates": pr.Barrier(100.0, HORIZON, 90.0, "down-out", monitoring=FIXINGS),
    "barrier": pr.Barrier(100.0, HORIZON, 110.0, "up-in"),
    "asian barrier": pr.AsianBarrier(100.0, FIXINGS, 110.0, "up-out"),
    "lookback": pr.Lookback(100.0, HORIZON, "call"),
    "lookback with a past": pr.Lookback(100.0, HORIZON, "put", running_extremum=95.0),
    "autocallable": pr.Autocallable(FIXINGS, 100.0, 1.05, 0.04, 0.7),
    "variance swap": pr.VarianceSwap(0.04, HORIZON),
}


@pytest.mark.parametrize("name", CONTRACTS)
def test_observables_know_nothing_of_the_future(name):
    made, book = simulated(), Book(((1.0, CONTRACTS[name]),))
    seen = book.observables(made.paths, TIMES)
    assert tuple(seen) == book.observable_names
    for place in range(len(TIMES)):
        later = made.times > TIMES[place] + 1e-9
        spot = torch.where(later, 1.7 * made.spot, made.spot)
        variance = torch.where(later[1:], 3.0 * made.state["integrated_variance"], made.state["integrated_variance"])
        uniforms = torch.where(later[1:], 0.5, made.bridge_uniforms)
        other = pr.Scenarios(made.times, spot, {"integrated_variance": variance}, uniforms)
        changed = book.observables(other.paths, TIMES)
        for key, values in seen.items():
            assert values.shape == (64, len(TIMES))
            assert torch.equal(changed[key][:, : place + 1], values[:, : place + 1])
            if place == 0:
                assert not torch.equal(changed[key], values)


def fixings_until(made, path, date):
    known = made.paths.at(torch.tensor(FIXINGS, dtype=torch.float64))[path].tolist()
    return [price for price, fixing in zip(known, FIXINGS, strict=True) if fixing <= date + 1e-9]


@pytest.mark.parametrize(
    ("name", "past"),
    [("asian", []), ("asian with a past", [120.0, 120.0]), ("geometric asian", []), ("asian barrier", [])],
)
def test_running_average_is_that_of_a_loop(name, past):
    made, book = simulated(), Book(((1.0, CONTRACTS[name]),))
    seen = book.observables(made.paths, TIMES)["running_average"]
    for path in range(5):
        for place, date in enumerate(TIMES.tolist()):
            known = past + fixings_until(made, path, date) or [100.0]
            mean = math.exp(sum(map(math.log, known)) / len(known)) if "geo" in name else sum(known) / len(known)
            assert abs(seen[path, place].item() - mean) < 1e-9


@pytest.mark.parametrize(
    ("name", "touched"),
    [
        ("barrier on dates", lambda price: price <= 90.0),
        ("asian barrier", lambda price: price >= 110.0),
        ("autocallable", lambda price: price >= 105.0),
    ],
)
def test_alive_is_that_of_a_loop(name, touched):
    made, book = simulated(), Book(((1.0, CONTRACTS[name]),))
    seen = book.observables(made.paths, TIMES)["alive"]
    assert 0.0 < seen[:, -1].mean() < 1.0
    for path in range(64):
        for place, date in enumerate(TIMES.tolist()):
            assert seen[path, place].item() == float(not any(map(touched, fixings_until(made, path, date))))


@pytest.mark.parametrize("kind", ["up-in", "up-out", "down-out"])
def test_a_barrier_is_touched_or_not_on_each_path(kind):
    """Mean and mean square of what is owed are those given the recorded points: a weight has a smaller square."""
    barrier = pr.Barrier(100.0, HORIZON, 95.0 if kind == "down-out" else 104.0, kind)
    made = simulated(n_paths=2**17)
    chance = pr.Scenarios(made.times, made.spot, made.state)
    book, discount = Book(((1.0, barrier),)), math.exp(-0.05 * HORIZON)
    owed, weight = book.liability(made.paths, MARKET.discount), book.observables(chance.paths, TIMES)["alive"][:, -1]
    alive = book.observables(made.paths, TIMES)["alive"]
    assert set(alive.unique().tolist()) == {0.0, 1.0}
    assert (alive.diff(dim=1) <= 0).all()  # what is dead stays so
    weight = 1.0 - weight if kind == "up-in" else weight
    assert float(((weight > 0.01) & (weight < 0.99)).double().mean()) > 0.05  # many could be either
    paid = discount * (made.spot[:, -1].double() - 100.0).clamp(min=0.0)
    for power in (1, 2):
        difference = owed**power - weight * paid**power
        assert abs(float(difference.mean())) < 4 * float(difference.std()) / len(owed) ** 0.5
        if power == 2 and kind != "up-in":  # of which little is owed near the barrier
            assert float((owed**2).mean()) > 1.02 * float(((weight * paid) ** 2).mean())


def test_a_rebate_is_paid_once_where_the_barrier_is_touched():
    barrier = pr.Barrier(100.0, HORIZON, 104.0, "up-out", rebate=1.0)
    made = simulated()
    book = Book(((1.0, barrier),))
    alive = book.observables(made.paths, TIMES)["alive"][:, -1]
    owed = book.liability(made.paths, lambda time: torch.ones_like(time))
    torch.testing.assert_close(owed, torch.where(alive > 0, (made.spot[:, -1].double() - 100.0).clamp(min=0.0), 1.0))


def test_last_observables_are_what_the_payoffs_use():
    made = simulated()
    last = {name: Book(((1.0, one),)).observables(made.paths, TIMES) for name, one in CONTRACTS.items()}
    discount = math.exp(-0.05 * HORIZON)

    def paid(name):
        return CONTRACTS[name].payoff(made.paths, MARKET.discount) / discount

    spot = made.spot[:, -1]
    for name in ("asian", "asian with a past", "geometric asian"):
        value = (last[name]["running_average"][:, -1] - 100.0).clamp(min=0.0)
        torch.testing.assert_close(paid(name), value)
    for name, sign in (("lookback", 1.0), ("lookback with a past", -1.0)):
        value = (sign * (last[name]["running_extremum"][:, -1] - 100.0)).clamp(min=0.0)
        torch.testing.assert_close(paid(name), value)
    knocked_in = (1.0 - last["barrier"]["alive"][:, -1]) * (spot - 100.0).clamp(min=0.0)
    torch.testing.assert_close(paid("barrier"), knocked_in)
    torch.testing.assert_close(paid("variance swap"), last["variance swap"]["realised_variance"][:, -1] - 0.04)


def test_two_contracts_of_a_kind_have_observables_of_two_names():
    book = Book(((1.0, CONTRACTS["asian"]), (1.0, CONTRACTS["asian barrier"]), (1.0, CONTRACTS["barrier"])))
    assert book.observable_names == ("running_average", "running_average_2", "alive", "alive_2")


@pytest.mark.parametrize("kind", pr.INSTRUMENTS)
def test_contracts_survive_their_settings(kind):
    example = INSTRUMENT_EXAMPLES[kind]
    for change in ({}, *example.variants):
        settings = settings_of(example.at_point(**change))
        assert settings["kind"] == kind
        assert settings_of(built("contract", settings, pr.INSTRUMENTS)) == settings


@pytest.mark.parametrize("kind", pr.MODELS)
def test_models_survive_their_settings(kind):
    settings = settings_of(MODEL_EXAMPLES[kind].at_point())
    assert settings_of(built("model", settings, pr.MODELS)) == settings


def test_book_is_its_config():
    book = Book(((1.0, CONTRACTS["barrier"]), (-2.0, pr.European(100.0, 0.2))))
    assert build(Book, to_dict(book)) == book
    settings = {"quantity": 1, "instrument": {"kind": "barrier", "strike": 1.0, "expiry": 1.0, "barrier": 0.9}}
    settings["instrument"]["barrier_kind"] = "down-out"
    assert build(Book, {"positions": [settings]}).contracts[0].kind == "down-out"


def test_dates_that_are_not_on_the_grid_are_refused():
    book = Book(((1.0, CONTRACTS["asian"]),))
    with pytest.raises(DataError, match="horizon of the book is not on the grid"):
        book.check_dates(TIMES[:-1])
    with pytest.raises(DataError, match=r"contract dates must be among the recorded times, 0\.15"):
        book.check_dates(TIMES, recorded=TIMES)
    book.check_dates(TIMES, recorded=torch.cat([TIMES, torch.tensor([0.15], dtype=torch.float64)]).sort().values)


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ((), "at least one"),
        (((0.0, pr.European(1.0, 1.0)),), "must not be 0"),
        (((float("nan"), pr.European(1.0, 1.0)),), "finite"),
        (((1.0, pr.European([1.0, 2.0], 1.0)),), "batch"),
        (((1.0, pr.American(1.0, 1.0, "put")),), "exercised early"),
        (((1.0, pr.Basket(1.0, 1.0, weights=[0.5, 0.5])),), "several assets"),
        (((1.0, {"kind": "european", "strike": 1.0}),), "needs `expiry`"),
        (((1.0, {"kind": "european", "strike": 1.0, "expiri": 1.0}),), "did you mean `expiry`"),
        (((1.0, {"kind": "european", "strike": -1.0, "expiry": 1.0}),), "strike"),
        (((1.0, {"kind": "swaption"}),), "one of"),
        ((pr.European(1.0, 1.0),), "pair"),
        (({"quantity": 1.0},), "instrument"),
    ],
)
def test_bad_positions_are_refused(positions, message):
    with pytest.raises(ConfigError, match=message):
        Book(positions)


def test_barrier_that_is_crossed_today_is_refused():
    book = Book(((1.0, pr.Barrier(100.0, HORIZON, 105.0, "down-out")),))
    with pytest.raises(ConfigError, match=r"positions\.0"):
        book.liability(simulated().paths, MARKET.discount)


def test_durations_are_years_wherever_a_date_stands():
    asian = {"kind": "asian", "strike": 1.0, "times": ["73D", "146D"]}
    assert Book(({"quantity": 1.0, "instrument": asian},)).horizon == pytest.approx(0.4)
    named = {"kind": "european", "strike": 1.0, "expiry": "6M"}
    assert Book(((1.0, named),)) == Book(((1.0, pr.European(1.0, 0.5)),))
    plain = {"model": pr.BlackScholes(0.2), "market": pr.Market(1.0)}
    market = ModelMarket(**plain, instruments=(Option(1.0, "1Y"),), n_steps=2, horizon="73D")
    assert market == ModelMarket(**plain, instruments=(Option(1.0, 1.0),), n_steps=2, horizon=0.2)
    dated = ModelMarket(**plain, dates=("73D", 0.4))
    assert dated.times.tolist() == pytest.approx([0.0, 0.2, 0.4])
    assert build_kind(MARKETS, to_dict(market)) == market
    with pytest.raises(ConfigError, match=r"`positions.0.instrument.expiry` must be .* a duration such as 7D"):
        Book(((1.0, named | {"expiry": "soon"}),))
    with pytest.raises(ConfigError, match="`horizon` must be a number of years or a duration"):
        ModelMarket(**plain, n_steps=2, horizon="2 weeks")
