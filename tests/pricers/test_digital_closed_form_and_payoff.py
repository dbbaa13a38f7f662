"""Digital options: closed forms against published values, QuantLib and parity; payoffs; bad input."""

import numpy as np
import pytest
import QuantLib as ql  # noqa: N813  # its own tests call it so
import torch
from derivatives import assert_derivatives

from pricers.analytic.digital import digital_formula, digital_price
from pricers.analytic.engine import Analytic
from pricers.instruments.digital import Digital
from pricers.instruments.european import European
from pricers.market import CashDividends, Market, ZeroCurve
from pricers.models.black_scholes import BlackScholes
from pricers.paths import Paths


def number(x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


def test_digital_haug_examples():
    # Haug (2007), sections 4.19.2 and 4.19.3: 10 units of cash 2.6710; asset-or-nothing put 20.2069
    cash = Digital(80.0, 0.75, "put", "cash")
    value = digital_formula(cash, BlackScholes(0.35), Market(100.0, 0.06, 0.06)).value
    assert 10.0 * value.item() == pytest.approx(2.6710, abs=5.1e-5)
    asset = Digital(65.0, 0.5, "put", "asset")
    value = digital_formula(asset, BlackScholes(0.27), Market(70.0, 0.07, 0.05)).value
    assert value.item() == pytest.approx(20.2069, abs=5.1e-5)


@pytest.mark.parametrize("pays", ["cash", "asset"])
@pytest.mark.parametrize("option", ["call", "put"])
def test_digital_quantlib_grid(option, pays):
    today, day_count = ql.Date(15, 1, 2024), ql.Actual365Fixed()
    ql.Settings.instance().evaluationDate = today
    side = ql.Option.Call if option == "call" else ql.Option.Put
    random = np.random.default_rng(5)
    for _ in range(100):
        strike, vol = float(random.uniform(50.0, 200.0)), float(random.uniform(0.05, 0.8))
        rate, income = float(random.uniform(-0.03, 0.1)), float(random.uniform(-0.03, 0.1))
        days = int(random.integers(2, 5000))
        curves = [ql.YieldTermStructureHandle(ql.FlatForward(today, level, day_count)) for level in (income, rate)]
        flat_vol = ql.BlackVolTermStructureHandle(ql.BlackConstantVol(today, ql.NullCalendar(), vol, day_count))
        process = ql.BlackScholesMertonProcess(ql.QuoteHandle(ql.SimpleQuote(100.0)), *curves, flat_vol)
        payoff = ql.CashOrNothingPayoff(side, strike, 1.0) if pays == "cash" else ql.AssetOrNothingPayoff(side, strike)
        contract = ql.VanillaOption(payoff, ql.EuropeanExercise(today + days))
        contract.setPricingEngine(ql.AnalyticEuropeanEngine(process))
        market = Market(number(100.0), number(rate), number(income))
        ours = digital_formula(
            Digital(number(strike), number(days / 365), option, pays), BlackScholes(number(vol)), market
        )
        assert ours.value.item() == pytest.approx(contract.NPV(), rel=1e-12, abs=1e-13)


@pytest.mark.parametrize("option", ["call", "put"])
def test_asset_less_cash_is_the_european_under_a_curve(option):
    curve = ZeroCurve(*torch.tensor([[0.5, 2.0], [0.01, 0.04]], dtype=torch.float64))
    market, model = Market(number(100.0), curve, number(0.02)), BlackScholes(number(0.3))
    strike, expiry = torch.tensor([[80.0], [110.0]], dtype=torch.float64), torch.tensor([0.3, 1.2], dtype=torch.float64)
    asset = digital_formula(Digital(strike, expiry, option, "asset"), model, market).value
    cash = digital_formula(Digital(strike, expiry, option, "cash"), model, market).value
    european = Analytic().price(European(strike, expiry, option), model, market).value
    sign = 1.0 if option == "call" else -1.0
    torch.testing.assert_close(sign * (asset - strike * cash), european, rtol=1e-12, atol=1e-12)


def test_call_and_put_digitals_add_up():
    market, model = Market(number(100.0), number(0.03), number(0.01)), BlackScholes(number(0.2))
    strike, expiry = torch.linspace(60.0, 150.0, 20, dtype=torch.float64), number(1.5)
    for pays, whole in (("cash", market.discount(expiry)), ("asset", market.discount(expiry) * market.forward(expiry))):
        both = [
            digital_formula(Digital(strike, expiry, option, pays), model, market).value for option in ("call", "put")
        ]
        torch.testing.assert_close(both[0] + both[1], whole.expand(20), rtol=1e-14, atol=0.0)
        assert (both[0].diff() < 0).all()
        assert (both[1].diff() > 0).all()


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own forward mode
@pytest.mark.parametrize("pays", ["cash", "asset"])
@pytest.mark.parametrize("option", ["call", "put"])
def test_digital_derivatives_of_both_orders(option, pays):
    def value(forward, strike, expiry, discount, vol):
        return digital_price(forward, strike, expiry, discount, vol, option, pays)

    assert_derivatives(value, [104.0, 95.0, 0.8, 0.95, 0.3])


def test_gradients_are_finite_for_tiny_vol_and_expiry():
    for pays in ("cash", "asset"):
        vol = torch.tensor([1e-6, 1e-3, 5.0], dtype=torch.float64).requires_grad_()
        expiry = torch.tensor([[1e-8], [1e-3], [30.0]], dtype=torch.float64).requires_grad_()
        values = digital_price(number(100.0), number(99.0), expiry, number(1.0), vol, "call", pays)
        for gradient in torch.autograd.grad(values.sum(), (vol, expiry)):
            assert gradient.isfinite().all()
        assert values[0, 0].item() == pytest.approx(1.0 if pays == "cash" else 100.0, rel=1e-14)


def test_digital_payoff_by_hand():
    spot = torch.tensor([[100.0, 90.0], [100.0, 100.0], [100.0, 120.0]], dtype=torch.float64)
    paths = Paths(torch.tensor([0.0, 1.0], dtype=torch.float64), spot)

    def discount(time):
        return torch.exp(-0.1 * time)

    factor = np.exp(-0.1)
    cases = {
        ("call", "cash"): [0.0, 1.0, 1.0],  # the strike itself belongs to the call
        ("put", "cash"): [1.0, 0.0, 0.0],
        ("call", "asset"): [0.0, 100.0, 120.0],
        ("put", "asset"): [90.0, 0.0, 0.0],
    }
    for (option, pays), expected in cases.items():
        contract = Digital(number(100.0), number(1.0), option, pays)
        assert contract.payoff(paths, discount).tolist() == pytest.approx([factor * x for x in expected])
        assert contract.discontinuous


def test_digital_shifted_moves_the_expiry():
    later = Digital(100.0, [1.0, 2.0], "put", "asset").shifted(number(0.25))
    assert later.expiry.tolist() == [0.75, 1.75]
    assert (later.option, later.pays, later.dates.shape) == ("put", "asset", (2, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1.0), "`strike` must be above 0, got 0"),
        ((float("nan"), 1.0), "`strike` must be finite"),
        ((100.0, -1.0), "`expiry` must be above 0, got -1"),
        ((100.0, 1.0, "straddle"), "`option` must be one of 'call', 'put', got 'straddle'"),
        ((100.0, 1.0, "call", "gold"), "`pays` must be one of 'cash', 'asset', got 'gold'"),
        (([90.0, 100.0], [1.0, 2.0, 3.0]), r"`strike` of shape \(2,\) and `expiry` of shape \(3,\)"),
    ],
)
def test_digital_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Digital(*arguments)


def test_digital_formula_refuses_cash_dividends():
    market = Market(100.0, dividends=CashDividends([0.5], [1.0]))
    with pytest.raises(ValueError, match="without cash dividends; use FiniteDifference or MonteCarlo"):
        digital_formula(Digital(100.0, 1.0), BlackScholes(0.2), market)
