"""Black-76 and Bachelier prices against 50-digit arithmetic, parity and the bounds that no arbitrage sets."""

import itertools
import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pricers.black import (
    bachelier_call_put,
    bachelier_digital,
    bachelier_price,
    black_call_put,
    black_digital,
    black_price,
)

mp = mpmath.mp.clone()
mp.dps = 50
FORWARD = 100.0
# total vols of 1 day at 1e-3 to 30 years at 5; both sides of every change of formula
TOTAL_VOLS = (5e-5, 1e-3, 0.02, 0.059, 0.061, 0.3, 1.0, 1.99, 2.01, 5.0, 12.0, 27.0)
DISTANCES = (0.0, 1e-9, 0.1, 0.7, 1.5, 3.0, 6.9, 7.1, 10.0)  # between forward and strike, in total vols


def black(forward: float, strike: float, total_vol: float) -> tuple[mpmath.mpf, mpmath.mpf]:
    """Call and put, textbook formula."""
    f, k, s = mp.mpf(forward), mp.mpf(strike), mp.mpf(total_vol)
    d1 = mp.log(f / k) / s + s / 2
    return f * mp.ncdf(d1) - k * mp.ncdf(d1 - s), k * mp.ncdf(s - d1) - f * mp.ncdf(-d1)


def bachelier(forward: float, strike: float, total_vol: float) -> tuple[mpmath.mpf, mpmath.mpf]:
    f, k, s = mp.mpf(forward), mp.mpf(strike), mp.mpf(total_vol)
    d = (f - k) / s
    return (f - k) * mp.ncdf(d) + s * mp.npdf(d), (k - f) * mp.ncdf(-d) + s * mp.npdf(d)


