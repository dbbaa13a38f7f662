"""Autocallables: each path by a plain loop, closed forms of short notes, bad input."""

import itertools
import math
import re

import pytest
import torch
from lognormal_paths import flat_discount, lognormal_paths, mean_and_error
from scipy import stats

from pricers.instruments.autocallable import Autocallable

TIMES = [0.5, 1.0, 1.5, 2.0]
RATE = 0.03


def cash_flows(path: list[float], note: dict) -> float:
    """Present value of one path, told as the term sheet tells it."""
    value, missed = 0.0, 0.0
    for i, (time, spot) in enumerate(zip(TIMES, path, strict=True)):
        performance, discount = spot / note["reference"], math.exp(-RATE * time)
        due = note["coupon"][i] + (missed if note["memory"] else 0.0)
        if performance >= note["coupon_barrier"][i]:
            value += due * discount
            missed = 0.0
        else:
            missed = due
        if performance >= note["autocall_barrier"][i]:
            return value + discount
    return value + (1.0 if performance >= note["protection_barrier"] else performance) * discount


@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("own_coupon_barrier", [False, True])
def test_payoff_brute_force(memory: bool, own_coupon_barrier: bool):
    paths = lognormal_paths(TIMES, 400, rate=RATE, vol=0.35, seed=1)
    barriers = [1.1, 1.05, 1.0, 0.95]
    note = {
        "reference": 98.0,
        "autocall_barrier": barriers,
        "coupon": [0.02, 0.03, 0.04, 0.05],
        "protection_barrier": 0.7,
        "coupon_barrier": [0.8] * 4 if own_coupon_barrier else None,
        "memory": memory,
    }
    found = Autocallable(TIMES, **note).payoff(paths, flat_discount(RATE))
    told = note if own_coupon_barrier else {**note, "coupon_barrier": barriers}
    for path, ours in zip(paths.spot[:, 1:].tolist(), found.tolist(), strict=True):
        assert ours == pytest.approx(cash_flows(path, told), rel=1e-12)


def test_one_date_is_a_sum_of_digitals():
    vol, expiry, barrier, protection = 0.3, 1.0, 1.05, 0.8
    note = Autocallable([expiry], 100.0, barrier, coupon=0.08, protection_barrier=protection)
    d2 = [(math.log(1 / level) + (RATE - vol**2 / 2) * expiry) / vol for level in (barrier, protection)]
    normal = stats.norm.cdf
    # the coupon above the barrier, 1 above the protection and the asset below it
    asset_below = math.exp(RATE) * normal(-d2[1] - vol)
    exact = math.exp(-RATE) * (0.08 * normal(d2[0]) + normal(d2[1]) + asset_below)
    paths = lognormal_paths([expiry], 2**17, rate=RATE, vol=vol, seed=2)
    mean, error = mean_and_error(note.payoff(paths, flat_discount(RATE)))
    assert abs(mean - exact) < 4 * error < 2e-3


def test_two_dates_by_the_bivariate_normal():
    vol, barriers, coupon = 0.25, (1.02, 0.98), 0.04
    note = Autocallable([1.0, 2.0], 100.0, list(barriers), coupon, protection_barrier=1e-6, memory=True)
    d = [(math.log(1 / b) + (RATE - vol**2 / 2) * t) / (vol * math.sqrt(t)) for b, t in zip(barriers, (1.0, 2.0))]
    rho = math.sqrt(0.5)
    first = stats.norm.cdf(d[0])
    second = stats.multivariate_normal.cdf([-d[0], d[1]], cov=[[1, -rho], [-rho, 1]])  # not called, then above
    exact = math.exp(-RATE) * 1.04 * first + math.exp(-2 * RATE) * (0.08 * second + 1 - first)
    paths = lognormal_paths([1.0, 2.0], 2**17, rate=RATE, vol=vol, seed=3)
    mean, error = mean_and_error(note.payoff(paths, flat_discount(RATE)))
    assert abs(mean - exact) < 4 * error < 1e-3


def test_always_called_is_a_bill():
    paths = lognormal_paths(TIMES, 16)
    note = Autocallable(TIMES, 100.0, autocall_barrier=1e-6, coupon=0.05, protection_barrier=0.5)
    found = note.payoff(paths, flat_discount(RATE))
    torch.testing.assert_close(found, torch.full_like(found, 1.05 * math.exp(-RATE * 0.5)), rtol=1e-14, atol=0.0)


def test_batches_of_coupons_barriers_and_dates():
    paths = lognormal_paths(TIMES, 32, vol=0.4)
    coupons, protection = torch.tensor([[[0.02]], [[0.05]]]).double(), torch.tensor([0.6, 0.7, 0.9]).double()
    times = torch.tensor([[0.5, 1.0], [1.0, 2.0], [1.5, 2.0]]).double()
    whole = Autocallable(times, 100.0, [1.1, 1.0], coupons, protection, 0.8, True).payoff(paths, flat_discount(RATE))
    assert whole.shape == (2, 3, 32)
    for i, j in itertools.product(range(2), range(3)):
        alone = Autocallable(times[j], 100.0, [1.1, 1.0], coupons[i, 0, 0], protection[j], 0.8, True)
        torch.testing.assert_close(whole[i, j], alone.payoff(paths, flat_discount(RATE)), rtol=1e-14, atol=0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"times": [1.0, 0.5]}, "`times` must ascend strictly"),
        ({"times": [0.0, 0.5]}, "`times` must be above 0"),
        ({"times": [float("nan"), 0.5]}, "`times` must be finite"),
        ({"reference": 0.0}, "`reference` must be above 0"),
        ({"autocall_barrier": -1.0}, "`autocall_barrier` must be above 0"),
        ({"coupon": -0.01}, "`coupon` must be 0 or more, got -0.01"),
        ({"protection_barrier": float("inf")}, "`protection_barrier` must be finite"),
        ({"coupon_barrier": 0.0}, "`coupon_barrier` must be above 0"),
        ({"coupon": [0.1, 0.2, 0.3]}, "got shape (3,) beside `times` of shape (2,)"),
        ({"autocall_barrier": [1.0, 1.0, 1.0]}, "`autocall_barrier` must be one number or have one for each date"),
    ],
)
def test_bad_note_is_refused(changes: dict, message: str):
    good = {"times": [0.5, 1.0], "reference": 100.0, "autocall_barrier": 1.0, "coupon": 0.05, "protection_barrier": 0.7}
    with pytest.raises(ValueError, match=re.escape(message)):
        Autocallable(**{**good, **changes})
