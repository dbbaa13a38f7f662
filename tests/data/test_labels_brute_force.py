"""Labels against loops over rows, on a panel of unequal histories; what is not known is null, never guessed."""

import dataclasses
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

from qfml.config import build_kind, to_dict
from qfml.data.audit import audit_leakage
from qfml.data.barriers import MetaLabel, TripleBarrier
from qfml.data.labels import LABELS, ForwardReturn, ForwardSign, Label, RealisedVolAhead, VolScaledReturn
from qfml.errors import ConfigError, DataError

SETTINGS: dict[str, Any] = {
    "horizon": 4,
    "vol_window": 6,
    "periods_per_year": 252.0,
    "upper": 1.5,
    "lower": 1.0,
    "profit_take": 1.5,
    "stop_loss": 1.0,
}


def instances() -> list[Label]:
    made: list[Label] = []
    for cls in LABELS.values():
        fields = dataclasses.fields(cls)
        required = [field.name for field in fields if field.default is dataclasses.MISSING]
        made.append(cls(**{name: SETTINGS[name] for name in required}))
        if any(field.name == "delay" for field in fields):
            made.append(cls(**{name: SETTINGS[name] for name in required}, delay=2))
    return made


ALL = pytest.mark.parametrize("label", instances(), ids=lambda label: f"{label.kind}-{label.rows_ahead}")


@pytest.fixture(scope="module")
def panel() -> pl.DataFrame:
    """Three assets whose days differ, so that a number of rows is not a number of days."""
    rng = np.random.default_rng(21)
    frames = []
    for asset, n_rows in (("a", 80), ("b", 55), ("c", 30)):
        days = np.sort(rng.choice(120, n_rows, replace=False))
        close = 100 * np.exp(rng.normal(0, 0.03, n_rows).cumsum())
        opening = close * np.exp(rng.normal(0, 0.01, n_rows))
        frames.append(
            pl.DataFrame(
                {
                    "asset": asset,
                    "time": [datetime(2021, 3, 1) + timedelta(days=int(day)) for day in days],
                    "open": opening,
                    "high": np.maximum(opening, close) * 1.01,
                    "low": np.minimum(opening, close) * 0.98,
                    "close": close,
                    "side": rng.integers(-1, 2, n_rows),
                }
            )
        )
    return pl.concat(frames)


def labelled(label: Label, frame: pl.DataFrame) -> dict[str, list[tuple[datetime, float | None, datetime | None]]]:
    made = label.add_to(frame, time="time", group="asset")
    assert made.columns == [*frame.columns, "label", "label_end"]
    assert made.schema["label"] == pl.Float64
    assert made.schema["label_end"] == frame.schema["time"]
    return {
        asset[0]: list(zip(part["time"], part["label"], part["label_end"]))
        for asset, part in made.group_by("asset", maintain_order=True)
    }


def agree(label: Label, frame: pl.DataFrame, oracle) -> None:
    """`oracle(price, t)` gives (label, steps to the end) of row t of one asset, or None where it is not known."""
    n_known = 0
    for asset, rows in labelled(label, frame).items():
        own = frame.filter(pl.col("asset") == asset)
        for t, (_, value, end) in enumerate(rows):
            expected = oracle({name: own[name].to_numpy() for name in own.columns[2:]}, t)
            if expected is None:
                assert value is None
                assert end is None
            else:
                assert value == pytest.approx(expected[0], rel=1e-9, abs=1e-12)  # rounding of rolling sums
                assert end == own["time"][t + expected[1]]
                n_known += 1
    assert n_known > 60


def trailing(close: np.ndarray, t: int, n: int) -> float:
    return float(np.sqrt(np.mean(np.diff(np.log(close[t - n : t + 1])) ** 2)))


@pytest.mark.parametrize(("horizon", "delay"), [(1, 0), (5, 0), (3, 1), (1, 4)])
def test_forward_return_family_loop(panel: pl.DataFrame, horizon: int, delay: int) -> None:
    def future(row: dict[str, np.ndarray], t: int) -> float | None:
        close = row["close"]
        return close[t + delay + horizon] / close[t + delay] - 1 if t + delay + horizon < len(close) else None

    def forward(row, t):
        return None if future(row, t) is None else (future(row, t), delay + horizon)

    def sign(row, t):
        return None if future(row, t) is None else (float(future(row, t) > 0), delay + horizon)

    def scaled(row, t):
        if future(row, t) is None or t < 6:
            return None
        return future(row, t) / trailing(row["close"], t, 6) / np.sqrt(horizon), delay + horizon

    agree(ForwardReturn(horizon, delay), panel, forward)
    agree(ForwardSign(horizon, delay), panel, sign)
    agree(VolScaledReturn(horizon, vol_window=6, delay=delay), panel, scaled)


