"""Implied vols against the inverse in 50-digit arithmetic, over vols, wings and expiries, and densely by prices."""

import itertools
import math

import mpmath
import pytest
import torch

from pricers.black import bachelier_call_put, bachelier_implied_vol, black_call_put, implied_vol

mp = mpmath.mp.clone()
mp.dps = 50
EPS = 2.0**-52
FORWARD = 100.0
VOLS = (1e-3, 0.01, 0.07, 0.25, 0.8, 2.0, 5.0)
EXPIRIES = (1 / 365, 0.125, 1.0, 6.0, 30.0)
DISTANCES = (0.0, 1e-10, 0.05, 0.4, 1.0, 2.0, 3.5, 5.0, 7.0, 10.0)  # log(strike / forward) in total vols


def black(forward, strike, s, sign):
    """Price and vega by total vol."""
    f, k = mp.mpf(forward), mp.mpf(strike)
    d1 = mp.log(f / k) / s + s / 2
    return sign * (f * mp.ncdf(sign * d1) - k * mp.ncdf(sign * (d1 - s))), f * mp.npdf(d1)


def bachelier(forward, strike, s, sign):
    d = sign * (mp.mpf(forward) - strike) / s
    return s * (d * mp.ncdf(d) + mp.npdf(d)), mp.npdf(d)


def relative_errors(model, invert, strikes_of, vols):
    """Per case: relative error of the vol, and the price over vega times vol; NaN error where there is no vol."""
    for vol, expiry, distance, side, sign in itertools.product(vols, EXPIRIES, DISTANCES, (1, -1), (1, -1)):
        s = mp.mpf(vol) * mp.sqrt(mp.mpf(expiry))
        strike = strikes_of(side * distance * float(s))
        if not 1e-150 < strike < 1e150:
            continue
        exact, vega = model(FORWARD, strike, s, sign)
        price = float(exact)
        if abs(price) < 1e-290:
            continue  # at the end of the exponents the price itself has no relative accuracy
        in_the_money = sign * (FORWARD - strike) > 0
        vol_of = invert(price, FORWARD, strike, expiry, option="call" if sign > 0 else "put", errors="nan").item()
        condition = float(exact / (vega * s))
        if not in_the_money and condition < 1e6:  # the vol of the rounded price: one Newton step from `vol`
            s = s + (mp.mpf(price) - exact) / vega
        error = float(abs(mp.mpf(vol_of) * mp.sqrt(mp.mpf(expiry)) / s - 1)) if vol_of == vol_of else math.nan
        yield error, condition, in_the_money


def test_black_vols_have_machine_accuracy_from_1e_3_to_5_and_10_total_vols_out() -> None:
    cases = list(relative_errors(black, implied_vol, lambda x: FORWARD * math.exp(x), VOLS))
    out = [(error, condition) for error, condition, inside in cases if not inside and condition < 1e12]
    assert len(out) > 600
    assert max(error / max(1e-12, 4 * EPS * condition) for error, condition in out) <= 1.0
    assert max(error for error, condition in out if condition < 2.0) < 2e-13  # far better than asked
    # in the money the price carries the time value only to its own rounding; beyond 1 % nothing is left to test
    inside = [(error, condition) for error, condition, inside in cases if inside and 4 * EPS * condition < 0.01]
    assert len(inside) > 300
    assert max(error / max(1e-12, 4 * EPS * condition) for error, condition in inside) <= 1.0


def test_normal_vols_have_machine_accuracy_10_total_vols_out() -> None:
    cases = list(relative_errors(bachelier, bachelier_implied_vol, lambda x: FORWARD + x, (1e-3, 0.5, 20.0)))
    out = [(error, condition) for error, condition, inside in cases if not inside]
    assert max(error for error, _ in out) < 1e-13
    inside = [(error, condition) for error, condition, inside in cases if inside and 4 * EPS * condition < 0.01]
    assert max(error / max(1e-12, 4 * EPS * condition) for error, condition in inside) <= 1.0


def test_two_steps_suffice_for_every_total_vol_and_distance() -> None:
    # the price has full relative accuracy (shown elsewhere), so it is the truth here; dense, over every switch
    s = torch.logspace(-8, math.log10(30.0), 700, dtype=torch.float64)[:, None]
    distance = torch.cat([torch.zeros(1), torch.logspace(-8, math.log10(37.0), 300, dtype=torch.float64)])
    strike = torch.exp(distance * s)
    call = black_call_put(torch.ones_like(strike), strike, s)[0]
    usable = (call > 1e-300) & (call < 1 - 1e-12) & (strike < 1e300)
    vol = implied_vol(torch.where(usable, call, math.nan), 1.0, strike.clamp(max=1e300), 1.0, errors="nan")
    density = torch.exp(-0.5 * (0.5 * s - distance) ** 2) / math.sqrt(2 * math.pi)
    bound = (4 * EPS * call / (density * s)).clamp(min=1e-12)
    assert usable.sum() > 150_000
    # the strike is rounded too: eps times the log of the strike over the total vol, squared at most
    assert bool((((vol / s - 1).abs() <= bound) | ~usable).all())


def test_two_steps_suffice_for_every_normal_distance() -> None:
    distance = torch.cat([torch.zeros(1), torch.logspace(-12, math.log10(36.0), 20_000, dtype=torch.float64)])
    price = bachelier_call_put(torch.zeros_like(distance), distance, torch.ones_like(distance))[0]
    torch.testing.assert_close(
        bachelier_implied_vol(price, 0.0, distance, 1.0), torch.ones_like(distance), rtol=1e-13, atol=0
    )


@pytest.mark.parametrize("price", [1e-310, 1e-320])
def test_a_price_at_the_end_of_the_exponents(price: float) -> None:
    forward, strike = 1e4, 2e4  # their quotient with the price underflows
    vol = implied_vol(price, forward, strike, 1.0).item()
    solved = mp.findroot(lambda s: mp.log(black(forward, strike, s, 1)[0]) - mp.log(mp.mpf(price)), mp.mpf(vol))
    assert vol == pytest.approx(float(solved), rel=1e-12)


def test_the_near_infinite_vol_is_told_by_the_distance_from_the_forward() -> None:
    forward, strike, s = 100.0, 250.0, mp.mpf(14)
    price = float(black(forward, strike, s, 1)[0])
    assert price < forward
    exact = mp.findroot(lambda s: black(forward, strike, s, 1)[0] - mp.mpf(price), s)
    assert implied_vol(price, forward, strike, 1.0).item() == pytest.approx(float(exact), rel=1e-12)


def test_single_precision_in_gives_single_precision_out_at_its_accuracy() -> None:
    strike = torch.tensor([80.0, 100.0, 130.0])
    call = black_call_put(torch.full((3,), 100.0), strike, torch.full((3,), 0.2))[0]
    vol = implied_vol(call, torch.tensor(100.0), strike, 1.0)
    assert vol.dtype == torch.float32
    wide = implied_vol(call.double(), 100.0, strike.double(), 1.0)
    assert torch.equal(vol, wide.float())


def test_chunks_do_not_change_a_bit() -> None:
    strike = torch.linspace(40.0, 250.0, 40_001, dtype=torch.float64)
    call = black_call_put(torch.full_like(strike, 100.0), strike, torch.full_like(strike, 0.3))[0]
    whole = implied_vol(call, 100.0, strike, 1.0)
    parts = torch.cat([implied_vol(call[i : i + 999], 100.0, strike[i : i + 999], 1.0) for i in range(0, 40_001, 999)])
    torch.testing.assert_close(whole, parts, rtol=4 * EPS, atol=0)
