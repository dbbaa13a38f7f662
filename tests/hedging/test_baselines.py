"""Textbook hedges against closed forms, published values, loops, other engines' Greeks and what they should achieve."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hedging.truth import hedging_truth
from references import WHALLEY_WILMOTT_HOLDING

import pricers as pr
from pricers.black import black_greeks, black_scholes_greeks
from qfml.config import build_kind, to_dict
from qfml.errors import ConfigError, DataError
from qfml.hedging.baselines import (
    BASELINES,
    Baseline,
    BlackScholesDelta,
    HedgingProblem,
    HullWhiteDelta,
    Leland,
    MinimumVarianceDelta,
    ModelDelta,
    NoHedge,
    WhalleyWilmott,
    leland_vol,
    whalley_wilmott_width,
)
from qfml.hedging.book import Book
from qfml.hedging.costs import FixedPerTrade, Proportional
from qfml.hedging.gains import gains
from qfml.hedging.hull_white import fitted_hull_white
from qfml.hedging.instruments import Option, Spot, VarianceSwapHedge
from qfml.hedging.model_market import ModelMarket
from qfml.hedging.objectives import Entropic, ExpectedShortfall, Quadratic
from qfml.hedging.paths import PathSet
from qfml.hedging.textbook import Case, textbook_hedges

HESTON = {"kind": "heston", "v0": 0.04, "kappa": 2.0, "theta": 0.05, "sigma": 0.6, "rho": -0.7}
BLACK_SCHOLES = {"kind": "black_scholes", "vol": 0.2}
MARKET = {"spot": 100.0, "rate": 0.03, "dividend_yield": 0.01}
SPOT = (Spot(),)
EXAMPLES = [
    NoHedge(),
    BlackScholesDelta(0.2),
    ModelDelta(),
    MinimumVarianceDelta(),
    HullWhiteDelta(0.2, (0.1, -0.2, 0.1)),
    WhalleyWilmott(0.2, 1.0, 1e-3),
    Leland(0.2, 1e-3),
]
CALL = Book(((1.0, pr.European(100.0, 0.1)),))


def market_of(model=BLACK_SCHOLES, market=MARKET, n_steps=10, instruments=SPOT, information=("log_moneyness",)):
    return ModelMarket(model, market, instruments, n_steps=n_steps, horizon=0.1, information=information)


def problem_of(market, book=CALL):
    return HedgingProblem(book, market.simulated_market, market.instruments, market.simulated_model, market.vol)


def drawn(market, book=CALL, n_paths=50):
    return market.paths(n_paths, book, seed=3, dtype=torch.float64), problem_of(market, book)


def spread(holdings, paths):
    return float(gains(holdings[None], paths).pnl.std())


def test_without_a_hedge_nothing_is_held():
    paths, problem = drawn(market_of())
    assert NoHedge().holdings(paths, problem).count_nonzero() == 0
    torch.testing.assert_close(gains(NoHedge().holdings(paths, problem)[None], paths).pnl[0], -paths.liability)


def test_black_scholes_delta_is_that_of_the_formula_in_shares():
    book = Book(((2.0, pr.European(95.0, 0.1, "put")), (-1.0, pr.European(105.0, 0.06))))
    market = market_of()
    paths, problem = drawn(market, book)
    found = BlackScholesDelta(0.25).holdings(paths, problem)
    for date, time in enumerate(paths.times[:-1]):
        spot = paths.prices[:, date, 0] * market.simulated_market.growth(time)
        expected = torch.zeros_like(spot)
        for quantity, contract in zip(book.quantities, book.contracts, strict=True):
            left = float(contract.expiry - time)
            if left > 1e-9:
                greeks = black_scholes_greeks(spot, contract.strike, left, 0.25, 0.03, 0.01, contract.option)
                expected += quantity * greeks.delta
        shares = found[:, date, 0] * torch.exp(0.01 * time)  # of one unit, dividends reinvested
        torch.testing.assert_close(shares, expected, atol=1e-12, rtol=0)


def test_a_forward_is_held_without_trading_and_without_risk():
    """Call less put: one holding, whatever happens, and the liability is replicated to rounding."""
    book = Book(((1.0, pr.European(97.0, 0.1)), (-1.0, pr.European(97.0, 0.1, "put"))))
    paths, problem = drawn(market_of(), book)
    for baseline in (BlackScholesDelta(0.3), ModelDelta(), WhalleyWilmott(0.3, 1.0, 1e-3)):
        holdings = baseline.holdings(paths, problem)
        torch.testing.assert_close(holdings, torch.full_like(holdings, math.exp(-0.01 * 0.1)))
        assert spread(holdings, paths) < 1e-10


def test_replication_error_falls_with_the_root_of_the_number_of_trades():
    steps = np.array([8, 16, 32, 64, 128])
    errors = []
    for n_steps in steps.tolist():
        paths, problem = drawn(market_of(n_steps=n_steps), n_paths=10_000)
        errors.append(spread(BlackScholesDelta(0.2).holdings(paths, problem), paths))
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.03)
    # Derman and Kamal (1999), "When You Cannot Hedge Continuously": sqrt(pi / 4) vega vol / sqrt(n)
    vega = float(black_greeks(100.0 * math.exp(0.02 * 0.1), 100.0, 0.1, 0.2).vega)
    assert errors[-1] == pytest.approx(math.sqrt(math.pi / 4) * vega * 0.2 / math.sqrt(128), rel=0.05)


@pytest.mark.parametrize(
    "baseline", [ModelDelta(), MinimumVarianceDelta(), WhalleyWilmott(0.2, 1.0, 0.0), Leland(0.2, 0.0)]
)
def test_hedges_that_are_black_and_scholes_own(baseline):
    paths, problem = drawn(market_of())
    torch.testing.assert_close(baseline.holdings(paths, problem), BlackScholesDelta(0.2).holdings(paths, problem))


@pytest.mark.parametrize(("log_moneyness", "holding"), WHALLEY_WILMOTT_HOLDING.items())
def test_published_holding_of_whalley_and_wilmott(log_moneyness, holding):
    spot = torch.tensor([math.exp(log_moneyness)], dtype=torch.float64)
    greeks = black_greeks(spot, 1.0, 0.1, 0.2)
    width = whalley_wilmott_width(greeks.gamma, spot, cost=1e-5, risk_aversion=1.0)
    after = torch.tensor(0.5, dtype=torch.float64).clamp(greeks.delta - width, greeks.delta + width)
    assert float(after) == pytest.approx(holding, abs=5e-5)


def test_whalley_and_wilmotts_holdings_are_the_nearest_of_each_band():
    paths, problem = drawn(market_of(), n_paths=5)
    found = WhalleyWilmott(0.2, 0.5, 2e-3).holdings(paths, problem)[..., 0]
    growth, discount = math.exp(0.02 * 0.1), math.exp(-0.03 * 0.1)
    n_stays = 0
    for path in range(5):
        before = 0.0
        for date, time in enumerate(paths.times[:-1].tolist()):
            spot = float(paths.prices[path, date, 0])
            greeks = black_greeks(spot * growth, 100.0, 0.1 - time, 0.2, discount)
            delta, gamma = float(greeks.delta) * growth, float(greeks.gamma) * growth**2
            width = (1.5 * 2e-3 / 0.5 * spot * gamma**2) ** (1 / 3)
            after = min(max(before, delta - width), delta + width)
            n_stays += after == before
            assert float(found[path, date]) == pytest.approx(after, abs=1e-12)
            before = after
    assert n_stays > 5


def test_whalley_and_wilmott_come_near_the_exact_price_and_beat_the_delta():
    problem = hedging_truth.Problem(50.0, 1e-3)
    exact = hedging_truth.solve(problem, hedging_truth.Grid(3, 51)).price
    horizon = 28 / 365
    book = Book(((1.0, pr.European(1.0, horizon)),))
    market = ModelMarket(BLACK_SCHOLES, {"spot": 1.0}, n_steps=28, horizon=horizon)
    paths = market.paths(40_000, book, seed=5, dtype=torch.float64)
    prices = {}
    for baseline in (WhalleyWilmott(0.2, 50.0, 1e-3), Leland(0.2, 1e-3), BlackScholesDelta(0.2)):
        held = baseline.holdings(paths, problem_of(market, book))[None]
        pnl = gains(held, paths, [Proportional(1e-3)]).pnl[0]
        prices[baseline.kind] = float(torch.logsumexp(-50 * pnl, 0) - math.log(len(pnl))) / 50
    assert exact - 2e-5 < prices["whalley_wilmott"] < exact + 3e-4
    assert prices["leland"] > prices["whalley_wilmott"]
    assert prices["black_scholes_delta"] > prices["whalley_wilmott"]


def test_lelands_vol():
    # Leland (1985), eq. 12 with a round trip of 2 c
    expected = 0.2 * math.sqrt(1 + math.sqrt(2 / math.pi) * 2e-3 / (0.2 * math.sqrt(1 / 52)))
    assert leland_vol(0.2, 1e-3, 1 / 52) == pytest.approx(expected, rel=1e-12)
    assert leland_vol(0.2, 0.0, 1 / 52) == 0.2
    assert leland_vol(0.2, 1e-3, 1 / 52, short=False) < 0.2
    with pytest.raises(ConfigError, match=r"needs costs below 0\.017 at this vol and step"):
        leland_vol(0.2, 0.02, 1 / 52, short=False)
    paths, problem = drawn(market_of(), Book(((1.0, pr.European(100.0, 0.1)), (-1.0, pr.European(110.0, 0.1)))))
    short, held = (leland_vol(0.2, 1e-3, 0.01, side) for side in (True, False))
    one, other = (HedgingProblem(Book((each,)), problem.market) for each in problem.book.positions)
    expected = BlackScholesDelta(short).holdings(paths, one) + BlackScholesDelta(held).holdings(paths, other)
    torch.testing.assert_close(Leland(0.2, 1e-3).holdings(paths, problem), expected)


def test_lelands_premium_pays_for_the_costs():
    """Its promise: at its own price, the mean of what is left after costs is about nothing, in the limit."""
    market = market_of(market={"spot": 100.0}, n_steps=200)
    paths, problem = drawn(market, n_paths=4000)
    found = gains(Leland(0.2, 1e-3).holdings(paths, problem)[None], paths, [Proportional(1e-3)])
    premium = float(
        pr.price(pr.European(100.0, 0.1), pr.BlackScholes(leland_vol(0.2, 1e-3, 0.1 / 200)), pr.Market(100.0)).value
    )
    first = 1e-3 * 100.0 * 0.5  # the first trade is not in it
    assert float(found.pnl.mean()) + premium + first == pytest.approx(0.0, abs=0.04)
    assert premium - 2.5228 > 0.3


@pytest.mark.parametrize(
    "model", [HESTON, HESTON | {"kind": "bates", "intensity": 0.5, "jump_mean": -0.1, "jump_std": 0.1}]
)
def test_slopes_under_stochastic_variance_are_the_greeks_of_the_engine(model):
    market = market_of(model, n_steps=2, information=("variance",))
    paths, problem = drawn(market, n_paths=6)
    delta = ModelDelta().holdings(paths, problem)
    smallest = MinimumVarianceDelta().holdings(paths, problem) if model["kind"] == "heston" else None
    variance = paths.features[..., 0].double() * market.vol**2
    for date in (0, 1):
        time = paths.times[date]
        spot = paths.prices[:, date, 0] * market.simulated_market.growth(time)
        state = type(problem.model)(**(problem.model.parameters() | {"v0": variance[:, date]}))
        today = pr.Market(spot, rate=0.03, dividend_yield=0.01)
        greeks = pr.greeks(pr.European(100.0, 0.1 - float(time)), state, today, wrt=("spot", "v0"))
        expected, vega = greeks["spot"].value, greeks["v0"].value
        shares = math.exp(-0.01 * float(time))
        torch.testing.assert_close(delta[:, date, 0], expected * shares, atol=2e-5, rtol=0)
        if smallest is not None:
            corrected = (expected - 0.7 * 0.6 * vega / spot) * shares
            torch.testing.assert_close(smallest[:, date, 0], corrected, atol=3e-5, rtol=0)


@pytest.mark.parametrize("kind", ["down-out", "down-in", "digital"])
def test_digitals_and_barriers_by_differences_of_their_prices(kind):
    barrier = pr.Barrier(100.0, 0.1, 96.0, kind="down-out" if kind == "digital" else kind)
    contract = pr.Digital(102.0, 0.1, "call") if kind == "digital" else barrier
    book = Book(((-2.0, contract),))
    market = market_of(n_steps=4, information=("log_moneyness",) if kind == "digital" else ("log_moneyness", "alive"))
    paths, problem = drawn(market, book, n_paths=12)
    found = BlackScholesDelta(0.2).holdings(paths, problem)
    torch.testing.assert_close(ModelDelta().holdings(paths, problem), found)
    alive = torch.ones(12, 4) if kind == "digital" else paths.features[:, :-1, 1]
    assert kind == "digital" or 0 < int((alive == 0).sum()) < 30
    for path in range(12):
        for date in (0, 1, 3):
            time = float(paths.times[date])
            growth, discount = math.exp(0.02 * time), math.exp(-0.03 * time)
            weight = float(alive[path, date])

            def value(unit, time=time, growth=growth, discount=discount, weight=weight):
                today = pr.Market(unit * growth, rate=0.03, dividend_yield=0.01)
                left, model = torch.tensor(time, dtype=torch.float64), pr.BlackScholes(0.2)
                live = float(pr.price(contract.shifted(left), model, today).value) if weight > 0 else 0.0
                dead = float(pr.price(pr.European(100.0, 0.1 - time), model, today).value) if kind == "down-in" else 0.0
                return discount * (weight * live + (1 - weight) * dead)

            spot = float(paths.prices[path, date, 0])
            slope = (value(spot + 1e-4) - value(spot - 1e-4)) / 2e-4
            assert float(found[path, date, 0]) == pytest.approx(-2 * slope, abs=2e-5)


def test_a_hedged_barrier_leaves_the_risk_of_hedging_at_dates():
    """Delta-hedging at dates leaves an error, but far less than the book alone, and none for what is dead."""
    book = Book(((1.0, pr.Barrier(100.0, 0.1, 96.0, kind="down-out")),))
    market = market_of(n_steps=50, information=("alive",))
    paths, problem = drawn(market, book, n_paths=500)
    held = BlackScholesDelta(0.2).holdings(paths, problem)
    assert spread(held, paths) < 0.15 * spread(NoHedge().holdings(paths, problem), paths)
    assert held[..., 0][paths.features[:, :-1, 0] == 0].count_nonzero() == 0
    hidden, _ = drawn(market_of(n_steps=50, information=("log_moneyness",)), book, n_paths=500)
    assert torch.equal(BlackScholesDelta(0.2).holdings(hidden, problem), held)  # it knows what a policy does not see
    blind = PathSet(paths.times, paths.prices, paths.liability, paths.features, paths.instrument_names, ("other",))
    with pytest.raises(ConfigError, match=r"whether it is alive, got the features other: add 'alive'"):
        BlackScholesDelta(0.2).holdings(blind, problem)


@pytest.mark.slow
def test_what_hedges_the_variance_reduces_the_risk():
    instruments = (Spot(), VarianceSwapHedge(0.1), Option(105.0, 0.3))
    market = market_of(HESTON, n_steps=20, instruments=instruments, information=("vol", "prices"))
    paths, problem = drawn(market, n_paths=2000)
    alone = HedgingProblem(CALL, problem.market, (Spot(),), problem.model, problem.vol)
    with_option = HedgingProblem(CALL, problem.market, (Spot(), instruments[2]), problem.model, problem.vol)
    names = [each.name for each in instruments]
    in_spot = PathSet(
        paths.times, paths.prices[..., :1], paths.liability, paths.features, (names[0],), paths.feature_names
    )
    in_option = PathSet(
        paths.times,
        paths.prices[..., [0, 2]],
        paths.liability,
        paths.features,
        (names[0], names[2]),
        paths.feature_names,
    )
    delta = spread(ModelDelta().holdings(in_spot, alone), in_spot)
    smallest = spread(MinimumVarianceDelta().holdings(in_spot, alone), in_spot)
    swapped = ModelDelta().holdings(paths, problem)
    assert smallest < 0.97 * delta
    assert spread(swapped, paths) < 0.8 * smallest
    assert spread(ModelDelta().holdings(in_option, with_option), in_option) < 0.8 * smallest
    assert swapped[:, 0, 1].abs().min() > 0
    assert swapped[..., 2].count_nonzero() == 0


def test_a_variance_of_zero_has_the_slope_of_the_engine():
    market = market_of(HESTON, n_steps=1, information=("variance",))
    paths, problem = drawn(market, n_paths=4)
    still = PathSet(
        paths.times, paths.prices, paths.liability, torch.zeros_like(paths.features), ("spot",), ("variance",)
    )
    found = MinimumVarianceDelta().holdings(still, problem)[0, 0, 0]
    state = pr.Heston(1e-12, 2.0, 0.05, 0.6, -0.7)
    greeks = pr.greeks(pr.European(100.0, 0.1), state, problem.market, wrt=("spot", "v0"))
    expected = float(greeks["spot"].value) - 0.7 * 0.6 * float(greeks["v0"].value) / 100
    assert float(found) == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("baseline", EXAMPLES, ids=str)
def test_baselines_come_back_from_their_settings_and_keep_the_precision(baseline):
    assert build_kind(BASELINES, to_dict(baseline)) == baseline
    assert isinstance(baseline, Baseline)
    assert {type(each) for each in EXAMPLES} == set(BASELINES.values())
    paths, problem = drawn(market_of(), n_paths=3)
    single = paths.to("cpu", torch.float32)
    held = baseline.holdings(single, problem)
    assert held.dtype == torch.float32
    assert held.shape == (3, 10, 1)
    torch.testing.assert_close(held.double(), baseline.holdings(paths, problem), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "black_scholes_delta", "vol": 0.0}, "`vol` must be positive"),
        ({"kind": "black_scholes_delta", "vol": "implied"}, "realised"),
        ({"kind": "hull_white_delta", "vol": 0.2, "coefficients": [0.1, math.inf, 0.0]}, "three finite numbers"),
        ({"kind": "leland", "vol": 0.2, "cost": 1.0}, r"`cost` must lie in \[0, 1\)"),
        (
            {"kind": "whalley_wilmott", "vol": 0.2, "risk_aversion": 0.0, "cost": 1e-3},
            "`risk_aversion` must be positive",
        ),
        ({"kind": "whalley_wilmott", "vol": 0.2, "risk_aversion": 1.0, "cost": -1e-3}, r"`cost` must lie in \[0, 1\)"),
    ],
)
def test_settings_that_are_none_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        build_kind(BASELINES, settings)


def test_problems_without_a_formula_are_refused():
    paths, problem = drawn(market_of(), n_paths=3)
    asian = HedgingProblem(Book(((1.0, pr.Asian(100.0, [0.05, 0.1])),)), problem.market, model=problem.model)
    for baseline in EXAMPLES[1:]:
        with pytest.raises(
            ConfigError, match=r"of European options, the book has positions.0 \(asian\)|book's Asian has no"
        ):
            baseline.holdings(paths, asian)
        with pytest.raises(DataError, match="trades the spot, which must be the first instrument"):
            baseline.holdings(paths, HedgingProblem(CALL, problem.market, (Option(100.0, 0.2),), problem.model))
    with pytest.raises(ConfigError, match="got no model; take black_scholes_delta"):
        ModelDelta().holdings(paths, HedgingProblem(CALL, problem.market))
    heston = pr.Heston(0.04, 2.0, 0.05, 0.6, -0.7)
    with pytest.raises(ConfigError, match=r"needs the variance on the paths, .* add 'variance' to `information`"):
        ModelDelta().holdings(replace(paths, known={}), HedgingProblem(CALL, problem.market, model=heston))
    merton = pr.Merton(0.2, 0.5, -0.1, 0.1)
    with pytest.raises(ConfigError, match="that of heston or black_scholes, got merton: jumps ask"):
        MinimumVarianceDelta().holdings(paths, HedgingProblem(CALL, problem.market, model=merton))


def with_realised(paths, vols):
    """The same paths, on which past returns have realised `vols` (B, L), in units of 10 %."""
    features = (vols / 0.1)[..., None]
    return PathSet(paths.times, paths.prices, paths.liability, features, paths.instrument_names, ("realised_vol",))


@pytest.mark.parametrize(
    "hedge",
    [
        lambda vol: BlackScholesDelta(vol),
        lambda vol: Leland(vol, 1e-3),
        lambda vol: WhalleyWilmott(vol, 1.0, 1e-3),
        lambda vol: HullWhiteDelta(vol, (0.1, -0.2, 0.1)),
    ],
)
@pytest.mark.parametrize("contract", [pr.European(100.0, 0.1), pr.Digital(100.0, 0.1)])
def test_a_realised_vol_is_that_of_each_path_and_date(hedge, contract):
    """Two paths of two vols: what each would hold if that were the vol of all."""
    if isinstance(contract, pr.Digital) and hedge(0.2).kind == "leland":
        contract = pr.European(100.0, 0.1, "put")
    paths, problem = drawn(market_of(), Book(((1.0, contract),)), n_paths=2)
    vols = torch.tensor([0.15, 0.4], dtype=torch.float64)[:, None].expand(2, 11)
    problem = HedgingProblem(problem.book, problem.market, SPOT, None, 0.1)
    found = hedge("realised").holdings(with_realised(paths, vols), problem)
    for row, vol in enumerate((0.15, 0.4)):
        torch.testing.assert_close(found[row], hedge(vol).holdings(paths, problem)[row], rtol=1e-10, atol=1e-12)
    later = vols.clone()
    later[:, 5:] = 0.9  # what comes later moves nothing before
    moved = hedge("realised").holdings(with_realised(paths, later), problem)
    assert torch.equal(moved[:, :5], found[:, :5])
    assert not torch.allclose(moved[:, 5:], found[:, 5:])


def test_a_realised_vol_that_cannot_be_seen_is_refused():
    paths, problem = drawn(market_of(), n_paths=3)
    with pytest.raises(ConfigError, match="add 'realised_vol' to `information`"):
        BlackScholesDelta("realised").holdings(paths, problem)
    vols = torch.full((3, 11), 0.2, dtype=torch.float64)
    vols[1, 4] = 0.0
    with pytest.raises(DataError, match="path 1 has realised nothing by its date 4"):
        BlackScholesDelta("realised").holdings(with_realised(paths, vols), problem)


def test_hull_and_whites_delta_by_hand():
    """One date before the horizon: delta plus vega (a + b delta + c delta^2) / (S sqrt tau)."""
    problem = HedgingProblem(CALL, pr.Market(100.0), SPOT, None, 1.0)
    prices = torch.full((1, 2, 1), 97.0, dtype=torch.float64)
    times = torch.tensor([0.0, 0.1], dtype=torch.float64)
    paths = PathSet(times, prices, torch.zeros(1, dtype=torch.float64), prices, ("spot",), ("seen",))
    greeks = black_scholes_greeks(97.0, 100.0, 0.1, 0.25, 0.0, 0.0)
    delta, vega = (float(getattr(greeks, name)) for name in ("delta", "vega"))
    expected = delta + vega / (97.0 * math.sqrt(0.1)) * (0.1 - 0.3 * delta + 0.2 * delta**2)
    held = HullWhiteDelta(0.25, (0.1, -0.3, 0.2)).holdings(paths, problem)
    assert float(held) == pytest.approx(expected, rel=1e-10)


def test_the_fitted_delta_has_less_variance_and_finds_nothing_where_there_is_nothing():
    """Under Heston with negative correlation the delta is too large; under Black and Scholes it needs no correction."""
    market = market_of(HESTON, n_steps=40, information=("variance",))
    paths, problem = drawn(market, n_paths=20_000)
    problem = HedgingProblem(CALL, problem.market, SPOT, None, 0.2)
    fitted = fitted_hull_white(paths.rows(slice(0, 10_000)), problem, 0.2)
    fresh = paths.rows(slice(10_000, None))
    model = ModelDelta().holdings(fresh, HedgingProblem(CALL, problem.market, SPOT, market.simulated_model, market.vol))
    held = {"fitted": fitted.holdings(fresh, problem), "delta": BlackScholesDelta(0.2).holdings(fresh, problem)}
    held["best"] = MinimumVarianceDelta().holdings(
        fresh, HedgingProblem(CALL, problem.market, SPOT, market.simulated_model, market.vol)
    )
    std = {name: float(gains(one[None], fresh).pnl.std()) for name, one in held.items()}
    assert std["best"] < 1.02 * std["fitted"]
    assert std["fitted"] < 0.97 * std["delta"]
    assert float(gains(model[None], fresh).pnl.std()) > std["fitted"]
    still, problem = drawn(market_of(n_steps=40), n_paths=20_000)
    found = fitted_hull_white(still, problem, 0.2)
    moved = found.holdings(still, problem) - BlackScholesDelta(0.2).holdings(still, problem)
    assert float(moved.abs().mean()) < 0.01


@pytest.mark.parametrize(
    ("objective", "costs", "level", "told"),
    [
        (Entropic(1.0), (Proportional(1e-3),), 1.0, {}),
        (
            ExpectedShortfall(0.5),
            (Proportional(1e-3),),
            1.0,
            {"whalley_wilmott": "risk aversion of exponential utility, the objective is expected_shortfall"},
        ),
        (Quadratic(), (Proportional(1e-3),), 1.0, {"whalley_wilmott": "the objective is quadratic"}),
        (
            Entropic(1.0),
            (Proportional(0.0), FixedPerTrade(1e-3)),
            1.0,
            dict.fromkeys(("leland", "whalley_wilmott"), "the costs are fixed_per_trade, without a rate of the spot"),
        ),
        (ExpectedShortfall(0.5), (), 1.0, {}),
        (ExpectedShortfall(0.5), (Proportional((0.0,)),), 1.0, {}),
        (ExpectedShortfall(0.5), (Proportional(1e-3), FixedPerTrade(1e-3)), 0.0, {}),
    ],
)
def test_hedges_for_costs_that_are_dropped_say_why(objective, costs, level, told):
    market = market_of()
    aversion = None if objective.dial is None else 0.5
    few = market.paths(16, CALL, 0)
    hedges, left_out = textbook_hedges(market, CALL, objective, costs, Case(aversion, level), few)
    assert left_out.keys() == told.keys()
    assert all(reason in left_out[name] for name, reason in told.items())
    assert not told.keys() & hedges.keys()


def test_the_models_hedges_stand_beside_a_policy_that_does_not_see_the_variance():
    heston = pr.Heston(0.04, 2.0, 0.05, 0.6, -0.7)
    blind, seeing = (
        ModelMarket(heston, pr.Market(100.0), n_steps=4, horizon=0.1, information=seen)
        for seen in (("log_moneyness",), ("log_moneyness", "variance"))
    )
    for market, n_features, known in ((blind, 1, {"variance"}), (seeing, 2, set())):
        made = market.paths(64, CALL, seed=3)
        assert (made.features.shape[-1], set(made.known)) == (n_features, known)
        assert set(made.rows(slice(3)).known) == known
    told = []
    for market in (blind, seeing):
        paths, problem = market.paths(64, CALL, seed=3), problem_of(market, CALL)
        hedges, left_out = textbook_hedges(market, CALL, Entropic(1.0), (), Case(1.0, 1.0), paths)
        assert {"model_delta", "minimum_variance_delta"} <= set(hedges)
        assert not left_out
        told.append([hedge.holdings(paths, problem) for hedge in hedges.values()])
    for one, other in zip(*told, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)  # a feature is in single precision
