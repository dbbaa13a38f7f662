"""Batched Levenberg-Marquardt against scipy, and what makes it a batch: every problem for itself."""

import numpy as np
import pytest
import torch
from scipy import optimize

from qfml.calibration.least_squares import (
    COST,
    GRADIENT,
    MAX_STEPS,
    NO_DESCENT,
    NOT_FINITE,
    STATUS,
    STEP,
    least_squares,
)

TIMES = torch.linspace(0.0, 4.0, 25, dtype=torch.float64)


def uniform(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rosenbrock(x, index):
    residuals = torch.stack([10.0 * (x[:, 1] - x[:, 0] ** 2), 1.0 - x[:, 0]], -1)
    jacobian = torch.zeros(len(x), 2, 2, dtype=x.dtype)
    jacobian[:, 0, 0], jacobian[:, 0, 1], jacobian[:, 1, 0] = -20.0 * x[:, 0], 10.0, -1.0
    return residuals, jacobian


class Exponentials:
    """a exp(-b t) + c against noisy data of its own for each problem."""

    def __init__(self, n_problems, noise=0.05):
        truth = 0.3 + 2.0 * uniform(0, n_problems, 3)
        self.data = self.curve(truth)[0] + noise * (uniform(1, n_problems, len(TIMES)) - 0.5)

    def curve(self, x):
        a, b, c = x[:, 0:1], x[:, 1:2], x[:, 2:3]
        decay = torch.exp(-b * TIMES)
        return a * decay + c, torch.stack([decay, -a * TIMES * decay, torch.ones_like(decay)], -1)

    def __call__(self, x, index):
        value, jacobian = self.curve(x)
        return value - self.data[index], jacobian

    def one(self, i):
        def value(x):
            return self(torch.as_tensor(x)[None], torch.tensor([i]))[0][0].numpy()

        return value


def test_rosenbrock_ends_in_its_valley_from_everywhere():
    solution = least_squares(rosenbrock, 6.0 * uniform(2, 200, 2) - 3.0)
    assert bool(solution.converged.all())
    assert (solution.x - 1.0).abs().max() < 1e-9
    assert solution.n_steps.max() < 60


def test_exponentials_end_where_scipy_does():
    problem = Exponentials(30)
    solution = least_squares(problem, 0.2 + 2.0 * uniform(3, 30, 3), lower=0.0, tolerance=1e-12)
    assert bool(solution.converged.all())
    for i in range(30):
        there = optimize.least_squares(problem.one(i), [1.0, 1.0, 1.0], bounds=(0, np.inf), xtol=1e-14, ftol=1e-14)
        assert solution.cost[i].item() == pytest.approx(2.0 * there.cost, rel=1e-9)
        assert solution.x[i].tolist() == pytest.approx(there.x.tolist(), rel=1e-5)


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        ((-2.0, -2.0), (0.5, 3.0)),
        ((-3.0, 1.7), (4.0, 3.0)),
        ((1.3, -np.inf), (np.inf, 2.0)),
        ((-np.inf, 1.5), (0.9, 9.0)),
    ],
)
def test_optimum_at_a_bound_as_scipy_has_it(lower, upper):
    low = np.maximum(np.array(lower), -2.0)
    high = np.minimum(np.array(upper), 3.0)
    start = torch.tensor(low) + (0.05 + 0.9 * uniform(4, 20, 2)) * torch.tensor(high - low)
    solution = least_squares(rosenbrock, start, lower=lower, upper=upper, max_steps=300)

    def one(x):
        return rosenbrock(torch.as_tensor(x)[None], None)[0][0].numpy()

    # a banana has one minimum or two within bounds: each solution is one that scipy finds too, from some start
    found = [
        optimize.least_squares(one, x.numpy(), bounds=(lower, upper), xtol=1e-15, ftol=1e-15, gtol=1e-15)
        for x in start[:12]
    ]
    minima = torch.tensor(np.array([there.x for there in found]))
    nearest = (solution.x[:, None] - minima).abs().amax(-1).amin(-1)
    assert nearest.max() < 1e-4
    costs = torch.tensor([2.0 * there.cost for there in found])
    assert (solution.cost[:, None] - costs).abs().amin(-1).max() < 1e-5
    below, above = torch.tensor(lower, dtype=torch.float64), torch.tensor(upper, dtype=torch.float64)
    assert bool(((solution.x > below) & (solution.x < above)).all())


def test_bounds_may_differ_from_problem_to_problem():
    upper = torch.tensor([[0.5, 9.0], [0.8, 9.0], [5.0, 9.0]], dtype=torch.float64)
    solution = least_squares(rosenbrock, torch.zeros(3, 2), lower=-5.0, upper=upper, max_steps=300)
    assert solution.x[:, 0].tolist() == pytest.approx([0.5, 0.8, 1.0], abs=1e-6)


