"""Wrong questions to a training, a judgement and a live hedge have clear answers, and none goes on for ever."""

import math
from dataclasses import dataclass, replace
from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest
import torch
from command_line import python

import pricers as pr
import qfml
from qfml.errors import CheckpointError, ConfigError, DataError
from qfml.hedging import (
    Band,
    Book,
    BootstrappedReturns,
    Correction,
    Entropic,
    ExpectedShortfall,
    FeedForward,
    FixedPerTrade,
    Hedger,
    Isoelastic,
    JudgementSettings,
    ModelDelta,
    ModelMarket,
    OptimizedCertaintyEquivalent,
    Option,
    Quadratic,
    RecordedPaths,
    Spectral,
    Spot,
    TradingRules,
    deep_hedge,
    gains,
    judge,
)
from qfml.hedging.deep_hedging import VALIDATION
from qfml.hedging.objective_base import FEW_PATHS, effective_paths
from qfml.hedging.resampling import paired_bootstrap

HORIZON = 2 / 365
BOOK = Book(((1.0, pr.European(1.0, HORIZON)),))
TRAINER = qfml.Trainer(optimizer=qfml.AdamW(lr=3e-3), max_epochs=1, batch_size=16, seed=1)


def market(**changes):
    return ModelMarket(pr.BlackScholes(0.2), pr.Market(1.0), n_steps=2, horizon=HORIZON, **changes)


def hedged(**changes):
    settings = {"market": market(), "book": BOOK, "objective": Entropic(10.0), "trainer": TRAINER, "n_validation": 16}
    return deep_hedge(**settings | {"steps_per_epoch": 1, "policy": FeedForward(hidden=(4,))} | changes)


@pytest.fixture(scope="module")
def hedger():
    return hedged()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"steps_per_epoch": 0}, "`steps_per_epoch` must be a whole number, 1 or more, got 0"),
        ({"n_validation": True}, "`n_validation`"),
        ({"seeds": ()}, "`seeds` must hold different numbers"),
        ({"seeds": (0, 0)}, "`seeds` must hold different numbers"),
        ({"aversions": ()}, "`aversions` must hold different numbers"),
        ({"aversions": (0.0,)}, "must be positive"),
        ({"cost_levels": (float("inf"),)}, "`cost_levels` must be 0 or more and finite"),
        ({"objective": ExpectedShortfall(1e-4)}, "`n_validation` must be 10000 or more, for a tail of 0.0001"),
        (
            {"objective": ExpectedShortfall(0.5), "aversions": (0.5, 0.01)},
            "`n_validation` must be 100 or more, for a tail of 0.01",
        ),
        (
            {"objective": Spectral(tails=(1.0, 0.02), weights=(0.5, 0.5))},
            "`n_validation` must be 50 or more, for a tail of 0.02",
        ),
        (
            {"objective": ExpectedShortfall(0.5), "aversions": (0.5, 0.02), "n_validation": 64, "exact": True},
            "`batch_size` must be 50 or more, for a tail of 0.02 to hold one path, got 16",
        ),
    ],
)
def test_a_training_refuses_what_it_cannot_mean(changes, told):
    with pytest.raises(ConfigError, match=told):
        hedged(**changes)


def test_a_tail_wider_than_a_path_of_a_step_is_trained_on_as_a_sample():
    settings = {"objective": ExpectedShortfall(0.02), "n_validation": 64}
    hedged(**settings)  # the additive form looks at a level, not at the tail of the step
    hedged(**settings, exact=True, trainer=replace(TRAINER, batch_size=64))


def test_too_few_paths_for_the_tail_are_no_judgement():
    small_tail = hedged(objective=ExpectedShortfall(1e-3), n_validation=1000)
    with pytest.raises(ConfigError, match=r"`n_paths` must be 1000 or more, for a tail of 0\.001"):
        judge(small_tail, JudgementSettings(n_paths=999))
    judge(small_tail, JudgementSettings(n_paths=1000, n_resamples=0))


