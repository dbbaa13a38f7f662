"""Calibration through a surrogate whose answers are a formula: found again, and said where the box ends."""

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from formula_smile import quotes_at

from qfml.calibration.calibrate import calibrate
from qfml.calibration.exact import exact_vols, fit, refined
from qfml.calibration.heston import HestonCalibration
from qfml.calibration.history import SurfaceHistory
from qfml.calibration.model import Quotes
from qfml.calibration.neural import SurrogateModel, inside_bounds
from qfml.calibration.surface import Surface
from qfml.calibration.walk_forward import walk_forward_calibration
from qfml.errors import ConfigError
from qfml.surrogate import Problem, Range, Surrogate
from qfml.surrogate.target import Target

BOX = {
    "hurst": Range(0.02, 0.4),
    "expiry": Range(0.05, 2.0),
    "xi": Range(0.01, 0.2, "log"),
    "log_moneyness": Range(-0.5, 0.5),
    "rho": Range(-0.95, -0.1),
}


class Formula(Surrogate):
    """vol = root xi (1 + rho k T^(hurst - 1/2) + k^2): rough Bergomi's skew, and nothing to train."""

    def unchecked_values(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.unchecked_value_and_gradient(inputs)[0]

    def unchecked_value_and_gradient(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hurst, expiry, xi, k, rho = inputs.unbind(-1)
        power, level = expiry ** (hurst - 0.5), xi.sqrt()
        shape = 1 + rho * k * power + k * k
        slopes = {
            "hurst": level * rho * k * power * expiry.log(),
            "expiry": level * rho * k * (hurst - 0.5) * power / expiry,
            "xi": 0.5 * shape / level,
            "log_moneyness": level * (rho * power + 2 * k),
            "rho": level * k * power,
        }
        return level * shape, torch.stack([slopes[name] for name in self.problem.inputs], dim=-1)

    def inside(self, inputs: Any) -> torch.Tensor:
        return ~self.problem.outside(inputs).any(1)


def formula(**changes: Any) -> Formula:
    settings = {
        "model": {"kind": "rough_bergomi", "eta": 1.9},
        "instrument": {"kind": "european"},
        "market": {"spot": 1.0},
        "box": BOX,
        "target": "implied_vol",
    }
    problem = Problem(**(settings | changes))
    return Formula(problem, Target(problem, "log_vol"), ())


def surfaces(x: list[list[float]], expiries: tuple[float, ...] = (0.1, 0.5, 1.5)) -> Quotes:
    """Surfaces of the formula at hurst, xi, rho; every fourth quote is missing."""
    expiry, k = (grid.flatten() for grid in np.meshgrid(expiries, np.linspace(-0.4, 0.4, 7), indexing="ij"))
    quotes = quotes_at(k, expiry, len(x))
    vols = SurrogateModel(formula()).vols(torch.tensor(x, dtype=torch.float64), quotes)
    weight = torch.ones_like(vols)
    weight[:, 3::4] = 0.0
    return Quotes(**(vars(quotes) | {"vol": torch.where(weight > 0, vols, torch.nan), "weight": weight}))


TRUTH = [[0.1, 0.04, -0.7], [0.3, 0.09, -0.3], [0.07, 0.02, -0.9]]


def test_parameters_are_those_of_the_model_in_the_order_of_the_box() -> None:
    model = SurrogateModel(formula())
    assert [one.name for one in model.parameters] == ["hurst", "xi", "rho"]
    assert model.parameters[1].scale == "log"
    assert (model.parameters[1].lower, model.parameters[1].upper) == (0.01, 0.2)
    starts = model.starts(surfaces(TRUTH), 16, torch.Generator().manual_seed(0))
    low, high = (torch.tensor([getattr(one, end) for one in model.parameters]) for end in ("lower", "upper"))
    assert ((starts > low) & (starts < high)).all()
    pricer = model.pricer(torch.tensor(TRUTH, dtype=torch.float64))
    assert pricer.rho.tolist() == [-0.7, -0.3, -0.9]
    assert float(pricer.eta) == 1.9


def test_jacobian_is_that_of_the_vols() -> None:
    model, quotes, x = SurrogateModel(formula()), surfaces(TRUTH), torch.tensor(TRUTH, dtype=torch.float64)
    vols, jacobian = model.vols_and_jacobian(x, quotes)
    assert vols.isnan().equal(~quotes.used)
    for column in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[column] = 1e-6
        slope = (model.vols(x + step, quotes) - model.vols(x - step, quotes)) / 2e-6
        torch.testing.assert_close(jacobian[..., column], slope, rtol=1e-6, atol=1e-8, equal_nan=True)


def test_surfaces_are_found_again_from_many_starts_and_from_one() -> None:
    quotes, truth = surfaces(TRUTH), torch.tensor(TRUTH, dtype=torch.float64)
    for start in (None, torch.tensor([[0.2, 0.05, -0.5]] * 3, dtype=torch.float64)):
        found = calibrate(quotes, "rough_bergomi", "neural", surrogate=formula(), start=start, tolerance=1e-10)
        torch.testing.assert_close(torch.as_tensor(found.x), truth, rtol=1e-5, atol=1e-7)
        assert found.converged.all()
        assert not any("box" in line for said in found.warnings for line in said)


def test_optimum_beyond_the_box_and_quotes_beyond_it_are_said() -> None:
    narrow = formula(box=BOX | {"hurst": Range(0.15, 0.4)})
    quotes = surfaces(TRUTH, expiries=(0.1, 0.5, 3.0))
    found = calibrate(quotes, "rough_bergomi", "neural", surrogate=narrow)
    at_edge = [any("`hurst` is at the lower edge" in one for one in own) for own in found.warnings]
    assert at_edge == [True, False, True]
    # rough Bergomi has no exact method to send to
    assert all("train a surrogate on a wider box" in one for own in found.warnings for one in own if "edge" in one)
    assert all(any("quotes lie outside" in one for one in own) for own in found.warnings)
    outside = SurrogateModel(narrow).outside(torch.as_tensor(found.x), quotes)
    assert outside.equal(quotes.used & (quotes.expiry > 2.0))


def test_a_fit_is_read_inside_of_the_box_only() -> None:
    """Smiles and the judgement of later days have no vol where the surrogate would extrapolate, and count it."""
    found = calibrate(surfaces(TRUTH), "rough_bergomi", "neural", surrogate=formula())
    smile = found.smile([-0.6, -0.5, 0.0, 0.5, 0.51], 1.0, surface=1)
    assert np.isfinite(smile).tolist() == [False, True, True, True, False]
    assert np.isnan(found.smile([0.0], 2.5)).all()
    k, expiry = np.tile(np.linspace(-0.6, 0.6, 7), 2), np.repeat([0.5, 1.0], 7)
    quotes = quotes_at(k, expiry, 1)
    vols = SurrogateModel(formula()).vols(torch.tensor(TRUTH[:1], dtype=torch.float64), quotes)[0].numpy()
    inner = np.abs(k) < 0.5
    days = [
        Surface(strike=np.exp(k[own]), expiry=expiry[own], vol=vols[own], forward=1.0, date=f"2024-01-0{day}")
        for day, own in ((1, inner), (2, np.full(14, True)))
    ]
    judged = walk_forward_calibration(
        SurfaceHistory(days), "rough_bergomi", horizons=(1,), method="neural", surrogate=formula()
    )
    ahead = judged.errors.filter((pl.col("horizon") == 1) & (pl.col("method") == "model")).row(0, named=True)
    assert (ahead["n_quotes"], ahead["n_vols"]) == (14, 10)
    assert judged.metrics["without_vol"]["n_without"] == 4 + 4  # day 2 is also judged on itself


def test_calibrate_takes_the_surrogate_of_a_model_that_has_no_exact_one() -> None:
    found = calibrate(surfaces(TRUTH), "rough_bergomi", "neural", surrogate=formula())
    assert found.params["rho"] == pytest.approx([-0.7, -0.3, -0.9], rel=1e-4)
    assert found.method == "neural"
    with pytest.raises(ConfigError, match="exact fit"):
        calibrate(surfaces(TRUTH), "rough_bergomi", surrogate=formula())


def test_starts_are_moved_inside_the_bounds() -> None:
    model = SurrogateModel(formula())
    x = torch.tensor([[0.02, 0.9, -0.5]], dtype=torch.float64)
    moved = inside_bounds(x, model.parameters)[0].tolist()
    assert 0.02 < moved[0] < 0.021
    assert 0.199 < moved[1] < 0.2
    small = torch.tensor([[0.1, 0.0102, -0.5]], dtype=torch.float64)  # a logarithmic range from 0.01 to 0.2
    assert inside_bounds(small, model.parameters).tolist() == small.tolist()
    assert moved[2] == -0.5
    assert fit(model, surfaces(TRUTH[:1]), torch.tensor([[moved]], dtype=torch.float64)).converged.all()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"target": "price"}, "implied vols"),
        ({"box": {name: BOX[name] for name in BOX if name != "expiry"}}, "expiry"),
        ({"box": BOX | {"rate": Range(0.0, 0.05)}}, "`rate` in its box"),
    ],
)
def test_surrogate_of_something_else_is_refused(changes: dict[str, Any], word: str) -> None:
    instrument = {"kind": "european"} | ({} if "expiry" in changes.get("box", BOX) else {"expiry": 1.0})
    with pytest.raises(ConfigError, match=word):
        SurrogateModel(formula(**({"instrument": instrument} | changes)))


