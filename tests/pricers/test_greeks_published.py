"""pr.greeks against published sensitivities, closed forms and the pricing equation, for engines that draw nothing."""

import math

import pytest
import torch

import pricers as pr

HESTON_NAMES = ("spot", ("spot", "spot"), "v0", "kappa", "theta", "sigma", "rho", "rate")
# Integrated from Lewis' formula in high precision, to about 1e-7: call struck at 100
LEWIS = (0.5994713250, 0.0092875374, 10.1792654, 0.6898541670, 32.5601334, -1.1131714978, 0.9498327395, 43.876978)
FANG_OOSTERLEE = (
    0.6249163291,
    0.0305533634,
    54.5653309,
    0.8687402689,
    62.9151829,
    -2.2048085700,
    0.5805726110,
    56.706494,
)
LEWIS_TRIPLE = (
    pr.European(100.0, 1.0),
    pr.Heston(v0=0.04, kappa=4.0, theta=0.25, sigma=1.0, rho=-0.5),
    pr.Market(100.0, rate=0.01, dividend_yield=0.02),
)
FANG_TRIPLE = (
    pr.European(100.0, 1.0),
    pr.Heston(v0=0.0175, kappa=1.5768, theta=0.0398, sigma=0.5751, rho=-0.5711),
    pr.Market(100.0),
)


@pytest.mark.parametrize(("triple", "expected"), [(LEWIS_TRIPLE, LEWIS), (FANG_TRIPLE, FANG_OOSTERLEE)])
@pytest.mark.parametrize("method", ["auto", "bump"])
def test_heston_greeks_by_fourier(triple, expected, method):
    found = pr.greeks(*triple, wrt=HESTON_NAMES, method=method)
    for name, value in zip(HESTON_NAMES, expected, strict=True):
        reach = 2e-7 + (3.0 * found[name].error_bound.item() if method == "bump" else 0.0)
        assert found[name].value.item() == pytest.approx(value, abs=reach, rel=1e-7), name
        assert found[name].std_error.item() == 0.0


@pytest.mark.slow
def test_heston_greeks_by_finite_differences_lie_within_their_bounds():
    engine = pr.FiniteDifference(n_space=80, n_time=20, n_variance=40)
    names = ("spot", ("spot", "spot"), "v0", "rho")
    expected = dict(zip(HESTON_NAMES, LEWIS, strict=True))
    found = pr.greeks(*LEWIS_TRIPLE, wrt=names, engine=engine)
    for name in names:
        error = abs(found[name].value.item() - expected[name])
        assert error <= found[name].error_bound.item() + 1e-7, name
        assert error <= 2e-2 * abs(expected[name]), name


# Haug (2007), sections 2.1, 2.2, 2.5 and 2.6; spot, strike, yield, rate, expiry, vol
@pytest.mark.parametrize(
    ("case", "name", "value"),
    [
        ((105.0, 100.0, 0.1, 0.1, 0.5, 0.36), "spot", 0.5946),
        ((55.0, 60.0, 0.0, 0.1, 0.75, 0.30), ("spot", "spot"), 0.0278),
        ((55.0, 60.0, 0.0, 0.1, 0.75, 0.30), "vol", 18.9358),
        ((72.0, 75.0, 0.0, 0.09, 1.0, 0.19), "rate", 38.7325),
    ],
)
@pytest.mark.parametrize("engine", [pr.Analytic(), pr.Fourier(), pr.FiniteDifference(n_space=120, n_time=24)])
def test_haug(case, name, value, engine):
    spot, strike, income, rate, expiry, vol = case
    found = pr.greeks(pr.European(strike, expiry), pr.BlackScholes(vol), pr.Market(spot, rate, income), (name,), engine)
    printed = 0.5001 * 10.0 ** -len(str(value).split(".")[1])
    bound = found[name].error_bound.item()
    assert found[name].value.item() == pytest.approx(value, abs=printed + min(bound, 1e-3 * value))
    assert bound <= 0.1 * value


