"""Stulz, Margrabe, the geometric basket and the bivariate normal: published values, QuantLib, mpmath, identities."""

import itertools
import math
import re

import mpmath
import numpy as np
import pytest
import QuantLib as ql  # noqa: N813 - the name that its own examples use
import torch
from torch import Tensor

from pricers.analytic.basket import (
    FORMULAS,
    best_of_two_price,
    bivariate_normal_cdf,
    exchange_price,
    geometric_basket_price,
)
from pricers.instruments.basket import Basket
from pricers.market import CashDividends, Market, ZeroCurve
from pricers.models.black_scholes import BlackScholes

# torch itself loads its deprecated script compiler with the first forward-mode derivative
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

# Stulz (1982), recomputed: S = 100, 100, K = 100, r .05, q 0, vol .3, T = 1; correlation -> call on the better
STULZ_MAX_CALL = {0.9: 17.565, 0.5: 21.619, 0.1: 24.050}


def number(*values: float) -> Tensor:
    return torch.tensor(values if len(values) > 1 else values[0], dtype=torch.float64)


def value(instrument: Basket, model: BlackScholes, market: Market) -> Tensor:
    return FORMULAS[Basket, BlackScholes](instrument, model, market).value


def two_assets(rho: float, vols: tuple[float, float] = (0.3, 0.3)) -> BlackScholes:
    return BlackScholes(vols, [[1.0, rho], [rho, 1.0]])


def exact_bivariate(x: float, y: float, rho: float) -> float:
    """P(X <= x, Y <= y) = int phi(s) Phi((y - rho s) / sqrt(1 - rho^2)) ds over s <= x, to 25 digits."""
    with mpmath.workdps(25):
        root = mpmath.sqrt(1 - mpmath.mpf(rho) ** 2)
        kink = y / rho if abs(rho) > 0.5 else 0.0  # where the inner probability turns, steeply for a high correlation
        width = float(root) / max(abs(rho), 0.5)
        cuts = {-14.0, min(x, 14.0)} | {c for c in np.arange(-14, 14, 2.0) if c < x}
        cuts |= {c for c in (kink - 6 * width, kink - width, kink, kink + width, kink + 6 * width) if -14 < c < x}
        return float(
            mpmath.quad(
                lambda s: mpmath.npdf(s) * mpmath.ncdf((y - rho * s) / root), [mpmath.mpf(c) for c in sorted(cuts)]
            )
        )


@pytest.mark.slow
@pytest.mark.parametrize("rho", [-0.9999, -0.95, -0.925, -0.6, 0.0, 0.3, 0.9249, 0.9251, 0.99, 0.999999])
def test_bivariate_normal_mpmath(rho: float):
    for x, y in [(0.0, 0.0), (1.2, -0.7), (-2.5, 0.4), (-1.0, -1.0), (0.31, 0.3), (3.0, 2.5), (-4.0, 5.0)]:
        ours = bivariate_normal_cdf(number(x), number(y), number(rho)).item()
        assert ours == pytest.approx(exact_bivariate(x, y, rho), abs=2e-15, rel=1e-12)


def test_bivariate_normal_identities():
    x, y, rho = (torch.linspace(-6, 6, 13, dtype=torch.float64)[:, None, None] for _ in range(3))
    y, rho = y.movedim(0, 1), torch.linspace(-0.999, 0.999, 41, dtype=torch.float64)
    whole = bivariate_normal_cdf(x, y, rho)
    normal = torch.special.ndtr
    torch.testing.assert_close(
        whole + bivariate_normal_cdf(x, -y, -rho), normal(x).expand_as(whole), rtol=0, atol=2e-15
    )
    torch.testing.assert_close(whole, bivariate_normal_cdf(y, x, rho), rtol=0, atol=1e-15)
    zero = bivariate_normal_cdf(0 * rho, 0 * rho, rho)  # Sheppard: 1/4 + asin(rho) / 2 pi
    torch.testing.assert_close(zero, 0.25 + rho.asin() / (2 * math.pi), rtol=0, atol=1e-15)


