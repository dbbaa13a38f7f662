"""What a network is here: a frozen specification that draws one member's parameters and runs a whole stack of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from qfml.errors import UserError

Parameters = Mapping[str, Tensor]
GELU_SCALE, GELU_CUBIC = math.sqrt(2 / math.pi), 0.044715  # Hendrycks, Gimpel (2016), section 2


@runtime_checkable
class Network(Protocol):
    """A network specification: hashable, written in YAML, without state.

    `init` draws the parameters of one member; `forward` runs M members at once, every parameter with a leading member
    axis. Both are pure: what they return depends on their arguments alone.
    """

    kind: ClassVar[str]

    def init(
        self, n_features: int, window: int | None, generator: torch.Generator, n_outputs: int = 1
    ) -> dict[str, Tensor]:
        """Parameters of one member with `n_outputs` outputs a row, drawn from `generator` in a fixed order."""
        ...

    def forward(self, parameters: Parameters, x: Tensor, dropout: Dropout | None = None) -> Tensor:
        """Outputs of M members on features `x` of shape (M, B, F) or (M, B, L, F): (M, B), or (M, B, K) of several."""
        ...

    @property
    def dropout_units(self) -> int:
        """Units a row that dropout may switch off in one forward pass; 0 without dropout."""
        ...


@runtime_checkable
class WrittenGradient(Protocol):
    """A network that knows its own gradient, which spares a small one the cost of torch's graph."""

    @property
    def writes_gradient(self) -> bool:
        """Whether these settings of the network have one."""
        ...

    def pullback(
        self, parameters: Parameters, x: Tensor, dropout: Dropout | None = None
    ) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
        """The outputs, and the map from slopes of the outputs to the gradients of `parameters`, in their order."""
        ...


def writes_gradient(network: object) -> bool:
    """Whether a network's gradient may be taken from its `pullback`: not if only its `forward` was overridden."""
    if not isinstance(network, WrittenGradient) or not network.writes_gradient:
        return False
    return _owner(type(network), "pullback") is _owner(type(network), "forward")


def works_on_all_threads(network: object) -> bool:
    """Whether it has a `pullback` whose bits are the same on any number of threads, so that it may have them all."""
    return writes_gradient(network) and getattr(network, "any_threads", False)


def _owner(kind: type, name: str) -> type | None:
    """The class that a method comes from."""
    return next((one for one in kind.__mro__ if name in vars(one)), None)


class Dropout:
    """Random bytes of one step, handed out layer by layer: a unit is dropped where its byte is below `256 p`.

    The bytes are drawn per member from its own addressed stream, so that a member's masks do not depend on the stack
    around it. The probability is rounded to a multiple of 1/256, and the scale is that of the rounded probability.

    Args:
        random_bytes: (M, B, U), those of all layers one after another.
        thresholds: 256 p of each member, uint8 of shape (M,), in place of the probability that the layers name.
    """

    def __init__(self, random_bytes: UInt8[Tensor, "member row unit"], thresholds: Tensor | None = None) -> None:
        self.random_bytes = random_bytes
        self.thresholds = None if thresholds is None else thresholds.view(-1, 1, 1)
        self.used = 0

    def __getitem__(self, rows: slice) -> Dropout:
        """The same bytes of some of the rows, none of them used yet."""
        return Dropout(self.random_bytes[:, rows], self.thresholds)

    def member(self, place: int) -> Dropout:
        """The bytes of one member, none of them used yet."""
        own = slice(place, place + 1)
        return Dropout(self.random_bytes[own], None if self.thresholds is None else self.thresholds[own])

    def __call__(self, x: Tensor, probability: float) -> Tensor:
        """Drop units of `x` (M, B, U), or whole channels of `x` (M, B, L, U)."""
        return x * self.factor(x, probability)

    def factor(self, x: Tensor, probability: float) -> Tensor:
        """What the next units of `x` are multiplied by: 0 where one is dropped, else 1 / (1 - p)."""
        own = self.thresholds
        if own is None:
            own = torch.full((1, 1, 1), dropout_threshold(probability), dtype=torch.uint8, device=x.device)
        units = x.shape[-1]
        drawn = self.random_bytes[:, :, self.used : self.used + units]
        self.used += units
        # several times faster: thresholds that lie side by side, and numbers made of bytes instead of truth values
        kept = (drawn >= own.expand(-1, -1, units).contiguous()).view(torch.uint8)
        factor = kept.to(x.dtype) * (256 / (256 - own.double())).to(x.dtype)
        return factor[:, :, None, :] if x.ndim == 4 else factor


def dropout_threshold(probability: float) -> int:
    """A unit is dropped where its byte is below this."""
    return round(256 * probability)


def uniform(shape: tuple[int, ...], fan_in: int, generator: torch.Generator) -> Tensor:
    """Uniform on +-1/sqrt(fan_in), torch.nn.Linear's initial distribution of weights and biases."""
    bound = fan_in**-0.5
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def affine(name: str, inputs: int, outputs: int, generator: torch.Generator) -> dict[str, Tensor]:
    """The parameters `{name}_weight` (I, O) and `{name}_bias` (O,) of one affine map, as in torch.nn.Linear."""
    weight = uniform((inputs, outputs), inputs, generator)
    return {f"{name}_weight": weight, f"{name}_bias": uniform((outputs,), inputs, generator)}