def test_realised_vol_ahead_loop(panel: pl.DataFrame) -> None:
    h = 5

    def close_to_close(row, t):
        close = np.log(row["close"])
        if t + h >= len(close):
            return None
        return np.sqrt(252 / h * sum((close[s] - close[s - 1]) ** 2 for s in range(t + 1, t + h + 1))), h

    def parkinson(row, t):
        if t + h >= len(row["close"]):
            return None
        spread = [np.log(row["high"][s] / row["low"][s]) ** 2 for s in range(t + 1, t + h + 1)]
        return np.sqrt(12 / h * sum(spread) / 4 / np.log(2)), h

    agree(RealisedVolAhead(h, periods_per_year=252), panel, close_to_close)
    agree(RealisedVolAhead(h, periods_per_year=12, estimator="parkinson"), panel, parkinson)


def barriers(row, t, side, horizon, upper, lower, n=6):
    """(return seen from the side, barrier, steps) of the first touch, looking at one row after the other."""
    close = row["close"]
    if t < n or t + horizon >= len(close) or side == 0:
        return None
    vol = trailing(close, t, n)
    for step in range(1, horizon + 1):
        ahead = side * (close[t + step] / close[t] - 1)
        if upper is not None and ahead >= upper * vol:
            return ahead, 1, step
        if lower is not None and ahead <= -lower * vol:
            return ahead, -1, step
    return ahead, 0, horizon


@pytest.mark.parametrize(("upper", "lower"), [(1.5, 1.0), (None, 1.0), (2.0, None), (30.0, 30.0)])
def test_triple_barrier_loop(panel: pl.DataFrame, upper: float | None, lower: float | None) -> None:
    def sign(row, t):
        touch = barriers(row, t, 1, 8, upper, lower)
        return None if touch is None else (float(touch[0] > 0), touch[2])

    def zero(row, t):
        touch = barriers(row, t, 1, 8, upper, lower)
        return None if touch is None else (float(touch[1]), touch[2])

    agree(TripleBarrier(8, vol_window=6, upper=upper, lower=lower), panel, sign)
    agree(TripleBarrier(8, vol_window=6, upper=upper, lower=lower, vertical="zero"), panel, zero)


def test_meta_label_loop_follows_the_side(panel: pl.DataFrame) -> None:
    def bet(row, t):
        touch = barriers(row, t, row["side"][t], 3, 1.5, 1.0)
        return None if touch is None else (float(touch[0] > 0), touch[2])

    label = MetaLabel(3, vol_window=6, profit_take=1.5, stop_loss=1.0)
    agree(label, panel, bet)
    agree(label, panel.with_columns(side=pl.col("side").cast(pl.Float64)), bet)


def test_meta_label_of_long_bets_is_the_triple_barrier(panel: pl.DataFrame) -> None:
    long_only = panel.with_columns(side=pl.lit(1))
    meta = MetaLabel(8, vol_window=6, profit_take=1.5, stop_loss=1.0)
    triple = TripleBarrier(8, vol_window=6, upper=1.5, lower=1.0)
    assert labelled(meta, long_only) == labelled(triple, long_only)


def test_missing_price_hides_only_what_comes_after_it_in_the_horizon() -> None:
    close = [100.0, 101.0, 100.0, 101.0, 110.0, None, 111.0, 112.0, 113.0]
    frame = pl.DataFrame({"time": range(9), "close": close})
    label = TripleBarrier(3, vol_window=1, upper=5.0, lower=5.0)
    made = label.add_to(frame, time="time", group=None)
    # rows 1 to 3 touch at row 4, before the gap; row 4 runs into it; later rows lack a volatility or a full horizon
    assert made["label_end"].to_list() == [None, 4, 4, 4, None, None, None, None, None]


def test_end_of_triple_barrier_varies_and_lies_in_the_horizon(panel: pl.DataFrame) -> None:
    made = TripleBarrier(8, vol_window=6, upper=1.5, lower=1.0).add_to(panel, time="time", group="asset")
    row = pl.int_range(pl.len()).over("asset")
    ends = made.with_columns(row=row).join(
        made.select("asset", label_end="time", end_row=row), on=["asset", "label_end"], how="inner"
    )
    steps = (ends["end_row"] - ends["row"]).to_numpy()
    assert set(steps) == set(range(1, 9))


