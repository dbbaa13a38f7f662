"""Losses of a row: the weighted mean of what each row contributes, which may be taken batch by batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qfml.errors import UserError
from qfml.losses.base import Additive, Rows


@dataclass(frozen=True)
class MSE(Additive):
    """Mean squared error."""

    kind: ClassVar[str] = "mse"

    def rows(self, output: Tensor, y: Tensor) -> Rows:
        """Squared errors."""
        return (output - y).square()

    def slopes(self, output: Tensor, y: Tensor) -> Tensor:
        """Twice the errors."""
        return 2 * (output - y)

    def prediction(self, output: Tensor) -> Tensor:
        """The output is the label's conditional mean."""
        return output

    def check_labels(self, y: Tensor) -> None:
        """Any finite label will do."""


@dataclass(frozen=True)
class MAE(Additive):
    """Mean absolute error; the output is the label's conditional median."""

    kind: ClassVar[str] = "mae"
    predicts: ClassVar[str] = "median"

    def rows(self, output: Tensor, y: Tensor) -> Rows:
        """Absolute errors."""
        return (output - y).abs()

    def prediction(self, output: Tensor) -> Tensor:
        """The output is the label's conditional median."""
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
class Pinball(Additive):
    r"""Pinball (quantile) loss :math:`\max(\tau e, (\tau - 1) e)` of the error :math:`e = y - \text{output}`.

    Its minimum is the conditional quantile of the label at level :math:`\tau`.

    Args:
        level: level of the quantile, in (0, 1); 0.5 is half the mean absolute error.

    References:
        Koenker and Bassett (1978), "Regression Quantiles".

    Example:
        >>> Pinball(level=0.9)(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, -1.0]]), torch.ones(1, 2))
        tensor([0.5000])
    """

    kind: ClassVar[str] = "pinball"
    predicts: ClassVar[str] = "quantile"
    level: float

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise UserError(f"`level` must lie in (0, 1), 0.5 for the median, got {self.level}")

    def rows(self, output: Tensor, y: Tensor) -> Rows:
        """The error times `level` where the label is above the output, times `level` - 1 where it is below."""
        error = y - output
        return torch.maximum(self.level * error, (self.level - 1) * error)

    def prediction(self, output: Tensor) -> Tensor:
        """The output is the label's conditional quantile."""
        return output

    def check_labels(self, y: Tensor) -> None:
        """Any finite label will do."""


@dataclass(frozen=True)
class BCE(Additive):
    """Binary cross-entropy of labels 0 and 1 (probabilities between are allowed); the output is a logit."""

    kind: ClassVar[str] = "bce"
    predicts: ClassVar[str] = "probability"

    def rows(self, output: Tensor, y: Tensor) -> Rows:
        """Minus the log-likelihood of each label."""
        return -torch.nn.functional.logsigmoid(-output) - output * y

    def prediction(self, output: Tensor) -> Tensor:
        """The probability of label 1."""
        return _sigmoid(output)

    def check_labels(self, y: Tensor) -> None:
        """Labels must lie in [0, 1]."""
        if bool(((y < 0) | (y > 1)).any()):
            raise UserError(
                f"`{self.kind}` needs labels in [0, 1], got {float(y.min()):g} to {float(y.max()):g}: use a label of "
                "task classification, or another loss"
            )


@dataclass(frozen=True)
class WeightedBCE(BCE):
    r"""Binary cross-entropy with a weight for each class: :math:`-w_1\,y \log q - w_0\,(1 - y) \log(1 - q)`.

    Here :math:`q = \operatorname{sigmoid}(\text{output})`. The mean is over rows, not over class weights, as with
    `pos_weight` of torch, which is :math:`w_1` beside :math:`w_0 = 1`. At the minimum
    :math:`\operatorname{logit} q = \operatorname{logit} p + \log(w_1 / w_0)` where p is the probability of label 1;
    the prediction is p, whatever the weights.

    Args:
        class_weight: weights of labels 0 and 1.

    References:
        Elkan (2001), "The Foundations of Cost-Sensitive Learning", theorem 2.
    """

    kind: ClassVar[str] = "weighted_bce"
    class_weight: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.class_weight) != 2 or not all(0 < weight < math.inf for weight in self.class_weight):
            raise UserError(
                "`class_weight` must be two positive numbers, the weights of labels 0 and 1, such as (1.0, 9.0), got "
                f"{self.class_weight}"
            )

    def rows(self, output: Tensor, y: Tensor) -> Rows:
        """Minus the log-likelihood of each label times the weight of its class."""
        of_0, of_1 = self.class_weight
        log_q, log_1_q = torch.nn.functional.logsigmoid(output), torch.nn.functional.logsigmoid(-output)
        return -of_1 * y * log_q - of_0 * (1 - y) * log_1_q

    def prediction(self, output: Tensor) -> Tensor:
        """The probability of label 1, without the weights."""
        of_0, of_1 = self.class_weight
        return _sigmoid(output - math.log(of_1 / of_0))


@dataclass(frozen=True)
class Focal(BCE):
    r"""Focal loss :math:`-y\,(1 - q)^\gamma \log q - (1 - y)\,q^\gamma \log(1 - q)`, which makes little of easy rows.

    Here :math:`q = \operatorname{sigmoid}(x)` of the output x. At the minimum q is not the probability p of label 1
    but a function of it. The prediction is p, found from the output with :math:`g(x) = e^x \log(1 + e^{-x})`:

    .. math:: \operatorname{logit} p = (1 + \gamma)\,x + \log(1 + \gamma g(-x)) - \log(1 + \gamma g(x))

    Args:
        gamma: focus on rows that are hard to classify; 0 is the binary cross-entropy.

    References:
        Lin, Goyal, Girshick, He and Dollár (2017), "Focal Loss for Dense Object Detection", eq. 4.
        Charoenphakdee, Vongkulbhisal, Chairatanakul and Sugiyama (2021), "On Focal Loss for Class-Posterior Probability
        Estimation: A Theoretical Perspective", for the way back to probabilities.
    """

    kind: ClassVar[str] = "focal"
    gamma: float

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < math.inf:
            raise UserError(f"`gamma` must be a number >= 0, got {self.gamma}")

    def rows(self, output: Tensor, y: Tensor) -> Rows:
        """The cross-entropy of each label, times a power of the probability of the other one."""
        log_q, log_1_q = torch.nn.functional.logsigmoid(output), torch.nn.functional.logsigmoid(-output)
        # the power as an exponential of logarithms: exact for any logit, and the same for every row of a buffer
        return -y * (self.gamma * log_1_q).exp() * log_q - (1 - y) * (self.gamma * log_q).exp() * log_1_q

    def prediction(self, output: Tensor) -> Tensor:
        """The probability of label 1."""
        below, above = (self.gamma * _odds_times_log(x) for x in (-output, output))
        return _sigmoid((1 + self.gamma) * output + torch.log1p(below) - torch.log1p(above))


def _sigmoid(x: Tensor) -> Tensor:
    """The logistic function, written so that every row of a buffer is rounded alike."""
    return 0.5 + 0.5 * torch.tanh(0.5 * x)


def _odds_times_log(x: Tensor) -> Tensor:
    """exp(x) log(1 + exp(-x)), which grows from 0 to 1."""
    x = x.clamp_max(40.0)  # it is 1 there to double precision
    return -x.exp() * torch.nn.functional.logsigmoid(x)
