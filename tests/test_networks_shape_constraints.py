"""Monotone and convex networks: the shape holds for any weights, and the rest of the network is as stated."""

import math

import numpy as np
import pytest
import torch
from network_stacks import (
    assert_trained_stack_equals_solo,
    assert_uses_exactly_its_bytes,
    generator,
    inputs,
    made_up_data,
    stack_of,
)

import qfml
from qfml.errors import UserError
from qfml.networks import ConvexMLP, MonotoneMLP

MEMBERS, ROWS, FEATURES = 4, 300, 4

MONOTONE = {
    "tanh": MonotoneMLP(increasing=(1,), decreasing=(3,), hidden=(9, 7)),
    "relu": MonotoneMLP(increasing=(1,), decreasing=(3,), hidden=(9, 8, 7), activation="relu"),
    "one layer": MonotoneMLP(increasing=(1,), decreasing=(3,), hidden=(6,)),
}
CONVEX = {
    "softplus": ConvexMLP(convex=(1, 3), hidden=(9, 7)),
    "relu": ConvexMLP(convex=(1, 3), hidden=(9, 8, 7), activation="relu"),
    "one layer": ConvexMLP(convex=(1, 3), hidden=(6,)),
}


def any_weights(network, window=None, scale=1.0, n_features=FEATURES):
    """Parameters that no initial distribution draws: normal, of either sign."""
    start = stack_of(network, n_features, window, MEMBERS, torch.float64)
    return {name: scale * inputs(*p.shape[:2], *p.shape[2:], seed=i) for i, (name, p) in enumerate(start.items())}


def trained_weights(network, target):
    """Parameters after training on labels that have the opposite shape, which pull against the constraint."""
    ds = made_up_data(n_features=FEATURES, target=target)
    members = [qfml.Member(network, np.arange(150), np.arange(150, 200), seed=seed) for seed in range(MEMBERS)]
    fits = qfml.Trainer(max_epochs=20, batch_size=32, optimizer=qfml.AdamW(lr=0.01)).fit_many(members, qfml.MSE(), ds)
    flat = torch.stack([fit.parameters for fit in fits]).double()
    return fits[0].layout.views(flat)


def assert_monotone(network, parameters, shape=(FEATURES,)):
    """At random pairs that differ in the constrained features alone, the output goes the promised way."""
    low = 2 * inputs(MEMBERS, ROWS, *shape)
    moved = torch.zeros_like(low)
    moved[..., 1] = inputs(MEMBERS, ROWS, *shape[:-1], seed=1).abs()
    moved[..., 3] = -inputs(MEMBERS, ROWS, *shape[:-1], seed=2).abs()
    rise = network.forward(parameters, low + moved) - network.forward(parameters, low)
    assert float(rise.min()) > -1e-10
    assert float(rise.max()) > 1e-6, "and the features matter"


@pytest.mark.parametrize("scale", [0.1, 1.0])
@pytest.mark.parametrize("name", MONOTONE)
def test_monotone_for_any_weights(name, scale):
    assert_monotone(MONOTONE[name], any_weights(MONOTONE[name], scale=scale))
    assert_monotone(MONOTONE[name], stack_of(MONOTONE[name], FEATURES, None, MEMBERS, torch.float64))


def test_monotone_at_every_row_of_a_window():
    network = MONOTONE["tanh"]
    assert_monotone(network, any_weights(network, window=3, scale=0.3), (3, FEATURES))


@pytest.mark.parametrize("name", MONOTONE)
def test_monotone_after_training_against_the_constraint(name):
    parameters = trained_weights(MONOTONE[name], lambda X: X[:, 0] - X[:, 1] + X[:, 3])
    assert_monotone(MONOTONE[name], parameters)


@pytest.mark.parametrize("network", [MONOTONE["tanh"], MONOTONE["relu"], CONVEX["softplus"], CONVEX["relu"]])
def test_free_features_act_in_both_directions(network):
    x = inputs(MEMBERS, ROWS, FEATURES)
    for free in (0, 2):
        moved = x.clone()
        moved[..., free] += 0.5
        change = network.forward(any_weights(network, scale=0.5), moved)
        change = change - network.forward(any_weights(network, scale=0.5), x)
        assert float(change.min()) < -1e-3
        assert float(change.max()) > 1e-3


