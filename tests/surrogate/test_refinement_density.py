"""Refined points lie where the error is, and their weights undo it."""

import numpy as np
import pytest
import torch

from qfml.errors import ConfigError, DataError
from qfml.surrogate.labels import labels_folder, make_labels, read_labels
from qfml.surrogate.points import GivenPoints, placed, sobol_points, unit_inputs
from qfml.surrogate.problem import Problem, Range
from qfml.surrogate.refinement import MOST_RATIO, _bounded, refined_points
from qfml.surrogate.settings import LabelSettings

PROBLEM = Problem(
    model={"kind": "black_scholes"},
    instrument={"kind": "european"},
    box={"vol": Range(0.1, 0.5, "log"), "expiry": Range(0.1, 2.0), "log_moneyness": Range(-0.2, 0.2)},
    target="price",
)


def pool(problem=PROBLEM, n=4096):
    columns = placed(problem, sobol_points(problem, 0, n, seed=9), torch.device("cpu")).columns
    return torch.stack([column[:, 0] for column in columns.values()], -1)


def error_of(unit):
    """Three times as large in the low half of the vols, and rising along the strike."""
    return torch.where(unit[:, 0] < 0.5, 3.0, 1.0) * (0.5 + unit[:, 2])


@pytest.fixture(scope="module")
def refined():
    inputs = pool()
    return refined_points(PROBLEM, error_of(unit_inputs(PROBLEM, inputs)), inputs, 1024, seed=1, strikes_per_law=4)


def test_density_follows_the_error(refined):
    low = (refined.points.smiles[:, 0] < 0.5).double().mean().item()
    assert low == pytest.approx(0.1 * 0.5 + 0.9 * 0.75, abs=0.04)  # 3 deviations
    # the density of the strike, 0.5 + x, on four quarters, with a tenth of it uniform
    shares = np.histogram(refined.points.strikes.numpy(), bins=4, range=(0.0, 1.0))[0] / refined.points.strikes.numel()
    expected = 0.1 / 4 + 0.9 * np.array([0.15625, 0.21875, 0.28125, 0.34375])
    np.testing.assert_allclose(shares, expected, atol=0.01)
    assert len(refined.points.smiles.unique(dim=0)) == 1024  # no law twice


def test_weights_give_means_over_the_whole_box(refined):
    weight = refined.weight / refined.weight.sum()
    vol = refined.points.smiles[:, :1].expand_as(weight)
    for share in (vol, refined.points.strikes):
        assert (weight * share).sum().item() == pytest.approx(0.5, abs=0.03)
        assert (weight * (share < 0.25)).sum().item() == pytest.approx(0.25, abs=0.03)
    plain = (vol < 0.25).double().mean().item()
    assert plain > 0.33  # without them they do not
    assert refined.weight.min() >= 1.0 / MOST_RATIO
    assert refined.weight.max() <= 10.0


@pytest.mark.parametrize("corner", [0.1, 0.02])
def test_an_error_in_a_corner_keeps_both_bounds(corner):
    inputs = pool()
    shares = unit_inputs(PROBLEM, inputs)
    errors = (shares < corner ** (1 / 3)).all(1).double() * 1e-3
    points = refined_points(PROBLEM, errors, inputs, 512, seed=1, strikes_per_law=4)
    assert 1.0 / MOST_RATIO - 1e-12 <= points.weight.min() < 0.2
    assert points.weight.max() <= 10.0 + 1e-9
    assert len(points.points.smiles.unique(dim=0)) == 512  # no law twice
    # the mean over the box of 1 and of a share, each law and strike by the density it was drawn with
    assert points.weight.mean().item() == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("power", [0, 1, 8, 60])
def test_the_cut_density_has_mean_one(power):
    errors = np.random.default_rng(3).random((50, 20)) ** power * 1e-5
    found = _bounded(errors, 8.0)
    assert found.mean() == pytest.approx(1.0, rel=1e-12)
    assert found.max() <= 8.0
    free = found < 8.0
    np.testing.assert_allclose(found[free] * errors[free][0], errors[free] * found[free][0], rtol=1e-9)
    np.testing.assert_array_equal(_bounded(np.zeros(5), 8.0), np.ones(5))
    np.testing.assert_allclose(_bounded(np.eye(10)[0], 8.0), [8.0] + [2 / 9] * 9)


def test_noise_alone_draws_evenly_whatever_its_size():
    inputs = pool()
    shares = unit_inputs(PROBLEM, inputs)
    noise = 1e-3 * 10.0 ** shares[:, 0]  # ten times as much at the upper end
    errors = (torch.randn(len(inputs), generator=torch.Generator().manual_seed(5)).double() * noise).abs()
    points = refined_points(PROBLEM, errors, inputs, 256, seed=1, strikes_per_law=4, std_error=noise)
    assert points.weight.min() > 0.5  # nowhere twice as dense
    assert (points.weight - points.weight.median()).abs().gt(0.1).double().mean() < 0.05
    for column in (points.points.smiles[:, 0], points.points.smiles[:, 1], points.points.strikes.reshape(-1)):
        shares = np.histogram(column.numpy(), bins=4, range=(0.0, 1.0))[0] / len(column)
        np.testing.assert_allclose(shares, 0.25, atol=0.08)  # 3 deviations of 256 laws
    taken_for_errors = refined_points(PROBLEM, errors, inputs, 256, seed=1, strikes_per_law=4)
    assert (taken_for_errors.points.smiles[:, 0] > 0.5).double().mean() > 0.7  # what it would be


