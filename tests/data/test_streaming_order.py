"""Streamed batches against the rows in memory: content, interval and purge, order, position, and bad files."""

import json
from itertools import pairwise

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from qfml.data import shards
from qfml.data.dataset import TimeDataset
from qfml.data.streaming import StreamingTimeDataset, write_shards
from qfml.errors import CheckpointError, DataError, UserError

FEATURES = ["a", "b", "c"]
DAY = 86_400_000_000_000
# Python 3.12 warns when a process with threads forks, as DataLoader workers do; torch, when they outnumber the cores
FORK = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning", "ignore:This DataLoader will create")


def dataset(n_days=40, n_assets=3, seed=0, window=None):
    """A panel sorted by (group, time), whose labels end one to nine days ahead."""
    rng = np.random.default_rng(seed)
    days = np.datetime64("2020-01-01", "ns") + np.arange(n_days) * np.timedelta64(1, "D")
    time, n = np.tile(days, n_assets), n_days * n_assets
    return TimeDataset(
        rng.normal(size=(n, 3)),
        rng.normal(size=n),
        time=time,
        label_end=time + rng.integers(1, 10, n) * np.timedelta64(1, "D"),
        window_start=time - rng.integers(0, 5, n) * np.timedelta64(1, "D"),
        group=np.repeat(["AAA", "BBB", "CCC", "DDD"][:n_assets], n_days),
        weight=rng.uniform(size=n),
        feature_names=FEATURES,
        window=window,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("shards")
    write_shards(dataset(), path, rows_per_shard=50, rows_per_group=7)
    return path


def stream(folder, **options):
    return StreamingTimeDataset(folder, **({"features": FEATURES, "weight": "weight", "batch_size": 8} | options))


def joined(batches):
    return [torch.cat(column) for column in zip(*batches, strict=True)]


def assert_same_batches(left, right):
    left, right = list(left), list(right)
    assert len(left) == len(right)
    for one, two in zip(left, right, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_without_a_seed_rows_come_as_in_the_data_set_in_time_order(folder):
    ds = dataset()
    order = np.argsort(ds.time, kind="stable")
    x, y, weight, time = joined(stream(folder))
    for streamed, resident in zip((x, y, weight), ds.gather(torch.from_numpy(order)), strict=True):
        assert streamed.dtype == resident.dtype
        assert torch.equal(streamed, resident)
    np.testing.assert_array_equal(time.numpy().view("datetime64[ns]"), ds.time[order])


def test_dicts_hold_all_times_and_groups(folder):
    ds = dataset()
    order = np.argsort(ds.time, kind="stable")
    options = {"group": "group", "window_start": "window_start", "as_dict": True}
    streamed = stream(folder, **options)
    batches = list(streamed)
    assert streamed.group_names == ds.group_names
    for role in ("time", "label_end", "window_start", "group"):
        column = torch.cat([batch[role] for batch in batches]).numpy()
        np.testing.assert_array_equal(column, getattr(ds, role)[order].astype(np.int64))
    assert set(batches[0]) == {"x", "y", "weight", "time", "label_end", "window_start", "group"}


def test_windows_are_streamed_as_the_data_set_gathers_them(tmp_path):
    ds = dataset(window=4)
    write_shards(ds, tmp_path, rows_per_shard=60, rows_per_group=11)
    x, *_ = joined(stream(tmp_path))
    assert torch.equal(x, ds.gather(torch.from_numpy(np.argsort(ds.time, kind="stable")))[0])


@pytest.mark.parametrize("frame_kind", ["polars", "pandas", "arrow"])
def test_frames_are_sorted_by_time_and_split(tmp_path, frame_kind):
    time = np.random.default_rng(0).permutation(10).astype(float)
    frame = pl.DataFrame({"time": time, "x": time * 2, "label": -time, "name": ["even", "odd"] * 5})
    data = {"polars": frame, "pandas": frame.to_pandas(), "arrow": frame.to_arrow()}[frame_kind]
    paths = write_shards(data, tmp_path / "new", rows_per_shard=4)
    assert [pq.read_metadata(path).num_rows for path in paths] == [4, 4, 2]
    x, y, times = joined(StreamingTimeDataset(tmp_path / "new", features=["x"], batch_size=3))
    assert times.tolist() == list(range(10))
    assert x[:, 0].tolist() == [2.0 * t for t in range(10)]
    assert y.tolist() == [-float(t) for t in range(10)]


def day(number):
    return np.datetime64("2020-01-01") + np.timedelta64(number, "D")


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.none() | st.integers(-3, 45),
    end=st.none() | st.integers(-3, 45),
    known_by=st.none() | st.just("end") | st.integers(-3, 60),
    window_after=st.none() | st.integers(-9, 45),
    seed=st.none() | st.integers(0, 3),
)
def test_an_interval_keeps_what_a_loop_over_the_rows_keeps(folder, start, end, known_by, window_after, seed):
    ds = dataset()
    bound = end if known_by == "end" else known_by
    reasons = {shards.OUTSIDE: 0, shards.PURGED: 0, shards.LOOKED_BACK: 0}
    kept = []
    for i in range(len(ds)):
        if (start is not None and ds.time[i] < day(start)) or (end is not None and ds.time[i] >= day(end)):
            reasons[shards.OUTSIDE] += 1
        elif bound is not None and ds.label_end[i] > day(bound):
            reasons[shards.PURGED] += 1
        elif window_after is not None and ds.window_start[i] <= day(window_after):
            reasons[shards.LOOKED_BACK] += 1
        else:
            kept.append(float(ds.y[i]))
    options = {
        "start": None if start is None else day(start),
        "end": None if end is None else str(day(end)),
        "known_by": known_by if known_by in (None, "end") else day(known_by),
        "window_after": None if window_after is None else day(window_after),
        "window_start": "window_start",
        "seed": seed,
    }
    if not kept:
        with pytest.raises(DataError, match="no row is left of 120"):
            stream(folder, **options)
        return
    streamed = stream(folder, **options)
    _, y, _, _ = joined(streamed)
    assert sorted(y.tolist()) == sorted(kept)
    assert streamed.n_rows == len(kept)
    assert len(list(streamed)) == len(streamed)
    assert streamed.dropped == {reason: count for reason, count in reasons.items() if count}


def test_training_rows_before_a_bound_never_know_what_lies_behind_it(folder):
    for number in range(5, 40, 5):
        rows = torch.cat([batch["label_end"] for batch in stream(folder, end=day(number), as_dict=True)])
        assert int(rows.max()) <= day(number).astype("datetime64[ns]").astype(np.int64)
        # test rows are asked for by their decision time alone
        test = stream(folder, start=day(number), end=day(number + 1), known_by=None)
        assert test.n_rows == 3


def test_counting_reads_only_the_row_groups_that_a_bound_cuts(folder, monkeypatch):
    read = []
    original = pq.ParquetFile.read_row_group

    def spy(self, i, columns=None, **options):
        read.append((i, tuple(columns)))
        return original(self, i, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", spy)
    stream(folder)
    assert read == []
    stream(folder, start=day(10), end=day(30))
    assert 0 < len(read) <= 8  # of 19 row groups: those cut by a bound, or near enough to the end to be purged
    assert set(sum((columns for _, columns in read), ())) == {"time", "label_end"}
    read.clear()
    list(StreamingTimeDataset(folder, features=["b"], batch_size=50))
    assert {columns for _, columns in read} == {("time", "label", "b")}


SHUFFLED = {"seed": 3, "buffer_rows": 25, "interleave": 2}


@pytest.mark.parametrize("options", [{}, SHUFFLED, {"seed": 0, "buffer_rows": 1}, {"seed": 0, "batch_size": 1000}])
def test_every_row_comes_once_an_epoch(folder, options):
    streamed = stream(folder, **options)
    expected = sorted(dataset().y.tolist())
    for epoch in range(3):
        streamed.set_epoch(epoch)
        batches = list(streamed)
        sizes = sorted(len(batch[1]) for batch in batches)
        assert len(batches) == len(streamed)
        assert set(sizes[1:]) <= {streamed.batch_size}  # all but one are whole
        assert sorted(joined(batches)[1].tolist()) == expected


def test_the_order_is_a_function_of_seed_and_epoch(folder):
    def order(seed, epoch):
        streamed = stream(folder, seed=seed, buffer_rows=25)
        streamed.set_epoch(epoch)
        return joined(streamed)[1].tolist()

    orders = {(seed, epoch): order(seed, epoch) for seed in range(3) for epoch in range(3)}
    assert len({tuple(y) for y in orders.values()}) == 9
    assert all(order(*key) == y for key, y in orders.items())


def test_rows_of_one_row_group_are_shuffled_anew_each_epoch(tmp_path):
    write_shards(dataset(), tmp_path, rows_per_shard=1000)  # nothing but the order within the block can change
    streamed = stream(tmp_path, seed=0)
    orders = set()
    for epoch in range(4):
        streamed.set_epoch(epoch)
        orders.add(tuple(joined(streamed)[1].tolist()))
    assert len(orders) == 4


def test_a_shuffle_reaches_over_shards_and_within_the_buffer(folder):
    position = {float(y): i for i, y in enumerate(joined(stream(folder))[1])}
    order = [position[float(y)] for y in joined(stream(folder, seed=1, buffer_rows=30))[1]]
    steps = np.abs(np.diff(order))
    assert np.mean(steps == 1) < 0.15  # neighbours are torn apart
    first = np.array(order[:30])
    assert first.min() < 50 < first.max()  # rows of at least two shards in the first block


@FORK
@pytest.mark.parametrize("options", [{}, SHUFFLED, SHUFFLED | {"interleave": 3}])
@pytest.mark.parametrize("n_workers", [1, 2, 3])
def test_the_order_does_not_depend_on_the_number_of_workers(folder, options, n_workers):
    streamed = stream(folder, **options)
    streamed.set_epoch(1)
    alone = list(streamed)
    assert_same_batches(DataLoader(streamed, batch_size=None, num_workers=n_workers), alone)
    streamed.set_epoch(1, batch=4)  # a start that the number of workers does not divide
    assert_same_batches(DataLoader(streamed, batch_size=None, num_workers=n_workers), alone[4:])


@FORK
def test_a_new_epoch_reaches_persistent_workers(folder):
    streamed = stream(folder, **SHUFFLED)
    loader = DataLoader(streamed, batch_size=None, num_workers=2, persistent_workers=True)
    assert len(loader) == len(streamed)
    for epoch in range(3):
        streamed.set_epoch(epoch)
        assert_same_batches(loader, streamed)


def test_with_as_many_workers_as_places_each_reads_its_own_part(folder, monkeypatch):
    read = []
    original = shards.RowGroupReader.read

    def spy(self, piece, threads):
        read.append(piece)
        return original(self, piece, threads)

    monkeypatch.setattr(shards.RowGroupReader, "read", spy)
    streamed = stream(folder, seed=0, buffer_rows=8, batch_size=4, interleave=3)
    plan = streamed._plan(0)
    shares = []
    for worker in range(3):
        read.clear()
        list(streamed._batches(plan, plan.order[worker::3], threads=False))
        shares.append(set(read))
        assert len(read) == len(shares[-1])  # nothing is read twice
    assert all(len(one & two) <= 2 for one, two in pairwise(shares))  # they meet in one block
    assert len(shares[0] | shares[1] | shares[2]) == 19  # all row groups, 8 + 8 + 3


@pytest.mark.parametrize("options", [{}, SHUFFLED])
@pytest.mark.parametrize("used", [0, 1, 7, 15])
def test_a_restored_position_continues_with_the_same_bits(folder, options, used):
    whole = stream(folder, **options)
    whole.set_epoch(2)
    batches = iter(whole)
    for _ in range(used):
        next(batches)
    state = json.loads(json.dumps(whole.state_dict()))
    again = stream(folder, **options)
    again.load_state_dict(state)
    assert_same_batches(again, batches)
    assert again.state_dict() == whole.state_dict()
    again.set_epoch(3)
    whole.set_epoch(3)
    assert_same_batches(again, whole)


@FORK
def test_a_position_behind_workers_must_be_told(folder):
    streamed = stream(folder, **SHUFFLED)
    loader = DataLoader(streamed, batch_size=None, num_workers=2)
    batches = iter(loader)
    for _ in range(5):
        next(batches)
    with pytest.raises(UserError, match="pass the number of batches used"):
        streamed.state_dict()
    state = streamed.state_dict(batch=5)
    again = stream(folder, **SHUFFLED)
    again.load_state_dict(state)
    assert_same_batches(DataLoader(again, batch_size=None, num_workers=3), batches)


@pytest.mark.parametrize(
    ("other", "name"),
    [
        ({"seed": 4}, "seed"),
        ({"batch_size": 9}, "batch_size"),
        ({"buffer_rows": 26}, "buffer_rows"),
        ({"end": "2020-02-01"}, "columns"),  # the label's end is read now
        ({"weight": None}, "columns"),
        ({"interleave": 1}, "interleave"),
    ],
)
def test_a_position_of_another_stream_is_refused(folder, other, name):
    state = stream(folder, **SHUFFLED).state_dict()
    with pytest.raises(CheckpointError, match=f"other `{name}`"):
        stream(folder, **SHUFFLED | other).load_state_dict(state)


def test_a_position_of_other_data_is_refused(folder, tmp_path):
    write_shards(dataset(n_days=41), tmp_path, rows_per_shard=50, rows_per_group=7)
    with pytest.raises(CheckpointError, match="other `shards`"):
        stream(tmp_path).load_state_dict(stream(folder).state_dict())
    with pytest.raises(CheckpointError, match="damaged"):
        stream(folder).load_state_dict({"epoch": 0})


# --- bad input ---


def write(path, time=(0, 1, 2, 3), row_group_size=2, **columns):
    data = {"time": time, "label_end": [t + 1 for t in time], "x": [0.5] * len(time), "label": [1.0] * len(time)}
    pq.write_table(pa.table(data | columns), path, row_group_size=row_group_size)
    return path


def test_times_that_go_back_are_refused(tmp_path):
    between = write(tmp_path / "between.parquet", time=[0, 5, 3, 4])
    with pytest.raises(DataError, match=r"between.parquet: `time` must not go back .* row 2 \(3\) follows 5"):
        StreamingTimeDataset(between, features=["x"], batch_size=2)
    within = write(tmp_path / "within.parquet", time=[0, 1, 9, 4])
    streamed = StreamingTimeDataset(within, features=["x"], batch_size=2)
    with pytest.raises(DataError, match=r"within.parquet: `time` must not go back .* row 3 \(4\) follows 9"):
        list(streamed)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"x": [0.0, 1.0, float("nan"), 1.0]}, r"`x` must be finite: 1 of 2 .* first: row 2: nan"),
        ({"x": [0.0, 1.0, 1e300, 1.0]}, r"`x` must be finite: 1 of 2 .* first: row 2: inf"),
        ({"x": pa.array([0, 1, None, 1])}, "`x` must be finite"),
        ({"label": [0.0, 1.0, 1.0, float("inf")]}, r"`label` must be finite: .* row 3"),
        ({"x": ["a"] * 4}, "`x` must be a number"),
        ({"w": [1.0, -1.0, 1.0, 1.0]}, "`w` must not be negative"),
        ({"label_end": [1, 2, 3, 2]}, "`label_end` must not lie before `time`"),
        ({"label_end": pa.array([1, 2, None, 4])}, "`label_end` must not be missing"),
    ],
)
def test_bad_values_are_named(tmp_path, columns, message):
    path = write(tmp_path / "a.parquet", **({"w": [1.0] * 4} | columns))
    with pytest.raises(DataError, match=message):
        list(StreamingTimeDataset(path, features=["x"], weight="w", batch_size=2, known_by=99))


