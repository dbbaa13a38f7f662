"""Prices of hedging instruments along paths: martingales, exact prices in the state of the path, and refusals."""

import math
from functools import lru_cache

import pytest
import torch

import pricers as pr
from qfml.config import build_kind
from qfml.errors import ConfigError, DataError
from qfml.hedging.instruments import HEDGES, Hedge, Option, Spot, VarianceSwapHedge
from qfml.hedging.price_table import ACCURACY, expected_variance, price_table

MARKET = pr.Market(spot=100.0, rate=0.05, dividend_yield=0.02)
HORIZON = 0.1
TIMES = torch.linspace(0.0, HORIZON, 3, dtype=torch.float64)
HESTON = pr.Heston(v0=0.04, kappa=2.0, theta=0.06, sigma=0.7, rho=-0.6)
BATES = pr.Bates(v0=0.04, kappa=2.0, theta=0.06, sigma=0.7, rho=-0.6, intensity=0.5, jump_mean=-0.1, jump_std=0.15)
MODELS = [pr.BlackScholes(0.2), pr.Merton(0.2, 0.5, -0.1, 0.15), HESTON, BATES]
HEDGES_TRIED = [Spot(), Option(100.0, HORIZON), Option(95.0, 0.3, "put"), VarianceSwapHedge(0.2)]


def by_name(item):
    return type(item).__name__ if isinstance(item, pr.Model) else item.name


@lru_cache
def scenarios(model, n_paths=2**14):
    return pr.simulate(model, MARKET, TIMES, n_paths, seed=1, n_steps=20, every_step=True).on(TIMES)


@lru_cache
def priced(model, hedge):
    return hedge.pricer(model, MARKET, TIMES)


@pytest.mark.parametrize("hedge", HEDGES_TRIED, ids=by_name)
@pytest.mark.parametrize("model", MODELS, ids=by_name)
def test_discounted_price_is_a_martingale_that_begins_at_the_exact_price(model, hedge):
    made = scenarios(model)
    prices = priced(model, hedge)(made)
    change = (prices - prices[:, :1]).double()
    std_error = change.std(0) / math.sqrt(len(change))
    assert bool((change.mean(0).abs() <= 4.0 * std_error + 1e-12).all())
    assert bool((std_error <= 0.06).all())  # of the spot: a vol of 0.23 over 0.1 years on 2^14 paths
    contract = {
        "spot": None,
        "option": lambda: pr.European(hedge.strike, hedge.expiry, hedge.option),
        "variance_swap": lambda: pr.VarianceSwap(0.0, hedge.expiry),
    }[hedge.kind]
    exact = 100.0 if contract is None else pr.price(contract(), model, MARKET).value.item()
    assert abs(prices[0, 0].item() - exact) <= ACCURACY * 100.0


@pytest.mark.parametrize("model", MODELS, ids=by_name)
def test_option_price_on_a_path_is_the_exact_one_of_its_state(model):
    option = Option(95.0, 0.3, "put")
    made = scenarios(model, n_paths=64)
    prices = priced(model, option)(made)
    parameters = model.parameters()
    for date in (1, 2):
        if "v0" in parameters:
            parameters["v0"] = made.state["variance"][:, date]
        left = 0.3 - TIMES[date].item()
        later = pr.Market(made.spot[:, date], rate=0.05, dividend_yield=0.02)
        exact = pr.price(pr.European(95.0, left, "put"), type(model)(**parameters), later).value
        discounted = exact * math.exp(-0.05 * TIMES[date].item())
        torch.testing.assert_close(prices[:, date], discounted, rtol=0.0, atol=ACCURACY * 100.0)


