"""The kernel of vols and derivatives against the engine of `pricers`, over the whole box."""

import pytest
import torch
from calibration.calibration_box import bare_quotes, log_uniform_expiries, parameters, spread, surfaces

import pricers as pr
from pricers.analytic.fourier_law import model_law
from pricers.characteristic import heston_log_characteristic, jump_log_characteristic
from pricers.characteristic_gradient import (
    heston_on_the_line,
    heston_on_the_line_with_gradient,
    jumps_on_the_line_with_gradient,
)
from pricers.fourier import cos_european
from qfml.calibration import CALIBRATION_MODELS, BatesCalibration, HestonCalibration
from qfml.calibration.exact import exact_vols
from qfml.calibration.fourier_vols import Grid, Slices

MODELS = (HestonCalibration(), BatesCalibration())


def columns(x):
    return [x[:, i : i + 1] for i in range(x.shape[1])]


def derivatives(function, arguments):
    for i, argument in enumerate(arguments):

        def by_one(value, i=i):
            return function(*arguments[:i], value, *arguments[i + 1 :])

        yield torch.func.jvp(by_one, (argument,), (torch.ones_like(argument),))[1]


def arguments(n):
    x = parameters(0, n, jumps=True)
    expiry = log_uniform_expiries(1, n)[:, None]
    u = spread(torch.Generator().manual_seed(2), 0.05, 60.0, n)[:, None] / (x[:, 2:3] * expiry).sqrt()
    return u * torch.linspace(0.1, 1.0, 7, dtype=torch.float64), expiry, columns(x)


def test_the_characteristic_function_on_the_line_is_that_of_pricers():
    u, expiry, x = arguments(400)
    there = heston_log_characteristic(u, expiry, *x[:5], shift=0.5)
    for here in (heston_on_the_line(u, expiry, *x[:5]), heston_on_the_line_with_gradient(u, expiry, *x[:5])[0]):
        for one, other in zip(here, there, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
    here, _ = jumps_on_the_line_with_gradient(u, expiry, *x[5:])
    for one, other in zip(here, jump_log_characteristic(u, expiry, *x[5:], shift=0.5), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_its_written_out_gradient_is_that_of_automatic_differentiation():
    u, expiry, x = arguments(400)
    laws = (
        (heston_on_the_line_with_gradient, heston_log_characteristic, x[:5]),
        (jumps_on_the_line_with_gradient, jump_log_characteristic, x[5:]),
    )
    for law, reference, values in laws:
        _, gradient = law(u, expiry, *values)

        def function(*values, reference=reference):
            return reference(u, expiry, *values, shift=0.5)

        for ours, theirs in zip(gradient, derivatives(function, values), strict=True):
            for one, other in zip(ours, theirs, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.kind)
def test_vols_are_exact_over_the_box(model):
    expiries = [7 / 365, 30 / 365, 0.5, 3.0]
    x = parameters(3, 60, jumps=model.kind == "bates")
    quotes = surfaces(model, x, expiries)
    error = torch.where(quotes.used, (model.vols(x, quotes) - quotes.vol).abs(), 0.0)
    assert quotes.used.double().mean() > 0.98
    assert error.max() < 0.05e-4  # 0.05 bp of vol


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.kind)
def test_vols_are_exact_over_the_box_in_thousands_of_draws(model):
    expiries = [7 / 365, 14 / 365, 30 / 365, 0.25, 1.0, 3.0]
    x = parameters(4, 1500, jumps=model.kind == "bates")
    quotes = surfaces(model, x, expiries)
    error = torch.where(quotes.used, (model.vols(x, quotes) - quotes.vol).abs(), 0.0)
    assert error.max() < 0.05e-4


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.kind)
def test_the_jacobian_is_that_of_bumped_engine_vols(model):
    x = parameters(5, 25, jumps=model.kind == "bates")
    quotes = surfaces(model, x, [14 / 365, 0.25, 2.0])
    vols, jacobian = model.vols_and_jacobian(x, quotes)
    assert (vols - model.vols(x, quotes)).abs().nan_to_num().max() < 1e-12
    for i in range(x.shape[1]):
        bump = torch.zeros_like(x)
        bump[:, i] = 1e-4 * x[:, i]
        up, down = exact_vols(model, x + bump, quotes), exact_vols(model, x - bump, quotes)
        finite = (up - down) / (2.0 * bump[:, i : i + 1])
        scale = torch.where(quotes.used, finite.abs(), 0.0).amax(-1, keepdim=True)
        error = torch.where(quotes.used, (jacobian[..., i] - finite).abs() / scale, 0.0)
        assert error.max() < 1e-3, model.parameters[i].name  # what the bumps leave
        assert error.median() < 1e-6, model.parameters[i].name


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.kind)
def test_the_engine_here_is_that_of_price(model):
    x = parameters(6, 3, jumps=model.kind == "bates")
    quotes = surfaces(model, x, [0.1, 1.0])
    for i in range(3):
        for expiry in (0.1, 1.0):
            row = (quotes.expiry[i] == expiry) & quotes.used[i]
            strike = 100.0 * torch.exp(quotes.log_moneyness[i][row])
            market = pr.Market(spot=100.0)
            for option, side in (("put", strike <= 100.0), ("call", strike > 100.0)):
                price = pr.price(pr.European(strike[side], expiry, option), model.pricer(x[i]), market).value
                vol = pr.implied_vol(price, 100.0, strike[side], expiry, option=option)
                assert (vol - quotes.vol[i][row][side]).abs().max() < 1e-9