def test_few_exact_steps_from_a_good_start_end_near_the_truth_with_the_vols_that_they_name() -> None:
    """70 surfaces, more than one block of them; the error of a Gauss-Newton step is of second order."""
    model = HestonCalibration()
    expiry, k = (grid.flatten() for grid in np.meshgrid((0.25, 1.0), np.linspace(-0.2, 0.2, 5), indexing="ij"))
    quotes = quotes_at(k, expiry, 70)
    rng = np.random.default_rng(2)
    truth = torch.tensor([[0.05, 2.0, 0.06, 0.6, -0.6]], dtype=torch.float64) * torch.from_numpy(
        np.exp(0.1 * rng.standard_normal((70, 5)))
    )
    weight = torch.from_numpy(rng.uniform(0.5, 2.0, quotes.vol.shape))
    weight[:, 4] = 0.0
    quotes = Quotes(**(vars(quotes) | {"vol": model.vols(truth, quotes), "weight": weight}))
    start = truth * torch.from_numpy(np.exp(0.02 * rng.standard_normal((70, 5))))
    errors = []
    for n_steps in (0, 2):
        found = refined(model, quotes, start, n_steps)
        exact = exact_vols(model, found.x, quotes)
        torch.testing.assert_close(found.vols[quotes.used], exact[quotes.used], rtol=0, atol=1e-6)
        assert found.vols[:, 4].isnan().all()
        cost = (weight * (found.vols - quotes.vol).square()).nan_to_num().sum(1)
        torch.testing.assert_close(found.cost, cost, rtol=1e-6, atol=1e-16)
        errors.append((exact - quotes.vol)[quotes.used].square().mean().sqrt())
    assert errors[0] > 5e-4
    assert errors[1] < 2e-6
