"""Parameter groups against torch.optim's, frozen parameters to the bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import qfml
from qfml.data import TimeDataset
from qfml.engine.groups import ParameterGroup, group_factors
from qfml.engine.stack import Layout
from qfml.engine.streams import stream

NETWORK = qfml.MLP(hidden=(8,), activation="tanh")


def make_data(n=160):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, 4)).astype(np.float32)
    time = np.datetime64("2010-01-01") + np.arange(n)
    return TimeDataset(X, X[:, 0] + 0.5 * rng.standard_normal(n), time=time, label_end=time + 1)


def plain(ds, make_optimizer, clip_norm=None, trained=lambda name: True, epochs=4):
    """Plain torch on the same first weights and shuffles; only the `trained` parameters get a gradient."""
    first = NETWORK.init(4, None, stream(0, 0, "init"))
    own = {name: torch.nn.Parameter(value, requires_grad=trained(name)) for name, value in first.items()}
    optimizer = make_optimizer(own)
    for epoch in range(epochs):
        for rows in torch.randperm(100, generator=stream(0, 0, "shuffle", epoch)).split(32):
            optimizer.zero_grad()
            hidden = torch.tanh(ds.features[rows] @ own["weight0"] + own["bias0"])
            (hidden @ own["head_weight"] + own["head_bias"] - ds.y[rows]).square().mean().backward()
            if clip_norm is not None:
                torch.nn.utils.clip_grad_norm_([one for one in own.values() if one.requires_grad], clip_norm)
            optimizer.step()
    return {name: value.detach() for name, value in own.items()}


OPTIMIZERS = {
    "sgd": (
        qfml.SGD(lr=0.05, momentum=0.9, weight_decay=0.1),
        lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=0.1),
        0.05,
    ),
    "adamw": (
        qfml.AdamW(lr=0.01, weight_decay=0.1),
        lambda groups: torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1),
        0.01,
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_factors_equal_the_parameter_groups_of_torch(name):
    ours, theirs, lr = OPTIMIZERS[name]

    def make(own):
        biases = [own["bias0"], own["head_bias"]]
        head = [own["head_weight"]]
        return theirs(
            [
                {"params": [own["weight0"]]},
                {"params": biases, "weight_decay": 0.0},
                {"params": head, "lr": 0.1 * lr, "weight_decay": 0.2},
            ]
        )

    ds = make_data()
    expected = plain(ds, make)
    groups = (
        ParameterGroup("*bias*", weight_decay_factor=0.0),
        ParameterGroup("head_weight", lr_factor=0.1, weight_decay_factor=2.0),
    )
    trainer = qfml.Trainer(max_epochs=4, batch_size=32, optimizer=ours, parameter_groups=groups)
    fit = trainer.fit(NETWORK, qfml.MSE(), ds, train=np.arange(100))
    for key, value in expected.items():
        torch.testing.assert_close(fit.named_parameters()[key], value, rtol=2e-5, atol=2e-6)
    other = replace(trainer, parameter_groups=()).fit(NETWORK, qfml.MSE(), ds, train=np.arange(100))
    assert not torch.allclose(other.named_parameters()["head_weight"], expected["head_weight"], rtol=1e-3)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_parameters_keep_their_bits_and_count_in_no_norm(name):
    ours, theirs, _ = OPTIMIZERS[name]
    ds = make_data()

    def trained(key):
        return key not in ("weight0", "bias0")

    expected = plain(
        ds, lambda own: theirs([one for one in own.values() if one.requires_grad]), clip_norm=0.3, trained=trained
    )
    trainer = qfml.Trainer(
        max_epochs=4, batch_size=32, optimizer=ours, clip_norm=0.3, parameter_groups=(ParameterGroup("*0", 0.0),)
    )
    found = trainer.fit(NETWORK, qfml.MSE(), ds, train=np.arange(100)).named_parameters()
    first = NETWORK.init(4, None, stream(0, 0, "init"))
    for key, value in expected.items():
        if trained(key):
            torch.testing.assert_close(found[key], value, rtol=2e-5, atol=2e-6)
            assert not torch.equal(found[key], first[key])
        else:
            assert torch.equal(found[key], first[key])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_groups_in_a_stack_equal_solo(name):
    ds = make_data()
    groups = (ParameterGroup("*bias*", weight_decay_factor=0.0), ParameterGroup("weight0", 0.1))
    trainer = qfml.Trainer(max_epochs=4, batch_size=16, optimizer=OPTIMIZERS[name][0], parameter_groups=groups)
    members = [qfml.Member(qfml.MLP(hidden=(9,)), np.arange(60 + 20 * i), seed=i, lr=0.01 / (1 + i)) for i in range(3)]
    for member, fit in zip(members, trainer.fit_many(members, qfml.MSE(), ds)):
        solo = trainer.fit_many([member], qfml.MSE(), ds)[0]
        assert torch.equal(solo.parameters, fit.parameters)
        assert solo.history == fit.history


def test_factors_stand_where_their_parameters_do():
    layout = Layout((("weight0", (2, 3)), ("bias0", (3,)), ("head", (3,))))
    factors = group_factors((ParameterGroup("w*", 0.5, 3.0), ParameterGroup("bias?", 0.0)), layout, torch.zeros(1))
    pad = [1.0] * 4
    assert factors.lr.tolist() == [[0.5] * 6 + [0.0] * 3 + [1.0] * 3 + pad]
    assert factors.weight_decay.tolist() == [[3.0] * 6 + [1.0] * 6 + pad]
    assert factors.trained.tolist() == [[1.0] * 6 + [0.0] * 3 + [1.0] * 3 + pad]
    assert group_factors((), layout, torch.zeros(1)).lr is None


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ((ParameterGroup("tail*"),), "no parameter matches the pattern 'tail.*the network has weight0, bias0, head_"),
        (
            (ParameterGroup("head*"), ParameterGroup("*bias")),
            "'head.' and '.bias' both match the parameter 'head_bias'",
        ),
    ],
)
def test_patterns_that_do_not_fit_are_refused(groups, message):
    trainer = qfml.Trainer(max_epochs=1, batch_size=32, parameter_groups=groups)
    with pytest.raises(ValueError, match=message):
        trainer.fit(NETWORK, qfml.MSE(), make_data(), train=np.arange(50))


@pytest.mark.parametrize("factor", [-0.1, float("inf"), float("nan")])
def test_bad_factors_are_refused(factor):
    with pytest.raises(ValueError, match="`lr_factor` must be >= 0 and finite, got"):
        ParameterGroup("*", lr_factor=factor)
    with pytest.raises(ValueError, match="`weight_decay_factor` must be >= 0 and finite, got"):
        ParameterGroup("*", weight_decay_factor=factor)
