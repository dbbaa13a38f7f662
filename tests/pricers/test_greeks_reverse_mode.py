"""Greeks of a batch by reverse mode: each price's own derivative whatever is shared, by formulas and one by one."""

from dataclasses import dataclass, field

import pytest
import torch

import pricers as pr
from pricers.black import black_scholes_greeks
from pricers.estimate import Estimate
from pricers.greeks import exact
from pricers.greeks.derivatives import Step, reverse_derivatives
from pricers.greeks.parameters import tasks_of
from pricers.parameters import copied

E = torch.float64
HESTON = {"v0": 0.04, "kappa": 4.0, "theta": 0.25, "sigma": 1.0, "rho": -0.5}
MARKET = pr.Market(100.0, 0.01, 0.02)


def tensor(value):
    return torch.tensor(value, dtype=E)


def close(found, expected, rtol=1e-9, atol=1e-11):
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=rtol, atol=atol)


# --- the shape of a Jacobian ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strike", "expiry", "vol", "spot"),
    [
        ([80.0, 100.0, 130.0], 0.5, 0.25, 100.0),  # all but the strike is shared by three prices
        ([[80.0], [100.0], [130.0]], [0.5, 2.0], 0.25, 100.0),  # a row, a column and numbers
        (100.0, [0.5, 2.0], [[0.2], [0.3], [0.4]], [90.0, 110.0]),
        ([[80.0, 90.0], [100.0, 110.0]], 1.0, [[0.2, 0.3], [0.4, 0.5]], [[100.0]]),  # some have all prices' shape
        ([80.0, 100.0], 1.0, [[0.2, 0.3]], 100.0),  # one axis more, of length 1
        ([[100.0]], 1.0, 0.2, 100.0),  # a batch of one
    ],
)
@pytest.mark.parametrize("engine", [pr.Analytic(), pr.Fourier()])
def test_every_price_has_its_own_derivative_whatever_is_shared(strike, expiry, vol, spot, engine):
    strike, expiry, vol, spot = map(tensor, (strike, expiry, vol, spot))
    known = black_scholes_greeks(spot, strike, expiry, vol, 0.05, 0.02)
    fields = {
        "spot": known.delta,
        "strike": known.dual_delta,
        "vol": known.vega,
        "rate": known.rho,
        "dividend_yield": known.dividend_rho,
        "time": known.theta,
        ("spot", "spot"): known.gamma,
        ("spot", "vol"): known.vanna,
        ("vol", "spot"): known.vanna,
        ("vol", "vol"): known.volga,
    }
    triple = (pr.European(strike, expiry), pr.BlackScholes(vol), pr.Market(spot, 0.05, 0.02))
    found = pr.greeks(*triple, tuple(fields), engine)
    shape = torch.broadcast_shapes(strike.shape, expiry.shape, vol.shape, spot.shape)
    for name, value in fields.items():
        assert found[name].value.shape == found[name].error_bound.shape == shape
        close(found[name].value, value.expand(shape), rtol=1e-7, atol=1e-8)


PAIRS = (
    ("spot", "spot"),
    ("spot", "v0"),
    ("v0", "spot"),
    ("v0", "v0"),
    ("kappa", "v0"),
    ("time", "v0"),
    ("rho", "rho"),
)


def test_models_of_a_batch_have_the_greeks_that_each_has_alone():
    v0, rho, strikes = [0.02, 0.04, 0.09], [-0.7, -0.2, 0.3], [90.0, 100.0, 110.0]
    wrt = ("spot", *HESTON, "time", "rate", *PAIRS)
    model = pr.Heston(**HESTON | {"v0": v0, "rho": rho})
    found = pr.greeks(pr.European(strikes, 1.0), model, MARKET, wrt)
    for i in range(3):
        single = pr.Heston(**HESTON | {"v0": v0[i], "rho": rho[i]})
        alone = pr.greeks(pr.European(strikes[i], 1.0), single, MARKET, wrt)
        for name in wrt:
            assert found[name].value.shape == (3,)
            assert alone[name].value.shape == ()
            scale = alone[name].value.abs().item()
            assert found[name].value[i].item() == pytest.approx(alone[name].value.item(), abs=1e-7 * scale + 1e-8)


