"""Residual MLP, LSTM and GRU against torch.nn with the same weights; causality of state, dropout, refusals."""

import math

import pytest
import torch
from network_stacks import (
    assert_trained_stack_equals_solo,
    assert_uses_exactly_its_bytes,
    generator,
    inputs,
    moved_off_the_start,
    stack_of,
)

from qfml.errors import UserError
from qfml.networks import GRU, LSTM, Dropout, ResidualMLP
from qfml.networks.base import check_count

ACTIVATIONS = {
    "relu": torch.nn.ReLU(),
    "tanh": torch.nn.Tanh(),
    "silu": torch.nn.SiLU(),
    "gelu": torch.nn.GELU(approximate="tanh"),
}


def one(parameters, member, name):
    """A torch layer of one member's weight and bias, or scale and shift, called `name`."""
    p = {key.removeprefix(f"{name}_"): value[member] for key, value in parameters.items()}
    if "scale" in p:
        layer = torch.nn.LayerNorm(len(p["scale"]), dtype=torch.float64)
        layer.load_state_dict({"weight": p["scale"], "bias": p["shift"]})
    else:
        weight = p["weight"].reshape(len(p["weight"]), -1)
        layer = torch.nn.Linear(*weight.shape, dtype=torch.float64)
        layer.load_state_dict({"weight": weight.T, "bias": p["bias"]})
    return layer


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("width", "blocks", "hidden"), [(6, 1, 9), (5, 3, 4), (1, 2, 3)])
def test_residual_mlp_equals_torch_modules(width, blocks, hidden, activation, layer_norm):
    network = ResidualMLP(width=width, blocks=blocks, hidden=hidden, activation=activation, layer_norm=layer_norm)
    parameters = moved_off_the_start(stack_of(network, 4, None, 3, torch.float64))
    x, act = inputs(3, 11, 4), ACTIVATIONS[activation]
    got = network.forward(parameters, x)
    for member in range(3):
        layer = lambda name: one(parameters, member, name)  # noqa: B023, E731
        norm = lambda name: layer(name) if layer_norm else torch.nn.Identity()  # noqa: B023, E731
        with torch.no_grad():
            h = layer("first")(x[member])
            for i in range(blocks):
                h = h + torch.nn.Sequential(norm(f"norm{i}"), layer(f"inner{i}"), act, layer(f"outer{i}"))(h)
            expected = torch.nn.Sequential(norm("norm"), act, layer("head"), torch.nn.Flatten(0))(h)
        torch.testing.assert_close(got[member], expected, rtol=1e-12, atol=1e-12)


def test_residual_mlp_reads_a_window_as_one_row_oldest_first():
    network = ResidualMLP(width=8)
    parameters = stack_of(network, 3, 5, 2, torch.float64)
    x = inputs(2, 6, 5, 3)
    assert torch.equal(network.forward(parameters, x), network.forward(parameters, x.reshape(2, 6, 15)))


def torch_recurrent(network, parameters, member, dtype):
    """torch.nn.LSTM or GRU with one member's weights."""
    n_features = parameters["input_weight0"].shape[1]
    module = {LSTM: torch.nn.LSTM, GRU: torch.nn.GRU}[type(network)]
    module = module(n_features, network.hidden, network.layers, batch_first=True, dtype=dtype)
    state = {}
    for i in range(network.layers):
        state[f"weight_ih_l{i}"] = parameters[f"input_weight{i}"][member].T
        state[f"weight_hh_l{i}"] = parameters[f"recurrent_weight{i}"][member].T
        state[f"bias_ih_l{i}"] = parameters[f"bias{i}"][member]
        state[f"bias_hh_l{i}"] = torch.zeros_like(parameters[f"bias{i}"][member])
        if isinstance(network, GRU):
            state[f"bias_hh_l{i}"][2 * network.hidden :] = parameters[f"candidate_bias{i}"][member]
    module.load_state_dict(state)
    return module


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("hidden", "layers", "window"), [(5, 1, 1), (8, 1, 30), (6, 3, 7), (1, 2, 4)])
@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_outputs_and_gradients_equal_those_of_torch_nn(kind, hidden, layers, window, dtype, tolerance):
    network = kind(hidden=hidden, layers=layers)
    parameters = moved_off_the_start(stack_of(network, 3, window, 2, dtype))
    parameters = {name: p.detach().requires_grad_(True) for name, p in parameters.items()}
    x = inputs(2, 9, window, 3, dtype=dtype)
    got = network.forward(parameters, x)
    gradients = dict(zip(parameters, torch.autograd.grad(got.square().sum(), list(parameters.values()))))
    for member in range(2):
        module = torch_recurrent(network, parameters, member, dtype)
        expected = module(x[member])[0][:, -1] @ parameters["head_weight"][member] + parameters["head_bias"][member]
        torch.testing.assert_close(got[member], expected, rtol=tolerance, atol=tolerance)
        expected.square().sum().backward()
        for i in range(layers):
            for name, theirs in ((f"input_weight{i}", "weight_ih_l"), (f"recurrent_weight{i}", "weight_hh_l")):
                found = getattr(module, f"{theirs}{i}").grad.T
                torch.testing.assert_close(gradients[name][member], found, rtol=100 * tolerance, atol=100 * tolerance)


