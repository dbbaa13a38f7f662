"""A user's own `torch.nn.Module` as a network: built by a factory, one module's code run for every member."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from qfml.errors import UserError
from qfml.networks.base import Dropout, Parameters
from qfml.networks.row_dropout import KEY_BYTES, dropout_keys, replace_dropout

ModuleFactory = Callable[[], nn.Module]
_SMALL = 1e-4  # by how much an output may change, relative to the largest, and still count as the same


class Module:
    """A network of the user's own making: `factory` builds it, as often as there are members.

    The factory is called without arguments, once a member, while torch's random state is that of the member's seed; the
    global state is put back. The module reads features (rows, F), or windows (rows, L, F), and returns (rows,),
    (rows, 1) or (rows, outputs). Parameters keep the names that the module gives them.

    Stacked members run through `torch.func.vmap` and agree with each member alone to 1e-5 over a few steps, not to the
    last bit. A module with an operation that has no batching rule (LSTM, GRU) or with control flow that depends on data
    is trained member by member, after one warning that says why; then the results are the same to the last bit.

    `torch.nn.Dropout` draws its masks from the member's own stream, row by row: they depend neither on the stack nor on
    micro-batches. A parameter that the output does not depend on has gradient 0. What cannot be kept apart is refused:
    buffers that change (the running statistics of BatchNorm), outputs that depend on the other rows of the batch, other
    random numbers in training, and other behaviour in training than in use.

    A factory is code, not data: a `Module` stands in no YAML file, and its fits are not saved by `save_fits`. Keep
    `fit.named_parameters()`, or the module that `module` makes of them.

    Args:
        factory: a function, or a class, that builds a new `torch.nn.Module`.

    Raises:
        UserError: `factory` is not such a function, or builds something that cannot be trained here.

    Example:
        >>> network = Module(lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)))
        >>> parameters = network.init(3, None, torch.Generator().manual_seed(0))
        >>> {name: tuple(value.shape) for name, value in parameters.items()}
        {'0.weight': (8, 3), '0.bias': (8,), '2.weight': (1, 8), '2.bias': (1,)}
    """

    kind: ClassVar[str] = "module"

    def __init__(self, factory: ModuleFactory) -> None:
        if isinstance(factory, nn.Module):
            raise UserError(
                "`factory` must build a module, got a module that is built already: its members would share their "
                f"parameters; give a function, such as lambda: {type(factory).__name__}(...)"
            )
        if not callable(factory):
            raise UserError(f"`factory` must be a function that builds a torch.nn.Module, got {factory!r}")
        try:
            hash(factory)
        except TypeError:
            raise UserError(f"`factory` must be hashable, got {factory!r}; wrap it into a function") from None
        self.factory = factory
        self._built: _Runner | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Module) and self.factory == other.factory

    def __hash__(self) -> int:
        return hash((Module, self.factory))

    def __repr__(self) -> str:
        return f"Module({_name(self.factory)})"

    def __reduce__(self) -> tuple[type, tuple[ModuleFactory]]:
        return Module, (self.factory,)

    @property
    def _runner(self) -> _Runner:
        if self._built is None:
            self._built = _shared(self.factory)
        return self._built

    @property
    def identity(self) -> dict[str, Any]:
        """What is known of the factory's code: its name, and name and shape of all that the module holds."""
        template = self._runner.template
        shapes = {name: list(value.shape) for name, value in template.state_dict().items()}
        return {"kind": self.kind, "factory": _name(self.factory), "module": str(template), "state": shapes}

    @property
    def dropout_units(self) -> int:
        """Random bytes of a row, from which all its masks are made; 0 without dropout."""
        return KEY_BYTES if self._runner.dropouts else 0

    def init(
        self, n_features: int, window: int | None, generator: torch.Generator, n_outputs: int = 1
    ) -> dict[str, Tensor]:
        """Parameters of one member: those of a module that the factory builds under a seed drawn from `generator`.

        The shapes are the factory's: how many features and outputs it was built for shows when it is given rows.
        """
        seed = int(torch.randint(2**62, (), generator=generator))
        module, template = _made(self.factory, seed), self._runner
        _check_alike(module, template)
        return {name: value.detach().clone() for name, value in module.named_parameters()}

    def forward(self, parameters: Parameters, x: Tensor, dropout: Dropout | None = None) -> Tensor:
        """Outputs (M, B), or (M, B, K) of a module with K > 1 outputs."""
        return self._runner.forward(parameters, x, dropout)

    def stacks(self, x: Tensor, n_outputs: int = 1) -> bool:
        """Whether members can run as one stack; judged on one member's features `x`, (B, F) or (B, L, F)."""
        runner = self._runner
        reason = runner.examine(x)
        if runner.n_outputs != n_outputs:
            raise UserError(
                f"the module of {runner.name} has {runner.n_outputs} outputs a row, but the loss needs {n_outputs}: "
                "build it with as many"
            )
        return reason is None

    def module(self, parameters: Parameters) -> nn.Module:
        """A module of one member's `parameters`, in evaluation mode: `fit.network.module(fit.named_parameters())`."""
        module = _made(self.factory, 0)
        with torch.no_grad():
            for name, value in module.named_parameters():
                value.copy_(parameters[name])
        return module.eval()


