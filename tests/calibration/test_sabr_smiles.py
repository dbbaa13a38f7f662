"""SABR fitted expiry by expiry: published round trip, random smiles, a peer, error bars, what is not identified."""

import numpy as np
import pytest
import torch
from references_pricing import SABR_CALLS, SABR_STRIKES
from scipy.optimize import least_squares as scipy_least_squares

import pricers as pr
from qfml.calibration import CALIBRATION_MODELS, SabrSmile, Surface, calibrate
from qfml.calibration.sabr import sabr_vols
from qfml.errors import ConfigError

TRUTH = {"alpha": 1.5, "nu": 0.33, "rho": 0.1}  # QuantLib's test suite: beta .5, forward 100, half a year


def surface_of(k: np.ndarray, expiry: np.ndarray, vol: np.ndarray, forward: float = 100.0) -> Surface:
    """A surface of smiles: log-moneyness and vols (E, N), expiries (E,)."""
    return Surface(
        strike=(forward * np.exp(k)).ravel(), expiry=np.repeat(expiry, k.shape[1]), vol=vol.ravel(), forward=forward
    )


def sabr_surface(
    level: np.ndarray, beta: float, rho: np.ndarray, nu: np.ndarray, expiry: np.ndarray, n: int = 11
) -> Surface:
    k = np.linspace(-2.0, 2.0, n) * (level * np.sqrt(expiry))[:, None]
    parts = (torch.from_numpy(part)[:, None] for part in (expiry, level, beta + 0.0 * rho, rho, nu))
    return surface_of(k, expiry, sabr_vols(torch.from_numpy(k), *parts).numpy())


@pytest.mark.parametrize("at_the_money", [False, True])
def test_published_round_trip(at_the_money: bool) -> None:
    vol = pr.implied_vol(torch.tensor(SABR_CALLS, dtype=torch.float64), 100.0, torch.tensor(SABR_STRIKES), 0.5).numpy()
    surface = Surface(strike=SABR_STRIKES, expiry=0.5, vol=vol, forward=100.0)
    result = calibrate(surface, SabrSmile(beta=0.5, at_the_money=at_the_money))
    for name, value in TRUTH.items():
        # the prices are given to 1e-8 of some 10
        assert result.params[name][0] == pytest.approx(value, abs=1e-6), name
    assert result.converged.all()
    assert result.butterfly_free.all()
    assert result.warnings == ()
    assert result.rmse_bps[0] < 1e-4


@pytest.mark.parametrize(("beta", "at_the_money"), [(0.0, False), (0.5, False), (0.5, True), (1.0, True)])
def test_random_smiles_come_back(beta: float, at_the_money: bool) -> None:
    rng = np.random.default_rng(5)
    n = 40
    expiries = np.sort(rng.uniform(0.02, 5.0, (10, n)), axis=1)
    surfaces, truth = [], []
    for expiry in expiries:
        level, rho = rng.uniform(0.05, 0.5, n), rng.uniform(-0.9, 0.9, n)
        nu = rng.uniform(0.1, 1.2, n) / np.sqrt(expiry)
        surfaces.append(sabr_surface(level, beta, rho, nu, expiry))
        truth.append(np.stack([level * 100.0 ** (1.0 - beta), rho, nu]))
    result = calibrate(surfaces, SabrSmile(beta=beta, at_the_money=at_the_money))
    found = np.stack([result.params[name] for name in ("alpha", "rho", "nu")], axis=1)
    error = np.abs(found / np.stack(truth) - 1.0).max(axis=1)
    # with beta 1 a smile may belong to two sets of parameters: judged on the vols, and nearly all on the parameters
    assert np.nanmax(result.max_bps) < 1e-4
    assert np.mean(error < 1e-6) >= (0.99 if beta == 1.0 else 1.0)
    assert result.params["alpha"].shape == (10, n)
    assert result.converged.all()


def test_fits_of_noisy_smiles_are_no_worse_than_scipys() -> None:
    rng = np.random.default_rng(6)
    expiry = np.array([0.05, 1.0, 8.0])
    level, rho = rng.uniform(0.1, 0.4, 3), rng.uniform(-0.7, 0.4, 3)
    clean = sabr_surface(level, 0.5, rho, 0.6 / np.sqrt(expiry), expiry)
    vol = clean.vol * (1.0 + 0.01 * rng.standard_normal(len(clean)))
    weight = rng.uniform(0.5, 2.0, len(clean))
    surface = Surface(strike=clean.strike, expiry=clean.expiry, vol=vol, forward=100.0, weight=weight)
    result = calibrate(surface, SabrSmile(beta=0.5))
    for row, years in enumerate(expiry):
        mine = surface.expiry == years
        k = torch.from_numpy(surface.log_moneyness[mine])

        def residuals(x: np.ndarray, mine: np.ndarray = mine, k: torch.Tensor = k, years: float = years) -> np.ndarray:
            parts = (torch.tensor(part, dtype=torch.float64) for part in (years, x[0], 0.5, x[1], x[2]))
            return np.sqrt(weight[mine]) * (sabr_vols(k, *parts).numpy() - vol[mine])

        starts = [(0.2, r, v) for r in (-0.5, 0.3) for v in (0.3, 1.5)]
        bounds = ([1e-6, -0.9999, 1e-9], [20.0, 0.9999, 50.0])
        best = min((scipy_least_squares(residuals, x, bounds=bounds) for x in starts), key=lambda found: found.cost)
        ours = (weight[mine] * result.residuals[mine] ** 2).sum()
        assert ours <= 2.0 * best.cost * (1.0 + 1e-8)
        assert result.params["rho"][row] == pytest.approx(best.x[1], abs=1e-3)


