"""Rough models through the engines: Fourier, simulation, and each against the other and published prices."""

import pytest
import torch

from pricers.analytic.fourier_engine import Fourier
from pricers.instruments import European, VarianceSwap
from pricers.market import Market
from pricers.models.rough_bergomi import ForwardVarianceCurve, HybridScheme, RoughBergomi, turbocharged_price
from pricers.models.rough_heston import RoughHeston
from pricers.monte_carlo import MonteCarlo
from pricers.noise import Antithetic, Pseudo, Sobol

HESTON = RoughHeston(v0=0.04, kappa=0.3, theta=0.04, sigma=0.4, rho=-0.7, hurst=0.1)
BERGOMI = RoughBergomi(xi=0.04, eta=1.5, hurst=0.1, rho=-0.7)
STRIKES = [75.0, 100.0, 130.0]


def double(value):
    return torch.tensor(value, dtype=torch.float64)


def test_fourier_engine_gives_the_published_prices():
    """QuantLib's test suite; its at-the-money price at one year is 2e-6 short of the limit of its own scheme."""
    call = European(strike=double(STRIKES)[:, None], expiry=double([0.25, 1.0]), option="call")
    price = Fourier().price(call, HESTON, Market(spot=100.0, rate=0.03))
    expected = double([[25.762400, 28.394103], [3.793313, 8.336636], [0.001586, 0.202295]])
    torch.testing.assert_close(price.value, expected, rtol=0.0, atol=6e-7)
    assert price.error_bound.max() < 1e-7


def test_simulated_rough_heston_is_the_fourier_price():
    call, market = European(strike=STRIKES, expiry=1.0, option="call"), Market(spot=100.0, rate=0.03)
    exact = Fourier().price(call, HESTON, market).value
    price = MonteCarlo(n_paths=2**15, n_steps=64, noise="sobol", seed=3).price(call, HESTON, market)
    # the bias that LiftedQuadraticExponential states at 64 steps, with the forward at 103
    assert bool(((price.value - exact).abs() <= 4 * price.std_error + 7e-4 * 103.0).all())
    assert bool((price.std_error < 0.02).all())


@pytest.mark.parametrize("noise", ["pseudo", "antithetic", "sobol"])
@pytest.mark.parametrize("conditional", [True, False])
def test_simulated_rough_bergomi_is_the_mixed_estimate(noise, conditional):
    log_moneyness = double([-0.2, 0.0, 0.15])
    mixed = turbocharged_price(BERGOMI, log_moneyness, [0.5], n_paths=2**16, n_steps=24, seed=5)
    engine = MonteCarlo(n_paths=2**15, n_steps=24, noise=noise, seed=6, conditional=conditional)
    for index, option in enumerate(("put", "call", "call")):
        contract = European(strike=log_moneyness[index].exp(), expiry=0.5, option=option)
        price = engine.price(contract, BERGOMI, Market(spot=1.0))
        error = (price.std_error**2 + mixed.std_error[0, index] ** 2).sqrt()
        assert (price.value - mixed.value[0, index]).abs() <= 4 * error
        assert error < 1e-3


def test_variance_swap_under_a_forward_variance_curve():
    curve = ForwardVarianceCurve([0.0, 1.0], [0.04, 0.06])
    model = RoughBergomi(curve, eta=1.2, hurst=0.2, rho=-0.5)
    price = MonteCarlo(n_paths=2**14, n_steps=50, noise="antithetic", seed=7).price(
        VarianceSwap(strike=0.0, expiry=1.0), model, Market(spot=1.0)
    )
    fair = 0.05 - 0.02 / 100  # mean of the curve, less what the variance at the start of a step leaves out
    assert (price.value - fair).abs() <= 4 * price.std_error
    assert price.std_error < 1e-3


@pytest.mark.parametrize("kind", [Pseudo, Antithetic, Sobol])
def test_noise_of_every_kind_gives_the_volterra_process_its_variance(kind):
    """A Sobol stream cut along time would lose almost all of it: dimensions are steps times normals."""
    n_steps, n_paths, hurst = 100, 2**14, 0.1
    grid = torch.linspace(0.0, 0.5, n_steps + 1, dtype=torch.float64)
    normals = kind(seed=8).normals(0, 0, n_paths, grid.diff(), 2)
    noise = torch.stack([normals.step(step).clone() for step in range(n_steps)])
    model = RoughBergomi(xi=double(0.04), eta=double(1.0), hurst=double(hurst), rho=double(-0.5))
    logs = HybridScheme().variances(model, grid, noise).log()
    expected = grid[1:-1] ** (2 * hurst)
    # relative standard error of a variance: the root of 2 / n
    assert ((logs[1:].var(-1) / expected - 1.0).abs() <= 5 * (2 / n_paths) ** 0.5 + 1.5e-3).all()
