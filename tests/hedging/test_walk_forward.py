"""Hedging on a history: episodes and purge by brute force, nothing of the future, figures by hand, exact values."""

import datetime as dt
import math

import numpy as np
import polars as pl
import pytest
import torch
from hedging.truth import hedging_truth

import pricers as pr
import qfml
from qfml.data.sources import ArchSource, FrameSource
from qfml.errors import ConfigError, DataError, SplitError
from qfml.hedging import (
    Band,
    BlackScholesDelta,
    Book,
    BootstrappedReturns,
    Entropic,
    ExpectedShortfall,
    FeedForward,
    ModelMarket,
    NoHedge,
    Proportional,
    TradingRules,
    deep_hedge,
    walk_forward_hedge,
)
from qfml.hedging.episodes import cut, read_history
from qfml.hedging.out_of_sample import compared, overlap, resamples, worst_apart
from qfml.hedging.walk_forward import fold_market
from qfml.splits import WalkForward

N_STEPS, WINDOW, VOL = 5, 4, 0.2
CALL = Book(((1.0, pr.European(1.0, N_STEPS / 252)),))
SEEN = ("log_moneyness", "time_to_horizon", "call_delta", "realised_vol")
BANDS = FeedForward(hidden=(8,), holding=Band(("call_delta",)), sees_holdings=False)
SPLIT = WalkForward(train_size=100, test_size=30)  # episodes


def frame(n=420, seed=0, start=dt.date(2015, 1, 1)):
    """Business days and prices without drift."""
    days = np.busday_offset(np.datetime64(start), np.arange(n), roll="forward")
    moves = np.random.default_rng(seed).normal(-0.5 * VOL**2 / 252, VOL / math.sqrt(252), n)
    return pl.DataFrame(
        {"time": pl.Series(days.astype("datetime64[ms]")).dt.date(), "close": 80.0 * np.exp(moves.cumsum())}
    )


def market(data=None, **changes):
    settings = {"n_steps": N_STEPS, "block_length": 5.0, "keep_drift": False, "window": WINDOW, "information": SEEN}
    return BootstrappedReturns(FrameSource(frame() if data is None else data), **settings | changes)


def trainer(**changes):
    settings = {"max_epochs": 1, "batch_size": 64, "seed": 1, "optimizer": qfml.AdamW(lr=1e-2, weight_decay=0.0)}
    return qfml.Trainer(**settings | changes)


def walk(data=None, of_market=None, **changes):
    settings = {
        "splitter": SPLIT,
        "start_every": 2,
        "policy": BANDS,
        "costs": [Proportional(1e-3)],
        "trainer": trainer(),
        "steps_per_epoch": 3,
        "n_validation": 128,
        "n_bootstrap": 100,
        "aversions": (5.0, 20.0),
        "seeds": (0, 1),
    }
    made = market(data) if of_market is None else of_market
    return walk_forward_hedge(made, CALL, Entropic(1.0), **settings | changes)


@pytest.fixture(scope="module")
def walked():
    return walk()


# ---- episodes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start_every", [1, 3, "week", "month"])
def test_episodes_by_brute_force(start_every):
    data = frame(150)
    episodes = cut(read_history(market(data)), N_STEPS, WINDOW, start_every)
    days, close = data["time"].to_list(), data["close"].to_list()
    expected = []
    for row in range(len(days)):
        if row - WINDOW < 0 or row + N_STEPS > len(days) - 1:
            continue
        if start_every == "week":
            begins = days[row].isocalendar()[1] != days[row - 1].isocalendar()[1]
        elif start_every == "month":
            begins = days[row].month != days[row - 1].month
        else:
            begins = (row - WINDOW) % start_every == 0
        if begins:
            expected.append(row)
    assert episodes.first.tolist() == expected
    for place, row in enumerate(expected):
        told = [str(times[place])[:10] for times in (episodes.window_start, episodes.time, episodes.label_end)]
        assert told == [str(days[row - WINDOW]), str(days[row]), str(days[row + N_STEPS])]
    paths = episodes.paths(market(data), CALL)
    unit = market(data).vol
    for place, row in enumerate(expected[:3]):
        spot = np.array(close[row : row + N_STEPS + 1]) / close[row]
        np.testing.assert_allclose(paths.prices[place, :, 0].numpy(), spot, rtol=1e-6)
        assert float(paths.liability[place]) == pytest.approx(max(spot[-1] - 1, 0.0), abs=1e-7)
        for date in range(N_STEPS + 1):
            past = np.diff(np.log(close[row + date - WINDOW : row + date + 1]))
            seen = math.sqrt((past**2).mean() * 252) / unit
            assert float(paths.features[place, date, 3]) == pytest.approx(seen, rel=1e-5)