@ALL
def test_label_is_known_exactly_at_its_end(panel: pl.DataFrame, label: Label) -> None:
    """With data up to `label_end` a label is what it is with all data, once the whole horizon is in; never before."""
    full = label.add_to(panel, time="time", group="asset").with_columns(row=pl.int_range(pl.len()).over("asset"))
    for keep in (20, 27, 41):
        early = label.add_to(panel.filter(pl.int_range(pl.len()).over("asset") < keep), time="time", group="asset")
        expected = full.filter(pl.col("row") < keep)
        ahead = expected.with_columns(left=pl.len().over("asset") - 1 - pl.col("row"))["left"] >= label.rows_ahead
        assert early["label"].to_list() == pytest.approx(
            [value if known else None for value, known in zip(expected["label"], ahead)]
        )
        assert (early["label_end"].is_null() == early["label"].is_null()).all()
        assert (early["label_end"] > early["time"]).fill_null(True).all()


@ALL
def test_labels_are_what_the_leak_audit_is_made_to_catch(label: Label) -> None:
    rng = np.random.default_rng(2)
    frame = pl.DataFrame({"time": range(1000), "close": np.exp(rng.normal(0, 0.01, 1000).cumsum())})
    frame = frame.with_columns(side=pl.Series(rng.choice([-1, 1], 1000)))
    audit = audit_leakage(lambda prices: label.add_to(prices, time="time", group=None), frame)
    assert {leak.feature for leak in audit.leaks} == {"label", "label_end"}


@ALL
def test_settings_survive_yaml(label: Label) -> None:
    again = build_kind(LABELS, to_dict(label))
    assert again == label
    assert again.task == label.task


@ALL
def test_classification_labels_are_zero_or_one(panel: pl.DataFrame, label: Label) -> None:
    values = label.add_to(panel, time="time", group="asset")["label"].drop_nulls()
    assert (set(values) == {0.0, 1.0}) == (label.task == "classification")


@ALL
def test_horizon_longer_than_history_is_refused(panel: pl.DataFrame, label: Label) -> None:
    short = panel.filter(pl.int_range(pl.len()).over("asset") < label.rows_ahead)
    with pytest.raises(DataError, match=f"looks {label.rows_ahead} rows ahead, but the longest history has"):
        label.add_to(short, time="time", group="asset")


def test_one_history_long_enough_is_enough(panel: pl.DataFrame) -> None:
    rows = labelled(ForwardReturn(horizon=40), panel)
    assert sum(value is not None for _, value, _ in rows["a"]) == 40
    assert all(value is None for _, value, _ in rows["c"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "forward_return"}, "needs `horizon`"),
        ({"kind": "forward_return", "horizon": 0}, "`horizon` must be at least 1 row, got 0"),
        ({"kind": "forward_sign", "horizon": 1, "delay": -1}, "`delay` must be at least 0"),
        ({"kind": "vol_scaled_return", "horizon": 1}, "needs `vol_window`"),
        ({"kind": "triple_barrier", "horizon": 1, "vol_window": 5, "upper": None, "lower": None}, "at least one of"),
        ({"kind": "triple_barrier", "horizon": 1, "vol_window": 5, "upper": -1.0, "lower": 1.0}, "positive multiple"),
        ({"kind": "forward_returns", "horizon": 1}, "did you mean `forward_return`"),
    ],
)
def test_wrong_settings_are_explained(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_kind(LABELS, settings)


def test_wrong_sides_and_taken_names_are_refused(panel: pl.DataFrame) -> None:
    label = MetaLabel(3, vol_window=6, profit_take=1.5, stop_loss=1.0)
    with pytest.raises(DataError, match=r"`side` must be -1, 0 or 1: 165 of 165 rows are not"):
        label.add_to(panel.with_columns(side=pl.lit(2)), time="time", group="asset")
    with pytest.raises(DataError, match="is unknown on all 165 rows"):
        label.add_to(panel.with_columns(side=pl.lit(0)), time="time", group="asset")
    with pytest.raises(DataError, match="already has a column of that name"):
        label.add_to(label.add_to(panel, time="time", group="asset"), time="time", group="asset")
