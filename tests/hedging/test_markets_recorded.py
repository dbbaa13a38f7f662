"""Recorded paths: files and arrays, gaps by name, shuffles, and features that know nothing of the future."""

import math

import numpy as np
import polars as pl
import pytest
import torch

import pricers as pr
import qfml
import qfml.hedging.deep_hedging as deep_hedging
from qfml.config import build, build_kind, to_dict
from qfml.errors import ConfigError, DataError
from qfml.hedging.book import Book
from qfml.hedging.judgement import JudgementSettings
from qfml.hedging.markets import MARKETS, HedgingMarket
from qfml.hedging.objectives import Entropic
from qfml.hedging.recorded_paths import RecordedPaths

TIMES = (0.0, 0.1, 0.25, 0.3, 0.5)
PRICES = np.exp(np.random.default_rng(3).normal(0.0, 0.1, (7, 5, 2)).cumsum(1)) * [100.0, 5.0]
NAMES = ("spot", "call")
CALL = Book(((1.0, pr.European(100.0, 0.5)),))


def of_array(array=PRICES, **changes):
    return RecordedPaths(array=array, **({"times": TIMES, "instruments": NAMES} | changes))


def long_frame(prices=PRICES):
    rows = [(f"p{i}", time, *prices[i, j]) for i in range(len(prices)) for j, time in enumerate(TIMES)]
    return pl.DataFrame(rows, schema=["path", "time", "spot", "call"], orient="row")


def test_prices_and_liability_are_discounted():
    paths = of_array(rate=0.05).paths(None, CALL, seed=1, dtype=torch.float64)
    discount = np.exp(-0.05 * np.array(TIMES))
    np.testing.assert_allclose(paths.prices.numpy(), PRICES * discount[:, None], rtol=1e-14)
    paid = np.maximum(PRICES[:, -1, 0] - 100.0, 0.0) * discount[-1]
    np.testing.assert_allclose(paths.liability.numpy(), paid, rtol=1e-14)
    assert paths.instrument_names == NAMES


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("form", ["long", "wide"])
def test_files_hold_the_same_paths_as_the_array(tmp_path, suffix, form):
    frame, names = long_frame().sample(fraction=1.0, shuffle=True, seed=1), NAMES
    frame = frame.sort("path", maintain_order=True)  # times in any order
    if form == "wide":
        names = ("spot",)
        columns = {"path": [f"p{i}" for i in range(7)]}
        frame = pl.DataFrame(columns | {str(time): PRICES[:, j, 0] for j, time in enumerate(TIMES)})
    path = tmp_path / f"paths.{suffix}"
    frame.write_csv(path) if suffix == "csv" else frame.write_parquet(path)
    read = RecordedPaths(path=path, form=form, instruments=names)
    expected = of_array(PRICES[..., : len(names)], instruments=names)
    for one, other in ((read.paths(None, CALL, 1), expected.paths(None, CALL, 1)),):
        torch.testing.assert_close(one.prices, other.prices, rtol=1e-6, atol=0.0)
        torch.testing.assert_close(one.features, other.features, rtol=1e-6, atol=1e-6)
        assert one.times.tolist() == other.times.tolist()


def test_each_path_is_seen_once_before_any_twice():
    market = of_array()
    firsts = [market.paths(3, CALL, seed=1, number=number).prices[:, 1, 0].tolist() for number in range(4)]
    assert len(set(firsts[0] + firsts[1])) == 6
    assert len(set(firsts[2] + firsts[3])) == 6
    assert firsts[0] != firsts[2]
    assert market.paths(3, CALL, seed=1, number=2).prices[:, 1, 0].tolist() == firsts[2]
    with pytest.raises(DataError, match="7 or less"):
        market.paths(8, CALL, seed=1)


def test_realised_vol_is_that_of_a_loop_and_knows_nothing_of_the_future():
    book = Book(((1.0, pr.European(100.0, 0.25)),))
    settings = {"history": 2, "window": 2, "information": ("realised_vol", "log_moneyness"), "reference_vol": 0.5}
    paths = of_array(**settings).paths(None, book, seed=1)
    assert paths.times.tolist() == pytest.approx([0.0, 0.05, 0.25])
    for path in range(7):
        for place in range(3):
            now = place + 2
            squares = [math.log(PRICES[path, i, 0] / PRICES[path, i - 1, 0]) ** 2 for i in (now - 1, now)]
            vol = math.sqrt(sum(squares) / (TIMES[now] - TIMES[now - 2]))
            assert abs(paths.features[path, place, 0].item() - vol / 0.5) < 1e-6
    for place in range(3):
        other = PRICES.copy()
        other[:, place + 3 :] *= 1.5
        changed = of_array(other, **settings).paths(None, book, seed=1)
        assert torch.equal(changed.features[:, : place + 1], paths.features[:, : place + 1])
        assert place == 2 or not torch.equal(changed.features, paths.features)


def test_rows_and_rebasing():
    market = of_array(rows=(2, 5), rebased_to=1.0)
    paths = market.paths(None, Book(((1.0, pr.Asian(1.0, [0.1, 0.5])),)), seed=1, dtype=torch.float64)
    np.testing.assert_allclose(paths.prices.numpy(), PRICES[2:5] / PRICES[2:5, :1, :1], rtol=1e-14)