def test_prices_of_an_episode_begin_at_the_spot_of_the_market_and_are_discounted():
    made = market(spot=100.0, rate=0.05)
    book = Book(((1.0, pr.European(100.0, N_STEPS / 252)),))
    episodes = cut(read_history(made), N_STEPS, WINDOW, 7)
    paths, prices = episodes.paths(made, book), episodes.prices()[:, WINDOW:]
    spot = 100.0 * prices / prices[:, :1]
    discount = torch.exp(-0.05 * torch.arange(N_STEPS + 1) / 252)
    torch.testing.assert_close(paths.prices[..., 0], (spot * discount).float())
    owed = (spot[:, -1] - 100.0).clamp(min=0.0) * discount[-1]
    torch.testing.assert_close(paths.liability, owed.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "splitter",
    [
        WalkForward("5Y", "1Y", expanding=True),
        WalkForward("3Y", "6M", embargo="10D", purge_lookback=True),
        WalkForward(120, 40, gap=4, refit_every=2),
    ],
)
@pytest.mark.parametrize("start_every", [5, "month"])
def test_no_training_return_is_later_than_the_first_test_by_brute_force(splitter, start_every):
    if start_every == "month" and splitter.gap:
        splitter = WalkForward(60, 12, gap=2, refit_every=2)
    made = BootstrappedReturns(ArchSource("sp500"), 21, 10, keep_drift=False, window=21, information=SEEN)
    episodes = cut(read_history(made), 21, 21, start_every)
    splits = splitter.folds(episodes)
    assert len(splits) > 3
    for number, split in enumerate(splits):
        of_fold = fold_market(made, episodes, split, number)
        used = of_fold.source.read(["close"], of_fold.start, of_fold.end)["time"].to_numpy()
        first_test, first_seen = episodes.time[split.test].min(), episodes.window_start[split.test].min()
        assert used.max() <= first_test
        for row in split.train:
            assert episodes.label_end[row] <= first_test
            assert not splitter.purge_lookback or episodes.label_end[row] < first_seen
        assert used.min() == episodes.window_start[split.train].min()
        assert used.max() == episodes.label_end[split.train].max()
        assert len(of_fold.log_returns) == len(used) - 1


# ---- the walk -------------------------------------------------------------------------------------------------------


def same_rows(one, other, fold):
    return one.table.filter(fold=fold).equals(other.table.filter(fold=fold))


def test_what_comes_later_moves_nothing_before(walked):
    """Prices after the last expiry of fold 0 are replaced: fold 0 stays to the last bit, the later ones do not."""
    data, last = frame(), walked.metrics["folds"][0]["last_expiry"]
    later = pl.col("time") > dt.date.fromisoformat(last)
    wild = data.with_columns(
        pl.when(later).then(pl.col("close") * (1.5 + 0.3 * pl.col("close").sin())).otherwise("close").alias("close")
    )
    other = walk(wild)
    for one, two in zip(walked.folds[0].hedger.fits, other.folds[0].hedger.fits, strict=True):
        assert torch.equal(one.parameters, two.parameters)
    assert walked.folds[0].premium == other.folds[0].premium
    assert walked.folds[0].hedger.market.vol == other.folds[0].hedger.market.vol
    assert same_rows(walked, other, 0)
    assert walked.metrics["folds"][0] == other.metrics["folds"][0]
    assert not same_rows(walked, other, 2)
    assert walked.folds[2].hedger.market.vol != other.folds[2].hedger.market.vol


