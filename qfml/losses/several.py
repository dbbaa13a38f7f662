"""Losses of networks with several outputs a row: probabilities of K classes, and K quantiles at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from qfml.errors import UserError
from qfml.losses.base import Additive, Rows


@dataclass(frozen=True)
class CrossEntropy(Additive):
    r"""Cross-entropy :math:`-w_y \log q_y` of K classes, with :math:`q = \operatorname{softmax}(\text{outputs})`.

    Labels are class ids 0, 1, ..., K - 1. The mean is over rows, not over class weights (torch divides by these). With
    class weights q at the minimum is proportional to :math:`w_k p_k`; the prediction is p, whatever the weights.

    Args:
        n_classes: K, at least 2.
        class_weight: weight of each class; None weighs all alike.

    References:
        Bishop (2006), "Pattern Recognition and Machine Learning", eq. 4.108.
        Elkan (2001), "The Foundations of Cost-Sensitive Learning", theorem 2, for the weights.

    Example:
        >>> loss, outputs = CrossEntropy(n_classes=3), torch.zeros(1, 2, 3)
        >>> loss(outputs, torch.tensor([[0.0, 2.0]]), torch.ones(1, 2)).exp()
        tensor([3.0000])
        >>> loss.prediction(outputs)[0, 0]
        tensor([0.3333, 0.3333, 0.3333])
    """

    kind: ClassVar[str] = "cross_entropy"
    predicts: ClassVar[str] = "class_probabilities"
    n_classes: int
    class_weight: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.n_classes, bool) or not isinstance(self.n_classes, int) or self.n_classes < 2:
            raise UserError(f"`n_classes` must be a whole number of at least 2, got {self.n_classes!r}")
        weights = self.class_weight
        if weights is not None and (len(weights) != self.n_classes or not all(0 < w < math.inf for w in weights)):
            raise UserError(f"`class_weight` must be {self.n_classes} positive numbers, one a class, got {weights}")

    @property
    def n_outputs(self) -> int:
        """One logit a class."""
        return self.n_classes

    def rows(self, output: Tensor, y: Tensor) -> Rows:
        """Minus the log-likelihood of each label, times the weight of its class."""
        likelihood = torch.log_softmax(output, dim=-1)
        if self.class_weight is not None:
            likelihood = likelihood * _constants(self.class_weight, output.dtype, output.device)
        return -likelihood.gather(-1, y.long()[..., None])[..., 0]

    def prediction(self, output: Tensor) -> Tensor:
        """The probability of each class, (..., K), without the weights."""
        if self.class_weight is not None:
            logarithms = tuple(math.log(weight) for weight in self.class_weight)
            output = output - _constants(logarithms, output.dtype, output.device)
        return torch.softmax(output, dim=-1)

    def check_labels(self, y: Tensor) -> None:
        """Labels must be class ids."""
        wrong = (y != y.round()) | (y < 0) | (y >= self.n_classes)
        if bool(wrong.any()):
            raise UserError(
                f"`{self.kind}` needs class ids 0 to {self.n_classes - 1} as labels, got {float(y[wrong][0]):g}: "
                "number the classes from 0, or change `n_classes`"
            )


@dataclass(frozen=True)
class Quantiles(Additive):
    r"""The mean over K levels of the pinball loss :math:`\max(\tau_k e_k, (\tau_k - 1) e_k)`, one output a level.

    Here :math:`e_k = y - \text{output}_k`. The outputs may cross; the prediction is their sorted values, which never
    do, and which are nowhere worse: sorting does not raise the loss.

    Args:
        levels: levels of the quantiles, rising, in (0, 1).

    References:
        Koenker and Bassett (1978), "Regression Quantiles".
        Chernozhukov, Fernández-Val and Galichon (2010), "Quantile and Probability Curves Without Crossing".

    Example:
        >>> loss = Quantiles(levels=(0.1, 0.9))
        >>> loss(torch.zeros(1, 1, 2), torch.ones(1, 1), torch.ones(1, 1))
        tensor([0.5000])
        >>> loss.prediction(torch.tensor([[[2.0, -1.0]]]))
        tensor([[[-1.,  2.]]])
    """

    kind: ClassVar[str] = "quantiles"
    predicts: ClassVar[str] = "quantiles"
    levels: tuple[float, ...]

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in pairwise(self.levels))
        if len(self.levels) < 2 or not all(0 < level < 1 for level in self.levels) or not rising:
            raise UserError(
                "`levels` must be two or more rising levels in (0, 1), such as (0.05, 0.5, 0.95), got "
                f"{self.levels}; for a single one take the loss pinball"
            )

    @property
    def n_outputs(self) -> int:
        """One quantile a level."""
        return len(self.levels)

    def rows(self, output: Tensor, y: Tensor) -> Rows:
        """The mean pinball loss of each label."""
        error = y[..., None] - output
        levels = _constants(self.levels, output.dtype, output.device)
        return torch.maximum(levels * error, (levels - 1) * error).sum(-1) / self.n_outputs

    def prediction(self, output: Tensor) -> Tensor:
        """The label's conditional quantiles, (..., K), rising."""
        return output.sort(dim=-1).values

    def check_labels(self, y: Tensor) -> None:
        """Any finite label will do."""


@lru_cache(maxsize=64)
def _constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The numbers as a tensor; made once, because a GPU would be waited for at each step."""
    return torch.tensor(values, dtype=dtype, device=device)
