"""The leak audit finds the known ways of looking ahead, with their first time, and clears the shipped features."""

from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest

from qfml.data.audit import Leak, audit_leakage
from qfml.data.features import (
    RSI,
    Calendar,
    CrossSectionalRank,
    LogReturns,
    Momentum,
    MovingAverageDistance,
    Returns,
    RollingZScore,
    VolumeRatio,
    add_features,
)
from qfml.data.fractional import FractionalDifference
from qfml.data.volatility import HAR, RealisedVol
from qfml.errors import ConfigError, DataError

DAYS = [date(2015, 1, 1) + timedelta(days=i) for i in range(400)]
CLOSE = pl.col("close")


@pytest.fixture(scope="module")
def prices() -> pl.DataFrame:
    rng = np.random.default_rng(4)
    close = 100 * np.exp(rng.normal(0, 0.01, 400).cumsum())
    rare = pl.Series([float(i) if i % 90 == 0 else None for i in range(400)])
    return pl.DataFrame({"time": DAYS, "close": close, "rare": rare})


@pytest.fixture(scope="module")
def panel() -> pl.DataFrame:
    """Four assets, the last of which lists late and lacks some days."""
    rng = np.random.default_rng(6)
    frames = []
    for asset in "abcd":
        keep = np.ones(400, dtype=bool) if asset != "d" else (np.arange(400) > 80) & (rng.random(400) < 0.9)
        close = 100 * np.exp(rng.normal(0, 0.02, 400).cumsum())
        opening = close * np.exp(rng.normal(0, 0.01, 400))
        values = {
            "open": opening,
            "high": np.maximum(opening, close) * 1.01,
            "low": np.minimum(opening, close) * 0.99,
            "close": close,
            "volume": rng.integers(1, 1000, 400),
        }
        frames.append(pl.DataFrame({"asset": asset, "time": DAYS, **values}).filter(keep))
    return pl.concat(frames)


LEAKS = {
    "full-sample z-score": (CLOSE - CLOSE.mean()) / CLOSE.std(),
    "full-sample rank": CLOSE.rank() / pl.len(),
    "full-sample quantile bin": CLOSE.gt(CLOSE.quantile(0.9)),
    "centred moving average": CLOSE.rolling_mean(5, center=True),
    "return of tomorrow": CLOSE.shift(-1) / CLOSE - 1,
    "reversed running minimum": CLOSE.reverse().cum_min().reverse(),
    "backward fill": pl.col("rare").fill_null(strategy="backward"),
    "interpolation": pl.col("rare").interpolate(),
    "scaled by the last price": CLOSE / CLOSE.last(),
    "known only with hindsight": pl.when(CLOSE.shift(-3) > CLOSE).then(CLOSE),
}


