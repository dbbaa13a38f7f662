"""Realised volatility from daily or intraday bars: the estimators, and the features built on them."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import ClassVar, Literal, TypeAlias

import polars as pl

from qfml.data.feature_base import Feature, by_group, check_positive, check_rows, number

__all__ = ["HAR", "Estimator", "RealisedVol", "bar_variance"]

Estimator: TypeAlias = Literal["close", "parkinson", "garman_klass"]


def bar_variance(
    estimator: Estimator,
    *,
    open: str = "open",  # noqa: A002  (the name of the price everywhere in the field)
    high: str = "high",
    low: str = "low",
    close: str = "close",
) -> pl.Expr:
    r"""Estimate of the variance of the log price over one bar, per period.

    With $O, H, L, C$ the prices of the bar and $C_{t-1}$ the close before it:
    close-to-close $(\log C_t/C_{t-1})^2$; Parkinson $(\log H/L)^2 / (4 \log 2)$; Garman-Klass
    $\tfrac12 (\log H/L)^2 - (2 \log 2 - 1)(\log C/O)^2$. All three take the drift over a bar as zero, and the last two
    see no move between a close and the next open.

    Args:
        estimator: which of the three.
        open: name of the column of opening prices; `high`, `low` and `close` alike.

    Returns:
        A polars expression, to be evaluated within one group. Close-to-close reads one row back and is null on the
        first.

    References:
        Parkinson (1980), "The extreme value method for estimating the variance of the rate of return", J. Business 53.
        Garman and Klass (1980), "On the estimation of security price volatilities from historical data", J. Business
        53: their practical estimator.

    Example:
        >>> frame = pl.DataFrame({"open": [100.0], "high": [110.0], "low": [100.0], "close": [105.0]})
        >>> round(frame.select(bar_variance("parkinson")).item(), 7)
        0.0032764
    """
    if estimator == "close":
        return number(close).log().diff().pow(2)
    spread = (number(high) / number(low)).log().pow(2)
    if estimator == "parkinson":
        return spread / (4 * log(2))
    return spread / 2 - (2 * log(2) - 1) * (number(close) / number(open)).log().pow(2)


def bar_columns(estimator: Estimator, opening: str, high: str, low: str, close: str) -> tuple[str, ...]:
    """The source columns that `bar_variance` reads."""
    return {"close": (close,), "parkinson": (high, low), "garman_klass": (opening, high, low, close)}[estimator]


@dataclass(frozen=True)
class RealisedVol(Feature):
    r"""Realised volatility over a trailing window, annualised.

    $\sqrt{\frac{P}{n} \sum_{k=0}^{n-1} v_{t-k}}$ with $v$ the variance of a bar (`bar_variance`) and $P$ the periods in
    a year. Close-to-close takes the mean return as zero: over short windows its estimate is mostly noise.

    Args:
        window: number of bars, n.
        periods_per_year: P, such as 252 for daily bars. Not defaulted: 252 on hourly bars would be wrong without a sign
            of it.
        estimator: "close", "parkinson" or "garman_klass".
        open: name of the column of opening prices; `high`, `low` and `close` alike.

    Example:
        >>> frame = pl.DataFrame({"time": [0, 1, 2], "close": [100.0, 101.0, 102.01]})
        >>> vol = RealisedVol(2, periods_per_year=252)
        >>> vol.add_to(frame, time="time", group=None)["realised_vol_2"].round(4).to_list()
        [None, None, 0.158]
    """

    kind: ClassVar[str] = "realised_vol"
    window: int
    periods_per_year: float
    estimator: Estimator = "close"
    open: str = "open"
    high: str = "high"
    low: str = "low"
    close: str = "close"

    def __post_init__(self) -> None:
        check_rows("window", self.window)
        check_positive("periods_per_year", self.periods_per_year)

    @property
    def names(self) -> tuple[str, ...]:
        """`realised_vol_20`, `parkinson_vol_20` or `garman_klass_vol_20`."""
        prefix = "realised" if self.estimator == "close" else self.estimator
        return (f"{prefix}_vol_{self.window}",)

    @property
    def lookback(self) -> int:
        """The rest of the window; one row more where a return needs the close before."""
        return self.window - 1 + (self.estimator == "close")

    @property
    def columns(self) -> tuple[str, ...]:
        """The prices that the estimator reads."""
        return bar_columns(self.estimator, self.open, self.high, self.low, self.close)

    def values(self, frame: pl.DataFrame, *, time: str, group: str | None) -> pl.DataFrame:
        """Root of the annualised rolling mean of the bars' variances."""
        bar = bar_variance(self.estimator, open=self.open, high=self.high, low=self.low, close=self.close)
        return by_group(frame, group, {self.names[0]: _vol(bar.rolling_mean(self.window), self.periods_per_year)})


@dataclass(frozen=True)
class HAR(Feature):
    r"""The three regressors of the heterogeneous autoregressive model of realised volatility.

    With $\sigma_t = \sqrt{P v_t}$ the annualised volatility of one bar: $\sigma_t$, and its averages over the last
    `weekly` and `monthly` bars, the current one included. An average of volatilities, as in Corsi, not the root of an
    average variance. The close-to-close estimate of a single bar is $|r_t|$, whose mean lies below the volatility
    (by $\sqrt{2/\pi}$ for normal returns): prefer a range estimator where high and low are known.

    Args:
        periods_per_year: P. Not defaulted, as in `RealisedVol`.
        weekly: bars of the middle component.
        monthly: bars of the slow component.
        estimator: "close", "parkinson" or "garman_klass".
        open: name of the column of opening prices; `high`, `low` and `close` alike.

    References:
        Corsi (2009), "A simple approximate long-memory model of realized volatility", J. Financial Econometrics 7.

    Example:
        >>> har = HAR(periods_per_year=252, estimator="parkinson")
        >>> har.names, har.lookback
        (('har_daily', 'har_weekly', 'har_monthly'), 21)
    """

    kind: ClassVar[str] = "har"
    periods_per_year: float
    weekly: int = 5
    monthly: int = 22
    estimator: Estimator = "close"
    open: str = "open"
    high: str = "high"
    low: str = "low"
    close: str = "close"

    def __post_init__(self) -> None:
        check_positive("periods_per_year", self.periods_per_year)
        check_rows("weekly", self.weekly, least=2)
        check_rows("monthly", self.monthly, least=self.weekly + 1)

    @property
    def names(self) -> tuple[str, ...]:
        """The three components."""
        return ("har_daily", "har_weekly", "har_monthly")

    @property
    def lookback(self) -> int:
        """The rest of the monthly window; one row more where a return needs the close before."""
        return self.monthly - 1 + (self.estimator == "close")

    @property
    def columns(self) -> tuple[str, ...]:
        """The prices that the estimator reads."""
        return bar_columns(self.estimator, self.open, self.high, self.low, self.close)

    def values(self, frame: pl.DataFrame, *, time: str, group: str | None) -> pl.DataFrame:
        """The bar's volatility and its two rolling means."""
        bar = bar_variance(self.estimator, open=self.open, high=self.high, low=self.low, close=self.close)
        daily = _vol(bar, self.periods_per_year)
        means = (daily, daily.rolling_mean(self.weekly), daily.rolling_mean(self.monthly))
        return by_group(frame, group, dict(zip(self.names, means)))


def _vol(variance: pl.Expr, periods_per_year: float) -> pl.Expr:
    """Annualised root of a variance per period. A negative one (a close outside high and low) becomes NaN: refused."""
    return (variance * periods_per_year).sqrt()
