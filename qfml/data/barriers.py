"""Labels whose end is a moment of the path: the triple barrier and the meta-label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import polars as pl

from qfml.data.feature_base import by_group, check_rows, number
from qfml.data.label_base import Label, Task, trailing_vol
from qfml.errors import ConfigError, DataError

__all__ = ["MetaLabel", "TripleBarrier", "first_touch"]


@dataclass(frozen=True)
class TripleBarrier(Label):
    r"""Which barrier the price touches first: a profit above, a loss below, or the end of the horizon.

    The horizontal barriers lie at returns of $+u \sigma_t$ and $-l \sigma_t$ from the decision, with $\sigma_t$ the
    volatility per period known then (root mean square of the last `vol_window` log returns); prices are looked at once
    a row. `label_end` is the moment of the first touch, so it differs from row to row. A label is known only where the
    whole horizon lies in the data: near the end, keeping the rows that happen to have touched already would favour
    volatile outcomes. Null where the volatility is zero or a price is missing before the touch.

    Args:
        horizon: rows to the vertical barrier. Not defaulted.
        vol_window: returns in the trailing volatility. Not defaulted.
        upper: u, multiple of the volatility per period; None for no upper barrier.
        lower: l, likewise below.
        vertical: what the label is where neither was touched: "sign" of the return up to there, which gives labels 1
            (up) and 0 (down or unchanged) for a classification; or "zero", which gives the labels -1, 0 and 1 for a
            regression.
        price: name of the price column.

    References:
        Lopez de Prado (2018), "Advances in Financial Machine Learning", sections 3.3 to 3.5. (The book's volatility is
        an exponential average; this one has an exact look-back.)

    Example:
        >>> frame = pl.DataFrame({"time": [0, 1, 2, 3], "close": [100.0, 101.0, 101.5, 103.0]})
        >>> label = TripleBarrier(horizon=2, vol_window=1, upper=1.5, lower=1.5)
        >>> label.add_to(frame, time="time", group=None).select("label", "label_end").row(1)
        (1.0, 3)
    """

    kind: ClassVar[str] = "triple_barrier"
    horizon: int
    vol_window: int
    upper: float | None
    lower: float | None
    vertical: Literal["sign", "zero"] = "sign"
    price: str = "close"

    def __post_init__(self) -> None:
        _check_barriers(self.horizon, self.vol_window, upper=self.upper, lower=self.lower)

    @property
    def task(self) -> Task:
        """0 or 1, or with `vertical="zero"` a number."""
        return "classification" if self.vertical == "sign" else "regression"

    @property
    def columns(self) -> tuple[str, ...]:
        """The price."""
        return (self.price,)

    @property
    def rows_ahead(self) -> int:
        """The horizon."""
        return self.horizon

    def values(self, frame: pl.DataFrame, *, time: str, group: str | None) -> pl.DataFrame:
        """The label and the time of the first touch."""
        touch = _touches(
            frame,
            side=np.ones(frame.height),
            upper=self.upper,
            lower=self.lower,
            label=self,
            time=time,
            group=group,
        )
        if self.vertical == "zero":
            return touch.select(pl.col("barrier").cast(pl.Float64).alias("label"), "label_end")
        return touch.select((pl.col("return") > 0).cast(pl.Float64).alias("label"), "label_end")


@dataclass(frozen=True)
class MetaLabel(Label):
    """Whether a bet on the side that another model chose makes money: 1 if it does, 0 if not.

    The side comes from the frame's own column, +1 (long), -1 (short) or 0 (no bet: the label is null). Barriers and
    horizon are those of `TripleBarrier`, seen from that side; the label is 1 if the return times the side is positive
    at the first touch. A model of this label gives the probability that the bet is good, and so its size.

    A data set built with it has no `returns`, because the prediction is the size of a bet and not its direction:
    trade `side` times that size with `qfml.backtest.profit_and_loss`.

    Args:
        horizon: rows to the vertical barrier. Not defaulted.
        vol_window: returns in the trailing volatility. Not defaulted.
        profit_take: multiple of the volatility per period at which the bet is closed with a gain; None for never.
        stop_loss: likewise with a loss.
        side: name of the column of sides, known at the decision.
        price: name of the price column.

    References:
        Lopez de Prado (2018), "Advances in Financial Machine Learning", section 3.6.

    Example:
        >>> columns = {"time": [0, 1, 2, 3], "close": [100.0, 101.0, 101.5, 103.0], "side": [1, 1, -1, 0]}
        >>> label = MetaLabel(horizon=1, vol_window=1, profit_take=2.0, stop_loss=2.0)
        >>> label.add_to(pl.DataFrame(columns), time="time", group=None)["label"].to_list()
        [None, 1.0, 0.0, None]
    """

    kind: ClassVar[str] = "meta_label"
    horizon: int
    vol_window: int
    profit_take: float | None
    stop_loss: float | None
    side: str = "side"
    price: str = "close"

    def __post_init__(self) -> None:
        _check_barriers(self.horizon, self.vol_window, profit_take=self.profit_take, stop_loss=self.stop_loss)

    @property
    def task(self) -> Task:
        """0 or 1."""
        return "classification"

    @property
    def columns(self) -> tuple[str, ...]:
        """The price and the side."""
        return (self.price, self.side)

    @property
    def rows_ahead(self) -> int:
        """The horizon."""
        return self.horizon

    def values(self, frame: pl.DataFrame, *, time: str, group: str | None) -> pl.DataFrame:
        """The label and the time of the first touch."""
        side = frame[self.side].cast(pl.Float64).fill_null(0.0)  # a side that is not known yet is no bet
        wrong = ~side.is_in([-1.0, 0.0, 1.0])
        if wrong.any():
            raise DataError(
                f"`{self.side}` must be -1, 0 or 1: {wrong.sum()} of {frame.height} rows are not, "
                f"first {side.filter(wrong)[0]}"
            )
        touch = _touches(
            frame,
            side=side.to_numpy(),
            upper=self.profit_take,
            lower=self.stop_loss,
            label=self,
            time=time,
            group=group,
        )
        return touch.select((pl.col("return") > 0).cast(pl.Float64).alias("label"), "label_end")


def first_touch(
    price: np.ndarray,
    *,
    side: np.ndarray,
    upper: np.ndarray,
    lower: np.ndarray,
    horizon: int,
    rows_left: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""The first of the next `horizon` rows at which the return from a row, seen from its side, reaches a barrier.

    Vectorised over rows: step k = 1, 2, ... looks at all rows that are still between their barriers.

    Args:
        price: shape (n,), rows of one asset standing together in order of time; nan where not known.
        side: +1, -1 or 0 (nothing to follow), shape (n,).
        upper: returns at or above which the upper barrier is touched, shape (n,); `inf` for none, nan where not known.
        lower: likewise at or below, negative; `-inf` for none.
        horizon: rows to the vertical barrier.
        rows_left: later rows of the same asset, shape (n,).

    Returns:
        Steps to the touch (int64, 0 where not known), the return times the side there (nan where not known), and the
        barrier: 1 upper, -1 lower, 0 vertical or not known.

    Example:
        >>> steps, returns, barrier = first_touch(
        ...     np.array([100.0, 101.0, 103.0, 99.0]), side=np.ones(4), upper=np.full(4, 0.02), lower=np.full(4, -0.03),
        ...     horizon=2, rows_left=np.array([3, 2, 1, 0]))
        >>> steps.tolist(), barrier.tolist()
        ([2, 2, 0, 0], [1, 0, 0, 0])
    """
    steps, barrier = np.zeros(len(price), dtype=np.int64), np.zeros(len(price), dtype=np.int64)
    returns = np.full(len(price), np.nan)
    open_rows = np.flatnonzero((rows_left >= horizon) & (side != 0) & (upper > 0) & (lower < 0))
    for step in range(1, horizon + 1):
        ahead = side[open_rows] * (price[open_rows + step] / price[open_rows] - 1)
        above, below = ahead >= upper[open_rows], ahead <= lower[open_rows]
        done = (above | below | (step == horizon)) & ~np.isnan(ahead)
        rows = open_rows[done]
        steps[rows], returns[rows] = step, ahead[done]
        barrier[rows] = above[done].astype(np.int64) - below[done]
        open_rows = open_rows[~done & ~np.isnan(ahead)]  # past a missing price nobody knows which barrier came first
    return steps, returns, barrier


