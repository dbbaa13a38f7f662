"""The tear sheet that quantstats makes, fed so that it cannot misread its input.

quantstats is imported only here and only when a sheet is made (it imports yfinance). What is kept away from it:

- It takes a series without a loss but with a gain above 100 % for prices. Such a series gets a loss of 1e-300 in
  place of one of its zero returns; if it has none, there is no sheet.
- It calls every row a day and takes the periods per year as a whole number. Intraday rows are compounded to days
  first, and the periods per year are stated.
- It downloads a benchmark that is given by name. The benchmark is a series of returns here, or there is none.
- With `match_dates` it drops the time before the first trade, which belongs to the record. It is off.
- It links an icon on its home page and calls a script that does not exist. Both are taken out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl

from qfml.files import replace_text
from qfml.report.folder import RunFolder

__all__ = ["Tearsheet", "quantstats_returns", "write_tearsheet"]

MIN_PERIODS = 20
FILE_NAME = "tearsheet.html"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclasses.dataclass(frozen=True)
class Tearsheet:
    """The outcome: the file, or None where quantstats could not make one, and what there is to say about it."""

    path: Path | None
    notes: tuple[str, ...]


class _NoSheet(Exception):  # noqa: N818  (a reason, not a failure)
    """Why no sheet is made."""


def write_tearsheet(run: RunFolder) -> Tearsheet:
    """Write `tearsheet.html` for the network, against buy and hold where the run has it.

    Args:
        run: The run folder as read.

    Returns:
        Where the sheet is, or why there is none; an older sheet does not stay behind in that case.
    """
    target = run.path / FILE_NAME
    notes: list[str] = []
    try:
        returns, periods_per_year = quantstats_returns(run, "network", notes)
        benchmark = None
        if not run.strategy("buy_and_hold").is_empty():
            benchmark, _ = quantstats_returns(run, "buy_and_hold", [])
            if not benchmark.index.equals(returns.index):
                notes.append("Buy and hold has other dates than the network; the sheet is without a benchmark.")
                benchmark = None
        page = _sheet(returns, benchmark, periods_per_year, notes)
    except _NoSheet as reason:
        target.unlink(missing_ok=True)
        return Tearsheet(None, (*notes, str(reason)))
    replace_text(target, page)
    return Tearsheet(target, tuple(notes))


def quantstats_returns(run: RunFolder, strategy: str, notes: list[str]) -> tuple[pd.Series, int]:
    """Returns of a strategy in the one form that quantstats reads correctly.

    Args:
        run: The run folder as read.
        strategy: Whose net returns.
        notes: Remarks for the reader are appended.

    Returns:
        Simple returns with at most one row per day, dates without time zone, and the whole periods per year.
    """
    rows = run.strategy(strategy)
    if rows["time"].dtype != pl.Date and not isinstance(rows["time"].dtype, pl.Datetime):
        raise _NoSheet("No tear sheet: it needs dates, and the times of this run are plain numbers.")
    net = rows["net"].cast(pl.Float64).fill_null(np.nan).to_numpy()
    known = np.isfinite(net)
    if not known.all():
        notes.append(f"{int((~known).sum())} periods without a known return are not in the tear sheet.")
    wall = rows["time"].cast(pl.Datetime("ns")) if rows["time"].dtype == pl.Date else rows["time"]
    days = pd.DatetimeIndex(wall.dt.replace_time_zone(None).dt.cast_time_unit("ns").to_numpy()[known]).normalize()
    series = pd.Series(net[known], index=days, dtype=float)
    periods = run.periods_per_year
    if series.index.has_duplicates:
        series = (1.0 + series).groupby(level=0).prod() - 1.0
        span = (series.index[-1] - series.index[0]).days / 365.25
        periods = (len(series) - 1) / span if span else periods
        notes.append("Periods within a day are compounded to days for the tear sheet.")
    if len(series) < MIN_PERIODS:
        raise _NoSheet(f"No tear sheet: {len(series)} rows are too short a history for one (at least {MIN_PERIODS}).")
    if not series.to_numpy().any():
        raise _NoSheet("No tear sheet: every return is zero, so that its ratios do not exist.")
    whole = max(1, round(periods))
    if abs(whole / periods - 1.0) > 1e-3:
        notes.append(f"quantstats annualises with whole periods per year: {whole} instead of {periods:.4g}.")
    if len(series) < whole / 2:
        notes.append("The record is shorter than half a year: rolling charts are empty, annual figures far-fetched.")
    if whole < 200:
        notes.append(f"Where the sheet says daily it means per period: there are {whole} in a year.")
    return _unmistakable(series), whole


def _unmistakable(series: pd.Series) -> pd.Series:
    """Make sure that the returns cannot be taken for prices (no value below zero, one above one)."""
    if series.min() < 0 or series.max() <= 1:
        return series
    zeros = np.flatnonzero(series.to_numpy() == 0.0)
    if not len(zeros):
        raise _NoSheet("No tear sheet: with no loss and a gain above 100 % quantstats would read returns as prices.")
    marked = series.copy()
    marked.iloc[zeros[0]] = -1e-300
    return marked


def _sheet(returns: pd.Series, benchmark: pd.Series | None, periods_per_year: int, notes: list[str]) -> str:
    with tempfile.TemporaryDirectory() as folder, _recorded(notes):
        output = Path(folder) / FILE_NAME
        try:
            reports, theme = _quantstats()
            with theme():
                reports.html(
                    returns,
                    benchmark=benchmark,
                    title="Network, out of sample, after costs",
                    output=str(output),
                    periods_per_year=periods_per_year,
                    match_dates=False,
                    strategy_title="Network",
                    benchmark_title="Buy and hold",
                )
        except Exception as error:  # a drawing library fails in many ways, and none of them may cost the report
            raise _NoSheet(f"No tear sheet: quantstats failed with {type(error).__name__}: {error}") from error
        return _offline(output.read_text(encoding="utf-8"))


def _offline(page: str) -> str:
    """Take out what reaches outside, and forbid the rest by policy."""
    page = re.sub(r"<link\b[^>]*>", "", page)
    page = page.replace('<body onload="save()">', "<body>")
    return page.replace("<head>", f'<head>\n    <meta http-equiv="Content-Security-Policy" content="{POLICY}">', 1)


@functools.cache
def _quantstats() -> tuple[Any, Any]:
    """Import quantstats; return its reports and a context with the matplotlib style that its import sets globally."""
    import matplotlib as mpl

    with mpl.rc_context():
        import quantstats.reports as reports

        theme: Any = {key: value for key, value in mpl.rcParams.copy().items() if key != "backend"}
    return reports, functools.partial(mpl.rc_context, theme)


@contextlib.contextmanager
def _recorded(notes: list[str]) -> Iterator[None]:
    """Turn warnings of quantstats' own calculations into notes; deprecations concern its authors, not the reader."""
    fonts = logging.getLogger("matplotlib.font_manager")
    fonts.addFilter(_other_than_arial)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        fonts.removeFilter(_other_than_arial)
    numerical = [w for w in caught if issubclass(w.category, RuntimeWarning)]
    told = sorted({str(w.message) for w in numerical})
    if told:
        notes.append(f"quantstats warned of its own arithmetic: {'; '.join(told)}.")


def _other_than_arial(record: logging.LogRecord) -> bool:
    # quantstats asks for Arial in every label; where it is not installed the fallback font serves, and that is all
    return "Arial" not in record.getMessage()
