import math

import pytest
import torch
from surrogate_cases import CALLS, HESTON_BOX, VOLS, rows_of

import pricers as pr
from qfml.errors import ConfigError
from qfml.surrogate import Problem, Range
from qfml.surrogate.coordinates import Coordinates, columns_of, row_jacobian
from qfml.surrogate.tangents import log_reference_slopes, pulled_back
from qfml.surrogate.target import Target, european_bounds

ROUGH = Problem(
    model={"kind": "rough_bergomi"},
    instrument={"kind": "european"},
    box={
        "xi": Range(0.01, 0.2, "log"),
        "eta": Range(0.5, 3.0),
        "hurst": Range(0.05, 0.4),
        "rho": Range(-0.95, -0.1),
        "expiry": Range(0.1, 2.0, "log"),
        "standard_moneyness": Range(-2.5, 1.5),
    },
    target="implied_vol",
)
FIXED = Problem(
    model={"kind": "heston", "kappa": 1.5, "theta": 0.06},
    instrument={"kind": "european", "expiry": 0.7},
    box={"v0": Range(0.02, 0.2), "sigma": Range(0.1, 0.8), "rho": Range(-0.9, 0.0), "log_moneyness": Range(-0.4, 0.3)},
    target="implied_vol",
)
WINGS = Problem(
    model={"kind": "heston", "rho": -0.5, "sigma": 0.4},
    instrument={"kind": "european"},
    market={"spot": 1.0, "rate": 0.03},
    box={
        "v0": Range(0.02, 0.2),
        "kappa": Range(0.5, 4.0),
        "theta": Range(0.02, 0.2, "log"),
        "expiry": Range(0.25, 2.0),
        "standard_moneyness": Range(0.1, 3.0, "log"),
    },
    target="price",
)
PUTS = Problem(
    model={"kind": "heston"},
    instrument={"kind": "european", "option": "put"},
    market={"spot": 100.0, "rate": 0.03},
    box={name: limits for name, limits in HESTON_BOX.items() if name != "delta"}
    | {"strike": Range(80.0, 120.0, "log")},
    target="price",
)
PROBLEMS = {"vols": VOLS, "rough": ROUGH, "fixed": FIXED, "puts": PUTS, "calls": CALLS, "wings": WINGS}


def test_ranges_become_minus_one_to_one_along_their_scale():
    problem = Problem(
        model={"kind": "black_scholes"},
        instrument={"kind": "european", "expiry": 1.0},
        box={"vol": Range(0.1, 0.4, "log"), "strike": Range(80.0, 120.0)},
        target="price",
    )
    rows = torch.tensor([[0.1, 80.0], [0.2, 90.0], [0.4, 120.0]]).double()
    expected = torch.tensor([[-1.0, -1.0], [0.0, -0.5], [1.0, 1.0]]).double()
    torch.testing.assert_close(Coordinates(problem)(rows), expected)


def test_the_strike_enters_in_reference_standard_deviations():
    # by hand: kappa T = 1, so the mean variance is theta + (v0 - theta) (1 - 1/e)
    v0, kappa, theta, expiry, k = 0.04, 2.0, 0.09, 0.5, -0.15
    row = torch.tensor([[v0, kappa, theta, 0.5, -0.5, expiry, k]], dtype=torch.float64)
    deviation = math.sqrt((theta + (v0 - theta) * (1 - math.exp(-1))) * expiry)
    assert float(Coordinates(VOLS)(row)[0, -1]) == pytest.approx(k / (2 * deviation), rel=1e-12)


