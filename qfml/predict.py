"""Tomorrow's prediction and position from a finished run and fresh prices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from qfml import config
from qfml.backtest.panel import Panel
from qfml.backtest.strategies import rule_input
from qfml.data.build import feature_frame
from qfml.data.sources import CsvSource, FrameSource
from qfml.engine import Fit, load_fits
from qfml.errors import DataError, UserError
from qfml.run import WalkForwardTask, read_metrics, read_task


def predict(folder: str | Path, frame: Any) -> pl.DataFrame:
    """Predict from the last row of each asset, with the networks of the run's last fold.

    Prices are checked and features built by the rules of the run. The position is what the run's rule decides on the
    mean prediction over seeds; volatility, where the rule needs it, is taken from the prices given.

    Args:
        folder: a finished run.
        frame: prices up to the decision, as a polars or pandas frame, or the path of a CSV file: a column `time`, the
            asset column `group` in a panel, and the price columns that the run read. It must reach back as far as the
            features look.

    Returns:
        One row an asset: time, group (panels), prediction and position (fraction of capital). An asset whose last row
        is older than the others' has neither.

    Raises:
        UserError: the run is not finished, or its files were changed.
        DataError: a column is missing, the prices break a rule, or the history is too short.
    """
    folder = Path(folder)
    found = read_metrics(folder)
    task = read_task(config.read_yaml(folder / "config.yaml"))
    fits, extra = load_fits(folder / "model")
    last = max(member["fold"] for member in extra["members"])
    fits = [fit for fit, member in zip(fits, extra["members"]) if member["fold"] == last]

    prices = _prices(task, frame)
    group = task.data.source.group_column
    rows, names = feature_frame(prices, task.data.features, time="time", group=group)
    now = rows["time"].max()
    latest = np.flatnonzero((rows["time"] == now).to_numpy())
    prediction = np.full(len(rows), np.nan)
    prediction[latest] = _predicted(fits, rows, names, latest, group, task.data.window)

    panel = Panel.from_rows(rows["time"].to_numpy(), None if group is None else _codes(rows[group]))
    price = panel.matrix(rows[task.data.price].to_numpy().astype(float))
    returns = np.full(price.shape, np.nan)
    returns[:-1] = price[1:] / price[:-1] - 1
    rule, conventions = task.backtest.positions, found["conventions"]
    score = panel.matrix(rule_input(rule, prediction, conventions["prediction_means"]))
    decided = rule.decide(score, returns, periods_per_year=conventions["periods_per_year"])

    assets = rows if group is None else rows.unique(group, keep="last", maintain_order=True)
    ends = (
        [rows.height - 1]
        if group is None
        else (rows.with_row_index().group_by(group, maintain_order=True).last())["index"]
    )
    known = np.isin(np.asarray(ends), latest)
    values = {
        "prediction": np.where(known, prediction[np.asarray(ends)], np.nan),
        "position": np.where(known, panel.rows(decided)[np.asarray(ends)], np.nan),
    }
    keys = ["time"] if group is None else ["time", group]
    table = assets[-1:] if group is None else assets
    return table.select(keys).with_columns(pl.Series(name, column).fill_nan(None) for name, column in values.items())


def _prices(task: WalkForwardTask, frame: Any) -> pl.DataFrame:
    """Fresh prices by the run's names and rules; only the columns that the features read are asked for."""
    group = task.data.source.group_column
    wanted = [name for name in task.data.columns if name not in _label_only(task)]
    if isinstance(frame, (str, Path)):
        source = CsvSource(path=str(frame), group=group)
    else:
        source = FrameSource(frame, group=group)
    prices = source.read(wanted)
    return task.data.check(prices)[0]


def _label_only(task: WalkForwardTask) -> set[str]:
    """Columns that only the label reads: a prediction needs no label."""
    from qfml.data.features import source_columns

    return set(task.data.label.columns) - {task.data.price, *source_columns(task.data.features)}


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


def read_new(path: str | Path) -> Path:
    """The path of a CSV file, checked to be there."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no file {path}")
    return path
