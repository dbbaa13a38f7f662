"""L-BFGS takes torch's steps, member by member, and leaves alone the members that have ended their line search."""

import math

import numpy as np
import pytest
import torch

from qfml.engine.optimizers import Step
from qfml.engine.optimizers.lbfgs import LBFGS, quasi_newton_direction
from qfml.engine.optimizers.line_search import Point, strong_wolfe
from qfml.engine.stack import Layout

WIDTH = 16
LAYOUT = Layout((("weight", (WIDTH - 4,)), ("bias", (4,))))


def rosenbrock(p):
    """Chained Rosenbrock function, one value a row."""
    return (100 * (p[:, 1:] - p[:, :-1] ** 2) ** 2 + (1 - p[:, :-1]) ** 2).sum(1)


def softplus_sum(p):
    """A convex function, ill-conditioned."""
    scale = torch.logspace(-2, 3, p.shape[1], dtype=p.dtype)
    return (torch.log1p(torch.exp(p)) * scale).sum(1) + 0.5 * (scale * (p - 1) ** 2).sum(1)


def evaluator(function):
    def evaluate(parameters):
        p = parameters.detach().clone().requires_grad_()
        losses = function(p)
        (gradient,) = torch.autograd.grad(losses.sum(), p)
        return losses.detach(), gradient

    return evaluate


def step(count, lr, weight_decay, function, **own):
    return Step(
        np.full(len(lr), count), np.array(lr), np.array(weight_decay), LAYOUT, evaluate=evaluator(function), **own
    )


def run(optimizer, start, n_steps, lr, weight_decay, function, **own):
    parameters = start.clone()
    state = optimizer.start(parameters)
    for count in range(1, n_steps + 1):
        unused = torch.full_like(parameters, float("nan"))
        optimizer.update(parameters, unused, state, step(count, lr, weight_decay, function, **own))
    return parameters


def starts(members=3, dtype=torch.float64):
    return torch.randn(members, WIDTH, generator=torch.Generator().manual_seed(0), dtype=dtype)


LR, DECAY = (1.0, 0.5, 0.1), (0.0, 0.01, 0.3)


@pytest.mark.parametrize("function", [softplus_sum, rosenbrock])
def test_20_steps_equal_torch_lbfgs(function):
    start = starts()
    found = run(LBFGS(history=5), start, 20, LR, DECAY, function)
    for member, (lr, decay) in enumerate(zip(LR, DECAY)):
        p = start[member].clone().requires_grad_()
        theirs = torch.optim.LBFGS([p], lr, 1, 26, 1e-7, 1e-18, 5, "strong_wolfe")

        def closure(p=p, theirs=theirs, decay=decay):
            theirs.zero_grad()
            loss = function(p[None])[0] + 0.5 * decay * (p * p).sum()
            loss.backward()
            return loss

        for _ in range(20):
            theirs.step(closure)
        torch.testing.assert_close(found[member], p.detach(), rtol=1e-10, atol=1e-10)


def test_rosenbrock_is_minimised():
    start = 1 + 0.3 * starts()
    found = run(LBFGS(tolerance_gradient=1e-12), start, 150, (1.0,) * 3, (0.0,) * 3, rosenbrock)
    torch.testing.assert_close(found, torch.ones_like(found), rtol=0, atol=1e-9)


