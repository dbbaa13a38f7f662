"""Features: named steps on price columns, each with an exact look-back, and those that are made of other features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import polars as pl

from qfml.config import OneOf
from qfml.data.feature_base import Feature, by_group, check_rows
from qfml.data.fractional import FractionalDifference
from qfml.data.price_features import RSI, Calendar, LogReturns, Momentum, MovingAverageDistance, Returns, VolumeRatio
from qfml.data.volatility import HAR, RealisedVol
from qfml.errors import DataError

__all__ = [
    "FEATURES",
    "CrossSectionalRank",
    "Feature",
    "RollingZScore",
    "add_features",
    "lookback_rows",
    "source_columns",
]

#: Every feature that a config can name by its `kind`. A class of your own: `FEATURES[Mine.kind] = Mine`.
FEATURES: dict[str, type[Feature]] = {
    cls.kind: cls
    for cls in (
        Returns,
        LogReturns,
        Momentum,
        MovingAverageDistance,
        VolumeRatio,
        RSI,
        FractionalDifference,
        Calendar,
        RealisedVol,
        HAR,
    )
}


@dataclass(frozen=True)
class RollingZScore(Feature):
    r"""Distance of a feature from its rolling mean in rolling standard deviations: $(x_t - \bar x_{t,n}) / s_{t,n}$.

    Mean and deviation (ddof 1) are over the last n values, the current one included, so the score never exceeds
    $(n - 1) / \sqrt n$. 0 where all n values are equal: the value is its own mean.

    Args:
        of: the feature, or its settings.
        window: n, at least 2.

    Example:
        >>> frame = pl.DataFrame({"time": [0, 1, 2, 3], "close": [100.0, 110.0, 110.0, 121.0]})
        >>> score = RollingZScore(Returns((1,)), window=3)
        >>> score.lookback, score.add_to(frame, time="time", group=None)["return_1_zscore_3"].round(4).to_list()
        (3, [None, None, None, 0.5774])
    """

    kind: ClassVar[str] = "rolling_zscore"
    of: Annotated[Feature, OneOf(FEATURES)]
    window: int

    def __post_init__(self) -> None:
        check_rows("window", self.window, least=2)

    @property
    def names(self) -> tuple[str, ...]:
        """`momentum_20_0_zscore_250`."""
        return tuple(f"{name}_zscore_{self.window}" for name in self.of.names)

    @property
    def lookback(self) -> int:
        """The feature's own, and the rest of the window."""
        return self.of.lookback + self.window - 1

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of the feature."""
        return self.of.columns

    def values(self, frame: pl.DataFrame, *, time: str, group: str | None) -> pl.DataFrame:
        """The score of each column of the feature."""
        inner = _inner(self.of, frame, time=time, group=group)
        scores = {name: _zscore(pl.col(of), self.window) for name, of in zip(self.names, self.of.names)}
        return by_group(inner, group, scores)


@dataclass(frozen=True)
class CrossSectionalRank(Feature):
    r"""Rank of a feature among the assets known at the same time, from -1 (lowest) to 1 (highest).

    $2 (r - 1) / (n - 1) - 1$ with $r$ the rank among the n assets that have a value at that time; ties share their mean
    rank. 0, the middle, for an asset that is alone. The look-back counts the rows of each asset.

    Args:
        of: the feature, or its settings.

    Example:
        >>> columns = {"asset": ["a", "a", "b", "b"], "time": [0, 1, 0, 1], "close": [1.0, 2.0, 1.0, 3.0]}
        >>> rank = CrossSectionalRank(Returns((1,)))
        >>> rank.add_to(pl.DataFrame(columns), time="time", group="asset")["return_1_rank"].to_list()
        [None, -1.0, None, 1.0]
    """

    kind: ClassVar[str] = "cross_sectional_rank"
    of: Annotated[Feature, OneOf(FEATURES)]

    @property
    def names(self) -> tuple[str, ...]:
        """`momentum_252_21_rank`."""
        return tuple(f"{name}_rank" for name in self.of.names)

    @property
    def lookback(self) -> int:
        """That of the feature."""
        return self.of.lookback

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of the feature."""
        return self.of.columns

    def values(self, frame: pl.DataFrame, *, time: str, group: str | None) -> pl.DataFrame:
        """The rank of each column of the feature among the rows of the same time."""
        if group is None:
            raise DataError("feature `cross_sectional_rank` needs a panel: name the asset column as `group`")
        inner = _inner(self.of, frame, time=time, group=group)
        return by_group(inner, time, {name: _rank(pl.col(of)) for name, of in zip(self.names, self.of.names)})


FEATURES.update({cls.kind: cls for cls in (RollingZScore, CrossSectionalRank)})


def add_features(frame: pl.DataFrame, features: Sequence[Feature], *, time: str, group: str | None) -> pl.DataFrame:
    """Append the columns of all features to a frame.

    Args:
        frame: one row per (group, time), sorted by group, then time.
        features: steps of `FEATURES`; their column names must be distinct.
        time: name of the time column.
        group: name of the asset column, None for a single series.

    Returns:
        The frame with the features' columns appended in order, Float64, null where a look-back is not yet full.

    Raises:
        DataError: As `Feature.add_to`; also if two features make a column of the same name.

    Example:
        >>> frame = pl.DataFrame({"time": [0, 1, 2], "close": [100.0, 110.0, 121.0]})
        >>> add_features(frame, [Returns((1,)), Momentum(2)], time="time", group=None).columns
        ['time', 'close', 'return_1', 'momentum_2_0']
    """
    for feature in features:
        frame = feature.add_to(frame, time=time, group=group)
    return frame


def lookback_rows(features: Sequence[Feature]) -> int:
    """How many earlier rows of its group the value of a row reads at most.

    Example:
        >>> lookback_rows([Returns((1, 5)), RollingZScore(Momentum(20), window=10)])
        29
    """
    return max((feature.lookback for feature in features), default=0)


def source_columns(features: Sequence[Feature]) -> tuple[str, ...]:
    """The source columns that the features read, each once, in order of first use.

    Example:
        >>> source_columns([Momentum(20), VolumeRatio(20), Returns((1,))])
        ('close', 'volume')
    """
    return tuple(dict.fromkeys(column for feature in features for column in feature.columns))


def _inner(of: Feature, frame: pl.DataFrame, *, time: str, group: str | None) -> pl.DataFrame:
    """Keys and values of a feature, made from its source columns alone, so that no name can collide.

    Made into columns first: a window expression inside another one would be evaluated over the outer one's groups.
    """
    keys = [time] if group is None else [group, time]
    sources = [column for column in of.columns if column not in keys]
    return of.add_to(frame.select(*keys, *sources), time=time, group=group)


def _zscore(values: pl.Expr, window: int) -> pl.Expr:
    # equality is exact, whereas the rolling mean and deviation of equal values may be off by a rounding error
    equal = values.rolling_max(window) == values.rolling_min(window)
    return pl.when(equal).then(0.0).otherwise((values - values.rolling_mean(window)) / values.rolling_std(window))


def _rank(values: pl.Expr) -> pl.Expr:
    others = values.count().cast(pl.Float64) - 1
    alone = pl.when(values.is_not_null()).then(0.0)
    return pl.when(others > 0).then(2 * (values.rank() - 1) / others - 1).otherwise(alone)
