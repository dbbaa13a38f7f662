"""A search beside one that trains every trial by itself; what it may see; what a kill leaves of it."""

import json
import signal

import numpy as np
import polars as pl
import pytest
import yaml
from command_line import prices, qfml, settings, start, wait_until, workplace
from scipy.stats import norm

from qfml.backtest.folds import plan_folds
from qfml.backtest.training import fit_fold_transforms
from qfml.data import TimeDataset
from qfml.engine import Member
from qfml.errors import ConfigError, UserError
from qfml.ledger import Ledger
from qfml.run import read_task
from qfml.splits import PurgedKFold, WalkForward
from qfml.tune import Study, TuneConfig, Tuner, filled, tuning_folds
from qfml.tuning import Search

SPACES = {
    "network": {"kind": "mlp", "hidden": {"choice": [[8], [16]]}},
    "trainer": {
        "max_epochs": 6,
        "batch_size": {"choice": [32, 64]},
        "optimizer": {"kind": "adamw", "lr": {"log_uniform": [1e-4, 1e-1]}},
    },
}
PLAN = {"n_trials": 7, "concurrent": 2, "search": {"kind": "random"}}
PLAN |= {"split": {"kind": "walk_forward", "train_size": 80, "test_size": 40}}


def searched(**plan):
    return settings(**SPACES, backtest={"n_bootstrap": 0}) | {"tune": PLAN | plan}


def data(n=420, seed=0):
    task = read_task(settings())
    frame, _ = task.data.check(prices(n, seed).with_columns(pl.col("time").cast(pl.Datetime("ms"))))
    return task.data.dataset(frame)


def ran(folder, ds, search):
    """All trials of a search, with what was kept of each."""
    folds = tuning_folds(ds, search.first.split, search.plan.split)
    kept = {}
    study = Study(folder / "study.db", search.spaces, search.plan.search, mode="min", seed=search.plan.seed)

    def keep(place, _, fits):
        kept[place] = fits

    Tuner(ds, folds, study, search.task, keep, search.plan, lambda line: None).run()
    told = study.told()
    study.close()
    return folds, kept, told


def test_a_trial_in_the_stack_ends_with_the_bits_that_it_has_alone(tmp_path):
    ds, search = data(), Search.of(searched(n_trials=5, seed=1))
    folds, kept, told = ran(tmp_path, ds, search)
    assert [each.place for each in told] == list(range(5))
    assert len({each.params["trainer.batch_size"] for each in told}) == 2  # so there were several stacks
    for each in told:
        task = search.task(each.params)
        fitted = fit_fold_transforms(ds, folds, task.transforms)
        values = []
        for fit in kept[each.place]:
            values.append(fit.fit.best_val_loss)
            if (each.place + fit.fold) % 4 or fit.seed:
                continue  # a quarter of the folds, one seed: it takes long to train one by one
            fold = folds[fit.fold]
            alone = task.trainer.fit_many(
                [Member(task.network, fold.train, fold.test, seed=fit.seed, transforms=fitted[fit.fold])], task.loss, ds
            )[0]
            assert alone.parameters.numpy().tobytes() == fit.fit.parameters.numpy().tobytes()
        assert each.value == pytest.approx(np.mean(values), rel=1e-12)
        assert len(values) == len(folds) * task.n_seeds
        assert len(each.curve) == 6
        assert each.curve[-1] == each.value


