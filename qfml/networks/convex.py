"""Multilayer perceptron that is convex in chosen features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qfml.errors import UserError
from qfml.networks.base import Dropout, Parameters, affine, check_hidden, linear, product, uniform
from qfml.networks.constrained import average, check_chosen, check_width, columns, cross, others


@dataclass(frozen=True)
class ConvexMLP:
    """Partially input-convex network: convex in some features, such as an option's strike.

    With y the convex features and u_0 the free ones,

        u_{i+1} = act(U_i u_i + d_i),
        z_{i+1} = act(A_i^2 (z_i [V_i u_i + v_i]_+) + Y_i (y (S_i u_i + s_i)) + C_i u_i + b_i),

    products of vectors and squares taken entry by entry, without the term in z for i = 0; the outputs are one more
    such z, without `act`. At fixed u each z is a non-decreasing convex function of a non-negative
    combination of convex functions and an affine one, so the output is convex in y jointly, whatever the weights.
    Without free features it is the fully input-convex network, z_{i+1} = act(A_i^2 z_i + Y_i y + b_i).

    The paper projects the weights of z on the non-negative ones after each step; here they are squares, which need no
    projection, keep weight decay's meaning and start as averages of z (see `MonotoneMLP`). v and s start at 1.

    Features are what the network sees: convexity in a raw feature survives scaling and shifting it, but not a curved
    transform such as ranks or logarithms. In windows (L, F) the output is convex in the chosen features of all rows.
    For a concave output, turn the labels' sign. Of several outputs each is convex; what is made of them (probabilities
    of classes, sorted quantiles but the highest) need not be.

    Args:
        convex: columns of the features in which the output is convex, counted from 0.
        hidden: widths of the hidden layers, of z and of u alike.
        activation: "softplus" (smooth: a second derivative everywhere) or "relu" (piecewise linear); convex and
            non-decreasing, as the construction asks.
        dropout: probability of dropping a unit of z in training, rounded to a multiple of 1/256.

    References:
        Amos, Xu, Kolter (2017), "Input Convex Neural Networks", equations 2 and 3.

    Example:
        >>> network = ConvexMLP(convex=(1,), hidden=(8, 8))
        >>> drawn = network.init(2, None, torch.Generator().manual_seed(0))
        >>> parameters = {name: value[None].double() for name, value in drawn.items()}
        >>> x = torch.stack([torch.zeros(9), torch.linspace(-3, 3, 9)], dim=1).double()
        >>> bool((network.forward(parameters, x[None]).diff(2) > 0).all())
        True
    """

    kind: ClassVar[str] = "convex_mlp"
    convex: tuple[int, ...]
    hidden: tuple[int, ...] = (32, 32)
    activation: str = "softplus"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_hidden("hidden", self.hidden, "relu", self.dropout)
        if self.activation not in _ACTIVATIONS:
            raise UserError(
                f"`activation` must be softplus or relu, which are convex and never fall, got {self.activation!r}"
            )
        check_chosen("convex", self.convex)
        if not self.convex:
            raise UserError("`convex` is empty: name a column, such as (0,), or take the network mlp")

    def init(
        self, n_features: int, window: int | None, generator: torch.Generator, n_outputs: int = 1
    ) -> dict[str, Tensor]:
        """Parameters of one member; a `root` holds the square roots of the weights that are used."""
        check_width("convex", self.convex, n_features)
        rows = window or 1
        chosen, free, inputs = rows * len(self.convex), rows * (n_features - len(self.convex)), 0
        parameters: dict[str, Tensor] = {}
        for i, width in enumerate((*self.hidden, n_outputs)):
            parameters[f"convex{i}_weight"] = uniform((chosen, width), chosen, generator)
            parameters[f"bias{i}"] = uniform((width,), free or chosen, generator)
            if i:
                parameters[f"root{i}"] = average(inputs, width, generator)
            if free:
                parameters[f"cross{i}_weight"] = uniform((free, width), free, generator)
                gates = {"convex_gate": chosen, "gate": inputs} if i else {"convex_gate": chosen}
                for name, size in gates.items():
                    parameters[f"{name}{i}_weight"] = uniform((free, size), free, generator)
                    parameters[f"{name}{i}_bias"] = torch.ones(size)
                if i < len(self.hidden):
                    parameters |= affine(f"free{i}", free, width, generator)
                    free = width
            inputs = width
        return parameters

    def forward(self, parameters: Parameters, x: Tensor, dropout: Dropout | None = None) -> Tensor:
        """Outputs (M, B), or (M, B, K) of several."""
        p, act = parameters, _ACTIVATIONS[self.activation]
        y = columns(x, self.convex)
        u = others(x, self.convex) if "free0_weight" in p else None

        def gated(x: Tensor, name: str, keeps_sign: bool) -> Tensor:
            if u is None:
                return x
            gate = linear(u, p[f"{name}_weight"], p[f"{name}_bias"])
            return x * (torch.relu(gate) if keeps_sign else gate)

        z = y
        for i in range(len(self.hidden) + 1):
            total = product(gated(y, f"convex_gate{i}", keeps_sign=False), p[f"convex{i}_weight"])
            if i:
                total = total + product(gated(z, f"gate{i}", keeps_sign=True), p[f"root{i}"].square())
            z = cross(total, u, p.get(f"cross{i}_weight"), p[f"bias{i}"])
            if i == len(self.hidden):
                break
            z = act(z)
            if dropout is not None and self.dropout:
                z = dropout(z, self.dropout)
            if u is not None:
                u = act(linear(u, p[f"free{i}_weight"], p[f"free{i}_bias"]))
        return z[..., 0] if z.shape[-1] == 1 else z

    @property
    def dropout_units(self) -> int:
        """Units a row that dropout may switch off."""
        return sum(self.hidden) if self.dropout else 0


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)); torch's own softplus rounds the last few elements of a buffer differently."""
    return -torch.nn.functional.logsigmoid(-x)


_ACTIVATIONS = {"softplus": _softplus, "relu": torch.relu}
