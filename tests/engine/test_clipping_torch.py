"""Clipping against torch.nn.utils, member by member."""

import numpy as np
import pytest
import torch

import qfml
from qfml.data import TimeDataset
from qfml.engine.clipping import clip_norm_, clip_value_, norms
from qfml.engine.streams import stream


def gradients(m=5, p=37):
    scale = torch.tensor([0.0, 1e-3, 1.0, 10.0, 1e4])[:m, None]
    return torch.randn(m, p, generator=torch.Generator().manual_seed(0)) * scale


def test_what_a_norm_of_nan_or_infinity_is_of_stays_at_0():
    """A member that skips its step has a gradient of 0, and the norm that was found before."""
    gradient = torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0]])
    norm, most = torch.tensor([[float("nan")], [float("inf")], [5.0]]), torch.tensor([[1.0], [1.0], [2.5]])
    clip_norm_(gradient, norm, most)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.5, 2.0]]))


def parameter(gradient):
    own = torch.nn.Parameter(torch.zeros_like(gradient))
    own.grad = gradient.clone()
    return own


def test_clipping_by_value_equals_torch():
    gradient = gradients()
    own = [parameter(row) for row in gradient]
    torch.nn.utils.clip_grad_value_(own, 0.5)
    before = gradient.clone()
    clip_value_(gradient, 0.5)
    assert torch.equal(gradient, torch.stack([one.grad for one in own]))
    assert not torch.equal(gradient, before)


def test_clipping_by_norm_equals_torch_for_each_member_with_its_own_limit():
    gradient = gradients()
    most = torch.tensor([1.0, 2.0, 0.5, float("inf"), 3.0])[:, None]
    own = [parameter(row) for row in gradient]
    theirs = [torch.nn.utils.clip_grad_norm_([one], float(limit)) for one, limit in zip(own, most)]
    norm = norms(gradient)
    clip_norm_(gradient, norm, most)
    torch.testing.assert_close(norm[:, 0], torch.stack(theirs))
    torch.testing.assert_close(gradient, torch.stack([one.grad for one in own]))


@pytest.mark.parametrize("clip_norm", [None, 0.4])
def test_training_clips_by_norm_first_and_by_value_then(clip_norm):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((100, 4)).astype(np.float32)
    time = np.datetime64("2010-01-01") + np.arange(100)
    ds = TimeDataset(X, 3 * X[:, 0], time=time, label_end=time + 1)
    network = qfml.MLP(hidden=(8,), activation="tanh")
    own = {name: torch.nn.Parameter(value) for name, value in network.init(4, None, stream(0, 0, "init")).items()}
    optimizer = torch.optim.SGD(own.values(), lr=0.05)
    clipped = 0
    for epoch in range(3):
        for rows in torch.randperm(100, generator=stream(0, 0, "shuffle", epoch)).split(32):
            optimizer.zero_grad()
            hidden = torch.tanh(ds.features[rows] @ own["weight0"] + own["bias0"])
            (hidden @ own["head_weight"] + own["head_bias"] - ds.y[rows]).square().mean().backward()
            if clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(own.values(), clip_norm)
            clipped += sum(int((one.grad.abs() > 0.1).sum()) for one in own.values())
            torch.nn.utils.clip_grad_value_(own.values(), 0.1)
            optimizer.step()
    assert clipped > 20
    trainer = qfml.Trainer(
        max_epochs=3, batch_size=32, optimizer=qfml.SGD(lr=0.05), clip_norm=clip_norm, clip_value=0.1
    )
    fit = trainer.fit(network, qfml.MSE(), ds, train=np.arange(100))
    for name, value in own.items():
        torch.testing.assert_close(fit.named_parameters()[name], value.detach(), rtol=1e-5, atol=1e-6)


def test_clipping_by_value_in_a_stack_equals_solo():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((150, 5)).astype(np.float32)
    time = np.datetime64("2010-01-01") + np.arange(150)
    ds = TimeDataset(X, 3 * X[:, 0], time=time, label_end=time + 1)
    trainer = qfml.Trainer(max_epochs=4, batch_size=16, clip_value=0.05)
    members = [qfml.Member(qfml.MLP(hidden=(9,)), np.arange(60 + 20 * i), seed=i) for i in range(3)]
    for member, fit in zip(members, trainer.fit_many(members, qfml.MSE(), ds)):
        solo = trainer.fit_many([member], qfml.MSE(), ds)[0]
        assert torch.equal(solo.parameters, fit.parameters)
        assert solo.history == fit.history


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_a_limit_that_is_not_positive_is_refused(limit):
    with pytest.raises(ValueError, match="`clip_value` must be positive, got"):
        qfml.Trainer(max_epochs=1, batch_size=None, clip_value=limit)
