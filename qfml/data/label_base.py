"""What every label is built on: the `Label` contract and the volatility known at the decision."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, TypeAlias

import polars as pl

from qfml.data.feature_base import check_finite, check_source
from qfml.data.volatility import bar_variance
from qfml.errors import DataError

__all__ = ["Label", "Task"]

Task: TypeAlias = Literal["regression", "classification"]


class Label(ABC):
    """A step that appends `label` and `label_end`, both null where the future is not known.

    The label of a row is known over the half-open interval `(time, label_end]`. Labels of a classification are 0 or 1.
    A subclass is a frozen dataclass with a `kind`, a `task`, the two properties and `values`; it inherits `add_to`.
    """

    kind: ClassVar[str]

    @property
    @abstractmethod
    def task(self) -> Task:
        """What a network is to do with it."""

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The source columns it reads, the time and group columns not counted."""

    @property
    @abstractmethod
    def rows_ahead(self) -> int:
        """How many later rows of the same group must exist for a row's label to be known."""

    @abstractmethod
    def values(self, frame: pl.DataFrame, *, time: str, group: str | None) -> pl.DataFrame:
        """The columns `label` and `label_end`, row by row as in `frame`, which is sorted by group and time."""

    def add_to(self, frame: pl.DataFrame, *, time: str, group: str | None) -> pl.DataFrame:
        """Append `label` and `label_end` to `frame`.

        Args:
            frame: one row per (group, time), sorted by group, then time.
            time: name of the time column.
            group: name of the asset column, None for a single series.

        Returns:
            The frame with `label` (Float64) and `label_end` (dtype of the time column), null where not known.

        Raises:
            DataError: A missing or non-numeric source column, rows out of order, columns of these names already there,
                a label that is NaN or infinite, or a horizon longer than the history.
        """
        what = f"label `{self.kind}`"
        check_source(frame, self.columns, time=time, group=group, needed_by=what)
        if taken := {"label", "label_end"}.intersection(frame.columns):
            raise DataError(f"{what} makes `{min(taken)}`, but the frame already has a column of that name")
        longest = frame.height if group is None else max(frame[group].rle().struct.field("len"), default=0)
        if longest <= self.rows_ahead:
            raise DataError(
                f"{what} looks {self.rows_ahead} rows ahead, but the longest history has {longest} rows: "
                f"shorten `horizon` or read more data"
            )
        values = self.values(frame, time=time, group=group)
        check_finite(frame[time], values["label"], what, self.columns)
        known = pl.col("label").is_not_null()
        values = values.with_columns(pl.col("label").cast(pl.Float64), pl.when(known).then(pl.col("label_end")))
        if values["label"].null_count() == frame.height:
            raise DataError(f"{what} is unknown on all {frame.height} rows: its trailing or forward window never fills")
        return frame.with_columns(values)


def trailing_vol(price: str, window: int) -> pl.Expr:
    """Root mean square of the last `window` log returns, per period, within one group."""
    return bar_variance("close", close=price).rolling_mean(window).sqrt()
