"""The walk-forward against a loop over its own predictions, and against a future that is changed."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from backtest.cases import FakeTrainer, panel, single_asset

import qfml
from qfml.backtest import (
    HAR,
    BetSize,
    BuyAndHold,
    Direct,
    Momentum,
    PredictedVolTarget,
    QuantileLongShort,
    Ridge,
    Sign,
    VolTarget,
    walk_forward,
)
from qfml.data import TimeDataset
from qfml.data.transforms import Standardise
from qfml.errors import DataError, SplitError, UserError
from qfml.metrics import sharpe_ratio
from qfml.splits import CombinatorialPurgedKFold, PurgedKFold, WalkForward

MLP = qfml.MLP(hidden=(4,))
TRAINER = qfml.Trainer(max_epochs=3, batch_size=64, optimizer=qfml.AdamW(lr=1e-2))
SPLITTER = WalkForward(train_size=100, test_size=40)
ALL = (BuyAndHold(), Ridge(), Momentum())


def run(ds, **changes):
    settings = {
        "splitter": SPLITTER,
        "network": MLP,
        "trainer": TRAINER,
        "loss": qfml.MSE(),
        "cost_bps": 2.0,
        "n_bootstrap": 0,
        "baselines": (BuyAndHold(),),
    }
    return walk_forward(ds, **settings | changes)


def net(result, strategy="network"):
    return result.pnl.filter(pl.col("strategy") == strategy).sort("time")["net"].to_numpy()


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_pnl_equals_a_loop_over_the_predictions_of_a_ragged_panel(lag):
    ds = panel()
    result = run(ds, execution_lag=lag, cost_bps=7.0, trainer=FakeTrainer())
    days = np.unique(ds.time)
    number = {day: i for i, day in enumerate(days)}
    row = {(t, g): r for t, g, r in zip(ds.time, ds.group, ds.returns)}
    score = {}
    for t, name, value in result.predictions.select("time", "group", "network").iter_rows():
        score[np.datetime64(t, "ns"), ds.group_names.index(name)] = value
    held = dict.fromkeys(range(len(ds.group_names)), 0.0)
    tested = {t for t, _ in score}
    expected = {}
    for s, day in enumerate(days):
        source = days[s - lag] if s >= lag else None
        n = sum(t == source for t, _ in score)
        gross = cost = 0.0
        for asset, before in held.items():
            order = np.sign(score[source, asset]) / n if (source, asset) in score else 0.0
            earned = row.get((day, asset), np.nan)
            if np.isnan(earned):
                order, earned = 0.0, 0.0
            cost += abs(order - before) * 7e-4
            gross += order * earned
            held[asset] = order
        if source in tested or (s > lag and days[s - lag - 1] in tested):
            expected[day] = (gross, cost)
    frame = result.pnl.filter(pl.col("strategy") == "network")
    assert [number[np.datetime64(t, "ns")] for t in frame["time"]] == [number[day] for day in expected]
    np.testing.assert_allclose(frame.select("gross", "cost").to_numpy(), list(expected.values()), rtol=1e-9, atol=1e-15)


def test_free_instant_trading_of_a_perfect_forecast_earns_the_absolute_returns():
    base = single_asset(signal=1.0)
    ds = TimeDataset(base.y[:, None], base.y, time=base.time, label_end=base.label_end, returns=base.y.double().numpy())
    result = run(ds, trainer=FakeTrainer(), cost_bps=0.0, execution_lag=0)
    tested = np.concatenate([fold.test for fold in SPLITTER.folds(ds)])
    np.testing.assert_array_equal(net(result)[: len(tested)], np.abs(ds.returns[tested]))


def test_what_happens_later_changes_no_prediction_position_or_pnl_before():
    ds = single_asset(signal=0.2)
    before = run(ds, baselines=(BuyAndHold(), Ridge()), transforms=(Standardise(),), positions=VolTarget(window=20))
    cut = 230  # in the middle of a test block
    changed = TimeDataset(
        torch.cat([ds.features[:cut], 3 * ds.features[cut:] - 1]),
        torch.cat([ds.y[: cut - 1], -ds.y[cut - 1 :]]),  # the label of the row before is known only at the cut
        time=ds.time,
        label_end=ds.label_end,
        returns=np.concatenate([ds.returns[:cut], -2 * ds.returns[cut:]]),
    )
    after = run(changed, baselines=(BuyAndHold(), Ridge()), transforms=(Standardise(),), positions=VolTarget(window=20))
    early = pl.col("time") < ds.time[cut]
    for name in ("positions", "pnl"):
        left, right = (getattr(result, name).filter(early) for result in (before, after))
        assert left.equals(right)
        assert len(left) > 0
    left, right = (result.predictions.filter(early).drop("y") for result in (before, after))
    assert left.equals(right)
    assert not before.pnl.equals(after.pnl)


def test_all_folds_and_seeds_are_one_stack_with_purged_validation_and_their_own_scalers():
    ds, trainer = single_asset(horizon=5), FakeTrainer(shift=lambda member: float(member.seed))
    result = run(ds, trainer=trainer, n_seeds=3, seed=10, transforms=(Standardise(),))
    assert len(trainer.calls) == 1
    members, _ = trainer.calls[0]
    folds = SPLITTER.folds(ds)
    assert len(members) == 3 * len(folds)
    assert [member.seed for member in members] == [10, 11, 12] * len(folds)
    for member, fold in zip(members[::3], folds):
        n_tail = -(-15 * len(fold.train) // 100)
        np.testing.assert_array_equal(member.val, fold.train[-n_tail:])
        # labels end five days later: a training row must be at least five days before the tail
        np.testing.assert_array_equal(member.train, fold.train[: -n_tail - 4])
        x = member.transforms.apply(ds.features[torch.from_numpy(member.train)])
        torch.testing.assert_close(x.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    assert members[0].transforms is members[1].transforms
    seeds = result.predictions.select("seed_10", "seed_11", "seed_12").to_numpy()
    np.testing.assert_allclose(result.predictions["network"].to_numpy(), seeds.mean(axis=1))
    np.testing.assert_allclose(seeds[:, 2] - seeds[:, 0], 2.0)


def test_stacked_members_are_what_the_trainer_makes_of_each_alone():
    ds = single_asset()
    result = run(ds, n_seeds=2, validation=0.2)
    for each in result.fits:
        rows = SPLITTER.folds(ds)[each.fold].train
        member = qfml.Member(MLP, rows[: len(rows) * 4 // 5], rows[len(rows) * 4 // 5 :], seed=each.seed)
        alone = TRAINER.fit_many([member], qfml.MSE(), ds)[0]
        assert torch.equal(alone.parameters, each.fit.parameters)


def test_warm_start_continues_each_fold_from_the_same_seed_of_the_one_before():
    ds, trainer = single_asset(), FakeTrainer()
    run(ds, trainer=trainer, n_seeds=2, warm_start=True)
    n_folds = len(SPLITTER.folds(ds))
    assert [len(members) for members, _ in trainer.calls] == [2] * n_folds
    assert all(member.start is None for member in trainer.calls[0][0])
    assert all(member.start is not None for members, _ in trainer.calls[1:] for member in members)

    cold, warm = run(ds), run(ds, warm_start=True)
    assert torch.equal(cold.fits[0].fit.parameters, warm.fits[0].fit.parameters)
    assert not torch.equal(cold.fits[1].fit.parameters, warm.fits[1].fit.parameters)
    assert "not stacked" in warm.metrics["conventions"]["warm_start"]


class Told(qfml.engine.Callback):
    def __init__(self):
        self.begun, self.epochs, self.fits, self.ended = [], [], {}, []

    def begin(self, n_members, max_epochs):
        self.begun.append((n_members, max_epochs))

    def epoch(self, member, record, stopped):
        self.epochs.append((member, record["epoch"]))

    def finished(self, member, fit):
        self.fits[member] = fit

    def end(self, fits):
        self.ended.append(list(fits))


@pytest.mark.parametrize("warm_start", [False, True])
def test_progress_hears_of_every_member_once_and_epoch(warm_start):
    told = Told()
    run(single_asset(), n_seeds=2, warm_start=warm_start, callbacks=[told])
    n_members = 2 * len(SPLITTER.folds(single_asset()))
    assert told.begun == [(n_members, 3)]
    assert sorted(told.epochs) == [(member, epoch) for member in range(n_members) for epoch in (1, 2, 3)]
    assert told.ended == [[told.fits[member] for member in range(n_members)]]


@pytest.mark.parametrize("warm_start", [False, True])
def test_a_run_resumes_from_its_checkpoints_to_the_same_bits(tmp_path, warm_start):
    ds = single_asset()
    first = run(ds, checkpoint_dir=tmp_path, warm_start=warm_start)
    again = run(ds, checkpoint_dir=tmp_path, warm_start=warm_start, resume=True)
    assert again.predictions.equals(first.predictions)
    assert again.pnl.equals(first.pnl)


def test_folds_that_the_splitter_does_not_refit_keep_the_model():
    ds, trainer = single_asset(), FakeTrainer()
    result = run(ds, trainer=trainer, splitter=WalkForward(train_size=100, test_size=40, refit_every=2))
    folds = result.metrics["folds"]
    assert [fold["model"] for fold in folds] == [0, 0, 2, 2, 4, 4][: len(folds)]
    assert len(trainer.calls[0][0]) == len({fold["model"] for fold in folds})
    assert sum(member["metrics"]["n_obs"] for member in result.metrics["members"]) == len(result.predictions)


def test_positions_add_up_to_the_totals_for_every_strategy():
    result = run(panel(), positions=QuantileLongShort(quantile=0.4), slippage=0.5)
    summed = (
        result.positions.group_by("strategy", "time")
        .agg(pl.col("gross", "cost", "net").sum(), pl.col("position").abs().sum())
        .sort("strategy", "time")
    )
    totals = result.pnl.filter(~pl.col("strategy").str.starts_with("seed_")).sort("strategy", "time")
    assert summed.select("strategy", "time").equals(totals.select("strategy", "time"))
    columns = ["gross", "cost", "net", "exposure"]
    np.testing.assert_allclose(
        summed.rename({"position": "exposure"}).select(columns).to_numpy(),
        totals.select(columns).to_numpy(),
        atol=1e-15,
    )


def test_metrics_come_from_the_frames_and_fit_into_json():
    result = run(panel(), n_seeds=2, n_bootstrap=50, baselines=ALL)
    text = json.dumps(result.metrics, allow_nan=False)
    found = json.loads(text)
    p = found["conventions"]["periods_per_year"]
    for name in ("network", "buy_and_hold", "ridge", "momentum"):
        strategy = found["strategies"][name]
        assert strategy["metrics"]["sharpe_ratio"] == pytest.approx(sharpe_ratio(net(result, name), p))
        low, high = strategy["intervals"]["sharpe_ratio"]
        assert low < strategy["metrics"]["sharpe_ratio"] < high
    assert set(found["prediction"]) == {"network", "ridge", "momentum"}
    assert sum(each["count"] for each in found["calibration"]["bins"]) == len(result.predictions)
    per_fold = result.predictions.group_by("fold").len().sort("fold")["len"].to_list()
    assert per_fold == [fold["n_test"] for fold in found["folds"]]
    assert len(found["members"]) == 2 * len(found["folds"])
    assert found["significance"]["pbo"] is None
    assert found["significance"]["pbo_note"]
    assert found["significance"]["verdict"]
    assert any("return of the period is unknown" in line for line in found["data"]["validation"])


def test_every_row_of_a_fold_is_in_one_block_of_time():
    result = run(single_asset(horizon=3), splitter=WalkForward(train_size=100, test_size=40, embargo=2))
    for fold in result.metrics["folds"]:
        kinds = [block["kind"] for block in fold["blocks"]]
        assert kinds == ["train", "purged", "validation", "embargoed", "purged", "test"]
        ends = [block["end"] for block in fold["blocks"]]
        starts = [block["start"] for block in fold["blocks"]]
        assert all(end < start for end, start in zip(ends, starts[1:]))


def test_gaps_between_test_blocks_are_closed_and_left_out():
    ds = single_asset()
    result = run(ds, trainer=FakeTrainer(), splitter=WalkForward(train_size=100, test_size=20, step=50))
    frame = result.pnl.filter(pl.col("strategy") == "buy_and_hold")
    tested = [fold.test for fold in WalkForward(train_size=100, test_size=20, step=50).folds(ds)]
    # decided in rows a..b, held over a+1..b+1, closed in b+2
    periods = np.concatenate([np.arange(test[0] + 1, test[-1] + 3) for test in tested])
    periods = periods[periods < len(ds)]
    np.testing.assert_array_equal(frame["time"].to_numpy(), ds.time[periods])
    n_closings = sum(test[-1] + 2 < len(ds) for test in tested)
    assert (frame["exposure"].to_numpy() == 0.0).sum() == n_closings
    assert frame["turnover"].sum() == pytest.approx(len(tested) + n_closings)


def test_a_classifier_is_traded_by_bet_size_and_judged_as_one():
    ds = single_asset(signal=2.0, classify=True)
    result = run(
        ds, loss=qfml.BCE(), positions=BetSize(), baselines=ALL,
        trainer=qfml.Trainer(max_epochs=30, batch_size=32, optimizer=qfml.AdamW(lr=1e-2)), execution_lag=0,
    )  # fmt: skip
    found = result.metrics["prediction"]
    assert found["network"]["accuracy"] > 0.67  # chance and five standard errors
    assert found["ridge"]["accuracy"] > 0.67
    assert np.sum(found["network"]["confusion_matrix"]) == len(result.predictions)
    assert result.metrics["calibration"]["kind"] == "classification"
    assert result.metrics["conventions"]["baseline_positions"]["ridge"] == "bet_size"
    assert result.metrics["strategies"]["network"]["metrics"]["sharpe_ratio"] > 3


def test_the_sign_rule_on_probabilities_goes_short_below_one_half():
    ds = single_asset(classify=True)
    result = run(ds, loss=qfml.BCE(), positions=Sign(), execution_lag=0)
    joined = result.predictions.join(result.positions.filter(pl.col("strategy") == "network"), on="time")
    np.testing.assert_array_equal(np.sign(joined["network"].to_numpy() - 0.5), joined["position"].to_numpy())


def test_a_network_trained_on_the_sharpe_ratio_trades_its_own_positions():
    result = run(
        single_asset(signal=1.0), loss=qfml.NegativeSharpe(cost_bps=1.0), positions=Direct(), execution_lag=0,
        trainer=qfml.Trainer(max_epochs=5, batch_size=None), baselines=(Ridge(),),
    )  # fmt: skip
    held = result.positions.filter(pl.col("strategy") == "network")["position"].to_numpy()[: len(result.predictions)]
    np.testing.assert_array_equal(held, result.predictions["network"].to_numpy())
    assert result.metrics["conventions"]["baseline_positions"]["ridge"] == "sign"
    assert "mse" not in result.metrics["prediction"]["network"]


def test_a_volatility_forecast_sizes_positions_beside_har():
    rng = np.random.default_rng(0)
    n = 320
    vol = np.exp(np.convolve(rng.normal(0, 0.3, n + 30), np.ones(20) / 20**0.5, "valid")[:n] - 2)
    X = np.column_stack([vol, np.convolve(vol, np.ones(5) / 5, "same"), np.convolve(vol, np.ones(22) / 22, "same")])
    r = vol / np.sqrt(365) * rng.normal(size=n)
    days = np.datetime64("2020-01-01") + np.arange(n)
    names = ["har_daily", "har_weekly", "har_monthly"]
    ds = TimeDataset(X, vol, time=days, label_end=days + 1, returns=r, feature_names=names)
    result = run(ds, trainer=FakeTrainer(), positions=PredictedVolTarget(target=0.1), baselines=(HAR(), Momentum()))
    assert result.metrics["prediction"]["har"]["r2"] > 0.99  # the label is the daily component itself
    assert result.metrics["strategies"]["har"]["metrics"]["annualised_vol"] == pytest.approx(0.1, rel=0.25)
    assert result.metrics["conventions"]["baseline_positions"] == {"har": "predicted_vol_target", "momentum": "sign"}


def test_saved_folder_reads_back_and_is_not_overwritten(tmp_path):
    result = run(panel(), n_seeds=2)
    folder = result.save(tmp_path / "run")
    assert pl.read_parquet(folder / "pnl.parquet").equals(result.pnl)
    assert pl.read_parquet(folder / "positions.parquet").equals(result.positions)
    assert pl.read_parquet(folder / "predictions.parquet").equals(result.predictions)
    assert json.loads((folder / "metrics.json").read_text()) == json.loads(json.dumps(result.metrics))
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in log] == [1, 2, 3] * len(result.fits)
    fits, extra = qfml.engine.load_fits(folder / "model")
    assert extra["members"][1] == {"fold": 0, "seed": 1}
    assert torch.equal(fits[1].parameters, result.fits[1].fit.parameters)
    with pytest.raises(UserError, match="holds a result already"):
        result.save(folder)


def test_training_on_later_data_is_said():
    splitter = PurgedKFold(n_splits=4)
    result = run(single_asset(), splitter=splitter)
    assert "cross-validation" in result.metrics["conventions"]["training_rows"]
    assert run(single_asset()).metrics["conventions"]["training_rows"] == "earlier only"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"splitter": CombinatorialPurgedKFold(4, 2)}, UserError, "more than once .up to 3 times"),
        ({"splitter": WalkForward(train_size=100, test_size=40, step=20)}, UserError, "more than once"),
        ({"splitter": "walk_forward"}, UserError, "one of qfml.splits"),
        ({"splitter": WalkForward(train_size=1000, test_size=40)}, SplitError, "train"),
        ({"positions": BetSize()}, UserError, "`bet_size` reads a probability"),
        ({"positions": Direct()}, UserError, "`direct` reads a position"),
        ({"positions": QuantileLongShort()}, UserError, "there is only one"),
        ({"cost_bps": -1.0}, UserError, "cost_bps"),
        ({"execution_lag": -1}, UserError, "execution_lag"),
        ({"n_seeds": 0}, UserError, "n_seeds"),
        ({"validation": 1.0}, UserError, "validation"),
        ({"n_bootstrap": -1}, UserError, "n_bootstrap"),
        ({"baselines": (Ridge(), Ridge())}, UserError, "distinct kinds"),
        ({"baselines": (HAR(),)}, DataError, "har_daily"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        run(single_asset(), trainer=FakeTrainer(), **changes)


def test_data_without_returns_are_refused_before_training():
    trainer = FakeTrainer()
    with pytest.raises(DataError, match="pass `returns=` to TimeDataset"):
        run(single_asset(returns=False), trainer=trainer)
    assert not trainer.calls


def test_cost_has_no_default():
    with pytest.raises(TypeError, match="cost_bps"):
        walk_forward(single_asset(), splitter=SPLITTER, network=MLP, trainer=TRAINER, loss=qfml.MSE())