def test_an_error_under_noise_is_found_where_it_is():
    """A hard eighth of the box, its error twice the noise there and as large as the noise elsewhere."""
    inputs = pool()
    shares = unit_inputs(PROBLEM, inputs)
    hard = ((shares > 0.5).sum(1) == 3).double()
    noise = 1e-3 * (2.0 - hard)
    draw = torch.randn(len(inputs), generator=torch.Generator().manual_seed(6)).double()
    errors = (2e-3 * hard + noise * draw).abs()
    points = refined_points(PROBLEM, errors, inputs, 256, seed=1, strikes_per_law=4, std_error=noise)
    place = points.points
    in_law = (place.smiles > 0.5).all(1)
    drawn = (in_law[:, None] & (place.strikes > 0.5)).double().mean().item()
    assert drawn > 1.75 / 8.0
    blind = refined_points(PROBLEM, errors, inputs, 256, seed=1, strikes_per_law=4).points
    assert drawn > 1.5 * ((blind.smiles > 0.5).all(1)[:, None] & (blind.strikes > 0.5)).double().mean().item()


def test_delta_pool_is_placed_by_its_own_vols():
    box = {"vol": Range(0.1, 0.5), "expiry": Range(0.1, 2.0), "delta": Range(0.1, 0.9)}
    problem = Problem(model={"kind": "black_scholes"}, instrument={"kind": "european"}, box=box)
    points = sobol_points(problem, 0, 64, seed=9)
    inputs = pool(problem, 64)
    unit = torch.cat([points.smiles, points.strikes], 1)
    for value in (None, problem.exact(inputs)):
        np.testing.assert_allclose(unit_inputs(problem, inputs, value), unit, atol=2e-4)


def test_no_error_anywhere_is_uniform_and_a_box_without_strikes_works():
    problem = Problem(
        model={"kind": "black_scholes"},
        instrument={"kind": "european", "strike": 1.0, "expiry": 1.0},
        box={"vol": Range(0.1, 0.4)},
        target="price",
    )
    inputs = pool(problem, 64)
    flat = refined_points(problem, torch.zeros(64), inputs, 100, seed=1)
    assert bool((flat.weight == 1.0).all())
    assert flat.points.smiles.mean().item() == pytest.approx(0.5, abs=0.09)  # 3 deviations


def test_rounds_have_addresses_and_hashes_of_their_own(tmp_path):
    inputs = pool(n=64)
    errors = error_of(unit_inputs(PROBLEM, inputs))
    first, again = (refined_points(PROBLEM, errors, inputs, 20, seed=1, parent="abc") for _ in range(2))
    second = refined_points(PROBLEM, errors, inputs, 20, seed=1, round_number=2, parent="abc")
    other = refined_points(PROBLEM, errors, inputs, 20, seed=1, parent="abd")
    assert first.hash == again.hash
    assert len({first.hash, second.hash, other.hash}) == 3
    assert not torch.equal(first.points.smiles, second.points.smiles)
    assert not set(first.points.law.tolist()) & set(second.points.law.tolist())
    first.save(tmp_path / "points.safetensors")
    assert GivenPoints.load(tmp_path / "points.safetensors").hash == first.hash
    (tmp_path / "bad").write_bytes((tmp_path / "points.safetensors").read_bytes()[:-1] + b"\x01")
    with pytest.raises(DataError, match=r"is damaged|holds no points"):
        GivenPoints.load(tmp_path / "bad")


def test_labels_of_refined_points_are_theirs(tmp_path):
    inputs = pool(n=256)
    errors = error_of(unit_inputs(PROBLEM, inputs))
    points = refined_points(PROBLEM, errors, inputs, 20, seed=1, strikes_per_law=3, parent="abc")
    labels = LabelSettings(n_points=1, seed=0, shard_size=8)
    made = make_labels(PROBLEM, labels, tmp_path, points=points)
    assert made[0].parent == labels_folder(PROBLEM, labels, tmp_path, points)
    assert made[0].parent != labels_folder(PROBLEM, labels, tmp_path)
    table = read_labels(made[0].parent)
    assert len(table) == 60
    torch.testing.assert_close(table.weight, points.weight.reshape(-1))
    torch.testing.assert_close(unit_inputs(PROBLEM, table.inputs)[:, 2], points.points.strikes.reshape(-1))
    torch.testing.assert_close(table.value, PROBLEM.exact(table.inputs))
    assert table.law.unique().tolist() == points.points.law.tolist()


@pytest.mark.parametrize(
    ("errors", "n", "says"),
    [
        (torch.tensor([0.1, -0.1]), 4, "finite and 0 or more, got -0.1 in row 1"),
        (torch.tensor([0.1, float("nan")]), 4, "got nan in row 1"),
        (torch.tensor([0.1]), 4, "one number for each of 2 rows"),
    ],
)
def test_pools_that_tell_nothing_are_refused(errors, n, says):
    with pytest.raises(DataError, match=says):
        refined_points(PROBLEM, errors, pool(n=2), n, seed=1)


@pytest.mark.parametrize("noise", [[0.1, -0.1], [0.1, float("nan")], [0.1]])
def test_standard_errors_that_tell_nothing_are_refused(noise):
    with pytest.raises(DataError, match="`std_error` must be"):
        refined_points(PROBLEM, torch.ones(2), pool(n=2), 4, seed=1, std_error=noise)


def test_counts_below_one_are_refused():
    with pytest.raises(ConfigError, match="`n` must be 1 or more"):
        refined_points(PROBLEM, torch.ones(2), pool(n=2), 0, seed=1)
