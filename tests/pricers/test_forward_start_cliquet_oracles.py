"""Forward starts and cliquets: published value, QuantLib, brute force on paths, limits, derivatives."""

import itertools
import math
import re

import pytest
import QuantLib as ql  # noqa: N813 - the name that its own examples use
import torch
from lognormal_paths import flat_discount, lognormal_paths, mean_and_error
from torch import Tensor

from pricers.analytic.forward_start import FORMULAS
from pricers.black.price import black_price
from pricers.instruments.forward_start import Cliquet, ForwardStart
from pricers.market import CashDividends, Market, ZeroCurve
from pricers.models.black_scholes import BlackScholes

# torch itself loads its deprecated script compiler with the first forward-mode derivative
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

# Haug (1998), Option pricing formulas, page 37: S 60, 10 % out of the money, reset .25, T 1, r .08, q .04, vol .3
FORWARD_START_CALL = 4.4064


def value(instrument: ForwardStart | Cliquet, vol: float | Tensor, market: Market) -> Tensor:
    return FORMULAS[type(instrument), BlackScholes](instrument, BlackScholes(vol), market).value


def test_forward_start_published():
    ours = value(ForwardStart(1.1, 0.25, 1.0, "call"), 0.3, Market(60.0, 0.08, 0.04))
    assert ours.item() == pytest.approx(FORWARD_START_CALL, abs=6e-5)  # the last digit is cut


@pytest.mark.parametrize("option", ["call", "put"])
def test_forward_start_quantlib(option: str):
    today, count = ql.Date(1, 1, 2024), ql.Actual360()
    ql.Settings.instance().evaluationDate = today
    curves = [ql.YieldTermStructureHandle(ql.FlatForward(today, rate, count)) for rate in (0.04, 0.08)]
    for vol, moneyness, (reset, expiry) in itertools.product([0.1, 0.5], [0.8, 1.0, 1.3], [(9, 36), (180, 900)]):
        surface = ql.BlackVolTermStructureHandle(ql.BlackConstantVol(today, ql.NullCalendar(), vol, count))
        process = ql.BlackScholesMertonProcess(ql.QuoteHandle(ql.SimpleQuote(60.0)), *curves, surface)
        kind = ql.Option.Call if option == "call" else ql.Option.Put
        exercise = ql.EuropeanExercise(today + expiry)
        contract = ql.ForwardVanillaOption(moneyness, today + reset, ql.PlainVanillaPayoff(kind, 0.0), exercise)
        contract.setPricingEngine(ql.ForwardEuropeanEngine(process))
        ours = value(ForwardStart(moneyness, reset / 360, expiry / 360, option), vol, Market(60.0, 0.08, 0.04))
        assert ours.item() == pytest.approx(contract.NPV(), rel=1e-10, abs=1e-12)


def test_forward_start_of_today_is_european():
    market, expiry = Market(60.0, 0.08, 0.04), torch.tensor(0.7, dtype=torch.float64)
    ours = value(ForwardStart(1.1, 0.0, 0.7, "put"), 0.3, market)
    vanilla = black_price(market.forward(expiry), 66.0, expiry, 0.3, market.discount(expiry), "put")
    assert ours.item() == pytest.approx(vanilla.item(), rel=1e-13)


@pytest.mark.parametrize("option", ["call", "put"])
def test_forward_start_payoff_against_formula_on_curves(option: str):
    market = Market(100.0, ZeroCurve([0.5, 1.5], [0.05, 0.05]), 0.01)
    contract = ForwardStart(0.95, 0.5, 1.5, option)
    paths = lognormal_paths([0.5, 1.5], 2**16, rate=0.05, dividend_yield=0.01, vol=0.25)
    mean, error = mean_and_error(contract.payoff(paths, market.discount))
    assert error < 0.06
    assert abs(mean - value(contract, 0.25, market).item()) < 4 * error


