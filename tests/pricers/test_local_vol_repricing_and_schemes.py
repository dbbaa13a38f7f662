"""LocalVol: the surface comes back by finite differences and by simulation; orders, martingale, buckets of vega."""

import math

import numpy as np
import pytest
import torch

import pricers as pr
from pricers.black import black_price
from pricers.models.local_vol import LocalVol, LogEuler, QuadraticLog, lookup
from pricers.models.vol_surface import VolSurface

F64 = torch.float64
EXPIRIES = [0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0]
POINTS = [-0.3, -0.15, -0.05, 0.0, 0.05, 0.15, 0.25]


def number(x):
    return torch.as_tensor(x, dtype=F64)


def heston_surface(n_quotes=33):
    """Quotes of a Heston model, which no interpolation knows of."""
    k, expiries = torch.linspace(-0.6, 0.36, n_quotes, dtype=F64), number(EXPIRIES)[:, None]
    model = pr.Heston(*map(number, (0.04, 1.5, 0.05, 0.6, -0.6)))
    market, strikes = pr.Market(*map(number, (1.0, 0.0, 0.0))), k.exp()
    vols = []
    for option in ("call", "put"):
        prices = pr.price(pr.European(strikes, expiries, option), model, market).value
        vols.append(pr.implied_vol(prices, number(1.0), strikes, expiries, option=option, errors="nan"))
    return VolSurface(k, EXPIRIES, torch.where(k >= 0.0, *vols))


@pytest.fixture(scope="module")
def surface():
    return heston_surface()


def simulate(model, expiry, n_steps, n_paths, seed, scheme):
    """S_T over its forward; the second half of the paths mirrors the first."""
    market, dt = pr.Market(number(1.0)), number(expiry / n_steps)
    generator = torch.Generator().manual_seed(seed)
    direct = isinstance(scheme, QuadraticLog)
    state = scheme.start(model, market, number(expiry)) if direct else ()
    log_ratio = torch.zeros(*model.batch_shape, n_paths, dtype=F64)
    state = (log_ratio,) if direct else state
    for i in range(n_steps):
        normals = torch.randn(n_paths // 2, generator=generator, dtype=F64)
        normals = torch.cat([normals, -normals])
        coefficients = scheme.coefficients(model, market, i * dt, dt)
        if direct:
            state = scheme.advance(coefficients, state, normals[None])
        else:
            step = scheme.advance(coefficients, log_ratio, state, normals[:0])
            log_ratio = log_ratio + step.drift + step.residual_variance.sqrt() * normals
    return scheme.ratio(state) if direct else log_ratio.exp()


def test_the_table_equals_numpys_interpolation():
    table = number([1.0, 4.0, 2.0, 8.0])
    position = torch.linspace(-2.0, 6.0, 41, dtype=F64)
    expected = np.interp(position, np.arange(4), table)
    assert lookup(table, position).numpy() == pytest.approx(expected, rel=1e-14)
    batch = lookup(torch.stack([table, 2.0 * table])[:, None], position)
    assert batch.shape == (2, 1, 41)
    assert batch[1, 0].numpy() == pytest.approx(2.0 * expected, rel=1e-14)


@pytest.mark.parametrize("scheme", [LogEuler(), QuadraticLog()], ids=["euler", "quadratic"])
def test_a_flat_surface_is_black_scholes_path_by_path(scheme):
    flat = LocalVol(VolSurface([-0.5, 0.0, 0.5], [0.4, 1.0], number([[0.3] * 3] * 2)))
    ratio = simulate(flat, 1.0, 7, 1000, 2, scheme)
    generator = torch.Generator().manual_seed(2)
    brownian = sum(torch.randn(500, generator=generator, dtype=F64) for _ in range(7)) * math.sqrt(1 / 7)
    expected = torch.exp(0.3 * torch.cat([brownian, -brownian]) - 0.045)
    assert ratio.numpy() == pytest.approx(expected.numpy(), rel=1e-12)


def test_finite_differences_give_the_heston_surface_back(surface):
    """To a tenth of a basis point of volatility; near the edge of the quotes, where they end, to two."""
    strikes = number(POINTS).exp()
    for expiry in (0.45, 1.0):
        call = pr.European(strikes, number(expiry), "call")
        estimate = pr.price(call, pr.LocalVol(surface), pr.Market(number(1.0)), pr.FiniteDifference())
        vols = pr.implied_vol(estimate.value, number(1.0), strikes, number(expiry))
        error = (vols - surface.vol(number(POINTS), number(expiry))).abs()
        assert error[1:-1].max().item() < 2e-5
        assert error.max().item() < 2e-4


@pytest.mark.parametrize(
    ("scheme", "n_steps", "bias"),
    [("euler", 50, 10.5e-4), ("quadratic", 25, 2.7e-4)],  # in vol, measured: 9.8 and 2.4 basis points
)
def test_simulation_gives_the_heston_surface_back(surface, scheme, n_steps, bias):
    strikes, expiry = number(POINTS).exp(), number(1.0)
    engine = pr.MonteCarlo(2**16, n_steps=n_steps, noise="sobol", seed=3, scheme=scheme)
    call = pr.European(strikes, expiry)
    estimate = pr.price(call, pr.LocalVol(surface), pr.Market(number(1.0)), engine)
    vols = pr.implied_vol(estimate.value, number(1.0), strikes, expiry)
    errors = pr.implied_vol(estimate.value + estimate.std_error, number(1.0), strikes, expiry) - vols
    assert errors.max().item() < 1e-4
    assert ((vols - surface.vol(number(POINTS), expiry)).abs() <= 4.0 * errors + bias).all()


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "order"), [("euler", 1.0), ("quadratic", 2.0)])
def test_weak_order_on_a_smooth_surface(scheme, order):
    """Total variance linear in time and edges six deviations away: nothing but the scheme errs. Sobol paths."""
    k = torch.linspace(-1.5, 1.2, 28, dtype=F64)
    w = 0.01 + 0.15 * (-0.5 * k + (k**2 + 0.09).sqrt())
    surface, market = VolSurface(k, [1.0], w.sqrt()[None]), pr.Market(number(1.0))
    strikes = number([0.8, 1.0, 1.2])
    truth = black_price(1.0, strikes, 1.0, surface.vol(strikes.log(), number(1.0)))
    steps, errors = (4, 8, 16), []
    for n in steps:
        engine = pr.MonteCarlo(2**17, n_steps=n, noise="sobol", seed=4, scheme=scheme)
        estimate = pr.price(pr.European(strikes, number(1.0)), pr.LocalVol(surface), market, engine)
        errors.append((estimate.value - truth).abs().max().item())
        assert estimate.std_error.max().item() < 0.1 * errors[-1]
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(-order, abs=0.35)