def test_a_problem_ends_in_a_batch_as_it_does_alone():
    problem = Exponentials(40)
    start = 0.2 + 2.0 * uniform(5, 40, 3)
    together = least_squares(problem, start, lower=0.0)
    for i in (0, 7, 39):
        alone = least_squares(lambda x, index, i=i: problem(x, index + i), start[i : i + 1], lower=0.0)
        assert (alone.x[0] - together.x[i]).abs().max() < 1e-12
        assert alone.n_steps[0] == together.n_steps[i]
        assert alone.status[0] == together.status[i]
        assert (alone.residuals[0] - together.residuals[i]).abs().max() < 1e-12


def test_what_has_finished_leaves_the_batch():
    problem, asked = Exponentials(40), []

    def counted(x, index):
        asked.append(index.clone())
        return problem(x, index)

    solution = least_squares(counted, 0.2 + 2.0 * uniform(6, 40, 3), lower=0.0)
    assert len(asked[-1]) < 40 / 2
    assert all(bool((index[1:] > index[:-1]).all()) for index in asked)
    assert sum(map(len, asked)) < 40 * (1 + int(solution.n_steps.max()))


def test_a_problem_without_numbers_leaves_the_others_alone():
    problem, start = Exponentials(6), 0.2 + 2.0 * uniform(7, 6, 3)

    def broken(x, index):
        residuals, jacobian = problem(x, index)
        return residuals.masked_fill((index == 2)[:, None], torch.nan), jacobian

    solution, clean = least_squares(broken, start, lower=0.0), least_squares(problem, start, lower=0.0)
    assert solution.status[2] == NOT_FINITE
    assert not bool(solution.converged[2])
    assert "not finite" in solution.sentences[2]
    others = [0, 1, 3, 4, 5]
    assert (solution.x[others] - clean.x[others]).abs().max() < 1e-12
    assert bool(solution.converged[others].all())


def test_a_step_into_nowhere_is_taken_back():
    def logarithm(x, index):  # no number beyond 2; a Gauss-Newton step from 0.1 leads there
        return torch.log(x) * torch.where(x > 2.0, torch.nan, 1.0), (1.0 / x).unsqueeze(-1)

    solution = least_squares(logarithm, [[0.02], [1.9]], damping=1e-9)
    assert bool(solution.converged.all())
    assert (solution.x - 1.0).abs().max() < 1e-8


def test_every_end_has_its_status():
    solution = least_squares(rosenbrock, [[-1.2, 1.0]], max_steps=3)
    assert solution.status.tolist() == [MAX_STEPS]
    assert solution.n_steps.tolist() == [3]

    def uphill(x, index):
        residuals, jacobian = rosenbrock(x, index)
        return residuals, -jacobian

    assert least_squares(uphill, [[-1.2, 1.0]]).status.tolist() == [NO_DESCENT]
    assert least_squares(rosenbrock, [[1.0, 1.0]]).status.tolist() == [GRADIENT]  # the start is the solution
    assert least_squares(rosenbrock, [[1.0, 1.0]]).n_steps.tolist() == [0]
    assert least_squares(Exponentials(1, noise=0.5), [[1.0, 1.0, 1.0]]).status.item() in (COST, STEP, GRADIENT)
    assert set(STATUS) == {GRADIENT, STEP, COST, MAX_STEPS, NOT_FINITE, NO_DESCENT}


def test_a_parameter_that_nothing_depends_on_stays_where_it_is():
    def first_only(x, index):
        jacobian = torch.zeros(len(x), 2, 2, dtype=x.dtype)
        jacobian[:, 0, 0] = 1.0
        return torch.stack([x[:, 0] - 3.0, torch.zeros_like(x[:, 0])], -1), jacobian

    solution = least_squares(first_only, [[1.0, 0.7]], lower=[-9.0, 0.0], upper=[9.0, 1.0])
    assert solution.x[0].tolist() == pytest.approx([3.0, 0.7], abs=1e-9)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"start": [1.0, 2.0]}, "shape"),
        ({"start": [[1.0, 2.0]], "lower": [1.0, 0.0]}, "strictly between"),
        ({"start": [[float("nan"), 2.0]]}, "strictly between"),
        ({"start": [[1.0, 2.0]], "max_steps": -1}, "max_steps"),
        ({"start": [[1.0, 2.0]], "tolerance": 0.0}, "tolerance"),
    ],
)
def test_bad_input_is_refused(settings, match):
    start = settings.pop("start")
    with pytest.raises(ValueError, match=match):
        least_squares(rosenbrock, start, **settings)
