"""From a frame of prices to a `TimeDataset`: features, label, look-back, label end and the periods' returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch

from qfml.data.barriers import MetaLabel
from qfml.data.dataset import TimeDataset, replaced, select_samples
from qfml.data.feature_base import Feature, by_group, check_finite, check_source, number
from qfml.data.features import CrossSectionalRank, RollingZScore, add_features, lookback_rows
from qfml.data.overlap import Bars
from qfml.data.weights import Weights
from qfml.errors import DataError


def build_dataset(
    frame: Any,
    *,
    features: Sequence[Any],
    label: Any,
    time: str,
    group: str | None,
    price: str,
    window: int | None,
    weight: Any,
) -> TimeDataset:
    """What `TimeDataset.from_frame` does; its arguments are described there."""
    keys = (time,) if group is None else (group, time)
    rows, names = feature_frame(frame, features, time=time, group=group)
    rows = label.add_to(rows, time=time, group=group)
    steps = [step for step in features if isinstance(step, Feature)]
    lookback = lookback_rows(steps)
    full = by_group(rows, group, {"full": pl.int_range(pl.len()) >= lookback})["full"]
    warm = rows.filter(full)
    if warm.height == 0:
        raise DataError(
            f"the features look {lookback} rows back, but no group has that many: {rows.height} rows in all"
        )
    _refuse_gaps(warm, names, keys)
    _refuse_constant(warm, names)
    known = warm["label"].is_not_null().to_numpy()
    if not known.any():
        raise DataError("no row has a label: the label's horizon is longer than what the history holds")
    ds = TimeDataset(
        warm.select(names).to_numpy(),
        warm["label"].fill_null(0).to_numpy(),
        time=warm[time].to_numpy(),
        label_end=warm["label_end"].fill_null(warm[time]).to_numpy(),
        window_start=_window_start(rows, steps, time, group).filter(full).to_numpy(),
        group=None if group is None else warm[group].to_numpy(),
        returns=_next_return(rows, price, time, group).filter(full).to_numpy(),
        feature_names=names,
        window=window,
    )
    ends = ds.ends.numpy()  # a window cut from row r ends at row r
    hole = _inside(warm, group)[ends]
    ds = select_samples(ds, ~hole, "no label in mid-history")
    ds = select_samples(ds, known[ends[~hole]], "label not known")
    if hole.any() or isinstance(label, MetaLabel):
        # a backtest would take the rows on both sides of a hole for neighbours, and a good bet for a rise
        ds = replaced(ds, returns=None)
    dropped = {"look-back not yet full": rows.height - warm.height} | ds.dropped
    ds.dropped.clear()
    ds.dropped.update({reason: count for reason, count in dropped.items() if count})
    if weight is None:
        return ds
    return with_weight(ds, weight, Bars.from_frame(rows, time=time, group=group, price=price))


def feature_frame(
    frame: Any, features: Sequence[Any], *, time: str, group: str | None
) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """The frame sorted by (group, time) with the feature columns appended, and their names.

    Args:
        frame: polars or pandas frame; a pandas index named `time` becomes a column.
        features: steps of `qfml.data.FEATURES`, or names of columns that are known at the row's time.
        time: name of the time column.
        group: name of the asset column.

    Raises:
        DataError: a column that is not there, two features of one name, or a value that is NaN or infinite.
    """
    rows = _polars(frame)
    for name in (time,) if group is None else (group, time):
        if name not in rows.columns:
            raise DataError(f"the frame has no column `{name}`; it has: {', '.join(rows.columns)}")
    if not features:
        raise DataError("`features` is empty: name at least one")
    for step in features:
        if not isinstance(step, (str, Feature)):
            raise DataError(
                f"`features` must hold column names, or steps of FEATURES such as Returns((1, 5)), got {step!r}"
            )
    rows = rows.sort([time] if group is None else [group, time], maintain_order=True)
    steps = [step for step in features if not isinstance(step, str)]
    plain = tuple(step for step in features if isinstance(step, str))
    check_source(rows, plain, time=time, group=group, needed_by="`features`")
    for name in plain:
        check_finite(rows[time], number_of(rows, name), f"feature `{name}`", (name,))
    rows = add_features(rows, steps, time=time, group=group)
    names = tuple(name for step in features for name in ((step,) if isinstance(step, str) else step.names))
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise DataError(f"two features make the same column: {', '.join(twice)}")
    return rows, names


def with_weight(ds: TimeDataset, weight: Weights, bars: Bars) -> TimeDataset:
    """The data set with the sample weights that a step of `qfml.data.WEIGHTS` gives to its labels.

    Args:
        ds: the samples.
        weight: the step.
        bars: all price bars; labels of the last samples reach past the last sample.
    """
    names = None if ds.group is None else np.array(ds.group_names)[ds.group]
    values = weight.weights(ds.time, ds.label_end, ds.returns, group=names, bars=bars)
    return replaced(ds, weight=torch.from_numpy(values).float())


def _inside(rows: pl.DataFrame, group: str | None) -> np.ndarray:
    """True on a row without a label that stands between two rows of its group that have one."""
    known = pl.col("label").is_not_null()
    before, after = known.cum_sum() > 0, known.cum_sum(reverse=True) > 0
    return by_group(rows, group, {"hole": ~known & before & after})["hole"].to_numpy()


def number_of(rows: pl.DataFrame, name: str) -> pl.Series:
    """A column as Float64."""
    return rows.select(number(name))[name]


def _polars(frame: Any) -> pl.DataFrame:
    if isinstance(frame, pl.LazyFrame):
        return frame.collect()
    if isinstance(frame, pl.DataFrame):
        return frame
    if not hasattr(frame, "reset_index"):
        raise DataError(f"`frame` must be a polars or pandas frame, got {type(frame).__name__}")
    named = frame.index.names != [None]
    return pl.from_pandas(frame.reset_index() if named else frame)


def _window_start(rows: pl.DataFrame, steps: Sequence[Feature], time: str, group: str | None) -> pl.Series:
    """The earliest time that any of the features reads, in the dtype of the time column; null before it is full."""
    moments = rows.with_columns(pl.col(time).to_physical())
    read = [moments[time], *(_earliest(moments, step, time, group) for step in steps)]
    columns = pl.DataFrame([each.alias(str(i)) for i, each in enumerate(read)])
    return columns.select(pl.min_horizontal(pl.all())).to_series().cast(rows.schema[time])


def _earliest(rows: pl.DataFrame, step: Feature, time: str, group: str | None) -> pl.Series:
    """The earliest time, as a number, that a feature's value reads."""
    if not isinstance(step, (CrossSectionalRank, RollingZScore)):
        return by_group(rows, group, {"earliest": pl.col(time).shift(step.lookback)})["earliest"]
    keys = [time] if group is None else [group, time]
    inner = rows.select(*keys, _earliest(rows, step.of, time, group).alias("earliest"))
    earliest = pl.col("earliest")
    if isinstance(step, CrossSectionalRank):  # reads every asset known at that time; some have rows further apart
        return by_group(inner, time, {"earliest": earliest.min()})["earliest"]
    return by_group(inner, group, {"earliest": earliest.rolling_min(step.window)})["earliest"]


