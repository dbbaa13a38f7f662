"""American and Bermudan contracts: exercise values by hand, batches, bad input. Prices are the engines' matter."""

import pytest
import torch

from pricers.instruments.base import EarlyExercise
from pricers.instruments.early_exercise import American, Bermudan
from pricers.paths import Paths


def number(x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


def test_american_exercise_value_by_hand():
    spot = torch.tensor([80.0, 100.0, 130.0], dtype=torch.float64)
    strike = torch.tensor([[90.0], [110.0]], dtype=torch.float64)
    put, call = American(strike, [0.5, 1.0, 2.0], "put"), American(strike, [0.5, 1.0, 2.0], "call")
    assert isinstance(put, EarlyExercise)
    assert put.batch_shape == (2, 3)
    assert put.dates.tolist() == [[0.5], [1.0], [2.0]]
    assert put.horizon.tolist() == [0.5, 1.0, 2.0]
    assert put.exercise_value(spot).tolist() == [[[10.0, 0.0, 0.0]], [[30.0, 10.0, 0.0]]]
    assert call.exercise_value(spot).tolist() == [[[0.0, 10.0, 40.0]], [[0.0, 0.0, 20.0]]]


def test_bermudan_exercise_value_on_one_and_on_several_assets():
    times = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    single = Bermudan(100.0, times, "put")
    assert single.exercise_value(torch.tensor([80.0, 120.0], dtype=torch.float64)).tolist() == [20.0, 0.0]
    assert (single.n_assets, single.dates.tolist(), single.horizon.item()) == (1, [1.0, 2.0, 3.0], 3.0)
    spot = torch.tensor([[90.0, 104.0, 107.0], [95.0, 80.0, 99.0], [101.0, 102.0, 130.0]], dtype=torch.float64)
    cases = {
        ("call", "max"): [7.0, 0.0, 30.0],
        ("call", "min"): [0.0, 0.0, 1.0],
        ("put", "max"): [0.0, 1.0, 0.0],
        ("put", "min"): [10.0, 20.0, 0.0],
    }
    for (option, on), expected in cases.items():
        contract = Bermudan([100.0, 1000.0], times, option, on)
        values = contract.exercise_value(spot)
        assert contract.n_assets is None
        assert values.shape == (2, 3)
        assert values[0].tolist() == expected


def test_bermudan_batches_of_strikes_and_dates():
    contract = Bermudan(torch.tensor([[90.0], [110.0]]), torch.tensor([[0.5, 1.0], [1.0, 2.0], [2.0, 3.0]]), "put")
    assert contract.batch_shape == (2, 3)
    assert contract.horizon.tolist() == [1.0, 2.0, 3.0]


def test_exercise_value_has_the_derivative_of_its_side():
    spot = torch.tensor([80.0, 130.0], dtype=torch.float64).requires_grad_()
    strike = number(100.0).requires_grad_()
    put = American(strike, 1.0, "put")
    slopes = torch.autograd.grad(put.exercise_value(spot).sum(), (spot, strike))
    assert slopes[0].tolist() == [-1.0, 0.0]
    assert slopes[1].item() == 1.0


def test_shifted_moves_all_dates():
    assert American(100.0, [1.0, 2.0], "put").shifted(number(0.25)).expiry.tolist() == [0.75, 1.75]
    later = Bermudan(100.0, [0.5, 1.0], "call", "max").shifted(number(0.25))
    assert later.times.tolist() == [0.25, 0.75]
    assert (later.option, later.on) == ("call", "max")
    with pytest.raises(ValueError, match="`times` must be above 0"):
        Bermudan(100.0, [0.5, 1.0]).shifted(number(0.5))


@pytest.mark.parametrize("contract", [American(100.0, 1.0, "put"), Bermudan(100.0, [1.0], "put")])
def test_payoff_without_a_rule_of_exercise_is_refused(contract):
    paths = Paths(torch.tensor([0.0, 1.0], dtype=torch.float64), torch.full((2, 2), 100.0, dtype=torch.float64))
    with pytest.raises(ValueError, match="needs a rule of exercise; use LongstaffSchwartz"):
        contract.payoff(paths, torch.ones_like)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1.0), "`strike` must be above 0, got 0"),
        ((float("nan"), 1.0), "`strike` must be finite"),
        ((100.0, -1.0), "`expiry` must be above 0, got -1"),
        ((100.0, 1.0, "straddle"), "`option` must be one of 'call', 'put', got 'straddle'"),
        (([90.0, 100.0], [1.0, 2.0, 3.0]), r"`strike` of shape \(2,\) and `expiry` of shape \(3,\)"),
    ],
)
def test_american_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        American(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, [1.0]), "`strike` must be above 0, got 0"),
        ((100.0, [1.0, 0.5]), "`times` must ascend strictly"),
        ((100.0, [1.0, 1.0]), "`times` must ascend strictly"),
        ((100.0, [-1.0, 0.5]), "`times` must be above 0, got -1"),
        ((100.0, [0.5, float("nan")]), "`times` must be finite"),
        ((100.0, []), "`times` must hold at least one time"),
        ((100.0, [1.0], "straddle"), "`option` must be one of"),
        ((100.0, [1.0], "call", "sum"), "`on` must be one of 'single', 'max', 'min', got 'sum'"),
        (([90.0, 100.0], [[0.5], [1.0], [2.0]]), r"`strike` of shape \(2,\) and `times` of shape \(3,\)"),
    ],
)
def test_bermudan_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Bermudan(*arguments)
