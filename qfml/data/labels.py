"""Labels: what is to be predicted, and the moment at which it is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import polars as pl

from qfml.data.barriers import MetaLabel, TripleBarrier
from qfml.data.feature_base import by_group, check_positive, check_rows, number
from qfml.data.label_base import Label, Task, trailing_vol
from qfml.data.volatility import Estimator, bar_columns, bar_variance

__all__ = [
    "LABELS",
    "ForwardReturn",
    "ForwardSign",
    "Label",
    "MetaLabel",
    "RealisedVolAhead",
    "TripleBarrier",
    "VolScaledReturn",
]


@dataclass(frozen=True)
class ForwardReturn(Label):
    r"""Simple return over the next `horizon` periods: $P_{t+d+h} / P_{t+d} - 1$, decimal, known at $t + d + h$.

    Args:
        horizon: h, rows ahead. Not defaulted.
        delay: d, rows between the decision and the start of the return: with d = 1 it starts at the close after the
            decision, where a position with an execution lag of one period is opened.
        price: name of the price column.

    Example:
        >>> frame = pl.DataFrame({"time": [0, 1, 2], "close": [100.0, 110.0, 99.0]})
        >>> labelled = ForwardReturn(horizon=1).add_to(frame, time="time", group=None)
        >>> labelled["label"].round(12).to_list(), labelled["label_end"].to_list()
        ([0.1, -0.1, None], [1, 2, None])
    """

    kind: ClassVar[str] = "forward_return"
    horizon: int
    delay: int = 0
    price: str = "close"

    def __post_init__(self) -> None:
        _check_window(self.horizon, self.delay)

    @property
    def task(self) -> Task:
        """A number."""
        return "regression"

    @property
    def columns(self) -> tuple[str, ...]:
        """The price."""
        return (self.price,)

    @property
    def rows_ahead(self) -> int:
        """Delay and horizon."""
        return self.delay + self.horizon

    def values(self, frame: pl.DataFrame, *, time: str, group: str | None) -> pl.DataFrame:
        """The return and its last moment."""
        label = forward_return(self.price, self.horizon, self.delay)
        return by_group(frame, group, {"label": label, "label_end": pl.col(time).shift(-self.rows_ahead)})


@dataclass(frozen=True)
class ForwardSign(Label):
    """1 if the price rises over the next `horizon` periods, 0 if it falls or stays.

    Args:
        horizon: rows ahead. Not defaulted.
        delay: rows between the decision and the start of the return, as in `ForwardReturn`.
        price: name of the price column.

    Example:
        >>> frame = pl.DataFrame({"time": [0, 1, 2], "close": [100.0, 110.0, 99.0]})
        >>> ForwardSign(horizon=1).add_to(frame, time="time", group=None)["label"].to_list()
        [1.0, 0.0, None]
    """

    kind: ClassVar[str] = "forward_sign"
    horizon: int
    delay: int = 0
    price: str = "close"

    def __post_init__(self) -> None:
        _check_window(self.horizon, self.delay)

    @property
    def task(self) -> Task:
        """0 or 1."""
        return "classification"

    @property
    def columns(self) -> tuple[str, ...]:
        """The price."""
        return (self.price,)

    @property
    def rows_ahead(self) -> int:
        """Delay and horizon."""
        return self.delay + self.horizon

    def values(self, frame: pl.DataFrame, *, time: str, group: str | None) -> pl.DataFrame:
        """Whether the return is positive, and its last moment."""
        label = (forward_return(self.price, self.horizon, self.delay) > 0).cast(pl.Float64)
        return by_group(frame, group, {"label": label, "label_end": pl.col(time).shift(-self.rows_ahead)})


@dataclass(frozen=True)
class VolScaledReturn(Label):
    r"""Forward return in units of the volatility known at the decision: $r_{t+d,\,t+d+h} / (\sigma_t \sqrt h)$.

    $\sigma_t$ is the root mean square of the last `vol_window` log returns up to $t$, per period; nothing after the
    decision enters it. Null where it is zero.

    Args:
        horizon: h, rows ahead. Not defaulted.
        vol_window: returns in the trailing volatility. Not defaulted.
        delay: d, rows between the decision and the start of the return, as in `ForwardReturn`.
        price: name of the price column.

    Example:
        >>> frame = pl.DataFrame({"time": [0, 1, 2], "close": [100.0, 101.0, 102.01]})
        >>> label = VolScaledReturn(horizon=1, vol_window=1)
        >>> label.add_to(frame, time="time", group=None)["label"].round(4).to_list()
        [None, 1.005, None]
    """

    kind: ClassVar[str] = "vol_scaled_return"
    horizon: int
    vol_window: int
    delay: int = 0
    price: str = "close"

    def __post_init__(self) -> None:
        _check_window(self.horizon, self.delay)
        check_rows("vol_window", self.vol_window)

    @property
    def task(self) -> Task:
        """A number."""
        return "regression"

    @property
    def columns(self) -> tuple[str, ...]:
        """The price."""
        return (self.price,)

    @property
    def rows_ahead(self) -> int:
        """Delay and horizon."""
        return self.delay + self.horizon

    def values(self, frame: pl.DataFrame, *, time: str, group: str | None) -> pl.DataFrame:
        """The scaled return and its last moment."""
        vol = trailing_vol(self.price, self.vol_window) * self.horizon**0.5
        label = pl.when(vol > 0).then(forward_return(self.price, self.horizon, self.delay) / vol)
        return by_group(frame, group, {"label": label, "label_end": pl.col(time).shift(-self.rows_ahead)})


@dataclass(frozen=True)
class RealisedVolAhead(Label):
    r"""Realised volatility of the next `horizon` bars, annualised: $\sqrt{\frac{P}{h} \sum_{k=1}^{h} v_{t+k}}$.

    $v$ is the variance of one bar (`qfml.data.volatility.bar_variance`); the bar of the decision itself is not in it.

    Args:
        horizon: h, bars ahead. Not defaulted.
        periods_per_year: P, such as 252 for daily bars. Not defaulted.
        estimator: "close", "parkinson" or "garman_klass".
        open: name of the column of opening prices; `high`, `low` and `close` alike.

    Example:
        >>> frame = pl.DataFrame({"time": [0, 1, 2], "close": [100.0, 101.0, 102.01]})
        >>> label = RealisedVolAhead(horizon=2, periods_per_year=252)
        >>> label.add_to(frame, time="time", group=None)["label"].round(6).to_list()
        [0.157957, None, None]
    """

    kind: ClassVar[str] = "realised_vol_ahead"
    horizon: int
    periods_per_year: float
    estimator: Estimator = "close"
    open: str = "open"
    high: str = "high"
    low: str = "low"
    close: str = "close"

    def __post_init__(self) -> None:
        check_rows("horizon", self.horizon)
        check_positive("periods_per_year", self.periods_per_year)

    @property
    def task(self) -> Task:
        """A number."""
        return "regression"

    @property
    def columns(self) -> tuple[str, ...]:
        """The prices that the estimator reads."""
        return bar_columns(self.estimator, self.open, self.high, self.low, self.close)

    @property
    def rows_ahead(self) -> int:
        """The horizon."""
        return self.horizon

    def values(self, frame: pl.DataFrame, *, time: str, group: str | None) -> pl.DataFrame:
        """The volatility and the time of its last bar."""
        bar = bar_variance(self.estimator, open=self.open, high=self.high, low=self.low, close=self.close)
        ahead = bar.rolling_mean(self.horizon).shift(-self.horizon)
        label = (ahead * self.periods_per_year).sqrt()
        return by_group(frame, group, {"label": label, "label_end": pl.col(time).shift(-self.horizon)})


#: Every label that a config can name by its `kind`. A class of your own: `LABELS[Mine.kind] = Mine`.
LABELS: dict[str, type[Label]] = {
    cls.kind: cls for cls in (ForwardReturn, ForwardSign, VolScaledReturn, RealisedVolAhead, TripleBarrier, MetaLabel)
}


def forward_return(price: str, horizon: int, delay: int) -> pl.Expr:
    """Simple return from `delay` to `delay + horizon` rows ahead, within one group."""
    return number(price).shift(-delay - horizon) / number(price).shift(-delay) - 1


def _check_window(horizon: int, delay: int) -> None:
    check_rows("horizon", horizon)
    check_rows("delay", delay, least=0)
