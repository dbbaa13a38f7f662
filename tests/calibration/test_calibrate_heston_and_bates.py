"""Exact calibration: published optima from every seed, round trips, errors of parameters, and what goes wrong."""

import numpy as np
import pytest
import references_dax as dax
import torch
from calibration.calibration_box import bare_quotes, parameters, surfaces
from formula_smile import FormulaSmile, history_of
from scipy import optimize

from qfml.calibration import BatesCalibration, HestonCalibration, Surface, calibrate, exact, smoothing
from qfml.calibration.exact import exact_vols
from qfml.calibration.model import Quotes
from qfml.calibration.smoothing import unit_scale
from qfml.errors import ConfigError, DataError

HESTON = HestonCalibration()
EXPIRIES = [14 / 365, 60 / 365, 0.5, 1.0, 2.0]
BARS = {
    ("heston", "week_rounded"): 177.24,
    ("heston", "exact_days"): 181.52,
    ("bates", "week_rounded"): 38.84,
    ("bates", "exact_days"): 41.65,
}


def with_vol(quotes, vol):
    return Quotes(**{**vars(quotes), "vol": vol})


def noisy(quotes, seed, size=0.002):
    generator = torch.Generator().manual_seed(seed)
    return with_vol(quotes, quotes.vol + size * torch.randn(quotes.vol.shape, generator=generator, dtype=torch.float64))


@pytest.fixture(scope="module")
def typical():
    """Twelve surfaces of parameters as markets have them, with their exact quotes."""
    generator = torch.Generator().manual_seed(0)
    low = torch.tensor([0.02, 1.0, 0.03, 0.3, -0.8], dtype=torch.float64)
    high = torch.tensor([0.15, 6.0, 0.12, 1.2, -0.2], dtype=torch.float64)
    x = low + (high - low) * torch.rand(12, 5, generator=generator, dtype=torch.float64)
    return x, surfaces(HESTON, x, EXPIRIES)


@pytest.mark.parametrize(("model", "maturities"), BARS, ids=str)
def test_dax_ends_at_the_published_optimum(model, maturities):
    surface = Surface.dax_2002(maturities)
    found = calibrate(surface, model, seed=11)
    assert found.sse <= BARS[model, maturities]
    assert found.converged.tolist() == [True]
    assert found.status[0].startswith("converged")
    assert found.sse == pytest.approx(1e4 * np.square(found.residuals).sum(), rel=1e-12)
    if maturities == "week_rounded":
        optimum, rel = (dax.HESTON_OPTIMUM, 1e-4) if model == "heston" else (dax.BATES_OPTIMUM, 2e-3)
        assert found.params == pytest.approx(optimum, rel=rel)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "maturities"), BARS, ids=str)
def test_dax_ends_there_from_each_of_twenty_seeds(model, maturities):
    surface = Surface.dax_2002(maturities)
    for seed in range(20):
        assert calibrate(surface, model, seed=seed).sse <= BARS[model, maturities], seed


def test_what_is_reported_comes_from_the_exact_engine():
    import pricers as pr

    surface = Surface.dax_2002()
    found = calibrate(surface, seed=3)
    model = pr.Heston(**found.params)
    put = surface.strike <= surface.forward
    for option, side in (("put", put), ("call", ~put)):
        strike, expiry = (torch.tensor(np.array(column[side])) for column in (surface.strike, surface.expiry))
        forward = torch.tensor(np.array(surface.forward[side]))
        for i in range(0, len(strike), 9):  # one by one: no batch, no kernel, no expiry shared
            market = pr.Market(spot=forward[i])
            price = pr.price(pr.European(strike[i], expiry[i], option), model, market).value
            vol = pr.implied_vol(price, forward[i], strike[i], expiry[i], option=option).item()
            assert found.vols[0][side][i] == pytest.approx(vol, abs=1e-8)


def test_exact_quotes_are_fitted_to_a_fraction_of_a_basis_point(typical):
    x, quotes = typical
    found = calibrate(quotes)
    assert bool(found.converged.all())
    assert found.max_bps.max() < 0.02
    assert np.abs(found.x / x.numpy() - 1.0).max() < 1e-3