def as_network(network: Any) -> Any:
    """A bare factory as a `Module`; anything else as it is."""
    if isinstance(network, type):
        return Module(network) if issubclass(network, nn.Module) else network
    factory: Any = network
    return Module(factory) if callable(network) and not hasattr(network, "kind") else network


class _Runner:
    """One built module, as the code that runs any member's parameters; what was found out about it."""

    def __init__(self, factory: ModuleFactory) -> None:
        self.name = _name(factory)
        self.template = _made(factory, 0)
        _check_trainable(self.template)
        self.shapes = {name: tuple(value.shape) for name, value in self.template.named_parameters()}
        self.buffers = dict(self.template.named_buffers())
        self.dropouts = replace_dropout(self.template)
        self.template.train()  # always: `examine` refuses a module that is another one in evaluation mode
        self.examined = False
        self.n_outputs = 0
        self.alone: str | None = None  # why members cannot be stacked
        self.unused: tuple[str, ...] = ()  # parameters that may be without a gradient
        self._on: dict[torch.device, dict[str, Tensor]] = {}

    def forward(self, parameters: Parameters, x: Tensor, dropout: Dropout | None) -> Tensor:
        self.examine(x[0])
        keys = None if dropout is None or not self.dropouts else dropout_keys(dropout)
        buffers = self._on.setdefault(x.device, {name: value.to(x.device) for name, value in self.buffers.items()})
        members = len(x)
        if members == 1 or self.alone:
            own = zip(*(value.unbind(0) for value in parameters.values()), strict=True)
            each = [dict(zip(parameters, values, strict=True)) for values in own]
            parts = [self.one(each[i], buffers, x[i], None if keys is None else keys[i]) for i in range(members)]
            output = torch.stack(parts)
        else:
            output = self._stacked(parameters, buffers, x, keys)
        if not torch.is_grad_enabled():
            return output
        for name in self.unused:  # 0 times an element: a gradient of 0 where there would be none
            nothing = 0 * parameters[name].flatten(1)[:, 0]
            output = output + nothing.view(-1, *(1,) * (output.ndim - 1))
        return output

    def _stacked(self, parameters: Parameters, buffers: Parameters, x: Tensor, keys: Tensor | None) -> Tensor:
        def one(own: dict[str, Tensor], rows: Tensor, key: Tensor | None) -> Tensor:
            return self.one(own, buffers, rows, key)

        return vmap(one, in_dims=(0, 0, None if keys is None else 0))(dict(parameters), x, keys)

    def one(self, parameters: Parameters, buffers: Parameters, x: Tensor, keys: Tensor | None) -> Tensor:
        """Outputs (B,) or (B, K) of one member."""
        state = {**parameters, **buffers}
        self._dropout(state, keys)
        output = functional_call(self.template, state, (x,))
        if not isinstance(output, Tensor) or output.ndim not in (1, 2) or len(output) != len(x):
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise UserError(
                f"the module of {self.name} must return a tensor of shape (rows,), (rows, 1) or (rows, outputs); for "
                f"{len(x)} rows it returned {got}"
            )
        return output[:, 0] if output.ndim == 2 and output.shape[1] == 1 else output

    def _dropout(self, state: dict[str, Tensor], keys: Tensor | None) -> None:
        """Switch the dropout layers on by giving them keys, or off."""
        for path, layer in self.dropouts.items():
            layer.calls, layer.active = 0, keys is not None
            if keys is not None:
                state[f"{path}.keys"] = keys

    def examine(self, x: Tensor) -> str | None:
        """Find out, once, how the module behaves on rows `x` of one member; returns why it cannot be stacked."""
        if self.examined:
            return self.alone
        x = x.detach().cpu()
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), torch.autocast("cpu", enabled=False):
            own = {name: value.detach().clone() for name, value in self.template.named_parameters()}
            self._check_training(own, x)
            self._check_rows(own, x)
            self.alone, self.unused = self._try_stack(own, x)
        self.examined = True
        if self.alone:
            warnings.warn(
                f"the module of {self.name} is trained member by member, not as a stack: {self.alone}",
                UserWarning,
                stacklevel=2,
            )
        return self.alone

    def _check_training(self, own: Parameters, x: Tensor) -> None:
        """Refuse what training mode does beside giving outputs, and other outputs than in evaluation mode."""
        state = dict(own) | {name: value.clone() for name, value in self.buffers.items()}
        before = torch.get_rng_state()
        self._dropout(state, None)
        try:
            functional_call(self.template, state, (x,))
        except RuntimeError as error:
            shape = ("rows", *x.shape[1:])
            raise UserError(f"the module of {self.name} does not take features {shape}: {error}") from error
        if not torch.equal(torch.get_rng_state(), before):
            raise UserError(
                f"the module of {self.name} draws random numbers in training that do not come from a torch.nn.Dropout "
                "module: set `dropout` of LSTM, GRU or MultiheadAttention to 0, replace other random layers, and put "
                "torch.nn.Dropout modules in their place"
            )
        changed = [name for name, value in self.buffers.items() if not _equal(state[name], value)]
        if changed:
            raise UserError(
                f"the buffer {changed[0]!r} of the module of {self.name} changes in training, and a member is its "
                "parameters only: use LayerNorm or GroupNorm in place of BatchNorm, or track_running_stats=False in an "
                "InstanceNorm"
            )
        with torch.no_grad():
            trained = self.one(own, self.buffers, x, None)
            self.template.eval()
            used = self.one(own, self.buffers, x, None)
            self.template.train()
        self.n_outputs = 1 if used.ndim == 1 else used.shape[1]
        if not _close(trained, used):
            raise UserError(
                f"the module of {self.name}, its torch.nn.Dropout aside, has other outputs in training mode than in "
                "evaluation mode: let `forward` not depend on `self.training`"
            )

    def _check_rows(self, own: Parameters, x: Tensor) -> None:
        """Refuse outputs that depend on the other rows of the batch."""
        with torch.no_grad():
            among_others = self.one(own, self.buffers, x, None)[0]
            among_itself = self.one(own, self.buffers, x[:1].expand_as(x).contiguous(), None)[0]
        if not _close(among_others, among_itself):
            raise UserError(
                f"the output of the module of {self.name} for a row depends on the other rows of the batch, so that a "
                "prediction would depend on what else is predicted: use LayerNorm or GroupNorm in place of BatchNorm"
            )

    def _try_stack(self, own: Parameters, x: Tensor) -> tuple[str | None, tuple[str, ...]]:
        """Why two members cannot run as a stack (None: they can), and the parameters that may have no gradient."""
        two = {name: torch.stack([value, value]).requires_grad_() for name, value in own.items()}
        keys = torch.arange(4 * len(x)).view(2, len(x), 2) if self.dropouts else None
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                with torch.no_grad():
                    self._stacked(two, self.buffers, torch.stack([x, x]), None)
                output = self._stacked(two, self.buffers, torch.stack([x, x]), keys)
                found = torch.autograd.grad(output.sum(), list(two.values()), allow_unused=True)
        except UserError:
            raise
        except (RuntimeError, ValueError, NotImplementedError) as error:
            return _first_sentence(str(error)), tuple(own)
        slow = [str(each.message) for each in told if "batching rule" in str(each.message)]
        if slow:
            return _first_sentence(slow[0]), tuple(own)
        return None, tuple(name for name, gradient in zip(two, found, strict=True) if gradient is None)