@pytest.mark.parametrize("rho", [-0.97, 0.0, 0.6])
def test_bivariate_normal_derivatives(rho: float):
    inputs = [number(v).requires_grad_() for v in (0.4, -0.3, rho)]
    assert torch.autograd.gradcheck(bivariate_normal_cdf, inputs, check_forward_ad=True, atol=1e-8)
    assert torch.autograd.gradgradcheck(bivariate_normal_cdf, inputs, atol=1e-6)
    x, y, r = inputs
    gradient = torch.autograd.grad(bivariate_normal_cdf(*inputs), r)[0]  # the density (Plackett, 1954)
    density = torch.exp(-(x * x + y * y - 2 * r * x * y) / (2 * (1 - r * r))) / (2 * math.pi * (1 - r * r).sqrt())
    assert gradient.item() == pytest.approx(density.item(), rel=1e-10)


def test_bivariate_normal_gradient_is_finite_everywhere():
    points = [-40.0, -3.0, 0.0, 3.0, 40.0]
    rhos = [-1 + 1e-12, -0.99, -0.5, 0.0, 0.5, 0.99, 1 - 1e-12]
    grid = torch.tensor(list(itertools.product(points, points, rhos)), dtype=torch.float64, requires_grad=True)
    total = bivariate_normal_cdf(*grid.unbind(-1))
    assert bool(((total >= -1e-15) & (total <= 1 + 1e-15)).all())
    assert bool(torch.autograd.grad(total.sum(), grid)[0].isfinite().all())


@pytest.mark.parametrize("rho", STULZ_MAX_CALL)
def test_call_on_the_better_of_two_published(rho: float):
    ours = value(Basket(100.0, 1.0, "call", on="max"), two_assets(rho), Market([100.0, 100.0], 0.05))
    assert ours.item() == pytest.approx(STULZ_MAX_CALL[rho], abs=5e-4)


