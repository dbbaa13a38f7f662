"""What a training loss is, and what it is told of the rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Rows = Float[Tensor, "member row"]
PerMember = Float[Tensor, " member"]


@dataclass(frozen=True)
class Panel:
    """Where each row stands in time and in the cross-section; rows are sorted by asset, then time.

    `period` (M, B) numbers the distinct decision times of a member, from 0; `first` (M, B) is true on the first row of
    an asset, where its position is opened.
    """

    period: Int[Tensor, "member row"]
    first: Tensor


@runtime_checkable
class Loss(Protocol):
    """A training loss. `weight` (M, B) is 0 on rows that only fill up a batch.

    `predicts` says what `prediction` gives: "mean", "median", "quantile", "probability" or "position", one number a
    row; "class_probabilities" or "quantiles", K numbers a row. A `differential` loss is one of the outputs and their
    derivatives in the n features: outputs and labels are (M, B, 1 + n).
    """

    kind: ClassVar[str]
    additive: ClassVar[bool]
    differential: ClassVar[bool]
    predicts: ClassVar[str]

    @property
    def n_outputs(self) -> int:
        """Outputs that the network must have for a row: 1 stands for outputs (M, B), K > 1 for (M, B, K)."""
        ...

    def __call__(self, output: Tensor, y: Rows, weight: Rows, panel: Panel | None = None) -> PerMember:
        """The loss of each member."""
        ...

    def prediction(self, output: Tensor) -> Tensor:
        """What the network's raw outputs mean, of their shape, as `predicts` says."""
        ...

    def check_labels(self, y: Tensor) -> None:
        """Raise ValueError if the labels are not what this loss is defined on."""
        ...


class Additive:
    """A loss that is a weighted mean over rows: a subclass says what one row contributes."""

    additive: ClassVar[bool] = True
    differential: ClassVar[bool] = False
    predicts: ClassVar[str] = "mean"

    @property
    def n_outputs(self) -> int:
        """Outputs of the network for a row."""
        return 1

    def rows(self, output: Tensor, y: Tensor) -> Rows:
        """What each row contributes, shape (M, B)."""
        raise NotImplementedError

    def slopes(self, output: Tensor, y: Tensor) -> Tensor:
        """The derivative of what each row contributes in its output, of the output's shape."""
        with torch.enable_grad():
            leaf = output.detach().requires_grad_()
            return torch.autograd.grad(self.rows(leaf, y).sum(), leaf)[0]

    def rows_and_slopes(self, output: Tensor, y: Tensor) -> tuple[Rows, Tensor]:
        """`rows` and `slopes`."""
        return self.rows(output, y), self.slopes(output, y)

    def __call__(self, output: Tensor, y: Tensor, weight: Rows, panel: Panel | None = None) -> PerMember:
        """The loss of each member."""
        return weighted_mean(self.rows(output, y), weight)


def weighted_mean(values: Rows, weight: Rows) -> PerMember:
    """Mean over rows, weighted; 0 where all weights are 0."""
    return (values * weight).sum(1) / weight.sum(1).clamp_min(1e-30)
