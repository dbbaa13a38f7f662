"""What cannot be split is refused, with the reason."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from qfml.config import build_kind, config_hash, to_dict
from qfml.errors import ConfigError, SplitError
from qfml.splits import SPLITTERS, CombinatorialPurgedKFold, PurgedKFold, WalkForward, validation_tail

N = np.arange(12)
DAYS = np.arange("2024-01-01", "2024-01-13", dtype="datetime64[D]")


@pytest.mark.parametrize("splitter", [PurgedKFold(3), CombinatorialPurgedKFold(4, 2), WalkForward(4, 2)])
@pytest.mark.parametrize(
    "data",
    [
        np.zeros((12, 2)),
        torch.zeros(12, 2),
        [[0.0]] * 12,
        pd.DataFrame({"time": DAYS, "label_end": DAYS + 1}),  # columns are features, whatever their names
        pd.DataFrame({"x": N}, index=N),  # a plain index is not time
        pl.DataFrame({"time": DAYS, "label_end": DAYS + 1}),
        None,
    ],
    ids=["array", "tensor", "list", "columns", "integer index", "polars", "nothing"],
)
def test_data_without_time_is_refused_at_the_call(splitter, data):
    with pytest.raises(SplitError, match="no times to split by"):
        splitter.split(data)  # before the first fold is asked for
    with pytest.raises(SplitError, match="no times to split by"):
        splitter.folds(data)


@pytest.mark.parametrize(
    ("time", "label_end", "window_start", "message"),
    [
        (N, None, None, "no label ends to purge by"),
        (N, N - 1, None, "`label_end` must not be before `time`.* 12 of 12 samples.*rows: .0, 1, 2, 3, 4."),
        (N, N + 1, N + 1, "`window_start` must not be after `time`"),
        (N, N[:5] + 1, None, "`time` has 12 values but `label_end` has 5"),
        (DAYS, N + 1, None, "`time` holds datetimes but `label_end` holds plain numbers"),
        (np.where(N == 3, np.datetime64("NaT"), DAYS), DAYS + 1, None, "`time` has 1 missing values"),
        (np.where(N == 3, np.nan, N), N + 1.0, None, "`time` has 1 values that are NaN or infinite"),
        (N, np.where(N == 3, np.inf, N + 1), None, "`label_end` has 1 values that are NaN or infinite"),
        (N.reshape(3, 4), N + 1, None, "one-dimensional"),
        (N[:0], N[:0], None, "empty"),
        (N.astype(str), N + 1, None, "must hold datetimes, integers or floats"),
        (np.array([None] * 12), N + 1, None, "missing values|must hold datetimes"),
        (N.astype(np.uint64) + np.uint64(2**63), N + 1, None, "beyond 64 bits"),
        (N + 2**60, N + 2.0**61, None, "comparing them would round"),
        (np.array(["1066-10-14"] * 12, dtype="datetime64[D]"), DAYS, None, "must lie in the years"),
    ],
)
def test_malformed_times_are_refused(time, label_end, window_start, message):
    with pytest.raises(SplitError, match=message):
        PurgedKFold(3).split(time=time, label_end=label_end, window_start=window_start)


def test_times_of_another_length_than_the_data_are_refused():
    with pytest.raises(SplitError, match="the data have 10 rows but `time` has 12 values"):
        PurgedKFold(3).split(np.zeros((10, 2)), time=N, label_end=N + 1)


def test_label_ends_given_twice_are_refused():
    with pytest.raises(SplitError, match="given twice"):
        PurgedKFold(3, label_horizon=1).split(SimpleNamespace(time=N, label_end=N + 1))


def test_label_horizon_longer_than_the_data_is_refused():
    with pytest.raises(SplitError, match="`label_horizon` is 12 timestamps, but the data have only 12"):
        PurgedKFold(3, label_horizon=12).split(time=N)


def test_index_with_two_levels_of_datetimes_is_refused():
    index = pd.MultiIndex.from_arrays([DAYS, DAYS + 1])
    with pytest.raises(SplitError, match="more than one level of datetimes"):
        PurgedKFold(3, label_horizon=1).split(pd.Series(N, index=index))


@pytest.mark.parametrize("splitter", [PurgedKFold(5), CombinatorialPurgedKFold(5, 1)])
def test_fewer_timestamps_than_folds_are_refused(splitter):
    time = np.repeat(N[:4], 3)
    with pytest.raises(SplitError, match="5 folds need at least 5 distinct timestamps, but the data have 4"):
        list(splitter.split(time=time, label_end=time + 1))


def test_fold_without_training_rows_says_what_took_them():
    with pytest.raises(
        SplitError, match=r"fold 1 \(test 2024-01-05 to 2024-01-08\) has no training samples: of 8 .* 8 "
    ):
        list(PurgedKFold(3).split(time=DAYS, label_end=DAYS + np.where(N < 4, 30, 40)[::-1] * (N > 3) + 5))
    with pytest.raises(SplitError, match="of 8 candidates the purge took 1 and the embargo the other 7"):
        list(PurgedKFold(3, embargo=9).split(time=N, label_end=N + 2))
    with pytest.raises(SplitError, match="of 4 candidates the purge took 2 and the embargo the other 2"):
        list(WalkForward(4, 2, embargo="5 units").split(time=N, label_end=N + 3))


@pytest.mark.parametrize(
    ("splitter", "message"),
    [
        (WalkForward(12, 2), "no fold fits: the data have 12 timestamps from 2024-01-01 to 2024-01-12"),
        (WalkForward("1Y", "1M"), "no fold fits.*no test period of 1M after training on 1Y"),
        (WalkForward(8, 5, drop_last=True), "no complete test period"),
        (WalkForward("2D", "4h"), "fold 1 has no test samples"),
    ],
)
def test_walk_forward_that_does_not_fit_is_refused(splitter, message):
    with pytest.raises(SplitError, match=message):
        list(splitter.split(time=DAYS, label_end=DAYS + np.timedelta64(1, "h")))


def test_number_of_walk_forward_folds_needs_data():
    with pytest.raises(SplitError, match="depends on the data"):
        WalkForward(4, 2).get_n_splits()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PurgedKFold(1), "`n_splits` must be a whole number of at least 2, got 1"),
        (lambda: PurgedKFold(True), "`n_splits` must be a whole number"),
        (lambda: CombinatorialPurgedKFold(4, 4), "`n_test_folds` must be less than `n_folds`"),
        (lambda: CombinatorialPurgedKFold(4, 0), "`n_test_folds` must be a whole number of at least 1"),
        (lambda: WalkForward(0, 1), "`train_size` must be at least 1"),
        (lambda: WalkForward("5Q", 1), "`train_size` must be a number and a unit"),
        (lambda: WalkForward(5, 1, gap=-1), "`gap` must be at least 0"),
        (lambda: WalkForward(5, 1, step="0D"), "`step` must be positive"),
        (lambda: WalkForward(5, 1, refit_every=0), "`refit_every`"),
        (lambda: WalkForward(5, 1, max_train_size=9), "`max_train_size` limits an expanding window"),
        (lambda: PurgedKFold(3, embargo="-2D"), "`embargo` must be at least 0"),
        (lambda: PurgedKFold(3, label_horizon=0), "`label_horizon` must be at least 1"),
    ],
)
def test_settings_are_checked_when_made(make, message):
    with pytest.raises(SplitError, match=message):
        make()


def test_validation_tail_that_takes_everything_is_refused():
    data = SimpleNamespace(time=N, label_end=N + 1)
    with pytest.raises(SplitError, match="leaves 0 of 12 timestamps"):
        validation_tail(data, N, 12)
    with pytest.raises(SplitError, match="`size` must be a whole number of at least 1"):
        validation_tail(data, N, 0.0)


CONFIGS = [
    {"kind": "walk_forward", "train_size": "5Y", "test_size": "63B", "embargo": "5D", "refit_every": 2},
    {
        "kind": "walk_forward",
        "train_size": 100,
        "test_size": 20,
        "embargo": 5,
        "expanding": True,
        "max_train_size": 500,
    },
    {"kind": "purged_kfold", "n_splits": 5, "embargo": "1%", "purge_lookback": True},
    {"kind": "purged_kfold", "n_splits": 5, "embargo": 0.01, "label_horizon": "5D"},
    {"kind": "combinatorial_purged_kfold", "n_folds": 10, "n_test_folds": 2, "label_horizon": 5},
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config["kind"])
def test_splitters_are_their_config(config):
    splitter = build_kind(SPLITTERS, config)
    assert type(splitter) is SPLITTERS[config["kind"]]
    written = to_dict(splitter)
    assert config.items() <= written.items()
    assert build_kind(SPLITTERS, written) == splitter
    assert config_hash(build_kind(SPLITTERS, written)) == config_hash(splitter)


def test_timedelta_and_its_string_are_the_same_splitter():
    splitter = PurgedKFold(5, embargo=np.timedelta64(5, "D"))
    assert splitter == PurgedKFold(5, embargo="5D")
    assert config_hash(splitter) == config_hash(PurgedKFold(5, embargo="5D"))


def test_config_errors_name_the_key():
    with pytest.raises(ConfigError, match="did you mean `embargo`"):
        build_kind(SPLITTERS, {"kind": "purged_kfold", "n_splits": 5, "embago": 3})
    with pytest.raises(ConfigError, match="`embargo` must be a number and a unit"):
        build_kind(SPLITTERS, {"kind": "purged_kfold", "n_splits": 5, "embargo": "3 parsecs"})
