"""`deep_hedge` and `Hedger`: every objective trains, live steps are those of the batch, wrong questions are refused."""

import pytest
import torch

import pricers as pr
import qfml
from qfml.errors import ConfigError, DataError
from qfml.hedging import (
    OBJECTIVES,
    Attention,
    Book,
    Entropic,
    FeedForward,
    JudgementSettings,
    ModelMarket,
    Option,
    Proportional,
    Recurrent,
    Spot,
    deep_hedge,
)
from qfml.hedging.gains import gains
from qfml.hedging.judgement import stressed_markets

N_STEPS, HORIZON = 4, 4 / 365
BOOK = Book(((1.0, pr.European(1.0, HORIZON)),))
SETTINGS = {
    "entropic": {"risk_aversion": 10.0},
    "exponential_utility": {"risk_aversion": 10.0},
    "expected_shortfall": {"tail": 0.5},
    "spectral": {"tails": (0.25, 1.0), "weights": (0.5, 0.5)},
    "mean_variance": {"risk_aversion": 10.0},
    "quadratic": {},
    "quadratic_shortfall": {"scale": 10.0},
    "oce": {"loss_name": "quadratic", "risk_aversion": 10.0},
    "isoelastic": {"wealth": 0.2, "risk_aversion": 2.0},
}


def market(**changes):
    return ModelMarket(pr.BlackScholes(0.2), pr.Market(1.0), n_steps=N_STEPS, horizon=HORIZON, **changes)


def hedged(objective, **changes):
    trainer = qfml.Trainer(optimizer=qfml.AdamW(lr=3e-3), max_epochs=2, batch_size=256, seed=1)
    settings = {"costs": (Proportional(1e-3),), "policy": FeedForward(hidden=(8, 8)), "trainer": trainer}
    settings |= {"steps_per_epoch": 20, "n_validation": 256}
    return deep_hedge(changes.pop("market", market()), changes.pop("book", BOOK), objective, **settings | changes)


@pytest.fixture(scope="module")
def hedger():
    return hedged(OBJECTIVES["entropic"](10.0), seeds=(0, 1), aversions=(5.0, 20.0), cost_levels=(0.0, 2.0))


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("exact", [False, True])
def test_every_objective_trains_and_lowers_its_risk(kind, exact):
    objective = OBJECTIVES[kind](**SETTINGS[kind])
    found = hedged(objective, exact=exact, costs=())
    (fit,) = found.fits
    assert fit.status == "finished"
    fresh = found.paths(4096, seed=5)
    unhedged = objective.risk(-fresh.liability[None])
    assert float(objective.risk(found.gains(fresh).pnl)[0]) < float(unhedged[0])
    assert float(found.price(fresh).std_error[0]) > 0


def test_a_learned_quantile_hedges_a_small_tail_as_the_sample_does():
    """The level must reach the tail of the hedged book, far from that of the unhedged one, within a short training."""
    trainer = qfml.Trainer(optimizer=qfml.AdamW(lr=1e-2), max_epochs=2, batch_size=512, seed=1)
    objective = OBJECTIVES["expected_shortfall"](tail=0.02)
    settings = {"costs": (), "trainer": trainer, "steps_per_epoch": 50}
    learned, sample = (hedged(objective, exact=exact, **settings) for exact in (False, True))
    fresh = learned.paths(2**14, seed=5)
    risks = [float(objective.risk(one.gains(fresh).pnl)[0]) for one in (learned, sample)]
    assert risks[0] < 1.05 * risks[1]
    assert risks[1] < 0.5 * float(objective.risk(-fresh.liability[None])[0])