def test_a_range_of_standard_moneyness_is_the_features_own():
    rows = rows_of(ROUGH, 4)
    deviation = rows[:, 0].sqrt() * rows[:, 4].sqrt()
    rows[:, 5] = deviation * torch.tensor([-2.5, 1.5, -0.5, 0.5]).double()
    expected = torch.tensor([-1.0, 1.0, 0.0, 0.5]).double()
    torch.testing.assert_close(Coordinates(ROUGH)(rows)[:, 5], expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", PROBLEMS)
def test_derivatives_of_labels_become_those_in_the_features_and_back(name):
    # a smooth function of the features, differentiated by autograd: in the features, and through them in the inputs
    problem = PROBLEMS[name]
    coordinates, rows = Coordinates(problem), rows_of(problem, 12)
    if problem is WINGS:  # a logarithm needs strikes on one side
        rows[:, -1] = rows[:, -1].abs()

    def function(features):
        weights = torch.arange(1.0, features.shape[1] + 1, dtype=features.dtype)
        return torch.sin(features @ weights) + (features**2 * weights).sum(1)

    features = coordinates(rows).requires_grad_()
    (in_features,) = torch.autograd.grad(function(features).sum(), features)
    inputs = rows.clone().requires_grad_()
    (in_inputs,) = torch.autograd.grad(function(coordinates(inputs)).sum(), inputs)
    torch.testing.assert_close(coordinates.feature_gradient(rows, in_inputs), in_features, rtol=1e-9, atol=1e-10)
    with_reference = coordinates.standardised is not None
    reference = problem.reference_vol(rows) if with_reference else None
    by_inputs = log_reference_slopes(problem, rows) if with_reference else None
    pulled = pulled_back(problem, rows, in_features, reference, by_inputs)
    torch.testing.assert_close(pulled, in_inputs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["vols", "rough", "fixed"])
def test_slopes_of_the_log_reference_are_autograds(name):
    problem = PROBLEMS[name]
    rows = rows_of(problem, 9)
    expected = row_jacobian(lambda x: torch.log(problem.reference_vol(x))[:, None], rows)[:, 0]
    torch.testing.assert_close(log_reference_slopes(problem, rows), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("problem", "kind", "scale"),
    [(VOLS, "log_vol", 1.0), (ROUGH, "vol_ratio", 1.0), (PUTS, "positive", 0.07), (CALLS, "linear", 0.2)],
)
def test_what_is_learnt_of_a_label_and_of_its_derivatives(problem, kind, scale):
    # the label is a smooth positive function of the inputs; what is learnt of it is differentiated in the features
    target, coordinates, rows = Target(problem, kind, scale), Coordinates(problem), rows_of(problem, 10)

    def value(inputs):
        return 0.3 + 0.1 * torch.tanh(coordinates(inputs).sum(1))

    inputs = rows.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(inputs).sum(), inputs)
    found = target.encode_gradient(value(rows), gradient, rows)
    jacobian = row_jacobian(coordinates, rows)
    learnt = row_jacobian(lambda x: target.encode(value(x), x)[:, None], rows)[:, 0]
    torch.testing.assert_close(torch.einsum("nf,nfd->nd", found, jacobian), learnt, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(target.decode(target.encode(value(rows), rows), rows), value(rows), rtol=1e-13, atol=0)
    step = 1e-6  # a small error of what is learnt is an error of the value, times the slope
    moved = target.decode(target.encode(value(rows), rows) + step, rows) - value(rows)
    torch.testing.assert_close(target.slope(value(rows), rows) * step, moved, rtol=1e-5, atol=0)


def test_bounds_of_european_prices_are_reached_by_extreme_vols():
    rows = rows_of(CALLS, 40)
    low, high = european_bounds(CALLS, rows)
    option = pr.European(rows[:, 2], rows[:, 1])
    market = pr.Market(spot=1.0, rate=0.03, dividend_yield=0.01)
    least, most = (pr.price(option, pr.BlackScholes(vol), market).value for vol in (1e-6, 10.0))
    torch.testing.assert_close(low, least, rtol=0, atol=1e-6)
    torch.testing.assert_close(high, most, rtol=0, atol=5e-4)  # N(-d1) at a total vol of 7


def test_convexity_is_promised_only_where_the_feature_is_affine():
    assert Coordinates(CALLS).is_affine_in("strike")
    assert not Coordinates(PUTS).is_affine_in("strike")  # a log scale
    assert not Coordinates(VOLS).is_affine_in("log_moneyness")
    with pytest.raises(ConfigError, match="`barrier` is no input of the problem, whose inputs are vol, expiry, strike"):
        columns_of(CALLS, ["strike", "barrier"])
