"""Geometric Asian options under Heston: published values, QuantLib, limits, simulation, derivatives."""

import itertools
import math
from typing import Any

import pytest
import QuantLib as ql  # noqa: N813 - the name that its own examples use
import torch
from torch import Tensor

from pricers.analytic.asian import FORMULAS as LOGNORMAL
from pricers.analytic.heston_geometric_asian import FORMULAS
from pricers.instruments.asian import Asian
from pricers.market import Market
from pricers.models.black_scholes import BlackScholes
from pricers.models.heston import Heston
from pricers.monte_carlo import MonteCarlo

# torch itself loads its deprecated script compiler with the first forward-mode derivative
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

# Kim and Wee (2014), table 1: continuous average, S = 100, r .05, strikes 90 to 110; expiry -> calls
KIM_WEE = {"v0": 0.09, "kappa": 1.15, "theta": 0.348, "sigma": 0.39, "rho": -0.64}
STRIKES = [90.0, 95.0, 100.0, 105.0, 110.0]
CONTINUOUS_CALL = {
    0.2: [10.6571, 6.5871, 3.4478, 1.4552, 0.4724],
    1.5: [16.5030, 13.7625, 11.3374, 9.2245, 7.4122],
}
MARKET = Market(100.0, 0.05, 0.02)


def price(instrument: Asian, model: Heston, market: Market = MARKET):
    return FORMULAS[Asian, Heston](instrument, model, market)


@pytest.mark.parametrize("expiry", CONTINUOUS_CALL)
def test_continuous_call_published(expiry: float):
    found = price(
        Asian(STRIKES, "continuous", "call", "geometric", expiry=expiry), Heston(**KIM_WEE), Market(100.0, 0.05)
    )
    assert found.value.tolist() == pytest.approx(CONTINUOUS_CALL[expiry], abs=6e-5)
    assert bool((found.error_bound < 1e-6).all())


@pytest.mark.parametrize("option", ["call", "put"])
def test_fixings_quantlib(option: str):
    today, count = ql.Date(1, 1, 2024), ql.Actual365Fixed()
    ql.Settings.instance().evaluationDate = today
    curves = [ql.YieldTermStructureHandle(ql.FlatForward(today, rate, count)) for rate in (0.05, 0.02)]
    process = ql.HestonProcess(*curves, ql.QuoteHandle(ql.SimpleQuote(100.0)), *list(KIM_WEE.values()))
    engine = ql.AnalyticDiscreteGeometricAveragePriceAsianHestonEngine(process)
    kind = ql.Option.Call if option == "call" else ql.Option.Put
    for strike, days in itertools.product([90.0, 110.0], [[73], [30 * i for i in range(1, 13)]]):
        contract = ql.DiscreteAveragingAsianOption(
            ql.Average.Geometric,
            1.0,
            0,
            [today + day for day in days],
            ql.PlainVanillaPayoff(kind, strike),
            ql.EuropeanExercise(today + days[-1]),
        )
        contract.setPricingEngine(engine)
        ours = price(Asian(strike, [day / 365 for day in days], option, "geometric"), Heston(**KIM_WEE)).value
        # its quadrature has some six digits
        assert ours.item() == pytest.approx(contract.NPV(), rel=2e-6, abs=1e-7)


CONTRACTS: dict[str, dict[str, Any]] = {
    "fixings": {"strike": [80.0, 104.0], "times": [0.0, 0.3, 0.9]},
    "seasoned fixings": {"strike": [80.0, 104.0], "times": [0.3, 0.9], "running_average": 91.0, "n_past": 3},
    "continuous": {"strike": [80.0, 104.0], "times": "continuous", "expiry": 0.9},
    "seasoned continuous": {
        "strike": 99.0, "times": "continuous", "expiry": 0.9, "elapsed": 0.4, "running_average": 91.0,
    },
    "floating fixings": {"strike": None, "times": [0.1, 0.3, 0.9], "floating": True},
    "floating continuous": {"strike": None, "times": "continuous", "floating": True, "expiry": [0.5, 0.9]},
}  # fmt: skip


@pytest.mark.parametrize("option", ["call", "put"])
@pytest.mark.parametrize("name", CONTRACTS)
def test_small_volatility_of_variance_is_black_scholes(name: str, option: str):
    contract = Asian(option=option, average="geometric", **CONTRACTS[name])
    exact = LOGNORMAL[Asian, BlackScholes](contract, BlackScholes(0.3), MARKET).value
    gaps = []
    for sigma in (1e-3, 1e-5):  # the first order is zero for rho = 0, the second one sigma^2
        gaps.append((price(contract, Heston(0.09, 1.5, 0.09, sigma, 0.0)).value - exact).abs().max().item())
    assert gaps[0] < 1e-4
    assert gaps[1] < 1e-8