@pytest.mark.slow
def test_surfaces_of_the_whole_box_are_fitted_again():
    x = parameters(1, 300)
    found = calibrate(surfaces(HESTON, x, [7 / 365, 14 / 365, 30 / 365, 0.25, 0.5, 1.0, 2.0, 3.0]))
    assert np.mean(found.max_bps < 1.0) >= 0.99


def test_a_surface_in_a_batch_ends_as_it_does_alone(typical):
    _, quotes = typical
    disturbed = noisy(quotes, 1)
    together = calibrate(disturbed, start=[0.05, 2.0, 0.05, 0.5, -0.5])
    for i in (0, 5, 11):
        alone = calibrate(disturbed.at([i]), start=[0.05, 2.0, 0.05, 0.5, -0.5])
        assert alone.x[0] == pytest.approx(together.x[i], rel=1e-7)
        assert alone.n_steps[0] == together.n_steps[i]


def test_days_without_quotes_fail_and_leave_the_others_alone(typical):
    _, quotes = typical
    weight = quotes.weight.clone()
    weight[[1, 4]] = 0.0
    found = calibrate(Quotes(**{**vars(quotes), "weight": weight}))
    assert found.converged.tolist() == [i not in (1, 4) for i in range(12)]
    assert found.status[1] == "failed: the surface has no quotes"
    assert bool(np.isnan(found.x[[1, 4]]).all())
    assert bool(np.isnan(found.rmse_bps[[1, 4]]).all())
    assert np.nanmax(found.max_bps) < 0.02
    assert "10 of 12 surfaces converged" in str(found)


def test_missing_quotes_and_weights_are_respected(typical):
    _, quotes = typical
    some = quotes.at([0, 1])
    spoiled = some.vol.clone()
    spoiled[0, 3], spoiled[1, 8] = 0.9, 0.9
    weight = some.weight.clone()
    weight[0, 3], weight[1, 8] = 0.0, 1e-12
    found = calibrate(Quotes(**{**vars(some), "vol": spoiled, "weight": weight}))
    assert bool(np.isnan(found.residuals[0, 3]))
    others = np.delete(found.residuals[1], 8)
    assert np.nanmax(np.abs(found.residuals[0])) < 2e-6
    assert np.abs(others).max() < 2e-6


def test_standard_errors_are_those_of_bumped_engine_vols(typical):
    _, quotes = typical
    weight = torch.linspace(0.5, 2.0, quotes.vol.shape[1], dtype=torch.float64).expand_as(quotes.vol)
    disturbed = Quotes(**{**vars(noisy(quotes.at([0, 7]), 2)), "weight": weight[:2].contiguous()})
    found = calibrate(disturbed)
    x = torch.tensor(found.x)
    columns = []
    for i in range(5):
        bump = torch.zeros_like(x)
        bump[:, i] = 1e-4 * x[:, i]
        up, down = exact_vols(HESTON, x + bump, disturbed), exact_vols(HESTON, x - bump, disturbed)
        columns.append((up - down) / (2.0 * bump[:, i : i + 1]))
    jacobian = torch.stack(columns, -1).numpy()
    for s in range(2):
        w = disturbed.weight[s].numpy()
        normal = jacobian[s].T @ (w[:, None] * jacobian[s])
        variance = (w * found.residuals[s] ** 2).sum() / (len(w) - 5)
        covariance = variance * np.linalg.inv(normal)
        errors = np.sqrt(np.diag(covariance))
        assert [found.std_error[p.name][s] for p in HESTON.parameters] == pytest.approx(errors.tolist(), rel=1e-4)
        assert found.correlation[s] == pytest.approx(covariance / np.outer(errors, errors), abs=1e-3)


@pytest.mark.slow
def test_standard_errors_are_the_spread_of_refits():
    x = torch.tensor([[0.06, 2.5, 0.07, 0.6, -0.6]], dtype=torch.float64)
    quotes = surfaces(HESTON, x, EXPIRIES).at([0] * 1000)
    found = calibrate(noisy(quotes, 3, size=0.001), start=x[0].tolist())
    for i, parameter in enumerate(HESTON.parameters):
        spread = found.x[:, i].std()
        assert np.sqrt(np.mean(found.std_error[parameter.name] ** 2)) == pytest.approx(spread, rel=0.1)
        inside = np.abs(found.x[:, i] - x[0, i].item()) < 1.96 * found.std_error[parameter.name]
        assert inside.mean() == pytest.approx(0.95, abs=0.03)