@pytest.mark.parametrize("n_prices", [1, 2, 5])  # fewer and more prices than nodes
def test_nodes_of_a_curve_for_each_price(n_prices):
    strikes = [90.0, 100.0, 110.0, 95.0, 105.0][:n_prices]
    market = pr.Market(100.0, pr.ZeroCurve([0.0, 1.0, 2.0], [0.02, 0.03, 0.04]), 0.01)
    names = ("rate.rates", ("rate.rates", "spot"), ("spot", "rate.rates"), ("rate.rates", "rate.rates"))
    found = pr.greeks(pr.European(strikes, 1.5), pr.BlackScholes(0.2), market, names)
    flat = black_scholes_greeks(100.0, strikes, 1.5, 0.2, 0.035, 0.01)
    half = tensor([0.0, 0.5, 0.5])  # the zero rate to 1.5 years lies between two nodes
    close(found["rate.rates"].value, flat.rho.unsqueeze(-1) * half)
    up, down = (black_scholes_greeks(100.0, strikes, 1.5, 0.2, 0.035 + h, 0.01) for h in (1e-5, -1e-5))
    cross, square = (up.delta - down.delta) / 2e-5, (up.rho - down.rho) / 2e-5
    close(found["spot", "rate.rates"].value, cross.unsqueeze(-1) * half, rtol=1e-6)
    close(found["rate.rates", "spot"].value, cross.unsqueeze(-1) * half, rtol=1e-6)
    close(found["rate.rates", "rate.rates"].value, square[:, None, None] * half[:, None] * half, rtol=1e-6)


def test_a_curve_of_its_own_for_each_price():
    """The flat `rate` moves all nodes of every curve, though it has as many nodes as there are prices."""
    rates = [[0.02, 0.02], [0.05, 0.05]]
    market = pr.Market(100.0, pr.ZeroCurve([0.0, 1.0], rates))
    found = pr.greeks(pr.European(100.0, 1.0), pr.BlackScholes(0.2), market, ("rate", "rate.rates", "time"))
    rho = black_scholes_greeks(100.0, 100.0, 1.0, 0.2, [0.02, 0.05]).rho
    close(found["rate"].value, rho)
    close(found["rate.rates"].value, torch.stack([0.0 * rho, rho], -1))
    one = pr.Market(100.0, pr.ZeroCurve([0.0, 1.0], [0.02, 0.02]))
    shared = pr.greeks(pr.European([100.0, 120.0], 1.0), pr.BlackScholes(0.2), one, ("rate",))["rate"].value
    close(shared, black_scholes_greeks(100.0, [100.0, 120.0], 1.0, 0.2, 0.02).rho)


def test_nodes_of_forward_variance():
    """A variance swap is linear in the curve: its Greek at a node is the discounted mean of the node's hat function."""
    curve = pr.ForwardVarianceCurve([0.5, 1.0], [0.04, 0.05])
    triple = (pr.VarianceSwap([0.03, 0.04, 0.05], 1.0), pr.RoughBergomi(curve, 1.9, 0.1, -0.9), pr.Market(100.0, 0.02))
    found = pr.greeks(*triple, ("xi.variances", ("xi.variances", "xi.variances"), "strike"))
    discount = torch.exp(tensor(-0.02))
    close(found["xi.variances"].value, (discount * tensor([0.75, 0.25])).expand(3, 2))
    close(found["xi.variances", "xi.variances"].value, torch.zeros(3, 2, 2, dtype=E))
    close(found["strike"].value, -discount.expand(3))


