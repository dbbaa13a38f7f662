"""Volatility surfaces: the spline, Dupire's formula and what it gives back, and the arbitrage that is refused."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.interpolate import CubicSpline
from scipy.optimize import brentq

from pricers.market import Market
from pricers.models.smile import dupire_local_variance, natural_spline
from pricers.models.vol_surface import VolSurface

F64 = torch.float64
# torch builds its forward mode with its own deprecated compiler, and says so
FORWARD_MODE = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


def number(x):
    return torch.as_tensor(x, dtype=F64)


def svi(k, sqrt):
    """Total variance at one year (raw SVI of Gatheral), free of butterflies."""
    return 0.02 + 0.12 * (-0.4 * (k - 0.05) + sqrt((k - 0.05) ** 2 + 0.04))


def svi_surface(n_quotes=41, expiries=(0.25, 0.5, 1.0, 2.0), width=1.0):
    """w(k, T) = T w(k, 1): linear in time, as the interpolation is."""
    k = torch.linspace(-width, width, n_quotes, dtype=F64)
    return VolSurface(k, expiries, svi(k, torch.sqrt).sqrt().expand(len(expiries), -1))


def test_the_spline_equals_scipys_natural_cubic_spline_with_its_derivatives():
    generator = torch.Generator().manual_seed(1)
    knots = torch.rand(3, 9, generator=generator, dtype=F64).cumsum(-1)
    values = torch.randn(3, 9, generator=generator, dtype=F64)
    x = knots[:, :1] + (knots[:, -1:] - knots[:, :1]) * torch.linspace(0.0, 1.0, 50, dtype=F64)
    for row, parts in enumerate(zip(*natural_spline(knots, values, x), strict=True)):
        spline = CubicSpline(knots[row], values[row], bc_type="natural")
        for order, part in enumerate(parts):
            assert part.numpy() == pytest.approx(spline(x[row].numpy(), order), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("k", [-0.9, -0.2, 0.0, 0.05, 0.4, 1.1])
@pytest.mark.parametrize("time", [0.02, 0.7, 5.0])
def test_the_formula_equals_dupires_on_call_prices(k, time):
    """Dupire (1994): 2 dC/dT over K^2 d2C/dK2 on a forward of 1, differentiated by mpmath at 200 digits."""

    def variance(k, t):  # not linear in time
        return svi(k, mpmath.sqrt) * t * (1 + mpmath.mpf("0.1") * t) + mpmath.mpf("0.01") * t

    def call(strike, t):
        w = variance(mpmath.log(strike), t)
        d = -mpmath.log(strike) / mpmath.sqrt(w) + mpmath.sqrt(w) / 2
        return mpmath.ncdf(d) - strike * mpmath.ncdf(d - mpmath.sqrt(w))

    with mpmath.workdps(200):
        strike = mpmath.exp(k)
        expected = (
            2 * mpmath.diff(call, (strike, time), (0, 1)) / (strike**2 * mpmath.diff(call, (strike, time), (2, 0)))
        )
        terms = [
            variance(mpmath.mpf(k), time),
            mpmath.diff(variance, (k, time), (1, 0)),
            mpmath.diff(variance, (k, time), (2, 0)),
            mpmath.diff(variance, (k, time), (0, 1)),
        ]
    value = dupire_local_variance(number(k), *(number(float(term)) for term in terms))
    assert value.item() == pytest.approx(float(expected), rel=1e-12)


def test_a_surface_of_svi_gives_back_its_local_variance_with_order_two_in_the_spacing():
    x = torch.linspace(-0.6, 0.6, 37, dtype=F64)
    k = x.clone().requires_grad_()
    w = svi(k, torch.sqrt)
    (slope,) = torch.autograd.grad(w.sum(), k, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), k)
    time = number(0.8)
    exact = dupire_local_variance(x, time * w, time * slope, time * bend, w).detach()
    errors = [(svi_surface(n).local_variance(x, time) / exact - 1.0).abs().max().item() for n in (21, 41, 81)]
    assert errors[-1] < 1e-3
    assert errors[0] / errors[1] > 3.0
    assert errors[1] / errors[2] > 3.0


def test_quotes_that_move_with_the_expiry_give_the_same_local_variance():
    """A spline on its own grid at each expiry; the edges are those that all expiries share."""
    expiries = number([0.25, 0.5, 1.0, 2.0])
    k = torch.linspace(-1.0, 1.0, 81, dtype=F64) * (0.6 + 0.2 * expiries)[:, None]
    moving = VolSurface(k, expiries, svi(k, torch.sqrt).sqrt())
    assert [edge.item() for edge in moving.edges] == pytest.approx([-0.65, 0.65], rel=1e-12)
    x = torch.linspace(-0.5, 0.5, 21, dtype=F64)
    for time in (0.1, 0.4, 0.8, 1.7):
        fixed = svi_surface(81).local_variance(x, number(time))
        assert (moving.local_variance(x, number(time)) / fixed - 1.0).abs().max().item() < 2e-3


def cev_vol(strike, expiry, vol, beta):
    """Implied volatility of the constant elasticity of variance model on a forward of 1 (Schroder, 1989)."""
    scale = vol**2 * expiry * (1.0 - beta) ** 2
    at_strike, at_forward, degrees = strike ** (2 - 2 * beta) / scale, 1.0 / scale, 1.0 / (1.0 - beta)
    put = strike * stats.ncx2.sf(at_forward, degrees, at_strike) - stats.ncx2.cdf(at_strike, degrees + 2.0, at_forward)
    call = stats.ncx2.sf(at_strike, degrees + 2.0, at_forward) - strike * stats.ncx2.cdf(at_forward, degrees, at_strike)
    price, sign = (call, 1.0) if strike >= 1.0 else (put, -1.0)

    def excess(v):
        root = v * math.sqrt(expiry)
        d = -math.log(strike) / root + 0.5 * root
        return sign * (stats.norm.cdf(sign * d) - strike * stats.norm.cdf(sign * (d - root))) - price

    return brentq(excess, 0.01, 2.0, xtol=1e-14)


def test_a_surface_of_cev_gives_back_its_elasticity():
    k = np.linspace(-0.9, 0.7, 41)
    expiries = np.linspace(0.125, 1.0, 8)
    quotes = [[cev_vol(math.exp(x), t, 0.2, 0.4) for x in k] for t in expiries]
    surface = VolSurface(k, expiries, quotes)
    x = torch.linspace(-0.5, 0.4, 19, dtype=F64)
    for time in (0.3125, 0.5625, 0.9375):  # mid-interval, where the difference quotient in time is exact to order two
        local = surface.local_variance(x, number(time)).sqrt()
        exact = 0.2 * torch.exp(-0.6 * x)
        assert (local / exact - 1.0).abs().max().item() < 2e-3


def test_a_flat_smile_gives_forward_variances_and_nothing_else():
    surface = VolSurface([-0.5, 0.1, 0.4], [0.5, 1.0, 3.0], [[0.2] * 3, [0.25] * 3, [0.22] * 3])
    x = torch.linspace(-2.0, 2.0, 9, dtype=F64)
    expected = {
        0.0: 0.04,
        0.3: 0.04,
        0.5: 0.04,
        0.7: (0.25**2 - 0.04 * 0.5) / 0.5,
        2.0: (0.22**2 * 3 - 0.25**2) / 2,
        9.0: (0.22**2 * 3 - 0.25**2) / 2,
    }
    for time, variance in expected.items():
        assert surface.local_variance(x, number(time)).tolist() == pytest.approx([variance] * 9, rel=1e-12)


def test_beyond_the_edges_the_local_variance_keeps_its_value():
    surface = svi_surface()
    inside = surface.local_variance(number([-1.0, 1.0]), number(0.7))
    outside = surface.local_variance(number([-7.0, 7.0]), number(0.7))
    assert outside.tolist() == inside.tolist()
    assert surface.local_variance(number([0.1]), number(50.0)).equal(surface.local_variance(number([0.1]), number(2.0)))


def test_vols_are_the_quotes_at_the_quotes_and_linear_in_variance_between_expiries():
    k = number([-0.3, 0.0, 0.2])
    quotes = number([[0.3, 0.25, 0.24], [0.28, 0.25, 0.24]])
    surface = VolSurface(k, [0.5, 1.0], quotes)
    assert surface.vol(k, number(1.0)).tolist() == pytest.approx(quotes[1].tolist(), rel=1e-14)
    half = ((0.5 * quotes[0] ** 2 + quotes[1] ** 2) / 2 / 0.75).sqrt()
    assert surface.vol(k, number(0.75)).tolist() == pytest.approx(half.tolist(), rel=1e-14)
    both = surface.vol(k, number([0.5, 0.75]))
    assert both.tolist() == [surface.vol(k, number(time)).tolist() for time in (0.5, 0.75)]
    with pytest.raises(ValueError, match=r"`log_moneyness` must lie in \[-0.3, 0.2\], where there are quotes"):
        surface.vol(number([0.3]), number(0.5))
    with pytest.raises(ValueError, match=r"`time` must lie in \(0, 1\], where there are quotes"):
        surface.vol(k, number(1.1))


def test_a_batch_of_surfaces_and_times_equals_each_alone():
    one, two = svi_surface(21), svi_surface(21)
    batch = VolSurface(one.log_moneyness, one.expiries, torch.stack([one.vols, 1.1 * two.vols]))
    x = number([-0.4, 0.0, 0.5])
    times = number([0.1, 0.9])
    value = batch.local_variance(x, times)
    assert value.shape == (2, 3)
    other = VolSurface(one.log_moneyness, one.expiries, 1.1 * two.vols)
    assert value[0].tolist() == pytest.approx(one.local_variance(x, times[0]).tolist(), rel=1e-12)
    assert value[1].tolist() == pytest.approx(other.local_variance(x, times[1]).tolist(), rel=1e-12)


def test_quotes_by_strike_are_quotes_by_log_moneyness_on_each_forward():
    market = Market(number(100.0), number(0.05))
    strikes, expiries = number([80.0, 100.0, 130.0]), number([0.5, 2.0])
    quotes = number([[0.25, 0.2, 0.19]] * 2)
    surface = VolSurface.from_strikes(strikes, expiries, quotes, market)
    forwards = 100.0 * torch.exp(0.05 * expiries)
    assert surface.log_moneyness.tolist() == [
        pytest.approx(torch.log(strikes / forward).tolist(), rel=1e-12) for forward in forwards
    ]
    points = torch.log(strikes[1:2] / forwards[0])
    assert surface.vol(points, number(0.5)).item() == pytest.approx(0.2, rel=1e-12)
    with pytest.raises(ValueError, match=r"`market` of a surface must have no batch axes, got \(2,\)"):
        VolSurface.from_strikes(strikes, expiries, quotes, Market([90.0, 100.0]))


@FORWARD_MODE
def test_local_variance_is_differentiable_in_quotes_expiries_and_strikes():
    surface = svi_surface(5, (0.5, 1.0))
    x = number([-0.3, 0.02, 0.6])

    def local(k, expiries, vols, x, time):
        return VolSurface(k, expiries, vols).local_variance(x, time)

    inputs = [
        tensor.clone().requires_grad_()
        for tensor in (surface.log_moneyness, surface.expiries, surface.vols, x, number(0.8))
    ]
    assert torch.autograd.gradcheck(local, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(local, inputs, atol=1e-4, rtol=1e-3)  # differences of gradients


@pytest.mark.parametrize("time", [0.0, 0.5, 1.0, 4.0])
def test_gradients_are_finite_at_the_seams(time):
    surface = svi_surface(7, (0.5, 1.0))
    vols = surface.vols.clone().requires_grad_()
    x = surface.log_moneyness.clone().requires_grad_()
    value = VolSurface(surface.log_moneyness, surface.expiries, vols).local_variance(x, number(time))
    gradients = torch.autograd.grad(value.sum(), (vols, x))
    assert all(part.isfinite().all() for part in (value, *gradients))


@settings(max_examples=60)
@given(
    noise=st.lists(st.floats(-0.06, 0.06), min_size=21, max_size=21),
    scale=st.floats(0.01, 1.0),
    points=st.lists(st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 2.0)), min_size=5, max_size=5),
)
def test_what_is_accepted_has_a_positive_local_variance_and_what_is_not_names_its_quotes(noise, scale, points):
    base = svi_surface(7, (0.2, 0.6, 1.5))
    quotes = base.vols * (1.0 + scale * number(noise).reshape(3, 7))
    reason = None
    try:
        surface = VolSurface(base.log_moneyness, base.expiries, quotes)
    except ValueError as error:
        reason = str(error)
    if reason is not None:
        assert "arbitrage" in reason
        assert "expiry" in reason
        return
    nodes = surface.nodes()
    for position, time in points:
        local = surface.local_variance(nodes, number(time))
        assert local.isfinite().all()
        assert (local > 0.0).all()
        at = nodes[0] + (nodes[-1] - nodes[0]) * position
        assert surface.local_variance(at.reshape(1), number(time)).item() > 0.0


def quotes():
    return {
        "log_moneyness": [-0.2, 0.0, 0.2],
        "expiries": [0.5, 1.0],
        "vols": [[0.24, 0.2, 0.19], [0.23, 0.2, 0.19]],
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"log_moneyness": [0.0, -0.2, 0.2]}, "`log_moneyness` .* must ascend strictly .*; sort the quotes"),
        ({"log_moneyness": [0.0]}, r"must hold two quotes or more, .* got shape \(1,\)"),
        ({"log_moneyness": [-0.2, 0.0]}, r"got shape \(2, 3\) beside `expiries` of shape \(2,\) and .* shape \(2,\)"),
        ({"expiries": [0.5, 1.0, 2.0]}, r"got shape \(2, 3\) beside `expiries` of shape \(3,\)"),
        ({"expiries": [1.0, 0.5]}, "`expiries` must ascend strictly, got 0.5"),
        ({"expiries": [0.0, 0.5]}, "`expiries` must be above 0, got 0"),
        ({"expiries": [[0.5, 1.0]]}, r"`expiries` must have one axis, got shape \(1, 2\)"),
        (
            {"vols": [[0.24, float("nan"), 0.19], [0.23, 0.2, 0.19]]},
            r"`vols` must be finite, got nan at index \(0, 1\)",
        ),
        ({"vols": [[0.24, 0.2, 0.19], [0.23, -0.2, 0.19]]}, r"`vols` must be above 0, got -0.2 at index \(1, 1\)"),
        ({"log_moneyness": [[-0.2, -0.1, 0.0], [0.1, 0.2, 0.3]]}, "`log_moneyness` of all expiries must overlap"),
        (
            {"vols": [[0.24, 0.2, 0.19], [0.23, 0.14, 0.19]]},
            r"calendar arbitrage: at log-moneyness 0 .* expiry 0.5 \(vol 0.2\) and expiry 1 \(vol 0.14\); correct one",
        ),
        (
            {"expiries": [0.5, 2.0], "vols": [[0.4, 0.4, 0.4], [0.2, 0.2, 0.2]]},
            r"calendar arbitrage: at log-moneyness -0.2 the total variance does not rise between",
        ),
        (
            {"vols": [[0.24, 0.2, 0.19], [0.23, 0.36, 0.23]]},
            r"arbitrage by a butterfly: at expiry 1 the quotes at log-moneyness -0.2, 0, 0.2 \(vols 0.23, 0.36, 0.23\)",
        ),
        (
            {"vols": [[0.24, 0.2, 0.9], [0.23, 0.2, 0.9]]},
            r"arbitrage by a vertical spread: at expiry 0.5 the quotes at log-moneyness 0, 0.2 \(vols 0.2, 0.9\)",
        ),
    ],
)
def test_bad_quotes_are_refused_by_name(changed, message):
    with pytest.raises(ValueError, match=message):
        VolSurface(**quotes() | changed)


def test_the_surface_of_a_batch_that_fails_is_named():
    good, bad = number(quotes()["vols"]), number([[0.24, 0.2, 0.19], [0.23, 0.14, 0.19]])
    with pytest.raises(ValueError, match=r"calendar arbitrage.*, surface \(1,\); correct"):
        VolSurface(quotes()["log_moneyness"], [0.5, 1.0], torch.stack([good, bad]))


def test_single_precision_stays_single():
    surface = VolSurface(*(torch.tensor(part) for part in quotes().values()))
    assert surface.local_variance(torch.zeros(2), torch.tensor(0.7)).dtype == torch.float32
    assert surface.nodes().dtype == torch.float32
