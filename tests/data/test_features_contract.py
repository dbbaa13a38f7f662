"""The contract of `Feature`, checked on every entry of FEATURES without being asked."""

import dataclasses
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

from qfml.config import build_kind, to_dict
from qfml.data.features import (
    FEATURES,
    RSI,
    Calendar,
    CrossSectionalRank,
    Feature,
    LogReturns,
    Momentum,
    RollingZScore,
    VolumeRatio,
    add_features,
    lookback_rows,
    source_columns,
)
from qfml.data.volatility import Estimator
from qfml.errors import ConfigError, DataError

#: Values of required settings, by name; a feature with another required setting adds it here.
SETTINGS: dict[str, Any] = {
    "horizons": (1, 4),
    "window": 6,
    "periods_per_year": 252.0,
    "order": 0.4,
    "of": LogReturns((2,)),
}
#: polars updates rolling sums instead of adding them up anew, so older rows may leave a trace of rounding.
ROUNDING = {"rtol": 1e-9, "atol": 1e-11}


def instances() -> list[Feature]:
    made: list[Feature] = []
    for cls in FEATURES.values():
        required = [
            field.name
            for field in dataclasses.fields(cls)
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        ]
        settings = {name: SETTINGS[name] for name in required}
        has_estimator = any(field.name == "estimator" for field in dataclasses.fields(cls))
        choices = Estimator.__args__ if has_estimator else (None,)
        made += [cls(**settings, **({"estimator": choice} if choice else {})) for choice in choices]
    nested = RollingZScore(CrossSectionalRank(Momentum(5, skip=2)), window=4)
    return [*made, nested, CrossSectionalRank(RollingZScore(LogReturns((1, 3)), window=3)), RSI(period=3, memory=9)]


ALL = pytest.mark.parametrize("feature", instances(), ids=lambda feature: feature.names[0])


def panel(n_rows: int, seed: int, n_groups: int = 5) -> pl.DataFrame:
    """Prices and volumes of a few assets, sorted by asset and time."""
    rng = np.random.default_rng(seed)
    frames = []
    for asset in range(n_groups):
        close = 100 * np.exp(rng.normal(0, 0.05, n_rows).cumsum())
        opening = close * np.exp(rng.normal(0, 0.03, n_rows))
        spread = np.exp(rng.uniform(0.001, 0.05, (2, n_rows)))
        frames.append(
            pl.DataFrame(
                {
                    "asset": f"asset {asset}",
                    "time": [datetime(2020, 1, 1) + timedelta(days=day) for day in range(n_rows)],
                    "open": opening,
                    "high": np.maximum(opening, close) * spread[0],
                    "low": np.minimum(opening, close) / spread[1],
                    "close": close,
                    "volume": rng.integers(1, 10_000, n_rows),
                }
            )
        )
    return pl.concat(frames)


def features_of(feature: Feature, frame: pl.DataFrame) -> np.ndarray:
    """Values as (asset, row, column), nan where null."""
    made = feature.add_to(frame, time="time", group="asset")
    assert made.columns == [*frame.columns, *feature.names]
    assert made.select(frame.columns).equals(frame)
    assert all(dtype == pl.Float64 for dtype in made.select(feature.names).dtypes)
    values = made.select(feature.names).to_numpy()
    return values.reshape(frame["asset"].n_unique(), -1, len(feature.names))


def with_rows_of(frame: pl.DataFrame, other: pl.DataFrame, where: pl.Expr) -> pl.DataFrame:
    """`frame`, with prices and volumes of `other` in the rows that `where` selects by their number `i` in the asset."""
    names = ("open", "high", "low", "close", "volume")
    numbered = frame.with_columns(i=pl.int_range(pl.len()).over("asset"))
    swapped = [pl.when(where).then(other[name]).otherwise(pl.col(name)).alias(name) for name in names]
    return numbered.with_columns(swapped).drop("i")


@ALL
def test_older_rows_than_lookback_change_nothing(feature: Feature) -> None:
    n_rows = feature.lookback + 12
    frame, other = panel(n_rows, seed=1), panel(n_rows, seed=2)
    before = features_of(feature, frame)
    for row in (feature.lookback + 1, n_rows - 1):
        changed = with_rows_of(frame, other, pl.col("i") < row - feature.lookback)
        np.testing.assert_allclose(features_of(feature, changed)[:, row], before[:, row], **ROUNDING)