@pytest.mark.parametrize("name", CONTRACTS)
def test_simulation(name: str):
    contract = Asian(option="call", average="geometric", **CONTRACTS[name])
    model = Heston(0.04, 2.0, 0.09, 0.5, -0.7)
    exact, simulated = (
        price(contract, model).value,
        MonteCarlo(2**14, n_steps=36, seed=2).price(contract, model, MARKET),
    )
    assert bool((simulated.std_error < 0.15).all())
    assert bool(((simulated.value - exact).abs() < 4 * simulated.std_error).all())


def test_batches_of_models_and_strikes():
    strikes = torch.tensor([90.0, 110.0], dtype=torch.float64)[:, None]
    sigma = torch.tensor([0.2, 0.4, 0.8], dtype=torch.float64)
    whole = price(Asian(strikes, [0.5, 1.0], "put", "geometric"), Heston(0.04, 1.0, 0.06, sigma, -0.5)).value
    for i, j in itertools.product(range(2), range(3)):
        alone = price(Asian(strikes[i, 0], [0.5, 1.0], "put", "geometric"), Heston(0.04, 1.0, 0.06, sigma[j], -0.5))
        assert whole[i, j].item() == pytest.approx(alone.value.item(), abs=1e-8)


@pytest.mark.parametrize("floating", [False, True])
def test_derivatives_against_differences(floating: bool):
    def value(spot: Tensor, expiry: Tensor, v0: Tensor, kappa: Tensor, theta: Tensor, sigma: Tensor, rho: Tensor):
        strike = None if floating else 103.0
        contract = Asian(strike, expiry * torch.tensor([0.4, 1.0], dtype=torch.float64), "call", "geometric", floating)
        return price(contract, Heston(v0, kappa, theta, sigma, rho), Market(spot, 0.03)).value

    numbers = (100.0, 0.9, 0.05, 1.2, 0.06, 0.4, -0.5)
    inputs = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in numbers]
    assert torch.autograd.gradcheck(value, inputs, check_forward_ad=True, rtol=1e-5, atol=1e-6)


def test_deep_seasoned_arithmetic_average_is_a_forward():
    contract = Asian(50.0, [0.5, 1.0], "call", running_average=110.0, n_past=2)
    forwards = [100.0 * math.exp(0.03 * t) for t in (0.5, 1.0)]
    exact = math.exp(-0.05) * ((220.0 + sum(forwards)) / 4 - 50.0)
    assert price(contract, Heston(**KIM_WEE)).value.item() == pytest.approx(exact, rel=1e-13)


@pytest.mark.parametrize("floating", [False, True])
def test_what_has_no_closed_form_says_so(floating: bool):
    with pytest.raises(ValueError, match="arithmetic average has no closed form"):
        price(Asian(None if floating else 100.0, [0.5, 1.0], "call", floating=floating), Heston(**KIM_WEE))


# QuantLib's test suite, asianoptions.cpp: 120 monthly fixings over ten years, r .03; strike -> arithmetic call
ARITHMETIC_CALL = {60.0: 42.5990, 100.0: 18.2360}
FANG_OOSTERLEE = Heston(0.0175, 1.5768, 0.0398, 0.5751, -0.5711)


@pytest.mark.slow
def test_arithmetic_average_published_with_the_geometric_one_as_control():
    fixings, market = [i / 12 for i in range(1, 121)], Market(100.0, 0.03)
    arithmetic, geometric = (
        Asian(list(ARITHMETIC_CALL), fixings, "call", kind) for kind in ("arithmetic", "geometric")
    )
    known = price(geometric, FANG_OOSTERLEE, market).value
    differences = []
    for seed in range(8):
        engine = MonteCarlo(2**13, n_steps=240, seed=seed)
        pair = [engine.price(contract, FANG_OOSTERLEE, market).value for contract in (arithmetic, geometric)]
        differences.append(pair[0] - pair[1])
    repeats = torch.stack(differences)
    error = repeats.std(0) / math.sqrt(8)
    assert bool((error < 0.02).all())
    published = torch.tensor(list(ARITHMETIC_CALL.values()), dtype=torch.float64)
    assert bool(((known + repeats.mean(0) - published).abs() < 4 * error).all())
