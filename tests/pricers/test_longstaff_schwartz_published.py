"""Early exercise by regression: published tables, the worked example, both bounds, every basis."""

import pytest
import torch

import pricers as pr
from pricers.exercise.regression import BASES, Rule, backward_induction, forward_value

# Longstaff and Schwartz (2001), Table 1, finite differences: puts struck at 40, rate .06, 50 dates a year.
# The last column was recomputed (the paper prints 8.508, 7.670, 6.920).
TABLE_1 = {  # (vol, expiry) -> spots 36, 38, 40
    (0.2, 1.0): (4.478, 3.250, 2.314),
    (0.2, 2.0): (4.840, 3.745, 2.885),
    (0.4, 1.0): (7.101, 6.148, 5.312),
    (0.4, 2.0): (8.507, 7.668, 6.917),
}
# the same paper, section 1: eight paths of a put struck at 1.10 at dates 1, 2, 3, discounted at 6 %
EIGHT_PATHS = [
    [1.09, 1.08, 1.34],
    [1.16, 1.26, 1.54],
    [1.22, 1.07, 1.03],
    [0.93, 0.97, 0.92],
    [1.11, 1.56, 1.52],
    [0.76, 0.77, 0.90],
    [0.92, 0.84, 1.01],
    [0.88, 1.22, 1.34],
]


def put_of_table_1(expiry):
    return pr.Bermudan(40.0, torch.arange(1, round(50 * expiry) + 1, dtype=torch.float64) / 50.0, "put")


def test_worked_example_of_eight_paths():
    spot = torch.tensor(EIGHT_PATHS, dtype=torch.float64)
    times = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    exercise = (1.10 - spot).clamp(min=0.0) * torch.exp(-0.06 * times)
    basis = lambda date: torch.stack([torch.ones(8).double(), spot[:, date], spot[:, date] ** 2], dim=-1)  # noqa: E731
    rule, value = backward_induction(exercise, basis)
    assert value.mean().item() == pytest.approx(0.1144, abs=5e-5)
    assert exercise[:, -1].mean().item() == pytest.approx(0.0564, abs=5e-5)
    # the paper prints -1.070 + 2.983 X - 1.813 X^2 at date 2 and 2.038 - 3.335 X + 1.356 X^2 at date 1
    growth = torch.exp(0.06 * times[:2]).unsqueeze(-1)
    expected = torch.tensor([[2.038, -3.335, 1.356], [-1.070, 2.983, -1.813]], dtype=torch.float64)
    torch.testing.assert_close(rule.coefficients * growth, expected, rtol=0.0, atol=6e-4)
    stopped = forward_value(rule, exercise, basis)
    torch.testing.assert_close(stopped, value, rtol=0.0, atol=1e-12)


# the payoff of the second law is more than twice as wide: four times as many paths for the same standard error
@pytest.mark.parametrize(
    ("law", "n_paths"), [((0.2, 1.0), 16_384), pytest.param((0.4, 2.0), 65_536, marks=pytest.mark.slow)]
)
def test_table_1_is_bounded_from_below(law, n_paths):
    vol, expiry = law
    market = pr.Market([36.0, 38.0, 40.0], 0.06)
    engine = pr.LongstaffSchwartz(n_paths=n_paths, n_steps=50, seed=1)
    found = pr.price(put_of_table_1(expiry), pr.BlackScholes(vol), market, engine)
    exact = torch.tensor(TABLE_1[law], dtype=torch.float64)
    assert (found.value <= exact + 4.0 * found.std_error + 5e-4).all()
    # what a cubic rule from 16,384 paths or more loses: half a percent
    assert (found.value >= exact * 0.995 - 4.0 * found.std_error).all()
    assert (found.std_error <= 0.03).all()


@pytest.mark.slow
@pytest.mark.parametrize("law", list(TABLE_1))
def test_table_1_lies_between_both_bounds(law):
    vol, expiry = law
    exact = torch.tensor(TABLE_1[law], dtype=torch.float64)
    model, market = pr.BlackScholes(vol), pr.Market([36.0, 38.0, 40.0], 0.06)
    engine = pr.LongstaffSchwartz(n_paths=65_536, n_steps=50, seed=2, degree=4, n_outer=64, n_inner=128)
    lower, upper = engine.bounds(put_of_table_1(expiry), model, market)
    assert upper is not None
    assert (lower.value <= exact + 4.0 * lower.std_error + 5e-4).all()
    assert (upper.value >= exact - 4.0 * upper.std_error - 5e-4).all()
    assert (lower.value >= exact * 0.997 - 4.0 * lower.std_error).all()
    # the noise of 128 inner paths at each of 50 or 100 dates raises the upper bound by some percent
    assert (upper.value <= exact * 1.06 + 4.0 * upper.std_error).all()


# Glasserman (2004), p. 462: calls on the dearer of two assets, strike 100, nine dates in three years
@pytest.mark.parametrize(("spot", "value"), [(90.0, 8.08), (100.0, 13.90)])
def test_max_call_lies_between_both_bounds(spot, value):
    model = pr.BlackScholes([0.2, 0.2], [[1.0, 0.0], [0.0, 1.0]])
    option = pr.Bermudan(100.0, [i / 3.0 for i in range(1, 10)], "call", on="max")
    engine = pr.LongstaffSchwartz(n_paths=32_768, n_steps=9, seed=3, degree=4, n_outer=256, n_inner=64)
    lower, upper = engine.bounds(option, model, pr.Market([spot, spot], 0.05, 0.1))
    assert upper is not None
    assert lower.value.item() <= value + 4.0 * lower.std_error.item() + 0.005
    assert upper.value.item() >= value - 4.0 * upper.std_error.item() - 0.005
    assert lower.value.item() >= 0.985 * value - 4.0 * lower.std_error.item()
    assert upper.value.item() <= 1.03 * value + 4.0 * upper.std_error.item()
    price = engine.price(option, model, pr.Market([spot, spot], 0.05, 0.1))
    assert price.error_bound.item() == pytest.approx(upper.value.item() - lower.value.item())