def test_quotes_of_a_surface_for_each_price():
    vols = [[0.30, 0.25, 0.22], [0.28, 0.24, 0.22]]
    surface = pr.VolSurface(log_moneyness=[-0.2, 0.0, 0.2], expiries=[0.5, 1.0], vols=vols)
    engine, market = pr.FiniteDifference(n_space=32, n_time=8), pr.Market(100.0, 0.02)
    strikes = [85.0, 95.0, 100.0, 105.0, 110.0, 115.0, 120.0, 90.0]  # more than quotes
    few = pr.greeks(pr.European(strikes[:2], 1.0), pr.LocalVol(surface), market, ("surface.vols",), engine)
    many = pr.greeks(pr.European(strikes, 1.0), pr.LocalVol(surface), market, ("surface.vols", "spot"), engine)
    assert many["surface.vols"].value.shape == (8, 2, 3)
    assert many["spot"].value.shape == (8,)
    close(many["surface.vols"].value[:2], few["surface.vols"].value)
    size, moved = 1e-4, torch.zeros(2, 3, dtype=E)
    moved[1, 1] = size
    ends = [
        pr.price(pr.European(strikes, 1.0), pr.LocalVol(copied(surface, vols=surface.vols + h)), market, engine).value
        for h in (moved, -moved)
    ]
    close(many["surface.vols"].value[:, 1, 1], (ends[0] - ends[1]) / (2.0 * size), rtol=1e-4, atol=1e-3)


def test_correlations_of_a_batch_of_baskets():
    model = pr.BlackScholes([0.3, 0.2], [[1.0, 0.5], [0.5, 1.0]])
    basket, market = pr.Basket([90.0, 100.0, 110.0], 1.0, "call", on="max"), pr.Market([100.0, 90.0], 0.05)
    found = pr.greeks(basket, model, market, ("correlation", "spot", ("spot", "vol"), ("correlation", "spot")))
    assert [estimate.value.shape for estimate in found.values()] == [(3, 2, 2), (3, 2), (3, 2, 2), (3, 2, 2, 2)]
    size = 1e-5

    def at(rho):
        return pr.greeks(basket, pr.BlackScholes([0.3, 0.2], [[1.0, rho], [rho, 1.0]]), market, ("spot",))["spot"].value

    def price(rho):
        return pr.price(basket, pr.BlackScholes([0.3, 0.2], [[1.0, rho], [rho, 1.0]]), market).value

    slope = (price(0.5 + size) - price(0.5 - size)) / (2.0 * size)
    rows = found["correlation"].value
    close(rows[:, 0, 1], slope, rtol=1e-6, atol=1e-7)
    close(rows[:, 1, 0], slope, rtol=1e-6, atol=1e-7)
    close(rows.diagonal(dim1=-2, dim2=-1), torch.zeros(3, 2, dtype=E))
    cross = (at(0.5 + size) - at(0.5 - size)) / (2.0 * size)
    close(found["correlation", "spot"].value[:, 0, 1], cross, rtol=1e-5, atol=1e-7)


def test_a_parameter_that_does_not_matter_has_greek_0():
    """No graph leads from it to the price, to first or to second order."""
    swap = pr.VarianceSwap([0.04, 0.05], 1.0)
    wrt = ("spot", ("spot", "spot"), ("strike", "strike"), ("spot", "strike"))
    for estimate in pr.greeks(swap, pr.BlackScholes(0.2), pr.Market(100.0), wrt).values():
        assert torch.equal(estimate.value, torch.zeros(2, dtype=E))


# --- how it is done -------------------------------------------------------------------------------------------------


@dataclass
class Counting:
    """An engine that counts its prices."""

    inner: pr.Fourier = field(default_factory=pr.Fourier)
    prices: int = 0

    def refusal(self, instrument, model, market):
        return self.inner.refusal(instrument, model, market)

    def price(self, instrument, model, market) -> Estimate:
        self.prices += 1
        return self.inner.price(instrument, model, market)


def test_one_price_serves_all_greeks():
    engine = Counting()
    found = pr.greeks(pr.European([90.0, 110.0], 1.0), pr.Heston(**HESTON), MARKET, ("spot", *HESTON, *PAIRS), engine)
    assert engine.prices == 1
    assert len(found) == 6 + len(PAIRS)


def test_derivatives_of_a_batch_of_polynomials():
    own, shared = torch.zeros(3, dtype=E, requires_grad=True), torch.zeros(2, dtype=E, requires_grad=True)
    a, b, c = tensor([1.0, 2.0, 3.0]) + own, 2.0 + shared[0], 3.0 + shared[1]
    value, x = a**2 * b**3 * c, tensor([1.0, 2.0, 3.0])
    steps = [Step(own, torch.Size()), Step(shared, torch.Size([2]))]
    found = reverse_derivatives(value, steps, [(0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1)])
    close(found[0], 2.0 * x * 24.0)
    close(found[1], torch.stack([x**2 * 36.0, x**2 * 8.0], -1))
    close(found[2], torch.full((3,), 48.0, dtype=E))
    close(found[3], torch.stack([2.0 * x * 36.0, 2.0 * x * 8.0], -1))
    close(found[4], found[3])
    close(found[5], x[:, None, None] ** 2 * tensor([[36.0, 12.0], [12.0, 0.0]]))
    assert not any(derivative.requires_grad for derivative in found)


