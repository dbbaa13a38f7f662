"""Data that a backtest would read wrongly are refused before anything is trained."""

import numpy as np
import polars as pl
import pytest

import qfml
from qfml.data import Returns, TimeDataset
from qfml.data.barriers import MetaLabel
from qfml.data.labels import ForwardReturn
from qfml.errors import DataError, UserError
from qfml.splits import WalkForward


def prices(n=300, **columns):
    rng = np.random.default_rng(0)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, n)))
    time = np.datetime64("2015-01-01") + np.arange(n)
    return pl.DataFrame({"time": time, "close": close} | columns)


def backtest(ds, **changed):
    trainer = qfml.Trainer(max_epochs=1, batch_size=64)
    options = {"network": qfml.MLP(hidden=(4,)), "loss": qfml.BCE(), "cost_bps": 1.0, "n_bootstrap": 0} | changed
    return qfml.walk_forward(ds, splitter=WalkForward(train_size=100, test_size=50), trainer=trainer, **options)


def meta(sides):
    label = MetaLabel(horizon=3, vol_window=5, profit_take=2.0, stop_loss=2.0)
    return TimeDataset.from_frame(prices(len(sides), side=sides), features=[Returns(horizons=(1,))], label=label)


def test_a_meta_label_says_nothing_of_the_direction_and_is_refused():
    ds = meta(np.where(np.arange(300) % 2, 1, -1))
    assert ds.returns is None
    with pytest.raises(DataError, match="for a meta-label, which sizes a bet and does not say its direction"):
        backtest(ds)


def test_rows_without_a_label_in_mid_history_are_counted_as_such_and_refused():
    ds = meta(np.where(np.arange(1500) % 5, 0, 1))
    inside = ds.dropped["no label in mid-history"]
    assert inside == 4 * (len(ds) - 1), "four days without a bet between any two bets"
    assert sum(ds.dropped.values()) + len(ds) == 1500
    with pytest.raises(DataError, match=rf"no label \(here {inside}\)"):
        backtest(ds)


def test_a_label_on_every_row_is_accepted():
    ds = TimeDataset.from_frame(prices(), features=[Returns(horizons=(1,))], label=ForwardReturn(horizon=1))
    assert ds.returns is not None
    assert backtest(ds, loss=qfml.MSE()).metrics["folds"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_trials": 0}, "`n_trials` counts this configuration too and is at least 1, got 0"),
        ({"trial_variance": -1.0}, "`trial_variance` must not be negative, got -1.0"),
    ],
)
def test_trials_are_checked_before_training(change, message):
    ds = TimeDataset.from_frame(prices(), features=[Returns(horizons=(1,))], label=ForwardReturn(horizon=1))
    with pytest.raises(UserError, match=message):
        backtest(ds, **change)
