import math

import numpy as np
import pytest
import torch
from scipy.stats import beta, binomtest

from qfml.errors import DataError
from qfml.surrogate.conformal import binomial_interval, conformal_bound, coverage_p_value


@pytest.mark.parametrize(("n", "level"), [(19, 0.9), (200, 0.9), (150, 0.99), (999, 0.99)])
def test_the_bound_holds_fresh_errors_at_its_level(n, level):
    # the coverage given n calibration errors is Beta(place, n + 1 - place), whatever continuous law the errors have
    place = math.ceil((n + 1) * level)
    generator = torch.Generator().manual_seed(n)
    trials = 2000
    errors = torch.randn(trials, n, generator=generator, dtype=torch.float64) ** 3  # heavy tails, both signs
    bounds = torch.tensor([conformal_bound(row, level) for row in errors], dtype=torch.float64)
    covered = torch.erf(bounds ** (1 / 3) / math.sqrt(2))  # P(|Z|^3 <= bound)
    law = beta(place, n + 1 - place)
    assert abs(float(covered.mean()) - place / (n + 1)) < 4 * law.std() / math.sqrt(trials)
    assert place / (n + 1) >= level
    assert float((covered < law.ppf(0.1)).double().mean()) == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / trials))


def test_fresh_errors_exceed_it_as_often_as_it_says():
    generator = torch.Generator().manual_seed(7)
    misses, trials = 0, 4000
    for _ in range(trials):
        draws = torch.rand(100, generator=generator, dtype=torch.float64)
        misses += int(draws[99] > conformal_bound(draws[:99], 0.95))
    assert binomtest(misses, trials, 0.05).pvalue > 1e-4


def test_the_place_is_that_of_the_definition():
    errors = torch.arange(1.0, 100.0)  # 99 of them: (n + 1) level is a whole number
    assert conformal_bound(errors, 0.9) == 90.0
    assert conformal_bound(-errors, 0.99) == 99.0
    assert conformal_bound(errors[:98], 0.9) == 90.0  # the 89.1st, rounded up


@pytest.mark.parametrize(
    ("errors", "level", "message"),
    [
        (torch.ones(98), 0.99, "a bound at level 0.99 needs 99 calibration points at least, got 98"),
        (torch.ones(9), 1.0, r"`level` must lie in \(0, 1\), got 1.0"),
        (torch.tensor([0.1, math.nan, 0.2]), 0.5, "1 of 3 errors are not finite"),
    ],
)
def test_what_no_bound_can_be_taken_from_is_refused(errors, level, message):
    with pytest.raises(DataError, match=message):
        conformal_bound(errors, level)


@pytest.mark.parametrize(("count", "n"), [(0, 20), (20, 20), (7, 20), (990, 1000)])
def test_the_binomial_interval_is_scipys(count, n):
    expected = binomtest(count, n).proportion_ci(0.95, method="exact")
    np.testing.assert_allclose(binomial_interval(count, n), (expected.low, expected.high), rtol=1e-10)


def test_the_p_value_of_a_coverage_is_that_of_draws():
    generator = torch.Generator().manual_seed(11)
    draws = torch.rand(3000, 99 + 200, generator=generator, dtype=torch.float64)
    bounds = draws[:, :99].sort(1).values[:, 89]  # level 0.9
    covered = (draws[:, 99:] <= bounds[:, None]).sum(1)
    for count in (165, 175, 180, 186):
        seen = float((covered <= count).double().mean())
        assert coverage_p_value(count, 200, 99, 0.9) == pytest.approx(seen, abs=4 * math.sqrt(0.25 / 3000))