def test_members_are_all_combinations_with_gains_of_their_own_costs(hedger):
    assert [(m.seed, m.aversion, m.cost_level) for m in hedger.members] == [
        (seed, aversion, level) for seed in (0, 1) for aversion in (5.0, 20.0) for level in (0.0, 2.0)
    ]
    paths = hedger.paths(512, seed=3)
    found, holdings = hedger.gains(paths), hedger.holdings(paths)
    for place, member in enumerate(hedger.members):
        alone = gains(holdings[place : place + 1], paths, (Proportional(1e-3),), member.cost_level)
        torch.testing.assert_close(found.pnl[place], alone.pnl[0])
    assert (found.cost[0] == 0).all()
    assert (found.cost[1] > 0).all()


def test_one_date_at_a_time_holds_what_the_batch_holds(hedger):
    """For live use: within 1e-6 of the batch, by features or by what is observed."""
    paths = hedger.paths(64, seed=3)
    for member in range(len(hedger.members)):
        whole, held = hedger.holdings(paths)[member], torch.zeros(64, 1)
        for date in range(N_STEPS):
            held, _ = hedger.hedge(paths.features[:, date], held, date, member)
            torch.testing.assert_close(held, whole[:, date], rtol=0, atol=1e-6)
    one, _ = hedger.hedge({"spot": float(paths.prices[7, 0, 0])}, [0.0], 0, 2)
    torch.testing.assert_close(one, hedger.holdings(paths)[2, 7, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("policy", [Recurrent(hidden=4, cell="lstm"), Attention(width=8, hidden=4, layers=2)])
def test_a_policy_that_remembers_is_handed_its_state(policy):
    found = hedged(OBJECTIVES["entropic"](10.0), policy=policy, steps_per_epoch=2)
    paths = found.paths(64, seed=3)
    whole, held, state = found.holdings(paths)[0], torch.zeros(64, 1), ()
    states = []
    for date in range(N_STEPS):
        held, state = found.hedge(paths.features[:, date], held, date, state=state)
        states.append(state)
        torch.testing.assert_close(held, whole[:, date], rtol=0, atol=1e-6)
    one, own = found.hedge(paths.features[7, 0], [0.0], 0)  # of a single path, and on from there
    two, _ = found.hedge(paths.features[7, 1], one, 1, state=own)
    torch.testing.assert_close(two, whole[7, 1], rtol=0, atol=1e-6)
    with pytest.raises(DataError, match="`state` must be what came with the holdings of the date before"):
        found.hedge(paths.features[:, 1], held, 1)
    with pytest.raises(DataError, match="`state` must be"):
        found.hedge(paths.features[7, 1], one, 1, state=states[0])  # of other paths


def test_wrong_questions_are_refused(hedger):
    paths = hedger.paths(16, seed=3)
    now = paths.features[0, 0]
    with pytest.raises(DataError, match="number of a trading date, 0 to 3, got 4"):
        hedger.hedge(now, [0.0], 4)
    with pytest.raises(DataError, match="must be finite"):
        hedger.hedge(now * float("nan"), [0.0], 0)
    with pytest.raises(DataError, match="`log_moneyness` is not"):
        hedger.hedge(torch.tensor([float("inf"), 1.0]), [0.0], 0)
    with pytest.raises(DataError, match="`before` must be finite"):
        hedger.hedge(now, [float("nan")], 0)
    with pytest.raises(DataError, match="each of 1 instrument"):
        hedger.hedge(now, [0.0, 0.0], 0)
    with pytest.raises(DataError, match=r"shape \(3, 1\), got \(2, 1\)"):
        hedger.hedge(now.expand(3, -1), torch.zeros(2, 1), 0)
    with pytest.raises(DataError, match=r"features of shape \(2,\) or \(B, 2\).*got shape \(3,\)"):
        hedger.hedge(torch.zeros(3), [0.0], 0)
    with pytest.raises(DataError, match="'seen' must be numbers"):
        hedger.hedge("now", [0.0], 0)
    for member in (8, -1, 1.0, True):
        with pytest.raises(DataError, match="`member` must be the number of a policy, 0 to 7"):
            hedger.hedge(now, [0.0], 0, member)
    for date in (-1, 0.5, "0", True, None):
        with pytest.raises(DataError, match="`date` must be the number of a trading date, 0 to 3"):
            hedger.hedge(now, [0.0], date)
    for seen, told in (
        ({}, "lacks 'spot'"),
        ({"spot": 1.0, "vega": 1.0}, "'vega' is nothing that the policy needs, which is spot"),
        ({"spot": "one"}, "'spot' must be numbers"),
        ({"spot": 0.0}, "'spot' must be a number, above 0, got 0"),
        ({"spot": [1.0, float("nan")]}, "'spot' must be a number, above 0, got nan"),
        ({"spot": [[1.0]]}, r"'spot' must be a number, or an array \(B,\)"),
    ):
        with pytest.raises(DataError, match=told):
            hedger.hedge(seen, [0.0], 0)
    other = ModelMarket(pr.BlackScholes(0.2), pr.Market(1.0), dates=(1 / 365, 1.5 / 365, 3 / 365, HORIZON))
    with pytest.raises(DataError, match="other dates: number 2"):
        hedger.holdings(other.paths(16, BOOK, seed=1))
    two = market(instruments=(Spot(), Option(1.0, HORIZON, "call")))
    with pytest.raises(DataError, match="1 instrument"):
        hedger.holdings(two.paths(16, BOOK, seed=1))
    with pytest.raises(ConfigError, match="`n_validation`"):
        hedged(OBJECTIVES["entropic"](10.0), n_validation=1)
    with pytest.raises(ConfigError, match="has none; leave them out"):
        hedged(OBJECTIVES["quadratic"](), aversions=(1.0,))
    longer, trainer = Book(((1.0, pr.European(1.0, 2 * HORIZON)),)), qfml.Trainer(max_epochs=1, batch_size=16)
    with pytest.raises(DataError, match="horizon"):
        deep_hedge(market(), longer, OBJECTIVES["entropic"](1.0), trainer=trainer)


@pytest.mark.parametrize("quantity", [1e-3, 1e4])
def test_a_book_of_another_size_is_hedged_as_the_same_book_of_one(quantity):
    """Holdings are learned in units of the book: risk aversion and quantity together change nothing but the unit."""
    found = []
    for size in (1.0, quantity):
        book = Book(((size, pr.European(1.0, HORIZON)),))
        hedger = hedged(Entropic(50.0 / size), book=book)
        assert hedger.policy.unit == size
        price = hedger.price(hedger.paths(4096, seed=7))
        found.append((float(price.value[0]) / size, float(price.std_error[0]) / size))
    (one, error), (other, _) = found
    assert abs(other - one) < max(0.5 * error, 0.01 * one)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("aversion", [500.0, 2000.0])
def test_a_training_is_not_lost_to_steep_losses(aversion, exact):
    hedger = hedged(Entropic(aversion), exact=exact)
    assert not any(hedger.lost)
    paths = hedger.paths(4096, seed=7)
    unhedged = hedger.loss.objective.risk(-paths.liability[None])
    assert float(hedger.price(paths).value[0]) < (0.9 if exact else 1.0) * float(unhedged[0])


@pytest.mark.parametrize("noise", ["sobol", "antithetic"])
def test_what_is_judged_are_independent_paths(noise):
    """Standard errors take them to be: those that depend on one another are for training alone."""
    plain, other = market(), market(noise=noise)
    hedger = hedged(Entropic(10.0), market=other, steps_per_epoch=1)
    assert torch.equal(hedger.paths(64, seed=3).prices, plain.paths(64, BOOK, 3).prices)
    assert not torch.equal(other.paths(64, BOOK, 3).prices, plain.paths(64, BOOK, 3).prices)
    assert JudgementSettings().fresh(other) == plain
    stress = stressed_markets(other, {"wild": {"model": {"kind": "black_scholes", "vol": 0.4}}}, BOOK, 1000)
    assert stress["wild"].noise == "pseudo"
