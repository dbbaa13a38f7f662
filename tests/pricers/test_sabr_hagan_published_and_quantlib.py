"""Hagan's SABR smile: published values, QuantLib, mpmath at the money, derivatives, and prices from it."""

import math

import mpmath
import pytest
import QuantLib as ql  # noqa: N813  # the name the whole field uses
import torch
from torch.func import jvp

from pricers.analytic.sabr import digital_sabr, european_sabr, hagan_lognormal_vol, hagan_normal_vol
from pricers.instruments.digital import Digital
from pricers.instruments.european import European
from pricers.market import Market
from pricers.models.sabr import SABR

# forward, strike, expiry, alpha, beta, rho, nu, vol.
# QuantLib, test-suite/interestrates.cpp and sabr tests (R package values); recomputed independently.
PUBLISHED = [
    (0.039, 0.03, 1.0, 0.3, 0.6, 0.01, 0.02, 1.16725837321531),
    (0.039, 0.04, 1.0, 0.3, 0.6, 0.01, 0.02, 1.10145609357162),
    (0.039, 0.06, 1.0, 0.3, 0.6, 0.01, 0.02, 1.01326171139321),
    (0.039, 0.09, 1.0, 0.3, 0.6, 0.01, 0.02, 0.930289384251337),
    (120.0, 106.0, 17 / 365, 1.63, 0.6, 2e-5, 3.3, 0.33284656705268817),
    (110.0, 130.0, 200 / 365, 0.31, 0.5, -0.02, 2.8, 0.1805437461785543),
    (110.0, 130.0, 200 / 365, 0.31, 1.0, 0.2, 2.8, 0.5679836366288498),
]
# Calls that the parameters alpha 1.5, beta .5, nu .33, rho .1 reproduce (forward 100, half a year).
ROUND_TRIP_STRIKES = [80.0, 90.0, 100.0, 110.0, 120.0]
ROUND_TRIP_CALLS = [20.09689284, 10.91953054, 4.25012702, 1.11561839, 0.20815853]


def tensors(*numbers):
    return [torch.tensor(number, dtype=torch.float64) for number in numbers]


@pytest.mark.parametrize("case", PUBLISHED, ids=lambda case: f"F={case[0]}, K={case[1]}, beta={case[4]}")
def test_published_vols(case):
    *arguments, vol = case
    assert hagan_lognormal_vol(*tensors(*arguments)).item() == pytest.approx(vol, rel=1e-12)


def test_the_expansion_is_as_wrong_as_published_on_the_case_of_antonov_and_spector():
    """Antonov and Spector (2012): it gives .7176 / .2427 / .1322 where the truth is .5715 / .2304 / .1301."""
    strikes = torch.tensor([0.1, 1.0, 2.0], dtype=torch.float64)
    one, ten, alpha, beta, rho, nu = tensors(1.0, 10.0, 0.25, 0.3, -0.8, 0.3)
    vols = hagan_lognormal_vol(one, strikes, ten, alpha, beta, rho, nu)
    assert vols.tolist() == pytest.approx([0.7176, 0.2427, 0.1322], abs=5e-5)  # the printed digits


def test_the_calibration_round_trip_prices():
    call = European(strike=ROUND_TRIP_STRIKES, expiry=0.5)
    estimate = european_sabr(call, SABR(alpha=1.5, beta=0.5, rho=0.1, nu=0.33), Market(spot=100.0))
    assert estimate.value.tolist() == pytest.approx(
        ROUND_TRIP_CALLS, abs=1e-8
    )  # the printed digits are cut, not rounded
    assert "approximation" in estimate.note
    assert estimate.engine == "analytic"


GRID = [
    (f, k, t, a, b, r, n)
    for f, a_scale in ((0.03, 1.0), (100.0, 1.0))
    for k in (0.4 * f, 0.95 * f, 0.999 * f, f, 1.3 * f, 3.0 * f)
    for t in (0.05, 2.0)
    for b in (0.0, 0.35, 1.0)
    for a in (0.2 * f ** (1 - b) * a_scale,)
    for r in (-0.95, 0.0, 0.6)
    for n in (0.01, 0.4, 2.0)
]


def test_both_vols_equal_quantlib_on_a_grid():
    columns = torch.tensor(GRID, dtype=torch.float64).unbind(-1)
    lognormal, normal = hagan_lognormal_vol(*columns), hagan_normal_vol(*columns)
    for index, (f, k, t, a, b, r, n) in enumerate(GRID):
        # QuantLib loses digits in x(z) at small z (eps / z) and reads log(F/K) near the money by a short series
        expected = ql.sabrVolatility(k, f, t, a, b, n, r)
        assert lognormal[index].item() == pytest.approx(expected, rel=1e-9), GRID[index]
        expected = ql.sabrVolatility(k, f, t, a, b, n, r, ql.Normal)
        assert normal[index].item() == pytest.approx(expected, rel=1e-9), GRID[index]