def test_three_quotes_for_five_parameters_are_said_not_to_identify_them(typical):
    _, quotes = typical
    weight = quotes.weight[:1].clone()
    weight[0, 3:] = 0.0
    found = calibrate(Quotes(**{**vars(quotes.at([0])), "weight": weight}))
    assert found.warnings[0] == ("not identified: 3 quotes for 5 parameters",)
    assert all(np.isinf(error[0]) for error in found.std_error.values())
    assert found.max_bps[0] < 1.0


def test_a_quote_where_the_model_has_no_price_is_said_and_spoils_nothing(typical):
    x, quotes = typical
    columns = {name: column[:2].clone() for name, column in vars(quotes).items()}
    columns["log_moneyness"][0, 6] = 0.9  # 30 deviations away after two weeks
    columns["weight"][0, 6] = 1e-6
    found = calibrate(Quotes(**columns))
    assert found.warnings[0][0].startswith("1 quotes lie where the model's price is below")
    assert found.warnings[1] == ()
    assert found.converged.all()
    assert found.x[0] == pytest.approx(x[0].numpy(), rel=0.05)


def test_one_short_expiry_does_not_tell_the_mean_reversion():
    x = torch.tensor([[0.06, 2.5, 0.07, 0.6, -0.6]], dtype=torch.float64)
    quotes = noisy(surfaces(HESTON, x, [30 / 365]), 4, size=0.0005)
    found = calibrate(quotes, start=x[0].tolist())
    said = " ".join(found.warnings[0])
    assert "`kappa` is not identified" in said or "`kappa` is at its bound" in said
    assert "`theta` is not identified" in said or "`theta` is at its bound" in said
    assert "`v0`" not in said


def test_a_parameter_at_its_bound_is_said_to_be_there():
    import pricers as pr

    moneyness = torch.linspace(-0.2, 0.02, 9, dtype=torch.float64).repeat(3)[None]
    expiry = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64).repeat_interleave(9)[None]
    x = torch.tensor([[0.04, 2.0, 0.09, 1.5, -0.9995]], dtype=torch.float64)  # beyond the bound of rho
    blank = bare_quotes(moneyness, expiry)
    assert isinstance(HESTON.pricer(x[0]), pr.Heston)
    found = calibrate(with_vol(blank, exact_vols(HESTON, x, blank)), max_steps=300)
    assert "`rho` is at its bound, between -0.999 and 0.999" in found.warnings[0]
    assert bool(np.isnan(found.std_error["rho"][0]))
    assert np.isfinite([found.std_error[name][0] for name in ("v0", "theta", "sigma")]).all()


def day_path(quotes_seed=5):
    generator = torch.Generator().manual_seed(quotes_seed)
    x = torch.tensor([0.06, 2.5, 0.07, 0.6, -0.6], dtype=torch.float64).repeat(4, 1)
    x[:, 0] += 0.004 * torch.randn(4, generator=generator, dtype=torch.float64)
    return noisy(surfaces(HESTON, x, [0.1, 0.5, 1.5]), quotes_seed + 1, size=0.004)


@pytest.mark.slow
def test_a_smoothed_history_is_the_joint_optimum_that_scipy_finds():
    quotes, weight = day_path(), 1e-2
    apart, found = calibrate(quotes), calibrate(quotes, smoothness=weight)

    def residuals(flat):
        x = torch.tensor(flat.reshape(4, 5))
        y, _ = unit_scale(HESTON.parameters, x)
        errors = exact_vols(HESTON, x, quotes) - quotes.vol
        return torch.cat([errors.flatten(), weight**0.5 * (y[1:] - y[:-1]).flatten()]).numpy()

    best = optimize.least_squares(residuals, apart.x.flatten(), x_scale="jac", xtol=1e-10, ftol=1e-12)
    assert np.square(residuals(found.x.flatten())).sum() == pytest.approx(2.0 * best.cost, rel=1e-6)
    assert np.square(residuals(found.x.flatten())).sum() < np.square(residuals(apart.x.flatten())).sum() * 0.99
    assert found.x.flatten() == pytest.approx(best.x, rel=2e-3)


