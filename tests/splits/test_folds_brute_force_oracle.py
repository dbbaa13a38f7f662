"""Every splitter against the rule in prose, spelled out sample by sample in plain Python.

The oracle shares nothing with the library: it works on Python lists, looks at every pair, and takes calendar arithmetic
from pandas.
"""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from qfml.errors import SplitError
from qfml.splits import CombinatorialPurgedKFold, LookbackWarning, PurgedKFold, WalkForward, validation_tail

pytestmark = pytest.mark.filterwarnings(
    "ignore::qfml.splits.LookbackWarning"  # the rule without look-back purge is tested on data with look-backs
)


# --- samples -------------------------------------------------------------------------------------------------------


class Samples(SimpleNamespace):
    """Lists `time`, `end`, `start`, all of one ordered type, plus what the splitter gets to see."""


@st.composite
def samples(draw, least=3, most=14):
    """Irregular, possibly shuffled samples, several at a timestamp, with any label end and any look-back."""
    kind = draw(st.sampled_from(["int", "float", "datetime"]))
    gaps = draw(st.lists(st.integers(1, 6), min_size=(n := draw(st.integers(least, most))), max_size=n))
    n_at = draw(st.one_of(st.just([1] * n), st.lists(st.integers(1, 3), min_size=n, max_size=n)))
    time = [t for t, k in zip(itertools.accumulate(gaps), n_at) for _ in range(k)]
    far = draw(st.sampled_from([1, 4, 12]))
    end = [t + draw(st.integers(0, far)) for t in time]
    start = [t - draw(st.integers(0, far)) for t in time] if draw(st.booleans()) else list(time)
    order = draw(st.permutations(range(len(time)))) if draw(st.booleans()) else range(len(time))
    columns = [[column[i] for i in order] for column in (time, end, start)]
    event(kind)
    if kind == "datetime":
        # from a Thursday before a month of 29 days, so that business days and months matter
        columns = [[pd.Timestamp("2024-01-25 12:00") + pd.Timedelta(days=v) for v in column] for column in columns]
    elif kind == "float":
        columns = [[v / 4 for v in column] for column in columns]
    time, end, start = columns
    arrays = [np.array(c, dtype="datetime64[s]" if kind == "datetime" else kind) for c in columns]
    window_start = arrays[2] if time != start or draw(st.booleans()) else None
    seen = SimpleNamespace(time=arrays[0], label_end=arrays[1], window_start=window_start, group=None)
    return Samples(kind=kind, time=time, end=end, start=start, seen=seen)


def lengths(kind: str, *, least: int, most: int):
    """Settings and the function that adds their length to a time; counts are left to the caller."""
    if kind == "datetime":
        return st.one_of(
            st.integers(least, most).map(lambda n: (f"{n}D", lambda t: t + pd.Timedelta(days=n))),
            st.integers(least, most).map(lambda n: (f"{n}B", lambda t: t + n * pd.offsets.BDay() if n else t)),
            st.integers(least, 1).map(lambda n: (f"{n}M", lambda t: t + pd.DateOffset(months=n))),
        )
    unit = 1 if kind == "int" else 0.25
    return st.integers(least, most).map(lambda n: (f"{n * unit} units", lambda t: t + n * unit))


