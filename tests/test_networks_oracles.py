"""Networks against torch.nn modules with the same weights, causality, the stack, initial weights and dropout."""

import math

import numpy as np
import pytest
import torch
from network_stacks import assert_stack_equals_solo, generator, inputs, moved_off_the_start, stack_of

from qfml.errors import UserError
from qfml.networks import GRU, LSTM, MLP, NETWORKS, TCN, ConvexMLP, Dropout, MonotoneMLP, Network, ResidualMLP
from qfml.networks.base import ACTIVATIONS, check_hidden

F = torch.nn.functional
TORCH_ACTIVATIONS = {
    "relu": torch.nn.ReLU(),
    "tanh": torch.nn.Tanh(),
    "silu": torch.nn.SiLU(),
    "gelu": torch.nn.GELU(approximate="tanh"),
}


def sequential(network, parameters, member):
    """The same network as torch.nn.Sequential."""
    layers, inputs_ = [], parameters["weight0"].shape[1]
    for i, width in enumerate(network.hidden):
        affine = torch.nn.Linear(inputs_, width, dtype=torch.float64)
        affine.load_state_dict({"weight": parameters[f"weight{i}"][member].T, "bias": parameters[f"bias{i}"][member]})
        layers.append(affine)
        if network.layer_norm:
            norm = torch.nn.LayerNorm(width, dtype=torch.float64)
            norm.load_state_dict({"weight": parameters[f"scale{i}"][member], "bias": parameters[f"shift{i}"][member]})
            layers.append(norm)
        layers.append(TORCH_ACTIVATIONS[network.activation])
        inputs_ = width
    last = torch.nn.Linear(inputs_, 1, dtype=torch.float64)
    last.load_state_dict({"weight": parameters["head_weight"][member][None], "bias": parameters["head_bias"][member]})
    return torch.nn.Sequential(*layers, last, torch.nn.Flatten(0))


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("hidden", [(1,), (7,), (6, 5, 4)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_equals_torch_sequential(activation, hidden, layer_norm):
    network = MLP(hidden=hidden, activation=activation, layer_norm=layer_norm)
    parameters = moved_off_the_start(stack_of(network, 4, None, 3, torch.float64))
    x = inputs(3, 11, 4)
    got = network.forward(parameters, x)
    with torch.no_grad():
        expected = torch.stack([sequential(network, parameters, member)(x[member]) for member in range(3)])
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)


def test_mlp_reads_a_window_as_one_row_oldest_first():
    network = MLP(hidden=(8,))
    parameters = stack_of(network, 3, 5, 2, torch.float64)
    x = inputs(2, 6, 5, 3)
    assert parameters["weight0"].shape == (2, 15, 8)
    assert torch.equal(network.forward(parameters, x), network.forward(parameters, x.reshape(2, 6, 15)))


def residual_blocks(network, parameters, member, x):
    """A temporal convolutional network of torch.nn.functional.conv1d on one member's windows (B, L, F)."""
    activation = TORCH_ACTIVATIONS[network.activation]
    x = x.transpose(1, 2)  # conv1d wants channels before time
    x = F.pad(x, (network.receptive_field - x.shape[2], 0))
    for level, width in enumerate(network.channels):
        channels, skip = x.shape[1], x
        for half, fan in (("a", channels), ("b", width)):
            # taps lie oldest first, each with all its input channels: (kernel * fan, width) -> (width, fan, kernel)
            weight = parameters[f"weight{level}{half}"][member].reshape(network.kernel, fan, width).permute(2, 1, 0)
            x = activation(F.conv1d(x, weight, parameters[f"bias{level}{half}"][member], dilation=2**level))
        skip = skip[:, :, skip.shape[2] - x.shape[2] :]
        if channels != width:
            weight = parameters[f"weight{level}skip"][member].T[:, :, None]
            skip = F.conv1d(skip, weight, parameters[f"bias{level}skip"][member])
        x = activation(x + skip)
    assert x.shape[2] == 1, "the receptive field is used up exactly"
    return x[:, :, 0] @ parameters["head_weight"][member] + parameters["head_bias"][member]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("channels", "kernel", "window"),
    [((4,), 2, 3), ((4, 4), 3, 13), ((5, 3), 2, 7), ((3, 3, 6), 3, 20), ((2, 2), 4, 1)],
)
def test_tcn_equals_conv1d_blocks(channels, kernel, window, activation):
    network = TCN(channels=channels, kernel=kernel, activation=activation)
    parameters = stack_of(network, 3, window, 2, torch.float64)
    x = inputs(2, 5, window, 3)
    expected = torch.stack([residual_blocks(network, parameters, member, x[member]) for member in range(2)])
    torch.testing.assert_close(network.forward(parameters, x), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("levels", "kernel"), [(1, 2), (1, 5), (2, 3), (3, 2), (3, 3), (4, 2)])