def test_relu_units_of_both_kinds_are_neither_convex_nor_concave():
    network = MonotoneMLP(increasing=(0,), hidden=(16, 16), activation="relu")
    parameters = any_weights(network, n_features=1)
    x = torch.linspace(-4, 4, 401, dtype=torch.float64).view(1, -1, 1).expand(MEMBERS, -1, 1)
    bends = network.forward(parameters, x).diff(2)
    assert float(bends.min()) < -1e-6
    assert float(bends.max()) > 1e-6


def assert_convex(network, parameters, shape=(FEATURES,), chosen=(1, 3)):
    """On random chords in the convex features, jointly, midpoints lie below; second differences are not negative."""
    start, step = 2 * inputs(MEMBERS, ROWS, *shape), torch.zeros(MEMBERS, ROWS, *shape, dtype=torch.float64)
    for column in chosen:
        step[..., column] = inputs(MEMBERS, ROWS, *shape[:-1], seed=column)
    values = torch.stack([network.forward(parameters, start + 0.25 * t * step) for t in range(9)])
    scale = float(values.abs().max())
    assert float(values.diff(2, dim=0).min()) > -1e-12 * scale
    assert float((values[0] + values[-1] - 2 * values[4]).min()) > -1e-12 * scale
    assert float(values.diff(2, dim=0).max()) > 1e-6, "and there is curvature"


@pytest.mark.parametrize("scale", [0.1, 1.0])
@pytest.mark.parametrize("name", CONVEX)
def test_convex_for_any_weights(name, scale):
    assert_convex(CONVEX[name], any_weights(CONVEX[name], scale=scale))
    assert_convex(CONVEX[name], stack_of(CONVEX[name], FEATURES, None, MEMBERS, torch.float64))


def test_convex_in_all_rows_of_a_window_jointly():
    assert_convex(CONVEX["softplus"], any_weights(CONVEX["softplus"], window=3, scale=0.3), (3, FEATURES))


def test_convex_without_free_features():
    network = ConvexMLP(convex=(0, 1), hidden=(8, 8))
    assert_convex(network, any_weights(network, scale=0.5, n_features=2), (2,), (0, 1))


@pytest.mark.parametrize(
    "name", [name if name == "relu" else pytest.param(name, marks=pytest.mark.slow) for name in CONVEX]
)
def test_convex_after_training_against_the_constraint(name):
    parameters = trained_weights(CONVEX[name], lambda X: X[:, 0] - X[:, 1] ** 2 + np.sin(2 * X[:, 3]))
    assert_convex(CONVEX[name], parameters)


def test_convex_equals_equation_3_written_row_by_row():
    network = ConvexMLP(convex=(3, 1), hidden=(5, 4))
    p = any_weights(network, scale=0.5)
    x = inputs(MEMBERS, 6, FEATURES)
    softplus, got = torch.nn.functional.softplus, network.forward(p, x)
    for member, row in [(0, 0), (3, 5)]:
        w = {name: value[member] for name, value in p.items()}
        y, u, z = x[member, row, [3, 1]], x[member, row, [0, 2]], None
        for i in range(3):
            out = w[f"convex{i}_weight"].T @ (y * (u @ w[f"convex_gate{i}_weight"] + w[f"convex_gate{i}_bias"]))
            out = out + u @ w[f"cross{i}_weight"] + w[f"bias{i}"]
            if z is not None:
                out = out + (z * (u @ w[f"gate{i}_weight"] + w[f"gate{i}_bias"]).clamp(min=0)) @ w[f"root{i}"] ** 2
            if i < 2:
                z, u = softplus(out), softplus(u @ w[f"free{i}_weight"] + w[f"free{i}_bias"])
        torch.testing.assert_close(got[member, row], out[0], rtol=1e-10, atol=1e-10)


