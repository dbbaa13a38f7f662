"""Parameter-efficient ensemble of multilayer perceptrons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qfml.networks.base import ACTIVATIONS, Dropout, Parameters, check_count, check_hidden, linear, product, uniform


@dataclass(frozen=True)
class TabM:
    """K perceptrons that share their matrices and differ by rank-1 adapters; the output is the mean of theirs.

    Perceptron k maps h to act(s_k (W (r_k h)) + b_k) in each hidden layer, r_k h and s_k (..) entry by entry, and its
    output is w_k h + c_k. W is shared; the adapters r_k and s_k, biases and output maps are its own. The first r starts
    as random signs, the other adapters at 1, so that the perceptrons begin apart. Windows (L, F) are read as one row
    of L x F features.

    The paper trains on the mean of the K losses; here the loss sees the mean output, as with any other network. For a
    squared error the two differ by the spread of the K outputs, which the paper's loss adds.

    Args:
        hidden: widths of the hidden layers.
        k: perceptrons.
        activation: relu, tanh, silu or gelu.
        dropout: probability of dropping a hidden unit of one perceptron in training, rounded to a multiple of 1/256.

    References:
        Gorishniy, Kotelnikov, Babenko (2024), "TabM: Advancing Tabular Deep Learning with Parameter-Efficient
        Ensembling", section 3.3. Adapters: Wen, Tran, Ba (2020), "BatchEnsemble".

    Example:
        >>> parameters = TabM(hidden=(8,), k=4).init(3, None, torch.Generator().manual_seed(0))
        >>> {name: tuple(value.shape) for name, value in parameters.items()}  # doctest: +NORMALIZE_WHITESPACE
        {'weight0': (3, 8), 'enter0': (4, 3), 'leave0': (4, 8), 'bias0': (4, 8),
         'head_weight': (4, 8), 'head_bias': (4,)}
    """

    kind: ClassVar[str] = "tabm"
    hidden: tuple[int, ...] = (32, 32)
    k: int = 16
    activation: str = "relu"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_hidden("hidden", self.hidden, self.activation, self.dropout)
        check_count("k", self.k, at_least=2)

    def init(
        self, n_features: int, window: int | None, generator: torch.Generator, n_outputs: int = 1
    ) -> dict[str, Tensor]:
        """Parameters of one member."""
        parameters: dict[str, Tensor] = {}
        inputs = n_features * (window or 1)
        for i, width in enumerate(self.hidden):
            parameters[f"weight{i}"] = uniform((inputs, width), inputs, generator)
            enter = torch.ones(self.k, inputs)
            parameters[f"enter{i}"] = (
                enter if i else enter - 2 * torch.empty_like(enter).bernoulli_(generator=generator)
            )
            parameters[f"leave{i}"] = torch.ones(self.k, width)
            parameters[f"bias{i}"] = uniform((self.k, width), inputs, generator)
            inputs = width
        several = () if n_outputs == 1 else (n_outputs,)
        parameters["head_weight"] = uniform((self.k, inputs, *several), inputs, generator)
        parameters["head_bias"] = uniform((self.k, *several), inputs, generator)
        return parameters

    def forward(self, parameters: Parameters, x: Tensor, dropout: Dropout | None = None) -> Tensor:
        """Outputs (M, B), or (M, B, K) of several."""
        return self.predictions(parameters, x, dropout).sum(-1) / self.k

    def predictions(self, parameters: Parameters, x: Tensor, dropout: Dropout | None = None) -> Tensor:
        """The outputs (M, B, K) of the K perceptrons, or (M, B, O, K) of O outputs each."""
        p, activation = {name: value[:, None] for name, value in parameters.items()}, ACTIVATIONS[self.activation]
        x = x.flatten(2)[:, :, None]  # from here on (M, B, K, units)
        for i in range(len(self.hidden)):
            x = product((x * p[f"enter{i}"]).flatten(1, 2), parameters[f"weight{i}"]).unflatten(1, (-1, self.k))
            x = activation(x * p[f"leave{i}"] + p[f"bias{i}"])
            if dropout is not None and self.dropout:
                x = dropout(x.flatten(2), self.dropout).unflatten(2, (self.k, -1))
        weight, bias = parameters["head_weight"], parameters["head_bias"]
        if weight.ndim == 3:
            return (x * p["head_weight"]).sum(-1) + p["head_bias"]
        each = linear(x.transpose(1, 2).flatten(0, 1), weight.flatten(0, 1), bias.flatten(0, 1))
        return each.unflatten(0, (-1, self.k)).permute(0, 2, 3, 1).contiguous()  # (M, K, B, O) -> (M, B, O, K)

    @property
    def dropout_units(self) -> int:
        """Units a row that dropout may switch off."""
        return self.k * sum(self.hidden) if self.dropout else 0
