"""Rows and prices of `pricers` objects, with the engine's own value in place of a network's: they must be the engine's.

Asked at a spot of 100 of a problem whose spot is 1, unless the contract does not scale with it.
"""

import pytest
import torch

import pricers as pr
from qfml.errors import DataError
from qfml.surrogate import Problem, Range
from qfml.surrogate.quoting import greeks_of, price_of, rows_of

VOL = {"vol": Range(0.1, 0.4)}
STRIKE = VOL | {"expiry": Range(0.2, 2.0), "strike": Range(0.5, 2.0)}
MARKET = {"spot": 1.0, "rate": 0.03, "dividend_yield": 0.01}
MODEL = pr.BlackScholes([0.2, 0.3])
HUNDRED, ONE = pr.Market(100.0, 0.03, 0.01), pr.Market(1.0, 0.03, 0.01)


def black_scholes(instrument, box, target="price", market=None):
    market = MARKET if market is None else market
    return Problem(model={"kind": "black_scholes"}, instrument=instrument, market=market, box=box, target=target)


def quoted(problem, *triple):
    """What a surrogate without error says."""
    rows, shape = rows_of(problem, *triple)
    return price_of(problem, problem.exact(rows), triple, shape)


OUT = {"kind": "barrier", "barrier_kind": "down-out", "rebate": 0.02}
SCALING = {
    "european": ({"kind": "european"}, STRIKE, "price", pr.European(95.0, 1.0)),
    "time value": ({"kind": "european", "option": "put"}, STRIKE, "time_value", pr.European(105.0, 1.0, "put")),
    "asset digital": ({"kind": "digital", "pays": "asset"}, STRIKE, "price", pr.Digital(95.0, 1.0, pays="asset")),
    "barrier": (
        OUT,
        STRIKE | {"barrier": Range(0.6, 0.95)},
        "price",
        pr.Barrier(strike=95.0, expiry=1.0, barrier=80.0, kind="down-out", rebate=2.0),
    ),
    "lookback": ({"kind": "lookback"}, STRIKE, "price", pr.Lookback(95.0, 1.0)),
    "forward start": (
        {"kind": "forward_start", "reset": 0.5, "expiry": 1.0},
        VOL | {"moneyness": Range(0.5, 2.0)},
        "price",
        pr.ForwardStart(1.05, 0.5, 1.0),
    ),
}


@pytest.mark.parametrize("name", SCALING)
def test_contracts_that_scale_with_the_spot_are_priced_at_any(name):
    instrument, box, target, contract = SCALING[name]
    problem = black_scholes(instrument, box, target)
    exact = pr.price(contract, MODEL, HUNDRED).value
    torch.testing.assert_close(quoted(problem, contract, MODEL, HUNDRED), exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("instrument", "contract"),
    [({"kind": "digital"}, pr.Digital(0.9, 1.0)), ({"kind": "variance_swap"}, pr.VarianceSwap(0.9, 1.0))],
)
def test_contracts_that_do_not_are_priced_at_their_own_spot_only(instrument, contract):
    problem = black_scholes(instrument, STRIKE)
    exact = pr.price(contract, MODEL, ONE).value.expand(2)
    torch.testing.assert_close(quoted(problem, contract, MODEL, ONE), exact, rtol=1e-9, atol=0)
    with pytest.raises(DataError, match=r"`spot` of the market is \[1.0\] wherever .* got \[100.0\]"):
        quoted(problem, contract, MODEL, HUNDRED)


def test_cash_dividends_fix_the_spot_and_themselves():
    dividends = {"times": [0.4], "amounts": [0.05]}
    problem = black_scholes({"kind": "european"}, STRIKE, market=MARKET | {"dividends": dividends})
    own = pr.Market(1.0, 0.03, 0.01, pr.CashDividends([0.4], [0.05]))
    contract = pr.European(0.95, 1.0)
    torch.testing.assert_close(rows_of(problem, contract, MODEL, own)[0][:, 2], torch.full((2,), 0.95).double())
    with pytest.raises(DataError, match="`spot` of the market"):
        rows_of(problem, pr.European(95.0, 1.0), MODEL, pr.Market(100.0, 0.03, 0.01, pr.CashDividends([0.4], [0.05])))
    box = VOL | {"expiry": Range(0.2, 2.0), "log_moneyness": Range(-0.5, 0.5)}
    for target in ("implied_vol", "price"):
        without = black_scholes({"kind": "european"}, box, target)
        with pytest.raises(DataError, match="`dividends` of the market"):
            rows_of(without, contract, MODEL, own)


