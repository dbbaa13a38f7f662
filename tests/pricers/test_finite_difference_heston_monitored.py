"""Barriers watched on dates under Heston by finite differences: Fourier, exact simulation, limits, convergence."""

from itertools import pairwise

import pytest
import torch

import pricers as pr

HESTON = pr.Heston(0.04, 1.5, 0.06, 0.5, -0.7)
MARKET = pr.Market(100.0, 0.03, 0.01)
ENGINE = pr.FiniteDifference()
TINY = pr.FiniteDifference(n_space=60, n_time=16, n_variance=24)
SMALL = pr.FiniteDifference(n_space=120, n_time=40, n_variance=40)
QUARTERS = [0.25, 0.5, 0.75, 1.0]


def double(x):
    return torch.tensor(x, dtype=torch.float64)


def watched_at_expiry(strike, level, kind, option, rebate, model, market):
    """An out that is looked at on its last day alone is a spread, a digital and a rebate: by Fourier inversion."""
    inside = "put" if kind == "up-out" else "call"  # where the option is alive
    sign = 1.0 if option == "call" else -1.0

    def price(contract):
        return pr.price(contract, model, market, pr.Fourier()).value

    pays_inside = (option == "put") == (kind == "up-out")
    dead = "call" if inside == "put" else "put"
    paid = price(pr.European(strike, 1.0, option))
    if not pays_inside:  # between strike and level: take off what lies beyond
        beyond = price(pr.European(level, 1.0, option))
        paid = paid - beyond - sign * (level - strike) * price(pr.Digital(level, 1.0, dead))
    return paid + rebate * price(pr.Digital(level, 1.0, dead))


