"""Greeks by multilevel Monte Carlo: against closed forms, to the accuracy asked for, refused where paths jump."""

import math

import pytest
import torch

import pricers as pr

HESTON = pr.Heston(v0=0.04, kappa=4.0, theta=0.25, sigma=1.0, rho=-0.5)
MARKET = pr.Market(100.0, rate=0.01, dividend_yield=0.02)
CALL = pr.European(100.0, 1.0)
SIZES = {"spot": 100.0, "strike": 100.0, "v0": 0.04, "theta": 0.25, "rho": 0.5, "rate": 0.01, "time": 1.0}
SMOOTH = (("spot", "spot"), ("spot", "v0"))


def size_of(name):
    return math.prod(SIZES[part] for part in (name if isinstance(name, tuple) else (name,)))


def agree(found, exact, accuracy):
    """Within four standard errors and the bias that is stated; both within the halves of the accuracy."""
    half = accuracy / math.sqrt(2.0)
    for name, estimate in found.items():
        gap = (estimate.value - exact[name].value).abs()
        assert (gap <= 4.0 * estimate.std_error + estimate.error_bound).all(), (name, estimate, exact[name].value)
        assert (estimate.std_error > 0.0).all()
        assert (estimate.std_error * size_of(name) <= 1.05 * half).all(), name
        assert (estimate.error_bound * size_of(name) <= half).all(), name
        assert estimate.engine == "multilevel monte carlo, pathwise"


@pytest.mark.parametrize("conditional", [None, pytest.param(False, marks=pytest.mark.slow)])
def test_heston_call_against_its_closed_form(conditional):
    wrt = tuple(SIZES) if conditional is False else (*SIZES, *SMOOTH)
    exact = pr.greeks(CALL, HESTON, MARKET, wrt)
    engine = pr.MultilevelMonteCarlo(accuracy=0.25, seed=5, conditional=conditional)
    agree(pr.greeks(CALL, HESTON, MARKET, wrt, engine), exact, 0.25)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spot", "time", "theta"])
def test_root_mean_square_error_over_seeds_is_the_accuracy(name):
    exact = pr.greeks(CALL, HESTON, MARKET, (name,))[name].value
    errors = []
    for seed in range(30):
        engine = pr.MultilevelMonteCarlo(accuracy=0.15, seed=seed, conditional=False)
        errors.append((pr.greeks(CALL, HESTON, MARKET, (name,), engine)[name].value - exact).item() * SIZES[name])
    # over 30 seeds the root mean square has a relative error of 13 %
    assert math.sqrt(sum(error**2 for error in errors) / len(errors)) <= 0.15 * 1.3


@pytest.mark.parametrize(
    "contract",
    [
        pytest.param(pr.Barrier(100.0, 1.0, 85.0, "down-out", "call"), marks=pytest.mark.slow, id="down-out"),
        pytest.param(pr.Lookback(None, 1.0, "call"), id="lookback"),
    ],
)
def test_contracts_watched_at_all_times(contract):
    triple = (contract, pr.BlackScholes(0.25), pr.Market(100.0, 0.05))
    exact = pr.greeks(*triple, ("spot",), pr.Analytic())
    agree(pr.greeks(*triple, ("spot",), pr.MultilevelMonteCarlo(accuracy=0.5, seed=2)), exact, 0.5)


def test_a_batch_has_a_greek_for_each_price():
    calls, wrt = pr.European([80.0, 100.0, 120.0], 1.0), ("spot", "theta")
    exact = pr.greeks(calls, HESTON, MARKET, wrt)
    found = pr.greeks(calls, HESTON, MARKET, wrt, pr.MultilevelMonteCarlo(accuracy=0.25, seed=1))
    assert found["spot"].value.shape == (3,)
    agree(found, exact, 0.25)


def test_the_asset_itself_is_a_martingale():
    """A call struck at nearly nothing is the asset: delta e^{-qT}, no vega, no rho."""
    asset = pr.European(1e-6, 1.0)
    engine = pr.MultilevelMonteCarlo(accuracy=0.5, seed=3, conditional=False)
    found = pr.greeks(asset, HESTON, MARKET, ("spot", "v0", "rate", "dividend_yield"), engine)
    for name, value in (("spot", math.exp(-0.02)), ("v0", 0.0), ("rate", 0.0), ("dividend_yield", -98.0198673)):
        gap = abs(found[name].value.item() - value)
        assert gap <= 4.0 * found[name].std_error.item() + found[name].error_bound.item() + 1e-5, name


def test_spot_and_strike_make_up_the_price():
    """Euler: the price is homogeneous in spot and strike; the forward of a put and a call are linear in them."""
    engine = pr.MultilevelMonteCarlo(accuracy=0.3, seed=7)
    found = pr.greeks(CALL, HESTON, MARKET, ("spot", "strike"), engine)
    price = pr.price(CALL, HESTON, MARKET, engine)
    total = 100.0 * (found["spot"].value + found["strike"].value)
    parts = [price, *found.values()]
    error = math.hypot(*(scale * part.std_error.item() for scale, part in zip((1.0, 100.0, 100.0), parts, strict=True)))
    bound = sum(scale * part.error_bound.item() for scale, part in zip((1.0, 100.0, 100.0), parts, strict=True))
    assert abs((total - price.value).item()) <= 4.0 * error + bound