@pytest.mark.parametrize("name", LEAKS)
def test_leak_is_caught_and_named(prices: pl.DataFrame, name: str) -> None:
    def build(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(LEAKS[name].alias(name), (CLOSE / CLOSE.shift(1) - 1).alias("honest"))

    audit = audit_leakage(build, prices)
    assert [leak.feature for leak in audit.leaks] == [name]
    assert audit.checked == (name, "honest")
    assert not audit.clean
    assert f"`{name}` leaks" in str(audit)


def test_first_time_and_count_brute_force(prices: pl.DataFrame) -> None:
    """A shift from the future changes exactly the rows just before each cut; a full-sample mean changes them all."""
    ahead = audit_leakage(lambda frame: frame.with_columns(x=CLOSE.shift(-2)), prices.drop("rare"), n_times=5)
    (leak,) = ahead.leaks
    assert ahead.n_times == 5
    assert leak.n_changed == 10
    assert leak.first_time in DAYS[: 400 // 5]
    whole = audit_leakage(lambda frame: frame.with_columns(x=CLOSE - CLOSE.mean()), prices)
    last_cut = next(leak for leak in whole.leaks).n_changed - 1
    assert whole.leaks == (Leak("x", DAYS[0], last_cut + 1),)
    assert last_cut >= 400 * 7 // 8


def test_leak_across_assets_is_caught_in_a_panel(panel: pl.DataFrame) -> None:
    def build(frame: pl.DataFrame) -> pl.DataFrame:
        own = (CLOSE - CLOSE.mean().over("asset")).alias("asset mean")
        others = (CLOSE / CLOSE.last().over("asset").max()).alias("best of all assets at the end")
        tomorrow = frame.select(CLOSE.shift(-1).over("asset")).to_series()
        ranks = {"rank of tomorrow": tomorrow, "rank of today": frame["close"]}
        frame = frame.with_columns(own, others, **ranks)
        return frame.with_columns(pl.col(*ranks).rank().over("time"))

    audit = audit_leakage(build, panel, group="asset")
    assert [leak.feature for leak in audit.leaks] == ["asset mean", "best of all assets at the end", "rank of tomorrow"]


def test_mixing_assets_without_naming_the_group_is_a_leak(panel: pl.DataFrame) -> None:
    """`shift` over the border of two assets takes the end of one history as the past of another."""
    audit = audit_leakage(lambda frame: frame.with_columns(x=CLOSE / CLOSE.shift(1)), panel, group="asset")
    assert [(leak.feature, leak.first_time) for leak in audit.leaks] == [("x", DAYS[0])]


@pytest.mark.parametrize("gap", [5, 211, 398])
def test_backward_fill_of_a_single_gap_is_caught(gap: int) -> None:
    close = [float(i % 17) if i != gap else None for i in range(400)]
    frame = pl.DataFrame({"time": DAYS, "close": close})
    audit = audit_leakage(lambda f: f.with_columns(x=CLOSE.fill_null(strategy="backward")), frame)
    assert audit.leaks == (Leak("x", DAYS[gap], 1),)
    honest = audit_leakage(lambda f: f.with_columns(x=CLOSE.fill_null(strategy="forward")), frame)
    assert honest.clean


def test_dropping_rows_with_hindsight_is_a_leak_dropping_the_warm_up_is_not(prices: pl.DataFrame) -> None:
    frame = prices.drop("rare")
    warm_up = audit_leakage(lambda f: f.with_columns(x=CLOSE.rolling_mean(30)).drop_nulls(), frame)
    assert warm_up.clean
    hindsight = audit_leakage(lambda f: f.with_columns(x=CLOSE * 2).filter(CLOSE.lt(CLOSE.quantile(0.99))), frame)
    assert [leak.feature for leak in hindsight.leaks] == ["x"]


def test_changed_source_column_is_audited_too(prices: pl.DataFrame) -> None:
    audit = audit_leakage(lambda frame: frame.with_columns(close=CLOSE / CLOSE.first()), prices)
    assert (audit.clean, audit.checked) == (True, ("close",))
    audit = audit_leakage(lambda frame: frame.with_columns(close=CLOSE / CLOSE.last()), prices)
    assert [leak.feature for leak in audit.leaks] == ["close"]


def test_non_finite_and_text_columns_are_compared(prices: pl.DataFrame) -> None:
    def build(frame: pl.DataFrame) -> pl.DataFrame:
        nan = pl.when(CLOSE > 100).then(float("nan")).otherwise(CLOSE)
        regime = pl.when(CLOSE.gt(CLOSE.mean())).then(pl.lit("high")).otherwise(pl.lit("low"))
        null_or_nan = pl.when(CLOSE.shift(-1).is_null()).then(None).otherwise(float("nan"))
        return frame.with_columns(nan=nan, inf=CLOSE / 0, regime=regime, null_or_nan=null_or_nan)

    assert [leak.feature for leak in audit_leakage(build, prices).leaks] == ["regime", "null_or_nan"]


def test_small_leak_in_a_large_value_is_caught_and_rounding_is_not(prices: pl.DataFrame) -> None:
    def build(frame: pl.DataFrame) -> pl.DataFrame:
        # summed in an order that depends on how many rows there are
        total = np.array(
            [np.add.reduce(np.roll(np.resize(row, 256), frame.height)) for row in frame.select("close").to_numpy()]
        )
        return frame.with_columns(small=CLOSE + 1e-4 * CLOSE.shift(-1), total=pl.Series(total * 1.1))

    assert [leak.feature for leak in audit_leakage(build, prices).leaks] == ["small"]


def test_feature_that_is_never_known_is_listed_as_unchecked(prices: pl.DataFrame) -> None:
    audit = audit_leakage(lambda f: f.with_columns(never=CLOSE.rolling_mean(500), x=CLOSE * 2), prices)
    assert (audit.clean, audit.unchecked, audit.checked) == (True, ("never",), ("never", "x"))


def test_seed_and_number_of_times_decide_the_times(prices: pl.DataFrame) -> None:
    def build(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(x=CLOSE.shift(-1))

    frame = prices.drop("rare")
    audits = [audit_leakage(build, frame, n_times=n, seed=seed) for n, seed in ((1, 0), (20, 0), (20, 0), (20, 1))]
    assert [audit.n_times for audit in audits] == [1, 20, 20, 20]
    assert audits[1] == audits[2] != audits[3]


def test_shipped_features_are_clean_on_a_panel(panel: pl.DataFrame) -> None:
    steps = [
        Returns((1, 5)),
        LogReturns((1, 20)),
        Momentum(60, skip=5),
        MovingAverageDistance(20),
        VolumeRatio(20),
        RSI(),
        FractionalDifference(0.4, window=50),
        Calendar(("weekday", "day_of_month", "month")),
        *(RealisedVol(20, 252, estimator=estimator) for estimator in ("close", "parkinson", "garman_klass")),
        HAR(periods_per_year=252),
        RollingZScore(Momentum(20), window=60),
        CrossSectionalRank(Momentum(20)),
        RollingZScore(CrossSectionalRank(LogReturns((5,))), window=10),
    ]
    audit = audit_leakage(lambda frame: add_features(frame, steps, time="time", group="asset"), panel, group="asset")
    assert audit.clean
    assert audit.unchecked == ()
    assert audit.n_times == 8
    assert audit.checked == tuple(name for step in steps for name in step.names)
    assert "no value changed" in str(audit)


def test_unusable_builds_are_explained(prices: pl.DataFrame, panel: pl.DataFrame) -> None:
    with pytest.raises(DataError, match="`build` must keep the columns `time`"):
        audit_leakage(lambda frame: frame.drop("time"), prices)
    with pytest.raises(DataError, match="name the asset column as `group`"):
        audit_leakage(lambda frame: frame, panel)
    with pytest.raises(DataError, match="at least two distinct values of `time`"):
        audit_leakage(lambda frame: frame, prices.head(1))
    with pytest.raises(ConfigError, match="`n_times` must be at least 1"):
        audit_leakage(lambda frame: frame, prices, n_times=0)