@pytest.mark.parametrize("scheme", [LogEuler(), QuadraticLog()], ids=["euler", "quadratic"])
@pytest.mark.parametrize("n_steps", [1, 4, 16])
def test_the_forward_is_a_martingale_at_any_step_for_a_batch(scheme, n_steps):
    steep = VolSurface([-1.0, 0.0, 1.0], [2.0], number([[[0.5, 0.3, 0.25]], [[0.9, 0.8, 0.85]]]))
    ratio = simulate(LocalVol(steep), 2.0, n_steps, 100_000, 5, scheme)
    assert ratio.shape == (2, 100_000)
    pairs = 0.5 * (ratio[:, :50_000] + ratio[:, 50_000:])
    error = pairs.std(-1) / math.sqrt(50_000)
    assert ((pairs.mean(-1) - 1.0).abs() <= 4.0 * error).all()
    assert error.max().item() < 0.02


def test_one_quadratic_step_has_mean_one_exactly():
    """Trapezoid on 40,001 normals, from where the surface is steepest."""
    model = LocalVol(VolSurface([-1.0, 0.0, 1.0], [2.0], number([[0.5, 0.3, 0.25]])))
    scheme, market = QuadraticLog(), pr.Market(1.0)
    normals = torch.linspace(-12.0, 12.0, 40_001, dtype=F64)
    weights = torch.exp(-0.5 * normals**2) / math.sqrt(2.0 * math.pi) * (normals[1] - normals[0])
    for dt in (0.01, 0.5, 20.0):
        coefficients = scheme.coefficients(model, market, number(0.1), number(dt))
        for start in (-1.5, -0.3, 0.2):
            (later,) = scheme.advance(coefficients, (torch.full_like(normals, start),), normals[None])
            assert (weights * torch.exp(later - start)).sum().item() == pytest.approx(1.0, rel=1e-10)


@pytest.mark.parametrize("scheme", [LogEuler(), QuadraticLog()], ids=["euler", "quadratic"])
def test_vega_by_bucket_equals_differences_and_adds_up(scheme):
    base = heston_surface(9)

    def price(vols):
        ratio = simulate(LocalVol(VolSurface(base.log_moneyness, base.expiries, vols)), 0.7, 7, 20_000, 6, scheme)
        return (ratio - 1.05).clamp(min=0.0).mean()

    vols = base.vols.clone().requires_grad_()
    (buckets,) = torch.autograd.grad(price(vols), vols)
    for row, column in ((4, 4), (5, 5), (2, 3)):
        bump = torch.zeros_like(base.vols)
        bump[row, column] = 1e-6
        difference = ((price(base.vols + bump) - price(base.vols - bump)) / 2e-6).item()
        assert buckets[row, column].item() == pytest.approx(difference, rel=1e-3, abs=1e-5)
    assert buckets[6].abs().max().item() == 0.0  # a quote after the next expiry beyond the option does not matter
    bump = torch.full_like(base.vols, 1e-6)
    difference = ((price(base.vols + bump) - price(base.vols - bump)) / 2e-6).item()
    assert buckets.sum().item() == pytest.approx(difference, rel=1e-3)


def test_a_surface_of_another_type_is_refused():
    with pytest.raises(ValueError, match=r"`surface` must be VolSurface\(log_moneyness, expiries, vols\), got float"):
        LocalVol(0.2)
