r"""Values and derivatives of a surrogate, written out layer by layer: no graph, and plain operations that export.

One output with d inputs: the derivatives are pulled back from the output to the features, which costs about as much as
the value itself, whatever d. The coordinates are pulled back in closed form, up to the logarithm of the reference vol.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from qfml.networks import MLP, Network
from qfml.networks.base import GELU_CUBIC, GELU_SCALE
from qfml.surrogate.bounded import OUTPUTS, Bounded
from qfml.surrogate.coordinates import Coordinates, reference_deviation, row_jacobian
from qfml.surrogate.problem import Problem

Parameters = Mapping[str, Tensor]
ROWS_AT_A_TIME = 4096  # activations of so many rows stay in the cache


def outputs_and_slopes(network: Network, parameters: Parameters, features: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs (N,) of one network and their derivatives in the features (N, F).

    Written out for a multilayer perceptron without layer norm, inside bounds or not; any other network is
    differentiated by autograd.

    Args:
        network: the specification.
        parameters: by name, without the member axis.
        features: (N, F), in the dtype of the parameters.
    """
    inner = network.inner if isinstance(network, Bounded) else network
    if not isinstance(inner, MLP) or inner.layer_norm:
        return _differentiated(network, parameters, features)
    raw, slopes = perceptron_and_slopes(features, list(parameters.values()), inner.activation)
    if isinstance(network, Bounded):
        function, slope_of = OUTPUTS[network.output]
        return function(raw), slopes * slope_of(raw)[:, None]
    return raw, slopes


def outputs(network: Network, parameters: Parameters, features: Tensor) -> Tensor:
    """Outputs (N,) of one network, as fast as torch is: operations in place, no member axis."""
    inner = network.inner if isinstance(network, Bounded) else network
    if not isinstance(inner, MLP) or inner.layer_norm:
        return network.forward({name: value[None] for name, value in parameters.items()}, features[None])[0]
    raw = perceptron(features, list(parameters.values()), inner.activation)
    return OUTPUTS[network.output][0](raw) if isinstance(network, Bounded) else raw


def perceptron(x: Tensor, parameters: list[Tensor], activation: str) -> Tensor:
    """Outputs (N,) of a perceptron on `x` (N, F): weight (I, O) and bias (O,) of each map, the head's weight (I,)."""
    act, layers = _IN_PLACE[activation], list(zip(parameters[:-2:2], parameters[1:-2:2], strict=True))
    output = x.new_empty(len(x))
    widest = max(weight.shape[1] for weight, _ in layers)
    room = x.new_empty(2, min(len(x), ROWS_AT_A_TIME) * widest)
    for part, own in zip(x.split(ROWS_AT_A_TIME), output.split(ROWS_AT_A_TIME), strict=True):
        for number, (weight, bias) in enumerate(layers):
            shape = (len(own), weight.shape[1])
            # a bias that `addmm` adds is first written out row by row: half the time of the product
            image = torch.mm(part, weight, out=room[number % 2, : shape[0] * shape[1]].view(shape))
            part = act(image.add_(bias))
        torch.mv(part, parameters[-2], out=own)
    return output.add_(parameters[-1])


def perceptron_and_slopes(x: Tensor, parameters: list[Tensor], activation: str) -> tuple[Tensor, Tensor]:
    """Outputs (N,) of a perceptron and their derivatives (N, F) in `x` (N, F)."""
    act = ACTIVATIONS_AND_SLOPES[activation]
    slopes: list[Tensor] = []
    for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        x, slope = act(torch.addmm(bias, x, weight))
        slopes.append(slope)
    output = torch.mv(x, parameters[-2]) + parameters[-1]
    back = slopes[-1] * parameters[-2]
    for weight, slope in zip(parameters[-4:0:-2], reversed(slopes[:-1]), strict=True):
        back = torch.mm(back, weight.t()) * slope
    return output, torch.mm(back, parameters[0].t())


