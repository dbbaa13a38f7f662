"""`TimeDataset`: windows against a loop, gathering, the hash, what the constructor refuses, and its memory."""

import pickle
import subprocess
import sys
from datetime import UTC, date, datetime

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qfml.data import TimeDataset
from qfml.errors import DataError

N = 12
DAYS = np.datetime64("2020-01-01", "ns") + np.arange(N) * np.timedelta64(1, "D")


def arguments(**changes):
    """Arguments of a small valid data set, some of them changed."""
    rng = np.random.default_rng(0)
    usual = {"X": rng.standard_normal((N, 3)), "y": rng.standard_normal(N), "time": DAYS, "label_end": DAYS + 1}
    return usual | changes


def make(**changes):
    return TimeDataset(**arguments(**changes))


@st.composite
def panels(draw):
    """Rows sorted by (group, time): groups of 1 to 9 rows, uneven times, look-backs of uneven length."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    names = draw(st.permutations(["d", "a", "c", "b"]))
    group, time = [], []
    for name, size in zip(names, sizes):
        group += [name] * size
        time += np.cumsum(draw(st.lists(st.integers(1, 5), min_size=size, max_size=size))).tolist()
    back = draw(st.lists(st.integers(0, 30), min_size=len(time), max_size=len(time)))
    window = draw(st.integers(1, max(sizes)))
    return np.array(group), np.array(time), np.array(time) - np.array(back), window


def rows_of_windows(group, window):
    """For each row with a full window in its own group, the rows of that window; by counting, row by row."""
    windows = []
    for row in range(len(group)):
        own = [earlier for earlier in range(row + 1) if group[earlier] == group[row]]
        if len(own) >= window:
            windows.append(own[-window:])
    return np.array(windows)


def panel_dataset(group, time, start, window):
    rng = np.random.default_rng(len(time))
    X, y = rng.standard_normal((len(time), 2)).astype(np.float32), rng.standard_normal(len(time))
    weight, returns = rng.uniform(0, 2, len(time)), rng.uniform(-0.1, 0.1, len(time))
    ds = TimeDataset(
        X,
        y,
        time=time,
        label_end=time + 3,
        window_start=start,
        group=group,
        weight=weight,
        returns=returns,
        window=window,
    )
    return ds, X, y, weight, returns


@given(panels())
def test_windows_equal_a_brute_force_loop(panel):
    group, time, start, window = panel
    ds, X, y, weight, returns = panel_dataset(group, time, start, window)
    expected = rows_of_windows(group, window)
    last = expected[:, -1]
    assert len(ds) == len(expected)
    assert ds.dropped == ({"window not yet full": len(time) - len(expected)} if len(expected) < len(time) else {})
    x, labels, weights = ds.gather(torch.arange(len(ds)))
    np.testing.assert_array_equal(x.numpy(), X[expected])  # each window whole, its rows all of one group
    np.testing.assert_array_equal(labels.numpy(), y[last].astype(np.float32))
    np.testing.assert_array_equal(weights.numpy(), weight[last].astype(np.float32))
    np.testing.assert_array_equal(ds.returns, returns[last])
    np.testing.assert_array_equal(ds.time, time[last])
    np.testing.assert_array_equal(ds.label_end, time[last] + 3)
    np.testing.assert_array_equal(ds.window_start, start[expected].min(1))  # not always the window's first row
    np.testing.assert_array_equal(np.array(ds.group_names)[ds.group], group[last])


@given(panels(), st.data())
def test_gather_takes_ids_of_any_shape(panel, data):
    ds, *_ = panel_dataset(*panel)
    shape = data.draw(st.lists(st.integers(0, 3), max_size=3).map(tuple))
    count = int(np.prod(shape))
    ids = data.draw(st.lists(st.integers(0, len(ds) - 1), min_size=count, max_size=count))
    rows = torch.tensor(ids, dtype=torch.int64).reshape(shape)
    every = ds.gather(torch.arange(len(ds)))
    for got, whole in zip(ds.gather(rows), every, strict=True):
        assert got.shape == (*shape, *whole.shape[1:])
        assert torch.equal(got.reshape(count, *whole.shape[1:]), whole[rows.reshape(-1)])
    for got, whole in zip(ds[len(ds) - 1], every, strict=True):
        assert torch.equal(got, whole[-1])


@given(panels(), st.data())
def test_feature_rows_are_the_rows_seen_each_once(panel, data):
    group, time, start, window = panel
    ds, X, *_ = panel_dataset(group, time, start, window)
    rows = np.array(data.draw(st.lists(st.integers(0, len(ds) - 1), min_size=1, max_size=2 * len(ds))))
    seen = sorted({int(row) for sample in rows_of_windows(group, window)[rows] for row in sample})
    np.testing.assert_array_equal(ds.feature_rows(rows).numpy(), X[seen])


def test_windows_that_are_already_cut_are_the_same_as_windows_cut_here():
    here = make(window=4)
    X = arguments()["X"]
    cut = np.stack([X[end - 3 : end + 1] for end in range(3, N)])
    given_cut = TimeDataset(
        cut, arguments()["y"][3:], time=DAYS[3:], label_end=DAYS[3:] + 1, window_start=DAYS[: N - 3]
    )
    assert given_cut.window == 4
    rows = torch.tensor([[0, 8], [3, 3]])
    for a, b in zip(here.gather(rows), given_cut.gather(rows), strict=True):
        assert torch.equal(a, b)
    np.testing.assert_array_equal(here.window_start, given_cut.window_start)
    np.testing.assert_array_equal(given_cut.feature_rows([1]).numpy(), cut[1].astype(np.float32))


@pytest.mark.parametrize(("window", "weight"), [(None, None), (None, np.arange(N)), (5, None), (5, np.arange(N))])
def test_a_data_loader_batch_equals_gather(window, weight):
    ds = make(window=window, weight=weight)
    loader = torch.utils.data.DataLoader(ds, batch_size=5, shuffle=False)
    batches = list(loader)
    for i, batch in enumerate(batches):
        rows = torch.arange(5 * i, min(5 * i + 5, len(ds)))
        for got, expected in zip(batch, ds.gather(rows), strict=True):
            assert torch.equal(got, expected)
    assert sum(len(batch[0]) for batch in batches) == len(ds)


def test_a_data_loader_gathers_a_batch_at_once(monkeypatch):
    ds, calls = make(), []
    gather = TimeDataset.gather
    monkeypatch.setattr(TimeDataset, "gather", lambda self, rows: calls.append(len(rows)) or gather(self, rows))
    list(torch.utils.data.DataLoader(ds, batch_size=5))
    assert calls == [5, 5, 2]


def test_to_moves_the_tensors_and_keeps_the_rest(device):
    ds = make(window=3, weight=np.ones(N), group=["a"] * 6 + ["b"] * 6)
    moved = ds.to(device)
    assert {t.device.type for t in (moved.features, moved.ends, moved.y, moved.weight)} == {device.type}
    assert moved.data_hash == ds.data_hash
    assert moved.dropped == ds.dropped
    for got, expected in zip(moved.gather(torch.arange(3)), ds.gather(torch.arange(3)), strict=True):
        assert torch.equal(got.cpu(), expected)
    assert torch.equal(moved.feature_rows([0, 1]).cpu(), ds.feature_rows([0, 1]))


def test_meta_device_shows_that_every_tensor_moves():
    moved = make(window=3, weight=np.ones(N)).to("meta")
    assert all(t.is_meta for t in (moved.features, moved.ends, moved.y, moved.weight))
    assert isinstance(moved.time, np.ndarray)


def test_pickle_keeps_everything():
    ds = make(window=3, weight=np.ones(N), group=["a"] * 6 + ["b"] * 6, returns=np.zeros(N))
    copy = pickle.loads(pickle.dumps(ds))  # noqa: S301  (our own bytes; workers of a DataLoader do this)
    assert copy.data_hash == ds.data_hash
    assert copy.dropped == ds.dropped == {"window not yet full": 4}


def nudged(values, row=5, by=1):
    values = np.array(values)
    values[row] += by
    return values


FULL = {
    "group": ["a"] * 6 + ["b"] * 6,
    "weight": np.ones(N),
    "returns": np.zeros(N),
    "window_start": DAYS - 3,
    "feature_names": ["f", "g", "h"],
}


@pytest.mark.parametrize(
    "change",
    [
        {"X": nudged(arguments()["X"], (4, 2), 1e-3)},
        {"y": nudged(arguments()["y"], by=1e-3)},
        {"time": nudged(DAYS)},
        {"label_end": nudged(DAYS + 1)},
        {"window_start": nudged(DAYS - 3)},
        {"window_start": None},
        {"group": ["a"] * 5 + ["b"] * 7},
        {"group": ["a"] * 6 + ["c"] * 6},
        {"group": None},
        {"weight": nudged(np.ones(N), by=1e-3)},
        {"weight": None},
        {"returns": nudged(np.zeros(N), by=1e-6)},
        {"returns": None},
        {"feature_names": ["f", "g", "i"]},
        {"window": 1},
        {"window": 2},
        {"time": DAYS.astype(int), "label_end": DAYS.astype(int) + 1, "window_start": DAYS.astype(int) - 3},
    ],
    ids=lambda change: " ".join(change),
)
def test_data_hash_changes_with_each_field(change):
    assert make(**FULL).data_hash == make(**FULL).data_hash
    assert make(**FULL | change).data_hash != make(**FULL).data_hash


BAD = [
    ({"X": nudged(arguments()["X"], (4, 2), np.nan)}, r"`X` must be finite: 1 of 12 rows break this; first: row 4"),
    ({"X": nudged(arguments()["X"], (4, 2), np.inf)}, r"`X` must be finite: 1 of 12 rows"),
    ({"X": np.full((N, 3), 1e39)}, r"`X` must be finite: 12 of 12 rows"),  # more than float32 can hold
    ({"X": np.zeros(N)}, r"`X` must have shape \(N, F\) or \(N, L, F\), got \(12,\)"),
    ({"X": np.zeros((0, 3))}, "`X` has no rows"),
    ({"X": 1.0}, "`X` has no rows"),
    ({"X": np.full((N, 3), "1")}, "`X` must be numeric, got dtype <U1"),
    ({"X": np.full((N, 3), None)}, "`X` must be numeric, got dtype object"),
    ({"X": np.zeros((N, 3), complex)}, "`X` must be real, got dtype torch.complex128"),
    ({"X": np.zeros((N, 4, 3))}, "pass `window_start`"),
    ({"X": np.zeros((N, 4, 3)), "window_start": DAYS, "window": 2}, "`X` already holds windows"),
    ({"y": nudged(np.zeros(N), by=np.nan)}, "`y` must be finite: 1 of 12 rows break this; first: row 5: nan"),
    ({"y": np.zeros((N, 1))}, r"`y` must have shape \(12,\) like `X`'s rows, got \(12, 1\)"),
    ({"y": np.zeros(N - 1)}, r"`y` must have shape \(12,\)"),
    ({"weight": nudged(np.ones(N), by=-2)}, "`weight` must be finite and >= 0: 1 of 12 rows"),
    ({"weight": nudged(np.ones(N), by=np.nan)}, "`weight` must be finite and >= 0"),
    ({"weight": np.ones(N + 1)}, r"`weight` must have shape \(12,\)"),
    ({"returns": nudged(np.zeros(N), by=-1.01)}, "`returns` must be simple returns >= -1: 1 of 12 rows"),
    ({"returns": nudged(np.zeros(N), by=np.inf)}, "`returns` must be simple returns >= -1"),
    ({"returns": np.zeros(3)}, r"`returns` must have shape \(12,\)"),
    ({"returns": ["a"] * N}, "`returns` must be numeric, got dtype <U1"),
    ({"time": DAYS[:-1]}, r"`time` must have shape \(12,\)"),
    ({"label_end": DAYS[:-1]}, r"`label_end` must have shape \(12,\)"),
    ({"window_start": DAYS[:-1]}, r"`window_start` must have shape \(12,\)"),
    ({"group": ["a"]}, r"`group` must have shape \(12,\)"),
    ({"group": np.array(["a", None] * 6, dtype=object)}, "`group` must not be missing: 6 of 12 rows"),
    ({"group": np.array([1.0, np.nan] * 6)}, "`group` must not be missing: 6 of 12 rows"),
    ({"label_end": DAYS - 1}, "`label_end` must not lie before `time`: 12 of 12 rows"),
    (
        {"label_end": nudged(DAYS, by=-1)},
        "`label_end` must not lie before `time`: 1 of 12 rows break this; first: row 5",
    ),
    ({"window_start": nudged(DAYS)}, "`window_start` must not lie after `time`: 1 of 12 rows"),
    ({"time": nudged(DAYS, by=np.timedelta64("NaT"))}, "`time` must not be missing: 1 of 12 rows"),
    ({"label_end": nudged(DAYS, by=np.timedelta64("NaT"))}, "`label_end` must not be missing"),
    ({"time": nudged(np.arange(12.0), by=np.nan), "label_end": np.arange(12.0)}, "`time` must not be missing"),
    ({"time": DAYS.astype(str)}, "`time` must hold datetimes or numbers, got dtype <U"),
    ({"time": np.array(DAYS.astype(str), dtype=object)}, "`time` must hold numbers, or datetimes"),
    ({"label_end": np.arange(N)}, "`label_end` has dtype int64, `time` has .*: all times must be of one kind"),
    ({"time": np.arange(N)}, "`label_end` has dtype datetime64.*: all times must be of one kind"),
    ({"window_start": np.zeros(N)}, "`window_start` has dtype float64"),
    (
        {"label_end": np.full(N, np.datetime64("9999-12-31"))},
        "`label_end` must lie between 1677-09-22 and 2262-04-11.*row 0: 9999-12-31",
    ),
    ({"label_end": [date(9999, 12, 31)] * N}, "`label_end` .*nanoseconds"),
    ({"time": [datetime(2020, 1, i + 1) for i in range(N - 1)] + [datetime(2020, 2, 1, tzinfo=UTC)]}, "time zone"),
    ({"time": np.repeat(DAYS[::2], 2)}, r"two samples share the same \(time, group\); pass `group=`"),
    ({"time": np.repeat(DAYS[::2], 2), "label_end": DAYS + 9, "group": ["a"] * N}, "share the same.*: 6 of 12 rows"),
    ({"feature_names": ["a", "b"]}, "`feature_names` must be 3 distinct names"),
    ({"feature_names": ["a", "b", "b"]}, "`feature_names` must be 3 distinct names"),
    ({"window": 0}, "`window` must be at least 1 row, got 0"),
    ({"window": N + 1}, r"no sample is left: every row was dropped \(window not yet full\)"),
    ({"time": DAYS[::-1], "window": 2}, r"rows must be sorted by \(group, time\)"),
    ({"group": ["a", "b"] * 6, "window": 2}, r"rows must be sorted by \(group, time\)"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_what_breaks_a_rule_is_refused_by_name(change, message):
    usual = {"label_end": DAYS + np.timedelta64(60, "D")} if "time" in change else {}
    with pytest.raises(DataError, match=message):
        make(**usual | change)


def test_what_keeps_the_rules_at_their_edge_is_taken():
    make(label_end=DAYS, window_start=DAYS, weight=np.zeros(N), returns=np.full(N, -1.0))
    make(returns=np.full(N, np.nan))
    make(time=np.repeat(DAYS[::2], 2), group=["a", "b"] * 6, label_end=DAYS + np.timedelta64(9, "D"))
    shuffled = np.random.default_rng(0).permutation(N)
    np.testing.assert_array_equal(make(time=DAYS[shuffled], label_end=DAYS[shuffled] + 1).time, DAYS[shuffled])


NEW_YORK = pd.date_range("2020-03-01", periods=N, freq="D", tz="America/New_York")  # the clocks change within
IN_UTC = NEW_YORK.tz_convert("UTC").tz_localize(None).to_numpy()


@pytest.mark.parametrize(
    "times",
    [
        NEW_YORK,
        pd.Series(NEW_YORK, index=range(5, 5 + N)),
        list(NEW_YORK),
        NEW_YORK.to_pydatetime(),
        pl.Series(NEW_YORK),
    ],
    ids=["index", "series", "list", "datetimes", "polars"],
)
def test_times_with_a_zone_become_utc(times):
    np.testing.assert_array_equal(make(time=times, label_end=times).time, IN_UTC)


@pytest.mark.parametrize(
    "times",
    [
        DAYS.astype("datetime64[D]"),
        DAYS.astype("datetime64[s]"),
        pd.DatetimeIndex(DAYS),
        pd.Series(DAYS),
        pl.Series(DAYS),
        pl.Series(DAYS).cast(pl.Date),
        DAYS.astype("datetime64[D]").tolist(),
        DAYS.astype("datetime64[s]").tolist(),
    ],
    ids=["days", "seconds", "index", "series", "polars", "polars dates", "dates", "datetimes"],
)
def test_times_of_any_library_are_the_same_times(times):
    assert make(time=times, label_end=times).data_hash == make(label_end=DAYS).data_hash


def test_arrays_that_torch_will_not_take_are_copied_without_a_warning():
    plain = make(weight=np.ones(N))
    X, y, weight = arguments()["X"], arguments()["y"], np.ones(N)
    for array in (X, y, weight):
        array.flags.writeable = False
    assert make(X=X, y=y, weight=weight).data_hash == plain.data_hash
    assert make(X=X.astype(">f8"), y=y.astype(">f8"), weight=weight).data_hash == plain.data_hash
    backwards = np.ascontiguousarray(X[::-1, ::-1])[::-1, ::-1]
    assert make(X=backwards, y=y[::-1].copy()[::-1], weight=weight).data_hash == plain.data_hash
    assert make(X=pd.DataFrame(X), y=pd.Series(y), weight=pl.Series(weight)).data_hash == plain.data_hash
    assert make(X=X.tolist(), y=y.tolist(), weight=[1] * N).data_hash == plain.data_hash
    assert make(X=torch.tensor(X, requires_grad=True), y=y, weight=weight).data_hash == plain.data_hash


def test_nothing_passed_in_is_changed():
    given_in = arguments(window_start=DAYS - 3, weight=np.ones(N), returns=np.zeros(N), window=4)
    copies = {name: np.array(value) for name, value in given_in.items()}
    TimeDataset(**given_in)
    for name, value in given_in.items():
        np.testing.assert_array_equal(value, copies[name])


N_DAYS, N_ASSETS, N_FEATURES, WINDOW = 8313, 20, 10, 64


def test_windows_cost_less_than_the_features_themselves():
    rows = N_DAYS * N_ASSETS
    X, y = np.random.default_rng(0).standard_normal((rows, N_FEATURES), dtype=np.float32), np.zeros(rows, np.float32)
    time = np.tile(np.datetime64("1990-01-01", "ns") + np.arange(N_DAYS) * np.timedelta64(1, "D"), N_ASSETS)
    group = np.repeat(np.arange(N_ASSETS), N_DAYS)
    end = time + np.timedelta64(5, "D")
    ds = TimeDataset(X, y, time=time, label_end=end, window_start=time, group=group, window=WINDOW)
    assert len(ds) == (N_DAYS - WINDOW + 1) * N_ASSETS
    passed = {array.__array_interface__["data"][0] for array in (X, y, time, end)}
    held = {}
    for column in vars(ds).values():
        if isinstance(column, torch.Tensor):
            held[column.untyped_storage().data_ptr()] = column.untyped_storage().nbytes()
        elif isinstance(column, np.ndarray):
            base = column if column.base is None else column.base
            held[column.__array_interface__["data"][0]] = base.nbytes
    assert X.__array_interface__["data"][0] in held, "float32 features are not copied"
    extra = sum(size for pointer, size in held.items() if pointer not in passed)
    assert extra < 1.3 * X.nbytes, f"{extra / X.nbytes:.2f} times the features"


GATHER_MEMORY = """
import sys, threading, numpy as np, psutil, torch
from qfml.data import TimeDataset

