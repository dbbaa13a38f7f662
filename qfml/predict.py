"""Tomorrow's prediction and position from a finished run and fresh prices."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from qfml import config
from qfml.backtest.panel import Panel
from qfml.backtest.strategies import rule_input
from qfml.data.build import feature_frame
from qfml.data.feature_base import by_group, number
from qfml.data.features import source_columns
from qfml.data.sources import CsvSource, FrameSource
from qfml.engine import Fit, load_fits
from qfml.errors import DataError
from qfml.finished import check_sections, read_metrics
from qfml.task import WalkForwardTask, read_walk_forward


def predict(folder: str | Path, frame: Any) -> pl.DataFrame:
    """Predict from the last row of each asset, with the networks of the run's last fold.

    Prices are checked and features built by the rules of the run. The position is what the run's rule decides on the
    mean prediction over seeds; volatility, where the rule needs it, is taken from the prices given.

    Args:
        folder: a finished run.
        frame: prices up to the decision, as a polars or pandas frame, or the path of a CSV file, with the columns
            that the run read, called as in the run's own source (by default `time`, `group` for the asset in a panel,
            and the prices). It must reach back as far as the features look.

    Returns:
        One row an asset: time, group (panels), prediction and position (fraction of capital). An asset whose last row
        is older than the others' has neither.

    Raises:
        UserError: the run is not finished, or its files were changed.
        DataError: a column is missing, the prices break a rule, or the history is too short.
    """
    folder = Path(folder)
    found = read_metrics(folder)
    task = read_walk_forward(config.read_yaml(folder / "config.yaml"), "a prediction from prices")
    check_sections(folder / "metrics.json", found, {"conventions": ("prediction_means", "periods_per_year")})
    conventions = found["conventions"]
    fits = _last_fits(folder)
    group = task.data.source.group_column
    rows, names = feature_frame(_prices(task, frame), task.data.features, time="time", group=group)
    is_latest = (rows["time"] == rows["time"].max()).to_numpy()
    prediction = np.full(len(rows), np.nan)
    prediction[is_latest] = _predicted(fits, rows, names, np.flatnonzero(is_latest), group, task.data.window)
    position = np.where(is_latest, _positions(task, conventions, rows, group, prediction), np.nan)
    keys = ["time"] if group is None else ["time", group]
    table = rows.select(*keys, prediction=pl.Series(prediction), position=pl.Series(position)).fill_nan(None)
    return table.tail(1) if group is None else table.unique(group, keep="last", maintain_order=True)


def _last_fits(folder: Path) -> list[Fit]:
    """The networks of the last fold, one a seed."""
    fits, extra = load_fits(folder / "model")
    last = max(member["fold"] for member in extra["members"])
    return [fit for fit, member in zip(fits, extra["members"]) if member["fold"] == last]


def _prices(task: WalkForwardTask, frame: Any) -> pl.DataFrame:
    """Fresh prices by the run's names and rules; only the columns that the features read are asked for."""
    source = task.data.source
    wanted = [name for name in task.data.columns if name not in _label_only(task)]
    called = {
        name: getattr(source, name) for name in ("time", "group", "rename", "time_format") if hasattr(source, name)
    }
    called = called or {"group": source.group_column}  # the samples have no columns of their own
    if not isinstance(frame, (str, Path)):
        fresh = FrameSource(frame, **called)
    elif isinstance(source, CsvSource):
        fresh = dataclasses.replace(source, path=str(frame))
    else:
        fresh = CsvSource(path=str(frame), **called)
    return task.data.check(fresh.read(wanted))[0]


def _label_only(task: WalkForwardTask) -> set[str]:
    """Columns that only the label reads: a prediction needs no label."""
    return set(task.data.label.columns) - {task.data.price, *source_columns(task.data.features)}


def _positions(
    task: WalkForwardTask, conventions: dict[str, Any], rows: pl.DataFrame, group: str | None, prediction: np.ndarray
) -> np.ndarray:
    """What the run's rule decides on each row."""
    codes = None if group is None else _codes(rows[group])
    names = () if group is None else tuple(rows[group].unique().sort())
    panel = Panel.from_rows(rows["time"].to_numpy(), codes, names)
    price = number(task.data.price)
    # to the asset's own next row, as in the run: a day without a row breaks no series
    returns = by_group(rows, group, {"returns": price.shift(-1) / price - 1})["returns"].to_numpy()
    rule = task.backtest.positions
    score = panel.matrix(rule_input(rule, prediction, conventions["prediction_means"]))
    decided = rule.decide(score, panel.matrix(returns), periods_per_year=conventions["periods_per_year"])
    return panel.rows(decided)


def _predicted(
    fits: list[Fit],
    rows: pl.DataFrame,
    names: tuple[str, ...],
    latest: np.ndarray,
    group: str | None,
    window: int | None,
) -> np.ndarray:
    """Mean prediction over the fits at the rows `latest`."""
    length = window or 1
    features = rows.select(names)
    codes = np.zeros(len(rows), dtype=np.int64) if group is None else _codes(rows[group])
    for end in latest:
        begin = end + 1 - length
        part = features[max(begin, 0) : end + 1]
        if begin < 0 or codes[begin] != codes[end] or any(part.null_count().row(0)):
            unknown = [name for name, n in zip(names, part.null_count().row(0)) if n]
            why = f"{', '.join(unknown)} not known" if unknown else f"fewer than {length} rows"
            where = "" if group is None else f" of {rows[group][int(end)]}"
            raise DataError(f"the history{where} is too short at {rows['time'][int(end)]}: {why}; give more rows")
    matrix = torch.from_numpy(features.fill_null(0).to_numpy().astype(np.float32))
    ends = torch.from_numpy(latest)
    return np.mean([fit.predict_windows(matrix, ends, window) for fit in fits], axis=0)


def _codes(group: pl.Series) -> np.ndarray:
    return np.unique(group.cast(pl.String).to_numpy(), return_inverse=True)[1].astype(np.int64)
