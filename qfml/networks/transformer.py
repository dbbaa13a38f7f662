"""Causal transformer encoder on windows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qfml.errors import UserError
from qfml.networks.base import (
    ACTIVATIONS,
    Dropout,
    Parameters,
    affine,
    check_count,
    check_hidden,
    check_window,
    each_position,
    head,
    head_parameters,
    layer_norm,
    uniform,
)


@dataclass(frozen=True)
class Transformer:
    """Pre-norm transformer encoder on windows (L, F), each row attending to itself and earlier rows.

    h = E x + e + position;  for each layer h = h + attention(norm(h)), then h = h + W' drop(act(W norm(h) + b)) + b';
    the output is an affine map of norm(h) at the last row. The last layer is computed at that row alone.

    Args:
        width: units of a row; a multiple of 4 x `heads`.
        heads: attention heads, each of width / heads units.
        layers: layers, each attention and a feedforward network.
        hidden: units of the feedforward network.
        positions: "sinusoidal" (fixed) or "learned" (one vector a row of the window).
        activation: relu, tanh, silu or gelu, of the feedforward network.
        dropout: probability of dropping a unit of the feedforward network in training, the same at every row of the
            window; rounded to a multiple of 1/256. The attention has none.

    References:
        Vaswani et al. (2017), "Attention Is All You Need", sections 3.1 to 3.5. Norms before the maps: Xiong et al.
        (2020), "On Layer Normalization in the Transformer Architecture".

    Example:
        >>> network = Transformer(width=8, heads=2, layers=1, hidden=16)
        >>> drawn = network.init(3, 20, torch.Generator().manual_seed(0))
        >>> network.forward({name: value[None] for name, value in drawn.items()}, torch.zeros(1, 5, 20, 3)).shape
        torch.Size([1, 5])
    """

    kind: ClassVar[str] = "transformer"
    width: int = 32
    heads: int = 4
    layers: int = 2
    hidden: int = 64
    positions: str = "sinusoidal"
    activation: str = "relu"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("width", "heads", "layers", "hidden"):
            check_count(name, getattr(self, name))
        check_hidden("hidden", (self.hidden,), self.activation, self.dropout)
        if self.width % (4 * self.heads):
            nearest = 4 * self.heads * math.ceil(self.width / (4 * self.heads))
            raise UserError(
                f"`width` must be a multiple of 4 x `heads` = {4 * self.heads}, got {self.width}: take {nearest}, or "
                "change `heads`"
            )
        if self.positions not in ("sinusoidal", "learned"):
            raise UserError(f"`positions` must be sinusoidal or learned, got {self.positions!r}")

    def init(
        self, n_features: int, window: int | None, generator: torch.Generator, n_outputs: int = 1
    ) -> dict[str, Tensor]:
        """Parameters of one member; weights as in torch.nn.Linear, queries, keys and values side by side."""
        length = check_window("a transformer", window)
        parameters = affine("embed", n_features, self.width, generator)
        if self.positions == "learned":
            parameters["position"] = uniform((length, self.width), self.width, generator)
        for i in range(self.layers):
            parameters |= self._norm(f"attention_norm{i}")
            parameters |= affine(f"attention{i}", self.width, 3 * self.width, generator)
            parameters |= affine(f"mix{i}", self.width, self.width, generator)
            parameters |= self._norm(f"norm{i}")
            parameters |= affine(f"inner{i}", self.width, self.hidden, generator)
            parameters |= affine(f"outer{i}", self.hidden, self.width, generator)
        parameters |= self._norm("norm")
        return parameters | head_parameters(self.width, n_outputs, generator)

    def _norm(self, name: str) -> dict[str, Tensor]:
        return {f"{name}_scale": torch.ones(self.width), f"{name}_shift": torch.zeros(self.width)}

    def forward(self, parameters: Parameters, x: Tensor, dropout: Dropout | None = None) -> Tensor:
        """Outputs (M, B), or (M, B, K) of several."""
        p, length = parameters, x.shape[2]

        def normalised(h: Tensor, name: str) -> Tensor:
            return layer_norm(h, p[f"{name}_scale"], p[f"{name}_shift"])

        def mapped(h: Tensor, name: str) -> Tensor:
            return each_position(h, p[f"{name}_weight"], p[f"{name}_bias"])

        h = mapped(x, "embed")
        h = h + (p["position"][:, None] if "position" in p else sinusoids(length, self.width, h))
        for i in range(self.layers):
            last = i == self.layers - 1
            mixed = self._attention(mapped(normalised(h, f"attention_norm{i}"), f"attention{i}"), last)
            h = (h[:, :, -1:] if last else h) + mapped(mixed, f"mix{i}")
            inner = ACTIVATIONS[self.activation](mapped(normalised(h, f"norm{i}"), f"inner{i}"))
            if dropout is not None and self.dropout:
                inner = dropout(inner, self.dropout)
            h = h + mapped(inner, f"outer{i}")
        return head(normalised(h, "norm")[:, :, 0], p["head_weight"], p["head_bias"])

    def _attention(self, joint: Tensor, last: bool) -> Tensor:
        """Mixed values (M, B, L, W) from queries, keys and values side by side (M, B, L, 3W), or at the last row."""
        query, key, value = joint.unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)  # each (M, B, N, L, W/N)
        scale = (self.width // self.heads) ** -0.5
        if last:  # one query, no matrix: products and sums, as in `head`
            share = torch.softmax((query[..., -1:, :] * key).sum(-1) * scale, dim=-1)
            mixed = (value.transpose(-1, -2).contiguous() * share[..., None, :]).sum(-1)
            return mixed.flatten(-2)[:, :, None]
        length = joint.shape[2]
        # Rows are filled up behind the window until every matrix begins on a cache line, see `linear`; the mask keeps
        # them out of what earlier rows read.
        query, key, value = (torch.nn.functional.pad(part, (0, 0, 0, -length % 4)) for part in (query, key, value))
        later = torch.full((key.shape[-2],) * 2, -torch.inf, dtype=key.dtype, device=key.device).triu(1)
        share = torch.softmax(query @ key.transpose(-1, -2) * scale + later, dim=-1)
        return (share @ value)[..., :length, :].transpose(2, 3).flatten(-2)

    @property
    def dropout_units(self) -> int:
        """Units a row that dropout may switch off."""
        return self.layers * self.hidden if self.dropout else 0


def sinusoids(length: int, width: int, like: Tensor) -> Tensor:
    """Fixed positions (L, W): sin(t / 10000^(2j/W)) in even columns, the cosine in odd ones.

    Args:
        length: rows of the window, t = 0 being the oldest.
        width: units of a row, an even number.
        like: a tensor of the number format and device to use.

    Returns:
        The positions, of shape (length, width).

    References:
        Vaswani et al. (2017), section 3.5.

    Example:
        >>> sinusoids(2, 4, torch.zeros(1))[0]
        tensor([0., 1., 0., 1.])
    """
    row = torch.arange(length, dtype=torch.float64, device=like.device)
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float64, device=like.device) * (-math.log(10000) / width))
    angle = row[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).to(like.dtype)
