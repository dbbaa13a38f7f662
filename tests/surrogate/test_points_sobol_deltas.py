"""Points: torch's own Sobol sequence, inside the box, any part of it alone; strikes at the deltas asked for."""

import numpy as np
import pytest
import torch

from pricers.noise import address
from qfml.surrogate.exact_labels import target_values
from qfml.surrogate.points import natural, placed, sobol_points, unit
from qfml.surrogate.problem import Problem, Range

CPU = torch.device("cpu")
BOX = {
    "v0": Range(0.005, 0.5, "log"),
    "kappa": Range(0.1, 20.0, "log"),
    "theta": Range(0.005, 0.5, "log"),
    "sigma": Range(0.05, 4.0, "log"),
    "rho": Range(-0.95, 0.5),
    "expiry": Range("7D", 3.0, "log"),
}


def heston(**strike):
    return Problem(model={"kind": "heston"}, instrument={"kind": "european"}, box=BOX | strike)


def test_one_strike_per_law_is_torchs_scrambled_sequence():
    problem = heston(log_moneyness=Range(-0.3, 0.3))
    points = sobol_points(problem, 0, 64, seed=3)
    engine = torch.quasirandom.SobolEngine(7, scramble=True, seed=address(3, "surrogate points"))
    assert torch.equal(torch.cat([points.smiles, points.strikes], 1), engine.draw(64, dtype=torch.float64))


@pytest.mark.parametrize("numbers", [(1, 1), (4, 1), (4, 3)])
def test_any_part_is_the_same_alone(numbers):
    strikes, expiries = numbers
    problem = heston(log_moneyness=Range(-0.3, 0.3))
    settings = {"seed": 3, "strikes_per_law": strikes, "expiries_per_law": expiries}
    whole = sobol_points(problem, 0, 40, **settings)
    part = sobol_points(problem, 17, 29, **settings)
    rows = slice(17 * expiries, 29 * expiries)
    assert torch.equal(part.smiles, whole.smiles[rows])
    assert torch.equal(part.strikes, whole.strikes[rows])
    assert part.law.tolist() == whole.law[rows].tolist()
    assert not torch.equal(sobol_points(problem, 17, 29, **settings | {"seed": 4}).smiles, part.smiles)


def test_each_cell_of_strikes_and_expiries_has_one_of_every_law():
    points = sobol_points(heston(log_moneyness=Range(-0.3, 0.3)), 0, 32, seed=0, strikes_per_law=8, expiries_per_law=4)
    assert torch.equal((points.strikes * 8).floor(), torch.arange(8.0, dtype=torch.float64).expand(128, 8))
    assert torch.equal((points.smiles[:, 5] * 4).floor(), torch.arange(4.0, dtype=torch.float64).repeat(32))
    assert torch.equal(points.smiles[::4, :5], points.smiles[3::4, :5])
    assert points.law.bincount().tolist() == [4] * 32
    assert len(points.strikes[:4].unique()) == 32  # no two expiries of a law have the same strikes


def test_points_lie_in_the_box_and_are_even_on_its_scale():
    problem = heston(log_moneyness=Range(-0.3, 0.3))
    spots = placed(problem, sobol_points(problem, 0, 512, seed=1, strikes_per_law=2), CPU)
    for name, limits in problem.box.items():
        column = spots.columns[name]
        assert limits.low <= column.min()
        assert column.max() <= limits.high
        share = unit(limits, column).flatten()
        np.testing.assert_allclose(share.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=share.dtype)),
                                   [0.25, 0.5, 0.75], atol=0.01)  # fmt: skip
        np.testing.assert_allclose(natural(limits, unit(limits, column)), column, rtol=1e-12)
    assert spots.columns["v0"].shape == (512, 1)
    assert spots.columns["log_moneyness"].shape == (512, 2)


def test_standard_moneyness_is_in_deviations_of_the_reference_vol():
    problem = heston(standard_moneyness=Range(-2.0, 2.0))
    points = sobol_points(problem, 0, 8, seed=1, strikes_per_law=3)
    columns = placed(problem, points, CPU).columns
    inputs = torch.stack([column.expand(8, 3).reshape(-1) for column in columns.values()], -1)
    deviation = problem.reference_vol(inputs) * inputs[:, 5].sqrt()
    np.testing.assert_allclose(inputs[:, 6] / deviation, (-2.0 + 4.0 * points.strikes).reshape(-1), rtol=1e-12)
    assert not problem.outside(inputs).any()


def test_strikes_have_the_deltas_that_were_asked_for_with_their_exact_vols():
    problem = heston(delta=Range(0.02, 0.98))
    points = sobol_points(problem, 0, 256, seed=1, strikes_per_law=4)
    spots = placed(problem, points, CPU)
    vol = target_values(problem, spots.columns).value
    delta = problem.delta(spots.columns, vol)
    # d1 by hand, with Black's own formula
    total = vol * spots.columns["expiry"].sqrt()
    by_hand = torch.special.ndtr(-spots.columns["log_moneyness"] / total + 0.5 * total)
    np.testing.assert_allclose(delta, by_hand, rtol=1e-12)
    error = (delta - (0.02 + 0.96 * points.strikes)).abs()[~spots.missing]
    assert spots.missing.sum() <= 1
    assert error.median() < 1e-6
    assert error.max() < 2e-3  # the density of points, not a label, rests on it
    assert not spots.columns["log_moneyness"].isnan().any()


def test_strike_whose_vol_cannot_be_told_is_missing_not_guessed():
    # a variance that has died, but for rare bursts: next to the forward nothing is left of the time value
    box = BOX | {"v0": Range(1e-9, 2e-9), "theta": Range(1e-9, 2e-9), "sigma": Range(3.0, 4.0)}
    problem = Problem(model={"kind": "heston"}, instrument={"kind": "european"}, box=box | {"delta": Range(0.02, 0.98)})
    spots = placed(problem, sobol_points(problem, 0, 4, seed=1, strikes_per_law=4), CPU)
    assert spots.missing.any()
    assert (spots.columns["log_moneyness"][spots.missing] == 0.0).all()
