"""Surfaces fitted to quotes with arbitrage, noise and gaps: free of arbitrage, and near the truth."""

import math

import pytest
import references_dax as dax
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

import pricers as pr
from pricers.black import black_price

F64 = torch.float64
NAN = float("nan")
BP = 1e-4


def number(x):
    return torch.as_tensor(x, dtype=F64)


def dax_quotes():
    """Log-moneyness by expiry, years and vols of the DAX on 5 July 2002."""
    years = [day / 365.0 for day in dax.DAYS]
    market = pr.Market(dax.SPOT, pr.ZeroCurve([0.0, *years], [dax.ZERO_RATES[0], *dax.ZERO_RATES]))
    k = torch.log(number(dax.STRIKES)) - torch.log(market.forward(number(years)))[:, None]
    return k, number(years), number(dax.VOLS).T


@pytest.fixture(scope="module")
def dax_fit():
    return pr.VolSurface.fitted(*dax_quotes())


def svi(k):
    """Total variance at one year: raw SVI of Gatheral, free of butterflies."""
    return 0.02 + 0.12 * (-0.4 * (k - 0.05) + torch.sqrt((k - 0.05) ** 2 + 0.04))


K = torch.linspace(-0.5, 0.4, 13, dtype=F64)
EXPIRIES = number([0.25, 0.5, 1.0])
SMILE = svi(K / EXPIRIES[:, None] ** 0.3).sqrt()  # the skew falls with the expiry
NOISY = SMILE + 20.0 * BP * torch.randn(SMILE.shape, generator=torch.Generator().manual_seed(1), dtype=F64)


@pytest.fixture(scope="module")
def noisy_fit():
    return pr.VolSurface.fitted(K, EXPIRIES, NOISY, smoothing=1e-2)


def is_accepted(fit):
    surface = fit.surface
    pr.VolSurface(surface.log_moneyness, surface.expiries, surface.vols)
    return True


def least_largest_error(k, expiry, vols):
    """Largest error of the best prices free of butterflies at the quotes, over vega: a linear programme."""
    strikes = k.exp()
    sigma = vols.clone().requires_grad_()
    calls = black_price(1.0, strikes, expiry, sigma)
    (vega,) = torch.autograd.grad(calls.sum(), sigma)
    calls, vega, width = calls.detach().numpy(), vega.numpy(), strikes.diff().numpy()
    n = len(calls)
    rows, limits = [], []  # of A (errors in vol, bound) <= b
    for i in range(n):
        for sign in (1.0, -1.0):
            row = [0.0] * (n + 1)
            row[i], row[n] = sign, -1.0
            rows.append(row)
            limits.append(0.0)
    for i in range(1, n - 1):  # slopes must rise
        row = [0.0] * (n + 1)
        for j, factor in ((i - 1, 1 / width[i - 1]), (i, -1 / width[i - 1] - 1 / width[i]), (i + 1, 1 / width[i])):
            row[j] = -factor * vega[j]
        slopes = (calls[i] - calls[i - 1]) / width[i - 1], (calls[i + 1] - calls[i]) / width[i]
        rows.append(row)
        limits.append(slopes[1] - slopes[0])
    scale = 1e3  # of the errors
    found = linprog(
        [0.0] * n + [1.0], [[x / scale for x in row] for row in rows], limits, bounds=[(None, None)] * n + [(0, None)]
    )
    return found.fun / scale


@pytest.mark.slow
def test_quotes_of_the_dax_are_refused_with_the_way_out_and_their_fit_is_accepted(dax_fit):
    with pytest.raises(ValueError, match=r"arbitrage .* or fit a surface to them all: VolSurface.fitted\("):
        pr.VolSurface(*dax_quotes())
    assert is_accepted(dax_fit)
    assert dax_fit.rms.item() < 7.5 * BP  # measured: 6.9 and 23.5
    assert dax_fit.largest.item() < 25.0 * BP
    k, years, vols = dax_quotes()
    at_quotes = torch.stack([dax_fit.surface.vol(row, year) for row, year in zip(k, years, strict=True)])
    assert (at_quotes - vols).numpy() == pytest.approx(dax_fit.errors.numpy(), abs=1e-12)


@pytest.mark.slow
def test_the_largest_errors_at_the_dax_cannot_be_avoided(dax_fit):
    """Butterflies alone force 16, 17 and 12 basis points on three expiries."""
    k, years, vols = dax_quotes()
    largest = dax_fit.errors.abs().amax(-1)
    least = number([least_largest_error(*row) for row in zip(k, years, vols, strict=True)])
    assert least.max().item() > 15.0 * BP
    assert (largest >= 0.98 * least).all()  # the programme is linear in the vols
    assert (largest < least + 20.0 * BP).all()
    assert (largest[1:] < least[1:] + 15.0 * BP).all()  # all but the smile of 13 days