@pytest.mark.slow
def test_halving_drops_what_is_behind_and_keeps_the_leader(tmp_path):
    plan = {"n_trials": 12, "concurrent": 4, "halving": {"first": 2, "factor": 2}}
    both = [
        (tmp_path / name, Search.of(searched(**more) | {"trainer": SPACES["trainer"] | {"batch_size": 64}}))
        for name, more in {"all": {"n_trials": 12}, "halved": plan}.items()
    ]
    for folder, _ in both:
        folder.mkdir()
    ds = data()
    (_, _, whole), (_, _, halved) = (ran(folder, ds, search) for folder, search in both)
    assert [each.params for each in whole] == [each.params for each in halved]
    dropped = [each for each in halved if each.pruned]
    assert len(halved) / 2 <= len(dropped) < len(halved)
    for each, full in zip(halved, whole, strict=True):
        n = 2 if each.pruned else 6
        assert each.curve[:n] == full.curve[:n]  # until its first rung a trial is what it is without halving
        assert (min(each.epochs) < 6) == each.pruned
    at_first_rung = sorted(full.curve[1] for full in whole)
    ended = [each.curve[1] for each in halved if not each.pruned]
    assert min(ended) <= at_first_rung[len(whole) // 2]  # no one from the worse half alone is left
    spent, all_epochs = (sum(sum(each.epochs) for each in found) for found in (halved, whole))
    assert spent < 0.8 * all_epochs


def test_no_row_that_is_tested_takes_part(tmp_path):
    ds = data()
    task = read_task(settings())
    folds = tuning_folds(ds, task.split, PurgedKFold(4, purge_lookback=True))
    seen = np.unique(np.concatenate([rows for fold in folds for rows in (fold.train, fold.test)]))
    tested = np.concatenate([fold.test for fold in plan_folds(ds, task.split, 0.0)])
    assert not np.isin(seen, tested).any()
    assert ds.label_end[seen].max() <= ds.time[tested].min()
    for fold in folds:  # the purge, by its definition
        first, last = ds.time[fold.test].min(), ds.label_end[fold.test].max()
        assert ((ds.label_end[fold.train] <= first) | (ds.time[fold.train] >= last)).all()
    scrambled = ds.y.clone()
    scrambled[tested] = 1e6
    other = TimeDataset(ds.features[ds.ends], scrambled, time=ds.time, label_end=ds.label_end)
    same = TimeDataset(ds.features[ds.ends], ds.y, time=ds.time, label_end=ds.label_end)
    search = Search.of(searched(n_trials=2))
    values = []
    for name, each in {"same": same, "other": other}.items():
        (tmp_path / name).mkdir()
        values.append([told.value for told in ran(tmp_path / name, each, search)[2]])
    assert values[0] == values[1]


def test_a_split_that_leaves_nothing_to_tune_on_is_refused():
    with pytest.raises(UserError, match="tests every row"):
        tuning_folds(data(), PurgedKFold(4, purge_lookback=True), PurgedKFold(3))
    with pytest.raises(UserError, match="more than once"):
        tuning_folds(
            data(), WalkForward(train_size=200, test_size=100), WalkForward(train_size=80, test_size=40, step=20)
        )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"data": {"label": {"kind": "forward_return", "horizon": {"int": [1, 5]}}}}, "data.label.horizon"),
        ({"n_seeds": {"int": [1, 5]}}, "n_seeds"),
        ({"loss": {"choice": ["mse", "mae"]}}, "val_loss"),
        ({"trainer": {"max_seconds": 3.0}}, "timeout"),
        ({"trainer": {"monitor": "train_loss"}}, "train_loss"),
        ({"trainer": {"optimizer": {"kind": "adamw", "lr": {"uniform": [-1.0, 1.0]}}}}, "lr"),
        ({"network": {"kind": "mlp", "hidden": {"choice": [[8], "wide"]}}}, "hidden"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_is_read(change, named):
    merged = settings(**SPACES) | {k: v for k, v in change.items() if k not in ("trainer", "data")}
    for section in ("trainer", "data"):
        merged[section] = {**merged[section], **change.get(section, {})}
    with pytest.raises(ConfigError, match=named):
        Search.of(merged | {"tune": PLAN})


def test_the_timeout_ends_the_asking(tmp_path):
    _, _, told = ran(tmp_path, data(), Search.of(searched(timeout=1e-9)))
    assert told == []


def test_a_config_without_spaces_or_with_a_wrong_plan_is_refused():
    with pytest.raises(ConfigError, match="nothing to search"):
        Search.of(settings() | {"tune": PLAN})
    with pytest.raises(ConfigError, match="section `tune`"):
        Search.of(settings(**SPACES))
    with pytest.raises(ConfigError, match=r"tune: .*n_trial"):
        Search.of(settings(**SPACES) | {"tune": {"n_trial": 3}})
    with pytest.raises(ConfigError, match="qfml tune"):
        read_task(filled(searched(), {}, {}))
    assert TuneConfig(n_trials=3).concurrent == 8


# ---- the command ----------------------------------------------------------------------------------------------------

LONG = {"trainer": SPACES["trainer"] | {"max_epochs": 20, "batch_size": 64}}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A finished search."""
    place = workplace(tmp_path_factory.mktemp("search"))
    (place / "config.yaml").write_text(yaml.safe_dump(searched() | LONG))
    done = qfml("tune", "config.yaml", "--out", "whole", cwd=place)
    assert done.code == 0, done.err
    assert "best of 7 trials" in done.out
    return place


def results(folder):
    found = json.loads((folder / "metrics.json").read_text())
    trials = [{k: trial[k] for k in ("place", "value", "params", "curve", "sharpe_ratio")} for trial in found["trials"]]
    return trials, found["winner"], found["importance"]


def test_every_trial_stands_in_the_ledger_and_the_luck_of_the_winner_is_told(place):
    found = json.loads((place / "whole" / "metrics.json").read_text())
    returns = np.stack([pl.read_parquet(place / "whole" / "trials" / f"{i:05d}.parquet")["net"] for i in range(7)], 1)
    sharpes = returns.mean(axis=0) / returns.std(axis=0, ddof=1)
    entries, damaged = Ledger(place / "ledger.jsonl").entries()
    assert not damaged
    assert len({entry.trial_hash for entry in entries}) == 7  # the winner's backtest is one of them
    assert len(entries) == 8
    assert sorted(entry.sharpe for entry in entries[:7]) == pytest.approx(sorted(sharpes))
    winner = min(found["trials"], key=lambda trial: trial["value"])
    assert found["winner"]["place"] == winner["place"]
    # Bailey and Lopez de Prado (2014), by hand
    x, variance, gamma = returns[:, winner["place"]], sharpes.var(ddof=1), 0.5772156649015329
    expected = np.sqrt(variance) * ((1 - gamma) * norm.ppf(1 - 1 / 7) + gamma * norm.ppf(1 - 1 / (7 * np.e)))
    z = (x - x.mean()) / x.std()
    sr, skew, kurtosis = sharpes[winner["place"]], (z**3).mean(), (z**4).mean()
    deflated = norm.cdf((sr - expected) * np.sqrt(len(x) - 1) / np.sqrt(1 - skew * sr + (kurtosis - 1) / 4 * sr * sr))
    assert found["significance"]["deflated_sharpe_ratio"] == pytest.approx(deflated, rel=0.05)
    assert 0 <= found["significance"]["pbo"] <= 1
    assert sum(found["importance"].values()) == pytest.approx(1)


def test_the_winner_is_the_run_that_its_config_makes(place):
    done = qfml("run", "whole/best.yaml", "--out", "alone", cwd=place)
    assert done.code == 0, done.err
    for name in ("predictions", "pnl"):
        files = [place / folder / f"{name}.parquet" for folder in ("alone", "whole/winner")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_the_report_names_every_trial_and_is_rebuilt_from_the_folder(place):
    page = (place / "whole" / "report.html").read_text()
    for word in (
        "Deflated Sharpe",
        "Probability of backtest overfitting",
        "trainer.optimizer.lr",
        "winner/report.html",
    ):
        assert word in page
    (place / "whole" / "report.html").unlink()
    assert qfml("report", "whole", cwd=place).code == 0
    assert (place / "whole" / "report.html").read_text() == page


@pytest.mark.slow
@pytest.mark.parametrize("n_told", [0, 3])
def test_a_killed_search_resumed_ends_like_one_that_was_left_alone(place, n_told):
    name = f"killed{n_told}"
    process = start("tune", "config.yaml", "--out", name, cwd=place)
    wait_until(lambda: (process.folder / "err").exists() and n_said(process) >= n_told)
    wait_until(lambda: (place / name / "study.db").exists())
    process.signal(signal.SIGKILL)
    assert process.wait().code == -signal.SIGKILL
    done = qfml("resume", name, cwd=place)
    assert done.code == 0, done.err
    assert results(place / name) == results(place / "whole")
    assert len({e.trial_hash for e in Ledger(place / "ledger.jsonl").entries()[0]}) == 7
    again = qfml("resume", name, cwd=place)
    assert again.code == 2
    assert "finished" in again.err


def n_said(process):
    return (process.folder / "err").read_text().count("trained to the end")
