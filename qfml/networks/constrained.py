"""What networks with non-negative weights on chosen features share."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from qfml.errors import UserError
from qfml.networks.base import linear


def average(inputs: int, outputs: int, generator: torch.Generator) -> Tensor:
    """Weights (I, O) whose squares have mean 1/I, so that a product with the squares takes averages.

    Sums of non-negative weights would otherwise grow with the width, layer after layer.
    """
    bound = (3 / inputs) ** 0.5  # a uniform on +-b has mean square b^2 / 3
    return torch.empty(inputs, outputs).uniform_(-bound, bound, generator=generator)


def columns(x: Tensor, chosen: tuple[int, ...]) -> Tensor:
    """The columns `chosen` of (M, B, F), or of all rows of windows (M, B, L, F), as one row of features (M, B, C).

    Slices, not an index: an index would have to be sent to the device at each step.
    """
    return torch.cat([x[..., j : j + 1] for j in chosen], dim=-1).flatten(2)


def others(x: Tensor, chosen: tuple[int, ...]) -> Tensor:
    """All columns but `chosen`, as one row of features."""
    edges = [-1, *sorted(chosen), x.shape[-1]]
    return torch.cat([x[..., a + 1 : b] for a, b in pairwise(edges)], dim=-1).flatten(2)


def cross(x: Tensor, u: Tensor | None, weight: Tensor | None, bias: Tensor) -> Tensor:
    """`x` plus what the free path adds to a layer: a bias, and a map of `u` if there is a free feature."""
    return x + bias[:, None] if u is None or weight is None else x + linear(u, weight, bias)


def check_chosen(name: str, chosen: tuple[int, ...]) -> None:
    """A tuple of distinct columns, counted from 0."""
    if not all(isinstance(column, int) and not isinstance(column, bool) and column >= 0 for column in chosen):
        raise UserError(f"`{name}` must hold columns of the features, counted from 0, such as (0, 2), got {chosen!r}")
    if len(set(chosen)) < len(chosen):
        raise UserError(f"`{name}` must hold each column once, got {chosen!r}")


def check_width(name: str, chosen: tuple[int, ...], n_features: int) -> None:
    """Every chosen column exists."""
    if chosen and max(chosen) >= n_features:
        raise UserError(
            f"`{name}` has column {max(chosen)}, but the network sees {n_features} features: columns are counted from "
            f"0 to {n_features - 1}, after the transforms"
        )