def test_bad_values_outside_the_interval_do_not_matter(tmp_path):
    path = write(tmp_path / "a.parquet", x=[float("nan"), 1.0, 1.0, float("nan")])
    x, _, _ = joined(StreamingTimeDataset(path, features=["x"], batch_size=2, start=1, end=3))
    assert x.tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize("options", [{"write_statistics": False}, {"use_deprecated_int96_timestamps": True}])
def test_files_without_statistics_are_counted_by_reading(tmp_path, options):
    days = np.datetime64("2020-01-01", "ns") + np.arange(4) * np.timedelta64(1, "D")
    table = pa.table({"time": days, "label_end": days + np.timedelta64(1, "D"), "x": [1.0] * 4, "label": [0.0] * 4})
    pq.write_table(table, tmp_path / "a.parquet", **options)
    streamed = StreamingTimeDataset(tmp_path, features=["x"], batch_size=9, end="2020-01-03")
    assert (streamed.n_rows, streamed.dropped) == (2, {shards.OUTSIDE: 2})
    assert len(next(iter(streamed))[0]) == 2


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns", "D"])
def test_every_unit_of_time_becomes_nanoseconds(tmp_path, unit):
    days = (np.datetime64("2020-01-01") + np.arange(4)).astype(f"datetime64[{unit}]")
    pq.write_table(pa.table({"time": days, "x": [1.0] * 4, "label": [0.0] * 4}), tmp_path / "a.parquet")
    streamed = StreamingTimeDataset(
        tmp_path, features=["x"], batch_size=9, start="2020-01-02", end=np.datetime64("2020-01-04"), known_by=None
    )
    assert (next(iter(streamed))[-1].numpy().view("datetime64[ns]") == days[1:3]).all()


