"""Known means of controls: where nothing is random every path has them, and the geometric basket has its formula."""

import math
from statistics import NormalDist

import pytest
import torch

import pricers as pr

RATE, CARRY = 0.1, 0.03
CERTAIN = 1e-7  # a volatility without which every path ends at the forward


def two_assets(vol):
    return pr.BlackScholes([vol, vol], correlation=[[1.0, 0.3], [0.3, 1.0]])


@pytest.mark.parametrize(
    ("contract", "n_assets"),
    [
        (pr.Basket(60.0, 2.0, "call", weights=[0.5, 0.25]), 2),
        (pr.Basket(120.0, 2.0, "put", weights=[0.5, 0.25]), 2),
        (pr.Asian(80.0, [0.5, 1.0, 2.0], "call"), 1),
        (pr.Asian(150.0, [0.5, 1.0, 2.0], "put"), 1),
        (pr.Digital(80.0, 2.0, "call"), 1),
        (pr.Barrier(80.0, 2.0, 50.0, "down-out", "call"), 1),
        (pr.Lookback(80.0, 2.0, "call"), 1),
    ],
)
def test_where_nothing_is_random_each_path_has_the_known_mean(contract, n_assets):
    model = pr.BlackScholes(CERTAIN) if n_assets == 1 else two_assets(CERTAIN)
    market = pr.Market(100.0 if n_assets == 1 else [100.0, 100.0], RATE, CARRY)
    sampler = pr.MonteCarlo(2, seed=1, n_steps=4, conditional=False).sampler(contract, model, market)
    assert sampler.known is not None
    rows = sampler.values(0, 0, 2)[1:]
    assert rows.shape[0] == sampler.known.shape[-1]
    torch.testing.assert_close(rows, sampler.known.unsqueeze(-1).expand_as(rows), rtol=1e-5, atol=1e-5)
    assert (sampler.known > 1.0).all()


def test_mean_of_the_geometric_basket_by_its_lognormal_law():
    spots, weights, vols, rho, expiry, strike = (100.0, 80.0), (0.5, 0.7), (0.2, 0.35), 0.4, 1.5, 90.0
    total = sum(weights)
    shares = [w / total for w in weights]
    growth = math.exp((RATE - CARRY) * expiry)
    # logarithm of the geometric mean, scaled to the sum of the weights
    mean = math.log(total) + sum(
        a * (math.log(s * growth) - 0.5 * v * v * expiry) for a, s, v in zip(shares, spots, vols)
    )
    legs = [a * v for a, v in zip(shares, vols)]
    deviation = math.sqrt((legs[0] ** 2 + legs[1] ** 2 + 2.0 * rho * legs[0] * legs[1]) * expiry)
    d2 = (mean - math.log(strike)) / deviation
    cdf = NormalDist().cdf
    call = math.exp(mean + 0.5 * deviation**2) * cdf(d2 + deviation) - strike * cdf(d2)
    contract = pr.Basket(strike, expiry, "call", weights=list(weights))
    model = pr.BlackScholes(list(vols), correlation=[[1.0, rho], [rho, 1.0]])
    sampler = pr.MonteCarlo(2, seed=1).sampler(contract, model, pr.Market(list(spots), RATE, CARRY))
    assert sampler.known.item() == pytest.approx(math.exp(-RATE * expiry) * call, rel=1e-10)


def test_a_basket_has_one_price_with_and_without_its_control():
    contract = pr.Basket(100.0, 1.0, weights=[0.5, 0.5])
    market = pr.Market([100.0, 100.0], RATE)
    with_control, without = (
        pr.MonteCarlo(2**15, seed=2, controls=controls).price(contract, two_assets(0.2), market)
        for controls in (True, False)
    )
    assert with_control.std_error < 0.1 * without.std_error
    assert (with_control.value - without.value).abs() < 4.0 * without.std_error