def test_holdings_of_a_date_know_nothing_later(walked):
    """Prices after one date of the first test episode change; what was held up to that date does not."""
    data, first = frame(), int(walked.episodes.first[walked.folds[0].split.test[0]])
    row = pl.int_range(pl.len())
    wild = data.with_columns(pl.when(row > first + 2).then(pl.col("close") * 1.2).otherwise("close").alias("close"))
    other = walk(wild)
    start = data["time"][first]
    for name in walked.table["hedge"].unique():
        before, after = (
            one.holdings.filter(pl.col("start").dt.date() == start, hedge=name, aversion=5.0).sort("date")["held"]
            for one in (walked, other)
        )
        assert before[:3].to_list() == after[:3].to_list()
        assert name == "none" or before[3:].to_list() != after[3:].to_list()


def test_pnl_is_that_of_the_holdings_on_the_real_prices(walked):
    """By hand, from the table of holdings and the price series alone."""
    data = frame()
    close, days = data["close"].to_numpy(), data["time"].to_list()
    row_of = {day: row for row, day in enumerate(days)}
    for key, held in walked.holdings.group_by("aversion", "hedge", "start"):
        first = row_of[key[2].date()]
        if first % 20:
            continue
        units = held.sort("date")["held"].to_numpy()
        spot = close[first : first + N_STEPS + 1] / close[first]
        cost = 1e-3 * (np.abs(np.diff(units, prepend=0.0)) * spot[:-1]).sum()
        expected = (units * np.diff(spot)).sum() - cost - max(spot[-1] - 1.0, 0.0)
        (found,) = walked.table.filter(aversion=key[0], hedge=key[1], start=key[2]).to_dicts()
        assert found["pnl"] == pytest.approx(expected, abs=2e-7)
        assert found["cost"] == pytest.approx(cost, abs=1e-8)
        assert found["spot"] == close[first]
        assert (found["final"], found["lowest"]) == pytest.approx((spot[-1], spot.min()))
        assert found["end"].date() == days[first + N_STEPS]


def test_each_fold_has_the_policies_that_its_market_alone_would_give(walked):
    """Folds x seeds x aversions are one stack: each member has its solo bits."""
    fold = walked.folds[1]
    alone = deep_hedge(
        fold.hedger.market,
        CALL,
        Entropic(1.0),
        costs=[Proportional(1e-3)],
        policy=BANDS,
        trainer=trainer(),
        steps_per_epoch=3,
        n_validation=128,
        seeds=(1,),
        aversions=(20.0,),
    )
    (place,) = [i for i, member in enumerate(fold.hedger.members) if (member.seed, member.aversion) == (1, 20.0)]
    assert torch.equal(alone.fits[0].parameters, fold.hedger.fits[place].parameters)
    assert alone.fits[0].history == fold.hedger.fits[place].history


def test_the_policy_that_trades_is_the_best_of_the_validation(walked):
    for fold in walked.folds:
        for case, best in fold.best.items():
            losses = {
                place: fold.hedger.fits[place].best_val_loss
                for place, member in enumerate(fold.hedger.members)
                if member.aversion == case.aversion
            }
            assert losses[best] == min(losses.values())
            seed = fold.hedger.members[best].seed
            rows = walked.table.filter(fold=fold.number, aversion=case.aversion)
            own, one = (rows.filter(hedge=name)["pnl"] for name in ("policy", f"policy_seed_{seed}"))
            assert own.equals(one)


def test_trading_rules_bind_the_textbook_too():
    found = walk(seeds=(0,), aversions=(5.0,), rules=TradingRules(max_holding=0.5, lot=0.25)).holdings
    assert set(found["held"].unique()) <= {0.0, 0.25, 0.5}
    assert found["held"].max() == 0.5


