"""What a run leaves behind: every file, the same bits from the same config, and an honest count of trials."""

import json
import math

import command_line
import numpy as np
import polars as pl
import pytest
import scipy.stats
from command_line import qfml, workplace
from polars.testing import assert_frame_equal

from qfml import config
from qfml.run import as_settings, read_task

FILES = {
    "config.yaml",
    "metrics.json",
    "log.jsonl",
    "predictions.parquet",
    "positions.parquet",
    "pnl.parquet",
    "report.html",
    "tearsheet.html",
    "checkpoints",
    "model",
}
TABLES = ("predictions", "positions", "pnl")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Five runs in one place: the same config twice, another seed, another learning rate, and other baselines."""
    place = workplace(tmp_path_factory.mktemp("runs"))
    changes = {
        "first": [],
        "again": [],
        "reseeded": ["seed=5"],
        "other_lr": ["trainer.optimizer.lr=0.002"],
        "other_output": ["backtest.baselines=[buy_and_hold]", "name=renamed", "trainer.checkpoint_seconds=5"],
    }
    for name, assignments in changes.items():
        words = [word for assignment in assignments for word in ("--set", assignment)]
        done = qfml("run", "config.yaml", "--out", name, *words, cwd=place, sheet=name == "first")
        assert done.code == 0, done.err
    return place


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def entries(place):
    return [json.loads(line) for line in (place / "ledger.jsonl").read_text().splitlines()]


def test_the_run_folder_holds_every_file_and_nothing_half_written(place):
    assert {path.name for path in (place / "first").iterdir()} == FILES
    assert (place / "first" / "tearsheet.html").stat().st_size > 10_000
    assert any((place / "first" / "checkpoints").glob("checkpoint-*"))


def test_config_yaml_names_every_setting_and_reads_back_to_the_same_hash(place):
    settings = config.read_yaml(place / "first" / "config.yaml")
    task = read_task(settings)
    assert as_settings(task) == settings
    assert (
        config.config_hash(settings) == config.config_hash(as_settings(task)) == metrics(place / "first")["config_hash"]
    )
    assert settings["trainer"]["optimizer"]["beta1"] == 0.9  # a default that the user did not write


def test_a_run_repeated_from_its_own_config_yaml_is_the_same_run(place, tmp_path):
    done = qfml("run", place / "first" / "config.yaml", "--out", tmp_path / "copy", cwd=place)
    assert done.code == 0, done.err
    same_results(place / "first", tmp_path / "copy")


def test_one_config_run_twice_gives_the_same_bits(place):
    same_results(place / "first", place / "again")


def same_results(one, other):
    for name in TABLES:
        assert_frame_equal(pl.read_parquet(one / f"{name}.parquet"), pl.read_parquet(other / f"{name}.parquet"))
        assert (one / f"{name}.parquet").read_bytes() == (other / f"{name}.parquet").read_bytes()
    assert (one / "log.jsonl").read_text() == (other / "log.jsonl").read_text()
    assert (one / "config.yaml").read_text() == (other / "config.yaml").read_text()
    of_the_clock = ("created", "seconds")
    found = [{k: v for k, v in metrics(folder).items() if k not in of_the_clock} for folder in (one, other)]
    for each in found:  # the ledger may have grown in between: what it decides is checked below
        for name in ("n_trials", "deflated_sharpe_ratio", "trial_variance", "min_backtest_length_years"):
            each["significance"].pop(name)
    assert found[0] == found[1]


def test_another_seed_gives_other_predictions(place):
    first, other = (pl.read_parquet(place / name / "predictions.parquet") for name in ("first", "reseeded"))
    assert not np.allclose(first["network"], other["network"])
    assert first.columns == [*("time", "fold", "y", "network", "seed_0", "seed_1", "ridge", "momentum")]
    assert {"seed_5", "seed_6"} <= set(other.columns)


def test_the_prediction_is_the_mean_over_seeds_and_the_log_has_a_line_per_member_and_epoch(place):
    table = pl.read_parquet(place / "first" / "predictions.parquet")
    np.testing.assert_allclose(table["network"], (table["seed_0"] + table["seed_1"]) / 2, rtol=1e-12)
    log = [json.loads(line) for line in (place / "first" / "log.jsonl").read_text().splitlines()]
    expected = {(fold, seed, epoch) for fold in (0, 1) for seed in (0, 1) for epoch in (1, 2, 3)}
    assert sorted((entry["fold"], entry["seed"], entry["epoch"]) for entry in log) == sorted(expected)


def test_another_seed_or_output_is_no_new_trial_and_another_learning_rate_is(place):
    counted = {name: metrics(place / name)["significance"]["n_trials"] for name in ("first", "again", "reseeded")}
    assert counted == {"first": 1, "again": 1, "reseeded": 1}
    assert metrics(place / "other_lr")["significance"]["n_trials"] == 2
    assert metrics(place / "other_output")["significance"]["n_trials"] == 2
    rows = entries(place)[:5]
    trials = [row["trial_hash"] for row in rows]
    assert trials[0] == trials[1] == trials[2] == trials[4] != trials[3]
    assert len({row["data_hash"] for row in rows}) == 1
    assert len({row["config_hash"] for row in rows}) == 4  # only the rerun repeats


def test_with_one_trial_the_deflated_sharpe_ratio_is_the_probabilistic_one(place):
    found = metrics(place / "first")["significance"]
    assert found["deflated_sharpe_ratio"] == found["probabilistic_sharpe_ratio"]


def test_the_ledger_records_the_moments_of_the_net_returns(place):
    net = pl.read_parquet(place / "other_lr" / "pnl.parquet").filter(pl.col("strategy") == "network")["net"].to_numpy()
    row = entries(place)[3]
    assert row["n_obs"] == len(net)
    assert row["sharpe"] == pytest.approx(net.mean() / net.std(ddof=1), rel=1e-10)
    assert row["skew"] == pytest.approx(scipy.stats.skew(net), rel=1e-8)
    assert row["kurtosis"] == pytest.approx(scipy.stats.kurtosis(net, fisher=False), rel=1e-8)


def test_the_deflated_sharpe_ratio_follows_from_the_ledger_file(place):
    """Bailey and Lopez de Prado (2014), equations 1 and 2, on the lines that were there when the run ended."""
    latest = {row["trial_hash"]: row for row in entries(place)[:4]}
    n_trials, own = len(latest), entries(place)[3]
    variance = np.var([row["sharpe"] for row in latest.values()], ddof=1)
    normal, euler = scipy.stats.norm, np.euler_gamma
    quantiles = (1 - euler) * normal.ppf(1 - 1 / n_trials) + euler * normal.ppf(1 - 1 / (n_trials * math.e))
    benchmark = math.sqrt(variance) * quantiles
    sharpe, skew, kurtosis = own["sharpe"], own["skew"], own["kurtosis"]
    spread = math.sqrt(1 - skew * sharpe + (kurtosis - 1) / 4 * sharpe**2)
    deflated = normal.cdf((sharpe - benchmark) * math.sqrt(own["n_obs"] - 1) / spread)
    found = metrics(place / "other_lr")["significance"]
    assert found["trial_variance"] == pytest.approx(variance, rel=1e-9)
    assert found["deflated_sharpe_ratio"] == pytest.approx(deflated, rel=1e-9)
    assert found["deflated_sharpe_ratio"] < found["probabilistic_sharpe_ratio"]


def test_the_table_says_what_metrics_json_says(place):
    done = qfml("run", "config.yaml", "--out", "printed", "--quiet", cwd=place)
    found = metrics(place / "printed")
    assert done.err == ""
    for name, strategy in found["strategies"].items():
        [line] = [line for line in done.out.splitlines() if line.startswith(f"│ {name.replace('_', ' ')} ")]
        assert f"{strategy['metrics']['sharpe_ratio']:.2f}" in line
        assert f"{strategy['metrics']['max_drawdown']:.1%}" in line
    assert done.out.splitlines()[-1] == "report: printed/report.html"


def test_without_out_the_folder_is_named_after_the_run_under_runs(tmp_path):
    place = workplace(tmp_path)
    done = qfml("run", "config.yaml", cwd=place, before=command_line.NO_SHEET)
    assert done.code == 0, done.err
    [folder] = (place / "runs").iterdir()
    assert folder.name.startswith("small-")
    assert f"report: runs/{folder.name}/report.html" in done.out
    assert (folder / "report.html").is_file()


def test_report_is_rebuilt_from_the_folder_alone(place):
    report = place / "again" / "report.html"
    before = report.read_text()
    report.unlink()
    done = qfml("report", "again", cwd=place)
    assert (done.code, done.err) == (0, "")
    assert report.read_text() == before
    assert "report: again/report.html" in done.out


def test_report_of_an_unfinished_run_says_how_to_finish_it(place, tmp_path):
    (tmp_path / "config.yaml").write_text((place / "first" / "config.yaml").read_text())
    done = qfml("report", tmp_path, cwd=place)
    assert done.code == 2
    assert f"qfml resume {tmp_path}" in done.err
    assert "Traceback" not in done.err