def test_receptive_field_is_what_the_output_depends_on(levels, kernel):
    network = TCN(channels=(3,) * levels, kernel=kernel, activation="tanh")
    field = network.receptive_field
    assert field == 1 + 2 * (kernel - 1) * (2**levels - 1)  # Bai et al., two convolutions a block
    parameters = stack_of(network, 2, field, 1, torch.float64)
    x = inputs(1, 4, field, 2).requires_grad_(True)
    (gradient,) = torch.autograd.grad(network.forward(parameters, x).sum(), x)
    assert bool((gradient[0].abs().sum(-1) > 0).all()), "every row of the receptive field matters"


def test_rows_before_the_window_count_as_zero():
    network = TCN(channels=(4, 4), kernel=3, activation="tanh")
    parameters = stack_of(network, 2, 6, 1, torch.float64)
    x = inputs(1, 5, 6, 2)
    padded = F.pad(x, (0, 0, network.receptive_field - 6, 0))
    assert torch.equal(network.forward(parameters, x), network.forward(parameters, padded))
    padded[:, :, 0] += 1  # the oldest row of the field is read
    assert not torch.equal(network.forward(parameters, x), network.forward(parameters, padded))


def test_tcn_is_causal():
    # the output at a row, from the window that ends there, equals the output of a causal network run over the series
    network = TCN(channels=(3, 5), kernel=2, activation="tanh")
    field = network.receptive_field
    parameters = stack_of(network, 2, field, 1, torch.float64)
    series = inputs(1, 1, 30, 2)[0, 0]
    windows = lambda of: torch.stack([of[end - field + 1 : end + 1] for end in range(field - 1, 30)])[None]  # noqa: E731
    before = network.forward(parameters, windows(series))[0]
    changed = series.clone()
    changed[20] += 1
    moved = (network.forward(parameters, windows(changed))[0] != before).nonzero().flatten() + field - 1
    assert moved.tolist() == list(range(20, min(20 + field, 30)))


CASES = {
    "mlp": (MLP(hidden=(33, 17)), 7, None),
    "mlp norm": (MLP(hidden=(19, 5), layer_norm=True, activation="gelu"), 7, None),
    "mlp silu window": (MLP(hidden=(9,), activation="silu"), 3, 4),
    "mlp tanh": (MLP(hidden=(19,), activation="tanh"), 5, None),
    "width 1": (MLP(hidden=(1, 3), activation="tanh"), 5, None),
    "one feature": (MLP(hidden=(16, 5)), 1, None),
    "tcn": (TCN(channels=(6, 5), kernel=3), 3, 10),
    "tcn of width 1": (TCN(channels=(1, 4), kernel=2), 1, 7),
    "residual": (ResidualMLP(width=9, blocks=2, hidden=13), 7, None),
    "residual window": (ResidualMLP(width=16, blocks=1, hidden=5, activation="gelu", layer_norm=False), 3, 4),
    "monotone": (MonotoneMLP(increasing=(1,), decreasing=(0, 3), hidden=(9, 7)), 5, None),
    "monotone relu window": (MonotoneMLP(decreasing=(2,), hidden=(16, 5), activation="relu"), 3, 4),
    "monotone in all": (MonotoneMLP(increasing=(0, 1), hidden=(7,)), 2, None),
    "monotone in one": (MonotoneMLP(increasing=(0,), hidden=(1, 3)), 1, None),
    "convex": (ConvexMLP(convex=(1, 3), hidden=(9, 7)), 5, None),
    "convex relu window": (ConvexMLP(convex=(2,), hidden=(16, 5), activation="relu"), 3, 4),
    "convex in all": (ConvexMLP(convex=(0, 1), hidden=(7, 7)), 2, None),
    "convex in one": (ConvexMLP(convex=(0,), hidden=(1, 3)), 1, None),
    "lstm": (LSTM(hidden=8), 3, 6),
    "lstm of odd widths": (LSTM(hidden=7, layers=2), 5, 4),
    "lstm of width 1": (LSTM(hidden=1), 1, 3),
    "gru": (GRU(hidden=8), 3, 6),
    "gru of odd widths": (GRU(hidden=7, layers=2), 5, 4),
    "gru of width 1": (GRU(hidden=1), 1, 3),
    "tcn gelu": (TCN(channels=(4, 4), kernel=2, activation="gelu"), 3, 7),
}