def test_forward_start_parity():
    market = Market(100.0, ZeroCurve([0.0, 2.0], [0.01, 0.06]), 0.02)
    call, put = (value(ForwardStart(1.07, 0.4, 1.7, option), 0.35, market).item() for option in ("call", "put"))
    reset, expiry = torch.tensor([0.4, 1.7], dtype=torch.float64)
    forward = market.forward(expiry) - 1.07 * market.forward(reset)
    assert call - put == pytest.approx((market.discount(expiry) * forward).item(), rel=1e-12)


BOUNDS = [(None, None), (0.0, None), (None, 0.05), (-0.03, 0.04), (-1.5, 0.1), (-0.2, -0.05)]


@pytest.mark.parametrize(("floor", "cap"), BOUNDS)
def test_cliquet_payoff_brute_force_and_formula(floor: float | None, cap: float | None):
    times, rate, vol = [0.25, 0.5, 1.0], 0.03, 0.3
    paths = lognormal_paths(times, 2**15, rate=rate, dividend_yield=0.01, vol=vol, seed=3)
    contract = Cliquet([0.0, *times], floor, cap)
    found = contract.payoff(paths, flat_discount(rate))
    for path, ours in zip(paths.spot[:50].tolist(), found[:50].tolist(), strict=True):
        total = 0.0
        for start, end in itertools.pairwise(path):
            earned = end / start - 1
            earned = earned if floor is None else max(earned, floor)
            total += earned if cap is None else min(earned, cap)
        assert ours == pytest.approx(math.exp(-rate) * total, rel=1e-12)
    mean, error = mean_and_error(found)
    exact = value(contract, vol, Market(100.0, rate, 0.01)).item()
    assert abs(mean - exact) < 4 * error < 0.01


def test_cliquet_global_bounds_brute_force():
    paths = lognormal_paths([0.25, 0.5, 1.0], 64, vol=0.3, seed=4)
    bounds = {"local_floor": -0.03, "local_cap": 0.04, "global_floor": 0.01, "global_cap": 0.06}
    found = Cliquet([0.0, 0.25, 0.5, 1.0], **bounds).payoff(paths, flat_discount(0.02))
    for path, ours in zip(paths.spot.tolist(), found.tolist(), strict=True):
        local = [min(max(end / start - 1, -0.03), 0.04) for start, end in itertools.pairwise(path)]
        assert ours == pytest.approx(math.exp(-0.02) * min(max(sum(local), 0.01), 0.06), rel=1e-12)


def test_cliquet_is_a_sum_of_forward_starts():
    # (S_end - m S_start)^+ / S_start is a forward start per unit of the price at its reset
    market, times = Market(1.0, 0.04, 0.04), [0.1, 0.5, 0.8]
    ours = value(Cliquet(times, local_floor=0.0), 0.3, market)
    pieces = [value(ForwardStart(1.0, a, b, "call"), 0.3, market) for a, b in itertools.pairwise(times)]
    at_end = [piece.item() * math.exp(0.04 * (b - 0.8)) for piece, b in zip(pieces, times[1:], strict=True)]
    assert ours.item() == pytest.approx(sum(at_end), rel=1e-12)


def test_cliquet_batches():
    floors = torch.tensor([-0.02, 0.0], dtype=torch.float64)[:, None]
    times = torch.tensor([[0.0, 0.5, 1.0], [0.1, 0.3, 0.9], [0.0, 1.0, 2.0]], dtype=torch.float64)
    vol = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    market = Market(100.0, 0.03)
    whole = value(Cliquet(times, local_floor=floors, local_cap=0.05), vol, market)
    assert whole.shape == (2, 3)
    for i, j in itertools.product(range(2), range(3)):
        alone = value(Cliquet(times[j], local_floor=floors[i, 0], local_cap=0.05), vol[j], market)
        assert whole[i, j].item() == pytest.approx(alone.item(), rel=1e-13)
    paths = lognormal_paths([0.1, 0.3, 0.5, 0.9, 1.0, 2.0], 8)
    payoff = Cliquet(times, local_floor=floors, global_cap=0.07).payoff(paths, flat_discount(0.03))
    alone = Cliquet(times[1], local_floor=0.0, global_cap=0.07).payoff(paths, flat_discount(0.03))
    torch.testing.assert_close(payoff[1, 1], alone, rtol=1e-14, atol=0.0)


