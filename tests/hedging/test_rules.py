"""Trading rules: limits and lots against brute force, slopes that lead back, the same for baselines and policies."""

import math

import pytest
import torch

import pricers as pr
import qfml
from qfml.errors import ConfigError
from qfml.hedging import (
    Band,
    BlackScholesDelta,
    Book,
    Entropic,
    FeedForward,
    ModelMarket,
    NoHedge,
    Proportional,
    TradingRules,
    deep_hedge,
    judge,
    load_hedger,
    save_hedger,
)
from qfml.hedging.gains import gains
from qfml.hedging.judgement import JudgementSettings
from qfml.hedging.rules import Ruled
from qfml.hedging.textbook import problem_of


def nearest(wish, low, high, lot):
    """By trying every multiple of the lot within the limits."""
    counts = range(math.ceil(-20 / lot), math.floor(20 / lot) + 1)
    allowed = [count * lot for count in counts if low - 1e-12 <= count * lot <= high + 1e-12]
    return min(allowed, key=lambda held: abs(held - wish))


@pytest.mark.parametrize(
    ("low", "high", "lot"), [(-1.0, 1.0, 0.3), (0.1, 0.95, 0.25), (-3.0, -0.5, 0.7), (0.0, 0.3, 0.1)]
)
def test_what_is_held_is_the_nearest_multiple_within_the_limits(low, high, lot):
    wish = torch.randn(500, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    held = TradingRules(low, high, lot).of(wish)
    expected = torch.tensor([nearest(one, low, high, lot) for one in wish[:, 0].tolist()], dtype=torch.float64)
    torch.testing.assert_close(held[:, 0], expected, rtol=0, atol=1e-12)
    single = TradingRules(low, high, lot).of(wish.float())  # and whole lots in single precision
    assert bool(((single / lot - (single / lot).round()).abs() < 1e-5).all())


def test_each_instrument_has_rules_of_its_own():
    rules = TradingRules(min_holding=(None, 0.0), max_holding=(1.0, None), lot=(None, 0.5))
    wish = torch.tensor([[-7.3, -1.0], [0.4, 0.8], [2.0, 9.2]])
    torch.testing.assert_close(rules.of(wish), torch.tensor([[-7.3, 0.0], [0.4, 1.0], [1.0, 9.0]]))


def test_none_leave_everything_as_it_is():
    wish = torch.randn(5, 2)
    assert TradingRules().of(wish) is wish
    assert TradingRules().free
    assert not TradingRules(lot=1.0).free


def test_slopes_go_straight_through_lots_and_lead_back_from_beyond_the_limits():
    rules = TradingRules(0.0, 1.0, 0.5)
    wish = torch.tensor([[-0.5], [-0.5], [0.3], [0.3], [1.5], [1.5]], requires_grad=True)
    slope = torch.tensor([[1.0], [-1.0], [1.0], [-1.0], [1.0], [-1.0]])
    # a step goes against the slope: up from below where it is negative, down from above where it is positive
    expected = torch.tensor([[0.0], [-1.0], [1.0], [-1.0], [1.0], [0.0]])
    assert torch.equal(rules.slopes(slope, wish), expected)
    (found,) = torch.autograd.grad(rules.of(wish), wish, slope)
    assert torch.equal(found, expected)


def test_a_wish_beyond_the_limits_comes_in_and_one_that_wants_out_stays_at_the_limit():
    for start, optimum, end in ((5.0, 0.4, 0.4), (-5.0, 0.4, 0.4), (0.5, 3.0, 1.0)):
        wish = torch.tensor([start], requires_grad=True)
        for _ in range(300):
            (slope,) = torch.autograd.grad((TradingRules(0.0, 1.0).of(wish) - optimum).square().sum(), wish)
            wish = (wish - 0.05 * slope.clamp(-1, 1)).detach().requires_grad_()
        assert float(TradingRules(0.0, 1.0).of(wish.detach())[0]) == pytest.approx(end, abs=0.01)
        assert abs(float(wish.detach()[0])) < 1.1  # it does not run away beyond the limit


def test_a_band_starts_from_what_is_held_under_the_rules():
    rule = Ruled(Band(("delta",)), TradingRules(lot=0.5))
    raw, hedge = torch.tensor([[0.1, 0.1]]), torch.tensor([[0.62]])
    # the band is .52 to .72: from 0 its lower end is wished, .5 held; from there .52 is wished again
    assert rule.of(raw, torch.zeros(1, 1), hedge).tolist() == [[0.5]]
    assert rule.of(raw, torch.tensor([[0.5]]), hedge).tolist() == [[0.5]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lot": 0.0}, "`lot` must be above 0, got 0.0"),
        ({"lot": -1.0}, "`lot` must be above 0, got -1.0"),
        ({"min_holding": 1.0, "max_holding": 0.5}, "below `max_holding`, got 1.0 and 0.5"),
        ({"min_holding": 1.0, "max_holding": 1.0}, "below `max_holding`"),
        ({"min_holding": 0.1, "max_holding": 0.4, "lot": 0.5}, "no multiple of `lot` 0.5 between"),
        ({"max_holding": math.inf}, "`max_holding` must be finite"),
        ({"min_holding": math.nan}, "`min_holding` must be finite"),
        ({"lot": (1.0, 2.0), "max_holding": (1.0, 1.0, 1.0)}, "one for each instrument"),
        ({"lot": ()}, "one for each instrument"),
    ],
)
def test_rules_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        TradingRules(**settings)