@pytest.mark.parametrize("rows", [16, 48, 64])  # the engine fills batches up to whole cache lines
@pytest.mark.parametrize("name", CASES)
def test_a_stack_equals_each_member_alone_to_the_bit(name, rows):
    network, n_features, window = CASES[name]
    assert_stack_equals_solo(network, n_features, window, rows)


@pytest.mark.parametrize("name", CASES)
def test_forward_changes_nothing_and_init_is_a_function_of_the_generator(name):
    network, n_features, window = CASES[name]
    state = torch.random.get_rng_state()
    first, again, other = (network.init(n_features, window, generator(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)
    assert torch.equal(torch.random.get_rng_state(), state)
    copies = {key: value.clone() for key, value in first.items()}
    shape = (n_features,) if window is None else (window, n_features)
    network.forward({key: value[None] for key, value in first.items()}, inputs(1, 3, *shape, dtype=torch.float32))
    assert all(torch.equal(first[key], copies[key]) for key in first)


def assert_uniform(values, fan_in):
    """Uniform on +-1/sqrt(fan_in): inside the bounds, near them, and of the right mean and variance."""
    bound = fan_in**-0.5
    assert float(values.abs().max()) <= bound
    assert float(values.abs().max()) > bound * (1 - 20 / values.numel())  # P(all below) < exp(-20)
    n = values.numel()
    assert abs(float(values.mean())) < 5 * bound / math.sqrt(3 * n)
    # variance of the square of a uniform on +-b: 4 b^4 / 45
    assert float(values.square().mean()) == pytest.approx(bound**2 / 3, abs=5 * bound**2 * math.sqrt(4 / 45 / n))


def test_initial_weights_are_distributed_as_those_of_torch_linear():
    mlp = MLP(hidden=(400, 300), layer_norm=True)
    p = mlp.init(50, 2, generator())
    for name, fan_in in (("weight0", 100), ("bias0", 100), ("weight1", 400), ("bias1", 400), ("head_weight", 300)):
        assert_uniform(p[name], fan_in)
    assert float(p["head_bias"].abs()) <= 300**-0.5
    for i, width in enumerate((400, 300)):
        assert torch.equal(p[f"scale{i}"], torch.ones(width))
        assert torch.equal(p[f"shift{i}"], torch.zeros(width))
    torch_linear = torch.nn.Linear(100, 400).weight.detach()
    assert float(torch_linear.abs().max()) == pytest.approx(float(p["weight0"].abs().max()), rel=1e-3)


def test_initial_weights_of_a_convolution_count_its_taps():
    p = TCN(channels=(200, 100), kernel=4).init(25, 5, generator())
    fans = {"weight0a": 100, "bias0a": 100, "weight0b": 800, "bias0b": 800, "weight0skip": 25, "bias0skip": 25}
    fans |= {"weight1a": 800, "weight1b": 400, "weight1skip": 200, "head_weight": 100}
    for name, fan_in in fans.items():
        assert_uniform(p[name], fan_in)
    assert "weight1skip" not in TCN(channels=(8, 8)).init(25, 5, generator()), "equal widths need no map on the skip"
    assert "weight0skip" not in TCN(channels=(8, 8)).init(8, 5, generator())


@pytest.mark.parametrize("probability", [0.001, 1 / 256, 0.1, 0.25, 0.5, 0.9, 255 / 256])
def test_dropout_keeps_the_expectation_exactly(probability):
    # every byte once: the share that is dropped is the rounded probability, and the mean stays
    every_byte = torch.arange(256, dtype=torch.uint8).view(1, 256, 1)
    x = torch.ones(1, 256, 1, dtype=torch.float64)
    kept = Dropout(every_byte)(x, probability)
    assert int((kept == 0).sum()) == round(256 * probability)
    assert float(kept.mean()) == pytest.approx(1, rel=1e-12)


def test_each_member_has_its_own_probability_of_dropout():
    every_byte = torch.arange(256, dtype=torch.uint8).view(1, 256, 1).expand(3, -1, -1)
    x, probabilities = torch.ones(3, 256, 1), (0.1, 0.25, 0.9)
    thresholds = torch.tensor([round(256 * p) for p in probabilities], dtype=torch.uint8)
    kept = Dropout(every_byte, thresholds)(x, 0.5)
    for i, probability in enumerate(probabilities):
        assert torch.equal(kept[i], Dropout(every_byte[:1])(x[:1], probability)[0])
        assert torch.equal(Dropout(every_byte, thresholds).member(i)(x[:1], 0.5)[0], kept[i])


def test_dropout_takes_other_bytes_for_each_layer_and_the_same_for_a_whole_channel():
    random_bytes = torch.randint(0, 256, (2, 50, 7), generator=generator(), dtype=torch.uint8)
    dropout = Dropout(random_bytes)
    first = dropout(torch.ones(2, 50, 3), 0.5)
    second = dropout(torch.ones(2, 50, 9, 4), 0.5)
    np.testing.assert_array_equal(first.numpy(), 2.0 * (random_bytes[:, :, :3] >= 128).numpy())
    assert torch.equal(second, (2.0 * (random_bytes[:, :, 3:] >= 128))[:, :, None].expand(2, 50, 9, 4))


@pytest.mark.parametrize(
    ("network", "units", "window"),
    [(MLP(hidden=(6, 4), dropout=0.25), 10, None), (TCN(channels=(4, 4), kernel=2, dropout=0.25), 16, 5)],
)
def test_a_network_uses_exactly_the_bytes_that_it_asks_for(network, units, window):
    assert network.dropout_units == units
    shape = (3,) if window is None else (window, 3)
    x = inputs(1, 1, *shape, dtype=torch.float32).repeat_interleave(500, dim=1)  # the same row, 500 times
    parameters = stack_of(network, 3, window, 1)
    dropout = Dropout(torch.randint(0, 256, (1, 500, units), generator=generator(), dtype=torch.uint8))
    outputs = network.forward(parameters, x, dropout)
    assert dropout.used == units
    assert len(torch.unique(outputs)) > 20, "each row has a mask of its own"
    assert len(torch.unique(network.forward(parameters, x))) == 1, "without bytes nothing is dropped"


def test_dropout_before_the_head_keeps_the_mean_output():
    # one hidden layer: the output is linear in the dropped units, so its mean over masks is the undropped output
    network = MLP(hidden=(40,), dropout=0.3)
    parameters = stack_of(network, 3, None, 1)
    rows = 20_000
    x = inputs(1, 1, 3, dtype=torch.float32).expand(1, rows, 3)
    random_bytes = torch.randint(0, 256, (1, rows, 40), generator=generator(), dtype=torch.uint8)
    outputs = network.forward(parameters, x, Dropout(random_bytes))[0]
    expected = float(network.forward(parameters, x[:, :1]))
    assert abs(float(outputs.mean()) - expected) < 4 * float(outputs.std()) / math.sqrt(rows)
    assert float(outputs.std()) > 0.01


def test_without_dropout_no_bytes_are_asked_for():
    assert MLP(hidden=(6, 4)).dropout_units == 0
    assert TCN(channels=(6, 4)).dropout_units == 0


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_registered_network_keeps_the_contract(kind):
    settings = {"monotone_mlp": {"increasing": (1,)}, "convex_mlp": {"convex": (1,)}}.get(kind, {})
    network = NETWORKS[kind](**settings)
    assert isinstance(network, Network)
    assert network.kind == kind
    assert hash(network) == hash(NETWORKS[kind](**settings))
    parameters = stack_of(network, 4, 6, 3)
    assert all(p.dtype == torch.float32 for p in parameters.values())
    assert network.forward(parameters, inputs(3, 9, 6, 4, dtype=torch.float32)).shape == (3, 9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP(hidden=()), r"`hidden` must be a tuple of one or more positive widths, such as .*, got \(\)"),
        (lambda: MLP(hidden=(32, 0)), r"`hidden` must be .*, got \(32, 0\)"),
        (lambda: check_hidden("hidden", [32, 32], "relu", 0.0), r"`hidden` must be a tuple .*, got \[32, 32\]"),
        (lambda: check_hidden("hidden", 32, "relu", 0.0), "`hidden` must be a tuple .*, got 32"),
        (lambda: MLP(activation="sigmoid"), "`activation` must be one of relu, tanh, silu, gelu, got 'sigmoid'"),
        (lambda: MLP(dropout=1.0), r"`dropout` must lie in \[0, 1\), got 1.0"),
        (lambda: MLP(dropout=-0.1), "`dropout` must lie in"),
        (lambda: MLP(dropout=math.nan), "`dropout` must lie in"),
        (lambda: MLP(dropout=0.999), "`dropout` is rounded to a multiple of 1/256, and 0.999 would become 1"),
        (lambda: TCN(channels=()), "`channels` must be a tuple"),
        (lambda: TCN(kernel=1), "`kernel` must be at least 2 rows, got 1"),
        (lambda: TCN(dropout=1.5), "`dropout` must lie in"),
        (lambda: TCN().init(3, None, generator()), "a temporal convolution needs windows"),
        (
            lambda: TCN(channels=(4,), kernel=2).init(3, 4, generator()),
            "`window` is 4 rows but the network sees only the last 3",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