def test_one_path_has_no_standard_error(hedger):
    with pytest.raises(DataError, match="a standard error by two paths or more, got 1"):
        hedger.price(hedger.paths(1, seed=2))


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: TradingRules(0.0, 2.0, lot=5.0), "leave a single holding, 0"),
        (lambda: market(simulation_steps=-3), "`simulation_steps` must be 1 or more"),
        (lambda: market(information=("vol_", "time_to_horizon")).paths(4, BOOK, 1), "'vol_'"),
        (lambda: market(information=("time_to_horizon",) * 2).paths(4, BOOK, 1), "'time_to_horizon' twice"),
    ],
)
def test_settings_of_a_wrong_kind_are_named(made, told):
    with pytest.raises(ConfigError, match=told):
        made()


KINDS = """
import numpy as np, pricers as pr, qfml, torch
from qfml.errors import ConfigError, DataError
from qfml.hedging import *
from qfml.task.hedging import HedgingTask

book = Book(((1.0, pr.European(1.0, 2 / 365)),))
market = ModelMarket(pr.BlackScholes(0.2), pr.Market(1.0), n_steps=2, horizon=2 / 365)
trainer = qfml.Trainer(max_epochs=1, batch_size=16)

def modelled(**changes):
    settings = {"n_steps": 2, "horizon": 2 / 365}
    return ModelMarket(pr.BlackScholes(0.2), pr.Market(1.0), **settings | changes)

def recorded(**changes):
    settings = {"array": np.ones((20, 3)) + 0.1 * np.arange(3), "times": (0.0, 1 / 365, 2 / 365)}
    return RecordedPaths(**settings | changes)

def resampled(**changes):
    settings = {"n_steps": 2, "block_length": 2, "keep_drift": False, "periods_per_year": 365.0}
    return BootstrappedReturns({"kind": "arch", "name": "sp500"}, **settings | changes)

def hedged(**changes):
    settings = {"market": market, "book": book, "objective": Entropic(10.0), "trainer": trainer, "n_validation": 16}
    return deep_hedge(**settings | {"steps_per_epoch": 1} | changes)

hedger = hedged(seeds=[np.int64(1)], costs=(Proportional(np.float32(0.5)),))
modelled(n_steps=None, horizon=None, dates=np.array([1 / 365, 2 / 365]))
assert len(recorded(times=np.arange(3) / 365, rows=(np.int64(0), np.int64(3))).paths(None, book, 1)) == 3
for wrong in (
    lambda: hedged(steps_per_epoch=1.5),
    lambda: hedged(seeds=3),
    lambda: hedged(aversions=("a",)),
    lambda: hedged(costs=Proportional(1e-3)),
    lambda: hedged(book=None),
    lambda: hedged(objective="entropic"),
    lambda: hedged(policy=FeedForward),
    lambda: hedged(rules={"lot": 1.0}),
    lambda: hedged(trainer=None),
    lambda: hedged(unwind="no"),
    lambda: hedged(exact=1),
    lambda: HedgingTask(market, book, Entropic(10.0), trainer, unwind="no"),
    lambda: HedgingTask(market, book, Entropic(10.0), trainer, exact="no"),
    lambda: Entropic("10"),
    lambda: ExpectedShortfall(True),
    lambda: Proportional("a"),
    lambda: Quadratic([0.1]),
    lambda: TradingRules(lot="a"),
    lambda: JudgementSettings(n_paths="a"),
    lambda: JudgementSettings(seed=1.5),
    lambda: JudgementSettings(stress=[1]),
    lambda: FixedPerTrade(1e-3, "a"),
    lambda: FixedPerTrade(1e-3, True),
    lambda: Spectral(0.5, 1.0),
    lambda: Spectral((0.5,), ("a",)),
    lambda: OptimizedCertaintyEquivalent([], 1.0),
    lambda: modelled(instruments="spot"),
    lambda: modelled(instruments=("spot",)),
    lambda: modelled(instruments=Spot()),
    lambda: modelled(instruments=(Spot,)),
    lambda: modelled(n_steps=None, horizon=None, dates=(None,)),
    lambda: modelled(n_steps=None, horizon=None, dates=0.2),
    *(lambda made=made, seen=seen: made(information=seen)
      for made in (modelled, recorded, resampled) for seen in ("log_moneyness", (3,))),
    *(lambda made=made: made().paths(10, None, 1) for made in (modelled, recorded, resampled)),
    lambda: recorded(times=("a", 0.1, 0.2)),
    lambda: recorded(times=0.2),
    lambda: recorded(rows=("a", 3)),
    lambda: recorded(rows=(0, 1, 2)),
    lambda: recorded(rows=(0, True)),
    lambda: recorded(instruments="spot"),
    lambda: judge(hedger, {"n_paths": 100}),
    lambda: judge(None),
    lambda: hedger.hedge({"spot": 1.0}, [0.0], 0, state=5),
    lambda: hedger.hedge({"spot": 1.0}, [0.0], 0, state=None),
    lambda: hedged(market=None),
    lambda: JudgementSettings(n_resamples="200"),
    lambda: JudgementSettings(n_resamples=150.5),
    lambda: JudgementSettings(block_length="2"),
    lambda: JudgementSettings(market="x"),
    lambda: JudgementSettings(market={"kind": "model"}),
    lambda: gains(hedger.holdings(hedger.paths(4, 2)), None),
    lambda: gains(hedger.holdings(hedger.paths(4, 2)), hedger.paths(4, 2), Proportional(1e-3)),
    lambda: gains(hedger.holdings(hedger.paths(4, 2)), hedger.paths(4, 2), ["a"]),
    lambda: gains([1, 2], hedger.paths(4, 2)),
    lambda: gains(torch.nan * hedger.holdings(hedger.paths(4, 2)), hedger.paths(4, 2)),
    lambda: Entropic(1.0).price(torch.ones(1, 8), without=torch.ones(1, 4)),
    lambda: Isoelastic(9.0, 2.0).price(torch.ones(1, 8), without=torch.ones(1, 4)),
    lambda: Entropic(1.0).risk(torch.ones(1, 8), "a"),
    lambda: Entropic(1.0).rows(torch.ones(1, 8), torch.zeros(3)),
    lambda: recorded(array=np.ones((20, 3)) * (1 + 1j)).paths(10, book, 1),
    lambda: hedger.holdings(None),
    lambda: judge(hedger, JudgementSettings(n_paths=100), baselines=["leland"]),
):
    try:
        wrong()
    except (ConfigError, DataError) as error:
        print(str(error).split("`")[1])
    else:
        print("nothing")
"""
NAMES = (
    *("steps_per_epoch", "seeds", "aversions", "costs", "book", "objective", "policy", "rules", "trainer"),
    *("unwind", "exact", "unwind", "exact"),
    *("risk_aversion", "tail", "rate", "impact", "lot", "n_paths", "seed", "stress"),
    *("smooth", "smooth", "tails", "weights", "loss_name", *["instruments"] * 4, *["dates"] * 2),
    *(*["information"] * 6, *["book"] * 3, *["times"] * 2, *["rows"] * 3, "instruments"),
    *("settings", "hedger", "state", "state"),
    *("market", *["n_resamples"] * 2, "block_length", *["market"] * 2, "paths", "costs", "costs", *["holdings"] * 2),
    *("without", "without", "aversion", "level", "array", "paths", "baselines"),
)


