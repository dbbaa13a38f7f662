"""The causal transformer against torch.nn.TransformerEncoder with the same weights, causality, positions, the stack."""

import math

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
from qfml.networks import Transformer
from qfml.networks.transformer import sinusoids

ACTIVATIONS = {"relu": torch.relu, "gelu": lambda x: torch.nn.functional.gelu(x, approximate="tanh")}


def torch_encoder(network, p, dtype):
    """torch.nn.TransformerEncoder with one member's weights."""
    layer = torch.nn.TransformerEncoderLayer(
        network.width, network.heads, network.hidden, dropout=0.0, activation=ACTIVATIONS[network.activation],
        batch_first=True, norm_first=True, dtype=dtype,
    )  # fmt: skip
    norm = torch.nn.LayerNorm(network.width, dtype=dtype)
    encoder = torch.nn.TransformerEncoder(layer, network.layers, norm=norm, enable_nested_tensor=False)
    state = {"norm.weight": p["norm_scale"], "norm.bias": p["norm_shift"]}
    for i in range(network.layers):
        own = f"layers.{i}."
        state[f"{own}self_attn.in_proj_weight"] = p[f"attention{i}_weight"].T
        state[f"{own}self_attn.in_proj_bias"] = p[f"attention{i}_bias"]
        for theirs, ours in (("self_attn.out_proj", "mix"), ("linear1", "inner"), ("linear2", "outer")):
            state[f"{own}{theirs}.weight"] = p[f"{ours}{i}_weight"].T
            state[f"{own}{theirs}.bias"] = p[f"{ours}{i}_bias"]
        for theirs, ours in (("norm1", "attention_norm"), ("norm2", "norm")):
            state[f"{own}{theirs}.weight"] = p[f"{ours}{i}_scale"]
            state[f"{own}{theirs}.bias"] = p[f"{ours}{i}_shift"]
    encoder.load_state_dict(state)
    return encoder


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
@pytest.mark.parametrize(
    ("width", "heads", "layers", "window", "activation"),
    [(8, 2, 1, 5, "relu"), (16, 2, 3, 7, "gelu"), (4, 1, 2, 1, "relu"), (12, 3, 2, 8, "relu")],
)
def test_output_equals_that_of_torch_encoder(width, heads, layers, window, activation, positions, dtype, tolerance):
    network = Transformer(width, heads, layers, hidden=9, positions=positions, activation=activation)
    parameters = moved_off_the_start(stack_of(network, 3, window, 2, dtype))
    x = inputs(2, 6, window, 3, dtype=dtype)
    got = network.forward(parameters, x)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(window, dtype=dtype)
    for member in range(2):
        p = {name: value[member] for name, value in parameters.items()}
        h = x[member] @ p["embed_weight"] + p["embed_bias"]
        h = h + (p["position"] if positions == "learned" else sinusoids(window, width, h))
        with torch.no_grad():
            h = torch_encoder(network, p, dtype)(h, mask=mask)[:, -1]
        expected = h @ p["head_weight"] + p["head_bias"]
        torch.testing.assert_close(got[member], expected, rtol=tolerance, atol=tolerance)


def test_sinusoids_are_those_of_the_paper():
    got = sinusoids(50, 12, torch.zeros(1, dtype=torch.float64))
    for t in (0, 1, 49):
        for j in range(6):
            angle = t / 10000 ** (2 * j / 12)
            assert float(got[t, 2 * j]) == pytest.approx(math.sin(angle), abs=1e-12)
            assert float(got[t, 2 * j + 1]) == pytest.approx(math.cos(angle), abs=1e-12)


@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_every_row_and_the_order_of_rows_matter(positions):
    network = Transformer(8, 2, 2, 16, positions)
    parameters = moved_off_the_start(stack_of(network, 2, 6, 1, torch.float64))
    x = inputs(1, 4, 6, 2).requires_grad_(True)
    output = network.forward(parameters, x)
    (gradient,) = torch.autograd.grad(output[0, 1], x)
    assert bool((gradient[0, 1].abs().sum(-1) > 0).all())
    gradient[0, 1] = 0
    assert not bool(gradient.any()), "samples do not see each other"
    swapped = x.detach()[:, :, [1, 0, 2, 3, 4, 5]]
    assert float((network.forward(parameters, swapped) - output).detach().abs().min()) > 1e-6


@pytest.mark.parametrize("rows", [16, 48])
@pytest.mark.parametrize(
    ("network", "n_features", "window"),
    [
        (Transformer(8, 2, 2, hidden=7), 3, 5),
        (Transformer(16, 1, 3, hidden=16, positions="learned", activation="gelu"), 5, 8),
        (Transformer(12, 3, 2, hidden=1), 1, 3),
        (Transformer(4, 1, 1, hidden=5, positions="learned"), 2, 1),
    ],
)
def test_a_stack_equals_each_member_alone_to_the_bit(network, n_features, window, rows):
    assert_stack_equals_solo(network, n_features, window, rows)


@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_a_trained_stack_equals_each_member_trained_alone_to_the_bit(positions):
    assert_trained_stack_equals_solo(Transformer(8, 2, 2, hidden=9, positions=positions, dropout=0.1), window=7)


def test_dropout_bytes():
    assert_uses_exactly_its_bytes(Transformer(8, 2, 2, hidden=9, dropout=0.25), 18, window=5)
    assert Transformer().dropout_units == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Transformer(width=20, heads=2), "`width` must be a multiple of 4 x `heads` = 8, got 20: take 24, or"),
        (lambda: Transformer(heads=0), "`heads` must be a whole number of at least 1, got 0"),
        (lambda: Transformer(layers=0), "`layers` must be a whole number of at least 1, got 0"),
        (lambda: Transformer(positions="rotary"), "`positions` must be sinusoidal or learned, got 'rotary'"),
        (lambda: Transformer(activation="elu"), "`activation` must be one of"),
        (lambda: Transformer(dropout=1.0), r"`dropout` must lie in \[0, 1\), got 1.0"),
        (lambda: Transformer().init(3, None, generator()), "a transformer needs windows: give the data set a `window`"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
