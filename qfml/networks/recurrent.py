"""Recurrent networks on windows: LSTM and GRU."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from qfml.errors import UserError
from qfml.networks.base import (
    Dropout,
    Parameters,
    check_count,
    check_hidden,
    check_window,
    each_position,
    head,
    head_parameters,
    linear,
    product,
    sigmoid,
    uniform,
)


@dataclass(frozen=True)
class LSTM:
    """Long short-term memory on windows (L, F), read from the last row's hidden state.

    With i, f, o = logistic and g = tanh of W x_t + R h_{t-1} + b, the state is c_t = f c_{t-1} + i g and
    h_t = o tanh(c_t), starting at zero with each window. One product gives W x_t of the whole window.

    Args:
        hidden: units of each layer.
        layers: layers, each reading the hidden states of the one below.
        dropout: probability of dropping a unit of a layer's output in training, the same unit at every row of the
            window; rounded to a multiple of 1/256.
        forget_bias: added to the initial biases of the forget gates; 1 lets a member remember from the start.

    References:
        Hochreiter, Schmidhuber (1997), "Long Short-Term Memory", with the forget gate of Gers, Schmidhuber, Cummins
        (2000). Forget bias: Jozefowicz, Zaremba, Sutskever (2015), "An Empirical Exploration of Recurrent Network
        Architectures". Dropout: Gal, Ghahramani (2016), "A Theoretically Grounded Application of Dropout in Recurrent
        Neural Networks", on the outputs only.

    Example:
        >>> parameters = LSTM(hidden=8).init(3, 20, torch.Generator().manual_seed(0))
        >>> {name: tuple(value.shape) for name, value in parameters.items()}  # doctest: +NORMALIZE_WHITESPACE
        {'input_weight0': (3, 32), 'recurrent_weight0': (8, 32), 'bias0': (32,),
         'head_weight': (8,), 'head_bias': (1,)}
    """

    kind: ClassVar[str] = "lstm"
    hidden: int = 32
    layers: int = 1
    dropout: float = 0.0
    forget_bias: float = 1.0

    def __post_init__(self) -> None:
        _check(self)
        if not math.isfinite(self.forget_bias):
            raise UserError(f"`forget_bias` must be finite, such as 1.0, got {self.forget_bias}")

    def init(
        self, n_features: int, window: int | None, generator: torch.Generator, n_outputs: int = 1
    ) -> dict[str, Tensor]:
        """Parameters of one member: uniform on +-1/sqrt(hidden) as in torch.nn.LSTM; gates in the order i, f, g, o."""
        check_window("an LSTM", window)
        parameters: dict[str, Tensor] = {}
        for i in range(self.layers):
            parameters |= layer_parameters(i, self.hidden if i else n_features, self.hidden, 4, generator)
            parameters[f"bias{i}"][self.hidden : 2 * self.hidden] += self.forget_bias
        return parameters | head_parameters(self.hidden, n_outputs, generator)

    def forward(self, parameters: Parameters, x: Tensor, dropout: Dropout | None = None) -> Tensor:
        """Outputs (M, B), or (M, B, K) of several."""
        return _run(self, _lstm, parameters, x, dropout)

    @property
    def dropout_units(self) -> int:
        """Units a row that dropout may switch off."""
        return self.layers * self.hidden if self.dropout else 0


@dataclass(frozen=True)
class GRU:
    """Gated recurrent units on windows (L, F), read from the last row's hidden state.

    With r, z = logistic of W x_t + R h_{t-1} + b, the candidate is n = tanh(W_n x_t + b_n + r (R_n h_{t-1} + b'_n)) and
    the state h_t = (1 - z) n + z h_{t-1}, starting at zero with each window. The reset gate multiplies the product
    R_n h, as in torch.nn.GRU, not h itself as in the paper.

    Args:
        hidden: units of each layer.
        layers: layers, each reading the hidden states of the one below.
        dropout: probability of dropping a unit of a layer's output in training, the same unit at every row of the
            window; rounded to a multiple of 1/256.

    References:
        Cho et al. (2014), "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine
        Translation", section 2.3. Dropout as in `LSTM`.

    Example:
        >>> parameters = GRU(hidden=8).init(3, 20, torch.Generator().manual_seed(0))
        >>> {name: tuple(value.shape) for name, value in parameters.items()}  # doctest: +NORMALIZE_WHITESPACE
        {'input_weight0': (3, 24), 'recurrent_weight0': (8, 24), 'bias0': (24,), 'candidate_bias0': (8,),
         'head_weight': (8,), 'head_bias': (1,)}
    """

    kind: ClassVar[str] = "gru"
    hidden: int = 32
    layers: int = 1
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _check(self)

    def init(
        self, n_features: int, window: int | None, generator: torch.Generator, n_outputs: int = 1
    ) -> dict[str, Tensor]:
        """Parameters of one member: uniform on +-1/sqrt(hidden) as in torch.nn.GRU; gates in the order r, z, n."""
        check_window("a GRU", window)
        parameters: dict[str, Tensor] = {}
        for i in range(self.layers):
            parameters |= layer_parameters(i, self.hidden if i else n_features, self.hidden, 3, generator)
            parameters[f"candidate_bias{i}"] = uniform((self.hidden,), self.hidden, generator)
        return parameters | head_parameters(self.hidden, n_outputs, generator)

    def forward(self, parameters: Parameters, x: Tensor, dropout: Dropout | None = None) -> Tensor:
        """Outputs (M, B), or (M, B, K) of several."""
        return _run(self, _gru, parameters, x, dropout)

    @property
    def dropout_units(self) -> int:
        """Units a row that dropout may switch off."""
        return self.layers * self.hidden if self.dropout else 0


def _check(network: LSTM | GRU) -> None:
    check_count("hidden", network.hidden)
    check_count("layers", network.layers)
    check_hidden("hidden", (network.hidden,), "tanh", network.dropout)


def layer_parameters(i: int, inputs: int, hidden: int, gates: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Maps of inputs and hidden state to the gates of layer i, uniform on +-1/sqrt(hidden), and their bias."""
    return {
        f"input_weight{i}": uniform((inputs, gates * hidden), hidden, generator),
        f"recurrent_weight{i}": uniform((hidden, gates * hidden), hidden, generator),
        f"bias{i}": uniform((gates * hidden,), hidden, generator),
    }


def _run(network: LSTM | GRU, cell: Any, parameters: Parameters, x: Tensor, dropout: Dropout | None) -> Tensor:
    """All layers over the window, then the output from the last row."""
    x = x.transpose(1, 2)  # rows of the window before samples: each step then reads one contiguous piece a member
    for i in range(network.layers):
        gates = each_position(x, parameters[f"input_weight{i}"], parameters[f"bias{i}"])
        states = cell(gates, parameters, i)
        x = states[-1][:, None] if i == network.layers - 1 else torch.stack(states, dim=1)
        if dropout is not None and network.dropout:
            x = dropout(x.transpose(1, 2), network.dropout).transpose(1, 2)
    return head(x[:, 0], parameters["head_weight"], parameters["head_bias"])


def lstm_cell(now: Tensor, hidden: Tensor, memory: Tensor, recurrent: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden state and memory (M, B, H) after a row, from the inputs' part of its gates (M, B, 4H)."""
    enter, forget, candidate, leave = (now + product(hidden, recurrent)).chunk(4, dim=-1)
    memory = sigmoid(forget) * memory + sigmoid(enter) * torch.tanh(candidate)
    return sigmoid(leave) * torch.tanh(memory), memory


def gru_cell(now: Tensor, hidden: Tensor, recurrent: Tensor, candidate_bias: Tensor) -> Tensor:
    """Hidden state (M, B, H) after a row, from the inputs' part of its gates (M, B, 3H)."""
    width = hidden.shape[-1]
    bias = torch.nn.functional.pad(candidate_bias, (2 * width, 0))  # zero for the gates r and z
    past = linear(hidden, recurrent, bias)
    reset, update = sigmoid(now[..., : 2 * width] + past[..., : 2 * width]).chunk(2, dim=-1)
    candidate = torch.tanh(now[..., 2 * width :] + reset * past[..., 2 * width :])
    return candidate + update * (hidden - candidate)


def _lstm(gates: Tensor, parameters: Parameters, i: int) -> list[Tensor]:
    """Hidden states, each (M, B, H), of one layer from the inputs' part of its gates (M, L, B, 4H)."""
    recurrent = parameters[f"recurrent_weight{i}"]
    members, _, rows, _ = gates.shape
    hidden = memory = gates.new_zeros(members, rows, recurrent.shape[1])
    states = []
    for now in gates.unbind(1):
        hidden, memory = lstm_cell(now, hidden, memory, recurrent)
        states.append(hidden)
    return states


def _gru(gates: Tensor, parameters: Parameters, i: int) -> list[Tensor]:
    """Hidden states, each (M, B, H), of one layer from the inputs' part of its gates (M, L, B, 3H)."""
    recurrent, candidate_bias = parameters[f"recurrent_weight{i}"], parameters[f"candidate_bias{i}"]
    members, _, rows, _ = gates.shape
    hidden = gates.new_zeros(members, rows, recurrent.shape[1])
    states = []
    for now in gates.unbind(1):
        hidden = gru_cell(now, hidden, recurrent, candidate_bias)
        states.append(hidden)
    return states