def test_standard_errors_are_the_spread_over_noise() -> None:
    rng = np.random.default_rng(7)
    n, noise = 800, 1e-3
    expiry = np.linspace(1.0, 1.001, 8)  # eight looks at the same smile in each surface
    clean = sabr_surface(np.full(8, 0.2), 0.5, np.full(8, -0.3), np.full(8, 0.5), expiry)
    surfaces = [
        Surface(
            strike=clean.strike, expiry=clean.expiry, forward=100.0, vol=clean.vol + noise * rng.standard_normal(88)
        )
        for _ in range(n // 8)
    ]
    result = calibrate(surfaces, SabrSmile(beta=0.5))
    for name in ("alpha", "rho", "nu"):
        stated = np.sqrt(np.mean(result.std_error[name] ** 2))
        # 800 draws: the spread is known to 2.5 %
        assert stated == pytest.approx(result.params[name].std(), rel=0.1), name
    spread = np.corrcoef(result.params["rho"].ravel(), result.params["alpha"].ravel())[0, 1]
    assert result.correlation[..., 0, 2].mean() == pytest.approx(spread, abs=0.1)


def test_at_the_money_vol_is_met_exactly() -> None:
    surface = Surface.dax_2002()
    result = calibrate(surface, SabrSmile(beta=1.0, at_the_money=True))
    at_the_money = result.vols([0.0])[:, 0]
    for row, years in enumerate(result.expiries):
        mine = surface.expiry == years
        order = np.argsort(surface.log_moneyness[mine])
        expected = np.interp(0.0, surface.log_moneyness[mine][order], surface.vol[mine][order])
        assert at_the_money[row] == pytest.approx(expected, rel=1e-11)


def test_too_few_quotes_and_flat_smiles_are_said() -> None:
    two = Surface(strike=[95.0, 105.0], expiry=0.5, vol=[0.21, 0.2], forward=100.0)
    result = calibrate(two, "sabr")
    assert any("not identified: 2 quotes for 3 parameters" in warning for warning in result.warnings)
    assert np.isinf(result.std_error["rho"]).all()
    flat = Surface(strike=np.linspace(80.0, 120.0, 9), expiry=0.5, vol=0.2 * np.ones(9), forward=100.0)
    result = calibrate(flat, SabrSmile(beta=1.0))
    assert result.params["nu"][0] < 1e-3
    assert result.rmse_bps[0] < 1e-3
    assert result.converged.all()
    assert any("rho" in warning and "not identified" in warning for warning in result.warnings)
    assert any("at its lower bound: nu" in warning for warning in result.warnings)


def test_one_hopeless_smile_leaves_the_others_alone() -> None:
    clean = sabr_surface(np.array([0.2, 0.25]), 0.5, np.array([-0.3, -0.2]), np.array([0.8, 0.5]), np.array([0.5, 1.0]))
    wild = Surface(
        strike=np.linspace(50.0, 150.0, 11),
        expiry=0.1,
        vol=np.where(np.arange(11) % 2, 0.01, 3.0),
        forward=100.0,
        vol_unit="decimal",
    )
    alone, together = calibrate([clean, clean], "sabr"), calibrate([clean, wild, clean], "sabr")
    for name in ("alpha", "rho", "nu"):
        np.testing.assert_allclose(alone.params[name], together.params[name][[0, 2]], rtol=1e-7)
    assert np.isnan(together.params["alpha"][1, 1])  # it has one expiry only
    assert together.max_bps[1, 0] > 1e4
    assert "3 surfaces, 5 smiles" in str(together)


def test_negative_density_and_crossing_smiles_are_said() -> None:
    numbers = (np.array([0.25]), 0.3, np.array([-0.8]), np.array([0.3]), np.array([10.0]))
    result = calibrate(sabr_surface(*numbers), SabrSmile(beta=0.3))
    assert -3.0 < result.density_from[0] < 0.0
    assert any("negative density" in warning for warning in result.warnings)
    falling = sabr_surface(np.array([0.4, 0.2]), 1.0, np.array([0.0, 0.0]), np.array([0.3, 0.3]), np.array([0.5, 1.0]))
    assert any("calendar arbitrage" in warning for warning in calibrate(falling, "sabr").warnings)


def test_beta_can_be_fitted_and_its_settings_are_checked() -> None:
    surface = sabr_surface(np.array([0.3]), 0.6, np.array([-0.2]), np.array([0.7]), np.array([4.0]), n=25)
    result = calibrate(surface, SabrSmile(beta=None))
    assert result.params["beta"][0] == pytest.approx(0.6, abs=1e-3)
    assert result.rmse_bps[0] < 1e-4
    with pytest.raises(ConfigError, match=r"`beta` of SABR must be a number in \[0, 1\], .* got 1.5"):
        SabrSmile(beta=1.5)
    with pytest.raises(ConfigError, match="`at_the_money` needs a `beta`"):
        SabrSmile(beta=None, at_the_money=True)
    with pytest.raises(ConfigError, match="does not apply"):
        calibrate(surface, "sabr", method="inverse", inverse=object())
    assert CALIBRATION_MODELS["sabr"] is SabrSmile


def test_prices_of_the_model_in_pricers_are_those_of_the_fit() -> None:
    expiry = np.array([0.5, 2.0])
    surface = sabr_surface(np.array([0.2, 0.25]), 0.5, np.array([-0.3, 0.2]), np.array([0.8, 0.4]), expiry)
    result = calibrate(surface, SabrSmile(beta=0.5))
    model = result.pricer()
    strike = torch.tensor([80.0, 100.0, 130.0])
    call = pr.European(strike=strike[:, None], expiry=expiry, option="call")
    found = pr.implied_vol(pr.price(call, model, pr.Market(spot=100.0)).value, 100.0, strike[:, None], expiry)
    np.testing.assert_allclose(found.numpy().T, result.vols(np.log(strike.numpy() / 100.0)), rtol=1e-6)


def test_smiles_of_as_many_quotes_as_parameters_are_identified_and_have_no_errors() -> None:
    three = Surface(
        strike=[1.05, 1.1, 1.16, 1.02, 1.11, 1.2],
        expiry=[0.5] * 3 + [1.0] * 3,
        vol=[0.085, 0.08, 0.082, 0.09, 0.083, 0.086],
        forward=[1.1] * 3 + [1.11] * 3,
    )
    found = calibrate(three, "sabr")
    assert (found.rmse_bps < 1e-4).all()
    assert found.warnings == tuple(
        f"expiry {years}: no standard errors: 3 quotes for 3 parameters" for years in ("0.5", "1")
    )
    assert all(flags.all() for flags in found.identified.values())
    assert all(np.isnan(found.std_error[name]).all() for name in ("alpha", "rho", "nu"))
    assert (found.std_error["beta"] == 0.0).all()
    two = calibrate(three.where([0, 2, 3, 4, 5]), "sabr")
    assert {name: flags.tolist() for name, flags in two.identified.items()} == {
        "alpha": [False, True],
        "beta": [True, True],
        "rho": [False, True],
        "nu": [False, True],
    }
    assert np.isinf(two.std_error["alpha"][0])
    assert two.std_error["beta"].tolist() == [0.0, 0.0]


def test_a_number_at_its_bound_is_held_and_a_blurred_one_is_named() -> None:
    surface = Surface(
        strike=[80.0, 90.0, 100.0, 110.0, 120.0], expiry=0.5, vol=[0.25, 0.22, 0.35, 0.19, 0.19], forward=100.0
    )
    found = calibrate(surface, "sabr")
    assert np.isnan(found.std_error["rho"][0])
    assert found.identified["rho"][0]
    assert not found.identified["nu"][0]
    assert {name for name, flags in found.at_bound.items() if flags.any()} == {"rho"}
    assert found.warnings[:2] == (
        "expiry 0.5: not identified by the quotes: nu",
        "expiry 0.5: at its lower bound: rho",
    )
    # the others' errors, with rho where it is, by differences
    k, years, one = torch.from_numpy(surface.log_moneyness), *torch.tensor([0.5, 1.0], dtype=torch.float64)
    rho = torch.tensor(found.params["rho"][0], dtype=torch.float64)

    def vols(x: np.ndarray) -> np.ndarray:
        alpha, nu = torch.from_numpy(x)
        return sabr_vols(k, years, alpha, one, rho, nu).numpy()

    x = np.array([found.params[name][0] for name in ("alpha", "nu")])
    steps = 1e-6 * np.eye(2)
    jacobian = np.stack([(vols(x + step) - vols(x - step)) / 2e-6 for step in steps], axis=-1)
    variance = np.sum((vols(x) - surface.vol) ** 2) / (5 - 2)
    errors = np.sqrt(variance * np.diag(np.linalg.inv(jacobian.T @ jacobian)))
    assert [found.std_error[name][0] for name in ("alpha", "nu")] == pytest.approx(errors, rel=1e-4)
    assert found.std_error["nu"][0] > found.params["nu"][0]
