"""A member's weights in a stack are its solo weights, to the last bit, under every optimizer."""

import numpy as np
import pytest
import torch

import qfml
from qfml.data import TimeDataset
from qfml.engine.optimizers import OPTIMIZERS, Step
from qfml.engine.optimizers.base import row_sums
from qfml.engine.optimizers.muon import orthogonalise
from qfml.engine.stack import Layout

SETTINGS = {
    "sgd": {"momentum": 0.9, "nesterov": True},
    "rmsprop": {"momentum": 0.9, "centered": True},
    "adagrad": {"lr_decay": 0.01},
}
SHAPES = [(5, 3), (8, 4), (9, 5), (10, 5), (12, 6), (17, 9), (25, 9), (33, 17), (16, 16), (50, 25), (64, 64), (3, 40)]


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("hidden", [(16, 16), (33, 17, 5)])
def test_member_in_a_stack_equals_solo(kind, hidden):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 7)).astype(np.float32)
    y = np.tanh(X[:, 0] * X[:, 1]) + 0.3 * rng.standard_normal(200)
    time = np.datetime64("2010-01-01") + np.arange(200)
    ds = TimeDataset(X, y, time=time, label_end=time + 1)
    optimizer = OPTIMIZERS[kind](weight_decay=0.01, **SETTINGS.get(kind, {}))
    batch_size = None if kind == "lbfgs" else 32
    trainer = qfml.Trainer(max_epochs=5, batch_size=batch_size, clip_norm=None, optimizer=optimizer, member_block=100)
    members = [
        qfml.Member(
            qfml.MLP(hidden=hidden), np.arange(100 + 7 * i), np.arange(150, 200), seed=i, lr=optimizer.lr * (1 + i)
        )
        for i in range(5)
    ]
    for member, fit in zip(members, trainer.fit_many(members, qfml.MSE(), ds)):
        solo = trainer.fit_many([member], qfml.MSE(), ds)[0]
        assert torch.equal(solo.parameters, fit.parameters)
        assert solo.history == fit.history


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_orthogonal_matrices_of_a_stack_are_each_ones_own(shape):
    generator = torch.Generator().manual_seed(0)
    for count in (2, 3, 7, 17):
        matrices = torch.randn(count, *shape, generator=generator)
        together = orthogonalise(matrices)
        for i in range(count):
            assert torch.equal(orthogonalise(matrices[i : i + 1].clone())[0], together[i])


@pytest.mark.parametrize("kind", [kind for kind in OPTIMIZERS if kind != "lbfgs"])
def test_frozen_parameters_and_members_keep_their_bits(kind):
    """By a rate of 0 of a member, by a factor of 0 of a parameter, and by a member's flag on the device."""
    layout = Layout((("weight", (8, 4)), ("bias", (4,)), ("rest", (12,))))
    generator = torch.Generator().manual_seed(0)
    parameters = torch.randn(3, layout.width, generator=generator)
    before = parameters.clone()
    optimizer = OPTIMIZERS[kind]()
    state = optimizer.start(parameters)
    scale = torch.ones(1, layout.width)
    layout.views(scale)["bias"].zero_()
    moves = torch.tensor([[1.0], [1.0], [0.0]])
    lr, decay = np.array([0.0, 0.1, 0.1]), np.array([0.1, 0.1, 0.1])
    for count in range(1, 4):
        step = Step(np.full(3, count), lr, decay, layout, scale=scale, moves=moves)
        optimizer.update(parameters, torch.randn(3, layout.width, generator=generator) * scale, state, step)
    assert torch.equal(parameters[[0, 2]], before[[0, 2]])
    now, then = layout.views(parameters), layout.views(before)
    assert torch.equal(now["bias"], then["bias"])
    assert not torch.isclose(now["weight"][1], then["weight"][1]).any()
    assert not torch.isclose(now["rest"][1], then["rest"][1]).any()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_long_rows_are_summed_alike_in_any_stack_on_any_threads(threads):
    before = torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    torch.set_num_threads(threads)
    try:
        for width in (512, 40000, 100000):
            rows = torch.randn(3, width, generator=generator)
            alone = torch.cat([row_sums(row[None].clone()) for row in rows])
            assert torch.equal(row_sums(rows), alone)
            torch.testing.assert_close(alone[:, 0], rows.double().sum(1).float(), rtol=1e-3, atol=1e-3)
        matrices = torch.randn(3, 256, 256, generator=generator)
        alone = torch.cat([orthogonalise(matrix[None].clone()) for matrix in matrices])
        assert torch.equal(orthogonalise(matrices), alone)
    finally:
        torch.set_num_threads(before)