def test_much_smoothness_gives_all_days_the_same_parameters():
    found = calibrate(day_path(), smoothness=1e3)
    assert np.ptp(found.x, axis=0).max() < 1e-4
    assert found.converged.all()


def test_a_quote_without_a_price_does_not_keep_a_history_from_being_smoothed():
    columns = {name: column.clone() for name, column in vars(day_path()).items()}
    columns["log_moneyness"][1, 0] = 2.5  # forty deviations away
    columns["weight"][1, 0] = 1e-6
    found = calibrate(Quotes(**columns), smoothness=1e3)
    assert np.ptp(found.x, axis=0).max() < 1e-4
    assert found.converged.all()


class Ascending(FormulaSmile):
    """A model whose derivatives have the wrong sign: no step goes down."""

    def vols_and_jacobian(self, x, quotes):
        vols, jacobian = super().vols_and_jacobian(x, quotes)
        return vols, -jacobian


def test_smoothing_that_finds_no_way_down_is_not_said_to_have_converged(monkeypatch):
    history = history_of([[0.2, -0.2, 0.3, 1.0], [0.3, -0.2, 0.3, 1.0]], noise=0.01)
    found = calibrate(history, Ascending(), start=[0.4, -0.1, 0.1, 1.0], smoothness=1e-6)
    assert not found.converged.any()
    assert all(said.startswith("not converged: no step lowers the cost") for said in found.status)

    def singular(*_, **__):
        raise smoothing.LinAlgError

    monkeypatch.setattr(smoothing, "solveh_banded", singular)
    assert not calibrate(history, FormulaSmile(), smoothness=1.0).converged.any()


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch):
    history = history_of([[0.2 + 0.01 * day, -0.2, 0.3, 1.0] for day in range(33)], noise=0.01)
    found = []
    for n in (1, 7):  # told, not started: so many threads beside other processes take minutes
        monkeypatch.setattr(torch, "get_num_threads", lambda n=n: n)
        sizes = []
        exact._in_blocks(lambda rows, sizes=sizes: (sizes.append(len(rows)), (rows,))[1], 40)
        found.append((sorted(sizes), calibrate(history, FormulaSmile(), n_starts=8).x.tolist()))
    torch.set_num_threads(1)  # what the library restored is the number it was told
    assert found[0] == found[1]


def test_going_through_the_days_ends_where_the_search_of_all_days_does():
    quotes = day_path()
    together, one_by_one = calibrate(quotes), calibrate(quotes, warm=True)
    assert one_by_one.sse == pytest.approx(together.sse, rel=1e-5)
    assert one_by_one.x == pytest.approx(together.x, rel=1e-2)


def surface(vol=0.2, **more):
    strikes = [80.0, 90.0, 95.0, 100.0, 105.0, 110.0, 120.0]
    return Surface(strike=strikes * 2, expiry=[0.25] * 7 + [1.0] * 7, vol=vol, forward=100.0, **more)


def test_share_inside_bid_and_ask():
    quotes = noisy(surfaces(HESTON, torch.tensor([[0.04, 2.0, 0.05, 0.5, -0.6]]).double(), [0.25, 1.0]), 9, 0.003)
    vol = quotes.vol[0].numpy()
    columns = {"strike": 100.0 * np.exp(quotes.log_moneyness[0].numpy()), "expiry": quotes.expiry[0].numpy()}
    tight = calibrate(Surface(**columns, vol=vol, forward=100.0, bid=vol - 0.003, ask=vol + 0.003))
    share = np.mean(np.abs(tight.residuals[0]) <= 0.003)
    assert 0.0 < share < 1.0
    assert tight.inside_bid_ask == pytest.approx(share)
    assert bool(np.isnan(calibrate(Surface(**columns, vol=vol, forward=100.0)).inside_bid_ask))


