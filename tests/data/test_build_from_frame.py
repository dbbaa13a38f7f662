"""`TimeDataset.from_frame` against loops over the source rows: what was read, what is earned, what was dropped."""

from datetime import date, timedelta

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qfml.data import TimeDataset
from qfml.data.features import CrossSectionalRank, RollingZScore
from qfml.data.labels import ForwardReturn, VolScaledReturn
from qfml.data.price_features import Calendar, LogReturns, Momentum, Returns
from qfml.data.weights import AverageUniqueness, ReturnAttribution, TimeDecay
from qfml.errors import DataError

START = date(2020, 1, 1)


def prices(n=40, asset=None, seed=0, days=None):
    """Prices on `days` (numbers from the start; every day if omitted) of one asset."""
    rng = np.random.default_rng(seed)
    days = range(n) if days is None else days
    frame = pl.DataFrame(
        {
            "time": [START + timedelta(days=int(day)) for day in days],
            "close": 100 * np.exp(np.cumsum(0.02 * rng.standard_normal(len(days)))),
            "signal": rng.standard_normal(len(days)),
        }
    )
    return frame if asset is None else frame.with_columns(asset=pl.lit(asset))


def ragged_panel():
    """Three assets that trade on different days, rows in no order."""
    days = [[d for d in range(60) if d % step or d > 40] for step in (1, 3, 2)]
    parts = [prices(asset=name, seed=i, days=days[i] or range(60)) for i, name in enumerate("cab")]
    return pl.concat(parts).sample(fraction=1.0, shuffle=True, seed=1)


def by_asset(frame):
    """Rows of each asset in time order, as plain dicts; a single series is an asset without a name."""
    assets = {}
    for row in frame.sort("time").iter_rows(named=True):
        assets.setdefault(row.get("asset"), []).append(row)
    return assets


def samples(ds):
    """(asset, day) of each sample."""
    assets = [None] * len(ds) if ds.group is None else [ds.group_names[code] for code in ds.group]
    return [(asset, day.astype("datetime64[D]").item()) for asset, day in zip(assets, ds.time)]


def as_day(time):
    return time.astype("datetime64[D]").item()


@given(
    lookbacks=st.lists(st.integers(1, 6), min_size=1, max_size=3, unique=True),
    window=st.one_of(st.none(), st.integers(1, 5)),
    horizon=st.integers(1, 4),
    panel=st.booleans(),
)
def test_every_sample_against_a_loop_over_the_rows(lookbacks, window, horizon, panel):
    frame = ragged_panel() if panel else prices(30).sample(fraction=1.0, shuffle=True, seed=2)
    ds = TimeDataset.from_frame(
        frame,
        features=[Returns((min(lookbacks),)), "signal", Momentum(max(lookbacks) + 1)],
        label=ForwardReturn(horizon=horizon),
        group="asset" if panel else None,
        window=window,
    )
    lookback = max(lookbacks) + 1
    expected, reasons = {}, {"look-back not yet full": 0, "window not yet full": 0, "label not known": 0}
    for asset, rows in by_asset(frame).items():
        for i, row in enumerate(rows):
            if i < lookback:
                reasons["look-back not yet full"] += 1
            elif i < lookback + (window or 1) - 1:
                reasons["window not yet full"] += 1
            elif i + horizon >= len(rows):
                reasons["label not known"] += 1
            else:
                expected[asset, row["time"]] = (rows, i)
    assert ds.dropped == {reason: count for reason, count in reasons.items() if count}
    assert frame.height == len(ds) + sum(ds.dropped.values())
    assert samples(ds) == sorted(expected, key=lambda key: (key[0] or "", key[1]))
    assert ds.feature_names == (f"return_{min(lookbacks)}", "signal", f"momentum_{lookback}_0")
    x, y = ds.gather(torch.arange(len(ds)))
    x = x.reshape(len(ds), window or 1, 3)
    for sample, key in enumerate(samples(ds)):
        rows, i = expected[key]
        close = [row["close"] for row in rows]
        seen = range(i - (window or 1) + 1, i + 1)
        assert as_day(ds.window_start[sample]) == rows[seen[0] - lookback]["time"]
        assert as_day(ds.label_end[sample]) == rows[i + horizon]["time"]
        assert ds.returns is not None
        assert ds.returns[sample] == pytest.approx(close[i + 1] / close[i] - 1, rel=1e-12)
        assert float(y[sample]) == pytest.approx(close[i + horizon] / close[i] - 1, rel=1e-5, abs=1e-8)
        values = [
            [close[j] / close[j - min(lookbacks)] - 1, rows[j]["signal"], close[j] / close[j - lookback] - 1]
            for j in seen
        ]
        np.testing.assert_allclose(x[sample].numpy(), values, rtol=1e-5, atol=1e-7)


