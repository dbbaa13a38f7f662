"""Forwards by put-call parity, against the ones from which the prices were made."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pricers.black import black_price
from qfml.calibration.forwards import parity_forward, rate_or_curve
from qfml.errors import DataError

STRIKES = np.linspace(70.0, 130.0, 13)


def chain(strikes=STRIKES, forward=101.3, discount=0.96, expiry=0.75, vol=0.25):
    """Calls and puts by Black's formula."""
    strikes = torch.from_numpy(np.asarray(strikes, float))
    return [black_price(forward, strikes, expiry, vol, discount, option).numpy() for option in ("call", "put")]


@given(
    forward=st.floats(0.5, 5000.0),
    discount=st.floats(0.5, 1.1),
    n_pairs=st.integers(2, 30),
)
@settings(max_examples=20, deadline=None)
def test_exact_prices_give_the_forward_and_the_discount_factor_back(forward, discount, n_pairs):
    strikes = forward * np.linspace(0.7, 1.4, n_pairs)
    call, put = chain(strikes, forward, discount)
    fit = parity_forward(strikes, call, put)
    assert fit.forward == pytest.approx(forward, rel=1e-10)
    assert fit.discount == pytest.approx(discount, rel=1e-10)
    assert not fit.outlier.any()
    known = parity_forward(strikes, call, put, discount=discount)
    assert known.forward == pytest.approx(forward, rel=1e-12)
    assert known.discount == discount
    assert known.discount_std_error == 0.0


def test_the_standard_errors_are_those_of_repeated_noise():
    rng = np.random.default_rng(7)
    call, put = chain()
    errors, stated = [], []
    for _ in range(400):
        fit = parity_forward(STRIKES, call + 0.05 * rng.standard_normal(13), put + 0.05 * rng.standard_normal(13))
        errors.append((fit.forward - 101.3, fit.discount - 0.96))
        stated.append((fit.forward_std_error, fit.discount_std_error))
    errors, stated = np.array(errors), np.array(stated)
    # those of least squares
    noise = np.sqrt(2.0) * 0.05
    ideal = noise / np.array([0.96 * np.sqrt(13.0), np.sqrt(np.square(STRIKES - STRIKES.mean()).sum())])
    np.testing.assert_allclose(errors.std(axis=0), ideal, rtol=0.2)
    np.testing.assert_allclose(np.sqrt(np.square(stated).mean(axis=0)), errors.std(axis=0), rtol=0.2)
    assert (np.abs(errors.mean(axis=0)) < 4.0 * errors.std(axis=0) / 20.0).all()


def shares_covered(n_pairs, discount, n_draws, rng):
    """How often 95 % intervals, by Student's law, of forward and discount factor hold the truth."""
    strikes = np.linspace(70.0, 130.0, n_pairs)
    hits = np.zeros(2)
    for _ in range(n_draws):
        call = 0.96 * (101.3 - strikes) + 0.07 * rng.standard_normal(n_pairs)
        fit = parity_forward(strikes, call, np.zeros(n_pairs), discount=discount)
        quantile = stats.t.ppf(0.975, fit.degrees_of_freedom)
        hits += (
            abs(fit.forward - 101.3) <= quantile * fit.forward_std_error,
            (abs(fit.discount - 0.96) <= quantile * fit.discount_std_error),
        )
    return hits / n_draws


@pytest.mark.parametrize(("n_pairs", "discount"), [(3, None), (4, None), (5, None), (6, None), (13, None), (5, 0.96)])
def test_intervals_of_the_stated_errors_hold_the_truth_as_often_as_they_say(n_pairs, discount):
    n_draws = 300
    found = shares_covered(n_pairs, discount, n_draws, np.random.default_rng(n_pairs))
    # the one percent that the tests for outliers may call false costs one percent of coverage at most
    least = stats.binom.ppf(1e-3, n_draws, 0.94) / n_draws
    most = stats.binom.ppf(1.0 - 1e-3, n_draws, 0.95) / n_draws
    assert (found >= least).all(), (found, least)
    assert found[0] <= most, (found, most)


@pytest.mark.slow
@pytest.mark.parametrize("n_pairs", [4, 6, 13])
def test_intervals_hold_the_truth_within_a_percent_and_a_half(n_pairs):
    found = shares_covered(n_pairs, None, 4000, np.random.default_rng(100 + n_pairs))
    assert (np.abs(found - 0.95) < 0.015 + 4.0 * np.sqrt(0.95 * 0.05 / 4000)).all(), found