def test_one_surface_gives_numbers_and_prints_them():
    found = calibrate(Surface.dax_2002("week_rounded"))
    assert all(isinstance(value, float) for value in (*found.params.values(), found.rmse_bps, found.sse))
    text = str(found)
    for piece in (
        "kappa",
        "15.66",
        "std error",
        "177.23",
        "converged",
        "bps of vol",
        "1.9178 y",
    ):
        assert piece in text, piece
    assert found.pricer().kappa.item() == found.params["kappa"]
    assert found.rmse_bps == pytest.approx(100.0 * np.sqrt(found.sse / 104))
    assert sum(104 / 8 * error**2 for error in found.rmse_bps_by_expiry().values()) == pytest.approx(1e4 * found.sse)


def test_several_surfaces_give_arrays():
    found = calibrate([Surface.dax_2002("week_rounded"), Surface.dax_2002()], seed=1)
    assert found.params["kappa"].shape == (2,)
    assert found.pricer().batch_shape == (2,)
    assert found.sse.tolist() == pytest.approx([dax.HESTON_SSE_WEEKS, dax.HESTON_SSE_DAYS], abs=1e-3)


def test_starts_by_name_and_by_array():
    one = {"v0": 0.1, "kappa": 5.0, "theta": 0.1, "sigma": 1.0, "rho": -0.5}
    by_name = calibrate(Surface.dax_2002("week_rounded"), start=one)
    by_array = calibrate(Surface.dax_2002("week_rounded"), start=list(one.values()))
    assert by_name.params == by_array.params
    assert by_name.sse < 177.24


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"model": "hestn"}, ConfigError, "did you mean 'heston'"),
        ({"method": "best"}, ConfigError, "must be one of"),
        ({"method": "neural"}, ConfigError, "needs a `surrogate`"),
        ({"method": "inverse"}, ConfigError, "needs `inverse`"),
        ({"method": "polished"}, ConfigError, "starts from a network"),
        ({"warm": True, "smoothness": 1.0}, ConfigError, "choose one"),
        ({"smoothness": -1.0}, ConfigError, "0 or more"),
        ({"smoothness": float("nan")}, ConfigError, "0 or more"),
        ({"n_starts": 0}, ConfigError, "n_starts"),
        ({"n_polished": 2.5}, ConfigError, "n_polished"),
        ({"start": {"v0": 0.1}}, DataError, "must name the parameters"),
        ({"start": [0.1, 1.0]}, DataError, "shape"),
        ({"start": [0.1, 1.0, 0.1, 0.5, -1.0]}, DataError, "`start` of `rho`"),
    ],
)
def test_bad_settings_are_refused(settings, error, match):
    with pytest.raises(error, match=match):
        calibrate(surface(), **settings)


@pytest.mark.parametrize("bad", [[], "surface.csv", 7, {"strike": 1}])
def test_what_is_no_surface_is_refused(bad):
    with pytest.raises(DataError, match="surface"):
        calibrate(bad)


def test_quotes_that_are_none_are_refused():
    fine = torch.full((1, 2), 0.5, dtype=torch.float64)
    for name, value in (
        ("vol", -0.1),
        ("vol", torch.nan),
        ("expiry", 0.0),
        ("weight", -1.0),
        ("log_moneyness", torch.inf),
    ):
        columns = {field: fine.clone() for field in Quotes.__dataclass_fields__}
        columns[name][0, 1] = value
        with pytest.raises(DataError, match=f"`{name}` of a quote must be"):
            Quotes(**columns)


def test_bates_finds_the_jumps_that_are_there():
    model = BatesCalibration()
    x = torch.tensor([[0.03, 3.0, 0.04, 0.4, -0.5, 0.4, -0.15, 0.1]], dtype=torch.float64)
    found = calibrate(surfaces(model, x, [14 / 365, 60 / 365, 0.25, 0.5, 1.0, 2.0]), "bates")
    assert found.max_bps[0] < 0.1
    assert found.x[0] == pytest.approx(x[0].numpy(), rel=0.02)


@pytest.mark.parametrize("max_steps", [1, 3, 5])
def test_no_fit_goes_further_than_it_is_told(max_steps: int) -> None:
    """Rough, exact and verified steps are those of one budget."""
    found = calibrate(Surface.dax_2002(), "heston", n_starts=8, n_polished=1, max_steps=max_steps)
    assert 1 <= found.n_steps[0] <= max_steps
    assert found.status[0].startswith("not converged: the limit of steps")
    assert np.isfinite(found.sse)