@pytest.mark.slow
def test_some_expiries_of_the_dax_are_refused_and_fitted():
    k, years, vols = (part[[0, 4]] for part in dax_quotes())
    with pytest.raises(ValueError, match=r"arbitrage .* or fit a surface to them all: VolSurface.fitted\("):
        pr.VolSurface(k, years, vols)
    fit = pr.VolSurface.fitted(k, years, vols)
    assert is_accepted(fit)
    assert fit.largest.item() < 25.0 * BP


@pytest.mark.slow
def test_finite_differences_give_the_fit_of_the_dax_back(dax_fit):
    """Where the surface has been carried far beyond the quotes, so that the spot hardly leaves it."""
    k, years, _ = dax_quotes()
    surface = dax_fit.surface
    for row in (1, 4, 7):
        points = k[row][1:-1:2]
        found = []
        for option in ("put", "call"):
            contract = pr.European(points.exp(), years[row], option)
            price = pr.price(contract, pr.LocalVol(surface), pr.Market(1.0), pr.FiniteDifference()).value
            found.append(pr.implied_vol(price, number(1.0), points.exp(), years[row], option=option, errors="nan"))
        error = (torch.where(points < 0.0, *found) - surface.vol(points, years[row])).abs().max().item()
        assert error < 8.0 * BP