def test_heston_american_put():
    """Ikonen and Toivanen: 2.00000, 1.10763, .520038 at spots 8, 9, 10; 40 dates are worth a little less."""
    model = pr.Heston(0.0625, 5.0, 0.16, 0.9, 0.1)
    engine = pr.LongstaffSchwartz(n_paths=32_768, n_steps=40, seed=3)
    found = pr.price(pr.American(10.0, 0.25, "put"), model, pr.Market([8.0, 9.0, 10.0], 0.1), engine)
    exact = torch.tensor([2.0, 1.10763, 0.520038], dtype=torch.float64)
    assert (found.value <= exact + 4.0 * found.std_error + 1e-3).all()
    assert (found.value >= 0.99 * exact - 4.0 * found.std_error).all()


@pytest.mark.parametrize("basis", list(BASES))
def test_every_basis(basis):
    engine = pr.LongstaffSchwartz(n_paths=16_384, n_steps=25, seed=4, basis=basis)
    found = pr.price(put_of_table_1(1.0), pr.BlackScholes(0.2), pr.Market(36.0, 0.06), engine)
    assert found.value.item() == pytest.approx(4.478, abs=4.0 * found.std_error.item() + 0.03)


def test_strikes_side_by_side_are_what_they_are_alone():
    model, market = pr.BlackScholes(0.3), pr.Market(100.0, 0.05)
    engine = pr.LongstaffSchwartz(n_paths=8192, n_steps=10, seed=5)
    both = pr.price(pr.American([95.0, 105.0], 1.0, "put"), model, market, engine)
    for index, strike in enumerate((95.0, 105.0)):
        alone = pr.price(pr.American(strike, 1.0, "put"), model, market, engine)
        assert both.value[index].item() == pytest.approx(alone.value.item(), rel=1e-9)


def test_same_seed_same_number_other_seed_another():
    triple = (pr.American(100.0, 1.0, "put"), pr.BlackScholes(0.3), pr.Market(100.0, 0.05))
    values = [pr.LongstaffSchwartz(n_paths=4096, n_steps=5, seed=seed).price(*triple).value for seed in (1, 1, 2)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_single_precision():
    one = torch.tensor(1.0, dtype=torch.float32)
    triple = (pr.American(40.0 * one, one, "put"), pr.BlackScholes(0.2 * one), pr.Market(36.0 * one, 0.06 * one))
    found = pr.LongstaffSchwartz(n_paths=16_384, n_steps=50, seed=1).price(*triple)
    assert found.value.dtype == torch.float32
    assert found.value.item() == pytest.approx(4.478, abs=4.0 * found.std_error.item() + 0.02)


def test_exercise_at_once_is_a_rule_too():
    found = pr.LongstaffSchwartz(n_paths=4096, n_steps=5, seed=1).price(
        pr.American(60.0, 1.0, "put"), pr.BlackScholes(0.2), pr.Market(36.0, 0.06)
    )
    assert (found.value.item(), found.std_error.item()) == (24.0, 0.0)


def test_a_rule_that_never_waits_stops_at_the_first_gain():
    exercise = torch.tensor([[0.0, 2.0, 5.0], [1.0, 0.0, 9.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    rule = Rule(torch.zeros(2, 1, dtype=torch.float64))
    found = forward_value(rule, exercise, lambda date: torch.ones(3, 1, dtype=torch.float64))
    assert found.tolist() == [2.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("triple", "message"),
    [
        ((pr.European(100.0, 1.0), pr.BlackScholes(0.2), pr.Market(100.0)), "MonteCarlo"),
        (
            (
                pr.American(100.0, 1.0),
                pr.Heston(0.04, 2.0, 0.04, 0.3, -0.5),
                pr.Market(100.0, dividends=pr.CashDividends([0.5], [1.0])),
            ),
            "cash dividends are for BlackScholes.*Heston.*`dividend_yield`",
        ),
        (
            (
                pr.Bermudan(100.0, [0.5, 1.0], on="max"),
                pr.BlackScholes([0.2, 0.2], [[1.0, 0.0], [0.0, 1.0]]),
                pr.Market([100.0, 100.0], dividends=pr.CashDividends([0.5], [1.0])),
            ),
            "cash dividends are for one asset.*`dividend_yield`",
        ),
        ((pr.American(100.0, [1.0, 2.0]), pr.BlackScholes(0.2), pr.Market(100.0)), "one expiry at a time"),
    ],
)
def test_refusals(triple, message):
    with pytest.raises(ValueError, match=message):
        pr.LongstaffSchwartz(n_paths=1024, n_steps=4, seed=0).price(*triple)


@pytest.mark.parametrize("options", [{"basis": "fourier"}, {"n_paths": 1}, {"degree": 0}, {"n_outer": 1}])
def test_bad_numbers(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        pr.LongstaffSchwartz(**{"n_paths": 1024, "n_steps": 4, "seed": 0, **options})