SHAPES = """
import torch
from qfml.hedging.objectives import Quadratic

for objective in (Entropic(1.0), Isoelastic(9.0, 1.0), Quadratic()):
    for pnl in (torch.ones(3), np.ones((1, 3)), torch.ones(1, 0), None):
        for asked in (objective.risk, objective.price, objective.influence, objective.std_error):
            try:
                asked(pnl)
            except DataError as error:
                assert "`pnl[None]`, got" in str(error)
            else:
                raise AssertionError(pnl)
held, paths = torch.ones(1, 4, 2, 1), hedger.paths(4, seed=2)
costs = [gains(each, paths, (Proportional(0.01),), 0.5).cost for each in (held, held.long())]
assert torch.equal(*costs) and costs[0].min() > 0  # whole holdings pay the cost level too
print("told")
"""


def test_values_of_a_wrong_kind_and_shape_are_named_where_no_test_checks_annotations(tmp_path):
    done = python(KINDS + SHAPES, cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.out.split() == [*NAMES, "told"]


@pytest.mark.parametrize("level", ["a", None, (1.0, "a"), 1.0 + 2.0j])
def test_a_cost_level_is_a_number(hedger, level):
    paths = hedger.paths(4, seed=2)
    with pytest.raises(DataError, match="'cost_level' must be"):
        gains(hedger.holdings(paths), paths, (), level)


def test_a_live_hedge_refuses_what_is_no_state(hedger):
    before = torch.zeros(1)
    with pytest.raises(DataError, match="`state` must be what came with"):
        hedger.hedge({"spot": 1.0}, before, 0, state=(before,))
    with pytest.raises(DataError, match="real numbers"):
        hedger.hedge({"spot": 1.0 + 2.0j}, before, 0)
    held, _ = hedger.hedge({"spot": []}, torch.zeros(0, 1), 0)  # a book of no path
    assert held.shape == (0, 1)


def test_a_folder_without_policies_is_no_damaged_one(tmp_path):
    with pytest.raises(CheckpointError, match="holds no policies"):
        Hedger.load(tmp_path)


def test_paths_that_were_trained_on_are_not_fresh(tmp_path):
    times = [0.0, 1 / 365, HORIZON]
    rows = {"path": [p for p in range(8) for _ in times], "time": times * 8, "spot": [1.0, 1.01, 0.99] * 8}
    pl.DataFrame(rows).write_csv(tmp_path / "paths.csv")

    def part(rows):
        return RecordedPaths(tmp_path / "paths.csv", rows=rows)

    for trained, judged in (((0, 5), (4, 8)), ((0, 5), None), (None, (4, 8)), (None, None)):
        with pytest.raises(ConfigError, match="that were trained on"):
            JudgementSettings(market=part(judged)).fresh(part(trained))
    assert JudgementSettings(market=part((5, 8))).fresh(part((0, 5))).rows == (5, 8)  # pyright: ignore


def test_resamples_are_of_more_than_one_block():
    with pytest.raises(ConfigError, match="two blocks or more of 100 paths, got 51"):
        paired_bootstrap(Entropic(1.0), torch.randn(2, 100), n_resamples=100, block_length=51)


def test_a_training_that_is_lost_is_no_hedge():
    """A price beyond all measure in a record: the policy would be the network that was drawn."""
    prices = torch.ones(96, 3, dtype=torch.float64) + 0.01 * torch.arange(3)
    prices[7, 2] = 1e30
    record = RecordedPaths(array=prices.numpy(), times=(0.0, 0.1, 0.2), reference_vol=0.2)
    options = {"trainer": qfml.Trainer(max_epochs=1, batch_size=64, seed=1), "steps_per_epoch": 2, "n_validation": 16}
    with pytest.raises(DataError, match=r"training of seed 0, aversion .* was lost"):
        deep_hedge(record, Book(((1.0, pr.European(1.0, 0.2)),)), Entropic(1.0), **options)


@dataclass(frozen=True)
class Overflowing(ModelMarket):
    """A model's market with a price beyond all measure on one path of some sets: it rises to it, and falls below 0."""

    where: str = "training"
    bad: float = math.inf

    def paths(self, n_paths, book, seed, number=0, dtype=torch.float32, device="cpu"):
        made = super().paths(n_paths, book, seed, number, dtype, device)
        asked = "judgement" if seed != TRAINER.seed else "validation" if number == VALIDATION else "training"
        if asked != self.where or seed == 0:  # 0: the few paths that textbook hedges are tried on
            return made
        prices = made.prices.clone()
        prices[3, 1], prices[3, 2] = self.bad, -self.bad
        return replace(made, prices=prices)


def overflowing(where, bad=3e38):
    """Finite prices, by default, of which a change is not."""
    settings = {"n_steps": 2, "horizon": HORIZON, "where": where, "bad": bad}
    return Overflowing(pr.BlackScholes(0.2), pr.Market(1.0), **settings)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("where", ["training", "validation"])
def test_prices_that_are_not_finite_are_told_by_their_path(where, bad):
    with pytest.raises(DataError, match="`prices` must be finite: path 3 is not"):
        hedged(market=overflowing(where, bad))


@pytest.mark.parametrize("exact", [False, True])
def test_a_loss_that_overflows_is_told_wherever_it_is(exact):
    for where in ("training", "validation"):
        with pytest.raises(DataError, match=r"was lost: .*look for prices or losses beyond all measure"):
            hedged(market=overflowing(where), exact=exact)
    trained = hedged(market=overflowing("judgement"), exact=exact)
    for asked in (lambda: judge(trained, JudgementSettings(n_paths=100)), lambda: trained.price(trained.paths(9, 7))):
        with pytest.raises(DataError, match=r"the P&L must be finite: member 0 has (-?inf|nan) on path 3"):
            asked()


def test_a_gap_in_a_history_is_no_return_of_one_day(tmp_path):
    days = [date(2020, 1, 1) + timedelta(days=day) for day in range(60) if not 20 <= day < 45]
    pl.DataFrame({"time": days, "close": [100.0 + day % 3 for day in range(len(days))]}).write_csv(tmp_path / "p.csv")
    settings = {"n_steps": 3, "block_length": 2, "keep_drift": False, "information": ("time_to_horizon",)}
    market = BootstrappedReturns({"kind": "csv", "path": str(tmp_path / "p.csv")}, **settings)
    book = Book(((1.0, pr.European(1.0, 3 / 252)),))
    with pytest.raises(DataError, match="gap"):
        market.paths(16, book, seed=1)
    assert len(replace(market, max_gap=None).paths(16, book, seed=1)) == 16


def test_a_hedger_refuses_paths_along_which_another_book_is_owed(hedger):
    other = Book(((1.0, pr.European(1.05, HORIZON)),))
    paths = market().paths(16, other, seed=3)
    for asked in (hedger.holdings, hedger.price):
        with pytest.raises(
            DataError, match=r"hedge 1 european call \(strike 1.0, .*on these paths 1 european call \(strike 1.05"
        ):
            asked(paths)
    unknown = replace(paths, owed=None)  # of a caller's own making
    assert hedger.holdings(unknown).shape == hedger.holdings(replace(paths, owed=BOOK)).shape
    assert paths.rows(slice(2)).owed is paths.to("cpu", torch.float64).owed is other


def test_the_delta_hedges_the_spot_and_no_other_instrument():
    seen = ("log_moneyness", "call_delta")
    both = market(instruments=(Option(1.0, HORIZON), Spot()), information=seen)
    for names in (("call_delta", "none"), ("call_delta", "call_delta")):
        with pytest.raises(ConfigError, match=r"for the instrument 'call 1 .*it is the delta of the spot"):
            hedged(market=both, policy=FeedForward(hidden=(4,), holding=Band(names)))
    with pytest.raises(ConfigError, match="a feature for each of 2 instrument"):
        hedged(market=both, policy=FeedForward(hidden=(4,), holding=Correction(("call_delta",))))
    for name in ("log_moneyness", "time_to_horizon"):
        with pytest.raises(ConfigError, match=f"names '{name}', which is no number of an instrument to hold"):
            hedged(policy=FeedForward(hidden=(4,), holding=Band((name,))))
    bands = hedged(market=both, policy=FeedForward(hidden=(4,), holding=Band(("none", "call_delta"))), seeds=(0, 1))
    held = bands.holdings(bands.paths(64, seed=2))
    features = bands.paths(64, seed=2).features[:, 0, 1]
    # on the first date, nothing being held, only the spot is moved, and the option's band is around 0
    assert float(held[:, :, 0, 0].abs().max()) < 0.5 * float(features.mean()) < float(held[:, :, 0, 1].max())


@pytest.mark.parametrize(
    ("size", "impact", "level", "refused"),
    [(1, 1.0, 1.0, 1), (1, 0.9, 1.0, 0), (50, 0.02, 1, 1), (50, 0.019, 1, 0), (50, 0.019, 2, 1)],
)
def test_an_impact_takes_less_than_what_is_traded_of_the_book(size, impact, level, refused):
    book = Book(((float(size), pr.European(1.0, HORIZON)),))
    settings = {"book": book, "costs": (Quadratic(impact),), "cost_levels": (float(level),)}
    if refused:
        with pytest.raises(ConfigError, match=f"below 100 %.*a trade of {size} units.*an impact is of one unit"):
            hedged(**settings)
    else:
        hedged(**settings)


@pytest.mark.parametrize(("kind", "level", "spot"), [("down-out", 0.95, 0.94), ("up-in", 1.05, 1.06)])
def test_no_live_hedge_believes_a_barrier_alive_that_the_spot_has_touched(kind, level, spot):
    book = Book(((1.0, pr.Barrier(1.0, HORIZON, level, kind=kind, option="call")), (1.0, pr.European(1.0, HORIZON))))
    seeing = market(information=("log_moneyness", "alive"))
    found = hedged(market=seeing, book=book)
    none = torch.zeros(2, 1)
    held, _ = found.hedge({"spot": [1.0, spot], "alive": [1.0, 0.0]}, none, 0)
    assert held.shape == (2, 1)
    with pytest.raises(DataError, match=f"'alive' must be 0 from the first time that the barrier {level} is touched"):
        found.hedge({"spot": [1.0, spot], "alive": [1.0, 1.0]}, none, 0)
    with pytest.raises(DataError, match="'alive' must be 0"):
        found.hedge({"spot": spot, "alive": 1.0}, none[0], 0)
    blind = hedged(market=market(information=("log_moneyness",)), book=book)
    assert blind.hedge({"spot": spot}, none[0], 0)[0].shape == (1,)


@pytest.fixture(scope="module")
def of_a_record():
    moves = 0.02 * np.random.default_rng(1).standard_normal((200, 3)).cumsum(1)
    record = {"array": np.exp(moves - moves[:, :1]), "times": (0.0, 1 / 365, HORIZON)}
    return hedged(market=RecordedPaths(**record, rows=(0, 100))), record


def test_no_path_of_a_record_that_was_trained_on_is_fresh_or_a_stress(of_a_record):
    found, record = of_a_record
    with pytest.raises(DataError, match="that were trained on are not fresh"):
        found.paths(10, seed=3)
    others = RecordedPaths(**record, rows=(100, 200))
    assert found.holdings(others.paths(None, BOOK, 1)).shape == (1, 100, 2, 1)
    settings = JudgementSettings(n_paths=None, n_resamples=0, market=others)
    with pytest.raises(ConfigError, match=r"`stress.again`: `market` has paths of an array that were trained on"):
        judge(found, replace(settings, stress={"again": {"rows": [50, 150]}}))
    told = judge(found, replace(settings, stress={"new": {"rows": [100, 150]}})).metrics
    assert told["stress"][0]["name"] == "new"
    assert told["paths"]["n_paths"] == 100


def test_a_judgement_of_more_paths_than_there_are_is_refused_before_it_begins(of_a_record):
    found, record = of_a_record
    others = RecordedPaths(**record, rows=(100, 200))
    with pytest.raises(ConfigError, match="`n_paths` must be 100 or less, as many as are recorded, or null"):
        judge(found, JudgementSettings(n_paths=101, market=others))
    with pytest.raises(ConfigError, match=r"`stress.few`: `n_paths` must be 50 or less"):
        judge(found, JudgementSettings(n_paths=100, market=others, stress={"few": {"rows": [100, 150]}}))
    modelled = {"kind": "model", "model": {"kind": "black_scholes", "vol": 0.2}, "market": {"spot": 1.0}}
    modelled |= {"n_steps": 2, "horizon": HORIZON}
    with pytest.raises(ConfigError, match=r"`stress.model`: `n_paths` may be null for recorded paths only"):
        judge(found, JudgementSettings(n_paths=None, market=others, stress={"model": modelled}))


def test_prices_of_other_instruments_are_no_judgement():
    seen = {"information": ("log_moneyness", "time_to_horizon")}
    both = hedged(market=market(instruments=(Spot(), Option(1.0, HORIZON)), **seen))
    for traded in ((Option(1.0, HORIZON), Spot()), (Spot(), Option(1.1, HORIZON))):
        other = market(instruments=traded, **seen)
        with pytest.raises(DataError, match=r"trade spot, call 1 [0-9.]+, in this order"):
            both.price(other.paths(16, BOOK, 1))
        with pytest.raises(ConfigError, match="instruments must be those of the training"):
            judge(both, JudgementSettings(n_paths=200, market=other))


def test_a_loss_beyond_the_wealth_says_so():
    with pytest.raises(DataError, match="a loss may have reached `wealth`"):
        hedged(objective=Isoelastic(1e-3, 2.0), n_validation=256)


def test_an_exponential_loss_by_its_name_trains_where_the_entropic_one_does():
    steep = {"aversions": (3e3,), "n_validation": 256}
    entropic = hedged(objective=Entropic(1.0), **steep)
    named = hedged(objective=OptimizedCertaintyEquivalent("exponential", 1.0), **steep)
    assert torch.equal(entropic.fits[0].parameters, named.fits[0].parameters)


def test_a_price_that_a_handful_of_paths_carry_says_so():
    heavy = torch.full((1, 1000), 0.0, dtype=torch.float64)
    heavy[0, :3] = torch.tensor([-1.0, -1.1, -1.2])
    light = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert Entropic(20.0).price(heavy).note.startswith("about 1 of 1000 paths carry the standard error")
    assert not Entropic(1.0).price(light).note
    assert 1.0 < float(effective_paths(Entropic(20.0).influence(heavy))) < 3.0
    assert 250 < float(effective_paths(light)) < 400  # a third under a normal law
    tail = judge(hedged(aversions=(1e4,)), JudgementSettings(n_paths=1000, n_resamples=0)).metrics["cases"][0]
    none = next(hedge for hedge in tail["baselines"] if hedge["name"] == "none")
    assert none["price"]["effective_paths"] < FEW_PATHS
    calm = judge(hedged(aversions=(1.0,)), JudgementSettings(n_paths=1000, n_resamples=0)).metrics["cases"][0]
    assert calm["baselines"][0]["price"]["effective_paths"] > 100
    assert calm["policies"][0]["against"]["none"]["effective_paths"] > FEW_PATHS


def test_a_baseline_that_lacks_something_on_other_paths_is_left_out_there_and_told():
    heston = pr.Heston(v0=0.04, kappa=2.0, theta=0.04, sigma=0.5, rho=-0.7)
    of_heston = ModelMarket(heston, pr.Market(1.0), n_steps=2, horizon=HORIZON, information=("log_moneyness",))
    found = hedged(market=of_heston)
    days = {"kind": "bootstrap", "source": {"kind": "arch", "name": "sp500"}, "n_steps": 2, "block_length": 2}
    days |= {"keep_drift": False, "periods_per_year": 365.0, "information": ["log_moneyness"]}
    wild = {"model": {"kind": "black_scholes", "vol": 2.0}}
    settings = JudgementSettings(n_paths=200, n_resamples=0, stress={"days": days, "wild": wild})
    told = judge(found, settings).metrics
    assert {"model_delta", "minimum_variance_delta"} <= {hedge["name"] for hedge in told["cases"][0]["baselines"]}
    for stress, why in zip(
        told["stress"], ("needs the variance", "where the table of option prices ends"), strict=True
    ):
        assert "model_delta" not in {hedge["name"] for hedge in stress["cases"][0]["baselines"]}
        assert "none" in stress["cases"][0]["policies"][0]["against"]
        assert why in stress["left_out"]["model_delta"]
    with pytest.raises(ConfigError, match="needs the variance"):  # asked for by name, it is needed
        judge(found, settings, baselines=[ModelDelta()])


def test_no_error_is_no_heavy_tail():
    certain = torch.full((1, 1000), -0.02)
    for objective in (Entropic(1.0), ExpectedShortfall(0.5)):
        assert not objective.price(certain).note
    assert effective_paths(torch.zeros(1, 100)).tolist() == [100.0]


def test_costs_and_hedges_look_at_the_spot_wherever_it_stands():
    seen = ("log_moneyness", "call_delta", "prices")
    swapped = market(instruments=(Option(1.0, HORIZON), Spot()), information=seen)
    with pytest.raises(ConfigError, match="below 100 % of what is traded, got 150%"):
        hedged(market=swapped, costs=(Quadratic((0.0, 1.5)),))
    with pytest.raises(ConfigError, match="below 100 % of what is traded, got 200%"):
        hedged(market=swapped, costs=(FixedPerTrade((0.0, 2.0), 0.01),))
    hedged(market=swapped, costs=(Quadratic((1.5, 0.0)), FixedPerTrade((0.03, 0.0), 0.01)))
    name = next(name for name in swapped.paths(4, BOOK, 1).feature_names if name.startswith("call 1"))
    with pytest.raises(ConfigError, match="no number of an instrument to hold"):
        hedged(market=swapped, policy=FeedForward(hidden=(4,), holding=Band((name, "call_delta"))))
    alone = market(instruments=(Option(1.0, HORIZON),), information=("log_moneyness", "call_delta"))
    with pytest.raises(ConfigError, match="it is the delta of the spot"):
        hedged(market=alone, policy=FeedForward(hidden=(4,), holding=Band(("call_delta",))))


def test_a_path_that_stands_twice_does_not_hide_that_a_record_was_trained_on(of_a_record):
    _, record = of_a_record
    twice = {**record, "array": np.concatenate([record["array"][:100], record["array"][:1]])}
    trained = RecordedPaths(**twice)
    with pytest.raises(ConfigError, match="that were trained on"):
        JudgementSettings(market=RecordedPaths(**{**twice, "array": twice["array"].copy()})).fresh(trained)


def test_a_hedge_that_is_ruined_is_left_out_and_not_the_judgement():
    wealth = 0.042  # no hedge loses more on some path, and the delta on none
    found = hedged(
        objective=Isoelastic(wealth, 2.0),
        market=market(information=("log_moneyness", "call_delta")),
        policy=FeedForward(hidden=(4,), holding=Correction(("call_delta",))),
    )
    told = judge(found, JudgementSettings(n_paths=2000, n_resamples=0)).metrics
    assert "every loss must stay below `wealth`" in told["left_out"]["none"]
    assert [hedge["name"] for hedge in told["cases"][0]["baselines"]] == ["black_scholes_delta"]


def test_a_live_price_is_read_in_double_precision():
    level = 0.97
    book = Book(((1.0, pr.Barrier(1.0, HORIZON, level, kind="down-out", option="call")),))
    found = hedged(market=market(information=("log_moneyness", "alive")), book=book)
    for spot in (level, torch.tensor(level, dtype=torch.float64), np.float64(level)):
        with pytest.raises(DataError, match="'alive' must be 0"):
            found.hedge({"spot": spot, "alive": 1.0}, torch.zeros(1), 0)
