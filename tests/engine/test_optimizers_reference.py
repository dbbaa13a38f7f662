"""Lion equals its paper's algorithm and Muon a plain full-precision one, written out here with one member at a time."""

import numpy as np
import pytest
import torch

from qfml.engine.optimizers import Lion, Muon, Step
from qfml.engine.optimizers.muon import orthogonalise
from qfml.engine.stack import Layout

RATES, DECAYS = (1e-3, 1e-2, 5e-2), (0.0, 1e-2, 0.3)


def lion(theta, gradient, steps, lr, weight_decay, beta1, beta2):
    """Chen et al. (2023), algorithm 2."""
    m = np.zeros_like(theta)
    for _ in range(steps):
        g = gradient(theta)
        update = np.sign(beta1 * m + (1 - beta1) * g)
        m = beta2 * m + (1 - beta2) * g
        theta = theta - lr * (update + weight_decay * theta)
    return theta


def test_lion_equals_the_paper_over_20_steps():
    rng = np.random.default_rng(0)
    start, goal = rng.standard_normal((2, 3, 32))
    ours, parameters = Lion(beta1=0.8, beta2=0.95), torch.from_numpy(start.copy())
    state, layout = ours.start(parameters), Layout((("weight", (32,)),))
    for count in range(1, 21):
        step = Step(np.full(3, count), np.array(RATES), np.array(DECAYS), layout)
        ours.update(parameters, (parameters - torch.from_numpy(goal)) ** 3, state, step)
    for member, (lr, decay) in enumerate(zip(RATES, DECAYS)):
        expected = lion(start[member], lambda p, m=member: (p - goal[m]) ** 3, 20, lr, decay, 0.8, 0.95)
        np.testing.assert_allclose(parameters[member].numpy(), expected, rtol=1e-10, atol=1e-12)


def quintic(matrix, n_iterations):
    """Newton-Schulz through the singular values: each s becomes a s + b s^3 + c s^5 time after time."""
    left, s, right = np.linalg.svd(matrix, full_matrices=False)
    s = s / max(np.linalg.norm(s), 1e-7)
    for _ in range(n_iterations):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return left * s @ right


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (8, 8), (2, 17)])
def test_newton_schulz_acts_on_singular_values_alone(shape):
    matrices = np.random.default_rng(1).standard_normal((4, *shape))
    found = orthogonalise(torch.from_numpy(matrices), 5).numpy()
    np.testing.assert_allclose(found, [quintic(matrix, 5) for matrix in matrices], rtol=0, atol=1e-11)
    assert np.all((np.linalg.svd(found, compute_uv=False) > 0.3) & (np.linalg.svd(found, compute_uv=False) < 1.3))


LAYOUT = Layout(
    (
        ("weight0", (5, 3)),
        ("bias0", (3,)),
        ("weight1", (3, 7)),
        ("head_weight", (7, 2)),
        ("narrow_weight", (1, 4)),
        ("bias1", (4, 3)),  # of several perceptrons in one, as in TabM
    )
)
IS_MATRIX = {name: name in ("weight0", "weight1") for name, _ in LAYOUT.shapes}


def muon(theta, goal, steps, lr, weight_decay, own):
    """One parameter of one member by orthogonal momentum (torch.optim.Muon's conventions, in float64)."""
    mean = np.zeros_like(theta)
    inputs, outputs = theta.shape
    factor = {"original": np.sqrt(max(1, outputs / inputs)), "match_rms_adamw": 0.2 * np.sqrt(max(inputs, outputs))}
    for _ in range(steps):
        g = theta - goal
        mean = own.momentum * mean + (1 - own.momentum) * g
        ahead = own.momentum * mean + (1 - own.momentum) * g if own.nesterov else mean
        theta = theta * (1 - lr * weight_decay) - lr * factor[own.adjust] * quintic(ahead, own.n_iterations)
    return theta


def adamw(theta, goal, steps, lr, weight_decay, own):
    p = torch.from_numpy(theta.copy()).requires_grad_()
    optimizer = torch.optim.AdamW([p], lr, (own.beta1, own.beta2), own.eps, weight_decay)
    for _ in range(steps):
        p.grad = p.detach() - torch.from_numpy(goal)
        optimizer.step()
    return p.detach().numpy()


@pytest.mark.parametrize(
    "own",
    [
        Muon(),
        Muon(adjust="original", nesterov=False, momentum=0.8, n_iterations=3),
        Muon(adamw_lr_factor=0.3, beta1=0.8, beta2=0.9, eps=1e-6),
    ],
)
def test_muon_equals_full_precision_over_20_steps(own):
    rng = np.random.default_rng(2)
    start, goal = rng.standard_normal((2, 3, LAYOUT.width)) * np.array([1, 10])[:, None, None]  # no gradient near 0
    parameters = torch.from_numpy(start.copy())
    state = own.start(parameters)
    for count in range(1, 21):
        step = Step(np.full(3, count), np.array(RATES), np.array(DECAYS), LAYOUT)
        own.update(parameters, parameters - torch.from_numpy(goal), state, step)
    found, first, goals = (LAYOUT.views(torch.as_tensor(flat)) for flat in (parameters, start, goal))
    for name, is_matrix in IS_MATRIX.items():
        for member, (lr, decay) in enumerate(zip(RATES, DECAYS)):
            one = muon if is_matrix else adamw
            lr = lr if is_matrix else lr * own.adamw_lr_factor
            expected = one(first[name][member].numpy(), goals[name][member].numpy(), 20, lr, decay, own)
            np.testing.assert_allclose(found[name][member].numpy(), expected, rtol=1e-10, atol=1e-10)


def test_muon_is_torchs_to_the_precision_of_bfloat16():
    """torch's matrices are (outputs, inputs), so ours are their transposes."""
    rng = np.random.default_rng(3)
    start, goal = (torch.from_numpy(value).float() for value in rng.standard_normal((2, 1, 12 * 20)))
    layout, own, parameters = Layout((("weight", (12, 20)),)), Muon(adjust="original", weight_decay=0.1), start.clone()
    state, p = own.start(parameters), start.view(12, 20).T.clone().requires_grad_()
    optimizer = torch.optim.Muon([p], lr=0.02, weight_decay=0.1)
    for count in range(1, 6):
        own.update(
            parameters, parameters - goal, state, Step(np.array([count]), np.array([0.02]), np.array([0.1]), layout)
        )
        p.grad = p.detach() - goal.view(12, 20).T
        optimizer.step()
    moved = (parameters - start).view(12, 20)
    error = torch.linalg.norm(p.detach().T - parameters.view(12, 20)) / torch.linalg.norm(moved)
    assert error < 0.03
