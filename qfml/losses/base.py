"""What a training loss is, and what it is told of the rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

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
    """A training loss. `weight` (M, B) is 0 on rows that only fill up a batch."""

    kind: ClassVar[str]
    additive: ClassVar[bool]

    def __call__(self, output: Rows, y: Rows, weight: Rows, panel: Panel | None = None) -> PerMember:
        """The loss of each member."""
        ...

    def prediction(self, output: Tensor) -> Tensor:
        """What the network's raw output means: the label's mean, a probability, or a position."""
        ...

    def check_labels(self, y: Tensor) -> None:
        """Raise ValueError if the labels are not what this loss is defined on."""
        ...


class Additive:
    """A loss that is a weighted mean over rows: a subclass says what one row contributes."""

    additive: ClassVar[bool] = True

    def rows(self, output: Tensor, y: Tensor) -> Rows:
        """What each row contributes, shape (M, B)."""
        raise NotImplementedError

    def __call__(self, output: Tensor, y: Tensor, weight: Rows, panel: Panel | None = None) -> PerMember:
        """The loss of each member."""
        return weighted_mean(self.rows(output, y), weight)


def weighted_mean(values: Rows, weight: Rows) -> PerMember:
    """Mean over rows, weighted; 0 where all weights are 0."""
    return (values * weight).sum(1) / weight.sum(1).clamp_min(1e-30)
