"""Greeks from the derivatives of an implied vol, by the formulas of docs/export.md, beside those of `pricers`."""

from dataclasses import replace

import pytest
import torch

import pricers as pr

HESTON, MARKET = pr.Heston(0.04, 1.5, 0.06, 0.5, -0.6), pr.Market(100.0, rate=0.03, dividend_yield=0.01)
STRIKE, EXPIRY = 95.0, 0.8
NAMES = ("spot", "strike", "rate", "dividend_yield", "expiry", "v0", "rho")


def vol(k, expiry, model):
    """The surface w(k, T, p), which a surrogate learns: of the forward 1, without rates."""
    strike = float(torch.exp(torch.tensor(k, dtype=torch.float64)))
    value = pr.price(pr.European(strike, expiry), model, pr.Market(1.0)).value
    return float(pr.implied_vol(value, 1.0, strike, expiry))


def slope(function, at, step=1e-4):
    return (function(at + step) - function(at - step)) / (2 * step)


def test_greeks_from_the_derivatives_of_an_implied_vol():
    call = pr.European(STRIKE, EXPIRY)
    rate, dividends = float(MARKET.rate), float(MARKET.dividend_yield)
    k = float(torch.log(torch.tensor(STRIKE / float(MARKET.spot), dtype=torch.float64))) - (rate - dividends) * EXPIRY
    w = vol(k, EXPIRY, HESTON)
    by_k = slope(lambda x: vol(x, EXPIRY, HESTON), k)
    by_expiry = slope(lambda x: vol(k, x, HESTON), EXPIRY)
    black = pr.greeks(call, pr.BlackScholes(w), MARKET, wrt=(*NAMES[:5], "vol"))
    c = {name: float(one.value) for name, one in black.items()}
    spot = float(MARKET.spot)
    found = {
        "spot": c["spot"] - c["vol"] * by_k / spot,
        "strike": c["strike"] + c["vol"] * by_k / STRIKE,
        "rate": c["rate"] - EXPIRY * c["vol"] * by_k,
        "dividend_yield": c["dividend_yield"] + EXPIRY * c["vol"] * by_k,
        "expiry": c["expiry"] + c["vol"] * (by_expiry - (rate - dividends) * by_k),
    }
    for name in ("v0", "rho"):
        moved = slope(lambda x, name=name: vol(k, EXPIRY, replace(HESTON, **{name: x})), float(getattr(HESTON, name)))
        found[name] = c["vol"] * moved
    truth = pr.greeks(call, HESTON, MARKET, wrt=NAMES)
    for name in NAMES:
        assert found[name] == pytest.approx(float(truth[name].value), rel=1e-5), name
    assert abs(by_k) > 0.05, "a flat smile would not tell the formulas apart"