@pytest.mark.parametrize("option", ["call", "put"])
@pytest.mark.parametrize("on", ["max", "min"])
def test_best_and_worst_of_two_quantlib(option: str, on: str):
    today, count = ql.Date(1, 1, 2024), ql.Actual360()
    ql.Settings.instance().evaluationDate = today

    def curve(rate: float) -> ql.YieldTermStructureHandle:
        return ql.YieldTermStructureHandle(ql.FlatForward(today, rate, count))

    def process(spot: float, income: float, vol: float) -> ql.BlackScholesMertonProcess:
        surface = ql.BlackVolTermStructureHandle(ql.BlackConstantVol(today, ql.NullCalendar(), vol, count))
        return ql.BlackScholesMertonProcess(ql.QuoteHandle(ql.SimpleQuote(spot)), curve(income), curve(0.05), surface)

    vanilla = ql.PlainVanillaPayoff(ql.Option.Call if option == "call" else ql.Option.Put, 98.0)
    payoff = (ql.MaxBasketPayoff if on == "max" else ql.MinBasketPayoff)(vanilla)
    for vols, rho, days in itertools.product([(0.1, 0.4), (0.25, 0.25)], [-0.7, 0.2, 0.9], [30, 720]):
        contract = ql.BasketOption(payoff, ql.EuropeanExercise(today + days))
        engine = ql.StulzEngine(process(105.0, 0.02, vols[0]), process(95.0, 0.03, vols[1]), rho)
        contract.setPricingEngine(engine)
        market = Market([105.0, 95.0], 0.05, [0.02, 0.03])
        ours = value(Basket(98.0, days / 360, option, on=on), two_assets(rho, vols), market)
        # its bivariate normal has six digits in the tail
        assert ours.item() == pytest.approx(contract.NPV(), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("on", ["max", "min"])
@pytest.mark.parametrize("option", ["call", "put"])
@pytest.mark.parametrize("rho", [-0.5, 0.999])
def test_best_and_worst_of_two_by_quadrature(on: str, option: str, rho: float):
    f, s, strike = (103.0, 96.0), (0.35, 0.2), 99.0
    nodes, weights = np.polynomial.legendre.leggauss(900)
    grid, weights = 9.0 * nodes, 9.0 * weights / math.sqrt(2 * math.pi) * np.exp(-0.5 * (9.0 * nodes) ** 2)
    z1, z2 = grid[:, None], rho * grid[:, None] + math.sqrt(1 - rho**2) * grid[None, :]
    first, second = f[0] * np.exp(s[0] * z1 - 0.5 * s[0] ** 2), f[1] * np.exp(s[1] * z2 - 0.5 * s[1] ** 2)
    chosen = (np.maximum if on == "max" else np.minimum)(first, second)
    oracle = weights @ np.maximum(chosen - strike if option == "call" else strike - chosen, 0.0) @ weights
    ours = best_of_two_price(number(*f), number(strike), number(*s), number(rho), option, on)
    assert ours.item() == pytest.approx(oracle, abs=1e-3)  # the kink costs the quadrature its order


@pytest.mark.parametrize("on", ["max", "min"])
def test_parity_and_sum_of_best_and_worst(on: str):
    f, s, rho, strike = number(103.0, 96.0), number(0.35, 0.2), number(0.3), number(99.0)
    call, put = (best_of_two_price(f, strike, s, rho, option, on).item() for option in ("call", "put"))
    exchange = exchange_price(f[0], f[1], (s[0] ** 2 + s[1] ** 2 - 2 * rho * s[0] * s[1]).sqrt()).item()
    forward = 96.0 + exchange if on == "max" else 103.0 - exchange
    assert call - put == pytest.approx(forward - 99.0, rel=1e-12)
    both = sum(best_of_two_price(f, strike, s, rho, "call", which).item() for which in ("max", "min"))
    singles = sum(exchange_price(f[i], strike, s[i]).item() for i in range(2))
    assert both == pytest.approx(singles, rel=1e-13)


@pytest.mark.parametrize("option", ["call", "put"])
def test_spread_at_strike_zero_is_margrabe_quantlib(option: str):
    today, count = ql.Date(1, 1, 2024), ql.Actual360()
    ql.Settings.instance().evaluationDate = today
    curves = [ql.YieldTermStructureHandle(ql.FlatForward(today, rate, count)) for rate in (0.02, 0.03, 0.05)]
    spots, vols = (105.0, 95.0), (0.15, 0.4)
    if option == "put":  # the put on S1 - S2 exchanges S1 for S2
        curves[0], curves[1], spots, vols = curves[1], curves[0], spots[::-1], vols[::-1]
    processes = [
        ql.BlackScholesMertonProcess(
            ql.QuoteHandle(ql.SimpleQuote(spot)),
            income,
            curves[2],
            ql.BlackVolTermStructureHandle(ql.BlackConstantVol(today, ql.NullCalendar(), vol, count)),
        )
        for spot, vol, income in zip(spots, vols, curves[:2], strict=True)
    ]
    contract = ql.MargrabeOption(1, 1, ql.EuropeanExercise(today + 270))
    contract.setPricingEngine(ql.AnalyticEuropeanMargrabeEngine(*processes, 0.4))
    ours = value(
        Basket(0.0, 0.75, option, on="spread"), two_assets(0.4, (0.15, 0.4)), Market([105.0, 95.0], 0.05, [0.02, 0.03])
    )
    assert ours.item() == pytest.approx(contract.NPV(), rel=1e-10)


def test_batches_of_strikes_models_and_markets():
    strikes = torch.tensor([90.0, 110.0], dtype=torch.float64)[:, None]
    rho = torch.tensor([-0.5, 0.2, 0.95], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    model = BlackScholes([0.2, 0.3], eye + rho[:, None, None] * (1 - eye))
    market = Market(torch.tensor([[100.0, 95.0], [100.0, 96.0], [100.0, 97.0]], dtype=torch.float64), 0.03)
    expiry = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    whole = value(Basket(strikes, expiry, "put", on="min"), model, market)
    for i, j in itertools.product(range(2), range(3)):
        alone = value(
            Basket(strikes[i, 0], expiry[j], "put", on="min"),
            two_assets(rho[j].item(), (0.2, 0.3)),
            Market(market.spot[j], 0.03),
        )
        assert whole[i, j].item() == pytest.approx(alone.item(), rel=1e-13)


@pytest.mark.parametrize("on", ["max", "min", "spread"])
def test_derivatives_against_differences(on: str):
    def price(spot: Tensor, vol: Tensor, rho: Tensor, expiry: Tensor, rate: Tensor) -> Tensor:
        one = torch.ones_like(rho)
        matrix = torch.stack([torch.stack([one, rho]), torch.stack([rho, one])])
        strike = 0.0 if on == "spread" else 101.0
        return value(Basket(strike, expiry, "call", on=on), BlackScholes(vol, matrix), Market(spot, rate))

    inputs = [number(100.0, 104.0), number(0.2, 0.35), number(0.4), number(0.8), number(0.03)]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(price, inputs, check_forward_ad=True, rtol=1e-6, atol=1e-6)
    assert torch.autograd.gradgradcheck(price, inputs, rtol=1e-5, atol=1e-5)


def test_geometric_basket_of_one_kind_is_black():
    # perfectly alike assets: the basket is one of them, times the sum of weights
    matrix = torch.full((3, 3), 1 - 1e-13, dtype=torch.float64).fill_diagonal_(1.0)
    weights, vols = number(0.2, 0.5, 0.8), number(0.3, 0.3, 0.3)
    ours = geometric_basket_price(number(100, 100, 100), number(140.0), number(2.0), weights, vols, matrix, "put")
    alone = exchange_price(number(140.0), number(150.0), number(0.3 * math.sqrt(2.0)))
    assert ours.item() == pytest.approx(alone.item(), rel=1e-10)


def test_geometric_basket_monte_carlo():
    correlation = number(1.0, 0.3, 0.3, 1.0).reshape(2, 2)
    weights, vols = number(0.7, 0.6), number(0.2, 0.5)
    ours = geometric_basket_price(
        number(90, 120), number(130.0), number(1.5), weights, vols, correlation, "call"
    ).item()
    z = np.random.default_rng(0).standard_normal((400_000, 2)) @ np.linalg.cholesky(correlation.numpy()).T
    s = np.array([90.0, 120.0]) * np.exp(vols.numpy() * math.sqrt(1.5) * z - 0.75 * vols.numpy() ** 2)
    w = weights.numpy()
    sample = np.maximum(w.sum() * np.exp(np.log(s) @ w / w.sum()) - 130.0, 0.0)
    assert abs(sample.mean() - ours) < 4 * sample.std() / math.sqrt(len(sample)) < 0.3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"on": None}, "give either `weights`, one for each asset, or `on`"),
        ({"weights": [0.5, 0.5]}, "got both"),
        ({"on": "median"}, "`on` must be one of 'max', 'min', 'spread'"),
        ({"strike": 0.0}, "`strike` must be above 0"),
        ({"strike": float("nan")}, "`strike` must be finite"),
        ({"expiry": -1.0}, "`expiry` must be above 0"),
        ({"option": "both"}, "`option` must be one of"),
        ({"on": None, "weights": [1.0]}, "`weights` must have a last axis of two or more assets, got shape (1,)"),
        ({"on": None, "weights": 1.0}, "`weights` must have a last axis of two or more assets, got shape ()"),
        ({"strike": [1.0, 2.0], "expiry": [1.0, 2.0, 3.0]}, "(2,) and `expiry` of shape (3,)"),
    ],
)
def test_bad_contract_is_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        Basket(**{"strike": 100.0, "expiry": 1.0, "option": "call", "on": "max", **changes})