def _touches(
    frame: pl.DataFrame,
    *,
    side: np.ndarray,
    upper: float | None,
    lower: float | None,
    label: TripleBarrier | MetaLabel,
    time: str,
    group: str | None,
) -> pl.DataFrame:
    """Columns `return` (seen from the side), `barrier` and `label_end` of the first touch; null where not known."""
    rows = by_group(
        frame,
        group,
        {
            "price": number(label.price),
            "vol": trailing_vol(label.price, label.vol_window),
            "rows_left": pl.len() - 1 - pl.int_range(pl.len()),
        },
    )
    vol = rows["vol"].fill_null(float("nan")).to_numpy()
    known = np.where(vol > 0, 1.0, np.nan)  # without a volatility there are no barriers, not even absent ones
    steps, returns, barrier = first_touch(
        rows["price"].fill_null(float("nan")).to_numpy(),
        side=side,
        upper=known * (np.inf if upper is None else upper * vol),
        lower=known * (-np.inf if lower is None else -lower * vol),
        horizon=label.horizon,
        rows_left=rows["rows_left"].cast(pl.Int64).to_numpy(),
    )
    touched = pl.Series("steps", steps) > 0
    ends = frame[time].gather(np.arange(frame.height) + steps).alias("label_end")
    columns = pl.DataFrame([pl.Series("return", returns), pl.Series("barrier", barrier), ends])
    return columns.select(pl.when(touched).then(pl.all()))


def _check_barriers(horizon: int, vol_window: int, **multiples: float | None) -> None:
    check_rows("horizon", horizon)
    check_rows("vol_window", vol_window)
    for name, multiple in multiples.items():
        if multiple is not None and not 0 < multiple < float("inf"):
            raise ConfigError(f"`{name}` must be a positive multiple of the volatility, or null, got {multiple}")
    if all(multiple is None for multiple in multiples.values()):
        raise ConfigError(f"at least one of {' and '.join(f'`{name}`' for name in multiples)} must be given")