@pytest.mark.parametrize(
    ("kind", "option", "level"),
    [("up-out", "call", 120.0), pytest.param("down-out", "put", 85.0, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize(
    "model",
    [HESTON, pytest.param(pr.Heston(0.09, 1.0, 0.09, 1.0, -0.3), marks=pytest.mark.slow)],
)
def test_a_look_at_expiry_alone_against_fourier(kind, option, level, model):
    strikes = double([95.0, 100.0, 110.0])
    contract = pr.Barrier(strikes, 1.0, level, kind, option, 2.0, [1.0])
    found = ENGINE.price(contract, model, MARKET)
    exact = watched_at_expiry(strikes, double(level), kind, option, 2.0, model, MARKET)
    error = (found.value - exact).abs()
    assert (error <= found.error_bound).all()
    assert error.max() < 1e-3  # a hundred-thousandth of the spot


@pytest.mark.parametrize(
    ("kind", "option", "level"),
    [
        ("down-out", "call", 90.0),
        pytest.param("up-out", "call", 120.0, marks=pytest.mark.slow),
        pytest.param("down-out", "put", 85.0, marks=pytest.mark.slow),
        pytest.param("up-in", "call", 120.0, marks=pytest.mark.slow),
    ],
)
def test_exact_simulation(kind, option, level):
    contract = pr.Barrier([95.0, 105.0], 1.0, level, kind, option, 2.0, QUARTERS)
    found = ENGINE.price(contract, HESTON, MARKET)
    simulated = pr.price(contract, HESTON, MARKET, pr.MonteCarlo(2**17, seed=2, scheme="exact", noise="antithetic"))
    assert (simulated.std_error < 0.05).all()
    assert ((found.value - simulated.value).abs() <= 4.0 * simulated.std_error + found.error_bound).all()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "level"), [("down-out", 90.0), ("up-out", 120.0)])
def test_without_vol_of_vol_it_is_black_scholes_on_a_line(kind, level):
    """The line is compared with a convolution in a file of its own."""
    contract = pr.Barrier(100.0, 1.0, level, kind, "call", 2.0, QUARTERS)
    heston = SMALL.price(contract, pr.Heston(0.04, 1.0, 0.04, 1e-6, -0.5), MARKET)
    plain = ENGINE.price(contract, pr.BlackScholes(0.2), MARKET)
    assert abs(heston.value - plain.value) <= heston.error_bound + plain.error_bound
    assert heston.value.item() == pytest.approx(plain.value.item(), abs=5e-3)


def test_in_and_out_make_the_european():
    out, inside = (
        SMALL.price(pr.Barrier(100.0, 1.0, 80.0, kind, "put", 0.0, QUARTERS), HESTON, MARKET).value.item()
        for kind in ("down-out", "down-in")
    )
    european = SMALL.price(pr.European(100.0, 1.0, "put"), HESTON, MARKET).value.item()
    assert out + inside == pytest.approx(european, abs=1e-9)


def test_the_error_falls_with_the_square_of_the_resolution():
    contract = pr.Barrier(100.0, 1.0, 90.0, "down-out", "call", 2.0, QUARTERS)
    coarse, fine = (pr.FiniteDifference(n, n // 3, n // 3).price(contract, HESTON, MARKET) for n in (120, 240))
    assert coarse.error_bound / fine.error_bound > 3.0
    assert (
        abs(coarse.value - fine.value) <= 0.25 * coarse.error_bound
    )  # the extrapolated value is better than its bound


@pytest.mark.slow
def test_dense_monitoring_tends_to_continuous_watching():
    """Like the root of the time between two looks, whose first two powers are taken out."""

    def value(monitoring):
        contract = pr.Barrier(100.0, 1.0, 90.0, "down-out", "call", 2.0, monitoring)
        return SMALL.price(contract, HESTON, MARKET).value.item()

    continuous = value("continuous")
    seen = [value([(i + 1) / n for i in range(n)]) for n in (16, 32, 64)]
    assert seen[0] > seen[1] > seen[2] > continuous
    root = 2.0**0.5
    once = [finer + (finer - coarser) / (root - 1.0) for coarser, finer in pairwise(seen)]
    twice = 2.0 * once[1] - once[0]
    assert twice == pytest.approx(continuous, abs=0.02 * (seen[2] - continuous))


def test_batches_and_derivatives():
    levels, v0 = double([85.0, 90.0]), double(0.04).requires_grad_()
    model = pr.Heston(v0, 1.5, 0.06, 0.5, -0.7)
    found = TINY.price(pr.Barrier(100.0, 1.0, levels, "down-out", "put", 0.0, [0.5, 1.0]), model, MARKET).value
    for level, value in zip(levels, found, strict=True):
        alone = TINY.price(pr.Barrier(100.0, 1.0, level, "down-out", "put", 0.0, [0.5, 1.0]), HESTON, MARKET).value
        assert value.item() == pytest.approx(alone.item(), abs=1e-9)
    (slope,) = torch.autograd.grad(found[1], v0)
    contract = pr.Barrier(100.0, 1.0, 90.0, "down-out", "put", 0.0, [0.5, 1.0])
    up, down = (
        TINY.price(contract, pr.Heston(0.04 + h, 1.5, 0.06, 0.5, -0.7), MARKET).value.item() for h in (1e-4, -1e-4)
    )
    assert slope.item() == pytest.approx((up - down) / 2e-4, rel=2e-2)


@pytest.mark.slow
def test_delta_and_gamma_against_fourier():
    contract = pr.Barrier(100.0, 1.0, 120.0, "up-out", "call", 2.0, [1.0])
    delta, gamma = ENGINE.delta_gamma(contract, HESTON, MARKET)

    def value(spot):
        market = pr.Market(spot, 0.03, 0.01)
        return watched_at_expiry(double(100.0), double(120.0), "up-out", "call", 2.0, HESTON, market)

    spot = double(100.0).requires_grad_()
    (first,) = torch.autograd.grad(value(spot), spot, create_graph=True)
    (second,) = torch.autograd.grad(first, spot)
    assert delta.value.item() == pytest.approx(first.item(), abs=2e-4)
    assert gamma.value.item() == pytest.approx(second.item(), abs=2e-5)
