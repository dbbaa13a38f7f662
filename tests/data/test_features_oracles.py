"""Feature values against published numbers, loops, pandas, numpy and scipy."""

from datetime import date, datetime, timedelta

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.special
from references import WILDER_RSI_14

from qfml.data.features import FEATURES, CrossSectionalRank, RollingZScore
from qfml.data.fractional import FractionalDifference, fractional_weights, fractional_window
from qfml.data.price_features import (
    RSI,
    Calendar,
    LogReturns,
    Momentum,
    MovingAverageDistance,
    Returns,
    VolumeRatio,
)
from qfml.data.volatility import HAR, RealisedVol, bar_variance
from qfml.errors import DataError


@pytest.fixture(scope="module")
def bars() -> pd.DataFrame:
    rng = np.random.default_rng(11)
    close = 50 * np.exp(rng.normal(0, 0.02, 300).cumsum())
    opening = close * np.exp(rng.normal(0, 0.01, 300))
    high = np.maximum(opening, close) * np.exp(rng.uniform(0, 0.02, 300))
    low = np.minimum(opening, close) * np.exp(-rng.uniform(0, 0.02, 300))
    volume = rng.integers(1, 10**6, 300).astype(float)
    days = pd.date_range("2015-01-01", periods=300)
    return pd.DataFrame({"time": days, "open": opening, "high": high, "low": low, "close": close, "volume": volume})


def column(feature, bars: pd.DataFrame, name: str | None = None) -> np.ndarray:
    made = feature.add_to(pl.from_pandas(bars), time="time", group=None)
    return made[name or feature.names[0]].to_numpy()


def same(ours: np.ndarray, theirs) -> None:
    assert np.isfinite(ours).sum() > 100
    np.testing.assert_allclose(ours, np.asarray(theirs, dtype=float), rtol=1e-9, atol=1e-12)  # rounding of rolling sums


def test_returns_pandas(bars: pd.DataFrame) -> None:
    close = bars["close"]
    same(column(Returns((1, 5)), bars, "return_1"), close.pct_change())
    same(column(Returns((1, 5)), bars, "return_5"), close.pct_change(5))
    same(column(LogReturns((3,)), bars), np.log(close).diff(3))
    same(column(Momentum(20, skip=4), bars), close.shift(4) / close.shift(20) - 1)
    same(column(Momentum(20), bars), close.pct_change(20))
    same(column(MovingAverageDistance(10), bars), close / close.rolling(10).mean() - 1)
    same(column(VolumeRatio(10), bars), bars["volume"] / bars["volume"].rolling(10).mean())


def test_realised_vol_loop_over_published_formulas(bars: pd.DataFrame) -> None:
    n, expected = 7, {"close": [], "parkinson": [], "garman_klass": []}
    o, h, lo, c = (bars[name].to_numpy() for name in ("open", "high", "low", "close"))
    for t in range(len(bars)):
        window = range(t - n + 1, t + 1)
        full = window[0] >= 0
        gk = [0.5 * np.log(h[i] / lo[i]) ** 2 - (2 * np.log(2) - 1) * np.log(c[i] / o[i]) ** 2 for i in window if full]
        pk = [np.log(h[i] / lo[i]) ** 2 for i in window if full]
        cc = [np.log(c[i] / c[i - 1]) ** 2 for i in window if window[0] >= 1]
        expected["close"].append(np.sqrt(252 * sum(cc) / n) if cc else np.nan)
        expected["parkinson"].append(np.sqrt(252 * sum(pk) / (4 * n * np.log(2))) if full else np.nan)
        expected["garman_klass"].append(np.sqrt(252 * sum(gk) / n) if full else np.nan)
    for estimator in ("close", "parkinson", "garman_klass"):
        feature = RealisedVol(n, periods_per_year=252, estimator=estimator)
        same(column(feature, bars), expected[estimator])