def read_by_rank(assets, asset, day, lookback):
    """All days that the rank of a return over `lookback` rows reads: those of every asset known at that day."""
    days = []
    for rows in assets.values():
        at = [i for i, row in enumerate(rows) if row["time"] == day and i >= lookback]
        days += [rows[at[0] - lookback]["time"]] if at else []
    return days


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("zscore", [None, 4])
def test_a_rank_reads_as_far_back_as_the_assets_it_compares(zscore, window):
    frame = ragged_panel()
    rank = CrossSectionalRank(Returns((5,)))
    ds = TimeDataset.from_frame(
        frame,
        features=["signal", rank if zscore is None else RollingZScore(rank, window=zscore)],
        label=ForwardReturn(horizon=1),
        group="asset",
        window=window,
    )
    assets = by_asset(frame)
    further = 0
    for sample, (asset, day) in enumerate(samples(ds)):
        rows = assets[asset]
        i = [row["time"] for row in rows].index(day)
        reach = (zscore or 1) + (window or 1) - 2  # earlier rows whose ranks enter
        read = [d for j in range(i - reach, i + 1) for d in read_by_rank(assets, asset, rows[j]["time"], 5)]
        assert as_day(ds.window_start[sample]) == min(read)
        further += min(read) < rows[i - reach - 5]["time"]
    assert further > 10, "the panel must have samples for which another asset reaches further back"


def test_returns_are_those_of_the_next_row_and_unknown_on_an_assets_last():
    frame = prices(10)
    held = TimeDataset.from_frame(frame, features=["signal"], label=ForwardReturn(horizon=1, price="signal"))
    assert held.returns is not None
    close = frame["close"].to_numpy()
    np.testing.assert_allclose(held.returns, close[1:] / close[:-1] - 1, rtol=1e-12)
    other = TimeDataset.from_frame(
        frame.with_columns(bid=pl.col("close") * pl.Series([1.0, 2.0] * 5)),
        features=["signal"],
        label=ForwardReturn(horizon=1),
        price="bid",
    )
    assert other.returns is not None
    np.testing.assert_allclose(other.returns, close[1:] * ([2, 1] * 5)[:9] / (close[:-1] * ([1, 2] * 5)[:9]) - 1)


def test_rows_need_not_be_sorted_and_the_frame_is_not_changed():
    frame = ragged_panel()
    copy = frame.clone()
    options = {"features": [Returns((1, 4))], "label": ForwardReturn(horizon=2), "group": "asset", "window": 3}
    one = TimeDataset.from_frame(frame, **options)
    assert frame.equals(copy)
    assert one.data_hash == TimeDataset.from_frame(frame.sort("time"), **options).data_hash
    assert one.data_hash == TimeDataset.from_frame(frame.lazy(), **options).data_hash
    assert sorted(one.group_names) == ["a", "b", "c"]


def test_an_asset_with_too_few_rows_is_dropped_and_counted():
    frame = pl.concat([prices(30, "long"), prices(4, "short", seed=1)])
    ds = TimeDataset.from_frame(frame, features=[Returns((5,))], label=ForwardReturn(horizon=2), group="asset")
    assert {asset for asset, _ in samples(ds)} == {"long"}
    assert ds.dropped == {"look-back not yet full": 5 + 4, "label not known": 2}
    assert len(ds) + 11 == frame.height


def test_a_label_that_needs_a_past_volatility_drops_and_counts_the_rows_without_one():
    frame = prices(30)
    ds = TimeDataset.from_frame(frame, features=["signal"], label=VolScaledReturn(horizon=2, vol_window=6))
    assert len(ds) == 30 - 6 - 2
    assert ds.dropped == {"label not known": 6 + 2}


@pytest.mark.parametrize("index", [True, False])
def test_a_pandas_frame_is_the_same_as_a_polars_frame(index):
    frame = ragged_panel()
    options = {"features": [Returns((2,)), "signal"], "label": ForwardReturn(horizon=1), "group": "asset"}
    from_pandas = frame.to_pandas()
    if index:
        from_pandas = from_pandas.set_index(["asset", "time"])
    ds = TimeDataset.from_frame(from_pandas, **options)
    expected = TimeDataset.from_frame(frame, **options)
    assert ds.data_hash == expected.data_hash
    assert ds.dropped == expected.dropped


