"""A user's own module as a network: against the module itself, and refused where a member would not be one."""

import pytest
import torch
from torch import nn

import qfml
from qfml.networks import Dropout, Module


def mlp():
    return nn.Sequential(nn.Linear(5, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 1))


def with_dropout():
    return nn.Sequential(nn.Linear(5, 64), nn.Dropout(0.25), nn.Linear(64, 1))


class Recurrent(nn.Module):
    def __init__(self, kind=nn.LSTM, dropout=0.0):
        super().__init__()
        self.recurrent = kind(5, 8, num_layers=2, batch_first=True, dropout=dropout)
        self.last = nn.Linear(8, 1)

    def forward(self, x):
        return self.last(self.recurrent(x)[0][:, -1])


class TwiceDropped(nn.Module):
    """One dropout module, used twice."""

    def __init__(self):
        super().__init__()
        self.dropout, self.unit = nn.Dropout(0.5), nn.Parameter(torch.ones(1))

    def forward(self, x):
        first = self.dropout(torch.ones_like(x)) * self.unit
        return torch.cat([first, self.dropout(torch.ones_like(x))], dim=1)


def drawn(network, members=3):
    generator = torch.Generator().manual_seed(1)
    each = [network.init(5, None, generator) for _ in range(members)]
    return {name: torch.stack([one[name] for one in each]) for name in each[0]}


def rows(*shape):
    return torch.randn(*shape, 5, generator=torch.Generator().manual_seed(2))


def random_bytes(members, batch, seed=3):
    shape = (members, batch, 8)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_a_stack_computes_what_each_module_computes():
    network, x = Module(mlp), rows(3, 32)
    parameters = drawn(network)
    output = network.forward(parameters, x)
    for i in range(3):
        own = network.module({name: value[i] for name, value in parameters.items()})
        torch.testing.assert_close(output[i], own(x[i])[:, 0], rtol=1e-5, atol=1e-6)
    assert network.stacks(x[0])


def test_parameters_are_those_torch_draws_under_the_seed_and_the_global_state_stays():
    generator = torch.Generator().manual_seed(4)
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        expected = dict(mlp().named_parameters())
    before = torch.random.get_rng_state()
    own = Module(mlp).init(5, None, torch.Generator().manual_seed(4))
    Module(mlp).forward({name: value[None] for name, value in own.items()}, rows(1, 16))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert list(own) == list(expected)
    assert all(torch.equal(own[name], expected[name]) for name in own)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_without_a_batching_rule_members_run_one_by_one_and_it_is_said_once(kind):
    def build():
        return Recurrent(kind)

    network, x = Module(build), rows(3, 16, 7)
    with pytest.warns(UserWarning, match=rf"build is trained member by member.*{kind.__name__.lower()}") as told:
        assert not network.stacks(x[0])
    assert len(told) == 1
    parameters = {name: value.requires_grad_() for name, value in drawn(network).items()}
    output = network.forward(parameters, x)
    gradients = torch.autograd.grad(output.sum(), list(parameters.values()))
    for i in range(3):
        own = network.module({name: value[i] for name, value in parameters.items()})
        expected = own(x[i])[:, 0]
        assert torch.equal(output[i], expected)
        for found, wanted in zip(gradients, torch.autograd.grad(expected.sum(), list(own.parameters()))):
            torch.testing.assert_close(found[i], wanted, rtol=1e-5, atol=1e-6)


def test_control_flow_that_depends_on_data_runs_one_by_one():
    class Root(nn.Module):
        """A fixed point, iterated until it stands."""

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 1)

        def forward(self, x):
            drive, z = self.layer(x), torch.zeros(len(x), 1)
            while float((torch.tanh(0.5 * z + drive) - z).detach().abs().max()) > 1e-6:
                z = torch.tanh(0.5 * z + drive)
            return z

    network = Module(Root)
    with pytest.warns(UserWarning, match="Root is trained member by member, not as a stack: vmap"):
        assert not network.stacks(rows(16))
    z = network.forward(drawn(network), rows(3, 16))
    drive = torch.einsum("mi,mbi->mb", drawn(network)["layer.weight"][:, 0], rows(3, 16))
    drive = drive + drawn(network)["layer.bias"]
    torch.testing.assert_close(z, torch.tanh(0.5 * z + drive), rtol=0, atol=2e-6)


