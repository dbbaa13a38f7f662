"""Local volatility by finite differences: a flat surface, and constant elasticity of variance in closed form."""

import math

import pytest
import torch
from scipy.stats import ncx2

from pricers.finite_difference import FiniteDifference
from pricers.finite_difference.contracts import averaged_payoff
from pricers.finite_difference.grids import interpolate, stretched
from pricers.finite_difference.line import Line, solve_line
from pricers.instruments.barrier import Barrier
from pricers.instruments.early_exercise import American
from pricers.instruments.european import European
from pricers.market import Market
from pricers.models.black_scholes import BlackScholes
from pricers.models.local_vol import LocalVol
from pricers.models.vol_surface import VolSurface


def number(value):
    return torch.tensor(value, dtype=torch.float64)


def test_flat_surface_is_black_scholes():
    surface = VolSurface(log_moneyness=[-0.4, -0.2, 0.0, 0.2, 0.4], expiries=[0.5, 1.0], vols=[[0.25] * 5, [0.25] * 5])
    engine, market = FiniteDifference(n_space=80, n_time=20), Market(100.0, 0.06, 0.02)
    for contract in (
        European([90.0, 100.0, 110.0], 1.0),
        American(100.0, 0.75, "put"),
        Barrier(100.0, 1.0, 85.0, "down-out", "call", 2.0),
    ):
        local = engine.price(contract, LocalVol(surface), market)
        plain = engine.price(contract, BlackScholes(0.25), market)
        assert ((local.value - plain.value).abs() <= local.error_bound + plain.error_bound).all(), contract
        torch.testing.assert_close(local.value, plain.value, rtol=0.0, atol=5e-3)


@pytest.mark.parametrize("beta", [0.5, 0.8])
def test_constant_elasticity_of_variance(beta):
    r"""$dS = \sigma S^\beta dW$ on the forward: Schroder (1989) by the noncentral chi-square law."""
    sigma, strike, expiry = 0.25, 1.0, 1.0
    spots = [0.8, 1.0, 1.3]
    low, high = number(math.log(1.0)) - 4.0, number(math.log(1.0)) + 2.0
    zero = number(0.0)
    nodes = stretched(low, high, 400, zero.reshape(1), number([0.125]), zero).exp()
    line = Line(
        payoff=lambda grid: averaged_payoff("call", grid),
        dates=number([expiry]),
        variance=lambda spot, time: sigma**2 * spot ** (2.0 * beta - 2.0),
        discount=torch.ones_like,
        growth=torch.ones_like,
    )
    values = interpolate(nodes, solve_line(line, nodes, 100), number(spots))
    for spot, value in zip(spots, values.tolist()):
        a = strike ** (2 * (1 - beta)) / ((1 - beta) ** 2 * sigma**2 * expiry)
        b, c = 1 / (1 - beta), spot ** (2 * (1 - beta)) / ((1 - beta) ** 2 * sigma**2 * expiry)
        exact = spot * (1 - ncx2.cdf(a, b + 2, c)) - strike * ncx2.cdf(c, b, a)
        assert value == pytest.approx(exact, abs=5e-6)


@pytest.mark.slow
def test_smile_reprices_its_own_surface():
    """Dupire's local variance of a surface gives back the implied volatilities it was made from."""
    moneyness = [-0.5, -0.3, -0.1, 0.0, 0.1, 0.3, 0.5]
    vols = [[0.25 - 0.15 * k + 0.2 * k * k for k in moneyness] for _ in range(3)]
    surface = VolSurface(log_moneyness=moneyness, expiries=[0.25, 0.5, 1.0], vols=vols)
    market = Market(100.0, 0.03, 0.01)
    forward = market.forward(number(1.0))
    strikes = forward * torch.exp(number([-0.3, -0.1, 0.0, 0.1, 0.3]))
    local = FiniteDifference().price(European(strikes, 1.0), LocalVol(surface), market)
    for index, column in enumerate((1, 2, 3, 4, 5)):
        plain = FiniteDifference().price(European(strikes[index], 1.0), BlackScholes(vols[2][column]), market)
        assert local.value[index].item() == pytest.approx(plain.value.item(), abs=2e-2)