def test_shift_moves_forward_and_strike():
    f, k, t, a, b, r, n = tensors(0.01, -0.005, 1.0, 0.03, 0.5, -0.2, 0.4)
    expected = ql.shiftedSabrVolatility(-0.005, 0.01, 1.0, 0.03, 0.5, 0.4, -0.2, 0.02, ql.Normal)
    assert hagan_normal_vol(f, k, t, a, b, r, n, shift=0.02).item() == pytest.approx(expected, rel=1e-12)
    model = SABR(alpha=0.03, beta=0.5, rho=-0.2, nu=0.4, shift=0.02)
    price = european_sabr(European(strike=0.015, expiry=1.0), model, Market(spot=0.01)).value.item()
    vol = ql.shiftedSabrVolatility(0.015, 0.01, 1.0, 0.03, 0.5, 0.4, -0.2, 0.02)
    assert price == pytest.approx(ql.blackFormula(ql.Option.Call, 0.015, 0.01, vol, 1.0, 0.02), rel=1e-12)


def exact_vol(f, k, t, a, b, r, n):
    """Hagan's formula at 60 digits, with its limit at the money."""
    f, k, t, a, b, r, n = map(mpmath.mpf, (f, k, t, a, b, r, n))
    ell, backbone = mpmath.log(f / k), (f * k) ** ((1 - b) / 2)
    z = n / a * backbone * ell
    x = mpmath.log((mpmath.sqrt(1 - 2 * r * z + z * z) + z - r) / (1 - r))
    ratio = z / x if z != 0 else mpmath.mpf(1)
    level = a / (backbone * (1 + (1 - b) ** 2 / 24 * ell**2 + (1 - b) ** 4 / 1920 * ell**4))
    growth = (1 - b) ** 2 / 24 * a**2 / backbone**2 + r * b * n * a / 4 / backbone + (2 - 3 * r * r) / 24 * n * n
    return level * ratio * (1 + growth * t)


@pytest.mark.parametrize("moneyness", [-2.0, -1e-2, -1e-5, -1e-9, 1e-13, 1e-7, 1e-3, 0.3, 5.0])
@pytest.mark.parametrize("rho", [-0.999999, -0.5, 0.0, 0.7, 0.9999999])
@pytest.mark.parametrize("nu", [1e-12, 0.3, 4.0])
def test_the_vol_is_exact_to_rounding_at_any_distance_from_the_money(moneyness, rho, nu):
    strike = 100.0 * math.exp(moneyness)
    arguments = (100.0, strike, 1.5, 2.0, 0.4, rho, nu)
    with mpmath.workdps(60):
        expected = float(exact_vol(*arguments))
    assert hagan_lognormal_vol(*tensors(*arguments)).item() == pytest.approx(expected, rel=2e-14)


# torch builds its forward mode with its own deprecated compiler, and says so
FORWARD_MODE = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
NAMES = ["forward", "strike", "expiry", "alpha", "beta", "rho", "nu"]


@pytest.mark.parametrize("strike", [100.0, 100.0 * (1 + 1e-7), 97.0, 160.0])
def test_first_and_second_derivatives_are_exact_at_and_near_the_money(strike):
    """mpmath differentiates at 120 digits; its step skips the removable singularity at the money."""
    point = (100.0, strike, 1.5, 2.0, 0.4, -0.6, 0.8)
    inputs = [value.requires_grad_() for value in tensors(*point)]
    first = torch.autograd.grad(hagan_lognormal_vol(*inputs), inputs, create_graph=True)
    for i, name in enumerate(NAMES):
        second = torch.autograd.grad(first[i], inputs, retain_graph=True, allow_unused=True, materialize_grads=True)
        with mpmath.workdps(120):
            order = [0] * len(NAMES)
            order[i] = 1
            assert first[i].item() == pytest.approx(float(derivative(point, order)), rel=1e-11, abs=1e-14), name
            for j in range(len(NAMES)):
                mixed = list(order)
                mixed[j] += 1
                # second derivatives lose some digits where 1 / (strike - forward) is near
                expected = float(derivative(point, mixed))
                assert second[j].item() == pytest.approx(expected, rel=1e-9, abs=1e-12), (name, NAMES[j])


def derivative(point, order):
    """Central differences at 120 digits, from a point an invisible 1e-25 off the money."""
    h = mpmath.mpf(10) ** -14
    moved = [mpmath.mpf(value) for value in point]
    moved[1] += mpmath.mpf(10) ** -25

    def walk(position, values):
        if position == len(order):
            return exact_vol(*values)

        def at(shift):
            changed = list(values)
            changed[position] += shift * h * max(1, abs(values[position]))
            return walk(position + 1, changed)

        scale = h * max(1, abs(values[position]))
        if order[position] == 0:
            return walk(position + 1, values)
        if order[position] == 1:
            return (at(1) - at(-1)) / (2 * scale)
        return (at(1) - 2 * at(0) + at(-1)) / scale**2

    return walk(0, moved)