def test_dropout_has_its_law_and_is_off_in_use():
    network = Module(TwiceDropped)
    parameters = {"unit": torch.ones(4, 1)}
    mask = network.forward(parameters, rows(4, 4096), Dropout(random_bytes(4, 4096)))
    assert set(mask.unique().tolist()) == {0.0, 2.0}
    kept = (mask > 0).double()
    sigma = 0.5 / kept.numel() ** 0.5
    assert abs(float(kept.mean()) - 0.5) < 4 * sigma
    flat = kept.flatten(0, 1) - 0.5  # units, and the two calls of one module, are independent
    correlation = (flat.T @ flat) / len(flat) * 4 - torch.eye(10)
    assert float(correlation.abs().max()) < 5 / len(flat) ** 0.5
    neighbours = (flat[1:] * flat[:-1]).mean(0) * 4
    assert float(neighbours.abs().max()) < 5 / len(flat) ** 0.5
    assert bool((network.forward(parameters, rows(4, 16)) == 1).all())


def test_dropout_of_a_member_depends_neither_on_the_stack_nor_on_the_micro_batch():
    network, x, drawn_bytes = Module(with_dropout), rows(3, 32), random_bytes(3, 32)
    parameters = drawn(network)
    whole = network.forward(parameters, x, Dropout(drawn_bytes))
    assert not torch.allclose(whole, network.forward(parameters, x))
    for part in (slice(0, 16), slice(16, 32)):
        piece = network.forward(parameters, x[:, part], Dropout(drawn_bytes)[part])
        torch.testing.assert_close(piece, whole[:, part], rtol=1e-5, atol=1e-6)
    for i in range(3):
        own = {name: value[i : i + 1] for name, value in parameters.items()}
        alone = network.forward(own, x[i : i + 1], Dropout(drawn_bytes[i : i + 1]))
        torch.testing.assert_close(alone[0], whole[i], rtol=1e-5, atol=1e-6)


def test_a_parameter_that_is_not_used_has_gradient_0():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(5, 1), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    parameters = {name: value.requires_grad_() for name, value in drawn(Module(Spare)).items()}
    output = Module(Spare).forward(parameters, rows(3, 16))
    gradients = dict(zip(parameters, torch.autograd.grad(output.sum(), list(parameters.values()))))
    assert not gradients["spare.weight"].any()
    torch.testing.assert_close(gradients["used.weight"][:, 0], rows(3, 16).sum(1), rtol=1e-5, atol=1e-5)


def test_tied_weights_and_constant_buffers():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.there, self.back = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)
            self.back.weight = self.there.weight
            self.register_buffer("scale", torch.arange(5.0))

        def forward(self, x):
            return (self.back(self.there(x)) * self.scale).sum(1)

    parameters = drawn(Module(Tied))
    assert list(parameters) == ["there.weight"]
    weight = parameters["there.weight"].mT
    expected = (rows(3, 16) @ weight @ weight * torch.arange(5.0)).sum(2)
    torch.testing.assert_close(Module(Tied).forward(parameters, rows(3, 16)), expected, rtol=1e-5, atol=1e-5)


class Refused(nn.Module):
    """A linear map, and what `extra` does beside it."""

    def __init__(self, extra):
        super().__init__()
        self.layer, self.extra = nn.Linear(5, 1), extra
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        return self.extra(self, self.layer(x))


def counts(module, output):
    module.count.add_(1)
    return output


def counts_anew(module, output):
    module.count = module.count + 1
    return output


def batch_mean(module, output):
    return output - output.mean(0)