def linear(x: Float[Tensor, "member row inputs"], weight: Tensor, bias: Tensor) -> Float[Tensor, "member row outputs"]:
    """One affine map a member: `x` (M, B, I), `weight` (M, I, O), `bias` (M, O)."""
    if 1 in weight.shape[1:]:  # no matrix: its product is summed in another order when there is one member
        return (x[..., None] * weight[:, None]).sum(2) + bias[:, None]
    return torch.baddbmm(bias[:, None], *padded(x, weight))


def padded(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """`x` (M, B, I) and `weight` (M, I, O) filled up with zeros until I x O is a multiple of 16.

    A matrix product rounds differently where a matrix does not begin on a cache line; so filled up, the weights'
    gradients begin on one for every member of a stack. (The engine does the same for rows.)
    """
    n_inputs, n_outputs = weight.shape[1:]
    extra = -n_inputs % (16 // math.gcd(16, n_outputs))
    if not extra:
        return x, weight
    return torch.nn.functional.pad(x, (0, extra)), torch.nn.functional.pad(weight, (0, 0, 0, extra))


def product(x: Float[Tensor, "member row inputs"], weight: Tensor) -> Float[Tensor, "member row outputs"]:
    """One matrix product a member, as in `linear`, without a bias."""
    return linear(x, weight, weight.new_zeros(weight.shape[0], weight.shape[2]))


def each_position(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same affine map at every position of (M, B, L, I)."""
    return linear(x.flatten(1, 2), weight, bias).unflatten(1, x.shape[1:3])


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Layer norm of the units of `x` (M, ..., U) with each member's `scale` and `shift` (M, U)."""
    members, width = scale.shape
    own = (members, *[1] * (x.ndim - 2), width)
    return torch.nn.functional.layer_norm(x, (width,)) * scale.view(own) + shift.view(own)


def head_parameters(inputs: int, n_outputs: int, generator: torch.Generator) -> dict[str, Tensor]:
    """The parameters of `head`: `head_weight` (I,), or (I, K) of several outputs, and `head_bias` (K,)."""
    shape = (inputs,) if n_outputs == 1 else (inputs, n_outputs)
    weight = uniform(shape, inputs, generator)
    return {"head_weight": weight, "head_bias": uniform((n_outputs,), inputs, generator)}


def head(x: Float[Tensor, "member row inputs"], weight: Tensor, bias: Tensor) -> Float[Tensor, "member row *output"]:
    """The outputs: (M, B) from `weight` (M, I) and `bias` (M, 1), or (M, B, K) from (M, I, K) and (M, K).

    A single one is a product and a sum, not a matrix product: one of width 1 is summed in another order when there is
    one member, and a member must come out the same to the last bit whatever the stack.
    """
    if weight.ndim == 3:
        return linear(x, weight, bias)
    return (x * weight[:, None]).sum(-1) + bias


def sigmoid(x: Tensor) -> Tensor:
    """The logistic function, 1 / (1 + exp(-x))."""
    return 0.5 + 0.5 * torch.tanh(0.5 * x)


def silu(x: Tensor) -> Tensor:
    """x times the logistic function of x."""
    return x * sigmoid(x)


def gelu(x: Tensor) -> Tensor:
    """Gaussian error linear unit, tanh form (Hendrycks, Gimpel 2016)."""
    return 0.5 * x * (1 + torch.tanh(GELU_SCALE * (x + GELU_CUBIC * x * x * x)))


# Written with tanh: torch's own sigmoid, silu and gelu round the last few elements of a buffer differently from the
# others, so that a member's outputs would depend on its place in the stack.
ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "silu": silu, "gelu": gelu}


def check_hidden(name: str, widths: Any, activation: str, dropout: float) -> None:
    """The rules that every network's settings share."""
    if not isinstance(widths, tuple) or not widths or min(widths) < 1:
        raise UserError(f"`{name}` must be a tuple of one or more positive widths, such as (32, 32), got {widths!r}")
    if activation not in ACTIVATIONS:
        raise UserError(f"`activation` must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if not 0 <= dropout < 1:
        raise UserError(f"`dropout` must lie in [0, 1), got {dropout}")
    if dropout_threshold(dropout) == 256:
        raise UserError(f"`dropout` is rounded to a multiple of 1/256, and {dropout} would become 1")


def check_count(name: str, value: Any, at_least: int = 1) -> None:
    """A setting that counts something."""
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise UserError(f"`{name}` must be a whole number of at least {at_least}, got {value!r}")


def check_window(network: str, window: int | None) -> int:
    """The window of a network that reads one, or a refusal where the samples are single rows."""
    if window is None:
        raise UserError(
            f"{network} needs windows: give the data set a `window` (rows a sample sees), or take a network of single "
            "rows, such as mlp"
        )
    return window