@FORWARD_MODE
@pytest.mark.parametrize("strike", [100.0, 80.0])
@pytest.mark.parametrize("vol", [hagan_lognormal_vol, hagan_normal_vol], ids=["lognormal", "normal"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_gradients_of_both_orders_and_modes_agree_with_differences(vol, strike, beta):
    inputs = [value.requires_grad_() for value in tensors(100.0, strike, 1.5, 0.2 * 100 ** (1 - beta), beta, -0.4, 0.5)]
    assert torch.autograd.gradcheck(vol, inputs, check_forward_ad=True, check_undefined_grad=False)
    assert torch.autograd.gradgradcheck(vol, inputs, atol=1e-4, rtol=1e-3)  # differences of gradients


@pytest.mark.parametrize("nu", [0.0, 1e-300, 1e-9])
def test_without_vol_of_vol_everything_stays_finite(nu):
    inputs = [value.requires_grad_() for value in tensors(100.0, 90.0, 1.0, 2.0, 0.5, 0.3, nu)]
    vol = hagan_lognormal_vol(*inputs)
    first = torch.autograd.grad(vol, inputs, create_graph=True)
    second = torch.autograd.grad(first[-1], inputs)
    assert all(part.isfinite() for part in (vol, *first, *second))


def test_put_call_parity_and_discounting():
    market = Market(spot=100.0, rate=0.03, dividend_yield=0.01)
    model = SABR(alpha=2.0, beta=0.5, rho=-0.3, nu=0.5)
    call = european_sabr(European([90.0, 120.0], 2.0, "call"), model, market).value
    put = european_sabr(European([90.0, 120.0], 2.0, "put"), model, market).value
    forward = 100.0 * math.exp(0.02 * 2)
    expected = [math.exp(-0.06) * (forward - strike) for strike in (90.0, 120.0)]
    assert (call - put).tolist() == pytest.approx(expected, rel=1e-12)


@FORWARD_MODE
@pytest.mark.parametrize("option", ["call", "put"])
@pytest.mark.parametrize("shift", [0.0, 20.0])
def test_digitals_are_the_strike_derivative_of_the_european(option, shift):
    strike = torch.tensor([60.0, 100.0, 100.001, 140.0], dtype=torch.float64)
    market = Market(spot=100.0, rate=0.02)
    model = SABR(alpha=2.0, beta=0.5, rho=-0.3, nu=0.5, shift=shift)
    prices, slope = jvp(
        lambda k: european_sabr(European(k, 1.5, option), model, market).value, (strike,), (torch.ones_like(strike),)
    )
    sign = 1.0 if option == "call" else -1.0
    cash = digital_sabr(Digital(strike, 1.5, option, pays="cash"), model, market).value
    assert cash.tolist() == pytest.approx((-sign * slope).tolist(), rel=1e-11)
    asset = digital_sabr(Digital(strike, 1.5, option, pays="asset"), model, market).value
    assert asset.tolist() == pytest.approx((strike * cash + sign * prices).tolist(), rel=1e-11)


def test_a_negative_vol_of_the_expansion_is_refused():
    model = SABR(alpha=0.2, beta=1.0, rho=-0.99, nu=2.0)
    with pytest.raises(
        ValueError, match=r"Hagan's expansion must give a volatility above 0, got -.* at strike 100: it"
    ):
        european_sabr(European(100.0, 10.0), model, Market(spot=100.0))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"alpha": -0.1}, r"`alpha` must be above 0, got -0.1"),
        ({"beta": 1.1}, r"`beta` must lie in \[0, 1\], got 1.1"),
        ({"beta": -0.1}, r"`beta` must lie in \[0, 1\], got -0.1"),
        ({"rho": 1.0}, r"`rho` must lie in \(-1, 1\), got 1"),
        ({"nu": -1.0}, r"`nu` must be 0 or more, got -1"),
        ({"shift": -0.01}, r"`shift` must be 0 or more, got -0.01"),
        ({"nu": float("nan")}, r"`nu` must be finite, got nan"),
        (
            {"nu": [0.1, 0.2], "rho": [0.1, 0.2, 0.3]},
            r"`rho` of shape \(3,\) and `nu` of shape \(2,\) do not broadcast",
        ),
    ],
)
def test_parameters_outside_their_range_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        SABR(**{"alpha": 0.3, "beta": 0.5, "rho": -0.2, "nu": 0.4} | changed)