def black_scholes_greeks(spot, strike, rate, income, expiry, vol):
    """All of them for a call, by the textbook."""
    deviation = vol * math.sqrt(expiry)
    d1 = (math.log(spot / strike) + (rate - income) * expiry) / deviation + 0.5 * deviation
    d2 = d1 - deviation
    cdf = lambda x: 0.5 * math.erfc(-x / math.sqrt(2.0))  # noqa: E731
    density = math.exp(-0.5 * d1 * d1) / math.sqrt(2.0 * math.pi)
    paid, owned = strike * math.exp(-rate * expiry), spot * math.exp(-income * expiry)
    gamma = owned / spot * density / (spot * deviation)
    vega = owned * density * math.sqrt(expiry)
    decay = -owned * density * vol / (2.0 * math.sqrt(expiry)) - rate * paid * cdf(d2) + income * owned * cdf(d1)
    return {
        "spot": owned / spot * cdf(d1),
        ("spot", "spot"): gamma,
        "vol": vega,
        ("vol", "vol"): vega * d1 * d2 / vol,
        ("spot", "vol"): -owned / spot * density * d2 / vol,
        "rate": expiry * paid * cdf(d2),
        "dividend_yield": -expiry * owned * cdf(d1),
        "strike": -paid / strike * cdf(d2),
        ("strike", "strike"): math.exp(-rate * expiry)
        * math.exp(-0.5 * d2**2)
        / math.sqrt(2 * math.pi)
        / (strike * deviation),
        "time": decay,
        "expiry": -decay,
    }


POINT = (100.0, 95.0, 0.05, 0.02, 0.75, 0.25)
TRIPLE = (pr.European(95.0, 0.75), pr.BlackScholes(0.25), pr.Market(100.0, 0.05, 0.02))


def test_every_greek_of_black_and_scholes():
    expected = black_scholes_greeks(*POINT)
    for engine in (pr.Analytic(), pr.Fourier()):
        found = pr.greeks(*TRIPLE, wrt=tuple(expected), engine=engine)
        for name, value in expected.items():
            assert found[name].value.item() == pytest.approx(value, rel=1e-8), (engine, name)
            assert abs(found[name].value.item() - value) <= found[name].error_bound.item() + 1e-12 * abs(value) + 1e-13


@pytest.mark.slow  # some twenty solutions with tangents
def test_every_greek_by_finite_differences():
    expected = black_scholes_greeks(*POINT)
    found = pr.greeks(*TRIPLE, wrt=tuple(expected), engine=pr.FiniteDifference(n_space=120, n_time=24))
    for name, value in expected.items():
        error = abs(found[name].value.item() - value)
        assert error <= 1e-3 * abs(value), name
        # the grid of half the resolution is four times worse, so that its distance covers the error
        assert error <= found[name].error_bound.item() + 1e-6 * abs(value), name


def test_bump_agrees_to_second_order_in_its_size():
    expected = black_scholes_greeks(*POINT)
    coarse = pr.greeks(*TRIPLE, wrt=tuple(expected), method="bump", bump=2e-2)
    fine = pr.greeks(*TRIPLE, wrt=tuple(expected), method="bump", bump=1e-2)
    for name, value in expected.items():
        errors = [abs(found[name].value.item() - value) for found in (coarse, fine)]
        if errors[0] > 1e-8 * abs(value):
            assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.05), name
        assert errors[1] <= 1.2 * fine[name].error_bound.item() + 1e-8 * abs(value), name


def test_heston_pricing_equation_holds_between_greeks():
    """-decay = half v S^2 gamma + rho sigma v S cross + half sigma^2 v vega_v + drifts - r V (Heston 1993, eq. 6)."""
    wrt = ("time", "spot", "v0", ("spot", "spot"), ("spot", "v0"), ("v0", "v0"))
    option = pr.European([85.0, 100.0, 120.0], 0.8, "put")
    model, market = LEWIS_TRIPLE[1:]
    found = {name: estimate.value for name, estimate in pr.greeks(option, model, market, wrt).items()}
    value = pr.price(option, model, market).value
    spot, v, rate, income = 100.0, 0.04, 0.01, 0.02
    residual = (
        found["time"]
        + 0.5 * v * spot**2 * found["spot", "spot"]
        + model.rho * model.sigma * v * spot * found["spot", "v0"]
        + 0.5 * model.sigma**2 * v * found["v0", "v0"]
        + (rate - income) * spot * found["spot"]
        + model.kappa * (model.theta - v) * found["v0"]
        - rate * value
    )
    assert residual.abs().max().item() <= 1e-6


def test_a_number_shared_by_the_batch_gives_a_jacobian():
    strikes = torch.tensor([[80.0], [100.0], [130.0]], dtype=torch.float64)
    option = pr.European(strikes, [0.5, 2.0])
    found = pr.greeks(option, pr.BlackScholes(0.25), pr.Market(100.0, 0.05, 0.02), ("spot", "strike", "vol"))
    for row, strike in enumerate((80.0, 100.0, 130.0)):
        for column, expiry in enumerate((0.5, 2.0)):
            expected = black_scholes_greeks(100.0, strike, 0.05, 0.02, expiry, 0.25)
            for name in ("spot", "strike", "vol"):
                assert found[name].value.shape == (3, 2)
                assert found[name].value[row, column].item() == pytest.approx(expected[name], rel=1e-11)