def test_a_vol_in_strikes_of_one_forward_is_asked_in_that_market():
    problem = black_scholes({"kind": "european"}, STRIKE, "implied_vol")
    with pytest.raises(DataError, match="`rate` of the market"):
        rows_of(problem, pr.European(95.0, 1.0), MODEL, pr.Market(100.0, 0.08))


def test_another_kind_of_barrier_is_refused():
    problem = black_scholes(OUT, STRIKE | {"barrier": Range(0.6, 0.95)})
    other = pr.Barrier(strike=95.0, expiry=1.0, barrier=80.0, kind="down-in", rebate=2.0)
    with pytest.raises(DataError, match=r"`barrier_kind` of the instrument is 'down-out' wherever .* got 'down-in'"):
        rows_of(problem, other, MODEL, HUNDRED)


def test_a_curve_where_a_number_varied_is_refused():
    problem = black_scholes({"kind": "european"}, STRIKE | {"rate": Range(0.0, 0.1)}, market={"spot": 1.0})
    curve = pr.Market(1.0, pr.ZeroCurve([1.0, 2.0], [0.03, 0.04]))
    with pytest.raises(DataError, match="`rate` of the market must be a number wherever the surrogate was trained"):
        rows_of(problem, pr.European(0.95, 1.0), MODEL, curve)


# ------------------------------------------------------------------ derivatives


def greeks(problem, triple, wrt):
    shape = rows_of(problem, *triple)[1]

    def price(moved):
        return quoted(problem, *moved)

    return greeks_of(problem, price, triple, shape, wrt)


LOG_MONEYNESS = STRIKE.copy()
LOG_MONEYNESS["log_moneyness"] = Range(-0.5, 0.5)
del LOG_MONEYNESS["strike"]
WITHOUT_RATES = ("spot", "strike", "vol", "expiry", ("spot", "spot"), ("spot", "vol"))


@pytest.mark.parametrize("target", ["price", "time_value", "implied_vol"])
@pytest.mark.parametrize("strike", ["strike", "log_moneyness"])
def test_greeks_in_what_varied_are_the_engines(target, strike):
    problem = black_scholes({"kind": "european"}, STRIKE if strike == "strike" else LOG_MONEYNESS, target)
    any_market = target == "implied_vol" and strike == "log_moneyness"
    triple = (pr.European([95.0, 110.0], 1.0), MODEL, pr.Market(100.0, *((0.05, 0.02) if any_market else (0.03, 0.01))))
    wrt = (*WITHOUT_RATES, "rate", "dividend_yield") if any_market else WITHOUT_RATES
    found, exact = greeks(problem, triple, wrt), pr.greeks(*triple, wrt)
    for name in wrt:
        torch.testing.assert_close(found[name], exact[name].value, rtol=1e-6, atol=1e-7)
    if not any_market:
        for name in ("rate", "dividend_yield", ("spot", "rate")):
            with pytest.raises(
                DataError, match=r"of the market did not vary .* it has derivatives in expiry, spot, str"
            ):
                greeks(problem, triple, (name,))


def test_greeks_in_what_did_not_vary_are_refused():
    box = {"v0": Range(0.02, 0.2), "log_moneyness": Range(-0.4, 0.3)}
    fixed = {"kind": "heston", "kappa": 1.5, "theta": 0.06, "sigma": 0.4, "rho": -0.5}
    problem = Problem(model=fixed, instrument={"kind": "european", "expiry": 0.7}, box=box, target="implied_vol")
    triple = (pr.European(95.0, 0.7), pr.Heston(0.05, 1.5, 0.06, 0.4, -0.5), HUNDRED)
    for name in ("kappa", "expiry"):
        with pytest.raises(
            DataError, match=f"`{name}` of the .* it has derivatives in dividend_yield, rate, spot, str"
        ):
            greeks(problem, triple, (name,))
    # a barrier that is fixed in units of the spot would have to move with it
    problem = black_scholes(OUT | {"barrier": 0.8}, STRIKE)
    triple = (pr.Barrier(strike=95.0, expiry=1.0, barrier=80.0, kind="down-out", rebate=2.0), MODEL, HUNDRED)
    with pytest.raises(DataError, match="`spot` of the market did not vary"):
        greeks(problem, triple, ("spot",))