def test_variance_estimators_recover_the_volatility_of_a_random_walk() -> None:
    # 2,000 days of 2,000 steps, 20 % a year: statistical error of the widest estimator 1.6 %, the range of a discretely
    # watched walk is too narrow by about 1.2 sigma / sqrt(steps), 2.6 % of the range
    rng = np.random.default_rng(3)
    paths = (0.2 / np.sqrt(252 * 2000) * rng.standard_normal((2000, 2000))).cumsum(axis=1)
    last = paths[:, -1].cumsum()
    start = np.concatenate(([0.0], last[:-1]))
    prices = {
        "open": start,
        "high": start + paths.max(1).clip(0),
        "low": start + paths.min(1).clip(max=0),
        "close": last,
    }
    frame = pl.DataFrame({name: np.exp(value) for name, value in prices.items()})
    for estimator, tolerance in (("close", 0.05), ("parkinson", 0.05), ("garman_klass", 0.06)):
        vol = np.sqrt(252 * float(frame.select(bar_variance(estimator).mean()).item()))
        assert vol == pytest.approx(0.2, rel=tolerance)


def test_close_outside_high_and_low_is_refused_not_clamped() -> None:
    wrong = pl.DataFrame({"time": [0], "open": [100.0], "high": [101.0], "low": [100.0], "close": [150.0]})
    with pytest.raises(DataError, match="NaN or infinite on 1 of 1 rows"):
        RealisedVol(1, periods_per_year=252, estimator="garman_klass").add_to(wrong, time="time", group=None)


def test_har_averages_volatilities_pandas(bars: pd.DataFrame) -> None:
    daily = np.sqrt(252 * np.log(bars["high"] / bars["low"]) ** 2 / (4 * np.log(2)))
    har = HAR(periods_per_year=252, estimator="parkinson")
    same(column(har, bars, "har_daily"), daily)
    same(column(har, bars, "har_weekly"), daily.rolling(5).mean())
    same(column(har, bars, "har_monthly"), daily.rolling(22).mean())
    close = HAR(periods_per_year=252, weekly=3, monthly=10)
    same(column(close, bars, "har_monthly"), (np.sqrt(252) * np.log(bars["close"]).diff().abs()).rolling(10).mean())


def test_rolling_zscore_pandas(bars: pd.DataFrame) -> None:
    for inner, values in (
        (LogReturns((1,)), np.log(bars["close"]).diff()),
        (VolumeRatio(5), bars["volume"] / bars["volume"].rolling(5).mean()),
    ):
        rolling = values.rolling(30)
        same(column(RollingZScore(inner, window=30), bars), (values - rolling.mean()) / rolling.std())


def test_rolling_zscore_of_a_constant_is_zero_and_survives_a_bad_tick() -> None:
    close = np.full(400, 100.0)
    close[100] = 1e12  # the trace it leaves in an updated sum must not be divided by a deviation of nothing
    frame = pd.DataFrame({"time": range(400), "close": close})
    score = column(RollingZScore(Returns((1,)), window=20), frame)
    assert (score[130:] == 0).all()
    assert score[100] == pytest.approx(19 / np.sqrt(20))  # the largest that 20 values allow


def test_rsi_published_values() -> None:
    close = WILDER_RSI_14["close"]
    frame = pd.DataFrame({"time": range(len(close)), "close": close})
    for row, published in enumerate(WILDER_RSI_14["rsi"], start=14):
        # the spreadsheet's recursion starts at the first close, so its memory grows by one with each row
        value = column(RSI(14, memory=row), frame, None)[row]
        assert value == pytest.approx(published, abs=0.005 + 1e-9)  # printed to two decimals


def test_rsi_wilder_recursion_loop(bars: pd.DataFrame) -> None:
    n, memory, change = 5, 23, np.diff(bars["close"].to_numpy())
    expected = np.full(len(bars), np.nan)
    for t in range(memory, len(bars)):
        window = change[t - memory : t]
        gain, loss = np.clip(window[:n], 0, None).mean(), np.clip(-window[:n], 0, None).mean()
        for x in window[n:]:
            gain, loss = ((n - 1) * gain + max(x, 0)) / n, ((n - 1) * loss + max(-x, 0)) / n
        expected[t] = 100 - 100 / (1 + gain / loss)
    same(column(RSI(n, memory=memory), bars), expected)