def curve_market(rates, yields):
    return pr.Market(100.0, pr.ZeroCurve([0.0, 1.0, 2.0], rates), pr.ZeroCurve([0.0, 1.0, 2.0], yields))


def test_key_rates_add_up_and_weigh_by_distance():
    """The zero rate to 1.5 years is the mean of its two nodes: half of the Greek by the flat rate each."""
    market = curve_market([0.02, 0.03, 0.04], [0.01, 0.01, 0.01])
    option = pr.European([95.0, 105.0], 1.5)
    found = pr.greeks(
        option, pr.BlackScholes(0.2), market, ("rate", "rate.rates", ("rate.rates", "rate.rates"), ("rate", "rate"))
    )
    keys = found["rate.rates"].value
    assert keys.shape == (2, 3)
    torch.testing.assert_close(keys.sum(-1), found["rate"].value, rtol=1e-12, atol=0.0)
    flat = pr.greeks(option, pr.BlackScholes(0.2), pr.Market(100.0, 0.035, 0.01), ("rate",))["rate"].value
    torch.testing.assert_close(keys, torch.stack([0.0 * flat, 0.5 * flat, 0.5 * flat], -1), rtol=1e-11, atol=1e-12)
    second = found["rate.rates", "rate.rates"].value
    assert second.shape == (2, 3, 3)
    torch.testing.assert_close(second.sum((-1, -2)), found["rate", "rate"].value, rtol=1e-11, atol=0.0)


@pytest.mark.parametrize("engine", [None, pr.MonteCarlo(n_paths=4096, seed=1)], ids=["closed form", "paths"])
def test_time_decay_on_a_curve_keeps_its_forward_rates(engine):
    """Forward rates kept, the decay is minus the slope in expiry with what today's short rates earn and cost."""
    market = curve_market([0.02, 0.03, 0.04], [0.01, 0.015, 0.02])
    option, model = pr.European(100.0, 0.5), pr.BlackScholes(0.2)
    found = pr.greeks(option, model, market, ("time",), engine)["time"]
    # z(t) = .02 + .01 t up to a year: the integral is .02 t + .01 t^2; seen from h later it is that from h to 0.5
    step = 1e-5

    def price(elapsed):
        rate = (0.02 * 0.5 + 0.01 * 0.25 - 0.02 * elapsed - 0.01 * elapsed**2) / (0.5 - elapsed)
        income = (0.01 * 0.5 + 0.005 * 0.25 - 0.01 * elapsed - 0.005 * elapsed**2) / (0.5 - elapsed)
        return pr.price(pr.European(100.0, 0.5 - elapsed), model, pr.Market(100.0, rate, income)).value.item()

    expected = (price(step) - price(-step)) / (2.0 * step)
    reach = 1e-6 if engine is None else 4.0 * found.std_error.item()
    assert found.value.item() == pytest.approx(expected, abs=reach)


def surface():
    vols = [[0.30, 0.25, 0.22, 0.23], [0.28, 0.24, 0.22, 0.225]]
    return pr.VolSurface(log_moneyness=[-0.3, -0.1, 0.1, 0.3], expiries=[0.5, 1.0], vols=vols)


@pytest.mark.slow
def test_vega_by_bucket_is_the_same_in_reverse_mode_and_by_bumps():
    """One price, eight quotes: reverse mode; a bump of each quote agrees, and a call at a quote depends on it alone."""
    market = pr.Market(100.0, 0.02)
    strike = 100.0 * math.exp(0.02 + 0.1)
    triple = (pr.European(strike, 1.0), pr.LocalVol(surface()), market)
    engine = pr.FiniteDifference(n_space=64, n_time=16)
    buckets = pr.greeks(*triple, ("surface.vols",), engine)["surface.vols"]
    assert buckets.value.shape == (2, 4)
    bumped = pr.greeks(*triple, ("surface.vols",), engine, method="bump", bump=1e-4)["surface.vols"].value
    torch.testing.assert_close(buckets.value, bumped, rtol=0.0, atol=2e-2)
    vega = pr.greeks(pr.European(strike, 1.0), pr.BlackScholes(0.22), market, ("vol",))["vol"].value
    assert buckets.value[1, 2].item() == pytest.approx(vega.item(), rel=0.02)
    others = buckets.value.clone()
    others[1, 2] = 0.0
    assert others.abs().max().item() <= 0.03 * vega.item()


