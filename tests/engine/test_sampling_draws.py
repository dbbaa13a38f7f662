"""Samplers: probabilities against binomial bands, equal shares, the reference bootstrap, one order per generator."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from qfml import config
from qfml.data import TimeDataset
from qfml.data.bootstrap import draw_probabilities
from qfml.engine.sampling import (
    SAMPLERS,
    ClassBalanced,
    Sequential,
    SequentialBootstrap,
    Shuffled,
    Weighted,
    weighted_draws,
)
from qfml.engine.streams import stream
from qfml.errors import ConfigError, UserError

N = 60
ROWS = np.random.default_rng(5).permutation(N)[:40]


def make_data(y=None, weight=None, window=None, group=None, length=4, features=None):
    rng = np.random.default_rng(0)
    X = rng.uniform(0.1, 2.0, (N, 3)) if features is None else features
    time = np.datetime64("2010-01-01") + (np.arange(N) if group is None else np.arange(N) // 2)
    y = rng.integers(0, 2, N) if y is None else y
    names = ["a", "b", "c"]
    return TimeDataset(
        X, y, time=time, label_end=time + length, weight=weight, window=window, group=group, feature_names=names
    )


def inside_binomial_bands(counts, n, probability):
    """Whether all counts are such as n draws give, at one false alarm in a million for all of them together."""
    level = 1e-6 / len(counts)
    low, high = stats.binom.ppf(level / 2, n, probability), stats.binom.isf(level / 2, n, probability)
    return bool(((counts >= low) & (counts <= high)).all())


def orders(sampler, ds, n, rows=ROWS):
    return np.stack([sampler.order(rows, ds, stream(1, "shuffle", epoch)) for epoch in range(n)])


def test_shuffled_takes_each_row_once_and_anywhere_with_the_same_chance():
    found = orders(Shuffled(), make_data(), 4000)
    assert (np.sort(found, axis=1) == np.sort(ROWS)).all()
    at_first = np.array([(found[:, 0] == row).sum() for row in ROWS])
    assert inside_binomial_bands(at_first, len(found), 1 / len(ROWS))


def test_sequential_goes_by_time_then_group():
    group = np.tile(["B", "A"], N // 2)
    ds = make_data(group=group)
    found = Sequential().order(ROWS, ds, torch.Generator())
    assert found.tolist() == sorted(ROWS.tolist(), key=lambda row: (ds.time[row], group[row]))


@pytest.mark.parametrize("source", ["weight", "column", "column of windows"])
def test_weighted_draws_each_row_in_proportion(source):
    weight = np.random.default_rng(1).exponential(1.0, N)
    weight[ROWS[:3]] = 0.0
    weight[ROWS[-1]] = 0.0
    features = np.stack([np.ones(N), weight, np.ones(N)], axis=1)
    if source == "weight":
        ds, sampler, own = make_data(weight=weight), Weighted(), weight[ROWS]
    elif source == "column":
        ds, sampler, own = make_data(features=features), Weighted(column="b"), weight[ROWS]
    else:  # the samples of a window are the rows from the fifth on
        ds, sampler, own = make_data(features=features, window=5), Weighted(column="b"), None
    rows = ROWS if own is not None else np.arange(40)
    own = weight[4:44] if own is None else own
    found = orders(sampler, ds, 500, rows)
    counts = np.array([(found == row).sum() for row in rows])
    assert inside_binomial_bands(counts, found.size, own / own.sum())
    assert (counts[own == 0] == 0).all()
    assert sampler.replaces_weight == (source == "weight")


def test_weighted_draws_never_take_a_weight_of_zero_at_the_end():
    weight = np.array([0.0, 0.1, 0.2, 0.3, 0.0, 0.0])
    drawn = weighted_draws(weight, 200_000, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == {1, 2, 3}


@pytest.mark.parametrize("n_classes", [2, 3, 7])
def test_class_balanced_gives_every_class_its_share_and_every_row_its_turn(n_classes):
    rng = np.random.default_rng(2)
    y = np.minimum(rng.geometric(0.5, N) - 1, n_classes - 1) - 1.0
    y[ROWS[:n_classes]] = np.arange(n_classes) - 1.0  # each is there
    ds = make_data(y=y)
    share = len(ROWS) / n_classes
    extra = np.zeros(n_classes)
    for order in orders(ClassBalanced(), ds, 300):
        assert np.isin(order, ROWS).all()
        counts = np.array([(y[order] == k - 1).sum() for k in range(n_classes)])
        assert counts.sum() == len(ROWS)
        assert set(counts) <= {math.floor(share), math.ceil(share)}
        extra += counts > math.floor(share)
        for k in range(n_classes):
            visits = np.array([(order == row).sum() for row in ROWS[y[ROWS] == k - 1]])
            assert visits.max() - visits.min() <= 1
    assert inside_binomial_bands(extra, 300, share % 1)


def test_class_balanced_mixes_the_classes():
    y = np.r_[np.zeros(30), np.ones(30)]
    found = orders(ClassBalanced(), make_data(y=y), 3000, np.arange(N))
    ones = (y[found] == 1).sum(0)  # at each place of the order
    assert inside_binomial_bands(ones, 3000, 0.5)
    rows = np.array([(found == row).sum() for row in range(N)])
    assert (rows == 3000).all()


def test_a_row_of_a_frequent_class_comes_as_often_as_any_other():
    y = np.r_[np.zeros(50), np.ones(10)]
    found = orders(ClassBalanced(), make_data(y=y), 2000, np.arange(N))
    counts = np.array([(found == row).sum() for row in range(N)])
    assert inside_binomial_bands(counts[:50], 2000, 30 / 50)
    assert (counts[50:] == 3 * 2000).all()


@pytest.mark.parametrize("grouped", [False, True])
def test_sequential_bootstrap_draws_row_by_row_as_the_book_says(grouped):
    group = np.tile(["B", "A"], N // 2) if grouped else None
    ds = make_data(group=group)
    found = SequentialBootstrap().order(ROWS, ds, stream(3, "x"))
    seed = int(torch.randint(2**63 - 1, (1,), generator=stream(3, "x")))
    drawn: list[int] = []
    time, end = ds.time[ROWS], ds.label_end[ROWS]
    codes = None if ds.group is None else ds.group[ROWS]
    # the reference runs through the labels by their time, asset by asset
    ranked = np.lexsort((time, np.zeros(len(ROWS)) if codes is None else codes))
    for uniform in np.random.default_rng(seed).random(len(ROWS)):
        probability = draw_probabilities(np.array(drawn, dtype=int), time, end, group=codes)
        place = np.searchsorted(np.cumsum(probability[ranked]), uniform, side="right")
        drawn.append(int(ranked[place]))
    assert found.tolist() == ROWS[drawn].tolist()


def test_sequential_bootstrap_overlaps_less_than_independent_draws():
    ds, rows = make_data(length=8), np.arange(N)
    bootstrap = orders(SequentialBootstrap(), ds, 600, rows)
    independent = orders(Weighted("a"), make_data(length=8, features=np.ones((N, 3))), 600, rows)

    def distinct(found):
        return np.array([len(np.unique(order)) for order in found])

    assert stats.ttest_ind(distinct(bootstrap), distinct(independent), alternative="greater").pvalue < 1e-6


SAMPLED = [Shuffled(), Sequential(), Weighted(), Weighted("c"), ClassBalanced(), SequentialBootstrap()]


@pytest.mark.parametrize("sampler", SAMPLED, ids=str)
def test_an_order_depends_on_the_generator_alone(sampler):
    ds = make_data(weight=np.random.default_rng(1).uniform(0.1, 1, N))
    before = ROWS.copy()
    first = sampler.order(ROWS, ds, stream(0, 7, "shuffle", 3))
    torch.rand(5)  # the global stream does not matter
    again = sampler.order(ROWS, ds, stream(0, 7, "shuffle", 3))
    assert first.tolist() == again.tolist()
    assert first.shape == ROWS.shape
    assert np.isin(first, ROWS).all()
    assert ROWS.tolist() == before.tolist()
    other = sampler.order(ROWS, ds, stream(0, 7, "shuffle", 4))
    assert (first.tolist() == other.tolist()) == isinstance(sampler, Sequential)


@pytest.mark.parametrize("sampler", SAMPLED, ids=str)
def test_a_sampler_survives_its_yaml_form_and_takes_a_single_row(sampler):
    assert config.build_kind(SAMPLERS, config.to_dict(sampler)) == sampler
    ds = make_data(weight=np.ones(N))
    assert sampler.order(np.array([11]), ds, stream(0)).tolist() == [11]


def test_shuffled_is_the_order_that_training_without_a_sampler_has():
    order = Shuffled().order(ROWS, make_data(), stream(0, 0, "shuffle", 0))
    assert order.tolist() == ROWS[torch.randperm(40, generator=stream(0, 0, "shuffle", 0)).numpy()].tolist()


@pytest.mark.parametrize(
    ("sampler", "data", "message"),
    [
        (Weighted(), {}, "the sampler `weighted` needs weights, and the samples have none"),
        (Weighted("d"), {}, "`column` must be one of a, b, c, got 'd'"),
        (Weighted("a"), {"features": -np.ones((N, 3))}, "`column` 'a' must be >= 0 to draw rows by: 40 of 40 are not"),
        (Weighted(), {"weight": np.zeros(N)}, "the weights of the samples must not all be 0 to draw rows by"),
        (ClassBalanced(), {"y": np.full(N, 0.5)}, "needs labels that are classes, whole numbers, got 0.5"),
        (SequentialBootstrap(), {"length": 0}, "`label_end` must lie after `time`"),
    ],
)
def test_what_cannot_be_sampled_is_refused(sampler, data, message):
    with pytest.raises(ValueError, match=message):
        sampler.order(ROWS, make_data(**data), stream(0))


def test_an_unknown_sampler_is_refused():
    with pytest.raises(ConfigError, match=r"`kind: weigthed` is not known .did you mean `weighted`"):
        config.build_kind(SAMPLERS, "weigthed")
    assert issubclass(ConfigError, UserError)