def broken(kind):
    prices = PRICES.copy()
    if kind == "nan":
        prices[3, 2, 1] = np.nan
    elif kind == "negative":
        prices[3, 2, 0] = -1.0
    frame = long_frame(prices)
    if kind == "row missing":
        frame = frame.filter(~((pl.col("path") == "p3") & (pl.col("time") == 0.25)))
    elif kind == "null":
        frame = frame.with_columns(
            pl.when((pl.col("path") == "p3") & (pl.col("time") == 0.25))
            .then(None)
            .otherwise(pl.col("call"))
            .alias("call")
        )
    elif kind == "twice":
        frame = pl.concat([frame, frame.filter((pl.col("path") == "p3") & (pl.col("time") == 0.25))])
    return frame


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", r"path p3 has a gap at 0\.25 years \(call\)"),
        ("null", r"path p3 has a gap at 0\.25 years \(call\)"),
        ("row missing", r"path p3 has a gap at 0\.25 years \(spot\)"),
        ("negative", r"path p3 has a price that is not above 0 at 0\.25 years"),
        ("twice", r"path p3 has several at 0\.25 years"),
    ],
)
def test_gaps_are_refused_by_path_and_date(tmp_path, kind, message):
    broken(kind).write_parquet(tmp_path / "paths.parquet")
    market = RecordedPaths(path=tmp_path / "paths.parquet", instruments=NAMES)
    with pytest.raises(DataError, match=message):
        market.paths(None, CALL, seed=1)


def test_files_that_are_not_right_are_refused(tmp_path):
    with pytest.raises(DataError, match="no file"):
        RecordedPaths(path=tmp_path / "none.csv").paths(None, CALL, seed=1)
    with pytest.raises(DataError, match=r"\.parquet or \.csv"):
        RecordedPaths(path=tmp_path / "paths.xlsx").paths(None, CALL, seed=1)
    long_frame().write_csv(tmp_path / "paths.csv")
    with pytest.raises(DataError, match="did you mean `spot`"):
        RecordedPaths(path=tmp_path / "paths.csv", instruments=("spott",)).paths(None, CALL, seed=1)
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="cannot be read"):
        RecordedPaths(path=tmp_path / "bad.parquet").paths(None, CALL, seed=1)


def test_book_must_fit_the_record():
    with pytest.raises(DataError, match="horizon of the book is not on the grid"):
        of_array().paths(None, Book(((1.0, pr.European(100.0, 0.4)),)), seed=1)
    with pytest.raises(DataError, match="contract dates must be among the recorded times"):
        of_array().paths(None, Book(((1.0, pr.Asian(100.0, [0.2, 0.5])),)), seed=1)
    with pytest.raises(ConfigError, match="between the recorded dates"):
        of_array().paths(None, Book(((1.0, pr.Lookback(None, 0.5)),)), seed=1)
    with pytest.raises(ConfigError, match="rebased_to"):
        of_array().paths(None, Book(((1.0, pr.Asian(None, [0.1, 0.5], floating=True)),)), seed=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"array": None, "times": None}, "either"),
        ({"times": None}, "`times`"),
        ({"form": "tall"}, "form"),
        ({"instruments": ("spot", "spot")}, "different"),
        ({"history": -1}, "history"),
        ({"history": 1, "window": 2}, "window"),
        ({"rate": float("nan")}, "rate"),
        ({"rebased_to": 0.0}, "rebased_to"),
        ({"information": ()}, "information"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        RecordedPaths(**({"array": PRICES, "times": TIMES, "instruments": NAMES} | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"times": (0.0, 0.2, 0.1, 0.3, 0.5)}, "ascending"),
        ({"times": (0.0, 0.5)}, "shape"),
        ({"history": 4}, "trading dates"),
        ({"rows": (3, 9)}, "rows"),
        ({"array": [["a"]]}, "numbers"),
    ],
)
def test_bad_records_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        RecordedPaths(**({"array": PRICES, "times": TIMES, "instruments": NAMES} | change)).paths(None, CALL, seed=1)


def test_information_that_records_do_not_hold_is_refused():
    with pytest.raises(ConfigError, match="'realised_vol' is"):
        of_array(information=("vol",)).paths(None, CALL, seed=1)


def test_market_is_its_config(tmp_path):
    long_frame().write_csv(tmp_path / "paths.csv")
    market = RecordedPaths(path=str(tmp_path / "paths.csv"), history=3, window=2)
    assert build(RecordedPaths, to_dict(market)) == market
    assert build_kind(MARKETS, to_dict(market)) == market
    assert isinstance(market, HedgingMarket)