def test_pairs_without_a_fault_are_kept():
    rng = np.random.default_rng(17)
    n_left_out = dict.fromkeys((3, 4, 6, 13), 0)
    for n_pairs in n_left_out:
        strikes = np.linspace(70.0, 130.0, n_pairs)
        for _ in range(100):
            call = 0.96 * (101.3 - strikes) + 0.07 * rng.standard_normal(n_pairs)
            n_left_out[n_pairs] += int(parity_forward(strikes, call, np.zeros(n_pairs)).outlier.any())
    assert n_left_out[3] == n_left_out[4] == 0
    # 1 % for each test, of which there are up to 4 for 13 pairs; drawn at random, at most 4 % plus 3 deviations
    assert n_left_out[6] <= 8
    assert n_left_out[13] <= 10


def test_several_stale_prices_are_left_out_together():
    rng = np.random.default_rng(23)
    call, put = chain()
    call = call + 0.02 * rng.standard_normal(13)
    call[[2, 9, 11]] += np.array([1.0, 1.5, 1.1])
    fit = parity_forward(STRIKES, call, put)
    assert fit.outlier.nonzero()[0].tolist() == [2, 9, 11]
    assert fit.degrees_of_freedom == 8
    assert abs(fit.forward - 101.3) < stats.t.ppf(0.999, 8) * fit.forward_std_error


@pytest.mark.parametrize("discount", [None, 0.96])
def test_one_stale_price_is_left_out(discount):
    call, put = chain()
    call[9] += 3.0
    fit = parity_forward(STRIKES, call, put, discount=discount)
    assert fit.forward == pytest.approx(101.3, rel=1e-9)
    assert fit.outlier.nonzero()[0].tolist() == [9]
    rng = np.random.default_rng(3)
    fit = parity_forward(STRIKES, call + 0.02 * rng.standard_normal(13), put, discount=discount)
    assert fit.forward == pytest.approx(101.3, abs=0.05)
    assert fit.outlier.nonzero()[0].tolist() == [9]


def test_wide_markets_count_less():
    rng = np.random.default_rng(11)
    call, put = chain()
    width = np.where(np.abs(STRIKES - 100.0) > 16.0, 1.0, 0.02)
    errors = {"weighted": [], "equal": []}
    for _ in range(100):
        noisy = call + width * rng.standard_normal(13)
        errors["weighted"].append(parity_forward(STRIKES, noisy, put, width).forward - 101.3)
        errors["equal"].append(parity_forward(STRIKES, noisy, put).forward - 101.3)
    assert np.std(errors["weighted"]) < 0.5 * np.std(errors["equal"])
    ideal = 0.02 / (0.96 * np.sqrt((width < 0.5).sum()))
    assert np.std(errors["weighted"]) < 1.5 * ideal


def test_two_pairs_have_no_standard_error():
    call, put = chain([90.0, 110.0])
    fit = parity_forward(np.array([90.0, 110.0]), call, put)
    assert fit.forward == pytest.approx(101.3, rel=1e-12)
    assert np.isnan(fit.forward_std_error)


def test_what_implies_no_forward_is_refused():
    with pytest.raises(DataError, match=r"needs a call and a put at two strikes or more, got 1; give `forward`"):
        parity_forward(np.array([100.0]), np.array([5.0]), np.array([4.0]))
    call, put = chain()
    with pytest.raises(DataError, match=r"a discount factor in \[0\.3, 1\.5\], got .*are the options European"):
        parity_forward(STRIKES, 2.0 * call, 2.0 * put)  # of contracts on two shares
    with pytest.raises(DataError, match=r"must imply a forward above 0"):
        parity_forward(STRIKES, put, call)  # the wrong way round


def test_curves_are_checked():
    assert rate_or_curve("rates", 0.03) == 0.03
    for bad, message in (
        ([0.03, 0.04], r"`rates` must be a number, a pair \(times, rates\)"),
        ("3 %", r"`rates` must be a number"),
        ({"tenor": [1.0], "rates": [0.03]}, r"must have the keys times and rates, got tenor, rates"),
        (([0.5, 1.0], [3.0, 3.5]), r"must be decimal, in \[-1, 1\], got 3\.5"),
        (([1.0, 0.5], [0.03, 0.03]), r"`rates` must be a number, .*ascend strictly"),
    ):
        with pytest.raises(DataError, match=message):
            rate_or_curve("rates", bad)