def test_a_pandas_index_with_a_time_zone_becomes_utc():
    days = pd.date_range("2020-03-01", periods=20, tz="America/New_York", name="time")
    frame = pd.DataFrame({"close": prices(20)["close"].to_numpy()}, index=days)
    ds = TimeDataset.from_frame(frame, features=[Returns((1,))], label=ForwardReturn(horizon=1))
    utc = days.tz_convert("UTC").tz_localize(None).to_numpy()
    np.testing.assert_array_equal(ds.time, utc[1:-1])
    np.testing.assert_array_equal(ds.label_end, utc[2:])
    np.testing.assert_array_equal(ds.window_start, utc[:-2])


@pytest.mark.parametrize("kind", ["int", "float"])
def test_numbers_as_times(kind):
    frame = prices(12).with_columns(time=pl.int_range(12).cast(pl.Int64 if kind == "int" else pl.Float64) * 2)
    ds = TimeDataset.from_frame(frame, features=[Returns((3,))], label=ForwardReturn(horizon=1), window=2)
    assert ds.time.tolist() == list(range(8, 22, 2))
    assert ds.window_start.tolist() == list(range(0, 14, 2))


def test_a_column_of_the_users_own_is_never_overwritten():
    frame = prices(20).rename({"signal": "next_return"}).with_columns(window_start=pl.col("next_return") * 2)
    ds = TimeDataset.from_frame(frame, features=["next_return", "window_start"], label=ForwardReturn(horizon=1))
    np.testing.assert_array_equal(ds.features[:, 0].numpy(), frame["next_return"].to_numpy().astype(np.float32))
    np.testing.assert_array_equal(ds.features[:, 1].numpy(), 2 * ds.features[:, 0].numpy())


@pytest.mark.parametrize("names", ["text", "integer", "categorical"])
def test_weights_are_those_of_each_assets_own_labels(names):
    frame = ragged_panel()
    if names == "integer":
        frame = frame.with_columns(pl.col("asset").replace_strict({"a": 1, "b": 2, "c": 10}))
    if names == "categorical":
        frame = frame.with_columns(pl.col("asset").cast(pl.Categorical))
    horizon = 3
    build = lambda weight: TimeDataset.from_frame(  # noqa: E731
        frame, features=[Returns((2,))], label=ForwardReturn(horizon=horizon), group="asset", weight=weight
    )
    unique, attributed = {}, {}
    for asset, rows in by_asset(frame.with_columns(pl.col("asset").cast(pl.String))).items():
        labels = range(2, len(rows) - horizon)  # the rows with a full look-back and a known label
        close = [row["close"] for row in rows]
        count = [sum(i <= bar < i + horizon for i in labels) for bar in range(len(rows))]
        for i in labels:
            bars = range(i, i + horizon)
            key = asset, rows[i]["time"]
            unique[key] = np.mean([1 / count[bar] for bar in bars])
            attributed[key] = abs(sum(np.log(close[bar + 1] / close[bar]) / count[bar] for bar in bars))
    for weight, expected in ((AverageUniqueness(), unique), (ReturnAttribution(), attributed)):
        ds = build(weight)
        assert ds.weight is not None
        raw = [expected[key] for key in samples(ds)]
        np.testing.assert_allclose(ds.weight.numpy(), np.array(raw) / np.mean(raw), rtol=1e-5)
    assert build(None).weight is None


def test_time_decay_weights_a_day_alike_across_assets():
    frame = pl.concat([prices(30, "a"), prices(30, "b", seed=1)])
    ds = TimeDataset.from_frame(
        frame,
        features=[Returns((2,))],
        label=ForwardReturn(horizon=1),
        group="asset",
        weight=TimeDecay(oldest=0.0),
        window=2,
    )
    assert ds.weight is not None
    first, second = ds.weight.numpy().reshape(2, -1)
    np.testing.assert_array_equal(first, second)
    n = len(first)
    np.testing.assert_allclose(first, np.arange(1, n + 1) / np.mean(np.arange(1, n + 1)), rtol=1e-6)


def with_hole(frame, column="close", row=20, value=None):
    return frame.with_row_index().with_columns(
        pl.when(pl.col("index") == row).then(value).otherwise(pl.col(column)).alias(column)
    )