def test_derivatives_against_differences():
    def forward_start(moneyness: Tensor, reset: Tensor, expiry: Tensor, vol: Tensor, spot: Tensor) -> Tensor:
        return value(ForwardStart(moneyness, reset, expiry, "put"), vol, Market(spot, 0.03))

    def cliquet(floor: Tensor, cap: Tensor, scale: Tensor, vol: Tensor, rate: Tensor) -> Tensor:
        times = scale * torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
        return value(Cliquet(times, floor, cap), vol, Market(100.0, rate))

    for price, numbers in ((forward_start, (1.1, 0.3, 1.2, 0.25, 90.0)), (cliquet, (-0.03, 0.08, 1.0, 0.25, 0.03))):
        inputs = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in numbers]
        assert torch.autograd.gradcheck(price, inputs, check_forward_ad=True, rtol=1e-6, atol=1e-7)
        assert torch.autograd.gradgradcheck(price, inputs, rtol=1e-5, atol=1e-5)


def test_time_decay_keeps_todays_reset():
    elapsed = torch.tensor(0.05, dtype=torch.float64)
    later = ForwardStart(1.1, 0.0, 1.0, "call").shifted(elapsed)
    assert later.reset.item() == 0.0
    assert later.expiry.item() == pytest.approx(0.95)
    assert Cliquet([0.0, 0.5, 1.0]).shifted(elapsed).times.tolist() == pytest.approx([0.0, 0.45, 0.95])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moneyness": 0.0}, "`moneyness` must be above 0"),
        ({"moneyness": float("nan")}, "`moneyness` must be finite"),
        ({"reset": -0.1}, "`reset` must be 0 or more, got -0.1"),
        ({"reset": 1.0}, "`expiry` must be above `reset`, got 1 beside 1"),
        ({"expiry": 0.0}, "`expiry` must be above 0"),
        ({"option": "x"}, "`option` must be one of"),
        ({"reset": [0.1, 0.2], "expiry": [1.0, 2.0, 3.0]}, "(2,) and `expiry` of shape (3,)"),
    ],
)
def test_bad_forward_start_is_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        ForwardStart(**{"moneyness": 1.0, "reset": 0.5, "expiry": 1.0, "option": "call", **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"times": [0.5]}, "`times` must hold the start and at least one later date"),
        ({"times": [0.5, 0.2]}, "`times` must ascend strictly"),
        ({"times": [-0.5, 0.2]}, "`times` must be 0 or more"),
        ({"local_floor": float("nan")}, "`local_floor` must be finite"),
        ({"local_floor": 0.1, "local_cap": 0.05}, "`local_cap` must be above `local_floor`, got 0.05 beside 0.1"),
        ({"global_floor": 0.1, "global_cap": 0.1}, "`global_cap` must be above `global_floor`"),
    ],
)
def test_bad_cliquet_is_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        Cliquet(**{"times": [0.0, 0.5, 1.0], **changes})


def test_what_has_no_closed_form_says_so():
    with pytest.raises(ValueError, match="global floor or cap"):
        value(Cliquet([0.0, 1.0], 0.0, global_cap=0.1), 0.2, Market(100.0))
    paying = Market(100.0, dividends=CashDividends([0.5], [1.0]))
    for contract in (Cliquet([0.0, 1.0], 0.0), ForwardStart(1.0, 0.5, 1.0, "call")):
        with pytest.raises(ValueError, match="cash dividends"):
            value(contract, 0.2, paying)
