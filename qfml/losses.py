"""Training losses of a stack: outputs (M, B) in, one loss a member (M,) out.

An additive loss is a weighted mean over rows, and may be taken batch by batch. A loss of the whole sample (the Sharpe
ratio) is a function of all rows at once: it is trained with `batch_size=None` and sees its rows sorted by asset and
time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qfml.errors import UserError

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


@dataclass(frozen=True)
class MSE(Additive):
    """Mean squared error."""

    kind: ClassVar[str] = "mse"

    def rows(self, output: Tensor, y: Tensor) -> Rows:
        """Squared errors."""
        return (output - y).square()

    def prediction(self, output: Tensor) -> Tensor:
        """The output is the label's conditional mean."""
        return output

    def check_labels(self, y: Tensor) -> None:
        """Any finite label will do."""


@dataclass(frozen=True)
class Huber(Additive):
    r"""Huber loss, in units of the label squared: :math:`q\,(|e| - q/2)` with :math:`q = \min(|e|, \delta)`.

    Quadratic in the error e up to `delta`, linear above.

    References:
        Huber (1964), "Robust Estimation of a Location Parameter".
    """

    kind: ClassVar[str] = "huber"
    delta: float

    def __post_init__(self) -> None:
        if not self.delta > 0:
            raise UserError(f"`delta` must be positive, in units of the label, got {self.delta}")

    def rows(self, output: Tensor, y: Tensor) -> Rows:
        """Half the squared error up to `delta`, linear beyond."""
        # written out: torch's own rounds the gradient of a buffer's last elements differently from the others
        error = (output - y).abs()
        quadratic = error.clamp_max(self.delta)
        return quadratic * (error - 0.5 * quadratic)

    def prediction(self, output: Tensor) -> Tensor:
        """The output is a robust centre of the label."""
        return output

    def check_labels(self, y: Tensor) -> None:
        """Any finite label will do."""


@dataclass(frozen=True)
class BCE(Additive):
    """Binary cross-entropy of labels 0 and 1 (probabilities between are allowed); the output is a logit."""

    kind: ClassVar[str] = "bce"

    def rows(self, output: Tensor, y: Tensor) -> Rows:
        """Minus the log-likelihood of each label."""
        return -torch.nn.functional.logsigmoid(-output) - output * y

    def prediction(self, output: Tensor) -> Tensor:
        """The probability of label 1."""
        return 0.5 + 0.5 * torch.tanh(0.5 * output)

    def check_labels(self, y: Tensor) -> None:
        """Labels must lie in [0, 1]."""
        if bool(((y < 0) | (y > 1)).any()):
            raise UserError(
                f"`bce` needs labels in [0, 1], got {float(y.min()):g} to {float(y.max()):g}: use a label of task "
                "classification, or another loss"
            )


@dataclass(frozen=True)
class NegativeSharpe:
    r"""Minus the per-period Sharpe ratio, after costs, of the positions `tanh(output)`.

    With position :math:`p_{t,a}` in each of the assets of a period and label :math:`r_{t,a}`, the simple return that
    the position earns, the P&L of a period is :math:`\frac1A \sum_a p_{t,a} r_{t,a} - c\,|p_{t,a} - p_{t-1,a}|`, the
    first trade charged, and A the largest number of assets in a period. The loss is its mean over its standard
    deviation (ddof 1), negated.

    Args:
        cost_bps: proportional cost of trading, in basis points of notional. Never defaulted.
    """

    kind: ClassVar[str] = "negative_sharpe"
    additive: ClassVar[bool] = False
    cost_bps: float

    def __post_init__(self) -> None:
        if not 0 <= self.cost_bps < 10_000:
            raise UserError(f"`cost_bps` must lie in [0, 10000) basis points, got {self.cost_bps}")

    def __call__(self, output: Rows, y: Rows, weight: Rows, panel: Panel | None = None) -> PerMember:
        """The loss of each member."""
        if panel is None:
            raise UserError("`negative_sharpe` needs the whole sample in time order: train with batch_size=None")
        position = torch.tanh(output)
        before = torch.where(panel.first, torch.zeros_like(position), position.roll(1, dims=1))
        row_pnl = weight * (position * y - self.cost_bps * 1e-4 * (position - before).abs())
        n_periods = int(panel.period.max()) + 1
        if n_periods < 2:
            raise UserError("`negative_sharpe` needs rows of at least 2 periods, got 1: a single one has no deviation")
        empty = row_pnl.new_zeros(len(output), n_periods)
        assets = empty.scatter_add(1, panel.period, weight)
        pnl = empty.scatter_add(1, panel.period, row_pnl) / assets.amax(1, keepdim=True)
        used = (assets > 0).to(pnl.dtype)
        mean = weighted_mean(pnl, used)
        variance = ((pnl - mean[:, None]).square() * used).sum(1) / (used.sum(1) - 1)
        return -mean / (variance + 1e-12).sqrt()  # a flat book has Sharpe ratio 0, and a gradient

    def prediction(self, output: Tensor) -> Tensor:
        """The position, between -1 and 1."""
        return torch.tanh(output)

    def check_labels(self, y: Tensor) -> None:
        """Labels must be simple returns."""
        if bool((y < -1).any()):
            raise UserError(f"`negative_sharpe` needs simple returns >= -1 as labels, got {float(y.min()):g}")


LOSSES: dict[str, type] = {cls.kind: cls for cls in (MSE, Huber, BCE, NegativeSharpe)}