LABEL = ForwardReturn(horizon=1)
BAD = {
    "a hole in the prices": (
        {"frame": with_hole(prices())},
        "feature `return_2` is unknown on 2 of 38 rows, first: 2020-01-21, 2020-01-23; choose how missing values",
    ),
    "nan is a hole too": ({"frame": with_hole(prices(), value=float("nan"))}, "`return_2` is unknown on 2 of 38 rows"),
    "a hole in one asset": (
        {"frame": pl.concat([with_hole(prices(40, "a"), row=5), with_hole(prices(40, "b"), row=99)]), "group": "asset"},
        "`return_2` is unknown on 2 of 76 rows, first: a 2020-01-06, a 2020-01-08",
    ),
    "a hole in a plain column": (
        {"frame": with_hole(prices(), "signal", 30), "features": ["signal"]},
        "feature `signal` is unknown on 1 of 40 rows, first: 2020-01-31",
    ),
    "infinity in a plain column": (
        {"frame": with_hole(prices(), "signal", 30, float("inf")), "features": ["signal"]},
        "feature `signal` is NaN or infinite on 1 of 40 rows, first at 2020-01-31",
    ),
    "a constant feature": (
        {"frame": prices().with_columns(flat=pl.lit(3.0)), "features": [Returns((2,)), "flat"]},
        r"feature `flat` is constant \(3.0\) over all 38 rows",
    ),
    "a horizon as long as the history": (
        {"label": ForwardReturn(horizon=40)},
        "label `forward_return` looks 40 rows ahead, but the longest history has 40 rows",
    ),
    "look-back and horizon leave nothing": (
        {"features": [Returns((30,))], "label": ForwardReturn(horizon=10)},
        "no row has a label",
    ),
    "a look-back longer than the history": (
        {"features": [Returns((40,))]},
        "the features look 40 rows back, but no group has that many: 40 rows in all",
    ),
    "a window longer than the history": ({"window": 39}, r"no sample is left.*window not yet full"),
    "windows that leave no known label": ({"window": 38}, r"no sample is left.*label not known"),
    "no such column": ({"features": ["sgnal"]}, r"needs the column `sgnal` \(did you mean `signal`\?\)"),
    "no such price": ({"price": "last"}, "`price` needs the column `last`"),
    "no such time": ({"time": "date"}, "the frame has no column `date`; it has: time, close, signal"),
    "no such group": ({"group": "asset"}, "the frame has no column `asset`"),
    "not a number": ({"frame": prices().with_columns(signal=pl.lit("x")), "features": ["signal"]}, "needs numbers in"),
    "no features": ({"features": []}, "`features` is empty"),
    "a class instead of a step": ({"features": [Returns]}, "`features` must hold column names, or steps"),
    "two features of one name": ({"features": ["signal", "signal"]}, "two features make the same column: signal"),
    "a name that is taken": ({"features": [Returns((2,)), Returns((2, 3))]}, "`return_2`, but the frame already has"),
    "two rows at one time": ({"frame": pl.concat([prices(), prices()])}, "`time` must increase strictly"),
    "a missing time": ({"frame": with_hole(prices(), "time")}, "`time` is null on 1 of 40 rows"),
    "a missing asset": (
        {"frame": with_hole(prices(40, "a"), "asset"), "group": "asset", "features": ["signal"]},
        "`group` must not be missing: 1 of 40 rows",
    ),
    "a price of zero": (
        {"frame": with_hole(prices(), value=0.0), "features": ["signal"], "label": ForwardReturn(1, price="signal")},
        "`returns` must be simple returns",
    ),
    "not a frame": ({"frame": {"time": [1]}}, "`frame` must be a polars or pandas frame, got dict"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_breaks_a_rule_is_refused_by_name(name):
    change, message = BAD[name]
    given_in = {"frame": prices(), "features": [Returns((2,))], "label": LABEL} | change
    with pytest.raises(DataError, match=message):
        TimeDataset.from_frame(given_in.pop("frame"), **given_in)


def test_features_of_several_columns_and_kinds_keep_their_order():
    frame = prices(40)
    ds = TimeDataset.from_frame(
        frame, features=[Calendar(("weekday",)), "signal", LogReturns((3, 1))], label=ForwardReturn(horizon=1)
    )
    assert ds.feature_names == ("weekday_sin", "weekday_cos", "signal", "log_return_3", "log_return_1")
    log = np.log(frame["close"].to_numpy())
    expected = np.stack([frame["signal"].to_numpy()[3:], log[3:] - log[:-3], log[3:] - log[2:-1]], axis=1)
    np.testing.assert_allclose(ds.features[:, 2:].numpy(), expected, rtol=1e-4, atol=1e-6)