def test_wrong_number_of_assets_names_both_shapes():
    with pytest.raises(ValueError, match=r"`weights` of shape \(3,\) needs 3 assets .* got shape \(8, 2\)"):
        Basket(100.0, 1.0, "call", weights=[0.2, 0.3, 0.5]).underlying(torch.ones(8, 2, dtype=torch.float64))


def test_what_has_no_closed_form_says_so():
    three = BlackScholes([0.2, 0.2, 0.2], torch.eye(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="exist for two assets, the model has 3"):
        value(Basket(100.0, 1.0, "call", on="max"), three, Market([100.0, 100.0, 100.0]))
    with pytest.raises(ValueError, match="strike 0 only"):
        value(Basket(5.0, 1.0, "call", on="spread"), two_assets(0.5), Market([100.0, 100.0]))
    with pytest.raises(ValueError, match="weighted sum"):
        value(Basket(5.0, 1.0, "call", weights=[0.5, 0.5]), two_assets(0.5), Market([100.0, 100.0]))
    market = Market([100.0, 100.0], dividends=CashDividends([0.5], [1.0]))
    with pytest.raises(ValueError, match="cash dividends"):
        value(Basket(5.0, 1.0, "call", on="max"), two_assets(0.5), market)


def test_rates_with_a_term_structure():
    curve, expiry = ZeroCurve([0.0, 2.0], [0.01, 0.05]), 1.0
    flat = value(Basket(95.0, expiry, "call", on="max"), two_assets(0.3), Market([100.0, 90.0], 0.03))
    ours = value(Basket(95.0, expiry, "call", on="max"), two_assets(0.3), Market([100.0, 90.0], curve))
    assert ours.item() == pytest.approx(flat.item(), rel=1e-13)
