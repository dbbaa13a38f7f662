"""Stacks of networks and their inputs for the tests of networks, and what every network must keep."""

import numpy as np
import torch

import qfml
from qfml.data import TimeDataset
from qfml.engine.stack import Layout


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def stack_of(network, n_features, window, members, dtype=torch.float32):
    """Parameters of several members, each drawn from a seed of its own, with a leading member axis."""
    drawn = [network.init(n_features, window, generator(seed)) for seed in range(members)]
    return {name: torch.stack([one[name] for one in drawn]).to(dtype) for name in drawn[0]}


def inputs(members, rows, *shape, dtype=torch.float64, seed=9):
    return torch.randn(members, rows, *shape, generator=generator(seed), dtype=dtype)


def moved_off_the_start(parameters, seed=5):
    """Scales and shifts start at 1 and 0, where a mistake would not show."""
    return {
        name: p + 0.3 * torch.randn(p.shape, generator=generator(seed), dtype=p.dtype) for name, p in parameters.items()
    }


def assert_stack_equals_solo(network, n_features, window, rows, members=5):
    """Outputs and gradients of a stack are those of each member alone, to the bit."""
    drawn = [network.init(n_features, window, generator(seed)) for seed in range(members)]
    layout = Layout.of(drawn[0])
    flat = torch.stack([layout.flatten(one) for one in drawn])
    x = inputs(members, rows, *((n_features,) if window is None else (window, n_features)), dtype=torch.float32)

    def output_and_gradient(own):
        views = layout.views(flat[own].clone(), requires_grad=True)
        output = network.forward(views, x[own].clone())
        return output, layout.gradient(output.square().sum(), views, out=torch.zeros_like(flat[own]))

    output, gradient = output_and_gradient(slice(0, members))
    for member in range(members):
        alone = output_and_gradient(slice(member, member + 1))
        assert torch.equal(alone[0][0], output[member])
        assert torch.equal(alone[1][0], gradient[member])


def made_up_data(n=200, n_features=5, window=None, target=None):
    """Independent features and a noisy target of them, `tanh(x0 x1)` unless another is named."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, n_features)).astype(np.float32)
    y = (np.tanh(X[:, 0] * X[:, 1]) if target is None else target(X)) + 0.1 * rng.standard_normal(n)
    time = np.datetime64("2010-01-01") + np.arange(n)
    return TimeDataset(X, y, time=time, label_end=time + 1, window=window)


def assert_trained_stack_equals_solo(network, window=None):
    """Members of different lengths and seeds, trained together and alone."""
    ds = made_up_data(window=window)
    trainer = qfml.Trainer(max_epochs=3, batch_size=32, member_block=100)
    members = [
        qfml.Member(network, np.arange(10 * seed, 120 + 7 * seed), np.arange(150, 190), seed=seed) for seed in range(3)
    ]
    for member, fit in zip(members, trainer.fit_many(members, qfml.MSE(), ds)):
        alone = trainer.fit_many([member], qfml.MSE(), ds)[0]
        assert torch.equal(alone.parameters, fit.parameters)
        assert alone.history == fit.history


def assert_uses_exactly_its_bytes(network, units, window=None):
    """The dropout bytes asked for are used up, each row by itself, and none where there is no training."""
    assert network.dropout_units == units
    shape = (3,) if window is None else (window, 3)
    x = inputs(1, 1, *shape, dtype=torch.float32).repeat_interleave(512, dim=1)  # the same row, many times
    parameters = moved_off_the_start(stack_of(network, 3, window, 1))
    dropout = qfml.networks.Dropout(torch.randint(0, 256, (1, 512, units), generator=generator(), dtype=torch.uint8))
    outputs = network.forward(parameters, x, dropout)
    assert dropout.used == units
    assert len(torch.unique(outputs)) > 20, "each row has a mask of its own"
    whole = network.forward(parameters, x)
    assert float(whole.max() - whole.min()) < 1e-5, "without bytes nothing is dropped"
