"""Finite differences under Heston against published prices."""

import pytest
import torch
from references_pricing import UP_OUT_CALL, UP_OUT_HESTON

from pricers.analytic.fourier_engine import Fourier
from pricers.finite_difference import FiniteDifference
from pricers.instruments.barrier import Barrier
from pricers.instruments.digital import Digital
from pricers.instruments.early_exercise import American, Bermudan
from pricers.instruments.european import European
from pricers.market import Market
from pricers.models.black_scholes import BlackScholes
from pricers.models.heston import Heston

ENGINE = FiniteDifference()
SMALL = FiniteDifference(n_space=120, n_time=40, n_variance=40)

# Calls, spot 100: (v0, kappa, theta, sigma, rho), rate, yield, expiry, strikes, prices, tolerance of the default grid.
LEWIS = (0.04, 4.0, 0.25, 1.0, -0.5)
PUBLISHED = {
    "Lewis": (LEWIS, 0.01, 0.02, 1.0, (80.0, 100.0, 120.0), (26.774758744, 16.070154917, 9.024913483), 2e-5),
    "Andersen (2008) I": (
        (0.04, 0.5, 0.04, 1.0, -0.9),
        0.0,
        0.0,
        10.0,
        (60.0, 70.0, 100.0, 140.0),
        (44.32997507, 35.8497697, 13.08467014, 0.29577444),
        5e-4,
    ),
    "Andersen (2008) II": ((0.04, 0.3, 0.04, 0.9, -0.5), 0.0, 0.0, 15.0, (100.0,), (16.64922292,), 2e-3),
    "Andersen (2008) III": (
        (0.09, 1.0, 0.09, 1.0, -0.3),
        0.05,
        0.0,
        5.0,
        (60.0, 100.0, 140.0),
        (56.57502467, 33.59681806, 18.15695689),
        2e-4,
    ),
    "Broadie and Kaya (2006) 1": ((0.010201, 6.21, 0.019, 0.61, -0.7), 0.0319, 0.0, 1.0, (100.0,), (6.80611331,), 2e-5),
    "Fang and Oosterlee (2008)": (
        (0.0175, 1.5768, 0.0398, 0.5751, -0.5711),
        0.0,
        0.0,
        1.0,
        (100.0,),
        (5.785155434,),
        2e-5,
    ),
    "Buehler et al. (2019)": ((0.04, 1.0, 0.04, 2.0, -0.7), 0.0, 0.0, 30 / 365, (100.0,), (1.6918339251,), 2e-5),
}


@pytest.mark.parametrize(
    "name",
    ["Lewis", "Andersen (2008) I", *(pytest.param(name, marks=pytest.mark.slow) for name in list(PUBLISHED)[2:])],
)
def test_european_heston_published(name):
    parameters, rate, income, expiry, strikes, prices, tolerance = PUBLISHED[name]
    estimate = ENGINE.price(European(list(strikes), expiry), Heston(*parameters), Market(100.0, rate, income))
    error = (estimate.value - torch.tensor(prices, dtype=torch.float64)).abs()
    assert (error <= estimate.error_bound + 1e-8).all()
    assert error.max() <= tolerance


@pytest.mark.slow
def test_delta_and_gamma_heston():
    """Lewis' set: values by Fourier inversion, good to 1e-7."""
    delta, gamma = ENGINE.delta_gamma(European(100.0, 1.0), Heston(*LEWIS), Market(100.0, 0.01, 0.02))
    assert delta.value.item() == pytest.approx(0.5994713250, abs=2e-6)
    assert gamma.value.item() == pytest.approx(0.0092875374, abs=2e-6)


def test_parameter_gradients_heston():
    """Lewis' set: derivatives by v0, kappa, theta, sigma, rho by Fourier inversion, good to 1e-7."""
    parameters = torch.tensor(LEWIS, dtype=torch.float64, requires_grad=True)
    value = SMALL.price(European(100.0, 1.0), Heston(*parameters), Market(100.0, 0.01, 0.02)).value
    (gradient,) = torch.autograd.grad(value, parameters)
    exact = [10.1792654, 0.6898541670, 32.5601334, -1.1131714978, 0.9498327395]
    assert gradient.tolist() == pytest.approx(exact, rel=2e-3)


@pytest.mark.parametrize(
    ("engine", "tolerance"),
    [(SMALL, 6e-5), pytest.param(ENGINE, 3e-5, marks=pytest.mark.slow)],
    ids=["small", "default"],
)
def test_american_put_ikonen_toivanen(engine, tolerance):
    """Ikonen and Toivanen (2004): the published values differ among methods in the fourth digit."""
    put, model = American(10.0, 0.25, "put"), Heston(0.0625, 5.0, 0.16, 0.9, 0.1)
    estimate = engine.price(put, model, Market([8.0, 9.0, 10.0], 0.1))
    assert estimate.value.tolist() == pytest.approx([2.0, 1.10763, 0.520038], abs=tolerance)
    assert (estimate.error_bound < 1e-3).all()


@pytest.mark.slow
def test_up_and_out_call():
    call, model, market = Barrier(100.0, 1.0, 135.0, "up-out"), Heston(*UP_OUT_HESTON), Market(100.0, 0.05)
    estimate = ENGINE.price(call, model, market)
    assert estimate.value.item() == pytest.approx(9.1535, abs=5e-3)
    assert abs(estimate.value.item() - 9.154) <= estimate.error_bound.item()
    delta, gamma = ENGINE.delta_gamma(call, model, market)
    assert delta.value.item() == pytest.approx(UP_OUT_CALL["delta"], abs=1e-3)
    assert gamma.value.item() == pytest.approx(UP_OUT_CALL["gamma"], abs=3e-4)


@pytest.mark.slow
def test_vanishing_vol_of_vol_is_black_scholes():
    model, market = Heston(0.04, 1.0, 0.04, 1e-6, -0.5), Market(100.0, 0.05)
    for contract in (
        European([90.0, 110.0], 1.0),
        American(100.0, 1.0, "put"),
        Digital(100.0, 1.0),
        Barrier(100.0, 1.0, 85.0, "down-out", "put", 1.0),
        Bermudan(100.0, [0.5, 1.0], "put"),
    ):
        heston = SMALL.price(contract, model, market)
        plain = ENGINE.price(contract, BlackScholes(0.2), market)
        difference = (heston.value - plain.value).abs()
        assert (difference <= heston.error_bound + plain.error_bound + 1e-5).all(), contract


def test_variance_zero_today():
    contract, model, market = European([80.0, 100.0, 120.0], 1.0), Heston(0.0, 2.0, 0.04, 0.5, -0.5), Market(100.0)
    estimate, exact = SMALL.price(contract, model, market), Fourier().price(contract, model, market)
    error = (estimate.value - exact.value).abs()
    assert (error <= estimate.error_bound).all()
    assert error.max() < 5e-5