def test_rsi_with_usual_memory_is_near_wilders_infinite_one(bars: pd.DataFrame) -> None:
    change = bars["close"].diff()
    smooth = {sign: (sign * change).clip(lower=0)[1:].ewm(alpha=1 / 14, adjust=False).mean() for sign in (1, -1)}
    infinite = (100 * smooth[1] / (smooth[1] + smooth[-1])).to_numpy()[-1]
    # 0.009 % of the weight lies on the start, whose gains are at most a few times the usual
    assert column(RSI(), bars)[-1] == pytest.approx(infinite, abs=0.05)


def test_rsi_extremes() -> None:
    for step, value in ((1.0, 100.0), (-1.0, 0.0), (0.0, 50.0)):
        frame = pd.DataFrame({"time": range(9), "close": 100 + step * np.arange(9)})
        assert column(RSI(3, memory=5), frame)[-1] == value


def test_fractional_weights_binomial_series() -> None:
    for order in (0.3, 1.0, 1.7):
        k = np.arange(12)
        np.testing.assert_allclose(
            fractional_weights(order, 12), (-1.0) ** k * scipy.special.binom(order, k), atol=1e-15
        )


def test_fractional_window_keeps_weights_down_to_the_threshold() -> None:
    for order, threshold in ((0.4, 1e-3), (0.7, 1e-4), (2.0, 1e-5)):
        window = fractional_window(order, threshold)
        assert abs(fractional_weights(order, window)[-1]) >= threshold > abs(fractional_weights(order, window + 1)[-1])


def test_fractional_difference_loop_and_first_difference(bars: pd.DataFrame) -> None:
    log_price = np.log(bars["close"].to_numpy())
    weights = fractional_weights(0.4, 30)
    expected = [weights @ log_price[t - 29 : t + 1][::-1] if t >= 29 else np.nan for t in range(len(bars))]
    same(column(FractionalDifference(0.4, window=30), bars), expected)
    same(column(FractionalDifference(1.0, window=2), bars), np.log(bars["close"]).diff())
    same(column(FractionalDifference(2.0, window=3, log=False), bars), bars["close"].diff().diff())


def test_calendar_closed_form() -> None:
    start = datetime(2023, 12, 25, 3, 30)  # a Monday
    times = [start + timedelta(hours=31 * i) for i in range(100)]
    made = Calendar(("hour", "weekday", "day_of_month", "month")).add_to(
        pl.DataFrame({"time": times}), time="time", group=None
    )
    for row, moment in enumerate(times):
        month_length = (date(moment.year + moment.month // 12, moment.month % 12 + 1, 1) - timedelta(days=1)).day
        fractions = {
            "hour": (moment.hour + moment.minute / 60) / 24,
            "weekday": moment.weekday() / 7,
            "day_of_month": (moment.day - 1) / month_length,
            "month": (moment.month - 1) / 12,
        }
        for part, fraction in fractions.items():
            assert made[f"{part}_sin"][row] == pytest.approx(np.sin(2 * np.pi * fraction), abs=1e-12)
            assert made[f"{part}_cos"][row] == pytest.approx(np.cos(2 * np.pi * fraction), abs=1e-12)


def test_cross_sectional_rank_pandas_with_ties_and_missing_assets() -> None:
    rng = np.random.default_rng(5)
    frame = pd.DataFrame(
        [
            {"asset": asset, "time": time, "volume": float(rng.integers(1, 4)), "close": rng.integers(1, 3) * 100.0}
            for asset in "abcdef"
            for time in range(40)
            if rng.random() < 0.7 or time > 38
        ]
    )
    inner = frame.groupby("asset")["close"].pct_change()
    n = inner.groupby(frame["time"]).transform("count")
    rank = inner.groupby(frame["time"]).rank()
    expected = np.where(n > 1, 2 * (rank - 1) / (n - 1) - 1, np.where(inner.notna(), 0.0, np.nan))
    made = CrossSectionalRank(Returns((1,))).add_to(pl.from_pandas(frame), time="time", group="asset")
    np.testing.assert_allclose(made["return_1_rank"].to_numpy(), expected, atol=1e-12)
    assert (np.abs(expected[~np.isnan(expected)]) <= 1).all()


def test_registry_keys_are_the_kinds() -> None:
    assert all(cls.kind == kind for kind, cls in FEATURES.items())