def test_folds_that_are_not_trained_anew_keep_their_policies():
    found = walk(splitter=WalkForward(80, 30, refit_every=2), seeds=(0,), aversions=(5.0,))
    first, second, third = found.folds[:3]
    assert first.hedger is second.hedger
    assert third.hedger is not second.hedger
    assert [fold["refit"] for fold in found.metrics["folds"][:3]] == [True, False, True]
    assert first.hedger.market.end <= str(found.episodes.time[first.split.test[0]])[:10]


def test_textbook_hedges_have_the_vols_of_their_fold(walked):
    rows = walked.holdings.filter(aversion=5.0, hedge="black_scholes_delta").sort("start", "date")
    for fold in walked.folds:
        start = walked.table.filter(fold=fold.number)["start"].min()
        held = rows.filter(start=start)["held"][0]
        deviation = fold.hedger.market.vol * math.sqrt(N_STEPS / 252)
        assert held == pytest.approx(0.5 * (1 + math.erf(0.5 * deviation / math.sqrt(2))), abs=1e-6)
    names = set(walked.table["hedge"])
    both = {
        f"{kind}{tail}" for kind in ("black_scholes_delta", "leland", "whalley_wilmott") for tail in ("", "_realised")
    }
    assert names == both | {"none", "hull_white_delta", "policy", "policy_seed_0", "policy_seed_1"}
    assert walked.left_out == {}


def test_the_premium_is_what_the_policy_asks_on_fresh_paths_of_its_own_market(walked):
    fold = walked.folds[0]
    case, place = next(iter(fold.best.items()))
    pnl = fold.hedger.gains(fold.hedger.paths(20_000, seed=99)).pnl[place].double()
    price = float((-case.aversion * pnl).exp().mean().log()) / case.aversion
    error = float((-case.aversion * pnl).exp().std()) / case.aversion / math.sqrt(128)
    assert abs(fold.premium[case] - price) < 4 * error
    assert set(walked.table.filter(fold=0, aversion=case.aversion)["premium"]) == {fold.premium[case]}


def test_figures_are_those_of_the_table(walked):
    found = walked.metrics
    case = found["cases"][1]
    rows = walked.table.filter(aversion=20.0)
    pnl = {name: rows.filter(hedge=name)["pnl"].to_numpy() for name in ("policy", "black_scholes_delta")}
    policy = case["policies"][0]
    price = {name: math.log(np.exp(-20.0 * own).mean()) / 20.0 for name, own in pnl.items()}
    assert policy["price"]["value"] == pytest.approx(price["policy"])
    own = policy["against"]["black_scholes_delta"]
    assert own["value"] == pytest.approx(price["policy"] - price["black_scholes_delta"])
    assert own["low"] < own["value"] < own["high"]
    assert policy["mean"]["value"] == pytest.approx(pnl["policy"].mean())
    tail = np.sort(pnl["policy"])
    size = 0.05 * len(tail)
    worst = (tail[: int(size)].sum() + (size - int(size)) * tail[int(size)]) / size
    assert policy["expected_shortfall"]["value"] == pytest.approx(-worst)
    premium = rows.filter(hedge="policy")["premium"].to_numpy()
    assert policy["income"] == pytest.approx((pnl["policy"] + premium).mean())
    (year,) = [each for each in case["years"] if each["year"] == 2016]
    of_year = rows.filter(pl.col("start").dt.year() == 2016, hedge="policy")
    assert year["n"] == len(of_year)
    assert year["hedges"]["policy"]["mean"] == pytest.approx((of_year["pnl"] + of_year["premium"]).mean())
    losses = (rows.filter(hedge="policy")["pnl"] + rows.filter(hedge="policy")["premium"]).to_list()
    assert case["worst"][0]["pnl"]["policy"] == min(losses)
    assert case["worst"][0]["start"] == rows.filter(hedge="policy")["start"][int(np.argmin(losses))].date().isoformat()
    assert found["bootstrap"]["overlap"] == 3  # five days, one start every other day
    assert found["bootstrap"]["block"] >= 3
    assert sum(fold["n_test"] for fold in found["folds"]) == found["episodes"]["n"] == len(losses)


