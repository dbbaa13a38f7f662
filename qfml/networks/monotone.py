"""Multilayer perceptron that is monotone in chosen features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qfml.errors import UserError
from qfml.networks.base import Dropout, Parameters, affine, check_hidden, linear, product, uniform
from qfml.networks.constrained import average, check_chosen, check_width, columns, cross, others


@dataclass(frozen=True)
class MonotoneMLP:
    """Multilayer perceptron that never falls in some features and never rises in others.

    With m the chosen features (the decreasing ones negated) and u_0 the free ones,

        z_1 = act(A_0^2 m + C_0 u_0 + b_0),  u_{i+1} = act(U_i u_i + d_i),
        z_{i+1} = act(A_i^2 z_i + C_i u_i + b_i),

    squares taken entry by entry; the outputs are one more such z, without `act`.
    `act` never falls, so the output never falls in m, whatever the weights; the free features act through weights of
    any sign. Squares need no projection after a step, keep weight decay's meaning (it pulls a weight to 0, where that
    of a softplus would pull it to log 2), and let a weight vanish. Weights start such that a layer takes averages of
    what it reads: sums of non-negative weights would otherwise grow with the width.

    Of several outputs each keeps the directions, and so do sorted quantiles; the probabilities of classes need not.

    Features are what the network sees: an increasing transform (a scaler, ranks) keeps the direction. In windows
    (L, F) a chosen feature is monotone at each row.

    Args:
        increasing: columns of the features in which the output never falls, counted from 0.
        decreasing: columns in which the output never rises.
        hidden: widths of the hidden layers, of z and of u alike.
        activation: "tanh", or "relu": half of the units max(x, 0) and half min(x, 0), because max(x, 0) alone could
            only give convex functions of m. One hidden layer of relu gives sums of a convex and a concave function.
        dropout: probability of dropping a unit of z in training, rounded to a multiple of 1/256.

    References:
        Daniels, Velikova (2010), "Monotone and Partially Monotone Neural Networks". Two kinds of relu: Runje,
        Shankaranarayana (2023), "Constrained Monotonic Neural Networks".

    Example:
        >>> network = MonotoneMLP(increasing=(1,), hidden=(8, 8))
        >>> drawn = network.init(2, None, torch.Generator().manual_seed(0))
        >>> parameters = {name: value[None] for name, value in drawn.items()}
        >>> x = torch.stack([torch.zeros(9), torch.linspace(-3, 3, 9)], dim=1)
        >>> bool((network.forward(parameters, x[None]).diff() >= 0).all())
        True
    """

    kind: ClassVar[str] = "monotone_mlp"
    increasing: tuple[int, ...] = ()
    decreasing: tuple[int, ...] = ()
    hidden: tuple[int, ...] = (32, 32)
    activation: str = "tanh"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_hidden("hidden", self.hidden, "tanh", self.dropout)
        if self.activation not in ("tanh", "relu"):
            raise UserError(f"`activation` must be tanh or relu, which never fall, got {self.activation!r}")
        if self.activation == "relu" and min(self.hidden) < 2:
            raise UserError(
                f"`hidden` must be at least 2 wide for relu, one unit of either kind, got {self.hidden}: widen it or "
                "take tanh"
            )
        check_chosen("increasing", self.increasing)
        check_chosen("decreasing", self.decreasing)
        if not self._chosen:
            raise UserError("`increasing` and `decreasing` are both empty: name a column, or take the network mlp")
        if both := set(self.increasing) & set(self.decreasing):
            raise UserError(f"column {min(both)} is both in `increasing` and in `decreasing`: keep it in one of them")

    @property
    def _chosen(self) -> tuple[int, ...]:
        return self.increasing + self.decreasing

    def init(
        self, n_features: int, window: int | None, generator: torch.Generator, n_outputs: int = 1
    ) -> dict[str, Tensor]:
        """Parameters of one member; a `root` holds the square roots of the weights that are used."""
        check_width("increasing", self.increasing, n_features)
        check_width("decreasing", self.decreasing, n_features)
        rows = window or 1
        inputs, free = rows * len(self._chosen), rows * (n_features - len(self._chosen))
        parameters: dict[str, Tensor] = {}
        for i, width in enumerate((*self.hidden, n_outputs)):
            parameters[f"root{i}"] = average(inputs, width, generator)
            parameters[f"bias{i}"] = uniform((width,), 1, generator)  # thresholds over the range of scaled features
            if free:
                parameters[f"cross{i}_weight"] = uniform((free, width), free, generator)
                if i < len(self.hidden):
                    parameters |= affine(f"free{i}", free, width, generator)
                    free = width
            inputs = width
        return parameters

    def forward(self, parameters: Parameters, x: Tensor, dropout: Dropout | None = None) -> Tensor:
        """Outputs (M, B), or (M, B, K) of several."""
        p = parameters
        up = [columns(x, self.increasing)] if self.increasing else []
        down = [-columns(x, self.decreasing)] if self.decreasing else []
        z = torch.cat([*up, *down], dim=-1)
        u = others(x, self._chosen) if "free0_weight" in p else None
        for i in range(len(self.hidden) + 1):
            z = cross(product(z, p[f"root{i}"].square()), u, p.get(f"cross{i}_weight"), p[f"bias{i}"])
            if i == len(self.hidden):
                break
            z = _two_sided(z) if self.activation == "relu" else torch.tanh(z)
            if dropout is not None and self.dropout:
                z = dropout(z, self.dropout)
            if u is not None:
                act = torch.relu if self.activation == "relu" else torch.tanh
                u = act(linear(u, p[f"free{i}_weight"], p[f"free{i}_bias"]))
        return z[..., 0] if z.shape[-1] == 1 else z

    @property
    def dropout_units(self) -> int:
        """Units a row that dropout may switch off."""
        return sum(self.hidden) if self.dropout else 0


def _two_sided(x: Tensor) -> Tensor:
    """max(x, 0) of the first half of the units, min(x, 0) of the second."""
    half = x.shape[-1] // 2
    return torch.cat([torch.relu(x[..., :half]), -torch.relu(-x[..., half:])], dim=-1)