def test_ridge_regression_reaches_its_closed_form():
    """The penalty is half of weight decay times the squared norm, each member with its own."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, WIDTH, generator=generator, dtype=torch.float64)
    y = torch.randn(40, generator=generator, dtype=torch.float64)
    decays = (0.01, 0.1, 1.0)
    found = run(LBFGS(tolerance_gradient=0.0), starts(), 60, (1.0,) * 3, decays, lambda p: ((p @ x.T - y) ** 2).mean(1))
    for member, decay in enumerate(decays):
        exact = torch.linalg.solve(2 * x.T @ x / 40 + decay * torch.eye(WIDTH, dtype=torch.float64), 2 * x.T @ y / 40)
        torch.testing.assert_close(found[member], exact, rtol=0, atol=1e-7)


@pytest.mark.parametrize("function", [softplus_sum, rosenbrock])
def test_member_in_a_stack_equals_solo(function):
    start, lr, decay = starts(7, torch.float32), np.geomspace(0.01, 2, 7), np.geomspace(1e-3, 1, 7)
    together = run(LBFGS(history=4), start, 40, lr, decay, function)
    for i in range(7):
        alone = run(LBFGS(history=4), start[i : i + 1], 40, lr[i : i + 1], decay[i : i + 1], function)
        assert torch.equal(alone[0], together[i])


def test_frozen_members_and_parameters_keep_their_bits():
    start, scale = starts(), torch.ones(1, WIDTH, dtype=torch.float64)
    LAYOUT.views(scale)["bias"].zero_()
    moves = torch.tensor([[True], [True], [False]])
    found = run(LBFGS(), start, 5, (0.0, 1.0, 1.0), (0.1,) * 3, rosenbrock, scale=scale, moves=moves)
    assert torch.equal(found[[0, 2]], start[[0, 2]])
    assert torch.equal(found[1, -4:], start[1, -4:])
    assert not torch.isclose(found[1, :-4], start[1, :-4]).any()


def test_losses_that_overflow_are_stepped_back_from():
    """Beyond 1 in each coordinate the loss is not finite; the first trial goes far beyond."""

    def barrier(p):
        return (-torch.log(1 - p) - 3 * p).sum(1)

    start = torch.zeros(2, WIDTH, dtype=torch.float64)
    found = run(LBFGS(), start, 30, (1000.0, 1.0), (0.0, 0.0), barrier)
    torch.testing.assert_close(found, torch.full_like(found, 2 / 3), rtol=0, atol=1e-7)


def test_direction_is_minus_the_inverse_hessian_times_the_gradient():
    """With as many exact conjugate pairs as dimensions, BFGS knows a quadratic's Hessian."""
    generator = torch.Generator().manual_seed(2)
    root = torch.randn(2, 4, 4, generator=generator, dtype=torch.float64)
    hessian = root @ root.mT + torch.eye(4, dtype=torch.float64)
    steps = torch.linalg.eigh(hessian).eigenvectors.mT
    gradient = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    found = quasi_newton_direction(gradient, steps, steps @ hessian)
    torch.testing.assert_close(found, -torch.linalg.solve(hessian, gradient))


def ending(search, function, slope):
    t = next(search)
    while True:
        try:
            t = search.send((function(t), slope(t)))
        except StopIteration as end:
            return end.value


@pytest.mark.parametrize("first", [1e-3, 0.1, 1.0, 10.0, 1e3])
@pytest.mark.parametrize(
    ("function", "slope"),
    [
        (lambda t: -t / (t * t + 2), lambda t: (t * t - 2) / (t * t + 2) ** 2),
        (lambda t: (t + 0.004) ** 5 - 2 * (t + 0.004) ** 4, lambda t: 5 * (t + 0.004) ** 4 - 8 * (t + 0.004) ** 3),
        (lambda t: math.cos(3 * t) - 0.5 * t + 0.1 * t * t, lambda t: -3 * math.sin(3 * t) - 0.5 + 0.2 * t),
    ],
    ids=["More and Thuente 1", "More and Thuente 2", "waves"],
)
def test_line_search_fulfils_both_wolfe_conditions(function, slope, first):
    """More, Thuente (1994), functions 5.1 and 5.2, and one with many minima."""
    search = strong_wolfe(Point(0.0, function(0.0), slope(0.0)), first, 50)
    t = ending(search, function, slope)
    assert t > 0
    assert function(t) <= function(0.0) + 1e-4 * t * slope(0.0)
    assert abs(slope(t)) <= 0.9 * abs(slope(0.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, "`lr` must be positive and finite, got 0.0"),
        ({"history": 0}, "`history` must be a whole number from 1 on, got 0"),
        ({"max_evaluations": 1}, "`max_evaluations` must be a whole number from 2 on, got 1"),
        ({"c1": 0.95}, "`c1` and `c2` must satisfy 0 < c1 < c2 < 1, got 0.95 and 0.9"),
        ({"tolerance_gradient": -1.0}, "`tolerance_gradient` must be >= 0 and finite, got -1.0"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        LBFGS(**settings)


def test_it_needs_evaluations_and_one_step_length():
    start, own = starts(), LBFGS()
    with pytest.raises(ValueError, match=r"`Step\.evaluate` is not given"):
        own.update(start, start, own.start(start), Step(np.ones(3), np.ones(3), np.zeros(3), LAYOUT))
    with pytest.raises(ValueError, match="`lr_factor` other than 0 or 1"):
        run(own, start, 1, LR, DECAY, rosenbrock, scale=torch.full((1, WIDTH), 0.5, dtype=torch.float64))


def test_member_without_a_finite_loss_stays_and_its_neighbours_do_not_notice():
    def broken(p):
        return rosenbrock(p) * torch.tensor([1.0, float("nan"), 1.0][: len(p)], dtype=p.dtype)

    start, none = starts(), (0.0,) * 3
    found = run(LBFGS(), start, 10, LR, none, broken)
    assert torch.equal(found[1], start[1])
    assert torch.equal(found[[0, 2]], run(LBFGS(), start, 10, LR, none, rosenbrock)[[0, 2]])