def test_greeks_carry_the_graph_of_the_inputs_on():
    spot = torch.tensor(100.0, dtype=E, requires_grad=True)
    triple = (pr.European([90.0, 110.0], 1.0), pr.Heston(**HESTON), pr.Market(spot, 0.01, 0.02))
    found = pr.greeks(*triple, ("spot", "v0", ("spot", "spot")))
    for name, second in (("spot", ("spot", "spot")), ("v0", ("spot", "v0"))):
        (slope,) = torch.autograd.grad(found[name].value.sum(), spot, retain_graph=True)
        close(slope, pr.greeks(*triple, (second,))[second].value.detach().sum())
    with torch.no_grad():
        assert not pr.greeks(*triple, ("spot",))["spot"].value.requires_grad
    assert not pr.greeks(triple[0], triple[1], MARKET, ("spot",))["spot"].value.requires_grad


@pytest.mark.parametrize("engine", [pr.Fourier(), pr.FiniteDifference(n_space=32, n_time=8, n_variance=16)])
def test_inference_mode_changes_nothing(engine):
    wrt = ("spot", "v0", ("spot", "v0"))

    def found():
        return pr.greeks(pr.European([90.0, 110.0], 1.0), pr.Heston(**HESTON), MARKET, wrt, engine)

    outside = found()
    with torch.inference_mode():
        inside = found()
        close(inside["spot"].value, outside["spot"].value)
        triple = (pr.European([90.0, 110.0], 1.0), pr.Heston(**HESTON), pr.Market(100.0, 0.01, 0.02))
    for name in wrt:
        close(inside[name].value, outside[name].value)
        close(pr.greeks(*triple, wrt, engine)[name].value, outside[name].value)


def test_no_prices_have_no_greeks():
    found = pr.greeks(pr.European(torch.ones(0, dtype=E), 1.0), pr.Heston(**HESTON), MARKET, ("spot", ("v0", "spot")))
    assert [estimate.value.shape for estimate in found.values()] == [(0,), (0,)]


# --- on a grid ------------------------------------------------------------------------------------------------------

SECOND = {("vol", "vol"): "volga", ("spot", "vol"): "vanna", ("vol", "spot"): "vanna", ("spot", "spot"): "gamma"}


@pytest.mark.slow
@pytest.mark.parametrize("directly", [True, False])
def test_second_derivatives_on_a_grid(directly, monkeypatch):
    """By reverse mode, and by differences of forward mode where a graph would be too large."""
    if not directly:
        monkeypatch.setattr(exact, "GRAPH_BYTES", 0)
    strikes = tensor([90.0, 105.0])
    triple = (pr.European(strikes, 0.75), pr.BlackScholes(0.25), pr.Market(100.0, 0.05, 0.02))
    found = pr.greeks(*triple, tuple(SECOND), pr.FiniteDifference(n_space=64, n_time=16))
    expected = black_scholes_greeks(100.0, strikes, 0.75, 0.25, 0.05, 0.02)
    for name, word in SECOND.items():
        value = getattr(expected, word)
        close(found[name].value, value, rtol=5e-3, atol=5e-3 * value.abs().max().item())
        error = (found[name].value - value).abs()
        assert (error <= found[name].error_bound + 1e-5 * value.abs().max()).all(), (name, error)


@pytest.mark.slow
def test_a_grid_too_large_for_a_graph_gives_the_same(monkeypatch):
    surface = pr.VolSurface(log_moneyness=[-0.2, 0.0, 0.2], expiries=[1.0], vols=[[0.28, 0.24, 0.22]])
    engine = pr.FiniteDifference(n_space=16, n_time=4)
    triple = (pr.European([95.0, 105.0], 1.0), pr.LocalVol(surface), pr.Market(100.0, 0.02))
    wrt = ("spot", "surface.vols", "rate")
    by_graph = pr.greeks(*triple, wrt, engine)
    monkeypatch.setattr(exact, "GRAPH_BYTES", 0)
    without = pr.greeks(*triple, wrt, engine)
    for name in wrt:
        close(by_graph[name].value, without[name].value)
        close(by_graph[name].error_bound, without[name].error_bound)