def test_nodes_of_a_curve_add_up():
    market = pr.Market(100.0, pr.ZeroCurve([0.5, 1.0, 2.0], [0.02, 0.03, 0.04]))
    engine = pr.MultilevelMonteCarlo(accuracy=0.25, seed=7)
    nodes = pr.greeks(pr.European(100.0, 1.5), HESTON, market, ("rate.rates",), engine)["rate.rates"]
    exact = pr.greeks(pr.European(100.0, 1.5), HESTON, market, ("rate.rates",))["rate.rates"].value
    assert nodes.value.shape == (3,)
    assert nodes.value[0].item() == nodes.std_error[0].item() == 0.0  # the rate to half a year does not matter
    assert ((nodes.value - exact).abs() <= 4.0 * nodes.std_error + nodes.error_bound).all()


def corrections_of(monkeypatch, name, **options):
    """The engine, and how it draws derivatives of corrections."""
    kept, summed = [], pr.MultilevelMonteCarlo.summed

    def seen(self, triple, corrections, accuracy):
        kept.append(corrections)
        return summed(self, triple, corrections, accuracy)

    monkeypatch.setattr(pr.MultilevelMonteCarlo, "summed", seen)
    engine = pr.MultilevelMonteCarlo(accuracy=1.0, seed=11, **options)
    pr.greeks(CALL, HESTON, MARKET, (name,), engine)
    return engine, kept[0]


def test_each_correction_is_differentiated_on_its_own_noise(monkeypatch):
    """Fine minus coarse: the difference of corrections whose spot is bumped on the same noise, level by level."""
    engine, derived = corrections_of(monkeypatch, "spot")
    size = 1e-4
    for index in (0, 1, 3):
        levels = [engine.level(index, CALL, HESTON, pr.Market(100.0 + h, 0.01, 0.02)) for h in (size, -size)]
        up, down = (engine._corrections(level, 0, 2048) for level in levels)
        found = derived(engine.level(index, CALL, HESTON, MARKET), 0, 2048)
        torch.testing.assert_close(found, (up - down) / (2.0 * size), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("conditional", "order"), [(None, 0.8), (False, 0.4)])
def test_variance_of_the_derivatives_falls_with_the_step(conditional, order, monkeypatch):
    """Of order 1 for a smooth payoff, 1/2 where its derivative jumps at a kink: as the strong error and its root."""
    engine, derived = corrections_of(monkeypatch, "spot", conditional=conditional, scheme="euler")
    tame = pr.Heston(0.09, 2.0, 0.09, 0.3, -0.3)
    spread = [derived(engine.level(k, CALL, tame, MARKET), 0, 8192).var().item() for k in range(7)]
    assert math.log2(spread[2] / spread[6]) / 4.0 >= order


@pytest.mark.parametrize(
    ("triple", "name", "options", "method", "message"),
    [
        ((pr.Digital(100.0, 1.0), HESTON, MARKET), "spot", {"conditional": False}, "auto", "Digital.*MonteCarlo"),
        ((CALL, HESTON, MARKET), ("spot", "spot"), {"conditional": False}, "auto", "second derivative.*MonteCarlo"),
        ((CALL, HESTON, MARKET), ("v0", "v0"), {}, "auto", "second derivative.*v0, v0.*MonteCarlo"),
        ((CALL, HESTON, MARKET), "spot", {}, "bump", "'bump' needs MonteCarlo"),
        ((CALL, HESTON, MARKET), "spot", {}, "likelihood_ratio", "'likelihood_ratio' needs MonteCarlo"),
        (
            (CALL, pr.Bates(0.04, 4.0, 0.25, 1.0, -0.5, 0.4, -0.12, 0.18), MARKET),
            "intensity",
            {},
            "auto",
            "jumps of Bates.*intensity.*MonteCarlo",
        ),
        ((CALL, pr.BlackScholes(0.2), MARKET), "spot", {}, "auto", "exactly.*MonteCarlo"),
        ((CALL, HESTON, MARKET), "vol", {}, "auto", "known are"),
    ],
)
def test_refusals(triple, name, options, method, message):
    engine = pr.MultilevelMonteCarlo(accuracy=1.0, seed=0, **options)
    with pytest.raises(ValueError, match=message):
        pr.greeks(*triple, (name,), engine, method)


def test_digital_whose_asset_is_integrated_out():
    """Given the path of the variance it has no jump left."""
    triple = (pr.Digital(100.0, 1.0), HESTON, MARKET)
    exact = pr.greeks(*triple, ("spot", ("spot", "spot")))
    agree(pr.greeks(*triple, tuple(exact), pr.MultilevelMonteCarlo(accuracy=0.01, seed=3)), exact, 0.01)