def tensor(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_black_prices_have_full_relative_accuracy_in_both_wings() -> None:
    worst = 0.0
    for s, distance, side in itertools.product(TOTAL_VOLS, DISTANCES, (1, -1)):
        strike = FORWARD * math.exp(side * distance * s)
        prices = black_call_put(tensor(FORWARD), tensor(strike), tensor(s))
        for price, exact in zip(prices, black(FORWARD, strike, s), strict=True):
            worst = max(worst, float(abs(mp.mpf(price.item()) / exact - 1)))
    assert worst < 1e-13  # about eps times the square of the distance, and eps / 0.06 at the end of the series


def test_bachelier_prices_have_full_relative_accuracy_in_both_wings() -> None:
    worst = 0.0
    for s, distance, side in itertools.product((1e-8, 1.0, 30.0), (*DISTANCES, 20.0, 35.0), (1, -1)):
        strike = FORWARD + side * distance * s
        prices = bachelier_call_put(tensor(FORWARD), tensor(strike), tensor(s))
        for price, exact in zip(prices, bachelier(FORWARD, strike, s), strict=True):
            worst = max(worst, float(abs(mp.mpf(price.item()) / exact - 1)))
    assert worst < 5e-13  # eps times the square of the distance of 35


@pytest.mark.parametrize("option", ["call", "put"])
def test_digitals_match_the_normal_law(option: str) -> None:
    sign = 1 if option == "call" else -1
    forward, strike, expiry, vol, discount = 90.0, 120.0, 0.75, 0.25, 0.9375
    s = mp.mpf(vol) * mp.sqrt(mp.mpf(expiry))
    d1 = mp.log(mp.mpf(forward) / strike) / s + s / 2
    arguments = (forward, strike, expiry, vol, tensor(discount), option)
    asset = discount * forward * mp.ncdf(sign * d1)
    assert black_digital(*arguments).item() == pytest.approx(float(discount * mp.ncdf(sign * (d1 - s))), rel=1e-14)
    assert black_digital(*arguments, pays="asset").item() == pytest.approx(float(asset), rel=1e-14)
    d = (mp.mpf(forward) - strike) / (20 * mp.sqrt(mp.mpf(expiry)))
    normal = bachelier_digital(forward, strike, expiry, 20.0, tensor(discount), option).item()
    assert normal == pytest.approx(float(discount * mp.ncdf(sign * d)), rel=1e-14)


def test_digitals_keep_their_relative_accuracy_in_the_wing() -> None:
    deviation = mp.mpf(0.125)
    d2 = mp.log(mp.mpf(100) / 400) / deviation - deviation / 2
    assert black_digital(100.0, 400.0, 1.0, 0.125).item() == pytest.approx(float(mp.ncdf(d2)), rel=1e-13)


def test_a_call_is_the_asset_digital_less_strike_cash_digitals() -> None:
    strike = tensor([60.0, 100.0, 170.0])
    cash = black_digital(100.0, strike, 2.0, 0.25, 0.875)
    asset = black_digital(100.0, strike, 2.0, 0.25, 0.875, pays="asset")
    torch.testing.assert_close(black_price(100.0, strike, 2.0, 0.25, 0.875), asset - strike * cash, rtol=1e-12, atol=0)


positive = st.floats(1e-3, 1e3)


@given(forward=positive, strike=positive, expiry=st.floats(1 / 365, 30), vol=st.floats(1e-3, 5))
def test_black_parity_bounds_and_symmetry(forward: float, strike: float, expiry: float, vol: float) -> None:
    arguments = [tensor(number) for number in (forward, strike, expiry, vol, 0.875)]
    call, put = (black_price(*arguments, option=option).item() for option in ("call", "put"))
    slack = 4e-16 * 0.875 * max(forward, strike)
    assert call - put == pytest.approx(0.875 * (forward - strike), abs=2 * slack)
    assert max(0.875 * (forward - strike), 0.0) - slack <= call <= 0.875 * forward + slack
    assert max(0.875 * (strike - forward), 0.0) - slack <= put <= 0.875 * strike + slack
    swapped = black_price(arguments[1], arguments[0], *arguments[2:], option="put").item()
    assert call == pytest.approx(swapped, rel=1e-15)  # a call on the forward is a put on the strike


@given(forward=st.floats(-100, 100), strike=st.floats(-100, 100), vol=st.floats(1e-3, 100))
def test_bachelier_parity_and_bounds(forward: float, strike: float, vol: float) -> None:
    arguments = [tensor(number) for number in (forward, strike, 2.0, vol, 0.875)]
    call, put = (bachelier_price(*arguments, option=option).item() for option in ("call", "put"))
    assert call - put == pytest.approx(0.875 * (forward - strike), abs=1e-13 + 1e-15 * vol)
    assert call >= max(0.875 * (forward - strike), 0.0) - 1e-13
    assert put >= max(0.875 * (strike - forward), 0.0) - 1e-13


def test_no_vol_or_no_time_leaves_the_intrinsic_value_and_a_finite_gradient() -> None:
    strike = tensor([80.0, 100.0, 120.0])
    vol = torch.tensor([0.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    expiry = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64, requires_grad=True)
    for price in (black_price, bachelier_price):
        for vols, times in ((vol, expiry), (tensor(0.2), 0.0 * expiry)):
            value = price(100.0, strike, times, vols)
            assert value.tolist() == [20.0, 0.0, 0.0]
            slopes = torch.autograd.grad(value.sum(), (vol, expiry), allow_unused=True)
            assert all(bool(slope.isfinite().all()) for slope in slopes if slope is not None)
    at_the_money = torch.autograd.grad(black_price(100.0, strike, 1.0, vol).sum(), vol)[0][1].item()
    assert at_the_money == pytest.approx(100.0 / math.sqrt(2 * math.pi), rel=1e-14)
    assert black_digital(100.0, strike, 0.0, 0.2).tolist() == [1.0, 0.5, 0.0]


def test_single_precision_stays_single_precision() -> None:
    strike = torch.tensor([80.0, 100.0, 130.0])
    price = black_price(torch.tensor(100.0), strike, torch.tensor(1.0), torch.tensor(0.2), torch.tensor(1.0))
    assert price.dtype == torch.float32
    exact = [float(black(100.0, k, float(torch.tensor(0.2)))[0]) for k in strike.tolist()]
    # the difference of two Mills' ratios loses a few eps over the total vol
    rtol = 5 * torch.finfo(torch.float32).eps / 0.2
    torch.testing.assert_close(price, torch.tensor(exact), rtol=rtol, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forward": 0.0}, "`forward` must be above 0, got 0"),
        ({"strike": -1.0}, "`strike` must be above 0, got -1"),
        ({"expiry": -0.1}, "`expiry` must be 0 or more, got -0.1"),
        ({"vol": -0.2}, "`vol` must be 0 or more, got -0.2"),
        ({"discount": 0.0}, "`discount` must be above 0, got 0"),
        ({"vol": math.nan}, "`vol` must be finite, got nan"),
        ({"option": "calls"}, "`option` must be one of 'call', 'put', got 'calls'"),
        ({"strike": [1.0, 2.0], "vol": [0.1, 0.2, 0.3]}, r"`strike` of shape \(2,\) and `vol` of shape \(3,\)"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], message: str) -> None:
    good = {"forward": 100.0, "strike": 100.0, "expiry": 1.0, "vol": 0.2, "discount": 1.0, "option": "call"}
    with pytest.raises(ValueError, match=message):
        black_price(**(good | change))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("price", [black_price, bachelier_price])
def test_a_vol_of_almost_nothing_leaves_the_intrinsic_value_and_a_finite_gradient(price, dtype) -> None:
    tiny = [1e-40, 1e-35, 1e-20, 1e-16] if dtype == torch.float32 else [1e-320, 1e-300, 1e-170, 1e-100, 1e-31]
    vol = torch.tensor(tiny, dtype=dtype, requires_grad=True)
    for strike in (80.0, 120.0):
        value = price(torch.tensor(100.0, dtype=dtype), strike, 1.0, vol)
        assert value.tolist() == [max(100.0 - strike, 0.0)] * len(tiny)
        assert torch.autograd.grad(value.sum(), vol)[0].tolist() == [0.0] * len(tiny)