def test_validation_takes_the_last_paths_of_a_record_from_the_training():
    """What is trained on and what epochs are judged by have no path in common; too many are refused by name."""
    prices = moves(300)
    market = RecordedPaths(array=prices, times=(0.0, 0.1, 0.2), rows=(20, 300))
    seen, before = {}, deep_hedging.PathData

    def spied(draws, validations, steps, identity):
        (draw,), (seen["validation"],) = draws, validations
        seen["train"] = [draw(step) for step in range(20)]
        return before(draws, validations, steps, identity)

    book = Book(((1.0, pr.European(1.0, 0.2)),))
    options = {"trainer": qfml.Trainer(max_epochs=1, batch_size=16), "steps_per_epoch": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deep_hedging, "PathData", spied)
        hedger = deep_hedging.deep_hedge(market, book, Entropic(1.0), n_validation=80, **options)
    ends = torch.tensor(prices[:, -1], dtype=torch.float32).tolist()
    trained = {end for paths in seen["train"] for end in paths.prices[:, -1, 0].tolist()}
    assert trained <= set(ends[20:220])
    assert len(trained) >= 192  # twelve sets of a shuffle
    assert set(seen["validation"].prices[:, -1, 0].tolist()) == set(ends[220:])
    assert hedger.market.vol == market.vol == market.parted(80)[0].vol  # one unit of the features
    with pytest.raises(DataError, match=r"`n_validation` takes the last paths of a record .* below the 280"):
        deep_hedging.deep_hedge(market, book, Entropic(1.0), n_validation=280, **options)
    with pytest.raises(DataError, match=r"`batch_size` must be at most the 10 paths that `n_validation` of 270 leaves"):
        deep_hedging.deep_hedge(market, book, Entropic(1.0), n_validation=270, **options)


def moves(n_paths, seed=0):
    steps = np.random.default_rng(seed).normal(0, 0.02, (n_paths, 2))
    return np.exp(np.pad(steps.cumsum(1), ((0, 0), (1, 0))))


def test_paths_that_were_trained_on_are_known_under_any_name(tmp_path):
    """An array, a copy of it in a file, the same on another spot: one common path is enough to be refused."""
    prices, times = moves(300), (0.0, 0.1, 0.2)
    trained = RecordedPaths(array=prices, times=times, rows=(0, 200))
    frame = pl.DataFrame({"path": range(300)} | {str(t): prices[:, i] for i, t in enumerate(times)})
    frame.write_parquet(tmp_path / "copied.parquet")
    copied = {"path": tmp_path / "copied.parquet", "form": "wide"}
    for same in (
        RecordedPaths(array=prices, times=times, rows=(199, 300)),
        RecordedPaths(**copied, rows=(100, 110)),
        RecordedPaths(**copied, rebased_to=250.0),
    ):
        assert trained.shares_paths(same)
        with pytest.raises(ConfigError, match="that were trained on: name other `rows`"):
            JudgementSettings(market=same).fresh(trained)
    for other in (RecordedPaths(**copied, rows=(200, 300)), RecordedPaths(array=moves(300, 1), times=times)):
        assert not trained.shares_paths(other)
        JudgementSettings(market=other).fresh(trained)


def test_paths_of_a_tree_may_be_equal_by_chance():
    up = np.random.default_rng(0).integers(0, 2, (64, 2)).cumsum(1)
    tree = 1.1 ** np.pad(2 * up - np.arange(1, 3), ((0, 0), (1, 0)))
    one, two = (RecordedPaths(array=part, times=(0.0, 0.1, 0.2)) for part in (tree[:32], tree[32:]))
    assert not one.shares_paths(two)


def test_a_spot_that_never_moves_has_no_unit():
    market = RecordedPaths(array=np.ones((4, 3)), times=(0.0, 0.1, 0.2))
    with pytest.raises(DataError, match="the recorded spot never moves"):
        market.paths(None, Book(((1.0, pr.European(1.0, 0.2)),)), seed=1)


def test_a_date_that_all_paths_lack_is_a_gap(tmp_path):
    days = [day for day in range(21) if not 9 <= day < 14]
    horizon = Book(((1.0, pr.European(1.0, 20 / 365)),))
    rows = {"path": [p for p in range(3) for _ in days], "time": [day / 365 for day in days] * 3}
    pl.DataFrame(rows | {"spot": [1.0 + 0.01 * (day % 3) for day in days] * 3}).write_parquet(tmp_path / "p.parquet")
    array = {"array": np.ones((3, len(days))) + 0.01 * np.arange(len(days)), "times": tuple(day / 365 for day in days)}
    for given in ({"path": tmp_path / "p.parquet"}, array):
        with pytest.raises(DataError, match=r"has a price between 0\.0219.* and 0\.0383.*6 times the median"):
            RecordedPaths(**given).paths(None, horizon, 1)
        assert len(RecordedPaths(**given, max_gap=None).paths(None, horizon, 1)) == 3
        assert len(RecordedPaths(**given, max_gap=6.5).paths(None, horizon, 1)) == 3
    with pytest.raises(ConfigError, match="max_gap"):
        RecordedPaths(**array, max_gap=0.5)
    week = [0, 1, 2, 3, 6, 7, 8, 9, 10, 14, 15]  # weekends, one of them long, are none
    RecordedPaths(array=np.ones((3, 11)) + 0.01 * np.arange(11), times=tuple(day / 365 for day in week)).recorded  # noqa: B018