def test_the_price_out_of_sample_of_the_delta_is_the_exact_discrete_one():
    """A history of geometric Brownian motion without drift: 8,000 episodes, one after the other."""
    n = 8000 * N_STEPS + 1
    moves = np.random.default_rng(5).normal(-0.5 * VOL**2 / 252, VOL / math.sqrt(252), n)
    days = np.datetime64("1900-01-01") + np.arange(n)
    data = pl.DataFrame({"time": pl.Series(days.astype("datetime64[ms]")), "close": np.exp(moves.cumsum())})
    aversion = 40.0
    found = walk(
        of_market=market(data, window=None, information=SEEN[:3]),
        splitter=WalkForward(400, 7600),
        start_every=N_STEPS,
        baselines=(BlackScholesDelta(VOL), NoHedge()),
        costs=(),
        seeds=(0,),
        aversions=(aversion,),
        n_bootstrap=200,
    ).metrics
    problem = hedging_truth.Problem(aversion, n_steps=N_STEPS, dt=1 / 252, vol=VOL)

    def delta(date, spot):
        deviation = VOL * math.sqrt((N_STEPS - date) / 252)
        d1 = torch.from_numpy(np.log(spot) / deviation + 0.5 * deviation)
        return torch.special.ndtr(d1).numpy()

    truth = {
        "black_scholes_delta": hedging_truth.policy_value(problem, delta).price,
        "none": hedging_truth.policy_value(problem, lambda _, spot: np.zeros_like(spot)).price,
    }
    for hedge in found["cases"][0]["baselines"]:
        price = hedge["price"]
        assert abs(price["value"] - truth[hedge["name"]]) < 4 * price["std_error"]
        assert price["std_error"] < {"none": 5e-4, "black_scholes_delta": 1e-4}[hedge["name"]]


# ---- intervals ------------------------------------------------------------------------------------------------------


