"""A search that is stopped: what had ended stays ended, its time counts, and no second process enters its folder."""

import contextlib
import json
import os
import signal
import warnings

import numpy as np
import optuna
import polars as pl
import pytest
import yaml
from command_line import prices, qfml, settings, start, wait_until, workplace

from qfml.data import TimeDataset
from qfml.errors import Interrupted, UserError
from qfml.run import only_process, way_on
from qfml.splits import LookbackWarning, PurgedKFold, WalkForward
from qfml.task import read_task
from qfml.tune import Study, TuneConfig, Tuner, looking_back, tuning_folds
from qfml.tuning import Search, fingerprint, resume, tune

SPACES = {
    "network": {"kind": "mlp", "hidden": [8]},
    "trainer": {
        "max_epochs": 2,
        "batch_size": 64,
        "optimizer": {"kind": "adamw", "lr": {"log_uniform": [1e-4, 1e-1]}},
    },
}
PLAN = {"n_trials": 7, "concurrent": 2, "search": {"kind": "random"}}
PLAN |= {"split": {"kind": "walk_forward", "train_size": 80, "test_size": 60}}


def searched(**plan):
    return settings(**SPACES, backtest={"n_bootstrap": 0}) | {"tune": PLAN | plan}


def data(n=420):
    task = read_task(settings())
    frame, _ = task.data.check(prices(n).with_columns(pl.col("time").cast(pl.Datetime("ms"))))
    return task.data.dataset(frame)


def begun(folder, ds, search, say=lambda line: None):
    """One process of a search: what it kept, by place, and the study."""
    folds = tuning_folds(ds, search.first.split, search.plan.split)
    study = Study(folder / "study.db", search.spaces, search.plan.search, mode="min", seed=search.plan.seed)
    kept = {}

    def keep(place, _, fits):
        kept[place] = [fit.fit for fit in fits]

    with contextlib.suppress(KeyboardInterrupt):
        Tuner(ds, folds, study, search.task, keep, search.plan, say).run()
    return kept, study


def stop_at(number):
    said = []

    def say(line):
        said.append(line)
        if len(said) == number:
            raise KeyboardInterrupt

    return say


def test_a_trial_that_had_ended_is_not_trained_again_though_its_stack_had_not(tmp_path):
    ds, search = data(), Search.of(searched(n_trials=4))
    kept, study = begun(tmp_path, ds, search, stop_at(2))
    assert len(study.told()) == 2 == len(kept)  # of one stack of four, two at a time
    study.close()
    again, study = begun(tmp_path, ds, search)
    told = study.told()
    study.close()
    assert [each.place for each in told] == list(range(4))
    assert sorted([*kept, *again]) == list(range(4))
    (tmp_path / "whole").mkdir()
    whole, study = begun(tmp_path / "whole", ds, search)
    assert [each.value for each in study.told()] == [each.value for each in told]
    study.close()
    for place, fits in (kept | again).items():
        for one, other in zip(fits, whole[place], strict=True):
            assert one.parameters.numpy().tobytes() == other.parameters.numpy().tobytes()


def test_what_is_kept_is_kept_before_the_study_is_told(tmp_path):
    """Killed in between, the trial is trained again; the other way round its returns would be lost."""
    ds, search = data(), Search.of(searched(n_trials=2))
    folds = tuning_folds(ds, search.first.split, search.plan.split)
    study = Study(tmp_path / "study.db", search.spaces, search.plan.search, mode="min", seed=0)

    def killed(place, _, fits):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Tuner(ds, folds, study, search.task, killed, search.plan, print).run()
    assert study.told() == []
    study.close()
    kept, study = begun(tmp_path, ds, search)
    assert sorted(kept) == [0, 1] == [each.place for each in study.told()]
    study.close()


def test_the_timeout_counts_the_time_before_a_resume(tmp_path, monkeypatch):
    ds, now = data(), [100.0]
    monkeypatch.setattr("qfml.tune.tuner.monotonic", lambda: now[0])

    def say(line):
        now[0] += 40.0  # every trial that ends takes so long
        if now[0] == 180.0:
            raise KeyboardInterrupt

    search = Search.of(searched(timeout=100.0, n_trials=40))
    kept, study = begun(tmp_path, ds, search, say)
    study.close()
    assert len(kept) == 2
    now[0] = 1000.0  # another process, another clock

    def later(line):
        now[0] += 10.0

    again, study = begun(tmp_path, ds, search, later)
    # 40 seconds were noted before the kill; two trials wait to be asked again, then others until 100 are used up
    assert study.seconds == pytest.approx(40.0 + 10.0 * len(again))
    assert 6 <= len(again) <= 8
    study.close()
    third, study = begun(tmp_path, ds, search)
    study.close()
    assert third == {}


