"""Multilayer perceptron."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from qfml.networks.base import (
    ACTIVATIONS,
    Dropout,
    Parameters,
    check_hidden,
    head,
    head_parameters,
    layer_norm,
    linear,
    uniform,
)
from qfml.networks.dense import Pull, pullback


@dataclass(frozen=True)
class MLP:
    """Multilayer perceptron; windows (L, F) are read as one row of L x F features.

    Each hidden layer is affine -> layer norm (if asked) -> activation -> dropout (if asked). Weights and biases start
    as in `torch.nn.Linear`: uniform on +-1/sqrt(inputs).

    Args:
        hidden: widths of the hidden layers.
        activation: relu, tanh, silu or gelu.
        dropout: probability of dropping a hidden unit in training, rounded to a multiple of 1/256.
        layer_norm: normalise each hidden layer before its activation.

    Example:
        >>> network = MLP(hidden=(8,))
        >>> parameters = network.init(3, None, torch.Generator().manual_seed(0))
        >>> {name: tuple(value.shape) for name, value in parameters.items()}
        {'weight0': (3, 8), 'bias0': (8,), 'head_weight': (8,), 'head_bias': (1,)}
    """

    kind: ClassVar[str] = "mlp"
    hidden: tuple[int, ...] = (32, 32)
    activation: str = "relu"
    dropout: float = 0.0
    layer_norm: bool = False

    def __post_init__(self) -> None:
        check_hidden("hidden", self.hidden, self.activation, self.dropout)

    def init(
        self, n_features: int, window: int | None, generator: torch.Generator, n_outputs: int = 1
    ) -> dict[str, Tensor]:
        """Parameters of one member."""
        parameters: dict[str, Tensor] = {}
        inputs = n_features * (window or 1)
        for i, width in enumerate(self.hidden):
            parameters[f"weight{i}"] = uniform((inputs, width), inputs, generator)
            parameters[f"bias{i}"] = uniform((width,), inputs, generator)
            if self.layer_norm:
                parameters[f"scale{i}"], parameters[f"shift{i}"] = torch.ones(width), torch.zeros(width)
            inputs = width
        return parameters | head_parameters(inputs, n_outputs, generator)

    def forward(self, parameters: Parameters, x: Tensor, dropout: Dropout | None = None) -> Tensor:
        """Outputs (M, B), or (M, B, K) of several."""
        activation = ACTIVATIONS[self.activation]
        x = x.flatten(2)
        for i in range(len(self.hidden)):
            x = linear(x, parameters[f"weight{i}"], parameters[f"bias{i}"])
            if self.layer_norm:
                x = layer_norm(x, parameters[f"scale{i}"], parameters[f"shift{i}"])
            x = activation(x)
            if dropout is not None and self.dropout:
                x = dropout(x, self.dropout)
        return head(x, parameters["head_weight"], parameters["head_bias"])

    @property
    def writes_gradient(self) -> bool:
        """Without layer norm."""
        return not self.layer_norm

    def pullback(self, parameters: Parameters, x: Tensor, dropout: Dropout | None = None) -> tuple[Tensor, Pull]:
        """Outputs, and what turns their slopes into gradients."""
        drop = dropout and partial(dropout.factor, probability=self.dropout)
        return pullback(x.flatten(2), self.activation, list(parameters.values()), drop)

    @property
    def dropout_units(self) -> int:
        """Units a row that dropout may switch off."""
        return sum(self.hidden) if self.dropout else 0