@ALL
def test_lookback_is_tight(feature: Feature) -> None:
    n_rows = feature.lookback + 12
    frame, other = panel(n_rows, seed=1), panel(n_rows, seed=2)
    before = features_of(feature, frame)
    changes = []
    for row in range(feature.lookback, n_rows):
        in_one_asset = (pl.col("i") == row - feature.lookback) & (pl.col("asset") == "asset 2")
        after = features_of(feature, with_rows_of(frame, other, in_one_asset))
        changes.append(~np.isclose(after[2, row], before[2, row], **ROUNDING).all())
    assert any(changes) == bool(feature.columns)  # a function of the time alone has no source to change


@ALL
def test_truncating_the_future_changes_nothing(feature: Feature) -> None:
    n_rows = feature.lookback + 12
    frame = panel(n_rows, seed=3)
    full = features_of(feature, frame)
    for keep in (1, feature.lookback // 2 + 1, n_rows - 3):
        early = frame.filter(pl.int_range(pl.len()).over("asset") < keep)
        np.testing.assert_allclose(features_of(feature, early), full[:, :keep], **ROUNDING)


@ALL
def test_warm_up_is_null_and_no_window_is_partial(feature: Feature) -> None:
    n_rows = feature.lookback + 12
    frame = panel(n_rows, seed=4)
    full = features_of(feature, frame)
    unknown = np.isnan(full).any(axis=2)
    assert unknown[:, : feature.lookback].all()
    assert not unknown[:, feature.lookback :].any()
    for start in (1, feature.lookback // 2, 9):
        late = features_of(feature, frame.filter(pl.int_range(pl.len()).over("asset") >= start))
        known = ~np.isnan(late)
        np.testing.assert_allclose(late[known], full[:, start:][known], **ROUNDING)


@ALL
def test_groups_do_not_mix(feature: Feature) -> None:
    n_rows = feature.lookback + 12
    frame = panel(n_rows, seed=5)
    together = features_of(feature, frame)
    turned = pl.concat(frame.partition_by("asset")[::-1])
    np.testing.assert_array_equal(features_of(feature, turned)[::-1], together)
    for asset in range(5):
        alone = frame.filter(pl.col("asset") == f"asset {asset}")
        try:
            made = feature.add_to(alone, time="time", group=None).select(feature.names).to_numpy()
        except DataError:
            # only a cross-sectional feature refuses a single series; it may read other assets at the row's own time
            assert "_rank" in feature.names[0]
            continue
        np.testing.assert_allclose(made, together[asset], **ROUNDING)


@ALL
def test_panel_of_unequal_histories_is_aligned_by_time(feature: Feature) -> None:
    n_rows = feature.lookback + 12
    frame = panel(n_rows, seed=6)
    late = (pl.col("asset") == "asset 1") & (pl.int_range(pl.len()).over("asset") < 5)
    made = feature.add_to(frame.filter(~late), time="time", group="asset")
    own = made.filter(pl.col("asset") == "asset 1").select(feature.names).to_numpy()
    unknown = np.isnan(own).any(axis=1)
    assert unknown[: feature.lookback].all()
    assert not unknown[feature.lookback :].any()


@ALL
def test_settings_survive_yaml(feature: Feature) -> None:
    again = build_kind(FEATURES, to_dict(feature))
    assert again == feature
    assert (again.names, again.lookback, again.columns) == (feature.names, feature.lookback, feature.columns)


@ALL
def test_missing_source_column_is_named(feature: Feature) -> None:
    for column in feature.columns:
        with pytest.raises(DataError, match=f"needs the column `{column}`"):
            feature.add_to(panel(3, seed=0).drop(column), time="time", group="asset")


def test_composed_features_read_only_their_sources_and_keep_namesakes_apart() -> None:
    frame = panel(30, seed=0)
    inner = Momentum(3)
    steps = [inner, RollingZScore(inner, window=5), CrossSectionalRank(inner)]
    made = add_features(frame, steps, time="time", group="asset")
    assert made.columns[-3:] == ["momentum_3_0", "momentum_3_0_zscore_5", "momentum_3_0_rank"]
    assert lookback_rows(steps) == 7
    assert lookback_rows([]) == 0
    assert source_columns([*steps, VolumeRatio(5)]) == ("close", "volume")


def test_other_columns_can_be_named() -> None:
    frame = panel(10, seed=0).rename({"close": "price", "volume": "size"})
    made = add_features(
        frame, [LogReturns((1,), price="price"), VolumeRatio(3, volume="size")], time="time", group="asset"
    )
    assert made.columns[-2:] == ["log_return_1_price", "volume_ratio_3_size"]


def test_rows_out_of_order_are_refused() -> None:
    frame = panel(5, seed=0, n_groups=2)
    first, second = frame.partition_by("asset")
    with pytest.raises(DataError, match="must increase strictly within each group: 4 of 10 rows"):
        Momentum(2).add_to(pl.concat([first.reverse(), second]), time="time", group="asset")


def test_interleaved_groups_and_duplicate_times_are_refused() -> None:
    frame = panel(5, seed=0, n_groups=2)
    with pytest.raises(DataError, match="must stand together"):
        Momentum(2).add_to(frame.sort("time", "asset"), time="time", group="asset")
    with pytest.raises(DataError, match="name the asset column as `group`"):
        Momentum(2).add_to(frame.sort("time", "asset"), time="time", group=None)


def test_values_that_are_not_finite_are_refused_with_their_time() -> None:
    frame = panel(8, seed=0, n_groups=1).with_columns(
        close=pl.when(pl.int_range(pl.len()) == 4).then(0.0).otherwise(pl.col("close"))
    )
    with pytest.raises(DataError, match=r"`log_return_1` is NaN or infinite on 2 of 8 rows, first at 2020-01-05"):
        LogReturns((1,)).add_to(frame, time="time", group=None)


def test_null_in_the_source_makes_exactly_the_windows_that_read_it_null() -> None:
    frame = panel(20, seed=0, n_groups=1)
    for missing in (None, float("nan")):
        holed = frame.with_columns(close=pl.when(pl.int_range(pl.len()) == 10).then(missing).otherwise(pl.col("close")))
        for feature in (Momentum(3, skip=1), RSI(period=2, memory=4), RollingZScore(LogReturns((1,)), window=3)):
            values = feature.add_to(holed, time="time", group=None)[feature.names[0]].is_null().to_numpy()
            expected = {"momentum": [11, 13], "rsi": range(10, 15), "rolling_zscore": range(10, 14)}[feature.kind]
            warm = set(range(feature.lookback))
            assert set(np.flatnonzero(values)) == warm | set(expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "momentum"}, "needs `window`"),
        ({"kind": "momentum", "window": 5, "skp": 1}, "did you mean `skip`"),
        ({"kind": "momentum", "window": 5, "skip": 5}, "longer than `skip`"),
        ({"kind": "returns", "horizons": [0]}, "at least 1 row"),
        ({"kind": "returns", "horizons": [2, 2]}, "distinct"),
        ({"kind": "realised_vol", "window": 5}, "needs `periods_per_year`"),
        ({"kind": "realised_vol", "window": 5, "periods_per_year": -1}, "positive"),
        ({"kind": "rsi", "period": 14, "memory": 3}, "`memory` must be at least 14 rows"),
        ({"kind": "fractional_difference", "order": 1.0, "window": 3}, "2 non-zero weights"),
        ({"kind": "har", "periods_per_year": 252, "weekly": 22}, "`monthly` must be at least 23 rows"),
        ({"kind": "rolling_zscore", "window": 5, "of": {"kind": "momentun", "window": 3}}, "did you mean `momentum`"),
    ],
)
def test_wrong_settings_are_explained(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_kind(FEATURES, settings)


def test_calendar_needs_a_calendar() -> None:
    with pytest.raises(DataError, match="dates or datetimes"):
        Calendar().add_to(pl.DataFrame({"time": [1, 2]}), time="time", group=None)