def noise(module, output):
    return output + torch.randn_like(output)


def functional_dropout(module, output):
    return torch.nn.functional.dropout(output, 0.5, module.training)


def louder_in_training(module, output):
    return 2 * output if module.training else output


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (counts, "the buffer 'count' of .* changes in training.*LayerNorm"),
        (counts_anew, "the buffer 'count' of .* changes in training.*LayerNorm"),
        (batch_mean, "depends on the other rows of the batch.*LayerNorm or GroupNorm"),
        (noise, "draws random numbers in training"),
        (functional_dropout, "put torch.nn.Dropout modules in their place"),
        (louder_in_training, "other outputs in training mode than in evaluation mode"),
        (lambda module, output: (output, output), r"must return a tensor of shape \(rows,\).*it returned tuple"),
        (lambda module, output: output.mean(), r"for 16 rows it returned \(\)"),
    ],
)
def test_behaviour_that_no_member_can_have_is_refused(extra, message):
    with pytest.raises(qfml.errors.UserError, match=message):
        Module(lambda: Refused(extra)).stacks(rows(16))


BUILT = nn.Linear(5, 1)


def frozen():
    layer = nn.Linear(5, 1)
    return layer.requires_grad_(False)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (nn.Linear(5, 1), r"got a module that is built already.*lambda: Linear\(...\)"),
        (lambda: 3, "returned int"),
        (nn.Tanh, "has no parameters"),
        (lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)), "the layer '1' is a BatchNorm1d"),
        (lambda: nn.Linear(5, 1).double(), "'weight' must be float32 on the cpu, got torch.float64"),
        (frozen, r"has requires_grad=False: freeze it by .*ParameterGroup\('weight', lr_factor=0.0\)"),
        (lambda: nn.LazyLinear(1), "has no shape yet"),
        (lambda: BUILT, "must build a new module each time"),
        (lambda: nn.Linear(5, int(torch.randint(1, 10**6, ()))), "the same architecture each time"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_factories_that_build_no_member_are_refused(factory, message):
    with pytest.raises(qfml.errors.UserError, match=message):
        Module(factory).init(5, None, torch.Generator().manual_seed(0))


def test_a_buffer_that_differs_between_seeds_and_random_layers_are_refused():
    class Fourier(nn.Module):
        def __init__(self, generator=None):
            super().__init__()
            self.layer = nn.Linear(8, 1)
            self.register_buffer("frequency", torch.randn(5, 8, generator=generator))

        def forward(self, x):
            return self.layer(torch.cos(x @ self.frequency))

    with pytest.raises(qfml.errors.UserError, match=r"the buffer 'frequency' of .* differs from seed to seed"):
        Module(Fourier).init(5, None, torch.Generator().manual_seed(0))
    fixed = Module(lambda: Fourier(torch.Generator().manual_seed(7)))
    assert fixed.stacks(rows(16))
    assert fixed.init(5, None, torch.Generator().manual_seed(0))
    with pytest.raises(qfml.errors.UserError, match="set `dropout` of LSTM, GRU or MultiheadAttention to 0"):
        Module(lambda: Recurrent(dropout=0.5)).stacks(rows(16, 7))


def test_inputs_and_outputs_that_do_not_fit_are_refused():
    network = Module(lambda: nn.Linear(3, 1))
    with pytest.raises(qfml.errors.UserError, match=r"does not take features \('rows', 5\)"):
        network.stacks(rows(16))
    with pytest.raises(qfml.errors.UserError, match="has 1 outputs a row, but the loss needs 3"):
        Module(mlp).stacks(rows(16), n_outputs=3)


def test_equal_factories_are_one_network():
    assert Module(mlp) == Module(mlp)
    assert len({Module(mlp), Module(mlp), Module(with_dropout)}) == 2
    assert repr(Module(mlp)).endswith(".mlp)")
    assert Module(mlp).identity["factory"].endswith(".mlp")
    assert Module(mlp).identity != Module(with_dropout).identity
