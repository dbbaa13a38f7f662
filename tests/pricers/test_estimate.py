"""`Estimate`: the interval against scipy and against simulation, and what the constructor refuses."""

import dataclasses
import math

import pytest
import torch
from scipy import stats

from pricers import Estimate


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99, 0.999])
def test_interval_equals_scipys_normal_interval(level):
    low, high = Estimate(10.0, std_error=0.3, n_paths=100).confidence_interval(level)
    expected = stats.norm.interval(level, loc=10.0, scale=0.3)
    assert (low.item(), high.item()) == pytest.approx(expected, rel=1e-12)


def test_interval_covers_the_true_mean_as_often_as_it_says():
    generator = torch.Generator().manual_seed(7)
    draws = torch.randn(20_000, 50, generator=generator, dtype=torch.float64)
    estimate = Estimate(draws.mean(1), std_error=draws.std(1) / math.sqrt(50), n_paths=50)
    low, high = estimate.confidence_interval(0.9)
    covered = ((low <= 0) & (high >= 0)).double().mean().item()
    # 50 draws: Student's t puts the coverage of the normal interval at 0.8936; 4 standard deviations of the proportion
    expected = 1 - 2 * stats.t.sf(stats.norm.ppf(0.95), df=49)
    assert covered == pytest.approx(expected, abs=4 * math.sqrt(0.1 * 0.9 / 20_000))


def test_numerical_error_widens_both_ends_by_itself():
    statistical = Estimate(5.0, std_error=0.1, n_paths=10)
    both = Estimate(5.0, std_error=0.1, error_bound=0.25, n_paths=10)
    for inner, outer, sign in zip(statistical.confidence_interval(), both.confidence_interval(), (-1, 1), strict=True):
        assert (outer - inner).item() == pytest.approx(sign * 0.25, rel=1e-12)


def test_errors_broadcast_to_the_value():
    value = torch.arange(6, dtype=torch.float64).reshape(2, 3)
    estimate = Estimate(value, torch.tensor([[0.1], [0.2]], dtype=torch.float64), 0.5, n_paths=8)
    assert estimate.std_error.tolist() == [[0.1] * 3, [0.2] * 3]
    assert estimate.error_bound.tolist() == [[0.5] * 3] * 2
    assert estimate.confidence_interval()[0].shape == (2, 3)


@pytest.mark.parametrize("shape", [(3,), (2, 1), (1, 2, 1)])
def test_an_error_that_would_enlarge_the_value_is_refused(shape):
    with pytest.raises(ValueError, match=r"`std_error` must broadcast to the shape of `value`, \(2,\)"):
        Estimate(torch.zeros(2), torch.zeros(shape))


def test_python_numbers_become_float64_and_tensors_keep_their_dtype(device):
    assert Estimate(1, std_error=0).value.dtype == torch.float64
    single = Estimate(torch.ones(2, device=device), std_error=0.0, error_bound=1e-3)
    assert {single.value.dtype, single.std_error.dtype, single.error_bound.dtype} == {torch.float32}
    assert single.std_error.device == single.value.device


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"value": torch.tensor([1, 2]), "std_error": 0.0}, "`value` must hold real floating point numbers"),
        ({"value": torch.tensor(1j), "std_error": 0.0}, "`value` must hold real floating point numbers"),
        ({"value": 1.0, "std_error": torch.tensor(0.0)}, "dtype and device of `value`"),
        ({"value": 1.0, "std_error": -0.5, "n_paths": 9}, "`std_error` must be 0 or more, got -0.5"),
        ({"value": 1.0, "std_error": 0.0, "error_bound": -1.0}, "`error_bound` must be 0 or more, got -1.0"),
        ({"value": 1.0, "std_error": float("nan"), "n_paths": 9}, "`std_error` is NaN where `value` is a number"),
        ({"value": 1.0, "std_error": 0.0, "n_paths": -1}, "`n_paths` must be 0 or more, got -1"),
        ({"value": 1.0, "std_error": 0.1}, "needs at least 2 simulated paths, got `n_paths` = 0"),
        ({"value": 1.0, "std_error": 0.1, "n_paths": 1}, "needs at least 2 simulated paths, got `n_paths` = 1"),
    ],
)
def test_contradictions_are_refused_with_their_reason(fields, message):
    with pytest.raises(ValueError, match=message):
        Estimate(**fields)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, 95.0, float("nan")])
def test_a_level_outside_the_unit_interval_is_refused(level):
    with pytest.raises(ValueError, match=r"`level` must lie in \(0, 1\)"):
        Estimate(1.0, std_error=0.0).confidence_interval(level)


def test_a_failed_element_stays_nan_without_touching_its_neighbours():
    nan = float("nan")
    value = torch.tensor([1.0, nan], dtype=torch.float64)
    estimate = Estimate(value, torch.tensor([0.5, nan], dtype=torch.float64), n_paths=4)
    low, high = estimate.confidence_interval()
    assert low.isnan().tolist() == high.isnan().tolist() == [False, True]


def test_the_value_stays_differentiable():
    spot = torch.tensor([90.0, 110.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(Estimate(spot**2, std_error=0.0).value.sum(), spot)
    assert slope.tolist() == [180.0, 220.0]


def test_fields_cannot_be_reassigned():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Estimate(1.0, std_error=0.0).value = torch.tensor(2.0)  # pyright: ignore[reportAttributeAccessIssue]


def test_another_note_leaves_the_rest():
    value, std_error = torch.tensor([1.0, 2.0]), torch.tensor([0.1, 0.2])
    estimate = Estimate(value, std_error, error_bound=0.05, n_paths=8, engine="monte carlo", note="old")
    noted = estimate.with_note("new")
    assert (noted.note, noted.engine, noted.n_paths) == ("new", "monte carlo", 8)
    assert torch.equal(noted.value, value)
    assert torch.equal(noted.std_error, std_error)
    assert torch.equal(noted.error_bound, torch.full((2,), 0.05))
    assert estimate.note == "old"
