"""Residual multilayer perceptron."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qfml.networks.base import (
    ACTIVATIONS,
    Dropout,
    Parameters,
    affine,
    check_count,
    check_hidden,
    head,
    head_parameters,
    layer_norm,
    linear,
)


@dataclass(frozen=True)
class ResidualMLP:
    """Residual multilayer perceptron; windows (L, F) are read as one row of L x F features.

    h_0 = W x + b;  h_{i+1} = h_i + W'_i drop(act(W_i norm(h_i) + b_i)) + b'_i;  output = w' act(norm(h)) + c.

    The norm is a layer norm where the paper has a batch norm, so that a row's output depends on that row alone.

    Args:
        width: units of the residual stream h.
        blocks: residual blocks.
        hidden: units inside a block.
        activation: relu, tanh, silu or gelu.
        dropout: probability of dropping a unit inside a block in training, rounded to a multiple of 1/256.
        layer_norm: normalise what each block and the output read.

    References:
        Gorishniy, Rubachev, Khrulkov, Babenko (2021), "Revisiting Deep Learning Models for Tabular Data",
        section 3.2.

    Example:
        >>> network = ResidualMLP(width=8, blocks=1, hidden=16, layer_norm=False)
        >>> parameters = network.init(3, None, torch.Generator().manual_seed(0))
        >>> [(name, tuple(value.shape)) for name, value in parameters.items() if "weight" in name]
        [('first_weight', (3, 8)), ('inner0_weight', (8, 16)), ('outer0_weight', (16, 8)), ('head_weight', (8,))]
    """

    kind: ClassVar[str] = "residual_mlp"
    width: int = 32
    blocks: int = 2
    hidden: int = 64
    activation: str = "relu"
    dropout: float = 0.0
    layer_norm: bool = True

    def __post_init__(self) -> None:
        for name in ("width", "blocks", "hidden"):
            check_count(name, getattr(self, name))
        check_hidden("hidden", (self.hidden,), self.activation, self.dropout)

    def init(
        self, n_features: int, window: int | None, generator: torch.Generator, n_outputs: int = 1
    ) -> dict[str, Tensor]:
        """Parameters of one member."""
        parameters = affine("first", n_features * (window or 1), self.width, generator)
        for i in range(self.blocks):
            parameters |= self._norm(f"norm{i}")
            parameters |= affine(f"inner{i}", self.width, self.hidden, generator)
            parameters |= affine(f"outer{i}", self.hidden, self.width, generator)
        parameters |= self._norm("norm")
        return parameters | head_parameters(self.width, n_outputs, generator)

    def _norm(self, name: str) -> dict[str, Tensor]:
        if not self.layer_norm:
            return {}
        return {f"{name}_scale": torch.ones(self.width), f"{name}_shift": torch.zeros(self.width)}

    def forward(self, parameters: Parameters, x: Tensor, dropout: Dropout | None = None) -> Tensor:
        """Outputs (M, B), or (M, B, K) of several."""
        p, activation = parameters, ACTIVATIONS[self.activation]

        def normalised(x: Tensor, name: str) -> Tensor:
            return layer_norm(x, p[f"{name}_scale"], p[f"{name}_shift"]) if self.layer_norm else x

        x = linear(x.flatten(2), p["first_weight"], p["first_bias"])
        for i in range(self.blocks):
            inner = activation(linear(normalised(x, f"norm{i}"), p[f"inner{i}_weight"], p[f"inner{i}_bias"]))
            if dropout is not None and self.dropout:
                inner = dropout(inner, self.dropout)
            x = x + linear(inner, p[f"outer{i}_weight"], p[f"outer{i}_bias"])
        return head(activation(normalised(x, "norm")), p["head_weight"], p["head_bias"])

    @property
    def dropout_units(self) -> int:
        """Units a row that dropout may switch off."""
        return self.blocks * self.hidden if self.dropout else 0