def test_option_that_ends_with_the_book_ends_with_its_payoff():
    for model in MODELS:
        made = scenarios(model, n_paths=64)
        for option, sign in (("call", 1.0), ("put", -1.0)):
            prices = priced(model, Option(100.0, HORIZON, option))(made)
            paid = (sign * (made.spot[:, -1] - 100.0)).clamp(min=0.0) * math.exp(-0.05 * HORIZON)
            torch.testing.assert_close(prices[:, -1], paid, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("model", [HESTON, BATES], ids=by_name)
@pytest.mark.parametrize("time_left", [1 / 365, 0.1, 1.0])
def test_price_table_at_points_of_its_own(model, time_left):
    table = price_table(model, time_left, 0.5)
    generator = torch.Generator().manual_seed(5)
    variance = 0.3 * torch.rand(6, 1, dtype=torch.float64, generator=generator) ** 2
    deviation = torch.sqrt(variance * table.slope + table.intercept)
    forward = torch.exp(3.0 * deviation * torch.randn(6, 40, dtype=torch.float64, generator=generator))
    found = table.price(forward, 1.0, variance.expand_as(forward), "call")
    twin = type(model)(**(model.parameters() | {"v0": variance}))
    exact = forward * pr.price(pr.European(1.0 / forward, time_left), twin, pr.Market(1.0)).value
    assert float(((found - exact) / forward).abs().max()) <= ACCURACY
    assert table.error <= ACCURACY


def test_single_precision_prices_are_those_of_double():
    option = Option(95.0, 0.3, "put")
    pricer = priced(HESTON, option)
    made = scenarios(HESTON, n_paths=64)
    rounded = pr.Scenarios(made.times, made.spot.float(), {name: part.float() for name, part in made.state.items()})
    torch.testing.assert_close(pricer(rounded).double(), pricer(made), rtol=0.0, atol=1e-4)


def test_expected_variance_is_the_mean_of_the_realised():
    slope, intercept = expected_variance(BATES, TIMES[-1])
    made = scenarios(BATES)
    realised = made.state["integrated_variance"].sum(1) + made.state["jumps_squared"].sum(1)
    error = realised.std().item() / math.sqrt(2**14)
    assert abs(realised.mean().item() - float(slope * 0.04 + intercept)) <= 4.0 * error
    assert error <= 2e-4


def test_instrument_that_expires_before_the_book_is_refused():
    for hedge in (Option(100.0, 0.05), VarianceSwapHedge(0.05)):
        with pytest.raises(DataError, match=r"must not lie before the last trading date, 0\.1 years"):
            hedge.pricer(HESTON, MARKET, TIMES)


@pytest.mark.parametrize("hedge", [Option(100.0, 0.2), VarianceSwapHedge(0.2)], ids=by_name)
def test_models_without_a_price_in_their_state_are_refused_with_the_reason(hedge):
    model = pr.RoughBergomi(xi=0.04, eta=1.5, hurst=0.1, rho=-0.7)
    with pytest.raises(ConfigError, match="RoughBergomi"):
        hedge.pricer(model, MARKET, TIMES)


def test_variance_beyond_the_table_is_refused():
    table = price_table(HESTON, 0.1, 0.1)
    one = torch.ones(1, dtype=torch.float64)
    with pytest.raises(DataError, match="table of option prices ends"):
        table.price(one, 1.0, 50.0 * one, "call")


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "option", "strike": -1.0, "expiry": 1.0},
        {"kind": "option", "strike": 1.0, "expiry": 0.0},
        {"kind": "option", "strike": 1.0, "expiry": 1.0, "option": "straddle"},
        {"kind": "variance_swap", "expiry": float("nan")},
        {"kind": "futures"},
    ],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        build_kind(HEDGES, settings)


def test_registered_hedges_fulfil_the_protocol():
    assert {type(hedge) for hedge in HEDGES_TRIED} == set(HEDGES.values())
    assert all(isinstance(hedge, Hedge) for hedge in HEDGES_TRIED)


def test_slopes_of_a_table_are_those_of_the_exact_price_down_to_a_variance_of_0():
    """The price is smooth in the variance, its table in the root of it: differences of exact prices tell."""
    from qfml.hedging.baselines import _slopes_of_table

    years, strike, bump = 30 / 365, 1.0, 1e-5
    terms = {"kappa": 1.0, "theta": 0.04, "sigma": 2.0, "rho": -0.7}
    table = price_table(pr.Heston(v0=0.04, **terms), years, years)
    variance = torch.tensor([0.0, 1e-8, 1e-6, 1e-5, 1e-3], dtype=torch.float64)
    found = _slopes_of_table(table, torch.ones_like(variance), strike, variance, "call")[1]
    contract = pr.European(strike, years)
    exact = [
        [pr.price(contract, pr.Heston(v0=v + step, **terms), pr.Market(1.0)).value.item() for step in (1e-12, bump)]
        for v in variance.tolist()
    ]
    expected = torch.tensor([(high - low) / bump for low, high in exact], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0.0)


def test_prices_of_a_table_are_differentiable_without_a_word():
    table = price_table(HESTON, 0.1, 0.1)
    variance = torch.full((3,), 0.04, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(table.price(torch.ones_like(variance), 1.0, variance, "call").sum(), variance)
    assert bool((slope > 0).all())