@st.composite
def embargoes(draw, kind):
    """(setting, kind, amount): amount is a count of timestamps, a function of their number, or one that adds a time."""
    which = draw(st.sampled_from(["none", "count", "share", "time"]))
    if which == "none":
        return 0, lambda stamps, at: True
    if which == "time":
        setting, add = draw(lengths(kind, least=0, most=6))
        return setting, lambda stamps, since: lambda then: then >= add(since)
    percent = draw(st.integers(1, 30))
    setting = draw(st.integers(1, 4) if which == "count" else st.sampled_from([f"{percent}%", percent / 100]))

    def count(n):
        return setting if which == "count" else -(-percent * n // 100)  # rounded up, in whole numbers

    def passes(stamps, since):
        barred = [stamp for stamp in stamps if stamp >= since][: count(len(stamps))]
        return lambda then: then not in barred

    return setting, passes


def is_past(passes, stamps, since, then) -> bool:
    """Whether `then` lies after the embargo that starts at `since`."""
    verdict = passes(stamps, since)
    return verdict if isinstance(verdict, bool) else verdict(then)


# --- the rule ------------------------------------------------------------------------------------------------------


def verdict(data, row, blocks, passes, purge_lookback, *, widens_gap=False) -> str:
    """What becomes of a sample outside the test set: train, purged or embargoed."""
    stamps = sorted(set(data.time))
    embargoed = False
    for block in blocks:
        a, b = min(data.time[i] for i in block), max(data.time[i] for i in block)
        e, s = max(data.end[i] for i in block), min(data.start[i] for i in block)
        time, end, start = data.time[row], data.end[row], data.start[row]
        if time < a:
            if not end <= a or (purge_lookback and not end < s):
                return "purged"
            embargoed |= widens_gap and not is_past(passes, stamps, end, a)
        else:
            assert time > b, "samples of one timestamp were separated"
            if not time >= e or (purge_lookback and not start > e):
                return "purged"
            embargoed |= not is_past(passes, stamps, e, time)
    return "embargoed" if embargoed else "train"


def expected_fold(data, candidates, blocks, passes, purge_lookback, **options):
    tested = sorted(itertools.chain(*blocks))
    fold = {"train": [], "purged": [], "embargoed": [], "test": tested}
    for row in candidates:
        if row not in tested:
            fold[verdict(data, row, blocks, passes, purge_lookback, **options)].append(row)
    return fold


def blocks_of_time(data, n_blocks):
    stamps = sorted(set(data.time))
    parts = [set(part) for part in np.array_split(np.array(stamps, dtype=object), n_blocks)]
    return [[row for row, time in enumerate(data.time) if time in part] for part in parts]


def assert_folds(splitter, data, expected):
    """The splitter gives exactly these folds, by `folds` and by `split`; an empty one is refused."""
    if not expected or any(not fold["train"] for fold in expected):
        event("empty")
        with pytest.raises(SplitError, match=r"no training samples|no fold fits|no test samples"):
            splitter.folds(data.seen)
        with pytest.raises(SplitError, match=r"no training samples|no fold fits|no test samples"):
            list(splitter.split(data.seen))
        return
    event("folds")
    found = splitter.folds(data.seen)
    assert [{name: getattr(fold, name).tolist() for name in expected[0]} for fold in found] == expected
    pairs = list(splitter.split(data.seen))
    assert [(train.tolist(), test.tolist()) for train, test in pairs] == [(f["train"], f["test"]) for f in expected]
    assert all(rows.dtype == np.int64 for pair in pairs for rows in pair)
    assert splitter.get_n_splits(data.seen) == len(expected)


# --- K-folds -------------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(st.data())
def test_purged_kfold_equals_the_rule(draw):
    data = draw.draw(samples())
    setting, passes = draw.draw(embargoes(data.kind))
    n_splits = draw.draw(st.integers(2, min(5, len(set(data.time)))))
    purge_lookback = draw.draw(st.booleans())
    everything = range(len(data.time))
    expected = [
        expected_fold(data, everything, [block], passes, purge_lookback) for block in blocks_of_time(data, n_splits)
    ]
    assert_folds(PurgedKFold(n_splits, embargo=setting, purge_lookback=purge_lookback), data, expected)


@settings(max_examples=200)
@given(st.data())
def test_combinatorial_purges_each_contiguous_block_on_its_own(draw):
    data = draw.draw(samples(4, 18))
    setting, passes = draw.draw(embargoes(data.kind))
    n_folds = draw.draw(st.integers(2, min(6, len(set(data.time)))))
    n_test_folds = draw.draw(st.integers(1, n_folds - 1))
    purge_lookback = draw.draw(st.booleans())
    blocks = blocks_of_time(data, n_folds)
    expected = []
    for chosen in itertools.combinations(range(n_folds), n_test_folds):
        runs = []
        for fold in chosen:
            if fold - 1 in chosen:
                runs[-1] = runs[-1] + blocks[fold]
            else:
                runs.append(blocks[fold])
        expected.append(expected_fold(data, range(len(data.time)), runs, passes, purge_lookback))
    splitter = CombinatorialPurgedKFold(n_folds, n_test_folds, embargo=setting, purge_lookback=purge_lookback)
    assert_folds(splitter, data, expected)


# --- walk-forward --------------------------------------------------------------------------------------------------


def walk(data, windows, passes, purge_lookback, refit_every):
    """Folds from (train times, test times) predicates, one training set for `refit_every` folds."""
    expected = []
    for first in range(0, len(windows), refit_every):
        together = windows[first : first + refit_every]
        tests = [[i for i, t in enumerate(data.time) if is_test(t)] for _, is_test in together]
        if not all(tests):
            return []
        candidates = [i for i, t in enumerate(data.time) if together[0][0](t)]
        # the shared training set must stand the test of each fold that uses it
        judged = [expected_fold(data, candidates, [test], passes, purge_lookback, widens_gap=True) for test in tests]
        shared = set(candidates).intersection(*(fold["train"] for fold in judged))
        not_purged = set(candidates).intersection(*({*fold["train"], *fold["embargoed"]} for fold in judged))
        for test in tests:
            expected.append(
                {
                    "train": sorted(shared),
                    "purged": sorted(set(candidates) - not_purged),
                    "embargoed": sorted(not_purged - shared),
                    "test": test,
                }
            )
    return expected


@settings(max_examples=200)
@given(st.data())
def test_walk_forward_by_counts_equals_the_rule(draw):
    data = draw.draw(samples(4, 20))
    stamps = sorted(set(data.time))
    setting, passes = draw.draw(embargoes(data.kind))
    purge_lookback, expanding, drop_last = (draw.draw(st.booleans()) for _ in range(3))
    train_size, test_size = draw.draw(st.integers(1, 8)), draw.draw(st.integers(1, 6))
    gap, step = draw.draw(st.integers(0, 3)), draw.draw(st.none() | st.integers(1, 6))
    max_train_size = draw.draw(st.none() | st.integers(1, 10)) if expanding else None
    refit_every = draw.draw(st.integers(1, 3))

    windows = []
    begin = train_size + gap
    while begin < len(stamps):
        stop = begin + test_size
        if stop <= len(stamps) or not drop_last:
            longest = max_train_size if expanding else train_size
            train = stamps[: begin - gap] if longest is None else stamps[: begin - gap][-longest:]
            windows.append((train.__contains__, stamps[begin:stop].__contains__))
        if stop >= len(stamps):
            break
        begin += test_size if step is None else step
    expected = walk(data, windows, passes, purge_lookback, refit_every)
    splitter = WalkForward(
        train_size,
        test_size,
        step=step,
        gap=gap,
        expanding=expanding,
        max_train_size=max_train_size,
        refit_every=refit_every,
        drop_last=drop_last,
        embargo=setting,
        purge_lookback=purge_lookback,
    )
    assert_folds(splitter, data, expected)


@settings(max_examples=200)
@given(st.data())
def test_walk_forward_by_lengths_of_time_equals_the_rule(draw):
    data = draw.draw(samples(6, 20))
    setting, passes = draw.draw(embargoes(data.kind))
    purge_lookback, expanding = draw.draw(st.booleans()), draw.draw(st.booleans())
    refit_every = draw.draw(st.integers(1, 3))
    unit = draw.draw(st.sampled_from(["D", "B", "M"] if data.kind == "datetime" else ["units"]))
    scale = 0.25 if data.kind == "float" else 1
    most = 2 if unit == "M" else 15
    train_size, test_size = draw.draw(st.integers(1, most)), draw.draw(st.integers(1, most))
    gap = draw.draw(st.integers(0, most // 3))

    def move(time, n):
        if unit == "D":
            return time + pd.Timedelta(days=n)
        if unit == "B":
            return time + n * pd.offsets.BDay() if n else time
        return time + pd.DateOffset(months=n) if unit == "M" else time + n * scale

    first = move(move(min(data.time), train_size), gap)
    windows = []
    for number in itertools.count():
        begin, stop = move(first, number * test_size), move(first, (number + 1) * test_size)
        if begin > max(data.time):
            break
        train_stop = move(begin, -gap)
        train_start = min(data.time) if expanding else move(train_stop, -train_size)
        windows.append(
            (
                lambda t, low=train_start, high=train_stop: low <= t < high,
                lambda t, low=begin, high=stop: low <= t < high,
            )
        )
    expected = walk(data, windows, passes, purge_lookback, refit_every)
    sizes = (n * scale if unit == "units" else n for n in (train_size, test_size, gap))
    train, test, between = (f"{n} {unit}" for n in sizes)
    splitter = WalkForward(
        train,
        test,
        gap=between,
        expanding=expanding,
        refit_every=refit_every,
        embargo=setting,
        purge_lookback=purge_lookback,
    )
    assert_folds(splitter, data, expected)


# --- validation tail -----------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(st.data())
def test_validation_tail_equals_the_rule(draw):
    data = draw.draw(samples(4, 14))
    setting, passes = draw.draw(embargoes(data.kind))
    purge_lookback = draw.draw(st.booleans())
    rows = sorted(draw.draw(st.sets(st.sampled_from(range(len(data.time))), min_size=3)))
    part = Samples(
        time=[data.time[i] for i in rows], end=[data.end[i] for i in rows], start=[data.start[i] for i in rows]
    )
    stamps = sorted(set(part.time))
    assume(len(stamps) > 1)
    which = draw.draw(st.sampled_from(["count", "share", "time"]))
    if which == "count":
        size = draw.draw(st.integers(1, len(stamps) - 1))
        tail = stamps[-size:]
    elif which == "share":
        size = draw.draw(st.sampled_from([0.1, 0.25, "40%"]))
        tail = stamps[-math.ceil(0.4 * len(stamps) if size == "40%" else size * len(stamps)) :]
    else:
        n = draw.draw(st.integers(1, 6))
        size = f"{n}D" if data.kind == "datetime" else f"{n} units"
        since = max(stamps) - (pd.Timedelta(days=n) if data.kind == "datetime" else n)
        tail = [stamp for stamp in stamps if stamp > since]
    assume(len(tail) < len(stamps))
    test = [i for i, t in enumerate(part.time) if t in tail]
    expected = expected_fold(part, range(len(rows)), [test], passes, purge_lookback, widens_gap=True)
    arguments = {"embargo": setting, "purge_lookback": purge_lookback}
    if not expected["train"]:
        with pytest.raises(SplitError, match="leaves no training samples"):
            validation_tail(data.seen, np.array(rows), size, **arguments)
        return
    fold = validation_tail(data.seen, np.array(draw.draw(st.permutations(rows))), size, **arguments)
    for name, places in expected.items():
        assert getattr(fold, name).tolist() == [rows[i] for i in places]


# --- the warning ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("splitter", [PurgedKFold(3), CombinatorialPurgedKFold(4, 2)])
def test_lookback_without_purge_warns_once_a_call_in_k_folds(splitter):
    time = np.arange(40)
    data = SimpleNamespace(time=time, label_end=time + 1, window_start=time - 3)
    with pytest.warns(LookbackWarning, match="purge_lookback") as caught:
        list(splitter.split(data))
    assert len(caught) == 1