def _next_return(rows: pl.DataFrame, price: str, time: str, group: str | None) -> pl.Series:
    check_source(rows, (price,), time=time, group=group, needed_by="`price`")
    ratio = number(price).shift(-1) / number(price) - 1
    return by_group(rows, group, {"next_return": ratio})["next_return"]


def _refuse_gaps(rows: pl.DataFrame, names: Sequence[str], keys: tuple[str, ...]) -> None:
    """A null after the look-back is full is a hole in the source: which policy fills it is the user's choice."""
    for name in names:
        holes = rows.filter(pl.col(name).is_null())
        if holes.height:
            first = [" ".join(str(row[key]) for key in keys) for row in holes.head(5).iter_rows(named=True)]
            raise DataError(
                f"feature `{name}` is unknown on {holes.height} of {rows.height} rows, first: {', '.join(first)}; "
                "choose how missing values are treated (error, drop, forward_fill) before building features. "
                "(Unknown at the very end: does it look ahead? At the very start: is its `lookback` stated too small?)"
            )


def _refuse_constant(rows: pl.DataFrame, names: Sequence[str]) -> None:
    for name in names:
        if rows[name].n_unique() == 1:
            raise DataError(f"feature `{name}` is constant ({rows[name][0]}) over all {rows.height} rows: leave it out")