def test_several_assets_have_one_greek_each():
    correlation = [[1.0, 0.5], [0.5, 1.0]]
    model = pr.BlackScholes([0.3, 0.2], correlation)
    market = pr.Market([100.0, 90.0], 0.05)
    basket = pr.Basket(100.0, 1.0, "call", on="max")
    wrt = ("spot", "vol", "correlation", ("spot", "spot"))
    found = pr.greeks(basket, model, market, wrt)
    assert [found[name].value.shape for name in wrt] == [(2,), (2,), (2, 2), (2, 2)]
    bumped = pr.greeks(basket, model, market, wrt, method="bump")
    torch.testing.assert_close(found["spot"].value, bumped["spot"].value, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found["vol"].value, bumped["vol"].value, rtol=1e-5, atol=1e-7)
    rows = found["correlation"].value
    assert rows[0, 1] == rows[1, 0]  # the entry and its mirror image move together
    assert rows[0, 1].item() == pytest.approx(bumped["correlation"].value[0, 1].item(), rel=1e-5)
    gamma = found["spot", "spot"].value
    torch.testing.assert_close(gamma, gamma.mT, rtol=1e-10, atol=1e-12)
    # Euler: the price of a call on the larger is homogeneous in spots and strike
    value = pr.price(basket, model, market).value
    strike = pr.greeks(basket, model, market, ("strike",))["strike"].value
    total = (found["spot"].value * market.spot).sum() + 100.0 * strike
    assert total.item() == pytest.approx(value.item(), rel=1e-9)


def test_single_precision():
    one = torch.tensor(1.0, dtype=torch.float32)
    triple = (
        pr.European(95.0 * one, 0.75 * one),
        pr.BlackScholes(0.25 * one),
        pr.Market(100.0 * one, 0.05 * one, 0.02 * one),
    )
    expected = black_scholes_greeks(*POINT)
    wrt = ("spot", ("spot", "spot"), "vol", "rate", "time")
    for method, engine in (("auto", None), ("bump", None), ("auto", pr.Fourier())):
        found = pr.greeks(*triple, wrt, engine, method)
        for name in wrt:
            assert found[name].value.dtype == torch.float32
            assert found[name].value.item() == pytest.approx(expected[name], rel=2e-3), (method, engine, name)


def test_a_note_of_the_formula_goes_with_its_greeks():
    found = pr.greeks(pr.European(100.0, 1.0), pr.SABR(0.3, 0.6, -0.3, 0.4), pr.Market(100.0), ("alpha",))["alpha"]
    assert "Hagan" in found.note or "expansion" in found.note or "approx" in found.note


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"wrt": "spot"}, "sequence of names"),
        ({"wrt": ("sigma",)}, "known are .*spot.*strike.*vol.*time"),
        ({"wrt": ("spot",), "method": "finite"}, "`method` must be one of"),
        ({"wrt": ("spot",), "method": "likelihood_ratio"}, "needs MonteCarlo"),
        ({"wrt": ("spot",), "bump": 0.0}, "`bump` must be above 0"),
        (
            {"wrt": ("spot",), "engine": pr.MultilevelMonteCarlo(accuracy=0.1, seed=0)},
            "MultilevelMonteCarlo.*MonteCarlo",
        ),
        ({"wrt": ("vol",), "method": "bump", "bump": 2.0}, "leaves what is admissible"),
    ],
)
def test_what_cannot_be_done_says_why(arguments, message):
    with pytest.raises(ValueError, match=message):
        pr.greeks(*TRIPLE, **arguments)


def test_kinks_have_finite_greeks():
    """At the money at expiry nearly now, no variance today, a flat option: numbers, not NaN."""
    names = ("spot", "v0", "kappa", "theta", "sigma", "rho", ("spot", "spot"), "time")
    for expiry in (1e-3, 1.0):
        model = pr.Heston(0.0, 1.0, 0.04, 0.5, -0.7)
        for engine in (pr.Fourier(), pr.MonteCarlo(n_paths=2048, n_steps=4, seed=1)):
            found = pr.greeks(pr.European([50.0, 100.0, 200.0], expiry), model, pr.Market(100.0), names, engine)
            for name in names:
                assert found[name].value.isfinite().all(), (expiry, engine, name)