N_STEPS, HORIZON, LOT = 4, 4 / 365, 0.25
RULES = TradingRules(min_holding=0.0, max_holding=0.8, lot=LOT)


def hedged(**changes):
    market = ModelMarket(pr.BlackScholes(0.2), pr.Market(1.0), n_steps=N_STEPS, horizon=HORIZON)
    trainer = qfml.Trainer(optimizer=qfml.AdamW(lr=3e-3), max_epochs=2, batch_size=256, seed=1)
    settings = {"policy": FeedForward(hidden=(8, 8)), "trainer": trainer, "steps_per_epoch": 40, "n_validation": 256}
    book, costs = Book(((1.0, pr.European(1.0, HORIZON)),)), (Proportional(1e-3),)
    return deep_hedge(market, book, Entropic(50.0), costs=costs, **settings | changes)


@pytest.fixture(scope="module")
def hedger():
    return hedged(rules=RULES)


def whole_lots(held):
    inside = bool(((held >= -1e-6) & (held <= 0.75 + 1e-6)).all())
    return inside and bool(((held / LOT - (held / LOT).round()).abs() < 1e-5).all())


def test_policies_and_baselines_are_judged_in_lots_within_the_limits(hedger):
    paths = hedger.paths(512, seed=3)
    held = hedger.holdings(paths)
    assert whole_lots(held)
    assert len(held.unique()) > 2
    assert hedger.rules == RULES
    baselines = [NoHedge(), BlackScholesDelta(0.2)]
    found = judge(hedger, JudgementSettings(n_paths=2000, seed=5), baselines).metrics["cases"][0]["baselines"]
    free = judge(hedged(), JudgementSettings(n_paths=2000, seed=5), baselines).metrics["cases"][0]["baselines"]
    assert found[0]["risk"] == free[0]["risk"]
    assert found[1]["risk"]["value"] > free[1]["risk"]["value"] + 1e-4  # in quarters the delta hedges less well
    # and it is the delta under the rules, by hand
    delta = RULES.of(BlackScholesDelta(0.2).holdings(paths, problem_of(hedger.market, hedger.book)))
    assert whole_lots(delta)
    by_hand = gains(delta[None], paths, hedger.loss.costs).pnl
    assert float(Entropic(50.0).risk(by_hand)[0]) == pytest.approx(found[1]["risk"]["value"], abs=1e-3)


def test_a_policy_learns_in_lots(hedger):
    paths = hedger.paths(4096, seed=3)
    unhedged = float(Entropic(50.0).risk(-paths.liability[None])[0])
    assert float(hedger.price(paths).value[0]) < unhedged - 1e-3


def test_rules_are_saved_with_the_policies(hedger, tmp_path):
    save_hedger(hedger, tmp_path / "saved")
    again = load_hedger(tmp_path / "saved")
    assert again.rules == RULES
    paths = hedger.paths(64, seed=3)
    assert torch.equal(again.holdings(paths), hedger.holdings(paths))


def test_rules_of_other_instruments_or_given_twice_are_refused():
    with pytest.raises(ConfigError, match="each of 1 instrument"):
        hedged(rules=TradingRules(lot=(1.0, 2.0)))
    with pytest.raises(ConfigError, match="given twice"):
        hedged(rules=RULES, policy=FeedForward(hidden=(8,), rules=TradingRules(lot=1.0)))
