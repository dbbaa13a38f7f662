"""`Callback.finished`: every fit once, as soon as it exists, with what `fit_many` returns in the end."""

import contextlib

import numpy as np

import qfml
from qfml.data import TimeDataset
from qfml.splits import WalkForward

ROWS = 200


def data():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((ROWS, 4)).astype(np.float32)
    time = np.datetime64("2010-01-01") + np.arange(ROWS)
    return TimeDataset(X, X[:, 0] + rng.standard_normal(ROWS), time=time, label_end=time + 1)


def members(n=5):
    train, val = np.arange(120), np.arange(120, ROWS)
    return [qfml.Member(qfml.MLP(hidden=(8,)), train, val, seed=i, lr=3e-2, patience=1 + i) for i in range(n)]


class Told(qfml.Callback):
    """Notes the order of what it is told."""

    def __init__(self, until=None):
        self.said, self.fits, self.until = [], {}, until

    def epoch(self, member, record, stopped):
        self.said.append(("epoch", member, record["epoch"], stopped))

    def finished(self, member, fit):
        self.said.append(("finished", member))
        assert member not in self.fits
        self.fits[member] = fit
        if len(self.fits) == self.until:
            raise KeyboardInterrupt

    def end(self, fits):
        assert {member: self.fits[member] for member in range(len(fits))} == dict(enumerate(fits))


def check_order(said, n):
    for member in range(n):
        own = [each for each in said if each[1] == member]
        assert own[-1] == ("finished", member)
        assert own[-2][3]  # its last epoch was said to be the last
        assert [each[0] for each in own].count("finished") == 1


def trainer(**more):
    return qfml.Trainer(max_epochs=12, batch_size=32, **more)


def test_every_fit_is_told_once_right_after_its_last_epoch():
    for block in (8, 2):  # one block, and several after another
        told = Told()
        fits = trainer(member_block=block).fit_many(members(), qfml.MSE(), data(), callbacks=[told])
        check_order(told.said, len(fits))
        ends = [each for each in told.said if each[0] == "finished"]
        assert len({fit.n_epochs for fit in fits}) > 1
        assert told.said.index(ends[0]) < len(told.said) - 2  # not all at the end


def test_those_that_time_stops_are_told_too():
    told = Told()
    fits = trainer(max_seconds=1e-9).fit_many(members(), qfml.MSE(), data(), callbacks=[told])
    assert {fit.status for fit in fits} == {"max_time"}
    assert sorted(told.fits) == list(range(5))


def test_members_that_join_are_told_under_their_own_numbers():
    waiting = members(9)[5:]
    told = Told()
    fits = trainer(member_block=8).fit_many(
        members(),
        qfml.MSE(),
        data(),
        callbacks=[told],
        refill=lambda free: [waiting.pop(0) for _ in range(free) if waiting],
    )
    assert len(fits) == 9
    assert [told.fits[i].seed for i in range(9)] == [fit.seed for fit in fits] == list(range(9))


def test_a_resumed_training_repeats_the_fits_that_it_has(tmp_path):
    first, again = Told(until=2), Told()
    where = {"checkpoint_dir": tmp_path / "checkpoints"}
    with contextlib.suppress(KeyboardInterrupt):
        trainer(checkpoint_seconds=0.0).fit_many(members(), qfml.MSE(), data(), callbacks=[first], **where)
    fits = trainer(checkpoint_seconds=0.0).fit_many(
        members(), qfml.MSE(), data(), callbacks=[again], resume=True, **where
    )
    check_order(again.said, len(fits))


def test_a_warm_started_walk_forward_numbers_the_members_of_all_folds():
    told, ds = Told(), data()
    told.end = lambda fits: None  # the last fold's alone
    returns = TimeDataset(ds.features, ds.y, time=ds.time, label_end=ds.label_end, returns=0.01 * ds.y.numpy())
    result = qfml.walk_forward(
        returns,
        splitter=WalkForward(train_size=80, test_size=40),
        network=qfml.MLP(hidden=(4,)),
        loss=qfml.MSE(),
        trainer=qfml.Trainer(max_epochs=2, batch_size=32),
        cost_bps=1.0,
        n_seeds=2,
        warm_start=True,
        baselines=(),
        n_bootstrap=0,
        callbacks=[told],
    )
    assert len(result.fits) == 6
    assert [told.fits[i] for i in range(6)] == [each.fit for each in result.fits]