@pytest.mark.parametrize("knots_per_quote", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_smooth_surface_comes_back_nearly_unchanged(knots_per_quote):
    fit = pr.VolSurface.fitted(K, EXPIRIES, SMILE, knots_per_quote=knots_per_quote)
    assert is_accepted(fit)
    assert fit.largest.item() < 1.0 * BP
    between = 0.5 * (K[1:] + K[:-1])
    for expiry in EXPIRIES:
        truth = svi(between / expiry**0.3).sqrt()
        assert (fit.surface.vol(between, expiry) - truth).abs().max().item() < 8.0 * BP


@pytest.mark.slow
def test_noise_is_taken_out(noisy_fit):
    noise = (NOISY - SMILE).square().mean().sqrt().item()
    error = (noisy_fit.errors + NOISY - SMILE).square().mean().sqrt().item()
    assert noise == pytest.approx(20.0 * BP, rel=0.2)
    assert error < 0.9 * noise
    assert noisy_fit.rms.item() < noise
    raw = pr.VolSurface.fitted(K, EXPIRIES, NOISY)
    assert is_accepted(raw)
    assert raw.rms.item() < noisy_fit.rms.item()  # less smoothing, nearer to the quotes
    assert (raw.errors + NOISY - SMILE).square().mean().sqrt().item() < 1.1 * noise


@pytest.mark.slow
def test_simulation_gives_the_fit_of_noisy_quotes_back(noisy_fit):
    surface, expiry = noisy_fit.surface, number(1.0)
    points = number([-0.3, -0.1, 0.0, 0.1, 0.3])
    engine = pr.MonteCarlo(2**16, n_steps=100, noise="sobol", seed=3, scheme="quadratic")
    estimate = pr.price(pr.European(points.exp(), expiry), pr.LocalVol(surface), pr.Market(1.0), engine)
    vols = pr.implied_vol(estimate.value, number(1.0), points.exp(), expiry)
    errors = pr.implied_vol(estimate.value + estimate.std_error, number(1.0), points.exp(), expiry) - vols
    assert ((vols - surface.vol(points, expiry)).abs() <= 4.0 * errors).all()


@pytest.mark.slow
def test_missing_quotes_are_filled_in():
    quotes = SMILE.clone()
    quotes[0, ::2], quotes[1, 4:8], quotes[2, :3] = NAN, NAN, NAN
    fit = pr.VolSurface.fitted(K, EXPIRIES, quotes)
    assert is_accepted(fit)
    assert fit.errors.isnan().equal(quotes.isnan())
    filled = torch.stack([fit.surface.vol(K, expiry) for expiry in EXPIRIES])
    error = (filled - SMILE).abs()
    assert error[0, 3:10].max().item() < 12.0 * BP  # within two standard deviations; quotes are one apart
    assert error[1].max().item() < 12.0 * BP
    assert "0.25           6" in str(fit)
    weightless = pr.VolSurface.fitted(K, EXPIRIES, SMILE, weights=torch.where(quotes.isnan(), 0.0, 3.0))
    assert weightless.surface.vols.numpy() == pytest.approx(fit.surface.vols.numpy(), abs=1e-12)


def test_a_heavier_quote_is_nearer():
    quotes, weights = number([[0.22, 0.24, 0.21]]), number([[1.0, 10.0, 1.0]])
    even = pr.VolSurface.fitted([-0.1, 0.0, 0.1], [1.0], quotes)
    heavy = pr.VolSurface.fitted([-0.1, 0.0, 0.1], [1.0], quotes, weights=weights)
    assert heavy.errors[0, 1].abs().item() < 0.5 * even.errors[0, 1].abs().item()


@pytest.mark.slow
@settings(max_examples=8, phases=[Phase.generate])
@given(noise=st.lists(st.floats(-0.15, 0.15), min_size=10, max_size=10), short=st.floats(0.01, 0.3))
def test_any_quotes_become_prices_without_arbitrage(noise, short):
    """Calls on a fine grid of strikes are convex and fall, and rise with the expiry at the same moneyness."""
    quotes = 0.25 + number(noise).reshape(2, 5)
    expiries, k = number([short, 0.5]), number([-0.2, -0.1, 0.0, 0.05, 0.15])
    surface = pr.VolSurface.fitted(k, expiries, quotes, knots_per_quote=1).surface
    strikes = torch.linspace(0.75, 1.25, 201, dtype=F64)
    times = number([0.5 * short, short, 0.5 * (short + 0.5), 0.5])
    calls = torch.stack([black_price(1.0, strikes, t, surface.vol(strikes.log(), t)) for t in times])
    slopes = calls.diff(dim=-1) / strikes.diff()
    assert (slopes <= 1e-12).all()
    assert (slopes >= -1.0 - 1e-12).all()
    assert (slopes.diff(dim=-1) >= -1e-12).all()
    assert (calls.diff(dim=0) >= -1e-15).all()


@pytest.mark.slow
def test_vols_are_differentiable_in_the_quotes():
    """By the implicit function theorem, against fits of bumped quotes; one of them in a butterfly."""
    k, expiries = [-0.2, -0.1, 0.0, 0.1], [0.3, 1.0]
    quotes = number([[0.26, 0.22, 0.25, 0.2], [0.25, 0.23, 0.21, 0.2]])

    def vol(quotes):
        return pr.VolSurface.fitted(k, expiries, quotes).surface.vol(number([-0.05]), number(0.8)).sum()

    leaf = quotes.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(vol(leaf), leaf)
    for row, column in ((0, 1), (0, 2), (1, 1), (1, 2)):
        bump = torch.zeros_like(quotes)
        bump[row, column] = 1e-4
        difference = ((vol(quotes + bump) - vol(quotes - bump)) / 2e-4).item()
        assert slopes[row, column].item() == pytest.approx(difference, rel=0.02, abs=2e-3)


@pytest.mark.slow
def test_a_batch_of_surfaces_is_fitted_each_alone():
    quotes = torch.stack([NOISY, 1.3 * SMILE])[:, :2]
    both = pr.VolSurface.fitted(K, EXPIRIES[:2], quotes, knots_per_quote=1, reach=3.0)
    assert both.rms.shape == both.largest.shape == both.surface.batch_shape == (2,)
    one = pr.VolSurface.fitted(both.surface.log_moneyness[0, 4:-4], EXPIRIES[:2], quotes[0], knots_per_quote=1)
    assert one.errors.numpy() == pytest.approx(both.errors[0].numpy(), abs=0.3 * BP)  # another reach, nearly the same


@pytest.mark.slow
def test_single_precision_stays_single():
    fit = pr.VolSurface.fitted(K.float(), EXPIRIES.float(), NOISY.float(), knots_per_quote=1)
    assert fit.surface.vols.dtype == fit.errors.dtype == torch.float32


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vols": [[0.2, NAN, NAN], [0.2, 0.2, 0.2]]}, "`vols` must hold two quotes or more .* at expiry 0.5; leave"),
        ({"weights": [[1.0, 0.0, 0.0]]}, "`vols` must hold two quotes or more .* at expiry 0.5; leave"),
        ({"vols": [[0.2, -0.1, NAN], [0.2, 0.2, 0.2]]}, r"`vols` must be above 0, got -0.1 at index \(0, 1\)"),
        ({"vols": [[0.2, math.inf, NAN], [0.2, 0.2, 0.2]]}, r"`vols` must be finite, got inf at index \(0, 1\)"),
        ({"vols": "0.2"}, "`vols` must be an array of real numbers, or NaN where there is no quote, got '0.2'"),
        ({"vols": [[0.2, 0.2, 0.2]]}, r"`vols` must end in axes of expiries and quotes, got shape \(1, 3\)"),
        ({"weights": -1.0}, "`weights` must be 0 or more, got -1"),
        ({"weights": [1.0, 2.0]}, r"`vols` of shape \(2, 3\) and `weights` of shape \(2,\) do not broadcast"),
        ({"smoothing": 0.0}, "`smoothing` must be above 0, got 0.0"),
        ({"knots_per_quote": 0}, "`knots_per_quote` must be 1 or more, got 0"),
        ({"reach": -1.0}, "`reach` must be above 0, got -1.0"),
        ({"expiries": [1.0, 0.5]}, "`expiries` must ascend strictly"),
        ({"log_moneyness": [0.0, -0.1, 0.1]}, "`log_moneyness` .* must ascend strictly"),
    ],
)
def test_bad_input_is_refused_by_name(changed, message):
    good = {"log_moneyness": [-0.1, 0.0, 0.1], "expiries": [0.5, 1.0], "vols": [[0.2, 0.2, 0.2]] * 2}
    with pytest.raises(ValueError, match=message):
        pr.VolSurface.fitted(**good | changed)