_RUNNERS: WeakKeyDictionary[Any, _Runner] = WeakKeyDictionary()


def _shared(factory: ModuleFactory) -> _Runner:
    """The runner of a factory: one for all equal networks, so that what was found out is found out, and said, once."""
    try:
        runner = _RUNNERS.get(factory)
    except TypeError:  # a callable that cannot be referred to weakly
        return _Runner(factory)
    if runner is None:
        runner = _RUNNERS[factory] = _Runner(factory)
    return runner


def _made(factory: ModuleFactory, seed: int) -> nn.Module:
    """What the factory builds while torch's random state is that of `seed`; the global state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module = factory()
    if not isinstance(module, nn.Module):
        raise UserError(f"`factory` must build a torch.nn.Module, {_name(factory)} returned {type(module).__name__}")
    return module


def _check_trainable(module: nn.Module) -> None:
    """Refuse parameters that do not fit into a stack, and layers that never do."""
    for path, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):  # the common base of BatchNorm1d, 2d and 3d
            raise UserError(
                f"the layer {path!r} is a {type(layer).__name__}: its statistics are those of the batch, which make a "
                "row's output depend on the others, and its running ones are no parameters; use LayerNorm or GroupNorm"
            )
    parameters = dict(module.named_parameters())
    if not parameters:
        raise UserError("the module has no parameters: there is nothing to train")
    for name, value in parameters.items():
        if isinstance(value, nn.UninitializedParameter):
            raise UserError(f"the parameter {name!r} has no shape yet: give lazy layers their number of inputs")
        if value.dtype != torch.float32 or value.device.type != "cpu":
            raise UserError(
                f"the parameter {name!r} must be float32 on the cpu, got {value.dtype} on {value.device}: the "
                "trainer's `device` and `precision` say where and how it is trained"
            )
        if not value.requires_grad:
            raise UserError(
                f"the parameter {name!r} has requires_grad=False: freeze it by the trainer's "
                f"parameter_groups=(ParameterGroup({name!r}, lr_factor=0.0),)"
            )


def _check_alike(module: nn.Module, template: _Runner) -> None:
    """Refuse a factory that builds another architecture, or other constants, for another seed."""
    shapes = {name: tuple(value.shape) for name, value in module.named_parameters()}
    if shapes != template.shapes:
        raise UserError(
            f"{template.name} must build the same architecture each time, got parameters {shapes} after "
            f"{template.shapes}"
        )
    for name, value in module.named_buffers():
        if not _equal(value, template.buffers[name]):
            raise UserError(
                f"the buffer {name!r} of {template.name} differs from seed to seed, and a member is its parameters "
                "only: draw it from a torch.Generator with a seed of its own, or make it a parameter"
            )
    if any(a is b for a, b in zip(module.parameters(), template.template.parameters(), strict=True)):
        raise UserError(f"{template.name} must build a new module each time, and it returned the same one twice")


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _close(a: Tensor, b: Tensor) -> bool:
    scale = float(b.detach().abs().max()) if b.numel() else 0.0
    return torch.allclose(a.detach(), b.detach(), rtol=0.0, atol=_SMALL * max(scale, 1e-6), equal_nan=True)


def _first_sentence(message: str) -> str:
    """The head of one of torch's long messages."""
    return message.strip().split("\n")[0].split(". ")[0].rstrip(".")


def _name(factory: Any) -> str:
    """`module.qualname` of a function or class; of another callable, that of its class."""
    inner = getattr(factory, "func", factory)  # functools.partial
    named = inner if hasattr(inner, "__qualname__") else type(inner)
    return f"{named.__module__}.{named.__qualname__}"
