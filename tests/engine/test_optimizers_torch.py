"""Each optimizer agrees with torch.optim, member by member, each with its own hyperparameters."""

import numpy as np
import pytest
import torch

from qfml.engine.optimizers import SGD, Adagrad, Adam, AdamW, Lion, Muon, RAdam, RMSprop, Step
from qfml.engine.stack import Layout

LAYOUT = Layout((("weight", (32,)),))


def step(count, lr, weight_decay):
    rate, decay = (np.asarray(values, dtype=np.float64) for values in (lr, weight_decay))
    return Step(np.full(len(rate), count), rate, decay, LAYOUT)


SETTINGS = {
    "adamw": (
        AdamW(beta1=0.8, beta2=0.95, eps=1e-6),
        lambda p, lr, wd: torch.optim.AdamW(p, lr, (0.8, 0.95), 1e-6, wd),
    ),
    "adagrad": (
        Adagrad(lr_decay=0.1, initial_sum=0.2, eps=1e-6),
        lambda p, lr, wd: torch.optim.Adagrad(p, lr, 0.1, wd, 0.2, 1e-6),
    ),
    "adam": (
        Adam(beta1=0.8, beta2=0.95, eps=1e-6),
        lambda p, lr, wd: torch.optim.Adam(p, lr, (0.8, 0.95), 1e-6, wd),
    ),
    "radam": (
        RAdam(beta1=0.8, beta2=0.95, eps=1e-6),
        lambda p, lr, wd: torch.optim.RAdam(p, lr, (0.8, 0.95), 1e-6, wd),
    ),
    "radam of short memory": (
        RAdam(beta1=0.8, beta2=0.6),
        lambda p, lr, wd: torch.optim.RAdam(p, lr, (0.8, 0.6), 1e-8, wd),
    ),
    "rmsprop": (RMSprop(alpha=0.9, eps=1e-6), lambda p, lr, wd: torch.optim.RMSprop(p, lr, 0.9, 1e-6, wd)),
    "rmsprop with momentum": (
        RMSprop(momentum=0.8),
        lambda p, lr, wd: torch.optim.RMSprop(p, lr, weight_decay=wd, momentum=0.8),
    ),
    "rmsprop centered with momentum": (
        RMSprop(momentum=0.8, centered=True),
        lambda p, lr, wd: torch.optim.RMSprop(p, lr, weight_decay=wd, momentum=0.8, centered=True),
    ),
    "sgd": (SGD(), lambda p, lr, wd: torch.optim.SGD(p, lr, weight_decay=wd)),
    "momentum": (SGD(momentum=0.9), lambda p, lr, wd: torch.optim.SGD(p, lr, 0.9, weight_decay=wd)),
    "nesterov": (
        SGD(momentum=0.9, nesterov=True),
        lambda p, lr, wd: torch.optim.SGD(p, lr, 0.9, weight_decay=wd, nesterov=True),
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_updates_equal_torch_optim_over_20_steps(name):
    ours, theirs = SETTINGS[name]
    generator = torch.Generator().manual_seed(0)
    parameters = torch.randn(3, 32, generator=generator, dtype=torch.float64)
    target = torch.randn(3, 32, generator=generator, dtype=torch.float64)
    lr = torch.tensor([[1e-3], [1e-2], [5e-2]], dtype=torch.float64)
    decay = torch.tensor([[0.0], [1e-2], [0.3]], dtype=torch.float64)
    solo = [row.clone().requires_grad_() for row in parameters]
    torch_optimizers = [theirs([p], float(rate), float(wd)) for p, rate, wd in zip(solo, lr, decay)]
    state = ours.start(parameters)
    for count in range(1, 21):
        ours.update(parameters, (parameters - target) ** 3, state, step(count, lr[:, 0], decay[:, 0]))
        for p, goal, optimizer in zip(solo, target, torch_optimizers):
            p.grad = (p.detach() - goal) ** 3
            optimizer.step()
    torch.testing.assert_close(parameters, torch.stack(solo).detach(), rtol=1e-10, atol=1e-12)


def test_radam_of_members_at_different_counts_equals_each_alone():
    generator = torch.Generator().manual_seed(1)
    parameters, gradient, mean, mean_square = torch.randn(4, 2, 32, generator=generator, dtype=torch.float64)
    state = {"mean": mean, "mean_square": mean_square**2}
    alone = [(p[None].clone(), {k: v[i : i + 1].clone() for k, v in state.items()}) for i, p in enumerate(parameters)]
    together = Step(np.array([3, 40]), np.array([0.1, 0.2]), np.zeros(2), LAYOUT)
    RAdam().update(parameters, gradient.clone(), state, together)
    for i, (p, own) in enumerate(alone):
        RAdam().update(p, gradient[i : i + 1].clone(), own, step([3, 40][i], [[0.1], [0.2]][i], [0.0]))
        assert torch.equal(p[0], parameters[i])
    assert RAdam().rectification(np.array([3, 40])).astype(bool).tolist() == [False, True]


def test_centered_rmsprop_of_a_constant_gradient_stays_finite():
    """The mean square less the squared mean would round to below zero."""
    parameters, gradient = torch.zeros(1, 16), torch.full((1, 16), 0.1)
    optimizer = RMSprop(alpha=0.5, centered=True)
    state = optimizer.start(parameters)
    for count in range(1, 200):
        optimizer.update(parameters, gradient, state, step(count, [1e-9], [0.0]))
    assert torch.isfinite(parameters).all()


EACH = [
    Adagrad(),
    Adam(),
    AdamW(),
    Lion(),
    Muon(),
    RAdam(),
    RMSprop(momentum=0.9, centered=True),
    SGD(momentum=0.9, nesterov=True),
]


@pytest.mark.parametrize("optimizer", EACH, ids=lambda optimizer: optimizer.kind)
def test_zero_rate_and_gradient_keep_parameters_to_the_bit(optimizer):
    parameters = torch.randn(2, 32)
    before = parameters.clone()
    state = {name: torch.rand_like(value) for name, value in optimizer.start(parameters).items()}
    optimizer.update(parameters, torch.zeros(2, 32), state, step(5, [0.0, 0.1], [0.1, 0.1]))
    assert torch.equal(parameters[0], before[0])
    assert not torch.equal(parameters[1], before[1])


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (AdamW, {"lr": 0.0}, "`lr` must be positive and finite, got 0.0"),
        (AdamW, {"lr": float("nan")}, "`lr` must be positive"),
        (AdamW, {"beta1": 1.0}, r"`beta1` must lie in \[0, 1\), got 1.0"),
        (AdamW, {"weight_decay": -1.0}, "`weight_decay` must be >= 0"),
        (AdamW, {"eps": 0.0}, "`eps` must be positive and finite, got 0.0"),
        (Adam, {"beta2": -0.1}, r"`beta2` must lie in \[0, 1\), got -0.1"),
        (RAdam, {"beta2": 1.0}, r"`beta2` must lie in \[0, 1\), got 1.0"),
        (RMSprop, {"alpha": 1.5}, r"`alpha` must lie in \[0, 1\), got 1.5"),
        (RMSprop, {"momentum": -1.0}, r"`momentum` must lie in \[0, 1\), got -1.0"),
        (Adagrad, {"lr_decay": -1.0}, "`lr_decay` must be >= 0 and finite, got -1.0"),
        (Adagrad, {"initial_sum": float("inf")}, "`initial_sum` must be >= 0 and finite, got inf"),
        (Lion, {"beta1": 1.0}, r"`beta1` must lie in \[0, 1\), got 1.0"),
        (Muon, {"momentum": 1.0}, r"`momentum` must lie in \[0, 1\), got 1.0"),
        (Muon, {"n_iterations": 0}, "`n_iterations` must be a whole number from 1 on, got 0"),
        (Muon, {"adjust": "none"}, "`adjust` must be one of match_rms_adamw, original, got 'none'"),
        (Muon, {"adamw_lr_factor": 0.0}, "`adamw_lr_factor` must be positive and finite, got 0.0"),
        (SGD, {"nesterov": True}, "`nesterov` needs a positive `momentum`"),
        (SGD, {"momentum": 1.0}, r"`momentum` must lie in \[0, 1\)"),
    ],
)
def test_bad_settings_are_refused_by_name(cls, settings, message):
    with pytest.raises(ValueError, match=message):
        cls(**settings)