torch.set_num_threads(1)
days, assets, features, window = map(int, sys.argv[1:])
process, stop, peak = psutil.Process(), threading.Event(), [0]

def watch():
    while not stop.wait(0.001):
        peak[0] = max(peak[0], process.memory_info().rss)

def build(days):
    rows = days * assets
    X, y = np.random.default_rng(0).standard_normal((rows, features), dtype=np.float32), np.zeros(rows, np.float32)
    time = np.tile(np.arange(days), assets)
    return X, y, dict(time=time, label_end=time + 1, group=np.repeat(np.arange(assets), days), window=window)

warm = build(200)
TimeDataset(warm[0], warm[1], **warm[2]).gather(torch.arange(1024))  # the libraries are loaded
X, y, options = build(days)
before = process.memory_info().rss
threading.Thread(target=watch, daemon=True).start()
ds = TimeDataset(X, y, **options)
for batch in range(10):
    x, labels = ds.gather(torch.randint(len(ds), (1024,)))
stop.set()
print(X.nbytes, len(ds) * x[0].numel() * 4, max(peak[0], process.memory_info().rss) - before)
"""


@pytest.mark.slow
def test_building_and_gathering_never_hold_all_windows():
    sizes = [str(size) for size in (N_DAYS, N_ASSETS, N_FEATURES, WINDOW)]
    finished = subprocess.run(
        [sys.executable, "-c", GATHER_MEMORY, *sizes], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    flat, windows, peak = map(int, finished.stdout.split())
    assert windows > 60 * flat
    # the finished data set, columns that are needed while it is checked, and a batch of 2.6 MB
    assert peak < 5 * flat, f"{peak / flat:.1f} times the features"