def test_time_zones_must_agree_with_the_bounds(tmp_path):
    instants = pa.array(np.arange(4) * DAY).cast(pa.timestamp("ns", "UTC")).cast(pa.timestamp("ns", "America/New_York"))
    pq.write_table(pa.table({"time": instants, "x": [1.0] * 4, "label": [0.0] * 4}), tmp_path / "a.parquet")
    options = {"features": ["x"], "batch_size": 9, "known_by": None}
    # 1970-01-02 19:00 in New York is midnight in UTC
    streamed = StreamingTimeDataset(tmp_path, **options, start=pd.Timestamp("1970-01-02 19:00", tz="America/New_York"))
    assert next(iter(streamed))[-1].tolist() == [2 * DAY, 3 * DAY]
    with pytest.raises(DataError, match=r"`start` .* must both have a time zone or neither"):
        StreamingTimeDataset(tmp_path, **options, start="1970-01-02")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": ["aa"]}, "no column `aa`.*did you mean `a`"),
        ({"features": []}, "must be a list of distinct"),
        ({"features": "a"}, "must be a list of distinct"),
        ({"features": ["a", "a"]}, "must be a list of distinct"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"buffer_rows": 0}, "`buffer_rows` must be at least 1"),
        ({"seed": -1}, "`seed` must not be negative"),
        ({"interleave": 2}, "`interleave` .* needs a `seed`"),
        ({"group": "group"}, "pass `as_dict=True`"),
        ({"window_after": "2020-01-01"}, "pass `window_start`"),
        ({"start": 5}, "`start` must be a date or time"),
        ({"start": "yesterday-ish"}, "`start` must be a date or time"),
        ({"end": "2019-01-01"}, "no row is left of 120"),
        ({"time": "label", "start": "2020-01-01"}, "`start` must be a number"),
    ],
)
def test_bad_options_are_explained(folder, options, message):
    with pytest.raises(DataError, match=message):
        stream(folder, **options)


