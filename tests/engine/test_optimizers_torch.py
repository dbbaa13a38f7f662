"""Each optimizer agrees with torch.optim, member by member, each with its own hyperparameters."""

import numpy as np
import pytest
import torch

from qfml.engine.optimizers import SGD, AdamW, Step
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


@pytest.mark.parametrize("optimizer", [AdamW(), SGD(momentum=0.9, nesterov=True)], ids=["adamw", "sgd"])
def test_zero_rate_and_gradient_keep_parameters_to_the_bit(optimizer):
    parameters = torch.randn(2, 16)
    before = parameters.clone()
    state = {name: torch.rand_like(value) for name, value in optimizer.start(parameters).items()}
    optimizer.update(parameters, torch.zeros(2, 16), state, step(5, [0.0, 0.1], [0.1, 0.1]))
    assert torch.equal(parameters[0], before[0])
    assert not torch.equal(parameters[1], before[1])


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (AdamW, {"lr": 0.0}, "`lr` must be positive and finite, got 0.0"),
        (AdamW, {"lr": float("nan")}, "`lr` must be positive"),
        (AdamW, {"beta1": 1.0}, r"`beta1` must lie in \[0, 1\), got 1.0"),
        (AdamW, {"weight_decay": -1.0}, "`weight_decay` must be >= 0"),
        (SGD, {"nesterov": True}, "`nesterov` needs a positive `momentum`"),
        (SGD, {"momentum": 1.0}, r"`momentum` must lie in \[0, 1\)"),
    ],
)
def test_bad_settings_are_refused_by_name(cls, settings, message):
    with pytest.raises(ValueError, match=message):
        cls(**settings)