def test_the_default_split_warns_of_nothing_and_the_rows_that_look_back_are_counted():
    days = np.arange("2020-01-01", "2020-04-10", dtype="datetime64[D]")
    times = {"time": days, "label_end": days + 2, "window_start": days - 7}
    ds = TimeDataset(np.zeros((100, 1)), np.zeros(100), **times)
    outer, default = WalkForward(train_size=70, test_size=15), TuneConfig(n_trials=3).split
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folds = tuning_folds(ds, outer, default)
    counts = []
    for fold in folds:
        last = max(ds.label_end[row] for row in fold.test)
        after = [row for row in fold.train if ds.time[row] > ds.time[fold.test].max()]
        counts.append(sum(ds.window_start[row] <= last for row in after))
    assert looking_back(ds, folds) == counts
    assert sum(counts) > 0
    strict = tuning_folds(ds, outer, PurgedKFold(5, purge_lookback=True))
    assert looking_back(ds, strict) == [0] * 5
    with pytest.warns(LookbackWarning, match="purge_lookback=True"):  # this split is the user's own: he can act on it
        tuning_folds(ds, outer, PurgedKFold(4))


def test_one_folder_has_one_process(tmp_path):
    (tmp_path / "config.yaml").write_text("task: walk_forward\n")
    refusal = pytest.raises(UserError, match=r"another process is at work in .*resume .*--out")
    with only_process(tmp_path), refusal, only_process(tmp_path):
        pytest.fail("two at once")
    with only_process(tmp_path):
        pass


def test_sigterm_outside_training_is_told_as_what_it_was_and_the_handler_comes_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as stopped, way_on(tmp_path):
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.signal_number == signal.SIGTERM
    assert stopped.value.__notes__ == [f"Continue with: qfml resume {tmp_path}"]
    with pytest.raises(Interrupted) as stopped, way_on(tmp_path):
        raise KeyboardInterrupt
    assert stopped.value.signal_number == signal.SIGINT
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.slow
def test_sigterm_stops_a_search_that_no_second_process_may_enter_and_resume_ends_it(tmp_path):
    place = workplace(tmp_path)
    long = {"trainer": SPACES["trainer"] | {"max_epochs": 20}}
    (place / "config.yaml").write_text(yaml.safe_dump(searched(n_trials=4) | long))
    process = start("tune", "config.yaml", "--out", "search", cwd=place)
    wait_until(lambda: (place / "search" / "trials").exists())
    refused = qfml("resume", "search", cwd=place)
    assert refused.code == 2
    assert "another process is at work in search" in " ".join(refused.err.split())
    process.signal(signal.SIGTERM)
    stopped = process.wait()
    trials = place / "search" / "trials"
    storage = optuna.storages.RDBStorage(f"sqlite:///{place / 'search' / 'study.db'}")
    every = optuna.load_study(study_name="tune", storage=storage).trials
    over = [trials / f"{trial.user_attrs['place']:05d}.parquet" for trial in every if trial.state.is_finished()]
    storage.remove_session()
    storage.engine.dispose()
    kept = {path: path.stat().st_mtime_ns for path in over}
    assert kept
    assert stopped.code == 143
    assert "Continue with: qfml resume search" in " ".join(stopped.err.split())
    assert "Traceback" not in stopped.err
    assert not (place / "search" / "metrics.json").exists()
    done = qfml("resume", "search", cwd=place)
    assert done.code == 0, done.err
    assert len(json.loads((place / "search" / "metrics.json").read_text())["trials"]) == 4
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # none was trained again


def test_a_search_resumed_with_other_data_or_settings_is_refused(tmp_path, monkeypatch):
    place = workplace(tmp_path)
    monkeypatch.chdir(place)
    first = searched()
    with pytest.raises(Interrupted):
        tune(first, out="search", progress=False, say=stop_at(3))  # after the first trial
    before = [path.read_bytes() for path in sorted(place.glob("search/trials/*"))]
    config = place / "search" / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("0.1", "0.2"))  # the upper bound of the learning rate
    assert config.read_text() != text
    with pytest.raises(UserError, match="begun with other data or settings"):
        resume("search", progress=False, say=lambda line: None)
    config.write_text(text)
    prices(seed=1).write_csv(place / "prices.csv")
    with pytest.raises(UserError, match="begun with other data or settings"):
        resume("search", progress=False, say=lambda line: None)
    assert [path.read_bytes() for path in sorted(place.glob("search/trials/*"))] == before


def test_more_trials_and_more_time_leave_it_the_same_search():
    ds = data()
    same = {fingerprint(Search.of(searched(**more)), ds) for more in ({}, {"n_trials": 90}, {"timeout": 9.0})}
    others = {fingerprint(Search.of(searched(**more)), ds) for more in ({"seed": 1}, {"halving": {"first": 1}})}
    assert len(same) == 1
    assert len(others - same) == 2
