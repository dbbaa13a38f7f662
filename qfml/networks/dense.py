"""A perceptron's outputs and its gradient, written out.

A small network spends more time on the nodes of torch's graph, one for each operation, than on its products: without
the graph a step of one takes a third less. The operations and their order, and so their bits, are those of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qfml.networks.base import ACTIVATIONS, GELU_CUBIC, GELU_SCALE, head, linear, padded, sigmoid

Pull = Callable[[Tensor], list[Tensor]]  # from slopes of the outputs to the gradients of the parameters


Drop = Callable[[Tensor], Tensor]  # from a layer's outputs to the factors that drop some of them


def pullback(x: Tensor, activation: str, parameters: Sequence[Tensor], drop: Drop | None = None) -> tuple[Tensor, Pull]:
    """Outputs (M, B) or (M, B, K) of a perceptron, and what turns their slopes into gradients of the parameters.

    Args:
        x: features (M, B, F).
        activation: one of `ACTIVATIONS`, after every affine map but the last.
        parameters: weight (M, I, O) and bias (M, O) of each map; the last pair is that of `head`.
        drop: called with what each activation puts out.
    """
    weights, inputs, before, after, factors = parameters[::2], [x], [], [], []
    for weight, bias in zip(weights[:-1], parameters[1:-1:2], strict=True):
        before.append(linear(inputs[-1], weight, bias))
        after.append(ACTIVATIONS[activation](before[-1]))
        factors.append(None if drop is None else drop(after[-1]))
        inputs.append(after[-1] if factors[-1] is None else after[-1] * factors[-1])

    def pull(slope: Tensor) -> list[Tensor]:
        slope, *gradients = _head_slopes(inputs[-1], weights[-1], slope)
        for layer in reversed(range(len(before))):
            slope = slope if factors[layer] is None else slope * factors[layer]
            slope = SLOPES[activation](slope, before[layer], after[layer])
            below = layer > 0  # the features' own slope is not wanted
            slope, *own = _linear_slopes(inputs[layer], weights[layer], slope, below)
            gradients = [*own, *gradients]
        return gradients

    return head(inputs[-1], *parameters[-2:]), pull


def _linear_slopes(x: Tensor, weight: Tensor, slope: Tensor, below: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `linear` in its input (if wanted `below`), weight and bias."""
    if 1 in weight.shape[1:]:
        wide = slope[:, :, None]
        return (wide * weight[:, None]).sum(-1) if below else slope, (x[..., None] * wide).sum(1), slope.sum(1)
    kept = weight.shape[1]
    x, weight = padded(x, weight)
    own = torch.bmm(x.transpose(1, 2), slope)
    back = torch.bmm(slope, weight.transpose(1, 2)) if below else slope
    if weight.shape[1] > kept:
        own, back = own[:, :kept], back[..., :kept] if below else back
    return back, own, slope.sum(1)


def _head_slopes(x: Tensor, weight: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `head` in its input, weight and bias."""
    if weight.ndim == 3:
        return _linear_slopes(x, weight, slope, below=True)
    slope = slope[..., None]
    return slope * weight[:, None], (slope * x).sum(1), slope.sum(1)


def _silu_slope(slope: Tensor, x: Tensor, _: Tensor) -> Tensor:
    of_x = sigmoid(x)
    return slope * (of_x * (1 + x * (1 - of_x)))


def _gelu_slope(slope: Tensor, x: Tensor, _: Tensor) -> Tensor:
    square = x * x
    tanh = torch.tanh(GELU_SCALE * x * (1 + GELU_CUBIC * square))
    return slope * (0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * (GELU_SCALE * (1 + 3 * GELU_CUBIC * square)))


# the slope of an activation's input from that of its output, the input and the output
SLOPES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "relu": lambda slope, _, output: torch.ops.aten.threshold_backward(slope, output, 0),
    "tanh": lambda slope, _, output: slope * (1 - output * output),
    "silu": _silu_slope,
    "gelu": _gelu_slope,
}