def test_a_position_outside_the_epoch_is_refused(folder):
    with pytest.raises(DataError, match=r"`batch` in 0\.\.15, got 0 and 16"):
        stream(folder).set_epoch(0, batch=16)


def test_sources_that_are_not_shards_are_refused(tmp_path):
    with pytest.raises(DataError, match="no Parquet file at"):
        stream(tmp_path)
    (tmp_path / "a.parquet").write_text("time,x")
    with pytest.raises(DataError, match="cannot be read as a Parquet file"):
        stream(tmp_path)


def test_globs_files_and_lists_are_sources(folder):
    whole = list(stream(folder))
    files = sorted(folder.glob("*.parquet"))
    assert_same_batches(stream(f"{folder}/part-*.parquet"), whole)
    assert_same_batches(stream(files), whole)
    assert stream(files[-1]).n_rows == 20


def test_shards_of_unlike_schemas_are_refused(tmp_path):
    write(tmp_path / "a.parquet")
    write(tmp_path / "b.parquet", x=[1, 2, 3, 4])
    with pytest.raises(DataError, match=r"b.parquet: `x` is int64, in .*a.parquet double"):
        StreamingTimeDataset(tmp_path, features=["x"], batch_size=2)


def test_a_file_that_changes_while_it_is_streamed_is_noticed(tmp_path):
    streamed = StreamingTimeDataset(write(tmp_path / "a.parquet"), features=["x"], batch_size=2)
    write(tmp_path / "a.parquet", time=[0, 1, 2, 3, 4, 5], row_group_size=3)
    with pytest.raises(DataError, match="has changed"):
        list(streamed)


def test_shards_are_not_written_over_others(tmp_path):
    ds = dataset()
    write_shards(ds, tmp_path, rows_per_shard=100)
    with pytest.raises(DataError, match="already holds Parquet files"):
        write_shards(ds, tmp_path, rows_per_shard=100)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pl.DataFrame({"when": [1.0]}), "no time column `time`"),
        (pl.DataFrame({"time": [1.0, None]}), "`time` must not be missing"),
        (pl.DataFrame({"time": []}, schema={"time": pl.Float64}), "no rows to write"),
        (pl.DataFrame({"time": ["monday"]}), "must hold datetimes or numbers"),
        ({"time": [1]}, "expected a polars or pandas frame"),
        (TimeDataset([[1.0]], [1.0], time=[0], label_end=[1], feature_names=["label"]), "rename it"),
    ],
)
def test_what_cannot_be_written_is_explained(tmp_path, data, message):
    with pytest.raises(DataError, match=message):
        write_shards(data, tmp_path, rows_per_shard=10)
    assert not list(tmp_path.iterdir())
