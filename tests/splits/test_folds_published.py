"""Published index sets, examples worked out on paper, and defects of other libraries that must not come back."""

from math import comb
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import references as ref

from qfml.splits import CombinatorialPurgedKFold, PurgedKFold, WalkForward

DAYS = np.arange("2024-01-01", "2024-01-21", dtype="datetime64[D]")
THREE_DAY_LABELS = SimpleNamespace(time=DAYS, label_end=DAYS + 3)


def lists(splitter, data):
    return [(train.tolist(), test.tolist()) for train, test in splitter.split(data)]


def test_purged_kfold_of_20_days_published():
    folds = lists(PurgedKFold(4), THREE_DAY_LABELS)
    assert [train for train, _ in folds] == ref.PURGED_KFOLD_20_DAYS
    assert [test for _, test in folds] == [[*range(start, start + 5)] for start in (0, 5, 10, 15)]


@pytest.mark.parametrize("unsorted", [False, True])
def test_embargo_of_20_days_on_paper(unsorted):
    # fold 1 tests days 5-9, its labels end by day 12: a count of 2 drops days 12 and 13, "2D" the same, 10 % of 20 too
    for embargo in (2, "2D", "10%", 0.1):
        fold = PurgedKFold(4, embargo=embargo).folds(THREE_DAY_LABELS)[1]
        assert fold.train.tolist() == [0, 1, 2, 14, 15, 16, 17, 18, 19]
        assert fold.purged.tolist() == [3, 4, 10, 11]
        assert fold.embargoed.tolist() == [12, 13]
    order = np.random.default_rng(0).permutation(20) if unsorted else np.arange(20)
    data = SimpleNamespace(time=DAYS[order], label_end=DAYS[order] + 3)
    fold = PurgedKFold(4, embargo=2).folds(data)[1]
    assert sorted(order[fold.train]) == [0, 1, 2, 14, 15, 16, 17, 18, 19]
    assert fold.train.tolist() == sorted(fold.train)


def test_lookback_purge_of_20_days_on_paper():
    # windows of 3 days: fold 1 sees prices of days 3 to 12, so labels must end before day 3, windows open after day 12
    data = SimpleNamespace(time=DAYS, label_end=DAYS + 1, window_start=DAYS - 2)
    fold = PurgedKFold(4, purge_lookback=True).folds(data)[1]
    assert fold.train.tolist() == [0, 1, *range(13, 20)]


def test_walk_forward_embargo_widens_the_gap_on_paper():
    # test from day 10: labels of 3 days must be known by day 10 (rows up to 7), by day 8 with an embargo of 2 (up to 5)
    assert lists(WalkForward(10, 10), THREE_DAY_LABELS) == [([*range(8)], [*range(10, 20)])]
    for embargo in (2, "2D", "10%"):
        fold = WalkForward(10, 10, embargo=embargo).folds(THREE_DAY_LABELS)[0]
        assert (fold.train.tolist(), fold.purged.tolist(), fold.embargoed.tolist()) == ([*range(6)], [8, 9], [6, 7])


def test_embargo_of_business_days_skips_the_weekend_on_paper():
    # 1 January 2024 is a Monday. Test Mon 8 to Fri 12 (rows 5-9), labels of a day: known by Sat 13; + 1B is Mon 15
    weekdays = DAYS[np.is_busday(DAYS)]
    fold = PurgedKFold(3, embargo="1B").folds(SimpleNamespace(time=weekdays, label_end=weekdays + 1))[1]
    assert fold.train.tolist() == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
    fold = PurgedKFold(3, embargo="2B").folds(SimpleNamespace(time=weekdays, label_end=weekdays + 1))[1]
    assert fold.embargoed.tolist() == [10]


@pytest.mark.parametrize(("shape", "counts"), ref.COMBINATORIAL_COUNTS.items())
def test_combinatorial_counts_published(shape, counts):
    splitter = CombinatorialPurgedKFold(*shape)
    assert (splitter.get_n_splits(), splitter.n_paths) == counts
    paths = splitter.paths()
    assert paths.shape == (shape[0], counts[1])
    # every fold runs through the splits that test it, each once
    assert np.array_equal(np.bincount(paths.ravel(), minlength=counts[0]), np.full(counts[0], shape[1]))
    assert (np.diff(paths, axis=1) > 0).all()


def test_combinatorial_paths_published():
    splitter = CombinatorialPurgedKFold(5, 2)
    assert splitter.paths().tolist() == ref.COMBINATORIAL_PATHS_5_2
    time = np.arange(20)
    tests = [test for _, test in splitter.split(time=time, label_end=time + 1)]
    for fold, splits in enumerate(splitter.paths()):
        for split in splits:
            assert set(range(4 * fold, 4 * fold + 4)) <= set(tests[split].tolist())


