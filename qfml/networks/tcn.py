"""Causal temporal convolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qfml.errors import UserError
from qfml.networks.base import (
    ACTIVATIONS,
    Dropout,
    Parameters,
    check_hidden,
    each_position,
    head,
    head_parameters,
    uniform,
)


@dataclass(frozen=True)
class TCN:
    """Temporal convolutional network on windows (L, F): residual blocks of two causal dilated convolutions.

    Level i has dilation 2^i. Only the positions that the last row depends on are computed: convolutions are "valid",
    the window being padded with zeros on its left where the receptive field reaches further back.

    Args:
        channels: channels of each level.
        kernel: rows that one convolution reads.
        activation: relu, tanh, silu or gelu.
        dropout: probability of dropping a whole channel in training, rounded to a multiple of 1/256.

    References:
        Bai, Kolter, Koltun (2018), "An Empirical Evaluation of Generic Convolutional and Recurrent Networks for
        Sequence Modeling", section 3.

    Example:
        >>> TCN(channels=(8, 8, 8), kernel=3).receptive_field
        29
    """

    kind: ClassVar[str] = "tcn"
    channels: tuple[int, ...] = (16, 16, 16)
    kernel: int = 3
    activation: str = "relu"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_hidden("channels", self.channels, self.activation, self.dropout)
        if self.kernel < 2:
            raise UserError(f"`kernel` must be at least 2 rows, got {self.kernel}")

    @property
    def receptive_field(self) -> int:
        """Number of rows, the present one included, that the output depends on."""
        return 1 + sum(2 * (self.kernel - 1) * 2**level for level in range(len(self.channels)))

    def init(
        self, n_features: int, window: int | None, generator: torch.Generator, n_outputs: int = 1
    ) -> dict[str, Tensor]:
        """Parameters of one member."""
        if window is None:
            raise UserError("a temporal convolution needs windows: give the data set a `window`")
        if window > self.receptive_field:
            raise UserError(
                f"`window` is {window} rows but the network sees only the last {self.receptive_field}: shorten the "
                "window, or add a level to `channels`, or enlarge `kernel`"
            )
        parameters: dict[str, Tensor] = {}
        inputs = n_features
        for i, width in enumerate(self.channels):
            for half, fan in (("a", inputs), ("b", width)):
                parameters[f"weight{i}{half}"] = uniform((self.kernel * fan, width), self.kernel * fan, generator)
                parameters[f"bias{i}{half}"] = uniform((width,), self.kernel * fan, generator)
            if inputs != width:
                parameters[f"weight{i}skip"] = uniform((inputs, width), inputs, generator)
                parameters[f"bias{i}skip"] = uniform((width,), inputs, generator)
            inputs = width
        return parameters | head_parameters(inputs, n_outputs, generator)

    def forward(self, parameters: Parameters, x: Tensor, dropout: Dropout | None = None) -> Tensor:
        """Outputs (M, B), or (M, B, K) of several."""
        activation = ACTIVATIONS[self.activation]
        x = torch.nn.functional.pad(x, (0, 0, self.receptive_field - x.shape[2], 0))
        for i, width in enumerate(self.channels):
            skip = x
            for half in "ab":
                x = _convolve(x, parameters[f"weight{i}{half}"], parameters[f"bias{i}{half}"], self.kernel, 2**i)
                x = activation(x)
                if dropout is not None and self.dropout:
                    x = dropout(x, self.dropout)
            skip = skip[:, :, -x.shape[2] :]
            if skip.shape[-1] != width:
                skip = each_position(skip, parameters[f"weight{i}skip"], parameters[f"bias{i}skip"])
            x = activation(x + skip)
        return head(x[:, :, -1], parameters["head_weight"], parameters["head_bias"])

    @property
    def dropout_units(self) -> int:
        """Channels a row that dropout may switch off."""
        return 2 * sum(self.channels) if self.dropout else 0


def _convolve(x: Tensor, weight: Tensor, bias: Tensor, kernel: int, dilation: int) -> Tensor:
    """Valid convolution over rows: (M, B, L, I) -> (M, B, L - (kernel - 1) dilation, O), oldest tap first."""
    length = x.shape[2] - (kernel - 1) * dilation
    taps = [x[:, :, k * dilation : k * dilation + length] for k in range(kernel)]
    return each_position(torch.cat(taps, dim=-1), weight, bias)
