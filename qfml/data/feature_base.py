"""What every feature and label is built on: the `Feature` contract and expressions evaluated group by group."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import polars as pl

from qfml.errors import ConfigError, DataError

__all__ = [
    "Feature",
    "by_group",
    "check_finite",
    "check_order",
    "check_positive",
    "check_rows",
    "check_source",
    "name_of",
    "number",
    "weighted_sum",
]


class Feature(ABC):
    """A step that turns source columns into feature columns, reading a declared number of rows back and none ahead.

    A subclass is a frozen dataclass with a `kind`, the three properties below and `values`; it inherits `add_to`. The
    contract, which one test checks for every entry of `qfml.data.FEATURES`: the value of a row depends on that row and
    on the `lookback` rows of the same group before it, on nothing older, on nothing later and, except at the row's own
    time for cross-sectional features, on no other group. Where the look-back is not yet full the value is null, never a
    value of a partial window. Where a formula is 0/0 the feature's description says what stands there.
    """

    kind: ClassVar[str]

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The columns it makes."""

    @property
    @abstractmethod
    def lookback(self) -> int:
        """How many earlier rows of the same group a value reads; 0 is the row itself only."""

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The source columns it reads, the time and group columns not counted."""

    @abstractmethod
    def values(self, frame: pl.DataFrame, *, time: str, group: str | None) -> pl.DataFrame:
        """The columns `names`, row by row as in `frame`, which is sorted by group and time."""

    def add_to(self, frame: pl.DataFrame, *, time: str, group: str | None) -> pl.DataFrame:
        """Append the columns `names` to `frame`.

        Args:
            frame: one row per (group, time), sorted by group, then time.
            time: name of the time column.
            group: name of the asset column, None for a single series.

        Returns:
            The frame with `names` appended, Float64, null where the look-back is not yet full.

        Raises:
            DataError: A missing or non-numeric source column, rows out of order, a column of that name already there,
                or a value that is NaN or infinite.
        """
        check_source(frame, self.columns, time=time, group=group, needed_by=f"feature `{self.kind}`")
        taken = [name for name in self.names if name in frame.columns]
        if taken:
            raise DataError(
                f"feature `{self.kind}` makes `{taken[0]}`, but the frame already has a column of that name"
            )
        values = self.values(frame, time=time, group=group)
        for name in self.names:
            check_finite(frame[time], values[name], f"feature `{name}`", self.columns)
        return frame.with_columns(values[name].cast(pl.Float64) for name in self.names)


def by_group(frame: pl.DataFrame, group: str | None, expressions: Mapping[str, pl.Expr]) -> pl.DataFrame:
    """Evaluate each expression on the rows of each group alone and put the results back in the order of the frame."""
    return frame.select((e if group is None else e.over(group)).alias(name) for name, e in expressions.items())


def number(column: str) -> pl.Expr:
    """A source column as Float64, with NaN as null: an unknown price is unknown, whichever way it was written."""
    return pl.col(column).cast(pl.Float64).fill_nan(None)


def weighted_sum(values: pl.Expr, weights: Sequence[float]) -> pl.Expr:
    """Rolling sum of `weights[k] * values`, oldest weight first; null where a value of the window is."""
    # polars' weighted sums do not accept nulls, but they do carry NaN through each window and out of it again
    filled = values.fill_null(float("nan"))
    return filled.rolling_sum(len(weights), weights=[float(weight) for weight in weights]).fill_nan(None)


def name_of(name: str, column: str, usual: str) -> str:
    """`name`, with the source column appended if it is not the usual one, so that names stay distinct."""
    return name if column == usual else f"{name}_{column}"


def check_source(frame: pl.DataFrame, columns: Sequence[str], *, time: str, group: str | None, needed_by: str) -> None:
    """Refuse a frame without the columns, or whose rows are not sorted by group and then strictly by time."""
    keys = (time,) if group is None else (group, time)
    for name in (*keys, *columns):
        if name not in frame.columns:
            close = difflib.get_close_matches(name, frame.columns, n=1)
            hint = f" (did you mean `{close[0]}`?)" if close else ""
            raise DataError(f"{needed_by} needs the column `{name}`{hint}; the frame has: {', '.join(frame.columns)}")
    for name in columns:
        if not frame.schema[name].is_numeric():
            raise DataError(f"{needed_by} needs numbers in `{name}`, which has dtype {frame.schema[name]}")
    check_order(frame, time=time, group=group)


def check_order(frame: pl.DataFrame, *, time: str, group: str | None) -> None:
    """Refuse rows that are not one block per group with strictly increasing times in it."""
    if frame[time].null_count():
        raise DataError(f"`{time}` is null on {frame[time].null_count()} of {frame.height} rows")
    later = (pl.col(time) > pl.col(time).shift(1)).fill_null(True)
    ordered = by_group(frame, group, {"ordered": later})["ordered"]
    if not ordered.all():
        row = int((~ordered).arg_true()[0])
        raise DataError(
            f"`{time}` must increase strictly within each group: {(~ordered).sum()} of {frame.height} rows break this, "
            f"first row {row}: {frame[time][row]}; sort by {'time' if group is None else '(group, time)'} and drop "
            "duplicates, or name the asset column as `group`"
        )
    if group is not None and frame[group].rle().len() != frame[group].n_unique():
        raise DataError(f"rows of one `{group}` must stand together: sort the frame by (`{group}`, `{time}`)")


def check_finite(time: pl.Series, values: pl.Series, what: str, columns: Sequence[str]) -> None:
    """Refuse NaN and infinity; null stands for "not known"."""
    bad = ~values.cast(pl.Float64).is_finite().fill_null(True)
    if bad.any():
        row = int(bad.arg_true()[0])
        raise DataError(
            f"{what} is NaN or infinite on {bad.sum()} of {len(bad)} rows, first at {time[row]}; "
            f"look for zero or negative values in {', '.join(f'`{name}`' for name in columns) or 'its source'}"
        )


def check_rows(name: str, value: int, least: int = 1) -> None:
    """Refuse a number of rows below `least`."""
    if value < least:
        raise ConfigError(f"`{name}` must be at least {least} row{'s' * (least != 1)}, got {value}")


def check_positive(name: str, value: float) -> None:
    """Refuse what is not a positive finite number."""
    if not 0 < value < float("inf"):
        raise ConfigError(f"`{name}` must be positive and finite, got {value}")