def test_path_predictions_complete_each_path_from_the_right_splits():
    splitter = CombinatorialPurgedKFold(5, 2)
    order = np.random.default_rng(1).permutation(23)
    time = np.arange(23)[order]
    data = SimpleNamespace(time=time, label_end=time + 1)
    folds = splitter.folds(data)
    made = [1000.0 * split + fold.test for split, fold in enumerate(folds)]
    joined = splitter.path_predictions(made, data)
    assert joined.shape == (23, splitter.n_paths)
    assert np.array_equal(joined % 1000, np.repeat(np.arange(23.0)[:, None], splitter.n_paths, axis=1))
    fold_of_row = np.searchsorted([5, 10, 15, 19], time, side="right")
    assert np.array_equal(joined // 1000, np.array(ref.COMBINATORIAL_PATHS_5_2)[fold_of_row])


@pytest.mark.slow
def test_every_split_of_16_choose_8_is_purged():
    time = np.arange(160)
    n = 0
    for train, test in CombinatorialPurgedKFold(16, 8).split(time=time, label_end=time + 2):
        state = np.zeros(162, dtype=int)
        state[test] = 1
        before_a_test = np.flatnonzero((state[:-2] == 0) & (state[1:-1] == 1))
        assert not np.intersect1d(train, before_a_test).size
        n += 1
    assert n == comb(16, 8)


def test_training_rows_never_overlap_a_test_set_whose_labels_shrink():
    # A purge that looked at the end of the first test label (4, not 40) would train on the test's own days.
    time = np.arange(30)
    end = time + 1
    end[10] = 24  # a long label in the middle of the test block
    fold = PurgedKFold(3).folds(time=time, label_end=end)[1]
    assert fold.train.tolist() == [*range(10), *range(24, 30)]
    assert not np.intersect1d(fold.train, fold.test).size


def test_embargo_of_a_combinatorial_split_acts_after_each_block():
    # Another library hard-codes it to zero here.
    time = np.arange(40)
    fold = CombinatorialPurgedKFold(8, 2, embargo=2).folds(time=time, label_end=time + 1)[9]  # tests blocks 1 and 4
    assert fold.test.tolist() == [*range(5, 10), *range(20, 25)]
    assert fold.embargoed.tolist() == [10, 11, 25, 26]


def test_percent_that_is_less_than_a_timestamp_still_embargoes_one():
    fold = PurgedKFold(4, embargo="1%").folds(THREE_DAY_LABELS)[0]
    assert fold.embargoed.tolist() == [7]


def test_panel_rows_of_one_timestamp_stay_together():
    # 3 assets, listed asset by asset; the third has half the history, so rows do not cut evenly but timestamps do
    time = np.concatenate([DAYS, DAYS, DAYS[10:]])
    group = np.repeat([0, 1, 2], [20, 20, 10])
    for train, test in PurgedKFold(4).split(SimpleNamespace(time=time, label_end=time + 1, group=group)):
        assert not np.intersect1d(time[train], time[test]).size
        assert np.unique(time[test]).size == 5


def test_walk_forward_years_are_calendar_years():
    days = np.arange("2000-02-29", "2008-03-01", dtype="datetime64[D]")
    folds = WalkForward("5Y", "1Y", expanding=True).folds(time=days, label_end=days + 1)
    assert [str(days[fold.test[0]]) for fold in folds] == ["2005-02-28", "2006-02-28", "2007-02-28", "2008-02-28"]
    # each test block ends where the next one starts: nothing untested, nothing twice
    assert np.array_equal(np.concatenate([fold.test for fold in folds]), np.arange(folds[0].test[0], days.size))
    assert len(WalkForward("5Y", "1Y", drop_last=True).folds(time=days, label_end=days + 1)) == 3


def test_walk_forward_abuts_from_the_end_of_a_month():
    days = np.arange("2023-01-30", "2024-06-01", dtype="datetime64[D]")
    folds = WalkForward("1M", "1M").folds(time=days, label_end=days + 1)
    assert np.array_equal(np.concatenate([fold.test for fold in folds]), np.arange(folds[0].test[0], days.size))


def test_refit_every_reuses_the_training_set():
    time = np.arange(30)
    folds = WalkForward(10, 4, refit_every=2).folds(time=time, label_end=time + 2)
    assert [fold.refit for fold in folds] == [True, False, True, False, True]
    assert folds[1].train.tolist() == folds[0].train.tolist() == [*range(9)]
    assert folds[2].train.tolist() == [*range(8, 17)]
    assert [fold.test[0] for fold in folds] == [10, 14, 18, 22, 26]


def test_label_horizon_by_count_follows_the_timestamps_of_a_panel():
    # gaps are irregular: two timestamps ahead of day 4 is day 20
    days = DAYS[[0, 1, 4, 9, 19]]
    time = np.repeat(days, 2)
    end = np.append(days[2:], [days[-1] + 1] * 2)
    told = PurgedKFold(5).folds(time=time, label_end=np.repeat(end, 2))
    derived = PurgedKFold(5, label_horizon=2).folds(time=time)
    assert [f.train.tolist() for f in told] == [f.train.tolist() for f in derived]


def test_pandas_index_with_a_time_zone_means_the_same_instants():
    local = pd.date_range("2024-03-01", periods=60, freq="D", tz="America/New_York")  # summer time starts on 10 March
    assert local.tz_convert("UTC").hour.nunique() == 2
    frame = pd.DataFrame({"x": np.zeros(60)}, index=local)
    utc = local.tz_convert("UTC").tz_localize(None)
    by_frame = PurgedKFold(3, label_horizon="36h").folds(frame)
    by_array = PurgedKFold(3).folds(time=utc.to_numpy(), label_end=(utc + pd.Timedelta("36h")).to_numpy())
    for ours, theirs in zip(by_frame, by_array):
        assert ours.train.tolist() == theirs.train.tolist()