def pulled_back(
    problem: Problem,
    inputs: Tensor,
    slopes: Tensor,
    reference: Tensor | None = None,
    log_reference: Tensor | None = None,
) -> Tensor:
    """Derivatives in the inputs (N, d) from those in the features (N, d), through `Coordinates`.

    Args:
        problem: the problem.
        inputs: (N, d), natural units.
        slopes: derivatives in the features.
        reference: reference vols (N,); None where no feature is standardised.
        log_reference: derivatives of their logarithm in the inputs (N, d); None likewise.
    """
    coordinates = Coordinates(problem)
    own = coordinates.standardised
    columns = []
    for place, limits in enumerate(problem.box.values()):
        if place == own and coordinates.standard_range.scale == "linear":
            half = 0.5 * (coordinates.standard_range.high - coordinates.standard_range.low)
            columns.append(slopes[:, place] / (half * reference_deviation(problem, inputs, reference)))
        elif limits.scale == "log":  # of a standardised input too: its logarithm is the input's less the deviation's
            columns.append(slopes[:, place] / (0.5 * math.log(limits.high / limits.low) * inputs[:, place]))
        else:
            columns.append(slopes[:, place] * (2.0 / (limits.high - limits.low)))
    pulled = torch.stack(columns, 1)
    if own is None or log_reference is None:
        return pulled
    # log z = log k - log(reference) - log(expiry) / 2 moves with every input, not only with its own
    moved = (pulled[:, own] * inputs[:, own])[:, None]  # z times the slope in z
    pulled = pulled - moved * log_reference
    expiry = _place(problem, "instrument", "expiry")
    if expiry is None:
        return pulled
    unit = torch.zeros(len(problem.inputs), dtype=inputs.dtype, device=inputs.device)
    unit[expiry] = 0.5
    return pulled - moved * unit / inputs[:, expiry : expiry + 1]


def log_reference_slopes(problem: Problem, inputs: Tensor) -> Tensor:
    """Derivatives of log(reference vol) in the inputs (N, d): in closed form for Heston's, else by autograd."""
    if problem.model["kind"] == "heston":
        return _heston_log_reference(problem, inputs)
    return row_jacobian(lambda rows: torch.log(problem.reference_vol(rows))[:, None], inputs)[:, 0]


def _heston_log_reference(problem: Problem, inputs: Tensor) -> Tensor:
    """Of V = theta + (v0 - theta) g(x), g(x) = (1 - exp(-x)) / x, x = kappa * expiry: half of those of log V."""
    columns = problem.columns(inputs)
    v0, kappa, theta = (_parameter(problem, columns, name) for name in ("v0", "kappa", "theta"))
    expiry = problem.expiry(columns)
    x = kappa * expiry
    g = -torch.expm1(-x) / x
    by_x = (v0 - theta) * (torch.exp(-x) - g) / x
    half = 0.5 / (theta + (v0 - theta) * g)
    own = {"v0": g, "theta": 1.0 - g, "kappa": by_x * expiry}
    places = {_place(problem, "model", name): value for name, value in own.items()}
    places[_place(problem, "instrument", "expiry")] = by_x * kappa
    zero = torch.zeros_like(inputs[:, 0])
    return torch.stack([half * places[i] if i in places else zero for i in range(inputs.shape[1])], 1)


def _place(problem: Problem, owner: str, argument: str) -> int | None:
    """The column of inputs that is an argument of model, instrument or market; None if it is fixed."""
    axes = enumerate(problem.coordinates)
    return next((i for i, axis in axes if (axis.owner, axis.argument) == (owner, argument)), None)


def _parameter(problem: Problem, columns: Mapping[str, Tensor], name: str) -> Tensor:
    place = _place(problem, "model", name)
    like = next(iter(columns.values()))
    return like.new_full((), problem.model[name]) if place is None else columns[problem.inputs[place]]


def _differentiated(network: Network, parameters: Parameters, features: Tensor) -> tuple[Tensor, Tensor]:
    stacked = {name: value[None] for name, value in parameters.items()}
    leaf = features.detach().requires_grad_()
    with torch.enable_grad():
        found = network.forward(stacked, leaf[None])[0]
        (slopes,) = torch.autograd.grad(found.sum(), leaf)
    return found.detach(), slopes


def _silu(x: Tensor) -> tuple[Tensor, Tensor]:
    of_x = torch.sigmoid(x)
    value = x * of_x
    return value, of_x + value * (1.0 - of_x)


def _tanh(x: Tensor) -> tuple[Tensor, Tensor]:
    value = torch.tanh(x)
    return value, 1.0 - value * value


def _relu(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.relu(x), (x > 0).to(x)


def _gelu(x: Tensor) -> tuple[Tensor, Tensor]:
    square = x * x
    tanh = torch.tanh(GELU_SCALE * x * (1 + GELU_CUBIC * square))
    slope = 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * (GELU_SCALE * (1 + 3 * GELU_CUBIC * square))
    return 0.5 * x * (1 + tanh), slope


ACTIVATIONS_AND_SLOPES: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "silu": _silu,
    "tanh": _tanh,
    "relu": _relu,
    "gelu": _gelu,
}
_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": lambda x: torch.nn.functional.silu(x, inplace=True),
    "tanh": torch.tanh_,
    "relu": torch.relu_,
    "gelu": lambda x: _gelu(x)[0],
}
