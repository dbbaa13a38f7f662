"""American and Bermudan options, dividends included, by finite differences against published values and QuantLib."""

import pytest
import QuantLib as ql  # noqa: N813  # its own documentation's name
import torch

from pricers.finite_difference import FiniteDifference
from pricers.instruments.early_exercise import American, Bermudan
from pricers.instruments.european import European
from pricers.market import CashDividends, Market, ZeroCurve
from pricers.models.black_scholes import BlackScholes

ENGINE = FiniteDifference()
SMALL = FiniteDifference(n_space=120, n_time=40)

# Longstaff and Schwartz (2001), Table 1, finite-difference column: puts, strike 40, rate .06, spots 36, 38, 40,
# exercise on 50 dates a year; the last row recomputed (the paper prints 8.508, 7.670, 6.920).
LONGSTAFF_SCHWARTZ = [
    (0.2, 1, (4.478, 3.250, 2.314)),
    pytest.param(0.2, 2, (4.840, 3.745, 2.885), marks=pytest.mark.slow),
    pytest.param(0.4, 1, (7.101, 6.148, 5.312), marks=pytest.mark.slow),
    pytest.param(0.4, 2, (8.507, 7.668, 6.917), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("vol", "years", "published"), LONGSTAFF_SCHWARTZ)
def test_bermudan_put_longstaff_schwartz_table(vol, years, published):
    put = Bermudan(40.0, [i / 50 for i in range(1, 50 * years + 1)], "put")
    estimate = ENGINE.price(put, BlackScholes(vol), Market([36.0, 38.0, 40.0], 0.06))
    assert estimate.value.tolist() == pytest.approx(published, abs=5.001e-4)  # the printed digits
    assert (estimate.error_bound < 1e-3).all()


def test_american_put_recomputed_value():
    estimate = ENGINE.price(American(40.0, 1.0, "put"), BlackScholes(0.2), Market(36.0, 0.06))
    # 4.48667: Richardson extrapolation of this scheme at 1,600 x 800, and binomial trees
    assert estimate.value.item() == pytest.approx(4.4867, abs=1e-4)
    assert abs(estimate.value.item() - 4.486674) <= estimate.error_bound.item()


def quantlib_tree(spot, strike, rate, income, vol, expiry, option, n_steps=4001):
    """Mean of two odd-even neighbours of Leisen and Reimer's tree."""
    today = ql.Date(1, 1, 2024)
    ql.Settings.instance().evaluationDate = today
    count = ql.Actual365Fixed()

    def flat(number):
        return ql.YieldTermStructureHandle(ql.FlatForward(today, number, count))

    process = ql.BlackScholesMertonProcess(
        ql.QuoteHandle(ql.SimpleQuote(spot)),
        flat(income),
        flat(rate),
        ql.BlackVolTermStructureHandle(ql.BlackConstantVol(today, ql.NullCalendar(), vol, count)),
    )
    kind = ql.Option.Call if option == "call" else ql.Option.Put
    contract = ql.VanillaOption(
        ql.PlainVanillaPayoff(kind, strike), ql.AmericanExercise(today, today + round(365 * expiry))
    )
    contract.setPricingEngine(ql.BinomialLRVanillaEngine(process, n_steps))
    return contract.NPV()


@pytest.mark.parametrize(
    "case",
    [
        (100.0, 100.0, 0.05, 0.0, 0.25, 1.0, "put"),
        pytest.param((90.0, 100.0, 0.08, 0.02, 0.4, 2.0, "put"), marks=pytest.mark.slow),
        pytest.param((110.0, 100.0, 0.03, 0.07, 0.3, 1.0, "call"), marks=pytest.mark.slow),
        (100.0, 100.0, -0.01, 0.0, 0.2, 1.0, "call"),  # a negative rate: worth more than the European
    ],
)
def test_american_quantlib_tree(case):
    *numbers, option = case
    spot, strike, rate, income, vol, expiry = numbers
    estimate = ENGINE.price(American(strike, expiry, option), BlackScholes(vol), Market(spot, rate, income))
    tree = quantlib_tree(*case)
    assert estimate.value.item() == pytest.approx(tree, abs=2e-5 * spot)
    assert abs(estimate.value.item() - tree) <= estimate.error_bound.item() + 1e-5 * spot  # of the tree itself


def test_american_call_without_dividends_is_european():
    market, model = Market([80.0, 100.0, 125.0], 0.05), BlackScholes(0.3)
    american = SMALL.price(American(100.0, 2.0, "call"), model, market).value
    torch.testing.assert_close(american, SMALL.price(European(100.0, 2.0), model, market).value, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_american_put_smooth_fit():
    """Across the exercise boundary the delta is continuous and the gamma jumps to 0."""
    spots = torch.linspace(75.0, 95.0, 401, dtype=torch.float64)
    put, model, market = American(100.0, 1.0, "put"), BlackScholes(0.25), Market(spots, 0.06)
    value = ENGINE.price(put, model, market).value
    delta, gamma = (estimate.value for estimate in ENGINE.delta_gamma(put, model, market))
    held = value > 100.0 - spots + 1e-4
    boundary = int(held.to(torch.int8).argmax())
    assert 20 < boundary < 380
    assert (value >= 100.0 - spots - 1e-12).all()
    assert delta[:boundary].add(1.0).abs().max() < 2e-3
    assert delta.diff().abs().max() < 0.05 * 0.06  # no jump: the step of the spots times a bound of gamma
    assert gamma[: boundary - 20].abs().max() < 1e-3
    assert gamma[boundary + 20] > 0.02


@pytest.mark.slow
def test_bermudan_dates_converge_to_american_from_below():
    market, model = Market(36.0, 0.06), BlackScholes(0.2)
    american = ENGINE.price(American(40.0, 1.0, "put"), model, market).value.item()
    values = [
        ENGINE.price(Bermudan(40.0, [(i + 1) / n for i in range(n)], "put"), model, market).value.item()
        for n in (1, 4, 16, 64)
    ]
    assert values == sorted(values)
    assert values[-1] < american < values[-1] + 0.01
    european = ENGINE.price(European(40.0, 1.0, "put"), model, market).value.item()
    assert values[0] == pytest.approx(european, abs=1e-6)


def quantlib_cash_dividends(spot, strike, rate, vol, expiry, option, american, dividends):
    today = ql.Date(1, 1, 2024)
    ql.Settings.instance().evaluationDate = today
    count = ql.Actual365Fixed()
    process = ql.BlackScholesProcess(
        ql.QuoteHandle(ql.SimpleQuote(spot)),
        ql.YieldTermStructureHandle(ql.FlatForward(today, rate, count)),
        ql.BlackVolTermStructureHandle(ql.BlackConstantVol(today, ql.NullCalendar(), vol, count)),
    )
    kind = ql.Option.Call if option == "call" else ql.Option.Put
    last = today + round(365 * expiry)
    exercise = ql.AmericanExercise(today, last) if american else ql.EuropeanExercise(last)
    contract = ql.VanillaOption(ql.PlainVanillaPayoff(kind, strike), exercise)
    schedule = ql.DividendVector([today + days for days, _ in dividends], [amount for _, amount in dividends])
    contract.setPricingEngine(
        ql.FdBlackScholesVanillaEngine(
            process,
            schedule,
            800,
            1600,
            0,
            ql.FdmSchemeDesc.Douglas(),
            False,
            -ql.nullDouble(),
            ql.FdBlackScholesVanillaEngine.Spot,
        )
    )
    return contract.NPV()


@pytest.mark.parametrize(
    ("option", "american"),
    [
        ("call", True),
        ("put", False),
        pytest.param("put", True, marks=pytest.mark.slow),
        pytest.param("call", False, marks=pytest.mark.slow),
    ],
)
def test_cash_dividends_quantlib_spot_model(option, american):
    dividends = [(73, 3.0), (219, 4.0)]
    contract = (American if american else European)([90.0, 100.0, 110.0], 1.0, option)
    market = Market(100.0, 0.05, dividends=CashDividends([days / 365 for days, _ in dividends], [3.0, 4.0]))
    estimate = ENGINE.price(contract, BlackScholes(0.25), market)
    oracle = [
        quantlib_cash_dividends(100.0, strike, 0.05, 0.25, 1.0, option, american, dividends)
        for strike in (90.0, 100.0, 110.0)
    ]
    assert estimate.value.tolist() == pytest.approx(oracle, abs=3e-3)  # of 1,600 x 800 nodes there
    assert (estimate.error_bound < 3e-3).all()


def test_cash_dividends_put_call_parity():
    """A forward pays the dividends' growth away exactly while the spot can pay them."""
    dividends = CashDividends([0.25, 0.75, 1.5], [2.0, 2.5, 9.0])  # the last after expiry
    market, model = Market(100.0, 0.04, 0.01, dividends), BlackScholes(0.2)
    call, put = (ENGINE.price(European(100.0, 1.0, option), model, market) for option in ("call", "put"))
    one = torch.tensor(1.0, dtype=torch.float64)
    forward = market.discount(one) * (market.forward(one) - 100.0)
    assert (call.value - put.value).item() == pytest.approx(forward.item(), abs=1e-5)


def test_term_structure_of_rates():
    """European prices know only the two integrals; an American knows the path of rates."""
    curve = ZeroCurve([0.25, 1.0], [0.08, 0.03])
    flat = Market(100.0, 0.03, 0.01)
    market = Market(100.0, curve, 0.01)
    model = BlackScholes(0.2)
    european = SMALL.price(European(100.0, 1.0, "put"), model, market).value.item()
    assert european == pytest.approx(SMALL.price(European(100.0, 1.0, "put"), model, flat).value.item(), abs=1e-9)
    american = SMALL.price(American(100.0, 1.0, "put"), model, market).value.item()
    assert abs(american - SMALL.price(American(100.0, 1.0, "put"), model, flat).value.item()) > 1e-3