def test_gamma_on_a_grid_whose_coefficients_move_with_the_spot():
    """Under local volatility the spot moves the surface with it: the gamma is the difference of deltas."""
    surface = pr.VolSurface(log_moneyness=[-0.2, 0.0, 0.2], expiries=[0.5, 1.0], vols=[[0.3, 0.25, 0.22]] * 2)
    engine, size = pr.FiniteDifference(n_space=48, n_time=8), 0.05

    def delta(spot):
        triple = (pr.European(100.0, 1.0), pr.LocalVol(surface), pr.Market(spot, 0.02))
        return pr.greeks(*triple, ("spot", ("spot", "spot")), engine)

    up, middle, down = (delta(100.0 + h) for h in (size, 0.0, -size))
    slope = (up["spot"].value - down["spot"].value) / (2.0 * size)
    assert middle["spot", "spot"].value.item() == pytest.approx(slope.item(), rel=0.01)


def test_the_graph_of_a_grid_is_weighed_before_it_is_made():
    """Some 2 MB for one asset and 0.6 GB under Heston at the default grid."""
    engine = pr.FiniteDifference()
    coarser = exact._coarser(engine)
    for model, wrt, low, high in (
        (pr.BlackScholes(0.2), ("spot", "vol", "rate"), 1.0, 20.0),
        (pr.Heston(**HESTON), ("spot", *HESTON), 300.0, 1200.0),
    ):
        triple = (pr.European(100.0, 1.0), model, MARKET)
        groups = {name: tasks_of(name, triple) for name in wrt}
        megabytes = exact._graph_bytes(groups, triple, engine, coarser) / 2**20
        assert low <= megabytes <= high, megabytes


AMERICAN = (pr.American(100.0, 1.0, "put"), pr.BlackScholes(0.2), pr.Market(100.0, 0.03, 0.01))


@pytest.mark.slow
def test_second_derivatives_by_the_spot_hold_the_region_of_exercise():
    """The derivative of the vega by the spot is that of the delta by the vol, which first derivatives know."""
    engine, size = pr.FiniteDifference(), 2e-3
    found = pr.greeks(*AMERICAN, (("spot", "vol"),), engine)["spot", "vol"].value.item()
    deltas = [
        pr.greeks(AMERICAN[0], pr.BlackScholes(0.2 + h), AMERICAN[2], ("spot",), engine)["spot"].value.item()
        for h in (size, -size)
    ]
    assert found == pytest.approx((deltas[0] - deltas[1]) / (2.0 * size), rel=0.02)


@pytest.mark.parametrize(
    ("model", "pair"),
    [
        (AMERICAN[1], ("vol", "vol")),
        (AMERICAN[1], ("rate", "vol")),
        (pr.Heston(**HESTON), ("kappa", "rho")),
        (pr.LocalVol(pr.VolSurface([-0.2, 0.0, 0.2], [1.0], [[0.28, 0.24, 0.22]])), ("spot", "spot")),
    ],
)
def test_second_derivatives_that_move_the_region_of_exercise_are_refused(model, pair):
    """Its nodes stay, so that derivatives along them miss it: a volga of -59 in place of 0.9."""
    with pytest.raises(ValueError, match=rf"{pair[0]}, {pair[1]} would need the region of exercise.*method='bump'"):
        pr.greeks(AMERICAN[0], model, AMERICAN[2], (pair,), pr.FiniteDifference())


@pytest.mark.slow
def test_wide_bumps_let_the_region_of_exercise_move():
    """Against second differences of prices on the grid of 480 by 160: 0.87 at bumps of 0.02."""
    engine = pr.FiniteDifference(n_space=120, n_time=40)
    found = pr.greeks(*AMERICAN, (("vol", "vol"),), engine, method="bump", bump=0.05)["vol", "vol"]
    assert found.value.item() == pytest.approx(0.87, abs=0.2)
