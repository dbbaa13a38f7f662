"""The stack: parameters of M members as views of one flat (M, P) buffer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Flat = Float[Tensor, "member parameter"]


@dataclass(frozen=True)
class Layout:
    """Where each parameter of one member lies in its row of the flat buffer.

    Rows are padded to a multiple of 16 elements, so that every member's row begins on a cache line.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, parameters: Mapping[str, Tensor]) -> Layout:
        """The layout of one member's parameters."""
        return cls(tuple((name, tuple(value.shape)) for name, value in parameters.items()))

    @property
    def n_parameters(self) -> int:
        """Parameters of one member, the padding not counted."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    @property
    def width(self) -> int:
        """Elements of one row, the padding counted."""
        return -(-self.n_parameters // 16) * 16

    def flatten(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """One member's parameters as a row of `width` elements."""
        row = torch.zeros(self.width)
        row[: self.n_parameters] = torch.cat([parameters[name].flatten() for name, _ in self.shapes])
        return row

    def views(self, flat: Flat, requires_grad: bool = False) -> dict[str, Tensor]:
        """Each parameter of the stack as a view (M, ...) of `flat`; writing to `flat` changes them."""
        views, start = {}, 0
        for name, shape in self.shapes:
            stop = start + math.prod(shape)
            views[name] = flat[:, start:stop].unflatten(1, shape).detach().requires_grad_(requires_grad)
            start = stop
        return views

    def gradient(
        self, values: Tensor, views: Mapping[str, Tensor], out: Flat, weights: Tensor | None = None, add: bool = False
    ) -> Flat:
        """The gradient of a weighted sum of `values` in all parameters, written into `out` (M, P), or added to it."""
        weights = torch.ones_like(values) if weights is None else weights
        return self.write(torch.autograd.grad(values, list(views.values()), weights), out, add)

    def write(self, found: Sequence[Tensor], out: Flat, add: bool = False) -> Flat:
        """Gradients of the parameters (M, ...), in their order, written into `out` (M, P), or added to it."""
        gradients = [gradient.view(len(out), -1) for gradient in map(Tensor.contiguous, found)]
        own = out[:, : self.n_parameters]  # the padding stays 0
        if add:
            own.add_(torch.cat(gradients, dim=1))
        elif self.width == self.n_parameters:
            torch.cat(gradients, dim=1, out=out)
        else:
            own.copy_(torch.cat(gradients, dim=1))
        return out