def test_monotone_equals_its_formula_written_row_by_row():
    network = MonotoneMLP(increasing=(2,), decreasing=(0,), hidden=(5, 4))
    p = any_weights(network)
    x = inputs(MEMBERS, 6, FEATURES)
    got = network.forward(p, x)
    for member, row in [(0, 0), (3, 5)]:
        w = {name: value[member] for name, value in p.items()}
        z, u = torch.stack([x[member, row, 2], -x[member, row, 0]]), x[member, row, [1, 3]]
        for i in range(3):
            z = z @ w[f"root{i}"] ** 2 + u @ w[f"cross{i}_weight"] + w[f"bias{i}"]
            if i < 2:
                z, u = torch.tanh(z), torch.tanh(u @ w[f"free{i}_weight"] + w[f"free{i}_bias"])
        torch.testing.assert_close(got[member, row], z[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("width", [8, 512])
@pytest.mark.parametrize("network", [MonotoneMLP, ConvexMLP])
def test_initial_outputs_are_of_order_one_whatever_the_width_and_depth(network, width):
    chosen = {"increasing": (0, 1)} if network is MonotoneMLP else {"convex": (0, 1)}
    network = network(**chosen, hidden=(width,) * 5)
    outputs = network.forward(stack_of(network, 6, None, 8), inputs(8, 256, 6, dtype=torch.float32))
    assert 0.02 < float(outputs.std(dim=1).mean()) < 3
    assert float(outputs.abs().max()) < 30


@pytest.mark.slow
def test_training_learns_a_function_of_the_right_shape():
    ds = made_up_data(n=600, n_features=3, target=lambda X: np.abs(X[:, 0]) + X[:, 1])
    trainer = qfml.Trainer(max_epochs=30, batch_size=32, optimizer=qfml.AdamW(lr=0.02))
    for network in (ConvexMLP(convex=(0,), hidden=(16, 16)), MonotoneMLP(increasing=(1,), hidden=(16, 16))):
        fit = trainer.fit(network, qfml.MSE(), ds, train=np.arange(500))
        x, y = ds.gather(torch.arange(500, 600))
        output = network.forward(fit.layout.views(fit.parameters[None]), x[None])[0]
        assert float((output - y).square().mean()) < 0.1  # the labels' variance is 1.4, their noise 0.01


@pytest.mark.parametrize(
    "network",
    [MonotoneMLP(increasing=(1,), hidden=(9, 7), dropout=0.25), ConvexMLP(convex=(1,), hidden=(9, 7), dropout=0.25)],
)
def test_dropout_and_the_stack(network):
    assert_uses_exactly_its_bytes(network, 16)
    assert_trained_stack_equals_solo(network)
    assert MONOTONE["tanh"].dropout_units == CONVEX["relu"].dropout_units == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MonotoneMLP(), "`increasing` and `decreasing` are both empty: name a column"),
        (lambda: MonotoneMLP(increasing=(1, 2), decreasing=(2,)), "column 2 is both in `increasing` and"),
        (lambda: MonotoneMLP(increasing=(-1,)), r"`increasing` must hold columns .* counted from 0, .*, got \(-1,\)"),
        (lambda: MonotoneMLP(decreasing=(1, 1)), r"`decreasing` must hold each column once, got \(1, 1\)"),
        (lambda: MonotoneMLP(increasing=(0,), activation="silu"), "`activation` must be tanh or relu, .*, got 'silu'"),
        (lambda: MonotoneMLP(increasing=(0,), activation="relu", hidden=(1,)), "`hidden` must be at least 2 wide"),
        (lambda: MonotoneMLP(increasing=(0,), dropout=math.nan), "`dropout` must lie in"),
        (
            lambda: MonotoneMLP(increasing=(0,), decreasing=(7,)).init(4, None, generator()),
            "`decreasing` has column 7, but the network sees 4 features: columns are counted from 0 to 3",
        ),
        (lambda: ConvexMLP(convex=()), "`convex` is empty: name a column"),
        (lambda: ConvexMLP(convex=(True,)), "`convex` must hold columns"),
        (lambda: ConvexMLP(convex=(0,), activation="tanh"), "`activation` must be softplus or relu, .*, got 'tanh'"),
        (lambda: ConvexMLP(convex=(0,), hidden=(0,)), "`hidden` must be"),
        (lambda: ConvexMLP(convex=(4,)).init(4, None, generator()), "`convex` has column 4, but the network sees 4"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
