"""quantstats cannot misread what it is given, reaches for nothing, and its failures are notes."""

import json
import re
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from qfml.report import write_report
from qfml.report.folder import read_run_folder
from qfml.report.tearsheet import Tearsheet, quantstats_returns, write_tearsheet


def with_pnl(run_dir: Path, times: Any, net: Any, periods_per_year: float = 252.0) -> Path:
    """Replace the P&L by that of the network alone."""
    zero = np.zeros(len(net))
    table = pl.DataFrame({"time": times, "strategy": "network", "gross": net, "cost": zero, "net": net})
    table.with_columns(turnover=pl.lit(0.0), exposure=pl.lit(0.0)).write_parquet(run_dir / "pnl.parquet")
    path = run_dir / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["conventions"]["periods_per_year"] = periods_per_year
    path.write_text(json.dumps(metrics))
    return run_dir


def returns_of(run_dir: Path) -> tuple[pd.Series, int, list[str]]:
    notes: list[str] = []
    series, periods = quantstats_returns(read_run_folder(run_dir), "network", notes)
    return series, periods, notes


def days(n: int) -> np.ndarray:
    return np.datetime64("2010-01-04", "ns") + np.arange(n) * np.timedelta64(1, "D")


def test_intraday_returns_are_compounded_to_days_and_the_days_of_a_year_counted(run_dir: Path) -> None:
    rng = np.random.default_rng(0)
    business = pd.bdate_range("2010-01-04", periods=520)
    hours = (business.to_numpy()[:, None] + np.arange(9, 16) * np.timedelta64(1, "h")).ravel()
    net = 0.001 * rng.standard_normal(len(hours))
    series, periods, notes = returns_of(with_pnl(run_dir, hours, net, 7 * 261.0))
    expected = np.prod(1 + net.reshape(-1, 7), axis=1) - 1
    np.testing.assert_allclose(series.to_numpy(), expected, rtol=1e-10)
    assert list(series.index) == list(business)
    assert periods == 261
    assert any("compounded to days" in note for note in notes)


def test_days_are_those_of_the_market_not_of_greenwich(run_dir: Path) -> None:
    # 20:00 in New York is the next day in Greenwich; two rows of one evening belong together
    local = pl.Series(np.repeat(days(30), 2) + np.tile([np.timedelta64(18, "h"), np.timedelta64(20, "h")], 30))
    zoned = local.cast(pl.Datetime("ns")).dt.replace_time_zone("America/New_York")
    series, _, _ = returns_of(with_pnl(run_dir, zoned, np.full(60, 0.001), 700.0))
    np.testing.assert_array_equal(series.index.to_numpy(), days(30))
    np.testing.assert_allclose(series.to_numpy(), 1.001**2 - 1, rtol=1e-10)


def test_monthly_returns_keep_their_periods_and_the_note_says_what_daily_means(run_dir: Path) -> None:
    months = pd.date_range("2010-01-31", periods=60, freq="ME").to_numpy()
    net = 0.02 * np.random.default_rng(0).standard_normal(60)
    series, periods, notes = returns_of(with_pnl(run_dir, months, net, 12.0))
    np.testing.assert_array_equal(series.to_numpy(), net)
    assert periods == 12
    assert any("there are 12 in a year" in note for note in notes)


def test_gains_without_a_loss_cannot_pass_for_prices(run_dir: Path) -> None:
    net = np.zeros(50)
    net[[3, 20]] = [1.5, 0.2]
    series, _, _ = returns_of(with_pnl(run_dir, days(50), net))
    assert series.min() < 0  # what quantstats takes for prices has no value below zero
    np.testing.assert_allclose(series.to_numpy(), net, atol=1e-299)
    outcome = write_tearsheet(read_run_folder(with_pnl(run_dir, days(50), net + 0.1)))
    assert outcome.path is None
    assert "would read returns as prices" in outcome.notes[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("times", "net", "reason"),
    [
        (days(300), np.zeros(300), "every return is zero"),
        (days(5), np.full(5, 0.01), "5 rows are too short a history"),
        (np.arange(300), np.full(300, 0.01), "the times of this run are plain numbers"),
    ],
)
def test_what_has_no_tear_sheet_is_a_note_on_the_page_and_no_old_sheet_stays(
    run_dir: Path, times: np.ndarray, net: np.ndarray, reason: str
) -> None:
    (run_dir / "tearsheet.html").write_text("old")
    page = write_report(with_pnl(run_dir, times, net)).read_text()
    assert "No tear sheet: " in page
    assert reason in page
    assert not (run_dir / "tearsheet.html").exists()
    assert 'href="tearsheet.html"' not in page


def test_failure_inside_quantstats_is_a_note(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("<surprise>")

    import quantstats.reports

    monkeypatch.setattr(quantstats.reports, "html", fail)
    page = write_report(run_dir).read_text()
    assert "quantstats failed with KeyError: &#x27;&lt;surprise&gt;&#x27;" in page


def test_unknown_returns_are_left_out_and_counted(run_dir: Path) -> None:
    net = 0.01 * np.random.default_rng(0).standard_normal(100)
    net[:4] = np.nan
    series, _, notes = returns_of(with_pnl(run_dir, days(100), net))
    assert len(series) == 96
    assert "4 periods without a known return are not in the tear sheet." in notes


def test_sheet_agrees_with_the_run_keeps_flat_starts_and_reaches_for_nothing(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise AssertionError("the tear sheet reached for the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    # a flat first quarter belongs to the record: quantstats' date matching would cut it off
    table = pl.read_parquet(run_dir / "pnl.parquet").sort("strategy", "time")
    flat = (pl.col("strategy") == "network") & (pl.col("time") < pl.lit(np.datetime64("2009-04-01", "ns")))
    table.with_columns(net=pl.when(flat).then(0.0).otherwise("net")).write_parquet(run_dir / "pnl.parquet")

    page = write_report(run_dir).read_text()

    sheet = (run_dir / "tearsheet.html").read_text()
    assert 'href="tearsheet.html"' in page
    pnl = pl.read_parquet(run_dir / "pnl.parquet")
    sharpes = []
    for name in ("buy_and_hold", "network"):
        net = pnl.filter(pl.col("strategy") == name)["net"].to_numpy()
        sharpes.append(f"{net.mean() / net.std(ddof=1) * np.sqrt(252):.2f}")
    row = re.search(r"<td>Sharpe\s*</td><td[^>]*>\s*([^<]*?)\s*</td><td[^>]*>\s*([^<]*?)\s*</td>", sheet)
    assert row
    assert [row[1], row[2]] == sharpes
    assert "9 Jan, 2009 - 31 Dec, 2018" in " ".join(sheet.split())
    assert "Periods/Year: 252" in sheet
    assert not re.search(r"<(link|script|iframe|img)\b|@import|url\(\s*['\"]?http|onload", sheet)
    assert "default-src 'none'" in sheet


def test_run_without_baseline_has_a_sheet_without_benchmark(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import quantstats.reports

    given: dict[str, Any] = {}

    def record(returns: pd.Series, **settings: Any) -> None:
        given.update(settings, returns=returns)
        Path(settings["output"]).write_text("<html><head></head></html>")

    monkeypatch.setattr(quantstats.reports, "html", record)
    net = 0.01 * np.random.default_rng(0).standard_normal(400)
    outcome = write_tearsheet(read_run_folder(with_pnl(run_dir, days(400), net, 365.25)))
    assert isinstance(outcome, Tearsheet)
    assert outcome.path == run_dir / "tearsheet.html"
    assert given["benchmark"] is None
    assert given["periods_per_year"] == 365
    assert given["match_dates"] is False
