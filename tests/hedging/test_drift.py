"""Drift and its removal: the minimal entropy martingale measure where it is known, and what can be earned under it."""

import copy
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hedging.truth import hedging_truth

import pricers as pr
import qfml
from qfml.engine import Cosine
from qfml.errors import CheckpointError, ConfigError, DataError
from qfml.hedging import (
    Book,
    BootstrappedReturns,
    Correction,
    DriftRemoved,
    Entropic,
    FeedForward,
    FixedPerTrade,
    ModelMarket,
    Option,
    PathSet,
    Proportional,
    RecordedPaths,
    Spot,
    deep_hedge,
    load_hedger,
    save_hedger,
)
from qfml.hedging.gains import gains
from qfml.hedging.measure import _warning

N_STEPS, HORIZON, VOL, DRIFT = 4, 28 / 365, 0.2, 0.3
BOOK = Book(((1.0, pr.European(1.0, HORIZON)),))
SEEN = ("log_moneyness", "time_to_horizon", "call_delta")
GIVEN = ModelMarket(
    pr.BlackScholes(VOL), pr.Market(1.0), n_steps=N_STEPS, horizon=HORIZON, drift=DRIFT, information=SEEN
)
ENTROPY = DRIFT**2 * HORIZON / (2 * VOL**2)  # of Girsanov's change of measure


def trainer(n_epochs=3, n_paths=1024, lr=5e-3, seed=1):
    optimizer = qfml.AdamW(lr=lr, weight_decay=0.0)
    return qfml.Trainer(optimizer=optimizer, schedule=Cosine(), max_epochs=n_epochs, batch_size=n_paths, seed=seed)


def few(**changes):
    """A measure of a second's training."""
    settings = {"trainer": trainer(1, 256, 1e-2), "steps_per_epoch": 20, "n_validation": 256, "n_measured": 2**12}
    return DriftRemoved(changes.pop("market", GIVEN), **settings | changes)


@pytest.fixture(scope="module")
def removed():
    market = DriftRemoved(GIVEN, trainer())
    market.measure(BOOK)
    return market


def moves(paths):
    """Changes of price of each period, (B, L - 1, K)."""
    return paths.prices.double().diff(dim=1)


def test_no_period_has_a_mean_return_and_the_volatility_is_the_same(removed):
    paths = removed.paths(2**15, BOOK, seed=7)
    found, length = moves(paths)[..., 0], HORIZON / N_STEPS
    error = found.std(0) / len(paths) ** 0.5
    assert bool((found.mean(0).abs() < 4 * error + 0.03 * DRIFT * length).all())
    returns = paths.prices[..., 0].double().log().diff(dim=1)
    torch.testing.assert_close(returns.std(0), torch.full((N_STEPS,), VOL * length**0.5).double(), rtol=0.03, atol=0)
    assert float(moves(GIVEN.paths(2**15, BOOK, seed=7)).mean()) > 0.9 * DRIFT * length


def test_the_density_is_girsanovs_and_its_entropy_mertons_gain(removed):
    """dQ/dP = exp(-k W - k^2 T / 2) with k = drift / vol; the discrete optimum differs from it by O(dt)."""
    paths, kernel = GIVEN.paths(2**14, BOOK, seed=5), DRIFT / VOL
    brownian = (paths.prices[:, -1, 0].double().log() - (DRIFT - VOL**2 / 2) * HORIZON) / VOL
    exact = -kernel * brownian - kernel**2 * HORIZON / 2
    difference = removed.measure(BOOK).log_density(paths) - exact
    assert float(difference.std()) < 0.08 * float(exact.std())
    assert abs(float(difference.mean())) < 0.02 * float(exact.std())
    told = removed.measure(BOOK).told
    trading = hedging_truth.Problem(10.0, 0.0, N_STEPS, HORIZON / N_STEPS, VOL, DRIFT, quantity=0.0)
    discrete = -10.0 * hedging_truth.frictionless(trading, hedging_truth.Grid(lowest=-5.0, highest=5.0)).price
    assert abs(discrete / ENTROPY - 1) < 0.01
    assert abs(told["entropy"]["value"] - discrete) < 4 * told["entropy"]["std_error"]
    assert told["warning"] is None


