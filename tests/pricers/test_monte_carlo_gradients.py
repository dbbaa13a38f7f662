"""Reverse-mode derivatives of simulated prices: against bumps on the same noise, at ordinary and extreme parameters."""

import pytest
import torch

import pricers as pr

MARKET = pr.Market(100.0, 0.03)
CALL = pr.European(100.0, 1.0)
ASIAN = pr.Asian(100.0, [0.25, 0.5, 0.75, 1.0])
HESTON = (0.04, 2.0, 0.05, 0.5, -0.6)


def price(instrument, parameters, spot, **settings):
    engine = pr.MonteCarlo(4096, n_steps=16, seed=1, **settings)
    return pr.price(instrument, pr.Heston(*parameters), pr.Market(spot, 0.03), engine).value


@pytest.mark.slow
@pytest.mark.parametrize("instrument", [CALL, ASIAN], ids=["european", "asian"])
@pytest.mark.parametrize("conditional", [None, False])
@pytest.mark.parametrize("controls", [True, False])
@pytest.mark.parametrize("noise", ["pseudo", "sobol"])
def test_backward_through_a_simulated_price_equals_bumps(instrument, conditional, controls, noise):
    settings = {"conditional": conditional, "controls": controls, "noise": noise}
    inputs = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (*HESTON, 100.0)]
    value = price(instrument, inputs[:5], inputs[5], **settings)
    found = torch.autograd.grad(value, inputs)
    for index in (0, 5):  # v0 and the spot: smooth along each path, so that a bump is exact to its square
        size = 1e-4 * inputs[index].item()
        moved = [[x.item() + (sign * size if i == index else 0.0) for i, x in enumerate(inputs)] for sign in (1, -1)]
        up, down = (price(instrument, numbers[:5], numbers[5], **settings) for numbers in moved)
        # the few paths at the kink of the payoff, or at the switch of the scheme, within the bump: 1 % of the slope
        assert found[index].item() == pytest.approx((up - down).item() / (2 * size), rel=1e-2)


@pytest.mark.parametrize(
    "parameters", [HESTON, (0.04, 0.01, 0.05, 0.5, -0.6), (0.04, 2.0, 0.001, 0.5, -0.6), (0.04, 2.0, 0.05, 2.0, -0.6)]
)
@pytest.mark.parametrize("scheme", ["qe-m", "qe", "euler"])
def test_gradients_are_numbers_where_the_variance_stays_at_zero(parameters, scheme):
    inputs = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in parameters]
    engine = pr.MonteCarlo(64, n_steps=3, seed=1, scheme=scheme, conditional=False)
    value = pr.price(CALL, pr.Heston(*inputs), MARKET, engine).value
    assert all(bool(gradient.isfinite()) for gradient in torch.autograd.grad(value, inputs))


def test_the_value_is_the_same_with_and_without_a_graph():
    spot = torch.tensor(100.0, dtype=torch.float64, requires_grad=True)
    recorded = price(CALL, HESTON, spot)
    assert recorded.item() == price(CALL, HESTON, 100.0).item()
    with torch.no_grad():
        assert not price(CALL, HESTON, spot).requires_grad
