"""The page says what the run folder holds: numbers against brute force, every section against its source."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl
import pytest

from qfml.report.charts import axis, thin
from qfml.report.time_charts import growth, underwater

Report = Callable[[Path], Any]
MINUS = "\N{MINUS SIGN}"


def net_of(run_dir: Path, strategy: str, column: str = "net") -> np.ndarray:
    table = pl.read_parquet(run_dir / "pnl.parquet").filter(pl.col("strategy") == strategy).sort("time")
    return table[column].to_numpy()


def test_verdict_stands_as_the_title_and_the_numbers_beside_it(run_dir: Path, report: Report) -> None:
    metrics = json.loads((run_dir / "metrics.json").read_text())
    page = report(run_dir)
    assert f"<h1>{metrics['significance']['verdict']}</h1>" in page.markup
    network, ridge = (metrics["strategies"][name] for name in ("network", "ridge"))
    low, high = network["intervals"]["sharpe_ratio"]
    sharpe = f"{network['metrics']['sharpe_ratio']:.2f} [{low:.2f}, {high:.2f}]".replace("-", MINUS)
    best = f"the best baseline, ridge, {ridge['metrics']['sharpe_ratio']:.2f}."
    assert f"After costs the network earned a Sharpe ratio of {sharpe}; {best}" in page.text
    assert "Deflated Sharpe 0.412 6 trials counted" in page.text


def test_equity_and_drawdown_equal_brute_force(run_dir: Path, report: Report) -> None:
    page = report(run_dir)
    for name, label in (("network", "Network"), ("momentum", "Momentum")):
        capital, peak, equity, depth = 1.0, 1.0, [], []
        for value in net_of(run_dir, name):
            capital *= 1 + value
            peak = max(peak, capital)
            equity.append(capital)
            depth.append(capital / peak - 1)
        np.testing.assert_allclose(page.trace("equity", label)["y"], equity, rtol=1e-6)  # single precision
        np.testing.assert_allclose(page.trace("equity", label, "y2")["y"], depth, atol=1e-6)


def test_chart_times_are_the_times_of_the_rows(run_dir: Path, report: Report) -> None:
    times = pl.read_parquet(run_dir / "pnl.parquet").filter(pl.col("strategy") == "network")["time"].to_numpy()
    drawn = report(run_dir).trace("equity", "Network")["x"]
    np.testing.assert_array_equal(drawn.astype("datetime64[ms]"), np.sort(times).astype("datetime64[ms]"))


def test_capital_lost_does_not_come_back_and_is_said(run_dir: Path, report: Report) -> None:
    np.testing.assert_allclose(growth(np.array([0.5, -1.0, 3.0, -2.0])), [1.5, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(underwater(np.array([0.9, 1.2, 0.6])), [-0.1, 0.0, -0.5])
    table = pl.read_parquet(run_dir / "pnl.parquet").sort("strategy", "time")
    ruin = (pl.col("strategy") == "momentum") & (pl.col("time") == pl.lit(np.datetime64("2012-03-01", "ns")))
    table.with_columns(net=pl.when(ruin).then(-1.5).otherwise("net")).write_parquet(run_dir / "pnl.parquet")
    page = report(run_dir)
    assert "Momentum lost its whole capital on 2012-03-01." in page.text
    assert "log scale" not in page.text  # zero has no logarithm


def test_unknown_returns_are_counted_on_the_page(run_dir: Path, report: Report) -> None:
    table = pl.read_parquet(run_dir / "pnl.parquet").with_row_index()
    first = pl.col("index").rank("ordinal").over("strategy") <= 3
    changed = table.with_columns(net=pl.when((pl.col("strategy") == "ridge") & first).then(None).otherwise("net"))
    changed.drop("index").write_parquet(run_dir / "pnl.parquet")
    assert "Ridge: 3 periods without a known return" in report(run_dir).text


def test_thinned_line_keeps_ends_and_extremes_and_short_lines_are_untouched() -> None:
    values = np.random.default_rng(3).standard_normal(100_000)
    kept = thin(values, 1_000)
    assert len(kept) <= 1_000
    assert kept[0] == 0
    assert kept[-1] == len(values) - 1
    assert {int(values.argmin()), int(values.argmax())} <= set(kept.tolist())
    assert (np.diff(kept) > 0).all()
    np.testing.assert_array_equal(thin(values[:500], 1_000), np.arange(500))


def test_axis_reads_dates_moments_zones_and_plain_numbers() -> None:
    day = axis(["2004-01-02", "2004-01-05"])
    assert day.kind == "date"
    np.testing.assert_array_equal(np.diff(day.values), [3 * 86_400_000])
    moment = pl.Series(["2004-01-02T09:30:00"]).str.to_datetime().dt.replace_time_zone("America/New_York")
    assert axis(moment).values[0] == np.datetime64("2004-01-02T09:30", "ms").astype(int)  # the time on the wall
    numbers = axis(pl.Series([3, 5]))
    assert numbers.kind == "linear"
    np.testing.assert_array_equal(numbers.values, [3.0, 5.0])


def test_fold_diagram_and_table_hold_every_block(run_dir: Path, report: Report) -> None:
    folds = json.loads((run_dir / "metrics.json").read_text())["folds"]
    page = report(run_dir)
    names = {"train": "Train", "validation": "Validation", "purged": "Purged", "embargoed": "Embargoed", "test": "Test"}
    for kind, name in names.items():
        trace = page.trace("folds", name)
        wanted = [block for fold in folds for block in fold["blocks"] if block["kind"] == kind]
        starts = trace["base"].astype("datetime64[ms]")
        np.testing.assert_array_equal(starts, np.array([b["start"] for b in wanted], "datetime64[ms]"))
        ends = (trace["base"] + trace["x"]).astype("datetime64[ms]")
        np.testing.assert_array_equal(ends, np.array([b["end"] for b in wanted], "datetime64[ms]"))
    # fold 3 in the table: its rows by kind, then its Sharpe ratio
    fold = folds[3]
    sizes = " ".join(f"{fold[f'n_{k}']:,}" for k in ("train", "val", "purged", "embargoed", "test"))
    assert f"{sizes} {fold['metrics']['sharpe_ratio']:.2f}".replace("-", MINUS) in page.text


def test_cost_table_equals_annualised_means(run_dir: Path, report: Report) -> None:
    gross, cost, turnover = (net_of(run_dir, "network", c).mean() * 252 for c in ("gross", "cost", "turnover"))
    text = report(run_dir).text
    row = text[text.index("Cost per turnover") :]
    shown = f"{gross:.1%} {cost:.2%} {gross - cost:.1%} {cost / gross:.2%} {turnover:.1f}\N{MULTIPLICATION SIGN} 1 bps"
    assert f"Network {shown}" in row


def test_sixty_four_members_have_a_panel_per_fold_and_a_best_epoch_each(
    make_run: Callable[..., Path], report: Report
) -> None:
    run_dir = make_run(n_folds=16, n_seeds=4)
    markup = report(run_dir).body
    assert markup.count("<svg") == 16
    assert markup.count("<circle") == 64
    assert markup.count("<polyline") == 128  # training and validation
    members = json.loads((run_dir / "metrics.json").read_text())["members"]
    hints = re.findall(r"<title>seed (\d+): best epoch (\d+),", markup)
    assert sorted(hints) == sorted((str(m["seed"]), str(m["best_epoch"])) for m in members)


def test_many_seeds_of_one_fold_have_a_panel_each(make_run: Callable[..., Path], report: Report) -> None:
    assert report(make_run(n_folds=1, n_seeds=12)).body.count("<svg") == 12


def test_diverged_member_is_drawn_without_a_best_epoch_and_named(run_dir: Path, report: Report) -> None:
    path = run_dir / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["members"][0] |= {"status": "nan", "best_epoch": None, "best_val_loss": float("nan")}
    path.write_text(json.dumps(metrics))
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    for line in lines:
        if (line["fold"], line["seed"]) == (0, 0):
            line |= {"train_loss": float("nan"), "val_loss": float("nan")}
    (run_dir / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = report(run_dir)
    assert "1 of 32 members diverged" in page.text
    assert "seed 0 diverged" in page.text
    assert page.body.count("<circle") == 31


def test_panel_shows_net_contribution_of_each_asset(make_run: Callable[..., Path], report: Report) -> None:
    run_dir = make_run(n_groups=5, n_folds=2, n_seeds=1)
    page = report(run_dir)
    held = pl.read_parquet(run_dir / "positions.parquet").filter(pl.col("strategy") == "network")
    bar = page.figures["assets"]["data"][0]
    for name, value in zip(bar["y"], bar["x"]):
        np.testing.assert_allclose(value, held.filter(pl.col("group") == name)["net"].to_numpy().sum(), rtol=1e-12)
    assert sorted(bar["y"]) == ["A00", "A01", "A02", "A03", "A04"]
    gross = page.trace("position", "Gross exposure, each period")["y"]
    np.testing.assert_allclose(gross, net_of(run_dir, "network", "exposure"), rtol=1e-6)


def test_classification_shows_confusion_matrix_and_calibration_of_probabilities(
    make_run: Callable[..., Path], report: Report
) -> None:
    page = report(make_run(task="classification", n_folds=2, n_seeds=1))
    assert "Confusion matrix, Network actual \\ predicted 0 1 0 512 655 1 486 947" in page.text
    assert page.figures["calibration"]["layout"]["xaxis"]["title"]["text"] == "predicted probability"
    assert "Expected calibration error 0.031" not in page.text  # a column, not a sentence
    assert "ROC-AUC" in page.text


def test_empty_calibration_bins_are_left_out(change: Callable, report: Report) -> None:
    bins = [{"predicted": 0.1, "observed": 0.2, "count": 5}, {"predicted": float("nan"), "observed": None, "count": 0}]
    page = report(change(lambda m: m["calibration"].update(bins=bins)))
    assert page.trace("calibration", "Network")["x"] == [0.1]


def test_what_was_dropped_and_what_validation_said_is_listed(run_dir: Path, report: Report) -> None:
    text = report(run_dir).text
    assert "look-back not full 21 0.54%" in text
    assert "label not known yet 5 0.13%" in text
    assert "longest gap 4 days (limit 10)" in text


def test_audit_says_clean_leaking_or_switched_off(change: Callable, report: Report) -> None:
    assert "No feature changed at any of 8 sampled times." in report(change(lambda m: None)).text
    leak = {"feature": "peek", "first_time": "2010-05-06T00:00:00", "n_changed": 12}
    text = report(change(lambda m: m["audit"].update(leaks=[leak]))).text
    assert "1 feature uses the future." in text
    assert "peek 2010-05-06 12" in text
    text = report(change(lambda m: m.update(audit={"ran": False}))).text
    assert "Switched off." in text
    assert "No feature changed" not in text


def test_missing_judgements_are_said_not_invented(change: Callable, report: Report) -> None:
    nothing = dict.fromkeys(("probabilistic_sharpe_ratio", "deflated_sharpe_ratio", "spa_p_value", "pbo"))

    def edit(metrics: dict[str, Any]) -> None:
        metrics["significance"] |= nothing | {"n_trials": 1, "verdict": ""}
        metrics["calibration"]["bins"] = []

    text = report(change(edit)).text
    assert "This run states no verdict." in text
    assert "One configuration was tried on these data" in text
    assert "Probabilistic Sharpe ratio n/a Probability that" in text
    assert "No calibration: the run recorded no bins." in text


def test_config_versions_and_hashes_are_printed(run_dir: Path, report: Report) -> None:
    page = report(run_dir)
    assert " ".join((run_dir / "config.yaml").read_text().split()) in page.text
    for printed in ("5f2a8c0d91be7e34", "c0ffee1234567890", "2.13.0", "kind tanh, scale 1.5", "1 bps of turnover"):
        assert printed in page.text


def test_times_that_are_not_dates_are_drawn_on_a_plain_axis(run_dir: Path, report: Report) -> None:
    for name in ("pnl.parquet", "positions.parquet", "predictions.parquet"):
        table = pl.read_parquet(run_dir / name)
        table.with_columns(pl.col("time").dt.epoch("d")).write_parquet(run_dir / name)
    assert report(run_dir).figures["equity"]["layout"]["xaxis"]["type"] == "linear"


@pytest.mark.parametrize("settings", [{"n_groups": 3}, {"task": "classification"}])
def test_every_figure_is_valid_plotly(make_run: Callable[..., Path], report: Report, settings: dict[str, Any]) -> None:
    figures = report(make_run(n_folds=2, n_seeds=2, **settings)).figures
    assert {"equity", "folds", "calibration", "position", "cost", "activity"} <= set(figures)
    for figure in figures.values():
        go.Figure(data=figure["data"], layout=figure["layout"])  # raises on a property plotly does not know


def test_colours_of_a_strategy_agree_across_charts(run_dir: Path, report: Report) -> None:
    page = report(run_dir)
    for name in ("Network", "Buy and hold", "Ridge", "Momentum"):
        assert page.trace("equity", name)["line"]["color"] == page.trace("activity", name)["line"]["color"]