def test_a_deep_hedge_has_the_driftless_price_and_is_cheaper_by_mertons_gain_with_the_drift(removed):
    aversion, prices = 10.0, {}
    for name, market in (("removed", removed), ("given", GIVEN)):
        policy = FeedForward(hidden=(8,), sees_holdings=False, holding=Correction(("call_delta",)))
        hedger = deep_hedge(
            market, BOOK, Entropic(aversion), policy=policy, trainer=trainer(1, 512, 1e-2), n_validation=2**11
        )
        price = hedger.price(hedger.paths(2**15, seed=99))
        prices[name] = float(price.value)
        assert float(price.std_error) < 3e-4
    problem = hedging_truth.Problem(aversion, 0.0, N_STEPS, HORIZON / N_STEPS, VOL)
    driftless = hedging_truth.frictionless(problem).price
    assert abs(prices["removed"] - driftless) < 9e-4  # 3 standard errors
    assert abs(prices["given"] - (driftless - ENTROPY / aversion)) < 9e-4
    assert ENTROPY / aversion > 8e-3  # so that neither is the other


def test_with_costs_no_policy_earns_more_than_it_pays():
    """The drift is more than the cost: it is removed down to the cost of buying, and not further."""
    cost = 0.01
    market = DriftRemoved(GIVEN, trainer(2), n_validation=2**12, costs=(Proportional(cost),))
    told = market.measure(BOOK).told
    assert told["entropy"]["value"] < 0.6 * ENTROPY
    paths = market.paths(2**15, BOOK, seed=3)
    nothing = replace(paths, liability=torch.zeros_like(paths.liability))
    one = torch.ones(1, len(paths), N_STEPS, 1)
    lead = (paths.features[None, :, :-1, :1] > 0).float()  # out of the money at that date
    halves = one.clone()
    halves[:, :, : N_STEPS // 2] = 0.0
    for held in (one, -one, lead, -lead, 1 - lead, halves, one - halves):
        earned = gains(held, nothing, (Proportional(cost),)).pnl[0].double()
        assert float(earned.mean()) < 4 * float(earned.std()) / len(paths) ** 0.5 + 0.05 * cost
    left = float(moves(paths).sum(1).mean())  # the buyer of the first date is level with his cost
    assert abs(left - cost) < 0.15 * cost


def test_two_assets_of_a_record_have_the_closed_form_too():
    """Lognormal assets: the kernel is the covariance's inverse times the drifts, whatever the instruments are."""
    rng, length = np.random.default_rng(3), HORIZON / 3
    drifts, vols, correlation = np.array([0.3, -0.2]), np.array([0.2, 0.4]), 0.5
    covariance = np.outer(vols, vols) * np.array([[1.0, correlation], [correlation, 1.0]])
    noise = rng.standard_normal((40_000, 3, 2)) @ np.linalg.cholesky(covariance).T * length**0.5
    steps = (drifts - vols**2 / 2) * length + noise
    prices = np.exp(np.pad(steps.cumsum(1), ((0, 0), (1, 0), (0, 0))))
    times = tuple(np.arange(4) * length)
    given = RecordedPaths(array=prices, times=times, instruments=("one", "two"), information=("time_to_horizon",))
    market = DriftRemoved(given, trainer(2), n_validation=4096)
    measure = market.measure(BOOK)
    kernel = np.linalg.solve(covariance, drifts)
    exact = -noise.sum(1) @ kernel - 0.5 * drifts @ kernel * HORIZON
    found = measure.log_density(given.paths(None, BOOK, 0)).numpy()
    assert np.std(found - exact) < 0.15 * np.std(exact)
    paths = market.paths(2**14, BOOK, seed=1)
    for column in range(2):
        moved = moves(paths)[:, :, column].sum(1)
        before = math.exp(drifts[column] * HORIZON) - 1.0
        assert abs(float(moved.mean())) < 4 * float(moved.std()) / len(paths) ** 0.5 + 0.05 * abs(before)
    both = market.paths(None, BOOK, seed=1)
    assert abs(len(both) / len(prices) - measure.told["kept"]) < 0.02


def test_spot_and_option_have_no_drift_left():
    option = Option(1.0, 2 * HORIZON, "call")
    given = replace(GIVEN, instruments=(Spot(), option), information=("log_moneyness", "time_to_horizon"))
    market = DriftRemoved(given, trainer(2, 512, 1e-2), n_validation=2**12)
    told = market.measure(BOOK).told
    assert [one["instrument"] for one in told["drift"]] == [hedge.name for hedge in given.instruments]
    fresh = moves(market.paths(2**15, BOOK, seed=11)).sum(1)
    before = moves(given.paths(2**15, BOOK, seed=11)).sum(1)
    error = fresh.std(0) / len(fresh) ** 0.5
    assert bool((before.mean(0) > 20 * error).all())
    assert bool((fresh.mean(0).abs() < 4 * error + 0.04 * before.mean(0)).all())


def test_bootstrapped_returns_lose_their_drift():
    sp500 = {"kind": "arch", "name": "sp500"}
    given = BootstrappedReturns(sp500, n_steps=5, block_length=5, keep_drift=True)
    book = Book(((1.0, pr.European(1.0, 5 / 252)),))
    found = few(market=given, trainer=trainer(2, 2048), n_measured=2**14).measure(book).told["drift"][0]
    assert found["before"] > 3 * found["before_error"]
    assert abs(found["after"]) < 0.5 * found["before"]


def test_the_measure_and_its_paths_depend_on_settings_and_address_alone():
    one, other = few(), pickle.loads(pickle.dumps(few()))  # noqa: S301  (our own bytes)
    for number in (0, 3):
        first, second = one.paths(300, BOOK, 5, number), other.paths(300, BOOK, 5, number)
        assert torch.equal(first.prices, second.prices)
        assert torch.equal(first.features, second.features)
    assert not torch.equal(one.paths(300, BOOK, 5, 0).prices, one.paths(300, BOOK, 5, 1).prices)
    assert len(one.paths(1, BOOK, 5)) == 1
    assert one.measure(copy.deepcopy(BOOK)) is one.measure(BOOK)


def test_what_is_kept_is_kept_with_the_chance_that_the_density_says():
    """By brute force: the share kept of the candidates by quarters of their density."""
    market = few(cut=0.05)
    measure = market.measure(BOOK)
    candidates = GIVEN.paths(2**15, BOOK, seed=9)
    density = measure.log_density(candidates).exp()
    chance = (density / math.exp(measure.log_bound)).clamp(max=1.0)
    ends = {float(path[-1, 0]) for path in measure.thinned(candidates, 1).prices}
    kept = torch.tensor([float(path[-1, 0]) in ends for path in candidates.prices]).double()
    for part in density.argsort().chunk(4):
        error = float((chance[part] * (1 - chance[part])).mean().sqrt()) / len(part) ** 0.5
        assert abs(float(kept[part].mean() - chance[part].mean())) < 4 * error + 1e-3  # prices that are equal by chance
    bounded = density.clamp(max=math.exp(measure.log_bound))
    assert abs(float((density - bounded).mean()) - 0.05) < 0.02


def test_a_measure_is_read_from_its_folder_and_from_that_of_the_policies(tmp_path, monkeypatch):
    market = few()
    learned = market.measure(BOOK, tmp_path / "measures")
    hedger = deep_hedge(market, BOOK, Entropic(1.0), trainer=trainer(1, 256), steps_per_epoch=2, n_validation=256)
    save_hedger(hedger, tmp_path / "model")
    monkeypatch.setattr("qfml.hedging.drift.deep_hedge", lambda *_, **__: pytest.fail("it is known"))
    again = few().measure(BOOK, tmp_path / "measures")
    assert again.told == learned.told
    expected = market.paths(100, BOOK, 1).prices
    assert torch.equal(load_hedger(tmp_path / "model").paths(100, 1).prices, expected)
    (state,) = (tmp_path / "measures").glob("*/measure/state.json")
    state.write_text(state.read_text().replace("log_mean", "log_nean"))
    with pytest.raises(CheckpointError):
        few().measure(BOOK, tmp_path / "measures")


def test_validation_under_the_measure_is_of_paths_that_are_not_trained_on():
    prices = np.exp(np.pad(np.random.default_rng(0).normal(0.001, 0.02, (3000, 2)).cumsum(1), ((0, 0), (1, 0))))
    given = RecordedPaths(array=prices, times=(0.0, HORIZON / 2, HORIZON))
    market = few(market=given, n_validation=500)
    first, last = (set(part.paths(None, BOOK, 0).prices[:, -1, 0].tolist()) for part in market.parted(500))
    ends = torch.tensor(prices[:, -1], dtype=torch.float32).tolist()
    assert first <= set(ends[:2500])
    assert last <= set(ends[2500:])
    assert len(first) > 4 * len(last) > 0


def test_a_measure_on_few_paths_is_said_or_refused():
    told = few(n_measured=500).measure(BOOK).told
    assert "effective paths of 500" in told["warning"]
    rises = np.linspace(1.0, 2.0, 3) * np.random.default_rng(1).uniform(0.99, 1.01, (200, 3))
    sure = RecordedPaths(array=rises, times=(0.0, HORIZON / 2, HORIZON))  # every path earns: an arbitrage
    with pytest.raises(DataError, match="the drift cannot be removed: of 100 paths"):
        few(n_measured=100).measure(BOOK)
    with pytest.raises(DataError, match=r"the drift is not removed: spot still earns 0.9.*an arbitrage"):
        few(market=sure, trainer=trainer(1, 64, 1e-2), n_validation=50, steps_per_epoch=20).measure(BOOK)
    with pytest.raises(DataError, match="`n_validation` takes the last paths of a record"):
        few(market=sure, n_validation=200).measure(BOOK)


def test_a_drift_that_is_left_is_said_or_refused():
    one = {"instrument": "spot", "before": 1.0, "after": 0.05, "after_error": 0.001}
    told = {"costs": [], "effective_paths": 2000.0, "n_paths": 4000, "drift": [one]}
    assert _warning(told) is None
    assert _warning(told | {"drift": [one | {"after": -0.2, "after_error": 0.06}]}) is None  # it may be 0
    said = _warning(told | {"drift": [one | {"after": -0.2}]})
    assert said == "spot still earns -0.2 on average, of 1: train the measure longer"
    with pytest.raises(DataError, match=r"the drift is not removed: spot still earns 0.6 on average, of 1"):
        _warning(told | {"drift": [one | {"after": 0.6}]})
    assert _warning(told | {"drift": [one | {"after": 0.6}], "costs": [{"kind": "proportional"}]}) is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"cut": 0.5}, "`cut` is a probability"),
        ({"cut": float("nan")}, "`cut`"),
        ({"n_measured": 10}, "`n_measured`"),
        ({"n_validation": 1}, "`n_validation`"),
        ({"steps_per_epoch": 0}, "`steps_per_epoch`"),
        ({"trainer": trainer(n_paths=100)}, "a multiple of 16"),
        ({"costs": (FixedPerTrade(0.1),)}, "must be proportional, got `fixed_per_trade`"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, told):
    with pytest.raises(ConfigError, match=told):
        few(**changes)


def test_a_market_without_drift_is_not_wrapped_twice():
    from qfml.config import build_kind
    from qfml.hedging import MARKETS

    assert isinstance(few().paths(16, BOOK, 0), PathSet)
    with pytest.raises(ConfigError, match="`kind: drift_removed` is not known"):
        build_kind(
            MARKETS, {"kind": "drift_removed", "market": {"kind": "drift_removed"}, "trainer": {"batch_size": 64}}
        )