def test_quotes_of_any_order_and_number_are_found_again():
    model, generator = HestonCalibration(), torch.Generator().manual_seed(7)
    x = parameters(8, 3)
    log_moneyness = 0.1 * torch.randn(3, 90, generator=generator, dtype=torch.float64)
    expiry = torch.tensor([0.1, 0.5, 1.0, 2.0])[torch.randint(4, (3, 90), generator=generator)].double()
    weight = torch.ones(3, 90, dtype=torch.float64)
    weight[0, 5:] = 0.0  # a surface with five quotes
    weight[1] = 0.0  # and one with none
    log_moneyness[0, 5:], expiry[0, 5:], expiry[1] = torch.nan, torch.nan, 0.0
    quotes = bare_quotes(log_moneyness, expiry, weight=weight)
    vols, jacobian = model.vols_and_jacobian(x, quotes)
    assert bool(vols[1].isnan().all())
    assert bool(vols[0, 5:].isnan().all())
    for i, j in ((0, 0), (0, 4), (2, 0), (2, 41), (2, 89)):
        alone = bare_quotes(log_moneyness[i, j].view(1, 1), expiry[i, j].view(1, 1))
        vol, slope = model.vols_and_jacobian(x[i : i + 1], alone)
        assert vols[i, j].item() == pytest.approx(vol.item(), abs=2e-7)  # other nodes: they follow the strikes
        assert jacobian[i, j].tolist() == pytest.approx(slope[0, 0].tolist(), rel=1e-4, abs=2e-6)


def test_a_grid_of_some_surfaces_gives_what_the_whole_gives():
    model, x = BatesCalibration(), parameters(9, 12, jumps=True)
    quotes = surfaces(model, x, [0.05, 0.5, 2.0])
    grid = Grid.planned(model.law, x, Slices.of(quotes), quotes)
    index = torch.tensor([1, 4, 5, 11])
    for whole, part in zip(grid.vols_and_jacobian(x), grid.at(index).vols_and_jacobian(x[index]), strict=True):
        torch.testing.assert_close(whole[index], part, rtol=1e-10, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.kind)
def test_prices_far_out_are_not_noise(model):
    """Strikes up to eight deviations out, whose prices go down to none: nodes must know them too."""
    x = parameters(21, 40, jumps=model.kind == "bates")
    expiry = torch.tensor([7 / 365, 30 / 365, 0.5, 3.0], dtype=torch.float64).repeat_interleave(13).expand(40, -1)
    deviation = (0.8 * torch.maximum(x[:, :1], x[:, 2:3]) * expiry).sqrt()
    quotes = bare_quotes(torch.linspace(-8.0, 8.0, 13, dtype=torch.float64).repeat(4) * deviation, expiry.contiguous())
    slices = Slices.of(quotes)
    law = model_law(model.pricer(x[slices.surface]), slices.expiry)
    exact = slices.to_quotes(cos_european(law, slices.log_strike)[0])
    for finer in (1.0, 2.0, 5.0):
        error = (Grid.planned(model.law, x, slices, quotes, finer).prices(x) - exact).abs()
        # one law decays so slowly that the most nodes there are end before 1e-11
        assert error.max() < 1e-10, finer
        assert (error > 1e-11).double().mean() < 0.01, finer


def test_prices_that_are_too_small_have_no_vol():
    model = HestonCalibration()
    x = torch.tensor([[0.01, 1.0, 0.01, 0.1, 0.0]], dtype=torch.float64)
    quotes = bare_quotes(torch.tensor([[0.0, 2.0]]).double(), torch.tensor([[0.1, 0.1]]).double())
    assert model.vols(x, quotes).isnan().tolist() == [[False, True]]


def test_the_registry_holds_the_models_by_their_kind():
    assert CALIBRATION_MODELS["heston"] is HestonCalibration
    assert CALIBRATION_MODELS["bates"] is BatesCalibration
    for model in MODELS:
        drawn = model.starts(bare_quotes(*torch.ones(2, 3, 1).double()), 16, torch.Generator().manual_seed(0))
        assert drawn.shape == (3, 16, len(model.parameters))
        for i, parameter in enumerate(model.parameters):
            assert parameter.lower < parameter.start_lower < parameter.start_upper < parameter.upper
            assert bool(((drawn[..., i] >= parameter.start_lower) & (drawn[..., i] <= parameter.start_upper)).all())