@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_every_row_of_the_window_matters_and_nothing_is_carried_between_samples(kind):
    network = kind(hidden=4, layers=2)
    parameters = stack_of(network, 2, 5, 1, torch.float64)
    x = inputs(1, 6, 5, 2).requires_grad_(True)
    output = network.forward(parameters, x)
    (gradient,) = torch.autograd.grad(output[0, 3], x)
    assert bool((gradient[0, 3].abs().sum(-1) > 0).all())
    gradient[0, 3] = 0
    assert not bool(gradient.any())


@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_initial_weights_are_distributed_as_those_of_torch(kind):
    p = kind(hidden=100).init(20, 5, generator())
    for name in ("input_weight0", "recurrent_weight0", "head_weight"):
        assert 0.095 < float(p[name].abs().max()) <= 0.1
        assert float(p[name].square().mean()) == pytest.approx(0.01 / 3, rel=0.05 if name != "head_weight" else 0.5)


def test_forget_gates_alone_start_open():
    remembers, plain = (LSTM(hidden=4, forget_bias=bias).init(3, 5, generator())["bias0"] for bias in (1.0, 0.0))
    moved = remembers - plain
    torch.testing.assert_close(moved, torch.tensor([0.0] * 4 + [1.0] * 4 + [0.0] * 8))


@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_dropout_drops_the_same_units_at_every_row_of_the_window(kind):
    # with every unit of the first layer dropped, the output no longer depends on the window, only on biases
    network = kind(hidden=4, layers=2, dropout=0.5)
    parameters = stack_of(network, 3, 6, 1)
    x = inputs(1, 16, 6, 3, dtype=torch.float32)
    random_bytes = torch.cat([torch.zeros(1, 16, 4), torch.full((1, 16, 4), 255)], dim=-1).to(torch.uint8)
    outputs = network.forward(parameters, x, Dropout(random_bytes))
    assert float(outputs.max() - outputs.min()) < 1e-6
    assert float(network.forward(parameters, x).std()) > 1e-3


@pytest.mark.parametrize(
    ("network", "units", "window"),
    [
        (ResidualMLP(width=4, blocks=3, hidden=6, dropout=0.25), 18, None),
        (LSTM(hidden=9, layers=2, dropout=0.25), 18, 5),
        (GRU(hidden=9, layers=2, dropout=0.25), 18, 5),
    ],
)
def test_a_network_uses_exactly_the_bytes_that_it_asks_for(network, units, window):
    assert_uses_exactly_its_bytes(network, units, window)
    assert type(network)().dropout_units == 0


@pytest.mark.parametrize(
    ("network", "window"),
    [
        (ResidualMLP(width=9, hidden=11, dropout=0.1), None),
        (LSTM(hidden=7, layers=2, dropout=0.1), 5),
        (GRU(hidden=7, layers=2, dropout=0.1), 5),
    ],
)
def test_a_trained_stack_equals_each_member_trained_alone_to_the_bit(network, window):
    assert_trained_stack_equals_solo(network, window)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResidualMLP(width=0), "`width` must be a whole number of at least 1, got 0"),
        (lambda: check_count("blocks", 1.5), "`blocks` must be a whole number of at least 1, got 1.5"),
        (lambda: ResidualMLP(hidden=-3), "`hidden` must be a whole number of at least 1, got -3"),
        (lambda: ResidualMLP(activation="elu"), "`activation` must be one of relu, tanh, silu, gelu, got 'elu'"),
        (lambda: ResidualMLP(dropout=1.0), r"`dropout` must lie in \[0, 1\), got 1.0"),
        (lambda: check_count("hidden", (32,)), r"`hidden` must be a whole number of at least 1, got \(32,\)"),
        (lambda: LSTM(layers=True), "`layers` must be a whole number of at least 1, got True"),
        (lambda: LSTM(forget_bias=math.inf), "`forget_bias` must be finite, such as 1.0, got inf"),
        (lambda: GRU(dropout=-1), r"`dropout` must lie in \[0, 1\), got -1"),
        (lambda: LSTM().init(3, None, generator()), "an LSTM needs windows: give the data set a `window`"),
        (lambda: GRU().init(3, None, generator()), "a GRU needs windows: give the data set a `window`"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