def test_blocks_give_overlapping_episodes_their_true_error():
    """Sums of five independent steps: the mean's variance is that of the steps, five times what independence says."""
    length, n = 5, 4000
    steps = torch.randn(n + length - 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    pnl = steps.unfold(0, length, 1).sum(1)
    drawn = resamples(pnl[None], np.arange(n), length, 400, seed=1)
    assert drawn.overlap == length
    assert drawn.block >= length
    assert torch.equal(drawn.rows, resamples(pnl[None], np.arange(n), length, 400, seed=1).rows)
    found = compared(ExpectedShortfall(1.0), {"policy": pnl}, [], None, drawn)["policy"]
    truth = length / math.sqrt(n)  # of the mean, whose risk the expected shortfall of everything is
    assert found["risk"]["std_error"] == pytest.approx(truth, rel=0.25)
    naive = float(pnl.std()) / math.sqrt(n)
    assert naive < 0.5 * truth


def test_a_hedge_is_no_better_than_itself():
    pnl = torch.randn(200, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    drawn = resamples(torch.stack([pnl, pnl - 0.1]), np.arange(200), 3, 100, seed=1)
    found = compared(Entropic(2.0), {"policy": pnl, "same": pnl, "worse": pnl - 0.1}, ["same", "worse"], 2.0, drawn)
    against = found["policy"]["against"]
    assert against["same"] == {"value": 0.0, "std_error": 0.0, "low": 0.0, "high": 0.0}
    assert [against["worse"][name] for name in ("value", "low", "high")] == pytest.approx([-0.1] * 3)


def test_the_worst_do_not_overlap():
    rng = np.random.default_rng(4)
    first = np.sort(rng.choice(300, 120, replace=False))
    pnl = rng.normal(size=120).tolist()
    found = worst_apart(pnl, first, 7, 6)
    assert found[0] == int(np.argmin(pnl))
    assert all(abs(int(first[a] - first[b])) >= 7 for a in found for b in found if a != b)
    assert [pnl[place] for place in found] == sorted(pnl[place] for place in found)
    assert overlap(first, 7) == max(sum(start <= other < start + 7 for other in first) for start in first)


# ---- what is refused ------------------------------------------------------------------------------------------------


def broken(row, **values):
    data = frame()
    columns = [
        pl.when(pl.int_range(pl.len()) == row).then(pl.lit(value)).otherwise(name).alias(name)
        for name, value in values.items()
    ]
    return data.with_columns(*columns)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (lambda: broken(50, close=math.nan), "`close` must be finite"),
        (lambda: broken(50, close=-1.0), "`close` must be positive"),
        (lambda: frame().filter(~pl.int_range(pl.len()).is_between(50, 60)), "gap longer than 10D"),
        (lambda: frame().reverse(), "must increase"),
        (lambda: pl.concat([frame(), frame().tail(1)]), "must be unique"),
        (lambda: frame().with_columns(time=pl.int_range(pl.len())), "needs dates"),
        (lambda: frame(9), "holds 9 prices, too few for an episode of 5 periods after a look-back of 4"),
    ],
)
def test_a_history_that_is_none_is_refused(data, told):
    with pytest.raises(DataError, match=told):
        walk(data())


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"start_every": 0}, ConfigError, "`start_every` must be"),
        ({"start_every": "fortnight"}, ConfigError, "or one of week, month"),
        ({"start_every": "year"}, SplitError, "no fold fits"),
        ({"splitter": WalkForward(100, 30, step=15)}, ConfigError, "test periods overlap"),
        (
            {"splitter": WalkForward(100, 2)},
            ConfigError,
            "horizon of 5 periods is longer than the test period of fold 0",
        ),
        ({"splitter": WalkForward(2, 30)}, SplitError, "has no training samples"),
        ({"splitter": WalkForward(191, 10)}, DataError, "1[0-9] episodes out of sample"),
        ({"splitter": WalkForward("2Y", "1Y")}, SplitError, "no fold fits"),
        ({"n_bootstrap": 10}, ConfigError, "`n_bootstrap` must be 100 resamples or more"),
        ({"of_market": market(block_length=500.0)}, DataError, "fold 0 trains from .* too few for one block"),
        (
            {"of_market": ModelMarket(pr.BlackScholes(0.2), pr.Market(1.0), n_steps=4, horizon=0.1)},
            ConfigError,
            "kind bootstrap, got ModelMarket",
        ),
        ({"of_market": market(n_steps=6)}, DataError, "horizon of the book is not on the grid"),
        (
            {"baselines": (BlackScholesDelta("realised"),), "of_market": market(information=SEEN[:3])},
            ConfigError,
            "add 'realised_vol'",
        ),
        ({"trainer": trainer(batch_size=50)}, ConfigError, "multiple of 16"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_the_training(changes, error, told, monkeypatch):
    monkeypatch.setattr("qfml.hedging.training.train", lambda *_: pytest.fail("it has begun"))
    with pytest.raises(error, match=told):
        walk(**changes)


def test_a_gap_may_be_allowed():
    data = frame().filter(~pl.int_range(pl.len()).is_between(50, 60))
    assert len(read_history(market(data, max_gap=None))) == len(data)


def test_a_constant_look_back_has_no_realised_hedge_and_says_so():
    data = frame().with_columns(
        pl.when(pl.int_range(pl.len()).is_between(300, 312)).then(90.0).otherwise("close").alias("close")
    )
    found = walk(data, seeds=(0,), aversions=(5.0,))
    assert set(found.left_out) == {f"{kind}_realised" for kind in ("black_scholes_delta", "leland", "whalley_wilmott")}
    assert not any(name.endswith("_realised") for name in found.table["hedge"])
    assert found.metrics["left_out"] == found.left_out
