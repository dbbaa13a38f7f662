"""TabM against K perceptrons written out with torch.nn, its start, dropout and the stack."""

import pytest
import torch
from network_stacks import (
    assert_stack_equals_solo,
    assert_trained_stack_equals_solo,
    assert_uses_exactly_its_bytes,
    generator,
    inputs,
    moved_off_the_start,
    stack_of,
)

from qfml.errors import UserError
from qfml.networks import MLP, TabM

ACTIVATIONS = {
    "relu": torch.nn.ReLU(),
    "tanh": torch.nn.Tanh(),
    "silu": torch.nn.SiLU(),
    "gelu": torch.nn.GELU(approximate="tanh"),
}


def perceptron(network, parameters, member, k):
    """Perceptron k of one member: its adapters folded into the shared matrices."""
    p = {name: value[member] for name, value in parameters.items()}
    layers = []
    for i in range(len(network.hidden)):
        weight = p[f"weight{i}"] * p[f"enter{i}"][k, :, None] * p[f"leave{i}"][k]  # diag(r) W diag(s)
        affine = torch.nn.Linear(*weight.shape, dtype=torch.float64)
        affine.load_state_dict({"weight": weight.T, "bias": p[f"bias{i}"][k]})
        layers += [affine, ACTIVATIONS[network.activation]]
    last = torch.nn.Linear(network.hidden[-1], 1, dtype=torch.float64)
    last.load_state_dict({"weight": p["head_weight"][k][None], "bias": p["head_bias"][k : k + 1]})
    return torch.nn.Sequential(*layers, last, torch.nn.Flatten(0))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("hidden", "k"), [((7,), 3), ((6, 5, 4), 2), ((1, 3), 5)])
def test_output_is_the_mean_of_k_torch_perceptrons(hidden, k, activation):
    network = TabM(hidden=hidden, k=k, activation=activation)
    parameters = moved_off_the_start(stack_of(network, 4, None, 3, torch.float64))
    x = inputs(3, 11, 4)
    with torch.no_grad():
        each = [[perceptron(network, parameters, m, j)(x[m]) for j in range(k)] for m in range(3)]
    expected = torch.stack([torch.stack(outputs).mean(0) for outputs in each])
    torch.testing.assert_close(network.forward(parameters, x), expected, rtol=1e-12, atol=1e-13)


def test_with_adapters_at_one_and_equal_biases_it_is_the_plain_perceptron():
    plain, network = MLP(hidden=(6, 5)), TabM(hidden=(6, 5), k=3)
    theirs = stack_of(plain, 4, None, 2, torch.float64)
    ours = stack_of(network, 4, None, 2, torch.float64)
    for name, value in ours.items():
        if name.startswith(("enter", "leave")):
            ours[name] = torch.ones_like(value)
        elif name == "head_bias":
            ours[name] = theirs[name].expand(2, 3)
        else:
            ours[name] = theirs[name] if name.startswith("weight") else theirs[name][:, None].expand_as(value)
    x = inputs(2, 9, 4)
    torch.testing.assert_close(network.forward(ours, x), plain.forward(theirs, x), rtol=1e-12, atol=1e-13)


def test_perceptrons_start_apart_by_random_signs_on_the_features():
    network = TabM(hidden=(8, 8), k=16)
    p = network.init(50, None, generator())
    assert torch.equal(p["enter0"].abs(), torch.ones(16, 50))
    assert 300 < int((p["enter0"] > 0).sum()) < 500  # 800 fair coins: mean 400, deviation 14
    assert len(torch.unique(p["enter0"], dim=0)) == 16
    for name in ("leave0", "enter1", "leave1"):
        assert torch.equal(p[name], torch.ones_like(p[name]))


def test_a_window_is_read_as_one_row_oldest_first():
    network = TabM(hidden=(8,), k=2)
    parameters = stack_of(network, 3, 5, 2, torch.float64)
    x = inputs(2, 6, 5, 3)
    assert torch.equal(network.forward(parameters, x), network.forward(parameters, x.reshape(2, 6, 15)))


@pytest.mark.parametrize("rows", [16, 48])
@pytest.mark.parametrize(
    ("network", "n_features", "window"),
    [
        (TabM(hidden=(9, 7), k=3), 5, None),
        (TabM(hidden=(16,), k=16, activation="gelu"), 3, 4),
        (TabM(hidden=(1, 3), k=2, activation="tanh"), 1, None),
    ],
)
def test_a_stack_equals_each_member_alone_to_the_bit(network, n_features, window, rows):
    assert_stack_equals_solo(network, n_features, window, rows)


def test_dropout_and_a_trained_stack():
    assert_uses_exactly_its_bytes(TabM(hidden=(6, 4), k=3, dropout=0.25), 30)
    assert_trained_stack_equals_solo(TabM(hidden=(9, 7), k=3, dropout=0.1))
    assert TabM().dropout_units == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TabM(k=1), "`k` must be a whole number of at least 2, got 1"),
        (lambda: TabM(hidden=()), "`hidden` must be a tuple of one or more positive widths"),
        (lambda: TabM(activation="elu"), "`activation` must be one of"),
        (lambda: TabM(dropout=1.0), r"`dropout` must lie in \[0, 1\), got 1.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
